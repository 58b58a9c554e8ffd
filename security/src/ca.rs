use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    Error, Files, Identity, Result, file,
    tls::{check_time, load_certificates},
};

/// How long an issued certificate is valid: 30 days. Short enough that a stolen one dies soon without
/// revocation lists, long enough that a cluster survives weeks in which nothing renews.
pub const VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);
/// [`Authority::bundle`] issues anew when less than this is left: 10 days, a third of [`VALIDITY`]. A process
/// that calls it and [`crate::Tls::reload`] once a day has ten attempts before anything expires.
pub const RENEW_BEFORE: Duration = Duration::from_secs(10 * 24 * 3600);

const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates begin this long before they are made, for peers whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(3600);

/// The embedded certificate authority: `ca.crt` and `ca.key` (ECDSA P-256, ten years) in one directory.
///
/// Whoever can read the key can be anybody in the cluster: the key has mode 0600, its directory 0700.
pub struct Authority {
    certificate: PathBuf,
    expires_at: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, PEM.
pub struct Issued {
    pub cert_pem: String,
    pub key_pem: String,
}

impl Authority {
    /// Loads the authority in `dir`, or creates it. Of several concurrent creators one creates, the others
    /// load. Errors: the directory is not writable, a file is missing its partner or is damaged, the
    /// authority has expired.
    pub fn open(dir: &Path, now: SystemTime) -> Result<Self> {
        let (certificate, key) = paths(dir);
        if !certificate.exists() {
            file::create_dir(dir)?;
            let _lock = file::lock(dir)?;
            if !certificate.exists() {
                create(&certificate, &key, now)?;
            }
        }
        Self::load(certificate, &key, now)
    }

    /// Loads the authority in `dir` and never creates one: for clients, which must use the server's.
    /// Errors: as [`Authority::open`], and [`Error::Missing`].
    pub fn open_existing(dir: &Path, now: SystemTime) -> Result<Self> {
        let (certificate, key) = paths(dir);
        Self::load(certificate, &key, now)
    }

    fn load(certificate: PathBuf, key: &Path, now: SystemTime) -> Result<Self> {
        let chain = load_certificates("authority certificate", &certificate)?;
        let expires_at = check_time(&chain[0], &certificate, now)?;
        let broken = |what, path: &Path, reason: String| Error::Pem { what, path: path.to_owned(), reason };
        let (_, parsed) = X509Certificate::from_der(&chain[0])
            .map_err(|e| broken("authority certificate", &certificate, e.to_string()))?;
        let key_pem = String::from_utf8(file::read("authority key", key)?)
            .map_err(|e| broken("private key", key, e.to_string()))?;
        let pair = KeyPair::from_pem(&key_pem).map_err(|e| broken("private key", key, e.to_string()))?;
        if parsed.public_key().subject_public_key.data != pair.der_bytes() {
            return Err(Error::KeyMismatch { cert: certificate, key: key.to_owned() });
        }
        let issuer = Issuer::from_ca_cert_der(&chain[0], pair)
            .map_err(|e| broken("authority certificate", &certificate, e.to_string()))?;
        Ok(Self { certificate, expires_at, issuer })
    }

    /// The path of the authority's own certificate, which peers need in order to trust it.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// When the authority itself expires.
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// A new key and a certificate for it, valid for [`VALIDITY`], usable as server and as client. Its names
    /// are the identity (by which Parallax processes know each other) and `localhost`, `127.0.0.1`, `::1` and
    /// `extra_names` (DNS names or IP addresses) for foreign clients that check the host name.
    /// Errors: [`Error::Issue`] names a bad extra name.
    pub fn issue(&self, identity: &Identity, extra_names: &[String], now: SystemTime) -> Result<Issued> {
        let fail = |reason: String| Error::Issue { name: identity.to_string(), reason };
        let mut params = CertificateParams::default();
        params.subject_alt_names = subject_names(identity, extra_names).map_err(fail)?;
        params.distinguished_name = common_name(&format!("{} {}", identity.kind, identity.id));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from((now + VALIDITY).min(self.expires_at));
        let key = KeyPair::generate().map_err(|e| fail(e.to_string()))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|e| fail(e.to_string()))?;
        Ok(Issued { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// The files with which `identity` runs, kept in `dir`: those that are there while they are good for it,
    /// signed by this authority and have [`RENEW_BEFORE`] left, else new ones.
    ///
    /// Certificate and key stand in one file (`Files::cert == Files::key`, mode 0600) that is replaced by a
    /// rename, so no reader ever sees one without the other. `Files::ca` is the authority's own certificate.
    /// Errors: as [`Authority::issue`], and `dir` not writable.
    pub fn bundle(&self, identity: &Identity, dir: &Path, now: SystemTime) -> Result<Files> {
        let name = format!("{}@{}@{}.pem", identity.kind, identity.tenant, identity.id);
        let path = dir.join(name);
        let files = Files { ca: self.certificate.clone(), cert: path.clone(), key: path.clone() };
        if !self.is_fresh(&files, identity, now) {
            file::create_dir(dir)?;
            let _lock = file::lock(dir)?;
            if !self.is_fresh(&files, identity, now) {
                let issued = self.issue(identity, &[], now)?;
                file::replace(&path, &format!("{}{}", issued.cert_pem, issued.key_pem), 0o600)?;
            }
        }
        Ok(files)
    }

    fn is_fresh(&self, files: &Files, identity: &Identity, now: SystemTime) -> bool {
        crate::Tls::load(files.clone(), now).is_ok_and(|tls| {
            tls.identity() == *identity
                && (tls.expires_at() >= now + RENEW_BEFORE || tls.expires_at() == self.expires_at)
        })
    }
}

fn paths(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("ca.crt"), dir.join("ca.key"))
}

/// The key is written first, and one that is there is used: a creator that dies in between leaves a key
/// without a certificate, which the next one completes. A certificate is never there without its key.
fn create(certificate: &Path, key: &Path, now: SystemTime) -> Result<()> {
    let fail =
        |e: rcgen::Error| Error::Issue { name: certificate.display().to_string(), reason: e.to_string() };
    let pair = if key.exists() {
        let pem = String::from_utf8_lossy(&file::read("authority key", key)?).into_owned();
        KeyPair::from_pem(&pem).map_err(|e| Error::Pem {
            what: "private key",
            path: key.to_owned(),
            reason: e.to_string(),
        })?
    } else {
        let pair = KeyPair::generate().map_err(fail)?;
        file::replace(key, &pair.serialize_pem(), 0o600)?;
        pair
    };
    let mut params = CertificateParams::default();
    // Authorities differ in name too, so that a certificate of another one is told apart from a forged one.
    let mark: String = params.key_identifier(&pair).iter().take(4).map(|b| format!("{b:02x}")).collect();
    params.distinguished_name = common_name(&format!("Parallax authority {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + CA_VALIDITY);
    let signed = params.self_signed(&pair).map_err(fail)?;
    file::replace(certificate, &signed.pem(), 0o644)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    // X.520 ends a common name at 64 characters; identities are longer and ASCII.
    distinguished.push(DnType::CommonName, &name[..name.len().min(64)]);
    distinguished
}

fn subject_names(identity: &Identity, extra: &[String]) -> std::result::Result<Vec<SanType>, String> {
    let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let uri = identity.to_string().try_into().map_err(|e: rcgen::Error| e.to_string())?;
    let mut names = vec![SanType::URI(uri)];
    for name in local.iter().chain(extra) {
        let san = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if is_dns_name(name) => {
                SanType::DnsName(name.as_str().try_into().map_err(|e: rcgen::Error| e.to_string())?)
            }
            Err(_) => return Err(format!("the extra name {name:?} is neither a DNS name nor an IP address")),
        };
        if !names.contains(&san) {
            names.push(san);
        }
    }
    Ok(names)
}

fn is_dns_name(name: &str) -> bool {
    // A wildcard is a name in a certificate, though not in a connection.
    rustls::pki_types::DnsName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok()
}

#[cfg(test)]
mod tests;
