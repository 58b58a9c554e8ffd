//! The conformance suites against each adapter, and what only one adapter promises.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use parallax_runtime::{
    env::System,
    lifecycle::Lifecycle,
    run::RunKey,
    store::{Expect, RegistryStore, StoreError, Stores, conformance},
};

fn stores() -> Stores {
    Stores::new(System::shared(), Lifecycle::new())
}

async fn each_embedded(name: &str) -> (tempfile::TempDir, [String; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("embedded:{}", dir.path().join(name).display());
    (dir, [file, "memory:".to_owned()])
}

#[tokio::test]
async fn the_embedded_registry_conforms() {
    let (_dir, urls) = each_embedded("registry.db").await;
    for url in urls {
        let store = stores().registry(&url).await.unwrap();
        conformance::registry_reads_and_compare_and_set(&*store).await;
        conformance::registry_leases_keep_their_keys(&*store).await;
        conformance::registry_watches_from_a_revision(&*store).await;
    }
}

#[tokio::test]
async fn embedded_leases_expire() {
    let store = stores().registry("memory:").await.unwrap();
    tokio::time::pause();
    // A blocking task keeps paused time from running ahead while the store's own thread works.
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let still = tokio::task::spawn_blocking(move || wait.recv());
    conformance::registry_leases_expire(&*store, tokio::time::advance).await;
    drop(done);
    still.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn the_embedded_run_store_conforms() {
    let (_dir, urls) = each_embedded("runs.db").await;
    for url in urls {
        let store = stores().runs(&url).await.unwrap();
        conformance::runs_append_at_a_length(&*store).await;
        conformance::runs_are_listed(&*store).await;
        conformance::runs_are_closed(&*store).await;
        conformance::runs_carry_large_entries_and_hint(&*store).await;
    }
}

#[tokio::test]
async fn embedded_runs_are_owned() {
    let store = stores().runs("memory:").await.unwrap();
    tokio::time::pause();
    // As above.
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let still = tokio::task::spawn_blocking(move || wait.recv());
    conformance::runs_are_owned(&*store, tokio::time::advance).await;
    drop(done);
    still.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn whoever_owned_runs_before_the_file_was_opened_is_gone() {
    let (_dir, [url, _]) = each_embedded("runs.db").await;
    let minute = Duration::from_secs(60);
    let run = RunKey { tenant: "default".to_owned(), id: "run-1".to_owned() };
    {
        let store = stores().runs(&url).await.unwrap();
        store.keep("a", minute, 0).await.unwrap();
        conformance::run_that_goes_on(&*store, "a", &run).await;
    }
    let store = stores().runs(&url).await.unwrap();
    assert_eq!(store.keep("b", minute, 10).await.unwrap(), [run]);
}

/// A file of the first release: tables without owners, and no version in it.
#[tokio::test]
async fn an_older_file_is_migrated_and_a_newer_one_refused() {
    let (dir, [url, _]) = each_embedded("runs.db").await;
    let file = rusqlite::Connection::open(dir.path().join("runs.db")).unwrap();
    file.execute_batch(
        "CREATE TABLE scripts (hash TEXT PRIMARY KEY, source TEXT NOT NULL) WITHOUT ROWID;
         CREATE TABLE runs (
            tenant TEXT NOT NULL, id TEXT NOT NULL, pattern TEXT NOT NULL, status TEXT NOT NULL,
            script_hash TEXT NOT NULL, summary TEXT NOT NULL, PRIMARY KEY (tenant, id)
         ) WITHOUT ROWID;
         CREATE TABLE entries (
            tenant TEXT NOT NULL, run TEXT NOT NULL, position INTEGER NOT NULL, entry TEXT NOT NULL,
            PRIMARY KEY (tenant, run, position)
         ) WITHOUT ROWID;
         INSERT INTO runs VALUES ('default', 'old', 'p', 'running', 'h', '{}');",
    )
    .unwrap();
    let store = stores().runs(&url).await.unwrap();
    let old = RunKey { tenant: "default".to_owned(), id: "old".to_owned() };
    assert_eq!(store.keep("b", Duration::from_secs(60), 10).await.unwrap(), [old]);
    drop(store);
    file.pragma_update(None, "user_version", 99).unwrap();
    let message = stores().runs(&url).await.err().unwrap().to_string();
    assert!(message.contains("newer Parallax") && message.contains("runs.db"), "{message}");
}

#[tokio::test]
async fn the_embedded_confidence_store_conforms() {
    let (_dir, urls) = each_embedded("confidence.db").await;
    for url in urls {
        let store = stores().confidence(&url).await.unwrap();
        conformance::confidence_is_appended_once(&*store).await;
    }
}

#[tokio::test]
async fn leases_survive_a_restart_and_begin_anew() {
    let (_dir, [url, _]) = each_embedded("registry.db").await;
    let minute = Duration::from_secs(60);
    let (lease, revision) = {
        let store = stores().registry(&url).await.unwrap();
        let lease = store.grant(minute).await.unwrap();
        (lease.clone(), store.put("/k", vec![7], Some(&lease), Expect::Absent).await.unwrap())
    };
    let store: Arc<dyn RegistryStore> = stores().registry(&url).await.unwrap();
    let entry = store.get("/k").await.unwrap().expect("on disk");
    assert_eq!((entry.value, entry.revision, entry.lease.as_ref()), (vec![7], revision, Some(&lease)));
    assert_eq!(store.renew(&lease, None).await.unwrap(), minute);
    let behind = store.watch("/", 0).await.err().expect("history is not kept across restarts");
    assert!(matches!(behind, StoreError::Compacted { .. }), "{behind}");
    store.revoke(&lease).await.unwrap();
    assert!(store.get("/k").await.unwrap().is_none());
}

#[tokio::test]
async fn a_bad_url_or_file_is_named() {
    let open = stores();
    let message = open.runs("etcdd://x").await.err().unwrap().to_string();
    assert!(message.contains("etcdd://x") && message.contains("embedded:PATH"), "{message}");
    let message = open.runs("etcd://a:1").await.err().unwrap().to_string();
    assert!(message.contains("holds a registry and nothing else"), "{message}");
    let cure = if cfg!(feature = "cluster") { "give etcd://HOST:PORT" } else { "--features cluster" };
    let message = open.registry("etcd://a").await.err().unwrap().to_string();
    assert!(message.contains("store etcd://a: ") && message.contains(cure), "{message}");
    let message = open.runs("embedded:/no/such/folder/runs.db").await.err().unwrap().to_string();
    assert!(message.contains("/no/such/folder/runs.db"), "{message}");
}
