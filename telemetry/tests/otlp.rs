//! Spans reach a real collector, with the parent that came in a header, when the guard ends.

use std::time::Duration;

use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use parallax_telemetry::{Config, Format, init, propagate};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_span_arrives_with_its_parent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut received) = mpsc::unbounded_channel();
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);

    let guard = init(Config {
        service_name: "parallax-test".to_owned(),
        instance: "node-1".to_owned(),
        // The exporter's own spans are let through here, and must not be exported.
        filter: "off,parallax_test=info,h2=debug".to_owned(),
        format: Format::Json,
        otlp_endpoint: Some(endpoint),
    })
    .unwrap();
    let mut incoming = HeaderMap::new();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    incoming.insert("traceparent", parent.parse().unwrap());
    let mut outgoing = HeaderMap::new();
    {
        let span = tracing::info_span!(target: "parallax_test", "proxy", agent = "en");
        propagate::extract(&incoming, &span);
        span.in_scope(|| {
            propagate::inject(&mut outgoing);
            tracing::info_span!(target: "parallax_test", "attempt").in_scope(|| {});
        });
    }
    guard.shutdown(Duration::from_secs(20)).unwrap();

    let mut spans = Vec::new();
    while let Ok(request) = received.try_recv() {
        for resource in request.resource_spans {
            let attributes = format!("{:?}", resource.resource);
            assert!(attributes.contains("parallax-test") && attributes.contains("node-1"), "{attributes}");
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    spans.sort_by(|one, other| other.name.cmp(&one.name));
    let [proxy, attempt] = &spans[..] else {
        panic!(
            "two spans, not those of the exporter: {:?}",
            spans.iter().map(|s| &s.name).collect::<Vec<_>>()
        )
    };
    assert_eq!((proxy.name.as_str(), attempt.name.as_str()), ("proxy", "attempt"));
    assert_eq!(hex(&proxy.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&proxy.parent_span_id), "b7ad6b7169203331");
    assert_eq!(attempt.parent_span_id, proxy.span_id);
    let sent = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", hex(&proxy.span_id));
    assert_eq!(outgoing["traceparent"], sent.as_str());
}
