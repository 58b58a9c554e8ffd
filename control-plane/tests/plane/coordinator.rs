//! `parallax.coordinator.Coordinator` where nobody can be asked; with agents it is tested on whole clusters.

use parallax_proto::coordinator::{
    CoordinateRequest,
    coordinate_request::{Constraints, Strategy},
    coordinator_client::CoordinatorClient,
};
use parallax_security::Kind;
use tonic::Code;

use crate::world::{Setup, World, register, registration, soon};

#[tokio::test]
async fn a_task_that_nobody_answered_has_no_answer() {
    let patterns = vec![("ask-one", "agents[0].analyze(\"what?\", {})")];
    let world = World::start_with(Setup { patterns, ..Setup::default() }).await;
    register(&mut world.as_agent("one").await, registration("one", &[])).await;
    let client = CoordinatorClient::new(world.dial(Kind::Operator, "someone").await);
    let ask = async |strategy: Strategy| {
        let request = CoordinateRequest {
            strategy: strategy.into(),
            custom_pattern: if strategy == Strategy::Custom { "ask-one".to_owned() } else { String::new() },
            constraints: Some(Constraints { timeout_ms: 1500, ..Constraints::default() }),
            ..CoordinateRequest::default()
        };
        (strategy, soon(client.clone().coordinate(request)).await.map(tonic::Response::into_inner))
    };
    let strategies = [
        Strategy::Consensus,
        Strategy::Epistemic,
        Strategy::Cascade,
        Strategy::UncertaintyRoute,
        Strategy::Custom,
    ];
    for (strategy, answer) in futures::future::join_all(strategies.map(ask)).await {
        let status = answer.expect_err(strategy.as_str_name());
        assert_eq!(status.code(), Code::Unavailable, "no data-plane node: {strategy:?} {status:?}");
        assert!(status.message().contains("no data-plane node has joined"), "{strategy:?} {status:?}");
    }
    world.stop().await;
}
