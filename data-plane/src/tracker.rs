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

use crate::{ask::About, directory::Entry, directory::follow::jitter};

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
                loop {
                    let room = BATCH.0 - batch.len();
                    if room == 0 || self.queue.recv_many(&mut batch, room).await == 0 {
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use parallax_proto::{controlplane::v1 as wire, registry::AgentRegistration};
    use parallax_runtime::{
        env::Simulated,
        store::{Result, SampleQuery, StoreError},
    };
    use parallax_telemetry::Registry;
    use std::sync::Mutex;
    use tokio::time::Instant;

    use super::*;
    use crate::directory::Book;

    /// Fails so often, then keeps what it is given.
    #[derive(Default)]
    struct Shaky {
        failures: Mutex<u32>,
        batches: Mutex<Vec<Vec<Sample>>>,
    }

    #[async_trait]
    impl ConfidenceStore for Shaky {
        async fn append(&self, samples: &[Sample]) -> Result<()> {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(StoreError::Failed("disk full".to_owned()));
            }
            self.batches.lock().unwrap().push(samples.to_vec());
            Ok(())
        }

        async fn query(&self, _: &SampleQuery) -> Result<Vec<Sample>> {
            Ok(Vec::new())
        }
    }

    fn seen(metrics: &DataPlaneMetrics) -> Seen {
        let mut book = Book::new(Arc::default(), metrics.clone());
        let registration = AgentRegistration { id: "a".into(), endpoint: "h:1".into(), ..Default::default() };
        let record = wire::AgentRecord {
            tenant: "t".into(),
            registration: Some(registration),
            transport: wire::Transport::Mtls.into(),
        };
        book.upsert(record, Instant::now()).unwrap();
        let snapshot = book.snapshot(1, Instant::now());
        Seen {
            entry: snapshot.entries().next().unwrap().clone(),
            about: About::default(),
            outcome: CallOutcome::Answered,
            confidence: Confidence::stated(0.5),
            took: Duration::from_millis(3),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// What a store that fails so often has in the end of so many samples, in a queue of 1200; and the losses.
    async fn run(failures: u32, samples: usize) -> (Vec<usize>, u64) {
        let store = Arc::new(Shaky { failures: Mutex::new(failures), ..Shaky::default() });
        let metrics = DataPlaneMetrics::new(&mut Registry::default());
        let (recorder, tracker) = tracker(1200, store.clone(), Arc::new(Simulated::new(1)), metrics.clone());
        // Nobody takes them yet: what is too much is lost, and nothing waits.
        (0..samples).for_each(|_| recorder.record(seen(&metrics)));
        drop(recorder);
        tracker.run().await;
        let batches = store.batches.lock().unwrap();
        (batches.iter().map(Vec::len).collect(), metrics.confidence_samples_dropped.get())
    }

    #[tokio::test(start_paused = true)]
    async fn samples_go_in_batches_and_what_the_queue_cannot_hold_is_counted() {
        assert_eq!(run(0, 1100).await, (vec![500, 500, 100], 0));
        assert_eq!(run(0, 1300).await, (vec![500, 500, 200], 100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_batch_is_tried_again_and_given_up_in_the_end() {
        assert_eq!(run(TRIES - 1, 10).await, (vec![10], 0));
        assert_eq!(run(TRIES, 600).await, (vec![100], 500));
    }
}
