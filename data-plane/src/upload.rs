//! The request body of a call, on its way to an agent.
//!
//! It belongs to the call and not to one attempt at it: what has been sent is kept, up to a bound, so that a
//! request that the agent's connection never processed can go out again on another.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::{task::spawn_local, time::timeout};

use crate::frames::Incoming;

/// How much of what was sent is kept for a second attempt. Bytes.
const KEPT: usize = 64 * 1024;

/// How much of what nobody needs is taken from a caller, in bytes, and for how long.
const DISCARD: (usize, Duration) = (64 * 1024, Duration::from_secs(5));

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What one call sends.
pub(crate) struct Upload {
    /// The caller's stream; none when everything is in `kept`.
    source: RefCell<Option<Incoming>>,
    kept: RefCell<Vec<Bytes>>,
    kept_bytes: Cell<usize>,
    /// Whether `kept` is all that has come.
    complete: Cell<bool>,
    /// Whether all has come.
    ended: Cell<bool>,
    /// The attempt that may take from the source. Once all has come and is kept, any may send.
    attempt: Cell<u32>,
    /// Nobody sends any more.
    closed: Cell<bool>,
    waiting: Cell<Option<Waker>>,
}

impl Upload {
    /// What a caller sends.
    pub(crate) fn streamed(source: Incoming) -> Rc<Self> {
        Self::new(Some(source), Vec::new())
    }

    /// What a caller sends, of which this much has come.
    pub(crate) fn begun(kept: Vec<Bytes>, rest: Incoming) -> Rc<Self> {
        let upload = Self::new(Some(rest), kept);
        upload.kept_bytes.set(upload.kept.borrow().iter().map(Bytes::len).sum());
        upload
    }

    /// One message that is known.
    pub(crate) fn whole(message: Bytes) -> Rc<Self> {
        Self::new(None, vec![message])
    }

    fn new(source: Option<Incoming>, kept: Vec<Bytes>) -> Rc<Self> {
        Rc::new(Self {
            ended: Cell::new(source.as_ref().is_none_or(Body::is_end_stream)),
            source: RefCell::new(source),
            kept: RefCell::new(kept),
            kept_bytes: Cell::new(0),
            complete: Cell::new(true),
            attempt: Cell::new(0),
            closed: Cell::new(false),
            waiting: Cell::new(None),
        })
    }

    /// The body for a first or another attempt. Unless the upload is whole, an earlier one sends no more.
    pub(crate) fn attempt(self: &Rc<Self>) -> Sending {
        self.attempt.set(self.attempt.get() + 1);
        self.wake();
        Sending { upload: self.clone(), attempt: self.attempt.get(), position: 0 }
    }

    /// Whether another attempt would send the same.
    pub(crate) fn repeatable(&self) -> bool {
        self.complete.get()
    }

    /// Whether all has come and is kept: several attempts may send it side by side.
    pub(crate) fn shareable(&self) -> bool {
        self.ended.get() && self.complete.get()
    }

    /// An answer has begun: there is no other attempt, and what comes now is not kept, nor what had come if it was sent.
    pub(crate) fn answered(&self, sent: bool) {
        if sent || !self.ended.get() {
            self.complete.set(false);
        }
        if sent {
            self.kept.take();
        }
    }

    fn end(&self) {
        self.closed.set(true);
        if let Some(rest) = self.source.borrow_mut().take() {
            discard(rest);
        }
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    fn keep(&self, data: &Bytes) -> bool {
        let bytes = self.kept_bytes.get() + data.len();
        if !self.complete.get() || bytes > KEPT {
            self.complete.set(false);
            self.kept.borrow_mut().clear();
            return false;
        }
        self.kept_bytes.set(bytes);
        self.kept.borrow_mut().push(data.clone());
        true
    }
}

/// Takes what a caller still sends after it has its answer, within bounds.
///
/// Dropping it would reset the stream, and what is under way on a stream that was reset counts as an error of
/// the connection: h2 closes one with too many of them, and all the calls on it.
pub(crate) fn discard(mut rest: Incoming) {
    if rest.is_end_stream() {
        return;
    }
    spawn_local(timeout(DISCARD.1, async move {
        let mut taken = 0;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > DISCARD.0 {
                break;
            }
        }
    }));
}

/// Ends an upload when it is dropped: the agent need not wait for the rest.
pub(crate) struct Uploading(Rc<Upload>);

impl Uploading {
    pub(crate) fn new(upload: &Rc<Upload>) -> Self {
        Self(upload.clone())
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// One attempt's body.
pub(crate) struct Sending {
    upload: Rc<Upload>,
    attempt: u32,
    /// In what is kept.
    position: usize,
}

impl Sending {
    fn current(&self) -> bool {
        !self.upload.closed.get() && (self.upload.shareable() || self.upload.attempt.get() == self.attempt)
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.current() {
            return Poll::Ready(Some(Err(h2::Error::from(h2::Reason::CANCEL).into())));
        }
        let kept = self.upload.kept.borrow().get(self.position).cloned();
        if let Some(data) = kept {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let polled = match self.upload.source.borrow_mut().as_mut() {
            Some(source) => {
                let polled = Pin::new(&mut *source).poll_frame(cx);
                // Whoever sends is not asked again after the last frame.
                self.upload.ended.set(matches!(polled, Poll::Ready(None)) || source.is_end_stream());
                polled
            }
            None => return Poll::Ready(None),
        };
        match polled {
            Poll::Pending => {
                self.upload.waiting.set(Some(cx.waker().clone()));
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref()
                    && self.upload.keep(data)
                {
                    self.position += 1;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other.map(|result| result.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.current()
            && self.position >= self.upload.kept.borrow().len()
            && self.upload.source.borrow().as_ref().is_none_or(Body::is_end_stream)
    }
}
