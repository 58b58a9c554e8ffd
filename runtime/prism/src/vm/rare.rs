//! Instructions that are not worth a place in the main loop.

use super::{Handler, ModuleState, Ran, Trap, Vm};
use crate::builtins::Native;
use crate::compile::{LevelOf, Op};
use crate::diagnostic::Raise;
use crate::value::{Array, Body, Val, strict_equal};
use std::sync::Arc;

/// How the main loop goes on.
pub(super) enum After {
    Next,
    /// The next instruction, a jump, is taken, or skipped.
    Branch(bool),
    Skip,
    /// A frame was pushed.
    Frame,
}

impl Vm {
    /// Runs one instruction of the frame number `frame`, whose window begins at `base`.
    pub(super) fn rare(&mut self, op: Op, base: usize, frame: usize) -> Ran<After> {
        let at = |reg: u16| base + reg as usize;
        let program = Arc::clone(&self.program);
        let code = &program.code;
        let text = |name: u16| &code.names[name as usize].text;
        match op {
            Op::Reset { dst, uninit } => {
                self.fiber.stack[at(dst)] = if uninit { Val::Uninit } else { Val::Unset }
            }
            Op::NewCell { dst, uninit } => {
                let cell = self.new_cell(if uninit { Val::Uninit } else { Val::Unset })?;
                self.fiber.stack[at(dst)] = Val::Cell(cell);
            }
            Op::Extend { arr, first, n } => {
                let items = self.take_all(at(first), n as usize);
                self.extend_at(at(arr), items)?;
            }
            Op::SpreadInto { args, arr, src } => self.spread_into(args, at(arr), at(src))?,
            Op::Append { dst, first, n } => self.append_at(at(dst), at(first), n as usize)?,
            Op::SetKey { obj, src, name } => {
                let value = self.fiber.stack[at(src)].clone();
                self.set_key(at(obj), text(name), value)?;
            }
            Op::SpreadKeys { obj, src } => self.spread_keys(at(obj), at(src))?,

            Op::IterStart { base: iter, src } => {
                self.force_at(at(src))?;
                let value = self.fiber.stack[at(src)].plain().clone();
                if !matches!(value, Val::Arr(_)) {
                    let message = format!("`for` needs an array to walk, not {}", value.described());
                    return Err(Raise::new("not_iterable", message).into());
                }
                self.fiber.stack[at(iter)] = value;
                self.fiber.stack[at(iter) + 1] = Val::Num(0.0);
            }

            Op::Level { of, dst, src } => {
                self.force_at(at(src))?;
                let level = match (self.fiber.stack[at(src)].confidence(), of) {
                    (Some(c), _) => level(c),
                    (None, LevelOf::Plain) => 0.0,
                    (None, LevelOf::Keep) => return Ok(After::Next),
                    (None, LevelOf::Strict) => return Err(plain_condition().into()),
                };
                self.fiber.stack[at(dst)] = Val::Num(level);
            }
            Op::Defer { n, dst, base: callee } => {
                self.force_at(at(callee))?;
                if self.fiber.stack[at(callee)].is_async() {
                    let given = self.take_all(at(callee), 1 + n as usize).into();
                    self.charge(96 + 16 * u64::from(n))?;
                    self.fiber.stack[at(dst)] = Val::func(Body::Partial { native: Native::Deferred, given })?;
                    return Ok(After::Skip);
                }
            }
            Op::Combine { how, dst, left, right } => self.combine_at(how, at(dst), at(left), at(right))?,

            Op::Unpack { array, src } => self.unpackable(array, at(src))?,
            Op::Elem { dst, src, i } => {
                let value = self.fiber.stack[at(src)].as_items().and_then(|items| items.get(i as usize));
                self.fiber.stack[at(dst)] = value.cloned().unwrap_or(Val::Null);
            }
            Op::Prop { dst, src, name } => {
                let found = self.fiber.stack[at(src)].get(text(name)).cloned();
                let missing = found.is_none();
                self.fiber.stack[at(dst)] = found.unwrap_or(Val::Null);
                if missing {
                    return Ok(After::Skip);
                }
            }
            Op::Threshold { reg } => {
                self.force_at(at(reg))?;
                super::build::destructuring_threshold(&self.fiber.stack[at(reg)])?;
            }
            Op::Weak { empty, reg, threshold } => self.weaken(empty, at(reg), at(threshold))?,
            Op::RestArray { dst, src, from } => {
                let items = self.fiber.stack[at(src)].as_items().unwrap_or(&[]);
                let rest = items.get(from as usize..).unwrap_or(&[]).to_vec();
                self.charge(48 + 16 * rest.len() as u64)?;
                self.spend(rest.len() / 8)?;
                self.fiber.stack[at(dst)] = Val::Arr(Arc::new(Array::new(rest)));
            }
            Op::RestObject { dst, src, keys } => {
                self.fiber.stack[at(dst)] = self.rest_object(at(src), &code.consts[keys as usize])?;
            }
            Op::Sift { reg, threshold } => self.sift(at(reg), at(threshold))?,

            Op::IsValue { src, k } => {
                return Ok(After::Branch(!strict_equal(
                    &self.fiber.stack[at(src)],
                    &code.consts[k as usize],
                )));
            }
            Op::IsArray { more, src, len } => {
                let is = self.fiber.stack[at(src)].as_items().is_some_and(|items| match more {
                    true => items.len() >= len as usize,
                    false => items.len() == len as usize,
                });
                return Ok(After::Branch(!is));
            }
            Op::IsObject { src } => {
                return Ok(After::Branch(!matches!(self.fiber.stack[at(src)], Val::Obj(_))));
            }
            Op::HasKey { src, name } => {
                return Ok(After::Branch(self.fiber.stack[at(src)].get(text(name)).is_none()));
            }
            Op::Confident { src, threshold } => {
                let limit = self.fiber.stack[at(threshold)].as_num().unwrap_or(1.0);
                self.force_at(at(src))?;
                return Ok(After::Branch(self.fiber.stack[at(src)].certainty() < limit));
            }
            Op::Peel { dst, src } => self.fiber.stack[at(dst)] = self.fiber.stack[at(src)].plain().clone(),

            Op::TryStart { reg, to } => {
                let mark = self.next_effect;
                self.fiber.handlers.push(Handler { frame: frame as u32, target: to, reg, mark });
            }
            Op::TryEnd { wait } => {
                if wait {
                    self.end_try()?;
                }
                self.fiber.handlers.pop();
                if !self.fiber.under_try() {
                    self.fiber.watched.clear();
                }
            }
            Op::Message { dst, src } => {
                let Val::Error(thrown) = &self.fiber.stack[at(src)] else {
                    unreachable!("a handler's register")
                };
                self.fiber.stack[at(dst)] = Val::str(thrown.raise.message.as_str());
            }
            Op::Rethrow { src } => {
                let Val::Error(thrown) = &self.fiber.stack[at(src)] else {
                    unreachable!("a handler's register")
                };
                return Err(Trap::Rethrow(Arc::clone(thrown)));
            }
            Op::Force { reg } => self.force_at(at(reg))?,

            Op::Import { module } => {
                if self.import(module)? {
                    return Ok(After::Frame);
                }
            }
            Op::ImportName { dst, module, name } => {
                self.fiber.stack[at(dst)] = self.imported(module, text(name))?
            }
            Op::ImportAll { dst, module } => {
                self.fiber.stack[at(dst)] = Val::Obj(Arc::new(self.modules[module as usize].exports.clone()));
            }
            Op::Export { src, module, name } => {
                let value = self.fiber.stack[at(src)].clone();
                self.export(module, text(name), value)?;
            }
            Op::ExportAll { module, from } => self.export_all(module, from)?,
            Op::ModuleEnd { module } => self.modules[module as usize].state = ModuleState::Done,
            Op::Raise { error } => {
                let error = &code.errors[error as usize];
                let mut raise = Raise::new(error.code, error.message.clone());
                raise.hint.clone_from(&error.hint);
                return Err(raise.into());
            }
            other => unreachable!("{other:?} has its place in the main loop"),
        }
        Ok(After::Next)
    }
}

/// 0 high, 1 medium, 2 low.
fn level(confidence: f64) -> f64 {
    if confidence >= 0.7 {
        0.0
    } else if confidence >= 0.5 {
        1.0
    } else {
        2.0
    }
}

#[cold]
fn plain_condition() -> Box<Raise> {
    let message = "`uncertain if` needs a condition with a confidence, and this one is plain";
    Raise::new("uncertain_needs_confidence", message).hint("attach one with `condition ~> 0.8`, or use `if`")
}
