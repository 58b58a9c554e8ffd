//! One module for each noun; each command asks the API and shows what it answers.

mod agent;
mod config;
#[cfg(feature = "demo")]
mod demo;
mod pattern;
mod prism;
mod run;
mod runs;
mod schedule;
mod status;
mod stop;

use crate::{
    args::{Args, Command},
    exit::{Exit, Result},
    start::Role,
};

/// Does what was typed.
///
/// # Errors
/// Why it was not done, with the exit code.
pub async fn run(args: Args) -> Result {
    match &args.command {
        Command::Start(start) => crate::start::run(&args, start).await,
        Command::ControlPlane(serve) => crate::start::serve(&args.place, serve, Role::CONTROL_PLANE).await,
        Command::DataPlane(serve) => crate::start::serve(&args.place, serve, Role::DATA_PLANE).await,
        Command::Stop => stop::run(&args).await,
        Command::Status { json } => status::run(&args, *json).await,
        Command::Run(run) => run::run(&args, run).await,
        Command::Agent(agent) => agent::run(&args, agent).await,
        Command::Pattern(pattern) => pattern::run(&args, pattern).await,
        Command::Runs(runs) => runs::run(&args, runs).await,
        Command::Schedule(schedule) => schedule::run(&args, schedule).await,
        Command::Prism(prism) => prism::run(&args, prism).await,
        Command::Config(config) => config::run(&args, config),
        #[cfg(feature = "demo")]
        Command::Demo { keep } => demo::run(&args, *keep).await,
        #[cfg(feature = "demo")]
        Command::DemoAgent { engine } => demo::agent(engine).await,
    }
}

/// The text of a file.
fn read(file: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|e| Exit::usage(format!("{}: {e}", file.display())))
}

/// Prints a line; that the reader of a pipe has gone is no error.
fn print(text: impl std::fmt::Display) {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").ok();
}
