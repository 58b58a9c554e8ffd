//! Whom the data plane asks, measured: real sockets, ten agents that are not alike, and the same load for each way to
//! choose, one after the other in interleaved rounds.
//!
//! Each agent has eight slots and a log-normal service time. Of the ten two are four times slower, one is out of order
//! for a third of the time, and one answers at once and is wrong (it says so: 0.2). The floor is the six that are
//! well, alone, by least requests.
//!
//! `make bench-balance`; `ROUNDS` and `SECONDS` (of one round) change how long it takes, `SCENARIOS` how many there
//! are of the second table, which compares hedging with none, and `FROM` with which it begins.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parallax_cli::{
    settings::Settings,
    start::{Planes, Role},
};
use parallax_data_plane::{Hedge, Strategy};
use parallax_sdk::{AgentError, Answer, Client, Handle, Server, Task, TlsOptions, To, agent, json};
use tokio::{sync::Semaphore, task::JoinSet};

mod planes;
mod process;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SLOTS: usize = 8;

/// What the agents of one table are like, and how much is asked of them.
#[derive(Clone, Debug)]
struct Scenario {
    /// Service times: the median, and sigma of the logarithm.
    median: Duration,
    sigma: f64,
    well: usize,
    slow: usize,
    slower: f64,
    flapping: usize,
    wrong: usize,
    /// Calls a second, of what the well ones could do at the most.
    utilisation: f64,
}

impl Scenario {
    fn standard() -> Self {
        Self {
            median: Duration::from_millis(20),
            sigma: 0.6,
            well: 6,
            slow: 2,
            slower: 4.0,
            flapping: 1,
            wrong: 1,
            utilisation: 0.6,
        }
    }

    /// One of twenty: load, spread and trouble vary.
    fn numbered(n: usize) -> Self {
        let pick = |choices: &[f64], stride: usize| choices[(n / stride) % choices.len()];
        Self {
            sigma: pick(&[0.3, 0.6, 0.9, 1.2], 1),
            slower: pick(&[2.0, 4.0, 8.0], 3),
            utilisation: pick(&[0.3, 0.5, 0.7, 0.9, 1.1], 4),
            flapping: n % 2,
            wrong: 0,
            ..Self::standard()
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn rate(&self) -> f64 {
        let mean = self.median.as_secs_f64() * (self.sigma * self.sigma / 2.0).exp();
        self.utilisation * (self.well * SLOTS) as f64 / mean
    }
}

/// A way to choose.
#[derive(Clone)]
struct Way {
    name: &'static str,
    /// Only those that are well.
    floor: bool,
    idempotent: bool,
    settings: fn(&mut Settings),
}

const WAYS: &[Way] = &[
    Way { name: "healthy agents only, least_request", floor: true, idempotent: false, settings: least },
    Way { name: "peak_ewma of two, nothing else", floor: false, idempotent: false, settings: plain },
    Way { name: "least_request", floor: false, idempotent: false, settings: least },
    Way { name: "peak_ewma", floor: false, idempotent: false, settings: ewma },
    Way { name: "confidence", floor: false, idempotent: false, settings: confidence },
    Way {
        name: "confidence, idempotent (retried, hedged)",
        floor: false,
        idempotent: true,
        settings: confidence,
    },
];

fn least(settings: &mut Settings) {
    settings.data_plane.balance.strategy = Strategy::LeastRequest;
}

fn ewma(settings: &mut Settings) {
    settings.data_plane.balance.strategy = Strategy::PeakEwma;
}

/// As the literature has it, without ejection, limits, and what agents report.
fn plain(settings: &mut Settings) {
    ewma(settings);
    settings.data_plane.balance.reported_load = false;
    settings.data_plane.outliers.factor = 1e6;
    settings.data_plane.breaker.failures = u16::MAX;
    settings.data_plane.breaker.ratio_calls = u32::MAX;
    (settings.data_plane.limits.least, settings.data_plane.limits.most) = (100_000, 100_000);
    settings.data_plane.slow_start_ms = 0;
}

fn confidence(settings: &mut Settings) {
    settings.data_plane.balance.strategy = Strategy::Confidence;
}

fn no_hedges(settings: &mut Settings) {
    confidence(settings);
    settings.data_plane.hedge = Hedge { budget_percent: 0, ..Hedge::default() };
}

#[tokio::main]
async fn main() -> Result {
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (rounds, seconds) = (number("ROUNDS", 3), Duration::from_secs(number("SECONDS", 20)));
    let scenario = Scenario::standard();
    println!(
        "{:.0} calls a second, {rounds} rounds of {} s each way, interleaved",
        scenario.rate(),
        seconds.as_secs()
    );
    let mut totals = vec![Seen::default(); WAYS.len()];
    for _ in 0..rounds {
        for (way, total) in WAYS.iter().zip(&mut totals) {
            total.add(measure(&scenario, way, seconds).await?);
        }
    }
    println!(
        "\n{:<42}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "", "p50", "p99", "p99.9", "ratio", "failed", "wrong", "extra"
    );
    let base = totals[1].quantile(0.999).as_secs_f64();
    for (way, seen) in WAYS.iter().zip(&totals) {
        println!("{:<42}{}", way.name, seen.row(base));
    }
    println!(
        "ratio: of p99.9 to that of plain peak_ewma; extra: calls that agents saw beyond those that were made"
    );
    let (floor, ours) = (totals[0].quantile(0.999).as_secs_f64(), totals[4].quantile(0.999).as_secs_f64());
    let hedged = totals[5].quantile(0.999).as_secs_f64();
    println!(
        "confidence: {:.2} × plain peak_ewma (goal ≤ 0.5), {:.2} × the floor (goal ≤ 1.2)",
        ours / base,
        ours / floor
    );
    println!(
        "hedged:     {:.2} × plain peak_ewma,              {:.2} × the floor",
        hedged / base,
        hedged / floor
    );

    let (from, scenarios) = (number("FROM", 0), number("SCENARIOS", 20));
    println!("\nhedging against none, {scenarios} scenarios of {} s each\n", seconds.as_secs() / 4);
    println!(
        "{:>3}{:>7}{:>8}{:>6}{:>7}{:>11}{:>11}{:>8}{:>12}{:>8}",
        "", "sigma", "slower", "load", "flaps", "none p99.9", "hedged", "ratio", "none failed", "hedged"
    );
    let (hedged, none) = (WAYS[5].clone(), Way { settings: no_hedges, ..WAYS[5].clone() });
    let mut worst: f64 = 0.0;
    for n in from as usize..(from + scenarios) as usize {
        let s = Scenario::numbered(n);
        let (mut without, mut with) = (Seen::default(), Seen::default());
        for _ in 0..2 {
            without.add(measure(&s, &none, seconds / 8).await?);
            with.add(measure(&s, &hedged, seconds / 8).await?);
        }
        let failed = [&without, &with].map(Seen::failed);
        let (without, with) = (without.quantile(0.999), with.quantile(0.999));
        let ratio = with.as_secs_f64() / without.as_secs_f64();
        worst = worst.max(ratio);
        println!(
            "{n:>3}{:>7}{:>8}{:>6}{:>7}{without:>11.0?}{with:>11.0?}{ratio:>8.2}{:>12}{:>8}",
            s.sigma, s.slower, s.utilisation, s.flapping, failed[0], failed[1]
        );
    }
    println!("worst: {worst:.2} (goal ≤ 1, but for the noise of so few calls)");
    let (cpu, resident) = (process::cpu()?, process::resident()? >> 20);
    println!("\nall in one process: {cpu:.0?} of CPU, {resident} MiB");
    Ok(())
}

/// What callers saw.
#[derive(Clone, Default)]
struct Seen {
    took: Vec<Duration>,
    failed: usize,
    wrong: usize,
    /// Calls that agents saw.
    asked: usize,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.took.extend(other.took);
        self.failed += other.failed;
        self.wrong += other.wrong;
        self.asked += other.asked;
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn quantile(&self, q: f64) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        // None in no rounds.
        sorted.get((sorted.len().saturating_sub(1) as f64 * q) as usize).copied().unwrap_or_default()
    }

    /// Percent of the calls.
    #[allow(clippy::cast_precision_loss)]
    fn percent(&self, n: usize) -> String {
        format!("{:.2}%", 100.0 * n as f64 / self.took.len() as f64)
    }

    fn failed(&self) -> String {
        self.percent(self.failed)
    }

    #[allow(clippy::cast_precision_loss)]
    fn row(&self, base: f64) -> String {
        let p999 = self.quantile(0.999);
        format!(
            "{:>9.0?}{:>9.0?}{:>9.0?}{:>9.2}{:>9}{:>9}{:>9}",
            self.quantile(0.5),
            self.quantile(0.99),
            p999,
            p999.as_secs_f64() / base,
            self.failed(),
            self.percent(self.wrong),
            self.percent(self.asked.saturating_sub(self.took.len()))
        )
    }
}

async fn measure(scenario: &Scenario, way: &Way, seconds: Duration) -> Result<Seen> {
    let dir = tempfile::tempdir()?;
    let mut settings = planes::settings(dir.path())?;
    (way.settings)(&mut settings);
    let planes = Planes::start(settings, Role::BOTH).await?;
    let registry = planes.addresses.grpc.expect("both planes run").to_string();
    let data_plane = planes.addresses.data_plane.expect("both planes run").to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let agents = agents(scenario, way.floor, &registry, dir.path(), &asked).await?;
    let tls = TlsOptions::Local { data_dir: dir.path().to_owned() };
    let client = Arc::new(Client::new(&registry, &data_plane, &tls)?);
    // Whatever is learnt first is not what counts.
    drive(&client, scenario, way, seconds / 5).await?;
    asked.store(0, Relaxed);
    let mut seen = drive(&client, scenario, way, seconds).await?;
    seen.asked = asked.load(Relaxed);
    for agent in agents {
        agent.shutdown();
        agent.wait().await?;
    }
    planes.stop().await;
    Ok(seen)
}

/// An open loop: calls begin when they are due, whatever became of the others, and are measured from then.
async fn drive(client: &Arc<Client>, scenario: &Scenario, way: &Way, seconds: Duration) -> Result<Seen> {
    let (mut calls, mut seen, mut dice) = (JoinSet::new(), Seen::default(), Dice::new(7));
    let (begun, mut due) = (Instant::now(), Duration::ZERO);
    let to = Arc::new(To::Capability("work".to_owned()));
    while due < seconds {
        tokio::time::sleep_until((begun + due).into()).await;
        let (client, to, idempotent, due_at) = (client.clone(), to.clone(), way.idempotent, begun + due);
        calls.spawn(async move {
            let task = Task::new("work", json!({})).within(Duration::from_secs(10));
            let task = if idempotent { task.idempotent() } else { task };
            let reply = client.ask(&to, task).await;
            (due_at.elapsed(), reply.map(|reply| reply.answer.confidence.map_or(0.0, |c| c.get())))
        });
        // Poisson arrivals.
        due += Duration::from_secs_f64(-dice.open().ln() / scenario.rate());
    }
    while let Some(call) = calls.join_next().await {
        let (took, reply) = call?;
        seen.took.push(took);
        match reply {
            Ok(confidence) if confidence < 0.5 => seen.wrong += 1,
            Ok(_) => {}
            Err(_) => seen.failed += 1,
        }
    }
    Ok(seen)
}

async fn agents(
    scenario: &Scenario,
    floor: bool,
    registry: &str,
    dir: &Path,
    asked: &Arc<AtomicUsize>,
) -> Result<Vec<Handle>> {
    let tls = TlsOptions::Local { data_dir: dir.to_owned() };
    let mut agents = Vec::new();
    let kinds = [
        (scenario.well, "well"),
        (scenario.slow, "slow"),
        (scenario.flapping, "flapping"),
        (scenario.wrong, "wrong"),
    ];
    let kinds = kinds.into_iter().filter(|(_, kind)| !floor || *kind == "well");
    for (number, kind) in kinds.flat_map(|(count, kind)| (0..count).map(move |n| (n, kind))) {
        let slots = Arc::new(Semaphore::new(SLOTS));
        let dice = Arc::new(AtomicU64::new(number as u64 * 1_000_003 + kind.len() as u64));
        let (s, asked, begun) = (scenario.clone(), asked.clone(), Instant::now());
        let answering = agent(format!("{kind}-{number}")).capability("work").answer(move |_: Task| {
            let (slots, s, dice) = (slots.clone(), s.clone(), dice.clone());
            asked.fetch_add(1, Relaxed);
            async move {
                if kind == "wrong" {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    return Answer::new("anything", 0.2);
                }
                if kind == "flapping" && begun.elapsed().as_millis() % 3000 < 1000 {
                    return Err(AgentError::new("out of order"));
                }
                let _slot = slots.acquire().await.expect("never closed");
                let normal = Dice::new(dice.fetch_add(1, Relaxed)).normal();
                let slower = if kind == "slow" { s.slower } else { 1.0 };
                tokio::time::sleep(s.median.mul_f64(slower * (s.sigma * normal).exp())).await;
                Answer::new("right", 0.85)
            }
        });
        let mut handle = Server::new(answering).registry(registry).tls(tls.clone()).bind().await?;
        handle.registered().await;
        agents.push(handle);
    }
    Ok(agents)
}

/// Chance that is the same in each run.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Between 0 and 1, neither included.
    #[allow(clippy::cast_precision_loss)]
    fn open(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let n = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((n ^ n >> 31) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        let (a, b) = (self.open(), self.open());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }
}
