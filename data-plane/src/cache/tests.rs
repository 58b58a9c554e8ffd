use std::{
    cell::Cell,
    future::{pending, poll_fn},
    pin::pin,
    task::Poll,
};

use parallax_proto::{
    confidence::AgentRequest,
    controlplane::v1::{AgentRecord, Transport},
    registry::{AgentRegistration, agent_registration::Metadata},
};
use parallax_runtime::wire::struct_from_json;
use parallax_telemetry::{Registry, metrics::DataPlaneMetrics};
use prost::Message;
use serde_json::{Value as Json, json};
use tokio::{sync::oneshot, task::yield_now, time::advance};

use super::*;
use crate::{
    ask::Target,
    config::Config,
    directory::{Book, Snapshot},
};

fn cache(change: impl FnOnce(&mut Caching)) -> Arc<Cache> {
    let mut caching = Caching { ttl_seconds: 100, ..Caching::default() };
    change(&mut caching);
    let config = Config { cache: caching, ..Config::default() };
    Arc::new(Cache::new(config.into(), DataPlaneMetrics::new(&mut Registry::default()).cache))
}

fn key(question: u8) -> Key {
    Key { question: [question; 32], version: Some([1; 32]) }
}

fn given(text: &'static str, confidence: f64) -> Given {
    Given {
        message: Bytes::from_static(text.as_bytes()),
        confidence: Confidence::stated(confidence),
        agent: HeaderValue::from_static("a"),
    }
}

fn late() -> Failure {
    Failure::Deadline { agent: "a".into(), after: Duration::ZERO }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

type Answer = (CacheOutcome, Result<Found<()>, Failed>);

async fn ask(cache: &Cache, key: Key, mode: Mode, answer: Result<Given, Failure>) -> Answer {
    let answer = answer.map(|given| (given, ())).map_err(Failed::from);
    cache.answer(key, mode, (far(), late), async || answer).await
}

/// What somebody who asks is told, and how; `said` is what the agent would say.
async fn told(cache: &Cache, key: Key, said: Given) -> (CacheOutcome, Bytes) {
    let (outcome, found) = ask(cache, key, Mode::Use, Ok(said)).await;
    let message = match found.unwrap() {
        Found::Hit(held) => held.given.message.clone(),
        Found::Shared(given) | Found::Asked(given, ()) => given.message,
    };
    (outcome, message)
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_given_again_for_as_long_as_it_is_sure() {
    for (confidence, lives) in [(1.0, 100), (0.75, 50), (0.6, 20), (0.5, 10)] {
        let cache = cache(|_| {});
        assert_eq!(told(&cache, key(1), given("old", confidence)).await.0, CacheOutcome::Miss);
        advance(Duration::from_millis(lives * 1000 - 1)).await;
        let hit = told(&cache, key(1), given("new", 1.0)).await;
        assert_eq!(hit, (CacheOutcome::Hit, "old".into()), "{confidence}");
        advance(Duration::from_millis(2)).await;
        let miss = told(&cache, key(1), given("new", 1.0)).await;
        assert_eq!(miss, (CacheOutcome::Miss, "new".into()), "{confidence}");
    }
    let strict = cache(|caching| caching.min_confidence = 1.0);
    told(&strict, key(1), given("sure", 1.0)).await;
    assert_eq!(told(&strict, key(1), given("", 1.0)).await.0, CacheOutcome::Hit);
}

#[tokio::test(start_paused = true)]
async fn what_is_unsure_says_nothing_or_failed_is_not_held() {
    let cache = cache(|_| {});
    for confidence in [0.49, 0.0, f64::NAN] {
        told(&cache, key(1), given("", confidence)).await;
        assert_eq!(told(&cache, key(1), given("", confidence)).await.0, CacheOutcome::Miss, "{confidence}");
    }
    ask(&cache, key(1), Mode::Use, Err(late())).await.1.unwrap_err();
    assert!(cache.stale(&key(1)).is_none());
    assert_eq!((cache.metrics.stored.get(), cache.metrics.bytes.get()), (0, 0));

    let lax = self::cache(|caching| caching.store_unstated = true);
    told(&lax, key(1), given("", f64::NAN)).await;
    advance(Duration::from_millis(9_999)).await;
    assert_eq!(told(&lax, key(1), given("", 1.0)).await.0, CacheOutcome::Hit);
    advance(Duration::from_millis(2)).await;
    assert_eq!(told(&lax, key(1), given("", 1.0)).await.0, CacheOutcome::Miss);
}

#[tokio::test(start_paused = true)]
async fn refreshing_replaces_and_bypassing_leaves_alone() {
    let cache = cache(|_| {});
    told(&cache, key(1), given("first", 1.0)).await;
    let (outcome, found) = ask(&cache, key(1), Mode::Bypass, Ok(given("unseen", 1.0))).await;
    assert_eq!(outcome, CacheOutcome::Bypass);
    assert!(matches!(found, Ok(Found::Asked(given, ())) if given.message == "unseen"));
    assert_eq!(told(&cache, key(1), given("", 1.0)).await, (CacheOutcome::Hit, "first".into()));
    assert_eq!(ask(&cache, key(1), Mode::Refresh, Ok(given("second", 1.0))).await.0, CacheOutcome::Refresh);
    assert_eq!(told(&cache, key(1), given("", 1.0)).await, (CacheOutcome::Hit, "second".into()));
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_held_for_a_while_and_for_its_version_only() {
    let cache = cache(|caching| caching.stale_seconds = 50);
    told(&cache, key(1), given("old", 1.0)).await;
    let other = Key { version: Some([2; 32]), ..key(1) };
    let nobody = Key { version: None, ..key(1) };
    advance(Duration::from_millis(149_999)).await;
    let held = cache.stale(&key(1)).unwrap();
    assert_eq!((held.given.message.as_ref(), held.age().as_secs()), (&b"old"[..], 149));
    assert!(cache.stale(&nobody).is_some(), "nobody is left who would answer otherwise");
    assert!(cache.stale(&other).is_none());
    assert!(cache.metrics.bytes.get() > 0);
    advance(Duration::from_millis(2)).await;
    assert!(cache.stale(&nobody).is_none());
    assert_eq!(cache.metrics.bytes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn another_version_is_asked_anew() {
    let cache = cache(|_| {});
    told(&cache, key(1), given("one", 1.0)).await;
    let other = Key { version: Some([2; 32]), ..key(1) };
    assert_eq!(told(&cache, other, given("two", 1.0)).await, (CacheOutcome::Miss, "two".into()));
    assert_eq!(told(&cache, key(1), given("one again", 1.0)).await.0, CacheOutcome::Miss);
    let nobody = Key { version: None, ..key(1) };
    assert_eq!(told(&cache, nobody, given("", 1.0)).await.0, CacheOutcome::Miss, "never a hit");
}

/// Starts asking; what is sent is the agent's answer, and a sender that is dropped is a failure.
fn asking(
    cache: &Arc<Cache>,
    deadline: Instant,
) -> (oneshot::Sender<Given>, tokio::task::JoinHandle<(CacheOutcome, Option<Bytes>)>) {
    let (answer, answered) = oneshot::channel::<Given>();
    let cache = cache.clone();
    let caller = tokio::spawn(async move {
        let own = async || match answered.await {
            Ok(given) => Ok((given, ())),
            Err(_) => Err(Failure::Cancelled("failed".into()).into()),
        };
        let (outcome, found) = cache.answer(key(1), Mode::Use, (deadline, late), own).await;
        let message = match found {
            Ok(Found::Hit(held)) => Some(held.given.message.clone()),
            Ok(Found::Shared(given) | Found::Asked(given, ())) => Some(given.message),
            Err(_) => None,
        };
        (outcome, message)
    });
    (answer, caller)
}

/// Lets everyone come as far as they come.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_ask_at_once_share_one_call_whether_it_is_held_or_not() {
    for confidence in [0.9, 0.1] {
        let cache = cache(|_| {});
        let (answer, leader) = asking(&cache, far());
        settle().await;
        let followers: Vec<_> = (0..99).map(|_| asking(&cache, far())).collect();
        settle().await;
        answer.send(given("one", confidence)).unwrap();
        assert_eq!(leader.await.unwrap(), (CacheOutcome::Miss, Some("one".into())));
        for (unused, follower) in followers {
            assert_eq!(follower.await.unwrap(), (CacheOutcome::Shared, Some("one".into())));
            assert!(unused.is_closed());
        }
        assert!(cache.flights.iter().all(|flights| flights.lock().is_empty()));
    }
}

#[tokio::test(start_paused = true)]
async fn one_who_fails_or_leaves_takes_nobody_along() {
    // Any of those who wait takes over; when all but one leave, so has whoever it was.
    for leave in [0, 3] {
        let cache = cache(|_| {});
        let (fails, first) = asking(&cache, far());
        settle().await;
        let mut waiting: Vec<_> = (0..4).map(|_| asking(&cache, far())).collect();
        settle().await;
        drop(fails);
        assert_eq!(first.await.unwrap(), (CacheOutcome::Miss, None));
        settle().await;
        for (_, caller) in waiting.drain(..leave) {
            caller.abort();
            assert!(caller.await.unwrap_err().is_cancelled());
        }
        settle().await;
        let (answers, callers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        // Only the one whose turn it is waits for an answer of its own.
        answers.into_iter().for_each(|answer| _ = answer.send(given("at last", 0.9)));
        let mut asked = 0;
        for caller in callers {
            let (outcome, message) = caller.await.unwrap();
            assert_eq!(message, Some("at last".into()));
            asked += usize::from(outcome == CacheOutcome::Miss);
        }
        assert_eq!(asked, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn one_who_waits_keeps_to_a_deadline_of_its_own() {
    let cache = cache(|_| {});
    let (answer, leader) = asking(&cache, far());
    settle().await;
    let (_unused, hasty) = asking(&cache, Instant::now() + Duration::from_millis(50));
    assert_eq!(hasty.await.unwrap(), (CacheOutcome::Shared, None));
    answer.send(given("late", 0.9)).unwrap();
    assert_eq!(leader.await.unwrap().1, Some("late".into()));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_lands_while_the_turn_is_taken_is_a_hit() {
    let cache = cache(|_| {});
    let asked = Cell::new(false);
    let mut leading = pin!(cache.answer(key(1), Mode::Use, (far(), late), async || {
        asked.set(true);
        pending::<Result<(Given, ()), Failed>>().await
    }));
    assert!(poll_fn(|cx| Poll::Ready(leading.as_mut().poll(cx).is_pending())).await);
    assert!(asked.get());
    // Its caller leaves, and another has brought the answer.
    ask(&cache, key(1), Mode::Refresh, Ok(given("there", 1.0))).await.1.unwrap();
    let (_unused, follower) = asking(&cache, far());
    settle().await;
    assert_eq!(follower.await.unwrap(), (CacheOutcome::Hit, Some("there".into())));
}

#[tokio::test]
async fn what_is_held_is_bounded_in_bytes_and_the_rest_is_counted() {
    let bound = 64 * 1024;
    let cache = cache(|caching| caching.max_bytes = bound);
    let answer = "x".repeat(1000);
    for n in 0..200_u8 {
        let said = Given { message: answer.clone().into(), ..given("", 1.0) };
        told(&cache, key(n), said).await;
        assert!(cache.held.weight() <= bound);
        assert_eq!(cache.metrics.bytes.get(), i64::try_from(cache.held.weight()).unwrap());
    }
    let held = u64::try_from(cache.held.len()).unwrap();
    assert!(held > 10, "{held}");
    assert_eq!(cache.metrics.stored.get(), held + cache.metrics.evicted.get());
    // One that is too large is not held, and pushes nobody out.
    let huge = Given { message: vec![0; 100_000].into(), ..given("", 1.0) };
    told(&cache, key(201), huge).await;
    assert_eq!(u64::try_from(cache.held.len()).unwrap(), held);
    let off = self::cache(|caching| caching.max_bytes = 0);
    told(&off, key(1), given("", 1.0)).await;
    assert_eq!(told(&off, key(1), given("", 1.0)).await.0, CacheOutcome::Miss);
}

/// The directory with these agents: id, version; all have `test`.
fn directory(agents: &[(&str, &str)]) -> Snapshot {
    let metrics = DataPlaneMetrics::new(&mut Registry::default());
    let mut book = Book::new(Current::default(), metrics);
    let now = Instant::now();
    for (id, version) in agents {
        let metadata = Metadata { version: (*version).into(), ..Default::default() };
        let registration = AgentRegistration {
            id: (*id).into(),
            endpoint: "h:1".into(),
            capabilities: vec!["test".into()],
            metadata: Some(metadata),
            ..Default::default()
        };
        let record = AgentRecord {
            tenant: "t".into(),
            registration: Some(registration),
            transport: Transport::Mtls.into(),
        };
        book.upsert(record, now).unwrap();
    }
    book.snapshot(1, now)
}

fn request(data: Json) -> AgentRequest {
    AgentRequest {
        task_description: "which?".into(),
        data: Some(struct_from_json(data.as_object().unwrap())),
        context: [("k".to_owned(), "v".to_owned()), ("l".to_owned(), String::new())].into(),
        ..Default::default()
    }
}

#[test]
fn the_same_question_is_the_same_however_it_is_written() {
    let directory = directory(&[("a", "1")]);
    let of = |request: &AgentRequest| {
        Key::of(("t", directory.tenant("t")), Target::Agent("a"), &request.encode_to_vec()).unwrap()
    };
    let base = request(json!({"a": 1, "b": [true, null, "x", {"c": 0.5}], "z": 0}));
    let same = request(json!({"z": -0.0, "b": [true, null, "x", {"c": 0.5}], "a": 1.0}));
    assert_eq!(of(&base), of(&same));
    let of_another_run = AgentRequest {
        task_id: "run-7/1".into(),
        timeout_ms: 5000,
        pattern_name: "voting".into(),
        ..base.clone()
    };
    assert_eq!(of(&base), of(&of_another_run));

    let with = |change: fn(&mut AgentRequest)| {
        let mut request = base.clone();
        change(&mut request);
        of(&request)
    };
    let others = [
        of(&request(json!({"a": 2, "b": [true, null, "x", {"c": 0.5}], "z": 0}))),
        of(&request(json!({"a": "1", "b": [true, null, "x", {"c": 0.5}], "z": 0}))),
        of(&request(json!({"a": 1, "b": [true, null, "x"], "c": 0.5, "z": 0}))),
        of(&request(json!({"a": 1, "b": [[true, null], "x", {"c": 0.5}], "z": 0}))),
        of(&request(json!({}))),
        with(|request| request.data = None),
        with(|request| request.task_description.push('!')),
        with(|request| _ = request.context.insert("k".into(), "w".into())),
        with(|request| _ = request.context.remove("l")),
    ];
    for (n, other) in others.iter().enumerate() {
        assert_ne!(other.question, of(&base).question, "{n}");
        assert!(others[..n].iter().all(|earlier| earlier != other), "{n}");
    }
}

#[test]
fn fields_of_later_versions_are_part_of_the_question() {
    let message = request(json!({"a": 1})).encode_to_vec();
    let of = |message: &[u8]| Key::of(("t", None), Target::Agent("a"), message);
    let later = |byte| [&message[..], &[0xf8, 0x07, byte]].concat();
    assert_ne!(of(&message), of(&later(1)));
    assert_ne!(of(&later(1)), of(&later(2)));
    assert_eq!(of(&later(1)), of(&[&[0xf8, 0x07, 1], &message[..]].concat()));
    assert!(of(&[0xff; 9]).is_none());
}

#[test]
fn tenant_target_and_version_are_part_of_the_key() {
    let (old, both, new) = (
        directory(&[("a", "1"), ("b", "1")]),
        directory(&[("b", "2"), ("a", "1")]),
        directory(&[("a", "2"), ("b", "2")]),
    );
    let message = request(json!({"a": 1})).encode_to_vec();
    let of = |tenant, directory: &Snapshot, target| {
        Key::of((tenant, directory.tenant("t")), target, &message).unwrap()
    };
    let (agent, group) = (Target::Agent("a"), Target::Capability("test"));
    assert_ne!(of("t", &old, agent).question, of("u", &old, agent).question);
    assert_ne!(of("t", &old, agent).question, of("t", &old, Target::Agent("b")).question);
    assert_ne!(of("t", &old, agent).question, of("t", &old, Target::Capability("a")).question);
    assert_eq!(of("t", &old, agent), of("t", &both, agent), "that b is another one is no matter");
    assert_ne!(of("t", &old, agent).version, of("t", &new, agent).version);
    let groups = [&old, &both, &new].map(|directory| of("t", directory, group));
    assert!(groups.iter().all(|key| key.question == groups[0].question));
    assert!(groups[0].version != groups[1].version && groups[1].version != groups[2].version);
    assert!(groups[0].version != groups[2].version);
    assert_eq!(of("t", &old, Target::Agent("gone")).version, None);
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_agent_is_that_of_all_who_asked() {
    let cache = cache(|_| {});
    let (fail, failing) = oneshot::channel::<()>();
    let asking = cache.clone();
    let leader = tokio::spawn(async move {
        let own = async || {
            failing.await.unwrap();
            let failure = Failure::BadAnswer { agent: "a".into(), problem: "nonsense".into() };
            Err::<(Given, ()), _>(failure.into())
        };
        asking.answer(key(1), Mode::Use, (far(), late), own).await
    });
    settle().await;
    let (_unused, follower) = self::asking(&cache, far());
    settle().await;
    fail.send(()).unwrap();
    assert_eq!(follower.await.unwrap(), (CacheOutcome::Shared, None));
    assert!(matches!(leader.await.unwrap().1, Err(Failed { failure: Failure::BadAnswer { .. }, .. })));
}
