//! What a run asks of its owner, and what the owner answers. Both are data that a journal can keep.

use crate::diagnostic::{Raise, Span};
use crate::value::{Val, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// 1, 2, 3, … in the order in which a run asks; depends only on the program and on earlier outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EffectId(pub u64);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    pub id: EffectId,
    pub kind: EffectKind,
    /// The call in the script that asked.
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EffectKind {
    /// Ask an agent, named by its id. Answer with [`Outcome::Answer`] (or a value, which then has no confidence
    /// unless it carries one).
    Invoke { agent: String, task: String, data: Value, options: InvokeOptions },
    /// Run another pattern. Answer with its value, confident if its result is.
    Pattern { name: String, input: Value },
    /// Ask a language model. Answer with [`Outcome::Answer`] whose value is the text.
    Llm { prompt: String, options: LlmOptions },
    /// Answer, with any value, after this many milliseconds.
    Sleep { ms: u64 },
    /// Answer with milliseconds since the Unix epoch.
    Now,
    /// Answer with a number in 0..1.
    Random,
}

impl EffectKind {
    /// Bytes that it holds, roughly, without the values that it shares with the script.
    pub(crate) fn bytes(&self) -> u64 {
        let texts = match self {
            EffectKind::Invoke { task, options, .. } => {
                task.len() + options.context.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>()
            }
            EffectKind::Pattern { name, .. } => name.len(),
            EffectKind::Llm { prompt, options } => {
                let names = options.provider.iter().chain(&options.model);
                prompt.len() + names.map(String::len).sum::<usize>()
            }
            EffectKind::Sleep { .. } | EffectKind::Now | EffectKind::Random => 0,
        };
        (size_of::<Effect>() + texts) as u64
    }

    /// The value that it carries.
    pub(crate) fn value(&self) -> Option<&Val> {
        match self {
            EffectKind::Invoke { data: value, .. } | EffectKind::Pattern { input: value, .. } => {
                Some(&value.0)
            }
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InvokeOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlmOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structured_output: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_reasoning: Option<bool>,
}

/// How an effect ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Value(Value),
    Answer(Answer),
    /// `code` is the owner's; `no_llm_provider` is understood, all others are reported in the message.
    Failed {
        code: String,
        message: String,
    },
}

/// What an agent or a model said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    pub value: Value,
    /// 0..=1; anything else makes the answer a failure. Without one, the value stays plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uncertainties: Vec<String>,
    /// Of a model: `model`, `provider`, `tokensUsed` and the like.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub metadata: Value,
}

/// Where the answer to one effect arrives. Everything that holds the pending value holds the slot.
pub(crate) struct Slot {
    pub(crate) id: EffectId,
    pub(crate) form: Form,
    settled: OnceLock<Result<Val, Box<Raise>>>,
    /// Somebody has seen the result, so a failure is not lost.
    seen: AtomicBool,
    /// The owner has been asked.
    handed_out: AtomicBool,
}

/// What an outcome becomes in the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The answer of the agent with this index, confident.
    Analysis(u32),
    /// The same as an element of `agentResults`; a failure is an element too.
    AgentResult(u32),
    Pattern,
    /// The text with its confidence.
    Llm,
    /// The response object, for an extractor or a stream.
    LlmResponse,
    Sleep,
    Number,
}

impl Slot {
    pub(crate) fn new(id: EffectId, form: Form) -> Slot {
        Slot {
            id,
            form,
            settled: OnceLock::new(),
            seen: AtomicBool::new(false),
            handed_out: AtomicBool::new(false),
        }
    }

    pub(crate) fn settle(&self, result: Result<Val, Box<Raise>>) {
        // An effect settles once; the machine forgets it afterwards.
        let _ = self.settled.set(result);
    }

    pub(crate) fn value(&self) -> Option<Result<&Val, &Raise>> {
        self.settled.get().map(|result| result.as_ref().map_err(|e| &**e))
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.get().is_some()
    }

    pub(crate) fn see(&self) {
        self.seen.store(true, Ordering::Relaxed);
    }

    pub(crate) fn hand_out(&self) {
        self.handed_out.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_handed_out(&self) -> bool {
        self.handed_out.load(Ordering::Relaxed)
    }

    /// The failure that nobody has looked at.
    pub(crate) fn unseen_failure(&self) -> Option<&Raise> {
        match self.value() {
            Some(Err(raise)) if !self.seen.load(Ordering::Relaxed) => Some(raise),
            _ => None,
        }
    }
}
