//! What an editor asks about a document.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use parallax_control_plane::Pattern;
use parallax_prism::{
    CheckOptions, CompileOptions, Diagnostic, Profile, Severity, Span, check,
    format::format,
    symbols::{self, Entry, Outline, Symbol, SymbolKind},
};
use serde_json::{Value as Json, json};

use super::{super::source, Refusal, members, text::Text};

/// The kinds of completions, by the protocol's numbers.
pub(super) const METHOD: u8 = 2;
const FUNCTION: u8 = 3;
const VARIABLE: u8 = 6;
const MODULE: u8 = 9;
pub(super) const PROPERTY: u8 = 10;
const KEYWORD: u8 = 14;
const CONSTANT: u8 = 21;

/// All that is wrong with a document.
pub(super) fn diagnostics(text: &Text, uri: &str) -> Json {
    let path = path(uri);
    let modules = path.as_deref().and_then(|path| source::modules(&text.source, path));
    let name = path.map_or_else(|| uri.to_owned(), |path| path.display().to_string());
    let wrong = if is_pattern(&text.source) {
        // As `parallax pattern validate` tells it.
        let checked = Pattern::validate(&name, &text.source);
        checked.map_or_else(|invalid| invalid.diagnostics, |(_, found)| found)
    } else {
        let options = CompileOptions { name: name.clone(), profile: Profile::Pattern, modules };
        check(&text.source, &options, &CheckOptions::default())
    };
    wrong.iter().map(|diagnostic| shown(diagnostic, text, uri, &name)).collect()
}

/// A header makes a file a pattern, of which more is expected than of a module.
fn is_pattern(source: &str) -> bool {
    let begun = source.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}').strip_prefix("/**");
    let header = begun.map(|rest| rest.split_once("*/").map_or(rest, |(header, _)| header));
    header.is_some_and(|header| header.contains("@name"))
}

fn shown(diagnostic: &Diagnostic, text: &Text, uri: &str, name: &str) -> Json {
    let here = diagnostic.file == name;
    let mut message = diagnostic.message.clone();
    if !here {
        message = format!("{}:{}: {message}", diagnostic.file, diagnostic.line);
    }
    if let Some(hint) = &diagnostic.hint {
        message = format!("{message}\n{hint}");
    }
    let related = diagnostic.related.iter().filter(|related| related.file == name).map(|related| {
        let location = json!({"uri": uri, "range": text.range(related.span)});
        json!({"location": location, "message": related.message})
    });
    json!({
        "range": text.range(if here { diagnostic.span } else { Span::default() }),
        "severity": if diagnostic.severity == Severity::Error { 1 } else { 2 },
        "code": diagnostic.code,
        "source": "prism",
        "message": message,
        "relatedInformation": related.collect::<Json>(),
    })
}

/// The path of a `file:` URI.
fn path(uri: &str) -> Option<PathBuf> {
    let encoded = uri.strip_prefix("file://")?.as_bytes();
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Some(byte) = encoded.get(at) {
        let code = (*byte == b'%').then(|| encoded.get(at + 1..at + 3)).flatten();
        let code = code.and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                at += 3;
            }
            None => {
                bytes.push(*byte);
                at += 1;
            }
        }
    }
    let path = String::from_utf8(bytes).ok()?;
    Path::new(&path).is_absolute().then(|| PathBuf::from(path))
}

pub(super) fn hover(text: &Text, _: &str, offset: u32) -> Json {
    let (word, span, member) = text.word(offset);
    let outline = Outline::of(&text.source);
    let contents = match outline.at(offset) {
        Some(symbol) => described(symbol),
        None if member => match symbols::methods(Profile::Pattern).find(|entry| entry.name == word) {
            Some(entry) => explained(&entry),
            None => return Json::Null,
        },
        None => match symbols::entry(word, Profile::Pattern) {
            Some(entry) => explained(&entry),
            None => return Json::Null,
        },
    };
    json!({"contents": {"kind": "markdown", "value": contents}, "range": text.range(span)})
}

fn described(symbol: &Symbol) -> String {
    let kind = match symbol.kind {
        SymbolKind::Variable => "variable",
        SymbolKind::Constant => "constant",
        SymbolKind::Parameter => "parameter",
        SymbolKind::Function => "function",
        SymbolKind::Import => "imported name",
        SymbolKind::Agent => "agent",
    };
    format!("```prism\n{}\n```\n{kind} `{}`", symbol.detail, symbol.name)
}

fn explained(entry: &Entry) -> String {
    format!("```prism\n{}\n```\n{}", entry.signature, entry.summary).trim_end().to_owned()
}

pub(super) fn definition(text: &Text, uri: &str, offset: u32) -> Json {
    match Outline::of(&text.source).at(offset) {
        Some(symbol) => json!({"uri": uri, "range": text.range(symbol.span)}),
        None => Json::Null,
    }
}

pub(super) fn completion(text: &Text, _: &str, offset: u32) -> Json {
    let (_, span, member) = text.word(offset);
    if member {
        return members::completions(&text.source, span);
    }
    let outline = Outline::of(&text.source);
    let visible = outline.visible(offset);
    let hidden: BTreeSet<&str> = visible.iter().map(|symbol| symbol.name.as_str()).collect();
    let own = visible.iter().map(|symbol| {
        let kind = match symbol.kind {
            SymbolKind::Function => FUNCTION,
            SymbolKind::Constant => CONSTANT,
            SymbolKind::Import => MODULE,
            SymbolKind::Variable | SymbolKind::Parameter | SymbolKind::Agent => VARIABLE,
        };
        json!({"label": symbol.name, "kind": kind, "detail": symbol.detail, "sortText": format!("0{}", symbol.name)})
    });
    let library = symbols::entries(Profile::Pattern).filter(|entry| !hidden.contains(entry.name));
    let library = library
        .map(|entry| of_entry(&entry, if entry.signature.contains('(') { FUNCTION } else { VARIABLE }));
    let keywords = symbols::keywords().map(|word| json!({"label": word, "kind": KEYWORD}));
    own.chain(library).chain(keywords).collect()
}

pub(super) fn of_entry(entry: &Entry, kind: u8) -> Json {
    json!({"label": entry.name, "kind": kind, "detail": entry.signature, "documentation": entry.summary})
}

/// One edit that replaces everything, or none.
pub(super) fn formatting(text: &Text) -> std::result::Result<Json, Refusal> {
    match format(&text.source, "") {
        Ok(formatted) if formatted == text.source => Ok(json!([])),
        Ok(formatted) => {
            let all = Span { file: 0, start: 0, end: text.end() };
            Ok(json!([{"range": text.range(all), "newText": formatted}]))
        }
        // The diagnostics say already why.
        Err(_) => Ok(Json::Null),
    }
}
