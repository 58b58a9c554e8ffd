//! How loaded an agent is, as it tells the data plane: with each answer, and when its health is asked for.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use parallax_runtime::wire;
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};

/// Weight of the newest answer in the moving average of service times.
const WEIGHT: f64 = 0.2;

/// Tasks under way, and how long one takes.
#[derive(Default)]
pub(crate) struct Load {
    in_flight: AtomicUsize,
    /// Bits of an f64, milliseconds; 0 before the first.
    service_time: AtomicU64,
}

/// One task. It is under way until this is dropped.
pub(crate) struct Working<'a> {
    load: &'a Load,
    since: Instant,
}

impl Load {
    pub(crate) fn begin(&self) -> Working<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        Working { load: self, since: Instant::now() }
    }

    fn service_time(&self) -> f64 {
        f64::from_bits(self.service_time.load(Relaxed))
    }

    /// As ORCA has it.
    pub(crate) fn report(&self, metadata: &mut MetadataMap) {
        let (in_flight, service_time) = (self.in_flight.load(Relaxed), self.service_time());
        let text = format!(
            "TEXT named_metrics.in_flight={in_flight},named_metrics.service_time_ms={service_time:.3}"
        );
        metadata.insert(wire::LOAD, MetadataValue::try_from(text).expect("visible ASCII"));
    }

    /// For a health check.
    pub(crate) fn details(&self) -> HashMap<String, String> {
        let service_time = format!("{:.3}", self.service_time());
        HashMap::from([
            (wire::LOAD_IN_FLIGHT.to_owned(), self.in_flight.load(Relaxed).to_string()),
            (wire::LOAD_SERVICE_TIME.to_owned(), service_time),
        ])
    }
}

impl Working<'_> {
    /// It has ended well: what it took counts.
    pub(crate) fn answered(self) {
        let (took, before) = (self.since.elapsed().as_secs_f64() * 1e3, self.load.service_time());
        let after = if before == 0.0 { took } else { before + WEIGHT * (took - before) };
        self.load.service_time.store(after.to_bits(), Relaxed);
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Relaxed);
    }
}
