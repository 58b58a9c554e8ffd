//! Starting runs: of a pattern, of a script, and over again.

use std::{collections::BTreeMap, sync::Arc};

use parallax_prism::Program;
use parallax_runtime::{
    run::{EffectId, Entry, Event, Options, Origin, Run, RunKey, Start, Summary},
    store::StoreError,
};
use serde_json::Value as Json;
use tokio::sync::oneshot;

use super::{AGAIN, Runs, Turn};
use crate::{
    driver::Birth,
    error::{Error, Result},
    patterns::Pattern,
    replay,
};

/// What a run is started with.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub pattern: String,
    /// Empty means the current one.
    pub version: String,
    /// To run in place of a pattern of the catalogue.
    pub script: Option<String>,
    pub input: Json,
    pub options: Options,
    /// The run that this one does over.
    pub origin: Option<Origin>,
    /// Of a run within another: what names meant when that began.
    pub versions: BTreeMap<String, String>,
}

impl Runs {
    /// Starts a run and returns once its beginning is on disk.
    ///
    /// # Errors
    /// No such pattern; the store's. Whatever happens later is in the run.
    pub async fn start(&self, tenant: &str, request: Request) -> Result<RunKey> {
        let key = RunKey { tenant: tenant.to_owned(), id: self.context().env.id() };
        self.prepare(key, request, true).await
    }

    /// Starts a run under a given id, or joins it if it has been started.
    pub(crate) async fn start_as(&self, key: RunKey, request: Request) -> Result<RunKey> {
        self.prepare(key, request, false).await
    }

    async fn prepare(&self, key: RunKey, request: Request, fresh: bool) -> Result<RunKey> {
        if self.context().life.is_stopping() {
            return Err(Error::Stopping);
        }
        if key.depth() == 0 {
            self.need_store()?;
        }
        let adhoc = request.script.is_some();
        let pattern = match request.script {
            Some(script) => Arc::new(Pattern::validate("(adhoc)", &script)?.0),
            None if request.version.is_empty() => {
                self.context().catalog.pinned(&key.tenant, &request.pattern, &request.versions)?
            }
            None => self.context().catalog.get(&key.tenant, &request.pattern, &request.version)?,
        };
        pattern.accept(&request.input)?;
        let requirements = &pattern.header.requirements;
        let wanted = [&requirements.capabilities[..], &request.options.capabilities].concat();
        let mut agents = self.context().registry.agents(&key.tenant, &wanted);
        let refusal = refusal(&pattern, &wanted, agents.len());
        let most = [requirements.max_agents, request.options.max_agents].into_iter().flatten().min();
        if let Some(most) = most {
            if most < requirements.min_agents {
                let (name, needed) = (&pattern.header.name, requirements.min_agents);
                let problem = format!("{most} is below the {needed} agent(s) that {name} needs");
                return Err(Error::Invalid { field: "max_agents", problem });
            }
            agents.truncate(most as usize);
        }
        let start = Start {
            pattern: pattern.header.name.clone(),
            pattern_version: pattern.header.version.clone(),
            script_hash: pattern.hash.clone(),
            input: request.input,
            options: request.options,
            agents: agents.iter().map(|agent| (**agent).clone()).collect(),
            adhoc,
            origin: request.origin,
            versions: match pattern.runs_others() {
                true if request.versions.is_empty() => self.context().catalog.current(&key.tenant),
                true => request.versions,
                false => BTreeMap::new(),
            },
        };
        let at = self.context().env.now();
        let mut entries = vec![Entry { at, event: Event::Started(Box::new(start)) }];
        if let Some(message) = refusal {
            entries.push(Entry { at, event: Event::Failed { code: "no_agents".to_owned(), message } });
        }
        self.begin(key, fresh, &pattern.script, pattern.program.clone(), entries).await
    }

    /// Puts a run with its first entries on disk, and drives it unless they end it. `fresh`: nobody else can know its
    /// id, so that it may be driven before it is there.
    async fn begin(
        &self,
        key: RunKey,
        fresh: bool,
        script: &str,
        program: Program,
        entries: Vec<Entry>,
    ) -> Result<RunKey> {
        let (runs, script) = (self.clone(), script.to_owned());
        let (told, begun) = oneshot::channel();
        // Whoever starts it may go away at any moment; what is begun here is driven here.
        self.context().life.spawn("begin", async move {
            told.send(runs.begun(key, fresh, &script, program, entries).await).ok();
        });
        begun.await.unwrap_or(Err(Error::Stopping))
    }

    async fn begun(
        &self,
        key: RunKey,
        fresh: bool,
        script: &str,
        program: Program,
        mut entries: Vec<Entry>,
    ) -> Result<RunKey> {
        let turn = if key.depth() > 0 { Some(Turn::Free) } else { self.0.turns.ask(&key) };
        let turn = turn.ok_or(Error::Busy { waiting: self.context().bounds.runs_waiting })?;
        let summary = Summary::of(key.clone(), &entries).expect("it begins with Started");
        let ended = summary.status.is_final();
        let created = if ended || turn.waits() || !fresh {
            if turn.waits() && !ended {
                entries.push(Entry { at: self.context().env.now(), event: Event::Queued });
            }
            let created = self.context().store.create(&self.0.owner, &key, script, &entries).await;
            if let Ok(summary) = created.as_ref().cloned()
                && !ended
            {
                self.drive(Run { summary, entries, script: String::new() }, program, turn, None);
            }
            created
        } else {
            let (told, created) = oneshot::channel();
            let birth = Birth { script: script.to_owned(), entries: entries.clone(), told };
            self.drive(Run { summary, entries, script: String::new() }, program, turn, Some(birth));
            created.await.map_err(|_| Error::Stopping)?
        };
        match created {
            Ok(summary) => {
                self.context().metrics.run_started(&summary.pattern);
                if ended {
                    self.count_end(&summary);
                }
                Ok(key)
            }
            // Begun before its parent's process ended: it has an owner, or will have.
            Err(StoreError::Exists { .. }) if key.depth() > 0 => Ok(key),
            Err(StoreError::InDoubt { what, problem }) => {
                // Whoever wanted it can look, and if it is there after all it is ours to drive.
                let what = format!("{what}, for run {},", key.id);
                self.resume_in(AGAIN, key);
                Err(StoreError::InDoubt { what, problem }.into())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Starts a new run of the same pattern, in its current version, with the same input and options.
    ///
    /// # Errors
    /// As [`Runs::start`]; a run that has not ended.
    pub async fn retry(&self, key: &RunKey) -> Result<RunKey> {
        let run = self.get(key).await?;
        if !run.summary.status.is_final() {
            return Err(Error::NotEnded { id: key.id.clone() });
        }
        let start = run.start().clone();
        let request = Request {
            pattern: start.pattern,
            version: String::new(),
            script: start.adhoc.then_some(run.script),
            input: start.input,
            options: start.options,
            origin: Some(Origin { run: key.id.clone(), from: None }),
            ..Request::default()
        };
        self.start(&key.tenant, request).await
    }

    /// Starts a new run that takes from an old one everything before effect `from`, and asks anew for that and all
    /// that follows.
    ///
    /// # Errors
    /// No such run or effect; the store's.
    pub async fn rerun(&self, key: &RunKey, from: EffectId) -> Result<RunKey> {
        let run = self.get(key).await?;
        let (mut entries, program) = replay::prefix(&run, from)?;
        if let Some(Event::Started(start)) = entries.first_mut().map(|first| &mut first.event) {
            start.origin = Some(Origin { run: key.id.clone(), from: Some(from) });
        }
        let at = self.context().env.now();
        entries.iter_mut().for_each(|entry| entry.at = at);
        let new = RunKey { tenant: key.tenant.clone(), id: self.context().env.id() };
        self.begin(new, true, &run.script, program, entries).await
    }
}

/// Why a pattern cannot begin with so many agents.
fn refusal(pattern: &Pattern, capabilities: &[String], found: usize) -> Option<String> {
    let requirements = &pattern.header.requirements;
    if found >= requirements.min_agents as usize {
        return None;
    }
    let which = match capabilities {
        [] => String::new(),
        capabilities => format!(" with {}", capabilities.join(", ")),
    };
    let (name, needed) = (&pattern.header.name, requirements.min_agents);
    let found = if found == 0 { "none is".to_owned() } else { format!("only {found} are") };
    Some(format!(
        "{name} needs {needed} agent(s){which}, {found} registered; `parallax agent list` shows them"
    ))
}
