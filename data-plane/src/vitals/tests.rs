use parallax_telemetry::{Registry, metrics::DataPlaneMetrics};

use super::*;

#[test]
fn one_that_has_never_answered_takes_at_least_as_long_as_it_works() {
    let metrics = DataPlaneMetrics::new(&mut Registry::default()).agent("default", "a");
    let (now, config) = (Instant::now(), Current::default());
    let vitals = Vitals::new(&config, metrics, now);
    assert_eq!(vitals.expected_mean(now), 0.0, "it is tried");
    let ahead = vitals.call_began(now);
    let later = now + Duration::from_millis(7);
    assert_eq!(vitals.expected_mean(later), 14_000.0);
    let end = |ahead, outcome, verdict, millis| {
        let took = Duration::from_millis(millis);
        let ended = Ended { outcome, verdict, confidence: None, took, work: true };
        vitals.call_ended(ahead, &ended, later);
    };
    end(ahead, CallOutcome::Cancelled, Verdict::Silent, 7);
    assert_eq!(vitals.expected_mean(later), 7000.0, "nobody waited for it any longer");
    let ahead = vitals.call_began(later);
    assert_eq!(vitals.expected_mean(later), 14_000.0);
    end(ahead, CallOutcome::Answered, Verdict::Well, 1);
    assert_eq!(vitals.expected_mean(later), 1000.0);
}

#[test]
fn one_with_a_queue_helps_nobody() {
    let metrics = DataPlaneMetrics::new(&mut Registry::default()).agent("default", "a");
    let vitals = Vitals::new(&Current::default(), metrics, Instant::now());
    let (waited, took) = (Duration::from_secs(1), Duration::from_millis(16));
    (0..32).for_each(|_| vitals.limit.answered(0, 0, took, 200));
    assert!(vitals.can_help(waited));
    (0..57).for_each(|ahead| vitals.limit.began(ahead));
    (0..32).for_each(|_| vitals.limit.answered(56, 56, 4 * took, 500));
    assert!(vitals.can_help(waited), "it is idle now");
    vitals.call_began(Instant::now());
    assert!(vitals.has_room() && !vitals.can_help(waited));
}

#[test]
fn one_that_was_never_tested_is_trusted_as_far_as_others_or_as_it_has_shown() {
    let metrics = DataPlaneMetrics::new(&mut Registry::default()).agent("default", "a");
    let (begun, config) = (Instant::now(), Current::default());
    let vitals = Vitals::new(&config, metrics, begun);
    let ahead: Vec<_> = (0..40).map(|_| vitals.call_began(begun)).collect();
    assert!(vitals.has_room_beside(|| None), "nobody has been tested");
    assert!(!vitals.has_room_beside(|| Some(40)) && vitals.has_room_beside(|| Some(41)));
    let (outcome, took) = (CallOutcome::Answered, Duration::from_millis(100));
    let ended = Ended { outcome, verdict: Verdict::Well, confidence: None, took, work: true };
    ahead.iter().for_each(|ahead| vitals.call_ended(*ahead, &ended, begun + Duration::from_millis(200)));
    // All took as long as those that were alone: it has no queue with forty.
    (0..59).for_each(|_| _ = vitals.call_began(begun));
    assert!(vitals.has_room_beside(|| Some(4)));
    vitals.call_began(begun);
    assert!(!vitals.has_room_beside(|| Some(4)));
    // Each of its calls took 100 ms.
    assert!(vitals.can_help(took) && !vitals.can_help(took / 2));
    (60..750).for_each(|_| _ = vitals.call_began(begun));
    assert!(!vitals.can_help(took) && vitals.has_room());
}

#[test]
fn a_hurried_caller_makes_an_agent_neither_fast_nor_sick() {
    let metrics = DataPlaneMetrics::new(&mut Registry::default()).agent("default", "a");
    let vitals = Vitals::new(&Current::default(), metrics, Instant::now());
    let (hasty, patient) = (Duration::from_millis(1), Duration::from_millis(200));
    let end = |outcome, took| {
        let ahead = vitals.call_began(Instant::now());
        let ended = Ended { outcome, verdict: Verdict::Silent, confidence: None, took, work: true };
        vitals.call_ended(ahead, &ended, Instant::now());
    };
    end(CallOutcome::DeadlineExceeded, hasty);
    assert!(vitals.excuses(hasty), "nobody answers so fast");
    assert!(!vitals.excuses(patient), "nothing is known of it yet");
    end(CallOutcome::Answered, Duration::from_millis(100));
    (0..1000).for_each(|_| end(CallOutcome::DeadlineExceeded, hasty));
    assert!(vitals.excuses(hasty));
    // One that hangs is not taken for one that is slow, however long it was waited for.
    (0..1000).for_each(|_| end(CallOutcome::DeadlineExceeded, patient));
    assert!(!vitals.excuses(Duration::from_millis(101)));
    assert!((0..1000).filter(|_| vitals.excuses(hasty)).count() < EXCUSES as usize, "without end");
    end(CallOutcome::Answered, Duration::from_millis(100));
    assert!(vitals.excuses(hasty));
    assert_eq!(vitals.in_flight(), 0);
}
