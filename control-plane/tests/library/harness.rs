//! Plays a pattern of the library against scripted agents: no network, no time, no chance.

use std::path::Path;

use parallax_control_plane::{Pattern, kebab};
use parallax_prism::{
    AgentInfo, Answer, CompileOptions, EffectKind, Host, Limits, Outcome, Step, Value,
    explain::{Most, explain},
};
use serde_json::Value as Json;

/// One question, as the agent got it.
#[derive(Clone, Debug)]
pub struct Call {
    pub agent: String,
    pub task: String,
    pub data: Json,
}

/// An answer with its confidence; `None` is an agent that fails.
pub type Said = Option<(Json, f64)>;

pub fn says(value: impl Into<Json>, confidence: f64) -> Said {
    Some((value.into(), confidence))
}

/// What came of a run, and what it took.
pub struct Played {
    pub result: Json,
    pub confidence: f64,
    pub calls: Vec<Call>,
    /// Who was asked, in order: those in flight together beside each other, ` | ` between one time and the next.
    pub asked: String,
}

impl Played {
    pub fn decision(&self) -> &Json {
        &self.result["decision"]
    }

    /// The result's confidence is this one, but for what doubles cannot hold.
    pub fn sure(&self, expected: f64) {
        near(self.confidence, expected);
    }
}

pub fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

/// An agent of this id, expertise and capabilities.
pub fn agent(id: &str, expertise: f64, capabilities: &[&str]) -> AgentInfo {
    AgentInfo {
        id: id.to_owned(),
        name: id.to_uppercase(),
        capabilities: capabilities.iter().map(|&capability| capability.to_owned()).collect(),
        expertise,
        ..AgentInfo::default()
    }
}

/// Agents of equal expertise, by ids between blanks.
pub fn equals(ids: &str) -> Vec<AgentInfo> {
    ids.split(' ').map(|id| agent(id, 1.0, &[])).collect()
}

/// Agents by expertise, the first the most expert.
pub fn ranked(ids: &str) -> Vec<AgentInfo> {
    ids.split(' ').enumerate().map(|(i, id)| agent(id, 0.9 - 0.1 * i as f64, &[])).collect()
}

/// Agents that always say the same, each its own; those that are not in the list fail.
pub fn fixed(answers: &[(&str, Json, f64)]) -> impl FnMut(&Call) -> Said + use<> {
    let answers: Vec<_> =
        answers.iter().map(|(id, value, c)| ((*id).to_owned(), value.clone(), *c)).collect();
    move |call| answers.iter().find(|(id, ..)| *id == call.agent).map(|(_, value, c)| (value.clone(), *c))
}

/// A pattern from its file.
pub fn pattern(name: &str) -> Pattern {
    let file = format!("{}.prism", kebab(name));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../patterns").join(&file);
    let script = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{file}: {e}"));
    Pattern::parse(&file, &script).unwrap_or_else(|e| panic!("{e}"))
}

/// In which order answers arrive that were asked for together.
#[derive(Clone, Copy)]
pub enum Order {
    AsAsked,
    LastFirst,
}

/// The effects that the control plane grants a run, and a fifth of the steps: no pattern comes near the end of these.
fn limits() -> Limits {
    Limits { effects: 20_000, steps: 20_000_000, ..Limits::default() }
}

/// Plays a pattern to its end, the answers arriving last first.
pub fn play(name: &str, input: Json, agents: Vec<AgentInfo>, answer: impl FnMut(&Call) -> Said) -> Played {
    play_in(Order::LastFirst, name, input, agents, answer)
}

pub fn play_in(
    order: Order,
    name: &str,
    input: Json,
    agents: Vec<AgentInfo>,
    mut answer: impl FnMut(&Call) -> Said,
) -> Played {
    let pattern = pattern(name);
    pattern.accept(&input).unwrap_or_else(|e| panic!("{e}"));
    let asked = agents.len() as u64;
    let mut run = pattern.program.start(Host {
        globals: vec![],
        agents,
        task: Some(pattern.header.name.clone()),
        data: Value::from_json(&input),
        limits: limits(),
    });
    let (mut outcomes, mut calls, mut waves, mut given) = (vec![], vec![], vec![], vec![]);
    loop {
        match run.step(std::mem::take(&mut outcomes)) {
            Step::Need { effects, cancelled } => {
                assert!(cancelled.is_empty() && !effects.is_empty(), "{name} waits for nothing");
                let mut wave = vec![];
                for effect in effects {
                    let EffectKind::Invoke { agent, task, data, .. } = effect.kind else {
                        panic!("{name} asks for {:?}", effect.kind)
                    };
                    let call = Call { agent, task, data: data.to_json() };
                    let outcome = match answer(&call) {
                        Some((value, confidence)) => {
                            let value = Value::from_json(&value);
                            given.push((value.to_json(), confidence));
                            Outcome::Answer(Answer {
                                value,
                                confidence: Some(confidence),
                                reasoning: format!("{} has its reasons", call.agent),
                                ..Answer::default()
                            })
                        }
                        None => {
                            Outcome::Failed { code: "unavailable".to_owned(), message: "gone".to_owned() }
                        }
                    };
                    outcomes.push((effect.id, outcome));
                    wave.push(call.agent.clone());
                    calls.push(call);
                }
                if let Order::LastFirst = order {
                    outcomes.reverse();
                }
                waves.push(wave.join(" "));
            }
            Step::Done(value) => {
                bounded(&pattern, asked, &input, calls.len());
                let confidence = value.confidence().unwrap_or_else(|| panic!("{name} states no confidence"));
                let tagged = serde_json::to_value(&value).expect("values are plain data");
                labelled(name, &tagged["$value"], &|key, parent, inner, c| {
                    let at = |figure: f64| (figure - c).abs() < 1e-9;
                    let figures = ["confidence", "support", "belief", "trust"];
                    let beside = || figures.iter().any(|figure| parent[*figure].as_f64().is_some_and(at));
                    let said = || given.iter().any(|(said, own)| at(*own) && holds(said, inner));
                    let failed = || inner.is_null() && at(0.0);
                    if key == "decision" { at(confidence) } else { failed() || beside() || said() }
                });
                return Played { result: value.to_json(), confidence, calls, asked: waves.join(" | ") };
            }
            Step::Failed(fault) => panic!("{name}:{}: {}", fault.line, fault.message),
        }
    }
}

/// Every confidence within a result is the value's own: the decision's is the result's, and any other is that of the
/// agent that gave the value, or stands beside it; a null in place of an answer has none.
fn labelled(name: &str, json: &Json, right: &dyn Fn(&str, &Json, &Json, f64) -> bool) {
    let entries: Vec<(&str, &Json)> = match json {
        Json::Array(items) => items.iter().map(|item| ("", item)).collect(),
        Json::Object(map) => map.iter().map(|(key, value)| (key.as_str(), value)).collect(),
        _ => return,
    };
    for (key, value) in entries {
        if let Some(confidence) = value["$confidence"].as_f64() {
            let inner = untagged(value);
            assert!(
                right(key, json, &inner, confidence),
                "{name}: {key} {inner} has the confidence {confidence}"
            );
        }
        labelled(name, value.get("$value").unwrap_or(value), right);
    }
}

/// The value without confidences.
fn untagged(json: &Json) -> Json {
    match json.get("$value").unwrap_or(json) {
        Json::Array(items) => items.iter().map(untagged).collect(),
        Json::Object(map) => map.iter().map(|(key, value)| (key.clone(), untagged(value))).collect(),
        other => other.clone(),
    }
}

/// Whether an answer is this value, or has it as a part.
fn holds(said: &Json, value: &Json) -> bool {
    said == value
        || match said {
            Json::Array(items) => items.contains(value),
            Json::Object(map) => map.values().any(|part| part == value),
            _ => false,
        }
}

/// No run makes fewer calls, or more, than `parallax pattern explain` says.
fn bounded(pattern: &Pattern, agents: u64, input: &Json, calls: usize) {
    let said = explain(&pattern.script, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e:?}"));
    let (input, calls, name) = (Value::from_json(input), calls as f64, &pattern.header.name);
    let least = said.least.with(agents, &input);
    assert!(least <= calls, "{name} made {calls} calls, and {} = {least} is the least", said.least);
    if let Most::Of(most) = &said.most {
        let figure = most.with(agents, &input);
        assert!(calls <= figure, "{name} made {calls} calls, and {most} = {figure} is the most");
    }
}
