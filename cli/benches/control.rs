//! What durable runs cost: three steps, each asking an agent that answers at once, each step synced to disk. One at a
//! time, then 64 in flight; on the embedded store and on a PostgreSQL of the bench's own. Then 10,000 agents, on the
//! embedded store and on an etcd: how soon one that registers can be called, what lists and watches take, memory and CPU
//! at rest. Then how long a run stands still whose control plane is killed.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, future::try_join_all, stream};
use hyper_util::rt::TokioIo;
use parallax_cli::{
    instance::{authority_dir, local_tls},
    start::{Planes, Role},
};
use parallax_proto::registry::{
    AgentRegistration, ListAgentsRequest, RegisterRequest, RenewRequest, WatchRequest,
    registry_client::RegistryClient,
};
use parallax_runtime::{
    env::{Env, System},
    store::servers::{etcd::Etcd, postgres::Postgres},
};
use parallax_sdk::{Answer, Client, Server, Task, TlsOptions, To, agent, json};
use parallax_security::{Authority, Expect, Kind};
use tonic::transport::{Channel, Endpoint};

mod planes;
#[allow(dead_code, reason = "others ask of other processes")]
mod process;
mod recovery;
use planes::settings;
use process::resident;

const STEPS: usize = 3;
const ALONE: usize = 500;
const IN_FLIGHT: usize = 64;
const MANY: usize = 5_000;
const AGENTS: usize = 10_000;
const LATE: usize = 200;
const AT_REST: Duration = Duration::from_secs(10);

const PATTERN: &str = "/**
 * @name bench-steps
 * @version 1.0.0
 * @description Asks three times, one after the other.
 * @minAgents 1
 */
first = agents[0].analyze(\"one\", {})
second = agents[0].analyze(\"two\", { after: first })
agents[0].analyze(\"three\", { after: second })
";

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result {
    let postgres = Postgres::start();
    let etcd = Etcd::start(1).await;
    let shared = postgres.as_ref().map(|server| server.url("postgres"));
    println!("{}", machine()?);
    if wanted("runs") {
        println!("{STEPS}-step durable runs, every step on disk:");
        println!(
            "{:<12}{:>10}{:>10}{:>10}{:>12}{:>12}",
            "store", "p50", "p99", "runs/s", "64: runs/s", "64: steps/s"
        );
        for store in [Some("embedded:runs.db"), shared.as_deref()].into_iter().flatten() {
            let dir = tempfile::tempdir()?;
            runs(dir.path(), store).await?;
        }
    }
    if wanted("agents") {
        for store in ["embedded:registry.db".to_owned()].into_iter().chain(etcd.as_ref().map(Etcd::url)) {
            let dir = tempfile::tempdir()?;
            agents(dir.path(), &store).await?;
        }
    }
    if let (true, Some(registry), Some(runs)) = (wanted("recovery"), etcd.as_ref().map(Etcd::url), shared) {
        recovery::show(&registry, &runs).await?;
    }
    println!("{}", machine()?);
    Ok(())
}

/// Whether a part of the bench is to be run: all are, unless some are named.
fn wanted(part: &str) -> bool {
    let mut named =
        std::env::args().filter(|arg| ["runs", "agents", "recovery"].contains(&&**arg)).peekable();
    named.peek().is_none() || named.any(|name| name == part)
}

/// How busy the machine is with other things, as the kernel has it.
fn machine() -> Result<String> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let cores = std::thread::available_parallelism()?;
    let built = if cfg!(debug_assertions) { "not optimized" } else { "optimized" };
    Ok(format!(
        "load average {} on {cores} cores, {built} build\n",
        load.split(' ').next().unwrap_or_default()
    ))
}

async fn runs(dir: &Path, store: &str) -> Result {
    std::fs::write(dir.join("bench-steps.prism"), PATTERN)?;
    let mut settings = settings(dir)?;
    settings.control_plane.patterns = dir.display().to_string();
    store.clone_into(&mut settings.stores.runs);
    let planes = Planes::start(settings, Role::BOTH).await.map_err(|e| e.to_string())?;
    let (registry, data_plane) = addresses(&planes);
    let tls = TlsOptions::Local { data_dir: dir.to_owned() };
    let echo = agent("echo").answer(|_: Task| async { Answer::new("yes", 0.9) });
    let mut agent = Server::new(echo).registry(&registry).tls(tls.clone()).bind().await?;
    agent.registered().await;
    let client = Arc::new(Client::new(&registry, &data_plane, &tls)?);
    for _ in 0..50 {
        execute(&client).await?;
    }
    let mut took = Vec::new();
    let begun = Instant::now();
    for _ in 0..ALONE {
        let begun = Instant::now();
        execute(&client).await?;
        took.push(begun.elapsed());
    }
    let alone = ALONE as f64 / begun.elapsed().as_secs_f64();
    let (left, begun) = (Arc::new(AtomicUsize::new(MANY)), Instant::now());
    try_join_all((0..IN_FLIGHT).map(|_| {
        let (client, left) = (client.clone(), left.clone());
        async move {
            while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                execute(&client).await?;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        }
    }))
    .await?;
    let many = MANY as f64 / begun.elapsed().as_secs_f64();
    let name = store.split(':').next().unwrap_or_default();
    let (p50, p99) = (quantile(&mut took, 0.5), quantile(&mut took, 0.99));
    println!("{name:<12}{p50:>10.1?}{p99:>10.1?}{alone:>10.0}{many:>12.0}{:>12.0}", many * STEPS as f64);
    agent.shutdown();
    agent.wait().await?;
    planes.stop().await;
    Ok(())
}

async fn execute(client: &Client) -> Result {
    let response = client.execute("bench-steps", &json!({}), None).await?;
    if response.agent_results.len() == STEPS {
        Ok(())
    } else {
        Err(format!("a run failed: {response:?}").into())
    }
}

async fn agents(dir: &Path, store: &str) -> Result {
    let before = resident()?;
    let mut settings = settings(dir)?;
    store.clone_into(&mut settings.stores.registry);
    let planes = Planes::start(settings, Role::BOTH).await.map_err(|e| e.to_string())?;
    let (registry, data_plane) = addresses(&planes);
    let operator = operator(dir, registry.clone())?;
    let register = |id: String| {
        let mut operator = operator.clone();
        async move {
            let agent = AgentRegistration { id, endpoint: "127.0.0.1:9".to_owned(), ..Default::default() };
            let request = RegisterRequest { agent: Some(agent), auto_renew: true };
            operator.register(request).await.map(|response| response.into_inner().lease_id)
        }
    };
    let begun = Instant::now();
    let leases: Vec<_> = stream::iter((0..AGENTS).map(|n| register(format!("agent-{n:05}"))))
        .buffer_unordered(64)
        .collect()
        .await;
    let leases: Vec<String> = leases.into_iter().collect::<std::result::Result<_, _>>()?;
    let name = store.split(':').next().unwrap_or_default();
    println!("\n{AGENTS} agents registered on {name} in {:.1?}", begun.elapsed());

    // All renew once in thirty seconds, as agents do, from now on.
    let pace = Duration::from_secs(30) / u32::try_from(AGENTS)?;
    let mut renewing = operator.clone();
    let renewals = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(pace);
        for lease in leases.iter().cycle() {
            ticks.tick().await;
            renewing.renew(RenewRequest { lease_id: lease.clone(), ttl: None }).await.ok();
        }
    });
    let tls = TlsOptions::Local { data_dir: dir.to_owned() };
    let client = Client::new(&registry, &data_plane, &tls)?;
    let mut routable = Vec::new();
    for n in 0..LATE {
        let id = format!("late-{n}");
        let echo = agent(&id).answer(|_: Task| async { Answer::new("yes", 0.9) });
        let mut late = Server::new(echo).registry(&registry).tls(tls.clone()).bind().await?;
        late.registered().await;
        let begun = Instant::now();
        while client.ask(&To::Agent(id.clone()), Task::new("yes", json!({}))).await.is_err() {}
        routable.push(begun.elapsed());
        late.shutdown();
        late.wait().await?;
    }
    let mut watching = operator.clone();
    let request = WatchRequest { capabilities: vec![], include_initial: false };
    let mut events = watching.watch(request).await?.into_inner();
    let (mut watched, mut listed) = (Vec::new(), Vec::new());
    for n in 0..LATE {
        let begun = Instant::now();
        register(format!("watched-{n}")).await?;
        while events
            .message()
            .await?
            .is_some_and(|event| event.agent.is_none_or(|a| !a.id.starts_with("watched")))
        {}
        watched.push(begun.elapsed());
    }
    for _ in 0..20 {
        let mut operator = operator.clone().max_decoding_message_size(usize::MAX);
        let begun = Instant::now();
        let mut token = String::new();
        loop {
            let request = ListAgentsRequest { continuation_token: token, ..Default::default() };
            let page = operator.list_agents(request).await?.into_inner();
            token = page.next_continuation_token;
            if token.is_empty() {
                break;
            }
        }
        listed.push(begun.elapsed());
    }
    for (what, times) in [
        ("register answered → first answer", &mut routable),
        ("register asked → watch event", &mut watched),
        ("list of all, by pages", &mut listed),
    ] {
        let (p50, p99) = (quantile(times, 0.5), quantile(times, 0.99));
        println!("{what:<36} p50 {p50:>9.1?}  p99 {p99:>9.1?}");
    }
    let (cpu, begun) = (process::cpu()?, Instant::now());
    tokio::time::sleep(AT_REST).await;
    let share = (process::cpu()? - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!(
        "at rest, {AGENTS} agents renewing every 30 s: {} MiB resident ({} before the planes), {:.1} % of a core (the \
         renewing client included)",
        resident()? >> 20,
        before >> 20,
        share * 100.0
    );
    renewals.abort();
    planes.stop().await;
    Ok(())
}

fn addresses(planes: &Planes) -> (String, String) {
    let grpc = planes.addresses.grpc.expect("both planes run").to_string();
    (grpc, planes.addresses.data_plane.expect("both planes run").to_string())
}

fn operator(dir: &Path, addr: String) -> Result<RegistryClient<Channel>> {
    let now = System.system_time();
    let authority = Authority::open_existing(&authority_dir(dir), now)?;
    let tls = local_tls(&authority, dir, Kind::Operator, "bench", now)?;
    let connector = tower::service_fn(move |_| {
        let (tls, addr) = (tls.clone(), addr.clone());
        async move { tls.connect(&System, &addr, &Expect::kind(Kind::ControlPlane)).await.map(TokioIo::new) }
    });
    Ok(RegistryClient::new(
        Endpoint::from_static("http://control-plane").connect_with_connector_lazy(connector),
    ))
}

fn quantile(times: &mut [Duration], q: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * q) as usize]
}
