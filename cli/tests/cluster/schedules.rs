//! Schedules, by the real program, through a `kill -9`.

use std::{collections::BTreeSet, path::Path};

use parallax_cli::api::Api;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::{
    program::{Instance, run},
    world::{args, soon},
};

/// The times that runs were begun for, once there are more than `than` of them.
async fn times(dir: &Path, than: usize) -> Vec<String> {
    let mut api = Api::connect(&args(dir, &["status"])).await.unwrap();
    soon(async {
        loop {
            let page = api.get("/api/executions?limit=100").await.unwrap();
            let runs = page["executions"].as_array().unwrap();
            if runs.len() > than {
                let mut times = Vec::new();
                for run in runs {
                    let path = format!("/api/executions/{}", run["id"].as_str().unwrap());
                    let run = api.get(&path).await.unwrap();
                    times.push(run["context"]["scheduled_for"].as_str().unwrap().to_owned());
                }
                break times;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_schedule_goes_on_after_a_kill() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let file = dir.join("count.prism");
    std::fs::write(&file, "/**\n * @name Count\n * @version 1.0.0\n */\nagentCount ~> 0.5\n").unwrap();
    let instance = Instance::start(dir).await;
    assert_eq!(run(dir, &["pattern", "upload", file.to_str().unwrap()]).await.code, 0);
    let neither = run(dir, &["schedule", "create", "often", "count"]).await;
    assert!(neither.code == 2 && neither.err.contains("--every"), "{}", neither.err);
    let created =
        run(dir, &["schedule", "create", "often", "count", "--every", "1s", "--missed", "skip"]).await;
    assert!(
        created.code == 0 && created.out.starts_with("often runs next at "),
        "{}{}",
        created.out,
        created.err
    );
    let nightly = [
        "schedule",
        "create",
        "nightly",
        "count",
        "--cron",
        "0 3 * * *",
        "--time-zone",
        "Europe/Berlin",
        "--paused",
    ];
    assert_eq!(run(dir, &nightly).await.code, 0);
    let before = times(dir, 1).await.len();
    instance.kill(dir).await;

    let instance = Instance::start(dir).await;
    let all = times(dir, before + 1).await;
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "no time is run twice: {all:?}");
    let listed = run(dir, &["schedule", "list"]).await.out;
    assert!(listed.contains("every 1 s") && listed.contains("0 3 * * * (Europe/Berlin)"), "{listed}");
    assert!(run(dir, &["schedule", "resume", "nightly"]).await.out.starts_with("nightly runs next at "));
    assert_eq!(run(dir, &["schedule", "pause", "often"]).await.out, "often is paused\n");
    let triggered = run(dir, &["schedule", "trigger", "often"]).await;
    assert_eq!(triggered.code, 0, "{}", triggered.err);
    let shown = run(dir, &["schedule", "show", "often"]).await;
    let shown: Json = serde_json::from_str(&shown.out).unwrap();
    assert_eq!((&shown["paused"], &shown["nextTime"]), (&json!(true), &Json::Null));
    assert_eq!(run(dir, &["schedule", "delete", "often"]).await.code, 0);
    assert_eq!(run(dir, &["schedule", "show", "often"]).await.code, 2);
    drop(instance);
}
