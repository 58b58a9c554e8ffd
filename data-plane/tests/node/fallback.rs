//! What answers when an agent does not.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use parallax_data_plane::{Config, FallbackKind, FallbackRule};
use parallax_proto::{
    confidence::AgentRequest,
    controlplane::v1::Transport,
    dataplane::v1::{Call, call::Target, failure::Cause},
};
use parallax_runtime::wire;
use prost::Message;
use tonic::{Code, transport::Channel};

use crate::{
    agent::{Agent, agent, error, framed},
    cache::{cache, metric, question, result, says, text},
    dispatch::{Driver, answer, failure, to},
    proxy::{ANALYZE, Raw, bare, call, request},
    trouble::{hanging, hears},
    world::{Node, World, record, until, within},
};

const A: (&str, &str) = (wire::AGENT, "a");
/// What agent `a` says when it fails.
const SICK: u32 = 14;
/// `{"value":1}` as metadata has it.
const ONE: &str = "eyJ2YWx1ZSI6MX0";

/// An agent that answers 0.9 until it is told to fail with a code.
async fn moody(world: &World, id: &'static str, code: u32) -> (Agent, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(false));
    let failing = fails.clone();
    let agent = agent(world, id, move |_| {
        let answer = if failing.load(SeqCst) { error(code, "overloaded") } else { says(7, 0.9) };
        async move { answer }
    })
    .await;
    (agent, fails)
}

/// A node of such rules.
async fn node(world: &World, change: impl FnOnce(&mut Config)) -> (Node, Channel) {
    let node = world.node_with(change).await;
    within("the node is ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    (node, operator)
}

fn rule(capability: &str, order: Vec<FallbackKind>) -> FallbackRule {
    FallbackRule { capability: capability.into(), order, degraded: None, default: None }
}

async fn ask(channel: &Channel, metadata: &[(&'static str, &str)]) -> Raw {
    call(channel, ANALYZE, question(), metadata).await
}

/// An answer that something else gave: it says so everywhere, why, and is as sure as it should be.
#[track_caller]
fn marked(raw: &Raw, served_by: &str, confidence: f64, why: &[&str]) {
    assert_eq!(raw.status().code(), Code::Ok, "{:?}", raw.status());
    assert_eq!(raw.trailers[wire::SERVED_BY], served_by);
    let result = result(raw);
    assert_eq!((result.metadata["served_by"].as_str(), result.uncertainties.len()), (served_by, 1));
    assert!((result.confidence - confidence).abs() < 1e-9, "{}", result.confidence);
    for words in why {
        assert!(result.uncertainties[0].contains(words), "{}", result.uncertainties[0]);
    }
}

#[tokio::test]
async fn an_earlier_answer_stands_in_for_an_agent_that_fails_or_has_left() {
    let world = World::new().await;
    let (_agent, fails) = moody(&world, "a", SICK).await;
    let (node, operator) = node(&world, |_| {}).await;
    let cached = [A, (wire::FALLBACK, "cached")];
    let first = ask(&operator, &cached).await;
    // Nothing is held yet that could answer, and now something is.
    assert_eq!((cache(&first).as_str(), result(&first).metadata.len()), ("refresh", 0));
    fails.store(true, SeqCst);
    let stale = ask(&operator, &cached).await;
    marked(&stale, "cached", 0.72, &["an answer of a of 0 s ago", "answered with Unavailable: overloaded"]);
    assert_eq!((cache(&stale).as_str(), text(&stale.headers, "age")), ("refresh", "0"));
    assert_eq!(result(&stale).value_json, "7");
    assert_eq!(ask(&operator, &[A]).await.status().code(), Code::Unavailable, "who does not opt is told");
    let hit = ask(&operator, &[A, (wire::CACHE, "use"), (wire::FALLBACK, "cached")]).await;
    assert_eq!((cache(&hit).as_str(), result(&hit).metadata.len()), ("hit", 0), "fresh: no fallback");

    world.control_plane.remove("a");
    until("it has left", async || node.agent("a").await.is_none().then_some(())).await;
    marked(&ask(&operator, &cached).await, "cached", 0.72, &["no agent \"a\" is registered"]);
    assert_eq!(metric(&node, "parallax_fallbacks_total{served_by=\"cached\"}").await, 2);
    let another = framed(&AgentRequest::default().encode_to_vec());
    let raw = call(&operator, ANALYZE, another, &cached).await;
    assert_eq!(raw.status().code(), Code::NotFound, "that was never asked before");
}

#[tokio::test]
async fn another_agent_of_the_same_capabilities_answers_as_itself() {
    let world = World::new().await;
    let (a, fails) = moody(&world, "a", SICK).await;
    let (b, _) = moody(&world, "b", SICK).await;
    let (_less, _) = moody(&world, "less", SICK).await;
    for (id, addr) in [("a", a.addr), ("b", b.addr)] {
        let mut both = record(id, addr, Transport::Mtls);
        both.registration.as_mut().unwrap().capabilities = vec!["test".into(), "more".into()];
        world.control_plane.put(both);
    }
    let (_node, operator) = node(&world, |config| config.fallback.other_agent = 0.5).await;
    fails.store(true, SeqCst);
    let other = ask(&operator, &[A, (wire::FALLBACK, "other-agent")]).await;
    marked(&other, "other_agent:b", 0.45, &["an answer of b, as the call failed: agent a at"]);
    assert_eq!(cache(&other), "");
    let samples = world.samples("b", 1).await;
    assert_eq!(samples[0].confidence.map(|c| c.get()), Some(0.9), "as it stated it");
    // Nobody does all that b does, but a.
    b.die().await;
    world.control_plane.remove("a");
    let raw = until("a has left", async || {
        let raw = ask(&operator, &[(wire::AGENT, "b"), (wire::FALLBACK, "other-agent")]).await;
        (raw.status().code() != Code::Ok).then_some(raw)
    })
    .await;
    assert!(raw.status().message().contains("agent b at"), "{:?}", raw.status());
}

#[tokio::test]
async fn what_settings_name_for_a_capability_is_tried_in_order() {
    let world = World::new().await;
    let (agent, fails) = moody(&world, "a", SICK).await;
    let (_small, small_fails) = moody(&world, "small", SICK).await;
    let mut single = record("a", agent.addr, Transport::Mtls);
    single.registration.as_mut().unwrap().capabilities = vec!["large".into()];
    world.control_plane.put(single);
    let (node, operator) = node(&world, |config| {
        config.breaker.failures = 1000;
        config.fallback.rules = vec![FallbackRule {
            degraded: Some("only-small".into()),
            default: Some(r#"{"value": {"text": null}, "confidence": 0.1}"#.to_owned().try_into().unwrap()),
            ..rule("large", vec![FallbackKind::Degraded, FallbackKind::Default])
        }];
    })
    .await;
    let large = (wire::CAPABILITY, "large");
    assert!(result(&ask(&operator, &[large]).await).metadata.is_empty());
    fails.store(true, SeqCst);
    for target in [large, A] {
        marked(
            &ask(&operator, &[target]).await,
            "degraded:small",
            0.63,
            &["an answer of small, as the call"],
        );
    }
    let none = ask(&operator, &[large, (wire::FALLBACK, "none")]).await;
    assert_eq!(none.status().code(), Code::Unavailable);

    small_fails.store(true, SeqCst);
    let default = ask(&operator, &[large]).await;
    marked(&default, "default", 0.1, &["a default and no answer", "overloaded"]);
    assert_eq!(result(&default).value_json, r#"{"text":null}"#);
    let own = ask(&operator, &[large, (wire::DEFAULT, ONE)]).await;
    marked(&own, "default", 0.0, &[]);
    assert_eq!(metric(&node, "parallax_fallbacks_total{served_by=\"degraded\"}").await, 2);

    let mut driver = Driver::open(&world, &node).await;
    let call = |n| Call { target: Some(Target::Capability("large".into())), ..to(n, "") };
    driver.call(call(1));
    let outcome = driver.next().await;
    let given = answer(&outcome);
    assert_eq!((given.value_json.as_str(), given.confidence), (r#"{"text":null}"#, Some(0.1)));
    assert_eq!((given.metadata["served_by"].as_str(), outcome.agent_id.as_str()), ("default", "a"));
    small_fails.store(false, SeqCst);
    within("the small one is asked again", async {
        loop {
            driver.call(call(2));
            let outcome = driver.next().await;
            if answer(&outcome).metadata["served_by"] == "degraded:small" {
                return assert_eq!(outcome.agent_id, "small");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_refusal_is_an_answer_and_nothing_replaces_it() {
    let world = World::new().await;
    let (_agent, fails) = moody(&world, "a", 7).await;
    let (_node, operator) = node(&world, |_| {}).await;
    ask(&operator, &[A, (wire::CACHE, "use")]).await;
    fails.store(true, SeqCst);
    let default = (wire::DEFAULT, ONE);
    let raw =
        ask(&operator, &[A, (wire::CACHE, "refresh"), (wire::FALLBACK, "cached, default"), default]).await;
    assert_eq!((raw.status().code(), raw.status().message()), (Code::PermissionDenied, "overloaded"));
}

#[tokio::test]
async fn a_fallback_comes_before_the_deadline_of_a_call_that_hangs() {
    let world = World::new().await;
    let (_agent, mut told) = hanging(&world, "a").await;
    let (node, _) = node(&world, |config| {
        config.fallback.rules = vec![FallbackRule {
            default: Some(r#"{"value": 1}"#.to_owned().try_into().unwrap()),
            ..rule("only-a", vec![FallbackKind::Default])
        }];
    })
    .await;
    let metadata = [(wire::CAPABILITY, "only-a"), ("grpc-timeout", "500m")];
    let raw = bare(&node, request(ANALYZE, question(), &metadata)).await;
    marked(&raw, "default", 0.0, &["did not answer within"]);
    let why = &result(&raw).uncertainties[0];
    let given: u64 = why.split(' ').rev().nth(1).unwrap().parse().unwrap();
    assert!(given <= 400, "it was given up while there was time: {why}");
    hears(&mut told, "began").await;
    hears(&mut told, "gone").await;
    // A driver's call that is cancelled is not answered by anything.
    let mut driver = Driver::open(&world, &node).await;
    driver.call(Call { target: Some(Target::Capability("only-a".into())), ..to(1, "") });
    hears(&mut told, "began").await;
    driver.cancel(1, "enough");
    assert_eq!(failure(&driver.next().await).0, Cause::Cancelled);
}

#[tokio::test]
async fn a_fallback_that_cannot_be_is_refused_with_the_cure() {
    let world = World::new().await;
    let (_agent, _) = moody(&world, "a", SICK).await;
    let (_node, operator) = node(&world, |_| {}).await;
    for (path, fallback, default, words) in [
        (ANALYZE, "best", "", "x-parallax-fallback names \"best\", which is none of cached, other-agent"),
        (ANALYZE, "degraded", "", "names degraded: no setting of the node names another capability"),
        (
            ANALYZE,
            "cached,default",
            "",
            "names default: neither the call nor a setting of the node gives one",
        ),
        (ANALYZE, "default", "!", "x-parallax-default-bin is not base64"),
        (
            ANALYZE,
            "default",
            "W10",
            "x-parallax-default-bin is not {\"value\": …, \"confidence\": 0 to 1} in JSON",
        ),
        ("/parallax.confidence.ConfidenceAgent/HealthCheck", "cached", "", "goes with Analyze alone"),
    ] {
        let mut metadata = vec![A, (wire::FALLBACK, fallback)];
        metadata.extend(Some((wire::DEFAULT, default)).filter(|(_, text)| !text.is_empty()));
        let status = call(&operator, path, question(), &metadata).await.status();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(words), "{}", status.message());
    }
}
