//! What stands below a prefix of the registry store, followed, and kept in memory.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use parallax_runtime::{
    lifecycle::Lifecycle,
    store::{Change, Entry, RegistryStore, Revision},
};
use parking_lot::RwLock;
use tokio::sync::watch;
use tracing::warn;

use crate::error::Result;

/// Before a store that cannot be followed is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a write waits for its own change to be seen: a watch that falls silent is replaced by then.
const SEEN: Duration = Duration::from_secs(10);

/// What a store tells.
pub(crate) enum News {
    /// Everything there is: at the beginning, and when changes were missed.
    All(Vec<Entry>),
    /// One change to it.
    One(Change),
}

/// Everything below a prefix, then every change, each with the revision it brings. Never ends; after an error it
/// begins again with everything.
pub(crate) fn follow(
    store: Arc<dyn RegistryStore>,
    prefix: &'static str,
) -> impl Stream<Item = Result<(Revision, News)>> + Send + 'static {
    stream::repeat(()).then(move |()| follow_once(store.clone(), prefix)).flatten()
}

async fn follow_once(
    store: Arc<dyn RegistryStore>,
    prefix: &str,
) -> BoxStream<'static, Result<(Revision, News)>> {
    let begin = async {
        let snapshot = store.list(prefix).await?;
        let changes = store.watch(prefix, snapshot.revision).await?;
        Ok((snapshot, changes))
    };
    match begin.await {
        Err(e) => stream::iter([Err(e)]).boxed(),
        Ok((snapshot, changes)) => {
            let first = Ok((snapshot.revision, News::All(snapshot.entries)));
            let changes = changes.map_ok(|change| (change.revision(), News::One(change)));
            stream::iter([first]).chain(changes.map_err(Into::into)).boxed()
        }
    }
}

/// Everything below a prefix, in memory.
pub(crate) struct Mirror<T> {
    entries: RwLock<BTreeMap<String, Arc<T>>>,
    revision: watch::Sender<Revision>,
    decode: fn(&Entry) -> Result<T>,
}

impl<T: Send + Sync + 'static> Mirror<T> {
    /// Reads what is there and follows it from then on. An entry that cannot be decoded is left out and logged:
    /// a later release may have written it.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn open(
        store: Arc<dyn RegistryStore>,
        prefix: &'static str,
        decode: fn(&Entry) -> Result<T>,
        life: &Lifecycle,
    ) -> Result<Arc<Self>> {
        let mirror = Arc::new(Self { entries: RwLock::default(), revision: watch::Sender::new(0), decode });
        let mut news = Box::pin(follow(store, prefix));
        mirror.apply(news.next().await.expect("a follower's stream never ends")?);
        let following = mirror.clone();
        life.spawn_until_stopped("mirror", async move {
            while let Some(news) = news.next().await {
                match news {
                    Ok(news) => following.apply(news),
                    Err(e) => {
                        warn!("the registry store cannot be followed, trying again: {e}");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        });
        Ok(mirror)
    }

    fn apply(&self, (revision, news): (Revision, News)) {
        let decoded = |entry: Entry| match (self.decode)(&entry) {
            Ok(value) => Some((entry.key, Arc::new(value))),
            Err(e) => {
                warn!("left out: {e}");
                None
            }
        };
        match news {
            News::All(all) => *self.entries.write() = all.into_iter().filter_map(decoded).collect(),
            News::One(Change::Put(entry)) => self.entries.write().extend(decoded(entry)),
            News::One(Change::Delete { key, .. }) => _ = self.entries.write().remove(&key),
        }
        self.revision.send_replace(revision);
    }

    /// Waits until a revision shows here that we have written. If the store went away meanwhile, it shows when the store
    /// is back.
    pub(crate) async fn seen(&self, revision: Revision) {
        let mut revisions = self.revision.subscribe();
        tokio::time::timeout(SEEN, revisions.wait_for(|seen| *seen >= revision)).await.ok();
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<T>> {
        self.entries.read().get(key).cloned()
    }

    /// What has keys with a prefix, in their order.
    pub(crate) fn below(&self, prefix: &str) -> Vec<(String, Arc<T>)> {
        let entries = self.entries.read();
        let from = entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        from.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}
