//! [W3C trace context](https://www.w3.org/TR/trace-context/) in HTTP headers, which gRPC metadata is too.
//!
//! Without an exporter spans have no context: [`inject`] changes nothing, [`extract`] looks for one header.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

/// Writes the current span's context into the headers of an outgoing call, over what is there. Without a
/// context the headers stay as they are.
pub fn inject(headers: &mut HeaderMap) {
    let context = Span::current().context();
    if context.span().span_context().is_valid() {
        TraceContextPropagator::new().inject_context(&context, &mut Headers(headers));
    }
}

/// Makes the caller whose context is in the headers of an incoming call the parent of `span`, which must not
/// have been entered yet. Headers without a context, or with a malformed one, leave `span` a root.
pub fn extract(headers: &HeaderMap, span: &Span) {
    if !headers.contains_key(TRACEPARENT) {
        return;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Reader(headers));
    if context.span().span_context().is_valid() {
        // It fails only for a span that nobody exports.
        let _ = span.set_parent(context);
    }
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        let Ok(name) = HeaderName::try_from(key) else { return };
        match HeaderValue::try_from(value) {
            Ok(value) if !value.is_empty() => self.0.insert(name, value),
            // A state of another trace must not stay beside a new parent.
            _ => self.0.remove(name),
        };
    }
}

struct Reader<'a>(&'a HeaderMap);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn incoming(parent: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, parent.parse().unwrap());
        headers.insert("tracestate", "vendor=1".parse().unwrap());
        headers
    }

    fn call(headers: &HeaderMap, outgoing: &mut HeaderMap) {
        let span = tracing::info_span!("call");
        extract(headers, &span);
        span.in_scope(|| inject(outgoing));
    }

    #[test]
    fn a_trace_goes_in_and_out() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
            let mut outgoing = HeaderMap::new();
            call(&incoming(&parent), &mut outgoing);
            let sent = outgoing[TRACEPARENT].to_str().unwrap();
            assert!(sent.contains(TRACE) && sent != parent, "the same trace, another span: {sent}");
            assert_eq!(outgoing["tracestate"], "vendor=1");

            for malformed in
                ["", "00-0-0-01", "garbage", "00-00000000000000000000000000000000-b7ad6b7169203331-01"]
            {
                let mut outgoing = incoming(&parent);
                call(&incoming(malformed), &mut outgoing);
                assert!(!outgoing[TRACEPARENT].to_str().unwrap().contains(TRACE), "a root of its own");
                assert!(!outgoing.contains_key("tracestate"), "no state of another trace");
            }
        });
    }

    #[test]
    fn without_an_exporter_headers_stay() {
        let headers = incoming(&format!("00-{TRACE}-b7ad6b7169203331-01"));
        let mut outgoing = headers.clone();
        tracing::subscriber::with_default(tracing_subscriber::registry(), || call(&headers, &mut outgoing));
        assert_eq!(outgoing, headers);
        let mut none = HeaderMap::new();
        call(&headers, &mut none);
        assert!(none.is_empty());
    }
}
