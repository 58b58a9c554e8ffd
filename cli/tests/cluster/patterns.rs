//! What patterns decide, and whom they ask for it.

use std::sync::Arc;

use parallax_sdk::{Answer, Task, agent};
use serde_json::{Value as Json, json};
use tokio::sync::{Barrier, Mutex};

use crate::{
    agents::{Calls, says},
    world::World,
};

/// Equal but for what doubles cannot hold.
fn near(number: &Json, expected: f64) {
    let found = number.as_f64().unwrap_or(f64::NAN);
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

/// Three agents with these answers, and the counts of their calls.
async fn three(world: &World, answers: [(&str, f64); 3]) -> Vec<Calls> {
    let mut counts = Vec::new();
    for (id, (value, confidence)) in ["a", "b", "c"].into_iter().zip(answers) {
        let (agent, calls) = says(id, value, confidence);
        world.agent(agent).await;
        counts.push(calls);
    }
    counts
}

fn counts(calls: &[Calls]) -> Vec<usize> {
    calls.iter().map(Calls::count).collect()
}

#[tokio::test]
async fn consensus_weighs_the_answers_of_all() {
    let world = World::start().await;
    let calls = three(&world, [("de", 0.9), ("fr", 0.8), ("de", 0.6)]).await;
    let run = world.run("ConsensusBuilder", json!({"task": "tell", "data": {"text": "Füße"}})).await;

    assert_eq!(run["status"], "completed", "{run}");
    let result = &run["result"];
    assert_eq!((&result["decision"], &result["agents"]), (&json!("de"), &json!(["a", "c"])));
    // The mean over all three, where the dissenter counts as 0.
    near(&run["confidence"], (0.9 + 0.6) / 3.0);
    near(&result["agreement"], 2.0 / 3.0);
    near(&result["alternatives"][0]["support"], 0.8 / 3.0);
    assert_eq!((&result["answered"], &result["asked"]), (&json!(3), &json!(3)));
    assert_eq!(counts(&calls), [1, 1, 1]);

    // A tie of one against one goes to the surer.
    let run = world.run("consensus_builder", json!({})).await;
    assert_eq!(run["result"]["decision"], "de");
    assert_eq!(counts(&calls), [2, 2, 2]);
    world.stop().await;
}

#[tokio::test]
async fn agents_get_the_task_the_data_and_the_context() {
    let world = World::start().await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hearing = heard.clone();
    let listener = agent("listener").answer(move |task: Task| {
        let hearing = hearing.clone();
        async move {
            hearing.lock().await.push(task);
            Answer::new("ok", 1.0)
        }
    });
    world.agent(listener).await;
    let input = json!({"task": "tell", "data": {"text": "Füße", "deep": [1, {"x": null}]}});
    let run = world.run_with("voting", input, json!({"timeout": 30_000, "context": {"lang": "de"}})).await;

    let heard = heard.lock().await;
    let [task] = &heard[..] else { panic!("asked once, not {} times", heard.len()) };
    assert_eq!((task.description.as_str(), task.pattern.as_deref()), ("tell", Some("Voting")));
    assert_eq!(task.data, json!({"text": "Füße", "deep": [1, {"x": null}]}));
    assert_eq!(task.context["lang"], "de");
    assert_eq!(task.effect, Some(format!("{}/{}", run["id"].as_str().unwrap(), run["calls"][0]["effect"])));
    let left = task.deadline.expect("the run's own time bounds its calls") - tokio::time::Instant::now();
    assert!(left.as_secs() <= 30);
    drop(heard);
    world.stop().await;
}

#[tokio::test]
async fn voting_counts_heads() {
    let world = World::start().await;
    let calls = three(&world, [("de", 0.1), ("fr", 1.0), ("de", 0.1)]).await;
    let run = world.run("voting", json!({"task": "tell"})).await;
    assert_eq!((&run["status"], &run["result"]["decision"]), (&json!("completed"), &json!("de")));
    near(&run["confidence"], 2.0 / 3.0);

    let run = world.run("voting", json!({"task": "tell", "quorum": 0.7})).await;
    assert_eq!((&run["result"]["decision"], &run["result"]["voters"]), (&Json::Null, &json!(3)));
    near(&run["confidence"], 0.0);
    assert_eq!(counts(&calls), [2, 2, 2]);
    world.stop().await;
}

#[tokio::test]
async fn the_cascade_stops_asking_when_it_is_sure() {
    let world = World::start().await;
    let calls = three(&world, [("de", 0.5), ("fr", 0.85), ("nl", 0.99)]).await;
    let input = |target: Json| json!({"task": "tell", "agents": ["a", "b", "c"], "target": target});

    let run = world.run("confidence-cascade", input(json!(0.8))).await;
    assert_eq!(
        (&run["result"]["decision"], &run["result"]["asked"]),
        (&json!("fr"), &json!(["a", "b"])),
        "{run}"
    );
    near(&run["confidence"], 0.85);
    assert_eq!((counts(&calls), &run["metrics"]["calls"]), (vec![1, 1, 0], &json!(2)));

    let run = world.run("confidence-cascade", input(json!(0.5))).await;
    assert_eq!(run["result"]["decision"], "de");
    assert_eq!(counts(&calls), [2, 1, 0]);

    // Nobody is sure enough: all are asked, and the best answer counts.
    let run = world.run("confidence-cascade", input(json!(1))).await;
    assert_eq!(run["result"]["decision"], "nl");
    near(&run["confidence"], 0.99);
    assert_eq!(counts(&calls), [3, 2, 1]);
    world.stop().await;
}

#[tokio::test]
async fn the_journal_shows_every_effect_with_outcome_and_time() {
    let world = World::start().await;
    three(&world, [("de", 0.9), ("fr", 0.8), ("de", 0.6)]).await;
    let run = world.run("consensus-builder", json!({"task": "tell"})).await;
    let journal = run["journal"].as_array().unwrap();
    let of = |kind: &str| journal.iter().filter(|entry| entry["type"] == kind).collect::<Vec<_>>();

    let (started, completed) = (journal.first().unwrap(), journal.last().unwrap());
    assert_eq!((&started["type"], &started["agents"]), (&json!("started"), &json!(["a", "b", "c"])));
    assert_eq!((&completed["type"], &completed["confidence"]), (&json!("completed"), &run["confidence"]));
    assert_eq!(completed["value"], run["result"]);
    let requested = of("requested");
    assert_eq!(requested.len(), 3, "{journal:#?}");
    for request in requested {
        let outcomes: Vec<_> =
            of("resolved").into_iter().filter(|r| r["effect"] == request["effect"]).collect();
        let [outcome] = outcomes[..] else { panic!("one outcome for {request}, not {outcomes:?}") };
        assert!(request["position"].as_u64() < outcome["position"].as_u64());
        assert!(request["request"].to_string().contains(outcome["agent"].as_str().unwrap()), "{request}");
        assert_eq!(outcome["ok"], true);
        assert!(outcome["confidence"].as_f64() > Some(0.5) && outcome["duration_us"].as_u64() > Some(0));
    }
    let times: Vec<_> = journal.iter().map(|entry| entry["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted() && times[0] >= run["startTime"].as_str().unwrap(), "{times:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_script_that_never_looks_at_the_answers_asks_nobody() {
    let world = World::start_with_patterns(&[("blind", "@minAgents 1", "agentCount ~> 0.5")]).await;
    let (agent, calls) = says("a", "de", 0.9);
    world.agent(agent).await;
    let run = world.run("blind", json!({})).await;
    assert_eq!(
        (&run["result"], &run["confidence"], &run["metrics"]["calls"]),
        (&json!(1), &json!(0.5), &json!(0))
    );
    assert_eq!(calls.count(), 0);
    world.stop().await;
}

#[tokio::test]
async fn a_script_asks_one_agent_and_several_at_once() {
    let both = "let find = id => agentList.find(agent => agent.id === id)
        let first = find(\"a\").analyze(\"one\", { n: 1 })
        let answers = parallel([find(\"a\").analyze(\"two\", { n: 2 }), find(\"b\").analyze(\"two\", { n: 3 })])
        let result = { first: first, both: answers }
        result";
    let world = World::start_with_patterns(&[("both", "", both)]).await;
    // Calls of task two answer only when two of them are there at one time.
    let met = Arc::new(Barrier::new(2));
    for id in ["a", "b"] {
        let met = met.clone();
        let agent = agent(id).answer(move |task: Task| {
            let met = met.clone();
            async move {
                if task.description == "two" {
                    met.wait().await;
                }
                Answer::new(json!({"who": id, "n": task.data["n"]}), 0.75)
            }
        });
        world.agent(agent).await;
    }
    let run = world.run("both", json!({})).await;
    assert_eq!(run["status"], "completed", "{run}");
    let expected = json!({
        "first": {"who": "a", "n": 1},
        "both": [{"who": "a", "n": 2}, {"who": "b", "n": 3}],
    });
    assert_eq!(run["result"], expected);
    assert_eq!(run["metrics"]["calls"], 3);
    world.stop().await;
}
