use std::{collections::HashMap, time::Duration};

use serde_json::Value as Json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::AgentError;

/// One question to an agent.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Task {
    /// Names the task in its run.
    pub id: String,
    /// What is to be done, in words.
    pub description: String,
    /// What to do it with: a JSON object. A key that is not there reads as null.
    pub data: Json,
    /// Further facts from the pattern.
    pub context: HashMap<String, String>,
    /// The pattern that asks; none if a client does.
    pub pattern: Option<String>,
    /// When the caller stops to wait; the work is dropped then.
    pub deadline: Option<Instant>,
    /// The same for each attempt at one step of one run: the idempotency key of what the agent does outside.
    pub effect: Option<String>,
    /// What a client tells the data plane; agents never see it.
    pub(crate) hints: Hints,
    pub(crate) cancelled: CancellationToken,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Hints {
    pub(crate) idempotent: bool,
    pub(crate) strategy: Option<String>,
    pub(crate) affinity: Option<String>,
}

impl Task {
    /// A task with `data`, an object; for calling agents, and for testing them.
    #[must_use]
    pub fn new(description: impl Into<String>, data: Json) -> Self {
        Self { description: description.into(), data, ..Self::default() }
    }

    /// Sets the deadline, from now.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.deadline = Some(Instant::now() + timeout);
        self
    }

    /// Asking twice does no harm: the data plane may ask another agent of the capability after any failure, and
    /// a second one beside a slow one.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.hints.idempotent = true;
        self
    }

    /// How the data plane chooses among the agents of a capability: `round_robin`, `least_request`, `peak_ewma`,
    /// `confidence` or `consistent_hash`. It refuses any other name.
    #[must_use]
    pub fn strategy(mut self, name: impl Into<String>) -> Self {
        self.hints.strategy = Some(name.into());
        self
    }

    /// Tasks with equal keys go to the same agent of a capability, as long as it can be asked.
    #[must_use]
    pub fn affinity(mut self, key: impl Into<String>) -> Self {
        self.hints.affinity = Some(key.into());
        self
    }

    /// The text in `data` under `key`.
    ///
    /// # Errors
    /// It is missing or not a text; the caller is told which.
    pub fn text(&self, key: &str) -> Result<&str, AgentError> {
        match &self.data[key] {
            Json::String(text) => Ok(text),
            Json::Null => Err(AgentError::bad_input(format!("data.{key} is missing; give it a text"))),
            other => Err(AgentError::bad_input(format!("data.{key} is not a text but {other}"))),
        }
    }

    /// Time until the deadline, if there is one.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether nobody waits for the answer any more. The future of [`Agent::analyze`](crate::Agent::analyze)
    /// need not ask, it is dropped; what it has started elsewhere does.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// Resolves when nobody waits for the answer any more.
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }
}
