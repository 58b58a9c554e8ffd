//! Runs a program to its end on this machine alone: time and chance are real, agents, patterns and models there are
//! none.

mod timers;

use std::{collections::HashSet, time::Duration};

use parallax_prism::{Effect, EffectId, EffectKind, Fault, Outcome, Run, Span, Step, Value};
use parallax_runtime::env::{Env, System};
use tokio::time::Instant;

use self::timers::Timers;

/// As good as forever, and an instant that every clock can represent.
const LONGEST_SLEEP: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why a run gave no value.
pub(super) enum Trouble {
    /// The script's own error.
    Fault(Box<Fault>),
    /// It asks for what only the planes can do.
    Beyond { at: Span, what: String },
    /// A replay does not ask for what the journal answers: the program does something else than it did.
    Changed,
}

/// A run with what it waits for and what it was told.
pub(super) struct Performance {
    run: Run,
    timers: Timers<Instant>,
    /// Outcomes of a journal, which the run is given before any other.
    known: Vec<(EffectId, Outcome)>,
    shown: usize,
    /// Every outcome in its order: what rebuilds the run.
    pub(super) journal: Vec<(EffectId, Outcome)>,
}

impl Performance {
    pub(super) fn new(run: Run) -> Self {
        Self::replay(run, Vec::new(), 0)
    }

    /// A run that is told first what it was told before, and whose first lines have been shown.
    pub(super) fn replay(run: Run, journal: Vec<(EffectId, Outcome)>, shown: usize) -> Self {
        Self { run, timers: Timers::new(), known: journal.clone(), shown, journal }
    }

    /// Lines shown so far.
    pub(super) fn shown(&self) -> usize {
        self.shown
    }

    /// Steps until the run ends, and shows every line when it is printed.
    pub(super) async fn finish(&mut self, mut show: impl FnMut(&str)) -> Result<Value, Trouble> {
        let mut known = std::mem::take(&mut self.known);
        let told: HashSet<EffectId> = known.iter().map(|(id, _)| *id).collect();
        // The first step is told nothing: a program that fails before it asks anything, for instance by an import,
        // fails for its own reason and not because it was answered.
        let mut outcomes = Vec::new();
        loop {
            let step = self.run.step(std::mem::take(&mut outcomes));
            for line in self.run.output().iter().skip(self.shown) {
                show(line);
            }
            self.shown = self.shown.max(self.run.output().len());
            match step {
                Step::Done(_) if !known.is_empty() => return Err(Trouble::Changed),
                Step::Done(value) => return Ok(value),
                Step::Failed(fault) if fault.code == "unknown_effect" => return Err(Trouble::Changed),
                Step::Failed(fault) => return Err(Trouble::Fault(Box::new(fault))),
                Step::Need { effects, cancelled } => {
                    cancelled.into_iter().for_each(|id| self.timers.cancel(id));
                    for effect in effects.into_iter().filter(|effect| !told.contains(&effect.id)) {
                        let id = effect.id;
                        if let Some(outcome) = self.perform(effect)? {
                            outcomes.push((id, outcome));
                        }
                    }
                }
            }
            if known.is_empty() && outcomes.is_empty() {
                outcomes.push(self.next_timer().await);
            }
            self.journal.extend(outcomes.iter().cloned());
            outcomes.splice(..0, known.drain(..));
        }
    }

    /// Its outcome, unless that takes time.
    fn perform(&mut self, effect: Effect) -> Result<Option<Outcome>, Trouble> {
        let what = match &effect.kind {
            EffectKind::Now => {
                let millis = System.now().as_millisecond() as f64;
                return Ok(Some(Outcome::Value(Value::from(millis))));
            }
            EffectKind::Random => {
                // The 53 bits that a float between 0 and 1 has room for.
                let chance = (System.random() >> 11) as f64 / (1_u64 << 53) as f64;
                return Ok(Some(Outcome::Value(Value::from(chance))));
            }
            EffectKind::Sleep { ms } => {
                let length = Duration::from_millis(*ms).min(LONGEST_SLEEP);
                self.timers.start(effect.id, Instant::now() + length);
                return Ok(None);
            }
            EffectKind::Invoke { agent, .. } => format!("ask agent {agent}"),
            EffectKind::Pattern { name, .. } => format!("run pattern {name}"),
            EffectKind::Llm { .. } => "ask a language model".to_owned(),
        };
        Err(Trouble::Beyond { at: effect.span, what })
    }

    /// Waits for the sleep that ends first.
    async fn next_timer(&mut self) -> (EffectId, Outcome) {
        let Some((end, id)) = self.timers.first() else {
            // A run that waits has asked for something, and all that was not answered at once is a sleep.
            return std::future::pending().await;
        };
        tokio::time::sleep_until(end).await;
        (id, Outcome::Value(Value::null()))
    }
}
