//! What agents have answered answers again: for runs that opt for it, and for capabilities that are set so.

use parallax_cli::settings::Settings;
use parallax_data_plane::FallbackKind;
use parallax_proto::patterns::{
    ExecutePatternRequest, execute_pattern_request::Options, pattern_service_client::PatternServiceClient,
};
use parallax_runtime::wire::struct_from_json;
use parallax_security::Kind;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::{
    agents::says,
    program::run as command,
    world::{World, args, soon},
};

fn input(task: &str) -> Json {
    json!({"task": task, "agents": ["counting"]})
}

#[tokio::test]
async fn a_run_that_may_is_answered_by_what_was_answered_before() {
    let world = World::start().await;
    let (counting, calls) = says("counting", "x", 0.9);
    world.agent(counting).await;
    let cached = json!({"cacheResults": true});
    let first = world.run_with("confidence-cascade", input("t"), cached.clone()).await;
    assert_eq!((&first["status"], calls.count()), (&json!("completed"), 1));
    let second = world.run_with("confidence-cascade", input("t"), cached.clone()).await;
    assert_eq!((&second["result"], &second["confidence"]), (&first["result"], &first["confidence"]));
    assert_eq!(calls.count(), 1, "nobody was asked");
    let path = format!("/api/executions/{}/events", second["id"].as_str().unwrap());
    let events = world.api().await.get(&path).await.unwrap().to_string();
    assert!(events.contains("counting"), "the journal names who had answered: {events}");

    world.run_with("confidence-cascade", input("another"), cached).await;
    assert_eq!(calls.count(), 2);
    world.run("confidence-cascade", input("t")).await;
    assert_eq!(calls.count(), 3, "a run that does not opt asks");

    let mut patterns = PatternServiceClient::new(world.dial("default", Kind::Operator, "someone").await);
    let request = ExecutePatternRequest {
        pattern_name: "confidence-cascade".into(),
        input: Some(struct_from_json(input("t").as_object().unwrap())),
        options: Some(Options { cache_results: true, ..Options::default() }),
        ..ExecutePatternRequest::default()
    };
    soon(patterns.execute_pattern(request)).await.unwrap();
    let typed = input("t").to_string();
    let ran =
        command(world.data_dir(), &["run", "confidence-cascade", "-i", &typed, "--cache-results"]).await;
    assert_eq!((ran.code, calls.count()), (0, 3), "{}", ran.err);
    world.stop().await;
}

#[tokio::test]
async fn settings_cache_a_capability_and_give_its_fallbacks() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("parallax.toml");
    let load = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let typed = args(dir.path(), &["--config", file.to_str().unwrap(), "status"]);
        Settings::load(&typed.place, &[]).map(|loaded| loaded.settings.data_plane).map_err(|e| e.message)
    };
    let set = load(
        r#"
        [data_plane.cache]
        capabilities = ["tell"]

        [[data_plane.fallback.rules]]
        capability = "tell"
        order = ["other-agent", "default"]
        default = '{"value": "unknown"}'
        "#,
    )
    .unwrap();
    assert_eq!(set.fallback.rules[0].order, [FallbackKind::OtherAgent, FallbackKind::Default]);
    for (wrong, words) in [
        ("[data_plane.cache]\nttl = 5", "unknown setting \"data_plane.cache.ttl\""),
        ("[[data_plane.fallback.rules]]\ncapability = \"x\"\norder = [\"best\"]", "unknown variant `best`"),
        (
            "[[data_plane.fallback.rules]]\ncapability = \"x\"\norder = []\ndefault = \"7\"",
            "is not {\"value\": …, \"confidence\": 0 to 1} in JSON",
        ),
    ] {
        let message = load(wrong).unwrap_err();
        assert!(message.contains(words) && message.contains("parallax.toml"), "{message}");
    }

    let world = World::start_with(|settings| settings.data_plane = load_into(settings, &set)).await;
    let (counting, calls) = says("counting", "x", 0.9);
    let handle = world.agent(counting).await;
    for _ in 0..2 {
        world.run("confidence-cascade", input("t")).await;
    }
    assert_eq!(calls.count(), 1);
    drop(handle);
    world.stop().await;
}

/// The ports stay as the test has them.
fn load_into(
    settings: &Settings,
    set: &parallax_cli::settings::DataPlane,
) -> parallax_cli::settings::DataPlane {
    let own = settings.data_plane.clone();
    parallax_cli::settings::DataPlane { cache: set.cache.clone(), fallback: set.fallback.clone(), ..own }
}
