//! Runs a file of conformance cases: programs with what they must give. The format:
//!
//! A JSON list of `{id, name, area, program, given?, expect}`. `given` may have `profile` (absent: the result must be
//! the same in both), `globals`, `llm` (a queue of `{content, confidence}` or `{error}`; absent: no provider) and
//! `modules` (path to source; the program is `/main.prism`). `expect` has `value` and `confidence` (null: plain), or
//! `error` with `kind` and `code`, and may have `stdout`.

use crate::{
    Answer, CompileOptions, EffectId, EffectKind, Host, Kind, Limits, Outcome, Profile, Program, Step, Value,
};
use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value as Json};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

const TOLERANCE: f64 = 1e-9;

/// How a file of cases went.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub passed: usize,
    pub failures: Vec<Failure>,
}

/// A case that differs, in one of the profiles.
#[derive(Clone, Debug)]
pub struct Failure {
    pub id: String,
    pub name: String,
    pub profile: Profile,
    pub expected: String,
    pub got: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let profile = if self.profile == Profile::Strict { "strict" } else { "pattern" };
        write!(
            f,
            "{} {} ({profile})\n  expected {}\n  got      {}",
            self.id, self.name, self.expected, self.got
        )
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "area")]
    _area: IgnoredAny,
    program: String,
    #[serde(default)]
    given: Given,
    expect: Expect,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    profile: Option<Profile>,
    #[serde(default)]
    globals: Map<String, Json>,
    llm: Option<Vec<Reply>>,
    modules: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reply {
    #[serde(default)]
    content: String,
    confidence: Option<f64>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// Null is a value as well.
    #[serde(default, deserialize_with = "present")]
    value: Option<Json>,
    confidence: Option<f64>,
    error: Option<ExpectedError>,
    stdout: Option<Vec<String>>,
}

fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(value).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedError {
    kind: String,
    code: String,
}

/// What a program did.
struct Ran {
    end: Result<Value, (String, String)>,
    stdout: Vec<String>,
}

impl Case {
    fn read(json: Json) -> Result<Self, serde_json::Error> {
        let id = json["id"].as_str().unwrap_or("without an id").to_string();
        let wrong = |why: &dyn fmt::Display| serde_json::Error::custom(format!("case {id}: {why}"));
        let case: Case = serde_json::from_value(json).map_err(|e| wrong(&e))?;
        if case.expect.value.is_some() == case.expect.error.is_some() {
            return Err(wrong(&"`expect` has either `value` or `error`"));
        }
        Ok(case)
    }
}

/// Runs all cases of a file. An error means that the file, or a case that it names, is malformed; then none is run.
pub fn run_cases(json: &str) -> Result<Report, serde_json::Error> {
    let cases: Vec<Json> = serde_json::from_str(json)?;
    let cases = cases.into_iter().map(Case::read).collect::<Result<Vec<_>, _>>()?;
    let mut report = Report::default();
    for case in &cases {
        let profiles = match case.given.profile {
            Some(profile) => vec![profile],
            None => vec![Profile::Strict, Profile::Pattern],
        };
        let failures: Vec<Failure> =
            profiles.into_iter().filter_map(|profile| check(case, profile)).collect();
        report.passed += usize::from(failures.is_empty());
        report.failures.extend(failures);
    }
    Ok(report)
}

fn check(case: &Case, profile: Profile) -> Option<Failure> {
    let ran = run(case, profile);
    let agrees = match (&ran.end, &case.expect.error, &case.expect.value) {
        (Err((kind, code)), Some(error), _) => *kind == error.kind && *code == error.code,
        (Ok(value), None, Some(expected)) => {
            same(&tagged(&value.plain()), expected)
                && match (value.confidence(), case.expect.confidence) {
                    (Some(a), Some(b)) => (a - b).abs() <= TOLERANCE,
                    (None, None) => true,
                    _ => false,
                }
        }
        _ => false,
    };
    let printed = case.expect.stdout.as_ref().is_none_or(|lines| *lines == ran.stdout);
    if agrees && printed {
        return None;
    }
    let confidence = |c: Option<f64>| c.map_or("plain".to_string(), |c| format!("@{c}"));
    let expected = match (&case.expect.error, &case.expect.value) {
        (Some(error), _) => format!("{} error {}", error.kind, error.code),
        (None, value) => {
            format!("{} {}", value.as_ref().unwrap_or(&Json::Null), confidence(case.expect.confidence))
        }
    };
    let got = match &ran.end {
        Err((kind, code)) => format!("{kind} error {code}"),
        Ok(value) => format!("{} {}", tagged(&value.plain()), confidence(value.confidence())),
    };
    let out = |lines: &[String]| format!(" printed {lines:?}");
    let (expected, got) = match &case.expect.stdout {
        Some(lines) => (expected + &out(lines), got + &out(&ran.stdout)),
        None => (expected, got),
    };
    Some(Failure { id: case.id.clone(), name: case.name.clone(), profile, expected, got })
}

fn tagged(value: &Value) -> Json {
    serde_json::to_value(value).unwrap_or(Json::Null)
}

fn run(case: &Case, profile: Profile) -> Ran {
    let options = CompileOptions { name: "/main.prism".into(), profile, modules: case.given.modules.clone() };
    let program = match Program::compile(&case.program, &options) {
        Ok(program) => program,
        Err(diagnostics) => {
            let code = diagnostics.first().map_or("syntax", |d| d.code);
            return Ran { end: Err(("parse".into(), code.into())), stdout: Vec::new() };
        }
    };
    let mut globals: Vec<(String, Value)> = Vec::new();
    for (name, json) in &case.given.globals {
        globals.push((name.clone(), serde_json::from_value(json.clone()).unwrap_or_default()));
    }
    let limits = Limits { steps: 10_000_000, ..Limits::default() };
    let data = globals.iter().find(|(name, _)| name == "input").map(|(_, v)| v.clone()).unwrap_or_default();
    let mut run = program.start(Host { globals, data, limits, ..Host::default() });
    let mut replies: VecDeque<Reply> = case.given.llm.clone().unwrap_or_default().into();
    let mut outcomes = Vec::new();
    loop {
        match run.step(std::mem::take(&mut outcomes)) {
            Step::Need { effects, .. } if effects.is_empty() => {
                return Ran { end: Err(("runtime".into(), "stuck".into())), stdout: run.output().to_vec() };
            }
            Step::Need { effects, .. } => {
                for effect in effects {
                    outcomes.push((
                        effect.id,
                        answer(effect.id, &effect.kind, &mut replies, case.given.llm.is_some()),
                    ));
                }
            }
            Step::Done(value) => return Ran { end: Ok(value), stdout: run.output().to_vec() },
            Step::Failed(fault) => {
                let kind = if fault.kind == Kind::Runtime { "runtime" } else { "parse" };
                let end = Err((kind.into(), fault.code.into()));
                return Ran { end, stdout: run.output().to_vec() };
            }
        }
    }
}

fn answer(id: EffectId, kind: &EffectKind, replies: &mut VecDeque<Reply>, provider: bool) -> Outcome {
    let failed = |code: &str, message: String| Outcome::Failed { code: code.into(), message };
    match kind {
        EffectKind::Llm { .. } if !provider => {
            failed("no_llm_provider", "no language model is configured".into())
        }
        EffectKind::Llm { .. } => match replies.pop_front() {
            Some(Reply { error: Some(error), .. }) => failed("llm_failed", error),
            Some(reply) => Outcome::Answer(Answer {
                value: Value::from(reply.content),
                confidence: reply.confidence.or(Some(0.75)),
                ..Answer::default()
            }),
            None => failed("llm_failed", "the queue of replies is empty".into()),
        },
        EffectKind::Sleep { .. } => Outcome::Value(Value::null()),
        EffectKind::Now => Outcome::Value(Value::from(1_700_000_000_000.0)),
        EffectKind::Random => Outcome::Value(Value::from(0.5)),
        EffectKind::Invoke { .. } | EffectKind::Pattern { .. } => {
            failed("unavailable", format!("effect {} has no answer in a conformance case", id.0))
        }
    }
}

/// Numbers within the tolerance, objects in any order.
fn same(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= TOLERANCE,
            _ => false,
        },
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}
