//! One narrow table of failure codes, and its two faces: gRPC status and RFC 9457 problem.

use std::{collections::HashMap, time::Duration};

use http::StatusCode;
use serde_json::{Value as Json, json};
use tonic_types::{ErrorDetails, StatusExt};

/// What kind of failure it is; says whether a retry is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The request can never succeed as it is.
    InvalidArgument,
    NotFound,
    AlreadyExists,
    /// The state moved under the request (compare-and-set failed); read again, then retry.
    Conflict,
    /// What there is does not allow it; the same request fails until that changes.
    Precondition,
    Unauthenticated,
    PermissionDenied,
    /// A bound was reached; retry later.
    ResourceExhausted,
    /// Nothing was started; retry.
    Unavailable,
    DeadlineExceeded,
    Cancelled,
    Unimplemented,
    /// A broken invariant or a failed disk: not the caller's doing.
    Internal,
}

impl Code {
    /// Whether the same request may be sent again without doing a thing twice.
    #[must_use]
    pub fn retry_is_safe(self) -> bool {
        matches!(self, Self::Unavailable | Self::ResourceExhausted)
    }

    fn faces(self) -> (tonic::Code, StatusCode, &'static str) {
        match self {
            Self::InvalidArgument => {
                (tonic::Code::InvalidArgument, StatusCode::BAD_REQUEST, "Invalid request")
            }
            Self::NotFound => (tonic::Code::NotFound, StatusCode::NOT_FOUND, "Not found"),
            Self::AlreadyExists => (tonic::Code::AlreadyExists, StatusCode::CONFLICT, "Already exists"),
            Self::Conflict => (tonic::Code::Aborted, StatusCode::CONFLICT, "Conflict"),
            Self::Precondition => {
                (tonic::Code::FailedPrecondition, StatusCode::CONFLICT, "Not possible as it is")
            }
            Self::Unauthenticated => {
                (tonic::Code::Unauthenticated, StatusCode::UNAUTHORIZED, "Not authenticated")
            }
            Self::PermissionDenied => (tonic::Code::PermissionDenied, StatusCode::FORBIDDEN, "Not allowed"),
            Self::ResourceExhausted => {
                (tonic::Code::ResourceExhausted, StatusCode::TOO_MANY_REQUESTS, "Too much at once")
            }
            Self::Unavailable => (tonic::Code::Unavailable, StatusCode::SERVICE_UNAVAILABLE, "Unavailable"),
            // 4xx, because existing clients send any 5xx again, POST included.
            Self::DeadlineExceeded => {
                (tonic::Code::DeadlineExceeded, StatusCode::REQUEST_TIMEOUT, "Too late")
            }
            Self::Cancelled => (tonic::Code::Cancelled, StatusCode::CONFLICT, "Cancelled"),
            Self::Unimplemented => {
                (tonic::Code::Unimplemented, StatusCode::NOT_IMPLEMENTED, "Not implemented")
            }
            Self::Internal => (tonic::Code::Internal, StatusCode::INTERNAL_SERVER_ERROR, "Internal error"),
        }
    }
}

/// What every error enum of Parallax answers.
pub trait Coded: std::error::Error {
    /// The kind of failure.
    fn code(&self) -> Code;
    /// A stable name for programs: `PARALLAX-<AREA>-<nnn>`.
    fn reason(&self) -> &'static str;
    /// When a retry has a chance, if that is known.
    fn retry_in(&self) -> Option<Duration> {
        None
    }
}

/// Characters of a gRPC status's message: it travels in headers, which clients bound, and may echo what was sent.
const MOST: usize = 1000;

/// The gRPC face: message, code, `ErrorInfo.reason`, and `RetryInfo` where it is known when to retry.
pub fn status(error: &dyn Coded) -> tonic::Status {
    let mut details = ErrorDetails::with_error_info(error.reason(), "parallax", HashMap::new());
    if let Some(retry_in) = error.retry_in() {
        details.set_retry_info(Some(retry_in));
    }
    let mut message = error.to_string();
    if let Some((end, _)) = message.char_indices().nth(MOST) {
        message.truncate(end);
        message.push('…');
    }
    tonic::Status::with_error_details(error.code().faces().0, message, details)
}

/// The HTTP face: an `application/problem+json` body (RFC 9457) with the `error` and `code` that existing
/// REST clients read.
pub fn problem(error: &dyn Coded) -> (StatusCode, Json) {
    let (_, status, title) = error.code().faces();
    let message = error.to_string();
    let body = json!({
        "type": format!("urn:parallax:error:{}", error.reason()),
        "title": title,
        "status": status.as_u16(),
        "detail": message,
        "error": message,
        "code": error.reason(),
    });
    (status, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    #[test]
    fn a_status_fits_into_headers_whatever_it_echoes() {
        let message = |text: &str| status(&StoreError::Failed(text.to_owned())).message().to_owned();
        assert_eq!(message("ü"), "storage failed: ü");
        let long = status(&StoreError::Failed("ü".repeat(100_000)));
        assert_eq!(long.message().chars().count(), MOST + 1);
        assert!(long.message().ends_with("ü…") && long.details().len() < 4 * MOST, "{long:?}");
    }
}
