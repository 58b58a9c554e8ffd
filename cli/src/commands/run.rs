//! `parallax run`.

use std::{io::Read, path::Path};

use serde_json::{Value as Json, json};

use super::{print, read, runs::happening};
use crate::{
    api::Api,
    args::{Args, Run},
    exit::{Code, Exit, Result},
    render::{clean, confidence, micros, pretty, short, value},
};

pub(super) async fn run(args: &Args, run: &Run) -> Result {
    let input = input(run.input.as_deref(), run.file.as_deref())?;
    let mut options = json!({});
    if let Some(timeout) = run.timeout {
        options["timeout"] = json!(parallax_runtime::env::millis(timeout));
    }
    if run.cache_results {
        options["cacheResults"] = true.into();
    }
    let mut body = json!({"input": input, "options": options});
    let path = if run.pattern.ends_with(".prism") {
        body["script"] = read(Path::new(&run.pattern))?.into();
        "/api/executions/adhoc".to_owned()
    } else {
        format!("/api/patterns/{}/execute", run.pattern)
    };
    let mut api = Api::connect(args).await?;
    let execution = &if run.watch {
        body["options"]["stream"] = true.into();
        let mut id = String::new();
        let show = |event: &Json| {
            id = value(&event["executionId"]);
            print(if run.json { event.to_string() } else { happening(event) });
        };
        api.events(&path, Some(&body), show).await?;
        api.get(&format!("/api/executions/{id}")).await?
    } else {
        let mut answer = api.post(&path, &body).await?;
        if answer["status"] == "accepted" {
            return Err(unfinished(&answer["id"]));
        }
        answer["execution"].take()
    };
    print(match run.json {
        // A line like the events before it.
        true if run.watch => execution.to_string(),
        true => pretty(execution),
        false => report(execution),
    });
    if execution["status"] == "running" {
        return Err(unfinished(&execution["id"]));
    }
    if execution["status"] != "completed" {
        return Err(Exit::failed(format!(
            "run {} {}: {}",
            value(&execution["id"]),
            value(&execution["status"]),
            value(&execution["error"])
        )));
    }
    let sure = execution["confidence"].as_f64();
    match run.min_confidence {
        Some(wanted) if sure.is_none_or(|sure| sure < wanted) => {
            let found = sure.map_or_else(|| "none at all".to_owned(), |sure| format!("{sure:.2}"));
            Err(Exit::new(Code::Unsure, format!("the result's confidence is {found}, below {wanted}")))
        }
        _ => Ok(()),
    }
}

/// Of a run that nobody waited for to its end.
fn unfinished(id: &Json) -> Exit {
    let id = value(id);
    Exit::failed(format!(
        "the control plane is stopping; the run goes on at its next start: `parallax runs show {id}`"
    ))
}

/// As `--input` or `--file` gives it; null without either.
pub(super) fn input(text: Option<&str>, file: Option<&Path>) -> Result<Json> {
    let (text, origin) = match (text, file) {
        (Some(text), _) => (text.to_owned(), "--input".to_owned()),
        (None, None) => return Ok(Json::Null),
        (None, Some(file)) if file.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Exit::usage(format!("standard input: {e}")))?;
            (text, "standard input".to_owned())
        }
        (None, Some(file)) => (read(file)?, file.display().to_string()),
    };
    serde_json::from_str(&text).map_err(|e| Exit::usage(format!("{origin} is not JSON: {e}")))
}

/// What each agent said, then what was decided.
pub(super) fn report(execution: &Json) -> String {
    let mut lines = Vec::new();
    for call in execution["calls"].as_array().into_iter().flatten() {
        let took = micros(call["durationUs"].as_u64().unwrap_or(0));
        let said = match call["error"]["message"].as_str() {
            Some(message) => format!("failed ({}): {}", value(&call["error"]["code"]), clean(message)),
            None => format!("{} ~ {}", short(&value(&call["value"]), 100), confidence(&call["confidence"])),
        };
        lines.push(format!("  {:<24} {said}  [{took}]", value(&call["agentId"])));
    }
    if execution["status"] == "completed" {
        lines.push(format!("{} ~ {}", value(&execution["result"]), confidence(&execution["confidence"])));
    }
    lines.push(format!("run {} {}", value(&execution["id"]), value(&execution["status"])));
    lines.join("\n")
}
