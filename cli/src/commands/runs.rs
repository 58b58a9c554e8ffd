//! `parallax runs`.

use serde_json::{Value as Json, json};

use super::{print, run::report};
use crate::{
    api::Api,
    args::{Args, Runs},
    exit::{Exit, Result},
    render::{clean, confidence, micros, pretty, short, table, value},
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
        Runs::Watch { id, after, json } => {
            let after = after.as_ref().map(|after| format!("?after={after}")).unwrap_or_default();
            let path = format!("/api/executions/{id}/events/stream{after}");
            let show = |event: &Json| print(if *json { event.to_string() } else { happening(event) });
            Api::connect(args).await?.events(&path, None, show).await?;
        }
        Runs::Timeline { id, json } => {
            let answer = Api::connect(args).await?.get(&format!("/api/executions/{id}/timeline")).await?;
            print(if *json { pretty(&answer) } else { timeline(&answer) });
        }
        Runs::Cancel { id, reason } => {
            let body = reason.as_ref().map_or_else(|| json!({}), |reason| json!({"reason": reason}));
            Api::connect(args).await?.post(&format!("/api/executions/{id}/cancel"), &body).await?;
            print(format_args!("run {id} cancelled"));
        }
        Runs::Retry { id } => {
            let mut api = Api::connect(args).await?;
            let accepted = api.post(&format!("/api/executions/{id}/retry"), &json!({})).await?;
            print(value(&accepted["id"]));
        }
        Runs::Replay { id, from: Some(from), .. } => {
            let mut api = Api::connect(args).await?;
            let accepted = api.post(&format!("/api/executions/{id}/replay"), &json!({"from": from})).await?;
            print(value(&accepted["id"]));
        }
        Runs::Replay { id, from: None, json } => {
            let answer = Api::connect(args).await?.get(&format!("/api/executions/{id}/replay")).await?;
            let said = format!("{} effects answered from the journal, 0 agents called", answer["effects"]);
            return compared(&answer, *json, &said);
        }
        Runs::Diff { a, b, json } => {
            let answer = Api::connect(args).await?.get(&format!("/api/executions/{a}/diff/{b}")).await?;
            return compared(&answer, *json, "what they began with, asked for, were told and came to");
        }
    }
    Ok(())
}

/// Two runs, or one and its replay.
fn compared(answer: &Json, json: bool, what: &str) -> Result {
    let divergence = &answer["divergence"];
    if json {
        print(pretty(answer));
    } else if divergence.is_null() {
        print(format_args!("identical: {what}"));
    } else {
        let effect = divergence["effect"].as_u64().map(|effect| format!(" of effect {effect}"));
        let side = |side: &str| short(&divergence[side].to_string(), 400);
        print(format_args!("they part at the {}{}", value(&divergence["at"]), effect.unwrap_or_default()));
        print(format_args!("  a: {}\n  b: {}", side("a"), side("b")));
    }
    if divergence.is_null() { Ok(()) } else { Err(Exit::failed("they are not identical")) }
}

/// One event on a line.
pub(super) fn happening(event: &Json) -> String {
    let data = short(&event["data"].to_string(), 110);
    format!("{}  {:<16} {data}", value(&event["timestamp"]), value(&event["type"]))
}

fn timeline(answer: &Json) -> String {
    let time = |of: &Json, part: &str| micros(of[part].as_u64().unwrap_or(0));
    let rows = answer["effects"].as_array().into_iter().flatten().map(|effect| {
        let who = value(if effect["agentId"].is_null() { &effect["kind"] } else { &effect["agentId"] });
        let mut row = vec![value(&effect["effect"]), who, value(&effect["outcome"])];
        row.extend(
            ["startUs", "queueUs", "retryUs", "dispatchUs", "agentUs", "wallUs"]
                .map(|part| time(effect, part)),
        );
        row
    });
    let header = ["EFFECT", "WHO", "OUTCOME", "START", "QUEUE", "RETRY", "DISPATCH", "AGENT", "WALL"];
    let parts = table(&header, rows.collect(), "it asked for nothing");
    let [queued, effects, own, wall] =
        ["queuedUs", "effectsUs", "ownUs", "wallUs"].map(|part| time(answer, part));
    format!("{parts}\nqueued {queued} + waiting for effects {effects} + script and journal {own} = {wall}")
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
