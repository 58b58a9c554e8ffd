//! Calling things: closures get a frame, built-ins run at once or become a task.

use super::parallel::Parallel;
use super::tasks::{After, Task, Then};
use super::{Flow, Frame, FrameKind, Ran, Ret, Vm, Wrap};
use crate::builtins::{self, Native};
use crate::diagnostic::{Raise, Raised};
use crate::value::{Array, Body, FnInfo, Val};
use std::sync::Arc;

impl Vm {
    pub(super) fn check_depth(&self) -> Raised<()> {
        if self.depth() > self.limits.depth as usize {
            let message = format!("calls nest more than {} deep", self.limits.depth);
            return Err(Raise::new("limit_depth", message));
        }
        // Windows of functions with very many variables.
        if 16 * self.stacked() as u64 > self.limits.memory {
            return Err(self.out_of_memory());
        }
        Ok(())
    }

    /// Calls what lies at `at` with the `n` arguments above it. `in_place`: the arguments are on top of the stack and
    /// may become the window of the callee.
    pub(super) fn call_at(&mut self, at: usize, n: usize, ret: Ret, in_place: bool) -> Ran<Flow> {
        if let Val::Func(f) = &self.fiber.stack[at]
            && let Body::Closure { info, .. } = &f.body
        {
            let info = Arc::clone(info);
            return self.enter(&info, at, n, ret, in_place);
        }
        self.force_at(at)?;
        let callee = self.fiber.stack[at].clone();
        self.call_value(callee, at, n, ret, in_place)
    }

    /// Calls `callee` with the `n` arguments above `at`, where a closure is put.
    pub(super) fn call_value(
        &mut self,
        callee: Val,
        at: usize,
        n: usize,
        mut ret: Ret,
        in_place: bool,
    ) -> Ran<Flow> {
        let mut callee = callee;
        loop {
            let inner = match &callee {
                Val::Native(native) => {
                    let native = *native;
                    return self.native(native, at + 1, n, ret);
                }
                Val::Sure(sure) => {
                    ret.wrap = match ret.wrap {
                        Wrap::None => Wrap::With(sure.confidence),
                        wrap => wrap,
                    };
                    sure.value.clone()
                }
                Val::Pending(_) => self.force(&callee)?,
                Val::Func(f) => match &f.body {
                    Body::Closure { info, .. } => {
                        let info = Arc::clone(info);
                        self.fiber.stack[at] = callee;
                        return self.enter(&info, at, n, ret, in_place);
                    }
                    Body::Partial { native, given } => return self.partial(*native, given, at + 1, n, ret),
                    Body::Graded { f, confidence } => {
                        ret.wrap = match ret.wrap {
                            Wrap::None => Wrap::Set(*confidence),
                            Wrap::With(c) => Wrap::Set(self.rules.function_call.combine(c, *confidence)),
                            Wrap::Set(c) => Wrap::Set(c),
                        };
                        f.clone()
                    }
                },
                other => {
                    let message = format!("only a function can be called, not {}", other.described());
                    return Err(Raise::new("not_callable", message).into());
                }
            };
            callee = inner;
        }
    }

    fn enter(&mut self, info: &FnInfo, at: usize, n: usize, ret: Ret, in_place: bool) -> Ran<Flow> {
        let params = info.params as usize;
        if n != params && (n < params || !info.rest) {
            return Err(
                wrong_arity(&info.name, (params, if info.rest { usize::MAX } else { params }), n).into()
            );
        }
        self.check_depth()?;
        if in_place {
            // A task is at work outside its frame: it looks at the limits itself, when everything is in its place.
            self.fuel = self.fuel.saturating_sub(1);
        } else {
            if self.fuel == 0 {
                self.refuel()?;
            }
            self.fuel -= 1;
        }
        let at = match in_place {
            true => at,
            false => {
                let floor = self.fiber.stack.len();
                for i in at..=at + n {
                    let value = std::mem::replace(&mut self.fiber.stack[i], Val::Null);
                    self.fiber.stack.push(value);
                }
                floor
            }
        };
        let base = at + 1;
        if info.rest {
            let rest = self.fiber.stack.split_off(base + params);
            self.charge(48 + 16 * rest.len() as u64)?;
            self.fiber.stack.push(Val::array(rest)?);
        }
        let regs = self.program.code.protos[info.proto as usize].regs as usize;
        self.fiber.stack.resize(base + regs, Val::Null);
        let kind = FrameKind::Code { proto: info.proto, pc: 0, base: base as u32 };
        // In place, the callee itself stays where its caller keeps it.
        let floor = if in_place { base } else { at };
        self.fiber.frames.push(Frame { floor: floor as u32, ret, kind });
        Ok(Flow::Frame)
    }

    pub(super) fn call_spread(&mut self, at: usize, ret: Ret) -> Ran<Flow> {
        self.force_at(at)?;
        let Val::Arr(args) = self.fiber.stack[at + 1].clone() else {
            unreachable!("arguments were collected")
        };
        self.charge(16 * args.items().len() as u64)?;
        self.spend(args.items().len() / 8)?;
        let floor = self.fiber.stack.len();
        self.fiber.stack.push(self.fiber.stack[at].clone());
        self.fiber.stack.extend(args.items().iter().cloned());
        let result = self.call_at(floor, args.items().len(), ret, true);
        match &result {
            // The callee's window lies above; the copies below it go when it returns.
            Ok(Flow::Frame) => {
                let frame = self.fiber.frames.last_mut().expect("a frame was pushed");
                frame.floor = floor as u32;
                if let FrameKind::Task(Some(task)) = &mut frame.kind {
                    task.rebase(&mut self.fiber.stack, floor);
                }
            }
            _ => self.fiber.stack.truncate(floor),
        }
        result
    }

    pub(super) fn call_method(&mut self, at: usize, n: usize, name: u16, ret: Ret) -> Ran<Flow> {
        self.force_at(at)?;
        let program = Arc::clone(&self.program);
        let known = &program.code.names[name as usize];
        let (receiver, confidence) = self.fiber.stack[at].peel();
        let method = match receiver {
            Val::Obj(object) => {
                if let Some(callee) = object.get(&known.text) {
                    let mut callee = callee.clone();
                    if let Some(c) = confidence {
                        callee = self.force(&callee)?;
                        let product = c * callee.certainty();
                        callee = callee.sure(product);
                    }
                    return self.call_value(callee, at, n, ret, false);
                }
                return Err(self.no_method(receiver, &known.text).into());
            }
            Val::Arr(_) => known.array,
            Val::Str(_) => known.string,
            other => return Err(self.missing(other, &known.text).into()),
        };
        let Some(native) = method else {
            if *known.text == *"length" {
                let message = "`length` is a number, not a function";
                return Err(Raise::new("not_callable", message).hint("leave out the `()`").into());
            }
            return Err(self.missing(receiver, &known.text).into());
        };
        let Some(c) = confidence else { return self.native(native, at, n + 1, ret) };
        // The method works on the plain value; its result is as sure as the receiver.
        let receiver = receiver.clone();
        let wrap = match ret.wrap {
            Wrap::None => Wrap::With(c),
            wrap => wrap,
        };
        self.partial(native, &[receiver], at + 1, n, Ret { wrap, ..ret })
    }

    fn no_method(&self, receiver: &Val, name: &str) -> Box<Raise> {
        let raise = self.missing(receiver, name);
        match self.program.profile {
            crate::Profile::Strict => raise,
            // Reading the property would give null.
            crate::Profile::Pattern => Box::new(Raise {
                code: "not_callable",
                message: format!("the object has no function `{name}`"),
                hint: raise.hint,
            }),
        }
    }

    /// A built-in with its first arguments given: they are put in front of the others, on top of the stack.
    fn partial(&mut self, native: Native, given: &[Val], first: usize, n: usize, ret: Ret) -> Ran<Flow> {
        let floor = self.fiber.stack.len();
        self.fiber.stack.extend(given.iter().cloned());
        for i in first..first + n {
            self.fiber.stack.push(self.fiber.stack[i].clone());
        }
        let result = self.native(native, floor, given.len() + n, ret);
        match &result {
            Ok(Flow::Frame) => {
                let frame = self.fiber.frames.last_mut().expect("a frame was pushed");
                if let FrameKind::Task(Some(task)) = &mut frame.kind {
                    frame.floor = floor as u32;
                    task.rebase(&mut self.fiber.stack, floor);
                }
            }
            _ => self.fiber.stack.truncate(floor),
        }
        result
    }

    /// Calls a built-in with the arguments at `at..at + n`.
    fn native(&mut self, native: Native, at: usize, n: usize, ret: Ret) -> Ran<Flow> {
        let (least, most) = native.arity();
        if n < least || n > most {
            return Err(wrong_native_arity(native, n).into());
        }
        self.spend(1)?;
        if native.lazy() {
            self.force_at_if(at, n)?;
        } else {
            for i in at..at + n {
                self.settle_at(i)?;
            }
        }
        let (callee, task) = match self.run_native(native, at, n)? {
            Started::Value(value) => match (ret.wrap, value) {
                (Wrap::None, value) => return Ok(Flow::Value(value)),
                (_, Val::Pending(slot)) => (Val::Null, Task::wait(slot, Then::Value)),
                (wrap, value) => return Ok(Flow::Value(wrap.apply(value, &self.rules))),
            },
            Started::Task(callee, task) => (callee, task),
        };
        self.check_depth()?;
        self.fiber.stack[at..at + n].fill(Val::Null);
        let floor = self.fiber.stack.len();
        self.fiber.stack.push(callee);
        self.fiber.frames.push(Frame {
            floor: floor as u32,
            ret,
            kind: FrameKind::Task(Some(Box::new(task))),
        });
        Ok(Flow::Frame)
    }

    /// Built-ins that take pending elements still need their first argument, the array itself.
    fn force_at_if(&mut self, at: usize, n: usize) -> Ran<()> {
        if n > 0 { self.force_at(at) } else { Ok(()) }
    }

    fn run_native(&mut self, native: Native, at: usize, n: usize) -> Ran<Started> {
        let args = &self.fiber.stack[at..at + n];
        let value = match native {
            Native::Map
            | Native::Filter
            | Native::Reduce
            | Native::ArrayMap
            | Native::ArrayFilter
            | Native::ArrayReduce
            | Native::ForEach
            | Native::Find
            | Native::Some
            | Native::Every => return Ok(walk(native, args)?),
            Native::Sort if n == 2 => {
                let items = array_arg(native, args, 0)?;
                let f = function_arg(native, args, 1)?;
                return Ok(Started::Task(f, Task::sort(items.items().to_vec())));
            }
            Native::GroupByOf if args[0].callable() => {
                let items = array_arg(native, args, 1)?;
                return Ok(Started::Task(args[0].clone(), Task::group(items)));
            }
            Native::Aggregate => match builtins::confidence::aggregate(args)? {
                (items, confidence, Some(combine)) => {
                    return Ok(Started::Task(combine, Task::once(vec![items], After::Grade(confidence))));
                }
                (items, confidence, None) => items.sure(confidence),
            },
            Native::Push => {
                let items = args[1..].to_vec();
                self.fiber.stack.push(self.fiber.stack[at].clone());
                self.fiber.stack[at] = Val::Null;
                let top = self.fiber.stack.len() - 1;
                let result = self.extend_at(top, items);
                let array = self.fiber.stack.pop().expect("pushed above");
                result?;
                array
            }
            Native::Print | Native::Log | Native::Warn | Native::Error | Native::Debug => {
                let line = builtins::lists::line(args, native == Native::Debug)?;
                self.print(line)?;
                Val::Null
            }
            Native::Llm
            | Native::StreamLlm
            | Native::StreamNext
            | Native::StreamCancel
            | Native::StreamResult
            | Native::Delay
            | Native::Sleep
            | Native::DebounceCall
            | Native::Deferred
            | Native::All
            | Native::Parallel
            | Native::Race
            | Native::ExecutePattern
            | Native::Now
            | Native::Random
            | Native::Analyze => {
                let args = args.to_vec();
                return self.effectful(native, &args);
            }
            _ => {
                let mut work = 0;
                for arg in args {
                    if native.deep() {
                        arg.check_weight()?;
                        work += arg.meta().weight as usize;
                    } else {
                        work += arg.plain().as_items().map_or(0, <[Val]>::len);
                    }
                }
                // What is about to be made, where that may be much more than what it is made of: counted before it is.
                let (steps, bytes) = match native {
                    Native::Sort | Native::SortByOf => (work * (1 + work.max(1).ilog2() as usize), 0),
                    Native::Split => {
                        let parts = builtins::lists::parts(args);
                        (work / 8 + parts, parts * 64)
                    }
                    Native::Concat => (work / 8, work * 16),
                    Native::GroupByOf => (work / 8, work * super::GROUPED as usize),
                    _ => (work / 8, 0),
                };
                self.spend(steps)?;
                self.charge(bytes as u64)?;
                let value = builtins::pure(native, &self.fiber.stack[at..at + n])?;
                self.charge(value.bytes().saturating_sub(bytes as u64))?;
                self.spend(value.as_items().map_or(0, <[Val]>::len) / 8)?;
                value
            }
        };
        Ok(Started::Value(value))
    }
}

pub(super) enum Started {
    Value(Val),
    /// The function that is called back, and the task that does it.
    Task(Val, Task),
}

/// Tasks that walk an array.
fn walk(native: Native, args: &[Val]) -> Raised<Started> {
    let items = array_arg(native, args, 0)?;
    let f = function_arg(native, args, 1)?;
    let confidence = args[0].confidence();
    let task = match native {
        // Each call on a fiber of its own.
        Native::Map | Native::ArrayMap if f.is_async() => {
            let map = Parallel::map(items.items(), f, confidence);
            return Ok(Started::Task(Val::Null, Task::parallel(map)));
        }
        Native::Map | Native::ArrayMap => Task::map(items, confidence),
        Native::Filter | Native::ArrayFilter => Task::filter(items, confidence),
        Native::Reduce | Native::ArrayReduce => {
            let indexed = f.arity() == Some((3, 3));
            if args.len() < 3 && items.items().is_empty() {
                let message = "`reduce` of an empty array needs an initial value";
                return Err(Raise::new("empty_reduce", message).hint("give one as the second argument"));
            }
            Task::reduce(items, args.get(2).cloned(), indexed, confidence)
        }
        Native::ForEach => Task::for_each(items, f.arity() == Some((2, 2))),
        Native::Find => Task::find(items),
        Native::Some => Task::some(items),
        _ => Task::every(items),
    };
    Ok(Started::Task(f, task))
}

pub(crate) fn array_arg(native: Native, args: &[Val], i: usize) -> Raised<Arc<Array>> {
    match args[i].plain() {
        Val::Arr(array) => Ok(Arc::clone(array)),
        other => Err(bad_argument(native, "an array", other)),
    }
}

pub(crate) fn function_arg(native: Native, args: &[Val], i: usize) -> Raised<Val> {
    // A pending value is found out about when it is called.
    if args[i].callable() || matches!(args[i], Val::Pending(_)) {
        return Ok(args[i].clone());
    }
    Err(bad_argument(native, "a function", &args[i]))
}

#[cold]
pub(crate) fn bad_argument(native: Native, wanted: &str, found: &Val) -> Box<Raise> {
    Raise::new("bad_argument", format!("`{}` needs {wanted}, not {}", native.name(), found.described()))
}

#[cold]
pub(crate) fn wrong_arity(name: &str, (least, most): (usize, usize), given: usize) -> Box<Raise> {
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    let takes = match (least, most) {
        (0, 0) => "no arguments".to_string(),
        (l, m) if l == m => format!("{l} argument{}", plural(l)),
        (l, usize::MAX) => format!("at least {l} argument{}", plural(l)),
        (l, m) => format!("{l} to {m} arguments"),
    };
    let given = if given == 0 { "none".to_string() } else { given.to_string() };
    let who = if name == "lambda" { "this function".to_string() } else { format!("`{name}`") };
    Raise::new("arity", format!("{who} takes {takes}, but got {given}"))
}

#[cold]
fn wrong_native_arity(native: Native, given: usize) -> Box<Raise> {
    // Receivers and arguments given before are not what the author counts.
    let hidden = builtins::hidden_args(native);
    let (least, most) = native.arity();
    let most = if most == usize::MAX { most } else { most.saturating_sub(hidden) };
    wrong_arity(native.name(), (least.saturating_sub(hidden), most), given.saturating_sub(hidden))
}
