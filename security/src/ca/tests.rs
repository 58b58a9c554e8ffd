use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Barrier},
    thread,
};

use tempfile::TempDir;

use super::*;
use crate::{
    Kind, Tls,
    fixture::{Cluster, days, identity, now},
};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.filter(|name| name != ".lock").collect();
    names.sort();
    names
}

#[test]
fn it_is_created_once_and_loaded_after() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("deep/ca");
    let missing = Authority::open_existing(&dir, now()).err().unwrap();
    assert!(matches!(&missing, Error::Missing { path, .. } if path.ends_with("deep/ca/ca.crt")), "{missing}");
    assert!(!dir.exists());

    let first = Authority::open(&dir, now()).unwrap();
    assert_eq!((mode(&dir), mode(&dir.join("ca.key"))), (0o700, 0o600));
    assert_eq!(names(&dir), ["ca.crt", "ca.key"]);
    let before = fs::read(first.certificate()).unwrap();
    let second = Authority::open(&dir, now() + days(1)).unwrap();
    assert_eq!(fs::read(second.certificate()).unwrap(), before);
    assert_eq!(first.expires_at(), second.expires_at());
    assert!(first.expires_at() > now() + days(3640));
    Authority::open_existing(&dir, now()).unwrap();
}

#[test]
fn of_many_creators_one_creates() {
    let dir = TempDir::new().unwrap();
    let barrier = Arc::new(Barrier::new(8));
    let creators: Vec<_> = (0..8)
        .map(|_| {
            let (path, barrier) = (dir.path().join("ca"), barrier.clone());
            thread::spawn(move || {
                barrier.wait();
                let authority = Authority::open(&path, now()).unwrap();
                // The same identity too: all must end with the same good file.
                let files = authority.bundle(&identity(Kind::Agent), &path, now()).unwrap();
                Tls::load(files, now()).unwrap();
                fs::read(authority.certificate()).unwrap()
            })
        })
        .collect();
    let mut certificates: Vec<_> = creators.into_iter().map(|creator| creator.join().unwrap()).collect();
    certificates.dedup();
    assert_eq!(certificates.len(), 1);
    assert_eq!(names(&dir.path().join("ca")), ["agent@default@one.pem", "ca.crt", "ca.key"]);
}

#[test]
fn an_interrupted_creation_is_completed() {
    let dir = TempDir::new().unwrap();
    Authority::open(dir.path(), now()).unwrap();
    let key = fs::read(dir.path().join("ca.key")).unwrap();
    fs::remove_file(dir.path().join("ca.crt")).unwrap();
    fs::write(dir.path().join("ca.crt.tmp"), "half of a cert").unwrap();
    Authority::open(dir.path(), now()).unwrap();
    assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), key);
    assert_eq!(names(dir.path()), ["ca.crt", "ca.key"]);
}

#[test]
fn trouble_names_its_file() {
    let dir = TempDir::new().unwrap();
    let (certificate, key) = paths(dir.path());
    Authority::open(dir.path(), now()).unwrap();
    let check = |at: SystemTime, path: &Path, text: &str| {
        let error = Authority::open(dir.path(), at).err().unwrap().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains(text), "{error}");
    };
    check(now() + days(3651), &certificate, "expired at");
    check(now() - days(1), &certificate, "valid only from");

    let good = fs::read(&key).unwrap();
    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    check(now(), &key, "does not belong to the certificate");
    fs::write(&key, "garbage").unwrap();
    check(now(), &key, "no usable private key");
    fs::remove_file(&key).unwrap();
    check(now(), &key, "does not exist");
    fs::write(&key, good).unwrap();
    fs::write(&certificate, "garbage").unwrap();
    check(now(), &certificate, "no PEM certificate");
    fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    check(now(), &certificate, "no usable certificate");

    let blocked = dir.path().join("ca.key/below");
    let error = Authority::open(&blocked, now()).err().unwrap().to_string();
    assert!(error.contains(blocked.to_str().unwrap()), "{error}");
}

#[test]
fn a_certificate_carries_identity_and_names() {
    let cluster = Cluster::new();
    let extra = ["plane.example.com", "*.internal", "10.1.2.3", "localhost"].map(str::to_owned);
    let issued = cluster.authority.issue(&identity(Kind::DataPlane), &extra, now()).unwrap();
    let path = cluster.path().join("issued.pem");
    fs::write(&path, issued.cert_pem).unwrap();
    let der = load_certificates("certificate", &path).unwrap().remove(0);
    assert_eq!(Identity::from_certificate(&der).unwrap(), identity(Kind::DataPlane));
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!(names, 1 + 3 + 3, "identity, local names, extra names without the double one");
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !parsed.is_ca());

    let bad = ["two words".to_owned()];
    let error = cluster.authority.issue(&identity(Kind::Agent), &bad, now()).err().unwrap().to_string();
    assert!(error.contains("\"two words\""), "{error}");
}

#[test]
fn a_bundle_is_kept_while_it_is_good() {
    let cluster = Cluster::new();
    let files = cluster.files(Kind::Agent, days(19));
    assert_eq!(files.cert, files.key);
    assert_eq!(mode(&files.cert), 0o600);
    let first = fs::read(&files.cert).unwrap();
    assert_eq!(fs::read(cluster.files(Kind::Agent, days(0)).cert).unwrap(), first, "11 days are left");

    let later =
        cluster.authority.bundle(&identity(Kind::Agent), files.cert.parent().unwrap(), now() + days(2));
    let second = fs::read(later.unwrap().cert).unwrap();
    assert_ne!(second, first, "9 days are left");

    fs::write(&files.cert, "garbage").unwrap();
    cluster.files(Kind::Agent, days(0));
    Tls::load(files.clone(), now()).unwrap();

    let other = Cluster::new();
    let moved = other.authority.bundle(&identity(Kind::Agent), files.cert.parent().unwrap(), now()).unwrap();
    assert_eq!(moved.cert, files.cert);
    Tls::load(moved, now()).unwrap();
}

#[test]
fn a_certificate_does_not_outlive_its_authority() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::open(dir.path(), now()).unwrap();
    let last_week = authority.expires_at() - days(7);
    let files = authority.bundle(&identity(Kind::Agent), dir.path(), last_week).unwrap();
    assert_eq!(Tls::load(files.clone(), last_week).unwrap().expires_at(), authority.expires_at());
    let before = fs::read(&files.cert).unwrap();
    authority.bundle(&identity(Kind::Agent), dir.path(), last_week + days(1)).unwrap();
    assert_eq!(fs::read(&files.cert).unwrap(), before, "a new one would not last longer");
}
