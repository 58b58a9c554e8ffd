//! Why a command failed, as scripts see it.

use std::fmt;

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// What was asked for was tried, and failed.
    Failed = 1,
    /// It could not be tried: unknown name, bad input, bad settings.
    Usage = 2,
    /// No control plane answers.
    NotRunning = 3,
    /// The run completed below the confidence that was asked for.
    Unsure = 4,
}

/// A message for a person, and a code for scripts.
#[derive(Debug)]
pub struct Exit {
    pub code: Code,
    pub message: String,
}

impl Exit {
    /// With this code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// For what is wrong with what was typed, or with the settings.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Code::Usage, message.to_string())
    }

    /// For everything that was tried and failed.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(Code::Failed, message.to_string())
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}

/// Commands answer so.
pub type Result<T = ()> = std::result::Result<T, Exit>;
