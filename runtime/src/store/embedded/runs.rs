//! Journals in a file: a row for each entry, and one for each run with the fold of its entries.

use std::path::PathBuf;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, ToSql, params, params_from_iter};

use super::database::{Database, decode, encode};
use crate::{
    run::{Entry, Event, Run, RunKey, Summary},
    store::{Result, RunPage, RunQuery, RunStore, StoreError},
};

const SCHEMA: &str = "
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
";

/// The embedded [`RunStore`].
pub(in crate::store) struct Runs {
    database: Database,
}

impl Runs {
    pub(in crate::store) async fn open(file: Option<PathBuf>) -> Result<Self> {
        Ok(Self { database: Database::open(file, SCHEMA).await? })
    }
}

#[async_trait]
impl RunStore for Runs {
    async fn create(&self, run: &RunKey, script: &str, entries: &[Entry]) -> Result<()> {
        let (key, script, entries) = (run.clone(), script.to_owned(), entries.to_vec());
        self.database
            .write(move |connection| {
                let summary = Summary::of(key.clone(), &entries).ok_or_else(|| {
                    StoreError::Failed(format!("run {} does not begin with Started", key.id))
                })?;
                let Event::Started(start) = &entries[0].event else { unreachable!("Summary::of saw it") };
                if read_summary(connection, &key)?.is_some() {
                    return Err(StoreError::Exists { what: format!("run {}", key.id) });
                }
                connection
                    .prepare_cached("INSERT OR IGNORE INTO scripts VALUES (?, ?)")?
                    .execute(params![start.script_hash, script])?;
                connection.prepare_cached("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?)")?.execute(params![
                    key.tenant,
                    key.id,
                    summary.pattern,
                    summary.status.as_str(),
                    start.script_hash,
                    encode(&summary)?
                ])?;
                write_entries(connection, &key, 0, &entries)
            })
            .await
    }

    async fn append(&self, run: &RunKey, expected: u64, entries: &[Entry]) -> Result<()> {
        let (key, entries) = (run.clone(), entries.to_vec());
        self.database
            .write(move |connection| {
                let mut summary = read_summary(connection, &key)?
                    .ok_or_else(|| StoreError::Missing { what: format!("run {}", key.id) })?;
                if summary.len != expected || summary.status.is_final() {
                    return Err(StoreError::Conflict { what: format!("run {}", key.id) });
                }
                entries.iter().for_each(|entry| summary.apply(entry));
                connection
                    .prepare_cached("UPDATE runs SET status = ?, summary = ? WHERE tenant = ? AND id = ?")?
                    .execute(params![summary.status.as_str(), encode(&summary)?, key.tenant, key.id])?;
                write_entries(connection, &key, expected, &entries)
            })
            .await
    }

    async fn load(&self, run: &RunKey) -> Result<Option<Run>> {
        let key = run.clone();
        self.database
            .write(move |connection| {
                let Some(summary) = read_summary(connection, &key)? else { return Ok(None) };
                let entries = connection
                    .prepare_cached("SELECT entry FROM entries WHERE tenant = ? AND run = ? ORDER BY position")?
                    .query_map(params![key.tenant, key.id], |row| row.get::<_, String>(0))?
                    .map(|text| decode(&text?))
                    .collect::<Result<_>>()?;
                let script = connection
                    .prepare_cached(
                        "SELECT source FROM scripts JOIN runs ON hash = script_hash WHERE tenant = ? AND id = ?",
                    )?
                    .query_row(params![key.tenant, key.id], |row| row.get(0))?;
                Ok(Some(Run { summary, entries, script }))
            })
            .await
    }

    async fn list(&self, query: &RunQuery) -> Result<RunPage> {
        let query = query.clone();
        self.database
            .write(move |connection| {
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

    async fn unfinished(&self) -> Result<Vec<RunKey>> {
        self.database
            .write(|connection| {
                let keys = connection
                    .prepare_cached("SELECT tenant, id FROM runs WHERE status = 'running' ORDER BY id")?
                    .query_map([], |row| Ok(RunKey { tenant: row.get(0)?, id: row.get(1)? }))?
                    .collect::<rusqlite::Result<_>>()?;
                Ok(keys)
            })
            .await
    }
}

fn read_summary(connection: &Connection, key: &RunKey) -> Result<Option<Summary>> {
    let text: Option<String> = connection
        .prepare_cached("SELECT summary FROM runs WHERE tenant = ? AND id = ?")?
        .query_row(params![key.tenant, key.id], |row| row.get(0))
        .optional()?;
    text.map(|text| decode(&text)).transpose()
}

fn write_entries(connection: &Connection, key: &RunKey, from: u64, entries: &[Entry]) -> Result<()> {
    let mut insert = connection.prepare_cached("INSERT INTO entries VALUES (?, ?, ?, ?)")?;
    for (position, entry) in (from..).zip(entries) {
        insert.execute(params![key.tenant, key.id, position, encode(entry)?])?;
    }
    Ok(())
}
