//! Whether the other end of a connection is still there: pings while nothing else is heard.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// How long a peer may take to answer a ping.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// One connection's pings.
pub(crate) struct Keepalive {
    pings: PingPong,
    interval: Duration,
    timer: Pin<Box<Sleep>>,
    /// What had been heard when the timer was set: as [`crate::gather::Gather::heard`] counts.
    heard: u64,
    asked: bool,
}

impl Keepalive {
    pub(crate) fn new(pings: PingPong, interval: Duration) -> Self {
        Self { pings, interval, timer: Box::pin(sleep(interval)), heard: 0, asked: false }
    }

    /// Ready when the peer is silent. It is pinged after an interval in which nothing was `heard`, if the
    /// connection is `used`; whatever is heard then will do for an answer.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, heard: u64, used: bool) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let silent = heard == self.heard;
            if silent && self.asked {
                return Poll::Ready(());
            }
            self.asked = false;
            if silent && used {
                // Whatever came of the last one; where this one fails, the connection does.
                _ = self.pings.poll_pong(cx);
                _ = self.pings.send_ping(Ping::opaque());
                self.asked = true;
            }
            self.heard = heard;
            let wait = if self.asked { PING_TIMEOUT } else { self.interval };
            self.timer.as_mut().reset(Instant::now() + wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{io::duplex, time::timeout};

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);

    /// Pings over a connection that nobody answers.
    async fn keepalive() -> (Keepalive, impl Sized) {
        let (near, far) = duplex(64 * 1024);
        let (send, mut connection) = h2::client::handshake(near).await.unwrap();
        let pings = connection.ping_pong().unwrap();
        (Keepalive::new(pings, INTERVAL), (send, connection, far))
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_a_ping_is_gone() {
        let (mut keepalive, _open) = keepalive().await;
        let begun = Instant::now();
        poll_fn(|cx| keepalive.poll(cx, 1, true)).await;
        // Something was heard before the first look at it.
        assert_eq!(begun.elapsed().as_secs(), (2 * INTERVAL + PING_TIMEOUT).as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_heard_or_not_needed_is_left_alone() {
        let (mut keepalive, _open) = keepalive().await;
        let mut heard = 0;
        let talks = poll_fn(|cx| {
            heard += 1;
            keepalive.poll(cx, heard, true)
        });
        timeout(100 * INTERVAL, talks).await.unwrap_err();
        timeout(100 * INTERVAL, poll_fn(|cx| keepalive.poll(cx, 0, false))).await.unwrap_err();
    }
}
