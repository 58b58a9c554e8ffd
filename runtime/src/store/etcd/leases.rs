//! Leases whose silence counts only while it could have been heard.
//!
//! A lease of ours is an etcd lease, and its id is that one's. What is put with it hangs on it in etcd, and beside that
//! `/parallax/leases/<id>`, its record: the time to live, in milliseconds. A renewal keeps the etcd lease alive and
//! writes nothing. etcd itself would end the lease only after [`KEPT`]: it cannot know whether renewals could reach it,
//! and when it is stopped and goes on, it takes the time between for silence. So each process reads off the remaining
//! time how long a lease has been silent, and ends it when that is longer than its time to live *and* this process has
//! heard from etcd, without a gap, for as long. After a gap, after a restart of either, all leases begin anew.
//!
//! To end a lease, its record is overwritten with [`ENDED`] if it is what it was when the silence was measured, and
//! only then the etcd lease is revoked, which deletes all that hangs on it. A renewal that may come too late writes the
//! record, so of the two one wins.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp};
use futures::future::try_join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::warn;

use super::{
    cluster::{self, ATTEMPT, Cluster},
    feed::Feed,
    unsigned,
};
use crate::store::{Change, Entry, Result, StoreError};

const RECORDS: &str = "/parallax/leases/";
/// The record of a lease that is being ended.
const ENDED: &str = "ended";
/// When etcd itself ends a lease: no process was there for a month. The longest time to live.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// etcd tells the remaining time in whole seconds, rounded down.
const ROUNDING: Duration = Duration::from_secs(1);
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Longer than a watch is silent while all is well.
const GAP: Duration = Duration::from_secs(2);
/// Leases that are ended at once, in one tick.
const AT_ONCE: usize = 64;

/// All leases, of every process.
pub(super) struct Leases {
    cluster: Arc<Cluster>,
    book: Mutex<HashMap<String, Lease>>,
}

/// What this process knows of a lease.
struct Lease {
    /// None when it is being ended.
    ttl: Option<Duration>,
    /// It has not been silent for its time to live before then.
    deadline: Instant,
    /// When this process last renewed it.
    renewed: Option<Instant>,
}

impl Leases {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, book: Mutex::default() }
    }

    pub(super) async fn grant(&self, ttl: Duration) -> Result<String> {
        let (ttl, now) = (ttl.min(KEPT), Instant::now());
        // An attempt whose answer is lost leaves an empty etcd lease, until its time is up.
        let grant = |mut client: Client| async move {
            let kept = i64::try_from(KEPT.as_secs()).expect("a month");
            let lease = client.lease_grant(kept, None).await.map_err(cluster::fault)?.id();
            let options = PutOptions::new().with_lease(lease);
            client.put(record(lease), encode(ttl), Some(options)).await.map_err(cluster::fault)?;
            Ok(lease)
        };
        let id = name(self.cluster.call(grant).await?);
        self.renewed(&id, ttl, now);
        Ok(id)
    }

    pub(super) async fn renew(&self, id: &str, ttl: Option<Duration>) -> Result<Duration> {
        let (lease, now) = (parse(id)?, Instant::now());
        let known = self.book.lock().get(id).map(|lease| (lease.ttl, lease.renewed));
        let mut had = known.and_then(|(ttl, _)| ttl);
        if had.is_none() {
            let read = |mut client: Client| async move {
                client.get(record(lease), None).await.map_err(cluster::fault)
            };
            had = self.cluster.call(read).await?.kvs().first().and_then(|kv| decode(kv.value()));
        }
        let had = had.ok_or_else(|| missing(id))?;
        let ttl = ttl.map_or(had, |ttl| ttl.min(KEPT));
        // Nobody ends what we have renewed within its time to live; else we must be quicker than whoever is about to.
        let in_time = known.and_then(|(_, renewed)| renewed).is_some_and(|renewed| now < renewed + had);
        if in_time {
            // It has been heard, whatever keeps etcd from hearing it for a moment.
            self.book.lock().entry(id.to_owned()).and_modify(|lease| lease.deadline = now + had);
        }
        let renew = |mut client: Client| async move {
            if ttl != had || !in_time {
                let not_ended = Compare::value(record(lease), CompareOp::NotEqual, ENDED);
                let put = TxnOp::put(record(lease), encode(ttl), Some(PutOptions::new().with_lease(lease)));
                let written = client.txn(Txn::new().when([not_ended]).and_then([put])).await;
                if !written.map_err(cluster::fault)?.succeeded() {
                    return Err(missing(id));
                }
            }
            client.lease_keep_alive(lease).await.map_err(cluster::fault)
        };
        self.cluster.call(renew).await?;
        self.renewed(id, ttl, now);
        Ok(ttl)
    }

    pub(super) async fn revoke(&self, id: &str) -> Result<()> {
        let Ok(lease) = parse(id) else { return Ok(()) };
        let revoke = |mut client: Client| async move {
            match client.lease_revoke(lease).await.map_err(cluster::fault) {
                Ok(_) | Err(StoreError::Missing { .. }) => Ok(()),
                Err(e) => Err(e),
            }
        };
        self.cluster.call(revoke).await?;
        self.book.lock().remove(id);
        Ok(())
    }

    fn renewed(&self, id: &str, ttl: Duration, at: Instant) {
        let lease = Lease { ttl: Some(ttl), deadline: at + ttl, renewed: Some(at) };
        self.book.lock().insert(id.to_owned(), lease);
    }

    /// Ends leases as their time runs out, for ever.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            let Err(e) = self.follow().await;
            warn!("leases are not heard of, and none ends until they are: {e}");
            tokio::time::sleep(TICK).await;
        }
    }

    /// Lets all leases begin anew, and ends them in time, as long as etcd is heard.
    async fn follow(&self) -> Result<Infallible> {
        let snapshot = self.cluster.list(RECORDS).await?;
        let mut feed = Feed::open(self.cluster.clone(), RECORDS, snapshot.revision).await?;
        {
            let mut book = self.book.lock();
            let before = std::mem::take(&mut *book);
            for entry in &snapshot.entries {
                write_down(&mut book, entry, before.get(id_of(&entry.key)));
            }
        }
        let mut heard = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                changes = feed.next() => {
                    let changes = changes?;
                    let mut book = self.book.lock();
                    if heard.elapsed() >= GAP {
                        begin_anew(&mut book);
                    }
                    heard = Instant::now();
                    for change in changes {
                        match change {
                            Change::Put(entry) => {
                                let before = book.remove(id_of(&entry.key));
                                write_down(&mut book, &entry, before.as_ref());
                            }
                            Change::Delete { key, .. } => _ = book.remove(id_of(&key)),
                        }
                    }
                }
                _ = ticks.tick() => if heard.elapsed() < GAP {
                    self.end_due().await?;
                }
            }
        }
    }

    async fn end_due(&self) -> Result<()> {
        let now = Instant::now();
        let due: Vec<String> = {
            let book = self.book.lock();
            let due = book.iter().filter(|(_, lease)| lease.deadline + ROUNDING <= now);
            due.map(|(id, _)| id.clone()).take(AT_ONCE).collect()
        };
        try_join_all(due.iter().map(|id| self.end_if_silent(id))).await.map(drop)
    }

    async fn end_if_silent(&self, id: &str) -> Result<()> {
        let lease = parse(id)?;
        let judge = |mut client: Client| async move {
            // A majority answers through this member now, so its word on the lease is not that of a former leader.
            let found = client.get(record(lease), None).await.map_err(cluster::fault)?;
            let Some(found) = found.kvs().first() else { return Ok(Verdict::Gone) };
            let Some(ttl) = decode(found.value()) else { return Ok(Verdict::Ended) };
            let left = client.lease_time_to_live(lease, None).await.map_err(cluster::fault)?;
            let silent = Duration::from_secs(unsigned(left.granted_ttl() - left.ttl()));
            if silent < ttl + ROUNDING {
                return Ok(Verdict::Wait(ttl - silent.saturating_sub(ROUNDING)));
            }
            let unchanged = Compare::mod_revision(record(lease), CompareOp::Equal, found.mod_revision());
            let put = TxnOp::put(record(lease), ENDED, Some(PutOptions::new().with_lease(lease)));
            let written = client.txn(Txn::new().when([unchanged]).and_then([put])).await;
            let written = written.map_err(cluster::fault)?.succeeded();
            Ok(if written { Verdict::Ended } else { Verdict::Wait(ttl) })
        };
        match self.cluster.call(judge).await? {
            Verdict::Ended => self.revoke(id).await?,
            Verdict::Gone => _ = self.book.lock().remove(id),
            Verdict::Wait(time) => {
                if let Some(lease) = self.book.lock().get_mut(id) {
                    lease.deadline = lease.deadline.max(Instant::now() + time);
                }
            }
        }
        Ok(())
    }
}

/// Whether a lease is to be ended.
enum Verdict {
    Ended,
    /// It is not there any more.
    Gone,
    /// It may be silent for so long yet.
    Wait(Duration),
}

/// Takes down a record, as one that was written just now.
fn write_down(book: &mut HashMap<String, Lease>, entry: &Entry, before: Option<&Lease>) {
    let id = id_of(&entry.key);
    if parse(id).is_ok() {
        let ttl = decode(&entry.value);
        let deadline = Instant::now() + ttl.unwrap_or(ATTEMPT);
        book.insert(
            id.to_owned(),
            Lease { ttl, deadline, renewed: before.and_then(|before| before.renewed) },
        );
    }
}

fn begin_anew(book: &mut HashMap<String, Lease>) {
    let now = Instant::now();
    for lease in book.values_mut() {
        lease.deadline = lease.deadline.max(now + lease.ttl.unwrap_or_default());
    }
}

/// The id of an etcd lease, as etcdctl writes it.
pub(super) fn name(lease: i64) -> String {
    format!("{lease:x}")
}

pub(super) fn parse(id: &str) -> Result<i64> {
    i64::from_str_radix(id, 16).map_err(|_| missing(id))
}

fn missing(id: &str) -> StoreError {
    StoreError::Missing { what: format!("lease {id}") }
}

fn record(lease: i64) -> String {
    format!("{RECORDS}{}", name(lease))
}

fn id_of(record: &str) -> &str {
    record.strip_prefix(RECORDS).unwrap_or_default()
}

fn encode(ttl: Duration) -> String {
    ttl.as_millis().to_string()
}

/// The time to live in a record; none when the lease is being ended.
fn decode(record: &[u8]) -> Option<Duration> {
    std::str::from_utf8(record).ok()?.parse().map(Duration::from_millis).ok()
}
