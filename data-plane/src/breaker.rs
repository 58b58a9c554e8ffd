//! Whether an agent may be asked: a circuit breaker.
//!
//! Closed, until a number of calls in a row have failed, or too large a share of the recent ones. Then open:
//! nobody is sent there for a while. After that half-open: exactly one call goes through as a probe, and its
//! end decides. A probe that ends without saying anything (its caller went away) leaves the breaker open,
//! ready for the next probe at once.
//!
//! Beside that an agent may ask for a rest (429, `RESOURCE_EXHAUSTED`): nobody is sent there until it is over,
//! and nothing is held against it.
//!
//! The state is one atomic word, because every core asks it for every call; the rest is another, and the recent
//! calls are a few counters. Consecutive failures: Envoy's `outlier_detection.consecutive_5xx`; share of
//! failures: its `failure_percentage`; back-off and single probe: linkerd's `consecutive_failures`.

use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

pub(crate) mod by_pattern;
mod window;

pub(crate) use window::Window;

use crate::config::Current;

/// A probe that came to no end is followed by the next after the first pause divided by this.
const UNENDED: u32 = 10;

/// When to open and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Failures in a row that open it; 1 to 65535. Envoy's `consecutive_5xx`.
    pub failures: u16,
    /// The share of failures among the calls of the last `window` that opens it; above 0, up to 1. Envoy's
    /// `failure_percentage_threshold`.
    pub ratio: f64,
    /// A share of fewer calls than this says nothing; 1 or more. Envoy's `failure_percentage_request_volume`.
    pub ratio_calls: u32,
    /// How far back calls count, to a fifth of it; 5 ms or more. Envoy's `outlier_detection.interval`.
    pub window: Duration,
    /// How long it stays open the first time. Doubles with each probe that fails. Envoy's `base_ejection_time`.
    pub first: Duration,
    /// The longest it stays open, before jitter adds up to a quarter. Envoy's `max_ejection_time`.
    pub longest: Duration,
    /// How long an agent rests that turns calls away for load and does not say until when: the first time, and
    /// the longest, before jitter adds up to a quarter. It doubles with each time in a row.
    pub rest: (Duration, Duration),
    /// The longest rest that is granted to one that says until when.
    pub longest_hint: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            failures: 5,
            ratio: 0.5,
            ratio_calls: 20,
            window: Duration::from_secs(10),
            first: Duration::from_secs(1),
            longest: Duration::from_secs(30),
            rest: (Duration::from_millis(100), Duration::from_secs(5)),
            longest_hint: Duration::from_secs(60),
        }
    }
}

/// Permission to make one call, to be given back by [`Breaker::settle`]. Whoever holds the one for a probe
/// holds the breaker: it must be settled whatever happens, dropping the call included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// It is not there, whatever it is asked for.
    Away,
    /// It has too much to do, and wants a rest: of that length, if it says so.
    Throttled(Option<Duration>),
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
    /// Closed, and the agent rests.
    Throttled,
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
    config: Current,
    epoch: Instant,
    state: AtomicU64,
    /// Until when the agent rests (milliseconds since the epoch) above sixteen bits that say how often in a row.
    rest: AtomicU64,
    /// Milliseconds since the epoch at which calls began to go there, at first or again.
    begun: AtomicU64,
    recent: Window,
}

impl Breaker {
    pub(crate) fn new(config: Current, now: Instant) -> Self {
        Self {
            config,
            epoch: now,
            state: AtomicU64::new(State::Closed { failures: 0 }.pack()),
            rest: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            recent: Window::default(),
        }
    }

    fn policy(&self) -> Policy {
        self.config.now().breaker
    }

    /// How long to wait before asking again: `None` when a call would be let through now.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let now = self.millis(now);
        self.wait_in(self.state(), now).max(self.resting(now))
    }

    /// Lets a call through, or says how long to wait before asking again.
    pub(crate) fn enter(&self, now: Instant) -> Result<Pass, Duration> {
        let now = self.millis(now);
        if let Some(rest) = self.resting(now) {
            return Err(self.wait_in(self.state(), now).unwrap_or_default().max(rest));
        }
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
        match verdict {
            Verdict::Throttled(hint) => self.grant(hint, now, random),
            Verdict::Well => self.rested(now),
            _ => {}
        }
        let well = match verdict {
            Verdict::Well => Some(true),
            Verdict::Sick | Verdict::Away => Some(false),
            Verdict::Throttled(_) | Verdict::Silent => None,
        };
        if pass == Pass::Ordinary {
            if let Some(well) = well {
                self.judge(well, now, random);
            }
            return;
        }
        if well == Some(true) {
            // What it was opened for is over.
            self.recent.clear();
            self.begun.store(now, Relaxed);
        }
        self.update(|state| match state {
            State::Probing { times } => Some(match well {
                Some(true) => State::Closed { failures: 0 },
                Some(false) => self.open(now, times.saturating_add(1), random),
                // Nobody waited for its end: of an agent that hangs no more is asked than a few times a second.
                None if verdict == Verdict::Silent => {
                    State::Open { until: now + whole_millis(self.policy().first / UNENDED), times }
                }
                None => State::Open { until: now, times },
            }),
            _ => None,
        });
    }

    /// Takes back a pass for a call that was not made.
    pub(crate) fn give_back(&self, pass: Pass, now: Instant) {
        let now = self.millis(now);
        self.update(|state| match state {
            State::Probing { times } if pass == Pass::Probe => Some(State::Open { until: now, times }),
            _ => None,
        });
    }

    /// Counts an ordinary call.
    fn judge(&self, well: bool, now: u64, random: u64) {
        let State::Closed { failures } = self.state() else { return };
        self.recent.count(self.config.now().breaker.window, now, well);
        if well && failures == 0 {
            return;
        }
        let policy = self.policy();
        let too_many = !well && {
            let (calls, failed) = self.recent.sum(policy.window, now);
            calls >= policy.ratio_calls && f64::from(failed) >= f64::from(calls) * policy.ratio
        };
        self.update(|state| match state {
            State::Closed { failures: 0 } if well => None,
            State::Closed { .. } if well => Some(State::Closed { failures: 0 }),
            State::Closed { failures } => {
                let failures = failures.saturating_add(1);
                Some(if too_many || failures >= policy.failures {
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
        let now = self.millis(now);
        match self.state() {
            State::Closed { failures } if self.resting(now).is_some() => (Phase::Throttled, failures),
            State::Closed { failures } => (Phase::Closed, failures),
            State::Open { until, .. } if now < until => (Phase::Open, self.policy().failures),
            State::Open { .. } | State::Probing { .. } => (Phase::HalfOpen, self.policy().failures),
        }
    }

    /// How often in a row it has been opened; 0 while it is closed.
    pub(crate) fn times(&self) -> u16 {
        match self.state() {
            State::Closed { .. } => 0,
            State::Open { times, .. } | State::Probing { times } => times,
        }
    }

    /// Calls of the last [`Policy::window`] that said something of the agent.
    pub(crate) fn recent_calls(&self, now: Instant) -> u32 {
        self.recent.sum(self.policy().window, self.millis(now)).0
    }

    /// How long calls have been going there: since it is known, or since its breaker closed.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        Duration::from_millis(self.millis(now).saturating_sub(self.begun.load(Relaxed)))
    }

    /// The agent is a new one, behind a name that is known.
    pub(crate) fn begin_anew(&self, now: Instant) {
        self.begun.store(self.millis(now), Relaxed);
    }

    fn wait_in(&self, state: State, now: u64) -> Option<Duration> {
        match state {
            State::Closed { .. } => None,
            State::Open { until, .. } => left(until, now),
            State::Probing { .. } => Some(self.policy().first),
        }
    }

    fn open(&self, now: u64, times: u16, random: u64) -> State {
        let policy = self.policy();
        State::Open { until: now + pause((policy.first, policy.longest), times, random), times }
    }

    /// How long the agent rests still.
    fn resting(&self, now: u64) -> Option<Duration> {
        left(self.rest.load(Acquire) >> 16, now)
    }

    /// Grants it a rest. What calls hear that were under way together is one asking: the longest hint counts.
    fn grant(&self, hint: Option<Duration>, now: u64, random: u64) {
        // The error is "unchanged".
        let _ = self.rest.fetch_update(AcqRel, Acquire, |word| {
            let (until, times) = (word >> 16, word & 0xffff);
            let (resting, again) = (now < until, (times + 1).min(0xffff));
            let end = now
                + match hint {
                    Some(hint) => whole_millis(hint.min(self.policy().longest_hint)),
                    None if resting => return None,
                    None => pause(self.policy().rest, u16::try_from(again).unwrap_or(u16::MAX), random),
                };
            (end > until).then_some(end << 16 | if resting { times } else { again })
        });
    }

    /// It works, after its rest.
    fn rested(&self, now: u64) {
        let word = self.rest.load(Acquire);
        if word & 0xffff != 0 && word >> 16 <= now {
            // Whoever was faster knows as much.
            let _ = self.rest.compare_exchange(word, 0, AcqRel, Acquire);
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        whole_millis(now.saturating_duration_since(self.epoch))
    }

    fn state(&self) -> State {
        State::unpack(self.state.load(Acquire))
    }

    fn update(&self, mut next: impl FnMut(State) -> Option<State>) {
        // The error is "unchanged".
        let _ = self.state.fetch_update(AcqRel, Acquire, |word| next(State::unpack(word)).map(State::pack));
    }
}

/// The pause after so many times in a row: twice as long each time, with up to a quarter more.
fn pause((first, longest): (Duration, Duration), times: u16, random: u64) -> u64 {
    let doublings = u32::from(times.saturating_sub(1)).min(20);
    let pause = whole_millis(first.saturating_mul(1 << doublings).min(longest));
    pause + random % (pause / 4 + 1)
}

fn left(until: u64, now: u64) -> Option<Duration> {
    until.checked_sub(now).filter(|left| *left > 0).map(Duration::from_millis)
}

/// Milliseconds, within what a packed word has room for.
fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).map_or(u64::MAX >> 20, |millis| millis.min(u64::MAX >> 20))
}

#[cfg(test)]
mod tests;
