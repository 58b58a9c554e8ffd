//! Values as JSON: plain for hosts, tagged (`$value`, `$confidence`) where nothing may be lost.

use super::{Array, Object, Val, Value};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Number, Value as Json};
use std::fmt;
use std::sync::Arc;

const VALUE: &str = "$value";
const CONFIDENCE: &str = "$confidence";
/// Integers up to here are exact in a double, and print without a fraction.
const EXACT: f64 = 9_007_199_254_740_992.0;

fn integer(x: f64) -> Option<i64> {
    (x.fract() == 0.0 && x.abs() < EXACT).then_some(x as i64)
}

pub(crate) fn plain_json(value: &Val) -> Json {
    match value.plain() {
        Val::Bool(b) => Json::Bool(*b),
        Val::Num(x) => match integer(*x) {
            Some(i) => Json::from(i),
            None => Number::from_f64(*x).map_or(Json::Null, Json::Number),
        },
        Val::Str(s) => Json::String(s.to_string()),
        Val::Arr(array) => Json::Array(array.items().iter().map(plain_json).collect()),
        Val::Obj(object) => {
            let entries = object.entries().filter(|(_, v)| !v.callable());
            Json::Object(entries.map(|(k, v)| (k.to_string(), plain_json(v))).collect::<Map<_, _>>())
        }
        _ => Json::Null,
    }
}

pub(crate) fn from_json(json: &Json) -> Val {
    match json {
        Json::Null => Val::Null,
        Json::Bool(b) => Val::Bool(*b),
        Json::Number(n) => Val::Num(n.as_f64().unwrap_or(f64::NAN)),
        Json::String(s) => Val::str(s.as_str()),
        Json::Array(items) => {
            let mut values: Vec<Val> = Vec::with_capacity(items.len());
            for item in items {
                let value = match (item, values.last()) {
                    (Json::Object(map), Some(Val::Obj(last))) => object_like(map, last),
                    _ => from_json(item),
                };
                values.push(value);
            }
            Val::Arr(Arc::new(Array::new(values)))
        }
        Json::Object(map) => {
            Val::Obj(Arc::new(map.iter().map(|(k, v)| (Arc::from(k.as_str()), from_json(v))).collect()))
        }
    }
}

/// Rows of a table share one shape.
fn object_like(map: &Map<String, Json>, last: &Object) -> Val {
    let shape = last.shape();
    if shape.keys().len() == map.len() && shape.keys().iter().zip(map.keys()).all(|(a, b)| **a == **b) {
        let values = map.values().map(from_json).collect();
        return Val::Obj(Arc::new(Object::with_shape(Arc::clone(shape), values)));
    }
    Val::Obj(Arc::new(map.iter().map(|(k, v)| (Arc::from(k.as_str()), from_json(v))).collect()))
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Tagged(&self.0).serialize(serializer)
    }
}

struct Tagged<'a>(&'a Val);

impl Serialize for Tagged<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Val::Bool(b) => serializer.serialize_bool(*b),
            Val::Num(x) => match integer(*x) {
                Some(i) => serializer.serialize_i64(i),
                None => serializer.serialize_f64(*x),
            },
            Val::Str(s) => serializer.serialize_str(s),
            Val::Arr(array) => {
                let mut seq = serializer.serialize_seq(Some(array.items().len()))?;
                for item in array.items() {
                    seq.serialize_element(&Tagged(item))?;
                }
                seq.end()
            }
            Val::Obj(object) => {
                let mut map = serializer.serialize_map(None)?;
                for (key, value) in object.entries().filter(|(_, v)| !v.callable()) {
                    map.serialize_entry(&**key, &Tagged(value))?;
                }
                map.end()
            }
            Val::Sure(sure) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry(VALUE, &Tagged(&sure.value))?;
                map.serialize_entry(CONFIDENCE, &sure.confidence)?;
                map.end()
            }
            _ => serializer.serialize_unit(),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Reader).map(Value)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Val;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Val, E> {
        Ok(Val::Null)
    }

    fn visit_none<E>(self) -> Result<Val, E> {
        Ok(Val::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Val, D::Error> {
        deserializer.deserialize_any(Reader)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Val, E> {
        Ok(Val::Bool(b))
    }

    fn visit_i64<E>(self, i: i64) -> Result<Val, E> {
        Ok(Val::Num(i as f64))
    }

    fn visit_u64<E>(self, i: u64) -> Result<Val, E> {
        Ok(Val::Num(i as f64))
    }

    fn visit_f64<E>(self, x: f64) -> Result<Val, E> {
        Ok(Val::Num(x))
    }

    fn visit_str<E>(self, s: &str) -> Result<Val, E> {
        Ok(Val::str(s))
    }

    fn visit_string<E>(self, s: String) -> Result<Val, E> {
        Ok(Val::str(s))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Val, A::Error> {
        let mut items = Vec::new();
        while let Some(Value(item)) = seq.next_element()? {
            items.push(item);
        }
        Val::array(items).map_err(|e| de::Error::custom(e.message))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Val, A::Error> {
        let mut object = Object::new();
        while let Some((key, Value(value))) = map.next_entry::<String, Value>()? {
            object.set(&Arc::from(key), value);
        }
        if object.len() == 2
            && let (Some(value), Some(Val::Num(confidence))) = (object.get(VALUE), object.get(CONFIDENCE))
        {
            return Ok(Value(value.clone()).with_confidence(*confidence).0);
        }
        Val::object(object).map_err(|e| de::Error::custom(e.message))
    }
}
