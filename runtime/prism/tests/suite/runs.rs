//! Runs, stepped by hand.

use parallax_prism::*;
use serde_json::json;
use std::collections::BTreeMap;

pub(crate) fn agents(n: usize) -> Vec<AgentInfo> {
    (1..=n)
        .map(|i| AgentInfo {
            id: format!("a{i}"),
            name: format!("Agent {i}"),
            capabilities: vec!["all".into(), format!("c{i}")],
            expertise: 0.5,
            confidence: Some(0.9),
            labels: BTreeMap::from([("n".into(), i.to_string())]),
        })
        .collect()
}

pub(crate) fn start(source: &str, n: usize) -> Run {
    let program = Program::compile(source, &CompileOptions::default()).unwrap_or_else(|e| panic!("{}", e[0]));
    let data = Value::from(json!({"task": "judge", "data": {"text": "hello"}}));
    program.start(Host { agents: agents(n), data, ..Host::default() })
}

pub(crate) fn answer(value: serde_json::Value, confidence: f64) -> Outcome {
    Outcome::Answer(Answer { value: value.into(), confidence: Some(confidence), ..Answer::default() })
}

pub(crate) fn failed(message: &str) -> Outcome {
    Outcome::Failed { code: "deadline".into(), message: message.into() }
}

#[track_caller]
pub(crate) fn need(step: Step) -> Vec<u64> {
    match step {
        Step::Need { effects, .. } => effects.iter().map(|e| e.id.0).collect(),
        other => panic!("expected a need, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn waits(step: Step) {
    assert!(need(step).is_empty(), "nothing more to ask for yet");
}

#[track_caller]
pub(crate) fn cancelled(step: Step) -> (Vec<u64>, Vec<u64>) {
    match step {
        Step::Need { effects, cancelled } => {
            (effects.iter().map(|e| e.id.0).collect(), cancelled.iter().map(|e| e.0).collect())
        }
        other => panic!("expected a need, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn done(step: Step) -> String {
    match step {
        Step::Done(value) => serde_json::to_string(&value).expect("values are JSON"),
        other => panic!("expected the end, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn fault(step: Step) -> Fault {
    match step {
        Step::Failed(fault) => fault,
        other => panic!("expected a fault, got {other:?}"),
    }
}

pub(crate) fn id(n: u64) -> EffectId {
    EffectId(n)
}
