//! What the tokens alone don't tell: where statements start, which braces are blocks.

use crate::ast::{ExprKind, Pair, Stmt, StmtKind, Tree};
use crate::walk::{Node, children};
use std::collections::{HashMap, HashSet};

/// All by byte offset.
#[derive(Default)]
pub(super) struct Marks {
    /// Starts of statements that stand on lines of their own.
    pub(super) stmts: HashSet<u32>,
    /// Start and end of single statements that are a body.
    pub(super) bodies: HashMap<u32, u32>,
    /// Opening braces of blocks.
    pub(super) blocks: HashSet<u32>,
    /// Opening braces of the branches of `uncertain`, which nothing separates.
    pub(super) branches: HashSet<u32>,
    /// Names of agents, which nothing need separate.
    pub(super) agents: HashSet<u32>,
    /// Values of the properties of agents.
    pub(super) settings: HashSet<u32>,
}

impl Marks {
    pub(super) fn of(tree: &Tree) -> Marks {
        let mut marks = Marks::default();
        marks.list(&tree.stmts);
        tree.stmts.iter().for_each(|stmt| marks.node(Node::Stmt(stmt)));
        marks
    }

    fn list(&mut self, stmts: &[Stmt]) {
        self.stmts.extend(stmts.iter().map(|stmt| stmt.span.start));
    }

    fn node(&mut self, node: Node<'_>) {
        match node {
            Node::Block(block) | Node::Branch(block) | Node::Catch(_, block) => {
                self.blocks.insert(block.span.start);
                self.list(&block.stmts);
                if let Node::Branch(_) = node {
                    self.branches.insert(block.span.start);
                }
            }
            Node::Body(stmt) => {
                self.bodies.insert(stmt.span.start, stmt.span.end);
            }
            _ => {}
        }
        if let Node::Stmt(Stmt { kind: StmtKind::Agents(agents), .. }) = node {
            for (name, expr) in agents {
                self.agents.insert(name.span.start);
                let ExprKind::Object(pairs) = &expr.kind else { continue };
                self.settings.extend(pairs.iter().filter_map(|pair| match pair {
                    Pair::Set(_, value) => Some(value.span.start),
                    Pair::Spread(_) => None,
                }));
            }
        }
        children(node, &mut |child| self.node(child));
    }
}
