//! What is measured: our planes and the others, as processes, in front of the same two agents.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use parallax_proto::registry::{AgentRegistration, RegisterRequest, registry_client::RegistryClient};
use parallax_runtime::env::{Env, System};
use parallax_security::{Authority, Expect, Files, Identity, Kind, Tcp, Tls, connect_plain};
use tonic::transport::{Channel, Endpoint};

use crate::Result;

/// Workers of each proxy.
pub const WORKERS: usize = 2;
/// Whatever starts is up by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// How callers come, and how agents are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    H2c,
    Mtls,
}

impl Mode {
    pub const BOTH: [Self; 2] = [Self::H2c, Self::Mtls];

    /// The capability under which the agents are registered so.
    pub fn capability(self) -> &'static str {
        match self {
            Self::H2c => "echo-h2c",
            Self::Mtls => "echo-mtls",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::H2c => "h2c",
            Self::Mtls => "mTLS on both hops",
        }
    }
}

/// A process that ends with its handle.
pub struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        Ok(Self(child))
    }

    /// Its lines up to one that begins so.
    fn lines_until(&mut self, last: &str) -> Result<Vec<String>> {
        let mut lines = BufReader::new(self.0.stdout.take().ok_or("read already")?).lines();
        let mut seen = Vec::new();
        loop {
            let line = lines.next().ok_or_else(|| format!("it ended without saying \"{last}\""))??;
            let done = line.starts_with(last);
            seen.push(line);
            if done {
                return Ok(seen);
            }
        }
    }

    /// It and its children.
    pub fn pids(&self) -> Vec<u32> {
        let own = self.0.id();
        let children =
            std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        [own].into_iter().chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // TERM first: a master takes its workers along.
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        }
        for _ in 0..50 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// One way to the agents.
pub struct Target {
    pub name: &'static str,
    addrs: [Vec<String>; 2],
    /// Who is at the other end over TLS.
    pub kind: Kind,
    /// None for the agents themselves.
    pub process: Option<Process>,
}

impl Target {
    pub fn addrs(&self, mode: Mode) -> &[String] {
        &self.addrs[mode as usize]
    }
}

/// The ground that all share: an authority, a control plane, and two agents that are registered both ways.
pub struct Stage {
    dir: PathBuf,
    authority: Authority,
    control_plane: String,
    agents: Vec<String>,
    /// The control plane and the agents.
    pub processes: Vec<Process>,
}

impl Stage {
    pub async fn set(dir: &Path) -> Result<Self> {
        let authority = Authority::open(&dir.join("ca"), System.system_time())?;
        let mut stage = Self {
            dir: dir.to_owned(),
            authority,
            control_plane: String::new(),
            agents: Vec::new(),
            processes: Vec::new(),
        };
        let settings = "[control_plane]\nhttp = \"127.0.0.1:0\"\ngrpc = \"127.0.0.1:0\"\n\
                        [stores]\nregistry = \"memory:\"\nruns = \"memory:\"\n";
        let (process, addrs) = stage.plane(Kind::ControlPlane, "control-plane", settings)?;
        stage.control_plane = addrs.get("control plane").ok_or("no address")?;
        stage.processes.push(process);
        for n in 0..2 {
            let id = format!("echo-{n}");
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("echo").arg(dir).arg(&id);
            let mut process = Process::start(&mut command, &dir.join("echo.log"))?;
            let addr = process.lines_until("127.")?.pop().ok_or("no address")?;
            stage.processes.push(process);
            stage.register(Mode::Mtls, &id, &addr).await?;
            stage.register(Mode::H2c, &format!("plain-{n}"), &addr).await?;
            stage.agents.push(addr);
        }
        Ok(stage)
    }

    /// Certificates of the authority.
    fn files(&self, kind: Kind, id: &str) -> Result<Files> {
        let identity = Identity::new("default", kind, id)?;
        Ok(self.authority.bundle(&identity, &self.dir.join("tls"), System.system_time())?)
    }

    /// Those of whoever calls.
    pub fn operator(&self) -> Result<Tls> {
        Ok(Tls::load(self.files(Kind::Operator, "bench")?, System.system_time())?)
    }

    async fn register(&self, mode: Mode, id: &str, endpoint: &str) -> Result {
        let (tls, addr) = (self.operator()?, self.control_plane.clone());
        let connector = tower::service_fn(move |_| {
            let (tls, addr) = (tls.clone(), addr.clone());
            async move {
                let stream = match mode {
                    Mode::H2c => connect_plain(&Tcp, &addr).await,
                    Mode::Mtls => tls.connect(&Tcp, &addr, &Expect::kind(Kind::ControlPlane)).await,
                };
                stream.map(TokioIo::new)
            }
        });
        let channel: Channel =
            Endpoint::from_static("http://control-plane").connect_with_connector(connector).await?;
        let agent = AgentRegistration {
            id: id.to_owned(),
            endpoint: endpoint.to_owned(),
            capabilities: vec![mode.capability().to_owned()],
            // Longer than any bench.
            ttl: Some(prost_types::Duration { seconds: 24 * 3600, nanos: 0 }),
            ..Default::default()
        };
        RegistryClient::new(channel)
            .register(RegisterRequest { agent: Some(agent), auto_renew: true })
            .await?;
        Ok(())
    }

    /// One of our planes, and where it listens.
    fn plane(&self, kind: Kind, id: &str, settings: &str) -> Result<(Process, Addresses)> {
        let home = self.dir.join(id);
        std::fs::create_dir_all(&home)?;
        let files = self.files(kind, id)?;
        let tls = format!("[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n", files.ca, files.cert, files.key);
        let config = home.join("parallax.toml");
        std::fs::write(&config, format!("{settings}{tls}"))?;
        let (program, role) = match kind {
            Kind::DataPlane => (env!("CARGO_BIN_EXE_parallax-data-plane"), None),
            _ => (env!("CARGO_BIN_EXE_parallax"), Some("control-plane")),
        };
        let mut command = Command::new(program);
        command.args(role).arg("--data-dir").arg(&home).arg("--config").arg(&config);
        let mut process = Process::start(&mut command, &home.join("log"))?;
        let lines =
            process.lines_until("ready").map_err(|e| format!("{program}: {e}; see {}", home.display()))?;
        Ok((process, Addresses(lines)))
    }

    /// The agents, asked directly.
    pub fn direct(&self) -> Target {
        let addrs = [self.agents.clone(), self.agents.clone()];
        Target { name: "direct", addrs, kind: Kind::Agent, process: None }
    }

    /// A data-plane node with everything on that is on by default.
    pub fn ours(&self, name: &'static str, workers: usize) -> Result<Target> {
        let settings = format!(
            "[control_plane]\nlocal = true\n[data_plane]\ngrpc = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\
             control_plane = {:?}\nworkers = {workers}\n",
            self.control_plane
        );
        let (process, addrs) = self.plane(Kind::DataPlane, &format!("workers-{workers}"), &settings)?;
        let addr = vec![addrs.get("data plane").ok_or("no address")?];
        Ok(Target { name, addrs: [addr.clone(), addr], kind: Kind::DataPlane, process: Some(process) })
    }

    /// Another proxy: its name, the program, and its configuration made of what it needs to know.
    pub fn other(
        &self,
        name: &'static str,
        program: &Path,
        arguments: impl Fn(&Path) -> Vec<String>,
        configuration: impl Fn(&Ground<'_>) -> String,
    ) -> Result<Target> {
        let ports = [free_port()?, free_port()?];
        let files = self.files(Kind::DataPlane, name)?;
        // HAProxy wants both in one file, which the authority's bundle is.
        let ground = Ground { dir: &self.dir, ports, agents: &self.agents, ca: &files.ca, own: &files.cert };
        let extension = if name == "Envoy" { "yaml" } else { "conf" };
        let path = self.dir.join(format!("{name}.{extension}"));
        std::fs::write(&path, configuration(&ground))?;
        let mut command = Command::new(program);
        command.args(arguments(&path)).current_dir(&self.dir);
        let log = self.dir.join(format!("{name}.log"));
        let mut process = Process::start(&mut command, &log)?;
        let begun = std::time::Instant::now();
        for port in ports {
            while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                let ended = process.0.try_wait()?;
                if ended.is_some() || begun.elapsed() > PATIENCE {
                    let said = std::fs::read_to_string(&log).unwrap_or_default();
                    return Err(format!("{name} does not start: {said}").into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let addrs = ports.map(|port| vec![format!("127.0.0.1:{port}")]);
        Ok(Target { name, addrs, kind: Kind::DataPlane, process: Some(process) })
    }
}

/// What a process of ours printed when it was ready.
struct Addresses(Vec<String>);

impl Addresses {
    fn get(&self, what: &str) -> Option<String> {
        let line = self.0.iter().find_map(|line| line.strip_prefix(what))?;
        line.rsplit("://").next().map(|addr| addr.trim().to_owned())
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What a proxy's configuration is made of.
pub struct Ground<'a> {
    pub dir: &'a Path,
    /// For h2c and for mTLS.
    pub ports: [u16; 2],
    pub agents: &'a [String],
    pub ca: &'a Path,
    /// Certificate and key.
    pub own: &'a Path,
}

impl Ground<'_> {
    /// One text per mode.
    fn each(&self, text: impl Fn(Mode, u16) -> String) -> String {
        Mode::BOTH.into_iter().zip(self.ports).map(|(mode, port)| text(mode, port)).collect()
    }

    /// One text per agent.
    fn agents(&self, text: impl Fn(usize, &str) -> String) -> String {
        self.agents.iter().enumerate().map(|(n, agent)| text(n, agent)).collect()
    }
}

/// Envoy's configuration: HTTP/2 on both hops, least request, no access log; limits as wide as ours.
pub fn envoy(ground: &Ground<'_>) -> String {
    let tls = |kind: &str| {
        let (ca, own) = (ground.ca.display(), ground.own.display());
        let required = if kind == "Downstream" { ", require_client_certificate: true" } else { "" };
        format!(
            "transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{ \
             \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext{required}, \
             common_tls_context: {{ alpn_protocols: [h2], \
             tls_certificates: [{{ certificate_chain: {{ filename: \"{own}\" }}, private_key: {{ filename: \"{own}\" }} }}], \
             validation_context: {{ trusted_ca: {{ filename: \"{ca}\" }} }} }} }} }}"
        )
    };
    let mut text = String::from("static_resources:\n  listeners:\n");
    text += &ground.each(|mode, port| {
        let name = mode.capability();
        let socket = if mode == Mode::Mtls { format!("      {}\n", tls("Downstream")) } else { String::new() };
        format!(
            "  - name: {name}\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}\n    \
             filter_chains:\n    - filters:\n      - name: envoy.filters.network.http_connection_manager\n        \
             typed_config:\n          \
             \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
             stat_prefix: {name}\n          codec_type: HTTP2\n          \
             http2_protocol_options: {{ max_concurrent_streams: 4096 }}\n          \
             route_config: {{ virtual_hosts: [{{ name: all, domains: [\"*\"], routes: [{{ match: {{ prefix: \"/\" }}, \
             route: {{ cluster: {name}, timeout: 60s }} }}] }}] }}\n          \
             http_filters: [{{ name: envoy.filters.http.router, typed_config: {{ \
             \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]\n{socket}"
        )
    });
    text += "  clusters:\n";
    text += &ground.each(|mode, _| {
        let name = mode.capability();
        let endpoints = ground.agents(|_, agent| {
            let port = agent.rsplit(':').next().unwrap_or_default();
            format!(
                "{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}, "
            )
        });
        let socket = if mode == Mode::Mtls { format!("    {}\n", tls("Upstream")) } else { String::new() };
        format!(
            "  - name: {name}\n    type: STATIC\n    lb_policy: LEAST_REQUEST\n    \
             circuit_breakers: {{ thresholds: [{{ max_requests: 100000, max_pending_requests: 100000 }}] }}\n    \
             typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
             \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
             explicit_http_config: {{ http2_protocol_options: {{}} }}\n    \
             load_assignment: {{ cluster_name: {name}, endpoints: [{{ lb_endpoints: [{endpoints}] }}] }}\n{socket}"
        )
    });
    text
}

/// HAProxy's.
pub fn haproxy(ground: &Ground<'_>) -> String {
    let (ca, own) = (ground.ca.display(), ground.own.display());
    let mut text = format!(
        "global\n  nbthread {WORKERS}\n  maxconn 4000\n  tune.h2.max-concurrent-streams 4096\n\
         defaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  timeout connect 5s\n  http-reuse always\n  \
         balance leastconn\n"
    );
    text += &ground.each(|mode, port| {
        let secure = mode == Mode::Mtls;
        let bind = if secure {
            format!("ssl crt {own} ca-file {ca} verify required alpn h2")
        } else {
            "proto h2".to_owned()
        };
        let server = if secure {
            format!("ssl crt {own} ca-file {ca} verify required alpn h2")
        } else {
            "proto h2".to_owned()
        };
        let servers = ground.agents(|n, agent| format!("  server agent-{n} {agent} {server}\n"));
        format!("listen {}\n  bind 127.0.0.1:{port} {bind}\n{servers}", mode.capability())
    });
    text
}

/// nginx's.
pub fn nginx(ground: &Ground<'_>) -> String {
    let (dir, ca, own) = (ground.dir.display(), ground.ca.display(), ground.own.display());
    let mut text = format!(
        "worker_processes {WORKERS};\npid {dir}/nginx.pid;\nerror_log {dir}/nginx.log;\ndaemon off;\n\
         events {{ worker_connections 8192; }}\nhttp {{\naccess_log off;\nkeepalive_requests 1000000000;\n\
         http2_max_concurrent_streams 4096;\nclient_body_temp_path {dir}/nginx-body;\ngrpc_read_timeout 60s;\n\
         client_max_body_size 0;\n"
    );
    text += &ground.each(|mode, port| {
        let (name, secure) = (mode.capability(), mode == Mode::Mtls);
        let servers = ground.agents(|_, agent| format!("server {agent}; "));
        let (listen, scheme) = if secure { ("ssl http2 reuseport", "grpcs") } else { ("http2 reuseport", "grpc") };
        let mut tls = String::new();
        if secure {
            write!(
                tls,
                "ssl_certificate {own}; ssl_certificate_key {own}; ssl_client_certificate {ca}; ssl_verify_client on;\n\
                 grpc_ssl_certificate {own}; grpc_ssl_certificate_key {own}; grpc_ssl_trusted_certificate {ca};\n\
                 grpc_ssl_verify on; grpc_ssl_name localhost;\n"
            )
            .expect("a String takes every write");
        }
        format!(
            "upstream {name} {{ least_conn; {servers} keepalive 1024; keepalive_requests 1000000000; }}\n\
             server {{ listen 127.0.0.1:{port} {listen};\n{tls}location / {{ grpc_pass {scheme}://{name}; }} }}\n"
        )
    });
    text + "}\n"
}
