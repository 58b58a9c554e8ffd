//! Tenants are apart: who has a certificate of one sees and touches nothing of another.

use parallax_proto::{
    patterns::{
        ExecutePatternRequest, execute_pattern_response, pattern_service_client::PatternServiceClient,
    },
    registry::{
        AgentRegistration, GetAgentRequest, ListAgentsRequest, RenewRequest, WatchRequest,
        registry_client::RegistryClient,
    },
};
use parallax_sdk::{Client, Task, TlsOptions, To};
use parallax_security::Kind;
use serde_json::json;
use tonic::{Code, transport::Channel};

use crate::{
    agents::{registration, says},
    world::{World, join, soon},
};

/// A world with the agent "ours" of the default tenant, and "theirs" of the tenant "other".
async fn two_tenants() -> World {
    let world = World::start().await;
    world.agent(says("ours", "mine", 0.9).0).await;
    let files = world.files("other", Kind::Agent, "theirs");
    join(&world.grpc(), says("theirs", "yours", 0.8).0, TlsOptions::Files(files)).await;
    world
}

async fn registry(world: &World, tenant: &str) -> RegistryClient<Channel> {
    RegistryClient::new(world.dial(tenant, Kind::Operator, "someone").await)
}

async fn ids(registry: &mut RegistryClient<Channel>) -> Vec<String> {
    let page = registry.list_agents(ListAgentsRequest::default()).await.unwrap().into_inner();
    assert_eq!(page.total_count as usize, page.agents.len());
    page.agents.into_iter().map(|agent| agent.id).collect()
}

#[tokio::test]
async fn an_operator_sees_the_agents_of_its_tenant_only() {
    let world = two_tenants().await;
    let (mut ours, mut theirs) = (registry(&world, "default").await, registry(&world, "other").await);
    assert_eq!(
        (ids(&mut ours).await, ids(&mut theirs).await),
        (vec!["ours".to_owned()], vec!["theirs".to_owned()])
    );
    let get = GetAgentRequest { agent_id: "ours".to_owned() };
    assert_eq!(theirs.get_agent(get).await.unwrap_err().code(), Code::NotFound);

    let everything = WatchRequest { include_initial: true, ..WatchRequest::default() };
    let mut watch = theirs.watch(everything).await.unwrap().into_inner();
    let mut next = async || soon(watch.message()).await.unwrap().unwrap().agent.unwrap().id;
    assert_eq!(next().await, "theirs");
    // What happens to us comes first, and is no event of theirs.
    ours.register(registration("ours-too", "127.0.0.1:1")).await.unwrap();
    theirs.register(registration("theirs-too", "127.0.0.1:1")).await.unwrap();
    assert_eq!(next().await, "theirs-too");

    let listed = world.get_as("other", "/api/agents").await.1;
    assert_eq!((&listed["count"], &listed["agents"][0]["tenant"]), (&json!(2), &json!("other")));
    assert_eq!(world.get_as("other", "/api/agents/ours").await.0, 404);
    drop(watch);
    world.stop().await;
}

#[tokio::test]
async fn an_operator_touches_the_agents_of_its_tenant_only() {
    let world = two_tenants().await;
    let (mut ours, mut theirs) = (registry(&world, "default").await, registry(&world, "other").await);
    let register = registration("leased", "127.0.0.1:1");
    let lease_id = ours.register(register).await.unwrap().into_inner().lease_id;

    let renew = RenewRequest { lease_id: lease_id.clone(), ttl: None };
    assert_eq!(theirs.renew(renew.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    let moved = RenewRequest { lease_id: lease_id.replace("default/", "other/"), ttl: None };
    assert_eq!(theirs.renew(moved).await.unwrap_err().code(), Code::NotFound);
    let unregister = AgentRegistration { id: "leased".to_owned(), ..AgentRegistration::default() };
    assert_eq!(theirs.unregister(unregister.clone()).await.unwrap_err().code(), Code::NotFound);

    // The same id in both is two agents.
    theirs.register(registration("leased", "127.0.0.1:2")).await.unwrap();
    theirs.unregister(unregister).await.unwrap();
    assert_eq!(ids(&mut ours).await, ["leased", "ours"]);
    ours.renew(renew).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn runs_ask_and_show_one_tenant_only() {
    let world = two_tenants().await;
    let ours = world.run("consensus-builder", json!({})).await;
    assert_eq!((&ours["result"]["decision"], &ours["result"]["asked"]), (&json!("mine"), &json!(1)));

    let mut patterns = PatternServiceClient::new(world.dial("other", Kind::Operator, "someone").await);
    let request = ExecutePatternRequest {
        pattern_name: "consensus-builder".to_owned(),
        ..ExecutePatternRequest::default()
    };
    let theirs = soon(patterns.execute_pattern(request)).await.unwrap().into_inner();
    assert_eq!(theirs.status(), execute_pattern_response::Status::Success, "{}", theirs.error_message);
    assert_eq!(theirs.agent_results.iter().map(|r| &*r.agent_id).collect::<Vec<_>>(), ["theirs"]);

    let ours = ours["id"].as_str().unwrap();
    for (tenant, own, foreign) in
        [("default", ours, &*theirs.execution_id), ("other", &theirs.execution_id, ours)]
    {
        let listed = world.get_as(tenant, "/api/executions").await.1;
        assert_eq!((&listed["total"], &listed["executions"][0]["id"]), (&json!(1), &json!(own)));
        assert_eq!(world.get_as(tenant, &format!("/api/executions/{own}")).await.0, 200);
        let (status, problem) = world.get_as(tenant, &format!("/api/executions/{foreign}")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (404, &json!("PARALLAX-RUN-001")));
    }
    world.stop().await;
}

#[tokio::test]
async fn the_data_plane_reaches_the_agents_of_the_callers_tenant_only() {
    let world = two_tenants().await;
    let tls = TlsOptions::Files(world.files("other", Kind::Operator, "someone"));
    let client = Client::new(world.grpc(), world.data_plane(), &tls).unwrap();
    let ask = async |to: To| soon(client.ask(&to, Task::new("tell", json!({})))).await;
    assert_eq!(ask(To::Agent("theirs".to_owned())).await.unwrap().answer.value, "yours");
    assert_eq!(ask(To::Capability("tell".to_owned())).await.unwrap().agent, "theirs");
    let error = ask(To::Agent("ours".to_owned())).await.unwrap_err().to_string();
    assert!(error.contains("no agent \"ours\" is registered in tenant \"other\""), "{error}");
    drop(client);
    world.stop().await;
}
