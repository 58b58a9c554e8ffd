//! `/api/executions/stats`.

use axum::{Extension, Json, extract::State};
use parallax_security::Peer;

use super::{Answer, Shared};
use crate::{
    stats::{self, Buckets, Totals},
    tenant,
};

/// All runs in numbers.
#[utoipa::path(
    get, path = "/api/executions/stats/summary", tag = "executions",
    responses((status = 200, body = Totals))
)]
pub(super) async fn summary(State(api): Shared, Extension(peer): Extension<Peer>) -> Answer<Totals> {
    stats::totals(&api.runs, tenant::of(&peer), None).await.map(Json)
}

/// The last 24 hours in numbers, hour by hour.
#[utoipa::path(
    get, path = "/api/executions/stats/hourly", tag = "executions",
    responses((status = 200, body = Buckets))
)]
pub(super) async fn hourly(State(api): Shared, Extension(peer): Extension<Peer>) -> Answer<Buckets> {
    stats::buckets(&api.runs, tenant::of(&peer), 3_600, 24).await.map(Json)
}

/// The last 30 days in numbers, day by day, UTC.
#[utoipa::path(
    get, path = "/api/executions/stats/daily", tag = "executions",
    responses((status = 200, body = Buckets))
)]
pub(super) async fn daily(State(api): Shared, Extension(peer): Extension<Peer>) -> Answer<Buckets> {
    stats::buckets(&api.runs, tenant::of(&peer), 86_400, 30).await.map(Json)
}
