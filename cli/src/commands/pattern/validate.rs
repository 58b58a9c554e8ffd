//! `parallax pattern validate`.

use std::path::{Path, PathBuf};

use parallax_control_plane::Pattern as Parsed;
use serde_json::{Value as Json, json};

use super::super::{print, prism::source};
use crate::{
    exit::{Exit, Result},
    render::pretty,
};

/// Checks a file, or all of a directory, whatever is wrong with one of them.
pub(super) fn run(path: &Path, as_json: bool) -> Result {
    let files = files(path)?;
    let mut broken = 0;
    let mut report = Vec::new();
    for file in &files {
        let name = file.display().to_string();
        let script = match source::load(file) {
            Ok(script) => script,
            Err(unreadable) => {
                broken += 1;
                if as_json {
                    report.push(json!({"file": file, "valid": false, "errors": [unreadable]}));
                } else {
                    print(unreadable.render("").trim_end());
                }
                continue;
            }
        };
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
    let unreadable = |e: std::io::Error| Exit::usage(format!("{}: {e}", path.display()));
    if !path.is_dir() {
        // A file that was named wrongly is another matter than one that is wrong.
        path.metadata().map_err(unreadable)?;
        return Ok(vec![path.to_owned()]);
    }
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
