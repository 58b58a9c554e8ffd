//! Drivers' streams.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parallax_proto::{
    confidence::{AgentRequest, ConfidenceResult},
    dataplane::v1::{
        Answer, Call, CallOutcome, Cancel, DispatchRequest, Failure, call::Target, call_outcome::Outcome,
        data_plane_client::DataPlaneClient, dispatch_request::Message as Wanted, failure::Cause,
    },
};
use parallax_runtime::{store::CallOutcome as Recorded, wire};
use prost::Message;
use tokio::sync::{Barrier, Mutex, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::{
    agent::{agent, error, raw, respond, sure, trailers},
    trouble::{hanging, hears},
    world::{Node, World, within},
};

/// A driver's end of a stream.
pub(crate) struct Driver {
    calls: mpsc::UnboundedSender<DispatchRequest>,
    outcomes: Streaming<CallOutcome>,
}

impl Driver {
    pub(crate) async fn open(world: &World, node: &Node) -> Self {
        let (calls, stream) = mpsc::unbounded_channel();
        let mut client = DataPlaneClient::new(world.driver(node).await);
        let outcomes = client.dispatch(UnboundedReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { calls, outcomes }
    }

    fn send(&self, message: Wanted) {
        self.calls.send(DispatchRequest { message: Some(message) }).unwrap();
    }

    pub(crate) fn call(&self, call: Call) {
        self.send(Wanted::Call(call));
    }

    pub(crate) fn cancel(&self, call_id: u64, reason: &str) {
        self.send(Wanted::Cancel(Cancel { call_id, reason: reason.into() }));
    }

    pub(crate) async fn next(&mut self) -> CallOutcome {
        within("an outcome", self.outcomes.message()).await.unwrap().expect("an outcome")
    }
}

pub(crate) fn to(call_id: u64, agent: &str) -> Call {
    Call {
        call_id,
        tenant: "default".into(),
        target: Some(Target::AgentId(agent.into())),
        ..Default::default()
    }
}

pub(crate) fn failure(outcome: &CallOutcome) -> (Cause, &str) {
    match outcome.outcome.as_ref().unwrap() {
        Outcome::Failure(failure @ Failure { message, .. }) => (failure.cause(), message),
        Outcome::Answer(answer) => panic!("an answer: {answer:?}"),
    }
}

pub(crate) fn answer(outcome: &CallOutcome) -> &Answer {
    match outcome.outcome.as_ref().unwrap() {
        Outcome::Answer(answer) => answer,
        Outcome::Failure(failure) => panic!("a failure: {failure:?}"),
    }
}

#[tokio::test]
async fn a_driver_says_what_may_be_done_with_its_call() {
    let world = World::new().await;
    let _sick = agent(&world, "sick", |_| async { error(13, "out of order") }).await;
    let _well = agent(&world, "well", |_| async { sure(0.9) }).await;
    let node = world.ready_node().await;
    let mut driver = Driver::open(&world, &node).await;
    let any = |call_id, strategy: &str, idempotent| Call {
        call_id,
        target: Some(Target::Capability("test".into())),
        strategy: strategy.into(),
        idempotent,
        ..to(call_id, "")
    };
    for call_id in 0..4 {
        driver.call(any(call_id, "round_robin", true));
        let outcome = driver.next().await;
        assert_eq!((answer(&outcome).confidence, outcome.agent_id.as_str()), (Some(0.9), "well"));
    }
    driver.call(any(9, "best", false));
    let outcome = driver.next().await;
    assert!(failure(&outcome).1.starts_with("x-parallax-strategy: \"best\" is no strategy"), "{outcome:?}");
}

#[tokio::test]
async fn a_call_carries_everything_there_and_back() {
    let world = World::new().await;
    let seen: Arc<Mutex<Option<(HeaderMap, Bytes)>>> = Arc::default();
    let heard = seen.clone();
    let _agent = agent(&world, "a", move |request: Request<Incoming>| {
        let heard = heard.clone();
        async move {
            let (head, body) = request.into_parts();
            *heard.lock().await = Some((head.headers, body.collect().await.unwrap().to_bytes()));
            let result = ConfidenceResult {
                value_json: "{\"language\":\"de\"}".into(),
                confidence: 0.75,
                uncertainties: vec!["short".into()],
                reasoning: "umlauts".into(),
                metadata: HashMap::from([("k".into(), "v".into())]),
                ..Default::default()
            };
            raw(&result.encode_to_vec())
        }
    })
    .await;
    let node = world.ready_node().await;
    let mut driver = Driver::open(&world, &node).await;
    let request = AgentRequest {
        task_id: "t1".into(),
        task_description: "which language?".into(),
        timeout_ms: 5_000,
        pattern_name: "voting".into(),
        ..Default::default()
    };
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    driver.call(Call {
        target: Some(Target::Capability("only-a".into())),
        request: Some(request.clone()),
        effect: "run-1/7".into(),
        attempt: 2,
        traceparent: trace.into(),
        ..to(41, "")
    });
    let outcome = driver.next().await;
    assert_eq!((outcome.call_id, outcome.agent_id.as_str()), (41, "a"));
    assert!(outcome.started_at.is_some() && outcome.duration_us > 0);
    let answer = answer(&outcome);
    assert_eq!(answer.value_json, r#"{"language":"de"}"#);
    assert_eq!((answer.confidence, answer.reasoning.as_str()), (Some(0.75), "umlauts"));
    assert_eq!(
        (answer.uncertainties.as_slice(), answer.metadata["k"].as_str()),
        (&["short".to_owned()][..], "v")
    );

    let (headers, body) = seen.lock().await.take().unwrap();
    assert_eq!(AgentRequest::decode(&body[5..]).unwrap(), request);
    assert_eq!(headers[wire::EFFECT], "run-1/7");
    assert_eq!(headers[wire::ATTEMPT], "2");
    assert_eq!(headers["traceparent"], trace);
    assert_eq!(headers[wire::CLIENT_ID], "spiffe://parallax/default/control-plane/caller");
    assert!(headers["grpc-timeout"].to_str().unwrap().ends_with('u'));

    let sample = world.samples("a", 1).await.remove(0);
    assert_eq!((sample.pattern.as_str(), sample.task.as_str()), ("voting", "t1"));
    assert_eq!(sample.confidence.map(|c| c.get()), Some(0.75));
}

#[tokio::test]
async fn calls_of_a_stream_run_side_by_side() {
    let world = World::new().await;
    let all = Arc::new(Barrier::new(3));
    let mut agents = Vec::new();
    for id in ["a", "b", "c"] {
        let all = all.clone();
        agents.push(
            agent(&world, id, move |_| {
                let all = all.clone();
                async move {
                    // Nobody answers before everybody was asked.
                    all.wait().await;
                    sure(0.5)
                }
            })
            .await,
        );
    }
    let node = world.ready_node().await;
    let mut driver = Driver::open(&world, &node).await;
    for (n, id) in (0..).zip(["a", "b", "c"]) {
        driver.call(to(n, id));
    }
    let mut served = Vec::new();
    for _ in 0..3 {
        let outcome = driver.next().await;
        answer(&outcome);
        served.push((outcome.call_id, outcome.agent_id));
    }
    served.sort();
    assert_eq!(served, [(0, "a".to_owned()), (1, "b".to_owned()), (2, "c".to_owned())]);
}

#[tokio::test]
async fn each_failure_names_agent_and_cause_and_disturbs_no_other() {
    let world = World::new().await;
    let (dying, mut told) = hanging(&world, "dies").await;
    let (_slow, _told) = hanging(&world, "slow").await;
    let _raises = agent(&world, "raises", |_| async { error(13, "no idea") }).await;
    let _garbage = agent(&world, "garbage", |_| async { raw(&[0xff; 40]) }).await;
    let _short = agent(&world, "short", |_| async {
        respond([Frame::data(Bytes::from_static(&[0, 0, 0, 0, 9, 1])), trailers(0, "")])
    })
    .await;
    let _none = agent(&world, "none", |_| async { respond([trailers(0, "")]) }).await;
    let _huge = agent(&world, "huge", |_| async { raw(&vec![0; 70_000]) }).await;
    let _nan = agent(&world, "nan", |_| async { sure(f64::NAN) }).await;
    let _boast = agent(&world, "boast", |_| async { sure(7.3) }).await;
    let _text = agent(&world, "text", |_| async {
        raw(&ConfidenceResult { value_json: "{oops".into(), ..Default::default() }.encode_to_vec())
    })
    .await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    world.control_plane.put(crate::world::record(
        "away",
        nobody,
        parallax_proto::controlplane::v1::Transport::Mtls,
    ));
    let node = world.node_with(|config| config.max_message = 64 * 1024).await;
    node.plane.readiness().ready().await;
    let mut driver = Driver::open(&world, &node).await;

    let ids = [
        "dies", "slow", "raises", "garbage", "short", "none", "huge", "nan", "boast", "text", "away",
        "unknown",
    ];
    for (n, id) in (0..).zip(ids) {
        let mut call = to(n, id);
        if id == "slow" {
            call.request = Some(AgentRequest { timeout_ms: 150, ..Default::default() });
        }
        driver.call(call);
    }
    driver.call(Call { target: Some(Target::Capability("nothing".into())), ..to(12, "") });
    driver.call(Call { target: None, ..to(13, "") });
    hears(&mut told, "began").await;
    dying.die().await;
    let mut outcomes = HashMap::new();
    for _ in 0..14 {
        let outcome = driver.next().await;
        outcomes.insert(outcome.call_id, outcome);
    }
    for (id, cause, words) in [
        (0, Cause::Unreachable, "broke off"),
        (1, Cause::Deadline, "did not answer within 150 ms"),
        (2, Cause::AgentError, "answered with Internal: no idea"),
        (3, Cause::BadAnswer, "not a ConfidenceResult"),
        (4, Cause::BadAnswer, "one message of 9 bytes is due, 1 came"),
        (5, Cause::BadAnswer, "no message"),
        (6, Cause::BadAnswer, "more than 65536 bytes"),
        (10, Cause::Unreachable, "cannot be reached"),
        (11, Cause::NoAgent, "no agent \"unknown\""),
        (12, Cause::NoAgent, "no agent with the capability \"nothing\""),
        (13, Cause::Unspecified, "neither agent_id nor capability"),
    ] {
        let (found, message) = failure(&outcomes[&id]);
        assert_eq!(found, cause, "{message}");
        assert!(message.contains(words), "{message}");
        let agent = ids.get(id as usize).copied().filter(|_| id < 11).unwrap_or_default();
        assert_eq!(outcomes[&id].agent_id, agent);
        assert!(agent.is_empty() || message.contains(&format!("agent {agent} at 127.0.0.1:")), "{message}");
    }
    assert_eq!(answer(&outcomes[&7]).confidence, None);
    assert_eq!(answer(&outcomes[&8]).confidence, Some(1.0));
    assert_eq!(answer(&outcomes[&9]).value_json, "\"{oops\"");
    assert_eq!(world.samples("garbage", 1).await[0].outcome, Recorded::Failed);
    assert_eq!(world.samples("slow", 1).await[0].outcome, Recorded::DeadlineExceeded);
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_its_agent() {
    let world = World::new().await;
    let (_slow, mut told) = hanging(&world, "slow").await;
    let node = world.ready_node().await;
    let mut driver = Driver::open(&world, &node).await;
    driver.call(to(1, "slow"));
    hears(&mut told, "began").await;
    driver.send(Wanted::Cancel(Cancel { call_id: 77, reason: "nobody".into() }));
    driver.send(Wanted::Cancel(Cancel { call_id: 1, reason: "the vote is decided".into() }));
    let outcome = driver.next().await;
    assert_eq!(failure(&outcome), (Cause::Cancelled, "cancelled: the vote is decided"));
    assert_eq!((outcome.call_id, outcome.agent_id.as_str()), (1, "slow"));
    hears(&mut told, "gone").await;
    assert_eq!(world.samples("slow", 1).await[0].outcome, Recorded::Cancelled);
}

#[tokio::test]
async fn a_stream_that_breaks_cancels_its_calls_and_one_that_is_closed_awaits_them() {
    let world = World::new().await;
    let (_slow, mut told) = hanging(&world, "slow").await;
    let _agent = agent(&world, "a", |_| async { sure(0.5) }).await;
    let node = world.ready_node().await;
    let driver = Driver::open(&world, &node).await;
    driver.call(to(1, "slow"));
    hears(&mut told, "began").await;
    drop(driver);
    hears(&mut told, "gone").await;

    let mut driver = Driver::open(&world, &node).await;
    driver.call(to(2, "a"));
    drop(std::mem::replace(&mut driver.calls, mpsc::unbounded_channel().0));
    answer(&driver.next().await);
    assert_eq!(driver.outcomes.message().await.unwrap(), None);
}

#[tokio::test]
async fn the_breaker_is_open_for_drivers_too() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { error(14, "overloaded") }).await;
    let node = world.node_with(|config| config.breaker.first = std::time::Duration::from_secs(30)).await;
    node.plane.readiness().ready().await;
    let mut driver = Driver::open(&world, &node).await;
    for n in 0..5 {
        driver.call(to(n, "a"));
        assert_eq!(failure(&driver.next().await).0, Cause::AgentError);
    }
    driver.call(to(5, "a"));
    let outcome = driver.next().await;
    assert_eq!(failure(&outcome).0, Cause::BreakerOpen);
    assert_eq!(node.agent("a").await.unwrap()["breaker"], "open");
    let (_, metrics) = node.admin("/metrics").await;
    assert!(metrics.contains(r#"parallax_agent_breaker_state{tenant="default",agent="a"} 2"#), "{metrics}");
    assert!(metrics.contains(r#"agent="a",outcome="rejected"} 1"#), "{metrics}");
}

#[tokio::test]
async fn a_driver_that_asks_for_more_than_may_run_is_slowed_and_not_refused() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async {
        tokio::task::yield_now().await;
        sure(0.5)
    })
    .await;
    let node = world.node_with(|config| config.max_calls_per_stream = 2).await;
    node.plane.readiness().ready().await;
    let mut driver = Driver::open(&world, &node).await;
    for n in 0..300 {
        driver.call(to(n, "a"));
    }
    let mut ids = Vec::new();
    for _ in 0..300 {
        let outcome = driver.next().await;
        answer(&outcome);
        ids.push(outcome.call_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..300).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_node_that_stops_ends_streams_once_their_calls_have() {
    let world = World::new().await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let barrier = gate.clone();
    let _agent = agent(&world, "a", move |_| {
        let barrier = barrier.clone();
        async move {
            barrier.acquire().await.unwrap().forget();
            sure(0.5)
        }
    })
    .await;
    let node = world.ready_node().await;
    let mut driver = Driver::open(&world, &node).await;
    driver.call(to(1, "a"));
    node.shows("a", "in_flight", 1).await;
    node.life.stop();
    gate.add_permits(1);
    answer(&driver.next().await);
    let end = driver.outcomes.message().await.unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable);
    assert!(end.message().contains("this node is stopping"), "{}", end.message());
    assert!(node.life.drain(std::time::Duration::from_secs(20)).await);
}

#[tokio::test]
async fn a_full_stream_hears_of_cancellations() {
    let world = World::new().await;
    let (_slow, mut told) = hanging(&world, "slow").await;
    let node = world.node_with(|config| config.max_calls_per_stream = 2).await;
    node.plane.readiness().ready().await;
    let mut driver = Driver::open(&world, &node).await;
    (1..=3).for_each(|id| driver.call(to(id, "slow")));
    hears(&mut told, "began").await;
    hears(&mut told, "began").await;
    // The third waits for its turn.
    driver.cancel(3, "enough");
    let outcome = driver.next().await;
    assert_eq!((outcome.call_id, failure(&outcome)), (3, (Cause::Cancelled, "cancelled: enough")));
    driver.cancel(1, "enough");
    assert_eq!(driver.next().await.call_id, 1);
    hears(&mut told, "gone").await;
}
