//! Runs under a store that is in trouble, owners that fall silent, and starters that go away.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use parallax_prism::{Outcome, Value};
use parallax_runtime::{
    env::{Env, System},
    run::{Entry, Event, Resolution, Run, RunKey, Summary},
    store::{Hint, Result, RunPage, RunQuery, RunStore, StoreError},
};
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;

use crate::world::{Setup, World, soon};

/// Sleeps longer than any test, and what does not.
const PATTERNS: [(&str, &str); 4] = [
    ("long", "await sleep(3600000)\n\"slept\" ~> 0.5"),
    ("short", "\"short\" ~> 0.5"),
    ("inner", "await sleep(50)\n\"inner\" ~> 0.5"),
    ("outer", "executePattern(\"inner\", {})"),
];
const OWNER_TTL: Duration = Duration::from_millis(300);

/// A store that can be made to fail.
struct Troubled {
    runs: Arc<dyn RunStore>,
    /// How many reads of whole runs fail next.
    away: AtomicUsize,
    /// Nobody hears that this process is there.
    silent: AtomicBool,
    /// How many runs it asked for whenever it was heard.
    asked: Mutex<Vec<u64>>,
    /// No run can be begun.
    full: AtomicBool,
    /// How often it heard that a run is another's, before it did anything for it.
    warned: AtomicUsize,
    /// Creations are answered while there is room.
    answers: Semaphore,
    /// Hints come only if this is not set.
    deaf: bool,
}

impl Troubled {
    fn over(runs: Arc<dyn RunStore>, deaf: bool) -> Arc<Self> {
        Arc::new(Self {
            runs,
            away: AtomicUsize::new(0),
            silent: AtomicBool::new(false),
            asked: Mutex::default(),
            full: AtomicBool::new(false),
            warned: AtomicUsize::new(0),
            answers: Semaphore::new(Semaphore::MAX_PERMITS),
            deaf,
        })
    }
}

#[tonic::async_trait]
impl RunStore for Troubled {
    async fn create(&self, owner: &str, run: &RunKey, script: &str, entries: &[Entry]) -> Result<Summary> {
        if self.full.load(SeqCst) {
            return Err(away());
        }
        let created = self.runs.create(owner, run, script, entries).await;
        self.answers.acquire().await.unwrap().forget();
        created
    }

    async fn append(&self, owner: &str, known: &Summary, entries: &[Entry]) -> Result<Summary> {
        let appended = self.runs.append(owner, known, entries).await;
        if entries.is_empty() && matches!(appended, Err(StoreError::Fenced { .. })) {
            self.warned.fetch_add(1, SeqCst);
        }
        appended
    }

    async fn close(&self, run: &RunKey, end: Entry) -> Result<Summary> {
        self.runs.close(run, end).await
    }

    async fn load(&self, run: &RunKey) -> Result<Option<Run>> {
        match self.away.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(away()),
            Err(_) => self.runs.load(run).await,
        }
    }

    async fn tail(&self, run: &RunKey, from: u64) -> Result<Option<(Summary, Vec<Entry>)>> {
        self.runs.tail(run, from).await
    }

    async fn list(&self, query: &RunQuery) -> Result<RunPage> {
        self.runs.list(query).await
    }

    async fn keep(&self, owner: &str, ttl: Duration, most: u64) -> Result<Vec<RunKey>> {
        if self.silent.load(SeqCst) {
            return Err(away());
        }
        self.asked.lock().unwrap().push(most);
        self.runs.keep(owner, ttl, most).await
    }

    async fn leave(&self, owner: &str) -> Result<()> {
        self.runs.leave(owner).await
    }

    async fn hints(&self) -> Result<BoxStream<'static, Hint>> {
        match self.deaf {
            true => Ok(futures::stream::pending().boxed()),
            false => self.runs.hints().await,
        }
    }
}

fn away() -> StoreError {
    StoreError::Away("it is the test's turn".to_owned())
}

/// Waits until something holds.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    soon(async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn world(admitted: usize, deaf: bool) -> (World, Arc<Troubled>) {
    let setup = Setup {
        patterns: PATTERNS.to_vec(),
        admitted: Some((admitted, 10)),
        owner_ttl: Some(OWNER_TTL),
        ..Setup::default()
    };
    World::start_over(setup, |runs| Troubled::over(runs, deaf)).await
}

async fn start(world: &World, pattern: &str) -> RunKey {
    let accepted = world.http("POST", "/api/executions", &json!({"patternName": pattern}).to_string()).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    RunKey { tenant: "default".to_owned(), id: accepted.json()["id"].as_str().unwrap().to_owned() }
}

/// What a run comes to.
async fn ended(world: &World, key: &RunKey) -> Json {
    soon(async {
        loop {
            let run = world.get(&format!("/api/executions/{}", key.id)).await;
            // Its store may be away just now.
            if run.status != 503 && !matches!(run.json()["status"].as_str(), Some("pending" | "running")) {
                return run.json();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// Of the one run of a pattern, once it is there.
async fn only(world: &World, pattern: &str) -> RunKey {
    soon(async {
        loop {
            let runs = world.get(&format!("/api/executions?pattern={pattern}")).await.json();
            if let Some(id) = runs["executions"][0]["id"].as_str() {
                return RunKey { tenant: "default".to_owned(), id: id.to_owned() };
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_run_goes_on_whose_starter_goes_away() {
    let (world, store) = world(1, false).await;
    let long = start(&world, "long").await;
    // The next one is written down, and nobody hears of it in time.
    let held = store.answers.forget_permits(Semaphore::MAX_PERMITS);
    let body = json!({"patternName": "short"}).to_string();
    let starting = world.http("POST", "/api/executions", &body);
    let gone = tokio::time::timeout(Duration::from_millis(300), starting).await;
    assert!(gone.is_err(), "{gone:?}");
    let short = only(&world, "short").await;
    store.answers.add_permits(held);
    let cancelled = world.http("POST", &format!("/api/executions/{}/cancel", long.id), "{}").await;
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    assert_eq!(ended(&world, &short).await["status"], "completed");
    world.stop().await;
}

#[tokio::test]
async fn whoever_waits_rides_out_a_store_that_is_away() {
    let (world, store) = world(10, false).await;
    store.away.store(1, SeqCst);
    let ran = world.http("POST", "/api/patterns/short/execute", "{}").await;
    assert_eq!((ran.status, store.away.load(SeqCst)), (200, 0), "{ran:?}");
    // So does a run that waits for another.
    store.away.store(1, SeqCst);
    let outer = start(&world, "outer").await;
    soon(async {
        while store.away.load(SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let run = ended(&world, &outer).await;
    assert_eq!((&run["status"], &run["result"]), (&json!("completed"), &json!("inner")), "{run}");
    world.stop().await;
}

#[tokio::test]
async fn a_store_that_is_away_shows_in_the_health() {
    let (world, store) = world(10, false).await;
    let until = async |status: &str| loop {
        let health = world.get("/health").await;
        assert_eq!(health.status, 200, "what needs no store is served: {health:?}");
        if health.json()["services"]["runs"]["status"] == status {
            break health.json();
        }
    };
    assert_eq!(soon(until("healthy")).await["waitingFor"], json!([]));
    store.silent.store(true, SeqCst);
    let health = soon(until("degraded")).await;
    assert_eq!((&health["status"], &health["waitingFor"]), (&json!("degraded"), &json!(["run store"])));
    store.silent.store(false, SeqCst);
    assert_eq!(soon(until("healthy")).await["status"], "healthy");
    world.stop().await;
}

#[tokio::test]
async fn an_end_that_no_hint_told_of_is_found() {
    let (world, store) = world(1, true).await;
    let long = start(&world, "long").await;
    let short = start(&world, "short").await;
    // As another replica does it.
    let end = Entry { at: Timestamp::now(), event: Event::Cancelled { reason: "elsewhere".to_owned() } };
    store.runs.close(&long, end).await.unwrap();
    // Its driver holds the only place.
    assert_eq!(ended(&world, &short).await["status"], "completed");
    world.stop().await;
}

#[tokio::test]
async fn a_run_that_comes_back_is_driven_on_from_where_others_brought_it() {
    let (world, store) = world(10, false).await;
    let long = start(&world, "long").await;
    store.silent.store(true, SeqCst);
    // Another owner takes it over, brings it on by a step, and is gone; the driver here has heard of nothing.
    soon(async {
        while !store.runs.keep("other", Duration::from_secs(60), 10).await.unwrap().contains(&long) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let known = store.runs.load(&long).await.unwrap().unwrap().summary;
    let resolution = Resolution {
        effect: 1,
        outcome: serde_json::to_value(Outcome::Value(Value::null())).unwrap(),
        ok: true,
        agent: None,
        confidence: None,
        started_at: Timestamp::now(),
        duration_us: 0,
        queued_us: 0,
        retried_us: 0,
    };
    let entry = Entry { at: Timestamp::now(), event: Event::Resolved(Box::new(resolution)) };
    store.runs.append("other", &known, &[entry]).await.unwrap();
    store.runs.leave("other").await.unwrap();
    store.silent.store(false, SeqCst);
    let run = ended(&world, &long).await;
    assert_eq!((&run["status"], &run["result"]), (&json!("completed"), &json!("slept")), "{run}");
    world.stop().await;
}

#[tokio::test]
async fn what_needs_a_store_that_is_away_is_refused_at_once() {
    let (world, store) = world(10, false).await;
    let short = start(&world, "short").await;
    store.silent.store(true, SeqCst);
    // The store itself would answer.
    until(async || world.get("/api/executions").await.status == 503).await;
    let start = json!({"patternName": "short"}).to_string();
    let refused = world.http("POST", "/api/executions", &start).await.problem(503, "PARALLAX-STORE-011");
    assert!(refused.contains("when it was last asked"), "{refused}");
    world.get(&format!("/api/executions/{}", short.id)).await.problem(503, "PARALLAX-STORE-011");
    store.silent.store(false, SeqCst);
    until(async || world.get("/api/executions").await.status == 200).await;
    world.stop().await;
}

#[tokio::test]
async fn a_time_that_finds_the_store_away_is_tried_again() {
    let (world, store) = world(10, false).await;
    store.full.store(true, SeqCst);
    let plan = json!({"name": "often", "patternName": "short", "intervalSeconds": 1}).to_string();
    assert_eq!(world.http("POST", "/api/schedules", &plan).await.status, 201);
    let mut due = Json::Null;
    until(async || {
        let last = world.get("/api/schedules/often").await.json()["lastRun"].clone();
        due = last["due"].clone();
        last["error"].as_str().is_some_and(|error| error.contains("the test's turn"))
    })
    .await;
    store.full.store(false, SeqCst);
    only(&world, "short").await;
    let runs = world.get("/api/executions?pattern=short").await.json();
    let first = runs["executions"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap();
    let run = world.get(&format!("/api/executions/{first}")).await.json();
    assert_eq!(run["context"]["scheduled_for"], due, "{run}");
    world.stop().await;
}

#[tokio::test]
async fn after_an_outage_others_are_heard_before_their_runs_are_taken() {
    let (world, store) = world(10, false).await;
    until(async || store.asked.lock().unwrap().len() > 1).await;
    let at_start = store.asked.lock().unwrap()[1];
    assert!(at_start > 0, "what was left before the start is taken at once");
    store.silent.store(true, SeqCst);
    until(async || world.get("/api/executions").await.status == 503).await;
    store.asked.lock().unwrap().clear();
    store.silent.store(false, SeqCst);
    until(async || store.asked.lock().unwrap().last().is_some_and(|asked| *asked > 0)).await;
    let asked = store.asked.lock().unwrap().clone();
    assert_eq!((asked[0], asked[1]), (0, 0), "{asked:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_late_owner_does_nothing_outside() {
    let (world, store) = world(1, false).await;
    let outer = start(&world, "outer").await;
    ended(&world, &outer).await;
    let long = start(&world, "long").await;
    // Another has left a run that has asked for one within it; it waits here for its turn.
    let done = store.runs.load(&outer).await.unwrap().unwrap();
    let asked = done.entries.iter().position(|entry| matches!(entry.event, Event::Requested { .. })).unwrap();
    let Event::Requested { effect, .. } = done.entries[asked].event else { unreachable!("it was sought") };
    let left = RunKey { id: System.id(), ..outer };
    store.runs.create("gone", &left, &done.script, &done.entries[..=asked]).await.unwrap();
    let path = format!("/api/executions/{}", left.id);
    until(async || world.get(&path).await.json()["queuePosition"] == 1).await;
    // While nobody hears this process, the run is given to another; then its turn comes here.
    store.silent.store(true, SeqCst);
    until(async || store.runs.keep("other", Duration::from_secs(60), 10).await.unwrap().contains(&left))
        .await;
    let end = Entry { at: Timestamp::now(), event: Event::Cancelled { reason: "elsewhere".to_owned() } };
    store.runs.close(&long, end).await.unwrap();
    until(async || store.warned.load(SeqCst) > 0).await;
    assert!(store.runs.load(&left.nested(effect)).await.unwrap().is_none(), "nothing was begun");
    world.stop().await;
}
