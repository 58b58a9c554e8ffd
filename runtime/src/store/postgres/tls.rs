//! What a URL's parameters say about TLS.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

/// How a server is told from an impostor, and the client from a stranger.
pub(super) struct Tls {
    /// The authorities that may vouch for the server; none: whoever it is, the line is encrypted.
    roots: Option<PathBuf>,
    /// The client's certificate and its key.
    own: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// `None` when the line stays plain: `sslmode=disable`, or no `sslmode` and every host on this machine.
    pub(super) fn parse(parameters: &[(&str, String)], local: bool) -> Result<Option<Self>, String> {
        let (mut mode, mut roots, mut cert, mut key) = (None, None, None, None);
        for (name, value) in parameters {
            let slot = match *name {
                "sslmode" => &mut mode,
                "sslrootcert" => &mut roots,
                "sslcert" => &mut cert,
                "sslkey" => &mut key,
                _ => {
                    return Err(format!(
                        "has the unknown parameter \"{name}\"; there are sslmode, sslrootcert, sslcert and sslkey"
                    ));
                }
            };
            if slot.replace(value.as_str()).is_some() {
                return Err(format!("has the parameter {name} twice"));
            }
        }
        let given = roots.is_some() || cert.is_some() || key.is_some();
        match (mode, roots) {
            (Some("disable"), _) | (None, _) if !given && (mode.is_some() || local) => return Ok(None),
            (Some("disable"), _) => return Err("has certificates for sslmode=disable".to_owned()),
            (Some("require"), Some(_)) => {
                return Err(
                    "has sslrootcert with sslmode=require, which checks nothing; say verify-full".to_owned()
                );
            }
            (Some("require"), None) | (Some("verify-full") | None, Some(_)) => {}
            (Some("verify-full") | None, None) => {
                return Err(
                    "needs sslrootcert=FILE, the PEM of the authority that vouches for the server (or \
                            sslmode=require, which encrypts but checks nothing, or sslmode=disable)"
                        .to_owned(),
                );
            }
            (Some(other), _) => {
                return Err(format!("has sslmode={other}, which is none of disable, require, verify-full"));
            }
        }
        let own = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (None, None) => None,
            _ => return Err("has one of sslcert and sslkey without the other".to_owned()),
        };
        Ok(Some(Self { roots: roots.map(PathBuf::from), own }))
    }

    /// The files as they are now.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match &self.roots {
            None => Arc::new(Unverified(provider.clone())),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates(file)?);
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(|e| format!("{}: {e}", file.display()))?
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        Ok(Arc::new(match &self.own {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let broken = |e: String| format!("{}: {e}", key.display());
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| broken(e.to_string()))?;
                config
                    .with_client_auth_cert(certificates(cert)?, secret)
                    .map_err(|e| broken(e.to_string()))?
            }
        }))
    }
}

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|e| format!("{}: {e}", file.display()))
}

/// `sslmode=require`: a line that nobody reads along, to whoever is at its end.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
