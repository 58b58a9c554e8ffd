//! Single questions to agents, of no run.

use std::time::Duration;

use parallax_proto::{
    confidence::{AgentRequest, Health, confidence_agent_client::ConfidenceAgentClient},
    dataplane::v1::{Call, CallOutcome, call::Target},
};
use parallax_runtime::{agent::AgentKey, wire};
use tonic::{Request, Status, metadata::MetadataValue};

use super::Nodes;

/// How long an agent may take to say how it is.
const HEALTH: Duration = Duration::from_secs(5);

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
            traceparent: String::new(),
        };
        session.call(call).await;
        session.next().await
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
