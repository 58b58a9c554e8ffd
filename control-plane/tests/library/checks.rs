//! Patterns that let nothing through unchecked.

use serde_json::{Value as Json, json};

use crate::harness::{Call, Said, agent, equals, play, ranked, says};

#[test]
fn a_grounded_answer_passes_the_gate() {
    let agents = || {
        vec![
            agent("find", 0.5, &["retrieval"]),
            agent("write", 0.5, &["generation"]),
            agent("g1", 0.9, &[]),
            agent("g2", 0.9, &[]),
        ]
    };
    let input = json!({"question": "why?"});
    let played = play("QualityGate", input.clone(), agents(), |call| match call.agent.as_str() {
        "find" => says(json!(["p1", "p2"]), 0.8),
        "write" => {
            assert_eq!(call.data, json!({"question": "why?", "passages": ["p1", "p2"], "objections": []}));
            says("because", 0.9)
        }
        "g1" => says(true, 0.7),
        _ => says(json!({"grounded": true}), 0.9),
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("because"), "find | write | g1 g2"));
    assert_eq!(played.result["ended"], "passed");
    played.sure(0.9 * 0.8 * 0.8);

    // Where nothing is found, nobody is asked for an answer.
    let played =
        play("QualityGate", input, agents(), |call| (call.agent == "find").then(|| (json!([]), 1.0)));
    assert_eq!((played.decision(), played.asked.as_str()), (&Json::Null, "find"));
    assert_eq!(played.result["ended"], "no passages");
}

#[test]
fn an_answer_that_is_not_grounded_goes_back_with_the_objections() {
    let input = |attempts: u32| json!({"question": "why?", "passages": ["p"], "attempts": attempts});
    let agents = || ranked("write g1 g2");
    let answer = |call: &Call| -> Said {
        let second = call.data["objections"] == json!(["no source"]);
        match call.agent.as_str() {
            "write" => says(if second { "better" } else { "made up" }, 0.8),
            _ if call.data["answer"] == "better" => says(true, 1.0),
            "g1" => says(json!({"grounded": false, "objections": ["no source"]}), 0.9),
            _ => says(true, 0.8),
        }
    };
    let played = play("QualityGate", input(2), agents(), answer);
    assert_eq!(
        (played.decision(), played.asked.as_str()),
        (&json!("better"), "write | g1 g2 | write | g1 g2")
    );
    played.sure(0.8);
    let played = play("QualityGate", input(1), agents(), answer);
    assert_eq!((played.decision(), &played.result["passed"]), (&Json::Null, &json!(false)));
    assert_eq!(played.result["attempts"][0]["support"], 0.4);
    played.sure(0.0);
    // A grader that fails gives no grade; a writer that fails is not graded.
    let played =
        play("QualityGate", input(2), agents(), |call| if call.agent == "g2" { None } else { answer(call) });
    assert_eq!(played.decision(), "better");
    let played =
        play(
            "QualityGate",
            input(2),
            agents(),
            |call| if call.agent == "write" { None } else { answer(call) },
        );
    assert_eq!((played.decision(), played.asked.as_str()), (&Json::Null, "write | write"));
    assert_eq!(played.result["ended"], "attempts");
}

#[test]
fn without_a_grader_nobody_is_asked() {
    let agents = || vec![agent("find", 0.5, &["retrieval"]), agent("write", 0.5, &["generation"])];
    let played = play("QualityGate", json!({"question": "why?"}), agents(), |_| says(json!(["p"]), 0.9));
    assert_eq!((played.decision(), played.asked.as_str()), (&Json::Null, ""));
    assert_eq!((&played.result["ended"], &played.result["passed"]), (&json!("no graders"), &json!(false)));
    played.sure(0.0);
}

#[test]
fn a_translation_that_comes_back_word_for_word_needs_no_judge() {
    let input = json!({"text": "Good day", "from": "en", "to": "de"});
    let played =
        play("TranslationVerification", input.clone(), ranked("a b c"), |call| match call.agent.as_str() {
            "a" => says("Guten Tag", 0.9),
            _ => {
                assert_eq!(
                    call.data,
                    json!({"text": "Guten Tag", "from": "de", "to": "en"}),
                    "the original is not shown"
                );
                says("good day", 0.8)
            }
        });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("Guten Tag"), "a | b"));
    played.sure(0.9 * 0.8);

    let played = play("TranslationVerification", input, ranked("a b c"), |call| match call.agent.as_str() {
        "a" => says("Guten Tag", 0.9),
        "b" => says("hello", 0.8),
        _ => says(json!({"same": true}), 0.7),
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("Guten Tag"), "a | b | c"));
    assert_eq!(played.result["judge"], "c");
    played.sure(0.9 * 0.7);
}

#[test]
fn a_translation_that_does_not_hold_is_tried_by_another() {
    let input = json!({"text": "Good day", "to": "de"});
    let played = play("TranslationVerification", input.clone(), ranked("a b c"), |call| {
        match (call.task.as_str(), call.agent.as_str(), &call.data["text"]) {
            ("same meaning", ..) => says(call.data["back"] == "a good day", 0.8),
            (_, "a", _) => says("Gute Nacht", 0.9),
            (_, "b", text) if text == "Gute Nacht" => says("good night", 0.9),
            (_, "b", _) => says("Guten Tag", 0.6),
            _ => says("a good day", 0.9),
        }
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("Guten Tag"), "a | b | c | b | c | a"));
    assert_eq!(played.result["rejected"][0]["translation"], "Gute Nacht");
    played.sure(0.6 * 0.8);

    // A translator that fails costs one call; with two agents the second judges.
    let played = play("TranslationVerification", input, ranked("a b"), |call| match call.agent.as_str() {
        "a" if call.task == "same meaning" => says(true, 0.5),
        "a" if call.data["text"] == "Good day" => None,
        "a" => says("hello there", 0.9),
        _ => says("Hallo", 0.8),
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("Hallo"), "a | b | a | a"));
    played.sure(0.8 * 0.5);
}

fn finding(line: u32, severity: &str) -> Json {
    json!({"file": "a.rs", "line": line, "severity": severity, "message": "…"})
}

#[test]
fn a_review_without_findings_approves() {
    let played =
        play("CodeReview", json!({"code": "…"}), equals("a b c"), |call| match call.agent.as_str() {
            "a" => says(json!([]), 0.9),
            "b" => says(json!({"findings": [finding(7, "low")]}), 0.6),
            _ => None,
        });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("approve"), "a b c"));
    assert_eq!(played.result["findings"][0]["agents"], json!(["b"]));
    played.sure(0.75 * 2.0 / 3.0);
}

#[test]
fn what_two_reviewers_find_needs_no_check() {
    let played =
        play("CodeReview", json!({"code": "…"}), equals("a b c"), |call| match call.agent.as_str() {
            "a" => says(json!([finding(3, "high")]), 0.9),
            "b" => says(json!([finding(3, "critical"), finding(9, "low")]), 0.7),
            _ => says(json!([]), 0.8),
        });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("changes"), "a b c"));
    // The graver of the two severities.
    assert_eq!(played.result["findings"][0]["severity"], "critical");
    assert_eq!(played.result["findings"][0]["agents"], json!(["a", "b"]));
    played.sure(0.8);
}

#[test]
fn a_lone_blocking_finding_is_checked() {
    let review = |confirmed: Said| {
        play("CodeReview", json!({"code": "…"}), ranked("a b c"), move |call| {
            match (call.agent.as_str(), call.task.as_str()) {
                ("a", "confirm") => {
                    assert_eq!(call.data, json!({"code": "…", "finding": finding(3, "critical")}));
                    confirmed.clone()
                }
                ("c", _) => says(json!([finding(3, "critical"), finding(4, "low")]), 0.8),
                _ => says(json!([]), 0.9),
            }
        })
    };
    let confirmed = review(says(true, 0.9));
    assert_eq!((confirmed.decision(), confirmed.asked.as_str()), (&json!("changes"), "a b c | a"));
    assert_eq!(confirmed.result["findings"][0]["agents"], json!(["c", "a"]));
    confirmed.sure(0.85);
    let denied = review(says(false, 0.9));
    assert_eq!(
        (denied.decision(), &denied.result["findings"][0]["denied"]),
        (&json!("approve"), &json!("a"))
    );
    denied.sure(2.6 / 3.0 * (1.0 - 0.4));
    // Without a verdict the finding stands as it was reported.
    let unchecked = review(None);
    assert_eq!(unchecked.decision(), "changes");
    unchecked.sure(0.8);
}

#[test]
fn findings_are_one_only_if_they_are_about_the_same() {
    let review = |a: Json, b: Json| {
        play("CodeReview", json!({"code": "…"}), ranked("a b"), move |call| {
            match (call.task.as_str(), call.agent.as_str()) {
                ("confirm", _) => says(true, 0.6),
                (_, "a") => says(a.clone(), 0.8),
                _ => says(b.clone(), 0.6),
            }
        })
    };
    let severities = |played: &crate::harness::Played| -> Vec<Json> {
        played.result["findings"].as_array().unwrap().iter().map(|f| f["severity"].clone()).collect()
    };
    let leak = json!({"severity": "critical", "message": "leaks a key"});
    let race = json!({"severity": "critical", "message": "races"});

    // Without file and line they are told apart by what they say, and each of one reviewer is kept and checked.
    let played = review(json!([leak, race]), json!([]));
    assert_eq!((severities(&played).len(), played.asked.as_str()), (2, "a b | b b"));
    assert_eq!(played.result["findings"][1]["message"], "races");
    let played = review(json!([leak, leak, {"severity": "high"}, {"severity": "high"}]), json!([]));
    assert_eq!(severities(&played).len(), 4);
    let played = review(json!([leak, race]), json!([race, leak]));
    assert_eq!((severities(&played).len(), played.asked.as_str()), (2, "a b"));
    played.sure(0.7);

    // At one line there can be two faults. The rule counts, where it is named, and not the wording.
    let at = |rule: &str, severity: &str, message: &str| {
        let mut finding = finding(3, severity);
        finding["rule"] = json!(rule);
        finding["message"] = json!(message);
        finding
    };
    let played = review(json!([at("leak", "high", "x")]), json!([at("race", "high", "x")]));
    assert_eq!((severities(&played).len(), played.asked.as_str()), (2, "a b | b a"));
    let played = review(json!([at("leak", "high", "x")]), json!([at("Leak", "high", "y")]));
    assert_eq!((severities(&played).len(), played.asked.as_str()), (1, "a b"));

    // Who thinks little of it has not confirmed that it is grave.
    let played = review(json!([at("leak", "critical", "x")]), json!([at("leak", "low", "x")]));
    assert_eq!(played.asked, "a b | b");
    assert_eq!(severities(&played), ["critical", "low"]);
}
