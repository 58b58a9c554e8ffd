//! `/api/executions/:id/events`: a run's journal as events, all at once or as it grows.

use std::{convert::Infallible, time::Duration};

use ::http::HeaderMap;
use axum::{
    Extension, Json,
    extract::{Path, State},
    response::{
        IntoResponse,
        sse::{self, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use parallax_runtime::run::RunKey;
use parallax_security::Peer;
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use super::{Answer, Api, Query, Shared};
use crate::{
    error::{Error, Result},
    runs::Stretch,
    tenant,
    view::{Cursor, Happening},
};

/// How often a silent stream says that it is alive.
const ALIVE: Duration = Duration::from_secs(15);

fn after(query: &Query, headers: &HeaderMap) -> Result<Cursor> {
    // A browser's EventSource says where it was by a header.
    let header = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let parse = |text: &str| {
        let parts = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let problem = format!("\"{text}\" is not the id of an event, like 12.0");
        parts.ok_or(Error::Invalid { field: "after", problem })
    };
    header.or(query.get("after")).map(parse).transpose()
}

#[derive(Serialize, ToSchema)]
pub(super) struct Events {
    events: Vec<Happening>,
    count: usize,
}

/// What has happened in a run so far.
#[utoipa::path(
    get, path = "/api/executions/{id}/events", tag = "events",
    params(("after" = Option<String>, Query, description = "Only events after the one of this id")),
    responses((status = 200, body = Events))
)]
pub(super) async fn list(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Answer<Events> {
    let after = after(&query, &headers)?;
    let run = api.runs.find(tenant::of(&peer), &id).await?;
    let events = Stretch { from: 0, entries: run.entries, summary: run.summary }.happenings(after);
    Ok(Json(Events { count: events.len(), events }))
}

/// What happens in a run, from its beginning, as server-sent events; ends with the run. A stream that is opened again
/// with the last id it has seen (`after`, or the header `Last-Event-ID`) goes on there.
#[utoipa::path(
    get, path = "/api/executions/{id}/events/stream", tag = "events",
    params(("after" = Option<String>, Query, description = "Only events after the one of this id")),
    responses((status = 200, body = String, content_type = "text/event-stream"))
)]
pub(super) async fn stream(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Result<impl IntoResponse> {
    let after = after(&query, &headers)?;
    let key = api.runs.find(tenant::of(&peer), &id).await?.summary.key;
    Ok(follow(&api, &key, after))
}

/// A run's events as they happen. Each is written in one piece: there are clients that lose one that is not.
pub(super) fn follow(
    api: &Api,
    run: &RunKey,
    after: Cursor,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>> + use<>> {
    let stretches = api.runs.follow(run, after.map_or(0, |(position, _)| position));
    let events = stretches.map_ok(move |stretch| {
        let events: Vec<_> = stretch.happenings(after).iter().map(event).collect();
        stream::iter(events.into_iter().map(Ok::<_, Error>))
    });
    let events = events
        .try_flatten()
        .scan((), |(), event| async { event.inspect_err(|e| warn!("a stream of events ends: {e}")).ok() });
    Sse::new(events.map(Ok)).keep_alive(KeepAlive::new().interval(ALIVE))
}

fn event(happening: &Happening) -> sse::Event {
    let event = sse::Event::default().id(&happening.id).event(happening.kind);
    event.json_data(happening).expect("plain data")
}
