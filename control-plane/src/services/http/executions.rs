//! `/api/executions`.

use ::http::StatusCode;
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
};
use parallax_runtime::{
    error::{Code, Coded},
    run::{Run, RunKey, Status},
    store::RunQuery,
};
use parallax_security::Peer;
use serde::{Deserialize, Serialize};
use serde_json::Value as Body;
use utoipa::ToSchema;

use super::{
    super::json::{Execution, Listed, Start, journal},
    Answer, Query, Shared, read,
};
use crate::{
    error::{Error, Result},
    replay::{self, Divergence, Replay},
    runs, tenant,
    timeline::{self, Timeline},
    webhooks::Deliveries,
};

/// The most runs that one page holds, and how many it holds when the caller does not say.
const PAGE: (u64, u64) = (1000, 50);

#[derive(Serialize, ToSchema)]
pub(super) struct Page {
    executions: Vec<Listed>,
    /// How many match in all, whatever the page.
    total: u64,
    limit: u64,
    offset: u64,
}

/// Runs, the newest first, without input and result.
#[utoipa::path(
    get, path = "/api/executions", tag = "executions",
    params(
        ("limit" = Option<u64>, Query, description = "1 to 1000; 50 if not given"),
        ("offset" = Option<u64>, Query),
        ("status" = Option<String>, Query, description = "pending, running, completed, failed or cancelled"),
        ("pattern" = Option<String>, Query, description = "In any of the three spellings"),
        ("before" = Option<String>, Query, description = "Only runs older than the one of this id"),
    ),
    responses((status = 200, body = Page))
)]
pub(super) async fn list(State(api): Shared, Extension(peer): Extension<Peer>, query: Query) -> Answer<Page> {
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
    let tenant = tenant::of(&peer);
    let own_spelling = |name: &str| {
        api.catalog.get(tenant, name, "").map_or_else(|_| name.to_owned(), |p| p.header.name.clone())
    };
    let pattern = query.get("pattern").map(own_spelling);
    let before = match query.get("before") {
        None => None,
        Some(id) => Some(api.runs.find(tenant, id).await?.summary.key.id),
    };
    let page = api
        .runs
        .list(&RunQuery { tenant: tenant.to_owned(), status, pattern, before, offset, limit })
        .await?;
    let executions = page.runs.iter().map(Listed::of).collect();
    Ok(Json(Page { executions, total: page.total, limit, offset }))
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    #[serde(flatten)]
    execution: Execution,
    /// Every effect with its outcome and time.
    #[schema(value_type = Vec<Object>)]
    journal: Vec<Body>,
    /// How many are before it in the line, and it; absent when it does not wait here.
    queue_position: Option<usize>,
    webhook: Option<Deliveries>,
}

/// One run, with its journal.
#[utoipa::path(
    get, path = "/api/executions/{id}", tag = "executions",
    responses((status = 200, body = Shown))
)]
pub(super) async fn show(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer<Shown> {
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let key = &run.summary.key;
    let queue_position = api.runs.position(key);
    let webhook = match api.webhooks.state(key).await {
        // Runs are shown while the registry's store is away; of a webhook nobody can tell then.
        Err(e) if e.code() == Code::Unavailable => None,
        state => state?,
    };
    Ok(Json(Shown { execution: Execution::of(&run), journal: journal(&run), queue_position, webhook }))
}

/// Starts a run, and does not wait for it.
#[utoipa::path(
    post, path = "/api/executions", tag = "executions", request_body = Start,
    responses((status = 202, body = Accepted))
)]
pub(super) async fn start(State(api): Shared, Extension(peer): Extension<Peer>, body: Bytes) -> Accepting {
    let Start { pattern_name, pattern_version, input, options, webhook } = read(&body)?;
    let request = runs::Request {
        pattern: pattern_name,
        version: pattern_version,
        input,
        options: options.into_options()?,
        ..runs::Request::default()
    };
    let (tenant, told) = (tenant::of(&peer), webhook.is_some());
    let key = match webhook {
        Some(hook) => api.webhooks.start(tenant, request, hook).await?,
        None => api.runs.start(tenant, request).await?,
    };
    let (status, Json(mut body)) = accepted(&key, "the run has been started");
    body.webhook_configured = told;
    Ok((status, Json(body)))
}

/// A run that has been started.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Accepted {
    id: String,
    /// `accepted`
    status: &'static str,
    message: String,
    stream_url: String,
    webhook_configured: bool,
}

pub(super) type Accepting = Result<(StatusCode, Json<Accepted>)>;

pub(super) fn accepted(key: &RunKey, message: &str) -> (StatusCode, Json<Accepted>) {
    let body = Accepted {
        id: key.id.clone(),
        status: "accepted",
        message: message.to_owned(),
        stream_url: format!("/api/executions/{}/events/stream", key.id),
        webhook_configured: false,
    };
    (StatusCode::ACCEPTED, Json(body))
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cancel {
    reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Cancelled {
    execution: Execution,
}

/// Ends a run and those within it; their agents see the cancellation.
#[utoipa::path(
    post, path = "/api/executions/{id}/cancel", tag = "executions", request_body = Option<Cancel>,
    responses((status = 200, body = Cancelled))
)]
pub(super) async fn cancel(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Cancelled> {
    let Cancel { reason } = if body.is_empty() { Cancel::default() } else { read(&body)? };
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let reason = reason.unwrap_or_else(|| "asked for through the API".to_owned());
    let run = api.runs.cancel(&run.summary.key, &reason).await?;
    Ok(Json(Cancelled { execution: Execution::of(&run) }))
}

/// Runs the same pattern with the same input again.
#[utoipa::path(
    post, path = "/api/executions/{id}/retry", tag = "executions",
    responses((status = 202, body = Accepted))
)]
pub(super) async fn retry(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Accepting {
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let key = api.runs.retry(&run.summary.key).await?;
    Ok(accepted(&key, &format!("run {id} is done again")))
}

/// Does a run again from its journal, and asks nobody.
#[utoipa::path(
    get, path = "/api/executions/{id}/replay", tag = "executions",
    responses((status = 200, body = Replay))
)]
pub(super) async fn replay(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer<Replay> {
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    off_thread(move || replay::replay(&run)).await.map(Json)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rerun {
    /// The effect that is asked for anew, and all that follow it.
    from: u64,
}

/// Starts a run that takes over the beginning of another.
#[utoipa::path(
    post, path = "/api/executions/{id}/replay", tag = "executions", request_body = Rerun,
    responses((status = 202, body = Accepted))
)]
pub(super) async fn rerun(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    body: Bytes,
) -> Accepting {
    let Rerun { from } = read(&body)?;
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let key = api.runs.rerun(&run.summary.key, from).await?;
    Ok(accepted(&key, &format!("run {id} is done again from effect {from}")))
}

#[derive(Serialize, ToSchema)]
pub(super) struct Diff {
    a: String,
    b: String,
    identical: bool,
    /// The first place where they part.
    divergence: Option<Divergence>,
}

/// Where two runs part.
#[utoipa::path(
    get, path = "/api/executions/{id}/diff/{other}", tag = "executions",
    responses((status = 200, body = Diff))
)]
pub(super) async fn diff(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path((id, other)): Path<(String, String)>,
) -> Answer<Diff> {
    let find = async |id: &str| api.runs.find(tenant::of(&peer), id).await;
    let (one, two): (Run, Run) = (find(&id).await?, find(&other).await?);
    let divergence = replay::diff(&one, &two);
    Ok(Json(Diff { a: id, b: other, identical: divergence.is_none(), divergence }))
}

/// Where a run's time went.
#[utoipa::path(
    get, path = "/api/executions/{id}/timeline", tag = "executions",
    responses((status = 200, body = Timeline))
)]
pub(super) async fn timeline(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer<Timeline> {
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    Ok(Json(timeline::of(&run, api.env.now())))
}

/// What keeps a thread busy is done where it holds up nobody.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::Invalid { field: "run", problem: "replaying it panicked".to_owned() }))
}
