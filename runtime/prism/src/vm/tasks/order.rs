//! Sorting and grouping, step by step.

use crate::diagnostic::Raised;
use crate::value::{Object, Val, text};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes for each element that is grouped, when all keys differ.
pub(crate) const GROUPED: u64 = 160;

#[derive(Default)]
pub(super) struct Groups {
    pub(super) order: Vec<(Arc<str>, Vec<Val>)>,
    index: HashMap<Arc<str>, usize>,
}

/// A bottom-up merge sort that stops at every comparison.
pub(super) struct Merge {
    pub(super) from: Vec<Val>,
    pub(super) to: Vec<Val>,
    width: usize,
    left: usize,
    right: usize,
    /// End of the left and of the right run.
    ends: (usize, usize),
}

impl Groups {
    pub(super) fn add(&mut self, key: &Val, item: Val) {
        let key: Arc<str> = Arc::from(text(key));
        let at = *self.index.entry(Arc::clone(&key)).or_insert_with(|| {
            self.order.push((key, Vec::new()));
            self.order.len() - 1
        });
        self.order[at].1.push(item);
    }

    pub(super) fn object(&mut self) -> Raised<Val> {
        let mut object = Object::new();
        for (key, items) in self.order.drain(..) {
            object.set(&key, Val::array(items)?);
        }
        Val::object(object)
    }
}

/// Groups by the text of what `key` says.
pub(crate) fn grouped(items: &[Val], key: impl Fn(&Val) -> Val) -> Raised<Val> {
    let mut groups = Groups::default();
    items.iter().for_each(|item| groups.add(&key(item), item.clone()));
    groups.object()
}

/// A stable sort that takes any order, even one that contradicts itself: numbers and texts mixed do.
pub(crate) fn sorted(items: Vec<Val>, order: impl Fn(&Val, &Val) -> std::cmp::Ordering) -> Vec<Val> {
    let mut merge = Merge::new(items);
    while let Some((a, b)) = merge.compared() {
        merge.take(order(&a, &b).is_gt());
    }
    merge.from
}

impl Merge {
    pub(super) fn new(from: Vec<Val>) -> Merge {
        let to = Vec::with_capacity(from.len());
        Merge { from, to, width: 1, left: 0, right: 0, ends: (0, 0) }
    }

    /// The two elements to compare next, if the sort is not finished.
    pub(super) fn compared(&mut self) -> Option<(Val, Val)> {
        let n = self.from.len();
        loop {
            if self.left < self.ends.0 && self.right < self.ends.1 {
                return Some((self.from[self.left].clone(), self.from[self.right].clone()));
            }
            // One run is used up: the other follows as it is, then the next pair of runs begins.
            self.to.extend_from_slice(&self.from[self.left.min(self.ends.0)..self.ends.0]);
            self.to.extend_from_slice(&self.from[self.right.min(self.ends.1)..self.ends.1]);
            let start = self.ends.1;
            if start < n {
                self.left = start;
                self.right = (start + self.width).min(n);
                self.ends = (self.right, (start + 2 * self.width).min(n));
                continue;
            }
            if n > 0 {
                std::mem::swap(&mut self.from, &mut self.to);
            }
            self.to.clear();
            self.width *= 2;
            (self.left, self.right, self.ends) = (0, 0, (0, 0));
            if self.width >= n.max(1) * 2 || n < 2 {
                return None;
            }
        }
    }

    pub(super) fn take(&mut self, right: bool) {
        let at = if right { &mut self.right } else { &mut self.left };
        self.to.push(self.from[*at].clone());
        *at += 1;
    }
}
