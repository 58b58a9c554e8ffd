use std::{collections::BTreeMap, future::Future, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use parallax_proto::registry::{AgentRegistration, agent_registration::Metadata};

use crate::{AgentError, Answer, Task};

/// Something that answers tasks and knows how sure it is.
///
/// Implement it for an agent with state or with a stream of answers; [`agent`] makes one from a closure.
#[async_trait]
pub trait Agent: Send + Sync + 'static {
    /// What the agent says of itself. Read once, when serving begins.
    fn profile(&self) -> Profile;

    /// Answers one task. Calls run concurrently on the runtime's threads: move long computations to
    /// `tokio::task::spawn_blocking`. The future is dropped when the deadline passes or the caller gives up.
    ///
    /// # Errors
    /// Whatever kept the agent from answering: the caller sees its text. Not knowing the answer is none: that
    /// is an [`Answer`] with little confidence.
    async fn analyze(&self, task: Task) -> Result<Answer, AgentError>;

    /// Answers one task by ever better answers. By default, the one answer of [`Agent::analyze`].
    fn stream(self: Arc<Self>, task: Task) -> BoxStream<'static, Result<Answer, AgentError>> {
        stream::once(async move { self.analyze(task).await }).boxed()
    }

    /// How the agent does. By default it is [`Health::Healthy`].
    async fn health(&self) -> Health {
        Health::Healthy
    }
}

/// How an agent does, with the reason if it does not do well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    Degraded(String),
    Unhealthy(String),
}

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    pub(crate) registration: AgentRegistration,
    pub(crate) expertise: Option<f64>,
    pub(crate) scores: BTreeMap<String, f64>,
}

/// Begins an agent named `id`: 1 to 100 of `a-z A-Z 0-9 . - _`, unique among the tenant's agents.
#[must_use]
pub fn agent(id: impl Into<String>) -> Profile {
    Profile::new(id)
}

impl Profile {
    /// See [`agent`].
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        let id = id.into();
        let registration = AgentRegistration {
            name: id.clone(),
            id,
            metadata: Some(Metadata::default()),
            ..AgentRegistration::default()
        };
        Self { registration, ..Self::default() }
    }

    /// A name for people; the id if none is given.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.registration.name = name.into();
        self
    }

    /// Adds something the agent can do: patterns choose agents by it.
    #[must_use]
    pub fn capability(mut self, capability: impl Into<String>) -> Self {
        self.registration.capabilities.push(capability.into());
        self
    }

    /// Adds a capability, and how well the agent has it: 0 to 1.
    #[must_use]
    pub fn skill(mut self, capability: impl Into<String>, score: f64) -> Self {
        let capability = capability.into();
        self.scores.insert(capability.clone(), score);
        self.capability(capability)
    }

    /// How much of an expert the agent is overall: 0 to 1.
    #[must_use]
    pub fn expertise(mut self, level: f64) -> Self {
        self.expertise = Some(level);
        self
    }

    /// The confidence to assume when an answer states none: above 0, up to 1.
    #[must_use]
    pub fn default_confidence(mut self, confidence: f64) -> Self {
        self.metadata().default_confidence = confidence;
        self
    }

    /// The version of the agent.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.metadata().version = version.into();
        self
    }

    /// Where the agent runs.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.metadata().region = region.into();
        self
    }

    /// Adds a label; agents can be listed by it.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata().labels.insert(key.into(), value.into());
        self
    }

    /// The agent that answers each task by calling `answer`.
    #[must_use]
    pub fn answer<F, A>(self, answer: F) -> AgentFn<F>
    where
        F: Fn(Task) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Answer, AgentError>> + Send + 'static,
    {
        AgentFn { profile: self, answer }
    }

    fn metadata(&mut self) -> &mut Metadata {
        self.registration.metadata.get_or_insert_default()
    }

    pub(crate) fn id(&self) -> &str {
        &self.registration.id
    }

    /// The first number that is not from 0 to 1, by name.
    pub(crate) fn check(&self) -> Result<(), String> {
        let scores = self.scores.iter().map(|(capability, score)| (capability.as_str(), *score));
        let stated = self.expertise.map(|level| ("expertise", level));
        let default =
            self.registration.metadata.as_ref().map(|m| ("default_confidence", m.default_confidence));
        match scores.chain(stated).chain(default).find(|(_, number)| !(0.0..=1.0).contains(number)) {
            Some((name, number)) => Err(format!("{name} is {number}; give a number from 0 to 1")),
            None => Ok(()),
        }
    }
}

/// The agent that [`Profile::answer`] makes.
#[derive(Clone, Debug)]
pub struct AgentFn<F> {
    profile: Profile,
    answer: F,
}

#[async_trait]
impl<F, A> Agent for AgentFn<F>
where
    F: Fn(Task) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Answer, AgentError>> + Send + 'static,
{
    fn profile(&self) -> Profile {
        self.profile.clone()
    }

    async fn analyze(&self, task: Task) -> Result<Answer, AgentError> {
        (self.answer)(task).await
    }
}
