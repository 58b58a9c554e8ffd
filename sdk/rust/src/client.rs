use std::{
    error::Error as _,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use parallax_proto::{
    confidence::{AgentRequest, confidence_agent_client::ConfidenceAgentClient},
    dataplane::v1::data_plane_client::DataPlaneClient,
    patterns::{
        ExecutePatternRequest, ExecutePatternResponse, execute_pattern_request::Options,
        pattern_service_client::PatternServiceClient,
    },
    registry::{AgentRegistration, ListAgentsRequest, registry_client::RegistryClient},
};
use parallax_runtime::{confidence::Confidence, env::System, wire};
use parallax_security::Kind;
use serde_json::Value as Json;
use tokio::{sync::Mutex, time::Instant};
use tonic::{
    Request, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tonic_types::StatusExt;

use crate::{
    Answer, DEFAULT_DATA_PLANE, DEFAULT_REGISTRY, Error, Task, TlsOptions,
    link::{Dialer, Link},
    many::{Asked, Many},
    tls::Credentials,
};

/// Whom a call through the data plane is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// The agent with this id.
    Agent(String),
    /// Any agent that has this capability.
    Capability(String),
}

/// An answer, and whose it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub agent: String,
    pub answer: Answer,
}

/// Calls the planes. Connects when it is first needed, and again when a connection was lost.
pub struct Client {
    control: Lane,
    /// One for each node.
    data: Vec<Lane>,
    /// The node that is asked first next time.
    turn: AtomicUsize,
}

impl Client {
    /// For the planes of `PARALLAX_REGISTRY` (else [`DEFAULT_REGISTRY`]) and `PARALLAX_DATA_PLANE` (else
    /// [`DEFAULT_DATA_PLANE`]), as [`TlsOptions::from_env`] says.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn from_env() -> Result<Self, Error> {
        let var = |name: &str, default: &str| match std::env::var(name) {
            Ok(addr) if !addr.is_empty() => addr,
            _ => default.to_owned(),
        };
        let control = var("PARALLAX_REGISTRY", DEFAULT_REGISTRY);
        let data = var("PARALLAX_DATA_PLANE", DEFAULT_DATA_PLANE);
        Self::new(control, data, &TlsOptions::from_env()?)
    }

    /// For a control plane, `host:port`, and the nodes of the data plane, `host:port` with commas between, which take
    /// turns. A local authority names the client `operator/sdk`.
    ///
    /// # Errors
    /// No certificates, or such as cannot be used; an address that is none.
    pub fn new(
        control_plane: impl Into<String>,
        data_plane: impl Into<String>,
        tls: &TlsOptions,
    ) -> Result<Self, Error> {
        let credentials = Credentials::open(tls, Kind::Operator, "sdk", System::shared())?;
        let lane = |addr, expect| {
            let dialer = Dialer::new(addr, expect, credentials.clone())?;
            Ok::<_, Error>(Lane { dialer, link: Mutex::new(None) })
        };
        Ok(Self {
            control: lane(control_plane.into(), Kind::ControlPlane)?,
            data: data_plane
                .into()
                .split(',')
                .map(|node| lane(node.trim().to_owned(), Kind::DataPlane))
                .collect::<Result<_, _>>()?,
            turn: AtomicUsize::new(0),
        })
    }

    /// The agents that have all of `capabilities`.
    ///
    /// # Errors
    /// The control plane cannot be reached, or refuses.
    pub async fn agents(&self, capabilities: &[&str]) -> Result<Vec<AgentRegistration>, Error> {
        let link = self.control.link().await?;
        let mut client = RegistryClient::with_origin(link.clone(), link.origin);
        let mut agents = Vec::new();
        let mut request = ListAgentsRequest {
            capabilities: capabilities.iter().map(|&capability| capability.to_owned()).collect(),
            ..ListAgentsRequest::default()
        };
        loop {
            let page = client.list_agents(request.clone()).await.map_err(failed("ListAgents"))?.into_inner();
            agents.extend(page.agents);
            if page.next_continuation_token.is_empty() {
                return Ok(agents);
            }
            request.continuation_token = page.next_continuation_token;
        }
    }

    /// Runs a pattern and waits for its end. A run that fails is no error: the response says so.
    ///
    /// # Errors
    /// The control plane cannot be reached, or does not start the run.
    pub async fn execute(
        &self,
        pattern: impl Into<String>,
        input: &Json,
        timeout: Option<Duration>,
    ) -> Result<ExecutePatternResponse, Error> {
        let link = self.control.link().await?;
        let request = ExecutePatternRequest {
            pattern_name: pattern.into(),
            input: Some(wire::struct_from_any(input)),
            options: Some(Options { timeout_ms: millis(timeout), ..Options::default() }),
            ..ExecutePatternRequest::default()
        };
        let mut client = PatternServiceClient::with_origin(link.clone(), link.origin);
        let response = client.execute_pattern(request).await.map_err(failed("ExecutePattern"))?;
        Ok(response.into_inner())
    }

    /// Asks one agent, through the data plane.
    ///
    /// A node that cannot be reached or does not take the call is passed over for the next; a call that broke off with
    /// its node goes to the next if the task is [idempotent](Task::idempotent).
    ///
    /// # Errors
    /// The data plane cannot be reached, there is no such agent, or it did not answer.
    pub async fn ask(&self, to: &To, task: Task) -> Result<Reply, Error> {
        let idempotent = task.hints.idempotent;
        let metadata = metadata(to, &task)?;
        let deadline = task.deadline;
        let message = request(task);
        let first = self.turn.fetch_add(1, Relaxed);
        let mut last = None;
        for lane in (0..self.data.len()).map(|n| &self.data[(first + n) % self.data.len()]) {
            let link = match lane.link().await {
                Ok(link) => link,
                Err(e) => {
                    last = Some(e);
                    continue;
                }
            };
            let mut request = Request::new(AgentRequest { timeout_ms: left(deadline), ..message.clone() });
            *request.metadata_mut() = metadata.clone();
            let mut client = ConfidenceAgentClient::with_origin(link.clone(), link.origin);
            match client.analyze(request).await {
                Ok(response) => {
                    let result = response.into_inner();
                    return Ok(Reply { agent: result.agent_id.clone(), answer: answer(result) });
                }
                // A status that was made here says that the connection broke; what the agent did is unknown.
                Err(status) if turned_away(&status) || idempotent && status.source().is_some() => {
                    last = Some(failed("Analyze")(status));
                }
                Err(status) => return Err(failed("Analyze")(status)),
            }
        }
        Err(last.expect("there is a node"))
    }
}

/// Whether a node took the call at all: one that joins knows no agent yet, and one that has too much to do sends calls
/// to others.
fn turned_away(status: &Status) -> bool {
    status
        .get_details_error_info()
        .is_some_and(|info| [wire::JOINING, wire::SHED].contains(&info.reason.as_str()))
}

/// What tells a node whom a task is for, and what it may do with it.
fn metadata(to: &To, task: &Task) -> Result<MetadataMap, Error> {
    let (key, name) = match to {
        To::Agent(id) => (wire::AGENT, id),
        To::Capability(capability) => (wire::CAPABILITY, capability),
    };
    let hints = &task.hints;
    let given = [
        Some(("the call's target", key, name.as_str())),
        hints.idempotent.then_some(("idempotent", wire::IDEMPOTENT, "true")),
        hints.strategy.as_deref().map(|strategy| ("the task's strategy", wire::STRATEGY, strategy)),
        hints.affinity.as_deref().map(|affinity| ("the task's affinity", wire::AFFINITY, affinity)),
    ];
    let mut metadata = MetadataMap::new();
    for (setting, key, text) in given.into_iter().flatten() {
        let ascii = Some(text).filter(|text| text.is_ascii());
        let value = ascii.and_then(|text| MetadataValue::try_from(text).ok());
        let value = value.ok_or_else(|| Error::Setting {
            name: setting,
            problem: format!("is {text:?}; a header carries visible ASCII only"),
        })?;
        metadata.insert(key, value);
    }
    Ok(metadata)
}

impl Client {
    /// A node that can be reached.
    async fn node(&self) -> Result<Link, Error> {
        let first = self.turn.fetch_add(1, Relaxed);
        let mut last = None;
        for n in 0..self.data.len() {
            match self.data[(first + n) % self.data.len()].link().await {
                Ok(link) => return Ok(link),
                Err(e) => last = Some(e),
            }
        }
        Err(last.expect("there is a node"))
    }

    /// Asks many agents one question, through the data plane; their answers come one by one. Dropping what is returned
    /// cancels whoever is still asked.
    ///
    /// # Errors
    /// The data plane cannot be reached. What it refuses, [`Asked::next`] says.
    pub async fn ask_many(&self, many: &Many, task: Task) -> Result<Asked, Error> {
        let link = self.node().await?;
        let mut client = DataPlaneClient::with_origin(link.clone(), link.origin);
        let events = client.fan_out(many.request(request(task))).await.map_err(failed("FanOut"))?;
        Ok(Asked::new(events.into_inner()))
    }
}

fn left(deadline: Option<Instant>) -> i32 {
    millis(deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())))
}

fn request(task: Task) -> AgentRequest {
    let timeout_ms = left(task.deadline);
    AgentRequest {
        task_id: task.id,
        task_description: task.description,
        data: Some(wire::struct_from_any(&task.data)),
        context: task.context,
        timeout_ms,
        pattern_name: task.pattern.unwrap_or_default(),
    }
}

fn answer(result: parallax_proto::confidence::ConfidenceResult) -> Answer {
    Answer {
        value: wire::parse_value(&result.value_json),
        confidence: Confidence::stated(result.confidence),
        reasoning: result.reasoning,
        uncertainties: result.uncertainties,
        metadata: result.metadata,
    }
}

pub(crate) fn failed(method: &'static str) -> impl Fn(Status) -> Error {
    move |status| Error::Call { method, status: Box::new(status) }
}

/// For the wire, where 0 means none: at least 1.
fn millis(timeout: Option<Duration>) -> i32 {
    timeout.map_or(0, |timeout| i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1))
}

/// The way to one plane.
struct Lane {
    dialer: Dialer,
    link: Mutex<Option<Link>>,
}

impl Lane {
    async fn link(&self) -> Result<Link, Error> {
        let mut link = self.link.lock().await;
        if let Some(link) = link.as_ref().filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        self.dialer.credentials.refresh()?;
        Ok(link.insert(self.dialer.dial().await?).clone())
    }
}
