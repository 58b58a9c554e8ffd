use http::StatusCode;
use parallax_proto::registry::AgentRegistration;
use parallax_runtime::{
    agent::Transport,
    wire::{answer_from_result, struct_from_json},
};
use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn agent() -> Agent {
    let message = AgentRegistration { id: "a".into(), endpoint: "https://h/".into(), ..Default::default() };
    Agent::from_wire(message, "default", Transport::Mtls, None, NOW).unwrap()
}

fn read(body: &str) -> Result<(String, Option<f64>), String> {
    answer(body.as_bytes(), &agent(), NOW).map(|result| {
        let answer = answer_from_result(result);
        (answer.value_json, answer.confidence)
    })
}

fn response(code: u16, headers: &[(&'static str, &str)], body: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::copy_from_slice(body.as_bytes()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

#[test]
fn a_request_is_asked_in_its_own_names() {
    let data = json!({"text": "Füße", "n": 3, "list": [1.5, null]});
    let request = AgentRequest {
        task_id: "t1".into(),
        task_description: "which language?".into(),
        data: Some(struct_from_json(data.as_object().unwrap())),
        context: HashMap::from([("k".into(), "v".into())]),
        timeout_ms: 5_000,
        pattern_name: "voting".into(),
    };
    let asked: Json = serde_json::from_slice(&question(&framed(&request), 700).unwrap()).unwrap();
    let expected = json!({
        "task_id": "t1", "task": "which language?", "task_description": "which language?", "data": data,
        "context": {"k": "v"}, "timeout_ms": 700, "pattern_name": "voting",
    });
    assert_eq!(asked, expected);
    let empty = AgentRequest::default();
    let asked: Json = serde_json::from_slice(&question(&framed(&empty), 9).unwrap()).unwrap();
    assert_eq!((&asked["data"], &asked["timeout_ms"]), (&json!({}), &json!(9)));
    for (frame, code) in [
        (&b""[..], Code::InvalidArgument),
        (b"\0\0\0\0\x05x", Code::InvalidArgument),
        (b"\0\0\0\0\x01\xff", Code::InvalidArgument),
        (b"\x01\0\0\0\0", Code::Unimplemented),
    ] {
        assert_eq!(question(&Bytes::from_static(frame), 1).unwrap_err().code(), code, "{frame:?}");
    }
}

#[test]
fn an_answer_is_taken_as_agents_write_it() {
    for (body, value, confidence) in [
        (r#"{"value": {"a": [1, "x"]}, "confidence": 0.5}"#, r#"{"a":[1,"x"]}"#, Some(0.5)),
        (r#"{"value": null, "confidence": 7}"#, "null", Some(1.0)),
        (r#"{"value": "de", "confidence": -0.1}"#, r#""de""#, Some(0.0)),
        (r#"{"value": false, "confidence": "0.25"}"#, "false", Some(0.25)),
        (r#"{"value": 1}"#, "1", None),
        (r#"{"value": 1, "confidence": null}"#, "1", None),
        // As Python writes them.
        (
            r#"{"value": [NaN, "NaN \" NaN", -Infinity], "confidence": NaN}"#,
            r#"[null,"NaN \" NaN",null]"#,
            None,
        ),
        (r#"{"value_json": "{\"a\":1}", "confidence": 1}"#, r#"{"a":1}"#, Some(1.0)),
        (r#"{"value_json": "no JSON"}"#, r#""no JSON""#, None),
        (r#"{"value_json": ""}"#, "null", None),
    ] {
        assert_eq!(read(body), Ok((value.to_owned(), confidence)), "{body}");
    }
    for (body, why) in [
        ("", "not JSON"),
        ("<html>", "not JSON"),
        ("{\"value\": nan}", "not JSON"),
        ("[1]", "no object"),
        ("{\"answer\": 1, \"sure\": 1}", "neither value nor value_json, but [answer, sure]"),
    ] {
        let problem = read(body).unwrap_err();
        assert!(problem.contains(why), "{body}: {problem}");
    }
    let body =
        br#"{"value": 1, "uncertainties": "short", "reasoning": null, "metadata": {"a": "b", "n": 1}}"#;
    let result = answer(body, &agent(), NOW).unwrap();
    assert_eq!((result.agent_id.as_str(), result.reasoning.as_str()), ("a", ""));
    assert_eq!(result.uncertainties, ["short"]);
    assert_eq!((result.metadata["a"].as_str(), result.metadata["n"].as_str()), ("b", "1"));
}

#[test]
fn a_refusal_says_what_the_agent_said() {
    let told = |code, headers: &[_], body| {
        let status = refusal(&response(code, headers, body), "/x/analyze", NOW);
        let again = status.metadata().get(PUSHBACK).map(|ms| ms.to_str().unwrap().to_owned());
        (status.code(), status.message().to_owned(), again)
    };
    let problem = r#"{"title": "Busy", "detail": "come back later"}"#;
    let (code, message, again) = told(429, &[("retry-after", "2")], problem);
    assert_eq!((code, again.as_deref()), (Code::ResourceExhausted, Some("2000")));
    assert_eq!(message, "HTTP 429 Too Many Requests at /x/analyze: come back later");
    let (code, message, again) = told(503, &[("retry-after", "Thu, 01 Jan 1970 00:00:03 GMT")], "down");
    assert_eq!((code, again.as_deref()), (Code::Unavailable, Some("3000")));
    assert!(message.ends_with(": down"), "{message}");
    assert_eq!(told(429, &[("retry-after", "soon")], "").2, None);
    for (status, code) in [
        (400, Code::InvalidArgument),
        (401, Code::Unauthenticated),
        (404, Code::Unimplemented),
        (412, Code::FailedPrecondition),
        (422, Code::InvalidArgument),
        (500, Code::Internal),
        (502, Code::Internal),
        (504, Code::DeadlineExceeded),
    ] {
        assert_eq!(told(status, &[], "").0, code, "{status}");
    }
    assert!(told(400, &[], r#"{"error": {"code": 7}}"#).1.ends_with(r#": {"code":7}"#));
    assert!(told(500, &[], "\u{1b}[31m red").1.ends_with(": [31m red"));
}

#[test]
fn health_is_what_the_agent_says_or_its_code() {
    let how = |code, body| {
        let health = health(&response(code, &[], body), NOW);
        (health.status(), health.message)
    };
    assert_eq!(how(200, ""), (Condition::Healthy, String::new()));
    assert_eq!(how(200, r#"{"status": "OK"}"#).0, Condition::Healthy);
    assert_eq!(
        how(200, r#"{"status": "degraded", "message": "slow"}"#),
        (Condition::Degraded, "slow".into())
    );
    assert_eq!(how(200, r#"{"status": "starting"}"#).0, Condition::Unknown);
    let (status, message) = how(503, r#"{"status": "healthy"}"#);
    assert_eq!(status, Condition::Unhealthy, "it says so with its code");
    assert!(message.starts_with("HTTP 503"), "{message}");
    let health = health(&response(200, &[], r#"{"status": "up", "queue": 3}"#), NOW);
    assert_eq!(health.details["queue"], "3");
}
