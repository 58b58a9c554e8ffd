//! Admission: so many runs are driven at once, so many wait for their turn, and the next is refused.

use std::{collections::BTreeSet, sync::Arc};

use parallax_runtime::run::RunKey;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of one process.
pub(super) struct Turns {
    free: Arc<Semaphore>,
    line: Arc<Mutex<BTreeSet<RunKey>>>,
    longest: usize,
}

/// A run's place: dropping it lets the next one in.
pub(crate) enum Turn {
    /// Runs within runs take no place: their parents hold one, and wait for them.
    Free,
    Has(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit),
    Waits(Waiting),
}

/// A place in the line.
pub(crate) struct Waiting {
    run: RunKey,
    free: Arc<Semaphore>,
    line: Arc<Mutex<BTreeSet<RunKey>>>,
}

impl Turns {
    pub(super) fn new(at_once: usize, longest: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(at_once)), line: Arc::default(), longest }
    }

    /// A place for a new run, or `None` when the line is as long as it may be.
    pub(super) fn ask(&self, run: &RunKey) -> Option<Turn> {
        // Served in order: there is nothing free while somebody waits.
        if let Ok(turn) = self.free.clone().try_acquire_owned() {
            return Some(Turn::Has(turn));
        }
        let mut line = self.line.lock();
        (line.len() < self.longest).then(|| self.wait(&mut line, run))
    }

    /// A place for a run that has been accepted already.
    pub(super) fn insist(&self, run: &RunKey) -> Turn {
        match self.free.clone().try_acquire_owned() {
            Ok(turn) => Turn::Has(turn),
            Err(_) => self.wait(&mut self.line.lock(), run),
        }
    }

    fn wait(&self, line: &mut BTreeSet<RunKey>, run: &RunKey) -> Turn {
        line.insert(run.clone());
        Turn::Waits(Waiting { run: run.clone(), free: self.free.clone(), line: self.line.clone() })
    }

    /// How many more could be driven now.
    pub(super) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// How many are before a run that waits here, and it; ids sort by time.
    pub(super) fn position(&self, run: &RunKey) -> Option<usize> {
        let line = self.line.lock();
        line.contains(run).then(|| line.iter().filter(|other| other.id <= run.id).count())
    }
}

impl Turn {
    pub(super) fn waits(&self) -> bool {
        matches!(self, Self::Waits(_))
    }

    /// When the turn has come.
    pub(crate) async fn come(self) -> Self {
        match self {
            Self::Waits(waiting) => {
                let turn = waiting.free.clone().acquire_owned().await;
                Self::Has(turn.expect("never closed"))
            }
            turn => turn,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.line.lock().remove(&self.run);
    }
}
