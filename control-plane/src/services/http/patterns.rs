//! `/api/patterns`.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
};
use parallax_runtime::env::millis;
use parallax_security::Peer;
use serde_json::{Value as Body, json};
use tokio::time::Instant;

use super::{super::json, Answer, Shared, read};
use crate::{runs, tenant};

pub(super) async fn list(State(api): Shared) -> Json<Body> {
    let patterns: Vec<_> = api.catalog.list().map(|pattern| json::pattern(pattern)).collect();
    Json(json!({"count": patterns.len(), "patterns": patterns}))
}

pub(super) async fn show(State(api): Shared, Path(name): Path<String>) -> Answer {
    Ok(Json(json::pattern(&*api.catalog.get(&name, "")?)))
}

pub(super) async fn execute(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer {
    let json::Execute { input, options } = read(&body)?;
    let begun = Instant::now();
    let request =
        runs::Request { pattern: name, input, options: options.to_options()?, ..Default::default() };
    let key = api.runs.start(tenant::of(&peer), request).await?;
    let run = api.runs.wait(&key).await?;
    // A run that failed has still been executed: existing clients send any 5xx again.
    Ok(Json(json!({"execution": json::execution(&run), "duration": millis(begun.elapsed())})))
}
