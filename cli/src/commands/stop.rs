//! `parallax stop`.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::print;
use crate::{
    args::Args,
    exit::{Code, Exit, Result},
    instance,
    settings::{self, Settings},
};

/// How long an instance may take, beyond what its settings give it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(args: &Args) -> Result {
    let dir = settings::data_dir(&args.place)?;
    let running = instance::running(&dir);
    if running.is_empty() {
        return Err(Exit::new(Code::NotRunning, format!("no instance runs in {}", dir.display())));
    }
    // Whether it can be stopped does not hang on them.
    let settings = Settings::load(&args.place, &[]).map(|loaded| loaded.settings).ok();
    let allowed = settings.map_or(Duration::ZERO, |own| own.shutdown_delay().saturating_add(own.drain()));
    let patience = PATIENCE.saturating_add(allowed);
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
        tokio::time::timeout(patience, gone)
            .await
            .map_err(|_| Exit::failed(format!("process {pid} still runs after {patience:?}")))?;
        print(format_args!("stopped (process {pid})"));
    }
    Ok(())
}
