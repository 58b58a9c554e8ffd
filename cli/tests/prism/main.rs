//! `parallax prism`, by the real program.
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

mod files;
mod lsp;
mod repl;

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value as Json, json};
use tempfile::TempDir;

/// How a command ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

/// `parallax prism …`, with nothing of this process's environment.
fn prism(dir: &Path, rest: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parallax"));
    command.env_clear().arg("--data-dir").arg(dir).arg("prism").args(rest).current_dir(dir);
    command
}

fn run(dir: &Path, rest: &[&str], input: &str) -> Ended {
    let mut command = prism(dir, rest);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that does not read its input may be gone before it is written.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    let file = dir.join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn cases_are_run_and_counted() {
    let dir = TempDir::new().unwrap();
    let case = |id: &str, value: Json| {
        let expect = json!({"value": value, "confidence": 0.5});
        json!({"id": id, "name": "half", "area": "confidence", "program": "6 * 7 ~> 0.5", "expect": expect})
    };
    let good = file(dir.path(), "good.json", &json!([case("a", json!(42))]).to_string());
    let ended = run(dir.path(), &["test", &good], "");
    assert_eq!((ended.code, ended.out.as_str()), (0, "1 passed, 0 differ\n"), "{}", ended.err);

    let mixed = json!([case("a", json!(42)), case("b", json!(41))]).to_string();
    let ended = run(dir.path(), &["test", &file(dir.path(), "mixed.json", &mixed)], "");
    assert_eq!(ended.code, 1);
    // It differs in both profiles, and is one case.
    assert!(ended.out.contains("b half (strict)") && ended.out.contains("expected 41 @0.5"), "{}", ended.out);
    assert!(ended.out.ends_with("1 passed, 1 differ\n"), "{}", ended.out);

    let ended = run(dir.path(), &["test", &file(dir.path(), "no.json", "{")], "");
    assert_eq!((ended.code, ended.out.as_str()), (2, ""));
    assert!(ended.err.contains("is no list of conformance cases"), "{}", ended.err);
    assert_eq!(run(dir.path(), &["test", "missing.json"], "").code, 2);
}

#[test]
fn the_language_own_cases_pass() {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/../runtime/prism/tests/cases.json");
    let dir = TempDir::new().unwrap();
    let ended = run(dir.path(), &["test", cases], "");
    assert_eq!(ended.code, 0, "{}", ended.out);
}

#[test]
fn programs_run_without_the_planes() {
    let dir = TempDir::new().unwrap();
    let source = "print(\"hello\", input.who)\nawait sleep(1)\nlet chance = random()\n\
                  ({ ok: chance >= 0 && chance < 1 && now() > 1000000000000 }) ~> 0.75";
    let program = file(dir.path(), "a.prism", source);
    let ended = run(dir.path(), &["run", &program, "-i", "{\"who\": \"you\"}"], "");
    assert_eq!((ended.code, ended.out.as_str()), (0, "hello you\n{\"ok\":true} ~ 0.75\n"), "{}", ended.err);

    let ended = run(dir.path(), &["run", "-"], "1 + 1");
    assert_eq!((ended.code, ended.out.as_str()), (0, "2 ~ –\n"), "{}", ended.err);
    let parts = file(dir.path(), "parts.prism", "({a: [1 ~> 0.5, \"x\"], f: x => x, b: {} ~> 0.25}) ~> 0.75");
    let ended = run(dir.path(), &["run", &parts], "");
    let expected = "{\"a\":[1 ~ 0.5,\"x\"],\"f\":[Function: lambda],\"b\":{} ~ 0.25} ~ 0.75\n";
    assert_eq!((ended.code, ended.out.as_str()), (0, expected), "{}", ended.err);
    let ended = run(dir.path(), &["run", "-", "-i", "{"], "1");
    assert_eq!(ended.code, 2, "{}", ended.err);
}

#[test]
fn what_json_lacks_is_shown_as_the_language_writes_it() {
    let dir = TempDir::new().unwrap();
    for (source, shown) in [
        ("function twice(n) { return n * 2 }\ntwice", "[Function: twice] ~ –"),
        ("(x => x) ~> 0.5", "[Function: lambda] ~ 0.5"),
        ("print", "[Function: print] ~ –"),
        ("10 ** 400", "Infinity ~ –"),
        ("0 - 10 ** 400", "-Infinity ~ –"),
        ("(10 ** 400) - (10 ** 400)", "NaN ~ –"),
        ("[10 ** 400 ~> 0.5, null, max]", "[Infinity ~ 0.5,null,[Function: max]] ~ –"),
        ("null", "– ~ –"),
    ] {
        let ended = run(dir.path(), &["run", "-"], source);
        assert_eq!((ended.code, ended.out.as_str()), (0, format!("{shown}\n").as_str()), "{}", ended.err);
    }
}

#[test]
fn many_sleeps_overlap() {
    let dir = TempDir::new().unwrap();
    let source = "let many = parallel(range(20000).map(x => () => { await sleep(x % 3); x }))\n\
                  let first = race([() => { await sleep(3600000); 1 }, () => { await sleep(1); 2 }])\n\
                  [many.length, many[19999], first]";
    let ended = run(dir.path(), &["run", "-"], source);
    assert_eq!((ended.code, ended.out.as_str()), (0, "[20000,19999,2] ~ –\n"), "{}", ended.err);
}

#[test]
fn modules_are_found_beside_the_program() {
    let dir = TempDir::new().unwrap();
    file(
        dir.path(),
        "lib/half.prism",
        "import { two } from \"./two\"\nexport function half(x) { return x / two }",
    );
    file(dir.path(), "lib/two.prism", "export let two = 2");
    file(dir.path(), "main.prism", "import { half } from \"./lib/half\"\nhalf(9)");
    let ended = run(dir.path(), &["run", "main.prism"], "");
    assert_eq!((ended.code, ended.out.as_str()), (0, "4.5 ~ –\n"), "{}", ended.err);
}

#[test]
fn a_program_may_only_export() {
    let dir = TempDir::new().unwrap();
    for name in [file(dir.path(), "a.prism", "export let a = 1"), "-".to_owned()] {
        let ended = run(dir.path(), &["run", &name], "export let a = 1");
        assert_eq!((ended.code, ended.out.as_str()), (0, "0 ~ –\n"), "{}", ended.err);
    }
}

#[test]
fn a_program_is_stopped_at_its_bound() {
    let dir = TempDir::new().unwrap();
    for endless in ["while true {}", "await sleep(3600000)"] {
        let ended = run(dir.path(), &["run", "-", "--timeout", "50ms"], endless);
        assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{}", ended.err);
        assert!(ended.err.contains("did not end within 50ms (--timeout)"), "{}", ended.err);
    }
}

#[test]
fn what_only_the_planes_can_do_is_said() {
    let dir = TempDir::new().unwrap();
    for (source, what) in [
        (
            "let a = 1\nllm(\"q\")",
            "this would ask a language model, which cannot be done without the planes\n --> -:2:1\n",
        ),
        ("executePattern(\"p\")", "run pattern p"),
    ] {
        let ended = run(dir.path(), &["run", "-"], source);
        assert_eq!((ended.code, ended.out.as_str()), (1, ""));
        assert!(ended.err.contains(what) && ended.err.contains("`parallax run`"), "{}", ended.err);
        let line = source.lines().last().unwrap();
        assert!(ended.err.contains(&format!(" | {line}\n")), "{}", ended.err);
    }
}

#[test]
fn errors_are_shown_with_their_line() {
    let dir = TempDir::new().unwrap();
    let ended = run(dir.path(), &["run", "-"], "print(1)\nlet a = input.deep\na.er.still");
    assert_eq!((ended.code, ended.out.as_str()), (1, "1\n"));
    assert!(ended.err.contains("2 | let a = input.deep"), "{}", ended.err);
    let ended = run(dir.path(), &["run", "-"], "let = 1");
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert!(ended.err.contains("1 error in -") && ended.err.contains("let = 1"), "{}", ended.err);
}

#[test]
fn a_program_is_checked_before_it_runs() {
    let dir = TempDir::new().unwrap();
    let wrong = "print(\"before\")\nprint(conssensus([1]))\nabd + 1\n[1].lenght";
    let ended = run(dir.path(), &["run", "-"], wrong);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert!(ended.err.contains("3 errors in -"), "{}", ended.err);
    for told in ["did you mean `consensus`?", "2 | print(conss", "3 | abd + 1", "did you mean `length`?"] {
        assert!(ended.err.contains(told), "{told}: {}", ended.err);
    }
    // So are its modules.
    file(dir.path(), "half.prism", "export function half(x) { return x / twoo }");
    file(dir.path(), "main.prism", "import { half } from \"./half\"\nprint(1)\nhalf(9)");
    let ended = run(dir.path(), &["run", "main.prism"], "");
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert!(ended.err.contains("1 | export function half(x) { return x / twoo }"), "{}", ended.err);
    // What is doubtful is told, and runs.
    let ended = run(dir.path(), &["run", "-"], "print(1)\nreturn 2\nprint(3)");
    assert_eq!((ended.code, ended.out.as_str()), (0, "1\n2 ~ –\n"));
    assert!(ended.err.starts_with("warning[unreachable]"), "{}", ended.err);
}

#[test]
fn formatting_changes_layout_only() {
    let dir = TempDir::new().unwrap();
    let ugly = file(dir.path(), "in/ugly.prism", "let  a=1 // one\nf( a )");
    let nested = file(dir.path(), "in/deep/nice.prism", "let a = 1\n");
    let broken = "let = 1";
    let ended = run(dir.path(), &["fmt", "--check", "in"], "");
    assert_eq!(ended.code, 1);
    assert!(
        ended.out.contains("ugly.prism: would be formatted") && !ended.out.contains("nice"),
        "{}",
        ended.out
    );
    assert!(std::fs::read_to_string(&ugly).unwrap().starts_with("let  a"), "--check changes nothing");

    let ended = run(dir.path(), &["fmt", "in"], "");
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(std::fs::read_to_string(&ugly).unwrap(), "let a = 1 // one\nf(a)\n");
    assert_eq!(std::fs::read_to_string(&nested).unwrap(), "let a = 1\n");
    assert_eq!(run(dir.path(), &["fmt", "--check", "in"], "").code, 0);

    let file = file(dir.path(), "in/broken.prism", broken);
    let ended = run(dir.path(), &["fmt", "in"], "");
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("let = 1") && ended.err.contains("1 of 3 files"), "{}", ended.err);
    assert_eq!(std::fs::read_to_string(file).unwrap(), broken);

    let ended = run(dir.path(), &["fmt", "-"], "a+b");
    assert_eq!((ended.code, ended.out.as_str()), (0, "a + b\n"));
    let ended = run(dir.path(), &["fmt", "-"], "a+");
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
}

#[test]
fn the_grammar_is_json_and_knows_the_words() {
    let grammar: Json = serde_json::from_str(include_str!("../../editors/prism.tmLanguage.json")).unwrap();
    assert_eq!(grammar["scopeName"], "source.prism");
    let text = grammar.to_string();
    for word in parallax_prism::symbols::keywords() {
        assert!(text.contains(word), "{word}");
    }
    // Every rule that is included is there.
    for part in text.split("\"include\":\"#").skip(1) {
        let rule = part.split('"').next().unwrap();
        assert!(grammar["repository"][rule].is_object(), "{rule}");
    }
}
