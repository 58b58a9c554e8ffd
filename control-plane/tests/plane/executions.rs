//! `parallax.executions.ExecutionService` and `StreamExecutePattern`, over gRPC.

use parallax_proto::{
    executions::{
        Execution, ExecutionStatus, GetExecutionRequest, ListExecutionsRequest, StreamExecutionRequest,
        execution_service_client::ExecutionServiceClient,
    },
    patterns::{
        ExecutePatternRequest, execute_pattern_response::Status as Outcome,
        pattern_service_client::PatternServiceClient,
    },
};
use parallax_runtime::wire::{struct_from_any, struct_to_json};
use parallax_security::Kind;
use serde_json::json;
use tonic::{Code, Status, transport::Channel};

use crate::world::{Setup, World, soon};

type Client = ExecutionServiceClient<Channel>;

/// A plane on which `add` has completed and then `broken-off` failed.
async fn world() -> (World, Client, [String; 2]) {
    let patterns = vec![("add", "({ sum: input.a + input.b }) ~> 0.5"), ("broken-off", "nothing.at.all")];
    let world = World::start_with(Setup { patterns, ..Setup::default() }).await;
    let channel = world.dial(Kind::Operator, "someone").await;
    let mut patterns = PatternServiceClient::new(channel.clone());
    let mut run = async |name| {
        let response = soon(patterns.execute_pattern(request(name))).await.unwrap();
        response.into_inner().execution_id
    };
    let ids = [run("add").await, run("broken-off").await];
    (world, ExecutionServiceClient::new(channel), ids)
}

fn request(pattern: &str) -> ExecutePatternRequest {
    ExecutePatternRequest {
        pattern_name: pattern.to_owned(),
        input: Some(struct_from_any(&json!({"a": 1, "b": 2}))),
        ..ExecutePatternRequest::default()
    }
}

#[tokio::test]
async fn a_run_is_found_whole() {
    let (_world, mut client, [added, failed]) = world().await;
    let mut get = async |id: &str| {
        let response = client.get_execution(GetExecutionRequest { execution_id: id.to_owned() }).await?;
        Ok::<_, Status>(response.into_inner().execution.unwrap())
    };
    let found = get(&added).await.unwrap();
    assert_eq!(
        (found.id.as_str(), found.pattern_name.as_str(), found.status(), found.confidence),
        (added.as_str(), "add", ExecutionStatus::Completed, 0.5)
    );
    assert_eq!(json!(struct_to_json(&found.input.unwrap())), json!({"a": 1, "b": 2}));
    assert_eq!(json!(struct_to_json(&found.result.unwrap())), json!({"sum": 3}));
    assert!(found.start_time.is_some() && found.end_time.is_some() && found.error.is_empty());
    let metrics = json!(struct_to_json(&found.metrics.unwrap()));
    assert_eq!(metrics, json!({"calls": 0, "callsFailed": 0, "journalEntries": 2}));
    let found = get(&failed).await.unwrap();
    assert_eq!((found.status(), found.result), (ExecutionStatus::Failed, None));
    assert!(found.error.contains("nothing"), "{}", found.error);
    assert_eq!(get("7").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(get("0196a5b0-0000-7000-8000-000000000000").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let (_world, mut client, [added, failed]) = world().await;
    let mut list = async |limit, offset, status: &str| {
        let request = ListExecutionsRequest { limit, offset, status: status.to_owned() };
        let page = client.list_executions(request).await?.into_inner();
        let ids: Vec<String> = page.executions.into_iter().map(|Execution { id, .. }| id).collect();
        Ok::<_, Status>((ids, page.total))
    };
    assert_eq!(list(0, 0, "").await.unwrap(), (vec![failed.clone(), added.clone()], 2), "newest first");
    assert_eq!(list(1, 0, "").await.unwrap(), (vec![failed.clone()], 2));
    assert_eq!(list(1, 1, "").await.unwrap(), (vec![added.clone()], 2));
    assert_eq!(list(5, 0, "completed").await.unwrap(), (vec![added], 1));
    assert_eq!(list(5, 0, "running").await.unwrap(), (vec![], 0));
    for (status, named) in [
        (list(-1, 0, "").await, "limit: -1 is negative; 0 means 50"),
        (list(0, -1, "").await, "offset: -1 is negative"),
        (list(0, 0, "done").await, "status: status \"done\" is none of pending"),
    ] {
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(named), "{status}");
    }
}

#[tokio::test]
async fn the_stream_of_a_run_that_has_ended_is_its_snapshot_and_its_end() {
    let (_world, mut client, ids) = world().await;
    for (id, kinds) in
        ids.iter().zip([&["started", "agents_completed", "completed"][..], &["started", "failed"]])
    {
        let request = StreamExecutionRequest { execution_id: id.clone() };
        let mut stream = client.stream_execution(request).await.unwrap().into_inner();
        let mut seen = vec![];
        while let Some(event) = soon(stream.message()).await.unwrap() {
            assert!(event.event_time.is_some());
            assert_eq!(&event.execution.as_ref().unwrap().id, id);
            seen.push(event);
        }
        assert_eq!(seen.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>(), kinds);
        let data = json!(struct_to_json(seen[0].event_data.as_ref().unwrap()));
        assert_eq!(data, json!({"source": "snapshot"}));
        let last = seen.last().unwrap().execution.as_ref().unwrap();
        assert_eq!(last.result.is_some(), kinds.len() == 3, "{last:?}");
    }
}

#[tokio::test]
async fn a_streamed_run_begins_with_its_id_and_ends_with_its_result() {
    let (world, _, _) = world().await;
    let mut patterns = PatternServiceClient::new(world.dial(Kind::Operator, "someone").await);
    let mut stream = patterns.stream_execute_pattern(request("add")).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!((first.status(), first.pattern_name.as_str()), (Outcome::Unknown, "add"));
    let last = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!((last.status(), last.execution_id), (Outcome::Success, first.execution_id));
    assert_eq!(json!(struct_to_json(&last.result.unwrap())), json!({"sum": 3}));
    assert!(soon(stream.message()).await.unwrap().is_none());
    let status = patterns.stream_execute_pattern(request("no-such-pattern")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "before the stream begins");
}

#[tokio::test]
async fn a_run_that_goes_on_when_the_process_stops_is_no_answer() {
    let patterns = vec![("long", "sleep(3600000)\n1 ~> 0.5")];
    let world = World::start_with(Setup { patterns, ..Setup::default() }).await;
    let channel = world.dial(Kind::Operator, "someone").await;
    let mut client = PatternServiceClient::new(channel.clone());
    let mut stream = client.stream_execute_pattern(request("long")).await.unwrap().into_inner();
    let id = soon(stream.message()).await.unwrap().unwrap().execution_id;
    let executed = client.execute_pattern(request("long"));
    let posted = world.http("POST", "/api/patterns/long/execute", "{}");
    let stopped = async {
        let running = async || world.get("/api/executions?status=running").await.json()["total"].clone();
        soon(async { while running().await != json!(3) {} }).await;
        world.stop().await;
    };
    let (executed, posted, ()) = tokio::join!(executed, posted, stopped);
    let told =
        |status: &Status, id: &str| status.code() == Code::Unavailable && status.message().contains(id);
    let executed = executed.unwrap_err();
    assert!(told(&executed, "goes on"), "{executed:?}");
    let streamed = soon(stream.message()).await.unwrap_err();
    assert!(told(&streamed, &id), "{streamed:?}");
    let body = posted.json();
    assert_eq!((posted.status, &body["status"]), (202, &json!("accepted")), "{posted:?}");
    assert!(body["message"].as_str().unwrap().contains(body["id"].as_str().unwrap()), "{body}");
}
