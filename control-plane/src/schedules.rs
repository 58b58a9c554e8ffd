//! Schedules: runs that begin by the clock.
//!
//! A schedule is a key, and says which of its times was dealt with last. One process looks at the clock (see
//! [`crate::leader`]): it moves that mark by compare-and-set, together with the id of the run that is to begin, and only
//! then begins it. So no time is run twice, whoever else takes itself for the leader; and one that was marked by a
//! process that died is begun by the next leader, under the same id.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use parallax_runtime::{
    env::Env,
    run::{Options, RunKey},
    store::{Entry, Expect, RegistryStore, Revision, StoreError},
};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use utoipa::ToSchema;

mod clock;
mod times;

use crate::{
    error::{Error, Result},
    leader::lead,
    runs::{Request, Runs},
};
pub use times::Times;

/// `/parallax/schedules/<tenant>/<name>`.
const SCHEDULES: &str = "/parallax/schedules/";
/// A time that comes later than this has been missed: nobody led, or the store was away.
const GRACE: Duration = Duration::from_secs(10);
/// Of missed times at most this many are caught up with, the last ones.
const MOST: usize = 100;
/// The longest name, in bytes.
const MAX_NAME: usize = 128;
/// A change that loses this many races gives up.
const RACES: usize = 8;

/// What becomes of the times that nobody was there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// Nothing.
    Skip,
    /// One run for all of them.
    #[default]
    Once,
    /// A run for each, up to a hundred.
    All,
}

/// What is done when a time comes while the run of the one before goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Both run.
    #[default]
    Allow,
    /// The time is skipped.
    Skip,
}

/// What is to be run, and when.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub pattern: String,
    /// Empty means the one that is current then.
    pub version: String,
    pub input: Json,
    pub options: Options,
    pub times: Times,
    pub missed: Missed,
    pub overlap: Overlap,
    pub paused: bool,
}

/// A run that was begun by the clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Last {
    pub run: String,
    pub due: Timestamp,
    /// Why it was not begun after all.
    pub error: Option<String>,
}

/// A schedule as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Schedule {
    pub tenant: String,
    pub name: String,
    pub plan: Plan,
    pub created_at: Timestamp,
    /// Up to here all times have been dealt with.
    pub dealt_with: Timestamp,
    pub last: Option<Last>,
    /// Times that were skipped because a run went on.
    pub skipped: u64,
}

impl Schedule {
    /// When it comes next; `None` while it is paused.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        if self.plan.paused { None } else { self.plan.times.after(self.created_at, self.dealt_with) }
    }

    /// The times to run now, oldest first.
    fn due(&self, now: Timestamp) -> Vec<Timestamp> {
        let mut times = self.plan.times.between(self.created_at, self.dealt_with, now, MOST);
        let on_time = times.iter().filter(|time| now - GRACE <= **time).count();
        match self.plan.missed {
            Missed::All => times,
            Missed::Once if on_time == 0 => times.pop().into_iter().collect(),
            Missed::Once | Missed::Skip => times.split_off(times.len() - on_time),
        }
    }

    fn path(&self) -> String {
        path(&self.tenant, &self.name)
    }
}

/// All schedules. Cheap to clone.
#[derive(Clone)]
pub struct Schedules(Arc<Inner>);

struct Inner {
    store: Arc<dyn RegistryStore>,
    runs: Runs,
    env: Arc<dyn Env>,
}

impl Schedules {
    /// Looks at the clock whenever this process leads.
    pub fn open(store: Arc<dyn RegistryStore>, runs: &Runs) -> Self {
        let (env, life) = (runs.context().env.clone(), runs.context().life.clone());
        let schedules = Self(Arc::new(Inner { store: store.clone(), runs: runs.clone(), env: env.clone() }));
        let leading = schedules.clone();
        lead("schedules", store, &*env, &life, move || leading.clone().keep_time());
        schedules
    }

    /// Makes a schedule, or gives one that is there (`replace`) another plan; its times count from now on.
    ///
    /// # Errors
    /// A plan that cannot stand: no such pattern, input that does not fit it, no such time; a name that is taken, or
    /// that is not there to be replaced; the store's.
    pub async fn put(&self, tenant: &str, name: &str, plan: Plan, replace: bool) -> Result<Schedule> {
        let now = self.0.env.now();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
            let problem = format!("\"{name}\" is not 1 to {MAX_NAME} letters, digits and . - _");
            return Err(Error::Invalid { field: "name", problem });
        }
        plan.times.check(now)?;
        self.0.runs.context().catalog.get(tenant, &plan.pattern, &plan.version)?.accept(&plan.input)?;
        if replace {
            let change = |schedule: &mut Schedule| {
                (schedule.plan, schedule.created_at, schedule.dealt_with) = (plan.clone(), now, now);
            };
            return self.change(tenant, name, change).await;
        }
        let schedule = Schedule {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            plan,
            created_at: now,
            dealt_with: now,
            last: None,
            skipped: 0,
        };
        self.write(&schedule, Expect::Absent).await.map_err(|e| match e {
            StoreError::Conflict { .. } => StoreError::Exists { what: format!("schedule {name}") },
            e => e,
        })?;
        Ok(schedule)
    }

    /// Stops the clock for a schedule, or lets it go on; the times in between are not missed ones.
    ///
    /// # Errors
    /// No such schedule; the store's.
    pub async fn pause(&self, tenant: &str, name: &str, paused: bool) -> Result<Schedule> {
        let now = self.0.env.now();
        let change = |schedule: &mut Schedule| {
            if schedule.plan.paused && !paused {
                schedule.dealt_with = now;
            }
            schedule.plan.paused = paused;
        };
        self.change(tenant, name, change).await
    }

    /// Starts a schedule's run now, paused or not, whatever else runs.
    ///
    /// # Errors
    /// No such schedule; as [`Runs::start`].
    pub async fn trigger(&self, tenant: &str, name: &str) -> Result<RunKey> {
        let (_, schedule) = self.find(tenant, name).await?;
        self.0.runs.start(tenant, request(&schedule, self.0.env.now())).await
    }

    /// Removes a schedule; its runs stay.
    ///
    /// # Errors
    /// No such schedule; the store's.
    pub async fn delete(&self, tenant: &str, name: &str) -> Result<()> {
        let deleted = self.0.store.delete(&path(tenant, name), Expect::Anything).await?;
        deleted.map(drop).ok_or_else(|| Error::NoSchedule { name: name.to_owned() })
    }

    /// One schedule.
    ///
    /// # Errors
    /// No such schedule; the store's.
    pub async fn get(&self, tenant: &str, name: &str) -> Result<Schedule> {
        Ok(self.find(tenant, name).await?.1)
    }

    /// A tenant's schedules, by name.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self, tenant: &str) -> Result<Vec<Schedule>> {
        self.0.store.list(&path(tenant, "")).await?.entries.iter().map(decode).collect()
    }

    async fn find(&self, tenant: &str, name: &str) -> Result<(Revision, Schedule)> {
        let entry = self.0.store.get(&path(tenant, name)).await?;
        let entry = entry.ok_or_else(|| Error::NoSchedule { name: name.to_owned() })?;
        Ok((entry.revision, decode(&entry)?))
    }

    async fn change(&self, tenant: &str, name: &str, change: impl Fn(&mut Schedule)) -> Result<Schedule> {
        for _ in 0..RACES {
            let (revision, mut schedule) = self.find(tenant, name).await?;
            change(&mut schedule);
            match self.write(&schedule, Expect::At(revision)).await {
                Ok(_) => return Ok(schedule),
                Err(StoreError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(StoreError::Conflict { what: format!("schedule {name}") }.into())
    }

    async fn write(&self, schedule: &Schedule, expect: Expect) -> Result<Revision, StoreError> {
        let value = serde_json::to_vec(schedule).expect("plain data");
        self.0.store.put(&schedule.path(), value, None, expect).await
    }
}

/// A schedule's run tells in its context whose it is.
fn request(schedule: &Schedule, due: Timestamp) -> Request {
    let Plan { pattern, version, input, mut options, .. } = schedule.plan.clone();
    let marks = [("schedule", schedule.name.clone()), ("scheduled_for", due.to_string())];
    options.context.extend(marks.map(|(key, value)| (key.to_owned(), value)));
    Request { pattern, version, input, options, ..Request::default() }
}

fn path(tenant: &str, name: &str) -> String {
    format!("{SCHEDULES}{tenant}/{name}")
}

fn decode(entry: &Entry) -> Result<Schedule> {
    serde_json::from_slice(&entry.value)
        .map_err(|e| StoreError::Corrupt(format!("{}: {e}", entry.key)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_times_are_skipped_or_run_once_or_all_run() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let due = |missed, now: &str| {
            let plan = Plan {
                pattern: String::new(),
                version: String::new(),
                input: Json::Null,
                options: Options::default(),
                times: Times::Every(Duration::from_secs(60)),
                missed,
                overlap: Overlap::Allow,
                paused: false,
            };
            let created_at = at("2026-01-01T00:00:00Z");
            let (tenant, name) = (String::new(), String::new());
            let dealt_with = created_at;
            Schedule { tenant, name, plan, created_at, dealt_with, last: None, skipped: 0 }.due(at(now))
        };
        let (first, second, third) =
            (at("2026-01-01T00:01:00Z"), at("2026-01-01T00:02:00Z"), at("2026-01-01T00:03:00Z"));
        for missed in [Missed::Skip, Missed::Once, Missed::All] {
            assert_eq!(due(missed, "2026-01-01T00:00:59Z"), []);
            assert_eq!(due(missed, "2026-01-01T00:01:05Z"), [first]);
        }
        let late = "2026-01-01T00:03:30Z";
        assert_eq!(due(Missed::Skip, late), []);
        assert_eq!(due(Missed::Once, late), [third]);
        assert_eq!(due(Missed::All, late), [first, second, third]);
        // What is on time counts for what was missed before it.
        assert_eq!(due(Missed::Skip, "2026-01-01T00:03:00Z"), [third]);
        assert_eq!(due(Missed::Once, "2026-01-01T00:03:00Z"), [third]);
        assert_eq!(due(Missed::All, "2026-01-02T00:00:00Z").len(), MOST);
    }
}
