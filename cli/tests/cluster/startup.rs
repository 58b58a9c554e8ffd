//! Starting and stopping the program, and what keeps it from starting.

use std::{net::TcpListener, path::Path, time::Duration};

use parallax_cli::instance;
use parallax_runtime::env::{Env, System};
use parallax_security::{Authority, Identity, Kind};
use serde_json::Value as Json;
use tempfile::TempDir;

use crate::{
    program::{ANY_PORTS, Instance, ended, gone, parallax, run},
    world::soon,
};

#[tokio::test]
async fn it_starts_tells_its_status_and_stops() {
    let dir = TempDir::new().unwrap();
    let instance = Instance::start(dir.path()).await;
    let status = run(dir.path(), &["status"]).await;
    assert_eq!((status.code, status.err.as_str()), (0, ""));
    assert!(status.out.contains("control plane  healthy"), "{}", status.out);
    let status: Json = serde_json::from_str(&run(dir.path(), &["status", "--json"]).await.out).unwrap();
    assert_eq!((&status["health"]["status"], &status["agents"]), (&"healthy".into(), &0.into()));
    assert_eq!(status["instance"]["pid"], instance.addresses.pid);
    assert_eq!(status["dataPlaneNodes"].as_array().unwrap().len(), 1);

    for second in [&["start"][..], &["start", "-d"]] {
        let second = run(dir.path(), &[second, &ANY_PORTS].concat()).await;
        assert_eq!(second.code, 1);
        let complaint = second.complaint();
        for named in [dir.path().to_str().unwrap(), &instance.addresses.pid.to_string(), "already runs"] {
            assert!(complaint.contains(named), "{complaint}");
        }
    }

    let stopped = run(dir.path(), &["stop"]).await;
    assert_eq!((stopped.code, stopped.err.as_str()), (0, ""));
    gone(dir.path()).await;
    // Nobody listens on port 1.
    for command in [&["status", "--api-url", "https://127.0.0.1:1"][..], &["stop"]] {
        let after = run(dir.path(), command).await;
        assert_eq!(after.code, 3, "{command:?}: {}", after.err);
        after.complaint();
    }
}

#[tokio::test]
async fn each_plane_may_have_a_process_of_its_own() {
    let dir = TempDir::new().unwrap();
    let start = async |flags: &[&str]| {
        let started = run(dir.path(), &[&["start", "-d"], flags, &ANY_PORTS].concat()).await;
        assert_eq!(started.code, 0, "{}", started.err);
    };
    start(&["--control-plane-only"]).await;
    start(&["--data-plane-only"]).await;
    let _planes: Vec<_> =
        instance::running(dir.path()).into_iter().map(|addresses| Instance { addresses }).collect();
    // It has found the control plane, and trusts its authority.
    soon(async {
        loop {
            let status = run(dir.path(), &["status", "--json"]).await;
            let status: Json = serde_json::from_str(&status.out).unwrap();
            if status["dataPlaneNodes"].as_array().unwrap().len() == 1 {
                break;
            }
        }
    })
    .await;
    for taken in [&["start"][..], &["start", "--data-plane-only"], &["start", "-d", "--control-plane-only"]] {
        let refused = run(dir.path(), &[taken, &ANY_PORTS].concat()).await;
        assert!(refused.code == 1 && refused.complaint().contains("already runs"), "{}", refused.err);
    }
    let stopped = run(dir.path(), &["stop"]).await;
    assert_eq!((stopped.code, stopped.out.lines().count()), (0, 2), "{}{}", stopped.out, stopped.err);
    gone(dir.path()).await;
}

/// It would be as large as the whole.
#[test]
fn the_node_alone_holds_no_control_plane() {
    // One of those that every control plane has.
    let pattern = include_bytes!("../../../patterns/debate.prism");
    let holds = |program: &str| {
        std::fs::read(program).unwrap().windows(pattern.len()).any(|window| window == pattern)
    };
    assert!(holds(env!("CARGO_BIN_EXE_parallax")));
    assert!(!holds(env!("CARGO_BIN_EXE_parallax-data-plane")));
}

/// What a start that cannot be complains of.
async fn refused(data_dir: &Path, flags: &[&str], env: &[(&str, &Path)]) -> String {
    let mut start = parallax(data_dir, &[&["start"], flags].concat());
    let refused = ended({
        start.envs(env.iter().copied());
        start
    })
    .await;
    assert_eq!(refused.code, 2, "{}", refused.err);
    // Detached, the same line reaches the same place.
    let mut start = parallax(data_dir, &[&["start", "-d"], flags].concat());
    start.envs(env.iter().copied());
    let detached = ended(start).await;
    assert_eq!((detached.code, detached.complaint()), (2, refused.complaint()));
    refused.complaint().to_owned()
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--http", "--grpc", "--data-plane-grpc", "--data-plane-admin"] {
        let mut flags = ANY_PORTS.to_vec();
        let position = flags.iter().position(|f| *f == flag).unwrap();
        flags[position + 1] = &port;
        let complaint = refused(dir.path(), &flags, &[]).await;
        assert!(complaint.contains(&port) && complaint.contains("taken"), "{complaint}");
    }
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_named() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let complaint = refused(&path, &ANY_PORTS, &[]).await;
        assert!(complaint.contains(path.to_str().unwrap()), "{complaint}");
    }
}

#[tokio::test]
async fn certificates_that_are_missing_or_expired_are_named() {
    let dir = TempDir::new().unwrap();
    let day = Duration::from_secs(24 * 3600);
    let now = System.system_time();
    let authority = Authority::open(&dir.path().join("other-ca"), now - 60 * day).unwrap();
    let identity = Identity::new("default", Kind::ControlPlane, "control-plane").unwrap();
    let expired = authority.bundle(&identity, &dir.path().join("old"), now - 60 * day).unwrap();
    let missing = dir.path().join("nowhere.pem");
    let env =
        |ca, cert| [("PARALLAX_TLS__CA", ca), ("PARALLAX_TLS__CERT", cert), ("PARALLAX_TLS__KEY", cert)];

    let complaint = refused(dir.path(), &ANY_PORTS, &env(&*expired.ca, &*expired.cert)).await;
    assert!(
        complaint.contains(expired.cert.to_str().unwrap()) && complaint.contains("expired"),
        "{complaint}"
    );
    for (ca, cert) in [(&*expired.ca, &*missing), (&*missing, &*expired.cert)] {
        let complaint = refused(dir.path(), &ANY_PORTS, &env(ca, cert)).await;
        assert!(complaint.contains(missing.to_str().unwrap()), "{complaint}");
    }
    let some = [("PARALLAX_TLS__CA", &*expired.ca)];
    assert!(refused(dir.path(), &ANY_PORTS, &some).await.contains("all three or none"));
}

#[tokio::test]
async fn settings_that_are_none_are_named() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("parallax.toml");
    std::fs::write(&config, "[control_plane]\nrun_timeout_secs = 3\n").unwrap();
    let complaint = refused(dir.path(), &ANY_PORTS, &[("PARALLAX_CONFIG", &config)]).await;
    assert!(complaint.contains("control_plane.run_timeout_secs"), "{complaint}");
    let complaint = refused(dir.path(), &["--http", "many"], &[]).await;
    assert!(complaint.contains("--http") && complaint.contains("many"), "{complaint}");
}
