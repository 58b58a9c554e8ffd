//! A control plane that serves, and the ways to it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use parallax_control_plane::{Bounds, Config, ControlPlane};
use parallax_proto::registry::{AgentRegistration, RegisterRequest, registry_client::RegistryClient};
use parallax_runtime::{
    env::{Env, System},
    lifecycle::Lifecycle,
    store::{RegistryStore, RunStore},
};
use parallax_security::{Authority, Expect, Identity, Kind, Tls};
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

pub(crate) type Registry = RegistryClient<Channel>;

/// Waits for what must come; only a test that is broken waits to the end.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it comes")
}

/// How a plane is started.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    /// Stores in files, not in memory.
    pub(crate) on_disk: bool,
    pub(crate) nodes_wanted: usize,
    /// Patterns beside the embedded ones: name and script.
    pub(crate) patterns: Vec<(&'static str, &'static str)>,
    /// Of runs that are driven at once, and that wait.
    pub(crate) admitted: Option<(usize, usize)>,
    pub(crate) owner_ttl: Option<Duration>,
}

pub(crate) struct World {
    pub(crate) plane: ControlPlane,
    authority: Arc<Authority>,
    setup: Setup,
    stores: Stores,
    life: Lifecycle,
    dir: Arc<TempDir>,
}

/// What planes share.
#[derive(Clone)]
struct Stores {
    registry: Arc<dyn RegistryStore>,
    runs: Arc<dyn RunStore>,
    /// Of their upkeep: leases run out also when the plane that came first has stopped.
    life: Lifecycle,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    pub(crate) async fn start_with(setup: Setup) -> Self {
        let dir = prepared(&setup);
        Self::open(setup, dir, |runs| runs).await
    }

    /// The same, with something between the plane and its runs.
    pub(crate) async fn start_over<S: RunStore + 'static>(
        setup: Setup,
        over: impl FnOnce(Arc<dyn RunStore>) -> Arc<S>,
    ) -> (Self, Arc<S>) {
        let dir = prepared(&setup);
        let mut between = None;
        let world = Self::open(setup, dir, |runs| between.insert(over(runs)).clone()).await;
        (world, between.expect("it was opened"))
    }

    async fn open(
        setup: Setup,
        dir: Arc<TempDir>,
        over: impl FnOnce(Arc<dyn RunStore>) -> Arc<dyn RunStore>,
    ) -> Self {
        let life = Lifecycle::new();
        let open = parallax_runtime::store::Stores::new(System::shared(), life.clone());
        let url = |name: &str| match setup.on_disk {
            true => format!("embedded:{}", dir.path().join(name).display()),
            false => "memory:".to_owned(),
        };
        let registry = open.registry(&url("registry.db")).await.unwrap();
        let runs = over(open.runs(&url("runs.db")).await.unwrap());
        Self::serve(setup, dir, Stores { registry, runs, life }).await
    }

    async fn serve(setup: Setup, dir: Arc<TempDir>, stores: Stores) -> Self {
        let life = Lifecycle::new();
        let authority = Authority::open(&dir.path().join("ca"), System.system_time()).unwrap();
        let any = ([127, 0, 0, 1], 0).into();
        let mut bounds = Bounds {
            run_timeout: Duration::from_secs(60),
            call_timeout: Duration::from_secs(60),
            ..Bounds::default()
        };
        (bounds.runs_at_once, bounds.runs_waiting) =
            setup.admitted.unwrap_or((bounds.runs_at_once, bounds.runs_waiting));
        bounds.owner_ttl = setup.owner_ttl.unwrap_or(bounds.owner_ttl);
        let config = Config {
            grpc: any,
            http: any,
            local: true,
            patterns: Some(dir.path().join("patterns")),
            bounds,
            advertise: None,
            private_webhooks: true,
            nodes_wanted: setup.nodes_wanted,
        };
        let tls = tls(&authority, dir.path().join("tls"), "default", Kind::ControlPlane, "plane");
        let Stores { registry, runs, .. } = stores.clone();
        let plane = ControlPlane::start(config, tls, System::shared(), registry, runs, &life).await.unwrap();
        Self { plane, authority: Arc::new(authority), setup, stores, life, dir }
    }

    /// Another plane on the same stores.
    pub(crate) async fn another(&self) -> Self {
        Self::serve(self.setup.clone(), self.dir.clone(), self.stores.clone()).await
    }

    /// Stops the plane, and starts one on the same files.
    pub(crate) async fn restart(self) -> Self {
        self.stop().await;
        assert!(self.stores.life.drain(Duration::from_secs(60)).await);
        drop(self.plane);
        Self::open(self.setup, self.dir, |runs| runs).await
    }

    /// Stops the plane, and leaves its stores to the others.
    pub(crate) async fn stop(&self) {
        assert!(self.life.drain(Duration::from_secs(60)).await);
    }

    /// Where a pattern of the directory stands.
    pub(crate) fn pattern_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("patterns").join(format!("{name}.prism"))
    }

    /// A gRPC connection over mTLS, as somebody of the default tenant.
    pub(crate) async fn dial(&self, kind: Kind, id: &str) -> Channel {
        let tls = tls(&self.authority, self.dir.path().join("tls"), "default", kind, id);
        let addr = self.plane.grpc.to_string();
        let connect = service_fn(move |_| {
            let (tls, addr) = (tls.clone(), addr.clone());
            async move { tls.connect(&System, &addr, &Expect::kind(Kind::ControlPlane)).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://control-plane").connect_with_connector(connect).await.unwrap()
    }

    /// The registry, as an agent reaches it.
    pub(crate) async fn as_agent(&self, id: &str) -> Registry {
        RegistryClient::new(self.dial(Kind::Agent, id).await)
    }

    /// The registry, as an operator reaches it.
    pub(crate) async fn as_operator(&self) -> Registry {
        RegistryClient::new(self.dial(Kind::Operator, "someone").await)
    }

    /// An HTTP/1.1 request in plaintext, byte for byte as a client without TLS sends it.
    pub(crate) async fn http(&self, method: &str, path: &str, body: &str) -> Response {
        self.http_as("host: localhost", method, path, body).await
    }

    /// The same with other headers.
    pub(crate) async fn http_as(&self, headers: &str, method: &str, path: &str, body: &str) -> Response {
        let mut stream = TcpStream::connect(self.plane.http).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{headers}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        soon(stream.read_to_end(&mut bytes)).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        Response { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.http("GET", path, "").await
    }
}

/// A directory with the patterns in it.
fn prepared(setup: &Setup) -> Arc<TempDir> {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("patterns")).unwrap();
    for (name, script) in &setup.patterns {
        let text = format!("/**\n * @name {name}\n * @version 2.1.0\n * @tags own\n */\n{script}\n");
        std::fs::write(dir.path().join("patterns").join(format!("{name}.prism")), text).unwrap();
    }
    Arc::new(dir)
}

fn tls(authority: &Authority, dir: PathBuf, tenant: &str, kind: Kind, id: &str) -> Tls {
    let (identity, now) = (Identity::new(tenant, kind, id).unwrap(), System.system_time());
    Tls::load(authority.bundle(&identity, &dir, now).unwrap(), now).unwrap()
}

/// What an HTTP request brought.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Status line and headers in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Checks that it is a problem of this status and code, complete in both forms; returns its text.
    pub(crate) fn problem(&self, status: u16, code: &str) -> String {
        let problem = self.json();
        assert_eq!((self.status, problem["code"].as_str()), (status, Some(code)), "{self:?}");
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string() && problem["type"].is_string(), "{problem}");
        assert_eq!(problem["error"], problem["detail"]);
        problem["error"].as_str().unwrap().to_owned()
    }
}

/// A registration with these capabilities.
pub(crate) fn registration(id: &str, capabilities: &[&str]) -> RegisterRequest {
    let agent = AgentRegistration {
        id: id.to_owned(),
        endpoint: "127.0.0.1:7001".to_owned(),
        capabilities: capabilities.iter().map(|&c| c.to_owned()).collect(),
        ..AgentRegistration::default()
    };
    RegisterRequest { agent: Some(agent), auto_renew: false }
}

/// Registers, and returns the lease.
pub(crate) async fn register(registry: &mut Registry, request: RegisterRequest) -> String {
    let response = registry.register(request).await.unwrap().into_inner();
    assert!(response.success && !response.lease_id.is_empty(), "{response:?}");
    response.lease_id
}
