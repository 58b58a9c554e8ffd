//! Variables, properties, arrays and objects: the ways that are longer than an instruction.

use super::{Frame, FrameKind, ModuleState, Ran, Ret, Vm, Wrap, ops};
use crate::Profile;
use crate::ast::{BinOp, UnOp};
use crate::builtins::{self, HOST_NAMES, Native, Owner};
use crate::compile::{Combine, Empty, Place};
use crate::diagnostic::{Raise, Raised, closest};
use crate::value::{Array, Body, Object, Val, display};
use std::sync::Arc;

#[cold]
pub(super) fn undefined(name: &str) -> Box<Raise> {
    Raise::new("undefined_variable", format!("there is no variable `{name}`"))
}

#[cold]
pub(super) fn uninitialized(name: &str) -> Box<Raise> {
    Raise::new("uninitialized", format!("`{name}` is used before its declaration has run"))
}

/// A threshold of a pattern. Its range is not limited.
pub(super) fn destructuring_threshold(v: &Val) -> Raised<()> {
    match v {
        Val::Num(_) => Ok(()),
        other => {
            let message = format!("a threshold is a plain number, not {}", ops::described(other));
            Err(Raise::new("threshold_type", message))
        }
    }
}

impl Vm {
    /// The value of a variable that may not exist, or not yet.
    #[cold]
    pub(super) fn readable(&mut self, value: &Val, name: &str) -> Ran<Val> {
        match value {
            Val::Unset => {
                let profile = self.program.profile;
                let code = &self.program.code;
                let globals = code.globals.iter().zip(&self.globals);
                let known = globals.filter(|(_, v)| !matches!(v, Val::Unset)).map(|(g, _)| &*g.name);
                let mut all: Vec<&str> = known.collect();
                builtins::global_names(profile).chain(HOST_NAMES).for_each(|n| all.push(n));
                let raise = undefined(name);
                Err(match (builtins::foreign(name), closest(name, all)) {
                    (Some(hint), _) => raise.hint(hint).into(),
                    (None, Some(near)) => raise.hint(format!("did you mean `{near}`?")).into(),
                    (None, None) => raise.into(),
                })
            }
            Val::Uninit => Err(uninitialized(name).into()),
            Val::Lazy(lazy) => self.make(*lazy),
            other => Ok(other.clone()),
        }
    }

    pub(super) fn new_cell(&mut self, value: Val) -> Raised<u32> {
        self.charge(16)?;
        match self.free_cells.pop() {
            Some(cell) => {
                self.cells[cell as usize] = value;
                Ok(cell)
            }
            None => {
                self.cells.push(value);
                Ok(self.cells.len() as u32 - 1)
            }
        }
    }

    /// Lets go of a variable that holds the very data in `reg`, so that the next instruction builds on it in place
    /// and then stores it back. Only if that instruction cannot fail, which would lose the variable.
    pub(super) fn release(&mut self, place: Place, i: u16, base: usize, reg: usize, n: usize) {
        if !self.stack[reg + 1..=reg + n].iter().all(Val::settled) {
            return;
        }
        let cell_at = |v: &Val| match v {
            Val::Cell(i) => *i as usize,
            _ => unreachable!("the compiler put a cell there"),
        };
        let variable = match place {
            Place::Global => &mut self.globals[i as usize],
            Place::Cell => {
                let cell = cell_at(&self.stack[base + i as usize]);
                &mut self.cells[cell]
            }
            Place::UpCell => {
                let Val::Func(f) = &self.stack[base - 1] else { return };
                let Body::Closure { captured, .. } = &f.body else { return };
                let cell = cell_at(&captured[i as usize]);
                &mut self.cells[cell]
            }
        };
        let same = match (&*variable, &self.stack[reg]) {
            (Val::Str(a), Val::Str(b)) => Arc::ptr_eq(a, b),
            (Val::Arr(a), Val::Arr(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if same {
            *variable = Val::Null;
        }
    }

    // Operators.

    pub(super) fn binary_at(&mut self, op: BinOp, dst: usize, a: usize, b: usize) -> Ran<()> {
        self.settle_at(a)?;
        self.settle_at(b)?;
        if op == BinOp::Add
            && dst == a
            && let Val::Str(_) = self.stack[a]
            && self.stack[b].confidence().is_none()
        {
            return self.append_text(a, b);
        }
        let value = ops::binary(op, &self.stack[a], &self.stack[b])?;
        if let Val::Str(s) = value.plain() {
            self.charge(s.len() as u64)?;
            self.spend(s.len() / 64)?;
        }
        self.stack[dst] = value;
        Ok(())
    }

    /// `a = a + b` where `a` is a text.
    fn append_text(&mut self, a: usize, b: usize) -> Ran<()> {
        self.stack[b].check_weight()?;
        let Val::Str(mut text) = std::mem::replace(&mut self.stack[a], Val::Null) else {
            unreachable!("checked by the caller")
        };
        let before = text.len();
        match Arc::get_mut(&mut text) {
            Some(own) => display(own, &self.stack[b]),
            None => {
                let mut copy = String::with_capacity(text.len() * 2);
                copy.push_str(&text);
                display(&mut copy, &self.stack[b]);
                self.charge(before as u64)?;
                self.spend(before / 64)?;
                text = Arc::new(copy);
            }
        }
        let grown = text.len() - before;
        self.stack[a] = Val::Str(text);
        self.charge(grown as u64)?;
        self.spend(grown / 64)?;
        Ok(())
    }

    pub(super) fn add_all(&mut self, dst: usize, first: usize, n: usize) -> Ran<()> {
        for at in std::iter::once(dst).chain(first..first + n) {
            self.settle_at(at)?;
        }
        if let Val::Str(_) = self.stack[dst]
            && self.stack[first..first + n].iter().all(|v| v.confidence().is_none())
        {
            return (first..first + n).try_for_each(|b| self.append_text(dst, b));
        }
        let mut sum = self.stack[dst].clone();
        for v in &self.stack[first..first + n] {
            sum = ops::binary(BinOp::Add, &sum, v)?;
        }
        if let Val::Str(s) = sum.plain() {
            self.charge(s.len() as u64)?;
        }
        self.stack[dst] = sum;
        Ok(())
    }

    pub(super) fn binary_with(&mut self, op: BinOp, dst: usize, a: usize, b: Val) -> Ran<()> {
        self.stack.push(b);
        let b = self.stack.len() - 1;
        let result = self.binary_at(op, dst, a, b);
        self.stack.truncate(b);
        result
    }

    pub(super) fn truth_of(&mut self, op: BinOp, a: usize, b: usize) -> Ran<bool> {
        self.settle_at(a)?;
        self.settle_at(b)?;
        let (a, b) = (&self.stack[a], &self.stack[b]);
        let weight = a.meta().weight.min(b.meta().weight);
        let truth = ops::binary(op, a, b)?.truthy();
        self.spend(weight as usize / 16)?;
        Ok(truth)
    }

    pub(super) fn truth_with(&mut self, op: BinOp, a: usize, b: f64) -> Ran<bool> {
        self.settle_at(a)?;
        Ok(ops::binary(op, &self.stack[a], &Val::Num(b))?.truthy())
    }

    pub(super) fn unary_at(&mut self, op: UnOp, dst: usize, src: usize) -> Ran<()> {
        self.force_at(src)?;
        let mut value = ops::unary(op, &self.stack[src])?;
        if op == UnOp::Await {
            // What the promise held may itself be awaited.
            value = self.force(&value)?;
        }
        self.stack[dst] = value;
        Ok(())
    }

    pub(super) fn attach_at(&mut self, dst: usize, value: usize, confidence: usize) -> Ran<()> {
        self.force_at(value)?;
        self.force_at(confidence)?;
        self.charge(40)?;
        let attached = ops::attach(self.stack[value].clone(), &self.stack[confidence])?;
        attached.meta().check()?;
        self.stack[dst] = attached;
        Ok(())
    }

    pub(super) fn text_at(&mut self, dst: usize, first: usize, n: usize) -> Ran<()> {
        for at in first..first + n {
            self.settle_at(at)?;
            self.stack[at].check_weight()?;
        }
        let mut out = String::new();
        for part in &self.stack[first..first + n] {
            display(&mut out, part);
        }
        self.charge(40 + out.len() as u64)?;
        self.spend(out.len() / 64)?;
        self.stack[dst] = Val::str(out);
        Ok(())
    }

    pub(super) fn combine_at(&mut self, how: Combine, dst: usize, left: usize, right: usize) -> Ran<()> {
        self.force_at(left)?;
        let value = match how {
            Combine::Pipe => {
                self.force_at(right)?;
                let right = self.stack[right].clone();
                match (right.confidence(), self.stack[left].confidence()) {
                    (Some(_), _) => right,
                    (None, Some(c)) => right.sure(c),
                    (None, None) => return Err(ops::needs_confident("~|>").into()),
                }
            }
            Combine::Filter => {
                self.settle_at(right)?;
                ops::filter(&self.stack[left], &self.stack[right])?
            }
            Combine::Ternary => {
                self.force_at(right)?;
                let right = self.stack[right].clone();
                let c = self.stack[left].certainty() * right.certainty();
                right.sure(c)
            }
        };
        value.meta().check()?;
        self.stack[dst] = value;
        Ok(())
    }

    // Properties.

    /// `o.name`
    pub(super) fn member_at(&mut self, at: usize, name: u16) -> Ran<Val> {
        self.force_at(at)?;
        let program = Arc::clone(&self.program);
        let text = &program.code.names[name as usize].text;
        let (target, confidence) = self.stack[at].peel();
        let found = match target {
            Val::Obj(object) => match object.get(text) {
                Some(value) => Some(value.clone()),
                // Host data is open-shaped.
                None if self.program.profile == Profile::Pattern => return Ok(Val::Null),
                None => None,
            },
            other => self.own_member(other, name)?,
        };
        let Some(value) = found else {
            return Err(self.missing(target, text).into());
        };
        self.through(value, confidence)
    }

    /// What a confident target does to what is taken from it.
    fn through(&self, value: Val, confidence: Option<f64>) -> Ran<Val> {
        match confidence {
            None => Ok(value),
            Some(c) => {
                let value = self.force(&value)?;
                let product = c * value.certainty();
                Ok(value.sure(product))
            }
        }
    }

    /// A member that arrays and texts have by nature.
    fn own_member(&self, target: &Val, name: u16) -> Raised<Option<Val>> {
        let name = &self.program.code.names[name as usize];
        let bound =
            |native: Native| Val::func(Body::Partial { native, given: Box::new([target.clone()]) }).map(Some);
        match target {
            Val::Arr(array) if *name.text == *"length" => Ok(Some(Val::Num(array.items().len() as f64))),
            Val::Str(s) if *name.text == *"length" => Ok(Some(Val::Num(utf16_len(s)))),
            Val::Arr(_) => name.array.map_or(Ok(None), bound),
            Val::Str(_) => name.string.map_or(Ok(None), bound),
            _ => Ok(None),
        }
    }

    #[cold]
    pub(super) fn missing(&self, target: &Val, name: &str) -> Box<Raise> {
        let profile = self.program.profile;
        let (raise, near) = match target {
            Val::Obj(object) => (
                Raise::new("missing_property", format!("the object has no property `{name}`")),
                closest(name, object.entries().map(|(k, _)| &**k)).map(str::to_string),
            ),
            Val::Arr(_) => (
                Raise::new("missing_property", format!("arrays have no `{name}`")),
                closest(name, Native::methods(Owner::Array, profile).chain(["length"])).map(str::to_string),
            ),
            Val::Str(_) => (
                Raise::new("missing_property", format!("strings have no `{name}`")),
                closest(name, Native::methods(Owner::String, profile).chain(["length"])).map(str::to_string),
            ),
            other => {
                let message = format!("cannot read `{name}` of {}", other.described());
                let raise = Raise::new("property_on_invalid", message);
                return if matches!(other, Val::Null) {
                    raise.hint("`?.` gives null instead")
                } else {
                    raise
                };
            }
        };
        match near {
            Some(near) => raise.hint(format!("did you mean `{near}`?")),
            None => raise,
        }
    }

    /// `o?.name`: what is missing is a plain null.
    pub(super) fn optional_member(&mut self, at: usize, name: u16) -> Ran<Val> {
        let text = &self.program.code.names[name as usize].text;
        let (target, confidence) = self.stack[at].peel();
        let found = match target {
            Val::Obj(object) => object.get(text).cloned(),
            other => self.own_member(other, name)?,
        };
        match found {
            Some(value) => self.through(value, confidence),
            None => Ok(Val::Null),
        }
    }

    /// `o~.name`: always confident.
    pub(super) fn sure_member(&mut self, at: usize, name: u16) -> Ran<Val> {
        let text = &self.program.code.names[name as usize].text;
        let target = self.stack[at].plain();
        let certainty = self.stack[at].certainty();
        let found = match target {
            Val::Null => None,
            Val::Obj(object) => object.get(text).cloned(),
            Val::Arr(_) | Val::Str(_) => self.own_member(target, name)?,
            other => return Err(self.missing(other, text).into()),
        };
        match found {
            Some(value) => self.through(value, Some(certainty)),
            None => Ok(Val::Null.sure(certainty)),
        }
    }

    /// `o[i]`
    pub(super) fn index_at(&mut self, at: usize, index: usize) -> Ran<Val> {
        self.force_at(at)?;
        self.force_at(index)?;
        let (target, confidence) = self.stack[at].peel();
        let value = match (target, &self.stack[index]) {
            (Val::Arr(array), Val::Num(i)) => {
                let items = array.items();
                let floored = i.floor();
                match items.get(floored as usize) {
                    Some(value) if floored >= 0.0 => value.clone(),
                    _ => {
                        let message = format!("index {i} is outside an array of {} elements", items.len());
                        return Err(Raise::new("index_out_of_bounds", message).into());
                    }
                }
            }
            (Val::Obj(object), Val::Str(key)) => object.get(key).cloned().unwrap_or(Val::Null),
            (Val::Arr(_), other) => return Err(bad_index("an array", "a plain number", other).into()),
            (Val::Obj(_), other) => return Err(bad_index("an object", "a plain string", other).into()),
            (other, _) => {
                let message = format!("cannot index {}", other.described());
                return Err(Raise::new("property_on_invalid", message).into());
            }
        };
        match confidence {
            // The outer confidence replaces the one inside.
            Some(c) => Ok(self.force(&value)?.sure(c)),
            None => Ok(value),
        }
    }

    // Arrays and objects.

    pub(super) fn extend_at(&mut self, at: usize, items: Vec<Val>) -> Raised<()> {
        self.charge(16 * items.len() as u64)?;
        let Val::Arr(array) = &mut self.stack[at] else { unreachable!("an array is being built") };
        if Arc::get_mut(array).is_none() {
            // Somebody else holds it: the copy has room to grow.
            let old = array.items();
            let mut copy = Vec::with_capacity(old.len() + old.len() / 2 + items.len());
            copy.extend_from_slice(old);
            let n = copy.len();
            *array = Arc::new(Array::new(copy));
            self.charge(48 + 16 * n as u64)?;
            self.spend(n / 8)?;
        }
        let Val::Arr(array) = &mut self.stack[at] else { unreachable!("an array is being built") };
        let own = Arc::make_mut(array);
        items.into_iter().for_each(|item| own.push(item));
        own.meta.check()
    }

    /// The elements of what is spread.
    fn spreadable(&mut self, at: usize) -> Ran<Arc<Array>> {
        self.force_at(at)?;
        match self.stack[at].plain() {
            Val::Arr(array) => Ok(Arc::clone(array)),
            other => {
                let message = format!("only an array can be spread here, not {}", other.described());
                Err(Raise::new("spread_type", message).into())
            }
        }
    }

    pub(super) fn spread_into(&mut self, args: bool, arr: usize, src: usize) -> Ran<()> {
        self.force_at(src)?;
        if args && self.stack[src].confidence().is_some() {
            let message = "an array with a confidence cannot be spread into arguments";
            return Err(Raise::new("spread_type", message).into());
        }
        let items = self.spreadable(src)?.items().to_vec();
        self.spend(items.len() / 8)?;
        Ok(self.extend_at(arr, items)?)
    }

    pub(super) fn append_at(&mut self, dst: usize, first: usize, n: usize) -> Ran<()> {
        if !matches!(self.stack[dst], Val::Arr(_)) {
            self.stack[dst] = Val::Arr(self.spreadable(dst)?);
        }
        let items =
            self.stack[first..first + n].iter_mut().map(|v| std::mem::replace(v, Val::Null)).collect();
        Ok(self.extend_at(dst, items)?)
    }

    pub(super) fn set_key(&mut self, at: usize, key: &Arc<str>, value: Val) -> Raised<()> {
        self.charge(48)?;
        let Val::Obj(object) = &mut self.stack[at] else { unreachable!("an object is being built") };
        let own = Arc::make_mut(object);
        own.set(key, value);
        own.meta.check()
    }

    pub(super) fn spread_keys(&mut self, at: usize, src: usize) -> Ran<()> {
        self.force_at(src)?;
        let Val::Obj(source) = self.stack[src].plain() else {
            let message = format!("only an object can be spread here, not {}", self.stack[src].described());
            return Err(Raise::new("spread_type", message).into());
        };
        let source = Arc::clone(source);
        self.charge(72 + 32 * source.len() as u64)?;
        self.spend(source.len() / 8)?;
        let Val::Obj(object) = &mut self.stack[at] else { unreachable!("an object is being built") };
        if object.is_empty() {
            *object = source;
            return Ok(());
        }
        let own = Arc::make_mut(object);
        for (key, value) in source.entries() {
            own.set(key, value.clone());
        }
        Ok(own.meta.check()?)
    }

    // Destructuring and match.

    pub(super) fn unpackable(&mut self, array: bool, src: usize) -> Ran<()> {
        self.force_at(src)?;
        let value = &self.stack[src];
        let fits = if array { matches!(value, Val::Arr(_)) } else { matches!(value, Val::Obj(_)) };
        if fits {
            return Ok(());
        }
        let wanted = if array { "an array" } else { "an object" };
        let raise = match value.confidence() {
            Some(_) => Raise::new("destructure_type", "a value with a confidence cannot be destructured")
                .hint("take its parts with `.` or `[ ]`, which keep the confidence"),
            None => Raise::new(
                "destructure_type",
                format!("the pattern needs {wanted}, not {}", value.described()),
            ),
        };
        Err(raise.into())
    }

    pub(super) fn weaken(&mut self, empty: Empty, at: usize, threshold: usize) -> Ran<()> {
        let limit = self.stack[threshold].plain().as_num().unwrap_or(0.0);
        self.force_at(at)?;
        if self.stack[at].certainty() >= limit {
            return Ok(());
        }
        self.stack[at] = match empty {
            Empty::Null => Val::Null,
            Empty::Array => Val::Arr(Arc::new(Array::new(Vec::new()))),
            Empty::Object => Val::Obj(Arc::new(Object::new())),
        };
        Ok(())
    }

    pub(super) fn sift(&mut self, at: usize, threshold: usize) -> Ran<()> {
        let limit = self.stack[threshold].plain().as_num().unwrap_or(0.0);
        self.settle_at(at)?;
        let value = match &self.stack[at] {
            Val::Arr(array) => {
                let strong = array.items().iter().filter(|v| v.certainty() >= limit).cloned().collect();
                Val::Arr(Arc::new(Array::new(strong)))
            }
            Val::Obj(object) => {
                let strong = object.entries().filter(|(_, v)| v.certainty() >= limit);
                Val::Obj(Arc::new(strong.map(|(k, v)| (Arc::clone(k), v.clone())).collect()))
            }
            other => other.clone(),
        };
        self.stack[at] = value;
        Ok(())
    }

    pub(super) fn rest_object(&mut self, src: usize, taken: &Val) -> Raised<Val> {
        let taken = taken.as_items().unwrap_or(&[]);
        let Val::Obj(object) = self.stack[src].plain() else { unreachable!("unpacked before") };
        let rest = object.entries().filter(|(k, _)| !taken.iter().any(|t| t.as_str() == Some(k)));
        let rest: Object = rest.map(|(k, v)| (Arc::clone(k), v.clone())).collect();
        self.charge(72 + 48 * rest.len() as u64)?;
        Val::object(rest)
    }

    // Modules.

    /// Starts the module if it has not run; whether a frame was pushed.
    pub(super) fn import(&mut self, module: u16) -> Raised<bool> {
        let state = &mut self.modules[module as usize].state;
        if *state != ModuleState::Fresh {
            return Ok(false);
        }
        *state = ModuleState::Running;
        self.check_depth()?;
        let proto = self.program.code.mains[module as usize];
        let floor = self.stack.len();
        self.stack.resize(floor + self.program.code.protos[proto as usize].regs as usize, Val::Null);
        // Its value goes nowhere: the main register of its own window, which is about to be cut off.
        let ret = Ret { dst: 0, wrap: Wrap::None };
        let kind = FrameKind::Code { proto, pc: 0, base: floor as u32 };
        self.frames.push(Frame { floor: floor as u32, ret, kind });
        Ok(true)
    }

    pub(super) fn imported(&self, module: u16, name: &str) -> Raised<Val> {
        let module = &self.modules[module as usize];
        match module.exports.get(name) {
            Some(value) => Ok(value.clone()),
            // A cycle sees what there is so far.
            None if module.state == ModuleState::Running => Ok(Val::Null),
            None => {
                let raise = Raise::new("import", format!("the module does not export `{name}`"));
                Err(match closest(name, module.exports.entries().map(|(k, _)| &**k)) {
                    Some(near) => raise.hint(format!("did you mean `{near}`?")),
                    None => raise,
                })
            }
        }
    }

    pub(super) fn export(&mut self, module: u16, name: &Arc<str>, value: Val) -> Raised<()> {
        let exports = &mut self.modules[module as usize].exports;
        exports.set(name, value);
        exports.meta.check()
    }

    pub(super) fn export_all(&mut self, module: u16, from: u16) -> Raised<()> {
        let entries = self.modules[from as usize].exports.clone();
        for (name, value) in entries.entries().filter(|(name, _)| ***name != *"default") {
            self.export(module, name, value.clone())?;
        }
        Ok(())
    }
}

#[cold]
fn bad_index(target: &str, wanted: &str, found: &Val) -> Box<Raise> {
    Raise::new("bad_index", format!("{target} is indexed by {wanted}, not {}", ops::described(found)))
}

fn utf16_len(s: &str) -> f64 {
    if s.is_ascii() { s.len() as f64 } else { s.encode_utf16().count() as f64 }
}
