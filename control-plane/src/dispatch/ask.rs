//! Single questions to agents, of no run.

use std::{sync::Arc, time::Duration};

use parallax_proto::{
    confidence::{AgentRequest, Health, confidence_agent_client::ConfidenceAgentClient},
    dataplane::v1::{
        AgentStatus, Call, CallOutcome, FanOutEvent, FanOutRequest, FanOutSummary, GetAgentStatusRequest,
        call::Target, data_plane_client::DataPlaneClient, fan_out_event::Event,
    },
};
use parallax_runtime::{agent::AgentKey, wire};
use tonic::{Request, Status, metadata::MetadataValue};

use super::{Node, Nodes};

/// How long an agent may take to say how it is.
const HEALTH: Duration = Duration::from_secs(5);
/// How long a node may take to say what it has seen.
const VIEW: Duration = Duration::from_secs(2);

impl Nodes {
    /// One call to an agent, through whichever node; dropping it cancels the call.
    pub async fn ask(&self, agent: &AgentKey, request: AgentRequest) -> CallOutcome {
        let mut session = self.session();
        let call = Call {
            call_id: 1,
            tenant: agent.tenant.clone(),
            target: Some(Target::AgentId(agent.id.clone())),
            effect: request.task_id.clone(),
            request: Some(request),
            attempt: 1,
            ..Call::default()
        };
        session.call(call).await;
        session.next().await
    }

    /// One question to many agents, through whichever node: what came of each, in the order in which it came.
    /// Dropping it cancels the calls.
    ///
    /// # Errors
    /// No node; what the node will not do; a node that is lost meanwhile.
    pub async fn fan_out(&self, request: FanOutRequest) -> Result<(Vec<CallOutcome>, FanOutSummary), Status> {
        let node = self.pick(None).ok_or_else(|| {
            Status::unavailable(
                "no data-plane node has joined; start one with `parallax start --data-plane-only`",
            )
        })?;
        let mut events = DataPlaneClient::new(node.channel.clone()).fan_out(request).await?.into_inner();
        let mut outcomes = Vec::new();
        while let Some(FanOutEvent { event }) = events.message().await? {
            match event {
                Some(Event::Outcome(outcome)) => outcomes.push(outcome),
                Some(Event::Summary(summary)) => return Ok((outcomes, summary)),
                // Of a later version.
                None => {}
            }
        }
        Err(Status::unavailable(format!("data-plane node {} went away in the middle of it", node.id)))
    }

    /// What each node has seen of an agent in its own calls, by the node's id. All are asked at once.
    pub async fn views(&self, agent: &AgentKey) -> Vec<(String, Result<AgentStatus, Status>)> {
        let members: Vec<_> = self.members.read().values().cloned().collect();
        let ask = |node: Arc<Node>| async move {
            let request = GetAgentStatusRequest { tenant: agent.tenant.clone(), agent_id: agent.id.clone() };
            let mut client = DataPlaneClient::new(node.channel.clone());
            let answer = tokio::time::timeout(VIEW, client.get_agent_status(request)).await;
            let late = || Err(Status::deadline_exceeded(format!("no answer within {VIEW:?}")));
            (node.id.clone(), answer.unwrap_or_else(|_| late()).map(tonic::Response::into_inner))
        };
        futures::future::join_all(members.into_iter().map(ask)).await
    }

    /// How an agent says it is, asked through a node; `None` when there is no node.
    pub async fn health(&self, agent: &AgentKey) -> Option<Result<Health, Status>> {
        let node = self.pick(None)?;
        let text = |text: &str| MetadataValue::try_from(text).map_err(|e| Status::internal(e.to_string()));
        let ask = async {
            let mut request = Request::new(());
            request.set_timeout(HEALTH);
            request.metadata_mut().insert(wire::AGENT, text(&agent.id)?);
            request.metadata_mut().insert(wire::TENANT, text(&agent.tenant)?);
            Ok(ConfidenceAgentClient::new(node.channel.clone()).health_check(request).await?.into_inner())
        };
        let late = || Status::deadline_exceeded(format!("no answer within {HEALTH:?}"));
        Some(tokio::time::timeout(HEALTH, ask).await.unwrap_or_else(|_| Err(late())))
    }
}
