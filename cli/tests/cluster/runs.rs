//! What can be done with runs: cancelled, done over, replayed, compared, watched; and their turns.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parallax_sdk::{Answer, Task, agent};
use serde_json::{Value as Json, json};
use tokio::sync::{Notify, mpsc};

use crate::{
    agents::says,
    program::run as command,
    world::{World, soon},
};

/// An agent that never answers: tells when it is asked, and when the call is cancelled.
struct Hanging {
    asked: mpsc::UnboundedReceiver<String>,
    dropped: Arc<Notify>,
}

async fn hanging(world: &World, id: &str) -> Hanging {
    struct Guard(Arc<Notify>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (asking, asked) = mpsc::unbounded_channel();
    let dropped = Arc::new(Notify::new());
    let told = dropped.clone();
    let hanging = agent(id).answer(move |task: Task| {
        asking.send(task.effect.unwrap_or_default()).unwrap();
        let guard = Guard(told.clone());
        async move {
            std::future::pending::<()>().await;
            drop(guard);
            Answer::new("never", 1.0)
        }
    });
    world.agent(hanging).await;
    Hanging { asked, dropped }
}

async fn start(world: &World, pattern: &str, input: Json) -> String {
    let body = json!({"patternName": pattern, "input": input});
    let accepted = world.api().await.post("/api/executions", &body).await.unwrap();
    assert_eq!(accepted["status"], "accepted");
    accepted["id"].as_str().unwrap().to_owned()
}

async fn show(world: &World, id: &str) -> Json {
    world.api().await.get(&format!("/api/executions/{id}")).await.unwrap()
}

async fn post(world: &World, path: &str, body: Json) -> Result<Json, String> {
    world.api().await.post(path, &body).await.map_err(|e| e.to_string())
}

async fn ended(world: &World, id: &str) -> Json {
    let mut last = Json::Null;
    soon(
        world
            .api()
            .await
            .events(&format!("/api/executions/{id}/events/stream"), None, |event| last = event.clone()),
    )
    .await
    .unwrap();
    last
}

#[tokio::test]
async fn cancelling_reaches_the_agents_and_the_runs_within() {
    let world = World::start_with_patterns(&[
        ("outer", "", "executePattern(\"inner\", {})"),
        ("inner", "@minAgents 1", "agents[0].analyze(\"hang\", {})"),
    ])
    .await;
    let mut hanging = hanging(&world, "hanging").await;
    let id = start(&world, "outer", json!({})).await;
    let effect = soon(hanging.asked.recv()).await.unwrap();
    assert_eq!(effect, format!("{id}.1/1"));

    let answer = post(&world, &format!("/api/executions/{id}/cancel"), json!({"reason": "enough"})).await;
    let execution = &answer.unwrap()["execution"];
    assert_eq!((&execution["status"], &execution["error"]), (&json!("cancelled"), &json!("enough")));
    soon(hanging.dropped.notified()).await;
    assert_eq!(ended(&world, &format!("{id}.1")).await["type"], "cancelled");
    assert_eq!(show(&world, &id).await["status"], "cancelled");
    // Once more is no error; a run that has ended otherwise cannot be cancelled.
    post(&world, &format!("/api/executions/{id}/cancel"), json!({})).await.unwrap();
    world.agent(says("quick", "x", 0.9).0).await;
    let done = world.run("confidence-cascade", json!({"task": "t", "agents": ["quick"]})).await;
    let path = format!("/api/executions/{}/cancel", done["id"].as_str().unwrap());
    let refused = post(&world, &path, json!({})).await.unwrap_err();
    assert!(refused.contains("has ended: it is completed"), "{refused}");
    world.stop().await;
}

#[tokio::test]
async fn whoever_has_lost_is_cancelled_while_the_run_goes_on() {
    for call in
        ["race(calls)", "parallel(calls, { mode: \"first\" })", "parallel(calls, { mode: \"quorum\", n: 1 })"]
    {
        let script = format!(
            "let calls = [\"loser\", \"winner\"].map(id => agents.find(a => a.id == id).analyze(\"t\", {{}}))\n\
             let won = {call}\n\
             agents.find(a => a.id == \"next\").analyze(\"t\", {{}})"
        );
        let world = World::start_with_patterns(&[("contest", "@minAgents 3", &script)]).await;
        let (mut loser, mut next) = (hanging(&world, "loser").await, hanging(&world, "next").await);
        world.agent(says("winner", "x", 0.9).0).await;
        let id = start(&world, "contest", json!({})).await;
        soon(loser.asked.recv()).await.unwrap();
        soon(loser.dropped.notified()).await;
        soon(next.asked.recv()).await.unwrap();
        assert_eq!(show(&world, &id).await["status"], "running", "{call}");
        post(&world, &format!("/api/executions/{id}/cancel"), json!({})).await.unwrap();
        soon(next.dropped.notified()).await;
        world.stop().await;
    }
}

#[tokio::test]
async fn a_run_that_fails_takes_the_runs_within_along() {
    let world = World::start_with_patterns(&[
        ("outer", "", "race([executePattern(\"inner\", {}), sleep(1)])"),
        ("inner", "@minAgents 1", "agents[0].analyze(\"hang\", {})"),
    ])
    .await;
    let hanging = hanging(&world, "hanging").await;
    let id = start(&world, "outer", json!({})).await;
    assert_eq!(ended(&world, &id).await["type"], "completed");
    assert_eq!(ended(&world, &format!("{id}.1")).await["type"], "cancelled");
    drop(hanging);
    world.stop().await;
}

#[tokio::test]
async fn a_run_that_failed_is_replayed_to_the_same_failure() {
    let world =
        World::start_with_patterns(&[("wrong", "", "sleep(1)\nlet list = [1]\nlist.slicee(1)")]).await;
    let run = world.run("wrong", json!({})).await;
    assert!(run["status"] == "failed" && run["error"].as_str().unwrap().contains("wrong:"), "{run}");
    let path = format!("/api/executions/{}/replay", run["id"].as_str().unwrap());
    let replayed = world.api().await.get(&path).await.unwrap();
    assert_eq!(replayed["identical"], true, "{replayed}");
    world.stop().await;
}

#[tokio::test]
async fn a_run_is_replayed_without_a_call_done_over_and_compared() {
    let world = World::start_with_patterns(&[(
        "three",
        "@minAgents 1",
        "answers = []\nfor i in range(3) { answers.push((agents[0].analyze(\"n\" + i, {}))) }\n{ answers: answers, at: now() } ~> 0.8",
    )])
    .await;
    let (counting, calls) = says("counting", "x", 0.7);
    world.agent(counting).await;
    let id = world.run("three", json!({})).await["id"].as_str().unwrap().to_owned();
    assert_eq!(calls.count(), 3);

    let replayed = world.api().await.get(&format!("/api/executions/{id}/replay")).await.unwrap();
    assert_eq!(replayed, json!({"identical": true, "effects": 4, "agentCalls": 0, "steps": 5}));
    assert_eq!(calls.count(), 3);

    // From effect 3 on: two answers are taken over, the third is asked for anew, and so is the time.
    let over = post(&world, &format!("/api/executions/{id}/replay"), json!({"from": 3})).await.unwrap();
    let over = over["id"].as_str().unwrap();
    assert_eq!(ended(&world, over).await["type"], "completed");
    assert_eq!(calls.count(), 4);
    let shown = show(&world, over).await;
    assert_eq!((&shown["retryOf"], &shown["metrics"]["calls"]), (&json!(id), &json!(3)));
    let diff = world.api().await.get(&format!("/api/executions/{id}/diff/{over}")).await.unwrap();
    assert_eq!(
        (&diff["divergence"]["at"], &diff["divergence"]["effect"]),
        (&json!("outcome"), &json!(4)),
        "{diff}"
    );
    let same = world.api().await.get(&format!("/api/executions/{id}/diff/{id}")).await.unwrap();
    assert_eq!(same["identical"], true);
    let refused =
        post(&world, &format!("/api/executions/{id}/replay"), json!({"from": 5})).await.unwrap_err();
    assert!(refused.contains("no effect 5; it has 1 to 4"), "{refused}");

    let again = post(&world, &format!("/api/executions/{id}/retry"), json!({})).await.unwrap();
    assert_eq!(ended(&world, again["id"].as_str().unwrap()).await["type"], "completed");
    assert_eq!(calls.count(), 7);

    let line = world.api().await.get(&format!("/api/executions/{id}/timeline")).await.unwrap();
    let sum = |of: &Json, parts: &[&str]| parts.iter().map(|part| of[part].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum(&line, &["queuedUs", "effectsUs", "ownUs"]), sum(&line, &["wallUs"]), "{line}");
    for effect in line["effects"].as_array().unwrap() {
        let parts = sum(effect, &["queueUs", "retryUs", "agentUs", "dispatchUs"]);
        assert_eq!(parts, sum(effect, &["wallUs"]), "{effect}");
    }

    for (rest, said) in [
        (vec!["replay", &id], "identical: 4 effects answered from the journal, 0 agents called"),
        (vec!["diff", &id, &id], "identical: "),
        (vec!["timeline", &id], "DISPATCH"),
        (vec!["watch", &id], "agent_completed"),
    ] {
        let ended = command(world.data_dir(), &[&["runs"][..], &rest].concat()).await;
        assert!(ended.code == 0 && ended.out.contains(said), "{} {}", ended.out, ended.err);
    }
    assert_eq!(command(world.data_dir(), &["runs", "diff", &id, over]).await.code, 1);
    world.stop().await;
}

#[tokio::test]
async fn events_stream_as_they_happen_and_resume_by_cursor() {
    let world = World::start().await;
    let (asking, mut asked) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let held = go.clone();
    let slow = agent("slow").answer(move |task: Task| {
        asking.send(task.effect.unwrap_or_default()).unwrap();
        let held = held.clone();
        async move {
            held.notified().await;
            Answer::new("x", 0.9)
        }
    });
    world.agent(slow).await;
    let id = start(&world, "confidence-cascade", json!({"task": "t", "agents": ["slow"]})).await;
    soon(asked.recv()).await.unwrap();
    let (seeing, mut seen) = mpsc::unbounded_channel();
    let mut api = world.api().await;
    let path = format!("/api/executions/{id}/events/stream");
    let watching = tokio::spawn(async move {
        api.events(&path, None, |event| seeing.send(event.clone()).unwrap()).await.unwrap();
    });
    let mut events = vec![];
    while events.last().is_none_or(|event: &Json| event["type"] != "agent_started") {
        events.push(soon(seen.recv()).await.unwrap());
    }
    // It has seen the question before there was an answer.
    go.notify_one();
    while let Some(event) = soon(seen.recv()).await {
        events.push(event);
    }
    watching.await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let expected =
        ["started", "agents_selected", "agent_started", "agent_completed", "agents_completed", "completed"];
    assert_eq!(kinds, expected);

    let listed = world.api().await.get(&format!("/api/executions/{id}/events")).await.unwrap();
    assert_eq!(listed["events"], json!(events), "the stream and the list are the same journal");
    for (at, event) in events.iter().enumerate() {
        let mut rest = vec![];
        let path = format!("/api/executions/{id}/events/stream?after={}", event["id"].as_str().unwrap());
        soon(world.api().await.events(&path, None, |event| rest.push(event.clone()))).await.unwrap();
        assert_eq!(rest, events[at + 1..], "without gap or duplicate");
    }
    let bad = world.api().await.get(&format!("/api/executions/{id}/events?after=x")).await.unwrap_err();
    assert!(bad.to_string().contains("\"x\" is not the id of an event"), "{bad}");
    world.stop().await;
}

#[tokio::test]
async fn runs_wait_for_their_turn_and_the_line_is_bounded() {
    let world = World::start_with(|settings| {
        settings.control_plane.max_runs = std::num::NonZeroUsize::MIN;
        settings.control_plane.max_queued_runs = 2;
    })
    .await;
    let mut hanging = hanging(&world, "hanging").await;
    let input = || json!({"task": "t", "agents": ["hanging"]});
    let first = start(&world, "confidence-cascade", input()).await;
    soon(hanging.asked.recv()).await.unwrap();
    let second = start(&world, "confidence-cascade", input()).await;
    let third = start(&world, "confidence-cascade", input()).await;
    for (id, position) in [(&second, 1), (&third, 2)] {
        let shown = show(&world, id).await;
        assert_eq!((&shown["status"], &shown["queuePosition"]), (&json!("pending"), &json!(position)));
    }
    let body = json!({"patternName": "confidence-cascade", "input": input()});
    let refused = post(&world, "/api/executions", body).await.unwrap_err();
    assert!(refused.contains("2 wait for their turn"), "{refused}");
    let pending = world.api().await.get("/api/executions?status=pending").await.unwrap();
    assert_eq!(pending["total"], 2);

    post(&world, &format!("/api/executions/{second}/cancel"), json!({})).await.unwrap();
    assert_eq!(show(&world, &third).await["queuePosition"], 1);
    post(&world, &format!("/api/executions/{first}/cancel"), json!({})).await.unwrap();
    assert_eq!(soon(hanging.asked.recv()).await.unwrap(), format!("{third}/1"), "the second was never asked");
    assert_eq!(show(&world, &third).await["status"], "running");
    post(&world, &format!("/api/executions/{third}/cancel"), json!({})).await.unwrap();
    world.stop().await;
}

/// Nobody was asked, and the run has time: it does not fail because an agent takes one call at a time.
#[tokio::test]
async fn calls_that_are_turned_away_for_load_wait_for_their_turn() {
    let dir = tempfile::tempdir().unwrap();
    let script = "parallel(range(10).map(n => agents[0].analyze(\"go\", { n: n })))";
    let header = "/**\n * @name crowd\n * @version 1.0.0\n * @minAgents 1\n */\n";
    std::fs::write(dir.path().join("crowd.prism"), format!("{header}{script}\n")).unwrap();
    let world = World::start_with(|settings| {
        settings.control_plane.patterns = dir.path().display().to_string();
        settings.data_plane.limits.least = 1;
        settings.data_plane.limits.most = 1;
    })
    .await;
    let present = Arc::new(AtomicUsize::new(0));
    let single = agent("single").answer(move |_: Task| {
        let present = present.clone();
        async move {
            let others = present.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
            present.fetch_sub(1, Relaxed);
            Answer::new(others, 0.9)
        }
    });
    world.agent(single).await;
    let ran = world.run("crowd", json!({})).await;
    assert_eq!(ran["result"], json!(vec![0; 10]), "{ran}");
    world.stop().await;
}

/// What is abandoned makes room, although nothing comes back from it.
#[tokio::test]
async fn a_call_that_waits_for_room_is_begun_when_others_are_abandoned() {
    let script = "let of = id => agents.find(a => a.id == id)\n\
                  parallel([\n\
                  () => race([of(\"loser\").analyze(\"t\", {}), executePattern(\"quick\", {})]),\n\
                  () => of(\"next\").analyze(\"t\", {})\n\
                  ])";
    let world =
        World::start_with_patterns(&[("narrow", "@minAgents 2", script), ("quick", "", "\"q\" ~> 0.7")])
            .await;
    let loser = hanging(&world, "loser").await;
    world.agent(says("next", "n", 0.9).0).await;
    let ran = soon(world.run_with("narrow", json!({}), json!({"maxParallel": 1}))).await;
    assert_eq!(ran["status"], "completed", "{ran}");
    drop(loser);
    world.stop().await;
}
