//! Agents: well-behaved ones built with the SDK, and others that answer whatever a script says.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use parallax_proto::{
    confidence::{
        AgentRequest, Capabilities, ConfidenceResult, Health,
        confidence_agent_server::{ConfidenceAgent, ConfidenceAgentServer},
    },
    registry::{AgentRegistration, RegisterRequest, registry_client::RegistryClient},
};
use parallax_sdk::{Agent, Answer, Task, agent};
use parallax_security::{Alpn, Kind, Plaintext};
use serde_json::Value as Json;
use tokio::{net::TcpListener, sync::Notify};
use tonic::{Request, Response, Status, codegen::BoxStream, service::Routes};

use crate::world::World;

/// How often an agent was asked.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<AtomicUsize>);

impl Calls {
    pub(crate) fn add(&self) -> usize {
        self.0.fetch_add(1, SeqCst) + 1
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(SeqCst)
    }
}

/// An agent that always says the same, as sure of it, and the count of its calls.
pub(crate) fn says(id: &str, value: impl Into<Json>, confidence: f64) -> (impl Agent, Calls) {
    let (value, calls) = (value.into(), Calls::default());
    let counted = calls.clone();
    let agent = agent(id).capability("tell").answer(move |_: Task| {
        counted.add();
        let answer = Answer::new(value.clone(), confidence);
        async move { answer }
    });
    (agent, calls)
}

/// What it takes to register.
pub(crate) fn registration(id: &str, endpoint: impl ToString) -> RegisterRequest {
    let agent = AgentRegistration {
        id: id.to_owned(),
        endpoint: endpoint.to_string(),
        capabilities: vec!["tell".to_owned()],
        ..AgentRegistration::default()
    };
    RegisterRequest { agent: Some(agent), auto_renew: true }
}

/// An answer with these two fields.
pub(crate) fn result(value_json: &str, confidence: f64) -> ConfidenceResult {
    ConfidenceResult { value_json: value_json.to_owned(), confidence, ..ConfidenceResult::default() }
}

/// `ConfidenceAgent` without the SDK: the script decides what goes onto the wire.
pub(crate) struct Scripted<F>(pub(crate) F);

#[tonic::async_trait]
impl<F, R> ConfidenceAgent for Scripted<F>
where
    F: Fn(AgentRequest) -> R + Send + Sync + 'static,
    R: Future<Output = Result<ConfidenceResult, Status>> + Send + 'static,
{
    async fn analyze(&self, request: Request<AgentRequest>) -> Result<Response<ConfidenceResult>, Status> {
        (self.0)(request.into_inner()).await.map(Response::new)
    }

    async fn get_capabilities(&self, _: Request<()>) -> Result<Response<Capabilities>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn health_check(&self, _: Request<()>) -> Result<Response<Health>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    type StreamAnalyzeStream = BoxStream<ConfidenceResult>;

    async fn stream_analyze(
        &self,
        _: Request<AgentRequest>,
    ) -> Result<Response<Self::StreamAnalyzeStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

/// A scripted agent over mTLS, registered. Its sockets close when `death` is notified.
pub(crate) async fn scripted<F, R>(world: &World, id: &str, death: Arc<Notify>, script: F) -> SocketAddr
where
    F: Fn(AgentRequest) -> R + Send + Sync + 'static,
    R: Future<Output = Result<ConfidenceResult, Status>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let acceptor = world.tls("default", Kind::Agent, id).acceptor(Alpn::Grpc, Plaintext::Refuse);
    let router = Routes::new(ConfidenceAgentServer::new(Scripted(script))).prepare().into_axum_router();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, router, death) = (acceptor.clone(), router.clone(), death.clone());
            tokio::spawn(async move {
                let Ok((stream, _)) = acceptor.accept(socket).await else { return };
                let service = TowerToHyperService::new(router);
                let connection = http2::Builder::new(TokioExecutor::new());
                tokio::select! {
                    _ = connection.serve_connection(TokioIo::new(stream), service) => {}
                    () = death.notified() => {}
                }
            });
        }
    });
    let mut registry = RegistryClient::new(world.dial("default", Kind::Agent, id).await);
    registry.register(registration(id, addr)).await.unwrap();
    addr
}
