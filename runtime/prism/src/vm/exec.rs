//! The loop that runs instructions. Numbers and plain data take the short way here; everything else goes through the
//! slower functions of the other modules.

use super::rare::After;
use super::{Flow, Frame, FrameKind, Ran, Ret, Trap, Vm, Wrap};
use crate::ast::BinOp;
use crate::compile::{Capture, Op, Proto};
use crate::diagnostic::Raise;
use crate::value::{Body, Object, Val};
use std::sync::Arc;

impl Vm {
    /// Runs until the program ends or something must be waited for or handled.
    pub(super) fn exec(&mut self) -> Ran<Val> {
        let program = Arc::clone(&self.program);
        let protos = &program.code.protos[..];
        let names = &program.code.names[..];
        let consts = &program.code.consts[..];
        'frame: loop {
            let at = self.fiber.frames.len() - 1;
            let FrameKind::Code { proto, pc, base } = self.fiber.frames[at].kind else {
                match self.drive()? {
                    Some(value) => return Ok(value),
                    None => continue 'frame,
                }
            };
            let proto: &Proto = &protos[proto as usize];
            let code = &proto.code[..];
            let base = base as usize;
            let mut pc = pc as usize;

            macro_rules! park {
                ($pc:expr) => {
                    if let FrameKind::Code { pc: saved, .. } = &mut self.fiber.frames[at].kind {
                        *saved = $pc as u32;
                    }
                };
            }
            // On an error, remember where; an instruction that waits runs again.
            macro_rules! tri {
                ($result:expr) => {
                    match $result {
                        Ok(value) => value,
                        Err(error) => {
                            let trap = Trap::from(error);
                            park!(if matches!(trap, Trap::Wait(_)) { pc - 1 } else { pc });
                            return Err(trap);
                        }
                    }
                };
            }
            macro_rules! at {
                ($reg:expr) => {
                    base + $reg as usize
                };
            }
            macro_rules! get {
                ($reg:expr) => {
                    self.fiber.stack[base + $reg as usize]
                };
            }
            macro_rules! arithmetic {
                ($op:expr, $dst:expr, $a:expr, $b:expr, |$x:ident, $y:ident| $value:expr) => {
                    if let (Val::Num($x), Val::Num($y)) = (&get!($a), &get!($b)) {
                        get!($dst) = Val::Num($value);
                    } else {
                        tri!(self.binary_at($op, at!($dst), at!($a), at!($b)));
                    }
                };
            }
            // Comparisons run the jump that follows them, or skip it.
            macro_rules! branch {
                ($taken:expr) => {
                    if $taken {
                        let Op::Jump { to } = code[pc] else { unreachable!("a test is followed by a jump") };
                        pc = to as usize;
                    } else {
                        pc += 1;
                    }
                };
            }
            // A call may have pushed a frame; its own instruction pointer was saved before.
            macro_rules! called {
                ($flow:expr, $dst:expr, $first:expr, $n:expr) => {
                    match tri!($flow) {
                        Flow::Frame => continue 'frame,
                        Flow::Value(value) => {
                            for used in $first..$first + $n as usize {
                                self.fiber.stack[used] = Val::Null;
                            }
                            get!($dst) = value;
                        }
                    }
                };
            }

            loop {
                let op = code[pc];
                pc += 1;
                match op {
                    Op::Const { dst, k } => get!(dst) = consts[k as usize].clone(),
                    Op::Null { dst } => get!(dst) = Val::Null,
                    Op::Bool { dst, value } => get!(dst) = Val::Bool(value),
                    Op::Int { dst, value } => get!(dst) = Val::Num(f64::from(value)),
                    Op::Move { dst, src } => get!(dst) = get!(src).clone(),
                    Op::Take { dst, src } => get!(dst) = std::mem::replace(&mut get!(src), Val::Null),
                    Op::Check { reg, name } => {
                        if let Val::Unset | Val::Uninit | Val::Lazy(_) = get!(reg) {
                            let value = get!(reg).clone();
                            get!(reg) = tri!(self.readable(&value, &names[name as usize].text));
                        }
                    }
                    Op::GetGlobal { raw, dst, g } => {
                        let value = &self.globals[g as usize];
                        match value {
                            Val::Unset | Val::Uninit | Val::Lazy(_) if !raw => {
                                let value = value.clone();
                                let value =
                                    tri!(self.readable(&value, &program.code.globals[g as usize].name));
                                get!(dst) = value;
                            }
                            value => get!(dst) = value.clone(),
                        }
                    }
                    Op::SetGlobal { checked, src, g } => {
                        if checked {
                            let name = &program.code.globals[g as usize].name;
                            tri!(writable(&self.globals[g as usize], name));
                        }
                        self.globals[g as usize] = std::mem::replace(&mut get!(src), Val::Null);
                    }
                    Op::GetUp { dst, i } => get!(dst) = captured(&self.fiber.stack[base - 1], i).clone(),
                    Op::GetUpCell { raw, dst, i } => {
                        let cell = cell_of(captured(&self.fiber.stack[base - 1], i));
                        let value = self.cells[cell].clone();
                        get!(dst) =
                            match value {
                                Val::Unset | Val::Uninit if !raw => {
                                    tri!(self.readable(
                                        &value,
                                        &names[proto.capture_names[i as usize] as usize].text
                                    ))
                                }
                                value => value,
                            };
                    }
                    Op::SetUpCell { checked, src, i } => {
                        let cell = cell_of(captured(&self.fiber.stack[base - 1], i));
                        if checked {
                            let name = &names[proto.capture_names[i as usize] as usize].text;
                            tri!(writable(&self.cells[cell], name));
                        }
                        self.cells[cell] = std::mem::replace(&mut get!(src), Val::Null);
                    }
                    Op::GetCell { raw, dst, cell } => {
                        let value = self.cells[cell_of(&get!(cell))].clone();
                        get!(dst) = match value {
                            Val::Unset | Val::Uninit if !raw => {
                                tri!(self.readable(&value, cell_name(proto, names, cell)))
                            }
                            value => value,
                        };
                    }
                    Op::SetCell { checked, src, cell } => {
                        let i = cell_of(&get!(cell));
                        if checked {
                            tri!(writable(&self.cells[i], cell_name(proto, names, cell)));
                        }
                        self.cells[i] = std::mem::replace(&mut get!(src), Val::Null);
                    }
                    Op::Release { place, i, reg, n } => self.release(place, i, base, at!(reg), n as usize),
                    Op::Closure { dst, proto } => {
                        let proto = &protos[proto as usize];
                        let value = match &proto.shared {
                            Some(shared) => shared.clone(),
                            None => {
                                tri!(self.charge(96 + 16 * proto.captures.len() as u64));
                                let captured = proto.captures.iter().map(|c| match c {
                                    Capture::Reg(reg) => get!(*reg).clone(),
                                    Capture::Up(i) => captured(&self.fiber.stack[base - 1], *i).clone(),
                                });
                                let captured = captured.collect();
                                tri!(Val::func(Body::Closure { info: Arc::clone(&proto.info), captured }))
                            }
                        };
                        get!(dst) = value;
                    }

                    Op::Add { dst, a, b } => arithmetic!(BinOp::Add, dst, a, b, |x, y| x + y),
                    Op::Sub { dst, a, b } => arithmetic!(BinOp::Sub, dst, a, b, |x, y| x - y),
                    Op::Mul { dst, a, b } => arithmetic!(BinOp::Mul, dst, a, b, |x, y| x * y),
                    Op::Div { dst, a, b } => match (&get!(a), &get!(b)) {
                        (Val::Num(x), Val::Num(y)) if *y != 0.0 => get!(dst) = Val::Num(x / y),
                        _ => tri!(self.binary_at(BinOp::Div, at!(dst), at!(a), at!(b))),
                    },
                    Op::Mod { dst, a, b } => match (&get!(a), &get!(b)) {
                        (Val::Num(x), Val::Num(y)) if *y != 0.0 => get!(dst) = Val::Num(remainder(*x, *y)),
                        _ => tri!(self.binary_at(BinOp::Mod, at!(dst), at!(a), at!(b))),
                    },
                    Op::AddInt { dst, a, value } => {
                        if let Val::Num(x) = get!(a) {
                            get!(dst) = Val::Num(x + f64::from(value));
                        } else {
                            let (op, value) = match value {
                                0.. => (BinOp::Add, value),
                                _ => (BinOp::Sub, -value),
                            };
                            tri!(self.binary_with(op, at!(dst), at!(a), Val::Num(f64::from(value))));
                        }
                    }
                    Op::ModInt { dst, a, value } => {
                        if let Val::Num(x) = get!(a) {
                            get!(dst) = Val::Num(remainder(x, f64::from(value)));
                        } else {
                            tri!(self.binary_with(BinOp::Mod, at!(dst), at!(a), Val::Num(f64::from(value))));
                        }
                    }
                    Op::AddAll { dst, first, n } => tri!(self.add_all(at!(dst), at!(first), n as usize)),
                    Op::Bin { op, dst, a, b } => tri!(self.binary_at(op, at!(dst), at!(a), at!(b))),
                    Op::Un { op, dst, src } => tri!(self.unary_at(op, at!(dst), at!(src))),
                    Op::Attach { dst, value, confidence } => {
                        tri!(self.attach_at(at!(dst), at!(value), at!(confidence)));
                    }
                    Op::Text { dst, first, n } => tri!(self.text_at(at!(dst), at!(first), n as usize)),

                    Op::Jump { to } => pc = to as usize,
                    Op::Loop { to } => {
                        if self.fuel == 0 {
                            tri!(self.refuel());
                        }
                        self.fuel -= 1;
                        pc = to as usize;
                    }
                    Op::JumpIf { sense, reg, to } => {
                        let truth = match &get!(reg) {
                            Val::Bool(b) => *b,
                            Val::Pending(_) => {
                                tri!(self.force_at(at!(reg)));
                                get!(reg).truthy()
                            }
                            value => value.truthy(),
                        };
                        if truth == sense {
                            pc = to as usize;
                        }
                    }
                    Op::JumpIfSet { reg, to } => {
                        if !matches!(get!(reg), Val::Unset | Val::Uninit) {
                            pc = to as usize;
                        }
                    }
                    Op::TestLt { sense, a, b } => {
                        let is = match (&get!(a), &get!(b)) {
                            (Val::Num(x), Val::Num(y)) => x < y,
                            _ => tri!(self.truth_of(BinOp::Lt, at!(a), at!(b))),
                        };
                        branch!(is == sense);
                    }
                    Op::TestLe { sense, a, b } => {
                        let is = match (&get!(a), &get!(b)) {
                            (Val::Num(x), Val::Num(y)) => x <= y,
                            _ => tri!(self.truth_of(BinOp::Le, at!(a), at!(b))),
                        };
                        branch!(is == sense);
                    }
                    Op::TestEq { sense, a, b } => {
                        let is = match (&get!(a), &get!(b)) {
                            (Val::Num(x), Val::Num(y)) => x == y,
                            (Val::Str(x), Val::Str(y)) if x.len().min(y.len()) < SHORT => x == y,
                            _ => tri!(self.truth_of(BinOp::Eq, at!(a), at!(b))),
                        };
                        branch!(is == sense);
                    }
                    Op::TestLtInt { sense, a, value } => {
                        let is = match get!(a) {
                            Val::Num(x) => x < f64::from(value),
                            _ => tri!(self.truth_with(BinOp::Lt, at!(a), f64::from(value))),
                        };
                        branch!(is == sense);
                    }
                    Op::TestGtInt { sense, a, value } => {
                        let is = match get!(a) {
                            Val::Num(x) => x > f64::from(value),
                            _ => tri!(self.truth_with(BinOp::Gt, at!(a), f64::from(value))),
                        };
                        branch!(is == sense);
                    }
                    Op::TestEqInt { sense, a, value } => {
                        let is = match get!(a) {
                            Val::Num(x) => x == f64::from(value),
                            _ => tri!(self.truth_with(BinOp::Eq, at!(a), f64::from(value))),
                        };
                        branch!(is == sense);
                    }

                    Op::Call { n, dst, base: callee } => {
                        park!(pc);
                        let ret = Ret { dst: at!(dst) as u32, wrap: Wrap::None };
                        called!(self.call_at(at!(callee), n as usize, ret, false), dst, at!(callee), 1 + n);
                    }
                    Op::CallStatic { dst, first, proto } => {
                        park!(pc);
                        if self.fuel == 0 {
                            tri!(self.refuel());
                        }
                        self.fuel -= 1;
                        tri!(self.check_depth());
                        let callee = &protos[proto as usize];
                        let floor = self.fiber.stack.len();
                        for arg in at!(first)..at!(first) + callee.info.params as usize {
                            let arg = std::mem::replace(&mut self.fiber.stack[arg], Val::Null);
                            self.fiber.stack.push(arg);
                        }
                        self.fiber.stack.resize(floor + callee.regs as usize, Val::Null);
                        let ret = Ret { dst: at!(dst) as u32, wrap: Wrap::None };
                        let kind = FrameKind::Code { proto: u32::from(proto), pc: 0, base: floor as u32 };
                        self.fiber.frames.push(Frame { floor: floor as u32, ret, kind });
                        continue 'frame;
                    }
                    Op::CallSpread { dst, base: callee } => {
                        park!(pc);
                        let ret = Ret { dst: at!(dst) as u32, wrap: Wrap::None };
                        let flow = self.call_spread(at!(callee), ret);
                        called!(flow, dst, at!(callee), 2);
                    }
                    Op::CallMethod { n, dst, base: receiver, name } => {
                        park!(pc);
                        let ret = Ret { dst: at!(dst) as u32, wrap: Wrap::None };
                        let flow = self.call_method(at!(receiver), n as usize, name, ret);
                        called!(flow, dst, at!(receiver), 1 + n);
                    }
                    Op::Return { src } => {
                        if self.fiber.frames[at].ret.wrap != Wrap::None {
                            tri!(self.force_at(at!(src)));
                        }
                        let value = std::mem::replace(&mut get!(src), Val::Null);
                        let Some(frame) = self.fiber.frames.pop() else {
                            unreachable!("the frame that runs")
                        };
                        self.fiber.stack.truncate(frame.floor as usize);
                        let value = match frame.ret.wrap {
                            Wrap::None => value,
                            wrap => wrap.apply(value, &self.rules),
                        };
                        match self.fiber.frames.last_mut() {
                            Some(Frame { kind: FrameKind::Code { .. }, .. }) => {
                                self.fiber.stack[frame.ret.dst as usize] = value;
                            }
                            Some(Frame { kind: FrameKind::Task(task), .. }) => {
                                task.as_mut().expect("no task is at work").value = Some(value);
                            }
                            None => return Ok(value),
                        }
                        continue 'frame;
                    }

                    Op::Get { dst, obj, name } => {
                        if let Val::Obj(object) = &get!(obj)
                            && let Some(value) =
                                object.get_hinted(&names[name as usize].text, &mut self.hints[name as usize])
                        {
                            get!(dst) = value.clone();
                        } else {
                            let value = tri!(self.member_at(at!(obj), name));
                            get!(dst) = value;
                        }
                    }
                    Op::GetTake { dst, obj, name } => {
                        if let Val::Obj(object) = &get!(obj)
                            && let Some(value) =
                                object.get_hinted(&names[name as usize].text, &mut self.hints[name as usize])
                        {
                            let value = value.clone();
                            get!(obj) = Val::Null;
                            get!(dst) = value;
                        } else {
                            let value = tri!(self.member_at(at!(obj), name));
                            get!(obj) = Val::Null;
                            get!(dst) = value;
                        }
                    }
                    Op::GetOptional { dst, obj, name } => {
                        tri!(self.force_at(at!(obj)));
                        get!(dst) = tri!(self.optional_member(at!(obj), name));
                    }
                    Op::GetSure { dst, obj, name } => {
                        tri!(self.force_at(at!(obj)));
                        get!(dst) = tri!(self.sure_member(at!(obj), name));
                    }
                    Op::Index { dst, obj, index } => {
                        if let (Val::Arr(array), Val::Num(i)) = (&get!(obj), &get!(index))
                            && *i >= 0.0
                            && let Some(value) = array.items().get(*i as usize)
                        {
                            get!(dst) = value.clone();
                        } else {
                            get!(dst) = tri!(self.index_at(at!(obj), at!(index)));
                        }
                    }

                    Op::NewArray { dst, first, n } => {
                        let items = self.take_all(at!(first), n as usize);
                        tri!(self.charge(48 + 16 * u64::from(n)));
                        get!(dst) = tri!(Val::array(items));
                    }
                    Op::PushIn { skip, arr, first, n } => {
                        if let Val::Arr(_) = get!(arr) {
                            tri!(self.push_at(at!(arr), at!(first), n as usize));
                            pc += skip as usize;
                        } else if let Val::Pending(_) = get!(arr) {
                            tri!(self.force_at(at!(arr)));
                            pc -= 1;
                        }
                    }
                    Op::NewObject { dst, first, shape } => {
                        let shape = &program.code.shapes[shape as usize];
                        let n = shape.keys().len();
                        let values = self.take_all(at!(first), n);
                        tri!(self.charge(72 + 16 * n as u64));
                        get!(dst) = tri!(Val::object(Object::with_shape(Arc::clone(shape), values)));
                    }
                    Op::IterNext { base: iter, dst } => {
                        let (Val::Arr(array), Val::Num(i)) = (&get!(iter), &get!(iter + 1)) else {
                            unreachable!("prepared by IterStart")
                        };
                        let i = *i;
                        match array.items().get(i as usize) {
                            Some(value) => {
                                let value = value.clone();
                                get!(dst) = value;
                                get!(iter + 1) = Val::Num(i + 1.0);
                                pc += 1;
                            }
                            None => {
                                get!(iter) = Val::Null;
                                branch!(true);
                            }
                        }
                    }
                    Op::IterIndex { base: iter, dst } => {
                        let Val::Num(i) = get!(iter + 1) else { unreachable!("prepared by IterStart") };
                        get!(dst) = Val::Num(i - 1.0);
                    }
                    op => {
                        park!(pc);
                        match tri!(self.rare(op, base, at)) {
                            After::Next => {}
                            After::Branch(taken) => branch!(taken),
                            After::Skip => pc += 1,
                            After::Frame => continue 'frame,
                        }
                    }
                }
            }
        }
    }

    pub(super) fn take_all(&mut self, first: usize, n: usize) -> Vec<Val> {
        self.fiber.stack[first..first + n].iter_mut().map(|v| std::mem::replace(v, Val::Null)).collect()
    }
}

/// Comparing texts up to this size costs no more than an instruction.
const SHORT: usize = 256;

/// Whole numbers are common, and their remainder is much cheaper than the general one.
fn remainder(x: f64, y: f64) -> f64 {
    const EXACT: f64 = 4_503_599_627_370_496.0;
    let whole = |v: f64| (0.0..EXACT).contains(&v) && v.trunc() == v;
    if whole(x) && whole(y) && y > 0.0 { ((x as u64) % (y as u64)) as f64 } else { x % y }
}

fn captured(callee: &Val, i: u16) -> &Val {
    match callee {
        Val::Func(f) => match &f.body {
            Body::Closure { captured, .. } => &captured[i as usize],
            _ => unreachable!("only closures have frames"),
        },
        _ => unreachable!("a closure lies below its frame"),
    }
}

fn cell_of(value: &Val) -> usize {
    match value {
        Val::Cell(i) => *i as usize,
        _ => unreachable!("the compiler put a cell there"),
    }
}

fn cell_name<'a>(proto: &Proto, names: &'a [crate::compile::Name], cell: u16) -> &'a Arc<str> {
    let name = proto.cell_names.iter().find(|(reg, _)| *reg == cell).map_or(0, |(_, name)| *name);
    &names[name as usize].text
}

fn writable(value: &Val, name: &str) -> Result<(), Box<Raise>> {
    match value {
        Val::Unset => Err(super::data::undefined(name)),
        Val::Uninit => Err(super::data::uninitialized(name)),
        _ => Ok(()),
    }
}
