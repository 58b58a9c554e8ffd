//! What clients and settings tell the data plane, from the outside.

use parallax_data_plane::Strategy;
use parallax_sdk::{AgentError, Answer, Client, Error, Task, TlsOptions, To, agent, json};

use crate::world::{World, soon};

fn client(world: &World) -> Client {
    let tls = TlsOptions::Local { data_dir: world.data_dir().into() };
    Client::new(world.grpc(), world.data_plane(), &tls).unwrap()
}

#[tokio::test]
async fn a_task_that_may_be_asked_twice_is_answered_in_spite_of_a_sick_agent() {
    let world = World::start_with(|settings| {
        settings.data_plane.balance.strategy = Strategy::RoundRobin;
        settings.data_plane.breaker.failures = 1000;
    })
    .await;
    let sick =
        agent("sick").capability("sum").answer(|_: Task| async { Err::<Answer, _>(AgentError::new("no")) });
    let well = agent("well").capability("sum").answer(|_: Task| async { Answer::new(3, 0.9) });
    let _agents = (world.agent(sick).await, world.agent(well).await);
    let (client, sum) = (client(&world), To::Capability("sum".to_owned()));
    // The directory follows the registry: both are known when both have been asked.
    let mut failed = 0;
    while failed == 0 {
        failed += usize::from(soon(client.ask(&sum, Task::new("sum", json!({})))).await.is_err());
    }
    for _ in 0..4 {
        let reply = soon(client.ask(&sum, Task::new("sum", json!({})).idempotent())).await.unwrap();
        assert_eq!((reply.agent.as_str(), reply.answer.value), ("well", json!(3)));
    }
    let refused = soon(client.ask(&sum, Task::new("sum", json!({})).strategy("best"))).await.unwrap_err();
    let Error::Call { status, .. } = refused else { panic!("{refused}") };
    assert!(status.message().starts_with("x-parallax-strategy: \"best\" is no strategy"), "{status}");
    world.stop().await;
}
