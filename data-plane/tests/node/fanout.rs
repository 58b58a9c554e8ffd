//! One question to many agents.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use http::Request;
use hyper::body::Incoming;
use parallax_proto::{
    confidence::AgentRequest,
    controlplane::v1::{AgentRecord, Transport},
    dataplane::v1::{
        CallOutcome, FanOutEvent, FanOutRequest, FanOutSummary,
        call_outcome::Outcome,
        data_plane_client::DataPlaneClient,
        failure::Cause,
        fan_out_event::Event,
        fan_out_request::{All, BestEffort, First, Mode, Ordered, Quorum},
        fan_out_summary::Ended,
    },
};
use parallax_runtime::{store::CallOutcome as Recorded, wire};
use parallax_security::Kind;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    agent::{self, agent, error, sure},
    trouble::{hanging, hears},
    world::{World, record, within},
};

fn to(agents: &[&str], mode: Mode) -> FanOutRequest {
    FanOutRequest {
        request: Some(AgentRequest { task_description: "tell".into(), ..Default::default() }),
        agent_ids: agents.iter().map(|id| (*id).to_owned()).collect(),
        mode: Some(mode),
        ..Default::default()
    }
}

fn bounded(request: FanOutRequest, timeout_ms: i32) -> FanOutRequest {
    let asked = AgentRequest { timeout_ms, ..request.request.unwrap() };
    FanOutRequest { request: Some(asked), ..request }
}

async fn open(channel: &Channel, request: FanOutRequest) -> Streaming<FanOutEvent> {
    DataPlaneClient::new(channel.clone()).fan_out(request).await.unwrap().into_inner()
}

/// All outcomes in the order in which they came, and the summary.
async fn all(channel: &Channel, request: FanOutRequest) -> (Vec<CallOutcome>, FanOutSummary) {
    let mut events = open(channel, request).await;
    rest(&mut events).await.unwrap()
}

async fn rest(events: &mut Streaming<FanOutEvent>) -> Result<(Vec<CallOutcome>, FanOutSummary), Status> {
    let mut outcomes = Vec::new();
    loop {
        match within("an event", events.message()).await?.unwrap().event.unwrap() {
            Event::Outcome(outcome) => outcomes.push(outcome),
            Event::Summary(summary) => {
                assert_eq!(events.message().await?, None, "the summary is the last");
                return Ok((outcomes, summary));
            }
        }
    }
}

/// `answered`, or why it failed, by agent.
fn by_agent(outcomes: &[CallOutcome]) -> BTreeMap<&str, Option<Cause>> {
    let outcome = |outcome: &CallOutcome| match outcome.outcome.as_ref().unwrap() {
        Outcome::Answer(_) => None,
        Outcome::Failure(failure) => Some(failure.cause()),
    };
    outcomes.iter().map(|one| (one.agent_id.as_str(), outcome(one))).collect()
}

/// asked, answered, failed, cancelled
fn counts(summary: &FanOutSummary) -> [u32; 4] {
    [summary.asked, summary.answered, summary.failed, summary.cancelled]
}

/// One that is as sure, and counts its calls.
async fn counted(world: &World, id: &str, confidence: f64) -> (agent::Agent, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let agent = agent(world, id, move |_: Request<Incoming>| {
        counter.fetch_add(1, SeqCst);
        async move { sure(confidence) }
    })
    .await;
    (agent, calls)
}

#[tokio::test]
async fn all_are_asked_once_and_each_outcome_is_told() {
    let world = World::new().await;
    let (_a, calls) = counted(&world, "a", 0.5).await;
    let _b = agent(&world, "b", |_| async { error(13, "no idea") }).await;
    let (_c, _) = counted(&world, "c", 0.7).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    // Named twice, and it has the capability too.
    let mut request = to(&["a", "unknown", "a"], Mode::All(All {}));
    request.capability = "test".into();
    let (outcomes, summary) = all(&operator, request).await;
    let expected =
        [("a", None), ("b", Some(Cause::AgentError)), ("c", None), ("unknown", Some(Cause::NoAgent))];
    assert_eq!(by_agent(&outcomes), BTreeMap::from(expected));
    assert_eq!((outcomes.len(), calls.load(SeqCst)), (4, 1));
    assert_eq!((summary.ended(), counts(&summary)), (Ended::All, [4, 2, 2, 0]));
    assert!(summary.not_asked.is_empty());
    let unknown = outcomes.iter().find(|one| one.agent_id == "unknown").unwrap();
    assert_eq!(unknown.call_id, 1, "its place in the order");

    // The plaintext of local mode, and the agents of one's own tenant only.
    let plain = world.plain_caller(&node).await;
    assert_eq!(all(&plain, to(&["a"], Mode::All(All {}))).await.1.answered, 1);
    let stranger = world.caller(&node, "others", Kind::Operator).await;
    let request = FanOutRequest { tenant: "default".into(), ..to(&["a"], Mode::All(All {})) };
    assert_eq!(by_agent(&all(&stranger, request.clone()).await.0)["a"], Some(Cause::NoAgent));
    let driver = world.caller(&node, "others", Kind::ControlPlane).await;
    assert_eq!(all(&driver, request).await.1.answered, 1);
}

#[tokio::test]
async fn the_first_answer_cancels_the_others_at_their_agents() {
    let world = World::new().await;
    let (_slow, mut told) = hanging(&world, "slow").await;
    let _bad = agent(&world, "bad", |_| async { error(13, "no idea") }).await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let gated = gate.clone();
    let _quick = agent(&world, "quick", move |_| {
        let gated = gated.clone();
        async move {
            gated.acquire().await.unwrap().forget();
            sure(0.5)
        }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let mut events = open(&operator, to(&["slow", "bad", "quick"], Mode::First(First {}))).await;
    hears(&mut told, "began").await;
    let first = within("an event", events.message()).await.unwrap().unwrap().event.unwrap();
    assert!(matches!(&first, Event::Outcome(outcome) if outcome.agent_id == "bad"), "as it comes: {first:?}");
    gate.add_permits(1);
    let (outcomes, summary) = rest(&mut events).await.unwrap();
    hears(&mut told, "gone").await;
    assert_eq!(by_agent(&outcomes), BTreeMap::from([("quick", None), ("slow", Some(Cause::Cancelled))]));
    assert_eq!((summary.ended(), counts(&summary)), (Ended::First, [3, 1, 1, 1]));
    assert_eq!(world.samples("slow", 1).await[0].outcome, Recorded::Cancelled);
    assert_eq!(node.agent("slow").await.unwrap()["failures"], 0, "that was not the agent's fault");
}

#[tokio::test]
async fn a_quorum_ends_when_it_is_there_or_cannot_come() {
    let world = World::new().await;
    let (_slow, mut told) = hanging(&world, "slow").await;
    let (_a, calls) = counted(&world, "a", 0.5).await;
    let (_b, _) = counted(&world, "b", 0.5).await;
    let _bad = agent(&world, "bad", |_| async { error(13, "no idea") }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let quorum = |answers| Mode::Quorum(Quorum { answers });
    let (outcomes, summary) = all(&operator, to(&["slow", "a", "b"], quorum(2))).await;
    assert_eq!((summary.ended(), counts(&summary)), (Ended::Quorum, [3, 2, 0, 1]));
    assert_eq!(by_agent(&outcomes)["slow"], Some(Cause::Cancelled));
    hears(&mut told, "began").await;
    hears(&mut told, "gone").await;

    // With the two failures it cannot come: `slow` is not waited for.
    let (_, summary) = all(&operator, to(&["slow", "bad", "nobody"], quorum(2))).await;
    assert_eq!((summary.ended(), counts(&summary)), (Ended::Impossible, [3, 0, 2, 1]));
    hears(&mut told, "began").await;
    hears(&mut told, "gone").await;

    let before = calls.load(SeqCst);
    let (outcomes, summary) = all(&operator, to(&["a", "b"], quorum(3))).await;
    assert_eq!((summary.ended(), counts(&summary)), (Ended::Impossible, [0; 4]));
    assert_eq!(summary.not_asked, ["a", "b"]);
    assert!(outcomes.is_empty() && calls.load(SeqCst) == before, "nobody is asked in vain");
}

#[tokio::test]
async fn the_best_that_comes_in_time_and_the_end_of_all_time() {
    let world = World::new().await;
    let (_slow, mut told) = hanging(&world, "slow").await;
    let (_a, _) = counted(&world, "a", 0.5).await;
    let (_b, calls) = counted(&world, "b", 0.5).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let by = |by_ms| Mode::BestEffort(BestEffort { by_ms });
    let (outcomes, summary) = all(&operator, to(&["slow", "a"], by(100))).await;
    assert_eq!(by_agent(&outcomes), BTreeMap::from([("a", None), ("slow", Some(Cause::Cancelled))]));
    assert_eq!((summary.ended(), counts(&summary)), (Ended::Deadline, [2, 1, 0, 1]));
    hears(&mut told, "began").await;
    hears(&mut told, "gone").await;
    assert_eq!(all(&operator, to(&["a"], by(60_000))).await.1.ended(), Ended::All);

    // The deadline of the call is a failure of whoever met it, and who waits for a turn is not asked.
    let mut request = bounded(to(&["slow", "b"], Mode::All(All {})), 100);
    request.max_concurrency = 1;
    let (outcomes, summary) = all(&operator, request).await;
    assert_eq!(by_agent(&outcomes), BTreeMap::from([("slow", Some(Cause::Deadline))]));
    assert_eq!((summary.ended(), counts(&summary)), (Ended::Deadline, [1, 0, 1, 0]));
    assert_eq!((summary.not_asked, calls.load(SeqCst)), (vec!["b".to_owned()], 0));
    let mut request = tonic::Request::new(to(&["slow"], Mode::All(All {})));
    request.metadata_mut().insert("grpc-timeout", "100m".parse().unwrap());
    let mut events = DataPlaneClient::new(operator).fan_out(request).await.unwrap().into_inner();
    let (_, summary) = rest(&mut events).await.unwrap();
    assert_eq!((summary.ended(), counts(&summary)), (Ended::Deadline, [1, 0, 1, 0]));
}

/// A registration that expects so much of itself, at such a cost.
fn expecting(record: AgentRecord, confidence: f64, cost: Option<&str>) -> AgentRecord {
    let mut record = record;
    let metadata = record.registration.as_mut().unwrap().metadata.get_or_insert_default();
    metadata.default_confidence = confidence;
    metadata.labels.extend(cost.map(|cost| ("cost".to_owned(), cost.to_owned())));
    record
}

#[tokio::test]
async fn an_order_goes_from_the_best_and_stops_when_one_is_sure() {
    let world = World::new().await;
    let mut agents = Vec::new();
    for (id, says, expects, cost) in
        [("dear", 0.6, 0.9, Some("7")), ("cheap", 0.85, 0.9, Some("0.5")), ("worse", 0.95, 0.4, None)]
    {
        let (agent, calls) = counted(&world, id, says).await;
        world.control_plane.put(expecting(record(id, agent.addr, Transport::Mtls), expects, cost));
        agents.push((agent, calls));
    }
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let ordered = |confidence| FanOutRequest {
        capability: "test".into(),
        ..to(&[], Mode::Ordered(Ordered { confidence }))
    };
    let calls = || agents.iter().map(|(_, calls)| calls.load(SeqCst)).collect::<Vec<_>>();
    let (outcomes, summary) = all(&operator, ordered(0.8)).await;
    assert_eq!(by_agent(&outcomes), BTreeMap::from([("cheap", None)]));
    assert_eq!((summary.ended(), counts(&summary)), (Ended::Confidence, [1, 1, 0, 0]));
    assert_eq!((summary.not_asked, calls()), (vec!["dear".to_owned(), "worse".to_owned()], vec![0, 1, 0]));

    // `cheap` said less than what is expected of `dear` now, which has said nothing yet.
    let (outcomes, summary) = all(&operator, ordered(0.9)).await;
    let order: Vec<&str> = outcomes.iter().map(|one| one.agent_id.as_str()).collect();
    assert_eq!((order, summary.ended()), (vec!["dear", "cheap", "worse"], Ended::Confidence));
    let (_, summary) = all(&operator, ordered(1.0)).await;
    assert_eq!((summary.ended(), summary.answered), (Ended::All, 3), "nobody was as sure as that");

    let mut request = ordered(0.0);
    request.max_agents = 1;
    let (outcomes, summary) = all(&operator, request).await;
    assert_eq!((outcomes.len(), summary.not_asked.len()), (1, 0), "no more than one was wanted");
}

#[tokio::test]
async fn what_cannot_be_asked_is_told_with_its_cure() {
    let world = World::new().await;
    let (_a, _) = counted(&world, "a", 0.5).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let refused = async |request: FanOutRequest| {
        let mut events = open(&operator, request).await;
        rest(&mut events).await.unwrap_err()
    };
    let unset = FanOutRequest { mode: None, ..to(&["a"], Mode::All(All {})) };
    let nothing = FanOutRequest { capability: "nothing".into(), ..to(&["a"], Mode::All(All {})) };
    let many: Vec<String> = (0..257).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let too_many = FanOutRequest { max_agents: 257, ..to(&["a"], Mode::All(All {})) };
    for (request, code, words) in [
        (unset, Code::InvalidArgument, "no mode"),
        (to(&[], Mode::All(All {})), Code::InvalidArgument, "names nobody to ask"),
        (to(&["a"], Mode::Quorum(Quorum { answers: 0 })), Code::InvalidArgument, "quorum.answers"),
        (to(&["a"], Mode::BestEffort(BestEffort { by_ms: 0 })), Code::InvalidArgument, "best_effort.by_ms"),
        (to(&["a"], Mode::Ordered(Ordered { confidence: 1.5 })), Code::InvalidArgument, "from 0 to 1"),
        (to(&many, Mode::All(All {})), Code::InvalidArgument, "agent_ids: 257 given, at most 256"),
        (too_many, Code::InvalidArgument, "max_agents: 257 given, at most 256"),
        (nothing, Code::Unavailable, "no agent with the capability \"nothing\""),
    ] {
        let status = refused(request).await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
    let node_itself = world.caller(&node, "default", Kind::DataPlane).await;
    let denied = DataPlaneClient::new(node_itself).fan_out(to(&["a"], Mode::All(All {}))).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_everybody() {
    let world = World::new().await;
    let (_a, mut first) = hanging(&world, "a").await;
    let (_b, mut second) = hanging(&world, "b").await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let events = open(&operator, to(&["a", "b"], Mode::All(All {}))).await;
    hears(&mut first, "began").await;
    hears(&mut second, "began").await;
    drop(events);
    hears(&mut first, "gone").await;
    hears(&mut second, "gone").await;
    node.shows("a", "in_flight", 0).await;
}

#[tokio::test]
async fn what_matters_least_is_refused_first_here_too() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { sure(0.5) }).await;
    let (_slow, mut told) = hanging(&world, "slow").await;
    let node = world.node_with(|config| config.max_in_flight = 2).await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    let _one_of_two = open(&operator, to(&["slow"], Mode::All(All {}))).await;
    hears(&mut told, "began").await;
    let fan_out = async |priority: &'static str| {
        let mut request = tonic::Request::new(to(&["a"], Mode::All(All {})));
        request.metadata_mut().insert(wire::PRIORITY, priority.parse().unwrap());
        let mut events = DataPlaneClient::new(operator.clone()).fan_out(request).await?.into_inner();
        Ok::<_, Status>(by_agent(&rest(&mut events).await?.0)["a"])
    };
    assert_eq!(fan_out("default").await.unwrap(), Some(Cause::Busy));
    assert_eq!(fan_out("critical").await.unwrap(), None);
    let refused = fan_out("urgent").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("give critical, default or sheddable"), "{refused}");
}

#[tokio::test]
async fn what_is_asked_finds_room_or_is_refused() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { sure(0.5) }).await;
    let node = world.node_with(|config| config.max_held_bytes = 1 << 20).await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    let sized = |bytes: usize| {
        let task_description = "x".repeat(bytes);
        let request = Some(AgentRequest { task_description, ..AgentRequest::default() });
        FanOutRequest { request, ..to(&["a"], Mode::All(All {})) }
    };
    for _ in 0..3 {
        // What was held is let go of.
        assert_eq!(all(&operator, sized(900 << 10)).await.1.answered, 1);
        let refused = DataPlaneClient::new(operator.clone()).fan_out(sized(2 << 20)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("max_held_bytes"), "{refused}");
    }
}
