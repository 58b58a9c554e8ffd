//! Code for conditions: jumps instead of truth values.

use super::expr::small;
use super::*;

impl Gen<'_> {
    /// Jumps, to be patched, that are taken when the truth of `e` is `sense`.
    pub(super) fn cond_jump(&mut self, e: &Expr, sense: bool) -> Made<Vec<usize>> {
        match &e.kind {
            ExprKind::Unary(UnOp::Not, inner) => return self.cond_jump(inner, !sense),
            ExprKind::Binary(first, rest) => {
                for op in [BinOp::And, BinOp::Or] {
                    if rest.iter().all(|(o, _)| *o == op) {
                        return self.logical_jump(op, first, rest, sense);
                    }
                }
                if let [(op, right)] = &rest[..]
                    && let Some(jumps) = self.test_jump(*op, first, right, e.span, sense)?
                {
                    return Ok(jumps);
                }
            }
            _ => {}
        }
        let mark = self.mark();
        let reg = self.expr(e)?;
        self.span = e.span;
        self.release(mark);
        Ok(vec![self.emit(Op::JumpIf { sense, reg, to: 0 })])
    }

    fn logical_jump(
        &mut self,
        op: BinOp,
        first: &Expr,
        rest: &[(BinOp, Expr)],
        sense: bool,
    ) -> Made<Vec<usize>> {
        let decisive = op == BinOp::Or;
        let operands: Vec<&Expr> = std::iter::once(first).chain(rest.iter().map(|(_, e)| e)).collect();
        let (last, before) = operands.split_last().expect("there are at least two operands");
        let mut decided = Vec::new();
        for e in before {
            decided.extend(self.cond_jump(e, decisive)?);
        }
        let mut jumps = self.cond_jump(last, sense)?;
        if decisive == sense {
            jumps.extend(decided);
        } else {
            self.patch_all(decided);
        }
        Ok(jumps)
    }

    fn test_jump(
        &mut self,
        op: BinOp,
        left: &Expr,
        right: &Expr,
        span: Span,
        sense: bool,
    ) -> Made<Option<Vec<usize>>> {
        if !matches!(op, BinOp::Lt | BinOp::Le | BinOp::Gt | BinOp::Ge | BinOp::Eq | BinOp::Ne) {
            return Ok(None);
        }
        let mark = self.mark();
        let a = self.operand(left, &[right])?;
        let test = match (op, small(right)) {
            (BinOp::Lt, Some(value)) => Op::TestLtInt { sense, a, value },
            (BinOp::Gt, Some(value)) => Op::TestGtInt { sense, a, value },
            (BinOp::Eq, Some(value)) => Op::TestEqInt { sense, a, value },
            (BinOp::Ne, Some(value)) => Op::TestEqInt { sense: !sense, a, value },
            _ => {
                let b = self.expr(right)?;
                match op {
                    BinOp::Lt => Op::TestLt { sense, a, b },
                    BinOp::Le => Op::TestLe { sense, a, b },
                    BinOp::Gt => Op::TestLt { sense, a: b, b: a },
                    BinOp::Ge => Op::TestLe { sense, a: b, b: a },
                    BinOp::Eq => Op::TestEq { sense, a, b },
                    _ => Op::TestEq { sense: !sense, a, b },
                }
            }
        };
        self.release(mark);
        self.span = span;
        self.emit(test);
        Ok(Some(vec![self.jump()]))
    }
}
