//! What a node serves: who may call what is decided here, for every request, and where it goes.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::get};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use parallax_proto::dataplane::v1::{
    AgentStatus, Breaker, CallOutcome, DispatchRequest, FanOutEvent, FanOutRequest, GetAgentStatusRequest,
    breaker,
    data_plane_server::{DataPlane, DataPlaneServer},
};
use parallax_runtime::{error::status, wire};
use parallax_security::{
    Peer,
    access::{self, DeniedCode},
};
use parallax_telemetry::{
    Registry,
    admin::{self, Readiness},
    metrics,
};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, service::Routes};
use tower::ServiceExt;

use crate::{
    admission::Held,
    ask::{self, GRPC_TIMEOUT, parse_grpc_timeout},
    breaker::Phase,
    caller::Caller,
    directory::Directory,
    error::Failure,
    fanout::{Job, MAX_AGENTS, Many, Stream},
    frames::Incoming,
    proxy::{self, Origin, Proxied},
    upload::discard,
    vitals::View,
    whole::Frames,
};

const FAN_OUT: &str = "/parallax.dataplane.v1.DataPlane/FanOut";
/// What those are told whose requests find no room.
const RETRY_IN: Duration = Duration::from_secs(1);
/// Outcomes that wait for a driver to read them.
const OUTCOMES: usize = 64;

/// What one worker serves with.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) caller: Rc<Caller>,
    /// Everything but the proxy, which has no room for generated code.
    pub(crate) routes: Routes,
}

impl Services {
    /// Answers one request. It never fails: every failure is an answer.
    pub(crate) async fn answer(
        self,
        peer: Rc<(Peer, Origin)>,
        mut request: Request<Incoming>,
    ) -> Response<Reply> {
        let (peer, origin) = &*peer;
        if let Err(denied) = access::check(peer, request.uri().path()) {
            let status = match denied.code {
                DeniedCode::Unauthenticated => Status::unauthenticated(denied.message),
                DeniedCode::PermissionDenied => Status::permission_denied(denied.message),
            };
            discard(request.into_body());
            return status.into_http();
        }
        if request.uri().path().starts_with(proxy::PREFIX) {
            return proxy::proxy(self.caller, origin, request).await;
        }
        request.extensions_mut().insert(Arc::new(origin.clone()));
        // What is rarely asked for takes no room in every call, here as below.
        Box::pin(self.served(request)).await.map(Reply::Served)
    }

    async fn served(self, mut request: Request<Incoming>) -> Response<tonic::body::Body> {
        if request.uri().path() != FAN_OUT {
            let served = self.routes.oneshot(request.map(tonic::body::Body::new)).await;
            return served.unwrap_or_else(|never| match never {});
        }
        // Anybody may send it, and it is read as a whole before it is looked at.
        let held = Arc::new(self.caller.holding.begin());
        request.extensions_mut().insert(held.clone());
        let request = request.map(|incoming| tonic::body::Body::new(Counted { incoming, held }));
        let limit = self.caller.config.now().default_deadline;
        match timeout(limit, self.routes.oneshot(request)).await {
            Ok(served) => served.unwrap_or_else(|never| match never {}),
            Err(_) => {
                let late = format!("the request did not come within {} ms", limit.as_millis());
                Status::deadline_exceeded(late).into_http()
            }
        }
    }
}

/// A request that counts as held from when it comes.
struct Counted {
    incoming: Incoming,
    held: Arc<Held>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx)).transpose();
        let frame = frame.map_err(|e| Status::cancelled(format!("the request broke off: {e}")))?;
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref)
            && !self.held.grow(data.len())
        {
            let why = "it holds as many bytes of requests as it may (max_held_bytes)".to_owned();
            return Poll::Ready(Some(Err(status(&Failure::Shed { why, retry_in: RETRY_IN }))));
        }
        Poll::Ready(frame.map(Ok))
    }
}

/// The body of any answer of a node.
#[derive(Default)]
pub(crate) enum Reply {
    #[default]
    Empty,
    Proxied(Box<Proxied>),
    Whole(Frames),
    Served(tonic::body::Body),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Proxied(body) => Pin::new(body.as_mut()).poll_frame(cx).map_err(|never| match never {}),
            Self::Whole(frames) => Poll::Ready(frames.next().map(Ok)),
            Self::Served(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Proxied(_) => false,
            Self::Whole(frames) => frames.is_end(),
            Self::Served(body) => body.is_end_stream(),
        }
    }
}

/// `parallax.dataplane.v1.DataPlane`, which hands each stream to the worker.
pub(crate) struct Dispatcher {
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) node_id: String,
}

impl Dispatcher {
    /// The service; `max_message` bounds one call, in bytes.
    pub(crate) fn service(self, max_message: usize) -> DataPlaneServer<Self> {
        DataPlaneServer::new(self).max_decoding_message_size(max_message)
    }
}

#[tonic::async_trait]
impl DataPlane for Dispatcher {
    type DispatchStream = ReceiverStream<Result<CallOutcome, Status>>;

    async fn dispatch(
        &self,
        request: tonic::Request<Streaming<DispatchRequest>>,
    ) -> Result<tonic::Response<Self::DispatchStream>, Status> {
        let origin = origin(&request)?;
        let (outcomes, stream) = mpsc::channel(OUTCOMES);
        self.hand_over(Job::Dispatch(Stream { origin, calls: request.into_inner(), outcomes })).await?;
        Ok(tonic::Response::new(ReceiverStream::new(stream)))
    }

    type FanOutStream = ReceiverStream<Result<FanOutEvent, Status>>;

    async fn fan_out(
        &self,
        request: tonic::Request<FanOutRequest>,
    ) -> Result<tonic::Response<Self::FanOutStream>, Status> {
        let (origin, headers) = (origin(&request)?, request.metadata().as_ref());
        let priority = ask::priority(headers.get(wire::PRIORITY)).map_err(|failure| status(&failure))?;
        let timeout = headers.get(GRPC_TIMEOUT).map(parse_grpc_timeout).transpose();
        let timeout = timeout.map_err(|failure| status(&failure))?;
        let traceparent = headers.get("traceparent").and_then(|trace| trace.to_str().ok());
        let traceparent = traceparent.unwrap_or_default().to_owned();
        let (events, stream) = mpsc::channel(MAX_AGENTS + 1);
        let held = request.extensions().get::<Arc<Held>>().cloned();
        let request = request.into_inner();
        let many = Many { origin, priority, request, held, timeout, traceparent, events };
        self.hand_over(Job::FanOut(many)).await?;
        Ok(tonic::Response::new(ReceiverStream::new(stream)))
    }

    async fn get_agent_status(
        &self,
        request: tonic::Request<GetAgentStatusRequest>,
    ) -> Result<tonic::Response<AgentStatus>, Status> {
        let GetAgentStatusRequest { tenant, agent_id } = request.into_inner();
        let snapshot = self.directory.snapshot();
        let entry = snapshot.as_ref().and_then(|all| all.tenant(&tenant)?.agents.get(&agent_id));
        let entry = entry.ok_or_else(|| {
            Status::not_found(format!("node {} does not know of agent \"{agent_id}\"", self.node_id))
        })?;
        Ok(tonic::Response::new(status_of(entry.vitals.view(Instant::now()), self.node_id.clone())))
    }
}

impl Dispatcher {
    async fn hand_over(&self, job: Job) -> Result<(), Status> {
        self.jobs.send(job).await.map_err(|_| Status::unavailable("this node is stopping; retry"))
    }
}

/// Who sends a request.
fn origin<T>(request: &tonic::Request<T>) -> Result<Origin, Status> {
    let origin = request.extensions().get::<Arc<Origin>>();
    origin.map(|origin| Origin::clone(origin)).ok_or_else(|| Status::internal("no origin"))
}

fn status_of(view: View, node_id: String) -> AgentStatus {
    let duration = |ms: Option<u64>| Duration::from_millis(ms?).try_into().ok();
    let latency = |ms: Option<f64>| Duration::try_from_secs_f64(ms? / 1e3).ok()?.try_into().ok();
    let phase = |phase| match phase {
        Phase::Closed => breaker::Phase::Closed,
        Phase::Open => breaker::Phase::Open,
        Phase::HalfOpen => breaker::Phase::HalfOpen,
        Phase::Throttled => breaker::Phase::Throttled,
    };
    let own = Breaker {
        pattern: String::new(),
        phase: phase(view.breaker).into(),
        consecutive_failures: view.consecutive_failures.into(),
        retry_in: duration(view.retry_in_ms),
    };
    let of_patterns = view.patterns.into_iter().map(|of| Breaker {
        pattern: of.pattern,
        phase: phase(of.breaker).into(),
        consecutive_failures: of.consecutive_failures.into(),
        retry_in: duration(of.retry_in_ms),
    });
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    AgentStatus {
        node_id,
        breakers: std::iter::once(own).chain(of_patterns).collect(),
        in_flight: count(view.in_flight),
        limit: count(view.limit),
        connections: count(view.connections),
        calls: view.calls,
        failures: view.failures,
        latency: latency(view.ewma_latency_ms),
        unloaded_latency: latency(view.unloaded_latency_ms),
        slow_for: duration(view.slow_for_ms),
        last_confidence: view.last_confidence,
    }
}

/// One agent, as `GET /agents` shows it.
#[derive(Serialize)]
struct AgentView {
    tenant: String,
    id: String,
    endpoint: String,
    #[serde(flatten)]
    vitals: View,
}

/// The admin port: `/livez`, `/readyz`, `/metrics`, `/agents`.
pub(crate) fn admin(readiness: Readiness, registry: Arc<Registry>, directory: Arc<Directory>) -> Router {
    let shown = directory.clone();
    let encode = move || {
        let now = Instant::now();
        if let Some(snapshot) = shown.snapshot().as_ref() {
            snapshot.entries().for_each(|entry| entry.vitals.show(now));
        }
        metrics::encode(&registry)
    };
    Router::new().route("/agents", get(agents)).with_state(directory).merge(admin::router(readiness, encode))
}

async fn agents(State(directory): State<Arc<Directory>>) -> Json<Vec<AgentView>> {
    let now = Instant::now();
    let snapshot = directory.snapshot();
    let mut agents: Vec<_> = snapshot
        .iter()
        .flat_map(|snapshot| snapshot.entries())
        .map(|entry| AgentView {
            tenant: entry.agent.key.tenant.clone(),
            id: entry.agent.key.id.clone(),
            endpoint: entry.agent.endpoint.clone(),
            vitals: entry.vitals.view(now),
        })
        .collect();
    agents.sort_by(|a, b| (&a.tenant, &a.id).cmp(&(&b.tenant, &b.id)));
    Json(agents)
}
