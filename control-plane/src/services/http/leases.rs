//! Registering and renewing over HTTP, for agents that speak nothing else.

use std::{collections::BTreeMap, time::Duration};

use ::http::StatusCode;
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
};
use parallax_proto::registry::{AgentRegistration, RegisterRequest, agent_registration::Metadata};
use parallax_runtime::{agent::clamp_ttl, wire::duration_to_wire};
use parallax_security::Peer;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, Shared, read};
use crate::error::{Error, Result};

/// An agent as it announces itself.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Registration {
    id: String,
    #[serde(default)]
    name: String,
    /// `http://host:port/base` or `https://host/base` of an agent that is reached by HTTP, `host:port` of a gRPC
    /// server.
    endpoint: String,
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    metadata: Said,
    /// 2 to 86400, or what is nearest to it.
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// What it says of itself.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Said {
    version: String,
    region: String,
    labels: BTreeMap<String, String>,
    #[schema(minimum = 0, maximum = 1)]
    default_confidence: Option<f64>,
}

/// What keeps an agent registered: renewed before its time to live is over.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lease {
    lease_id: String,
    ttl_seconds: u64,
}

/// Registers an agent, or replaces its registration.
#[utoipa::path(
    post, path = "/api/agents", tag = "agents", request_body = Registration,
    responses((status = 201, body = Lease))
)]
pub(super) async fn register(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<(StatusCode, Json<Lease>)> {
    let Registration { id, name, endpoint, capabilities, metadata, ttl_seconds } = read(&body)?;
    let ttl = ttl_seconds.map(Duration::from_secs);
    let agent = AgentRegistration {
        id,
        name,
        endpoint,
        capabilities,
        metadata: Some(Metadata {
            version: metadata.version,
            region: metadata.region,
            labels: metadata.labels.into_iter().collect(),
            default_confidence: metadata.default_confidence.unwrap_or_default(),
        }),
        registered_at: None,
        ttl: ttl.map(duration_to_wire),
    };
    let request = RegisterRequest { agent: Some(agent), auto_renew: false };
    let lease_id = api.registry.register(&peer, request).await?;
    Ok((StatusCode::CREATED, Json(Lease { lease_id, ttl_seconds: clamp_ttl(ttl).as_secs() })))
}

/// What is renewed.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Renewal {
    lease_id: String,
    /// Another than before.
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// Begins a lease's time anew. 404 means that the agent has to register again.
#[utoipa::path(
    post, path = "/api/agents/{id}/renew", tag = "agents", request_body = Renewal,
    responses((status = 200, body = Lease))
)]
pub(super) async fn renew(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Lease> {
    let Renewal { lease_id, ttl_seconds } = read(&body)?;
    if lease_id.split('/').nth(1) != Some(&id) {
        return Err(Error::NoLease { lease: lease_id });
    }
    let ttl = api.registry.renew(&peer, &lease_id, ttl_seconds.map(Duration::from_secs)).await?;
    Ok(Json(Lease { lease_id, ttl_seconds: ttl.as_secs() }))
}
