//! `ConfidenceAgent` on the wire, over an [`Agent`]: translation, bounds, and who may call.

use std::{any::Any, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use futures::{FutureExt, Stream, TryStreamExt, stream};
use parallax_proto::confidence::{
    AgentRequest, Capabilities, ConfidenceResult, Health as HealthMessage,
    confidence_agent_server::ConfidenceAgent, health::Status as HealthStatus,
};
use parallax_runtime::{
    confidence::Confidence,
    env::Env,
    error::{Code, Coded, status},
    wire,
};
use parallax_security::{Kind, Peer};
use parallax_telemetry::propagate;
use serde_json::Value as Json;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use tracing::{Instrument, Span, info_span, warn};

use crate::{Agent, AgentError, Answer, Health, Profile, Task, load::Load, task::Hints};

/// How a call can end without an answer.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    BadInput(String),
    #[error("the agent panicked: {0}")]
    Panicked(String),
    #[error("no answer before the deadline")]
    Late,
    #[error("the agent is shutting down")]
    Cut,
    #[error(
        "{0} may not call an agent directly: call it through the data plane, or as an operator of its tenant"
    )]
    Forbidden(String),
    #[error("this agent speaks mTLS: connect with TLS and a certificate of its authority")]
    Unknown,
}

impl Coded for Fault {
    fn code(&self) -> Code {
        match self {
            Self::Failed(_) | Self::Panicked(_) => Code::Internal,
            Self::BadInput(_) => Code::InvalidArgument,
            Self::Late => Code::DeadlineExceeded,
            Self::Cut => Code::Unavailable,
            Self::Forbidden(_) => Code::PermissionDenied,
            Self::Unknown => Code::Unauthenticated,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Failed(_) => "PARALLAX-SDK-101",
            Self::BadInput(_) => "PARALLAX-SDK-102",
            Self::Panicked(_) => "PARALLAX-SDK-103",
            Self::Late => "PARALLAX-SDK-104",
            Self::Cut => "PARALLAX-SDK-105",
            Self::Forbidden(_) => "PARALLAX-SDK-106",
            Self::Unknown => "PARALLAX-SDK-107",
        }
    }
}

impl From<AgentError> for Fault {
    fn from(error: AgentError) -> Self {
        if error.is_bad_input() { Self::BadInput(error.to_string()) } else { Self::Failed(error.to_string()) }
    }
}

/// Lets data-plane nodes pass, and the operators of the agent's own tenant. Used with TLS only: it wants the
/// peer that the acceptor has attached.
#[allow(clippy::result_large_err, reason = "tonic's interceptor")]
pub(crate) fn admit(tenant: &str, request: Request<()>) -> Result<Request<()>, Status> {
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.identity.as_ref());
    let fault = match peer {
        Some(peer) if peer.kind == Kind::DataPlane => return Ok(request),
        Some(peer) if peer.kind == Kind::Operator && peer.tenant == tenant => return Ok(request),
        Some(peer) => Fault::Forbidden(peer.to_string()),
        None => Fault::Unknown,
    };
    Err(status(&fault))
}

#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) agent: Arc<dyn Agent>,
    pub(crate) profile: Arc<Profile>,
    pub(crate) env: Arc<dyn Env>,
    /// Ends the calls that outlive a shutdown's patience.
    pub(crate) cut: CancellationToken,
    pub(crate) load: Arc<Load>,
}

/// What bounds one call. Dropped with it, which tells the task's threads.
struct Call {
    deadline: Option<Instant>,
    cut: CancellationToken,
    span: Span,
    _cancelled: DropGuard,
}

impl Call {
    /// Polls `work` until it ends, the deadline passes, or the shutdown has no more patience.
    async fn bound<T>(&self, work: impl Future<Output = Result<T, AgentError>>) -> Result<T, Status> {
        let late = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let fault = tokio::select! {
            done = AssertUnwindSafe(work).catch_unwind().instrument(self.span.clone()) => match done {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(e)) => e.into(),
                Err(panic) => Fault::Panicked(text(&*panic)),
            },
            () = late => Fault::Late,
            () = self.cut.cancelled() => Fault::Cut,
        };
        self.span.in_scope(|| warn!("no answer: {fault}"));
        Err(status(&fault))
    }
}

impl Service {
    fn begin(&self, request: Request<AgentRequest>) -> (Call, Task) {
        let (metadata, _, message) = request.into_parts();
        let stated = u64::try_from(message.timeout_ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis);
        let timeout = [stated, grpc_timeout(&metadata)].into_iter().flatten().min();
        let effect = metadata.get(wire::EFFECT).and_then(|effect| effect.to_str().ok()).map(str::to_owned);
        let span = info_span!("analyze", agent = self.profile.id(), task = message.task_id);
        propagate::extract(&metadata.into_headers(), &span);
        let task = Task {
            id: message.task_id,
            description: message.task_description,
            data: Json::Object(message.data.as_ref().map(wire::struct_to_json).unwrap_or_default()),
            context: message.context,
            pattern: Some(message.pattern_name).filter(|name| !name.is_empty()),
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            effect,
            hints: Hints::default(),
            cancelled: CancellationToken::new(),
        };
        let _cancelled = task.cancelled.clone().drop_guard();
        (Call { deadline: task.deadline, cut: self.cut.clone(), span, _cancelled }, task)
    }

    fn result(&self, answer: Answer) -> ConfidenceResult {
        ConfidenceResult {
            value_json: answer.value.to_string(),
            // The contract's word for "not stated".
            confidence: answer.confidence.map_or(f64::NAN, Confidence::get),
            agent_id: self.profile.id().to_owned(),
            timestamp: Some(wire::timestamp_to_wire(self.env.now())),
            uncertainties: answer.uncertainties,
            reasoning: answer.reasoning,
            metadata: answer.metadata,
        }
    }
}

#[tonic::async_trait]
impl ConfidenceAgent for Service {
    async fn analyze(&self, request: Request<AgentRequest>) -> Result<Response<ConfidenceResult>, Status> {
        let (call, task) = self.begin(request);
        let working = self.load.begin();
        let answer = call.bound(async { self.agent.analyze(task).await }).await?;
        working.answered();
        let mut response = Response::new(self.result(answer));
        self.load.report(response.metadata_mut());
        Ok(response)
    }

    type StreamAnalyzeStream = Pin<Box<dyn Stream<Item = Result<ConfidenceResult, Status>> + Send>>;

    async fn stream_analyze(
        &self,
        request: Request<AgentRequest>,
    ) -> Result<Response<Self::StreamAnalyzeStream>, Status> {
        let (call, task) = self.begin(request);
        let answers = call.bound(async { Ok(Arc::clone(&self.agent).stream(task)) }).await?;
        let (service, first) = (self.clone(), Some((call, answers)));
        let results = stream::unfold(first, move |state| {
            let service = service.clone();
            async move {
                let (call, mut answers) = state?;
                match call.bound(answers.try_next()).await {
                    Ok(None) => None,
                    Ok(Some(answer)) => Some((Ok(service.result(answer)), Some((call, answers)))),
                    Err(status) => Some((Err(status), None)),
                }
            }
        });
        Ok(Response::new(Box::pin(results)))
    }

    async fn get_capabilities(&self, _: Request<()>) -> Result<Response<Capabilities>, Status> {
        Ok(Response::new(Capabilities {
            agent_id: self.profile.id().to_owned(),
            name: self.profile.registration.name.clone(),
            capabilities: self.profile.registration.capabilities.clone(),
            expertise_level: self.profile.expertise.unwrap_or(f64::NAN),
            capability_scores: self.profile.scores.clone().into_iter().collect(),
        }))
    }

    async fn health_check(&self, _: Request<()>) -> Result<Response<HealthMessage>, Status> {
        let (status, message) = match AssertUnwindSafe(self.agent.health()).catch_unwind().await {
            Ok(Health::Healthy) => (HealthStatus::Healthy, String::new()),
            Ok(Health::Degraded(why)) => (HealthStatus::Degraded, why),
            Ok(Health::Unhealthy(why)) => (HealthStatus::Unhealthy, why),
            Err(panic) => (HealthStatus::Unhealthy, Fault::Panicked(text(&*panic)).to_string()),
        };
        let last_check = Some(wire::timestamp_to_wire(self.env.now()));
        Ok(Response::new(HealthMessage {
            status: status.into(),
            message,
            last_check,
            details: self.load.details(),
        }))
    }
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    AgentError::new(text.unwrap_or("it said nothing")).to_string()
}

/// The caller's patience as gRPC's transport carries it: up to eight digits and a unit.
fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_the_transport_are_read() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            grpc_timeout(&metadata)
        };
        assert_eq!(read("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        for wrong in ["", "m", "10", "999999999S", "-1S", "1x"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(grpc_timeout(&MetadataMap::new()), None);
    }
}
