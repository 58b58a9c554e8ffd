//! The settings of a process, and what follows from them.

use std::{
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use parallax_data_plane::{Balance, Caching, Fallbacks, Hedge, Retry};
use parallax_runtime::{
    config::{self, Flag, Loaded},
    env::millis,
};
use parallax_telemetry::Format;
use serde::{Deserialize, Serialize};

use crate::{
    args::Place,
    exit::{Exit, Result},
};

/// Everything that can be set. An empty text means that there is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where certificates and embedded stores are kept.
    pub data_dir: PathBuf,
    /// How long calls and runs in flight may take to end when the process stops.
    pub drain_seconds: u64,
    /// How long a process that was told to stop goes on as before, and says that it is not ready, until whoever spreads
    /// calls over processes has noticed; a second signal ends that. It comes before the drain.
    pub shutdown_delay_seconds: u32,
    pub control_plane: ControlPlane,
    pub data_plane: DataPlane,
    pub stores: Stores,
    pub tls: Tls,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlPlane {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    /// `host:port` at which data-plane nodes reach this replica; empty means what it listens on.
    pub advertise: String,
    /// Whether plaintext from loopback is served beside mTLS.
    pub local: bool,
    /// A directory of `*.prism` files.
    pub patterns: String,
    pub run_timeout_seconds: u64,
    pub call_timeout_seconds: u64,
    /// Runs that are driven at once.
    pub max_runs: NonZeroUsize,
    /// Runs that may wait for their turn; the next is refused.
    pub max_queued_runs: usize,
    /// How long a control plane may be silent before another takes over its runs.
    pub owner_ttl_seconds: NonZeroU64,
    /// Whether webhooks may lead to loopback and private networks; in local mode they may. To link-local addresses,
    /// where clouds keep credentials, they never lead.
    pub webhook_private_networks: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPlane {
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    /// `host:port` at which the control plane reaches this node; empty means what it listens on.
    pub advertise: String,
    /// `host:port` of each replica of the control plane, with commas between; empty means the one in the same
    /// process.
    pub control_plane: String,
    /// Threads that serve calls; 0 means one, or one per core when the node stands alone.
    pub workers: usize,
    pub balance: Balance,
    pub retry: Retry,
    pub hedge: Hedge,
    pub cache: Caching,
    pub fallback: Fallbacks,
    /// Calls in flight in the node. Of those with the metadata `x-parallax-priority: sheddable` 70 % of it, of
    /// ones without any 90 %.
    pub max_in_flight: usize,
    /// Connections of callers.
    pub max_connections: usize,
    /// Bytes of requests that are held as a whole: by `FanOut`, and for the cache and fallbacks.
    pub max_held_bytes: usize,
    /// How long an agent that is new or has recovered is given fewer calls than its share.
    pub slow_start_ms: u64,
    pub breaker: Breaker,
    pub limits: Limits,
    pub outliers: Outliers,
}

/// When an agent is not asked any more, and for how long: `parallax_data_plane::Policy`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub failures: u16,
    /// The share of failures that opens it, among at least so many calls of the window.
    pub ratio: f64,
    pub ratio_calls: u32,
    pub window_ms: u64,
    /// How long it stays open the first time, and the longest.
    pub first_ms: u64,
    pub longest_ms: u64,
    /// How long an agent rests that says it has too much to do, and not until when: the first time, and the longest.
    pub first_rest_ms: u64,
    pub longest_rest_ms: u64,
    /// The longest rest of one that says until when.
    pub longest_hint_ms: u64,
}

/// How many calls in flight an agent is sent: `parallax_data_plane::Limits`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub least: u32,
    pub most: u32,
    /// How many times slower than unloaded is no queue yet.
    pub tolerance: f64,
    /// How much slower than unloaded is no queue yet, however many times.
    pub slack_ms: u64,
    pub interval_ms: u64,
}

/// When an agent is left out for being slower than its group: `parallax_data_plane::Outliers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outliers {
    /// How many times slower than the median.
    pub factor: f64,
    /// Below this latency nobody is too slow.
    pub least_ms: u64,
    /// Calls within the breaker's window that it takes to compare.
    pub calls: u32,
    /// How long, times the number of times in a row, and the longest.
    pub first_ms: u64,
    pub longest_ms: u64,
}

impl DataPlane {
    /// What a node is bound with; the rest can be changed while it runs.
    pub const BOUND: [&str; 5] = ["grpc", "admin", "advertise", "control_plane", "workers"];

    /// What is set of a node's configuration here, over `config`.
    #[must_use]
    pub fn over(&self, config: parallax_data_plane::Config) -> parallax_data_plane::Config {
        let ms = Duration::from_millis;
        let Self { breaker, limits, outliers, .. } = self;
        parallax_data_plane::Config {
            balance: self.balance.clone(),
            retry: self.retry,
            hedge: self.hedge,
            cache: self.cache.clone(),
            fallback: self.fallback.clone(),
            max_in_flight: self.max_in_flight,
            max_connections: self.max_connections,
            max_held_bytes: self.max_held_bytes,
            slow_start: ms(self.slow_start_ms),
            breaker: parallax_data_plane::Policy {
                failures: breaker.failures,
                ratio: breaker.ratio,
                ratio_calls: breaker.ratio_calls,
                window: ms(breaker.window_ms),
                first: ms(breaker.first_ms),
                longest: ms(breaker.longest_ms),
                rest: (ms(breaker.first_rest_ms), ms(breaker.longest_rest_ms)),
                longest_hint: ms(breaker.longest_hint_ms),
            },
            limits: parallax_data_plane::Limits {
                least: limits.least,
                most: limits.most,
                tolerance: limits.tolerance,
                slack: ms(limits.slack_ms),
                interval: ms(limits.interval_ms),
            },
            outliers: parallax_data_plane::Outliers {
                factor: outliers.factor,
                least: ms(outliers.least_ms),
                calls: outliers.calls,
                first: ms(outliers.first_ms),
                longest: ms(outliers.longest_ms),
            },
            ..config
        }
    }
}

impl From<&parallax_data_plane::Config> for DataPlane {
    fn from(config: &parallax_data_plane::Config) -> Self {
        let (breaker, limits, outliers) = (&config.breaker, &config.limits, &config.outliers);
        Self {
            grpc: config.grpc,
            admin: config.admin,
            advertise: String::new(),
            control_plane: String::new(),
            workers: 0,
            balance: config.balance.clone(),
            retry: config.retry,
            hedge: config.hedge,
            cache: config.cache.clone(),
            fallback: config.fallback.clone(),
            max_in_flight: config.max_in_flight,
            max_connections: config.max_connections,
            max_held_bytes: config.max_held_bytes,
            slow_start_ms: millis(config.slow_start),
            breaker: Breaker {
                failures: breaker.failures,
                ratio: breaker.ratio,
                ratio_calls: breaker.ratio_calls,
                window_ms: millis(breaker.window),
                first_ms: millis(breaker.first),
                longest_ms: millis(breaker.longest),
                first_rest_ms: millis(breaker.rest.0),
                longest_rest_ms: millis(breaker.rest.1),
                longest_hint_ms: millis(breaker.longest_hint),
            },
            limits: Limits {
                least: limits.least,
                most: limits.most,
                tolerance: limits.tolerance,
                slack_ms: millis(limits.slack),
                interval_ms: millis(limits.interval),
            },
            outliers: Outliers {
                factor: outliers.factor,
                least_ms: millis(outliers.least),
                calls: outliers.calls,
                first_ms: millis(outliers.first),
                longest_ms: millis(outliers.longest),
            },
        }
    }
}

/// URLs; a relative path of an `embedded:` store is below the data directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stores {
    pub registry: String,
    pub runs: String,
    pub confidence: String,
}

/// PEM files; all empty means the authority in the data directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// A level, and those of targets that differ: `info,parallax_data_plane=debug`.
    pub filter: String,
    pub json: bool,
    /// gRPC endpoint of an OpenTelemetry collector.
    pub otlp_endpoint: String,
}

impl Settings {
    fn defaults(data_dir: PathBuf) -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            data_dir,
            drain_seconds: 10,
            shutdown_delay_seconds: 0,
            control_plane: ControlPlane {
                http: loopback(3000),
                grpc: loopback(50051),
                advertise: String::new(),
                local: true,
                patterns: String::new(),
                run_timeout_seconds: 300,
                call_timeout_seconds: 30,
                max_runs: const { NonZeroUsize::new(256).expect("not zero") },
                max_queued_runs: 1024,
                owner_ttl_seconds: const { NonZeroU64::new(5).expect("not zero") },
                webhook_private_networks: false,
            },
            data_plane: (&parallax_data_plane::Config::default()).into(),
            stores: Stores {
                registry: "embedded:registry.db".to_owned(),
                runs: "embedded:runs.db".to_owned(),
                confidence: "embedded:confidence.db".to_owned(),
            },
            tls: Tls::default(),
            telemetry: Telemetry { filter: "info".to_owned(), json: false, otlp_endpoint: String::new() },
        }
    }

    /// Reads all layers.
    ///
    /// # Errors
    /// Whatever [`config::load`] complains of; what no process could run with; no home directory.
    pub fn load(place: &Place, flags: &[Flag<'_>]) -> Result<Loaded<Self>> {
        let data_dir = data_dir(place)?;
        let env = std::env::vars().filter(|(name, _)| name != "PARALLAX_DATA_DIR");
        let mut flags = flags.to_vec();
        if let Some(given) = &place.data_dir {
            flags.push(("--data-dir", "data_dir", given.display().to_string()));
        }
        let loaded = config::load(&Self::defaults(data_dir), place.config.as_deref(), env, &flags);
        let loaded = loaded.map_err(Exit::usage)?;
        let settings = &loaded.settings;
        settings.data_plane.over(parallax_data_plane::Config::default()).check().map_err(Exit::usage)?;
        settings.telemetry().check().map_err(Exit::usage)?;
        Ok(loaded)
    }

    /// How this process tells about itself.
    #[must_use]
    pub fn telemetry(&self) -> parallax_telemetry::Config {
        let Telemetry { filter, json, otlp_endpoint } = self.telemetry.clone();
        parallax_telemetry::Config {
            service_name: "parallax".to_owned(),
            instance: std::process::id().to_string(),
            filter,
            format: if json { Format::Json } else { Format::Text },
            otlp_endpoint: Some(otlp_endpoint).filter(|endpoint| !endpoint.is_empty()),
        }
    }

    /// A store's URL with its path made absolute.
    #[must_use]
    pub fn store_url(&self, url: &str) -> String {
        match url.strip_prefix("embedded:") {
            Some(path) => format!("embedded:{}", self.data_dir.join(path).display()),
            None => url.to_owned(),
        }
    }

    /// How long to drain.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    /// How long to go on when told to stop.
    #[must_use]
    pub fn shutdown_delay(&self) -> Duration {
        Duration::from_secs(self.shutdown_delay_seconds.into())
    }
}

/// Where everything is: the flag, the environment (clap reads it), or `~/.parallax`.
///
/// # Errors
/// No home directory.
pub fn data_dir(place: &Place) -> Result<PathBuf> {
    if let Some(dir) = &place.data_dir {
        return Ok(dir.clone());
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or_else(|| Exit::usage("there is no HOME; name a directory with --data-dir"))?;
    Ok(Path::new(&home).join(".parallax"))
}
