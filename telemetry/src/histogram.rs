use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// A histogram with fixed buckets that is recorded without a lock: the one of `prometheus-client` takes one,
/// which the data plane's cores would wait for on every call. Clones share their counts.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Upper bounds, inclusive, ascending.
    bounds: &'static [f64],
    /// Per bucket, not cumulative; the last is above every bound.
    counts: Box<[AtomicU64]>,
    /// The bits of an f64.
    sum: AtomicU64,
}

impl Histogram {
    /// `bounds` are the buckets' inclusive upper bounds, ascending; one to infinity is added.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { bounds, counts, sum: AtomicU64::new(0) }))
    }

    /// Counts one value. NaN and infinities are ignored: they would spoil the sum for good.
    pub fn observe(&self, value: f64) {
        if !value.is_finite() {
            return;
        }
        let Inner { bounds, counts, sum } = &*self.0;
        counts[bounds.partition_point(|bound| *bound < value)].fetch_add(1, Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The update never refuses, so it ends with success.
        let _ = sum.fetch_update(Relaxed, Relaxed, add);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        f64::from_bits(self.0.sum.load(Relaxed))
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    /// A value that is recorded meanwhile may be in the count and not yet in the sum; the count always is the
    /// sum of the buckets.
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.0.counts.iter().map(|count| count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.sum(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn values_fall_into_their_buckets() {
        let histogram = Histogram::new(&[0.5, 1.0]);
        for value in [0.0, 0.5, 0.6, 1.0, 1.1, 7.0, f64::INFINITY, f64::NAN] {
            histogram.observe(value);
        }
        let counts: Vec<_> = histogram.0.counts.iter().map(|count| count.load(Relaxed)).collect();
        assert_eq!(counts, [2, 2, 2]);
        assert_eq!(histogram.count(), 6);

        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("h", "Help", histogram);
        let (_, text) = crate::metrics::encode(&registry);
        for line in
            [r#"h_bucket{le="0.5"} 2"#, r#"h_bucket{le="1.0"} 4"#, r#"h_bucket{le="+Inf"} 6"#, "h_count 6"]
        {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let histogram = Histogram::new(&[1.0]);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| histogram.observe(0.5)));
            }
        });
        assert_eq!((histogram.count(), histogram.sum()), (40_000, 20_000.0));
    }
}
