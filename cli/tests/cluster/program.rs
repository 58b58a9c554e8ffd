//! The program as users start it.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use parallax_cli::instance::{self, Addresses};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use crate::world::soon;

/// `parallax --data-dir DIR …`, with nothing of this process's environment.
pub(crate) fn parallax(data_dir: &Path, rest: &[&str]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_parallax"), data_dir);
    command.args(rest);
    command
}

pub(crate) fn command(program: &str, data_dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().arg("--data-dir").arg(data_dir).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) async fn ended(mut command: Command) -> Ended {
    let Output { status, stdout, stderr } = soon(command.output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: status.code().expect("no signal ended it"), out: text(stdout), err: text(stderr) }
}

pub(crate) async fn run(data_dir: &Path, rest: &[&str]) -> Ended {
    ended(parallax(data_dir, rest)).await
}

impl Ended {
    /// What it complained of, in one line.
    pub(crate) fn complaint(&self) -> &str {
        assert_eq!(self.out, "", "a failure prints no result");
        let line = self.err.strip_suffix('\n').unwrap_or_default();
        assert!(line.starts_with("parallax: ") && !line.contains('\n'), "one line, not {:?}", self.err);
        line
    }
}

/// The flags of a start that takes no port from anybody.
pub(crate) const ANY_PORTS: [&str; 8] =
    ["--http", "0", "--grpc", "0", "--data-plane-grpc", "0", "--data-plane-admin", "0"];

/// An instance that runs on its own; it dies with its handle.
pub(crate) struct Instance {
    pub(crate) addresses: Addresses,
}

impl Instance {
    pub(crate) async fn start(data_dir: &Path) -> Self {
        let started = run(data_dir, &[&["start", "-d"], &ANY_PORTS[..]].concat()).await;
        assert_eq!(started.code, 0, "{}", started.err);
        let addresses = instance::running(data_dir).pop().expect("it said that it is ready");
        assert!(started.out.contains(&format!("ready (process {})", addresses.pid)), "{}", started.out);
        Self { addresses }
    }

    pub(crate) fn grpc(&self) -> String {
        self.addresses.grpc.unwrap().to_string()
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) async fn kill(self, data_dir: &Path) {
        drop(self);
        gone(data_dir).await;
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let pid = i32::try_from(self.addresses.pid).ok().and_then(Pid::from_raw).unwrap();
        // One that was stopped has gone already.
        kill_process(pid, Signal::KILL).ok();
    }
}

/// Waits until no instance runs in a directory.
pub(crate) async fn gone(data_dir: &Path) {
    soon(async {
        while !instance::running(data_dir).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
