//! Between gRPC, as callers of agents speak it, and the JSON of agents that are reached by HTTP.

use std::collections::HashMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use parallax_proto::confidence::{
    AgentRequest, Capabilities, ConfidenceResult, Health, health::Status as Condition,
};
use parallax_runtime::{
    agent::Agent,
    confidence::Confidence,
    wire::{struct_to_json, timestamp_to_wire},
};
use prost::Message;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use tonic::{Code, Status};

use crate::whole::{Frames, PREFIX, framed};

/// When a call that was turned away may come again, in milliseconds (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// As much of an error's text as is passed on, in characters.
const SHOWN: usize = 500;

/// A response of one message.
pub(super) fn reply(message: &impl Message) -> Response<Frames> {
    respond(
        Some(framed(message)),
        HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]),
    )
}

/// A response of a status alone.
pub(super) fn refuse(status: &Status) -> Response<Frames> {
    let mut trailers = HeaderMap::new();
    // It fails for metadata that is no header.
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    respond(None, trailers)
}

fn respond(message: Option<Bytes>, trailers: HeaderMap) -> Response<Frames> {
    let mut response = Response::new(Frames::new(message, Some(trailers)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The request, as the agent is asked it. Names are those of `AgentRequest`; `task` is the description again.
#[derive(Serialize)]
struct Question<'a> {
    task_id: &'a str,
    task: &'a str,
    task_description: &'a str,
    data: Map<String, Json>,
    context: &'a HashMap<String, String>,
    timeout_ms: u64,
    pattern_name: &'a str,
}

/// The JSON for a request's frame. `left_ms`: how long the caller will still wait.
pub(super) fn question(frame: &Bytes, left_ms: u64) -> Result<Vec<u8>, Status> {
    let (prefix, message) = frame
        .split_at_checked(PREFIX)
        .ok_or_else(|| Status::invalid_argument("the call carries no message"))?;
    if prefix[0] != 0 {
        return Err(Status::unimplemented("the request is compressed; this agent is sent it as it is"));
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if length != message.len() {
        return Err(Status::invalid_argument(format!(
            "one message of {length} bytes is due, {} bytes came",
            message.len()
        )));
    }
    let request = AgentRequest::decode(message)
        .map_err(|e| Status::invalid_argument(format!("the request is no AgentRequest: {e}")))?;
    let question = Question {
        task_id: &request.task_id,
        task: &request.task_description,
        task_description: &request.task_description,
        data: request.data.as_ref().map(struct_to_json).unwrap_or_default(),
        context: &request.context,
        timeout_ms: u64::try_from(request.timeout_ms)
            .ok()
            .filter(|ms| *ms > 0)
            .map_or(left_ms, |ms| ms.min(left_ms)),
        pattern_name: &request.pattern_name,
    };
    Ok(serde_json::to_vec(&question).expect("its keys are text"))
}

/// Reads an agent's answer.
///
/// # Errors
/// What it is instead, in words.
pub(super) fn answer(body: &[u8], agent: &Agent, now: Timestamp) -> Result<ConfidenceResult, String> {
    let Json::Object(mut answer) = parse(body)? else {
        return Err("it answered with JSON that is no object with the key value".to_owned());
    };
    let value_json = match (answer.remove("value"), answer.remove("value_json")) {
        (Some(value), _) => value.to_string(),
        (None, Some(Json::String(text))) => text,
        (None, Some(value)) => value.to_string(),
        (None, None) => {
            let keys: Vec<&str> = answer.keys().take(8).map(String::as_str).collect();
            return Err(format!("it answered with neither value nor value_json, but [{}]", keys.join(", ")));
        }
    };
    let confidence = match answer.get("confidence") {
        Some(Json::Number(n)) => n.as_f64(),
        Some(Json::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    Ok(ConfidenceResult {
        value_json,
        // Zero would say that it is not sure at all.
        confidence: confidence.and_then(Confidence::stated).map_or(f64::NAN, Confidence::get),
        agent_id: answer.get("agent_id").and_then(Json::as_str).unwrap_or(&agent.key.id).to_owned(),
        timestamp: Some(timestamp_to_wire(now)),
        uncertainties: match answer.remove("uncertainties") {
            Some(Json::Array(all)) => all.into_iter().map(text).collect(),
            None | Some(Json::Null) => Vec::new(),
            Some(one) => vec![text(one)],
        },
        reasoning: answer.remove("reasoning").map(text).unwrap_or_default(),
        metadata: match answer.remove("metadata") {
            Some(Json::Object(all)) => all.into_iter().map(|(key, value)| (key, text(value))).collect(),
            _ => HashMap::new(),
        },
    })
}

/// Text as it is, nothing as empty, and anything else as JSON.
fn text(json: Json) -> String {
    match json {
        Json::String(text) => text,
        Json::Null => String::new(),
        other => other.to_string(),
    }
}

/// JSON, also as Python writes it: `NaN` and `Infinity`, which mean nothing in JSON, are null.
fn parse(body: &[u8]) -> Result<Json, String> {
    let failed = |e: serde_json::Error| format!("it answered with what is not JSON: {e}");
    serde_json::from_slice(body).or_else(|first| {
        let Some(mended) = without_nan(body) else { return Err(failed(first)) };
        serde_json::from_slice(&mended).map_err(|_| failed(first))
    })
}

/// The text with null in place of numbers that JSON has not; none if it has no such.
fn without_nan(body: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut mended, mut found, mut quoted, mut rest) = (Vec::with_capacity(body.len()), false, false, body);
    while let [byte, after @ ..] = rest {
        let word = WORDS.iter().find(|word| !quoted && rest.starts_with(word));
        if let Some(word) = word {
            mended.extend(b"null");
            (found, rest) = (true, &rest[word.len()..]);
            continue;
        }
        mended.push(*byte);
        rest = after;
        if quoted && *byte == b'\\' {
            if let [escaped, after @ ..] = rest {
                mended.push(*escaped);
                rest = after;
            }
        } else if *byte == b'"' {
            quoted = !quoted;
        }
    }
    found.then_some(mended)
}

/// What an HTTP status that is no success means to a gRPC caller, with the agent's own words.
pub(super) fn refusal(response: &Response<Bytes>, path: &str, now: Timestamp) -> Status {
    let status = response.status();
    let code = match status.as_u16() {
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 | 405 | 501 => Code::Unimplemented,
        408 | 504 => Code::DeadlineExceeded,
        409 => Code::Aborted,
        412 | 428 => Code::FailedPrecondition,
        429 => Code::ResourceExhausted,
        499 => Code::Cancelled,
        503 => Code::Unavailable,
        400..=499 => Code::InvalidArgument,
        _ => Code::Internal,
    };
    let said = words(response.body());
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let mut refusal = Status::new(code, format!("HTTP {status} at {path}{said}"));
    if let Some(ms) = retry_after(response.headers(), now) {
        refusal.metadata_mut().insert(PUSHBACK, ms.into());
    }
    refusal
}

/// The text of an error: a problem's (RFC 9457), that of the usual keys, or the body if it is text.
fn words(body: &[u8]) -> String {
    let said = match serde_json::from_slice(body) {
        Ok(Json::Object(problem)) => ["detail", "message", "error", "title"]
            .iter()
            .find_map(|key| problem.get(*key))
            .map_or_else(String::new, |said| said.as_str().map_or_else(|| said.to_string(), str::to_owned)),
        Ok(other) => text(other),
        Err(_) => std::str::from_utf8(body).unwrap_or_default().trim().to_owned(),
    };
    said.chars().filter(|c| !c.is_control() || *c == '\n').take(SHOWN).collect()
}

/// Milliseconds until a call may come again, from seconds or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<u64> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    let at = rfc2822::parse(text).ok()?.timestamp();
    u64::try_from(at.duration_since(now).max(SignedDuration::ZERO).as_millis()).ok()
}

/// What the agent registered; nothing that it did not.
pub(super) fn capabilities(agent: &Agent) -> Capabilities {
    Capabilities {
        agent_id: agent.key.id.clone(),
        name: agent.name.clone(),
        capabilities: agent.capabilities.clone(),
        expertise_level: f64::NAN,
        capability_scores: HashMap::new(),
    }
}

/// How the agent is: as its answer's `status` says, else by the code of the answer.
pub(super) fn health(response: &Response<Bytes>, now: Timestamp) -> Health {
    let mut body = match parse(response.body()) {
        Ok(Json::Object(body)) => body,
        _ => Map::new(),
    };
    let status = body.remove("status").map(text).unwrap_or_default();
    let condition = match status.to_ascii_lowercase().as_str() {
        _ if !response.status().is_success() => Condition::Unhealthy,
        "" | "healthy" | "ok" | "up" | "pass" | "ready" | "alive" | "serving" => Condition::Healthy,
        "degraded" | "warn" => Condition::Degraded,
        "unhealthy" | "down" | "fail" | "not_serving" => Condition::Unhealthy,
        _ => Condition::Unknown,
    };
    let mut message = body.remove("message").map(text).unwrap_or_default();
    if message.is_empty() && condition != Condition::Healthy {
        let told = if status.is_empty() { words(response.body()) } else { status };
        message = format!("HTTP {}: {told}", response.status());
    }
    Health {
        status: condition.into(),
        message,
        last_check: Some(timestamp_to_wire(now)),
        details: body.into_iter().map(|(key, value)| (key, text(value))).collect(),
    }
}

#[cfg(test)]
mod tests;
