//! Who a peer is, and what it may call.
//!
//! Every connection between two Parallax processes is mutual TLS. A process is named by a SPIFFE-style
//! [`Identity`] in its certificate, never by its address. This crate issues such certificates for clusters
//! that bring none ([`Authority`]), loads and reloads them ([`Tls`]), accepts and opens connections
//! ([`Acceptor`], [`Tls::connect`], [`Tls::connect_web`]), and holds the one table of who may call what ([`access`]).
//!
//! It is not a server, knows no gRPC and imports nothing of Parallax: it turns sockets into streams and
//! peers into verdicts.
//!
//! Invariants:
//! - A [`Transport::Mtls`] peer always has an identity that the cluster's authority vouched for; no other
//!   peer ever has one.
//! - No bytes of an application are sent to a peer, or taken from it, before its identity is checked. TLS
//!   sessions are never resumed, so each connection is checked against the certificates of the moment.
//! - A failed reload changes nothing: the former certificates stay in use.
//! - The crypto provider (ring) is passed explicitly; nothing is installed for the whole process.
//! - Nothing here sets a time-out: handshakes, connects and reloads are bounded by the caller.
//! - Files are checked at the time the caller passes in. Only the handshake itself reads the wall clock, in
//!   rustls, to judge the peer's certificate.

mod accept;
pub mod access;
mod ca;
mod error;
mod file;
#[cfg(test)]
mod fixture;
mod identity;
mod network;
mod stream;
mod tls;

pub use accept::{Acceptor, Peer, Plaintext, Transport};
pub use ca::{Authority, Issued, RENEW_BEFORE, VALIDITY};
pub use error::{Code, Error, Result};
pub use identity::{Identity, Kind};
pub use network::{Dialling, Io, Network, Tcp};
pub use stream::Stream;
pub use tls::{Alpn, Expect, Files, Tls, connect_plain, machine_roots};
