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
                // Any number of answers may cross cancellations: h2 would take the 1,025th for an attack.
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

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use parallax_runtime::env::System;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::mpsc,
        time::timeout,
    };

    use super::*;
    use crate::TlsOptions;

    /// More than h2 forgives (1,024) and remembers (50).
    const CALLS: usize = 1_100;
    /// Types of frames.
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags][..], &stream.to_be_bytes(), payload].concat()
    }

    /// Reads until so many frames of a type have come; their streams.
    async fn read(plane: &mut TcpStream, kind: u8, mut count: usize) -> Vec<u32> {
        let mut streams = Vec::new();
        while count > 0 {
            let mut head = [0; 9];
            plane.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            plane.read_exact(&mut payload).await.unwrap();
            if head[3] == kind {
                streams.push(u32::from_be_bytes(head[5..].try_into().unwrap()));
                count -= 1;
            }
        }
        streams
    }

    /// A plane that answers all calls when they have been cancelled, and then one more. It says when it has been asked,
    /// and when it has answered.
    async fn plane(listener: TcpListener, says: mpsc::Sender<()>) {
        let mut plane = listener.accept().await.unwrap().0;
        plane.read_exact(&mut [0; 24]).await.unwrap();
        let most_streams = [0, 3, 0, 0, 0x7f, 0xff];
        plane.write_all(&frame(SETTINGS, 0, 0, &most_streams)).await.unwrap();
        plane.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
        let calls = read(&mut plane, HEADERS, CALLS).await;
        says.send(()).await.unwrap();
        read(&mut plane, RST_STREAM, CALLS).await;
        // The whole head: `:status: 200`.
        let answer = |stream| frame(HEADERS, 4, stream, &[0x88]);
        let answers: Vec<u8> = calls.into_iter().flat_map(answer).collect();
        plane.write_all(&answers).await.unwrap();
        says.send(()).await.unwrap();
        let last = read(&mut plane, HEADERS, 1).await;
        plane.write_all(&answer(last[0])).await.unwrap();
        // Until the other end is gone.
        _ = plane.read_to_end(&mut Vec::new()).await;
    }

    #[tokio::test]
    async fn answers_that_cross_cancellations_cost_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (says, mut hears) = mpsc::channel(1);
        tokio::spawn(plane(listener, says));
        let credentials =
            Credentials::open(&TlsOptions::Plaintext, Kind::Operator, "someone", System::shared()).unwrap();
        let mut link = Dialer::new(addr, Kind::DataPlane, credentials).unwrap().dial().await.unwrap();
        let request = || Request::get("http://plane/").body(Body::empty()).unwrap();
        let calls = join_all((0..CALLS).map(|_| link.call(request())));
        tokio::select! {
            _ = calls => panic!("nobody has answered"),
            asked = timeout(PATIENCE, hears.recv()) => asked.unwrap().unwrap(),
        }
        timeout(PATIENCE, hears.recv()).await.unwrap().unwrap();
        let answered = timeout(PATIENCE, link.call(request())).await.unwrap();
        assert_eq!(answered.unwrap().status(), 200);
    }
}
