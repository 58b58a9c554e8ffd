//! The members of an etcd cluster, and how one of them is asked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{
    Certificate, Channel, Client, ConnectOptions, Error, GetOptions, Identity, ResponseHeader, TlsOptions,
};
use http::{Uri, uri::Authority};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tonic::{Code, Status, transport::Endpoint};
use tower::service_fn;
use tracing::debug;

use super::{entry, unsigned};
use crate::{
    env::Env,
    store::{Result, Revision, Snapshot, StoreError},
};

/// A member that has not answered by then is left for the next.
pub(super) const ATTEMPT: Duration = Duration::from_secs(2);
/// How long members are tried, one after the other, before a request is given up: an election takes two seconds.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// When a connection with requests on it is pinged, and how long that may take. etcd takes offence at more than one
/// ping in five seconds (`--grpc-keepalive-min-time`), so this is not what notices a dead watch.
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));
/// The largest message that is read, in bytes: a page of keys with their values, or a thousand revisions of a watch.
pub(super) const MESSAGE: usize = 64 << 20;
/// Keys in one page of a list.
const PAGE: i64 = 1000;

/// An etcd cluster.
pub(super) struct Cluster {
    /// `etcd://` and its members, for messages.
    name: String,
    members: Vec<Client>,
    /// Modulo their number, the member that is asked.
    current: AtomicUsize,
    /// Since patience was lost, nobody has answered.
    away: AtomicBool,
}

impl Cluster {
    pub(super) async fn open(url: &str, env: Arc<dyn Env>) -> Result<Self> {
        let Address { members, tls, nameless } = Address::parse(url).map_err(|problem| StoreError::Url {
            url: url.to_owned(),
            problem: format!("{problem}; give etcd://HOST:PORT[,HOST:PORT…][?ca=FILE[&cert=FILE&key=FILE]]"),
        })?;
        let name = format!("etcd://{}", members.join(","));
        let open = |problem| StoreError::Open { what: name.clone(), problem };
        let mut clients = Vec::new();
        for member in members {
            let scheme = if tls.is_some() { "https" } else { "http" };
            let mut endpoint = Endpoint::from_shared(format!("{scheme}://{member}"))
                .map_err(|e| open(e.to_string()))?
                .connect_timeout(ATTEMPT)
                .http2_keep_alive_interval(PING.0)
                .keep_alive_timeout(PING.1);
            if let Some(tls) = &tls {
                endpoint = endpoint.tls_config(tls.clone()).map_err(|e| open(e.to_string()))?;
            }
            let dial = {
                let env = env.clone();
                service_fn(move |_: Uri| {
                    let (env, member) = (env.clone(), member.clone());
                    async move { env.dial(&member).await.map(TokioIo::new) }
                })
            };
            let channel = Channel::Tonic(endpoint.connect_with_connector_lazy(dial));
            let options = ConnectOptions::new().with_require_leader(true);
            clients
                .push(Client::from_channel(channel, Some(options)).await.map_err(|e| open(e.to_string()))?);
        }
        // Processes spread over the members.
        let first = usize::try_from(env.random() % clients.len() as u64).expect("less than a length");
        let cluster =
            Self { name, members: clients, current: AtomicUsize::new(first), away: AtomicBool::new(false) };
        cluster.call(latest).await.map_err(|e| {
            let problem = match e {
                // TLS 1.3: a server that misses our certificate says so only after the handshake, by hanging up.
                StoreError::Away(problem) if nameless => {
                    format!("{problem}; if it asks for a certificate, add &cert=FILE&key=FILE")
                }
                StoreError::Away(problem) => problem,
                other => other.to_string(),
            };
            StoreError::Open { what: "the registry".to_owned(), problem }
        })?;
        Ok(cluster)
    }

    /// Asks a member, and the next when one fails, for [`PATIENCE`]; while none is known to answer, only one. What is
    /// asked must bear being done twice.
    ///
    /// # Errors
    /// [`StoreError::Away`] in the end; any other at once.
    pub(super) async fn call<T, F: Future<Output = Result<T>>>(
        &self,
        attempt: impl Fn(Client) -> F,
    ) -> Result<T> {
        let patience = if self.away.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
        let deadline = Instant::now() + patience;
        loop {
            let at = self.current();
            let member = self.members[at % self.members.len()].clone();
            let problem = match tokio::time::timeout(ATTEMPT, attempt(member)).await {
                Ok(Err(StoreError::Away(problem))) => problem,
                Ok(answer) => {
                    self.away.store(false, Ordering::Relaxed);
                    return answer;
                }
                Err(_) => format!("no answer within {} s", ATTEMPT.as_secs()),
            };
            debug!(store = self.name, member = at % self.members.len(), "etcd did not answer: {problem}");
            self.leave(at);
            if Instant::now() + PAUSE >= deadline {
                self.away.store(true, Ordering::Relaxed);
                return Err(StoreError::Away(format!("{}: {problem}", self.name)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Counts up with each change of member.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Turns to another member, unless somebody has done so since `at` was the current one.
    pub(super) fn leave(&self, at: usize) {
        self.current.compare_exchange(at, at.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed).ok();
    }

    /// All keys with a prefix, at one revision, in pages.
    pub(super) async fn list(&self, prefix: &str) -> Result<Snapshot> {
        'anew: loop {
            let (mut at, mut entries, mut from) = (0, Vec::new(), prefix.as_bytes().to_vec());
            loop {
                let options = GetOptions::new().with_range(end_of(prefix)).with_limit(PAGE).with_revision(at);
                let (from_key, options) = (&from, &options);
                let get = |client: Client| async move {
                    let mut kv = client.kv_client().max_decoding_message_size(MESSAGE);
                    kv.get(from_key.clone(), Some(options.clone())).await.map_err(fault)
                };
                let page = match self.call(get).await {
                    Ok(page) => page,
                    // Compacted between two pages.
                    Err(StoreError::Compacted { .. }) => continue 'anew,
                    Err(e) => return Err(e),
                };
                if at == 0 {
                    at = page.header().map_or(0, ResponseHeader::revision);
                }
                for kv in page.kvs() {
                    entries.push(entry(kv)?);
                }
                match page.kvs().last() {
                    Some(last) if page.more() => from = [last.key(), &[0]].concat(),
                    _ => return Ok(Snapshot { revision: unsigned(at), entries }),
                }
            }
        }
    }
}

/// The first key that does not begin with `prefix`; for an empty one, etcd's word for no end.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // No byte of UTF-8 is 255.
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

/// The store's revision, by the word of a majority.
pub(super) async fn latest(mut client: Client) -> Result<Revision> {
    let answer = client.get("/parallax", Some(GetOptions::new().with_keys_only())).await.map_err(fault)?;
    Ok(revision(answer.header()))
}

pub(super) fn revision(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, |header| unsigned(header.revision()))
}

/// What an error of the client means to us. [`StoreError::Away`]: another member, or this one later, may do better.
pub(super) fn fault(e: Error) -> StoreError {
    let status = match e {
        Error::GRpcStatus(status) => status,
        Error::LeaseKeepAliveError(_) => return StoreError::Missing { what: "lease".to_owned() },
        other => return StoreError::Away(other.to_string()),
    };
    let message = status.message();
    match status.code() {
        Code::NotFound => StoreError::Missing { what: "lease".to_owned() },
        Code::OutOfRange if message.contains("compacted") => StoreError::Compacted { asked: 0, oldest: 0 },
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::FailedPrecondition => StoreError::Failed(format!("etcd: {message}")),
        _ => {
            // Of a connection that failed, only the last cause says anything.
            let mut cause: &dyn std::error::Error = &status;
            while let Some(next) = cause.source() {
                cause = next;
            }
            StoreError::Away(if cause.is::<Status>() { message.to_owned() } else { cause.to_string() })
        }
    }
}

/// What a URL names.
struct Address {
    members: Vec<String>,
    tls: Option<TlsOptions>,
    /// TLS without a certificate of our own.
    nameless: bool,
}

impl Address {
    fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("etcd://").ok_or("it does not begin with etcd://")?;
        let (members, query) = rest.split_once('?').unwrap_or((rest, ""));
        let members: Vec<_> = members.trim_end_matches('/').split(',').map(str::to_owned).collect();
        for member in &members {
            let plain =
                member.parse::<Authority>().is_ok_and(|a| a.port().is_some()) && !member.contains('@');
            if !plain {
                return Err(format!("\"{member}\" is not HOST:PORT"));
            }
        }
        let (mut ca, mut cert, mut key) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, file) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match name {
                "ca" => &mut ca,
                "cert" => &mut cert,
                "key" => &mut key,
                _ => return Err(format!("\"{name}\" is unknown; known are ca, cert and key")),
            };
            *slot = Some(std::fs::read_to_string(file).map_err(|e| format!("{name}: {file}: {e}"))?);
        }
        let identity = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(Identity::from_pem(cert, key)),
            _ => return Err("cert and key: give both or none".to_owned()),
        };
        let nameless = ca.is_some() && identity.is_none();
        let tls = match (ca, identity) {
            (None, None) => None,
            (None, Some(_)) => return Err("cert and key are there, ca is not".to_owned()),
            (Some(ca), identity) => {
                let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
                Some(identity.map_or(tls.clone(), |identity| tls.identity(identity)))
            }
        };
        Ok(Self { members, tls, nameless })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_complaints_name_the_place() {
        let complaint = |url: &str| Address::parse(url).err().unwrap_or_default();
        assert_eq!(Address::parse("etcd://a:1,[::1]:2").unwrap().members, ["a:1", "[::1]:2"]);
        assert!(complaint("etcd://a:1,b").contains("\"b\" is not HOST:PORT"));
        assert!(complaint("etcd://me:secret@a:1").contains("is not HOST:PORT"));
        assert!(complaint("etcd://a:1?user=me").contains("\"user\" is unknown"));
        assert!(complaint("etcd://a:1?ca=/no/such.pem").contains("ca: /no/such.pem: "));
        assert!(complaint("etcd://a:1?cert=/dev/null").contains("give both or none"));
        assert!(complaint("etcd://a:1?cert=/dev/null&key=/dev/null").contains("ca is not"));
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!((end_of("/a/"), end_of("")), (b"/a0".to_vec(), vec![0]));
    }
}
