//! What is shown of a run, read off its journal.

use jiff::Timestamp;
use parallax_runtime::run::{Event, Run};
use serde_json::Value as Json;

/// One call to an agent, with its outcome.
pub struct Call<'a> {
    pub effect: u64,
    pub agent: &'a str,
    /// The answer's fields (`value`, `reasoning`, `uncertainties`, …); null for a failure.
    pub answer: &'a Json,
    pub confidence: Option<f64>,
    /// Code and message.
    pub error: Option<(&'a str, &'a str)>,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    /// Microseconds.
    pub duration_us: u64,
}

/// The calls to agents that have an outcome, in the order in which they came.
#[must_use]
pub fn calls(run: &Run) -> Vec<Call<'_>> {
    let resolved = run.entries.iter().filter_map(|entry| match &entry.event {
        Event::Resolved(resolution) => Some((entry.at, resolution)),
        _ => None,
    });
    resolved
        .filter_map(|(ended_at, resolution)| {
            let failure = &resolution.outcome["failed"];
            Some(Call {
                effect: resolution.effect,
                agent: resolution.agent.as_deref()?,
                answer: &resolution.outcome["answer"],
                confidence: resolution.confidence,
                error: (!resolution.ok).then(|| {
                    let text = |field: &str| failure[field].as_str().unwrap_or_default();
                    (text("code"), text("message"))
                }),
                started_at: resolution.started_at,
                ended_at,
                duration_us: resolution.duration_us,
            })
        })
        .collect()
}
