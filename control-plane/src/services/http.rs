//! The HTTP API.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ::http::{StatusCode, header::CONTENT_TYPE};
use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, RawQuery, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parallax_runtime::{env::Env, run::Status, store::RunQuery};
use parallax_security::Peer;
use parallax_telemetry::{admin::Readiness, metrics};
use serde::de::DeserializeOwned;
use serde_json::{Value as Body, json};
use tokio::time::Instant;

use super::{edge, json};
use crate::{
    dispatch::Nodes,
    error::{Error, Result},
    patterns::Catalog,
    registry::Registry,
    runs::{self, Runs},
    tenant,
};

/// The most runs that one page holds, and how many it holds when the caller does not say.
const PAGE: (u64, u64) = (1000, 50);
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
        .route("/api/agents", get(agents))
        .route("/api/agents/{id}", get(agent))
        .route("/api/patterns", get(patterns))
        .route("/api/patterns/{name}", get(pattern))
        .route("/api/patterns/{name}/execute", post(execute))
        .route("/api/executions", get(executions))
        .route("/api/executions/{id}", get(execution))
        .route("/api/nodes", get(nodes))
        .fallback(edge::not_found)
        .method_not_allowed_fallback(edge::not_found)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(api))
}

async fn health(State(api): Shared) -> Response {
    let following = api.registry.is_following();
    let ready = api.readiness.is_ready() && following;
    let word = |ok| if ok { "healthy" } else { "unhealthy" };
    let nodes = api.nodes.list().len();
    let body = json!({
        "status": word(ready),
        "timestamp": api.env.now(),
        "version": env!("CARGO_PKG_VERSION"),
        "services": {
            "registry": {"status": word(following)},
            "dataPlane": {"status": word(nodes > 0), "nodes": nodes},
        },
        "waitingFor": api.readiness.pending(),
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

async fn agents(State(api): Shared, Extension(peer): Extension<Peer>) -> Json<Body> {
    let agents = api.registry.agents(tenant::of(&peer), &[]);
    let mut by_capability: BTreeMap<&str, usize> = BTreeMap::new();
    for capability in agents.iter().flat_map(|agent| &agent.capabilities) {
        *by_capability.entry(capability).or_default() += 1;
    }
    Json(json!({
        "agents": agents.iter().map(|agent| json::agent(agent, &api.registry)).collect::<Vec<_>>(),
        "count": agents.len(),
        "byCapability": by_capability,
        "timestamp": api.env.now(),
    }))
}

async fn agent(State(api): Shared, Extension(peer): Extension<Peer>, Path(id): Path<String>) -> Answer {
    let agent = api.registry.get(tenant::of(&peer), &id).ok_or(Error::NoAgent { id })?;
    Ok(Json(json::agent(&agent, &api.registry)))
}

async fn patterns(State(api): Shared) -> Json<Body> {
    let patterns: Vec<_> = api.catalog.list().map(|pattern| json::pattern(pattern)).collect();
    Json(json!({"count": patterns.len(), "patterns": patterns}))
}

async fn pattern(State(api): Shared, Path(name): Path<String>) -> Answer {
    Ok(Json(json::pattern(&*api.catalog.get(&name, "")?)))
}

async fn execute(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer {
    let json::Execute { input, options } = read(&body)?;
    if options.stream {
        return Err(Error::NotServed("options.stream is not served yet; leave it out"));
    }
    let begun = Instant::now();
    let request =
        runs::Request { pattern: name, version: String::new(), input, options: options.to_options() };
    let key = api.runs.start(tenant::of(&peer), request).await?;
    let run = api.runs.wait(&key).await?;
    // A run that failed has still been executed: existing clients send any 5xx again.
    Ok(Json(json!({"execution": json::execution(&run), "duration": millis(begun.elapsed())})))
}

async fn executions(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = Query::parse(
        query.as_deref().unwrap_or_default(),
        &["limit", "offset", "status", "pattern", "before"],
    )?;
    let limit = query.number("limit")?.unwrap_or(PAGE.1);
    if limit == 0 || limit > PAGE.0 {
        return Err(Error::Invalid {
            field: "limit",
            problem: format!("{limit} is not from 1 to {}", PAGE.0),
        });
    }
    let offset = query.number("offset")?.unwrap_or(0);
    let status = match query.get("status") {
        None | Some("") => None,
        Some(word) => {
            Some(word.parse::<Status>().map_err(|problem| Error::Invalid { field: "status", problem })?)
        }
    };
    // Runs carry their pattern's own spelling.
    let own_spelling =
        |name: &str| api.catalog.get(name, "").map_or_else(|_| name.to_owned(), |p| p.header.name.clone());
    let pattern = query.get("pattern").map(own_spelling);
    let page = api
        .runs
        .list(&RunQuery {
            tenant: tenant::of(&peer).to_owned(),
            status,
            pattern,
            before: query.get("before").map(str::to_owned),
            offset,
            limit,
        })
        .await?;
    let executions: Vec<_> = page.runs.iter().map(json::summary).collect();
    Ok(Json(json!({"executions": executions, "total": page.total, "limit": limit, "offset": offset})))
}

async fn execution(State(api): Shared, Extension(peer): Extension<Peer>, Path(id): Path<String>) -> Answer {
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let mut body = json::execution(&run);
    body["journal"] = json::journal(&run);
    Ok(Json(body))
}

async fn nodes(State(api): Shared) -> Json<Body> {
    let nodes: Vec<_> =
        api.nodes.list().into_iter().map(|(id, addr)| json!({"id": id, "address": addr})).collect();
    Json(json!({"count": nodes.len(), "nodes": nodes}))
}

fn millis(duration: Duration) -> u64 {
    parallax_runtime::env::millis(duration)
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
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&key) {
                let problem = format!("\"{key}\" is unknown; known are {}", known.join(", "));
                return Err(Error::Invalid { field: "query", problem });
            }
            pairs.insert(key.to_owned(), value.to_owned());
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
