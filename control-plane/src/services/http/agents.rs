//! `/api/agents`.

use std::collections::BTreeMap;

use axum::{
    Extension, Json,
    extract::{Path, State},
};
use parallax_security::Peer;
use serde_json::{Value as Body, json};

use super::{super::json, Answer, Shared};
use crate::{error::Error, tenant};

pub(super) async fn list(State(api): Shared, Extension(peer): Extension<Peer>) -> Json<Body> {
    let agents = api.registry.agents(tenant::of(&peer), &[]);
    let mut by_capability: BTreeMap<&str, usize> = BTreeMap::new();
    for capability in agents.iter().flat_map(|agent| &agent.capabilities) {
        *by_capability.entry(capability).or_default() += 1;
    }
    Json(json!({
        "agents": agents.iter().map(|agent| json::agent(agent, &api.registry, api.env.now())).collect::<Vec<_>>(),
        "count": agents.len(),
        "byCapability": by_capability,
        "timestamp": api.env.now(),
    }))
}

pub(super) async fn show(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer {
    let agent = api.registry.get(tenant::of(&peer), &id).ok_or(Error::NoAgent { id })?;
    Ok(Json(json::agent(&agent, &api.registry, api.env.now())))
}
