//! How long a run stands still whose control plane is killed: two replicas, processes of their own, on shared stores.

use std::{
    net::TcpListener,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use clap::Parser;
use parallax_cli::{api::Api, args::Args};
use parallax_runtime::env::{Env, System};
use parallax_security::{Authority, Files, Identity, Kind};
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{Result, quantile};

/// How often it is tried, and the owners' time to live in seconds, which is the default.
const TRIES: usize = 5;
const TTL: u64 = 5;

/// Grows by an entry every few milliseconds, and asks nobody.
const PATTERN: &str = "/**
 * @name ticking
 * @version 1.0.0
 */
for i in range(15000) { await sleep(5) }
1 ~> 0.5
";

pub async fn show(registry: &str, runs: &str) -> Result {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("ticking.prism"), PATTERN)?;
    let authority = Authority::open(&dir.path().join("ca"), System.system_time())?;
    let (mut stood, mut back) = (Vec::new(), Vec::new());
    for _ in 0..TRIES {
        let (mut first, mut second) = (
            Replica::start(dir.path(), &authority, 0, registry, runs).await?,
            Replica::start(dir.path(), &authority, 1, registry, runs).await?,
        );
        let run = first
            .api
            .post("/api/executions", &json!({"patternName": "ticking"}))
            .await
            .map_err(|e| e.to_string())?;
        let path = format!("/api/executions/{}", run["id"].as_str().ok_or("no id")?);
        let entries = async |api: &mut Api| {
            let run: Json = api.get(&path).await.map_err(|e| e.to_string())?;
            Ok::<_, String>(run["metrics"]["journalEntries"].as_u64().unwrap_or(0))
        };
        while entries(&mut second.api).await? < 20 {}
        let killed = Instant::now();
        first.child.kill().await?;
        let had = entries(&mut second.api).await?;
        while entries(&mut second.api).await? <= had {}
        stood.push(killed.elapsed());
        second.api.post(&format!("{path}/cancel"), &json!({})).await.map_err(|e| e.to_string())?;
        let begun = Instant::now();
        let mut again = Replica::start(dir.path(), &authority, 0, registry, runs).await?;
        back.push(begun.elapsed());
        // Their directories are free for the next when they have gone.
        again.child.kill().await?;
        second.child.kill().await?;
    }
    let worst = stood.iter().max().copied().unwrap_or_default();
    println!(
        "\na run whose control plane is killed goes on at another after {:.1?} (p50 of {TRIES}), {worst:.1?} at worst; \
         owners live {TTL} s; the killed one is back and ready after {:.1?}",
        quantile(&mut stood, 0.5),
        quantile(&mut back, 0.5)
    );
    Ok(())
}

struct Replica {
    child: Child,
    api: Api,
}

impl Replica {
    async fn start(dir: &Path, authority: &Authority, n: usize, registry: &str, runs: &str) -> Result<Self> {
        let home = dir.join(format!("plane-{n}"));
        std::fs::create_dir_all(&home)?;
        let identity = |kind, id: &str| Identity::new("default", kind, id);
        let files = authority.bundle(
            &identity(Kind::ControlPlane, &format!("plane-{n}"))?,
            dir,
            System.system_time(),
        )?;
        let Files { ca, cert, key } = files;
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
        let (http, grpc) = (free()?, free()?);
        let config = home.join("parallax.toml");
        std::fs::write(
            &config,
            format!(
                "[control_plane]\nhttp = \"{http}\"\ngrpc = \"{grpc}\"\npatterns = {dir:?}\nowner_ttl_seconds = {TTL}\n\
                 [stores]\nregistry = {registry:?}\nruns = {runs:?}\n\
                 [tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n"
            ),
        )?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_parallax"));
        command.arg("--data-dir").arg(&home).arg("--config").arg(&config).arg("control-plane");
        let log = home.join("log");
        command.stderr(std::fs::File::create(&log)?);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if line.starts_with("ready") {
                    return Ok::<(), Box<dyn std::error::Error + Send + Sync>>(());
                }
            }
            Err(format!("a control plane did not start: {}", std::fs::read_to_string(&log)?).into())
        };
        tokio::time::timeout(Duration::from_secs(60), ready).await??;
        let url = format!("http://{http}");
        let home = home.to_str().ok_or("a path in UTF-8")?;
        let args = Args::try_parse_from(["parallax", "--data-dir", home, "--api-url", &url, "status"])?;
        let api = Api::connect(&args).await.map_err(|e| e.to_string())?;
        Ok(Self { child, api })
    }
}
