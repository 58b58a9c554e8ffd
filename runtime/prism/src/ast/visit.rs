//! The parts of a node, for walks that treat most nodes alike.

use super::*;

#[derive(Clone, Copy)]
pub(crate) enum Node<'a> {
    Expr(&'a Expr),
    Stmt(&'a Stmt),
    Block(&'a Block),
    Function(&'a Function),
}

type Visit<'a, 'v> = &'v mut dyn FnMut(Node<'a>);

impl Expr {
    /// The direct parts, in the order of the source.
    pub(crate) fn parts<'a>(&'a self, visit: Visit<'a, '_>) {
        match &self.kind {
            ExprKind::Template(parts) => parts.iter().for_each(|p| match p {
                Part::Expr(e) => visit(Node::Expr(e)),
                Part::Text(_) => {}
            }),
            ExprKind::Array(items) => items_of(items, visit),
            ExprKind::Object(pairs) => pairs.iter().for_each(|p| match p {
                Pair::Set(_, e) | Pair::Spread(e) => visit(Node::Expr(e)),
            }),
            ExprKind::Unary(_, e) => visit(Node::Expr(e)),
            ExprKind::Binary(first, rest) => {
                visit(Node::Expr(first));
                rest.iter().for_each(|(_, e)| visit(Node::Expr(e)));
            }
            ExprKind::Attach(value, confidence) => {
                visit(Node::Expr(value));
                visit(Node::Expr(confidence));
            }
            ExprKind::Ternary(t) => {
                [&t.cond, &t.then, &t.other].into_iter().for_each(|e| visit(Node::Expr(e)))
            }
            ExprKind::Pipe(first, stages) => {
                visit(Node::Expr(first));
                stages.iter().for_each(|(_, e)| visit(Node::Expr(e)));
            }
            ExprKind::Access(head, steps) => {
                visit(Node::Expr(head));
                steps.iter().for_each(|step| match &step.kind {
                    AccessKind::Call(items) => items_of(items, visit),
                    AccessKind::Index(e) => visit(Node::Expr(e)),
                    AccessKind::Member(..) => {}
                });
            }
            ExprKind::Lambda(f) => visit(Node::Function(f)),
            ExprKind::Match(m) => {
                visit(Node::Expr(&m.subject));
                for arm in &m.arms {
                    arm.pattern.parts(visit);
                    arm.threshold.iter().chain(&arm.guard).for_each(|e| visit(Node::Expr(e)));
                    arm.body.parts(visit);
                }
            }
            ExprKind::Null
            | ExprKind::Bool(_)
            | ExprKind::Num(_)
            | ExprKind::Str(_)
            | ExprKind::Placeholder
            | ExprKind::Ident(_) => {}
        }
    }
}

fn items_of<'a>(items: &'a [Item], visit: Visit<'a, '_>) {
    items.iter().for_each(|item| match item {
        Item::Expr(e) | Item::Spread(e) => visit(Node::Expr(e)),
        Item::Hole => {}
    });
}

impl Body {
    pub(crate) fn parts<'a>(&'a self, visit: Visit<'a, '_>) {
        match self {
            Body::Expr(e) => visit(Node::Expr(e)),
            Body::Block(block) => visit(Node::Block(block)),
        }
    }
}

impl Function {
    pub(crate) fn parts<'a>(&'a self, visit: Visit<'a, '_>) {
        self.confidence.iter().for_each(|e| visit(Node::Expr(e)));
        self.params.iter().chain(&self.rest).for_each(|p| p.parts(visit));
        self.body.parts(visit);
    }
}

impl Target {
    fn parts<'a>(&'a self, visit: Visit<'a, '_>) {
        if let Target::Pattern(pattern) = self {
            pattern.parts(visit);
        }
    }
}

impl Pattern {
    fn parts<'a>(&'a self, visit: Visit<'a, '_>) {
        match &self.kind {
            PatternKind::Array { elems, .. } => elems.iter().flatten().for_each(|elem| {
                elem.threshold.iter().for_each(|e| visit(Node::Expr(e)));
                elem.target.parts(visit);
            }),
            PatternKind::Object { props, .. } => props.iter().for_each(|prop| {
                prop.threshold.iter().chain(&prop.default).for_each(|e| visit(Node::Expr(e)));
                prop.target.parts(visit);
            }),
        }
    }
}

impl MatchPat {
    fn parts<'a>(&'a self, visit: Visit<'a, '_>) {
        let mut elem = |e: &'a MatchElem| {
            e.threshold.iter().for_each(|t| visit(Node::Expr(t)));
            e.pattern.parts(visit);
        };
        match &self.kind {
            MatchKind::Array { elems, .. } => elems.iter().flatten().for_each(&mut elem),
            MatchKind::Object { props, .. } => props.iter().for_each(|(_, e)| elem(e)),
            MatchKind::Any | MatchKind::Bind(_) | MatchKind::Value(_) => {}
        }
    }
}

impl Stmt {
    /// The direct parts, in the order of the source.
    pub(crate) fn parts<'a>(&'a self, visit: Visit<'a, '_>) {
        match &self.kind {
            StmtKind::Expr(e) => visit(Node::Expr(e)),
            StmtKind::Let { target, init, .. } => {
                target.parts(visit);
                init.iter().for_each(|e| visit(Node::Expr(e)));
            }
            StmtKind::Assign { value, .. } => visit(Node::Expr(value)),
            StmtKind::Destructure { pattern, threshold, value } => {
                pattern.parts(visit);
                threshold.iter().for_each(|e| visit(Node::Expr(e)));
                visit(Node::Expr(value));
            }
            StmtKind::Function(f) => visit(Node::Function(f)),
            StmtKind::Return(e) => e.iter().for_each(|e| visit(Node::Expr(e))),
            StmtKind::If { arms, otherwise } => {
                for (cond, body) in arms {
                    visit(Node::Expr(cond));
                    visit(Node::Stmt(body));
                }
                otherwise.iter().for_each(|s| visit(Node::Stmt(s)));
            }
            StmtKind::ForIn { over, body, .. } => {
                visit(Node::Expr(over));
                visit(Node::Stmt(body));
            }
            StmtKind::For { header, body } => {
                header.parts(visit);
                visit(Node::Stmt(body));
            }
            StmtKind::While { cond, body } => {
                visit(Node::Expr(cond));
                visit(Node::Stmt(body));
            }
            StmtKind::DoWhile { body, cond } => {
                visit(Node::Stmt(body));
                visit(Node::Expr(cond));
            }
            StmtKind::UncertainIf { cond, branches } | StmtKind::UncertainWhile { cond, branches } => {
                visit(Node::Expr(cond));
                branches.iter().flatten().for_each(|b| visit(Node::Block(b)));
            }
            StmtKind::UncertainFor { header, branches } => {
                header.parts(visit);
                branches.iter().flatten().for_each(|b| visit(Node::Block(b)));
            }
            StmtKind::Block(block) | StmtKind::Context(block) => visit(Node::Block(block)),
            StmtKind::Agents(agents) => agents.iter().for_each(|(_, e)| visit(Node::Expr(e))),
            StmtKind::Try(t) => {
                visit(Node::Block(&t.body));
                t.catch.iter().map(|(_, b)| b).chain(&t.finally).for_each(|b| visit(Node::Block(b)));
            }
            StmtKind::Export(Export::Default(e)) => visit(Node::Expr(e)),
            StmtKind::Export(Export::Stmt(inner)) => visit(Node::Stmt(inner)),
            StmtKind::Export(_) | StmtKind::Import(_) | StmtKind::Break | StmtKind::Continue => {}
        }
    }
}

impl Header {
    fn parts<'a>(&'a self, visit: Visit<'a, '_>) {
        self.init.iter().for_each(|s| visit(Node::Stmt(s)));
        self.cond.iter().for_each(|e| visit(Node::Expr(e)));
        self.update.iter().for_each(|s| visit(Node::Stmt(s)));
    }
}
