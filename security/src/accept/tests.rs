use std::{fs, sync::Arc};

use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    Code, Expect, Kind, Tcp, connect_plain,
    fixture::{Cluster, days, identity, now},
};

/// A listener that takes one connection at a time.
struct Port {
    listener: TcpListener,
    acceptor: Acceptor,
    addr: String,
}

impl Port {
    async fn new(tls: &Tls, alpn: Alpn, plaintext: Plaintext) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        Self { listener, acceptor: tls.acceptor(alpn, plaintext), addr }
    }

    async fn grpc(tls: &Tls) -> Self {
        Self::new(tls, Alpn::Grpc, Plaintext::Refuse).await
    }

    async fn accept(&self) -> Result<(Stream, Peer)> {
        self.acceptor.accept(self.listener.accept().await.unwrap().0).await
    }

    /// Both ends of a connection by `client`.
    async fn join(&self, client: &Tls, expect: Expect) -> (Result<(Stream, Peer)>, Result<Stream>) {
        tokio::join!(self.accept(), client.connect(&Tcp, &self.addr, &expect))
    }

    /// What a foreign TLS client, which knows the authority and checks the host name, gets.
    async fn foreign(&self, config: ClientConfig) -> (Result<(Stream, Peer)>, std::io::Result<usize>) {
        tokio::join!(self.accept(), async {
            let tcp = TcpStream::connect(&self.addr).await?;
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
            // TLS 1.3: the server's refusal shows at the first read.
            stream.read(&mut [0]).await
        })
    }
}

fn foreign_config(
    cluster: &Cluster,
    own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cluster.authority.certificate()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
    }
}

fn operator_pem(cluster: &Cluster) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let issued = cluster.authority.issue(&identity(Kind::Operator), &[], now()).unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
    (certificate, PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap())
}

async fn echo(from: &mut Stream, to: &mut Stream) {
    let mut buffer = [0; 4];
    from.write_all(b"ping").await.unwrap();
    from.flush().await.unwrap();
    to.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ping");
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let cluster = Cluster::new();
    let port = Port::grpc(&cluster.tls(Kind::ControlPlane, days(0))).await;
    let client = cluster.tls(Kind::DataPlane, days(0));
    let expectations = [
        Expect::kind(Kind::ControlPlane),
        Expect::Kind { tenant: Some("default".to_owned()), kind: Kind::ControlPlane },
        Expect::Identity(identity(Kind::ControlPlane)),
    ];
    for expect in expectations {
        let (accepted, connected) = port.join(&client, expect).await;
        let ((mut server, peer), mut client) = (accepted.unwrap(), connected.unwrap());
        assert_eq!(peer.identity, Some(identity(Kind::DataPlane)));
        assert_eq!(peer.transport, Transport::Mtls);
        assert_eq!(client.peer_identity(), Some(identity(Kind::ControlPlane)));
        assert_eq!((client.alpn(), server.alpn()), (Some(&b"h2"[..]), Some(&b"h2"[..])));
        assert!(client.is_write_vectored() && server.is_write_vectored());
        echo(&mut client, &mut server).await;
        echo(&mut server, &mut client).await;
    }
}

#[tokio::test]
async fn another_authority_is_refused_by_both() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let port = Port::grpc(&ours.tls(Kind::ControlPlane, days(0))).await;
    let stranger = theirs.tls(Kind::Operator, days(0));
    let (accepted, connected) = port.join(&stranger, Expect::kind(Kind::ControlPlane)).await;
    let error = connected.unwrap_err();
    assert_eq!(error.code(), Code::Refused);
    assert!(error.to_string().contains("signed by another authority"), "{error}");
    assert!(error.to_string().contains(&port.addr), "{error}");
    assert!(accepted.unwrap_err().to_string().contains("TLS handshake with 127.0.0.1:"));

    // One that trusts our authority but is not of it gets as far as the server's check.
    let (certificate, key) = operator_pem(&theirs);
    let (accepted, answer) = port.foreign(foreign_config(&ours, Some((certificate, key)))).await;
    let error = accepted.unwrap_err();
    assert_eq!(error.code(), Code::Refused);
    assert!(error.to_string().contains("signed by another authority"), "{error}");
    assert!(answer.is_err());
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let cluster = Cluster::new();
    let port = Port::grpc(&cluster.tls(Kind::ControlPlane, days(0))).await;
    let (accepted, answer) = port.foreign(foreign_config(&cluster, None)).await;
    let error = accepted.unwrap_err();
    assert!(error.to_string().contains("the peer presented no certificate"), "{error}");
    assert!(answer.is_err());
}

#[tokio::test]
async fn a_certificate_without_identity_is_refused() {
    let cluster = Cluster::new();
    let port = Port::grpc(&cluster.tls(Kind::ControlPlane, days(0))).await;
    let pem = |path: &str| fs::read_to_string(cluster.path().join(path)).unwrap();
    let issuer =
        Issuer::from_ca_cert_pem(&pem("ca/ca.crt"), KeyPair::from_pem(&pem("ca/ca.key")).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let nameless =
        CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let own = (nameless.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap());
    let (accepted, _) = port.foreign(foreign_config(&cluster, Some(own))).await;
    let error = accepted.unwrap_err();
    assert!(matches!(error, Error::NoIdentity { .. }), "{error}");
}

#[tokio::test]
async fn a_foreign_client_may_check_the_host_name() {
    let cluster = Cluster::new();
    let tls = cluster.tls(Kind::ControlPlane, days(0));
    for (alpn, offered, agreed) in [
        (Alpn::Grpc, &["h2"][..], Some("h2")),
        (Alpn::Http, &["h2", "http/1.1"], Some("h2")),
        (Alpn::Http, &["http/1.1"], Some("http/1.1")),
        (Alpn::Grpc, &["http/1.1"], None),
    ] {
        let port = Port::new(&tls, alpn, Plaintext::Refuse).await;
        let mut config = foreign_config(&cluster, Some(operator_pem(&cluster)));
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let ask = async {
            let tcp = TcpStream::connect(&port.addr).await?;
            let name = ServerName::try_from("localhost").unwrap();
            TlsConnector::from(Arc::new(config)).connect(name, tcp).await
        };
        let (served, asked) = tokio::join!(port.accept(), ask);
        match agreed {
            Some(agreed) => {
                let (served, peer) = served.unwrap();
                assert_eq!(served.alpn(), Some(agreed.as_bytes()));
                assert_eq!(asked.unwrap().get_ref().1.alpn_protocol(), Some(agreed.as_bytes()));
                assert_eq!(peer.identity, Some(identity(Kind::Operator)));
            }
            None => assert!(asked.is_err() && served.is_err()),
        }
    }
}

#[tokio::test]
async fn a_peer_that_is_someone_else_is_refused() {
    let cluster = Cluster::new();
    let port = Port::grpc(&cluster.tls(Kind::Agent, days(0))).await;
    let client = cluster.tls(Kind::DataPlane, days(0));
    let other = Identity::new("default", Kind::Agent, "two").unwrap();
    for (expect, named) in [
        (Expect::Identity(other), "spiffe://parallax/default/agent/two"),
        (Expect::kind(Kind::ControlPlane), "spiffe://parallax/*/control-plane/*"),
        (
            Expect::Kind { tenant: Some("acme".to_owned()), kind: Kind::Agent },
            "spiffe://parallax/acme/agent/*",
        ),
    ] {
        let (_, connected) = port.join(&client, expect).await;
        let error = connected.unwrap_err();
        assert_eq!(error.code(), Code::Refused);
        let text = error.to_string();
        assert!(text.contains(named) && text.contains("spiffe://parallax/default/agent/one"), "{text}");
    }
}

#[tokio::test]
async fn an_expired_peer_is_refused() {
    let cluster = Cluster::new();
    let (old, new) = (cluster.tls(Kind::Agent, days(40)), cluster.tls(Kind::ControlPlane, days(0)));
    let (_, connected) = Port::grpc(&old).await.join(&new, Expect::kind(Kind::Agent)).await;
    let error = connected.unwrap_err().to_string();
    assert!(error.contains("the peer's certificate has expired"), "{error}");
    let (accepted, _) = Port::grpc(&new).await.join(&old, Expect::kind(Kind::ControlPlane)).await;
    let error = accepted.unwrap_err().to_string();
    assert!(error.contains("the peer's certificate has expired"), "{error}");
}

#[tokio::test]
async fn plaintext_is_a_matter_of_policy() {
    let cluster = Cluster::new();
    let tls = cluster.tls(Kind::ControlPlane, days(0));
    for (policy, transport) in
        [(Plaintext::Loopback, Transport::Plaintext), (Plaintext::Refuse, Transport::PlaintextRefused)]
    {
        let port = Port::new(&tls, Alpn::Grpc, policy).await;
        let (accepted, connected) = tokio::join!(port.accept(), async {
            let mut stream = connect_plain(&Tcp, &port.addr).await.unwrap();
            stream.write_all(b"ping").await.unwrap();
            stream
        });
        let ((mut server, peer), mut client) = (accepted.unwrap(), connected);
        assert_eq!((peer.transport, &peer.identity), (transport, &None));
        let mut first = [0; 4];
        server.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"ping", "the peeked byte is still there");
        echo(&mut server, &mut client).await;

        // The same port serves TLS.
        let (accepted, connected) =
            port.join(&cluster.tls(Kind::Agent, days(0)), Expect::kind(Kind::ControlPlane)).await;
        assert_eq!(accepted.unwrap().1.transport, Transport::Mtls);
        connected.unwrap();
    }
}

#[tokio::test]
async fn noise_concerns_its_own_connection_only() {
    let cluster = Cluster::new();
    let port = Port::grpc(&cluster.tls(Kind::ControlPlane, days(0))).await;
    drop(TcpStream::connect(&port.addr).await.unwrap());
    assert!(matches!(port.accept().await, Err(Error::Closed { .. })));

    let mut noise = TcpStream::connect(&port.addr).await.unwrap();
    noise.write_all(&[0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    assert!(matches!(port.accept().await, Err(Error::Handshake { .. })));

    let mut torn = TcpStream::connect(&port.addr).await.unwrap();
    torn.write_all(&[0x16, 0x03]).await.unwrap();
    drop(torn);
    let error = port.accept().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}

#[tokio::test]
async fn certificates_change_under_a_live_acceptor() {
    let cluster = Cluster::new();
    let tls = cluster.tls(Kind::ControlPlane, days(25));
    let port = Port::grpc(&tls).await;
    let client = cluster.tls(Kind::DataPlane, days(0));
    let leaf = |stream: &Stream| match stream {
        Stream::Tls(stream) => stream.get_ref().1.peer_certificates().unwrap()[0].to_vec(),
        Stream::Plain(_) => unreachable!(),
    };
    let connect = async || {
        let (accepted, connected) = port.join(&client, Expect::kind(Kind::ControlPlane)).await;
        (accepted.unwrap().0, connected.unwrap())
    };
    let (mut old_server, mut old_client) = connect().await;
    let expiry = tls.expires_at();

    cluster.files(Kind::ControlPlane, days(0));
    assert!(tls.reload(now()).unwrap());
    assert!(tls.expires_at() > expiry + days(24));
    let (_, new_client) = connect().await;
    assert_ne!(leaf(&new_client), leaf(&old_client));
    echo(&mut old_client, &mut old_server).await;

    fs::write(&tls.files().cert, "garbage").unwrap();
    let error = tls.reload(now()).unwrap_err().to_string();
    assert!(error.contains(tls.files().cert.to_str().unwrap()), "{error}");
    let (_, still) = connect().await;
    assert_eq!(leaf(&still), leaf(&new_client));
}
