//! Answers that are given again, and calls that are shared.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parallax_proto::{
    confidence::{AgentRequest, ConfidenceResult},
    controlplane::v1::{AgentRecord, Transport},
    dataplane::v1::call::Cache,
    registry::agent_registration::Metadata,
};
use parallax_runtime::wire;
use parallax_security::{Kind, Plaintext};
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use tonic::{Code, transport::Channel};

use crate::{
    agent::{self, Agent, Body, agent, error, framed, raw, sure},
    dispatch::{Driver, answer, to},
    proxy::{ANALYZE, Raw, bare, call, request},
    trouble::{Gone, hears},
    world::{Node, World, record, until, within},
};

const STREAM: &str = "/parallax.confidence.ConfidenceAgent/StreamAnalyze";
const USE: (&str, &str) = (wire::CACHE, "use");
const A: (&str, &str) = (wire::AGENT, "a");

/// An agent that counts its calls, and says how many there were; as sure as it is told.
pub(crate) async fn counting(world: &World, id: &str, confidence: f64) -> (Agent, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let agent = agent(world, id, move |_| {
        let n = counter.fetch_add(1, SeqCst) + 1;
        async move { says(n, confidence) }
    })
    .await;
    (agent, calls)
}

pub(crate) fn says(value: impl ToString, confidence: f64) -> Response<Body> {
    let value_json = value.to_string();
    raw(&ConfidenceResult { value_json, confidence, ..Default::default() }.encode_to_vec())
}

/// A question, always the same.
pub(crate) fn question() -> Bytes {
    framed(&AgentRequest { task_description: "which?".into(), ..Default::default() }.encode_to_vec())
}

/// Asks it, and takes the answer apart: what the cache was to it, and the value.
async fn told(channel: &Channel, metadata: &[(&'static str, &str)]) -> (String, String) {
    let raw = call(channel, ANALYZE, question(), metadata).await;
    assert_eq!(raw.status().code(), Code::Ok, "{:?}", raw.status());
    (cache(&raw), result(&raw).value_json)
}

pub(crate) fn cache(raw: &Raw) -> String {
    text(&raw.headers, wire::CACHE).to_owned()
}

/// Empty when it is not there.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

pub(crate) fn result(raw: &Raw) -> ConfidenceResult {
    ConfidenceResult::decode(&raw.bytes[5..]).unwrap()
}

fn pair(cache: &str, value: usize) -> (String, String) {
    (cache.to_owned(), value.to_string())
}

/// The value of one of the node's metrics.
pub(crate) async fn metric(node: &Node, name: &str) -> u64 {
    let (_, text) = node.admin("/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

#[tokio::test]
async fn a_hit_needs_no_agent_and_says_so() {
    let world = World::new().await;
    let seen: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
    let heard = seen.clone();
    let _agent = agent(&world, "a", move |request: Request<Incoming>| {
        let heard = heard.clone();
        async move {
            let (head, body) = request.into_parts();
            assert_eq!(body.collect().await.unwrap().to_bytes(), question(), "as it came");
            let mut seen = heard.lock().unwrap();
            seen.push(head.headers);
            let mut answer = says(seen.len(), 0.9);
            answer.headers_mut().insert("x-agents-own", "kept".parse().unwrap());
            answer
        }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let miss = call(&operator, ANALYZE, question(), &[A, USE, ("grpc-accept-encoding", "gzip")]).await;
    assert_eq!((cache(&miss).as_str(), result(&miss).value_json.as_str()), ("miss", "1"));
    assert_eq!((text(&miss.headers, "x-agents-own"), text(&miss.trailers, wire::SERVED_BY)), ("kept", "a"));
    assert!(!miss.headers.contains_key("age"));
    let hit = call(&operator, ANALYZE, question(), &[A, USE]).await;
    assert_eq!((cache(&hit).as_str(), &hit.bytes), ("hit", &miss.bytes));
    assert_eq!((text(&hit.headers, "age"), text(&hit.trailers, wire::SERVED_BY)), ("0", "a"));
    assert_eq!((hit.status().code(), text(&hit.headers, "content-type")), (Code::Ok, "application/grpc"));

    assert_eq!(told(&operator, &[A, (wire::CACHE, "bypass")]).await, pair("bypass", 2));
    assert_eq!(told(&operator, &[A, USE]).await, pair("hit", 1));
    assert_eq!(told(&operator, &[A, (wire::CACHE, "refresh")]).await, pair("refresh", 3));
    assert_eq!(told(&operator, &[A, USE]).await, pair("hit", 3));
    assert_eq!(told(&operator, &[A]).await, pair("", 4), "who does not opt is not cached");
    for headers in &*seen.lock().unwrap() {
        assert!(!headers.contains_key(wire::CACHE) && !headers.contains_key("grpc-accept-encoding"));
    }
    for (outcome, count) in [("hit", 3), ("miss", 1), ("bypass", 1), ("refresh", 1)] {
        let name = format!("parallax_cache_calls_total{{outcome=\"{outcome}\"}}");
        assert_eq!(metric(&node, &name).await, count, "{outcome}");
    }
    assert_eq!(metric(&node, "parallax_cache_stored_total").await, 2);
    assert!(metric(&node, "parallax_cache_bytes").await > 256);
    assert!(node.life.drain(std::time::Duration::from_secs(20)).await);
    assert_eq!(world.samples("a", 4).await.len(), 4, "of calls to the agent alone");
}

#[tokio::test]
async fn unsure_and_failed_answers_are_not_held() {
    let world = World::new().await;
    let (_unsure, unsure) = counting(&world, "unsure", 0.4).await;
    let _fails = agent(&world, "fails", |_| async { error(13, "no idea") }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    for n in 1..=2 {
        assert_eq!(told(&operator, &[(wire::AGENT, "unsure"), USE]).await, pair("miss", n));
        let raw = call(&operator, ANALYZE, question(), &[(wire::AGENT, "fails"), USE]).await;
        assert_eq!((raw.status().code(), raw.status().message()), (Code::Internal, "no idea"));
        // With the status, wherever that stands.
        let ends = if raw.trailers.is_empty() { &raw.headers } else { &raw.trailers };
        assert_eq!((cache(&raw).as_str(), text(ends, wire::SERVED_BY)), ("miss", "fails"));
    }
    assert_eq!(unsure.load(SeqCst), 2);
    assert_eq!(metric(&node, "parallax_cache_stored_total").await, 0);
}

/// An agent that tells when it begins and when it is cancelled, and answers when it may.
async fn gated(world: &World, id: &str) -> (Agent, mpsc::UnboundedReceiver<&'static str>, Arc<Semaphore>) {
    let ((tell, told), gate) = (mpsc::unbounded_channel(), Arc::new(Semaphore::new(0)));
    let barrier = gate.clone();
    let agent = agent(world, id, move |_| {
        let (gone, barrier) = (Gone(tell.clone()), barrier.clone());
        async move {
            gone.0.send("began").unwrap();
            barrier.acquire().await.unwrap().forget();
            // Not cancelled any more.
            std::mem::forget(gone);
            sure(0.9)
        }
    })
    .await;
    (agent, told, gate)
}

fn asks(channel: &Channel, metadata: &[(&'static str, &'static str)]) -> tokio::task::JoinHandle<Raw> {
    let (channel, metadata) = (channel.clone(), metadata.to_vec());
    tokio::spawn(async move { call(&channel, ANALYZE, question(), &metadata).await })
}

#[tokio::test]
async fn a_hundred_who_ask_the_same_at_once_make_one_call() {
    let world = World::new().await;
    let (_agent, mut told, gate) = gated(&world, "a").await;
    let node = world.node_with(|config| config.workers = 2).await;
    within("the node is ready", node.plane.readiness().ready()).await;
    let mut callers = Vec::new();
    for _ in 0..20 {
        let channel = world.operator(&node).await;
        callers.extend((0..5).map(|_| asks(&channel, &[A, USE])));
    }
    hears(&mut told, "began").await;
    gate.add_permits(100);
    let mut misses = 0;
    for caller in callers {
        let raw = within("an answer", caller).await.unwrap();
        assert_eq!((raw.status().code(), result(&raw).confidence), (Code::Ok, 0.9));
        assert_eq!(raw.trailers[wire::SERVED_BY], "a");
        assert!(["miss", "shared", "hit"].contains(&cache(&raw).as_str()));
        misses += usize::from(cache(&raw) == "miss");
    }
    assert_eq!(misses, 1);
    assert!(told.try_recv().is_err(), "it was asked once");
    assert_eq!(world.samples("a", 1).await.len(), 1);
}

#[tokio::test]
async fn one_who_asks_for_all_and_leaves_is_followed_by_another() {
    let world = World::new().await;
    let (_agent, mut told, gate) = gated(&world, "a").await;
    let node = world.ready_node().await;
    let (first, others) = (world.operator(&node).await, world.operator(&node).await);
    let leader = asks(&first, &[A, USE]);
    hears(&mut told, "began").await;
    let followers: Vec<_> = (0..5).map(|_| asks(&others, &[A, USE])).collect();
    // One who does not wait as long is not kept.
    let hasty = request(ANALYZE, question(), &[A, USE, ("grpc-timeout", "50m")]);
    let hasty = within("its deadline", bare(&node, hasty)).await;
    assert_eq!((hasty.status().code(), cache(&hasty).as_str()), (Code::DeadlineExceeded, "shared"));
    leader.abort();
    hears(&mut told, "gone").await;
    hears(&mut told, "began").await;
    gate.add_permits(1);
    let mut outcomes = Vec::new();
    for follower in followers {
        let raw = within("an answer", follower).await.unwrap();
        assert_eq!(raw.status().code(), Code::Ok);
        outcomes.push(cache(&raw));
    }
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "miss").count(), 1, "{outcomes:?}");
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn one_who_asks_for_all_and_fails_fails_alone() {
    let world = World::new().await;
    let (calls, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (tell, mut told) = mpsc::unbounded_channel();
    let barrier = gate.clone();
    let _agent = agent(&world, "a", move |_| {
        let (n, barrier, tell) = (calls.fetch_add(1, SeqCst), barrier.clone(), tell.clone());
        async move {
            tell.send("began").unwrap();
            barrier.acquire().await.unwrap().forget();
            if n == 0 { error(13, "the first is refused") } else { sure(0.9) }
        }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let leader = asks(&operator, &[A, USE]);
    hears(&mut told, "began").await;
    let followers: Vec<_> = (0..5).map(|_| asks(&operator, &[A, USE])).collect();
    gate.add_permits(2);
    assert_eq!(within("it fails", leader).await.unwrap().status().message(), "the first is refused");
    for follower in followers {
        assert_eq!(within("an answer", follower).await.unwrap().status().code(), Code::Ok);
    }
    hears(&mut told, "began").await;
    assert!(told.try_recv().is_err(), "it was asked twice");
}

/// A registration in another tenant, or of another version.
fn registered(id: &str, addr: SocketAddr, tenant: &str, version: &str) -> AgentRecord {
    let mut record = record(id, addr, Transport::Plaintext);
    record.tenant = tenant.into();
    let metadata = Metadata { version: version.into(), ..Default::default() };
    record.registration.as_mut().unwrap().metadata = Some(metadata);
    record
}

#[tokio::test]
async fn tenants_have_nothing_in_common_and_versions_neither() {
    let world = World::new().await;
    let plain = async |says: &'static str| {
        let any = ([127, 0, 0, 1], 0).into();
        agent::start(&world, "a", any, Plaintext::Loopback, move |_| async move { self::says(says, 0.9) })
            .await
    };
    let (ours, theirs, newer) = (plain("1").await, plain("2").await, plain("3").await);
    world.control_plane.put(registered("a", ours.addr, "default", "v1"));
    world.control_plane.put(registered("a", theirs.addr, "other", "v1"));
    let node = world.ready_node().await;
    let we = world.operator(&node).await;
    let they = world.caller(&node, "other", Kind::Operator).await;
    for (outcome, target) in [("miss", A), ("hit", A), ("miss", (wire::CAPABILITY, "test"))] {
        assert_eq!(told(&we, &[target, USE]).await, pair(outcome, 1));
        assert_eq!(told(&they, &[target, USE]).await, pair(outcome, 2));
    }
    world.control_plane.put(registered("a", newer.addr, "default", "v2"));
    until("another version is asked", async || (told(&we, &[A, USE]).await == pair("miss", 3)).then_some(()))
        .await;
    assert_eq!(told(&we, &[(wire::CAPABILITY, "test"), USE]).await, pair("miss", 3));
    assert_eq!(told(&they, &[A, USE]).await, pair("hit", 2));
}

#[tokio::test]
async fn what_cannot_be_cached_passes_and_says_so() {
    let world = World::new().await;
    let _echo = agent(&world, "a", |request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        says(body.len(), 0.9)
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let large = framed(&vec![0x7f; 3 << 20]);
    let compressed = Bytes::from_static(&[1, 0, 0, 0, 1, 7]);
    let torn = Bytes::from_static(&[0, 0, 0, 0, 9, 7]);
    let garbage = framed(&[0xff; 9]);
    for (path, body) in
        [(ANALYZE, large), (ANALYZE, compressed), (ANALYZE, torn), (ANALYZE, garbage), (STREAM, question())]
    {
        for _ in 0..2 {
            let raw = call(&operator, path, body.clone(), &[A, USE]).await;
            assert_eq!(
                (cache(&raw).as_str(), result(&raw).value_json),
                ("uncacheable", body.len().to_string())
            );
        }
    }
    let bypassed = call(&operator, STREAM, question(), &[A, (wire::CACHE, "bypass")]).await;
    assert_eq!(cache(&bypassed), "bypass");
    let refused = call(&operator, ANALYZE, question(), &[A, (wire::CACHE, "always")]).await.status();
    let said = "the metadata x-parallax-cache is \"always\"; it must be use, refresh or bypass";
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, said));
}

#[tokio::test]
async fn a_capability_is_cached_by_setting_and_no_agent_that_does_more() {
    let world = World::new().await;
    let (agent, _) = counting(&world, "a", 0.9).await;
    let (_several, _) = counting(&world, "several", 0.9).await;
    let mut single = record("a", agent.addr, Transport::Mtls);
    single.registration.as_mut().unwrap().capabilities = vec!["only-a".into()];
    world.control_plane.put(single);
    let node = world.node_with(|c| c.cache.capabilities = vec!["only-a".into(), "only-several".into()]).await;
    within("the node is ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    for (target, outcomes) in [
        ((wire::CAPABILITY, "only-a"), [("miss", 1), ("hit", 1)]),
        (A, [("miss", 2), ("hit", 2)]),
        ((wire::CAPABILITY, "only-several"), [("miss", 1), ("hit", 1)]),
        ((wire::AGENT, "several"), [("", 2), ("", 3)]),
    ] {
        for (outcome, value) in outcomes {
            assert_eq!(told(&operator, &[target]).await, pair(outcome, value), "{target:?}");
        }
    }
    let bypass = (wire::CACHE, "bypass");
    assert_eq!(told(&operator, &[(wire::CAPABILITY, "only-a"), bypass]).await, pair("bypass", 3));
}

#[tokio::test]
async fn drivers_share_the_cache_and_are_told_in_the_answer() {
    let world = World::new().await;
    let (_agent, calls) = counting(&world, "a", 0.9).await;
    let node = world.ready_node().await;
    let mut driver = Driver::open(&world, &node).await;
    let request = |task: &str| {
        Some(AgentRequest { task_id: task.into(), task_description: "which?".into(), ..Default::default() })
    };
    let mut ask = async |n: u64, cache: Cache| {
        driver.call(parallax_proto::dataplane::v1::Call {
            request: request(&format!("run/{n}")),
            cache: cache.into(),
            ..to(n, "a")
        });
        let outcome = driver.next().await;
        let given = answer(&outcome);
        let served_by = given.metadata.get("served_by").cloned().unwrap_or_default();
        assert_eq!((outcome.agent_id.as_str(), given.confidence), ("a", Some(0.9)));
        (given.value_json.clone(), served_by)
    };
    let said = |value: &str, served_by: &str| (value.to_owned(), served_by.to_owned());
    assert_eq!(ask(1, Cache::Unspecified).await, said("1", ""));
    assert_eq!(ask(2, Cache::Use).await, said("2", ""));
    assert_eq!(ask(3, Cache::Use).await, said("2", "cache"));
    assert_eq!(ask(4, Cache::Bypass).await, said("3", ""));
    assert_eq!(ask(5, Cache::Refresh).await, said("4", ""));
    assert_eq!(ask(6, Cache::Use).await, said("4", "cache"));
    assert_eq!(told(&world.operator(&node).await, &[A, USE]).await, pair("hit", 4), "it is one cache");
    assert_eq!(calls.load(SeqCst), 4);
    assert!(node.life.drain(std::time::Duration::from_secs(20)).await);
    assert_eq!(world.samples("a", 4).await.len(), 4);
}
