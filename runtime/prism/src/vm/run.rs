//! The outside of the machine: start a run, step it with outcomes, read what it printed.

use super::fibers::{Fiber, News};
use super::{Frame, FrameKind, Handler, Module, ModuleState, Ran, Ret, Trap, Vm, Wrap};
use crate::builtins::{self, agents};
use crate::compile::{Program, Start};
use crate::diagnostic::{Diagnostic, Fault, Kind, Raise, Raised, Span};
use crate::effects::{Effect, EffectId, Outcome};
use crate::limits::{Limits, MAX_NESTING, MAX_WEIGHT};
use crate::rules::Rules;
use crate::value::{Lazy, Object, Val, Value};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An agent that the script may ask.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentInfo {
    pub id: String,
    pub name: String,
    pub capabilities: Vec<String>,
    /// 0..=1.
    pub expertise: f64,
    /// How far the agent's answers can usually be trusted, 0..=1, if known.
    pub confidence: Option<f64>,
    pub labels: BTreeMap<String, String>,
}

/// What a run is given. Everything is a value; nothing is pasted into the source.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Variables by name. They take precedence over the ones below and over built-ins; an `input` here is the run's
    /// input.
    pub globals: Vec<(String, Value)>,
    /// Bound as `agents` and `agentList`, counted by `agentCount`.
    pub agents: Vec<AgentInfo>,
    /// What agents are asked to do when the input has no `task`.
    pub task: Option<String>,
    /// The run's input, bound as `input`.
    pub data: Value,
    pub limits: Limits,
}

/// What a run needs, or how it ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Perform these and step with their outcomes, in any order, in any groups. May be empty while earlier effects
    /// are still open. Effects in `cancelled` need not be performed any more; a late outcome is ignored.
    Need {
        effects: Vec<Effect>,
        cancelled: Vec<EffectId>,
    },
    /// Effects that are still open are no longer wanted.
    Done(Value),
    Failed(Fault),
}

/// Stops a run from another thread: between two loop turns or calls, with code `interrupted`.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub fn interrupt(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls that a fault lists.
const MAX_CALLERS: usize = 5;

/// Bytes of a message.
const MAX_MESSAGE: usize = 1 << 16;

/// An error that was thrown, with where.
pub(crate) struct Thrown {
    pub(crate) raise: Raise,
    fault: Diagnostic,
}

/// One execution of a program: a value that changes only in [`Run::step`].
///
/// The result and all effect ids depend only on the program, its [`Host`] and the order of the outcomes, not on how
/// outcomes are grouped into steps. So a run is rebuilt by feeding a fresh one the outcomes of the first, in order.
pub struct Run {
    vm: Vm,
    state: State,
}

enum State {
    Fresh,
    Running,
    /// The program is done; its value, at the bottom of the stack, and open effects are waited for.
    Finishing,
    Over(Step),
}

impl Program {
    /// A run that has not done anything yet.
    pub fn start(&self, host: Host) -> Run {
        Run { vm: Vm::new(self, host), state: State::Fresh }
    }
}

impl Run {
    /// Takes outcomes and runs until the next one is needed. The first step usually has none.
    ///
    /// An outcome for an effect that was never asked for, or a second one, fails the run with code `unknown_effect`.
    pub fn step(&mut self, outcomes: Vec<(EffectId, Outcome)>) -> Step {
        if let State::Over(step) = &self.state {
            return step.clone();
        }
        if self.vm.interrupt.load(Ordering::Relaxed) {
            return self.over(Step::Failed(self.vm.fault(&interrupted())));
        }
        if let State::Fresh = self.state {
            self.state = State::Running;
            if let Err(raise) = self.vm.begin() {
                return self.over(Step::Failed(self.vm.fault(&raise)));
            }
            self.advance();
        }
        // One at a time, each as far as it goes: so the grouping of outcomes cannot matter.
        for (id, outcome) in outcomes {
            if let Err(raise) = self.vm.deliver(id, outcome) {
                return self.over(Step::Failed(self.vm.fault(&raise)));
            }
            self.advance();
        }
        if let State::Over(step) = &self.state {
            return step.clone();
        }
        let outstanding = &self.vm.outstanding;
        let wanted = |effect: &Effect| match outstanding.get(&effect.id) {
            Some(asked) => {
                asked.slot.hand_out();
                true
            }
            None => false,
        };
        let effects = self.vm.queue.drain(..).filter(wanted).collect();
        Step::Need { effects, cancelled: std::mem::take(&mut self.vm.cancelled) }
    }

    /// The same run under other rules for combining confidences. Before the first step only: a journal does not
    /// remember rules, so whoever rebuilds the run gives them again.
    pub fn with_rules(mut self, rules: Rules) -> Run {
        self.vm.rules = rules;
        self
    }

    /// What the program has printed so far, line by line.
    pub fn output(&self) -> &[String] {
        &self.vm.output
    }

    pub fn interrupt(&self) -> Interrupt {
        Interrupt(Arc::clone(&self.vm.interrupt))
    }

    /// Effects asked for and not answered.
    pub fn open_effects(&self) -> usize {
        self.vm.outstanding.len()
    }

    fn over(&mut self, step: Step) -> Step {
        self.state = State::Over(step.clone());
        step
    }

    fn advance(&mut self) {
        while !matches!(self.state, State::Over(_)) && self.vm.schedule() {
            let step = match self.state {
                State::Finishing => match self.vm.finish() {
                    // It came while a built-in function was at work.
                    Ok(Some(_)) if self.vm.interrupt.load(Ordering::Relaxed) => {
                        Step::Failed(self.vm.fault(&interrupted()))
                    }
                    Ok(Some(value)) => Step::Done(value),
                    Ok(None) => continue,
                    Err(trap) => match self.vm.trapped(trap) {
                        Ok(()) => continue,
                        Err(fault) => Step::Failed(*fault),
                    },
                },
                _ => match self.vm.exec() {
                    Ok(value) if self.vm.is_branch() => {
                        self.vm.report(News::Returned(value));
                        continue;
                    }
                    Ok(value) => {
                        self.vm.fiber.stack.clear();
                        self.vm.fiber.stack.push(value);
                        self.vm.go_on();
                        self.state = State::Finishing;
                        continue;
                    }
                    Err(trap) => match self.vm.trapped(trap) {
                        Ok(()) => continue,
                        Err(fault) => Step::Failed(*fault),
                    },
                },
            };
            self.state = State::Over(step);
        }
    }
}

pub(super) fn interrupted() -> Box<Raise> {
    Raise::new("interrupted", "the run was interrupted")
}

impl Vm {
    fn new(program: &Program, host: Host) -> Vm {
        let inner = Arc::clone(&program.0);
        let mut vm = Vm {
            fiber: Fiber::main(),
            parked: HashMap::new(),
            ready: VecDeque::from([0]),
            next_fiber: 1,
            parked_stack: 0,
            spare: Vec::new(),
            globals: Vec::new(),
            cells: Vec::new(),
            free_cells: Vec::new(),
            hints: vec![0; inner.code.names.len()],
            modules: inner
                .code
                .mains
                .iter()
                .map(|_| Module { state: ModuleState::Fresh, exports: Object::new() })
                .collect(),
            agents: host.agents,
            task: Val::str(host.task.unwrap_or_default()),
            data: host.data.0,
            made: Vec::new(),
            next_effect: 1,
            outstanding: HashMap::new(),
            queue: Vec::new(),
            held: HashMap::new(),
            cancelled: Vec::new(),
            forgotten: HashSet::new(),
            insist: Vec::new(),
            limits: host.limits,
            rules: Rules::default(),
            interrupt: Arc::new(AtomicBool::new(false)),
            fuel: 0,
            steps_left: host.limits.steps,
            allocated: 0,
            next_collect: host.limits.memory,
            output: Vec::new(),
            output_bytes: 0,
            program: inner,
        };
        let given: HashMap<String, Value> = host.globals.into_iter().collect();
        if let Some(input) = given.get("input") {
            vm.data = input.0.clone();
        }
        let program = Arc::clone(&vm.program);
        let globals = &program.code.globals;
        vm.globals = globals
            .iter()
            .map(|global| match global.start {
                Start::Unset => Val::Unset,
                Start::Uninit => Val::Uninit,
                Start::Named => vm.named(&global.name, &given),
            })
            .collect();
        let main = &program.code.protos[program.code.mains[0] as usize];
        vm.fiber.stack.resize(main.regs as usize, Val::Null);
        for host in &program.code.host_regs {
            vm.fiber.stack[host.reg as usize] = vm.named(&host.name, &given);
        }
        vm
    }

    fn named(&self, name: &str, given: &HashMap<String, Value>) -> Val {
        if let Some(value) = given.get(name) {
            return value.0.clone();
        }
        match name {
            "input" => self.data.clone(),
            "agents" | "agentList" => agents::list(&self.agents),
            "agentCount" => Val::Num(self.agents.len() as f64),
            "agentResults" => Val::Lazy(Lazy::AgentResults),
            "successfulResults" => Val::Lazy(Lazy::SuccessfulResults),
            _ => builtins::global(name, self.program.profile).unwrap_or(Val::Unset),
        }
    }

    fn begin(&mut self) -> Raised<()> {
        let deep = |v: &Val| v.meta().depth > MAX_NESTING;
        if deep(&self.data) || self.globals.iter().chain(&self.fiber.stack).any(deep) {
            return Err(Raise::new(
                "limit_depth",
                format!("a host value nests more than {MAX_NESTING} levels deep"),
            ));
        }
        self.modules[0].state = ModuleState::Running;
        let ret = Ret { dst: 0, wrap: Wrap::None };
        let kind = FrameKind::Code { proto: self.program.code.mains[0], pc: 0, base: 0 };
        self.fiber.frames.push(Frame { floor: 0, ret, kind });
        Ok(())
    }

    /// Handles what stopped a fiber: it waits, or there is a handler, or it is a branch that failed, or the run fails.
    fn trapped(&mut self, trap: Trap) -> Result<(), Box<Fault>> {
        let thrown = match trap {
            Trap::Wait(slots) => {
                self.wait_for(slots);
                return Ok(());
            }
            Trap::Yield => return Ok(()),
            Trap::Raise(mut raise) => {
                // It may quote anything. If the steps do not suffice, the next look at them says so.
                let _ = self.spend(raise.message.len() / 64);
                if raise.message.len() > MAX_MESSAGE {
                    raise.message.truncate(raise.message.floor_char_boundary(MAX_MESSAGE));
                    raise.message.push('…');
                }
                let fault = self.fault(&raise);
                Arc::new(Thrown { raise: *raise, fault })
            }
            Trap::Rethrow(thrown) => thrown,
        };
        if thrown.raise.catchable() {
            if self.unwind(&thrown) {
                self.go_on();
                return Ok(());
            }
            if self.is_branch() {
                self.report(News::Threw(thrown));
                return Ok(());
            }
        }
        Err(Box::new(thrown.fault.clone()))
    }

    fn unwind(&mut self, thrown: &Arc<Thrown>) -> bool {
        let Some(Handler { frame, target, reg, .. }) = self.fiber.handlers.pop() else { return false };
        self.fiber.frames.truncate(frame as usize + 1);
        let FrameKind::Code { proto, pc, base } = &mut self.fiber.frames[frame as usize].kind else {
            unreachable!("only code has handlers")
        };
        *pc = target;
        let window = *base as usize;
        let regs = self.program.code.protos[*proto as usize].regs as usize;
        self.fiber.stack.truncate(window + regs);
        self.fiber.stack[window + reg as usize] = Val::Error(Arc::clone(thrown));
        true
    }

    /// Where the machine is.
    pub(crate) fn span(&self) -> Span {
        self.spans().next().unwrap_or_default()
    }

    /// The spans of the calls in progress, innermost first.
    fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.lineage().flat_map(|fiber| fiber.frames.iter().rev()).filter_map(|frame| match frame.kind {
            FrameKind::Code { proto, pc, .. } => {
                let proto = &self.program.code.protos[proto as usize];
                let (start, end) = *proto.spans.get((pc as usize).saturating_sub(1))?;
                Some(Span { file: proto.file, start, end })
            }
            FrameKind::Task(_) => None,
        })
    }

    pub(super) fn fault(&self, raise: &Raise) -> Fault {
        let files = &self.program.files;
        let mut spans = self.spans();
        let span = spans.next().unwrap_or_default();
        let mut fault = Diagnostic::new(raise.code, Kind::Runtime, raise.message.clone(), span, files);
        fault.hint.clone_from(&raise.hint);
        let mut last = span;
        for caller in spans {
            // A recursion is told once.
            if caller != last {
                fault = fault.related(caller, "called from here", files);
                last = caller;
            }
            if fault.related.len() == MAX_CALLERS {
                break;
            }
        }
        fault
    }

    fn finish(&mut self) -> Ran<Option<Value>> {
        let (held, confidence) = super::ops::awaited(&self.fiber.stack[0])?;
        self.fiber.stack[0] = self.force(&held)?.maybe_sure(confidence);
        self.settle_at(0)?;
        if !self.outstanding.is_empty() {
            self.wait_for_any();
            return Ok(None);
        }
        if let Some(raise) = self.insist.iter().find_map(|s| s.unseen_failure()) {
            return Err(Trap::Raise(Box::new(raise.clone())));
        }
        if self.fiber.stack[0].meta().weight > MAX_WEIGHT {
            return Err(Raise::new("limit_memory", "the result is too large").into());
        }
        Ok(self.fiber.stack.pop().map(Value))
    }
}
