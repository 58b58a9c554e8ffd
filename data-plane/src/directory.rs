//! Who can be asked: an immutable snapshot that all cores read, replaced when the control plane reports a
//! change.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use arc_swap::{ArcSwapOption, Guard};
use http::{HeaderValue, uri::Authority};
use parallax_proto::controlplane::v1::{AgentKey as WireKey, AgentRecord};
use parallax_runtime::agent::{Agent, AgentKey, Transport, Url};
use parallax_security::{Expect, Identity, Kind};
use parallax_telemetry::metrics::DataPlaneMetrics;
use tokio::{sync::watch, time::Instant};
use tracing::warn;

use crate::{
    balance::hash,
    config::Current,
    group::{Group, Shared},
    vitals::Vitals,
};

pub(crate) mod follow;

/// An agent as the directory names it, with what every call to it needs made once.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) agent: Agent,
    pub(crate) vitals: Arc<Vitals>,
    /// Names the way to the agent: another one whenever endpoint or transport change.
    pub(crate) route: u64,
    pub(crate) authority: Authority,
    /// Of an agent that is reached by HTTP.
    pub(crate) url: Option<Url>,
    /// Who must be at the other end, if it is a member of the cluster; none in plaintext.
    pub(crate) expect: Option<Expect>,
    /// The id, as `x-parallax-served-by` has it.
    pub(crate) served_by: HeaderValue,
    /// What tells a gateway whom the call is for: tenant and id.
    pub(crate) through: Option<(HeaderValue, HeaderValue)>,
    /// Of the id: where the agent stands among others.
    pub(crate) hash: u64,
    /// What a call costs, by the label `cost`; 0 when it states none that is a positive number.
    pub(crate) cost: f64,
}

impl Entry {
    /// For messages: id and endpoint.
    pub(crate) fn who(&self) -> String {
        format!("{} at {}", self.agent.key.id, self.agent.endpoint)
    }

    fn new(agent: Agent, vitals: Arc<Vitals>, route: u64) -> Result<Self, String> {
        let url = agent.url();
        let authority = url.as_ref().map_or(&agent.endpoint, |url| &url.authority);
        let authority = authority.parse().map_err(|e| format!("endpoint: {e}"))?;
        let served_by = HeaderValue::from_str(&agent.key.id).map_err(|e| format!("id: {e}"))?;
        let expect = match agent.transport {
            Transport::Plaintext | Transport::Http => None,
            Transport::Gateway => Some(Expect::kind(Kind::ControlPlane)),
            Transport::Mtls | Transport::Https => {
                let identity = Identity::new(&agent.key.tenant, Kind::Agent, &agent.key.id);
                Some(Expect::Identity(identity.map_err(|e| e.to_string())?))
            }
        };
        let tenant = HeaderValue::from_str(&agent.key.tenant).map_err(|e| format!("tenant: {e}"))?;
        let through = (agent.transport == Transport::Gateway).then(|| (tenant, served_by.clone()));
        let hash = hash(agent.key.id.as_bytes());
        let cost = agent.metadata.labels.get("cost").and_then(|cost| cost.parse().ok());
        let cost = cost.filter(|cost: &f64| cost.is_finite() && *cost > 0.0).unwrap_or_default();
        Ok(Self { agent, vitals, route, authority, url, expect, served_by, through, hash, cost })
    }
}

/// The agents of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Tenant {
    pub(crate) agents: HashMap<String, Arc<Entry>>,
    pub(crate) capabilities: HashMap<String, Group>,
}

/// Everyone, at one revision of the registry.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) revision: u64,
    tenants: HashMap<String, Tenant>,
}

impl Snapshot {
    pub(crate) fn tenant(&self, tenant: &str) -> Option<&Tenant> {
        self.tenants.get(tenant)
    }

    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.values()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.tenants.values().flat_map(|tenant| tenant.agents.values())
    }

    /// The ways that are in use.
    pub(crate) fn routes(&self) -> HashSet<u64> {
        self.entries().map(|entry| entry.route).collect()
    }
}

/// The current snapshot: none before the first. What cores share.
#[derive(Debug)]
pub(crate) struct Directory {
    current: ArcSwapOption<Snapshot>,
    changed: watch::Sender<u64>,
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self { current: ArcSwapOption::empty(), changed: watch::Sender::new(0) }
    }

    /// A read without a lock.
    pub(crate) fn snapshot(&self) -> Guard<Option<Arc<Snapshot>>> {
        self.current.load()
    }

    /// Tells that there is another snapshot.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn publish(&self, snapshot: Snapshot) {
        let revision = snapshot.revision;
        self.current.store(Some(Arc::new(snapshot)));
        self.changed.send_replace(revision);
    }
}

/// Keeps the entries from one snapshot to the next. Owned by the one task that follows the control plane.
pub(crate) struct Book {
    config: Current,
    metrics: DataPlaneMetrics,
    entries: BTreeMap<AgentKey, Arc<Entry>>,
    departed: HashMap<AgentKey, (Arc<Vitals>, Instant)>,
    /// By tenant and capability.
    groups: HashMap<(String, String), Arc<Shared>>,
    routes: u64,
}

impl Book {
    pub(crate) fn new(config: Current, metrics: DataPlaneMetrics) -> Self {
        Self {
            config,
            metrics,
            entries: BTreeMap::new(),
            departed: HashMap::new(),
            groups: HashMap::new(),
            routes: 0,
        }
    }

    /// The whole registry: who is not in it has left.
    pub(crate) fn replace(&mut self, records: Vec<AgentRecord>, now: Instant) {
        let present: HashSet<AgentKey> =
            records.into_iter().filter_map(|record| self.upsert(record, now)).collect();
        let gone: Vec<_> = self.entries.keys().filter(|key| !present.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.depart(key, now));
    }

    /// One that has come or changed; its key unless the record cannot be used.
    pub(crate) fn upsert(&mut self, record: AgentRecord, now: Instant) -> Option<AgentKey> {
        let agent = match Agent::from_record(record) {
            Ok(agent) => agent,
            Err(e) => {
                warn!("the control plane sent a record that cannot be used: {e}");
                return None;
            }
        };
        let key = agent.key.clone();
        let before = self.entries.get(&key);
        if before.is_some_and(|before| before.agent == agent) {
            return Some(key);
        }
        let same_way =
            |b: &&Arc<Entry>| b.agent.endpoint == agent.endpoint && b.agent.transport == agent.transport;
        let route = before.filter(same_way).map_or(self.routes + 1, |before| before.route);
        self.routes = self.routes.max(route);
        let vitals = match (before, self.departed.remove(&key)) {
            (Some(before), _) => {
                if before.route != route {
                    before.vitals.begin_anew(now);
                }
                before.vitals.clone()
            }
            (None, Some((vitals, _))) => {
                vitals.begin_anew(now);
                vitals
            }
            (None, None) => {
                Arc::new(Vitals::new(&self.config, self.metrics.agent(&key.tenant, &key.id), now))
            }
        };
        match Entry::new(agent, vitals, route) {
            Ok(entry) => {
                self.entries.insert(key.clone(), Arc::new(entry));
                Some(key)
            }
            Err(e) => {
                warn!(agent = key.id, tenant = key.tenant, "the agent cannot be called: {e}");
                self.depart(&key, now);
                None
            }
        }
    }

    /// One that has left.
    pub(crate) fn remove(&mut self, key: WireKey, now: Instant) {
        self.depart(&AgentKey { tenant: key.tenant, id: key.agent_id }, now);
    }

    /// The snapshot as it is now; forgets those who left long ago.
    pub(crate) fn snapshot(&mut self, revision: u64, now: Instant) -> Snapshot {
        self.departed.retain(|key, (_, left)| {
            let keep = now.saturating_duration_since(*left) < self.config.now().remember;
            if !keep {
                self.metrics.remove_agent(&key.tenant, &key.id);
            }
            keep
        });
        self.metrics.directory_agents.set(i64::try_from(self.entries.len()).unwrap_or(i64::MAX));
        Snapshot { revision, tenants: self.tenants(now) }
    }

    fn tenants(&mut self, now: Instant) -> HashMap<String, Tenant> {
        let mut tenants: HashMap<String, Tenant> = HashMap::new();
        let mut groups = HashMap::new();
        for entry in self.entries.values() {
            let AgentKey { tenant: name, id } = &entry.agent.key;
            let tenant = tenants.entry(name.clone()).or_default();
            tenant.agents.insert(id.clone(), entry.clone());
            for capability in &entry.agent.capabilities {
                let group = tenant.capabilities.entry(capability.clone()).or_insert_with(|| {
                    let key = (name.clone(), capability.clone());
                    let shared = self.groups.remove(&key);
                    let shared =
                        shared.unwrap_or_else(|| Arc::new(Shared::new(capability, &self.config, now)));
                    groups.insert(key, shared.clone());
                    Group { members: Vec::new(), shared }
                });
                // An agent may name a capability twice.
                if group.members.last().is_none_or(|last| last.agent.key != entry.agent.key) {
                    group.members.push(entry.clone());
                }
            }
        }
        self.groups = groups;
        tenants
    }

    fn depart(&mut self, key: &AgentKey, now: Instant) {
        if let Some(entry) = self.entries.remove(key) {
            self.departed.insert(key.clone(), (entry.vitals.clone(), now));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parallax_proto::{controlplane::v1 as wire, registry::AgentRegistration};
    use parallax_telemetry::Registry;

    use super::*;
    use crate::config::Config;

    fn record(id: &str, endpoint: &str, capabilities: &[&str]) -> AgentRecord {
        AgentRecord {
            tenant: "default".into(),
            registration: Some(AgentRegistration {
                id: id.into(),
                endpoint: endpoint.into(),
                capabilities: capabilities.iter().map(|c| (*c).into()).collect(),
                ..Default::default()
            }),
            transport: wire::Transport::Mtls.into(),
        }
    }

    fn book() -> Book {
        let metrics = DataPlaneMetrics::new(&mut Registry::default());
        let config = Config { remember: Duration::from_secs(60), ..Config::default() };
        Book::new(config.into(), metrics)
    }

    fn entry(snapshot: &Snapshot, id: &str) -> Arc<Entry> {
        snapshot.tenant("default").unwrap().agents[id].clone()
    }

    #[test]
    fn what_is_known_of_an_agent_outlives_its_registration_and_its_route_does_not() {
        let (mut book, now) = (book(), Instant::now());
        book.replace(vec![record("a", "h:1", &["x", "x"]), record("b", "h:2", &["x"])], now);
        let first = book.snapshot(1, now);
        assert_eq!(first.tenant("default").unwrap().capabilities["x"].members.len(), 2);

        book.upsert(record("a", "h:1", &["y"]), now);
        let second = book.snapshot(2, now);
        assert_eq!(entry(&second, "a").route, entry(&first, "a").route, "connections are kept");
        assert_eq!(second.tenant("default").unwrap().capabilities["x"].members.len(), 1);
        assert!(Arc::ptr_eq(&entry(&second, "b"), &entry(&first, "b")));

        let key = WireKey { tenant: "default".into(), agent_id: "a".into() };
        book.remove(key.clone(), now);
        assert!(!book.snapshot(3, now).tenant("default").unwrap().agents.contains_key("a"));
        book.upsert(record("a", "h:9", &[]), now);
        let back = book.snapshot(4, now);
        assert!(Arc::ptr_eq(&entry(&back, "a").vitals, &entry(&first, "a").vitals));
        assert_ne!(entry(&back, "a").route, entry(&first, "a").route);
        assert!(!back.routes().contains(&entry(&first, "a").route));

        book.remove(key, now);
        book.snapshot(5, now + Duration::from_secs(61));
        book.upsert(record("a", "h:9", &[]), now);
        let late = book.snapshot(6, now);
        assert!(!Arc::ptr_eq(&entry(&late, "a").vitals, &entry(&first, "a").vitals), "forgotten by then");
    }

    #[test]
    fn a_snapshot_replaces_all_and_bad_records_are_left_out() {
        let (mut book, now) = (book(), Instant::now());
        book.replace(vec![record("a", "h:1", &[]), record("b", "h:2", &[])], now);
        let unnamed = AgentRecord { registration: None, ..record("c", "h:3", &[]) };
        book.replace(vec![record("b", "h:2", &[]), unnamed, record("no identity!", "h:4", &[])], now);
        let snapshot = book.snapshot(2, now);
        let ids: Vec<_> = snapshot.entries().map(|e| e.agent.key.id.clone()).collect();
        assert_eq!(ids, ["b"]);
    }
}
