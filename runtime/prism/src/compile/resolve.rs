//! Which variable every name means, decided before any code is generated, so that the machine never looks up a local
//! by name.
//!
//! The language has two rules that keep some names from being decided here for good: function bodies do not
//! pre-declare their variables, and an assignment to an unknown name creates it (profile `pattern`). Such a name
//! becomes a short chain of candidates, of which the machine takes the first that exists.

mod walk;

use super::load::Loaded;
use crate::Profile;
use crate::ast::*;
use crate::lexer::Symbol;
use std::collections::{HashMap, HashSet};

pub(crate) type VarId = u32;
pub(super) type FuncId = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VarKind {
    Let,
    Const,
    /// Bound by `import`.
    Import,
    Param,
    Function,
    /// Created by assignment.
    Implicit,
    /// Never assigned by the program: a built-in, a host's value, or a mistake.
    Free,
}

impl VarKind {
    pub(crate) fn constant(self) -> bool {
        matches!(self, VarKind::Const | VarKind::Import)
    }
}

#[derive(Debug)]
pub(crate) struct Var {
    pub(crate) name: Symbol,
    pub(super) func: FuncId,
    pub(crate) kind: VarKind,
    /// In the outermost scope of a file.
    pub(super) top: bool,
    /// Used by a function other than its own.
    pub(crate) captured: bool,
    /// Assigned after its declaration.
    pub(crate) assigned: bool,
    /// Captured or read before its declaration has run.
    pub(super) early: bool,
    pub(crate) read: bool,
    pub(crate) ident: Option<Ident>,
}

/// What an occurrence of a name means.
#[derive(Clone, Debug)]
pub(crate) enum Use {
    /// `check`: it may not exist or not be initialised when this runs.
    Var {
        var: VarId,
        check: bool,
    },
    /// The first that exists; the last is looked at in any case.
    Chain(Box<[VarId]>),
    /// A second declaration in one scope.
    Redeclared,
    Nothing,
}

#[derive(Default)]
pub(super) struct FuncScope {
    pub(super) parent: Option<FuncId>,
    pub(super) implicit: HashMap<Symbol, VarId>,
    /// In order of creation, so that compiling is deterministic.
    pub(super) implicit_order: Vec<VarId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its declaration lies behind.
    Declared,
    /// Declared later in this block: using it now is an error.
    Ahead,
    /// Declared later in this function body: until then the name means something further out.
    Late,
}

struct Scope {
    func: FuncId,
    names: HashMap<Symbol, (VarId, State)>,
}

struct Deferred {
    use_id: u32,
    name: Symbol,
    func: FuncId,
    late: Vec<VarId>,
    /// Assigned unconditionally earlier in the main program.
    definite: bool,
}

pub(crate) struct Resolved {
    pub(crate) vars: Vec<Var>,
    pub(crate) uses: Vec<Use>,
    pub(super) funcs: Vec<FuncScope>,
    /// Functions by where they start.
    pub(super) by_span: HashMap<(u32, u32), FuncId>,
    /// Main function of each file.
    pub(super) mains: Vec<FuncId>,
    pub(crate) redeclared: Vec<(Ident, VarId)>,
}

struct Resolver<'a> {
    files: &'a [Loaded],
    profile: Profile,
    out: Resolved,
    scopes: Vec<Scope>,
    deferred: Vec<Deferred>,
    definite: HashSet<Symbol>,
    /// Inside something that may not run, or not in order.
    conditional: u32,
    root: FuncId,
}

pub(crate) fn resolve(files: &[Loaded], idents: u32, profile: Profile) -> Resolved {
    let mut resolver = Resolver {
        files,
        profile,
        out: Resolved {
            vars: Vec::new(),
            uses: vec![Use::Nothing; idents as usize],
            funcs: Vec::new(),
            by_span: HashMap::new(),
            mains: vec![FuncId::MAX; files.len()],
            redeclared: Vec::new(),
        },
        scopes: Vec::new(),
        deferred: Vec::new(),
        definite: HashSet::new(),
        conditional: 0,
        root: 0,
    };
    resolver.file(0, None);
    resolver.finish();
    resolver.out
}

impl Resolver<'_> {
    fn file(&mut self, file: usize, parent: Option<FuncId>) {
        let files = self.files;
        let tree = &files[file].tree;
        let func = self.new_func(parent);
        self.out.mains[file] = func;
        self.push_scope(func);
        self.predeclare(&tree.stmts, State::Ahead);
        for stmt in &tree.stmts {
            if let StmtKind::Function(f) = exported(stmt) {
                self.declare_function(f, State::Declared);
            }
            if let StmtKind::Import(import) = &stmt.kind {
                for ident in import.all.iter().chain(import.names.iter().map(|(_, ident)| ident)) {
                    self.declare(ident, VarKind::Import, State::Declared);
                }
            }
        }
        for (_, import) in &files[file].imports {
            if let Some(module) = import
                && self.out.mains[*module] == FuncId::MAX
            {
                let conditional = std::mem::replace(&mut self.conditional, 1);
                self.file(*module, Some(func));
                self.conditional = conditional;
            }
        }
        self.stmts(&tree.stmts);
        self.scopes.pop();
    }

    fn new_func(&mut self, parent: Option<FuncId>) -> FuncId {
        self.out.funcs.push(FuncScope { parent, ..FuncScope::default() });
        self.out.funcs.len() as FuncId - 1
    }

    fn func(&self) -> FuncId {
        self.scopes.last().expect("a file's scope is open").func
    }

    fn push_scope(&mut self, func: FuncId) {
        self.scopes.push(Scope { func, names: HashMap::new() });
    }

    fn new_var(&mut self, name: Symbol, func: FuncId, kind: VarKind, ident: Option<Ident>) -> VarId {
        let top = self.out.mains.contains(&func) && self.scopes.last().is_none_or(|_| self.at_top(func));
        let (captured, assigned, early, read) = (false, false, false, false);
        self.out.vars.push(Var { name, func, kind, top, captured, assigned, early, read, ident });
        self.out.vars.len() as VarId - 1
    }

    /// Whether the innermost scope is the outermost one of this function.
    fn at_top(&self, func: FuncId) -> bool {
        self.scopes.iter().filter(|s| s.func == func).count() == 1
    }

    fn declare(&mut self, ident: &Ident, kind: VarKind, state: State) {
        let func = self.func();
        let scope = self.scopes.last().expect("a scope is open");
        match scope.names.get(&ident.name).copied() {
            // The declaration that was announced when the scope was entered.
            Some((var, State::Ahead | State::Late)) => {
                let of = self.out.vars[var as usize].ident.map(|i| i.id);
                if of == Some(ident.id) || state == State::Declared {
                    self.out.uses[ident.id as usize] = Use::Var { var, check: false };
                    self.set_state(ident.name, var, state);
                }
            }
            Some((var, State::Declared)) if kind == VarKind::Function && self.is_function(var) => {
                self.out.uses[ident.id as usize] = Use::Var { var, check: false };
                self.out.vars[var as usize].assigned = true;
            }
            // A parameter is no declaration: `let` takes its place.
            Some((var, State::Declared)) if self.is_plain_param(var) && kind != VarKind::Param => {
                self.out.uses[ident.id as usize] = Use::Var { var, check: false };
                let var = &mut self.out.vars[var as usize];
                (var.assigned, var.kind) = (true, kind);
            }
            Some((var, State::Declared)) => {
                self.out.uses[ident.id as usize] = Use::Redeclared;
                self.out.redeclared.push((*ident, var));
            }
            None => {
                let var = self.new_var(ident.name, func, kind, Some(*ident));
                self.out.uses[ident.id as usize] = Use::Var { var, check: false };
                self.set_state(ident.name, var, state);
            }
        }
    }

    fn is_function(&self, var: VarId) -> bool {
        self.out.vars[var as usize].kind == VarKind::Function
    }

    fn is_plain_param(&self, var: VarId) -> bool {
        self.out.vars[var as usize].kind == VarKind::Param
    }

    fn set_state(&mut self, name: Symbol, var: VarId, state: State) {
        self.scopes.last_mut().expect("a scope is open").names.insert(name, (var, state));
    }

    /// Announces the variables that these statements declare.
    fn predeclare(&mut self, stmts: &[Stmt], state: State) {
        for stmt in stmts {
            let mut idents = Vec::new();
            stmt.kind.declared(&mut idents);
            let kind = match exported(stmt) {
                StmtKind::Let { constant: true, .. } => VarKind::Const,
                _ => VarKind::Let,
            };
            for ident in idents {
                self.announce(ident, kind, state);
            }
            if let StmtKind::Function(f) = exported(stmt)
                && let Some(ident) = &f.name
            {
                self.announce(ident, VarKind::Function, State::Late);
            }
        }
    }

    fn announce(&mut self, ident: &Ident, kind: VarKind, state: State) {
        let func = self.func();
        if !self.scopes.last().expect("a scope is open").names.contains_key(&ident.name) {
            let var = self.new_var(ident.name, func, kind, Some(*ident));
            self.set_state(ident.name, var, state);
        }
    }

    fn lookup(&mut self, ident: &Ident, assign: bool) {
        let func = self.func();
        let mut late = Vec::new();
        let mut found = None;
        for scope in self.scopes.iter().rev() {
            let Some((var, state)) = scope.names.get(&ident.name).copied() else { continue };
            let own = scope.func == func;
            // A module sees the variables of the file that imports it first, but not what that file imports.
            if self.out.vars[var as usize].kind == VarKind::Import
                && self.file_of(scope.func) != self.file_of(func)
            {
                continue;
            }
            match state {
                State::Late if own => {}
                State::Late => late.push(var),
                _ => {
                    found = Some((var, state, own));
                    break;
                }
            }
        }
        for var in &late {
            let var = &mut self.out.vars[*var as usize];
            (var.captured, var.early) = (true, true);
            var.assigned |= assign;
            var.read |= !assign;
        }
        let Some((id, state, own)) = found else {
            if assign && self.profile == Profile::Pattern {
                self.implicit(func, ident.name);
            }
            let definite = func == self.root && self.definite.contains(&ident.name);
            self.deferred.push(Deferred { use_id: ident.id, name: ident.name, func, late, definite });
            return;
        };
        let var = &mut self.out.vars[id as usize];
        var.captured |= !own;
        var.assigned |= assign;
        var.read |= !assign;
        var.early |= state != State::Declared;
        // A function at the top of a file may run before the declarations around it.
        let check = state != State::Declared || (!own && var.top);
        self.out.uses[ident.id as usize] = match late.is_empty() {
            true => Use::Var { var: id, check },
            false => Use::Chain(late.into_iter().chain([id]).collect()),
        };
    }

    /// The main function of the file that a function is in.
    fn file_of(&self, mut func: FuncId) -> FuncId {
        while !self.out.mains.contains(&func)
            && let Some(parent) = self.out.funcs[func as usize].parent
        {
            func = parent;
        }
        func
    }

    fn implicit(&mut self, func: FuncId, name: Symbol) -> VarId {
        if let Some(var) = self.out.funcs[func as usize].implicit.get(&name) {
            return *var;
        }
        let var = self.new_var(name, func, VarKind::Implicit, None);
        self.out.vars[var as usize].top = self.out.mains.contains(&func);
        let scope = &mut self.out.funcs[func as usize];
        scope.implicit.insert(name, var);
        scope.implicit_order.push(var);
        var
    }

    /// Names that no declaration in sight explains.
    fn finish(&mut self) {
        for deferred in std::mem::take(&mut self.deferred) {
            let mut chain = Vec::new();
            let mut at = Some(deferred.func);
            while let Some(func) = at {
                chain.extend(deferred.late.iter().filter(|v| self.out.vars[**v as usize].func == func));
                let scope = &self.out.funcs[func as usize];
                if func != self.root {
                    chain.extend(scope.implicit.get(&deferred.name));
                }
                at = scope.parent;
            }
            let root = match self.out.funcs[self.root as usize].implicit.get(&deferred.name) {
                Some(var) => *var,
                None => {
                    let var = self.implicit(self.root, deferred.name);
                    self.out.vars[var as usize].kind = VarKind::Free;
                    var
                }
            };
            chain.push(root);
            for var in &chain {
                let var = &mut self.out.vars[*var as usize];
                var.captured |= var.func != deferred.func;
                var.read = true;
                (var.assigned, var.early) = (true, true);
            }
            self.out.uses[deferred.use_id as usize] = match chain[..] {
                [var] => Use::Var { var, check: !deferred.definite },
                _ => Use::Chain(chain.into()),
            };
        }
    }
}

/// The statement behind `export`.
pub(super) fn exported(stmt: &Stmt) -> &StmtKind {
    match &stmt.kind {
        StmtKind::Export(Export::Stmt(inner)) => &inner.kind,
        kind => kind,
    }
}
