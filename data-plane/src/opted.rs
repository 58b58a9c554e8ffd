//! Calls that opted for more than their agent's own answer: for the cache, for fallbacks, or both.
//!
//! Their messages are held as a whole and read; no other call pays for that.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;
use parallax_runtime::wire;
use parallax_telemetry::metrics::{CacheOutcome, Fallback};
use tokio::time::Instant;

use crate::{
    ask::{Ask, Target},
    cache::{Found, Given, Key, Mode},
    caller::Caller,
    error::{Failed, Failure},
    fallback::{Kind, Preset, marked, may_replace, other_agent},
    whole::Whole,
};

/// Of what is left of a call's time, the share that one try gets where something else may answer, so that this
/// still comes in time.
const SHARE: f64 = 0.8;

/// What a caller says of cache and fallbacks; what it leaves open the settings say.
#[derive(Default)]
pub(crate) struct Wishes {
    pub(crate) cache: Option<Mode>,
    pub(crate) fallbacks: Option<Vec<Kind>>,
    pub(crate) default: Option<Preset>,
}

/// What a call opted for.
#[derive(Debug)]
pub(crate) struct Plan {
    cache: Option<Mode>,
    fallbacks: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Cached,
    OtherAgent,
    /// Any agent of this capability.
    Degraded(String),
    Default(Preset),
}

impl Plan {
    /// What a call opted for, by itself or by its capability's settings; none for most.
    pub(crate) fn of(caller: &Caller, ask: &Ask<'_>, wishes: Wishes) -> Result<Option<Self>, Failure> {
        let config = caller.config.now();
        let (cached, rules) = (&config.cache.capabilities, &config.fallback.rules);
        let set = !(cached.is_empty() && rules.is_empty());
        let capability = if set { capability(caller, ask) } else { None };
        let rule = rules.iter().find(|rule| Some(&rule.capability) == capability.as_ref());
        let order = wishes.fallbacks.as_deref().or(rule.map(|rule| &rule.order[..])).unwrap_or_default();
        let step = |kind: &Kind| {
            Ok(match kind {
                Kind::Cached => Step::Cached,
                Kind::OtherAgent => Step::OtherAgent,
                Kind::Degraded => {
                    let other = rule.and_then(|rule| rule.degraded.clone());
                    Step::Degraded(other.ok_or("degraded: no setting of the node names another capability")?)
                }
                Kind::Default => {
                    let preset = wishes.default.as_ref().or(rule.and_then(|rule| rule.default.as_ref()));
                    let missing = "default: neither the call nor a setting of the node gives one";
                    Step::Default(preset.ok_or(missing)?.clone())
                }
            })
        };
        let fallbacks: Result<Vec<_>, &str> = order.iter().map(step).collect();
        let fallbacks = fallbacks.map_err(|e| Failure::Malformed(format!("{} names {e}", wire::FALLBACK)))?;
        let by_setting = capability.is_some_and(|capability| cached.contains(&capability));
        let cache = wishes.cache.or(by_setting.then_some(Mode::Use));
        // What a call may fall back to has to be held, though it asks its agent.
        let cache = cache.or(fallbacks.contains(&Step::Cached).then_some(Mode::Refresh));
        Ok((cache.is_some() || !fallbacks.is_empty()).then_some(Self { cache, fallbacks }))
    }

    /// Of a call of a kind that has no fallbacks.
    pub(crate) fn cache(mode: Mode) -> Self {
        Self { cache: Some(mode), fallbacks: Vec::new() }
    }

    /// Whether there is nothing to do but to say so.
    pub(crate) fn is_bypass(&self) -> bool {
        self.cache == Some(Mode::Bypass) && self.fallbacks.is_empty()
    }

    /// What the cache is to a call of a kind or size that neither it nor fallbacks know.
    pub(crate) fn unused(&self) -> CacheOutcome {
        if self.cache == Some(Mode::Bypass) { CacheOutcome::Bypass } else { CacheOutcome::Uncacheable }
    }
}

/// The capability that a call is for. What is asked of an agent that has several is anybody's guess.
fn capability(caller: &Caller, ask: &Ask<'_>) -> Option<String> {
    match ask.target {
        Target::Capability(capability) => Some(capability.to_owned()),
        Target::Agent(id) => {
            let snapshot = caller.directory.snapshot();
            match &snapshot.as_ref()?.tenant(ask.tenant)?.agents.get(id)?.agent.capabilities[..] {
                [only] => Some(only.clone()),
                _ => None,
            }
        }
    }
}

/// Such a call.
pub(crate) struct Opted<'a> {
    pub(crate) caller: &'a Rc<Caller>,
    pub(crate) ask: &'a Ask<'a>,
    /// The `AgentRequest`.
    pub(crate) message: &'a [u8],
    pub(crate) plan: &'a Plan,
}

/// What a call is answered with.
pub(crate) struct Answered {
    /// A `ConfidenceResult`.
    pub(crate) message: Bytes,
    pub(crate) served_by: HeaderValue,
    /// Who gave the answer; nobody, where it was given in advance.
    pub(crate) agent: Option<HeaderValue>,
    pub(crate) by: By,
}

pub(crate) enum By {
    /// By its agent, now.
    Agent(Box<Whole>),
    /// By what had been held for so long.
    Cache(Duration),
    /// By the answer to another's call.
    Other,
    /// By a fallback, which may have been held for so long.
    Fallback(Option<Duration>),
}

impl Answered {
    fn with(given: Given, by: By) -> Self {
        Self { message: given.message, served_by: given.agent.clone(), agent: Some(given.agent), by }
    }
}

impl Opted<'_> {
    /// Answers the call; `asking` asks whom it is told to. Says what the cache was
    /// to the call, whether it was answered or not.
    pub(crate) async fn answer(
        &self,
        asking: impl AsyncFn(&Ask<'_>) -> Result<Whole, Failed>,
    ) -> (Option<CacheOutcome>, Result<Answered, Failed>) {
        let cache = &self.caller.cache;
        let until =
            Instant::now() + self.left().mul_f64(if self.plan.fallbacks.is_empty() { 1.0 } else { SHARE });
        let late = || {
            let agent = match self.ask.target {
                Target::Agent(id) => id.to_owned(),
                Target::Capability(capability) => format!("for \"{capability}\", asked by another call,"),
            };
            Failure::Deadline { agent, after: self.timeout() }
        };
        let own = async || {
            let ask = self.ask.of(self.ask.target, until.saturating_duration_since(Instant::now()));
            let asked = asking(&ask).await;
            self.ask.asked.replace(ask.asked.take());
            asked.map(|whole| (whole.given.clone(), whole))
        };
        let key = self.plan.cache.and_then(|_| self.key());
        let (outcome, found) = match (self.plan.cache, key) {
            (Some(mode), Some(key)) => {
                let (outcome, found) = cache.answer(key, mode, (until, late), own).await;
                (Some(outcome), found)
            }
            (mode, _) => {
                let found = own().await.map(|(given, whole)| Found::Asked(given, whole));
                (mode.map(|_| CacheOutcome::Uncacheable), found)
            }
        };
        outcome.into_iter().for_each(|outcome| cache.metrics.call(outcome));
        let answered = match found {
            Ok(Found::Hit(held)) => Ok(Answered::with(held.given.clone(), By::Cache(held.age()))),
            Ok(Found::Shared(given)) => Ok(Answered::with(given, By::Other)),
            Ok(Found::Asked(given, whole)) => Ok(Answered::with(given, By::Agent(Box::new(whole)))),
            Err(failed) if may_replace(&failed.failure) => {
                self.instead(&failed.failure, key, asking).await.ok_or(failed)
            }
            Err(failed) => Err(failed),
        };
        (outcome, answered)
    }

    fn key(&self) -> Option<Key> {
        let snapshot = self.caller.directory.snapshot();
        let agents = snapshot.as_ref().and_then(|snapshot| snapshot.tenant(self.ask.tenant));
        Key::of((self.ask.tenant, agents), self.ask.target, self.message)
    }

    fn timeout(&self) -> Duration {
        self.ask.timeout.unwrap_or_else(|| self.caller.config.now().default_deadline)
    }

    fn left(&self) -> Duration {
        (self.ask.started + self.timeout()).saturating_duration_since(Instant::now())
    }

    /// The first fallback that has an answer.
    async fn instead(
        &self,
        failure: &Failure,
        key: Option<Key>,
        asking: impl AsyncFn(&Ask<'_>) -> Result<Whole, Failed>,
    ) -> Option<Answered> {
        let ask = async |target: Target<'_>| {
            let share = self.left().mul_f64(SHARE);
            if share.is_zero() {
                return None;
            }
            asking(&self.ask.of(target, share)).await.ok().map(|whole| (whole.given, None))
        };
        for step in &self.plan.fallbacks {
            let found = match step {
                Step::Cached => key
                    .and_then(|key| self.caller.cache.stale(&key))
                    .map(|held| (held.given.clone(), Some(held.age()))),
                Step::OtherAgent => match self.other_agent() {
                    Some(id) => ask(Target::Agent(&id)).await,
                    None => None,
                },
                Step::Degraded(capability) => ask(Target::Capability(capability)).await,
                Step::Default(preset) => {
                    self.caller.cache.metrics.fallback(Fallback::Default);
                    let why = format!("a default and no answer, as the call failed: {failure}");
                    let served_by = HeaderValue::from_static(Fallback::Default.as_str());
                    let message = preset.message(why);
                    return Some(Answered { message, served_by, agent: None, by: By::Fallback(None) });
                }
            };
            if let Some((given, age)) = found {
                return Some(self.marked(step.kind(), given, age, failure));
            }
        }
        None
    }

    fn other_agent(&self) -> Option<String> {
        let Target::Agent(named) = self.ask.target else { return None };
        let snapshot = self.caller.directory.snapshot();
        let agents = snapshot.as_ref()?.tenant(self.ask.tenant)?;
        other_agent(agents, named, self.ask.pattern, Instant::now()).map(|entry| entry.agent.key.id.clone())
    }

    /// An answer that was not given to this call, and says so.
    fn marked(&self, kind: Kind, given: Given, age: Option<Duration>, failure: &Failure) -> Answered {
        self.caller.cache.metrics.fallback(kind.served_by());
        let agent = given.agent.to_str().unwrap_or_default();
        let (served_by, ago) = match age {
            Some(age) => (kind.served_by().as_str().to_owned(), format!(" of {} s ago", age.as_secs())),
            None => (format!("{}:{agent}", kind.served_by().as_str()), String::new()),
        };
        let factor = kind.factor(&self.caller.config.now().fallback);
        let confidence = given.confidence.map(|confidence| confidence.get() * factor);
        let why = format!("an answer of {agent}{ago}, as the call failed: {failure}");
        Answered {
            served_by: HeaderValue::from_str(&served_by).unwrap_or_else(|_| given.agent.clone()),
            message: marked(&given.message, confidence, served_by, why),
            agent: Some(given.agent),
            by: By::Fallback(age),
        }
    }
}

impl Step {
    fn kind(&self) -> Kind {
        match self {
            Self::Cached => Kind::Cached,
            Self::OtherAgent => Kind::OtherAgent,
            Self::Degraded(_) => Kind::Degraded,
            Self::Default(_) => Kind::Default,
        }
    }
}
