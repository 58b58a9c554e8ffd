//! `parallax stop`.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::print;
use crate::{
    args::Args,
    exit::{Code, Exit, Result},
    instance, settings,
};

/// How long the instance may take: more than the longest drain that anybody would set.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(args: &Args) -> Result {
    let dir = settings::data_dir(args)?;
    let Some(addresses) = instance::running(&dir) else {
        return Err(Exit::new(Code::NotRunning, format!("no instance runs in {}", dir.display())));
    };
    let pid = i32::try_from(addresses.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Exit::failed(format!("{} is no process id", addresses.pid)))?;
    kill_process(pid, Signal::TERM)
        .map_err(|e| Exit::failed(format!("process {} cannot be stopped: {e}", addresses.pid)))?;
    let gone = async {
        while instance::running(&dir).is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .map_err(|_| Exit::failed(format!("process {} still runs after {PATIENCE:?}", addresses.pid)))?;
    print(format_args!("stopped (process {})", addresses.pid));
    Ok(())
}
