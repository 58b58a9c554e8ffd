//! The JSON of the HTTP API.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use parallax_runtime::{
    agent::{Agent, Transport},
    env::millis,
    run::{Entry, Event, Options, Run, Summary},
};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use crate::{
    error::{Error, Result},
    patterns::Pattern,
    registry::Registry,
    view::calls,
};

/// Body of `POST /api/patterns/:name/execute`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execute {
    #[serde(default)]
    pub input: Json,
    #[serde(default)]
    pub options: ExecuteOptions,
}

/// Body of `POST /api/executions`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Start {
    pub pattern_name: String,
    #[serde(default)]
    pub pattern_version: String,
    #[serde(default)]
    pub input: Json,
    #[serde(default)]
    pub options: ExecuteOptions,
}

/// `options` of [`Execute`] and [`Start`].
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct ExecuteOptions {
    /// Milliseconds.
    pub timeout: Option<u64>,
    pub max_parallel: u32,
    pub context: BTreeMap<String, String>,
    pub stream: bool,
}

impl ExecuteOptions {
    /// As a run has them.
    ///
    /// # Errors
    /// What is asked for and not served.
    pub fn to_options(&self) -> Result<Options> {
        if self.stream {
            let message =
                "options.stream is not served; start it by POST /api/executions and read its events";
            return Err(Error::NotServed(message));
        }
        Ok(Options {
            timeout: self.timeout.map(Duration::from_millis),
            max_parallel: self.max_parallel,
            context: self.context.clone(),
        })
    }
}

/// Its lease keeps an agent active: one that runs out takes the agent along. One behind the gateway is unhealthy when two
/// heartbeats are missing, as far as this process has heard them.
fn status(agent: &Agent, heard: Option<Timestamp>, now: Timestamp) -> &'static str {
    let silent = heard.map(|heard| now.duration_since(heard).unsigned_abs());
    let behind = agent.transport == Transport::Gateway;
    if behind && silent.is_some_and(|silent| silent > agent.ttl * 2 / 3) { "unhealthy" } else { "active" }
}

/// A registered agent.
#[must_use]
pub fn agent(agent: &Agent, registry: &Registry, now: Timestamp) -> Json {
    json!({
        "id": agent.key.id,
        "name": agent.name,
        "endpoint": agent.endpoint,
        "capabilities": agent.capabilities,
        "status": status(agent, registry.last_heard(&agent.key), now),
        "metadata": {
            "version": agent.metadata.version,
            "region": agent.metadata.region,
            "labels": agent.metadata.labels,
            "defaultConfidence": agent.metadata.default_confidence,
        },
        "registeredAt": agent.registered_at,
        "lastSeen": registry.last_heard(&agent.key),
        "ttlSeconds": agent.ttl.as_secs(),
        "transport": agent.transport,
        "tenant": agent.key.tenant,
        "source": "registry",
    })
}

/// A pattern, with its script.
#[must_use]
pub fn pattern(pattern: &Pattern) -> Json {
    let mut body = serde_json::to_value(&pattern.header).expect("a header is plain data");
    body["script"] = json!(pattern.script);
    body["hash"] = json!(pattern.hash);
    body["origin"] = json!(pattern.origin);
    body
}

/// A run as lists show it.
#[must_use]
pub fn summary(summary: &Summary) -> Json {
    let took = summary.ended_at.map(|end| millis(end.duration_since(summary.started_at).unsigned_abs()));
    let (code, message) = summary.error.clone().unzip();
    json!({
        "id": summary.key.id,
        "patternName": summary.pattern,
        "patternVersion": summary.pattern_version,
        "status": summary.status,
        "startTime": summary.started_at,
        "endTime": summary.ended_at,
        "duration": took,
        "confidence": summary.confidence,
        "error": message,
        "errorCode": code,
        "metrics": {"calls": summary.calls, "callsFailed": summary.calls_failed, "journalEntries": summary.len},
    })
}

/// A run with input, result, and what each agent said.
#[must_use]
pub fn execution(run: &Run) -> Json {
    let mut body = summary(&run.summary);
    let start = run.start();
    body["retryOf"] = json!(start.origin.as_ref().map(|origin| &origin.run));
    body["input"] = start.input.clone();
    body["result"] = run.value().cloned().unwrap_or_default();
    body["agents"] =
        start.agents.iter().map(|agent| json!({"id": agent.key.id, "name": agent.name})).collect();
    body["calls"] = calls(run)
        .iter()
        .map(|call| {
            json!({
                "effect": call.effect,
                "agentId": call.agent,
                "value": call.answer["value"],
                "confidence": call.confidence,
                "reasoning": call.answer["reasoning"],
                "uncertainties": call.answer["uncertainties"],
                "error": call.error.map(|(code, message)| json!({"code": code, "message": message})),
                "startTime": call.started_at,
                "durationUs": call.duration_us,
            })
        })
        .collect();
    body
}

/// A run's journal: every effect with its outcome and time.
#[must_use]
pub fn journal(run: &Run) -> Json {
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
