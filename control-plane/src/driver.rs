//! Drives one run: steps the script, writes down what happened, then does what the script asks for.
//!
//! One append for each step holds the outcomes that led to it and the effects that it asked for, and is on disk
//! before any of these is begun; the first one creates the run. So whatever was done has been asked for in the
//! journal, and a replay of the journal asks for the same.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use parallax_prism::{
    Effect, EffectId, EffectKind, Fault, Interrupt, Outcome, Program, Run as Script, Step, Value,
};
use parallax_proto::dataplane::v1::{CallOutcome, call_outcome, failure::Cause};
use parallax_runtime::{
    error::{Code, Coded},
    run::{Entry, Event, Resolution, Run, RunKey, Start, Status, Summary},
    store::StoreError,
    wire,
};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tracing::{debug_span, warn};

mod begin;
mod script;

use crate::{
    dispatch::Session,
    error::{Error, Result},
    replay,
    runs::{Runs, Turn},
};
pub(crate) use script::host;
use script::{confidence_of, describe, kind_name, outcome_of};

/// The longest that a run may take or sleep, whatever it asks for.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Effects that a message names one by one.
const NAMED: usize = 5;
/// The capability of agents that stand for language models.
const LLM: &str = "llm";
/// A node hears of an agent a moment after the registry has it: for how long a call may wait for that, and how
/// often it is tried.
const NEWS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(20));
/// For how long a call waits that was turned away for load, when it is not said: up to twice as long.
const BUSY: Duration = Duration::from_millis(50);
/// How often a run is looked at that somebody else may have ended.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks whether a write has been told of.
const TELLING: Duration = Duration::from_millis(1);
/// The code of a run that took too long.
pub(crate) const TIMEOUT: &str = "timeout";
/// Between two attempts to write to a store that is away: the first pause, and the longest.
const STORE_AWAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A run is begun with its first effects, in one write, unless its script takes longer to come to them.
const FIRST_STEP: Duration = Duration::from_millis(5);

/// What a step came to: effects to perform, or the end.
type Stepped = Result<Vec<Effect>, Event>;

/// An effect that has been asked for, and has no outcome yet.
struct Wanted {
    kind: EffectKind,
    at: Timestamp,
    begun: Instant,
    /// When the call was first and last handed to a node.
    sent: Option<(Instant, Instant)>,
    /// By when the call must be answered, from when it was first handed to one.
    due: Option<Instant>,
}

/// A run that is not in the store yet: its first write creates it.
pub(crate) struct Birth {
    pub(crate) script: String,
    pub(crate) entries: Vec<Entry>,
    /// Told once, what came of it.
    pub(crate) told: oneshot::Sender<Result<Summary, StoreError>>,
}

pub(crate) struct Driver {
    runs: Runs,
    /// Absent once the run is in the store.
    birth: Option<Birth>,
    key: RunKey,
    start: Start,
    summary: Summary,
    journal: Vec<Entry>,
    /// The last effect that an earlier process asked for.
    known: u64,
    /// Absent only during a step.
    script: Option<Script>,
    wanted: BTreeMap<u64, Wanted>,
    /// Outcomes that are not written down yet.
    arrived: Vec<(Entry, (EffectId, Outcome))>,
    /// Calls that wait until fewer are in flight.
    held: VecDeque<u64>,
    in_flight: BTreeSet<u64>,
    session: Session,
    /// What needs no agent: sleeps, other patterns, time and chance.
    others: FuturesUnordered<BoxFuture<'static, (u64, Outcome)>>,
    /// Calls that nobody was asked yet, and that wait to be sent again.
    put_off: FuturesUnordered<BoxFuture<'static, u64>>,
    /// Runs within this one that nothing waits for any more.
    abandoned: Vec<RunKey>,
    deadline: Instant,
    /// A write is under way whose outcome somebody is to hear of: the first, and the last.
    telling: Arc<AtomicBool>,
    /// Tells when somebody else ends the run.
    watch: watch::Receiver<Status>,
    interrupt: Interrupt,
}

impl Driver {
    pub(crate) fn new(runs: Runs, run: Run, program: Program, birth: Option<Birth>) -> Self {
        let (start, run_key) = (run.start().clone(), run.summary.key.clone());
        let context = runs.context();
        let script = program.start(host(&start));
        let timeout = start.options.timeout.unwrap_or(context.bounds.run_timeout);
        // The time that a run has already had counts, across a restart too.
        let had = context.env.now().duration_since(run.summary.started_at).unsigned_abs();
        Self {
            key: run_key.clone(),
            deadline: Instant::now() + timeout.min(LONGEST).saturating_sub(had),
            session: context.nodes.session(),
            summary: run.summary,
            journal: run.entries,
            interrupt: script.interrupt(),
            script: Some(script),
            start,
            known: 0,
            arrived: Vec::new(),
            wanted: BTreeMap::new(),
            held: VecDeque::new(),
            in_flight: BTreeSet::new(),
            others: FuturesUnordered::new(),
            put_off: FuturesUnordered::new(),
            abandoned: Vec::new(),
            watch: runs.watch(&run_key),
            telling: Arc::new(AtomicBool::new(birth.is_some())),
            birth,
            runs,
        }
    }

    /// To the end of the run, once its turn has come; `None` when somebody else ends it, or the process stops.
    pub(crate) async fn run(mut self, turn: impl Future<Output = Turn>) -> Result<Option<Summary>> {
        let (mut watch, telling) = (self.watch.clone(), self.telling.clone());
        let (runs, key) = (self.runs.clone(), self.key.clone());
        let driven = 'driven: {
            let mut drive = pin!(self.drive(turn));
            tokio::select! {
                biased;
                driven = &mut drive => break 'driven driven,
                () = ended(&runs, &key, &mut watch) => {}
            }
            // By what is being written here, perhaps: that is counted and told first.
            while telling.load(Relaxed) {
                tokio::select! {
                    biased;
                    driven = &mut drive => break 'driven driven,
                    () = tokio::time::sleep(TELLING) => {}
                }
            }
            // Its calls go with the driver, which their agents see.
            Ok(None)
        };
        self.interrupt.interrupt();
        if matches!(driven, Ok(Some(_))) || watch.borrow().is_final() {
            let nested = |wanted: &Wanted| matches!(wanted.kind, EffectKind::Pattern { .. });
            let within = self.wanted.iter().filter(|(_, wanted)| nested(wanted));
            self.abandoned.extend(within.map(|(id, _)| self.key.nested(*id)));
            self.runs.cancel_soon(self.abandoned);
        }
        driven
    }

    async fn drive(&mut self, turn: impl Future<Output = Turn>) -> Result<Option<Summary>> {
        let (deadline, stopping) = (self.deadline, self.runs.context().life.stopping());
        let turn = tokio::select! {
            turn = turn => turn,
            () = tokio::time::sleep_until(deadline) => {
                let end = self.timed_out();
                return self.end(vec![], end).await.map(Some);
            }
            () = stopping => return Ok(None),
        };
        let _turn = turn;
        let mut entries = Vec::new();
        if self.summary.status == Status::Pending {
            entries.push(Entry { at: self.now(), event: Event::Admitted });
        }
        let journal = std::mem::take(&mut self.journal);
        self.known = journal.iter().filter_map(requested).max().unwrap_or(0);
        let mut stepped = self.replay(&journal).await?;
        loop {
            let effects = match stepped {
                Ok(effects) => effects,
                Err(end) => return self.end(entries, end).await.map(Some),
            };
            let at = self.now();
            entries.extend(effects.iter().filter(|effect| effect.id.0 > self.known).map(|effect| Entry {
                at,
                event: Event::Requested {
                    effect: effect.id.0,
                    request: serde_json::to_value(&effect.kind).expect("effects are plain data"),
                },
            }));
            self.append(std::mem::take(&mut entries)).await?;
            self.runs.cancel_soon(std::mem::take(&mut self.abandoned));
            for effect in effects {
                self.begin(effect.id.0).await;
            }
            let (deadline, stopping) = (self.deadline, self.runs.context().life.stopping());
            let (late, stop) = tokio::select! {
                () = self.outcomes() => (false, false),
                () = tokio::time::sleep_until(deadline) => (true, false),
                () = stopping => (false, true),
            };
            let (resolutions, outcomes) = std::mem::take(&mut self.arrived).into_iter().unzip();
            entries = resolutions;
            if stop {
                self.append(entries).await?;
                return Ok(None);
            }
            if late {
                let end = self.timed_out();
                return self.end(entries, end).await.map(Some);
            }
            stepped = self.step(outcomes, &mut entries).await?;
        }
    }

    /// Feeds the journal's outcomes to the script, and performs nothing. Returns what is to be performed now.
    async fn replay(&mut self, journal: &[Entry]) -> Result<Stepped> {
        let mut unwritten = Vec::new();
        let mut open = BTreeMap::new();
        let mut step = vec![];
        for entry in journal {
            let Event::Resolved(resolution) = &entry.event else { continue };
            match self.step(step, &mut unwritten).await? {
                Ok(effects) => open.extend(effects.into_iter().map(|e| (e.id, e))),
                end => return Ok(end),
            }
            self.wanted.remove(&resolution.effect);
            match replay::outcome(resolution) {
                Ok(outcome) => step = vec![(EffectId(resolution.effect), outcome)],
                Err(e) => return Ok(Err(failed("journal", e.to_string()))),
            }
        }
        Ok(self.step(step, &mut unwritten).await?.map(|effects| {
            open.extend(effects.into_iter().map(|e| (e.id, e)));
            open.retain(|id, _| self.wanted.contains_key(&id.0));
            open.into_values().collect()
        }))
    }

    /// One step, off the runtime's threads so that a busy script holds up nobody, and for no longer than the run
    /// may take. Adds what it abandons to `entries`.
    async fn step(
        &mut self,
        outcomes: Vec<(EffectId, Outcome)>,
        entries: &mut Vec<Entry>,
    ) -> Result<Stepped> {
        let mut script = self.script.take().expect("put back after each step");
        let span = debug_span!("step", outcomes = outcomes.len());
        let mut work = tokio::task::spawn_blocking(move || {
            let step = span.in_scope(|| script.step(outcomes));
            (script, step)
        });
        let mut joined = None;
        if self.birth.is_some() {
            joined = tokio::time::timeout(FIRST_STEP, &mut work).await.ok();
            if joined.is_none() {
                self.append(vec![]).await?;
            }
        }
        let joined = match joined {
            Some(joined) => joined,
            None => tokio::select! {
                joined = &mut work => joined,
                () = tokio::time::sleep_until(self.deadline) => {
                    self.interrupt.interrupt();
                    work.await
                }
            },
        };
        let Ok((script, step)) = joined else {
            return Ok(Err(failed("internal", "the interpreter panicked; please report this script")));
        };
        self.script = Some(script);
        Ok(match step {
            Step::Need { effects, cancelled } => {
                let (at, begun) = (self.now(), Instant::now());
                for effect in &effects {
                    let wanted = Wanted { kind: effect.kind.clone(), at, begun, sent: None, due: None };
                    self.wanted.insert(effect.id.0, wanted);
                }
                for id in cancelled.into_iter().map(|id| id.0) {
                    let Some(unwanted) = self.wanted.remove(&id) else { continue };
                    entries.push(Entry { at, event: Event::Abandoned { effect: id } });
                    self.in_flight.remove(&id);
                    match unwanted.kind {
                        EffectKind::Pattern { .. } => self.abandoned.push(self.key.nested(id)),
                        _ => self.session.cancel(id).await,
                    }
                }
                Ok(effects)
            }
            Step::Done(value) => Err(completed(&value)),
            Step::Failed(_) if Instant::now() >= self.deadline => Err(self.timed_out()),
            Step::Failed(fault) => Err(failed_by(fault)),
        })
    }

    /// Waits for an outcome that is wanted, and takes along those that are there already.
    async fn outcomes(&mut self) {
        // What was abandoned has made room.
        self.begin_held().await;
        while self.arrived.is_empty() {
            let arrival = self.arrival().await;
            let resolved = self.receive(arrival).await;
            self.arrived.extend(resolved);
            self.begin_held().await;
        }
        while let Some(arrival) = self.arrival().now_or_never() {
            let resolved = self.receive(arrival).await;
            self.arrived.extend(resolved);
        }
        self.begin_held().await;
    }

    /// Calls that waited until fewer were in flight.
    async fn begin_held(&mut self) {
        while self.in_flight.len() < self.most_calls()
            && let Some(id) = self.held.pop_front()
        {
            self.begin(id).await;
        }
    }

    async fn arrival(&mut self) -> Arrival {
        tokio::select! {
            outcome = self.session.next() => Arrival::Outcome(Source::Node(outcome)),
            Some((id, outcome)) = self.others.next() => Arrival::Outcome(Source::Here(id, outcome)),
            Some(id) = self.put_off.next() => Arrival::Again(id),
        }
    }

    async fn receive(&mut self, arrival: Arrival) -> Option<(Entry, (EffectId, Outcome))> {
        match arrival {
            Arrival::Outcome(Source::Node(outcome)) => match self.again_in(&outcome) {
                Some(pause) => {
                    let id = outcome.call_id;
                    self.in_flight.remove(&id);
                    self.put_off.push(tokio::time::sleep(pause).map(move |()| id).boxed());
                    None
                }
                None => self.resolve(Source::Node(outcome)),
            },
            Arrival::Outcome(outcome) => self.resolve(outcome),
            Arrival::Again(id) => {
                self.begin(id).await;
                None
            }
        }
    }

    /// When to send a call again that asked nobody: its node does not know yet of an agent that is registered, or the
    /// agent or the node has too much to do. Only while the call has time.
    fn again_in(&self, outcome: &CallOutcome) -> Option<Duration> {
        let Some(call_outcome::Outcome::Failure(failure)) = &outcome.outcome else { return None };
        let wanted = self.wanted.get(&outcome.call_id)?;
        let pause = match failure.cause() {
            Cause::NoAgent => {
                let registry = &self.runs.context().registry;
                let registered = match &wanted.kind {
                    EffectKind::Invoke { agent, .. } => registry.get(&self.key.tenant, agent).is_some(),
                    _ => !registry.agents(&self.key.tenant, &[LLM.to_owned()]).is_empty(),
                };
                (registered && wanted.begun.elapsed() < NEWS.0).then_some(NEWS.1)?
            }
            Cause::Busy => {
                let asked = failure.retry_in.and_then(|d| Duration::try_from(d).ok()).unwrap_or(BUSY);
                // Not all that were turned away together come again together.
                asked + asked.mul_f64((self.runs.context().env.random() % 1024) as f64 / 1024.0)
            }
            _ => return None,
        };
        (Instant::now() + pause < wanted.due?).then_some(pause)
    }

    fn resolve(&mut self, source: Source) -> Option<(Entry, (EffectId, Outcome))> {
        let at = self.now();
        let (id, outcome, confidence, agent, called_at, duration) = match source {
            Source::Node(call) => {
                self.in_flight.remove(&call.call_id);
                let called_at = call.started_at.and_then(wire::timestamp_from_wire);
                let outcome = outcome_of(&self.start, &call);
                let stated = match &call.outcome {
                    Some(call_outcome::Outcome::Answer(answer)) => answer.confidence,
                    _ => None,
                };
                (call.call_id, outcome, stated, Some(call.agent_id), called_at, Some(call.duration_us))
            }
            Source::Here(id, outcome) => (id, outcome, None, None, None, None),
        };
        let wanted = self.wanted.remove(&id)?;
        // A node names whom it asked: nobody, when it knows of no such agent or the breaker is open.
        let agent = match &wanted.kind {
            EffectKind::Invoke { agent, .. } => Some(agent.clone()),
            _ => agent.filter(|asked| !asked.is_empty()),
        };
        let ok = !matches!(outcome, Outcome::Failed { .. });
        self.runs.context().metrics.run_effect(kind_name(&wanted.kind), if ok { "ok" } else { "failed" });
        let duration_us = duration.unwrap_or_else(|| micros(wanted.begun.elapsed()));
        let resolution = Resolution {
            effect: id,
            confidence,
            outcome: serde_json::to_value(&outcome).expect("outcomes are plain data"),
            ok,
            agent,
            started_at: called_at.unwrap_or(wanted.at),
            duration_us,
            queued_us: wanted.sent.map_or(0, |(first, _)| micros(first - wanted.begun)),
            retried_us: wanted.sent.map_or(0, |(first, last)| micros(last - first)),
        };
        let entry = Entry { at, event: Event::Resolved(Box::new(resolution)) };
        Some((entry, (EffectId(id), outcome)))
    }

    async fn end(&mut self, mut entries: Vec<Entry>, end: Event) -> Result<Summary> {
        entries.push(Entry { at: self.now(), event: end });
        self.telling.store(true, Relaxed);
        self.append(entries).await?;
        Ok(self.summary.clone())
    }

    /// Writes down what happened. While the store is away the run waits for it, as nothing may happen that is not
    /// written down. One that cannot be created does not: who starts it is told.
    async fn append(&mut self, entries: Vec<Entry>) -> Result<()> {
        let context = self.runs.context();
        if let Some(Birth { script, entries: first, told }) = self.birth.take() {
            let entries = [first, entries].concat();
            let created = context.store.create(self.runs.owner(), &self.key, &script, &entries).await;
            let born = created.as_ref().ok().cloned();
            // Who started it may have gone away.
            told.send(created).ok();
            self.summary = born.ok_or_else(|| Error::NoRun { id: self.key.id.clone() })?;
            self.telling.store(self.summary.status.is_final(), Relaxed);
            return Ok(());
        }
        if entries.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut pause = STORE_AWAY.0;
        loop {
            match context.store.append(self.runs.owner(), &self.summary, &entries).await {
                Ok(summary) => {
                    context.metrics.journal_append.observe(begun.elapsed().as_secs_f64());
                    self.summary = summary;
                    return Ok(());
                }
                Err(e) if e.code() == Code::Unavailable && !context.life.is_stopping() => {
                    warn!("the journal cannot be written, trying again in {pause:?}: {e}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(STORE_AWAY.1);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn timed_out(&self) -> Event {
        let mut waiting: Vec<String> =
            self.wanted.values().take(NAMED).map(|wanted| describe(&wanted.kind)).collect();
        if self.wanted.len() > NAMED {
            waiting.push(format!("and {} more", self.wanted.len() - NAMED));
        }
        let timeout = self.start.options.timeout.unwrap_or(self.runs.context().bounds.run_timeout);
        let what = if waiting.is_empty() { "its script was busy".to_owned() } else { waiting.join(", ") };
        failed(TIMEOUT, format!("not done after {timeout:?}; waiting for: {what}"))
    }

    fn now(&self) -> Timestamp {
        self.runs.context().env.now()
    }
}

/// Something came back.
enum Arrival {
    Outcome(Source),
    /// A call that was put off is to be sent.
    Again(u64),
}

/// Where an outcome is from.
enum Source {
    Node(CallOutcome),
    Here(u64, Outcome),
}

/// Resolves when a run has ended. Whoever ended it elsewhere is heard of by a hint, and hints may be lost.
async fn ended(runs: &Runs, key: &RunKey, watch: &mut watch::Receiver<Status>) {
    loop {
        let heard = watch.wait_for(|status| status.is_final()).map(|told| told.is_ok());
        match tokio::time::timeout(LOOK, heard).await {
            Ok(true) => return,
            // Nobody will ever say.
            Ok(false) => tokio::time::sleep(LOOK).await,
            Err(_) => {}
        }
        let tail = runs.context().store.tail(key, u64::MAX >> 1).await;
        if matches!(tail, Ok(Some((summary, _))) if summary.status.is_final()) {
            return;
        }
    }
}

/// How a run ends whose script has come to a value.
pub(crate) fn completed(value: &Value) -> Event {
    Event::Completed { confidence: confidence_of(value), value: value.to_json() }
}

/// How a run ends whose script has failed.
pub(crate) fn failed_by(fault: Fault) -> Event {
    let message = format!("{} ({}:{}:{})", fault.message, fault.file, fault.line, fault.column);
    failed(fault.code, message)
}

fn failed(code: &str, message: impl Into<String>) -> Event {
    Event::Failed { code: code.to_owned(), message: message.into() }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn requested(entry: &Entry) -> Option<u64> {
    match entry.event {
        Event::Requested { effect, .. } => Some(effect),
        _ => None,
    }
}
