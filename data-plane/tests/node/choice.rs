//! Whom a call goes to, and to whom it goes on: strategies, reported loads, retries, hedges.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::future::join_all;
use http::Response;
use http_body::Frame;
use hyper::body::Incoming;
use parallax_data_plane::{Balance, Config, Hedge, Limits, Retry, Strategy};
use parallax_proto::confidence::Health;
use parallax_runtime::{store::CallOutcome, wire};
use prost::Message;
use tokio::{
    sync::{Mutex, Notify},
    time::{sleep, timeout},
};
use tonic::{Code, transport::Channel};

use crate::{
    agent::{Agent, Body, agent, error, framed, raw, respond, sure, trailers},
    cache::metric,
    proxy::{ANALYZE, Raw, call},
    trouble::{hanging, hears},
    world::{Node, World, until, within},
};

const TEST: (&str, &str) = (wire::CAPABILITY, "test");
const IDEMPOTENT: (&str, &str) = (wire::IDEMPOTENT, "true");

/// An agent that answers the same each time, and counts.
async fn scripted(
    world: &World,
    id: &str,
    answer: impl Fn() -> Response<Body> + Send + Sync + 'static,
) -> (Agent, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let agent = agent(world, id, move |_: http::Request<Incoming>| {
        counter.fetch_add(1, SeqCst);
        let answer = answer();
        async move { answer }
    })
    .await;
    (agent, count)
}

async fn ask(channel: &Channel, metadata: &[(&'static str, &str)]) -> Raw {
    within("an answer", call(channel, ANALYZE, framed(b""), metadata)).await
}

fn served_by(raw: &Raw) -> &str {
    assert_eq!(raw.status().code(), Code::Ok, "{:?}", raw.status());
    raw.trailers[wire::SERVED_BY].to_str().unwrap()
}

#[tokio::test]
async fn a_failed_call_goes_on_to_another_agent_if_that_does_no_harm() {
    let world = World::new().await;
    let (_sick, sick) = scripted(&world, "sick", || error(13, "out of order")).await;
    let (_well, _) = scripted(&world, "well", || sure(0.9)).await;
    let config = |config: &mut parallax_data_plane::Config| {
        config.balance.strategy = Strategy::RoundRobin;
        config.breaker.failures = 1000;
        config.retry = Retry { budget_percent: 100, ..Retry::default() };
    };
    let node = world.node_with(config).await;
    within("ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    for _ in 0..10 {
        let raw = ask(&operator, &[TEST, IDEMPOTENT]).await;
        assert_eq!(served_by(&raw), "well");
    }
    assert_eq!(sick.load(SeqCst), 5, "every other call began there");
    assert_eq!(metric(&node, "parallax_proxy_retries_total").await, 5);
    let samples = world.samples("sick", 5).await;
    assert!(samples.iter().all(|sample| sample.outcome == CallOutcome::Failed), "each attempt is recorded");

    let codes = [ask(&operator, &[TEST]).await, ask(&operator, &[TEST]).await].map(|raw| raw.status().code());
    assert!(codes.contains(&Code::Internal), "it may have done the work: {codes:?}");
    let named = ask(&operator, &[(wire::AGENT, "sick"), IDEMPOTENT]).await;
    assert_eq!(named.status().message(), "out of order", "who is named is asked, and nobody else");
}

#[tokio::test]
async fn an_agent_that_takes_nothing_on_is_passed_over_and_its_refusal_is_the_last_word_if_all_do() {
    let world = World::new().await;
    // Not at once: after a head, as some servers do.
    let late = || respond([trailers(8, "full")]);
    let (_full, full) = scripted(&world, "full", late).await;
    let (well, _) = scripted(&world, "well", || sure(0.9)).await;
    let node = world.node_with(|c| {
        c.balance.strategy = Strategy::RoundRobin;
        c.breaker.failures = 1000;
    });
    let node = node.await;
    within("ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    let raw = [ask(&operator, &[TEST]).await, ask(&operator, &[TEST]).await];
    assert_eq!(raw.each_ref().map(served_by), ["well", "well"], "no harm, so no mark is needed");
    assert!(full.load(SeqCst) >= 1);
    well.die().await;
    world.control_plane.remove("well");
    node.shows("full", "in_flight", 0).await;
    until("only one is left", || async { node.agent("well").await.is_none().then_some(()) }).await;
    let last = ask(&operator, &[TEST]).await;
    assert_ne!(last.status().code(), Code::Ok);
}

#[tokio::test]
async fn retries_stop_at_the_budget() {
    let world = World::new().await;
    let mut agents = Vec::new();
    for id in ["a", "b", "c"] {
        agents.push(scripted(&world, id, || error(13, "broken")).await);
    }
    let node = world
        .node_with(|config| {
            config.breaker.failures = 60_000;
            config.retry = Retry { max: 2, budget_percent: 20, min_per_second: 0 };
            config.hedge.budget_percent = 0;
        })
        .await;
    within("ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    for _ in 0..100 {
        assert_eq!(ask(&operator, &[TEST, IDEMPOTENT]).await.status().code(), Code::Internal);
    }
    let asked: usize = agents.iter().map(|(_, count)| count.load(SeqCst)).sum();
    assert_eq!((asked, metric(&node, "parallax_proxy_retries_total").await), (120, 20));
    assert!(metric(&node, "parallax_proxy_retries_denied_total").await >= 80);
}

/// With nobody left to ask there is no retry, and nobody was refused.
#[tokio::test]
async fn what_is_counted_was_done() {
    let world = World::new().await;
    let mut agents = Vec::new();
    for id in ["a", "b"] {
        agents.push(scripted(&world, id, || error(14, "broken")).await);
    }
    let node = world
        .node_with(|config| {
            config.breaker.failures = 1000;
            config.retry = Retry { max: 5, budget_percent: 100, min_per_second: 100 };
            config.hedge.budget_percent = 0;
        })
        .await;
    within("ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    for _ in 0..3 {
        let status = ask(&operator, &[TEST, IDEMPOTENT]).await.status();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "broken"), "the agent's own word");
    }
    let asked: usize = agents.iter().map(|(_, count)| count.load(SeqCst)).sum();
    assert_eq!((asked, metric(&node, "parallax_proxy_retries_total").await), (6, 3));
    let (_, text) = node.admin("/metrics").await;
    let refused = text.lines().filter(|line| line.contains("outcome=\"rejected\"") && !line.ends_with(" 0"));
    assert_eq!(refused.collect::<Vec<_>>(), [""; 0]);
}

/// A node that hedges as often as it likes, and two agents that answer at once until they are told to hang.
async fn hedging(
    world: &World,
    change: impl Fn(&mut Config),
) -> (Node, Channel, Arc<AtomicBool>, [Agent; 2]) {
    let node = world
        .node_with(|config| {
            config.hedge = Hedge { budget_percent: 100, min_delay_ms: 20, ..Hedge::default() };
            change(config);
        })
        .await;
    let hang = Arc::new(AtomicBool::new(false));
    let told = hang.clone();
    let script = move |_: http::Request<Incoming>| {
        let hang = told.clone();
        async move {
            if hang.load(SeqCst) {
                pending::<()>().await;
            }
            sure(0.7)
        }
    };
    let agents = [agent(world, "a", script.clone()).await, agent(world, "b", script).await];
    within("ready", node.plane.readiness().ready()).await;
    until("both are known", || async { node.agent("a").await.and(node.agent("b").await) }).await;
    let operator = world.operator(&node).await;
    // How long they usually take.
    for _ in 0..30 {
        served_by(&ask(&operator, &[TEST, IDEMPOTENT]).await);
    }
    (node, operator, hang, agents)
}

#[tokio::test]
async fn a_slow_call_is_hedged_the_first_answer_counts_and_the_other_agent_hears_of_it() {
    let world = World::new().await;
    let (node, operator, _, [_a, other]) =
        hedging(&world, |config| config.balance.strategy = Strategy::RoundRobin).await;
    drop(other);
    let (_b, mut told) = hanging(&world, "b").await;
    for _ in 0..2 {
        let raw = ask(&operator, &[TEST, IDEMPOTENT]).await;
        assert_eq!(served_by(&raw), "a");
    }
    hears(&mut told, "began").await;
    hears(&mut told, "gone").await;
    assert!(metric(&node, "parallax_proxy_hedges_won_total").await >= 1);
    let slow = node.agent("b").await.unwrap();
    assert_eq!(slow["in_flight"], 0, "{slow}");
    assert_eq!(slow["failures"], 0, "being slow is no failure");
}

#[tokio::test]
async fn one_whose_hedges_win_is_known_to_be_slow_though_it_never_answers() {
    let world = World::new().await;
    let (node, operator, _, _agents) =
        hedging(&world, |config| config.balance.strategy = Strategy::RoundRobin).await;
    let (_slow, mut told) = hanging(&world, "slow").await;
    until("it is known", || node.agent("slow")).await;
    for _ in 0..3 {
        assert_ne!(served_by(&ask(&operator, &[TEST, IDEMPOTENT]).await), "slow");
    }
    hears(&mut told, "began").await;
    hears(&mut told, "gone").await;
    let latency = node.agent("slow").await.unwrap()["ewma_latency_ms"].as_f64();
    // Half as long again as until it was hedged.
    assert!(latency.is_some_and(|latency| latency > 30.0), "{latency:?}");
}

#[tokio::test]
async fn no_second_agent_is_asked_that_has_enough_to_do_or_takes_longer() {
    let world = World::new().await;
    let (node, operator, hang, _agents) = hedging(&world, |config| {
        config.balance.strategy = Strategy::LeastRequest;
        config.limits = Limits { least: 4, most: 4, ..Limits::default() };
    })
    .await;
    hang.store(true, SeqCst);
    let in_vain = || async {
        let answer = timeout(Duration::from_millis(500), ask(&operator, &[TEST, IDEMPOTENT])).await;
        assert!(answer.is_err(), "nobody answers");
        metric(&node, "parallax_proxy_hedges_total").await
    };
    // With three of the four that it may have at once, `b` has room, and none to spare.
    let at_b = [(wire::AGENT, "b")];
    let busy = join_all((0..3).map(|_| ask(&operator, &at_b)));
    let asked = async {
        node.shows("b", "in_flight", 3).await;
        in_vain().await
    };
    tokio::select! {
        _ = busy => unreachable!("it hangs"),
        hedges = asked => assert_eq!(hedges, 0),
    }
    node.shows("b", "in_flight", 0).await;
    assert_eq!(in_vain().await, 0, "it has room, and has taken longer than anybody is waited for");
    hang.store(false, SeqCst);
    for _ in 0..400 {
        served_by(&ask(&operator, &[TEST]).await);
    }
    hang.store(true, SeqCst);
    assert_eq!(in_vain().await, 1, "both are quick again");
}

#[tokio::test]
async fn one_that_never_had_a_queue_is_not_sent_all_that_the_others_are_not() {
    let world = World::new().await;
    let node = world
        .node_with(|config| {
            config.balance.strategy = Strategy::LeastRequest;
            config.limits = Limits { least: 1, interval: Duration::from_millis(10), ..Limits::default() };
        })
        .await;
    // One works on one call after the other, until both hang.
    let hang = Arc::new(AtomicBool::new(false));
    let (told, slot) = (hang.clone(), Arc::new(Mutex::new(())));
    let script = move |_: http::Request<Incoming>| {
        let (hang, slot) = (told.clone(), slot.clone());
        async move {
            let _slot = slot.lock().await;
            if hang.load(SeqCst) {
                pending::<()>().await;
            }
            sleep(Duration::from_millis(10)).await;
            sure(0.7)
        }
    };
    let _tested = agent(&world, "tested", script).await;
    let (_unknown, mut told) = hanging(&world, "unknown").await;
    within("ready", node.plane.readiness().ready()).await;
    until("both are known", || async { node.agent("tested").await.and(node.agent("unknown").await) }).await;
    let operator = world.operator(&node).await;
    let at_tested = [(wire::AGENT, "tested")];
    let limit = until("a queue is seen", || async {
        join_all((0..64).map(|_| ask(&operator, &at_tested))).await;
        node.agent("tested").await.unwrap()["limit"].as_u64().filter(|limit| *limit < 1000)
    })
    .await;
    hang.store(true, SeqCst);
    let full = join_all((0..limit).map(|_| ask(&operator, &at_tested)));
    let asked = async {
        node.shows("tested", "in_flight", limit).await;
        let as_many = join_all((0..limit).map(|_| ask(&operator, &[TEST])));
        let and_one = async {
            for _ in 0..limit {
                hears(&mut told, "began").await;
            }
            assert_eq!(node.agent("unknown").await.unwrap()["limit"], 1000);
            ask(&operator, &[TEST]).await.status().code()
        };
        tokio::select! {
            _ = as_many => unreachable!("it hangs"),
            code = and_one => code,
        }
    };
    tokio::select! {
        _ = full => unreachable!("it hangs"),
        code = asked => assert_eq!(code, Code::ResourceExhausted),
    }
}

#[tokio::test]
async fn a_call_that_is_not_marked_is_never_sent_twice() {
    let world = World::new().await;
    let node =
        world.node_with(|config| config.hedge = Hedge { budget_percent: 100, ..Hedge::default() }).await;
    let (_a, a) = scripted(&world, "a", || sure(0.7)).await;
    let (_b, b) = scripted(&world, "b", || sure(0.7)).await;
    within("ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    for _ in 0..50 {
        ask(&operator, &[TEST]).await;
    }
    assert_eq!(a.load(SeqCst) + b.load(SeqCst), 50);
    assert_eq!(metric(&node, "parallax_proxy_hedges_total").await, 0);
}

#[tokio::test]
async fn equal_keys_go_to_the_same_agent_and_confident_ones_get_the_calls() {
    let world = World::new().await;
    let (_timid, timid) = scripted(&world, "timid", || sure(0.1)).await;
    let (_bold, bold) = scripted(&world, "bold", || sure(0.9)).await;
    let node =
        world.node_with(|config| config.balance = Balance { explore_percent: 0, ..Balance::default() }).await;
    within("ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;

    let mut owners = HashMap::new();
    for round in 0..3 {
        for key in 0..20 {
            let key = format!("session-{key}");
            let owner = served_by(&ask(&operator, &[TEST, (wire::AFFINITY, &key)]).await).to_owned();
            let first = owners.entry(key.clone()).or_insert_with(|| owner.clone());
            assert_eq!(*first, owner, "round {round}, {key}");
        }
    }
    assert_eq!(owners.values().collect::<std::collections::HashSet<_>>().len(), 2, "keys are spread");

    let before = (timid.load(SeqCst), bold.load(SeqCst));
    for _ in 0..100 {
        ask(&operator, &[TEST, (wire::STRATEGY, "confidence")]).await;
    }
    let after = (timid.load(SeqCst), bold.load(SeqCst));
    assert_eq!(after.1 - before.1, 100, "the bold one has shown to be worth more: {after:?}");

    let refused = ask(&operator, &[TEST, (wire::STRATEGY, "best")]).await;
    assert_eq!(refused.status().code(), Code::InvalidArgument);
    assert!(refused.status().message().contains("there are round_robin"), "{}", refused.status().message());
}

#[tokio::test]
async fn what_agents_say_of_their_load_decides_and_who_falls_silent_is_probed() {
    let world = World::new().await;
    let reporting = |id: &'static str, text: &'static str| {
        let (probed, world) = (Arc::new(Notify::new()), &world);
        async move {
            let told = probed.clone();
            let agent = agent(world, id, move |request: http::Request<Incoming>| {
                let health = request.uri().path().ends_with("/HealthCheck");
                if health {
                    told.notify_one();
                }
                async move {
                    if health {
                        let details = [("in_flight", "90"), ("service_time_ms", "1")];
                        let details = details.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
                        return raw(&Health { status: 1, details, ..Default::default() }.encode_to_vec());
                    }
                    let mut last = trailers(0, "");
                    last.trailers_mut().unwrap().insert("endpoint-load-metrics", text.parse().unwrap());
                    respond([Frame::data(framed(b"")), last])
                }
            })
            .await;
            (agent, probed)
        }
    };
    let busy = reporting("busy", "TEXT named_metrics.in_flight=50,named_metrics.service_time_ms=1").await;
    let idle = reporting("idle", "TEXT named_metrics.in_flight=1,named_metrics.service_time_ms=9").await;
    let node = world.node_with(|config| config.balance.strategy = Strategy::PeakEwma).await;
    within("ready", node.plane.readiness().ready()).await;
    let operator = world.operator(&node).await;
    for agent in ["busy", "idle"] {
        ask(&operator, &[(wire::AGENT, agent)]).await;
    }
    for _ in 0..20 {
        assert_eq!(served_by(&ask(&operator, &[TEST]).await), "idle", "the other one is hot");
    }
    // The busy one gets no call any more: in time it is asked how it fares.
    let calls = async {
        loop {
            ask(&operator, &[TEST]).await;
        }
    };
    tokio::select! {
        () = within("the busy one is probed", busy.1.notified()) => {}
        () = calls => {}
    }
    drop((busy.0, idle.0));
}
