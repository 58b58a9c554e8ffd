//! What is written to journals: all that waits goes in one statement, which is one transaction.
//!
//! A statement costs a round trip and a sync of the disk however much it carries, so writers share both (group
//! commit). Creating a run is growing it from nothing; each write says at which length it fits, and the answer is
//! which of them did.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_postgres::{Statement, types::ToSql};
use tracing::warn;

use super::server::{Server, Session, Trouble};
use crate::{
    run::Summary,
    store::{INLINE, Result, StoreError, encode},
};

/// Connections that write: while one waits for the disk, others are filled, and the server syncs for all of them at
/// once. With many writers, four got more done than one or two on a busy machine of two cores.
const WRITERS: usize = 4;
/// Writes that may wait; beyond that, callers do.
const QUEUE: usize = 1024;
/// Writes that one statement may carry, and about how many bytes.
const BATCH: (usize, usize) = (256, 8 << 20);

/// By key only: a plan that was made while the tables were small must serve them when they are not.
const PLANS: &str = "
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
";
const WRITE: &str = "
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[],
            $8::text[], $9::text[], $10::text[])
        WITH ORDINALITY AS a (tenant, id, owner, known, len, status, summary, pattern, hash, source, n)
    ), scripts AS (
        INSERT INTO parallax.scripts SELECT DISTINCT ON (hash) hash, source FROM asked WHERE known = 0 ORDER BY hash
        ON CONFLICT DO NOTHING
    ), begun AS (
        INSERT INTO parallax.runs (tenant, id, pattern, status, owner, len, script_hash, summary)
        SELECT DISTINCT ON (tenant, id) tenant, id, pattern, status, owner, len, hash, summary
        FROM asked WHERE known = 0 ORDER BY tenant, id, n
        ON CONFLICT DO NOTHING RETURNING tenant, id
    ), grown AS (
        UPDATE parallax.runs r SET status = a.status, len = a.len, summary = a.summary FROM asked a
        WHERE a.known > 0 AND r.tenant = a.tenant AND r.id = a.id AND r.len = a.known
            AND r.owner = coalesce(a.owner, r.owner) AND r.status IN ('pending', 'running')
        RETURNING a.n
    ), done AS MATERIALIZED (
        SELECT n FROM grown UNION ALL
        SELECT min(n) FROM begun JOIN asked USING (tenant, id) WHERE known = 0 GROUP BY tenant, id
    ), entries AS MATERIALIZED (
        SELECT tenant, id, position, entry
        FROM unnest($11::bigint[], $12::bigint[], $13::text[]) AS e (n, position, entry)
        JOIN done USING (n) JOIN asked USING (n)
    ), rows AS (
        INSERT INTO parallax.entries
        SELECT tenant, id, position, CASE WHEN octet_length(entry) <= $14 THEN entry END FROM entries
    ), payloads AS (
        INSERT INTO parallax.payloads SELECT * FROM entries WHERE octet_length(entry) > $14
    )
    SELECT n FROM done";

/// Entries for a run that is `known` long.
pub(super) struct Write {
    /// Whose run it must be; absent: anybody's.
    pub(super) owner: Option<String>,
    pub(super) known: u64,
    /// What the run is with the entries.
    pub(super) summary: Summary,
    pub(super) entries: Vec<String>,
    /// Hash and source, for a run that begins.
    pub(super) script: Option<(String, String)>,
}

impl Write {
    fn bytes(&self) -> usize {
        self.entries.iter().chain(self.script.as_ref().map(|(_, source)| source)).map(String::len).sum()
    }
}

/// A write, and where to say whether it fitted.
type Job = (Arc<Write>, oneshot::Sender<Result<bool, Trouble>>);

/// The way to the writing connections; they close with it.
pub(super) struct Journal(mpsc::Sender<Job>);

impl Journal {
    pub(super) fn new(server: &Arc<Server>) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..WRITERS {
            server.life.spawn_beneath("postgres-writer", serve(server.clone(), queue.clone()));
        }
        Self(jobs)
    }

    /// Whether the write fitted. Then it is on disk; if not, it has left no trace.
    pub(super) async fn write(&self, write: Arc<Write>) -> Result<bool, Trouble> {
        let closed = || Trouble::InDoubt(StoreError::Closed.to_string());
        let (reply, outcome) = oneshot::channel();
        self.0.send((write, reply)).await.map_err(|_| closed())?;
        outcome.await.map_err(|_| closed())?
    }
}

async fn serve(server: Arc<Server>, queue: Arc<Mutex<mpsc::Receiver<Job>>>) {
    let mut writer: Option<Writer> = None;
    loop {
        let batch = next(&mut *queue.lock().await).await;
        if batch.is_empty() {
            return;
        }
        if writer.as_ref().is_none_or(|writer| writer.session.lost.is_cancelled()) {
            writer = match Writer::open(&server).await {
                Ok(writer) => Some(writer),
                Err(trouble) => {
                    batch.into_iter().for_each(|(_, reply)| _ = reply.send(Err(trouble.clone())));
                    continue;
                }
            };
        }
        if let Some(writer) = &writer {
            writer.write(batch).await;
        }
    }
}

/// All that waits, up to a bound; empty when there will be no more.
async fn next(queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut job = queue.recv().await;
    while let Some((write, reply)) = job {
        // Whoever has gone away will not be surprised by a late success.
        if !reply.is_closed() {
            bytes += write.bytes();
            batch.push((write, reply));
        }
        job = match batch.len() {
            0 => queue.recv().await,
            n if n < BATCH.0 && bytes < BATCH.1 => queue.try_recv().ok(),
            _ => None,
        };
    }
    batch
}

struct Writer {
    session: Session,
    statement: Statement,
}

impl Writer {
    async fn open(server: &Server) -> Result<Self, Trouble> {
        let session = server.connect(|_| {}).await?;
        session.within(session.client.batch_execute(PLANS)).await?;
        let statement = session.within(session.client.prepare(WRITE)).await?;
        Ok(Self { session, statement })
    }

    async fn write(&self, batch: Vec<Job>) {
        let writes: Vec<_> = batch.iter().map(|(write, _)| &**write).collect();
        match self.execute(&writes).await {
            Err(Trouble::Refused(problem)) if batch.len() > 1 => {
                warn!("a batch of writes is done one by one: {problem}");
                for (write, reply) in batch {
                    reply.send(self.execute(&[&write]).await.map(|done| !done.is_empty())).ok();
                }
            }
            outcome => {
                for (n, (_, reply)) in (1..).zip(batch) {
                    reply.send(outcome.as_ref().map(|done| done.contains(&n)).map_err(Clone::clone)).ok();
                }
            }
        }
    }

    /// Which of them fitted, counted from 1.
    async fn execute(&self, writes: &[&Write]) -> Result<HashSet<i64>, Trouble> {
        let column = |of: fn(&Write) -> &str| writes.iter().map(|write| of(write)).collect::<Vec<_>>();
        let number =
            |of: fn(&Write) -> u64| writes.iter().map(|write| of(write).cast_signed()).collect::<Vec<_>>();
        let summaries: Vec<_> = writes
            .iter()
            .map(|write| encode(&write.summary))
            .collect::<Result<_>>()
            .map_err(|e| Trouble::Refused(e.to_string()))?;
        let (hashes, sources): (Vec<_>, Vec<_>) = writes
            .iter()
            .map(|write| write.script.as_ref().map(|(hash, source)| (hash.as_str(), source.as_str())).unzip())
            .unzip();
        let (mut ns, mut positions, mut entries) = (vec![], vec![], vec![]);
        for (n, write) in (1i64..).zip(writes) {
            for (position, entry) in (write.known.cast_signed()..).zip(&write.entries) {
                ns.push(n);
                positions.push(position);
                entries.push(entry.as_str());
            }
        }
        let values: [&(dyn ToSql + Sync); 14] = [
            &column(|write| &write.summary.key.tenant),
            &column(|write| &write.summary.key.id),
            &writes.iter().map(|write| write.owner.as_deref()).collect::<Vec<_>>(),
            &number(|write| write.known),
            &number(|write| write.summary.len),
            &column(|write| write.summary.status.as_str()),
            &summaries,
            &column(|write| &write.summary.pattern),
            &hashes,
            &sources,
            &ns,
            &positions,
            &entries,
            &i32::try_from(INLINE).unwrap_or(i32::MAX),
        ];
        let answer = self.session.within(self.session.client.query(&self.statement, &values)).await?;
        Ok(answer.iter().map(|row| row.get(0)).collect())
    }
}
