//! Patterns that ask everybody at once and count.

use serde_json::{Value as Json, json};

use crate::harness::{agent, equals, fixed, near, play, says};

#[test]
fn consensus_takes_what_the_most_confidence_stands_behind() {
    let answers = fixed(&[("a", json!("de"), 0.9), ("b", json!("fr"), 0.8), ("c", json!("de"), 0.6)]);
    let played = play("ConsensusBuilder", json!({"task": "tell"}), equals("a b c"), answers);
    assert_eq!((played.decision(), &played.result["agents"]), (&json!("de"), &json!(["a", "c"])));
    played.sure(1.5 / 3.0);
    assert_eq!((played.asked.as_str(), played.calls[0].task.as_str()), ("a b c", "tell"));

    // One that failed has no say, in the share either.
    let answers = fixed(&[("a", json!("de"), 0.9), ("c", json!("de"), 0.6)]);
    let played = play("ConsensusBuilder", json!({}), equals("a b c"), answers);
    played.sure(1.5 / 2.0);
    assert_eq!((&played.result["answered"], &played.result["asked"]), (&json!(2), &json!(3)));
}

#[test]
fn voting_counts_heads() {
    let answers = [("a", json!("de"), 0.1), ("b", json!("fr"), 1.0), ("c", json!("de"), 0.1)];
    let played = play("Voting", json!({}), equals("a b c"), fixed(&answers));
    assert_eq!(played.decision(), "de");
    played.sure(2.0 / 3.0);
    let played = play("Voting", json!({"quorum": 0.7}), equals("a b c"), fixed(&answers));
    assert_eq!(played.decision(), &Json::Null);
    played.sure(0.0);
    // Half is no majority; without the third voter, two of two are.
    let played = play("Voting", json!({}), equals("a b"), fixed(&answers));
    assert_eq!(played.decision(), &Json::Null);
    let played = play("Voting", json!({}), equals("a c d"), fixed(&answers));
    played.sure(1.0);
}

#[test]
fn in_simple_consensus_the_unsure_abstain() {
    let answers =
        [("a", json!("x"), 0.9), ("b", json!("y"), 0.4), ("c", json!("y"), 0.3), ("d", json!("x"), 0.7)];
    let played = play("SimpleConsensus", json!({}), equals("a b c d"), fixed(&answers));
    assert_eq!((played.decision(), &played.result["abstained"]), (&json!("x"), &json!(2)));
    played.sure(1.6 / 4.0);
    assert_eq!(played.asked, "a b c d");
    // With everybody voting the heads are even, and the surer ones win.
    let played = play("SimpleConsensus", json!({"threshold": 0}), equals("a b c d"), fixed(&answers));
    assert_eq!((played.decision(), &played.result["agreement"]), (&json!("x"), &json!(0.5)));
    // e fails.
    let played = play("SimpleConsensus", json!({}), equals("a b e"), fixed(&answers));
    played.sure(0.9 / 2.0);
    // Nobody is sure enough.
    let played = play("SimpleConsensus", json!({"threshold": 0.95}), equals("a b"), fixed(&answers));
    assert_eq!(played.decision(), &Json::Null);
    played.sure(0.0);
}

#[test]
fn epistemic_states_are_told_apart() {
    let of = |answers: &[(&str, Json, f64)]| {
        play("EpistemicOrchestrator", json!({}), equals("a b c"), fixed(answers))
    };
    let agreed = of(&[("a", json!("x"), 0.9), ("b", json!("x"), 0.6), ("c", json!("y"), 0.3)]);
    assert_eq!((agreed.decision(), &agreed.result["status"]), (&json!("x"), &json!("agreed")));
    agreed.sure((1.5 - 0.3) / 3.0);
    let contested = of(&[("a", json!("x"), 0.9), ("b", json!("y"), 0.8), ("c", json!("x"), 0.1)]);
    assert_eq!((contested.decision(), &contested.result["status"]), (&json!("x"), &json!("contested")));
    contested.sure((1.0 - 0.8) / 3.0);
    assert_eq!(contested.result["perspectives"][1]["reasons"], json!(["b has its reasons"]));
    let unsure = of(&[("a", json!("x"), 0.3), ("b", json!("y"), 0.2)]);
    assert_eq!(unsure.result["status"], "unsure");
    unsure.sure(0.1 / 2.0);
    // A tie decides nothing.
    let tie = of(&[("a", json!("x"), 0.9), ("b", json!("y"), 0.9)]);
    assert_eq!((tie.decision(), &tie.result["status"]), (&Json::Null, &json!("contested")));
    assert_eq!(of(&[]).result["status"], "unanswered");
    assert_eq!(agreed.asked, "a b c");
}

#[test]
fn models_vote_by_what_they_mean_and_not_by_how_they_spell_it() {
    let models = ["m", "n", "o"].map(|id| agent(id, 1.0, &["llm"])).to_vec();
    let answers = [("m", json!(" Yes\n"), 0.9), ("n", json!("yes"), 0.7), ("o", json!("No"), 0.4)];
    let input = json!({"choices": ["YES", "NO"]});
    let played = play("MultiModelVoting", input.clone(), models.clone(), fixed(&answers));
    assert_eq!((played.decision(), &played.result["agents"]), (&json!("YES"), &json!(["m", "n"])));
    played.sure(1.6 / 2.0 * 0.8);
    assert_eq!(played.asked, "m n o");

    // What is none of the choices is no vote, and neither is a failure.
    let odd = [("m", json!("as a model, I cannot say"), 0.9), ("n", json!("yes"), 0.7)];
    let played = play("MultiModelVoting", input, models.clone(), fixed(&odd));
    assert_eq!((played.decision(), &played.result["noVote"]), (&json!("YES"), &json!(["m", "o"])));
    played.sure(0.7 / 3.0);

    // Only those named are asked; their own spelling stands.
    let played = play("MultiModelVoting", json!({"models": ["n", "o"]}), models, fixed(&answers));
    assert_eq!((played.asked.as_str(), played.decision()), ("n o", &json!("yes")));
}

#[test]
fn one_veto_rejects_unless_a_majority_suffices() {
    let vetoed = [
        ("a", json!(true), 0.9),
        ("b", json!({"valid": false, "issues": ["no date"]}), 0.6),
        ("c", json!({"valid": true}), 0.8),
    ];
    let played = play("MultiValidator", json!({}), equals("a b c"), fixed(&vetoed));
    assert_eq!((played.decision(), &played.result["issues"]), (&json!(false), &json!(["no date"])));
    played.sure(0.6);
    assert_eq!(played.asked, "a b c");
    let played = play("MultiValidator", json!({"require": "majority"}), equals("a b c"), fixed(&vetoed));
    assert_eq!(played.decision(), true);
    played.sure(1.7 / 3.0);

    // Approval by all is as sure as the least sure of them, and needs all.
    let played = play("MultiValidator", json!({}), equals("a c"), fixed(&vetoed));
    assert_eq!(played.decision(), true);
    played.sure(0.8);
    let played = play("MultiValidator", json!({}), equals("a c d"), fixed(&vetoed));
    assert_eq!((played.decision(), &played.result["abstained"]), (&Json::Null, &json!(1)));
    played.sure(0.0);
    let played = play("MultiValidator", json!({}), equals("a b c"), |_| says("fine", 1.0));
    assert_eq!((played.decision(), &played.result["abstained"]), (&Json::Null, &json!(3)));
}

#[test]
fn exploration_takes_the_surest_path() {
    let input = json!({"task": "solve", "data": 7, "approaches": ["by induction", "by cases", "by force"]});
    let played =
        play("ParallelExploration", input, equals("a b"), |call| match call.data["approach"].as_str() {
            Some("by induction") => says(49, 0.6),
            Some("by cases") => says(49, 0.9),
            _ => says(50, 0.7),
        });
    assert_eq!((played.decision(), &played.result["approach"]), (&json!(49), &json!("by cases")));
    played.sure(0.9);
    near(played.result["agreement"].as_f64().unwrap(), 2.0 / 3.0);
    assert_eq!(played.asked, "a b a");
    assert_eq!(played.calls[1].task, "solve (approach: by cases)");
    assert_eq!(played.calls[1].data, json!({"data": 7, "approach": "by cases"}));

    let played = play(
        "ParallelExploration",
        json!({}),
        equals("a b c"),
        fixed(&[("a", json!(1), 0.5), ("c", json!(2), 0.4)]),
    );
    assert_eq!((played.decision(), &played.result["failed"]), (&json!(1), &json!(1)));
    played.sure(0.5);
}

#[test]
fn robust_analysis_drops_outliers() {
    let answers =
        [("a", json!(10), 0.5), ("b", json!(12), 1.0), ("c", json!(11), 0.5), ("d", json!(900), 1.0)];
    let played = play("RobustAnalysis", json!({}), equals("a b c d"), fixed(&answers));
    near(played.decision().as_f64().unwrap(), (5.0 + 12.0 + 5.5) / 2.0);
    assert_eq!((&played.result["outliers"], played.asked.as_str()), (&json!(["d"]), "a b c d"));
    played.sure(2.0 / 4.0);
    // What is no number is decided by the most confidence.
    let words = [("a", json!("x"), 0.5), ("b", json!("y"), 0.8), ("c", json!("x"), 0.5)];
    let played = play("RobustAnalysis", json!({}), equals("a b c"), fixed(&words));
    assert_eq!(played.decision(), "x");
    played.sure(1.0 / 3.0);
}

#[test]
fn robust_analysis_asks_again_only_below_the_quorum() {
    let mut asked = 0;
    let played = play("RobustAnalysis", json!({}), equals("a b c"), |call| {
        asked += 1;
        (call.agent == "a" || asked > 3).then(|| (json!("x"), 0.9))
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("x"), "a b c | b c"));
    played.sure(0.9);
    // Two of three suffice.
    let two = fixed(&[("a", json!("x"), 0.9), ("b", json!("x"), 0.6)]);
    let played = play("RobustAnalysis", json!({}), equals("a b c"), two);
    assert_eq!((played.asked.as_str(), &played.result["failed"]), ("a b c", &json!(["c"])));
    played.sure(1.5 / 3.0);
    // One does not, even the second time.
    let played = play("RobustAnalysis", json!({}), equals("a b c"), fixed(&[("a", json!("x"), 0.9)]));
    assert_eq!((played.decision(), played.asked.as_str()), (&Json::Null, "a b c | b c"));
    played.sure(0.0);
}
