//! A PostgreSQL server: where it is, how it is reached, and what its errors mean.

use std::{error::Error as _, io, str::FromStr, sync::Arc, time::Duration};

use futures::future::poll_fn;
use parallax_security::Io;
use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls, Notification,
    config::{Host, SslMode},
    error::Severity,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::tls::Tls;
use crate::{
    env::Env,
    lifecycle::Lifecycle,
    store::{Result, StoreError, Url},
};

/// An operation is tried for this long in all, over lost connections and restarts of the server.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bound on opening one connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Bound on one statement, kept by both ends.
const STATEMENT: Duration = Duration::from_secs(10);
/// Between two attempts: from the first, doubling up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What every connection begins with. Settings of the database or the role must not undo what the store promises.
const SETTINGS: &str = "
    SET statement_timeout = '10s';
    SET default_transaction_isolation = 'read committed';
    SET default_transaction_read_only = off;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
";
/// What asks a server for TLS, and its consent (PostgreSQL, 55.2.10, SSL session encryption).
const TLS_REQUEST: ([u8; 8], u8) = ([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f], b'S');

/// Why a statement has no answer.
#[derive(Clone, Debug, Error)]
pub(super) enum Trouble {
    /// It was not done; another attempt may succeed.
    #[error("{0}")]
    Again(String),
    /// Nobody knows whether it was done.
    #[error("{0}")]
    InDoubt(String),
    /// It was not done and will not be.
    #[error("{0}")]
    Refused(String),
    /// It was not done, since the server does not let us in, which time does not heal.
    #[error("{0}")]
    Locked(String),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(e: tokio_postgres::Error) -> Self {
        let problem = problem(&e);
        let Some(answer) = e.as_db_error() else { return Self::InDoubt(problem) };
        let fatal = matches!(answer.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
        match answer.code().code() {
            // Statement completion unknown.
            "40003" => Self::InDoubt(problem),
            _ if fatal => Self::InDoubt(problem),
            // Cancelled; a read-only transaction; rolled back for another's sake, or for want of resources.
            "57014" | "25006" => Self::Again(problem),
            code if ["40", "53", "55"].contains(&&code[..2]) => Self::Again(problem),
            _ => Self::Refused(problem),
        }
    }
}

/// An error with its cause, in one line.
pub(super) fn problem(e: &tokio_postgres::Error) -> String {
    match (e.as_db_error(), e.source()) {
        (Some(answer), _) => answer.to_string(),
        (None, Some(cause)) => format!("{e}: {cause}"),
        (None, None) => e.to_string(),
    }
}

/// A connection; it closes when this is dropped.
pub(super) struct Session {
    pub(super) client: Client,
    /// Cancelled once the connection is lost.
    pub(super) lost: CancellationToken,
}

impl Session {
    /// Bounds a statement. After one that is in doubt, the connection is lost to others too.
    pub(super) async fn within<T>(
        &self,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Trouble> {
        let outcome = match timeout(STATEMENT, statement).await {
            Ok(outcome) => outcome.map_err(Trouble::from),
            Err(_) => Err(Trouble::InDoubt(format!("no answer within {STATEMENT:?}"))),
        };
        if matches!(outcome, Err(Trouble::InDoubt(_))) {
            self.lost.cancel();
        }
        outcome
    }
}

/// What a URL says, and the world to reach it through.
pub(super) struct Server {
    pub(super) env: Arc<dyn Env>,
    pub(super) life: Lifecycle,
    /// `PostgreSQL at host:port/database`.
    pub(super) name: String,
    config: Config,
    hosts: Vec<(Host, u16)>,
    tls: Option<Tls>,
}

impl Server {
    /// Reads `postgres://user:password@host:port/database?parameters`.
    pub(super) fn parse(url: &str, env: Arc<dyn Env>, life: Lifecycle) -> Result<Self> {
        let refused = |problem: String| Url::refuse(url, problem);
        let (base, parameters) = url.split_once('?').unwrap_or((url, ""));
        let mut config = Config::from_str(base).map_err(|e| refused(problem(&e)))?;
        // TLS is spoken beneath the protocol's own state machine, which then need not know.
        config.ssl_mode(SslMode::Disable).application_name("parallax");
        if config.get_user().is_none() {
            return Err(refused("names no user: postgres://USER@host/database".to_owned()));
        }
        let port = |i: usize| *config.get_ports().get(i).or(config.get_ports().first()).unwrap_or(&5432);
        let hosts: Vec<_> =
            config.get_hosts().iter().enumerate().map(|(i, h)| (h.clone(), port(i))).collect();
        if hosts.is_empty() {
            return Err(refused("names no host: postgres://user@HOST/database".to_owned()));
        }
        let parameters: Vec<(&str, String)> = parameters
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (name, percent_decode_str(value).decode_utf8_lossy().into_owned())
            })
            .collect();
        let tls = Tls::parse(&parameters, hosts.iter().all(|(host, _)| is_local(host))).map_err(refused)?;
        if let Some(tls) = &tls {
            tls.config().map_err(|problem| refused(format!("cannot be used: {problem}")))?;
        }
        let places: Vec<_> = hosts.iter().map(|(host, port)| place(host, *port)).collect();
        let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
        let name = format!("PostgreSQL at {}/{database}", places.join(","));
        Ok(Self { env, life, name, config, hosts, tls })
    }

    /// Opens a connection to the first host that takes one and can be written to; `hear` is called with what it is
    /// notified of. Bounded.
    pub(super) async fn connect(
        &self,
        hear: impl Fn(Notification) + Clone + Send + 'static,
    ) -> Result<Session, Trouble> {
        let mut problems = Vec::new();
        for (host, port) in &self.hosts {
            match timeout(CONNECT, self.connect_to(host, *port, hear.clone())).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(Trouble::Again(problem) | Trouble::InDoubt(problem))) => problems.push(problem),
                Ok(Err(other)) => return Err(other),
                Err(_) => problems.push(format!("no connection within {CONNECT:?}")),
            }
        }
        Err(Trouble::Again(problems.join("; ")))
    }

    async fn connect_to(
        &self,
        host: &Host,
        port: u16,
        hear: impl Fn(Notification) + Send + 'static,
    ) -> Result<Session, Trouble> {
        let again = |e: io::Error| match e.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) {
            // One end does not trust the other.
            true => Trouble::Locked(e.to_string()),
            false => Trouble::Again(e.to_string()),
        };
        let io: Box<dyn Io> = match host {
            Host::Unix(_) => Box::new(UnixStream::connect(place(host, port)).await.map_err(again)?),
            Host::Tcp(name) => {
                let mut io = self.env.dial(&place(host, port)).await.map_err(again)?;
                match &self.tls {
                    None => io,
                    Some(tls) => {
                        io.write_all(&TLS_REQUEST.0).await.map_err(again)?;
                        if io.read_u8().await.map_err(again)? != TLS_REQUEST.1 {
                            return Err(Trouble::Locked("it does not speak TLS (ssl = off)".to_owned()));
                        }
                        let name = ServerName::try_from(name.clone())
                            .map_err(|e| Trouble::Locked(format!("{name}: {e}")))?;
                        // Read for each connection, so that renewed certificates are taken up.
                        let config = tls.config().map_err(Trouble::Locked)?;
                        Box::new(TlsConnector::from(config).connect(name, io).await.map_err(again)?)
                    }
                }
            }
        };
        let (client, mut connection) = self.config.connect_raw(io, NoTls).await.map_err(|e| {
            match e.as_db_error().map(|e| e.code().code()) {
                // A wrong password, an unknown role or database, no entry in pg_hba.conf: nothing that time heals.
                Some(code) if code.starts_with("28") || code.starts_with("3D") => {
                    Trouble::Locked(problem(&e))
                }
                _ => Trouble::Again(problem(&e)),
            }
        })?;
        let lost = CancellationToken::new();
        let over = lost.clone();
        self.life.spawn_beneath("postgres", async move {
            let _over = over.clone().drop_guard();
            let serve = async move {
                loop {
                    match poll_fn(|context| connection.poll_message(context)).await {
                        Some(Ok(AsyncMessage::Notification(notification))) => hear(notification),
                        Some(Ok(_)) => {}
                        Some(Err(e)) => return debug!("a connection is lost: {}", problem(&e)),
                        None => return,
                    }
                }
            };
            over.run_until_cancelled(serve).await;
        });
        client.batch_execute(SETTINGS).await?;
        if client.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0) {
            return Err(Trouble::Again(format!("{} is a standby", place(host, port))));
        }
        Ok(Session { client, lost })
    }

    /// Attempts until it is done, cannot be, or patience is over. An attempt is told whether one before it may have
    /// been done.
    ///
    /// # Errors
    /// [`StoreError::Away`] when nothing was done in 20 s; [`StoreError::InDoubt`] when that is not known.
    pub(super) async fn persist<T, F: Future<Output = Result<T, Trouble>>>(
        &self,
        mut attempt: impl FnMut(bool) -> F,
    ) -> Result<T> {
        let (deadline, mut pause, mut doubt) = (Instant::now() + PATIENCE, PAUSE.0, false);
        loop {
            let problem = match timeout_at(deadline, attempt(doubt)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Trouble::Refused(problem))) if !doubt => {
                    return Err(StoreError::Failed(format!("{}: {problem}", self.name)));
                }
                Ok(Err(Trouble::Again(problem))) => problem,
                Ok(Err(Trouble::Locked(problem) | Trouble::Refused(problem))) => {
                    pause = PATIENCE;
                    problem
                }
                Ok(Err(Trouble::InDoubt(problem))) => {
                    doubt = true;
                    problem
                }
                Err(_) => {
                    doubt = true;
                    format!("no answer within {PATIENCE:?}")
                }
            };
            if Instant::now() + pause >= deadline {
                let what = self.name.clone();
                return Err(match doubt {
                    true => StoreError::InDoubt { what, problem },
                    false => StoreError::Away(format!("{what}: {problem}; nothing was done")),
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

/// What to dial: `host:port`, or the path of a socket.
fn place(host: &Host, port: u16) -> String {
    match host {
        Host::Unix(folder) => folder.join(format!(".s.PGSQL.{port}")).display().to_string(),
        Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
        Host::Tcp(name) => format!("{name}:{port}"),
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}
