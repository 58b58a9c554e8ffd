//! The registry on etcd, 3.4 or later.
//!
//! Keys stand in etcd as they are, under etcd's own revisions. One member is asked, and the next when it fails
//! ([`cluster`]); a watch has a heartbeat ([`feed`]); a lease is an etcd lease, which says how long it has been silent,
//! and ends only when somebody could have heard it ([`leases`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Client, Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use tracing::info;

use self::{cluster::Cluster, feed::Feed, leases::Leases};
use crate::{
    env::Env,
    lifecycle::Lifecycle,
    store::{Change, Entry, Expect, RegistryStore, Result, Revision, Snapshot, StoreError},
};

mod cluster;
mod feed;
mod leases;

/// The [`RegistryStore`] on etcd.
pub(super) struct Registry {
    cluster: Arc<Cluster>,
    leases: Arc<Leases>,
}

impl Registry {
    pub(super) async fn open(url: &str, env: Arc<dyn Env>, life: &Lifecycle) -> Result<Arc<Self>> {
        let cluster = Arc::new(Cluster::open(url, env).await?);
        let leases = Arc::new(Leases::new(cluster.clone()));
        life.spawn_until_stopped("lease expiry", leases.clone().keep());
        Ok(Arc::new(Self { cluster, leases }))
    }

    /// Changes `key` if `expect` is met; `read` reads the answer.
    ///
    /// An attempt whose answer was lost may have done it. The next does not do it twice, as `expect` is no longer met:
    /// then `done` tells from what stands there, and the revision, whether it was ours. If it was not, somebody else has
    /// changed the key: after us or in our stead, which nobody knows.
    async fn change<T>(
        &self,
        key: &str,
        expect: Expect,
        change: TxnOp,
        read: &(dyn Fn(&TxnResponse) -> T + Sync),
        done: &(dyn Fn(Option<&KeyValue>, Revision) -> Option<T> + Sync),
    ) -> Result<T> {
        let at = match expect {
            Expect::At(revision) => revision,
            Expect::Absent => 0,
            // A member that was silent may yet do what another has done in its stead: no change is unconditional.
            Expect::Anything => loop {
                let at = self.get(key).await?.map_or(Expect::Absent, |entry| Expect::At(entry.revision));
                match Box::pin(self.change(key, at, change.clone(), read, done)).await {
                    Err(StoreError::Conflict { .. }) => {}
                    answer => return answer,
                }
            },
        };
        // Revision 0 is that of a key that is not there.
        let at = Compare::mod_revision(key, CompareOp::Equal, i64::try_from(at).unwrap_or(i64::MAX));
        let txn = Txn::new().when([at]).and_then([change]).or_else([TxnOp::get(key, None)]);
        let (txn, asked) = (&txn, &AtomicBool::new(false));
        let attempt = |mut client: Client| async move {
            let again = asked.swap(true, Ordering::Relaxed);
            let answer = client.txn(txn.clone()).await.map_err(cluster::fault)?;
            if answer.succeeded() {
                return Ok(read(&answer));
            }
            let found = match answer.op_responses().pop() {
                Some(TxnOpResponse::Get(mut found)) => found.take_kvs().pop(),
                _ => None,
            };
            let what = key.to_owned();
            if !again {
                return Err(StoreError::Conflict { what });
            }
            let problem = "another attempt may have changed it, and then somebody else".to_owned();
            done(found.as_ref(), cluster::revision(answer.header()))
                .ok_or(StoreError::InDoubt { what, problem })
        };
        self.cluster.call(attempt).await
    }
}

#[async_trait]
impl RegistryStore for Registry {
    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<&str>, expect: Expect) -> Result<Revision> {
        let lease = lease.map_or(Ok(0), leases::parse)?;
        let put = TxnOp::put(key, value.clone(), Some(PutOptions::new().with_lease(lease)));
        let read = |answer: &TxnResponse| cluster::revision(answer.header());
        let done = |found: Option<&KeyValue>, _| {
            let ours = found.filter(|found| found.value() == value && found.lease() == lease);
            ours.map(|ours| unsigned(ours.mod_revision()))
        };
        self.change(key, expect, put, &read, &done).await
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<Option<Revision>> {
        let read = |answer: &TxnResponse| match answer.op_responses().first() {
            Some(TxnOpResponse::Delete(deleted)) if deleted.deleted() > 0 => {
                Some(cluster::revision(answer.header()))
            }
            _ => None,
        };
        let done = |found: Option<&KeyValue>, now| found.is_none().then_some(Some(now));
        self.change(key, expect, TxnOp::delete(key, None), &read, &done).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let get = |mut client: Client| async move { client.get(key, None).await.map_err(cluster::fault) };
        self.cluster.call(get).await?.take_kvs().first().map(entry).transpose()
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot> {
        self.cluster.list(prefix).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<BoxStream<'static, Result<Change>>> {
        let feed = Feed::open(self.cluster.clone(), prefix, after).await?;
        let batches = stream::try_unfold(feed, |mut feed| async move {
            loop {
                match feed.next().await {
                    Ok(changes) if changes.is_empty() => {}
                    Ok(changes) => {
                        return Ok(Some((stream::iter(changes.into_iter().map(Ok)), feed)));
                    }
                    Err(StoreError::Away(problem)) => {
                        info!("a watch on etcd broke off and is taken up again: {problem}");
                        feed.reopen().await?;
                    }
                    Err(e) => return Err(e),
                }
            }
        });
        Ok(batches.try_flatten().boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<String> {
        self.leases.grant(ttl).await
    }

    async fn renew(&self, lease: &str, ttl: Option<Duration>) -> Result<Duration> {
        self.leases.renew(lease, ttl).await
    }

    async fn revoke(&self, lease: &str) -> Result<()> {
        self.leases.revoke(lease).await
    }
}

fn entry(kv: &KeyValue) -> Result<Entry> {
    Ok(Entry {
        key: text(kv.key())?,
        value: kv.value().to_vec(),
        revision: unsigned(kv.mod_revision()),
        lease: (kv.lease() != 0).then(|| leases::name(kv.lease())),
    })
}

fn text(key: &[u8]) -> Result<String> {
    String::from_utf8(key.to_vec())
        .map_err(|_| StoreError::Corrupt(format!("{} is not a key of text", String::from_utf8_lossy(key))))
}

/// etcd counts in signed numbers that are never negative.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
