//! What every request passes, whatever its protocol: who may call, one span, one count.

use std::sync::Arc;

use ::http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN},
};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::MatchedPath,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use parallax_runtime::{
    agent::is_loopback,
    error::{Code, Coded, problem, status},
};
use parallax_security::{
    Peer, Transport,
    access::{self, Denied, DeniedCode},
};
use parallax_telemetry::{metrics::ControlPlaneMetrics, propagate};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tonic::Status;
use tracing::{Instrument, info_span};
use utoipa::ToSchema;

use super::http::MAX_BODY;
use crate::error::Error;

/// The media type of errors.
pub const PROBLEM: &str = "application/problem+json";

/// Puts a router behind the door.
pub fn guard(router: Router, metrics: Arc<ControlPlaneMetrics>) -> Router {
    router.layer(middleware::from_fn(move |request: Request<Body>, next: Next| {
        let metrics = metrics.clone();
        async move {
            let grpc = is_grpc(request.headers());
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
            let span = info_span!("request", path);
            propagate::extract(request.headers(), &span);
            // Where nothing is served there is nothing to protect: that it is so may be told.
            let verdict = if route.is_some() || grpc { check(&request) } else { Ok(()) };
            if !grpc && let Some(why) = foreign(&request) {
                return respond(&Error::Foreign(why));
            }
            let response = match verdict {
                Ok(()) if grpc && route.is_none() => {
                    Status::unimplemented(format!("no method {path}")).into_http()
                }
                Ok(()) if grpc => next.run(request).instrument(span).await,
                Ok(()) => as_problem(next.run(request).instrument(span).await, &method, &path).await,
                Err(denied) if grpc => status(&denied).into_http(),
                Err(denied) => respond(&denied),
            };
            if grpc {
                metrics.grpc_request(known(&path), grpc_code(response.headers()));
            } else {
                metrics.http_request(&method, route.as_deref(), response.status());
            }
            response
        }
    }))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

#[derive(Debug, Error)]
#[error(transparent)]
struct Refused(#[from] Denied);

impl Coded for Refused {
    fn code(&self) -> Code {
        match self.0.code {
            DeniedCode::Unauthenticated => Code::Unauthenticated,
            DeniedCode::PermissionDenied => Code::PermissionDenied,
        }
    }

    fn reason(&self) -> &'static str {
        match self.0.code {
            DeniedCode::Unauthenticated => "PARALLAX-ACCESS-001",
            DeniedCode::PermissionDenied => "PARALLAX-ACCESS-002",
        }
    }
}

fn check(request: &Request<Body>) -> Result<(), Refused> {
    let peer = request.extensions().get::<Peer>().expect("runtime::serve names the peer of each request");
    let path = request.uri().path();
    // By the path, not by what the request says of itself.
    if path.starts_with("/api/") {
        return Ok(access::check(peer, &format!("{} {path}", request.method()))?);
    }
    Ok(access::check(peer, path)?)
}

/// Why a plaintext request does not come from this machine's own programs, though its connection does: a web page
/// in a browser here names a host or an origin of its own (DNS rebinding, cross-site requests).
fn foreign(request: &Request<Body>) -> Option<String> {
    let peer = request.extensions().get::<Peer>()?;
    if peer.transport != Transport::Plaintext {
        return None;
    }
    let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(HOST).or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    if let Some(host) = host.filter(|host| !is_loopback(host)) {
        return Some(format!("the host \"{}\"", host.escape_debug()));
    }
    let origin =
        text(ORIGIN).filter(|origin| !origin.split_once("://").is_some_and(|(_, host)| is_loopback(host)));
    origin.map(|origin| format!("the origin \"{}\"", origin.escape_debug()))
}

/// An error as problem+json.
pub fn respond(error: &dyn Coded) -> Response {
    answer(problem(error))
}

fn answer(problem: (StatusCode, Value)) -> Response {
    let (status, body) = problem;
    (status, [(CONTENT_TYPE, PROBLEM)], body.to_string()).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, mut body) = problem(&self);
        if let Self::InvalidPattern(invalid) = &self {
            body["diagnostics"] = invalid.findings();
        }
        answer((status, body))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        status(&error)
    }
}

/// The code of a call that has failed already; one whose trailers are yet to come counts as begun well.
fn grpc_code(headers: &HeaderMap) -> i32 {
    headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// The service of a path, from a closed set, so that strangers cannot invent series.
fn known(path: &str) -> &'static str {
    const SERVICES: &[&str] = &[
        "parallax.registry.Registry",
        "parallax.patterns.PatternService",
        "parallax.executions.ExecutionService",
        "parallax.coordinator.Coordinator",
        "parallax.controlplane.v1.Directory",
        "parallax.gateway.AgentGateway",
        "parallax.confidence.ConfidenceAgent",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ];
    let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    SERVICES.iter().find(|known| **known == service).copied().unwrap_or("other")
}

/// The peer that a gRPC request came from.
pub fn peer<T>(request: &tonic::Request<T>) -> Peer {
    request.extensions().get::<Peer>().expect("runtime::serve names the peer of each request").clone()
}

/// An error of the HTTP API, RFC 9457, with the `error` and `code` that existing clients read.
#[derive(Serialize, ToSchema)]
pub struct Problem {
    r#type: String,
    title: String,
    status: u16,
    detail: String,
    /// The same as `detail`.
    error: String,
    /// A stable name, `PARALLAX-<AREA>-<nnn>`.
    code: String,
    /// Of a script that is no pattern: what is wrong with it, as programs read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    diagnostics: Option<Value>,
}

/// What the router refuses before a handler sees it (a path, a method, a body that is too large) as a problem.
async fn as_problem(response: Response, method: &Method, path: &str) -> Response {
    let (mut parts, body) = response.into_parts();
    let own = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM);
    if own || !parts.status.is_client_error() {
        return Response::from_parts(parts, body);
    }
    let detail = match parts.status {
        StatusCode::NOT_FOUND => format!("nothing is served at {method} {path}"),
        StatusCode::METHOD_NOT_ALLOWED => {
            format!("{path} is served, but not to {method}; see the header Allow")
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            format!("the body is larger than the {MAX_BODY} bytes that are read")
        }
        _ => {
            let text = to_bytes(body, MAX_BODY).await.unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        }
    };
    let problem = Problem {
        r#type: "about:blank".to_owned(),
        title: parts.status.canonical_reason().unwrap_or_default().to_owned(),
        status: parts.status.as_u16(),
        error: detail.clone(),
        detail,
        code: format!("PARALLAX-API-{}", parts.status.as_u16()),
        diagnostics: None,
    };
    let body = serde_json::to_vec(&problem).expect("a problem is plain data");
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, body.into())
}
