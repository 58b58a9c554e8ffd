//! Whether an agent may be asked: a circuit breaker on consecutive failures.
//!
//! Closed, until a number of calls in a row have failed. Then open: nobody is sent there for a while. After
//! that half-open: exactly one call goes through as a probe, and its end decides. A probe that ends without
//! saying anything (its caller went away) leaves the breaker open, ready for the next probe at once.
//!
//! The state is one atomic word, because every core asks it for every call. Consecutive failures: Envoy's
//! `outlier_detection.consecutive_5xx`; back-off and single probe: linkerd's `consecutive_failures`.

use std::{
    sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

/// When to open and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Failures in a row that open it; 1 to 65535.
    pub failures: u16,
    /// How long it stays open the first time. Doubles with each probe that fails.
    pub first: Duration,
    /// The longest it stays open, before jitter adds up to a quarter.
    pub longest: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { failures: 5, first: Duration::from_secs(1), longest: Duration::from_secs(30) }
    }
}

/// Permission to make one call, to be given back by [`Breaker::settle`]. Whoever holds the one for a probe
/// holds the breaker: it must be settled whatever happens, dropping the call included.
#[derive(Debug)]
#[must_use]
pub(crate) enum Pass {
    Ordinary,
    Probe,
}

/// What a call's end says of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It works.
    Well,
    /// It is sick.
    Sick,
    /// Nothing: the caller went away.
    Silent,
}

/// The state, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Closed,
    Open,
    /// A probe may go, or is under way.
    HalfOpen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Failures in a row so far.
    Closed { failures: u16 },
    /// Until a moment (milliseconds since the epoch); opened this often in a row.
    Open { until: u64, times: u16 },
    /// A probe is under way.
    Probing { times: u16 },
}

impl State {
    fn pack(self) -> u64 {
        match self {
            Self::Closed { failures } => u64::from(failures) << 2,
            Self::Open { until, times } => until << 18 | u64::from(times) << 2 | 1,
            Self::Probing { times } => u64::from(times) << 2 | 2,
        }
    }

    #[allow(clippy::cast_possible_truncation)]
    fn unpack(word: u64) -> Self {
        let count = (word >> 2) as u16;
        match word & 3 {
            0 => Self::Closed { failures: count },
            1 => Self::Open { until: word >> 18, times: count },
            _ => Self::Probing { times: count },
        }
    }
}

/// One agent's breaker, shared by all cores.
#[derive(Debug)]
pub(crate) struct Breaker {
    policy: Policy,
    epoch: Instant,
    state: AtomicU64,
}

impl Breaker {
    pub(crate) fn new(policy: Policy, now: Instant) -> Self {
        Self { policy, epoch: now, state: AtomicU64::new(State::Closed { failures: 0 }.pack()) }
    }

    /// How long to wait before asking again: `None` when a call would be let through now.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        self.wait_in(self.state(), self.millis(now))
    }

    /// Lets a call through, or says how long to wait before asking again.
    pub(crate) fn enter(&self, now: Instant) -> Result<Pass, Duration> {
        let now = self.millis(now);
        let mut entered = Ok(Pass::Ordinary);
        self.update(|state| {
            let (pass, next) = match (self.wait_in(state, now), state) {
                (Some(wait), _) => (Err(wait), None),
                (None, State::Open { times, .. }) => (Ok(Pass::Probe), Some(State::Probing { times })),
                (None, _) => (Ok(Pass::Ordinary), None),
            };
            entered = pass;
            next
        });
        entered
    }

    /// Takes a pass back. `random` spreads the probes of agents that failed together.
    ///
    /// Calls that were let through before it opened say nothing any more once it has.
    pub(crate) fn settle(&self, pass: Pass, verdict: Verdict, now: Instant, random: u64) {
        let now = self.millis(now);
        self.update(|state| match (&pass, state, verdict) {
            (Pass::Probe, State::Probing { times }, verdict) => Some(match verdict {
                Verdict::Well => State::Closed { failures: 0 },
                Verdict::Sick => self.open(now, times.saturating_add(1), random),
                Verdict::Silent => State::Open { until: now, times },
            }),
            (Pass::Ordinary, State::Closed { failures: 1.. }, Verdict::Well) => {
                Some(State::Closed { failures: 0 })
            }
            (Pass::Ordinary, State::Closed { failures }, Verdict::Sick) => {
                let failures = failures.saturating_add(1);
                Some(if failures >= self.policy.failures {
                    self.open(now, 1, random)
                } else {
                    State::Closed { failures }
                })
            }
            _ => None,
        });
    }

    /// The state, and the failures in a row that count towards opening it.
    pub(crate) fn view(&self, now: Instant) -> (Phase, u16) {
        match self.state() {
            State::Closed { failures } => (Phase::Closed, failures),
            State::Open { until, .. } if self.millis(now) < until => (Phase::Open, self.policy.failures),
            State::Open { .. } | State::Probing { .. } => (Phase::HalfOpen, self.policy.failures),
        }
    }

    fn wait_in(&self, state: State, now: u64) -> Option<Duration> {
        match state {
            State::Closed { .. } => None,
            State::Open { until, .. } => {
                until.checked_sub(now).filter(|wait| *wait > 0).map(Duration::from_millis)
            }
            State::Probing { .. } => Some(self.policy.first),
        }
    }

    fn open(&self, now: u64, times: u16, random: u64) -> State {
        let doublings = u32::from(times.saturating_sub(1)).min(20);
        let delay = self.policy.first.saturating_mul(1 << doublings).min(self.policy.longest);
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX >> 20);
        State::Open { until: now + delay + random % (delay / 4 + 1), times }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX >> 20)
    }

    fn state(&self) -> State {
        State::unpack(self.state.load(Acquire))
    }

    fn update(&self, mut next: impl FnMut(State) -> Option<State>) {
        // The error is "unchanged".
        let _ = self.state.fetch_update(AcqRel, Acquire, |word| next(State::unpack(word)).map(State::pack));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(Policy::default(), Instant::now())
    }

    fn enter(breaker: &Breaker) -> Result<Pass, Duration> {
        breaker.enter(Instant::now())
    }

    fn end(breaker: &Breaker, pass: Pass, verdict: Verdict) {
        breaker.settle(pass, verdict, Instant::now(), 0);
    }

    fn call(breaker: &Breaker, verdict: Verdict) {
        let pass = enter(breaker).unwrap();
        end(breaker, pass, verdict);
    }

    fn phase(breaker: &Breaker) -> Phase {
        breaker.view(Instant::now()).0
    }

    fn opened() -> Breaker {
        let breaker = breaker();
        (0..5).for_each(|_| call(&breaker, Verdict::Sick));
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_open_it() {
        let breaker = breaker();
        for _ in 0..4 {
            call(&breaker, Verdict::Sick);
        }
        call(&breaker, Verdict::Well);
        for failures in 1..=4 {
            call(&breaker, Verdict::Sick);
            assert_eq!(breaker.view(Instant::now()), (Phase::Closed, failures));
        }
        call(&breaker, Verdict::Silent);
        call(&breaker, Verdict::Sick);
        assert_eq!(phase(&breaker), Phase::Open);
        assert!(breaker.wait(Instant::now()).is_some());
        assert_eq!(enter(&breaker).unwrap_err(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_goes_and_its_success_closes_it() {
        let breaker = opened();
        advance(Duration::from_millis(999)).await;
        assert!(enter(&breaker).is_err());
        advance(Duration::from_millis(1)).await;
        assert_eq!(phase(&breaker), Phase::HalfOpen);
        let probe = enter(&breaker).unwrap();
        assert!(matches!(probe, Pass::Probe));
        assert!(enter(&breaker).is_err(), "only one");
        end(&breaker, probe, Verdict::Well);
        assert_eq!(breaker.view(Instant::now()), (Phase::Closed, 0));
        call(&breaker, Verdict::Sick);
        assert_eq!(breaker.view(Instant::now()), (Phase::Closed, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn each_failed_probe_doubles_the_wait_up_to_the_longest() {
        let breaker = opened();
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(enter(&breaker).unwrap_err(), Duration::from_secs(seconds));
            advance(Duration::from_secs(seconds)).await;
            call(&breaker, Verdict::Sick);
        }
        advance(Duration::from_secs(30)).await;
        call(&breaker, Verdict::Well);
        (0..5).for_each(|_| call(&breaker, Verdict::Sick));
        assert_eq!(enter(&breaker).unwrap_err(), Duration::from_secs(1), "a success begins it anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_probe_leaves_the_way_open_for_the_next() {
        let breaker = opened();
        advance(Duration::from_secs(1)).await;
        for _ in 0..3 {
            let probe = enter(&breaker).unwrap();
            end(&breaker, probe, Verdict::Silent);
        }
        call(&breaker, Verdict::Well);
        assert_eq!(phase(&breaker), Phase::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_from_before_it_opened_change_nothing() {
        let breaker = breaker();
        let (early, late) = (enter(&breaker).unwrap(), enter(&breaker).unwrap());
        (0..5).for_each(|_| call(&breaker, Verdict::Sick));
        end(&breaker, early, Verdict::Well);
        assert_eq!(phase(&breaker), Phase::Open);
        advance(Duration::from_secs(1)).await;
        let probe = enter(&breaker).unwrap();
        end(&breaker, late, Verdict::Sick);
        assert!(enter(&breaker).is_err(), "the probe still decides");
        end(&breaker, probe, Verdict::Well);
        assert_eq!(phase(&breaker), Phase::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_adds_up_to_a_quarter() {
        for random in 0..2000 {
            let breaker = breaker();
            for _ in 0..5 {
                let pass = enter(&breaker).unwrap();
                breaker.settle(pass, Verdict::Sick, Instant::now(), random);
            }
            let wait = enter(&breaker).unwrap_err();
            assert!((1000..=1250).contains(&wait.as_millis()), "{wait:?}");
        }
    }
}
