//! Between a run and its script: what the script sees of the outside, and how its effects are named.

use futures::{FutureExt, future::BoxFuture};
use parallax_prism::{AgentInfo, Answer, EffectKind, Host, Limits, Outcome, Value};
use parallax_proto::dataplane::v1::{CallOutcome, call_outcome};
use parallax_runtime::{
    confidence::Confidence,
    run::{Options, RunKey, Start},
    store::StoreError,
    wire,
};

use super::STORE_AWAY;
use crate::{
    error::{Error, Result},
    runs::{Request, Runs},
};

/// Patterns within patterns.
const MAX_NESTING: usize = 8;
/// Effects that one run may ask for: its journal holds each of them.
const MAX_EFFECTS: u64 = 20_000;
/// How sure an answer counts whose agent states nothing, neither with it nor at registration.
const UNSTATED: f64 = 0.5;

/// Runs another pattern as a run of its own, whose id says whose effect it is: begun again after a crash, it is
/// joined and not repeated.
pub(super) fn nested(
    runs: Runs,
    parent: &RunKey,
    effect: u64,
    name: String,
    input: &Value,
    start: &Start,
) -> impl Future<Output = Outcome> + Send + 'static {
    let key = parent.nested(effect);
    // The task is the whole run's.
    let options = Options { task: None, ..start.options.clone() };
    let (input, versions) = (input.to_json(), start.versions.clone());
    let request = Request { pattern: name, input, options, versions, ..Request::default() };
    let too_deep = key.depth() > MAX_NESTING;
    let fail = |code: &str, message: String| Outcome::Failed { code: code.to_owned(), message };
    async move {
        if too_deep {
            return fail("nesting", format!("patterns are nested deeper than {MAX_NESTING}"));
        }
        let run = loop {
            // Boxed, as a run may start a run.
            let started: BoxFuture<'_, Result<RunKey>> = runs.start_as(key.clone(), request.clone()).boxed();
            let begun = match started.await {
                Ok(key) => runs.wait(&key).await,
                Err(e) => Err(e),
            };
            match begun {
                // The process is stopping; the next one joins the nested run again.
                Err(Error::Stopping | Error::Unfinished { .. }) => std::future::pending().await,
                // As the run waits itself. Begun again it is joined, if it is there after all.
                Err(Error::Store(StoreError::Away(_) | StoreError::Closed | StoreError::InDoubt { .. })) => {
                    tokio::time::sleep(STORE_AWAY.1).await;
                }
                done => break done,
            }
        };
        match run {
            Err(e) => fail("pattern", e.to_string()),
            Ok(run) => match run.value() {
                Some(value) => {
                    let value = Value::from_json(value);
                    Outcome::Value(match run.summary.confidence {
                        Some(confidence) => value.with_confidence(confidence),
                        None => value,
                    })
                }
                None => {
                    let (code, message) = run.summary.error.unwrap_or_default();
                    fail(&code, message)
                }
            },
        }
    }
}

/// What the script sees of the outside.
pub(crate) fn host(start: &Start) -> Host {
    let agents = start.agents.iter().map(|agent| AgentInfo {
        id: agent.key.id.clone(),
        name: agent.name.clone(),
        capabilities: agent.capabilities.clone(),
        expertise: agent.metadata.default_confidence.map_or(1.0, Confidence::get),
        confidence: agent.metadata.default_confidence.map(Confidence::get),
        labels: agent.metadata.labels.clone(),
    });
    Host {
        globals: vec![],
        agents: agents.collect(),
        task: Some(start.pattern.clone()),
        data: Value::from_json(&start.input),
        limits: Limits { effects: MAX_EFFECTS, ..Limits::default() },
    }
}

/// What the script sees of a call.
pub(super) fn outcome_of(start: &Start, call: &CallOutcome) -> Outcome {
    match &call.outcome {
        Some(call_outcome::Outcome::Answer(answer)) => Outcome::Answer(Answer {
            value: Value::from_json(&wire::parse_value(&answer.value_json)),
            confidence: Some(answer.confidence.unwrap_or_else(|| unstated(start, &call.agent_id))),
            reasoning: answer.reasoning.clone(),
            uncertainties: answer.uncertainties.clone(),
            metadata: Value::object(
                answer.metadata.iter().map(|(k, v)| (k.as_str(), Value::from(v.as_str()))),
            ),
        }),
        Some(call_outcome::Outcome::Failure(failure)) => {
            let code = failure.cause().as_str_name().trim_start_matches("CAUSE_").to_lowercase();
            Outcome::Failed { code, message: failure.message.clone() }
        }
        None => Outcome::Failed {
            code: "bad_answer".to_owned(),
            message: "the data-plane node sent an outcome without content; are all of one version?"
                .to_owned(),
        },
    }
}

/// An answer whose agent did not say how sure it is counts as the agent's registered default.
fn unstated(start: &Start, agent: &str) -> f64 {
    let agent = start.agents.iter().find(|known| known.key.id == agent);
    agent.and_then(|agent| agent.metadata.default_confidence).map_or(UNSTATED, Confidence::get)
}

/// Of a run's result: its own, or what a field `confidence` of it says. None is invented.
pub(super) fn confidence_of(value: &Value) -> Option<f64> {
    let field = || value.get("confidence").and_then(|field| field.as_f64());
    value.confidence().or_else(field).and_then(Confidence::stated).map(Confidence::get)
}

pub(super) fn kind_name(kind: &EffectKind) -> &'static str {
    match kind {
        EffectKind::Invoke { .. } => "invoke",
        EffectKind::Llm { .. } => "llm",
        EffectKind::Pattern { .. } => "pattern",
        EffectKind::Sleep { .. } => "sleep",
        EffectKind::Now => "now",
        EffectKind::Random => "random",
    }
}

pub(super) fn describe(kind: &EffectKind) -> String {
    match kind {
        EffectKind::Invoke { agent, .. } => format!("agent {agent}"),
        EffectKind::Pattern { name, .. } => format!("pattern {name}"),
        other => kind_name(other).to_owned(),
    }
}
