//! `parallax demo`: three agents with three different libraries, each a process of its own, and a pattern that
//! decides between them.

// The agents are the SDK's example, and stand there: the demo shows what a user would write.
#[path = "../../../sdk/rust/examples/language_agent/engines.rs"]
#[allow(dead_code, unreachable_pub)]
mod engines;
#[path = "../../../sdk/rust/examples/language_agent/sentences.rs"]
#[allow(dead_code, unreachable_pub)]
mod sentences;

use std::{collections::BTreeSet, path::Path, process::Stdio, time::Duration};

use serde_json::{Value as Json, json};
use tokio::process::{Child, Command};

use super::print;
use crate::{
    api::Api,
    args::{Args, Place, Serve},
    exit::{Exit, Result},
    render::{confidence, short, value},
    settings::Settings,
    start::{Planes, Role, Shutdown},
};
use engines::{Kind, LanguageAgent};
use sentences::{SENTENCES, Sentence};

/// How long the agents may take to register.
const PATIENCE: Duration = Duration::from_secs(60);
const PATTERN: &str = "consensus-builder";
const CASCADE: &str = "confidence-cascade";

pub(super) async fn run(args: &Args, keep: bool) -> Result {
    // What is kept can be looked at with the usual commands; what is not leaves no trace.
    let scratch = tempfile::tempdir().map_err(Exit::failed)?;
    let flags = if keep {
        Serve::default().flags()
    } else {
        let any = || Some("0".to_owned());
        let ports = Serve {
            http: any(),
            grpc: any(),
            data_plane_grpc: any(),
            data_plane_admin: any(),
            ..Default::default()
        };
        ports.flags()
    };
    let mut settings = Settings::load(&args.place, &flags)?.settings;
    if !keep {
        scratch.path().clone_into(&mut settings.data_dir);
    }
    if std::env::var_os("PARALLAX_TELEMETRY__FILTER").is_none() {
        "warn".clone_into(&mut settings.telemetry.filter);
    }
    let _telemetry = parallax_telemetry::init(settings.telemetry()).map_err(Exit::usage)?;
    let mut shutdown = Shutdown::catch()?;
    let data_dir = settings.data_dir.clone();
    let planes = Planes::start(settings, Role::BOTH).await?;
    let registry = planes.addresses.grpc.expect("both planes run").to_string();
    let agents = Kind::ALL.map(|kind| spawn(kind, &registry, &data_dir));
    let shown = async {
        let agents = agents.into_iter().collect::<Result<Vec<Child>>>()?;
        let url = format!("https://{}", planes.addresses.http.expect("both planes run"));
        let args = Args {
            place: Place { data_dir: Some(data_dir.clone()), config: None },
            api_url: Some(url),
            command: crate::args::Command::Stop,
        };
        let mut api = Api::connect(&args).await?;
        show(&mut api).await?;
        Ok::<_, Exit>(agents)
    };
    let outcome = tokio::select! {
        outcome = shown => outcome,
        () = tokio::time::sleep(Duration::from_secs(600)) => Err(Exit::failed("the demo was not done in ten minutes")),
    };
    if keep && outcome.is_ok() {
        print("the planes and the agents go on running; Ctrl-C or `parallax stop` ends them");
        shutdown.told().await;
    }
    // The agents leave first, while there is a registry to leave.
    let outcome = match outcome {
        Ok(agents) => end(agents).await,
        Err(exit) => Err(exit),
    };
    planes.stop().await;
    outcome
}

/// One of the demo's agents: what the SDK's example does.
pub(super) async fn agent(engine: &str) -> Result {
    let kind = engine.parse::<Kind>().map_err(Exit::usage)?;
    let agent = LanguageAgent::open(kind).map_err(|e| Exit::failed(e.to_string()))?;
    parallax_sdk::serve(agent).await.map_err(Exit::failed)
}

fn spawn(kind: Kind, registry: &str, data_dir: &Path) -> Result<Child> {
    let program = std::env::current_exe().map_err(Exit::failed)?;
    Command::new(program)
        .args(["demo-agent", &kind.to_string()])
        .env("PARALLAX_REGISTRY", registry)
        .env("PARALLAX_DATA_DIR", data_dir)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Exit::failed(format!("the agent {kind} cannot be started: {e}")))
}

async fn end(agents: Vec<Child>) -> Result {
    for agent in &agents {
        if let Some(pid) = agent.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)) {
            // One that has gone already is as good.
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        }
    }
    for mut agent in agents {
        let status = agent.wait().await.map_err(Exit::failed)?;
        if !status.success() {
            return Err(Exit::failed(format!("an agent ended with {status}")));
        }
    }
    Ok(())
}

async fn show(api: &mut Api) -> Result {
    let registered = async {
        while api.get("/api/agents").await?["count"].as_u64() != Some(Kind::ALL.len() as u64) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, registered)
        .await
        .map_err(|_| Exit::failed(format!("the agents have not registered within {PATIENCE:?}")))??;

    let (mut right, mut languages, mut confidences) = (0, BTreeSet::<&str>::new(), Vec::new());
    for sentence in SENTENCES {
        let execution = ask(api, PATTERN, question(sentence.text)).await?;
        let decided = &execution["result"]["decision"];
        let ok = is_right(sentence, &execution);
        right += usize::from(ok);
        languages.extend(sentence.languages.first());
        confidences.extend(execution["confidence"].as_f64());
        let hard = if sentence.hard.is_empty() { String::new() } else { format!("  ({})", sentence.hard) };
        print(format_args!("“{}”{hard}", short(sentence.text, 72)));
        for call in execution["calls"].as_array().into_iter().flatten() {
            let said = match call["error"]["message"].as_str() {
                Some(message) => format!("failed: {}", short(message, 100)),
                None => format!("{} ~ {}", value(&call["value"]), confidence(&call["confidence"])),
            };
            print(format_args!("    {:<22} {said}", value(&call["agentId"])));
        }
        let verdict = if ok { "" } else { "   ✗ it is " };
        let expected = if ok { String::new() } else { sentence.languages.join(" or ") };
        print(format_args!(
            "  → {} ~ {}{verdict}{expected}",
            value(decided),
            confidence(&execution["confidence"])
        ));
    }

    let (calls, cascade_right) = cascade(api).await?;
    let mean = confidences.iter().sum::<f64>() / confidences.len().max(1) as f64;
    let (texts, agents) = (SENTENCES.len(), Kind::ALL.len());
    print(format_args!(
        "\n{texts} sentences in {} languages, {agents} agents: consensus decided {right} rightly in {} calls, mean \
         confidence {mean:.2}; the cascade {cascade_right} in {calls}",
        languages.len(),
        texts * agents
    ));
    if confidences.len() < SENTENCES.len() {
        return Err(Exit::failed("some runs came to no confidence; see above"));
    }
    Ok(())
}

/// The same sentences by the pattern that asks the cheapest first and stops when it is sure: how many calls that
/// took, and how many of its decisions were right.
async fn cascade(api: &mut Api) -> Result<(u64, usize)> {
    let (mut calls, mut right) = (0, 0);
    for sentence in SENTENCES {
        let mut input = question(sentence.text);
        // Kind::ALL goes from the quickest to the one with the largest models.
        input["agents"] = Kind::ALL.iter().map(|kind| format!("language-{kind}")).collect();
        let execution = ask(api, CASCADE, input).await?;
        calls += execution["metrics"]["calls"].as_u64().unwrap_or(0);
        right += usize::from(is_right(sentence, &execution));
    }
    Ok((calls, right))
}

fn question(text: &str) -> Json {
    json!({"task": "identify the language", "data": {"text": text}})
}

fn is_right(sentence: &Sentence, execution: &Json) -> bool {
    execution["result"]["decision"].as_str().is_some_and(|code| sentence.languages.contains(&code))
}

async fn ask(api: &mut Api, pattern: &str, input: Json) -> Result<Json> {
    let answer = api.post(&format!("/api/patterns/{pattern}/execute"), &json!({"input": input})).await?;
    let execution = answer["execution"].clone();
    if execution["status"] == "completed" {
        return Ok(execution);
    }
    Err(Exit::failed(format!(
        "{input}: run {} {}: {}",
        value(&execution["id"]),
        value(&execution["status"]),
        value(&execution["error"])
    )))
}
