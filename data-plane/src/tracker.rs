//! Carries what calls showed of agents to the store, in batches, off the path of calls.
//!
//! A queue that is full, or a store that keeps failing, loses samples and counts them; it never holds up a call.

use std::{cell::Cell, sync::Arc, time::Duration};

use jiff::Timestamp;
use parallax_runtime::{
    confidence::Confidence,
    env::Env,
    store::{CallOutcome, ConfidenceStore, Sample},
};
use parallax_telemetry::metrics::DataPlaneMetrics;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tracing::warn;

use crate::{ask::About, directory::Entry, directory::follow::jitter};

/// Samples per batch, and how long the first of one waits for others. They are not waited for one by one, or the path
/// would wake this task for each.
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

/// Calls outside of runs of which each worker keeps samples: a second, and at once. Thousands a second say no more of an
/// agent than hundreds, and each is a row of the store. What is left out is counted; samples of runs are all kept.
const SINGLE: (u32, u32) = (500, 1024);

/// The path's end of the queue; each worker has its own.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Seen>,
    metrics: DataPlaneMetrics,
    /// When the last sample that was kept falls due at [`SINGLE`]'s rate: the bucket of GCRA (ITU-T I.371).
    due: Cell<Option<Instant>>,
}

impl Recorder {
    /// Never waits. A sample that is too much is lost, and counted.
    pub(crate) fn record(&self, seen: Seen, now: Instant) {
        let single = seen.about.pattern.is_empty() && seen.about.task.is_empty();
        if (single && !self.admits(now)) || self.queue.try_send(seen).is_err() {
            self.metrics.confidence_samples_dropped.inc();
        }
    }

    fn admits(&self, now: Instant) -> bool {
        let gap = Duration::from_secs(1) / SINGLE.0;
        let due = self.due.get().map_or(now, |due| due.max(now));
        let admitted = due - now < gap * SINGLE.1;
        if admitted {
            self.due.set(Some(due + gap));
        }
        admitted
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
    let recorder = Recorder { queue: sender, metrics: metrics.clone(), due: Cell::new(None) };
    (recorder, Tracker { queue, store, env, metrics })
}

impl Tracker {
    /// Until every recorder is gone and what they recorded is stored.
    pub(crate) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH.0);
        while self.queue.recv_many(&mut batch, BATCH.0).await > 0 {
            if batch.len() < BATCH.0 {
                sleep(BATCH.1).await;
                let room = BATCH.0 - batch.len();
                batch.extend(std::iter::from_fn(|| self.queue.try_recv().ok()).take(room));
            }
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
        let mut book = Book::new(crate::config::Current::default(), metrics.clone());
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
            about: About { pattern: "p".into(), task: String::new() },
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
        (0..samples).for_each(|_| recorder.record(seen(&metrics), Instant::now()));
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
    async fn of_single_calls_so_many_are_kept_and_of_runs_all() {
        let metrics = DataPlaneMetrics::new(&mut Registry::default());
        let (recorder, tracker) =
            tracker(1 << 20, Arc::new(Shaky::default()), Arc::new(Simulated::new(1)), metrics.clone());
        let (burst, rate) = (SINGLE.1 as usize, SINGLE.0 as usize);
        let keep = |count: usize, about: About| {
            let one = || Seen { about: about.clone(), ..seen(&metrics) };
            (0..count).for_each(|_| recorder.record(one(), Instant::now()));
            tracker.queue.len()
        };
        assert_eq!(keep(2 * burst, About::default()), burst);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(keep(2 * burst, About::default()), burst + rate);
        assert_eq!(keep(burst, seen(&metrics).about), 2 * burst + rate);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_batch_is_tried_again_and_given_up_in_the_end() {
        assert_eq!(run(TRIES - 1, 10).await, (vec![10], 0));
        assert_eq!(run(TRIES, 600).await, (vec![100], 500));
    }
}
