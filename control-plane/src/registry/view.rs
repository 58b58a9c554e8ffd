//! All agents in memory, as the store's watch tells of them: what everything reads and follows, also while the store
//! is away.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, stream};
use jiff::Timestamp;
use parallax_runtime::{
    agent::{Agent, AgentKey},
    store::Revision,
};
use parallax_telemetry::metrics::ControlPlaneMetrics;
use parking_lot::RwLock;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};
use tracing::info;

/// Changes that a follower may lag behind before it is given a snapshot.
const LAG: usize = 4096;
/// How long a registration waits for its own change to be seen: a watch that falls silent is replaced by then.
const SEEN: Duration = Duration::from_secs(10);

/// What a follower of the registry sees.
#[derive(Clone, Debug)]
pub enum Update {
    /// Everything there is: at the beginning, and when changes were missed.
    Snapshot(Vec<Arc<Agent>>),
    Upsert(Arc<Agent>),
    Remove(AgentKey),
}

/// An agent as it is now; none when it is gone.
pub(super) type Present = (AgentKey, Option<Arc<Agent>>);

type Updates = broadcast::Receiver<(Revision, Update)>;

pub(super) struct View {
    agents: RwLock<BTreeMap<AgentKey, Arc<Agent>>>,
    /// When this process last heard of an agent.
    heard: RwLock<HashMap<AgentKey, Timestamp>>,
    /// Sent while `agents` is locked, so that no change falls between a snapshot and what follows it.
    updates: broadcast::Sender<(Revision, Update)>,
    revision: watch::Sender<Revision>,
    /// Whether the store is heard; if not, the view is the last that was.
    following: AtomicBool,
}

impl Default for View {
    fn default() -> Self {
        Self {
            agents: RwLock::default(),
            heard: RwLock::default(),
            updates: broadcast::Sender::new(LAG),
            revision: watch::Sender::new(0),
            following: AtomicBool::new(true),
        }
    }
}

impl View {
    /// Changes what is not as in a snapshot of the store.
    pub(super) fn replace(&self, revision: Revision, all: Vec<Arc<Agent>>, metrics: &ControlPlaneMetrics) {
        let mut changed: Vec<Present> = Vec::new();
        {
            let agents = self.agents.read();
            let mut gone: BTreeSet<_> = agents.keys().cloned().collect();
            for agent in all {
                gone.remove(&agent.key);
                if agents.get(&agent.key) != Some(&agent) {
                    changed.push((agent.key.clone(), Some(agent)));
                }
            }
            changed.extend(gone.into_iter().map(|key| (key, None)));
        }
        self.apply(revision, changed, metrics);
    }

    /// Makes changes, and tells followers. One task does so.
    pub(super) fn apply(&self, revision: Revision, changed: Vec<Present>, metrics: &ControlPlaneMetrics) {
        let mut agents = self.agents.write();
        for (key, present) in changed {
            let update = match present {
                Some(agent) => {
                    agents.insert(key, agent.clone());
                    Update::Upsert(agent)
                }
                None => {
                    agents.remove(&key);
                    self.heard.write().remove(&key);
                    info!(tenant = key.tenant, agent = key.id, "agent is gone");
                    Update::Remove(key)
                }
            };
            // Perhaps nobody follows.
            self.updates.send((revision, update)).ok();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::from([(parallax_runtime::DEFAULT_TENANT, 0)]);
        for key in agents.keys() {
            *counts.entry(&key.tenant).or_default() += 1;
        }
        for (tenant, count) in counts {
            metrics.set_agents_registered(tenant, count);
        }
        self.revision.send_replace(revision);
    }

    pub(super) fn get(&self, key: &AgentKey) -> Option<Arc<Agent>> {
        self.agents.read().get(key).cloned()
    }

    /// Those of a tenant that `wanted` takes, in order.
    pub(super) fn agents(&self, tenant: &str, wanted: impl Fn(&Agent) -> bool) -> Vec<Arc<Agent>> {
        select(&self.agents.read(), Some(tenant), wanted)
    }

    pub(super) fn last_heard(&self, key: &AgentKey) -> Option<Timestamp> {
        self.heard.read().get(key).copied()
    }

    pub(super) fn heard(&self, key: &AgentKey, at: Timestamp) {
        self.heard.write().insert(key.clone(), at);
    }

    pub(super) fn is_following(&self) -> bool {
        self.following.load(Ordering::Relaxed)
    }

    pub(super) fn set_following(&self, following: bool) {
        self.following.store(following, Ordering::Relaxed);
    }

    /// Waits until the view shows a revision that we have written. If the store went away meanwhile, the view shows
    /// it when the store is back.
    pub(super) async fn seen(&self, revision: Revision) {
        let mut revisions = self.revision.subscribe();
        tokio::time::timeout(SEEN, revisions.wait_for(|seen| *seen >= revision)).await.ok();
    }

    /// A snapshot, and all that comes after it.
    fn begin(&self, tenant: Option<&str>) -> ((Revision, Update), Option<Updates>) {
        let agents = self.agents.read();
        let snapshot = Update::Snapshot(select(&agents, tenant, |_| true));
        ((*self.revision.borrow(), snapshot), Some(self.updates.subscribe()))
    }
}

fn select(
    agents: &BTreeMap<AgentKey, Arc<Agent>>,
    tenant: Option<&str>,
    wanted: impl Fn(&Agent) -> bool,
) -> Vec<Arc<Agent>> {
    let first = AgentKey { tenant: tenant.unwrap_or_default().to_owned(), id: String::new() };
    let ours = agents.range(first..).take_while(|(key, _)| tenant.is_none_or(|tenant| key.tenant == tenant));
    ours.filter(|(_, agent)| wanted(agent)).map(|(_, agent)| agent.clone()).collect()
}

/// What [`super::Registry::follow`] says.
pub(super) fn follow(
    view: Arc<View>,
    tenant: Option<String>,
) -> impl Stream<Item = (Revision, Update)> + Send + 'static {
    stream::unfold(None, move |updates: Option<Updates>| {
        let (view, tenant) = (view.clone(), tenant.clone());
        async move {
            let ours = |theirs: &str| tenant.as_deref().is_none_or(|ours| ours == theirs);
            let mut updates = match updates {
                Some(updates) => updates,
                None => return Some(view.begin(tenant.as_deref())),
            };
            loop {
                match updates.recv().await {
                    Ok((_, Update::Upsert(agent))) if !ours(&agent.key.tenant) => {}
                    Ok((_, Update::Remove(key))) if !ours(&key.tenant) => {}
                    Ok(update) => return Some((update, Some(updates))),
                    Err(RecvError::Lagged(_)) => return Some(view.begin(tenant.as_deref())),
                    Err(RecvError::Closed) => return None,
                }
            }
        }
    })
}
