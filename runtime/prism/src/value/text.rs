//! Values as text: numbers exactly as JavaScript prints them, the rest as the language defines.

use super::{Func, Val};
use std::fmt::Write as _;

/// `Number.prototype.toString` of ECMAScript.
pub(crate) fn number(out: &mut String, x: f64) {
    if x.is_nan() {
        out.push_str("NaN");
    } else if x.is_infinite() {
        out.push_str(if x > 0.0 { "Infinity" } else { "-Infinity" });
    } else if x == 0.0 {
        out.push('0');
    } else if x.fract() == 0.0 && x.abs() < 9_007_199_254_740_992.0 {
        let _ = write!(out, "{}", x as i64);
    } else {
        fraction(out, x);
    }
}

fn fraction(out: &mut String, x: f64) {
    // Rust's `{:e}` yields the shortest digits that read back as the same number, as ECMAScript asks.
    let shortest = format!("{x:e}");
    let (mantissa, exponent) = shortest.split_once('e').expect("`{:e}` always writes an exponent");
    let exponent: i32 = exponent.parse().expect("`{:e}` writes a decimal exponent");
    let mantissa = match mantissa.strip_prefix('-') {
        Some(rest) => {
            out.push('-');
            rest
        }
        None => mantissa,
    };
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    let point = exponent + 1;
    let len = digits.len() as i32;
    if len <= point && point <= 21 {
        out.push_str(&digits);
        out.extend(std::iter::repeat_n('0', (point - len) as usize));
    } else if 0 < point && point <= 21 {
        out.push_str(&digits[..point as usize]);
        out.push('.');
        out.push_str(&digits[point as usize..]);
    } else if -6 < point && point <= 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', -point as usize));
        out.push_str(&digits);
    } else {
        out.push_str(&digits[..1]);
        if len > 1 {
            out.push('.');
            out.push_str(&digits[1..]);
        }
        let _ = write!(out, "e{}{}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
}

/// `toFixed`: the nearest decimal, halves away from zero (Rust rounds exact halves to even).
pub(crate) fn fixed(x: f64, digits: usize) -> String {
    // Only multiples of 1/8 can lie exactly half-way between two values of one or two decimals.
    let scale = 10f64.powi(digits as i32);
    if (x * 8.0).fract() == 0.0 && (x * scale).fract().abs() == 0.5 {
        return format!("{:.digits$}", (x * scale + 0.5 * x.signum()).trunc() / scale);
    }
    format!("{x:.digits$}")
}

/// The text form of a value: what interpolation and `+` use.
pub(crate) fn display(out: &mut String, value: &Val) {
    match value {
        Val::Null => out.push_str("null"),
        Val::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Val::Num(x) => number(out, *x),
        Val::Str(s) => out.push_str(s),
        Val::Arr(array) => {
            out.push('[');
            for (i, item) in array.items().iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                display(out, item);
            }
            out.push(']');
        }
        Val::Obj(object) => {
            if object.is_empty() {
                return out.push_str("{}");
            }
            out.push_str("{ ");
            for (i, (key, item)) in object.entries().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                out.push_str(key);
                out.push_str(": ");
                display(out, item);
            }
            out.push_str(" }");
        }
        Val::Func(f) => function(out, f),
        Val::Native(native) => {
            let _ = write!(out, "[Function: {}]", native.name());
        }
        Val::Sure(sure) => {
            display(out, &sure.value);
            let _ = write!(out, " (~{}%)", fixed(percent(sure.confidence), 1));
        }
        Val::Promise(_) => out.push_str("[Promise]"),
        Val::Pending(slot) => match slot.value() {
            Some(Ok(v)) => display(out, v),
            _ => out.push_str("[pending]"),
        },
        Val::Unset | Val::Uninit | Val::Lazy(_) | Val::Cell(_) | Val::Error(_) => out.push_str("null"),
    }
}

fn function(out: &mut String, f: &Func) {
    let _ = write!(out, "[Function: {}]", f.name());
}

/// Hundredfold without the noise of binary fractions, so that 0.655 prints as 65.5 and a half rounds up.
fn percent(confidence: f64) -> f64 {
    let hundredfold = confidence * 100.0;
    let clean = (hundredfold * 1e9).round() / 1e9;
    if (clean - hundredfold).abs() < 1e-9 { clean } else { hundredfold }
}

/// What `print` shows: like the text form, but an outer confidence reads `value ~> 0.85`.
pub(crate) fn printed(out: &mut String, value: &Val) {
    match value {
        Val::Sure(sure) => {
            display(out, &sure.value);
            let _ = write!(out, " ~> {}", fixed(sure.confidence, 2));
        }
        plain => display(out, plain),
    }
}

pub(crate) fn text(value: &Val) -> String {
    let mut out = String::new();
    display(&mut out, value);
    out
}

/// The number at the front of a text, as `parseFloat` reads it.
pub(crate) fn leading_number(s: &str) -> Option<f64> {
    let s = s.trim_start();
    let unsigned = s.strip_prefix(['-', '+']).unwrap_or(s);
    let sign = s.len() - unsigned.len();
    if unsigned.starts_with("Infinity") {
        return Some(if s.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    let bytes = unsigned.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let whole = digits(0);
    let mut end = whole;
    if bytes.get(end) == Some(&b'.') {
        let decimals = digits(end + 1);
        if whole + decimals == 0 {
            return None;
        }
        end += 1 + decimals;
    } else if whole == 0 {
        return None;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'-' | b'+')));
        let exponent = digits((end + 1 + sign).min(bytes.len()));
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    s[..sign + end].parse().ok()
}
