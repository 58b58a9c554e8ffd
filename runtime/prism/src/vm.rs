//! The machine: frames on the heap, so that a script's depth is a number and not a crash, and so that it can stop at
//! any instruction and go on later.

mod build;
mod calls;
mod collect;
mod data;
mod exec;
mod fibers;
mod futures;
mod modules;
mod operate;
mod ops;
mod parallel;
mod rare;
mod run;
mod tasks;

pub(crate) use calls::{array_arg, bad_argument, wrong_arity};
pub(crate) use ops::needs_confident;
pub(crate) use run::Thrown;
pub use run::{AgentInfo, Host, Interrupt, Run, Step};
pub(crate) use tasks::{GROUPED, grouped, sorted};

use crate::compile::{Inner, ProtoId, Reg};
use crate::diagnostic::Raise;
use crate::effects::{Effect, EffectId, Slot};
use crate::limits::Limits;
use crate::rules::Rules;
use crate::value::{Lazy, Object, Val};
use fibers::{Fiber, FiberId, Parked, Waiters};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tasks::Task;

/// Why an instruction did not finish.
pub(crate) enum Trap {
    Raise(Box<Raise>),
    /// All of these must be settled first; then the instruction runs again.
    Wait(Vec<Arc<Slot>>),
    /// The task on top has seen to it that the fiber goes on when there is more for it to do.
    Yield,
    /// An error that was thrown before goes on.
    Rethrow(Arc<Thrown>),
}

impl From<Box<Raise>> for Trap {
    fn from(raise: Box<Raise>) -> Trap {
        Trap::Raise(raise)
    }
}

pub(crate) type Ran<T> = Result<T, Trap>;

/// What calling a function did.
pub(crate) enum Flow {
    Value(Val),
    /// A frame was pushed; the value comes when it returns.
    Frame,
}

/// What a call does to the confidence of its result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wrap {
    None,
    /// A confident result is combined with this, a plain one gets it.
    With(f64),
    Set(f64),
}

impl Wrap {
    fn apply(self, value: Val, rules: &Rules) -> Val {
        match self {
            Wrap::None => value,
            Wrap::With(c) => {
                let c = match value.confidence() {
                    Some(own) => rules.function_call.combine(own, c),
                    None => c,
                };
                value.sure(c)
            }
            Wrap::Set(c) => value.sure(c),
        }
    }
}

/// Where a result goes: an index into the stack.
#[derive(Clone, Copy)]
pub(crate) struct Ret {
    dst: u32,
    wrap: Wrap,
}

pub(crate) struct Frame {
    /// The stack is cut back to here on return.
    floor: u32,
    ret: Ret,
    kind: FrameKind,
}

pub(crate) enum FrameKind {
    Code {
        proto: ProtoId,
        pc: u32,
        base: u32,
    },
    /// A built-in that calls back. It is out while it works.
    Task(Option<Box<Task>>),
}

/// Where an error goes.
struct Handler {
    frame: u32,
    target: u32,
    reg: Reg,
    /// The first effect asked for under its protection.
    mark: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ModuleState {
    Fresh,
    Running,
    Done,
}

struct Module {
    state: ModuleState,
    exports: Object,
}

/// An effect without an outcome. What it holds counts until then, whether the owner has it yet or not: that depends on
/// how outcomes are grouped.
struct Asked {
    slot: Arc<Slot>,
    bytes: u64,
    value: Option<Val>,
    waiters: Waiters,
}

pub(crate) struct Vm {
    program: Arc<Inner>,
    /// The one that runs, or ran last.
    fiber: Fiber,
    parked: Parked,
    /// Fibers that can go on, the next one first.
    ready: VecDeque<FiberId>,
    next_fiber: FiberId,
    /// Places in the stacks of the parked ones.
    parked_stack: usize,
    spare: Vec<Fiber>,
    globals: Vec<Val>,
    /// Captured variables that may change. Free ones are listed in `free_cells`.
    cells: Vec<Val>,
    free_cells: Vec<u32>,
    /// Where each property name was found the last time.
    hints: Vec<u16>,
    modules: Vec<Module>,
    agents: Vec<AgentInfo>,
    task: Val,
    data: Val,
    /// `agentResults` and `successfulResults`, once made.
    made: Vec<(Lazy, Val)>,

    next_effect: u64,
    /// Asked for and not answered.
    outstanding: HashMap<EffectId, Asked>,
    /// Asked for and not yet handed to the owner.
    queue: Vec<Effect>,
    /// Held back by a bound on concurrency.
    held: HashMap<EffectId, Effect>,
    /// Handed out and no longer wanted, to be reported.
    cancelled: Vec<EffectId>,
    /// Outcomes of these are ignored.
    forgotten: HashSet<EffectId>,
    /// Effects of language models; their failures are errors even if nobody looks.
    insist: Vec<Arc<Slot>>,

    limits: Limits,
    rules: Rules,
    interrupt: Arc<AtomicBool>,
    /// Steps until the next look at limits and interruption.
    fuel: u32,
    steps_left: u64,
    allocated: u64,
    next_collect: u64,
    output: Vec<String>,
    output_bytes: u64,
}
