//! An agent's place in the registry, against a scripted control plane.
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

#[path = "fixture/cluster.rs"]
#[allow(dead_code)]
mod cluster;

use std::{sync::atomic::Ordering, time::Duration};

use cluster::{Cluster, HANG, Heard};
use parallax_sdk::{Agent, Answer, Error, Files, Server, TlsOptions, agent};
use parallax_security::Kind;

fn greeter() -> impl Agent {
    agent("greeter")
        .name("Greeter")
        .skill("greet", 0.8)
        .capability("wave")
        .version("1.2")
        .label("tier", "demo")
        .answer(|_| async { Answer::new("hi", 0.9) })
}

#[tokio::test]
async fn it_registers_over_mtls_with_what_it_bound() {
    let cluster = Cluster::new();
    let (mut control, handle) = cluster.agent(greeter()).await;
    let (agent, peer) = control.registration().await;
    assert_eq!(peer.unwrap().to_string(), "spiffe://parallax/default/agent/greeter");
    assert_eq!((agent.id.as_str(), agent.name.as_str()), ("greeter", "Greeter"));
    assert_eq!(agent.endpoint, handle.addr().to_string());
    assert_eq!(agent.endpoint, handle.endpoint());
    assert_eq!(agent.capabilities, ["greet", "wave"]);
    assert_eq!(agent.ttl.unwrap().seconds, 60);
    let metadata = agent.metadata.unwrap();
    assert_eq!((metadata.version.as_str(), metadata.labels["tier"].as_str()), ("1.2", "demo"));
    handle.shutdown();
    handle.wait().await.unwrap();
    assert_eq!(control.heard().await, Heard::Unregister("greeter".into()));
}

#[tokio::test]
async fn it_renews_and_registers_again_when_it_was_forgotten() {
    let cluster = Cluster::new();
    let mut control = cluster.control_plane().await;
    let server = cluster.server(greeter(), &control.addr).ttl(Duration::from_millis(30));
    let _handle = server.endpoint("agents.example:7000").bind().await.unwrap();
    let (agent, _) = control.registration().await;
    assert_eq!(agent.endpoint, "agents.example:7000");
    assert_eq!(control.heard().await, Heard::Renew("lease".into()));
    assert_eq!(control.heard().await, Heard::Renew("lease".into()));
    control.script.forgets.store(true, Ordering::SeqCst);
    assert_eq!(control.registration().await.0, agent);
    assert_eq!(control.heard().await, Heard::Renew("lease".into()));
}

#[tokio::test]
async fn a_control_plane_that_comes_late_or_again_meets_it() {
    let cluster = Cluster::new();
    let addr = {
        let gone = cluster.control_plane().await;
        let addr = gone.addr.clone();
        gone.stop().await;
        addr
    };
    // The time to live is a minute: nothing here waits for a renewal.
    let handle = cluster.server(greeter(), &addr).bind().await.unwrap();
    for _ in 0..2 {
        let mut control = cluster.control_plane_at(addr.parse().unwrap()).await;
        assert_eq!(control.registration().await.0.id, "greeter");
        control.stop().await;
    }
    handle.shutdown();
    handle.wait().await.unwrap();
}

#[tokio::test]
async fn a_new_authority_is_taken_up_without_a_restart() {
    let mut cluster = Cluster::new();
    let (control, handle) = cluster.agent(greeter()).await;
    let addr = control.addr.clone();
    control.stop().await;
    cluster.replace_authority();
    let mut control = cluster.control_plane_at(addr.parse().unwrap()).await;
    control.registration().await;
    let mut agent = cluster.call_as(Kind::DataPlane, &handle).await;
    assert!(agent.analyze(cluster::about("x")).await.is_ok());
}

#[tokio::test]
async fn a_refusal_at_first_ends_it_and_later_does_not() {
    let cluster = Cluster::new();
    let mut control = cluster.control_plane().await;
    control.script.refuses.store(true, Ordering::SeqCst);
    let ended = cluster.server(greeter(), &control.addr).bind().await.unwrap().wait().await;
    let expected =
        format!("the control plane at {} refuses the agent greeter: agent.id: is not liked", control.addr);
    assert_eq!(ended.unwrap_err().to_string(), expected);

    control.script.refuses.store(false, Ordering::SeqCst);
    let server = cluster.server(greeter(), &control.addr).ttl(Duration::from_millis(30));
    let _handle = server.bind().await.unwrap();
    control.registration().await;
    control.script.refuses.store(true, Ordering::SeqCst);
    control.script.forgets.store(true, Ordering::SeqCst);
    while control.script.forgets.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    control.script.refuses.store(false, Ordering::SeqCst);
    control.registration().await;
}

#[tokio::test]
async fn what_is_missing_or_wrong_is_named_with_its_cure() {
    let cluster = Cluster::new();
    let bind = async |server: Server| {
        let bound = tokio::time::timeout(HANG, server.registry("127.0.0.1:1").bind()).await.unwrap();
        bound.map(|_| ()).unwrap_err().to_string()
    };
    let nowhere = TlsOptions::Local { data_dir: cluster::nowhere() };
    let error = bind(Server::new(greeter()).tls(nowhere)).await;
    for part in ["/nonexistent/parallax/ca", "`parallax start`", "PARALLAX_TLS_CA", "PARALLAX_TLS=plaintext"]
    {
        assert!(error.contains(part), "{error}");
    }

    let other = TlsOptions::Files(cluster.files(Kind::Agent, "other"));
    let error = bind(Server::new(greeter()).tls(other)).await;
    assert!(error.contains("default/agent/other") && error.contains("<tenant>/agent/greeter"), "{error}");

    let missing = Files { cert: cluster::nowhere(), ..cluster.files(Kind::Agent, "greeter") };
    let error = bind(Server::new(greeter()).tls(TlsOptions::Files(missing))).await;
    assert!(error.contains("/nonexistent/parallax does not exist"), "{error}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let error = bind(Server::new(greeter()).tls(cluster.local()).listen(addr)).await;
    assert!(error.contains(&addr.port().to_string()) && error.contains("taken"), "{error}");

    let error = bind(Server::new(greeter()).tls(cluster.local()).listen(([0, 0, 0, 0], 0).into())).await;
    assert!(error.contains("PARALLAX_AGENT_ENDPOINT") && error.contains("host:port"), "{error}");

    let expert = agent("expert").expertise(7.3).answer(|_| async { Answer::new("hi", 0.9) });
    let error = bind(Server::new(expert).tls(cluster.local())).await;
    assert!(error.contains("expertise is 7.3"), "{error}");

    let unnamed = agent("a b").answer(|_| async { Answer::new("hi", 0.9) });
    let error = bind(Server::new(unnamed).tls(TlsOptions::Plaintext)).await;
    assert!(error.contains("id contains ' '"), "{error}");
}

#[tokio::test]
async fn run_until_ends_when_it_is_told_or_refused() {
    let cluster = Cluster::new();
    let mut control = cluster.control_plane().await;
    cluster
        .server(greeter(), &control.addr)
        .run_until(async { _ = control.registration().await })
        .await
        .unwrap();
    control.script.refuses.store(true, Ordering::SeqCst);
    let ended = cluster.server(greeter(), &control.addr).run_until(std::future::pending()).await;
    assert!(matches!(ended, Err(Error::Refused { .. })));
}
