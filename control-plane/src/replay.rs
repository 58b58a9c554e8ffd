//! Looking back at runs: doing one again from its journal, taking over its beginning, and comparing two.

use parallax_prism::{EffectId, Outcome, Program, Step};
use parallax_runtime::run::{self, Entry, Event, Run};
use serde::Serialize;
use serde_json::{Value as Json, json};
use utoipa::ToSchema;

use crate::{
    driver::{completed, failed_by, host},
    error::{Error, Result},
    patterns,
};

/// What came of doing a run again from its journal.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    /// Whether it asked for the same and came to the same.
    pub identical: bool,
    /// Effects that it asked for, all of which the journal answered.
    pub effects: u64,
    /// Calls to agents that were made: none, ever.
    pub agent_calls: u64,
    /// Steps of the script.
    pub steps: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
}

/// The first thing that differs.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct Divergence {
    /// `start`, `request`, `outcome` or `end`.
    pub at: &'static str,
    /// The effect's number, unless it is the start or the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<run::EffectId>,
    pub a: Json,
    pub b: Json,
}

/// Does a run again from its journal, and asks nobody. The journal is `a`, what came of it now is `b`.
///
/// Not for an async task's own thread: the script runs here, within its own limits.
///
/// # Errors
/// A script that no longer compiles; an outcome that cannot be read.
pub fn replay(run: &Run) -> Result<Replay> {
    let mut script = compile(run)?.start(host(run.start()));
    let mut replayed = Vec::new();
    let mut steps = 0;
    let mut feed = |outcomes, replayed: &mut Vec<Event>| {
        steps += 1;
        match script.step(outcomes) {
            Step::Need { effects, .. } => {
                replayed.extend(effects.iter().map(|effect| Event::Requested {
                    effect: effect.id.0,
                    request: serde_json::to_value(&effect.kind).expect("effects are plain data"),
                }));
                true
            }
            Step::Done(value) => {
                replayed.push(completed(&value));
                false
            }
            Step::Failed(fault) => {
                replayed.push(failed_by(fault));
                false
            }
        }
    };
    let mut goes_on = feed(vec![], &mut replayed);
    for resolution in resolutions(run) {
        if goes_on {
            goes_on = feed(vec![(EffectId(resolution.effect), outcome(resolution)?)], &mut replayed);
        }
    }
    let divergence = diverge(&of_script(&run.entries), &replayed.iter().collect::<Vec<_>>(), !goes_on);
    let effects = replayed.iter().filter(|event| matches!(event, Event::Requested { .. })).count() as u64;
    Ok(Replay { identical: divergence.is_none(), effects, agent_calls: 0, steps, divergence })
}

/// The beginning of a run, up to but not including what it asked for as effect `from`.
///
/// # Errors
/// There is no such effect.
pub fn prefix(run: &Run, from: run::EffectId) -> Result<(Vec<Entry>, Program)> {
    let effects =
        run.entries.iter().filter(|entry| matches!(entry.event, Event::Requested { .. })).count() as u64;
    if from == 0 || from > effects {
        let problem = format!("the run has no effect {from}; it has 1 to {effects}");
        return Err(Error::Invalid { field: "from", problem });
    }
    // An effect's number depends only on outcomes of effects with smaller ones, so those are all that is kept.
    let kept = run.entries.iter().filter(|entry| match &entry.event {
        Event::Started(_) => true,
        Event::Requested { effect, .. } => *effect < from,
        Event::Resolved(resolution) => resolution.effect < from,
        _ => false,
    });
    Ok((kept.cloned().collect(), compile(run)?))
}

/// Where two runs part: in what they began with, asked for, were told, or came to.
#[must_use]
pub fn diff(a: &Run, b: &Run) -> Option<Divergence> {
    let (began_a, began_b) = (a.start(), b.start());
    let begin = |start: &run::Start| json!({"pattern": start.pattern, "scriptHash": start.script_hash, "input": start.input});
    if begin(began_a) != begin(began_b) {
        return Some(Divergence { at: "start", effect: None, a: begin(began_a), b: begin(began_b) });
    }
    let by_effect = |run: &Run| -> std::collections::BTreeMap<u64, Json> {
        resolutions(run).map(|r| (r.effect, r.outcome.clone())).collect()
    };
    let (told_a, told_b) = (by_effect(a), by_effect(b));
    let asked = diverge(&of_script(&a.entries), &of_script(&b.entries), true);
    let told = told_a.iter().find_map(|(effect, outcome)| {
        let other = told_b.get(effect)?;
        let (a, b) = (outcome.clone(), other.clone());
        (a != b).then_some(Divergence { at: "outcome", effect: Some(*effect), a, b })
    });
    match (told, asked) {
        (Some(told), Some(asked)) if asked.effect.is_none_or(|effect| told.effect < Some(effect)) => {
            Some(told)
        }
        (told, None) => told,
        (_, asked) => asked,
    }
}

/// What the script did: asked, and ended.
fn of_script(entries: &[Entry]) -> Vec<&Event> {
    let own = entries.iter().map(|entry| &entry.event);
    own.filter(|event| {
        matches!(
            event,
            Event::Requested { .. }
                | Event::Completed { .. }
                | Event::Failed { .. }
                | Event::Cancelled { .. }
        )
    })
    .collect()
}

/// The first difference in what two scripts did. Without `to_the_end`, an end of `a` that came from outside (a time-out,
/// a cancellation) has no counterpart in `b`.
fn diverge(a: &[&Event], b: &[&Event], to_the_end: bool) -> Option<Divergence> {
    for at in 0..a.len().max(b.len()) {
        let (one, other) = (a.get(at).copied(), b.get(at).copied());
        if one == other {
            continue;
        }
        let asked = [one, other].into_iter().flatten().find_map(|event| match event {
            Event::Requested { effect, .. } => Some(*effect),
            _ => None,
        });
        if asked.is_none() && other.is_none() && !to_the_end {
            return None;
        }
        let show = |event: Option<&Event>| event.map_or(Json::Null, |event| json!(event));
        let at = if asked.is_some() { "request" } else { "end" };
        return Some(Divergence { at, effect: asked, a: show(one), b: show(other) });
    }
    None
}

fn compile(run: &Run) -> Result<Program> {
    patterns::compile(&run.summary.pattern, &run.script).map_err(|diagnostics| Error::Invalid {
        field: "script",
        problem: diagnostics.first().map(|d| d.message.clone()).unwrap_or_default(),
    })
}

fn resolutions(run: &Run) -> impl Iterator<Item = &run::Resolution> {
    run.entries.iter().filter_map(|entry| match &entry.event {
        Event::Resolved(resolution) => Some(&**resolution),
        _ => None,
    })
}

/// An outcome as the script takes it.
///
/// # Errors
/// One that this version cannot read.
pub fn outcome(resolution: &run::Resolution) -> Result<Outcome> {
    serde_json::from_value(resolution.outcome.clone()).map_err(|e| Error::Invalid {
        field: "journal",
        problem: format!("the outcome of effect {} cannot be read: {e}", resolution.effect),
    })
}
