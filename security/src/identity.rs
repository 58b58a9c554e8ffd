use std::{fmt, str::FromStr};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{Error, Result};

const SCHEME: &str = "spiffe://parallax/";
/// Longest tenant or id in bytes, so that a file can be named after an identity.
const MAX_SEGMENT: usize = 100;

/// The role of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ControlPlane,
    DataPlane,
    Agent,
    /// A person, CI or another client: the CLI presents this.
    Operator,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::ControlPlane, Self::DataPlane, Self::Agent, Self::Operator];

    /// The kind as it stands in an identity.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::DataPlane => "data-plane",
            Self::Agent => "agent",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A process's name: `spiffe://parallax/<tenant>/<kind>/<id>`, after the
/// [SPIFFE-ID](https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md) standard with the fixed
/// trust domain `parallax`.
///
/// `tenant` and `id` are 1 to 100 of `a-z A-Z 0-9 . - _`, but neither `.` nor `..`. The fields are public for
/// reading; build one with [`Identity::new`] or by parsing, which check them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Identity {
    pub tenant: String,
    pub kind: Kind,
    pub id: String,
}

impl Identity {
    /// Checks both segments. Errors: [`Error::Identity`].
    pub fn new(tenant: impl Into<String>, kind: Kind, id: impl Into<String>) -> Result<Self> {
        let identity = Self { tenant: tenant.into(), kind, id: id.into() };
        for (what, segment) in [("tenant", &identity.tenant), ("id", &identity.id)] {
            check_segment(what, segment)
                .map_err(|reason| Error::Identity { value: identity.to_string(), reason })?;
        }
        Ok(identity)
    }

    /// The identity in a certificate's one URI name, as SPIFFE's X.509-SVID demands. The certificate itself
    /// is not verified here. Errors: [`Error::NoIdentity`].
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self> {
        let missing = |reason: String| Error::NoIdentity { reason };
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| missing(e.to_string()))?;
        let names = parsed.subject_alternative_name().map_err(|e| missing(e.to_string()))?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse().map_err(|e: Error| missing(e.to_string())),
            (Some(_), Some(_)) => Err(missing("it has more than one URI name".to_owned())),
            (None, _) => Err(missing(format!("it has no URI name (subject {})", parsed.subject()))),
        }
    }
}

fn check_segment(what: &str, segment: &str) -> std::result::Result<(), String> {
    if segment.is_empty() {
        return Err(format!("its {what} is empty"));
    }
    if segment.len() > MAX_SEGMENT {
        return Err(format!("its {what} has {} bytes, at most {MAX_SEGMENT} are allowed", segment.len()));
    }
    if let Some(bad) = segment.chars().find(|c| !(c.is_ascii_alphanumeric() || ".-_".contains(*c))) {
        return Err(format!("its {what} contains {bad:?}, allowed are a-z A-Z 0-9 . - _"));
    }
    if matches!(segment, "." | "..") {
        return Err(format!("its {what} is {segment:?}"));
    }
    Ok(())
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.tenant, self.kind, self.id)
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        let fail = |reason: &str| Error::Identity { value: value.to_owned(), reason: reason.to_owned() };
        let path =
            value.strip_prefix(SCHEME).ok_or_else(|| fail("it does not begin with spiffe://parallax/"))?;
        let segments: Vec<&str> = path.split('/').collect();
        let [tenant, kind, id] = segments[..] else {
            return Err(fail(&format!("its path has {} segments instead of 3", segments.len())));
        };
        let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind).ok_or_else(|| {
            fail(&format!("its kind is {kind:?}, not one of control-plane, data-plane, agent, operator"))
        })?;
        Self::new(tenant, kind, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_parses_back() {
        for kind in Kind::ALL {
            let identity = Identity::new("default", kind, "a.B-9_z").unwrap();
            assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        }
        let identity = Identity::new("acme", Kind::DataPlane, "node-1").unwrap();
        assert_eq!(identity.to_string(), "spiffe://parallax/acme/data-plane/node-1");
    }

    #[test]
    fn a_bad_name_is_refused_and_quoted() {
        let long = format!("spiffe://parallax/{}/agent/x", "t".repeat(101));
        for (value, reason) in [
            ("https://parallax/a/agent/x", "does not begin with"),
            ("spiffe://other/a/agent/x", "does not begin with"),
            ("spiffe://parallax/a/agent", "has 2 segments"),
            ("spiffe://parallax/a/agent/x/y", "has 4 segments"),
            ("spiffe://parallax/a/robot/x", "its kind is \"robot\""),
            ("spiffe://parallax//agent/x", "tenant is empty"),
            ("spiffe://parallax/a/agent/", "id is empty"),
            ("spiffe://parallax/a/agent/..", "id is \"..\""),
            ("spiffe://parallax/a b/agent/x", "tenant contains ' '"),
            ("spiffe://parallax/a/agent/ü", "id contains 'ü'"),
            (long.as_str(), "tenant has 101 bytes"),
        ] {
            let error = value.parse::<Identity>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(value), "{error}");
        }
    }
}
