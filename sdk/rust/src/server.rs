//! What it takes to start an agent.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parallax_runtime::{agent::DEFAULT_TTL, env::System, lifecycle::Lifecycle, serve as port};
use parallax_security::{Alpn, Kind, Plaintext};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, interceptor::InterceptedService};
use tonic_health::{
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tracing::warn;

use crate::{
    Agent, DEFAULT_REGISTRY, Error, Handle, TlsOptions,
    link::Dialer,
    registration::Registration,
    running::{Contract, Running},
    service::{Service, admit},
    tls::Credentials,
};

/// How often certificates are looked after.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(3600);

/// Serves `agent` as the environment says until SIGINT or SIGTERM: [`Server::new`], then [`Server::run`].
///
/// # Errors
/// As [`Server::run`].
pub async fn serve(agent: impl Agent) -> Result<(), Error> {
    Server::new(agent).run().await
}

/// An agent that is to be served. What is not set here is read from the environment by [`Server::bind`].
pub struct Server {
    agent: Arc<dyn Agent>,
    registry: Option<String>,
    listen: Option<SocketAddr>,
    endpoint: Option<String>,
    tls: Option<TlsOptions>,
    ttl: Duration,
    drain: Duration,
}

impl Server {
    /// With everything as the environment says.
    pub fn new(agent: impl Agent) -> Self {
        Self {
            agent: Arc::new(agent),
            registry: None,
            listen: None,
            endpoint: None,
            tls: None,
            ttl: DEFAULT_TTL,
            drain: Duration::from_secs(10),
        }
    }

    /// The control plane, `host:port`. Else `PARALLAX_REGISTRY`, else [`DEFAULT_REGISTRY`].
    #[must_use]
    pub fn registry(mut self, addr: impl Into<String>) -> Self {
        self.registry = Some(addr.into());
        self
    }

    /// Where to listen. Else `PARALLAX_AGENT_LISTEN`, else a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = Some(addr);
        self
    }

    /// Where data-plane nodes reach the agent, `host:port`. Else `PARALLAX_AGENT_ENDPOINT`, else the address
    /// it listens on.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// How connections are secured. Else as [`TlsOptions::from_env`] says.
    #[must_use]
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long the registry keeps an agent that falls silent; renewed at a third of it. 60 s by default; the
    /// control plane grants 2 s to 24 h.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How long calls may go on after a shutdown began. 10 s by default.
    #[must_use]
    pub fn drain(mut self, patience: Duration) -> Self {
        self.drain = patience;
        self
    }

    /// Serves until SIGINT or SIGTERM, then shuts down gracefully.
    ///
    /// # Errors
    /// As [`Server::bind`] and [`Handle::wait`].
    pub async fn run(self) -> Result<(), Error> {
        let stopped = |e: std::io::Error| Error::Listen(format!("cannot listen for signals: {e}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(stopped)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(stopped)?;
        self.run_until(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
    }

    /// Serves until `stop` resolves, then shuts down gracefully.
    ///
    /// # Errors
    /// As [`Server::bind`] and [`Handle::wait`].
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        self.bind().await?.until(stop).await
    }

    /// Starts to serve, and to register. The registry need not be there yet: it is awaited, with a line in the
    /// log for each try.
    ///
    /// # Errors
    /// No certificates, or such as cannot be used; a port that is taken; a setting or a profile that cannot
    /// stand. Each names what and the cure.
    pub async fn bind(self) -> Result<Handle, Error> {
        let env = System::shared();
        let profile = Arc::new(self.agent.profile());
        profile.check().map_err(|problem| Error::Setting { name: "the agent's profile:", problem })?;
        let options = self.tls.map_or_else(TlsOptions::from_env, Ok)?;
        let credentials = Credentials::open(&options, Kind::Agent, profile.id(), Arc::clone(&env))?;
        check_certificate(&credentials, profile.id())?;

        let listen = match self.listen {
            Some(addr) => addr,
            None => listen_from_env()?,
        };
        let listener = port::bind("the agent", listen).await.map_err(Error::Listen)?;
        let addr = listener.local_addr().map_err(|e| Error::Listen(e.to_string()))?;
        let endpoint = match self.endpoint.or_else(|| var("PARALLAX_AGENT_ENDPOINT")) {
            Some(endpoint) => endpoint,
            None if addr.ip().is_unspecified() => {
                let problem = format!("must say where {addr} is reached from outside, as host:port");
                return Err(Error::Setting { name: "PARALLAX_AGENT_ENDPOINT", problem });
            }
            None => addr.to_string(),
        };

        let registry = self.registry.or_else(|| var("PARALLAX_REGISTRY"));
        let registry = registry.unwrap_or_else(|| DEFAULT_REGISTRY.to_owned());
        let dialer = Dialer::new(registry, Kind::ControlPlane, credentials.clone())?;

        let (life, cut) = (Lifecycle::new(), CancellationToken::new());
        let (agent, load) = (self.agent, Arc::default());
        let service = Service { agent, profile: Arc::clone(&profile), env, cut: cut.clone(), load };
        let health = open_port(&life, listener, &credentials, service).await;
        life.spawn_until_stopped("certificates", look_after(credentials));
        let registration = Registration::new(&profile, endpoint, self.ttl, dialer);
        Ok(Running { registration, health, life, cut, patience: self.drain }.start(addr))
    }
}

/// Serves the contract and gRPC's health on `listener` until `life` stops.
async fn open_port(
    life: &Lifecycle,
    listener: TcpListener,
    credentials: &Credentials,
    service: Service,
) -> HealthReporter {
    let reporter = HealthReporter::new();
    reporter.set_serving::<Contract>().await;
    let health = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
    let service = Contract::new(service);
    if let Some(tls) = &credentials.tls {
        let tenant: Arc<str> = tls.identity().tenant.into();
        let admit = move |request| admit(&tenant, request);
        let routes = Routes::new(InterceptedService::new(service, admit.clone()))
            .add_service(InterceptedService::new(health, admit));
        let acceptor = tls.acceptor(Alpn::Grpc, Plaintext::Refuse);
        port::serve(life, "agent", listener, acceptor, routes.prepare().into_axum_router());
    } else {
        let router = Routes::new(service).add_service(health).prepare().into_axum_router();
        let stopping = life.stopping();
        life.spawn("agent", async move {
            if let Err(e) = axum::serve(listener, router).with_graceful_shutdown(stopping).await {
                warn!("the agent's port failed: {e}");
            }
        });
    }
    reporter
}

async fn look_after(credentials: Credentials) {
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        if let Err(e) = credentials.refresh() {
            warn!("the certificates in use stay: {e}");
        }
    }
}

fn check_certificate(credentials: &Credentials, agent: &str) -> Result<(), Error> {
    match credentials.tls.as_ref().map(parallax_security::Tls::identity) {
        Some(found) if found.kind != Kind::Agent || found.id != agent => {
            Err(Error::WrongCertificate { agent: agent.to_owned(), found })
        }
        _ => Ok(()),
    }
}

fn listen_from_env() -> Result<SocketAddr, Error> {
    let Some(text) = var("PARALLAX_AGENT_LISTEN") else { return Ok(([127, 0, 0, 1], 0).into()) };
    text.parse().map_err(|_| Error::Setting {
        name: "PARALLAX_AGENT_LISTEN",
        problem: format!("is {text:?}; give ip:port, such as 127.0.0.1:50100"),
    })
}

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
