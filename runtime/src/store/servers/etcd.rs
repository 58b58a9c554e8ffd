//! An etcd cluster whose members can be killed, stopped and started again.

use std::{
    fs::File,
    io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use parallax_security::Files;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{free_port, program};

const UP: Duration = Duration::from_secs(60);

/// A cluster on loopback.
pub struct Etcd {
    binary: PathBuf,
    members: Vec<Member>,
    tls: Option<Files>,
    dir: TempDir,
}

struct Member {
    client: u16,
    peer: u16,
    metrics: u16,
    running: Option<Child>,
}

impl Etcd {
    /// A cluster of so many members that is up; none when there is no etcd here and that is no failure.
    pub async fn start(members: usize) -> Option<Self> {
        Self::start_with(members, None).await
    }

    /// The same with TLS: these are the members' files, and the authority of the clients' certificates.
    pub async fn start_with(members: usize, tls: Option<Files>) -> Option<Self> {
        let binary = program("etcd")?;
        let member =
            || Member { client: free_port(), peer: free_port(), metrics: free_port(), running: None };
        let members: Vec<_> = std::iter::repeat_with(member).take(members).collect();
        let mut cluster = Self { binary, members, tls, dir: TempDir::new().expect("a temporary directory") };
        for index in 0..cluster.members.len() {
            cluster.run(index);
        }
        cluster.up().await;
        Some(cluster)
    }

    /// `HOST:PORT,…` of all members.
    #[must_use]
    pub fn addresses(&self) -> String {
        let members: Vec<_> = self.members.iter().map(|m| format!("127.0.0.1:{}", m.client)).collect();
        members.join(",")
    }

    /// The store's URL, in plaintext.
    #[must_use]
    pub fn url(&self) -> String {
        format!("etcd://{}", self.addresses())
    }

    /// Starts a member that was killed.
    pub fn run(&mut self, index: usize) {
        let name = |index: usize| format!("m{index}");
        let local = |scheme: &str, port: u16| format!("{scheme}://127.0.0.1:{port}");
        let peers = self.members.iter().enumerate();
        let peers: Vec<_> = peers.map(|(i, m)| format!("{}={}", name(i), local("http", m.peer))).collect();
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let member = &mut self.members[index];
        let log = File::options().create(true).append(true).open(self.dir.path().join(name(index) + ".log"));
        let mut command = Command::new(&self.binary);
        command
            .args(["--name", &name(index), "--initial-cluster", &peers.join(","), "--logger", "zap"])
            .arg("--data-dir")
            .arg(self.dir.path().join(name(index)))
            .args(["--listen-client-urls", &local(scheme, member.client)])
            .args(["--advertise-client-urls", &local(scheme, member.client)])
            .args(["--listen-peer-urls", &local("http", member.peer)])
            .args(["--initial-advertise-peer-urls", &local("http", member.peer)])
            .args(["--listen-metrics-urls", &local("http", member.metrics)])
            .stdout(Stdio::null())
            .stderr(log.expect("a log file"));
        if let Some(Files { ca, cert, key }) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(cert).arg("--key-file").arg(key);
        }
        member.running = Some(command.spawn().expect("etcd starts"));
    }

    /// Waits until every member that runs has a leader.
    ///
    /// # Panics
    /// When that takes a minute.
    pub async fn up(&self) {
        let all = async {
            for member in self.members.iter().filter(|member| member.running.is_some()) {
                while !member.get("/health").await.is_ok_and(|text| text.contains("\"health\":\"true\"")) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        tokio::time::timeout(UP, all).await.expect("etcd comes up");
    }

    /// The member that leads.
    ///
    /// # Panics
    /// When none does for a minute.
    pub async fn leader(&self) -> usize {
        let search = async {
            loop {
                for (index, member) in self.members.iter().enumerate() {
                    if member.get("/metrics").await.is_ok_and(|text| text.contains("etcd_server_is_leader 1"))
                    {
                        return index;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(UP, search).await.expect("a leader is found")
    }

    /// Forgets the history before a revision.
    ///
    /// # Panics
    /// When a member refuses.
    pub async fn compact(&self, revision: u64) {
        let body = format!("{{\"revision\":\"{revision}\",\"physical\":true}}");
        let length = body.len();
        let request = format!("POST /v3/kv/compaction HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}");
        let answer = ask(self.members[0].client, &request).await.expect("etcd answers");
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }

    /// `kill -9`.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.members[index].running.take() {
            child.kill().and_then(|()| child.wait()).expect("our own child");
        }
    }

    /// SIGSTOP: it is there, and silent.
    pub fn freeze(&self, index: usize) {
        self.signal(index, Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self, index: usize) {
        self.signal(index, Signal::CONT);
    }

    fn signal(&self, index: usize, signal: Signal) {
        let child = self.members[index].running.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("our own child");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            self.kill(index);
        }
    }
}

impl Member {
    /// What its port for metrics answers.
    async fn get(&self, path: &str) -> io::Result<String> {
        ask(self.metrics, &format!("GET {path} HTTP/1.0\r\n\r\n")).await
    }
}

/// An HTTP request in plaintext, and all of its answer.
async fn ask(port: u16, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
