//! Following the control plane, and doing without it.

use parallax_proto::controlplane::v1::Transport;
use tonic::Code;

use crate::{
    agent::{agent, sure},
    proxy::ask,
    world::{ControlPlane, World, record, until, within},
};

#[tokio::test]
async fn it_serves_on_while_the_control_plane_is_away_and_follows_again() {
    let world = World::new().await;
    let first = agent(&world, "first", |_| async { sure(0.5) }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    assert_eq!(world.control_plane.joined()[0].advertise, node.plane.grpc_addr().to_string());
    world.control_plane.stop().await;
    let connected = |n: u8| {
        let line = format!("parallax_directory_connected {n}\n");
        let node = &node;
        async move { node.admin("/metrics").await.1.contains(&line).then_some(()) }
    };
    until("the loss is noticed", || connected(0)).await;
    assert_eq!(ask(&operator, "first").await.status().code(), Code::Ok);
    assert!(node.plane.readiness().is_ready());

    let _second = agent(&world, "second", |_| async { sure(0.5) }).await;
    world.control_plane.remove("first");
    world.control_plane.start(&world).await;
    until("the new agent is known", || async { node.agent("second").await.map(drop) }).await;
    assert_eq!(ask(&operator, "second").await.status().code(), Code::Ok);
    assert_eq!(ask(&operator, "first").await.status().code(), Code::NotFound);
    connected(1).await.unwrap();
    drop(first);
}

#[tokio::test]
async fn a_stream_that_has_gone_silent_is_given_up() {
    let world = World::new().await;
    world.control_plane.promise_heartbeats(20);
    let node = world.node().await;
    until("it joins again and again", || async { (world.control_plane.joined().len() >= 3).then_some(()) })
        .await;
    assert!(node.plane.readiness().is_ready());
}

#[tokio::test]
async fn of_several_replicas_the_one_that_is_furthest_counts() {
    let world = World::new().await;
    let (ahead, behind) = (&world.control_plane, ControlPlane::new());
    behind.start(&world).await;
    let left = agent(&world, "left", |_| async { sure(0.5) }).await;
    let here = agent(&world, "here", |_| async { sure(0.5) }).await;
    // One has heard that an agent left, the other still has it, at an earlier revision.
    behind.put(record("left", left.addr, Transport::Mtls));
    ahead.remove("left");
    let both = vec![ahead.addr().to_string(), behind.addr().to_string()];
    let node = world.node_with(|config| config.control_planes = both).await;
    until("it has joined both", || async {
        (ahead.joined().len() + behind.joined().len() == 2).then_some(())
    })
    .await;
    let operator = world.operator(&node).await;
    until("it knows", || async { (ask(&operator, "here").await.status().code() == Code::Ok).then_some(()) })
        .await;
    until("who is ahead counts", || async {
        (ask(&operator, "left").await.status().code() == Code::NotFound).then_some(())
    })
    .await;
    // What is late changes nothing; what is new counts, from whomever it comes.
    behind.put(record("left", left.addr, Transport::Mtls));
    ahead.stop().await;
    for _ in 0..3 {
        behind.put(record("new", here.addr, Transport::Plaintext));
    }
    until("it hears of a new one", || async { node.agent("new").await.map(drop) }).await;
    assert_eq!(ask(&operator, "here").await.status().code(), Code::Ok);
}

#[tokio::test]
async fn it_is_not_ready_before_the_first_snapshot_and_says_so() {
    let world = World::new().await;
    world.control_plane.silent(true);
    let node = world.node_with(|config| config.first_heartbeat = std::time::Duration::from_millis(50)).await;
    let operator = world.operator(&node).await;
    let early = ask(&operator, "a").await.status();
    assert_eq!(early.code(), Code::Unavailable);
    assert!(early.message().contains("joining the control plane at 127.0.0.1:"), "{}", early.message());
    assert_eq!(node.admin("/readyz").await, (503, r#"{"ready":false,"pending":["directory"]}"#.to_owned()));
    assert_eq!(node.admin("/livez").await.0, 200);
    let mut health = tonic_health::pb::health_client::HealthClient::new(operator.clone());
    let check = tonic_health::pb::HealthCheckRequest::default();
    let serving = health.check(check.clone()).await.unwrap().into_inner().status();
    assert_eq!(serving.as_str_name(), "NOT_SERVING");

    world.control_plane.silent(false);
    within("it becomes ready", node.plane.readiness().ready()).await;
    assert_eq!(node.admin("/readyz").await.0, 200);
    until("it is healthy", || {
        let (mut health, check) = (health.clone(), check.clone());
        async move {
            let serving = health.check(check).await.unwrap().into_inner().status();
            (serving.as_str_name() == "SERVING").then_some(())
        }
    })
    .await;
}

#[tokio::test]
async fn changes_arrive_one_by_one() {
    let world = World::new().await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let agent = agent(&world, "a", |_| async { sure(0.5) }).await;
    until("it is known", || async { (ask(&operator, "a").await.status().code() == Code::Ok).then_some(()) })
        .await;
    // It moves to where nobody is, and back.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    world.control_plane.put(record("a", nobody, Transport::Mtls));
    until("it has moved", || async {
        (ask(&operator, "a").await.status().code() == Code::Unavailable).then_some(())
    })
    .await;
    world.control_plane.put(record("a", agent.addr, Transport::Mtls));
    until("it is back", || async { (ask(&operator, "a").await.status().code() == Code::Ok).then_some(()) })
        .await;
    world.control_plane.remove("a");
    until("it has left", || async {
        (ask(&operator, "a").await.status().code() == Code::NotFound).then_some(())
    })
    .await;
}
