//! A run of a pattern: its journal, and what can be read off it.
//!
//! The journal is the run. Each entry says what happened and when; replaying the outcomes in journal order
//! rebuilds the interpreter exactly, and [`Summary`] is a fold over the same entries.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::agent::Agent;

/// Tenant and id: what names a run. Ids sort by creation time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunKey {
    pub tenant: String,
    pub id: String,
}

impl RunKey {
    /// The run that an effect of this one is.
    #[must_use]
    pub fn nested(&self, effect: EffectId) -> Self {
        Self { tenant: self.tenant.clone(), id: format!("{}.{effect}", self.id) }
    }

    /// How many runs this one is within.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.id.matches('.').count()
    }
}

/// What the caller asked for beside the input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Bound on the whole run; the control plane's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// At most this many agent calls at once; 0 means no bound of its own.
    pub max_parallel: u32,
    /// Handed to agents with each call.
    pub context: BTreeMap<String, String>,
    /// Every agent that it may ask has all of these, beside those that its pattern names; agents that stand for
    /// language models (`llm`) are nobody's choice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// It is given no more agents than this; its pattern's own bound holds as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_agents: Option<u32>,
    /// Whether its calls may be answered by what agents have answered before (`cache_results` of the contract).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cache_results: bool,
    /// The task that it was started for, as the coordinator was given it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Json>,
}

/// The first entry of a journal: everything that the run depends on, pinned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub pattern: String,
    pub pattern_version: String,
    /// SHA-256 of the script, in hex; the script itself is kept by the store under this name.
    pub script_hash: String,
    pub input: Json,
    pub options: Options,
    /// The agents that the pattern may ask, in the order it sees them.
    pub agents: Vec<Agent>,
    /// Whether the script came with the request, and is in no catalogue.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adhoc: bool,
    /// The run that this one does over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Of a script that runs other patterns: the version that each name meant then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, String>,
}

/// Which run another does over, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub run: String,
    /// What came before this effect was taken over; absent when nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<EffectId>,
}

/// An effect's number within its run, from 1, in the order in which the script asked for it.
pub type EffectId = u64;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    Started(Box<Start>),
    /// As many runs as may be driven at once were under way: it waits for its turn.
    Queued,
    /// Its turn came.
    Admitted,
    /// The script asked for an effect.
    Requested {
        effect: EffectId,
        request: Json,
    },
    /// The effect has its outcome, which is what a replay feeds to the script.
    Resolved(Box<Resolution>),
    /// The script no longer waits for the effect (it lost a race).
    Abandoned {
        effect: EffectId,
    },
    Completed {
        value: Json,
        confidence: Option<f64>,
    },
    Failed {
        code: String,
        message: String,
    },
    Cancelled {
        reason: String,
    },
}

/// An effect's outcome, and who brought it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolution {
    pub effect: EffectId,
    /// In the script's own form.
    pub outcome: Json,
    pub ok: bool,
    /// The agent that was asked, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    pub started_at: Timestamp,
    /// Microseconds from dispatch to outcome.
    pub duration_us: u64,
    /// Microseconds for which the control plane held it back: as many calls as may be were in flight.
    #[serde(default)]
    pub queued_us: u64,
    /// Microseconds spent on attempts before the one that brought the outcome.
    #[serde(default)]
    pub retried_us: u64,
}

/// An event and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub at: Timestamp,
    #[serde(flatten)]
    pub event: Event,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted, and waiting for its turn.
    Pending,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl Status {
    /// Whether the journal is closed.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }

    /// The lower-case word that APIs show.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled]
            .into_iter()
            .find(|status| status.as_str() == word)
            .ok_or_else(|| {
                format!("status \"{word}\" is none of pending, running, completed, failed, cancelled")
            })
    }
}

/// What lists show of a run: a fold over its journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub key: RunKey,
    pub pattern: String,
    pub pattern_version: String,
    pub status: Status,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// Of the result; absent until completed, or when the result carries none.
    pub confidence: Option<f64>,
    /// Code and message of the failure, or the reason of the cancellation.
    pub error: Option<(String, String)>,
    /// Agent calls with an outcome, and how many of them failed.
    pub calls: u32,
    pub calls_failed: u32,
    /// Entries so far.
    pub len: u64,
}

impl Summary {
    /// Of a journal's entries; `None` when it does not begin with [`Event::Started`].
    #[must_use]
    pub fn of(key: RunKey, entries: &[Entry]) -> Option<Self> {
        let (first, rest) = entries.split_first()?;
        let Event::Started(start) = &first.event else { return None };
        let mut summary = Self {
            key,
            pattern: start.pattern.clone(),
            pattern_version: start.pattern_version.clone(),
            status: Status::Running,
            started_at: first.at,
            ended_at: None,
            confidence: None,
            error: None,
            calls: 0,
            calls_failed: 0,
            len: 1,
        };
        rest.iter().for_each(|entry| summary.apply(entry));
        Some(summary)
    }

    /// The next entry happened.
    pub fn apply(&mut self, entry: &Entry) {
        self.len += 1;
        match &entry.event {
            Event::Resolved(resolution) if resolution.agent.is_some() => {
                self.calls += 1;
                self.calls_failed += u32::from(!resolution.ok);
            }
            Event::Completed { confidence, .. } => {
                self.end(Status::Completed, entry.at);
                self.confidence = *confidence;
            }
            Event::Failed { code, message } => {
                self.end(Status::Failed, entry.at);
                self.error = Some((code.clone(), message.clone()));
            }
            Event::Cancelled { reason } => {
                self.end(Status::Cancelled, entry.at);
                self.error = Some(("cancelled".to_owned(), reason.clone()));
            }
            Event::Queued => self.status = Status::Pending,
            Event::Admitted => self.status = Status::Running,
            Event::Started(_) | Event::Requested { .. } | Event::Resolved(_) | Event::Abandoned { .. } => {}
        }
    }

    fn end(&mut self, status: Status, at: Timestamp) {
        self.status = status;
        self.ended_at = Some(at);
    }
}

/// A whole run, as a store gives it back.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub summary: Summary,
    pub entries: Vec<Entry>,
    /// The script it runs, pinned at the start.
    pub script: String,
}

impl Run {
    /// The pinned beginning.
    #[must_use]
    pub fn start(&self) -> &Start {
        match self.entries.first().map(|entry| &entry.event) {
            Some(Event::Started(start)) => start,
            _ => unreachable!("stores refuse journals that do not begin with Started"),
        }
    }

    /// The value of a completed run.
    #[must_use]
    pub fn value(&self) -> Option<&Json> {
        match self.entries.last().map(|entry| &entry.event) {
            Some(Event::Completed { value, .. }) => Some(value),
            _ => None,
        }
    }
}
