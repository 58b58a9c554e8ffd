//! Two control planes, two data-plane nodes and five agents on real stores, while the planes are killed again and again.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use parallax_runtime::{
    env::{Env, Simulated, System},
    store::servers::{etcd::Etcd, postgres::Postgres},
};
use parallax_sdk::{Answer, Task, TlsOptions, agent};
use parallax_security::{Authority, Expect, Identity, Kind, Tls};
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};

use crate::{
    program::parallax,
    world::{join, soon},
};

const RUNS: usize = 100;
const AGENTS: usize = 5;
const KILLS: usize = 12;

/// Asks one after the other, then several at once, and sleeps between: a kill finds it in every state.
const PATTERN: &str = "/**
 * @name errands
 * @version 1.0.0
 * @description Asks each agent, then all.
 * @minAgents 5
 */
said = []
last = input.n
for a in agents {
    last = a.analyze(\"errand\", { after: last })
    said = said.push(last)
}
sleep(5)
all = parallel(agents.map(a => () => a.analyze(\"again\", { n: input.n })))
({ said: said, again: all.length, at: now() }) ~> 0.9
";

/// A process of the cluster, which can be killed and comes back as it was.
struct Process {
    role: &'static str,
    dir: PathBuf,
    child: Child,
}

impl Process {
    async fn start(role: &'static str, dir: PathBuf) -> Self {
        let child = Self::run(role, &dir).await;
        Self { role, dir, child }
    }

    async fn run(role: &str, dir: &Path) -> Child {
        let config = dir.join("parallax.toml");
        let mut command = parallax(dir, &[role, "--config", config.to_str().unwrap()]);
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        soon(async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.starts_with("ready") {
                    return;
                }
            }
            panic!("{role}: {}", std::fs::read_to_string(dir.join("log")).unwrap());
        })
        .await;
        child
    }

    async fn kill(&mut self) {
        self.child.kill().await.unwrap();
        self.child = Self::run(self.role, &self.dir).await;
    }
}

/// The cluster from outside.
struct Cluster {
    authority: Authority,
    dir: TempDir,
    http: [u16; 2],
}

impl Cluster {
    fn files(&self, kind: Kind, id: &str) -> parallax_security::Files {
        let identity = Identity::new("default", kind, id).unwrap();
        self.authority.bundle(&identity, &self.dir.path().join("tls"), System.system_time()).unwrap()
    }

    fn home(&self, id: &str, kind: Kind, settings: &str) -> PathBuf {
        let dir = self.dir.path().join(id);
        std::fs::create_dir_all(&dir).unwrap();
        let files = self.files(kind, id);
        let tls = format!("[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n", files.ca, files.cert, files.key);
        std::fs::write(dir.join("parallax.toml"), format!("{settings}\n{tls}")).unwrap();
        dir
    }

    /// One request to one replica; an error is a connection that broke, or what is not JSON.
    async fn ask(&self, replica: usize, method: Method, path: &str, body: Json) -> Result<Json, String> {
        let tls = Tls::load(self.files(Kind::Operator, "someone"), System.system_time()).unwrap();
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
    async fn insist<T>(
        &self,
        method: Method,
        path: &str,
        body: Json,
        wanted: impl Fn(&Json) -> Option<T>,
    ) -> T {
        soon(async {
            for replica in (0..2).cycle() {
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

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// When each effect was asked for, as the agents saw it.
type Calls = Arc<Mutex<HashMap<String, Vec<Timestamp>>>>;

#[tokio::test(flavor = "multi_thread")]
async fn no_run_is_lost_and_no_journaled_call_repeated() {
    let (Some(etcd), Some(postgres)) = (Etcd::start(1).await, Postgres::start()) else { return };
    let dir = TempDir::new().unwrap();
    let authority = Authority::open(&dir.path().join("ca"), System.system_time()).unwrap();
    let [http0, http1, grpc0, grpc1, node0, node1, admin0, admin1] = free_ports();
    let cluster = Cluster { authority, dir, http: [http0, http1] };
    let patterns = cluster.dir.path().join("patterns");
    std::fs::create_dir(&patterns).unwrap();
    std::fs::write(patterns.join("errands.prism"), PATTERN).unwrap();
    let mut processes = Vec::new();
    for (id, http, grpc) in [("plane-0", http0, grpc0), ("plane-1", http1, grpc1)] {
        let settings = format!(
            "[control_plane]\nhttp = \"127.0.0.1:{http}\"\ngrpc = \"127.0.0.1:{grpc}\"\npatterns = {patterns:?}\n\
             owner_ttl_seconds = 2\n[stores]\nregistry = {:?}\nruns = {:?}\n",
            etcd.url(),
            postgres.url("postgres"),
        );
        let home = cluster.home(id, Kind::ControlPlane, &settings);
        processes.push(Process::start("control-plane", home).await);
    }
    for (id, grpc, admin) in [("node-0", node0, admin0), ("node-1", node1, admin1)] {
        let settings = format!(
            "[data_plane]\ngrpc = \"127.0.0.1:{grpc}\"\nadmin = \"127.0.0.1:{admin}\"\n\
             control_plane = \"127.0.0.1:{grpc0}, 127.0.0.1:{grpc1}\"\n[stores]\nconfidence = \"memory:\"\n"
        );
        processes.push(Process::start("data-plane", cluster.home(id, Kind::DataPlane, &settings)).await);
    }
    let calls = Calls::default();
    let mut agents = Vec::new();
    for n in 0..AGENTS {
        let (id, calls) = (format!("agent-{n}"), calls.clone());
        let tls = TlsOptions::Files(cluster.files(Kind::Agent, &id));
        let answering = agent(&id).answer(move |task: Task| {
            calls.lock().entry(task.effect.unwrap_or_default()).or_default().push(Timestamp::now());
            async move {
                tokio::time::sleep(Duration::from_millis(15)).await;
                Answer::new(n, 0.9)
            }
        });
        agents.push(join(&format!("127.0.0.1:{}", [grpc0, grpc1][n % 2]), answering, tls).await);
    }
    let all = |answer: &Json| (answer["count"] == AGENTS).then_some(());
    cluster.insist(Method::GET, "/api/agents", Json::Null, all).await;

    let starting = async {
        let mut accepted = Vec::new();
        for n in 0..RUNS {
            let body = json!({"patternName": "errands", "input": {"n": n}});
            let id = |answer: &Json| answer["id"].as_str().map(str::to_owned);
            accepted.push(cluster.insist(Method::POST, "/api/executions", body, id).await);
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        accepted
    };
    let killing = async {
        let chance = Simulated::new(7);
        for _ in 0..KILLS {
            tokio::time::sleep(Duration::from_millis(150 + chance.random() % 250)).await;
            let victim = usize::try_from(chance.random() % 4).unwrap();
            processes[victim].kill().await;
        }
    };
    let (accepted, ()) = tokio::join!(starting, killing);

    // Whatever was begun, also where the answer was lost, ends; and there are no others.
    for status in ["pending", "running"] {
        let none = |answer: &Json| (answer["total"] == 0).then_some(());
        cluster.insist(Method::GET, &format!("/api/executions?status={status}"), Json::Null, none).await;
    }
    let calls = calls.lock().clone();
    let mut repeated = 0;
    for id in &accepted {
        let run = cluster
            .insist(Method::GET, &format!("/api/executions/{id}"), Json::Null, |run| {
                run["status"].is_string().then(|| run.clone())
            })
            .await;
        assert_eq!(run["status"], "completed", "{run}");
        assert_eq!(
            (&run["result"]["said"], &run["result"]["again"]),
            (&json!([0, 1, 2, 3, 4]), &json!(5)),
            "{run}"
        );
        let (mut requested, mut resolved) = (BTreeMap::new(), BTreeMap::new());
        let journal = run["journal"].as_array().unwrap();
        for (position, entry) in journal.iter().enumerate() {
            assert_eq!(entry["position"], position, "contiguous");
            let first = match entry["type"].as_str().unwrap() {
                "requested" => requested.insert(entry["effect"].as_u64().unwrap(), ()).is_none(),
                "resolved" => {
                    let at: Timestamp = entry["at"].as_str().unwrap().parse().unwrap();
                    resolved.insert(entry["effect"].as_u64().unwrap(), at).is_none()
                }
                "started" => position == 0,
                "completed" => position + 1 == journal.len(),
                "queued" | "admitted" => true,
                other => panic!("{other} in {run}"),
            };
            assert!(first, "once: {entry}");
        }
        for (effect, at) in resolved {
            let asked = calls.get(&format!("{id}/{effect}")).cloned().unwrap_or_default();
            assert!(
                asked.iter().all(|asked| *asked <= at),
                "effect {effect} was asked for after its outcome: {run}"
            );
            repeated += asked.len().saturating_sub(1);
        }
        let replayed = |answer: &Json| answer["identical"].as_bool();
        let path = format!("/api/executions/{id}/replay");
        assert!(cluster.insist(Method::GET, &path, Json::Null, replayed).await, "{id}");
    }
    println!("{KILLS} kills, {} runs, {repeated} calls in flight were asked again", accepted.len());
    for agent in agents {
        agent.shutdown();
    }
}
