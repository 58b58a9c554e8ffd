//! What comes of effects: outcomes as they are written down, and calls that are sent again as nobody was asked.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use parallax_prism::{EffectId, EffectKind, Outcome};
use parallax_proto::dataplane::v1::{CallOutcome, call_outcome, failure::Cause};
use parallax_runtime::{
    run::{Entry, Event, Resolution},
    wire,
};
use tokio::time::Instant;

use super::{
    Driver, LLM,
    script::{kind_name, outcome_of},
};
use crate::error::Result;

/// A node hears of an agent a moment after the registry has it: for how long a call may wait for that, and how
/// often it is tried.
const NEWS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(20));
/// For how long a call waits that was turned away for load, when it is not said: up to twice as long.
const BUSY: Duration = Duration::from_millis(50);

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

impl Driver {
    /// Waits for an outcome that is wanted, and takes along those that are there already.
    ///
    /// # Errors
    /// As [`Driver::begin`].
    pub(super) async fn outcomes(&mut self) -> Result<()> {
        // What was abandoned has made room.
        self.begin_held().await?;
        while self.arrived.is_empty() {
            let arrival = self.arrival().await;
            let resolved = self.receive(arrival).await?;
            self.arrived.extend(resolved);
            self.begin_held().await?;
        }
        while let Some(arrival) = self.arrival().now_or_never() {
            let resolved = self.receive(arrival).await?;
            self.arrived.extend(resolved);
        }
        self.begin_held().await
    }

    /// Calls that waited until fewer were in flight.
    async fn begin_held(&mut self) -> Result<()> {
        while self.in_flight.len() < self.most_calls()
            && let Some(id) = self.held.pop_front()
        {
            self.begin(id).await?;
        }
        Ok(())
    }

    async fn arrival(&mut self) -> Arrival {
        tokio::select! {
            outcome = self.session.next() => Arrival::Outcome(Source::Node(outcome)),
            Some((id, outcome)) = self.others.next() => Arrival::Outcome(Source::Here(id, outcome)),
            Some(id) = self.put_off.next() => Arrival::Again(id),
        }
    }

    async fn receive(&mut self, arrival: Arrival) -> Result<Option<(Entry, (EffectId, Outcome))>> {
        Ok(match arrival {
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
                self.begin(id).await?;
                None
            }
        })
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
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
