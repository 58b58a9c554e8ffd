//! `/api/schedules`.

use std::time::Duration;

use ::http::StatusCode;
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
};
use jiff::Timestamp;
use parallax_security::Peer;
use serde::{Deserialize, Serialize};
use serde_json::Value as Body;
use utoipa::ToSchema;

use super::{
    super::json::ExecuteOptions,
    Answer, Shared,
    executions::{Accepted, Accepting, accepted},
    read,
};
use crate::{
    error::{Error, Result},
    schedules::{self, Missed, Overlap, Plan, Times},
    tenant,
};

/// Body of `POST /api/schedules` and `PUT /api/schedules/:name`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NewSchedule {
    /// A `PUT` has it in its path.
    #[serde(default)]
    name: String,
    pattern_name: String,
    #[serde(default)]
    pattern_version: String,
    #[serde(default)]
    input: Body,
    #[serde(default)]
    options: ExecuteOptions,
    /// Either this, with `time_zone`, or `interval_seconds`.
    cron: Option<String>,
    /// Without one, UTC.
    time_zone: Option<String>,
    interval_seconds: Option<u64>,
    #[serde(default)]
    missed: Missed,
    #[serde(default)]
    overlap: Overlap,
    #[serde(default)]
    paused: bool,
}

impl NewSchedule {
    fn plan(self) -> Result<Plan> {
        let times = match (self.cron, self.interval_seconds, self.time_zone) {
            (Some(expression), None, zone) => {
                Times::Cron { expression, time_zone: zone.unwrap_or_else(|| "UTC".to_owned()) }
            }
            (None, Some(seconds), None) => Times::Every(Duration::from_secs(seconds)),
            _ => {
                let problem = "give either cron, with or without timeZone, or intervalSeconds".to_owned();
                return Err(Error::Invalid { field: "cron", problem });
            }
        };
        Ok(Plan {
            pattern: self.pattern_name,
            version: self.pattern_version,
            input: self.input,
            options: self.options.into_options()?,
            times,
            missed: self.missed,
            overlap: self.overlap,
            paused: self.paused,
        })
    }
}

/// A schedule, and how it goes.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Schedule {
    name: String,
    pattern_name: String,
    /// Empty means the one that is current at each time.
    pattern_version: String,
    input: Body,
    options: ExecuteOptions,
    cron: Option<String>,
    time_zone: Option<String>,
    interval_seconds: Option<u64>,
    missed: Missed,
    overlap: Overlap,
    paused: bool,
    created_at: Timestamp,
    /// Absent while it is paused.
    next_time: Option<Timestamp>,
    last_run: Option<LastRun>,
    /// Times that were skipped because a run went on.
    skipped: u64,
}

/// A run that was begun by the clock.
#[derive(Serialize, ToSchema)]
struct LastRun {
    id: String,
    due: Timestamp,
    /// Why it was not begun after all.
    error: Option<String>,
}

impl Schedule {
    fn of(schedule: schedules::Schedule) -> Self {
        let next_time = schedule.next();
        let plan = schedule.plan;
        let (cron, time_zone, interval_seconds) = match plan.times {
            Times::Cron { expression, time_zone } => (Some(expression), Some(time_zone), None),
            Times::Every(every) => (None, None, Some(every.as_secs())),
        };
        Self {
            name: schedule.name,
            pattern_name: plan.pattern,
            pattern_version: plan.version,
            input: plan.input,
            options: ExecuteOptions::of(&plan.options),
            cron,
            time_zone,
            interval_seconds,
            missed: plan.missed,
            overlap: plan.overlap,
            paused: plan.paused,
            created_at: schedule.created_at,
            next_time,
            last_run: schedule.last.map(|last| LastRun { id: last.run, due: last.due, error: last.error }),
            skipped: schedule.skipped,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Schedules {
    count: usize,
    schedules: Vec<Schedule>,
}

/// All schedules, by name.
#[utoipa::path(get, path = "/api/schedules", tag = "schedules", responses((status = 200, body = Schedules)))]
pub(super) async fn list(State(api): Shared, Extension(peer): Extension<Peer>) -> Answer<Schedules> {
    let schedules = api.schedules.list(tenant::of(&peer)).await?;
    let schedules: Vec<_> = schedules.into_iter().map(Schedule::of).collect();
    Ok(Json(Schedules { count: schedules.len(), schedules }))
}

/// Makes a schedule.
#[utoipa::path(
    post, path = "/api/schedules", tag = "schedules", request_body = NewSchedule,
    responses((status = 201, body = Schedule))
)]
pub(super) async fn create(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<(StatusCode, Json<Schedule>)> {
    let mut new: NewSchedule = read(&body)?;
    let name = std::mem::take(&mut new.name);
    let schedule = api.schedules.put(tenant::of(&peer), &name, new.plan()?, false).await?;
    Ok((StatusCode::CREATED, Json(Schedule::of(schedule))))
}

/// Gives a schedule another plan; its times count from now on.
#[utoipa::path(
    put, path = "/api/schedules/{name}", tag = "schedules", request_body = NewSchedule,
    responses((status = 200, body = Schedule))
)]
pub(super) async fn replace(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Schedule> {
    let plan = read::<NewSchedule>(&body)?.plan()?;
    let schedule = api.schedules.put(tenant::of(&peer), &name, plan, true).await?;
    Ok(Json(Schedule::of(schedule)))
}

/// One schedule.
#[utoipa::path(
    get, path = "/api/schedules/{name}", tag = "schedules",
    responses((status = 200, body = Schedule))
)]
pub(super) async fn show(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Schedule> {
    Ok(Json(Schedule::of(api.schedules.get(tenant::of(&peer), &name).await?)))
}

/// Lets no more times come.
#[utoipa::path(
    post, path = "/api/schedules/{name}/pause", tag = "schedules",
    responses((status = 200, body = Schedule))
)]
pub(super) async fn pause(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Schedule> {
    Ok(Json(Schedule::of(api.schedules.pause(tenant::of(&peer), &name, true).await?)))
}

/// Goes on with the times from now on.
#[utoipa::path(
    post, path = "/api/schedules/{name}/resume", tag = "schedules",
    responses((status = 200, body = Schedule))
)]
pub(super) async fn resume(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Schedule> {
    Ok(Json(Schedule::of(api.schedules.pause(tenant::of(&peer), &name, false).await?)))
}

/// Starts a schedule's run now, paused or not.
#[utoipa::path(
    post, path = "/api/schedules/{name}/trigger", tag = "schedules",
    responses((status = 202, body = Accepted))
)]
pub(super) async fn trigger(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Accepting {
    let key = api.schedules.trigger(tenant::of(&peer), &name).await?;
    Ok(accepted(&key, &format!("{name} is run now")))
}

/// Removes a schedule; its runs stay.
#[utoipa::path(delete, path = "/api/schedules/{name}", tag = "schedules", responses((status = 204)))]
pub(super) async fn delete(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    api.schedules.delete(tenant::of(&peer), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
