//! Variables and properties: the ways that are longer than an instruction.

use super::{Ran, Vm, ops};
use crate::Profile;
use crate::builtins::{self, HOST_NAMES, Native, Owner};
use crate::compile::Place;
use crate::diagnostic::{Raise, Raised, closest};
use crate::value::{Body, Val};
use std::sync::Arc;

#[cold]
pub(super) fn undefined(name: &str) -> Box<Raise> {
    Raise::new("undefined_variable", format!("there is no variable `{name}`"))
}

#[cold]
pub(super) fn uninitialized(name: &str) -> Box<Raise> {
    Raise::new("uninitialized", format!("`{name}` is used before its declaration has run"))
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
        if !self.fiber.stack[reg + 1..=reg + n].iter().all(Val::settled) {
            return;
        }
        let cell_at = |v: &Val| match v {
            Val::Cell(i) => *i as usize,
            _ => unreachable!("the compiler put a cell there"),
        };
        let variable = match place {
            Place::Global => &mut self.globals[i as usize],
            Place::Cell => {
                let cell = cell_at(&self.fiber.stack[base + i as usize]);
                &mut self.cells[cell]
            }
            Place::UpCell => {
                let Val::Func(f) = &self.fiber.stack[base - 1] else { return };
                let Body::Closure { captured, .. } = &f.body else { return };
                let cell = cell_at(&captured[i as usize]);
                &mut self.cells[cell]
            }
        };
        let same = match (&*variable, &self.fiber.stack[reg]) {
            (Val::Str(a), Val::Str(b)) => Arc::ptr_eq(a, b),
            (Val::Arr(a), Val::Arr(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if same {
            *variable = Val::Null;
        }
    }

    /// `o.name`
    pub(super) fn member_at(&mut self, at: usize, name: u16) -> Ran<Val> {
        self.force_at(at)?;
        if let Val::Str(s) = &self.fiber.stack[at] {
            // Its length is counted anew each time.
            self.spend(s.len() / 64)?;
        }
        let program = Arc::clone(&self.program);
        let text = &program.code.names[name as usize].text;
        let (target, confidence) = self.fiber.stack[at].peel();
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
        let (target, confidence) = self.fiber.stack[at].peel();
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
        let target = self.fiber.stack[at].plain();
        let certainty = self.fiber.stack[at].certainty();
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
        let (target, confidence) = self.fiber.stack[at].peel();
        let value = match (target, &self.fiber.stack[index]) {
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
}

#[cold]
fn bad_index(target: &str, wanted: &str, found: &Val) -> Box<Raise> {
    Raise::new("bad_index", format!("{target} is indexed by {wanted}, not {}", ops::described(found)))
}

fn utf16_len(s: &str) -> f64 {
    if s.is_ascii() { s.len() as f64 } else { s.encode_utf16().count() as f64 }
}
