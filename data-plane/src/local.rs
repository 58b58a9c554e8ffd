//! Where hyper starts its tasks: on the worker's own thread.

use std::{future::Future, rc::Rc};

use hyper::rt::Executor;
use parallax_security::Stream;
use tokio_util::task::TaskTracker;

use crate::gather::Gather;

/// Starts tasks that the worker waits for when it stops.
#[derive(Clone)]
pub(crate) struct Local {
    tasks: TaskTracker,
    gather: Option<Rc<Gather<Stream>>>,
}

impl Local {
    /// For tasks that write to no connection themselves.
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { tasks, gather: None }
    }

    /// For tasks of which one drives a connection: what it writes is gathered.
    pub(crate) fn gathering(tasks: TaskTracker, gather: Gather<Stream>) -> Self {
        Self { tasks, gather: Some(Rc::new(gather)) }
    }
}

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        match &self.gather {
            Some(gather) => drop(self.tasks.spawn_local(gather.gathering(async { _ = task.await }))),
            None => drop(self.tasks.spawn_local(async { _ = task.await })),
        }
    }
}
