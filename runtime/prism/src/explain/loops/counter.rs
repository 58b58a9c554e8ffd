//! Loops with a counter: how often they go round can be told from where it begins, ends and how it steps.

use crate::ast::*;
use crate::compile::{Use, VarId, VarKind};
use crate::explain::Most;
use crate::explain::amount::{Amount, Atom};
use crate::explain::interpret::Interpreter;
use crate::explain::state::State;
use crate::walk::{Node, assignments, children};

impl<'a> Interpreter<'a> {
    /// `for let i = a; i < b; i += k`, where nothing else changes `i` or `b`: at least and at most how often.
    pub(super) fn counted(
        &mut self,
        state: &mut State<'a>,
        stmt: &'a Stmt,
        header: &'a Header,
    ) -> Option<(Amount, Amount)> {
        let init = &header.init.as_ref()?.kind;
        let start = match init {
            StmtKind::Let { target: Target::Name(ident), .. } => ident,
            StmtKind::Assign { target, op: None, .. } => target,
            _ => return None,
        };
        let cond = header.cond.as_ref()?;
        let bounds = bounds(cond);
        let var = self.variable(start)?;
        let bound =
            bounds.iter().find(|b| b.grows == Grows::Number && self.variable(b.ident) == Some(var))?;
        let step = self.step(&header.update.as_ref()?.kind, var, Grows::Number)?;
        let once = usize::from(matches!(init, StmtKind::Assign { .. })) + 1;
        if self.assignments(stmt, var) != once || !self.is_private(var) || !self.steady(bound.end) {
            return None;
        }
        let from = state.vars.get(&var)?.as_number();
        let (least, most) = self.distance(state, (from.least, from.most), bound, step)?;
        Some(if is_joined(cond) { (Amount::default(), most) } else { (least, most) })
    }

    /// `while i < b { … i += k … }` or `while xs.length < b { … xs = xs.push(x) … }`, where every turn comes to that
    /// statement and nothing else changes `i`, `xs` or `b`.
    pub(super) fn climbing(
        &mut self,
        state: &mut State<'a>,
        cond: &'a Expr,
        body: &'a Stmt,
    ) -> Option<(Amount, Amount)> {
        let StmtKind::Block(block) = &body.kind else { return None };
        if skips(Node::Stmt(body)) {
            return None;
        }
        let bounds = bounds(cond);
        let (bound, var, step) = bounds.iter().find_map(|bound| {
            let var = self.variable(bound.ident)?;
            let step = block.stmts.iter().find_map(|s| self.step(&s.kind, var, bound.grows))?;
            Some((bound, var, step))
        })?;
        if self.assignments(body, var) != 1 || !self.is_private(var) || !self.steady(bound.end) {
            return None;
        }
        let value = state.vars.get(&var)?;
        let from = match bound.grows {
            Grows::Number => {
                let number = value.as_number();
                (number.least, number.most)
            }
            Grows::List => {
                let list = value.list.as_ref()?;
                let most = match &list.most {
                    Most::Of(most) => Some(most.clone()),
                    Most::Unbounded(_) => None,
                };
                (Some(list.least.clone()), most)
            }
        };
        let (least, most) = self.distance(state, from, bound, step)?;
        Some(if is_joined(cond) { (Amount::default(), most) } else { (least, most) })
    }

    fn variable(&self, ident: &Ident) -> Option<VarId> {
        match self.resolved.uses[ident.id as usize] {
            Use::Var { var, .. } => Some(var),
            _ => None,
        }
    }

    /// No function can change it.
    fn is_private(&self, var: VarId) -> bool {
        !self.resolved.vars[var as usize].captured
    }

    fn assignments(&self, stmt: &'a Stmt, var: VarId) -> usize {
        assignments(Node::Stmt(stmt), &|ident| self.variable(ident) == Some(var))
    }

    /// By how much a statement lets the variable grow: a whole number from 1.
    fn step(&self, stmt: &StmtKind, var: VarId, grows: Grows) -> Option<f64> {
        let is_it = |ident: &Ident| self.variable(ident) == Some(var);
        let StmtKind::Assign { target, op, value } = stmt else { return None };
        let step = match (op, &value.kind, grows) {
            _ if !is_it(target) => return None,
            (Some(BinOp::Add), ExprKind::Num(step), Grows::Number) => *step,
            (None, ExprKind::Binary(first, rest), Grows::Number) => match (&first.kind, rest.as_slice()) {
                (ExprKind::Ident(ident), [(BinOp::Add, Expr { kind: ExprKind::Num(step), .. })])
                    if is_it(ident) =>
                {
                    *step
                }
                _ => return None,
            },
            (None, ExprKind::Access(head, steps), Grows::List) => match (&head.kind, steps.as_slice()) {
                (
                    ExprKind::Ident(ident),
                    [
                        Access { kind: AccessKind::Member(MemberOp::Dot, name), .. },
                        Access { kind: AccessKind::Call(args), .. },
                    ],
                ) if is_it(ident) && **name == *"push" => match args.as_slice() {
                    [Item::Expr(_)] => 1.0,
                    _ => return None,
                },
                _ => return None,
            },
            _ => return None,
        };
        (step >= 1.0 && step.fract() == 0.0).then_some(step)
    }

    /// How many such steps lie between a start, at the least and at the most, and the bound.
    fn distance(
        &mut self,
        state: &mut State<'a>,
        from: (Option<Amount>, Option<Amount>),
        bound: &Bound<'a>,
        step: f64,
    ) -> Option<(Amount, Amount)> {
        let steps = self.steps.len();
        let to = self.expr(state, bound.end).as_number();
        self.steps.truncate(steps);
        let more = Amount::from(i64::from(bound.inclusive));
        let size = Amount::from(step as i64);
        let over = |distance: Amount| {
            if step == 1.0 { distance.count() } else { Amount::of(Atom::Steps(distance, size.clone())) }
        };
        let least = match (to.least, &from.1) {
            (Some(to), Some(from)) if step == 1.0 => over(to.minus(from).plus(&more)),
            _ => Amount::default(),
        };
        Some((least, over(to.most?.minus(&from.0?).plus(&more))))
    }

    /// Whether it is the same whenever it is looked at.
    fn steady(&self, expr: &Expr) -> bool {
        let fixed = |ident: &Ident| match &self.resolved.uses[ident.id as usize] {
            Use::Var { var, .. } => {
                let var = &self.resolved.vars[*var as usize];
                var.kind == VarKind::Free || !var.assigned
            }
            _ => false,
        };
        match &expr.kind {
            ExprKind::Num(_) => true,
            ExprKind::Ident(ident) => fixed(ident),
            ExprKind::Access(head, steps) => {
                self.steady(head) && steps.iter().all(|step| matches!(step.kind, AccessKind::Member(..)))
            }
            ExprKind::Binary(first, rest) => self.steady(first) && rest.iter().all(|(_, e)| self.steady(e)),
            _ => false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Grows {
    Number,
    /// Its length is what is compared.
    List,
}

/// `ident < end`, or `ident.length < end`.
struct Bound<'a> {
    ident: &'a Ident,
    grows: Grows,
    inclusive: bool,
    end: &'a Expr,
}

/// What bounds a condition: a comparison, or each that is joined with others by `&&`.
fn bounds(cond: &Expr) -> Vec<Bound<'_>> {
    let mut found = Vec::new();
    if let ExprKind::Binary(first, rest) = &cond.kind {
        if rest.iter().all(|(op, _)| *op == BinOp::And) {
            found.extend(std::iter::once(&**first).chain(rest.iter().map(|(_, e)| e)).flat_map(bounds));
        } else if let [(op @ (BinOp::Lt | BinOp::Le), end)] = rest.as_slice() {
            let (ident, grows) = match &first.kind {
                ExprKind::Ident(ident) => (ident, Grows::Number),
                ExprKind::Access(head, steps) => match (&head.kind, steps.as_slice()) {
                    (
                        ExprKind::Ident(ident),
                        [Access { kind: AccessKind::Member(MemberOp::Dot, name), .. }],
                    ) if **name == *"length" => (ident, Grows::List),
                    _ => return found,
                },
                _ => return found,
            };
            found.push(Bound { ident, grows, inclusive: *op == BinOp::Le, end });
        }
    }
    found
}

/// Whether the loop may end before it comes to a bound.
fn is_joined(cond: &Expr) -> bool {
    matches!(&cond.kind, ExprKind::Binary(_, rest) if rest.iter().any(|(op, _)| *op == BinOp::And))
}

/// Whether a `continue` is in there; one of an inner loop counts too, which only makes less certain.
fn skips(node: Node<'_>) -> bool {
    let mut found = matches!(node, Node::Stmt(s) | Node::Body(s) if matches!(s.kind, StmtKind::Continue));
    children(node, &mut |part| found = found || skips(part));
    found
}
