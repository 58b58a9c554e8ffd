//! What the planes cost, side by side in one process and one run: the same three agents, which answer at once, are
//! asked directly over mTLS, through the data plane, and by a run of the consensus pattern with its journal on disk.
//! Rounds are interleaved, so that all three see the same machine.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use hyper_util::rt::TokioIo;
use parallax_cli::{
    instance::{authority_dir, local_tls},
    start::{Planes, Role},
};
use parallax_runtime::env::{Env, System};
use parallax_sdk::{
    Answer, Client, Handle, Server, Task, TlsOptions, To, agent, json,
    proto::confidence::{AgentRequest, confidence_agent_client::ConfidenceAgentClient},
};
use parallax_security::{Authority, Expect, Kind};
use tonic::transport::{Channel, Endpoint};

mod planes;
#[allow(dead_code, reason = "others ask of other processes")]
mod process;
use planes::settings;
use process::{cpu, resident};

const AGENTS: usize = 3;
const ROUNDS: usize = 5;
const PER_ROUND: usize = 300;
const REGISTRATIONS: usize = 100;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result {
    let dir = tempfile::tempdir()?;
    let begun = Instant::now();
    let planes = Planes::start(settings(dir.path())?, Role::BOTH).await?;
    println!("start to ready            {:>9.1?}", begun.elapsed());
    let registry = planes.addresses.grpc.expect("both planes run").to_string();
    let data_plane = planes.addresses.data_plane.expect("both planes run").to_string();
    let tls = TlsOptions::Local { data_dir: dir.path().to_owned() };
    let mut agents = Vec::new();
    for number in 0..AGENTS {
        agents.push(start_agent(&format!("agent-{number}"), &registry, &tls).await?);
    }
    let client = Arc::new(Client::new(&registry, &data_plane, &tls)?);
    let mut direct = Vec::new();
    for agent in &agents {
        direct.push(channel(dir.path(), agent.endpoint().to_owned())?);
    }

    let (mut asked, mut proxied, mut run) = (Series::default(), Series::default(), Series::default());
    for round in 0..=ROUNDS {
        // The first round warms up.
        let rounds = [&mut asked, &mut proxied, &mut run];
        for (kind, series) in rounds.into_iter().enumerate() {
            let cpu = cpu()?;
            for _ in 0..PER_ROUND {
                let begun = Instant::now();
                match kind {
                    0 => ask_directly(&direct).await?,
                    1 => ask_through(&client).await?,
                    _ => execute(&client).await?,
                }
                if round > 0 {
                    series.took.push(begun.elapsed());
                }
            }
            if round > 0 {
                series.cpu += process::cpu()? - cpu;
            }
        }
    }
    println!("\n{PER_ROUND} times {ROUNDS} rounds, one at a time, {AGENTS} agents each time:");
    println!("{:<26}{:>9}{:>10}{:>10}{:>9}", "", "p50", "p99", "CPU", "ratio");
    let base = asked.quantile(0.5);
    for (name, series) in
        [("agents asked directly", &asked), ("through the data plane", &proxied), ("a journaled run", &run)]
    {
        let (p50, p99) = (series.quantile(0.5), series.quantile(0.99));
        let cpu = series.cpu / u32::try_from(series.took.len())?;
        let ratio = p50.as_secs_f64() / base.as_secs_f64();
        println!("{name:<26}{p50:>9.0?}{p99:>10.0?}{cpu:>10.0?}{ratio:>8.1}×");
    }
    println!("CPU is the whole process's, the three agents and the client included.");

    let mut callable = Series::default();
    for number in 0..REGISTRATIONS {
        let id = format!("late-{number}");
        let mut late = server(&id, &registry, &tls).bind().await?;
        late.registered().await;
        let begun = Instant::now();
        while client.ask(&To::Agent(id.clone()), task()).await.is_err() {}
        callable.took.push(begun.elapsed());
        late.shutdown();
        late.wait().await?;
    }
    let (p50, p99) = (callable.quantile(0.5), callable.quantile(0.99));
    println!(
        "\nRegister answered to first answer through the data plane, connecting included: p50 {p50:.1?}, p99 {p99:.1?}"
    );
    println!("resident memory of the process (planes, agents, client): {} MiB", resident()? >> 20);
    for agent in agents {
        agent.shutdown();
        agent.wait().await?;
    }
    planes.stop().await;
    Ok(())
}

fn server(id: &str, registry: &str, tls: &TlsOptions) -> Server {
    let answering = agent(id).capability("echo").answer(|_: Task| async { Answer::new("yes", 0.9) });
    Server::new(answering).registry(registry).tls(tls.clone())
}

async fn start_agent(id: &str, registry: &str, tls: &TlsOptions) -> Result<Handle> {
    let mut handle = server(id, registry, tls).bind().await?;
    handle.registered().await;
    Ok(handle)
}

fn task() -> Task {
    Task::new("say yes", json!({"text": "x".repeat(100)})).within(Duration::from_secs(5))
}

fn channel(dir: &std::path::Path, addr: String) -> Result<ConfidenceAgentClient<Channel>> {
    let now = System.system_time();
    let authority = Authority::open_existing(&authority_dir(dir), now)?;
    let tls = local_tls(&authority, dir, Kind::Operator, "bench", now)?;
    let connector = tower::service_fn(move |_| {
        let (tls, addr) = (tls.clone(), addr.clone());
        async move { tls.connect(&System, &addr, &Expect::kind(Kind::Agent)).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://agent").connect_with_connector_lazy(connector);
    Ok(ConfidenceAgentClient::new(channel))
}

async fn ask_directly(agents: &[ConfidenceAgentClient<Channel>]) -> Result {
    let calls = agents.iter().map(|agent| {
        let mut agent = agent.clone();
        async move {
            let data = parallax_runtime::wire::struct_from_any(&json!({"text": "x".repeat(100)}));
            let task_description = "say yes".to_owned();
            agent.analyze(AgentRequest { task_description, data: Some(data), ..Default::default() }).await
        }
    });
    try_join_all(calls).await?;
    Ok(())
}

async fn ask_through(client: &Client) -> Result {
    let to = |number| To::Agent(format!("agent-{number}"));
    try_join_all((0..AGENTS).map(|number| async move { client.ask(&to(number), task()).await })).await?;
    Ok(())
}

async fn execute(client: &Client) -> Result {
    let input = json!({"task": "say yes", "data": {"text": "x".repeat(100)}});
    let response = client.execute("consensus-builder", &input, None).await?;
    if response.agent_results.len() == AGENTS {
        Ok(())
    } else {
        Err(format!("a run failed: {response:?}").into())
    }
}

#[derive(Default)]
struct Series {
    took: Vec<Duration>,
    cpu: Duration,
}

impl Series {
    fn quantile(&self, q: f64) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        sorted[((sorted.len() - 1) as f64 * q) as usize]
    }
}
