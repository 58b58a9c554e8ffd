//! What writers who come from other languages probably meant.

use super::Parser;
use crate::lexer::{Sign, Tok};

impl Parser<'_> {
    /// What was probably meant where an expression is missing.
    pub(super) fn slip(&self) -> Option<&'static str> {
        let before = |back: usize| self.at.checked_sub(back).map(|at| self.tok(at));
        let attached = |back| before(back) == Some(&Tok::Sign(Sign::Attach));
        match self.peek() {
            Tok::Sign(Sign::Add) if before(1) == Some(&Tok::Sign(Sign::Add)) => {
                Some("there is no `++`: write `i += 1`")
            }
            Tok::Sign(Sign::Attach) if attached(2) => {
                Some("a value has one confidence: put the inner `value ~> confidence` in parentheses")
            }
            Tok::Sign(_) if attached(1) => {
                Some("`~>` takes a single value: put what is longer in parentheses")
            }
            Tok::Sign(_) if attached(2) => {
                Some("`~>` binds more loosely than this operator: put its right side in parentheses")
            }
            Tok::Sign(Sign::Add) => Some("there is no unary `+` and no `++`"),
            Tok::Sign(Sign::Dot) if matches!(self.peek_at(1), Tok::Num(_)) => {
                Some("a number begins with a digit: 0.5")
            }
            _ => None,
        }
    }
}
