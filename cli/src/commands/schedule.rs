//! `parallax schedule`.

use parallax_runtime::env::millis;
use serde_json::{Value as Json, json};

use super::{print, run::input};
use crate::{
    api::Api,
    args::{Args, NewSchedule, Schedule},
    exit::Result,
    render::{pretty, short, table, value},
};

pub(super) async fn run(args: &Args, command: &Schedule) -> Result {
    // What is typed is checked before anybody is asked.
    let body = if let Schedule::Create(new) = command { create(new)? } else { Json::Null };
    let mut api = Api::connect(args).await?;
    let path = |name: &str| format!("/api/schedules/{name}");
    match command {
        Schedule::List { json } => {
            let answer = api.get("/api/schedules").await?;
            print(if *json { pretty(&answer) } else { list(&answer) });
        }
        Schedule::Create(new) => {
            let answer = api.post("/api/schedules", &body).await?;
            print(format_args!("{} runs next at {}", new.name, value(&answer["nextTime"])));
        }
        Schedule::Show { name } => print(pretty(&api.get(&path(name)).await?)),
        Schedule::Pause { name } => {
            api.post(&format!("{}/pause", path(name)), &json!({})).await?;
            print(format_args!("{name} is paused"));
        }
        Schedule::Resume { name } => {
            let answer = api.post(&format!("{}/resume", path(name)), &json!({})).await?;
            print(format_args!("{name} runs next at {}", value(&answer["nextTime"])));
        }
        Schedule::Trigger { name } => {
            print(value(&api.post(&format!("{}/trigger", path(name)), &json!({})).await?["id"]));
        }
        Schedule::Delete { name } => {
            api.delete(&path(name)).await?;
            print(format_args!("{name} deleted"));
        }
    }
    Ok(())
}

fn create(new: &NewSchedule) -> Result<Json> {
    let mut body = json!({
        "name": new.name, "patternName": new.pattern, "paused": new.paused,
        "input": input(new.input.as_deref(), new.file.as_deref())?,
    });
    let given = [
        ("cron", json!(new.cron)),
        ("timeZone", json!(new.time_zone)),
        ("intervalSeconds", json!(new.every.map(|every| every.as_secs()))),
        ("missed", json!(new.missed)),
        ("overlap", json!(new.overlap)),
        ("options", new.timeout.map_or(Json::Null, |timeout| json!({"timeout": millis(timeout)}))),
    ];
    for (key, value) in given.into_iter().filter(|(_, value)| !value.is_null()) {
        body[key] = value;
    }
    Ok(body)
}

fn list(answer: &Json) -> String {
    let rows = answer["schedules"].as_array().into_iter().flatten().map(|schedule| {
        let text = |field: &str| value(&schedule[field]);
        let times = match schedule["intervalSeconds"].as_u64() {
            Some(seconds) => format!("every {seconds} s"),
            None => format!("{} ({})", text("cron"), text("timeZone")),
        };
        let next = if schedule["paused"] == true { "paused".to_owned() } else { text("nextTime") };
        let last = &schedule["lastRun"];
        let last =
            if last["error"].is_null() { value(&last["id"]) } else { short(&value(&last["error"]), 60) };
        vec![text("name"), text("patternName"), times, next, last]
    });
    table(&["NAME", "PATTERN", "TIMES", "NEXT", "LAST RUN"], rows.collect(), "there are no schedules")
}
