//! The clock of the schedules, as the process that leads looks at it.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use parallax_runtime::{
    error::Coded,
    run::RunKey,
    store::{Change, Entry, Expect, Revision, StoreError},
};
use tracing::{info, warn};

use super::{Last, Overlap, SCHEDULES, Schedule, Schedules, decode, request};
use crate::{
    error::{Error, Result},
    mirror::{News, follow},
};

/// The clock is looked at this often at least, as it may be set.
const LOOK: Duration = Duration::from_secs(30);
/// Before a store that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);

impl Schedules {
    /// For as long as this process leads.
    pub(super) async fn keep_time(self) {
        let mut news = Box::pin(follow(self.0.store.clone(), SCHEDULES));
        let mut known: BTreeMap<String, (Revision, Schedule)> = BTreeMap::new();
        loop {
            let next = known.values().filter_map(|(_, schedule)| schedule.next()).min();
            let left = next.and_then(|next| Duration::try_from(next.duration_since(self.0.env.now())).ok());
            let wait = if next.is_some() { left.unwrap_or_default().min(LOOK) } else { LOOK };
            tokio::select! {
                biased;
                Some(news) = news.next() => match news {
                    Ok((_, News::All(entries))) => {
                        known = entries.iter().filter_map(read).collect();
                        for (_, schedule) in known.values() {
                            self.begin_again(schedule).await;
                        }
                    }
                    Ok((_, News::One(Change::Put(entry)))) => {
                        // What was written here may be known in a later state already.
                        let newer = known.get(&entry.key).is_none_or(|(known, _)| *known < entry.revision);
                        known.extend(read(&entry).filter(|_| newer));
                    }
                    Ok((_, News::One(Change::Delete { key, .. }))) => _ = known.remove(&key),
                    Err(e) => {
                        warn!("schedules cannot be followed, trying again: {e}");
                        tokio::time::sleep(AGAIN).await;
                    }
                },
                () = tokio::time::sleep(wait) => {}
            }
            let now = self.0.env.now();
            for (revision, schedule) in known.values_mut() {
                if schedule.next().is_some_and(|next| next <= now)
                    && let Err(e) = self.deal_with(revision, schedule, now).await
                {
                    // Changed by another meanwhile: its news are on the way.
                    info!(schedule = schedule.name, "a schedule waits: {e}");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Runs the times that have come.
    async fn deal_with(&self, revision: &mut Revision, known: &mut Schedule, now: Timestamp) -> Result<()> {
        let due = known.due(now);
        if due.is_empty() {
            // All were missed.
            let schedule = Schedule { dealt_with: now, ..known.clone() };
            (*revision, *known) = (self.write(&schedule, Expect::At(*revision)).await?, schedule);
        }
        for time in due {
            let mut schedule = Schedule { dealt_with: time, ..known.clone() };
            let goes_on = schedule.plan.overlap == Overlap::Skip && self.goes_on(&schedule).await?;
            if goes_on {
                schedule.skipped += 1;
            } else {
                schedule.last = Some(Last { run: self.0.env.id(), due: time, error: None });
            }
            let before = known.dealt_with;
            (*revision, *known) = (self.write(&schedule, Expect::At(*revision)).await?, schedule);
            if !goes_on && let Err(e) = self.begin(known).await {
                known.last.iter_mut().for_each(|last| last.error = Some(e.to_string()));
                let later = e.code().retry_is_safe();
                if later {
                    // It is tried again, until it counts as missed.
                    known.dealt_with = before;
                } else {
                    warn!(schedule = known.name, tenant = known.tenant, "a scheduled run was not begun: {e}");
                }
                *revision = self.write(known, Expect::At(*revision)).await?;
                if later {
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Whether the last run has yet to end.
    async fn goes_on(&self, schedule: &Schedule) -> Result<bool> {
        let Some(Last { run, error: None, .. }) = &schedule.last else { return Ok(false) };
        let key = RunKey { tenant: schedule.tenant.clone(), id: run.clone() };
        match self.0.runs.get(&key).await {
            Ok(run) => Ok(!run.summary.status.is_final()),
            Err(Error::NoRun { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Begins the run that is marked as the last, or finds it begun.
    async fn begin(&self, schedule: &Schedule) -> Result<()> {
        let Some(Last { run, due, error: None }) = &schedule.last else { return Ok(()) };
        let key = RunKey { tenant: schedule.tenant.clone(), id: run.clone() };
        match self.0.runs.start_as(key, request(schedule, *due)).await {
            // Stopping: the next leader begins it.
            Ok(_) | Err(Error::Stopping | Error::Store(StoreError::Exists { .. })) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Begins what a leader that is gone has marked and not begun, once runs can be begun.
    async fn begin_again(&self, schedule: &Schedule) {
        let Some(Last { run, error: None, .. }) = &schedule.last else { return };
        let key = RunKey { tenant: schedule.tenant.clone(), id: run.clone() };
        loop {
            let begun = match self.0.runs.get(&key).await {
                Err(Error::NoRun { .. }) => self.begin(schedule).await,
                found => found.map(drop),
            };
            let Err(e) = begun else { return };
            warn!(schedule = schedule.name, "a run that was left is not begun: {e}");
            if !e.code().retry_is_safe() {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn read(entry: &Entry) -> Option<(String, (Revision, Schedule))> {
    match decode(entry) {
        Ok(schedule) => Some((entry.key.clone(), (entry.revision, schedule))),
        Err(e) => {
            warn!("left out: {e}");
            None
        }
    }
}
