//! Commands and their exit codes, by the real program against planes that run.

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::{agents::says, program::run, world::World};

#[tokio::test]
async fn without_a_control_plane_it_says_what_to_start() {
    let dir = TempDir::new().unwrap();
    for command in
        [&["status"][..], &["agent", "list"], &["pattern", "list"], &["runs", "list"], &["run", "voting"]]
    {
        let ended = run(dir.path(), command).await;
        assert_eq!(ended.code, 3, "{command:?}");
        assert!(ended.complaint().contains("`parallax start`"), "{}", ended.err);
    }
}

#[tokio::test]
async fn bad_input_is_named_with_its_place() {
    let dir = TempDir::new().unwrap();
    let ended = run(dir.path(), &["run", "voting", "-i", "{\"task\": }"]).await;
    assert_eq!(ended.code, 2);
    assert!(
        ended.complaint().contains("--input is not JSON") && ended.err.contains("line 1 column 10"),
        "{}",
        ended.err
    );
    let file = dir.path().join("input.json");
    std::fs::write(&file, "{\n  \"task\": \"tell\",\n}").unwrap();
    let ended = run(dir.path(), &["run", "voting", "-f", file.to_str().unwrap()]).await;
    assert_eq!(ended.code, 2);
    assert!(
        ended.complaint().contains(file.to_str().unwrap()) && ended.err.contains("line 3"),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn runs_are_made_and_shown() {
    let world = World::start().await;
    let dir = world.data_dir();
    let none = run(dir, &["run", "consensus-builder"]).await;
    assert_eq!(none.code, 1);
    assert!(none.err.contains("needs 1 agent(s), none is registered"), "{}", none.err);

    world.agent(says("solo", "de", 0.75).0).await;
    let made = run(dir, &["run", "ConsensusBuilder", "-i", "{\"task\": \"tell\"}", "--json"]).await;
    assert_eq!((made.code, made.err.as_str()), (0, ""));
    let execution: Json = serde_json::from_str(&made.out).unwrap();
    assert_eq!((&execution["result"]["decision"], &execution["confidence"]), (&json!("de"), &json!(0.75)));

    let made = run(dir, &["run", "consensus_builder", "--min-confidence", "0.75"]).await;
    assert_eq!(made.code, 0, "{}", made.err);
    assert!(made.out.contains("solo") && made.out.contains("~ 0.75"), "{}", made.out);
    let unsure = run(dir, &["run", "consensus-builder", "--min-confidence", "0.8"]).await;
    assert_eq!(unsure.code, 4);
    assert!(unsure.err.contains("confidence is 0.75, below 0.8"), "{}", unsure.err);
    assert!(unsure.out.contains("\"decision\":\"de\""), "the result is shown all the same: {}", unsure.out);

    let unknown = run(dir, &["run", "consensus-bilder"]).await;
    assert_eq!(unknown.code, 2);
    assert!(unknown.complaint().contains("did you mean consensus-builder?"), "{}", unknown.err);

    let listed = run(dir, &["runs", "list", "--pattern", "consensus-builder"]).await;
    let failed = run(dir, &["runs", "list", "--status", "failed"]).await;
    assert_eq!((listed.out.lines().count(), failed.out.lines().count()), (5, 2), "{}", listed.out);
    let id = execution["id"].as_str().unwrap();
    assert!(listed.out.contains(id));
    let shown = run(dir, &["runs", "show", id]).await;
    for told in ["{\"task\":\"tell\"}", "solo", "requested", "resolved", "completed"] {
        assert!(shown.out.contains(told), "{told}: {}", shown.out);
    }
    world.stop().await;
}

#[tokio::test]
async fn agents_and_patterns_are_listed() {
    let world = World::start().await;
    world.agent(says("solo", "de", 0.75).0).await;
    let agents = run(world.data_dir(), &["agent", "list"]).await;
    assert!(agents.out.contains("solo") && agents.out.contains("tell"), "{}", agents.out);
    let agents: Json =
        serde_json::from_str(&run(world.data_dir(), &["agent", "list", "--json"]).await.out).unwrap();
    assert_eq!((&agents["count"], &agents["byCapability"]["tell"]), (&json!(1), &json!(1)));
    let patterns = run(world.data_dir(), &["pattern", "list"]).await;
    for name in ["confidence-cascade", "consensus-builder", "voting"] {
        assert!(patterns.out.contains(name), "{}", patterns.out);
        let shown = run(world.data_dir(), &["pattern", "show", name]).await;
        assert!(shown.out.starts_with("/**") && shown.out.contains("@version"), "{}", shown.out);
    }
    assert_eq!(run(world.data_dir(), &["pattern", "show", "vote"]).await.code, 2);
    world.stop().await;
}

#[tokio::test]
async fn a_broken_pattern_is_shown_with_its_place() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, script: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, format!("/**\n * @name x\n * @version 1.0.0\n */\n{script}\n")).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (good, broken) = (
        write("good.prism", "agentResults.length ~> 0.5"),
        write("broken.prism", "let x = 1\nlet y = x +* 2"),
    );
    let validated = run(dir.path(), &["pattern", "validate", &good]).await;
    assert_eq!((validated.code, validated.out), (0, format!("{good}: x is valid\n")));

    let validated = run(dir.path(), &["pattern", "validate", &broken]).await;
    assert_eq!(validated.code, 1);
    let source =
        validated.out.lines().position(|line| line.contains("let y = x +* 2")).expect("its line is shown");
    let (line, marks) =
        (validated.out.lines().nth(source).unwrap(), validated.out.lines().nth(source + 1).unwrap());
    assert_eq!(marks.find('^'), line.find('*'), "the caret stands below the mistake:\n{}", validated.out);
    assert!(validated.out.contains(&format!("{broken}:6:")), "{}", validated.out);

    let all_wrong = dir.path().join("all_wrong.prism");
    let script = "/**\n * @name x y\n * @minAgent 2\n */\nlet x = = 1\nif (x > 1) { agentResult.length }\n[1].slicee(1)\n";
    std::fs::write(&all_wrong, script).unwrap();
    let validated = run(dir.path(), &["pattern", "validate", all_wrong.to_str().unwrap()]).await;
    assert_eq!(validated.code, 1);
    for (line, told) in [
        ("2 |  * @name x y", "error[header]: @name holds letters"),
        ("3 |  * @minAgent 2", "did you mean @minAgents?"),
        ("1 | /**", "@version is missing"),
        ("5 | let x = = 1", "error[syntax]"),
        ("6 | if (x > 1) { agentResult.length }", "did you mean `agentResults`?"),
        ("7 | [1].slicee(1)", "did you mean `slice`?"),
    ] {
        let shown = validated.out.lines().any(|l| l == line) && validated.out.contains(told);
        assert!(shown, "{line}: {told}\n{}", validated.out);
    }
    std::fs::remove_file(all_wrong).unwrap();

    let unknown = write("unknown.prism", "successfulResult.length ~> 0.5");
    let validated = run(dir.path(), &["pattern", "validate", &unknown]).await;
    assert_eq!(validated.code, 1, "it compiles, and is wrong all the same");
    assert!(validated.out.contains("did you mean `successfulResults`?"), "{}", validated.out);
    std::fs::remove_file(unknown).unwrap();

    let all = run(dir.path(), &["pattern", "validate", dir.path().to_str().unwrap()]).await;
    assert_eq!((all.code, all.err.as_str()), (1, "parallax: 1 of 2 files are wrong\n"));
}

#[tokio::test]
async fn the_demo_runs_to_its_end() {
    let dir = TempDir::new().unwrap();
    let demo = run(dir.path(), &["demo"]).await;
    assert_eq!(demo.code, 0, "{}", demo.err);
    let summary = demo.out.lines().next_back().unwrap();
    assert!(summary.contains("31 sentences") && summary.contains("3 agents"), "{summary}");
    assert_eq!(demo.out.lines().filter(|line| line.contains("  → ")).count(), 31);
    assert_eq!(demo.out.lines().filter(|line| line.trim_start().starts_with("language-")).count(), 3 * 31);
}
