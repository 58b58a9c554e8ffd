//! `parallax data-plane` in a program of its own: an eighth of the size, for where nodes stand alone.

use std::process::ExitCode;

use clap::Parser;
use parallax_cli::{
    args::DataPlane,
    process,
    start::{self, Role},
};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    process::refuse_huge_pages();
    let DataPlane { place, serve } = DataPlane::parse();
    // Calls are served by the node's own workers; all else is little.
    process::run(&mut Builder::new_current_thread(), async {
        start::serve(&place, &serve, Role::DATA_PLANE).await
    })
}
