use std::process::ExitCode;

use clap::Parser;
use parallax_cli::{args::Args, commands, process};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    process::run(&mut Builder::new_multi_thread(), async { commands::run(Args::parse()).await })
}
