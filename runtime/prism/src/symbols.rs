//! Names for editors: what a program declares, where each is used, what may be written at a place. It works on
//! programs that are being typed, so it takes whatever could be parsed and never fails.
//!
//! This is the scoping of the language without its order of execution: a name means its innermost declaration, even
//! where the machine would find that it has not run yet.

mod library;

pub use library::{Entry, entries, entry, keywords, methods};

use crate::ast::*;
use crate::diagnostic::Span;
use crate::lexer::{self, Names, Word};
use crate::parser;
use crate::walk::{Node, children};
use std::collections::HashMap;

#[cfg(test)]
mod tests;

/// How a name came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    Variable,
    Constant,
    Parameter,
    Function,
    Import,
    /// Declared in an `agents` block.
    Agent,
}

/// A declared name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    pub name: String,
    pub kind: SymbolKind,
    /// Where the name stands in its declaration.
    pub span: Span,
    /// Where it can be used.
    pub scope: Span,
    /// The first line of the declaration.
    pub detail: String,
}

/// The declarations and uses of names in one file.
#[derive(Clone, Debug, Default)]
pub struct Outline {
    pub symbols: Vec<Symbol>,
    /// Each occurrence of a declared name, declarations included, with the index of its symbol.
    pub uses: Vec<(Span, usize)>,
    /// `let` in the outermost scope, where it initialises what it declares.
    pub lets: Vec<Span>,
    /// The paths of imports.
    pub imports: Vec<String>,
}

impl Outline {
    /// The outline of what can be parsed of a source.
    pub fn of(source: &str) -> Outline {
        if source.len() > (u32::MAX / 2) as usize {
            return Outline::default();
        }
        let mut names = Names::default();
        names.intern(Word::Agents.text());
        let (tokens, _) = lexer::lex(source, 0, &mut names);
        let (tree, _) = parser::parse(&tokens, &names, &mut 0);
        let end = source.len() as u32;
        let (scopes, unresolved, out) = (Vec::new(), Vec::new(), Outline::default());
        let mut collector = Collector { source, names: &names, end, scopes, unresolved, out };
        collector.program(&tree);
        collector.out
    }

    /// The symbol whose name stands at this byte offset.
    pub fn at(&self, offset: u32) -> Option<&Symbol> {
        let (_, symbol) = self.uses.iter().find(|(span, _)| span.start <= offset && offset <= span.end)?;
        self.symbols.get(*symbol)
    }

    /// The symbols that can be used at this byte offset, the innermost first; hidden ones are left out.
    pub fn visible(&self, offset: u32) -> Vec<&Symbol> {
        let inside = |s: &&Symbol| s.scope.start <= offset && offset <= s.scope.end;
        let mut visible: Vec<&Symbol> = self.symbols.iter().filter(inside).collect();
        visible.sort_by_key(|symbol| symbol.scope.end - symbol.scope.start);
        let mut seen = std::collections::HashSet::new();
        visible.retain(|symbol| seen.insert(symbol.name.as_str()));
        visible
    }
}

/// Whether more must be typed before this can be a program: a bracket, a string or a comment is open.
pub fn unfinished(source: &str) -> bool {
    let (tokens, errors) = lexer::lex(source, 0, &mut Names::default());
    let mut depth = 0_i64;
    for token in &tokens {
        use lexer::{Sign::*, Tok::Sign};
        match token.tok {
            Sign(LParen | LBrace | LBracket) => depth += 1,
            Sign(RParen | RBrace | RBracket) => depth -= 1,
            _ => {}
        }
    }
    depth > 0
        || errors.iter().any(|e| e.hint.is_some_and(|h| h.contains("end it with") && !h.contains("double")))
}

struct Scope {
    names: HashMap<lexer::Symbol, usize>,
    /// Of a function or the program: where assignment creates variables.
    function: bool,
    span: Span,
}

struct Collector<'a> {
    source: &'a str,
    names: &'a Names,
    end: u32,
    scopes: Vec<Scope>,
    unresolved: Vec<Ident>,
    out: Outline,
}

impl Collector<'_> {
    fn program(&mut self, tree: &Tree) {
        let span = Span { file: 0, start: 0, end: self.end };
        self.scopes.push(Scope { names: HashMap::new(), function: true, span });
        self.announce(&tree.stmts);
        for stmt in &tree.stmts {
            if let StmtKind::Let { init: Some(_), .. } = stmt.kind {
                self.out.lets.push(Span { end: stmt.span.start + 3, ..stmt.span });
            }
            self.node(Node::Stmt(stmt));
        }
        // A function may use what the program assigns further down.
        for ident in std::mem::take(&mut self.unresolved) {
            if let Some(symbol) = self.find(&ident) {
                self.out.uses.push((ident.span, symbol));
            }
        }
        self.out.uses.sort_by_key(|(span, _)| span.start);
    }

    fn announce(&mut self, stmts: &[Stmt]) {
        for stmt in stmts {
            let inner = match &stmt.kind {
                StmtKind::Export(Export::Stmt(inner)) => &inner.kind,
                kind => kind,
            };
            match inner {
                StmtKind::Function(function) => {
                    function.name.iter().for_each(|n| self.declare(n, SymbolKind::Function, stmt.span));
                }
                StmtKind::Import(import) => {
                    let names = import.all.iter().chain(import.names.iter().map(|(_, ident)| ident));
                    names.for_each(|name| self.declare(name, SymbolKind::Import, stmt.span));
                }
                StmtKind::Agents(agents) => {
                    agents.iter().for_each(|(name, _)| self.declare(name, SymbolKind::Agent, stmt.span));
                }
                StmtKind::Let { constant, .. } => {
                    let kind = if *constant { SymbolKind::Constant } else { SymbolKind::Variable };
                    self.declare_all(&stmt.kind, kind, stmt.span);
                }
                StmtKind::Context(block) => self.announce(&block.stmts),
                _ => {}
            }
        }
    }

    fn declare_all(&mut self, stmt: &StmtKind, kind: SymbolKind, span: Span) {
        let mut names = Vec::new();
        stmt.declared(&mut names);
        names.into_iter().for_each(|name| self.declare(name, kind, span));
    }

    fn declare(&mut self, ident: &Ident, kind: SymbolKind, declaration: Span) {
        let at = self.scopes.len() - 1;
        self.declare_in(at, ident, kind, declaration);
    }

    fn declare_in(&mut self, scope: usize, ident: &Ident, kind: SymbolKind, declaration: Span) {
        let (from, to) = (declaration.start as usize, declaration.end as usize);
        let detail = self.source.get(from..to).and_then(|text| text.lines().next()).unwrap_or("");
        let symbol = self.out.symbols.len();
        self.out.symbols.push(Symbol {
            name: self.names.text(ident.name).to_string(),
            kind,
            span: ident.span,
            scope: self.scopes[scope].span,
            detail: detail.trim_end_matches('{').trim().to_string(),
        });
        self.scopes[scope].names.insert(ident.name, symbol);
        self.out.uses.push((ident.span, symbol));
    }

    fn find(&self, ident: &Ident) -> Option<usize> {
        self.scopes.iter().rev().find_map(|scope| scope.names.get(&ident.name).copied())
    }

    fn mention(&mut self, ident: &Ident) {
        match self.find(ident) {
            Some(symbol) => self.out.uses.push((ident.span, symbol)),
            None => self.unresolved.push(*ident),
        }
    }

    fn assign(&mut self, ident: &Ident, statement: Span) {
        if self.find(ident).is_some() {
            return self.mention(ident);
        }
        let scope = self.scopes.iter().rposition(|scope| scope.function).unwrap_or(0);
        self.declare_in(scope, ident, SymbolKind::Variable, statement);
    }

    fn within(&mut self, span: Span, function: bool, fill: impl FnOnce(&mut Self)) {
        self.scopes.push(Scope { names: HashMap::new(), function, span });
        fill(self);
        self.scopes.pop();
    }

    fn inside(&mut self, node: Node<'_>) {
        children(node, &mut |child| self.node(child));
    }

    fn node(&mut self, node: Node<'_>) {
        match node {
            Node::Block(block) | Node::Branch(block) => self.within(block.span, false, |c| {
                c.announce(&block.stmts);
                c.inside(node);
            }),
            Node::Catch(name, block) => self.within(block.span, false, |c| {
                name.into_iter().for_each(|name| c.declare(name, SymbolKind::Variable, name.span));
                c.announce(&block.stmts);
                c.inside(node);
            }),
            Node::Function(function) => self.within(function.span, true, |c| {
                let mut names = Vec::new();
                function.params.iter().chain(&function.rest).for_each(|target| target.names(&mut names));
                names.into_iter().for_each(|name| c.declare(name, SymbolKind::Parameter, name.span));
                c.inside(node);
            }),
            Node::Arm(arm) => {
                let body = match &arm.body {
                    Body::Expr(expr) => expr.span,
                    Body::Block(block) => block.span,
                };
                self.within(arm.pattern.span.to(body), false, |c| {
                    c.bind(&arm.pattern);
                    c.inside(node);
                });
            }
            Node::Stmt(stmt) | Node::Body(stmt) => self.stmt(stmt, node),
            Node::Expr(Expr { kind: ExprKind::Ident(ident), .. }) => self.mention(ident),
            _ => self.inside(node),
        }
    }

    fn stmt(&mut self, stmt: &Stmt, node: Node<'_>) {
        match &stmt.kind {
            StmtKind::ForIn { item, index, .. } => self.within(stmt.span, false, |c| {
                let names = std::iter::once(item).chain(index);
                names.for_each(|name| c.declare(name, SymbolKind::Variable, name.span));
                c.inside(node);
            }),
            StmtKind::For { header, .. } | StmtKind::UncertainFor { header, .. } => {
                self.within(stmt.span, false, |c| {
                    if let Some(init) = &header.init {
                        c.declare_all(&init.kind, SymbolKind::Variable, init.span);
                    }
                    let parts = header.init.iter().chain(&header.update);
                    parts.for_each(|part| c.assigned(part));
                    c.inside(node);
                });
            }
            // Its body is no scope of its own.
            StmtKind::Context(block) => {
                block.stmts.iter().for_each(|inner| self.node(Node::Stmt(inner)));
            }
            StmtKind::Export(Export::Names(names)) => {
                names.iter().for_each(|(ident, _)| self.mention(ident));
            }
            StmtKind::Import(Import { from, .. })
            | StmtKind::Export(Export::All { from, .. } | Export::From { from, .. }) => {
                self.out.imports.push(from.to_string());
            }
            _ => {
                self.assigned(stmt);
                self.inside(node);
            }
        }
    }

    /// The names that a statement assigns.
    fn assigned(&mut self, stmt: &Stmt) {
        match &stmt.kind {
            StmtKind::Assign { target, .. } => self.assign(target, stmt.span),
            StmtKind::Destructure { pattern, .. } => {
                let mut names = Vec::new();
                pattern.names(&mut names);
                names.into_iter().for_each(|name| self.assign(name, stmt.span));
            }
            StmtKind::Export(Export::Stmt(inner)) => self.assigned(inner),
            _ => {}
        }
    }

    fn bind(&mut self, pattern: &MatchPat) {
        let rest = match &pattern.kind {
            MatchKind::Bind(name) => Some(name),
            MatchKind::Array { elems, rest } => {
                elems.iter().flatten().for_each(|elem| self.bind(&elem.pattern));
                rest.as_ref()
            }
            MatchKind::Object { props, rest } => {
                props.iter().for_each(|(_, elem)| self.bind(&elem.pattern));
                rest.as_ref()
            }
            MatchKind::Any | MatchKind::Value(_) => None,
        };
        rest.into_iter().for_each(|name| self.declare(name, SymbolKind::Variable, name.span));
    }
}
