//! What a node can be told.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};
use parallax_security::Plaintext;
use serde::{Deserialize, Serialize};

use crate::{
    balance::Balance, breaker::Policy, cache::Caching, error::Error, fallback::Fallbacks, limit::Limits,
    outlier::Outliers,
};

/// A node's settings, filled by its owner. Port 0 takes a free one.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names the node to the control plane, unique in the cluster.
    pub node_id: String,
    /// Where callers reach the node (gRPC).
    pub grpc: SocketAddr,
    /// Where operators reach it (`/livez`, `/readyz`, `/metrics`, `/agents`; HTTP without TLS).
    pub admin: SocketAddr,
    /// `host:port` at which the control plane reaches `grpc`; none means the address that was bound.
    pub advertise: Option<String>,
    /// `host:port` of each replica of the control plane.
    pub control_planes: Vec<String>,
    /// Whether callers on this machine may come without TLS.
    pub plaintext: Plaintext,
    /// Threads that serve calls, each with a listener and connections of its own. One per core, unless the
    /// process has other work to do.
    pub workers: usize,

    /// How long a call may take when its caller sets no deadline.
    pub default_deadline: Duration,
    /// The largest answer that is read for a driver, and the largest call that is taken from one; bytes.
    /// Proxied messages are not bounded, as they are never held.
    pub max_message: usize,
    /// Calls of one driver's stream that run at a time; the next waits, and the stream is not read on.
    pub max_calls_per_stream: usize,
    /// Streams that a caller may have open on one connection. Envoy's `max_concurrent_streams`.
    pub max_streams: u32,
    /// Calls in flight in the node; each worker takes its part of them. Of those that are `default` 90 % of it, of
    /// `sheddable` ones 70 %. Envoy's `max_requests`.
    ///
    /// What arrives while they are in flight is bounded by it: each holds at most one HTTP/2 window of 128 KiB
    /// in each direction, and a refused call holds nothing. So the worst that callers and agents can do together
    /// is `max_in_flight` × 256 KiB (2.5 GiB by default, when every one of ten thousand calls is stuck in both
    /// directions) and, per connection, the buffers of TLS and HTTP/2 (below 100 KiB, so 400 MiB by default).
    /// What is held as a whole is bounded by `max_held_bytes`. Drivers, which are trusted, add up to `max_message` in each
    /// direction for each call that they have in flight.
    pub max_in_flight: usize,
    /// Bytes of requests that the node holds as a whole at one moment: those of `FanOut`, of which the next is refused, and
    /// those of calls that opted for the cache or a fallback, of which the next goes without.
    pub max_held_bytes: usize,
    /// Connections of callers; each worker takes its part of them, and closes what is beyond at once. Envoy's
    /// `global_downstream_max_connections`.
    pub max_connections: usize,

    /// Whom to ask.
    pub balance: Balance,
    /// Whom to ask when that failed.
    pub retry: Retry,
    /// Whom to ask when that takes long.
    pub hedge: Hedge,
    /// When an agent is not asked any more, and for how long.
    pub breaker: Policy,
    /// How many calls in flight an agent is sent.
    pub limits: Limits,
    /// When an agent is left out for being slower than its group.
    pub outliers: Outliers,
    /// How long an agent that is new or has recovered is ramped up; zero means not at all. Envoy's
    /// `slow_start_window`.
    pub slow_start: Duration,
    /// How long the breakers of agents that have left are remembered.
    pub remember: Duration,
    /// Connections that one worker keeps to one agent, at most. A second is opened when the first has
    /// `streams_per_connection` calls in flight.
    pub connections_per_agent: usize,
    /// See `connections_per_agent`.
    pub streams_per_connection: usize,
    /// Calls of one worker that are in flight with one agent that is reached by HTTP, and so its connections over
    /// HTTP/1.1; further ones wait for their turn.
    pub http_calls_per_agent: usize,
    /// How long a connection over HTTP/1.1 is kept that nothing is sent on: a little less than the five seconds
    /// after which servers (Node, Uvicorn) close it, as a request that crosses that may or may not be lost.
    pub http_idle: Duration,
    /// How long a connection to an agent may take to be made, TLS included.
    pub connect_timeout: Duration,
    /// First and longest pause after a failed connection; it doubles, with jitter.
    pub connect_backoff: (Duration, Duration),
    /// How often an agent is pinged while a call is in flight and nothing else comes. Servers in Go, and those
    /// on gRPC's C core (Python, Ruby, …), close a connection with its calls when they are pinged more often
    /// than every five minutes. A dead connection is noticed long before that: see `silence`.
    pub keepalive: Duration,
    /// A connection on which a call met its deadline is given up when nothing was heard on it for this long.
    pub silence: Duration,

    /// The longest silence of the control plane before it has named its heartbeat interval. Afterwards twice
    /// the interval.
    pub first_heartbeat: Duration,
    /// First and longest pause before the control plane is dialled again; it doubles, with jitter.
    pub follow_backoff: (Duration, Duration),

    /// Which answers are given again.
    pub cache: Caching,
    /// What answers calls that have failed.
    pub fallback: Fallbacks,

    /// Samples that wait for the store; when it is full further ones are dropped and counted.
    pub sample_queue: usize,

    /// How long calls in flight may take to end when the node stops.
    pub drain: Duration,
}

/// The settings as they are now. Clones share them, and all see what replaces them at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Current(Arc<ArcSwap<Config>>);

impl From<Config> for Current {
    fn from(config: Config) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }
}

impl Current {
    /// A read without a lock, for a moment: not to be held while anything is awaited.
    pub(crate) fn now(&self) -> Guard<Arc<Config>> {
        self.0.load()
    }

    pub(crate) fn replace(&self, config: Config) {
        self.0.store(Arc::new(config));
    }
}

/// Another agent of the group is asked when that can do no harm: the first one has provably not begun, or says
/// so (RESOURCE_EXHAUSTED), or the call is marked idempotent. Always within the caller's deadline.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Further agents that one call may be sent to (Envoy's `num_retries`).
    pub max: usize,
    /// Share of a group's calls that may be retries; percent (Envoy's `retry_budget.budget_percent`).
    pub budget_percent: u32,
    /// Retries a second beyond that, for groups with few calls (Finagle's `minRetriesPerSec`).
    pub min_per_second: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max: 2, budget_percent: 20, min_per_second: 3 }
    }
}

/// A second agent is asked beside a slow one, for calls that are marked idempotent ("The Tail at Scale", 2013).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// Share of a group's calls that may be hedges; percent. 0 turns it off.
    pub budget_percent: u32,
    /// A call is slow when it takes longer than this share of the group's calls; 0 to 1.
    pub quantile: f64,
    /// And at least so long; milliseconds.
    pub min_delay_ms: u64,
}

impl Default for Hedge {
    fn default() -> Self {
        Self { budget_percent: 5, quantile: 0.95, min_delay_ms: 1 }
    }
}

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            node_id: "data-plane".to_owned(),
            grpc: loopback(50052),
            admin: loopback(3001),
            advertise: None,
            control_planes: vec!["127.0.0.1:50051".to_owned()],
            plaintext: Plaintext::Refuse,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            default_deadline: Duration::from_secs(60),
            max_message: 16 << 20,
            max_calls_per_stream: 1024,
            max_streams: 4096,
            balance: Balance::default(),
            retry: Retry::default(),
            hedge: Hedge::default(),
            max_in_flight: 10_000,
            max_connections: 4096,
            breaker: Policy::default(),
            limits: Limits::default(),
            outliers: Outliers::default(),
            slow_start: Duration::from_secs(10),
            remember: Duration::from_secs(600),
            connections_per_agent: 2,
            streams_per_connection: 100,
            http_calls_per_agent: 128,
            http_idle: Duration::from_secs(4),
            connect_timeout: Duration::from_secs(3),
            connect_backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            keepalive: Duration::from_secs(310),
            silence: Duration::from_secs(1),
            first_heartbeat: Duration::from_secs(5),
            follow_backoff: (Duration::from_millis(100), Duration::from_secs(5)),
            cache: Caching::default(),
            fallback: Fallbacks::default(),
            sample_queue: 16 * 1024,
            max_held_bytes: 256 << 20,
            drain: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// A worker's part of what is bounded for the node; 1 at least.
    pub(crate) fn per_worker(&self, most: usize) -> usize {
        most.div_ceil(self.workers.max(1)).max(1)
    }

    /// # Errors
    /// What no node could run with.
    pub fn check(&self) -> Result<(), Error> {
        let within = |range: std::ops::RangeInclusive<f64>, n: f64| range.contains(&n);
        let (breaker, limits, outliers) = (&self.breaker, &self.limits, &self.outliers);
        let millis = Duration::from_millis;
        let rules = [
            ("breaker.ratio", within(f64::MIN_POSITIVE..=1.0, breaker.ratio), "is not above 0 and up to 1"),
            ("breaker.window_ms", breaker.window >= millis(5), "is below 5 ms"),
            ("breaker.first_ms", breaker.first <= breaker.longest, "is above breaker.longest_ms"),
            ("breaker.first_rest_ms", breaker.rest.0 <= breaker.rest.1, "is above breaker.longest_rest_ms"),
            ("limits.tolerance", within(1.0..=f64::MAX, limits.tolerance), "is not 1 or more"),
            ("limits.most", limits.most >= limits.least, "is below limits.least"),
            (
                "limits.interval_ms",
                (millis(10)..=millis(1000)).contains(&limits.interval),
                "is not 10 ms to 1 s",
            ),
            ("outliers.first_ms", outliers.first <= outliers.longest, "is above outliers.longest_ms"),
            ("outliers.factor", within(1.01..=f64::MAX, outliers.factor), "is not 1.01 or more"),
        ];
        if let Some((field, _, problem)) = rules.into_iter().find(|(_, kept, _)| !kept) {
            return Err(Error::Config { field, problem });
        }
        let counts = [
            ("workers", self.workers),
            ("connections_per_agent", self.connections_per_agent),
            ("streams_per_connection", self.streams_per_connection),
            ("http_calls_per_agent", self.http_calls_per_agent),
            ("max_calls_per_stream", self.max_calls_per_stream),
            ("sample_queue", self.sample_queue),
            ("max_in_flight", self.max_in_flight),
            ("max_connections", self.max_connections),
            ("max_held_bytes", self.max_held_bytes),
            ("breaker.failures", breaker.failures.into()),
            ("breaker.ratio_calls", breaker.ratio_calls as usize),
            ("limits.least", limits.least as usize),
            ("outliers.calls", outliers.calls as usize),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(Error::Config { field, problem: "is 0; it must be 1 or more" });
        }
        let shares = [
            ("balance.latency_weight", self.balance.latency_weight),
            ("balance.cost_weight", self.balance.cost_weight),
            ("hedge.quantile", self.hedge.quantile),
            ("cache.min_confidence", self.cache.min_confidence),
            ("fallback.cached", self.fallback.cached),
            ("fallback.other_agent", self.fallback.other_agent),
            ("fallback.degraded", self.fallback.degraded),
        ];
        if let Some((field, _)) = shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return Err(Error::Config { field, problem: "must be between 0 and 1" });
        }
        let percents = [
            ("balance.explore_percent", self.balance.explore_percent),
            ("retry.budget_percent", self.retry.budget_percent),
            ("hedge.budget_percent", self.hedge.budget_percent),
        ];
        if let Some((field, _)) = percents.into_iter().find(|(_, percent)| *percent > 100) {
            return Err(Error::Config { field, problem: "is more than 100 percent" });
        }
        self.fallback.check().map_err(|problem| Error::Config { field: "fallback.rules", problem })
    }
}
