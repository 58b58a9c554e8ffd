//! One HTTP/2 connection to a plane, and how it is made.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parallax_security::{Expect, Kind, connect_plain};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tower::Service;

use crate::{DEFAULT_REGISTRY, Error, tls::Credentials};

/// How long a connection may take to stand, and a short call to be answered.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// A plane that is gone without a word is noticed after this and as long again.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Where a plane is, and who must be there.
pub(crate) struct Dialer {
    pub(crate) addr: String,
    origin: Uri,
    expect: Kind,
    pub(crate) credentials: Credentials,
}

impl Dialer {
    /// For the plane at `addr`, `host:port`.
    pub(crate) fn new(addr: String, expect: Kind, credentials: Credentials) -> Result<Self, Error> {
        let origin = Uri::builder().scheme("http").authority(addr.as_str()).path_and_query("/").build();
        match origin.ok().filter(|origin| origin.port_u16().is_some()) {
            Some(origin) => Ok(Self { addr, origin, expect, credentials }),
            None => {
                let problem = format!("{addr:?} is not host:port, such as {DEFAULT_REGISTRY}");
                Err(Error::Setting { name: "the plane's address", problem })
            }
        }
    }

    pub(crate) async fn dial(&self) -> Result<Link, Error> {
        self.in_time(async {
            let network = self.credentials.network();
            let stream = match &self.credentials.tls {
                Some(tls) => tls.connect(network, &self.addr, &Expect::kind(self.expect)).await?,
                None => connect_plain(network, &self.addr).await?,
            };
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true)
                // Answers may cross any number of cancellations; h2 takes the thousandth for an attack.
                .max_local_error_reset_streams(None)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|e| self.unavailable(&e))?;
            let closed = CancellationToken::new();
            let guard = closed.clone().drop_guard();
            // Ends by itself, with the last clone of the sender or with the connection.
            tokio::spawn(async move {
                let _guard = guard;
                if let Err(e) = connection.await {
                    tracing::debug!("a connection broke: {e}");
                }
            });
            Ok(Link { sender, closed, origin: self.origin.clone() })
        })
        .await
    }

    /// Bounds `work` with the plane by [`PATIENCE`].
    pub(crate) async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let late = |_| self.unavailable(&format!("nothing came within {PATIENCE:?}"));
        tokio::time::timeout(PATIENCE, work).await.map_err(late)?
    }

    fn unavailable(&self, problem: &dyn std::fmt::Display) -> Error {
        Error::Unavailable { addr: self.addr.clone(), problem: problem.to_string() }
    }
}

/// A connection as tonic's clients take it. Clones share it.
#[derive(Clone)]
pub(crate) struct Link {
    sender: http2::SendRequest<Body>,
    closed: CancellationToken,
    pub(crate) origin: Uri,
}

impl Link {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Resolves when the connection is gone.
    pub(crate) fn closed(&self) -> WaitForCancellationFutureOwned {
        self.closed.clone().cancelled_owned()
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
