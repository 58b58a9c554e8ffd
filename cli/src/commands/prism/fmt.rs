//! `parallax prism fmt`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use parallax_prism::format::format;

use super::{print, source};
use crate::{
    args::PrismFmt,
    exit::{Exit, Result},
};

/// Formats files in place, or says which it would change. A file that does not parse stays as it is.
pub(super) fn run(options: &PrismFmt) -> Result {
    let (mut changed, mut broken, mut total) = (0, 0, 0);
    for path in &options.paths {
        if path.as_os_str() == "-" {
            total += 1;
            match one(path, options.check)? {
                Some(differs) => changed += usize::from(differs),
                None => broken += 1,
            }
            continue;
        }
        for file in files(path)? {
            total += 1;
            match one(&file, options.check)? {
                Some(true) => {
                    changed += 1;
                    let would = if options.check { "would be " } else { "" };
                    print(format_args!("{}: {would}formatted", file.display()));
                }
                Some(false) => {}
                None => broken += 1,
            }
        }
    }
    match (broken, changed) {
        (1.., _) => {
            Err(Exit::failed(format!("{broken} of {total} files do not parse, and stay as they are")))
        }
        (0, 1..) if options.check => {
            Err(Exit::failed(format!("{changed} of {total} files are not formatted")))
        }
        _ => Ok(()),
    }
}

/// Whether the file's layout differs; None if it cannot be read or does not parse, which is said on stderr.
fn one(file: &Path, check: bool) -> Result<Option<bool>> {
    let text = match source::load(file) {
        Ok(text) => text,
        Err(unreadable) => {
            writeln!(std::io::stderr(), "{}", unreadable.render("").trim_end()).ok();
            return Ok(None);
        }
    };
    let stdin = file.as_os_str() == "-";
    let name = if stdin { "standard input".to_owned() } else { file.display().to_string() };
    let formatted = match format(&text, &name) {
        Ok(formatted) => formatted,
        Err(wrong) => {
            writeln!(std::io::stderr(), "{}", source::report(&name, &wrong, |_| &text)).ok();
            return Ok(None);
        }
    };
    let differs = formatted != text;
    if stdin && !check {
        write!(std::io::stdout(), "{formatted}").ok();
        return Ok(Some(false));
    }
    if differs && !check {
        std::fs::write(file, formatted).map_err(|e| Exit::failed(format!("{name}: {e}")))?;
    }
    Ok(Some(differs))
}

/// The file itself, or all `.prism` files below a directory.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        // A file that was named wrongly is another matter than one that is wrong.
        path.metadata().map_err(|e| Exit::usage(format!("{}: {e}", path.display())))?;
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(directory) = open.pop() {
        let unreadable = |e: std::io::Error| Exit::usage(format!("{}: {e}", directory.display()));
        for entry in directory.read_dir().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            // A link may lead back up; what it leads to is formatted where it is.
            let kind = entry.file_type().map_err(unreadable)?;
            if kind.is_dir() && !hidden {
                open.push(entry.path());
            } else if kind.is_file() && entry.path().extension().is_some_and(|e| e == "prism") {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Exit::usage(format!("{} holds no .prism file", path.display())));
    }
    Ok(files)
}
