//! A node among scripted peers: its own authority, a control plane that says what the test says, and a store
//! that can be read.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use parallax_data_plane::{Config, DataPlane, Policy};
use parallax_proto::{
    controlplane::v1::{
        AgentKey, AgentRecord, DirectoryUpdate, FollowRequest, Heartbeat, Snapshot, Transport,
        directory_server::{Directory, DirectoryServer},
        directory_update::Update,
    },
    registry::AgentRegistration,
};
use parallax_runtime::{
    env::{Env, System},
    lifecycle::Lifecycle,
    serve,
    store::{ConfidenceStore, Sample, SampleQuery, Stores},
};
use parallax_security::{Alpn, Authority, Expect, Identity, Kind, Plaintext, Tcp, Tls, connect_plain};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Response, Status,
    service::Routes,
    transport::{Channel, Endpoint},
};

/// Nothing here takes a tenth of it, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("still waiting: {what}"))
}

/// Asks again until the answer is there.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    within(what, async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

pub(crate) struct World {
    dir: TempDir,
    authority: Authority,
    pub(crate) control_plane: ControlPlane,
    pub(crate) store: Arc<dyn ConfidenceStore>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let env = System::shared();
        let dir = TempDir::new().unwrap();
        let authority = Authority::open(&dir.path().join("ca"), env.system_time()).unwrap();
        let store = Stores::new(env, Lifecycle::new()).confidence("memory:").await.unwrap();
        let control_plane = ControlPlane::new();
        let world = Self { dir, authority, control_plane, store };
        world.control_plane.start(&world).await;
        world
    }

    pub(crate) fn tls(&self, tenant: &str, kind: Kind, id: &str) -> Tls {
        let identity = Identity::new(tenant, kind, id).unwrap();
        let dir = self.dir.path().join("bundles");
        let files = self.authority.bundle(&identity, &dir, System.system_time()).unwrap();
        Tls::load(files, System.system_time()).unwrap()
    }

    /// A node with settings that suit a test.
    pub(crate) async fn node(&self) -> Node {
        self.node_with(|_| {}).await
    }

    pub(crate) async fn node_with(&self, change: impl FnOnce(&mut Config)) -> Node {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config {
            grpc: free,
            admin: free,
            control_planes: vec![self.control_plane.addr().to_string()],
            plaintext: Plaintext::Loopback,
            workers: 1,
            breaker: Policy { first: Duration::from_millis(100), ..Policy::default() },
            follow_backoff: (Duration::from_millis(5), Duration::from_millis(20)),
            connect_backoff: (Duration::from_millis(5), Duration::from_millis(20)),
            ..Config::default()
        };
        change(&mut config);
        let life = Lifecycle::new();
        let tls = self.tls("default", Kind::DataPlane, "node");
        let plane = DataPlane::bind(config, tls, System::shared(), self.store.clone(), &life).await.unwrap();
        Node { plane, life }
    }

    /// A node that knows the agents that the control plane has by now.
    pub(crate) async fn ready_node(&self) -> Node {
        let node = self.node().await;
        within("the node is ready", node.plane.readiness().ready()).await;
        node
    }

    /// Calls the node as somebody.
    pub(crate) async fn caller(&self, node: &Node, tenant: &str, kind: Kind) -> Channel {
        let (tls, addr) = (self.tls(tenant, kind, "caller"), node.plane.grpc_addr().to_string());
        let connector = tower::service_fn(move |_: http::Uri| {
            let (tls, addr) = (tls.clone(), addr.clone());
            async move {
                let expect = Expect::kind(Kind::DataPlane);
                tls.connect(&Tcp, &addr, &expect).await.map(hyper_util::rt::TokioIo::new)
            }
        });
        Endpoint::from_static("http://node").connect_with_connector(connector).await.unwrap()
    }

    pub(crate) async fn operator(&self, node: &Node) -> Channel {
        self.caller(node, "default", Kind::Operator).await
    }

    pub(crate) async fn driver(&self, node: &Node) -> Channel {
        self.caller(node, "default", Kind::ControlPlane).await
    }

    /// Calls the node without TLS.
    pub(crate) async fn plain_caller(&self, node: &Node) -> Channel {
        let addr = node.plane.grpc_addr().to_string();
        let connector = tower::service_fn(move |_: http::Uri| {
            let addr = addr.clone();
            async move { connect_plain(&Tcp, &addr).await.map(hyper_util::rt::TokioIo::new) }
        });
        Endpoint::from_static("http://node").connect_with_connector(connector).await.unwrap()
    }

    /// The samples of an agent, once there are `count`.
    pub(crate) async fn samples(&self, agent: &str, count: usize) -> Vec<Sample> {
        let query = SampleQuery {
            tenant: "default".into(),
            agent_id: agent.into(),
            since: jiff::Timestamp::UNIX_EPOCH,
            until: jiff::Timestamp::MAX,
            limit: 10_000,
        };
        until("samples are stored", || async {
            let samples = self.store.query(&query).await.unwrap();
            (samples.len() >= count).then_some(samples)
        })
        .await
    }
}

pub(crate) struct Node {
    pub(crate) plane: DataPlane,
    pub(crate) life: Lifecycle,
}

impl Node {
    /// What the admin port answers: status and body.
    pub(crate) async fn admin(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.plane.admin_addr()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// One agent as `GET /agents` shows it.
    pub(crate) async fn agent(&self, id: &str) -> Option<serde_json::Value> {
        let (_, body) = self.admin("/agents").await;
        let agents: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
        agents.into_iter().find(|agent| agent["id"] == id)
    }

    /// Waits for an agent to be shown so.
    pub(crate) async fn shows(&self, id: &str, field: &str, value: impl Into<serde_json::Value>) {
        let value = value.into();
        until(&format!("{id}.{field} is {value}"), || async {
            self.agent(id).await.filter(|agent| agent[field] == value).map(drop)
        })
        .await;
    }
}

/// A registration as the control plane reports it.
pub(crate) fn record(id: &str, endpoint: SocketAddr, transport: Transport) -> AgentRecord {
    AgentRecord {
        tenant: "default".into(),
        registration: Some(AgentRegistration {
            id: id.into(),
            endpoint: endpoint.to_string(),
            capabilities: vec!["test".into(), format!("only-{id}")],
            ..Default::default()
        }),
        transport: transport.into(),
    }
}

type Follower = mpsc::UnboundedSender<Result<DirectoryUpdate, Status>>;

/// A control plane's directory. It can be stopped and started again on the same port.
#[derive(Clone)]
pub(crate) struct ControlPlane(Arc<Mutex<Script>>);

struct Script {
    addr: SocketAddr,
    life: Lifecycle,
    revision: u64,
    agents: Vec<AgentRecord>,
    followers: Vec<Follower>,
    joined: Vec<FollowRequest>,
    /// Without it followers wait for their first message.
    talks: bool,
    heartbeat: Option<u32>,
}

impl ControlPlane {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Script {
            addr: ([127, 0, 0, 1], 0).into(),
            life: Lifecycle::new(),
            revision: 1,
            agents: Vec::new(),
            followers: Vec::new(),
            joined: Vec::new(),
            talks: true,
            heartbeat: None,
        })))
    }

    pub(crate) async fn start(&self, world: &World) {
        let listener = TcpListener::bind(self.addr()).await.unwrap();
        let life = Lifecycle::new();
        {
            let mut script = self.0.lock().unwrap();
            script.addr = listener.local_addr().unwrap();
            script.life = life.clone();
        }
        let acceptor =
            world.tls("default", Kind::ControlPlane, "one").acceptor(Alpn::Grpc, Plaintext::Refuse);
        let router = Routes::new(DirectoryServer::new(self.clone())).into_axum_router();
        serve::serve(&life, "control plane", listener, acceptor, router);
    }

    /// Gone: the port is closed, and so are its streams.
    pub(crate) async fn stop(&self) {
        let life = {
            let mut script = self.0.lock().unwrap();
            script.followers.clear();
            script.life.clone()
        };
        assert!(life.drain(PATIENCE).await);
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.0.lock().unwrap().addr
    }

    /// Who has joined so far.
    pub(crate) fn joined(&self) -> Vec<FollowRequest> {
        self.0.lock().unwrap().joined.clone()
    }

    /// Names a heartbeat interval to those who join, and sends no heartbeat.
    pub(crate) fn promise_heartbeats(&self, interval_ms: u32) {
        self.0.lock().unwrap().heartbeat = Some(interval_ms);
    }

    /// Says nothing to those who join, until `false`.
    pub(crate) fn silent(&self, silent: bool) {
        self.0.lock().unwrap().talks = !silent;
    }

    pub(crate) fn put(&self, record: AgentRecord) {
        let mut script = self.0.lock().unwrap();
        let id = record.registration.as_ref().unwrap().id.clone();
        script.forget(&record.tenant, &id);
        script.agents.push(record.clone());
        script.say(Update::Upsert(record));
    }

    pub(crate) fn remove(&self, id: &str) {
        let mut script = self.0.lock().unwrap();
        script.forget("default", id);
        script.say(Update::Remove(AgentKey { tenant: "default".into(), agent_id: id.into() }));
    }
}

impl Script {
    fn forget(&mut self, tenant: &str, id: &str) {
        self.agents.retain(|known| known.tenant != tenant || known.registration.as_ref().unwrap().id != id);
    }

    fn say(&mut self, update: Update) {
        self.revision += 1;
        let message = DirectoryUpdate { revision: self.revision, update: Some(update) };
        self.followers.retain(|follower| follower.send(Ok(message.clone())).is_ok());
    }
}

#[tonic::async_trait]
impl Directory for ControlPlane {
    type FollowStream = UnboundedReceiverStream<Result<DirectoryUpdate, Status>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let mut script = self.0.lock().unwrap();
        let (follower, stream) = mpsc::unbounded_channel();
        script.joined.push(request.into_inner());
        if script.talks {
            let update = |update| Ok(DirectoryUpdate { revision: script.revision, update: Some(update) });
            let snapshot = Snapshot { agents: script.agents.clone() };
            follower.send(update(Update::Snapshot(snapshot))).unwrap();
            if let Some(interval_ms) = script.heartbeat {
                follower.send(update(Update::Heartbeat(Heartbeat { interval_ms }))).unwrap();
            }
        }
        script.followers.push(follower);
        Ok(Response::new(UnboundedReceiverStream::new(stream)))
    }
}
