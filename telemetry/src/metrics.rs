//! Every metric of Parallax: this file is where their names stand.
//!
//! Names are as Prometheus shows them, except that a counter's `_total` is added when it is encoded.
//! Durations are seconds.
//!
//! The number of series is bounded: a label is a value that the program's own code names (an enum, a
//! `&'static str`, a route's template), or the name of a tenant, pattern or agent that exists. What exists can
//! cease to, and is then removed here with `remove_…`. Nothing that a peer sends freely becomes a label.

use std::{fmt::Write, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry},
};

use crate::Histogram;

/// From a local call to one that a model thinks about.
const CALL_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From a run over a cache to one that waits for people.
const RUN_SECONDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0];
/// One append, most of it the disk's sync.
const APPEND_SECONDS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5];
/// Tenths, and finer where targets usually are.
const CONFIDENCE: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The metrics of a registry as OpenMetrics text: its content type and itself.
pub fn encode(registry: &Registry) -> (&'static str, String) {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).expect("a String takes every write");
    ("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// What the control plane counts. Clones count together.
#[derive(Debug, Clone)]
pub struct ControlPlaneMetrics {
    agents_registered: Family<TenantLabel, Gauge>,
    pub registrations: Counter,
    /// Runs that this process drives at the moment.
    pub runs_active: Gauge,
    runs_started: Family<PatternLabel, Counter>,
    runs_finished: Family<FinishedLabels, Counter>,
    run_duration: Histograms<PatternLabel>,
    run_effects: Family<EffectLabels, Counter>,
    /// Seconds of one append to a run's journal.
    pub journal_append: Histogram,
    http_requests: Family<HttpLabels, Counter>,
    grpc_requests: Family<GrpcLabels, Counter>,
}

impl ControlPlaneMetrics {
    /// Registers them all.
    #[rustfmt::skip] // one line per metric
    pub fn new(registry: &mut Registry) -> Self {
        let r = registry;
        let run_seconds: fn() -> Histogram = || Histogram::new(RUN_SECONDS);
        Self {
            agents_registered: register(r, "parallax_agents_registered", "Agents with a lease, by tenant", Family::default()),
            registrations: register(r, "parallax_registrations", "Registrations of agents accepted", Counter::default()),
            runs_active: register(r, "parallax_runs_active", "Runs driven by this process", Gauge::default()),
            runs_started: register(r, "parallax_runs_started", "Runs started, by pattern", Family::default()),
            runs_finished: register(r, "parallax_runs_finished", "Runs ended, by pattern and status", Family::default()),
            run_duration: register(r, "parallax_run_duration_seconds", "Time from a run's start to its end, by pattern", Family::new_with_constructor(run_seconds)),
            run_effects: register(r, "parallax_run_effects", "Effects performed for runs, by kind and outcome", Family::default()),
            journal_append: register(r, "parallax_journal_append_seconds", "Time of one append to a run's journal", Histogram::new(APPEND_SECONDS)),
            http_requests: register(r, "parallax_http_requests", "HTTP requests answered, by method, route and status", Family::default()),
            grpc_requests: register(r, "parallax_grpc_requests", "gRPC calls answered, by method and code", Family::default()),
        }
    }

    /// How many agents of `tenant` have a lease.
    pub fn set_agents_registered(&self, tenant: &str, agents: usize) {
        let gauge = self.agents_registered.get_or_create_owned(&TenantLabel { tenant: tenant.to_owned() });
        gauge.set(i64::try_from(agents).unwrap_or(i64::MAX));
    }

    /// Removes the series of a tenant that is no more.
    pub fn remove_tenant(&self, tenant: &str) {
        self.agents_registered.remove(&TenantLabel { tenant: tenant.to_owned() });
    }

    /// A run began. `pattern` exists.
    pub fn run_started(&self, pattern: &str) {
        self.runs_started.get_or_create_owned(&PatternLabel::new(pattern)).inc();
    }

    /// A run ended, so long after its start.
    pub fn run_finished(&self, pattern: &str, status: RunStatus, duration: Duration) {
        let labels = FinishedLabels { pattern: pattern.to_owned(), status };
        self.runs_finished.get_or_create_owned(&labels).inc();
        self.run_duration.get_or_create_owned(&PatternLabel::new(pattern)).observe(duration.as_secs_f64());
    }

    /// An effect was performed: such as `invoke` with `ok`.
    pub fn run_effect(&self, kind: &'static str, outcome: &'static str) {
        self.run_effects.get_or_create_owned(&EffectLabels { kind, outcome }).inc();
    }

    /// Removes the series of a pattern that is no more.
    pub fn remove_pattern(&self, pattern: &str) {
        self.runs_started.remove(&PatternLabel::new(pattern));
        self.run_duration.remove(&PatternLabel::new(pattern));
        for status in RunStatus::ALL {
            self.runs_finished.remove(&FinishedLabels { pattern: pattern.to_owned(), status });
        }
    }

    /// An HTTP request was answered. `route` is the template that matched (`/api/patterns/{name}`), never the
    /// path that was asked for; none counts as `other`.
    pub fn http_request(&self, method: &http::Method, route: Option<&str>, status: http::StatusCode) {
        let known = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
        let method = known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
        let labels =
            HttpLabels { method, route: route.unwrap_or("other").to_owned(), status: status.as_u16() };
        self.http_requests.get_or_create_owned(&labels).inc();
    }

    /// A gRPC call was answered with a status `code` (0 to 16). `method` is a constant of the program
    /// (`/package.Service/Method`); count a path that is none as `other`.
    pub fn grpc_request(&self, method: &'static str, code: i32) {
        self.grpc_requests.get_or_create_owned(&GrpcLabels { method, code: grpc_code(code) }).inc();
    }
}

/// What the data plane counts. Clones count together.
#[derive(Debug, Clone)]
pub struct DataPlaneMetrics {
    /// Agents in the directory.
    pub directory_agents: Gauge,
    directory_connected: Gauge,
    pub confidence_samples_dropped: Counter,
    /// Calls that went on to another agent after a failure.
    pub retries: Counter,
    /// Calls that would have, but for the budget.
    pub retries_denied: Counter,
    /// Second calls beside a slow first one.
    pub hedges: Counter,
    /// Those of them that were answered first.
    pub hedges_won: Counter,
    requests: Family<ProxyLabels, Counter>,
    duration: Histograms<AgentLabels>,
    in_flight: Family<AgentLabels, Gauge>,
    confidence: Histograms<AgentLabels>,
    breaker: Family<AgentLabels, Gauge>,
    ejected_patterns: Family<AgentLabels, Gauge>,
    ejected_as_slow: Family<AgentLabels, Gauge>,
    limit: Family<AgentLabels, Gauge>,
    upstream_connections: Family<AgentLabels, Gauge>,
    shed: Family<ShedLabels, Counter>,
    /// Callers' connections that were closed at once, as there were too many.
    pub connections_refused: Counter,
    pub cache: CacheMetrics,
}

/// Answers that their agents did not give now. Clones count together.
#[derive(Debug, Clone)]
pub struct CacheMetrics {
    calls: [Counter; CacheOutcome::ALL.len()],
    pub stored: Counter,
    /// Pushed out by others.
    pub evicted: Counter,
    /// What is held.
    pub bytes: Gauge,
    fallbacks: [Counter; Fallback::ALL.len()],
}

impl CacheMetrics {
    /// A call that opted for the cache ended, or was let through.
    pub fn call(&self, outcome: CacheOutcome) {
        self.calls[outcome as usize].inc();
    }

    /// A call failed, and this answered it.
    pub fn fallback(&self, served_by: Fallback) {
        self.fallbacks[served_by as usize].inc();
    }
}

/// One agent's metrics: kept beside the agent, so that recording is an atomic addition. Clones count together.
#[derive(Debug, Clone)]
pub struct AgentMetrics {
    requests: [Counter; ProxyOutcome::ALL.len()],
    /// Seconds of one proxied call.
    pub duration: Histogram,
    pub in_flight: Gauge,
    /// 0 to 1, as the agent reported it.
    pub confidence: Histogram,
    breaker: Gauge,
    /// Patterns whose breakers are not closed at the agent.
    pub ejected_patterns: Gauge,
    /// 1 while it is left out as slower than its group.
    pub ejected_as_slow: Gauge,
    /// Calls in flight that it is sent at most.
    pub limit: Gauge,
    pub upstream_connections: Gauge,
}

impl DataPlaneMetrics {
    /// Registers them all.
    #[rustfmt::skip] // one line per metric
    pub fn new(registry: &mut Registry) -> Self {
        let r = registry;
        let call_seconds: fn() -> Histogram = || Histogram::new(CALL_SECONDS);
        let confidence: fn() -> Histogram = || Histogram::new(CONFIDENCE);
        Self {
            directory_agents: register(r, "parallax_directory_agents", "Agents in the directory", Gauge::default()),
            directory_connected: register(r, "parallax_directory_connected", "1 while the directory follows the control plane", Gauge::default()),
            confidence_samples_dropped: register(r, "parallax_confidence_samples_dropped", "Confidence samples lost to a full queue or a failing store", Counter::default()),
            retries: register(r, "parallax_proxy_retries", "Calls sent on to another agent after a failure", Counter::default()),
            retries_denied: register(r, "parallax_proxy_retries_denied", "Retries that the budget did not allow", Counter::default()),
            hedges: register(r, "parallax_proxy_hedges", "Second calls made beside a slow first one", Counter::default()),
            hedges_won: register(r, "parallax_proxy_hedges_won", "Hedges that were answered first", Counter::default()),
            requests: register(r, "parallax_proxy_requests", "Proxied calls, by agent and outcome", Family::default()),
            duration: register(r, "parallax_proxy_duration_seconds", "Time of proxied calls, by agent", Family::new_with_constructor(call_seconds)),
            in_flight: register(r, "parallax_proxy_in_flight", "Proxied calls under way, by agent", Family::default()),
            confidence: register(r, "parallax_agent_confidence", "Confidence that agents reported", Family::new_with_constructor(confidence)),
            breaker: register(r, "parallax_agent_breaker_state", "An agent's breaker: 0 closed, 1 half-open, 2 open, 3 closed while the agent rests", Family::default()),
            ejected_patterns: register(r, "parallax_agent_ejected_patterns", "Patterns that are not sent to an agent, as their breakers there are not closed", Family::default()),
            ejected_as_slow: register(r, "parallax_agent_ejected_as_slow", "1 while an agent is left out as much slower than its group", Family::default()),
            limit: register(r, "parallax_agent_concurrency_limit", "Calls in flight that an agent is sent at most", Family::default()),
            upstream_connections: register(r, "parallax_upstream_connections", "Open connections to agents", Family::default()),
            shed: register(r, "parallax_proxy_shed", "Calls refused for load before an agent was chosen, by priority and bound", Family::default()),
            connections_refused: register(r, "parallax_connections_refused", "Connections of callers closed at once, as there were too many", Counter::default()),
            cache: CacheMetrics {
                calls: {
                    let calls = register(r, "parallax_cache_calls", "Calls that opted for the cache, by what it was to them", Family::default());
                    CacheOutcome::ALL.map(|outcome| calls.get_or_create_owned(&CacheLabel { outcome }))
                },
                stored: register(r, "parallax_cache_stored", "Answers that were stored", Counter::default()),
                evicted: register(r, "parallax_cache_evicted", "Answers that others pushed out", Counter::default()),
                bytes: register(r, "parallax_cache_bytes", "What the answers that are held take", Gauge::default()),
                fallbacks: {
                    let fallbacks = register(r, "parallax_fallbacks", "Failed calls that something else answered, by what did", Family::default());
                    Fallback::ALL.map(|served_by| fallbacks.get_or_create_owned(&FallbackLabel { served_by }))
                },
            },
        }
    }

    /// Whether the directory follows the control plane.
    pub fn set_directory_connected(&self, connected: bool) {
        self.directory_connected.set(connected.into());
    }

    /// The metrics of an agent that exists, at zero if it is new.
    pub fn agent(&self, tenant: &str, agent: &str) -> AgentMetrics {
        let labels = AgentLabels::new(tenant, agent);
        AgentMetrics {
            requests: ProxyOutcome::ALL
                .map(|outcome| self.requests.get_or_create_owned(&labels.with(outcome))),
            duration: self.duration.get_or_create_owned(&labels),
            in_flight: self.in_flight.get_or_create_owned(&labels),
            confidence: self.confidence.get_or_create_owned(&labels),
            breaker: self.breaker.get_or_create_owned(&labels),
            ejected_patterns: self.ejected_patterns.get_or_create_owned(&labels),
            ejected_as_slow: self.ejected_as_slow.get_or_create_owned(&labels),
            limit: self.limit.get_or_create_owned(&labels),
            upstream_connections: self.upstream_connections.get_or_create_owned(&labels),
        }
    }

    /// The counter of calls of one priority that are refused for one bound.
    pub fn shed(&self, priority: CallPriority, bound: LoadBound) -> Counter {
        self.shed.get_or_create_owned(&ShedLabels { priority, bound })
    }

    /// Removes the series of an agent that has left. What is still recorded through its [`AgentMetrics`] is
    /// lost and brings nothing back.
    pub fn remove_agent(&self, tenant: &str, agent: &str) {
        let labels = AgentLabels::new(tenant, agent);
        for outcome in ProxyOutcome::ALL {
            self.requests.remove(&labels.with(outcome));
        }
        self.duration.remove(&labels);
        self.in_flight.remove(&labels);
        self.confidence.remove(&labels);
        self.breaker.remove(&labels);
        self.ejected_patterns.remove(&labels);
        self.ejected_as_slow.remove(&labels);
        self.limit.remove(&labels);
        self.upstream_connections.remove(&labels);
    }
}

impl AgentMetrics {
    /// A proxied call ended.
    pub fn request(&self, outcome: ProxyOutcome, duration: Duration) {
        self.requests[outcome as usize].inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// The state that the agent's breaker has now.
    pub fn set_breaker(&self, state: BreakerState) {
        self.breaker.set(state as i64);
    }
}

mod labels;

use labels::*;
pub use labels::{BreakerState, CacheOutcome, CallPriority, Fallback, LoadBound, ProxyOutcome, RunStatus};

#[cfg(test)]
mod tests;
