//! Runs in numbers, reckoned from the newest of them: stores list runs and count them, no more.

use std::collections::BTreeMap;

use jiff::Timestamp;
use parallax_runtime::{
    env::millis,
    run::{Status, Summary},
    store::RunQuery,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{error::Result, runs::Runs};

/// So many runs are read at most, so many at a time.
const MOST: (usize, u64) = (10_000, 1_000);

/// Numbers of runs; those within runs are counted too.
#[derive(Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Numbers {
    pub total: u64,
    pub pending: u64,
    pub running: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Calls to agents, and how many of them failed.
    pub calls: u64,
    pub calls_failed: u64,
    /// Of those that have ended, the share that completed; absent when none has.
    #[schema(minimum = 0, maximum = 1)]
    pub success_rate: Option<f64>,
    /// Milliseconds; of those that have ended.
    pub average_duration: Option<f64>,
    /// Of the results that carry a confidence.
    #[schema(minimum = 0, maximum = 1)]
    pub average_confidence: Option<f64>,
}

/// What numbers were reckoned from: the newest runs.
#[derive(Serialize, ToSchema)]
pub struct Counted {
    /// How many were read.
    pub runs: u64,
    /// Whether these are all that are meant; at most 10 000 are read.
    pub complete: bool,
}

/// Numbers, and what they were reckoned from.
#[derive(Serialize, ToSchema)]
pub struct Totals {
    #[serde(flatten)]
    pub numbers: Numbers,
    pub counted: Counted,
}

/// Numbers of each of the last hours or days, the oldest first.
#[derive(Serialize, ToSchema)]
pub struct Buckets {
    pub buckets: Vec<Bucket>,
    pub counted: Counted,
}

/// Numbers of the runs that began in one hour or one day.
#[derive(Serialize, ToSchema)]
pub struct Bucket {
    /// Its beginning, UTC.
    pub start: Timestamp,
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// All runs of a tenant, or of one of its patterns.
///
/// # Errors
/// The store's.
pub async fn totals(runs: &Runs, tenant: &str, pattern: Option<String>) -> Result<Totals> {
    let (runs, counted) = newest(runs, tenant, pattern, Timestamp::MIN).await?;
    Ok(Totals { numbers: Numbers::of(&runs), counted })
}

/// The last `count` stretches of `seconds`, the present one included.
///
/// # Errors
/// The store's.
pub async fn buckets(runs: &Runs, tenant: &str, seconds: i64, count: i64) -> Result<Buckets> {
    let number = |at: Timestamp| at.as_second().div_euclid(seconds);
    let start = |number: i64| Timestamp::from_second(number * seconds).unwrap_or(Timestamp::MIN);
    let last = number(runs.context().env.now());
    let first = last - count + 1;
    let (runs, counted) = newest(runs, tenant, None, start(first)).await?;
    let mut sorted: BTreeMap<i64, Vec<Summary>> = (first..=last).map(|number| (number, vec![])).collect();
    for run in runs {
        sorted.entry(number(run.started_at)).or_default().push(run);
    }
    let bucket = |(number, runs): (_, Vec<_>)| Bucket { start: start(number), numbers: Numbers::of(&runs) };
    Ok(Buckets { buckets: sorted.into_iter().map(bucket).collect(), counted })
}

/// The runs that began at `since` or later.
async fn newest(
    runs: &Runs,
    tenant: &str,
    pattern: Option<String>,
    since: Timestamp,
) -> Result<(Vec<Summary>, Counted)> {
    let mut found: Vec<Summary> = vec![];
    let mut query = RunQuery { tenant: tenant.to_owned(), pattern, limit: MOST.1, ..RunQuery::default() };
    let complete = loop {
        let page = runs.list(&query).await?.runs;
        let (read, last) = (page.len() as u64, page.last().map(|run| run.key.id.clone()));
        let known = found.len();
        found.extend(page.into_iter().take_while(|run| run.started_at >= since));
        if read < query.limit || ((found.len() - known) as u64) < read {
            break true;
        }
        if found.len() >= MOST.0 {
            break false;
        }
        query.before = last;
    };
    let counted = Counted { runs: found.len() as u64, complete };
    Ok((found, counted))
}

impl Numbers {
    fn of(runs: &[Summary]) -> Self {
        let count = |status| runs.iter().filter(|run| run.status == status).count() as u64;
        let took =
            |run: &Summary| Some(millis(run.ended_at?.duration_since(run.started_at).unsigned_abs()) as f64);
        let (completed, failed, cancelled) =
            (count(Status::Completed), count(Status::Failed), count(Status::Cancelled));
        let ended = completed + failed + cancelled;
        Self {
            total: runs.len() as u64,
            pending: count(Status::Pending),
            running: count(Status::Running),
            completed,
            failed,
            cancelled,
            calls: runs.iter().map(|run| u64::from(run.calls)).sum(),
            calls_failed: runs.iter().map(|run| u64::from(run.calls_failed)).sum(),
            success_rate: (ended > 0).then(|| completed as f64 / ended as f64),
            average_duration: mean(runs.iter().filter_map(took)),
            average_confidence: mean(runs.iter().filter_map(|run| run.confidence)),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}
