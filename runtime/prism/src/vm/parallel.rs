//! Effectful built-ins, and `parallel`: many calls at once, of which all, the first or a quorum count.

use super::calls::{Started, array_arg, bad_argument};
use super::fibers::{FiberId, News};
use super::futures::kept;
use super::tasks::{After, Task, Then};
use super::{Ran, Trap, Vm, ops};
use crate::builtins::{Native, agents};
use crate::diagnostic::{Raise, Raised};
use crate::effects::{EffectId, EffectKind, Form, Slot};
use crate::value::{Body, Object, Val, Value, text};
use std::collections::HashSet;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    All,
    First,
    Quorum(usize),
    /// Of a `map` over an async function: any error is an error of all, and the results are as sure as the array.
    Map(Option<f64>),
    /// Of `Promise.all`: the same, and nothing is pending afterwards.
    Joined,
}

impl Mode {
    fn fails_fast(self) -> bool {
        matches!(self, Mode::Map(_) | Mode::Joined)
    }
}

/// One call of a `parallel`.
enum Call {
    /// A function that is not called yet; of a `map`, its argument.
    Thunk(Val),
    Running(FiberId),
    Open(Arc<Slot>),
    /// Its effect is asked for, but held back.
    Held(Arc<Slot>),
    Done(Val),
    Failed(String),
}

pub(super) struct Parallel {
    calls: Vec<Call>,
    /// The function of a `map`.
    f: Option<Val>,
    mode: Mode,
    max: usize,
    /// Calls that succeeded, in order of arrival.
    arrived: Vec<usize>,
    /// Calls that have been started and have not ended.
    open: usize,
    failed: usize,
    /// Calls before this one have been started.
    started: usize,
    /// What has become of some calls since the last look, in the order in which it did.
    news: Vec<(usize, News)>,
}

impl Parallel {
    fn new(calls: Vec<Call>, f: Option<Val>, mode: Mode, max: usize) -> Parallel {
        Parallel {
            calls,
            f,
            mode,
            max,
            arrived: Vec::new(),
            open: 0,
            failed: 0,
            started: 0,
            news: Vec::new(),
        }
    }

    fn of(items: &[Val], mode: Mode, max: usize) -> Parallel {
        let call = |item: &Val| match ops::awaited(item) {
            Ok((Val::Pending(slot), None)) => Call::Held(slot),
            Ok((f, _)) if item.callable() => Call::Thunk(f),
            Ok((value, confidence)) => Call::Done(value.maybe_sure(confidence)),
            Err(rejected) => Call::Failed(rejected.message),
        };
        Parallel::new(items.iter().map(call).collect(), None, mode, max)
    }

    /// Calls the function for all items at once.
    pub(super) fn map(items: &[Val], f: Val, confidence: Option<f64>) -> Parallel {
        let calls = items.iter().map(|item| Call::Thunk(item.clone())).collect();
        Parallel::new(calls, Some(f), Mode::Map(confidence), usize::MAX)
    }

    /// The results of deferred calls, and the others as they are.
    fn joined(items: Vec<Val>) -> Parallel {
        let call = |item: Val| if is_deferred(&item) { Call::Thunk(item) } else { Call::Done(item) };
        Parallel::new(items.into_iter().map(call).collect(), None, Mode::Joined, usize::MAX)
    }

    pub(super) fn values(&self, note: &mut dyn FnMut(&Val)) {
        for call in &self.calls {
            match call {
                Call::Thunk(v) | Call::Done(v) => note(v),
                Call::Open(slot) | Call::Held(slot) => note(&Val::Pending(Arc::clone(slot))),
                Call::Running(_) | Call::Failed(_) => {}
            }
        }
        for (_, news) in &self.news {
            if let News::Returned(v) = news {
                note(v);
            }
        }
        self.f.iter().for_each(note);
    }

    pub(super) fn tell(&mut self, branch: usize, news: News) {
        self.news.push((branch, news));
    }

    pub(super) fn running(&self) -> impl DoubleEndedIterator<Item = FiberId> {
        self.calls.iter().filter_map(|call| match call {
            Call::Running(id) => Some(*id),
            _ => None,
        })
    }

    /// Starts what may be started. The result, once it is certain.
    pub(super) fn next(&mut self, vm: &mut Vm) -> Ran<Val> {
        loop {
            for (at, news) in std::mem::take(&mut self.news) {
                self.learn(vm, at, news)?;
            }
            if let Some(result) = self.decided(vm)? {
                return Ok(result);
            }
            if self.started == self.calls.len() || self.open >= self.max {
                return Err(vm.wait_for_branches());
            }
            let at = self.started;
            self.started += 1;
            self.open += 1;
            match std::mem::replace(&mut self.calls[at], Call::Done(Val::Null)) {
                Call::Thunk(thunk) => {
                    let (f, args) = match &self.f {
                        Some(f) => (f.clone(), vec![thunk]),
                        None => (thunk, Vec::new()),
                    };
                    self.calls[at] = Call::Running(vm.branch(at, f, args)?);
                    return Err(Trap::Yield);
                }
                Call::Held(slot) => {
                    vm.let_go(&slot);
                    self.opened(vm, at, slot);
                }
                Call::Done(value) => self.succeeded(at, value),
                Call::Failed(message) => self.failed(at, message),
                Call::Running(_) | Call::Open(_) => unreachable!("calls are started one after the other"),
            }
        }
    }

    fn learn(&mut self, vm: &mut Vm, at: usize, news: News) -> Ran<()> {
        match news {
            News::Returned(Val::Pending(slot)) if !self.mode.fails_fast() => {
                self.opened(vm, at, slot);
            }
            News::Returned(value) => self.succeeded(at, value),
            News::Threw(thrown) if self.mode.fails_fast() => {
                self.calls[at] = Call::Failed(String::new());
                self.cancel_rest(vm);
                return Err(Trap::Rethrow(thrown));
            }
            News::Threw(thrown) => self.failed(at, thrown.raise.message.clone()),
            News::Settled => self.settled(at),
        }
        Ok(())
    }

    fn opened(&mut self, vm: &mut Vm, at: usize, slot: Arc<Slot>) {
        vm.awaits(&slot, at);
        let settled = slot.is_settled();
        self.calls[at] = Call::Open(slot);
        if settled {
            self.settled(at);
        }
    }

    fn settled(&mut self, at: usize) {
        let Call::Open(slot) = &self.calls[at] else { return };
        let slot = Arc::clone(slot);
        slot.see();
        match slot.value() {
            Some(Ok(value)) => self.succeeded(at, value.clone()),
            Some(Err(raise)) => self.failed(at, raise.message.clone()),
            None => {}
        }
    }

    fn succeeded(&mut self, at: usize, value: Val) {
        self.open -= 1;
        self.arrived.push(at);
        self.calls[at] = Call::Done(value);
    }

    fn failed(&mut self, at: usize, message: String) {
        self.open -= 1;
        self.failed += 1;
        self.calls[at] = Call::Failed(message);
    }

    fn decided(&mut self, vm: &mut Vm) -> Ran<Option<Val>> {
        let needed = match self.mode {
            Mode::All | Mode::Map(_) | Mode::Joined => {
                if self.started < self.calls.len() || self.open > 0 {
                    return Ok(None);
                }
                let results = self.calls.iter().map(|call| match call {
                    Call::Done(value) => value.clone(),
                    _ => Val::Null.sure(0.0),
                });
                let results = Val::array(results.collect())?;
                return Ok(Some(match self.mode {
                    Mode::Map(confidence) => results.maybe_sure(confidence),
                    Mode::Joined => vm.settled(&results)?,
                    _ => results,
                }));
            }
            Mode::First => 1,
            Mode::Quorum(n) => n,
        };
        if self.arrived.len() >= needed {
            self.cancel_rest(vm);
            let mut winners = self.arrived[..needed].iter().map(|at| match &self.calls[*at] {
                Call::Done(value) => value.clone(),
                _ => unreachable!("only finished calls arrive"),
            });
            return Ok(Some(match self.mode {
                Mode::First => winners.next().expect("one is needed"),
                _ => Val::array(winners.collect())?,
            }));
        }
        if self.calls.len() - self.failed < needed {
            self.cancel_rest(vm);
            let causes = self.calls.iter().filter_map(|c| match c {
                Call::Failed(message) => Some(message.as_str()),
                _ => None,
            });
            let causes: Vec<&str> = causes.collect();
            let message = match self.mode {
                Mode::First => format!("all {} calls failed: {}", self.calls.len(), causes.join("; ")),
                _ => format!(
                    "{needed} of {} calls were needed, but {} failed: {}",
                    self.calls.len(),
                    self.failed,
                    causes.join("; ")
                ),
            };
            return Err(Raise::new("agent_failed", message).into());
        }
        Ok(None)
    }

    fn cancel_rest(&mut self, vm: &mut Vm) {
        vm.cancel_fibers(self.running());
        for call in &self.calls {
            if let Call::Open(slot) | Call::Held(slot) = call {
                vm.cancel(slot);
            }
        }
    }
}

impl Vm {
    /// Keeps the effects of these pending values from being handed out.
    fn hold_back(&mut self, items: &[Val]) {
        let id = |v: &Val| match v {
            Val::Pending(slot) => Some(slot.id),
            _ => None,
        };
        let ids: HashSet<EffectId> = items.iter().filter_map(id).collect();
        let (held, queue): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.queue).into_iter().partition(|e| ids.contains(&e.id));
        self.queue = queue;
        self.held.extend(held.into_iter().map(|e| (e.id, e)));
    }

    pub(super) fn let_go(&mut self, slot: &Slot) {
        self.queue.extend(self.held.remove(&slot.id));
    }

    /// Built-ins that ask the owner. Arguments are settled; nothing may wait once something was asked for.
    pub(super) fn effectful(&mut self, native: Native, args: &[Val]) -> Ran<Started> {
        let value = match native {
            Native::Llm => {
                let (prompt, options, extractor) = agents::llm_arguments(native, args)?;
                let kind = EffectKind::Llm { prompt: prompt.clone(), options };
                match extractor {
                    None => Val::Pending(self.request(kind, Form::Llm)?),
                    Some(f) => {
                        let slot = self.request(kind, Form::LlmResponse)?;
                        let options = args.get(1).cloned().unwrap_or(Val::Null);
                        let then = Then::Extract { prompt: Val::str(prompt), options };
                        return Ok(Started::Task(f, Task::wait(slot, then)));
                    }
                }
            }
            Native::StreamLlm => {
                let (prompt, options, _) = agents::llm_arguments(native, args)?;
                let slot = self.request(EffectKind::Llm { prompt, options }, Form::LlmResponse)?;
                self.stream(slot)?
            }
            Native::StreamNext => self.stream_next(args)?,
            Native::StreamCancel => {
                self.set_stream(&args[1], 2.0);
                Val::Null
            }
            Native::StreamResult => {
                let response = self.force(&args[0])?;
                let confidence = response.get("confidence").and_then(|c| c.plain().as_num());
                kept(response.get("content").cloned().unwrap_or(Val::Null).maybe_sure(confidence))?
            }
            Native::Delay | Native::Sleep => {
                let ms = agents::milliseconds(native, &args[0])?;
                kept(Val::Pending(self.request(EffectKind::Sleep { ms }, Form::Sleep)?))?
            }
            Native::DebounceCall => {
                let ms = agents::milliseconds(native, &args[0])?;
                let slot = self.request(EffectKind::Sleep { ms }, Form::Sleep)?;
                return Ok(Started::Task(args[1].clone(), Task::wait(slot, Then::Call(args[2..].to_vec()))));
            }
            Native::Deferred => {
                let task = Task::once(args[1..].to_vec(), After::Nothing);
                return Ok(Started::Task(args[0].clone(), task));
            }
            Native::All => {
                let items = array_arg(native, args, 0)?;
                self.spend(items.items().len())?;
                let held = items.items().iter().map(ops::awaited);
                let inner: Vec<Val> =
                    held.map(|held| held.map(|(v, c)| v.maybe_sure(c))).collect::<Raised<_>>()?;
                if inner.iter().any(is_deferred) {
                    self.charge(inner.len() as u64 * 48)?;
                    return Ok(Started::Task(Val::Null, Task::parallel(Parallel::joined(inner))));
                }
                self.settled(&Val::array(inner)?)?
            }
            Native::Parallel | Native::Race => return self.parallel(native, args),
            Native::ExecutePattern => {
                let Val::Str(name) = args[0].plain() else {
                    return Err(bad_argument(native, "the name of a pattern", &args[0]).into());
                };
                let input = args.get(1).cloned().unwrap_or(Val::Null);
                input.check_weight()?;
                let kind = EffectKind::Pattern { name: name.to_string(), input: Value(input) };
                Val::Pending(self.request(kind, Form::Pattern)?)
            }
            Native::Now | Native::Random => {
                let kind = if native == Native::Now { EffectKind::Now } else { EffectKind::Random };
                let slot = self.request(kind, Form::Number)?;
                return Ok(Started::Task(Val::Null, Task::wait(slot, Then::Value)));
            }
            _ => self.analyze(native, args)?,
        };
        Ok(Started::Value(value))
    }

    fn analyze(&mut self, native: Native, args: &[Val]) -> Ran<Val> {
        let Some(index) = args[0].as_num() else { unreachable!("bound with the agent's index") };
        let (default_task, default_data) = self.task_and_data()?;
        let task = match args.get(1).map(Val::plain) {
            None | Some(Val::Null) => default_task,
            Some(Val::Str(task)) => task.to_string(),
            Some(other) => return Err(bad_argument(native, "a task as a string", other).into()),
        };
        let data = args.get(2).cloned().unwrap_or(default_data);
        data.check_weight()?;
        let options = agents::invoke_options(native, args.get(3))?;
        let agent = self.agents[index as usize].id.clone();
        let kind = EffectKind::Invoke { agent, task, data: Value(data), options };
        Ok(Val::Pending(self.request(kind, Form::Analysis(index as u32))?))
    }

    fn parallel(&mut self, native: Native, args: &[Val]) -> Ran<Started> {
        let items = array_arg(native, args, 0)?;
        let (mut mode, mut max) = (if native == Native::Race { Mode::First } else { Mode::All }, usize::MAX);
        if let Some(options) = args.get(1) {
            let options = self.settled(options)?;
            (mode, max) = parallel_options(native, &options, items.items().len())?;
        }
        if items.items().is_empty() && mode == Mode::First {
            let message = format!("`{}` needs at least one call", native.name());
            return Err(Raise::new("bad_argument", message).into());
        }
        self.spend(items.items().len())?;
        self.charge(items.items().len() as u64 * 48)?;
        if max < items.items().len() {
            self.hold_back(items.items());
        }
        Ok(Started::Task(Val::Null, Task::parallel(Parallel::of(items.items(), mode, max))))
    }

    fn stream(&mut self, slot: Arc<Slot>) -> Raised<Val> {
        let cell = self.new_cell(Val::Num(0.0))?;
        let part = |native: Native| {
            let given = Box::new([Val::Pending(Arc::clone(&slot)), Val::Cell(cell)]);
            Val::func(Body::Partial { native, given })
        };
        let parts = [
            ("next", part(Native::StreamNext)?),
            ("cancel", part(Native::StreamCancel)?),
            ("result", part(Native::StreamResult)?),
        ];
        let object: Object = parts.into_iter().map(|(k, v)| (Arc::from(k), v)).collect();
        Val::object(object)
    }

    fn set_stream(&mut self, cell: &Val, state: f64) {
        if let Val::Cell(i) = cell {
            self.cells[*i as usize] = Val::Num(state);
        }
    }

    /// The owner gives whole answers, so a stream has one piece of text.
    fn stream_next(&mut self, args: &[Val]) -> Ran<Val> {
        let Val::Cell(i) = &args[1] else { unreachable!("bound with the state of the stream") };
        if self.cells[*i as usize].as_num() != Some(0.0) {
            return Ok(Val::Null);
        }
        let response = self.force(&args[0])?;
        self.set_stream(&args[1], 1.0);
        let text = response.get("content").cloned().unwrap_or(Val::Null);
        let piece: Object = [("type", Val::str("text")), ("text", text)]
            .into_iter()
            .map(|(k, v)| (Arc::from(k), v))
            .collect();
        Ok(Val::object(piece)?)
    }
}

/// A call in the list of `Promise.all` that was left to it.
fn is_deferred(value: &Val) -> bool {
    matches!(value, Val::Func(f) if matches!(&f.body, Body::Partial { native: Native::Deferred, .. }))
}

fn parallel_options(native: Native, options: &Val, calls: usize) -> Raised<(Mode, usize)> {
    let bad = |message: String| Raise::new("bad_argument", message);
    let Some(options) = crate::builtins::options(native, Some(options))? else {
        return Ok((Mode::All, usize::MAX));
    };
    let number = |name: &str| match options.get(name).map(Val::plain) {
        None | Some(Val::Null) => Ok(None),
        Some(Val::Num(x)) if *x >= 1.0 && x.fract() == 0.0 => Ok(Some(*x as usize)),
        Some(other) => {
            Err(bad(format!("`{name}` of `parallel` is a whole number from 1, not {}", text(other))))
        }
    };
    let n = number("n")?;
    let max = number("maxConcurrency")?.unwrap_or(usize::MAX);
    let mode = match options.get("mode").map(Val::plain) {
        None | Some(Val::Null) => Mode::All,
        Some(Val::Str(mode)) => match mode.as_str() {
            "all" => Mode::All,
            "first" => Mode::First,
            "quorum" => match n {
                // More than half, if nobody says how many.
                None => Mode::Quorum(calls / 2 + 1),
                Some(n) => Mode::Quorum(n),
            },
            other => {
                return Err(bad(format!("there is no mode `{other}`"))
                    .hint(format!("modes are {}", crate::builtins::MODES.join(", "))));
            }
        },
        Some(other) => return Err(bad_argument(native, "`mode` as a string", other)),
    };
    if let Mode::Quorum(n) = mode
        && n > calls
    {
        return Err(bad(format!("a quorum of {n} is impossible with {calls} calls")));
    }
    Ok((mode, max))
}
