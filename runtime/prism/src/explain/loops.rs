//! Loops: how often they go round, and what that comes to.

mod counter;

use super::amount::{Amount, Atom};
use super::interpret::{Exits, Interpreter};
use super::state::{Calls, State};
use super::value::{List, Value, smaller};
use super::{Most, Reason, Step};
use crate::ast::*;
use crate::compile::VarId;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Looks at a loop until nothing new comes of it, and gives up on what still changes then.
const MAX_TURNS: u32 = 6;

/// How often a loop goes round, if nothing ends it early.
pub(super) struct Trips {
    pub(super) least: Amount,
    pub(super) most: Most,
    /// As the author wrote it.
    pub(super) over: String,
    pub(super) line: u32,
}

type Turn<'i, 'a> = &'i mut dyn FnMut(&mut Interpreter<'a>, &mut State<'a>) -> Value<'a>;

impl<'a> Interpreter<'a> {
    pub(super) fn looping(&mut self, state: &mut State<'a>, stmt: &'a Stmt) -> Value<'a> {
        let line = self.line(stmt.span);
        let head =
            |i: &Self, end: u32| i.source(stmt.span.start, end).trim_end_matches(['{', ' ']).to_string();
        let endless = |over: &str, least: i64| {
            let why = format!("`{over}` may go round any number of times");
            let most = Most::Unbounded(Reason { why, line });
            Trips { least: Amount::from(least), most, over: over.to_string(), line }
        };
        match &stmt.kind {
            StmtKind::ForIn { item, index, over, body } => {
                let list = self.expr(state, over);
                let list = list.as_list(&self.unknown_length(&self.text(over.span), line));
                let head = head(self, over.span.end);
                let trips = Trips { least: list.least, most: list.most, over: head, line };
                self.repeat(state, trips, &mut |i, s| {
                    i.bind(s, item, list.item.clone());
                    index.iter().for_each(|index| i.bind(s, index, natural()));
                    i.stmt(s, body)
                })
            }
            StmtKind::While { cond, body } => {
                self.expr(state, cond);
                let over = head(self, cond.span.end);
                let trips = match self.climbing(state, cond, body) {
                    Some((least, most)) => Trips { least, most: Most::Of(most), over, line },
                    None => endless(&over, 0),
                };
                self.repeat(state, trips, &mut |i, s| {
                    let value = i.stmt(s, body);
                    i.next_turn(s);
                    i.expr(s, cond);
                    value
                })
            }
            StmtKind::DoWhile { body, cond } => {
                let trips = endless(&format!("do … while {}", self.text(cond.span)), 1);
                self.repeat(state, trips, &mut |i, s| {
                    let value = i.stmt(s, body);
                    i.next_turn(s);
                    i.expr(s, cond);
                    value
                })
            }
            StmtKind::UncertainWhile { cond, branches } => {
                self.expr(state, cond);
                let trips = endless(&head(self, cond.span.end), 0);
                self.repeat(state, trips, &mut |i, s| {
                    let value = i.levels(s, cond.span, branches);
                    i.next_turn(s);
                    i.expr(s, cond);
                    value
                })
            }
            StmtKind::For { header, .. } | StmtKind::UncertainFor { header, .. } => {
                header.init.iter().for_each(|init| drop(self.stmt(state, init)));
                header.cond.iter().for_each(|cond| drop(self.expr(state, cond)));
                let parts = [&header.init, &header.update].into_iter().flatten().map(|s| s.span.end);
                let end = parts.chain(header.cond.iter().map(|c| c.span.end)).max();
                let over = head(self, end.unwrap_or(stmt.span.start + 3));
                let trips = match self.counted(state, stmt, header) {
                    Some((least, most)) => Trips { least, most: Most::Of(most), over, line },
                    None => endless(&over, 0),
                };
                self.repeat(state, trips, &mut |i, s| {
                    let value = match &stmt.kind {
                        StmtKind::For { body, .. } => i.stmt(s, body),
                        StmtKind::UncertainFor { branches, .. } => {
                            let span = header.cond.as_ref().map_or(stmt.span, |cond| cond.span);
                            i.levels(s, span, branches)
                        }
                        _ => unreachable!("matched above"),
                    };
                    i.next_turn(s);
                    header.update.iter().for_each(|update| drop(i.stmt(s, update)));
                    header.cond.iter().for_each(|cond| drop(i.expr(s, cond)));
                    value
                })
            }
            _ => unreachable!("only loops are given"),
        }
    }

    /// What stands behind the body of a loop is done after `continue` too.
    fn next_turn(&mut self, state: &mut State<'a>) {
        let exits = self.loops.last_mut().expect("a loop is being followed");
        for left in std::mem::take(&mut exits.continues) {
            *state = std::mem::take(state).or(left);
        }
    }

    pub(super) fn unknown_length(&self, of: &str, line: u32) -> Reason {
        Reason { why: format!("how long `{of}` is cannot be told before the run"), line }
    }

    /// Follows a turn of a loop until nothing new comes of it, and counts it as often as it may be taken.
    pub(super) fn repeat(&mut self, state: &mut State<'a>, trips: Trips, turn: Turn<'_, 'a>) -> Value<'a> {
        let Trips { least, mut most, over, line } = trips;
        most.place(line);
        let grows =
            Reason { why: format!("what `{over}` collects grows in a way that is not followed"), line };
        let steps = std::mem::take(&mut self.steps);
        let mut entry = std::mem::take(state);
        let before = std::mem::take(&mut entry.calls);
        // A list that grows has the length it had at the start of the turn, and so much more.
        let (mut vars, mut marks) = (entry.vars.clone(), BTreeMap::new());
        for (var, value) in &mut vars {
            if value.list.is_some() {
                let mark = Amount::of(Atom::Mark(self.next_mark));
                marks.insert(*var, (self.next_mark, mark.clone()));
                self.next_mark += 1;
                resize(value, mark.clone(), Most::Of(mark));
            }
        }
        let from = self.returns.last().map_or(0, Vec::len);
        let mut pass = 0;
        let (mut next, mut value, mut exits) = loop {
            self.steps.clear();
            self.returns.last_mut().expect("the program is followed").truncate(from);
            self.loops.push(Exits::default());
            let mut next = State { vars: vars.clone(), asked: entry.asked, ..State::default() };
            let value = turn(self, &mut next);
            self.next_turn(&mut next);
            let exits = self.loops.pop().expect("pushed above");
            let mut changed = false;
            for (var, value) in &next.vars {
                let mut value = value.clone();
                if let Some((_, mark)) = marks.get(var) {
                    resize(&mut value, mark.clone(), Most::Of(mark.clone()));
                }
                let known = vars.get(var).cloned();
                let merged = match &known {
                    None => value,
                    Some(_) if pass >= MAX_TURNS => Value::lost(),
                    Some(known) if pass > 0 => known.clone().grown(&value, &grows),
                    Some(known) => known.clone().or(&value),
                };
                if known.as_ref() != Some(&merged) && known.as_ref().is_none_or(|known| !known.lost) {
                    changed = true;
                    vars.insert(*var, merged);
                }
            }
            pass += 1;
            if !changed {
                break (next, value, exits);
            }
        };

        let ranges = ranges(&entry, &next, &marks, &least, &most, &grows);
        let mark = |number: u32, upper: bool| match ranges.iter().find(|(_, (n, ..))| *n == number) {
            None => Some(Amount::of(Atom::Mark(number))),
            Some((_, (_, least, most, _))) => match most {
                _ if !upper => Some(least.clone()),
                Most::Of(most) => Some(most.clone()),
                Most::Unbounded(_) => None,
            },
        };
        next.resolve(&mark, &grows);
        value = value.resolved(&mark, &grows);
        exits.breaks.iter_mut().for_each(|left| left.resolve(&mark, &grows));
        for seen in self.tries.iter_mut().flat_map(|seen| seen.values_mut()) {
            *seen = seen.resolved(&mark, &grows);
        }
        let turn = if next.dead { Most::zero() } else { next.calls.most.clone() };
        let early = |calls: &Calls| Calls {
            least: before.least.plus(&calls.least),
            most: before.most.plus(&match turn.is_zero() {
                true => calls.most.clone(),
                false => most.times(&turn.or(&calls.most)),
            }),
        };
        let left = self.returns.last_mut().into_iter().flat_map(|left| &mut left[from..]);
        for (left, value) in left {
            left.resolve(&mark, &grows);
            *value = value.resolved(&mark, &grows);
            left.calls = early(&left.calls);
        }

        // The loop ends by itself, perhaps before its first turn.
        let all = Calls {
            least: if next.dead { Amount::default() } else { least.times(&next.calls.least) },
            most: most.times(&turn),
        };
        let surely = least.constant().is_some_and(|n| n > 0) && !next.dead;
        let asked = entry.asked || surely && next.asked;
        *state = entry.or(State { calls: Calls::default(), ..next });
        for (var, (_, _, most, grown)) in &ranges {
            if let Some(value) = state.vars.get_mut(var).filter(|value| value.list.is_some()) {
                resize(value, grown.clone(), most.clone());
            }
        }
        (state.calls, state.asked) = (before.plus(&all), asked);
        for mut left in exits.breaks {
            left.calls = early(&left.calls);
            *state = std::mem::take(state).or(left);
        }
        let mut steps = std::mem::replace(&mut self.steps, steps);
        if steps.iter().any(Step::asks) {
            steps.iter_mut().for_each(|step| step.resolve(&mark, &grows));
            self.steps.push(Step::Loop { over, times: most, steps, line });
        }
        value.or(&Value::default())
    }
}

/// For each list: its mark, the least and the most elements it has at the start of a turn and at the end, and the
/// least it has if the loop ends by itself.
type Ranges = BTreeMap<VarId, (u32, Amount, Most, Amount)>;

fn ranges<'a>(
    entry: &State<'a>,
    next: &State<'a>,
    marks: &BTreeMap<VarId, (u32, Amount)>,
    least: &Amount,
    most: &Most,
    grows: &Reason,
) -> Ranges {
    let mut found: Ranges = BTreeMap::new();
    let length =
        |state: &State<'a>, var: &VarId| -> Option<Rc<List<'a>>> { state.vars.get(var)?.list.clone() };
    let own = |amount: &Amount| amount.mentions(&|mark| marks.values().any(|(n, _)| *n == mark));
    let mut later = Vec::new();
    for (var, (number, mark)) in marks {
        let Some(old) = length(entry, var) else { continue };
        let Some(new) = length(next, var).filter(|_| !next.dead) else {
            found.insert(*var, (*number, old.least.clone(), old.most.clone(), old.least.clone()));
            continue;
        };
        let more = new.least.minus(mark);
        let (low, end) = match (own(&more), own(&new.least)) {
            (false, _) if more.is_natural() => (old.least.clone(), old.least.plus(&least.times(&more))),
            (_, false) => (smaller(&old.least, &new.least), smaller(&old.least, &new.least)),
            _ => (Amount::default(), Amount::default()),
        };
        let high = match &new.most {
            Most::Of(new) if !own(&new.minus(mark)) => {
                old.most.plus(&most.times(&Most::Of(new.minus(mark).count())))
            }
            // As it was, or as long as something that no turn changes.
            Most::Of(new) if new.larger_than(mark).is_some_and(|other| !own(other)) => {
                old.most.or(&Most::Of(new.larger_than(mark).cloned().unwrap_or_default()))
            }
            Most::Of(new) if own(new) => {
                later.push((*var, *number, low, end, old, new.clone()));
                continue;
            }
            new => old.most.or(new),
        };
        found.insert(*var, (*number, low, high, end));
    }
    // As long as another list was.
    for (var, number, low, end, old, new) in later {
        let known = |mark: u32, upper: bool| match found.values().find(|(n, ..)| *n == mark) {
            Some((_, _, Most::Of(most), _)) if upper => Some(most.clone()),
            Some((_, least, ..)) if !upper => Some(least.clone()),
            Some(_) => None,
            None if marks.values().any(|(n, _)| *n == mark) => None,
            None => Some(Amount::of(Atom::Mark(mark))),
        };
        let high = old.most.or(&Most::Of(new).resolved(&known, grows));
        found.insert(var, (number, low, high, end));
    }
    found
}

fn resize(value: &mut Value<'_>, least: Amount, most: Most) {
    if let Some(list) = &value.list {
        value.list = Some(Rc::new(List { least, most, item: list.item.clone() }));
    }
}

fn natural<'a>() -> Value<'a> {
    Value::number(Some(Amount::default()), None)
}
