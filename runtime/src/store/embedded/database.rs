//! One SQLite file behind one thread.
//!
//! Jobs queue up while the disk syncs; all that wait are then done in one transaction (group commit), so that
//! the cost of a sync is shared by however many writers there are.

use std::{path::PathBuf, thread};

use rusqlite::{Connection, Transaction};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::store::{Result, StoreError};

/// Jobs that may wait; beyond that, callers do.
const QUEUE: usize = 1024;
/// Jobs that one commit may carry.
const BATCH: usize = 256;

/// Runs in the transaction; what it returns runs once the transaction is on disk.
type Job = Box<dyn FnOnce(&mut Transaction<'_>) -> Option<Box<dyn FnOnce() + Send>> + Send>;

/// A handle to the thread; the thread ends, and the file closes, with the last handle.
#[derive(Clone)]
pub(super) struct Database {
    jobs: mpsc::Sender<Job>,
}

impl Database {
    /// Opens the file (or memory) and creates what `schema` says.
    pub(super) async fn open(file: Option<PathBuf>, schema: &'static str) -> Result<Self> {
        let what = file.as_ref().map_or_else(|| "memory".to_owned(), |path| path.display().to_string());
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (opened, outcome) = oneshot::channel();
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || match connect(file, schema) {
                Ok(connection) => {
                    // The opener may have gone away; then the queue is closed and serving ends at once.
                    opened.send(Ok(())).ok();
                    serve(connection, queue);
                }
                Err(problem) => _ = opened.send(Err(problem.to_string())),
            })
            .map_err(|e| StoreError::Open { what: what.clone(), problem: e.to_string() })?;
        let outcome = outcome.await.map_err(|_| StoreError::Closed)?;
        outcome.map(|()| Self { jobs }).map_err(|problem| StoreError::Open { what, problem })
    }

    /// Does `work` in a transaction. It has happened, on disk, when this returns `Ok`, and has left no trace
    /// when this returns `Err`, with one exception: [`StoreError::Closed`] says that nobody knows.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.write_then(work, |value| value).await
    }

    /// As [`Database::write`]; `publish` runs on the store's thread after the commit, in commit order and
    /// before any later job.
    pub(super) async fn write_then<T: Send + 'static, U: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
        publish: impl FnOnce(T) -> U + Send + 'static,
    ) -> Result<U> {
        let (reply, outcome) = oneshot::channel();
        let job: Job = Box::new(move |transaction| {
            // A savepoint for each job: one that fails takes nobody along.
            let done = transaction.savepoint().map_err(StoreError::from).and_then(|savepoint| {
                let value = work(&savepoint)?;
                savepoint.commit()?;
                Ok(value)
            });
            match done {
                Ok(value) => Some(Box::new(move || _ = reply.send(Ok(publish(value))))),
                Err(e) => {
                    reply.send(Err(e)).ok();
                    None
                }
            }
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }
}

fn connect(file: Option<PathBuf>, schema: &str) -> Result<Connection> {
    let connection = match file {
        Some(path) => Connection::open(path)?,
        None => Connection::open_in_memory()?,
    };
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.execute_batch(schema)?;
    Ok(connection)
}

fn serve(mut connection: Connection, mut queue: mpsc::Receiver<Job>) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
        if let Err(e) = commit(&mut connection, batch.drain(..)) {
            // The replies were dropped with the batch, which tells the callers.
            error!("a commit failed: {e}");
        }
    }
}

fn commit(connection: &mut Connection, batch: impl Iterator<Item = Job>) -> rusqlite::Result<()> {
    let mut transaction = connection.transaction()?;
    let publications: Vec<_> = batch.filter_map(|job| job(&mut transaction)).collect();
    transaction.commit()?;
    publications.into_iter().for_each(|publish| publish());
    Ok(())
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        Self::Failed(e.to_string())
    }
}

/// JSON out of a column.
pub(super) fn decode<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| StoreError::Corrupt(e.to_string()))
}

/// JSON for a column.
pub(super) fn encode<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| StoreError::Failed(e.to_string()))
}
