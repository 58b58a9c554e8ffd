use std::{fmt, path::PathBuf, time::Duration};

use parallax_runtime::error::{Code, Coded};
use parallax_security as security;

/// Everything that can keep an agent or a client from working. Each text says what to do, and is what `main`
/// prints when it returns the error.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing says which certificates to use.
    #[error(
        "no certificates: there is no authority in {dir} and PARALLAX_TLS_CA, _CERT and _KEY are not set; \
         run `parallax start` first, set PARALLAX_DATA_DIR or PARALLAX_TLS_*, or choose plaintext with \
         PARALLAX_TLS=plaintext (local mode only)"
    )]
    NoAuthority { dir: PathBuf },
    /// A setting that cannot stand.
    #[error("{name} {problem}")]
    Setting { name: &'static str, problem: String },
    /// A file, a certificate or a connection.
    #[error(transparent)]
    Security(#[from] security::Error),
    /// A certificate that names somebody else.
    #[error(
        "the certificate is {found}'s, not the agent's: use one for spiffe://parallax/<tenant>/agent/{agent}"
    )]
    WrongCertificate { agent: String, found: security::Identity },
    /// The agent's port.
    #[error("{0}")]
    Listen(String),
    /// The control plane answered that it will not have this agent.
    #[error("the control plane at {registry} refuses the agent {agent}: {}", .status.message())]
    Refused { registry: String, agent: String, status: Box<tonic::Status> },
    /// A peer that did not answer in time, or whose connection broke.
    #[error("no answer from {addr}: {problem}")]
    Unavailable { addr: String, problem: String },
    /// A call that was answered with an error.
    #[error("{method} failed: {} ({:?})", .status.message(), .status.code())]
    Call { method: &'static str, status: Box<tonic::Status> },
    /// Calls that did not finish during shutdown.
    #[error("calls were still running {0:?} after the shutdown began, and were cut")]
    Drain(Duration),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Security(e) => match e.code() {
                security::Code::Invalid => Code::InvalidArgument,
                security::Code::Refused => Code::PermissionDenied,
                security::Code::Unavailable => Code::Unavailable,
            },
            Self::NoAuthority { .. }
            | Self::Setting { .. }
            | Self::WrongCertificate { .. }
            | Self::Listen(_) => Code::InvalidArgument,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::Drain(_) => Code::DeadlineExceeded,
            Self::Refused { status, .. } | Self::Call { status, .. } => match status.code() {
                tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::InvalidArgument,
                tonic::Code::NotFound => Code::NotFound,
                tonic::Code::AlreadyExists => Code::AlreadyExists,
                tonic::Code::Aborted | tonic::Code::FailedPrecondition => Code::Conflict,
                tonic::Code::Unauthenticated => Code::Unauthenticated,
                tonic::Code::PermissionDenied => Code::PermissionDenied,
                tonic::Code::ResourceExhausted => Code::ResourceExhausted,
                tonic::Code::Unavailable => Code::Unavailable,
                tonic::Code::DeadlineExceeded => Code::DeadlineExceeded,
                tonic::Code::Cancelled => Code::Cancelled,
                tonic::Code::Unimplemented => Code::Unimplemented,
                _ => Code::Internal,
            },
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoAuthority { .. } => "PARALLAX-SDK-001",
            Self::Setting { .. } => "PARALLAX-SDK-002",
            Self::Security(_) => "PARALLAX-SDK-003",
            Self::WrongCertificate { .. } => "PARALLAX-SDK-004",
            Self::Listen(_) => "PARALLAX-SDK-005",
            Self::Refused { .. } => "PARALLAX-SDK-006",
            Self::Unavailable { .. } => "PARALLAX-SDK-007",
            Self::Call { .. } => "PARALLAX-SDK-008",
            Self::Drain(_) => "PARALLAX-SDK-009",
        }
    }
}
