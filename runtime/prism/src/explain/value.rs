//! What is known of a value before the run: everything that it may be, side by side.

use super::amount::{Amount, Atom, EACH, Path};
use super::{Most, Reason};
use crate::ast::Function;
use crate::builtins::Native;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// Values that nest deeper are not followed.
const MAX_DEPTH: u32 = 12;
/// Functions that a value may be; of more it is not known which.
const MAX_CALLABLES: usize = 8;

/// Truth values are none of these, and every value may be null.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Value<'a> {
    pub(super) list: Option<Rc<List<'a>>>,
    pub(super) number: Option<Number>,
    /// It is one of these if it is a function.
    pub(super) callables: Vec<Callable<'a>>,
    /// Its properties if it is an object that the program made.
    pub(super) fields: Option<Rc<BTreeMap<Arc<str>, Value<'a>>>>,
    /// It came from outside: anything but a function.
    pub(super) data: Option<Rc<Data<'a>>>,
    pub(super) text: Text,
    pub(super) agent: bool,
    /// It may be anything, functions of the program included.
    pub(super) lost: bool,
    pub(super) depth: u32,
}

/// A text that the program made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Text {
    #[default]
    None,
    Known(Arc<str>),
    Some,
}

impl Text {
    pub(super) fn known(&self) -> Option<Arc<str>> {
        if let Text::Known(text) = self { Some(text.clone()) } else { None }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct List<'a> {
    pub(super) least: Amount,
    pub(super) most: Most,
    pub(super) item: Value<'a>,
}

/// A number's bounds, as far as there are any.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Number {
    pub(super) least: Option<Amount>,
    pub(super) most: Option<Amount>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Data<'a> {
    /// None: an answer, or a part of the input that is not known.
    pub(super) path: Option<Path>,
    /// What `??` puts in place of null.
    pub(super) otherwise: Option<Value<'a>>,
}

#[derive(Clone, Debug)]
pub(super) enum Callable<'a> {
    Own(&'a Function),
    Native(Native),
    /// A built-in with its first argument given: a method with its receiver, `groupBy(key)`.
    Partial(Native, Rc<Value<'a>>),
}

impl PartialEq for Callable<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Callable::Own(a), Callable::Own(b)) => a.span == b.span,
            (Callable::Native(a), Callable::Native(b)) => a == b,
            (Callable::Partial(a, x), Callable::Partial(b, y)) => a == b && x == y,
            _ => false,
        }
    }
}

impl<'a> Value<'a> {
    pub(super) fn lost() -> Self {
        Value { lost: true, ..Value::default() }
    }

    pub(super) fn agent() -> Self {
        Value { agent: true, data: Some(Rc::new(Data { path: None, otherwise: None })), ..Value::default() }
    }

    pub(super) fn data(path: Option<Path>) -> Self {
        Value { data: Some(Rc::new(Data { path, otherwise: None })), ..Value::default() }
    }

    pub(super) fn text(text: &str) -> Self {
        Value { text: Text::Known(Arc::from(text)), ..Value::default() }
    }

    pub(super) fn some_text() -> Self {
        Value { text: Text::Some, ..Value::default() }
    }

    pub(super) fn exactly(amount: Amount) -> Self {
        Value::number(Some(amount.clone()), Some(amount))
    }

    pub(super) fn number(least: Option<Amount>, most: Option<Amount>) -> Self {
        Value { number: Some(Number { least, most }.plain()), ..Value::default() }
    }

    pub(super) fn list(least: Amount, most: Most, item: Value<'a>) -> Self {
        let depth = item.depth + 1;
        let least = if least.too_large() { Amount::default() } else { least };
        Value { list: Some(Rc::new(List { least, most, item })), depth, ..Value::default() }.shallow()
    }

    pub(super) fn object(fields: BTreeMap<Arc<str>, Value<'a>>) -> Self {
        let depth = fields.values().map(|v| v.depth).max().unwrap_or(0) + 1;
        Value { fields: Some(Rc::new(fields)), depth, ..Value::default() }.shallow()
    }

    pub(super) fn callable(callable: Callable<'a>) -> Self {
        let depth = if let Callable::Partial(_, given) = &callable { given.depth + 1 } else { 0 };
        Value { callables: vec![callable], depth, ..Value::default() }.shallow()
    }

    fn shallow(self) -> Self {
        if self.depth > MAX_DEPTH { Value::lost() } else { self }
    }

    /// This, and something else where it is null.
    pub(super) fn otherwise(self, other: &Value<'a>) -> Self {
        let Some(data) = self.data.as_ref().filter(|data| data.path.is_some() && data.otherwise.is_none())
        else {
            return self.or(other);
        };
        // Lengths and numbers of the input are told apart by what stands for them.
        let data = Data { path: data.path.clone(), otherwise: Some(other.clone()) };
        let rest = Value { list: None, number: None, data: None, ..other.clone() };
        Value { data: Some(Rc::new(data)), ..Value { data: None, ..self }.or(&rest) }
    }

    /// Either of them.
    pub(super) fn or(mut self, other: &Value<'a>) -> Self {
        if let (Some(a), Some(b)) = (self.data.clone(), &other.data)
            && a != *b
        {
            self.data = Value::data(None).data;
            let parts = a.otherwise.iter().chain(&b.otherwise);
            return parts.fold(self.or(&Value { data: None, ..other.clone() }), |all, part| all.or(part));
        }
        self.data = self.data.or_else(|| other.data.clone());
        self.list = merged(self.list, &other.list, |a, b| List {
            least: smaller(&a.least, &b.least),
            most: a.most.or(&b.most),
            item: a.item.clone().or(&b.item),
        });
        self.number = match (self.number, &other.number) {
            (Some(a), Some(b)) => Some(a.or(b)),
            (a, b) => a.or_else(|| b.clone()),
        };
        for callable in &other.callables {
            if !self.callables.contains(callable) {
                self.callables.push(callable.clone());
            }
        }
        self.fields = merged(self.fields, &other.fields, |a, b| {
            let mut all = a.clone();
            for (key, value) in b {
                let mine = all.remove(key).unwrap_or_default();
                all.insert(key.clone(), mine.or(value));
            }
            all
        });
        self.text = match (self.text, &other.text) {
            (Text::None, text) => text.clone(),
            (text, Text::None) => text,
            (a, b) if a == *b => a,
            _ => Text::Some,
        };
        self.agent |= other.agent;
        self.lost |= other.lost;
        self.depth = self.depth.max(other.depth);
        if self.callables.len() > MAX_CALLABLES { Value::lost() } else { self }
    }

    /// Either of them, or whatever a loop makes of it if it goes on changing like this.
    pub(super) fn grown(self, next: &Value<'a>, reason: &Reason) -> Self {
        let before = self.clone();
        self.or(next).widened(&before, reason)
    }

    fn widened(mut self, before: &Value<'a>, reason: &Reason) -> Self {
        if let (Some(new), Some(old)) = (&self.list, &before.list) {
            let most = if new.most == old.most { old.most.clone() } else { Most::Unbounded(reason.clone()) };
            let least = if new.least == old.least { old.least.clone() } else { Amount::default() };
            self.list =
                Some(Rc::new(List { least, most, item: new.item.clone().widened(&old.item, reason) }));
        }
        if let (Some(new), Some(old)) = (&self.number, &before.number) {
            let kept = |new: &Option<Amount>, old: &Option<Amount>| new.clone().filter(|_| new == old);
            self.number =
                Some(Number { least: kept(&new.least, &old.least), most: kept(&new.most, &old.most) });
        }
        if let (Some(new), Some(old)) = (&self.fields, &before.fields) {
            let field = |(key, value): (&Arc<str>, &Value<'a>)| match old.get(key) {
                Some(old) => (key.clone(), value.clone().widened(old, reason)),
                None => (key.clone(), value.clone()),
            };
            self.fields = Some(Rc::new(new.iter().map(field).collect()));
        }
        self
    }

    /// It without the marks of a loop that is over.
    pub(super) fn resolved(&self, mark: &dyn Fn(u32, bool) -> Option<Amount>, reason: &Reason) -> Self {
        let mut value = self.clone();
        value.list = self.list.as_ref().map(|list| {
            Rc::new(List {
                least: list.least.resolved(false, mark).unwrap_or_default(),
                most: list.most.resolved(mark, reason),
                item: list.item.resolved(mark, reason),
            })
        });
        value.number = self.number.as_ref().map(|number| Number {
            least: number.least.as_ref().and_then(|a| a.resolved(false, mark)),
            most: number.most.as_ref().and_then(|a| a.resolved(true, mark)),
        });
        value.fields = self.fields.as_ref().map(|fields| {
            Rc::new(fields.iter().map(|(k, v)| (k.clone(), v.resolved(mark, reason))).collect())
        });
        value.data = self.data.as_ref().map(|data| {
            let otherwise = data.otherwise.as_ref().map(|v| v.resolved(mark, reason));
            Rc::new(Data { path: data.path.clone(), otherwise })
        });
        for callable in &mut value.callables {
            if let Callable::Partial(_, given) = callable {
                *given = Rc::new(given.resolved(mark, reason));
            }
        }
        value
    }

    /// It as an array; `reason` says why its length is not known if it is not.
    pub(super) fn as_list(&self, reason: &Reason) -> List<'a> {
        let mut lists: Vec<List<'a>> = self.list.iter().map(|list| (**list).clone()).collect();
        if self.lost {
            lists.push(List {
                least: Amount::default(),
                most: Most::Unbounded(reason.clone()),
                item: Value::lost(),
            });
        }
        if let Some(data) = &self.data {
            let other = data.otherwise.as_ref().map(|v| v.as_list(reason));
            let item = Value::data(data.path.clone().map(|path| step(path, EACH)));
            let item = other.as_ref().map_or(item.clone(), |other| item.or(&other.item));
            let length = |other: Option<Amount>| {
                data.path.clone().map(|path| Amount::of(Atom::Length(path, other.filter(|a| !a.is_zero()))))
            };
            let most = match (&other, length(None)) {
                (Some(List { most: Most::Unbounded(why), .. }), _) => Most::Unbounded(why.clone()),
                (Some(List { most: Most::Of(most), .. }), Some(_)) => {
                    Most::Of(length(Some(most.clone())).unwrap_or_default())
                }
                (None, Some(length)) => Most::Of(length),
                (_, None) => Most::Unbounded(reason.clone()),
            };
            // Of many lists in the input the longest is known, not the shortest.
            let one = data.path.as_ref().is_some_and(|path| path.iter().all(|step| **step != *EACH));
            let least = length(other.map(|list| list.least)).filter(|_| one).unwrap_or_default();
            lists.push(List { least, most, item });
        }
        let empty =
            || List { least: Amount::default(), most: Most::Of(Amount::default()), item: Value::default() };
        lists
            .into_iter()
            .reduce(|a, b| List {
                least: smaller(&a.least, &b.least),
                most: a.most.or(&b.most),
                item: a.item.or(&b.item),
            })
            .unwrap_or_else(empty)
    }

    /// Its bounds as a number.
    pub(super) fn as_number(&self) -> Number {
        let from_data = self.data.as_ref().map(|data| {
            let Some(path) = &data.path else { return Number::default() };
            let bound = |pick: fn(Number) -> Option<Amount>| match &data.otherwise {
                None => Some(Amount::of(Atom::Number(path.clone(), None))),
                Some(other) => {
                    pick(other.as_number()).map(|other| Amount::of(Atom::Number(path.clone(), Some(other))))
                }
            };
            let one = path.iter().all(|step| **step != *EACH);
            Number { least: bound(|n| n.least).filter(|_| one), most: bound(|n| n.most) }
        });
        match (self.lost, &self.number, from_data) {
            (false, Some(a), Some(b)) => a.clone().or(&b),
            (false, Some(a), None) => a.clone(),
            (false, None, Some(b)) => b,
            _ => Number::default(),
        }
    }

    /// Anything that stands somewhere inside it.
    pub(super) fn inside(&self) -> Self {
        let mut all = match (&self.data, self.lost) {
            (_, true) => Value::lost(),
            (Some(_), _) => Value::data(None),
            _ => Value::default(),
        };
        if let Some(list) = &self.list {
            all = all.or(&list.item);
        }
        for value in self.fields.iter().flat_map(|fields| fields.values()) {
            all = all.or(value);
        }
        if let Some(other) = self.data.as_ref().and_then(|data| data.otherwise.as_ref()) {
            all = all.or(&other.inside());
        }
        all
    }

    /// What is built of its parts in a way that is not followed.
    pub(super) fn blurred(&self) -> Self {
        if self.harmless() { Value::data(None) } else { Value::lost() }
    }

    /// Whether there is neither a function nor an agent in it.
    fn harmless(&self) -> bool {
        !self.lost
            && !self.agent
            && self.callables.is_empty()
            && self.list.as_ref().is_none_or(|list| list.item.harmless())
            && self.fields.iter().flat_map(|fields| fields.values()).all(Value::harmless)
            && self.data.as_ref().and_then(|data| data.otherwise.as_ref()).is_none_or(Value::harmless)
    }
}

impl Number {
    fn or(self, other: &Number) -> Number {
        let both = |a: Option<Amount>, b: &Option<Amount>| a.zip(b.clone());
        Number {
            least: both(self.least, &other.least)
                .and_then(|(a, b)| if a.within(&b) { Some(a) } else { Some(b).filter(|b| b.within(&a)) }),
            most: both(self.most, &other.most).map(|(a, b)| a.larger(&b)),
        }
        .plain()
    }

    /// Without bounds that are too involved.
    fn plain(self) -> Number {
        let plain = |bound: Option<Amount>| bound.filter(|amount| !amount.too_large());
        Number { least: plain(self.least), most: plain(self.most) }
    }
}

pub(super) fn step(mut path: Path, name: &str) -> Path {
    path.push(Arc::from(name));
    path
}

/// The smaller of two natural amounts, or 0 where that is not known.
pub(super) fn smaller(a: &Amount, b: &Amount) -> Amount {
    match (a.within(b), b.within(a)) {
        (true, _) => a.clone(),
        (_, true) => b.clone(),
        _ => Amount::default(),
    }
}

fn merged<T: Clone + PartialEq>(
    a: Option<Rc<T>>,
    b: &Option<Rc<T>>,
    both: impl Fn(&T, &T) -> T,
) -> Option<Rc<T>> {
    match (a, b) {
        (Some(a), Some(b)) if a == *b => Some(a),
        (Some(a), Some(b)) => Some(Rc::new(both(&a, b))),
        (a, b) => a.or_else(|| b.clone()),
    }
}
