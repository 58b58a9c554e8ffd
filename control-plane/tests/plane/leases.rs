//! Leases: what keeps an agent, what ends it, and what a restart leaves.

use std::time::Duration;

use parallax_proto::registry::{GetAgentRequest, RenewRequest};
use parallax_runtime::wire::duration_to_wire;
use tonic::Code;

use crate::world::{Registry, Setup, World, register, registration};

/// Paused time that does not run ahead while sockets and the store's thread work: a blocking task holds it.
struct Clock {
    _held: std::sync::mpsc::Sender<()>,
}

impl Clock {
    fn pause() -> Self {
        tokio::time::pause();
        let (held, holds) = std::sync::mpsc::channel();
        tokio::task::spawn_blocking(move || holds.recv());
        Self { _held: held }
    }

    async fn pass(&self, millis: u64) {
        tokio::time::advance(Duration::from_millis(millis)).await;
    }
}

async fn is_there(registry: &mut Registry, id: &str) -> bool {
    match registry.get_agent(GetAgentRequest { agent_id: id.to_owned() }).await {
        Ok(_) => true,
        Err(status) if status.code() == Code::NotFound => false,
        Err(status) => panic!("{status}"),
    }
}

#[tokio::test]
async fn an_agent_goes_with_its_lease_unless_it_renews() {
    let world = World::start().await;
    let mut registry = world.as_operator().await;
    let clock = Clock::pause();
    let with_ttl = |id: &str, seconds| {
        let mut request = registration(id, &[]);
        request.agent.as_mut().unwrap().ttl = Some(duration_to_wire(Duration::from_secs(seconds)));
        request
    };
    let lease = register(&mut registry, with_ttl("renewing", 3)).await;
    register(&mut registry, with_ttl("silent", 3)).await;
    register(&mut registry, with_ttl("patient", 10)).await;

    clock.pass(2_900).await;
    assert!(is_there(&mut registry, "silent").await, "not before its time");
    let renew = RenewRequest { lease_id: lease.clone(), ttl: None };
    registry.renew(renew.clone()).await.unwrap();
    clock.pass(200).await;
    // The lease is gone at its time, and the agent as soon as that is on disk.
    for tries in 0.. {
        if !is_there(&mut registry, "silent").await {
            break;
        }
        assert!(tries < 10_000, "it outlives its lease");
    }
    assert!(is_there(&mut registry, "renewing").await && is_there(&mut registry, "patient").await);

    clock.pass(3_000).await;
    assert_eq!(registry.renew(renew).await.unwrap_err().code(), Code::NotFound, "too late");
    assert!(is_there(&mut registry, "patient").await);
}

#[tokio::test]
async fn a_lease_survives_a_restart() {
    let world = World::start_with(Setup { on_disk: true, ..Setup::default() }).await;
    let mut registry = world.as_agent("a").await;
    let lease_id = register(&mut registry, registration("a", &["tell"])).await;
    let get = GetAgentRequest { agent_id: "a".to_owned() };
    let before = registry.get_agent(get.clone()).await.unwrap().into_inner();
    drop(registry);

    let world = world.restart().await;
    let mut registry = world.as_agent("a").await;
    assert_eq!(registry.get_agent(get).await.unwrap().into_inner(), before);
    let renewed = registry.renew(RenewRequest { lease_id: lease_id.clone(), ttl: None }).await.unwrap();
    assert_eq!(renewed.into_inner().lease_id, lease_id);
}
