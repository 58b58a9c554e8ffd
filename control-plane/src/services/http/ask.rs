//! `/api/ask`: one question to many agents.

use axum::{Extension, Json, body::Bytes, extract::State};
use parallax_proto::{
    confidence::AgentRequest,
    dataplane::v1::{
        CallOutcome, FanOutRequest,
        call_outcome::Outcome,
        fan_out_request::{All, BestEffort, First, Mode as WireMode, Ordered, Quorum},
    },
};
use parallax_runtime::wire::{parse_value, struct_from_any};
use parallax_security::Peer;
use serde::{Deserialize, Serialize};
use serde_json::Value as Body;
use utoipa::ToSchema;

use super::{Answer, Shared, read};
use crate::{
    error::{Error, Result},
    tenant,
};

/// What is asked, of whom, and when it is enough.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Question {
    task: String,
    #[serde(default)]
    data: Body,
    /// These, and everybody who has the capability; each once.
    #[serde(default)]
    agents: Vec<String>,
    #[serde(default)]
    capability: String,
    mode: Mode,
    /// Of the mode `quorum`: how many must answer.
    answers: Option<u32>,
    /// Of the mode `best-effort`: milliseconds after which it ends.
    by: Option<u32>,
    /// Of the mode `ordered`: the confidence at which it ends.
    #[schema(minimum = 0, maximum = 1)]
    confidence: Option<f64>,
    /// Of those with the capability, the best expected: 32 unless it is said, never more than 256 in all.
    #[serde(default)]
    max_agents: u32,
    /// At the same time: all unless it is said, in the mode `ordered` one.
    #[serde(default)]
    max_concurrency: u32,
    /// Milliseconds for the whole.
    timeout: Option<u32>,
}

/// What is waited for.
#[derive(Clone, Copy, Deserialize, PartialEq, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    /// Until each has answered or failed.
    All,
    /// Until one has answered.
    First,
    /// Until `answers` have answered, or can no longer.
    Quorum,
    /// Until each has answered or failed, but no longer than `by`.
    BestEffort,
    /// One after the other, the best expected first, until one is as sure as `confidence`.
    Ordered,
}

impl Question {
    fn mode(&self) -> Result<WireMode> {
        let given = [
            ("answers", self.answers.is_some(), Mode::Quorum, "quorum"),
            ("by", self.by.is_some(), Mode::BestEffort, "best-effort"),
            ("confidence", self.confidence.is_some(), Mode::Ordered, "ordered"),
        ];
        for (field, given, of, mode) in given {
            let problem = match (given, self.mode == of) {
                (true, false) => format!("goes with the mode {mode}; leave it out"),
                (false, true) => format!("is missing, and the mode {mode} needs it"),
                _ => continue,
            };
            return Err(Error::Invalid { field, problem });
        }
        Ok(match self.mode {
            Mode::All => WireMode::All(All {}),
            Mode::First => WireMode::First(First {}),
            Mode::Quorum => WireMode::Quorum(Quorum { answers: self.answers.unwrap_or_default() }),
            Mode::BestEffort => WireMode::BestEffort(BestEffort { by_ms: self.by.unwrap_or_default() }),
            Mode::Ordered => WireMode::Ordered(Ordered { confidence: self.confidence.unwrap_or_default() }),
        })
    }
}

/// What came of it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asked {
    /// In the order in which they came.
    outcomes: Vec<One>,
    /// Why it ended: `all`, `first`, `quorum`, `deadline`, `confidence` or `impossible`.
    ended: String,
    asked: u32,
    answered: u32,
    failed: u32,
    cancelled: u32,
    not_asked: Vec<String>,
}

/// What came of one agent.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct One {
    agent_id: String,
    #[schema(pattern = "^(answered|failed|cancelled)$")]
    outcome: &'static str,
    result: Body,
    /// Absent when it stated none.
    #[schema(minimum = 0, maximum = 1)]
    confidence: Option<f64>,
    reasoning: String,
    /// Why it did not answer.
    message: Option<String>,
    duration_us: u64,
}

impl One {
    fn of(call: CallOutcome) -> Self {
        let mut one = Self {
            agent_id: call.agent_id,
            outcome: "failed",
            result: Body::Null,
            confidence: None,
            reasoning: String::new(),
            message: None,
            duration_us: call.duration_us,
        };
        match call.outcome {
            Some(Outcome::Answer(answer)) => {
                one.outcome = "answered";
                one.result = parse_value(&answer.value_json);
                one.confidence = answer.confidence;
                one.reasoning = answer.reasoning;
            }
            Some(Outcome::Failure(failure)) => {
                if failure.cause() == parallax_proto::dataplane::v1::failure::Cause::Cancelled {
                    one.outcome = "cancelled";
                }
                one.message = Some(failure.message);
            }
            None => one.message = Some("an empty outcome".to_owned()),
        }
        one
    }
}

/// Asks many agents one question, through a data-plane node; it belongs to no run and is not recorded as one. Whoever
/// is no longer needed is cancelled, as everybody is when the request is given up.
#[utoipa::path(
    post, path = "/api/ask", tag = "agents", request_body = Question,
    responses((status = 200, body = Asked))
)]
pub(super) async fn ask(State(api): Shared, Extension(peer): Extension<Peer>, body: Bytes) -> Answer<Asked> {
    let question: Question = read(&body)?;
    let mode = question.mode()?;
    let longest = api.runs.context().bounds.call_timeout.as_millis();
    let longest = u32::try_from(longest).unwrap_or(u32::MAX);
    let timeout = question.timeout.map_or(longest, |timeout| timeout.min(longest));
    let request = FanOutRequest {
        tenant: tenant::of(&peer).to_owned(),
        request: Some(AgentRequest {
            task_id: api.env.id(),
            task_description: question.task,
            data: Some(struct_from_any(&question.data)),
            timeout_ms: i32::try_from(timeout).unwrap_or(i32::MAX),
            ..AgentRequest::default()
        }),
        agent_ids: question.agents,
        capability: question.capability,
        max_agents: question.max_agents,
        max_concurrency: question.max_concurrency,
        mode: Some(mode),
        effect: String::new(),
    };
    let (outcomes, summary) = api.nodes.fan_out(request).await.map_err(|e| Error::NotAsked(Box::new(e)))?;
    let ended = summary.ended().as_str_name().trim_start_matches("ENDED_").to_ascii_lowercase();
    Ok(Json(Asked {
        outcomes: outcomes.into_iter().map(One::of).collect(),
        ended,
        asked: summary.asked,
        answered: summary.answered,
        failed: summary.failed,
        cancelled: summary.cancelled,
        not_asked: summary.not_asked,
    }))
}
