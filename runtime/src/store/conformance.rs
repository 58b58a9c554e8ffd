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
use crate::run::{Entry, Event, Options, RunKey, Start, Status, Summary};

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
        adhoc: false,
        origin: None,
        versions: Default::default(),
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

/// A run of `owner` that has not ended.
pub async fn run_that_goes_on(store: &dyn RunStore, owner: &str, run: &RunKey) -> Summary {
    store.create(owner, run, "script", &[started("p")]).await.expect("create")
}

fn requested(request: serde_json::Value) -> Entry {
    Entry { at: Timestamp::UNIX_EPOCH, event: Event::Requested { effect: 1, request } }
}

/// Clauses 1 to 4 of [`RunStore`].
pub async fn runs_append_at_a_length(store: &dyn RunStore) {
    let run = key("t1", "run-a");
    let begun = store.create("me", &run, "script", &[started("p")]).await.expect("create");
    let again = store.create("me", &run, "s", &[started("p")]).await;
    assert!(matches!(again, Err(StoreError::Exists { .. })), "{again:?}");
    let requested = requested(json!({"kind": "now"}));
    let asked = store.append("me", &begun, std::slice::from_ref(&requested)).await.expect("append");
    assert_eq!((asked.len, asked.status), (2, Status::Running));
    let late = store.append("me", &begun, std::slice::from_ref(&requested)).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
    assert_eq!(store.append("me", &asked, &[]).await.expect("append"), asked, "nothing is added");
    let late = store.append("me", &begun, &[]).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");

    let ended = store.append("me", &asked, &[completed()]).await.expect("append");
    let closed = store.append("me", &ended, &[]).await;
    assert!(matches!(closed, Err(StoreError::Conflict { .. })), "{closed:?}");
    let closed = store.append("me", &ended, std::slice::from_ref(&requested)).await;
    assert!(matches!(closed, Err(StoreError::Conflict { .. })), "an ended run takes no entry: {closed:?}");

    let loaded = store.load(&run).await.expect("load").expect("created");
    assert_eq!(loaded.entries, [started("p"), requested, completed()]);
    assert_eq!((loaded.script.as_str(), loaded.summary.status), ("script", Status::Completed));
    assert_eq!((loaded.summary.confidence, &loaded.summary), (Some(0.75), &ended));
    let tail = store.tail(&run, 2).await.expect("tail");
    assert_eq!(tail, Some((ended.clone(), vec![completed()])));
    assert_eq!(store.tail(&run, 7).await.expect("tail"), Some((ended.clone(), vec![])));
    assert!(store.load(&key("t2", "run-a")).await.expect("load").is_none(), "tenants are apart");
    let nowhere = Summary { key: key("t1", "none"), ..begun };
    let unknown = store.append("me", &nowhere, &[]).await;
    assert!(matches!(unknown, Err(StoreError::Missing { .. })), "{unknown:?}");
    let nowhere = store.append("me", &nowhere, &[completed()]).await;
    assert!(matches!(nowhere, Err(StoreError::Missing { .. })), "{nowhere:?}");
}

/// Clauses 2 and 5 of [`RunStore`]: a run is its owner's until that one is silent, and then another's. `wait` lets
/// that much time pass.
pub async fn runs_are_owned<F: Future<Output = ()>>(store: &dyn RunStore, wait: impl Fn(Duration) -> F) {
    let ttl = Duration::from_secs(2);
    let kept = async |owner| store.keep(owner, ttl, 10).await.expect("keep");
    assert!(kept("a").await.is_empty());
    let run = key("owned", "run-1");
    let begun = store.create("a", &run, "s", &[started("p")]).await.expect("create");
    assert!(kept("b").await.is_empty(), "its owner is there");
    let early = store.append("b", &begun, &[completed()]).await;
    assert!(matches!(early, Err(StoreError::Fenced { .. })), "{early:?}");
    wait(ttl / 2).await;
    assert!(kept("a").await.is_empty());
    wait(ttl * 3 / 4).await;
    assert!(kept("b").await.is_empty(), "renewed since");
    wait(ttl * 3 / 4).await;
    assert_eq!(kept("b").await, std::slice::from_ref(&run));
    assert!(kept("c").await.is_empty(), "given once");
    let late = store.append("a", &begun, &[completed()]).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    let late = store.append("a", &begun, &[]).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "without entries too: {late:?}");
    assert_eq!(store.append("b", &begun, &[]).await.expect("append"), begun);
    let moved = store.append("b", &begun, &[requested(json!(1))]).await.expect("append");
    store.leave("b").await.expect("leave");
    assert_eq!(store.keep("c", ttl, 0).await.expect("keep"), [], "asked for none");
    assert_eq!(kept("c").await, [run], "at once: it has left");
    store.append("c", &moved, &[completed()]).await.expect("append");
    store.leave("c").await.expect("leave");
    assert!(kept("a").await.is_empty(), "an ended run needs nobody");
}

/// [`RunStore::close`]: whoever drives it, once.
pub async fn runs_are_closed(store: &dyn RunStore) {
    let run = key("closed", "run-1");
    let begun = store.create("a", &run, "s", &[started("p")]).await.expect("create");
    let at = begun.started_at;
    let end = || Entry { at, event: Event::Cancelled { reason: "enough".to_owned() } };
    let asked = store.append("a", &begun, &[requested(json!(1))]).await.expect("append");
    let closed = store.close(&run, end()).await.expect("close");
    assert_eq!((closed.status, closed.len), (Status::Cancelled, 3));
    let late = store.append("a", &asked, &[completed()]).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
    let twice = store.close(&run, end()).await;
    assert!(matches!(twice, Err(StoreError::Conflict { .. })), "{twice:?}");
    let nowhere = store.close(&key("closed", "none"), end()).await;
    assert!(matches!(nowhere, Err(StoreError::Missing { .. })), "{nowhere:?}");
    assert_eq!(store.load(&run).await.expect("load").expect("created").summary, closed);
}

/// Clause 6 of [`RunStore`], and its hints.
pub async fn runs_carry_large_entries_and_hint(store: &dyn RunStore) {
    let mut hints = store.hints().await.expect("hints");
    let run = key("large", "run-1");
    let begun = store.create("a", &run, "s", &[started("p")]).await.expect("create");
    let large = requested(json!("x".repeat(3_000_000)));
    let grown = store.append("a", &begun, &[large.clone(), requested(json!(2))]).await.expect("append");
    store.append("a", &grown, &[completed()]).await.expect("append");
    let loaded = store.load(&run).await.expect("load").expect("created");
    assert_eq!(loaded.entries, [started("p"), large, requested(json!(2)), completed()]);
    loop {
        let hint = hints.next().await.expect("hints go on");
        assert_eq!(hint.run, run);
        if hint.status == Status::Completed {
            break;
        }
    }
}

/// [`RunStore::list`]: newest first, filtered, paged by cursor and by offset.
pub async fn runs_are_listed(store: &dyn RunStore) {
    for i in 0..7 {
        let run = key("lists", &format!("run-{i}"));
        let pattern = if i % 2 == 0 { "even" } else { "odd" };
        let begun = store.create("me", &run, "s", &[started(pattern)]).await.expect("create");
        if i < 3 {
            store.append("me", &begun, &[completed()]).await.expect("append");
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
