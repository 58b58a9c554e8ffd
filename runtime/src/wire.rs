//! Between the wire's types and ours, with the tolerance that existing agents need.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use parallax_proto::{confidence as proto, dataplane::v1 as dataplane};
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::{Map, Number, Value as Json};

use crate::confidence::Confidence;

/// The reason (`ErrorInfo`) of a node that does not take a call as it is joining; another may.
pub const JOINING: &str = "PARALLAX-PROXY-104";
/// The reason of a node that does not take a call as it has too much to do; another may.
pub const SHED: &str = "PARALLAX-PROXY-113";
/// Metadata key that names the agent a call is for.
pub const AGENT: &str = "x-parallax-agent";
/// Metadata key that names the capability a call is for; any agent that has it may answer.
pub const CAPABILITY: &str = "x-parallax-capability";
/// Metadata key that names whose agents are meant: believed of planes only.
pub const TENANT: &str = "x-parallax-tenant";
/// Metadata key that names the pattern a call belongs to: an agent that fails one pattern is ejected for that alone.
pub const PATTERN: &str = "x-parallax-pattern";
/// Metadata key that says how much a call matters when there is too much to do: `critical`, `default` or `sheddable`.
pub const PRIORITY: &str = "x-parallax-priority";
/// Metadata key that names the caller to an agent.
pub const CLIENT_ID: &str = "x-parallax-client-id";
/// Metadata key with a call's idempotency key: the same for each attempt at one effect of one run.
pub const EFFECT: &str = "x-parallax-effect";
/// Metadata key with the number of the attempt, from 1.
pub const ATTEMPT: &str = "x-parallax-attempt";
/// Metadata key that names how the data plane chooses among agents: `round_robin`, `least_request`, `peak_ewma`,
/// `confidence`, `consistent_hash`.
pub const STRATEGY: &str = "x-parallax-strategy";
/// Metadata key whose equal values go to the same agent.
pub const AFFINITY: &str = "x-parallax-affinity";
/// Metadata key that says (`true`) that asking twice does no harm.
pub const IDEMPOTENT: &str = "x-parallax-idempotent";
/// Header or trailer in which an agent reports its load, as ORCA has it (Envoy's name), in its text form:
/// `TEXT named_metrics.in_flight=3,named_metrics.service_time_ms=12.5`.
pub const LOAD: &str = "endpoint-load-metrics";
/// What a report, or the details of a health check, calls the calls that an agent works on.
pub const LOAD_IN_FLIGHT: &str = "in_flight";
/// And how long one takes it, in milliseconds.
pub const LOAD_SERVICE_TIME: &str = "service_time_ms";
/// Header with the milliseconds that the caller will wait, for agents that are reached by HTTP.
pub const TIMEOUT_MS: &str = "x-parallax-timeout-ms";
/// Metadata key by which a call opts for the data plane's cache (`use`, `refresh`, `bypass`); in the answer, what the
/// cache was to it (`hit`, `miss`, `shared`, `refresh`, `bypass`, `uncacheable`).
pub const CACHE: &str = "x-parallax-cache";
/// Metadata key that says what may answer when the agent does not, in this order: `cached`, `other-agent`, `degraded`,
/// `default`, with commas between; or `none`.
pub const FALLBACK: &str = "x-parallax-fallback";
/// Metadata key with what the fallback `default` answers: `{"value": …, "confidence": 0 to 1}` in JSON.
pub const DEFAULT: &str = "x-parallax-default-bin";
/// Trailer in which the data plane names the agent that answered, or the fallback that did.
pub const SERVED_BY: &str = "x-parallax-served-by";

/// A JSON object as a `google.protobuf.Struct`. Numbers become doubles, as the type has no other.
#[must_use]
pub fn struct_from_json(object: &Map<String, Json>) -> Struct {
    Struct { fields: object.iter().map(|(k, v)| (k.clone(), value_from_json(v))).collect() }
}

/// JSON as a `Struct`: anything but an object is wrapped as `{"value": …}`, as the type has no other way.
#[must_use]
pub fn struct_from_any(json: &Json) -> Struct {
    match json {
        Json::Object(object) => struct_from_json(object),
        Json::Null => Struct::default(),
        other => Struct { fields: BTreeMap::from([("value".to_owned(), value_from_json(other))]) },
    }
}

fn value_from_json(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(b) => Kind::BoolValue(*b),
        Json::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(f64::NAN)),
        Json::String(s) => Kind::StringValue(s.clone()),
        Json::Array(items) => {
            Kind::ListValue(ListValue { values: items.iter().map(value_from_json).collect() })
        }
        Json::Object(object) => Kind::StructValue(struct_from_json(object)),
    };
    Value { kind: Some(kind) }
}

/// A `Struct` as a JSON object, keys in alphabetical order. Whole doubles become integers; NaN and infinity,
/// which JSON has not, become null.
#[must_use]
pub fn struct_to_json(message: &Struct) -> Map<String, Json> {
    message.fields.iter().map(|(k, v)| (k.clone(), value_to_json(v))).collect()
}

fn value_to_json(value: &Value) -> Json {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(b)) => Json::Bool(*b),
        Some(Kind::NumberValue(n)) => number(*n),
        Some(Kind::StringValue(s)) => Json::String(s.clone()),
        Some(Kind::ListValue(list)) => Json::Array(list.values.iter().map(value_to_json).collect()),
        Some(Kind::StructValue(object)) => Json::Object(struct_to_json(object)),
    }
}

/// Doubles are exact for integers up to 2⁵³.
#[allow(clippy::cast_possible_truncation)]
fn number(n: f64) -> Json {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if n.fract() == 0.0 && n.abs() <= EXACT && !(n == 0.0 && n.is_sign_negative()) {
        return Json::from(n as i64);
    }
    Number::from_f64(n).map_or(Json::Null, Json::Number)
}

/// The JSON of an agent's `value_json`: empty is null, and text that is not JSON is itself, as a string.
#[must_use]
pub fn parse_value(text: &str) -> Json {
    if text.trim().is_empty() {
        return Json::Null;
    }
    serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.to_owned()))
}

/// An agent's result made safe: confidence clamped or absent, value always JSON.
#[must_use]
pub fn answer_from_result(result: proto::ConfidenceResult) -> dataplane::Answer {
    dataplane::Answer {
        value_json: parse_value(&result.value_json).to_string(),
        confidence: Confidence::stated(result.confidence).map(Confidence::get),
        uncertainties: result.uncertainties,
        reasoning: result.reasoning,
        metadata: result.metadata,
    }
}

/// A moment as protobuf has it.
#[must_use]
pub fn timestamp_to_wire(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// `None` when the message is out of range.
#[must_use]
pub fn timestamp_from_wire(at: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(at.seconds, at.nanos).ok()
}

/// A span of time as protobuf has it, saturating.
#[must_use]
pub fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).expect("below 10⁹"),
    }
}

/// `None` when the message is negative.
#[must_use]
pub fn duration_from_wire(duration: prost_types::Duration) -> Option<Duration> {
    duration.try_into().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn structs_round_trip_and_whole_doubles_are_integers() {
        let json = json!({"a": [1, 2.5, null, true], "b": {"c": "x"}, "z": -3});
        let object = json.as_object().unwrap();
        assert_eq!(Json::Object(struct_to_json(&struct_from_json(object))), json);
        assert_eq!(number(f64::NAN), Json::Null);
        assert_eq!(number(1e300), json!(1e300));
    }

    #[test]
    fn value_json_is_null_json_or_text() {
        assert_eq!(parse_value("  "), Json::Null);
        assert_eq!(parse_value("{\"a\":1.0}"), json!({"a": 1.0}));
        assert_eq!(parse_value("{oops"), json!("{oops"));
    }

    #[test]
    fn an_answer_is_made_safe() {
        let raw = |confidence| proto::ConfidenceResult { confidence, ..Default::default() };
        assert_eq!(answer_from_result(raw(7.3)).confidence, Some(1.0));
        assert_eq!(answer_from_result(raw(f64::NAN)).confidence, None);
        assert_eq!(answer_from_result(raw(0.4)).value_json, "null");
    }
}
