//! Drives one run: steps the script, writes down what happened, then does what the script asks for.
//!
//! One append for each step holds the outcomes that led to it and the effects that it asked for, and is on disk
//! before any of these is begun; the first one creates the run. So whatever was done has been asked for in the
//! journal, and a replay of the journal asks for the same.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::pin,
    time::Duration,
};

use futures::{future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use parallax_prism::{
    Effect, EffectId, EffectKind, Fault, Interrupt, Outcome, Program, Run as Script, Step, Value,
};
use parallax_runtime::{
    error::{Code, Coded},
    run::{Entry, Event, Run, RunKey, Start, Status, Summary},
    store::StoreError,
};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tracing::{debug_span, warn};

mod begin;
mod outcomes;
mod script;

use crate::{
    dispatch::Session,
    error::{Error, Result},
    replay,
    runs::{Runs, Turn},
};
pub(crate) use script::host;
use script::{confidence_of, describe};

/// The longest that a run may take or sleep, whatever it asks for.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Effects that a message names one by one.
const NAMED: usize = 5;
/// The capability of agents that stand for language models.
const LLM: &str = "llm";
/// How often a run is looked at that somebody else may have ended.
const LOOK: Duration = Duration::from_secs(5);
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
    /// When the run was last known to be this process's.
    owned: Instant,
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
    telling: watch::Sender<bool>,
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
            owned: Instant::now(),
            arrived: Vec::new(),
            wanted: BTreeMap::new(),
            held: VecDeque::new(),
            in_flight: BTreeSet::new(),
            others: FuturesUnordered::new(),
            put_off: FuturesUnordered::new(),
            abandoned: Vec::new(),
            watch: runs.watch(&run_key),
            telling: watch::Sender::new(birth.is_some()),
            birth,
            runs,
        }
    }

    /// To the end of the run, once its turn has come; `None` when somebody else ends it, or the process stops.
    pub(crate) async fn run(mut self, turn: impl Future<Output = Turn>) -> Result<Option<Summary>> {
        let (mut watch, mut telling) = (self.watch.clone(), self.telling.subscribe());
        let (runs, key) = (self.runs.clone(), self.key.clone());
        let driven = 'driven: {
            let mut drive = pin!(self.drive(turn));
            tokio::select! {
                biased;
                driven = &mut drive => break 'driven driven,
                () = runs.ended(&key, &mut watch, LOOK) => {}
            }
            tokio::select! {
                biased;
                // By what is being written here, perhaps: that is counted and told first.
                driven = &mut drive => driven,
                // Its calls go with the driver, which their agents see.
                _ = telling.wait_for(|telling| !telling) => Ok(None),
            }
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
                self.begin(effect.id.0).await?;
            }
            let (deadline, stopping) = (self.deadline, self.runs.context().life.stopping());
            let (late, stop) = tokio::select! {
                lost = self.outcomes() => (lost.map(|()| false)?, false),
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

    async fn end(&mut self, mut entries: Vec<Entry>, end: Event) -> Result<Summary> {
        entries.push(Entry { at: self.now(), event: end });
        self.telling.send_replace(true);
        self.append(entries).await?;
        Ok(self.summary.clone())
    }

    /// Writes down what happened. While the store is away the run waits for it, as nothing may happen that is not
    /// written down. One that cannot be created does not: who starts it is told.
    async fn append(&mut self, entries: Vec<Entry>) -> Result<()> {
        let begun = Instant::now();
        if let Some(Birth { script, entries: first, told }) = self.birth.take() {
            let entries = [first, entries].concat();
            let store = &self.runs.context().store;
            let created = store.create(self.runs.owner(), &self.key, &script, &entries).await;
            let born = created.as_ref().ok().cloned();
            // Who started it may have gone away.
            told.send(created).ok();
            self.summary = born.ok_or_else(|| Error::NoRun { id: self.key.id.clone() })?;
            self.telling.send_replace(self.summary.status.is_final());
            self.owned = begun;
            return Ok(());
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.write(&entries).await?;
        self.runs.context().metrics.journal_append.observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Makes sure that the run has not been given to another while this process could not be heard: its agents
    /// would be asked twice at the same time.
    async fn confirm(&mut self) -> Result<()> {
        if self.runs.still_owns(self.owned) { Ok(()) } else { self.write(&[]).await }
    }

    /// Adds to the journal, however long that takes; without entries it only asks whether that would be possible.
    async fn write(&mut self, entries: &[Entry]) -> Result<()> {
        let context = self.runs.context();
        let mut pause = STORE_AWAY.0;
        loop {
            let begun = Instant::now();
            match context.store.append(self.runs.owner(), &self.summary, entries).await {
                Ok(summary) => {
                    (self.summary, self.owned) = (summary, begun);
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

fn requested(entry: &Entry) -> Option<u64> {
    match entry.event {
        Event::Requested { effect, .. } => Some(effect),
        _ => None,
    }
}
