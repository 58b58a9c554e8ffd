//! Fibers: the program's own line of execution, and one for each branch of `parallel`, `race` and of a `map` over an
//! async function, so that branches that wait inside overlap.
//!
//! A branch runs at once until it ends or waits; then the fiber that started it goes on. When outcomes arrive, the
//! fibers that they set free run in the order in which they began to wait. So what runs next is decided by the program
//! and by the order of outcomes, and by nothing else. The fiber that started branches waits in the built-in that did,
//! so a branch never outlives its owner.

use super::tasks::{After, Task};
use super::{Frame, FrameKind, Handler, Ret, Thrown, Trap, Vm, Wrap};
use crate::diagnostic::Raised;
use crate::effects::{EffectId, Slot};
use crate::value::Val;
use std::collections::HashMap;
use std::sync::Arc;

/// 0 is the program itself; the others are numbered in the order in which they start.
pub(super) type FiberId = u64;

/// Bytes that a branch takes, roughly.
const FIBER_BYTES: u64 = 1024;

/// Fibers kept for reuse, and the largest stack of such a one.
const SPARE: usize = 64;
const SPARE_STACK: usize = 4096;

#[derive(Default)]
pub(super) struct Fiber {
    id: FiberId,
    /// Whom it reports to, and as which of its branches.
    owner: Option<(FiberId, usize)>,
    pub(super) stack: Vec<Val>,
    pub(super) frames: Vec<Frame>,
    pub(super) handlers: Vec<Handler>,
    /// Effects asked for under a `try`, in order.
    pub(super) watched: Vec<Arc<Slot>>,
    /// Calls that its owner is in.
    depth: usize,
    /// Its owner is in a `try`.
    guarded: bool,
    /// What a branch has asked for. What of it is open is not wanted any more if the branch is not.
    asked: Vec<EffectId>,
    waiting: Waiting,
}

/// What a fiber waits for.
#[derive(Default)]
enum Waiting {
    /// It runs, or is in line.
    #[default]
    Nothing,
    All(Vec<Arc<Slot>>),
    /// News of its branches.
    Branches,
    /// Any outcome.
    Any,
    /// Nothing any more: it has ended.
    Over,
}

/// Who is told when an effect is settled.
#[derive(Clone, Copy)]
pub(super) struct Waiter {
    fiber: FiberId,
    /// The settled value is this branch's result.
    branch: Option<usize>,
}

/// Most effects have one.
#[derive(Default)]
pub(super) struct Waiters {
    first: Option<Waiter>,
    more: Vec<Waiter>,
}

impl Waiters {
    fn add(&mut self, waiter: Waiter) {
        match self.first {
            None => self.first = Some(waiter),
            Some(_) => self.more.push(waiter),
        }
    }
}

/// News of a branch, for its owner.
pub(super) enum News {
    Returned(Val),
    Threw(Arc<Thrown>),
    /// The effect that it came down to is settled.
    Settled,
}

impl Fiber {
    pub(super) fn main() -> Fiber {
        Fiber { stack: Vec::with_capacity(256), frames: Vec::with_capacity(16), ..Fiber::default() }
    }

    pub(super) fn values(&self, note: &mut dyn FnMut(&Val)) {
        self.stack.iter().for_each(&mut *note);
        for frame in &self.frames {
            if let FrameKind::Task(Some(task)) = &frame.kind {
                task.values(note);
            }
        }
        if let Waiting::All(slots) = &self.waiting {
            slots.iter().for_each(|s| note(&Val::Pending(Arc::clone(s))));
        }
        self.watched.iter().for_each(|s| note(&Val::Pending(Arc::clone(s))));
    }

    pub(super) fn under_try(&self) -> bool {
        self.guarded || !self.handlers.is_empty()
    }

    /// The built-in on top, unless it is at work.
    fn task(&mut self) -> Option<&mut Task> {
        match self.frames.last_mut().map(|frame| &mut frame.kind) {
            Some(FrameKind::Task(task)) => task.as_deref_mut(),
            _ => None,
        }
    }
}

impl Vm {
    pub(super) fn is_branch(&self) -> bool {
        self.fiber.owner.is_some()
    }

    /// The fiber that runs, and its owners.
    pub(super) fn lineage(&self) -> impl Iterator<Item = &Fiber> {
        std::iter::successors(Some(&self.fiber), |fiber| self.parked.get(&fiber.owner?.0))
    }

    /// Calls within calls, up to where the machine is.
    pub(super) fn depth(&self) -> usize {
        self.fiber.depth + self.fiber.frames.len()
    }

    /// Places in the stacks of all fibers.
    pub(super) fn stacked(&self) -> usize {
        self.fiber.stack.len() + self.parked_stack
    }

    pub(super) fn fiber_bytes(&self) -> u64 {
        FIBER_BYTES * self.parked.len() as u64 + 16 * self.stacked() as u64
    }

    /// Takes the next fiber in line. There is none if all of them wait.
    pub(super) fn schedule(&mut self) -> bool {
        while let Some(id) = self.ready.pop_front() {
            if id == self.fiber.id {
                return true;
            }
            // One that was cancelled may still be in line.
            let Some(next) = self.parked.remove(&id) else { continue };
            self.parked_stack -= next.stack.len();
            let last = std::mem::replace(&mut self.fiber, next);
            if matches!(last.waiting, Waiting::Over) {
                self.reuse(last);
            } else {
                self.parked_stack += last.stack.len();
                self.parked.insert(last.id, last);
            }
            return true;
        }
        false
    }

    /// The fiber that runs goes on, before any other.
    pub(super) fn go_on(&mut self) {
        self.ready.push_front(self.fiber.id);
    }

    /// Starts a branch of the built-in that runs, which yields then, and goes on when the branch ends or waits.
    pub(super) fn branch(&mut self, branch: usize, callee: Val, args: Vec<Val>) -> Raised<FiberId> {
        self.check_depth()?;
        self.charge(FIBER_BYTES)?;
        let mut fiber = self.spare.pop().unwrap_or_default();
        fiber.id = self.next_fiber;
        self.next_fiber += 1;
        fiber.owner = Some((self.fiber.id, branch));
        fiber.depth = self.depth();
        fiber.guarded = self.fiber.under_try();
        fiber.stack.push(callee);
        let kind = FrameKind::Task(Some(Box::new(Task::once(args, After::Nothing))));
        fiber.frames.push(Frame { floor: 0, ret: Ret { dst: 0, wrap: Wrap::None }, kind });
        let id = fiber.id;
        self.parked_stack += 1;
        self.parked.insert(id, fiber);
        self.go_on();
        self.ready.push_front(id);
        Ok(id)
    }

    /// The branch that runs has ended: its owner hears of it, and answers for what it has asked for.
    pub(super) fn report(&mut self, news: News) {
        let (owner, branch) = self.fiber.owner.expect("the program itself reports to nobody");
        self.fiber.waiting = Waiting::Over;
        let owner = self.parked.get_mut(&owner).expect("no branch outlives its owner");
        if owner.under_try() {
            owner.watched.append(&mut self.fiber.watched);
        }
        if owner.owner.is_some() {
            let open = self.fiber.asked.drain(..).filter(|id| self.outstanding.contains_key(id));
            owner.asked.extend(open);
        }
        let id = owner.id;
        self.tell(id, branch, news);
    }

    fn reuse(&mut self, mut fiber: Fiber) {
        if self.spare.len() == SPARE || fiber.stack.capacity() > SPARE_STACK {
            return;
        }
        fiber.stack.clear();
        fiber.frames.clear();
        fiber.handlers.clear();
        fiber.watched.clear();
        fiber.asked.clear();
        fiber.waiting = Waiting::Nothing;
        self.spare.push(fiber);
    }

    /// The fiber that runs waits for all of these, none of which is settled.
    pub(super) fn wait_for(&mut self, slots: Vec<Arc<Slot>>) {
        for slot in &slots {
            // Whoever is waited for cannot be held back.
            self.let_go(slot);
        }
        self.fiber.waiting = Waiting::All(slots);
        self.recheck(self.fiber.id);
    }

    pub(super) fn wait_for_any(&mut self) {
        self.fiber.waiting = Waiting::Any;
    }

    pub(super) fn wait_for_branches(&mut self) -> Trap {
        self.fiber.waiting = Waiting::Branches;
        Trap::Yield
    }

    /// Has the fiber that runs told when this is settled, as the result of a branch.
    pub(super) fn awaits(&mut self, slot: &Slot, branch: usize) {
        let waiter = Waiter { fiber: self.fiber.id, branch: Some(branch) };
        if let Some(asked) = self.outstanding.get_mut(&slot.id) {
            asked.waiters.add(waiter);
        }
    }

    pub(super) fn settled_for(&mut self, waiters: Waiters) {
        for Waiter { fiber, branch } in waiters.first.into_iter().chain(waiters.more) {
            match branch {
                Some(branch) => self.tell(fiber, branch, News::Settled),
                None => self.recheck(fiber),
            }
        }
        if let Waiting::Any = self.fiber.waiting {
            self.wake(self.fiber.id);
        }
    }

    fn fiber_mut(&mut self, id: FiberId) -> Option<&mut Fiber> {
        if id == self.fiber.id { Some(&mut self.fiber) } else { self.parked.get_mut(&id) }
    }

    fn wake(&mut self, id: FiberId) {
        if let Some(fiber) = self.fiber_mut(id) {
            fiber.waiting = Waiting::Nothing;
            self.ready.push_back(id);
        }
    }

    /// Wakes a fiber that has all it waits for. Otherwise it is told of the last of the others: one at a time, so that
    /// an outcome costs the same however many are waited for.
    fn recheck(&mut self, id: FiberId) {
        let Some(fiber) = self.fiber_mut(id) else { return };
        let Waiting::All(slots) = &mut fiber.waiting else { return };
        while slots.pop_if(|slot| slot.is_settled()).is_some() {}
        match slots.last().map(|slot| slot.id) {
            None => self.wake(id),
            Some(open) => {
                let asked = self.outstanding.get_mut(&open).expect("what is not settled is outstanding");
                asked.waiters.add(Waiter { fiber: id, branch: None });
            }
        }
    }

    fn tell(&mut self, id: FiberId, branch: usize, news: News) {
        let Some(fiber) = self.fiber_mut(id) else { return };
        // A built-in that is at work cancels what it does not want, and needs no news of it.
        let Some(task) = fiber.task() else { return };
        task.tell(branch, news);
        if let Waiting::Branches = fiber.waiting {
            self.wake(id);
        }
    }

    /// A branch asked for this; see [`Fiber::asked`].
    pub(super) fn note_asked(&mut self, id: EffectId) {
        let asked = &mut self.fiber.asked;
        if asked.len() == asked.capacity() {
            asked.retain(|id| self.outstanding.contains_key(id));
            asked.reserve(asked.len() + 1);
        }
        asked.push(id);
    }

    /// These branches, and theirs, are no longer wanted, nor is what they have asked for.
    pub(super) fn cancel_fibers(&mut self, ids: impl Iterator<Item = FiberId>) {
        let mut todo: Vec<FiberId> = ids.collect();
        todo.reverse();
        while let Some(id) = todo.pop() {
            let Some(mut fiber) = self.parked.remove(&id) else { continue };
            self.parked_stack -= fiber.stack.len();
            if let Some(task) = fiber.task() {
                task.branches(&mut todo);
            }
            for id in std::mem::take(&mut fiber.asked) {
                if let Some(asked) = self.outstanding.get(&id) {
                    let slot = Arc::clone(&asked.slot);
                    self.cancel(&slot);
                }
            }
            self.reuse(fiber);
        }
    }
}

/// Fibers that do not run, by their numbers.
pub(super) type Parked = HashMap<FiberId, Fiber>;
