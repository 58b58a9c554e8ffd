//! `parallax prism`: the language's own tools. None of them needs a control plane.

mod check;
mod fmt;
mod lsp;
mod perform;
mod repl;
mod run;
pub(super) mod source;

use super::print;
use crate::{
    args::{Args, Prism},
    exit::Result,
    settings,
};

/// In the data directory.
const HISTORY: &str = "prism_history";

pub(super) async fn run(args: &Args, command: &Prism) -> Result {
    match command {
        Prism::Test { file } => check::run(file),
        Prism::Run(options) => run::run(options).await,
        Prism::Repl => repl::run(&settings::data_dir(&args.place)?.join(HISTORY)).await,
        Prism::Fmt(options) => fmt::run(options),
        Prism::Lsp => lsp::run(),
    }
}
