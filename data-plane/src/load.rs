//! How loaded an agent is: by the calls that this node has seen, and by what the agent says of itself.
//!
//! Atomics only: every core reads it to choose, and writes it when a call ends. Two cores may overwrite each
//! other's sample, which an average bears.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use parallax_runtime::wire;
use tokio::time::Instant;

/// Where an agent's answers tell of it.
pub(crate) const REPORT: HeaderName = HeaderName::from_static(wire::LOAD);

/// What is older says nothing any more; half of that, and the agent is probed.
const FRESH: Duration = Duration::from_secs(1);
/// Time in which a past latency loses most of its weight (Finagle's `decayTime`).
const DECAY: f64 = 10.0;
/// Weight of the newest answer in the moving average of qualities.
const QUALITY_WEIGHT: f64 = 0.05;

/// What an agent says of its load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Report {
    /// Calls that it works on, whoever sent them.
    pub(crate) in_flight: u32,
    /// How long one takes it, as it measures that. Milliseconds.
    pub(crate) service_time: f32,
}

impl Report {
    /// [`REPORT`]'s. What cannot be read is as good as absent.
    pub(crate) fn read(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?.strip_prefix("TEXT ")?;
        let named = |wanted: &str| {
            let mut pairs = text.split(',').filter_map(|pair| pair.trim().split_once('='));
            let (_, value) = pairs.find(|(name, _)| name.strip_prefix("named_metrics.") == Some(wanted))?;
            value.parse().ok()
        };
        Self::of(named(wire::LOAD_IN_FLIGHT)?, named(wire::LOAD_SERVICE_TIME)?)
    }

    /// Of a health check's details.
    pub(crate) fn of_details(details: &std::collections::HashMap<String, String>) -> Option<Self> {
        let named = |name: &str| details.get(name)?.parse().ok();
        Self::of(named(wire::LOAD_IN_FLIGHT)?, named(wire::LOAD_SERVICE_TIME)?)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn of(in_flight: f64, service_time: f64) -> Option<Self> {
        let sound = |n: f64| n.is_finite() && n >= 0.0;
        (sound(in_flight) && sound(service_time))
            .then_some(Self { in_flight: in_flight as u32, service_time: service_time as f32 })
    }
}

/// What is known of an agent's pace and worth.
#[derive(Debug)]
pub(crate) struct Load {
    epoch: Instant,
    /// Bits of an f64, microseconds; zero before the first.
    latency: AtomicU64,
    /// When it was last seen, in microseconds since the epoch.
    seen: AtomicU64,
    /// In flight, and bits of an f32.
    report: AtomicU64,
    /// When it came, in milliseconds since the epoch, and one; zero before the first.
    reported: AtomicU64,
    /// When the last probe was begun, likewise.
    probed: AtomicU64,
    /// Bits of an f64, 0 to 1; NaN before the first.
    quality: AtomicU64,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            latency: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            report: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            probed: AtomicU64::new(0),
            quality: AtomicU64::new(f64::NAN.to_bits()),
        }
    }

    /// A call took so long; one that was given up, at least so long.
    ///
    /// A peak-sensitive moving average (Finagle's `peakEwma`): what is worse counts at once, what is better in
    /// time. What was given up is a censored sample: it can make an agent look slower and never faster.
    pub(crate) fn observe(&self, took: Duration, given_up: bool, now: Instant) {
        let (micros, before) = (took.as_secs_f64() * 1e6, f64::from_bits(self.latency.load(Relaxed)));
        if given_up && micros <= before {
            return;
        }
        let after = if micros >= before { micros } else { micros + (before - micros) * self.weight(now) };
        self.latency.store(after.to_bits(), Relaxed);
        self.seen.store(self.micros(now), Relaxed);
    }

    /// What an answer was worth: the confidence it stated, or nothing for one that failed.
    pub(crate) fn worth(&self, quality: f64) {
        let before = f64::from_bits(self.quality.load(Relaxed));
        let after = if before.is_nan() { quality } else { before + QUALITY_WEIGHT * (quality - before) };
        self.quality.store(after.to_bits(), Relaxed);
    }

    /// What the next answer will be worth, going by the last ones. 0 to 1.
    pub(crate) fn quality(&self) -> Option<f64> {
        Some(f64::from_bits(self.quality.load(Relaxed))).filter(|quality| !quality.is_nan())
    }

    /// What a call is expected to take, in microseconds; zero when nothing is known. It fades while nothing is
    /// seen, so that an agent that was slow is asked again.
    pub(crate) fn latency(&self, now: Instant) -> f64 {
        f64::from_bits(self.latency.load(Relaxed)) * self.weight(now)
    }

    /// How much what was seen last still weighs.
    fn weight(&self, now: Instant) -> f64 {
        let age = self.micros(now).saturating_sub(self.seen.load(Relaxed));
        #[allow(clippy::cast_precision_loss)]
        (-(age as f64) / 1e6 / DECAY).exp()
    }

    /// The agent has said how loaded it is.
    pub(crate) fn reports(&self, report: Report, now: Instant) {
        let word = u64::from(report.in_flight) << 32 | u64::from(report.service_time.to_bits());
        self.report.store(word, Relaxed);
        self.reported.store(self.millis(now) + 1, Relaxed);
    }

    /// What it has said lately.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn report(&self, now: Instant) -> Option<Report> {
        let age = self.reported_ago(now)?;
        let word = self.report.load(Relaxed);
        let report = Report { in_flight: (word >> 32) as u32, service_time: f32::from_bits(word as u32) };
        (age < FRESH).then_some(report)
    }

    /// Whether to ask how loaded it is: it has said so before, and not for a while. True for one caller.
    pub(crate) fn probe(&self, now: Instant) -> bool {
        if self.reported_ago(now).is_none_or(|age| age < FRESH / 2) {
            return false;
        }
        let (before, now) = (self.probed.load(Relaxed), self.millis(now) + 1);
        let due =
            before == 0 || now.saturating_sub(before) >= u64::try_from(FRESH.as_millis()).unwrap_or(1) / 2;
        due && self.probed.compare_exchange(before, now, Relaxed, Relaxed).is_ok()
    }

    fn reported_ago(&self, now: Instant) -> Option<Duration> {
        let reported = self.reported.load(Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.millis(now).saturating_sub(reported)))
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    fn millis(&self, now: Instant) -> u64 {
        self.micros(now) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_nonsense_is_not() {
        let report = Report::read(&HeaderValue::from_static(
            "TEXT cpu_utilization=0.3, named_metrics.in_flight=7,named_metrics.service_time_ms=12.5",
        ));
        assert_eq!(report, Some(Report { in_flight: 7, service_time: 12.5 }));
        for nonsense in [
            "named_metrics.in_flight=7,named_metrics.service_time_ms=1",
            "TEXT named_metrics.in_flight=7",
            "TEXT named_metrics.in_flight=-7,named_metrics.service_time_ms=1",
            "TEXT named_metrics.in_flight=NaN,named_metrics.service_time_ms=1",
        ] {
            assert_eq!(Report::read(&HeaderValue::from_static(nonsense)), None, "{nonsense}");
        }
    }

    #[test]
    fn latency_peaks_at_once_and_falls_in_time() {
        let start = Instant::now();
        let (load, at) = (Load::new(start), |seconds| start + Duration::from_secs(seconds));
        assert!(load.latency(at(1)) < 1.0);
        load.observe(Duration::from_millis(10), false, at(1));
        load.observe(Duration::from_millis(80), false, at(1));
        assert!((load.latency(at(1)) - 80_000.0).abs() < 1.0);
        load.observe(Duration::from_millis(10), false, at(2));
        let after = load.latency(at(2));
        assert!((70_000.0..79_000.0).contains(&after), "{after}");
        assert!(load.latency(at(60)) < 1000.0, "what is long ago weighs nothing");
    }

    #[test]
    fn what_was_given_up_is_at_least_so_slow() {
        let start = Instant::now();
        let load = Load::new(start);
        load.observe(Duration::from_millis(50), false, start);
        load.observe(Duration::from_millis(10), true, start);
        assert!((load.latency(start) - 50_000.0).abs() < 1.0);
        load.observe(Duration::from_millis(90), true, start);
        assert!((load.latency(start) - 90_000.0).abs() < 1.0);
    }

    #[test]
    fn who_has_reported_is_probed_by_one_when_that_is_old() {
        let start = Instant::now();
        let (load, at) = (Load::new(start), |millis| start + Duration::from_millis(millis));
        assert!(!load.probe(at(5000)), "it never said anything");
        let report = Report { in_flight: 3, service_time: 2.0 };
        load.reports(report, at(5000));
        assert_eq!(load.report(at(5999)), Some(report));
        assert_eq!(load.report(at(6000)), None);
        assert!(!load.probe(at(5400)));
        assert!(load.probe(at(5500)));
        assert!(!load.probe(at(5501)), "one is under way");
        assert!(load.probe(at(6000)), "it was lost, perhaps");
    }
}
