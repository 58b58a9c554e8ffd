//! What the README shows runs, and the language engines tell languages.
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

#[path = "fixture/cluster.rs"]
#[allow(dead_code)]
mod cluster;
#[path = "../examples/language_agent/engines.rs"]
#[allow(dead_code)]
mod engines;
#[path = "../examples/language_agent/sentences.rs"]
mod sentences;

use std::{collections::BTreeSet, process::Stdio};

use cluster::{Cluster, Heard, about};
use engines::{Engine, Kind, LANGUAGES, LanguageAgent};
use parallax_sdk::{Agent, Json, Task, json};
use sentences::SENTENCES;
use tokio::process::Command;

mod first_agent {
    include!("../examples/first_agent.rs");

    pub(super) fn run() -> Result<(), Error> {
        main()
    }
}

#[test]
fn the_readme_shows_the_first_agent() {
    let readme = include_str!("../README.md");
    assert!(readme.contains(&format!("```rust\n{}```", include_str!("../examples/first_agent.rs"))));
}

const CHILD: &str = "PARALLAX_TEST_CHILD";

/// What the next test starts as a process of its own; nothing otherwise.
#[test]
fn first_agent_process() {
    if std::env::var_os(CHILD).is_some() {
        first_agent::run().unwrap();
    }
}

#[tokio::test]
async fn the_first_agent_runs_as_a_process() {
    let cluster = Cluster::new();
    let mut control = cluster.control_plane().await;
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "first_agent_process"])
        .env(CHILD, "1")
        .env("PARALLAX_REGISTRY", &control.addr)
        .env("PARALLAX_DATA_DIR", cluster.data_dir())
        .env_remove("PARALLAX_TLS_CA")
        .env_remove("PARALLAX_TLS")
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (agent, _) = control.registration().await;
    assert_eq!((agent.id.as_str(), &agent.capabilities[..]), ("greeter", &["greet".to_owned()][..]));

    let tls = cluster.tls(parallax_security::Kind::DataPlane);
    let mut greeter = cluster::call(tls, agent.endpoint).await;
    let result = greeter.analyze(about("Ada")).await.unwrap().into_inner();
    assert_eq!((result.value_json.as_str(), result.confidence), ("\"Hello, Ada!\"", 0.9));
    drop(greeter);

    let pid = rustix::process::Pid::from_raw(process.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(control.heard().await, Heard::Unregister("greeter".into()));
    assert!(process.wait().await.unwrap().success());
}

#[test]
fn each_engine_tells_clear_sentences() {
    for kind in Kind::ALL {
        let engine = Engine::open(kind).unwrap();
        for (text, code) in [
            ("It was a bright cold day in April, and the clocks were striking thirteen.", "en"),
            ("Jemand musste Josef K. verleumdet haben, denn ohne dass er etwas Böses getan hätte", "de"),
            ("Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.", "fi"),
            ("Всі люди народжуються вільними і рівними у своїй гідності та правах.", "uk"),
            ("国境の長いトンネルを抜けると雪国であった。", "ja"),
        ] {
            let (language, confidence) = engine.identify(text)[0];
            assert_eq!(language.code, code, "{kind}: {text}");
            assert!(confidence > 0.9, "{kind}: {text}: {confidence}");
        }
        for text in ["", "123", "!?", "안녕하세요"] {
            assert!(engine.identify(text).is_empty(), "{kind} invents a language for {text:?}");
        }
    }
}

#[tokio::test]
async fn the_language_agent_answers_codes_and_never_invents() {
    for kind in Kind::ALL {
        let agent = LanguageAgent::open(kind).unwrap();
        let ask = async |data: Json| agent.analyze(Task::new("identify the language", data)).await;
        let answer = ask(json!({ "text": "Todos os seres humanos nascem livres e iguais." })).await.unwrap();
        assert_eq!((&answer.value, answer.metadata["language"].as_str()), (&json!("pt"), "Portuguese"));
        let answer = ask(json!({ "text": "2026-11-20" })).await.unwrap();
        assert_eq!((answer.value, answer.confidence.unwrap().get()), (Json::Null, 0.0));
        for (data, problem) in [
            (json!({}), "data.text is missing"),
            (json!({ "text": " " }), "data.text is empty"),
            (json!({ "text": 7 }), "data.text is not a text but 7"),
        ] {
            let error = ask(data).await.unwrap_err().to_string();
            assert!(error.starts_with(problem), "{error}");
        }
    }
}

#[test]
fn the_sentences_are_fit_for_the_demo() {
    let languages: BTreeSet<_> = SENTENCES.iter().filter_map(|s| s.languages.first()).collect();
    assert!(SENTENCES.len() >= 20 && languages.len() >= 12);
    assert!(SENTENCES.iter().filter(|sentence| !sentence.hard.is_empty()).count() >= 10);
    for sentence in SENTENCES {
        for code in sentence.languages {
            assert!(LANGUAGES.iter().any(|language| language.code == *code), "{code}");
        }
        // Every sentence is told by some engine: what none can tell shows nothing.
        let right = Kind::ALL.into_iter().any(|kind| {
            let guesses = Engine::open(kind).unwrap().identify(sentence.text);
            guesses.first().is_some_and(|(language, _)| sentence.languages.contains(&language.code))
        });
        assert!(right, "{}", sentence.text);
    }
}
