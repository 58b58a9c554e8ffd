//! The life of an agent: registered, stopping, drained.

use std::{net::SocketAddr, panic::resume_unwind, pin::pin, time::Duration};

use parallax_proto::confidence::confidence_agent_server::ConfidenceAgentServer;
use parallax_runtime::lifecycle::Lifecycle;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::server::HealthReporter;

use crate::{Error, registration::Registration, service::Service};

pub(crate) type Contract = ConfidenceAgentServer<Service>;

/// How long calls that were cut may take to tell their callers.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running agent. Dropped, the agent goes on.
pub struct Handle {
    addr: SocketAddr,
    endpoint: String,
    registrations: watch::Receiver<u64>,
    stop: CancellationToken,
    life: JoinHandle<Result<(), Error>>,
}

impl Handle {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it registers as its address, `host:port`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Waits until the agent is in the registry, or has ended before.
    pub async fn registered(&mut self) {
        // An error says that the agent has ended: `wait` tells why.
        let _ = self.registrations.wait_for(|count| *count > 0).await;
    }

    /// Begins a graceful shutdown; [`Handle::wait`] sees its end.
    pub fn shutdown(&self) {
        self.stop.cancel();
    }

    /// Waits until the agent has ended.
    ///
    /// # Errors
    /// The control plane refuses the agent; calls had to be cut at the end.
    pub async fn wait(self) -> Result<(), Error> {
        // Its task ends otherwise only by a bug, or with its runtime, and then there is nobody left to tell.
        self.life.await.unwrap_or_else(|e| e.try_into_panic().map_or(Ok(()), |bug| resume_unwind(bug)))
    }

    /// Waits until the agent has ended, and shuts it down when `stop` resolves.
    pub(crate) async fn until(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let stopping = self.stop.clone();
        let mut ended = pin!(self.wait());
        tokio::select! {
            outcome = &mut ended => outcome,
            () = stop => {
                stopping.cancel();
                ended.await
            }
        }
    }
}

/// All that runs for an agent.
pub(crate) struct Running {
    pub(crate) registration: Registration,
    pub(crate) health: HealthReporter,
    pub(crate) life: Lifecycle,
    pub(crate) cut: CancellationToken,
    pub(crate) patience: Duration,
}

impl Running {
    pub(crate) fn start(self, addr: SocketAddr) -> Handle {
        let registrations = self.registration.count.subscribe();
        let (endpoint, stop) = (self.registration.agent.endpoint.clone(), CancellationToken::new());
        let life = tokio::spawn(self.live(stop.clone()));
        Handle { addr, endpoint, registrations, stop, life }
    }

    async fn live(mut self, stop: CancellationToken) -> Result<(), Error> {
        let outcome = tokio::select! {
            refused = self.registration.keep() => Err(refused),
            () = stop.cancelled() => Ok(()),
        };
        if outcome.is_ok() {
            self.registration.give_up().await;
        }
        self.health.set_not_serving::<Contract>().await;
        // Ends the streams of those who watch the health, which would outlast every call.
        for service in ["", <Contract as NamedService>::NAME] {
            self.health.clear_service_status(service).await;
        }
        if self.life.drain(self.patience).await {
            return outcome;
        }
        self.cut.cancel();
        self.life.drain(LAST_WORDS).await;
        outcome.and(Err(Error::Drain(self.patience)))
    }
}
