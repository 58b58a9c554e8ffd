//! `parallax prism`: the language's own tools. None of them needs a control plane.

mod check;
mod fmt;
mod perform;
mod run;
mod source;

use super::print;
use crate::{args::Prism, exit::Result};

pub(super) async fn run(command: &Prism) -> Result {
    match command {
        Prism::Test { file } => check::run(file),
        Prism::Run(options) => run::run(options).await,
        Prism::Fmt(options) => fmt::run(options),
    }
}
