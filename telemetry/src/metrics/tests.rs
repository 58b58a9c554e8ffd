use http::{Method, StatusCode};

use super::*;

/// Names and types that dashboards and alerts rely on: a change here breaks them.
const GOLDEN: &[(&str, &str)] = &[
    ("parallax_agents_registered", "gauge"),
    ("parallax_registrations", "counter"),
    ("parallax_runs_active", "gauge"),
    ("parallax_runs_started", "counter"),
    ("parallax_runs_finished", "counter"),
    ("parallax_run_duration_seconds", "histogram"),
    ("parallax_run_effects", "counter"),
    ("parallax_journal_append_seconds", "histogram"),
    ("parallax_http_requests", "counter"),
    ("parallax_grpc_requests", "counter"),
    ("parallax_directory_agents", "gauge"),
    ("parallax_directory_connected", "gauge"),
    ("parallax_confidence_samples_dropped", "counter"),
    ("parallax_proxy_retries", "counter"),
    ("parallax_proxy_retries_denied", "counter"),
    ("parallax_proxy_hedges", "counter"),
    ("parallax_proxy_hedges_won", "counter"),
    ("parallax_proxy_requests", "counter"),
    ("parallax_proxy_duration_seconds", "histogram"),
    ("parallax_proxy_in_flight", "gauge"),
    ("parallax_agent_confidence", "histogram"),
    ("parallax_agent_breaker_state", "gauge"),
    ("parallax_agent_ejected_patterns", "gauge"),
    ("parallax_agent_ejected_as_slow", "gauge"),
    ("parallax_agent_concurrency_limit", "gauge"),
    ("parallax_upstream_connections", "gauge"),
    ("parallax_proxy_shed", "counter"),
    ("parallax_connections_refused", "counter"),
    ("parallax_cache_calls", "counter"),
    ("parallax_cache_stored", "counter"),
    ("parallax_cache_evicted", "counter"),
    ("parallax_cache_bytes", "gauge"),
    ("parallax_fallbacks", "counter"),
];

fn both() -> (Registry, ControlPlaneMetrics, DataPlaneMetrics) {
    let mut registry = Registry::default();
    let control = ControlPlaneMetrics::new(&mut registry);
    let data = DataPlaneMetrics::new(&mut registry);
    (registry, control, data)
}

fn exercise(control: &ControlPlaneMetrics, data: &DataPlaneMetrics) {
    control.set_agents_registered("default", 3);
    control.registrations.inc();
    control.runs_active.inc();
    control.run_started("voting");
    control.run_finished("voting", RunStatus::Completed, Duration::from_millis(20));
    control.run_effect("invoke", "ok");
    control.journal_append.observe(0.001);
    control.http_request(&Method::GET, Some("/api/executions/{id}"), StatusCode::NOT_FOUND);
    control.http_request(&Method::from_bytes(b"BREW").unwrap(), None, StatusCode::NOT_FOUND);
    control.grpc_request("/parallax.registry.Registry/Register", 16);
    control.grpc_request("other", 99);
    data.set_directory_connected(true);
    let agent = data.agent("default", "en");
    agent.request(ProxyOutcome::Timeout, Duration::from_secs(3));
    agent.confidence.observe(0.93);
    agent.in_flight.inc();
    agent.set_breaker(BreakerState::Open);
    data.shed(CallPriority::Sheddable, LoadBound::Tenant).inc();
    data.cache.call(CacheOutcome::Shared);
    data.cache.fallback(Fallback::OtherAgent);
}

#[test]
fn names_and_types_are_golden() {
    let (registry, control, data) = both();
    exercise(&control, &data);
    let (content_type, text) = encode(&registry);
    assert!(content_type.starts_with("application/openmetrics-text"));
    assert!(text.ends_with("# EOF\n"));
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    assert_eq!(types.collect::<Vec<_>>(), GOLDEN);
    for line in [
        r#"parallax_agents_registered{tenant="default"} 3"#,
        "parallax_registrations_total 1",
        r#"parallax_runs_finished_total{pattern="voting",status="completed"} 1"#,
        r#"parallax_run_duration_seconds_bucket{le="0.05",pattern="voting"} 1"#,
        r#"parallax_run_effects_total{kind="invoke",outcome="ok"} 1"#,
        r#"parallax_http_requests_total{method="GET",route="/api/executions/{id}",status="404"} 1"#,
        r#"parallax_http_requests_total{method="other",route="other",status="404"} 1"#,
        r#"parallax_grpc_requests_total{method="/parallax.registry.Registry/Register",code="UNAUTHENTICATED"} 1"#,
        r#"parallax_grpc_requests_total{method="other",code="UNKNOWN"} 1"#,
        "parallax_directory_connected 1",
        r#"parallax_proxy_requests_total{tenant="default",agent="en",outcome="timeout"} 1"#,
        r#"parallax_proxy_requests_total{tenant="default",agent="en",outcome="ok"} 0"#,
        r#"parallax_proxy_in_flight{tenant="default",agent="en"} 1"#,
        r#"parallax_agent_confidence_bucket{le="0.95",tenant="default",agent="en"} 1"#,
        r#"parallax_agent_breaker_state{tenant="default",agent="en"} 2"#,
        r#"parallax_proxy_shed_total{priority="sheddable",bound="tenant"} 1"#,
        r#"parallax_cache_calls_total{outcome="shared"} 1"#,
        r#"parallax_cache_calls_total{outcome="hit"} 0"#,
        r#"parallax_fallbacks_total{served_by="other_agent"} 1"#,
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
}

#[test]
fn what_has_left_leaves_no_series() {
    let (registry, control, data) = both();
    exercise(&control, &data);
    let gone = data.agent("default", "en");
    data.agent("acme", "en");
    data.remove_agent("default", "en");
    gone.request(ProxyOutcome::Ok, Duration::ZERO);
    control.remove_pattern("voting");
    control.remove_tenant("default");
    let (_, text) = encode(&registry);
    for label in [r#"tenant="default""#, r#"pattern="voting""#] {
        assert!(!text.contains(label), "{label} is in\n{text}");
    }
    assert!(text.contains(r#"parallax_proxy_in_flight{tenant="acme",agent="en"} 0"#), "{text}");
}
