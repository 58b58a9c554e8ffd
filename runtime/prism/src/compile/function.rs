//! Code for functions, and for files as a whole.

use super::*;
use crate::value::{Body as FuncBody, FnInfo};

impl Gen<'_> {
    fn open(&mut self, func: FuncId, file: u32) {
        self.fns.push(FnState {
            func,
            file,
            code: Vec::new(),
            spans: Vec::new(),
            next: 0,
            max: 0,
            captures: Vec::new(),
            captured: Vec::new(),
            cells: Vec::new(),
            loops: Vec::new(),
            guards: Vec::new(),
            pipe: None,
        });
    }

    fn close(&mut self, id: ProtoId, info: FnInfo) -> Made<()> {
        let f = self.fns.pop().expect("opened before");
        let name_of = |g: &mut Self, var: VarId| g.symbol_id(g.resolved.vars[var as usize].name);
        let capture_names = f.captured.iter().map(|v| name_of(self, *v)).collect();
        let cell_names = f.cells.iter().map(|(r, v)| (*r, name_of(self, *v))).collect();
        let info = Arc::new(info);
        let shared = match f.captures.is_empty() {
            true => Val::func(FuncBody::Closure { info: Arc::clone(&info), captured: Box::new([]) }).ok(),
            false => None,
        };
        self.code.protos[id as usize] = Proto {
            info,
            file: f.file,
            code: f.code,
            spans: f.spans,
            regs: f.max,
            captures: f.captures,
            capture_names,
            cell_names,
            shared,
        };
        Ok(())
    }

    /// Functions are numbered before they are generated, so that they can call each other.
    fn reserve(&mut self) -> ProtoId {
        let info = Arc::new(FnInfo::default());
        self.code.protos.push(Proto {
            info,
            file: 0,
            code: Vec::new(),
            spans: Vec::new(),
            regs: 0,
            captures: Vec::new(),
            capture_names: Vec::new(),
            cell_names: Vec::new(),
            shared: None,
        });
        self.code.protos.len() as ProtoId - 1
    }

    /// The main function of a file: imports, hoisted functions, then the statements.
    pub(super) fn main(&mut self, file: usize) -> Made<ProtoId> {
        let modules = self.modules;
        let tree = &modules[file].tree;
        let id = self.reserve();
        let func = self.resolved.mains[file];
        if func == FuncId::MAX {
            // Imported only by a file that is never reached; nothing runs it.
            return Ok(id);
        }
        self.open(func, file as u32);
        self.span = Span { end: 0, ..tree.span };
        let result = self.temp()?;
        self.place_implicit(func, file == 0)?;
        self.enter(&tree.stmts, true)?;
        self.imports(file)?;
        self.hoist(&tree.stmts)?;
        self.stmts(&tree.stmts, Some(result))?;
        self.span = Span { start: tree.span.end, ..tree.span };
        self.emit(Op::ModuleEnd { module: file as u16 });
        self.emit(Op::Return { src: result });
        self.close(id, FnInfo { name: Arc::from("main"), proto: id, ..FnInfo::default() })?;
        Ok(id)
    }

    fn place_implicit(&mut self, func: FuncId, root: bool) -> Made<()> {
        for var in self.resolved.funcs[func as usize].implicit_order.clone() {
            if self.locs[var as usize] != Loc::Nowhere {
                continue;
            }
            if root {
                // The host may have given it a value.
                let reg = self.temp()?;
                self.locs[var as usize] = Loc::Reg(reg);
                let name = Arc::clone(self.names.text(self.resolved.vars[var as usize].name));
                self.code.host_regs.push(HostReg { reg, name });
            } else {
                self.place(var, Some(false))?;
            }
        }
        Ok(())
    }

    fn hoist(&mut self, stmts: &[Stmt]) -> Made<()> {
        let functions: Vec<&Function> = stmts
            .iter()
            .filter_map(|s| match resolve::exported(s) {
                StmtKind::Function(f) => Some(&**f),
                _ => None,
            })
            .filter(|f| hoistable(f))
            .collect();
        // Numbered first, so that they can call each other directly.
        let mut ids = Vec::new();
        for f in &functions {
            let id = self.reserve();
            ids.push(id);
            let Some(name) = &f.name else { continue };
            if let Use::Var { var, .. } = self.use_of(name)
                && !self.resolved.vars[var as usize].assigned
                && f.confidence.is_none()
                && f.rest.is_none()
            {
                self.statics.insert(var, (id, f.params.len()));
            }
        }
        for (f, id) in functions.iter().zip(ids) {
            self.function(f, id)?;
            let Some(name) = &f.name else { continue };
            let mark = self.mark();
            let reg = self.temp()?;
            self.closure_of(f, id, reg)?;
            self.init(name, reg)?;
            self.release(mark);
        }
        Ok(())
    }

    /// Creates the function in `dst`.
    pub(super) fn closure(&mut self, f: &Function, dst: Reg) -> Made<()> {
        let id = self.reserve();
        self.function(f, id)?;
        self.closure_of(f, id, dst)
    }

    fn closure_of(&mut self, f: &Function, id: ProtoId, dst: Reg) -> Made<()> {
        self.span = f.span;
        let Some(confidence) = &f.confidence else {
            self.emit(Op::Closure { dst, proto: id });
            return Ok(());
        };
        let value = self.temp()?;
        self.emit(Op::Closure { dst: value, proto: id });
        let confidence = self.expr(confidence)?;
        self.span = f.span;
        self.emit(Op::Attach { dst, value, confidence });
        Ok(())
    }

    fn function(&mut self, f: &Function, id: ProtoId) -> Made<()> {
        let span = self.span;
        let func = self.resolved.by_span[&(f.span.file, f.span.start)];
        self.open(func, f.span.file);
        self.span = f.span;
        let count = f.params.len() + usize::from(f.rest.is_some());
        let first = self.temps(count as u32)?;
        let params = || (first..).zip(f.params.iter().chain(&f.rest));
        for (reg, param) in params() {
            if let Target::Name(ident) = param
                && let Use::Var { var, .. } = self.use_of(ident)
                && !self.in_cell(var)
            {
                self.locs[var as usize] = Loc::Reg(reg);
            }
        }
        self.place_implicit(func, false)?;
        for (reg, param) in params() {
            match param {
                Target::Name(ident) => match self.use_of(ident) {
                    Use::Var { var, .. } if self.locs[var as usize] != Loc::Reg(reg) => {
                        self.init(ident, reg)?
                    }
                    _ => {}
                },
                Target::Pattern(pattern) => self.destructure(pattern, reg, None, true)?,
            }
        }
        match &f.body {
            Body::Expr(e) => self.tail(e)?,
            Body::Block(block) => {
                self.enter(&block.stmts, false)?;
                self.body(&block.stmts)?;
            }
        }
        let name = match &f.name {
            Some(ident) => Arc::clone(self.names.text(ident.name)),
            None => Arc::from("lambda"),
        };
        let params = f.params.len().min(usize::from(u16::MAX)) as u16;
        let (rest, is_async) = (f.rest.is_some(), f.is_async);
        self.close(id, FnInfo { name, proto: id, params, rest, is_async })?;
        self.span = span;
        Ok(())
    }

    /// Statements whose last value is the function's.
    fn body(&mut self, stmts: &[Stmt]) -> Made<()> {
        if let Some((last, before)) = stmts.split_last() {
            match &last.kind {
                StmtKind::Expr(e) => {
                    self.stmts(before, None)?;
                    return self.tail(e);
                }
                StmtKind::Return(_) => return self.stmts(stmts, None),
                _ => {}
            }
        }
        let result = self.temp()?;
        self.stmts(stmts, Some(result))?;
        self.emit(Op::Return { src: result });
        Ok(())
    }

    /// Returns the value of an expression. A variable that dies with the function is built on in place.
    pub(super) fn tail(&mut self, e: &Expr) -> Made<()> {
        let mark = self.mark();
        let head = match &e.kind {
            ExprKind::Binary(first, _) => Some(&**first),
            ExprKind::Access(head, _) => Some(&**head),
            ExprKind::Array(items) => match items.first() {
                Some(Item::Spread(first)) => Some(first),
                _ => None,
            },
            _ => None,
        };
        if let Some(Expr { kind: ExprKind::Ident(ident), .. }) = head
            && self.fr().guards.is_empty()
            && let Some((reg, false)) = self.plain_reg(ident)
            && let ident = *ident
            && self.grow(&ident, e)?
        {
            self.emit(Op::Return { src: reg });
            return Ok(());
        }
        let src = self.expr(e)?;
        self.span = e.span;
        self.emit(Op::Return { src });
        self.release(mark);
        Ok(())
    }

    fn imports(&mut self, file: usize) -> Made<()> {
        let modules = self.modules;
        for stmt in &modules[file].tree.stmts {
            self.span = stmt.span;
            let (from, span) = match &stmt.kind {
                StmtKind::Import(import) => (&import.from, import.from_span),
                StmtKind::Export(Export::All { from, from_span } | Export::From { from, from_span, .. }) => {
                    (from, *from_span)
                }
                StmtKind::Export(_) if !self.loader => {
                    self.raise("import", "`export` needs a module loader, and there is none here", None);
                    continue;
                }
                _ => continue,
            };
            self.span = span;
            if !self.loader {
                self.raise("import", "`import` needs a module loader, and there is none here", None);
                continue;
            }
            let Some(module) = modules[file].module(from) else {
                self.raise("import", format!("there is no module `{from}`"), None);
                continue;
            };
            let module = module as u16;
            self.emit(Op::Import { module });
            self.bind_import(&stmt.kind, module, file as u16)?;
        }
        Ok(())
    }

    fn bind_import(&mut self, kind: &StmtKind, module: u16, own: u16) -> Made<()> {
        let mark = self.mark();
        let dst = self.temp()?;
        match kind {
            StmtKind::Import(import) => {
                if let Some(ident) = &import.all {
                    self.emit(Op::ImportAll { dst, module });
                    self.init(ident, dst)?;
                }
                for (name, ident) in &import.names {
                    self.span = ident.span;
                    let name = self.name16(name)?;
                    self.emit(Op::ImportName { dst, module, name });
                    self.init(ident, dst)?;
                }
            }
            StmtKind::Export(Export::From { names, .. }) => {
                for (name, exported, span) in names {
                    self.span = *span;
                    let name = self.name16(name)?;
                    self.emit(Op::ImportName { dst, module, name });
                    let name = self.name16(exported)?;
                    self.emit(Op::Export { src: dst, module: own, name });
                }
            }
            StmtKind::Export(Export::All { .. }) => {
                self.emit(Op::ExportAll { module: own, from: module });
            }
            _ => {}
        }
        self.release(mark);
        Ok(())
    }
}

/// A function whose confidence must be computed exists only once its declaration has run.
pub(super) fn hoistable(f: &Function) -> bool {
    match &f.confidence {
        None => true,
        Some(e) => matches!(e.kind, ExprKind::Num(_)),
    }
}
