use std::time::Duration;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A setting is wrong: a retry fails until somebody changes it.
    Invalid,
    /// The machine or the collector failed: a retry is safe.
    Unavailable,
    /// The program calls in the wrong order.
    Bug,
}

/// Everything that can go wrong with telemetry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The log filter cannot be read.
    #[error(
        "the log filter {filter:?} is invalid: {reason}; expected directives like \"info,parallax=debug\""
    )]
    Filter { filter: String, reason: String },
    /// The OTLP endpoint cannot be used.
    #[error(
        "the OTLP endpoint {endpoint:?} is invalid: {reason}; expected one like \"http://localhost:4317\""
    )]
    Endpoint { endpoint: String, reason: String },
    /// The thread that exports spans could not be started.
    #[error("cannot start the exporter of spans: {0}; check the limit of threads and files")]
    Start(std::io::Error),
    /// A subscriber is there already.
    #[error("telemetry is already initialised: call init once, at the start of main")]
    AlreadyInitialised,
    /// The last spans did not reach the collector in time.
    #[error(
        "the last spans did not reach {endpoint} within {timeout:?}: {reason}; is the collector running?"
    )]
    Flush { endpoint: String, timeout: Duration, reason: String },
}

impl Error {
    /// Whether a retry can help.
    pub fn code(&self) -> Code {
        match self {
            Self::Filter { .. } | Self::Endpoint { .. } => Code::Invalid,
            Self::Start(_) | Self::Flush { .. } => Code::Unavailable,
            Self::AlreadyInitialised => Code::Bug,
        }
    }
}
