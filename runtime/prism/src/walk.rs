//! What stands inside what in a syntax tree, for everything that looks at programs without running them.

use crate::ast::*;

/// A part of a tree.
#[derive(Clone, Copy)]
pub(crate) enum Node<'a> {
    Stmt(&'a Stmt),
    /// The body of an `if` or a loop that is no block.
    Body(&'a Stmt),
    Block(&'a Block),
    /// A branch of `uncertain`.
    Branch(&'a Block),
    Expr(&'a Expr),
    Function(&'a Function),
    Target(&'a Target),
    Arm(&'a Arm),
    Match(&'a MatchPat),
    Catch(Option<&'a Ident>, &'a Block),
}

/// Calls `visit` with the parts directly inside, in the order of the source.
pub(crate) fn children<'a>(node: Node<'a>, visit: &mut dyn FnMut(Node<'a>)) {
    match node {
        Node::Stmt(stmt) | Node::Body(stmt) => of_stmt(stmt, visit),
        Node::Block(block) | Node::Branch(block) | Node::Catch(_, block) => {
            block.stmts.iter().for_each(|stmt| visit(Node::Stmt(stmt)));
        }
        Node::Expr(expr) => of_expr(expr, visit),
        Node::Function(function) => {
            function.params.iter().chain(&function.rest).for_each(|target| visit(Node::Target(target)));
            function.confidence.iter().for_each(|expr| visit(Node::Expr(expr)));
            of_body(&function.body, visit);
        }
        Node::Target(Target::Name(_)) => {}
        Node::Target(Target::Pattern(pattern)) => of_pattern(pattern, visit),
        Node::Arm(arm) => {
            visit(Node::Match(&arm.pattern));
            arm.threshold.iter().chain(&arm.guard).for_each(|expr| visit(Node::Expr(expr)));
            of_body(&arm.body, visit);
        }
        Node::Match(pattern) => {
            let mut element = |elem: &'a MatchElem| {
                visit(Node::Match(&elem.pattern));
                elem.threshold.iter().for_each(|expr| visit(Node::Expr(expr)));
            };
            match &pattern.kind {
                MatchKind::Array { elems, .. } => elems.iter().flatten().for_each(element),
                MatchKind::Object { props, .. } => props.iter().for_each(|(_, elem)| element(elem)),
                _ => {}
            }
        }
    }
}

fn of_body<'a>(body: &'a Body, visit: &mut dyn FnMut(Node<'a>)) {
    match body {
        Body::Expr(expr) => visit(Node::Expr(expr)),
        Body::Block(block) => visit(Node::Block(block)),
    }
}

fn of_pattern<'a>(pattern: &'a Pattern, visit: &mut dyn FnMut(Node<'a>)) {
    match &pattern.kind {
        PatternKind::Array { elems, .. } => {
            for elem in elems.iter().flatten() {
                visit(Node::Target(&elem.target));
                elem.threshold.iter().for_each(|expr| visit(Node::Expr(expr)));
            }
        }
        PatternKind::Object { props, .. } => {
            for prop in props {
                visit(Node::Target(&prop.target));
                prop.threshold.iter().chain(&prop.default).for_each(|expr| visit(Node::Expr(expr)));
            }
        }
    }
}

fn of_stmt<'a>(stmt: &'a Stmt, visit: &mut dyn FnMut(Node<'a>)) {
    let body = |stmt: &'a Stmt| match &stmt.kind {
        StmtKind::Block(block) if block.span.start == stmt.span.start => Node::Block(block),
        _ => Node::Body(stmt),
    };
    match &stmt.kind {
        StmtKind::Expr(expr) | StmtKind::Return(Some(expr)) => visit(Node::Expr(expr)),
        StmtKind::Let { target, init, .. } => {
            visit(Node::Target(target));
            init.iter().for_each(|expr| visit(Node::Expr(expr)));
        }
        StmtKind::Assign { value, .. } => visit(Node::Expr(value)),
        StmtKind::Destructure { pattern, threshold, value } => {
            of_pattern(pattern, visit);
            threshold.iter().for_each(|expr| visit(Node::Expr(expr)));
            visit(Node::Expr(value));
        }
        StmtKind::Function(function) => visit(Node::Function(function)),
        StmtKind::If { arms, otherwise } => {
            for (cond, stmt) in arms {
                visit(Node::Expr(cond));
                visit(body(stmt));
            }
            otherwise.iter().for_each(|stmt| visit(body(stmt)));
        }
        StmtKind::ForIn { over, body: inner, .. } => {
            visit(Node::Expr(over));
            visit(body(inner));
        }
        StmtKind::For { header, body: inner } => {
            of_header(header, visit);
            visit(body(inner));
        }
        StmtKind::While { cond, body: inner } => {
            visit(Node::Expr(cond));
            visit(body(inner));
        }
        StmtKind::DoWhile { body: inner, cond } => {
            visit(body(inner));
            visit(Node::Expr(cond));
        }
        StmtKind::UncertainIf { cond, branches } | StmtKind::UncertainWhile { cond, branches } => {
            visit(Node::Expr(cond));
            branches.iter().flatten().for_each(|block| visit(Node::Branch(block)));
        }
        StmtKind::UncertainFor { header, branches } => {
            of_header(header, visit);
            branches.iter().flatten().for_each(|block| visit(Node::Branch(block)));
        }
        StmtKind::Block(block) | StmtKind::Context(block) => visit(Node::Block(block)),
        StmtKind::Agents(agents) => agents.iter().for_each(|(_, expr)| visit(Node::Expr(expr))),
        StmtKind::Try(inner) => {
            visit(Node::Block(&inner.body));
            if let Some((name, block)) = &inner.catch {
                visit(Node::Catch(name.as_ref(), block));
            }
            inner.finally.iter().for_each(|block| visit(Node::Block(block)));
        }
        StmtKind::Export(Export::Default(expr)) => visit(Node::Expr(expr)),
        StmtKind::Export(Export::Stmt(inner)) => of_stmt(inner, visit),
        StmtKind::Return(None)
        | StmtKind::Break
        | StmtKind::Continue
        | StmtKind::Import(_)
        | StmtKind::Export(_) => {}
    }
}

fn of_header<'a>(header: &'a Header, visit: &mut dyn FnMut(Node<'a>)) {
    // Its parts are statements that own no line.
    header.init.iter().for_each(|stmt| of_stmt(stmt, visit));
    header.cond.iter().for_each(|expr| visit(Node::Expr(expr)));
    header.update.iter().for_each(|stmt| of_stmt(stmt, visit));
}

fn of_expr<'a>(expr: &'a Expr, visit: &mut dyn FnMut(Node<'a>)) {
    let of_items = |items: &'a [Item], visit: &mut dyn FnMut(Node<'a>)| {
        for item in items {
            if let Item::Expr(expr) | Item::Spread(expr) = item {
                visit(Node::Expr(expr));
            }
        }
    };
    match &expr.kind {
        ExprKind::Null
        | ExprKind::Bool(_)
        | ExprKind::Num(_)
        | ExprKind::Str(_)
        | ExprKind::Placeholder
        | ExprKind::Ident(_) => {}
        ExprKind::Template(parts) => {
            for part in parts {
                if let Part::Expr(expr) = part {
                    visit(Node::Expr(expr));
                }
            }
        }
        ExprKind::Array(items) => of_items(items, visit),
        ExprKind::Object(pairs) => {
            for Pair::Set(_, expr) | Pair::Spread(expr) in pairs {
                visit(Node::Expr(expr));
            }
        }
        ExprKind::Unary(_, inner) => visit(Node::Expr(inner)),
        ExprKind::Binary(first, rest) => {
            visit(Node::Expr(first));
            rest.iter().for_each(|(_, expr)| visit(Node::Expr(expr)));
        }
        ExprKind::Attach(value, confidence) => {
            visit(Node::Expr(value));
            visit(Node::Expr(confidence));
        }
        ExprKind::Ternary(inner) => {
            [&inner.cond, &inner.then, &inner.other].into_iter().for_each(|expr| visit(Node::Expr(expr)));
        }
        ExprKind::Pipe(first, stages) => {
            visit(Node::Expr(first));
            stages.iter().for_each(|(_, expr)| visit(Node::Expr(expr)));
        }
        ExprKind::Access(head, steps) => {
            visit(Node::Expr(head));
            for step in steps {
                match &step.kind {
                    AccessKind::Call(items) => of_items(items, visit),
                    AccessKind::Index(index) => visit(Node::Expr(index)),
                    AccessKind::Member(..) => {}
                }
            }
        }
        ExprKind::Lambda(function) => visit(Node::Function(function)),
        ExprKind::Match(inner) => {
            visit(Node::Expr(&inner.subject));
            inner.arms.iter().for_each(|arm| visit(Node::Arm(arm)));
        }
    }
}

/// How often something in there is assigned to, in a loop's header too.
pub(crate) fn assignments(node: Node<'_>, is_it: &dyn Fn(&Ident) -> bool) -> usize {
    let of = |kind: &StmtKind| match kind {
        StmtKind::Assign { target, .. } => usize::from(is_it(target)),
        StmtKind::Destructure { pattern, .. } => {
            let mut names = Vec::new();
            pattern.names(&mut names);
            names.into_iter().filter(|ident| is_it(ident)).count()
        }
        _ => 0,
    };
    let mut found = 0;
    if let Node::Stmt(s) | Node::Body(s) = node {
        found += of(&s.kind);
        // The parts of a header are no statements of their own to `children`.
        if let StmtKind::For { header, .. } | StmtKind::UncertainFor { header, .. } = &s.kind {
            found += header.init.iter().chain(&header.update).map(|part| of(&part.kind)).sum::<usize>();
        }
    }
    children(node, &mut |part| found += assignments(part, is_it));
    found
}
