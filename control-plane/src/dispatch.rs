//! The data-plane nodes that have joined, and sessions with them: a run's calls go through one session, which
//! outlives the node it began with.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use parallax_proto::dataplane::v1::{
    Call, CallOutcome, Cancel, DispatchRequest, Failure, call_outcome, data_plane_client::DataPlaneClient,
    dispatch_request, failure::Cause,
};
use parallax_runtime::env::Env;
use parallax_security::{Expect, Kind, Tls};
use parking_lot::RwLock;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};
use tower::service_fn;
use tracing::{info, warn};

mod ask;

/// Between two looks for a node.
const NODE_RETRY: Duration = Duration::from_millis(100);
/// A call that this many nodes have died under is given up.
const MAX_ATTEMPTS: u32 = 3;
/// Requests that may wait to be sent to a node, and so the bound on a run's calls in flight.
pub const MAX_IN_FLIGHT: usize = 1024;

/// The data-plane nodes that follow this control plane. Cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    tls: Tls,
    env: Arc<dyn Env>,
    members: Arc<RwLock<BTreeMap<String, Arc<Node>>>>,
    /// How many there are, for those who wait for some.
    count: Arc<watch::Sender<usize>>,
}

struct Node {
    id: String,
    addr: String,
    channel: Channel,
    sessions: AtomicUsize,
}

/// Keeps a node a member until it is dropped.
pub struct Membership {
    nodes: Nodes,
    node: Arc<Node>,
}

impl Nodes {
    /// With no members yet; they are dialled with these certificates.
    #[must_use]
    pub fn new(tls: Tls, env: Arc<dyn Env>) -> Self {
        Self { tls, env, members: Arc::default(), count: Arc::default() }
    }

    /// A node can be reached at `addr` from now on. One of the same id is replaced.
    #[must_use]
    pub fn join(&self, id: &str, addr: &str) -> Membership {
        let (tls, env, target) = (self.tls.clone(), self.env.clone(), addr.to_owned());
        let connector = service_fn(move |_| {
            let (tls, env, target) = (tls.clone(), env.clone(), target.clone());
            async move { tls.connect(&*env, &target, &Expect::kind(Kind::DataPlane)).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://data-plane")
            .connect_timeout(Duration::from_secs(2))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .connect_with_connector_lazy(connector);
        let node = Arc::new(Node {
            id: id.to_owned(),
            addr: addr.to_owned(),
            channel,
            sessions: AtomicUsize::new(0),
        });
        info!(node = id, addr, "data-plane node joined");
        let mut members = self.members.write();
        members.insert(id.to_owned(), node.clone());
        self.count.send_replace(members.len());
        drop(members);
        Membership { nodes: self.clone(), node }
    }

    /// Waits until there are so many members.
    pub async fn wait_for(&self, wanted: usize) {
        // Never closed: the sender is ours.
        self.count.subscribe().wait_for(|count| *count >= wanted).await.ok();
    }

    /// Ids and addresses of the members.
    #[must_use]
    pub fn list(&self) -> Vec<(String, String)> {
        self.members.read().values().map(|node| (node.id.clone(), node.addr.clone())).collect()
    }

    /// A session for the calls of one run.
    #[must_use]
    pub fn session(&self) -> Session {
        Session { nodes: self.clone(), link: None, pending: BTreeMap::new(), given_up: VecDeque::new() }
    }

    /// The member with the fewest sessions, other than `but` if there is another.
    fn pick(&self, but: Option<&str>) -> Option<Arc<Node>> {
        let members = self.members.read();
        let load = |node: &&Arc<Node>| (Some(node.id.as_str()) == but, node.sessions.load(Ordering::Relaxed));
        members.values().min_by_key(load).cloned()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut members = self.nodes.members.write();
        // It may have joined again meanwhile, by another stream.
        if members.get(&self.node.id).is_some_and(|current| Arc::ptr_eq(current, &self.node)) {
            members.remove(&self.node.id);
            self.nodes.count.send_replace(members.len());
            info!(node = self.node.id, "data-plane node left");
        }
    }
}

/// One run's calls. Dropping it cancels those that are in flight, at their agents.
pub struct Session {
    nodes: Nodes,
    link: Option<Link>,
    /// Sent, or to be sent, and without outcome.
    pending: BTreeMap<u64, Pending>,
    given_up: VecDeque<CallOutcome>,
}

struct Pending {
    call: Call,
    /// When its time is up: for so long it waits for a node when there is none.
    due: Instant,
}

impl Pending {
    fn new(call: Call) -> Self {
        let timeout = call.request.as_ref().map_or(0, |request| request.timeout_ms);
        Self { due: Instant::now() + Duration::from_millis(u64::try_from(timeout).unwrap_or(0)), call }
    }

    /// As it is sent now: what it has waited for a node is of its own time.
    fn now(&self) -> DispatchRequest {
        let mut call = self.call.clone();
        if let Some(request) = &mut call.request {
            let left = self.due.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            request.timeout_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        }
        request(dispatch_request::Message::Call(call))
    }
}

struct Link {
    node: Arc<Node>,
    requests: mpsc::Sender<DispatchRequest>,
    outcomes: Streaming<CallOutcome>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.node.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    /// Asks for a call; its outcome comes out of [`Session::next`].
    pub async fn call(&mut self, call: Call) {
        self.pending.insert(call.call_id, Pending::new(call.clone()));
        if let Some(link) = &self.link {
            // A link that is gone is noticed by `next`, which sends what is pending to another node.
            link.requests.send(request(dispatch_request::Message::Call(call))).await.ok();
        }
    }

    /// The outcome of a call is no longer wanted; none will come.
    pub async fn cancel(&mut self, call_id: u64) {
        if self.pending.remove(&call_id).is_some()
            && let Some(link) = &self.link
        {
            let cancel = Cancel { call_id, reason: "no longer needed".to_owned() };
            link.requests.send(request(dispatch_request::Message::Cancel(cancel))).await.ok();
        }
    }

    /// The next outcome; waits for ever when no call is pending. May be dropped and called again.
    pub async fn next(&mut self) -> CallOutcome {
        let mut failed_node = None;
        loop {
            if let Some(outcome) = self.given_up.pop_front() {
                return outcome;
            }
            if self.pending.is_empty() {
                std::future::pending::<()>().await;
            }
            let Some(link) = &mut self.link else {
                self.reconnect(failed_node.as_deref()).await;
                continue;
            };
            match link.outcomes.message().await {
                Ok(Some(outcome)) => {
                    if self.pending.remove(&outcome.call_id).is_some() {
                        return outcome;
                    }
                }
                ended => {
                    let why = ended
                        .err()
                        .map_or_else(|| "the stream ended".to_owned(), |status| status.to_string());
                    let node = link.node.id.clone();
                    warn!(node, why, calls = self.pending.len(), "a data-plane node was lost in mid-run");
                    self.link = None;
                    let message =
                        format!("{MAX_ATTEMPTS} data-plane nodes were lost under this call, the last: {why}");
                    self.pending.values_mut().for_each(|pending| pending.call.attempt += 1);
                    self.give_up(|pending| pending.call.attempt > MAX_ATTEMPTS, &message);
                    failed_node = Some(node);
                }
            }
        }
    }

    async fn reconnect(&mut self, but: Option<&str>) {
        let Some(node) = self.nodes.pick(but) else {
            let message = "no data-plane node has joined this control plane; start one with `parallax start --data-plane-only`";
            return self.without_node(message).await;
        };
        let (requests, queue) = mpsc::channel(2 * MAX_IN_FLIGHT);
        for pending in self.pending.values() {
            requests.try_send(pending.now()).expect("no more calls are in flight than the queue holds");
        }
        let opened = DataPlaneClient::new(node.channel.clone()).dispatch(ReceiverStream::new(queue)).await;
        match opened {
            Ok(response) => {
                node.sessions.fetch_add(1, Ordering::Relaxed);
                self.link = Some(Link { node, requests, outcomes: response.into_inner() });
            }
            Err(status) => {
                warn!(node = node.id, addr = node.addr, "a data-plane node cannot be reached: {status}");
                self.without_node(&format!("data-plane node {} cannot be reached: {status}", node.id)).await;
            }
        }
    }

    /// Gives up the calls whose time is up, and lets the others wait.
    async fn without_node(&mut self, message: &str) {
        let now = Instant::now();
        self.give_up(|pending| pending.due <= now, message);
        if self.given_up.is_empty() {
            let first = self.pending.values().map(|pending| pending.due).min();
            tokio::time::sleep_until(first.map_or(now, |due| due.min(now + NODE_RETRY))).await;
        }
    }

    fn give_up(&mut self, which: impl Fn(&Pending) -> bool, message: &str) {
        let calls = self.pending.extract_if(.., |_, pending| which(pending));
        self.given_up.extend(calls.map(|(call_id, pending)| CallOutcome {
            call_id,
            agent_id: match pending.call.target {
                Some(parallax_proto::dataplane::v1::call::Target::AgentId(id)) => id,
                _ => String::new(),
            },
            started_at: None,
            duration_us: 0,
            outcome: Some(call_outcome::Outcome::Failure(Failure {
                cause: Cause::Unreachable.into(),
                message: message.to_owned(),
                retry_in: None,
            })),
        }));
    }
}

fn request(message: dispatch_request::Message) -> DispatchRequest {
    DispatchRequest { message: Some(message) }
}

#[cfg(test)]
mod tests {
    use parallax_proto::{confidence::AgentRequest, dataplane::v1::call::Target};
    use parallax_runtime::env::System;
    use parallax_security::{Authority, Identity};

    use super::*;

    fn nodes() -> Nodes {
        let (dir, now) = (tempfile::tempdir().unwrap(), System.system_time());
        let authority = Authority::open(&dir.path().join("ca"), now).unwrap();
        let identity = Identity::new("default", Kind::ControlPlane, "plane").unwrap();
        let bundle = authority.bundle(&identity, &dir.path().join("tls"), now).unwrap();
        Nodes::new(Tls::load(bundle, now).unwrap(), System::shared())
    }

    fn call(call_id: u64, seconds: i32) -> Call {
        let request = AgentRequest { timeout_ms: seconds * 1000, ..AgentRequest::default() };
        let target = Some(Target::AgentId("a".to_owned()));
        Call { call_id, target, request: Some(request), ..Call::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_node_calls_wait_until_their_time_is_up_or_they_are_cancelled() {
        let mut session = nodes().session();
        let begun = Instant::now();
        for (id, seconds) in [(1, 40), (2, 20), (3, 10)] {
            session.call(call(id, seconds)).await;
        }
        session.cancel(3).await;
        for (id, seconds) in [(2, 20), (1, 40)] {
            let outcome = session.next().await;
            assert_eq!((outcome.call_id, begun.elapsed().as_secs()), (id, seconds));
            let Some(call_outcome::Outcome::Failure(failure)) = outcome.outcome else { panic!("an answer") };
            assert_eq!(failure.cause(), Cause::Unreachable);
            assert!(failure.message.starts_with("no data-plane node has joined"), "{failure:?}");
        }
    }
}
