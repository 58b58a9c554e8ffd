//! The conformance suites against each adapter, and what only one adapter promises.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use parallax_runtime::{
    env::System,
    lifecycle::Lifecycle,
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
    }
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
    let message = open.runs("embedded:/no/such/folder/runs.db").await.err().unwrap().to_string();
    assert!(message.contains("/no/such/folder/runs.db"), "{message}");
}
