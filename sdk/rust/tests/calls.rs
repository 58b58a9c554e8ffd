//! Calls to an agent: who may, how they end, and what a shutdown does to them.
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

#[path = "fixture/cluster.rs"]
#[allow(dead_code)]
mod cluster;

use std::{sync::Arc, time::Duration};

use cluster::{Cluster, Heard, about, call_plain};
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use parallax_proto::confidence::{AgentRequest, ConfidenceResult};
use parallax_sdk::{
    Agent, AgentError, Answer, Error, Health, Profile, Server, Task, TlsOptions, agent, async_trait, json,
};
use parallax_security::Kind;
use tokio::sync::{Notify, mpsc};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

/// Does what the task's name says, and tells the test.
struct Scripted {
    begun: mpsc::UnboundedSender<Task>,
    release: Arc<Notify>,
}

impl Scripted {
    fn new() -> (Self, mpsc::UnboundedReceiver<Task>, Arc<Notify>) {
        let ((begun, seen), release) = (mpsc::unbounded_channel(), Arc::new(Notify::new()));
        (Self { begun, release: Arc::clone(&release) }, seen, release)
    }
}

#[async_trait]
impl Agent for Scripted {
    fn profile(&self) -> Profile {
        agent("scripted").skill("test", 0.5)
    }

    async fn analyze(&self, task: Task) -> Result<Answer, AgentError> {
        let _ = self.begun.send(task.clone());
        match task.text("name")? {
            "wait" => self.release.notified().await,
            "hang" => std::future::pending().await,
            "panic" => panic!("boom"),
            "fail" => Err("x".parse::<u8>().map_err(std::io::Error::other).unwrap_err())?,
            "unsure" => return Ok(Answer::unrated(json!({ "a": [1, null] }))),
            "sure" => return Answer::new("x", 7.3),
            _ => {}
        }
        Ok(Answer::new("done", 0.9)?.reasoning("why").uncertainty("perhaps").metadata("k", "v"))
    }

    fn stream(self: Arc<Self>, task: Task) -> BoxStream<'static, Result<Answer, AgentError>> {
        if task.text("name").is_ok_and(|name| name == "count") {
            return stream::iter([0.1, 0.2, 7.3, 0.4]).map(|sure| Answer::new("n", sure)).boxed();
        }
        stream::once(async move { self.analyze(task).await }).boxed()
    }

    async fn health(&self) -> Health {
        Health::Degraded("slow".into())
    }
}

fn failed(result: Result<tonic::Response<ConfidenceResult>, Status>) -> (Code, String, String) {
    let status = result.unwrap_err();
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    (status.code(), status.message().to_owned(), reason)
}

#[tokio::test]
async fn answers_and_failures_arrive_as_the_contract_says() {
    let cluster = Cluster::new();
    let (scripted, ..) = Scripted::new();
    let (_control, handle) = cluster.agent(scripted).await;
    let mut agent = cluster.call_as(Kind::DataPlane, &handle).await;

    let result = agent.analyze(about("x")).await.unwrap().into_inner();
    assert_eq!((result.value_json.as_str(), result.confidence), ("\"done\"", 0.9));
    assert_eq!((result.agent_id.as_str(), result.reasoning.as_str()), ("scripted", "why"));
    assert_eq!((result.uncertainties, result.metadata["k"].as_str()), (vec!["perhaps".to_owned()], "v"));
    assert!(result.timestamp.unwrap().seconds > 1_700_000_000);
    let result = agent.analyze(about("unsure")).await.unwrap().into_inner();
    assert!(result.confidence.is_nan() && result.value_json == r#"{"a":[1,null]}"#);

    for (name, code, message, reason) in [
        ("sure", Code::Internal, "a confidence is a number from 0 to 1, not 7.3", "PARALLAX-SDK-101"),
        ("fail", Code::Internal, "invalid digit found in string", "PARALLAX-SDK-101"),
        ("panic", Code::Internal, "the agent panicked: boom", "PARALLAX-SDK-103"),
    ] {
        assert_eq!(failed(agent.analyze(about(name)).await), (code, message.into(), reason.into()));
    }
    let empty = failed(agent.analyze(AgentRequest::default()).await);
    let expected = "data.name is missing; give it a text";
    assert_eq!(empty, (Code::InvalidArgument, expected.into(), "PARALLAX-SDK-102".into()));
    assert!(agent.analyze(about("x")).await.is_ok(), "the agent lives on");

    let capabilities = agent.get_capabilities(()).await.unwrap().into_inner();
    assert_eq!(
        (capabilities.capabilities, capabilities.capability_scores["test"]),
        (vec!["test".into()], 0.5)
    );
    assert!(capabilities.expertise_level.is_nan());
    let health = agent.health_check(()).await.unwrap().into_inner();
    assert_eq!((health.status, health.message.as_str()), (3, "slow"));
}

#[tokio::test]
async fn a_stream_ends_with_its_first_failure() {
    let cluster = Cluster::new();
    let (scripted, ..) = Scripted::new();
    let (_control, handle) = cluster.agent(scripted).await;
    let mut agent = cluster.call_as(Kind::Operator, &handle).await;
    let results: Vec<_> = agent.stream_analyze(about("count")).await.unwrap().into_inner().collect().await;
    let sure: Vec<_> = results.iter().flatten().map(|result| result.confidence).collect();
    assert_eq!((sure, results.len()), (vec![0.1, 0.2], 3));
    assert_eq!(results[2].as_ref().unwrap_err().code(), Code::Internal);

    let one: Vec<_> =
        agent.stream_analyze(about("x")).await.unwrap().into_inner().try_collect().await.unwrap();
    assert_eq!(one.len(), 1);
    let panicked: Result<Vec<_>, _> =
        agent.stream_analyze(about("panic")).await.unwrap().into_inner().try_collect().await;
    assert_eq!(panicked.unwrap_err().message(), "the agent panicked: boom");
    let late = AgentRequest { timeout_ms: 10, ..about("hang") };
    let late: Result<Vec<_>, _> = agent.stream_analyze(late).await.unwrap().into_inner().try_collect().await;
    assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_or_with_its_caller() {
    let cluster = Cluster::new();
    let (scripted, mut begun, _) = Scripted::new();
    let (_control, handle) = cluster.agent(scripted).await;
    let mut agent = cluster.call_as(Kind::DataPlane, &handle).await;

    let late = failed(agent.analyze(AgentRequest { timeout_ms: 10, ..about("hang") }).await);
    assert_eq!(
        late,
        (Code::DeadlineExceeded, "no answer before the deadline".into(), "PARALLAX-SDK-104".into())
    );
    let task = begun.recv().await.unwrap();
    assert!(task.is_cancelled() && task.deadline.is_some());
    assert_eq!((task.id.as_str(), &task.data), ("t1", &json!({ "name": "hang" })));

    let mut request = Request::new(about("hang"));
    request.metadata_mut().insert("grpc-timeout", "10m".parse().unwrap());
    request.metadata_mut().insert("x-parallax-effect", "run-1/3".parse().unwrap());
    // Which end of the connection notices first decides the code.
    assert!(agent.analyze(request).await.is_err());
    let task = begun.recv().await.unwrap();
    assert_eq!((task.effect.as_deref(), task.deadline.is_some()), (Some("run-1/3"), true));
    task.cancelled().await;

    let mut caller = agent.clone();
    let call = tokio::spawn(async move { caller.analyze(about("hang")).await });
    let task = begun.recv().await.unwrap();
    assert!(!task.is_cancelled() && task.deadline.is_none());
    call.abort();
    task.cancelled().await;
}

#[tokio::test]
async fn only_data_planes_and_operators_are_served() {
    let cluster = Cluster::new();
    let (scripted, ..) = Scripted::new();
    let (_control, handle) = cluster.agent(scripted).await;
    for (name, may) in [
        ("spiffe://parallax/default/data-plane/one", true),
        ("spiffe://parallax/other/data-plane/one", true),
        ("spiffe://parallax/default/operator/one", true),
        ("spiffe://parallax/other/operator/one", false),
        ("spiffe://parallax/default/agent/one", false),
        ("spiffe://parallax/default/control-plane/one", false),
    ] {
        let tls = cluster.tls_of(&name.parse().unwrap());
        let result = cluster::call(tls, handle.addr().to_string()).await.analyze(about("x")).await;
        assert_eq!(result.is_ok(), may, "{name}");
        if !may {
            let (code, message, _) = failed(result);
            assert_eq!(code, Code::PermissionDenied);
            assert!(message.contains(name), "{message}");
        }
    }
    let (code, message, _) = failed(call_plain(&handle).await.analyze(about("x")).await);
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("this agent speaks mTLS"), "{message}");
}

#[tokio::test]
async fn in_plaintext_it_registers_and_serves_so() {
    let cluster = Cluster::new();
    let mut control = cluster.control_plane().await;
    let (scripted, ..) = Scripted::new();
    let server = Server::new(scripted).registry(&control.addr).tls(TlsOptions::Plaintext);
    let handle = server.bind().await.unwrap();
    assert_eq!(control.registration().await.1, None);
    let result = call_plain(&handle).await.analyze(about("x")).await.unwrap();
    assert_eq!(result.into_inner().value_json, "\"done\"");
    handle.shutdown();
    handle.wait().await.unwrap();
}

#[tokio::test]
async fn a_shutdown_unregisters_first_and_finishes_what_was_begun() {
    let cluster = Cluster::new();
    let (scripted, mut begun, release) = Scripted::new();
    let (mut control, handle) = cluster.agent(scripted).await;
    control.registration().await;
    let mut agent = cluster.call_as(Kind::DataPlane, &handle).await;
    let mut health = HealthClient::new(cluster.channel(Kind::DataPlane, &handle).await);
    let request = HealthCheckRequest { service: "parallax.confidence.ConfidenceAgent".into() };
    let mut statuses = health.watch(request).await.unwrap().into_inner();
    assert_eq!(statuses.next().await.unwrap().unwrap().status, 1, "serving");

    let call = tokio::spawn(async move { agent.analyze(about("wait")).await });
    begun.recv().await.unwrap();
    handle.shutdown();
    assert_eq!(control.heard().await, Heard::Unregister("scripted".into()));
    while let Some(status) = statuses.next().await {
        assert_eq!(status.unwrap().status, 2, "not serving");
    }
    release.notify_one();
    assert_eq!(call.await.unwrap().unwrap().into_inner().value_json, "\"done\"");
    handle.wait().await.unwrap();
}

#[tokio::test]
async fn a_call_that_outlasts_the_shutdown_is_cut_and_told() {
    let cluster = Cluster::new();
    let control = cluster.control_plane().await;
    let (scripted, mut begun, _) = Scripted::new();
    let server = cluster.server(scripted, &control.addr).drain(Duration::from_millis(10));
    let handle = server.bind().await.unwrap();
    let mut agent = cluster.call_as(Kind::DataPlane, &handle).await;
    let call = tokio::spawn(async move { agent.analyze(about("hang")).await });
    begun.recv().await.unwrap();
    handle.shutdown();
    assert!(matches!(handle.wait().await, Err(Error::Drain(_))));
    let cut = failed(call.await.unwrap());
    assert_eq!(cut, (Code::Unavailable, "the agent is shutting down".into(), "PARALLAX-SDK-105".into()));
}
