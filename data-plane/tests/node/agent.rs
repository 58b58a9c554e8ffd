//! Scripted agents, at the level of HTTP/2: what they answer is bytes.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parallax_proto::{confidence::ConfidenceResult, controlplane::v1::Transport};
use parallax_security::{Alpn, Kind, Plaintext};
use prost::Message;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::world::{World, record};

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
type Script =
    Arc<dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> + Send + Sync>;

/// A running agent; it dies with its handle.
pub(crate) struct Agent {
    pub(crate) addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    goodbye: watch::Sender<u32>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Agent {
    /// How often somebody has connected.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// Says GOAWAY on every connection it has, and accepts others.
    pub(crate) fn say_goodbye(&self) {
        self.goodbye.send_modify(|n| *n += 1);
    }

    /// Closes its port and every connection, whatever is on them.
    pub(crate) async fn die(self) {
        let accepting = self.accepting;
        accepting.abort();
        assert!(accepting.await.unwrap_err().is_cancelled());
    }
}

/// Starts an agent that speaks mTLS and registers it.
pub(crate) async fn agent<F, A>(world: &World, id: &str, script: F) -> Agent
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let agent = start(world, id, ([127, 0, 0, 1], 0).into(), Plaintext::Refuse, script).await;
    world.control_plane.put(record(id, agent.addr, Transport::Mtls));
    agent
}

/// Starts an agent that speaks plaintext and registers it.
pub(crate) async fn plain_agent<F, A>(world: &World, id: &str, script: F) -> Agent
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let agent = start(world, id, ([127, 0, 0, 1], 0).into(), Plaintext::Loopback, script).await;
    world.control_plane.put(record(id, agent.addr, Transport::Plaintext));
    agent
}

/// Starts an agent at an address, and registers nothing.
pub(crate) async fn start<F, A>(
    world: &World,
    id: &str,
    addr: SocketAddr,
    plaintext: Plaintext,
    script: F,
) -> Agent
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let script: Script = Arc::new(move |request| Box::pin(script(request)));
    let acceptor = world.tls("default", Kind::Agent, id).acceptor(Alpn::Grpc, plaintext);
    let listener = TcpListener::bind(addr).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let goodbye = watch::Sender::new(0);
    let (counter, goodbyes) = (connections.clone(), goodbye.clone());
    let accepting = tokio::spawn(async move {
        // Dropped with this task, it ends every connection.
        let mut tasks = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, SeqCst);
            let (acceptor, script, mut goodbye) = (acceptor.clone(), script.clone(), goodbyes.subscribe());
            tasks.spawn(async move {
                let Ok((stream, _)) = acceptor.accept(socket).await else { return };
                let service = service_fn(move |request| {
                    let answer = script(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let connection =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
                tokio::pin!(connection);
                tokio::select! {
                    _ = &mut connection => return,
                    _ = goodbye.changed() => connection.as_mut().graceful_shutdown(),
                }
                _ = connection.await;
            });
        }
    });
    Agent { addr, connections, goodbye, accepting }
}

/// A gRPC message as it is framed.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame.into()
}

/// A response of these frames.
pub(crate) fn respond(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Response<Body> {
    let frames: Vec<_> = frames.into_iter().map(Ok).collect();
    streamed(tokio_stream::iter(frames))
}

/// A response of frames that come when they come.
pub(crate) fn streamed<S>(frames: S) -> Response<Body>
where
    S: tokio_stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + 'static,
{
    let body = StreamBody::new(frames).boxed_unsync();
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

pub(crate) fn trailers(code: u32, message: &'static str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    trailers.insert("grpc-message", message.parse().unwrap());
    Frame::trailers(trailers)
}

/// An answer of one message of any bytes.
pub(crate) fn raw(message: &[u8]) -> Response<Body> {
    respond([Frame::data(framed(message)), trailers(0, "")])
}

/// An error.
pub(crate) fn error(code: u32, message: &'static str) -> Response<Body> {
    respond([trailers(code, message)])
}

/// An answer that is as sure of itself.
pub(crate) fn sure(confidence: f64) -> Response<Body> {
    let result = ConfidenceResult { value_json: "\"de\"".into(), confidence, ..Default::default() };
    raw(&result.encode_to_vec())
}
