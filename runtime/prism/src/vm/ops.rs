//! Operators on settled values.

use crate::ast::{BinOp, UnOp};
use crate::diagnostic::{Raise, Raised};
use crate::rules::{GateFailure, Rule, Rules, Selection};
use crate::value::{Promise, Val, display, instance_of, loose_equal, strict_equal};

/// Any binary operator but `&&` and `||`, which are jumps.
pub(super) fn binary(op: BinOp, a: &Val, b: &Val, rules: &Rules) -> Raised<Val> {
    use BinOp::*;
    let (ca, cb) = (a.confidence(), b.confidence());
    let sure = ca.is_some() || cb.is_some();
    let equality_op = matches!(op, Eq | Ne | Same | NotSame);
    if matches!(b.plain(), Val::Promise(_)) && !equality_op {
        let message = format!("`{}` cannot take a promise on its right", op.text());
        return Err(Raise::new("bad_operand", message).hint("use `await` first"));
    }
    match op {
        SureAdd | SureSub | SureMul | SureDiv | SureEq | SureNe | SureLt | SureLe | SureGe | SureAnd
        | SureOr | Chain | SureCoalesce | SureSelect | SureGate => {
            if !sure {
                return Err(needs_confident(op.text()));
            }
            return confident(op, a, b, rules);
        }
        InstanceOf => return instance(a, b),
        _ => {}
    }
    let (x, y) = (a.plain(), b.plain());
    let value = match op {
        Coalesce => {
            if matches!(x, Val::Null) {
                y.clone()
            } else {
                x.clone()
            }
        }
        Lt | Le | Gt | Ge => compare(op, x, y)?,
        _ if equality_op => equality(op, x, y)?,
        _ => arithmetic(op, x, y)?,
    };
    let rule = match op {
        Coalesce => Rule::Min,
        Lt | Le | Gt | Ge | Eq | Ne | Same | NotSame => rules.comparison,
        _ => rules.arithmetic,
    };
    Ok(if sure { value.sure(rule.combine(a.certainty(), b.certainty())) } else { value })
}

#[cold]
pub(crate) fn needs_confident(op: &str) -> Box<Raise> {
    Raise::new("needs_confident", format!("`{op}` needs a value with a confidence on at least one side"))
        .hint("attach one with `value ~> 0.8`")
}

fn confident(op: BinOp, a: &Val, b: &Val, rules: &Rules) -> Raised<Val> {
    use BinOp::*;
    let (ca, cb) = (a.certainty(), b.certainty());
    let (x, y) = (a.plain(), b.plain());
    let value = match op {
        SureAdd => arithmetic_numbers(op, Add, x, y)?,
        SureSub => arithmetic_numbers(op, Sub, x, y)?,
        SureMul => arithmetic_numbers(op, Mul, x, y)?,
        SureDiv => arithmetic_numbers(op, Div, x, y)?,
        SureEq => equality(Same, x, y)?,
        SureNe => equality(NotSame, x, y)?,
        SureLt => compare(Lt, x, y)?,
        SureLe => compare(Le, x, y)?,
        SureGe => compare(Ge, x, y)?,
        SureAnd => Val::Bool(x.truthy() && y.truthy()),
        SureOr => Val::Bool(x.truthy() || y.truthy()),
        Chain => y.clone(),
        SureCoalesce => return Ok(if ca >= rules.coalesce_threshold { a.clone() } else { b.clone() }),
        SureSelect => {
            let left = match rules.parallel {
                Selection::Max => ca >= cb,
                Selection::Min => ca <= cb,
            };
            return Ok(if left { a.clone() } else { b.clone() });
        }
        SureGate if ca >= rules.gate.threshold => return Ok(b.clone()),
        SureGate => {
            return Ok(match rules.gate.on_fail {
                GateFailure::Reduce => x.clone().sure((ca * rules.gate.reduce_factor).clamp(0.0, 1.0)),
                GateFailure::ReturnNull => Val::Null,
                GateFailure::ReturnLeft => a.clone(),
            });
        }
        _ => unreachable!("{op:?} is no confident operator"),
    };
    let rule = match op {
        SureAnd => rules.logical_and,
        SureOr => rules.logical_or,
        Chain => rules.chain,
        SureEq | SureNe | SureLt | SureLe | SureGe => rules.comparison,
        _ => rules.arithmetic,
    };
    Ok(value.sure(rule.combine(ca, cb)))
}

fn arithmetic_numbers(op: BinOp, plain: BinOp, x: &Val, y: &Val) -> Raised<Val> {
    match (x, y) {
        (Val::Num(_), Val::Num(_)) => arithmetic(plain, x, y),
        _ => Err(operand_type(op, x, y)),
    }
}

#[cold]
fn operand_type(op: BinOp, x: &Val, y: &Val) -> Box<Raise> {
    let wanted = if op == BinOp::Add { "two numbers, or a string on either side" } else { "two numbers" };
    Raise::new(
        "operand_type",
        format!("`{}` needs {wanted}, not {} and {}", op.text(), x.described(), y.described()),
    )
}

pub(super) fn arithmetic(op: BinOp, x: &Val, y: &Val) -> Raised<Val> {
    let (Val::Num(a), Val::Num(b)) = (x, y) else {
        if op == BinOp::Add && (matches!(x, Val::Str(_)) || matches!(y, Val::Str(_))) {
            return concat(x, y);
        }
        return Err(operand_type(op, x, y));
    };
    let (a, b) = (*a, *b);
    Ok(Val::Num(match op {
        BinOp::Add => a + b,
        BinOp::Sub => a - b,
        BinOp::Mul => a * b,
        BinOp::Div | BinOp::Mod if b == 0.0 => {
            let what = if op == BinOp::Div { "division" } else { "remainder of a division" };
            return Err(Raise::new("division_by_zero", format!("{what} by zero")));
        }
        BinOp::Div => a / b,
        BinOp::Mod => a % b,
        // IEEE says 1, ECMAScript says NaN.
        BinOp::Pow if b.is_infinite() && a.abs() == 1.0 => f64::NAN,
        BinOp::Pow => a.powf(b),
        _ => unreachable!("{op:?} is no arithmetic operator"),
    }))
}

fn concat(x: &Val, y: &Val) -> Raised<Val> {
    x.check_weight()?;
    y.check_weight()?;
    let mut out = String::new();
    display(&mut out, x);
    display(&mut out, y);
    Ok(Val::str(out))
}

fn compare(op: BinOp, x: &Val, y: &Val) -> Raised<Val> {
    let (Val::Num(a), Val::Num(b)) = (x, y) else {
        return Err(compare_type(op, x, y));
    };
    Ok(Val::Bool(match op {
        BinOp::Lt => a < b,
        BinOp::Le => a <= b,
        BinOp::Gt => a > b,
        _ => a >= b,
    }))
}

#[cold]
fn compare_type(op: BinOp, x: &Val, y: &Val) -> Box<Raise> {
    Raise::new(
        "compare_type",
        format!("`{}` needs two numbers, not {} and {}", op.text(), x.described(), y.described()),
    )
}

/// How much a comparison has to look at, unless that is too much.
pub(super) fn comparison_work(x: &Val, y: &Val) -> Raised<usize> {
    let (x, y) = (x.plain(), y.plain());
    let (wx, wy) = (x.meta().weight, y.meta().weight);
    let looked_at = match (x, y) {
        (Val::Arr(_), Val::Arr(_)) | (Val::Obj(_), Val::Obj(_)) => {
            if wx < wy {
                x
            } else {
                y
            }
        }
        // Compared by their texts.
        (Val::Arr(_) | Val::Obj(_), Val::Str(_)) => x,
        (Val::Str(_), Val::Arr(_) | Val::Obj(_)) => y,
        (Val::Str(_), Val::Str(_)) => return Ok(wx.min(wy) as usize),
        // A number may be read from it, digit by digit.
        (Val::Str(_), _) | (_, Val::Str(_)) => return Ok(wx.max(wy) as usize * 4),
        _ => return Ok(1),
    };
    looked_at.check_weight()?;
    Ok(looked_at.meta().weight as usize)
}

fn equality(op: BinOp, x: &Val, y: &Val) -> Raised<Val> {
    comparison_work(x, y)?;
    Ok(Val::Bool(match op {
        BinOp::Eq => loose_equal(x, y),
        BinOp::Ne => !loose_equal(x, y),
        BinOp::Same => strict_equal(x, y),
        _ => !strict_equal(x, y),
    }))
}

fn instance(a: &Val, b: &Val) -> Raised<Val> {
    let Val::Str(kind) = b else {
        return Err(Raise::new(
            "bad_operand",
            format!("`instanceof` needs the name of a kind as a string, not {}", b.described()),
        ));
    };
    match instance_of(a, kind) {
        Some(is) => Ok(Val::Bool(is)),
        None => Err(Raise::new("bad_operand", format!("there is no kind `{kind}`"))
            .hint("kinds are number, string, boolean, array, object, function, null")),
    }
}

/// Any unary operator on a settled value.
pub(super) fn unary(op: UnOp, v: &Val) -> Raised<Val> {
    Ok(match op {
        UnOp::Not => Val::Bool(!v.truthy()),
        UnOp::Neg => match v {
            Val::Num(x) => Val::Num(-x),
            Val::Sure(_) => {
                return Err(Raise::new("operand_type", "`-` cannot negate a value with a confidence")
                    .hint("write `0 - value`, which keeps the confidence"));
            }
            other => {
                return Err(Raise::new(
                    "operand_type",
                    format!("`-` needs a number, not {}", other.described()),
                ));
            }
        },
        UnOp::Tilde => v.clone(),
        UnOp::Extract => Val::Num(v.certainty()),
        UnOp::Typeof => Val::str(v.type_name()),
        UnOp::Await => unreachable!("the machine awaits"),
    })
}

/// What a promise holds, which may be pending, and how sure the promise is; other values as they are.
pub(crate) fn awaited(v: &Val) -> Raised<(Val, Option<f64>)> {
    match v.peel() {
        (Val::Promise(promise), confidence) => match &**promise {
            Promise::Fulfilled(inner) => Ok((inner.clone(), confidence)),
            Promise::Rejected(reason) => Err(rejected(reason)),
        },
        _ => Ok((v.clone(), None)),
    }
}

pub(crate) fn rejected(reason: &Val) -> Box<Raise> {
    let reason = if reason.check_weight().is_ok() { crate::value::text(reason) } else { "…".into() };
    Raise::new("rejected", reason)
}

/// `value ~> confidence`
pub(super) fn attach(value: Val, confidence: &Val) -> Raised<Val> {
    Ok(value.sure(confidence_number(confidence)?))
}

fn confidence_number(v: &Val) -> Raised<f64> {
    let Val::Num(c) = v.plain() else {
        return Err(Raise::new(
            "confidence_type",
            format!("a confidence is a number, not {}", v.described()),
        ));
    };
    if !c.is_finite() {
        return Err(Raise::new("invalid_confidence", format!("a confidence must be finite, not {c}")));
    }
    Ok(c.clamp(0.0, 1.0))
}

/// A threshold, a number from 0 to 1.
pub(crate) fn threshold(v: &Val) -> Raised<f64> {
    let Val::Num(t) = v else {
        return Err(Raise::new(
            "threshold_type",
            format!("a threshold is a plain number, not {}", described(v)),
        ));
    };
    if !(0.0..=1.0).contains(t) {
        return Err(Raise::new("threshold_range", format!("a threshold lies between 0 and 1, not at {t}")));
    }
    Ok(*t)
}

/// `left ~?> right`, where right is a threshold, or a threshold and what to take instead.
pub(super) fn filter(left: &Val, right: &Val) -> Raised<Val> {
    let (limit, instead) = match right {
        Val::Arr(pair) if pair.items().len() == 2 => (&pair.items()[0], pair.items()[1].clone()),
        Val::Arr(_) | Val::Sure(_) => {
            return Err(Raise::new("threshold_type", "`~?>` needs a threshold, or `[threshold, default]`"));
        }
        _ => (right, Val::Null),
    };
    let limit = threshold(limit)?;
    let certainty = left.certainty();
    Ok(if certainty >= limit { left.clone().sure(certainty) } else { instead })
}

/// A value in words, its confidence included.
pub(super) fn described(v: &Val) -> &'static str {
    if v.confidence().is_some() { "a value with a confidence" } else { v.described() }
}
