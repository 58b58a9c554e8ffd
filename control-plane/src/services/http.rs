//! The HTTP API.

use std::{collections::BTreeMap, sync::Arc};

use ::http::{StatusCode, header::CONTENT_TYPE};
use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parallax_runtime::env::Env;
use parallax_telemetry::{admin::Readiness, metrics};
use serde::de::DeserializeOwned;
use serde_json::{Value as Body, json};

use super::edge;
use crate::{
    dispatch::Nodes,
    error::{Error, Result},
    patterns::Catalog,
    registry::Registry,
    runs::Runs,
};

mod agents;
mod events;
mod executions;
mod patterns;

/// Largest body that is read, in bytes.
pub const MAX_BODY: usize = 16 << 20;

/// What the handlers need.
pub struct Api {
    pub registry: Registry,
    pub catalog: Catalog,
    pub runs: Runs,
    pub nodes: Nodes,
    pub env: Arc<dyn Env>,
    pub readiness: Readiness,
    pub instruments: parallax_telemetry::Registry,
}

type Shared = State<Arc<Api>>;
type Answer = Result<Json<Body>>;

/// All routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/health/live", get(async || Json(json!({"status": "alive"}))))
        .route("/health/ready", get(ready))
        .route("/metrics", get(instruments))
        .route("/api/agents", get(agents::list))
        .route("/api/agents/{id}", get(agents::show))
        .route("/api/patterns", get(patterns::list))
        .route("/api/patterns/{name}", get(patterns::show))
        .route("/api/patterns/{name}/execute", post(patterns::execute))
        .route("/api/executions", get(executions::list).post(executions::start))
        .route("/api/executions/{id}", get(executions::show))
        .route("/api/executions/{id}/cancel", post(executions::cancel))
        .route("/api/executions/{id}/retry", post(executions::retry))
        .route("/api/executions/{id}/replay", get(executions::replay).post(executions::rerun))
        .route("/api/executions/{id}/diff/{other}", get(executions::diff))
        .route("/api/executions/{id}/timeline", get(executions::timeline))
        .route("/api/executions/{id}/events", get(events::list))
        .route("/api/executions/{id}/events/stream", get(events::stream))
        .route("/api/nodes", get(nodes))
        .fallback(edge::not_found)
        .method_not_allowed_fallback(edge::not_found)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(api))
}

async fn health(State(api): Shared) -> Response {
    let (ready, following) = (api.readiness.is_ready(), api.registry.is_following());
    let word = |ok| if ok { "healthy" } else { "unhealthy" };
    // Without the registry's store all goes on but what writes to it.
    let registry = if following { "healthy" } else { "degraded" };
    let mut waiting_for = api.readiness.pending();
    if !following {
        waiting_for.push("registry store".to_owned());
    }
    let nodes = api.nodes.list().len();
    let body = json!({
        "status": if ready { registry } else { "unhealthy" },
        "timestamp": api.env.now(),
        "version": env!("CARGO_PKG_VERSION"),
        "services": {
            "registry": {"status": registry},
            "dataPlane": {"status": word(nodes > 0), "nodes": nodes},
        },
        "waitingFor": waiting_for,
    });
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

async fn ready(State(api): Shared) -> Response {
    parallax_telemetry::admin::readyz(&api.readiness)
}

async fn instruments(State(api): Shared) -> Response {
    let (content_type, text) = metrics::encode(&api.instruments);
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

async fn nodes(State(api): Shared) -> Json<Body> {
    let nodes: Vec<_> =
        api.nodes.list().into_iter().map(|(id, addr)| json!({"id": id, "address": addr})).collect();
    Json(json!({"count": nodes.len(), "nodes": nodes}))
}

/// A JSON body, whatever its content type says; serde names the field and the place of what is wrong.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| Error::Invalid { field: "body", problem: e.to_string() })
}

/// A query string with known keys only.
struct Query(BTreeMap<String, String>);

impl Query {
    fn parse(text: &str, known: &[&str]) -> Result<Self> {
        let mut pairs = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            if !known.contains(&&*key) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let problem = format!("\"{key}\" is unknown; known are {known}");
                return Err(Error::Invalid { field: "query", problem });
            }
            pairs.insert(key.into_owned(), value.into_owned());
        }
        Ok(Self(pairs))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn number(&self, key: &'static str) -> Result<Option<u64>> {
        let parse = |text: &str| {
            text.parse().map_err(|_| Error::Invalid {
                field: key,
                problem: format!("\"{text}\" is not a whole number from 0 up"),
            })
        };
        self.get(key).map(parse).transpose()
    }
}
