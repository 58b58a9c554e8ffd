//! Who is asked: of those that may be, the one that the strategy wants.

use std::{cell::OnceCell, rc::Rc, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::Caller;
use crate::{
    ask::{Ask, Target},
    balance::{self, Pool, Probed, Prospect, Strategy},
    breaker::by_pattern::Passes,
    call::Call,
    directory::Entry,
    error::Failure,
    group::{Group, Shared},
    outlier, probe,
    vitals::Standing,
};

impl Caller {
    /// Chooses an agent that was not yet tried and lets the call in; its group, if there are others in it. One that is
    /// asked `beside` another, after so long, can help ([`Vitals::can_help`](crate::vitals::Vitals::can_help)).
    pub(super) fn begin(
        self: &Rc<Self>,
        ask: &Ask<'_>,
        tried: &[Arc<Entry>],
        beside: Option<Duration>,
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
                let (entry, passes) = self.enter(group, ask, tried, beside, now).ok_or_else(|| {
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
        beside: Option<Duration>,
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
                && beside.is_none_or(|waited| entry.vitals.can_help(waited))
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
