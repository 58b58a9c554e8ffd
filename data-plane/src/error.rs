//! What can go wrong: starting a node ([`Error`]) and making a call ([`Failure`]).

use std::{io, net::SocketAddr, time::Duration};

use http::{HeaderMap, response::Parts};
use parallax_proto::dataplane::v1::failure::Cause;
use parallax_runtime::{
    error::{Code, Coded},
    nearest::nearest,
    store::CallOutcome,
    wire,
};
use thiserror::Error;

use crate::breaker::Verdict;

/// Why a node could not be started.
#[derive(Debug, Error)]
pub enum Error {
    /// Somebody else listens there.
    #[error("data plane: {addr} is taken; stop what listens there, or give the {what} another address")]
    Taken { what: &'static str, addr: SocketAddr },
    /// The address cannot be listened on.
    #[error("data plane: cannot listen on {addr} ({what}): {source}")]
    Listen { what: &'static str, addr: SocketAddr, source: io::Error },
    /// The operating system gave no thread, or no runtime for it.
    #[error("data plane: cannot start a worker: {0}")]
    Worker(io::Error),
    /// A setting that cannot be.
    #[error("the setting data_plane.{field} {problem}")]
    Config { field: &'static str, problem: &'static str },
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Taken { .. } => Code::AlreadyExists,
            Self::Listen { .. } | Self::Config { .. } => Code::InvalidArgument,
            Self::Worker(_) => Code::ResourceExhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Taken { .. } => "PARALLAX-PROXY-001",
            Self::Listen { .. } => "PARALLAX-PROXY-002",
            Self::Worker(_) => "PARALLAX-PROXY-003",
            Self::Config { .. } => "PARALLAX-PROXY-004",
        }
    }
}

/// Why a call brought no answer. `agent` is "id at host:port".
#[derive(Clone, Debug, Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Malformed(String),
    #[error("no agent \"{agent}\" is registered in tenant \"{tenant}\"; {hint}")]
    UnknownAgent { tenant: String, agent: String, hint: String },
    #[error("no agent with the capability \"{capability}\" is registered in tenant \"{tenant}\"; {hint}")]
    NoCapability { tenant: String, capability: String, hint: String },
    #[error("this node is joining the control plane at {control_plane} and knows no agent yet; retry")]
    NoDirectory { control_plane: String },
    #[error("{who} not asked: the breaker is open after repeated failures; next probe in {} ms", retry_in.as_millis())]
    Ejected { who: String, retry_in: Duration },
    #[error("agent {agent} cannot be reached: {cause}")]
    Unreachable { agent: String, cause: String },
    /// The connection broke, or the agent reset the stream.
    #[error("the call to agent {agent} broke off, and what it did is unknown: {cause}")]
    Lost { agent: String, cause: String },
    #[error("agent {agent} did not answer within {} ms", after.as_millis())]
    Deadline { agent: String, after: Duration },
    /// `retry_in`: when the agent wants to be asked again, if it says so.
    #[error("agent {agent} answered with {code:?}: {message}")]
    Agent { agent: String, code: tonic::Code, message: String, retry_in: Option<Duration> },
    #[error("agent {agent} answered with what is not the contract: {problem}")]
    BadAnswer { agent: String, problem: String },
    #[error("cancelled: {0}")]
    Cancelled(String),
    /// Whoever could be asked has as many calls in flight as it takes, or rests.
    #[error("{who} not asked, for load: {why}; retry in {} ms", retry_in.as_millis())]
    Busy { who: String, why: &'static str, retry_in: Duration },
    #[error("this node has too much to do: {why}; retry in {} ms, or call another node", retry_in.as_millis())]
    Shed { why: String, retry_in: Duration },
}

/// The failure that a call ends with.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    /// How the agent put it: head, and trailers if they came apart from it.
    pub(crate) said: Option<Box<(Parts, Option<HeaderMap>)>>,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, said: None }
    }
}

impl Failure {
    /// An agent that is not there; `known` are those of the tenant.
    pub(crate) fn unknown_agent<'a>(
        tenant: &str,
        agent: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let hint = hint(agent, known);
        Self::UnknownAgent { tenant: tenant.to_owned(), agent: agent.to_owned(), hint }
    }

    /// A capability that nobody has; `known` are those of the tenant.
    pub(crate) fn no_capability<'a>(
        tenant: &str,
        capability: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let hint = hint(capability, known);
        Self::NoCapability { tenant: tenant.to_owned(), capability: capability.to_owned(), hint }
    }

    /// As a driver is told.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Malformed(_) => Cause::Unspecified,
            Self::UnknownAgent { .. } | Self::NoCapability { .. } | Self::NoDirectory { .. } => {
                Cause::NoAgent
            }
            Self::Ejected { .. } => Cause::BreakerOpen,
            Self::Unreachable { .. } | Self::Lost { .. } => Cause::Unreachable,
            Self::Deadline { .. } => Cause::Deadline,
            Self::Agent { .. } => Cause::AgentError,
            Self::BadAnswer { .. } => Cause::BadAnswer,
            Self::Cancelled(_) => Cause::Cancelled,
            Self::Busy { .. } | Self::Shed { .. } => Cause::Busy,
        }
    }

    /// What it says of the agent.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Unreachable { .. } => Verdict::Away,
            Self::Lost { .. } | Self::Deadline { .. } => Verdict::Sick,
            Self::Agent { code, retry_in, .. } => match code {
                tonic::Code::ResourceExhausted => Verdict::Throttled(*retry_in),
                tonic::Code::Unavailable if retry_in.is_some() => Verdict::Throttled(*retry_in),
                tonic::Code::Internal
                | tonic::Code::Unavailable
                | tonic::Code::Unknown
                | tonic::Code::DeadlineExceeded => Verdict::Sick,
                tonic::Code::Cancelled => Verdict::Silent,
                // An agent that refuses a bad request is well.
                _ => Verdict::Well,
            },
            Self::BadAnswer { .. } => Verdict::Sick,
            _ => Verdict::Silent,
        }
    }

    /// As it is recorded, when an agent was asked.
    pub(crate) fn outcome(&self) -> CallOutcome {
        match self {
            Self::Deadline { .. } => CallOutcome::DeadlineExceeded,
            Self::Unreachable { .. } | Self::Lost { .. } => CallOutcome::Unreachable,
            Self::Cancelled(_) => CallOutcome::Cancelled,
            _ => CallOutcome::Failed,
        }
    }
}

fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let mut known: Vec<&str> = known.into_iter().collect();
    let near = nearest(name, known.iter().copied());
    if !near.is_empty() {
        return format!("did you mean {}?", near.join(", "));
    }
    if known.is_empty() {
        return "none is registered there: start an agent".to_owned();
    }
    known.sort_unstable();
    let more = known.len().saturating_sub(SHOWN);
    known.truncate(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("known are {}{more}", known.join(", "))
}

impl Coded for Failure {
    fn code(&self) -> Code {
        match self {
            Self::Malformed(_) => Code::InvalidArgument,
            Self::UnknownAgent { .. } => Code::NotFound,
            Self::NoCapability { .. }
            | Self::NoDirectory { .. }
            | Self::Ejected { .. }
            | Self::Unreachable { .. } => Code::Unavailable,
            Self::Busy { .. }
            | Self::Shed { .. }
            | Self::Agent { code: tonic::Code::ResourceExhausted, .. } => Code::ResourceExhausted,
            // Not Unavailable: the agent may have done the work, so a retry is the caller's decision.
            Self::Lost { .. } | Self::Agent { .. } | Self::BadAnswer { .. } => Code::Internal,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Cancelled(_) => Code::Cancelled,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "PARALLAX-PROXY-101",
            Self::UnknownAgent { .. } => "PARALLAX-PROXY-102",
            Self::NoCapability { .. } => "PARALLAX-PROXY-103",
            Self::NoDirectory { .. } => wire::JOINING,
            Self::Ejected { .. } => "PARALLAX-PROXY-105",
            Self::Unreachable { .. } => "PARALLAX-PROXY-106",
            Self::Lost { .. } => "PARALLAX-PROXY-107",
            Self::Deadline { .. } => "PARALLAX-PROXY-108",
            Self::Agent { .. } => "PARALLAX-PROXY-109",
            Self::BadAnswer { .. } => "PARALLAX-PROXY-110",
            Self::Cancelled(_) => "PARALLAX-PROXY-111",
            Self::Busy { .. } => "PARALLAX-PROXY-112",
            Self::Shed { .. } => wire::SHED,
        }
    }

    fn retry_in(&self) -> Option<Duration> {
        match self {
            Self::Ejected { retry_in, .. } | Self::Busy { retry_in, .. } | Self::Shed { retry_in, .. } => {
                Some(*retry_in)
            }
            Self::Agent { retry_in, .. } => *retry_in,
            _ => None,
        }
    }
}
