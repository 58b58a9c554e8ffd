//! What a terminal shows.

use comfy_table::{Table, presets::NOTHING};
use serde_json::Value as Json;

/// A table with a header, or what there is to say when it has no rows.
#[must_use]
pub fn table(header: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.to_vec());
    table.add_rows(rows);
    let lines: Vec<_> = table.lines().map(|line| line.trim().to_owned()).collect();
    lines.join("\n")
}

/// Text as it is, anything else as compact JSON, absence as a dash.
#[must_use]
pub fn value(json: &Json) -> String {
    match json {
        Json::Null => "–".to_owned(),
        Json::String(text) => clean(text),
        other => other.to_string(),
    }
}

/// Text of others on one line, without what a terminal would obey: control characters, and those that turn the
/// direction of writing.
#[must_use]
pub fn clean(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| {
            if c == '\n' {
                ' '
            } else if obeyed(c) {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// A confidence with two decimals, or a dash.
#[must_use]
pub fn confidence(json: &Json) -> String {
    json.as_f64().map_or_else(|| "–".to_owned(), |confidence| format!("{confidence:.2}"))
}

/// The first `most` characters, and an ellipsis if there are more.
#[must_use]
pub fn short(text: &str, most: usize) -> String {
    let line = clean(text);
    if line.chars().count() <= most {
        return line;
    }
    line.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Microseconds, in the unit that suits them.
#[must_use]
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// JSON for people and programs.
#[must_use]
pub fn pretty(json: &Json) -> String {
    serde_json::to_string_pretty(json).expect("JSON is printable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_cannot_command_the_terminal() {
        let hostile = Json::from("a\u{1b}[31mb\u{7}\nroot\u{202e}");
        assert_eq!(value(&hostile), "a\u{fffd}[31mb\u{fffd} root\u{fffd}");
        assert_eq!(short("a\nb\u{1b}c", 4), "a b…");
    }
}
