//! One suite for every adapter: a function for each clause of a port's contract.
//!
//! A clause takes the store under test; what it asserts is said by the contract in [`super`].

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::{Timestamp, ToSpan};
use serde_json::json;

use super::{
    CallOutcome, Change, ConfidenceStore, Expect, RegistryStore, RunQuery, RunStore, Sample, SampleQuery,
    StoreError,
};
use crate::run::{Entry, Event, Options, RunKey, Start, Status};

/// Clauses 1 and 2 of [`RegistryStore`]: reads after writes, revisions, compare-and-set.
pub async fn registry_reads_and_compare_and_set(store: &dyn RegistryStore) {
    let first = store.put("/a/1", b"one".to_vec(), None, Expect::Absent).await.expect("put");
    let entry = store.get("/a/1").await.expect("get").expect("just put");
    assert_eq!((entry.value.as_slice(), entry.revision), (b"one".as_slice(), first));

    let refused = store.put("/a/1", b"two".to_vec(), None, Expect::Absent).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    let second = store.put("/a/1", b"two".to_vec(), None, Expect::At(first)).await.expect("put");
    assert!(second > first);
    let refused = store.delete("/a/1", Expect::At(first)).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");

    store.put("/b/1", b"other".to_vec(), None, Expect::Anything).await.expect("put");
    let snapshot = store.list("/a/").await.expect("list");
    assert_eq!(snapshot.entries.len(), 1, "a prefix lists only what begins with it");
    assert_eq!(snapshot.entries[0].value, b"two");
    assert!(snapshot.revision >= second);

    assert!(store.delete("/a/1", Expect::At(second)).await.expect("delete").is_some());
    assert!(store.get("/a/1").await.expect("get").is_none());
    assert_eq!(store.delete("/a/1", Expect::Anything).await.expect("delete"), None);
}

/// Clause 3 of [`RegistryStore`]: what a lease keeps goes with it, and only that.
pub async fn registry_leases_keep_their_keys(store: &dyn RegistryStore) {
    let minute = Duration::from_secs(60);
    let (old, new) = (store.grant(minute).await.expect("grant"), store.grant(minute).await.expect("grant"));
    store.put("/l/moved", vec![1], Some(&old), Expect::Anything).await.expect("put");
    store.put("/l/moved", vec![2], Some(&new), Expect::Anything).await.expect("put");
    store.put("/l/kept", vec![1], Some(&old), Expect::Anything).await.expect("put");
    store.put("/l/kept", vec![2], None, Expect::Anything).await.expect("put");
    store.put("/l/gone", vec![1], Some(&old), Expect::Anything).await.expect("put");
    store.revoke(&old).await.expect("revoke");
    let left: Vec<_> = store.list("/l/").await.expect("list").entries.into_iter().map(|e| e.key).collect();
    assert_eq!(left, ["/l/kept", "/l/moved"]);
    assert!(matches!(store.renew(&old, None).await, Err(StoreError::Missing { .. })));
    let refused = store.put("/l/x", vec![], Some(&old), Expect::Anything).await;
    assert!(matches!(refused, Err(StoreError::Missing { .. })), "{refused:?}");
    store.revoke(&old).await.expect("revoking twice is no error");
}

/// Clause 4 of [`RegistryStore`]: a lease lasts as long as it is renewed. `wait` lets that much time pass.
pub async fn registry_leases_expire<F: Future<Output = ()>>(
    store: &dyn RegistryStore,
    wait: impl Fn(Duration) -> F,
) {
    let ttl = Duration::from_secs(3);
    let lease = store.grant(ttl).await.expect("grant");
    let put = store.put("/e/1", vec![1], Some(&lease), Expect::Anything).await.expect("put");
    let mut changes = store.watch("/e/", put).await.expect("watch");
    for _ in 0..3 {
        wait(ttl * 2 / 3).await;
        assert_eq!(store.renew(&lease, None).await.expect("renew"), ttl);
    }
    let shorter = ttl - Duration::from_secs(1);
    assert_eq!(store.renew(&lease, Some(shorter)).await.expect("renew"), shorter);
    assert_eq!(store.renew(&lease, None).await.expect("renew"), shorter, "it stays so");
    assert!(store.get("/e/1").await.expect("get").is_some(), "renewed, so alive past its time to live");
    wait(ttl + Duration::from_secs(1)).await;
    let deleted = changes.next().await.expect("the stream goes on").expect("watch");
    assert!(matches!(&deleted, Change::Delete { key, .. } if key == "/e/1"), "{deleted:?}");
    assert!(store.get("/e/1").await.expect("get").is_none());
    assert!(matches!(store.renew(&lease, None).await, Err(StoreError::Missing { .. })));
}

/// Clause 5 of [`RegistryStore`]: a watch shows every change once, in order, whenever it began.
pub async fn registry_watches_from_a_revision(store: &dyn RegistryStore) {
    let start = store.put("/w/0", vec![], None, Expect::Anything).await.expect("put");
    let live = store.watch("/w/", start).await.expect("watch");
    for i in 1..=50u8 {
        store.put(&format!("/w/{}", i % 7), vec![i], None, Expect::Anything).await.expect("put");
        store.put("/elsewhere", vec![i], None, Expect::Anything).await.expect("put");
    }
    store.delete("/w/3", Expect::Anything).await.expect("delete");
    let late = store.watch("/w/", start).await.expect("watch");
    let read = |changes: futures::stream::BoxStream<'static, super::Result<Change>>| async {
        changes.take(51).try_collect::<Vec<_>>().await.expect("watch")
    };
    let (live, late) = (read(live).await, read(late).await);
    assert_eq!(live, late, "a watch that began late shows the same");
    assert!(live.is_sorted_by(|a, b| a.revision() < b.revision()));
    assert!(matches!(live.last(), Some(Change::Delete { key, .. }) if key == "/w/3"));
    assert_eq!(live.iter().filter(|change| !change.key().starts_with("/w/")).count(), 0);
}

fn started(pattern: &str) -> Entry {
    let start = Start {
        pattern: pattern.to_owned(),
        pattern_version: "1.0.0".to_owned(),
        script_hash: format!("hash of {pattern}"),
        input: json!({"text": "Füße"}),
        options: Options::default(),
        agents: vec![],
    };
    Entry { at: Timestamp::UNIX_EPOCH, event: Event::Started(Box::new(start)) }
}

fn completed() -> Entry {
    Entry {
        at: Timestamp::UNIX_EPOCH + 1.second(),
        event: Event::Completed { value: json!([1, 0.1]), confidence: Some(0.75) },
    }
}

fn key(tenant: &str, id: &str) -> RunKey {
    RunKey { tenant: tenant.to_owned(), id: id.to_owned() }
}

/// Clauses 1 to 4 of [`RunStore`].
pub async fn runs_append_at_a_length(store: &dyn RunStore) {
    let run = key("t1", "run-a");
    store.create(&run, "script", &[started("p")]).await.expect("create");
    assert!(matches!(store.create(&run, "s", &[started("p")]).await, Err(StoreError::Exists { .. })));
    let requested = Entry {
        at: Timestamp::UNIX_EPOCH,
        event: Event::Requested { effect: 1, request: json!({"kind": "now"}) },
    };
    store.append(&run, 1, std::slice::from_ref(&requested)).await.expect("append");
    let late = store.append(&run, 1, std::slice::from_ref(&requested)).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
    assert_eq!(store.unfinished().await.expect("unfinished"), std::slice::from_ref(&run));

    store.append(&run, 2, &[completed()]).await.expect("append");
    let closed = store.append(&run, 3, std::slice::from_ref(&requested)).await;
    assert!(matches!(closed, Err(StoreError::Conflict { .. })), "an ended run takes no entry: {closed:?}");
    assert!(store.unfinished().await.expect("unfinished").is_empty());

    let loaded = store.load(&run).await.expect("load").expect("created");
    assert_eq!(loaded.entries, [started("p"), requested, completed()]);
    assert_eq!((loaded.script.as_str(), loaded.summary.status), ("script", Status::Completed));
    assert_eq!(loaded.summary.confidence, Some(0.75));
    assert!(store.load(&key("t2", "run-a")).await.expect("load").is_none(), "tenants are apart");
    let nowhere = store.append(&key("t1", "none"), 0, &[completed()]).await;
    assert!(matches!(nowhere, Err(StoreError::Missing { .. })), "{nowhere:?}");
}

/// [`RunStore::list`]: newest first, filtered, paged by cursor and by offset.
pub async fn runs_are_listed(store: &dyn RunStore) {
    for i in 0..7 {
        let run = key("lists", &format!("run-{i}"));
        store.create(&run, "s", &[started(if i % 2 == 0 { "even" } else { "odd" })]).await.expect("create");
        if i < 3 {
            store.append(&run, 1, &[completed()]).await.expect("append");
        }
    }
    let ids = async |query: RunQuery| {
        let page = store.list(&query).await.expect("list");
        (page.runs.into_iter().map(|run| run.key.id).collect::<Vec<_>>(), page.total)
    };
    let all = RunQuery { tenant: "lists".to_owned(), limit: 3, ..Default::default() };
    let expected = |ids: &[&str], total| (ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>(), total);
    assert_eq!(ids(all.clone()).await, expected(&["run-6", "run-5", "run-4"], 7));
    let after = RunQuery { before: Some("run-4".to_owned()), ..all.clone() };
    assert_eq!(ids(after).await, expected(&["run-3", "run-2", "run-1"], 7));
    assert_eq!(ids(RunQuery { offset: 6, ..all.clone() }).await, expected(&["run-0"], 7));
    let done = RunQuery { status: Some(Status::Completed), pattern: Some("even".to_owned()), ..all };
    assert_eq!(ids(done).await, expected(&["run-2", "run-0"], 2));
}

/// Clauses 1 and 2 of [`ConfidenceStore`].
pub async fn confidence_is_appended_once(store: &dyn ConfidenceStore) {
    let sample = |id: &str, second: i64| Sample {
        id: id.to_owned(),
        tenant: "default".to_owned(),
        agent_id: "a".to_owned(),
        pattern: "p".to_owned(),
        task: "t".to_owned(),
        outcome: CallOutcome::Answered,
        confidence: crate::confidence::Confidence::stated(0.5),
        duration_us: 1200,
        at: Timestamp::UNIX_EPOCH + second.seconds(),
    };
    store.append(&[sample("1", 10), sample("2", 20)]).await.expect("append");
    store.append(&[sample("2", 20), sample("3", 30)]).await.expect("append");
    let query = |since: i64, until: i64, limit| SampleQuery {
        tenant: "default".to_owned(),
        agent_id: "a".to_owned(),
        since: Timestamp::UNIX_EPOCH + since.seconds(),
        until: Timestamp::UNIX_EPOCH + until.seconds(),
        limit,
    };
    let all = store.query(&query(0, 100, 10)).await.expect("query");
    assert_eq!(all, [sample("1", 10), sample("2", 20), sample("3", 30)]);
    assert_eq!(store.query(&query(10, 30, 1)).await.expect("query"), [sample("2", 20)]);
    let other = SampleQuery { tenant: "other".to_owned(), ..query(0, 100, 10) };
    assert!(store.query(&other).await.expect("query").is_empty(), "tenants are apart");
}
