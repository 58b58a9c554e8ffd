//! Clients and agents that exist today: plaintext from loopback, and what they leave out.

use std::sync::Arc;

use parallax_proto::{
    confidence::confidence_agent_server::ConfidenceAgentServer,
    patterns::{
        ExecutePatternRequest, execute_pattern_response, pattern_service_client::PatternServiceClient,
    },
    registry::{
        AgentRegistration, GetAgentRequest, ListAgentsRequest, RegisterRequest, RenewRequest,
        registry_client::RegistryClient,
    },
};
use parallax_runtime::wire::{struct_from_any, struct_to_json};
use parallax_security::Kind;
use serde_json::{Value as Json, json};
use tokio::{net::TcpListener, sync::Mutex};
use tonic::{
    Code, Status,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    agents::{Scripted, registration, result, says},
    world::{World, channel, soon},
};

#[tokio::test]
async fn a_plaintext_agent_registers_renews_and_is_called_back_in_plaintext() {
    let world = World::start().await;
    // A server that knows nothing of Parallax but the contract.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let asking = asked.clone();
    let agent = ConfidenceAgentServer::new(Scripted(move |request| {
        let asking = asking.clone();
        async move {
            asking.lock().await.push(request);
            Ok(result("\"de\"", 0.75))
        }
    }));
    tokio::spawn(Server::builder().add_service(agent).serve_with_incoming(TcpIncoming::from(listener)));

    let plaintext = world.dial_plain().await;
    let mut registry = RegistryClient::new(plaintext.clone());
    let request = registration("old", format!("localhost:{port}"));
    assert_eq!(request.agent.as_ref().unwrap().ttl, None);
    let response = registry.register(request).await.unwrap().into_inner();
    assert!(response.success && !response.lease_id.is_empty(), "{response:?}");
    let renewed =
        registry.renew(RenewRequest { lease_id: response.lease_id.clone(), ttl: None }).await.unwrap();
    assert!(renewed.into_inner().success);
    let listed = registry.list_agents(ListAgentsRequest::default()).await.unwrap().into_inner();
    let [agent] = &listed.agents[..] else { panic!("one agent, not {:?}", listed.agents) };
    assert_eq!((agent.id.as_str(), agent.ttl.map(|ttl| ttl.seconds)), ("old", Some(60)));
    assert!(agent.registered_at.is_some());

    let mut patterns = PatternServiceClient::new(plaintext);
    let request = ExecutePatternRequest {
        pattern_name: "consensus_builder".to_owned(),
        input: Some(struct_from_any(&json!({"task": "tell", "data": {"text": "Füße"}}))),
        ..ExecutePatternRequest::default()
    };
    let response = soon(patterns.execute_pattern(request)).await.unwrap().into_inner();
    assert_eq!(response.status(), execute_pattern_response::Status::Success, "{}", response.error_message);
    let decided = Json::Object(struct_to_json(&response.result.unwrap()));
    assert_eq!((&decided["decision"], response.confidence), (&json!("de"), 0.75));
    assert_eq!(response.metrics.unwrap().agents_used, 1);
    assert_eq!(response.agent_results[0].value_json, "\"de\"");

    let asked = asked.lock().await;
    let [task] = &asked[..] else { panic!("asked once, not {} times", asked.len()) };
    assert_eq!((task.task_description.as_str(), task.pattern_name.as_str()), ("tell", "ConsensusBuilder"));
    assert!(task.timeout_ms > 0);
    let shown = world.get_as("default", "/api/agents/old").await.1;
    assert_eq!((&shown["transport"], &shown["status"]), (&json!("plaintext"), &json!("active")), "{shown}");
    drop((registry, patterns));
    world.stop().await;
}

#[tokio::test]
async fn a_refusal_is_an_error_because_nobody_reads_success() {
    let world = World::start().await;
    let mut registry = RegistryClient::new(world.dial_plain().await);
    let refuse = async |registry: &mut RegistryClient<_>, request: RegisterRequest| -> Status {
        registry.register(request).await.unwrap_err()
    };
    let status = refuse(&mut registry, registration("a", "localhost")).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("agent.endpoint: \"localhost\" names no port"), "{status}");
    let status = refuse(&mut registry, RegisterRequest::default()).await;
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "agent: is missing"));
    let renew = RenewRequest { lease_id: "never granted".to_owned(), ttl: None };
    assert_eq!(registry.renew(renew).await.unwrap_err().code(), Code::NotFound);
    drop(registry);
    world.stop().await;
}

#[tokio::test]
async fn outside_local_mode_plaintext_is_refused_and_told_why() {
    let world = World::start_with(|settings| settings.control_plane.local = false).await;
    for addr in [world.grpc(), world.data_plane()] {
        let mut registry = RegistryClient::new(channel(None, addr).await);
        let status = registry.list_agents(ListAgentsRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("this port speaks mTLS: connect with TLS"), "{status}");
    }
    let (status, problem) = world.get_plain("/api/agents").await;
    assert_eq!((status.as_u16(), &problem["status"]), (401, &json!(401)));
    assert!(problem["error"].as_str().unwrap().contains("speaks mTLS"), "{problem}");
    // With certificates nothing has changed.
    world.agent(says("a", "de", 0.9).0).await;
    assert_eq!(world.run("voting", json!({})).await["result"]["decision"], "de");
    world.stop().await;
}

#[tokio::test]
async fn what_registered_over_mtls_is_out_of_reach_for_plaintext() {
    let world = World::start().await;
    let mut owner = RegistryClient::new(world.dial("default", Kind::Agent, "mine").await);
    let lease_id = owner.register(registration("mine", "127.0.0.1:1")).await.unwrap().into_inner().lease_id;

    let mut thief = RegistryClient::new(world.dial_plain().await);
    let status = thief.register(registration("mine", "127.0.0.1:2")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("spiffe://parallax/default/agent/mine"), "{status}");
    let unregister = AgentRegistration { id: "mine".to_owned(), ..AgentRegistration::default() };
    assert_eq!(thief.unregister(unregister).await.unwrap_err().code(), Code::PermissionDenied);
    let renew = RenewRequest { lease_id, ttl: None };
    assert_eq!(thief.renew(renew.clone()).await.unwrap_err().code(), Code::PermissionDenied);

    owner.renew(renew).await.unwrap();
    let get = GetAgentRequest { agent_id: "mine".to_owned() };
    assert_eq!(owner.get_agent(get).await.unwrap().into_inner().endpoint, "127.0.0.1:1");
    drop((owner, thief));
    world.stop().await;
}
