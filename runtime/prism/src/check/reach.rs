//! Code that never runs: behind a way out, or in an arm of `match` that an earlier one covers.

use crate::ast::*;
use crate::diagnostic::{Diagnostic, File, Kind, Span};
use crate::walk::{Node, children};
use std::collections::HashMap;

type Report<'r> = &'r mut dyn FnMut(Diagnostic);

/// Looks through these statements and everything inside them.
pub(super) fn statements(stmts: &[Stmt], report: Report<'_>, files: &[File]) {
    let mut left: Option<Span> = None;
    for stmt in stmts {
        // Functions at the top are hoisted over any way out.
        if let Some(way_out) = left
            && !matches!(stmt.kind, StmtKind::Function(_) | StmtKind::Import(_) | StmtKind::Export(_))
        {
            report(warning("this is never reached", stmt.span, files).related(
                way_out,
                "this leaves before",
                files,
            ));
            break;
        }
        if leaves(stmt) {
            left = Some(stmt.span);
        }
    }
    stmts.iter().for_each(|s| inside(Node::Stmt(s), report, files));
}

fn warning(message: &str, span: Span, files: &[File]) -> Diagnostic {
    Diagnostic::new("unreachable", Kind::Check, message, span, files).warning()
}

fn inside(node: Node<'_>, report: Report<'_>, files: &[File]) {
    match node {
        Node::Block(block) | Node::Branch(block) | Node::Catch(_, block) => {
            return statements(&block.stmts, report, files);
        }
        Node::Expr(Expr { kind: ExprKind::Match(m), .. }) => arms(m, report, files),
        _ => {}
    }
    children(node, &mut |part| inside(part, report, files));
}

/// Whether what follows the statement never runs.
fn leaves(stmt: &Stmt) -> bool {
    match &stmt.kind {
        StmtKind::Return(_) | StmtKind::Break | StmtKind::Continue => true,
        StmtKind::Block(block) | StmtKind::Context(block) => block.stmts.iter().any(leaves),
        StmtKind::If { arms, otherwise: Some(otherwise) } => {
            arms.iter().all(|(_, s)| leaves(s)) && leaves(otherwise)
        }
        _ => false,
    }
}

fn arms(m: &Match, report: Report<'_>, files: &[File]) {
    let mut all: Option<Span> = None;
    let mut literals: HashMap<String, Span> = HashMap::new();
    for arm in &m.arms {
        let span = arm.pattern.span;
        if let Some(before) = all {
            report(warning("this arm is never reached", span, files).related(
                before,
                "this one takes everything",
                files,
            ));
            continue;
        }
        let conditional = arm.guard.is_some() || arm.threshold.is_some();
        match &arm.pattern.kind {
            MatchKind::Any | MatchKind::Bind(_) if !conditional => all = Some(span),
            MatchKind::Value(literal) => {
                // As it prints: numbers are no keys.
                let key = format!("{literal:?}");
                if let Some(before) = literals.get(&key) {
                    report(warning("this arm is never reached", span, files).related(
                        *before,
                        "this one takes the same value",
                        files,
                    ));
                } else if !conditional {
                    literals.insert(key, span);
                }
            }
            _ => {}
        }
    }
}
