//! The agents of one tenant that have one capability, and what is known of them together: how many calls
//! they have had, how long these take, and what is left of the budgets for retries and hedges.
//!
//! One group is one cluster in Envoy's words. What it knows outlives a snapshot of the directory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::{Current, Retry},
    directory::Entry,
};

/// Who can be asked for one capability.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) members: Vec<Arc<Entry>>,
    pub(crate) shared: Arc<Shared>,
}

/// What all cores know of a group.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) capability: String,
    config: Current,
    pub(crate) retries: Budget,
    pub(crate) hedges: Budget,
    /// Of calls that may be hedged.
    pub(crate) latencies: Latencies,
    /// Calls so far.
    calls: AtomicU64,
    epoch: Instant,
}

impl Shared {
    pub(crate) fn new(capability: &str, config: &Current, now: Instant) -> Self {
        Self {
            capability: capability.to_owned(),
            config: config.clone(),
            retries: Budget::default(),
            hedges: Budget::default(),
            latencies: Latencies::default(),
            calls: AtomicU64::new(0),
            epoch: now,
        }
    }

    /// Counts a call; how many there were before.
    pub(crate) fn count(&self) -> u64 {
        self.calls.fetch_add(1, Relaxed)
    }

    /// Whether another retry is within the budget; takes it.
    pub(crate) fn retry(&self, now: Instant) -> bool {
        let Retry { budget_percent, min_per_second, .. } = self.config.now().retry;
        self.retries.withdraw((budget_percent, min_per_second), self.earning(now))
    }

    /// Whether another hedge is within the budget; takes it.
    pub(crate) fn hedge(&self, now: Instant) -> bool {
        let percent = self.config.now().hedge.budget_percent;
        self.hedges.withdraw((percent, 0), self.earning(now))
    }

    /// Calls so far, and since when.
    fn earning(&self, now: Instant) -> (u64, Duration) {
        (self.calls.load(Relaxed), now.saturating_duration_since(self.epoch))
    }
}

/// What extra calls may cost: a share of the calls, and a few each second beside that.
///
/// A token bucket that calls fill (Finagle's `RetryBudget`; Envoy's `retry_budget.budget_percent`). When all
/// agents of a group fail, the load on them grows by the share and no more.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Hundredths of a call, of all that was ever earned.
    spent: AtomicU64,
}

/// Hundredths of a call.
const CALL: u64 = 100;
/// What is not spent is kept up to this many calls; and no more than so many are owed when the share is made smaller.
const SAVED: u64 = 100 * CALL;

impl Budget {
    /// What was withdrawn was not used.
    pub(crate) fn give_back(&self) {
        self.spent.fetch_sub(CALL, Relaxed);
    }

    fn withdraw(&self, (percent, per_second): (u32, u32), (calls, age): (u64, Duration)) -> bool {
        // A fresh group has a second's worth.
        let seconds = u64::try_from(age.as_millis()).unwrap_or(u64::MAX / 1_000_000) + 1000;
        let earned = calls * u64::from(percent) + seconds * u64::from(per_second) * CALL / 1000;
        let mut granted = false;
        let spend = |spent: u64| {
            let spent = spent.clamp(earned.saturating_sub(SAVED), earned + SAVED);
            granted = spent + CALL <= earned;
            Some(if granted { spent + CALL } else { spent })
        };
        self.spent.fetch_update(Relaxed, Relaxed, spend).is_ok_and(|_| granted)
    }
}

/// Four buckets for each doubling, from 1 µs on.
const BUCKETS: usize = 128;
/// Calls after which all counts are halved: what is old counts less.
const HALVED_AT: u32 = 4096;
/// Calls below which nothing is said.
const ENOUGH: u32 = 20;

/// A quantile of how long calls take: counts in buckets that grow by a fifth, and forget.
#[derive(Debug)]
pub(crate) struct Latencies {
    counts: [AtomicU32; BUCKETS],
    total: AtomicU32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU32::new(0)), total: AtomicU32::new(0) }
    }
}

impl Latencies {
    pub(crate) fn record(&self, took: Duration) {
        self.counts[bucket(took)].fetch_add(1, Relaxed);
        if self.total.fetch_add(1, Relaxed) + 1 == HALVED_AT {
            let halve = |count: &AtomicU32| {
                let before = count.load(Relaxed);
                count.fetch_sub(before / 2, Relaxed);
                before - before / 2
            };
            let total = self.counts.iter().map(halve).sum();
            self.total.store(total, Relaxed);
        }
    }

    /// At least so long did that share (0 to 1) of the calls take at most; `None` before there are enough.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        let total = self.total.load(Relaxed);
        if total < ENOUGH {
            return None;
        }
        let rank = (f64::from(total) * share).ceil();
        let mut seen = 0.0;
        let index = self.counts.iter().position(|count| {
            seen += f64::from(count.load(Relaxed));
            seen >= rank
        });
        Some(upper(index.unwrap_or(BUCKETS - 1)))
    }
}

#[allow(clippy::cast_possible_truncation)]
fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let octave = micros.ilog2() as usize;
    // The two bits below the highest one.
    let quarter = if octave >= 2 { (micros >> (octave - 2)) & 3 } else { (micros << (2 - octave)) & 3 };
    (octave * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The end of a bucket.
fn upper(bucket: usize) -> Duration {
    let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
    Duration::from_micros(((1u64 << octave) * (5 + quarter)).div_ceil(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_of_the_calls_and_a_few_each_second() {
        let second = Duration::from_secs(1);
        let budget = Budget::default();
        let fifth = |calls| budget.withdraw((20, 0), (calls, second));
        assert!(!fifth(4), "a fifth of four is less than one");
        assert_eq!((5..=100).filter(|calls| fifth(*calls)).count(), 20);
        assert_eq!((0..1000).filter(|_| fifth(100_000)).count(), 100, "what is saved is bounded");
        let tenth = |calls| budget.withdraw((10, 0), (calls, second));
        assert!(!tenth(100_000), "twice as much was spent as that");
        assert_eq!((100_000..102_000).filter(|calls| tenth(*calls)).count(), 99, "what is owed is bounded");

        let budget = Budget::default();
        let granted = |age| (0..10).filter(|_| budget.withdraw((0, 3), (0, age))).count();
        assert_eq!((granted(Duration::ZERO), granted(second * 2)), (3, 6));
    }

    #[test]
    fn a_quantile_is_within_a_fifth_and_follows() {
        let latencies = Latencies::default();
        for millis in 1..=19 {
            latencies.record(Duration::from_millis(millis));
        }
        assert_eq!(latencies.quantile(0.95), None, "too few");
        for millis in 1..=1000 {
            latencies.record(Duration::from_millis(millis));
        }
        let p95 = latencies.quantile(0.95).unwrap().as_secs_f64();
        assert!((0.95..0.95 * 1.25).contains(&p95), "{p95}");
        for _ in 0..60_000 {
            latencies.record(Duration::from_millis(10));
        }
        let p95 = latencies.quantile(0.95).unwrap().as_secs_f64();
        assert!((0.010..0.0125).contains(&p95), "what was long ago is forgotten: {p95}");
    }

    #[test]
    fn every_duration_has_a_bucket_that_ends_after_it() {
        for micros in (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + (1 << bit) / 3]) {
            let took = Duration::from_micros(micros);
            let bucket = bucket(took);
            if bucket < BUCKETS - 1 {
                assert!(upper(bucket) >= took, "{micros} µs in {bucket}, which ends at {:?}", upper(bucket));
                assert!(upper(bucket).as_micros() <= u128::from(micros.max(1)) * 5 / 4 + 1);
            }
        }
    }
}
