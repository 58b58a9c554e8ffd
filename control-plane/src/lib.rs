//! The control plane: who is registered, which patterns there are, and the runs that coordinate the one by the
//! other.
//!
//! It is not a proxy: no call to an agent leaves from here. It asks data-plane nodes, which joined it by
//! following the directory.
//!
//! Invariants:
//! - It never imports the data plane and never dials an agent.
//! - It never renews a lease: only an agent's own renewal keeps the agent.
//! - What a run asks for is in its journal, on disk, before it is done.
//! - The services translate; every rule is in a module that knows no wire.

mod coordinate;
mod dispatch;
mod driver;
mod error;
mod gateway;
mod leader;
mod mirror;
mod patterns;
mod registry;
mod replay;
mod runs;
mod schedules;
mod services;
mod stats;
mod tenant;
mod timeline;
mod view;
mod webhooks;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use parallax_proto::{
    FILE_DESCRIPTOR_SET, confidence::confidence_agent_server::ConfidenceAgentServer,
    controlplane::v1::directory_server::DirectoryServer, coordinator::coordinator_server::CoordinatorServer,
    executions::execution_service_server::ExecutionServiceServer,
    gateway::agent_gateway_server::AgentGatewayServer,
    patterns::pattern_service_server::PatternServiceServer, registry::registry_server::RegistryServer,
};
use parallax_runtime::{
    env::Env,
    lifecycle::Lifecycle,
    serve::{bind, serve},
    store::{RegistryStore, RunStore},
};
use parallax_security::{Alpn, Plaintext, Tls};
use parallax_telemetry::{admin::Readiness, health, metrics};
use thiserror::Error;

pub use dispatch::Nodes;
pub use error::{Error, Result};
use gateway::Gateway;
pub use patterns::{
    Catalog, CatalogError, Header, InvalidPattern, Library, Pattern, Upload, Version, compile, kebab,
};
pub use registry::{Registry, Update};
pub use runs::{Bounds, Context, Request, Runs};
use schedules::Schedules;
use webhooks::Webhooks;

/// What a control plane is started with.
pub struct Config {
    /// Of the gRPC port; port 0 takes any.
    pub grpc: SocketAddr,
    /// Of the HTTP port; port 0 takes any.
    pub http: SocketAddr,
    /// Whether plaintext from loopback is served beside mTLS, for agents and clients that speak nothing else.
    pub local: bool,
    /// `*.prism` files beside or in place of the embedded patterns.
    pub patterns: Option<PathBuf>,
    pub bounds: Bounds,
    /// `host:port` at which data-plane nodes reach the gRPC port; none means the address that was bound.
    pub advertise: Option<String>,
    /// Whether webhooks may lead to loopback and private networks.
    pub private_webhooks: bool,
    /// Not ready until this many data-plane nodes have joined.
    pub nodes_wanted: usize,
}

/// Why a control plane did not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("{0}")]
    Bind(String),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Open(#[from] Error),
}

/// A control plane that serves.
pub struct ControlPlane {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub readiness: Readiness,
}

impl ControlPlane {
    /// Opens, binds and serves, as tasks of `life`; goes on with the runs that other processes left.
    ///
    /// # Errors
    /// A port that is taken, a pattern that is none, a store that fails.
    pub async fn start(
        config: Config,
        tls: Tls,
        env: Arc<dyn Env>,
        registry: Arc<dyn RegistryStore>,
        runs: Arc<dyn RunStore>,
        life: &Lifecycle,
    ) -> Result<Self, StartError> {
        let grpc =
            bind("gRPC port of the control plane (--grpc)", config.grpc).await.map_err(StartError::Bind)?;
        let http =
            bind("HTTP port of the control plane (--http)", config.http).await.map_err(StartError::Bind)?;
        let (grpc_addr, http_addr) = (local_addr(&grpc)?, local_addr(&http)?);
        let catalog = Catalog::open(config.patterns.as_deref(), registry.clone(), env.clone(), life).await?;
        let mut instruments = parallax_telemetry::Registry::default();
        let metrics = Arc::new(metrics::ControlPlaneMetrics::new(&mut instruments));
        let store = registry.clone();
        let registry = Registry::open(registry, env.clone(), metrics.clone(), life).await?;
        let nodes = Nodes::new(tls.clone(), env.clone());
        let runs = Runs::open(Context {
            store: runs,
            catalog: catalog.clone(),
            registry: registry.clone(),
            nodes: nodes.clone(),
            env: env.clone(),
            metrics: metrics.clone(),
            bounds: config.bounds,
            life: life.clone(),
        })
        .await?;
        let endpoint = config.advertise.unwrap_or_else(|| grpc_addr.to_string());
        let gateway =
            services::gateway::Service(Gateway::new(registry.clone(), env.clone(), life.clone(), endpoint));
        let schedules = Schedules::open(store.clone(), &runs);
        let webhooks = Webhooks::open(store, &runs, config.private_webhooks);
        let readiness = Readiness::new();
        let (health_service, report) = health::service(&[""], readiness.clone(), life.stopping()).await;

        let grpc_router = tonic::service::Routes::default()
            .add_service(health_service)
            .add_service(reflection())
            .add_service(RegistryServer::new(services::registry::Service {
                registry: registry.clone(),
                env: env.clone(),
                life: life.clone(),
            }))
            .add_service(PatternServiceServer::new(services::patterns::Service {
                catalog: catalog.clone(),
                runs: runs.clone(),
            }))
            .add_service(ExecutionServiceServer::new(services::executions::Service { runs: runs.clone() }))
            .add_service(CoordinatorServer::new(services::coordinator::Service { runs: runs.clone() }))
            .add_service(DirectoryServer::new(services::directory::Service {
                registry: registry.clone(),
                nodes: nodes.clone(),
                life: life.clone(),
            }))
            .add_service(AgentGatewayServer::new(gateway.clone()))
            .add_service(ConfidenceAgentServer::new(gateway))
            .prepare()
            .into_axum_router();
        let http_router = services::http::router(services::http::Api {
            registry,
            catalog,
            runs: runs.clone(),
            schedules,
            webhooks,
            nodes: nodes.clone(),
            env,
            readiness: readiness.clone(),
            instruments,
        });
        let plaintext = if config.local { Plaintext::Loopback } else { Plaintext::Refuse };
        let grpc_router = services::edge::guard(grpc_router, metrics.clone());
        serve(life, "grpc", grpc, tls.acceptor(Alpn::Grpc, plaintext), grpc_router);
        let http_router = services::edge::guard(http_router, metrics);
        serve(life, "http", http, tls.acceptor(Alpn::Http, plaintext), http_router);

        // Runs go on, and the plane says that it is ready, once there is somebody to ask.
        let waiting = readiness.block("data-plane nodes");
        life.spawn_until_stopped("readiness", async move {
            nodes.wait_for(config.nodes_wanted).await;
            runs.keep();
            drop(waiting);
        });
        life.spawn("health", report);
        Ok(Self { grpc: grpc_addr, http: http_addr, readiness })
    }

    /// Resolves when everything is up, or after `patience`: then `false`.
    pub async fn ready(&self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.readiness.ready()).await.is_ok()
    }
}

fn local_addr(listener: &tokio::net::TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|e| StartError::Bind(e.to_string()))
}

fn reflection()
-> tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("our own descriptors")
}
