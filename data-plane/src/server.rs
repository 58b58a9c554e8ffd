//! The workers: one thread each, with a runtime, a listener and upstream connections of its own.

use std::{
    cell::Cell,
    collections::HashSet,
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    thread,
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use http_body::Body;
use parallax_runtime::{env::Env, lifecycle::Lifecycle};
use parallax_security::{Acceptor, Alpn, Error as SecurityError, Peer, Stream, Tls, Transport};
use parallax_telemetry::metrics::DataPlaneMetrics;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tracing::{debug, error, warn};

use crate::{
    admission::{Admission, Holding},
    cache::Cache,
    caller::Caller,
    config::Current,
    directory::Directory,
    error::Error,
    fanout,
    frames::{Incoming, Outgoing},
    gather::Gather,
    keepalive::Keepalive,
    pool::{HEADERS, Pools, WINDOWS},
    proxy::Origin,
    services::{Dispatcher, Services},
    tracker::Recorder,
};

/// A caller that has not finished its handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Callers are pinged this often, and dropped when they do not answer.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// A caller may cancel this many calls in one breath, and this many may cross an answer of ours while its
/// connection lives. Beyond that it is taken for an attack (CVE-2023-44487, CVE-2025-8671).
const RESETS: (usize, usize) = (1024, 64 * 1024);
/// Out of descriptors, most likely: others must close theirs first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long agents may take to see our goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listeners on one address, which is filled in if its port was 0: the kernel spreads connections over them.
pub(crate) fn listen(
    what: &'static str,
    addr: SocketAddr,
    count: usize,
) -> Result<(SocketAddr, Vec<StdListener>), Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => Error::Taken { what, addr },
        _ => Error::Listen { what, addr, source },
    };
    // A port that is shared can be taken without an error, so it is taken alone first.
    let alone = socket(addr, false).map_err(failed)?;
    let addr = alone.local_addr().map_err(failed)?;
    if count == 1 {
        return Ok((addr, vec![alone]));
    }
    drop(alone);
    let shared: io::Result<Vec<_>> = (0..count).map(|_| socket(addr, true)).collect();
    Ok((addr, shared.map_err(failed)?))
}

fn socket(addr: SocketAddr, shared: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What a worker is started with.
pub(crate) struct Worker {
    pub(crate) config: Current,
    pub(crate) tls: Tls,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: DataPlaneMetrics,
    pub(crate) cache: Arc<Cache>,
    pub(crate) holding: Holding,
    /// Services that all workers share.
    pub(crate) routes: Routes,
    pub(crate) life: Lifecycle,
}

impl Worker {
    /// Starts the worker's thread; the lifecycle waits for its end.
    pub(crate) fn start(self, number: usize, listener: StdListener) -> Result<(), Error> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Worker)?;
        let (done, ended) = oneshot::channel::<()>();
        let life = self.life.clone();
        thread::Builder::new()
            .name(format!("data-plane-{number}"))
            .spawn(move || {
                if let Err(e) = self.run(&runtime, listener) {
                    error!("a worker cannot listen: {e}");
                }
                drop(done);
            })
            .map_err(Error::Worker)?;
        // It fails, as it should, when the thread has ended.
        life.spawn("data-plane worker", async move { _ = ended.await });
        Ok(())
    }

    fn run(self, runtime: &Runtime, listener: StdListener) -> io::Result<()> {
        let local = LocalSet::new();
        local.block_on(runtime, async move {
            let listener = TcpListener::from_std(listener)?;
            self.serve(listener).await;
            Ok(())
        })
    }

    async fn serve(self, listener: TcpListener) {
        let Self { config, tls, env, directory, recorder, metrics, cache, holding, routes, life } = self;
        let (calls, connections) = (TaskTracker::new(), TaskTracker::new());
        let acceptor = tls.acceptor(Alpn::Grpc, config.now().plaintext);
        let pools = Pools::new(config.clone(), tls, env.clone(), connections.clone());
        let admission = Admission::new(config.clone(), &metrics);
        let mut changes = directory.changes();
        let caller = Rc::new(Caller {
            config: config.clone(),
            env,
            directory,
            pools,
            recorder,
            metrics: metrics.clone(),
            admission,
            holding,
            cache,
        });
        let (jobs, mut driven) = mpsc::channel(1);
        let (directory, node_id) = (caller.directory.clone(), config.now().node_id.clone());
        let dispatcher = Dispatcher { jobs, directory, node_id };
        let routes = routes.add_service(dispatcher.service(config.now().max_message));
        let services = Services { caller: caller.clone(), routes: routes.prepare() };
        let edge = Rc::new(Edge {
            acceptor,
            services,
            config: config.clone(),
            calls: calls.clone(),
            life: life.clone(),
            open: Cell::new(0),
        });
        let stopping = life.stopping();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => break,
                accepted = listener.accept() => match accepted {
                    Ok((_, addr)) if edge.is_full() => {
                        metrics.connections_refused.inc();
                        debug!(%addr, "closed at once: {} connections are open on this worker", edge.open.get());
                    }
                    Ok((socket, _)) => drop(calls.spawn_local(edge.clone().connection(socket))),
                    Err(e) => {
                        warn!("cannot accept a connection: {e}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(job) = driven.recv() => drop(calls.spawn_local(fanout::serve(caller.clone(), job, life.stopping()))),
                Ok(()) = changes.changed() => {
                    if let Some(snapshot) = caller.directory.snapshot().as_ref() {
                        caller.pools.retain(&snapshot.routes());
                    }
                }
            }
        }
        drop(listener);
        drop(driven);
        calls.close();
        let drain = config.now().drain;
        if timeout(drain, calls.wait()).await.is_err() {
            warn!(left = calls.len(), "calls were still in flight after {} s", drain.as_secs());
        }
        caller.pools.retain(&HashSet::new());
        connections.close();
        // What has not ended by then is dropped with the worker.
        _ = timeout(GOODBYE, connections.wait()).await;
        debug!("a worker has stopped");
    }
}

/// What a worker does with callers' connections.
struct Edge {
    acceptor: Acceptor,
    services: Services,
    config: Current,
    calls: TaskTracker,
    life: Lifecycle,
    /// Connections, those in their handshake included.
    open: Cell<usize>,
}

/// Counts a connection as long as it lives.
struct Open<'a>(&'a Edge);

impl<'a> Open<'a> {
    fn new(edge: &'a Edge) -> Self {
        edge.open.set(edge.open.get() + 1);
        Self(edge)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

impl Edge {
    fn is_full(&self) -> bool {
        let config = self.config.now();
        self.open.get() >= config.per_worker(config.max_connections)
    }

    async fn connection(self: Rc<Self>, socket: TcpStream) {
        let _open = Open::new(&self);
        let accepted = tokio::select! {
            () = self.life.stopping() => return,
            accepted = timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(socket)) => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(SecurityError::Closed { .. })) | Err(_) => return,
            Ok(Err(e)) => return warn!("a connection was refused: {e}"),
        };
        if peer.transport == Transport::PlaintextRefused {
            warn!(addr = %peer.addr, "a plaintext connection: its calls are refused");
        }
        let origin = Origin::of(&peer);
        let gather = Gather::new(stream);
        if let Err(e) = gather.gathering(self.clone().streams(gather.clone(), Rc::new((peer, origin)))).await
        {
            debug!("a caller's connection ended: {e}");
        }
    }

    /// Serves a connection's streams, each in a task of its own, until the last has ended.
    async fn streams(self: Rc<Self>, io: Gather<Stream>, peer: Rc<(Peer, Origin)>) -> Result<(), h2::Error> {
        let handshake = h2::server::Builder::new()
            .max_concurrent_streams(self.config.now().max_streams)
            .initial_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_header_list_size(HEADERS)
            .max_pending_accept_reset_streams(RESETS.0)
            .max_local_error_reset_streams(Some(RESETS.1))
            .handshake(io.clone());
        let Ok(handshake) = timeout(HANDSHAKE_TIMEOUT, handshake).await else { return Ok(()) };
        let mut connection = handshake?;
        let pings = connection.ping_pong().expect("nobody has taken it yet");
        let mut keepalive = Keepalive::new(pings, KEEPALIVE);
        let mut stopping = pin!(self.life.stopping());
        let mut said_goodbye = false;
        loop {
            let accepted = poll_fn(|cx| {
                if !said_goodbye && stopping.as_mut().poll(cx).is_ready() {
                    said_goodbye = true;
                    connection.graceful_shutdown();
                }
                match keepalive.poll(cx, io.heard(), true) {
                    // Gone: what is under way for it is cancelled.
                    Poll::Ready(()) => Poll::Ready(None),
                    Poll::Pending => connection.poll_accept(cx),
                }
            });
            let Some(accepted) = accepted.await else { return Ok(()) };
            let (request, respond) = accepted?;
            // The runtime moves a task about as it begins and ends: a pointer, then, and not all that a call needs.
            self.calls.spawn_local(Box::pin(stream(self.services.clone(), peer.clone(), request, respond)));
        }
    }
}

/// One request and its answer. A caller that resets the stream cancels whatever is under way.
async fn stream(
    services: Services,
    peer: Rc<(Peer, Origin)>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let answered = {
        // Most of what a call needs, it needs until its answer begins; streams may be open for long after that.
        let mut answer = Box::pin(services.answer(peer, request.map(Incoming::new)));
        poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        })
        .await
    };
    let Some(response) = answered else { return };
    let (head, body) = response.into_parts();
    let whole = body.is_end_stream();
    // It fails when the caller has gone.
    if let Ok(send) = respond.send_response(Response::from_parts(head, ()), whole)
        && !whole
    {
        let mut outgoing = Outgoing::new(body, send);
        poll_fn(|cx| outgoing.poll(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every call copies its future to the heap; what is rare is boxed, and what an open stream does not need.
    #[test]
    fn a_call_is_small_and_an_open_stream_smaller() {
        fn of_four<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        fn of_three<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        let (open, answering) = (of_four(stream), of_three(Services::answer));
        assert!(answering < 6 * 1024 && open < 1024, "{answering}, {open}");
    }
}
