//! Reading source, and showing what is wrong with it.

use std::{fmt::Write, io::Read, path::Path};

use parallax_prism::{CompileOptions, Diagnostic, Program, Severity};

use crate::exit::{Exit, Result};

/// The text of a file; `-` is standard input.
pub(super) fn read(file: &Path) -> Result<String> {
    let unreadable = |e: std::io::Error| Exit::usage(format!("{}: {e}", file.display()));
    if file.as_os_str() != "-" {
        return std::fs::read_to_string(file).map_err(unreadable);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

/// Compiles, or fails with everything that is wrong, as a person reads it.
pub(super) fn compile(text: &str, options: &CompileOptions) -> Result<Program> {
    Program::compile(text, options).map_err(|wrong| {
        let sources = |name: &str| {
            let module = options.modules.as_ref().and_then(|modules| modules.get(name));
            module.map_or(text, String::as_str)
        };
        Exit::failed(report(&options.name, &wrong, sources))
    })
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
