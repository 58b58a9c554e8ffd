//! The client against scripted planes.
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

#[path = "fixture/cluster.rs"]
#[allow(dead_code)]
mod cluster;

use std::{net::SocketAddr, time::Duration};

use cluster::Cluster;
use parallax_proto::{
    confidence::{
        AgentRequest, Capabilities, ConfidenceResult, Health,
        confidence_agent_server::{ConfidenceAgent, ConfidenceAgentServer},
    },
    patterns::{
        ExecutePatternRequest, ExecutePatternResponse, GetPatternRequest, ListPatternsRequest,
        ListPatternsResponse, Pattern, UploadPatternRequest, UploadPatternResponse,
        pattern_service_server::{PatternService, PatternServiceServer},
    },
};
use parallax_runtime::wire;
use parallax_sdk::{Client, Error, Json, Task, To, json};
use parallax_security::Kind;
use tonic::{Request, Response, Status, service::Routes};

struct Planes;

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

#[tonic::async_trait]
impl ConfidenceAgent for Planes {
    /// Says whom it was for and what it got.
    async fn analyze(&self, request: Request<AgentRequest>) -> Result<Response<ConfidenceResult>, Status> {
        let header = |key: &str| request.metadata().get(key).map(|value| value.to_str().unwrap().to_owned());
        let value = json!({
            "agent": header(wire::AGENT),
            "capability": header(wire::CAPABILITY),
            "data": wire::struct_to_json(request.get_ref().data.as_ref().unwrap()),
            "bounded": request.get_ref().timeout_ms > 0,
        });
        Ok(Response::new(ConfidenceResult {
            value_json: value.to_string(),
            confidence: 7.3,
            agent_id: "a1".into(),
            ..ConfidenceResult::default()
        }))
    }

    async fn get_capabilities(&self, _: Request<()>) -> Result<Response<Capabilities>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn health_check(&self, _: Request<()>) -> Result<Response<Health>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    type StreamAnalyzeStream = tokio_stream::Empty<Result<ConfidenceResult, Status>>;

    async fn stream_analyze(
        &self,
        _: Request<AgentRequest>,
    ) -> Result<Response<Self::StreamAnalyzeStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

#[tonic::async_trait]
impl PatternService for Planes {
    async fn execute_pattern(
        &self,
        request: Request<ExecutePatternRequest>,
    ) -> Result<Response<ExecutePatternResponse>, Status> {
        let request = request.into_inner();
        if request.pattern_name != "voting" {
            return Err(Status::not_found("there is no pattern \"votign\"; did you mean voting?"));
        }
        Ok(Response::new(ExecutePatternResponse {
            pattern_name: request.pattern_name,
            result: request.input,
            ..ExecutePatternResponse::default()
        }))
    }

    type StreamExecutePatternStream = tokio_stream::Empty<Result<ExecutePatternResponse, Status>>;

    async fn stream_execute_pattern(
        &self,
        _: Request<ExecutePatternRequest>,
    ) -> Result<Response<Self::StreamExecutePatternStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn list_patterns(
        &self,
        _: Request<ListPatternsRequest>,
    ) -> Result<Response<ListPatternsResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn get_pattern(&self, _: Request<GetPatternRequest>) -> Result<Response<Pattern>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn upload_pattern(
        &self,
        _: Request<UploadPatternRequest>,
    ) -> Result<Response<UploadPatternResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

#[tokio::test]
async fn agents_are_asked_through_the_data_plane() {
    let cluster = Cluster::new();
    let routes = || Routes::new(ConfidenceAgentServer::new(Planes));
    let (addr, life) = cluster.serve(Kind::DataPlane, anywhere(), routes()).await;
    let client = Client::new("127.0.0.1:1", &addr, &cluster.local()).unwrap();
    let task = Task::new("do", json!({ "n": 1 })).within(Duration::from_secs(5));
    let reply = client.ask(&To::Agent("a1".into()), task).await.unwrap();
    assert_eq!((reply.agent.as_str(), reply.answer.confidence.unwrap().get()), ("a1", 1.0));
    let expected = json!({ "agent": "a1", "capability": null, "data": { "n": 1 }, "bounded": true });
    assert_eq!(reply.answer.value, expected);

    // The node comes back, and the client finds it.
    assert!(life.drain(cluster::HANG).await);
    let _node = cluster.serve(Kind::DataPlane, addr.parse().unwrap(), routes()).await;
    let reply = client.ask(&To::Capability("c".into()), Task::new("do", Json::Null)).await.unwrap();
    let expected = json!({ "agent": null, "capability": "c", "data": {}, "bounded": false });
    assert_eq!(reply.answer.value, expected);

    let error = client.ask(&To::Agent("ü".into()), Task::new("do", Json::Null)).await.unwrap_err();
    assert!(error.to_string().contains("\"ü\""), "{error}");
}

#[tokio::test]
async fn agents_are_listed_and_patterns_run() {
    let cluster = Cluster::new();
    let control = cluster.control_plane().await;
    let client = Client::new(&control.addr, "127.0.0.1:1", &cluster.local()).unwrap();
    let agents = client.agents(&["greet"]).await.unwrap();
    assert_eq!(agents.iter().map(|agent| agent.id.as_str()).collect::<Vec<_>>(), ["a1", "a2"]);
    assert_eq!(agents[1].capabilities, ["greet"]);

    let routes = Routes::new(PatternServiceServer::new(Planes));
    let (addr, _life) = cluster.serve(Kind::ControlPlane, anywhere(), routes).await;
    let client = Client::new(&addr, "127.0.0.1:1", &cluster.local()).unwrap();
    let done = client.execute("voting", &json!({ "x": [1] }), None).await.unwrap();
    assert_eq!(wire::struct_to_json(&done.result.unwrap())["x"], json!([1]));
    let error = client.execute("votign", &Json::Null, None).await.unwrap_err();
    assert!(matches!(&error, Error::Call { status, .. } if status.code() == tonic::Code::NotFound));
    assert!(error.to_string().contains("did you mean voting?"), "{error}");
}

#[tokio::test]
async fn a_peer_that_is_no_such_plane_is_not_spoken_to() {
    let cluster = Cluster::new();
    let control = cluster.control_plane().await;
    let client = Client::new("127.0.0.1:1", &control.addr, &cluster.local()).unwrap();
    let error = client.ask(&To::Agent("a1".into()), Task::new("do", Json::Null)).await.unwrap_err();
    assert!(
        error.to_string().contains("control-plane/one, expected spiffe://parallax/*/data-plane/*"),
        "{error}"
    );
    let error = client.agents(&[]).await.unwrap_err();
    assert!(error.to_string().contains("cannot connect to 127.0.0.1:1"), "{error}");
    let error = Client::new("nonsense", &control.addr, &cluster.local()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the plane's address \"nonsense\" is not host:port, such as localhost:50051"
    );
}
