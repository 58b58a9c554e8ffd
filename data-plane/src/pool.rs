//! One worker's connections to agents: few, long-lived, HTTP/2 over mTLS or plaintext.
//!
//! A connection that an agent has closed, announced to close (GOAWAY) or let die is given up: it takes no new
//! call, ends when the calls on it have, and is replaced by the next call. A call that an agent provably never
//! saw goes out again on another connection; any other is never sent twice.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::Shared};
use http::{Request, Response};
use parallax_runtime::{agent::Url, env::Env};
use parallax_security::Tls;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use crate::{
    config::Current,
    directory::{Entry, follow::jitter},
    error::Failure,
    http_agent::HttpAgent,
    upload::Upload,
};

mod connection;

pub(crate) use connection::Upstream;
use connection::{Attempt, Connection};

/// Bytes in flight towards us, per stream and per connection: a stream that its caller does not read holds up
/// no other until dozens do.
pub(crate) const WINDOWS: (u32, u32) = (128 * 1024, 8 * 1024 * 1024);
/// The largest head of a message that is taken, as HTTP/2 counts it (RFC 9113, 6.5.2). Bytes.
pub(crate) const HEADERS: u32 = 16 * 1024;
/// Connections that one call waits for, one after the other.
const DIALS: u32 = 2;
/// How often a call that was never processed is sent again, to an agent that has said goodbye on its connection, and to
/// one that refused the call: that may have too much to do (gRPC's A6: "transparent retries").
pub(crate) const RESENDS: u32 = 2;
const REFUSED: u32 = 1;

/// The connections of one worker.
pub(crate) struct Pools {
    dialer: Rc<Dialer>,
    pools: RefCell<HashMap<u64, Rc<Pool>>>,
    by_http: RefCell<HashMap<u64, Rc<HttpAgent>>>,
}

pub(crate) struct Dialer {
    pub(crate) config: Current,
    pub(crate) tls: Tls,
    pub(crate) env: Arc<dyn Env>,
    /// What drives connections.
    pub(crate) tasks: TaskTracker,
}

impl Pools {
    pub(crate) fn new(config: Current, tls: Tls, env: Arc<dyn Env>, tasks: TaskTracker) -> Self {
        let dialer = Rc::new(Dialer { config, tls, env, tasks });
        Self { dialer, pools: RefCell::default(), by_http: RefCell::default() }
    }

    /// Sends a request and waits for the head of its response, the way that the agent is reached; see [`Pool::send`].
    pub(crate) async fn send(
        &self,
        entry: &Arc<Entry>,
        head: impl Fn() -> Request<()>,
        upload: &Rc<Upload>,
        probe: bool,
        lease: &mut Option<Lease>,
    ) -> Result<Response<Upstream>, Failure> {
        match &entry.url {
            None => self.to(entry).send(head, upload, probe, lease).await,
            Some(url) => {
                let agent = self.by_http(entry, url);
                let sent = Box::pin(agent.send(head().into_parts().0, upload, probe)).await?;
                Ok(sent.map(Upstream::Whole))
            }
        }
    }

    /// The connections to an agent.
    fn to(&self, entry: &Arc<Entry>) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        pools.entry(entry.route).or_insert_with(|| Pool::new(self.dialer.clone(), entry.clone())).clone()
    }

    fn by_http(&self, entry: &Arc<Entry>, url: &Url) -> Rc<HttpAgent> {
        let mut agents = self.by_http.borrow_mut();
        let new = || HttpAgent::new(self.dialer.clone(), entry.clone(), url.clone());
        agents.entry(entry.route).or_insert_with(new).clone()
    }

    /// Gives up the connections to agents that have left or moved; calls in flight end first.
    pub(crate) fn retain(&self, routes: &HashSet<u64>) {
        self.pools.borrow_mut().retain(|route, _| routes.contains(route));
        self.by_http.borrow_mut().retain(|route, _| routes.contains(route));
    }
}

/// One worker's connections to one agent.
struct Pool {
    dialer: Rc<Dialer>,
    entry: Arc<Entry>,
    open: RefCell<Vec<Rc<Connection>>>,
    /// The connect that is under way: resolves when it has ended, well or not.
    connecting: RefCell<Option<Shared<oneshot::Receiver<()>>>>,
    backoff: RefCell<Option<Backoff>>,
}

/// After a failed connect.
pub(crate) struct Backoff {
    pub(crate) until: Instant,
    pause: Duration,
    pub(crate) cause: String,
}

/// A call's hold on a connection.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    connection: Rc<Connection>,
}

impl Pool {
    fn new(dialer: Rc<Dialer>, entry: Arc<Entry>) -> Rc<Self> {
        Rc::new(Self {
            dialer,
            entry,
            open: RefCell::default(),
            connecting: RefCell::default(),
            backoff: RefCell::default(),
        })
    }

    /// Sends a request, its head made anew for each attempt, and waits for the head of its response; dropping the
    /// future cancels the call at the agent. A `probe` dials even if it failed just now. `lease` shows the hold
    /// on the connection meanwhile, to be kept until the response has ended.
    async fn send(
        self: &Rc<Self>,
        head: impl Fn() -> Request<()>,
        upload: &Rc<Upload>,
        probe: bool,
        lease: &mut Option<Lease>,
    ) -> Result<Response<Upstream>, Failure> {
        let mut resends = 0;
        loop {
            let lease = lease.insert(self.lease(probe).await?);
            let error = match Attempt::begin(&lease.connection, head(), upload) {
                Ok(attempt) => match attempt.await {
                    Ok(response) => {
                        lease.connection.silent_since.set(None);
                        return Ok(response);
                    }
                    Err(error) if never_processed(&error) => error,
                    Err(error) => return Err(lost(&self.entry, &error)),
                },
                // The connection had ended, and nothing was sent.
                Err(error) => error,
            };
            lease.give_up();
            resends += 1;
            let most = if error.is_go_away() { RESENDS } else { REFUSED };
            if resends > most || !upload.repeatable() {
                return Err(turned_away(&self.entry, &error));
            }
            debug!(agent = self.entry.agent.key.id, "sent again: {error}");
        }
    }

    /// A connection with room, opened if need be.
    async fn lease(self: &Rc<Self>, probe: bool) -> Result<Lease, Failure> {
        let mut dials = 0;
        loop {
            let best = self.best();
            let wanted = {
                let config = self.dialer.config.now();
                let crowded = |c: &Rc<Connection>| c.is_crowded(config.streams_per_connection);
                best.as_ref().is_none_or(crowded) && self.open.borrow().len() < config.connections_per_agent
            };
            let connecting = if wanted { self.connecting(probe && dials == 0) } else { None };
            // With any connection at all a call does not wait for another.
            if let Some(connection) = best {
                connection.in_flight.set(connection.in_flight.get() + 1);
                return Ok(Lease { pool: self.clone(), connection });
            }
            dials += 1;
            match connecting {
                Some(connecting) if dials <= DIALS => _ = connecting.await,
                _ => return Err(self.unreachable()),
            }
        }
    }

    fn unreachable(&self) -> Failure {
        let backoff = self.backoff.borrow();
        let cause = backoff.as_ref().map_or("it closes connections as soon as they are made", |b| &b.cause);
        Failure::Unreachable { agent: self.entry.who(), cause: cause.to_owned() }
    }

    /// The open connection with the fewest calls in flight; forgets those that have closed.
    fn best(&self) -> Option<Rc<Connection>> {
        let mut open = self.open.borrow_mut();
        open.retain(|connection| connection.is_open());
        open.iter().min_by_key(|connection| connection.in_flight.get()).cloned()
    }

    /// The connect that is under way, begun if none is; none while it must not be tried.
    fn connecting(self: &Rc<Self>, at_once: bool) -> Option<Shared<oneshot::Receiver<()>>> {
        let mut connecting = self.connecting.borrow_mut();
        if let Some(under_way) = &*connecting {
            return Some(under_way.clone());
        }
        if !at_once && self.backoff.borrow().as_ref().is_some_and(|backoff| Instant::now() < backoff.until) {
            return None;
        }
        let (done, wait) = oneshot::channel();
        let wait = wait.shared();
        *connecting = Some(wait.clone());
        let (dialer, entry, pool) = (self.dialer.clone(), self.entry.clone(), Rc::downgrade(self));
        self.dialer.tasks.spawn_local(async move {
            let limit = dialer.config.now().connect_timeout;
            let connected = match timeout(limit, dialer.connect(&entry, &pool)).await {
                Ok(connected) => connected,
                Err(_) => Err(format!("no connection within {} ms", limit.as_millis())),
            };
            if let Some(pool) = pool.upgrade() {
                pool.connected(connected);
            }
            // Nobody waits any more, perhaps.
            _ = done.send(());
        });
        Some(wait)
    }

    fn connected(&self, connected: Result<Connection, String>) {
        *self.connecting.borrow_mut() = None;
        let mut backoff = self.backoff.borrow_mut();
        match connected {
            Ok(connection) => {
                *backoff = None;
                self.open.borrow_mut().push(Rc::new(connection));
            }
            Err(cause) => *backoff = Some(self.dialer.back_off(backoff.as_ref(), &self.entry, cause)),
        }
    }
}

impl Dialer {
    /// How long an agent is not dialled that could not be connected to, perhaps not for the first time.
    pub(crate) fn back_off(&self, before: Option<&Backoff>, entry: &Entry, cause: String) -> Backoff {
        let (first, longest) = self.config.now().connect_backoff;
        let pause = before.map_or(first, |before| (before.pause * 2).min(longest));
        info!(agent = entry.agent.key.id, "cannot connect to {}: {cause}", entry.agent.endpoint);
        Backoff { until: Instant::now() + jitter(pause, self.env.random()), pause, cause }
    }
}

impl Lease {
    /// Takes no further call on the connection.
    fn give_up(&self) {
        self.pool.open.borrow_mut().retain(|open| !Rc::ptr_eq(open, &self.connection));
    }

    /// The call met its deadline. If for long nothing that was asked on the connection has been answered, it may be
    /// dead without either end knowing.
    pub(crate) fn timed_out(&self) {
        let silent = self.connection.silent_since.get();
        if silent.is_some_and(|since| since.elapsed() >= self.pool.dialer.config.now().silence) {
            self.give_up();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.in_flight.set(self.connection.in_flight.get() - 1);
    }
}

/// An error of h2, or of what is built upon it.
type Fault = dyn std::error::Error + 'static;

/// Whether the agent is known not to have begun the request: it refused the stream (RFC 9113, 8.7), or said
/// goodbye with a last stream before this one.
pub(crate) fn never_processed(error: &Fault) -> bool {
    let Some(error) = cause::<h2::Error>(error) else { return false };
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn cause<E: std::error::Error + 'static>(error: &Fault) -> Option<&E> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}

/// The innermost cause, which names what happened.
pub(crate) fn root(error: &Fault) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The agent has not begun the call, and does not want to.
fn turned_away(entry: &Entry, error: &Fault) -> Failure {
    let cause = format!("it turned the call away: {}", root(error));
    Failure::Unreachable { agent: entry.who(), cause }
}

/// A connection broke under a call.
pub(crate) fn lost(entry: &Entry, error: &Fault) -> Failure {
    Failure::Lost { agent: entry.who(), cause: root(error) }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use bytes::Bytes;
    use jiff::Timestamp;
    use parallax_proto::{controlplane::v1 as wire, registry::AgentRegistration};
    use parallax_runtime::env::{Network, Simulated};
    use parallax_security::{Authority, Dialling, Identity, Kind};
    use parallax_telemetry::{Registry, metrics::DataPlaneMetrics};
    use tokio::{task::LocalSet, time::sleep};

    use super::*;
    use crate::{config::Config, directory::Book};

    /// A network in which nobody is at home.
    struct Deserted {
        env: Simulated,
        dials: Mutex<Vec<Instant>>,
    }

    impl Network for Deserted {
        fn dial<'a>(&'a self, _: &'a str) -> Dialling<'a> {
            self.dials.lock().unwrap().push(Instant::now());
            Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
        }
    }

    impl Env for Deserted {
        fn now(&self) -> Timestamp {
            self.env.now()
        }

        fn random(&self) -> u64 {
            self.env.random()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_not_there_is_dialled_ever_less_often_and_never_in_step() {
        let env = Arc::new(Deserted { env: Simulated::new(7), dials: Mutex::default() });
        let dir = tempfile::tempdir().unwrap();
        let now = env.system_time();
        let authority = Authority::open(dir.path(), now).unwrap();
        let identity = Identity::new("t", Kind::DataPlane, "node").unwrap();
        let files = authority.bundle(&identity, dir.path(), now).unwrap();
        let tls = Tls::load(files, now).unwrap();
        let (first, longest) = (Duration::from_millis(100), Duration::from_millis(1600));
        let config = Current::from(Config { connect_backoff: (first, longest), ..Config::default() });
        let metrics = DataPlaneMetrics::new(&mut Registry::default());
        let mut book = Book::new(config.clone(), metrics);
        let registration =
            AgentRegistration { id: "a".into(), endpoint: "127.0.0.1:1".into(), ..Default::default() };
        let record = wire::AgentRecord {
            tenant: "t".into(),
            registration: Some(registration),
            transport: wire::Transport::Plaintext.into(),
        };
        book.upsert(record, Instant::now()).unwrap();
        let snapshot = book.snapshot(1, Instant::now());
        let local = LocalSet::new();
        let calls = async {
            let pools = Pools::new(config, tls, env.clone(), TaskTracker::new());
            let pool = pools.to(snapshot.entries().next().unwrap());
            for _ in 0..20_000 {
                let upload = Upload::whole(Bytes::new());
                let failed = pool.send(|| Request::new(()), &upload, false, &mut None).await.err().unwrap();
                assert!(failed.to_string().contains("connection refused"), "{failed}");
                sleep(Duration::from_millis(1)).await;
            }
        };
        local.run_until(calls).await;
        let dials = env.dials.lock().unwrap();
        let pauses: Vec<Duration> = dials.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.len() > 12, "{pauses:?}");
        let mut pause = first;
        for waited in &pauses {
            let grain = Duration::from_millis(2);
            assert!(*waited >= pause / 2 && *waited <= pause + grain, "{waited:?} of {pause:?}: {pauses:?}");
            pause = (pause * 2).min(longest);
        }
        let last: HashSet<&Duration> = pauses.iter().rev().take(8).collect();
        assert!(last.len() > 4, "jitter: {pauses:?}");
    }
}
