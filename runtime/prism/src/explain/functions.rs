//! Functions of the program, followed wherever they are called.

use super::amount::Amount;
use super::interpret::Interpreter;
use super::state::State;
use super::value::Value;
use super::{Most, Reason, Step};
use crate::ast::*;
use crate::compile::{VarId, VarKind};

impl<'a> Interpreter<'a> {
    pub(super) fn call_own(
        &mut self,
        state: &mut State<'a>,
        f: &'a Function,
        args: &[(Value<'a>, bool)],
        line: u32,
    ) -> Value<'a> {
        let at = (f.span.file, f.span.start);
        if self.functions.iter().any(|g| g.span == f.span) {
            self.recursive.insert(at);
            self.forget(state);
            return Value::lost();
        }
        self.functions.push(f);
        let steps = std::mem::take(&mut self.steps);
        let (loops, pipes) = (std::mem::take(&mut self.loops), std::mem::take(&mut self.pipes));
        let before = std::mem::take(&mut state.calls);
        self.returns.push(Vec::new());

        self.parameters(state, f, args);
        let mut value = match &f.body {
            Body::Expr(expr) => self.expr(state, expr),
            Body::Block(block) => self.stmts(state, &block.stmts),
        };
        for (left, given) in self.returns.pop().unwrap_or_default() {
            value = if state.dead { given } else { value.or(&given) };
            *state = std::mem::take(state).or(left);
        }

        let name = f.name.map(|name| self.names.text(name.name).to_string());
        if self.recursive.remove(&at) && !state.calls.most.is_zero() {
            let who = name.as_ref().map_or("a function".to_string(), |name| format!("`{name}`"));
            self.unbounded(state, &format!("{who} calls itself, any number of times"), self.line(f.span));
        }
        state.calls = before.plus(&state.calls);
        (self.loops, self.pipes) = (loops, pipes);
        self.functions.pop();
        let steps = std::mem::replace(&mut self.steps, steps);
        if steps.iter().any(Step::asks) {
            match name {
                Some(name) => self.steps.push(Step::Function { name, steps, line }),
                None => self.steps.extend(steps),
            }
        }
        value
    }

    fn parameters(&mut self, state: &mut State<'a>, f: &'a Function, args: &[(Value<'a>, bool)]) {
        let none = Reason { why: String::new(), line: self.line(f.span) };
        let spread = args.iter().any(|(_, spread)| *spread);
        let any = args.iter().fold(Value::default(), |all, (value, spread)| {
            if *spread { all.or(&value.as_list(&none).item) } else { all.or(value) }
        });
        for (n, target) in f.params.iter().enumerate() {
            let value = if spread { any.clone() } else { args.get(n).cloned().unwrap_or_default().0 };
            self.target(state, target, value, true);
        }
        if let Some(rest) = &f.rest {
            let n = Amount::from(args.len().saturating_sub(f.params.len()) as i64);
            let why = "how many arguments are spread into a call is not known before the run";
            let most = Most::Unbounded(Reason { why: why.to_string(), ..none });
            let value = match spread {
                true => Value::list(Amount::default(), most, any),
                false => Value::list(n.clone(), Most::Of(n), any),
            };
            self.target(state, rest, value, true);
        }
    }

    /// Something was called that is not followed: closures may have assigned what they can reach.
    pub(super) fn forget(&mut self, state: &mut State<'a>) {
        for (id, var) in self.resolved.vars.iter().enumerate() {
            if var.captured && var.assigned && var.kind != VarKind::Free {
                self.write(state, id as VarId, Value::lost());
            }
        }
    }
}
