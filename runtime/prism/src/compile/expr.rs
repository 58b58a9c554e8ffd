//! Code for expressions.

use super::*;
use crate::walk::{Node, children};

/// Registers that one instruction builds an array, object or text from.
const BATCH: usize = 64;

impl Gen<'_> {
    /// Evaluates into whatever register is convenient: a variable's own, or a new temporary.
    pub(super) fn expr(&mut self, e: &Expr) -> Made<Reg> {
        match &e.kind {
            ExprKind::Ident(ident) => {
                if let Some((reg, check)) = self.plain_reg(ident) {
                    if check {
                        self.span = ident.span;
                        let name = self.symbol_id(ident.name);
                        self.emit(Op::Check { reg, name });
                    }
                    return Ok(reg);
                }
            }
            ExprKind::Placeholder => {
                if let Some(reg) = self.fr().pipe {
                    return Ok(reg);
                }
            }
            _ => {}
        }
        self.expr_temp(e)
    }

    /// An operand that is looked at only after what follows it has run. Blocks in the arms of a `match` are the one
    /// way for an expression to assign a variable of its own function.
    pub(super) fn operand(&mut self, e: &Expr, followers: &[&Expr]) -> Made<Reg> {
        if followers.iter().any(|f| has_arm_block(f)) { self.expr_temp(e) } else { self.expr(e) }
    }

    /// Evaluates into a new temporary on top.
    pub(super) fn expr_temp(&mut self, e: &Expr) -> Made<Reg> {
        let dst = self.temp()?;
        self.expr_into(e, dst, true)?;
        Ok(dst)
    }

    /// Evaluates into `dst`. Unless `fresh`, the expression may read `dst`, so only its last instruction writes it.
    pub(super) fn expr_into(&mut self, e: &Expr, dst: Reg, fresh: bool) -> Made<()> {
        let mark = self.mark();
        self.span = e.span;
        match &e.kind {
            ExprKind::Null => {
                self.emit(Op::Null { dst });
            }
            ExprKind::Bool(value) => {
                self.emit(Op::Bool { dst, value: *value });
            }
            ExprKind::Num(x) => self.number(*x, dst),
            ExprKind::Str(s) => {
                let k = self.text_const(s);
                self.emit(Op::Const { dst, k });
            }
            ExprKind::Placeholder => match self.fr().pipe {
                Some(src) => {
                    self.emit(Op::Move { dst, src });
                }
                None => self.raise(
                    "placeholder",
                    "`_` stands for the left side of a pipeline, and there is none",
                    None,
                ),
            },
            ExprKind::Template(parts) => self.without_pipe(|g| g.template(parts, dst))?,
            ExprKind::Ident(ident) => self.read(ident, dst),
            ExprKind::Array(items) => self.array(items, dst)?,
            ExprKind::Object(pairs) => self.object(pairs, dst)?,
            ExprKind::Unary(op, operand) => self.unary(*op, operand, e.span, dst)?,
            ExprKind::Binary(first, rest) => self.binary(first, rest, e.span, dst, fresh)?,
            ExprKind::Attach(value, confidence) => {
                let value = self.operand(value, &[confidence])?;
                let confidence = self.expr(confidence)?;
                self.span = e.span;
                self.emit(Op::Attach { dst, value, confidence });
            }
            ExprKind::Ternary(t) => self.ternary(t, e.span, dst, fresh)?,
            ExprKind::Pipe(first, stages) => self.pipe(first, stages, dst)?,
            ExprKind::Access(head, steps) => self.access(head, steps, dst)?,
            ExprKind::Lambda(f) => self.closure(f, dst)?,
            ExprKind::Match(m) if fresh => self.without_pipe(|g| g.match_into(m, dst))?,
            ExprKind::Match(m) => {
                let result = self.temp()?;
                self.without_pipe(|g| g.match_into(m, result))?;
                self.emit(Op::Take { dst, src: result });
            }
        }
        self.release(mark);
        Ok(())
    }

    pub(super) fn number(&mut self, x: f64, dst: Reg) {
        if x.fract() == 0.0 && x.abs() < f64::from(i32::MAX) && !(x == 0.0 && x.is_sign_negative()) {
            self.emit(Op::Int { dst, value: x as i32 });
        } else {
            let k = self.num_const(x);
            self.emit(Op::Const { dst, k });
        }
    }

    /// `_` does not reach into interpolated strings, `?.` chains, `await`, `match` and `~?`.
    pub(super) fn without_pipe<T>(&mut self, generate: impl FnOnce(&mut Self) -> Made<T>) -> Made<T> {
        let pipe = self.f().pipe.take();
        let result = generate(self);
        self.f().pipe = pipe;
        result
    }

    fn template(&mut self, parts: &[Part], dst: Reg) -> Made<()> {
        let span = self.span;
        let first = self.temp()?;
        // A long text is built in batches, the text so far being the first part of the next.
        let mut n: usize = 0;
        for part in parts {
            if n == BATCH {
                self.emit(Op::Text { dst: first, first, n: n as u16 });
                self.release(u32::from(first) + 1);
                n = 1;
            }
            let reg = if n == 0 { first } else { self.temp()? };
            match part {
                Part::Text(text) => {
                    let k = self.text_const(text);
                    self.emit(Op::Const { dst: reg, k });
                }
                Part::Expr(e) => self.expr_into(e, reg, true)?,
            }
            self.span = span;
            n += 1;
        }
        self.emit(Op::Text { dst, first, n: n as u16 });
        Ok(())
    }

    fn array(&mut self, items: &[Item], dst: Reg) -> Made<()> {
        let span = self.span;
        if let [Item::Spread(first), rest @ ..] = items
            && rest.len() <= BATCH
            && !rest.iter().any(|i| matches!(i, Item::Spread(_)))
        {
            let arr = self.temp()?;
            self.expr_into(first, arr, true)?;
            let (values, n) = self.values(rest)?;
            self.span = span;
            self.emit(Op::Append { dst: arr, first: values, n });
            self.emit(Op::Take { dst, src: arr });
            return Ok(());
        }
        let spread =
            |items: &[Item]| items.iter().position(|i| matches!(i, Item::Spread(_))).unwrap_or(items.len());
        if items.len() <= BATCH && spread(items) == items.len() {
            let (first, n) = self.values(items)?;
            self.span = span;
            self.emit(Op::NewArray { dst, first, n });
            return Ok(());
        }
        let arr = self.temp()?;
        self.emit(Op::NewArray { dst: arr, first: arr, n: 0 });
        let mut items = items;
        while !items.is_empty() {
            let mark = self.mark();
            if let Item::Spread(e) = &items[0] {
                let src = self.expr(e)?;
                self.span = e.span;
                self.emit(Op::SpreadInto { args: false, arr, src });
                items = &items[1..];
            } else {
                let (batch, rest) = items.split_at(spread(items).min(BATCH));
                let (first, n) = self.values(batch)?;
                self.span = span;
                self.emit(Op::Extend { arr, first, n });
                items = rest;
            }
            self.release(mark);
        }
        self.emit(Op::Take { dst, src: arr });
        Ok(())
    }

    /// Evaluates items without spreads into registers in a row.
    pub(super) fn values(&mut self, items: &[Item]) -> Made<(Reg, u16)> {
        let first = self.temps(items.len() as u32)?;
        for (reg, item) in (first..).zip(items) {
            match item {
                Item::Hole => {
                    self.emit(Op::Null { dst: reg });
                }
                Item::Expr(e) | Item::Spread(e) => self.expr_into(e, reg, true)?,
            }
        }
        Ok((first, items.len() as u16))
    }

    fn object(&mut self, pairs: &[Pair], dst: Reg) -> Made<()> {
        let span = self.span;
        let mut leading: Vec<Arc<str>> = Vec::new();
        let mut values: Vec<&Expr> = Vec::new();
        // The keys up to the first spread or repetition make the shape.
        for pair in pairs {
            match pair {
                Pair::Set(key, e) if !leading.contains(key) && leading.len() < BATCH => {
                    leading.push(Arc::clone(key));
                    values.push(e);
                }
                _ => break,
            }
        }
        let rest = &pairs[leading.len()..];
        let first = self.temps(leading.len() as u32)?;
        for (reg, e) in (first..).zip(values) {
            self.expr_into(e, reg, true)?;
        }
        let shape = self.shape(&leading)?;
        self.span = span;
        if rest.is_empty() {
            self.emit(Op::NewObject { dst, first, shape });
            return Ok(());
        }
        let obj = self.temp()?;
        self.emit(Op::NewObject { dst: obj, first, shape });
        for pair in rest {
            let mark = self.mark();
            match pair {
                Pair::Set(key, e) => {
                    let src = self.expr(e)?;
                    let name = self.name16(key)?;
                    self.span = span;
                    self.emit(Op::SetKey { obj, src, name });
                }
                Pair::Spread(e) => {
                    let src = self.expr(e)?;
                    self.span = e.span;
                    self.emit(Op::SpreadKeys { obj, src });
                }
            }
            self.release(mark);
        }
        self.emit(Op::Take { dst, src: obj });
        Ok(())
    }

    fn unary(&mut self, op: UnOp, operand: &Expr, span: Span, dst: Reg) -> Made<()> {
        if let (UnOp::Neg, ExprKind::Num(x)) = (op, &operand.kind) {
            self.number(-x, dst);
            return Ok(());
        }
        let src = match op {
            UnOp::Await => self.without_pipe(|g| g.expr(operand))?,
            _ => self.expr(operand)?,
        };
        self.span = span;
        self.emit(Op::Un { op, dst, src });
        Ok(())
    }

    fn binary(
        &mut self,
        first: &Expr,
        rest: &[(BinOp, Expr)],
        span: Span,
        dst: Reg,
        fresh: bool,
    ) -> Made<()> {
        let logical = |op: BinOp| matches!(op, BinOp::And | BinOp::Or);
        let (last, inner) = rest.split_last().expect("a chain has an operator");
        let chained = !inner.is_empty() || logical(last.0);
        // Everything before the last operation is collected here.
        let acc = if fresh || !chained { dst } else { self.temp()? };
        let mark = self.mark();
        let mut left = match logical(rest[0].0) {
            true => {
                self.expr_into(first, acc, acc != dst || fresh)?;
                acc
            }
            false => self.operand(first, &[&rest[0].1])?,
        };
        for (i, (op, right)) in rest.iter().enumerate() {
            let at_end = i + 1 == rest.len();
            let target = if at_end && !logical(*op) { dst } else { acc };
            if logical(*op) {
                if left != acc {
                    self.emit(Op::Move { dst: acc, src: left });
                }
                let skip = self.emit(Op::JumpIf { sense: *op == BinOp::Or, reg: acc, to: 0 });
                self.expr_into(right, acc, true)?;
                self.patch(skip);
            } else {
                self.operation(*op, left, right, span, target)?;
            }
            self.release(mark);
            left = target;
        }
        if left != dst {
            self.emit(Op::Take { dst, src: left });
        }
        Ok(())
    }

    /// One operation whose left side is in a register.
    pub(super) fn operation(&mut self, op: BinOp, a: Reg, right: &Expr, span: Span, dst: Reg) -> Made<()> {
        if let Some(value) = small(right) {
            self.span = span;
            let value = match op {
                // The sign says which it was.
                BinOp::Add if value >= 0 => Some(Op::AddInt { dst, a, value }),
                BinOp::Sub if value > 0 => Some(Op::AddInt { dst, a, value: -value }),
                BinOp::Mod if value > 0 => Some(Op::ModInt { dst, a, value }),
                _ => None,
            };
            if let Some(op) = value {
                self.emit(op);
                return Ok(());
            }
        }
        let b = self.expr(right)?;
        self.span = span;
        self.emit(match op {
            BinOp::Add => Op::Add { dst, a, b },
            BinOp::Sub => Op::Sub { dst, a, b },
            BinOp::Mul => Op::Mul { dst, a, b },
            BinOp::Div => Op::Div { dst, a, b },
            BinOp::Mod => Op::Mod { dst, a, b },
            op => Op::Bin { op, dst, a, b },
        });
        Ok(())
    }

    fn ternary(&mut self, t: &Ternary, span: Span, dst: Reg, fresh: bool) -> Made<()> {
        if t.sure {
            return self.without_pipe(|g| {
                let cond = g.expr_temp(&t.cond)?;
                let branch = g.temp()?;
                g.choose(cond, t, branch)?;
                g.span = span;
                g.emit(Op::Combine { how: Combine::Ternary, dst, left: cond, right: branch });
                Ok(())
            });
        }
        let mark = self.mark();
        let other = self.cond_jump(&t.cond, false)?;
        self.release(mark);
        self.expr_into(&t.then, dst, fresh)?;
        let end = self.jump();
        self.patch_all(other);
        self.expr_into(&t.other, dst, fresh)?;
        self.patch(end);
        Ok(())
    }

    fn choose(&mut self, cond: Reg, t: &Ternary, dst: Reg) -> Made<()> {
        let other = self.emit(Op::JumpIf { sense: false, reg: cond, to: 0 });
        self.expr_into(&t.then, dst, true)?;
        let end = self.jump();
        self.patch(other);
        self.expr_into(&t.other, dst, true)?;
        self.patch(end);
        Ok(())
    }

    fn pipe(&mut self, first: &Expr, stages: &[(PipeOp, Expr)], dst: Reg) -> Made<()> {
        let mut left = self.expr_temp(first)?;
        let (last, _) = stages.split_last().expect("a pipeline has stages");
        for stage in stages {
            let (op, e) = stage;
            let end = std::ptr::eq(stage, last);
            let target = if end { dst } else { self.temp()? };
            let result = self.temp()?;
            let outer = self.f().pipe;
            self.f().pipe = if *op == PipeOp::Filter { None } else { Some(left) };
            self.expr_into(e, result, true)?;
            self.f().pipe = outer;
            self.span = e.span;
            match op {
                PipeOp::Plain => self.emit(Op::Take { dst: target, src: result }),
                PipeOp::Sure => {
                    self.emit(Op::Combine { how: Combine::Pipe, dst: target, left, right: result })
                }
                PipeOp::Filter => {
                    self.emit(Op::Combine { how: Combine::Filter, dst: target, left, right: result })
                }
            };
            left = target;
        }
        Ok(())
    }
}

/// A small whole number written in the source.
pub(super) fn small(e: &Expr) -> Option<i16> {
    let (x, negative) = match &e.kind {
        ExprKind::Num(x) => (*x, false),
        ExprKind::Unary(UnOp::Neg, inner) => match inner.kind {
            ExprKind::Num(x) => (x, true),
            _ => return None,
        },
        _ => return None,
    };
    let fits = x.fract() == 0.0 && x <= 30_000.0 && !(negative && x == 0.0);
    fits.then_some(if negative { -(x as i16) } else { x as i16 })
}

/// Whether evaluating the expression runs a block of its own function.
pub(super) fn has_arm_block(e: &Expr) -> bool {
    fn any(node: Node<'_>) -> bool {
        let mut found = false;
        children(node, &mut |part| {
            found = found
                || match part {
                    Node::Block(_) => true,
                    Node::Expr(_) | Node::Arm(_) | Node::Match(_) => any(part),
                    // A function's blocks run when it is called.
                    _ => false,
                };
        });
        found
    }
    any(Node::Expr(e))
}
