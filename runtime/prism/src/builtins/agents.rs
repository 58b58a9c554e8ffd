//! Agents as values, and the options of calls that ask the owner for something.

use super::{Native, options};
use crate::diagnostic::{Raise, Raised};
use crate::effects::{InvokeOptions, LlmOptions, Outcome};
use crate::value::{Body, Object, Val, text};
use crate::vm::{AgentInfo, bad_argument};
use std::sync::Arc;

fn object(entries: impl IntoIterator<Item = (&'static str, Val)>) -> Val {
    let object: Object = entries.into_iter().map(|(k, v)| (Arc::from(k), v)).collect();
    Val::Obj(Arc::new(object))
}

fn texts<'a>(items: impl IntoIterator<Item = &'a String>) -> Val {
    Val::array(items.into_iter().map(|s| Val::str(s.as_str())).collect()).expect("texts do not nest")
}

/// What an agent has.
pub(crate) const MEMBERS: [&str; 7] =
    ["id", "name", "capabilities", "expertise", "confidence", "labels", "analyze"];

/// `agents`: what is known of each, and `analyze(task?, data?, options?)`.
pub(crate) fn list(agents: &[AgentInfo]) -> Val {
    let agents = agents.iter().enumerate().map(|(index, agent)| {
        let analyze = Body::Partial { native: Native::Analyze, given: Box::new([Val::Num(index as f64)]) };
        let labels: Object =
            agent.labels.iter().map(|(k, v)| (Arc::from(k.as_str()), Val::str(v.as_str()))).collect();
        object([
            ("id", Val::str(agent.id.as_str())),
            ("name", Val::str(agent.name.as_str())),
            ("capabilities", texts(&agent.capabilities)),
            ("expertise", Val::Num(agent.expertise)),
            ("confidence", agent.confidence.map_or(Val::Null, Val::Num)),
            ("labels", Val::Obj(Arc::new(labels))),
            ("analyze", Val::func(analyze).expect("a number does not nest")),
        ])
    });
    Val::array(agents.collect()).expect("agents nest three levels deep")
}

/// What an element of `agentResults` has.
pub(crate) const RESULT_MEMBERS: [&str; 8] =
    ["agentId", "agentName", "expertise", "result", "confidence", "reasoning", "uncertainties", "error"];

/// An element of `agentResults`.
pub(crate) fn result(agent: &AgentInfo, outcome: Outcome) -> Val {
    let (value, confidence, reasoning, uncertainties, error) = match outcome {
        Outcome::Value(v) => (v.0.plain().clone(), v.confidence(), String::new(), Vec::new(), Val::Null),
        Outcome::Answer(a) => {
            let confidence = a.confidence.or(a.value.confidence());
            (a.value.0.plain().clone(), confidence, a.reasoning, a.uncertainties, Val::Null)
        }
        Outcome::Failed { code, message } => {
            (Val::Null, Some(0.0), String::new(), Vec::new(), Val::str(format!("{message} ({code})")))
        }
    };
    let values = [
        Val::str(agent.id.as_str()),
        Val::str(agent.name.as_str()),
        Val::Num(agent.expertise),
        value,
        confidence.map_or(Val::Null, Val::Num),
        Val::str(reasoning),
        texts(&uncertainties),
        error,
    ];
    object(RESULT_MEMBERS.into_iter().zip(values))
}

/// `successfulResults`: those without an error.
pub(crate) fn successful(results: &Val) -> Raised<Val> {
    let items = results.as_items().unwrap_or(&[]);
    Val::array(items.iter().filter(|r| matches!(r.get("error"), Some(Val::Null))).cloned().collect())
}

/// A time to wait.
pub(crate) fn milliseconds(native: Native, v: &Val) -> Raised<u64> {
    match v.plain() {
        Val::Num(ms) if *ms >= 0.0 && ms.is_finite() => Ok(*ms as u64),
        other => Err(bad_argument(native, "milliseconds from 0", other)),
    }
}

/// `debounce(ms)(f)`: calls come late by that time.
pub(super) fn debounce(native: Native, args: &[Val]) -> Raised<Val> {
    milliseconds(native, &args[0])?;
    let next = if native == Native::Debounce { Native::DebounceOf } else { Native::DebounceCall };
    if native == Native::DebounceOf && !args[1].callable() {
        return Err(bad_argument(native, "a function", &args[1]));
    }
    Val::func(Body::Partial { native: next, given: args.into() })
}

/// What `llm` and `stream_llm` may be told.
pub(super) const LLM_OPTIONS: &[&str] = &[
    "provider",
    "providerName",
    "model",
    "temperature",
    "maxTokens",
    "topP",
    "timeout",
    "structuredOutput",
    "includeReasoning",
    "extractor",
];

/// Prompt, options and extractor of a language model call.
pub(crate) fn llm_arguments(native: Native, args: &[Val]) -> Raised<(String, LlmOptions, Option<Val>)> {
    let Val::Str(prompt) = args[0].plain() else {
        return Err(bad_argument(native, "a prompt as a string", &args[0]));
    };
    let given = options(native, args.get(1))?;
    let mut options = LlmOptions::default();
    let mut extractor = None;
    for (key, value) in given.into_iter().flat_map(Object::entries).filter(|(_, v)| !matches!(v, Val::Null)) {
        let wrong = |wanted: &str| {
            let message =
                format!("option `{key}` of `{}` is {wanted}, not {}", native.name(), value.described());
            Raise::new("bad_argument", message)
        };
        let string = || match value.plain() {
            Val::Str(s) => Ok(Some(s.to_string())),
            _ => Err(wrong("a string")),
        };
        let number = || match value.plain() {
            Val::Num(x) => Ok(Some(*x)),
            _ => Err(wrong("a number")),
        };
        let boolean = || match value.plain() {
            Val::Bool(b) => Ok(Some(*b)),
            _ => Err(wrong("a boolean")),
        };
        match &**key {
            "provider" | "providerName" => options.provider = string()?,
            "model" => options.model = string()?,
            "temperature" => options.temperature = number()?,
            "maxTokens" => options.max_tokens = number()?,
            "topP" => options.top_p = number()?,
            "timeout" => options.timeout = number()?,
            "structuredOutput" => options.structured_output = boolean()?,
            "includeReasoning" => options.include_reasoning = boolean()?,
            "extractor" if value.callable() => extractor = Some(value.clone()),
            "extractor" => return Err(wrong("a function")),
            _ => {}
        }
    }
    Ok((prompt.to_string(), options, extractor))
}

/// Options of `agent.analyze`: `timeout` in milliseconds, `context` an object of texts.
pub(crate) fn invoke_options(native: Native, given: Option<&Val>) -> Raised<InvokeOptions> {
    let mut parsed = InvokeOptions::default();
    let Some(given) = options(native, given)? else {
        return Ok(parsed);
    };
    if let Some(timeout) = given.get("timeout").or(given.get("timeoutMs")) {
        parsed.timeout_ms = Some(milliseconds(native, timeout)?);
    }
    match given.get("context").map(Val::plain) {
        None | Some(Val::Null) => {}
        Some(Val::Obj(context)) => {
            parsed.context = context.entries().map(|(k, v)| (k.to_string(), text(v.plain()))).collect();
        }
        Some(other) => return Err(bad_argument(native, "`context` as an object", other)),
    }
    Ok(parsed)
}
