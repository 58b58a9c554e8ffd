//! Expressions: what their values may be, and the calls on the way to them.

use super::amount::{Amount, Atom, EACH};
use super::interpret::{Choice, Interpreter};
use super::natives::{Args, Site};
use super::state::State;
use super::value::{Callable, Number, Text, Value, step};
use super::{Reason, Step};
use crate::ast::*;
use crate::builtins::{Native, Owner};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

impl<'a> Interpreter<'a> {
    pub(super) fn expr(&mut self, state: &mut State<'a>, expr: &'a Expr) -> Value<'a> {
        if !self.enter(expr.span) {
            return Value::lost();
        }
        let value = self.value(state, expr);
        self.leave();
        value
    }

    fn value(&mut self, state: &mut State<'a>, expr: &'a Expr) -> Value<'a> {
        match &expr.kind {
            ExprKind::Null | ExprKind::Bool(_) => Value::default(),
            ExprKind::Num(x) if x.fract() == 0.0 && x.abs() < 1e15 => Value::exactly(Amount::from(*x as i64)),
            ExprKind::Num(_) => Value::number(None, None),
            ExprKind::Str(text) => Value::text(text),
            ExprKind::Placeholder => self.pipes.last().cloned().unwrap_or_default(),
            ExprKind::Template(parts) => {
                for part in parts {
                    if let Part::Expr(expr) = part {
                        self.expr(state, expr);
                    }
                }
                Value::some_text()
            }
            ExprKind::Ident(ident) => self.read(state, ident),
            ExprKind::Array(items) => {
                let args = self.items(state, items);
                let line = self.line(expr.span);
                let empty = Value::list(Amount::default(), super::Most::zero(), Value::default());
                self.extended(empty, &args, line)
            }
            ExprKind::Object(pairs) => self.object(state, pairs),
            ExprKind::Unary(op, inner) => {
                let value = self.expr(state, inner);
                match op {
                    UnOp::Tilde | UnOp::Await => value,
                    UnOp::Extract => Value::number(Some(Amount::default()), Some(Amount::from(1))),
                    UnOp::Neg => {
                        let Number { least, most } = value.as_number();
                        let negated = |a: Option<Amount>| a.map(|a| Amount::default().minus(&a));
                        Value::number(negated(most), negated(least))
                    }
                    UnOp::Typeof => Value::some_text(),
                    UnOp::Not => Value::default(),
                }
            }
            ExprKind::Binary(first, rest) => {
                let mut value = self.expr(state, first);
                let mut before = first.span;
                for (op, right) in rest {
                    value = match op {
                        BinOp::And | BinOp::Or => {
                            let (yes, no) = if *op == BinOp::And { ("yes", "no") } else { ("no", "yes") };
                            let other = self.branch(
                                state,
                                before,
                                vec![
                                    (yes.to_string(), Box::new(move |i, s| i.expr(s, right))),
                                    (no.to_string(), Box::new(|_, _| Value::default())),
                                ],
                            );
                            value.or(&other)
                        }
                        _ => {
                            let right = self.expr(state, right);
                            self.operate(*op, value, right)
                        }
                    };
                    before = before.to(right.span);
                }
                value
            }
            ExprKind::Attach(value, confidence) => {
                let value = self.expr(state, value);
                self.expr(state, confidence);
                value
            }
            ExprKind::Ternary(inner) => {
                self.expr(state, &inner.cond);
                self.branch(
                    state,
                    inner.cond.span,
                    vec![
                        ("yes".to_string(), Box::new(|i, s| i.expr(s, &inner.then))),
                        ("no".to_string(), Box::new(|i, s| i.expr(s, &inner.other))),
                    ],
                )
            }
            ExprKind::Pipe(first, stages) => {
                let mut value = self.expr(state, first);
                for (op, stage) in stages {
                    self.pipes.push(value.clone());
                    let next = self.expr(state, stage);
                    self.pipes.pop();
                    value = match op {
                        // A threshold, or a threshold and what stands in for what is below.
                        PipeOp::Filter => value.or(&next.inside()),
                        PipeOp::Plain | PipeOp::Sure => next,
                    };
                }
                value
            }
            ExprKind::Access(head, steps) => self.accesses(state, head, steps),
            ExprKind::Lambda(f) => Value::callable(Callable::Own(f)),
            ExprKind::Match(inner) => {
                let subject = self.expr(state, &inner.subject);
                self.arms(state, inner, &inner.arms, &subject)
            }
        }
    }

    fn items(&mut self, state: &mut State<'a>, items: &'a [Item]) -> Args<'a> {
        let mut args = Vec::new();
        for item in items {
            args.push(match item {
                Item::Hole => (Value::default(), false),
                Item::Expr(expr) => (self.expr(state, expr), false),
                Item::Spread(expr) => (self.expr(state, expr), true),
            });
        }
        args
    }

    fn object(&mut self, state: &mut State<'a>, pairs: &'a [Pair]) -> Value<'a> {
        let (mut fields, mut rest) = (BTreeMap::new(), Value::default());
        for pair in pairs {
            match pair {
                Pair::Set(key, expr) => drop(fields.insert(key.clone(), self.expr(state, expr))),
                Pair::Spread(expr) => {
                    let value = self.expr(state, expr);
                    if value.lost {
                        rest = Value::lost();
                    }
                    if value.data.is_some() && !value.agent {
                        rest = rest.or(&Value::data(None));
                    }
                    let mut own = value.fields.as_deref().cloned().unwrap_or_default();
                    if value.agent {
                        own.insert(Arc::from("analyze"), self.member(&value, "analyze"));
                    }
                    // What is spread may lack a key that stood there before.
                    for (key, value) in own {
                        let before = fields.remove(&key).unwrap_or_default();
                        fields.insert(key, value.or(&before));
                    }
                }
            }
        }
        Value::object(fields).or(&rest)
    }

    pub(super) fn operate(&mut self, op: BinOp, a: Value<'a>, b: Value<'a>) -> Value<'a> {
        match op {
            BinOp::Coalesce => return a.otherwise(&b),
            BinOp::SureCoalesce | BinOp::SureSelect | BinOp::SureGate | BinOp::And | BinOp::Or => {
                return a.or(&b);
            }
            BinOp::Chain => return b,
            _ => {}
        }
        let (a, b) = (a.as_number(), b.as_number());
        let both = |a: &Option<Amount>, b: &Option<Amount>, with: fn(&Amount, &Amount) -> Amount| {
            Some(with(a.as_ref()?, b.as_ref()?))
        };
        let natural = |n: &Option<Amount>| n.as_ref().is_some_and(Amount::is_natural);
        match op {
            BinOp::Add | BinOp::SureAdd => {
                Value::number(both(&a.least, &b.least, Amount::plus), both(&a.most, &b.most, Amount::plus))
                    .or(&Value::some_text())
            }
            BinOp::Sub | BinOp::SureSub => {
                Value::number(both(&a.least, &b.most, Amount::minus), both(&a.most, &b.least, Amount::minus))
            }
            BinOp::Mul | BinOp::SureMul if natural(&a.least) && natural(&b.least) => {
                Value::number(both(&a.least, &b.least, Amount::times), both(&a.most, &b.most, Amount::times))
            }
            BinOp::Div | BinOp::SureDiv if natural(&b.least) => Value::number(
                a.least.filter(Amount::is_natural).map(|_| Amount::default()),
                both(&a.most, &b.least, |a, b| Amount::of(Atom::Steps(a.clone(), b.clone()))),
            ),
            BinOp::Mod => Value::number(
                a.least.filter(Amount::is_natural).map(|_| Amount::default()),
                a.most.map(|most| most.count()),
            ),
            _ => Value::number(None, None),
        }
    }

    fn accesses(&mut self, state: &mut State<'a>, head: &'a Expr, steps: &'a [Access]) -> Value<'a> {
        let mut value = self.expr(state, head);
        for (at, access) in steps.iter().enumerate() {
            value = match &access.kind {
                AccessKind::Member(_, name) => self.member(&value, name),
                AccessKind::Index(index) => {
                    let index = self.expr(state, index);
                    self.indexed(&value, &index)
                }
                AccessKind::Call(items) => {
                    let together = value.callables.iter().find_map(|callable| match callable {
                        Callable::Native(n @ (Native::Parallel | Native::Race | Native::All)) => Some(*n),
                        _ => None,
                    });
                    let before = together.is_some().then(|| std::mem::take(&mut self.steps));
                    let args = self.items(state, items);
                    let line = self.line(access.span);
                    // The array that a method goes through, or a function's first argument.
                    let method = value.callables.iter().any(|c| matches!(c, Callable::Partial(..)));
                    let over = match items.first() {
                        Some(Item::Expr(first)) if !method => self.text(first.span),
                        _ => {
                            let end = if at > 0 { steps[at - 1].span.start } else { head.span.end };
                            self.source(head.span.start, end).trim_end_matches(['.', '?', '~']).to_string()
                        }
                    };
                    let result = self.call(state, &value, &args, &Site { over, line });
                    if let Some(before) = before {
                        let steps = std::mem::replace(&mut self.steps, before);
                        if steps.iter().any(Step::asks) {
                            let how = together.map_or("", Native::name).to_string();
                            self.steps.push(Step::Together { how, steps, line });
                        }
                    }
                    result
                }
            };
        }
        value
    }

    /// A property or method.
    pub(super) fn member(&mut self, value: &Value<'a>, name: &str) -> Value<'a> {
        let mut all: Vec<Value<'a>> = Vec::new();
        if value.lost {
            all.push(Value::lost());
        }
        all.extend(value.fields.as_ref().and_then(|fields| fields.get(name)).cloned());
        // What `length` means of the input comes below.
        if let Some(data) = value.data.as_ref().filter(|data| name != "length" || data.path.is_none()) {
            all.push(Value::data(data.path.clone().map(|path| step(path, name))));
            if let Some(other) = &data.otherwise {
                let other = self.member(&Value { callables: vec![], fields: None, ..other.clone() }, name);
                all.push(other);
            }
        }
        let method = |native: Native| Value::callable(Callable::Partial(native, Rc::new(value.clone())));
        if value.agent && name == "analyze" {
            all.push(method(Native::Analyze));
        }
        if name == "length" {
            all.extend(self.length(value));
        }
        if value.list.is_some() || value.data.is_some() {
            all.extend(Native::method(name, Owner::Array, self.profile).map(method));
        }
        // Of what may be a text nothing else calls back or makes an array.
        if name == "split" && self.profile == crate::Profile::Pattern {
            all.push(method(Native::Split));
        }
        all.into_iter().reduce(|a, b| a.or(&b)).unwrap_or_default()
    }

    fn length(&self, value: &Value<'a>) -> Option<Value<'a>> {
        let none = Reason { why: String::new(), line: 0 };
        let list = (value.list.is_some() || value.data.is_some()).then(|| {
            let list = value.as_list(&none);
            let most = match list.most {
                super::Most::Of(most) => Some(most),
                super::Most::Unbounded(_) => None,
            };
            Value::number(Some(list.least), most)
        });
        let text = match &value.text {
            Text::None => None,
            Text::Known(text) => Some(Value::exactly(Amount::from(text.encode_utf16().count() as i64))),
            Text::Some => Some(Value::number(Some(Amount::default()), None)),
        };
        [list, text].into_iter().flatten().reduce(|a, b| a.or(&b))
    }

    fn indexed(&mut self, value: &Value<'a>, index: &Value<'a>) -> Value<'a> {
        if let Text::Known(key) = &index.text {
            return self.member(&Value { list: None, ..value.clone() }, key);
        }
        let part = value.data.as_ref().and_then(|data| data.path.clone());
        match part {
            // An index into an array of the input, for all that is known.
            Some(path) if index.number.is_some() => {
                let rest = Value { data: None, ..value.clone() }.inside();
                let other = value.data.as_ref().and_then(|data| data.otherwise.as_ref()).map(Value::inside);
                let rest = other.map_or(rest.clone(), |other| rest.or(&other));
                Value::data(Some(step(path, EACH))).or(&rest)
            }
            _ => value.inside(),
        }
    }

    fn arms(
        &mut self,
        state: &mut State<'a>,
        inner: &'a Match,
        arms: &'a [Arm],
        subject: &Value<'a>,
    ) -> Value<'a> {
        let Some((arm, rest)) = arms.split_first() else { return Value::default() };
        let taken: Choice<'_, 'a> = (
            self.text(arm.pattern.span),
            Box::new(|i, s| {
                i.matched(s, &arm.pattern, subject);
                arm.threshold.iter().for_each(|limit| drop(i.expr(s, limit)));
                let Some(guard) = &arm.guard else { return i.body(s, &arm.body) };
                i.expr(s, guard);
                i.branch(
                    s,
                    guard.span,
                    vec![
                        ("yes".to_string(), Box::new(|i, s| i.body(s, &arm.body))),
                        ("no".to_string(), Box::new(|i, s| i.arms(s, inner, rest, subject))),
                    ],
                )
            }),
        );
        if arm.guard.is_none()
            && arm.threshold.is_none()
            && matches!(arm.pattern.kind, MatchKind::Any | MatchKind::Bind(_))
        {
            return taken.1(self, state);
        }
        let other: Choice<'_, 'a> =
            ("otherwise".to_string(), Box::new(|i, s| i.arms(s, inner, rest, subject)));
        self.branch(state, inner.subject.span, vec![taken, other])
    }

    fn body(&mut self, state: &mut State<'a>, body: &'a Body) -> Value<'a> {
        match body {
            Body::Expr(expr) => self.expr(state, expr),
            Body::Block(block) => self.stmts(state, &block.stmts),
        }
    }

    fn matched(&mut self, state: &mut State<'a>, pattern: &'a MatchPat, value: &Value<'a>) {
        match &pattern.kind {
            MatchKind::Any | MatchKind::Value(_) => {}
            MatchKind::Bind(ident) => self.bind(state, ident, value.clone()),
            MatchKind::Array { elems, rest } => {
                for elem in elems.iter().flatten() {
                    elem.threshold.iter().for_each(|limit| drop(self.expr(state, limit)));
                    self.matched(state, &elem.pattern, &value.inside());
                }
                let rests = rest.iter().map(|ident| (ident, rest_of(value))).collect::<Vec<_>>();
                rests.into_iter().for_each(|(ident, value)| self.bind(state, ident, value));
            }
            MatchKind::Object { props, rest } => {
                for (key, elem) in props {
                    elem.threshold.iter().for_each(|limit| drop(self.expr(state, limit)));
                    let part = self.member(&Value { list: None, ..value.clone() }, key);
                    self.matched(state, &elem.pattern, &part);
                }
                rest.iter().for_each(|ident| self.bind(state, ident, value.clone()));
            }
        }
    }

    // What declarations, parameters and destructuring bind

    pub(super) fn target(&mut self, state: &mut State<'a>, target: &'a Target, value: Value<'a>, new: bool) {
        match target {
            Target::Name(ident) => self.set(state, ident, value, new),
            Target::Pattern(pattern) => self.pattern(state, pattern, &value, new, false),
        }
    }

    fn set(&mut self, state: &mut State<'a>, ident: &Ident, value: Value<'a>, new: bool) {
        if new { self.bind(state, ident, value) } else { self.assign(state, ident, value) }
    }

    /// `weak`: there is a threshold, which may turn anything into null, or an array into an empty one.
    pub(super) fn pattern(
        &mut self,
        state: &mut State<'a>,
        pattern: &'a Pattern,
        value: &Value<'a>,
        new: bool,
        weak: bool,
    ) {
        match &pattern.kind {
            PatternKind::Array { elems, rest } => {
                for elem in elems.iter().flatten() {
                    elem.threshold.iter().for_each(|limit| drop(self.expr(state, limit)));
                    let part = weakened(value.inside(), weak || elem.threshold.is_some());
                    self.target(state, &elem.target, part, new);
                }
                rest.iter().for_each(|ident| self.set(state, ident, rest_of(value), new));
            }
            PatternKind::Object { props, rest } => {
                for prop in props {
                    prop.threshold.iter().for_each(|limit| drop(self.expr(state, limit)));
                    let mut part = self.member(&Value { list: None, ..value.clone() }, &prop.key);
                    if let Some(default) = &prop.default {
                        let other = self.branch(
                            state,
                            default.span,
                            vec![
                                ("without it".to_string(), Box::new(move |i, s| i.expr(s, default))),
                                ("with it".to_string(), Box::new(|_, _| Value::default())),
                            ],
                        );
                        part = part.otherwise(&other);
                    }
                    let part = weakened(part, weak || prop.threshold.is_some());
                    self.target(state, &prop.target, part, new);
                }
                rest.iter().for_each(|ident| self.set(state, ident, value.clone(), new));
            }
        }
    }
}

/// The remaining elements.
fn rest_of<'a>(value: &Value<'a>) -> Value<'a> {
    let why = "how much of an array is left over cannot be told before the run".to_string();
    let list = value.as_list(&Reason { why, line: 0 });
    Value::list(Amount::default(), list.most, list.item)
}

fn weakened(value: Value<'_>, weak: bool) -> Value<'_> {
    let nothing = Value::list(Amount::default(), super::Most::zero(), Value::default());
    if weak { value.or(&nothing) } else { value }
}
