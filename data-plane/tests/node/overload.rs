//! Agents that fail one pattern, ask for rests, are slow or overloaded, and a node that has too much to do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{HeaderMap, Request};
use http_body::Frame;
use hyper::body::Incoming;
use parallax_data_plane::{Limits, Outliers, Policy, Strategy};
use parallax_proto::dataplane::v1::{
    Call, DispatchRequest, GetAgentStatusRequest, breaker::Phase, call::Target, call_outcome::Outcome,
    data_plane_client::DataPlaneClient, dispatch_request::Message as Wanted, failure::Cause,
};
use parallax_runtime::wire;
use tokio::{sync::Semaphore, task::JoinSet};
use tonic::{Code, Status, transport::Channel};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    agent::{agent, error, framed, respond, sure},
    proxy::{ANALYZE, ask, call},
    trouble::{hanging, hears},
    world::{World, until},
};

type Metadata<'a> = &'a [(&'static str, &'a str)];

async fn asked(channel: &Channel, metadata: Metadata<'_>) -> Status {
    call(channel, ANALYZE, framed(b""), metadata).await.status()
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

fn retry_in(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[tokio::test]
async fn an_agent_that_fails_one_pattern_is_ejected_for_that_one() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |request: Request<Incoming>| async move {
        assert!(!request.headers().contains_key(wire::PATTERN), "that is for the node");
        if request.headers().contains_key("x-hard") { error(13, "too hard") } else { sure(0.9) }
    })
    .await;
    let node = world.node_with(|config| config.breaker.first = Duration::from_secs(30)).await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    let easy: Metadata = &[(wire::AGENT, "a"), (wire::PATTERN, "easy")];
    let hard: Metadata = &[(wire::AGENT, "a"), (wire::PATTERN, "hard"), ("x-hard", "yes")];
    assert_eq!(asked(&operator, easy).await.code(), Code::Ok);
    for _ in 0..5 {
        assert_eq!(asked(&operator, hard).await.message(), "too hard");
    }
    let ejected = asked(&operator, hard).await;
    assert_eq!((ejected.code(), reason(&ejected).as_str()), (Code::Unavailable, "PARALLAX-PROXY-105"));
    assert!(retry_in(&ejected).unwrap() > Duration::from_secs(30), "{ejected:?}");
    let by_capability: Metadata = &[(wire::CAPABILITY, "test"), (wire::PATTERN, "hard"), ("x-hard", "yes")];
    assert_eq!(reason(&asked(&operator, by_capability).await), "PARALLAX-PROXY-105");
    assert_eq!(asked(&operator, easy).await.code(), Code::Ok);
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Ok, "nor for those that name none");
    let shown = node.agent("a").await.unwrap();
    assert_eq!(shown["breaker"], "closed");
    let patterns = shown["patterns"].as_array().unwrap();
    let of = |name: &str| &patterns.iter().find(|shown| shown["pattern"] == name).unwrap()["breaker"];
    assert_eq!((of("easy"), of("hard")), (&"closed".into(), &"open".into()));
    let metrics = node.admin("/metrics").await.1;
    assert!(
        metrics.contains("parallax_agent_ejected_patterns{tenant=\"default\",agent=\"a\"} 1"),
        "{metrics}"
    );

    // As the control plane learns of it.
    let mut control_plane = DataPlaneClient::new(world.driver(&node).await);
    let of = |agent: &str| GetAgentStatusRequest { tenant: "default".into(), agent_id: agent.into() };
    let status = control_plane.get_agent_status(of("a")).await.unwrap().into_inner();
    let phases: Vec<_> = status.breakers.iter().map(|b| (b.pattern.as_str(), b.phase())).collect();
    assert_eq!(phases, [("", Phase::Closed), ("easy", Phase::Closed), ("hard", Phase::Open)]);
    assert_eq!((status.node_id.as_str(), status.failures, status.limit), ("data-plane", 5, 1000));
    let unknown = control_plane.get_agent_status(of("b")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let long = "p".repeat(129);
    let refused = asked(&operator, &[(wire::AGENT, "a"), (wire::PATTERN, &long)]).await;
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_agent_that_asks_for_a_rest_gets_it() {
    let world = World::new().await;
    let (calls, busy) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
    let (counted, is_busy) = (calls.clone(), busy.clone());
    let _agent = agent(&world, "a", move |_| {
        counted.fetch_add(1, SeqCst);
        let busy = is_busy.load(SeqCst);
        async move {
            if !busy {
                return sure(0.9);
            }
            let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(20)));
            let mut trailers = HeaderMap::new();
            Status::with_error_details(Code::ResourceExhausted, "come back", details)
                .add_header(&mut trailers)
                .unwrap();
            respond([Frame::trailers(trailers)])
        }
    })
    .await;
    let node = world.node_with(|config| config.breaker.longest_hint = Duration::from_millis(500)).await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    let first = ask(&operator, "a").await.status();
    assert_eq!((first.code(), first.message()), (Code::ResourceExhausted, "come back"), "its answer passes");
    let second = ask(&operator, "a").await.status();
    assert_eq!((second.code(), reason(&second).as_str()), (Code::ResourceExhausted, "PARALLAX-PROXY-112"));
    assert!(retry_in(&second).unwrap() <= Duration::from_millis(500), "the hint is bounded: {second:?}");
    assert_eq!(calls.load(SeqCst), 1, "it was left alone");
    let shown = node.agent("a").await.unwrap();
    assert_eq!((&shown["breaker"], &shown["failures"]), (&"throttled".into(), &0.into()));

    // A driver is told so too.
    let (send, calls_of_driver) = tokio::sync::mpsc::unbounded_channel();
    let wanted = Call {
        call_id: 1,
        tenant: "default".into(),
        target: Some(Target::Capability("test".into())),
        ..Default::default()
    };
    send.send(DispatchRequest { message: Some(Wanted::Call(wanted)) }).unwrap();
    let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(calls_of_driver);
    let mut driver = DataPlaneClient::new(world.driver(&node).await);
    let mut outcomes = driver.dispatch(stream).await.unwrap().into_inner();
    let outcome = outcomes.message().await.unwrap().unwrap().outcome.unwrap();
    let Outcome::Failure(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.cause(), Cause::Busy, "{failure:?}");
    assert!(failure.retry_in.is_some());

    busy.store(false, SeqCst);
    until("it is asked again", || async {
        (ask(&operator, "a").await.status().code() == Code::Ok).then_some(())
    })
    .await;
    assert_eq!(node.agent("a").await.unwrap()["breaker"], "closed");
}

#[tokio::test]
async fn an_agent_much_slower_than_its_group_is_left_out_and_serves_who_names_it() {
    let world = World::new().await;
    let mut agents = Vec::new();
    for (id, millis) in [("quick", 4), ("brisk", 4), ("slow", 500)] {
        let served = move |_| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            sure(0.9)
        };
        agents.push(agent(&world, id, served).await);
    }
    let node = world
        .node_with(|config| {
            config.outliers = Outliers {
                least: Duration::from_millis(1),
                first: Duration::from_secs(30),
                ..Outliers::default()
            };
        })
        .await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    // All have enough to do to be compared, whoever is chosen.
    let mut callers = JoinSet::new();
    for id in ["quick", "brisk", "slow", "slow", "slow"] {
        let operator = operator.clone();
        callers.spawn(async move {
            loop {
                assert_eq!(ask(&operator, id).await.status().code(), Code::Ok);
            }
        });
    }
    until("the slow one is left out", || async {
        node.agent("slow").await.filter(|shown| shown["slow_for_ms"].is_number()).map(drop)
    })
    .await;
    for id in ["quick", "brisk"] {
        assert!(node.agent(id).await.unwrap()["slow_for_ms"].is_null(), "{id}");
    }
    callers.shutdown().await;
    for _ in 0..50 {
        let raw = call(&operator, ANALYZE, framed(b""), &[(wire::CAPABILITY, "test")]).await;
        assert_ne!(raw.trailers[wire::SERVED_BY], "slow");
    }
    assert_eq!(ask(&operator, "slow").await.status().code(), Code::Ok);
    let alone = asked(&operator, &[(wire::CAPABILITY, "only-slow")]).await;
    assert_eq!(alone.code(), Code::Ok, "there is nobody else");
}

#[tokio::test]
async fn an_overloaded_agent_is_sent_what_it_can_take() {
    let world = World::new().await;
    let slots = Arc::new(Semaphore::new(8));
    let _agent = agent(&world, "a", move |_| {
        let slots = slots.clone();
        async move {
            let _slot = slots.acquire().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            sure(0.9)
        }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Ok);
    assert_eq!(node.agent("a").await.unwrap()["limit"], 1000, "it is trusted at first");
    let refused = Arc::new(std::sync::Mutex::new(None));
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let (operator, refused) = (operator.clone(), refused.clone());
        callers.spawn(async move {
            loop {
                let status = ask(&operator, "a").await.status();
                if status.code() != Code::Ok {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    *refused.lock().unwrap() = Some(status);
                }
            }
        });
    }
    until("its limit is near its slots", || async {
        node.agent("a").await.filter(|shown| shown["limit"].as_u64().unwrap() <= 24).map(drop)
    })
    .await;
    let refused = until("a call is refused", || async { refused.lock().unwrap().clone() }).await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "PARALLAX-PROXY-112"));
    assert!(retry_in(&refused).is_some_and(|retry_in| !retry_in.is_zero()), "{refused:?}");
    callers.shutdown().await;
    node.shows("a", "in_flight", 0).await;
    assert_eq!(asked(&operator, &[(wire::CAPABILITY, "test")]).await.code(), Code::Ok);
}

#[tokio::test]
async fn when_a_whole_group_fails_half_of_it_is_asked_all_the_same() {
    let world = World::new().await;
    let (sick, calls) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let mut agents = Vec::new();
    for id in ["a", "b", "c", "d"] {
        let (sick, calls) = (sick.clone(), calls.clone());
        let script = move |_| {
            calls.fetch_add(1, SeqCst);
            let sick = sick.load(SeqCst);
            async move { if sick { error(13, "ill") } else { sure(0.9) } }
        };
        agents.push(agent(&world, id, script).await);
    }
    let node = world
        .node_with(|config| {
            config.breaker = Policy { first: Duration::from_secs(30), ..Policy::default() };
            config.balance.strategy = Strategy::RoundRobin;
        })
        .await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    for id in ["a", "b", "c", "d"] {
        for _ in 0..5 {
            assert_eq!(ask(&operator, id).await.status().message(), "ill");
        }
        assert_eq!(
            reason(&ask(&operator, id).await.status()),
            "PARALLAX-PROXY-105",
            "who names it is refused"
        );
    }
    let group: Metadata = &[(wire::CAPABILITY, "test")];
    let mut served = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let raw = call(&operator, ANALYZE, framed(b""), group).await;
        assert_eq!(raw.status().message(), "ill");
        let by = raw.trailers.get(wire::SERVED_BY).or(raw.headers.get(wire::SERVED_BY)).unwrap();
        served.insert(by.to_str().unwrap().to_owned());
    }
    assert_eq!(served.len(), 2, "half of four: {served:?}");
    assert_eq!(calls.load(SeqCst), 60);
    sick.store(false, SeqCst);
    assert_eq!(asked(&operator, group).await.code(), Code::Ok, "what works serves");
}

#[tokio::test]
async fn a_node_at_its_bound_sheds_what_matters_least() {
    let world = World::new().await;
    let (_agent, mut told) = hanging(&world, "slow").await;
    let node = world
        .node_with(|config| {
            config.max_in_flight = 10;
            config.limits = Limits { most: 100, ..Limits::default() };
        })
        .await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    let mut held = JoinSet::new();
    let mut hold = async |count: usize, priority: &'static str| {
        for _ in 0..count {
            let operator = operator.clone();
            held.spawn(async move {
                asked(&operator, &[(wire::AGENT, "slow"), (wire::PRIORITY, priority)]).await
            });
            hears(&mut told, "began").await;
        }
    };
    let refused = async |priority: &str| {
        let status = asked(&operator, &[(wire::AGENT, "slow"), (wire::PRIORITY, priority)]).await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::ResourceExhausted, "PARALLAX-PROXY-113")
        );
        assert!(retry_in(&status).is_some(), "{status:?}");
    };
    hold(7, "sheddable").await;
    refused("sheddable").await;
    hold(2, "default").await;
    refused("default").await;
    hold(1, "critical").await;
    refused("critical").await;
    let metrics = node.admin("/metrics").await.1;
    for priority in ["sheddable", "default", "critical"] {
        let line = format!("parallax_proxy_shed_total{{priority=\"{priority}\",bound=\"node\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
    held.shutdown().await;
    node.shows("slow", "in_flight", 0).await;
    let unknown = asked(&operator, &[(wire::AGENT, "slow"), (wire::PRIORITY, "urgent")]).await;
    assert_eq!(unknown.code(), Code::InvalidArgument);
    assert!(unknown.message().contains("give critical, default or sheddable"), "{}", unknown.message());
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_at_once() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { sure(0.9) }).await;
    let node = world.node_with(|config| config.max_connections = 1).await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Ok);
    let mut beyond = tokio::net::TcpStream::connect(node.plane.grpc_addr()).await.unwrap();
    let mut byte = [0; 1];
    let read = tokio::io::AsyncReadExt::read(&mut beyond, &mut byte);
    let closed = crate::world::within("it is closed", read).await;
    assert!(!matches!(closed, Ok(1..)), "{closed:?}");
    let metrics = node.admin("/metrics").await.1;
    assert!(metrics.contains("parallax_connections_refused_total 1"), "{metrics}");
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Ok, "the first one stays");
}
