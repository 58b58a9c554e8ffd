//! `parallax.patterns.PatternService`, reflection and health, over gRPC.

use parallax_proto::patterns::{
    ExecutePatternRequest, ExecutePatternResponse, GetPatternRequest, ListPatternsRequest, Pattern,
    UploadPatternRequest, execute_pattern_request::Options, execute_pattern_response::Status as Outcome,
    pattern::Requirements, pattern_service_client::PatternServiceClient,
};
use parallax_runtime::wire::{struct_from_any, struct_to_json};
use parallax_security::Kind;
use serde_json::json;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::world::{Setup, World, soon};

async fn world() -> World {
    let patterns = vec![
        ("add", "({ sum: input.a + input.b }) ~> 0.5"),
        ("number", "41 + 1"),
        ("broken-off", "nothing.at.all"),
        ("endless", "while (true) {}"),
    ];
    World::start_with(Setup { patterns, ..Setup::default() }).await
}

async fn client(world: &World) -> PatternServiceClient<Channel> {
    PatternServiceClient::new(world.dial(Kind::Operator, "someone").await)
}

fn named(name: &str, version: &str) -> GetPatternRequest {
    GetPatternRequest { name: name.to_owned(), version: version.to_owned() }
}

async fn execute(
    patterns: &mut PatternServiceClient<Channel>,
    name: &str,
    timeout_ms: i32,
) -> Result<ExecutePatternResponse, Status> {
    let request = ExecutePatternRequest {
        pattern_name: name.to_owned(),
        input: Some(struct_from_any(&json!({"a": 1, "b": 2}))),
        options: Some(Options { timeout_ms, ..Options::default() }),
        ..ExecutePatternRequest::default()
    };
    Ok(soon(patterns.execute_pattern(request)).await?.into_inner())
}

#[tokio::test]
async fn a_pattern_is_found_in_all_three_spellings() {
    let world = world().await;
    let mut patterns = client(&world).await;
    for name in ["ConsensusBuilder", "consensus-builder", "consensus_builder"] {
        let pattern = patterns.get_pattern(named(name, "")).await.unwrap().into_inner();
        assert_eq!(pattern.name, "ConsensusBuilder");
        assert!(pattern.prism_script.starts_with("/**") && !pattern.description.is_empty());
        assert_eq!(pattern.requirements.unwrap().min_agents, 1);
        let metadata = json!(struct_to_json(&pattern.metadata.unwrap()));
        assert_eq!(metadata["input"]["properties"]["task"]["type"], "string", "{metadata}");
    }
    assert_eq!(patterns.get_pattern(named("Add", "2.1.0")).await.unwrap().into_inner().version, "2.1.0");
    let status = patterns.get_pattern(named("add", "1.0.0")).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "pattern add has no version 1.0.0; it has 2.1.0")
    );
    let status = patterns.get_pattern(named("consensus_bilder", "")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("did you mean consensus-builder"), "{status}");
}

#[tokio::test]
async fn patterns_are_listed_by_tag_with_or_without_scripts() {
    let world = world().await;
    let mut patterns = client(&world).await;
    let mut list = async |tag: Option<&str>, include_scripts| {
        let request =
            ListPatternsRequest { tags: tag.map(str::to_owned).into_iter().collect(), include_scripts };
        patterns.list_patterns(request).await.unwrap().into_inner().patterns
    };
    let own = list(Some("own"), false).await;
    let names: Vec<_> = own.iter().map(|pattern| pattern.name.as_str()).collect();
    assert_eq!(names, ["add", "broken-off", "endless", "number"]);
    assert!(own.iter().all(|pattern| pattern.prism_script.is_empty()));
    assert!(list(Some("own"), true).await.iter().all(|pattern| pattern.prism_script.contains("@tags own")));
    assert!(list(Some("no such tag"), false).await.is_empty());
    let all = list(None, false).await;
    for name in ["ConfidenceCascade", "ConsensusBuilder", "Voting"] {
        assert!(all.iter().any(|pattern| pattern.name == name), "{name}");
    }
}

#[tokio::test]
async fn a_run_says_what_it_came_to() {
    let world = world().await;
    let mut patterns = client(&world).await;
    let added = execute(&mut patterns, "add", 0).await.unwrap();
    assert_eq!(
        (added.status(), added.pattern_name.as_str(), added.confidence),
        (Outcome::Success, "add", 0.5)
    );
    assert_eq!(json!(struct_to_json(&added.result.unwrap())), json!({"sum": 3}));
    let metrics = added.metrics.unwrap();
    assert!(metrics.start_time.is_some() && metrics.end_time.is_some());
    let number = execute(&mut patterns, "number", 0).await.unwrap();
    assert_eq!(json!(struct_to_json(&number.result.unwrap())), json!({"value": 42}));

    let failed = execute(&mut patterns, "broken-off", 0).await.unwrap();
    assert_eq!(failed.status(), Outcome::Failure);
    assert!(failed.error_message.contains("nothing") && failed.error_message.contains(":6:"), "{failed:?}");
    let late = execute(&mut patterns, "endless", 50).await.unwrap();
    assert_eq!(late.status(), Outcome::Timeout, "{late:?}");
    let nobody = execute(&mut patterns, "voting", 0).await.unwrap();
    assert_eq!(nobody.status(), Outcome::Failure);
    assert!(nobody.error_message.contains("none is registered"), "{nobody:?}");

    let status = execute(&mut patterns, "add", -1).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("options.timeout_ms: -1"), "{status}");
    assert_eq!(execute(&mut patterns, "no-such-pattern", 0).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let world = World::start().await;
    let mut reflection = ServerReflectionClient::new(world.dial(Kind::Operator, "someone").await);
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = vec![
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("parallax.registry.Registry".to_owned())),
    ];
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut next = async || soon(answers.message()).await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = next().await else { panic!("a list was asked for") };
    for service in ["parallax.registry.Registry", "parallax.patterns.PatternService"] {
        assert!(list.service.iter().any(|listed| listed.name == service), "{service}: {list:?}");
    }
    assert!(matches!(next().await, MessageResponse::FileDescriptorResponse(_)));
}

#[tokio::test]
async fn health_says_serving_while_it_is_ready_and_no_watch_holds_up_a_stop() {
    for nodes_wanted in [1, 0] {
        let world = World::start_with(Setup { nodes_wanted, ..Setup::default() }).await;
        let mut health = HealthClient::new(world.dial(Kind::Operator, "someone").await);
        let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        let mut status = async || soon(watch.message()).await.unwrap().unwrap().status();
        if nodes_wanted > 0 {
            assert_eq!(status().await, ServingStatus::NotServing);
        } else {
            // It may have been asked just before.
            while status().await != ServingStatus::Serving {}
            let block = world.plane.readiness.block("anything");
            assert_eq!(status().await, ServingStatus::NotServing);
            drop(block);
            assert_eq!(status().await, ServingStatus::Serving);
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn an_upload_says_nothing_that_its_script_does_not() {
    let world = world().await;
    let mut client = client(&world).await;
    let script = "/**\n * @name Said\n * @version 1.0.0\n * @minAgents 2\n *\n * Says it.\n */\n1 ~> 0.5\n";
    let said = Pattern { prism_script: script.to_owned(), ..Pattern::default() };
    let mut upload = async |description: &str, requirements: Option<Requirements>| {
        let pattern = Pattern { description: description.to_owned(), requirements, ..said.clone() };
        let request = UploadPatternRequest { pattern: Some(pattern), overwrite: true };
        client.upload_pattern(request).await.map(|_| ())
    };
    let refused = upload("Says more.", None).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (
            Code::InvalidArgument,
            "description: \"Says more.\" is not it, the script says \"Says it.\"; leave it out"
        )
    );
    let capable = Requirements { capabilities: vec!["talk".to_owned()], ..Requirements::default() };
    let crowded = Requirements { min_agents: 3, ..Requirements::default() };
    for (requirements, field) in [
        (capable, "requirements.capabilities: "),
        (crowded, "requirements.min_agents: 3 is not it, the script says 2"),
    ] {
        let refused = upload("", Some(requirements)).await.unwrap_err();
        assert!(
            refused.code() == Code::InvalidArgument && refused.message().starts_with(field),
            "{refused:?}"
        );
    }
    upload("Says it.", Some(Requirements { min_agents: 2, ..Requirements::default() })).await.unwrap();
    upload("", None).await.unwrap();
}
