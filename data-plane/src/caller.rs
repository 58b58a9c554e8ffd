//! From a request to an answer: who is asked, who is asked next when that fails, and who is asked beside when
//! it takes long.

use std::{cell::OnceCell, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, uri::PathAndQuery};
use parallax_runtime::env::Env;
use parallax_telemetry::metrics::DataPlaneMetrics;
use tokio::time::{Instant, sleep};
use tonic::Code;
use tracing::{Instrument, debug};

use crate::{
    admission::{Admission, Holding, Ticket},
    ask::{Ask, Target},
    balance::{self, Pool, Probed, Prospect, Strategy},
    breaker::by_pattern::Passes,
    cache::Cache,
    call::{Answering, Call},
    config::Current,
    directory::{Directory, Entry},
    error::{Failed, Failure},
    group::{Group, Shared},
    outlier,
    pool::Pools,
    probe,
    proxy::SERVED_BY,
    tracker::Recorder,
    upload::{Upload, Uploading},
    vitals::Standing,
};

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
            let (call, group) = match (self.begin(ask, &tried, false), last.take()) {
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
        let before = &tried[..tried.len() - 1];
        let first = self.attempt(ask, sent, before, call, Some(group));
        tokio::pin!(first);
        tokio::select! {
            biased;
            ended = &mut first => return ended,
            () = sleep(patience) => {}
        }
        let Some(second) = self.hedge(ask, sent, &tried, group) else { return first.await };
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
                    self.metrics.hedges_won.inc();
                    Ok(answered)
                }
                Err(before) => first.await.map_err(|last| both(last, before)),
            },
        }
    }

    /// The second call, if there is somebody who has room to spare for it, and the budget allows it: where there is
    /// more to do than can be done, asking twice makes everybody wait.
    fn hedge(
        self: &Rc<Self>,
        ask: &Ask<'_>,
        sent: &Sent<'_>,
        tried: &[Arc<Entry>],
        group: &Shared,
    ) -> Option<Call> {
        if !sent.upload.shareable() || !group.hedge(Instant::now()) {
            return None;
        }
        let begun = self.begin(ask, tried, true).ok();
        if begun.is_none() {
            group.hedges.give_back();
        }
        begun.map(|(call, _)| call)
    }

    /// Chooses an agent that was not yet tried and lets the call in; its group, if there are others in it. An `extra`
    /// call goes only where there is room to spare.
    fn begin(
        self: &Rc<Self>,
        ask: &Ask<'_>,
        tried: &[Arc<Entry>],
        extra: bool,
    ) -> Result<(Call, Option<Arc<Shared>>), Failure> {
        let now = if tried.is_empty() { ask.started } else { Instant::now() };
        let tenant = ask.tenant;
        let snapshot = self.directory.snapshot();
        let snapshot = snapshot.as_ref().ok_or_else(|| Failure::NoDirectory {
            control_plane: self.config.now().control_planes.join(", "),
        })?;
        let agents = snapshot.tenant(tenant);
        match ask.target {
            Target::Agent(id) => {
                let known = || agents.into_iter().flat_map(|t| t.agents.keys()).map(String::as_str);
                let entry = agents
                    .and_then(|tenant| tenant.agents.get(id))
                    .ok_or_else(|| Failure::unknown_agent(tenant, id, known()))?;
                let passes = entry.vitals.has_room().then(|| entry.vitals.enter(ask.pattern, now).ok());
                let passes = passes.flatten().ok_or_else(|| {
                    let who = || format!("agent {}", entry.who());
                    self.refusal(std::slice::from_ref(entry), ask.pattern, now, tried, who)
                })?;
                Ok((Call::new(self.clone(), ask, entry.clone(), passes, now), None))
            }
            Target::Capability(capability) => {
                let known = || agents.into_iter().flat_map(|t| t.capabilities.keys()).map(String::as_str);
                let group = agents
                    .and_then(|tenant| tenant.capabilities.get(capability))
                    .ok_or_else(|| Failure::no_capability(tenant, capability, known()))?;
                let (entry, passes) = self.enter(group, ask, tried, extra, now).ok_or_else(|| {
                    let count = group.members.len();
                    let who = || format!("the {count} agents with the capability \"{capability}\"");
                    self.refusal(&group.members, ask.pattern, now, tried, who)
                })?;
                let call = Call::new(self.clone(), ask, entry.clone(), passes, now);
                Ok((call, (group.members.len() > 1).then(|| group.shared.clone())))
            }
        }
    }

    fn enter<'a>(
        self: &Rc<Self>,
        group: &'a Group,
        ask: &Ask<'_>,
        tried: &[Arc<Entry>],
        extra: bool,
        now: Instant,
    ) -> Option<(&'a Arc<Entry>, Passes)> {
        let members = &group.members;
        let standing = |entry: &Arc<Entry>| entry.vitals.standing(ask.pattern, now);
        // Looked for when an ejected one is met.
        let readmitted = OnceCell::new();
        let readmits = |entry: &Arc<Entry>| {
            let places = readmitted
                .get_or_init(|| outlier::readmitted(&members.iter().map(standing).collect::<Vec<_>>()));
            places.iter().any(|place| Arc::ptr_eq(&members[*place], entry))
        };
        // Likewise when one is met that has more to do than it has shown that it can.
        let largest = OnceCell::new();
        let admitted = |entry: &&Arc<Entry>| standing(entry) == Standing::Admitted;
        let tested = || members.iter().filter(admitted).filter_map(|entry| entry.vitals.tested_limit()).max();
        let largest = || *largest.get_or_init(tested);
        let admits = |entry: &Arc<Entry>| {
            entry.vitals.has_room_beside(largest)
                && (!extra || entry.vitals.has_room_to_spare())
                && !tried.iter().any(|tried| Arc::ptr_eq(tried, entry))
                && match standing(entry) {
                    Standing::Admitted => true,
                    Standing::Resting(_) => false,
                    Standing::Ejected(_) => readmits(entry),
                }
        };
        // Only the first choice is a call of the group's.
        let ordinal = if tried.is_empty() { group.shared.count() } else { self.env.random() };
        // Another core may take the probe that was picked: then there is one fewer to pick.
        for _ in 0..=members.len() {
            let entry = self.choose(group, ask, admits, ordinal, now)?;
            let passes = match entry.vitals.enter(ask.pattern, now) {
                Ok(passes) => passes,
                Err(_) if readmits(entry) => entry.vitals.enter_anyway(ask.pattern, now),
                Err(_) => continue,
            };
            if entry.vitals.load.probe(now) {
                probe::begin(self, entry.clone());
            }
            return Some((entry, passes));
        }
        None
    }

    /// Why nobody of these was asked.
    fn refusal(
        &self,
        members: &[Arc<Entry>],
        pattern: &str,
        now: Instant,
        tried: &[Arc<Entry>],
        who: impl Fn() -> String,
    ) -> Failure {
        // Where others have been asked the call is not refused.
        if tried.is_empty() {
            members.iter().for_each(|entry| entry.vitals.rejected());
        }
        let (mut full, mut resting, mut ejected) = (None, None, None);
        let sooner = |known: &mut Option<Duration>, other| {
            *known = Some(known.map_or(other, |known| known.min(other)));
        };
        for entry in members {
            match (entry.vitals.wait(pattern, now), entry.vitals.standing(pattern, now)) {
                (None, _) => sooner(&mut full, entry.vitals.room_in(self.env.random())),
                (Some(wait), Standing::Resting(_)) => sooner(&mut resting, wait),
                (Some(wait), _) => sooner(&mut ejected, wait),
            }
        }
        match (full, resting, ejected) {
            (Some(retry_in), _, _) => {
                Failure::Busy { who: who(), why: "no more calls in flight are sent there", retry_in }
            }
            (None, Some(retry_in), _) => Failure::Busy { who: who(), why: "a rest was asked for", retry_in },
            (None, None, retry_in) => Failure::Ejected { who: who(), retry_in: retry_in.unwrap_or_default() },
        }
    }

    /// Whom the strategy wants, of those that can be asked.
    fn choose<'a>(
        &self,
        group: &'a Group,
        ask: &Ask<'_>,
        admits: impl Fn(&Arc<Entry>) -> bool,
        ordinal: u64,
        now: Instant,
    ) -> Option<&'a Arc<Entry>> {
        let members = &group.members[..];
        let config = self.config.now();
        let (balance, slow_start) = (&config.balance, config.slow_start);
        let in_flight = |entry: &Arc<Entry>| entry.vitals.in_flight();
        // One that is new or has recovered is given less than its share: what it has in flight counts more.
        #[allow(clippy::cast_precision_loss)]
        let requests =
            |entry: &Arc<Entry>| (in_flight(entry) as f64 + 1.0) / entry.vitals.ramp(slow_start, now);
        let strategy = ask.hints.strategy.unwrap_or_else(|| balance.of(&group.shared.capability));
        match (strategy, ask.hints.affinity) {
            (Strategy::RoundRobin, _) => balance::next(members, admits, ordinal),
            (Strategy::LeastRequest, _) => {
                balance::cheaper_of_two(members, admits, requests, self.env.random())
            }
            (Strategy::ConsistentHash, Some(key)) => {
                // A quarter more than its share (the bound of Mirrokni et al.).
                let total: usize = members.iter().map(in_flight).sum();
                let bound = (total + 1).div_ceil(members.len()) * 5 / 4 + 1;
                balance::rendezvous(members, admits, |e| in_flight(e) >= bound, |e| e.hash, key)
            }
            (Strategy::PeakEwma | Strategy::ConsistentHash, _) => {
                let random = self.env.random();
                let cost = |entry: &Arc<Entry>| entry.expected(slow_start, now);
                let coolest =
                    if balance.reported_load { coolest(members, &admits, random, now) } else { None };
                coolest.or_else(|| balance::cheaper_of_two(members, &admits, cost, random))
            }
            (Strategy::Confidence, _) => {
                let random = self.env.random();
                // The upper half of the word: the lower one says where the pool begins.
                if (random >> 32) % 100 < balance.explore_percent.into() {
                    return balance::next(members, admits, random);
                }
                let pool =
                    Pool::look(members, admits, |entry| Some(entry.prospect(slow_start, now)), random)?;
                pool.chosen(|prospects| balance::most_promising(prospects, balance))
            }
        }
    }
}

/// By what the agents say of their load, if all that are looked at do.
fn coolest(
    members: &[Arc<Entry>],
    admits: impl Fn(&Arc<Entry>) -> bool,
    random: u64,
    now: Instant,
) -> Option<&Arc<Entry>> {
    // Mostly none does: one look tells.
    members.first()?.vitals.load.report(now)?;
    let probed = |entry: &Arc<Entry>| {
        let report = entry.vitals.load.report(now)?;
        // What was sent there since it reported counts too.
        let own = u32::try_from(entry.vitals.in_flight()).unwrap_or(u32::MAX);
        Some(Probed { in_flight: report.in_flight.max(own), service_time: report.service_time })
    };
    Pool::look(members, admits, probed, random)?.chosen(balance::hot_cold)
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

impl Entry {
    /// What the next call costs here: calls in flight times how long one takes.
    #[allow(clippy::cast_precision_loss)]
    fn expected(&self, slow_start: Duration, now: Instant) -> f64 {
        /// Of an agent that works on something and has not answered yet (Finagle's `penalty`). Microseconds.
        const UNKNOWN: f64 = 1e9;
        let (in_flight, latency) = (self.vitals.in_flight() as f64, self.vitals.load.latency(now));
        let known = if latency == 0.0 && in_flight > 0.0 { UNKNOWN } else { latency };
        known * (in_flight + 1.0) / self.vitals.ramp(slow_start, now)
    }

    fn prospect(&self, slow_start: Duration, now: Instant) -> Prospect {
        let stated = || self.agent.metadata.default_confidence.map_or(0.5, |confidence| confidence.get());
        Prospect {
            quality: self.vitals.load.quality().unwrap_or_else(stated),
            delay: self.vitals.expected_mean(now) / self.vitals.ramp(slow_start, now),
            cost: self.cost,
        }
    }
}
