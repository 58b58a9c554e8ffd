//! Reading source, and showing what is wrong with it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    io::Read,
    path::{Component, Path, PathBuf},
};

use parallax_prism::{CheckOptions, CompileOptions, Diagnostic, Program, Severity, check, symbols::Outline};

use crate::exit::{Exit, Result};

/// The code of a file that is not there, or not for us.
const UNREADABLE: &str = "unreadable";

/// The text of a file; `-` is standard input.
pub(super) fn read(file: &Path) -> Result<String> {
    load(file).map_err(|wrong| match wrong.code {
        UNREADABLE => Exit::usage(format!("{}: {}", wrong.file, wrong.message)),
        _ => Exit::failed(wrong.render("").trim_end()),
    })
}

/// The same, for those who go on with the next file.
///
/// # Errors
/// That it cannot be read, or in which line it is not UTF-8.
pub(in crate::commands) fn load(file: &Path) -> std::result::Result<String, Box<Diagnostic>> {
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes).map(drop)
    } else {
        std::fs::read(file).map(|read| bytes = read)
    };
    let name = file.display().to_string();
    read.map_err(|e| Box::new(Diagnostic::of_line(UNREADABLE, e.to_string(), &name, "", 1)))?;
    String::from_utf8(bytes).map_err(|e| {
        let before = String::from_utf8_lossy(&e.as_bytes()[..e.utf8_error().valid_up_to()]);
        let line = before.matches('\n').count() + 1;
        Box::new(Diagnostic::of_line("encoding", "this is not UTF-8", &name, &before, line))
    })
}

/// Checks and compiles. Fails with every error, as a person reads it; gives what is doubtful beside the program.
pub(super) fn compile(text: &str, options: &CompileOptions) -> Result<(Program, Vec<String>)> {
    let sources = |name: &str| {
        let module = options.modules.as_ref().and_then(|modules| modules.get(name));
        module.map_or(text, String::as_str)
    };
    let found = check(text, options, &CheckOptions::default());
    let (errors, warnings): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|found| found.severity == Severity::Error);
    let failed = |wrong: Vec<Diagnostic>| Exit::failed(report(&options.name, &wrong, sources));
    if !errors.is_empty() {
        return Err(failed(errors));
    }
    let program = Program::compile(text, options).map_err(failed)?;
    Ok((program, warnings.iter().map(|warning| warning.render(sources(&warning.file))).collect()))
}

/// All of these with their source lines, below a line that counts them.
pub(super) fn report<'a>(name: &str, wrong: &[Diagnostic], source: impl Fn(&str) -> &'a str) -> String {
    let errors = wrong.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
    let mut text = format!("{errors} error{} in {name}", if errors == 1 { "" } else { "s" });
    for diagnostic in wrong {
        write!(text, "\n{}", diagnostic.render(source(&diagnostic.file)).trim_end())
            .expect("a string takes all text");
    }
    text
}

/// More files than any program has, so that a chain of imports ends.
const MOST_MODULES: usize = 500;

/// The files that a program imports, directly or not, by absolute path. None if it has no file that paths could be
/// relative to. What cannot be found is left out, and reported when the program is compiled.
pub(super) fn modules(text: &str, file: &Path) -> Option<BTreeMap<String, String>> {
    if !file.is_absolute() {
        return None;
    }
    let mut modules = BTreeMap::new();
    let mut wanted: Vec<(PathBuf, String)> =
        Outline::of(text).imports.into_iter().map(|path| (file.to_owned(), path)).collect();
    while let Some((importer, path)) = wanted.pop() {
        let found = candidates(&importer, &path).into_iter().find_map(|candidate| {
            let name = candidate.to_str()?.to_owned();
            candidate
                .is_file()
                .then(|| std::fs::read_to_string(&candidate).ok())
                .flatten()
                .map(|text| (name, text))
        });
        let Some((name, text)) = found else { continue };
        if modules.len() < MOST_MODULES && !modules.contains_key(&name) {
            let imports = Outline::of(&text).imports;
            wanted.extend(imports.into_iter().map(|path| (PathBuf::from(&name), path)));
            modules.insert(name, text);
        }
    }
    Some(modules)
}

/// Where the language looks for a module, in its order.
fn candidates(importer: &Path, path: &str) -> Vec<PathBuf> {
    let folder = importer.parent().unwrap_or(Path::new("/"));
    let bases: Vec<PathBuf> = if path.starts_with("./") || path.starts_with("../") || path.starts_with('/') {
        vec![folder.join(path)]
    } else {
        folder.ancestors().map(|folder| folder.join("node_modules").join(path)).collect()
    };
    let endings = |base: PathBuf| {
        let base = normal(&base);
        let text = base.display().to_string();
        [base.clone(), PathBuf::from(format!("{text}.prism")), base.join("index.prism")]
    };
    bases.into_iter().flat_map(endings).collect()
}

/// The path without `.` and `..`, as the language writes it.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}
