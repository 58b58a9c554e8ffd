//! An agent as the registry keeps it.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use parallax_proto::{controlplane::v1 as directory, registry as proto};
use serde::{Deserialize, Serialize};
use thiserror::Error;

mod endpoint;

pub use endpoint::{Url, is_loopback};

use crate::{
    confidence::Confidence,
    wire::{duration_from_wire, duration_to_wire, timestamp_from_wire, timestamp_to_wire},
};

/// Time to live of a registration that names none.
pub const DEFAULT_TTL: Duration = Duration::from_secs(60);
/// Shortest and longest time to live that is granted.
pub const TTL_BOUNDS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(24 * 3600));
const MAX_NAME: usize = 256;
const MAX_CAPABILITIES: usize = 256;
/// Bytes of all metadata: every node and every follower of the registry holds them.
const MAX_METADATA: usize = 16 << 10;

/// How an agent is dialled: the way it registered, or by the scheme of the URL that it registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Mtls,
    Plaintext,
    /// By the stream that it holds with a replica of the control plane, whose address is its endpoint.
    Gateway,
    /// By HTTP without TLS, on this machine only.
    Http,
    /// By HTTP over TLS.
    Https,
}

/// Tenant and id: what names an agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AgentKey {
    pub tenant: String,
    pub id: String,
}

/// A registered agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    pub key: AgentKey,
    pub name: String,
    /// `host:port`, or a [`Url`] of an agent that is reached by HTTP.
    pub endpoint: String,
    pub capabilities: Vec<String>,
    pub metadata: Metadata,
    pub registered_at: Timestamp,
    pub ttl: Duration,
    pub transport: Transport,
    /// The SPIFFE name that registered it; absent when that was a plaintext peer on loopback.
    pub principal: Option<String>,
}

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    pub version: String,
    pub region: String,
    pub labels: BTreeMap<String, String>,
    /// Absent when the agent stated none, or NaN.
    pub default_confidence: Option<Confidence>,
}

/// A registration that cannot be accepted: which field, what is wrong, what to send instead.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct Invalid {
    pub field: &'static str,
    pub problem: String,
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Invalid {
    Invalid { field, problem: problem.into() }
}

impl Agent {
    /// Checks what an agent sent. `tenant`, `way` (in which it came) and `principal` come from its connection,
    /// the time from the clock: what the message says of `registered_at` does not count.
    ///
    /// # Errors
    /// The first field that cannot stand.
    pub fn from_wire(
        message: proto::AgentRegistration,
        tenant: &str,
        way: Transport,
        principal: Option<String>,
        now: Timestamp,
    ) -> Result<Self, Invalid> {
        check_name("agent.id", &message.id)?;
        let transport = endpoint::check(&message.endpoint, way)?;
        check_text("agent.name", &message.name)?;
        if message.capabilities.len() > MAX_CAPABILITIES {
            return Err(invalid(
                "agent.capabilities",
                format!("{} given, at most {MAX_CAPABILITIES}", message.capabilities.len()),
            ));
        }
        for capability in &message.capabilities {
            check_name("agent.capabilities", capability)?;
        }
        let metadata = message.metadata.unwrap_or_default();
        let labels = metadata.labels.iter().flat_map(|(key, value)| [key, value]);
        let bytes: usize = labels.chain([&metadata.version, &metadata.region]).map(String::len).sum();
        if bytes > MAX_METADATA {
            return Err(invalid(
                "agent.metadata",
                format!("is {bytes} bytes long in all, at most {MAX_METADATA}"),
            ));
        }
        Ok(Self {
            key: AgentKey { tenant: tenant.to_owned(), id: message.id.clone() },
            name: if message.name.is_empty() { message.id } else { message.name },
            endpoint: message.endpoint,
            capabilities: message.capabilities,
            metadata: Metadata {
                version: metadata.version,
                region: metadata.region,
                labels: metadata.labels.into_iter().collect(),
                // Proto3 cannot tell an unset number from zero, and no agent means zero.
                default_confidence: Confidence::stated(metadata.default_confidence)
                    .filter(|confidence| confidence.get() > 0.0),
            },
            registered_at: now,
            ttl: clamp_ttl(message.ttl.and_then(duration_from_wire)),
            transport,
            principal,
        })
    }

    /// As existing clients read it.
    #[must_use]
    pub fn to_wire(&self) -> proto::AgentRegistration {
        proto::AgentRegistration {
            id: self.key.id.clone(),
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            capabilities: self.capabilities.clone(),
            metadata: Some(proto::agent_registration::Metadata {
                version: self.metadata.version.clone(),
                region: self.metadata.region.clone(),
                labels: self.metadata.labels.clone().into_iter().collect(),
                default_confidence: self.metadata.default_confidence.map_or(0.0, Confidence::get),
            }),
            registered_at: Some(timestamp_to_wire(self.registered_at)),
            ttl: Some(duration_to_wire(self.ttl)),
        }
    }

    /// As data-plane nodes read it.
    #[must_use]
    pub fn to_record(&self) -> directory::AgentRecord {
        directory::AgentRecord {
            tenant: self.key.tenant.clone(),
            registration: Some(self.to_wire()),
            transport: match self.transport {
                Transport::Mtls => directory::Transport::Mtls,
                Transport::Plaintext => directory::Transport::Plaintext,
                Transport::Gateway => directory::Transport::Gateway,
                Transport::Http => directory::Transport::Http,
                Transport::Https => directory::Transport::Https,
            }
            .into(),
        }
    }

    /// Reads what the control plane sent to a data-plane node.
    ///
    /// # Errors
    /// A record that no control plane of this version would send.
    pub fn from_record(record: directory::AgentRecord) -> Result<Self, Invalid> {
        let transport = match record.transport() {
            directory::Transport::Mtls => Transport::Mtls,
            directory::Transport::Plaintext => Transport::Plaintext,
            directory::Transport::Gateway => Transport::Gateway,
            directory::Transport::Http => Transport::Http,
            directory::Transport::Https => Transport::Https,
            directory::Transport::Unspecified => {
                return Err(invalid("transport", "unspecified; control plane and node differ in version"));
            }
        };
        let message = record.registration.ok_or_else(|| invalid("registration", "missing"))?;
        let registered_at =
            message.registered_at.and_then(timestamp_from_wire).unwrap_or(Timestamp::UNIX_EPOCH);
        Self::from_wire(message, &record.tenant, transport, None, registered_at)
    }

    /// Where it is, if it is reached by HTTP.
    #[must_use]
    pub fn url(&self) -> Option<Url> {
        match self.transport {
            Transport::Http | Transport::Https => Url::parse(&self.endpoint).ok(),
            Transport::Mtls | Transport::Plaintext | Transport::Gateway => None,
        }
    }

    /// Whether it has every one of `wanted`.
    #[must_use]
    pub fn has_all(&self, wanted: &[String]) -> bool {
        wanted.iter().all(|capability| self.capabilities.contains(capability))
    }
}

/// The time to live that is granted for a wish.
#[must_use]
pub fn clamp_ttl(wish: Option<Duration>) -> Duration {
    wish.filter(|ttl| !ttl.is_zero()).unwrap_or(DEFAULT_TTL).clamp(TTL_BOUNDS.0, TTL_BOUNDS.1)
}

/// Names become parts of store keys and certificate names.
fn check_name(field: &'static str, name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(invalid(field, "is empty"));
    }
    if name.len() > MAX_NAME {
        return Err(invalid(field, format!("is {} bytes long, at most {MAX_NAME}", name.len())));
    }
    match name.chars().find(|c| *c == '/' || c.is_control() || c.is_whitespace()) {
        Some(c) => Err(invalid(field, format!("\"{}\" contains {c:?}; leave it out", name.escape_debug()))),
        None => Ok(()),
    }
}

fn check_text(field: &'static str, text: &str) -> Result<(), Invalid> {
    if text.len() > MAX_NAME {
        return Err(invalid(field, format!("is {} bytes long, at most {MAX_NAME}", text.len())));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(invalid(field, format!("contains the control character {c:?}; leave it out"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> proto::AgentRegistration {
        proto::AgentRegistration {
            id: "a1".into(),
            endpoint: "localhost:7001".into(),
            capabilities: vec!["translate".into()],
            ..Default::default()
        }
    }

    fn accept(message: proto::AgentRegistration) -> Result<Agent, Invalid> {
        Agent::from_wire(message, "default", Transport::Mtls, None, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_minimal_registration_gets_defaults_and_survives_the_wire() {
        let agent = accept(message()).unwrap();
        assert_eq!((agent.name.as_str(), agent.ttl), ("a1", DEFAULT_TTL));
        assert_eq!(Agent::from_record(agent.to_record()).unwrap(), agent);
        let by_http =
            accept(proto::AgentRegistration { endpoint: "https://h/a".into(), ..message() }).unwrap();
        assert_eq!((by_http.transport, by_http.url().unwrap().base.as_str()), (Transport::Https, "/a"));
        assert_eq!(Agent::from_record(by_http.to_record()).unwrap(), by_http);
    }

    #[test]
    fn bad_fields_are_named() {
        let labels = |m: &mut proto::AgentRegistration, bytes| {
            m.metadata.get_or_insert_default().labels.insert("k".into(), "v".repeat(bytes));
        };
        let field = |change: &dyn Fn(&mut proto::AgentRegistration)| {
            let mut bad = message();
            change(&mut bad);
            accept(bad).unwrap_err().field
        };
        assert_eq!(field(&|m| m.id.clear()), "agent.id");
        assert_eq!(field(&|m| m.id = "a/b".into()), "agent.id");
        assert_eq!(field(&|m| m.endpoint = "localhost".into()), "agent.endpoint");
        assert_eq!(field(&|m| m.endpoint = "http://localhost:1/x".into()), "agent.endpoint");
        assert_eq!(field(&|m| m.endpoint = "localhost:0".into()), "agent.endpoint");
        assert_eq!(field(&|m| m.endpoint = "localhost:70000".into()), "agent.endpoint");
        assert_eq!(field(&|m| m.name = "a\u{1b}[31m".into()), "agent.name");
        assert_eq!(field(&|m| m.capabilities = vec![String::new()]), "agent.capabilities");
        assert_eq!(field(&|m| labels(m, MAX_METADATA)), "agent.metadata");
        let mut fits = message();
        labels(&mut fits, MAX_METADATA - 1);
        accept(fits).unwrap();
    }

    #[test]
    fn ttls_are_bounded() {
        assert_eq!(clamp_ttl(Some(Duration::ZERO)), DEFAULT_TTL);
        assert_eq!(clamp_ttl(Some(Duration::from_millis(1))), TTL_BOUNDS.0);
        assert_eq!(clamp_ttl(Some(Duration::from_secs(1 << 40))), TTL_BOUNDS.1);
    }
}
