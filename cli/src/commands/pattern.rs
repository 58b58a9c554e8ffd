//! `parallax pattern`.

mod explain;

use std::path::{Path, PathBuf};

use parallax_control_plane::{Pattern as Parsed, kebab};
use parallax_prism::{CheckOptions, CompileOptions, Severity, check};
use serde_json::{Value as Json, json};

use super::print;
use crate::{
    api::Api,
    args::{Args, Pattern},
    exit::{Exit, Result},
    render::{pretty, short, table, value},
};

pub(super) async fn run(args: &Args, command: &Pattern) -> Result {
    match command {
        Pattern::List { json } => list(args, *json).await,
        Pattern::Show { name } => {
            let pattern = Api::connect(args).await?.get(&format!("/api/patterns/{name}")).await?;
            print(pattern["script"].as_str().unwrap_or_default());
            Ok(())
        }
        Pattern::Explain(options) => explain::run(args, options).await,
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
    Ok(())
}

fn validate(path: &Path, as_json: bool) -> Result {
    let files = files(path)?;
    let mut broken = 0;
    let mut report = Vec::new();
    for file in &files {
        let script =
            std::fs::read_to_string(file).map_err(|e| Exit::usage(format!("{}: {e}", file.display())))?;
        let name = file.display().to_string();
        let outcome = Parsed::parse(&name, &script);
        // What compiles may still be wrong: unknown names, unreachable arms, a result without confidence.
        let options = CompileOptions { name, ..CompileOptions::default() };
        let found = match &outcome {
            Ok(_) => check(&script, &options, &CheckOptions { pattern: true, ..CheckOptions::default() }),
            Err(_) => vec![],
        };
        let valid = outcome.is_ok() && found.iter().all(|found| found.severity != Severity::Error);
        broken += usize::from(!valid);
        if as_json {
            report.push(match &outcome {
                Ok(_) => json!({"file": file, "valid": valid, "errors": found}),
                Err(e) if e.diagnostics.is_empty() => {
                    json!({"file": file, "valid": false, "errors": [e.report]})
                }
                Err(e) => json!({"file": file, "valid": false, "errors": e.diagnostics}),
            });
        } else {
            found.iter().for_each(|found| print(found.render(&script)));
            match &outcome {
                Ok(pattern) if valid => {
                    print(format_args!("{}: {} is valid", file.display(), pattern.header.name));
                }
                Ok(pattern) => print(format_args!("{}: {} is wrong", file.display(), pattern.header.name)),
                Err(e) => print(e),
            }
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
        if file.extension().is_some_and(|extension| extension == "prism") {
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
