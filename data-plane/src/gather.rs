//! Gathers what a connection writes in one wake-up into one write.
//!
//! h2 flushes after each DATA frame that is not tiny, and every flush is a system call (with TLS, a record and
//! a system call). [`Gather`] takes the writes into a buffer and lets flushes pass; the buffer is written when
//! the task that drives the connection has done all it can ([`Gathering`]). Measured before it was chosen: a
//! fifth of the CPU of a proxied call.
//!
//! It reads a slice in one wake-up: h2 holds what it has read until streams take it, in memory that it keeps for as
//! long as the connection lives, so they take each slice before the next is read.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// When this much waits the writer must wait too. Bytes.
const FULL: usize = 64 * 1024;
/// What is read in one wake-up. Bytes; the last read may go beyond it.
const SLICE: usize = 32 * 1024;

thread_local! {
    /// The buffer of all the connections that wait for nothing: mostly one is in use, for one wake-up.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

struct Inner<S> {
    stream: S,
    waiting: Vec<u8>,
    /// How often something was read.
    heard: u64,
    /// Bytes that were read in this wake-up.
    read: usize,
    /// Of the write that failed: it is told to whoever writes next.
    error: Option<io::Error>,
}

/// A stream that gathers. Clones are the same stream.
pub(crate) struct Gather<S>(Rc<RefCell<Inner<S>>>);

impl<S> Clone for Gather<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gather<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(Rc::new(RefCell::new(Inner { stream, waiting: Vec::new(), heard: 0, read: 0, error: None })))
    }

    /// `task`, with what it writes to this stream written after each of its wake-ups, and a slice read in each.
    pub(crate) fn gathering<F>(&self, task: F) -> Gathering<F, S> {
        Gathering { task, gather: self.clone() }
    }

    /// How often something was read: if it is the same as before, the peer has been silent.
    pub(crate) fn heard(&self) -> u64 {
        self.0.borrow().heard
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Writes all that waits, and flushes the stream below.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Err(error));
        }
        let mut written = 0;
        while written < self.waiting.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.waiting[written..])? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(more) => written += more,
                Poll::Pending => {
                    self.waiting.drain(..written);
                    return Poll::Pending;
                }
            }
        }
        self.forget();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Nothing waits any more.
    fn forget(&mut self) {
        self.waiting.clear();
        if self.waiting.capacity() > 0 {
            SPARE.set(std::mem::take(&mut self.waiting));
        }
    }

    /// Takes what is written; Pending when so much waits that the writer must too.
    fn poll_take(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= FULL || self.error.is_some() {
            ready!(self.poll_drain(cx))?;
        }
        if self.waiting.capacity() == 0 {
            self.waiting = SPARE.take();
        }
        bufs.iter().for_each(|buf| self.waiting.extend_from_slice(buf));
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if inner.read >= SLICE {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut inner.stream).poll_read(cx, buf))?;
        inner.heard += 1;
        inner.read += buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_take(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_take(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The driver of the connection will.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

pin_project! {
    /// A task that writes to a [`Gather`].
    pub(crate) struct Gathering<F, S> {
        #[pin]
        task: F,
        gather: Gather<S>,
    }
}

impl<F: Future, S: AsyncWrite + Unpin> Future for Gathering<F, S> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.gather.0.borrow_mut().read = 0;
        let polled = this.task.poll(cx);
        let mut inner = this.gather.0.borrow_mut();
        if !inner.waiting.is_empty() {
            // Pending: the stream wakes this task when it takes more.
            if let Poll::Ready(Err(e)) = inner.poll_drain(cx) {
                inner.forget();
                inner.error = Some(e);
                // So that the connection hears of it, by its next write at the latest.
                cx.waker().wake_by_ref();
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn one_wake_up_is_one_write_and_nothing_is_lost_or_reordered() {
        // A pipe that takes 8 KiB at a time makes every drain partial.
        let (near, mut far) = duplex(8 * 1024);
        let mut gather = Gather::new(near);
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writer = gather.clone().gathering(async move {
            for chunk in sent.chunks(1000) {
                gather.write_all(chunk).await.unwrap();
                gather.flush().await.unwrap();
            }
            gather.shutdown().await.unwrap();
        });
        let reader = async {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = tokio::join!(writer, reader);
        assert!(got == expected);
    }

    #[tokio::test]
    async fn what_is_written_is_flushed_when_the_task_rests() {
        let (near, mut far) = duplex(1024);
        let mut gather = Gather::new(near);
        let task = gather.clone().gathering(async move {
            gather.write_all(b"a").await.unwrap();
            gather.write_all(b"b").await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut got = [0; 2];
        tokio::select! {
            () = task => unreachable!("it rests"),
            read = far.read_exact(&mut got) => drop(read.unwrap()),
        }
        assert_eq!(&got, b"ab");
    }

    #[tokio::test]
    async fn a_slice_is_read_in_one_wake_up_and_all_in_the_end() {
        const SENT: usize = 10 * SLICE;
        let (near, mut far) = duplex(SENT);
        far.write_all(&[7; SENT]).await.unwrap();
        drop(far);
        let gather = Gather::new(near);
        let (mut task, mut most, mut all) = (gather.clone(), 0, 0);
        let reader = gather.gathering(std::future::poll_fn(|cx| {
            let (mut of_this, mut buf) = (0, [0; 1000]);
            loop {
                let mut buf = ReadBuf::new(&mut buf);
                let read = Pin::new(&mut task).poll_read(cx, &mut buf);
                of_this += buf.filled().len();
                if read.is_pending() || buf.filled().is_empty() {
                    (most, all) = (most.max(of_this), all + of_this);
                    return read.map(Result::unwrap);
                }
            }
        }));
        reader.await;
        assert!((SLICE..SLICE + 1000).contains(&most) && all == SENT, "{most} and {all}");
    }

    #[tokio::test]
    async fn a_broken_stream_fails_the_writer() {
        let (near, far) = duplex(1024);
        drop(far);
        let mut gather = Gather::new(near);
        let task = gather.clone().gathering(async move {
            loop {
                if gather.write_all(b"a").await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        task.await;
    }
}
