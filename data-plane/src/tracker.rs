//! Carries what calls showed of agents to the store, in batches, off the path of calls.
//!
//! A queue that is full, or a store that keeps failing, loses samples and counts them; it never holds up a call.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use parallax_runtime::{
    confidence::Confidence,
    env::Env,
    store::{CallOutcome, ConfidenceStore, Sample},
};
use parallax_telemetry::metrics::DataPlaneMetrics;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tracing::warn;

use crate::{call::About, directory::Entry, directory::follow::jitter};

/// Samples per batch, and how long the first of one waits for others.
const BATCH: (usize, Duration) = (500, Duration::from_millis(100));
/// Tries to store one batch, the first pause between two (it doubles), and how long one may take.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// A call that ended, as the path hands it over: made into a [`Sample`] elsewhere.
pub(crate) struct Seen {
    pub(crate) entry: Arc<Entry>,
    pub(crate) about: About,
    pub(crate) outcome: CallOutcome,
    pub(crate) confidence: Option<Confidence>,
    pub(crate) took: Duration,
    pub(crate) at: Timestamp,
}

/// The path's end of the queue.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Seen>,
    metrics: DataPlaneMetrics,
}

impl Recorder {
    /// Never waits.
    pub(crate) fn record(&self, seen: Seen) {
        if self.queue.try_send(seen).is_err() {
            self.metrics.confidence_samples_dropped.inc();
        }
    }
}

/// The store's end of the queue.
pub(crate) struct Tracker {
    queue: mpsc::Receiver<Seen>,
    store: Arc<dyn ConfidenceStore>,
    env: Arc<dyn Env>,
    metrics: DataPlaneMetrics,
}

/// A queue of `capacity` samples.
pub(crate) fn tracker(
    capacity: usize,
    store: Arc<dyn ConfidenceStore>,
    env: Arc<dyn Env>,
    metrics: DataPlaneMetrics,
) -> (Recorder, Tracker) {
    let (sender, queue) = mpsc::channel(capacity);
    (Recorder { queue: sender, metrics: metrics.clone() }, Tracker { queue, store, env, metrics })
}

impl Tracker {
    /// Until every recorder is gone and what they recorded is stored.
    pub(crate) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH.0);
        while self.queue.recv_many(&mut batch, BATCH.0).await > 0 {
            let fill = async {
                while batch.len() < BATCH.0 {
                    if self.queue.recv_many(&mut batch, BATCH.0 - batch.len()).await == 0 {
                        break;
                    }
                }
            };
            // Late is no error: the batch goes as it is.
            _ = timeout(BATCH.1, fill).await;
            let samples: Vec<Sample> = batch.drain(..).map(|seen| sample(seen, self.env.id())).collect();
            self.store(&samples).await;
        }
    }

    async fn store(&self, samples: &[Sample]) {
        let mut pause = PAUSE;
        for attempt in 1..=TRIES {
            let failed = match timeout(TRY_TIMEOUT, self.store.append(samples)).await {
                Ok(Ok(())) => return,
                Ok(Err(e)) => e.to_string(),
                Err(_) => format!("no answer within {} s", TRY_TIMEOUT.as_secs()),
            };
            warn!(attempt, samples = samples.len(), "confidence samples could not be stored: {failed}");
            if attempt < TRIES {
                sleep(jitter(pause, self.env.random())).await;
                pause *= 2;
            }
        }
        self.metrics.confidence_samples_dropped.inc_by(samples.len() as u64);
    }
}

fn sample(seen: Seen, id: String) -> Sample {
    let key = &seen.entry.agent.key;
    Sample {
        id,
        tenant: key.tenant.clone(),
        agent_id: key.id.clone(),
        pattern: seen.about.pattern,
        task: seen.about.task,
        outcome: seen.outcome,
        confidence: seen.confidence,
        duration_us: micros(seen.took),
        at: seen.at,
    }
}

/// Microseconds, saturating.
pub(crate) fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
