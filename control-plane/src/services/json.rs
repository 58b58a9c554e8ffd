//! The JSON of the HTTP API, as it is read and written, and as `/api/openapi.json` describes it.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use parallax_runtime::{
    env::millis,
    run::{Entry, Event, Options, Run, Summary},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use utoipa::ToSchema;

use crate::{
    error::{Error, Result},
    patterns::{self, Header},
    view::{self, calls},
    webhooks::Hook,
};

/// Body of `POST /api/patterns/:name/execute`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Execute {
    #[serde(default)]
    pub input: Json,
    #[serde(default)]
    pub options: ExecuteOptions,
}

/// Body of `POST /api/executions/adhoc`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Adhoc {
    pub script: String,
    #[serde(default)]
    pub input: Json,
    #[serde(default)]
    pub options: ExecuteOptions,
}

/// Body of `POST /api/executions`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Start {
    /// In any of the three spellings.
    pub pattern_name: String,
    /// Empty means the current one.
    #[serde(default)]
    pub pattern_version: String,
    #[serde(default)]
    pub input: Json,
    #[serde(default)]
    pub options: ExecuteOptions,
    pub webhook: Option<Hook>,
}

/// `options` of [`Execute`], [`Start`] and their like.
#[derive(Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct ExecuteOptions {
    /// Of the whole run, in milliseconds.
    pub timeout: Option<u64>,
    /// At most so many calls to agents at once; 0 bounds nothing.
    pub max_parallel: u32,
    /// Handed to agents with each call.
    pub context: BTreeMap<String, String>,
    /// Every agent that is asked has all of these.
    pub capabilities: Vec<String>,
    pub max_agents: Option<u32>,
    /// Whether calls may be answered by what agents have answered before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cache_results: bool,
    /// Answer with the run's events as they happen, as server-sent events. A run that is started and not waited for
    /// is read at its `streamUrl`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
}

impl ExecuteOptions {
    /// As a caller would give them.
    #[must_use]
    pub fn of(options: &Options) -> Self {
        Self {
            timeout: options.timeout.map(millis),
            max_parallel: options.max_parallel,
            context: options.context.clone(),
            capabilities: options.capabilities.clone(),
            max_agents: options.max_agents,
            cache_results: options.cache_results,
            stream: false,
        }
    }

    /// As a run has them.
    ///
    /// # Errors
    /// A run that would have no time.
    pub fn into_options(self) -> Result<Options> {
        if self.timeout == Some(0) {
            let problem = "0 is no time; leave it out, or give milliseconds".to_owned();
            return Err(Error::Invalid { field: "options.timeout", problem });
        }
        Ok(Options {
            timeout: self.timeout.map(Duration::from_millis),
            max_parallel: self.max_parallel,
            context: self.context,
            capabilities: self.capabilities,
            max_agents: self.max_agents,
            cache_results: self.cache_results,
            task: None,
        })
    }
}

/// A pattern, with its script.
#[derive(Serialize, ToSchema)]
pub struct Pattern {
    #[serde(flatten)]
    pub header: Header,
    pub script: String,
    /// SHA-256 of the script, in hex.
    pub hash: String,
    /// The file it came from.
    pub origin: String,
}

impl Pattern {
    #[must_use]
    pub fn of(pattern: &patterns::Pattern) -> Self {
        Self {
            header: pattern.header.clone(),
            script: pattern.script.clone(),
            hash: pattern.hash.clone(),
            origin: pattern.origin.clone(),
        }
    }
}

/// A run as lists show it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    pub id: String,
    pub pattern_name: String,
    pub pattern_version: String,
    #[schema(pattern = "^(pending|running|completed|failed|cancelled)$")]
    pub status: String,
    pub start_time: Timestamp,
    pub end_time: Option<Timestamp>,
    /// Milliseconds.
    pub duration: Option<u64>,
    /// Of the result; absent until completed, or when the result carries none.
    #[schema(minimum = 0, maximum = 1)]
    pub confidence: Option<f64>,
    pub error: Option<String>,
    pub error_code: Option<String>,
    pub metrics: Metrics,
}

/// What a run has come to so far.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// Calls to agents that have an outcome.
    pub calls: u32,
    pub calls_failed: u32,
    pub journal_entries: u64,
}

impl Metrics {
    #[must_use]
    pub fn of(run: &Summary) -> Self {
        Self { calls: run.calls, calls_failed: run.calls_failed, journal_entries: run.len }
    }
}

impl Listed {
    #[must_use]
    pub fn of(run: &Summary) -> Self {
        let (error_code, error) = run.error.clone().unzip();
        Self {
            id: run.key.id.clone(),
            pattern_name: run.pattern.clone(),
            pattern_version: run.pattern_version.clone(),
            status: run.status.to_string(),
            start_time: run.started_at,
            end_time: run.ended_at,
            duration: run.ended_at.map(|end| millis(end.duration_since(run.started_at).unsigned_abs())),
            confidence: run.confidence,
            error,
            error_code,
            metrics: Metrics::of(run),
        }
    }
}

/// A run with input, result, and what each agent said.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Execution {
    #[serde(flatten)]
    pub listed: Listed,
    /// The run that it does over.
    pub retry_of: Option<String>,
    pub input: Json,
    /// As it was handed to agents with each call.
    pub context: BTreeMap<String, String>,
    pub result: Json,
    /// Those that it may ask.
    pub agents: Vec<Named>,
    pub calls: Vec<Call>,
}

/// An agent by id and name.
#[derive(Serialize, ToSchema)]
pub struct Named {
    pub id: String,
    pub name: String,
}

/// One call to an agent, with its outcome.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    pub effect: u64,
    pub agent_id: String,
    pub value: Json,
    #[schema(minimum = 0, maximum = 1)]
    pub confidence: Option<f64>,
    pub reasoning: Option<String>,
    pub uncertainties: Option<Vec<String>>,
    pub error: Option<CallError>,
    pub start_time: Timestamp,
    /// Microseconds.
    pub duration_us: u64,
}

/// Why a call failed.
#[derive(Serialize, ToSchema)]
pub struct CallError {
    pub code: String,
    pub message: String,
}

impl Call {
    fn of(call: &view::Call<'_>) -> Self {
        let uncertainties = call.answer["uncertainties"].as_array();
        Self {
            effect: call.effect,
            agent_id: call.agent.to_owned(),
            value: call.answer["value"].clone(),
            confidence: call.confidence,
            reasoning: call.answer["reasoning"].as_str().map(str::to_owned),
            uncertainties: uncertainties
                .map(|all| all.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()),
            error: call
                .error
                .map(|(code, message)| CallError { code: code.to_owned(), message: message.to_owned() }),
            start_time: call.started_at,
            duration_us: call.duration_us,
        }
    }
}

impl Execution {
    #[must_use]
    pub fn of(run: &Run) -> Self {
        let start = run.start();
        let named = start.agents.iter();
        Self {
            listed: Listed::of(&run.summary),
            retry_of: start.origin.as_ref().map(|origin| origin.run.clone()),
            input: start.input.clone(),
            context: start.options.context.clone(),
            result: run.value().cloned().unwrap_or_default(),
            agents: named.map(|a| Named { id: a.key.id.clone(), name: a.name.clone() }).collect(),
            calls: calls(run).iter().map(Call::of).collect(),
        }
    }
}

/// A run's journal: every effect with its outcome and time.
#[must_use]
pub fn journal(run: &Run) -> Vec<Json> {
    run.entries.iter().enumerate().map(|(position, entry)| journal_entry(position, entry)).collect()
}

fn journal_entry(position: usize, entry: &Entry) -> Json {
    let mut body = match &entry.event {
        // The input stands beside the journal, and the script's hash says the rest.
        Event::Started(start) => json!({
            "type": "started",
            "pattern": start.pattern,
            "patternVersion": start.pattern_version,
            "scriptHash": start.script_hash,
            "agents": start.agents.iter().map(|agent| agent.key.id.as_str()).collect::<Vec<_>>(),
        }),
        event => serde_json::to_value(event).expect("an event is plain data"),
    };
    let fields = body.as_object_mut().expect("an event is an object");
    let mut ordered =
        Map::from_iter([("position".to_owned(), json!(position)), ("at".to_owned(), json!(entry.at))]);
    ordered.append(fields);
    Json::Object(ordered)
}
