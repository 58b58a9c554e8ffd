//! Operators on what registers hold: waiting for answers, building texts in place, counting what it costs.

use super::{Ran, Vm, ops};
use crate::ast::{BinOp, UnOp};
use crate::compile::Combine;
use crate::value::{Val, display};
use std::sync::Arc;

impl Vm {
    pub(super) fn binary_at(&mut self, op: BinOp, dst: usize, a: usize, b: usize) -> Ran<()> {
        self.settle_at(a)?;
        self.settle_at(b)?;
        if op == BinOp::Add
            && dst == a
            && let Val::Str(_) = self.fiber.stack[a]
            && self.fiber.stack[b].confidence().is_none()
        {
            return self.append_text(a, b);
        }
        if matches!(op, BinOp::Eq | BinOp::Ne | BinOp::Same | BinOp::NotSame | BinOp::SureEq | BinOp::SureNe)
        {
            let work = ops::comparison_work(&self.fiber.stack[a], &self.fiber.stack[b])?;
            self.spend(work / 16)?;
        }
        let value = ops::binary(op, &self.fiber.stack[a], &self.fiber.stack[b], &self.rules)?;
        if let Val::Str(s) = value.plain() {
            self.charge(s.len() as u64)?;
            self.spend(s.len() / 64)?;
        }
        self.fiber.stack[dst] = value;
        Ok(())
    }

    /// `a = a + b` where `a` is a text.
    fn append_text(&mut self, a: usize, b: usize) -> Ran<()> {
        self.fiber.stack[b].check_weight()?;
        let Val::Str(mut text) = std::mem::replace(&mut self.fiber.stack[a], Val::Null) else {
            unreachable!("checked by the caller")
        };
        let before = text.len();
        match Arc::get_mut(&mut text) {
            Some(own) => display(own, &self.fiber.stack[b]),
            None => {
                let mut copy = String::with_capacity(text.len() * 2);
                copy.push_str(&text);
                display(&mut copy, &self.fiber.stack[b]);
                self.charge(before as u64)?;
                self.spend(before / 64)?;
                text = Arc::new(copy);
            }
        }
        let grown = text.len() - before;
        self.fiber.stack[a] = Val::Str(text);
        self.charge(grown as u64)?;
        self.spend(grown / 64)?;
        Ok(())
    }

    pub(super) fn add_all(&mut self, dst: usize, first: usize, n: usize) -> Ran<()> {
        for at in std::iter::once(dst).chain(first..first + n) {
            self.settle_at(at)?;
        }
        if let Val::Str(_) = self.fiber.stack[dst]
            && self.fiber.stack[first..first + n].iter().all(|v| v.confidence().is_none())
        {
            return (first..first + n).try_for_each(|b| self.append_text(dst, b));
        }
        let mut sum = self.fiber.stack[dst].clone();
        for v in &self.fiber.stack[first..first + n] {
            sum = ops::binary(BinOp::Add, &sum, v, &self.rules)?;
        }
        if let Val::Str(s) = sum.plain() {
            self.charge(s.len() as u64)?;
        }
        self.fiber.stack[dst] = sum;
        Ok(())
    }

    pub(super) fn binary_with(&mut self, op: BinOp, dst: usize, a: usize, b: Val) -> Ran<()> {
        self.fiber.stack.push(b);
        let b = self.fiber.stack.len() - 1;
        let result = self.binary_at(op, dst, a, b);
        self.fiber.stack.truncate(b);
        result
    }

    pub(super) fn truth_of(&mut self, op: BinOp, a: usize, b: usize) -> Ran<bool> {
        self.settle_at(a)?;
        self.settle_at(b)?;
        if op == BinOp::Eq {
            let work = ops::comparison_work(&self.fiber.stack[a], &self.fiber.stack[b])?;
            self.spend(work / 16)?;
        }
        Ok(ops::binary(op, &self.fiber.stack[a], &self.fiber.stack[b], &self.rules)?.truthy())
    }

    pub(super) fn truth_with(&mut self, op: BinOp, a: usize, b: f64) -> Ran<bool> {
        self.settle_at(a)?;
        let b = Val::Num(b);
        self.spend(ops::comparison_work(&self.fiber.stack[a], &b)? / 16)?;
        Ok(ops::binary(op, &self.fiber.stack[a], &b, &self.rules)?.truthy())
    }

    pub(super) fn unary_at(&mut self, op: UnOp, dst: usize, src: usize) -> Ran<()> {
        self.force_at(src)?;
        self.fiber.stack[dst] = match op {
            UnOp::Await => {
                let (held, confidence) = ops::awaited(&self.fiber.stack[src])?;
                // The outer confidence replaces the one inside.
                self.force(&held)?.maybe_sure(confidence)
            }
            op => ops::unary(op, &self.fiber.stack[src])?,
        };
        Ok(())
    }

    pub(super) fn attach_at(&mut self, dst: usize, value: usize, confidence: usize) -> Ran<()> {
        self.force_at(value)?;
        self.force_at(confidence)?;
        self.charge(40)?;
        let attached = ops::attach(self.fiber.stack[value].clone(), &self.fiber.stack[confidence])?;
        attached.meta().check()?;
        self.fiber.stack[dst] = attached;
        Ok(())
    }

    pub(super) fn text_at(&mut self, dst: usize, first: usize, n: usize) -> Ran<()> {
        for at in first..first + n {
            self.settle_at(at)?;
            self.fiber.stack[at].check_weight()?;
        }
        let mut out = String::new();
        self.charge(40)?;
        for at in first..first + n {
            let before = out.len();
            display(&mut out, &self.fiber.stack[at]);
            self.charge((out.len() - before) as u64)?;
        }
        self.spend(out.len() / 64)?;
        self.fiber.stack[dst] = Val::str(out);
        Ok(())
    }

    pub(super) fn combine_at(&mut self, how: Combine, dst: usize, left: usize, right: usize) -> Ran<()> {
        self.force_at(left)?;
        let value = match how {
            Combine::Pipe => {
                self.force_at(right)?;
                let right = self.fiber.stack[right].clone();
                match (right.confidence(), self.fiber.stack[left].confidence()) {
                    (Some(_), _) => right,
                    (None, Some(c)) => right.sure(c),
                    (None, None) => return Err(ops::needs_confident("~|>").into()),
                }
            }
            Combine::Filter => {
                self.settle_at(right)?;
                ops::filter(&self.fiber.stack[left], &self.fiber.stack[right])?
            }
            Combine::Ternary => {
                self.force_at(right)?;
                let right = self.fiber.stack[right].clone();
                let c = self.rules.ternary.combine(self.fiber.stack[left].certainty(), right.certainty());
                right.sure(c)
            }
        };
        value.meta().check()?;
        self.fiber.stack[dst] = value;
        Ok(())
    }
}
