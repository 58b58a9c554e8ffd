//! Built-ins that call back into the script. Each is a small state machine with a frame of its own, so that a callback
//! may wait for an answer like any other code.

mod order;

pub(crate) use order::{GROUPED, grouped, sorted};

use super::fibers::{FiberId, News};
use super::parallel::Parallel;
use super::{Flow, FrameKind, Ran, Ret, Trap, Vm, Wrap};
use crate::diagnostic::{Raise, Raised};
use crate::effects::Slot;
use crate::value::{Array, Object, Val};
use order::{Groups, Merge};
use std::sync::Arc;

pub(crate) struct Task {
    kind: Kind,
    /// What the last callback returned.
    pub(super) value: Option<Val>,
    /// A call with this many arguments has not begun yet.
    calling: Option<usize>,
    /// The result, while its confidence still has to be combined with a pending value.
    done: Option<Val>,
}

enum Kind {
    Map(Walk),
    Filter(Walk),
    Reduce {
        items: Arc<Array>,
        next: usize,
        acc: Option<Val>,
        indexed: bool,
        confidence: Option<f64>,
    },
    ForEach {
        items: Arc<Array>,
        next: usize,
        indexed: bool,
    },
    Search {
        items: Arc<Array>,
        next: usize,
        until: Search,
    },
    Group {
        items: Arc<Array>,
        next: usize,
        groups: Groups,
    },
    Sort(Merge),
    Once {
        args: Vec<Val>,
        after: After,
    },
    /// Waits, then calls (or, without arguments, is done).
    Wait {
        slot: Arc<Slot>,
        then: Then,
    },
    Parallel(Parallel),
}

/// An array being turned into another.
struct Walk {
    items: Arc<Array>,
    next: usize,
    out: Vec<Val>,
    confidence: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Search {
    Find,
    Some,
    Every,
}

/// What becomes of the result of a single callback.
pub(super) enum After {
    Grade(f64),
    /// An extractor said how sure a model is of this text.
    Extract(Val),
    Nothing,
}

pub(super) enum Then {
    Value,
    Call(Vec<Val>),
    /// The response of a model, completed with what was asked, goes to the extractor.
    Extract {
        prompt: Val,
        options: Val,
    },
}

pub(super) enum Next {
    /// Arguments are on the stack.
    Call(usize),
    Done(Val),
}

impl Task {
    fn new(kind: Kind) -> Task {
        Task { kind, value: None, calling: None, done: None }
    }

    pub(super) fn map(items: Arc<Array>, confidence: Option<f64>) -> Task {
        let out = Vec::with_capacity(items.items().len());
        Task::new(Kind::Map(Walk { items, next: 0, out, confidence }))
    }

    pub(super) fn filter(items: Arc<Array>, confidence: Option<f64>) -> Task {
        Task::new(Kind::Filter(Walk { items, next: 0, out: Vec::new(), confidence }))
    }

    pub(super) fn reduce(
        items: Arc<Array>,
        init: Option<Val>,
        indexed: bool,
        confidence: Option<f64>,
    ) -> Task {
        let (acc, next) = match init {
            Some(init) => (Some(init), 0),
            None => (items.items().first().cloned(), 1),
        };
        Task::new(Kind::Reduce { items, next, acc, indexed, confidence })
    }

    pub(super) fn for_each(items: Arc<Array>, indexed: bool) -> Task {
        Task::new(Kind::ForEach { items, next: 0, indexed })
    }

    pub(super) fn find(items: Arc<Array>) -> Task {
        Task::new(Kind::Search { items, next: 0, until: Search::Find })
    }

    pub(super) fn some(items: Arc<Array>) -> Task {
        Task::new(Kind::Search { items, next: 0, until: Search::Some })
    }

    pub(super) fn every(items: Arc<Array>) -> Task {
        Task::new(Kind::Search { items, next: 0, until: Search::Every })
    }

    pub(super) fn group(items: Arc<Array>) -> Task {
        Task::new(Kind::Group { items, next: 0, groups: Groups::default() })
    }

    pub(super) fn sort(items: Vec<Val>) -> Task {
        Task::new(Kind::Sort(Merge::new(items)))
    }

    pub(super) fn once(args: Vec<Val>, after: After) -> Task {
        Task::new(Kind::Once { args, after })
    }

    pub(super) fn wait(slot: Arc<Slot>, then: Then) -> Task {
        Task::new(Kind::Wait { slot, then })
    }

    pub(super) fn parallel(parallel: Parallel) -> Task {
        Task::new(Kind::Parallel(parallel))
    }

    /// Arguments that lay below the task's function are done with: the function moves down to the frame's new floor.
    pub(super) fn rebase(&self, stack: &mut Vec<Val>, floor: usize) {
        let callee = stack.pop().unwrap_or(Val::Null);
        stack.truncate(floor);
        stack.push(callee);
    }

    /// News of a branch of this task.
    pub(super) fn tell(&mut self, branch: usize, news: News) {
        if let Kind::Parallel(parallel) = &mut self.kind {
            parallel.tell(branch, news);
        }
    }

    /// Adds the branches that have not ended, the first one last.
    pub(super) fn branches(&self, to: &mut Vec<FiberId>) {
        if let Kind::Parallel(parallel) = &self.kind {
            to.extend(parallel.running().rev());
        }
    }

    pub(super) fn values(&self, note: &mut dyn FnMut(&Val)) {
        self.value.iter().chain(&self.done).for_each(&mut *note);
        let mut array = |items: &Arc<Array>| note(&Val::Arr(Arc::clone(items)));
        match &self.kind {
            Kind::Map(walk) | Kind::Filter(walk) => {
                array(&walk.items);
                walk.out.iter().for_each(note);
            }
            Kind::Reduce { items, acc, .. } => {
                array(items);
                acc.iter().for_each(note);
            }
            Kind::ForEach { items, .. } | Kind::Search { items, .. } => array(items),
            Kind::Group { items, groups, .. } => {
                array(items);
                groups.order.iter().flat_map(|(_, v)| v).for_each(note);
            }
            Kind::Sort(merge) => merge.from.iter().chain(&merge.to).for_each(note),
            Kind::Once { args, .. } => args.iter().for_each(note),
            Kind::Wait { then, .. } => {
                if let Then::Call(args) = then {
                    args.iter().for_each(note);
                }
            }
            Kind::Parallel(parallel) => parallel.values(note),
        }
    }

    /// The next callback, whose arguments are pushed, or the result. If it must wait, nothing has changed.
    fn next(&mut self, vm: &mut Vm) -> Ran<Next> {
        match &mut self.kind {
            Kind::Map(walk) => {
                if let Some(value) = self.value.take() {
                    walk.out.push(value);
                }
                walk.next(vm)
            }
            Kind::Filter(walk) => {
                if let Some(value) = &self.value {
                    if vm.force(value)?.truthy() {
                        walk.out.push(walk.items.items()[walk.next - 1].clone());
                    }
                    self.value = None;
                }
                walk.next(vm)
            }
            Kind::Reduce { items, next, acc, indexed, confidence } => {
                if let Some(value) = self.value.take() {
                    *acc = Some(value);
                }
                let Some(item) = items.items().get(*next) else {
                    let acc = acc.take().expect("an empty array needs an initial value");
                    return match confidence {
                        None => Ok(Next::Done(acc)),
                        Some(c) => {
                            let c = *c;
                            let acc = vm.force(&acc)?;
                            Ok(Next::Done(if acc.confidence().is_some() { acc } else { acc.sure(c) }))
                        }
                    };
                };
                vm.fiber.stack.push(acc.take().expect("set at the start and by every callback"));
                vm.fiber.stack.push(item.clone());
                if *indexed {
                    vm.fiber.stack.push(Val::Num(*next as f64));
                }
                *next += 1;
                Ok(Next::Call(if *indexed { 3 } else { 2 }))
            }
            Kind::ForEach { items, next, indexed } => {
                self.value = None;
                let Some(item) = items.items().get(*next) else { return Ok(Next::Done(Val::Null)) };
                vm.fiber.stack.push(item.clone());
                if *indexed {
                    vm.fiber.stack.push(Val::Num(*next as f64));
                }
                *next += 1;
                Ok(Next::Call(if *indexed { 2 } else { 1 }))
            }
            Kind::Search { items, next, until } => {
                if let Some(value) = &self.value {
                    let truth = vm.force(value)?.truthy();
                    self.value = None;
                    match until {
                        Search::Find if truth => return Ok(Next::Done(items.items()[*next - 1].clone())),
                        Search::Some if truth => return Ok(Next::Done(Val::Bool(true))),
                        Search::Every if !truth => return Ok(Next::Done(Val::Bool(false))),
                        _ => {}
                    }
                }
                let Some(item) = items.items().get(*next) else {
                    return Ok(Next::Done(match until {
                        Search::Find => Val::Null,
                        Search::Some => Val::Bool(false),
                        Search::Every => Val::Bool(true),
                    }));
                };
                vm.fiber.stack.push(item.clone());
                *next += 1;
                Ok(Next::Call(1))
            }
            Kind::Group { items, next, groups } => {
                if let Some(value) = &self.value {
                    let key = vm.settled(value)?;
                    key.check_weight()?;
                    // Measuring looks at what is in the groups, and not at them.
                    if *next as u64 * GROUPED > vm.limits.memory {
                        return Err(vm.out_of_memory().into());
                    }
                    groups.add(&key, items.items()[*next - 1].clone());
                    self.value = None;
                }
                let Some(item) = items.items().get(*next) else { return Ok(Next::Done(groups.object()?)) };
                vm.fiber.stack.push(item.clone());
                *next += 1;
                Ok(Next::Call(1))
            }
            Kind::Sort(merge) => {
                if let Some(value) = &self.value {
                    let order = vm.force(value)?;
                    let Val::Num(order) = order.plain() else {
                        let message = format!("a comparison gives a number, not {}", order.described());
                        return Err(Raise::new("bad_argument", message).into());
                    };
                    merge.take(*order > 0.0);
                    self.value = None;
                }
                match merge.compared() {
                    Some((a, b)) => {
                        vm.fiber.stack.extend([a, b]);
                        Ok(Next::Call(2))
                    }
                    None => Ok(Next::Done(Val::array(std::mem::take(&mut merge.from))?)),
                }
            }
            Kind::Once { args, after } => match &self.value {
                None => {
                    let n = args.len();
                    vm.fiber.stack.append(args);
                    Ok(Next::Call(n))
                }
                Some(value) => {
                    let value = match after {
                        After::Nothing => value.clone(),
                        After::Grade(c) => vm.force(value)?.sure(*c),
                        After::Extract(content) => extracted(content, &vm.settled(value)?)?,
                    };
                    value.meta().check()?;
                    Ok(Next::Done(value))
                }
            },
            Kind::Wait { slot, then } => {
                let value = vm.force(&Val::Pending(Arc::clone(slot)))?;
                let (args, after) = match std::mem::replace(then, Then::Value) {
                    Then::Value => return Ok(Next::Done(value)),
                    Then::Call(args) => (args, After::Nothing),
                    Then::Extract { prompt, options } => {
                        let content = value.get("content").cloned().unwrap_or(Val::Null);
                        (vec![completed(&value, prompt, options)?], After::Extract(content))
                    }
                };
                self.kind = Kind::Once { args, after };
                self.next(vm)
            }
            Kind::Parallel(parallel) => parallel.next(vm).map(Next::Done),
        }
    }
}

impl Walk {
    fn next(&mut self, vm: &mut Vm) -> Ran<Next> {
        let Some(item) = self.items.items().get(self.next) else {
            let out = std::mem::take(&mut self.out);
            vm.charge(48 + 16 * out.len() as u64)?;
            return Ok(Next::Done(Val::array(out)?.maybe_sure(self.confidence)));
        };
        vm.fiber.stack.push(item.clone());
        self.next += 1;
        Ok(Next::Call(1))
    }
}

/// The confidence that an extractor gives to a text.
fn extracted(content: &Val, verdict: &Val) -> Raised<Val> {
    let confidence = match verdict {
        Val::Num(c) => Some(*c),
        Val::Sure(sure) => Some(sure.confidence),
        object => object.get("confidence").and_then(|c| c.plain().as_num()),
    };
    match confidence {
        Some(c) if c.is_finite() => Ok(content.clone().sure(c.clamp(0.0, 1.0))),
        Some(c) => Err(Raise::new("invalid_confidence", format!("a confidence must be finite, not {c}"))),
        None => Err(Raise::new(
            "bad_argument",
            format!(
                "an extractor gives a number, a confident value or an object with `confidence`, not {}",
                verdict.described()
            ),
        )),
    }
}

fn completed(response: &Val, prompt: Val, options: Val) -> Raised<Val> {
    let mut object: Object = match response {
        Val::Obj(object) => (**object).clone(),
        _ => Object::new(),
    };
    object.set(&Arc::from("prompt"), prompt);
    object.set(&Arc::from("options"), options);
    Val::object(object)
}

impl Vm {
    /// Runs the task on top until it calls into code or is done. The result, if it ends the run.
    pub(super) fn drive(&mut self) -> Ran<Option<Val>> {
        loop {
            let at = self.fiber.frames.len() - 1;
            let (floor, wrap) = (self.fiber.frames[at].floor as usize, self.fiber.frames[at].ret.wrap);
            if self.fuel == 0 {
                self.refuel()?;
            }
            let FrameKind::Task(task) = &mut self.fiber.frames[at].kind else { return Ok(None) };
            // Out of the frame while it works, so that it can use the machine.
            let mut task = task.take().expect("only one task is at work");
            let result = self.advance_task(&mut task, floor, wrap);
            self.fiber.frames[at].kind = FrameKind::Task(Some(task));
            if let Some(value) = result? {
                let ret = self.fiber.frames.pop().expect("the task's frame").ret;
                self.fiber.stack.truncate(floor);
                match self.fiber.frames.last_mut().map(|f| &mut f.kind) {
                    None => return Ok(Some(value)),
                    Some(FrameKind::Code { .. }) => {
                        self.fiber.stack[ret.dst as usize] = value;
                        return Ok(None);
                    }
                    Some(FrameKind::Task(task)) => {
                        task.as_mut().expect("no task is at work").value = Some(value);
                    }
                }
            } else if matches!(self.fiber.frames.last().map(|f| &f.kind), Some(FrameKind::Code { .. })) {
                return Ok(None);
            }
        }
    }

    /// The task's result, or None if a frame was pushed above it or the limits must be looked at.
    fn advance_task(&mut self, task: &mut Task, floor: usize, wrap: Wrap) -> Ran<Option<Val>> {
        loop {
            if let Some(value) = &task.done {
                let value = self.force(value)?;
                return Ok(Some(wrap.apply(value, &self.rules)));
            }
            if let Some(n) = task.calling {
                match self.call_at(floor, n, Ret { dst: 0, wrap: Wrap::None }, true) {
                    Ok(Flow::Frame) => {
                        task.calling = None;
                        return Ok(None);
                    }
                    Ok(Flow::Value(value)) => {
                        self.fiber.stack.truncate(floor + 1);
                        task.calling = None;
                        task.value = Some(value);
                        if self.fuel == 0 {
                            return Ok(None);
                        }
                    }
                    Err(trap) => {
                        if !matches!(trap, Trap::Wait(_)) {
                            task.calling = None;
                        }
                        return Err(trap);
                    }
                }
            }
            self.fiber.stack.truncate(floor + 1);
            match task.next(self)? {
                Next::Call(n) => task.calling = Some(n),
                Next::Done(value) if wrap == Wrap::None => return Ok(Some(value)),
                Next::Done(value) => task.done = Some(value),
            }
        }
    }
}
