//! Two control planes, two data-plane nodes, five agents and the stores, while all of them are killed again and again.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    path::PathBuf,
    time::Duration,
};

use http::Method;
use jiff::Timestamp;
use parallax_runtime::{
    env::{Env, Simulated},
    store::servers::{etcd::Etcd, postgres::Postgres},
};
use parallax_sdk::{Answer, Server, Task, agent};
use parallax_security::{Files, Kind};
use serde_json::{Value as Json, json};
use tokio::process::Command;

use crate::processes::{Cluster, Process, free_ports};

const RUNS: usize = 100;
const PLANES: usize = 2;
const NODES: usize = 2;
const AGENTS: usize = 5;
const MEMBERS: usize = 3;
/// Each process there is, the database, and as many again by chance.
const KILLS: usize = PLANES + NODES + AGENTS + MEMBERS + 1 + 4;

/// Asks one after the other, then all at once, and sleeps between: a kill finds it in every state. Whoever does not
/// answer is asked again.
const PATTERN: &str = "/**
 * @name errands
 * @version 1.0.0
 * @description Asks each agent, then all.
 * @minAgents 5
 */
said = []
last = input.n
for a in agents {
    answer = null
    for i in range(500) {
        if (answer === null) {
            try {
                let told = a.analyze(\"errand\", { after: last })
                if (told !== null) { answer = told }
            } catch (e) { await sleep(100) }
        }
    }
    last = answer
    said = said.push(last)
}
await sleep(5)
all = []
for i in range(500) {
    if (all.length === 0) {
        try {
            let told = parallel(agents.map(a => () => a.analyze(\"again\", { n: input.n })))
            if (told.length > 0) { all = told }
        } catch (e) { await sleep(100) }
    }
}
({ said: said, again: all.length, at: now() }) ~> 0.9
";

/// Whose agent this process is, in the environment of one that the test starts.
const AGENT: &str = "PARALLAX_TEST_AGENT";

/// An agent of the test below, in a process of its own: it writes down each call before it answers.
#[tokio::test]
#[ignore = "a process of another test"]
async fn agent_process() {
    let Some(n) = std::env::var(AGENT).ok() else { return };
    let n: usize = n.parse().unwrap();
    let calls = PathBuf::from(std::env::var_os("PARALLAX_TEST_CALLS").unwrap());
    let calls = std::fs::File::options().create(true).append(true).open(calls).unwrap();
    let answering = agent(format!("agent-{n}")).capability("errand").answer(move |task: Task| {
        let line = format!("{} {}\n", task.effect.unwrap_or_default(), Timestamp::now());
        (&calls).write_all(line.as_bytes()).unwrap();
        async move {
            tokio::time::sleep(Duration::from_millis(15)).await;
            Answer::new(n, 0.9)
        }
    });
    let mut handle = Server::new(answering).bind().await.unwrap();
    handle.registered().await;
    println!("\nready");
    std::future::pending::<()>().await;
}

pub(crate) async fn start_agent(cluster: &Cluster, n: usize, registry: u16) -> Process {
    let Files { ca, cert, key } = cluster.files(Kind::Agent, &format!("agent-{n}"));
    let calls = calls(cluster, n);
    Process::start(calls.with_extension("log"), move || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["chaos::agent_process", "--exact", "--ignored", "--nocapture"]).env_clear();
        command.env(AGENT, n.to_string()).env("PARALLAX_TEST_CALLS", &calls);
        command.env("PARALLAX_REGISTRY", format!("127.0.0.1:{registry}"));
        command.env("PARALLAX_TLS_CA", &ca).env("PARALLAX_TLS_CERT", &cert).env("PARALLAX_TLS_KEY", &key);
        command
    })
    .await
}

/// Where an agent writes its calls down.
fn calls(cluster: &Cluster, n: usize) -> PathBuf {
    cluster.dir().join(format!("agent-{n}.calls"))
}

/// When each effect was asked for, as the agents saw it.
fn asked(cluster: &Cluster) -> HashMap<String, Vec<Timestamp>> {
    let mut asked = HashMap::<_, Vec<_>>::new();
    for n in 0..AGENTS {
        // The last line of one that was killed may be cut.
        let text = std::fs::read_to_string(calls(cluster, n)).unwrap();
        for (effect, at) in text.lines().filter_map(|line| line.split_once(' ')) {
            asked.entry(effect.to_owned()).or_default().extend(at.parse::<Timestamp>());
        }
    }
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn no_run_is_lost_and_no_journaled_call_repeated() {
    let (Some(mut etcd), Some(mut postgres)) = (Etcd::start(MEMBERS).await, Postgres::start()) else {
        return;
    };
    let [http0, http1, grpc0, grpc1, node0, node1, admin0, admin1] = free_ports();
    let cluster = Cluster::new(&[http0, http1]);
    let patterns = cluster.dir().join("patterns");
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
        processes.push(cluster.plane(id, Kind::ControlPlane, &settings).await);
    }
    for (id, grpc, admin) in [("node-0", node0, admin0), ("node-1", node1, admin1)] {
        let settings = format!(
            "[data_plane]\ngrpc = \"127.0.0.1:{grpc}\"\nadmin = \"127.0.0.1:{admin}\"\n\
             control_plane = \"127.0.0.1:{grpc0}, 127.0.0.1:{grpc1}\"\n[stores]\nconfidence = \"memory:\"\n"
        );
        processes.push(cluster.plane(id, Kind::DataPlane, &settings).await);
    }
    for n in 0..AGENTS {
        processes.push(start_agent(&cluster, n, [grpc0, grpc1][n % PLANES]).await);
    }
    let all = |answer: &Json| (answer["count"] == AGENTS).then_some(());
    cluster.insist(Method::GET, "/api/agents", Json::Null, all).await;

    let starting = async {
        let mut accepted = Vec::new();
        for n in 0..RUNS {
            let body = json!({"patternName": "errands", "input": {"n": n}});
            let id = |answer: &Json| answer["id"].as_str().map(str::to_owned);
            accepted.push(cluster.insist(Method::POST, "/api/executions", body, id).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        accepted
    };
    let killing = async {
        let chance = Simulated::new(7);
        let pick = |below: usize| usize::try_from(chance.random() % below as u64).unwrap();
        // Whoever has not been killed yet, then anybody.
        let (own, mut spared) = (processes.len(), (0..=processes.len() + MEMBERS).collect::<Vec<_>>());
        for _ in 0..KILLS {
            let pause = Duration::from_millis(100 + pick(200) as u64);
            let victim = match spared.len() {
                0 => pick(own + MEMBERS + 1),
                left => spared.swap_remove(pick(left)),
            };
            tokio::time::sleep(pause).await;
            if victim < own {
                processes[victim].kill().await;
                processes[victim].run().await;
            } else if victim < own + MEMBERS {
                etcd.kill(victim - own);
                tokio::time::sleep(pause).await;
                etcd.run(victim - own);
                etcd.up().await;
            } else {
                postgres.kill();
                tokio::task::block_in_place(|| postgres.restart());
            }
        }
    };
    let (accepted, ()) = tokio::join!(starting, killing);

    // Whatever was begun, also where the answer was lost, ends; and there are no others.
    for status in ["pending", "running"] {
        let none = |answer: &Json| (answer["total"] == 0).then_some(());
        cluster.insist(Method::GET, &format!("/api/executions?status={status}"), Json::Null, none).await;
    }
    let asked = asked(&cluster);
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
                "queued" | "admitted" | "abandoned" => true,
                other => panic!("{other} in {run}"),
            };
            assert!(first, "once: {entry}");
        }
        for (effect, at) in resolved {
            let asked = asked.get(&format!("{id}/{effect}")).cloned().unwrap_or_default();
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
}
