//! What coordination patterns do with the answers of many agents. Deterministic: of equals, the first wins.
//!
//! A *vote* is an element of an array: an object with `result` and `confidence` (an element of `agentResults`; one
//! whose `error` is not null does not vote), a value with a confidence, or a plain value, which votes with weight 1.

use super::{Native, options};
use crate::diagnostic::{Raise, Raised};
use crate::value::{Object, Val, strict_equal, text};
use crate::vm::{array_arg, bad_argument};
use std::collections::HashMap;
use std::sync::Arc;

struct Vote {
    value: Val,
    confidence: f64,
}

fn votes(native: Native, args: &[Val]) -> Raised<Vec<Vote>> {
    let items = array_arg(native, args, 0)?;
    let mut votes = Vec::new();
    for item in items.items() {
        let outer = item.confidence();
        let report = match item.plain() {
            Val::Obj(object) if object.get("result").is_some() && object.get("confidence").is_some() => {
                object
            }
            plain => {
                votes.push(Vote { value: plain.clone(), confidence: outer.unwrap_or(1.0) });
                continue;
            }
        };
        if report.get("error").is_some_and(|e| !matches!(e.plain(), Val::Null)) {
            continue;
        }
        let result = report.get("result").cloned().unwrap_or(Val::Null);
        let confidence = match report.get("confidence").map(Val::plain) {
            Some(Val::Num(c)) if (0.0..=1.0).contains(c) => *c,
            // An agent that did not say how sure it is.
            None | Some(Val::Null) => 1.0,
            Some(other) => {
                return Err(bad_argument(native, "a `confidence` from 0 to 1 in each result", other));
            }
        };
        votes.push(Vote { value: result.plain().clone(), confidence: confidence * outer.unwrap_or(1.0) });
    }
    Ok(votes)
}

/// Indexes of votes for the same value, in order of first occurrence.
fn camps(values: &[&Val]) -> Vec<Vec<usize>> {
    let mut camps: Vec<Vec<usize>> = Vec::new();
    let mut by_text: HashMap<String, Vec<usize>> = HashMap::new();
    for (i, value) in values.iter().enumerate() {
        let known = by_text.entry(text(value)).or_default();
        match known.iter().find(|camp| strict_equal(values[camps[**camp][0]], value)) {
            Some(camp) => camps[*camp].push(i),
            None => {
                known.push(camps.len());
                camps.push(vec![i]);
            }
        }
    }
    camps
}

/// The heaviest camp; ties go to more heads, then to the first.
fn heaviest(camps: &[Vec<usize>], weight: impl Fn(usize) -> f64) -> Option<(&Vec<usize>, f64)> {
    let mut best: Option<(&Vec<usize>, f64)> = None;
    for camp in camps {
        let total: f64 = camp.iter().map(|i| weight(*i)).sum();
        if best.is_none_or(|(b, w)| total > w || (total == w && camp.len() > b.len())) {
            best = Some((camp, total));
        }
    }
    best
}

/// `majorityVote(votes, {weighted: true, key: null})`: the value with the greatest sum of confidences (with
/// `weighted: false`, of heads), at the confidence *share × trust*: its share of the whole sum, times the mean
/// confidence of those who voted for it. `key` compares votes by that property only. No votes: null at 0.
pub(super) fn majority(args: &[Val]) -> Raised<Val> {
    let native = Native::MajorityVote;
    let votes = votes(native, args)?;
    let options = options(native, args.get(1))?;
    let option = |name: &str| options.and_then(|options| options.get(name)).map(Val::plain);
    let weighted = match option("weighted") {
        None | Some(Val::Null) => true,
        Some(Val::Bool(b)) => *b,
        Some(other) => return Err(bad_argument(native, "`weighted` as a boolean", other)),
    };
    let key = match option("key") {
        None | Some(Val::Null) => None,
        Some(Val::Str(key)) => Some(Arc::clone(key)),
        Some(other) => return Err(bad_argument(native, "`key` as a string", other)),
    };
    let null = Val::Null;
    let compared: Vec<&Val> = votes
        .iter()
        .map(|v| match &key {
            Some(key) => v.value.get(key).map_or(&null, Val::plain),
            None => &v.value,
        })
        .collect();
    let camps = camps(&compared);
    let weight = |i: usize| if weighted { votes[i].confidence } else { 1.0 };
    let Some((winner, support)) = heaviest(&camps, weight) else { return Ok(Val::Null.sure(0.0)) };
    let whole: f64 = (0..votes.len()).map(weight).sum();
    let trust = winner.iter().map(|i| votes[*i].confidence).sum::<f64>() / winner.len() as f64;
    let share = if whole > 0.0 { support / whole } else { 0.0 };
    Ok(votes[winner[0]].value.clone().sure((share * trust).clamp(0.0, 1.0)))
}

/// `agreement(votes)`: the share of the largest group of equal values, 0..1, heads counted equally. No votes: 0.
pub(super) fn agreement(args: &[Val]) -> Raised<Val> {
    let votes = votes(Native::Agreement, args)?;
    let values: Vec<&Val> = votes.iter().map(|v| &v.value).collect();
    let largest = camps(&values).iter().map(Vec::len).max().unwrap_or(0);
    Ok(Val::Num(if votes.is_empty() { 0.0 } else { largest as f64 / votes.len() as f64 }))
}

/// `average(numbers)` and `weightedAverage(numbers, weights?)`, weighted by the confidences if no weights are given.
/// If any number is confident, so is the result, with the mean of the confidences under the same weights.
pub(super) fn average(native: Native, args: &[Val]) -> Raised<Val> {
    let items = array_arg(native, args, 0)?;
    let numbers = items.items();
    let weights: Vec<f64> = match args.get(1).map(Val::plain) {
        Some(Val::Arr(weights)) => {
            let given = weights.items();
            if given.len() != numbers.len() {
                let message =
                    format!("`weightedAverage` got {} numbers, but {} weights", numbers.len(), given.len());
                return Err(Raise::new("bad_argument", message));
            }
            given
                .iter()
                .map(|w| match w.plain() {
                    Val::Num(w) if *w >= 0.0 && w.is_finite() => Ok(*w),
                    other => Err(bad_argument(native, "weights that are numbers from 0", other)),
                })
                .collect::<Raised<_>>()?
        }
        None | Some(Val::Null) if native == Native::WeightedAverage => {
            numbers.iter().map(Val::certainty).collect()
        }
        None | Some(Val::Null) => vec![1.0; numbers.len()],
        Some(other) => return Err(bad_argument(native, "weights as an array", other)),
    };
    let whole: f64 = weights.iter().sum();
    if whole <= 0.0 {
        let what = if numbers.is_empty() { "an empty array" } else { "numbers that have no weight" };
        return Err(Raise::new("bad_argument", format!("`{}` of {what}", native.name())));
    }
    let (mut sum, mut trust) = (0.0, 0.0);
    for (number, weight) in numbers.iter().zip(&weights) {
        let Val::Num(x) = number.plain() else {
            return Err(bad_argument(native, "an array of numbers", number));
        };
        sum += x * weight;
        trust += number.certainty() * weight;
    }
    let confident = numbers.iter().any(|n| n.confidence().is_some());
    Ok(Val::Num(sum / whole).maybe_sure(confident.then_some((trust / whole).clamp(0.0, 1.0))))
}

/// `synthesize(votes)`: one value out of all. Numbers: their mean, weighted by confidence. Arrays: all different
/// elements in order of first occurrence. Objects: each property by itself. Anything else: the majority. The
/// confidence is the mean of the votes' confidences; for a majority, that of `majorityVote`. No votes: null at 0.
pub(super) fn synthesize(args: &[Val]) -> Raised<Val> {
    merged(&votes(Native::Synthesize, args)?)
}

fn merged(votes: &[Vote]) -> Raised<Val> {
    if votes.is_empty() {
        return Ok(Val::Null.sure(0.0));
    }
    let mean = votes.iter().map(|v| v.confidence).sum::<f64>() / votes.len() as f64;
    let all = |kind: fn(&Val) -> bool| votes.iter().all(|v| kind(&v.value));
    let value = if all(|v| matches!(v, Val::Num(_))) {
        let whole: f64 = votes.iter().map(|v| v.confidence).sum();
        let sum = |weight: fn(&Vote) -> f64| -> f64 {
            votes.iter().map(|v| v.value.as_num().unwrap_or(0.0) * weight(v)).sum()
        };
        Val::Num(if whole > 0.0 { sum(|v| v.confidence) / whole } else { sum(|_| 1.0) / votes.len() as f64 })
    } else if all(|v| matches!(v, Val::Arr(_))) {
        let elements: Vec<&Val> = votes.iter().flat_map(|v| v.value.as_items().unwrap_or(&[])).collect();
        Val::array(camps(&elements).iter().map(|camp| elements[camp[0]].clone()).collect())?
    } else if all(|v| matches!(v, Val::Obj(_))) {
        let mut keys = Object::new();
        for vote in votes {
            if let Val::Obj(object) = &vote.value {
                object.entries().for_each(|(key, _)| keys.set(key, Val::Null));
            }
        }
        let mut object = Object::new();
        for (key, _) in keys.entries() {
            let part = |v: &Vote| {
                let value = v.value.get(key)?;
                Some(Vote { value: value.plain().clone(), confidence: v.confidence * value.certainty() })
            };
            let parts: Vec<Vote> = votes.iter().filter_map(part).collect();
            object.set(key, merged(&parts)?.plain().clone());
        }
        Val::object(object)?
    } else {
        let values: Vec<&Val> = votes.iter().map(|v| &v.value).collect();
        let camps = camps(&values);
        let whole: f64 = votes.iter().map(|v| v.confidence).sum();
        let Some((winner, support)) = heaviest(&camps, |i| votes[i].confidence) else { return Ok(Val::Null) };
        let trust = winner.iter().map(|i| votes[*i].confidence).sum::<f64>() / winner.len() as f64;
        let share = if whole > 0.0 { support / whole } else { 0.0 };
        return Ok(values[winner[0]].clone().sure((share * trust).clamp(0.0, 1.0)));
    };
    Ok(value.sure(mean.clamp(0.0, 1.0)))
}
