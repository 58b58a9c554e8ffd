//! `/api/executions/:id/events`: a run's journal as events, all at once or as it grows.

use std::{convert::Infallible, time::Duration};

use ::http::HeaderMap;
use axum::{
    Extension, Json,
    extract::{Path, RawQuery, State},
    response::sse::{self, KeepAlive, Sse},
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use parallax_security::Peer;
use serde_json::json;
use tracing::warn;

use super::{Answer, Query, Shared};
use crate::{
    error::{Error, Result},
    runs::Stretch,
    tenant,
    view::{Happening, happenings},
};

/// How often a silent stream says that it is alive.
const ALIVE: Duration = Duration::from_secs(15);

/// After which event to begin.
type Cursor = Option<(u64, usize)>;

fn after(query: Option<&str>, headers: &HeaderMap) -> Result<Cursor> {
    let query = Query::parse(query.unwrap_or_default(), &["after"])?;
    // A browser's EventSource says where it was by a header.
    let header = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let parse = |text: &str| {
        let parts = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let problem = format!("\"{text}\" is not the id of an event, like 12.0");
        parts.ok_or(Error::Invalid { field: "after", problem })
    };
    header.or(query.get("after")).map(parse).transpose()
}

fn of(stretch: &Stretch, after: Cursor) -> Vec<Happening> {
    let all = (stretch.from..).zip(&stretch.entries);
    let all = all.flat_map(|(position, entry)| happenings(position, entry, &stretch.summary));
    all.filter(|happening| after.is_none_or(|after| after < happening.at)).collect()
}

pub(super) async fn list(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let after = after(query.as_deref(), &headers)?;
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let events = of(&Stretch { from: 0, entries: run.entries, summary: run.summary }, after);
    Ok(Json(json!({"events": events, "count": events.len()})))
}

/// Server-sent events; a stream that is opened again with the last id it has seen goes on there.
pub(super) async fn stream(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>> {
    let after = after(query.as_deref(), &headers)?;
    let key = api.runs.find(tenant::of(&peer), &id).await?.summary.key;
    let stretches = api.runs.follow(&key, after.map_or(0, |(position, _)| position));
    let events = stretches.map_ok(move |stretch| {
        let events: Vec<_> = of(&stretch, after).iter().map(event).collect();
        stream::iter(events.into_iter().map(Ok::<_, Error>))
    });
    let events = events
        .try_flatten()
        .scan((), |(), event| async { event.inspect_err(|e| warn!("a stream of events ends: {e}")).ok() });
    Ok(Sse::new(events.map(Ok)).keep_alive(KeepAlive::new().interval(ALIVE)))
}

fn event(happening: &Happening) -> sse::Event {
    let event = sse::Event::default().id(&happening.id).event(happening.kind);
    event.json_data(happening).expect("plain data")
}
