//! Properties: whatever the source, whatever the outcomes, nothing panics, hangs or depends on chance.
//!
//! Every run of the suite tries the same cases; `PROPTEST_CASES=100000` looks harder, `make fuzz` harder still.

use crate::programs::{Choices, exercise, program, tokens};
use parallax_prism::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use proptest::{collection::vec, sample::select};
use serde_json::json;

fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases.max(1500), rng_seed: RngSeed::Fixed(1), ..usual }
}

/// What programs and the order of outcomes are made of.
fn choices(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..most)
}

/// Programs of the conformance cases.
fn cases() -> Vec<String> {
    let cases: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../cases.json")).expect("readable");
    cases.iter().map(|case| case["program"].as_str().expect("a text").to_string()).collect()
}

/// The same with a few slips of the keyboard.
fn damaged(source: &str, choices: &mut Choices) -> String {
    let mut source: Vec<char> = source.chars().collect();
    for _ in 0..1 + choices.below(4) {
        let at = choices.below(source.len() + 1);
        let end = (at + choices.below(10)).min(source.len());
        match choices.below(4) {
            0 => drop(source.drain(at..end)),
            1 => drop(source.splice(at..at, choices.pick(&tokens()).chars())),
            2 => source.extend_from_within(at..end),
            _ => source.truncate(end),
        }
    }
    source.into_iter().collect()
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|x| json!(x)),
        (-1000..1000).prop_map(|x| json!(x)),
        any::<f64>().prop_map(|x| json!(x)),
        any::<String>().prop_map(|x| json!(x)),
    ];
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| json!(items)),
            (inner.clone(), 0..=100)
                .prop_map(|(x, c)| json!({"$value": x, "$confidence": f64::from(c) / 100.0})),
            vec(inner, 0..20).prop_map(|items| {
                items.into_iter().enumerate().map(|(i, item)| (format!("k{i}"), item)).collect()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_text(source in "\\PC{0,60}|[ -~\n]{0,60}", choices in choices(20)) {
        exercise(&source, Profile::Strict, &mut Choices(&choices));
    }

    #[test]
    fn any_tokens(tokens in vec((select(tokens()), select(vec![" ", "", "\n"])), 1..40), choices in choices(20)) {
        let source: String = tokens.iter().flat_map(|(token, space)| [*token, *space]).collect();
        exercise(&source, Profile::Pattern, &mut Choices(&choices));
    }

    #[test]
    fn damaged_cases(source in select(cases()), choices in choices(40)) {
        let mut choices = Choices(&choices);
        let source = damaged(&source, &mut choices);
        exercise(&source, Profile::Pattern, &mut choices);
        exercise(&source, Profile::Strict, &mut choices);
    }

    #[test]
    fn programs_of_the_grammar(choices in choices(800)) {
        let mut choices = Choices(&choices);
        let source = program(&mut choices);
        exercise(&source, Profile::Pattern, &mut choices);
    }

    #[test]
    fn numbers_read_back_as_themselves(x in any::<f64>()) {
        for x in [x, x.trunc(), x.fract(), (x * 1e3).round() / 1e3] {
            if x.is_finite() {
                let text = Value::from(x).to_string();
                prop_assert_eq!(text.parse(), Ok(if x == 0.0 { 0.0 } else { x }), "{}", text);
            }
        }
    }

    #[test]
    fn values_read_back_as_themselves(json in any_json()) {
        let value: Value = serde_json::from_value(json).expect("any JSON is a value");
        let text = serde_json::to_string(&value).expect("any value is JSON");
        let back: Value = serde_json::from_str(&text).expect("it was written by us");
        prop_assert_eq!(&back, &value);
        prop_assert_eq!(serde_json::to_string(&back).expect("JSON"), text);
        prop_assert_eq!(Value::from_json(&value.to_json()).to_json(), value.to_json());
    }
}

/// What is still unasked in one grouping, and long answered in another, must count the same.
#[test]
fn memory_does_not_depend_on_groups() {
    let source = "s = \"x\"\nfor let i = 0; i < 18; i += 1 { s = s + s }\n\
        for let i = 0; i < 30; i += 1 { try { llm(\"${s}${i}\") } catch { } }\n\"done\"";
    exercise(source, Profile::Pattern, &mut Choices(&[]));
}

#[test]
fn things_move_between_threads() {
    fn movable<T: Send + Sync>() {}
    movable::<Program>();
    movable::<Value>();
    movable::<Outcome>();
    movable::<Interrupt>();
    fn sendable<T: Send>() {}
    sendable::<Run>();
}
