//! Journals in a file: a row for each entry, and one for each run with the fold of its entries.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, ToSql, params, params_from_iter};
use tokio::{sync::broadcast, time::Instant};

use super::database::Database;
use crate::{
    run::{Entry, Event, Run, RunKey, Summary},
    store::{Hint, INLINE, Result, RunPage, RunQuery, RunStore, StoreError, decode, encode, heard},
};

const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE IF NOT EXISTS scripts (hash TEXT PRIMARY KEY, source TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS runs (
        tenant TEXT NOT NULL, id TEXT NOT NULL, pattern TEXT NOT NULL, status TEXT NOT NULL,
        script_hash TEXT NOT NULL, summary TEXT NOT NULL, PRIMARY KEY (tenant, id)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS runs_by_status ON runs (tenant, status, id);
    CREATE TABLE IF NOT EXISTS entries (
        tenant TEXT NOT NULL, run TEXT NOT NULL, position INTEGER NOT NULL, entry TEXT NOT NULL,
        PRIMARY KEY (tenant, run, position)
    ) WITHOUT ROWID;
    ",
    // Owners, and large entries apart: then the entry in the row is empty.
    "
    ALTER TABLE runs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    CREATE INDEX runs_alive ON runs (owner, id) WHERE status IN ('pending', 'running');
    CREATE TABLE payloads (
        tenant TEXT NOT NULL, run TEXT NOT NULL, position INTEGER NOT NULL, entry TEXT NOT NULL,
        PRIMARY KEY (tenant, run, position)
    );
    ",
];
/// Hints that a slow follower may be behind before it misses some.
const HINTS: usize = 1024;

/// The embedded [`RunStore`].
///
/// Owners live in memory: the file belongs to one process at a time, so whoever owned runs before it was opened is
/// gone.
pub(in crate::store) struct Runs {
    database: Database,
    /// Until when each has said that it is there.
    owners: Arc<Mutex<HashMap<String, Instant>>>,
    hints: broadcast::Sender<Hint>,
}

impl Runs {
    pub(in crate::store) async fn open(file: Option<PathBuf>) -> Result<Self> {
        let database = Database::open(file, MIGRATIONS).await?;
        Ok(Self { database, owners: Arc::default(), hints: broadcast::Sender::new(HINTS) })
    }

    /// Writes, and says that the run has grown once that is on disk.
    async fn grow(
        &self,
        work: impl FnOnce(&Connection) -> Result<Summary> + Send + 'static,
    ) -> Result<Summary> {
        let hints = self.hints.clone();
        let publish = move |summary: Summary| {
            // Nobody may be listening.
            hints.send(Hint { run: summary.key.clone(), status: summary.status }).ok();
            summary
        };
        self.database.write_then(work, publish).await
    }
}

#[async_trait]
impl RunStore for Runs {
    async fn create(&self, owner: &str, run: &RunKey, script: &str, entries: &[Entry]) -> Result<Summary> {
        let (owner, key, script, entries) =
            (owner.to_owned(), run.clone(), script.to_owned(), entries.to_vec());
        self.grow(move |connection| {
            let summary = Summary::of(key.clone(), &entries)
                .ok_or_else(|| StoreError::Failed(format!("run {} does not begin with Started", key.id)))?;
            let Event::Started(start) = &entries[0].event else { unreachable!("Summary::of saw it") };
            connection
                .prepare_cached("INSERT OR IGNORE INTO scripts VALUES (?, ?)")?
                .execute(params![start.script_hash, script])?;
            let created = connection
                .prepare_cached("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)")?
                .execute(params![
                    key.tenant,
                    key.id,
                    summary.pattern,
                    summary.status.as_str(),
                    start.script_hash,
                    encode(&summary)?,
                    owner
                ])?;
            if created == 0 {
                return Err(StoreError::Exists { what: format!("run {}", key.id) });
            }
            write_entries(connection, &key, 0, &entries)?;
            Ok(summary)
        })
        .await
    }

    async fn append(&self, owner: &str, known: &Summary, entries: &[Entry]) -> Result<Summary> {
        let (owner, known, entries) = (owner.to_owned(), known.clone(), entries.to_vec());
        if entries.is_empty() {
            return self.database.read(move |connection| read_owned(connection, &owner, &known)).await;
        }
        self.grow(move |connection| extend(connection, read_owned(connection, &owner, &known)?, &entries))
            .await
    }

    async fn close(&self, run: &RunKey, end: Entry) -> Result<Summary> {
        let key = run.clone();
        self.grow(move |connection| {
            let what = || format!("run {}", key.id);
            let (summary, _) =
                read_summary(connection, &key)?.ok_or_else(|| StoreError::Missing { what: what() })?;
            if summary.status.is_final() {
                return Err(StoreError::Conflict { what: what() });
            }
            extend(connection, summary, &[end])
        })
        .await
    }

    async fn load(&self, run: &RunKey) -> Result<Option<Run>> {
        let key = run.clone();
        self.database
            .read(move |connection| {
                let Some((summary, _)) = read_summary(connection, &key)? else { return Ok(None) };
                let entries = read_entries(connection, &key, 0)?;
                let script = connection
                    .prepare_cached(
                        "SELECT source FROM scripts JOIN runs ON hash = script_hash WHERE tenant = ? AND id = ?",
                    )?
                    .query_row(params![key.tenant, key.id], |row| row.get(0))?;
                Ok(Some(Run { summary, entries, script }))
            })
            .await
    }

    async fn tail(&self, run: &RunKey, from: u64) -> Result<Option<(Summary, Vec<Entry>)>> {
        let key = run.clone();
        self.database
            .read(move |connection| {
                let Some((summary, _)) = read_summary(connection, &key)? else { return Ok(None) };
                Ok(Some((summary, read_entries(connection, &key, from)?)))
            })
            .await
    }

    async fn list(&self, query: &RunQuery) -> Result<RunPage> {
        let query = query.clone();
        self.database
            .read(move |connection| {
                let mut filter = "tenant = ?".to_owned();
                let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(query.tenant)];
                if let Some(status) = query.status {
                    filter.push_str(" AND status = ?");
                    values.push(Box::new(status.as_str()));
                }
                if let Some(pattern) = query.pattern {
                    filter.push_str(" AND pattern = ?");
                    values.push(Box::new(pattern));
                }
                let total = connection
                    .prepare_cached(&format!("SELECT count(*) FROM runs WHERE {filter}"))?
                    .query_row(params_from_iter(&values), |row| row.get(0))?;
                if let Some(before) = query.before {
                    filter.push_str(" AND id < ?");
                    values.push(Box::new(before));
                }
                values.push(Box::new(i64::try_from(query.limit).unwrap_or(i64::MAX)));
                values.push(Box::new(i64::try_from(query.offset).unwrap_or(i64::MAX)));
                let page =
                    format!("SELECT summary FROM runs WHERE {filter} ORDER BY id DESC LIMIT ? OFFSET ?");
                let runs = connection
                    .prepare_cached(&page)?
                    .query_map(params_from_iter(&values), |row| row.get::<_, String>(0))?
                    .map(|text| decode(&text?))
                    .collect::<Result<_>>()?;
                Ok(RunPage { runs, total })
            })
            .await
    }

    async fn keep(&self, owner: &str, ttl: Duration, most: u64) -> Result<Vec<RunKey>> {
        let alive: Vec<String> = {
            let (mut owners, now) = (self.owners.lock(), Instant::now());
            owners.insert(owner.to_owned(), now + ttl);
            owners.retain(|_, until| *until > now);
            owners.keys().cloned().collect()
        };
        if most == 0 {
            return Ok(vec![]);
        }
        let (owner, alive) = (owner.to_owned(), encode(&alive)?);
        let orphans = "SELECT tenant, id FROM runs WHERE status IN ('pending', 'running')
            AND owner NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?";
        self.database
            .write(move |connection| {
                let runs: Vec<RunKey> = connection
                    .prepare_cached(orphans)?
                    .query_map(params![alive, most], |row| {
                        Ok(RunKey { tenant: row.get(0)?, id: row.get(1)? })
                    })?
                    .collect::<rusqlite::Result<_>>()?;
                for run in &runs {
                    connection
                        .prepare_cached("UPDATE runs SET owner = ? WHERE tenant = ? AND id = ?")?
                        .execute(params![owner, run.tenant, run.id])?;
                }
                Ok(runs)
            })
            .await
    }

    async fn leave(&self, owner: &str) -> Result<()> {
        self.owners.lock().remove(owner);
        Ok(())
    }

    async fn hints(&self) -> Result<BoxStream<'static, Hint>> {
        Ok(heard(self.hints.subscribe()))
    }
}

/// A run's summary and owner.
fn read_summary(connection: &Connection, key: &RunKey) -> Result<Option<(Summary, String)>> {
    let row: Option<(String, String)> = connection
        .prepare_cached("SELECT summary, owner FROM runs WHERE tenant = ? AND id = ?")?
        .query_row(params![key.tenant, key.id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    row.map(|(summary, owner)| Ok((decode(&summary)?, owner))).transpose()
}

/// The summary of a run that is as `known` and `owner`'s, and has not ended.
fn read_owned(connection: &Connection, owner: &str, known: &Summary) -> Result<Summary> {
    let what = || format!("run {}", known.key.id);
    let (summary, current) =
        read_summary(connection, &known.key)?.ok_or_else(|| StoreError::Missing { what: what() })?;
    if summary.len != known.len || summary.status.is_final() {
        return Err(StoreError::Conflict { what: what() });
    }
    if current != owner {
        return Err(StoreError::Fenced { what: what() });
    }
    Ok(summary)
}

fn read_entries(connection: &Connection, key: &RunKey, from: u64) -> Result<Vec<Entry>> {
    connection
        .prepare_cached(
            "SELECT coalesce(p.entry, e.entry) FROM entries e LEFT JOIN payloads p USING (tenant, run, position)
             WHERE tenant = ? AND run = ? AND position >= ? ORDER BY position",
        )?
        .query_map(params![key.tenant, key.id, from], |row| row.get::<_, String>(0))?
        .map(|text| decode(&text?))
        .collect()
}

/// Entries on top of a run that is as `summary`.
fn extend(connection: &Connection, mut summary: Summary, entries: &[Entry]) -> Result<Summary> {
    write_entries(connection, &summary.key, summary.len, entries)?;
    entries.iter().for_each(|entry| summary.apply(entry));
    connection
        .prepare_cached("UPDATE runs SET status = ?, summary = ? WHERE tenant = ? AND id = ?")?
        .execute(params![summary.status.as_str(), encode(&summary)?, summary.key.tenant, summary.key.id])?;
    Ok(summary)
}

fn write_entries(connection: &Connection, key: &RunKey, from: u64, entries: &[Entry]) -> Result<()> {
    for (position, entry) in (from..).zip(entries) {
        let text = encode(entry)?;
        let (inline, payload) = if text.len() > INLINE { ("", Some(&text)) } else { (text.as_str(), None) };
        connection
            .prepare_cached("INSERT INTO entries VALUES (?, ?, ?, ?)")?
            .execute(params![key.tenant, key.id, position, inline])?;
        if let Some(payload) = payload {
            connection
                .prepare_cached("INSERT INTO payloads VALUES (?, ?, ?, ?)")?
                .execute(params![key.tenant, key.id, position, payload])?;
        }
    }
    Ok(())
}
