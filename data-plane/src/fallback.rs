//! What answers a call that has failed for good, where its caller or its capability's settings want that.
//!
//! Whatever it is, the answer says so: in the metadata `served_by` of the result, in the trailer
//! `x-parallax-served-by`, and in a line of its uncertainties; and it is less sure than it was.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use parallax_proto::confidence::ConfidenceResult;
use parallax_runtime::confidence::Confidence;
use parallax_telemetry::metrics::Fallback;
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::Code;

use crate::{
    directory::{Entry, Tenant},
    error::Failure,
    vitals::Standing,
};

/// `ConfidenceResult.confidence`
const CONFIDENCE: u32 = 2;
/// The key of the result's metadata under which a fallback says what it is.
pub(crate) const SERVED_BY: &str = "served_by";

/// Which calls fall back to what, and how much less sure that is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fallbacks {
    /// What the confidence of an answer is multiplied by, 0 to 1: one that had been given before,
    pub cached: f64,
    /// one of another agent with the same capabilities,
    pub other_agent: f64,
    /// and one of an agent of another capability.
    pub degraded: f64,
    /// At most one per capability.
    pub rules: Vec<Rule>,
}

impl Default for Fallbacks {
    fn default() -> Self {
        Self { cached: 0.8, other_agent: 0.9, degraded: 0.7, rules: Vec::new() }
    }
}

impl Fallbacks {
    /// What is wrong with the rules.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let names: HashSet<_> = self.rules.iter().map(|rule| &rule.capability).collect();
        let without = |kind, absent: fn(&Rule) -> bool| {
            self.rules.iter().any(|rule| rule.order.contains(&kind) && absent(rule))
        };
        if names.len() < self.rules.len() {
            Err("has two for one capability; give one")
        } else if without(Kind::Degraded, |rule| rule.degraded.is_none()) {
            Err("has \"degraded\" in the order of one that names no degraded capability")
        } else if without(Kind::Default, |rule| rule.default.is_none()) {
            Err("has \"default\" in the order of one that gives no default")
        } else {
            Ok(())
        }
    }
}

/// Calls for a capability, or to an agent that has it and no other, fall back without their callers asking for
/// it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub capability: String,
    /// What is tried, in this order. A caller may name others, or none.
    pub order: Vec<Kind>,
    /// The capability that [`Kind::Degraded`] asks for.
    pub degraded: Option<String>,
    /// What [`Kind::Default`] answers.
    pub default: Option<Preset>,
}

/// What answers instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What was answered before, however old, while it is held.
    Cached,
    /// For a call that named an agent: another with the same capabilities.
    OtherAgent,
    /// An agent of another capability.
    Degraded,
    /// What was given in advance.
    Default,
}

impl Kind {
    /// Reads several, with commas between; `none` is none.
    pub(crate) fn list(text: &str) -> Result<Vec<Self>, String> {
        if text == "none" {
            return Ok(Vec::new());
        }
        let kind = |name: &str| match name.trim() {
            "cached" => Ok(Self::Cached),
            "other-agent" => Ok(Self::OtherAgent),
            "degraded" => Ok(Self::Degraded),
            "default" => Ok(Self::Default),
            other => {
                Err(format!("names \"{other}\", which is none of cached, other-agent, degraded, default"))
            }
        };
        text.split(',').map(kind).collect()
    }

    /// What the confidence of such an answer is multiplied by.
    pub(crate) fn factor(self, fallbacks: &Fallbacks) -> f64 {
        match self {
            Self::Cached => fallbacks.cached,
            Self::OtherAgent => fallbacks.other_agent,
            Self::Degraded => fallbacks.degraded,
            Self::Default => 1.0,
        }
    }

    /// As metrics and marks have it.
    pub(crate) fn served_by(self) -> Fallback {
        match self {
            Self::Cached => Fallback::Cached,
            Self::OtherAgent => Fallback::OtherAgent,
            Self::Degraded => Fallback::Degraded,
            Self::Default => Fallback::Default,
        }
    }
}

/// An answer that was given in advance, as the JSON text `{"value": any JSON, "confidence": 0 to 1}`; without a
/// confidence it has none: 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Preset {
    json: String,
    value_json: String,
    confidence: f64,
}

impl TryFrom<String> for Preset {
    type Error = String;

    fn try_from(json: String) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wire {
            value: serde_json::Value,
            confidence: Option<Confidence>,
        }
        let wire: Wire = serde_json::from_str(&json)
            .map_err(|e| format!("is not {{\"value\": …, \"confidence\": 0 to 1}} in JSON: {e}"))?;
        let confidence = wire.confidence.map_or(0.0, Confidence::get);
        Ok(Self { json, value_json: wire.value.to_string(), confidence })
    }
}

impl From<Preset> for String {
    fn from(preset: Preset) -> Self {
        preset.json
    }
}

impl Preset {
    /// As an answer.
    pub(crate) fn message(&self, why: String) -> Bytes {
        let result = ConfidenceResult { value_json: self.value_json.clone(), ..Default::default() };
        marked(&result.encode_to_vec(), Some(self.confidence), Fallback::Default.as_str().to_owned(), why)
    }
}

/// Whether something else may answer. An agent that refuses a request has answered it, and what it keeps from
/// its caller nobody else hands out.
pub(crate) fn may_replace(failure: &Failure) -> bool {
    match failure {
        Failure::Malformed(_) | Failure::Cancelled(_) => false,
        Failure::Agent { code, .. } => !matches!(
            code,
            Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Unimplemented
                | Code::Unauthenticated
        ),
        _ => true,
    }
}

/// An agent with all the capabilities of the one that is named, the least busy of those that are well.
pub(crate) fn other_agent<'a>(
    tenant: &'a Tenant,
    named: &str,
    pattern: &str,
    now: Instant,
) -> Option<&'a Arc<Entry>> {
    let named = tenant.agents.get(named)?;
    let wanted = &named.agent.capabilities;
    let able = tenant.capabilities.get(wanted.first()?)?.members.iter().filter(|entry| {
        entry.agent.key != named.agent.key && wanted.iter().all(|w| entry.agent.capabilities.contains(w))
    });
    let well = |entry: &Entry| matches!(entry.vitals.standing(pattern, now), Standing::Admitted);
    able.min_by_key(|entry| (!well(entry), entry.vitals.in_flight()))
}

/// A `ConfidenceResult` that says that it is a fallback, and is less sure.
///
/// This is appended and all else left as it is: protobuf reads the last of a field that stands twice, and joins
/// lists and maps.
pub(crate) fn marked(message: &[u8], confidence: Option<f64>, served_by: String, why: String) -> Bytes {
    let mut bytes = message.to_vec();
    if let Some(confidence) = confidence {
        // A zero too, which a message would leave out.
        prost::encoding::double::encode(CONFIDENCE, &confidence, &mut bytes);
    }
    let mark = ConfidenceResult {
        uncertainties: vec![why],
        metadata: [(SERVED_BY.to_owned(), served_by)].into(),
        ..Default::default()
    };
    mark.encode(&mut bytes).expect("the buffer grows");
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_answer_is_the_same_but_for_its_mark() {
        let result = ConfidenceResult {
            value_json: "1".into(),
            confidence: 0.9,
            uncertainties: vec!["short".into()],
            metadata: [("k".to_owned(), "v".to_owned()), (SERVED_BY.to_owned(), "me".to_owned())].into(),
            ..Default::default()
        };
        let mut message = result.encode_to_vec();
        let later_field = [0xf8, 0x07, 0x2a];
        message.extend(later_field);
        for lowered in [0.72, 0.0] {
            let bytes = marked(&message, Some(lowered), "cached".into(), "why".into());
            let read = ConfidenceResult::decode(bytes.clone()).unwrap();
            assert_eq!((read.value_json.as_str(), read.confidence), ("1", lowered));
            assert_eq!(read.uncertainties, ["short", "why"]);
            assert_eq!((read.metadata["k"].as_str(), read.metadata[SERVED_BY].as_str()), ("v", "cached"));
            assert!(bytes.windows(3).any(|bytes| bytes == later_field));
        }
        let unstated = ConfidenceResult { confidence: f64::NAN, ..Default::default() }.encode_to_vec();
        let read = ConfidenceResult::decode(marked(&unstated, None, String::new(), String::new())).unwrap();
        assert!(read.confidence.is_nan());
    }

    #[test]
    fn defaults_and_names_are_read_strictly() {
        let read = |json: &str| Preset::try_from(json.to_owned()).map(|p| (p.value_json, p.confidence));
        assert_eq!(read(r#"{"value": {"a": null}}"#), Ok(("{\"a\":null}".to_owned(), 0.0)));
        assert_eq!(read(r#"{"value": 1, "confidence": 0.25}"#), Ok(("1".to_owned(), 0.25)));
        for (json, words) in [
            ("7", "invalid type"),
            (r#"{"confidence": 0.1}"#, "missing field `value`"),
            (r#"{"value": 1, "confidence": 7}"#, "from 0 to 1"),
            (r#"{"value": 1, "sure": 1}"#, "unknown field `sure`"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(Kind::list("other-agent , cached"), Ok(vec![Kind::OtherAgent, Kind::Cached]));
        assert_eq!(Kind::list("none"), Ok(vec![]));
        for wrong in ["other_agent", "", "cached,", "none,cached"] {
            assert!(
                Kind::list(wrong).unwrap_err().contains("which is none of cached, other-agent"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn rules_that_cannot_hold_are_refused() {
        let rule = |order: &[Kind]| Rule {
            capability: "sum".into(),
            order: order.to_vec(),
            degraded: None,
            default: None,
        };
        let check = |rules: Vec<Rule>| Fallbacks { rules, ..Fallbacks::default() }.check();
        assert_eq!(check(vec![rule(&[Kind::Cached, Kind::OtherAgent])]), Ok(()));
        assert!(check(vec![rule(&[Kind::Default])]).unwrap_err().contains("gives no default"));
        assert!(check(vec![rule(&[Kind::Degraded])]).unwrap_err().contains("names no degraded capability"));
        assert!(check(vec![rule(&[]), rule(&[])]).unwrap_err().contains("two for one capability"));
    }
}
