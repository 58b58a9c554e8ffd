//! Effects asked for, and values that wait for their answers.
//!
//! A call that needs the owner queues its effect at once and gives a pending value, which can be stored and passed on
//! like any other. Whoever looks at it waits; until somebody does, further effects are queued, and all of them go out
//! together. So `agents.map(a => a.analyze(t, d))` asks everyone at once, and a loop that looks at each answer asks one
//! after the other, without a word about concurrency in the script. What waits and goes on overlaps in branches
//! (`fibers`).
//!
//! A failure is an error where the answer is looked at, with two exceptions. Leaving a `try` that has a `catch` waits
//! for what was asked for inside it, so that the `catch` covers those calls wherever their values went. And a language
//! model's failure that nobody looked at is an error at the end of the run; an agent's is not, for the others' answers
//! still count.

use super::{Asked, Ran, Trap, Vm, Waiters};
use crate::builtins::agents;
use crate::diagnostic::{Raise, Raised};
use crate::effects::{Answer, Effect, EffectId, EffectKind, Form, Outcome, Slot};
use crate::limits::MAX_NESTING;
use crate::value::{Array, Lazy, Object, Promise, Val, Value};
use std::sync::Arc;

impl Vm {
    /// Asks the owner for something. The effect is queued at once; the value is waited for when it is looked at.
    pub(crate) fn request(&mut self, kind: EffectKind, form: Form) -> Ran<Arc<Slot>> {
        if self.next_effect > self.limits.effects {
            let message = format!("the run asked for more than {} effects", self.limits.effects);
            return Err(Raise::new("limit_effects", message).into());
        }
        let id = EffectId(self.next_effect);
        self.next_effect += 1;
        let (bytes, value) = (kind.bytes(), kind.value().cloned());
        self.charge(bytes)?;
        let slot = Arc::new(Slot::new(id, form));
        let waiters = Waiters::default();
        self.outstanding.insert(id, Asked { slot: Arc::clone(&slot), bytes, value, waiters });
        if self.fiber.under_try() {
            self.fiber.watched.push(Arc::clone(&slot));
        }
        // `agentResults` belongs to everybody.
        if self.is_branch() && !matches!(form, Form::AgentResult(_)) {
            self.note_asked(id);
        }
        self.queue.push(Effect { id, kind, span: self.span() });
        Ok(slot)
    }

    /// The value behind a pending one.
    pub(crate) fn force(&self, value: &Val) -> Ran<Val> {
        match value {
            Val::Pending(slot) => match slot.value() {
                Some(Ok(v)) => Ok(v.clone()),
                Some(Err(raise)) => {
                    slot.see();
                    Err(Trap::Raise(Box::new(raise.clone())))
                }
                None => Err(Trap::Wait(vec![Arc::clone(slot)])),
            },
            other => Ok(other.clone()),
        }
    }

    /// Makes sure that what is in this place of the stack is not pending.
    pub(crate) fn force_at(&mut self, at: usize) -> Ran<()> {
        if let Val::Pending(_) = self.fiber.stack[at] {
            self.fiber.stack[at] = self.force(&self.fiber.stack[at])?;
        }
        Ok(())
    }

    /// Makes sure that nothing inside is pending either.
    pub(crate) fn settle_at(&mut self, at: usize) -> Ran<()> {
        if !self.fiber.stack[at].settled() {
            self.spend(self.fiber.stack[at].meta().weight as usize / 8)?;
            let settled = self.settled(&self.fiber.stack[at])?;
            self.fiber.stack[at] = settled;
        }
        Ok(())
    }

    pub(crate) fn settled(&self, value: &Val) -> Ran<Val> {
        let mut open = Vec::new();
        collect_open(value, &mut open);
        if !open.is_empty() {
            return Err(Trap::Wait(open));
        }
        settle(value).map_err(Trap::Raise)
    }

    /// Takes the outcome of an effect. An error means that the owner made a mistake.
    pub(super) fn deliver(&mut self, id: EffectId, outcome: Outcome) -> Raised<()> {
        let Some(Asked { slot, waiters, .. }) = self.outstanding.remove(&id) else {
            if self.forgotten.remove(&id) {
                return Ok(());
            }
            let known = id.0 >= 1 && id.0 < self.next_effect;
            let what = if known { "was answered before" } else { "was never asked for" };
            return Err(Raise::new("unknown_effect", format!("effect {} {what}", id.0)));
        };
        let result = self.converted(slot.form, outcome);
        let insist = result.is_err() && matches!(slot.form, Form::Llm | Form::LlmResponse);
        slot.settle(result);
        if insist {
            self.insist.push(slot);
        }
        self.settled_for(waiters);
        Ok(())
    }

    fn converted(&self, form: Form, outcome: Outcome) -> Raised<Val> {
        let outcome = checked(outcome);
        match form {
            Form::AgentResult(agent) => Ok(agents::result(&self.agents[agent as usize], outcome)),
            Form::Analysis(agent) => answer(outcome).map_err(|(code, message)| {
                let agent = &self.agents[agent as usize];
                Raise::new("agent_failed", format!("agent `{}` failed: {message} ({code})", agent.name))
            }),
            Form::Pattern => answer(outcome).map_err(|(code, message)| {
                Raise::new("pattern_failed", format!("the pattern failed: {message} ({code})"))
            }),
            Form::Llm => answer(content(outcome)).map_err(llm_failed),
            Form::LlmResponse => match content(outcome) {
                Outcome::Failed { code, message } => Err(llm_failed((code, message))),
                outcome => Ok(response(outcome)),
            },
            Form::Sleep => answer(outcome).map(|_| Val::Null).map_err(host_failed),
            Form::Number => match answer(outcome).map_err(host_failed)? {
                Val::Num(x) => Ok(Val::Num(x)),
                other => Err(Raise::new(
                    "bad_argument",
                    format!("the host gave {}, not a number", other.described()),
                )),
            },
        }
    }

    /// No longer wanted: its outcome, if it still comes, is ignored, and looking at it is an error.
    pub(super) fn cancel(&mut self, slot: &Arc<Slot>) {
        slot.see();
        let Some(Asked { waiters, .. }) = self.outstanding.remove(&slot.id) else { return };
        self.held.remove(&slot.id);
        if slot.is_handed_out() {
            self.cancelled.push(slot.id);
        }
        self.forgotten.insert(slot.id);
        slot.settle(Err(Raise::new("agent_failed", "the call was cancelled: enough others answered")));
        self.settled_for(waiters);
    }

    /// Waits for what was asked for under the innermost `try`, and raises what failed there unseen.
    pub(super) fn end_try(&mut self) -> Ran<()> {
        let mark = self.fiber.handlers.last().map_or(0, |h| h.mark);
        let from = self.fiber.watched.partition_point(|s| s.id.0 < mark);
        let open: Vec<Arc<Slot>> =
            self.fiber.watched[from..].iter().filter(|s| !s.is_settled()).cloned().collect();
        if !open.is_empty() {
            return Err(Trap::Wait(open));
        }
        if let Some(slot) = self.fiber.watched[from..].iter().find(|s| s.unseen_failure().is_some()) {
            return self.force(&Val::Pending(Arc::clone(slot))).map(|_| ());
        }
        self.fiber.watched.truncate(from);
        Ok(())
    }

    /// Makes a host value that is only made when it is read.
    pub(super) fn make(&mut self, lazy: Lazy) -> Ran<Val> {
        if let Some((_, value)) = self.made.iter().find(|(l, _)| *l == lazy) {
            return Ok(value.clone());
        }
        let value = match lazy {
            Lazy::AgentResults => self.ask_all()?,
            Lazy::SuccessfulResults => {
                let all = self.make(Lazy::AgentResults)?;
                agents::successful(&self.settled(&all)?)?
            }
        };
        self.made.push((lazy, value.clone()));
        Ok(value)
    }

    fn ask_all(&mut self) -> Ran<Val> {
        let (task, data) = self.task_and_data()?;
        let mut results = Vec::with_capacity(self.agents.len());
        for index in 0..self.agents.len() {
            let kind = EffectKind::Invoke {
                agent: self.agents[index].id.clone(),
                task: task.clone(),
                data: Value(data.clone()),
                options: Default::default(),
            };
            results.push(Val::Pending(self.request(kind, Form::AgentResult(index as u32))?));
        }
        Ok(Val::array(results)?)
    }

    /// What agents are asked by default: `task` and `data` of the input if it has them.
    pub(crate) fn task_and_data(&self) -> Ran<(String, Val)> {
        let part = |name: &str| self.data.get(name).cloned();
        let task = match part("task") {
            Some(task) if matches!(task.plain(), Val::Str(_)) => task.plain().clone(),
            _ => self.task.clone(),
        };
        let data = part("data").unwrap_or_else(|| self.data.clone());
        Ok((task.as_str().unwrap_or_default().to_string(), data))
    }
}

/// Pending parts that are not answered yet.
fn collect_open(value: &Val, open: &mut Vec<Arc<Slot>>) {
    match value {
        Val::Pending(slot) if !slot.is_settled() => open.push(Arc::clone(slot)),
        Val::Arr(array) if array.meta.pending => array.items().iter().for_each(|v| collect_open(v, open)),
        Val::Obj(object) if object.meta.pending => object.values().iter().for_each(|v| collect_open(v, open)),
        Val::Sure(sure) => collect_open(&sure.value, open),
        _ => {}
    }
}

/// The value with every answer in place.
fn settle(value: &Val) -> Raised<Val> {
    Ok(match value {
        Val::Pending(slot) => match slot.value() {
            Some(Ok(v)) => v.clone(),
            Some(Err(raise)) => {
                slot.see();
                return Err(Box::new(raise.clone()));
            }
            None => unreachable!("open parts were waited for"),
        },
        Val::Arr(array) if array.meta.pending => {
            let array = Array::new(array.items().iter().map(settle).collect::<Raised<_>>()?);
            array.meta.check()?;
            Val::Arr(Arc::new(array))
        }
        Val::Obj(object) if object.meta.pending => {
            let values = object.values().iter().map(settle).collect::<Raised<_>>()?;
            Val::object(Object::with_shape(Arc::clone(object.shape()), values))?
        }
        Val::Sure(sure) => settle(&sure.value)?.sure(sure.confidence),
        other => other.clone(),
    })
}

type Failure = (String, String);

fn answer(outcome: Outcome) -> Result<Val, Failure> {
    match outcome {
        Outcome::Value(value) => Ok(value.0),
        Outcome::Answer(answer) => Ok(answer.value.0.maybe_sure(answer.confidence)),
        Outcome::Failed { code, message } => Err((code, message)),
    }
}

/// Turns answers that cannot be used into failures.
fn checked(outcome: Outcome) -> Outcome {
    let failed = |message: String| Outcome::Failed { code: "invalid_answer".into(), message };
    let value = match &outcome {
        Outcome::Value(value) => value,
        Outcome::Answer(answer) => match answer.confidence {
            Some(c) if !(0.0..=1.0).contains(&c) => {
                return failed(format!("it reported a confidence of {c}"));
            }
            _ => &answer.value,
        },
        Outcome::Failed { .. } => return outcome,
    };
    // Room for the containers that the answer is put into.
    if value.0.meta().depth > MAX_NESTING - 4 {
        return failed("its answer nests too deep".into());
    }
    outcome
}

fn host_failed((code, message): Failure) -> Box<Raise> {
    Raise::new("bad_argument", format!("the host failed: {message} ({code})"))
}

fn llm_failed((code, message): Failure) -> Box<Raise> {
    match code.as_str() {
        "no_llm_provider" => Raise::new("no_llm_provider", message),
        _ => Raise::new("llm_failed", format!("the language model failed: {message} ({code})")),
    }
}

/// A model's answer given as a response object, as its parts.
fn content(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Value(value) if value.get("content").is_some() => {
            let confidence = value.get("confidence").and_then(|c| c.as_f64());
            let content = value.get("content").unwrap_or_default();
            Outcome::Answer(Answer { value: content, confidence, metadata: value, ..Answer::default() })
        }
        other => other,
    }
}

/// The response object that extractors see, without the prompt and the options.
fn response(outcome: Outcome) -> Val {
    let (text, confidence, metadata) = match outcome {
        Outcome::Answer(a) => (a.value.0, a.confidence, a.metadata.0),
        Outcome::Value(v) => {
            let confidence = v.confidence();
            (v.0.plain().clone(), confidence, Val::Null)
        }
        Outcome::Failed { .. } => (Val::Null, None, Val::Null),
    };
    let known = |name: &str| metadata.get(name).cloned().unwrap_or(Val::Null);
    let mut object: Object = [
        ("content", text),
        ("confidence", confidence.map_or(Val::Null, Val::Num)),
        ("model", known("model")),
        ("tokensUsed", known("tokensUsed")),
        ("provider", known("provider")),
    ]
    .into_iter()
    .map(|(k, v)| (Arc::from(k), v))
    .collect();
    if let Val::Obj(extra) = &metadata {
        extra
            .entries()
            .filter(|(k, _)| object.get(k).is_none())
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|(k, v)| object.set(&k, v));
    }
    Val::Obj(Arc::new(object))
}

/// A promise that is already kept.
pub(crate) fn kept(value: Val) -> Raised<Val> {
    Val::promise(Promise::Fulfilled(value))
}
