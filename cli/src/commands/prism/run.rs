//! `parallax prism run`.

use std::io::Write;

use parallax_prism::{
    CompileOptions, Diagnostic, Host, Kind, Profile, Program, Severity, Span, Value, ValueKind,
};
use serde_json::Value as Json;

use super::{
    perform::{Performance, Trouble},
    print, source,
};
use crate::{
    args::PrismRun,
    exit::{Exit, Result},
    render::value as rendered,
};

/// Checks a program, runs it without agents, prints what it prints, and then its value with its confidence.
pub(super) async fn run(options: &PrismRun) -> Result {
    let text = source::read(&options.file)?;
    let data = match &options.input {
        None => Value::null(),
        Some(input) => {
            let json =
                serde_json::from_str(input).map_err(|e| Exit::usage(format!("--input is not JSON: {e}")))?;
            Value::from_json(&json)
        }
    };
    let profile = if options.strict { Profile::Strict } else { Profile::Pattern };
    let mut name = options.file.display().to_string();
    // Imports are resolved against a path that says where the file is.
    let absolute = std::path::absolute(&options.file).unwrap_or_else(|_| options.file.clone());
    let modules = source::modules(&text, &absolute);
    if modules.as_ref().is_some_and(|modules| !modules.is_empty()) {
        name = absolute.display().to_string();
    }
    let (program, warnings) = source::compile(&text, &CompileOptions { name, profile, modules })?;
    for warning in warnings {
        // What it prints is its own.
        writeln!(std::io::stderr(), "{}", warning.trim_end()).ok();
    }
    let run = program.start(Host { data, ..Host::default() });
    let (interrupt, timeout) = (run.interrupt(), options.timeout);
    let late = tokio::spawn(async move {
        match timeout {
            Some(bound) => tokio::time::sleep(bound).await,
            None => std::future::pending().await,
        }
        interrupt.interrupt();
    });
    let mut performance = Performance::new(run);
    let ended = tokio::select! {
        ended = performance.finish(|line| print(line)) => Some(ended),
        // While it sleeps; while it computes, the task above stops it.
        _ = late => None,
    };
    match ended {
        Some(Ok(value)) => {
            print(result(&value));
            Ok(())
        }
        Some(Err(trouble)) if !matches!(&trouble, Trouble::Fault(fault) if fault.code == "interrupted") => {
            Err(Exit::failed(explained(&trouble, &program)))
        }
        _ => {
            let bound = timeout.unwrap_or_default();
            let file = options.file.display();
            Err(Exit::failed(format!("{file} did not end within {bound:?} (--timeout)")))
        }
    }
}

/// `value ~ confidence`; a plain value has a dash in its place.
pub(super) fn result(value: &Value) -> String {
    let confidence = value.confidence().map_or_else(|| "–".to_owned(), |confidence| format!("{confidence}"));
    let plain = match value.kind() {
        ValueKind::Array | ValueKind::Object => nested(&value.plain()),
        _ => unlike_json(value).unwrap_or_else(|| rendered(&value.to_json())),
    };
    format!("{plain} ~ {confidence}")
}

/// As JSON, with the confidence behind every part that has one.
fn nested(value: &Value) -> String {
    let plain = match value.kind() {
        ValueKind::Array => {
            let items: Vec<_> = value.items().map(|item| nested(&item)).collect();
            format!("[{}]", items.join(","))
        }
        ValueKind::Object => {
            let entries =
                value.entries().map(|(key, inner)| format!("{}:{}", Json::from(key), nested(&inner)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        _ => unlike_json(value).unwrap_or_else(|| value.to_json().to_string()),
    };
    value.confidence().map_or(plain.clone(), |confidence| format!("{plain} ~ {confidence}"))
}

/// The language's own text of what JSON has no form for, and which would look like null.
fn unlike_json(value: &Value) -> Option<String> {
    let unlike = match value.kind() {
        ValueKind::Function | ValueKind::Promise => true,
        ValueKind::Number => !value.as_f64().is_some_and(f64::is_finite),
        _ => false,
    };
    unlike.then(|| value.plain().to_string())
}

/// What went wrong, with the line where it did.
pub(super) fn explained(trouble: &Trouble, program: &Program) -> String {
    match trouble {
        Trouble::Fault(fault) => failed(fault, program),
        Trouble::Beyond { at, what } => failed(&beyond(*at, what, program), program),
        // Of a replay, and there is none.
        Trouble::Changed => "the program changed".to_owned(),
    }
}

fn failed(fault: &Diagnostic, program: &Program) -> String {
    let source = program_source(program, &fault.file);
    format!("the program failed\n{}", fault.render(source).trim_end())
}

/// That a program asks for what only the planes can do.
pub(super) fn beyond(at: Span, what: &str, program: &Program) -> Diagnostic {
    let (name, source) = program.file(at.file).unwrap_or_default();
    let (line, column) = parallax_prism::line_column(source, at.start);
    Diagnostic {
        code: "needs_planes",
        kind: Kind::Runtime,
        severity: Severity::Error,
        message: format!("this would {what}, which cannot be done without the planes"),
        file: name.to_owned(),
        span: at,
        line,
        column,
        hint: Some("put the file into the pattern directory and use `parallax run`".to_owned()),
        related: Vec::new(),
    }
}

/// The text of the program's file of this name.
fn program_source<'a>(program: &'a Program, name: &str) -> &'a str {
    let mut files = (0..).map_while(|number| program.file(number));
    files.find(|(known, _)| *known == name).map_or("", |(_, source)| source)
}
