//! What clients are told while agents work: streams, single questions, and the traps of clients that exist today.

use std::sync::Arc;

use parallax_proto::{
    executions::{StreamExecutionRequest, execution_service_client::ExecutionServiceClient},
    patterns::{
        ExecutePatternRequest, execute_pattern_response::Status as Outcome,
        pattern_service_client::PatternServiceClient,
    },
};
use parallax_runtime::wire::struct_from_any;
use parallax_sdk::{Answer, Task, agent};
use parallax_security::Kind;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc},
};

use crate::{
    agents::{result, says, scripted},
    program::run as command,
    world::{World, soon},
};

/// An agent that answers one question each time that it is told to, and tells when it is asked.
async fn held(world: &World, id: &str) -> (mpsc::UnboundedReceiver<()>, Arc<Notify>) {
    let (asking, asked) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let held = go.clone();
    let agent = agent(id).answer(move |_: Task| {
        asking.send(()).unwrap();
        let held = held.clone();
        async move {
            held.notified().await;
            Answer::new("x", 0.9)
        }
    });
    world.agent(agent).await;
    (asked, go)
}

#[tokio::test]
async fn a_streamed_pattern_tells_each_answer_and_outlives_its_caller() {
    let world = World::start().await;
    let (mut asked, go) = held(&world, "slow").await;
    world.agent(says("quick", "x", 0.8).0).await;
    let channel = world.dial("default", Kind::Operator, "someone").await;
    let mut patterns = PatternServiceClient::new(channel.clone());
    let request = || ExecutePatternRequest {
        pattern_name: "consensus-builder".to_owned(),
        input: Some(struct_from_any(&json!({"task": "tell"}))),
        ..ExecutePatternRequest::default()
    };
    let mut stream = patterns.stream_execute_pattern(request()).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    assert!(!first.execution_id.is_empty() && first.agent_results.is_empty());
    for from in ["quick", "slow"] {
        let message = soon(stream.message()).await.unwrap().unwrap();
        assert_eq!((message.status(), message.agent_results.len()), (Outcome::Unknown, 1));
        assert_eq!(message.agent_results[0].agent_id, from);
        // The first has been told while the second was still thinking.
        if from == "quick" {
            go.notify_one();
        }
    }
    let last = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!((last.status(), last.agent_results.len()), (Outcome::Success, 2));
    assert!(soon(stream.message()).await.unwrap().is_none());
    soon(asked.recv()).await.unwrap();

    let mut left = patterns.stream_execute_pattern(request()).await.unwrap().into_inner();
    let execution_id = soon(left.message()).await.unwrap().unwrap().execution_id;
    soon(asked.recv()).await.unwrap();
    drop(left);
    let mut executions = ExecutionServiceClient::new(channel);
    let mut events =
        executions.stream_execution(StreamExecutionRequest { execution_id }).await.unwrap().into_inner();
    let mut kinds = vec![];
    while let Some(event) = soon(events.message()).await.unwrap() {
        kinds.push(event.event_type);
        go.notify_one();
    }
    assert_eq!((kinds[0].as_str(), kinds.last().unwrap().as_str()), ("started", "completed"));
    assert!(kinds.iter().any(|kind| kind == "agent_completed"), "{kinds:?}");
    world.stop().await;
}

/// Reads server-sent events from a socket, and checks that what each read brings are whole events.
async fn whole_events(
    world: &World,
    request: &str,
    asked: &mut mpsc::UnboundedReceiver<()>,
    go: &Notify,
) -> Vec<Json> {
    let mut stream = TcpStream::connect(world.http()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut events, mut head, mut buffer) = (vec![], true, vec![0; 1 << 16]);
    loop {
        let read = soon(stream.read(&mut buffer)).await.unwrap();
        let mut text = String::from_utf8(buffer[..read].to_vec()).unwrap();
        if head {
            let (top, rest) = text.split_once("\r\n\r\n").expect("the head comes whole");
            assert!(top.starts_with("HTTP/1.1 200") && top.contains("text/event-stream"), "{top}");
            (head, text) = (false, rest.to_owned());
        }
        // Chunks: a length, the text, an empty line; the chunk of length 0 is the last.
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (length, after) = rest.split_once("\r\n").unwrap();
            let length = usize::from_str_radix(length, 16).unwrap();
            if length == 0 {
                return events;
            }
            let (chunk, after) = after.split_at_checked(length).unwrap_or_else(|| panic!("cut: {after}"));
            assert!(chunk.ends_with("\n\n"), "an event in one piece: {chunk:?}");
            let data = chunk.lines().filter_map(|line| line.strip_prefix("data: "));
            events.extend(data.map(|data| serde_json::from_str::<Json>(data).unwrap()));
            rest = after.strip_prefix("\r\n").unwrap();
        }
        if asked.try_recv().is_ok() || events.last().is_some_and(|event| event["type"] == "agent_started") {
            go.notify_one();
        }
    }
}

#[tokio::test]
async fn each_event_is_written_in_one_piece() {
    let world = World::start().await;
    let (mut asked, go) = held(&world, "slow").await;
    let body = json!({"input": {"task": "tell"}, "options": {"stream": true}}).to_string();
    let execute = format!(
        "POST /api/patterns/confidence-cascade/execute HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let streamed = whole_events(&world, &execute, &mut asked, &go).await;
    let kinds: Vec<_> = streamed.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let expected =
        ["started", "agents_selected", "agent_started", "agent_completed", "agents_completed", "completed"];
    assert_eq!(kinds, expected);
    let id = streamed[0]["executionId"].as_str().unwrap();
    let again = format!("GET /api/executions/{id}/events/stream HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(whole_events(&world, &again, &mut asked, &go).await, streamed);
    world.stop().await;
}

#[tokio::test]
async fn one_agent_is_asked_how_it_is_and_one_question() {
    let world = World::start().await;
    let dir = world.data_dir();
    let (solo, calls) = says("solo", "de", 0.75);
    world.agent(solo).await;
    scripted(&world, "old", Arc::default(), |request| async move {
        match request.task_description.as_str() {
            "fail" => Err(tonic::Status::internal("out of order")),
            _ => Ok(result("", f64::NAN)),
        }
    })
    .await;
    let mut api = world.api().await;
    // A node hears of an agent a moment after the registry does.
    let mut asked = async |id: &str| loop {
        let health = api.get(&format!("/api/agents/{id}/health")).await.unwrap();
        if !health["message"].as_str().unwrap().contains("no agent") {
            return health;
        }
    };
    let health = soon(asked("solo")).await;
    assert_eq!((&health["status"], &health["source"]), (&json!("healthy"), &json!("agent")), "{health}");
    let health = soon(asked("old")).await;
    assert_eq!((&health["status"], &health["source"]), (&json!("unknown"), &json!("agent")), "{health}");

    let mut api = world.api().await;
    let body = json!({"task": "tell", "data": {"text": "Füße"}});
    let answer = api.post("/api/agents/solo/test", &body).await.unwrap();
    assert_eq!(
        (&answer["agentId"], &answer["result"], &answer["confidence"]),
        (&json!("solo"), &json!("de"), &json!(0.75))
    );
    assert!(answer["timestamp"].is_string() && answer["reasoning"].is_string() && calls.count() == 1);
    let answer = api.post("/api/agents/old/test", &body).await.unwrap();
    assert_eq!((&answer["result"], &answer["confidence"]), (&json!(null), &json!(null)), "none is made up");
    let failed = api.post("/api/agents/old/test", &json!({"task": "fail"})).await.unwrap_err().to_string();
    assert!(failed.contains("\"old\" did not answer (AGENT_ERROR)"), "{failed}");
    assert!(api.post("/api/agents/nobody/test", &body).await.is_err());
    assert_eq!(api.get("/api/executions").await.unwrap()["total"], 0, "it is no run");

    let ended = command(dir, &["agent", "status", "solo"]).await;
    assert!(ended.code == 0 && ended.out.contains("solo  healthy (says the agent)"), "{}", ended.out);
    assert!(
        ended.out.contains("BREAKER") && ended.out.contains("closed"),
        "as each node sees it: {}",
        ended.out
    );
    assert_eq!(command(dir, &["agent", "status", "old"]).await.code, 1);
    let ended = command(dir, &["agent", "test", "solo", "--data", "{\"text\": \"x\"}"]).await;
    assert!(ended.code == 0 && ended.out.starts_with("de ~ 0.75"), "{} {}", ended.out, ended.err);
    assert_eq!(command(dir, &["agent", "test", "solo", "--data", "{"]).await.code, 2);
    let ended = command(dir, &["agent", "capabilities"]).await;
    assert!(ended.out.contains("tell") && ended.out.contains("old, solo"), "{}", ended.out);

    let ended = command(dir, &["run", "consensus-builder", "--watch", "-i", "{\"task\": \"tell\"}"]).await;
    assert_eq!(ended.code, 0, "{}", ended.err);
    let place = |word: &str| ended.out.find(word).unwrap_or_else(|| panic!("{word}: {}", ended.out));
    assert!(place("started") < place("agent_completed") && place("agent_completed") < place("completed\n"));
    world.stop().await;
}
