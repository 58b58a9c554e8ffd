//! `/api/patterns`.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use parallax_runtime::env::millis;
use parallax_security::Peer;
use serde::{Deserialize, Serialize};
use serde_json::Value as Body;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{
    super::json::{Execute, Execution, Pattern},
    Answer, Shared, events, read,
};
use crate::{
    error::{Error, Result},
    runs,
    stats::{self, Totals},
    tenant,
};

#[derive(Serialize, ToSchema)]
pub(super) struct Patterns {
    count: usize,
    patterns: Vec<Pattern>,
}

/// All patterns, by name.
#[utoipa::path(get, path = "/api/patterns", tag = "patterns", responses((status = 200, body = Patterns)))]
pub(super) async fn list(State(api): Shared) -> Json<Patterns> {
    let patterns: Vec<_> = api.catalog.list().map(|pattern| Pattern::of(pattern)).collect();
    Json(Patterns { count: patterns.len(), patterns })
}

/// One pattern; its name may be spelled in `CamelCase`, `kebab-case` or `snake_case`.
#[utoipa::path(
    get, path = "/api/patterns/{name}", tag = "patterns",
    responses((status = 200, body = Pattern))
)]
pub(super) async fn show(State(api): Shared, Path(name): Path<String>) -> Answer<Pattern> {
    Ok(Json(Pattern::of(&*api.catalog.get(&name, "")?)))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Validate {
    #[serde(default)]
    input: Body,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Validated {
    valid: bool,
    /// What does not fit the pattern's `@input`, with JSON pointers.
    errors: Vec<String>,
}

/// Whether a run could begin with an input.
#[utoipa::path(
    post, path = "/api/patterns/{name}/validate", tag = "patterns", request_body = Validate,
    responses((status = 200, body = Validated))
)]
pub(super) async fn validate(State(api): Shared, Path(name): Path<String>, body: Bytes) -> Answer<Validated> {
    let Validate { input } = read(&body)?;
    let errors = match api.catalog.get(&name, "")?.accept(&input) {
        Ok(()) => vec![],
        Err(Error::Input { misfits, .. }) => misfits,
        Err(e) => return Err(e),
    };
    Ok(Json(Validated { valid: errors.is_empty(), errors }))
}

/// The runs of a pattern in numbers.
#[utoipa::path(
    get, path = "/api/patterns/{name}/metrics", tag = "patterns",
    responses((status = 200, body = Totals))
)]
pub(super) async fn metrics(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Totals> {
    let name = api.catalog.get(&name, "")?.header.name.clone();
    stats::totals(&api.runs, tenant::of(&peer), Some(name)).await.map(Json)
}

#[derive(Serialize, ToSchema)]
pub(super) struct Executed {
    execution: Execution,
    /// Milliseconds.
    duration: u64,
}

/// Runs a pattern, and answers when it has ended; with `options.stream`, with its events as they happen. A run that
/// fails is executed all the same, and answered with 200.
#[utoipa::path(
    post, path = "/api/patterns/{name}/execute", tag = "patterns", request_body = Execute,
    responses((status = 200, content((Executed = "application/json"), (String = "text/event-stream"))))
)]
pub(super) async fn execute(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let Execute { input, options } = read(&body)?;
    let begun = Instant::now();
    let stream = options.stream;
    let request =
        runs::Request { pattern: name, input, options: options.into_options(), ..Default::default() };
    let key = api.runs.start(tenant::of(&peer), request).await?;
    if stream {
        return Ok(events::follow(&api, &key, None).into_response());
    }
    let run = api.runs.wait(&key).await?;
    // A run that failed has still been executed: existing clients send any 5xx again.
    let executed = Executed { execution: Execution::of(&run), duration: millis(begun.elapsed()) };
    Ok(Json(executed).into_response())
}
