//! `FanOut`: one question to many agents.
//!
//! Each is asked by a call of its own, as a driver's calls are made; what has come in so far decides whether
//! others are asked, and when it is enough. Then whoever is still thinking is cancelled.

use std::{cmp::Ordering, collections::HashSet, rc::Rc, sync::Arc, time::Duration};

use parallax_proto::{
    confidence::AgentRequest,
    dataplane::v1::{
        Call as WireCall, CallOutcome, FanOutEvent, FanOutRequest, FanOutSummary,
        call::Target as Wanted,
        call_outcome::Outcome,
        failure::Cause,
        fan_out_event::Event,
        fan_out_request::{BestEffort, Mode as WireMode, Ordered, Quorum},
        fan_out_summary::Ended,
    },
};
use parallax_runtime::error::status;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tonic::Status;

use super::{Question, perform};
use crate::{
    admission::{Held, Priority},
    caller::Caller,
    directory::Entry,
    error::Failure,
    proxy::Origin,
    vitals::Standing,
};

/// Agents with a capability that are asked when the caller does not say how many.
const DEFAULT_AGENTS: usize = 32;
/// Agents that one call asks at most.
pub(crate) const MAX_AGENTS: usize = 256;
/// What is expected of an agent of which nothing is known.
const UNKNOWN: f64 = 0.5;

/// A call of `FanOut`, handed from its gRPC service to the worker that serves it.
pub(crate) struct Many {
    pub(crate) origin: Origin,
    pub(crate) priority: Priority,
    pub(crate) request: FanOutRequest,
    /// The room that the request takes.
    pub(crate) held: Option<Arc<Held>>,
    /// The caller's own deadline.
    pub(crate) timeout: Option<Duration>,
    pub(crate) traceparent: String,
    /// With room for all events that can come.
    pub(crate) events: mpsc::Sender<Result<FanOutEvent, Status>>,
}

/// Serves one call to its end. When the caller goes away, its calls are cancelled.
pub(crate) async fn serve(caller: Rc<Caller>, many: Many) {
    let events = many.events.clone();
    tokio::select! {
        () = events.closed() => {}
        failed = ask_all(caller, many) => {
            if let Err(failure) = failed {
                // The caller has gone, perhaps.
                _ = events.send(Err(status(&failure))).await;
            }
        }
    }
}

async fn ask_all(caller: Rc<Caller>, many: Many) -> Result<(), Failure> {
    let Many { origin, priority, request, held: _held, timeout, traceparent, events } = many;
    let started = Instant::now();
    let mode = Mode::of(request.mode.as_ref())?;
    let named = request.request.as_ref().map_or(0, |request| request.timeout_ms);
    let named = u64::try_from(named).ok().filter(|ms| *ms > 0).map(Duration::from_millis);
    let limit = [named, timeout].into_iter().flatten().min().unwrap_or(caller.config.now().default_deadline);
    let deadline = started + limit;
    let by = match mode {
        Mode::BestEffort(by) if by < limit => Some(started + by),
        _ => None,
    };
    let targets = targets(&caller, origin.tenant(Some(&request.tenant)), &request, mode, started)?;
    let at_once = match (request.max_concurrency, mode) {
        (0, Mode::Ordered(_)) => 1,
        (0, _) => usize::MAX,
        (n, _) => n as usize,
    };

    let origin = Rc::new(origin);
    let mut tally = Tally { mode, open: targets.len(), answered: 0, failed: 0, cancelled: 0, best: None };
    let mut waiting = targets.iter().enumerate();
    let (mut cancels, mut asked) = (Vec::new(), None);
    // Dropping it cancels what is left.
    let mut running = JoinSet::new();
    let ended = loop {
        if let Some(ended) = tally.ended() {
            break ended;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        while !left.is_zero()
            && running.len() < at_once
            && let Some((number, agent)) = waiting.next()
        {
            // Rounded up: whoever meets it meets the end of all time.
            let timeout_ms = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            // Those that are asked together are sent the same.
            if asked.as_ref().is_none_or(|(ms, _)| *ms != timeout_ms) {
                let question = AgentRequest { timeout_ms, ..request.request.clone().unwrap_or_default() };
                asked = Some((timeout_ms, Question::of(&caller, Some(question), priority)));
            }
            let (_, question) = asked.as_ref().expect("it has just been made");
            let call = WireCall {
                call_id: number as u64,
                tenant: request.tenant.clone(),
                target: Some(Wanted::AgentId(agent.clone())),
                effect: request.effect.clone(),
                attempt: 1,
                traceparent: traceparent.clone(),
                ..WireCall::default()
            };
            let (cancel, cancelled) = oneshot::channel();
            cancels.push(cancel);
            running.spawn_local(perform(caller.clone(), origin.clone(), call, question.clone(), cancelled));
        }
        tokio::select! {
            Some(outcome) = running.join_next() => tell(outcome, &targets, &mut tally, &events)?,
            () = sleep_until(by.unwrap_or(deadline)), if by.is_some() || running.is_empty() => break Ended::Deadline,
        }
    };
    for cancel in cancels {
        // It fails for those that have ended.
        _ = cancel.send(format!("no longer needed: {}", word(ended)));
    }
    while let Some(outcome) = running.join_next().await {
        tell(outcome, &targets, &mut tally, &events)?;
    }
    let late = matches!(ended, Ended::All | Ended::Impossible) && Instant::now() >= deadline;
    let summary = FanOutSummary {
        ended: if late { Ended::Deadline } else { ended }.into(),
        asked: tally.answered + tally.failed + tally.cancelled,
        answered: tally.answered,
        failed: tally.failed,
        cancelled: tally.cancelled,
        not_asked: waiting.map(|(_, agent)| agent.clone()).collect(),
    };
    say(&events, Event::Summary(summary));
    Ok(())
}

type Ask = Result<CallOutcome, tokio::task::JoinError>;
type Events = mpsc::Sender<Result<FanOutEvent, Status>>;

fn tell(ask: Ask, targets: &[String], tally: &mut Tally, events: &Events) -> Result<(), Failure> {
    let mut outcome = ask.map_err(|e| Failure::Cancelled(format!("a call failed in the node: {e}")))?;
    // Whom it is about, also when that one could not be asked.
    outcome.agent_id.clone_from(&targets[usize::try_from(outcome.call_id).expect("it is an index")]);
    tally.count(&outcome);
    say(events, Event::Outcome(outcome));
    Ok(())
}

fn say(events: &Events, event: Event) {
    // There is room, so it fails only when the caller has gone.
    _ = events.try_send(Ok(FanOutEvent { event: Some(event) }));
}

/// Who is asked, in this order; nobody twice.
fn targets(
    caller: &Caller,
    tenant: &str,
    request: &FanOutRequest,
    mode: Mode,
    now: Instant,
) -> Result<Vec<String>, Failure> {
    let FanOutRequest { agent_ids, capability, max_agents, .. } = request;
    if agent_ids.is_empty() && capability.is_empty() {
        return Err(Failure::Malformed(
            "the call names nobody to ask: set agent_ids, or capability, or both".to_owned(),
        ));
    }
    let snapshot = caller.directory.snapshot();
    let snapshot = snapshot.as_ref().ok_or_else(|| Failure::NoDirectory {
        control_plane: caller.config.now().control_planes.join(", "),
    })?;
    let agents = snapshot.tenant(tenant);
    let mut once = HashSet::new();
    let mut targets: Vec<&str> =
        agent_ids.iter().map(String::as_str).filter(|agent| once.insert(*agent)).collect();
    let most = if *max_agents == 0 { DEFAULT_AGENTS } else { *max_agents as usize };
    if most > MAX_AGENTS || targets.len() > MAX_AGENTS {
        let (field, given) =
            if most > MAX_AGENTS { ("max_agents", most) } else { ("agent_ids", targets.len()) };
        return Err(Failure::Malformed(format!("{field}: {given} given, at most {MAX_AGENTS}")));
    }
    if !capability.is_empty() {
        let able = agents.and_then(|tenant| tenant.capabilities.get(capability));
        let known = || agents.into_iter().flat_map(|t| t.capabilities.keys()).map(String::as_str);
        let able = able.ok_or_else(|| Failure::no_capability(tenant, capability, known()))?;
        let mut able: Vec<&Arc<Entry>> =
            able.members.iter().filter(|entry| !once.contains(entry.agent.key.id.as_str())).collect();
        able.sort_by(|a, b| preference(a, b, now));
        let room = most.min(MAX_AGENTS - targets.len());
        targets.extend(able.into_iter().take(room).map(|entry| entry.agent.key.id.as_str()));
    }
    if matches!(mode, Mode::Ordered(_)) {
        let entry = |id: &str| agents.and_then(|tenant| tenant.agents.get(id));
        // Nobody knows the unknown: they come last, and fail.
        targets.sort_by(|a, b| match (entry(a), entry(b)) {
            (Some(a), Some(b)) => preference(a, b, now),
            (a, b) => b.is_some().cmp(&a.is_some()),
        });
    }
    Ok(targets.into_iter().map(str::to_owned).collect())
}

/// Whom to ask first: what the balancer goes by, without chance.
fn preference(a: &Arc<Entry>, b: &Arc<Entry>, now: Instant) -> Ordering {
    let ejected = |entry: &Entry| !matches!(entry.vitals.standing("", now), Standing::Admitted);
    let expected = |entry: &Entry| {
        let stated = entry.agent.metadata.default_confidence.map(f64::from);
        entry.vitals.load.quality().or(stated).unwrap_or(UNKNOWN)
    };
    ejected(a)
        .cmp(&ejected(b))
        .then_with(|| expected(b).total_cmp(&expected(a)))
        .then_with(|| a.cost.total_cmp(&b.cost))
        .then_with(|| a.vitals.in_flight().cmp(&b.vitals.in_flight()))
        .then_with(|| a.agent.key.id.cmp(&b.agent.key.id))
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
enum Mode {
    All,
    First,
    Quorum(u32),
    BestEffort(Duration),
    Ordered(f64),
}

impl Mode {
    fn of(mode: Option<&WireMode>) -> Result<Self, Failure> {
        let wrong = |problem: &str| Err(Failure::Malformed(problem.to_owned()));
        Ok(match mode {
            None => {
                return wrong("the call has no mode: set one of all, first, quorum, best_effort, ordered");
            }
            Some(WireMode::All(_)) => Self::All,
            Some(WireMode::First(_)) => Self::First,
            Some(WireMode::Quorum(Quorum { answers: 0 })) => {
                return wrong("quorum.answers: is 0; it must be 1 or more");
            }
            Some(WireMode::Quorum(Quorum { answers })) => Self::Quorum(*answers),
            Some(WireMode::BestEffort(BestEffort { by_ms: 0 })) => {
                return wrong("best_effort.by_ms: is 0; it must be 1 or more");
            }
            Some(WireMode::BestEffort(BestEffort { by_ms })) => {
                Self::BestEffort(Duration::from_millis((*by_ms).into()))
            }
            Some(WireMode::Ordered(Ordered { confidence })) if (0.0..=1.0).contains(confidence) => {
                Self::Ordered(*confidence)
            }
            Some(WireMode::Ordered(Ordered { confidence })) => {
                return wrong(&format!("ordered.confidence: is {confidence}; it must be from 0 to 1"));
            }
        })
    }
}

/// What has come in so far.
#[derive(Debug)]
struct Tally {
    mode: Mode,
    /// Agents that have not ended, asked or not.
    open: usize,
    answered: u32,
    failed: u32,
    cancelled: u32,
    /// The highest confidence that was stated.
    best: Option<f64>,
}

impl Tally {
    fn count(&mut self, outcome: &CallOutcome) {
        self.open -= 1;
        match &outcome.outcome {
            Some(Outcome::Answer(answer)) => {
                self.answered += 1;
                self.best = [self.best, answer.confidence].into_iter().flatten().reduce(f64::max);
            }
            Some(Outcome::Failure(failure)) if failure.cause() == Cause::Cancelled => self.cancelled += 1,
            _ => self.failed += 1,
        }
    }

    /// Why no more is waited for; none while it is.
    fn ended(&self) -> Option<Ended> {
        let needed = match self.mode {
            Mode::First => 1,
            Mode::Quorum(answers) => answers,
            Mode::Ordered(wanted) if self.best.is_some_and(|best| best >= wanted) => {
                return Some(Ended::Confidence);
            }
            Mode::All | Mode::BestEffort(_) | Mode::Ordered(_) => 0,
        };
        if needed > 0 && self.answered >= needed {
            return Some(if matches!(self.mode, Mode::First) { Ended::First } else { Ended::Quorum });
        }
        if self.answered as usize + self.open < needed as usize {
            return Some(Ended::Impossible);
        }
        (self.open == 0).then_some(Ended::All)
    }
}

/// For those who are cancelled.
fn word(ended: Ended) -> &'static str {
    match ended {
        Ended::First => "another answered first",
        Ended::Quorum => "enough have answered",
        Ended::Confidence => "another was confident enough",
        Ended::Deadline => "time is up",
        Ended::Impossible => "too few can answer",
        Ended::All | Ended::Unspecified => "all have ended",
    }
}

#[cfg(test)]
mod tests {
    use parallax_proto::dataplane::v1::{Answer, Failure as WireFailure};

    use super::*;

    fn answer(confidence: Option<f64>) -> CallOutcome {
        let answer = Answer { confidence, ..Default::default() };
        CallOutcome { outcome: Some(Outcome::Answer(answer)), ..Default::default() }
    }

    fn failure() -> CallOutcome {
        let failure = WireFailure { cause: Cause::AgentError.into(), ..WireFailure::default() };
        CallOutcome { outcome: Some(Outcome::Failure(failure)), ..Default::default() }
    }

    /// After which outcome it ends, and how, with so many agents.
    fn end(mode: Mode, agents: usize, outcomes: &[CallOutcome]) -> (usize, Option<Ended>) {
        let mut tally = Tally { mode, open: agents, answered: 0, failed: 0, cancelled: 0, best: None };
        for (number, outcome) in outcomes.iter().enumerate() {
            if let Some(ended) = tally.ended() {
                return (number, Some(ended));
            }
            tally.count(outcome);
        }
        (outcomes.len(), tally.ended())
    }

    #[test]
    fn each_mode_ends_when_it_has_what_it_wants_or_cannot_get_it() {
        let (yes, no) = (|| answer(None), failure);
        assert_eq!(end(Mode::All, 2, &[yes()]), (1, None));
        assert_eq!(end(Mode::All, 2, &[yes(), no()]), (2, Some(Ended::All)));
        assert_eq!(end(Mode::First, 3, &[no(), yes(), yes()]), (2, Some(Ended::First)));
        assert_eq!(end(Mode::First, 2, &[no(), no()]), (2, Some(Ended::Impossible)));
        assert_eq!(end(Mode::Quorum(2), 3, &[yes(), no(), yes()]), (3, Some(Ended::Quorum)));
        assert_eq!(end(Mode::Quorum(2), 3, &[no(), no(), yes()]), (2, Some(Ended::Impossible)));
        assert_eq!(end(Mode::Quorum(4), 3, &[]), (0, Some(Ended::Impossible)), "nobody need be asked");
        let by = Mode::BestEffort(Duration::from_secs(1));
        assert_eq!(end(by, 2, &[yes(), yes()]), (2, Some(Ended::All)));
    }

    #[test]
    fn an_order_ends_with_the_first_that_is_sure() {
        let sure = |confidence| answer(Some(confidence));
        assert_eq!(end(Mode::Ordered(0.8), 3, &[sure(0.7), sure(0.8)]), (2, Some(Ended::Confidence)));
        // One that states nothing is not sure, even where nothing is asked of it.
        assert_eq!(end(Mode::Ordered(0.0), 2, &[answer(None)]), (1, None));
        assert_eq!(end(Mode::Ordered(0.8), 2, &[sure(0.1), failure()]), (2, Some(Ended::All)));
    }
}
