//! From a request to an answer: one call, another when that fails, and another beside it when it takes long.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, uri::PathAndQuery};
use parallax_runtime::env::Env;
use parallax_telemetry::metrics::DataPlaneMetrics;
use tokio::time::{Instant, sleep};
use tonic::Code;
use tracing::{Instrument, debug};

use crate::{
    admission::{Admission, Holding, Ticket},
    ask::Ask,
    cache::Cache,
    call::{Answering, Call},
    config::Current,
    directory::{Directory, Entry},
    error::{Failed, Failure},
    group::Shared,
    pool::Pools,
    proxy::SERVED_BY,
    tracker::Recorder,
    upload::{Upload, Uploading},
};

mod choice;

/// What one worker makes calls with.
pub(crate) struct Caller {
    pub(crate) config: Current,
    pub(crate) env: Arc<dyn Env>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) pools: Pools,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: DataPlaneMetrics,
    pub(crate) admission: Rc<Admission>,
    /// Shared by all workers, like the cache.
    pub(crate) holding: Holding,
    pub(crate) cache: Arc<Cache>,
}

/// What goes to an agent, whoever it is.
pub(crate) struct Sent<'a> {
    pub(crate) path: PathAndQuery,
    pub(crate) headers: HeaderMap,
    pub(crate) upload: &'a Rc<Upload>,
}

/// A call that failed, and was settled.
struct Over {
    /// Two, if both a call and its hedge have.
    asked: Vec<Arc<Entry>>,
    failed: Failed,
    /// Whether another agent is to be asked.
    again: bool,
}

impl Over {
    fn after(mut self, before: Self) -> Self {
        self.asked.extend(before.asked);
        self
    }
}

impl Caller {
    /// Room for one call.
    pub(crate) fn admit(&self, ask: &Ask<'_>) -> Result<Ticket, Failure> {
        self.admission.admit(ask.tenant, ask.priority, ask.started, &*self.env)
    }

    /// Gets an answer to a call that has been admitted, from as many agents one after the other or side by side as the
    /// request allows. The answer's head has come, its call is under way.
    ///
    /// An error that the agent itself gave comes as its answer if it is the last word.
    pub(crate) async fn call(
        self: &Rc<Self>,
        ask: &Ask<'_>,
        sent: Sent<'_>,
    ) -> Result<(Call, Answering), Failed> {
        let uploading = Uploading::new(sent.upload);
        let mut tried = Vec::new();
        // Why another is asked, and whose budget pays for that.
        let mut last: Option<(Failed, Arc<Shared>)> = None;
        loop {
            let (call, group) = match (self.begin(ask, &tried, None), last.take()) {
                (Ok(begun), None) => begun,
                (Ok(begun), Some(_)) => {
                    self.metrics.retries.inc();
                    begun
                }
                (Err(failure), None) => return Err(failure.into()),
                (Err(_), Some((failed, group))) => {
                    group.retries.give_back();
                    return Err(failed);
                }
            };
            let began = call.started;
            let ended = match group.as_ref().and_then(|group| self.patience(ask, group)) {
                Some(patience) => {
                    let group = group.as_ref().expect("patience is a group's");
                    Box::pin(self.hedged(ask, &sent, &tried, call, group, patience)).await
                }
                None => self.attempt(ask, &sent, &tried, call, group.as_ref()).await,
            };
            match ended {
                Ok((call, mut answering)) => {
                    if let Some(group) = group.filter(|_| self.hedgeable(ask)) {
                        // Whoever answered: so long did the first one take at least.
                        group.latencies.record(began.elapsed());
                    }
                    sent.upload.answered(answering.body.is_sent());
                    answering.body.upload = Some(uploading);
                    return Ok((call, answering));
                }
                Err(Over { failed, again: false, .. }) => return Err(failed),
                Err(Over { asked, failed, .. }) => {
                    debug!("another agent is asked: {}", failed.failure);
                    tried.extend(asked);
                    last = group.map(|group| (failed, group));
                }
            }
        }
    }

    /// One call to its answer's head, or to its first frame where a refusal may come that late.
    async fn attempt(
        &self,
        ask: &Ask<'_>,
        sent: &Sent<'_>,
        tried: &[Arc<Entry>],
        call: Call,
        group: Option<&Arc<Shared>>,
    ) -> Result<(Call, Answering), Over> {
        call.continue_trace(&sent.headers);
        let span = call.span.clone();
        let answered = async {
            let mut answering = call.send(sent.path.clone(), &sent.headers, sent.upload).await?;
            if ask.unary && group.is_some() && !answering.body.is_empty() {
                answering.peek().await?;
            }
            Ok(answering)
        };
        let may = |failure: &Failure| group.is_some_and(|group| self.again(ask, sent, tried, failure, group));
        let (failed, again) = match answered.instrument(span).await {
            Ok(mut answering) if answering.body.is_empty() => match call.status(&answering.head.headers) {
                Err(failure) if may(&failure) => {
                    // It is the last word, if nobody else can be asked.
                    answering.head.headers.insert(SERVED_BY, call.entry.served_by.clone());
                    (Failed { failure, said: Some(Box::new((answering.head, None))) }, true)
                }
                _ => return Ok((call, answering)),
            },
            Ok(answering) => return Ok((call, answering)),
            Err(failure) => {
                let again = may(&failure);
                (failure.into(), again)
            }
        };
        let asked = vec![call.entry.clone()];
        call.settle(Err(&failed.failure));
        Err(Over { asked, failed, again })
    }

    /// Whether another agent is asked after a failure: it can do no harm, there is time, the request is still
    /// at hand, and the budget allows it.
    fn again(
        &self,
        ask: &Ask<'_>,
        sent: &Sent<'_>,
        tried: &[Arc<Entry>],
        failure: &Failure,
        group: &Shared,
    ) -> bool {
        let now = Instant::now();
        let timeout = ask.timeout.unwrap_or_else(|| self.config.now().default_deadline);
        let possible = tried.len() < self.config.now().retry.max
            && failure.retry_is_safe(ask.hints.idempotent)
            && sent.upload.repeatable()
            && now < ask.started + timeout;
        if possible && !group.retry(now) {
            self.metrics.retries_denied.inc();
            return false;
        }
        possible
    }

    fn hedgeable(&self, ask: &Ask<'_>) -> bool {
        ask.hints.idempotent && ask.unary && self.config.now().hedge.budget_percent > 0
    }

    /// How long to wait for an agent before another is asked beside it; none when that is not to be.
    fn patience(&self, ask: &Ask<'_>, group: &Shared) -> Option<Duration> {
        if !self.hedgeable(ask) {
            return None;
        }
        let least = Duration::from_millis(self.config.now().hedge.min_delay_ms);
        group.latencies.quantile(self.config.now().hedge.quantile).map(|quantile| quantile.max(least))
    }

    /// A call, and a second one beside it if the first is slow: the first good answer counts. The other call
    /// is dropped, which cancels it at its agent and counts as "at least so slow".
    async fn hedged(
        self: &Rc<Self>,
        ask: &Ask<'_>,
        sent: &Sent<'_>,
        tried: &[Arc<Entry>],
        call: Call,
        group: &Arc<Shared>,
        patience: Duration,
    ) -> Result<(Call, Answering), Over> {
        let mut tried = tried.to_vec();
        tried.push(call.entry.clone());
        let began = call.started;
        let before = &tried[..tried.len() - 1];
        let first = self.attempt(ask, sent, before, call, Some(group));
        tokio::pin!(first);
        tokio::select! {
            biased;
            ended = &mut first => return ended,
            () = sleep(patience) => {}
        }
        let Some(second) = self.hedge(ask, sent, &tried, group, patience) else { return first.await };
        self.metrics.hedges.inc();
        let second = self.attempt(ask, sent, &tried, second, Some(group));
        tokio::pin!(second);
        // One retry follows, if any.
        let both = |last: Over, before: Over| {
            if before.again {
                group.retries.give_back();
            }
            last.after(before)
        };
        tokio::select! {
            biased;
            ended = &mut first => match ended {
                Ok(answered) => Ok(answered),
                Err(before) => second.await.map_err(|last| both(last, before)),
            },
            ended = &mut second => match ended {
                Ok(answered) => {
                    let now = Instant::now();
                    tried[tried.len() - 1].vitals.outrun(now - began, now);
                    self.metrics.hedges_won.inc();
                    Ok(answered)
                }
                Err(before) => first.await.map_err(|last| both(last, before)),
            },
        }
    }

    /// The second call, if there is somebody who can help, and the budget allows it: where there is more to do than can
    /// be done, asking twice makes everybody wait.
    fn hedge(
        self: &Rc<Self>,
        ask: &Ask<'_>,
        sent: &Sent<'_>,
        tried: &[Arc<Entry>],
        group: &Shared,
        waited: Duration,
    ) -> Option<Call> {
        if !sent.upload.shareable() || !group.hedge(Instant::now()) {
            return None;
        }
        let begun = self.begin(ask, tried, Some(waited)).ok();
        if begun.is_none() {
            group.hedges.give_back();
        }
        begun.map(|(call, _)| call)
    }
}

impl Failure {
    /// Whether another agent may be asked: this one has done nothing, or doing it twice is no harm.
    fn retry_is_safe(&self, idempotent: bool) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Lost { .. } | Self::BadAnswer { .. } => idempotent,
            Self::Agent { code, .. } => match code {
                // It says that it took nothing on.
                Code::ResourceExhausted => true,
                Code::Unavailable | Code::Internal | Code::Unknown | Code::Aborted | Code::DataLoss => {
                    idempotent
                }
                _ => false,
            },
            _ => false,
        }
    }
}
