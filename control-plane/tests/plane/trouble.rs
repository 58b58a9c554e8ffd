//! Runs under a store that is in trouble, owners that fall silent, and starters that go away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use parallax_prism::{Outcome, Value};
use parallax_runtime::{
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
    /// Creations are answered while there is room.
    answers: Semaphore,
    /// Hints come only if this is not set.
    deaf: bool,
}

impl Troubled {
    fn over(runs: Arc<dyn RunStore>, deaf: bool) -> Arc<Self> {
        let (away, silent) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { runs, away, silent, answers: Semaphore::new(Semaphore::MAX_PERMITS), deaf })
    }
}

#[tonic::async_trait]
impl RunStore for Troubled {
    async fn create(&self, owner: &str, run: &RunKey, script: &str, entries: &[Entry]) -> Result<Summary> {
        let created = self.runs.create(owner, run, script, entries).await;
        self.answers.acquire().await.unwrap().forget();
        created
    }

    async fn append(&self, owner: &str, known: &Summary, entries: &[Entry]) -> Result<Summary> {
        self.runs.append(owner, known, entries).await
    }

    async fn close(&self, run: &RunKey, end: Entry) -> Result<Summary> {
        self.runs.close(run, end).await
    }

    async fn load(&self, run: &RunKey) -> Result<Option<Run>> {
        match self.away.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(StoreError::Away("it is the test's turn".to_owned())),
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
        match self.silent.load(SeqCst) {
            true => Err(StoreError::Away("it is the test's turn".to_owned())),
            false => self.runs.keep(owner, ttl, most).await,
        }
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
            let run = world.get(&format!("/api/executions/{}", key.id)).await.json();
            if !matches!(run["status"].as_str(), Some("pending" | "running")) {
                return run;
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
