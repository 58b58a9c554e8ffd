//! Code for calls, properties and indexes, and for building on a variable's own data.

use super::expr::has_arm_block;
use super::*;

impl Gen<'_> {
    pub(super) fn access(&mut self, head: &Expr, steps: &[Access], dst: Reg) -> Made<()> {
        // A pipeline's value does not reach into a `?.` chain: not before its last `?.`.
        let optional =
            steps.iter().rposition(|s| matches!(s.kind, AccessKind::Member(MemberOp::Optional, _)));
        let pipe = self.fr().pipe;
        if optional.is_some() {
            self.f().pipe = None;
        }
        let result = self.steps(head, steps, dst, optional, pipe);
        self.f().pipe = pipe;
        result
    }

    fn steps(
        &mut self,
        head: &Expr,
        steps: &[Access],
        dst: Reg,
        optional: Option<usize>,
        pipe: Option<Reg>,
    ) -> Made<()> {
        self.note(steps);
        self.note_deferrable(head, steps);
        let start = head.span;
        let mut i = 0;
        let mut cur = match self.static_call(head, steps)? {
            Some(result) => {
                i = 1;
                result
            }
            None if has_blocks(steps) => self.expr_temp(head)?,
            None => self.expr(head)?,
        };
        let mut temp = i == 1 || self.is_temp(head);
        while i < steps.len() {
            if optional.is_some_and(|last| i > last) {
                self.f().pipe = pipe;
            }
            let step = &steps[i];
            let span = start.to(step.span);
            let method = match (&step.kind, steps.get(i + 1).map(|s| &s.kind)) {
                (AccessKind::Member(MemberOp::Dot, name), Some(AccessKind::Call(args))) => Some((name, args)),
                _ => None,
            };
            let last = i + 1 + usize::from(method.is_some()) >= steps.len();
            if let Some((name, args)) = method
                && args.len() < 250
                && !args.iter().any(|a| matches!(a, Item::Spread(_)))
            {
                let base = self.temp()?;
                self.emit(if temp {
                    Op::Take { dst: base, src: cur }
                } else {
                    Op::Move { dst: base, src: cur }
                });
                let (_, n) = self.values(args)?;
                let name = self.name16(name)?;
                self.span = span.to(steps[i + 1].span);
                let target = if last { dst } else { base };
                self.emit(Op::CallMethod { n: n as u8, dst: target, base, name });
                self.release(u32::from(base) + 1);
                (cur, temp) = (target, true);
                i += 2;
                continue;
            }
            let target = match () {
                _ if last => dst,
                _ if temp => cur,
                _ => self.temp()?,
            };
            let mark = self.mark();
            match &step.kind {
                AccessKind::Member(op, name) => {
                    let name = self.name16(name)?;
                    self.span = span;
                    self.emit(match op {
                        MemberOp::Dot if temp && target != cur => Op::GetTake { dst: target, obj: cur, name },
                        MemberOp::Dot => Op::Get { dst: target, obj: cur, name },
                        MemberOp::Optional => Op::GetOptional { dst: target, obj: cur, name },
                        MemberOp::Sure => Op::GetSure { dst: target, obj: cur, name },
                    });
                }
                AccessKind::Index(e) => {
                    let index = self.expr(e)?;
                    self.span = span;
                    self.emit(Op::Index { dst: target, obj: cur, index });
                }
                AccessKind::Call(args) => {
                    let base = self.temp()?;
                    self.emit(if temp {
                        Op::Take { dst: base, src: cur }
                    } else {
                        Op::Move { dst: base, src: cur }
                    });
                    let deferrable = self.is_deferrable(step);
                    self.call(args, base, span, target, deferrable)?;
                }
            }
            self.release(mark);
            (cur, temp) = (target, true);
            i += 1;
        }
        if cur != dst {
            self.emit(Op::Take { dst, src: cur });
        }
        Ok(())
    }

    /// Whether the register that `head` came to is a temporary that only this chain uses.
    fn is_temp(&self, head: &Expr) -> bool {
        match &head.kind {
            ExprKind::Ident(ident) => self.plain_reg(ident).is_none(),
            ExprKind::Placeholder => self.fr().pipe.is_none(),
            _ => true,
        }
    }

    /// A call of what `base` holds.
    fn call(&mut self, args: &[Item], base: Reg, span: Span, dst: Reg, deferrable: bool) -> Made<()> {
        if args.len() < 250 && !args.iter().any(|a| matches!(a, Item::Spread(_))) {
            let (_, n) = self.values(args)?;
            self.span = span;
            if deferrable {
                self.emit(Op::Defer { n: n as u8, dst, base });
            }
            self.emit(Op::Call { n: n as u8, dst, base });
            return Ok(());
        }
        let arr = self.temp()?;
        self.emit(Op::NewArray { dst: arr, first: arr, n: 0 });
        for arg in args {
            let mark = self.mark();
            match arg {
                Item::Spread(e) => {
                    let src = self.expr(e)?;
                    self.span = e.span;
                    self.emit(Op::SpreadInto { args: true, arr, src });
                }
                _ => {
                    let (first, n) = self.values(std::slice::from_ref(arg))?;
                    self.emit(Op::Extend { arr, first, n });
                }
            }
            self.release(mark);
        }
        self.span = span;
        self.emit(Op::CallSpread { dst, base });
        Ok(())
    }

    /// `f(…)` where `f` is a hoisted function that never changes: the result's register.
    fn static_call(&mut self, head: &Expr, steps: &[Access]) -> Made<Option<Reg>> {
        let (ExprKind::Ident(ident), Some(AccessKind::Call(args))) =
            (&head.kind, steps.first().map(|s| &s.kind))
        else {
            return Ok(None);
        };
        if self.is_deferrable(&steps[0]) {
            return Ok(None);
        }
        let Use::Var { var, .. } = self.use_of(ident) else { return Ok(None) };
        let Some((proto, params)) = self.statics.get(&var).copied() else { return Ok(None) };
        let spread = args.iter().any(|a| matches!(a, Item::Spread(_)));
        let (Ok(proto), false) = (u16::try_from(proto), spread || args.len() != params) else {
            return Ok(None);
        };
        let result = self.temp()?;
        let (first, _) = self.values(args)?;
        self.span = head.span.to(steps[0].span);
        self.emit(Op::CallStatic { dst: result, first, proto });
        self.release(u32::from(result) + 1);
        Ok(Some(result))
    }

    /// Remembers what the call says about the program.
    fn note(&mut self, steps: &[Access]) {
        let analyze =
            steps.iter().any(|s| matches!(&s.kind, AccessKind::Member(_, name) if **name == *"analyze"));
        self.facts.calls_agents |= analyze;
    }

    /// `parallel([f(…)])`, `race([f(…)])`, `Promise.all([f(…)])`: the calls of async functions in the list overlap.
    fn note_deferrable(&mut self, head: &Expr, steps: &[Access]) {
        let ExprKind::Ident(ident) = &head.kind else { return };
        let args = match (&**self.names.text(ident.name), steps) {
            ("parallel" | "race", [Access { kind: AccessKind::Call(args), .. }, ..]) => args,
            (
                "Promise",
                [
                    Access { kind: AccessKind::Member(MemberOp::Dot, name), .. },
                    Access { kind: AccessKind::Call(args), .. },
                    ..,
                ],
            ) if **name == *"all" => args,
            _ => return,
        };
        let built_in = match self.use_of(ident) {
            Use::Var { var, .. } => self.resolved.vars[var as usize].kind == VarKind::Free,
            _ => false,
        };
        let Some(Item::Expr(Expr { kind: ExprKind::Array(items), .. })) = args.first() else { return };
        if !built_in {
            return;
        }
        for item in items {
            if let Item::Expr(Expr { kind: ExprKind::Access(_, steps), .. }) = item
                && let [Access { kind: AccessKind::Call(_), span }] = &steps[..]
            {
                self.deferrable.insert((span.file, span.start));
            }
        }
    }

    fn is_deferrable(&self, step: &Access) -> bool {
        self.deferrable.contains(&(step.span.file, step.span.start))
    }

    /// `x = x + …`, `x = x.push(…)`, `x = [...x, …]`: builds on the data of `x` in place when nobody else holds it.
    /// Otherwise false, and nothing is generated.
    pub(super) fn grow(&mut self, target: &Ident, value: &Expr) -> Made<bool> {
        let same = |e: &Expr| matches!(&e.kind, ExprKind::Ident(i) if self.same_var(i, target));
        let items: Vec<&Expr> = match &value.kind {
            ExprKind::Binary(first, rest) if same(first) && rest.iter().all(|(op, _)| *op == BinOp::Add) => {
                // Adding a number needs no place to build in, and has instructions of its own.
                if let [(_, e)] = &rest[..]
                    && matches!(e.kind, ExprKind::Num(_))
                {
                    return Ok(false);
                }
                rest.iter().map(|(_, e)| e).collect()
            }
            ExprKind::Access(head, steps) if same(head) => match &steps[..] {
                [
                    Access { kind: AccessKind::Member(MemberOp::Dot, name), .. },
                    Access { kind: AccessKind::Call(args), .. },
                ] if **name == *"push" => match plain_items(args) {
                    Some(items) if !items.is_empty() => items,
                    _ => return Ok(false),
                },
                _ => return Ok(false),
            },
            ExprKind::Array(items) => match items.split_first() {
                Some((Item::Spread(first), rest)) if same(first) && !rest.is_empty() => {
                    match plain_items(rest) {
                        Some(items) => items,
                        None => return Ok(false),
                    }
                }
                _ => return Ok(false),
            },
            _ => return Ok(false),
        };
        if items.len() > 60 || items.iter().any(|e| has_arm_block(e)) {
            return Ok(false);
        }
        let mark = self.mark();
        let own = self.plain_reg(target);
        let place = match own {
            Some((reg, check)) => {
                if check {
                    let name = self.symbol_id(target.name);
                    self.span = target.span;
                    self.emit(Op::Check { reg, name });
                }
                None
            }
            None => match self.use_of(target) {
                Use::Var { var, .. } if !self.resolved.vars[var as usize].kind.constant() => {
                    let place = match self.locs[var as usize] {
                        Loc::Global(g) => u16::try_from(g).ok().map(|g| (Place::Global, g)),
                        Loc::Cell(reg) if self.own(var) => Some((Place::Cell, reg)),
                        _ if self.in_cell(var) => Some((Place::UpCell, self.up(var))),
                        _ => None,
                    };
                    let Some(place) = place else { return Ok(false) };
                    Some(place)
                }
                _ => return Ok(false),
            },
        };
        if let (Some(_), Use::Var { var, .. }) = (own, self.use_of(target))
            && self.resolved.vars[var as usize].kind.constant()
        {
            return Ok(false);
        }
        let acc = match own {
            Some((reg, _)) => reg,
            None => {
                let acc = self.temp()?;
                self.read(target, acc);
                acc
            }
        };
        let n = items.len() as u16;
        let first = self.temps(u32::from(n))?;
        for (reg, e) in (first..).zip(items) {
            self.expr_into(e, reg, true)?;
        }
        self.span = value.span;
        if let Some((place, i)) = place {
            self.emit(Op::Release { place, i, reg: acc, n });
        }
        match &value.kind {
            ExprKind::Binary(..) if n == 1 => {
                self.emit(Op::Add { dst: acc, a: acc, b: first });
            }
            ExprKind::Binary(..) => {
                self.emit(Op::AddAll { dst: acc, first, n });
            }
            ExprKind::Array(_) => {
                self.emit(Op::Append { dst: acc, first, n });
            }
            _ => self.push(acc, first, n)?,
        }
        if own.is_none() {
            self.write(target, acc)?;
        }
        self.release(mark);
        Ok(true)
    }

    fn push(&mut self, arr: Reg, first: Reg, n: u16) -> Made<()> {
        let push = self.emit(Op::PushIn { skip: 0, arr, first, n });
        // Not an array: whatever `push` is there.
        let base = self.temp()?;
        self.emit(Op::Move { dst: base, src: arr });
        let args = self.temps(u32::from(n))?;
        for (dst, src) in (args..).zip(first..first + n) {
            self.emit(Op::Take { dst, src });
        }
        let name = self.name16(&Arc::from("push"))?;
        self.emit(Op::CallMethod { n: n as u8, dst: arr, base, name });
        let skipped = self.here() as usize - push - 1;
        if let Op::PushIn { skip, .. } = &mut self.f().code[push] {
            *skip = skipped as u8;
        }
        Ok(())
    }

    fn same_var(&self, a: &Ident, b: &Ident) -> bool {
        match (self.use_of(a), self.use_of(b)) {
            (Use::Var { var: a, .. }, Use::Var { var: b, .. }) => a == b,
            _ => false,
        }
    }
}

fn plain_items(items: &[Item]) -> Option<Vec<&Expr>> {
    items
        .iter()
        .map(|i| match i {
            Item::Expr(e) => Some(e),
            _ => None,
        })
        .collect()
}

fn has_blocks(steps: &[Access]) -> bool {
    steps.iter().any(|s| match &s.kind {
        AccessKind::Index(e) => has_arm_block(e),
        AccessKind::Call(items) => items.iter().any(|i| match i {
            Item::Expr(e) | Item::Spread(e) => has_arm_block(e),
            Item::Hole => false,
        }),
        AccessKind::Member(..) => false,
    })
}
