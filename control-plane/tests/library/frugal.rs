//! Patterns that call an agent only when they need it.

use serde_json::{Value as Json, json};

use crate::harness::{agent, equals, fixed, pattern, play, ranked, says};

fn answers() -> [(&'static str, Json, f64); 3] {
    [("a", json!("de"), 0.5), ("b", json!("fr"), 0.85), ("c", json!("nl"), 0.99)]
}

#[test]
fn a_cascade_stops_at_its_target() {
    let order = |target: f64| json!({"target": target, "agents": ["a", "b", "c"]});
    let played = play("ConfidenceCascade", order(0.8), equals("a b c"), fixed(&answers()));
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("fr"), "a | b"));
    played.sure(0.85);
    let played = play("ConfidenceCascade", order(0.5), equals("a b c"), fixed(&answers()));
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("de"), "a"));
    let played = play("ConfidenceCascade", order(1.0), equals("a b c"), fixed(&answers()));
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("nl"), "a | b | c"));
    played.sure(0.99);
}

#[test]
fn a_cascade_goes_by_expertise_and_passes_over_whom_it_cannot_ask() {
    let played = play("ConfidenceCascade", json!({}), ranked("c b a"), fixed(&answers()));
    assert_eq!(played.asked, "c");
    let input = json!({"agents": ["gone", "a", "b"], "target": 0.7});
    let played = play("ConfidenceCascade", input, equals("a b c"), fixed(&[("b", json!("fr"), 0.8)]));
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("fr"), "a | b"));
    assert_eq!((&played.result["missing"], &played.result["asked"]), (&json!(["gone"]), &json!(["a", "b"])));
    // Null is no answer, however sure.
    let nulls = fixed(&[("a", json!(null), 1.0), ("b", json!("fr"), 0.3)]);
    let played = play("ConfidenceCascade", json!({}), equals("a b"), nulls);
    assert_eq!(played.decision(), "fr");
    played.sure(0.3);
    // Nobody is asked twice.
    let twice = pattern("confidence-cascade").accept(&json!({"agents": ["a", "a", "b"]})).unwrap_err();
    assert!(twice.to_string().contains("/agents: "), "{twice}");
}

#[test]
fn a_router_asks_one_two_or_all() {
    // a is the least expert, d the most.
    let by = |confidence: f64| {
        play("UncertaintyRouter", json!({}), ranked("d c b a"), move |call| match call.agent.as_str() {
            "a" => says("x", confidence),
            "d" => says("y", 0.9),
            _ => says("x", 0.6),
        })
    };
    let direct = by(0.8);
    assert_eq!((direct.decision(), direct.asked.as_str()), (&json!("x"), "a"));
    assert_eq!(direct.result["route"], "direct");
    direct.sure(0.8);
    let second = by(0.79);
    assert_eq!((second.decision(), second.asked.as_str()), (&json!("y"), "a | d"));
    second.sure(0.9 / 2.0);
    let panel = by(0.4);
    assert_eq!((panel.decision(), panel.asked.as_str()), (&json!("x"), "a | d c b"));
    assert_eq!(panel.result["route"], "panel");
    panel.sure((0.4 + 0.6 + 0.6) / 4.0);

    // A first agent that fails leaves it to the panel; the caller may choose it.
    let input = json!({"first": "c", "high": 0.7});
    let played = play("UncertaintyRouter", input.clone(), ranked("d c b"), fixed(&[("b", json!("x"), 0.9)]));
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("x"), "c | d b"));
    played.sure(0.9);
    let played = play("UncertaintyRouter", input, ranked("d c b"), |_| says("x", 0.7));
    assert_eq!(played.asked, "c");
}

#[test]
fn refinement_stops_at_its_target() {
    let steps = |a: f64, b: f64, c: f64| {
        move |call: &crate::harness::Call| match call.agent.as_str() {
            "a" => says("draft", a),
            "b" => says("better", b),
            _ => says("best", c),
        }
    };
    let input = json!({"task": "write", "data": "notes"});
    let played = play("CascadingRefinement", input.clone(), ranked("c b a"), steps(0.6, 0.9, 1.0));
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("better"), "a | b"));
    played.sure(0.9);
    assert_eq!(played.calls[1].task, "Improve the draft: write");
    assert_eq!(played.calls[1].data, json!({"data": "notes", "draft": "draft", "confidence": 0.6}));
    let played = play("CascadingRefinement", input.clone(), ranked("c b a"), steps(0.85, 0.9, 1.0));
    assert_eq!((played.asked.as_str(), &played.result["stopped"]), ("a", &json!("target")));
    // A step that gains nothing ends it, and the draft stays.
    let played = play("CascadingRefinement", input.clone(), ranked("c b a"), steps(0.6, 0.5, 1.0));
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("draft"), "a | b"));
    assert_eq!(played.result["stopped"], "gain");
    played.sure(0.6);

    // One that answers null is passed over, however sure it is, and the next refines.
    for null in ["a", "b"] {
        let played = play("CascadingRefinement", input.clone(), ranked("c b a"), |call| {
            if call.agent == null { says(Json::Null, 1.0) } else { steps(0.6, 0.6, 0.9)(call) }
        });
        assert_eq!((played.decision(), played.asked.as_str()), (&json!("best"), "a | b | c"));
        assert_eq!(played.result["stopped"], "target");
        played.sure(0.9);
    }

    // One that fails is passed over; more calls go around again.
    let mut calls = 0;
    let input = json!({"maxCalls": 4, "target": 1});
    let played = play("CascadingRefinement", input, ranked("b a"), |call| {
        calls += 1;
        (call.agent == "a").then(|| (json!(calls), 0.2 * f64::from(calls)))
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!(3), "a | b | a | b"));
    assert_eq!((&played.result["stopped"], &played.result["calls"]), (&json!("calls"), &json!(4)));
    played.sure(0.6);
}

#[test]
fn a_budget_buys_until_it_believes() {
    // Two agreeing witnesses of 0.7 make 0.91: the third is not asked.
    let played = play("ConfidenceBudget", json!({}), ranked("a b c"), |_| says("x", 0.7));
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("x"), "a | b"));
    assert_eq!((&played.result["spent"], &played.result["reached"]), (&json!(2), &json!(true)));
    played.sure(1.0 - 0.3 * 0.3);

    // Dissent costs belief: 0.8 against 0.5 leaves 0.4 / 0.6, and a third for x tips the scale.
    let input = json!({"target": 0.95});
    let dissent = [("a", json!("x"), 0.8), ("b", json!("y"), 0.5), ("c", json!("x"), 0.5)];
    let played = play("ConfidenceBudget", input.clone(), ranked("a b"), fixed(&dissent));
    played.sure(0.8 * 0.5 / (1.0 - 0.8 * 0.5));
    let played = play("ConfidenceBudget", input.clone(), ranked("a b c"), fixed(&dissent));
    assert_eq!((played.asked.as_str(), &played.result["reached"]), ("a | b | c", &json!(false)));
    played.sure(0.9 * 0.5 / (1.0 - 0.9 * 0.5));

    // Certainty against certainty is worth nothing.
    let clash = [("a", json!("x"), 1.0), ("b", json!("y"), 1.0)];
    let played = play("ConfidenceBudget", json!({"target": 1, "costs": []}), ranked("b a"), fixed(&clash));
    assert_eq!(played.asked, "b");
    let faint = play(
        "ConfidenceBudget",
        input,
        ranked("a b d"),
        fixed(&[("a", json!("x"), 0.8), ("b", json!("x"), 0.5)]),
    );
    assert_eq!(faint.asked, "a | b | d");
    faint.sure(0.9);
}

#[test]
fn a_budget_is_never_overspent() {
    let costs = json!([{"agent": "a", "cost": 5}, {"agent": "b", "cost": 2}]);
    let agents = || vec![agent("a", 0.9, &[]), agent("b", 0.5, &[]), agent("c", 0.1, &[])];
    let input = |budget: f64| json!({"budget": budget, "costs": costs.clone()});
    // The cheapest first, however expert.
    let played = play("ConfidenceBudget", input(3.0), agents(), |_| says("x", 0.3));
    assert_eq!((played.asked.as_str(), &played.result["spent"]), ("c | b", &json!(3)));
    played.sure(1.0 - 0.7 * 0.7);
    let played = play("ConfidenceBudget", input(7.9), agents(), |_| says("x", 0.3));
    assert_eq!(played.asked, "c | b");
    let played = play("ConfidenceBudget", input(0.5), agents(), |_| says("x", 0.3));
    assert_eq!((played.decision(), played.asked.as_str()), (&Json::Null, ""));
    played.sure(0.0);
}
