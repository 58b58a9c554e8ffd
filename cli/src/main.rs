use std::process::ExitCode;

use clap::Parser;
use parallax_cli::{args::Args, commands};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    // Huge pages double what a node takes, and are zeroed whole; where they cannot be refused nothing is lost.
    #[cfg(target_os = "linux")]
    rustix::thread::disable_transparent_huge_pages(true).ok();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("parallax: no threads could be started: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprintln!("parallax: {exit}");
            ExitCode::from(exit.code as u8)
        }
    }
}
