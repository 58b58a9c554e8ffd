//! The store of runs on a real PostgreSQL, which the tests start themselves.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all};
use jiff::Timestamp;
use parallax_runtime::{
    env::{Env, Network, System},
    lifecycle::Lifecycle,
    run::{Entry, Event, RunKey, Status},
    store::{
        RunStore, StoreError, Stores, conformance,
        servers::postgres::{PASSWORD, Postgres, USER},
    },
};
use parallax_security::{Authority, Dialling, Identity, Kind};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
};

async fn open(url: &str) -> Result<Arc<dyn RunStore>, StoreError> {
    Stores::new(System::shared(), Lifecycle::new()).runs(url).await
}

async fn refused(url: &str) -> String {
    let message = open(url).await.err().expect("it is refused").to_string();
    assert!(!message.contains("s3cret"), "a password is shown: {message}");
    message
}

fn key(id: impl ToString) -> RunKey {
    RunKey { tenant: "default".to_owned(), id: id.to_string() }
}

fn entry(n: usize) -> Entry {
    Entry { at: Timestamp::UNIX_EPOCH, event: Event::Requested { effect: n as u64, request: json!(n) } }
}

#[tokio::test]
async fn it_conforms() {
    let Some(server) = Postgres::start() else { return };
    let store = open(&server.url("postgres")).await.unwrap();
    conformance::runs_append_at_a_length(&*store).await;
    conformance::runs_are_listed(&*store).await;
    conformance::runs_are_closed(&*store).await;
    conformance::runs_carry_large_entries_and_hint(&*store).await;
    let apart = "SELECT count(*), count(e.entry), max(length(p.entry)) > 1000000 FROM parallax.payloads p
        JOIN parallax.entries e USING (tenant, run, position)";
    assert_eq!(server.psql("postgres", apart), "1|0|t", "large entries are not in the journal's rows");
    // The store's clock is the server's, which nobody can move: this one waits.
    let owned = open(&server.url("postgres")).await.unwrap();
    server.psql("postgres", "DELETE FROM parallax.runs");
    conformance::runs_are_owned(&*owned, tokio::time::sleep).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openers_race_to_migrate_and_a_newer_database_is_refused() {
    let Some(server) = Postgres::start() else { return };
    let url = server.url("postgres");
    let stores: Vec<_> = join_all((0..8).map(|_| open(&url))).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(server.psql("postgres", "SELECT count(*) FROM parallax.migrations"), "1");
    conformance::run_that_goes_on(&*stores[0], "a", &key("run-1")).await;
    assert!(stores[7].load(&key("run-1")).await.unwrap().is_some());

    // A role that may use the tables, and may make none.
    server.psql(
        "postgres",
        "CREATE ROLE guest LOGIN PASSWORD 'g'; GRANT USAGE ON SCHEMA parallax TO guest;
         GRANT ALL ON ALL TABLES IN SCHEMA parallax TO guest",
    );
    let guest = url.split_once('@').unwrap().1;
    let guest = open(&format!("postgres://guest:g@{guest}")).await.unwrap();
    assert!(guest.load(&key("run-1")).await.unwrap().is_some());

    server.psql("postgres", "INSERT INTO parallax.migrations (number) VALUES (99)");
    let message = refused(&url).await;
    assert!(message.contains("newer Parallax (version 99"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_it() {
    let Some(server) = Postgres::start() else { return };
    let url = server.url("postgres");
    let (one, two) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    let (mut own, mut others) = (one.hints().await.unwrap(), two.hints().await.unwrap());
    let listening = "SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'parallax' AND query ~ 'LISTEN|pg_notify'";
    while server.psql("postgres", listening) != "2" {
        tokio::task::yield_now().await;
    }
    one.keep("one", Duration::from_secs(60), 0).await.unwrap();
    let begun = conformance::run_that_goes_on(&*one, "one", &key("run-1")).await;
    assert_eq!(others.next().await.unwrap().run, key("run-1"));
    let fenced = two.append("two", &begun, &[entry(1)]).await;
    assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "{fenced:?}");
    let end = Entry { at: Timestamp::UNIX_EPOCH, event: Event::Cancelled { reason: "enough".to_owned() } };
    two.close(&key("run-1"), end).await.unwrap();
    let heard: Vec<_> = own.by_ref().take(2).map(|hint| hint.status).collect().await;
    assert_eq!(heard, [Status::Running, Status::Cancelled], "its own once, and the other's");

    // Eight keepers and the runs of one that is gone.
    let ids: Vec<_> = (0..100).map(|i| key(format!("orphan-{i:03}"))).collect();
    join_all(ids.iter().map(|run| conformance::run_that_goes_on(&*one, "gone", run))).await;
    let stores = join_all((0..8).map(|_| open(&url))).await;
    let keepers = stores.into_iter().enumerate().map(|(i, store)| {
        tokio::spawn(async move {
            let (store, mut kept) = (store.unwrap(), vec![]);
            for _ in 0..20 {
                kept.extend(store.keep(&format!("keeper-{i}"), Duration::from_secs(60), 7).await.unwrap());
            }
            kept
        })
    });
    let mut given: Vec<_> = join_all(keepers).await.into_iter().flat_map(Result::unwrap).collect();
    given.sort();
    assert_eq!(given, ids, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_kill_and_nothing_else_appears() {
    let Some(mut server) = Postgres::start() else { return };
    let store = open(&server.url("postgres")).await.unwrap();
    store.keep("me", Duration::from_secs(600), 0).await.unwrap();
    let (count, mut counted) = tokio::sync::mpsc::unbounded_channel();
    let (stop, stopped) = watch::channel(false);
    let tasks = (0..16).map(|i| {
        let (store, count, stopped) = (store.clone(), count.clone(), stopped.clone());
        tokio::spawn(async move {
            let mut summary = conformance::run_that_goes_on(&*store, "me", &key(i)).await;
            let mut expected = 0;
            while !*stopped.borrow() {
                let entries = [entry(expected), entry(expected + 1)];
                summary = store.append("me", &summary, &entries).await.expect("it outlives the server");
                expected += 2;
                count.send(()).unwrap();
            }
            (summary, expected)
        })
    });
    let tasks: Vec<_> = tasks.collect();
    for _ in 0..3 {
        for _ in 0..500 {
            counted.recv().await.unwrap();
        }
        server.kill();
        server.restart();
    }
    for _ in 0..500 {
        counted.recv().await.unwrap();
    }
    stop.send(true).unwrap();
    for (i, task) in tasks.into_iter().enumerate() {
        let (summary, expected) = task.await.unwrap();
        let run = store.load(&key(i)).await.unwrap().unwrap();
        assert_eq!(run.summary, summary);
        let entries: Vec<_> = (0..expected).map(entry).collect();
        assert_eq!(run.entries[1..], entries, "run {i}: contiguous, once each, all that was acknowledged");
    }
}

/// The world with a line to the server that answers can be lost on, and that can be cut.
struct Flaky {
    deaf: Arc<AtomicBool>,
    cuts: watch::Sender<()>,
}

impl Network for Flaky {
    fn dial<'a>(&'a self, addr: &'a str) -> Dialling<'a> {
        Box::pin(async move {
            let (mut answers, mut questions) = TcpStream::connect(addr).await?.into_split();
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let (mut asked, mut answered) = tokio::io::split(theirs);
            let (deaf, mut cut) = (self.deaf.clone(), self.cuts.subscribe());
            tokio::spawn(async move {
                let mut bytes = vec![0; 1 << 16];
                let answer = async {
                    while let Ok(n @ 1..) = answers.read(&mut bytes).await {
                        if !deaf.load(Ordering::SeqCst) {
                            answered.write_all(&bytes[..n]).await.unwrap();
                        }
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy(&mut asked, &mut questions) => {}
                    () = answer => {}
                    _ = cut.changed() => {}
                }
            });
            Ok(Box::new(ours) as _)
        })
    }
}

impl Env for Flaky {
    fn now(&self) -> Timestamp {
        System.now()
    }

    fn random(&self) -> u64 {
        System.random()
    }
}

/// What was done though nobody heard so: told once the line is there again, and done once.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_found() {
    let Some(server) = Postgres::start() else { return };
    let (deaf, cuts) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(()));
    let env = Arc::new(Flaky { deaf: deaf.clone(), cuts: cuts.clone() });
    let store = Stores::new(env, Lifecycle::new()).runs(&server.url("postgres")).await.unwrap();
    let unheard = async |what: JoinHandle<()>, done: &str| {
        while server.psql("postgres", &format!("SELECT count(*) FROM parallax.{done}")) == "0" {
            tokio::task::yield_now().await;
        }
        deaf.store(false, Ordering::SeqCst);
        cuts.send(()).unwrap();
        what.await.unwrap();
    };
    let run = key(1);
    // Connected before it goes deaf.
    store
        .append("me", &conformance::run_that_goes_on(&*store, "me", &key(0)).await, &[entry(0)])
        .await
        .unwrap();
    assert!(store.load(&run).await.unwrap().is_none());

    deaf.store(true, Ordering::SeqCst);
    let (own, of) = (store.clone(), run.clone());
    let create = tokio::spawn(async move { _ = conformance::run_that_goes_on(&*own, "me", &of).await });
    unheard(create, "runs WHERE id = '1'").await;

    let begun = store.load(&run).await.unwrap().unwrap().summary;
    deaf.store(true, Ordering::SeqCst);
    let own = store.clone();
    let append = tokio::spawn(async move {
        let grown = own.append("me", &begun, &[entry(1), entry(2)]).await.unwrap();
        assert_eq!(grown.len, 3);
    });
    unheard(append, "entries WHERE run = '1' AND position = 2").await;
    assert_eq!(store.load(&run).await.unwrap().unwrap().entries[1..], [entry(1), entry(2)]);

    deaf.store(true, Ordering::SeqCst);
    let own = store.clone();
    let keep = tokio::spawn(async move {
        let kept = own.keep("other", Duration::from_secs(60), 10).await.unwrap();
        assert_eq!(kept, [key(0), key(1)]);
    });
    unheard(keep, "runs WHERE owner = 'other'").await;
    assert_eq!(store.keep("other", Duration::from_secs(60), 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_server_that_is_away_is_named_and_a_write_is_not_pretended() {
    let Some(mut server) = Postgres::start() else { return };
    let store = open(&server.url("postgres")).await.unwrap();
    let begun = conformance::run_that_goes_on(&*store, "me", &key(1)).await;
    server.kill();
    let (entries, run) = ([entry(1)], key(1));
    let (append, load) = tokio::join!(store.append("me", &begun, &entries), store.load(&run));
    let message = append.unwrap_err().to_string();
    assert!(message.contains("PostgreSQL at 127.0.0.1:") && !message.contains("s3cret"), "{message}");
    assert!(matches!(load, Err(StoreError::Away(_))), "{load:?}");
    server.restart();
    store.append("me", &begun, &[entry(1)]).await.unwrap();
}

#[tokio::test]
async fn both_ends_are_verified() {
    let Some(mut server) = Postgres::start() else { return };
    let ca = Authority::open(&server.path("ca"), Timestamp::now().into()).unwrap();
    let issue = |name: &str| {
        let identity = Identity::new("default", Kind::ControlPlane, name).unwrap();
        let issued = ca.issue(&identity, &[], Timestamp::now().into()).unwrap();
        let cert = server.write(&format!("{name}.crt"), &issued.cert_pem);
        (
            cert.display().to_string(),
            server.write(&format!("{name}.key"), &issued.key_pem).display().to_string(),
        )
    };
    let (cert, key) = issue("server");
    let (own_cert, own_key) = issue("client");
    let authority = std::fs::read_to_string(ca.certificate()).unwrap();
    let authority = server.write("root.crt", &authority).display().to_string();
    server.configure(&format!(
        "ssl = on\nssl_cert_file = '{cert}'\nssl_key_file = '{key}'\nssl_ca_file = '{authority}'"
    ));
    server.admit(
        "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\nlocal all all scram-sha-256",
    );
    server.restart();
    let url = server.url("postgres");
    let own = format!("sslcert={own_cert}&sslkey={own_key}");
    let store = open(&format!("{url}?sslmode=verify-full&sslrootcert={authority}&{own}")).await.unwrap();
    conformance::run_that_goes_on(&*store, "me", &self::key(1)).await;
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'parallax' AND NOT ssl";
    assert_eq!(server.psql("postgres", encrypted), "0");
    open(&format!("{url}?sslmode=require&{own}")).await.unwrap();

    // Who shows no certificate, asks for no TLS, or expects another authority.
    let message = refused(&format!("{url}?sslmode=verify-full&sslrootcert={authority}")).await;
    assert!(message.contains("certificate"), "{message}");
    let message = refused(&url).await;
    assert!(message.contains("pg_hba.conf"), "{message}");
    let foreign = Authority::open(&server.path("foreign"), Timestamp::now().into()).unwrap();
    let foreign = foreign.certificate().display().to_string();
    let message = refused(&format!("{url}?sslmode=verify-full&sslrootcert={foreign}&{own}")).await;
    assert!(message.contains("certificate"), "{message}");
}

#[tokio::test]
async fn a_socket_and_a_second_host_will_do() {
    let Some(server) = Postgres::start() else { return };
    let url = server.url("postgres");
    let (user, place) = url.rsplit_once('@').unwrap();
    let (host, database) = place.split_once('/').unwrap();
    let port = host.split_once(':').unwrap().1;
    let socket = server.path("").display().to_string().trim_end_matches('/').replace('/', "%2F");
    open(&format!("{user}@{socket}:{port}/{database}")).await.unwrap();
    open(&format!("{user}@127.0.0.1:1,{host}/{database}")).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_url_is_said_and_no_password() {
    for (url, said) in [
        ("postgres://me:s3cret@db.example/parallax", "needs sslrootcert=FILE"),
        ("postgres://me:s3cret@db.example/parallax?sslmode=prefer", "none of disable, require, verify-full"),
        ("postgres://me:s3cret@db.example/p?sslmode=require&sslrootcert=x", "say verify-full"),
        ("postgres://me:s3cret@db.example/p?sslmode=disable&sslcert=x", "sslmode=disable"),
        ("postgres://me:s3cret@db.example/p?sslmode=require&sslcert=x", "sslkey"),
        ("postgres://me:s3cret@db.example/p?password=s3cret", "unknown parameter \"password\""),
        ("postgres://me:s3cret@localhost:port/p", "port"),
        ("postgres://localhost/p", "names no user"),
        ("postgres://me:s3cret@/p", "names no host"),
        ("postgres://me:s3cret@db.example/p?sslmode=verify-full&sslrootcert=/no/file", "/no/file"),
    ] {
        let message = refused(url).await;
        assert!(message.contains(said), "{url}: {message}");
    }
    let stores = Stores::new(System::shared(), Lifecycle::new());
    let message = stores.registry("postgres://me:s3cret@db.example/p").await.err().unwrap().to_string();
    assert!(message.contains("keeps runs only") && !message.contains("s3cret"), "{message}");

    let Some(server) = Postgres::start() else { return };
    let wrong = server.url("postgres").replace(&PASSWORD.replace(' ', "%20"), "s3cret-but-wrong");
    let message = refused(&wrong).await;
    assert!(message.contains(&format!("authentication failed for user \"{USER}\"")), "{message}");
    let message = refused(&server.url("nowhere")).await;
    assert!(message.contains("database \"nowhere\" does not exist"), "{message}");
}

/// Not a test: `cargo test -p parallax-runtime --features cluster --test postgres -- --ignored --nocapture appends`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn appends_per_second() {
    let Some(server) = Postgres::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let embedded = format!("embedded:{}", dir.path().join("runs.db").display());
    for round in 0..3 {
        for (name, url) in [("PostgreSQL", server.url("postgres")), ("embedded", embedded.clone())] {
            let store = open(&url).await.unwrap();
            for tasks in [1, 16, 64] {
                let begun = Instant::now();
                let drivers = (0..tasks).map(|i| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        let run = key(format!("{round}-{tasks}-{i}"));
                        let mut summary = conformance::run_that_goes_on(&*store, "me", &run).await;
                        let mut took = vec![];
                        while begun.elapsed() < Duration::from_secs(3) {
                            let one = Instant::now();
                            summary = store.append("me", &summary, &[entry(1), entry(2)]).await.unwrap();
                            took.push(one.elapsed());
                        }
                        took
                    })
                });
                let mut took: Vec<_> = join_all(drivers).await.into_iter().flat_map(Result::unwrap).collect();
                took.sort();
                let rate = took.len() as f64 / begun.elapsed().as_secs_f64();
                let at = |share: usize| took[took.len() * share / 100];
                println!("{name}, {tasks} tasks: {rate:.0}/s, p50 {:?}, p99 {:?}", at(50), at(99));
            }
        }
    }
}
