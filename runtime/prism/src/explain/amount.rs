//! How often: sums and products of what is known when a run starts, the number of its agents and its input.

use crate::value::Value;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A whole number that depends on a run's agents and input; as text, `2n + 1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(BTreeMap<Vec<Atom>, i64>);

/// Where a value stands in the input. `[]` is each element of an array.
pub(super) type Path = Vec<Arc<str>>;

pub(super) const EACH: &str = "[]";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Atom {
    Agents,
    /// How many elements (or characters) the input has there; if there is nothing, the other amount.
    Length(Path, Option<Amount>),
    /// The number that stands there, which may be below 0 or broken.
    Number(Path, Option<Amount>),
    /// A number as one of repetitions: whole, and 0 if it is below.
    Count(Amount),
    /// The number of steps of a size in a distance.
    Steps(Amount, Amount),
    Larger(Amount, Amount),
    /// The length of a list at the start of a turn of a loop.
    Mark(u32),
}

/// The largest amount that is worked with, by the atoms in it; beyond, nobody could read it.
const MAX_WEIGHT: usize = 32;

impl Amount {
    pub(super) fn of(atom: Atom) -> Amount {
        Amount(BTreeMap::from([(vec![atom], 1)]))
    }

    pub(super) fn constant(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get(&vec![]).copied(),
            _ => None,
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn too_large(&self) -> bool {
        self.weight() > MAX_WEIGHT
    }

    fn weight(&self) -> usize {
        let atom = |atom: &Atom| match atom {
            Atom::Agents | Atom::Mark(_) => 1,
            Atom::Length(_, other) | Atom::Number(_, other) => 1 + other.as_ref().map_or(0, Amount::weight),
            Atom::Count(a) => a.weight(),
            Atom::Steps(a, b) | Atom::Larger(a, b) => a.weight() + b.weight(),
        };
        self.0.keys().map(|factors| 1 + factors.iter().map(atom).sum::<usize>()).sum()
    }

    fn add(&mut self, factors: Vec<Atom>, times: i64) {
        let sum = self.0.get(&factors).copied().unwrap_or(0).saturating_add(times);
        if sum == 0 {
            self.0.remove(&factors)
        } else {
            self.0.insert(factors, sum)
        };
    }

    pub(super) fn plus(&self, other: &Amount) -> Amount {
        let mut sum = self.clone();
        other.0.iter().for_each(|(factors, times)| sum.add(factors.clone(), *times));
        sum
    }

    pub(super) fn minus(&self, other: &Amount) -> Amount {
        let mut rest = self.clone();
        other.0.iter().for_each(|(factors, times)| rest.add(factors.clone(), times.saturating_neg()));
        rest
    }

    pub(super) fn times(&self, other: &Amount) -> Amount {
        let mut product = Amount::default();
        for (a, x) in &self.0 {
            for (b, y) in &other.0 {
                let mut factors = [a.as_slice(), b].concat();
                factors.sort();
                product.add(factors, x.saturating_mul(*y));
            }
        }
        product
    }

    /// Whether it is surely not below 0.
    pub(super) fn is_natural(&self) -> bool {
        let natural = |atom: &Atom| match atom {
            Atom::Number(..) => false,
            Atom::Larger(a, b) => a.is_natural() || b.is_natural(),
            _ => true,
        };
        self.0.iter().all(|(factors, times)| *times >= 0 && factors.iter().all(natural))
    }

    fn is_whole(&self) -> bool {
        self.0.keys().flatten().all(|atom| match atom {
            Atom::Number(..) => false,
            Atom::Larger(a, b) => a.is_whole() && b.is_whole(),
            _ => true,
        })
    }

    /// Whether it is surely at most the other.
    pub(super) fn within(&self, other: &Amount) -> bool {
        other.minus(self).is_natural()
    }

    pub(super) fn larger(&self, other: &Amount) -> Amount {
        if self.within(other) {
            return other.clone();
        }
        if other.within(self) {
            return self.clone();
        }
        Amount::of(Atom::Larger(self.clone(), other.clone()))
    }

    /// The other one, if it is the larger of this and another.
    pub(super) fn larger_than(&self, one: &Amount) -> Option<&Amount> {
        let (factors, 1) = self.0.first_key_value().filter(|_| self.0.len() == 1)? else { return None };
        match factors.as_slice() {
            [Atom::Larger(a, b)] if a == one => Some(b),
            [Atom::Larger(a, b)] if b == one => Some(a),
            _ => None,
        }
    }

    /// As a number of repetitions.
    pub(super) fn count(&self) -> Amount {
        match self.constant() {
            _ if self.is_natural() && self.is_whole() => self.clone(),
            Some(_) => Amount::default(),
            None => Amount::of(Atom::Count(self.clone())),
        }
    }

    /// It with something in place of the marks: the most or the least that it can then be. None: there is no most.
    pub(super) fn resolved(&self, upper: bool, mark: &dyn Fn(u32, bool) -> Option<Amount>) -> Option<Amount> {
        let mut sum = Amount::default();
        for (factors, times) in &self.0 {
            let upper = upper == (*times >= 0);
            let mut product = Amount::from(*times);
            for atom in factors {
                product = product.times(&atom.resolved(upper, mark)?);
            }
            sum = sum.plus(&product);
        }
        Some(sum)
    }

    /// Whether one of these marks is in it.
    pub(super) fn mentions(&self, one: &dyn Fn(u32) -> bool) -> bool {
        self.0.keys().flatten().any(|atom| match atom {
            Atom::Mark(number) => one(*number),
            Atom::Agents => false,
            Atom::Length(_, other) | Atom::Number(_, other) => {
                other.as_ref().is_some_and(|other| other.mentions(one))
            }
            Atom::Count(a) => a.mentions(one),
            Atom::Steps(a, b) | Atom::Larger(a, b) => a.mentions(one) || b.mentions(one),
        })
    }

    /// How much it is whatever the input, with this number of agents or, without one, with any; None if it depends.
    #[must_use]
    pub fn figure(&self, agents: Option<u64>) -> Option<f64> {
        self.value(agents.map(|n| n as f64), None)
    }

    /// How much it is in a run with these agents and this input.
    #[must_use]
    pub fn with(&self, agents: u64, input: &Value) -> f64 {
        self.value(Some(agents as f64), Some(input)).unwrap_or(0.0)
    }

    fn value(&self, agents: Option<f64>, input: Option<&Value>) -> Option<f64> {
        let mut sum = 0.0;
        for (factors, times) in &self.0 {
            let mut product = *times as f64;
            for atom in factors {
                product *= atom.value(agents, input)?;
            }
            // Nothing, any number of times.
            sum += if product.is_nan() { f64::INFINITY } else { product };
        }
        Some(sum)
    }
}

impl Atom {
    fn resolved(&self, upper: bool, mark: &dyn Fn(u32, bool) -> Option<Amount>) -> Option<Amount> {
        let inner = |amount: &Amount, upper: bool| amount.resolved(upper, mark);
        let otherwise = |amount: &Option<Amount>| match amount {
            None => Some(None),
            Some(amount) => inner(amount, upper).map(Some),
        };
        Some(match self {
            Atom::Mark(number) => return mark(*number, upper),
            Atom::Agents => Amount::of(Atom::Agents),
            Atom::Length(path, other) => Amount::of(Atom::Length(path.clone(), otherwise(other)?)),
            Atom::Number(path, other) => Amount::of(Atom::Number(path.clone(), otherwise(other)?)),
            Atom::Count(a) => inner(a, upper)?.count(),
            Atom::Steps(distance, step) => {
                Amount::of(Atom::Steps(inner(distance, upper)?, inner(step, !upper)?))
            }
            Atom::Larger(a, b) => inner(a, upper)?.larger(&inner(b, upper)?),
        })
    }

    fn value(&self, agents: Option<f64>, input: Option<&Value>) -> Option<f64> {
        let inner = |amount: &Amount| amount.value(agents, input);
        let read = |path: &Path, other: &Option<Amount>, size: fn(&Value) -> f64| {
            let mut found = Vec::new();
            collect(input?, path, &mut found);
            match (found.is_empty(), other) {
                (true, Some(other)) => inner(other),
                (true, None) => Some(0.0),
                _ => Some(found.iter().map(size).fold(f64::NEG_INFINITY, f64::max)),
            }
        };
        match self {
            Atom::Agents => agents,
            Atom::Length(path, other) => read(path, other, length).map(|x| x.max(0.0)),
            Atom::Number(path, other) => read(path, other, |v| v.as_f64().unwrap_or(0.0)),
            Atom::Count(a) => inner(a).map(|x| x.ceil().max(0.0)),
            Atom::Steps(distance, step) => {
                let (distance, step) = (inner(distance)?, inner(step)?);
                // A step that may be nothing never arrives.
                Some(if step > 0.0 { (distance / step).ceil().max(0.0) } else { f64::INFINITY })
            }
            Atom::Larger(a, b) => Some(inner(a)?.max(inner(b)?)),
            Atom::Mark(_) => None,
        }
    }
}

/// The values at a path, but for nulls.
fn collect(value: &Value, path: &[Arc<str>], found: &mut Vec<Value>) {
    match path.split_first() {
        None if value.is_null() => {}
        None => found.push(value.clone()),
        Some((step, rest)) if **step == *EACH => value.items().for_each(|item| collect(&item, rest, found)),
        Some((step, rest)) => value.get(step).iter().for_each(|part| collect(part, rest, found)),
    }
}

/// What `.length` gives.
fn length(value: &Value) -> f64 {
    match value.as_str() {
        Some(text) => text.encode_utf16().count() as f64,
        None => value.get("length").and_then(|n| n.as_f64()).unwrap_or(value.items().len() as f64),
    }
}

impl From<i64> for Amount {
    fn from(n: i64) -> Amount {
        let mut amount = Amount::default();
        amount.add(vec![], n);
        amount
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A product with one length of the input reads best in words.
        let mut terms = self.0.iter();
        if let (Some((factors, times)), None) = (terms.next(), terms.next())
            && let [before @ .., Atom::Length(path, other)] = factors.as_slice()
            && matches!(before, [] | [Atom::Agents])
        {
            let much =
                if before.is_empty() && *times == 1 { "one".to_string() } else { term(before, *times) };
            write!(f, "{much} per element of {}", place(path))?;
            return match other {
                Some(other) => write!(f, " ({} if not given)", other.formula()),
                None => Ok(()),
            };
        }
        write!(f, "{}", self.formula())
    }
}

impl Amount {
    fn formula(&self) -> String {
        // Constants stand last, and what is taken away behind what is there.
        let mut terms: Vec<_> = self.0.iter().collect();
        terms.sort_by_key(|(factors, times)| (**times < 0, factors.is_empty()));
        let mut out = String::new();
        for (factors, times) in &terms {
            out.push_str(match (out.is_empty(), **times < 0) {
                (true, false) => "",
                (true, true) => "-",
                (false, false) => " + ",
                (false, true) => " - ",
            });
            match factors.as_slice() {
                [only] if terms.len() == 1 && **times == 1 => out.push_str(&only.to_string()),
                factors => out.push_str(&term(factors, times.saturating_abs())),
            }
        }
        if out.is_empty() { "0".to_string() } else { out }
    }
}

fn term(factors: &[Atom], times: i64) -> String {
    if let ([Atom::Agents], 2..) = (factors, times) {
        return format!("{times}n");
    }
    let mut parts = Vec::new();
    if times != 1 || factors.is_empty() {
        parts.push(times.to_string());
    }
    for factor in factors {
        let text = factor.to_string();
        let loose = text.contains(' ') && !text.starts_with("max(");
        parts.push(if loose { format!("({text})") } else { text });
    }
    parts.join(" × ")
}

fn place(path: &Path) -> String {
    path.iter().fold("input".to_string(), |all, step| match &**step {
        EACH => all + EACH,
        name => all + "." + name,
    })
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |other: &Option<Amount>| {
            other.as_ref().map(|other| format!(" ?? {}", other.formula())).unwrap_or_default()
        };
        match self {
            Atom::Agents => write!(f, "n"),
            Atom::Length(path, other) => write!(f, "{}.length{}", place(path), or(other)),
            Atom::Number(path, other) => write!(f, "{}{}", place(path), or(other)),
            Atom::Count(amount) => write!(f, "{}", amount.formula()),
            Atom::Steps(distance, step) => write!(f, "({}) ÷ ({})", distance.formula(), step.formula()),
            // Less than nothing cannot be done.
            Atom::Larger(a, b) if a.is_zero() => write!(f, "{}", b.formula()),
            Atom::Larger(a, b) if b.is_zero() => write!(f, "{}", a.formula()),
            Atom::Larger(a, b) => write!(f, "max({}, {})", a.formula(), b.formula()),
            Atom::Mark(number) => write!(f, "#{number}"),
        }
    }
}
