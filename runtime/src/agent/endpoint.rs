//! Where an agent is reached: `host:port`, or a URL if it is reached by HTTP.

use http::Uri;

use super::{Invalid, Transport, invalid};

/// The longest URL, in bytes.
const MAX_URL: usize = 1024;

/// The endpoint of an agent that is reached by HTTP: `http(s)://host[:port][/base]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub secure: bool,
    /// `host:port`, to be dialled; the scheme's port where the URL names none.
    pub address: String,
    /// `host[:port]`, as the URL has it.
    pub authority: String,
    /// What the agent's own paths follow: empty, or `/` and more, without a last `/`.
    pub base: String,
}

impl Url {
    /// Reads an endpoint; what is wrong with it is said as the rest of a sentence about it.
    ///
    /// # Errors
    /// Anything but a scheme, a host, and perhaps a port and a path.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        if url.len() > MAX_URL {
            return Err("is longer than 1024 bytes");
        }
        let uri: Uri = url.parse().map_err(|_| "is not a URL")?;
        let (secure, port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return Err("is neither an http nor an https URL"),
        };
        let authority = uri.authority().ok_or("names no host")?;
        if authority.as_str().contains('@') {
            return Err("carries a user's name or password");
        }
        // The parser drops a fragment.
        if uri.query().is_some() || url.contains(['?', '#']) {
            return Err("has a query or a fragment");
        }
        let (host, named) = (authority.host(), authority.port_u16());
        match named {
            _ if host.is_empty() => return Err("names no host"),
            Some(0) => return Err("names port 0"),
            None if authority.as_str() != host => return Err("names no port that is a number up to 65535"),
            _ => {}
        }
        Ok(Self {
            secure,
            address: format!("{host}:{}", named.unwrap_or(port)),
            authority: authority.to_string(),
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// Whether `host` or `host:port` names this machine by a loopback name, or all of its addresses.
#[must_use]
pub fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|ip| ip.to_canonical().is_loopback() || ip.is_unspecified())
}

/// How the agent at `endpoint` is dialled: `way`, in which it registered, unless the endpoint is a URL.
pub(super) fn check(endpoint: &str, way: Transport) -> Result<Transport, Invalid> {
    let problem = |why: &str, cure: &str| {
        Err(invalid("agent.endpoint", format!("\"{}\" {why}; {cure}", endpoint.escape_debug())))
    };
    let foreign = "is not on this machine, where alone plaintext may go";
    if endpoint.contains("://") || matches!(way, Transport::Http | Transport::Https) {
        let cure = "give http://host:port/base or https://host/base, or host:port of a gRPC server";
        return match (Url::parse(endpoint), way) {
            (Err(why), _) => problem(why, cure),
            (Ok(_), Transport::Gateway) => problem("is a URL", "agents behind the gateway have none"),
            (Ok(url), _) if url.secure => Ok(Transport::Https),
            (Ok(_), Transport::Mtls | Transport::Https) => problem(
                "is plain HTTP, which only agents that register in plaintext on this machine may use",
                "give an https URL",
            ),
            (Ok(url), _) if !is_loopback(&url.address) => problem(foreign, "give an https URL"),
            (Ok(_), _) => Ok(Transport::Http),
        };
    }
    let cure = "give host:port, such as 127.0.0.1:50100";
    let Ok(authority) = endpoint.parse::<http::uri::Authority>() else {
        return problem("is not host:port", cure);
    };
    match authority.port_u16() {
        Some(1..) if way == Transport::Plaintext && !is_loopback(endpoint) => {
            problem(foreign, "register over mTLS")
        }
        Some(1..) if !authority.host().is_empty() && !endpoint.contains('@') => Ok(way),
        Some(0) => problem("names port 0", cure),
        _ => problem("names no port", cure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_stays_on_this_machine() {
        for near in ["localhost:1", "127.0.0.1:1", "[::1]:1", "0.0.0.0:1"] {
            assert_eq!(check(near, Transport::Plaintext), Ok(Transport::Plaintext), "{near}");
            let url = format!("http://{near}/base");
            assert_eq!(check(&url, Transport::Plaintext), Ok(Transport::Http), "{near}");
            assert!(check(&url, Transport::Mtls).is_err(), "{near}");
        }
        for far in ["192.0.2.2:1", "example.org:1", "localhost.example.org:1"] {
            assert!(check(far, Transport::Plaintext).is_err(), "{far}");
            assert_eq!(check(far, Transport::Mtls), Ok(Transport::Mtls), "{far}");
            for way in [Transport::Plaintext, Transport::Mtls, Transport::Http] {
                assert!(check(&format!("http://{far}"), way).is_err(), "{far}");
                assert_eq!(check(&format!("https://{far}"), way), Ok(Transport::Https), "{far}");
            }
        }
    }

    #[test]
    fn a_url_is_scheme_host_and_perhaps_port_and_path() {
        let url = Url::parse("https://agents.example/a/b/").unwrap();
        let expected = ("agents.example:443", "agents.example", "/a/b");
        assert_eq!((url.address.as_str(), url.authority.as_str(), url.base.as_str()), expected);
        let url = Url::parse("http://[::1]:7001").unwrap();
        assert_eq!((url.address.as_str(), url.base.as_str(), url.secure), ("[::1]:7001", "", false));
        for (wrong, why) in [
            ("ftp://h:1/", "is neither"),
            ("https://user:secret@h/", "carries a user's name"),
            ("https://h/?q=1", "has a query"),
            ("https://h/#part", "has a query or a fragment"),
            ("https://h:0/", "names port 0"),
            ("https://h:70000/", "names no port"),
            ("https:///path", "is not a URL"),
            ("https://h h/", "is not a URL"),
        ] {
            let problem = check(wrong, Transport::Mtls).unwrap_err().problem;
            assert!(problem.starts_with(&format!("\"{wrong}\" {why}")), "{problem}");
        }
        assert!(check("h:1", Transport::Http).is_err(), "no control plane would say so");
        assert!(check("https://h/", Transport::Gateway).is_err());
    }
}
