//! A collector that never answers delays the end of the process by no more than the bound.

use std::time::Duration;

use parallax_telemetry::{Code, Config, Format, init};

// One thread: the flush must not wait for the runtime that it blocks.
#[tokio::test(flavor = "current_thread")]
async fn the_last_flush_is_bounded() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let guard = init(Config {
        service_name: "parallax-test".to_owned(),
        instance: "1".to_owned(),
        filter: "off,parallax_test=info".to_owned(),
        format: Format::Text,
        otlp_endpoint: Some(endpoint.clone()),
    })
    .unwrap();
    tracing::info_span!(target: "parallax_test", "lost").in_scope(|| {});
    // That it fails shows the bound: the exporter's own time-out is longer, and ends in success.
    let error = guard.shutdown(Duration::from_millis(50)).unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.to_string().contains(&endpoint), "{error}");
}
