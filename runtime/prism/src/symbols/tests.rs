use super::{Outline, SymbolKind, entries, entry, unfinished};
use crate::Profile;

/// The name at `^` in the line below the source, and the source text of its declaration's line.
fn declared(source: &str, offset: usize) -> Option<(String, SymbolKind, u32)> {
    Outline::of(source).at(offset as u32).map(|s| (s.name.clone(), s.kind, s.span.start))
}

#[test]
fn names_mean_their_innermost_declaration() {
    let source = "let a = 1\nfunction f(a) {\n  return a + b\n}\nb = 2\nf(a)";
    let inner = source.find("return a").unwrap() + 7;
    assert_eq!(declared(source, inner), Some(("a".into(), SymbolKind::Parameter, 21)));
    let b = source.find("+ b").unwrap() + 2;
    assert_eq!(
        declared(source, b),
        Some(("b".into(), SymbolKind::Variable, source.find("b = 2").unwrap() as u32))
    );
    let last = source.rfind("(a)").unwrap() + 1;
    assert_eq!(declared(source, last), Some(("a".into(), SymbolKind::Variable, 4)));
    let call = source.rfind("f(a)").unwrap();
    assert_eq!(declared(source, call), Some(("f".into(), SymbolKind::Function, 19)));
}

#[test]
fn broken_programs_have_an_outline_too() {
    let source = "let total = 1\nlet = \nlet other = total.";
    assert_eq!(declared(source, 4).map(|d| d.0), Some("total".into()));
    let outline = Outline::of(source);
    assert!(outline.visible(20).iter().any(|s| s.name == "total"));
    for end in 0..source.len() {
        Outline::of(&source[..end]);
    }
}

#[test]
fn what_is_documented_exists() {
    for entry in entries(Profile::Pattern) {
        assert!(!entry.signature.is_empty(), "{}", entry.name);
    }
    assert!(entry("successfulResults", Profile::Pattern).is_some());
    assert!(entry("majorityVote", Profile::Strict).is_none());
}

#[test]
fn open_brackets_are_unfinished() {
    for open in ["f(", "let a = {", "xs.map(x => {\n", "```a", "/* a", "\"${f("] {
        assert!(unfinished(open), "{open}");
    }
    for closed in ["f()", "let a = \"x", "}", "a = )", ""] {
        assert!(!unfinished(closed), "{closed}");
    }
}
