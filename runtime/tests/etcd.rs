//! The registry on etcd: the conformance suite, and what happens when members die, fall silent, restart and forget.
#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use parallax_runtime::{
    env::{Env, System},
    lifecycle::Lifecycle,
    store::{
        Change, Expect, RegistryStore, Result, Revision, StoreError, Stores, conformance, servers::etcd::Etcd,
    },
};
use parallax_security::{Authority, Identity, Kind};

type Store = Arc<dyn RegistryStore>;
type Changes = BoxStream<'static, Result<Change>>;

async fn open(url: &str) -> Store {
    Stores::new(System::shared(), Lifecycle::new()).registry(url).await.unwrap()
}

/// Waits for what must come; only a test that is broken waits to the end.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it comes")
}

async fn put(store: &Store, key: &str, lease: Option<&str>) -> Revision {
    store.put(key, key.into(), lease, Expect::Anything).await.unwrap()
}

/// The keys of the next changes, each checked to be newer than that before.
async fn keys(changes: &mut Changes, count: usize) -> Vec<String> {
    let changes: Vec<_> = soon(changes.take(count).try_collect::<Vec<_>>()).await.unwrap();
    assert!(changes.is_sorted_by(|a, b| a.revision() < b.revision()), "{changes:?}");
    changes.iter().map(|change| change.key().to_owned()).collect()
}

#[tokio::test]
async fn it_conforms() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let store = open(&etcd.url()).await;
    conformance::registry_reads_and_compare_and_set(&*store).await;
    conformance::registry_leases_keep_their_keys(&*store).await;
    conformance::registry_watches_from_a_revision(&*store).await;
    conformance::registry_leases_expire(&*store, tokio::time::sleep).await;
    let left = store.list("/parallax/leases/").await.unwrap().entries.len();
    assert_eq!(left, 1, "a lease leaves nothing behind");
}

#[tokio::test]
async fn ten_thousand_keys_are_listed_and_watched() {
    const COUNT: usize = 10_000;
    let Some(etcd) = Etcd::start(1).await else { return };
    let store = open(&etcd.url()).await;
    let start = put(&store, "/start", None).await;
    let value = vec![7; 1000];
    let writes = stream::iter(0..COUNT).map(|i| {
        let (store, value) = (store.clone(), value.clone());
        async move { store.put(&format!("/many/{i:05}"), value, None, Expect::Absent).await.map(drop) }
    });
    writes.buffer_unordered(64).try_collect::<()>().await.unwrap();
    let begun = Instant::now();
    let snapshot = store.list("/many/").await.unwrap();
    println!("list of {COUNT} keys: {:?}", begun.elapsed());
    assert_eq!(snapshot.entries.len(), COUNT);
    assert!(snapshot.entries.is_sorted_by(|a, b| a.key < b.key));
    assert!(snapshot.entries.iter().all(|entry| entry.value == value && entry.revision <= snapshot.revision));
    let mut changes = store.watch("/many/", start).await.unwrap();
    let mut told = keys(&mut changes, COUNT).await;
    told.sort();
    assert!(told.iter().eq(snapshot.entries.iter().map(|entry| &entry.key)), "each once");
}

#[tokio::test]
async fn writes_go_on_and_a_watch_misses_nothing_when_the_leader_is_killed() {
    let Some(mut etcd) = Etcd::start(3).await else { return };
    let store = open(&etcd.url()).await;
    let start = put(&store, "/start", None).await;
    let mut changes = store.watch("/k/", start).await.unwrap();
    let name = |i: usize| format!("/k/{i}");
    for i in 0..200 {
        if i == 100 {
            etcd.kill(etcd.leader().await);
        }
        let begun = Instant::now();
        store.put(&name(i), vec![], None, Expect::Absent).await.unwrap();
        if i == 100 {
            println!("first write after kill -9 of the leader: {:?}", begun.elapsed());
        }
    }
    assert_eq!(keys(&mut changes, 200).await, (0..200).map(name).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_watch_leaves_a_member_that_has_fallen_silent() {
    let Some(etcd) = Etcd::start(3).await else { return };
    let store = open(&etcd.url()).await;
    let start = put(&store, "/start", None).await;
    let mut changes = store.watch("/k/", start).await.unwrap();
    // One of them is the watch's.
    for member in 0..3 {
        etcd.freeze(member);
        let key = format!("/k/{member}");
        put(&store, &key, None).await;
        let begun = Instant::now();
        assert_eq!(keys(&mut changes, 1).await, [key]);
        println!("a change was heard {:?} after it was made, member {member} being silent", begun.elapsed());
        etcd.thaw(member);
        etcd.up().await;
    }
}

#[tokio::test]
async fn a_watch_that_lags_behind_compaction_must_list_again() {
    let Some(mut etcd) = Etcd::start(1).await else { return };
    let store = open(&etcd.url()).await;
    let start = put(&store, "/k/0", None).await;
    let mut changes = store.watch("/k/", start).await.unwrap();
    etcd.kill(0);
    etcd.run(0);
    etcd.up().await;
    let mut last = start;
    for i in 1..4 {
        last = put(&store, &format!("/k/{i}"), None).await;
    }
    etcd.compact(last).await;
    let compacted =
        |e| matches!(e, StoreError::Compacted { asked, oldest } if asked == start && oldest == last);
    assert!(compacted(soon(changes.next()).await.unwrap().unwrap_err()));
    let mut late = store.watch("/k/", start).await.unwrap();
    assert!(compacted(soon(late.next()).await.unwrap().unwrap_err()));
    assert_eq!(store.list("/k/").await.unwrap().entries.len(), 4);
}

#[tokio::test]
async fn leases_survive_a_restart_and_begin_anew() {
    let Some(mut etcd) = Etcd::start(3).await else { return };
    let (ttl, store) = (Duration::from_secs(2), open(&etcd.url()).await);
    let lease = store.grant(ttl).await.unwrap();
    let revision = put(&store, "/k", Some(&lease)).await;
    let mut changes = store.watch("/k", revision).await.unwrap();
    for member in 0..3 {
        etcd.kill(member);
    }
    let refused = store.put("/k/2", vec![], None, Expect::Anything).await.unwrap_err();
    assert!(matches!(refused, StoreError::Away(_)), "{refused}");
    assert!(matches!(store.renew(&lease, None).await, Err(StoreError::Away(_))));
    for member in 0..3 {
        etcd.run(member);
    }
    etcd.up().await;
    // Longer than its time to live has passed, in which nobody could renew.
    assert_eq!(store.renew(&lease, None).await.unwrap(), ttl);
    assert_eq!(store.get("/k").await.unwrap().unwrap().lease.unwrap(), lease);
    // Another process knows it too, and whichever has heard it be silent ends it.
    let other = open(&etcd.url()).await;
    assert_eq!(other.renew(&lease, None).await.unwrap(), ttl);
    let mut late = other.watch("/k", revision).await.unwrap();
    for changes in [&mut changes, &mut late] {
        let gone = soon(changes.next()).await;
        assert!(matches!(gone, Some(Ok(Change::Delete { .. })) | Some(Err(StoreError::Away(_)))), "{gone:?}");
    }
    assert!(matches!(other.renew(&lease, None).await, Err(StoreError::Missing { .. })));
}

#[tokio::test]
async fn silence_that_could_not_be_heard_ends_no_lease() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let store = open(&etcd.url()).await;
    let lease = store.grant(Duration::from_secs(2)).await.unwrap();
    put(&store, "/k", Some(&lease)).await;
    etcd.freeze(0);
    // Twice its time to live, by the patience of the store.
    // It may still answer for a moment.
    let away = loop {
        if let Err(e) = store.renew(&lease, None).await {
            break e;
        }
    };
    assert!(matches!(away, StoreError::Away(_)), "{away}");
    etcd.thaw(0);
    etcd.up().await;
    store.renew(&lease, None).await.unwrap();
    assert!(store.get("/k").await.unwrap().is_some());
}

#[tokio::test]
async fn certificates_are_asked_for_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(&dir.path().join("ca"), System.system_time()).unwrap();
    let files = |kind, id| {
        let identity = Identity::new("default", kind, id).unwrap();
        authority.bundle(&identity, &dir.path().join("tls"), System.system_time()).unwrap()
    };
    let (server, ours) = (files(Kind::Agent, "etcd"), files(Kind::ControlPlane, "plane"));
    let Some(etcd) = Etcd::start_with(1, Some(server)).await else { return };
    let ca = format!("{}?ca={}", etcd.url(), ours.ca.display());
    let store = open(&format!("{ca}&cert={}&key={}", ours.cert.display(), ours.key.display())).await;
    let revision = put(&store, "/k/1", None).await;
    let mut changes = store.watch("/k/", revision - 1).await.unwrap();
    assert_eq!(keys(&mut changes, 1).await, ["/k/1"]);

    let stores = Stores::new(System::shared(), Lifecycle::new());
    let nameless = stores.registry(&ca).await.err().unwrap().to_string();
    assert!(nameless.contains(&etcd.addresses()) && nameless.contains("cert=FILE&key=FILE"), "{nameless}");
    let plain = stores.registry(&etcd.url()).await.err().unwrap();
    assert!(matches!(plain, StoreError::Open { .. }), "{plain}");
    let stranger = Authority::open(&dir.path().join("other"), System.system_time()).unwrap();
    let foreign = format!("{}?ca={}", etcd.url(), stranger.certificate().display());
    let foreign = stores.registry(&foreign).await.err().unwrap().to_string();
    assert!(foreign.contains("certificate"), "{foreign}");
}
