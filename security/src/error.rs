use std::{io, net::SocketAddr, path::PathBuf};

use crate::Identity;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A file, name or address is wrong: a retry fails until somebody changes it.
    Invalid,
    /// The peer is not who it should be, or does not accept us: a retry with the same certificates fails.
    Refused,
    /// The network or the peer failed: a retry is safe.
    Unavailable,
}

/// Everything that can go wrong with certificates and connections.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that must exist does not.
    #[error("{what} {path} does not exist: create it, or correct the path")]
    Missing { what: &'static str, path: PathBuf },
    /// The operating system refused a file operation.
    #[error("cannot {action} {path}: {source}; check the path's owner, mode and disk")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// A file does not hold what it should.
    #[error("{path} holds no usable {what}: {reason}; replace the file")]
    Pem { what: &'static str, path: PathBuf, reason: String },
    /// A private key belongs to another certificate.
    #[error("the private key {key} does not belong to the certificate {cert}: replace both together")]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    /// A certificate's time is over.
    #[error("the certificate {path} expired at {at}: renew it")]
    Expired { path: PathBuf, at: String },
    /// A certificate's time has not come.
    #[error("the certificate {path} is valid only from {from}: check this machine's clock")]
    NotYetValid { path: PathBuf, from: String },
    /// A certificate was not signed by the authority it is used with, or not for this use.
    #[error(
        "the certificate {path} is not accepted by the authority {ca}: {reason}; issue it anew from that authority"
    )]
    Untrusted { path: PathBuf, ca: PathBuf, reason: String },
    /// A name cannot be an identity.
    #[error("{value:?} is no identity: {reason}; expected spiffe://parallax/<tenant>/<kind>/<id>")]
    Identity { value: String, reason: String },
    /// A certificate names no Parallax identity.
    #[error(
        "the certificate names no Parallax identity: {reason}; issue one with the URI name spiffe://parallax/<tenant>/<kind>/<id>"
    )]
    NoIdentity { reason: String },
    /// The authority could not make a certificate.
    #[error("cannot issue a certificate for {name}: {reason}")]
    Issue { name: String, reason: String },
    /// An address that is not `host:port`.
    #[error("{addr:?} is no address: {reason}; expected host:port")]
    Address { addr: String, reason: String },
    /// No TCP connection to the peer.
    #[error("cannot connect to {addr}: {source}")]
    Unreachable { addr: String, source: io::Error },
    /// An accepted socket failed or was closed before its first byte, as port probes do: not worth a warning.
    #[error("the connection from {addr} ended before its first byte")]
    Closed { addr: SocketAddr },
    /// The TLS handshake failed.
    #[error("TLS handshake with {addr} failed: {reason}")]
    Handshake { addr: String, reason: String, retry: bool },
    /// The peer proved an identity, but not the one that was asked for.
    #[error("{addr} is {found}, expected {expected}: check the address")]
    WrongPeer { addr: String, expected: String, found: Identity },
}

impl Error {
    /// Whether a retry can help.
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } | Self::Closed { .. } | Self::Handshake { retry: true, .. } => {
                Code::Unavailable
            }
            Self::Handshake { .. } | Self::WrongPeer { .. } | Self::NoIdentity { .. } => Code::Refused,
            _ => Code::Invalid,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// A failed handshake, in words about the peer rather than about TLS.
    pub(crate) fn handshake(addr: impl ToString, source: &io::Error) -> Self {
        use rustls::{CertificateError as Cert, Error as Tls};
        let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
        let reason = match tls {
            Some(Tls::NoCertificatesPresented) => {
                "the peer presented no certificate; give it one of this cluster's authority".to_owned()
            }
            Some(Tls::InvalidCertificate(Cert::UnknownIssuer | Cert::BadSignature)) => {
                "the peer's certificate was signed by another authority".to_owned()
            }
            Some(Tls::InvalidCertificate(Cert::Expired | Cert::ExpiredContext { .. })) => {
                "the peer's certificate has expired; renew it, or check this machine's clock".to_owned()
            }
            Some(Tls::InvalidCertificate(Cert::NotValidYet | Cert::NotValidYetContext { .. })) => {
                "the peer's certificate is not valid yet; check both machines' clocks".to_owned()
            }
            Some(Tls::InvalidMessage(_)) => "the peer does not speak TLS".to_owned(),
            Some(other) => other.to_string(),
            None => source.to_string(),
        };
        Self::Handshake { addr: addr.to_string(), reason, retry: tls.is_none() }
    }
}
