//! What the programs have in common: memory, threads, and how they end.

use std::process::ExitCode;

use tokio::runtime::Builder;

use crate::exit::Result;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Runs a program to its end, on these threads.
pub fn run(threads: &mut Builder, program: impl Future<Output = Result>) -> ExitCode {
    // Huge pages double what a node takes, and are zeroed whole; where they cannot be refused nothing is lost.
    #[cfg(target_os = "linux")]
    rustix::thread::disable_transparent_huge_pages(true).ok();
    let runtime = match threads.enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("parallax: no threads could be started: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprintln!("parallax: {exit}");
            ExitCode::from(exit.code as u8)
        }
    }
}
