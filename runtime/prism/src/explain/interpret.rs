//! Statements and functions, followed with what is known of their values.

use super::amount::{Amount, Atom};
use super::state::State;
use super::value::{Callable, Value};
use super::{Asked, Explanation, Most, Reason, Step, Way};
use crate::Profile;
use crate::ast::*;
use crate::builtins;
use crate::compile::{Resolved, Use, VarId, VarKind};
use crate::diagnostic::{File, Span, line_column};
use crate::lexer::Names;
use crate::value::Val;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Expressions and statements that are looked at, again and again in loops and wherever a function is called.
const MAX_WORK: u32 = 100_000;
/// How deep they nest, through calls of functions too.
const MAX_DEPTH: u32 = 120;

pub(super) struct Interpreter<'a> {
    pub(super) resolved: &'a Resolved,
    pub(super) names: &'a Names,
    file: &'a File,
    pub(super) profile: Profile,
    /// Of the part of the program that is being followed.
    pub(super) steps: Vec<Step>,
    /// Of the function that is being followed.
    pub(super) loops: Vec<Exits<'a>>,
    /// Of each function that is being followed: where it was left, and with what.
    pub(super) returns: Vec<Vec<(State<'a>, Value<'a>)>>,
    /// What was assigned in each `try`, at any time: a `catch` may see it.
    pub(super) tries: Vec<BTreeMap<VarId, Value<'a>>>,
    pub(super) functions: Vec<&'a Function>,
    /// Functions that were called while they ran.
    pub(super) recursive: BTreeSet<(u32, u32)>,
    pub(super) pipes: Vec<Value<'a>>,
    /// Variables of closures of which there is more than one instance.
    twice: BTreeSet<VarId>,
    everyone: bool,
    /// Something may have been cancelled before it was asked.
    pub(super) raced: bool,
    pub(super) next_mark: u32,
    /// How many `reduce` are being followed, one inside the other.
    pub(super) reducing: u32,
    work: u32,
    depth: u32,
    lost: Option<Reason>,
}

/// Where a loop was left, and where its next turn was begun.
#[derive(Default)]
pub(super) struct Exits<'a> {
    pub(super) breaks: Vec<State<'a>>,
    pub(super) continues: Vec<State<'a>>,
}

/// One way to go on, and when it is taken.
pub(super) type Choice<'i, 'a> =
    (String, Box<dyn FnOnce(&mut Interpreter<'a>, &mut State<'a>) -> Value<'a> + 'i>);

impl<'a> Interpreter<'a> {
    pub(super) fn new(resolved: &'a Resolved, names: &'a Names, file: &'a File, profile: Profile) -> Self {
        Interpreter {
            resolved,
            names,
            file,
            profile,
            steps: Vec::new(),
            loops: Vec::new(),
            returns: Vec::new(),
            tries: Vec::new(),
            functions: Vec::new(),
            recursive: BTreeSet::new(),
            pipes: Vec::new(),
            twice: BTreeSet::new(),
            everyone: false,
            raced: false,
            next_mark: 0,
            reducing: 0,
            work: 0,
            depth: 0,
            lost: None,
        }
    }

    pub(super) fn program(mut self, tree: &'a Tree) -> Explanation {
        let mut state = State::default();
        self.returns.push(Vec::new());
        for stmt in &tree.stmts {
            match &stmt.kind {
                StmtKind::Function(f) => self.declare(&mut state, f),
                StmtKind::Import(_) | StmtKind::Export(_) => {
                    self.give_up("what other files do is not looked at", stmt.span);
                }
                _ => {}
            }
        }
        self.stmts(&mut state, &tree.stmts);
        for (left, _) in self.returns.pop().unwrap_or_default() {
            state = state.or(left);
        }
        let all = Amount::of(Atom::Agents);
        let mut calls = state.calls;
        if state.asked {
            calls.least = calls.least.plus(&all);
        }
        if self.everyone {
            calls.most = calls.most.plus(&Most::Of(all));
        }
        if self.raced {
            calls.least = Amount::default();
        }
        if let Some(reason) = self.lost {
            calls.least = Amount::default();
            calls.most = Most::Unbounded(reason);
        }
        Explanation { least: calls.least, most: calls.most, steps: self.steps }
    }

    pub(super) fn line(&self, span: Span) -> u32 {
        line_column(&self.file.source, span.start).0
    }

    /// The source on one line.
    pub(super) fn source(&self, from: u32, to: u32) -> String {
        let text = self.file.source.get(from as usize..to as usize).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub(super) fn text(&self, span: Span) -> String {
        self.source(span.start, span.end)
    }

    /// Nothing more can be told.
    pub(super) fn give_up(&mut self, why: &str, span: Span) {
        let line = self.line(span);
        self.lost.get_or_insert_with(|| Reason { why: why.to_string(), line });
    }

    /// Whether to look at one more part of the program. Whoever is told so calls `leave` afterwards.
    pub(super) fn enter(&mut self, span: Span) -> bool {
        self.work += 1;
        if self.work > MAX_WORK || self.depth >= MAX_DEPTH {
            self.give_up("the program is too involved to be followed", span);
        }
        self.depth += u32::from(self.lost.is_none());
        self.lost.is_none()
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    /// From here on there is no most.
    pub(super) fn unbounded(&mut self, state: &mut State<'a>, why: &str, line: u32) {
        let reason = Reason { why: why.to_string(), line };
        state.calls.most = state.calls.most.plus(&Most::Unbounded(reason));
    }

    pub(super) fn ask(&mut self, asked: Asked, what: Option<Arc<str>>, line: u32) {
        self.steps.push(Step::Ask { asked, what: what.map(|text| text.to_string()), line });
    }

    // Variables

    pub(super) fn read(&mut self, state: &mut State<'a>, ident: &Ident) -> Value<'a> {
        let resolved = self.resolved;
        let vars: &[VarId] = match &resolved.uses[ident.id as usize] {
            Use::Var { var, .. } => std::slice::from_ref(var),
            Use::Chain(vars) => vars,
            _ => &[],
        };
        let mut all: Vec<Value<'a>> = vars.iter().filter_map(|var| state.vars.get(var).cloned()).collect();
        // Until it is assigned, such a name means what the host or the library gives.
        let early =
            |var: &VarId| matches!(resolved.vars[*var as usize].kind, VarKind::Free | VarKind::Implicit);
        if vars.iter().any(early) {
            all.push(self.given(state, ident));
        }
        all.into_iter().reduce(|a, b| a.or(&b)).unwrap_or_default()
    }

    /// What a name means that the program does not define.
    fn given(&mut self, state: &mut State<'a>, ident: &Ident) -> Value<'a> {
        let all = Amount::of(Atom::Agents);
        match &**self.names.text(ident.name) {
            "input" => Value::data(Some(Vec::new())),
            "agents" | "agentList" => Value::list(all.clone(), Most::Of(all), Value::agent()),
            "agentCount" => Value::exactly(all),
            name @ ("agentResults" | "successfulResults") => {
                if !state.asked {
                    self.ask(Asked::Everyone, None, self.line(ident.span));
                }
                self.everyone = true;
                state.asked = true;
                let least = if name == "agentResults" { all.clone() } else { Amount::default() };
                Value::list(least, Most::Of(all), Value::data(None))
            }
            name => match builtins::global(name, self.profile) {
                Some(Val::Native(native)) => Value::callable(Callable::Native(native)),
                Some(Val::Obj(members)) => Value::object(
                    members
                        .entries()
                        .filter_map(|(key, member)| match member {
                            Val::Native(native) => {
                                Some((key.clone(), Value::callable(Callable::Native(*native))))
                            }
                            _ => None,
                        })
                        .collect(),
                ),
                _ => Value::default(),
            },
        }
    }

    pub(super) fn write(&mut self, state: &mut State<'a>, var: VarId, value: Value<'a>) {
        for seen in &mut self.tries {
            let before = seen.remove(&var).unwrap_or_default();
            seen.insert(var, before.or(&value));
        }
        let value = match state.vars.remove(&var) {
            Some(before) if self.twice.contains(&var) => before.or(&value),
            _ => value,
        };
        state.vars.insert(var, value);
    }

    pub(super) fn assign(&mut self, state: &mut State<'a>, ident: &Ident, value: Value<'a>) {
        let resolved = self.resolved;
        match &resolved.uses[ident.id as usize] {
            Use::Var { var, .. } => self.write(state, *var, value),
            Use::Chain(vars) => {
                for var in vars {
                    let either = state.vars.get(var).cloned().unwrap_or_default().or(&value);
                    self.write(state, *var, either);
                }
            }
            _ => {}
        }
    }

    /// A new variable.
    pub(super) fn bind(&mut self, state: &mut State<'a>, ident: &Ident, value: Value<'a>) {
        if let Use::Var { var, .. } = self.resolved.uses[ident.id as usize]
            && self.resolved.vars[var as usize].captured
            && state.vars.contains_key(&var)
        {
            // A closure may still hold the earlier one.
            self.twice.insert(var);
        }
        self.assign(state, ident, value);
    }

    fn declare(&mut self, state: &mut State<'a>, f: &'a Function) {
        if let Some(name) = &f.name {
            self.bind(state, name, Value::callable(Callable::Own(f)));
        }
    }

    // Statements

    pub(super) fn stmts(&mut self, state: &mut State<'a>, stmts: &'a [Stmt]) -> Value<'a> {
        let mut value = Value::default();
        for stmt in stmts {
            if state.dead {
                break;
            }
            value = self.stmt(state, stmt);
        }
        value
    }

    pub(super) fn stmt(&mut self, state: &mut State<'a>, stmt: &'a Stmt) -> Value<'a> {
        if !self.enter(stmt.span) {
            return Value::lost();
        }
        let value = self.kind(state, stmt);
        state.calls.most.place(self.line(stmt.span));
        self.leave();
        value
    }

    fn kind(&mut self, state: &mut State<'a>, stmt: &'a Stmt) -> Value<'a> {
        match &stmt.kind {
            StmtKind::Expr(expr) | StmtKind::Export(Export::Default(expr)) => self.expr(state, expr),
            StmtKind::Let { target, init, .. } => {
                let value = init.as_ref().map(|init| self.expr(state, init)).unwrap_or_default();
                self.target(state, target, value, true);
                Value::default()
            }
            StmtKind::Assign { target, op, value } => {
                let mut value = self.expr(state, value);
                if let Some(op) = op {
                    let before = self.read(state, target);
                    value = self.operate(*op, before, value);
                }
                self.assign(state, target, value.clone());
                value
            }
            StmtKind::Destructure { pattern, threshold, value } => {
                let value = self.expr(state, value);
                threshold.iter().for_each(|limit| drop(self.expr(state, limit)));
                self.pattern(state, pattern, &value, false, threshold.is_some());
                value
            }
            StmtKind::Function(f) => {
                f.confidence.iter().for_each(|expr| drop(self.expr(state, expr)));
                self.declare(state, f);
                Value::callable(Callable::Own(f))
            }
            StmtKind::Return(expr) => {
                let value = expr.as_ref().map(|expr| self.expr(state, expr)).unwrap_or_default();
                self.steps.push(Step::Leave { way: Way::Return, line: self.line(stmt.span) });
                let left = std::mem::replace(state, State::dead());
                self.returns.last_mut().expect("the program is followed").push((left, value));
                Value::default()
            }
            StmtKind::Break | StmtKind::Continue => {
                // Outside a loop it is an error.
                if let Some(exits) = self.loops.last_mut() {
                    let left = std::mem::replace(state, State::dead());
                    let way = if matches!(stmt.kind, StmtKind::Break) {
                        exits.breaks.push(left);
                        Way::Break
                    } else {
                        exits.continues.push(left);
                        Way::Continue
                    };
                    self.steps.push(Step::Leave { way, line: self.line(stmt.span) });
                }
                Value::default()
            }
            StmtKind::If { arms, otherwise } => self.choose(state, arms, otherwise.as_deref()),
            StmtKind::UncertainIf { cond, branches } => {
                self.expr(state, cond);
                self.levels(state, cond.span, branches)
            }
            StmtKind::ForIn { .. }
            | StmtKind::For { .. }
            | StmtKind::While { .. }
            | StmtKind::DoWhile { .. }
            | StmtKind::UncertainWhile { .. }
            | StmtKind::UncertainFor { .. } => self.looping(state, stmt),
            StmtKind::Block(block) | StmtKind::Context(block) => self.stmts(state, &block.stmts),
            StmtKind::Agents(agents) => {
                for (ident, expr) in agents {
                    let value = self.expr(state, expr);
                    self.bind(state, ident, value);
                }
                Value::default()
            }
            StmtKind::Try(inner) => self.attempt(state, inner),
            StmtKind::Export(Export::Stmt(inner)) => self.stmt(state, inner),
            StmtKind::Import(_) | StmtKind::Export(_) => Value::default(),
        }
    }

    fn choose(
        &mut self,
        state: &mut State<'a>,
        arms: &'a [(Expr, Stmt)],
        otherwise: Option<&'a Stmt>,
    ) -> Value<'a> {
        let Some(((cond, then), rest)) = arms.split_first() else {
            return otherwise.map(|stmt| self.stmt(state, stmt)).unwrap_or_default();
        };
        self.expr(state, cond);
        self.branch(
            state,
            cond.span,
            vec![
                ("yes".to_string(), Box::new(move |i, s| i.stmt(s, then))),
                ("no".to_string(), Box::new(move |i, s| i.choose(s, rest, otherwise))),
            ],
        )
    }

    /// The branches of `uncertain`, of which one is taken or none.
    pub(super) fn levels(&mut self, state: &mut State<'a>, cond: Span, branches: &'a Branches) -> Value<'a> {
        let names = ["high", "medium", "low", "default"];
        let mut choices: Vec<Choice<'_, 'a>> = Vec::new();
        for (name, block) in names.iter().zip(branches) {
            if let Some(block) = block {
                choices.push((name.to_string(), Box::new(move |i, s| i.stmts(s, &block.stmts))));
            }
        }
        let [high, medium, low, default] = branches;
        if default.is_none() && (high.is_none() || medium.is_none() || low.is_none()) {
            choices.push(("otherwise".to_string(), Box::new(|_, _| Value::default())));
        }
        self.branch(state, cond, choices)
    }

    /// Any one of the choices is taken.
    pub(super) fn branch(
        &mut self,
        state: &mut State<'a>,
        condition: Span,
        choices: Vec<Choice<'_, 'a>>,
    ) -> Value<'a> {
        let before = std::mem::take(&mut self.steps);
        let entry = std::mem::replace(state, State::dead());
        let (mut value, mut arms) = (None::<Value<'a>>, Vec::new());
        for (when, run) in choices {
            let mut own = entry.clone();
            let given = run(self, &mut own);
            if !own.dead {
                value = Some(value.map_or(given.clone(), |value| value.or(&given)));
            }
            *state = std::mem::take(state).or(own);
            arms.push(super::Arm { when, steps: std::mem::take(&mut self.steps) });
        }
        self.steps = before;
        if arms.iter().any(|arm| !arm.steps.is_empty()) {
            let (condition, line) = (self.text(condition), self.line(condition));
            self.steps.push(Step::Branch { condition, arms, line });
        }
        value.unwrap_or_default()
    }
}
