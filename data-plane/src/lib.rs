//! The data plane: a node through which every call to an agent passes.
//!
//! It follows the control plane's directory of agents, chooses whom to ask, carries the call over long-lived
//! HTTP/2 connections, bounds it in time, and records how it went. To callers it is any agent
//! (`parallax.confidence.ConfidenceAgent`, routed by metadata); to the control plane's drivers it is
//! `parallax.dataplane.v1.DataPlane`.
//!
//! It is not a place for decisions about runs, knows no pattern, and keeps nothing on disk.
//!
//! The way of a call: `server` accepts a connection on one worker, `services` decides who may call what,
//! `proxy` or `fanout` says what is asked for (`ask`), `admission` whether there is room for it, `caller` chooses
//! whom to ask, first, next and beside (`directory`, `group`, `balance`, `breaker`, `limit`, `outlier`), a `call` is
//! sent (`pool`, `upload`; `http_agent` to agents that speak JSON), and what was seen goes to `vitals`, `load` and
//! `tracker`. A call that opted for it is held as a whole (`opted`, `whole`), and may be answered by what is held
//! (`cache`), or by something else when it failed (`fallback`).
//!
//! Invariants:
//! - The data plane never imports the control plane; they meet over gRPC.
//! - A proxied message is never decoded, never held as a whole, and never changed; but for agents that are
//!   reached by HTTP, who speak JSON, and for calls that opted for the cache or a fallback.
//! - No lock is taken on the path of a call; but for one of the cache's, for a look-up, by calls that opted for it.
//!   A worker's state is its thread's own; what workers share are snapshots that are replaced, and atomics.
//! - No call waits for the control plane: while it is away the last directory serves on.
//! - No call is sent twice unless the agent provably never saw it, has refused it, or the caller says that it may
//!   be; and never beyond the budgets of its group.
//! - Every call that was let in is settled exactly once, the dropped ones included: a breaker's probe, a count
//!   of calls in flight, and a connection are never leaked.
//! - A deadline needs no cooperation of the agent, and cancelling a call reaches it.
//! - The tenant of a call comes from the caller's certificate; only the control plane speaks for others.

mod admission;
mod ask;
mod balance;
mod breaker;
mod cache;
mod call;
mod caller;
mod channel;
mod config;
mod directory;
mod error;
mod fallback;
mod fanout;
mod frames;
mod gather;
mod group;
mod hint;
mod http_agent;
mod keepalive;
mod limit;
mod load;
mod metadata;
mod opted;
mod outlier;
mod pool;
mod probe;
mod proxy;
mod scan;
mod server;
mod services;
mod tracker;
mod upload;
mod vitals;
mod whole;

use std::{net::SocketAddr, sync::Arc};

use parallax_proto::dataplane::v1::data_plane_server::SERVICE_NAME;
use parallax_runtime::{env::Env, lifecycle::Lifecycle, store::ConfidenceStore};
use parallax_security::Tls;
use parallax_telemetry::{Registry, admin::Readiness, health, metrics::DataPlaneMetrics};
use tokio::sync::oneshot;
use tonic::service::Routes;
use tracing::{error, info};

pub use balance::{Balance, Strategy};
pub use breaker::Policy;
pub use cache::Caching;
pub use config::{Config, Hedge, Retry};
pub use error::Error;
pub use fallback::{Fallbacks, Kind as FallbackKind, Preset, Rule as FallbackRule};
pub use limit::Limits;
pub use outlier::Outliers;

use admission::Holding;
use cache::Cache;
use config::Current;
use directory::{
    Directory,
    follow::{Followed, Follower},
};

/// A running node. It runs until its lifecycle stops, whether this handle is kept or not.
#[derive(Debug)]
pub struct DataPlane {
    grpc: SocketAddr,
    admin: SocketAddr,
    readiness: Readiness,
    registry: Arc<Registry>,
    config: Current,
    cache: Arc<Cache>,
}

impl DataPlane {
    /// Takes the ports and starts the node's workers and tasks under `life`. Needs a tokio runtime, for all
    /// but the workers. The control plane need not be there yet.
    ///
    /// When `life` stops the node accepts no more, says goodbye to its callers, lets calls in flight end for
    /// [`Config::drain`], and stores the samples that are left.
    ///
    /// # Errors
    /// An address that is taken or not this machine's, a setting that cannot be, no more threads.
    pub async fn bind(
        config: Config,
        tls: Tls,
        env: Arc<dyn Env>,
        confidence: Arc<dyn ConfidenceStore>,
        life: &Lifecycle,
    ) -> Result<Self, Error> {
        config.check()?;
        let current = Current::from(config.clone());
        let mut registry = Registry::default();
        let metrics = DataPlaneMetrics::new(&mut registry);
        let registry = Arc::new(registry);
        let directory = Arc::new(Directory::new());
        let readiness = Readiness::new();
        let joining = readiness.block("directory");

        let (grpc, listeners) = server::listen("gRPC port", config.grpc, config.workers)?;
        let (admin, mut admin_listener) = server::listen("admin port", config.admin, 1)?;
        let admin_listener = admin_listener.pop().expect("one was asked for");
        let admin_listener = tokio::net::TcpListener::from_std(admin_listener)
            .map_err(|source| Error::Listen { what: "admin port", addr: admin, source })?;

        let (recorder, tracker) =
            tracker::tracker(config.sample_queue, confidence, env.clone(), metrics.clone());
        let cache = Arc::new(Cache::new(current.clone(), metrics.cache.clone()));
        let holding = Holding::new(current.clone());
        let (health_service, report) =
            health::service(&HEALTH_SERVICES, readiness.clone(), life.stopping()).await;
        for (number, listener) in listeners.into_iter().enumerate() {
            let worker = server::Worker {
                config: current.clone(),
                tls: tls.clone(),
                env: env.clone(),
                directory: directory.clone(),
                recorder: recorder.clone(),
                metrics: metrics.clone(),
                cache: cache.clone(),
                holding: holding.clone(),
                routes: Routes::new(health_service.clone()),
                life: life.clone(),
            };
            worker.start(number, listener)?;
        }
        // The workers hold the others: when the last of them has stopped the tracker does.
        drop(recorder);
        let (last, drained) = oneshot::channel::<()>();
        life.spawn("data-plane tracker", async move {
            tracker.run().await;
            drop(last);
        });
        life.spawn("data-plane health", report);

        let router = services::admin(readiness.clone(), registry.clone(), directory.clone());
        let (stopping, stopped) = (life.stopping(), readiness.clone());
        life.spawn("data-plane admin", async move {
            let drained = async move {
                stopping.await;
                let _stopping = stopped.block("stopping");
                drained.await.ok();
            };
            if let Err(e) = axum::serve(admin_listener, router).with_graceful_shutdown(drained).await {
                error!("the admin port failed: {e}");
            }
        });
        life.spawn_until_stopped("data-plane outliers", outlier::run(directory.clone(), current.clone()));
        let followed = Followed::new(current.clone(), directory, metrics, joining);
        for control_plane in &config.control_planes {
            let follower = Follower {
                control_plane: control_plane.clone(),
                advertise: config.advertise.clone().unwrap_or_else(|| grpc.to_string()),
                config: current.clone(),
                tls: tls.clone(),
                env: env.clone(),
                followed: followed.clone(),
            };
            life.spawn_until_stopped("data-plane directory", follower.run());
        }
        info!(%grpc, %admin, "data plane listens");
        Ok(Self { grpc, admin, readiness, registry, config: current, cache })
    }

    /// Replaces the settings, without touching a call: those that begin from now on go by the new ones. What the node
    /// was bound with stays as it is: names and addresses, `plaintext`, `workers`, `max_message` of drivers, and
    /// `sample_queue`.
    ///
    /// # Errors
    /// A setting that cannot be; then nothing has changed.
    pub fn reconfigure(&self, change: impl FnOnce(Config) -> Config) -> Result<(), Error> {
        let config = change(Config::clone(&self.config.now()));
        config.check()?;
        self.config.replace(config);
        self.cache.resize();
        Ok(())
    }

    /// Where callers reach the node.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc
    }

    /// Where operators reach it.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// Not ready before the first directory has come.
    #[must_use]
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// What the node counts, as `/metrics` shows it.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }
}

/// What gRPC health checks ask about: the node, and its service.
const HEALTH_SERVICES: [&str; 2] = ["", SERVICE_NAME];
