//! One HTTP/2 connection to an agent: how it is made, the requests on it, and those that nobody waits for any more.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, Response};
use http_body::{Body, Frame};
use parallax_security::connect_plain;
use tokio::time::Instant;
use tracing::debug;

use super::{Dialer, HEADERS, Pool, WINDOWS, root};
use crate::{
    directory::Entry,
    frames::{Incoming, Outgoing},
    gather::Gather,
    keepalive::Keepalive,
    upload::{Sending, Upload},
    whole::Frames,
};

/// Cancelled calls of which a connection remembers that an answer may still come.
const CROSSING: usize = 1024;
/// An agent that has not read so much that this many calls wait to be cancelled reads nothing any more.
const STUCK: usize = 16 * 1024;

pub(super) struct Connection {
    send: RefCell<SendRequest<Bytes>>,
    pub(super) in_flight: Rc<Cell<usize>>,
    cancelled: Rc<Cancelled>,
    /// When the first call was sent on it after which the agent has begun no answer to any.
    pub(super) silent_since: Cell<Option<Instant>>,
}

impl Dialer {
    pub(super) async fn connect(&self, entry: &Arc<Entry>, pool: &Weak<Pool>) -> Result<Connection, String> {
        let endpoint = &entry.agent.endpoint;
        let stream = match &entry.expect {
            Some(expect) => self.tls.connect(&*self.env, endpoint, expect).await,
            None => connect_plain(&*self.env, endpoint).await,
        };
        let gather = Gather::new(stream.map_err(|e| e.to_string())?);
        let (send, mut driver) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_header_list_size(HEADERS)
            // Until the agent has said how many it takes.
            .initial_max_send_streams(0)
            // Answers that cross a cancellation of ours are no offence of the agent's.
            .max_concurrent_reset_streams(CROSSING)
            .max_local_error_reset_streams(None)
            .handshake(gather.clone())
            .await
            .map_err(|e| e.to_string())?;
        // A connection is one when the agent has sent its settings: what it would refuse is never sent.
        let greeted = poll_fn(|cx| match Pin::new(&mut driver).poll(cx) {
            _ if driver.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Ready(Ok(())) => {
                Poll::Ready(Err("it closes connections as soon as they are made".to_owned()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(root(&e))),
            Poll::Pending => Poll::Pending,
        });
        gather.gathering(greeted).await?;
        let pings = driver.ping_pong().expect("nobody has taken it yet");
        let mut keepalive = Keepalive::new(pings, self.config.now().keepalive);
        let (in_flight, cancelled) = (Rc::new(Cell::new(0)), Rc::<Cancelled>::default());
        let connection = Connection {
            send: send.into(),
            in_flight: in_flight.clone(),
            cancelled: cancelled.clone(),
            silent_since: Cell::new(None),
        };
        let (vitals, pool, heard) = (entry.vitals.clone(), pool.clone(), gather.clone());
        self.tasks.spawn_local(gather.gathering(async move {
            vitals.connection_opened();
            let ended = poll_fn(|cx| {
                if keepalive.poll(cx, heard.heard(), in_flight.get() > 0).is_ready() {
                    return Poll::Ready(Err(h2::Error::from(h2::Reason::NO_ERROR)));
                }
                cancelled.driver.set(Some(cx.waker().clone()));
                // Whom it tells of cancellations is sent by the next round.
                loop {
                    if let Poll::Ready(ended) = Pin::new(&mut driver).poll(cx) {
                        return Poll::Ready(ended);
                    }
                    if cancelled.streams.borrow().len() > STUCK {
                        return Poll::Ready(Err(h2::Error::from(h2::Reason::ENHANCE_YOUR_CALM)));
                    }
                    if !cancelled.tell(|| driver.set_initial_window_size(WINDOWS.0).is_ok()) {
                        return Poll::Pending;
                    }
                }
            });
            let ended = ended.await;
            // What is still on it fails now.
            drop(driver);
            cancelled.streams.take();
            vitals.connection_closed();
            debug!(?ended, "a connection to an agent ended");
            if let Some(pool) = pool.upgrade() {
                pool.best();
            }
        }));
        Ok(connection)
    }
}

impl Connection {
    /// Whether the agent takes no further call on it at the moment, or has `most`. One that is sent nevertheless
    /// waits for its turn.
    pub(super) fn is_crowded(&self, most: usize) -> bool {
        self.in_flight.get() >= most.min(self.send.borrow().current_max_send_streams())
    }

    /// Whether it takes calls: it has not broken, and the agent has not said goodbye.
    pub(super) fn is_open(&self) -> bool {
        let ready = self.send.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop()));
        !matches!(ready, Poll::Ready(Err(_)))
    }
}

/// Streams that nobody waits for any more, until the agent is told.
///
/// Some at a time, and the next when the agent has read what came before these: one that finds many requests and their
/// resets in one breath takes that for an attack and closes the connection (CVE-2023-44487; h2 after 20), with the
/// calls of others on it. What it has read it says by acknowledging settings, which are those that it has: pings would
/// tell as much, but gRPC's C core counts them, and closes the connection after the third.
#[derive(Default)]
struct Cancelled {
    streams: RefCell<VecDeque<OpenStream>>,
    driver: Cell<Option<Waker>>,
}

type OpenStream = (ResponseFuture, Option<Outgoing<Sending>>);

impl Cancelled {
    /// Two batches may be unread.
    const AT_ONCE: usize = 8;

    fn push(&self, stream: OpenStream) {
        self.streams.borrow_mut().push_back(stream);
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// Lets some go, if there are any and `settings` can be sent, as the last ones have been acknowledged.
    fn tell(&self, settings: impl FnOnce() -> bool) -> bool {
        let mut streams = self.streams.borrow_mut();
        if streams.is_empty() || !settings() {
            return false;
        }
        let batch = streams.len().min(Self::AT_ONCE);
        streams.drain(..batch).for_each(drop);
        true
    }
}

/// A request on one connection, until the head of its response.
pub(super) struct Attempt {
    /// Gone with the response.
    stream: Option<OpenStream>,
    cancelled: Rc<Cancelled>,
}

impl Attempt {
    pub(super) fn begin(
        connection: &Connection,
        head: Request<()>,
        upload: &Rc<Upload>,
    ) -> Result<Self, h2::Error> {
        let body = upload.attempt();
        let bare = body.is_end_stream();
        // Of one handle a request would wait until the one before it has been let out.
        let mut send = connection.send.borrow().clone();
        let (response, stream) = send.send_request(head, bare)?;
        let silent_since = connection.silent_since.get();
        connection.silent_since.set(silent_since.or_else(|| Some(Instant::now())));
        let outgoing = (!bare).then(|| Outgoing::new(body, stream));
        Ok(Self { stream: Some((response, outgoing)), cancelled: connection.cancelled.clone() })
    }
}

impl Future for Attempt {
    type Output = Result<Response<Upstream>, h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, outgoing) = self.stream.as_mut().expect("not polled after its end");
        carry_on(outgoing, cx);
        let response = ready!(Pin::new(response).poll(cx));
        let (_, outgoing) = self.stream.take().expect("it was there");
        Poll::Ready(Ok(
            response?.map(|stream| Upstream::Streamed { incoming: Incoming::new(stream), outgoing })
        ))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some((response, outgoing)) = self.stream.take() {
            self.cancelled.push((response, outgoing));
        }
    }
}

/// A response's body, as it comes or made of what came.
pub(crate) enum Upstream {
    /// Reading it carries on what is still being sent.
    Streamed {
        incoming: Incoming,
        outgoing: Option<Outgoing<Sending>>,
    },
    Whole(Frames),
}

impl Upstream {
    /// Whether the whole request has been sent.
    pub(crate) fn is_sent(&self) -> bool {
        !matches!(self, Self::Streamed { outgoing: Some(_), .. })
    }
}

impl Body for Upstream {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match self.get_mut() {
            Self::Streamed { incoming, outgoing } => {
                carry_on(outgoing, cx);
                Pin::new(incoming).poll_frame(cx)
            }
            Self::Whole(body) => Poll::Ready(body.next().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streamed { incoming, .. } => incoming.is_end_stream(),
            Self::Whole(body) => body.is_end(),
        }
    }
}

fn carry_on(outgoing: &mut Option<Outgoing<Sending>>, cx: &mut Context<'_>) {
    if outgoing.as_mut().is_some_and(|outgoing| outgoing.poll(cx).is_ready()) {
        *outgoing = None;
    }
}
