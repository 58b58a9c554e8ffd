//! Who is registered: leases, the rules of replacement, and the view that everything else reads.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, TryStreamExt, stream};
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
use parking_lot::RwLock;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    error::{Error, Result},
    tenant,
};

/// Everything of agents lives below this key: `/parallax/agents/<tenant>/<id>`.
const AGENTS: &str = "/parallax/agents/";
/// A registration that loses this many races against others of the same id gives up.
const RACES: usize = 8;

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn RegistryStore>,
    env: Arc<dyn Env>,
    metrics: Arc<ControlPlaneMetrics>,
    view: Arc<View>,
}

/// All agents in memory, as the store's watch tells of them.
struct View {
    agents: RwLock<BTreeMap<AgentKey, Arc<Agent>>>,
    /// When this process last heard of an agent.
    heard: RwLock<HashMap<AgentKey, Timestamp>>,
    revision: watch::Sender<Revision>,
    /// Whether the store is heard; if not, the view is the last that was.
    following: AtomicBool,
}

/// What a follower of the registry sees.
#[derive(Clone, Debug)]
pub enum Update {
    /// Everything there is: at the beginning, and when changes were missed.
    Snapshot(Vec<Arc<Agent>>),
    Upsert(Arc<Agent>),
    Remove(AgentKey),
}

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
        let view = Arc::new(View {
            agents: RwLock::default(),
            heard: RwLock::default(),
            revision: watch::Sender::new(0),
            following: AtomicBool::new(true),
        });
        let registry = Self { store, env, metrics, view };
        let mut updates = Box::pin(registry.follow(None));
        registry.apply(updates.next().await.expect("a follower's stream never ends")?);
        let following = registry.clone();
        life.spawn_until_stopped("registry view", async move {
            while let Some(update) = updates.next().await {
                following.view.following.store(update.is_ok(), Ordering::Relaxed);
                match update {
                    Ok(update) => following.apply(update),
                    Err(e) => {
                        warn!("the registry cannot be followed, trying again: {e}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        });
        Ok(registry)
    }

    fn apply(&self, (revision, update): (Revision, Update)) {
        let mut agents = self.view.agents.write();
        match update {
            Update::Snapshot(all) => {
                *agents = all.into_iter().map(|agent| (agent.key.clone(), agent)).collect();
            }
            Update::Upsert(agent) => _ = agents.insert(agent.key.clone(), agent),
            Update::Remove(key) => {
                agents.remove(&key);
                self.view.heard.write().remove(&key);
                info!(tenant = key.tenant, agent = key.id, "agent is gone");
            }
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::from([(parallax_runtime::DEFAULT_TENANT, 0)]);
        for key in agents.keys() {
            *counts.entry(&key.tenant).or_default() += 1;
        }
        for (tenant, count) in counts {
            self.metrics.set_agents_registered(tenant, count);
        }
        drop(agents);
        self.view.revision.send_replace(revision);
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
                    self.seen(revision).await;
                    self.metrics.registrations.inc();
                    self.heard(&agent.key);
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
        self.heard(&key);
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
            self.seen(revision).await;
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
        let key = AgentKey { tenant: tenant.to_owned(), id: id.to_owned() };
        self.view.agents.read().get(&key).cloned()
    }

    /// The agents of a tenant that have all of `capabilities`, in order of their ids.
    #[must_use]
    pub fn agents(&self, tenant: &str, capabilities: &[String]) -> Vec<Arc<Agent>> {
        let first = AgentKey { tenant: tenant.to_owned(), id: String::new() };
        let agents = self.view.agents.read();
        let ours = agents.range(first..).take_while(|(key, _)| key.tenant == tenant);
        ours.filter(|(_, agent)| agent.has_all(capabilities)).map(|(_, agent)| agent.clone()).collect()
    }

    /// Whether the store is heard. While it is not, what was last heard is served.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.view.following.load(Ordering::Relaxed)
    }

    /// When this process last heard an agent register or renew.
    #[must_use]
    pub fn last_heard(&self, key: &AgentKey) -> Option<Timestamp> {
        self.view.heard.read().get(key).copied()
    }

    /// A snapshot, then every change, of one tenant or of all; each with the revision it brings. Never ends; after
    /// an error it begins again with a snapshot.
    pub fn follow(
        &self,
        tenant: Option<&str>,
    ) -> impl Stream<Item = Result<(Revision, Update)>> + Send + 'static {
        let prefix = tenant.map_or_else(|| AGENTS.to_owned(), |tenant| format!("{AGENTS}{tenant}/"));
        let store = self.store.clone();
        stream::repeat(()).then(move |()| follow_once(store.clone(), prefix.clone())).flatten()
    }

    /// Waits until the view shows a revision that we have written.
    async fn seen(&self, revision: Revision) {
        let mut revisions = self.view.revision.subscribe();
        // The sender lives as long as the view does.
        revisions.wait_for(|seen| *seen >= revision).await.ok();
    }

    fn heard(&self, key: &AgentKey) {
        self.view.heard.write().insert(key.clone(), self.env.now());
    }
}

/// A snapshot and what follows, until the watch fails.
async fn follow_once(
    store: Arc<dyn RegistryStore>,
    prefix: String,
) -> stream::BoxStream<'static, Result<(Revision, Update)>> {
    let begin = async {
        let snapshot = store.list(&prefix).await?;
        let changes = store.watch(&prefix, snapshot.revision).await?;
        let agents =
            snapshot.entries.iter().map(|entry| decode(entry).map(Arc::new)).collect::<Result<_>>()?;
        Ok(((snapshot.revision, Update::Snapshot(agents)), changes))
    };
    match begin.await {
        Err(e) => stream::iter([Err(e)]).boxed(),
        Ok((first, changes)) => {
            let changes = changes.map_err(Error::from).and_then(|change| async move {
                let revision = change.revision();
                Ok((
                    revision,
                    match change {
                        Change::Put(entry) => Update::Upsert(Arc::new(decode(&entry)?)),
                        Change::Delete { key, .. } => Update::Remove(parse_key(&key)?),
                    },
                ))
            });
            stream::iter([Ok(first)]).chain(changes).boxed()
        }
    }
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
