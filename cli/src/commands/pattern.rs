//! `parallax pattern`.

mod explain;

use std::path::{Path, PathBuf};

use parallax_control_plane::{Pattern as Parsed, kebab};
use serde_json::{Value as Json, json};

use super::{print, read};
use crate::{
    api::Api,
    args::{Args, Pattern},
    exit::{Exit, Result},
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
        Pattern::Validate { path, json } => validate(path, *json),
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

fn validate(path: &Path, as_json: bool) -> Result {
    let files = files(path)?;
    let mut broken = 0;
    let mut report = Vec::new();
    for file in &files {
        let (name, script) = (file.display().to_string(), read(file)?);
        let outcome = Parsed::validate(&name, &script);
        broken += usize::from(outcome.is_err());
        match outcome {
            Ok((_, found)) if as_json => report.push(json!({"file": file, "valid": true, "errors": found})),
            Err(e) if as_json => report.push(json!({"file": file, "valid": false, "errors": e.findings()})),
            Ok((pattern, found)) => {
                found.iter().for_each(|found| print(found.render(&script)));
                print(format_args!("{name}: {} is valid", pattern.header.name));
            }
            Err(e) => print(e),
        }
    }
    if as_json {
        print(pretty(&Json::Array(report)));
    }
    if broken == 0 {
        Ok(())
    } else {
        Err(Exit::failed(format!("{broken} of {} files are wrong", files.len())))
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |e: std::io::Error| Exit::usage(format!("{}: {e}", path.display()));
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.extension().is_some_and(|extension| extension == "prism") && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        Err(Exit::usage(format!("{} holds no .prism file", path.display())))
    } else {
        Ok(files)
    }
}
