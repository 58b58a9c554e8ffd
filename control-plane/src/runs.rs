//! Runs: starting, waiting, reading, and going on with those that a stopped process left behind.

use std::{
    collections::{HashMap, hash_map},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use parallax_prism::Program;
use parallax_runtime::{
    env::{Env, parse_id},
    lifecycle::Lifecycle,
    run::{Entry, Event, Options, Run, RunKey, Start, Status, Summary},
    store::{RunPage, RunQuery, RunStore, StoreError},
};
use parallax_telemetry::metrics::{ControlPlaneMetrics, RunStatus};
use parking_lot::Mutex;
use serde_json::Value as Json;
use tokio::{sync::watch, time::Instant};
use tracing::{Instrument, error, info, info_span, warn};

use crate::{
    dispatch::Nodes,
    driver::Driver,
    error::{Error, Result},
    patterns::{self, Catalog, Pattern},
    registry::Registry,
};

/// Bounds on what a run may take, from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of a run that names none.
    pub run_timeout: Duration,
    /// Of one call to an agent that names none.
    pub call_timeout: Duration,
}

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
    /// Those that are being driven here; the channel closes when driving ends.
    active: Mutex<HashMap<RunKey, watch::Receiver<()>>>,
}

/// What a run is started with.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub pattern: String,
    /// Empty means whichever there is.
    pub version: String,
    pub input: Json,
    pub options: Options,
}

impl Runs {
    /// With none running; see [`Runs::resume`].
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self(Arc::new(Inner { context, active: Mutex::default() }))
    }

    pub(crate) fn context(&self) -> &Context {
        &self.0.context
    }

    /// Starts a run and returns once its beginning is on disk.
    ///
    /// # Errors
    /// No such pattern; the store's. Whatever happens later is in the run.
    pub async fn start(&self, tenant: &str, request: Request) -> Result<RunKey> {
        let key = RunKey { tenant: tenant.to_owned(), id: self.context().env.id() };
        self.start_as(key, request).await
    }

    /// Starts a run under a given id, or joins it if it has been started.
    pub(crate) async fn start_as(&self, key: RunKey, request: Request) -> Result<RunKey> {
        if self.context().life.is_stopping() {
            return Err(Error::Stopping);
        }
        let pattern = self.context().catalog.get(&request.pattern, &request.version)?;
        pattern.accept(&request.input)?;
        let requirements = &pattern.header.requirements;
        let mut agents = self.context().registry.agents(&key.tenant, &requirements.capabilities);
        if let Some(max) = requirements.max_agents {
            agents.truncate(max as usize);
        }
        let refusal = refusal(&pattern, agents.len());
        let start = Start {
            pattern: pattern.header.name.clone(),
            pattern_version: pattern.header.version.clone(),
            script_hash: pattern.hash.clone(),
            input: request.input,
            options: request.options,
            agents: agents.iter().map(|agent| (**agent).clone()).collect(),
        };
        let at = self.context().env.now();
        let mut entries = vec![Entry { at, event: Event::Started(Box::new(start)) }];
        if let Some(message) = refusal {
            entries.push(Entry { at, event: Event::Failed { code: "no_agents".to_owned(), message } });
        }
        match self.context().store.create(&key, &pattern.script, &entries).await {
            Ok(()) => {}
            Err(StoreError::Exists { .. }) => {
                self.resume(&key).await?;
                return Ok(key);
            }
            Err(e) => return Err(e.into()),
        }
        self.context().metrics.run_started(&pattern.header.name);
        let run = Run {
            summary: Summary::of(key.clone(), &entries).expect("it begins with Started"),
            entries,
            script: String::new(),
        };
        if run.summary.status.is_final() {
            self.count_end(&run.summary, Duration::ZERO);
        } else {
            self.drive(run, pattern.program.clone());
        }
        Ok(key)
    }

    /// The runs that the last process left; ask before the first is started here.
    ///
    /// # Errors
    /// The store's.
    pub async fn unfinished(&self) -> Result<Vec<RunKey>> {
        Ok(self.context().store.unfinished().await?)
    }

    /// Goes on with a run that has not ended, if it is not driven here already: it is replayed from its journal,
    /// and what it waited for is asked again under the same idempotency key.
    ///
    /// # Errors
    /// No such run; the store's.
    pub async fn resume(&self, key: &RunKey) -> Result<()> {
        let run = self.get(key).await?;
        if run.summary.status.is_final() {
            return Ok(());
        }
        let pattern = &run.summary.pattern;
        match patterns::compile(pattern, &run.script) {
            Ok(program) => {
                info!(run = key.id, pattern, entries = run.entries.len(), "going on with a run");
                self.drive(run, program);
            }
            Err(diagnostics) => {
                // Pinned by an older version whose language this one no longer speaks.
                let message = diagnostics.first().map(|d| d.message.clone()).unwrap_or_default();
                warn!(run = key.id, pattern, message, "a run's script no longer compiles");
                let event = Event::Failed { code: "script".to_owned(), message };
                let entry = Entry { at: self.context().env.now(), event };
                self.context().store.append(key, run.summary.len, &[entry]).await?;
            }
        }
        Ok(())
    }

    fn drive(&self, run: Run, program: Program) {
        let key = run.summary.key.clone();
        let (running, ended) = watch::channel(());
        match self.0.active.lock().entry(key.clone()) {
            // Started while the runs of the last process were being read.
            hash_map::Entry::Occupied(_) => return,
            hash_map::Entry::Vacant(place) => _ = place.insert(ended),
        }
        let span = info_span!("run", run = key.id, pattern = run.summary.pattern, tenant = key.tenant);
        let runs = self.clone();
        let drive = async move {
            let begun = Instant::now();
            runs.context().metrics.runs_active.inc();
            let driving = async { Driver::new(runs.clone(), run, &program).run().await };
            let driven = match AssertUnwindSafe(driving).catch_unwind().await {
                Ok(driven) => driven,
                Err(_) => runs.end_panicked(&key).await.map(Some),
            };
            match driven {
                Ok(Some(summary)) => {
                    let (status, calls) = (summary.status, summary.calls);
                    info!(%status, calls, ms = begun.elapsed().as_millis() as u64, "run ended");
                    runs.count_end(&summary, begun.elapsed());
                }
                Ok(None) => info!("run left to the next start"),
                Err(e) => error!("a run cannot go on here; it stays as its journal has it: {e}"),
            }
            runs.context().metrics.runs_active.dec();
            runs.0.active.lock().remove(&key);
            drop(running);
        };
        self.context().life.spawn("run", drive.instrument(span));
    }

    /// A driver that panicked takes neither the run's callers nor the next start along.
    async fn end_panicked(&self, key: &RunKey) -> Result<Summary> {
        let mut summary = self.get(key).await?.summary;
        let message = "the driver panicked; this is a defect of Parallax, please report it".to_owned();
        let event = Event::Failed { code: "internal".to_owned(), message };
        let entry = Entry { at: self.context().env.now(), event };
        self.context().store.append(key, summary.len, std::slice::from_ref(&entry)).await?;
        summary.apply(&entry);
        Ok(summary)
    }

    fn count_end(&self, summary: &Summary, duration: Duration) {
        let status = match summary.status {
            Status::Completed => RunStatus::Completed,
            Status::Cancelled => RunStatus::Cancelled,
            Status::Failed | Status::Running => RunStatus::Failed,
        };
        self.context().metrics.run_finished(&summary.pattern, status, duration);
    }

    /// Waits until a run is no longer driven here, and reads it.
    ///
    /// # Errors
    /// No such run; the store's.
    pub async fn wait(&self, key: &RunKey) -> Result<Run> {
        let ended = self.0.active.lock().get(key).cloned();
        if let Some(mut ended) = ended {
            // Only ever closed.
            ended.changed().await.ok();
        }
        self.get(key).await
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
        self.get(&RunKey { tenant: tenant.to_owned(), id: id.to_owned() }).await
    }

    /// A page of runs, newest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self, query: &RunQuery) -> Result<RunPage> {
        Ok(self.context().store.list(query).await?)
    }
}

/// Why a pattern cannot begin with so many agents.
fn refusal(pattern: &Pattern, found: usize) -> Option<String> {
    let requirements = &pattern.header.requirements;
    if found >= requirements.min_agents as usize {
        return None;
    }
    let which = match requirements.capabilities.as_slice() {
        [] => String::new(),
        capabilities => format!(" with {}", capabilities.join(", ")),
    };
    let (name, needed) = (&pattern.header.name, requirements.min_agents);
    let found = if found == 0 { "none is".to_owned() } else { format!("only {found} are") };
    Some(format!(
        "{name} needs {needed} agent(s){which}, {found} registered; `parallax agent list` shows them"
    ))
}
