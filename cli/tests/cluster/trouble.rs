//! Agents that answer nonsense, fail, hang or die, and agents that are not there.

use std::sync::Arc;

use parallax_sdk::{AgentError, Answer, Task, agent};
use serde_json::{Value as Json, json};
use tokio::sync::Notify;
use tonic::Status;

use crate::{
    agents::{Calls, result, says, scripted},
    world::World,
};

/// The call to an agent, as the run lists it.
fn call<'a>(run: &'a Json, agent: &str) -> &'a Json {
    let calls: Vec<_> =
        run["calls"].as_array().unwrap().iter().filter(|call| call["agentId"] == agent).collect();
    let [call] = calls[..] else { panic!("one call to {agent}, not {calls:?} of {run}") };
    call
}

#[tokio::test]
async fn the_others_answers_count_and_each_failure_is_listed() {
    let world = World::start().await;
    let never = Arc::new(Notify::new());
    for (id, value, confidence) in [
        ("nan", "\"de\"", f64::NAN),
        ("boastful", "\"de\"", 7.3),
        ("empty", "", 0.9),
        ("garbled", "{oops", 0.9),
    ] {
        scripted(&world, id, never.clone(), move |_| async move { Ok(result(value, confidence)) }).await;
    }
    let broken = |_| async { Err(Status::internal("the model is gone")) };
    scripted(&world, "broken", never.clone(), broken).await;
    scripted(&world, "hanging", never, |_| std::future::pending()).await;
    let death = Arc::new(Notify::new());
    let dying = death.clone();
    scripted(&world, "dying", death, move |_| {
        dying.notify_one();
        std::future::pending()
    })
    .await;
    world.agent(says("fine", "de", 0.9).0).await;

    let run = world.run_with("consensus-builder", json!({"task": "tell"}), json!({"timeout": 4_000})).await;
    assert_eq!(run["status"], "completed", "{run}");
    // Of eight asked five answered, one of them null. NaN is no confidence, and counts as the default of one half.
    let decided = &run["result"];
    assert_eq!(
        (&decided["decision"], &decided["answered"], &decided["asked"]),
        (&json!("de"), &json!(4), &json!(8))
    );
    assert_eq!(decided["agents"], json!(["boastful", "fine", "nan"]));
    assert!((run["confidence"].as_f64().unwrap() - (1.0 + 0.9 + 0.5) / 4.0).abs() < 1e-9, "{run}");

    assert_eq!((&call(&run, "nan")["value"], &call(&run, "nan")["confidence"]), (&json!("de"), &Json::Null));
    assert_eq!(call(&run, "boastful")["confidence"], 1.0);
    assert_eq!((&call(&run, "empty")["value"], &call(&run, "empty")["error"]), (&Json::Null, &Json::Null));
    assert_eq!(call(&run, "garbled")["value"], "{oops");
    for (id, code, words) in [
        ("broken", "agent_error", "the model is gone"),
        ("hanging", "deadline", "did not answer within"),
        ("dying", "unreachable", "broke off"),
    ] {
        let error = &call(&run, id)["error"];
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
        assert!(error["message"].as_str().unwrap().contains(id), "{error}");
    }
    assert_eq!(run["metrics"]["callsFailed"], 3);
    world.stop().await;
}

#[tokio::test]
async fn without_an_able_agent_a_run_fails_at_once() {
    let needy = ("translate-all", "@capabilities translate\n * @minAgents 1", "successfulResults");
    let world = World::start_with_patterns(&[needy]).await;
    let (able_to_tell, calls) = says("a", "de", 0.9);
    world.agent(able_to_tell).await;
    let run = world.run("TranslateAll", json!({})).await;
    assert_eq!((&run["status"], &run["errorCode"]), (&json!("failed"), &json!("no_agents")));
    let error = run["error"].as_str().unwrap();
    assert!(error.contains("needs 1 agent(s) with translate, none is registered"), "{error}");
    assert_eq!((run["journal"].as_array().unwrap().len(), calls.count()), (2, 0));
    world.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_not_asked_is_listed_by_its_name() {
    let world = World::start().await;
    let calls = Calls::default();
    let counted = calls.clone();
    let broken = agent("broken").answer(move |_: Task| {
        counted.add();
        async { Err(AgentError::new("no luck")) }
    });
    world.agent(broken).await;
    // After some failures its breaker opens.
    for _ in 0..50 {
        let before = calls.count();
        let run = world.run("voting", json!({})).await;
        let error = &call(&run, "broken")["error"];
        if error["code"] == "breaker_open" {
            assert_eq!(calls.count(), before, "nobody was asked");
            return world.stop().await;
        }
        assert_eq!(error["code"], "agent_error", "{error}");
        assert!(error["message"].as_str().unwrap().contains("no luck"), "{error}");
    }
    panic!("fifty failures in a row open no breaker");
}

#[tokio::test]
async fn an_agent_can_be_asked_as_soon_as_it_is_registered() {
    let world = World::start().await;
    let mut api = world.api().await;
    for number in 0..30 {
        let id = format!("agent-{number:02}");
        let fresh = agent(&id).answer(|_: Task| async { Answer::new("here", 1.0) });
        world.agent(fresh).await;
        let input = json!({"agents": [id], "target": 1});
        let answer =
            api.post("/api/patterns/confidence-cascade/execute", &json!({"input": input})).await.unwrap();
        assert_eq!(answer["execution"]["result"]["decision"], "here", "{answer}");
    }
    drop(api);
    world.stop().await;
}
