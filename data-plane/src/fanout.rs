//! Calls made side by side: those of one driver's stream (`Dispatch`), or one question to many (`FanOut`).
//!
//! Each call stands alone: what happens to one agent reaches no other call. Nothing that a driver's stream
//! leaves behind keeps running: when it breaks, its calls are cancelled.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    future::Future,
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_TYPE, TE, USER_AGENT},
    uri::PathAndQuery,
};
use parallax_proto::{
    confidence::{AgentRequest, ConfidenceResult},
    dataplane::v1::{
        self as wire_v1, Answer as WireAnswer, Call as WireCall, CallOutcome, DispatchRequest, call_outcome,
        dispatch_request::Message as Incoming,
    },
};
use parallax_runtime::{
    error::Coded,
    wire::{self, answer_from_result, timestamp_to_wire},
};
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tonic::{Status, Streaming};
use tracing::debug;

use crate::{
    admission::Priority,
    ask::{About, Ask, Hints, Target},
    cache::Mode,
    call::TRACEPARENT,
    caller::{Caller, Sent},
    error::Failure,
    fallback::SERVED_BY,
    metadata::mark_changing,
    opted::{Answered, By, Opted, Plan, Wishes},
    proxy::{ANALYZE, Origin},
    tracker::micros,
    upload::Upload,
    whole::{self, PREFIX, framed},
};

mod many;

pub(crate) use many::{MAX_AGENTS, Many};

const CLIENT_ID: HeaderName = HeaderName::from_static(wire::CLIENT_ID);
const EFFECT: HeaderName = HeaderName::from_static(wire::EFFECT);
const ATTEMPT: HeaderName = HeaderName::from_static(wire::ATTEMPT);

/// What the gRPC service hands to the worker that makes the calls.
pub(crate) enum Job {
    Dispatch(Stream),
    FanOut(Many),
}

/// A driver's stream.
pub(crate) struct Stream {
    pub(crate) origin: Origin,
    pub(crate) calls: Streaming<DispatchRequest>,
    pub(crate) outcomes: mpsc::Sender<Result<CallOutcome, Status>>,
}

/// Does a job to its end.
pub(crate) async fn serve(caller: Rc<Caller>, job: Job, stopping: impl Future<Output = ()>) {
    match job {
        Job::Dispatch(stream) => dispatch(caller, stream, stopping).await,
        Job::FanOut(many) => many::serve(caller, many).await,
    }
}

/// Serves one stream to its end. A driver that only closes its side still gets the outcomes of its calls, and
/// so does everyone when the node stops: a call that has no outcome by the end was not begun.
async fn dispatch(caller: Rc<Caller>, stream: Stream, stopping: impl Future<Output = ()>) {
    let Stream { origin, mut calls, outcomes } = stream;
    let origin = Rc::new(origin);
    // Dropping it cancels what is left.
    let mut running = JoinSet::new();
    let mut cancels: HashMap<u64, oneshot::Sender<String>> = HashMap::new();
    let (mut open, mut stopped) = (true, None);
    // Those for which there is no room yet.
    let mut waiting: VecDeque<WireCall> = VecDeque::new();
    tokio::pin!(stopping);
    loop {
        let most = caller.config.now().max_calls_per_stream;
        while running.len() < most
            && let Some(mut call) = waiting.pop_front()
        {
            let (cancel, cancelled) = oneshot::channel();
            // A second call of the same id hides the first from cancellation, no more.
            cancels.insert(call.call_id, cancel);
            let question = Question::of(&caller, call.request.take(), Priority::Default);
            running.spawn_local(perform(caller.clone(), origin.clone(), call, question, cancelled));
        }
        if !open && running.is_empty() {
            break;
        }
        tokio::select! {
            message = calls.message(), if open && waiting.len() < most => {
                match message {
                    Ok(Some(DispatchRequest { message: Some(Incoming::Call(call)) })) => waiting.push_back(call),
                    Ok(Some(DispatchRequest { message: Some(Incoming::Cancel(cancel)) })) => {
                        let of_it = |call: &WireCall| call.call_id == cancel.call_id;
                        if let Some(running) = cancels.remove(&cancel.call_id) {
                            // It fails when the call has just ended.
                            _ = running.send(cancel.reason);
                        } else if let Some(call) = waiting.iter().position(of_it).and_then(|at| waiting.remove(at)) {
                            let failure = Failure::Cancelled(cancel.reason);
                            let outcome = outcome(&caller, call.call_id, Err(failure), String::new(), Duration::ZERO);
                            if outcomes.send(Ok(outcome)).await.is_err() {
                                return;
                            }
                        }
                    }
                    // Of a later version.
                    Ok(Some(DispatchRequest { message: None })) => {}
                    Ok(None) => open = false,
                    Err(e) => return debug!("a driver's stream broke: {e}"),
                }
            }
            Some(ended) = running.join_next() => {
                let outcome = match ended {
                    Ok(outcome) => outcome,
                    // A panic: the stream cannot say whose, so all its calls fail.
                    Err(e) => {
                        _ = outcomes.send(Err(Status::internal(format!("a call failed in the node: {e}")))).await;
                        return;
                    }
                };
                cancels.remove(&outcome.call_id);
                if outcomes.send(Ok(outcome)).await.is_err() {
                    return;
                }
            }
            () = &mut stopping, if open => {
                open = false;
                waiting.clear();
                stopped = Some(Status::unavailable("this node is stopping; calls without an outcome were not begun"));
            }
            () = outcomes.closed() => return,
        }
    }
    if let Some(status) = stopped {
        // The driver has gone, perhaps.
        _ = outcomes.send(Err(status)).await;
    }
}

/// Makes one call.
async fn perform(
    caller: Rc<Caller>,
    origin: Rc<Origin>,
    wanted: WireCall,
    question: Rc<Question>,
    cancelled: oneshot::Receiver<String>,
) -> CallOutcome {
    let started = tokio::time::Instant::now();
    let (result, asked) = match ask(&origin, &wanted, &question) {
        Err(failure) => (Err(failure), None),
        Ok(ask) => {
            let (headers, cache) = (headers(&origin, &wanted), cache(&wanted));
            let result = tokio::select! {
                biased;
                result = answer(&caller, &ask, headers, cache, &question.framed) => result,
                Ok(reason) = cancelled => Err(Failure::Cancelled(reason)),
            };
            (result, ask.asked.take().map(|entry| entry.agent.key.id.clone()))
        }
    };
    let (result, by) = match result {
        Ok((answer, by)) => (Ok(answer), by),
        Err(failure) => (Err(failure), None),
    };
    outcome(&caller, wanted.call_id, result, by.or(asked).unwrap_or_default(), started.elapsed())
}

/// What came of a call that took so long.
fn outcome(
    caller: &Caller,
    call_id: u64,
    result: Result<WireAnswer, Failure>,
    agent_id: String,
    took: Duration,
) -> CallOutcome {
    let outcome = match result {
        Ok(answer) => call_outcome::Outcome::Answer(answer),
        Err(failure) => call_outcome::Outcome::Failure(wire_v1::Failure {
            cause: failure.cause().into(),
            message: failure.to_string(),
            retry_in: failure.retry_in().and_then(|retry_in| retry_in.try_into().ok()),
        }),
    };
    CallOutcome {
        call_id,
        outcome: Some(outcome),
        agent_id,
        started_at: Some(timestamp_to_wire(caller.env.now() - took)),
        duration_us: micros(took),
    }
}

/// What an agent is sent, or several; encoded once.
struct Question {
    priority: Priority,
    pattern: String,
    task: String,
    timeout: Duration,
    framed: Bytes,
}

impl Question {
    /// With the node's deadline if it has none.
    fn of(caller: &Caller, request: Option<AgentRequest>, priority: Priority) -> Rc<Self> {
        let mut request = request.unwrap_or_default();
        if request.timeout_ms <= 0 {
            let default = caller.config.now().default_deadline.as_millis();
            request.timeout_ms = i32::try_from(default).unwrap_or(i32::MAX);
        }
        let timeout = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or_default());
        let framed = framed(&request);
        Rc::new(Self { priority, pattern: request.pattern_name, task: request.task_id, timeout, framed })
    }
}

fn ask<'a>(origin: &'a Origin, wanted: &'a WireCall, question: &'a Question) -> Result<Ask<'a>, Failure> {
    use wire_v1::call::Target as Wanted;
    let target = match &wanted.target {
        Some(Wanted::AgentId(agent)) => Target::Agent(agent),
        Some(Wanted::Capability(capability)) => Target::Capability(capability),
        None => return Err(Failure::Malformed("the call names neither agent_id nor capability".to_owned())),
    };
    Ok(Ask {
        tenant: origin.tenant(Some(&wanted.tenant)),
        target,
        started: tokio::time::Instant::now(),
        timeout: Some(question.timeout),
        priority: question.priority,
        pattern: &question.pattern,
        recorded: Some(About { pattern: question.pattern.clone(), task: question.task.clone() }),
        unary: true,
        hints: Hints::read(&wanted.strategy, &wanted.affinity, wanted.idempotent)?,
        asked: RefCell::default(),
    })
}

fn cache(wanted: &WireCall) -> Option<Mode> {
    use wire_v1::call::Cache;
    match wanted.cache() {
        Cache::Unspecified => None,
        Cache::Use => Some(Mode::Use),
        Cache::Refresh => Some(Mode::Refresh),
        Cache::Bypass => Some(Mode::Bypass),
    }
}

/// What goes with the request.
fn headers(origin: &Origin, wanted: &WireCall) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("parallax/", env!("CARGO_PKG_VERSION"))));
    headers.insert(CLIENT_ID, origin.client_id.clone());
    headers.insert(ATTEMPT, HeaderValue::from(wanted.attempt));
    for (name, value) in [(EFFECT, &wanted.effect), (TRACEPARENT, &wanted.traceparent)] {
        match HeaderValue::try_from(value) {
            Ok(value) if !value.is_empty() => _ = headers.insert(name, value),
            Ok(_) => {}
            Err(_) => return Err(Failure::Malformed(format!("the call's {name} is no plain text"))),
        }
    }
    mark_changing(&mut headers, EFFECT);
    Ok(headers)
}

/// Asks until there is an answer, and reads it; says who gave it if that was not who was asked last.
async fn answer(
    caller: &Rc<Caller>,
    ask: &Ask<'_>,
    headers: Result<HeaderMap, Failure>,
    cache: Option<Mode>,
    framed: &Bytes,
) -> Result<(WireAnswer, Option<String>), Failure> {
    let headers = headers?;
    let _ticket = caller.admit(ask)?;
    let asking = async |ask: &Ask<'_>| {
        let upload = Upload::whole(framed.clone());
        let sent =
            Sent { path: PathAndQuery::from_static(ANALYZE), headers: headers.clone(), upload: &upload };
        let (call, answering) = caller.call(ask, sent).await?;
        whole::answer(call, answering, caller.config.now().max_message).await
    };
    let Some(plan) = Plan::of(caller, ask, Wishes { cache, ..Wishes::default() })? else {
        let whole = asking(ask).await.map_err(|failed| failed.failure)?;
        return Ok((answer_from_result(whole.result), None));
    };
    let opted = Opted { caller, ask, message: &framed[PREFIX..], plan: &plan };
    let (_, answered) = opted.answer(asking).await;
    let Answered { message, agent, by, .. } = answered.map_err(|failed| failed.failure)?;
    let agent = agent.and_then(|agent| agent.to_str().map(str::to_owned).ok());
    let served_by = match by {
        By::Agent(whole) => return Ok((answer_from_result(whole.result), agent)),
        By::Cache(_) => Some("cache"),
        By::Other => Some("shared"),
        // It says so itself.
        By::Fallback(_) => None,
    };
    let result = ConfidenceResult::decode(message).map_err(|e| Failure::BadAnswer {
        agent: agent.clone().unwrap_or_default(),
        problem: format!("not a ConfidenceResult: {e}"),
    })?;
    let mut answer = answer_from_result(result);
    answer.metadata.extend(served_by.map(|by| (SERVED_BY.to_owned(), by.to_owned())));
    Ok((answer, agent))
}
