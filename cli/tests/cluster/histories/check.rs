//! Whether a history of the registry is one that it may have: each key is linearizable (Wing and Gong, 1993, in the form
//! of Lowe, 2017), in the very order of the store's revisions; what one replica shows moves along that order, and never
//! behind what was written through it; a watch tells each change once, in order, without a gap.

use std::collections::{BTreeMap, HashSet};

/// What names a registration: each is another.
pub(crate) type Tag = u64;
/// A moment, as one clock counts.
pub(crate) type Moment = u64;
pub(crate) type Revision = u64;

/// What was done to a key, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Register(Tag),
    /// Whether there was one.
    Unregister(bool),
    /// Of the lease of a registration: whether it still was the one in force.
    Renew(Tag, bool),
    /// A linearizable read.
    Read(Option<Tag>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) action: Action,
    pub(crate) invoked: Moment,
    /// `None` when nobody knows what came of it: it happened at any time after, or never.
    pub(crate) returned: Option<Moment>,
}

/// What a key was, from a revision on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    pub(crate) tag: Option<Tag>,
}

/// Whether what was done to one key can have happened in an order that keeps to real time and makes the key what it was,
/// one revision after the other. What nobody knows of may be left out.
pub(crate) fn linearizable(ops: &[Op], states: &[State]) -> Result<(), String> {
    let mut ops = ops.to_vec();
    ops.sort_by_key(|op| op.invoked);
    let end = |op: &Op| op.returned.unwrap_or(Moment::MAX);
    // Which have been placed, and how many changes of the key that makes.
    let mut seen = HashSet::new();
    let mut open = vec![(vec![false; ops.len()], 0, 0)];
    let mut furthest = (0, 0);
    while let Some((placed, first, changes)) = open.pop() {
        furthest = furthest.max((changes, first));
        let left = || (first..ops.len()).filter(|&i| !placed[i]);
        if changes == states.len() && left().all(|i| ops[i].returned.is_none()) {
            return Ok(());
        }
        let now = changes.checked_sub(1).and_then(|last: usize| states[last].tag);
        let next = states.get(changes).map(|state| state.tag);
        let horizon = left().map(|i| end(&ops[i])).min().unwrap_or(Moment::MAX);
        let mut candidates: Vec<_> = left().take_while(|&i| ops[i].invoked <= horizon).collect();
        // What returned first is tried first.
        candidates.sort_by_key(|&i| std::cmp::Reverse(end(&ops[i])));
        for i in candidates {
            let changed = match ops[i].action {
                Action::Register(tag) if next == Some(Some(tag)) => changes + 1,
                Action::Unregister(true) if now.is_some() && next == Some(None) => changes + 1,
                Action::Unregister(false) if now.is_none() => changes,
                Action::Renew(tag, kept) if (now == Some(tag)) == kept => changes,
                Action::Read(tag) if now == tag => changes,
                _ => continue,
            };
            let mut placed = placed.clone();
            placed[i] = true;
            let first = (first..ops.len()).find(|&i| !placed[i]).unwrap_or(ops.len());
            if seen.insert((placed[first..].to_vec(), first, changed)) {
                open.push((placed, first, changed));
            }
        }
    }
    let (changes, first) = furthest;
    let from = first.saturating_sub(3);
    Err(format!(
        "no order of what was done fits; at best {changes} of {} changes came about: {:?}; then {:?} does not fit among \
         {:?}",
        states.len(),
        &states[changes.saturating_sub(3)..changes],
        states.get(changes),
        &ops[from..ops.len().min(first + 12)]
    ))
}

/// The changes of all keys, in the order of their revisions.
pub(crate) struct Truth {
    keys: BTreeMap<usize, Vec<State>>,
    /// Every change.
    order: Vec<(Revision, usize)>,
}

/// What one process of a replica showed: keys with what they were, at one moment of its own.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) keys: Vec<(usize, Option<Tag>)>,
    pub(crate) invoked: Moment,
    pub(crate) returned: Moment,
}

/// A change, as a watch told it: of a key that is gone, what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Is(usize, Tag),
    WasGone(usize, Tag),
}

impl Truth {
    /// # Errors
    /// Revisions that do not grow, a registration that came about twice.
    pub(crate) fn new(changes: &[(usize, State)]) -> Result<Self, String> {
        let (mut keys, mut order, mut tags) = (BTreeMap::<_, Vec<State>>::new(), Vec::new(), HashSet::new());
        for (key, state) in changes {
            if order.last().is_some_and(|(last, _)| *last >= state.revision) {
                return Err(format!("revision {} comes after {:?}", state.revision, order.last()));
            }
            if state.tag.is_some_and(|tag| !tags.insert(tag)) {
                return Err(format!("registration {:?} came about twice", state.tag));
            }
            keys.entry(*key).or_default().push(*state);
            order.push((state.revision, *key));
        }
        Ok(Self { keys, order })
    }

    pub(crate) fn states(&self, key: usize) -> &[State] {
        self.keys.get(&key).map_or(&[], Vec::as_slice)
    }

    /// When a registration came about, and when it was over.
    fn span(&self, key: usize, tag: Tag) -> Option<(Revision, Revision)> {
        let states = self.states(key);
        let at = states.iter().position(|state| state.tag == Some(tag))?;
        Some((states[at].revision, states.get(at + 1).map_or(Revision::MAX, |next| next.revision)))
    }

    /// The first revision from `least` on at which a key was so.
    fn first(&self, key: usize, tag: Option<Tag>, least: Revision) -> Option<Revision> {
        if let Some(tag) = tag {
            let (from, until) = self.span(key, tag)?;
            return (least < until).then_some(from.max(least));
        }
        let states = self.states(key);
        let mut from = 0;
        for (at, state) in states.iter().enumerate() {
            let was = at.checked_sub(1).and_then(|before| states[before].tag);
            if was.is_none() && least < state.revision {
                return Some(from.max(least));
            }
            from = state.revision;
        }
        states.last().is_none_or(|last| last.tag.is_none()).then_some(from.max(least))
    }

    /// Whether all that a process showed can have been so, at revisions that never go back and are not behind what it
    /// knew: `known` says, of moments, the least revision that it must show from then on. `written` says when a
    /// registration was asked for.
    pub(crate) fn moves_along(
        &self,
        shown: &[Shown],
        known: &[(Moment, Revision)],
        written: impl Fn(Tag) -> Moment,
    ) -> Result<(), String> {
        let mut shown = shown.to_vec();
        shown.sort_by_key(|shown| shown.invoked);
        let mut seen: Vec<(Moment, Revision)> = known.to_vec();
        for one in &shown {
            if let Some((_, tag)) =
                one.keys.iter().find(|(_, tag)| tag.is_some_and(|tag| written(tag) > one.returned))
            {
                return Err(format!("{tag:?} was shown before it was asked for: {one:?}"));
            }
            let before = seen.iter().filter(|(moment, _)| *moment < one.invoked);
            let least = before.map(|(_, revision)| *revision).max().unwrap_or(0);
            // The least revision at which all of them were so.
            let mut at = least;
            let at = loop {
                let mut then = at;
                for (key, tag) in &one.keys {
                    then = self
                        .first(*key, *tag, then)
                        .ok_or_else(|| format!("key {key} was not {tag:?} at {then} or later: {one:?}"))?;
                }
                if then == at {
                    break at;
                }
                at = then;
            };
            seen.push((one.returned, at));
        }
        Ok(())
    }

    /// Whether a watch told each change from its first one on, in order; returns how many it left out where `lossy`
    /// allows that.
    pub(crate) fn is_contiguous(&self, told: &[Told], lossy: bool) -> Result<usize, String> {
        let mut at: Option<usize> = None;
        let mut missed = 0;
        for one in told {
            let revision = match one {
                Told::Is(key, tag) => self.span(*key, *tag).map(|(from, _)| from),
                Told::WasGone(key, tag) => self.span(*key, *tag).map(|(_, until)| until),
            };
            let place = revision.and_then(|r| self.order.binary_search_by_key(&r, |(at, _)| *at).ok());
            let place = place.ok_or_else(|| format!("{one:?} never happened"))?;
            let gone = matches!(one, Told::WasGone(key, _) if self.states(*key).iter().any(|s| {
                s.revision == self.order[place].0 && s.tag.is_some()
            }));
            if gone {
                return Err(format!("{one:?}, but it was replaced"));
            }
            match at {
                Some(before) if place <= before => {
                    return Err(format!("{one:?} was told again, or too late: {place} after {before}"));
                }
                Some(before) if place > before + 1 && !lossy => {
                    return Err(format!("before {one:?} {:?} were not told", &self.order[before + 1..place]));
                }
                Some(before) => missed += place - before - 1,
                None => {}
            }
            at = Some(place);
        }
        Ok(missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn op(action: Action, invoked: Moment, returned: Moment) -> Op {
        Op { action, invoked, returned: Some(returned) }
    }

    fn states(tags: &[Option<Tag>]) -> Vec<State> {
        (10..).step_by(10).zip(tags).map(|(revision, tag)| State { revision, tag: *tag }).collect()
    }

    use Action::{Read, Register, Renew, Unregister};

    #[test]
    fn what_fits_some_order_is_linearizable() {
        for (ops, order) in [
            (vec![], vec![]),
            // Either of two at once may be the first; a read at the same time sees any of it.
            (
                vec![op(Register(1), 0, 9), op(Register(2), 1, 8), op(Read(None), 2, 7)],
                vec![Some(2), Some(1)],
            ),
            (vec![op(Register(1), 0, 9), op(Read(Some(1)), 1, 2), op(Read(Some(1)), 3, 4)], vec![Some(1)]),
            // What nobody knows of happened late, or never.
            (
                vec![
                    Op { action: Register(1), invoked: 0, returned: None },
                    op(Read(None), 5, 6),
                    op(Read(Some(1)), 7, 8),
                ],
                vec![Some(1)],
            ),
            (vec![Op { action: Register(1), invoked: 0, returned: None }, op(Read(None), 5, 6)], vec![]),
            (
                vec![
                    op(Register(1), 0, 1),
                    op(Renew(1, true), 2, 3),
                    op(Unregister(true), 4, 5),
                    op(Unregister(false), 6, 7),
                    op(Renew(1, false), 8, 9),
                ],
                vec![Some(1), None],
            ),
        ] {
            assert_eq!(linearizable(&ops, &states(&order)), Ok(()), "{ops:?}");
        }
    }

    #[test]
    fn what_fits_no_order_is_not() {
        for (what, ops, order) in [
            (
                "a stale read",
                vec![op(Register(1), 0, 1), op(Register(2), 2, 3), op(Read(Some(1)), 4, 5)],
                vec![Some(1), Some(2)],
            ),
            (
                "a read that goes back",
                vec![op(Register(1), 0, 9), op(Read(Some(1)), 1, 2), op(Read(None), 3, 4)],
                vec![Some(1)],
            ),
            (
                "a read of what is yet to be asked for",
                vec![op(Read(Some(1)), 0, 1), op(Register(1), 2, 3)],
                vec![Some(1)],
            ),
            ("a write that was lost", vec![op(Register(1), 0, 1), op(Register(2), 2, 3)], vec![Some(1)]),
            (
                "an order against real time",
                vec![op(Register(1), 0, 1), op(Register(2), 2, 3)],
                vec![Some(2), Some(1)],
            ),
            ("an agent that nobody took away", vec![op(Register(1), 0, 1)], vec![Some(1), None]),
            (
                "two that took away the same",
                vec![op(Register(1), 0, 1), op(Unregister(true), 2, 5), op(Unregister(true), 3, 4)],
                vec![Some(1), None],
            ),
            (
                "a lease that was renewed though replaced",
                vec![op(Register(1), 0, 1), op(Register(2), 2, 3), op(Renew(1, true), 4, 5)],
                vec![Some(1), Some(2)],
            ),
            (
                "a lease in force that was refused",
                vec![op(Register(1), 0, 1), op(Renew(1, false), 2, 3)],
                vec![Some(1)],
            ),
            (
                "a failure that came about twice",
                vec![Op { action: Register(1), invoked: 0, returned: None }, op(Register(2), 1, 2)],
                vec![Some(1), Some(2), Some(1)],
            ),
        ] {
            assert!(linearizable(&ops, &states(&order)).is_err(), "{what}");
        }
    }

    /// Key 0: 1 at 10, 2 at 30, gone at 40. Key 1: 7 at 20.
    fn truth() -> Truth {
        let state = |revision, tag| State { revision, tag };
        Truth::new(&[
            (0, state(10, Some(1))),
            (1, state(20, Some(7))),
            (0, state(30, Some(2))),
            (0, state(40, None)),
        ])
        .unwrap()
    }

    #[test]
    fn a_replica_may_lag_and_never_goes_back() {
        let show = |keys: &[(usize, Option<Tag>)], invoked, returned| Shown {
            keys: keys.to_vec(),
            invoked,
            returned,
        };
        let check =
            |shown: &[Shown], known: &[(Moment, Revision)]| truth().moves_along(shown, known, |tag| tag);
        let (old, both) = ([(0, Some(1)), (1, None)], [(0, Some(1)), (1, Some(7))]);
        check(&[show(&[(0, None)], 50, 51), show(&old, 52, 53), show(&both, 54, 55)], &[]).unwrap();
        check(&[show(&both, 50, 60), show(&old, 51, 52)], &[]).unwrap();
        check(&[show(&[(0, Some(2))], 52, 53), show(&[(0, None)], 54, 55)], &[(50, 30)]).unwrap();
        for (what, shown, known) in [
            ("back", vec![show(&both, 50, 51), show(&old, 52, 53)], vec![]),
            ("two keys of two moments", vec![show(&[(0, Some(2)), (1, None)], 50, 51)], vec![]),
            ("behind its own write", vec![show(&[(0, Some(1))], 52, 53)], vec![(50, 30)]),
            (
                "gone, and back",
                vec![
                    show(&[(0, Some(2))], 50, 51),
                    show(&[(0, None)], 52, 53),
                    show(&[(0, Some(2))], 54, 55),
                ],
                vec![],
            ),
            ("what never was", vec![show(&[(0, Some(9))], 50, 51)], vec![]),
            ("what was yet to be asked for", vec![show(&[(1, Some(7))], 3, 4)], vec![]),
        ] {
            assert!(check(&shown, &known).is_err(), "{what}");
        }
    }

    #[test]
    fn a_watch_tells_all_and_nothing_twice() {
        use Told::{Is, WasGone};
        let check = |told: &[Told]| truth().is_contiguous(told, false);
        check(&[Is(0, 1), Is(1, 7), Is(0, 2), WasGone(0, 2)]).unwrap();
        check(&[Is(1, 7), Is(0, 2)]).unwrap();
        assert_eq!(truth().is_contiguous(&[Is(0, 1), Is(0, 2)], true), Ok(1));
        for (what, told) in [
            ("a gap", vec![Is(0, 1), Is(0, 2)]),
            ("twice", vec![Is(0, 1), Is(0, 1)]),
            ("out of order", vec![Is(1, 7), Is(0, 1)]),
            ("gone that was replaced", vec![Is(1, 7), WasGone(0, 1)]),
            ("what never was", vec![Is(0, 3)]),
            ("gone that is there", vec![WasGone(1, 7)]),
        ] {
            assert!(check(&told).is_err(), "{what}");
        }
    }

    #[test]
    fn revisions_grow_and_nothing_comes_about_twice() {
        let state = |revision, tag| State { revision, tag };
        assert!(Truth::new(&[(0, state(10, Some(1))), (1, state(10, Some(2)))]).is_err());
        assert!(Truth::new(&[(0, state(10, Some(1))), (1, state(20, Some(1)))]).is_err());
    }
}
