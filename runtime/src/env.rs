//! The world outside: time, randomness, and connections. Passed in, so that a simulation can pass in its own.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
pub use parallax_security::Network;
use parallax_security::{Dialling, Tcp};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;
use uuid::Uuid;

/// Time, randomness and the network. Waiting is tokio's timer, which tests pause.
pub trait Env: Network {
    /// Wall-clock time, for records that people and other processes read; never for measuring.
    fn now(&self) -> Timestamp;
    /// 64 uniform random bits.
    fn random(&self) -> u64;

    /// A fresh id that sorts by creation time, to a quarter of a microsecond (UUID version 7, whose first twelve
    /// random bits are a fraction of the millisecond: RFC 9562, 6.2, method 3).
    fn id(&self) -> String {
        let now = self.now();
        let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let nanos = u64::try_from(now.subsec_nanosecond()).unwrap_or(0) % 1_000_000;
        let fraction = u16::try_from((nanos << 12) / 1_000_000).expect("below 2¹²");
        let mut tail = [0; 10];
        tail[..2].copy_from_slice(&fraction.to_be_bytes());
        tail[2..].copy_from_slice(&self.random().to_be_bytes());
        uuid::Builder::from_unix_timestamp_millis(millis, &tail).into_uuid().to_string()
    }

    /// [`Env::now`] in std's type, for certificates.
    fn system_time(&self) -> SystemTime {
        self.now().into()
    }
}

/// The machine's own clock, entropy and network.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl System {
    /// The real world, ready to be handed on.
    #[must_use]
    pub fn shared() -> Arc<dyn Env> {
        Arc::new(Self)
    }
}

impl Network for System {
    fn dial<'a>(&'a self, addr: &'a str) -> Dialling<'a> {
        Tcp.dial(addr)
    }
}

impl Env for System {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn random(&self) -> u64 {
        rand::rng().random()
    }
}

/// Time that follows tokio's (so that it stands still when that is paused) and seeded randomness.
pub struct Simulated {
    base: Timestamp,
    start: Instant,
    rng: Mutex<StdRng>,
}

impl Simulated {
    /// Starts at `2026-01-01T00:00:00Z`; needs a tokio runtime.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            base: Timestamp::from_second(1_767_225_600).expect("a date in range"),
            start: Instant::now(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }
}

impl Network for Simulated {
    fn dial<'a>(&'a self, addr: &'a str) -> Dialling<'a> {
        Tcp.dial(addr)
    }
}

impl Env for Simulated {
    fn now(&self) -> Timestamp {
        self.base + self.start.elapsed()
    }

    fn random(&self) -> u64 {
        self.rng.lock().random()
    }
}

/// Milliseconds in a duration, saturating.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An id as the text of a UUID, or why it is none.
pub fn parse_id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|e| format!("\"{text}\" is not a run id (a UUID): {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simulated_time_is_tokio_time_and_ids_sort_by_it() {
        let env = Simulated::new(7);
        let (t0, first) = (env.now(), env.id());
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(env.now().duration_since(t0).as_millis(), 1500);
        assert!(first < env.id());
        for _ in 0..100 {
            let before = env.id();
            tokio::time::advance(Duration::from_nanos(250)).await;
            assert!(before < env.id(), "ids of one millisecond sort too");
        }
        assert_eq!(Simulated::new(7).random(), Simulated::new(7).random());
    }
}
