//! One call to one agent, from the choice of the agent to the end of its answer. Whoever asks (a proxied
//! request, a driver) goes through here.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, Uri,
    header::CONTENT_TYPE,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use jiff::Timestamp;
use parallax_runtime::{confidence::Confidence, env::Env, store::CallOutcome, wire};
use parallax_telemetry::propagate;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tracing::{Span, field::Empty, info_span};

use crate::{
    balance,
    breaker::{Pass, Verdict},
    config::Config,
    directory::{Directory, Entry},
    error::Failure,
    pool::{Lease, Pools, lost},
    tracker::{Recorder, Seen},
    upload::Upload,
};

/// How long the caller will wait, in gRPC's own notation.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Whom a call is for. The tenant is believed of the control plane only.
pub(crate) const AGENT: HeaderName = HeaderName::from_static(wire::AGENT);
pub(crate) const TENANT: HeaderName = HeaderName::from_static(wire::TENANT);

/// What one worker makes calls with.
pub(crate) struct Caller {
    pub(crate) config: Arc<Config>,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) pools: Pools,
    pub(crate) recorder: Recorder,
}

/// Whom a call is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    Agent(&'a str),
    Capability(&'a str),
}

/// What a call is recorded under.
#[derive(Default)]
pub(crate) struct About {
    pub(crate) pattern: String,
    pub(crate) task: String,
}

impl Caller {
    /// Chooses an agent and lets the call in. `recorded`: whether it is sampled, and under what.
    pub(crate) fn begin(
        self: &Rc<Self>,
        tenant: &str,
        target: Target<'_>,
        timeout: Option<Duration>,
        recorded: Option<About>,
    ) -> Result<Call, Failure> {
        let started = Instant::now();
        let snapshot = self.directory.snapshot();
        let snapshot = snapshot
            .as_ref()
            .ok_or_else(|| Failure::NoDirectory { control_plane: self.config.control_planes.join(", ") })?;
        let agents = snapshot.tenant(tenant);
        let (entry, pass) = match target {
            Target::Agent(id) => {
                let known = || agents.into_iter().flat_map(|t| t.agents.keys()).map(String::as_str);
                let entry = agents
                    .and_then(|tenant| tenant.agents.get(id))
                    .ok_or_else(|| Failure::unknown_agent(tenant, id, known()))?;
                let pass = entry.vitals.breaker.enter(started).map_err(|retry_in| {
                    entry.vitals.rejected();
                    Failure::Ejected { who: format!("agent {}", entry.who()), retry_in }
                })?;
                (entry, pass)
            }
            Target::Capability(capability) => {
                let known = || agents.into_iter().flat_map(|t| t.capabilities.keys()).map(String::as_str);
                let able = agents
                    .and_then(|tenant| tenant.capabilities.get(capability))
                    .ok_or_else(|| Failure::no_capability(tenant, capability, known()))?;
                self.choose(able, capability, started)?
            }
        };
        entry.vitals.call_began();
        let timeout = timeout.unwrap_or(self.config.default_deadline);
        Ok(Call {
            span: info_span!(
                "call",
                otel.kind = "client",
                agent = entry.agent.key.id,
                tenant,
                outcome = Empty,
                confidence = Empty
            ),
            caller: self.clone(),
            entry: entry.clone(),
            probe: matches!(pass, Pass::Probe),
            pass: Some(pass),
            started,
            at: self.env.now(),
            timeout,
            recorded,
        })
    }

    fn choose<'a>(
        &self,
        able: &'a [Arc<Entry>],
        capability: &str,
        now: Instant,
    ) -> Result<(&'a Arc<Entry>, Pass), Failure> {
        // Another core may take the probe that was picked: then there is one fewer to pick.
        for _ in 0..=able.len() {
            let admits = |entry: &Arc<Entry>| entry.vitals.breaker.wait(now).is_none();
            let load = |entry: &Arc<Entry>| entry.vitals.load();
            let Some(entry) = balance::pick(able, admits, load, self.env.random()) else { break };
            if let Ok(pass) = entry.vitals.breaker.enter(now) {
                return Ok((entry, pass));
            }
        }
        able.iter().for_each(|entry| entry.vitals.rejected());
        let waits = able.iter().filter_map(|entry| entry.vitals.breaker.wait(now));
        let retry_in = waits.min().unwrap_or_default();
        let who = format!("the {} agents with the capability \"{capability}\"", able.len());
        Err(Failure::Ejected { who, retry_in })
    }
}

/// A call under way. Dropped before it is settled, it was cancelled.
pub(crate) struct Call {
    pub(crate) span: Span,
    pub(crate) entry: Arc<Entry>,
    pub(crate) at: Timestamp,
    pub(crate) started: Instant,
    caller: Rc<Caller>,
    /// Gone when it is settled.
    pass: Option<Pass>,
    probe: bool,
    timeout: Duration,
    recorded: Option<About>,
}

/// The response's head, and its body to be read.
pub(crate) struct Answering {
    pub(crate) head: http::response::Parts,
    pub(crate) body: Answer,
}

impl Call {
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
        headers: HeaderMap,
        upload: Rc<Upload>,
    ) -> Result<Answering, Failure> {
        let pool = self.caller.pools.to(&self.entry);
        let upload = Uploading(upload);
        let mut deadline = Box::pin(sleep_until(self.started + self.timeout));
        let head = self.head(path, headers);
        let mut lease = None;
        let response = tokio::select! {
            biased;
            sent = pool.send(head, &upload.0, self.probe, &mut lease) => sent?,
            () = &mut deadline => {
                lease.iter().for_each(Lease::timed_out);
                return Err(Failure::Deadline { agent: self.entry.who(), after: self.timeout });
            }
        };
        let (head, body) = self.check(response)?.into_parts();
        let body = Answer {
            upstream: Some(body),
            deadline,
            entry: self.entry.clone(),
            timeout: self.timeout,
            lease,
            _upload: upload,
        };
        Ok(Answering { head, body })
    }

    fn head(&self, path: PathAndQuery, mut headers: HeaderMap) -> Parts {
        let left = self.timeout.saturating_sub(self.started.elapsed());
        headers.insert(GRPC_TIMEOUT, grpc_timeout(left));
        if let Some((tenant, id)) = &self.entry.through {
            headers.insert(TENANT, tenant.clone());
            headers.insert(AGENT, id.clone());
        }
        if !self.span.is_disabled() {
            self.span.in_scope(|| propagate::inject(&mut headers));
        }
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(if self.entry.expect.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
        uri.authority = Some(self.entry.authority.clone());
        uri.path_and_query = Some(path);
        let (mut head, ()) = http::Request::new(()).into_parts();
        head.method = http::Method::POST;
        head.version = http::Version::HTTP_2;
        head.uri = Uri::from_parts(uri).expect("scheme, authority and path make a URI");
        head.headers = headers;
        head
    }

    /// Only gRPC is passed on.
    fn check(&self, response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
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
                Failure::Agent { agent, code: status.code(), message: status.message().to_owned() }
            }
        })
    }

    /// It has ended.
    pub(crate) fn settle(mut self, ended: Result<Option<Confidence>, &Failure>) {
        match ended {
            Ok(confidence) => self.end(CallOutcome::Answered, Verdict::Well, confidence),
            Err(failure) => {
                tracing::debug!(parent: &self.span, "{failure}");
                let hasty = matches!(failure, Failure::Deadline { .. })
                    && self.entry.vitals.usually_slower_than(self.timeout);
                let verdict = if hasty { Verdict::Silent } else { failure.verdict() };
                self.end(failure.outcome(), verdict, None);
            }
        }
    }

    fn end(&mut self, outcome: CallOutcome, verdict: Verdict, confidence: Option<Confidence>) {
        let Some(pass) = self.pass.take() else { return };
        let now = Instant::now();
        let took = now.saturating_duration_since(self.started);
        let (caller, vitals) = (&self.caller, &self.entry.vitals);
        // Randomness costs; only an opening breaker needs it.
        let random = if verdict == Verdict::Sick { caller.env.random() } else { 0 };
        vitals.breaker.settle(pass, verdict, now, random);
        vitals.call_ended(outcome, verdict, confidence, took);
        self.span.record("outcome", tracing::field::debug(outcome));
        if let Some(confidence) = confidence {
            self.span.record("confidence", confidence.get());
        }
        if let Some(about) = self.recorded.take() {
            let entry = self.entry.clone();
            caller.recorder.record(Seen { entry, about, outcome, confidence, took, at: self.at });
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(CallOutcome::Cancelled, Verdict::Silent, None);
    }
}

/// Ends the upload with the call.
struct Uploading(Rc<Upload>);

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// An agent's response body, until its end, the deadline, or a break. Dropped early, it cancels the call at
/// the agent.
pub(crate) struct Answer {
    /// Gone after an end of whatever kind.
    upstream: Option<Incoming>,
    deadline: Pin<Box<Sleep>>,
    entry: Arc<Entry>,
    timeout: Duration,
    lease: Option<Lease>,
    _upload: Uploading,
}

impl Answer {
    /// The next frame; `None` after the last.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
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
        self.upstream.as_ref().is_none_or(Body::is_end_stream)
    }
}

/// A deadline as gRPC writes it: at most eight digits and a unit.
fn grpc_timeout(left: Duration) -> HeaderValue {
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
}
