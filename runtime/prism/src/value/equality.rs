//! The equalities of the language. All of them expect settled values of bounded weight.

use super::text::{leading_number, text};
use super::{Func, Object, Val};
use std::sync::Arc;

/// `===`: kind and content. The outer confidences are ignored, those of elements are part of the content.
pub(crate) fn strict_equal(a: &Val, b: &Val) -> bool {
    match (a.plain(), b.plain()) {
        (Val::Null, Val::Null) => true,
        (Val::Bool(a), Val::Bool(b)) => a == b,
        (Val::Num(a), Val::Num(b)) => a == b,
        (Val::Str(a), Val::Str(b)) => a == b,
        (Val::Arr(a), Val::Arr(b)) => Arc::ptr_eq(a, b) || all_identical(a.items(), b.items()),
        (Val::Obj(a), Val::Obj(b)) => Arc::ptr_eq(a, b) || same_entries(a, b),
        (a @ (Val::Func(_) | Val::Native(_)), b @ (Val::Func(_) | Val::Native(_))) => {
            function_name(a) == function_name(b)
        }
        _ => false,
    }
}

fn all_identical(a: &[Val], b: &[Val]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| identical(a, b))
}

fn same_entries(a: &Object, b: &Object) -> bool {
    a.len() == b.len() && a.entries().all(|(key, x)| b.get(key).is_some_and(|y| identical(x, y)))
}

fn function_name(f: &Val) -> &str {
    match f {
        Val::Func(f) => Func::name(f),
        Val::Native(native) => native.name(),
        _ => "",
    }
}

/// `==`: like `===` for values of one kind; others are converted as the language's table says.
pub(crate) fn loose_equal(a: &Val, b: &Val) -> bool {
    let (a, b) = (a.plain(), b.plain());
    if a.type_name() == b.type_name() {
        return strict_equal(a, b);
    }
    let any = |kind: fn(&Val) -> bool| kind(a) || kind(b);
    if any(|v| matches!(v, Val::Num(_)))
        && let (Some(x), Some(y)) = (as_number(a), as_number(b))
    {
        return x == y;
    }
    if any(|v| matches!(v, Val::Str(_))) {
        return match (a, b) {
            (Val::Str(s), Val::Bool(false)) | (Val::Bool(false), Val::Str(s)) if s.is_empty() => true,
            _ => text(a) == text(b),
        };
    }
    any(|v| matches!(v, Val::Bool(_))) && a.truthy() == b.truthy()
}

fn as_number(v: &Val) -> Option<f64> {
    match v {
        Val::Num(x) => Some(*x),
        Val::Str(s) => leading_number(s),
        Val::Bool(b) => Some(f64::from(u8::from(*b))),
        Val::Null => Some(0.0),
        _ => None,
    }
}

/// Nothing is overlooked, the outer confidences included.
pub(crate) fn identical(a: &Val, b: &Val) -> bool {
    a.confidence() == b.confidence() && strict_equal(a, b)
}

/// `value instanceof "kind"`; `None` if there is no such kind.
pub(crate) fn instance_of(value: &Val, kind: &str) -> Option<bool> {
    const KINDS: [&str; 8] =
        ["number", "string", "boolean", "array", "object", "function", "null", "undefined"];
    let kind = KINDS.into_iter().find(|k| k.eq_ignore_ascii_case(kind))?;
    Some(value.type_name() == if kind == "undefined" { "null" } else { kind })
}
