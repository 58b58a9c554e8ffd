//! What can go wrong at the control plane's doors.

use parallax_runtime::{
    agent::Invalid,
    error::{Code, Coded},
    run::Status,
    store::StoreError,
};
use thiserror::Error;

use crate::{driver::TIMEOUT, patterns::InvalidPattern};

/// Why a request was not done. Each message says what failed, with what, and what to do.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    InvalidAgent(#[from] Invalid),
    #[error("{field}: {problem}")]
    Invalid { field: &'static str, problem: String },
    #[error("no agent \"{id}\" is registered")]
    NoAgent { id: String },
    #[error("lease \"{lease}\" has expired or was never granted; register again")]
    NoLease { lease: String },
    #[error("{0}")]
    NotYours(String),
    #[error("no pattern \"{name}\"{}", did_you_mean(nearest))]
    NoPattern { name: String, nearest: Vec<String> },
    #[error("pattern {name} has no version {asked}; it has {}", there.join(", "))]
    NoVersion { name: String, asked: String, there: Vec<String> },
    #[error(transparent)]
    InvalidPattern(#[from] InvalidPattern),
    #[error(
        "pattern {name} {version} is there already with another script; raise its @version, or overwrite it"
    )]
    VersionTaken { name: String, version: String },
    #[error(
        "no version {version} of pattern {name} was uploaded; `parallax pattern versions {name}` shows those there are"
    )]
    NotUploaded { name: String, version: String },
    #[error("{version} is the current version of {name}; roll back to another first, or delete all of them")]
    CurrentVersion { name: String, version: String },
    #[error(
        "the input does not fit {pattern}: {}; see its @input in `parallax pattern show {}`",
        misfits.join("; "), crate::patterns::kebab(pattern)
    )]
    Input { pattern: String, misfits: Vec<String> },
    #[error("no run \"{id}\"; `parallax runs list` shows those there are")]
    NoRun { id: String },
    #[error("no schedule \"{name}\"; `parallax schedule list` shows those there are")]
    NoSchedule { name: String },
    #[error("run {id} has ended: it is {status}")]
    Ended { id: String, status: Status },
    #[error("run {id} has not ended; wait for it, or cancel it first")]
    NotEnded { id: String },
    #[error("run {id} {status}: {message}")]
    Failed { id: String, status: Status, code: String, message: String },
    #[error(
        "no agent has answered run {id}: {failed} calls failed, the first, of {agent}, with {code}: {message}"
    )]
    Unanswered {
        id: String,
        failed: usize,
        agent: String,
        code: String,
        message: String,
        /// Whether all of them were out of reach or had too much to do.
        away: bool,
    },
    #[error("the result of run {id} {}, and min_confidence is {wanted}", stated(*confidence))]
    Unsure { id: String, confidence: Option<f64>, wanted: f64 },
    #[error("agent \"{agent}\" did not answer ({cause}): {message}")]
    NoAnswer { agent: String, cause: &'static str, message: String },
    #[error("the agents could not all be asked: {}", .0.message())]
    NotAsked(Box<tonic::Status>),
    #[error(
        "as many runs are under way as may be, and {waiting} wait for their turn; send the request later"
    )]
    Busy { waiting: usize },
    #[error(
        "plaintext is for programs on this machine that call it by a loopback name, not for {0}; use mTLS"
    )]
    Foreign(String),
    #[error("the control plane is stopping; send the request to another or again later")]
    Stopping,
    #[error("this process stops, and run {id} goes on: ask for it with `parallax runs show {id}`")]
    Unfinished { id: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn did_you_mean(nearest: &[String]) -> String {
    match nearest {
        [] => "; `parallax pattern list` shows those there are".to_owned(),
        names => format!("; did you mean {}?", names.join(" or ")),
    }
}

fn stated(confidence: Option<f64>) -> String {
    match confidence {
        Some(confidence) => format!("has the confidence {confidence:.2}"),
        None => "states no confidence".to_owned(),
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::InvalidAgent(_) | Self::Invalid { .. } | Self::Input { .. } | Self::InvalidPattern(_) => {
                Code::InvalidArgument
            }
            Self::NoAgent { .. }
            | Self::NoLease { .. }
            | Self::NoPattern { .. }
            | Self::NoVersion { .. }
            | Self::NotUploaded { .. }
            | Self::NoSchedule { .. }
            | Self::NoRun { .. } => Code::NotFound,
            Self::NotYours(_) | Self::Foreign(_) => Code::PermissionDenied,
            Self::VersionTaken { .. } => Code::AlreadyExists,
            Self::Ended { .. } | Self::NotEnded { .. } | Self::CurrentVersion { .. } => Code::Conflict,
            Self::Failed { code, .. } if code == TIMEOUT => Code::DeadlineExceeded,
            Self::Failed { status: Status::Cancelled, .. } => Code::Cancelled,
            Self::Unanswered { away: true, .. } => Code::Unavailable,
            Self::Failed { .. } | Self::Unanswered { .. } | Self::Unsure { .. } | Self::NoAnswer { .. } => {
                Code::Precondition
            }
            Self::NotAsked(status) if status.code() == tonic::Code::InvalidArgument => Code::InvalidArgument,
            // Others may have been asked: whoever repeats what was unavailable would ask them again.
            Self::NotAsked(_) => Code::Precondition,
            Self::Busy { .. } => Code::ResourceExhausted,
            Self::Stopping | Self::Unfinished { .. } => Code::Unavailable,
            Self::Store(e) => e.code(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::InvalidAgent(_) => "PARALLAX-REGISTRY-001",
            Self::NoAgent { .. } => "PARALLAX-REGISTRY-002",
            Self::NoLease { .. } => "PARALLAX-REGISTRY-003",
            Self::NotYours(_) => "PARALLAX-REGISTRY-004",
            Self::NoPattern { .. } => "PARALLAX-PATTERN-001",
            Self::NoVersion { .. } => "PARALLAX-PATTERN-002",
            Self::Input { .. } => "PARALLAX-PATTERN-003",
            Self::InvalidPattern(_) => "PARALLAX-PATTERN-004",
            Self::VersionTaken { .. } => "PARALLAX-PATTERN-005",
            Self::NotUploaded { .. } => "PARALLAX-PATTERN-006",
            Self::CurrentVersion { .. } => "PARALLAX-PATTERN-007",
            Self::NoRun { .. } => "PARALLAX-RUN-001",
            Self::Stopping => "PARALLAX-RUN-002",
            Self::Ended { .. } => "PARALLAX-RUN-003",
            Self::NotEnded { .. } => "PARALLAX-RUN-004",
            Self::Busy { .. } => "PARALLAX-RUN-005",
            Self::Failed { .. } => "PARALLAX-RUN-006",
            Self::Unsure { .. } => "PARALLAX-RUN-007",
            Self::Unanswered { .. } => "PARALLAX-RUN-009",
            Self::NoAnswer { .. } => "PARALLAX-REGISTRY-005",
            Self::NotAsked(_) => "PARALLAX-REGISTRY-006",
            Self::NoSchedule { .. } => "PARALLAX-SCHEDULE-001",
            Self::Invalid { .. } => "PARALLAX-API-001",
            Self::Foreign(_) => "PARALLAX-API-003",
            Self::Unfinished { .. } => "PARALLAX-RUN-008",
            Self::Store(e) => e.reason(),
        }
    }
}

/// Most of this crate answers so.
pub type Result<T, E = Error> = std::result::Result<T, E>;
