//! Source to [`Program`]: load the modules, resolve every name, generate code.

mod access;
mod branch;
mod control;
mod expr;
mod function;
mod load;
mod op;
mod pattern;
mod resolve;
mod stmt;
mod variables;

pub(crate) use load::{Loaded, load, load_all};
pub(crate) use op::*;
pub(crate) use resolve::{Resolved, Use, VarId, VarKind, resolve};

use crate::Profile;
use crate::ast::*;
use crate::builtins::{Native, Owner};
use crate::diagnostic::{Diagnostic, File, Kind, Span};
use crate::lexer::{Names, Symbol};
use crate::value::{Shape, Val};
use resolve::FuncId;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// How to compile.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// Name of the program's file: shown in diagnostics, and the path that imports are resolved against.
    pub name: String,
    pub profile: Profile,
    /// Sources of modules by absolute path. None: there is no module loader, so `import` and `export` fail.
    pub modules: Option<BTreeMap<String, String>>,
}

/// A compiled program: immutable, cheap to clone, shared by any number of runs.
#[derive(Clone)]
pub struct Program(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) code: Code,
    pub(crate) files: Vec<File>,
    pub(crate) profile: Profile,
    pub(crate) facts: Facts,
}

/// What can be said about a program without running it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Names that the program reads but does not define: built-ins and host values.
    pub globals: BTreeSet<String>,
    /// It reads `agentResults` or `successfulResults`, which asks every agent.
    pub uses_agent_results: bool,
    /// It can call agents, one way or another.
    pub calls_agents: bool,
    pub calls_llm: bool,
    pub calls_patterns: bool,
}

impl Program {
    /// Compiles, or says everything that is wrong.
    pub fn compile(source: &str, options: &CompileOptions) -> Result<Program, Vec<Diagnostic>> {
        let mut names = Names::default();
        let loaded = load(source, options, &mut names)?;
        let resolved = resolve(&loaded.modules, loaded.idents, options.profile);
        let generated = Gen::new(&loaded.modules, resolved, &names, options).run();
        let (code, facts) = generated.map_err(|(span, message)| {
            vec![Diagnostic::new("syntax", Kind::Parse, message, span, &loaded.files)]
        })?;
        Ok(Program(Arc::new(Inner { code, files: loaded.files, profile: options.profile, facts })))
    }

    /// What always fails where it is reached.
    pub(crate) fn doomed(&self) -> impl Iterator<Item = Diagnostic> + '_ {
        let told = |error: &&ErrorText| matches!(error.code, "loop_control" | "placeholder" | "import");
        self.0.code.errors.iter().filter(told).map(|error| {
            Diagnostic::new(error.code, Kind::Check, error.message.clone(), error.span, &self.0.files)
                .hint(error.hint.clone())
        })
    }

    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    pub fn uses_agent_results(&self) -> bool {
        self.0.facts.uses_agent_results
    }

    pub fn profile(&self) -> Profile {
        self.0.profile
    }

    /// Name and source of a file of the program, by [`Span::file`].
    pub fn file(&self, file: u32) -> Option<(&str, &str)> {
        self.0.files.get(file as usize).map(|f| (&*f.name, &*f.source))
    }
}

/// The program outgrew the instruction format.
type TooLarge = (Span, String);
type Made<T> = Result<T, TooLarge>;

/// Where a variable lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loc {
    Nowhere,
    Reg(Reg),
    /// In the cell that this register refers to.
    Cell(Reg),
    Global(u32),
}

struct Loop {
    breaks: Vec<usize>,
    continues: Vec<usize>,
    /// Protections open when the loop was entered.
    tries: usize,
}

enum Guard {
    Catch,
    /// Exits go through the `finally` block: registers of what to do after it and with which value.
    Finally {
        how: Reg,
        value: Reg,
        entries: Vec<usize>,
        exits: Vec<Exit>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Return,
    Break(usize),
    Continue(usize),
}

/// The function being generated.
struct FnState {
    func: FuncId,
    file: u32,
    code: Vec<Op>,
    spans: Vec<(u32, u32)>,
    next: u32,
    max: u32,
    captures: Vec<Capture>,
    captured: Vec<VarId>,
    cells: Vec<(Reg, VarId)>,
    loops: Vec<Loop>,
    guards: Vec<Guard>,
    /// What `_` means here.
    pipe: Option<Reg>,
}

struct Gen<'a> {
    modules: &'a [Loaded],
    resolved: Resolved,
    names: &'a Names,
    profile: Profile,
    loader: bool,
    code: Code,
    locs: Vec<Loc>,
    fns: Vec<FnState>,
    name_ids: HashMap<Arc<str>, u32>,
    text_consts: HashMap<Arc<str>, u32>,
    num_consts: HashMap<u64, u32>,
    shape_ids: HashMap<Vec<Arc<str>>, u16>,
    /// Hoisted functions that can be called without looking them up.
    statics: HashMap<VarId, (ProtoId, usize)>,
    /// Calls, by file and place, that are left to the `parallel` around them if the function is async.
    deferrable: HashSet<(u32, u32)>,
    span: Span,
    facts: Facts,
}

impl<'a> Gen<'a> {
    fn new(modules: &'a [Loaded], resolved: Resolved, names: &'a Names, options: &CompileOptions) -> Self {
        let locs = vec![Loc::Nowhere; resolved.vars.len()];
        Gen {
            modules,
            resolved,
            names,
            profile: options.profile,
            loader: options.modules.is_some(),
            code: Code {
                protos: Vec::new(),
                consts: Vec::new(),
                names: Vec::new(),
                shapes: Vec::new(),
                errors: Vec::new(),
                globals: Vec::new(),
                host_regs: Vec::new(),
                mains: Vec::new(),
            },
            locs,
            fns: Vec::new(),
            name_ids: HashMap::new(),
            text_consts: HashMap::new(),
            num_consts: HashMap::new(),
            shape_ids: HashMap::new(),
            statics: HashMap::new(),
            deferrable: HashSet::new(),
            span: Span::default(),
            facts: Facts::default(),
        }
    }

    fn run(mut self) -> Made<(Code, Facts)> {
        self.place_globals();
        for file in 0..self.modules.len() {
            let main = self.main(file)?;
            self.code.mains.push(main);
        }
        let called = |name: &str| self.facts.globals.contains(name);
        self.facts.uses_agent_results = called("agentResults") || called("successfulResults");
        self.facts.calls_agents |= self.facts.uses_agent_results;
        self.facts.calls_llm = called("llm") || called("stream_llm");
        self.facts.calls_patterns = called("executePattern");
        Ok((self.code, self.facts))
    }

    /// Variables at the top of files that functions use, and names that the program does not define.
    fn place_globals(&mut self) {
        for (id, var) in self.resolved.vars.iter().enumerate() {
            let free = var.kind == VarKind::Free;
            let name = self.names.text(var.name);
            // `x` in `function f() { let x }` may mean the outer one, so it is no proof that the program reads it.
            if matches!(var.kind, VarKind::Free | VarKind::Implicit)
                && var.func == self.resolved.mains[0]
                && var.read
            {
                self.facts.globals.insert(name.to_string());
            }
            let shared = var.top && var.captured;
            if !free && !shared {
                continue;
            }
            let start = match var.kind {
                VarKind::Free => Start::Named,
                VarKind::Implicit if var.func == self.resolved.mains[0] => Start::Named,
                VarKind::Implicit => Start::Unset,
                _ => Start::Uninit,
            };
            self.locs[id] = Loc::Global(self.code.globals.len() as u32);
            self.code.globals.push(Global { name: Arc::clone(name), start });
        }
    }

    fn too_large<T>(&self, what: &str) -> Made<T> {
        Err((self.span, format!("the program is too large: too many {what}")))
    }

    fn f(&mut self) -> &mut FnState {
        self.fns.last_mut().expect("a function is being generated")
    }

    fn fr(&self) -> &FnState {
        self.fns.last().expect("a function is being generated")
    }

    fn emit(&mut self, op: Op) -> usize {
        let span = (self.span.start, self.span.end);
        let f = self.f();
        f.code.push(op);
        f.spans.push(span);
        f.code.len() - 1
    }

    fn here(&self) -> u32 {
        self.fr().code.len() as u32
    }

    /// Makes the jump at `at` lead here.
    fn patch(&mut self, at: usize) {
        let here = self.here();
        match &mut self.f().code[at] {
            Op::Jump { to } | Op::JumpIf { to, .. } | Op::JumpIfSet { to, .. } | Op::TryStart { to, .. } => {
                *to = here
            }
            other => unreachable!("{other:?} is no jump"),
        }
    }

    fn patch_all(&mut self, jumps: Vec<usize>) {
        jumps.into_iter().for_each(|at| self.patch(at));
    }

    fn jump(&mut self) -> usize {
        self.emit(Op::Jump { to: 0 })
    }

    fn temp(&mut self) -> Made<Reg> {
        self.temps(1)
    }

    /// `n` registers in a row.
    fn temps(&mut self, n: u32) -> Made<Reg> {
        let f = self.f();
        let first = f.next;
        f.next += n;
        f.max = f.max.max(f.next);
        if f.next >= u32::from(u16::MAX) {
            return self.too_large("variables in one function");
        }
        Ok(first as Reg)
    }

    fn mark(&self) -> u32 {
        self.fr().next
    }

    fn release(&mut self, mark: u32) {
        self.f().next = mark;
    }

    fn const_of(&mut self, value: Val) -> u32 {
        self.code.consts.push(value);
        self.code.consts.len() as u32 - 1
    }

    fn text_const(&mut self, text: &Arc<str>) -> u32 {
        if let Some(k) = self.text_consts.get(text) {
            return *k;
        }
        let k = self.const_of(Val::str(&**text));
        self.text_consts.insert(Arc::clone(text), k);
        k
    }

    fn num_const(&mut self, x: f64) -> u32 {
        if let Some(k) = self.num_consts.get(&x.to_bits()) {
            return *k;
        }
        let k = self.const_of(Val::Num(x));
        self.num_consts.insert(x.to_bits(), k);
        k
    }

    fn name_id(&mut self, text: &Arc<str>) -> u32 {
        if let Some(id) = self.name_ids.get(text) {
            return *id;
        }
        let id = self.code.names.len() as u32;
        let (array, string) = (
            Native::method(text, Owner::Array, self.profile),
            Native::method(text, Owner::String, self.profile),
        );
        self.code.names.push(Name { text: Arc::clone(text), array, string });
        self.name_ids.insert(Arc::clone(text), id);
        id
    }

    fn name16(&mut self, text: &Arc<str>) -> Made<u16> {
        match u16::try_from(self.name_id(text)) {
            Ok(id) => Ok(id),
            Err(_) => self.too_large("names"),
        }
    }

    fn symbol_id(&mut self, symbol: Symbol) -> u32 {
        let names = self.names;
        self.name_id(names.text(symbol))
    }

    fn shape(&mut self, keys: &[Arc<str>]) -> Made<u16> {
        if let Some(id) = self.shape_ids.get(keys) {
            return Ok(*id);
        }
        let Ok(id) = u16::try_from(self.code.shapes.len()) else {
            return self.too_large("kinds of objects");
        };
        // Keys are shared with the names of property accesses, so that finding one is comparing pointers.
        let shared: Vec<Arc<str>> = keys
            .iter()
            .map(|key| {
                let id = self.name_id(key);
                Arc::clone(&self.code.names[id as usize].text)
            })
            .collect();
        self.code.shapes.push(Arc::new(Shape::of(shared)));
        self.shape_ids.insert(keys.to_vec(), id);
        Ok(id)
    }

    fn raise(&mut self, code: &'static str, message: impl Into<String>, hint: Option<&str>) {
        let error = self.code.errors.len() as u32;
        let (message, hint, span) = (message.into(), hint.map(str::to_string), self.span);
        self.code.errors.push(ErrorText { code, message, hint, span });
        self.emit(Op::Raise { error });
    }
}
