//! `parallax pattern`.

mod explain;
mod validate;

use parallax_control_plane::kebab;
use serde_json::json;

use super::{print, read};
use crate::{
    api::Api,
    args::{Args, Pattern},
    exit::Result,
    render::{clean, pretty, short, table, value},
};

pub(super) async fn run(args: &Args, command: &Pattern) -> Result {
    match command {
        Pattern::List { json } => list(args, *json).await,
        Pattern::Show { name, version } => {
            let version = version.as_ref().map(|version| format!("?version={version}")).unwrap_or_default();
            let pattern = Api::connect(args).await?.get(&format!("/api/patterns/{name}{version}")).await?;
            print(pattern["script"].as_str().unwrap_or_default());
            Ok(())
        }
        Pattern::Explain(options) => explain::run(args, options).await,
        Pattern::Upload { file, overwrite } => {
            let body = json!({"filename": file, "content": read(file)?, "overwrite": overwrite});
            let answer = Api::connect(args).await?.post("/api/patterns/upload", &body).await?;
            print(value(&answer["message"]));
            Ok(())
        }
        Pattern::Versions { name, json } => versions(args, name, *json).await,
        Pattern::Rollback { name, version } => {
            let path = format!("/api/patterns/{name}/current");
            Api::connect(args).await?.put(&path, &json!({"version": version})).await?;
            print(format_args!("{}@{version} is the current version", kebab(name)));
            Ok(())
        }
        Pattern::Delete { name, version } => {
            let query = version.as_ref().map(|version| format!("?version={version}")).unwrap_or_default();
            Api::connect(args).await?.delete(&format!("/api/patterns/{name}{query}")).await?;
            let version = version.as_ref().map(|version| format!("@{version}")).unwrap_or_default();
            print(format_args!("{}{version} deleted", kebab(name)));
            Ok(())
        }
        Pattern::Validate { path, json } => validate::run(path, *json),
    }
}

async fn list(args: &Args, json: bool) -> Result {
    let answer = Api::connect(args).await?.get("/api/patterns").await?;
    if json {
        print(pretty(&answer));
        return Ok(());
    }
    let rows = answer["patterns"].as_array().into_iter().flatten().map(|pattern| {
        let needs = &pattern["requirements"];
        let name = kebab(pattern["name"].as_str().unwrap_or_default());
        vec![
            name,
            value(&pattern["version"]),
            value(&needs["minAgents"]),
            short(&value(&pattern["description"]), 90),
        ]
    });
    print(table(&["NAME", "VERSION", "AGENTS", "DESCRIPTION"], rows.collect(), "there are no patterns"));
    for problem in answer["problems"].as_array().into_iter().flatten() {
        print(format_args!("\nnot in force: {}", value(&problem["file"])));
        problem["report"].as_str().unwrap_or_default().lines().for_each(|line| print(clean(line)));
    }
    Ok(())
}

async fn versions(args: &Args, name: &str, json: bool) -> Result {
    let answer = Api::connect(args).await?.get(&format!("/api/patterns/{name}/versions")).await?;
    if json {
        print(pretty(&answer));
        return Ok(());
    }
    let rows = answer["versions"].as_array().into_iter().flatten().map(|version| {
        let current = if version["current"] == true { "current" } else { "" };
        let hash = short(&value(&version["hash"]), 13);
        let mut row = vec![value(&version["version"]), current.to_owned(), hash];
        row.extend(["uploadedAt", "uploadedBy", "origin"].map(|field| value(&version[field])));
        row
    });
    print(table(&["VERSION", "", "HASH", "UPLOADED", "BY", "ORIGIN"], rows.collect(), "there are none"));
    Ok(())
}
