//! Where a run's time went.

use std::collections::BTreeMap;

use jiff::Timestamp;
use parallax_runtime::run::{EffectId, Event, Run, Status};
use serde::Serialize;
use serde_json::Value as Json;
use utoipa::ToSchema;

/// A run's time, in microseconds. The three parts of the whole add up to it, and so do those of each effect.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    pub id: String,
    #[schema(value_type = String)]
    pub status: Status,
    pub wall_us: u64,
    /// Waiting for its turn.
    pub queued_us: u64,
    /// At least one effect was under way.
    pub effects_us: u64,
    /// The rest: the script and its journal.
    pub own_us: u64,
    pub effects: Vec<Span>,
}

/// One effect's time, in microseconds.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    pub effect: EffectId,
    /// As in the journal: `invoke`, `pattern`, `sleep`, …
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// `ok`, `failed`, `abandoned` or `waiting`.
    pub outcome: &'static str,
    /// From the run's beginning.
    pub start_us: u64,
    pub wall_us: u64,
    /// Held back, as many calls as may be were in flight.
    pub queue_us: u64,
    /// Attempts before the last.
    pub retry_us: u64,
    /// With the agent; for an effect that needs none, until it was done.
    pub agent_us: u64,
    /// Between the planes, and until the outcome was written down; of a call that has none, all of its time.
    pub dispatch_us: u64,
}

/// Reads a run's journal; what is under way is shown as of `now`.
#[must_use]
pub fn of(run: &Run, now: Timestamp) -> Timeline {
    let began = run.summary.started_at;
    let ended = run.summary.ended_at.unwrap_or(now);
    let (mut spans, mut open) = (Vec::new(), BTreeMap::new());
    let (mut queued, mut queued_since) = (0, None);
    let mut busy: Vec<(Timestamp, Timestamp)> = Vec::new();
    for entry in &run.entries {
        match &entry.event {
            Event::Queued => queued_since = Some(entry.at),
            Event::Admitted => queued += queued_since.take().map_or(0, |since| micros(since, entry.at)),
            Event::Requested { effect, request } => _ = open.insert(*effect, (entry.at, request)),
            Event::Resolved(resolution) => {
                let Some((at, request)) = open.remove(&resolution.effect) else { continue };
                busy.push((at, entry.at));
                let mut span = span(resolution.effect, request, began, at, entry.at);
                span.outcome = if resolution.ok { "ok" } else { "failed" };
                span.agent_id = resolution.agent.clone();
                // Several clocks: no part may be more than what is left of the whole.
                let mut left = span.wall_us;
                let mut part = |us: u64| {
                    let us = us.min(left);
                    left -= us;
                    us
                };
                span.queue_us = part(resolution.queued_us);
                span.retry_us = part(resolution.retried_us);
                span.agent_us = part(resolution.duration_us);
                span.dispatch_us = left;
                spans.push(span);
            }
            Event::Abandoned { effect } => {
                let Some((at, request)) = open.remove(effect) else { continue };
                busy.push((at, entry.at));
                let span = span(*effect, request, began, at, entry.at);
                spans.push(Span { outcome: "abandoned", ..span });
            }
            _ => {}
        }
    }
    for (effect, (at, request)) in open {
        busy.push((at, ended));
        spans.push(span(effect, request, began, at, ended));
    }
    queued += queued_since.map_or(0, |since| micros(since, ended));
    spans.sort_by_key(|span| span.effect);
    let wall_us = micros(began, ended);
    let effects_us = covered(busy).min(wall_us.saturating_sub(queued));
    Timeline {
        id: run.summary.key.id.clone(),
        status: run.summary.status,
        wall_us,
        queued_us: queued,
        effects_us,
        own_us: wall_us.saturating_sub(queued + effects_us),
        effects: spans,
    }
}

fn span(effect: EffectId, request: &Json, began: Timestamp, from: Timestamp, to: Timestamp) -> Span {
    let wall_us = micros(from, to);
    let kind = request["type"].as_str().unwrap_or_default().to_owned();
    // Of a call without an outcome nobody knows yet what its time went into.
    let agent_us = if matches!(&*kind, "invoke" | "llm") { 0 } else { wall_us };
    Span {
        effect,
        kind,
        agent_id: request["agent"].as_str().map(str::to_owned),
        outcome: "waiting",
        start_us: micros(began, from),
        wall_us,
        queue_us: 0,
        retry_us: 0,
        agent_us,
        dispatch_us: wall_us - agent_us,
    }
}

/// The time that is in at least one of the intervals.
fn covered(mut intervals: Vec<(Timestamp, Timestamp)>) -> u64 {
    intervals.sort_unstable();
    let (mut sum, mut until) = (0, Timestamp::MIN);
    for (from, to) in intervals {
        let from = from.max(until);
        sum += micros(from, to.max(from));
        until = until.max(to);
    }
    sum
}

fn micros(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_microsecond() - from.as_microsecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;
    use parallax_runtime::run::{Entry, Resolution, RunKey, Start, Summary};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let at = |us: i64| Timestamp::UNIX_EPOCH + us.microseconds();
        let asked = |effect| Event::Requested { effect, request: json!({"type": "invoke", "agent": "a"}) };
        let sleep = Event::Requested { effect: 3, request: json!({"type": "sleep", "ms": 1}) };
        let told = |effect, duration_us| {
            Event::Resolved(Box::new(Resolution {
                effect,
                outcome: json!({}),
                ok: true,
                agent: Some("a".to_owned()),
                confidence: None,
                started_at: at(0),
                duration_us,
                queued_us: 5,
                retried_us: 0,
            }))
        };
        let start = Start {
            pattern: "p".to_owned(),
            pattern_version: "1".to_owned(),
            script_hash: String::new(),
            input: json!(null),
            options: parallax_runtime::run::Options::default(),
            agents: vec![],
            adhoc: false,
            origin: None,
            versions: std::collections::BTreeMap::new(),
        };
        let entries: Vec<Entry> = [
            (0, Event::Started(Box::new(start))),
            (0, Event::Queued),
            (100, Event::Admitted),
            (110, asked(1)),
            (110, asked(2)),
            (190, sleep),
            (199, Event::Abandoned { effect: 3 }),
            (140, told(1, 20)),
            (200, told(2, 1_000)),
            (230, Event::Completed { value: json!(1), confidence: None }),
        ]
        .into_iter()
        .map(|(us, event)| Entry { at: at(us), event })
        .collect();
        let key = RunKey { tenant: "t".to_owned(), id: "r".to_owned() };
        let summary = Summary::of(key, &entries).unwrap();
        let line = of(&Run { summary, entries, script: String::new() }, at(999));
        assert_eq!((line.wall_us, line.queued_us, line.effects_us, line.own_us), (230, 100, 90, 40));
        let parts: Vec<_> = line
            .effects
            .iter()
            .map(|s| [s.queue_us, s.retry_us, s.agent_us, s.dispatch_us, s.wall_us])
            .collect();
        assert_eq!(parts, [[5, 0, 20, 5, 30], [5, 0, 85, 0, 90], [0, 0, 9, 0, 9]]);
    }
}
