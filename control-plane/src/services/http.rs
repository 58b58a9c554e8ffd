//! The HTTP API.

use std::sync::Arc;

use ::http::{StatusCode, header::CONTENT_TYPE};
use axum::{
    Extension, Json, Router,
    extract::State,
    middleware,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use parallax_runtime::env::Env;
use parallax_telemetry::{admin::Readiness, metrics};
use serde::{Serialize, de::DeserializeOwned};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    dispatch::Nodes,
    error::{Error, Result},
    patterns::Catalog,
    registry::Registry,
    runs::Runs,
    schedules::Schedules,
    webhooks::Webhooks,
};

mod agents;
mod ask;
mod events;
mod executions;
mod leases;
mod license;
mod openapi;
mod patterns;
mod schedules;
mod stats;
mod strict;
mod uploads;

use strict::Query;

/// Largest body that is read, in bytes.
pub const MAX_BODY: usize = 16 << 20;

/// What the handlers need.
pub struct Api {
    pub registry: Registry,
    pub catalog: Catalog,
    pub runs: Runs,
    pub schedules: Schedules,
    pub webhooks: Webhooks,
    pub nodes: Nodes,
    pub env: Arc<dyn Env>,
    pub readiness: Readiness,
    pub instruments: parallax_telemetry::Registry,
}

type Shared = State<Arc<Api>>;
type Answer<T> = Result<Json<T>>;

/// All routes, and what `/api/openapi.json` says of them: both come from the same declarations.
pub fn router(api: Api) -> Router {
    let (router, description) = OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(instruments))
        .routes(routes!(agents::list, leases::register))
        .routes(routes!(agents::capabilities))
        .routes(routes!(agents::show, agents::remove))
        .routes(routes!(agents::health))
        .routes(routes!(agents::test))
        .routes(routes!(leases::renew))
        .routes(routes!(ask::ask))
        .routes(routes!(patterns::list, uploads::create))
        .routes(routes!(uploads::file))
        .routes(routes!(patterns::show, uploads::replace, uploads::delete))
        .routes(routes!(uploads::versions))
        .routes(routes!(uploads::roll_back))
        .routes(routes!(patterns::validate))
        .routes(routes!(patterns::metrics))
        .routes(routes!(patterns::execute))
        .routes(routes!(executions::list, executions::start))
        .routes(routes!(patterns::adhoc))
        .routes(routes!(stats::summary))
        .routes(routes!(stats::hourly))
        .routes(routes!(stats::daily))
        .routes(routes!(executions::show))
        .routes(routes!(executions::cancel))
        .routes(routes!(executions::retry))
        .routes(routes!(executions::replay, executions::rerun))
        .routes(routes!(executions::diff))
        .routes(routes!(executions::timeline))
        .routes(routes!(events::list))
        .routes(routes!(events::stream))
        .routes(routes!(schedules::list, schedules::create))
        .routes(routes!(schedules::show, schedules::replace, schedules::delete))
        .routes(routes!(schedules::pause))
        .routes(routes!(schedules::resume))
        .routes(routes!(schedules::trigger))
        .routes(routes!(license::show))
        .routes(routes!(license::features))
        .routes(routes!(license::check))
        .routes(routes!(nodes))
        .routes(routes!(openapi::show))
        .split_for_parts();
    let operations = strict::Operations::of(&description);
    router
        .layer(middleware::from_fn_with_state(operations, strict::check))
        .layer(Extension(openapi::complete(description)))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(api))
}

/// How the control plane is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Health {
    #[schema(pattern = "^(healthy|degraded|unhealthy)$")]
    status: &'static str,
    timestamp: Timestamp,
    version: &'static str,
    services: Services,
    /// What has to be there before it is healthy.
    waiting_for: Vec<String>,
    /// What is wrong, and keeps it from nothing.
    warnings: Vec<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Services {
    registry: Part,
    /// Where runs are written down; while it is away none is begun, and those that were wait.
    runs: Part,
    data_plane: DataPlane,
}

#[derive(Serialize, ToSchema)]
struct Part {
    status: &'static str,
}

#[derive(Serialize, ToSchema)]
struct DataPlane {
    status: &'static str,
    nodes: usize,
}

/// Whether it serves, and what it waits for if it does not.
#[utoipa::path(
    get, path = "/health", tag = "health",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
async fn health(State(api): Shared) -> Response {
    let (ready, following) = (api.readiness.is_ready(), api.registry.is_following());
    let word = |ok| if ok { "healthy" } else { "unhealthy" };
    // Without the registry's store all goes on but what writes to it.
    let store = |answers| if answers { "healthy" } else { "degraded" };
    let stores = [(following, "registry store"), (api.runs.has_store(), "run store")];
    let mut waiting_for = api.readiness.pending();
    waiting_for.extend(stores.iter().filter(|(answers, _)| !answers).map(|(_, name)| (*name).to_owned()));
    let nodes = api.nodes.list().len();
    let problems = api.catalog.problems();
    let warning = |file: &str| format!("pattern file {file} is not in force; see /api/patterns");
    let body = Health {
        status: if ready { store(stores.iter().all(|(answers, _)| *answers)) } else { "unhealthy" },
        timestamp: api.env.now(),
        version: env!("CARGO_PKG_VERSION"),
        services: Services {
            registry: Part { status: store(stores[0].0) },
            runs: Part { status: store(stores[1].0) },
            data_plane: DataPlane { status: word(nodes > 0), nodes },
        },
        waiting_for,
        warnings: problems.iter().map(|problem| warning(&problem.origin)).collect(),
    };
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

/// The process is alive.
#[utoipa::path(get, path = "/health/live", tag = "health", responses((status = 200, body = Part)))]
async fn live() -> Json<Part> {
    Json(Part { status: "alive" })
}

/// Whether it serves.
#[utoipa::path(get, path = "/health/ready", tag = "health", responses((status = 200), (status = 503)))]
async fn ready(State(api): Shared) -> Response {
    parallax_telemetry::admin::readyz(&api.readiness)
}

/// Instruments, in the OpenMetrics text format.
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"))
)]
async fn instruments(State(api): Shared) -> Response {
    let (content_type, text) = metrics::encode(&api.instruments);
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

#[derive(Serialize, ToSchema)]
struct Members {
    count: usize,
    nodes: Vec<Node>,
}

#[derive(Serialize, ToSchema)]
struct Node {
    id: String,
    /// `host:port`
    address: String,
}

/// The data-plane nodes that have joined this process.
#[utoipa::path(get, path = "/api/nodes", tag = "health", responses((status = 200, body = Members)))]
async fn nodes(State(api): Shared) -> Json<Members> {
    let nodes: Vec<_> = api.nodes.list().into_iter().map(|(id, address)| Node { id, address }).collect();
    Json(Members { count: nodes.len(), nodes })
}

/// A JSON body, whatever its content type says; the field and the place of what is wrong are named.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let invalid = |problem| Error::Invalid { field: "body", problem };
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| match e.path().to_string() {
        path if path == "." => invalid(e.inner().to_string()),
        path => invalid(format!("{path}: {}", e.inner())),
    })?;
    json.end().map_err(|e| invalid(e.to_string()))?;
    Ok(value)
}
