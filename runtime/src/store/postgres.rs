//! Journals in PostgreSQL: a row for each entry, and one for each run with the fold of its entries.
//!
//! Everything is in the schema `parallax` of one database, which belongs to one cluster of control planes. Settings
//! that only sessions have (LISTEN, prepared statements) are used: a pooler in between must pool by session.

use std::{mem::replace, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{
    future::{try_join, try_join3},
    stream::BoxStream,
};
use parking_lot::Mutex;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use self::{
    hints::Hints,
    journal::{Journal, Write},
    link::Link,
    server::{Server, Session},
};
use crate::{
    env::Env,
    lifecycle::Lifecycle,
    run::{Entry, Event, Run, RunKey, Status, Summary},
    store::{Hint, Result, RunPage, RunQuery, RunStore, StoreError, decode, encode, heard},
};

mod hints;
mod journal;
mod link;
mod migrations;
mod server;
mod tls;

const RUN: &str = "SELECT summary, owner FROM parallax.runs WHERE tenant = $1 AND id = $2";
const SCRIPT: &str = "SELECT source FROM parallax.scripts WHERE hash =
    (SELECT script_hash FROM parallax.runs WHERE tenant = $1 AND id = $2)";
const ENTRIES: &str = "SELECT coalesce(e.entry, p.entry) FROM parallax.entries e
    LEFT JOIN parallax.payloads p USING (tenant, run, position)
    WHERE tenant = $1 AND run = $2 AND position >= $3 ORDER BY position";
const TOTAL: &str = "SELECT count(*) FROM parallax.runs
    WHERE tenant = $1 AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR pattern = $3)";
const PAGE: &str = "SELECT summary FROM parallax.runs
    WHERE tenant = $1 AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR pattern = $3)
        AND ($4::text IS NULL OR id < $4) ORDER BY id DESC LIMIT $5 OFFSET $6";
/// Runs are chosen as the statement first sees them, and taken only if they still are the same owner's when they are
/// locked: what another has been given in between is nobody's orphan. Those locked by a writer are left for later.
const KEEP: &str = "
    WITH me AS (
        INSERT INTO parallax.owners VALUES ($1, now() + $2 * interval '1 second')
        ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at RETURNING id
    ), forgotten AS (
        DELETE FROM parallax.owners WHERE expires_at < now() - interval '1 day' AND id <> $1
    ), orphans AS MATERIALIZED (
        SELECT tenant, id, owner FROM parallax.runs WHERE status IN ('pending', 'running')
            AND owner <> (SELECT id FROM me)
            AND NOT EXISTS (SELECT FROM parallax.owners o WHERE o.id = owner AND o.expires_at > now())
    ), taken AS (
        SELECT r.tenant, r.id FROM parallax.runs r JOIN orphans USING (tenant, id, owner)
        WHERE r.status IN ('pending', 'running') ORDER BY r.id LIMIT $3 FOR UPDATE OF r SKIP LOCKED
    ), given AS (
        UPDATE parallax.runs r SET owner = $1, given = $4 FROM taken t WHERE r.tenant = t.tenant AND r.id = t.id
        RETURNING r.tenant, r.id
    )
    SELECT tenant, id FROM given ORDER BY id";
const GIVEN: &str = "SELECT tenant, id FROM parallax.runs
    WHERE status IN ('pending', 'running') AND owner = $1 AND given = ANY($2) ORDER BY id";

/// The [`RunStore`] on PostgreSQL.
///
/// Every operation outlives lost connections and restarts of the server, for at most 20 s; then it is
/// [`StoreError::Away`] or, where a write may have been done, [`StoreError::InDoubt`].
pub(super) struct Runs {
    server: Arc<Server>,
    reads: Link,
    journal: Journal,
    hints: Hints,
    /// Of calls of `keep` whose outcome never came: what they were given is still to be told.
    untold: Mutex<Vec<i64>>,
}

impl Runs {
    /// # Errors
    /// A URL that says too little or too much; a server that refuses us, or is not there for 20 s; a database of a
    /// newer Parallax.
    pub(super) async fn open(url: &str, env: Arc<dyn Env>, life: &Lifecycle) -> Result<Self> {
        let server = Arc::new(Server::parse(url, env, life.clone())?);
        let migrate = |_| async { migrations::migrate(&server.connect(|_| {}).await?).await };
        server
            .persist(migrate)
            .await
            .map_err(|e| StoreError::Open { what: "runs".to_owned(), problem: e.to_string() })?;
        Ok(Self {
            reads: Link::new(server.clone()),
            journal: Journal::new(&server),
            hints: Hints::new(&server),
            untold: Mutex::default(),
            server,
        })
    }

    /// Writes, and says that the run has grown once that is on disk; `false` when the write does not fit.
    ///
    /// Entries have positions: after a write of which nobody knows whether it was done, the same write is tried, and
    /// where that does not fit the entries at its positions tell whether they are these.
    async fn grow(&self, write: Write) -> Result<bool> {
        let write = &Arc::new(write);
        let attempt = |doubt: bool| async move {
            if self.journal.write(write.clone()).await? {
                return Ok(true);
            }
            if !doubt {
                return Ok(false);
            }
            let (key, known) = (&write.summary.key, write.known);
            let there = self.reads.ask(|session| async move { entries(&session, key, known).await }).await?;
            let texts = there.iter().map(|row| row.get::<_, &str>(0));
            Ok(there.len() >= write.entries.len() && write.entries.iter().zip(texts).all(|(a, b)| a == b))
        };
        let fits = self.server.persist(attempt).await?;
        if fits {
            let Summary { key, status, .. } = &write.summary;
            self.hints.say(Hint { run: key.clone(), status: *status });
        }
        Ok(fits)
    }

    /// Entries on top of a run that is as `known`; `None` when it is not, or not its owner asks.
    async fn extend(
        &self,
        owner: Option<&str>,
        known: &Summary,
        entries: &[Entry],
    ) -> Result<Option<Summary>> {
        let mut summary = known.clone();
        entries.iter().for_each(|entry| summary.apply(entry));
        let write = Write {
            owner: owner.map(str::to_owned),
            known: known.len,
            summary: summary.clone(),
            entries: entries.iter().map(encode).collect::<Result<_>>()?,
            script: None,
        };
        Ok(self.grow(write).await?.then_some(summary))
    }

    /// A run's summary and owner.
    async fn find(&self, key: &RunKey) -> Result<Option<(Summary, String)>> {
        let row = self.reads.read(|session| async move { find(&session, key).await }).await?;
        row.map(|row| Ok((decode(row.get(0))?, row.get(1)))).transpose()
    }
}

#[async_trait]
impl RunStore for Runs {
    async fn create(&self, owner: &str, run: &RunKey, script: &str, entries: &[Entry]) -> Result<Summary> {
        let summary = Summary::of(run.clone(), entries)
            .ok_or_else(|| StoreError::Failed(format!("run {} does not begin with Started", run.id)))?;
        let Event::Started(start) = &entries[0].event else { unreachable!("Summary::of saw it") };
        let write = Write {
            owner: Some(owner.to_owned()),
            known: 0,
            summary: summary.clone(),
            entries: entries.iter().map(encode).collect::<Result<_>>()?,
            script: Some((start.script_hash.clone(), script.to_owned())),
        };
        match self.grow(write).await? {
            true => Ok(summary),
            false => Err(StoreError::Exists { what: format!("run {}", run.id) }),
        }
    }

    async fn append(&self, owner: &str, known: &Summary, entries: &[Entry]) -> Result<Summary> {
        if !entries.is_empty()
            && let Some(summary) = self.extend(Some(owner), known, entries).await?
        {
            return Ok(summary);
        }
        let what = format!("run {}", known.key.id);
        match self.find(&known.key).await? {
            None => Err(StoreError::Missing { what }),
            Some((now, _)) if now.len != known.len || now.status.is_final() => {
                Err(StoreError::Conflict { what })
            }
            Some((now, current)) if entries.is_empty() && current == owner => Ok(now),
            Some(_) => Err(StoreError::Fenced { what }),
        }
    }

    async fn close(&self, run: &RunKey, end: Entry) -> Result<Summary> {
        let what = format!("run {}", run.id);
        loop {
            match self.find(run).await? {
                None => return Err(StoreError::Missing { what }),
                Some((now, _)) if now.status.is_final() => return Err(StoreError::Conflict { what }),
                Some((now, _)) => {
                    // It may have grown since: then once more.
                    if let Some(summary) = self.extend(None, &now, std::slice::from_ref(&end)).await? {
                        return Ok(summary);
                    }
                }
            }
        }
    }

    async fn load(&self, run: &RunKey) -> Result<Option<Run>> {
        let load = |session: Arc<Session>| async move {
            let key = [(&run.tenant as _, Type::TEXT), (&run.id as _, Type::TEXT)];
            let script = session.client.query_typed(SCRIPT, &key);
            try_join3(find(&session, run), entries(&session, run, 0), script).await
        };
        let (row, entries, script) = self.reads.read(load).await?;
        let (Some(row), Some(script)) = (row, script.first()) else { return Ok(None) };
        let summary: Summary = decode(row.get(0))?;
        let entries = within(&summary, 0, &entries)?;
        Ok(Some(Run { summary, entries, script: script.get(0) }))
    }

    async fn tail(&self, run: &RunKey, from: u64) -> Result<Option<(Summary, Vec<Entry>)>> {
        let tail = |session: Arc<Session>| async move {
            try_join(find(&session, run), entries(&session, run, from)).await
        };
        let (Some(row), entries) = self.reads.read(tail).await? else { return Ok(None) };
        let summary: Summary = decode(row.get(0))?;
        let entries = within(&summary, from, &entries)?;
        Ok(Some((summary, entries)))
    }

    async fn list(&self, query: &RunQuery) -> Result<RunPage> {
        let status = query.status.map(Status::as_str);
        let (limit, offset) = (bounded(query.limit), bounded(query.offset));
        let list = |session: Arc<Session>| async move {
            let values: [(&(dyn ToSql + Sync), Type); 6] = [
                (&query.tenant, Type::TEXT),
                (&status, Type::TEXT),
                (&query.pattern, Type::TEXT),
                (&query.before, Type::TEXT),
                (&limit, Type::INT8),
                (&offset, Type::INT8),
            ];
            let total = session.client.query_typed(TOTAL, &values[..3]);
            try_join(total, session.client.query_typed(PAGE, &values)).await
        };
        let (total, page) = self.reads.read(list).await?;
        let total: i64 = total.first().map_or(0, |row| row.get(0));
        let runs = page.iter().map(|row| decode(row.get(0))).collect::<Result<_>>()?;
        Ok(RunPage { runs, total: total.cast_unsigned() })
    }

    async fn keep(&self, owner: &str, ttl: Duration, most: u64) -> Result<Vec<RunKey>> {
        let (ttl, most, call) = (ttl.as_secs_f64(), bounded(most), self.server.env.random().cast_signed());
        let untold = {
            let mut untold = self.untold.lock();
            untold.push(call);
            untold.clone()
        };
        let (mut tried, untold) = (untold.len() > 1, &untold);
        let attempt = |_| {
            let tried = replace(&mut tried, true);
            self.reads.ask(move |session| async move {
                let keep: [(&(dyn ToSql + Sync), Type); 4] =
                    [(&owner, Type::TEXT), (&ttl, Type::FLOAT8), (&most, Type::INT8), (&call, Type::INT8)];
                let given = session.client.query_typed(KEEP, &keep).await?;
                if !tried {
                    return Ok(given);
                }
                session.client.query_typed(GIVEN, &[(&owner, Type::TEXT), (untold, Type::INT8_ARRAY)]).await
            })
        };
        let given = self.server.persist(attempt).await?;
        self.untold.lock().retain(|call| !untold.contains(call));
        Ok(given.iter().map(|row| RunKey { tenant: row.get(0), id: row.get(1) }).collect())
    }

    async fn leave(&self, owner: &str) -> Result<()> {
        let leave = |session: Arc<Session>| async move {
            session
                .client
                .query_typed("DELETE FROM parallax.owners WHERE id = $1", &[(&owner, Type::TEXT)])
                .await
        };
        self.reads.read(leave).await.map(drop)
    }

    async fn hints(&self) -> Result<BoxStream<'static, Hint>> {
        Ok(heard(self.hints.follow()))
    }
}

async fn find(session: &Session, key: &RunKey) -> Result<Option<Row>, tokio_postgres::Error> {
    session.client.query_typed_opt(RUN, &[(&key.tenant, Type::TEXT), (&key.id, Type::TEXT)]).await
}

async fn entries(session: &Session, key: &RunKey, from: u64) -> Result<Vec<Row>, tokio_postgres::Error> {
    let values: [(&(dyn ToSql + Sync), Type); 3] =
        [(&key.tenant, Type::TEXT), (&key.id, Type::TEXT), (&bounded(from), Type::INT8)];
    session.client.query_typed(ENTRIES, &values).await
}

/// The entries from `from` on that a run as `summary` has: it was read first, and may have grown since.
fn within(summary: &Summary, from: u64, rows: &[Row]) -> Result<Vec<Entry>> {
    let len = usize::try_from(summary.len.saturating_sub(from)).unwrap_or(usize::MAX);
    rows.iter().take(len).map(|row| decode(row.get(0))).collect()
}

fn bounded(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
