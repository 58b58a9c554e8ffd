//! Agents that are reached by HTTP: `POST {endpoint}/analyze` and `GET {endpoint}/health`, in JSON.
//!
//! To the rest of the node they are agents like any other: what is asked of them comes as gRPC and is answered
//! as gRPC, so that whatever is done for calls is done for theirs. A call has a connection of its own over
//! HTTP/1.1, kept for the next one, or a stream over HTTP/2 where a TLS server agrees to that. A call that is
//! dropped closes its connection, or resets its stream: that is how such an agent sees the cancellation.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::Arc,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE},
    request::Parts,
    uri::Scheme,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parallax_runtime::{agent::Url, wire};
use parallax_security::{Expect, Stream, connect_plain};
use tokio::{
    sync::Semaphore,
    task::{AbortHandle, spawn_local, yield_now},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::Status;
use tracing::debug;

mod translate;

use translate::{answer, capabilities, health, question, refusal, refuse, reply};

use crate::{
    ask::{GRPC_TIMEOUT, parse_grpc_timeout},
    directory::Entry,
    error::Failure,
    keepalive::PING_TIMEOUT,
    pool::{Backoff, Dialer, RESENDS, lost, never_processed, root},
    upload::Upload,
    vitals::Vitals,
    whole::{Frames, PREFIX},
};

const TIMEOUT_MS: HeaderName = HeaderName::from_static(wire::TIMEOUT_MS);
const LOAD: HeaderName = HeaderName::from_static(wire::LOAD);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// One worker's connections to one agent.
pub(crate) struct HttpAgent {
    dialer: Rc<Dialer>,
    entry: Arc<Entry>,
    url: Url,
    /// A permit for each call.
    room: Semaphore,
    /// Held while dialling a server that may turn out to speak HTTP/2: then one connection is enough.
    first: Semaphore,
    idle: RefCell<Vec<(Http1, Instant)>>,
    /// Whether somebody looks after the idle ones.
    watched: Cell<bool>,
    shared: RefCell<Option<http2::SendRequest<Full<Bytes>>>>,
    backoff: RefCell<Option<Backoff>>,
}

/// A connection that carries one call at a time. Dropped in mid-call, it is cut.
struct Http1 {
    send: http1::SendRequest<Full<Bytes>>,
    driver: AbortHandle,
    busy: bool,
}

impl Drop for Http1 {
    fn drop(&mut self) {
        if self.busy {
            self.driver.abort();
        }
    }
}

enum Connection {
    One(Http1),
    Shared(http2::SendRequest<Full<Bytes>>),
}

impl HttpAgent {
    pub(crate) fn new(dialer: Rc<Dialer>, entry: Arc<Entry>, url: Url) -> Rc<Self> {
        let room = Semaphore::new(dialer.config.now().http_calls_per_agent);
        Rc::new(Self {
            dialer,
            entry,
            url,
            room,
            first: Semaphore::new(1),
            idle: RefCell::default(),
            watched: Cell::new(false),
            shared: RefCell::default(),
            backoff: RefCell::default(),
        })
    }

    /// Asks the agent what a gRPC request asks, and answers as gRPC does. Dropping the future cancels the call at
    /// the agent. A `probe` dials even if that failed just now.
    pub(crate) async fn send(
        self: &Rc<Self>,
        head: Parts,
        upload: &Rc<Upload>,
        probe: bool,
    ) -> Result<Response<Frames>, Failure> {
        let method = head.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        let now = || self.dialer.env.now();
        Ok(match method.as_str() {
            "Analyze" | "StreamAnalyze" => {
                let left =
                    head.headers.get(GRPC_TIMEOUT).map(parse_grpc_timeout).transpose()?.unwrap_or_default();
                let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let json = match question(&self.collect(upload).await?, left_ms) {
                    Ok(json) => json,
                    Err(status) => return Ok(refuse(&status)),
                };
                let mut headers = passed_on(head.headers);
                headers.insert(TIMEOUT_MS, HeaderValue::from(left_ms));
                headers.insert(CONTENT_TYPE, JSON);
                let response = self.exchange(Method::POST, "/analyze", headers, json.into(), probe).await?;
                upload.answered(false);
                let mut replied = match response.status() {
                    status if status.is_success() => {
                        let result = answer(response.body(), &self.entry.agent, now());
                        reply(&result.map_err(|problem| self.bad(problem))?)
                    }
                    status if status.is_redirection() => return Err(self.bad(moved(&response))),
                    _ => refuse(&refusal(&response, &self.path("/analyze"), now())),
                };
                if let Some(load) = response.headers().get(&LOAD) {
                    replied.headers_mut().insert(LOAD, load.clone());
                }
                replied
            }
            "GetCapabilities" if !probe => reply(&capabilities(&self.entry.agent)),
            "HealthCheck" | "GetCapabilities" => {
                let headers = passed_on(head.headers);
                let response = self.exchange(Method::GET, "/health", headers, Bytes::new(), probe).await?;
                match response.status().as_u16() {
                    _ if method == "GetCapabilities" => reply(&capabilities(&self.entry.agent)),
                    300..=399 => return Err(self.bad(moved(&response))),
                    401 | 403 | 404 | 405 | 429 | 501 => {
                        refuse(&refusal(&response, &self.path("/health"), now()))
                    }
                    _ => reply(&health(&response, now())),
                }
            }
            _ => refuse(&Status::unimplemented(format!("agents that are reached by HTTP have no {method}"))),
        })
    }

    /// The request's body as a whole.
    async fn collect(&self, upload: &Rc<Upload>) -> Result<Bytes, Failure> {
        let limit = self.dialer.config.now().max_message;
        match Limited::new(upload.attempt(), limit + PREFIX).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(Failure::Malformed(format!(
                "the request is larger than {limit} bytes, the most that an agent reached by HTTP is sent"
            ))),
            Err(e) => Err(Failure::Malformed(format!("the request broke off: {e}"))),
        }
    }

    /// One request, and its response as a whole.
    async fn exchange(
        self: &Rc<Self>,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        probe: bool,
    ) -> Result<Response<Bytes>, Failure> {
        let _room = self.room.acquire().await.expect("it is never closed");
        let mut resends = 0;
        loop {
            let mut connection = self.connection(probe && resends == 0).await?;
            let request = self.request(&connection, method.clone(), path, headers.clone(), body.clone());
            let mut error = match connection.send(request).await {
                Ok(response) => {
                    let response = self.read(response).await?;
                    if let Connection::One(connection) = connection {
                        self.keep(connection);
                    }
                    return Ok(response);
                }
                Err(error) => error,
            };
            let unsent = error.take_message().is_some();
            let error = error.into_error();
            if !unsent && !never_processed(&error) {
                return Err(lost(&self.entry, &error));
            }
            resends += 1;
            if resends > RESENDS {
                let cause = format!("it turned the call away: {}", root(&error));
                return Err(Failure::Unreachable { agent: self.entry.who(), cause });
            }
            debug!(agent = self.entry.agent.key.id, "sent again: {error}");
        }
    }

    fn request(
        &self,
        connection: &Connection,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let path = self.path(path);
        let uri = match connection {
            Connection::One(_) => {
                let host = HeaderValue::from_str(self.entry.authority.as_str());
                headers.insert(HOST, host.expect("an authority is ASCII"));
                path.parse::<Uri>()
            }
            Connection::Shared(_) => Uri::builder()
                .scheme(Scheme::HTTPS)
                .authority(self.entry.authority.clone())
                .path_and_query(path)
                .build()
                .map_err(|_| unreachable!("its parts are a URL's")),
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri.expect("a URL's path is a path");
        if matches!(connection, Connection::Shared(_)) {
            *request.version_mut() = Version::HTTP_2;
        }
        *request.headers_mut() = headers;
        request
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Response<Bytes>, Failure> {
        let (head, body) = response.into_parts();
        let limit = self.dialer.config.now().max_message;
        match Limited::new(body, limit).collect().await {
            Ok(body) => Ok(Response::from_parts(head, body.to_bytes())),
            Err(e) => Err(match e.downcast::<hyper::Error>() {
                Ok(e) => lost(&self.entry, &*e),
                Err(_) => self.bad(format!("it answered with more than {limit} bytes")),
            }),
        }
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.url.base)
    }

    fn bad(&self, problem: String) -> Failure {
        Failure::BadAnswer { agent: self.entry.who(), problem }
    }

    /// A connection that is free, opened if need be.
    async fn connection(&self, probe: bool) -> Result<Connection, Failure> {
        if let Some(shared) = self.shared() {
            return Ok(shared);
        }
        // The runtime looks at its sockets: one that the agent has closed meanwhile shows it now.
        if !self.idle.borrow().is_empty() {
            yield_now().await;
        }
        while let Some((mut connection, _)) = self.pop() {
            if connection.send.ready().await.is_ok() {
                return Ok(Connection::One(connection));
            }
        }
        let _first = match self.url.secure {
            true => Some(self.first.acquire().await.expect("it is never closed")),
            false => None,
        };
        match self.shared() {
            Some(shared) => Ok(shared),
            None => self.dial(probe).await,
        }
    }

    /// Held by no borrow across an await.
    fn pop(&self) -> Option<(Http1, Instant)> {
        self.idle.borrow_mut().pop()
    }

    fn shared(&self) -> Option<Connection> {
        let shared = self.shared.borrow();
        shared.as_ref().filter(|send| send.is_ready()).cloned().map(Connection::Shared)
    }

    async fn dial(&self, probe: bool) -> Result<Connection, Failure> {
        let unreachable =
            |cause: &str| Failure::Unreachable { agent: self.entry.who(), cause: cause.to_owned() };
        if let Some(backoff) = &*self.backoff.borrow()
            && !probe
            && Instant::now() < backoff.until
        {
            return Err(unreachable(&backoff.cause));
        }
        let limit = self.dialer.config.now().connect_timeout;
        let connected = match timeout(limit, self.connect()).await {
            Ok(connected) => connected,
            Err(_) => Err(format!("no connection within {} ms", limit.as_millis())),
        };
        let mut backoff = self.backoff.borrow_mut();
        match connected {
            Ok(connection) => {
                *backoff = None;
                Ok(connection)
            }
            Err(cause) => {
                let failure = unreachable(&cause);
                *backoff = Some(self.dialer.back_off(backoff.as_ref(), &self.entry, cause));
                Err(failure)
            }
        }
    }

    async fn connect(&self) -> Result<Connection, String> {
        let (dialer, address) = (&self.dialer, self.url.address.as_str());
        let stream = match &self.entry.expect {
            Some(Expect::Identity(identity)) => dialer.tls.connect_web(&*dialer.env, address, identity).await,
            _ => connect_plain(&*dialer.env, address).await,
        };
        let stream = stream.map_err(|e| e.to_string())?;
        let opened = Opened::new(self.entry.vitals.clone());
        if stream.alpn() == Some(b"h2") {
            let shared = self.handshake(stream, opened).await?;
            *self.shared.borrow_mut() = Some(shared.clone());
            return Ok(Connection::Shared(shared));
        }
        let handshake = http1::Builder::new().handshake(TokioIo::new(stream));
        let (send, connection) = handshake.await.map_err(|e| e.to_string())?;
        let driver = dialer.tasks.spawn_local(async move {
            let ended = connection.await;
            debug!(?ended, "a connection to an agent ended");
            drop(opened);
        });
        Ok(Connection::One(Http1 { send, driver: driver.abort_handle(), busy: false }))
    }

    async fn handshake(
        &self,
        stream: Stream,
        opened: Opened,
    ) -> Result<http2::SendRequest<Full<Bytes>>, String> {
        let tasks = self.dialer.tasks.clone();
        let (send, connection) = http2::Builder::new(Local(tasks.clone()))
            .timer(TokioTimer::new())
            .max_local_error_reset_streams(None)
            .keep_alive_interval(self.dialer.config.now().keepalive)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tasks.spawn_local(async move {
            let ended = connection.await;
            debug!(?ended, "a connection to an agent ended");
            drop(opened);
        });
        Ok(send)
    }

    /// For the next call, or until it was idle for too long.
    fn keep(self: &Rc<Self>, mut connection: Http1) {
        connection.busy = false;
        if connection.send.is_closed() {
            return;
        }
        let until = Instant::now() + self.dialer.config.now().http_idle;
        self.idle.borrow_mut().push((connection, until));
        if !self.watched.replace(true) {
            spawn_local(expire(Rc::downgrade(self), until));
        }
    }
}

/// Where hyper starts its tasks: on the worker's own thread.
#[derive(Clone)]
struct Local(TaskTracker);

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        self.0.spawn_local(async { _ = task.await });
    }
}

/// Closes connections that nothing is sent on, until there is none.
async fn expire(agent: Weak<HttpAgent>, mut next: Instant) {
    loop {
        sleep_until(next).await;
        let Some(agent) = agent.upgrade() else { return };
        let mut idle = agent.idle.borrow_mut();
        let now = Instant::now();
        idle.retain(|(connection, until)| now < *until && !connection.send.is_closed());
        let Some(first) = idle.iter().map(|(_, until)| *until).min() else {
            agent.watched.set(false);
            return;
        };
        next = first;
    }
}

impl Connection {
    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        match self {
            Self::One(connection) => {
                connection.busy = true;
                connection.send.try_send_request(request).await
            }
            Self::Shared(send) => send.try_send_request(request).await,
        }
    }
}

/// A connection that is counted as open.
struct Opened(Arc<Vitals>);

impl Opened {
    fn new(vitals: Arc<Vitals>) -> Self {
        vitals.connection_opened();
        Self(vitals)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}

/// What goes to the agent of what came with the call: everything that is not gRPC's own.
fn passed_on(mut headers: HeaderMap) -> HeaderMap {
    for own in [CONTENT_TYPE, CONTENT_LENGTH, TE, HOST] {
        headers.remove(own);
    }
    let grpc = |name: &&HeaderName| name.as_str().starts_with("grpc-") || name.as_str().ends_with("-bin");
    let grpc: Vec<HeaderName> = headers.keys().filter(grpc).cloned().collect();
    grpc.iter().for_each(|name| drop(headers.remove(name)));
    headers.insert(ACCEPT, JSON);
    headers
}

fn moved(response: &Response<Bytes>) -> String {
    let to = response.headers().get(http::header::LOCATION).and_then(|to| to.to_str().ok());
    let to = to.unwrap_or("elsewhere").escape_debug();
    format!("HTTP {} to {to}, which is not followed; register where it leads", response.status())
}
