//! Metadata that is passed on between callers and agents who trust neither each other nor what the other wrote.
//!
//! A value that a library cannot parse fails more than its own call: HPACK keeps it in a table that all streams of a
//! connection share, and gRPC's C core then fails each later call that refers to it.

use http::{HeaderMap, HeaderName, HeaderValue};
use parallax_runtime::wire;
use tonic::Status;

/// Of an agent's own, what it cannot know: whether the answer is one that was given before, and by whom.
const MARKS: [&str; 3] = [wire::SERVED_BY, wire::CACHE, "age"];
/// gRPC's own numbers.
const NUMBERS: [&str; 2] = ["grpc-previous-rpc-attempts", "grpc-retry-pushback-ms"];
/// `UNKNOWN`
const UNKNOWN: HeaderValue = HeaderValue::from_static("2");

/// Whether a value would spoil a connection.
pub(crate) fn spoils(name: &str, value: &HeaderValue) -> bool {
    let value = value.as_bytes();
    if let Some(stem) = name.strip_suffix("-bin") {
        return !stem.is_empty() && !value.split(|byte| *byte == b',').all(is_base64);
    }
    name.starts_with("grpc-") && NUMBERS.contains(&name) && !is_number(value)
}

/// Marks a value that differs from call to call, if it is there. HPACK is not to keep it: it would push out what stays the
/// same, and be compared with the values of all calls before, which was a twentieth of what a call costs.
pub(crate) fn mark_changing(headers: &mut HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let value = headers.get_mut(name)?;
    value.set_sensitive(true);
    Some(value)
}

/// Takes out of an agent's head or trailers what must not be passed on; a status that is none becomes `UNKNOWN`.
pub(crate) fn cleanse(headers: &mut HeaderMap) {
    let foreign = |(name, value): &(&HeaderName, &HeaderValue)| {
        let name = name.as_str();
        MARKS.contains(&name) || spoils(name, value) || (name == Status::GRPC_STATUS && !is_status(value))
    };
    if !headers.iter().any(|header| foreign(&header)) {
        return;
    }
    let foreign: Vec<HeaderName> = headers.iter().filter(foreign).map(|(name, _)| name.clone()).collect();
    for name in foreign {
        headers.remove(&name);
        if name == Status::GRPC_STATUS {
            headers.insert(name, UNKNOWN);
        }
    }
}

fn is_status(value: &HeaderValue) -> bool {
    value
        .to_str()
        .ok()
        .filter(|text| is_number(text.as_bytes()))
        .and_then(|text| text.parse().ok())
        .is_some_and(|code: u8| code <= 16)
}

fn is_number(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

/// With padding or without.
fn is_base64(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    let padding = value.iter().rev().take_while(|byte| **byte == b'=').count();
    let digits = &value[..value.len() - padding];
    padding <= 2
        && digits.len() % 4 != 1
        && digits.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::REPORT;

    #[test]
    fn what_changes_is_passed_on_and_not_kept() {
        let mut headers = HeaderMap::new();
        assert_eq!(mark_changing(&mut headers, REPORT), None);
        headers.insert(REPORT, HeaderValue::from_static("a"));
        assert!(!headers[REPORT].is_sensitive());
        assert_eq!(mark_changing(&mut headers, REPORT), Some(&HeaderValue::from_static("a")));
        assert!(headers[REPORT].is_sensitive());
    }

    #[test]
    fn what_would_spoil_a_connection_or_is_the_nodes_to_say_is_taken_out() {
        let given = [
            ("grpc-status", "banana"),
            ("x-parallax-cache", "hit"),
            ("x-parallax-served-by", "somebody"),
            ("age", "5"),
            ("a-bin", "!!!"),
            ("b-bin", "AAA=,YWJj"),
            ("c-bin", "A"),
            ("d-bin", ""),
            ("grpc-previous-rpc-attempts", "x"),
            ("grpc-message", "%zz"),
            ("x", "!!!"),
        ];
        let mut headers: HeaderMap = given
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        cleanse(&mut headers);
        let left: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        for kept in [
            ("b-bin", "AAA=,YWJj"),
            ("d-bin", ""),
            ("grpc-message", "%zz"),
            ("x", "!!!"),
            ("grpc-status", "2"),
        ] {
            assert!(left.contains(&kept), "{kept:?} of {left:?}");
        }
        assert_eq!(left.len(), 5, "{left:?}");
        for (status, passes) in
            [("0", true), ("16", true), ("17", false), ("-1", false), ("256", false), ("", false)]
        {
            assert_eq!(is_status(&HeaderValue::from_static(status)), passes, "{status}");
        }
    }
}
