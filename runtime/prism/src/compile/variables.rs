//! Code for variables: where they live, how they are read, assigned and declared.

use super::*;

impl Gen<'_> {
    pub(super) fn use_of(&self, ident: &Ident) -> Use {
        self.resolved.uses[ident.id as usize].clone()
    }

    /// Whether the variable lives in a cell: captured, and not settled when it is captured.
    pub(super) fn in_cell(&self, var: VarId) -> bool {
        let v = &self.resolved.vars[var as usize];
        v.captured && !v.top && (v.assigned || v.early)
    }

    /// Gives the variable a register, or a cell. `state`: what it is until its declaration has run.
    pub(super) fn place(&mut self, var: VarId, uninit: Option<bool>) -> Made<()> {
        if let Loc::Global(_) = self.locs[var as usize] {
            return Ok(());
        }
        let reg = self.temp()?;
        if self.in_cell(var) {
            self.locs[var as usize] = Loc::Cell(reg);
            self.f().cells.push((reg, var));
            self.emit(Op::NewCell { dst: reg, uninit: uninit.unwrap_or(false) });
        } else {
            self.locs[var as usize] = Loc::Reg(reg);
            if let Some(uninit) = uninit
                && self.resolved.vars[var as usize].early
            {
                self.emit(Op::Reset { dst: reg, uninit });
            }
        }
        Ok(())
    }

    /// Places what a block declares, before anything of it runs. Global ones start anew when the file does.
    pub(super) fn enter(&mut self, stmts: &[Stmt], uninit: bool) -> Made<()> {
        for stmt in stmts {
            let mut idents = Vec::new();
            stmt.kind.declared(&mut idents);
            if let StmtKind::Function(f) = resolve::exported(stmt) {
                idents.extend(&f.name);
            }
            if let StmtKind::Import(import) = &stmt.kind {
                idents.extend(import.all.iter().chain(import.names.iter().map(|(_, ident)| ident)));
            }
            for ident in idents {
                if let Use::Var { var, .. } = self.use_of(ident)
                    && self.locs[var as usize] == Loc::Nowhere
                {
                    self.place(var, Some(uninit))?;
                }
            }
        }
        Ok(())
    }

    /// The variable's place as seen from the current function.
    pub(super) fn up(&mut self, var: VarId) -> u16 {
        let level = self.fns.len() - 1;
        self.up_from(level, var)
    }

    fn up_from(&mut self, level: usize, var: VarId) -> u16 {
        if let Some(i) = self.fns[level].captured.iter().position(|v| *v == var) {
            return i as u16;
        }
        let outer = level - 1;
        let capture = if self.fns[outer].func == self.resolved.vars[var as usize].func {
            match self.locs[var as usize] {
                Loc::Reg(r) | Loc::Cell(r) => Capture::Reg(r),
                place => unreachable!("a captured variable cannot be at {place:?}"),
            }
        } else {
            Capture::Up(self.up_from(outer, var))
        };
        let f = &mut self.fns[level];
        f.captures.push(capture);
        f.captured.push(var);
        f.captures.len() as u16 - 1
    }

    pub(super) fn own(&self, var: VarId) -> bool {
        self.resolved.vars[var as usize].func == self.fr().func
    }

    /// Loads a variable; `raw` keeps the marks of missing variables.
    pub(super) fn load(&mut self, var: VarId, raw: bool, check: bool, dst: Reg) {
        let own = self.own(var);
        match self.locs[var as usize] {
            Loc::Global(g) => {
                self.emit(Op::GetGlobal { raw, dst, g });
            }
            Loc::Reg(src) if own => {
                if check {
                    let name = self.symbol_id(self.resolved.vars[var as usize].name);
                    self.emit(Op::Check { reg: src, name });
                }
                if src != dst {
                    self.emit(Op::Move { dst, src });
                }
            }
            Loc::Cell(cell) if own => {
                self.emit(Op::GetCell { raw, dst, cell });
            }
            _ => {
                let i = self.up(var);
                let op = match self.in_cell(var) {
                    true => Op::GetUpCell { raw, dst, i },
                    false => Op::GetUp { dst, i },
                };
                self.emit(op);
            }
        }
    }

    /// Stores a temporary, which is let go, in a variable.
    pub(super) fn store(&mut self, var: VarId, checked: bool, src: Reg) {
        let own = self.own(var);
        match self.locs[var as usize] {
            Loc::Global(g) => {
                self.emit(Op::SetGlobal { checked, src, g });
            }
            Loc::Reg(dst) if own => {
                if checked {
                    let name = self.symbol_id(self.resolved.vars[var as usize].name);
                    self.emit(Op::Check { reg: dst, name });
                }
                if src != dst {
                    self.emit(Op::Take { dst, src });
                }
            }
            Loc::Cell(cell) if own => {
                self.emit(Op::SetCell { checked, src, cell });
            }
            _ => {
                let i = self.up(var);
                self.emit(Op::SetUpCell { checked, src, i });
            }
        }
    }

    /// The register of a variable that simply lives in one.
    pub(super) fn plain_reg(&self, ident: &Ident) -> Option<(Reg, bool)> {
        match self.use_of(ident) {
            Use::Var { var, check } if self.own(var) => match self.locs[var as usize] {
                Loc::Reg(reg) => Some((reg, check)),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn read(&mut self, ident: &Ident, dst: Reg) {
        self.span = ident.span;
        match self.use_of(ident) {
            Use::Var { var, check } => self.load(var, false, check, dst),
            Use::Chain(chain) => {
                let (last, first) = chain.split_last().expect("a chain has members");
                let mut found = Vec::new();
                for var in first {
                    self.load(*var, true, false, dst);
                    found.push(self.emit(Op::JumpIfSet { reg: dst, to: 0 }));
                }
                self.load(*last, false, true, dst);
                self.patch_all(found);
            }
            Use::Redeclared | Use::Nothing => {
                self.emit(Op::Null { dst });
            }
        }
    }

    /// Assigns a temporary to a variable that should exist.
    pub(super) fn write(&mut self, ident: &Ident, src: Reg) -> Made<()> {
        match self.use_of(ident) {
            Use::Var { var, check } => {
                let kind = self.resolved.vars[var as usize].kind;
                if kind.constant() {
                    let name = self.names.text(ident.name);
                    self.raise(
                        "const_assign",
                        format!("`{name}` is a constant and cannot be assigned"),
                        None,
                    );
                    return Ok(());
                }
                let creates = kind == VarKind::Implicit;
                self.store(var, check && !creates, src);
            }
            Use::Chain(chain) => {
                let mark = self.mark();
                let probe = self.temp()?;
                let mut found = Vec::new();
                for var in &chain {
                    self.load(*var, true, false, probe);
                    found.push(self.emit(Op::JumpIfSet { reg: probe, to: 0 }));
                }
                self.release(mark);
                let func = self.fr().func;
                let creates = self.resolved.funcs[func as usize].implicit.get(&ident.name).copied();
                match creates {
                    Some(var) => self.store(var, false, src),
                    None => self.store(*chain.last().expect("a chain has members"), true, src),
                }
                let mut ends = vec![self.jump()];
                for (var, at) in chain.iter().zip(found) {
                    self.patch(at);
                    self.store(*var, true, src);
                    ends.push(self.jump());
                }
                self.patch_all(ends);
            }
            Use::Redeclared | Use::Nothing => {}
        }
        Ok(())
    }

    /// Gives a variable its first value, from a temporary.
    pub(super) fn init(&mut self, ident: &Ident, src: Reg) -> Made<()> {
        match self.use_of(ident) {
            Use::Var { var, .. } => {
                if self.locs[var as usize] == Loc::Nowhere {
                    self.place(var, None)?;
                }
                self.store(var, false, src);
            }
            Use::Redeclared => {
                let name = self.names.text(ident.name);
                self.span = ident.span;
                self.raise("redeclared", format!("`{name}` is already declared in this scope"), None);
            }
            Use::Chain(_) | Use::Nothing => {}
        }
        Ok(())
    }
}
