//! An agent's breakers: its own, and one for each pattern that asks it.
//!
//! An agent can be well and fail at what one pattern asks of it: then it is ejected for that pattern alone.
//! - A call goes through both breakers. One that names no pattern goes through the agent's own only, and speaks
//!   for the whole agent.
//! - What a pattern's call says counts for the pattern. Its failure counts against the agent too, unless
//!   another pattern, or calls that name none, works there: had a success within the window and no failure
//!   since. So one pattern alone never opens the agent's breaker while others succeed; of an agent that fails
//!   all that is asked of it no pattern stays without a failure for longer than one call.
//! - An agent that is not there, or that asks for a rest, is so for every pattern: that counts for the agent
//!   alone.
//!
//! Patterns are found without a lock. There are at most [`PATTERNS`] per agent; of more, those that have not
//! been asked for longest are forgotten, the ones without failures first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parallax_runtime::env::millis;
use serde::Serialize;
use tokio::time::Instant;

use super::{Breaker, Pass, Phase, Verdict};
use crate::config::Current;

/// Patterns that are known per agent, at most.
const PATTERNS: usize = 64;

/// All of an agent's breakers, shared by all cores.
#[derive(Debug)]
pub(crate) struct Breakers {
    config: Current,
    epoch: Instant,
    own: Breaker,
    /// Of calls that name no pattern.
    unnamed: Successes,
    /// In order of their names.
    patterns: ArcSwap<Vec<Arc<Pattern>>>,
}

/// One pattern at one agent.
#[derive(Debug)]
struct Pattern {
    name: Box<str>,
    breaker: Breaker,
    successes: Successes,
    /// When it last was to be asked; milliseconds since the epoch.
    used: AtomicU64,
}

/// When the last success was that no failure has followed: milliseconds since the epoch plus one, or 0.
#[derive(Debug, Default)]
struct Successes(AtomicU64);

/// Permission to make one call, from all breakers that it concerns. As with [`Pass`]: settle it, whatever happens.
#[derive(Debug)]
#[must_use]
pub(crate) struct Passes {
    own: Pass,
    pattern: Option<(Arc<Pattern>, Pass)>,
}

impl Passes {
    /// Whether the call is to find out whether an agent works again.
    pub(crate) fn is_probe(&self) -> bool {
        self.own == Pass::Probe || self.pattern.as_ref().is_some_and(|(_, pass)| *pass == Pass::Probe)
    }
}

/// A pattern's breaker, for people.
#[derive(Debug, Serialize)]
pub(crate) struct PatternView {
    pub(crate) pattern: String,
    pub(crate) breaker: Phase,
    pub(crate) consecutive_failures: u16,
    /// Until a call is let through, when none is now.
    pub(crate) retry_in_ms: Option<u64>,
}

impl Breakers {
    pub(crate) fn new(config: &Current, now: Instant) -> Self {
        Self {
            config: config.clone(),
            epoch: now,
            own: Breaker::new(config.clone(), now),
            unnamed: Successes::default(),
            patterns: ArcSwap::default(),
        }
    }

    /// The agent's own.
    pub(crate) fn own(&self) -> &Breaker {
        &self.own
    }

    /// How long until a call for the pattern is let through: `None` when one would be now. Changes nothing.
    pub(crate) fn wait(&self, pattern: &str, now: Instant) -> Option<Duration> {
        let of_pattern = || self.find(pattern)?.breaker.wait(now);
        self.own.wait(now).max(of_pattern())
    }

    /// How often in a row the breakers that a call for the pattern concerns have been opened, at most.
    pub(crate) fn times(&self, pattern: &str) -> u16 {
        let of_pattern = self.find(pattern).map_or(0, |pattern| pattern.breaker.times());
        self.own.times().max(of_pattern)
    }

    /// Lets a call through, or says how long to wait before asking again. An empty `pattern` is none.
    pub(crate) fn enter(&self, pattern: &str, now: Instant) -> Result<Passes, Duration> {
        let pattern = (!pattern.is_empty()).then(|| self.pattern(pattern, now));
        // First whether it would be, so that no probe of the agent's is taken in vain.
        if let Some(wait) = pattern.as_ref().and_then(|pattern| pattern.breaker.wait(now)) {
            return Err(wait);
        }
        let own = self.own.enter(now)?;
        let Some(pattern) = pattern else { return Ok(Passes { own, pattern: None }) };
        match pattern.breaker.enter(now) {
            Ok(pass) => Ok(Passes { own, pattern: Some((pattern, pass)) }),
            Err(wait) => {
                self.own.give_back(own, now);
                Err(wait)
            }
        }
    }

    /// Lets a call through whatever the breakers say, which learn nothing from it while they are open.
    pub(crate) fn enter_anyway(&self, pattern: &str, now: Instant) -> Passes {
        let pattern = (!pattern.is_empty()).then(|| self.pattern(pattern, now));
        let enter = |breaker: &Breaker| breaker.enter(now).unwrap_or(Pass::Ordinary);
        let own = enter(&self.own);
        Passes { own, pattern: pattern.map(|pattern| (pattern.clone(), enter(&pattern.breaker))) }
    }

    /// Takes the passes back. `random` spreads the probes of agents that failed together.
    pub(crate) fn settle(&self, passes: Passes, verdict: Verdict, now: Instant, random: u64) {
        let at = self.millis(now);
        let Passes { own, pattern } = passes;
        let Some((pattern, pass)) = pattern else {
            self.unnamed.note(verdict, at);
            return self.own.settle(own, verdict, now, random);
        };
        pattern.successes.note(verdict, at);
        let (of_agent, of_pattern) = match verdict {
            Verdict::Sick if self.others_work(&pattern, at) => (Verdict::Silent, verdict),
            Verdict::Away | Verdict::Throttled(_) => (verdict, Verdict::Silent),
            Verdict::Well | Verdict::Sick | Verdict::Silent => (verdict, verdict),
        };
        self.own.settle(own, of_agent, now, random);
        pattern.breaker.settle(pass, of_pattern, now, random);
    }

    pub(crate) fn view(&self, now: Instant) -> Vec<PatternView> {
        let view = |pattern: &Arc<Pattern>| {
            let (breaker, consecutive_failures) = pattern.breaker.view(now);
            let retry_in_ms = pattern.breaker.wait(now).map(millis);
            PatternView { pattern: pattern.name.to_string(), breaker, consecutive_failures, retry_in_ms }
        };
        self.patterns.load().iter().map(view).collect()
    }

    fn others_work(&self, failed: &Arc<Pattern>, now: u64) -> bool {
        let since = now.saturating_sub(super::whole_millis(self.config.now().breaker.window));
        let works = |pattern: &Arc<Pattern>| !Arc::ptr_eq(pattern, failed) && pattern.successes.since(since);
        self.unnamed.since(since) || self.patterns.load().iter().any(works)
    }

    fn find(&self, name: &str) -> Option<Arc<Pattern>> {
        if name.is_empty() {
            return None;
        }
        let patterns = self.patterns.load();
        position(&patterns, name).ok().map(|at| patterns[at].clone())
    }

    /// The pattern of that name, added if it is new.
    fn pattern(&self, name: &str, now: Instant) -> Arc<Pattern> {
        let at = self.millis(now);
        let pattern = self.find(name).unwrap_or_else(|| self.add(name, now));
        // A store takes the line from other cores.
        if pattern.used.load(Relaxed) != at {
            pattern.used.store(at, Relaxed);
        }
        pattern
    }

    fn add(&self, name: &str, now: Instant) -> Arc<Pattern> {
        let new = Arc::new(Pattern {
            name: name.into(),
            breaker: Breaker::new(self.config.clone(), now),
            successes: Successes::default(),
            used: AtomicU64::new(self.millis(now)),
        });
        let mut added = new.clone();
        self.patterns.rcu(|patterns| {
            let mut patterns = Vec::clone(patterns);
            match position(&patterns, name) {
                // Another core was faster.
                Ok(at) => added = patterns[at].clone(),
                Err(at) => {
                    patterns.insert(at, new.clone());
                    if patterns.len() > PATTERNS {
                        forget(&mut patterns, &new, now);
                    }
                    added = new.clone();
                }
            }
            patterns
        });
        added
    }

    fn millis(&self, now: Instant) -> u64 {
        super::whole_millis(now.saturating_duration_since(self.epoch))
    }
}

fn position(patterns: &[Arc<Pattern>], name: &str) -> Result<usize, usize> {
    patterns.binary_search_by(|pattern| (*pattern.name).cmp(name))
}

/// Forgets one, though not the `new` one.
fn forget(patterns: &mut Vec<Arc<Pattern>>, new: &Arc<Pattern>, now: Instant) {
    let worth = |pattern: &Arc<Pattern>| {
        let failing = pattern.breaker.view(now) != (Phase::Closed, 0);
        (Arc::ptr_eq(pattern, new), failing, pattern.used.load(Relaxed))
    };
    let least = (0..patterns.len()).min_by_key(|at| worth(&patterns[*at]));
    if let Some(at) = least {
        patterns.remove(at);
    }
}

impl Successes {
    fn note(&self, verdict: Verdict, now: u64) {
        let noted = match verdict {
            Verdict::Well => now + 1,
            Verdict::Sick | Verdict::Away => 0,
            Verdict::Throttled(_) | Verdict::Silent => return,
        };
        // A store takes the line from other cores.
        if self.0.load(Relaxed) != noted {
            self.0.store(noted, Relaxed);
        }
    }

    fn since(&self, then: u64) -> bool {
        self.0.load(Relaxed) > then
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::time::advance;

    use super::{super::Policy, *};
    use crate::config::Config;

    fn breakers() -> Breakers {
        Breakers::new(&Current::default(), Instant::now())
    }

    fn call(breakers: &Breakers, pattern: &str, verdict: Verdict) -> Result<(), Duration> {
        let now = Instant::now();
        let passes = breakers.enter(pattern, now)?;
        breakers.settle(passes, verdict, now, 0);
        Ok(())
    }

    fn phase(breakers: &Breakers, pattern: &str) -> Phase {
        let view = breakers.view(Instant::now());
        view.into_iter().find(|view| view.pattern == pattern).unwrap().breaker
    }

    fn own(breakers: &Breakers) -> Phase {
        breakers.own().view(Instant::now()).0
    }

    #[tokio::test(start_paused = true)]
    async fn a_pattern_that_fails_is_ejected_alone_while_others_succeed() {
        for other in ["good", ""] {
            let breakers = breakers();
            call(&breakers, other, Verdict::Well).unwrap();
            // Nine calls of ten are the failing pattern's.
            for n in 0..90 {
                _ = call(&breakers, "bad", Verdict::Sick);
                if n % 9 == 0 {
                    call(&breakers, other, Verdict::Well).unwrap();
                }
            }
            assert_eq!((own(&breakers), phase(&breakers, "bad")), (Phase::Closed, Phase::Open));
            assert_eq!(breakers.wait("bad", Instant::now()), Some(Duration::from_secs(1)));
            assert_eq!(breakers.wait("never-seen", Instant::now()), None);
            advance(Duration::from_secs(1)).await;
            let probe = breakers.enter("bad", Instant::now()).unwrap();
            assert!(probe.is_probe());
            assert!(call(&breakers, "bad", Verdict::Well).is_err(), "only one");
            breakers.settle(probe, Verdict::Well, Instant::now(), 0);
            assert_eq!(phase(&breakers, "bad"), Phase::Closed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_fails_all_patterns_is_ejected_for_all() {
        let breakers = breakers();
        for pattern in ["a", "b", "c"] {
            call(&breakers, pattern, Verdict::Well).unwrap();
        }
        let mut failures = 0;
        while own(&breakers) == Phase::Closed {
            _ = call(&breakers, ["a", "b", "c"][failures % 3], Verdict::Sick);
            failures += 1;
        }
        assert_eq!(failures, 7, "two patterns had worked until then");
        assert!(call(&breakers, "never-seen", Verdict::Well).is_err());
        assert!(call(&breakers, "", Verdict::Well).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn success_of_long_ago_excuses_nothing() {
        let breakers = breakers();
        call(&breakers, "good", Verdict::Well).unwrap();
        advance(Duration::from_secs(11)).await;
        (0..5).for_each(|_| call(&breakers, "bad", Verdict::Sick).unwrap());
        assert_eq!(own(&breakers), Phase::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_away_or_rests_does_so_for_every_pattern() {
        let away = breakers();
        call(&away, "good", Verdict::Well).unwrap();
        (0..5).for_each(|_| call(&away, "bad", Verdict::Away).unwrap());
        assert_eq!((own(&away), phase(&away, "bad")), (Phase::Open, Phase::Closed));

        let busy = breakers();
        call(&busy, "eager", Verdict::Throttled(Some(Duration::from_secs(3)))).unwrap();
        assert_eq!((own(&busy), phase(&busy, "eager")), (Phase::Throttled, Phase::Closed));
        assert_eq!(call(&busy, "other", Verdict::Well), Err(Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_refused_by_the_other_breaker_is_not_taken() {
        let breakers = breakers();
        (0..5).for_each(|_| call(&breakers, "bad", Verdict::Sick).unwrap());
        assert_eq!((own(&breakers), phase(&breakers, "bad")), (Phase::Open, Phase::Open));
        advance(Duration::from_secs(1)).await;
        let both = breakers.enter("bad", Instant::now()).unwrap();
        assert!(both.is_probe());
        breakers.settle(both, Verdict::Sick, Instant::now(), 0);
        advance(Duration::from_secs(2)).await;
        call(&breakers, "other", Verdict::Well).unwrap();
        assert_eq!((own(&breakers), phase(&breakers, "bad")), (Phase::Closed, Phase::HalfOpen));
        let cancelled = breakers.enter("bad", Instant::now()).unwrap();
        breakers.settle(cancelled, Verdict::Silent, Instant::now(), 0);
        advance(Duration::from_millis(100)).await;
        call(&breakers, "bad", Verdict::Well).unwrap();
        assert_eq!(phase(&breakers, "bad"), Phase::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn who_enters_anyway_decides_nothing() {
        let breakers = breakers();
        (0..5).for_each(|_| call(&breakers, "", Verdict::Sick).unwrap());
        for verdict in [Verdict::Well, Verdict::Sick] {
            let passes = breakers.enter_anyway("p", Instant::now());
            assert!(!passes.is_probe());
            breakers.settle(passes, verdict, Instant::now(), 0);
        }
        assert_eq!((own(&breakers), breakers.times("p")), (Phase::Open, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_patterns_is_bounded_and_failing_ones_are_kept() {
        let breakers = breakers();
        call(&breakers, "good", Verdict::Well).unwrap();
        (0..5).for_each(|_| call(&breakers, "bad", Verdict::Sick).unwrap());
        for n in 0..1000 {
            advance(Duration::from_millis(1)).await;
            call(&breakers, &format!("p{n}"), Verdict::Well).unwrap();
            call(&breakers, "good", Verdict::Well).unwrap();
        }
        let names: HashSet<_> = breakers.view(Instant::now()).into_iter().map(|view| view.pattern).collect();
        assert_eq!(names.len(), PATTERNS);
        for kept in ["good", "bad", "p999", "p938"] {
            assert!(names.contains(kept), "{kept} of {names:?}");
        }
        assert!(!names.contains("p937"));
    }

    #[test]
    fn cores_that_meet_a_pattern_together_share_its_breaker() {
        let breaker = Policy { failures: 8000, ratio_calls: 100_000, ..Policy::default() };
        let config = Config { breaker, ..Config::default() }.into();
        let breakers = Breakers::new(&config, Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..2000 {
                        let now = Instant::now();
                        let passes = breakers.enter(["p", "q"][n % 2], now).unwrap();
                        breakers.settle(passes, Verdict::Sick, now, 0);
                    }
                });
            }
        });
        let views = breakers.view(Instant::now());
        let counts: Vec<_> = views.iter().map(|view| view.consecutive_failures).collect();
        assert_eq!(counts, [4000, 4000]);
        assert_eq!(breakers.own().view(Instant::now()).0, Phase::Open, "eight thousand in all");
    }
}
