//! What is shown of a run, read off its journal.

use std::collections::BTreeSet;

use jiff::Timestamp;
use parallax_runtime::run::{Entry, Event, Resolution, Run, RunKey, Summary};
use serde::Serialize;
use serde_json::{Value as Json, json};
use utoipa::ToSchema;

/// One call to an agent, with its outcome.
pub struct Call<'a> {
    pub effect: u64,
    pub agent: &'a str,
    /// The answer's fields (`value`, `reasoning`, `uncertainties`, …); null for a failure.
    pub answer: &'a Json,
    pub confidence: Option<f64>,
    /// Code and message.
    pub error: Option<(&'a str, &'a str)>,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    /// Microseconds.
    pub duration_us: u64,
}

/// The calls to agents that have an outcome, in the order in which they came.
#[must_use]
pub fn calls(run: &Run) -> Vec<Call<'_>> {
    run.entries.iter().filter_map(call).collect()
}

/// The call to an agent that a journal entry is the outcome of.
#[must_use]
pub fn call(entry: &Entry) -> Option<Call<'_>> {
    let Event::Resolved(resolution) = &entry.event else { return None };
    let failure = &resolution.outcome["failed"];
    Some(Call {
        effect: resolution.effect,
        agent: resolution.agent.as_deref()?,
        answer: &resolution.outcome["answer"],
        confidence: resolution.confidence,
        error: (!resolution.ok).then(|| {
            let text = |field: &str| failure[field].as_str().unwrap_or_default();
            (text("code"), text("message"))
        }),
        started_at: resolution.started_at,
        ended_at: entry.at,
        duration_us: resolution.duration_us,
    })
}

/// The runs that it has begun and had no outcome of.
#[must_use]
pub fn nested(run: &Run) -> Vec<RunKey> {
    let mut open = BTreeSet::new();
    for entry in &run.entries {
        match &entry.event {
            Event::Requested { effect, request } if request["type"] == "pattern" => _ = open.insert(*effect),
            Event::Resolved(resolution) => _ = open.remove(&resolution.effect),
            _ => {}
        }
    }
    open.into_iter().map(|effect| run.summary.key.nested(effect)).collect()
}

/// The types of what clients are told.
pub const KINDS: [&str; 10] = [
    "started",
    "agents_selected",
    "agent_started",
    "agent_completed",
    "agent_failed",
    "agents_completed",
    "progress",
    "completed",
    "failed",
    "cancelled",
];

/// The last that a client has been told, as [`Happening::at`] names it; `None` means nothing yet.
pub type Cursor = Option<(u64, usize)>;

/// What clients are told of a run as it goes on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Happening {
    /// Where it stands: the journal entry's position, and its number among what that entry says.
    #[serde(skip)]
    pub at: (u64, usize),
    /// `at` as text, `<position>.<number>`.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub execution_id: String,
    pub timestamp: Timestamp,
    pub data: Json,
}

/// What a journal entry says to clients.
#[must_use]
pub fn happenings(position: u64, entry: &Entry, run: &Summary) -> Vec<Happening> {
    let said = match &entry.event {
        Event::Started(start) => {
            let agents: Vec<_> = start.agents.iter().map(|agent| &agent.key.id).collect();
            let begun = json!({"pattern": start.pattern, "patternVersion": start.pattern_version, "input": start.input});
            vec![("started", begun), ("agents_selected", json!({"agents": agents, "count": agents.len()}))]
        }
        Event::Queued => vec![("progress", json!({"state": "queued"}))],
        Event::Admitted => vec![("progress", json!({"state": "admitted"}))],
        Event::Requested { effect, request } => vec![requested(*effect, request, &run.key)],
        Event::Resolved(resolution) => vec![resolved(resolution)],
        Event::Abandoned { effect } => vec![("progress", json!({"effect": effect, "state": "abandoned"}))],
        Event::Completed { value, confidence } => {
            let counts = json!({"calls": run.calls, "callsFailed": run.calls_failed});
            let result = json!({"result": value, "confidence": confidence});
            vec![("agents_completed", counts), ("completed", result)]
        }
        Event::Failed { code, message } => vec![("failed", json!({"error": message, "errorCode": code}))],
        Event::Cancelled { reason } => vec![("cancelled", json!({"reason": reason}))],
    };
    let happening = |(number, (kind, data))| Happening {
        at: (position, number),
        id: format!("{position}.{number}"),
        kind,
        execution_id: run.key.id.clone(),
        timestamp: entry.at,
        data,
    };
    said.into_iter().enumerate().map(happening).collect()
}

fn requested(effect: u64, request: &Json, run: &RunKey) -> (&'static str, Json) {
    match request["type"].as_str().unwrap_or_default() {
        "invoke" => {
            let (agent, task) = (&request["agent"], &request["task"]);
            ("agent_started", json!({"effect": effect, "agentId": agent, "task": task}))
        }
        "llm" => ("agent_started", json!({"effect": effect, "capability": "llm", "task": request["prompt"]})),
        "pattern" => {
            let (pattern, within) = (&request["name"], run.nested(effect).id);
            let data = json!({"effect": effect, "state": "pattern", "pattern": pattern, "execution": within});
            ("progress", data)
        }
        other => ("progress", json!({"effect": effect, "state": other})),
    }
}

fn resolved(resolution: &Resolution) -> (&'static str, Json) {
    let Resolution { effect, ok, outcome, duration_us, .. } = resolution;
    let Some(agent) = &resolution.agent else {
        return ("progress", json!({"effect": effect, "state": "done", "ok": ok, "durationUs": duration_us}));
    };
    let mut data = json!({"effect": effect, "agentId": agent, "durationUs": duration_us});
    if *ok {
        data["confidence"] = json!(resolution.confidence);
        data["value"] = outcome["answer"]["value"].clone();
        return ("agent_completed", data);
    }
    data["error"] = outcome["failed"]["message"].clone();
    data["errorCode"] = outcome["failed"]["code"].clone();
    ("agent_failed", data)
}
