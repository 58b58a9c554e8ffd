//! The registry under faults, by its own record: several clients register, renew, unregister, read and watch the same few
//! agents at three control planes, and at etcd itself, while members of etcd are killed and frozen and control planes are
//! killed. What they saw is then held against what it may have been ([`check`]).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use hyper_util::rt::TokioIo;
use parallax_proto::registry::{
    AgentRegistration, GetAgentRequest, ListAgentsRequest, RegisterRequest, RenewRequest, WatchRequest,
    agent_registration::Metadata, registry_client::RegistryClient, watch_event::Type,
};
use parallax_runtime::{
    env::{Env, Simulated, System},
    lifecycle::Lifecycle,
    store::{Change, RegistryStore, Stores, servers::etcd::Etcd},
};
use parallax_security::{Expect, Kind, Tls};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::{
    processes::{Cluster, Process, free_ports},
    world::soon,
};

mod check;
use check::{Action, Moment, Op, Revision, Shown, State, Tag, Told, Truth, linearizable};

const SEED: u64 = 1;
const PLANES: usize = 3;
const MEMBERS: usize = 3;
const AGENTS: usize = 4;
const CLIENTS: usize = 6;
const READERS: usize = 2;
const FAULTS: usize = 10;
/// Between two calls of a client.
const PAUSE: Duration = Duration::from_millis(15);
/// A call that has not returned by then is given up, and nobody knows what came of it.
const PATIENCE: Duration = Duration::from_secs(4);
/// Everything of agents in the store.
const PREFIX: &str = "/parallax/agents/default/";

type Client = RegistryClient<Channel>;

/// Which life of which control plane: odd while it is down.
type Life = (usize, u64);

/// What was seen, by one clock.
#[derive(Default)]
struct Record {
    ops: Vec<(usize, Op)>,
    shown: Vec<(Life, Shown)>,
    /// Writes that a replica has answered for.
    written: Vec<(Life, Moment, Tag)>,
    told: Vec<(Life, Vec<Told>)>,
    /// When each registration was asked for, and the lease it brought.
    tags: HashMap<Tag, (Moment, String)>,
    /// When a change was first heard from the store.
    heard: BTreeMap<Revision, (Moment, usize, State)>,
}

struct World {
    begun: Instant,
    record: Mutex<Record>,
    lives: [AtomicU64; PLANES],
    over: AtomicBool,
    next: AtomicU64,
}

impl World {
    fn now(&self) -> Moment {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap()
    }

    fn life(&self, plane: usize) -> Life {
        (plane, self.lives[plane].load(Relaxed))
    }

    fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }
}

fn name(agent: usize) -> String {
    format!("agent-{agent}")
}

fn number(name: &str) -> usize {
    name.strip_prefix("agent-").and_then(|n| n.parse().ok()).unwrap()
}

/// The registration that an entry is: its version says which.
fn tag_of(agent: &AgentRegistration) -> Tag {
    agent.metadata.as_ref().unwrap().version.parse().unwrap()
}

fn registration(agent: usize, tag: Tag) -> RegisterRequest {
    let metadata = Metadata { version: tag.to_string(), ..Metadata::default() };
    let registration = AgentRegistration {
        id: name(agent),
        endpoint: "127.0.0.1:9".to_owned(),
        metadata: Some(metadata),
        ..AgentRegistration::default()
    };
    RegisterRequest { agent: Some(registration), auto_renew: false }
}

fn client(tls: &Tls, port: u16) -> Client {
    let tls = tls.clone();
    let connect = service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let addr = format!("127.0.0.1:{port}");
            tls.connect(&System, &addr, &Expect::kind(Kind::ControlPlane)).await.map(TokioIo::new)
        }
    });
    RegistryClient::new(Endpoint::from_static("http://control-plane").connect_with_connector_lazy(connect))
}

/// One client: does this and that, at one plane or the other.
async fn act(world: Arc<World>, clients: Vec<Client>, chance: Simulated) {
    let pick = |below: usize| usize::try_from(chance.random() % below as u64).unwrap();
    while !world.is_over() {
        tokio::time::sleep(PAUSE).await;
        let (plane, agent) = (pick(PLANES), pick(AGENTS));
        let (mut client, life, invoked) = (clients[plane].clone(), world.life(plane), world.now());
        match pick(10) {
            0 | 1 => {
                let tag = world.next.fetch_add(1, Relaxed);
                world.record.lock().tags.insert(tag, (invoked, String::new()));
                let answer = in_time(client.register(registration(agent, tag))).await;
                let returned = answer.as_ref().ok().map(|_| world.now());
                let mut record = world.record.lock();
                record.ops.push((agent, Op { action: Action::Register(tag), invoked, returned }));
                if let (Ok(answer), Some(returned)) = (answer, returned) {
                    record.tags.insert(tag, (invoked, answer.lease_id));
                    record.written.push((life, returned, tag));
                }
            }
            2 => {
                let request = AgentRegistration { id: name(agent), ..AgentRegistration::default() };
                let (found, returned) = match in_time(client.unregister(request)).await {
                    Ok(_) => (true, Some(world.now())),
                    Err(status) if status.code() == Code::NotFound => (false, Some(world.now())),
                    // Changed by somebody else meanwhile: it did nothing.
                    Err(status) if status.code() == Code::Aborted => continue,
                    Err(_) => (true, None),
                };
                let op = Op { action: Action::Unregister(found), invoked, returned };
                world.record.lock().ops.push((agent, op));
            }
            3 | 4 => {
                let known = |record: &Record| {
                    let leases = record.tags.iter().filter(|(_, (_, lease))| !lease.is_empty());
                    // One of the last: the others have long been replaced.
                    let mut leases: Vec<_> = leases.map(|(tag, (_, lease))| (*tag, lease.clone())).collect();
                    leases.sort();
                    let last = leases.len().saturating_sub(8);
                    leases
                        .get(last..)
                        .filter(|last| !last.is_empty())
                        .map(|last| last[pick(last.len())].clone())
                };
                let lease = known(&world.record.lock());
                let Some((tag, lease_id)) = lease else { continue };
                let agent = number(lease_id.split('/').nth(1).unwrap());
                let kept = match in_time(client.renew(RenewRequest { lease_id, ttl: None })).await {
                    Ok(_) => true,
                    Err(status) if status.code() == Code::NotFound => false,
                    Err(_) => continue,
                };
                let op = Op { action: Action::Renew(tag, kept), invoked, returned: Some(world.now()) };
                world.record.lock().ops.push((agent, op));
            }
            5..=7 => {
                let found = match in_time(client.get_agent(GetAgentRequest { agent_id: name(agent) })).await {
                    Ok(found) => Some(tag_of(&found)),
                    Err(status) if status.code() == Code::NotFound => None,
                    Err(_) => continue,
                };
                let shown = Shown { keys: vec![(agent, found)], invoked, returned: world.now() };
                if life == world.life(plane) {
                    world.record.lock().shown.push((life, shown));
                }
            }
            _ => {
                let Ok(page) = in_time(client.list_agents(ListAgentsRequest::default())).await else {
                    continue;
                };
                let found: BTreeMap<_, _> =
                    page.agents.iter().map(|agent| (number(&agent.id), tag_of(agent))).collect();
                let keys = (0..AGENTS).map(|agent| (agent, found.get(&agent).copied())).collect();
                let shown = Shown { keys, invoked, returned: world.now() };
                if life == world.life(plane) {
                    world.record.lock().shown.push((life, shown));
                }
            }
        }
    }
}

async fn in_time<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    let answer = tokio::time::timeout(PATIENCE, call).await;
    answer.unwrap_or_else(|_| Err(Status::unknown("no answer"))).map(tonic::Response::into_inner)
}

/// Reads agents at etcd itself.
async fn read(world: Arc<World>, store: Arc<dyn RegistryStore>, chance: Simulated) {
    while !world.is_over() {
        let agent = usize::try_from(chance.random() % AGENTS as u64).unwrap();
        let invoked = world.now();
        if let Ok(found) = store.get(&format!("{PREFIX}{}", name(agent))).await {
            let found = found.map(|entry| stored(&entry.value));
            let op = Op { action: Action::Read(found), invoked, returned: Some(world.now()) };
            world.record.lock().ops.push((agent, op));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The registration that a value of the store is.
fn stored(value: &[u8]) -> Tag {
    let agent: parallax_runtime::agent::Agent = serde_json::from_slice(value).unwrap();
    agent.metadata.version.parse().unwrap()
}

/// Hears every change from etcd itself, from one revision to another that is set when all is over.
async fn hear(
    world: Arc<World>,
    store: Arc<dyn RegistryStore>,
    until: Arc<Mutex<Option<Revision>>>,
) -> Vec<(usize, State)> {
    let (mut heard, mut after) = (Vec::new(), 0);
    loop {
        let Ok(mut changes) = store.watch(PREFIX, after).await else { continue };
        loop {
            let next = tokio::time::timeout(Duration::from_millis(100), changes.next()).await;
            if until.lock().is_some_and(|until| after >= until) {
                return heard;
            }
            let change = match next {
                Err(_) => continue,
                Ok(Some(Ok(change))) => change,
                // It goes on where it broke off.
                Ok(_) => break,
            };
            let agent = number(change.key().strip_prefix(PREFIX).unwrap());
            let revision = change.revision();
            let tag = match change {
                Change::Put(entry) => Some(stored(&entry.value)),
                Change::Delete { .. } => None,
            };
            after = revision;
            let state = State { revision, tag };
            heard.push((agent, state));
            let now = world.now();
            world.record.lock().heard.entry(revision).or_insert((now, agent, state));
        }
    }
}

/// Watches at a control plane, anew after each of its lives.
async fn watch(world: Arc<World>, mut client: Client, plane: usize) {
    while !world.is_over() {
        let life = world.life(plane);
        let request = WatchRequest { capabilities: vec![], include_initial: false };
        let mut told = Vec::new();
        if let Ok(mut events) = in_time(client.watch(request)).await {
            loop {
                match tokio::time::timeout(Duration::from_millis(100), events.message()).await {
                    Err(_) if world.is_over() => break,
                    Err(_) => {}
                    Ok(Ok(Some(event))) => {
                        let agent = event.agent.as_ref().unwrap();
                        let (number, tag) = (number(&agent.id), tag_of(agent));
                        told.push(match event.r#type() {
                            Type::Deleted => Told::WasGone(number, tag),
                            _ => Told::Is(number, tag),
                        });
                    }
                    Ok(_) => break,
                }
            }
        }
        world.record.lock().told.push((life, told));
        tokio::time::sleep(PAUSE).await;
    }
}

/// Kills and freezes, one after the other.
async fn trouble(world: &World, planes: &mut [Process], etcd: &mut Etcd, chance: &Simulated) {
    let pick = |below: usize| usize::try_from(chance.random() % below as u64).unwrap();
    for fault in 0..FAULTS {
        tokio::time::sleep(Duration::from_millis(200 + pick(300) as u64)).await;
        let (member, pause) = (pick(MEMBERS), Duration::from_millis(300 + pick(900) as u64));
        match fault % 5 {
            0 => {
                let leader = etcd.leader().await;
                etcd.kill(leader);
                tokio::time::sleep(pause).await;
                etcd.run(leader);
            }
            1 => {
                etcd.freeze(member);
                tokio::time::sleep(2 * pause).await;
                etcd.thaw(member);
            }
            2 | 4 => {
                let plane = pick(PLANES);
                world.lives[plane].fetch_add(1, Relaxed);
                planes[plane].kill().await;
                planes[plane].run().await;
                world.lives[plane].fetch_add(1, Relaxed);
            }
            // Nobody can write.
            _ => {
                let other = (member + 1) % MEMBERS;
                etcd.freeze(member);
                etcd.freeze(other);
                tokio::time::sleep(pause).await;
                etcd.thaw(member);
                etcd.thaw(other);
            }
        }
        etcd.up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_the_registry_is_linearizable_and_its_watches_whole() {
    let Some(mut etcd) = Etcd::start(MEMBERS).await else { return };
    let seed = std::env::var("PARALLAX_TEST_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    let ports: [u16; 2 * PLANES] = free_ports();
    let cluster = Cluster::new(&ports[..PLANES]);
    let mut planes = Vec::new();
    for plane in 0..PLANES {
        let settings = format!(
            "[control_plane]\nhttp = \"127.0.0.1:{}\"\ngrpc = \"127.0.0.1:{}\"\n\
             [stores]\nregistry = {:?}\nruns = \"memory:\"\n",
            ports[plane],
            ports[PLANES + plane],
            etcd.url()
        );
        planes.push(cluster.plane(&format!("plane-{plane}"), Kind::ControlPlane, &settings).await);
    }
    let tls = cluster.tls(Kind::Operator, "someone");
    let clients = || ports[PLANES..].iter().map(|port| client(&tls, *port)).collect::<Vec<_>>();
    let url = etcd.url();
    let open = async || Stores::new(System::shared(), Lifecycle::new()).registry(&url).await.unwrap();
    let world = Arc::new(World {
        begun: Instant::now(),
        record: Mutex::default(),
        lives: Default::default(),
        over: AtomicBool::new(false),
        next: AtomicU64::new(1),
    });
    let chance = |n: usize| Simulated::new(seed.wrapping_mul(1000).wrapping_add(n as u64));
    let until = Arc::default();
    let mut ears = Vec::new();
    for _ in 0..READERS {
        ears.push(tokio::spawn(hear(world.clone(), open().await, Arc::clone(&until))));
    }
    let mut tasks = Vec::new();
    for n in 0..READERS {
        tasks.push(tokio::spawn(read(world.clone(), open().await, chance(100 + n))));
    }
    for n in 0..CLIENTS {
        tasks.push(tokio::spawn(act(world.clone(), clients(), chance(n))));
    }
    for (plane, client) in clients().into_iter().enumerate() {
        tasks.push(tokio::spawn(watch(world.clone(), client, plane)));
    }
    trouble(&world, &mut planes, &mut etcd, &chance(200)).await;
    world.over.store(true, Relaxed);
    soon(join_all(tasks)).await.into_iter().for_each(Result::unwrap);
    // What was in flight comes about by now or never; a last registration tells those who listen where the end is.
    let (last, agent, tag) = (open().await, AGENTS, world.next.fetch_add(1, Relaxed));
    let end = soon(async {
        loop {
            world.record.lock().tags.insert(tag, (world.now(), String::new()));
            in_time(clients()[0].register(registration(agent, tag))).await.ok();
            if let Ok(snapshot) = last.list(PREFIX).await
                && let Some(entry) = snapshot.entries.last().filter(|entry| stored(&entry.value) == tag)
            {
                *until.lock() = Some(entry.revision);
                break snapshot;
            }
        }
    })
    .await;
    let heard = soon(join_all(ears)).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    judge(&world, &planes, &heard, seed);
    // And all show it.
    for mut client in clients() {
        soon(async {
            let wanted: Vec<_> = end.entries.iter().map(|entry| stored(&entry.value)).collect();
            loop {
                let page = in_time(client.list_agents(ListAgentsRequest::default())).await;
                if page.is_ok_and(|page| page.agents.iter().map(tag_of).eq(wanted.iter().copied())) {
                    break;
                }
            }
        })
        .await;
    }
}

fn judge(world: &World, planes: &[Process], heard: &[Vec<(usize, State)>], seed: u64) {
    let record = world.record.lock();
    let all: Vec<_> = record.heard.values().map(|(_, agent, state)| (*agent, *state)).collect();
    for one in heard {
        assert_eq!(*one, all, "seed {seed}: each change, once, in order");
    }
    let truth = Truth::new(&all).unwrap();
    // By when a registration had come about that nobody answered for.
    let came: HashMap<Tag, Moment> =
        record.heard.values().filter_map(|(at, _, state)| Some((state.tag?, *at))).collect();
    let mut unknown = 0;
    for agent in 0..AGENTS {
        let ops: Vec<_> = record.ops.iter().filter(|(of, _)| *of == agent).map(|(_, op)| *op).collect();
        let ops: Vec<_> = ops
            .into_iter()
            .filter_map(|mut op| {
                if let (Action::Register(tag), None) = (op.action, op.returned) {
                    unknown += 1;
                    op.returned = Some(*came.get(&tag)?);
                }
                Some(op)
            })
            .collect();
        if let Err(problem) = linearizable(&ops, truth.states(agent)) {
            panic!("seed {seed}, agent {agent}: {problem}");
        }
    }
    let revision =
        |tag: Tag| record.heard.values().find(|(_, _, s)| s.tag == Some(tag)).map(|(_, _, s)| s.revision);
    let mut lives: BTreeMap<Life, Vec<Shown>> = BTreeMap::new();
    for (life, shown) in record.shown.iter().filter(|(life, _)| life.1 % 2 == 0) {
        lives.entry(*life).or_default().push(shown.clone());
    }
    for (life, shown) in &lives {
        let own = record.written.iter().filter(|(of, _, _)| of == life);
        let known: Vec<_> = own.filter_map(|(_, at, tag)| Some((*at, revision(*tag)?))).collect();
        if let Err(problem) = truth.moves_along(shown, &known, |tag| record.tags[&tag].0) {
            panic!("seed {seed}, plane {life:?}: {problem}");
        }
    }
    let mut missed = 0;
    for ((plane, life), told) in &record.told {
        // Only a plane that had to read all anew may have left something out.
        let lossy = planes[*plane].said().contains("reading it again");
        match truth.is_contiguous(told, lossy) {
            Ok(few) => missed += few,
            Err(problem) => panic!("seed {seed}, watch at plane {plane} in life {life}: {problem}"),
        }
    }
    println!(
        "seed {seed}: {} calls ({unknown} registrations unanswered), {} reads of planes, {} changes, {} watches ({missed} \
         changes left out by planes that read all anew)",
        record.ops.len(),
        record.shown.len(),
        all.len(),
        record.told.len()
    );
}
