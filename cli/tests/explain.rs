//! `parallax pattern explain`, by the real program.
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

use std::{path::Path, process::Command};

use serde_json::{Value as Json, json};
use tempfile::TempDir;

/// `parallax pattern explain …` with nothing of this process's environment: its exit code, stdout and stderr.
fn explain(dir: &Path, rest: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parallax"));
    command.env_clear().env("PARALLAX_CONTROL_PLANE__HTTP", "127.0.0.1:1").arg("--data-dir").arg(dir);
    let output = command.args(["pattern", "explain"]).args(rest).current_dir(dir).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const PANEL: &str = r#"/**
 * @name Panel
 * @version 2.1.0
 * @capabilities law, tax
 * @minAgents 2
 * @maxAgents 5
 * @input {
 *   "required": ["text"],
 *   "properties": { "text": { "type": "string", "description": "what is judged" }, "twice": { "default": false } }
 * }
 * Asks everybody, twice if told.
 */
let first = parallel(agents.map(a => a.analyze("judge", input.text)))
if (input.twice) {
  first = parallel(agents.map(a => a.analyze("judge \"again\"", first)))
}
first[0] ~> 0.5
"#;

#[test]
fn a_file_is_explained_without_a_control_plane() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("panel.prism"), PANEL).unwrap();
    let (code, out, err) = explain(dir.path(), &["panel.prism"]);
    assert_eq!(code, 0, "{err}");
    for line in [
        "Panel 2.1.0\nAsks everybody, twice if told.",
        "agents          2 to 5",
        "capabilities    law, tax",
        "calls, least    n (at least 2)",
        "calls, most     2n (at most 10)",
        "what is judged",
        "default false",
        "flowchart TD",
        "\"ask an agent: judge #34;again#34;\"",
    ] {
        assert!(out.contains(line), "{line} is missing in\n{out}");
    }
    let (_, chart, _) = explain(dir.path(), &["panel.prism", "--mermaid"]);
    assert!(chart.starts_with("flowchart TD\n") && out.ends_with(&chart), "{chart}");

    let (_, all, _) = explain(dir.path(), &["panel.prism", "--json"]);
    let all: Json = serde_json::from_str(&all).unwrap();
    assert_eq!(
        all["calls"],
        json!({"least": "n", "most": {"of": "2n"}, "figures": {"least": 2.0, "most": 10.0}})
    );
    assert_eq!(
        (&all["requirements"]["maxAgents"], &all["steps"][0]["step"]),
        (&json!(5), &json!("together"))
    );
    assert_eq!(all["mermaid"].as_str().unwrap(), chart);
}

#[test]
fn patterns_that_are_built_in_are_explained_by_name() {
    let dir = TempDir::new().unwrap();
    let (code, out, err) = explain(dir.path(), &["ConsensusBuilder"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("calls, most     n\n"), "{out}");
    // However many agents there are.
    let (_, out, _) = explain(dir.path(), &["uncertainty-router"]);
    assert!(out.contains("calls, most     max(1, n) + 1\n"), "{out}");
    let (_, out, _) = explain(dir.path(), &["debate"]);
    assert!(!out.contains("unbounded") && out.contains("input.rounds"), "its rounds have a cap: {out}");

    let (code, _, err) = explain(dir.path(), &["consensus-bilder"]);
    assert!(code == 2 && err.contains("did you mean consensus-builder?"), "{err}");
    assert!(err.contains("no control plane answers"), "{err}");
    assert_eq!(explain(dir.path(), &["missing.prism"]).0, 2);
}

#[test]
fn a_file_that_is_no_pattern_is_not_explained() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("broken.prism"), PANEL.replace("if (", "if ((")).unwrap();
    let (code, out, err) = explain(dir.path(), &["broken.prism"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("broken.prism is not a valid pattern") && err.contains("error[syntax]"), "{err}");
}
