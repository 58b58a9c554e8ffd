//! The formatter: one layout for a program, whatever its author's spacing was. It moves tokens and never changes one;
//! comments, empty lines between statements, and the places where an author broke a list stay.

mod doc;
mod layout;
mod marks;
mod pieces;

use crate::diagnostic::{Diagnostic, File, Kind};
use crate::lexer::{self, Names, Word};
use crate::{ast::Tree, parser};
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// A layout that would change in the next run is laid out again, at most so often.
const MOST_PASSES: usize = 8;

/// The program in its one layout. Formatting that again changes nothing, and both parse to the same tree.
///
/// `name` is the file's in diagnostics. A text for which no such layout is found is returned as it is.
///
/// # Errors
/// What keeps the source from being parsed.
pub fn format(source: &str, name: &str) -> Result<String, Vec<Diagnostic>> {
    Ok(settled(source, name)?.unwrap_or_else(|| source.to_string()))
}

/// None if no layout keeps the meaning and stays as it is.
fn settled(source: &str, name: &str) -> Result<Option<String>, Vec<Diagnostic>> {
    let before = parse(source, name)?;
    let meaning = shape(&before.tree);
    let mut text = layout(source, &before);
    for _ in 0..MOST_PASSES {
        let Ok(parsed) = parse(&text, name) else { break };
        let kept = shape(&parsed.tree) == meaning && comments(source, &before) == comments(&text, &parsed);
        if !kept {
            break;
        }
        let next = layout(&text, &parsed);
        if next == text {
            return Ok(Some(text));
        }
        text = next;
    }
    Ok(None)
}

struct Parsed {
    tokens: Vec<lexer::Token>,
    tree: Tree,
}

fn parse(source: &str, name: &str) -> Result<Parsed, Vec<Diagnostic>> {
    let files = [File { name: Arc::from(name), source: Arc::from(source) }];
    let wrong = |code, message: String, span, hint| {
        Diagnostic::new(code, Kind::Parse, message, span, &files).hint(hint)
    };
    if source.len() > (u32::MAX / 2) as usize {
        return Err(vec![wrong("syntax", "the file is too large".into(), crate::Span::default(), None)]);
    }
    let mut names = Names::default();
    names.intern(Word::Agents.text());
    let (tokens, errors) = lexer::lex(source, 0, &mut names);
    if !errors.is_empty() {
        let hint = |hint: Option<&str>| hint.map(str::to_string);
        return Err(errors.into_iter().map(|e| wrong("lex", e.message, e.span, hint(e.hint))).collect());
    }
    let (tree, errors) = parser::parse(&tokens, &names, &mut 0);
    if !errors.is_empty() {
        return Err(errors.into_iter().map(|e| wrong("syntax", e.message, e.span, e.hint)).collect());
    }
    Ok(Parsed { tokens, tree })
}

fn layout(source: &str, parsed: &Parsed) -> String {
    let pieces = pieces::pieces(source, &parsed.tokens);
    let marks = marks::Marks::of(&parsed.tree);
    doc::print(&layout::Layout { pieces: &pieces, marks: &marks }.file())
}

/// The tree in words, without the places that it stands at.
fn shape(tree: &Tree) -> String {
    let text = format!("{tree:?}");
    let mut shape = String::with_capacity(text.len() / 2);
    let mut rest = text.as_str();
    while let Some(at) = rest.find("Span { file: ") {
        shape.push_str(&rest[..at]);
        rest = rest[at..].split_once('}').map_or("", |(_, rest)| rest);
    }
    shape.push_str(rest);
    shape
}

/// What the comments say, in order, without the space around their lines.
fn comments(source: &str, parsed: &Parsed) -> Vec<String> {
    let mut comments = Vec::new();
    for piece in pieces::pieces(source, &parsed.tokens) {
        // Those after a piece were attached to it when the next one was met, so they come in order all the same.
        for comment in piece.leading.iter().chain(&piece.trailing) {
            comments.push(comment.text.lines().map(str::trim).collect::<Vec<_>>().join("\n"));
        }
    }
    comments
}
