//! What README.md shows is what is there, and what it tells to type works.
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    README.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

fn parallax(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parallax"));
    command.env_clear().env("PARALLAX_DATA_DIR", data_dir).stdin(Stdio::null());
    // Any free ports: the usual ones may be taken on this machine.
    for (key, addr) in [("CONTROL_PLANE__HTTP", "127.0.0.1:0"), ("CONTROL_PLANE__GRPC", "127.0.0.1:0")] {
        command.env(format!("PARALLAX_{key}"), addr);
    }
    for key in ["DATA_PLANE__GRPC", "DATA_PLANE__ADMIN"] {
        command.env(format!("PARALLAX_{key}"), "127.0.0.1:0");
    }
    command
}

fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Ends with the test, however that ends.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn agent(data_dir: &Path) -> Agent {
    let instance = std::fs::read_to_string(data_dir.join("instance.json")).unwrap();
    let instance: serde_json::Value = serde_json::from_str(&instance).unwrap();
    // The example that README starts, as the binary has it.
    let mut command = parallax(data_dir);
    command.args(["demo-agent", "whatlang"]).env("PARALLAX_REGISTRY", instance["grpc"].as_str().unwrap());
    Agent(command.spawn().unwrap())
}

#[test]
fn the_commands_work_as_they_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let shown = blocks("console").into_iter().find(|block| block.contains("parallax start -d")).unwrap();
    let (mut agents, mut last_run) = (Vec::new(), String::new());
    for line in shown.lines() {
        let line = line.split(" #").next().unwrap().trim();
        if line.starts_with("cargo run") {
            agents.push(agent(dir.path()));
            let patience = Instant::now() + Duration::from_secs(60);
            while !text(&parallax(dir.path()).args(["agent", "list"]).output().unwrap()).contains("language-")
            {
                assert!(Instant::now() < patience, "the agent has not registered");
                std::thread::yield_now();
            }
            continue;
        }
        let Some(typed) = line.strip_prefix("parallax ") else { continue };
        // The one argument in quotes is the input; everything else is words.
        let mut args: Vec<String> = Vec::new();
        for (i, part) in typed.split('\'').enumerate() {
            if i % 2 == 1 {
                args.push(part.to_owned())
            } else {
                args.extend(part.split_whitespace().map(str::to_owned))
            }
        }
        args.iter_mut().filter(|arg| *arg == "ID").for_each(|arg| last_run.clone_into(arg));
        let output = text(&parallax(dir.path()).args(&args).output().unwrap());
        match args[0].as_str() {
            "run" => {
                assert!(output.contains("\"decision\":\"fi\""), "{output}");
                last_run = output.lines().last().unwrap().split(' ').nth(1).unwrap().to_owned();
            }
            "runs" if args[1] == "replay" => assert!(output.starts_with("identical"), "{output}"),
            "runs" if args[1] == "timeline" => assert!(output.contains("DISPATCH"), "{output}"),
            "runs" => assert!(output.contains(&last_run), "{output}"),
            _ => {}
        }
    }
    assert!(
        !last_run.is_empty() && !dir.path().join("instance.json").exists(),
        "README stops what it starts"
    );
}

#[test]
fn the_pattern_is_valid_and_the_agent_is_the_example() {
    let dir = tempfile::tempdir().unwrap();
    for (number, pattern) in blocks("prism").into_iter().enumerate() {
        std::fs::write(dir.path().join(format!("{number}.prism")), pattern).unwrap();
    }
    text(&parallax(dir.path()).args(["pattern", "validate"]).arg(dir.path()).output().unwrap());
    let example = include_str!("../../sdk/rust/examples/first_agent.rs");
    assert!(blocks("rust").contains(&example), "README's agent is not sdk/rust/examples/first_agent.rs");
}

#[test]
fn the_settings_are_settings() {
    let dir = tempfile::tempdir().unwrap();
    let shown = blocks("toml");
    assert_eq!(shown.len(), 4);
    for settings in shown {
        let file = dir.path().join("parallax.toml");
        std::fs::write(&file, settings).unwrap();
        text(&parallax(dir.path()).args(["config", "show", "--config"]).arg(&file).output().unwrap());
    }
}

#[test]
fn the_exit_code_for_nobody_there_is_the_one_shown() {
    let dir = tempfile::tempdir().unwrap();
    let output = parallax(dir.path()).arg("status").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(README.contains("3 no control plane answers"));
}
