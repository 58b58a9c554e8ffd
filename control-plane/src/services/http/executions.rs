//! `/api/executions`.

use ::http::StatusCode;
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, RawQuery, State},
};
use parallax_runtime::{
    run::{Run, RunKey, Status},
    store::RunQuery,
};
use parallax_security::Peer;
use serde::Deserialize;
use serde_json::{Value as Body, json};

use super::{super::json, Answer, Query, Shared, read};
use crate::{
    error::{Error, Result},
    replay, runs, tenant, timeline,
};

/// The most runs that one page holds, and how many it holds when the caller does not say.
const PAGE: (u64, u64) = (1000, 50);

pub(super) async fn list(
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

pub(super) async fn show(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer {
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let mut body = json::execution(&run);
    body["journal"] = json::journal(&run);
    body["queuePosition"] = json!(api.runs.position(&run.summary.key));
    Ok(Json(body))
}

/// Starts a run, and does not wait for it.
pub(super) async fn start(State(api): Shared, Extension(peer): Extension<Peer>, body: Bytes) -> Accepted {
    let json::Start { pattern_name, pattern_version, input, options } = read(&body)?;
    let request = runs::Request {
        pattern: pattern_name,
        version: pattern_version,
        input,
        options: options.to_options()?,
        origin: None,
    };
    let key = api.runs.start(tenant::of(&peer), request).await?;
    Ok(accepted(&key, "the run has been started"))
}

type Accepted = Result<(StatusCode, Json<Body>)>;

fn accepted(key: &RunKey, message: &str) -> (StatusCode, Json<Body>) {
    let body = json!({
        "id": key.id,
        "status": "accepted",
        "message": message,
        "streamUrl": format!("/api/executions/{}/events/stream", key.id),
        "webhookConfigured": false,
    });
    (StatusCode::ACCEPTED, Json(body))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Cancel {
    reason: Option<String>,
}

pub(super) async fn cancel(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer {
    let Cancel { reason } = if body.is_empty() { Cancel::default() } else { read(&body)? };
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let reason = reason.unwrap_or_else(|| "asked for through the API".to_owned());
    let run = api.runs.cancel(&run.summary.key, &reason).await?;
    Ok(Json(json!({"execution": json::execution(&run)})))
}

pub(super) async fn retry(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Accepted {
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let key = api.runs.retry(&run.summary.key).await?;
    Ok(accepted(&key, &format!("run {id} is done again")))
}

/// Does a run again from its journal, and asks nobody.
pub(super) async fn replay(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer {
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let replayed = off_thread(move || replay::replay(&run)).await?;
    Ok(Json(json!(replayed)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rerun {
    from: u64,
}

/// Starts a run that takes over the beginning of another.
pub(super) async fn rerun(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    body: Bytes,
) -> Accepted {
    let Rerun { from } = read(&body)?;
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let key = api.runs.rerun(&run.summary.key, from).await?;
    Ok(accepted(&key, &format!("run {id} is done again from effect {from}")))
}

pub(super) async fn diff(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path((a, b)): Path<(String, String)>,
) -> Answer {
    let find = async |id: &str| api.runs.find(tenant::of(&peer), id).await;
    let (one, other): (Run, Run) = (find(&a).await?, find(&b).await?);
    let divergence = replay::diff(&one, &other);
    Ok(Json(json!({"a": a, "b": b, "identical": divergence.is_none(), "divergence": divergence})))
}

pub(super) async fn timeline(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Answer {
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    Ok(Json(json!(timeline::of(&run, api.env.now()))))
}

/// What keeps a thread busy is done where it holds up nobody.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::Invalid { field: "run", problem: "replaying it panicked".to_owned() }))
}
