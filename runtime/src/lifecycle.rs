//! The one place where tasks are started, and where they are stopped.

use std::{future::Future, time::Duration};

use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tracing::{Instrument, debug, info_span};

/// Starts tasks, tells them to stop, and waits for them. Cheap to clone; clones are the same lifecycle.
#[derive(Clone, Default)]
pub struct Lifecycle {
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// With no tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` until it ends by itself; it is expected to end soon after [`Lifecycle::stopping`].
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task.instrument(info_span!("task", name)));
    }

    /// Runs `task` and drops it when stopping: for loops with nothing to finish.
    pub fn spawn_until_stopped(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.spawn(name, async move {
            stopping.run_until_cancelled_owned(task).await;
        });
    }

    /// Runs `task`, which others stand on until they have stopped and which ends when the last of them lets go of it:
    /// [`Lifecycle::drain`] does not wait for it.
    pub fn spawn_beneath(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task.instrument(info_span!("task", name)));
    }

    /// Resolves when the process is to stop.
    pub fn stopping(&self) -> WaitForCancellationFutureOwned {
        self.stopping.clone().cancelled_owned()
    }

    /// Whether stopping has begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Says stop to all tasks.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Says stop and waits up to `deadline`; `false` when tasks were still running then.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.stop();
        self.tasks.close();
        let done = tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok();
        debug!(done, left = self.tasks.len(), "drained");
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_tasks_but_not_beyond_its_deadline() {
        let life = Lifecycle::new();
        let stop = life.stopping();
        life.spawn("polite", async move {
            stop.await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
        life.spawn_until_stopped("loop", std::future::pending());
        assert!(life.drain(Duration::from_secs(2)).await);

        let stuck = Lifecycle::new();
        stuck.spawn("deaf", std::future::pending());
        assert!(!stuck.drain(Duration::from_secs(2)).await);
    }
}
