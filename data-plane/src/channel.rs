//! A connection to the control plane that generated clients can call: one HTTP/2 connection, no more.
//!
//! When it breaks, so do its calls; whoever opened it opens another.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri, uri::Scheme};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parallax_security::{Expect, Network, Tls};
use thiserror::Error;
use tonic::body::Body;

/// The control plane is ours and bears frequent pings.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Security(#[from] parallax_security::Error),
    #[error("HTTP/2 with {addr} failed: {source}")]
    Http { addr: String, source: hyper::Error },
}

/// Calls over one connection.
#[derive(Clone)]
pub(crate) struct Channel {
    send: http2::SendRequest<Body>,
    origin: http::uri::Authority,
}

/// Connects over mTLS to whom is expected at `addr`.
pub(crate) async fn connect(
    tls: &Tls,
    network: &dyn Network,
    addr: &str,
    expect: &Expect,
) -> Result<Channel, ConnectError> {
    let stream = tls.connect(network, addr, expect).await?;
    let http = |source| ConnectError::Http { addr: addr.to_owned(), source };
    let (send, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    // Ends when the channel is dropped, or the connection breaks; its calls hear of that.
    tokio::spawn(async move { _ = connection.await });
    let origin = addr.parse().unwrap_or_else(|_| http::uri::Authority::from_static("control-plane"));
    Ok(Channel { send, origin })
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.send.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.origin.clone());
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a URI");
        Box::pin(self.send.send_request(request))
    }
}
