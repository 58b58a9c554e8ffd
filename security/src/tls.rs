use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::io::BufReader;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Acceptor, Error, Identity, Io, Kind, Network, Plaintext, Result, Stream, file};

mod chain;
mod web;

pub use web::machine_roots;

/// The longest record, with its head (RFC 8446, 5.2). Bytes.
const RECORD: usize = 5 + (16 << 10) + 256;

/// Where a process's certificates are, PEM. `cert` and `key` may be the same file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The authorities whose peers are accepted: one certificate or more.
    pub ca: PathBuf,
    /// The process's own certificate, then intermediates if there are any.
    pub cert: PathBuf,
    /// The private key of the first certificate in `cert`.
    pub key: PathBuf,
}

/// Which protocols a listener offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// `h2` only: a gRPC port.
    Grpc,
    /// `h2` and `http/1.1`: a port for browsers and HTTP clients.
    Http,
}

/// Who must be at the other end of a connection that we open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Any peer of this kind, of this tenant if one is given.
    Kind { tenant: Option<String>, kind: Kind },
    /// Exactly this peer.
    Identity(Identity),
}

impl Expect {
    /// Any peer of this kind, of any tenant.
    pub fn kind(kind: Kind) -> Self {
        Self::Kind { tenant: None, kind }
    }

    fn accepts(&self, peer: &Identity) -> bool {
        match self {
            Self::Identity(identity) => identity == peer,
            Self::Kind { tenant, kind } => {
                *kind == peer.kind && tenant.as_ref().is_none_or(|tenant| *tenant == peer.tenant)
            }
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => identity.fmt(f),
            Self::Kind { tenant, kind } => {
                write!(f, "spiffe://parallax/{}/{kind}/*", tenant.as_deref().unwrap_or("*"))
            }
        }
    }
}

/// A process's certificates, ready for both ends of a connection. Clones share one state, so that a reload
/// reaches them all; each new connection uses the certificates of its moment, established ones keep theirs.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({}, {:?})", self.identity(), self.files())
    }
}

struct Shared {
    files: Files,
    current: ArcSwap<Loaded>,
    /// What this machine trusts, read when it is first needed; none if that is nobody.
    machine: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
}

/// One consistent set, replaced as a whole.
struct Loaded {
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    roots: Arc<RootCertStore>,
    own: Arc<SingleCertAndKey>,
    identity: Identity,
    expires_at: SystemTime,
    /// The files' bytes, to see whether they have changed.
    content: [Vec<u8>; 3],
}

impl Tls {
    /// Reads and checks the files. Errors name the file that is missing, unreadable, not PEM, expired at
    /// `now`, not the certificate's key, not signed by the authority, or without an identity.
    pub fn load(files: Files, now: SystemTime) -> Result<Self> {
        let loaded = Loaded::new(&files, read(&files)?, now)?;
        let current = ArcSwap::from_pointee(loaded);
        Ok(Self(Arc::new(Shared { files, current, machine: OnceLock::new() })))
    }

    /// Reads the files again and, if one has changed, checks and swaps the whole set: true if it did. On any
    /// error the former set stays in use. Files that are replaced one after the other may be read in between
    /// ([`Error::KeyMismatch`]): call again. Blocks on the disk for three small files.
    pub fn reload(&self, now: SystemTime) -> Result<bool> {
        let content = read(&self.0.files)?;
        if content == self.0.current.load().content {
            return Ok(false);
        }
        self.0.current.store(Arc::new(Loaded::new(&self.0.files, content, now)?));
        Ok(true)
    }

    /// Who this process is.
    pub fn identity(&self) -> Identity {
        self.0.current.load().identity.clone()
    }

    /// When the first of the process's own certificate and its authorities expires.
    pub fn expires_at(&self) -> SystemTime {
        self.0.current.load().expires_at
    }

    /// Where the certificates are.
    pub fn files(&self) -> &Files {
        &self.0.files
    }

    /// Accepts connections with these certificates, and with those of later reloads.
    pub fn acceptor(&self, alpn: Alpn, plaintext: Plaintext) -> Acceptor {
        Acceptor::new(self.clone(), alpn, plaintext)
    }

    pub(crate) fn server(&self, alpn: Alpn) -> Arc<ServerConfig> {
        let loaded = self.0.current.load();
        Arc::clone(match alpn {
            Alpn::Grpc => &loaded.grpc,
            Alpn::Http => &loaded.http,
        })
    }

    /// Connects to `addr` (`host:port`, `[v6]:port`), speaks HTTP/2 over mTLS and returns the stream only if
    /// the peer is whom we expect. No time-out of its own.
    ///
    /// The host is only where to connect to and is not checked against the certificate: agents move and
    /// register under any address, so the peer's name is its identity.
    ///
    /// Errors: [`Error::Address`], [`Error::Unreachable`], [`Error::Handshake`], [`Error::NoIdentity`],
    /// [`Error::WrongPeer`]. TLS 1.3 lets a client finish before the server has judged the client's
    /// certificate: a refusal by the server shows at the first read.
    pub async fn connect(&self, network: &dyn Network, addr: &str, expect: &Expect) -> Result<Stream> {
        let name = server_name(addr)?;
        let io = dial(network, addr).await?;
        let client = Arc::clone(&self.0.current.load().client);
        let stream = TlsConnector::from(client)
            .connect(name, by_record(io))
            .await
            .map_err(|e| Error::handshake(addr, &e))?;
        let (_, session) = stream.get_ref();
        let peer = peer_identity(session.peer_certificates())?;
        if !expect.accepts(&peer) {
            return Err(Error::WrongPeer { addr: addr.into(), expected: expect.to_string(), found: peer });
        }
        if session.alpn_protocol() != Some(b"h2") {
            let reason = "the peer did not agree to HTTP/2 (ALPN h2); is this a Parallax port?".to_owned();
            return Err(Error::Handshake { addr: addr.into(), reason, retry: false });
        }
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

/// Connects to `addr` without TLS: only for agents that registered so in local mode. No time-out of its own.
pub async fn connect_plain(network: &dyn Network, addr: &str) -> Result<Stream> {
    server_name(addr)?;
    Ok(Stream::Plain(dial(network, addr).await?))
}

/// Reads as much as a record can hold at a time: rustls alone asks for 4 KiB.
pub(crate) fn by_record(io: impl Io + 'static) -> Box<dyn Io> {
    Box::new(BufReader::with_capacity(RECORD, io))
}

/// The identity of a peer whose chain the handshake has verified.
pub(crate) fn peer_identity(chain: Option<&[CertificateDer<'_>]>) -> Result<Identity> {
    let leaf = chain.and_then(<[_]>::first);
    leaf.map_or_else(
        || Err(Error::NoIdentity { reason: "the peer presented no certificate".to_owned() }),
        Identity::from_certificate,
    )
}

async fn dial(network: &dyn Network, addr: &str) -> Result<Box<dyn Io>> {
    network.dial(addr).await.map_err(|source| Error::Unreachable { addr: addr.to_owned(), source })
}

fn server_name(addr: &str) -> Result<ServerName<'static>> {
    let fail = |reason: &str| Error::Address { addr: addr.to_owned(), reason: reason.to_owned() };
    let (host, port) = addr.rsplit_once(':').ok_or_else(|| fail("it has no port"))?;
    port.parse::<u16>().map_err(|_| fail("its port is not a number up to 65535"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned())
        .map_err(|_| fail("its host is neither a DNS name nor an IP address"))
}

fn read(files: &Files) -> Result<[Vec<u8>; 3]> {
    Ok([
        file::read("authority certificate", &files.ca)?,
        file::read("certificate", &files.cert)?,
        file::read("private key", &files.key)?,
    ])
}

impl Loaded {
    fn new(files: &Files, content: [Vec<u8>; 3], now: SystemTime) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let internal = |e: rustls::Error| untrusted(files, e.to_string());

        let (roots, authority_expires) = roots(&files.ca, &content[0], now)?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| untrusted(files, e.to_string()))?;
        let chain = certificates("certificate", &files.cert, &content[1])?;
        let expires_at = check_time(&chain[0], &files.cert, now)?;
        // Every process is a client of another, so what peers will demand of it is demanded here first.
        let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        clients
            .verify_client_cert(&chain[0], &chain[1..], UnixTime::since_unix_epoch(unix))
            .map_err(internal)?;
        let identity = Identity::from_certificate(&chain[0]).map_err(|e| Error::Pem {
            what: "Parallax certificate",
            path: files.cert.clone(),
            reason: e.to_string(),
        })?;
        let own = certified_key(files, chain, &content[2], &provider)?;

        let mut grpc = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(internal)?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(own.clone());
        // A resumed session skips the check of the peer's certificate.
        grpc.session_storage = Arc::new(NoServerSessionStorage {});
        grpc.send_tls13_tickets = 0;
        grpc.alpn_protocols = vec![b"h2".to_vec()];
        let mut http = grpc.clone();
        http.alpn_protocols.push(b"http/1.1".to_vec());

        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(internal)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(chain::ChainVerifier::new(roots.clone(), &provider)))
            .with_client_cert_resolver(own.clone());
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![b"h2".to_vec()];

        Ok(Self {
            grpc: Arc::new(grpc),
            http: Arc::new(http),
            client: Arc::new(client),
            roots,
            own,
            identity,
            expires_at: expires_at.min(authority_expires),
            content,
        })
    }
}

fn untrusted(files: &Files, reason: String) -> Error {
    Error::Untrusted { path: files.cert.clone(), ca: files.ca.clone(), reason }
}

/// The authorities in a file and when the first of them expires. The handshake does not check an authority's
/// own dates, so they are checked here.
fn roots(path: &Path, pem: &[u8], now: SystemTime) -> Result<(RootCertStore, SystemTime)> {
    let mut roots = RootCertStore::empty();
    let mut expires_at = None;
    for certificate in certificates("authority certificate", path, pem)? {
        let end = check_time(&certificate, path, now)?;
        expires_at = Some(expires_at.map_or(end, |first: SystemTime| first.min(end)));
        roots.add(certificate).map_err(|e| Error::Pem {
            what: "authority certificate",
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
    }
    Ok((roots, expires_at.unwrap_or(now)))
}

fn certified_key(
    files: &Files,
    chain: Vec<CertificateDer<'static>>,
    pem: &[u8],
    provider: &CryptoProvider,
) -> Result<Arc<SingleCertAndKey>> {
    let broken = |reason: String| Error::Pem { what: "private key", path: files.key.clone(), reason };
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| broken(e.to_string()))?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => {
            Error::KeyMismatch { cert: files.cert.clone(), key: files.key.clone() }
        }
        other => broken(other.to_string()),
    })?;
    Ok(Arc::new(SingleCertAndKey::from(key)))
}

/// The certificates in a file: at least one.
pub(crate) fn load_certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    certificates(what, path, &file::read(what, path)?)
}

fn certificates(what: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let broken = |reason: String| Error::Pem { what, path: path.to_owned(), reason };
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(broken("there is no PEM certificate in it".to_owned())),
        Ok(found) => Ok(found),
        Err(e) => Err(broken(e.to_string())),
    }
}

/// Whether `certificate`, read from `path`, is valid at `now`; the end of its validity.
pub(crate) fn check_time(
    certificate: &CertificateDer<'_>,
    path: &Path,
    now: SystemTime,
) -> Result<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| Error::Pem {
        what: "certificate",
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    let validity = parsed.validity();
    let (begin, end) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    if SystemTime::from(begin) > now {
        return Err(Error::NotYetValid { path: path.to_owned(), from: begin.to_string() });
    }
    if SystemTime::from(end) < now {
        return Err(Error::Expired { path: path.to_owned(), at: end.to_string() });
    }
    Ok(end.into())
}

#[cfg(test)]
mod tests;
