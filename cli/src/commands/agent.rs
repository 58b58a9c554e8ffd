//! `parallax agent`.

use serde_json::{Value as Json, json};

use super::print;
use crate::{
    api::Api,
    args::{Agent, Args},
    exit::{Exit, Result},
    render::{clean, confidence, pretty, table, value},
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
        Agent::Capabilities { json } => {
            let answer = Api::connect(args).await?.get("/api/agents/stats/capabilities").await?;
            print(if *json { pretty(&answer) } else { capabilities(&answer) });
        }
    }
    Ok(())
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
    lines.join("\n")
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
