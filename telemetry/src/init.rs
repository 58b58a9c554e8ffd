use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tokio::runtime::Runtime;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer,
    filter::{ParseError, Targets, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{Error, Result};

/// How long a [`Guard`] that is dropped without [`Guard::shutdown`] waits for the last spans.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// Libraries below the exporter: were their spans exported, each export would make new ones.
const BELOW_THE_EXPORTER: [&str; 6] = ["h2", "hyper", "hyper_util", "opentelemetry", "tonic", "tower"];

/// The target of spans that only an exporter is to see. Without one they are never made: a proxied call is not to pay
/// for a span that is formatted for log lines and never read.
pub const EXPORTED_ONLY: &str = "parallax::exported";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people; coloured if standard error is a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// What [`init`] sets up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The role, such as `parallax-control-plane`: `service.name` of exported spans.
    pub service_name: String,
    /// Which process of that role: `service.instance.id` of exported spans.
    pub instance: String,
    /// A level, and those of targets that differ: `info,parallax_data_plane=debug`.
    pub filter: String,
    pub format: Format,
    /// The collector's gRPC address, such as `http://localhost:4317`; spans are exported only if it is given.
    /// `https` is not supported: a collector runs beside its process and does the TLS.
    pub otlp_endpoint: Option<String>,
}

impl Config {
    /// Whether [`init`] could be called with it.
    ///
    /// Errors: a bad filter or endpoint (named).
    pub fn check(&self) -> Result<()> {
        self.filter()?;
        self.otlp_endpoint.as_deref().map_or(Ok(()), check_endpoint)
    }

    fn filter(&self) -> Result<Targets> {
        let fail = |reason: &str| Error::Filter { filter: self.filter.clone(), reason: reason.to_owned() };
        let parts = self.filter.split(',').map(str::trim);
        // They would be read as targets of this name.
        if parts.clone().any(|part| part.contains(['[', ' ']) || part.ends_with('=')) {
            return Err(fail("each part is a level, or a target and its level"));
        }
        let parts: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
        parts.join(",").parse().map_err(|e: ParseError| fail(&e.to_string()))
    }
}

/// Sends logs to standard error and, given an endpoint, spans to a collector, from now to the end of the
/// process. Call it once, first in main; it does not wait for the collector, nor need a runtime.
///
/// Errors: a bad filter or endpoint (named), a second call.
pub fn init(config: Config) -> Result<Guard> {
    let mut filter = config.filter()?;
    if config.otlp_endpoint.is_none() {
        // Here, and not in the filter of the lines: what one layer does not want is made all the same.
        filter = filter.with_target(EXPORTED_ONLY, LevelFilter::OFF);
    }
    let export =
        config.otlp_endpoint.as_deref().map(|endpoint| Export::start(&config, endpoint)).transpose()?;
    let spans = export.as_ref().map(|export| {
        let own = BELOW_THE_EXPORTER.map(|target| (target, LevelFilter::OFF));
        tracing_opentelemetry::layer()
            .with_tracer(export.provider.tracer("parallax"))
            .with_threads(false)
            .with_filter(Targets::new().with_default(LevelFilter::TRACE).with_targets(own))
    });
    let lines = fmt::layer().with_writer(stderr);
    let lines = match config.format {
        Format::Text => lines.with_ansi(stderr().is_terminal()).boxed(),
        Format::Json => lines.json().boxed(),
    };
    let lines = lines.with_filter(filter_fn(|metadata| metadata.target() != EXPORTED_ONLY));
    let subscriber = tracing_subscriber::registry().with(filter).with(spans).with(lines);
    subscriber.try_init().map_err(|_| Error::AlreadyInitialised)?;
    Ok(Guard { export })
}

/// Keeps the exporter running. Ends it when dropped, with a last flush of two seconds at most.
#[must_use = "dropping the guard ends the export of spans"]
pub struct Guard {
    export: Option<Export>,
}

impl Guard {
    /// Sends the spans that are still here and ends the exporter. Blocks the thread for `timeout` at most,
    /// and for no time without an exporter. Later spans are lost. Errors: [`Error::Flush`] when the time is
    /// over; a collector that refuses the spans before loses them without an error.
    pub fn shutdown(mut self, timeout: Duration) -> Result<()> {
        self.export.take().map_or(Ok(()), |export| export.stop(timeout))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure.
        let _ = self.export.take().map(|export| export.stop(DROP_TIMEOUT));
    }
}

struct Export {
    endpoint: String,
    provider: SdkTracerProvider,
    /// The connection's own: the last flush blocks its caller, and must not wait for a runtime that is that
    /// caller, or has ended before it.
    runtime: Runtime,
}

impl Export {
    fn start(config: &Config, endpoint: &str) -> Result<Self> {
        check_endpoint(endpoint)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp")
            .enable_all()
            .build()
            .map_err(Error::Start)?;
        let exporter = {
            let _entered = runtime.enter();
            let builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
            builder.build().map_err(|e| bad_endpoint(endpoint, e.to_string()))?
        };
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.instance.id", config.instance.clone()))
            .build();
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        Ok(Self { endpoint: endpoint.to_owned(), provider, runtime })
    }

    fn stop(self, timeout: Duration) -> Result<()> {
        let done = self.provider.shutdown_with_timeout(timeout);
        self.runtime.shutdown_background();
        done.map_err(|e| Error::Flush { endpoint: self.endpoint, timeout, reason: e.to_string() })
    }
}

fn check_endpoint(endpoint: &str) -> Result<()> {
    let uri = endpoint.parse::<http::Uri>().map_err(|e| bad_endpoint(endpoint, e.to_string()))?;
    let reason = match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => return Ok(()),
        (Some("https"), _) => "https is not supported, use a collector on this machine".to_owned(),
        (Some(scheme), _) => format!("its scheme is {scheme:?}"),
        (None, _) => "it has no scheme".to_owned(),
    };
    Err(bad_endpoint(endpoint, reason))
}

fn bad_endpoint(endpoint: &str, reason: String) -> Error {
    Error::Endpoint { endpoint: endpoint.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(filter: &str, otlp_endpoint: Option<&str>) -> Config {
        Config {
            service_name: "test".to_owned(),
            instance: "1".to_owned(),
            filter: filter.to_owned(),
            format: Format::Text,
            otlp_endpoint: otlp_endpoint.map(str::to_owned),
        }
    }

    #[test]
    fn bad_settings_are_named_and_change_nothing() {
        for (filter, endpoint, named) in [
            ("info,parallax=loud", None, "\"info,parallax=loud\""),
            ("info,parallax[call]=debug", None, "a target and its level"),
            ("info,parallax=", None, "a target and its level"),
            ("info", Some(""), "OTLP endpoint \"\""),
            ("info", Some("localhost:4317"), "\"localhost:4317\""),
            ("info", Some("ftp://localhost"), "its scheme is \"ftp\""),
            ("info", Some("https://collector:4317"), "https is not supported"),
            ("info", Some("http://two words"), "\"http://two words\""),
        ] {
            let config = config(filter, endpoint);
            let checked = config.check().unwrap_err();
            let error = init(config).err().unwrap();
            assert_eq!((error.code(), error.to_string()), (crate::Code::Invalid, checked.to_string()));
            assert!(error.to_string().contains(named), "{error}");
        }
        for lenient in ["info,", "info, h2=debug", " info ,, h2=debug"] {
            let filter = config(lenient, None).filter().unwrap();
            assert!(filter.would_enable("parallax", &tracing::Level::INFO), "{lenient}");
            let debug = filter.would_enable("h2", &tracing::Level::DEBUG);
            assert_eq!(debug, lenient.contains("h2"), "{lenient}");
        }
        let guard = init(config("off", None)).unwrap();
        guard.shutdown(Duration::ZERO).unwrap();
        assert!(matches!(init(config("off", None)), Err(Error::AlreadyInitialised)));
    }
}
