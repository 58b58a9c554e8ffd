//! `/api/agents`.

use std::{collections::BTreeMap, time::Duration};

use ::http::StatusCode;
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
};
use jiff::Timestamp;
use parallax_proto::{
    confidence::{AgentRequest, health::Status as Said},
    dataplane::v1::{AgentStatus, breaker::Phase, call_outcome::Outcome},
};
use parallax_runtime::{
    agent,
    wire::{parse_value, struct_from_any},
};
use parallax_security::Peer;
use serde::{Deserialize, Serialize};
use serde_json::Value as Body;
use tonic::Code;
use utoipa::ToSchema;

use super::{Answer, Query, Shared, read};
use crate::{
    error::{Error, Result},
    registry::Registry,
    tenant,
};

/// A registered agent.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Agent {
    id: String,
    name: String,
    /// `host:port`, or a URL of an agent that is reached by HTTP.
    endpoint: String,
    capabilities: Vec<String>,
    /// `active` as long as its lease is kept, or `unhealthy`.
    status: &'static str,
    metadata: Metadata,
    registered_at: Timestamp,
    /// When this process last heard of it; absent if it has not since it was started.
    last_seen: Option<Timestamp>,
    ttl_seconds: u64,
    /// How it is dialled: `mtls`, `plaintext`, `gateway`, `http` or `https`.
    #[schema(value_type = String)]
    transport: agent::Transport,
    tenant: String,
    source: &'static str,
}

/// What an agent says of itself.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    version: String,
    region: String,
    labels: BTreeMap<String, String>,
    #[schema(minimum = 0, maximum = 1)]
    default_confidence: Option<f64>,
}

impl Agent {
    fn of(agent: &agent::Agent, registry: &Registry, now: Timestamp) -> Self {
        let last_seen = registry.last_heard(&agent.key);
        // Its lease keeps an agent active: one that runs out takes the agent along. One behind the gateway is
        // unhealthy when two heartbeats are missing, as far as this process has heard them.
        let silent = last_seen.map(|heard| now.duration_since(heard).unsigned_abs());
        let behind = agent.transport == agent::Transport::Gateway;
        let unhealthy = behind && silent.is_some_and(|silent| silent > agent.ttl * 2 / 3);
        Self {
            id: agent.key.id.clone(),
            name: agent.name.clone(),
            endpoint: agent.endpoint.clone(),
            capabilities: agent.capabilities.clone(),
            status: if unhealthy { "unhealthy" } else { "active" },
            metadata: Metadata {
                version: agent.metadata.version.clone(),
                region: agent.metadata.region.clone(),
                labels: agent.metadata.labels.clone(),
                default_confidence: agent.metadata.default_confidence.map(f64::from),
            },
            registered_at: agent.registered_at,
            last_seen,
            ttl_seconds: agent.ttl.as_secs(),
            transport: agent.transport,
            tenant: agent.key.tenant.clone(),
            source: "registry",
        }
    }
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Agents {
    agents: Vec<Agent>,
    count: usize,
    by_capability: BTreeMap<String, usize>,
    timestamp: Timestamp,
}

/// The registered agents, in order of their ids.
#[utoipa::path(
    get, path = "/api/agents", tag = "agents",
    params(("capability" = Option<String>, Query, description = "Only agents with all of these, by commas")),
    responses((status = 200, body = Agents))
)]
pub(super) async fn list(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    query: Query,
) -> Answer<Agents> {
    let capabilities: Vec<String> =
        query.get("capability").into_iter().flat_map(|all| all.split(',')).map(str::to_owned).collect();
    let agents = api.registry.agents(tenant::of(&peer), &capabilities);
    Ok(Json(Agents {
        agents: agents.iter().map(|agent| Agent::of(agent, &api.registry, api.env.now())).collect(),
        count: agents.len(),
        by_capability: by_capability(&agents).into_iter().map(|(name, ids)| (name, ids.len())).collect(),
        timestamp: api.env.now(),
    }))
}

fn by_capability(agents: &[std::sync::Arc<agent::Agent>]) -> BTreeMap<String, Vec<String>> {
    let mut by: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for agent in agents {
        for capability in &agent.capabilities {
            by.entry(capability.clone()).or_default().push(agent.key.id.clone());
        }
    }
    by
}

/// One agent.
#[utoipa::path(get, path = "/api/agents/{id}", tag = "agents", responses((status = 200, body = Agent)))]
pub(super) async fn show(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer<Agent> {
    let agent = api.registry.get(tenant::of(&peer), &id).ok_or(Error::NoAgent { id })?;
    Ok(Json(Agent::of(&agent, &api.registry, api.env.now())))
}

/// Ends an agent's registration and its lease. The agent is not told, and may register again.
#[utoipa::path(delete, path = "/api/agents/{id}", tag = "agents", responses((status = 204)))]
pub(super) async fn remove(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    match api.registry.unregister(&peer, &id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Error::NoAgent { id }),
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Capabilities {
    capabilities: Vec<Capability>,
    count: usize,
    timestamp: Timestamp,
}

#[derive(Serialize, ToSchema)]
struct Capability {
    name: String,
    count: usize,
    /// Ids.
    agents: Vec<String>,
}

/// What the registered agents can do, and which can.
#[utoipa::path(
    get, path = "/api/agents/stats/capabilities", tag = "agents",
    responses((status = 200, body = Capabilities))
)]
pub(super) async fn capabilities(State(api): Shared, Extension(peer): Extension<Peer>) -> Json<Capabilities> {
    let by = by_capability(&api.registry.agents(tenant::of(&peer), &[]));
    let capability = |(name, agents): (_, Vec<_>)| Capability { name, count: agents.len(), agents };
    Json(Capabilities {
        count: by.len(),
        capabilities: by.into_iter().map(capability).collect(),
        timestamp: api.env.now(),
    })
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AgentHealth {
    agent_id: String,
    /// `unknown` when the agent does not say, or nobody could ask it.
    #[schema(pattern = "^(healthy|degraded|unhealthy|unknown)$")]
    status: &'static str,
    message: String,
    /// Whose word it is: the `agent`'s, a data-plane `node`'s that did not get to it, or the `registry`'s, which
    /// knows no more than that the lease is kept.
    #[schema(pattern = "^(agent|node|registry)$")]
    source: &'static str,
    details: BTreeMap<String, String>,
    last_seen: Option<Timestamp>,
    ttl_seconds: u64,
    /// What each data-plane node has seen of it in its own calls.
    nodes: Vec<NodeView>,
    timestamp: Timestamp,
}

/// What one node has seen of an agent. With `error` the node did not say, and the rest is absent.
#[derive(Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct NodeView {
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    seen: Option<Seen>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Seen {
    /// The agent's own, for all that it is asked.
    breaker: Breaker,
    /// Those of patterns that asked it, in order of their names; at most 64.
    patterns: Vec<Breaker>,
    in_flight: u32,
    /// The most in flight that it is sent.
    limit: u32,
    connections: u32,
    /// Calls that have ended.
    calls: u64,
    /// Those of them that count against the agent.
    failures: u64,
    /// Moving average.
    latency_ms: Option<f64>,
    /// Of calls that met few others.
    unloaded_latency_ms: Option<f64>,
    /// How long it is still left out as slower than its group; absent when it is not.
    slow_for_ms: Option<f64>,
    last_confidence: Option<f64>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Breaker {
    /// Absent for the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<String>,
    #[schema(pattern = "^(closed|open|half_open|throttled|unknown)$")]
    phase: &'static str,
    consecutive_failures: u32,
    /// Until a call is let through; absent when one is now.
    retry_in_ms: Option<f64>,
}

impl NodeView {
    fn of((node, view): (String, std::result::Result<AgentStatus, tonic::Status>)) -> Self {
        match view {
            Ok(status) => Self { node, error: None, seen: Some(Seen::of(status)) },
            Err(e) => Self { node, error: Some(e.message().to_owned()), seen: None },
        }
    }
}

impl Seen {
    fn of(status: AgentStatus) -> Self {
        let mut breakers = status.breakers.into_iter().map(|breaker| Breaker {
            phase: match breaker.phase() {
                Phase::Closed => "closed",
                Phase::Open => "open",
                Phase::HalfOpen => "half_open",
                Phase::Throttled => "throttled",
                Phase::Unspecified => "unknown",
            },
            pattern: Some(breaker.pattern).filter(|pattern| !pattern.is_empty()),
            consecutive_failures: breaker.consecutive_failures,
            retry_in_ms: millis(breaker.retry_in),
        });
        let unknown =
            || Breaker { pattern: None, phase: "unknown", consecutive_failures: 0, retry_in_ms: None };
        Self {
            breaker: breakers.next().unwrap_or_else(unknown),
            patterns: breakers.collect(),
            in_flight: status.in_flight,
            limit: status.limit,
            connections: status.connections,
            calls: status.calls,
            failures: status.failures,
            latency_ms: millis(status.latency),
            unloaded_latency_ms: millis(status.unloaded_latency),
            slow_for_ms: millis(status.slow_for),
            last_confidence: status.last_confidence,
        }
    }
}

fn millis<D>(duration: Option<D>) -> Option<f64>
where
    Duration: TryFrom<D>,
{
    let duration = Duration::try_from(duration?).ok()?;
    Some(duration.as_secs_f64() * 1e3)
}

/// How an agent says it is. It is asked through a data-plane node, and has 5 s to answer. Beside that
/// stands what each node has seen of it.
#[utoipa::path(
    get, path = "/api/agents/{id}/health", tag = "agents",
    responses((status = 200, body = AgentHealth))
)]
pub(super) async fn health(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer<AgentHealth> {
    let agent = api.registry.get(tenant::of(&peer), &id).ok_or(Error::NoAgent { id })?;
    // First, so that the question itself is not what they have seen.
    let nodes = api.nodes.views(&agent.key).await;
    let (source, status, message, details) = match api.nodes.health(&agent.key).await {
        None => {
            let message = "no data-plane node has joined, so nobody could ask; the agent keeps its lease";
            ("registry", "unknown", message.to_owned(), BTreeMap::new())
        }
        Some(Ok(health)) => {
            let status = match health.status() {
                Said::Healthy => "healthy",
                Said::Degraded => "degraded",
                Said::Unhealthy => "unhealthy",
                Said::Unknown => "unknown",
            };
            ("agent", status, health.message, health.details.into_iter().collect())
        }
        Some(Err(e)) if e.code() == Code::Unimplemented => {
            ("agent", "unknown", "the agent does not say how it is".to_owned(), BTreeMap::new())
        }
        Some(Err(e)) => ("node", "unhealthy", e.message().to_owned(), BTreeMap::new()),
    };
    Ok(Json(AgentHealth {
        agent_id: agent.key.id.clone(),
        status,
        message,
        source,
        details,
        last_seen: api.registry.last_heard(&agent.key),
        ttl_seconds: agent.ttl.as_secs(),
        nodes: nodes.into_iter().map(NodeView::of).collect(),
        timestamp: api.env.now(),
    }))
}

/// What an agent is asked.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Test {
    task: String,
    #[serde(default)]
    data: Body,
}

/// What it answered.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tested {
    agent_id: String,
    result: Body,
    /// Absent when it stated none.
    #[schema(minimum = 0, maximum = 1)]
    confidence: Option<f64>,
    reasoning: String,
    timestamp: Timestamp,
}

/// Asks one agent one question, through a data-plane node; it belongs to no run and is not recorded as one.
#[utoipa::path(
    post, path = "/api/agents/{id}/test", tag = "agents", request_body = Test,
    responses((status = 200, body = Tested))
)]
pub(super) async fn test(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Tested> {
    let Test { task, data } = read(&body)?;
    let agent = api.registry.get(tenant::of(&peer), &id).ok_or(Error::NoAgent { id })?;
    let timeout = api.runs.context().bounds.call_timeout;
    let request = AgentRequest {
        task_id: api.env.id(),
        task_description: task,
        data: Some(struct_from_any(&data)),
        timeout_ms: i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX),
        ..AgentRequest::default()
    };
    let agent_id = agent.key.id.clone();
    match api.nodes.ask(&agent.key, request).await.outcome {
        Some(Outcome::Answer(answer)) => Ok(Json(Tested {
            agent_id,
            result: parse_value(&answer.value_json),
            confidence: answer.confidence,
            reasoning: answer.reasoning,
            timestamp: api.env.now(),
        })),
        Some(Outcome::Failure(failure)) => {
            let cause = failure.cause().as_str_name().trim_start_matches("CAUSE_");
            Err(Error::NoAnswer { agent: agent_id, cause, message: failure.message })
        }
        None => {
            Err(Error::NoAnswer { agent: agent_id, cause: "nothing", message: "an empty outcome".to_owned() })
        }
    }
}
