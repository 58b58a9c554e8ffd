//! Spans for an exporter alone cost nothing where there is none.

use parallax_telemetry::{Config, EXPORTED_ONLY, Format, init};

#[test]
fn a_span_that_nobody_exports_is_never_made() {
    let _guard = init(Config {
        service_name: "parallax-test".to_owned(),
        instance: "node-1".to_owned(),
        filter: "info".to_owned(),
        format: Format::Text,
        otlp_endpoint: None,
    })
    .unwrap();
    assert!(tracing::info_span!(target: EXPORTED_ONLY, "call").is_disabled());
    assert!(!tracing::info_span!("run").is_disabled());
}
