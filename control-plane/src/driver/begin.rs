//! How effects are begun.

use std::{collections::BTreeMap, time::Duration};

use futures::FutureExt;
use parallax_prism::{EffectKind, Outcome, Value};
use parallax_proto::{
    confidence::AgentRequest,
    dataplane::v1::{
        Call,
        call::{Cache, Target},
    },
};
use parallax_runtime::wire;
use serde_json::Value as Json;
use tokio::time::Instant;

use super::{Driver, LLM, LONGEST, Wanted, script::nested};
use crate::{dispatch::MAX_IN_FLIGHT, error::Result};

/// Of what is left of a run's time, the share that one call may take, so that the others' answers still count.
const CALL_SHARE: f64 = 0.8;

impl Driver {
    /// Begins an effect, or lets it wait for its turn.
    ///
    /// # Errors
    /// A run that is another's by now; the store's.
    pub(super) async fn begin(&mut self, id: u64) -> Result<()> {
        let outside = |wanted: &Wanted| {
            matches!(
                wanted.kind,
                EffectKind::Invoke { .. } | EffectKind::Llm { .. } | EffectKind::Pattern { .. }
            )
        };
        if self.wanted.get(&id).is_some_and(outside) {
            self.confirm().await?;
        }
        let Some(wanted) = self.wanted.get(&id) else { return Ok(()) };
        let done = |outcome| async move { (id, outcome) }.boxed();
        match &wanted.kind {
            EffectKind::Invoke { .. } | EffectKind::Llm { .. }
                if self.in_flight.len() >= self.most_calls() =>
            {
                self.held.push_back(id);
            }
            EffectKind::Invoke { agent, task, data, options } => {
                let asked = options.timeout_ms.map(Duration::from_millis);
                let (target, data) = (Target::AgentId(agent.clone()), data.to_json());
                let (task, context) = (task.clone(), options.context.clone());
                self.call(id, target, task, &data, context, asked).await;
            }
            EffectKind::Llm { prompt, options } => {
                let context = self.runs.context();
                if context.registry.agents(&self.key.tenant, &[LLM.to_owned()]).is_empty() {
                    let message = format!("no agent with the capability \"{LLM}\" is registered");
                    let outcome = Outcome::Failed { code: "no_llm_provider".to_owned(), message };
                    self.others.push(done(outcome));
                    return Ok(());
                }
                let data = serde_json::to_value(options).expect("options are plain data");
                let asked = options.timeout.and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
                let (target, prompt) = (Target::Capability(LLM.to_owned()), prompt.clone());
                self.call(id, target, prompt, &data, BTreeMap::new(), asked).await;
            }
            EffectKind::Pattern { name, input } => {
                let nested = nested(self.runs.clone(), &self.key, id, name.clone(), input, &self.start);
                self.others.push(nested.map(move |outcome| (id, outcome)).boxed());
            }
            EffectKind::Sleep { ms } => {
                let until = wanted.begun + Duration::from_millis(*ms).min(LONGEST);
                let sleep = async move {
                    tokio::time::sleep_until(until).await;
                    (id, Outcome::Value(Value::null()))
                };
                self.others.push(sleep.boxed());
            }
            EffectKind::Now => {
                let now = self.now().as_millisecond() as f64;
                self.others.push(done(Outcome::Value(Value::from(now))));
            }
            EffectKind::Random => {
                // 53 bits are what a double holds.
                let random = (self.runs.context().env.random() >> 11) as f64 / (1u64 << 53) as f64;
                self.others.push(done(Outcome::Value(Value::from(random))));
            }
        }
        Ok(())
    }

    pub(super) fn most_calls(&self) -> usize {
        match self.start.options.max_parallel {
            0 => MAX_IN_FLIGHT,
            most => (most as usize).min(MAX_IN_FLIGHT),
        }
    }

    async fn call(
        &mut self,
        id: u64,
        target: Target,
        task: String,
        data: &Json,
        mut context: BTreeMap<String, String>,
        asked: Option<Duration>,
    ) {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now).mul_f64(CALL_SHARE);
        let timeout = asked.unwrap_or(self.runs.context().bounds.call_timeout).min(left);
        let Some(wanted) = self.wanted.get_mut(&id) else { return };
        let due = *wanted.due.get_or_insert(now + timeout);
        wanted.sent = Some((wanted.sent.map_or(now, |(first, _)| first), now));
        let timeout = due.saturating_duration_since(now).max(Duration::from_millis(1));
        for (key, value) in &self.start.options.context {
            context.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let effect = format!("{}/{id}", self.key.id);
        let request = AgentRequest {
            task_id: effect.clone(),
            task_description: task,
            data: Some(wire::struct_from_any(data)),
            context: context.into_iter().collect(),
            timeout_ms: i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX),
            pattern_name: self.start.pattern.clone(),
        };
        let mut headers = http::HeaderMap::new();
        parallax_telemetry::propagate::inject(&mut headers);
        let traceparent =
            headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.in_flight.insert(id);
        self.session
            .call(Call {
                call_id: id,
                tenant: self.key.tenant.clone(),
                target: Some(target),
                request: Some(request),
                effect,
                // A later process asks again for what an earlier one may have asked for.
                attempt: if id <= self.known { 2 } else { 1 },
                traceparent: traceparent.to_owned(),
                cache: if self.start.options.cache_results { Cache::Use } else { Cache::Unspecified }.into(),
                ..Call::default()
            })
            .await;
    }
}
