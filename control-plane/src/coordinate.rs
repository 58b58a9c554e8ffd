//! Tasks for the coordinator: their callers name an aim, and the library has a pattern for it.
//!
//! A task becomes a run like any other, which carries the task in its journal. The run's id ends in a digest of the
//! task's, so that a task's history is found in lists of runs without reading every journal.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use parallax_runtime::{
    error::{Code, Coded},
    run::{Entry, Event, Options, Run, RunKey},
    store::RunQuery,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Result},
    runs::{Request, Runs},
    view::calls,
};

/// A history is sought among so many of the newest runs, read so many at a time.
const SOUGHT: (usize, u64) = (100_000, 1_000);
/// The answers whose disagreements are told pair by pair: those with the most support.
const CONTESTED: usize = 32;

/// How agents' answers become one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    Consensus,
    Epistemic,
    Cascade,
    UncertaintyRoute,
    /// By the pattern of this name.
    Custom(String),
}

/// What is to be coordinated, and within which bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The caller's name for it, under which its history is kept; several runs may bear it.
    pub id: String,
    pub description: String,
    pub strategy: Strategy,
    pub data: Map<String, Json>,
    /// An answer that is less sure is none.
    pub min_confidence: Option<f64>,
    pub max_agents: Option<u32>,
    /// Every agent that is asked has all of these.
    pub capabilities: Vec<String>,
    pub timeout: Option<Duration>,
}

/// What a task came to.
pub struct Answer {
    pub findings: Findings,
    pub confidence: Option<f64>,
    pub explanation: String,
}

/// An answer's content, as its strategy has it.
pub enum Findings {
    Consensus {
        /// The share of the agents that answered who gave the answer that was taken.
        level: f64,
        recommendation: Json,
    },
    Epistemic {
        disagreements: Vec<Disagreement>,
        paths: Vec<Path>,
        /// Null when no answer leads.
        recommendation: Json,
    },
    /// A pattern's value as it is.
    Custom(Json),
}

/// Two answers that cannot both stand, each by its surest backer.
pub struct Disagreement {
    pub agents: (String, String),
    pub issue: String,
    /// How much surer the one is than the other.
    pub confidence_delta: f64,
}

/// One of the answers that were given.
pub struct Path {
    pub answer: Json,
    pub confidence: f64,
    pub agents: Vec<String>,
    pub details: Json,
}

impl Task {
    fn pattern(&self) -> &str {
        match &self.strategy {
            Strategy::Consensus => "ConsensusBuilder",
            Strategy::Epistemic => "EpistemicOrchestrator",
            Strategy::Cascade => "ConfidenceCascade",
            Strategy::UncertaintyRoute => "UncertaintyRouter",
            Strategy::Custom(pattern) => pattern,
        }
    }

    /// The library's patterns take task and data; another takes the data as its input, and the description as `task`
    /// unless the data has one.
    fn input(&self) -> Json {
        let named = |name: &str| match self.min_confidence {
            Some(least) => json!({"task": self.description, "data": self.data, name: least}),
            None => json!({"task": self.description, "data": self.data}),
        };
        match self.strategy {
            Strategy::Consensus => json!({"task": self.description, "data": self.data}),
            // What is sure enough for the caller is sure enough to stop, or to ask nobody else.
            Strategy::Epistemic => named("sure"),
            Strategy::Cascade => named("target"),
            Strategy::UncertaintyRoute => named("high"),
            Strategy::Custom(_) => {
                let mut input = self.data.clone();
                if !self.description.is_empty() {
                    input.entry("task").or_insert_with(|| json!(self.description));
                }
                Json::Object(input)
            }
        }
    }

    /// Starts the task's run.
    ///
    /// # Errors
    /// As [`Runs::start`].
    pub async fn start(&self, runs: &Runs, tenant: &str) -> Result<RunKey> {
        let mut id = runs.context().env.id();
        let tail = digest(&self.id);
        id.replace_range(id.len() - tail.len().., &tail);
        let request = Request {
            pattern: self.pattern().to_owned(),
            input: self.input(),
            options: Options {
                timeout: self.timeout,
                capabilities: self.capabilities.clone(),
                max_agents: self.max_agents,
                task: Some(json!(self)),
                ..Options::default()
            },
            ..Request::default()
        };
        runs.start_as(RunKey { tenant: tenant.to_owned(), id }, request).await
    }

    /// What the task's run came to.
    ///
    /// # Errors
    /// A run that has not completed; one that asked agents of whom none answered; one whose result is less sure than
    /// it has to be. The run keeps what it found.
    pub fn answer(&self, run: &Run) -> Result<Answer> {
        let (id, summary) = (run.summary.key.id.clone(), &run.summary);
        let unanswered = unanswered(run);
        let Some(value) = run.value() else {
            let Some((code, message)) = summary.error.clone() else { return Err(Error::NotEnded { id }) };
            // What came of asking tells more than where the script gave up.
            let failed = Error::Failed { id, status: summary.status, code, message };
            let gave_up = failed.code() == Code::Precondition;
            return Err(unanswered.filter(|e| gave_up && e.code() == Code::Unavailable).unwrap_or(failed));
        };
        // A pattern of the caller's own that comes to a value may have meant it so.
        if let Some(unanswered) = unanswered.filter(|_| !matches!(self.strategy, Strategy::Custom(_))) {
            return Err(unanswered);
        }
        let confidence = summary.confidence;
        if let Some(wanted) = self.min_confidence
            && confidence.is_none_or(|sure| sure < wanted)
        {
            return Err(Error::Unsure { id, confidence, wanted });
        }
        let by = format!("run {id} of {} {}", summary.pattern, summary.pattern_version);
        let (answered, asked) = (&value["answered"], &value["asked"]);
        let (findings, explanation) = match self.strategy {
            Strategy::Consensus => {
                let backers = value["agents"].as_array().map_or(0, Vec::len);
                let level = value["agreement"].as_f64().unwrap_or_default();
                let recommendation = value["decision"].clone();
                let explanation =
                    format!("{by}: {backers} of {answered} answers agree, {asked} agents were asked");
                (Findings::Consensus { level, recommendation }, explanation)
            }
            Strategy::Epistemic => {
                let status = value["status"].as_str().unwrap_or_default();
                let explanation = format!("{by}: {status}, {answered} of {asked} agents answered");
                (epistemic(run, value), explanation)
            }
            _ => (Findings::Custom(value.clone()), format!("{by}: {} calls to agents", summary.calls)),
        };
        Ok(Answer { findings, confidence, explanation })
    }

    /// The task that a run was started for.
    #[must_use]
    pub fn of(run: &Run) -> Option<Self> {
        serde_json::from_value(run.start().options.task.clone()?).ok()
    }
}

/// The runs of a task that began at `since` or later, the newest first and at most `limit`, with the task as each was
/// given it. It is sought among the tenant's newest 100 000 runs.
///
/// # Errors
/// The store's.
pub async fn history(
    runs: &Runs,
    tenant: &str,
    task: &str,
    limit: usize,
    since: Timestamp,
) -> Result<Vec<(Task, Run)>> {
    let (tail, mut found, mut sought, mut before) = (digest(task), vec![], 0, None);
    while sought < SOUGHT.0 {
        let query = RunQuery { tenant: tenant.to_owned(), before, limit: SOUGHT.1, ..RunQuery::default() };
        let page = runs.list(&query).await?;
        for summary in &page.runs {
            if summary.started_at < since || found.len() == limit {
                return Ok(found);
            }
            if !summary.key.id.ends_with(&tail) {
                continue;
            }
            let run = runs.get(&summary.key).await?;
            found.extend(Task::of(&run).filter(|of| of.id == task).map(|of| (of, run)));
        }
        let Some(last) = page.runs.last() else { break };
        sought += page.runs.len();
        before = Some(last.key.id.clone());
    }
    Ok(found)
}

/// Says so of a run that has asked agents, and none of them answered.
fn unanswered(run: &Run) -> Option<Error> {
    // Agents may have answered to runs within this one.
    let within = |entry: &Entry| match &entry.event {
        Event::Requested { request, .. } => request["type"] == "pattern",
        _ => false,
    };
    if run.entries.iter().any(within) {
        return None;
    }
    let calls = calls(run);
    let failures: Option<Vec<_>> = calls.iter().map(|call| Some((call.agent, call.error?))).collect();
    let failures = failures?;
    let (agent, (code, message)) = failures.first()?;
    Some(Error::Unanswered {
        id: run.summary.key.id.clone(),
        failed: failures.len(),
        agent: (*agent).to_owned(),
        code: (*code).to_owned(),
        message: (*message).to_owned(),
        away: failures.iter().all(|(_, (code, _))| matches!(*code, "unreachable" | "busy")),
    })
}

/// The last group of a run's id; the time and 26 bits of chance stay before it.
fn digest(task: &str) -> String {
    Sha256::digest(task).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn epistemic(run: &Run, value: &Json) -> Findings {
    let stated: BTreeMap<_, _> =
        calls(run).iter().map(|call| (call.agent.to_owned(), call.confidence.unwrap_or_default())).collect();
    let sure = |agent: &String| stated.get(agent).copied().unwrap_or_default();
    let mut paths: Vec<Path> = value["perspectives"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|perspective| Path {
            answer: perspective["answer"].clone(),
            confidence: perspective["support"].as_f64().unwrap_or_default(),
            agents: perspective["agents"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|agent| agent.as_str().map(str::to_owned))
                .collect(),
            details: perspective.clone(),
        })
        .collect();
    paths.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let surest: Vec<_> = paths
        .iter()
        .take(CONTESTED)
        .filter_map(|path| Some((path, path.agents.iter().max_by(|a, b| sure(a).total_cmp(&sure(b)))?)))
        .collect();
    let mut disagreements = Vec::new();
    for (at, (one, a)) in surest.iter().enumerate() {
        disagreements.extend(surest[at + 1..].iter().map(|(other, b)| Disagreement {
            agents: ((*a).clone(), (*b).clone()),
            issue: format!("{a} says {}, {b} says {}", one.answer, other.answer),
            confidence_delta: (sure(a) - sure(b)).abs(),
        }));
    }
    Findings::Epistemic { disagreements, paths, recommendation: value["decision"].clone() }
}
