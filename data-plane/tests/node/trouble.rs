//! Agents that hang, die, fail or talk nonsense, and callers that go away.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use http::Request;
use http_body::Frame;
use hyper::body::Incoming;
use parallax_proto::confidence::ConfidenceResult;
use parallax_runtime::{store::CallOutcome, wire};
use parallax_security::Plaintext;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Code;
use tower::ServiceExt;

use crate::{
    agent::{self, Body, agent, error, framed, raw, respond, streamed, sure, trailers},
    proxy::{ANALYZE, ask, bare, call, request},
    world::{World, until, within},
};

/// Tells when it is dropped: the agent's work was cancelled.
pub(crate) struct Gone(pub(crate) mpsc::UnboundedSender<&'static str>);

impl Drop for Gone {
    fn drop(&mut self) {
        _ = self.0.send("gone");
    }
}

/// An agent that begins and never ends; it tells when it has begun, and when it was cancelled.
pub(crate) async fn hanging(
    world: &World,
    id: &str,
) -> (agent::Agent, mpsc::UnboundedReceiver<&'static str>) {
    let (tell, told) = mpsc::unbounded_channel();
    let agent = agent(world, id, move |_| {
        let tell = tell.clone();
        async move {
            tell.send("began").unwrap();
            let _gone = Gone(tell);
            pending::<http::Response<Body>>().await
        }
    })
    .await;
    (agent, told)
}

pub(crate) async fn hears(told: &mut mpsc::UnboundedReceiver<&'static str>, what: &str) {
    assert_eq!(within(what, told.recv()).await, Some(what));
}

#[tokio::test]
async fn a_hanging_agent_meets_the_deadline_and_hears_of_it() {
    let world = World::new().await;
    let (_agent, mut told) = hanging(&world, "slow").await;
    let node = world.ready_node().await;
    // Not by a client that watches the deadline itself.
    let metadata = [(wire::AGENT, "slow"), ("grpc-timeout", "100m")];
    let raw = bare(&node, request(ANALYZE, framed(b""), &metadata)).await;
    assert_eq!(raw.status().code(), Code::DeadlineExceeded);
    let message = raw.status().message().to_owned();
    assert!(message.starts_with("agent slow at 127.0.0.1:"), "{message}");
    assert!(message.ends_with("did not answer within 100 ms"), "{message}");
    hears(&mut told, "began").await;
    hears(&mut told, "gone").await;
    assert_eq!(world.samples("slow", 1).await[0].outcome, CallOutcome::DeadlineExceeded);
}

#[tokio::test]
async fn an_agent_that_stops_in_mid_stream_meets_the_deadline_too() {
    let world = World::new().await;
    let _agent = agent(&world, "stops", |_| async {
        let (say, frames) = mpsc::unbounded_channel();
        say.send(Ok(Frame::data(framed(b"")))).unwrap();
        // It keeps the stream open and says nothing more.
        tokio::spawn(async move { say.closed().await });
        streamed(tokio_stream::wrappers::UnboundedReceiverStream::new(frames))
    })
    .await;
    let node = world.ready_node().await;
    let metadata = [(wire::AGENT, "stops"), ("grpc-timeout", "100m")];
    let raw = bare(&node, request(ANALYZE, framed(b""), &metadata)).await;
    assert_eq!(raw.bytes, framed(b""), "what came before is delivered");
    assert_eq!(raw.status().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_the_agent() {
    let world = World::new().await;
    let (_agent, mut told) = hanging(&world, "slow").await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let asked = operator.clone().oneshot(request(ANALYZE, framed(b""), &[(wire::AGENT, "slow")]));
    let asked = tokio::spawn(asked);
    hears(&mut told, "began").await;
    node.shows("slow", "in_flight", 1).await;
    asked.abort();
    hears(&mut told, "gone").await;
    node.shows("slow", "in_flight", 0).await;
    assert_eq!(world.samples("slow", 1).await[0].outcome, CallOutcome::Cancelled);
    assert_eq!(node.agent("slow").await.unwrap()["failures"], 0, "that was not the agent's fault");
}

#[tokio::test]
async fn an_agent_that_dies_in_mid_call_fails_its_call_and_no_other() {
    let world = World::new().await;
    let (dying, mut told) = hanging(&world, "dies").await;
    let _other = agent(&world, "lives", |_| async { sure(0.4) }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let caller = operator.clone();
    let lost = tokio::spawn(async move { ask(&caller, "dies").await.status() });
    hears(&mut told, "began").await;
    dying.die().await;
    let lost = within("the call fails", lost).await.unwrap();
    assert_eq!(lost.code(), Code::Internal);
    assert!(lost.message().contains("agent dies at 127.0.0.1:"), "{}", lost.message());
    assert!(lost.message().contains("broke off"), "{}", lost.message());
    assert_eq!(ask(&operator, "lives").await.status().code(), Code::Ok);
    let refused = ask(&operator, "dies").await.status();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("cannot be reached"), "{}", refused.message());
    let outcomes: Vec<_> = world.samples("dies", 2).await.into_iter().map(|sample| sample.outcome).collect();
    assert_eq!(outcomes, [CallOutcome::Unreachable; 2]);
}

#[tokio::test]
async fn nonsense_passes_as_it_is_and_is_never_believed() {
    let world = World::new().await;
    let stated = |confidence| ConfidenceResult { confidence, ..Default::default() }.encode_to_vec();
    let cases: [(&str, Vec<u8>, Option<f64>); 5] = [
        ("nan", stated(f64::NAN), None),
        ("boast", stated(7.3), Some(1.0)),
        ("negative", stated(-2.0), Some(0.0)),
        ("empty", Vec::new(), Some(0.0)),
        ("garbage", vec![0xff; 40], None),
    ];
    let mut agents = Vec::new();
    for (id, answer, _) in cases.clone() {
        agents.push(agent(&world, id, move |_| std::future::ready(raw(&answer))).await);
    }
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    for (id, answer, expected) in cases {
        let raw = ask(&operator, id).await;
        assert_eq!((raw.status().code(), raw.bytes), (Code::Ok, framed(&answer)), "{id}");
        let sample = world.samples(id, 1).await.remove(0);
        assert_eq!(sample.confidence.map(|c| c.get()), expected, "{id}");
        assert_eq!(sample.outcome, CallOutcome::Answered);
    }
}

#[tokio::test]
async fn answers_that_are_no_grpc_are_named() {
    let world = World::new().await;
    let _web = agent(&world, "web", |_| async {
        let mut page = raw(b"<html>");
        *page.status_mut() = http::StatusCode::NOT_FOUND;
        page
    })
    .await;
    let _silent = agent(&world, "silent", |_| async { respond([Frame::data(framed(b""))]) }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let status = ask(&operator, "web").await.status();
    assert!(status.message().contains("not the contract: HTTP status 404"), "{}", status.message());
    let status = ask(&operator, "silent").await.status();
    assert!(status.message().contains("ended without trailers"), "{}", status.message());
}

#[tokio::test]
async fn an_agent_s_error_passes_whole() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { error(13, "out of ideas") }).await;
    let node = world.ready_node().await;
    let status = ask(&world.operator(&node).await, "a").await.status();
    assert_eq!((status.code(), status.message()), (Code::Internal, "out of ideas"));
    assert_eq!(world.samples("a", 1).await[0].outcome, CallOutcome::Failed);
}

#[tokio::test]
async fn the_breaker_opens_on_failures_probes_and_closes() {
    let world = World::new().await;
    let sick = Arc::new(AtomicBool::new(true));
    let sickness = sick.clone();
    let _agent = agent(&world, "a", move |_| {
        let sick = sickness.load(SeqCst);
        async move { if sick { error(13, "ill") } else { sure(0.9) } }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    for _ in 0..5 {
        assert_eq!(ask(&operator, "a").await.status().message(), "ill");
    }
    let ejected = call(&operator, ANALYZE, framed(b""), &[(wire::CAPABILITY, "test")]).await.status();
    assert_eq!(ejected.code(), Code::Unavailable);
    assert!(ejected.message().contains("the breaker is open"), "{}", ejected.message());
    let shown = node.agent("a").await.unwrap();
    assert_eq!((&shown["consecutive_failures"], &shown["failures"]), (&5.into(), &5.into()));
    // The first probe fails, and opens it again.
    let probed =
        || async { Some(ask(&operator, "a").await.status()).filter(|s| s.message() == "ill").map(drop) };
    until("a probe goes through", probed).await;
    sick.store(false, SeqCst);
    until("a probe succeeds", || async {
        (ask(&operator, "a").await.status().code() == Code::Ok).then_some(())
    })
    .await;
    assert_eq!(node.agent("a").await.unwrap()["breaker"], "closed");
}

#[tokio::test]
async fn what_callers_do_wrong_is_not_held_against_the_agent() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { error(3, "what is that?") }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    for _ in 0..20 {
        assert_eq!(ask(&operator, "a").await.status().code(), Code::InvalidArgument);
    }
    assert_eq!(node.agent("a").await.unwrap()["breaker"], "closed");
}

#[tokio::test]
async fn a_probe_finds_an_agent_that_is_back_at_its_address() {
    let world = World::new().await;
    let first = agent(&world, "a", |_| async { sure(0.5) }).await;
    let addr = first.addr;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Ok);
    first.die().await;
    until("the breaker opens", || async {
        let status = ask(&operator, "a").await.status();
        assert_ne!(status.code(), Code::Ok);
        status.message().contains("the breaker is open").then_some(())
    })
    .await;
    let _second = agent::start(&world, "a", addr, Plaintext::Refuse, |_| async { sure(0.6) }).await;
    until("it is asked again", || async {
        (ask(&operator, "a").await.status().code() == Code::Ok).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_early_answer_ends_the_call_while_the_caller_still_sends() {
    let world = World::new().await;
    let _agent = agent(&world, "curt", |request: Request<Incoming>| async move {
        drop(request);
        respond([trailers(9, "enough")])
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let (send, frames) = mpsc::unbounded_channel::<Result<Frame<bytes::Bytes>, tonic::Status>>();
    send.send(Ok(Frame::data(framed(b"")))).unwrap();
    let mut request = request(ANALYZE, bytes::Bytes::new(), &[(wire::AGENT, "curt")]);
    let body = http_body_util::StreamBody::new(tokio_stream::wrappers::UnboundedReceiverStream::new(frames));
    *request.body_mut() = tonic::body::Body::new(body);
    let response = within("it answers", operator.oneshot(request)).await.unwrap();
    let body = within("it ends", http_body_util::BodyExt::collect(response.into_body())).await.unwrap();
    let status = tonic::Status::from_header_map(body.trailers().unwrap()).unwrap();
    assert_eq!(status.message(), "enough");
    node.shows("curt", "in_flight", 0).await;
    drop(send);
}

#[tokio::test]
async fn a_deadline_ends_the_call_while_the_caller_still_sends() {
    let world = World::new().await;
    let (_agent, mut told) = hanging(&world, "slow").await;
    let node = world.node_with(|config| config.default_deadline = Duration::from_millis(100)).await;
    node.plane.readiness().ready().await;
    let (send, frames) = mpsc::unbounded_channel::<Result<Frame<bytes::Bytes>, tonic::Status>>();
    send.send(Ok(Frame::data(framed(b"")))).unwrap();
    let mut request = request(ANALYZE, bytes::Bytes::new(), &[(wire::AGENT, "slow")]);
    let body = http_body_util::StreamBody::new(tokio_stream::wrappers::UnboundedReceiverStream::new(frames));
    *request.body_mut() = tonic::body::Body::new(body);
    let response = within("it answers", world.operator(&node).await.oneshot(request)).await.unwrap();
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    hears(&mut told, "began").await;
    hears(&mut told, "gone").await;
    drop(send);
}
