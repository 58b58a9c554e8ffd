//! Expressions: split at the loosest operator first, so that a line breaks where it means least.

use super::{Laid, Layout};
use crate::format::doc::Doc;
use crate::lexer::{Sign, Tok, Word};

const PIPE: u8 = 0;
const TERNARY: u8 = 1;
const ATTACH: u8 = 2;

/// The level of a sign that stands between two operands; a higher one binds tighter.
fn level(sign: Sign) -> Option<u8> {
    use Sign::*;
    Some(match sign {
        Pipe | SurePipe | SureFilter => PIPE,
        Question | SureIf => TERNARY,
        Attach | Chain => ATTACH,
        Or | SureOr | SureOrSelect | SureGate => 3,
        Coalesce => 4,
        SureCoalesce => 5,
        And | SureAnd => 6,
        Eq | Ne | Same | NotSame | SureEq | SureNe => 7,
        Lt | Le | Gt | Ge | SureLt | SureLe | SureGe => 8,
        Add | Sub | SureAdd | SureSub => 9,
        Mul | Div | Mod | SureMul | SureDiv => 10,
        Pow => 11,
        _ => return None,
    })
}

fn assigns(tok: &Tok) -> bool {
    use Sign::*;
    matches!(
        tok,
        Tok::Sign(
            Set | AddSet
                | SubSet
                | MulSet
                | DivSet
                | ModSet
                | SureAddSet
                | SureSubSet
                | SureMulSet
                | SureDivSet
        )
    )
}

impl<'a> Layout<'_, 'a> {
    /// A statement without bodies, an item of a list, or a part of one.
    pub(super) fn expression(&self, lo: usize, hi: usize) -> Laid<'a> {
        let arrow = self.outer(lo, hi).find(|at| self.is(*at, Sign::Arrow)).unwrap_or(hi);
        if let Some(semi) = self.outer(lo, hi).find(|at| self.is(*at, Sign::Semi)) {
            return self.around(lo, semi, hi, false);
        }
        if let Some(set) = self.outer(lo, arrow).find(|at| assigns(self.tok(*at))) {
            return self.around(lo, set, hi, true);
        }
        let loosest = self.outer(lo, arrow).filter_map(|at| self.operator(at, lo)).min();
        match loosest {
            Some(TERNARY) => self.ternary(lo, hi),
            Some(level) => self.operation(lo, hi, arrow, level),
            None if arrow < hi => self.around(lo, arrow, hi, true),
            None => self.run(lo, hi),
        }
    }

    /// The level of the operator that this piece is.
    fn operator(&self, at: usize, lo: usize) -> Option<u8> {
        if at == lo {
            return None;
        }
        match self.tok(at) {
            Tok::Word(Word::Instanceof) if !self.is_property(at) => Some(8),
            // `-` may be a prefix, and `*` everything that a module exports.
            Tok::Sign(Sign::Sub | Sign::Mul) if !self.ends_operand(at - 1) => None,
            Tok::Sign(sign) => level(*sign),
            _ => None,
        }
    }

    /// What stands on the two sides of a sign that no line breaks at.
    fn around(&self, lo: usize, at: usize, hi: usize, space: bool) -> Laid<'a> {
        let (left, a) = self.expression(lo, at);
        let (sign, b) = self.piece(at);
        let (right, c) = self.expression(at + 1, hi);
        let before = if space { Doc::Space } else { Doc::All(Vec::new()) };
        let after = if at + 1 < hi { Doc::Space } else { Doc::All(Vec::new()) };
        (Doc::All(vec![left, before, sign, after, right]), a || b || c)
    }

    /// Operands of one level.
    fn operation(&self, lo: usize, hi: usize, arrow: usize, level: u8) -> Laid<'a> {
        let splits: Vec<usize> =
            self.outer(lo, arrow).filter(|at| self.operator(*at, lo) == Some(level)).collect();
        let breaks = level != ATTACH && splits.iter().any(|at| self.broken_at(*at));
        let (first, mut hard) = self.expression(lo, splits[0]);
        let mut rest = Vec::new();
        for (i, at) in splits.iter().enumerate() {
            let ((sign, a), (operand, b)) =
                (self.piece(*at), self.expression(at + 1, splits.get(i + 1).copied().unwrap_or(hi)));
            hard |= a || b;
            rest.push(if level == ATTACH { Doc::Space } else { Doc::Line });
            rest.extend([sign, Doc::Space, operand]);
        }
        let doc = if level == ATTACH {
            // `x ~> 0.9` is one thing; and nothing of the confidence may start a line.
            Doc::All(std::iter::once(first).chain(rest).collect())
        } else {
            Doc::Group(Box::new(Doc::All(vec![first, Doc::Hang(Box::new(Doc::All(rest)))])), breaks)
        };
        (doc, hard || breaks)
    }

    /// The author began a line before or after this operator.
    fn broken_at(&self, at: usize) -> bool {
        self.pieces[at].fresh || self.pieces.get(at + 1).is_some_and(|next| next.fresh)
    }

    /// `a ? b : c ? d : e`, with every branch on the same level.
    fn ternary(&self, lo: usize, hi: usize) -> Laid<'a> {
        let (mut rest, mut hard, mut breaks) = (Vec::new(), false, false);
        let mut head = None;
        let (mut from, mut sign) = (lo, None);
        loop {
            let arrow = self.outer(from, hi).find(|at| self.is(*at, Sign::Arrow)).unwrap_or(hi);
            let question = self.outer(from, arrow).find(|at| self.operator(*at, lo) == Some(TERNARY));
            let colon = question.and_then(|at| self.colon(at, hi));
            let end = question.filter(|_| colon.is_some()).unwrap_or(hi);
            let (part, a) = self.part(from, end, question.is_some() && colon.is_none());
            hard |= a;
            match sign.replace(end) {
                None => head = Some(part),
                Some(_) => rest.push(part),
            }
            let (Some(question), Some(colon)) = (question, colon) else { break };
            let ((q, a), (then, b), (c, d)) =
                (self.piece(question), self.expression(question + 1, colon), self.piece(colon));
            hard |= a || b || d;
            breaks |= self.broken_at(question) || self.broken_at(colon);
            rest.extend([Doc::Line, q, Doc::Space, then, Doc::Line, c, Doc::Space]);
            from = colon + 1;
        }
        let head = head.unwrap_or(Doc::All(Vec::new()));
        let doc = Doc::All(vec![head, Doc::Hang(Box::new(Doc::All(rest)))]);
        (Doc::Group(Box::new(doc), breaks), hard || breaks)
    }

    /// A `?` without its `:` is laid out as it comes; a parsed program has none.
    fn part(&self, lo: usize, hi: usize, odd: bool) -> Laid<'a> {
        if odd { self.run(lo, hi) } else { self.expression(lo, hi) }
    }

    /// The `:` that belongs to a `?`.
    fn colon(&self, question: usize, hi: usize) -> Option<usize> {
        let mut open = 0;
        for at in self.outer(question, hi) {
            match self.tok(at) {
                Tok::Sign(Sign::Question | Sign::SureIf) => open += 1,
                Tok::Sign(Sign::Colon) => open -= 1,
                _ => {}
            }
            if open == 0 {
                return Some(at);
            }
        }
        None
    }
}
