//! HTTP/2 as RFC 9113 has it, asked by h2spec.

use std::{collections::BTreeSet, path::Path};

use tokio::process::Command;

use crate::{
    agent::{agent, sure},
    world::{World, within},
};

/// What fails, always or at times, and why that is borne.
const KNOWN: &[(&str, &str)] = &[
    (
        "generic/2: Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
        "it wants data, and what is no gRPC is answered by a head alone",
    ),
    (
        "generic/2: Sends a PRIORITY frame on half-closed (remote) stream",
        "it wants data, and what is no gRPC is answered by a head alone",
    ),
    (
        "http2/3.5: Sends invalid connection preface",
        "the connection is closed before all of it was read, which the kernel tells as a reset",
    ),
    (
        "http2/5.1.2: Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
        "each is answered before the next is read, so there are never as many",
    ),
];

#[tokio::test]
async fn the_port_speaks_http2_as_the_standard_has_it() {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).chain([tools]).map(|dir| dir.join("h2spec")).find(|p| p.is_file());
    let Some(h2spec) = found else {
        assert!(
            std::env::var_os("PARALLAX_TEST_REQUIRE").is_none(),
            "there is no h2spec; `make tools` installs it"
        );
        return println!("SKIPPED: there is no h2spec; `make tools` installs it");
    };
    let world = World::new().await;
    let _agent = agent(&world, "a", |_| async { sure(0.5) }).await;
    let node = world.ready_node().await;
    let report = tempfile::NamedTempFile::new().unwrap();
    let port = node.plane.grpc_addr().port().to_string();
    let mut command = Command::new(h2spec);
    // Answered by everyone, whoever asks: what is tested is the framing below.
    command.args(["--strict", "--timeout", "5", "--port", &port, "--path", "/grpc.health.v1.Health/Check"]);
    command.arg("--junit-report").arg(report.path()).kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(300), command.output());
    let output = output.await.expect("h2spec ends").unwrap();
    let report = std::fs::read_to_string(report.path()).unwrap();
    // One element per case; the failed have a child.
    let cases: Vec<&str> = report.split("<testcase ").skip(1).collect();
    assert!(cases.len() > 140, "{}", String::from_utf8_lossy(&output.stdout));
    let attribute = |case: &str, name: &str| {
        let rest = case.split_once(&format!("{name}=\""));
        rest.and_then(|(_, rest)| rest.split_once('"')).map_or("", |(value, _)| value).to_owned()
    };
    let failed: BTreeSet<String> = cases
        .iter()
        .filter(|case| case.contains("<failure") || case.contains("<error"))
        .map(|case| format!("{}: {}", attribute(case, "package"), attribute(case, "classname")))
        .collect();
    let known: BTreeSet<String> = KNOWN.iter().map(|(case, _)| (*case).to_owned()).collect();
    let new: Vec<&String> = failed.difference(&known).collect();
    assert!(new.is_empty(), "{new:?}: {}", String::from_utf8_lossy(&output.stdout));
    // It is well after all that.
    let operator = world.operator(&node).await;
    let asked = within("an ordinary call", crate::proxy::ask(&operator, "a")).await;
    assert_eq!(asked.status().code(), tonic::Code::Ok);
}
