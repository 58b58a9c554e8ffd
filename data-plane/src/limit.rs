//! How many calls an agent can take at a time: adaptive concurrency, by the gradient of its latency.
//!
//! A queue shows as latency. The limit follows the ratio of an agent's latency while few calls were ahead to
//! the one under load, as in Netflix's `concurrency-limits` (`Gradient2Limit`, with its tolerance) and Envoy's
//! `adaptive_concurrency` (`gradient_controller`, with its measured minimum and headroom). What is different:
//! - An agent is trusted until it shows a queue: the limit begins at the upper bound, and comes down to what was
//!   in flight when the latency rose.
//! - The unloaded latency is learned from the calls that met few others, not by turning calls away now and then
//!   to see, as Envoy does. Only when calls are turned away in any case, and none has met few others for long,
//!   the limit is quartered for a moment.
//! - A queue lowers the limit once: whoever waited in it says nothing more. What an agent can do at once is shown by
//!   calls that took as long as if they were alone, not by how many are sent there.
//! - Latencies are averaged as logarithms: service times of agents have long tails, which would rule any other
//!   mean.
//!
//! The limit moves once per interval, and only when the agent was used near it, or was several times slower
//! than unloaded. An agent that asks for a rest, and a deadline missed near the limit, shrink it by a tenth.
//! Calls of very different lengths at one agent look like a queue when the mix changes; the lower bound holds.

use std::{
    sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{AcqRel, Relaxed},
    },
    time::Duration,
};

use crate::config::Current;

/// Within what the limit moves, and how.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls in flight that an agent is sent in any case; 1 or more. Envoy's `min_concurrency`.
    pub least: u32,
    /// The most that it is sent, and where the limit begins; `least` or more. Envoy's `max_concurrency_limit`.
    pub most: u32,
    /// How many times slower than unloaded is no queue yet; 1 or more. Netflix's `rttTolerance`.
    pub tolerance: f64,
    /// How much slower than unloaded is no queue yet, however many times: a queue that short harms nobody.
    pub slack: Duration,
    /// The least time between two moves; 10 ms to 1 s. Envoy's `concurrency_update_interval`.
    pub interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            least: 4,
            most: 1000,
            tolerance: 1.5,
            slack: Duration::from_millis(5),
            interval: Duration::from_millis(100),
        }
    }
}

/// Calls per interval, at least; it lasts longer while there are fewer.
const SAMPLES: u64 = 32;
/// Calls under load that make a latency.
const LOADED: u64 = 16;
/// Calls that met few others that make one, and that make the first one.
const LIGHT: u64 = 16;
const FIRST: u64 = 1;
/// The least that the gradient can be in one move, what is too steep for chance wherever the limit is, and what it is
/// when all calls met few others.
const STEEPEST: f64 = 0.2;
const STEEP: f64 = 0.5;
const GROWTH: f64 = 1.5;
/// Weight of the newest interval in the unloaded latency: usually, and when it was looked for.
const WEIGHT: (f64, f64) = (0.2, 0.7);
/// What is left of the limit after a call was turned away or too late. Netflix's `backoffRatio`.
const BACK_OFF: f64 = 0.9;
/// Few calls are this part of those that were lately in flight at most, or fewer than the least limit.
const FEW: usize = 8;
/// Intervals at the limit with no call that met few others, until the limit is divided to have some; by this.
const BLIND: u32 = 50;
const PROBE: f64 = 4.0;

/// One agent's limit, shared by all cores. A call costs it an atomic addition.
#[derive(Debug)]
pub(crate) struct Limit {
    config: Current,
    /// Bits of an f64, as are `unloaded` and `held`.
    limit: AtomicU64,
    /// Calls that had few others before them, and the rest, of this interval.
    light: Latencies,
    loaded: Latencies,
    /// The most in flight in this interval; and lately, falling by a tenth per interval.
    peak: AtomicUsize,
    crowd: AtomicUsize,
    /// The most in flight of which one was answered as if it were alone.
    proven: AtomicUsize,
    /// Logarithm of the microseconds; NaN before the first.
    unloaded: AtomicU64,
    /// When the interval began, and when the limit was last lowered; milliseconds.
    began: AtomicU64,
    lowered: AtomicU64,
    /// Whether a queue has been seen, and whether one was in the last interval.
    tested: AtomicBool,
    queue: AtomicBool,
    blind: AtomicU32,
    /// What to return to when the limit is quartered; 0 when it is not.
    held: AtomicU64,
}

impl Limit {
    pub(crate) fn new(config: Current) -> Self {
        let most = config.now().limits.most;
        Self {
            config,
            limit: bits(f64::from(most)),
            light: Latencies::default(),
            loaded: Latencies::default(),
            peak: AtomicUsize::new(0),
            crowd: AtomicUsize::new(0),
            proven: AtomicUsize::new(0),
            unloaded: bits(f64::NAN),
            began: AtomicU64::new(0),
            lowered: AtomicU64::new(0),
            tested: AtomicBool::new(false),
            queue: AtomicBool::new(false),
            blind: AtomicU32::new(0),
            held: bits(0.0),
        }
    }

    fn limits(&self) -> Limits {
        self.config.now().limits
    }

    /// Calls in flight that it allows.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn get(&self) -> usize {
        get(&self.limit) as usize
    }

    /// The limit, once a queue has been seen: until then it says nothing.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn tested(&self) -> Option<usize> {
        self.tested.load(Relaxed).then(|| self.settled() as usize)
    }

    /// Whether calls waited for each other in the last interval, which lasts for as long as there are few.
    pub(crate) fn has_queue(&self) -> bool {
        self.queue.load(Relaxed)
    }

    /// What is safe to send while no queue has been seen: half as much again as it has shown that it can do.
    pub(crate) fn untested(&self) -> usize {
        let proven = self.proven.load(Relaxed);
        (proven + proven.div_ceil(2)).max(self.limits().least as usize)
    }

    /// The unloaded latency, when it is known.
    pub(crate) fn unloaded(&self) -> Option<Duration> {
        let log = get(&self.unloaded);
        (!log.is_nan()).then(|| Duration::from_secs_f64(log.exp2() / 1e6))
    }

    /// A call began, with so many in flight before it.
    pub(crate) fn began(&self, ahead: usize) {
        if self.peak.load(Relaxed) <= ahead {
            self.peak.fetch_max(ahead + 1, Relaxed);
        }
    }

    /// A call that began with so many in flight before it was answered, and so many still are. `now`: milliseconds of
    /// any clock.
    pub(crate) fn answered(&self, ahead: usize, in_flight: usize, took: Duration, now: u64) {
        let (limits, proven) = (self.limits(), self.proven.load(Relaxed));
        let few = match get(&self.held) > 0.0 {
            true => self.get(),
            // A crowd that waits has not shown what can be done at once.
            false => self.crowd.load(Relaxed).max(self.peak.load(Relaxed)).min(proven) / FEW,
        };
        let light = ahead < few.max(limits.least as usize);
        if ahead >= proven && self.as_if_alone(took, &limits) {
            self.proven.fetch_max(ahead + 1, Relaxed);
        }
        // Who waited in a queue that the limit has been lowered for does not have it lowered again.
        let asked = now.saturating_sub(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        if !light && asked < self.lowered.load(Relaxed) {
            return;
        }
        let (counted, other) = if light { (&self.light, &self.loaded) } else { (&self.loaded, &self.light) };
        let count = counted.add(took);
        let interval = u64::try_from(limits.interval.as_millis()).unwrap_or(u64::MAX);
        let began = self.began.load(Relaxed);
        if count + other.count() >= SAMPLES
            && now.saturating_sub(began) >= interval
            && self.began.compare_exchange(began, now, AcqRel, Relaxed).is_ok()
        {
            self.end_interval(in_flight, now);
        }
    }

    /// Whether a call that took so long waited for none.
    fn as_if_alone(&self, took: Duration, limits: &Limits) -> bool {
        let alone = |unloaded: Duration| unloaded.mul_f64(limits.tolerance).max(unloaded + limits.slack);
        self.unloaded().is_some_and(|unloaded| took <= alone(unloaded))
    }

    /// The agent turned a call away because it has too much to do.
    pub(crate) fn turned_away(&self, ahead: usize, now: u64) {
        #[allow(clippy::cast_precision_loss)]
        let used = self.settled().min(ahead as f64);
        self.back_off(used * BACK_OFF, now);
    }

    /// A call met its deadline, with so many in flight.
    pub(crate) fn too_late(&self, in_flight: usize, now: u64) {
        let limit = self.settled();
        #[allow(clippy::cast_precision_loss)]
        if in_flight as f64 >= limit / 2.0 {
            self.back_off(limit * BACK_OFF, now);
        }
    }

    /// Once for all calls that were under way together.
    fn back_off(&self, limit: f64, now: u64) {
        let pause = self.unloaded().unwrap_or_default().max(self.limits().interval);
        let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let last = self.lowered.load(Relaxed);
        if (last == 0 || now.saturating_sub(last) >= pause)
            && self.lowered.compare_exchange(last, now.max(1), AcqRel, Relaxed).is_ok()
        {
            set(&self.held, 0.0);
            self.loaded.take();
            self.set(limit);
        }
    }

    /// By one core at a time, but for one that takes longer over it than an interval: then a move is lost.
    #[allow(clippy::cast_precision_loss)]
    fn end_interval(&self, in_flight: usize, now: u64) {
        let limits = self.limits();
        let (limit, held) = (get(&self.limit), get(&self.held));
        let before = get(&self.unloaded);
        // Too few to go by are kept for the next interval.
        let enough = if before.is_nan() { FIRST } else { LIGHT };
        let light = if self.light.count() >= enough { self.light.take() } else { None };
        let loaded = self.loaded.take();
        // Where it never has few, as with open streams, what it has must do for the first.
        let light = light.or(loaded.filter(|_| before.is_nan()));
        let peak = self.peak.swap(in_flight, Relaxed);
        self.crowd.store(peak.max(self.crowd.load(Relaxed) * 9 / 10), Relaxed);
        if let Some((_, mean)) = light {
            let least = limit <= limits.least.into();
            let weight = if held > 0.0 || least { WEIGHT.1 } else { WEIGHT.0 };
            set(&self.unloaded, if before.is_nan() { mean } else { before + weight * (mean - before) });
        }
        if held > 0.0 {
            if light.is_some() {
                set(&self.held, 0.0);
                self.set(held);
            }
            return;
        }

        let used = limit.min(peak as f64);
        let steepness = match (loaded, get(&self.unloaded)) {
            (Some((LOADED.., mean)), unloaded)
                if mean.exp2() - unloaded.exp2() < limits.slack.as_micros() as f64 =>
            {
                1.0
            }
            // NaN as long as nothing is known.
            (Some((LOADED.., mean)), unloaded) => limits.tolerance * (unloaded - mean).exp2(),
            _ => f64::INFINITY,
        };
        self.queue.store(steepness < 1.0, Relaxed);
        // With nothing that speaks against it, faster than by the headroom.
        let growth = if loaded.is_none() { GROWTH } else { steepness.clamp(STEEPEST, 1.0) };
        let target = growth * used + used.sqrt() / 2.0;
        let near = used >= limit / 2.0;
        if steepness.is_nan() || steepness >= 1.0 {
            self.set(if near { limit.max(target) } else { limit });
        } else if near || steepness < STEEP {
            self.set(target);
            self.tested.store(true, Relaxed);
            if get(&self.limit) < limit {
                self.lowered.store(now.max(1), Relaxed);
            }
        }

        if used >= limit.floor() && light.is_none() {
            if self.blind.fetch_add(1, Relaxed) + 1 >= BLIND {
                self.blind.store(0, Relaxed);
                self.light.take();
                set(&self.held, get(&self.limit));
                self.set(get(&self.limit) / PROBE);
            }
        } else {
            self.blind.store(0, Relaxed);
        }
    }

    /// The limit, or what it returns to.
    fn settled(&self) -> f64 {
        get(&self.limit).max(get(&self.held))
    }

    fn set(&self, limit: f64) {
        let limits = self.limits();
        set(&self.limit, limit.clamp(limits.least.into(), limits.most.into()));
    }
}

/// A count (20 bits) above a sum of logarithms of microseconds (44 bits, 16 of them the fraction).
#[derive(Debug, Default)]
struct Latencies(AtomicU64);

const SUM: u32 = 44;

impl Latencies {
    /// Counts one; how many there are with it.
    fn add(&self, took: Duration) -> u64 {
        let log = log2(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).clamp(1, 1 << 40));
        (self.0.fetch_add(1 << SUM | log, Relaxed) >> SUM) + 1
    }

    fn count(&self) -> u64 {
        self.0.load(Relaxed) >> SUM
    }

    /// How many there were, and their mean.
    #[allow(clippy::cast_precision_loss)]
    fn take(&self) -> Option<(u64, f64)> {
        let word = self.0.swap(0, Relaxed);
        let (count, sum) = (word >> SUM, word & ((1 << SUM) - 1));
        (count > 0).then(|| (count, sum as f64 / count as f64 / 65536.0))
    }
}

/// The logarithm to base two, with sixteen bits for the fraction; between powers of two it is a straight line,
/// at most 0.09 too low.
fn log2(n: u64) -> u64 {
    let whole = u64::from(n.ilog2());
    let fraction = (n << (63 - whole) >> 47) & 0xffff;
    whole << 16 | fraction
}

fn bits(n: f64) -> AtomicU64 {
    AtomicU64::new(n.to_bits())
}

fn get(cell: &AtomicU64) -> f64 {
    f64::from_bits(cell.load(Relaxed))
}

fn set(cell: &AtomicU64, n: f64) {
    cell.store(n.to_bits(), Relaxed);
}

#[cfg(test)]
mod tests;
