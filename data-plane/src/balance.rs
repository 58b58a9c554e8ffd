//! Whom to ask: strategies over the agents of a group.
//!
//! Each looks at no more than [`POOL`] agents, and none has state of its own: what it goes by is in the
//! agents' vitals, which all calls keep up to date.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Agents that one choice looks at, at most (Prequal's pool of probes has as many).
pub(crate) const POOL: usize = 16;

/// How an agent is chosen among those that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// One after the other.
    RoundRobin,
    /// Of two at random the one with fewer calls in flight (Mitzenmacher 2001; Envoy's `LEAST_REQUEST`).
    LeastRequest,
    /// Of two at random the one with the lower product of calls in flight and peak-sensitive latency
    /// (Finagle's `p2cPeakEwma`). Where agents report their load, by that: of those that are not hot the
    /// fastest (Prequal, NSDI 2024).
    PeakEwma,
    /// The best expected answer: the quality of the last ones, against what the next one is expected to take
    /// and to cost. An agent that fails at once, or answers at once and is not sure, is no bargain.
    #[default]
    Confidence,
    /// Equal keys to the same agent (`x-parallax-affinity`), with bounded loads.
    ConsistentHash,
}

impl Strategy {
    const ALL: [Self; 5] =
        [Self::RoundRobin, Self::LeastRequest, Self::PeakEwma, Self::Confidence, Self::ConsistentHash];

    fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::LeastRequest => "least_request",
            Self::PeakEwma => "peak_ewma",
            Self::Confidence => "confidence",
            Self::ConsistentHash => "consistent_hash",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|strategy| strategy.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("\"{text}\" is no strategy; there are {names}")
        })
    }
}

/// Which strategy applies where, and what weighs how much.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// Where nothing else is said.
    pub strategy: Strategy,
    /// By capability; in settings a list of `capability=strategy`.
    #[serde(with = "pairs")]
    pub capabilities: BTreeMap<String, Strategy>,
    /// Whether what agents report of their load counts.
    pub reported_load: bool,
    /// What [`Strategy::Confidence`] gives up, of a quality between 0 and 1, for an answer at once rather than
    /// never; 0 to 1. One that takes as long as the group's mean loses half of it.
    pub latency_weight: f64,
    /// Likewise for the price of a call, which agents state in the label `cost` (any unit, the same for all);
    /// 0 to 1.
    pub cost_weight: f64,
    /// Share of the calls that [`Strategy::Confidence`] sends to any agent, so that what it knows of each
    /// stays true; percent.
    pub explore_percent: u32,
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            capabilities: BTreeMap::new(),
            reported_load: true,
            latency_weight: 0.3,
            cost_weight: 0.1,
            explore_percent: 1,
        }
    }
}

impl Balance {
    pub(crate) fn of(&self, capability: &str) -> Strategy {
        self.capabilities.get(capability).copied().unwrap_or(self.strategy)
    }
}

mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Strategy;

    pub(super) fn serialize<S: Serializer>(
        of: &BTreeMap<String, Strategy>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(of.iter().map(|(capability, strategy)| format!("{capability}={strategy}")))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<String, Strategy>, D::Error> {
        let pairs = Vec::<String>::deserialize(from)?;
        let pairs = pairs.iter().map(|pair| {
            let (capability, strategy) =
                pair.rsplit_once('=').ok_or_else(|| format!("\"{pair}\" is not capability=strategy"))?;
            Ok((capability.to_owned(), strategy.parse()?))
        });
        pairs.collect::<Result<_, String>>().map_err(D::Error::custom)
    }
}

/// The first that is admitted, from the `ordinal`-th on, round and round.
pub(crate) fn next<T>(candidates: &[T], admits: impl Fn(&T) -> bool, ordinal: u64) -> Option<&T> {
    around(candidates, ordinal).find(|candidate| admits(candidate))
}

/// All of them, from the `start`-th on (counted round and round).
#[allow(clippy::cast_possible_truncation)]
fn around<T>(candidates: &[T], start: u64) -> impl Iterator<Item = &T> {
    let start = (start % candidates.len().max(1) as u64) as usize;
    let (before, from) = candidates.split_at(start);
    from.iter().chain(before)
}

/// What is looked at for one choice, without an allocation: the candidates, and what is known of each.
pub(crate) struct Pool<'a, T, K> {
    candidates: [Option<&'a T>; POOL],
    known: [K; POOL],
    count: usize,
}

impl<'a, T, K: Copy + Default> Pool<'a, T, K> {
    /// Up to [`POOL`] of those that are admitted, from a random one on; none when `know` says nothing of one.
    pub(crate) fn look(
        candidates: &'a [T],
        admits: impl Fn(&T) -> bool,
        know: impl Fn(&T) -> Option<K>,
        random: u64,
    ) -> Option<Self> {
        let mut pool = Self { candidates: [None; POOL], known: [K::default(); POOL], count: 0 };
        for candidate in around(candidates, random).filter(|candidate| admits(candidate)).take(POOL) {
            pool.candidates[pool.count] = Some(candidate);
            pool.known[pool.count] = know(candidate)?;
            pool.count += 1;
        }
        Some(pool)
    }

    /// The candidate at the index that is chosen by what is known of all.
    pub(crate) fn chosen(&self, choose: impl Fn(&[K]) -> Option<usize>) -> Option<&'a T> {
        self.candidates[choose(&self.known[..self.count])?]
    }
}

/// The cheaper of two drawn at random from those that are admitted, which need not be all.
pub(crate) fn cheaper_of_two<T>(
    candidates: &[T],
    admits: impl Fn(&T) -> bool,
    cost: impl Fn(&T) -> f64,
    random: u64,
) -> Option<&T> {
    if let [only] = candidates {
        return admits(only).then_some(only);
    }
    let cheaper = |a, b| if cost(b) < cost(a) { b } else { a };
    let (first, second) = two(candidates.len(), random)?;
    let (first, second) = (&candidates[first], &candidates[second]);
    if admits(first) && admits(second) {
        return Some(cheaper(first, second));
    }
    // Some are ejected: rare enough to look at each.
    let admitted: Vec<&T> = candidates.iter().filter(|candidate| admits(candidate)).collect();
    match admitted[..] {
        [] => None,
        [only] => Some(only),
        _ => {
            let (first, second) = two(admitted.len(), random)?;
            Some(cheaper(admitted[first], admitted[second]))
        }
    }
}

/// Two different indexes below `n`, each pair equally likely; `None` below two.
#[allow(clippy::cast_possible_truncation)]
fn two(n: usize, random: u64) -> Option<(usize, usize)> {
    if n < 2 {
        return None;
    }
    // Multiply and shift: maps 32 random bits to a range without a division.
    let below = |bits: u64, n: usize| (((bits & 0xffff_ffff) * n as u64) >> 32) as usize;
    let first = below(random, n);
    let second = below(random >> 32, n - 1);
    Some((first, if second >= first { second + 1 } else { second }))
}

/// An agent whose load is known from itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Probed {
    pub(crate) in_flight: u32,
    pub(crate) service_time: f32,
}

/// The index of the one to ask: the fastest of those that are not hot; when all are hot, the one with the
/// least to do. Hot is what has more in flight than this share of the others (Prequal's `Q_RIF`).
pub(crate) fn hot_cold(probed: &[Probed]) -> Option<usize> {
    const HOT: f64 = 0.84;
    let mut loads = [0; POOL];
    let loads = &mut loads[..probed.len()];
    loads.iter_mut().zip(probed).for_each(|(load, p)| *load = p.in_flight);
    loads.sort_unstable();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rank = (loads.len() as f64 * HOT) as usize;
    let threshold = *loads.get(rank.min(loads.len().saturating_sub(1)))?;
    // The least loaded is cold, or all were hot whenever loads are equal.
    let cold = |p: &(usize, &Probed)| p.1.in_flight < threshold || p.1.in_flight == loads[0];
    let fastest = |a: &(usize, &Probed), b: &(usize, &Probed)| {
        a.1.service_time.total_cmp(&b.1.service_time).then(a.1.in_flight.cmp(&b.1.in_flight))
    };
    Some(probed.iter().enumerate().filter(cold).min_by(fastest)?.0)
}

/// What [`Strategy::Confidence`] knows of an agent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prospect {
    /// 0 to 1.
    pub(crate) quality: f64,
    /// Expected, any unit; 0 when nothing is known.
    pub(crate) delay: f64,
    /// Any unit; 0 when it states none.
    pub(crate) cost: f64,
}

/// The index of the one that promises most.
pub(crate) fn most_promising(prospects: &[Prospect], balance: &Balance) -> Option<usize> {
    let mean = |of: fn(&Prospect) -> f64| {
        let known = prospects.iter().map(of).filter(|n| *n > 0.0);
        let (sum, count) = known.fold((0.0, 0.0), |(sum, count), n| (sum + n, count + 1.0));
        sum / f64::max(count, 1.0)
    };
    let (delay, cost) = (mean(|p| p.delay), mean(|p| p.cost));
    // From 0 for nothing over 1/2 for the mean to 1 for infinity; what is not known counts as nothing.
    let share = |n: f64, mean: f64| if n > 0.0 { n / (n + mean) } else { 0.0 };
    let promise = |p: &Prospect| {
        p.quality - balance.latency_weight * share(p.delay, delay) - balance.cost_weight * share(p.cost, cost)
    };
    let best = prospects.iter().enumerate().max_by(|a, b| promise(a.1).total_cmp(&promise(b.1)))?;
    Some(best.0)
}

/// A number for a text, the same on every node (FNV-1a, 64 bits).
pub(crate) fn hash(text: &[u8]) -> u64 {
    text.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The candidate that a key belongs to: the same one as long as it is admitted, and when it is not, each of
/// its keys goes to another one (rendezvous hashing, Thaler and Ravishankar 1998). One that is `crowded` is
/// passed over if another is not (bounded loads, Mirrokni et al. 2018).
pub(crate) fn rendezvous<T>(
    candidates: &[T],
    admits: impl Fn(&T) -> bool,
    crowded: impl Fn(&T) -> bool,
    hash: impl Fn(&T) -> u64,
    key: u64,
) -> Option<&T> {
    candidates
        .iter()
        .filter(|candidate| admits(candidate))
        .max_by_key(|candidate| (!crowded(candidate), mix(key ^ hash(candidate))))
}

/// Every bit of the outcome depends on every bit of `n` (the finalizer of splitmix64).
fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Draws that cover both halves of the random word.
    fn draws() -> impl Iterator<Item = u64> {
        (0..1000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn share(candidates: &[(bool, f64)]) -> Vec<usize> {
        let mut hits = vec![0; candidates.len()];
        for random in draws() {
            if let Some(picked) = cheaper_of_two(candidates, |c| c.0, |c| c.1, random) {
                hits[candidates.iter().position(|c| std::ptr::eq(c, picked)).unwrap()] += 1;
            }
        }
        hits
    }

    #[test]
    fn equals_share_and_the_dearest_is_never_asked() {
        let hits = share(&[(true, 1.0), (true, 1.0), (true, 1.0)]);
        assert!(hits.iter().all(|n| (250..420).contains(n)), "{hits:?}");
        let hits = share(&[(true, 0.0), (true, 9.0), (true, 1.0)]);
        assert_eq!(hits[1], 0, "it loses against either of the others");
        assert!(hits[0] > hits[2]);
    }

    #[test]
    fn the_ejected_are_not_asked_and_the_last_one_standing_is() {
        let hits = share(&[(false, 0.0), (true, 5.0), (true, 5.0), (false, 0.0)]);
        assert_eq!((hits[0], hits[3]), (0, 0));
        assert!(hits[1] > 0 && hits[2] > 0);
        assert_eq!(share(&[(false, 0.0), (true, 99.0)]), [0, 1000]);
        assert_eq!(share(&[(true, 3.0)]), [1000]);
        assert_eq!(share(&[(false, 0.0), (false, 0.0)]), [0, 0]);
        assert_eq!(share(&[]), [0; 0]);
    }

    #[test]
    fn round_robin_goes_round_and_passes_over() {
        let picked = |ordinal| next(&["a", "b", "c"], |c| *c != "b", ordinal).copied().unwrap();
        assert_eq!((0..6).map(picked).collect::<String>(), "accacc");
        assert_eq!(next(&[] as &[u8], |_| true, 7), None);
    }

    #[test]
    fn of_the_cold_the_fastest_and_of_the_hot_the_least_loaded() {
        let p = |in_flight, service_time| Probed { in_flight, service_time };
        assert_eq!(hot_cold(&[p(1, 9.0), p(2, 3.0), p(9, 1.0)]), Some(1), "the fastest is hot");
        assert_eq!(hot_cold(&[p(4, 9.0), p(4, 3.0), p(4, 5.0)]), Some(1), "equal loads are cold");
        assert_eq!(hot_cold(&[p(4, 2.0)]), Some(0));
        assert_eq!(hot_cold(&[]), None);
    }

    #[test]
    fn quality_decides_and_then_delay_and_cost() {
        let p = |quality, delay, cost| Prospect { quality, delay, cost };
        let best = |prospects: &[Prospect]| most_promising(prospects, &Balance::default()).unwrap();
        assert_eq!(best(&[p(0.15, 1.0, 0.0), p(0.85, 50.0, 0.0)]), 1, "fast and wrong is no bargain");
        assert_eq!(best(&[p(0.8, 200.0, 0.0), p(0.8, 50.0, 0.0)]), 1);
        assert_eq!(
            best(&[p(0.82, 400.0, 0.0), p(0.8, 50.0, 0.0)]),
            1,
            "a little better is not worth the wait"
        );
        assert_eq!(best(&[p(0.8, 50.0, 9.0), p(0.8, 50.0, 1.0)]), 1);
        assert_eq!(best(&[p(0.8, 50.0, 0.0), p(0.8, 0.0, 0.0)]), 1, "one that is new is tried");
        assert_eq!(most_promising(&[], &Balance::default()), None);
    }

    #[test]
    fn a_key_stays_with_its_agent_and_only_the_keys_of_one_that_leaves_move() {
        let names = ["a", "b", "c", "d"];
        let owner = |key: u64, gone: &str| {
            let hash = |name: &&str| hash(name.as_bytes());
            *rendezvous(&names, |name| *name != gone, |_| false, hash, mix(key)).unwrap()
        };
        let mut shares = HashMap::<_, u32>::new();
        for key in 0..4000 {
            let before = owner(key, "");
            *shares.entry(before).or_default() += 1;
            let after = owner(key, "b");
            assert!(after != "b" && (before == "b" || after == before));
        }
        assert!(shares.values().all(|n| (850..1150).contains(n)), "{shares:?}");
        let crowded = rendezvous(&names, |_| true, |name| *name != "d", |n| hash(n.as_bytes()), 1);
        assert_eq!(crowded, Some(&"d"), "the others have too much to do");
    }

    #[test]
    fn strategies_read_as_they_are_written() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        let message = "p2c".parse::<Strategy>().unwrap_err();
        assert!(message.starts_with("\"p2c\" is no strategy; there are round_robin, "), "{message}");
    }
}
