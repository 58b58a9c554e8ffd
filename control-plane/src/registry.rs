//! Who is registered: leases, the rules of replacement, and the view that everything else reads.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use jiff::Timestamp;
use parallax_proto::registry as proto;
use parallax_runtime::{
    agent::{Agent, AgentKey, Transport, clamp_ttl},
    env::Env,
    lifecycle::Lifecycle,
    store::{Change, Entry, Expect, RegistryStore, Revision, StoreError},
};
use parallax_security::{Kind, Peer};
use parallax_telemetry::metrics::ControlPlaneMetrics;
use tracing::{info, warn};

pub use self::view::Update;
use self::view::{Present, View};
use crate::{
    error::{Error, Result},
    tenant,
};

mod view;

/// Everything of agents lives below this key: `/parallax/agents/<tenant>/<id>`.
const AGENTS: &str = "/parallax/agents/";
/// A registration that loses this many races against others of the same id gives up.
const RACES: usize = 8;
/// Between two attempts to read a store that is away.
const PAUSE: Duration = Duration::from_secs(1);

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn RegistryStore>,
    env: Arc<dyn Env>,
    metrics: Arc<ControlPlaneMetrics>,
    view: Arc<View>,
}

/// The changes that a store tells.
type Changes = BoxStream<'static, Result<Change, StoreError>>;

impl Registry {
    /// Reads what is registered and follows it from then on.
    ///
    /// # Errors
    /// The store's.
    pub async fn open(
        store: Arc<dyn RegistryStore>,
        env: Arc<dyn Env>,
        metrics: Arc<ControlPlaneMetrics>,
        life: &Lifecycle,
    ) -> Result<Self> {
        let registry = Self { store, env, metrics, view: Arc::default() };
        let changes = registry.resync().await?;
        life.spawn_until_stopped("registry view", registry.clone().listen(changes));
        Ok(registry)
    }

    /// Makes the view what the store has, and returns what follows.
    async fn resync(&self) -> Result<Changes> {
        let snapshot = self.store.list(AGENTS).await?;
        let changes = self.store.watch(AGENTS, snapshot.revision).await?;
        let agents =
            snapshot.entries.iter().map(|entry| decode(entry).map(Arc::new)).collect::<Result<_>>()?;
        self.view.replace(snapshot.revision, agents, &self.metrics);
        self.view.set_following(true);
        Ok(changes)
    }

    /// Keeps the view up to date. While the store is away it stays as it is.
    async fn listen(self, mut changes: Changes) {
        loop {
            let mut broken = loop {
                let change = changes.next().await.unwrap_or(Err(StoreError::Closed));
                match change.map_err(Error::from).and_then(|change| Ok((change.revision(), present(change)?)))
                {
                    Ok((revision, agent)) => self.view.apply(revision, vec![agent], &self.metrics),
                    Err(e) => break e,
                }
            };
            changes = loop {
                warn!("the registry cannot be followed, reading it again: {broken}");
                // A watch that has lagged behind is no store that is away.
                self.view.set_following(matches!(broken, Error::Store(StoreError::Compacted { .. })));
                match self.resync().await {
                    Ok(changes) => break changes,
                    Err(e) => broken = e,
                }
                tokio::time::sleep(PAUSE).await;
            };
        }
    }

    /// Registers an agent, or replaces its entry. Returns the id of its lease, which names tenant and agent too.
    ///
    /// # Errors
    /// A field that cannot stand; an id that belongs to another identity.
    pub async fn register(&self, peer: &Peer, request: proto::RegisterRequest) -> Result<String> {
        let transport = if peer.identity.is_some() { Transport::Mtls } else { Transport::Plaintext };
        self.register_via(peer, transport, request).await
    }

    /// The same for an agent that is reached in its own way.
    ///
    /// # Errors
    /// As [`Registry::register`].
    pub async fn register_via(
        &self,
        peer: &Peer,
        transport: Transport,
        request: proto::RegisterRequest,
    ) -> Result<String> {
        let message = request
            .agent
            .ok_or_else(|| Error::Invalid { field: "agent", problem: "is missing".to_owned() })?;
        let (tenant, principal) = (tenant::of(peer), peer.identity.as_ref().map(ToString::to_string));
        let agent = Agent::from_wire(message, tenant, transport, principal, self.env.now())?;
        may_speak_for(peer, &agent.key)?;
        let value = serde_json::to_vec(&agent).expect("an agent is plain data");
        let key = store_key(&agent.key);
        for _ in 0..RACES {
            let before = self.store.get(&key).await?;
            if let Some(before) = &before {
                may_replace(&decode(before)?, &agent, peer)?;
            }
            // Granted last, so that nobody who is refused leaves a lease behind.
            let lease = self.store.grant(agent.ttl).await?;
            let expect = before.as_ref().map_or(Expect::Absent, |entry| Expect::At(entry.revision));
            match self.store.put(&key, value.clone(), Some(&lease), expect).await {
                Ok(revision) => {
                    if let Some(old) = before.and_then(|entry| entry.lease) {
                        self.store.revoke(&old).await?;
                    }
                    self.view.seen(revision).await;
                    self.metrics.registrations.inc();
                    self.view.heard(&agent.key, self.env.now());
                    info!(
                        tenant,
                        agent = agent.key.id,
                        endpoint = agent.endpoint,
                        ?transport,
                        "agent registered"
                    );
                    return Ok(format!("{tenant}/{}/{lease}", agent.key.id));
                }
                Err(StoreError::Conflict { .. }) => self.store.revoke(&lease).await?,
                Err(e) => return Err(e.into()),
            }
        }
        Err(StoreError::Conflict { what: format!("agent {}", agent.key.id) }.into())
    }

    /// Begins a lease's time anew, with another time to live if one is wished for; returns that which it has.
    ///
    /// # Errors
    /// A lease that is not there any more: register again. A lease of another agent.
    pub async fn renew(&self, peer: &Peer, token: &str, ttl: Option<Duration>) -> Result<Duration> {
        let missing = || Error::NoLease { lease: token.to_owned() };
        let mut parts = token.splitn(3, '/');
        let (Some(tenant), Some(id), Some(lease)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(missing());
        };
        let key = AgentKey { tenant: tenant.to_owned(), id: id.to_owned() };
        may_speak_for(peer, &key)?;
        let kept =
            self.store.get(&store_key(&key)).await?.filter(|entry| entry.lease.as_deref() == Some(lease));
        may_touch(peer, &decode(&kept.ok_or_else(missing)?)?)?;
        let ttl =
            self.store.renew(lease, ttl.map(|wish| clamp_ttl(Some(wish)))).await.map_err(|e| match e {
                StoreError::Missing { .. } => missing(),
                other => other.into(),
            })?;
        self.view.heard(&key, self.env.now());
        Ok(ttl)
    }

    /// Removes an agent and its lease. `false` when it was not there.
    ///
    /// # Errors
    /// An agent that is another's.
    pub async fn unregister(&self, peer: &Peer, id: &str) -> Result<bool> {
        let key = AgentKey { tenant: tenant::of(peer).to_owned(), id: id.to_owned() };
        may_speak_for(peer, &key)?;
        let path = store_key(&key);
        let Some(entry) = self.store.get(&path).await? else { return Ok(false) };
        may_touch(peer, &decode(&entry)?)?;
        let deleted = self.store.delete(&path, Expect::At(entry.revision)).await?;
        if let Some(lease) = entry.lease {
            self.store.revoke(&lease).await?;
        }
        if let Some(revision) = deleted {
            self.view.seen(revision).await;
        }
        Ok(deleted.is_some())
    }

    /// Ends a lease, and with it the registration that it keeps; nothing else, if the agent has registered anew.
    ///
    /// # Errors
    /// The store's.
    pub async fn release(&self, token: &str) -> Result<()> {
        match token.splitn(3, '/').nth(2) {
            Some(lease) => Ok(self.store.revoke(lease).await?),
            None => Err(Error::NoLease { lease: token.to_owned() }),
        }
    }

    /// One agent.
    #[must_use]
    pub fn get(&self, tenant: &str, id: &str) -> Option<Arc<Agent>> {
        self.view.get(&AgentKey { tenant: tenant.to_owned(), id: id.to_owned() })
    }

    /// The agents of a tenant that have all of `capabilities`, in order of their ids.
    #[must_use]
    pub fn agents(&self, tenant: &str, capabilities: &[String]) -> Vec<Arc<Agent>> {
        self.view.agents(tenant, |agent| agent.has_all(capabilities))
    }

    /// Whether the store is heard. While it is not, what was last heard is served.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.view.is_following()
    }

    /// When this process last heard an agent register or renew.
    #[must_use]
    pub fn last_heard(&self, key: &AgentKey) -> Option<Timestamp> {
        self.view.last_heard(key)
    }

    /// A snapshot, then every change, of one tenant or of all; each with the revision it brings. Never ends; while
    /// the store is away it tells nothing, and to a follower that lags far behind a snapshot again.
    pub fn follow(&self, tenant: Option<&str>) -> impl Stream<Item = (Revision, Update)> + Send + 'static {
        view::follow(self.view.clone(), tenant.map(str::to_owned))
    }
}

fn present(change: Change) -> Result<Present> {
    Ok(match change {
        Change::Put(entry) => (parse_key(&entry.key)?, Some(Arc::new(decode(&entry)?))),
        Change::Delete { key, .. } => (parse_key(&key)?, None),
    })
}

/// An agent speaks for itself, an operator for the agents of its tenant, and a plaintext peer on loopback for
/// those that registered in plaintext.
fn may_speak_for(peer: &Peer, key: &AgentKey) -> Result<()> {
    let allowed = match &peer.identity {
        None => key.tenant == parallax_runtime::DEFAULT_TENANT,
        Some(identity) => {
            identity.tenant == key.tenant && (identity.kind == Kind::Operator || identity.id == key.id)
        }
    };
    if allowed {
        return Ok(());
    }
    let who = peer.identity.as_ref().map_or_else(|| "a plaintext peer".to_owned(), ToString::to_string);
    let AgentKey { tenant, id } = key;
    Err(Error::NotYours(format!(
        "{who} may not act for agent \"{id}\" of tenant \"{tenant}\"; use its certificate"
    )))
}

/// What registered over mTLS is neither kept nor removed in plaintext.
fn may_touch(peer: &Peer, agent: &Agent) -> Result<()> {
    if peer.identity.is_some() || agent.principal.is_none() {
        return Ok(());
    }
    Err(Error::NotYours(format!("agent \"{}\" registered over mTLS; come back the same way", agent.key.id)))
}

fn may_replace(before: &Agent, after: &Agent, peer: &Peer) -> Result<()> {
    let operator = peer.identity.as_ref().is_some_and(|identity| identity.kind == Kind::Operator);
    if operator || before.principal.is_none() || before.principal == after.principal {
        return Ok(());
    }
    Err(Error::NotYours(format!(
        "agent \"{}\" is registered by {}; choose another id",
        before.key.id,
        before.principal.as_deref().unwrap_or_default()
    )))
}

fn store_key(key: &AgentKey) -> String {
    format!("{AGENTS}{}/{}", key.tenant, key.id)
}

fn parse_key(path: &str) -> Result<AgentKey> {
    path.strip_prefix(AGENTS)
        .and_then(|rest| rest.split_once('/'))
        .map(|(tenant, id)| AgentKey { tenant: tenant.to_owned(), id: id.to_owned() })
        .ok_or_else(|| StoreError::Corrupt(format!("{path} is not the key of an agent")).into())
}

fn decode(entry: &Entry) -> Result<Agent> {
    serde_json::from_slice(&entry.value)
        .map_err(|e| StoreError::Corrupt(format!("{}: {e}", entry.key)).into())
}

#[cfg(test)]
mod tests;
