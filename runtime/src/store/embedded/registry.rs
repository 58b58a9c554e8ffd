//! The registry in a file: SQLite for what must survive, memory for reads, watches and deadlines.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::warn;

use super::database::Database;
use crate::{
    env::Env,
    lifecycle::Lifecycle,
    store::{Change, Entry, Expect, RegistryStore, Result, Revision, Snapshot, StoreError},
};

/// Changes that a watch may lag behind before it must list again.
const HISTORY: usize = 16_384;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE IF NOT EXISTS entries (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease TEXT
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS entries_by_lease ON entries (lease) WHERE lease IS NOT NULL;
    CREATE TABLE IF NOT EXISTS leases (id TEXT PRIMARY KEY, ttl_ms INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS revision (one INTEGER PRIMARY KEY CHECK (one = 1), value INTEGER NOT NULL);
    INSERT OR IGNORE INTO revision VALUES (1, 0);
"];

/// The embedded [`RegistryStore`].
pub(in crate::store) struct Registry {
    database: Database,
    env: Arc<dyn Env>,
    shared: Arc<Shared>,
}

/// What the store's thread publishes to, after each commit.
struct Shared {
    state: Mutex<State>,
    /// The latest revision; wakes watches.
    revision: watch::Sender<Revision>,
    /// A deadline may have moved closer.
    leases_changed: Notify,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    history: VecDeque<Change>,
    /// The revision before the first of `history`.
    floor: Revision,
    leases: HashMap<String, Lease>,
}

struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl Registry {
    pub(in crate::store) async fn open(
        file: Option<PathBuf>,
        env: Arc<dyn Env>,
        life: &Lifecycle,
    ) -> Result<Arc<Self>> {
        let database = Database::open(file, MIGRATIONS).await?;
        let (revision, entries, leases) = database.write(load).await?;
        let now = Instant::now();
        let state = State {
            entries: entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect(),
            floor: revision,
            history: VecDeque::new(),
            leases: leases.into_iter().map(|(id, ttl)| (id, Lease { ttl, deadline: now + ttl })).collect(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            revision: watch::Sender::new(revision),
            leases_changed: Notify::new(),
        });
        let registry = Arc::new(Self { database, env, shared });
        life.spawn_until_stopped("lease expiry", registry.clone().expire());
        Ok(registry)
    }

    /// Revokes leases as their time runs out.
    async fn expire(self: Arc<Self>) {
        loop {
            let next = self.shared.state.lock().leases.values().map(|lease| lease.deadline).min();
            let wait = async {
                match next {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.shared.leases_changed.notified() => continue,
            }
            let now = Instant::now();
            let due: Vec<String> = {
                let state = self.shared.state.lock();
                let due = state.leases.iter().filter(|(_, lease)| lease.deadline <= now);
                due.map(|(id, _)| id.clone()).collect()
            };
            if let Err(e) = self.end_leases(due, Some(now)).await {
                warn!("leases could not be expired, trying again: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// Deletes leases and what they keep; with `due_at`, only those whose deadline has passed by then.
    async fn end_leases(&self, ids: Vec<String>, due_at: Option<Instant>) -> Result<()> {
        let (shared, publisher) = (self.shared.clone(), self.shared.clone());
        let work = move |connection: &Connection| {
            let mut changes = Vec::new();
            for id in ids {
                // Renewals happen in memory: whoever takes the lease out of it first has decided.
                {
                    let mut state = shared.state.lock();
                    let due = |lease: &Lease| due_at.is_none_or(|now| lease.deadline <= now);
                    if state.leases.get(&id).is_none_or(due) {
                        state.leases.remove(&id);
                    } else {
                        continue;
                    }
                }
                connection.prepare_cached("DELETE FROM leases WHERE id = ?")?.execute([&id])?;
                let keys: Vec<String> = connection
                    .prepare_cached("SELECT key FROM entries WHERE lease = ? ORDER BY key")?
                    .query_map([&id], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                for key in keys {
                    connection.prepare_cached("DELETE FROM entries WHERE key = ?")?.execute([&key])?;
                    changes.push(Change::Delete { key, revision: next_revision(connection)? });
                }
            }
            Ok(changes)
        };
        self.database.write_then(work, move |changes| publisher.publish(changes)).await
    }

    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<(T, Option<Change>)> + Send + 'static,
    ) -> Result<T> {
        let shared = self.shared.clone();
        self.database
            .write_then(work, move |(value, change)| {
                shared.publish(change.into_iter().collect());
                value
            })
            .await
    }
}

impl Shared {
    /// Begins a lease's time anew at `now`, with another time to live if one is given.
    fn extend(&self, lease: &str, ttl: Option<Duration>, now: Instant) -> Result<Duration> {
        let mut state = self.state.lock();
        match state.leases.get_mut(lease).filter(|lease| lease.deadline > now) {
            Some(lease) => {
                lease.ttl = ttl.unwrap_or(lease.ttl);
                lease.deadline = now + lease.ttl;
                Ok(lease.ttl)
            }
            None => Err(StoreError::Missing { what: format!("lease {lease}") }),
        }
    }

    /// Makes committed changes visible, in order.
    fn publish(&self, changes: Vec<Change>) {
        let Some(latest) = changes.last().map(Change::revision) else { return };
        {
            let mut state = self.state.lock();
            for change in changes {
                match &change {
                    Change::Put(entry) => _ = state.entries.insert(entry.key.clone(), entry.clone()),
                    Change::Delete { key, .. } => _ = state.entries.remove(key),
                }
                state.history.push_back(change);
            }
            while state.history.len() > HISTORY {
                state.floor = state.history.pop_front().expect("longer than its bound").revision();
            }
        }
        self.revision.send_replace(latest);
    }
}

#[async_trait]
impl RegistryStore for Registry {
    async fn put(&self, key: &str, value: Vec<u8>, lease: Option<&str>, expect: Expect) -> Result<Revision> {
        let (key, lease) = (key.to_owned(), lease.map(str::to_owned));
        self.change(move |connection| {
            check(connection, &key, expect)?;
            if let Some(lease) = &lease {
                let mut known = connection.prepare_cached("SELECT 1 FROM leases WHERE id = ?")?;
                if !known.exists([lease])? {
                    return Err(StoreError::Missing { what: format!("lease {lease}") });
                }
            }
            let revision = next_revision(connection)?;
            connection
                .prepare_cached("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)")?
                .execute(params![key, value, revision, lease])?;
            Ok((revision, Some(Change::Put(Entry { key, value, revision, lease }))))
        })
        .await
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<Option<Revision>> {
        let key = key.to_owned();
        self.change(move |connection| {
            check(connection, &key, expect)?;
            if connection.prepare_cached("DELETE FROM entries WHERE key = ?")?.execute([&key])? == 0 {
                return Ok((None, None));
            }
            let revision = next_revision(connection)?;
            Ok((Some(revision), Some(Change::Delete { key, revision })))
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        Ok(self.shared.state.lock().entries.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot> {
        let state = self.shared.state.lock();
        let revision = state.history.back().map_or(state.floor, Change::revision);
        let from = state.entries.range(prefix.to_owned()..);
        let entries = from.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, e)| e.clone()).collect();
        Ok(Snapshot { revision, entries })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<BoxStream<'static, Result<Change>>> {
        let mut watch = Watch {
            shared: self.shared.clone(),
            woken: self.shared.revision.subscribe(),
            prefix: prefix.to_owned(),
            after,
        };
        // Reads once before it answers, so that a revision that is gone is this call's error.
        let mut first = watch.next()?;
        let batches = stream::try_unfold(watch, move |mut watch| {
            let mut changes = std::mem::take(&mut first);
            async move {
                while changes.is_empty() {
                    // The sender lives in `shared`, which the watch holds.
                    watch.woken.changed().await.map_err(|_| StoreError::Closed)?;
                    changes = watch.next()?;
                }
                Ok::<_, StoreError>(Some((stream::iter(changes.into_iter().map(Ok)), watch)))
            }
        });
        Ok(batches.try_flatten().boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<String> {
        let id = self.env.id();
        let (row, shared) = (id.clone(), self.shared.clone());
        let work = move |connection: &Connection| {
            let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            connection.prepare_cached("INSERT INTO leases VALUES (?, ?)")?.execute(params![row, ttl_ms])?;
            Ok(row)
        };
        let deadline = Instant::now() + ttl;
        self.database
            .write_then(work, move |row| {
                shared.state.lock().leases.insert(row, Lease { ttl, deadline });
                shared.leases_changed.notify_one();
            })
            .await?;
        Ok(id)
    }

    async fn renew(&self, lease: &str, ttl: Option<Duration>) -> Result<Duration> {
        let had = self.shared.extend(lease, None, Instant::now())?;
        let Some(wanted) = ttl.filter(|wanted| *wanted != had) else { return Ok(had) };
        let (row, shared) = (lease.to_owned(), self.shared.clone());
        let work = move |connection: &Connection| {
            let ttl_ms = i64::try_from(wanted.as_millis()).unwrap_or(i64::MAX);
            let mut update = connection.prepare_cached("UPDATE leases SET ttl_ms = ? WHERE id = ?")?;
            update.execute(params![ttl_ms, row])?;
            Ok(row)
        };
        // Taken here: the store's thread has no part in the runtime's time, which tests pause.
        let now = Instant::now();
        let publish = move |row: String| {
            let extended = shared.extend(&row, Some(wanted), now);
            shared.leases_changed.notify_one();
            extended
        };
        self.database.write_then(work, publish).await?
    }

    async fn revoke(&self, lease: &str) -> Result<()> {
        self.end_leases(vec![lease.to_owned()], None).await
    }
}

/// Where a watcher stands.
struct Watch {
    shared: Arc<Shared>,
    woken: watch::Receiver<Revision>,
    prefix: String,
    after: Revision,
}

impl Watch {
    /// The changes after `after`, which moves along, whatever their keys.
    fn next(&mut self) -> Result<Vec<Change>> {
        let state = self.shared.state.lock();
        if self.after < state.floor {
            return Err(StoreError::Compacted { asked: self.after, oldest: state.floor });
        }
        let new = state.history.partition_point(|change| change.revision() <= self.after);
        let new = state.history.range(new..);
        let ours = new.filter(|change| change.key().starts_with(&self.prefix)).cloned().collect();
        self.after = self.after.max(state.history.back().map_or(0, Change::revision));
        Ok(ours)
    }
}

/// The revision, all entries, and each lease with its time to live.
type Stored = (Revision, Vec<Entry>, Vec<(String, Duration)>);

fn load(connection: &Connection) -> Result<Stored> {
    let revision = connection.query_row("SELECT value FROM revision", [], |row| row.get(0))?;
    let entries = connection
        .prepare("SELECT key, value, revision, lease FROM entries")?
        .query_map([], |row| {
            Ok(Entry { key: row.get(0)?, value: row.get(1)?, revision: row.get(2)?, lease: row.get(3)? })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let leases = connection
        .prepare("SELECT id, ttl_ms FROM leases")?
        .query_map([], |row| Ok((row.get(0)?, Duration::from_millis(row.get(1)?))))?
        .collect::<rusqlite::Result<_>>()?;
    Ok((revision, entries, leases))
}

fn check(connection: &Connection, key: &str, expect: Expect) -> Result<()> {
    let found: Option<Revision> = connection
        .prepare_cached("SELECT revision FROM entries WHERE key = ?")?
        .query_row([key], |row| row.get(0))
        .optional()?;
    let met = match expect {
        Expect::Anything => true,
        Expect::Absent => found.is_none(),
        Expect::At(revision) => found == Some(revision),
    };
    if met { Ok(()) } else { Err(StoreError::Conflict { what: key.to_owned() }) }
}

fn next_revision(connection: &Connection) -> Result<Revision> {
    let next = "UPDATE revision SET value = value + 1 RETURNING value";
    Ok(connection.prepare_cached(next)?.query_row([], |row| row.get(0))?)
}
