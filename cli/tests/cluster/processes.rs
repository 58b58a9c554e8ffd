//! A cluster of real processes, which can be killed and come back as they were.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parallax_runtime::env::{Env, System};
use parallax_security::{Authority, Expect, Files, Identity, Kind, Tls};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{program, world::soon};

/// A process of the cluster.
pub(crate) struct Process {
    /// Makes the command anew.
    command: Box<dyn Fn() -> Command + Send>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts a process whose errors go to a log, and waits until it says that it is ready.
    pub(crate) async fn start(log: PathBuf, command: impl Fn() -> Command + Send + 'static) -> Self {
        let mut process = Self { command: Box::new(command), log, child: None };
        process.run().await;
        process
    }

    /// Starts it, as it was.
    pub(crate) async fn run(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut child =
            (self.command)().stdout(Stdio::piped()).stderr(log).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        soon(async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.starts_with("ready") {
                    return;
                }
            }
            panic!("it ended: {}", std::fs::read_to_string(&self.log).unwrap());
        })
        .await;
        self.child = Some(child);
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        self.child.take().expect("it runs").kill().await.unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(Child::id).expect("it runs");
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Stands still, as if cut off from everybody, until it may go on.
    pub(crate) async fn freeze(&self, pause: Duration) {
        self.signal(Signal::STOP);
        tokio::time::sleep(pause).await;
        self.signal(Signal::CONT);
    }

    /// How it ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        soon(self.child.take().expect("it runs").wait()).await.unwrap()
    }

    /// What it has said so far, in all its lives.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// The cluster from outside.
pub(crate) struct Cluster {
    authority: Authority,
    dir: TempDir,
    /// HTTP ports of the control planes.
    pub(crate) http: Vec<u16>,
}

impl Cluster {
    pub(crate) fn new(http: &[u16]) -> Self {
        let dir = TempDir::new().unwrap();
        let authority = Authority::open(&dir.path().join("ca"), System.system_time()).unwrap();
        Self { authority, dir, http: http.to_vec() }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn files(&self, kind: Kind, id: &str) -> Files {
        let identity = Identity::new("default", kind, id).unwrap();
        self.authority.bundle(&identity, &self.dir.path().join("tls"), System.system_time()).unwrap()
    }

    pub(crate) fn tls(&self, kind: Kind, id: &str) -> Tls {
        Tls::load(self.files(kind, id), System.system_time()).unwrap()
    }

    /// A plane in a process and a directory of its own.
    pub(crate) async fn plane(&self, id: &str, kind: Kind, settings: &str) -> Process {
        let dir = self.dir.path().join(id);
        std::fs::create_dir_all(&dir).unwrap();
        let Files { ca, cert, key } = self.files(kind, id);
        let tls = format!("[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n");
        let config = dir.join("parallax.toml");
        std::fs::write(&config, format!("{settings}\n{tls}")).unwrap();
        // Both programs that can be a node are.
        let (program, role) = match (kind, id) {
            (Kind::ControlPlane, _) => (env!("CARGO_BIN_EXE_parallax"), Some("control-plane")),
            (_, "node-0") => (env!("CARGO_BIN_EXE_parallax"), Some("data-plane")),
            _ => (env!("CARGO_BIN_EXE_parallax-data-plane"), None),
        };
        let log = dir.join("log");
        let start = move || {
            let mut command = program::command(program, &dir);
            command.args(role).arg("--config").arg(&config);
            command
        };
        Process::start(log, start).await
    }

    /// One request to one replica; an error is a connection that broke, or what is not JSON.
    pub(crate) async fn ask(
        &self,
        replica: usize,
        method: Method,
        path: &str,
        body: Json,
    ) -> Result<Json, String> {
        let tls = self.tls(Kind::Operator, "someone");
        let addr = format!("127.0.0.1:{}", self.http[replica]);
        let asked = async {
            let stream = tls.connect(&System, &addr, &Expect::kind(Kind::ControlPlane)).await;
            let stream = TokioIo::new(stream.map_err(|e| e.to_string())?);
            let (mut requests, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
            let request = Request::builder().method(method).uri(format!("http://{addr}{path}"));
            let response = requests.send_request(request.body(Full::new(body)).unwrap()).await;
            let body = response.map_err(|e| e.to_string())?.into_body().collect().await;
            serde_json::from_slice(&body.map_err(|e| e.to_string())?.to_bytes()).map_err(|e| e.to_string())
        };
        tokio::time::timeout(Duration::from_secs(5), asked)
            .await
            .unwrap_or_else(|_| Err("no answer".to_owned()))
    }

    /// Until somebody answers as wanted.
    pub(crate) async fn insist<T>(
        &self,
        method: Method,
        path: &str,
        body: Json,
        wanted: impl Fn(&Json) -> Option<T>,
    ) -> T {
        soon(async {
            for replica in (0..self.http.len()).cycle() {
                if let Ok(answer) = self.ask(replica, method.clone(), path, body.clone()).await
                    && let Some(found) = wanted(&answer)
                {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            unreachable!("it cycles")
        })
        .await
    }
}

pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
