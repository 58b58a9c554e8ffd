//! Who may call what: one table, first match decides, what is not in it is denied.
//!
//! Rows speak of kinds of peers only. What depends on the arguments (an agent registers no other agent, a
//! tenant sees no other tenant) is checked where the arguments are known.

use crate::{Kind, Peer, Transport};

use Kind::{Agent, ControlPlane, DataPlane, Operator};

/// Why a call was denied, as gRPC status codes name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeniedCode {
    /// The peer has not shown who it is (HTTP 401).
    Unauthenticated,
    /// The peer is known and may not (HTTP 403).
    PermissionDenied,
}

/// A denied call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    pub code: DeniedCode,
    /// For the caller: what was denied and what to do. Holds nothing secret.
    pub message: String,
}

/// A gRPC method or an HTTP path, or everything with a prefix if it ends with `*`, and who may call it. A row that
/// begins with an HTTP method is for that method only.
struct Row {
    methods: &'static str,
    callers: &'static [Kind],
}

const fn row(methods: &'static str, callers: &'static [Kind]) -> Row {
    Row { methods, callers }
}

const ANYONE: &[Kind] = &Kind::ALL;

const TABLE: &[Row] = &[
    row("/parallax.registry.Registry/Register", &[Agent, Operator]),
    row("/parallax.registry.Registry/Renew", &[Agent, Operator]),
    row("/parallax.registry.Registry/Unregister", &[Agent, Operator]),
    row("/parallax.registry.Registry/ListAgents", ANYONE),
    row("/parallax.registry.Registry/GetAgent", ANYONE),
    row("/parallax.registry.Registry/Watch", ANYONE),
    row("/parallax.patterns.PatternService/ExecutePattern", &[Operator, Agent, ControlPlane]),
    row("/parallax.patterns.PatternService/StreamExecutePattern", &[Operator, Agent, ControlPlane]),
    row("/parallax.patterns.PatternService/ListPatterns", &[Operator, Agent, ControlPlane]),
    row("/parallax.patterns.PatternService/GetPattern", &[Operator, Agent, ControlPlane]),
    row("/parallax.patterns.PatternService/*", &[Operator, ControlPlane]),
    row("/parallax.executions.*", &[Operator, Agent]),
    row("/parallax.coordinator.*", &[Operator, Agent]),
    row("/parallax.gateway.*", &[Agent]),
    row("/parallax.controlplane.v1.Directory/*", &[DataPlane]),
    // As any agent may be asked below, so may many at once: those of the caller's tenant.
    row("/parallax.dataplane.v1.DataPlane/FanOut", &[ControlPlane, Agent, Operator]),
    row("/parallax.dataplane.v1.DataPlane/*", &[ControlPlane]),
    row("/parallax.confidence.ConfidenceAgent/*", ANYONE),
    row("/grpc.health.v1.*", ANYONE),
    row("/grpc.reflection.*", ANYONE),
    row("/health", ANYONE),
    row("/health/*", ANYONE),
    row("/metrics", ANYONE),
    // What is uploaded or scheduled is run for others too.
    row("POST /api/patterns", &[Operator]),
    row("POST /api/patterns/upload", &[Operator]),
    row("PUT /api/patterns/*", &[Operator]),
    row("DELETE /api/patterns/*", &[Operator]),
    row("POST /api/executions/adhoc", &[Operator]),
    row("/api/schedules*", &[Operator]),
    row("/api/*", &[Operator, Agent]),
];

/// Whether `peer` may call `method`: `/package.Service/Method`, or `POST /a/path` over HTTP. Costs no allocation
/// when it may.
///
/// A plaintext peer from loopback counts as a local operator and agent, never as a plane.
pub fn check(peer: &Peer, method: &str) -> Result<(), Denied> {
    let kinds: &[Kind] = match (peer.transport, &peer.identity) {
        (Transport::Mtls, Some(identity)) => std::slice::from_ref(&identity.kind),
        (Transport::Plaintext, _) => &[Operator, Agent],
        _ => return Err(unauthenticated()),
    };
    let callers = Row::of(method).map_or(&[][..], |row| row.callers);
    if kinds.iter().any(|kind| callers.contains(kind)) { Ok(()) } else { Err(denied(peer, method, callers)) }
}

impl Row {
    /// The first that covers a method. Every proxied call comes by here.
    fn of(method: &str) -> Option<&'static Self> {
        let path = method.split_once(' ').map_or(method, |(_, path)| path);
        TABLE.iter().find(|row| {
            let asked = if row.methods.starts_with('/') { path } else { method };
            row.methods.strip_suffix('*').map_or(row.methods == asked, |prefix| asked.starts_with(prefix))
        })
    }
}

fn unauthenticated() -> Denied {
    Denied {
        code: DeniedCode::Unauthenticated,
        message: "this port speaks mTLS: connect with TLS and a certificate of this cluster's authority \
                  (plaintext is accepted only from loopback and only in local mode)"
            .to_owned(),
    }
}

fn denied(peer: &Peer, method: &str, callers: &[Kind]) -> Denied {
    let who = match &peer.identity {
        Some(identity) => identity.to_string(),
        None => "a plaintext peer from loopback".to_owned(),
    };
    let who_may = match callers {
        [] => "nobody may: no such method is open to peers".to_owned(),
        kinds => {
            let names: Vec<_> = kinds.iter().map(|kind| kind.as_str()).collect();
            format!("only these may: {}", names.join(", "))
        }
    };
    Denied { code: DeniedCode::PermissionDenied, message: format!("{who} may not call {method} ({who_may})") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    fn peer(transport: Transport, kind: Option<Kind>) -> Peer {
        let identity = kind.map(|kind| Identity::new("default", kind, "x").unwrap());
        Peer { identity, transport, addr: ([127, 0, 0, 1], 1).into() }
    }

    /// Each row of the table as (method, letters of who may: Control plane, Data plane, Agent, Operator,
    /// plaintext from Loopback). Written by hand, so that a change of the table must be made twice.
    const EXPECTED: &[(&str, &str)] = &[
        ("/parallax.registry.Registry/Register", "AOL"),
        ("/parallax.registry.Registry/Renew", "AOL"),
        ("/parallax.registry.Registry/Unregister", "AOL"),
        ("/parallax.registry.Registry/ListAgents", "CDAOL"),
        ("/parallax.registry.Registry/GetAgent", "CDAOL"),
        ("/parallax.registry.Registry/Watch", "CDAOL"),
        ("/parallax.patterns.PatternService/ExecutePattern", "CAOL"),
        ("/parallax.patterns.PatternService/StreamExecutePattern", "CAOL"),
        ("/parallax.patterns.PatternService/ListPatterns", "CAOL"),
        ("/parallax.patterns.PatternService/GetPattern", "CAOL"),
        ("/parallax.patterns.PatternService/UploadPattern", "COL"),
        ("/parallax.executions.ExecutionService/GetExecution", "AOL"),
        ("/parallax.coordinator.Coordinator/Coordinate", "AOL"),
        ("/parallax.gateway.AgentGateway/Connect", "AL"),
        ("/parallax.controlplane.v1.Directory/Follow", "D"),
        ("/parallax.dataplane.v1.DataPlane/FanOut", "CAOL"),
        ("/parallax.dataplane.v1.DataPlane/Dispatch", "C"),
        ("/parallax.confidence.ConfidenceAgent/Analyze", "CDAOL"),
        ("/grpc.health.v1.Health/Check", "CDAOL"),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "CDAOL"),
        ("GET /health", "CDAOL"),
        ("/health/ready", "CDAOL"),
        ("/metrics", "CDAOL"),
        ("POST /api/patterns", "OL"),
        ("POST /api/patterns/upload", "OL"),
        ("PUT /api/patterns/x/current", "OL"),
        ("DELETE /api/patterns/x", "OL"),
        ("GET /api/patterns", "AOL"),
        ("POST /api/patterns/x/execute", "AOL"),
        ("POST /api/executions/adhoc", "OL"),
        ("GET /api/schedules", "OL"),
        ("POST /api/schedules/x/trigger", "OL"),
        ("GET /api/agents", "AOL"),
        // Not in the table.
        ("/healthy", ""),
        ("/parallax.registry.Registry/Purge", ""),
        ("/parallax.registry.Registry/RegisterAll", ""),
        ("/parallax.patterns.PatternServiceX/GetPattern", ""),
        ("/unknown.Service/Method", ""),
        ("parallax.registry.Registry/Register", ""),
        ("", ""),
    ];

    #[test]
    fn every_row_for_every_peer() {
        let peers = [
            ('C', peer(Transport::Mtls, Some(ControlPlane))),
            ('D', peer(Transport::Mtls, Some(DataPlane))),
            ('A', peer(Transport::Mtls, Some(Agent))),
            ('O', peer(Transport::Mtls, Some(Operator))),
            ('L', peer(Transport::Plaintext, None)),
        ];
        for (method, who) in EXPECTED {
            for (letter, peer) in &peers {
                let verdict = check(peer, method);
                assert_eq!(verdict.is_ok(), who.contains(*letter), "{letter} {method}: {verdict:?}");
                if let Err(denied) = verdict {
                    assert_eq!(denied.code, DeniedCode::PermissionDenied);
                    assert!(denied.message.contains(method), "{denied}");
                }
            }
        }
        for row in TABLE {
            let first = |method: &str| Row::of(method).map(|row| row.methods);
            let tested = EXPECTED.iter().any(|(method, _)| first(method) == Some(row.methods));
            assert!(tested, "no case decides by {}", row.methods);
        }
    }

    #[test]
    fn who_is_unknown_may_nothing_and_is_told_why() {
        for peer in [peer(Transport::PlaintextRefused, None), peer(Transport::Mtls, None)] {
            for (method, _) in EXPECTED {
                let denied = check(&peer, method).unwrap_err();
                assert_eq!(denied.code, DeniedCode::Unauthenticated);
                assert!(denied.message.contains("this port speaks mTLS: connect with TLS"), "{denied}");
            }
        }
    }

    #[test]
    fn a_denial_names_the_peer_and_who_may() {
        let denied = check(&peer(Transport::Mtls, Some(Agent)), "/parallax.controlplane.v1.Directory/Follow")
            .unwrap_err();
        assert_eq!(
            denied.message,
            "spiffe://parallax/default/agent/x may not call /parallax.controlplane.v1.Directory/Follow \
             (only these may: data-plane)"
        );
    }
}
