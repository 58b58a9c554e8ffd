//! The three ports to storage, and the one place that names their adapters.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::sync::broadcast;

use crate::{
    confidence::Confidence,
    env::Env,
    error::{Code, Coded},
    lifecycle::Lifecycle,
    run::{Entry as JournalEntry, Run, RunKey, Status, Summary},
};

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod embedded;
#[cfg(feature = "cluster")]
mod etcd;
#[cfg(feature = "cluster")]
mod postgres;
#[cfg(feature = "conformance")]
pub mod servers;

/// Counts the mutations of a registry store, from 1.
pub type Revision = u64;

/// Why a store could not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("store {url}: {problem}")]
    Url { url: String, problem: String },
    #[error("cannot open {what}: {problem}")]
    Open { what: String, problem: String },
    #[error("{what} has changed since it was read; read it again")]
    Conflict { what: String },
    #[error("{what} is driven by another process now")]
    Fenced { what: String },
    #[error("{what} exists already")]
    Exists { what: String },
    #[error("no such {what}")]
    Missing { what: String },
    #[error("revision {asked} is older than what the store keeps (from {oldest}); list again")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("storage failed: {0}")]
    Failed(String),
    #[error("stored data cannot be read: {0}")]
    Corrupt(String),
    #[error("{what} was lost in the middle: {problem}; nobody knows whether it was done, read again")]
    InDoubt { what: String, problem: String },
    #[error("the store is closed")]
    Closed,
    /// Reads go on from what was last heard; nothing can be written.
    #[error("the store is out of reach, try again: {0}")]
    Away(String),
}

impl Coded for StoreError {
    fn code(&self) -> Code {
        match self {
            Self::Url { .. } => Code::InvalidArgument,
            Self::Conflict { .. } | Self::Fenced { .. } => Code::Conflict,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Missing { .. } => Code::NotFound,
            Self::Compacted { .. } => Code::Conflict,
            Self::Open { .. } | Self::Closed | Self::Away(_) => Code::Unavailable,
            Self::InDoubt { .. } => Code::DeadlineExceeded,
            Self::Failed(_) | Self::Corrupt(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Url { .. } => "PARALLAX-STORE-001",
            Self::Open { .. } => "PARALLAX-STORE-002",
            Self::Conflict { .. } => "PARALLAX-STORE-003",
            Self::Exists { .. } => "PARALLAX-STORE-004",
            Self::Missing { .. } => "PARALLAX-STORE-005",
            Self::Compacted { .. } => "PARALLAX-STORE-006",
            Self::Failed(_) => "PARALLAX-STORE-007",
            Self::Corrupt(_) => "PARALLAX-STORE-008",
            Self::Closed => "PARALLAX-STORE-009",
            Self::Fenced { .. } => "PARALLAX-STORE-010",
            Self::Away(_) => "PARALLAX-STORE-011",
            Self::InDoubt { .. } => "PARALLAX-STORE-012",
        }
    }
}

/// Every port answers so.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    /// Of the last change to this key.
    pub revision: Revision,
    /// The lease that keeps it, if one does.
    pub lease: Option<String>,
}

/// All entries below a prefix, in key order, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: Revision,
    pub entries: Vec<Entry>,
}

/// What a key must be like for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    /// Present, last changed at this revision.
    At(Revision),
}

/// A change to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Entry),
    Delete { key: String, revision: Revision },
}

impl Change {
    /// When it happened.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// What it happened to.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }
}

/// Keys and values with leases and a watch: what registers agents.
///
/// Contract:
/// 1. Once a write has returned, every read and every watch shows it: reads are linearizable.
/// 2. Each mutation has a revision, larger than any before; a change that fails its [`Expect`] is
///    [`StoreError::Conflict`] and changes nothing.
/// 3. A key that was put with a lease is deleted when the lease expires or is revoked, unless it has been put
///    again since without it or with another.
/// 4. A lease expires when it has not been renewed for its time to live, and never earlier. Leases survive a
///    restart of the store, and begin their time anew then: silence that could not be heard is no death.
/// 5. A watch shows every change after the revision it is given, once and in order, or fails with
///    [`StoreError::Compacted`]; it never skips one. A revision that the store has yet to reach is waited for.
#[async_trait]
pub trait RegistryStore: Send + Sync {
    /// Writes a key. [`StoreError::Missing`] when the lease is unknown.
    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<&str>, expect: Expect) -> Result<Revision>;
    /// Deletes a key; `None` when it was not there and [`Expect::Anything`] or [`Expect::Absent`] was given.
    async fn delete(&self, key: &str, expect: Expect) -> Result<Option<Revision>>;
    /// One key.
    async fn get(&self, key: &str) -> Result<Option<Entry>>;
    /// All keys with a prefix.
    async fn list(&self, prefix: &str) -> Result<Snapshot>;
    /// The changes to keys with a prefix after a revision.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<BoxStream<'static, Result<Change>>>;
    /// A new lease; its id is durable.
    async fn grant(&self, ttl: Duration) -> Result<String>;
    /// Begins a lease's time anew, with another time to live if one is given; returns that which it has now.
    /// [`StoreError::Missing`] when it has expired or never was.
    async fn renew(&self, lease: &str, ttl: Option<Duration>) -> Result<Duration>;
    /// Ends a lease and deletes what it keeps; an unknown one is no error.
    async fn revoke(&self, lease: &str) -> Result<()>;
}

/// Which runs to list: newest first.
#[derive(Clone, Debug, Default)]
pub struct RunQuery {
    pub tenant: String,
    pub status: Option<Status>,
    pub pattern: Option<String>,
    /// Only runs older than this id (the last of the page before).
    pub before: Option<String>,
    pub offset: u64,
    pub limit: u64,
}

/// One page of runs.
#[derive(Clone, Debug, PartialEq)]
pub struct RunPage {
    pub runs: Vec<Summary>,
    /// How many match in all, whatever the page.
    pub total: u64,
}

/// Says that a run has grown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    pub run: RunKey,
    /// What the growth has made of it.
    pub status: Status,
}

/// Entries above this many bytes of JSON are stored apart from the journal's rows, so that these stay small.
const INLINE: usize = 8 << 10;

/// Journals of runs, and which process drives each.
///
/// A driving process has a name of its own, its *owner* name, and says within its time to live that it is still
/// there ([`RunStore::keep`]). The runs of one that does not are given to another.
///
/// Contract:
/// 1. What `create`, `append` or `close` has returned for is on disk, and none does a part of what it was asked.
/// 2. `append` succeeds only at the length that the caller knows, so that two drivers cannot both advance a run, and
///    never after the run has ended: [`StoreError::Conflict`]. It succeeds only for the run's owner: one whose run
///    has been given away is told so, [`StoreError::Fenced`].
/// 3. A run's summary is the fold of its entries, in lists as in `load`.
/// 4. A journal begins with `Started`, and its script is kept with it, unchanged by whatever is uploaded later.
/// 5. A run that has not ended has one owner. It is given to another only when its own has been silent for the time
///    to live that it last named, and never twice.
/// 6. A large entry is read back like any other, and costs nobody who does not read it.
#[async_trait]
pub trait RunStore: Send + Sync {
    /// Begins a run with its first entries. [`StoreError::Exists`] when there is one of that key.
    async fn create(
        &self,
        owner: &str,
        run: &RunKey,
        script: &str,
        entries: &[JournalEntry],
    ) -> Result<Summary>;
    /// Adds entries to a run that is as `known`; returns what it is then. Without entries it writes nothing, and says
    /// whether they could be added: that the run is as `known`, has not ended, and is still the owner's.
    async fn append(&self, owner: &str, known: &Summary, entries: &[JournalEntry]) -> Result<Summary>;
    /// Ends a run whoever drives it, with an entry that is an end. [`StoreError::Conflict`] when it has ended,
    /// [`StoreError::Missing`] when there is none.
    async fn close(&self, run: &RunKey, end: JournalEntry) -> Result<Summary>;
    /// The whole run; `None` when there is none.
    async fn load(&self, run: &RunKey) -> Result<Option<Run>>;
    /// The entries from position `from` on, and what the run is with them; `None` when there is no such run.
    async fn tail(&self, run: &RunKey, from: u64) -> Result<Option<(Summary, Vec<JournalEntry>)>>;
    /// A page of runs of one tenant.
    async fn list(&self, query: &RunQuery) -> Result<RunPage>;
    /// Says that `owner` is there for another `ttl`, and gives it up to `most` of the runs whose owners are not,
    /// oldest first.
    async fn keep(&self, owner: &str, ttl: Duration, most: u64) -> Result<Vec<RunKey>>;
    /// `owner` is leaving: its runs can be given away at once.
    async fn leave(&self, owner: &str) -> Result<()>;
    /// Which runs grow, from now on, whoever drives them. Hints may come late and may be missing: the journal is
    /// what counts, and a hint only says when to look.
    async fn hints(&self) -> Result<BoxStream<'static, Hint>>;
}

/// How a call to an agent ended, for its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallOutcome {
    Answered,
    /// The agent answered with an error, or with bytes that are not the contract.
    Failed,
    Unreachable,
    DeadlineExceeded,
    Cancelled,
}

/// One call to an agent, as it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Names the sample: one that is appended again is not counted again.
    pub id: String,
    pub tenant: String,
    pub agent_id: String,
    /// Empty when the call belongs to no pattern.
    pub pattern: String,
    /// The task's id.
    pub task: String,
    pub outcome: CallOutcome,
    /// What the agent stated, clamped; absent when it stated nothing that means anything.
    pub confidence: Option<Confidence>,
    /// Microseconds.
    pub duration_us: u64,
    pub at: Timestamp,
}

/// Which samples to read: one agent's, from `since` on and before `until`, oldest first.
#[derive(Clone, Debug)]
pub struct SampleQuery {
    pub tenant: String,
    pub agent_id: String,
    pub since: Timestamp,
    pub until: Timestamp,
    /// At most this many, the newest of them.
    pub limit: u64,
}

/// What agents have stated, and how their calls went.
///
/// Contract:
/// 1. `append` is idempotent by [`Sample::id`], and does all of a batch or none.
/// 2. `query` shows what `append` has returned for.
#[async_trait]
pub trait ConfidenceStore: Send + Sync {
    /// Adds samples.
    async fn append(&self, samples: &[Sample]) -> Result<()>;
    /// Reads samples.
    async fn query(&self, query: &SampleQuery) -> Result<Vec<Sample>>;
}

/// Opens stores by URL.
///
/// `embedded:PATH` is a file of this process; `memory:` keeps nothing. A registry may be on etcd 3.4 or later, where
/// any number of processes share it: `etcd://HOST:PORT[,HOST:PORT…]` names the members, and `?ca=FILE`, or
/// `?ca=FILE&cert=FILE&key=FILE`, makes the connections TLS with PEM files: the authority of the members' certificates,
/// and our own certificate.
///
/// Runs may be in PostgreSQL:
///
/// `postgres://user:password@host:port/database?sslmode=…&sslrootcert=FILE&sslcert=FILE&sslkey=FILE`
///
/// `sslmode` is `verify-full` (the server's certificate is for its host's name and by an authority in `sslrootcert`),
/// `require` (encrypted, and nothing checked) or `disable`. Without it, it is `verify-full`, or `disable` when every
/// host is loopback or a socket. `sslcert` and `sslkey` are for a server that asks for a certificate. Further hosts
/// stand after a comma, and the first that can be written to is used; the folder of a socket stands as a host, percent
/// encoded. What is `%`, `@`, `:`, `/` or `?` in a password is percent encoded too.
pub struct Stores {
    env: Arc<dyn Env>,
    life: Lifecycle,
}

impl Stores {
    /// Stores whose upkeep runs as tasks of `life`.
    #[must_use]
    pub fn new(env: Arc<dyn Env>, life: Lifecycle) -> Self {
        Self { env, life }
    }

    /// Opens a registry.
    ///
    /// # Errors
    /// A URL of no known kind, or of one that this build is without; a file or server that cannot be reached.
    pub async fn registry(&self, url: &str) -> Result<Arc<dyn RegistryStore>> {
        match Url::parse(url)? {
            Url::Embedded(file) => Ok(embedded::Registry::open(file, self.env.clone(), &self.life).await?),
            #[cfg(feature = "cluster")]
            Url::Etcd => Ok(etcd::Registry::open(url, self.env.clone(), &self.life).await?),
            #[cfg(not(feature = "cluster"))]
            Url::Etcd => Err(Url::refuse(url, UNBUILT)),
            Url::Postgres => Err(Url::refuse(url, "keeps runs only")),
        }
    }

    /// Opens a store of runs.
    ///
    /// # Errors
    /// As [`Stores::registry`].
    pub async fn runs(&self, url: &str) -> Result<Arc<dyn RunStore>> {
        match Url::parse(url)? {
            Url::Embedded(file) => Ok(Arc::new(embedded::Runs::open(file).await?)),
            #[cfg(feature = "cluster")]
            Url::Postgres => Ok(Arc::new(postgres::Runs::open(url, self.env.clone(), &self.life).await?)),
            #[cfg(not(feature = "cluster"))]
            Url::Postgres => Err(Url::refuse(url, UNBUILT)),
            Url::Etcd => Err(Url::refuse(url, REGISTRY_ONLY)),
        }
    }

    /// Opens a store of confidence samples.
    ///
    /// # Errors
    /// As [`Stores::registry`].
    pub async fn confidence(&self, url: &str) -> Result<Arc<dyn ConfidenceStore>> {
        match Url::parse(url)? {
            Url::Embedded(file) => Ok(Arc::new(embedded::Confidences::open(file).await?)),
            Url::Postgres => Err(Url::refuse(url, "keeps runs only")),
            Url::Etcd => Err(Url::refuse(url, REGISTRY_ONLY)),
        }
    }
}

const REGISTRY_ONLY: &str = "holds a registry and nothing else";
#[cfg(not(feature = "cluster"))]
const UNBUILT: &str =
    "needs a build with the stores of a cluster: cargo build -p parallax-cli --features cluster";

/// What a store's URL names.
enum Url {
    /// A file, or memory.
    Embedded(Option<PathBuf>),
    /// A cluster; its adapter reads the rest.
    Etcd,
    /// A database; its adapter reads the rest.
    Postgres,
}

impl Url {
    fn parse(url: &str) -> Result<Self> {
        match url.split_once(':') {
            Some(("memory", "")) => Ok(Self::Embedded(None)),
            Some(("embedded", path)) if !path.is_empty() => Ok(Self::Embedded(Some(path.into()))),
            Some(("etcd", _)) => Ok(Self::Etcd),
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => Ok(Self::Postgres),
            _ => Err(Self::refuse(
                url,
                "is none of embedded:PATH, memory:, etcd://HOST:PORT and postgres://HOST:PORT/DATABASE",
            )),
        }
    }

    /// An error that shows the URL without its password and its parameters.
    fn refuse(url: &str, problem: impl Into<String>) -> StoreError {
        let shown = match url.split_once("://") {
            None => url.to_owned(),
            Some((scheme, rest)) => {
                let (user, place) =
                    rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
                let user = user.and_then(|user| user.split(':').next()).map(|user| format!("{user}@"));
                let place = place.split('?').next().unwrap_or_default();
                format!("{scheme}://{}{place}", user.unwrap_or_default())
            }
        };
        StoreError::Url { url: shown, problem: problem.into() }
    }
}

/// JSON out of a column.
fn decode<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| StoreError::Corrupt(e.to_string()))
}

/// JSON for a column.
fn encode<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| StoreError::Failed(e.to_string()))
}

/// What a follower of hints sees; what it was too slow for is missing.
fn heard(hints: broadcast::Receiver<Hint>) -> BoxStream<'static, Hint> {
    let heard = async |mut hints: broadcast::Receiver<Hint>| {
        loop {
            match hints.recv().await {
                Ok(hint) => return Some((hint, hints)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    };
    stream::unfold(hints, heard).boxed()
}
