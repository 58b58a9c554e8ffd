//! `Registry.Watch` and `Directory.Follow`: who follows the registry, and what they are told.

use parallax_proto::{
    controlplane::v1::{FollowRequest, directory_client::DirectoryClient, directory_update::Update},
    registry::{AgentRegistration, WatchEvent, WatchRequest, watch_event::Type},
};
use parallax_security::Kind;
use serde_json::json;
use tonic::{Code, Streaming};

use crate::world::{Registry, Setup, World, register, registration, soon};

/// A watch, whose events are read as kind and id.
struct Watch(Streaming<WatchEvent>);

impl Watch {
    async fn open(registry: &mut Registry, capabilities: &[&str], include_initial: bool) -> Self {
        let capabilities = capabilities.iter().map(|&c| c.to_owned()).collect();
        let request = WatchRequest { capabilities, include_initial };
        Self(registry.watch(request).await.unwrap().into_inner())
    }

    async fn next(&mut self) -> (Type, String) {
        let event = soon(self.0.message()).await.unwrap().unwrap();
        assert!(event.timestamp.is_some());
        (event.r#type(), event.agent.unwrap().id)
    }
}

fn event(kind: Type, id: &str) -> (Type, String) {
    (kind, id.to_owned())
}

async fn unregister(registry: &mut Registry, id: &str) {
    let agent = AgentRegistration { id: id.to_owned(), ..AgentRegistration::default() };
    registry.unregister(agent).await.unwrap();
}

#[tokio::test]
async fn a_watch_tells_of_every_change_from_its_beginning() {
    let world = World::start().await;
    let mut registry = world.as_operator().await;
    register(&mut registry, registration("before", &["tell"])).await;
    let mut all = Watch::open(&mut registry, &[], true).await;
    let mut new = Watch::open(&mut registry, &[], false).await;
    assert_eq!(all.next().await, event(Type::Added, "before"));

    register(&mut registry, registration("after", &["tell"])).await;
    register(&mut registry, registration("before", &["translate"])).await;
    unregister(&mut registry, "after").await;
    for watch in [&mut all, &mut new] {
        assert_eq!(watch.next().await, event(Type::Added, "after"));
        // Known to the watch, whether or not it was told of it at first.
        assert_eq!(watch.next().await, event(Type::Modified, "before"));
        assert_eq!(watch.next().await, event(Type::Deleted, "after"));
    }
}

#[tokio::test]
async fn a_watch_of_a_capability_tells_who_gains_and_who_loses_it() {
    let world = World::start().await;
    let mut registry = world.as_operator().await;
    register(&mut registry, registration("teller", &["tell"])).await;
    register(&mut registry, registration("other", &["translate"])).await;
    let mut tellers = Watch::open(&mut registry, &["tell"], true).await;
    assert_eq!(tellers.next().await, event(Type::Added, "teller"));

    register(&mut registry, registration("other", &["translate", "tell"])).await;
    assert_eq!(tellers.next().await, event(Type::Added, "other"));
    register(&mut registry, registration("teller", &[])).await;
    assert_eq!(tellers.next().await, event(Type::Deleted, "teller"));
    unregister(&mut registry, "teller").await;
    register(&mut registry, registration("last", &["tell"])).await;
    assert_eq!(tellers.next().await, event(Type::Added, "last"));
}

#[tokio::test]
async fn a_node_that_follows_is_a_member_as_long_as_it_does() {
    let world = World::start_with(Setup { nodes_wanted: 1, ..Setup::default() }).await;
    let mut registry = world.as_operator().await;
    register(&mut registry, registration("before", &["tell"])).await;
    let follow =
        |node_id: &str| FollowRequest { node_id: node_id.to_owned(), advertise: "127.0.0.1:7100".to_owned() };
    let mut directory = DirectoryClient::new(world.dial(Kind::DataPlane, "node").await);
    let foreign = directory.follow(follow("another")).await.unwrap_err();
    assert_eq!(foreign.code(), Code::InvalidArgument);
    let mut stranger = DirectoryClient::new(world.dial(Kind::Agent, "node").await);
    assert_eq!(stranger.follow(follow("node")).await.unwrap_err().code(), Code::PermissionDenied);
    assert!(!world.plane.readiness.is_ready());

    let mut updates = directory.follow(follow("node")).await.unwrap().into_inner();
    // Heartbeats tell nothing new.
    let mut next = async || loop {
        match soon(updates.message()).await.unwrap().unwrap().update.unwrap() {
            Update::Heartbeat(_) => {}
            update => break update,
        }
    };
    let Update::Snapshot(snapshot) = next().await else { panic!("a snapshot comes first") };
    assert_eq!(snapshot.agents[0].registration.as_ref().unwrap().id, "before");
    soon(world.plane.readiness.ready()).await;
    assert_eq!(
        world.get("/api/nodes").await.json()["nodes"],
        json!([{"id": "node", "address": "127.0.0.1:7100"}])
    );
    register(&mut registry, registration("after", &[])).await;
    unregister(&mut registry, "before").await;
    assert!(
        matches!(next().await, Update::Upsert(record) if record.registration.as_ref().unwrap().id == "after")
    );
    assert!(
        matches!(next().await, Update::Remove(key) if key.agent_id == "before" && key.tenant == "default")
    );

    drop(updates);
    soon(async { while world.get("/api/nodes").await.json()["count"] != 0 {} }).await;
}

#[tokio::test]
async fn a_watch_holds_up_no_shutdown() {
    let world = World::start().await;
    let mut registry = world.as_operator().await;
    register(&mut registry, registration("one", &[])).await;
    let mut watch = Watch::open(&mut registry, &[], true).await;
    assert_eq!(watch.next().await, event(Type::Added, "one"));
    world.stop().await;
    assert!(soon(watch.0.message()).await.unwrap().is_none());
}
