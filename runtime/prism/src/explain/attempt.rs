//! `try`, which may fail anywhere.

use super::interpret::Interpreter;
use super::state::State;
use super::value::Value;
use super::{Arm, Most, Step};
use crate::ast::*;
use std::collections::BTreeMap;

impl<'a> Interpreter<'a> {
    pub(super) fn attempt(&mut self, state: &mut State<'a>, inner: &'a Try) -> Value<'a> {
        let before = state.clone();
        let ends = |i: &Self| {
            let (b, c) = i.loops.last().map_or((0, 0), |exits| (exits.breaks.len(), exits.continues.len()));
            (i.returns.last().map_or(0, Vec::len), b, c)
        };
        let from = ends(self);
        self.tries.push(BTreeMap::new());
        let mut value = self.stmts(state, &inner.body.stmts);
        let mut most = if state.dead { before.calls.most.clone() } else { state.calls.most.clone() };
        self.exits(from, |left| most = most.or(&left.calls.most));
        let mut caught = self.caught(before, most);
        if let Some((name, block)) = &inner.catch {
            name.iter().for_each(|name| self.bind(&mut caught, name, Value::some_text()));
            let steps = std::mem::take(&mut self.steps);
            let other = self.stmts(&mut caught, &block.stmts);
            let yes = std::mem::replace(&mut self.steps, steps);
            if !yes.is_empty() {
                let arm = |when: &str, steps| Arm { when: when.to_string(), steps };
                let (arms, line) = (vec![arm("yes", yes), arm("no", vec![])], self.line(block.span));
                self.steps.push(Step::Branch { condition: "did it fail?".to_string(), arms, line });
            }
            if !caught.dead {
                value = if state.dead { other } else { value.or(&other) };
            }
            *state = std::mem::take(state).or(caught);
        }
        if let Some(block) = &inner.finally {
            // Whichever way it is left, this is done first.
            let steps = self.steps.len();
            let returns = self.returns.last_mut().map(|all| all.split_off(from.0)).unwrap_or_default();
            let (breaks, continues) = self.loops.last_mut().map_or((vec![], vec![]), |exits| {
                (exits.breaks.split_off(from.1), exits.continues.split_off(from.2))
            });
            for (mut left, value) in returns {
                self.stmts(&mut left, &block.stmts);
                self.returns.last_mut().expect("the program is followed").push((left, value));
            }
            for (again, mut left) in
                breaks.into_iter().map(|s| (false, s)).chain(continues.into_iter().map(|s| (true, s)))
            {
                self.stmts(&mut left, &block.stmts);
                let exits = self.loops.last_mut().expect("it was left from in there");
                if again { exits.continues.push(left) } else { exits.breaks.push(left) }
            }
            self.steps.truncate(steps);
            self.stmts(state, &block.stmts);
        }
        value
    }

    /// Where the innermost `try` leads if it fails, before the first call or after the last, or anywhere between.
    pub(super) fn caught(&mut self, before: State<'a>, most: Most) -> State<'a> {
        let mut caught = before;
        caught.calls.most = most;
        for (var, value) in self.tries.pop().unwrap_or_default() {
            let either = caught.vars.remove(&var).unwrap_or_default().or(&value);
            caught.vars.insert(var, either);
        }
        caught
    }

    /// Every state in which the part that began with so many exits was left.
    fn exits(&self, from: (usize, usize, usize), mut each: impl FnMut(&State<'a>)) {
        self.returns.last().into_iter().flat_map(|r| &r[from.0..]).for_each(|(s, _)| each(s));
        if let Some(exits) = self.loops.last() {
            exits.breaks[from.1..].iter().chain(&exits.continues[from.2..]).for_each(&mut each);
        }
    }
}
