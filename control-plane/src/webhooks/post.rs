//! One request to a stranger's server.

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use ::http::{Request, Uri, header};
use bytes::Bytes;
use futures::future::{Either, select};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use parallax_runtime::env::Env;
use parallax_security::{Io, machine_roots};
use tokio::sync::Semaphore;
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tracing::warn;

/// How long a receiver may take in all: to be found, to connect, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests in flight at once.
const AT_ONCE: usize = 64;

/// Posts, and follows no redirect; nothing of an answer is read but its status.
pub(super) struct Post {
    env: Arc<dyn Env>,
    private: bool,
    tls: OnceLock<TlsConnector>,
    at_once: Semaphore,
}

impl Post {
    pub(super) fn new(env: Arc<dyn Env>, private: bool) -> Self {
        Self { env, private, tls: OnceLock::new(), at_once: Semaphore::new(AT_ONCE) }
    }

    /// Whether a webhook may be sent to an address.
    pub(super) fn may_reach(&self, ip: IpAddr) -> bool {
        may_reach(ip, self.private)
    }

    /// # Errors
    /// An address that may not be spoken to, no connection, an answer that is no success, none in time; in words.
    pub(super) async fn send(
        &self,
        url: &Uri,
        headers: &[(&'static str, String)],
        body: &[u8],
    ) -> Result<(), String> {
        let _turn = self.at_once.acquire().await.expect("never closed");
        let sent = tokio::time::timeout(PATIENCE, self.try_send(url, headers, body)).await;
        sent.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    }

    async fn try_send(
        &self,
        url: &Uri,
        headers: &[(&'static str, String)],
        body: &[u8],
    ) -> Result<(), String> {
        let text = |e: &dyn std::error::Error| e.to_string();
        let authority = url.authority().ok_or("the URL has no host")?;
        let host = authority.host().trim_matches(['[', ']']);
        let secure = url.scheme_str() == Some("https");
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let found = tokio::net::lookup_host((host, port)).await.map_err(|e| format!("{host}: {e}"))?;
        // The address that was looked at is the one that is dialled: the name is not resolved again.
        let addr: SocketAddr = { found }
            .find(|addr| self.may_reach(addr.ip()))
            .ok_or_else(|| format!("{host} leads to no address that webhooks may be sent to"))?;
        let stream = self.env.dial(&addr.to_string()).await.map_err(|e| format!("{addr}: {e}"))?;
        let stream: Box<dyn Io> = if secure {
            let name = ServerName::try_from(host.to_owned()).map_err(|e| text(&e))?;
            let stream = self.tls().connect(name, stream).await;
            Box::new(stream.map_err(|e| format!("TLS with {host}: {e}"))?)
        } else {
            stream
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut requests, connection) = handshake.map_err(|e| text(&e))?;
        let mut request = Request::post(url.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, authority.as_str())
            .header(header::USER_AGENT, concat!("parallax/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).map_err(|e| text(&e))?;
        let response = match select(pin!(requests.send_request(request)), pin!(connection)).await {
            Either::Left((response, _)) => response,
            // Closed, with or without an answer.
            Either::Right((_, response)) => response.await,
        };
        let status = response.map_err(|e| text(&e))?.status();
        if status.is_success() { Ok(()) } else { Err(format!("{host} answered {status}")) }
    }

    /// Trusts what the machine trusts.
    fn tls(&self) -> &TlsConnector {
        self.tls.get_or_init(|| {
            let (roots, errors) = machine_roots();
            for e in &errors {
                warn!("a certificate authority of this machine cannot be read: {e}");
            }
            let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("ring speaks TLS 1.2 and 1.3")
                .with_root_certificates(roots)
                .with_no_client_auth();
            TlsConnector::from(Arc::new(config))
        })
    }
}

/// Never to where clouds keep their machines' credentials (link-local), nor
/// to groups; to this machine and to private networks if `private` says so.
fn may_reach(ip: IpAddr, private: bool) -> bool {
    let (never, own) = match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            let never = first == 0 || first >= 224 || ip.is_link_local();
            // 100.64/10 is RFC 6598's.
            (never, ip.is_loopback() || ip.is_private() || (first == 100 && second & 0xc0 == 64))
        }
        IpAddr::V6(ip) => {
            let never = ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local();
            (never, ip.is_loopback() || ip.is_unique_local())
        }
    };
    !never && (private || !own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_webhooks_may_go() {
        let may = |ip: &str, private| may_reach(ip.parse().unwrap(), private);
        for public in ["1.1.1.1", "2606:4700::1111", "172.32.0.1"] {
            assert!(may(public, false) && may(public, true), "{public}");
        }
        for own in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "172.16.0.1",
            "100.64.0.1",
            "::1",
            "fd00::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!may(own, false) && may(own, true), "{own}");
        }
        for never in
            ["169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "fe80::1", "ff02::1", "::"]
        {
            assert!(!may(never, true), "{never}");
        }
    }
}
