//! Programs and what they should give.

use parallax_prism::{CompileOptions, EffectKind, Host, Outcome, Profile, Program, Step, Value};
use serde_json::Value as Json;

/// What a program gives: its value as tagged JSON, or `kind code` of its error.
pub(crate) fn eval_in(profile: Profile, source: &str) -> Result<Json, String> {
    let options = CompileOptions { name: "/main.prism".into(), profile, modules: None };
    let program = match Program::compile(source, &options) {
        Ok(program) => program,
        Err(errors) => return Err(format!("parse {}", errors[0].code)),
    };
    let mut run = program.start(Host::default());
    let mut outcomes = Vec::new();
    loop {
        match run.step(std::mem::take(&mut outcomes)) {
            Step::Need { effects, .. } => {
                assert!(!effects.is_empty(), "the run waits for nothing");
                for effect in effects {
                    let outcome = match effect.kind {
                        EffectKind::Sleep { .. } => Outcome::Value(Value::null()),
                        EffectKind::Now => Outcome::Value(Value::from(1000.0)),
                        EffectKind::Random => Outcome::Value(Value::from(0.25)),
                        EffectKind::Pattern { name, input } => {
                            Outcome::Value(Value::array([name.into(), input]))
                        }
                        _ => Outcome::Failed { code: "none".into(), message: "nobody".into() },
                    };
                    outcomes.push((effect.id, outcome));
                }
            }
            Step::Done(value) => return Ok(serde_json::to_value(&value).expect("values are JSON")),
            Step::Failed(fault) => return Err(format!("runtime {}", fault.code)),
        }
    }
}

#[track_caller]
fn check(profile: Profile, source: &str, expected: &str) {
    let got = eval_in(profile, source);
    let expected = serde_json::from_str::<Json>(expected).map_err(|_| expected.to_string());
    let same = match (&got, &expected) {
        (Ok(got), Ok(expected)) => near(got, expected),
        (got, expected) => got == expected,
    };
    assert!(same, "in {profile:?}:\n{source}\n     got {got:?}\nexpected {expected:?}");
}

fn near(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => {
            a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-9)
        }
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b)),
        // In order: an object keeps its keys as they were given.
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((k, a), (l, b))| k == l && near(a, b))
        }
        (a, b) => a == b,
    }
}

/// Both profiles give this: JSON (a confident value is `{"$value", "$confidence"}`), or `runtime code`, `parse code`.
#[track_caller]
pub(crate) fn both(source: &str, expected: &str) {
    check(Profile::Strict, source, expected);
    check(Profile::Pattern, source, expected);
}

#[track_caller]
pub(crate) fn strict(source: &str, expected: &str) {
    check(Profile::Strict, source, expected);
}

#[track_caller]
pub(crate) fn pattern(source: &str, expected: &str) {
    check(Profile::Pattern, source, expected);
}

/// `value ~> confidence` as JSON.
pub(crate) fn sure(value: &str, confidence: f64) -> String {
    format!(r#"{{"$value": {value}, "$confidence": {confidence}}}"#)
}
