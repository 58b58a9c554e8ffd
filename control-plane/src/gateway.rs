//! Agents that cannot be dialled: each holds one stream to a replica of the control plane, and calls reach it there.
//!
//! Such an agent is registered like any other, with the replica that holds its stream as its endpoint. A data-plane
//! node calls that replica as it calls an agent, so everything that the node does for calls is done for these.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{Stream, StreamExt};
use parallax_proto::{
    confidence::{AgentRequest, Capabilities, ConfidenceResult, Health, health::Status as HealthStatus},
    gateway::{
        AgentHello, AgentToControlPlane, CancelTask, ControlPlaneToAgent, Ping, ServerAck, TaskError,
        TaskRequest, TaskResult, ThreadStop, agent_to_control_plane::Payload as FromAgent,
        control_plane_to_agent::Payload as ToAgent,
    },
    registry::{AgentRegistration, RegisterRequest, agent_registration::Metadata},
};
use parallax_runtime::{
    agent::{AgentKey, Transport},
    env::Env,
    lifecycle::Lifecycle,
    wire::{duration_to_wire, timestamp_to_wire},
};
use parallax_security::Peer;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, info, warn};

use crate::{error::Error, registry::Registry, tenant};

/// How long a stream may take to say whose it is.
const HELLO: Duration = Duration::from_secs(10);
/// Between heartbeats of an agent that names no interval, and what is believed of one that does.
const INTERVAL: Duration = Duration::from_secs(10);
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Heartbeats that an agent may miss before it counts as unhealthy, and before it is gone.
const UNHEALTHY: u32 = 2;
const GONE: u32 = 3;
/// Messages that may wait to be read by an agent.
const QUEUE: usize = 256;
/// Calls that may be in flight with one agent.
const MAX_CALLS: usize = 1024;

/// The streams that this process holds. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    registry: Registry,
    env: Arc<dyn Env>,
    life: Lifecycle,
    /// `host:port` at which data-plane nodes reach this process.
    endpoint: String,
    sessions: Mutex<HashMap<AgentKey, Arc<Session>>>,
}

/// An agent's stream.
struct Session {
    key: AgentKey,
    peer: Peer,
    hello: AgentHello,
    interval: Duration,
    /// Of the registration that this stream stands for.
    lease: String,
    to_agent: mpsc::Sender<ControlPlaneToAgent>,
    calls: Mutex<HashMap<String, oneshot::Sender<Result<TaskResult, Status>>>>,
    beat: Mutex<Beat>,
    closed: CancellationToken,
}

/// The last that was heard.
struct Beat {
    at: Instant,
    load: f64,
    status: String,
}

type Outbound = mpsc::Receiver<ControlPlaneToAgent>;

impl Gateway {
    /// With no agents yet.
    #[must_use]
    pub fn new(registry: Registry, env: Arc<dyn Env>, life: Lifecycle, endpoint: String) -> Self {
        Self(Arc::new(Inner { registry, env, life, endpoint, sessions: Mutex::default() }))
    }

    /// Takes an agent's stream: registers the agent, and returns what it is to be told. The first message is the
    /// answer to its hello.
    ///
    /// # Errors
    /// A stream that begins otherwise; a field that cannot stand; an id that belongs to another.
    pub async fn connect(
        &self,
        peer: Peer,
        mut inbound: impl Stream<Item = Result<AgentToControlPlane, Status>> + Send + Unpin + 'static,
    ) -> Result<Outbound, Status> {
        let invalid = |problem: &str| Error::Invalid { field: "hello", problem: problem.to_owned() };
        let first = timeout(HELLO, inbound.next()).await;
        let first = first.map_err(|_| invalid(&format!("did not come within {HELLO:?}")))?;
        let first = first.ok_or_else(|| invalid("is missing: the stream ended"))??;
        let Some(FromAgent::Hello(hello)) = first.payload else {
            return Err(invalid("must be the first message of the stream").into());
        };
        let (to_agent, outbound) = mpsc::channel(QUEUE);
        let session = self.open(peer, hello, to_agent).await?;
        let ack = ServerAck {
            accepted: true,
            message: "registered".to_owned(),
            assigned_node_id: self.0.endpoint.clone(),
        };
        session.tell(first.request_id, ToAgent::Ack(ack)).await;
        let gateway = self.clone();
        self.0.life.spawn("gateway", async move {
            let stopping = gateway.0.life.stopping();
            let why = tokio::select! {
                why = gateway.listen(&session, inbound) => why,
                () = session.closed.cancelled() => "it has connected anew".to_owned(),
                () = stopping => "the control plane is stopping".to_owned(),
            };
            gateway.close(&session, &why).await;
        });
        Ok(outbound)
    }

    async fn open(
        &self,
        peer: Peer,
        hello: AgentHello,
        to_agent: mpsc::Sender<ControlPlaneToAgent>,
    ) -> Result<Arc<Session>, Error> {
        let interval = match u64::try_from(hello.heartbeat_interval_ms) {
            Ok(0) | Err(_) => INTERVAL,
            Ok(ms) => Duration::from_millis(ms).clamp(INTERVALS.0, INTERVALS.1),
        };
        let lease =
            self.0.registry.register_via(&peer, Transport::Gateway, self.request(&hello, interval)).await?;
        let key = AgentKey { tenant: tenant::of(&peer).to_owned(), id: hello.agent_id.clone() };
        info!(tenant = key.tenant, agent = key.id, "agent connected through the gateway");
        let beat = Beat { at: Instant::now(), load: 0.0, status: String::new() };
        let session = Arc::new(Session {
            key: key.clone(),
            peer,
            hello,
            interval,
            lease,
            to_agent,
            calls: Mutex::default(),
            beat: Mutex::new(beat),
            closed: CancellationToken::new(),
        });
        // The registry has let it in, so it is who it was before: its former stream is dead, or soon will be.
        if let Some(former) = self.0.sessions.lock().insert(key, session.clone()) {
            former.closed.cancel();
        }
        Ok(session)
    }

    /// As the agent would register itself.
    fn request(&self, hello: &AgentHello, interval: Duration) -> RegisterRequest {
        let mut labels = hello.metadata.clone();
        let mut take = |key: &str| labels.remove(key).unwrap_or_default();
        let metadata = Metadata {
            version: take("version"),
            region: take("region"),
            default_confidence: take("default_confidence").parse().unwrap_or(0.0),
            labels,
        };
        let agent = AgentRegistration {
            id: hello.agent_id.clone(),
            name: hello.agent_name.clone(),
            endpoint: self.0.endpoint.clone(),
            capabilities: hello.capabilities.clone(),
            metadata: Some(metadata),
            registered_at: None,
            ttl: Some(duration_to_wire(interval * GONE)),
        };
        RegisterRequest { agent: Some(agent), auto_renew: false }
    }

    /// Reads what an agent says, until its stream ends or it has been silent for too long; returns why.
    async fn listen(
        &self,
        session: &Session,
        mut inbound: impl Stream<Item = Result<AgentToControlPlane, Status>> + Unpin,
    ) -> String {
        let mut missed = 0;
        loop {
            let message = match timeout(session.interval, inbound.next()).await {
                Err(_) => {
                    missed += 1;
                    if missed >= GONE {
                        return format!("nothing was heard of it for {:?}", session.interval * GONE);
                    }
                    let ping = Ping { server_time: Some(timestamp_to_wire(self.0.env.now())) };
                    session.tell(String::new(), ToAgent::Ping(ping)).await;
                    continue;
                }
                Ok(None) => return "it has closed the stream".to_owned(),
                Ok(Some(Err(status))) => return format!("the stream broke: {status}"),
                Ok(Some(Ok(message))) => message,
            };
            missed = 0;
            session.beat.lock().at = Instant::now();
            match message.payload {
                Some(FromAgent::Heartbeat(heartbeat)) => {
                    {
                        let mut beat = session.beat.lock();
                        (beat.load, beat.status) = (heartbeat.load, heartbeat.status);
                    }
                    if let Err(e) = self.0.registry.renew(&session.peer, &session.lease, None).await {
                        match e {
                            Error::NoLease { .. } => return "its registration has expired".to_owned(),
                            e => warn!(agent = session.key.id, "a heartbeat could not be kept: {e}"),
                        }
                    }
                }
                Some(FromAgent::TaskResult(result)) => {
                    session.settle(&message.request_id, Ok(result));
                }
                Some(FromAgent::TaskError(TaskError { error_message, error_code, .. })) => {
                    let code = if error_code.is_empty() { String::new() } else { format!(" ({error_code})") };
                    let status = Status::internal(format!("{error_message}{code}"));
                    session.settle(&message.request_id, Err(status));
                }
                Some(FromAgent::ThreadSpawnResult(thread)) => session.refuse_thread(thread.thread_id).await,
                Some(FromAgent::ThreadEvent(thread)) => session.refuse_thread(thread.thread_id).await,
                Some(FromAgent::ThreadStatusUpdate(thread)) => session.refuse_thread(thread.thread_id).await,
                Some(FromAgent::Hello(_)) | None => {
                    debug!(agent = session.key.id, "a message of the gateway was ignored");
                }
            }
        }
    }

    async fn close(&self, session: &Arc<Session>, why: &str) {
        info!(tenant = session.key.tenant, agent = session.key.id, why, "agent left the gateway");
        {
            let mut sessions = self.0.sessions.lock();
            if sessions.get(&session.key).is_some_and(|current| Arc::ptr_eq(current, session)) {
                sessions.remove(&session.key);
            }
        }
        for (_, call) in session.calls.lock().drain() {
            let message = format!("agent {} left while it was asked: {why}", session.key.id);
            call.send(Err(Status::unavailable(message))).ok();
        }
        // Only this stream's registration: the agent may be connected anew by now, here or elsewhere.
        if let Err(e) = self.0.registry.release(&session.lease).await {
            warn!(agent = session.key.id, "its registration stays until its lease runs out: {e}");
        }
    }

    fn session(&self, key: &AgentKey) -> Result<Arc<Session>, Status> {
        self.0.sessions.lock().get(key).cloned().ok_or_else(|| {
            Status::unavailable(format!("agent {} is not connected to this control plane", key.id))
        })
    }

    /// Asks an agent. Dropping the future cancels the task at the agent.
    ///
    /// # Errors
    /// An agent that is not there, does not answer heartbeats, leaves, or answers with an error.
    pub async fn analyze(&self, key: &AgentKey, request: AgentRequest) -> Result<ConfidenceResult, Status> {
        let session = self.session(key)?;
        if session.is_unhealthy() {
            let message = format!("agent {} has missed {UNHEALTHY} heartbeats", key.id);
            return Err(Status::unavailable(message));
        }
        let (answer, outcome) = oneshot::channel();
        let mut call = InFlight {
            session: Arc::downgrade(&session),
            request_id: self.0.env.id(),
            task_id: request.task_id.clone(),
            settled: false,
        };
        {
            let mut calls = session.calls.lock();
            if calls.len() >= MAX_CALLS {
                let message = format!("{MAX_CALLS} calls are in flight with agent {}", key.id);
                return Err(Status::resource_exhausted(message));
            }
            calls.insert(call.request_id.clone(), answer);
        }
        let task = TaskRequest {
            task_id: request.task_id,
            task_description: request.task_description,
            data: request.data,
            context: request.context,
            timeout_ms: request.timeout_ms,
            pattern_name: request.pattern_name,
        };
        session.tell(call.request_id.clone(), ToAgent::TaskRequest(task)).await;
        let left = || Status::unavailable(format!("agent {} left while it was asked", key.id));
        let outcome = outcome.await.map_err(|_| left())?;
        call.settled = true;
        let TaskResult { value_json, confidence, reasoning, metadata, .. } = outcome?;
        Ok(ConfidenceResult {
            value_json,
            confidence,
            agent_id: key.id.clone(),
            timestamp: Some(timestamp_to_wire(self.0.env.now())),
            uncertainties: vec![],
            reasoning,
            metadata,
        })
    }

    /// What an agent said of itself when it connected.
    ///
    /// # Errors
    /// It is not connected here.
    pub fn capabilities(&self, key: &AgentKey) -> Result<Capabilities, Status> {
        let AgentHello { agent_id, agent_name, capabilities, .. } = self.session(key)?.hello.clone();
        // Neither is told when connecting: absent.
        let (expertise_level, capability_scores) = (f64::NAN, HashMap::new());
        Ok(Capabilities { agent_id, name: agent_name, capabilities, expertise_level, capability_scores })
    }

    /// How an agent is, by its heartbeats.
    ///
    /// # Errors
    /// It is not connected here.
    pub fn health(&self, key: &AgentKey) -> Result<Health, Status> {
        let session = self.session(key)?;
        let silent = session.is_unhealthy();
        let beat = session.beat.lock();
        let last = self.0.env.now() - beat.at.elapsed();
        Ok(Health {
            status: if silent { HealthStatus::Unhealthy } else { HealthStatus::Healthy }.into(),
            message: if silent { format!("missed {UNHEALTHY} heartbeats") } else { beat.status.clone() },
            last_check: Some(timestamp_to_wire(last)),
            details: HashMap::from([("load".to_owned(), beat.load.to_string())]),
        })
    }
}

impl Session {
    async fn tell(&self, request_id: String, payload: ToAgent) {
        // An agent that is gone is noticed by whoever reads its stream.
        self.to_agent.send(ControlPlaneToAgent { request_id, payload: Some(payload) }).await.ok();
    }

    fn is_unhealthy(&self) -> bool {
        self.beat.lock().at.elapsed() > self.interval * UNHEALTHY
    }

    /// Agents echo the request's id.
    fn settle(&self, request_id: &str, outcome: Result<TaskResult, Status>) {
        let Some(call) = self.calls.lock().remove(request_id) else {
            debug!(agent = self.key.id, request_id, "an answer that nobody waits for");
            return;
        };
        call.send(outcome).ok();
    }

    async fn refuse_thread(&self, thread_id: String) {
        let reason = "threads are reserved and not served".to_owned();
        self.tell(String::new(), ToAgent::ThreadStop(ThreadStop { thread_id, reason, force: false })).await;
    }
}

/// A call that an agent has been asked; dropped unsettled, it is cancelled.
struct InFlight {
    session: Weak<Session>,
    request_id: String,
    task_id: String,
    settled: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Some(session) = self.session.upgrade().filter(|_| !self.settled) else { return };
        if session.calls.lock().remove(&self.request_id).is_some() {
            let (request_id, task_id) = (self.request_id.clone(), self.task_id.clone());
            let cancel = CancelTask { task_id, reason: "its caller no longer waits".to_owned() };
            let message = ControlPlaneToAgent { request_id, payload: Some(ToAgent::CancelTask(cancel)) };
            // An agent that reads nothing is not worth waiting for.
            session.to_agent.try_send(message).ok();
        }
    }
}
