//! What can be said about a program before it runs: names that do not exist, wrong numbers of arguments, code that is
//! never reached, and what a pattern should have but has not.

mod reach;
mod shapes;

use crate::ast::*;
use crate::builtins::{self, HOST_NAMES, Native};
use crate::compile::{CompileOptions, Loaded, Resolved, Use, VarId, VarKind, load_all, resolve};
use crate::diagnostic::{Diagnostic, File, Kind, Severity, Span, closest};
use crate::lexer::{Names, Symbol};
use crate::value::Val;
use crate::walk::{Node, assignments, children};
use shapes::Shape;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Errors and warnings that are told; more are likely to follow from these.
const MAX_FOUND: usize = 50;

/// What the checker may assume.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// Variables that the owner of the run will give, besides the usual ones.
    pub known: Vec<String>,
    /// The program is a pattern: it should ask agents, and its result should have a confidence.
    pub pattern: bool,
}

/// Checks a program and the modules that it imports, without running it: all errors and warnings, in the order of the
/// source. A program that does not compile gives the errors of the compiler.
pub fn check(source: &str, options: &CompileOptions, checks: &CheckOptions) -> Vec<Diagnostic> {
    let compiled = crate::Program::compile(source, options);
    let mut names = Names::default();
    // What could be read is checked even if there is more.
    let (loaded, _) = load_all(source, options, &mut names);
    let resolved = resolve(&loaded.modules, loaded.idents, options.profile);
    let errors = match &compiled {
        Ok(program) => program.doomed().collect(),
        Err(errors) => errors.clone(),
    };
    let mut checker = Checker {
        modules: &loaded.modules,
        files: &loaded.files,
        resolved: &resolved,
        names: &names,
        options,
        checks,
        functions: HashMap::new(),
        plain: HashMap::new(),
        shapes: HashMap::new(),
        lost: loaded.modules.iter().flat_map(|module| module.tree.lost.iter().copied()).collect(),
        reported: BTreeSet::new(),
        whole: compiled.is_ok(),
        errors: errors.len(),
        found: errors,
    };
    checker.run();
    let mut found = checker.found;
    found.sort_by_key(|d| d.severity == Severity::Warning);
    found.truncate(MAX_FOUND);
    found.sort_by_key(|d| (d.span.file, d.span.start));
    found
}

struct Checker<'a> {
    modules: &'a [Loaded],
    files: &'a [File],
    resolved: &'a Resolved,
    names: &'a Names,
    options: &'a CompileOptions,
    checks: &'a CheckOptions,
    /// Functions that a variable surely holds.
    functions: HashMap<VarId, &'a Function>,
    /// What a variable surely holds.
    plain: HashMap<VarId, &'a Expr>,
    /// Of what kind variables are that get a value in each turn.
    shapes: HashMap<VarId, Shape>,
    /// Names in statements that could not be read: they may be declared or used there.
    lost: HashSet<Symbol>,
    /// The program compiles.
    whole: bool,
    /// Unknown names are reported once.
    reported: BTreeSet<String>,
    found: Vec<Diagnostic>,
    /// How many of them are errors.
    errors: usize,
}

impl<'a> Checker<'a> {
    fn run(&mut self) {
        for module in self.modules {
            module.tree.stmts.iter().for_each(|s| self.collect(Node::Stmt(s)));
        }
        for (second, var) in &self.resolved.redeclared {
            let name = self.names.text(second.name);
            let mut error =
                self.error("redeclared", format!("`{name}` is already declared in this scope"), second.span);
            if let Some(first) = self.resolved.vars[*var as usize].ident {
                error = error.related(first.span, "it was declared here", self.files);
            }
            self.tell(error);
        }
        for module in self.modules {
            reach::statements(&module.tree.stmts, &mut |d| self.found.push(d), self.files);
            module.tree.stmts.iter().for_each(|s| self.walk(Node::Stmt(s)));
        }
        if self.checks.pattern && self.whole {
            self.pattern();
        }
    }

    fn tell(&mut self, found: Diagnostic) {
        self.errors += usize::from(found.severity == Severity::Error);
        self.found.push(found);
    }

    fn error(&self, code: &'static str, message: impl Into<String>, span: Span) -> Diagnostic {
        Diagnostic::new(code, Kind::Check, message, span, self.files)
    }

    fn var(&self, ident: &Ident) -> Option<VarId> {
        match self.resolved.uses[ident.id as usize] {
            Use::Var { var, .. } => Some(var),
            _ => None,
        }
    }

    fn is_free(&self, ident: &Ident) -> bool {
        self.var(ident).is_some_and(|v| self.resolved.vars[v as usize].kind == VarKind::Free)
    }

    fn settled(&self, var: VarId) -> bool {
        !self.resolved.vars[var as usize].assigned
    }

    /// Finds out what variables that never change hold.
    fn collect(&mut self, node: Node<'a>) {
        match node {
            Node::Stmt(stmt) => {
                if let StmtKind::Let { target: Target::Name(ident), init: Some(init), .. } =
                    &exported(stmt).kind
                    && let Some(var) = self.var(ident).filter(|v| self.settled(*v))
                {
                    match &init.kind {
                        ExprKind::Lambda(f) => drop(self.functions.insert(var, f)),
                        _ => drop(self.plain.insert(var, init)),
                    }
                }
            }
            Node::Function(f) => {
                if let Some(var) = f.name.as_ref().and_then(|n| self.var(n)).filter(|v| self.settled(*v)) {
                    self.functions.insert(var, f);
                }
            }
            _ => {}
        }
        children(node, &mut |part| self.collect(part));
    }

    fn walk(&mut self, node: Node<'a>) {
        if self.errors >= MAX_FOUND {
            return;
        }
        match node {
            Node::Stmt(stmt) | Node::Body(stmt) => self.statement(exported(stmt)),
            Node::Expr(e) => self.expression(e),
            _ => {}
        }
        children(node, &mut |part| self.walk(part));
    }

    fn statement(&mut self, stmt: &'a Stmt) {
        match &stmt.kind {
            StmtKind::Assign { target, .. } => self.assigned(target),
            StmtKind::ForIn { item, over, body, .. } => {
                if let (Some(var), Some(each)) = (self.var(item), self.shape(over).and_then(Shape::each))
                    && assignments(Node::Stmt(body), &|ident| self.var(ident) == Some(var)) == 0
                {
                    self.shapes.insert(var, each);
                }
            }
            StmtKind::Destructure { pattern, .. } => {
                let mut idents = Vec::new();
                pattern.names(&mut idents);
                idents.into_iter().for_each(|i| self.assigned(i));
            }
            StmtKind::For { header, .. } | StmtKind::UncertainFor { header, .. } => {
                header.init.iter().chain(&header.update).for_each(|s| self.statement(s));
            }
            StmtKind::Expr(Expr { kind: ExprKind::Access(head, steps), span }) => {
                if let (ExprKind::Ident(ident), [Access { kind: AccessKind::Call(_), .. }]) =
                    (&head.kind, &steps[..])
                    && matches!(self.builtin(ident), Some(Val::Native(Native::Sleep | Native::Delay)))
                {
                    let name = self.names.text(ident.name).to_string();
                    let hint = format!("write `await {name}(…)`");
                    let warning = self.error("not_awaited", "nothing waits for this", *span);
                    self.tell(warning.hint(Some(hint)).warning());
                }
            }
            StmtKind::Agents(agents) => {
                for (ident, _) in agents {
                    let read = |v: VarId| self.resolved.vars[v as usize].read;
                    if !self.lost.contains(&ident.name) && self.var(ident).is_some_and(|v| !read(v)) {
                        let name = self.names.text(ident.name);
                        let warning =
                            self.error("unused_agent", format!("agent `{name}` is never used"), ident.span);
                        self.tell(warning.warning());
                    }
                }
            }
            _ => {}
        }
    }

    fn assigned(&mut self, ident: &Ident) {
        let Some(var) = self.var(ident) else { return };
        let var = &self.resolved.vars[var as usize];
        if var.kind.constant() {
            let name = self.names.text(ident.name);
            let mut error = self.error(
                "const_assign",
                format!("`{name}` is a constant and cannot be assigned"),
                ident.span,
            );
            if let Some(first) = var.ident {
                error = error.related(first.span, "it was declared here", self.files);
            }
            self.tell(error);
        }
        if var.kind == VarKind::Free {
            self.unknown(ident, "assign to it with `let` first");
        }
    }

    fn expression(&mut self, e: &'a Expr) {
        match &e.kind {
            ExprKind::Ident(ident) if self.is_free(ident) => self.unknown(ident, ""),
            ExprKind::Binary(first, rest) => {
                if let Some((op, second)) = rest.first()
                    && op.is_sure()
                    && self.surely_plain(first)
                    && self.surely_plain(second)
                {
                    let raise = crate::vm::needs_confident(op.text());
                    let error = self.error(raise.code, raise.message, e.span).hint(raise.hint);
                    self.tell(error);
                }
            }
            ExprKind::Pipe(_, stages) => {
                for (op, stage) in stages {
                    if *op != PipeOp::Filter && !takes_left(Node::Expr(stage)) {
                        let hint = "`_` stands for it: `value |> f(_)`";
                        let warning = self.error(
                            "placeholder",
                            "the left side of this pipeline is dropped",
                            stage.span,
                        );
                        self.tell(warning.hint(Some(hint.into())).warning());
                    }
                }
            }
            ExprKind::Access(head, steps) => {
                self.accesses(head, steps);
                self.members(head, steps);
            }
            _ => {}
        }
    }

    /// The built-in behind a name that the program does not define.
    fn builtin(&self, ident: &Ident) -> Option<Val> {
        let var = self.var(ident)?;
        let name = self.names.text(ident.name);
        let own = self.resolved.vars[var as usize].kind != VarKind::Free;
        if own || self.checks.known.iter().any(|k| **k == **name) {
            return None;
        }
        builtins::global(name, self.options.profile)
    }

    fn unknown(&mut self, ident: &Ident, otherwise: &str) {
        let name = self.names.text(ident.name).to_string();
        let known = self.builtin(ident).is_some()
            || HOST_NAMES.contains(&name.as_str())
            || self.checks.known.contains(&name)
            || self.lost.contains(&ident.name)
            || !self.reported.insert(name.clone());
        if known {
            return;
        }
        let own =
            self.resolved.vars.iter().filter(|v| v.kind != VarKind::Free).map(|v| &**self.names.text(v.name));
        let mut candidates: Vec<&str> = own.chain(self.checks.known.iter().map(String::as_str)).collect();
        builtins::global_names(self.options.profile).chain(HOST_NAMES).for_each(|n| candidates.push(n));
        let hint = match (builtins::foreign(&name), closest(&name, candidates)) {
            (Some(hint), _) => Some(hint.to_string()),
            (None, Some(near)) => Some(format!("did you mean `{near}`?")),
            (None, None) => Some(otherwise.to_string()).filter(|h| !h.is_empty()),
        };
        let error = self.error("undefined_variable", format!("there is no variable `{name}`"), ident.span);
        self.tell(error.hint(hint));
    }

    /// Arguments of calls whose function is known.
    fn accesses(&mut self, head: &'a Expr, steps: &'a [Access]) {
        let mut target: Option<Known> = match &head.kind {
            ExprKind::Ident(ident) => match self.var(ident).and_then(|v| self.functions.get(&v)) {
                Some(f) => Some(Known::own(f, self.names.text(ident.name))),
                None => self
                    .builtin(ident)
                    .map(|value| Known::Value(value, self.names.text(ident.name).to_string())),
            },
            ExprKind::Lambda(f) => Some(Known::own(f, "lambda")),
            ExprKind::Array(_) => Some(Known::Array),
            _ => None,
        };
        for step in steps {
            target = match (&step.kind, target) {
                (AccessKind::Call(args), known) => {
                    if let Some(known) = known {
                        self.call(&known, args, step.span);
                    }
                    None
                }
                (AccessKind::Member(_, name), Some(Known::Value(Val::Obj(object), of))) => {
                    match object.get(name) {
                        Some(member) => Some(Known::Value(member.clone(), format!("{of}.{name}"))),
                        None => {
                            let near = closest(name, object.entries().map(|(k, _)| &**k));
                            let hint = near.map(|n| format!("did you mean `{n}`?"));
                            let error =
                                self.error("missing_property", format!("`{of}` has no `{name}`"), step.span);
                            self.tell(error.hint(hint));
                            None
                        }
                    }
                }
                (AccessKind::Member(_, name), _) => Some(Known::Method(name.to_string())),
                (AccessKind::Index(_), _) => None,
            };
        }
    }

    fn call(&mut self, known: &Known, args: &'a [Item], span: Span) {
        let spread = args.iter().any(|a| matches!(a, Item::Spread(_)));
        let callback = match known {
            Known::Own { name, least, most } => {
                if !spread {
                    self.arity(name, (*least, *most), args.len(), span);
                }
                None
            }
            Known::Value(Val::Native(native), name) => {
                if !spread {
                    self.arity(name, native.arity(), args.len(), span);
                }
                self.options(*native, args);
                matches!(native, Native::Map | Native::Filter).then(|| (native.name(), args.get(1)))
            }
            Known::Method(name) if ["map", "filter", "find", "some", "every"].contains(&name.as_str()) => {
                Some((name.as_str(), args.first()))
            }
            _ => None,
        };
        // The most common slip of those who come from JavaScript.
        if let Some((name, Some(Item::Expr(Expr { kind: ExprKind::Lambda(f), span, .. })))) = callback
            && f.rest.is_none()
            && f.params.len() != 1
        {
            let n = f.params.len();
            let message = format!("`{name}` calls its function with one argument, but this one takes {n}");
            let hint = "count with `reduce`, or walk with `for item, index in items`";
            let warning = self.error("arity", message, *span).hint(Some(hint.into())).warning();
            self.tell(warning);
        }
    }

    /// Names in options that are written down in the call.
    fn options(&mut self, native: Native, args: &'a [Item]) {
        if builtins::option_names(native).is_empty() {
            return;
        }
        let Some(Item::Expr(Expr { kind: ExprKind::Object(pairs), span, .. })) = args.get(1) else { return };
        for pair in pairs {
            if let Pair::Set(key, value) = pair
                && let Some(raise) = builtins::unknown_option(native, key)
            {
                // Keys have no place of their own.
                let span = Span { end: value.span.end, ..*span };
                let error = self.error(raise.code, raise.message, span).hint(raise.hint);
                self.tell(error);
            }
            if let (Native::Parallel, Pair::Set(key, Expr { kind: ExprKind::Str(mode), span, .. })) =
                (native, pair)
                && **key == *"mode"
                && !builtins::MODES.contains(&&**mode)
            {
                let hint = format!("modes are {}", builtins::MODES.join(", "));
                let error = self.error("bad_argument", format!("there is no mode `{mode}`"), *span);
                self.tell(error.hint(Some(hint)));
            }
        }
    }

    fn arity(&mut self, name: &str, (least, most): (usize, usize), given: usize, span: Span) {
        if given < least || given > most {
            let raise = crate::vm::wrong_arity(name, (least, most), given);
            let error = self.error(raise.code, raise.message, span);
            self.tell(error);
        }
    }

    fn pattern(&mut self) {
        let tree = &self.modules[0].tree;
        let asks = |name: &str| {
            self.names.find(name).is_some_and(|symbol| {
                self.resolved.vars.iter().any(|v| v.name == symbol && v.read && v.kind == VarKind::Free)
            })
        };
        let asked = HOST_NAMES.iter().filter(|n| **n != "input").any(|n| asks(n))
            || asks("llm")
            || asks("executePattern");
        if !asked {
            let span = Span { end: tree.span.start, ..tree.span };
            let message = "the pattern never looks at its agents or their results";
            let hint = "read `agentResults`, or call `agents[0].analyze(task, data)`";
            let warning = self.error("unused_agents", message, span).hint(Some(hint.into())).warning();
            self.tell(warning);
        }
        let Some(last) = tree.stmts.last() else { return };
        let (what, span) = match &last.kind {
            StmtKind::Let { .. } => ("the pattern ends with a declaration, so its result is 0", last.span),
            StmtKind::Expr(e) | StmtKind::Return(Some(e)) if self.surely_plain(e) => {
                ("the pattern's result has no confidence", e.span)
            }
            _ => return,
        };
        let hint = "end with `result ~> confidence`";
        let warning = self.error("plain_result", what, span).hint(Some(hint.into())).warning();
        self.tell(warning);
    }

    /// Whether the value cannot have a confidence.
    fn surely_plain(&self, e: &Expr) -> bool {
        match &e.kind {
            ExprKind::Null
            | ExprKind::Bool(_)
            | ExprKind::Num(_)
            | ExprKind::Str(_)
            | ExprKind::Template(_)
            | ExprKind::Array(_)
            | ExprKind::Object(_)
            | ExprKind::Lambda(_)
            | ExprKind::Unary(UnOp::Not | UnOp::Extract | UnOp::Typeof | UnOp::Neg, _) => true,
            ExprKind::Ternary(t) => !t.sure && self.surely_plain(&t.then) && self.surely_plain(&t.other),
            ExprKind::Ident(ident) if self.host_list(ident).is_some() => true,
            ExprKind::Ident(ident) => {
                self.var(ident).and_then(|v| self.plain.get(&v)).is_some_and(|init| match &init.kind {
                    // One step is enough, and cannot go in circles.
                    ExprKind::Ident(_) | ExprKind::Ternary(_) => false,
                    _ => self.surely_plain(init),
                })
            }
            _ => false,
        }
    }
}

/// Whether a stage of a pipeline says where its left side goes.
fn takes_left(node: Node<'_>) -> bool {
    let mut found = matches!(node, Node::Expr(Expr { kind: ExprKind::Placeholder, .. }));
    children(node, &mut |part| found |= takes_left(part));
    found
}

/// What is being called, as far as it is known.
enum Known {
    Own { name: String, least: usize, most: usize },
    Value(Val, String),
    Array,
    Method(String),
}

impl Known {
    fn own(f: &Function, name: &str) -> Known {
        let name = name.to_string();
        let least = f.params.len();
        Known::Own { name, least, most: if f.rest.is_some() { usize::MAX } else { least } }
    }
}

/// The statement behind `export`.
fn exported(stmt: &Stmt) -> &Stmt {
    match &stmt.kind {
        StmtKind::Export(Export::Stmt(inner)) => inner,
        _ => stmt,
    }
}
