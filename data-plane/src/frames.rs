//! The two directions of one HTTP/2 stream as bodies: what comes ([`Incoming`]), and what goes ([`Outgoing`]).
//!
//! The path speaks h2 itself: on one thread a call needs no task, channel or lock between its caller's stream and
//! its agent's, which is where a general client spends half of its time.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http_body::{Body, Frame};

/// What comes on a stream. Dropped before its end, it resets the stream once nobody sends on it either.
pub(crate) struct Incoming {
    stream: RecvStream,
    /// Only trailers can follow.
    data_done: bool,
}

impl Incoming {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, data_done: false }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = &mut *self;
        if !this.data_done {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It fails for a stream that has ended, which needs no room.
                    _ = this.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(e)) => {
                    this.data_done = true;
                    // "I have answered and need no more of this" (RFC 9113, 8.1): an end, and no failure.
                    let enough = e.reason() == Some(Reason::NO_ERROR);
                    return Poll::Ready(if enough { None } else { Some(Err(e)) });
                }
                None => this.data_done = true,
            }
        }
        let trailers = ready!(this.stream.poll_trailers(cx));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// A body on its way out, as fast as the peer takes it.
pub(crate) struct Outgoing<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Data for which there is no room yet, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

impl<B> Outgoing<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub(crate) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, waiting: None }
    }

    /// Ready when there is nothing more to do: all is sent, the peer has reset the stream, or the body failed,
    /// which resets it. Who reads from the stream hears of a reset.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some((data, last)) = self.waiting.take() {
                if !data.is_empty() && self.stream.capacity() == 0 {
                    match self.stream.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(_) => return Poll::Ready(()),
                        Poll::Pending => {
                            self.waiting = Some((data, last));
                            return self.poll_reset(cx);
                        }
                    }
                    if self.stream.capacity() == 0 {
                        self.waiting = Some((data, last));
                        continue;
                    }
                }
                if self.stream.send_data(data, last).is_err() || last {
                    return Poll::Ready(());
                }
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return self.poll_reset(cx),
                Poll::Ready(None) => {
                    // It fails for a stream that has ended already.
                    _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
                Poll::Ready(Some(Err(e))) => {
                    let error: Box<dyn std::error::Error + Send + Sync> = e.into();
                    let reason = error.downcast_ref().and_then(h2::Error::reason);
                    self.stream.send_reset(reason.unwrap_or(Reason::INTERNAL_ERROR));
                    return Poll::Ready(());
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.stream.reserve_capacity(data.len());
                        self.waiting = Some((data, self.body.is_end_stream()));
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            _ = self.stream.send_trailers(trailers);
                            return Poll::Ready(());
                        }
                    }
                },
            }
        }
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(drop)
    }
}
