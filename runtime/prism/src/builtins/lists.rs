//! Arrays and texts.

use super::Native;
use crate::diagnostic::{Raise, Raised};
use crate::value::{Array, Body, Val, printed, strict_equal, text};
use crate::vm::{array_arg, bad_argument, grouped, sorted};
use std::cmp::Ordering;
use std::sync::Arc;

/// Longest array that `range` makes.
const MAX_RANGE: f64 = 4_000_000.0;

fn number(native: Native, args: &[Val], i: usize) -> Raised<Option<f64>> {
    match args.get(i).map(Val::plain) {
        None | Some(Val::Null) => Ok(None),
        Some(Val::Num(x)) => Ok(Some(*x)),
        Some(other) => Err(bad_argument(native, "a number", other)),
    }
}

fn string(native: Native, args: &[Val], i: usize) -> Raised<Option<&str>> {
    match args.get(i).map(Val::plain) {
        None => Ok(None),
        Some(Val::Str(s)) => Ok(Some(s)),
        Some(other) => Err(bad_argument(native, "a string", other)),
    }
}

/// `max` and `min`: the winner as it is, with its own confidence; the first of equals wins.
pub(super) fn extreme(native: Native, args: &[Val]) -> Raised<Val> {
    let mut best: Option<(f64, &Val)> = None;
    for arg in args {
        let Val::Num(x) = arg.plain() else { return Err(bad_argument(native, "numbers", arg)) };
        let better = best.is_none_or(|(b, _)| if native == Native::Max { *x > b } else { *x < b });
        if better {
            best = Some((*x, arg));
        }
    }
    Ok(best.map_or(Val::Null, |(_, v)| v.clone()))
}

/// A printed line.
pub(crate) fn line(args: &[Val], debug: bool) -> Raised<String> {
    let mut out = String::from(if debug { "[DEBUG] " } else { "" });
    for (i, arg) in args.iter().enumerate() {
        arg.check_weight()?;
        if i > 0 {
            out.push(' ');
        }
        printed(&mut out, arg);
    }
    Ok(out)
}

pub(super) fn ordered(native: Native, args: &[Val]) -> Raised<Val> {
    match native {
        Native::SortBy => {
            let Some(key) = string(native, args, 0)? else { unreachable!("arity was checked") };
            let ascending = match args.get(1).map(Val::plain) {
                None | Some(Val::Null) => true,
                Some(Val::Str(direction)) => direction.as_str() == "asc",
                Some(other) => return Err(bad_argument(native, "a direction as a string", other)),
            };
            let given = Box::new([Val::str(key), Val::Bool(ascending)]);
            Val::func(Body::Partial { native: Native::SortByOf, given })
        }
        Native::SortByOf => {
            let key = args[0].as_str().unwrap_or_default();
            let ascending = args[1].truthy();
            let items = array_arg(native, args, 2)?;

            let keys = items.items().iter().map(|item| match item.plain() {
                Val::Obj(object) => object.get(key).map_or(&Val::Null, Val::plain),
                // Other elements are their own keys.
                other => other,
            });
            Ok(sorted_by(items.items(), keys, ascending)?.sure(0.95))
        }
        Native::Sort => {
            let items = array_arg(native, args, 0)?;
            sorted_by(items.items(), items.items().iter().map(Val::plain), true)
        }
        Native::GroupBy => {
            if !args[0].callable() && args[0].plain().as_str().is_none() {
                return Err(bad_argument(native, "a property name or a function", &args[0]));
            }
            Val::func(Body::Partial { native: Native::GroupByOf, given: Box::new([args[0].clone()]) })
        }
        _ => {
            let key = args[0].plain().as_str().unwrap_or_default();
            let items = array_arg(native, args, 1)?;

            grouped(items.items(), |item| match item.plain() {
                Val::Obj(object) => object.get(key).cloned().unwrap_or(Val::Null),
                // Other elements are their own keys.
                other => other.clone(),
            })
        }
    }
}

/// Bytes of the texts that may be sorted by: what they are compared by takes several times as much.
const MAX_SORTED: usize = 32 << 20;

/// Stable; numbers by size, everything else by its text as a reader would sort it.
fn sorted_by<'a>(items: &[Val], keys: impl Iterator<Item = &'a Val> + Clone, ascending: bool) -> Raised<Val> {
    let number = |key: &Val| if let Val::Num(x) = key { Some(*x) } else { None };
    let by_number = |a: Option<f64>, b: Option<f64>| a.partial_cmp(&b).unwrap_or(Ordering::Equal);
    let places = if keys.clone().all(|key| number(key).is_some()) {
        let keys: Vec<Option<f64>> = keys.map(number).collect();
        places(keys.len(), ascending, |a, b| by_number(keys[a], keys[b]))
    } else {
        let mut size = 0;
        let mut read = Vec::with_capacity(items.len());
        for key in keys {
            let text = text(key);
            size += text.len();
            if size > MAX_SORTED {
                return Err(Raise::new("limit_memory", "the texts to sort by are too large"));
            }
            read.push((number(key), Reading::of(text)));
        }
        places(read.len(), ascending, |a, b| match (&read[a], &read[b]) {
            ((Some(x), _), (Some(y), _)) => by_number(Some(*x), Some(*y)),
            ((_, a), (_, b)) => a.cmp(b),
        })
    };
    Val::array(places.into_iter().map(|place| items[place].clone()).collect())
}

/// Where each element of the sorted array comes from.
fn places(len: usize, ascending: bool, order: impl Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let place = |v: &Val| if let Val::Num(x) = v { *x as usize } else { unreachable!("they are places") };
    let places = (0..len).map(|place| Val::Num(place as f64)).collect();
    let order = |a: &Val, b: &Val| order(place(a), place(b));
    let sorted = sorted(places, |a, b| if ascending { order(a, b) } else { order(b, a) });
    sorted.iter().map(place).collect()
}

/// Latin letters with marks, in small, and the plain letters that they are sorted with.
const MARKED: [(&str, &str); 22] = [
    ("a", "àáâãäåāăą"),
    ("ae", "æ"),
    ("c", "çćĉċč"),
    ("d", "ďđ"),
    ("e", "èéêëēĕėęě"),
    ("g", "ĝğġģ"),
    ("h", "ĥħ"),
    ("i", "ìíîïĩīĭįı"),
    ("j", "ĵ"),
    ("k", "ķ"),
    ("l", "ĺļľŀł"),
    ("n", "ñńņň"),
    ("o", "òóôõöøōŏő"),
    ("oe", "œ"),
    ("r", "ŕŗř"),
    ("s", "śŝşš"),
    ("ss", "ß"),
    ("t", "ţťŧ"),
    ("u", "ùúûüũūŭůűų"),
    ("w", "ŵ"),
    ("y", "ýÿŷ"),
    ("z", "źżž"),
];

/// What a text is compared by: punctuation before digits before letters. Marks decide only between texts that are
/// equal without them, and case between those that are equal but for it, small letters first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Reading {
    /// Rank and letter, without marks.
    letters: Vec<(u8, char)>,
    small: String,
    large: Vec<bool>,
}

impl Reading {
    fn of(text: String) -> Self {
        let rank = |c: char| match c {
            c if c.is_alphabetic() => 2,
            c if c.is_numeric() => 1,
            _ => 0,
        };
        let bare = |c: char| {
            let found = MARKED.iter().find(|(_, marked)| !c.is_ascii() && marked.contains(c));
            let (one, plain) = found.map_or((Some(c), ""), |(plain, _)| (None, *plain));
            one.into_iter().chain(plain.chars()).map(move |c| (rank(c), c))
        };
        let small = text.to_lowercase();
        // Without upper case there is nothing to tell apart by it.
        let large = if small == text { Vec::new() } else { text.chars().map(char::is_uppercase).collect() };
        Self { letters: small.chars().flat_map(bare).collect(), small, large }
    }
}

pub(super) fn array_method(native: Native, args: &[Val]) -> Raised<Val> {
    let array = array_arg(native, args, 0)?;
    let items = array.items();
    match native {
        Native::Join => {
            let separator = string(native, args, 1)?.unwrap_or(",");

            let size = items.len().saturating_mul(separator.len());
            if size > 64 << 20 {
                return Err(Raise::new("limit_memory", "the joined text is too large"));
            }
            let parts: Vec<String> =
                items.iter().map(|v| if matches!(v, Val::Null) { String::new() } else { text(v) }).collect();
            Ok(Val::str(parts.join(separator)))
        }
        Native::Slice => {
            let len = items.len() as f64;
            let place = |x: f64| if x < 0.0 { (len + x).max(0.0) } else { x.min(len) }.trunc() as usize;
            let start = place(number(native, args, 1)?.unwrap_or(0.0));
            let end = place(number(native, args, 2)?.unwrap_or(len));
            Val::array(items.get(start..end).unwrap_or(&[]).to_vec())
        }
        Native::Includes | Native::IndexOf => {
            let at = items.iter().position(|v| strict_equal(v, &args[1]));
            Ok(match native {
                Native::Includes => Val::Bool(at.is_some()),
                _ => Val::Num(at.map_or(-1.0, |i| i as f64)),
            })
        }
        _ => {
            let mut joined = items.to_vec();
            for arg in &args[1..] {
                match arg.plain() {
                    Val::Arr(more) => joined.extend_from_slice(Array::items(more)),
                    _ => joined.push(arg.clone()),
                }
            }
            Val::array(joined)
        }
    }
}

/// How many texts `split` is about to make.
pub(crate) fn parts(args: &[Val]) -> usize {
    match (args[0].plain(), args.get(1).map(Val::plain)) {
        (Val::Str(s), Some(Val::Str(separator))) => s.matches(separator.as_str()).count() + 1,
        _ => 1,
    }
}

pub(super) fn text_method(native: Native, args: &[Val]) -> Raised<Val> {
    let Val::Str(s) = args[0].plain() else { return Err(bad_argument(native, "a string", &args[0])) };
    match native {
        Native::TextIncludes => Ok(Val::Bool(string(native, args, 1)?.is_some_and(|part| s.contains(part)))),
        Native::Trim => Ok(Val::str(s.trim())),
        Native::ToLowerCase => Ok(Val::str(s.to_lowercase())),
        Native::ToUpperCase => Ok(Val::str(s.to_uppercase())),
        _ => {
            let parts: Vec<Val> = match string(native, args, 1)? {
                None => vec![Val::Str(Arc::clone(s))],
                Some("") => s.chars().map(Val::str).collect(),
                Some(separator) => s.split(separator).map(Val::str).collect(),
            };
            Val::array(parts)
        }
    }
}

/// `range(end)`, `range(start, end)`, `range(start, end, step)`: `end` is not reached.
pub(super) fn range(args: &[Val]) -> Raised<Val> {
    let native = Native::Range;
    let mut numbers = [0.0; 3];
    for (i, slot) in numbers.iter_mut().enumerate().take(args.len()) {
        *slot = number(native, args, i)?.ok_or_else(|| bad_argument(native, "numbers", &Val::Null))?;
    }
    let (start, end, step) = match args.len() {
        1 => (0.0, numbers[0], 1.0),
        2 => (numbers[0], numbers[1], if numbers[0] <= numbers[1] { 1.0 } else { -1.0 }),
        _ => (numbers[0], numbers[1], numbers[2]),
    };
    let count = ((end - start) / step).ceil();
    if step == 0.0 || !count.is_finite() {
        return Err(Raise::new("bad_argument", "`range` needs finite bounds and a step that is not 0"));
    }
    if count > MAX_RANGE {
        return Err(Raise::new(
            "bad_argument",
            format!("`range` makes at most {MAX_RANGE} numbers, not {count}"),
        ));
    }
    Val::array((0..count.max(0.0) as u64).map(|i| Val::Num(start + i as f64 * step)).collect())
}
