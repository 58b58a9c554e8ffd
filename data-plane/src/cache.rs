//! Answers that are given again: to whom asks the same later, and to all who ask the same at once.
//!
//! Only calls that opted for it come here. What is held lies in the node's memory, shared by its workers and
//! bounded in bytes; the least wanted goes first. A lock is held for a look-up, never while anything is awaited.

use std::{
    collections::{HashMap, hash_map},
    hash::RandomState,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::HeaderValue;
use parallax_runtime::confidence::Confidence;
use parallax_telemetry::metrics::{CacheMetrics, CacheOutcome};
use parking_lot::Mutex;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter, sync};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    config::Current,
    error::{Failed, Failure},
};

mod key;

pub(crate) use key::{Key, Question};

/// Parts with a lock each. No answer is held that would take more than one part's share of the bytes.
const SHARDS: usize = 16;
/// What an answer is reckoned to take beside its message. Bytes.
const OVERHEAD: u64 = 256;
/// A guess, which only sizes tables: bytes of an answer.
const USUAL: u64 = 2048;
/// However unsure an answer, it lives for this share of the time to live.
const FLOOR: f64 = 0.1;

/// What is held, and for how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caching {
    /// Calls for these are cached without their callers asking for it, and so are calls to agents that have one
    /// of these and no other capability.
    pub capabilities: Vec<String>,
    /// How long an answer that is wholly sure is given again. One of confidence c lives for
    /// ttl × (c − min) / (1 − min), but for a tenth of it at least.
    pub ttl_seconds: u64,
    /// How long it is held beyond that for the fallback `cached` (RFC 5861 calls this `stale-if-error`).
    pub stale_seconds: u64,
    /// An answer that is less sure is not held. 0 to 1.
    pub min_confidence: f64,
    /// Whether answers that state no confidence are held; they live for a tenth of the time.
    pub store_unstated: bool,
    /// Bound on what is held, bytes; 0 holds nothing.
    pub max_bytes: u64,
}

impl Default for Caching {
    fn default() -> Self {
        Self {
            capabilities: Vec::new(),
            ttl_seconds: 300,
            stale_seconds: 3600,
            min_confidence: 0.5,
            store_unstated: false,
            max_bytes: 64 << 20,
        }
    }
}

impl Caching {
    /// How long an answer that is as sure is given again; none if never.
    fn ttl(&self, confidence: Option<Confidence>) -> Option<Duration> {
        let min = self.min_confidence;
        let share = match confidence.map(Confidence::get) {
            None if self.store_unstated => FLOOR,
            Some(sure) if sure >= min && min < 1.0 => (sure - min) / (1.0 - min),
            Some(sure) if sure >= min => 1.0,
            _ => return None,
        };
        Some(Duration::from_secs(self.ttl_seconds).mul_f64(share.max(FLOOR)))
    }
}

/// How a call uses the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Use,
    /// Ask, and hold the answer in place of what is held.
    Refresh,
    /// Neither look nor hold.
    Bypass,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "use" => Ok(Self::Use),
            "refresh" => Ok(Self::Refresh),
            "bypass" => Ok(Self::Bypass),
            _ => Err(format!("is \"{text}\"; it must be use, refresh or bypass")),
        }
    }
}

/// An answer as its agent gave it.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// A `ConfidenceResult`.
    pub(crate) message: Bytes,
    pub(crate) confidence: Option<Confidence>,
    /// The agent, as `x-parallax-served-by` has it.
    pub(crate) agent: HeaderValue,
}

/// An answer that is held.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) given: Given,
    version: Option<[u8; 32]>,
    at: Instant,
    ttl: Duration,
}

impl Held {
    pub(crate) fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

/// How a question was answered.
#[derive(Debug)]
pub(crate) enum Found<X> {
    Hit(Arc<Held>),
    /// By the call of another who asked the same.
    Shared(Given),
    Asked(Given, X),
}

/// The node's cache.
#[derive(Debug)]
pub(crate) struct Cache {
    config: Current,
    held: sync::Cache<Question, Arc<Held>, Weigh, RandomState, Evictions>,
    /// Calls under way that others may share.
    flights: [Mutex<HashMap<Key, Flight>>; SHARDS],
    pub(crate) metrics: CacheMetrics,
}

/// Becomes an answer, or a failure that all share, or is closed without one: then somebody else asks.
type Flight = watch::Receiver<Option<Landed>>;

type Landed = Result<Given, Failed>;

impl Cache {
    pub(crate) fn new(config: Current, metrics: CacheMetrics) -> Self {
        let max_bytes = config.now().cache.max_bytes;
        let options = OptionsBuilder::new()
            .shards(SHARDS)
            .weight_capacity(max_bytes)
            .estimated_items_capacity(usize::try_from(max_bytes / USUAL).unwrap_or(usize::MAX))
            .build()
            .expect("both capacities are given");
        let held = sync::Cache::with_options(options, Weigh, RandomState::new(), Evictions);
        Self { config, held, flights: Default::default(), metrics }
    }

    /// Holds so much as is set now: what is too much goes.
    pub(crate) fn resize(&self) {
        self.held.set_capacity(self.config.now().cache.max_bytes);
        self.measure();
    }

    /// Answers from what is held, by a call under way, or by `ask`; not later than `deadline`, which is `late`
    /// then. One who asks and leaves, or has no more time, takes nobody along: the next of those who wait asks.
    pub(crate) async fn answer<X>(
        &self,
        key: Key,
        mode: Mode,
        (deadline, late): (Instant, impl FnOnce() -> Failure),
        ask: impl AsyncFnOnce() -> Result<(Given, X), Failed>,
    ) -> (CacheOutcome, Result<Found<X>, Failed>) {
        let (lead, outcome) = match mode {
            Mode::Bypass => (None, CacheOutcome::Bypass),
            Mode::Refresh => (None, CacheOutcome::Refresh),
            Mode::Use => match timeout_at(deadline, self.lead(key)).await {
                Ok(Turn::Lead(lead)) => (Some(lead), CacheOutcome::Miss),
                Ok(Turn::Hit(held)) => return (CacheOutcome::Hit, Ok(Found::Hit(held))),
                Ok(Turn::Shared(landed)) => {
                    return (CacheOutcome::Shared, landed.map(Found::Shared));
                }
                Err(_) => return (CacheOutcome::Shared, Err(late().into())),
            },
        };
        let asked = ask().await;
        if let (Ok((given, _)), Mode::Use | Mode::Refresh) = (&asked, mode) {
            self.hold(key, given);
        }
        let landed = match &asked {
            Ok((given, _)) => Some(Ok(given.clone())),
            // That is its own, and of no concern to the others.
            Err(Failed { failure: Failure::Cancelled(_) | Failure::Deadline { .. }, .. }) => None,
            Err(failed) => Some(Err(failed.clone())),
        };
        if let (Some(lead), Some(landed)) = (lead, landed) {
            lead.landed.send_replace(Some(landed));
        }
        (outcome, asked.map(|(given, extra)| Found::Asked(given, extra)))
    }

    /// Waits until there is an answer, or until it is the caller's turn to ask for one.
    async fn lead(&self, key: Key) -> Turn<'_> {
        loop {
            if let Some(held) = self.fresh(&key) {
                return Turn::Hit(held);
            }
            let joined = match self.flights(&key).lock().entry(key) {
                hash_map::Entry::Occupied(flight) => Err(flight.get().clone()),
                hash_map::Entry::Vacant(vacant) => {
                    let (landed, flight) = watch::channel(None);
                    vacant.insert(flight);
                    Ok(landed)
                }
            };
            let mut flight = match joined {
                Err(flight) => flight,
                Ok(landed) => {
                    let lead = Lead { cache: self, key, landed };
                    // One that ended just now holds its answer by now.
                    return self.fresh(&key).map_or(Turn::Lead(lead), Turn::Hit);
                }
            };
            if let Ok(landed) = flight.wait_for(Option::is_some).await
                && let Some(landed) = &*landed
            {
                return Turn::Shared(landed.clone());
            }
        }
    }

    fn flights(&self, key: &Key) -> &Mutex<HashMap<Key, Flight>> {
        &self.flights[usize::from(key.question[0]) % SHARDS]
    }

    fn fresh(&self, key: &Key) -> Option<Arc<Held>> {
        let held = self.held.get(&key.question)?;
        // What nobody can answer now is a matter of fallbacks.
        let current = key.version.is_some() && held.version == key.version;
        (current && held.age() < held.ttl).then_some(held)
    }

    /// What is held still, however old: of the version that would answer now, or of the last one if nobody
    /// would.
    pub(crate) fn stale(&self, key: &Key) -> Option<Arc<Held>> {
        let stale = Duration::from_secs(self.config.now().cache.stale_seconds);
        let dead = |held: &Held| held.age() >= held.ttl + stale;
        if self.held.remove_if(&key.question, |held| dead(held)).is_some() {
            self.measure();
        }
        let held = self.held.get(&key.question)?;
        (key.version.is_none() || held.version == key.version).then_some(held)
    }

    fn hold(&self, key: Key, given: &Given) {
        let Some(ttl) = self.config.now().cache.ttl(given.confidence) else { return };
        // A copy is as long as the message, whatever buffer that was read into.
        let given = Given { message: Bytes::copy_from_slice(&given.message), ..given.clone() };
        let held = Held { given, version: key.version, at: Instant::now(), ttl };
        let mut pushed_out = Vec::new();
        self.held.insert_with_lifecycle(key.question, Arc::new(held), &mut pushed_out);
        // An answer that is replaced is reported too, and so is one that is too large to be held.
        let evicted = pushed_out.iter().filter(|question| **question != key.question).count();
        self.metrics.evicted.inc_by(evicted as u64);
        if self.held.contains_key(&key.question) {
            self.metrics.stored.inc();
        }
        self.measure();
    }

    fn measure(&self) {
        self.metrics.bytes.set(i64::try_from(self.held.weight()).unwrap_or(i64::MAX));
    }
}

enum Turn<'a> {
    Hit(Arc<Held>),
    Shared(Landed),
    Lead(Lead<'a>),
}

/// The turn of one who asks for all. Gone, it is somebody else's.
struct Lead<'a> {
    cache: &'a Cache,
    key: Key,
    landed: watch::Sender<Option<Landed>>,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        // Before those who wait see that there is no answer: the first of them to look takes the turn.
        self.cache.flights(&self.key).lock().remove(&self.key);
    }
}

#[derive(Clone, Debug)]
struct Weigh;

impl Weighter<Question, Arc<Held>> for Weigh {
    fn weight(&self, _: &Question, held: &Arc<Held>) -> u64 {
        (held.given.message.len() + held.given.agent.len()) as u64 + OVERHEAD
    }
}

/// Tells which answers were pushed out.
#[derive(Clone, Debug)]
struct Evictions;

impl Lifecycle<Question, Arc<Held>> for Evictions {
    type RequestState = Vec<Question>;

    fn on_evict(&self, pushed_out: &mut Vec<Question>, question: Question, _: Arc<Held>) {
        pushed_out.push(question);
    }
}

#[cfg(test)]
mod tests;
