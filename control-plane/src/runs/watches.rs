//! Who waits for which runs to grow.

use std::collections::HashMap;

use parallax_runtime::{
    run::{RunKey, Status},
    store::Hint,
};
use parking_lot::Mutex;
use tokio::sync::watch;

/// How many there are at least before those that nobody waits for any more are looked for.
const FEW: usize = 64;

/// Runs that somebody waits for.
#[derive(Default)]
pub(super) struct Watches(Mutex<State>);

#[derive(Default)]
struct State {
    watched: HashMap<RunKey, watch::Sender<Status>>,
    /// When there are this many, those that nobody waits for are dropped.
    many: usize,
}

impl Watches {
    /// Changes each time that the run grows, and carries what it is then; closed after its end.
    pub(super) fn of(&self, run: &RunKey) -> watch::Receiver<Status> {
        let State { watched, many } = &mut *self.0.lock();
        if watched.len() >= *many {
            watched.retain(|_, watch| watch.receiver_count() > 0);
            *many = FEW.max(2 * watched.len());
        }
        watched.entry(run.clone()).or_insert_with(|| watch::Sender::new(Status::Running)).subscribe()
    }

    /// The same, of a run that somebody waits for already and whose end has not been told.
    pub(super) fn known(&self, run: &RunKey) -> Option<watch::Receiver<Status>> {
        self.0.lock().watched.get(run).map(watch::Sender::subscribe)
    }

    pub(super) fn tell(&self, hint: &Hint) {
        let State { watched, .. } = &mut *self.0.lock();
        if let Some(watch) = watched.get(&hint.run) {
            watch.send_replace(hint.status);
            if hint.status.is_final() {
                watched.remove(&hint.run);
            }
        }
    }
}
