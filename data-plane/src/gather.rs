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

/// No more waits than this: then the writer must wait too. Bytes.
const FULL: usize = 64 * 1024;
/// What is read in one wake-up. Bytes; the last read may go beyond it.
const SLICE: usize = 32 * 1024;

thread_local! {
    /// The buffer of all the connections that wait for nothing: mostly one is in use, for one wake-up.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

struct Inner<S> {
    stream: S,
    /// Up to [`FULL`].
    waiting: Vec<u8>,
    /// The stream below has taken it all, and has not passed all of it on.
    unflushed: bool,
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
        Self(Rc::new(RefCell::new(Inner {
            stream,
            waiting: Vec::new(),
            unflushed: false,
            heard: 0,
            read: 0,
            error: None,
        })))
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
    /// Writes all that waits, and flushes the stream below. What waits after an error is lost.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unflushed = false;
        if let Some(error) = self.error.take() {
            return Poll::Ready(Err(error));
        }
        let mut written = 0;
        while written < self.waiting.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.waiting[written..]) {
                Poll::Ready(Ok(more)) if more > 0 => written += more,
                Poll::Ready(ended) => {
                    self.give_back();
                    return Poll::Ready(ended.and(Err(io::ErrorKind::WriteZero.into())));
                }
                Poll::Pending => {
                    self.waiting.drain(..written);
                    return Poll::Pending;
                }
            }
        }
        self.give_back();
        // TLS may have taken all, and wait for the socket itself.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.unflushed = flushed.is_pending();
        flushed
    }

    fn give_back(&mut self) {
        self.waiting.clear();
        if self.waiting.capacity() > 0 {
            SPARE.set(std::mem::take(&mut self.waiting));
        }
    }

    /// Takes as much as there is room for.
    fn poll_take(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= FULL || self.error.is_some() {
            ready!(self.poll_drain(cx))?;
        }
        if self.waiting.capacity() == 0 {
            self.waiting = SPARE.take();
        }
        let before = self.waiting.len();
        for buf in bufs {
            let room = FULL - self.waiting.len();
            self.waiting.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        Poll::Ready(Ok(self.waiting.len() - before))
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
        if inner.unflushed || !inner.waiting.is_empty() {
            // Pending: the stream wakes this task when it takes more.
            if let Poll::Ready(Err(e)) = inner.poll_drain(cx) {
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

    /// As TLS is: it takes what is written, and passes it on when it has been asked to so often. Then it breaks.
    struct Buffering {
        pending: usize,
        passed_on: bool,
    }

    impl AsyncRead for Buffering {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Buffering {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(if self.passed_on { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(buf.len()) })
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.pending > 0 {
                self.pending -= 1;
                return Poll::Pending;
            }
            self.passed_on = true;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_the_stream_below_holds_back_is_passed_on_when_it_can_be() {
        let mut gather = Gather::new(Buffering { pending: 2, passed_on: false });
        let seen = gather.clone();
        let task = gather.clone().gathering(async move {
            gather.write_all(b"the last of it").await.unwrap();
            std::future::pending::<()>().await;
        });
        tokio::pin!(task);
        for woken in 1..=3 {
            assert!(futures::poll!(task.as_mut()).is_pending());
            assert_eq!(seen.0.borrow().stream.passed_on, woken == 3, "woken {woken} times");
        }
    }

    #[tokio::test]
    async fn a_break_is_told_once() {
        let mut gather = Gather::new(Buffering { pending: 1, passed_on: false });
        let seen = gather.clone();
        let task = gather.clone().gathering(async move {
            gather.write_all(b"held back").await.unwrap();
            tokio::task::yield_now().await;
            gather.0.borrow_mut().stream.passed_on = true;
            gather.write_all(b"lost").await.unwrap();
            std::future::pending::<()>().await;
        });
        tokio::pin!(task);
        for _ in 0..2 {
            assert!(futures::poll!(task.as_mut()).is_pending());
        }
        let inner = seen.0.borrow();
        assert!(
            inner.error.is_some() && !inner.unflushed && inner.waiting.is_empty(),
            "nothing more is tried"
        );
    }

    #[tokio::test]
    async fn no_more_waits_than_may_however_large_a_write_is() {
        let (near, mut far) = duplex(1024);
        let mut gather = Gather::new(near);
        let seen = gather.clone();
        let writer = gather.clone().gathering(async move {
            gather.write_all(&vec![1; 20 * FULL]).await.unwrap();
            gather.shutdown().await.unwrap();
        });
        let reader = async {
            let (mut all, mut buf) = (0, [0; 4096]);
            loop {
                assert!(seen.0.borrow().waiting.len() <= FULL);
                match far.read(&mut buf).await.unwrap() {
                    0 => return all,
                    read => all += read,
                }
            }
        };
        let ((), all) = tokio::join!(writer, reader);
        assert_eq!(all, 20 * FULL);
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
