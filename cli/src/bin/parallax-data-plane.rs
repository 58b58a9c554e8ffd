//! `parallax data-plane` in a program of its own: a tenth of the size, for where nodes stand alone.

use std::process::ExitCode;

use clap::Parser;
use parallax_cli::{
    args::DataPlane,
    process,
    start::{self, Role},
};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    // Calls are served by the node's own workers; all else is little.
    process::run(&mut Builder::new_current_thread(), async {
        let DataPlane { place, serve } = DataPlane::parse();
        start::serve(&place, &serve, Role::DATA_PLANE).await
    })
}
