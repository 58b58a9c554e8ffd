//! `parallax runs`.

use serde_json::Value as Json;

use super::{print, run::report};
use crate::{
    api::Api,
    args::{Args, Runs},
    exit::Result,
    render::{clean, confidence, pretty, short, table, value},
};

pub(super) async fn run(args: &Args, command: &Runs) -> Result {
    match command {
        Runs::List { limit, status, pattern, json } => {
            let mut path = format!("/api/executions?limit={limit}");
            for (key, given) in [("status", status), ("pattern", pattern)] {
                if let Some(given) = given {
                    path.push_str(&format!("&{key}={given}"));
                }
            }
            let answer = Api::connect(args).await?.get(&path).await?;
            print(if *json { pretty(&answer) } else { list(&answer) });
        }
        Runs::Show { id, json } => {
            let execution = Api::connect(args).await?.get(&format!("/api/executions/{id}")).await?;
            print(if *json { pretty(&execution) } else { show(&execution) });
        }
    }
    Ok(())
}

fn list(answer: &Json) -> String {
    let rows = answer["executions"].as_array().into_iter().flatten().map(|run| {
        let text = |field: &str| value(&run[field]);
        let took = run["duration"].as_u64().map_or_else(|| "–".to_owned(), |ms| format!("{ms} ms"));
        let calls = format!("{} ({} failed)", run["metrics"]["calls"], run["metrics"]["callsFailed"]);
        let error = short(run["error"].as_str().unwrap_or_default(), 50);
        vec![
            text("id"),
            text("patternName"),
            text("status"),
            confidence(&run["confidence"]),
            calls,
            took,
            error,
        ]
    });
    let header = ["ID", "PATTERN", "STATUS", "CONFIDENCE", "CALLS", "TOOK", "ERROR"];
    table(&header, rows.collect(), "there are no runs")
}

fn show(execution: &Json) -> String {
    let mut lines = vec![format!("input {}", execution["input"]), report(execution)];
    if let Some(error) = execution["error"].as_str() {
        lines.push(format!("{}: {}", value(&execution["errorCode"]), clean(error)));
    }
    let rows = execution["journal"].as_array().into_iter().flatten().map(|entry| {
        let mut rest = entry.clone();
        let fields = rest.as_object_mut().map(|fields| {
            ["position", "at", "type", "effect"].iter().for_each(|key| _ = fields.shift_remove(*key));
            fields.clone()
        });
        let detail = short(&Json::Object(fields.unwrap_or_default()).to_string(), 110);
        vec![
            value(&entry["position"]),
            value(&entry["at"]),
            value(&entry["type"]),
            value(&entry["effect"]),
            detail,
        ]
    });
    lines.push(String::new());
    lines.push(table(&["#", "AT", "EVENT", "EFFECT", "DETAIL"], rows.collect(), "the journal is empty"));
    lines.join("\n")
}
