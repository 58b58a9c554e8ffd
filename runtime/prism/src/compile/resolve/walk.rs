//! The walk over a file's tree, in the order in which it runs where that matters.

use super::{Resolver, State, Use, VarKind};
use crate::ast::*;

impl Resolver<'_> {
    fn maybe<T>(&mut self, walk: impl FnOnce(&mut Self) -> T) -> T {
        self.conditional += 1;
        let result = walk(self);
        self.conditional -= 1;
        result
    }

    pub(super) fn stmts(&mut self, stmts: &[Stmt]) {
        stmts.iter().for_each(|s| self.stmt(s));
    }

    fn scoped(&mut self, walk: impl FnOnce(&mut Self)) {
        let func = self.func();
        self.push_scope(func);
        walk(self);
        self.scopes.pop();
    }

    fn block(&mut self, block: &Block) {
        self.scoped(|r| {
            r.predeclare(&block.stmts, State::Ahead);
            r.stmts(&block.stmts);
        });
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match &stmt.kind {
            StmtKind::Expr(e) => self.expr(e),
            StmtKind::Let { target, init, constant } => {
                self.maybe_expr(init.as_ref());
                let kind = if *constant { VarKind::Const } else { VarKind::Let };
                self.bind(target, kind);
            }
            StmtKind::Assign { target, value, op } => {
                // `x += 1` reads `x` through the same occurrence.
                self.expr(value);
                self.lookup(target, true);
                if op.is_none() && self.conditional == 0 && self.scopes.len() == 1 {
                    self.definite.insert(target.name);
                }
            }
            StmtKind::Destructure { pattern, threshold, value } => {
                self.expr(value);
                self.maybe_expr(threshold.as_ref());
                self.assign_pattern(pattern);
            }
            StmtKind::Function(f) => {
                if !self.is_top() {
                    self.declare_function(f, State::Ahead);
                }
                self.function(f);
                if !self.is_top() {
                    self.declare_function(f, State::Declared);
                }
            }
            StmtKind::Return(e) => self.maybe_expr(e.as_ref()),
            StmtKind::Break | StmtKind::Continue => {}
            StmtKind::If { arms, otherwise } => {
                for (cond, body) in arms {
                    self.expr(cond);
                    self.maybe(|r| r.scoped(|r| r.stmt(body)));
                }
                self.maybe(|r| r.scoped(|r| otherwise.iter().for_each(|s| r.stmt(s))));
            }
            StmtKind::ForIn { item, index, over, body } => {
                self.expr(over);
                self.maybe(|r| {
                    r.scoped(|r| {
                        r.declare(item, VarKind::Let, State::Declared);
                        index.iter().for_each(|i| r.declare(i, VarKind::Let, State::Declared));
                        r.shared(item);
                        index.iter().for_each(|i| r.shared(i));
                        r.scoped(|r| r.stmt(body));
                    });
                });
            }
            StmtKind::For { header, body } => {
                self.maybe(|r| r.for_loop(header, |r| r.scoped(|r| r.stmt(body))))
            }
            StmtKind::UncertainFor { header, branches } => {
                self.maybe(|r| r.for_loop(header, |r| r.branches(branches)));
            }
            StmtKind::While { cond, body } => self.maybe(|r| {
                r.expr(cond);
                r.scoped(|r| r.stmt(body));
            }),
            StmtKind::DoWhile { body, cond } => self.maybe(|r| {
                r.scoped(|r| r.stmt(body));
                r.expr(cond);
            }),
            StmtKind::UncertainIf { cond, branches } => {
                self.expr(cond);
                self.maybe(|r| r.branches(branches));
            }
            StmtKind::UncertainWhile { cond, branches } => self.maybe(|r| {
                r.expr(cond);
                r.branches(branches);
            }),
            StmtKind::Block(block) => self.maybe(|r| r.block(block)),
            StmtKind::Context(block) => self.stmts(&block.stmts),
            StmtKind::Agents(agents) => {
                for (ident, properties) in agents {
                    self.expr(properties);
                    self.declare(ident, VarKind::Let, State::Declared);
                }
            }
            StmtKind::Try(t) => self.maybe(|r| {
                r.block(&t.body);
                if let Some((name, block)) = &t.catch {
                    r.scoped(|r| {
                        name.iter().for_each(|n| r.declare(n, VarKind::Let, State::Declared));
                        r.block(block);
                    });
                }
                t.finally.iter().for_each(|b| r.block(b));
            }),
            StmtKind::Import(_) => {}
            StmtKind::Export(export) => match export {
                Export::Default(e) => self.expr(e),
                Export::Names(names) => names.iter().for_each(|(ident, _)| self.lookup(ident, false)),
                Export::Stmt(inner) => {
                    self.stmt(inner);
                }
                Export::All { .. } | Export::From { .. } => {}
            },
        }
    }

    /// A loop has one variable for all its turns, so what captures it sees it change.
    fn shared(&mut self, ident: &Ident) {
        if let Use::Var { var, .. } = self.out.uses[ident.id as usize] {
            self.out.vars[var as usize].assigned = true;
        }
    }

    fn is_top(&self) -> bool {
        let func = self.func();
        self.out.mains.contains(&func) && self.at_top(func)
    }

    fn for_loop(&mut self, header: &Header, body: impl FnOnce(&mut Self)) {
        self.scoped(|r| {
            if let Some(init) = &header.init {
                r.stmt(init);
            }
            r.maybe_expr(header.cond.as_ref());
            body(r);
            if let Some(update) = &header.update {
                r.stmt(update);
            }
        });
    }

    fn branches(&mut self, branches: &Branches) {
        branches.iter().flatten().for_each(|b| self.block(b));
    }

    pub(super) fn declare_function(&mut self, f: &Function, state: State) {
        if let Some(name) = &f.name {
            self.declare(name, VarKind::Function, state);
        }
    }

    fn function(&mut self, f: &Function) {
        self.maybe_expr(f.confidence.as_ref());
        let func = self.new_func(Some(self.func()));
        self.out.by_span.insert((f.span.file, f.span.start), func);
        self.push_scope(func);
        self.conditional += 1;
        f.params.iter().chain(&f.rest).for_each(|p| self.bind(p, VarKind::Param));
        match &f.body {
            Body::Expr(e) => self.expr(e),
            Body::Block(block) => {
                self.predeclare(&block.stmts, State::Late);
                self.stmts(&block.stmts);
            }
        }
        self.conditional -= 1;
        self.scopes.pop();
    }

    fn bind(&mut self, target: &Target, kind: VarKind) {
        match target {
            Target::Name(ident) => self.declare(ident, kind, State::Declared),
            Target::Pattern(pattern) => {
                // What a pattern takes apart is declared, parameter or not.
                let kind = if kind == VarKind::Param { VarKind::Let } else { kind };
                self.pattern_exprs(pattern);
                let mut idents = Vec::new();
                pattern.names(&mut idents);
                idents.into_iter().for_each(|i| self.declare(i, kind, State::Declared));
            }
        }
    }

    fn assign_pattern(&mut self, pattern: &Pattern) {
        self.pattern_exprs(pattern);
        let mut idents = Vec::new();
        pattern.names(&mut idents);
        idents.into_iter().for_each(|i| self.lookup(i, true));
    }

    fn pattern_exprs(&mut self, pattern: &Pattern) {
        let nested = |r: &mut Self, target: &Target| {
            if let Target::Pattern(p) = target {
                r.pattern_exprs(p);
            }
        };
        match &pattern.kind {
            PatternKind::Array { elems, .. } => {
                for elem in elems.iter().flatten() {
                    self.maybe_expr(elem.threshold.as_ref());
                    nested(self, &elem.target);
                }
            }
            PatternKind::Object { props, .. } => {
                for prop in props {
                    self.maybe_expr(prop.threshold.as_ref());
                    self.maybe_expr(prop.default.as_ref());
                    nested(self, &prop.target);
                }
            }
        }
    }

    fn maybe_expr(&mut self, e: Option<&Expr>) {
        e.into_iter().for_each(|e| self.expr(e));
    }

    fn expr(&mut self, e: &Expr) {
        match &e.kind {
            ExprKind::Ident(ident) => self.lookup(ident, false),
            ExprKind::Template(parts) => parts.iter().for_each(|p| match p {
                Part::Expr(e) => self.expr(e),
                Part::Text(_) => {}
            }),
            ExprKind::Array(items) => self.items(items),
            ExprKind::Object(pairs) => pairs.iter().for_each(|p| match p {
                Pair::Set(_, e) | Pair::Spread(e) => self.expr(e),
            }),
            ExprKind::Unary(_, e) => self.expr(e),
            ExprKind::Binary(first, rest) => {
                self.expr(first);
                rest.iter().for_each(|(_, e)| self.expr(e));
            }
            ExprKind::Attach(value, confidence) => {
                self.expr(value);
                self.expr(confidence);
            }
            ExprKind::Ternary(t) => {
                self.expr(&t.cond);
                self.maybe(|r| {
                    r.expr(&t.then);
                    r.expr(&t.other);
                });
            }
            ExprKind::Pipe(first, stages) => {
                self.expr(first);
                stages.iter().for_each(|(_, e)| self.expr(e));
            }
            ExprKind::Access(head, steps) => {
                self.expr(head);
                for step in steps {
                    match &step.kind {
                        AccessKind::Call(items) => self.items(items),
                        AccessKind::Index(e) => self.expr(e),
                        AccessKind::Member(..) => {}
                    }
                }
            }
            ExprKind::Lambda(f) => self.function(f),
            ExprKind::Match(m) => {
                self.expr(&m.subject);
                self.maybe(|r| m.arms.iter().for_each(|arm| r.arm(arm)));
            }
            ExprKind::Null
            | ExprKind::Bool(_)
            | ExprKind::Num(_)
            | ExprKind::Str(_)
            | ExprKind::Placeholder => {}
        }
    }

    fn items(&mut self, items: &[Item]) {
        items.iter().for_each(|item| match item {
            Item::Expr(e) | Item::Spread(e) => self.expr(e),
            Item::Hole => {}
        });
    }

    fn arm(&mut self, arm: &Arm) {
        self.scoped(|r| {
            r.match_pattern(&arm.pattern);
            r.maybe_expr(arm.threshold.as_ref());
            r.maybe_expr(arm.guard.as_ref());
            match &arm.body {
                Body::Expr(e) => r.expr(e),
                Body::Block(block) => r.block(block),
            }
        });
    }

    fn match_pattern(&mut self, pattern: &MatchPat) {
        let elem = |r: &mut Self, elem: &MatchElem| {
            r.maybe_expr(elem.threshold.as_ref());
            r.match_pattern(&elem.pattern);
        };
        match &pattern.kind {
            MatchKind::Any | MatchKind::Value(_) => {}
            MatchKind::Bind(ident) => self.rebind(ident),
            MatchKind::Array { elems, rest } => {
                elems.iter().flatten().for_each(|e| elem(self, e));
                rest.iter().for_each(|i| self.rebind(i));
            }
            MatchKind::Object { props, rest } => {
                props.iter().for_each(|(_, e)| elem(self, e));
                rest.iter().for_each(|i| self.rebind(i));
            }
        }
    }

    /// A name bound twice by one `match` pattern keeps the later value.
    fn rebind(&mut self, ident: &Ident) {
        match self.scopes.last().and_then(|s| s.names.get(&ident.name)).copied() {
            Some((var, _)) => self.out.uses[ident.id as usize] = Use::Var { var, check: false },
            None => self.declare(ident, VarKind::Let, State::Declared),
        }
    }
}
