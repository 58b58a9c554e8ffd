//! Runs: starting, following, ending them, and going on with those that another process left behind.
//!
//! Each process owns the runs that it drives, under a name of its own that it keeps alive in the store. What it asks
//! of a run that another process drives goes through the store, and what it shows of it is read there.

use std::{
    collections::{HashMap, hash_map},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use parallax_prism::Program;
use parallax_runtime::{
    env::{Env, parse_id},
    lifecycle::Lifecycle,
    run::{Entry, Event, Run, RunKey, Status, Summary},
    store::{RunPage, RunQuery, RunStore, StoreError},
};
use parallax_telemetry::metrics::{ControlPlaneMetrics, RunStatus};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::{Instrument, error, info, info_span, warn};

mod follow;
mod start;
mod turns;
mod watches;

use crate::{
    dispatch::Nodes,
    driver::{Birth, Driver},
    error::{Error, Result},
    patterns::{self, Catalog},
    registry::Registry,
    view,
};

pub use follow::Stretch;
pub use start::Request;
pub(crate) use turns::Turn;
use turns::Turns;
use watches::Watches;

/// Bounds on what runs may take, from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of a run that names none.
    pub run_timeout: Duration,
    /// Of one call to an agent that names none.
    pub call_timeout: Duration,
    /// Runs that this process drives at once; those within runs are not counted.
    pub runs_at_once: usize,
    /// Runs that may wait for their turn here; the next is refused.
    pub runs_waiting: usize,
    /// How long this process may be silent before its runs are given to another.
    pub owner_ttl: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            run_timeout: Duration::from_secs(300),
            call_timeout: Duration::from_secs(30),
            runs_at_once: 256,
            runs_waiting: 1024,
            owner_ttl: Duration::from_secs(5),
        }
    }
}

/// Orphans that are taken at once, so that several processes share them.
const TAKEN_AT_ONCE: usize = 64;
/// How often orphans are looked for, at most.
const LOOK: Duration = Duration::from_millis(500);
/// Why a run within another is cancelled.
const ORPHANED: &str = "nothing waits for it any more";
/// Before a run that could not go on is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// All runs of this process. Cheap to clone.
#[derive(Clone)]
pub struct Runs(Arc<Inner>);

/// What runs are made of and work with.
pub struct Context {
    pub store: Arc<dyn RunStore>,
    pub catalog: Catalog,
    pub registry: Registry,
    pub nodes: Nodes,
    pub env: Arc<dyn Env>,
    pub metrics: Arc<ControlPlaneMetrics>,
    pub bounds: Bounds,
    pub life: Lifecycle,
}

struct Inner {
    context: Context,
    /// This process's name as an owner of runs.
    owner: String,
    /// Those that are being driven here, or wait here for their turn.
    /// By what their drivers are told to leave them.
    active: watch::Sender<HashMap<RunKey, Arc<Notify>>>,
    turns: Turns,
    watches: Watches,
    /// Whether the store answered when it was last asked.
    answers: AtomicBool,
    kept: Mutex<Kept>,
}

/// How this process was kept the owner of its runs, as far as it knows.
struct Kept {
    /// From here on without a gap in which others may have been given some.
    since: Instant,
    /// When it was last begun to be, with success.
    last: Instant,
}

impl Kept {
    fn is_late(&self, ttl: Duration) -> bool {
        self.last.elapsed() >= ttl
    }

    fn renew(&mut self, begun: Instant, ttl: Duration) {
        if self.is_late(ttl) {
            self.since = Instant::now();
        }
        self.last = begun;
    }
}

impl Runs {
    /// With none running; see [`Runs::keep`].
    ///
    /// # Errors
    /// The store's.
    pub async fn open(context: Context) -> Result<Self> {
        let Bounds { runs_at_once, runs_waiting, owner_ttl, .. } = context.bounds;
        let owner = context.env.id();
        let now = Instant::now();
        let kept = Mutex::new(Kept { since: now, last: now });
        context.store.keep(&owner, owner_ttl, 0).await?;
        let hints = context.store.hints().await?;
        let turns = Turns::new(runs_at_once, runs_waiting);
        let (active, watches) = (watch::Sender::default(), Watches::default());
        let answers = AtomicBool::new(true);
        let runs = Self(Arc::new(Inner { context, owner, active, turns, watches, answers, kept }));
        let told = runs.clone();
        runs.context().life.spawn_until_stopped("hints", async move {
            hints.for_each(async |hint| told.0.watches.tell(&hint)).await;
        });
        Ok(runs)
    }

    pub(crate) fn context(&self) -> &Context {
        &self.0.context
    }

    pub(crate) fn owner(&self) -> &str {
        &self.0.owner
    }

    /// Whether a run that was this process's at `then` cannot have been given to another since.
    pub(crate) fn still_owns(&self, then: Instant) -> bool {
        let kept = self.0.kept.lock();
        kept.since <= then && !kept.is_late(self.context().bounds.owner_ttl)
    }

    /// Keeps this process the owner of its runs until it stops, and goes on with those whose owner is gone, here as
    /// in other processes: not those who are silent while, or right after, nobody could be heard.
    pub fn keep(&self) {
        let (runs, life) = (self.clone(), self.context().life.clone());
        let keeper = self.clone();
        life.spawn_until_stopped("runs", async move {
            let ttl = keeper.context().bounds.owner_ttl;
            // The last success, and from when on the silence of others counts.
            let (mut last, mut heard) = (Instant::now(), Instant::now());
            loop {
                let begun = Instant::now();
                let free = keeper.0.turns.free().clamp(1, TAKEN_AT_ONCE) as u64;
                let most = if heard <= begun { free } else { 0 };
                let kept = keeper.context().store.keep(&keeper.0.owner, ttl, most);
                let silence = || Err(StoreError::Away(format!("no answer within {ttl:?}")));
                let kept = tokio::time::timeout(ttl, kept).await.unwrap_or_else(|_| silence());
                keeper.0.answers.store(kept.is_ok(), Relaxed);
                match kept {
                    Ok(orphans) => {
                        keeper.0.kept.lock().renew(begun, ttl);
                        if last.elapsed() >= ttl {
                            heard = Instant::now() + ttl;
                        }
                        last = begun;
                        for key in orphans {
                            keeper.resume(&key).await;
                        }
                    }
                    Err(e) => {
                        warn!("runs cannot be kept, others may take them over: {e}");
                        heard = Instant::now() + ttl;
                    }
                }
                tokio::time::sleep(LOOK.min(ttl / 3)).await;
            }
        });
        life.spawn("leave", async move {
            runs.context().life.stopping().await;
            runs.0.active.subscribe().wait_for(HashMap::is_empty).await.ok();
            if let Err(e) = runs.context().store.leave(&runs.0.owner).await {
                warn!("the runs left here are not given away before their time: {e}");
            }
        });
    }

    /// Goes on with a run that is this process's: it is replayed from its journal, and what it waited for is asked
    /// again under the same idempotency key.
    async fn resume(&self, key: &RunKey) {
        if let Err(e) = self.try_resume(key).await
            && !matches!(e, Error::NoRun { .. })
        {
            error!(run = key.id, "a run cannot go on, trying again in {AGAIN:?}: {e}");
            self.resume_in(AGAIN, key.clone());
        }
    }

    fn resume_in(&self, pause: Duration, key: RunKey) {
        let runs = self.clone();
        self.context().life.spawn_until_stopped("resume", async move {
            tokio::time::sleep(pause).await;
            // Boxed, as it may come back here.
            let resumed: BoxFuture<'_, ()> = runs.resume(&key).boxed();
            resumed.await;
        });
    }

    async fn try_resume(&self, key: &RunKey) -> Result<()> {
        let run = self.get(key).await?;
        if run.summary.status.is_final() {
            return Ok(());
        }
        let pattern = &run.summary.pattern;
        match patterns::compile(pattern, &run.script) {
            Ok(program) => {
                info!(run = key.id, pattern, entries = run.entries.len(), "going on with a run");
                let turn = if key.depth() > 0 { Turn::Free } else { self.0.turns.insist(key) };
                self.drive(run, program, turn, None);
            }
            Err(diagnostics) => {
                // Pinned by an older version whose language this one no longer speaks.
                let message = diagnostics.first().map(|d| d.message.clone()).unwrap_or_default();
                warn!(run = key.id, pattern, message, "a run's script no longer compiles");
                self.end(key, Event::Failed { code: "script".to_owned(), message }).await?;
            }
        }
        Ok(())
    }

    fn drive(&self, run: Run, program: Program, turn: Turn, birth: Option<Birth>) {
        let key = run.summary.key.clone();
        let replaced = Arc::new(Notify::new());
        let mut free = true;
        self.0.active.send_modify(|active| match active.entry(key.clone()) {
            hash_map::Entry::Vacant(place) => drop(place.insert(replaced.clone())),
            // Another process had taken it over meanwhile, unheard by the driver here, and is gone: what that driver
            // knows is old. It leaves, and the run is read again.
            hash_map::Entry::Occupied(driver) => {
                free = false;
                driver.get().notify_one();
            }
        });
        if !free {
            return;
        }
        let span = info_span!("run", run = key.id, pattern = run.summary.pattern, tenant = key.tenant);
        let runs = self.clone();
        let drive = async move {
            runs.context().metrics.runs_active.inc();
            let mut again = false;
            let driving = async {
                tokio::select! {
                    driven = Driver::new(runs.clone(), run, program, birth).run(turn.come()) => driven,
                    () = replaced.notified() => {
                        again = true;
                        Ok(None)
                    }
                }
            };
            match AssertUnwindSafe(driving).catch_unwind().await {
                Ok(Ok(Some(summary))) => {
                    info!(status = %summary.status, calls = summary.calls, "run ended");
                    runs.count_end(&summary);
                }
                Ok(Ok(None)) => info!("run left to whoever drives it next"),
                // It never began, and who wanted it has been told.
                Ok(Err(Error::NoRun { .. })) => {}
                // Cancelled, or taken over while this process was silent.
                Ok(Err(Error::Store(e @ (StoreError::Conflict { .. } | StoreError::Fenced { .. })))) => {
                    info!("run is no longer driven here: {e}");
                }
                Ok(Err(e)) => {
                    error!("a run cannot go on, trying again in {AGAIN:?}: {e}");
                    runs.resume_in(AGAIN, key.clone());
                }
                Err(_) => {
                    // Takes neither the run's callers nor the next owner along.
                    let message = "the driver panicked; this is a defect of Parallax, please report it";
                    let event = Event::Failed { code: "internal".to_owned(), message: message.to_owned() };
                    if let Err(e) = runs.end(&key, event).await {
                        error!("a run whose driver panicked cannot be ended: {e}");
                    }
                }
            }
            runs.context().metrics.runs_active.dec();
            runs.0.active.send_modify(|active| drop(active.remove(&key)));
            // It may have been told as it ended of itself.
            if again || replaced.notified().now_or_never().is_some() {
                runs.resume_in(Duration::ZERO, key);
            }
        };
        self.context().life.spawn("run", drive.instrument(span));
    }

    /// Ends a run whoever drives it.
    async fn end(&self, key: &RunKey, event: Event) -> Result<Summary> {
        let summary = self.context().store.close(key, Entry { at: self.context().env.now(), event }).await?;
        self.count_end(&summary);
        Ok(summary)
    }

    /// Cancels a run and those within it, whoever drives them: their agents see the cancellation.
    ///
    /// # Errors
    /// No such run; one that has ended otherwise; the store's.
    pub async fn cancel(&self, key: &RunKey, reason: &str) -> Result<Run> {
        match self.end(key, Event::Cancelled { reason: reason.to_owned() }).await {
            Ok(_) | Err(Error::Store(StoreError::Conflict { .. })) => {}
            Err(Error::Store(StoreError::Missing { .. })) => return Err(Error::NoRun { id: key.id.clone() }),
            Err(e) => return Err(e),
        }
        let run = self.get(key).await?;
        if run.summary.status != Status::Cancelled {
            return Err(Error::Ended { id: key.id.clone(), status: run.summary.status });
        }
        self.cancel_all(view::nested(&run)).await;
        Ok(run)
    }

    /// Boxed, as runs may have runs within them.
    fn cancel_all(&self, runs: Vec<RunKey>) -> BoxFuture<'_, ()> {
        let cancel = async move {
            for key in runs {
                match self.cancel(&key, ORPHANED).await {
                    // It had ended, or was never begun.
                    Ok(_) | Err(Error::Ended { .. } | Error::NoRun { .. }) => {}
                    Err(e) => warn!(run = key.id, "a run that nothing waits for goes on: {e}"),
                }
            }
        };
        cancel.boxed()
    }

    /// Cancels runs that nothing waits for any more.
    pub(crate) fn cancel_soon(&self, runs: Vec<RunKey>) {
        if !runs.is_empty() {
            let own = self.clone();
            self.context().life.spawn("cancel", async move { own.cancel_all(runs).await });
        }
    }

    /// Tells when a run grows, and what it is then.
    pub(crate) fn watch(&self, key: &RunKey) -> watch::Receiver<Status> {
        self.0.watches.of(key)
    }

    /// Whoever asks from outside is told at once that the store is away; what goes on here waits for it.
    fn need_store(&self) -> Result<()> {
        if self.has_store() {
            return Ok(());
        }
        Err(StoreError::Away("it did not answer when it was last asked".to_owned()).into())
    }

    /// Whether the store can be reached, as far as this process knows: it asks it all the time.
    #[must_use]
    pub fn has_store(&self) -> bool {
        self.0.answers.load(Relaxed)
    }

    /// How many runs are before one that waits here for its turn, and it.
    #[must_use]
    pub fn position(&self, key: &RunKey) -> Option<usize> {
        self.0.turns.position(key)
    }

    fn count_end(&self, summary: &Summary) {
        let status = match summary.status {
            Status::Completed => RunStatus::Completed,
            Status::Cancelled => RunStatus::Cancelled,
            Status::Failed | Status::Running | Status::Pending => RunStatus::Failed,
        };
        let took = summary.ended_at.map(|end| end.duration_since(summary.started_at).unsigned_abs());
        self.context().metrics.run_finished(&summary.pattern, status, took.unwrap_or_default());
    }

    /// A run as it stands.
    ///
    /// # Errors
    /// No such run; the store's.
    pub async fn get(&self, key: &RunKey) -> Result<Run> {
        self.context().store.load(key).await?.ok_or_else(|| Error::NoRun { id: key.id.clone() })
    }

    /// A run by the id that a user gave.
    ///
    /// # Errors
    /// An id that is none; as [`Runs::get`].
    pub async fn find(&self, tenant: &str, id: &str) -> Result<Run> {
        let own = id.split('.').next().unwrap_or_default();
        parse_id(own).map_err(|problem| Error::Invalid { field: "id", problem })?;
        self.need_store()?;
        self.get(&RunKey { tenant: tenant.to_owned(), id: id.to_owned() }).await
    }

    /// A page of runs, newest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self, query: &RunQuery) -> Result<RunPage> {
        self.need_store()?;
        Ok(self.context().store.list(query).await?)
    }
}
