//! The transparent proxy: `parallax.confidence.ConfidenceAgent` in the name of any agent.
//!
//! Frames pass through in both directions as they come. Headers choose the agent; the confidence is read from
//! the bytes that pass.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, uri::PathAndQuery};
use http_body::{Body, Frame};
use parallax_runtime::{DEFAULT_TENANT, error::status, wire};
use parallax_security::{Kind, Peer};
use tokio::time::Instant;

use crate::{
    ask::{About, Ask, GRPC_TIMEOUT, Routing, parse_grpc_timeout},
    call::{Answer, Answering, Call},
    caller::{Caller, Sent},
    error::{Failed, Failure},
    frames::Incoming,
    metadata::cleanse,
    opted::{Opted, Plan, Wishes},
    scan::Scanner,
    services::Reply,
    upload::{Upload, discard},
    whole::{Frames, Request as Held},
};

mod held;

/// Everything below it is proxied.
pub(crate) const PREFIX: &str = "/parallax.confidence.ConfidenceAgent/";
/// Its answers are `ConfidenceResult`s.
pub(crate) const ANALYZE: &str = "/parallax.confidence.ConfidenceAgent/Analyze";
const STREAM_ANALYZE: &str = "/parallax.confidence.ConfidenceAgent/StreamAnalyze";
const GET_CAPABILITIES: &str = "/parallax.confidence.ConfidenceAgent/GetCapabilities";
pub(crate) const HEALTH_CHECK: &str = "/parallax.confidence.ConfidenceAgent/HealthCheck";

const CLIENT_ID: HeaderName = HeaderName::from_static(wire::CLIENT_ID);
pub(crate) const SERVED_BY: HeaderName = HeaderName::from_static(wire::SERVED_BY);
/// What the cache was to a call.
const CACHE: HeaderName = HeaderName::from_static(wire::CACHE);

/// Who calls, as far as routing goes. Made once per connection.
#[derive(Clone)]
pub(crate) struct Origin {
    tenant: String,
    /// As agents see the caller.
    pub(crate) client_id: HeaderValue,
    /// Whether it may speak for any tenant.
    trusted: bool,
}

impl Origin {
    pub(crate) fn of(peer: &Peer) -> Self {
        match &peer.identity {
            Some(identity) => Self {
                tenant: identity.tenant.clone(),
                client_id: HeaderValue::try_from(identity.to_string()).expect("an identity is ASCII"),
                trusted: identity.kind == Kind::ControlPlane,
            },
            None => Self {
                tenant: DEFAULT_TENANT.to_owned(),
                client_id: HeaderValue::from_static("loopback"),
                trusted: false,
            },
        }
    }

    /// The tenant whose agents are called: its own, or the one that is named if it is trusted.
    pub(crate) fn tenant<'a>(&'a self, named: Option<&'a str>) -> &'a str {
        named.filter(|named| self.trusted && !named.is_empty()).unwrap_or(&self.tenant)
    }
}

/// Answers one request for an agent, failures included.
pub(crate) async fn proxy(
    caller: Rc<Caller>,
    origin: &Origin,
    request: Request<Incoming>,
) -> Response<Reply> {
    match forward(caller, origin, request).await {
        Ok(response) => response,
        Err(failed) => refusal(failed),
    }
}

/// As the agent put it, if it did.
fn refusal(failed: Failed) -> Response<Reply> {
    match failed.said {
        Some(said) => {
            let (head, trailers) = *said;
            Response::from_parts(head, Reply::Whole(Frames::new(None, trailers)))
        }
        None => status(&failed.failure).into_http(),
    }
}

async fn forward(
    caller: Rc<Caller>,
    origin: &Origin,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Failed> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let scanned = matches!(path.as_str(), ANALYZE | STREAM_ANALYZE);
    let routing = Routing::take(&mut head.headers);
    let planned = ask(&routing, origin, &head.headers, path.as_str()).and_then(|ask| {
        Ok((plan(&caller, &ask, routing.wishes()?, path.as_str())?, caller.admit(&ask)?, ask))
    });
    let (plan, ticket, ask) = match planned {
        Ok(planned) => planned,
        Err(failure) => {
            discard(body);
            return Err(failure.into());
        }
    };
    head.headers.insert(CLIENT_ID, origin.client_id.clone());
    let upload = match &plan {
        Some(plan) if path == ANALYZE && !plan.is_bypass() => {
            match Box::pin(held::request(&caller, &ask, body)).await? {
                Held::Whole { framed, message, held: _held } => {
                    let opted = Opted { caller: &caller, ask: &ask, message: &message, plan };
                    return Ok(Box::pin(held::answer(opted, head.headers, framed, ticket)).await);
                }
                Held::Other(upload) => upload,
            }
        }
        _ => Upload::streamed(body),
    };
    let sent = Sent { path, headers: head.headers, upload: &upload };
    let (mut call, answering) = caller.call(&ask, sent).await?;
    call.ticket = Some(ticket);
    let mut response = respond(call, answering, scanned);
    if let Some(plan) = plan {
        caller.cache.metrics.call(plan.unused());
        response.headers_mut().insert(CACHE, HeaderValue::from_static(plan.unused().as_str()));
    }
    Ok(response)
}

/// What a call opted for, which only `Analyze` can have.
fn plan(caller: &Caller, ask: &Ask<'_>, wishes: Wishes, path: &str) -> Result<Option<Plan>, Failure> {
    if path == ANALYZE {
        return Plan::of(caller, ask, wishes);
    }
    if wishes.fallbacks.is_some_and(|fallbacks| !fallbacks.is_empty()) {
        return Err(Failure::Malformed(format!("the metadata {} goes with Analyze alone", wire::FALLBACK)));
    }
    Ok(wishes.cache.map(Plan::cache))
}

fn ask<'a>(
    routing: &'a Routing,
    origin: &'a Origin,
    headers: &HeaderMap,
    path: &str,
) -> Result<Ask<'a>, Failure> {
    let mut hints = routing.hints()?;
    // What only reads can be asked twice.
    hints.idempotent |= matches!(path, GET_CAPABILITIES | HEALTH_CHECK);
    let pattern = routing.pattern()?;
    Ok(Ask {
        tenant: origin.tenant(routing.tenant()?),
        target: routing.target()?,
        started: Instant::now(),
        timeout: headers.get(GRPC_TIMEOUT).map(parse_grpc_timeout).transpose()?,
        priority: routing.priority()?,
        recorded: matches!(path, ANALYZE | STREAM_ANALYZE)
            .then(|| About { pattern: pattern.to_owned(), ..About::default() }),
        pattern,
        unary: path != STREAM_ANALYZE,
        hints,
        asked: RefCell::default(),
    })
}

fn respond(call: Call, answering: Answering, scanned: bool) -> Response<Reply> {
    let Answering { mut head, body } = answering;
    if body.is_empty() {
        // Trailers only: the status stands in the head.
        let ended = call.status(&head.headers);
        head.headers.insert(SERVED_BY, call.entry.served_by.clone());
        call.settle(ended.as_ref().map(|()| None));
        return Response::from_parts(head, Reply::Empty);
    }
    let scanner = scanned.then(Scanner::new);
    Response::from_parts(head, Reply::Proxied(Box::new(Proxied { body, scanner, call: Some(call) })))
}

/// An agent's answer on its way to the caller. Whatever happens, it ends with trailers.
pub(crate) struct Proxied {
    body: Answer,
    scanner: Option<Scanner>,
    /// Gone with the last frame.
    call: Option<Call>,
}

impl Proxied {
    fn end(&mut self, ended: Result<(), Failure>, trailers: &mut HeaderMap) {
        let Some(call) = self.call.take() else { return };
        trailers.insert(SERVED_BY, call.entry.served_by.clone());
        let confidence = self.scanner.as_ref().and_then(Scanner::last);
        call.settle(ended.as_ref().map(|()| confidence));
    }

    /// Trailers of our own.
    fn fail(&mut self, failure: Failure) -> Frame<Bytes> {
        let mut trailers = HeaderMap::new();
        // It fails for metadata that is no header, and the status has none.
        _ = status(&failure).add_header(&mut trailers);
        self.end(Err(failure), &mut trailers);
        Frame::trailers(trailers)
    }
}

impl Body for Proxied {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(call) = &this.call else { return Poll::Ready(None) };
        let polled = {
            let _entered = call.span.enter();
            std::task::ready!(this.body.poll_frame(cx))
        };
        let frame = match polled {
            Some(Ok(frame)) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    cleanse(&mut trailers);
                    let ended = call.status(&trailers);
                    call.heed(&mut trailers);
                    this.end(ended, &mut trailers);
                    Frame::trailers(trailers)
                }
                Err(frame) => {
                    if let (Some(scanner), Some(data)) = (&mut this.scanner, frame.data_ref()) {
                        scanner.feed(data);
                    }
                    frame
                }
            },
            Some(Err(failure)) => this.fail(failure),
            None => {
                let (agent, problem) = (call.entry.who(), "the stream ended without trailers".to_owned());
                this.fail(Failure::BadAnswer { agent, problem })
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }
}
