//! Patterns that split work among agents.

use serde_json::{Value as Json, json};

use crate::harness::{Call, Said, agent, equals, near, pattern, play, ranked, says};

/// Answers a number with its square.
fn square(call: &Call) -> Said {
    call.data.as_f64().map(|n| (json!(n * n), 0.8))
}

#[test]
fn items_are_dealt_out_in_turn() {
    let input = json!({"task": "square", "items": [1, 2, 3, 4, 5]});
    let played = play("LoadBalancer", input.clone(), equals("a b"), square);
    assert_eq!(played.decision(), &json!([1, 4, 9, 16, 25]));
    assert_eq!((played.asked.as_str(), played.calls[0].task.as_str()), ("a b | a b | a", "square"));
    assert_eq!(played.result["load"], json!([{"agent": "a", "calls": 3}, {"agent": "b", "calls": 2}]));
    played.sure(0.8);

    // What an agent fails at goes to the next, and nothing else is asked twice.
    let played = play("LoadBalancer", input.clone(), equals("a b"), |call| {
        (call.agent == "a").then(|| square(call))?
    });
    assert_eq!((played.decision(), &played.result["failed"]), (&json!([1, 4, 9, 16, 25]), &json!([])));
    assert_eq!((played.asked.as_str(), &played.result["agents"][1]), ("a b | a b | a | a a", &json!("a")));

    let mut input = input;
    input["retries"] = json!(0);
    input["maxConcurrency"] = json!(5);
    let played =
        play("LoadBalancer", input, equals("a b"), |call| (call.agent == "a").then(|| square(call))?);
    assert_eq!(
        (played.decision(), &played.result["failed"]),
        (&json!([1, null, 9, null, 25]), &json!([1, 3]))
    );
    assert_eq!(played.asked, "a b a b a");
    played.sure(0.8 * 3.0 / 5.0);

    let played = play("LoadBalancer", json!({"items": []}), equals("a b"), square);
    assert_eq!((played.decision(), played.asked.as_str()), (&json!([]), ""));
    played.sure(0.0);
}

#[test]
fn as_many_items_as_a_run_can_carry_are_carried() {
    let items: Vec<u32> = (0..10_000).collect();
    // Everything fails the first time; the third time would go beyond what a run may ask for.
    let input = json!({"items": items, "retries": 3, "maxConcurrency": 10_000});
    let played = play("LoadBalancer", input.clone(), equals("a b"), |call| {
        (call.data.as_u64()? % 2 == u64::from(call.agent == "a")).then(|| square(call))?
    });
    assert_eq!(
        (&played.result["failed"], &played.result["decision"][9_999]),
        (&json!([]), &json!(99_980_001))
    );
    assert_eq!(played.calls.len(), 20_000);
    let played = play("LoadBalancer", input, equals("a b"), |_| None);
    assert_eq!((played.calls.len(), played.result["failed"].as_array().unwrap().len()), (20_000, 10_000));
    assert_eq!(
        played.result["load"],
        json!([{"agent": "a", "calls": 10_000}, {"agent": "b", "calls": 10_000}])
    );

    // A second opinion on each part.
    let input = json!({"data": items, "chunk": 1});
    let played = play("UncertaintyMapReduce", input, equals("a b"), |_| says(1, 0.3));
    assert_eq!((played.decision(), played.calls.len()), (&json!(1), 20_000));

    for (reduce, decision) in [("vote", json!([7])), ("concat", json!(items))] {
        let input = json!({"items": items, "reduce": reduce, "maxConcurrency": 10_000});
        let played = play("MapReduce", input, equals("a b"), |call| {
            says(json!([call.data]), if call.data == 7 { 0.9 } else { 0.5 })
        });
        assert_eq!(played.decision(), &decision, "{reduce}");
    }

    // Prompts that are all as good stay in the race to the end.
    let prompts: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    let cases: Vec<_> = (0..1_000).map(|n| json!({"input": n, "expected": n})).collect();
    let input = json!({"prompts": prompts, "cases": cases});
    let played = play("PromptTesting", input, equals("a b"), |call| says(call.data.clone(), 0.9));
    assert_eq!((played.decision(), played.calls.len()), (&json!("0"), 20_000));

    let items: Vec<u32> = (0..10_001).collect();
    for name in ["LoadBalancer", "MapReduce"] {
        let refused = pattern(name).accept(&json!({"items": items})).unwrap_err().to_string();
        assert!(refused.contains("/items: "), "{refused}");
    }
}

#[test]
fn map_reduce_reduces_in_five_ways() {
    let input = |reduce: &str| json!({"items": [1, 2, 3], "reduce": reduce});
    let played = play("MapReduce", input("list"), equals("a b"), square);
    assert_eq!((played.decision(), played.asked.as_str()), (&json!([1, 4, 9]), "a b | a"));
    played.sure(0.8);
    let played = play("MapReduce", input("sum"), equals("a b"), square);
    assert_eq!(played.decision(), 14);

    // A third of the items is lost, and with it a third of the confidence.
    let one_fails = |call: &Call| if call.data == 2 { None } else { square(call) };
    let played = play("MapReduce", input("sum"), equals("a b"), one_fails);
    assert_eq!((played.decision(), &played.result["failed"]), (&json!(10), &json!([1])));
    played.sure(1.6 / 3.0);

    let lists =
        |call: &Call| if call.data == 3 { says("none", 0.9) } else { says(json!([call.data, "x"]), 0.9) };
    let played = play("MapReduce", input("concat"), equals("a b"), lists);
    assert_eq!((played.decision(), &played.result["skipped"]), (&json!([1, "x", 2, "x"]), &json!(1)));
    played.sure(0.9 * 2.0 / 3.0);

    let votes = |call: &Call| if call.data == 1 { says("y", 0.9) } else { says("x", 0.6) };
    let played = play("MapReduce", input("vote"), equals("a b"), votes);
    assert_eq!(played.decision(), "x");
    played.sure(0.7 * (1.2 / 2.1));
}

#[test]
fn a_reducing_agent_costs_one_call_more() {
    let input = json!({"items": [1, 2], "reduce": "agent", "reduceTask": "add"});
    let agents = || vec![agent("a", 0.2, &[]), agent("b", 0.9, &[])];
    let played = play("MapReduce", input.clone(), agents(), |call| match call.task.as_str() {
        "add" => {
            assert_eq!(call.data, json!([1, 4]));
            says(5, 0.5)
        }
        _ => square(call),
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!(5), "a b | b"));
    played.sure(0.8 * 0.5);
    let played =
        play(
            "MapReduce",
            input.clone(),
            agents(),
            |call| if call.task == "add" { None } else { square(call) },
        );
    assert_eq!(played.decision(), &Json::Null);
    played.sure(0.0);
    // Where there is nothing to reduce, it is not asked.
    let played = play("MapReduce", input, agents(), |_| None);
    assert_eq!(played.asked, "a b");
}

#[test]
fn the_input_is_really_split() {
    let text = "one\n\ntwo\n\nthree\n\n \n\nfour\n\nfive";
    let input = json!({"task": "topics", "data": text});
    let played = play("UncertaintyMapReduce", input, equals("a b"), |call| {
        let text = call.data.as_str().unwrap();
        says(json!([text.split("\n\n").count(), text]), 0.8)
    });
    assert_eq!(played.asked, "a b");
    assert_eq!(
        (&played.calls[0].data, &played.calls[1].data),
        (&json!("one\n\ntwo\n\nthree"), &json!("four\n\nfive"))
    );
    assert_eq!(played.decision(), &json!([3, "one\n\ntwo\n\nthree", 2, "four\n\nfive"]));
    played.sure(0.8);
}

#[test]
fn only_doubtful_parts_get_a_second_opinion() {
    let input = json!({"data": [1, 2, 3, 4, 5], "chunk": 2});
    let played = play("UncertaintyMapReduce", input, ranked("a b"), |call| {
        match (call.data.to_string().as_str(), call.agent.as_str()) {
            ("[1,2]", _) => says(10, 0.9),
            ("[3,4]", "b") => says(20, 0.3),
            ("[3,4]", _) => says(40, 0.6),
            ("[5]", "a") => None,
            _ => says(40, 0.2),
        }
    });
    assert_eq!(played.asked, "a b a | a b");
    assert_eq!(played.result["secondOpinions"], json!([1, 2]));
    // Averaged by confidence.
    near(played.decision().as_f64().unwrap(), (10.0 * 0.9 + 40.0 * 0.6 + 40.0 * 0.2) / 1.7);
    played.sure((0.9 * 2.0 + 0.6 * 2.0 + 0.2) / 5.0);

    // A part that nobody answers counts as 0; a lone agent is not asked twice.
    let input = json!({"data": "x;y", "separator": ";", "chunk": 1});
    let played = play("UncertaintyMapReduce", input, equals("a"), |call| {
        (call.data == "x").then(|| (json!("ok"), 0.4))
    });
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("ok"), "a a"));
    assert_eq!(played.result["failed"], json!([1]));
    played.sure(0.2);
}

/// The lower end of Wilson's interval, another way around: the smaller root of (p - x)² = z² x(1 - x) / n.
fn wilson(right: f64, tried: f64) -> f64 {
    let (p, z2) = (right / tried, 1.96f64.powi(2));
    let (a, b, c) = (1.0 + z2 / tried, -(2.0 * p + z2 / tried), p * p);
    (-b - (b * b - 4.0 * a * c).sqrt()) / (2.0 * a)
}

#[test]
fn prompts_that_cannot_win_are_dropped() {
    let cases: Vec<_> = (0..6).map(|n| json!({"input": n, "expected": "Yes"})).collect();
    let input = json!({"prompts": ["good", "bad", "fair"], "cases": cases});
    let mut lanes = Vec::new();
    let played = play("PromptTesting", input, equals("a b"), |call| {
        lanes.push((call.task.clone(), call.agent.clone()));
        match call.task.as_str() {
            "good" => says(" yes ", 0.9),
            "fair" if call.data != 1 => says("YES", 0.9),
            _ => says("no", 0.9),
        }
    });
    assert_eq!(played.decision(), "good");
    // After four cases `bad` is four behind with two to go; `fair` stays in to the end.
    assert_eq!(played.asked, "a a a | b b b | a a a | b b b | a a | b b");
    assert_eq!((&played.result["calls"], &played.result["saved"]), (&json!(16), &json!(2)));
    assert_eq!(played.result["ranking"][1], json!({"prompt": "fair", "right": 5, "tried": 6, "failed": 0}));
    played.sure(wilson(6.0, 6.0));
    assert!(lanes[..3].iter().all(|(_, agent)| agent == "a"));
}

#[test]
fn the_last_prompt_left_is_not_tried_further() {
    let cases: Vec<_> = (0..5).map(|n| json!({"input": n, "expected": n})).collect();
    let input = json!({"prompts": ["bad", "good"], "cases": cases});
    let played = play("PromptTesting", input, equals("a"), |call| {
        if call.task == "good" { says(call.data.clone(), 0.9) } else { None }
    });
    // Three behind with two to go: the rest of the cases is saved.
    assert_eq!((played.decision(), played.asked.as_str()), (&json!("good"), "a a | a a | a a"));
    assert_eq!(played.result["ranking"][1]["failed"], 3);
    played.sure(wilson(3.0, 3.0));
}
