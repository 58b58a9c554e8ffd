//! Both planes in this process, as `parallax start` has them, and the ways to them.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use clap::Parser;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parallax_cli::{
    api::Api,
    args::{Args, Command},
    settings::Settings,
    start::{Planes, Role},
};
use parallax_runtime::env::{Env, System};
use parallax_sdk::{Agent, Handle, Server, TlsOptions};
use parallax_security::{Authority, Expect, Files, Identity, Io, Kind, Tcp, Tls, connect_plain};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Only a test that is broken waits so long.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// Waits for what must come.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, what).await.expect("it comes")
}

pub(crate) struct World {
    planes: Planes,
    authority: Authority,
    dir: TempDir,
}

impl World {
    /// Both planes with stores in memory.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same, with patterns beside the embedded ones: of each its name, further lines of its header, its script.
    pub(crate) async fn start_with_patterns(patterns: &[(&str, &str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        for (name, header, script) in patterns {
            let text = format!("/**\n * @name {name}\n * @version 1.0.0\n * {header}\n */\n{script}\n");
            std::fs::write(dir.path().join(format!("{name}.prism")), text).unwrap();
        }
        let path = dir.path().to_str().unwrap();
        Self::start_with(|settings| path.clone_into(&mut settings.control_plane.patterns)).await
    }

    /// The same, with other settings.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = TempDir::new().unwrap();
        let ports = ["--http", "--grpc", "--data-plane-grpc", "--data-plane-admin"];
        let typed = args(dir.path(), &[&["start"][..], &ports.map(|port| [port, "0"]).concat()].concat());
        let Command::Start(start) = &typed.command else { unreachable!("it was typed") };
        let mut settings = Settings::load(&typed.place, &start.serve.flags()).unwrap().settings;
        for store in
            [&mut settings.stores.registry, &mut settings.stores.runs, &mut settings.stores.confidence]
        {
            "memory:".clone_into(store);
        }
        change(&mut settings);
        let planes = Planes::start(settings, Role::BOTH).await.unwrap();
        let authority = Authority::open_existing(&dir.path().join("ca"), System.system_time()).unwrap();
        Self { planes, authority, dir }
    }

    pub(crate) async fn stop(self) {
        soon(self.planes.stop()).await;
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn grpc(&self) -> String {
        self.planes.addresses.grpc.unwrap().to_string()
    }

    pub(crate) fn http(&self) -> String {
        self.planes.addresses.http.unwrap().to_string()
    }

    pub(crate) fn data_plane(&self) -> String {
        self.planes.addresses.data_plane.unwrap().to_string()
    }

    /// Certificates of this cluster's authority.
    pub(crate) fn files(&self, tenant: &str, kind: Kind, id: &str) -> Files {
        let identity = Identity::new(tenant, kind, id).unwrap();
        self.authority.bundle(&identity, &self.dir.path().join("test"), System.system_time()).unwrap()
    }

    pub(crate) fn tls(&self, tenant: &str, kind: Kind, id: &str) -> Tls {
        Tls::load(self.files(tenant, kind, id), System.system_time()).unwrap()
    }

    /// A gRPC connection to the control plane over mTLS.
    pub(crate) async fn dial(&self, tenant: &str, kind: Kind, id: &str) -> Channel {
        channel(Some(self.tls(tenant, kind, id)), self.grpc()).await
    }

    /// A gRPC connection to the control plane in plaintext.
    pub(crate) async fn dial_plain(&self) -> Channel {
        channel(None, self.grpc()).await
    }

    /// An agent of the default tenant, registered.
    pub(crate) async fn agent(&self, agent: impl Agent) -> Handle {
        join(&self.grpc(), agent, TlsOptions::Local { data_dir: self.data_dir().into() }).await
    }

    /// The HTTP API as commands use it.
    pub(crate) async fn api(&self) -> Api {
        Api::connect(&args(self.data_dir(), &["status"])).await.unwrap()
    }

    /// `GET` over mTLS, as an operator of a tenant.
    pub(crate) async fn get_as(&self, tenant: &str, path: &str) -> (StatusCode, Json) {
        let tls = self.tls(tenant, Kind::Operator, "someone");
        get(tls.connect(&System, &self.http(), &Expect::kind(Kind::ControlPlane)).await.unwrap(), path).await
    }

    /// `GET` in plaintext.
    pub(crate) async fn get_plain(&self, path: &str) -> (StatusCode, Json) {
        get(connect_plain(&System, &self.http()).await.unwrap(), path).await
    }

    /// Runs a pattern to its end; returns what `GET /api/executions/:id` shows of it.
    pub(crate) async fn run(&self, pattern: &str, input: Json) -> Json {
        self.run_with(pattern, input, json!({})).await
    }

    pub(crate) async fn run_with(&self, pattern: &str, input: Json, options: Json) -> Json {
        let mut api = self.api().await;
        let body = json!({"input": input, "options": options});
        let answer = soon(api.post(&format!("/api/patterns/{pattern}/execute"), &body)).await.unwrap();
        let id = answer["execution"]["id"].as_str().unwrap();
        api.get(&format!("/api/executions/{id}")).await.unwrap()
    }
}

async fn get(stream: impl Io + 'static, path: &str) -> (StatusCode, Json) {
    let (mut requests, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://control-plane{path}")).body(Empty::<Bytes>::new()).unwrap();
    let response = soon(requests.send_request(request)).await.unwrap();
    let (status, body) = (response.status(), response.into_body().collect().await.unwrap().to_bytes());
    (status, serde_json::from_slice(&body).unwrap())
}

/// What is typed behind `parallax --data-dir DIR`.
pub(crate) fn args(data_dir: &Path, rest: &[&str]) -> Args {
    let data_dir = data_dir.to_str().unwrap();
    Args::parse_from(["parallax", "--data-dir", data_dir].iter().chain(rest))
}

/// Starts an agent and waits until it is registered.
pub(crate) async fn join(registry: &str, agent: impl Agent, tls: TlsOptions) -> Handle {
    let mut handle = Server::new(agent).registry(registry).tls(tls).bind().await.unwrap();
    soon(handle.registered()).await;
    handle
}

/// A gRPC connection to a control plane: plaintext without certificates.
pub(crate) async fn channel(tls: Option<Tls>, addr: String) -> Channel {
    let connect = service_fn(move |_| {
        let (tls, addr) = (tls.clone(), addr.clone());
        async move {
            let stream = match tls {
                Some(tls) => tls.connect(&Tcp, &addr, &Expect::kind(Kind::ControlPlane)).await,
                None => connect_plain(&Tcp, &addr).await,
            };
            stream.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://control-plane").connect_with_connector(connect).await.unwrap()
}
