//! A node under load that is stopped, and one that is given other certificates and settings: no call is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request};
use parallax_sdk::{Answer, Handle, Task, TlsOptions, agent};
use parallax_security::{Expect, Kind, Tcp};
use rustix::process::Signal;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
};

use crate::{
    processes::{Cluster, Process, free_ports},
    world::{join, soon},
};

/// Connections, and callers on each.
const CALLERS: (usize, usize) = (6, 8);

/// A control plane and a node in processes of their own, and an agent that takes its time.
struct World {
    cluster: Cluster,
    control_plane: Process,
    node: Process,
    addr: String,
    admin: u16,
    agent: Handle,
}

impl World {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// With settings that both processes have.
    async fn start_with(common: &str) -> Self {
        let [http, grpc, node, admin] = free_ports();
        let cluster = Cluster::new(&[http]);
        let settings = format!(
            "{common}[control_plane]\nhttp = \"127.0.0.1:{http}\"\ngrpc = \"127.0.0.1:{grpc}\"\n\
             [stores]\nregistry = \"memory:\"\nruns = \"memory:\"\n"
        );
        let control_plane = cluster.plane("one", Kind::ControlPlane, &settings).await;
        let settings = format!(
            "{common}[data_plane]\ngrpc = \"127.0.0.1:{node}\"\nadmin = \"127.0.0.1:{admin}\"\nworkers = 2\n\
             control_plane = \"127.0.0.1:{grpc}\"\n[stores]\nconfidence = \"memory:\"\n"
        );
        let process = cluster.plane("node", Kind::DataPlane, &settings).await;
        let answering = agent("a").answer(|_: Task| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Answer::new("yes", 0.9)
        });
        let tls = TlsOptions::Files(cluster.files(Kind::Agent, "a"));
        let agent = join(&format!("127.0.0.1:{grpc}"), answering, tls).await;
        Self { cluster, control_plane, node: process, addr: format!("127.0.0.1:{node}"), admin, agent }
    }

    async fn connect(&self) -> SendRequest<Bytes> {
        let tls = self.cluster.tls(Kind::Operator, "caller");
        let stream = tls.connect(&Tcp, &self.addr, &Expect::kind(Kind::DataPlane)).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async { _ = connection.await });
        send
    }

    /// Waits until the node's log says something for so many times.
    async fn says(&self, text: &str, times: usize) {
        soon(async {
            while self.node.said().matches(text).count() < times {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Whether it serves one more connection.
    async fn takes_another(&self) -> bool {
        let tls = self.cluster.tls(Kind::Operator, "caller");
        let Ok(stream) = tls.connect(&Tcp, &self.addr, &Expect::kind(Kind::DataPlane)).await else {
            return false;
        };
        let Ok((mut send, connection)) = h2::client::handshake(stream).await else { return false };
        tokio::spawn(async { _ = connection.await });
        soon(ask(&mut send)).await.is_ok_and(|status| status == Some(0))
    }

    /// Callers that ask again and again, until the node says goodbye or they are told to stop, and count. A call that the
    /// node may have seen, and that was not answered well, is a panic.
    async fn load(&self, until: &watch::Receiver<bool>, calls: &Arc<AtomicUsize>) -> JoinSet<()> {
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS.0 {
            let send = self.connect().await;
            soon(async { while ask(&mut send.clone()).await.unwrap() != Some(0) {} }).await;
            for _ in 0..CALLERS.1 {
                let (mut send, until, calls) = (send.clone(), until.clone(), calls.clone());
                callers.spawn(async move {
                    while !*until.borrow() {
                        match ask(&mut send).await {
                            Ok(Some(status)) => assert_eq!(status, 0),
                            Ok(None) => return,
                            Err(e) => panic!("a call was lost: {e}"),
                        }
                        calls.fetch_add(1, SeqCst);
                    }
                });
            }
        }
        callers
    }
}

/// Waits for callers to end; each must have ended well.
async fn ended(mut callers: JoinSet<()>) {
    while let Some(ended) = soon(callers.join_next()).await {
        ended.unwrap();
    }
}

/// A call's gRPC status; none if the node had said goodbye and did not take it.
async fn ask(send: &mut SendRequest<Bytes>) -> Result<Option<i32>, h2::Error> {
    let refused = |e: h2::Error| if e.is_go_away() && e.is_remote() { Ok(None) } else { Err(e) };
    if let Err(e) = std::future::poll_fn(|cx| send.poll_ready(cx)).await {
        return refused(e);
    }
    let request = Request::post("https://node/parallax.confidence.ConfidenceAgent/Analyze")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-parallax-agent", "a");
    let (response, mut body) = match send.send_request(request.body(()).unwrap(), false) {
        Ok(sent) => sent,
        Err(e) => return refused(e),
    };
    body.send_data(Bytes::from_static(&[0; 5]), true)?;
    let (head, mut body) = match response.await {
        Ok(response) => response.into_parts(),
        Err(e) => return refused(e),
    };
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    Ok(Some(trailers["grpc-status"].to_str().unwrap().parse().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_to_stop_finishes_what_it_has_begun() {
    let mut world = World::start().await;
    let (_going_on, until) = watch::channel(false);
    let calls = Arc::new(AtomicUsize::new(0));
    let callers = world.load(&until, &calls).await;
    soon(async {
        while calls.load(SeqCst) < 10 * CALLERS.0 * CALLERS.1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.node.signal(Signal::TERM);
    ended(callers).await;
    assert!(world.node.ended().await.success());
    world.agent.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_stop_says_so_and_goes_on_until_it_has_been_noticed() {
    let mut world = World::start_with("shutdown_delay_seconds = 600\n").await;
    world.node.signal(Signal::TERM);
    world.says("not ready any more", 1).await;
    let mut admin = TcpStream::connect(("127.0.0.1", world.admin)).await.unwrap();
    admin.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon(admin.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.contains(" 503 ") && answer.ends_with(r#""pending":["stopping"]}"#), "{answer}");
    assert!(world.takes_another().await);

    world.control_plane.signal(Signal::TERM);
    let pending = |answer: &Json| (answer["pending"] == json!(["stopping"])).then_some(());
    world.cluster.insist(Method::GET, "/health/ready", Json::Null, pending).await;
    world.agent.shutdown();
    soon(world.agent.wait()).await.unwrap();

    for process in [&mut world.node, &mut world.control_plane] {
        process.signal(Signal::TERM);
        assert!(process.ended().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_certificates_are_taken_up_at_a_hangup_and_no_call_is_lost() {
    let world = World::start().await;
    let (stop, until) = watch::channel(false);
    let calls = Arc::new(AtomicUsize::new(0));
    let callers = world.load(&until, &calls).await;
    for round in 1..=3 {
        std::fs::remove_file(world.cluster.files(Kind::DataPlane, "node").cert).unwrap();
        world.cluster.files(Kind::DataPlane, "node");
        world.node.signal(Signal::HUP);
        world.says("certificates were replaced", round).await;
        assert_eq!(soon(ask(&mut world.connect().await)).await.unwrap(), Some(0));
    }
    let before = calls.load(SeqCst);
    soon(async {
        while calls.load(SeqCst) < before + CALLERS.0 * CALLERS.1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    stop.send(true).unwrap();
    ended(callers).await;
    world.agent.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_settings_are_taken_up_at_a_hangup_and_no_call_is_lost() {
    let world = World::start().await;
    let (stop, until) = watch::channel(false);
    let calls = Arc::new(AtomicUsize::new(0));
    let callers = world.load(&until, &calls).await;
    let file = world.cluster.dir().join("node/parallax.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    // What it says then, and whether it takes another connection beside those of the callers.
    let steps = [
        ("max_connections = 2\n", "data_plane.max_connections is 2 from now on", false),
        (
            "max_connections = 0\n",
            "the settings stay as they were: the setting data_plane.max_connections",
            false,
        ),
        (
            "max_connections = 99\ncontrol_plane = \"10.0.0.1:1\"\n",
            "is \"10.0.0.1:1\" from the next start on",
            true,
        ),
        ("max_conections = 9\n", "did you mean \"data_plane.max_connections\"?", true),
    ];
    for (setting, said, more) in steps {
        let named = setting.contains("control_plane");
        let kept = before.lines().filter(|line| !(named && line.starts_with("control_plane")));
        let changed = kept
            .collect::<Vec<_>>()
            .join("\n")
            .replace("[data_plane]\n", &format!("[data_plane]\n{setting}"));
        std::fs::write(&file, changed).unwrap();
        world.node.signal(Signal::HUP);
        world.says(said, 1).await;
        assert_eq!(world.takes_another().await, more, "after {setting:?}");
    }
    stop.send(true).unwrap();
    ended(callers).await;
    world.agent.shutdown();
}
