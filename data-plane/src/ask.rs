//! What a caller wants: whom to ask, and what the node may do to get an answer.

use std::{cell::RefCell, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use parallax_runtime::wire;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::{
    admission::{self, Priority},
    balance::{Strategy, hash},
    directory::Entry,
    error::Failure,
    fallback::{Kind, Preset},
    metadata::spoils,
    opted::Wishes,
};

/// Whom a call is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    Agent(&'a str),
    Capability(&'a str),
}

/// What a call is recorded under.
#[derive(Clone, Default)]
pub(crate) struct About {
    pub(crate) pattern: String,
    pub(crate) task: String,
}

/// One request to be answered.
pub(crate) struct Ask<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) target: Target<'a>,
    pub(crate) started: Instant,
    /// From `started`; none means the node's default.
    pub(crate) timeout: Option<Duration>,
    pub(crate) priority: Priority,
    /// Which pattern asks; empty when none does.
    pub(crate) pattern: &'a str,
    /// Whether it is sampled, and under what.
    pub(crate) recorded: Option<About>,
    /// Whether the answer is one message: then a refusal may come after its head.
    pub(crate) unary: bool,
    pub(crate) hints: Hints,
    /// Who was asked last.
    pub(crate) asked: RefCell<Option<Arc<Entry>>>,
}

impl Ask<'_> {
    /// The same of somebody else, or in less time.
    pub(crate) fn of<'a>(&'a self, target: Target<'a>, timeout: Duration) -> Ask<'a> {
        Ask {
            tenant: self.tenant,
            target,
            started: Instant::now(),
            timeout: Some(timeout),
            priority: self.priority,
            pattern: self.pattern,
            recorded: self.recorded.clone(),
            unary: self.unary,
            hints: self.hints.clone(),
            asked: RefCell::default(),
        }
    }
}

/// What a caller may say beside whom it wants.
#[derive(Clone, Default)]
pub(crate) struct Hints {
    /// None means the group's.
    pub(crate) strategy: Option<Strategy>,
    /// Calls with equal keys go to the same agent.
    pub(crate) affinity: Option<u64>,
    /// Asking twice does no harm: it may be retried after any failure, and hedged.
    pub(crate) idempotent: bool,
}

impl Hints {
    /// Each as text; empty means that it is not given.
    pub(crate) fn read(strategy: &str, affinity: &str, idempotent: bool) -> Result<Self, Failure> {
        let parse = |text: &str| {
            text.parse().map_err(|problem| Failure::Malformed(format!("{}: {problem}", wire::STRATEGY)))
        };
        let affinity = Some(affinity).filter(|key| !key.is_empty()).map(|key| hash(key.as_bytes()));
        let strategy = match strategy {
            "" => affinity.map(|_| Strategy::ConsistentHash),
            name => Some(parse(name)?),
        };
        Ok(Self { strategy, affinity, idempotent })
    }
}

/// The metadata that is meant for the node.
#[derive(Default)]
pub(crate) struct Routing([Option<HeaderValue>; NAMES.len()]);

const NAMES: [&str; 11] = [
    wire::AGENT,
    wire::CAPABILITY,
    wire::TENANT,
    wire::PATTERN,
    wire::PRIORITY,
    wire::STRATEGY,
    wire::AFFINITY,
    wire::IDEMPOTENT,
    wire::CACHE,
    wire::FALLBACK,
    wire::DEFAULT,
];
/// Of a pattern's name, which is kept for a while. Bytes.
const LONGEST_PATTERN: usize = 128;

impl Routing {
    /// Takes it out of a request's headers, as agents never see it; and what would spoil their connections.
    pub(crate) fn take(headers: &mut HeaderMap) -> Self {
        let mut routing = Self::default();
        let mut spoilt = Vec::new();
        for (key, value) in &*headers {
            let name = key.as_str();
            if name.starts_with("x-parallax-")
                && let Some(n) = NAMES.iter().position(|known| *known == name)
            {
                // Of several the first counts.
                routing.0[n].get_or_insert_with(|| value.clone());
            } else if spoils(name, value) {
                spoilt.push(key.clone());
            }
        }
        for name in spoilt {
            headers.remove(name);
        }
        for (name, value) in NAMES.iter().zip(&routing.0) {
            if value.is_some() {
                headers.remove(*name);
            }
        }
        routing
    }

    fn value(&self, name: &'static str) -> Option<&HeaderValue> {
        let n = NAMES.iter().position(|known| *known == name).expect("one of the names");
        self.0[n].as_ref()
    }

    fn text(&self, name: &'static str) -> Result<Option<&str>, Failure> {
        self.value(name).map(|value| text(name, value)).transpose()
    }

    /// Whom the call is for.
    pub(crate) fn target(&self) -> Result<Target<'_>, Failure> {
        match (self.text(wire::AGENT)?, self.text(wire::CAPABILITY)?) {
            (Some(agent), _) => Ok(Target::Agent(agent)),
            (None, Some(capability)) => Ok(Target::Capability(capability)),
            (None, None) => Err(Failure::Malformed(format!(
                "the call names nobody to ask: set the metadata {} to an agent's id, or {} to a capability",
                wire::AGENT,
                wire::CAPABILITY
            ))),
        }
    }

    /// The tenant that is named, which not everybody may.
    pub(crate) fn tenant(&self) -> Result<Option<&str>, Failure> {
        self.text(wire::TENANT)
    }

    pub(crate) fn pattern(&self) -> Result<&str, Failure> {
        let name = self.text(wire::PATTERN)?.unwrap_or_default();
        if name.len() > LONGEST_PATTERN {
            return Err(Failure::Malformed(format!(
                "the metadata {} has {} bytes; a pattern's name has at most {LONGEST_PATTERN}",
                wire::PATTERN,
                name.len()
            )));
        }
        Ok(name)
    }

    pub(crate) fn priority(&self) -> Result<Priority, Failure> {
        priority(self.value(wire::PRIORITY))
    }

    pub(crate) fn hints(&self) -> Result<Hints, Failure> {
        let idempotent = match self.text(wire::IDEMPOTENT)? {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                let problem =
                    format!("the metadata {} is \"{other}\"; it must be true or false", wire::IDEMPOTENT);
                return Err(Failure::Malformed(problem));
            }
        };
        let [strategy, affinity] = [self.text(wire::STRATEGY)?, self.text(wire::AFFINITY)?];
        Hints::read(strategy.unwrap_or_default(), affinity.unwrap_or_default(), idempotent)
    }

    /// What the call says of cache and fallbacks.
    pub(crate) fn wishes(&self) -> Result<Wishes, Failure> {
        let malformed =
            |name: &str, problem: String| Failure::Malformed(format!("the metadata {name} {problem}"));
        let cache = self.text(wire::CACHE)?.map(str::parse).transpose();
        let fallbacks = self.text(wire::FALLBACK)?.map(Kind::list).transpose();
        let default = self.value(wire::DEFAULT).map(|value| {
            let json =
                String::from_utf8(binary(wire::DEFAULT, value)?).map_err(|_| "is not UTF-8".to_owned())?;
            Preset::try_from(json)
        });
        Ok(Wishes {
            cache: cache.map_err(|problem| malformed(wire::CACHE, problem))?,
            fallbacks: fallbacks.map_err(|problem| malformed(wire::FALLBACK, problem))?,
            default: default.transpose().map_err(|problem| malformed(wire::DEFAULT, problem))?,
        })
    }
}

fn text<'a>(name: &str, value: &'a HeaderValue) -> Result<&'a str, Failure> {
    value.to_str().map_err(|_| Failure::Malformed(format!("the metadata {name} is not plain ASCII text")))
}

/// What [`wire::PRIORITY`] says, if it is given.
pub(crate) fn priority(value: Option<&HeaderValue>) -> Result<Priority, Failure> {
    value.map_or(Ok(Priority::Default), |value| admission::priority(text(wire::PRIORITY, value)?))
}

/// A binary metadata value, which is base64 on the wire.
fn binary(name: &'static str, value: &HeaderValue) -> Result<Vec<u8>, String> {
    let alone =
        MetadataMap::from_headers(HeaderMap::from_iter([(HeaderName::from_static(name), value.clone())]));
    let bytes = alone.get_bin(name).and_then(|value| value.to_bytes().ok());
    bytes.map(|bytes| bytes.to_vec()).ok_or_else(|| "is not base64".to_owned())
}

/// How long the caller will wait, in gRPC's own notation.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A deadline as gRPC writes it: at most eight digits and a unit.
pub(crate) fn grpc_timeout(left: Duration) -> HeaderValue {
    const DIGITS: u128 = 100_000_000;
    let micros = left.as_micros();
    let text = if micros < DIGITS {
        format!("{micros}u")
    } else if micros / 1000 < DIGITS {
        format!("{}m", micros / 1000)
    } else {
        format!("{}S", (micros / 1_000_000).min(DIGITS - 1))
    };
    HeaderValue::try_from(text).expect("digits and a letter")
}

/// Reads a deadline as gRPC writes it.
pub(crate) fn parse_grpc_timeout(value: &HeaderValue) -> Result<Duration, Failure> {
    let malformed = || {
        let shown = String::from_utf8_lossy(value.as_bytes());
        Failure::Malformed(format!(
            "grpc-timeout \"{shown}\" is not up to eight digits and one of H M S m u n"
        ))
    };
    let text = value.to_str().map_err(|_| malformed())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(malformed)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    let n: u64 = digits.parse().map_err(|_| malformed())?;
    Ok(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return Err(malformed()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_read_as_they_are_written() {
        for left in [0, 1, 999_999, 99_999_999, 100_000_000, 7_200_000_000] {
            let left = Duration::from_micros(left);
            assert_eq!(parse_grpc_timeout(&grpc_timeout(left)).unwrap(), left);
        }
        assert!(parse_grpc_timeout(&grpc_timeout(Duration::MAX)).unwrap() > Duration::from_secs(3600));
        for bad in ["", "5", "S", "123456789S", "1.5S", "-1S", "5x", "5 S", "+5S"] {
            assert!(parse_grpc_timeout(&HeaderValue::from_static(bad)).is_err(), "{bad}");
        }
        assert_eq!(parse_grpc_timeout(&HeaderValue::from_static("2H")).unwrap(), Duration::from_secs(7200));
    }

    #[test]
    fn routing_is_taken_out_and_what_cannot_be_meant_is_refused() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs
                .iter()
                .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
                .collect::<HeaderMap>()
        };
        let mut given = headers(&[
            (wire::CAPABILITY, "sum"),
            (wire::STRATEGY, "least_request"),
            (wire::IDEMPOTENT, "true"),
            (wire::EFFECT, "r/1"),
            ("te", "trailers"),
        ]);
        let routing = Routing::take(&mut given);
        assert_eq!(given, headers(&[(wire::EFFECT, "r/1"), ("te", "trailers")]));
        assert!(matches!(routing.target(), Ok(Target::Capability("sum"))));
        let hints = routing.hints().unwrap();
        assert_eq!(
            (hints.strategy, hints.affinity, hints.idempotent),
            (Some(Strategy::LeastRequest), None, true)
        );

        let hints = Routing::take(&mut headers(&[(wire::AFFINITY, "session-7")])).hints().unwrap();
        assert_eq!(hints.strategy, Some(Strategy::ConsistentHash), "a key wants its agent");
        let refused = |name, value| {
            let failure = Routing::take(&mut headers(&[(name, value)])).hints().err().unwrap();
            failure.to_string()
        };
        assert!(
            refused(wire::STRATEGY, "fastest").starts_with("x-parallax-strategy: \"fastest\" is no strategy")
        );
        assert_eq!(
            refused(wire::IDEMPOTENT, "yes"),
            "the metadata x-parallax-idempotent is \"yes\"; it must be true or false"
        );
    }
}
