//! Starting and stopping.

use std::{sync::Arc, time::Duration};

use parallax_data_plane::{Config, DataPlane, Policy};
use parallax_runtime::{
    env::System,
    error::{Code as ErrorCode, Coded},
    lifecycle::Lifecycle,
};
use parallax_security::Kind;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    agent::{agent, error, sure},
    proxy::ask,
    world::{World, until},
};

#[tokio::test]
async fn a_stop_loses_no_call_and_no_sample() {
    let world = World::new().await;
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (barrier, beginning) = (gate.clone(), begun.clone());
    let _agent = agent(&world, "a", move |_| {
        let (barrier, beginning) = (barrier.clone(), beginning.clone());
        async move {
            beginning.add_permits(1);
            barrier.acquire().await.unwrap().forget();
            sure(0.5)
        }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let call = tokio::spawn(async move { ask(&operator, "a").await });
    begun.acquire().await.unwrap().forget();
    node.life.stop();
    until("the port is closed", || async { TcpStream::connect(node.plane.grpc_addr()).await.err() }).await;
    assert_eq!(node.admin("/readyz").await, (503, r#"{"ready":false,"pending":["stopping"]}"#.to_owned()));
    gate.add_permits(1);
    assert_eq!(call.await.unwrap().status().code(), Code::Ok);
    assert!(node.life.drain(Duration::from_secs(20)).await, "everything has ended");
    assert_eq!(world.samples("a", 1).await.len(), 1, "stored before the end");
}

#[tokio::test]
async fn an_idle_node_stops_at_once_with_callers_connected() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { sure(0.5) }).await;
    let node = world.node_with(|config| config.drain = Duration::from_secs(600)).await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Ok);
    let mut watch =
        HealthClient::new(operator).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let mut status = async || watch.message().await.unwrap().unwrap().status();
    assert_eq!(status().await, ServingStatus::Serving);
    let block = node.plane.readiness().block("anything");
    assert_eq!(status().await, ServingStatus::NotServing);
    drop(block);
    assert_eq!(status().await, ServingStatus::Serving);
    // Far less than the drain's deadline.
    assert!(node.life.drain(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn workers_share_one_port() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { sure(0.5) }).await;
    let node = world.node_with(|config| config.workers = 3).await;
    node.plane.readiness().ready().await;
    // Each connection lands on one of three: all on the same one once in 3¹⁵.
    for _ in 0..16 {
        let caller = world.caller(&node, "default", Kind::Operator).await;
        assert_eq!(ask(&caller, "a").await.status().code(), Code::Ok);
    }
    let connections = node.agent("a").await.unwrap()["connections"].as_u64().unwrap();
    assert!((2..=3).contains(&connections), "each worker has its own: {connections}");
    assert!(node.life.drain(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_whoever_has_it() {
    let world = World::new().await;
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = world.node_with(|config| config.workers = 2).await;
    for taken in [other.local_addr().unwrap(), node.plane.grpc_addr()] {
        let config =
            Config { grpc: taken, admin: ([127, 0, 0, 1], 0).into(), workers: 2, ..Config::default() };
        let tls = world.tls("default", Kind::DataPlane, "node");
        let bound =
            DataPlane::bind(config, tls, System::shared(), world.store.clone(), &Lifecycle::new()).await;
        let error = bound.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "data plane: {taken} is taken; stop what listens there, or give the gRPC port another address"
            )
        );
        assert_eq!((error.code(), error.reason()), (ErrorCode::AlreadyExists, "PARALLAX-PROXY-001"));
    }
}

#[tokio::test]
async fn a_setting_that_cannot_be_is_named() {
    let world = World::new().await;
    let config = Config { workers: 0, ..Config::default() };
    let tls = world.tls("default", Kind::DataPlane, "node");
    let bound = DataPlane::bind(config, tls, System::shared(), world.store.clone(), &Lifecycle::new()).await;
    assert!(bound.unwrap_err().to_string().contains("the setting data_plane.workers is 0"));
}

#[tokio::test]
async fn settings_change_while_calls_go_on() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { error(13, "broken") }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Internal);
    let failures =
        |failures| move |config: Config| Config { breaker: Policy { failures, ..config.breaker }, ..config };
    assert!(node.plane.reconfigure(failures(0)).unwrap_err().to_string().contains("breaker.failures is 0"));
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Internal, "nothing has changed");
    node.plane.reconfigure(failures(3)).unwrap();
    assert_eq!(ask(&operator, "a").await.status().code(), Code::Internal);
    assert_eq!(
        ask(&operator, "a").await.status().code(),
        Code::Unavailable,
        "the third has opened the breaker"
    );
}
