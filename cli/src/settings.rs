//! The settings of a process, and what follows from them.

use std::{
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use parallax_data_plane::{Balance, Hedge, Retry};
use parallax_runtime::config::{self, Flag, Loaded};
use serde::{Deserialize, Serialize};

use crate::{
    args::Args,
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
    /// As tracing's EnvFilter reads it.
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
            data_plane: DataPlane {
                grpc: loopback(50052),
                admin: loopback(3001),
                advertise: String::new(),
                control_plane: String::new(),
                workers: 0,
                balance: Balance::default(),
                retry: Retry::default(),
                hedge: Hedge::default(),
            },
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
    /// Whatever [`config::load`] complains of; no home directory.
    pub fn load(args: &Args, flags: &[Flag<'_>]) -> Result<Loaded<Self>> {
        let data_dir = data_dir(args)?;
        let env = std::env::vars().filter(|(name, _)| name != "PARALLAX_DATA_DIR");
        let mut flags = flags.to_vec();
        if let Some(given) = &args.data_dir {
            flags.push(("--data-dir", "data_dir", given.display().to_string()));
        }
        config::load(&Self::defaults(data_dir), args.config.as_deref(), env, &flags).map_err(Exit::usage)
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
}

/// Where everything is: the flag, the environment (clap reads it), or `~/.parallax`.
///
/// # Errors
/// No home directory.
pub fn data_dir(args: &Args) -> Result<PathBuf> {
    if let Some(dir) = &args.data_dir {
        return Ok(dir.clone());
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.ok_or_else(|| Exit::usage("there is no HOME; name a directory with --data-dir"))?;
    Ok(Path::new(&home).join(".parallax"))
}
