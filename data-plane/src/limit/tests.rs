//! Against simulated agents: so many slots, first come first served, in front of them a queue without a bound.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use parallax_runtime::env::{Env, Simulated};

use super::*;
use crate::config::Config;

/// What happens, in order of time (microseconds).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ask { caller: usize },
    Done { ahead: usize, since: u64, caller: usize },
}

/// Callers that ask again as soon as they have an answer, and after five milliseconds when they are refused.
struct World {
    limit: Limit,
    random: Simulated,
    slots: usize,
    service: fn(&Simulated) -> u64,
    callers: usize,
    now: u64,
    in_flight: usize,
    serving: usize,
    queue: VecDeque<(usize, u64, usize)>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    answered: usize,
}

impl World {
    fn new(slots: usize, callers: usize, service: fn(&Simulated) -> u64) -> Self {
        let events = (0..callers).map(|caller| Reverse((0, Event::Ask { caller }))).collect();
        Self {
            limit: Limit::new(Current::default()),
            random: Simulated::new(5),
            slots,
            service,
            callers,
            now: 0,
            in_flight: 0,
            serving: 0,
            queue: VecDeque::new(),
            events,
            answered: 0,
        }
    }

    fn run(&mut self, seconds: u64) -> &mut Self {
        self.run_for(Duration::from_secs(seconds))
    }

    #[allow(clippy::cast_possible_truncation)]
    fn run_for(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time.as_micros() as u64;
        self.answered = 0;
        while let Some(Reverse((at, event))) = self.events.pop() {
            if at > end {
                self.events.push(Reverse((at, event)));
                break;
            }
            self.now = at;
            match event {
                // One caller too many has gone away.
                Event::Ask { caller } if caller >= self.callers => {}
                Event::Ask { caller } if self.in_flight < self.limit.get() => {
                    self.limit.began(self.in_flight);
                    self.queue.push_back((self.in_flight, at, caller));
                    self.in_flight += 1;
                }
                Event::Ask { .. } => self.events.push(Reverse((at + 5000, event))),
                Event::Done { ahead, since, caller } => {
                    self.in_flight -= 1;
                    self.serving -= 1;
                    self.answered += 1;
                    self.limit.answered(ahead, self.in_flight, Duration::from_micros(at - since), at / 1000);
                    self.events.push(Reverse((at, Event::Ask { caller })));
                }
            }
            while self.serving < self.slots
                && let Some((ahead, since, caller)) = self.queue.pop_front()
            {
                self.serving += 1;
                let done = self.now + (self.service)(&self.random);
                self.events.push(Reverse((done, Event::Done { ahead, since, caller })));
            }
        }
        self.now = end;
        self
    }

    fn callers(&mut self, callers: usize) -> &mut Self {
        let now = self.now;
        self.events.extend((self.callers..callers).map(|caller| Reverse((now, Event::Ask { caller }))));
        self.callers = callers;
        self
    }

    /// The limit, looked at each second; when it is quartered for a moment, what it returns to.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn limits(&mut self, seconds: u64) -> Vec<usize> {
        (0..seconds).map(|_| self.run(1).limit.settled() as usize).collect()
    }
}

fn uniform(random: &Simulated) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let unit = (random.random() >> 11) as f64 / (1u64 << 53) as f64;
    unit.max(1e-12)
}

fn normal(random: &Simulated) -> f64 {
    (-2.0 * uniform(random).ln()).sqrt() * (std::f64::consts::TAU * uniform(random)).cos()
}

/// Ten milliseconds, give or take one.
fn steady(random: &Simulated) -> u64 {
    9_000 + random.random() % 2_000
}

/// Ten milliseconds in the median; one in a hundred takes ten times as long.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn log_normal(random: &Simulated) -> u64 {
    (10_000.0 * normal(random).exp()) as u64
}

#[track_caller]
fn within(limits: &[usize], range: std::ops::RangeInclusive<usize>) {
    assert!(limits.iter().all(|limit| range.contains(limit)), "{limits:?}");
}

#[tokio::test(start_paused = true)]
async fn eight_slots_are_found_whoever_many_call() {
    for callers in [32, 64, 300] {
        let mut world = World::new(8, callers, steady);
        world.run(20);
        within(&world.limits(60), 8..=16);
        assert!(world.run(10).answered > 7_500, "it is kept busy: {} of 8000", world.answered);
    }
}

#[tokio::test(start_paused = true)]
async fn eight_slots_with_long_tails_are_found_too() {
    let mut world = World::new(8, 64, log_normal);
    world.run(30);
    let limits = world.limits(120);
    within(&limits, 4..=16);
    let mean = limits.iter().sum::<usize>() / limits.len();
    assert!((8..=14).contains(&mean), "{mean}: {limits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_slots_are_used() {
    let mut world = World::new(100, 100, steady);
    within(&world.limits(60), 100..=1000);
    world.callers(400).run(20);
    within(&world.limits(60), 90..=190);
    assert!(world.run(10).answered > 90_000, "{} of 100,000", world.answered);
}

#[tokio::test(start_paused = true)]
async fn long_tails_alone_collapse_nothing() {
    // It never has a queue: every rise of its latency is chance.
    for callers in [5, 20, 80] {
        let mut world = World::new(1000, callers, log_normal);
        within(&world.limits(200), callers..=1000);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_free_again_is_used_again() {
    let mut world = World::new(8, 200, steady);
    within(&world.run(20).limits(5), 8..=17);
    world.slots = 100;
    world.run(30);
    within(&world.limits(20), 80..=190);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_became_slower_is_not_starved() {
    let mut world = World::new(8, 64, steady);
    within(&world.run(20).limits(5), 8..=17);
    world.service = |random| 4 * steady(random);
    world.run(60);
    within(&world.limits(30), 6..=20);
}

/// One slot in two hundred callers' hands, and an agent whose work becomes a hundred times longer.
#[tokio::test(start_paused = true)]
async fn one_slot_is_found_and_longer_work_is_not_taken_for_a_queue_for_long() {
    let mut world = World::new(1, 200, steady);
    world.run(60);
    within(&world.limits(60), 4..=8);
    let mut world = World::new(1000, 20, steady);
    world.run(10);
    world.service = |random| 100 * steady(random);
    world.run(90);
    within(&world.limits(60), 15..=1000);
}

/// Bodies that become large at once take many times as long, and still next to nothing.
#[tokio::test(start_paused = true)]
async fn a_queue_of_a_few_milliseconds_is_none() {
    let mut world = World::new(1, 16, |random| 40 + random.random() % 20);
    world.run(5);
    world.service = |random| 250 + random.random() % 100;
    within(&world.limits(30), 16..=1000);
}

/// Of two hundred calls a second an agent can do forty, whether or not it is known when they begin.
#[tokio::test(start_paused = true)]
async fn a_flood_is_stopped_and_lowers_the_limit_no_further_than_it_must() {
    for known in [0, 2] {
        let mut world = World::new(8, known, |random| 20 * steady(random));
        world.run(20);
        let mut limits = Vec::new();
        for tenths in 1..=300 {
            world.callers(known + 20 * tenths.min(30)).run_for(Duration::from_millis(100));
            limits.push(world.limit.get());
        }
        within(&limits, 8..=1000);
        within(&limits[30..], 8..=100);
        within(&limits[150..], 8..=20);
        assert!(world.limit.untested() <= 24, "{}: what waits shows nothing", world.limit.untested());
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_seen_while_it_is_there() {
    let mut world = World::new(100, 50, steady);
    assert!(!world.run(2).limit.has_queue());
    world.callers(300);
    assert!((0..10).any(|_| world.run_for(Duration::from_millis(100)).limit.has_queue()));
    world.callers = 50;
    assert!(!world.run(2).limit.has_queue());
}

/// Whose unloaded latency is 16 ms, and which at 295 ms turned a call away with 64 in flight.
fn turned_away() -> Limit {
    let limit = Limit::new(Current::default());
    (0..32).for_each(|_| limit.answered(0, 0, Duration::from_micros(1 << 14), 200));
    (0..20).for_each(|_| limit.answered(64, 64, Duration::from_millis(400), 290));
    limit.turned_away(64, 295);
    assert_eq!(limit.get(), 57);
    limit
}

#[test]
fn who_waited_before_a_refusal_says_nothing_after_it() {
    let limit = turned_away();
    (0..16).for_each(|_| limit.answered(56, 56, Duration::from_millis(17), 450));
    assert_eq!(limit.get(), 57);
}

#[test]
fn who_waited_before_a_rise_does() {
    let limit = turned_away();
    (0..57).for_each(|ahead| limit.began(ahead));
    (0..32).for_each(|_| limit.answered(56, 56, Duration::from_millis(27), 500));
    assert_eq!(limit.get(), 58, "a little slower is within the headroom");
    (0..32).for_each(|_| limit.answered(56, 56, Duration::from_millis(160), 610));
    assert!(limit.get() < 20, "{}", limit.get());
}

#[test]
fn one_that_is_never_alone_is_known_by_what_there_is() {
    let limit = Limit::new(Current::default());
    (0..32).for_each(|_| limit.answered(100, 100, Duration::from_micros(1 << 14), 200));
    assert_eq!(limit.unloaded(), Some(Duration::from_micros(1 << 14)));
}

#[test]
fn what_is_still_in_flight_counts_though_nothing_new_is_asked() {
    let limit = Limit::new(Current::default());
    let answered = |ahead, millis, now| {
        limit.answered(ahead, 63 - ahead, Duration::from_millis(millis), now);
    };
    (0..32).for_each(|_| answered(0, 10, 200));
    (0..64).for_each(|ahead| limit.began(ahead));
    (0..32).for_each(|ahead| answered(ahead, 12, 310));
    (32..64).for_each(|ahead| answered(ahead, 402, 700));
    // A fifth of the 32 that were left, and the headroom.
    assert_eq!(limit.get(), 9);
}

#[test]
fn a_burst_on_a_new_agent_is_let_through() {
    let limit = Limit::new(Current::default());
    (0..999).for_each(|ahead| limit.began(ahead));
    assert_eq!(limit.get(), 1000);
}

#[test]
fn who_turns_calls_away_is_sent_fewer_and_never_less_than_the_least() {
    let limit = Limit::new(Current::default());
    // All that were turned away together count once.
    (20..200).for_each(|ahead| limit.turned_away(ahead, 1));
    assert_eq!(limit.get(), 18);
    limit.turned_away(18, 200);
    assert_eq!(limit.get(), 16);
    (1..100).for_each(|n| limit.turned_away(3, 1000 * n));
    assert_eq!(limit.get(), 4);
}

#[test]
fn deadlines_count_near_the_limit_only() {
    let limit =
        Limit::new(Config { limits: Limits { most: 100, ..Limits::default() }, ..Config::default() }.into());
    limit.too_late(20, 1);
    assert_eq!(limit.get(), 100);
    (0..50).for_each(|_| limit.too_late(60, 1));
    assert_eq!(limit.get(), 90);
}

#[test]
fn logarithms_are_near_enough() {
    for n in (1..100_000u64).chain([1 << 40, (1 << 40) - 1]) {
        #[allow(clippy::cast_precision_loss)]
        let (near, exact) = (log2(n) as f64 / 65536.0, (n as f64).log2());
        assert!((-0.001..0.09).contains(&(exact - near)), "{n}: {near} for {exact}");
    }
}
