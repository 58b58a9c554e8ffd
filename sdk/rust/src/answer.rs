use std::{collections::HashMap, error::Error as StdError, fmt};

use parallax_runtime::confidence::Confidence;
use serde_json::Value as Json;

/// What an agent answers, and how sure it is.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The answer itself. Patterns compare answers by equality: keep it to what is the same when two agents
    /// agree, and put the rest into `metadata`.
    pub value: Json,
    /// 0 to 1, or none if the agent cannot tell.
    pub confidence: Option<Confidence>,
    /// Why this answer; for people.
    pub reasoning: String,
    /// What could make it wrong; for people.
    pub uncertainties: Vec<String>,
    pub metadata: HashMap<String, String>,
}

impl Answer {
    /// An answer with a confidence from 0 to 1.
    ///
    /// # Errors
    /// A confidence that is none (7.3, NaN) is a mistake in the agent: returned with `?`, it fails this call
    /// and is logged, where clamping it would hide the mistake in every decision that follows.
    pub fn new(value: impl Into<Json>, confidence: f64) -> Result<Self, AgentError> {
        let confidence = Confidence::try_from(confidence).map_err(AgentError::new)?;
        Ok(Self { confidence: Some(confidence), ..Self::unrated(value) })
    }

    /// An answer of an agent that cannot tell how sure it is.
    #[must_use]
    pub fn unrated(value: impl Into<Json>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// Sets why this is the answer.
    #[must_use]
    pub fn reasoning(mut self, text: impl Into<String>) -> Self {
        self.reasoning = text.into();
        self
    }

    /// Adds something that could make the answer wrong.
    #[must_use]
    pub fn uncertainty(mut self, text: impl Into<String>) -> Self {
        self.uncertainties.push(text.into());
        self
    }

    /// Adds a detail that no pattern decides by.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
}

/// Longest text of an error in bytes: it travels in a header.
const MAX_MESSAGE: usize = 1024;

/// Why an agent could not answer: a text for the caller. Any error becomes one by `?`.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentError {
    message: String,
    bad_input: bool,
}

impl AgentError {
    /// The agent failed (gRPC `INTERNAL`).
    pub fn new(message: impl fmt::Display) -> Self {
        let mut message = message.to_string();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self { message, bad_input: false }
    }

    /// The task cannot be answered as it was asked, by this or any other try (gRPC `INVALID_ARGUMENT`).
    pub fn bad_input(message: impl fmt::Display) -> Self {
        Self { bad_input: true, ..Self::new(message) }
    }

    pub(crate) fn is_bad_input(&self) -> bool {
        self.bad_input
    }
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// So that `?` takes any error, `AgentError` itself is none.
impl<E: StdError> From<E> for AgentError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::new(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confidence_that_is_none_is_an_error() {
        assert_eq!(Answer::new("x", 1.0).unwrap().confidence.map(f64::from), Some(1.0));
        for wrong in [7.3, -0.1, f64::NAN, f64::INFINITY] {
            let error = Answer::new("x", wrong).unwrap_err().to_string();
            assert_eq!(error, format!("a confidence is a number from 0 to 1, not {wrong}"));
        }
        assert_eq!(Answer::unrated("x").confidence, None);
    }

    #[test]
    fn long_errors_are_cut_at_a_character() {
        assert_eq!(AgentError::new("ä".repeat(2000)).to_string(), "ä".repeat(512));
        assert_eq!(
            AgentError::from("x".parse::<u8>().unwrap_err()).to_string(),
            "invalid digit found in string"
        );
    }
}
