//! One SQLite file behind two threads: one writes, one reads.
//!
//! Jobs queue up while the disk syncs; all that wait are then done in one transaction (group commit), so that
//! the cost of a sync is shared by however many writers there are. Readers hold up no writer.

use std::{path::PathBuf, thread};

use rusqlite::{Connection, OpenFlags, Transaction};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::store::{Result, StoreError};

/// Jobs that may wait; beyond that, callers do.
const QUEUE: usize = 1024;
/// Jobs that one commit may carry.
const BATCH: usize = 256;

/// Runs in the transaction; what it returns runs once the transaction is on disk.
type Job = Box<dyn FnOnce(&mut Transaction<'_>) -> Option<Box<dyn FnOnce() + Send>> + Send>;

/// Runs on the reading connection.
type Read = Box<dyn FnOnce(&Connection) + Send>;

/// A handle to the threads; they end, and the file closes, with the last handle.
#[derive(Clone)]
pub(super) struct Database {
    jobs: mpsc::Sender<Job>,
    /// Absent for memory, which has one connection only.
    reads: Option<mpsc::Sender<Read>>,
}

impl Database {
    /// Opens the file (or memory) and brings its tables up to date: `migrations` are all there have ever been, in
    /// order, and the file knows how many of them it has seen.
    pub(super) async fn open(file: Option<PathBuf>, migrations: &'static [&'static str]) -> Result<Self> {
        let what = file.as_ref().map_or_else(|| "memory".to_owned(), |path| path.display().to_string());
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writing = file.clone();
        start(
            "store",
            &what,
            move || connect(writing, migrations),
            move |connection| serve(connection, queue),
        )
        .await?;
        let Some(path) = file else { return Ok(Self { jobs, reads: None }) };
        let (reads, mut queue) = mpsc::channel::<Read>(QUEUE);
        let open = move || {
            let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(connection)
        };
        let serve = move |connection: Connection| {
            while let Some(read) = queue.blocking_recv() {
                // One snapshot for all that a job reads. A job that is dropped tells its caller.
                match connection.unchecked_transaction() {
                    Ok(snapshot) => read(&snapshot),
                    Err(e) => error!("the store cannot be read: {e}"),
                }
            }
        };
        start("store-read", &what, open, serve).await?;
        Ok(Self { jobs, reads: Some(reads) })
    }

    /// Does `work`, which only reads, on what has been committed.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Some(reads) = &self.reads else { return self.write(work).await };
        let (reply, outcome) = oneshot::channel();
        let read: Read = Box::new(move |connection| _ = reply.send(work(connection)));
        reads.send(read).await.map_err(|_| StoreError::Closed)?;
        outcome.await.map_err(|_| StoreError::Closed)?
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

/// Starts a thread that opens a connection and then serves it; returns when it is open.
async fn start(
    name: &str,
    what: &str,
    open: impl FnOnce() -> Result<Connection> + Send + 'static,
    serve: impl FnOnce(Connection) + Send + 'static,
) -> Result<()> {
    let problem = |problem: String| StoreError::Open { what: what.to_owned(), problem };
    let (opened, outcome) = oneshot::channel();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || match open() {
            Ok(connection) => {
                // The opener may have gone away; then the queue is closed and serving ends at once.
                opened.send(Ok(())).ok();
                serve(connection);
            }
            Err(e) => _ = opened.send(Err(e.to_string())),
        })
        .map_err(|e| problem(e.to_string()))?;
    outcome.await.map_err(|_| StoreError::Closed)?.map_err(problem)
}

fn connect(file: Option<PathBuf>, migrations: &[&str]) -> Result<Connection> {
    let mut connection = match file {
        Some(path) => Connection::open(path)?,
        None => Connection::open_in_memory()?,
    };
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.set_prepared_statement_cache_capacity(64);
    let seen: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(unseen) = migrations.get(seen..) else {
        return Err(StoreError::Failed(format!(
            "it was written by a newer Parallax (version {seen} of its tables, this one knows {})",
            migrations.len()
        )));
    };
    let transaction = connection.transaction()?;
    unseen.iter().try_for_each(|migration| transaction.execute_batch(migration))?;
    transaction.pragma_update(None, "user_version", migrations.len())?;
    transaction.commit()?;
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
