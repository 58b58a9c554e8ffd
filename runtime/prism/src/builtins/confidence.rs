//! Built-ins about confidence.

use super::{Native, options};
use crate::diagnostic::{Raise, Raised};
use crate::value::{Body, Object, Val};
use crate::vm::{array_arg, bad_argument};

/// A number from 0 to 1.
fn level(native: Native, v: &Val) -> Raised<f64> {
    let Val::Num(k) = v.plain() else { return Err(bad_argument(native, "a number from 0 to 1", v)) };
    if !(0.0..=1.0).contains(k) {
        return Err(Raise::new(
            "threshold_range",
            format!("`{}` needs a number between 0 and 1, not {k}", native.name()),
        ));
    }
    Ok(*k)
}

/// `confidence(k)(f)` and `threshold(k)(array)`, step by step.
pub(super) fn graded(native: Native, args: &[Val]) -> Raised<Val> {
    let k = level(native, &args[0])?;
    let next = match native {
        Native::Confidence => Native::ConfidenceOf,
        Native::Threshold => Native::ThresholdOf,
        Native::ConfidenceOf => {
            if !args[1].callable() {
                return Err(bad_argument(native, "a function", &args[1]));
            }
            return Val::func(Body::Graded { f: args[1].clone(), confidence: k });
        }
        _ => {
            let items = array_arg(native, args, 1)?;
            let strong = items.items().iter().filter(|v| strong(v, k)).cloned().collect();
            return Val::array(strong);
        }
    };
    Val::func(Body::Partial { native: next, given: Box::new([Val::Num(k)]) })
}

fn strong(value: &Val, k: f64) -> bool {
    match value {
        Val::Sure(sure) => sure.confidence >= k,
        Val::Obj(object) => object.values().iter().all(|v| v.certainty() >= k),
        _ => true,
    }
}

fn strategy(native: Native, options: Option<&Object>, known: &[&'static str]) -> Raised<&'static str> {
    let given = match options.and_then(|o| o.get("strategy")).map(Val::plain) {
        None | Some(Val::Null) => return Ok(known[0]),
        Some(Val::Str(s)) => s,
        Some(other) => return Err(bad_argument(native, "`strategy` as a string", other)),
    };
    known.iter().find(|k| **k == given.as_str()).copied().ok_or_else(|| {
        Raise::new("bad_argument", format!("`{}` has no strategy `{given}`", native.name()))
            .hint(format!("strategies are {}", known.join(", ")))
    })
}

/// The element with the highest or lowest confidence, as it is.
pub(super) fn consensus(args: &[Val]) -> Raised<Val> {
    let native = Native::Consensus;
    let items = array_arg(native, args, 0)?;
    let options = options(native, args.get(1))?;
    let lowest = strategy(native, options, &["max", "min"])? == "min";
    let mut best: Option<&Val> = None;
    for item in items.items() {
        let better = best.is_none_or(|b| match lowest {
            true => item.certainty() < b.certainty(),
            false => item.certainty() > b.certainty(),
        });
        if better {
            best = Some(item);
        }
    }
    best.cloned().ok_or_else(|| Raise::new("bad_argument", "`consensus` of an empty array"))
}

/// The array, the combined confidence, and the function that combines the values.
pub(crate) fn aggregate(args: &[Val]) -> Raised<(Val, f64, Option<Val>)> {
    let native = Native::Aggregate;
    let items = array_arg(native, args, 0)?;
    let options = options(native, args.get(1))?;
    let strategy = strategy(native, options, &["average", "min", "max", "product"])?;
    let combine = match options.and_then(|o| o.get("combine")) {
        None | Some(Val::Null) => None,
        Some(f) if f.callable() => Some(f.clone()),
        Some(other) => return Err(bad_argument(native, "`combine` as a function", other)),
    };
    let certainties = items.items().iter().map(Val::certainty);
    let n = items.items().len();
    let confidence = match strategy {
        _ if n == 0 => 1.0,
        "average" => certainties.sum::<f64>() / n as f64,
        "min" => certainties.fold(1.0, f64::min),
        "max" => certainties.fold(0.0, f64::max),
        _ => certainties.product(),
    };
    Ok((Val::Arr(items), confidence, combine))
}
