//! The one way in which a port is served: our own accept loop, so that certificates change under load,
//! plaintext and TLS share a port, and a drain loses no call.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::Router;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use parallax_security::{Acceptor, Error as SecurityError, Transport};
use tokio::net::{TcpListener, TcpStream};
use tower::{ServiceExt, service_fn};
use tracing::{debug, warn};

use crate::lifecycle::Lifecycle;

/// A peer that has not finished its handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 peers are pinged this often, and dropped when they do not answer.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Binds `addr`.
///
/// # Errors
/// One line that names the address and the cure.
pub async fn bind(what: &str, addr: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(addr).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!(
                "{what}: port {} of {} is taken; stop what listens there or give another",
                addr.port(),
                addr.ip()
            )
        }
        _ => format!("{what}: cannot listen on {addr}: {e}"),
    })
}

/// Serves `router` on `listener` until the lifecycle stops, then lets the calls in flight finish. Each request
/// carries its [`parallax_security::Peer`] as an extension.
pub fn serve(
    life: &Lifecycle,
    name: &'static str,
    listener: TcpListener,
    acceptor: Acceptor,
    router: Router,
) {
    let connections = life.clone();
    life.spawn(name, async move {
        let stopping = connections.stopping();
        tokio::pin!(stopping);
        loop {
            let accepted = tokio::select! {
                () = &mut stopping => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, _)) => {
                    let connection =
                        connection(socket, acceptor.clone(), router.clone(), connections.clone());
                    connections.spawn(name, connection);
                }
                Err(e) => {
                    // Out of descriptors, most likely: others must close theirs first.
                    warn!("{name}: cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
}

async fn connection(socket: TcpStream, acceptor: Acceptor, router: Router, life: Lifecycle) {
    let accepted = tokio::select! {
        () = life.stopping() => return,
        accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)) => accepted,
    };
    let (stream, peer) = match accepted {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(SecurityError::Closed { .. })) | Err(_) => return,
        Ok(Err(e)) => return warn!("a connection was refused: {e}"),
    };
    if peer.transport == Transport::PlaintextRefused {
        warn!(addr = %peer.addr, "a plaintext connection: its calls are refused");
    }
    let service = service_fn(move |request: http::Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(peer.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEPALIVE).adaptive_window(true);
    let served =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = life.stopping() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(e) = outcome {
        debug!("a connection ended: {e}");
    }
}
