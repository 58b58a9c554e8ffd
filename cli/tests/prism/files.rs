//! Commands that take many files, of which some are wrong.

use std::process::Command;

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::{file, run};

const PATTERN: &str = "/**\n * @name good\n * @version 1.0.0\n */\nagentResults.length ~> 0.5\n";

/// Three files, the second of which is not UTF-8 in its third line.
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    file(dir.path(), "in/a.prism", PATTERN);
    std::fs::write(dir.path().join("in/b.prism"), b"let a = 1\n\nlet b = \"\xff\"\n").unwrap();
    file(dir.path(), "in/c.prism", "/**\n * @version 1.0.0\n */\nlet  a=agentResults");
    dir
}

#[test]
fn a_file_that_is_no_text_keeps_no_other_from_being_validated() {
    let dir = folder();
    let validate = |rest: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parallax"));
        command.env_clear().args(["pattern", "validate"]).args(rest).current_dir(dir.path());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = validate(&["in"]);
    assert_eq!((code, err.as_str()), (1, "parallax: 2 of 3 files are wrong\n"));
    assert!(out.contains("in/a.prism: good is valid"), "{out}");
    assert!(out.contains("error[encoding]: this is not UTF-8\n --> in/b.prism:3:1\n"), "{out}");
    assert!(out.contains("@name is missing"), "{out}");

    let (code, out, _) = validate(&["in", "--json"]);
    let report: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 1);
    assert_eq!(report.as_array().unwrap().len(), 3, "{report}");
    assert_eq!((&report[1]["valid"], &report[1]["errors"][0]["line"]), (&Json::from(false), &Json::from(3)));

    assert_eq!(validate(&["in/b.prism"]).0, 1);
    assert_eq!(validate(&["in/none.prism"]).0, 2);
}

#[test]
fn a_file_that_is_no_text_keeps_no_other_from_being_formatted() {
    let dir = folder();
    let ended = run(dir.path(), &["fmt", "--check", "in"], "");
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("this is not UTF-8\n --> in/b.prism:3:1\n"), "{}", ended.err);
    assert!(ended.err.contains("1 of 3 files"), "{}", ended.err);
    assert_eq!(ended.out, "in/c.prism: would be formatted\n");
    assert_eq!(run(dir.path(), &["fmt", "in/none.prism"], "").code, 2);
    // Run alone, it is said in the same words.
    let ended = run(dir.path(), &["run", "in/b.prism"], "");
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("this is not UTF-8\n --> in/b.prism:3:1"), "{}", ended.err);
}
