//! What is uploaded, its versions, and the directory as it changes.

use parallax_proto::patterns::{
    GetPatternRequest, Pattern, UploadPatternRequest, pattern_service_client::PatternServiceClient,
};
use parallax_security::Kind;
use serde_json::{Value as Json, json};
use tonic::Code;

use crate::world::{Response, Setup, World, soon};

fn script(name: &str, version: &str, body: &str) -> String {
    format!("/**\n * @name {name}\n * @version {version}\n */\n{body}\n")
}

async fn upload(world: &World, script: &str, overwrite: bool) -> Response {
    let body = json!({"filename": "it.prism", "content": script, "overwrite": overwrite});
    world.http("POST", "/api/patterns/upload", &body.to_string()).await
}

async fn result(world: &World, name: &str) -> Json {
    let run = world.http("POST", &format!("/api/patterns/{name}/execute"), "{}").await;
    run.json()["execution"]["result"].clone()
}

#[tokio::test]
async fn versions_are_kept_and_rolled_back_to() {
    let world = World::start_with(Setup { on_disk: true, ..Setup::default() }).await;
    let one = script("TellMe", "1.0.0", "\"one\" ~> 0.5");
    let created = upload(&world, &one, false).await;
    assert_eq!((created.status, &created.json()["id"]), (201, &json!("tell-me@1.0.0")), "{created:?}");
    assert_eq!(result(&world, "tell-me").await, "one");
    assert_eq!(upload(&world, &one, false).await.status, 201, "the same again is no change");

    let other = script("TellMe", "1.0.0", "\"other\" ~> 0.5");
    let taken = upload(&world, &other, false).await.problem(409, "PARALLAX-PATTERN-005");
    assert!(taken.contains("overwrite"), "{taken}");
    assert_eq!(upload(&world, &other, true).await.status, 201);
    assert_eq!(result(&world, "tell_me").await, "other");
    let two = json!({"script": script("tell-me", "2.0.0", "\"two\" ~> 0.5")}).to_string();
    assert_eq!(world.http("PUT", "/api/patterns/TELLME", &two).await.status, 201);
    assert!(
        world.http("PUT", "/api/patterns/x", &two).await.problem(400, "PARALLAX-API-001").contains("tell-me")
    );
    assert_eq!(result(&world, "TellMe").await, "two");

    let back = json!({"version": "1.0.0"}).to_string();
    assert_eq!(world.http("PUT", "/api/patterns/tell-me/current", &back).await.status, 200);
    let world = world.restart().await;
    assert_eq!(result(&world, "TellMe").await, "other", "rolled back, and so it stays");
    let versions = world.get("/api/patterns/tell-me/versions").await.json();
    let listed: Vec<_> =
        versions["versions"].as_array().unwrap().iter().map(|v| (&v["version"], &v["current"])).collect();
    assert_eq!(listed, [(&json!("1.0.0"), &json!(true)), (&json!("2.0.0"), &json!(false))]);
    let named = world.get("/api/patterns/tell-me?version=2.0.0").await.json();
    assert!(named["script"].as_str().unwrap().contains("\"two\""), "{named}");
    let none = world.http("PUT", "/api/patterns/tell-me/current", "{\"version\": \"3\"}").await;
    none.problem(404, "PARALLAX-PATTERN-006");

    let current = world.http("DELETE", "/api/patterns/tell-me?version=1.0.0", "").await;
    current.problem(409, "PARALLAX-PATTERN-007");
    assert_eq!(world.http("DELETE", "/api/patterns/tell-me?version=2.0.0", "").await.status, 204);
    assert_eq!(world.http("DELETE", "/api/patterns/tell-me", "").await.status, 204);
    world.get("/api/patterns/tell-me").await.problem(404, "PARALLAX-PATTERN-001");
    world.http("DELETE", "/api/patterns/voting", "").await.problem(404, "PARALLAX-PATTERN-006");
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_place() {
    let world = World::start().await;
    for (body, line, named) in [
        ("let x = 1\nx +* 2", 6, "it.prism:6:"),
        ("successfulResult.length ~> 0.5", 5, "did you mean `successfulResults`?"),
    ] {
        let refused = upload(&world, &script("x", "1.0.0", body), false).await;
        let problem = refused.problem(400, "PARALLAX-PATTERN-004");
        assert!(problem.contains(named), "{problem}");
        let first = &refused.json()["diagnostics"][0];
        assert_eq!((&first["line"], &first["severity"]), (&json!(line), &json!("error")), "{first}");
        assert!(first["code"].is_string() && first["message"].is_string(), "{first}");
    }
    let refused = upload(&world, "/**\n * @name a b\n * @version 1.0.0\n */\n1", false).await;
    refused.problem(400, "PARALLAX-PATTERN-004");
    assert_eq!(refused.json()["diagnostics"][0]["line"], 2, "{refused:?}");
    let version = upload(&world, &script("x", "1/2", "1 ~> 0.5"), false).await;
    assert!(version.problem(400, "PARALLAX-PATTERN-004").contains("@version"));
    let large =
        upload(&world, &script("x", "1.0.0", &format!("\"{}\" ~> 0.5", "x".repeat(600 << 10))), false).await;
    assert!(large.problem(400, "PARALLAX-API-001").starts_with("script: "));
}

#[tokio::test]
async fn all_planes_on_the_same_stores_see_an_upload() {
    let world = World::start().await;
    let other = world.another().await;
    let mut patterns = PatternServiceClient::new(world.dial(Kind::Operator, "someone").await);
    let request = |name: &str, script: String| UploadPatternRequest {
        pattern: Some(Pattern { name: name.to_owned(), prism_script: script, ..Pattern::default() }),
        overwrite: false,
    };
    let response = patterns.upload_pattern(request("tell_me", script("TellMe", "1.0.0", "1 ~> 0.5"))).await;
    let response = response.unwrap().into_inner();
    assert!(response.success && response.pattern_id == "tell-me@1.0.0", "{response:?}");
    let status = patterns.upload_pattern(request("", script("x", "1.0.0", "1 +* 2"))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("^"), "the line and the place in it: {}", status.message());
    let status = patterns.upload_pattern(request("y", script("x", "1.0.0", "1 ~> 0.5"))).await.unwrap_err();
    assert!(status.message().starts_with("name: \"y\""), "{status}");
    let mut agent = PatternServiceClient::new(world.dial(Kind::Agent, "a").await);
    let status = agent.upload_pattern(request("", script("x", "1.0.0", "1 ~> 0.5"))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);

    let mut there = PatternServiceClient::new(other.dial(Kind::Operator, "someone").await);
    soon(async {
        let named = || GetPatternRequest { name: "TellMe".to_owned(), version: "1.0.0".to_owned() };
        while there.get_pattern(named()).await.is_err() {}
    })
    .await;
    other.stop().await;
}

#[tokio::test]
async fn the_directory_is_followed() {
    let world = World::start_with(Setup { patterns: vec![("number", "41 + 1")], ..Setup::default() }).await;
    let write = |name: &str, body: &str| {
        std::fs::write(world.pattern_file(name), script(name, "3.0.0", body)).unwrap();
    };
    write("number", "41 +* 1");
    write("fresh", "7 ~> 0.5");
    let health = soon(async {
        loop {
            let health = world.get("/health").await.json();
            if health["warnings"] != json!([]) {
                break health;
            }
        }
    })
    .await;
    assert_eq!(health["status"], "healthy", "{health}");
    assert!(health["warnings"][0].as_str().unwrap().contains("number.prism"), "{health}");
    assert_eq!((result(&world, "number").await, result(&world, "fresh").await), (json!(42), json!(7)));
    let listed = world.get("/api/patterns").await.json();
    let problem = &listed["problems"][0];
    assert_eq!(problem["diagnostics"][0]["line"], 5, "{problem}");
    std::fs::remove_file(world.pattern_file("number")).unwrap();
    soon(async { while world.get("/api/patterns/number").await.status != 404 {} }).await;
    assert_eq!(world.get("/health").await.json()["warnings"], json!([]));
}

#[tokio::test]
async fn a_script_runs_without_being_uploaded_and_can_be_retried() {
    let world = World::start().await;
    let body = json!({"script": script("voting", "0.0.1", "input.a ~> 0.5"), "input": {"a": 5}}).to_string();
    let run = world.http("POST", "/api/executions/adhoc", &body).await.json()["execution"].clone();
    assert_eq!((&run["result"], &run["patternVersion"]), (&json!(5), &json!("0.0.1")), "{run}");
    let again =
        world.http("POST", &format!("/api/executions/{}/retry", run["id"].as_str().unwrap()), "").await;
    let id = again.json()["id"].as_str().unwrap().to_owned();
    let again = world.get(&format!("/api/executions/{id}")).await.json();
    assert_eq!(again["patternVersion"], "0.0.1", "its own script, not the catalogue's: {again}");
    let broken = json!({"script": "1"}).to_string();
    world.http("POST", "/api/executions/adhoc", &broken).await.problem(400, "PARALLAX-PATTERN-004");
}
