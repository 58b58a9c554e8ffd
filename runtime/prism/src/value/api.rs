//! Values as an owner of a run sees them.

use super::{Array, Val, Value, equality, json, text};
use std::fmt;
use std::sync::Arc;

/// The kinds of value that an owner may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
    Function,
    Promise,
}

impl Value {
    pub fn null() -> Value {
        Value(Val::Null)
    }

    pub fn array(items: impl IntoIterator<Item = Value>) -> Value {
        Value(Val::Arr(Arc::new(Array::new(items.into_iter().map(|v| v.0).collect()))))
    }

    /// Keys keep their order; a key given twice keeps its first place and its last value.
    pub fn object<K: Into<Arc<str>>>(entries: impl IntoIterator<Item = (K, Value)>) -> Value {
        Value(Val::Obj(Arc::new(entries.into_iter().map(|(k, v)| (k.into(), v.0)).collect())))
    }

    /// The value with this confidence in place of any it had, clamped to 0..=1. NaN gives 0: an agent that cannot
    /// say how sure it is, is not sure.
    pub fn with_confidence(self, confidence: f64) -> Value {
        Value(self.0.sure(if confidence.is_nan() { 0.0 } else { confidence.clamp(0.0, 1.0) }))
    }

    /// `None` for a plain value, which is not the same as a confidence of 1.
    pub fn confidence(&self) -> Option<f64> {
        self.0.confidence()
    }

    /// The value without its outer confidence.
    pub fn plain(&self) -> Value {
        Value(self.0.plain().clone())
    }

    /// The kind, looking inside a confidence.
    pub fn kind(&self) -> ValueKind {
        match self.0.plain() {
            Val::Bool(_) => ValueKind::Bool,
            Val::Num(_) => ValueKind::Number,
            Val::Str(_) => ValueKind::String,
            Val::Arr(_) => ValueKind::Array,
            Val::Obj(_) => ValueKind::Object,
            Val::Func(_) | Val::Native(_) => ValueKind::Function,
            Val::Promise(_) | Val::Pending(_) => ValueKind::Promise,
            _ => ValueKind::Null,
        }
    }

    pub fn is_null(&self) -> bool {
        self.kind() == ValueKind::Null
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self.0.plain() {
            Val::Bool(b) => Some(*b),
            _ => None,
        }
    }

    pub fn as_f64(&self) -> Option<f64> {
        self.0.plain().as_num()
    }

    pub fn as_str(&self) -> Option<&str> {
        self.0.plain().as_str()
    }

    /// Elements of an array, nothing for any other kind.
    pub fn items(&self) -> impl ExactSizeIterator<Item = Value> + '_ {
        self.0.plain().as_items().unwrap_or(&[]).iter().map(|v| Value(v.clone()))
    }

    /// A property of an object.
    pub fn get(&self, key: &str) -> Option<Value> {
        self.0.get(key).map(|v| Value(v.clone()))
    }

    /// Properties of an object in order, nothing for any other kind.
    pub fn entries(&self) -> impl Iterator<Item = (&str, Value)> + '_ {
        let object = match self.0.plain() {
            Val::Obj(object) => Some(object),
            _ => None,
        };
        object.into_iter().flat_map(|o| o.entries().map(|(k, v)| (&**k, Value(v.clone()))))
    }

    /// Plain JSON, confidences dropped at every depth.
    pub fn to_json(&self) -> serde_json::Value {
        json::plain_json(&self.0)
    }

    /// A plain value from JSON. Recurses as deep as its argument nests.
    pub fn from_json(json: &serde_json::Value) -> Value {
        Value(json::from_json(json))
    }
}

impl Default for Value {
    fn default() -> Value {
        Value::null()
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Value {
        Value(Val::Bool(b))
    }
}

impl From<f64> for Value {
    fn from(x: f64) -> Value {
        Value(Val::Num(x))
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Value {
        Value(Val::str(s))
    }
}

impl From<String> for Value {
    fn from(s: String) -> Value {
        Value(Val::str(s))
    }
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Value {
        Value::from_json(json)
    }
}

impl From<serde_json::Value> for Value {
    fn from(json: serde_json::Value) -> Value {
        Value::from_json(&json)
    }
}

/// Same kind, same content, same confidences at every depth.
impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        equality::identical(&self.0, &other.0)
    }
}

/// The text form: what `"${value}"` gives in a script.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(&self.0))
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_string(self) {
            Ok(json) => f.write_str(&json),
            Err(_) => f.write_str(&text(&self.0)),
        }
    }
}
