//! `parallax.gateway.AgentGateway` towards agents, and `parallax.confidence.ConfidenceAgent` in their name towards
//! data-plane nodes.

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use parallax_proto::{
    confidence::{AgentRequest, Capabilities, ConfidenceResult, Health, confidence_agent_server},
    gateway::{AgentToControlPlane, ControlPlaneToAgent, agent_gateway_server},
};
use parallax_runtime::{agent::AgentKey, wire};
use parallax_security::Kind;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::edge::peer;
use crate::{error::Error, gateway::Gateway};

/// Serves the gateway.
#[derive(Clone)]
pub struct Service(pub Gateway);

#[tonic::async_trait]
impl agent_gateway_server::AgentGateway for Service {
    type ConnectStream = BoxStream<'static, Result<ControlPlaneToAgent, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentToControlPlane>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let peer = peer(&request);
        // Some agents read the response's head before they say hello.
        let (gateway, inbound) = (self.0.clone(), request.into_inner());
        let outbound = stream::once(async move { gateway.connect(peer, inbound).await });
        let outbound = outbound.flat_map(|connected| match connected {
            Ok(outbound) => ReceiverStream::new(outbound).map(Ok).boxed(),
            Err(status) => stream::iter([Ok(refusal(&status)), Err(status)]).boxed(),
        });
        Ok(Response::new(outbound.boxed()))
    }
}

/// For agents that wait for the answer to their hello.
fn refusal(status: &Status) -> ControlPlaneToAgent {
    use parallax_proto::gateway::{ServerAck, control_plane_to_agent::Payload};
    let message = status.message().to_owned();
    let ack = ServerAck { accepted: false, message, assigned_node_id: String::new() };
    ControlPlaneToAgent { request_id: String::new(), payload: Some(Payload::Ack(ack)) }
}

/// The agent that a node means.
fn key<T>(request: &Request<T>) -> Result<AgentKey, Status> {
    let from_node = peer(request).identity.is_some_and(|identity| identity.kind == Kind::DataPlane);
    if !from_node {
        let message = "agents are called through a data-plane node, not through the control plane".to_owned();
        return Err(Error::NotYours(message).into());
    }
    let named = |name: &'static str| {
        let value = request.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        value.ok_or_else(|| Error::Invalid { field: "metadata", problem: format!("{name} is missing") })
    };
    Ok(AgentKey { tenant: named(wire::TENANT)?, id: named(wire::AGENT)? })
}

#[tonic::async_trait]
impl confidence_agent_server::ConfidenceAgent for Service {
    async fn analyze(&self, request: Request<AgentRequest>) -> Result<Response<ConfidenceResult>, Status> {
        let key = key(&request)?;
        self.0.analyze(&key, request.into_inner()).await.map(Response::new)
    }

    async fn get_capabilities(&self, request: Request<()>) -> Result<Response<Capabilities>, Status> {
        self.0.capabilities(&key(&request)?).map(Response::new)
    }

    async fn health_check(&self, request: Request<()>) -> Result<Response<Health>, Status> {
        self.0.health(&key(&request)?).map(Response::new)
    }

    type StreamAnalyzeStream = BoxStream<'static, Result<ConfidenceResult, Status>>;

    /// An agent behind the gateway answers once.
    async fn stream_analyze(
        &self,
        request: Request<AgentRequest>,
    ) -> Result<Response<Self::StreamAnalyzeStream>, Status> {
        let key = key(&request)?;
        let gateway = self.0.clone();
        let answer = stream::once(async move { gateway.analyze(&key, request.into_inner()).await });
        Ok(Response::new(answer.boxed()))
    }
}
