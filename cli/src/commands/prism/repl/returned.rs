//! Entries that end with a `return` outside of any function, as they stay in the session's program.

use std::ops::Range;

use parallax_prism::{
    CompileOptions, Program,
    symbols::{Outline, SymbolKind},
};

/// The same statements, but what follows them is reached: a loop takes the place of the program that they leave, and
/// is left itself before its first turn ends. What they declare stays for later entries: functions stand in front,
/// where they are hoisted to anyway, and constants become variables, which a loop does not keep to itself.
pub(super) fn enclosed(entry: &str) -> String {
    let outline = Outline::of(entry);
    let mut inner = entry.to_owned();
    for span in &outline.lets {
        let constant = span.start as usize..span.start as usize + "const".len();
        if inner.get(constant.clone()) == Some("const") {
            inner.replace_range(constant, "     ");
        }
    }
    let mut functions = String::new();
    for place in declared(entry, &outline) {
        functions.push_str(&entry[place.clone()]);
        functions.push('\n');
        inner.replace_range(place.clone(), &" ".repeat(place.len()));
    }
    format!("{functions}while true {{ try {{\n{inner}\n}} finally {{ break }} }}")
}

/// Where the functions of the outermost scope are declared.
fn declared(entry: &str, outline: &Outline) -> Vec<Range<usize>> {
    let outermost = outline.symbols.iter().filter(|symbol| {
        symbol.kind == SymbolKind::Function
            && symbol.scope.start == 0
            && symbol.scope.end as usize == entry.len()
    });
    outermost.filter_map(|symbol| declaration(entry, symbol.span.start as usize)).collect()
}

/// The declaration of the function whose name begins here.
fn declaration(entry: &str, name: usize) -> Option<Range<usize>> {
    let before = entry.get(..name)?.trim_end();
    let before = before.strip_suffix("function").or_else(|| before.strip_suffix("fn"))?;
    let start = before.trim_end().strip_suffix("async").unwrap_or(before).len();
    // A declaration ends with its block, and nothing shorter is a program.
    let ends = entry[name..].match_indices('}').map(|(at, _)| name + at + 1);
    let whole = |end: &usize| Program::compile(&entry[start..*end], &CompileOptions::default()).is_ok();
    ends.into_iter().find(whole).map(|end| start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_stand_where_later_entries_find_them() {
        let entry = "const a = 1\nasync function f(n) {\n  if (n) { return \"}\" }\n}\nif (a) { fn g() { } return f(a) }";
        let kept = enclosed(entry);
        let (functions, rest) = kept.split_once("while true").unwrap();
        assert_eq!(functions, "async function f(n) {\n  if (n) { return \"}\" }\n}\n");
        assert!(rest.contains("      a = 1\n") && rest.contains("{ fn g() { } return f(a) }"), "{rest}");
        assert!(!rest.contains("function f"), "{rest}");
        assert!(Program::compile(&kept, &CompileOptions::default()).is_ok());
    }
}
