use std::fs;

use rcgen::{CertificateParams, Issuer, KeyPair};

use super::*;
use crate::Tcp;
use crate::fixture::{Cluster, days, identity, now};

/// An agent's certificate, key and authority as three files.
fn three_files(cluster: &Cluster) -> Files {
    let issued = cluster.authority.issue(&identity(Kind::Agent), &[], now()).unwrap();
    let files = Files {
        ca: cluster.path().join("roots.crt"),
        cert: cluster.path().join("agent.crt"),
        key: cluster.path().join("agent.key"),
    };
    fs::copy(cluster.authority.certificate(), &files.ca).unwrap();
    fs::write(&files.cert, issued.cert_pem).unwrap();
    fs::write(&files.key, issued.key_pem).unwrap();
    files
}

#[test]
fn what_was_loaded_is_shown() {
    let cluster = Cluster::new();
    let tls = Tls::load(three_files(&cluster), now()).unwrap();
    assert_eq!(tls.identity(), identity(Kind::Agent));
    let left = tls.expires_at().duration_since(now()).unwrap();
    assert!(left > days(29) && left <= days(30));
}

#[test]
fn every_bad_file_is_named() {
    let cluster = Cluster::new();
    let other = Cluster::new();
    let good = three_files(&cluster);
    let check = |at: SystemTime, path: &Path, text: &str| {
        let error = Tls::load(good.clone(), at).err().unwrap().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains(text), "{error}");
    };
    let with = |path: &Path, content: &[u8], text: &str| {
        let before = fs::read(path).unwrap();
        fs::write(path, content).unwrap();
        check(now(), path, text);
        fs::write(path, before).unwrap();
    };
    let torn = |path: &Path| {
        let content = fs::read(path).unwrap();
        content[..content.len() / 2].to_vec()
    };

    check(now() + days(31), &good.cert, "expired at");
    check(now() - days(1), &good.cert, "valid only from");
    check(now() + days(3651), &good.ca, "expired at");
    for (path, kind) in
        [(&good.ca, "authority certificate"), (&good.cert, "certificate"), (&good.key, "private key")]
    {
        with(path, b"", &format!("no usable {kind}"));
        with(path, b"\xff\x00not PEM", &format!("no usable {kind}"));
        with(path, &torn(path), &format!("no usable {kind}"));
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).unwrap();
        check(now(), path, &format!("{kind} {} does not exist", path.display()));
        fs::create_dir(path).unwrap();
        check(now(), path, "cannot read");
        fs::remove_dir(path).unwrap();
        fs::rename(&aside, path).unwrap();
    }
    with(&good.key, KeyPair::generate().unwrap().serialize_pem().as_bytes(), "does not belong");
    with(&good.ca, &fs::read(other.authority.certificate()).unwrap(), "is not accepted by the authority");

    let ca_key = KeyPair::from_pem(&fs::read_to_string(cluster.path().join("ca/ca.key")).unwrap()).unwrap();
    let ca_pem = fs::read_to_string(cluster.authority.certificate()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let nameless =
        CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    with(&good.cert, nameless.pem().as_bytes(), "it has no URI name");

    Tls::load(good.clone(), now()).unwrap();
}

#[test]
fn a_reload_swaps_all_or_nothing() {
    let cluster = Cluster::new();
    let files = three_files(&cluster);
    let tls = Tls::load(files.clone(), now()).unwrap();
    let clone = tls.clone();
    assert!(!tls.reload(now()).unwrap(), "nothing has changed");

    let renewed = cluster.authority.issue(&identity(Kind::Operator), &[], now()).unwrap();
    fs::write(&files.cert, &renewed.cert_pem).unwrap();
    let error = tls.reload(now()).unwrap_err();
    assert!(matches!(error, Error::KeyMismatch { .. }), "{error}");
    assert_eq!(tls.identity(), identity(Kind::Agent));

    fs::write(&files.key, &renewed.key_pem).unwrap();
    assert!(tls.reload(now()).unwrap());
    assert!(!tls.reload(now()).unwrap());
    assert_eq!(clone.identity(), identity(Kind::Operator), "clones share the state");

    fs::remove_file(&files.ca).unwrap();
    assert!(matches!(tls.reload(now()), Err(Error::Missing { path, .. }) if path == files.ca));
    assert_eq!(tls.identity(), identity(Kind::Operator));
}

#[tokio::test]
async fn a_bad_address_is_no_network_error() {
    let cluster = Cluster::new();
    let tls = cluster.tls(Kind::Operator, days(0));
    for (addr, reason) in [
        ("localhost", "has no port"),
        ("localhost:http", "port is not a number"),
        ("localhost:70000", "port is not a number"),
        (":50051", "neither a DNS name nor an IP address"),
        ("two words:1", "neither a DNS name nor an IP address"),
    ] {
        let error = tls.connect(&Tcp, addr, &Expect::kind(Kind::Agent)).await.unwrap_err();
        assert_eq!(error.code(), crate::Code::Invalid);
        assert!(error.to_string().contains(reason) && error.to_string().contains(addr), "{error}");
        assert!(connect_plain(&Tcp, addr).await.is_err());
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = tls.connect(&Tcp, &addr, &Expect::kind(Kind::Agent)).await.unwrap_err();
    assert_eq!(error.code(), crate::Code::Unavailable);
    assert!(error.to_string().contains(&addr), "{error}");
}

/// A web server that the cluster's authority does not know, at `localhost` by its certificate, for one connection
/// after the other; its port, and what trusts it.
async fn stranger() -> (u16, Arc<WebPkiServerVerifier>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let (key, issuer) = (KeyPair::generate().unwrap(), Issuer::from_params(&params, ca_key));
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            _ = acceptor.accept(socket).await;
        }
    });
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    (port, WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap())
}

#[tokio::test]
async fn a_web_server_is_trusted_by_the_machine_under_its_name_or_is_the_member_that_is_expected() {
    let cluster = Cluster::new();
    let tls = cluster.tls(Kind::DataPlane, days(0));
    let expect = identity(Kind::Agent);
    let (port, machine) = stranger().await;
    let connect = async |host: &str, machine| {
        tls.connect_trusting(&Tcp, &format!("{host}:{port}"), &expect, machine).await
    };
    let stream = connect("localhost", Some(machine.clone())).await.unwrap();
    assert_eq!(stream.alpn(), Some(&b"http/1.1"[..]));
    for (host, machine, reason) in
        [("127.0.0.1", Some(machine), "not valid for"), ("localhost", None, "signed by another authority")]
    {
        let error = connect(host, machine).await.unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(host), "{error}");
    }

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let acceptor = cluster.tls(Kind::Agent, days(0)).acceptor(Alpn::Http, Plaintext::Refuse);
    let serving = tokio::spawn(async move {
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (socket, _) = listener.accept().await.unwrap();
            seen.push(acceptor.accept(socket).await.ok().and_then(|(_, peer)| peer.identity));
        }
        seen
    });
    let stream = tls.connect_trusting(&Tcp, &addr, &expect, None).await.unwrap();
    assert_eq!((stream.alpn(), stream.peer_identity()), (Some(&b"h2"[..]), Some(expect.clone())));
    drop(stream);
    let other = Identity::new("default", Kind::Agent, "other").unwrap();
    let error = tls.connect_trusting(&Tcp, &addr, &other, None).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{expect} is there, not {other}")), "{error}");
    assert_eq!(serving.await.unwrap(), [Some(identity(Kind::DataPlane)), None], "it is shown who calls");
}
