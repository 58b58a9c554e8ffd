//! What passes through, and where it goes.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parallax_proto::{
    confidence::{AgentRequest, ConfidenceResult, confidence_agent_client::ConfidenceAgentClient},
    controlplane::v1::Transport,
};
use parallax_runtime::wire;
use parallax_security::{Kind, Plaintext, Tcp, connect_plain};
use prost::Message;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};
use tower::ServiceExt;

use crate::{
    agent::{self, agent, error, framed, plain_agent, raw, respond, streamed, sure, trailers},
    world::{Node, World, record, within},
};

pub(crate) const ANALYZE: &str = "/parallax.confidence.ConfidenceAgent/Analyze";

/// What came back: head, bytes, trailers.
pub(crate) struct Raw {
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Raw {
    /// The status, wherever it stands.
    pub(crate) fn status(&self) -> Status {
        let status =
            Status::from_header_map(&self.trailers).or_else(|| Status::from_header_map(&self.headers));
        status.expect("every answer has a status")
    }
}

/// A request of any bytes; pairs are metadata.
pub(crate) fn request(
    path: &str,
    body: Bytes,
    metadata: &[(&'static str, &str)],
) -> Request<tonic::body::Body> {
    let mut request = Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in metadata {
        request = request.header(*name, *value);
    }
    request.body(tonic::body::Body::new(Full::new(body))).unwrap()
}

pub(crate) async fn call(
    channel: &Channel,
    path: &str,
    body: Bytes,
    metadata: &[(&'static str, &str)],
) -> Raw {
    let response = channel.clone().oneshot(request(path, body, metadata)).await.unwrap();
    read(response).await
}

async fn read<B: Body<Data = Bytes, Error: std::fmt::Debug>>(response: Response<B>) -> Raw {
    let (head, body) = response.into_parts();
    let body = within("the body ends", body.collect()).await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    Raw { headers: head.headers, bytes: body.to_bytes(), trailers }
}

/// A connection by a client that knows HTTP/2 and no gRPC.
pub(crate) struct Bare {
    send: http2::SendRequest<tonic::body::Body>,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Bare {
    pub(crate) async fn connect(node: &Node) -> Self {
        let stream = connect_plain(&Tcp, &node.plane.grpc_addr().to_string()).await.unwrap();
        // Answers cross cancellations.
        let mut client = http2::Builder::new(TokioExecutor::new());
        client.max_local_error_reset_streams(None);
        let (send, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
        Self { send, connection: tokio::spawn(connection) }
    }

    pub(crate) async fn send(&mut self, request: Request<tonic::body::Body>) -> Raw {
        let (mut head, body) = request.into_parts();
        head.uri = format!("http://node{}", head.uri).parse().unwrap();
        let request = self.send.send_request(Request::from_parts(head, body));
        read(within("an answer", request).await.unwrap()).await
    }

    async fn close(self) {
        drop(self.send);
        within("the connection ends", self.connection).await.unwrap().unwrap();
    }
}

/// One call over a connection of its own.
pub(crate) async fn bare(node: &Node, request: Request<tonic::body::Body>) -> Raw {
    let mut bare = Bare::connect(node).await;
    let raw = bare.send(request).await;
    bare.close().await;
    raw
}

/// A call to an agent, of no matter what.
pub(crate) async fn ask(channel: &Channel, id: &str) -> Raw {
    call(channel, ANALYZE, framed(b""), &[(wire::AGENT, id)]).await
}

/// Fields that no version of the contract has, before and after those it has.
fn from_the_future(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xa2, 0x06, 3, 1, 2, 3];
    bytes.extend(message);
    bytes.extend([0xf8, 0x07, 0x2a]);
    bytes
}

#[tokio::test]
async fn a_unary_call_passes_byte_for_byte_and_is_recorded() {
    let world = World::new().await;
    let seen = Arc::new(Mutex::new(None));
    let result = ConfidenceResult { value_json: "1".into(), confidence: 0.8, ..Default::default() };
    let answer = from_the_future(&result.encode_to_vec());
    let (heard, answered) = (seen.clone(), answer.clone());
    let _agent = agent(&world, "a", move |request: Request<Incoming>| {
        let (heard, answered) = (heard.clone(), answered.clone());
        async move {
            let (head, body) = request.into_parts();
            *heard.lock().await = Some((head, body.collect().await.unwrap().to_bytes()));
            let mut last = trailers(0, "");
            last.trailers_mut().unwrap().insert("x-agents-own", "kept".parse().unwrap());
            respond([Frame::data(framed(&answered)), last])
        }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;

    let body = framed(&from_the_future(&AgentRequest::default().encode_to_vec()));
    let metadata = [
        (wire::AGENT, "a"),
        (wire::CLIENT_ID, "somebody-else"),
        ("x-parallax-tenant", "default"),
        ("x-of-the-caller", "kept"),
        ("grpc-timeout", "10S"),
    ];
    let raw = call(&operator, ANALYZE, body.clone(), &metadata).await;

    assert_eq!(raw.status().code(), Code::Ok, "{:?}", raw.status());
    assert_eq!(raw.bytes, framed(&answer));
    assert_eq!(raw.trailers["x-agents-own"], "kept");
    assert_eq!(raw.trailers[wire::SERVED_BY], "a");
    let (head, received) = seen.lock().await.take().unwrap();
    assert_eq!(received, body);
    assert_eq!(head.uri.path(), ANALYZE);
    assert_eq!(head.headers[wire::CLIENT_ID], "spiffe://parallax/default/operator/caller");
    assert_eq!(head.headers["x-of-the-caller"], "kept");
    for routing in [wire::AGENT, wire::CAPABILITY, "x-parallax-tenant"] {
        assert!(!head.headers.contains_key(routing), "{routing} is for the node");
    }
    let timeout = head.headers["grpc-timeout"].to_str().unwrap();
    let micros: u64 = timeout.strip_suffix('u').unwrap().parse().unwrap();
    assert!(micros < 10_000_000, "it has shrunk: {timeout}");

    let sample = world.samples("a", 1).await.remove(0);
    assert_eq!(sample.confidence.map(|c| c.get()), Some(0.8));
    let (_, metrics) = node.admin("/metrics").await;
    let counted = r#"parallax_proxy_requests_total{tenant="default",agent="a",outcome="ok"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn plaintext_on_both_sides_is_served_on_loopback() {
    let world = World::new().await;
    let _agent = plain_agent(&world, "p", |request: Request<Incoming>| async move {
        assert_eq!(request.headers()[wire::CLIENT_ID], "loopback");
        sure(0.5)
    })
    .await;
    let node = world.ready_node().await;
    let mut client = ConfidenceAgentClient::new(world.plain_caller(&node).await);
    let mut request = tonic::Request::new(AgentRequest::default());
    request.metadata_mut().insert(wire::CAPABILITY, "test".parse().unwrap());
    let response = client.analyze(request).await.unwrap();
    assert_eq!(response.metadata().get(wire::SERVED_BY).unwrap(), "p");
    assert_eq!(response.into_inner().confidence, 0.5);
}

#[tokio::test]
async fn a_stream_passes_message_by_message_and_its_last_word_is_recorded() {
    let world = World::new().await;
    let (say, frames) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let frames = Arc::new(Mutex::new(Some(frames)));
    let _agent = agent(&world, "s", move |_| {
        let frames = frames.clone();
        async move { streamed(ReceiverStream::new(frames.lock().await.take().unwrap())) }
    })
    .await;
    let node = world.ready_node().await;
    let mut client = ConfidenceAgentClient::new(world.operator(&node).await);
    let mut request = tonic::Request::new(AgentRequest::default());
    request.metadata_mut().insert(wire::AGENT, "s".parse().unwrap());
    let mut stream = client.stream_analyze(request).await.unwrap().into_inner();
    for confidence in [0.2, 0.6, 0.9] {
        let result = ConfidenceResult { confidence, ..Default::default() };
        say.send(Ok(Frame::data(framed(&result.encode_to_vec())))).await.unwrap();
        // The agent says the next only after this one has arrived.
        let heard = within("the message passes", stream.message()).await.unwrap().unwrap();
        assert_eq!(heard.confidence, confidence);
    }
    say.send(Ok(trailers(0, ""))).await.unwrap();
    assert_eq!(stream.message().await.unwrap(), None);
    let samples = world.samples("s", 1).await;
    assert_eq!(samples.len(), 1);
    assert_eq!(samples[0].confidence.map(|c| c.get()), Some(0.9));
}

#[tokio::test]
async fn eight_megabytes_pass_in_both_directions() {
    let world = World::new().await;
    let _agent = agent(&world, "echo", |request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        respond([Frame::data(body), trailers(0, "")])
    })
    .await;
    let node = world.ready_node().await;
    let body: Bytes = (0..8_000_000u32).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
    let raw = call(&world.operator(&node).await, ANALYZE, framed(&body), &[(wire::AGENT, "echo")]).await;
    assert_eq!(raw.status().code(), Code::Ok, "{:?}", raw.status());
    assert!(raw.bytes == framed(&body));
}

#[tokio::test]
async fn other_methods_pass_too_and_are_no_answers() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |request: Request<Incoming>| async move {
        match request.uri().path() {
            "/parallax.confidence.ConfidenceAgent/HealthCheck" => raw(&[8, 1]),
            _ => error(12, "not here"),
        }
    })
    .await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let of = |path: &'static str| call(&operator, path, framed(b""), &[(wire::AGENT, "a")]);
    let health = of("/parallax.confidence.ConfidenceAgent/HealthCheck").await;
    assert_eq!(health.bytes, framed(&[8, 1]));
    let unknown = of("/parallax.confidence.ConfidenceAgent/Dream").await;
    assert_eq!((unknown.status().code(), unknown.status().message()), (Code::Unimplemented, "not here"));
    assert_eq!(unknown.trailers[wire::SERVED_BY], "a");
    ask(&operator, "a").await;
    let samples = world.samples("a", 1).await;
    assert_eq!(samples.len(), 1, "only Analyze is sampled");
}

#[tokio::test]
async fn who_names_nobody_or_nobody_known_is_told_at_once() {
    let world = World::new().await;
    let _agent = agent(&world, "translator", |_| async { sure(1.0) }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let of = |metadata: Vec<(&'static str, &'static str)>| {
        let operator = operator.clone();
        async move { call(&operator, ANALYZE, framed(b""), &metadata).await.status() }
    };
    let status = of(vec![]).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("x-parallax-agent") && status.message().contains("x-parallax-capability")
    );
    let status = of(vec![(wire::AGENT, "translater")]).await;
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("did you mean translator?"), "{}", status.message());
    let status = of(vec![(wire::CAPABILITY, "zzz")]).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("known are only-translator, test"), "{}", status.message());
    let status = of(vec![(wire::AGENT, "translator"), ("grpc-timeout", "soon")]).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("grpc-timeout"));
}

#[tokio::test]
async fn the_tenant_comes_from_the_certificate_and_only_the_control_plane_may_name_another() {
    let world = World::new().await;
    let _ours = agent(&world, "shared", |_| async { raw(b"ours") }).await;
    let theirs = agent::start(&world, "shared", ([127, 0, 0, 1], 0).into(), Plaintext::Loopback, |_| async {
        raw(b"theirs")
    })
    .await;
    let mut other = record("shared", theirs.addr, Transport::Plaintext);
    other.tenant = "acme".into();
    world.control_plane.put(other);
    let node = world.ready_node().await;
    let named = [(wire::AGENT, "shared"), ("x-parallax-tenant", "acme")];
    for (kind, tenant, heard) in [
        (Kind::Operator, "default", "ours"),
        (Kind::Operator, "acme", "theirs"),
        (Kind::ControlPlane, "default", "theirs"),
    ] {
        let caller = world.caller(&node, tenant, kind).await;
        let raw = call(&caller, ANALYZE, framed(b""), &named).await;
        assert_eq!(raw.bytes, framed(heard.as_bytes()), "{kind} of {tenant}: {:?}", raw.status());
    }
    let anonymous = call(&world.plain_caller(&node).await, ANALYZE, framed(b""), &named).await;
    assert_eq!(anonymous.bytes, framed(b"ours"));
}

#[tokio::test]
async fn whoever_may_not_is_refused_before_anything_else() {
    let world = World::new().await;
    let node = world.ready_node().await;
    let dispatch = "/parallax.dataplane.v1.DataPlane/Dispatch";
    let denied = call(&world.operator(&node).await, dispatch, framed(b""), &[]).await.status();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("only these may: control-plane"), "{}", denied.message());

    let strict = world.node_with(|config| config.plaintext = Plaintext::Refuse).await;
    let refused = ask(&world.plain_caller(&strict).await, "a").await.status();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("this port speaks mTLS"), "{}", refused.message());
}

#[tokio::test]
async fn an_agent_that_is_somebody_else_is_not_spoken_to() {
    let world = World::new().await;
    let impostor =
        agent::start(&world, "impostor", ([127, 0, 0, 1], 0).into(), Plaintext::Refuse, |_| async {
            sure(1.0)
        })
        .await;
    world.control_plane.put(record("a", impostor.addr, Transport::Mtls));
    let node = world.ready_node().await;
    let status = ask(&world.operator(&node).await, "a").await.status();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("is spiffe://parallax/default/agent/impostor"), "{}", status.message());
}

#[tokio::test]
async fn capabilities_are_shared_out_among_those_who_have_them() {
    let world = World::new().await;
    let _one = agent(&world, "one", |_| async { sure(0.1) }).await;
    let _two = agent(&world, "two", |_| async { sure(0.2) }).await;
    let node = world.ready_node().await;
    let operator = world.operator(&node).await;
    let mut served = std::collections::BTreeMap::new();
    for _ in 0..60 {
        let raw = call(&operator, ANALYZE, framed(b""), &[(wire::CAPABILITY, "test")]).await;
        let by = raw.trailers[wire::SERVED_BY].to_str().unwrap().to_owned();
        *served.entry(by).or_insert(0) += 1;
    }
    // Both idle: a fair coin, that falls on one side 60 times in 2⁵⁹.
    assert_eq!(served.keys().collect::<Vec<_>>(), ["one", "two"]);
}

#[tokio::test]
async fn a_deadline_longer_than_ours_is_honoured_and_none_means_ours() {
    let world = World::new().await;
    let _agent = agent(&world, "a", |request: Request<Incoming>| async move {
        let timeout = request.headers()["grpc-timeout"].to_str().unwrap().to_owned();
        let mut response: Response<_> = sure(1.0);
        response.headers_mut().insert("x-timeout", timeout.parse().unwrap());
        response
    })
    .await;
    let node = world.node_with(|config| config.default_deadline = Duration::from_secs(7)).await;
    node.plane.readiness().ready().await;
    let operator = world.operator(&node).await;
    let told = |metadata: Vec<(&'static str, &'static str)>| {
        let operator = operator.clone();
        async move {
            let raw = call(&operator, ANALYZE, framed(b""), &metadata).await;
            raw.headers["x-timeout"].to_str().unwrap().strip_suffix('u').unwrap().parse::<u64>().unwrap()
        }
    };
    let ours = told(vec![(wire::AGENT, "a")]).await;
    assert!((1_000_000..=7_000_000).contains(&ours), "{ours}");
    let longer = told(vec![(wire::AGENT, "a"), ("grpc-timeout", "60S")]).await;
    assert!((50_000_000..=60_000_000).contains(&longer), "{longer}");
}
