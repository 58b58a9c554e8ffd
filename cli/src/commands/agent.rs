//! `parallax agent`.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::print;
use crate::{
    api::Api,
    args::{Agent, Args, Ask},
    exit::{Code, Exit, Result},
    render::{clean, confidence, micros, pretty, table, value},
};

pub(super) async fn run(args: &Args, command: &Agent) -> Result {
    match command {
        Agent::List { json } => {
            let answer = Api::connect(args).await?.get("/api/agents").await?;
            print(if *json { pretty(&answer) } else { list(&answer) });
        }
        Agent::Status { id, json } => {
            let answer = Api::connect(args).await?.get(&format!("/api/agents/{id}/health")).await?;
            print(if *json { pretty(&answer) } else { status(&answer) });
            if answer["status"] != "healthy" {
                return Err(Exit::failed(format!("agent {id} is {}", value(&answer["status"]))));
            }
        }
        Agent::Test { id, task, data, json } => {
            let data: Json = data
                .as_ref()
                .map_or(Ok(Json::Null), |data| serde_json::from_str(data))
                .map_err(|e| Exit::usage(format!("--data is not JSON: {e}")))?;
            let body = json!({"task": task, "data": data});
            let answer = Api::connect(args).await?.post(&format!("/api/agents/{id}/test"), &body).await?;
            let said = format!("{} ~ {}", value(&answer["result"]), confidence(&answer["confidence"]));
            let reasons = clean(answer["reasoning"].as_str().unwrap_or_default());
            print(if *json { pretty(&answer) } else { format!("{said}\n{reasons}").trim_end().to_owned() });
        }
        Agent::Ask(ask) => return self::ask(args, ask).await,
        Agent::Capabilities { json } => {
            let answer = Api::connect(args).await?.get("/api/agents/stats/capabilities").await?;
            print(if *json { pretty(&answer) } else { capabilities(&answer) });
        }
    }
    Ok(())
}

async fn ask(args: &Args, ask: &Ask) -> Result {
    let data: Json = ask
        .input
        .as_ref()
        .map_or(Ok(Json::Null), |input| serde_json::from_str(input))
        .map_err(|e| Exit::usage(format!("--input is not JSON: {e}")))?;
    let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let needs = [
        ("quorum", "--n", ask.n.is_some()),
        ("best-effort", "--by", ask.by.is_some()),
        ("ordered", "--confidence", ask.confidence.is_some()),
    ];
    for (mode, flag, given) in needs {
        match (ask.mode == mode, given) {
            (true, false) => return Err(Exit::usage(format!("--mode {mode} needs {flag}"))),
            (false, true) => return Err(Exit::usage(format!("{flag} goes with --mode {mode}"))),
            _ => {}
        }
    }
    let mut body = json!({"task": ask.task, "data": data, "agents": ask.agents, "mode": ask.mode});
    let fields = [
        ("capability", ask.capability.as_ref().map(|name| json!(name))),
        ("answers", ask.n.map(|n| json!(n))),
        ("by", ask.by.map(|by| json!(millis(by)))),
        ("confidence", ask.confidence.map(|confidence| json!(confidence))),
        ("maxAgents", ask.max_agents.map(|most| json!(most))),
        ("maxConcurrency", ask.max_concurrency.map(|most| json!(most))),
        ("timeout", ask.timeout.map(|timeout| json!(millis(timeout)))),
    ];
    for (field, given) in fields {
        if let Some(given) = given {
            body[field] = given;
        }
    }
    let answer = Api::connect(args).await?.post("/api/ask", &body).await?;
    print(if ask.json { pretty(&answer) } else { asked(&answer) });
    let ended = answer["ended"].as_str().unwrap_or_default();
    match ended {
        "all" | "deadline" if ask.mode == "ordered" => {
            Err(Exit::new(Code::Unsure, format!("nobody was as sure as that ({ended})")))
        }
        "impossible" => Err(Exit::failed(format!("{} answered, which is too few", answer["answered"]))),
        "deadline" if ask.mode != "best-effort" => Err(Exit::failed("time was up")),
        _ if answer["answered"] == 0 => Err(Exit::failed("nobody answered")),
        _ => Ok(()),
    }
}

fn asked(answer: &Json) -> String {
    let rows = answer["outcomes"].as_array().into_iter().flatten().map(|one| {
        let said = if one["message"].is_null() { &one["result"] } else { &one["message"] };
        let took = micros(one["durationUs"].as_u64().unwrap_or_default());
        vec![
            value(&one["agentId"]),
            value(&one["outcome"]),
            confidence(&one["confidence"]),
            took,
            value(said),
        ]
    });
    let table =
        table(&["AGENT", "OUTCOME", "CONFIDENCE", "TOOK", "SAID"], rows.collect(), "nobody was asked");
    let not_asked = match joined(&answer["notAsked"]) {
        none if none.is_empty() => none,
        some => format!("; not asked: {some}"),
    };
    let text = |field: &str| value(&answer[field]);
    format!(
        "{table}\n{}: {} asked, {} answered, {} failed, {} cancelled{not_asked}",
        text("ended"),
        text("asked"),
        text("answered"),
        text("failed"),
        text("cancelled")
    )
}

fn list(answer: &Json) -> String {
    let rows = answer["agents"].as_array().into_iter().flatten().map(|agent| {
        let text = |field: &str| value(&agent[field]);
        let capabilities = joined(&agent["capabilities"]);
        vec![text("id"), text("name"), text("endpoint"), capabilities, text("transport"), text("lastSeen")]
    });
    let header = ["ID", "NAME", "ENDPOINT", "CAPABILITIES", "TRANSPORT", "LAST SEEN"];
    table(&header, rows.collect(), "no agents are registered")
}

fn status(answer: &Json) -> String {
    let mut lines = vec![format!(
        "{}  {} (says the {})",
        value(&answer["agentId"]),
        value(&answer["status"]),
        value(&answer["source"])
    )];
    lines.extend(answer["message"].as_str().filter(|message| !message.is_empty()).map(clean));
    lines.push(format!("last seen {}, lease of {} s", value(&answer["lastSeen"]), answer["ttlSeconds"]));
    let nodes = answer["nodes"].as_array().into_iter().flatten();
    let header = ["NODE", "BREAKER", "IN FLIGHT", "LATENCY", "CALLS", "FAILED", "LEFT OUT"];
    let rows: Vec<_> = nodes.clone().map(seen).collect();
    lines.push(table(&header, rows, "no data-plane node has joined"));
    let patterns = nodes.flat_map(|node| {
        let breakers = node["patterns"].as_array().into_iter().flatten();
        breakers.map(|breaker| vec![value(&node["node"]), value(&breaker["pattern"]), phase(breaker)])
    });
    let patterns: Vec<_> = patterns.collect();
    if !patterns.is_empty() {
        lines.push(table(&["NODE", "PATTERN", "BREAKER"], patterns, ""));
    }
    lines.join("\n")
}

/// What one node has seen of an agent.
fn seen(node: &Json) -> Vec<String> {
    if let Some(error) = node["error"].as_str() {
        return vec![value(&node["node"]), format!("unknown: {}", clean(error))];
    }
    let millis = |field: &str| node[field].as_f64();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let latency = |ms: f64| micros((ms * 1e3) as u64);
    vec![
        value(&node["node"]),
        phase(&node["breaker"]),
        format!("{} of {}", node["inFlight"], node["limit"]),
        millis("latencyMs").map_or_else(|| value(&Json::Null), latency),
        node["calls"].to_string(),
        node["failures"].to_string(),
        millis("slowForMs").map_or_else(|| "no".to_owned(), |ms| format!("as slow, {:.0} s", ms / 1e3)),
    ]
}

fn phase(breaker: &Json) -> String {
    let phase = value(&breaker["phase"]).replace('_', "-");
    match (breaker["retryInMs"].as_f64(), breaker["consecutiveFailures"].as_u64()) {
        (Some(ms), _) => format!("{phase}, {:.1} s", ms / 1e3),
        (None, Some(failures @ 1..)) => format!("{phase}, {failures} failed"),
        _ => phase,
    }
}

fn capabilities(answer: &Json) -> String {
    let rows = answer["capabilities"].as_array().into_iter().flatten().map(|capability| {
        let text = |field: &str| value(&capability[field]);
        vec![text("name"), text("count"), joined(&capability["agents"])]
    });
    table(&["CAPABILITY", "AGENTS", "IDS"], rows.collect(), "no agents are registered")
}

fn joined(list: &Json) -> String {
    list.as_array().into_iter().flatten().map(value).collect::<Vec<_>>().join(", ")
}
