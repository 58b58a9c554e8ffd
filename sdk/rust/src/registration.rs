//! An agent's place in the registry: taken, kept, taken again, given up.

use std::{convert::Infallible, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use parallax_proto::registry::{
    AgentRegistration, RegisterRequest, RenewRequest, registry_client::RegistryClient,
};
use parallax_runtime::wire::duration_to_wire;
use tokio::sync::watch;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::{
    Error, Profile,
    link::{Dialer, Link},
};

/// The first pause before another try, and the longest. Jittered, so that agents do not come back as one.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// However short the time to live, renewing is no busy loop.
const SHORTEST_RENEWAL: Duration = Duration::from_millis(10);

pub(crate) struct Registration {
    pub(crate) agent: AgentRegistration,
    renewal: Duration,
    dialer: Dialer,
    /// How often the agent was registered so far.
    pub(crate) count: watch::Sender<u64>,
}

impl Registration {
    pub(crate) fn new(profile: &Profile, endpoint: String, ttl: Duration, dialer: Dialer) -> Self {
        let ttl_on_the_wire = Some(duration_to_wire(ttl));
        let agent = AgentRegistration { endpoint, ttl: ttl_on_the_wire, ..profile.registration.clone() };
        let renewal = (ttl / 3).max(SHORTEST_RENEWAL);
        Self { agent, renewal, dialer, count: watch::Sender::new(0) }
    }

    /// Registers and stays registered; returns only if the control plane refuses the agent at first, for a
    /// reason that waiting does not change. Later it keeps on trying: an agent that once was welcome outlives
    /// whatever the control plane goes through.
    pub(crate) async fn keep(&self) -> Error {
        let backoff =
            ExponentialBuilder::new().with_min_delay(BACKOFF.0).with_max_delay(BACKOFF.1).with_jitter();
        let mut delays = backoff.without_max_times().build();
        loop {
            let before = *self.count.borrow();
            let Err(error) = self.hold().await;
            let now = *self.count.borrow();
            if now == 0 && matches!(error, Error::Refused { .. }) {
                return error;
            }
            if now > before {
                delays = backoff.without_max_times().build();
            }
            let pause = delays.next().unwrap_or(BACKOFF.1);
            let ms = pause.as_millis();
            warn!(agent = self.agent.id, "waiting for the control plane: {error}; next try in {ms} ms");
            tokio::time::sleep(pause).await;
        }
    }

    /// Registers over one connection and renews for as long as it stands. A control plane that comes back has
    /// closed its connections, so that it meets the agent again at once and not only at the next renewal.
    async fn hold(&self) -> Result<Infallible, Error> {
        if let Err(e) = self.dialer.credentials.refresh() {
            warn!("the certificates in use stay: {e}");
        }
        let link = self.dialer.dial().await?;
        let mut registry = client(&link);
        loop {
            let request = RegisterRequest { agent: Some(self.agent.clone()), auto_renew: false };
            let lease = self.call(registry.register(request)).await?.into_inner().lease_id;
            info!(
                agent = self.agent.id,
                endpoint = self.agent.endpoint,
                registry = self.dialer.addr,
                "registered"
            );
            self.count.send_modify(|count| *count += 1);
            loop {
                tokio::select! {
                    () = link.closed() => return Err(self.lost()),
                    () = tokio::time::sleep(self.renewal) => {}
                }
                // Without a lease there is nothing to renew: registering again has the same effect.
                if lease.is_empty() {
                    break;
                }
                let request = RenewRequest { lease_id: lease.clone(), ttl: self.agent.ttl };
                match self.call(registry.renew(request)).await {
                    Ok(_) => debug!(agent = self.agent.id, "renewed"),
                    Err(Error::Refused { status, .. }) if status.code() == Code::NotFound => {
                        warn!(agent = self.agent.id, "the control plane forgot the agent: registering again");
                        break;
                    }
                    Err(e) => return Err(e),
                }
            }
        }
    }

    /// Leaves the registry, over a connection of its own. One short try: a lease that stays behind expires.
    pub(crate) async fn give_up(&self) {
        let left = async {
            let link = self.dialer.dial().await?;
            self.call(client(&link).unregister(self.agent.clone())).await
        };
        match self.dialer.in_time(left).await {
            Ok(_) => info!(agent = self.agent.id, "unregistered"),
            Err(e) => warn!(agent = self.agent.id, "could not unregister: {e}; the lease will expire"),
        }
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Error> {
        self.dialer.in_time(async { call.await.map_err(|status| self.failed(status)) }).await
    }

    fn failed(&self, status: Status) -> Error {
        let registry = self.dialer.addr.clone();
        match status.code() {
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => {
                Error::Refused { registry, agent: self.agent.id.clone(), status: Box::new(status) }
            }
            _ => Error::Unavailable { addr: registry, problem: status.message().to_owned() },
        }
    }

    fn lost(&self) -> Error {
        Error::Unavailable { addr: self.dialer.addr.clone(), problem: "the connection ended".to_owned() }
    }
}

fn client(link: &Link) -> RegistryClient<Link> {
    RegistryClient::with_origin(link.clone(), link.origin.clone())
}
