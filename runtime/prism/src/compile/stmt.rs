//! Code for statements. Every statement has a value; it is computed only where it is wanted.

use super::function::hoistable;
use super::*;

impl Gen<'_> {
    /// Statements in order; the value of the last one goes to `dst`.
    pub(super) fn stmts(&mut self, stmts: &[Stmt], dst: Option<Reg>) -> Made<()> {
        let Some((last, before)) = stmts.split_last() else {
            if let Some(dst) = dst {
                self.emit(Op::Int { dst, value: 0 });
            }
            return Ok(());
        };
        for stmt in before {
            self.stmt(stmt, None)?;
        }
        self.stmt(last, dst)
    }

    pub(super) fn block(&mut self, block: &Block, dst: Option<Reg>) -> Made<()> {
        let mark = self.mark();
        self.span = block.span;
        self.enter(&block.stmts, true)?;
        self.stmts(&block.stmts, dst)?;
        self.release(mark);
        Ok(())
    }

    /// The body of an `if` or a loop: a scope, block or not.
    pub(super) fn scoped(&mut self, stmt: &Stmt, dst: Option<Reg>) -> Made<()> {
        let mark = self.mark();
        self.stmt(stmt, dst)?;
        self.release(mark);
        Ok(())
    }

    fn zero(&mut self, dst: Option<Reg>) {
        if let Some(dst) = dst {
            self.emit(Op::Int { dst, value: 0 });
        }
    }

    pub(super) fn stmt(&mut self, stmt: &Stmt, dst: Option<Reg>) -> Made<()> {
        self.span = stmt.span;
        match &stmt.kind {
            StmtKind::Expr(e) => {
                let mark = self.mark();
                match dst {
                    Some(dst) => self.expr_into(e, dst, true)?,
                    None => self.effect(e)?,
                }
                self.release(mark);
            }
            StmtKind::Let { target, init, .. } => {
                self.declaration(target, init.as_ref())?;
                self.zero(dst);
            }
            StmtKind::Assign { target, op, value } => self.assign(target, *op, value, dst)?,
            StmtKind::Destructure { pattern, threshold, value } => {
                let mark = self.mark();
                let src = self.expr_temp(value)?;
                let threshold = match threshold {
                    Some(e) => Some(self.threshold(e)?),
                    None => None,
                };
                self.destructure(pattern, src, threshold, false)?;
                if let Some(dst) = dst {
                    self.emit(Op::Take { dst, src });
                }
                self.release(mark);
            }
            StmtKind::Function(f) => self.function_statement(f, dst)?,
            StmtKind::Return(value) => self.return_statement(value.as_ref())?,
            StmtKind::Break => self.leave_loop(false)?,
            StmtKind::Continue => self.leave_loop(true)?,
            StmtKind::If { arms, otherwise } => self.if_statement(arms, otherwise.as_deref(), dst)?,
            StmtKind::ForIn { item, index, over, body } => {
                self.for_in(item, index.as_ref(), over, body, dst)?
            }
            StmtKind::For { header, body } => {
                self.for_loop(header, dst, |g, dst| g.scoped(body, dst))?;
            }
            StmtKind::While { cond, body } => self.while_loop(cond, body, dst)?,
            StmtKind::DoWhile { body, cond } => self.do_while(body, cond, dst)?,
            StmtKind::UncertainIf { cond, branches } => self.uncertain_if(cond, branches, dst)?,
            StmtKind::UncertainWhile { cond, branches } => self.uncertain_while(cond, branches, dst)?,
            StmtKind::UncertainFor { header, branches } => self.uncertain_for(header, branches, dst)?,
            StmtKind::Block(block) => self.block(block, dst)?,
            StmtKind::Context(block) => self.stmts(&block.stmts, dst)?,
            StmtKind::Agents(agents) => {
                self.zero(dst);
                for (ident, properties) in agents {
                    if let Use::Var { var, .. } = self.use_of(ident)
                        && self.locs[var as usize] == Loc::Nowhere
                    {
                        self.place(var, None)?;
                    }
                    let mark = self.mark();
                    let src = self.expr_temp(properties)?;
                    if let Some(dst) = dst {
                        self.emit(Op::Move { dst, src });
                    }
                    self.init(ident, src)?;
                    self.release(mark);
                }
            }
            StmtKind::Try(t) => self.try_statement(t, dst)?,
            StmtKind::Import(_) => self.zero(dst),
            StmtKind::Export(export) => self.export(export, dst)?,
        }
        Ok(())
    }

    /// An expression for what it does.
    fn effect(&mut self, e: &Expr) -> Made<()> {
        match &e.kind {
            // Reading a variable can fail, so it is not left out.
            ExprKind::Ident(ident) if self.plain_reg(ident).is_some_and(|(_, check)| !check) => Ok(()),
            _ => self.expr(e).map(|_| ()),
        }
    }

    fn declaration(&mut self, target: &Target, init: Option<&Expr>) -> Made<()> {
        let ident = match target {
            Target::Name(ident) => ident,
            Target::Pattern(pattern) => {
                let mark = self.mark();
                let src = match init {
                    Some(e) => self.expr_temp(e)?,
                    None => self.temp()?,
                };
                let mut idents = Vec::new();
                pattern.names(&mut idents);
                let placed = idents
                    .iter()
                    .all(|i| !matches!(self.use_of(i), Use::Var { var, .. } if self.locs[var as usize] == Loc::Nowhere));
                self.destructure(pattern, src, None, true)?;
                if placed {
                    self.release(mark);
                }
                return Ok(());
            }
        };
        if let Use::Var { var, .. } = self.use_of(ident) {
            if self.locs[var as usize] == Loc::Nowhere {
                self.place(var, None)?;
            }
            if let Loc::Reg(dst) = self.locs[var as usize] {
                let fresh = !self.resolved.vars[var as usize].early;
                match init {
                    Some(e) => self.expr_into(e, dst, fresh)?,
                    None => {
                        self.emit(Op::Null { dst });
                    }
                }
                return Ok(());
            }
        }
        let mark = self.mark();
        let src = match init {
            Some(e) => self.expr_temp(e)?,
            None => {
                let dst = self.temp()?;
                self.emit(Op::Null { dst });
                dst
            }
        };
        self.init(ident, src)?;
        self.release(mark);
        Ok(())
    }

    fn assign(&mut self, target: &Ident, op: Option<BinOp>, value: &Expr, dst: Option<Reg>) -> Made<()> {
        let span = self.span;
        let mark = self.mark();
        let whole;
        let value = match op {
            // `x += e` is `x = x + e`.
            Some(op) => {
                whole = Compound { target: *target, op, value };
                self.compound(&whole, span)?;
                None
            }
            None => Some(value),
        };
        if let Some(value) = value
            && !self.grow(target, value)?
        {
            self.simple_assign(target, value)?;
        }
        if let Some(dst) = dst {
            self.read(target, dst);
        }
        self.release(mark);
        Ok(())
    }

    fn simple_assign(&mut self, target: &Ident, value: &Expr) -> Made<()> {
        if let Use::Var { var, check } = self.use_of(target)
            && let Some((reg, _)) = self.plain_reg(target)
        {
            let v = &self.resolved.vars[var as usize];
            if !v.kind.constant() && (!check || v.kind == VarKind::Implicit) {
                return self.expr_into(value, reg, false);
            }
        }
        let src = self.expr_temp(value)?;
        self.span = target.span;
        self.write(target, src)
    }

    fn compound(&mut self, c: &Compound<'_>, span: Span) -> Made<()> {
        if c.op == BinOp::Add && !matches!(c.value.kind, ExprKind::Num(_)) && self.grow_by(c, span)? {
            return Ok(());
        }
        let writable = match self.use_of(&c.target) {
            Use::Var { var, .. } => !self.resolved.vars[var as usize].kind.constant(),
            _ => false,
        };
        if let (true, Some((reg, check))) = (writable, self.plain_reg(&c.target)) {
            if check {
                let name = self.symbol_id(c.target.name);
                self.span = c.target.span;
                self.emit(Op::Check { reg, name });
            }
            let left = match super::expr::has_arm_block(c.value) {
                true => {
                    let copy = self.temp()?;
                    self.emit(Op::Move { dst: copy, src: reg });
                    copy
                }
                false => reg,
            };
            return self.operation(c.op, left, c.value, span, reg);
        }
        let acc = self.temp()?;
        self.read(&c.target, acc);
        let result = self.temp()?;
        self.operation(c.op, acc, c.value, span, result)?;
        self.span = span;
        self.write(&c.target, result)
    }

    /// `x += e`, in place where possible.
    fn grow_by(&mut self, c: &Compound<'_>, span: Span) -> Made<bool> {
        let writable = matches!(
            self.use_of(&c.target),
            Use::Var { var, .. } if !self.resolved.vars[var as usize].kind.constant()
        );
        if !writable || self.plain_reg(&c.target).is_some() || super::expr::has_arm_block(c.value) {
            // In a register, `Add` with the variable as its own target grows in place already.
            return Ok(false);
        }
        let Use::Var { var, .. } = self.use_of(&c.target) else { return Ok(false) };
        let place = match self.locs[var as usize] {
            Loc::Global(g) => u16::try_from(g).ok().map(|g| (Place::Global, g)),
            Loc::Cell(reg) if self.own(var) => Some((Place::Cell, reg)),
            _ if self.in_cell(var) => Some((Place::UpCell, self.up(var))),
            _ => None,
        };
        let Some((place, i)) = place else { return Ok(false) };
        let acc = self.temp()?;
        self.read(&c.target, acc);
        let b = self.expr_temp(c.value)?;
        self.span = span;
        self.emit(Op::Release { place, i, reg: acc, n: 1 });
        self.emit(Op::Add { dst: acc, a: acc, b });
        self.write(&c.target, acc)?;
        Ok(true)
    }

    fn function_statement(&mut self, f: &Function, dst: Option<Reg>) -> Made<()> {
        let Some(name) = &f.name else { return Ok(()) };
        let top = matches!(self.use_of(name), Use::Var { var, .. } if self.resolved.vars[var as usize].top);
        if !(top && hoistable(f)) {
            let mark = self.mark();
            let reg = self.temp()?;
            self.closure(f, reg)?;
            self.init(name, reg)?;
            // Placed when its block was entered.
            self.release(mark);
        }
        if let Some(dst) = dst {
            self.read(name, dst);
        }
        Ok(())
    }

    fn if_statement(
        &mut self,
        arms: &[(Expr, Stmt)],
        otherwise: Option<&Stmt>,
        dst: Option<Reg>,
    ) -> Made<()> {
        let mut ends = Vec::new();
        for (i, (cond, body)) in arms.iter().enumerate() {
            let mark = self.mark();
            let skip = self.cond_jump(cond, false)?;
            self.release(mark);
            self.scoped(body, dst)?;
            if i + 1 < arms.len() || otherwise.is_some() || dst.is_some() {
                ends.push(self.jump());
            }
            self.patch_all(skip);
        }
        match otherwise {
            Some(body) => self.scoped(body, dst)?,
            None => self.zero(dst),
        }
        self.patch_all(ends);
        Ok(())
    }

    fn export(&mut self, export: &Export, dst: Option<Reg>) -> Made<()> {
        let module = self.fr().file as u16;
        let mark = self.mark();
        match export {
            Export::Default(e) => {
                let src = self.expr_temp(e)?;
                let name = self.name16(&Arc::from("default"))?;
                self.emit(Op::Export { src, module, name });
            }
            Export::Names(names) => {
                for (ident, name) in names {
                    let src = self.temp()?;
                    self.read(ident, src);
                    let name = self.name16(name)?;
                    self.emit(Op::Export { src, module, name });
                }
            }
            Export::Stmt(inner) => {
                self.stmt(inner, None)?;
                let ident = match &inner.kind {
                    StmtKind::Let { target: Target::Name(ident), .. } => Some(ident),
                    StmtKind::Assign { target, .. } => Some(target),
                    StmtKind::Function(f) => f.name.as_ref(),
                    // A destructuring declaration exports nothing.
                    _ => None,
                };
                if let Some(ident) = ident {
                    let src = self.temp()?;
                    self.read(ident, src);
                    let names = self.names;
                    let name = self.name16(names.text(ident.name))?;
                    self.emit(Op::Export { src, module, name });
                }
            }
            Export::All { .. } | Export::From { .. } => {}
        }
        if !matches!(export, Export::Stmt(_)) {
            self.release(mark);
        }
        self.zero(dst);
        Ok(())
    }
}

/// `target op= value`
struct Compound<'a> {
    target: Ident,
    op: BinOp,
    value: &'a Expr,
}
