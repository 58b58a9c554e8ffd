//! What the node knows of an agent from its own calls: shared by all cores, atomics only.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use parallax_runtime::{confidence::Confidence, env::millis, store::CallOutcome};
use parallax_telemetry::metrics::{AgentMetrics, BreakerState, ProxyOutcome};
use tokio::time::Instant;

use crate::{
    breaker::{
        Phase, Verdict, Window,
        by_pattern::{Breakers, Passes, PatternView},
    },
    config::Current,
    limit::Limit,
    load::Load,
    outlier::Ejection,
    tracker::micros,
};

/// Weight of the newest call in the moving average of latencies.
const LATENCY_WEIGHT: f64 = 0.1;
/// A call that is given up when its hedge was answered is taken to last this many times as long as until then: the mean
/// of what lies beyond any point of a Pareto tail of exponent 3. At 1, an agent all of whose calls end so would look as
/// fast as the hedges.
const UNSEEN: f64 = 1.5;
/// Missed deadlines of hasty callers that are excused between two answers.
const EXCUSES: u32 = 20;
/// No agent answers within this.
const NO_TIME: Duration = Duration::from_millis(10);

/// What callers are told that find no room, at least and at most: after what is usual for the agent.
const ROOM_HINT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// An agent's load and health. It outlives a registration, so that an agent that comes back is met as it left.
#[derive(Debug)]
pub(crate) struct Vitals {
    config: Current,
    breakers: Breakers,
    limit: Limit,
    pub(crate) load: Load,
    pub(crate) metrics: AgentMetrics,
    epoch: Instant,
    in_flight: AtomicUsize,
    connections: AtomicUsize,
    calls: AtomicU64,
    failures: AtomicU64,
    /// Bits of an f64; NaN before the first.
    confidence: AtomicU64,
    /// Bits of an f64, microseconds; NaN before the first.
    latency: AtomicU64,
    /// The same of answers alone.
    answered: AtomicU64,
    /// Calls whose hedges were answered first.
    outrun: Window,
    /// When it last began to have something to do; microseconds since the epoch.
    busy_since: AtomicU64,
    /// Missed deadlines that were excused since the last answer.
    excused: AtomicU32,
    /// Until when it is ejected as slow (milliseconds since the epoch), and how often in a row it has been.
    slow_until: AtomicU64,
    slow_times: AtomicU32,
}

/// Whether an agent is to be chosen for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Admitted,
    /// It asked for a rest, and has so much of it left.
    Resting(Duration),
    Ejected(Ejection),
}

impl Vitals {
    pub(crate) fn new(config: &Current, metrics: AgentMetrics, now: Instant) -> Self {
        Self {
            config: config.clone(),
            breakers: Breakers::new(config, now),
            limit: Limit::new(config.clone()),
            load: Load::new(now),
            metrics,
            epoch: now,
            in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            confidence: AtomicU64::new(f64::NAN.to_bits()),
            latency: AtomicU64::new(f64::NAN.to_bits()),
            answered: AtomicU64::new(f64::NAN.to_bits()),
            outrun: Window::default(),
            busy_since: AtomicU64::new(0),
            excused: AtomicU32::new(0),
            slow_until: AtomicU64::new(0),
            slow_times: AtomicU32::new(0),
        }
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Whether it has room for another call. Cores that ask together may each send one more.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight() < self.limit.get()
    }

    /// The same for one of several. When others have no room, one that has never had a queue would be sent all that
    /// they are not, however little it can do: it is sent no more than the `largest` limit of those that have, if any,
    /// or half as much again as it has shown that it can do.
    pub(crate) fn has_room_beside(&self, largest: impl Fn() -> Option<usize>) -> bool {
        let in_flight = self.in_flight();
        in_flight < self.limit.get()
            && (self.limit.tested().is_some()
                || in_flight < self.limit.untested()
                || largest().is_none_or(|largest| in_flight < largest))
    }

    /// Whether it can be asked beside another that was waited for so long: an extra call takes nobody's place, as it is
    /// idle or had no queue when last looked at and a quarter of its limit is free, and it does not usually take longer.
    pub(crate) fn can_help(&self, waited: Duration) -> bool {
        (self.in_flight() == 0 || !self.limit.has_queue())
            && 4 * self.in_flight() < 3 * self.limit.get()
            && self.latency().is_none_or(|usual| usual <= waited)
    }

    /// Its limit, if it has had a queue.
    pub(crate) fn tested_limit(&self) -> Option<usize> {
        self.limit.tested()
    }

    /// Lets a call for a pattern (none when empty) through the breakers, or says how long to wait before asking
    /// again. The passes go back by [`Vitals::settle`], whatever happens.
    pub(crate) fn enter(&self, pattern: &str, now: Instant) -> Result<Passes, Duration> {
        self.breakers.enter(pattern, now)
    }

    /// Lets a call through although the agent is ejected: see `outlier::readmitted`.
    pub(crate) fn enter_anyway(&self, pattern: &str, now: Instant) -> Passes {
        self.breakers.enter_anyway(pattern, now)
    }

    /// How long until a call for the pattern is let through: `None` when one would be now. Changes nothing.
    pub(crate) fn wait(&self, pattern: &str, now: Instant) -> Option<Duration> {
        self.breakers.wait(pattern, now)
    }

    /// Takes passes back. `random` spreads the probes of agents that failed together.
    pub(crate) fn settle(&self, passes: Passes, verdict: Verdict, now: Instant, random: u64) {
        self.breakers.settle(passes, verdict, now, random);
    }

    /// Whether to choose the agent for a call of a pattern; not for one that names it. Changes nothing.
    pub(crate) fn standing(&self, pattern: &str, now: Instant) -> Standing {
        match self.breakers.wait(pattern, now) {
            None => match self.slow_for(now) {
                None => Standing::Admitted,
                Some(wait) => {
                    let times = self.slow_times.load(Relaxed);
                    Standing::Ejected(Ejection { failing: false, times, wait })
                }
            },
            Some(wait) => match self.breakers.times(pattern) {
                0 => Standing::Resting(wait),
                times => Standing::Ejected(Ejection { failing: true, times: times.into(), wait }),
            },
        }
    }

    /// The share of calls that an agent is due that is new or has recovered: 0.1 at first, 1 after
    /// `slow_start` ([`crate::Config::slow_start`]), in a straight line. Envoy's `slow_start_config` with `aggression`
    /// 1 and `min_weight_percent` 10.
    pub(crate) fn ramp(&self, slow_start: Duration, now: Instant) -> f64 {
        let age = Duration::from_millis(self.millis(now).saturating_sub(self.slow_until.load(Relaxed)));
        let age = self.breakers.own().age(now).min(age);
        if age >= slow_start {
            return 1.0;
        }
        (age.as_secs_f64() / slow_start.as_secs_f64()).max(0.1)
    }

    /// The agent came back, or has another address: what is there is a new process.
    pub(crate) fn begin_anew(&self, now: Instant) {
        self.breakers.own().begin_anew(now);
    }

    /// Calls of the breaker's window that said something of the agent, or of how slow it is.
    pub(crate) fn recent_calls(&self, now: Instant) -> u32 {
        let window = self.config.now().breaker.window;
        self.breakers.own().recent_calls(now) + self.outrun.sum(window, self.millis(now)).0
    }

    /// The moving average of its latency.
    pub(crate) fn latency(&self) -> Option<Duration> {
        number(&self.latency).map(|micros| Duration::from_secs_f64(micros / 1e6))
    }

    /// Whether it is ejected as slower than its group; who names it is served all the same.
    pub(crate) fn slow(&self, now: Instant) -> bool {
        self.slow_for(now).is_some()
    }

    fn slow_for(&self, now: Instant) -> Option<Duration> {
        match self.slow_until.load(Relaxed).saturating_sub(self.millis(now)) {
            0 => None,
            left => Some(Duration::from_millis(left)),
        }
    }

    /// Ejects it as slow: for `first` times the number of times in a row, up to `longest`.
    pub(crate) fn eject_as_slow(&self, (first, longest): (Duration, Duration), now: Instant) -> Duration {
        let times = self.slow_times.load(Relaxed).saturating_add(1);
        let ejection = first.saturating_mul(times).min(longest);
        self.slow_times.store(times, Relaxed);
        self.slow_until.store(self.millis(now + ejection), Relaxed);
        ejection
    }

    /// It kept up with its group for a while: what was counted against it is forgotten, bit by bit.
    pub(crate) fn kept_up(&self) {
        let times = self.slow_times.load(Relaxed);
        if times > 0 {
            self.slow_times.store(times - 1, Relaxed);
        }
    }

    /// A hint for a caller that finds no room: about as long as one call takes.
    pub(crate) fn room_in(&self, random: u64) -> Duration {
        let usual = self.latency().unwrap_or_default().clamp(ROOM_HINT.0, ROOM_HINT.1);
        usual.mul_f64(0.5 + f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX))
    }

    /// A call began; how many were in flight before it.
    pub(crate) fn call_began(&self, now: Instant) -> usize {
        let ahead = self.in_flight.fetch_add(1, Relaxed);
        if ahead == 0 {
            self.busy_since.store(self.micros(now), Relaxed);
        }
        self.metrics.in_flight.inc();
        self.limit.began(ahead);
        ahead
    }

    /// A call ended that began with so many `ahead` of it.
    pub(crate) fn call_ended(&self, ahead: usize, ended: &Ended, now: Instant) {
        let Ended { outcome, verdict, confidence, took, work } = *ended;
        let in_flight = self.in_flight.fetch_sub(1, Relaxed);
        self.metrics.in_flight.dec();
        self.metrics.request(metric(outcome), took);
        self.calls.fetch_add(1, Relaxed);
        if matches!(verdict, Verdict::Sick | Verdict::Away) {
            self.failures.fetch_add(1, Relaxed);
        }
        match (verdict, outcome) {
            (Verdict::Throttled(_), _) => self.limit.turned_away(ahead, self.millis(now)),
            (Verdict::Sick, CallOutcome::DeadlineExceeded) => {
                self.limit.too_late(in_flight, self.millis(now));
            }
            (_, CallOutcome::Answered) if work => {
                self.limit.answered(ahead, in_flight - 1, took, self.millis(now));
            }
            _ => {}
        }
        if let Some(confidence) = confidence {
            self.confidence.store(confidence.get().to_bits(), Relaxed);
            self.metrics.confidence.observe(confidence.get());
            self.load.worth(confidence.get());
        } else if verdict == Verdict::Sick {
            self.load.worth(0.0);
        }
        let micros = took.as_secs_f64() * 1e6;
        // A call that was given up would have taken longer (its latency is censored), and one that was turned away or
        // failed took no time: they never make the agent look faster, or one that fails at once would be the one to ask.
        let cut_short = outcome != CallOutcome::Answered;
        if !work {
            return;
        }
        self.load.observe(took, cut_short, now);
        if !cut_short {
            average(&self.answered, micros);
            if self.excused.load(Relaxed) > 0 {
                self.excused.store(0, Relaxed);
            }
        }
        let before = f64::from_bits(self.latency.load(Relaxed));
        if !cut_short || micros >= before {
            average(&self.latency, micros);
        }
    }

    /// A call that began later, at another agent, has been answered before one that was sent here so long ago.
    pub(crate) fn outrun(&self, took: Duration, now: Instant) {
        let (whole, before) = (took.as_secs_f64() * 1e6 * UNSEEN, f64::from_bits(self.latency.load(Relaxed)));
        if before.is_nan() || whole >= before {
            average(&self.latency, whole);
        }
        self.outrun.count(self.config.now().breaker.window, self.millis(now), true);
    }

    /// What the next call costs here: how long calls took in the mean, in microseconds, times those in flight,
    /// other nodes' too where the agent says so. One that has never answered takes at least as long as it has been at
    /// work, or as somebody has waited for it in vain; 0 when nobody has.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn expected_mean(&self, now: Instant) -> f64 {
        let latency = f64::from_bits(self.latency.load(Relaxed));
        let reported = self.load.report(now).map_or(0.0, |report| f64::from(report.in_flight));
        let in_flight = self.in_flight();
        let latency = match latency.is_nan() {
            true => {
                let busy = self.micros(now).saturating_sub(self.busy_since.load(Relaxed)) as f64;
                self.load.latency(now).max(if in_flight == 0 { 0.0 } else { busy })
            }
            false => latency,
        };
        latency * (reported.max(in_flight as f64) + 1.0)
    }

    /// Whether a missed deadline is no failure of the agent's, or a caller in a hurry could have it ejected for
    /// everybody: it was shorter than answers usually take, or than any does as long as none is known. Only so
    /// often in a row, as an agent that hangs gives no answers either.
    pub(crate) fn excuses(&self, deadline: Duration) -> bool {
        let usual = f64::from_bits(self.answered.load(Relaxed));
        let hasty = if usual.is_nan() { deadline < NO_TIME } else { usual > deadline.as_secs_f64() * 1e6 };
        hasty && self.excused.fetch_add(1, Relaxed) < EXCUSES
    }

    /// The call was not sent.
    pub(crate) fn rejected(&self) {
        self.metrics.request(ProxyOutcome::Rejected, Duration::ZERO);
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.metrics.upstream_connections.inc();
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.fetch_sub(1, Relaxed);
        self.metrics.upstream_connections.dec();
    }

    /// Shows what changes with time alone as metrics, when they are looked at.
    pub(crate) fn show(&self, now: Instant) {
        self.metrics.set_breaker(match self.breakers.own().view(now).0 {
            Phase::Closed => BreakerState::Closed,
            Phase::HalfOpen => BreakerState::HalfOpen,
            Phase::Open => BreakerState::Open,
            Phase::Throttled => BreakerState::Throttled,
        });
        let ejected = self.breakers.view(now).iter().filter(|view| view.breaker != Phase::Closed).count();
        self.metrics.ejected_patterns.set(i64::try_from(ejected).unwrap_or(i64::MAX));
        self.metrics.limit.set(i64::try_from(self.limit.get()).unwrap_or(i64::MAX));
        self.metrics.ejected_as_slow.set(self.slow(now).into());
    }

    /// For people.
    pub(crate) fn view(&self, now: Instant) -> View {
        let (breaker, consecutive_failures) = self.breakers.own().view(now);
        View {
            in_flight: self.in_flight(),
            connections: self.connections.load(Relaxed),
            calls: self.calls.load(Relaxed),
            failures: self.failures.load(Relaxed),
            breaker,
            consecutive_failures,
            retry_in_ms: self.breakers.wait("", now).map(millis),
            patterns: self.breakers.view(now),
            limit: self.limit.get(),
            slow_for_ms: self.slow_for(now).map(millis),
            last_confidence: number(&self.confidence),
            ewma_latency_ms: number(&self.latency).map(|micros| micros / 1e3),
            unloaded_latency_ms: self.limit.unloaded().map(|unloaded| unloaded.as_secs_f64() * 1e3),
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.epoch))
    }

    fn micros(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.epoch))
    }
}

/// How a call went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: CallOutcome,
    pub(crate) verdict: Verdict,
    pub(crate) confidence: Option<Confidence>,
    pub(crate) took: Duration,
    /// Whether it asked for work. How long other calls take, such as those after its health, says nothing of that.
    pub(crate) work: bool,
}

fn number(cell: &AtomicU64) -> Option<f64> {
    Some(f64::from_bits(cell.load(Relaxed))).filter(|n| !n.is_nan())
}

fn metric(outcome: CallOutcome) -> ProxyOutcome {
    match outcome {
        CallOutcome::Answered => ProxyOutcome::Ok,
        CallOutcome::Failed => ProxyOutcome::Failed,
        CallOutcome::Unreachable => ProxyOutcome::Unreachable,
        CallOutcome::DeadlineExceeded => ProxyOutcome::Timeout,
        CallOutcome::Cancelled => ProxyOutcome::Cancelled,
    }
}

/// An agent's vitals at one moment.
#[derive(Debug, serde::Serialize)]
pub(crate) struct View {
    pub(crate) in_flight: usize,
    pub(crate) connections: usize,
    /// Calls that have ended.
    pub(crate) calls: u64,
    /// Those of them that count against the agent.
    pub(crate) failures: u64,
    pub(crate) breaker: Phase,
    pub(crate) consecutive_failures: u16,
    /// Until the agent's breaker lets a call through, when it does not.
    pub(crate) retry_in_ms: Option<u64>,
    pub(crate) patterns: Vec<PatternView>,
    /// Calls in flight that it is sent at most.
    pub(crate) limit: usize,
    /// How long it is still left out as slower than its group, when it is.
    pub(crate) slow_for_ms: Option<u64>,
    pub(crate) last_confidence: Option<f64>,
    pub(crate) ewma_latency_ms: Option<f64>,
    /// What a call takes that meets no others.
    pub(crate) unloaded_latency_ms: Option<f64>,
}

/// Into an average that forgets. Two cores may overwrite each other: it bears that.
fn average(mean: &AtomicU64, micros: f64) {
    let before = f64::from_bits(mean.load(Relaxed));
    let after = if before.is_nan() { micros } else { before + LATENCY_WEIGHT * (micros - before) };
    mean.store(after.to_bits(), Relaxed);
}

#[cfg(test)]
mod tests;
