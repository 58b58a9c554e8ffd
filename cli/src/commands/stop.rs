//! `parallax stop`.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::print;
use crate::{
    args::Args,
    exit::{Code, Exit, Result},
    instance, settings,
};

/// How long the instance may take: more than the longest delay and drain that anybody would set.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(args: &Args) -> Result {
    let dir = settings::data_dir(&args.place)?;
    let running = instance::running(&dir);
    if running.is_empty() {
        return Err(Exit::new(Code::NotRunning, format!("no instance runs in {}", dir.display())));
    }
    // The control plane first, while it has a data plane to end its runs with.
    for pid in running.iter().map(|addresses| addresses.pid) {
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let process = process.ok_or_else(|| Exit::failed(format!("{pid} is no process id")))?;
        kill_process(process, Signal::TERM)
            .map_err(|e| Exit::failed(format!("process {pid} cannot be stopped: {e}")))?;
        let gone = async {
            while instance::running(&dir).iter().any(|addresses| addresses.pid == pid) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .map_err(|_| Exit::failed(format!("process {pid} still runs after {PATIENCE:?}")))?;
        print(format_args!("stopped (process {pid})"));
    }
    Ok(())
}
