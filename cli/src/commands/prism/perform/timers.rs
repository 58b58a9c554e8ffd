//! Sleeps that have not ended.

use std::collections::{BTreeSet, HashMap};

use parallax_prism::EffectId;

/// In the order of their ends, so that neither the first nor one that is cancelled is looked for among all: a program
/// may sleep a hundred thousand times at once.
pub(super) struct Timers<T> {
    order: BTreeSet<(T, EffectId)>,
    ends: HashMap<EffectId, T>,
}

impl<T: Copy + Ord> Timers<T> {
    pub(super) fn new() -> Self {
        Self { order: BTreeSet::new(), ends: HashMap::new() }
    }

    pub(super) fn start(&mut self, id: EffectId, end: T) {
        self.order.insert((end, id));
        self.ends.insert(id, end);
    }

    /// Forgets one; others are no sleeps, or have ended.
    pub(super) fn cancel(&mut self, id: EffectId) {
        if let Some(end) = self.ends.remove(&id) {
            self.order.remove(&(end, id));
        }
    }

    /// Takes out the one that ends first.
    pub(super) fn first(&mut self) -> Option<(T, EffectId)> {
        let first = self.order.pop_first()?;
        self.ends.remove(&first.1);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, cmp::Ordering};

    use super::*;

    thread_local!(static LOOKS: Cell<u64> = const { Cell::new(0) });

    /// An end that counts how often it is compared.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct End(u64);

    impl PartialOrd for End {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for End {
        fn cmp(&self, other: &Self) -> Ordering {
            LOOKS.set(LOOKS.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    #[test]
    fn sleeps_end_in_order_and_are_not_searched() {
        const MANY: u64 = 10_000;
        let mut timers = Timers::new();
        // Ends in no order; 7919 is a prime.
        (0..MANY).for_each(|id| timers.start(EffectId(id), End(id * 7919 % MANY)));
        (0..MANY).filter(|id| id % 2 == 1).for_each(|id| timers.cancel(EffectId(id)));
        timers.cancel(EffectId(MANY));
        let ended: Vec<u64> = std::iter::from_fn(|| timers.first()).map(|(end, _)| end.0).collect();
        assert_eq!(ended.len() as u64, MANY / 2);
        assert!(ended.is_sorted());
        // A search through those that are left would be 25 million.
        assert!(LOOKS.get() < MANY * 100, "{}", LOOKS.get());
    }

    #[test]
    fn of_two_that_end_together_the_older_is_first() {
        let mut timers = Timers::new();
        timers.start(EffectId(2), 1);
        timers.start(EffectId(1), 1);
        assert_eq!(timers.first(), Some((1, EffectId(1))));
        timers.cancel(EffectId(2));
        assert_eq!(timers.first(), None);
    }
}
