//! Who is left out of balancing for being much slower than its group, and how many may be left out at all.
//!
//! A group is the agents of one tenant with one capability. Once a second, off the path of calls, each agent's
//! latency is held against its group's median; one that is several times slower is not chosen for a while, each
//! time in a row for longer. Who names it is served all the same. It is Envoy's outlier detection, with latency
//! where that has success rates; `base_ejection_time` and `max_ejection_time` are the same.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::info;

use crate::{
    config::Current,
    directory::{Directory, Entry, Tenant},
    vitals::Standing,
};

/// Between two looks at the groups.
const SWEEP: Duration = Duration::from_secs(1);

/// When an agent is too slow for its group, and for how long it is left out.
#[derive(Clone, Copy, Debug)]
pub struct Outliers {
    /// How many times the group's median latency; above 1.
    pub factor: f64,
    /// Whose latency is below this is never too slow.
    pub least: Duration,
    /// Calls within [`crate::Policy::window`] that an agent must have had to be compared; 1 or more. Envoy's
    /// `success_rate_request_volume`.
    pub calls: u32,
    /// How long it is left out, times the number of times in a row. Envoy's `base_ejection_time`.
    pub first: Duration,
    /// The longest that it is left out. Envoy's `max_ejection_time`.
    pub longest: Duration,
}

impl Default for Outliers {
    fn default() -> Self {
        Self {
            factor: 3.0,
            least: Duration::from_millis(10),
            calls: 10,
            first: Duration::from_secs(10),
            longest: Duration::from_secs(300),
        }
    }
}

/// Looks at the groups once a second, until it is dropped.
pub(crate) async fn run(directory: Arc<Directory>, config: Current) {
    let mut sweeps = interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        sweeps.tick().await;
        if let Some(snapshot) = directory.snapshot().as_ref() {
            snapshot.tenants().for_each(|tenant| sweep(tenant, &config.now().outliers, Instant::now()));
        }
    }
}

/// What those are held against who are not left out already.
struct Measured {
    /// Slower is too slow; none when there is nobody to compare with.
    bound: Option<Duration>,
    /// How many may still be left out.
    room: usize,
}

/// Agents with several capabilities must be too slow for each group in which they can be compared: what one of
/// them asks for may take longer than what the others ask for.
fn sweep(tenant: &Tenant, outliers: &Outliers, now: Instant) {
    let measured = |entry: &Arc<Entry>| {
        let vitals = &entry.vitals;
        let counts = vitals.recent_calls(now) >= outliers.calls && !vitals.slow(now);
        vitals.latency().filter(|_| counts)
    };
    let compare = |able: &[Arc<Entry>]| {
        let mut latencies: Vec<_> = able.iter().filter_map(measured).collect();
        latencies.sort_unstable();
        let bound = median(&latencies).map(|median| median.mul_f64(outliers.factor).max(outliers.least));
        let out = able.iter().filter(|entry| entry.vitals.slow(now)).count();
        Measured { bound, room: (able.len() / 2).saturating_sub(out) }
    };
    // Alone an agent is never left out.
    let groups = tenant.capabilities.iter().filter(|(_, group)| group.members.len() > 1);
    let mut groups: HashMap<&String, Measured> =
        groups.map(|(name, group)| (name, compare(&group.members))).collect();
    for entry in tenant.agents.values() {
        let Some(latency) = measured(entry) else { continue };
        let names = &entry.agent.capabilities;
        let bounds = || names.iter().filter_map(|name| groups.get(name)?.bound);
        if bounds().next().is_none() || bounds().any(|bound| latency <= bound) {
            entry.vitals.kept_up();
        } else if names.iter().filter_map(|name| groups.get(name)).all(|group| group.room > 0) {
            let ejection = entry.vitals.eject_as_slow((outliers.first, outliers.longest), now);
            names.iter().for_each(|name| {
                if let Some(group) = groups.get_mut(name) {
                    group.room = group.room.saturating_sub(1);
                }
            });
            info!(
                agent = entry.agent.key.id,
                tenant = entry.agent.key.tenant,
                "much slower than its group ({} ms): left out for {} s",
                latency.as_millis(),
                ejection.as_secs()
            );
        }
    }
}

/// The middle one; of an even number the lower, so that of two the slower can be found. None below two.
fn median(sorted: &[Duration]) -> Option<Duration> {
    (sorted.len() > 1).then(|| sorted[(sorted.len() - 1) / 2])
}

/// How firmly an agent is left out: the least is asked again first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ejection {
    /// Its breaker is open; otherwise it is only slow.
    pub(crate) failing: bool,
    /// How often in a row.
    pub(crate) times: u32,
    /// Until it is tried again in any case.
    pub(crate) wait: Duration,
}

/// Of a group's agents, the places of those that are asked although they are ejected, so that no more than half
/// of a group, but at least one, is left out for failing: when all fail, the half that fails least serves on
/// with what it can. Alone an agent is left out for failing and never for being slow. Envoy's
/// `max_ejection_percent` (50 here), and its panic routing for one half at most.
pub(crate) fn readmitted(group: &[Standing]) -> Vec<usize> {
    let mut ejected: Vec<(Ejection, usize)> = group
        .iter()
        .enumerate()
        .filter_map(|(place, standing)| match standing {
            Standing::Ejected(ejection) => Some((*ejection, place)),
            Standing::Admitted | Standing::Resting(_) => None,
        })
        .collect();
    if let ([_], [(Ejection { failing: false, .. }, place)]) = (group, &ejected[..]) {
        return vec![*place];
    }
    let left_out = (group.len() / 2).max(1);
    ejected.sort_unstable();
    ejected.truncate(ejected.len().saturating_sub(left_out));
    ejected.into_iter().map(|(_, place)| place).collect()
}

#[cfg(test)]
mod tests {
    use parallax_proto::{
        controlplane::v1::{AgentRecord, Transport},
        registry::AgentRegistration,
    };
    use parallax_runtime::store::CallOutcome;
    use parallax_telemetry::{Registry, metrics::DataPlaneMetrics};
    use tokio::time::advance;

    use super::*;
    use crate::{
        breaker::Verdict,
        directory::{Book, Snapshot},
        vitals::{Ended, Vitals},
    };

    /// A tenant of agents with these capabilities.
    fn snapshot(agents: &[(&str, &[&str])]) -> Snapshot {
        let metrics = DataPlaneMetrics::new(&mut Registry::default());
        let mut book = Book::new(Current::default(), metrics);
        let record = |(id, capabilities): &(&str, &[&str])| AgentRecord {
            tenant: "default".into(),
            registration: Some(AgentRegistration {
                id: (*id).into(),
                endpoint: "h:1".into(),
                capabilities: capabilities.iter().map(|c| (*c).into()).collect(),
                ..Default::default()
            }),
            transport: Transport::Mtls.into(),
        };
        book.replace(agents.iter().map(record).collect(), Instant::now());
        book.snapshot(1, Instant::now())
    }

    fn vitals<'a>(snapshot: &'a Snapshot, id: &str) -> &'a Vitals {
        &snapshot.tenant("default").unwrap().agents[id].vitals
    }

    fn answers(snapshot: &Snapshot, id: &str, calls: usize, millis: u64) {
        end(snapshot, id, calls, millis, (CallOutcome::Answered, Verdict::Well));
    }

    fn given_up(snapshot: &Snapshot, id: &str, calls: usize, millis: u64) {
        end(snapshot, id, calls, millis, (CallOutcome::Cancelled, Verdict::Silent));
    }

    fn outrun(snapshot: &Snapshot, id: &str, calls: usize, millis: u64) {
        let vitals = vitals(snapshot, id);
        (0..calls).for_each(|_| vitals.outrun(Duration::from_millis(millis), Instant::now()));
        given_up(snapshot, id, calls, millis);
    }

    fn end(
        snapshot: &Snapshot,
        id: &str,
        calls: usize,
        millis: u64,
        (outcome, verdict): (CallOutcome, Verdict),
    ) {
        let (vitals, now) = (vitals(snapshot, id), Instant::now());
        for _ in 0..calls {
            let passes = vitals.enter("", now).unwrap();
            let ahead = vitals.call_began(now);
            let took = Duration::from_millis(millis);
            let ended = Ended { outcome, verdict, confidence: None, took, work: true };
            vitals.call_ended(ahead, &ended, now);
            vitals.settle(passes, verdict, now, 0);
        }
    }

    fn look(snapshot: &Snapshot) {
        sweep(snapshot.tenant("default").unwrap(), &Outliers::default(), Instant::now());
    }

    fn slow(snapshot: &Snapshot) -> Vec<&str> {
        let slow = snapshot.entries().filter(|entry| entry.vitals.slow(Instant::now()));
        let mut slow: Vec<_> = slow.map(|entry| entry.agent.key.id.as_str()).collect();
        slow.sort_unstable();
        slow
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_much_slower_than_its_group_is_left_out_each_time_for_longer() {
        let group = snapshot(&[("a", &["x"]), ("b", &["x"]), ("c", &["x"])]);
        for seconds in [10, 20, 30] {
            for (id, millis) in [("a", 20), ("b", 30), ("c", 200)] {
                answers(&group, id, 20, millis);
            }
            look(&group);
            assert_eq!(slow(&group), ["c"]);
            assert!(vitals(&group, "c").wait("", Instant::now()).is_none(), "who names it is served");
            advance(Duration::from_millis(1000 * seconds - 1)).await;
            assert_eq!(slow(&group), ["c"]);
            advance(Duration::from_millis(1)).await;
            assert_eq!(slow(&group), [""; 0]);
            assert_eq!(
                vitals(&group, "c").ramp(crate::Config::default().slow_start, Instant::now()),
                0.1,
                "it begins anew"
            );
        }
        // It keeps up for three sweeps: all is forgotten.
        answers(&group, "a", 20, 20);
        answers(&group, "b", 20, 20);
        answers(&group, "c", 100, 20);
        (0..3).for_each(|_| look(&group));
        answers(&group, "c", 100, 200);
        look(&group);
        advance(Duration::from_secs(10)).await;
        assert_eq!(slow(&group), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn few_calls_small_differences_and_lonely_agents_are_left_alone() {
        let group = snapshot(&[("a", &["x"]), ("b", &["x"]), ("c", &["x", "alone"])]);
        answers(&group, "c", 100, 500);
        look(&group);
        answers(&group, "a", 9, 20);
        answers(&group, "b", 9, 20);
        look(&group);
        assert_eq!(slow(&group), [""; 0], "nine calls are too few to compare with");
        let quick = snapshot(&[("a", &["x"]), ("b", &["x"])]);
        answers(&quick, "a", 20, 1);
        answers(&quick, "b", 20, 9);
        look(&quick);
        assert_eq!(slow(&quick), [""; 0], "ten milliseconds are quick");
        let alone = snapshot(&[("a", &["x"]), ("b", &["y"])]);
        answers(&alone, "a", 20, 20);
        answers(&alone, "b", 20, 900);
        look(&alone);
        assert_eq!(slow(&alone), [""; 0]);
    }

    /// The tail would be worse with hedges than without them, which have the slow one found out at once.
    #[tokio::test(start_paused = true)]
    async fn hedges_do_not_hide_one_that_is_slow() {
        let group = snapshot(&["a", "b", "c", "d", "hidden", "silent", "left"].map(|id| (id, &["x"][..])));
        for id in ["a", "b", "c", "d"] {
            answers(&group, id, 20, 20);
        }
        answers(&group, "hidden", 1, 70);
        for _ in 0..8 {
            outrun(&group, "hidden", 4, 54);
            answers(&group, "hidden", 1, 50);
        }
        // It has never answered.
        outrun(&group, "silent", 10, 54);
        // Callers went away, for reasons of their own.
        answers(&group, "left", 9, 20);
        given_up(&group, "left", 100, 900);
        look(&group);
        assert_eq!(slow(&group), ["hidden", "silent"]);
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_a_group_stays() {
        let group = snapshot(&[("a", &["x"]), ("b", &["x"]), ("c", &["x"]), ("d", &["x"]), ("e", &["x"])]);
        for (id, millis) in [("a", 20), ("b", 20), ("c", 20), ("d", 900), ("e", 900)] {
            answers(&group, id, 20, millis);
        }
        look(&group);
        assert_eq!(slow(&group), ["d", "e"]);
        advance(Duration::from_secs(5)).await;
        answers(&group, "a", 20, 90);
        answers(&group, "b", 20, 10);
        answers(&group, "c", 100, 900);
        look(&group);
        assert_eq!(slow(&group), ["d", "e"], "two of five is all there can be");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_slower_work_besides_is_compared_with_those_who_do_it_too() {
        let group =
            snapshot(&[("quick", &["x"]), ("other", &["x"]), ("both", &["x", "y"]), ("slow", &["y"])]);
        for (id, millis) in [("quick", 20), ("other", 20), ("both", 200), ("slow", 250)] {
            answers(&group, id, 20, millis);
        }
        look(&group);
        assert_eq!(slow(&group), [""; 0]);
    }

    fn failing(times: u32, wait: u64) -> Standing {
        Standing::Ejected(Ejection { failing: true, times, wait: Duration::from_secs(wait) })
    }

    const SLOW: Standing =
        Standing::Ejected(Ejection { failing: false, times: 9, wait: Duration::from_secs(99) });

    #[test]
    fn of_a_group_in_trouble_the_better_half_is_asked() {
        let (well, busy) = (Standing::Admitted, Standing::Resting(Duration::from_secs(1)));
        for (group, expected) in [
            (vec![], vec![]),
            (vec![failing(1, 1)], vec![]),
            (vec![SLOW], vec![0]),
            (vec![failing(1, 1), well], vec![]),
            (vec![failing(2, 9), failing(1, 9)], vec![1]),
            (vec![failing(1, 2), failing(1, 1)], vec![1]),
            (vec![failing(1, 1), SLOW], vec![1]),
            (vec![failing(1, 3), failing(1, 1), failing(1, 2)], vec![1, 2]),
            (vec![failing(1, 1), failing(1, 2), well, well], vec![]),
            (vec![failing(3, 1), failing(1, 2), failing(2, 1), well], vec![1]),
            (vec![busy, busy], vec![]),
            (vec![busy, failing(1, 1), failing(1, 2)], vec![1]),
        ] {
            assert_eq!(readmitted(&group), expected, "{group:?}");
        }
    }
}
