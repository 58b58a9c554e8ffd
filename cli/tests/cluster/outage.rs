//! Callers under load, while agents, nodes and the control plane are killed and cut off one after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Method;
use parallax_sdk::{Client, Task, TlsOptions, To};
use parallax_security::Kind;
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use tokio::task::JoinSet;

use crate::{
    chaos::start_agent,
    processes::{Cluster, Process, free_ports},
    world::soon,
};

const AGENTS: usize = 4;
const CALLERS: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn callers_hardly_notice_that_somebody_is_killed_or_cut_off() {
    let [http, grpc, node0, node1, admin0, admin1] = free_ports();
    let cluster = Cluster::new(&[http]);
    let settings = format!("[control_plane]\nhttp = \"127.0.0.1:{http}\"\ngrpc = \"127.0.0.1:{grpc}\"\n");
    let mut plane = cluster.plane("plane", Kind::ControlPlane, &settings).await;
    let mut nodes = Vec::new();
    for (id, node, admin) in [("node-0", node0, admin0), ("node-1", node1, admin1)] {
        let settings = format!(
            "[data_plane]\ngrpc = \"127.0.0.1:{node}\"\nadmin = \"127.0.0.1:{admin}\"\n\
             control_plane = \"127.0.0.1:{grpc}\"\n[stores]\nconfidence = \"memory:\"\n"
        );
        nodes.push(cluster.plane(id, Kind::DataPlane, &settings).await);
    }
    let mut agents = Vec::new();
    for n in 0..AGENTS {
        agents.push(start_agent(&cluster, n, grpc).await);
    }
    let all = |answer: &Json| (answer["count"] == AGENTS).then_some(());
    cluster.insist(Method::GET, "/api/agents", Json::Null, all).await;

    let tls = TlsOptions::Files(cluster.files(Kind::Operator, "caller"));
    let both = format!("127.0.0.1:{node0}, 127.0.0.1:{node1}");
    let client = Client::new(format!("127.0.0.1:{grpc}"), both, &tls).unwrap();
    let load = Load::begin(Arc::new(client)).await;

    // What they are told meanwhile is the same: whoever is left answers.
    kill(&mut agents[0], &load).await;
    kill(&mut nodes[0], &load).await;
    kill(&mut plane, &load).await;
    for frozen in [&agents[1], &nodes[1], &plane] {
        frozen.freeze(Duration::from_secs(2)).await;
        load.goes_on(200).await;
    }
    // An agent and a node at once.
    let (agent, node) = (&mut agents[2], &mut nodes[1]);
    tokio::join!(kill(agent, &load), kill(node, &load));

    let (asked, failures) = load.end().await;
    assert!(asked >= 2000, "{asked} calls");
    let allowed = asked / 1000;
    assert!(failures.len() <= allowed, "{} of {asked} failed: {:#?}", failures.len(), &failures[..]);
}

/// Kills a process, lets callers go on without it, and starts it again.
async fn kill(process: &mut Process, load: &Load) {
    process.kill().await;
    load.goes_on(200).await;
    process.run().await;
    load.goes_on(200).await;
}

/// Callers that ask again and again.
struct Load {
    callers: JoinSet<()>,
    over: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Load {
    async fn begin(client: Arc<Client>) -> Self {
        let (over, asked, failures) = (Arc::default(), Arc::default(), Arc::<Mutex<Vec<String>>>::default());
        let mut load = Self { callers: JoinSet::new(), over, asked, failures };
        for _ in 0..CALLERS {
            let (client, over) = (client.clone(), load.over.clone());
            let (asked, failures) = (load.asked.clone(), load.failures.clone());
            load.callers.spawn(async move {
                let to = To::Capability("errand".to_owned());
                while !over.load(Relaxed) {
                    let task = Task::new("errand", json!({})).within(Duration::from_secs(10)).idempotent();
                    if let Err(e) = client.ask(&to, task).await {
                        failures.lock().push(e.to_string());
                    }
                    asked.fetch_add(1, Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        // Both nodes know the agents by then.
        load.goes_on(200).await;
        load.failures.lock().clear();
        load
    }

    /// So many further calls have ended.
    async fn goes_on(&self, calls: usize) {
        let goal = self.asked.load(Relaxed) + calls;
        soon(async {
            while self.asked.load(Relaxed) < goal {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    async fn end(mut self) -> (usize, Vec<String>) {
        self.over.store(true, Relaxed);
        while let Some(ended) = soon(self.callers.join_next()).await {
            ended.unwrap();
        }
        (self.asked.load(Relaxed), std::mem::take(&mut self.failures.lock()))
    }
}
