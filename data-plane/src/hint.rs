//! What an agent's refusal says of when to come back.

use std::time::Duration;

use http::{HeaderMap, HeaderName, header::RETRY_AFTER};
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use tonic::Status;
use tonic_types::StatusExt;

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// How long to leave the agent alone, if it says so: by `google.rpc.RetryInfo` in the status's details, by
/// `grpc-retry-pushback-ms` (gRFC A6; a negative one forbids retries and says no time), or by `retry-after`
/// (RFC 9110, 10.2.3: seconds or a date).
pub(crate) fn retry_in(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let details = || {
        headers.get(DETAILS)?;
        Status::from_header_map(headers)?.get_details_retry_info()?.retry_delay
    };
    let pushback = || text(PUSHBACK)?.parse().ok().map(Duration::from_millis);
    let after = || {
        let after = text(RETRY_AFTER)?;
        let date = || {
            let date = DateTimeParser::new().parse_timestamp(after).ok()?;
            Duration::try_from(date.duration_since(now)).ok()
        };
        after.parse().ok().map(Duration::from_secs).or_else(date)
    };
    details().or_else(pushback).or_else(after)
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::ErrorDetails;

    use super::*;

    fn hint(name: &'static str, value: &str) -> Option<Duration> {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
        retry_in(&headers, "1994-11-06T08:49:30Z".parse().unwrap())
    }

    #[test]
    fn every_kind_of_hint_is_read_and_nonsense_is_none() {
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(hint("grpc-retry-pushback-ms", "1500"), Some(Duration::from_millis(1500)));
        assert_eq!(hint("retry-after", " 120 "), seconds(120));
        assert_eq!(hint("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), seconds(7));
        for (name, value) in [
            ("grpc-retry-pushback-ms", "-1"),
            ("grpc-retry-pushback-ms", "soon"),
            ("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT"),
            ("retry-after", "1.5"),
            ("grpc-status-details-bin", "!"),
            ("x-other", "1"),
        ] {
            assert_eq!(hint(name, value), None, "{name}: {value}");
        }
    }

    #[test]
    fn the_status_s_details_come_first() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(250)));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers.insert("retry-after", "9".parse().unwrap());
        assert_eq!(retry_in(&headers, Timestamp::UNIX_EPOCH), Some(Duration::from_millis(250)));
    }
}
