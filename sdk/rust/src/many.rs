use std::time::Duration;

use parallax_proto::{
    confidence::AgentRequest,
    dataplane::v1::{
        FanOutEvent, FanOutRequest, FanOutSummary, call_outcome,
        failure::Cause,
        fan_out_event::Event,
        fan_out_request::{All, BestEffort, First, Mode, Ordered, Quorum},
    },
};
use parallax_runtime::{confidence::Confidence, wire};
use tonic::Streaming;

use crate::{Answer, Error, client::failed};

/// When a question to many agents has been answered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Until {
    /// When each has answered or failed.
    #[default]
    All,
    /// When one has answered.
    First,
    /// When so many have answered, or can no longer.
    Quorum(u32),
    /// When each has answered or failed, but no later than after this.
    BestEffort(Duration),
    /// They are asked one after the other, the best expected first, until one states this confidence, 0 to 1.
    Confident(f64),
}

/// Whom a question is for, and when it has been answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Many {
    /// These, and everybody who has the capability; each once.
    pub agents: Vec<String>,
    pub capability: Option<String>,
    pub until: Until,
    /// Of those who have the capability: 32 unless it is said, never more than 256 in all.
    pub max_agents: Option<u32>,
    /// At the same time: all unless it is said, one with [`Until::Confident`].
    pub max_concurrency: Option<u32>,
}

impl Many {
    /// Everybody who has a capability.
    pub fn capability(name: impl Into<String>) -> Self {
        Self { capability: Some(name.into()), ..Self::default() }
    }

    /// These agents.
    pub fn agents<I: Into<String>>(ids: impl IntoIterator<Item = I>) -> Self {
        Self { agents: ids.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The same, answered otherwise.
    #[must_use]
    pub fn until(self, until: Until) -> Self {
        Self { until, ..self }
    }

    pub(crate) fn request(&self, request: AgentRequest) -> FanOutRequest {
        let mode = match self.until {
            Until::All => Mode::All(All {}),
            Until::First => Mode::First(First {}),
            Until::Quorum(answers) => Mode::Quorum(Quorum { answers }),
            Until::BestEffort(by) => {
                Mode::BestEffort(BestEffort { by_ms: u32::try_from(by.as_millis()).unwrap_or(u32::MAX) })
            }
            Until::Confident(confidence) => Mode::Ordered(Ordered { confidence }),
        };
        FanOutRequest {
            tenant: String::new(),
            request: Some(request),
            agent_ids: self.agents.clone(),
            capability: self.capability.clone().unwrap_or_default(),
            max_agents: self.max_agents.unwrap_or_default(),
            max_concurrency: self.max_concurrency.unwrap_or_default(),
            mode: Some(mode),
            effect: String::new(),
        }
    }
}

/// What came of one agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub agent: String,
    /// Its answer, or why there is none. [`Cause::Cancelled`] is that of one that was no longer needed.
    pub result: Result<Answer, (Cause, String)>,
}

/// A question to many agents that is being answered.
#[derive(Debug)]
pub struct Asked {
    events: Streaming<FanOutEvent>,
    summary: Option<FanOutSummary>,
}

impl Asked {
    pub(crate) fn new(events: Streaming<FanOutEvent>) -> Self {
        Self { events, summary: None }
    }

    /// The next outcome, as it comes; `None` after the last.
    ///
    /// # Errors
    /// The data plane refuses the question, or is lost.
    pub async fn next(&mut self) -> Result<Option<Outcome>, Error> {
        while self.summary.is_none() {
            let event = self.events.message().await.map_err(failed("FanOut"))?;
            match event.and_then(|event| event.event) {
                Some(Event::Outcome(call)) => {
                    let result = match call.outcome {
                        Some(call_outcome::Outcome::Answer(answer)) => Ok(Answer {
                            value: wire::parse_value(&answer.value_json),
                            confidence: answer.confidence.and_then(Confidence::stated),
                            reasoning: answer.reasoning,
                            uncertainties: answer.uncertainties,
                            metadata: answer.metadata,
                        }),
                        Some(call_outcome::Outcome::Failure(failure)) => {
                            Err((failure.cause(), failure.message))
                        }
                        None => Err((Cause::Unspecified, "an empty outcome".to_owned())),
                    };
                    return Ok(Some(Outcome { agent: call.agent_id, result }));
                }
                Some(Event::Summary(summary)) => self.summary = Some(summary),
                None => {
                    let lost = tonic::Status::unavailable("the stream ended without a summary");
                    return Err(failed("FanOut")(lost));
                }
            }
        }
        Ok(None)
    }

    /// Why it ended and how many were asked; there after the last outcome.
    #[must_use]
    pub fn summary(&self) -> Option<&FanOutSummary> {
        self.summary.as_ref()
    }
}
