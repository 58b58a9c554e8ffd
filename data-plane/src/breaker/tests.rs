use tokio::time::advance;

use super::*;

fn breaker() -> Breaker {
    Breaker::new(Current::default(), Instant::now())
}

fn enter(breaker: &Breaker) -> Result<Pass, Duration> {
    breaker.enter(Instant::now())
}

fn end(breaker: &Breaker, pass: Pass, verdict: Verdict) {
    breaker.settle(pass, verdict, Instant::now(), 0);
}

fn call(breaker: &Breaker, verdict: Verdict) {
    let pass = enter(breaker).unwrap();
    end(breaker, pass, verdict);
}

fn phase(breaker: &Breaker) -> Phase {
    breaker.view(Instant::now()).0
}

fn opened() -> Breaker {
    let breaker = breaker();
    (0..5).for_each(|_| call(&breaker, Verdict::Sick));
    breaker
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_open_it() {
    let breaker = breaker();
    for _ in 0..4 {
        call(&breaker, Verdict::Sick);
    }
    call(&breaker, Verdict::Well);
    for failures in 1..=4 {
        call(&breaker, Verdict::Sick);
        assert_eq!(breaker.view(Instant::now()), (Phase::Closed, failures));
    }
    call(&breaker, Verdict::Silent);
    call(&breaker, Verdict::Sick);
    assert_eq!(phase(&breaker), Phase::Open);
    assert!(breaker.wait(Instant::now()).is_some());
    assert_eq!(enter(&breaker).unwrap_err(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn one_probe_goes_and_its_success_closes_it() {
    let breaker = opened();
    advance(Duration::from_millis(999)).await;
    assert!(enter(&breaker).is_err());
    advance(Duration::from_millis(1)).await;
    assert_eq!(phase(&breaker), Phase::HalfOpen);
    let probe = enter(&breaker).unwrap();
    assert!(matches!(probe, Pass::Probe));
    assert!(enter(&breaker).is_err(), "only one");
    end(&breaker, probe, Verdict::Well);
    assert_eq!(breaker.view(Instant::now()), (Phase::Closed, 0));
    call(&breaker, Verdict::Sick);
    assert_eq!(breaker.view(Instant::now()), (Phase::Closed, 1));
}

#[tokio::test(start_paused = true)]
async fn each_failed_probe_doubles_the_wait_up_to_the_longest() {
    let breaker = opened();
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        assert_eq!(enter(&breaker).unwrap_err(), Duration::from_secs(seconds));
        advance(Duration::from_secs(seconds)).await;
        call(&breaker, Verdict::Sick);
    }
    advance(Duration::from_secs(30)).await;
    call(&breaker, Verdict::Well);
    (0..5).for_each(|_| call(&breaker, Verdict::Sick));
    assert_eq!(enter(&breaker).unwrap_err(), Duration::from_secs(1), "a success begins it anew");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_leaves_the_way_open_for_the_next() {
    let breaker = opened();
    advance(Duration::from_secs(1)).await;
    for _ in 0..3 {
        let probe = enter(&breaker).unwrap();
        end(&breaker, probe, Verdict::Silent);
        assert_eq!(enter(&breaker).unwrap_err(), Duration::from_millis(100), "though not at once");
        advance(Duration::from_millis(100)).await;
    }
    call(&breaker, Verdict::Well);
    assert_eq!(phase(&breaker), Phase::Closed);
}

#[tokio::test(start_paused = true)]
async fn calls_from_before_it_opened_change_nothing() {
    let breaker = breaker();
    let (early, late) = (enter(&breaker).unwrap(), enter(&breaker).unwrap());
    (0..5).for_each(|_| call(&breaker, Verdict::Sick));
    end(&breaker, early, Verdict::Well);
    assert_eq!(phase(&breaker), Phase::Open);
    advance(Duration::from_secs(1)).await;
    let probe = enter(&breaker).unwrap();
    end(&breaker, late, Verdict::Sick);
    assert!(enter(&breaker).is_err(), "the probe still decides");
    end(&breaker, probe, Verdict::Well);
    assert_eq!(phase(&breaker), Phase::Closed);
}

#[tokio::test(start_paused = true)]
async fn jitter_adds_up_to_a_quarter() {
    for random in 0..2000 {
        let breaker = breaker();
        for _ in 0..5 {
            let pass = enter(&breaker).unwrap();
            breaker.settle(pass, Verdict::Sick, Instant::now(), random);
        }
        let wait = enter(&breaker).unwrap_err();
        assert!((1000..=1250).contains(&wait.as_millis()), "{wait:?}");
    }
}

/// Calls of which every `n`th succeeds, so that five never fail in a row.
fn mostly_failing(breaker: &Breaker, calls: u32, n: u32) {
    (1..=calls)
        .for_each(|call_no| call(breaker, if call_no % n == 0 { Verdict::Well } else { Verdict::Sick }));
}

#[tokio::test(start_paused = true)]
async fn half_of_twenty_calls_open_it_and_fewer_calls_say_nothing() {
    let half = breaker();
    mostly_failing(&half, 19, 2);
    assert_eq!(phase(&half), Phase::Closed, "nineteen are too few");
    advance(Duration::from_secs(1)).await;
    call(&half, Verdict::Well);
    assert_eq!(phase(&half), Phase::Closed, "only a failure opens it");
    call(&half, Verdict::Sick);
    assert_eq!(phase(&half), Phase::Open);

    let third = breaker();
    (0..300).for_each(|n| call(&third, if n % 3 == 0 { Verdict::Sick } else { Verdict::Well }));
    assert_eq!(phase(&third), Phase::Closed, "a third is less than half");
}

#[tokio::test(start_paused = true)]
async fn failures_outside_the_window_are_not_counted_and_closing_begins_anew() {
    let breaker = breaker();
    mostly_failing(&breaker, 19, 3);
    advance(Duration::from_secs(10)).await;
    mostly_failing(&breaker, 19, 3);
    assert_eq!(phase(&breaker), Phase::Closed);
    call(&breaker, Verdict::Sick);
    assert_eq!(phase(&breaker), Phase::Open);
    advance(Duration::from_secs(1)).await;
    call(&breaker, Verdict::Well);
    call(&breaker, Verdict::Sick);
    assert_eq!(phase(&breaker), Phase::Closed, "what it was opened for is forgotten");
    assert_eq!(breaker.recent_calls(Instant::now()), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_asks_for_a_rest_gets_it_and_is_not_sick() {
    let breaker = breaker();
    (0..4).for_each(|_| call(&breaker, Verdict::Sick));
    let (early, late) = (enter(&breaker).unwrap(), enter(&breaker).unwrap());
    call(&breaker, Verdict::Throttled(Some(Duration::from_secs(7))));
    assert_eq!(breaker.view(Instant::now()), (Phase::Throttled, 4));
    assert_eq!(enter(&breaker), Err(Duration::from_secs(7)));
    // Calls that were under way hear it too: the longest counts, and those without a length add nothing.
    end(&breaker, early, Verdict::Throttled(Some(Duration::from_secs(8))));
    end(&breaker, late, Verdict::Throttled(None));
    assert_eq!(breaker.wait(Instant::now()), Some(Duration::from_secs(8)));
    advance(Duration::from_secs(8)).await;
    assert_eq!(breaker.view(Instant::now()), (Phase::Closed, 4));
    call(&breaker, Verdict::Sick);
    assert_eq!(phase(&breaker), Phase::Open, "a rest heals no failures either");
}

#[tokio::test(start_paused = true)]
async fn rests_without_a_length_double_up_to_the_longest_until_it_works() {
    let breaker = breaker();
    for millis in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
        call(&breaker, Verdict::Throttled(None));
        assert_eq!(enter(&breaker), Err(Duration::from_millis(millis)));
        advance(Duration::from_millis(millis)).await;
    }
    call(&breaker, Verdict::Well);
    call(&breaker, Verdict::Throttled(None));
    assert_eq!(enter(&breaker), Err(Duration::from_millis(100)));
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_bounded() {
    let breaker = breaker();
    call(&breaker, Verdict::Throttled(Some(Duration::MAX)));
    assert_eq!(enter(&breaker), Err(Duration::from_secs(60)));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_meets_a_busy_agent_waits_for_the_rest_and_decides_nothing() {
    let breaker = opened();
    advance(Duration::from_secs(1)).await;
    call(&breaker, Verdict::Throttled(Some(Duration::from_secs(2))));
    assert_eq!(phase(&breaker), Phase::HalfOpen);
    assert_eq!(enter(&breaker), Err(Duration::from_secs(2)));
    advance(Duration::from_secs(2)).await;
    assert_eq!(enter(&breaker), Ok(Pass::Probe));
}

#[tokio::test(start_paused = true)]
async fn its_age_begins_with_it_and_anew_when_it_closes() {
    let breaker = breaker();
    advance(Duration::from_secs(3)).await;
    assert_eq!(breaker.age(Instant::now()), Duration::from_secs(3));
    (0..5).for_each(|_| call(&breaker, Verdict::Sick));
    advance(Duration::from_secs(1)).await;
    call(&breaker, Verdict::Well);
    assert_eq!(breaker.age(Instant::now()), Duration::ZERO);
    advance(Duration::from_secs(2)).await;
    call(&breaker, Verdict::Well);
    assert_eq!(breaker.age(Instant::now()), Duration::from_secs(2));
}

mod never_wedged {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Enter,
        /// Ends one of the calls under way.
        End(usize, Verdict),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let verdict = prop_oneof![
            Just(Verdict::Well),
            Just(Verdict::Sick),
            Just(Verdict::Away),
            Just(Verdict::Silent),
            proptest::option::of(0u64..5000).prop_map(|ms| Verdict::Throttled(ms.map(Duration::from_millis))),
        ];
        let step = prop_oneof![
            3 => Just(Step::Enter),
            3 => (any::<usize>(), verdict).prop_map(|(which, verdict)| Step::End(which, verdict)),
            1 => (0u64..3000).prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Whatever happens there is one probe at most, and when all calls have ended and the longest wait has
        /// passed somebody may go.
        #[test]
        fn whatever_happens(steps in steps(), random in any::<u64>()) {
            let mut now = Instant::now();
            let breaker = Breaker::new(Current::default(), now);
            let mut under_way = Vec::new();
            for step in steps {
                match step {
                    Step::Enter => under_way.extend(breaker.enter(now)),
                    Step::End(which, verdict) if !under_way.is_empty() => {
                        let pass = under_way.swap_remove(which % under_way.len());
                        breaker.settle(pass, verdict, now, random);
                    }
                    Step::End(..) => {}
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                }
                prop_assert!(under_way.iter().filter(|pass| **pass == Pass::Probe).count() <= 1);
                prop_assert_eq!(breaker.wait(now).is_some(), breaker.wait(now) > Some(Duration::ZERO));
            }
            under_way.drain(..).for_each(|pass| breaker.settle(pass, Verdict::Silent, now, random));
            now += Duration::from_secs(60);
            prop_assert!(breaker.enter(now).is_ok());
        }
    }
}
