//! Schedules, by the real clock where it must tick.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use crate::world::{Response, Setup, World, soon};

async fn world(on_disk: bool) -> World {
    let patterns = vec![("add", "({ sum: (input?.a ?? 0) + 1 }) ~> 0.5")];
    World::start_with(Setup { patterns, on_disk, ..Setup::default() }).await
}

async fn post(world: &World, path: &str, body: Json) -> Response {
    world.http("POST", path, &body.to_string()).await
}

/// The runs there are once there are so many: of each the time that it was begun for.
async fn runs(world: &World, at_least: usize) -> Vec<String> {
    soon(async {
        loop {
            let page = world.get("/api/executions?limit=100").await.json();
            let listed = page["executions"].as_array().unwrap().clone();
            if listed.len() >= at_least {
                let mut times = Vec::new();
                for run in listed {
                    let run =
                        world.get(&format!("/api/executions/{}", run["id"].as_str().unwrap())).await.json();
                    assert_eq!(run["context"]["schedule"], "often", "{run}");
                    times.push(run["context"]["scheduled_for"].as_str().unwrap().to_owned());
                }
                break times;
            }
        }
    })
    .await
}

#[tokio::test]
async fn of_two_planes_one_keeps_time_and_then_the_other() {
    let world = world(false).await;
    let other = world.another().await;
    let created =
        post(&other, "/api/schedules", json!({"name": "often", "patternName": "add", "intervalSeconds": 1}))
            .await;
    assert_eq!(created.status, 201, "{created:?}");
    let times = runs(&other, 2).await;
    world.stop().await;
    let times = runs(&other, times.len() + 2).await;
    let distinct: BTreeSet<_> = times.iter().collect();
    assert_eq!(distinct.len(), times.len(), "no time is run twice: {times:?}");
    let shown = other.get("/api/schedules/often").await.json();
    assert!(shown["lastRun"]["id"].is_string() && shown["lastRun"]["error"].is_null(), "{shown}");
}

#[tokio::test]
async fn a_time_that_finds_the_line_full_is_tried_again() {
    let patterns = vec![("add", "({ sum: 1 }) ~> 0.5"), ("long", "sleep(600000)\n1 ~> 0.5")];
    let world = World::start_with(Setup { patterns, admitted: Some((1, 0)), ..Setup::default() }).await;
    let long = post(&world, "/api/executions", json!({"patternName": "long"})).await.json();
    let plan = json!({"name": "often", "patternName": "add", "intervalSeconds": 3600});
    assert_eq!(post(&world, "/api/schedules", plan.clone()).await.status, 201);
    post(&world, "/api/schedules/often/trigger", json!({})).await.problem(429, "PARALLAX-RUN-005");
    world
        .http("PUT", "/api/schedules/often", &json!({"patternName": "add", "intervalSeconds": 1}).to_string())
        .await;
    let due = soon(async {
        loop {
            let last = world.get("/api/schedules/often").await.json()["lastRun"].clone();
            if last["error"].as_str().is_some_and(|error| error.contains("send the request later")) {
                break last["due"].clone();
            }
        }
    })
    .await;
    let path = format!("/api/executions/{}/cancel", long["id"].as_str().unwrap());
    assert_eq!(post(&world, &path, json!({})).await.status, 200);
    let at = soon(async {
        loop {
            let last = world.get("/api/schedules/often").await.json()["lastRun"].clone();
            // It is said which run is to begin before it begins.
            let run = world.get(&format!("/api/executions/{}", last["id"].as_str().unwrap())).await.json();
            if let (Some(at), true) = (run["context"]["scheduled_for"].as_str(), last["error"].is_null()) {
                break at.to_owned();
            }
        }
    })
    .await;
    assert!(at.as_str() >= due.as_str().unwrap(), "{at} {due}");
}

#[tokio::test]
async fn schedules_are_kept_paused_resumed_and_triggered() {
    let world = world(true).await;
    let plan = json!({
        "name": "nightly", "patternName": "add", "cron": "0 3 * * *", "timeZone": "Europe/Berlin",
        "missed": "skip", "overlap": "skip", "input": {"a": 1}, "options": {"timeout": 5000},
    });
    let created = post(&world, "/api/schedules", plan.clone()).await.json();
    assert!(created["nextTime"].as_str().unwrap().contains(":00:00Z"), "{created}");
    post(&world, "/api/schedules", plan).await.problem(409, "PARALLAX-STORE-004");
    let world = world.restart().await;
    assert_eq!(world.get("/api/schedules/nightly").await.json(), created);
    let paused = post(&world, "/api/schedules/nightly/pause", json!({})).await.json();
    assert_eq!((&paused["paused"], &paused["nextTime"]), (&json!(true), &Json::Null));

    let triggered = post(&world, "/api/schedules/nightly/trigger", json!({})).await;
    assert_eq!(triggered.status, 202, "{triggered:?}");
    let path = format!("/api/executions/{}", triggered.json()["id"].as_str().unwrap());
    let run = soon(async {
        loop {
            let run = world.get(&path).await.json();
            if run["status"] == "completed" {
                break run;
            }
        }
    })
    .await;
    assert_eq!((&run["result"], &run["context"]["schedule"]), (&json!({"sum": 2}), &json!("nightly")));

    let resumed = post(&world, "/api/schedules/nightly/resume", json!({})).await.json();
    assert_eq!(resumed["nextTime"], created["nextTime"]);
    let replaced = json!({"patternName": "add", "intervalSeconds": 3600}).to_string();
    let replaced = world.http("PUT", "/api/schedules/nightly", &replaced).await.json();
    assert_eq!((&replaced["intervalSeconds"], &replaced["cron"]), (&json!(3600), &Json::Null));
    assert_eq!(world.get("/api/schedules").await.json()["count"], 1);
    assert_eq!(world.http("DELETE", "/api/schedules/nightly", "").await.status, 204);
    world.get("/api/schedules/nightly").await.problem(404, "PARALLAX-SCHEDULE-001");
}

#[tokio::test]
async fn what_is_no_schedule_is_refused() {
    let world = world(false).await;
    for (wrong, named) in [
        (json!({"cron": "0 3 * *"}), "cron: "),
        (json!({"cron": "0 3 * * *", "timeZone": "Mars"}), "timeZone: "),
        (json!({"intervalSeconds": 0}), "intervalSeconds: "),
        (json!({}), "cron: give either"),
        (json!({"cron": "0 3 * * *", "intervalSeconds": 5}), "cron: give either"),
        (json!({"intervalSeconds": 5, "name": "a/b"}), "name: "),
        (json!({"intervalSeconds": 5, "missed": "some"}), "body: missed: unknown variant `some`"),
    ] {
        let mut body = json!({"name": "x", "patternName": "add"});
        body.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let refused = post(&world, "/api/schedules", body).await;
        assert!(refused.problem(400, "PARALLAX-API-001").starts_with(named), "{refused:?}");
    }
    let unknown = json!({"name": "x", "patternName": "no-such", "intervalSeconds": 5});
    post(&world, "/api/schedules", unknown).await.problem(404, "PARALLAX-PATTERN-001");
    assert_eq!(world.get("/api/schedules").await.json()["count"], 0);
}
