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
    super::json::{Adhoc, Execute, Execution, Pattern},
    Answer, Api, Query, Shared, events,
    executions::{Accepted, accepted},
    read,
};
use crate::{
    error::{Error, Result},
    patterns::InvalidPattern,
    runs,
    stats::{self, Totals},
    tenant,
};

#[derive(Serialize, ToSchema)]
pub(super) struct Patterns {
    count: usize,
    patterns: Vec<Pattern>,
    /// The files of the pattern directory that are not in force.
    problems: Vec<BrokenFile>,
}

#[derive(Serialize, ToSchema)]
struct BrokenFile {
    file: String,
    /// What is wrong, as a person reads it.
    report: String,
    /// The same as programs read it: severity, message and line of each.
    #[schema(value_type = Vec<Object>)]
    diagnostics: Body,
}

impl BrokenFile {
    fn of(problem: &InvalidPattern) -> Self {
        let InvalidPattern { origin, report, .. } = problem;
        Self { file: origin.clone(), report: report.clone(), diagnostics: problem.findings() }
    }
}

/// All patterns, by name.
#[utoipa::path(get, path = "/api/patterns", tag = "patterns", responses((status = 200, body = Patterns)))]
pub(super) async fn list(State(api): Shared, Extension(peer): Extension<Peer>) -> Json<Patterns> {
    let patterns = api.catalog.list(tenant::of(&peer));
    let patterns: Vec<_> = patterns.iter().map(|pattern| Pattern::of(pattern)).collect();
    let problems = api.catalog.problems();
    let problems = problems.iter().map(|problem| BrokenFile::of(problem)).collect();
    Json(Patterns { count: patterns.len(), patterns, problems })
}

/// One pattern; its name may be spelled in `CamelCase`, `kebab-case` or `snake_case`.
#[utoipa::path(
    get, path = "/api/patterns/{name}", tag = "patterns",
    params(("version" = Option<String>, Query, description = "Another than the current one")),
    responses((status = 200, body = Pattern))
)]
pub(super) async fn show(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    query: Query,
) -> Answer<Pattern> {
    let version = query.get("version").unwrap_or_default();
    Ok(Json(Pattern::of(&*api.catalog.get(tenant::of(&peer), &name, version)?)))
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
pub(super) async fn validate(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Validated> {
    let Validate { input } = read(&body)?;
    let errors = match api.catalog.get(tenant::of(&peer), &name, "")?.accept(&input) {
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
    let tenant = tenant::of(&peer);
    let name = api.catalog.get(tenant, &name, "")?.header.name.clone();
    stats::totals(&api.runs, tenant, Some(name)).await.map(Json)
}

#[derive(Serialize, ToSchema)]
pub(super) struct Executed {
    execution: Execution,
    /// Milliseconds.
    duration: u64,
}

/// Runs a pattern, and answers when it has ended; with `options.stream`, with its events as they happen. A run that
/// fails is executed all the same, and answered with 200; one that goes on when the process stops, as one that has
/// been started.
#[utoipa::path(
    post, path = "/api/patterns/{name}/execute", tag = "patterns", request_body = Execute,
    responses(
        (status = 200, content((Executed = "application/json"), (String = "text/event-stream"))),
        (status = 202, body = Accepted, description = "The process stops, and the run goes on")
    )
)]
pub(super) async fn execute(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let Execute { input, options } = read(&body)?;
    let stream = options.stream;
    let request =
        runs::Request { pattern: name, input, options: options.into_options()?, ..Default::default() };
    run(&api, &peer, request, stream).await
}

/// The same for a script that is in no catalogue.
#[utoipa::path(
    post, path = "/api/executions/adhoc", tag = "executions", request_body = Adhoc,
    responses(
        (status = 200, content((Executed = "application/json"), (String = "text/event-stream"))),
        (status = 202, body = Accepted, description = "The process stops, and the run goes on")
    )
)]
pub(super) async fn adhoc(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Response> {
    let Adhoc { script, input, options } = read(&body)?;
    let stream = options.stream;
    let (script, options) = (Some(script), options.into_options()?);
    run(&api, &peer, runs::Request { script, input, options, ..Default::default() }, stream).await
}

/// A run from its start to its end.
async fn run(api: &Api, peer: &Peer, request: runs::Request, stream: bool) -> Result<Response> {
    let begun = Instant::now();
    let key = api.runs.start(tenant::of(peer), request).await?;
    if stream {
        return Ok(events::follow(api, &key, None).into_response());
    }
    let run = match api.runs.wait(&key).await {
        Ok(run) => run,
        // Existing clients would send the request again, and the run is there.
        Err(e @ Error::Unfinished { .. }) => return Ok(accepted(&key, &e.to_string()).into_response()),
        Err(e) => return Err(e),
    };
    // A run that failed has still been executed: existing clients send any 5xx again.
    let executed = Executed { execution: Execution::of(&run), duration: millis(begun.elapsed()) };
    Ok(Json(executed).into_response())
}
