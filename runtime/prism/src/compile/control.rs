//! Code for loops, `uncertain`, `try` and the ways out of them.

use super::*;

impl Gen<'_> {
    fn push_loop(&mut self) {
        let tries = self.fr().guards.len();
        self.f().loops.push(Loop { breaks: Vec::new(), continues: Vec::new(), tries });
    }

    fn pop_loop(&mut self) -> Loop {
        self.f().loops.pop().expect("a loop is open")
    }

    pub(super) fn while_loop(&mut self, cond: &Expr, body: &Stmt, dst: Option<Reg>) -> Made<()> {
        self.null(dst);
        let top = self.here();
        let mark = self.mark();
        let exit = self.cond_jump(cond, false)?;
        self.release(mark);
        self.push_loop();
        self.scoped(body, dst)?;
        self.end_loop(top, exit)
    }

    fn null(&mut self, dst: Option<Reg>) {
        if let Some(dst) = dst {
            self.emit(Op::Null { dst });
        }
    }

    /// `continue` leads here; then back to `top`. `exit` and `break` lead behind.
    fn end_loop(&mut self, top: u32, exit: Vec<usize>) -> Made<()> {
        let finished = self.pop_loop();
        self.patch_all(finished.continues);
        self.emit(Op::Loop { to: top });
        self.patch_all(exit);
        self.patch_all(finished.breaks);
        Ok(())
    }

    pub(super) fn do_while(&mut self, body: &Stmt, cond: &Expr, dst: Option<Reg>) -> Made<()> {
        self.null(dst);
        let top = self.here();
        self.push_loop();
        self.scoped(body, dst)?;
        let finished = self.pop_loop();
        self.patch_all(finished.continues);
        let mark = self.mark();
        let exit = self.cond_jump(cond, false)?;
        self.release(mark);
        self.emit(Op::Loop { to: top });
        self.patch_all(exit);
        self.patch_all(finished.breaks);
        Ok(())
    }

    pub(super) fn for_in(
        &mut self,
        item: &Ident,
        index: Option<&Ident>,
        over: &Expr,
        body: &Stmt,
        dst: Option<Reg>,
    ) -> Made<()> {
        let mark = self.mark();
        let base = self.temps(2)?;
        let src = self.expr(over)?;
        self.span = over.span;
        self.emit(Op::IterStart { base, src });
        self.release(u32::from(base) + 2);
        self.null(dst);
        let inner = self.mark();
        // One variable for all turns; if it is captured, one cell.
        let loaded = self.loop_variable(item)?;
        let counted = match index {
            Some(index) => Some((index, self.loop_variable(index)?)),
            None => None,
        };
        let top = self.here();
        self.emit(Op::IterNext { base, dst: loaded });
        let exit = vec![self.jump()];
        self.init(item, loaded)?;
        if let Some((index, counted)) = counted {
            self.emit(Op::IterIndex { base, dst: counted });
            self.init(index, counted)?;
        }
        self.push_loop();
        self.scoped(body, dst)?;
        self.end_loop(top, exit)?;
        self.release(inner);
        self.release(mark);
        Ok(())
    }

    /// Places a loop's variable; where its values arrive.
    fn loop_variable(&mut self, ident: &Ident) -> Made<Reg> {
        if let Use::Var { var, .. } = self.use_of(ident) {
            self.place(var, None)?;
            if let Loc::Reg(reg) = self.locs[var as usize] {
                return Ok(reg);
            }
        }
        self.temp()
    }

    pub(super) fn for_loop(
        &mut self,
        header: &Header,
        dst: Option<Reg>,
        body: impl FnOnce(&mut Self, Option<Reg>) -> Made<()>,
    ) -> Made<()> {
        let mark = self.mark();
        if let Some(init) = &header.init {
            self.stmt(init, None)?;
        }
        self.null(dst);
        let top = self.here();
        let exit = match &header.cond {
            Some(cond) => {
                let mark = self.mark();
                let exit = self.cond_jump(cond, false)?;
                self.release(mark);
                exit
            }
            None => Vec::new(),
        };
        self.push_loop();
        body(self, dst)?;
        self.finish_for(header, top, exit)?;
        self.release(mark);
        Ok(())
    }

    fn finish_for(&mut self, header: &Header, top: u32, exit: Vec<usize>) -> Made<()> {
        let finished = self.pop_loop();
        self.patch_all(finished.continues);
        if let Some(update) = &header.update {
            self.stmt(update, None)?;
        }
        self.emit(Op::Loop { to: top });
        self.patch_all(exit);
        self.patch_all(finished.breaks);
        Ok(())
    }

    pub(super) fn leave_loop(&mut self, again: bool) -> Made<()> {
        let Some(inner) = self.fr().loops.len().checked_sub(1) else {
            let word = if again { "continue" } else { "break" };
            self.raise("loop_control", format!("`{word}` outside a loop"), None);
            return Ok(());
        };
        self.leave(if again { Exit::Continue(inner) } else { Exit::Break(inner) }, None)
    }

    pub(super) fn return_statement(&mut self, value: Option<&Expr>) -> Made<()> {
        let span = self.span;
        if self.fr().guards.is_empty()
            && let Some(e) = value
        {
            return self.tail(e);
        }
        let mark = self.mark();
        let src = match value {
            Some(e) => self.expr_temp(e)?,
            None => {
                let dst = self.temp()?;
                self.emit(Op::Int { dst, value: 0 });
                dst
            }
        };
        self.span = span;
        self.leave(Exit::Return, Some(src))?;
        self.release(mark);
        Ok(())
    }

    /// Leaves protections from the inside out until the target is reached, or a `finally` that must run first.
    fn leave(&mut self, exit: Exit, value: Option<Reg>) -> Made<()> {
        let until = match exit {
            Exit::Return => 0,
            Exit::Break(l) | Exit::Continue(l) => self.fr().loops[l].tries,
        };
        for i in (until..self.fr().guards.len()).rev() {
            match &self.fr().guards[i] {
                Guard::Catch => {
                    if let Some(reg) = value {
                        self.emit(Op::Force { reg });
                    }
                    self.emit(Op::TryEnd { wait: true });
                }
                Guard::Finally { how, value: slot, .. } => {
                    let (how, slot) = (*how, *slot);
                    self.emit(Op::TryEnd { wait: false });
                    if let Some(src) = value {
                        self.emit(Op::Take { dst: slot, src });
                    }
                    let Guard::Finally { exits, .. } = &mut self.f().guards[i] else {
                        unreachable!("matched above")
                    };
                    let known = exits.iter().position(|e| *e == exit);
                    let number = known.unwrap_or_else(|| {
                        exits.push(exit);
                        exits.len() - 1
                    });
                    self.emit(Op::Int { dst: how, value: number as i32 + 2 });
                    let entry = self.jump();
                    if let Guard::Finally { entries, .. } = &mut self.f().guards[i] {
                        entries.push(entry);
                    }
                    return Ok(());
                }
            }
        }
        match exit {
            Exit::Return => {
                let src = value.expect("a return has a value");
                self.emit(Op::Return { src });
            }
            Exit::Break(l) => {
                let jump = self.jump();
                self.f().loops[l].breaks.push(jump);
            }
            Exit::Continue(l) => {
                let jump = self.jump();
                self.f().loops[l].continues.push(jump);
            }
        }
        Ok(())
    }

    pub(super) fn try_statement(&mut self, t: &Try, dst: Option<Reg>) -> Made<()> {
        let mark = self.mark();
        let how = self.temps(2)?;
        let value = how + 1;
        let outer = t.finally.as_ref().map(|_| {
            let at = self.emit(Op::TryStart { reg: value, to: 0 });
            self.f().guards.push(Guard::Finally { how, value, entries: Vec::new(), exits: Vec::new() });
            at
        });
        self.protected(t, dst)?;
        if let (Some(outer), Some(finally)) = (outer, &t.finally) {
            self.finally(finally, how, value, outer)?;
        }
        self.release(mark);
        Ok(())
    }

    fn protected(&mut self, t: &Try, dst: Option<Reg>) -> Made<()> {
        let Some((name, handler)) = &t.catch else {
            return self.block(&t.body, dst);
        };
        let mark = self.mark();
        let error = self.temp()?;
        let start = self.emit(Op::TryStart { reg: error, to: 0 });
        self.f().guards.push(Guard::Catch);
        self.block(&t.body, dst)?;
        self.f().guards.pop();
        self.emit(Op::TryEnd { wait: true });
        let end = self.jump();
        self.patch(start);
        if let Some(name) = name {
            self.span = name.span;
            self.emit(Op::Message { dst: error, src: error });
            self.init(name, error)?;
        }
        self.block(handler, dst)?;
        self.patch(end);
        self.release(mark);
        Ok(())
    }

    /// The `finally` block, once, and behind it the ways on: 0 past the statement, 1 the error goes on, 2 and up what
    /// the exits say.
    fn finally(&mut self, block: &Block, how: Reg, value: Reg, start: usize) -> Made<()> {
        self.emit(Op::TryEnd { wait: false });
        self.emit(Op::Int { dst: how, value: 0 });
        let normal = self.jump();
        self.patch(start);
        self.emit(Op::Int { dst: how, value: 1 });
        let guard = self.f().guards.pop();
        let Some(Guard::Finally { entries, exits, .. }) = guard else { unreachable!("pushed by the caller") };
        self.patch(normal);
        self.patch_all(entries);
        self.block(block, None)?;
        let skip = |g: &mut Self, number: i16| {
            g.emit(Op::TestEqInt { sense: false, a: how, value: number });
            g.jump()
        };
        let next = skip(self, 1);
        self.emit(Op::Rethrow { src: value });
        self.patch(next);
        for (i, exit) in exits.into_iter().enumerate() {
            let next = skip(self, i as i16 + 2);
            self.leave(exit, Some(value).filter(|_| exit == Exit::Return))?;
            self.patch(next);
        }
        Ok(())
    }

    pub(super) fn uncertain_if(&mut self, cond: &Expr, branches: &Branches, dst: Option<Reg>) -> Made<()> {
        let mark = self.mark();
        let level = self.temp()?;
        let src = self.expr(cond)?;
        self.span = cond.span;
        self.emit(Op::Level { of: LevelOf::Strict, dst: level, src });
        let (ends, none) = self.level_branches(level, branches, dst)?;
        self.patch_all(none);
        self.span = cond.span;
        if let Some(dst) = dst {
            self.emit(Op::Int { dst, value: 0 });
        }
        self.patch_all(ends);
        self.release(mark);
        Ok(())
    }

    /// Runs the branch for the level. The first jumps come from the ends of branches; the others mean that there was
    /// none, and the code falls through to where they should lead.
    fn level_branches(
        &mut self,
        level: Reg,
        branches: &Branches,
        dst: Option<Reg>,
    ) -> Made<(Vec<usize>, Vec<usize>)> {
        let mut ends = Vec::new();
        for (number, branch) in branches.iter().take(3).enumerate() {
            if let Some(block) = branch {
                self.emit(Op::TestEqInt { sense: false, a: level, value: number as i16 });
                let next = self.jump();
                self.block(block, dst)?;
                ends.push(self.jump());
                self.patch(next);
            }
        }
        if let Some(block) = &branches[3] {
            self.block(block, dst)?;
            ends.push(self.jump());
        }
        Ok((ends, Vec::new()))
    }

    pub(super) fn uncertain_while(&mut self, cond: &Expr, branches: &Branches, dst: Option<Reg>) -> Made<()> {
        let mark = self.mark();
        self.null(dst);
        let level = self.temp()?;
        let top = self.here();
        let src = self.expr_temp(cond)?;
        self.span = cond.span;
        let mut exit = vec![self.emit(Op::JumpIf { sense: false, reg: src, to: 0 })];
        self.emit(Op::Level { of: LevelOf::Plain, dst: level, src });
        self.push_loop();
        let (ends, _) = self.level_branches(level, branches, dst)?;
        exit.push(self.jump());
        self.patch_all(ends);
        self.end_loop(top, exit)?;
        self.release(mark);
        Ok(())
    }

    pub(super) fn uncertain_for(
        &mut self,
        header: &Header,
        branches: &Branches,
        dst: Option<Reg>,
    ) -> Made<()> {
        let mark = self.mark();
        if let Some(init) = &header.init {
            self.stmt(init, None)?;
        }
        self.null(dst);
        let level = self.temp()?;
        self.emit(Op::Int { dst: level, value: 0 });
        let top = self.here();
        let mut exit = Vec::new();
        if let Some(cond) = &header.cond {
            let src = self.expr_temp(cond)?;
            self.span = cond.span;
            exit.push(self.emit(Op::JumpIf { sense: false, reg: src, to: 0 }));
            self.emit(Op::Level { of: LevelOf::Keep, dst: level, src });
        }
        self.push_loop();
        let (ends, _) = self.level_branches(level, branches, dst)?;
        exit.push(self.jump());
        self.patch_all(ends);
        self.finish_for(header, top, exit)?;
        self.release(mark);
        Ok(())
    }
}
