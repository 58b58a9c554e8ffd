//! One call to one agent, from its beginning to the end of its answer.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::future::poll_fn;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri,
    header::CONTENT_TYPE,
    uri::{PathAndQuery, Scheme},
};
use http_body::{Body, Frame};
use jiff::Timestamp;
use parallax_runtime::{confidence::Confidence, store::CallOutcome, wire};
use parallax_telemetry::{EXPORTED_ONLY, propagate};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tracing::{Span, field::Empty, info_span};

use crate::{
    admission::Ticket,
    ask::{About, Ask, GRPC_TIMEOUT, grpc_timeout},
    breaker::{Verdict, by_pattern::Passes},
    caller::Caller,
    directory::Entry,
    error::Failure,
    hint,
    load::{REPORT, Report},
    metadata::{cleanse, mark_changing},
    pool::{Lease, Upstream, lost},
    tracker::Seen,
    upload::{Upload, Uploading},
    vitals::Ended,
};

/// What tells a gateway whom a call is for.
const AGENT: HeaderName = HeaderName::from_static(wire::AGENT);
const TENANT: HeaderName = HeaderName::from_static(wire::TENANT);
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A call under way. Dropped before it is settled, it was cancelled.
pub(crate) struct Call {
    pub(crate) span: Span,
    pub(crate) entry: Arc<Entry>,
    pub(crate) at: Timestamp,
    pub(crate) started: Instant,
    caller: Rc<Caller>,
    /// Gone when it is settled.
    passes: Option<Passes>,
    probe: bool,
    /// How many calls the agent had in flight before.
    ahead: usize,
    /// The request's place in the node, held by the call that brings the answer.
    pub(crate) ticket: Option<Ticket>,
    deadline: Instant,
    timeout: Duration,
    recorded: Option<About>,
}

/// The response's head, and its body to be read.
pub(crate) struct Answering {
    pub(crate) head: http::response::Parts,
    pub(crate) body: Answer,
}

impl Call {
    /// A call to an agent that has let it in.
    pub(crate) fn new(
        caller: Rc<Caller>,
        ask: &Ask<'_>,
        entry: Arc<Entry>,
        passes: Passes,
        now: Instant,
    ) -> Self {
        let ahead = entry.vitals.call_began(now);
        ask.asked.replace(Some(entry.clone()));
        let timeout = ask.timeout.unwrap_or_else(|| caller.config.now().default_deadline);
        Self {
            span: info_span!(
                target: EXPORTED_ONLY,
                "call",
                otel.kind = "client",
                agent = entry.agent.key.id,
                tenant = ask.tenant,
                outcome = Empty,
                confidence = Empty
            ),
            at: caller.env.now(),
            caller,
            entry,
            probe: passes.is_probe(),
            passes: Some(passes),
            ahead,
            ticket: None,
            started: now,
            deadline: ask.started + timeout,
            timeout,
            recorded: ask.recorded.clone(),
        }
    }

    /// Makes the caller's span the parent of the call's; not once that is entered.
    pub(crate) fn continue_trace(&self, headers: &HeaderMap) {
        if !self.span.is_disabled() {
            propagate::extract(headers, &self.span);
        }
    }

    /// Sends the request. `headers` go to the agent as they are, but for the deadline, which is what is left
    /// of it, and the trace.
    pub(crate) async fn send(
        &self,
        path: PathAndQuery,
        headers: &HeaderMap,
        upload: &Rc<Upload>,
    ) -> Result<Answering, Failure> {
        let mut deadline = Box::pin(sleep_until(self.deadline));
        let head = || {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let mut head = head(&self.entry, path.clone(), headers.clone(), left);
            if !self.span.is_disabled() {
                self.span.in_scope(|| propagate::inject(head.headers_mut()));
            }
            mark_changing(head.headers_mut(), TRACEPARENT);
            head
        };
        let mut lease = None;
        let response = tokio::select! {
            biased;
            sent = self.caller.pools.send(&self.entry, head, upload, self.probe, &mut lease) => sent?,
            () = &mut deadline => {
                lease.iter().for_each(Lease::timed_out);
                return Err(Failure::Deadline { agent: self.entry.who(), after: self.timeout });
            }
        };
        let (mut head, body) = self.check(response)?.into_parts();
        cleanse(&mut head.headers);
        self.heed(&mut head.headers);
        let body = Answer {
            upstream: Some(body),
            peeked: None,
            deadline,
            entry: self.entry.clone(),
            timeout: self.timeout,
            lease,
            upload: None,
        };
        Ok(Answering { head, body })
    }

    /// What the agent says of its load, in the head or the trailers of an answer.
    pub(crate) fn heed(&self, headers: &mut HeaderMap) {
        if let Some(report) = mark_changing(headers, REPORT).and_then(Report::read) {
            self.entry.vitals.load.reports(report, Instant::now());
        }
    }

    /// Only gRPC is passed on.
    fn check(&self, response: Response<Upstream>) -> Result<Response<Upstream>, Failure> {
        let retry_in = || hint::retry_in(response.headers(), self.caller.env.now());
        let code = match response.status() {
            http::StatusCode::TOO_MANY_REQUESTS => Some((tonic::Code::ResourceExhausted, retry_in())),
            http::StatusCode::SERVICE_UNAVAILABLE => {
                retry_in().map(|retry_in| (tonic::Code::Unavailable, Some(retry_in)))
            }
            _ => None,
        };
        if let Some((code, retry_in)) = code {
            let message = format!("HTTP status {}", response.status());
            return Err(Failure::Agent { agent: self.entry.who(), code, message, retry_in });
        }
        let content_type = response.headers().get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        let problem = if response.status() != http::StatusCode::OK {
            format!("HTTP status {}", response.status())
        } else if !content_type.starts_with(b"application/grpc") {
            format!("content type \"{}\"", content_type.escape_ascii())
        } else {
            return Ok(response);
        };
        Err(Failure::BadAnswer { agent: self.entry.who(), problem })
    }

    /// The failure that a gRPC status means, if it is one.
    pub(crate) fn status(&self, trailers: &HeaderMap) -> Result<(), Failure> {
        // Mostly; and reading the whole status costs a copy of the headers.
        if trailers.get(Status::GRPC_STATUS).is_some_and(|status| status == "0") {
            return Ok(());
        }
        let agent = self.entry.who();
        Err(match Status::from_header_map(trailers) {
            None => Failure::BadAnswer { agent, problem: "no grpc-status".to_owned() },
            Some(status) => {
                let retry_in = hint::retry_in(trailers, self.caller.env.now());
                Failure::Agent { agent, code: status.code(), message: status.message().to_owned(), retry_in }
            }
        })
    }

    /// It has ended.
    pub(crate) fn settle(mut self, ended: Result<Option<Confidence>, &Failure>) {
        match ended {
            Ok(confidence) => self.end(CallOutcome::Answered, Verdict::Well, confidence),
            Err(failure) => {
                tracing::debug!(parent: &self.span, "{failure}");
                let hasty =
                    matches!(failure, Failure::Deadline { .. }) && self.entry.vitals.excuses(self.timeout);
                let verdict = if hasty { Verdict::Silent } else { failure.verdict() };
                self.end(failure.outcome(), verdict, None);
            }
        }
    }

    fn end(&mut self, outcome: CallOutcome, verdict: Verdict, confidence: Option<Confidence>) {
        let Some(passes) = self.passes.take() else { return };
        let now = Instant::now();
        let took = now.saturating_duration_since(self.started);
        let (caller, vitals) = (&self.caller, &self.entry.vitals);
        // Randomness costs; only an opening breaker and a rest need it.
        let spread = !matches!(verdict, Verdict::Well | Verdict::Silent);
        let random = if spread { caller.env.random() } else { 0 };
        let ended = Ended { outcome, verdict, confidence, took, work: self.recorded.is_some() };
        vitals.call_ended(self.ahead, &ended, now);
        vitals.settle(passes, verdict, now, random);
        self.span.record("outcome", tracing::field::debug(outcome));
        if let Some(confidence) = confidence {
            self.span.record("confidence", confidence.get());
        }
        if let Some(about) = self.recorded.take() {
            let entry = self.entry.clone();
            caller.recorder.record(Seen { entry, about, outcome, confidence, took, at: self.at }, now);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(CallOutcome::Cancelled, Verdict::Silent, None);
    }
}

/// A request's head as it goes to an agent: what is `left` of the time, and whom a gateway is to pass it on to.
pub(crate) fn head(entry: &Entry, path: PathAndQuery, mut headers: HeaderMap, left: Duration) -> Request<()> {
    headers.insert(GRPC_TIMEOUT, grpc_timeout(left));
    mark_changing(&mut headers, GRPC_TIMEOUT);
    if let Some((tenant, id)) = &entry.through {
        headers.insert(TENANT, tenant.clone());
        headers.insert(AGENT, id.clone());
    }
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if entry.expect.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(entry.authority.clone());
    uri.path_and_query = Some(path);
    let mut head = Request::new(());
    *head.method_mut() = http::Method::POST;
    *head.version_mut() = http::Version::HTTP_2;
    *head.uri_mut() = Uri::from_parts(uri).expect("scheme, authority and path make a URI");
    *head.headers_mut() = headers;
    head
}

/// An agent's response body, until its end, the deadline, or a break. Dropped early, it cancels the call at
/// the agent.
pub(crate) struct Answer {
    /// Gone after an end of whatever kind.
    upstream: Option<Upstream>,
    /// Taken before its time.
    peeked: Option<Frame<Bytes>>,
    deadline: Pin<Box<Sleep>>,
    entry: Arc<Entry>,
    timeout: Duration,
    lease: Option<Lease>,
    /// Ends with the answer, once it is the one that counts.
    pub(crate) upload: Option<Uploading>,
}

impl Answering {
    /// Waits for the first frame. An answer that is nothing but trailers then has them in its head.
    pub(crate) async fn peek(&mut self) -> Result<(), Failure> {
        let Some(frame) = poll_fn(|cx| self.body.poll_frame(cx)).await.transpose()? else { return Ok(()) };
        match frame.into_trailers() {
            Ok(trailers) => {
                self.head.headers.extend(trailers);
                self.body.upstream = None;
            }
            Err(frame) => self.body.peeked = Some(frame),
        }
        Ok(())
    }
}

impl Answer {
    /// Whether the whole request has been sent.
    pub(crate) fn is_sent(&self) -> bool {
        self.upstream.as_ref().is_none_or(Upstream::is_sent)
    }

    /// The next frame; `None` after the last.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(frame) = self.peeked.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(upstream) = self.upstream.as_mut() else { return Poll::Ready(None) };
        let failure = if self.deadline.as_mut().poll(cx).is_ready() {
            self.lease.iter().for_each(Lease::timed_out);
            Failure::Deadline { agent: self.entry.who(), after: self.timeout }
        } else {
            match ready!(Pin::new(upstream).poll_frame(cx)) {
                Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(e)) => lost(&self.entry, &e),
                None => {
                    self.upstream = None;
                    return Poll::Ready(None);
                }
            }
        };
        self.upstream = None;
        Poll::Ready(Some(Err(failure)))
    }

    /// Whether nothing follows the head.
    pub(crate) fn is_empty(&self) -> bool {
        self.peeked.is_none() && self.upstream.as_ref().is_none_or(Body::is_end_stream)
    }
}
