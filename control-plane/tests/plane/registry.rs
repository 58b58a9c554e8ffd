//! `parallax.registry.Registry`: who may register what, and what is then listed.

use parallax_proto::registry::{
    AgentRegistration, GetAgentRequest, ListAgentsRequest, RenewRequest, agent_registration::Metadata,
};
use parallax_security::Kind;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::world::{Registry, World, register, registration};

fn by_id(id: &str) -> AgentRegistration {
    AgentRegistration { id: id.to_owned(), ..AgentRegistration::default() }
}

async fn get(registry: &mut Registry, id: &str) -> Result<AgentRegistration, Status> {
    Ok(registry.get_agent(GetAgentRequest { agent_id: id.to_owned() }).await?.into_inner())
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().expect("every error carries its reason").reason.clone()
}

#[tokio::test]
async fn an_agent_is_kept_as_it_described_itself() {
    let world = World::start().await;
    let mut registry = world.as_agent("a").await;
    let mut request = registration("a", &["tell", "translate"]);
    let agent = request.agent.as_mut().unwrap();
    agent.name = "Agent A".to_owned();
    agent.metadata = Some(Metadata {
        version: "1.2.3".to_owned(),
        region: "eu".to_owned(),
        labels: [("team".to_owned(), "x".to_owned())].into(),
        default_confidence: 0.25,
    });
    let sent = agent.clone();
    register(&mut registry, request).await;
    let mut kept = get(&mut registry, "a").await.unwrap();
    assert!(kept.registered_at.take().unwrap().seconds > 1_700_000_000, "the plane's clock counts");
    assert_eq!(kept.ttl.take().unwrap().seconds, 60, "the default");
    assert_eq!(kept, sent);
    let status = get(&mut registry, "b").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "PARALLAX-REGISTRY-002"));
    assert!(status.message().contains("\"b\""), "{status}");
}

#[tokio::test]
async fn what_cannot_stand_is_named() {
    let world = World::start().await;
    let mut registry = world.as_operator().await;
    let mut refuse = async |change: fn(&mut AgentRegistration)| {
        let mut request = registration("a", &["tell"]);
        change(request.agent.as_mut().unwrap());
        let status = registry.register(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::InvalidArgument, "PARALLAX-REGISTRY-001")
        );
        status.message().to_owned()
    };
    assert_eq!(refuse(|a| a.id.clear()).await, "agent.id: is empty");
    assert!(refuse(|a| a.id = "a/b".into()).await.contains("agent.id: \"a/b\" contains '/'"));
    assert!(refuse(|a| a.endpoint = "localhost".into()).await.starts_with("agent.endpoint: \"localhost\""));
    assert!(refuse(|a| a.endpoint = "localhost:0".into()).await.contains("names port 0"));
    assert!(refuse(|a| a.capabilities.push(String::new())).await.starts_with("agent.capabilities"));
    assert_eq!(registry.list_agents(ListAgentsRequest::default()).await.unwrap().into_inner().total_count, 0);
}

#[tokio::test]
async fn registering_again_replaces_and_ends_the_old_lease() {
    let world = World::start().await;
    let mut registry = world.as_agent("a").await;
    let old = register(&mut registry, registration("a", &["tell"])).await;
    let mut again = registration("a", &["translate"]);
    again.agent.as_mut().unwrap().endpoint = "127.0.0.1:7002".to_owned();
    let new = register(&mut registry, again).await;
    assert_ne!(old, new);
    let kept = get(&mut registry, "a").await.unwrap();
    assert_eq!(
        (kept.endpoint.as_str(), &kept.capabilities[..]),
        ("127.0.0.1:7002", &["translate".to_owned()][..])
    );

    let renew = |lease_id: &str| RenewRequest { lease_id: lease_id.to_owned(), ttl: None };
    let status = registry.renew(renew(&old)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "PARALLAX-REGISTRY-003"));
    assert!(registry.renew(renew(&new)).await.unwrap().into_inner().success);
    let wish = parallax_runtime::wire::duration_to_wire(std::time::Duration::from_secs(300));
    let longer = RenewRequest { ttl: Some(wish), ..renew(&new) };
    assert!(registry.renew(longer).await.unwrap().into_inner().message.contains("300 s"));
    assert!(registry.renew(renew(&new)).await.unwrap().into_inner().message.contains("300 s"), "it stays so");
}

#[tokio::test]
async fn unregistering_ends_agent_and_lease() {
    let world = World::start().await;
    let mut registry = world.as_agent("a").await;
    let lease_id = register(&mut registry, registration("a", &[])).await;
    assert!(registry.unregister(by_id("a")).await.unwrap().into_inner().success);
    assert_eq!(get(&mut registry, "a").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(registry.unregister(by_id("a")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        registry.renew(RenewRequest { lease_id, ttl: None }).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn an_agent_acts_for_itself_only_and_an_operator_for_all() {
    let world = World::start().await;
    let (mut a, mut b, mut operator) =
        (world.as_agent("a").await, world.as_agent("b").await, world.as_operator().await);
    let own = register(&mut a, registration("a", &[])).await;
    let lease_id = register(&mut b, registration("b", &[])).await;

    let status = a.register(registration("b", &[])).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "PARALLAX-REGISTRY-004"));
    assert!(status.message().contains("spiffe://parallax/default/agent/a"), "{status}");
    assert_eq!(a.unregister(by_id("b")).await.unwrap_err().code(), Code::PermissionDenied);
    let renew = |lease_id: &str| RenewRequest { lease_id: lease_id.to_owned(), ttl: None };
    assert_eq!(a.renew(renew(&lease_id)).await.unwrap_err().code(), Code::PermissionDenied);
    // Nor with a lease of another under its own name.
    let (mine, theirs) = (own.rsplit('/').next().unwrap(), lease_id.rsplit('/').next().unwrap());
    assert_eq!(a.renew(renew(&own.replace(mine, theirs))).await.unwrap_err().code(), Code::NotFound);

    assert!(operator.renew(renew(&lease_id)).await.unwrap().into_inner().success);
    assert!(operator.unregister(by_id("b")).await.unwrap().into_inner().success);

    let mut node = Registry::new(world.dial(Kind::DataPlane, "node").await);
    let status = node.register(registration("node", &[])).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "PARALLAX-ACCESS-002"));
    assert_eq!(get(&mut node, "a").await.unwrap().id, "a");
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let world = World::start().await;
    let mut registry = world.as_operator().await;
    // Not in the order in which they are listed.
    for number in [3, 1, 5, 2, 4] {
        let capabilities: &[&str] = if number % 2 == 0 { &["tell", "even"] } else { &["tell"] };
        let mut request = registration(&format!("a{number}"), capabilities);
        let labels = [("half".to_owned(), if number < 3 { "low" } else { "high" }.to_owned())];
        request.agent.as_mut().unwrap().metadata =
            Some(Metadata { labels: labels.into(), ..Metadata::default() });
        register(&mut registry, request).await;
    }
    let mut list = async |capabilities: &[&str], half: Option<&str>, limit: i32, token: &str| {
        let request = ListAgentsRequest {
            capabilities: capabilities.iter().map(|&c| c.to_owned()).collect(),
            labels: half.map(|half| ("half".to_owned(), half.to_owned())).into_iter().collect(),
            limit,
            continuation_token: token.to_owned(),
        };
        let page = registry.list_agents(request).await?.into_inner();
        let ids: Vec<_> = page.agents.into_iter().map(|agent| agent.id).collect();
        Ok::<_, Status>((ids.join(" "), page.next_continuation_token, page.total_count))
    };
    let none = String::new;
    let all = list(&[], None, 0, "").await.unwrap();
    assert_eq!(all, ("a1 a2 a3 a4 a5".to_owned(), none(), 5));
    assert_eq!(list(&["even", "tell"], None, 0, "").await.unwrap(), ("a2 a4".to_owned(), none(), 2));
    assert_eq!(list(&["even"], Some("low"), 0, "").await.unwrap(), ("a2".to_owned(), none(), 1));
    assert_eq!(list(&["odd"], None, 0, "").await.unwrap(), (none(), none(), 0));

    let (first, token, total) = list(&["tell"], None, 2, "").await.unwrap();
    assert_eq!((first.as_str(), total, token.is_empty()), ("a1 a2", 5, false));
    let (second, token, _) = list(&["tell"], None, 2, &token).await.unwrap();
    let (third, token, total) = list(&["tell"], None, 2, &token).await.unwrap();
    assert_eq!((second.as_str(), third.as_str(), token.as_str(), total), ("a3 a4", "a5", "", 5));
    let status = list(&[], None, -1, "").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "limit: -1 is negative; 0 means 1000")
    );
}
