//! Watching runs from afar: their journals as they grow, whoever drives them.

use std::time::Duration;

use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use parallax_runtime::{
    error::{Code, Coded},
    run::{Entry, Run, RunKey, Status, Summary},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::Runs;
use crate::{
    error::{Error, Result},
    view::{Cursor, Happening, happenings},
};

/// How often a run is looked at when no hint comes.
const POLL: Duration = Duration::from_secs(1);

/// A stretch of a journal.
pub struct Stretch {
    /// Position of the first of `entries`.
    pub from: u64,
    pub entries: Vec<Entry>,
    /// What the run is with them.
    pub summary: Summary,
}

impl Stretch {
    /// What it says to clients that have heard up to `after`.
    #[must_use]
    pub fn happenings(&self, after: Cursor) -> Vec<Happening> {
        let all = (self.from..).zip(&self.entries);
        let all = all.flat_map(|(position, entry)| happenings(position, entry, &self.summary));
        all.filter(|happening| after.is_none_or(|after| after < happening.at)).collect()
    }
}

impl Runs {
    /// A run's journal from position `from` on, as it grows, without gap or duplicate; ends with the run, or when
    /// this process stops. A stretch may be empty only when there is nothing to come.
    pub fn follow(&self, key: &RunKey, from: u64) -> BoxStream<'static, Result<Stretch>> {
        let (runs, key) = (self.clone(), key.clone());
        let grown = self.0.watches.of(&key);
        let stretches = stream::try_unfold(Some((grown, from)), move |state| {
            let (runs, key) = (runs.clone(), key.clone());
            async move {
                let Some((mut grown, from)) = state else { return Ok(None) };
                loop {
                    grown.mark_unchanged();
                    let tail = runs.context().store.tail(&key, from).await?;
                    let (summary, entries) = tail.ok_or_else(|| Error::NoRun { id: key.id.clone() })?;
                    let ended = summary.status.is_final();
                    if ended || !entries.is_empty() {
                        let next = (!ended).then_some((grown, from + entries.len() as u64));
                        return Ok(Some((Stretch { from, entries, summary }, next)));
                    }
                    tokio::select! {
                        _ = grown.changed() => {
                            // Closed means ended, unless the end is yet to be seen: then there is no hurry.
                            if grown.has_changed().is_err() {
                                grown = runs.0.watches.of(&key);
                            }
                        }
                        () = sleep(POLL) => {}
                        () = runs.context().life.stopping() => return Ok(None),
                    }
                }
            }
        });
        stretches.boxed()
    }

    /// A run that has ended, as it stands, once its stream has: otherwise this process stops.
    ///
    /// # Errors
    /// A run that goes on; as [`Runs::get`].
    pub async fn finished(&self, key: &RunKey) -> Result<Run> {
        let unfinished = || Error::Unfinished { id: key.id.clone() };
        match self.get(key).await {
            Ok(run) if run.summary.status.is_final() => Ok(run),
            Ok(_) => Err(unfinished()),
            Err(e) if e.code() == Code::Unavailable && self.context().life.is_stopping() => Err(unfinished()),
            Err(e) => Err(e),
        }
    }

    /// Waits until a run has ended, and reads it.
    ///
    /// # Errors
    /// No such run; one that goes on when this process stops; the store's.
    pub async fn wait(&self, key: &RunKey) -> Result<Run> {
        // Its driver waits too, until its end is told: then there is no need to look first.
        let known = self.0.watches.known(key);
        let (mut look, mut grown) = (known.is_none(), known.unwrap_or_else(|| self.0.watches.of(key)));
        let life = &self.context().life;
        loop {
            let stopping = life.is_stopping();
            if look || stopping {
                match self.finished(key).await {
                    Err(Error::Unfinished { .. }) if !stopping => {}
                    // It goes on when the store is back, and so does whoever waits for it.
                    Err(e) if e.code() == Code::Unavailable && !stopping => sleep(POLL).await,
                    done => return done,
                }
            }
            look = true;
            tokio::select! {
                () = self.ended(key, &mut grown, POLL) => {}
                () = life.stopping() => {}
            }
        }
    }

    /// Resolves when a run has ended, which `grown` tells. That may be missed, so it is looked at now and then too.
    pub(crate) async fn ended(&self, key: &RunKey, grown: &mut watch::Receiver<Status>, every: Duration) {
        loop {
            let told = grown.wait_for(|status| status.is_final()).map(|told| told.is_ok());
            match timeout(every, told).await {
                Ok(true) => return,
                // Nobody will ever say.
                Ok(false) => sleep(every).await,
                Err(_) => {}
            }
            // From where nothing will ever be: only the end is of interest.
            let tail = self.context().store.tail(key, u64::MAX >> 1).await;
            if matches!(tail, Ok(Some((summary, _))) if summary.status.is_final()) {
                return;
            }
        }
    }
}
