use std::{result::Result as Verdict, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio_rustls::TlsConnector;

use super::{Tls, chain::ChainVerifier, dial, server_name};
use crate::{Error, Identity, Network, Result, Stream};

/// The authorities that this machine trusts, and what could not be read of them. Blocks on the disk.
pub fn machine_roots() -> (RootCertStore, Vec<String>) {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    (roots, found.errors.iter().map(ToString::to_string).collect())
}

impl Tls {
    /// Connects to a web server at `addr` (`host:port`) over TLS; HTTP/2 was agreed on if the stream's
    /// [`Stream::alpn`] is `h2`, and HTTP/1.1 otherwise. No time-out of its own.
    ///
    /// A server with a certificate of the cluster's authority must be `expect`, wherever it is; any other must
    /// be vouched for by an authority that this machine trusts, under the host's name. One that asks for a
    /// certificate is shown ours.
    ///
    /// Errors: [`Error::Address`], [`Error::Unreachable`], [`Error::Handshake`].
    pub async fn connect_web(&self, network: &dyn Network, addr: &str, expect: &Identity) -> Result<Stream> {
        let machine = self.0.machine.get_or_init(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            WebPkiServerVerifier::builder_with_provider(Arc::new(machine_roots().0), provider).build().ok()
        });
        self.connect_trusting(network, addr, expect, machine.clone()).await
    }

    pub(super) async fn connect_trusting(
        &self,
        network: &dyn Network,
        addr: &str,
        expect: &Identity,
        machine: Option<Arc<WebPkiServerVerifier>>,
    ) -> Result<Stream> {
        let name = server_name(addr)?;
        let io = dial(network, addr).await?;
        let loaded = self.0.current.load_full();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let cluster = ChainVerifier::new(loaded.roots.clone(), &provider);
        let verifier = WebVerifier { cluster, machine, expect: expect.clone() };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::Handshake { addr: addr.into(), reason: e.to_string(), retry: false })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(loaded.own.clone());
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connected = TlsConnector::from(Arc::new(config)).connect(name, io).await;
        Ok(Stream::Tls(Box::new(connected.map_err(|e| Error::handshake(addr, &e))?.into())))
    }
}

/// Takes the one member of the cluster that is expected, or any server that the machine trusts under its name.
#[derive(Debug)]
struct WebVerifier {
    cluster: ChainVerifier,
    machine: Option<Arc<WebPkiServerVerifier>>,
    expect: Identity,
}

impl ServerCertVerifier for WebVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Verdict<ServerCertVerified, TlsError> {
        let foreign = match self.cluster.verify_server_cert(end_entity, intermediates, host, ocsp, now) {
            Ok(verified) => {
                return match Identity::from_certificate(end_entity) {
                    Ok(found) if found == self.expect => Ok(verified),
                    Ok(found) => Err(TlsError::General(format!("{found} is there, not {}", self.expect))),
                    Err(e) => Err(TlsError::General(e.to_string())),
                };
            }
            Err(e) => e,
        };
        let unknown = foreign == TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        match &self.machine {
            Some(machine) => machine
                .verify_server_cert(end_entity, intermediates, host, ocsp, now)
                .map_err(|e| if unknown { e } else { foreign }),
            None => Err(foreign),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Verdict<HandshakeSignatureValid, TlsError> {
        self.cluster.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Verdict<HandshakeSignatureValid, TlsError> {
        self.cluster.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.cluster.supported_verify_schemes()
    }
}
