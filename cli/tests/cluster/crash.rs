//! What a `kill -9` leaves, and what the next start makes of it.

use std::{path::Path, sync::Arc};

use parallax_cli::api::Api;
use parallax_proto::registry::{RenewRequest, registry_client::RegistryClient};
use parallax_runtime::env::{Env, System};
use parallax_sdk::{Answer, Task, TlsOptions, agent};
use parallax_security::{Authority, Identity, Kind, Tls};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, mpsc};
use tonic::transport::Channel;

use crate::{
    agents::{registration, says},
    program::Instance,
    world::{args, channel, join, soon},
};

async fn api(data_dir: &Path) -> Api {
    Api::connect(&args(data_dir, &["status"])).await.unwrap()
}

/// The registry, as the agent "idle" reaches it.
async fn registry(data_dir: &Path, instance: &Instance) -> RegistryClient<Channel> {
    let now = System.system_time();
    let authority = Authority::open_existing(&data_dir.join("ca"), now).unwrap();
    let identity = Identity::new("default", Kind::Agent, "idle").unwrap();
    let files = authority.bundle(&identity, &data_dir.join("test"), now).unwrap();
    RegistryClient::new(channel(Some(Tls::load(files, now).unwrap()), instance.grpc()).await)
}

async fn execute(api: &mut Api, agents: &[&str], target: f64) -> parallax_cli::exit::Result<Json> {
    let input = json!({"task": "tell", "agents": agents, "target": target});
    api.post("/api/patterns/confidence-cascade/execute", &json!({"input": input})).await
}

#[tokio::test]
async fn a_killed_process_goes_on_where_it_was() {
    let dir = TempDir::new().unwrap();
    let instance = Instance::start(dir.path()).await;
    let tls = || TlsOptions::Local { data_dir: dir.path().to_owned() };
    let (first, first_calls) = says("first", "nl", 0.3);
    join(&instance.grpc(), first, tls()).await;
    // Hangs when it is asked the first time.
    let (asking, mut asked) = mpsc::unbounded_channel();
    let seen = Arc::new(Mutex::new(0));
    let second = agent("second").answer(move |task: Task| {
        let (asking, seen) = (asking.clone(), seen.clone());
        async move {
            asking.send(task.effect).unwrap();
            let first = std::mem::replace(&mut *seen.lock().await, 1) == 0;
            if first {
                std::future::pending::<()>().await;
            }
            Answer::new("de", 0.9)
        }
    });
    join(&instance.grpc(), second, tls()).await;
    let idle = registration("idle", "127.0.0.1:1");
    let lease_id = registry(dir.path(), &instance).await.register(idle).await.unwrap().into_inner().lease_id;

    let mut client = api(dir.path()).await;
    let finished = soon(execute(&mut client, &["first"], 0.1)).await.unwrap()["execution"].clone();
    assert_eq!((&finished["status"], first_calls.count()), (&json!("completed"), 1), "{finished}");
    let mut other = api(dir.path()).await;
    let cut = tokio::spawn(async move { execute(&mut other, &["first", "second"], 0.8).await });
    let effect = soon(asked.recv()).await.unwrap();
    let running = client.get("/api/executions?status=running").await.unwrap();
    assert_eq!((&running["total"], first_calls.count()), (&json!(1), 2));
    let id = running["executions"][0]["id"].as_str().unwrap().to_owned();
    instance.kill(dir.path()).await;
    cut.await.unwrap().unwrap_err();

    let instance = Instance::start(dir.path()).await;
    let mut client = api(dir.path()).await;
    let resumed = soon(async {
        loop {
            let run = client.get(&format!("/api/executions/{id}")).await.unwrap();
            if run["status"] != "running" {
                break run;
            }
        }
    })
    .await;
    assert_eq!(resumed["status"], "completed", "{resumed}");
    assert_eq!((&resumed["result"]["decision"], &resumed["confidence"]), (&json!("de"), &json!(0.9)));
    // The first had answered, and is not asked again; the second is, with the same idempotency key.
    assert_eq!(first_calls.count(), 2);
    assert_eq!(asked.try_recv().unwrap(), effect);
    assert!(asked.try_recv().is_err());
    assert_eq!(resumed["metrics"], json!({"calls": 2, "callsFailed": 0, "journalEntries": 6}), "{resumed}");

    let listed = client.get("/api/executions").await.unwrap();
    let before = listed["executions"].as_array().unwrap().iter().find(|run| run["id"] == finished["id"]);
    assert_eq!(before.expect("finished runs are still listed")["confidence"], finished["confidence"]);
    let agents = client.get("/api/agents").await.unwrap();
    let ids: Vec<_> = agents["agents"].as_array().unwrap().iter().map(|agent| &agent["id"]).collect();
    assert_eq!(ids, ["first", "idle", "second"]);
    registry(dir.path(), &instance).await.renew(RenewRequest { lease_id, ttl: None }).await.unwrap();
}
