//! Wrong programs and what a person reads about them: `errors/NAME.prism` and `errors/NAME.expected`.
//!
//! The checker speaks first; a program that it lets pass is run. `PRISM_BLESS=1` writes the expected files anew.

use parallax_prism::{CheckOptions, CompileOptions, Host, Program, Severity, Step, check};
use std::fmt::Write as _;
use std::path::Path;

fn told(name: &str, source: &str) -> String {
    let options = CompileOptions { name: name.into(), ..CompileOptions::default() };
    let checks = CheckOptions { known: vec!["budget".into()], pattern: source.starts_with("// pattern") };
    let found = check(source, &options, &checks);
    let mut out = String::new();
    for diagnostic in &found {
        let _ = writeln!(out, "{}", diagnostic.render(source));
    }
    if found.iter().all(|d| d.severity == Severity::Warning)
        && let Ok(program) = Program::compile(source, &options)
    {
        match program.start(Host::default()).step(Vec::new()) {
            Step::Failed(fault) => {
                let _ = writeln!(out, "{}", fault.render(source));
            }
            Step::Done(value) => {
                let _ = writeln!(out, "gives {value}");
            }
            Step::Need { .. } => out.push_str("waits\n"),
        }
    }
    out
}

#[test]
fn messages() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/errors");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .filter_map(|entry| entry.expect("readable").file_name().into_string().ok())
        .filter(|name| name.ends_with(".prism"))
        .collect();
    names.sort();
    assert!(names.len() > 20);
    let mut wrong = Vec::new();
    for name in names {
        let source = std::fs::read_to_string(folder.join(&name)).expect("readable");
        let path = folder.join(name.replace(".prism", ".expected"));
        let told = told(&name, &source);
        if std::env::var_os("PRISM_BLESS").is_some() {
            std::fs::write(&path, &told).expect("writable");
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        if told != expected {
            wrong.push(format!("{name}:\n{told}\ninstead of\n{expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
