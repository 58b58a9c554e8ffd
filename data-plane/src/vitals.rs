//! What the node knows of an agent from its own calls: shared by all cores, atomics only.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use parallax_runtime::{confidence::Confidence, store::CallOutcome};
use parallax_telemetry::metrics::{AgentMetrics, BreakerState, ProxyOutcome};
use tokio::time::Instant;

use crate::{
    breaker::{Breaker, Phase, Policy, Verdict},
    load::Load,
};

/// Weight of the newest call in the moving average of latencies.
const LATENCY_WEIGHT: f64 = 0.1;

/// An agent's load and health. It outlives a registration, so that an agent that comes back is met as it left.
#[derive(Debug)]
pub(crate) struct Vitals {
    pub(crate) breaker: Breaker,
    pub(crate) load: Load,
    pub(crate) metrics: AgentMetrics,
    in_flight: AtomicUsize,
    connections: AtomicUsize,
    calls: AtomicU64,
    failures: AtomicU64,
    /// Bits of an f64; NaN before the first.
    confidence: AtomicU64,
    /// Bits of an f64, microseconds; NaN before the first.
    latency: AtomicU64,
}

impl Vitals {
    pub(crate) fn new(policy: Policy, metrics: AgentMetrics, now: Instant) -> Self {
        Self {
            breaker: Breaker::new(policy, now),
            load: Load::new(now),
            metrics,
            in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            confidence: AtomicU64::new(f64::NAN.to_bits()),
            latency: AtomicU64::new(f64::NAN.to_bits()),
        }
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    pub(crate) fn call_began(&self) {
        self.in_flight.fetch_add(1, Relaxed);
        self.metrics.in_flight.inc();
    }

    pub(crate) fn call_ended(
        &self,
        outcome: CallOutcome,
        verdict: Verdict,
        confidence: Option<Confidence>,
        took: Duration,
        now: Instant,
    ) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.metrics.in_flight.dec();
        self.metrics.request(metric(outcome), took);
        self.calls.fetch_add(1, Relaxed);
        if verdict == Verdict::Sick {
            self.failures.fetch_add(1, Relaxed);
        }
        if let Some(confidence) = confidence {
            self.confidence.store(confidence.get().to_bits(), Relaxed);
            self.metrics.confidence.observe(confidence.get());
            self.load.worth(confidence.get());
        } else if verdict == Verdict::Sick {
            self.load.worth(0.0);
        }
        let micros = took.as_secs_f64() * 1e6;
        let before = f64::from_bits(self.latency.load(Relaxed));
        // A call that was given up would have taken longer: it never makes the agent look faster. Neither does
        // one that failed, or the agent that fails at once would be the one to ask.
        let given_up = outcome != CallOutcome::Answered;
        self.load.observe(took, given_up, now);
        if given_up && (before.is_nan() || micros < before) {
            return;
        }
        let after = if before.is_nan() { micros } else { before + LATENCY_WEIGHT * (micros - before) };
        // Two cores may overwrite each other: an average bears that.
        self.latency.store(after.to_bits(), Relaxed);
    }

    /// What the next call is expected to take, in microseconds, going by how long calls took in the mean; 0
    /// when nothing is known.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn expected_mean(&self) -> f64 {
        let latency = f64::from_bits(self.latency.load(Relaxed));
        if latency.is_nan() { 0.0 } else { latency * (self.in_flight() as f64 + 1.0) }
    }

    /// Whether a deadline is shorter than the agent's answers usually take: missing it is no failure of the
    /// agent's, or a caller in a hurry could have it ejected for everybody.
    pub(crate) fn usually_slower_than(&self, deadline: Duration) -> bool {
        f64::from_bits(self.latency.load(Relaxed)) > deadline.as_secs_f64() * 1e6
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

    /// Shows the breaker's state as a metric; it changes with time alone, so it is shown when looked at.
    pub(crate) fn show_breaker(&self, now: Instant) {
        self.metrics.set_breaker(match self.breaker.view(now).0 {
            Phase::Closed => BreakerState::Closed,
            Phase::HalfOpen => BreakerState::HalfOpen,
            Phase::Open => BreakerState::Open,
        });
    }

    /// For people.
    pub(crate) fn view(&self, now: Instant) -> View {
        let (breaker, consecutive_failures) = self.breaker.view(now);
        let number = |cell: &AtomicU64| Some(f64::from_bits(cell.load(Relaxed))).filter(|n| !n.is_nan());
        View {
            in_flight: self.in_flight(),
            connections: self.connections.load(Relaxed),
            calls: self.calls.load(Relaxed),
            failures: self.failures.load(Relaxed),
            breaker,
            consecutive_failures,
            last_confidence: number(&self.confidence),
            ewma_latency_ms: number(&self.latency).map(|micros| micros / 1e3),
        }
    }
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
    in_flight: usize,
    connections: usize,
    /// Calls that have ended.
    calls: u64,
    /// Those of them that count against the agent.
    failures: u64,
    breaker: Phase,
    consecutive_failures: u16,
    last_confidence: Option<f64>,
    ewma_latency_ms: Option<f64>,
}

#[cfg(test)]
mod tests {
    use parallax_telemetry::{Registry, metrics::DataPlaneMetrics};

    use super::*;

    #[test]
    fn a_hurried_caller_makes_an_agent_neither_fast_nor_sick() {
        let metrics = DataPlaneMetrics::new(&mut Registry::default()).agent("default", "a");
        let vitals = Vitals::new(Policy::default(), metrics, Instant::now());
        let (hasty, patient) = (Duration::from_millis(1), Duration::from_millis(200));
        let end = |outcome, took| {
            vitals.call_began();
            vitals.call_ended(outcome, Verdict::Silent, None, took, Instant::now());
        };
        end(CallOutcome::DeadlineExceeded, hasty);
        assert!(!vitals.usually_slower_than(hasty), "nothing is known of it yet");
        end(CallOutcome::Answered, Duration::from_millis(100));
        (0..1000).for_each(|_| end(CallOutcome::DeadlineExceeded, hasty));
        assert!(vitals.usually_slower_than(hasty));
        // One that hangs looks slower with each deadline, and never slower than that.
        (0..1000).for_each(|_| end(CallOutcome::DeadlineExceeded, patient));
        assert!(vitals.usually_slower_than(Duration::from_millis(199)));
        assert!(!vitals.usually_slower_than(patient + hasty));
        assert_eq!(vitals.in_flight(), 0);
    }
}
