//! Patterns that are uploaded, by the real program, and what that does to runs.

use std::path::PathBuf;

use parallax_sdk::{Answer, Task, agent};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::{
    program::run as command,
    world::{World, soon},
};

fn file(world: &World, name: &str, version: &str, body: &str) -> String {
    let file: PathBuf = world.data_dir().join(format!("{name}-{version}.prism"));
    let header = format!("/**\n * @name {name}\n * @version {version}\n * @minAgents 1\n */\n");
    std::fs::write(&file, format!("{header}{body}\n")).unwrap();
    file.to_str().unwrap().to_owned()
}

/// An agent that answers once it is let, and says when it is asked.
async fn gated(world: &World) -> (mpsc::UnboundedReceiver<String>, watch::Sender<bool>) {
    let (asking, asked) = mpsc::unbounded_channel();
    let (release, gate) = watch::channel(false);
    let gated = agent("gated").answer(move |task: Task| {
        let (asking, mut gate) = (asking.clone(), gate.clone());
        async move {
            asking.send(task.description).unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            Answer::new("de", 0.75)
        }
    });
    world.agent(gated).await;
    (asked, release)
}

#[tokio::test]
async fn a_run_in_flight_keeps_the_versions_of_what_it_calls() {
    let world = World::start().await;
    let (mut asked, release) = gated(&world).await;
    let dir = world.data_dir();
    let outer = "let a = agents[0].analyze(\"first\", {})\nexecutePattern(\"in_ner\", { a: a })";
    for (name, body) in [("outer", outer), ("InNer", "({ version: 1, a: input.a }) ~> 0.5")] {
        let file = file(&world, name, "1.0.0", body);
        assert_eq!(command(dir, &["pattern", "upload", &file]).await.code, 0);
    }
    let accepted = world.api().await.post("/api/executions", &json!({"patternName": "outer"})).await.unwrap();
    soon(asked.recv()).await.unwrap();
    let two = file(&world, "InNer", "2.0.0", "({ version: 2 }) ~> 0.5");
    assert_eq!(command(dir, &["pattern", "upload", &two]).await.code, 0);
    release.send(true).unwrap();
    let id = accepted["id"].as_str().unwrap();
    soon(world.api().await.events(&format!("/api/executions/{id}/events/stream"), None, |_| {}))
        .await
        .unwrap();
    let run = world.api().await.get(&format!("/api/executions/{id}")).await.unwrap();
    assert_eq!(run["result"]["version"], 1, "{run}");
    assert_eq!(world.run("outer", json!({})).await["result"]["version"], 2);
    world.stop().await;
}

#[tokio::test]
async fn a_run_in_flight_keeps_its_version() {
    let world = World::start().await;
    let (mut asked, release) = gated(&world).await;
    let dir = world.data_dir();
    let one = file(
        &world,
        "AskOne",
        "1.0.0",
        "let a = agents[0].analyze(\"first\", {})\n({ version: 1, a: a }) ~> 0.5",
    );
    let two = file(
        &world,
        "AskOne",
        "2.0.0",
        "let a = agents[0].analyze(\"second\", {})\n({ version: 2, a: a }) ~> 0.5",
    );
    let uploaded = command(dir, &["pattern", "upload", &one]).await;
    assert_eq!(
        (uploaded.code, uploaded.out.as_str()),
        (0, "ask-one@1.0.0 is the current version\n"),
        "{}",
        uploaded.err
    );
    let accepted =
        world.api().await.post("/api/executions", &json!({"patternName": "ask_one"})).await.unwrap();
    assert_eq!(soon(asked.recv()).await.unwrap(), "first");

    assert_eq!(command(dir, &["pattern", "upload", &two]).await.code, 0);
    release.send(true).unwrap();
    let id = accepted["id"].as_str().unwrap();
    soon(world.api().await.events(&format!("/api/executions/{id}/events/stream"), None, |_| {}))
        .await
        .unwrap();
    let run = world.api().await.get(&format!("/api/executions/{id}")).await.unwrap();
    assert_eq!((&run["result"]["version"], &run["patternVersion"]), (&json!(1), &json!("1.0.0")), "{run}");
    assert_eq!(world.run("AskOne", json!({})).await["result"]["version"], 2);

    let versions = command(dir, &["pattern", "versions", "ask-one"]).await;
    let lines: Vec<_> = versions.out.lines().collect();
    assert!(
        lines.len() == 3 && lines[1].starts_with("1.0.0") && lines[2].contains("current"),
        "{}",
        versions.out
    );
    let back = command(dir, &["pattern", "rollback", "AskOne", "1.0.0"]).await;
    assert_eq!((back.code, back.out.as_str()), (0, "ask-one@1.0.0 is the current version\n"), "{}", back.err);
    assert_eq!(world.run("AskOne", json!({})).await["result"]["version"], 1);
    // A file runs as it stands, uploaded or not.
    let ran = command(dir, &["run", &two, "--json"]).await;
    assert!(ran.code == 0 && ran.out.contains("\"version\": 2"), "{}{}", ran.out, ran.err);
    let watched = command(dir, &["run", &two, "--watch"]).await;
    assert!(watched.code == 0 && watched.out.contains("agent_completed"), "{}{}", watched.out, watched.err);

    assert_eq!(command(dir, &["pattern", "delete", "ask-one", "1.0.0"]).await.code, 1, "the current one");
    assert_eq!(command(dir, &["pattern", "delete", "ask-one"]).await.code, 0);
    let gone = command(dir, &["pattern", "show", "ask-one"]).await;
    assert_eq!(gone.code, 2, "{}", gone.out);
    let broken = file(&world, "AskOne", "3.0.0", "1 +* 2");
    let refused = command(dir, &["pattern", "upload", &broken]).await;
    assert!(refused.code == 2 && refused.err.contains("AskOne-3.0.0.prism:6:"), "{}", refused.err);
    world.stop().await;
}
