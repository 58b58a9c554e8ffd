//! Where the interpretation stands: what the variables may hold, and how many calls led there.

use super::amount::Amount;
use super::value::{Value, smaller};
use super::{Most, Reason};
use crate::compile::VarId;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub(super) struct State<'a> {
    pub(super) vars: BTreeMap<VarId, Value<'a>>,
    pub(super) calls: Calls,
    /// `agentResults` was read on every way here.
    pub(super) asked: bool,
    /// No way leads here.
    pub(super) dead: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Calls {
    pub(super) least: Amount,
    pub(super) most: Most,
}

impl Default for Calls {
    fn default() -> Self {
        Calls { least: Amount::default(), most: Most::zero() }
    }
}

impl<'a> State<'a> {
    pub(super) fn dead() -> Self {
        State { dead: true, ..State::default() }
    }

    /// Where either of two ways leads.
    pub(super) fn or(mut self, other: State<'a>) -> Self {
        if self.dead {
            return other;
        }
        if other.dead {
            return self;
        }
        for (var, value) in other.vars {
            let merged = match self.vars.remove(&var) {
                Some(mine) => mine.or(&value),
                None => value,
            };
            self.vars.insert(var, merged);
        }
        self.calls = self.calls.or(&other.calls);
        self.asked &= other.asked;
        self
    }

    /// It without the marks of a loop that is over.
    pub(super) fn resolve(&mut self, mark: &dyn Fn(u32, bool) -> Option<Amount>, reason: &Reason) {
        for value in self.vars.values_mut() {
            *value = value.resolved(mark, reason);
        }
        self.calls.least = self.calls.least.resolved(false, mark).unwrap_or_default();
        self.calls.most = self.calls.most.resolved(mark, reason);
    }
}

impl Calls {
    pub(super) fn or(&self, other: &Calls) -> Calls {
        Calls { least: smaller(&self.least, &other.least), most: self.most.or(&other.most) }
    }

    pub(super) fn plus(&self, other: &Calls) -> Calls {
        let least = self.least.plus(&other.least);
        // Less is safe, if it is too involved.
        let least = if least.too_large() { Amount::default() } else { least };
        Calls { least, most: self.most.plus(&other.most) }
    }

    pub(super) fn one() -> Calls {
        Calls { least: Amount::from(1), most: Most::Of(Amount::from(1)) }
    }
}
