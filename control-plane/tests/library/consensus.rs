//! Patterns in which agents hear of each other.

use serde_json::{Value as Json, json};

use crate::harness::{agent, equals, fixed, play, says};

#[test]
fn an_arbiter_is_asked_only_where_there_is_no_clear_lead() {
    let agents = || vec![agent("a", 0.5, &[]), agent("b", 0.8, &[]), agent("c", 0.4, &[])];
    let clear = [("a", json!("x"), 0.8), ("b", json!("x"), 0.5), ("c", json!("y"), 0.5)];
    let played = play("EnhancedConsensus", json!({}), agents(), fixed(&clear));
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("x"), "a b c"));
    assert_eq!(played.result["arbiter"], Json::Null);
    // Weights 0.4 and 0.4 against 0.2; the backers' mean confidence is 0.65.
    played.sure(0.8 / 1.0 * 0.65);

    let split = [("a", json!("x"), 0.8), ("b", json!("y"), 0.5), ("c", json!("z"), 0.5)];
    let mut answers = fixed(&split);
    let played =
        play("EnhancedConsensus", json!({"data": 1}), agents(), |call| match &call.data["positions"] {
            Json::Array(positions) => {
                assert_eq!((positions.len(), &call.data["data"]), (3, &json!(1)));
                says("x", 1.0)
            }
            _ => answers(call),
        });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("x"), "a b c | b"));
    assert_eq!((&played.result["arbiter"], &played.result["agents"]), (&json!("b"), &json!(["a", "b"])));
    // Its second answer replaces the first: weights 0.4 and 0.8 against 0.2.
    played.sure(1.2 / 1.4 * 0.9);

    // An arbiter that fails leaves all as it was.
    let mut answers = fixed(&split);
    let played = play("EnhancedConsensus", json!({}), agents(), |call| {
        if call.data["positions"].is_array() { None } else { answers(call) }
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("x"), "a b c | b"));
    played.sure(0.4 / 1.0 * 0.8);
}

#[test]
fn a_debate_ends_when_all_agree() {
    let played = play("Debate", json!({"task": "tell", "data": "d"}), equals("a b c"), |call| {
        match (call.agent.as_str(), call.data["round"].as_u64()) {
            ("c", None) => says("y", 0.6),
            (_, None) => says("x", 0.8),
            (_, Some(round)) => {
                assert_eq!((round, &call.data["data"], call.task.as_str()), (2, &json!("d"), "tell"));
                assert_eq!(call.data["positions"][0]["backers"], 2);
                assert_eq!(call.data["positions"][1]["reasons"], json!(["c has its reasons"]));
                says("x", 0.9)
            }
        }
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("x"), "a b c | a b c"));
    assert_eq!((&played.result["ended"], &played.result["rounds"]), (&json!("agreement"), &json!(2)));
    played.sure(0.9);

    // Agreed from the start, there is no second round.
    let played = play("Debate", json!({}), equals("a b c"), |_| says("x", 0.7));
    assert_eq!(played.asked, "a b c");
    played.sure(0.7);
}

#[test]
fn a_debate_ends_in_a_stalemate_or_at_its_cap() {
    let stubborn = fixed(&[("a", json!("x"), 0.9), ("b", json!("y"), 0.6)]);
    let played = play("Debate", json!({}), equals("a b"), stubborn);
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("x"), "a b | a b"));
    assert_eq!(played.result["ended"], "stalemate");
    played.sure(0.9 / 2.0);

    // Two that always take the other's side never end by themselves.
    let mut turn = 0;
    let played = play("Debate", json!({"rounds": 4}), equals("a b"), |_| {
        turn += 1;
        says(if turn % 4 < 2 { "x" } else { "y" }, if turn % 2 == 0 { 0.5 } else { 0.6 })
    });
    assert_eq!((played.calls.len(), &played.result["ended"]), (8, &json!("rounds")));

    // Enough may be less than all, and one that fails does not count.
    let two = fixed(&[("a", json!("x"), 0.9), ("b", json!("x"), 0.6), ("c", json!("y"), 0.6)]);
    let played = play("Debate", json!({"agreement": 0.6}), equals("a b c d"), two);
    assert_eq!((played.asked.as_str(), &played.result["ended"]), ("a b c d", &json!("agreement")));
    played.sure(1.5 / 3.0);
}
