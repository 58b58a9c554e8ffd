//! What holds for every pattern of the library.

use std::hash::{Hash, Hasher};

use parallax_control_plane::{Library, kebab};
use serde_json::{Value as Json, json};

use crate::harness::{Call, Order, Said, agent, pattern, play, play_in, says};

/// An input that each pattern takes.
fn samples() -> Vec<(&'static str, Json)> {
    let document = json!({"document": "one\n\ntwo", "fields": ["total"], "aspects": ["tone"]});
    vec![
        ("CascadingRefinement", json!({"task": "write"})),
        ("CodeReview", json!({"code": "fn main() {}"})),
        ("ConfidenceBudget", json!({})),
        ("ConfidenceCascade", json!({})),
        ("ConsensusBuilder", json!(null)),
        ("Debate", json!({})),
        ("DocumentAnalysis", document.clone()),
        ("DocumentExtraction", document),
        ("EnhancedConsensus", json!({})),
        ("EpistemicOrchestrator", json!({})),
        ("LoadBalancer", json!({"items": [1, 2, 3]})),
        ("MapReduce", json!({"items": [1, 2, 3]})),
        ("MultiModelVoting", json!({})),
        ("MultiValidator", json!({})),
        ("ParallelExploration", json!({})),
        ("PromptTesting", json!({"prompts": ["p", "q"], "cases": [{"input": 1, "expected": "one"}]})),
        ("QualityGate", json!({"question": "why?", "passages": ["because"]})),
        ("RobustAnalysis", json!({})),
        ("SimpleConsensus", json!({})),
        ("TranslationVerification", json!({"text": "hello", "to": "de"})),
        ("UncertaintyMapReduce", json!({"data": [1, 2, 3]})),
        ("UncertaintyRouter", json!({})),
        ("Voting", json!(null)),
    ]
}

fn three() -> Vec<parallax_prism::AgentInfo> {
    ["a", "b", "c"].map(|id| agent(id, 0.8, &["llm"])).to_vec()
}

/// Whether a decision holds nothing that an agent would have had to say.
fn empty(decision: &Json) -> bool {
    match decision {
        Json::Null => true,
        Json::Array(items) => {
            items.iter().all(|item| item.is_null() || item["value"].is_null() && item["field"].is_string())
        }
        _ => false,
    }
}

#[test]
fn every_pattern_stands_in_the_samples_and_in_the_readme() {
    let readme = include_str!("../../../patterns/README.md");
    let samples = samples();
    let library = Library::open(None).unwrap();
    let names: Vec<_> = library.list().map(|pattern| pattern.header.name.clone()).collect();
    let mut sampled: Vec<_> = samples.iter().map(|(name, _)| (*name).to_owned()).collect();
    sampled.sort_by_key(|name| name.to_lowercase());
    assert_eq!(names, sampled);
    for pattern in library.list() {
        let name = kebab(&pattern.header.name);
        assert_eq!(pattern.origin, format!("(embedded) {name}.prism"));
        assert_eq!(readme.matches(&format!("| `{name}` |")).count(), 1, "{name} in the README");
    }
}

#[test]
fn every_pattern_is_in_the_one_layout() {
    for pattern in Library::open(None).unwrap().list() {
        let formatted = parallax_prism::format::format(&pattern.script, &pattern.origin).unwrap();
        assert!(formatted == pattern.script, "{}: `parallax prism fmt patterns` mends it", pattern.origin);
    }
}

#[test]
fn every_pattern_documents_its_input_and_its_confidence() {
    for pattern in Library::open(None).unwrap().list() {
        let header = &pattern.header;
        assert!(header.description.contains("s confidence is"), "{}", header.name);
        assert!(header.requirements.min_agents >= 1 && !header.tags.is_empty(), "{}", header.name);
        let fields = header.input.as_ref().expect(&header.name)["properties"].as_object().unwrap();
        assert!(!fields.is_empty(), "{}", header.name);
    }
}

#[test]
fn without_an_answer_there_is_no_decision_and_no_confidence() {
    for (name, input) in samples() {
        for said in [None, says(Json::Null, 0.9)] {
            let played = play(name, input.clone(), three(), |_| said.clone());
            assert!(empty(played.decision()), "{name} decided {}", played.decision());
            assert!(played.confidence.abs() < 1e-9, "{name} is sure: {}", played.confidence);
            assert!(!played.calls.is_empty(), "{name} asked nobody");
        }
    }
}

/// Says something that depends on the question and on `seed` only: odd values, any confidence, failures.
fn odd(call: &Call, seed: u64) -> Said {
    let values = [
        json!(0),
        json!(false),
        json!(true),
        json!(""),
        json!("x"),
        json!([]),
        json!({}),
        json!("null"),
        json!(null),
        json!([[1], {"a": null}]),
        json!(-1e300),
        json!({"valid": true, "findings": [{"severity": "high"}]}),
        json!({"grounded": "yes", "same": 1, "total": [2]}),
    ];
    let mut hasher = std::hash::DefaultHasher::new();
    (seed, &call.agent, &call.task, call.data.to_string()).hash(&mut hasher);
    let hash = hasher.finish();
    let confidence = (hash >> 8) % 11;
    if hash.is_multiple_of(7) {
        return None;
    }
    says(values[(hash >> 16) as usize % values.len()].clone(), confidence as f64 / 10.0)
}

#[test]
fn whatever_agents_say_a_run_ends_and_the_order_of_arrival_does_not_matter() {
    for (name, input) in samples() {
        let least = pattern(name).header.requirements.min_agents as usize;
        for (seed, count) in (0..40).zip((least..=5).cycle()) {
            let agents: Vec<_> =
                (0..count).map(|i| agent(&format!("a{i}"), 0.1 * i as f64, &["llm"])).collect();
            let run = |order| play_in(order, name, input.clone(), agents.clone(), |call| odd(call, seed));
            let (played, other) = (run(Order::AsAsked), run(Order::LastFirst));
            assert!((0.0..=1.0).contains(&played.confidence), "{name}: {}", played.confidence);
            assert_eq!((&played.result, &played.asked), (&other.result, &other.asked), "{name}, seed {seed}");
            assert!(played.calls.len() < 50, "{name} asks {} times", played.calls.len());
        }
    }
}

#[test]
fn an_input_is_refused_or_understood() {
    for (name, _) in samples() {
        for input in [json!("a text"), json!([1, 2]), json!(7), json!(true), json!(null), json!({})] {
            if pattern(name).accept(&input).is_ok() {
                play(name, input, three(), |call| odd(call, 1));
            }
        }
    }
}

#[test]
fn an_answer_of_0_or_false_is_an_answer() {
    for name in
        ["ConsensusBuilder", "Voting", "ConfidenceCascade", "SimpleConsensus", "UncertaintyRouter", "Debate"]
    {
        for value in [json!(0), json!(false), json!("")] {
            let played = play(name, json!({}), three(), |_| says(value.clone(), 0.9));
            assert_eq!(played.decision(), &value, "{name}");
        }
    }
}

#[test]
fn an_answer_of_confidence_0_is_an_answer() {
    let decided = [
        ("CascadingRefinement", json!({})),
        ("ConfidenceBudget", json!({"target": 0})),
        ("ConfidenceBudget", json!({})),
        ("ConfidenceCascade", json!({"target": 0})),
        ("ConfidenceCascade", json!({})),
        ("ConsensusBuilder", json!({})),
        ("Debate", json!({})),
        ("EnhancedConsensus", json!({})),
        ("EpistemicOrchestrator", json!({})),
        ("MapReduce", json!({"items": [1], "reduce": "vote"})),
        ("MapReduce", json!({"items": [1], "reduce": "agent"})),
        ("MultiModelVoting", json!({})),
        ("ParallelExploration", json!({})),
        ("RobustAnalysis", json!({})),
        ("SimpleConsensus", json!({"threshold": 0})),
        ("UncertaintyMapReduce", json!({"data": [1]})),
        ("UncertaintyRouter", json!({})),
        ("Voting", json!({})),
    ];
    for (name, input) in decided {
        for value in [json!("x"), json!(7)] {
            let played = play(name, input.clone(), three(), |_| says(value.clone(), 0.0));
            assert_eq!(played.decision(), &value, "{name} {input}");
        }
    }
    let document = json!({"document": "…", "fields": ["total"], "aspects": ["tone"]});
    let found = play("DocumentExtraction", document.clone(), three(), |_| says(json!({"total": 7}), 0.0));
    assert_eq!(found.decision()[0]["value"], 7);
    let found = play("DocumentAnalysis", document, three(), |_| says("calm", 0.0));
    assert_eq!(found.decision()[0]["answer"], "calm");
}

#[test]
fn an_input_that_does_not_fit_is_refused_with_the_pointer() {
    let refused = |name: &str, input: Json| pattern(name).accept(&input).unwrap_err().to_string();
    assert_eq!(
        refused("voting", json!({"quorum": 7})),
        "the input does not fit Voting: /quorum: 7 is greater than or equal to the maximum of 1; see its @input in \
         `parallax pattern show voting`",
    );
    let several = refused("confidence-cascade", json!({"target": -1, "agents": ["a", 2]}));
    assert!(
        several.contains("/target: ") && several.contains("/agents/1: 2 is not of type \"string\""),
        "{several}"
    );
    assert!(refused("map-reduce", json!({})).contains("\"items\" is a required property"));
    assert!(refused("map-reduce", json!(null)).contains("the input: null is not of type \"object\""));
    for (name, input) in samples() {
        pattern(name).accept(&input).unwrap();
    }
}
