use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::{
    Alpn, Error, Identity, Result, Stream, Tls,
    tls::{by_record, peer_identity},
};

/// The first byte of every TLS connection: the record type "handshake" (RFC 8446, 5.1). Neither HTTP/1 nor
/// the HTTP/2 preface begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a listener does with peers that do not speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plaintext {
    /// None is served.
    Refuse,
    /// Served if they come from a loopback address: local mode. Whatever forwards to the port on this machine
    /// is then trusted too.
    Loopback,
}

/// How a peer is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Mutual TLS, identity verified.
    Mtls,
    /// Plaintext from loopback, served by [`Plaintext::Loopback`].
    Plaintext,
    /// Plaintext that must not be served. The stream is open so that the server can answer each call with the
    /// refusal of [`crate::access::check`] instead of a silent reset.
    PlaintextRefused,
}

/// Who is at the other end of an accepted connection: made to be attached to each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Some if and only if `transport` is [`Transport::Mtls`].
    pub identity: Option<Identity>,
    pub transport: Transport,
    pub addr: SocketAddr,
}

/// Turns accepted sockets into streams with a known peer, TLS and plaintext on one port.
#[derive(Debug, Clone)]
pub struct Acceptor {
    tls: Tls,
    alpn: Alpn,
    plaintext: Plaintext,
}

impl Acceptor {
    pub(crate) fn new(tls: Tls, alpn: Alpn, plaintext: Plaintext) -> Self {
        Self { tls, alpn, plaintext }
    }

    /// Peeks the first byte and does the handshake if it is TLS. Waits for the peer without bound: the caller
    /// sets the time-out, and runs each call in a task of its own.
    ///
    /// Errors: [`Error::Closed`] (not worth a warning), [`Error::Handshake`], [`Error::NoIdentity`]. Each
    /// concerns this one connection.
    pub async fn accept(&self, tcp: TcpStream) -> Result<(Stream, Peer)> {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let addr = tcp.peer_addr().map_err(|_| Error::Closed { addr: unknown })?;
        let closed = |_| Error::Closed { addr };
        tcp.set_nodelay(true).map_err(closed)?;
        let mut first = [0];
        if tcp.peek(&mut first).await.map_err(closed)? == 0 {
            return Err(Error::Closed { addr });
        }
        if first[0] != TLS_HANDSHAKE {
            let transport = match self.plaintext {
                Plaintext::Loopback if addr.ip().to_canonical().is_loopback() => Transport::Plaintext,
                _ => Transport::PlaintextRefused,
            };
            return Ok((Stream::Plain(Box::new(tcp)), Peer { identity: None, transport, addr }));
        }
        let acceptor = TlsAcceptor::from(self.tls.server(self.alpn));
        let stream = acceptor.accept(by_record(tcp)).await.map_err(|e| Error::handshake(addr, &e))?;
        let identity = peer_identity(stream.get_ref().1.peer_certificates())?;
        let peer = Peer { identity: Some(identity), transport: Transport::Mtls, addr };
        Ok((Stream::Tls(Box::new(stream.into())), peer))
    }
}

#[cfg(test)]
mod tests;
