//! Whether a node takes a call at all: by how much it has to do, how much the call matters, and whose it is.
//!
//! Each worker has its part of the node's bound, and asks nobody. Load is shed early and by priority, as in the
//! SRE book's chapter on overload: calls that are `sheddable` from 70 % of the bound on, `default` ones from
//! 90 %, `critical` ones at the bound.
//!
//! Above half of the bound no tenant may take what others are due: a call is let in if, were every tenant
//! held to as many calls as its tenant has with it, all would fit (max-min fairness). What a tenant is due
//! beyond its calls in flight is twice these, and some in any case, so that one that comes finds room and can
//! grow; what the others do not need may be used by one that does.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parallax_runtime::env::Env;
pub(crate) use parallax_telemetry::metrics::CallPriority as Priority;
use parallax_telemetry::{
    Counter,
    metrics::{DataPlaneMetrics, LoadBound},
};
use tokio::time::Instant;

use crate::{config::Current, directory::follow::jitter, error::Failure};

/// Of the bound, what is taken of each priority; percent.
const SHARES: [usize; Priority::ALL.len()] = [100, 90, 70];
/// Of the bound, what each active tenant is due at least: one part in so many.
const RESERVE: usize = 32;
/// A tenant is active when it has calls in flight or asked for one so recently.
const ACTIVE: Duration = Duration::from_secs(1);
/// What those who are refused are told, with jitter down to a half.
const RETRY_IN: Duration = Duration::from_millis(200);

/// One worker's calls in flight.
pub(crate) struct Admission {
    config: Current,
    in_flight: Cell<usize>,
    tenants: RefCell<HashMap<Box<str>, Rc<Tenant>>>,
    /// By priority: for the node's bound, and for the tenant's.
    shed: [[Counter; LoadBound::ALL.len()]; Priority::ALL.len()],
}

struct Tenant {
    calls: Cell<usize>,
    asked: Cell<Instant>,
}

/// A call's place; dropped with the call.
pub(crate) struct Ticket {
    admission: Rc<Admission>,
    tenant: Rc<Tenant>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Self { admission, tenant } = self;
        admission.in_flight.set(admission.in_flight.get() - 1);
        tenant.calls.set(tenant.calls.get() - 1);
    }
}

/// What the node's workers hold of requests as a whole; see [`crate::Config::max_held_bytes`].
#[derive(Clone)]
pub(crate) struct Holding {
    config: Current,
    bytes: Arc<AtomicUsize>,
}

/// What is held of one request; let go of when it is dropped.
pub(crate) struct Held {
    holding: Holding,
    bytes: AtomicUsize,
}

impl Holding {
    pub(crate) fn new(config: Current) -> Self {
        Self { config, bytes: Arc::default() }
    }

    pub(crate) fn begin(&self) -> Held {
        Held { holding: self.clone(), bytes: AtomicUsize::new(0) }
    }
}

impl Held {
    /// Whether there is room for so many more bytes; takes it.
    pub(crate) fn grow(&self, more: usize) -> bool {
        let most = self.holding.config.now().max_held_bytes;
        let grown = |held: usize| held.checked_add(more).filter(|held| *held <= most);
        let fits = self.holding.bytes.fetch_update(Relaxed, Relaxed, grown).is_ok();
        if fits {
            self.bytes.fetch_add(more, Relaxed);
        }
        fits
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holding.bytes.fetch_sub(*self.bytes.get_mut(), Relaxed);
    }
}

/// A priority by its name.
pub(crate) fn priority(text: &str) -> Result<Priority, Failure> {
    let named = Priority::ALL.into_iter().find(|priority| priority.as_str() == text);
    named.ok_or_else(|| {
        Failure::Malformed(format!(
            "the metadata {} is \"{text}\": give critical, default or sheddable, or leave it out",
            parallax_runtime::wire::PRIORITY
        ))
    })
}

impl Admission {
    pub(crate) fn new(config: Current, metrics: &DataPlaneMetrics) -> Rc<Self> {
        let shed = Priority::ALL.map(|priority| LoadBound::ALL.map(|bound| metrics.shed(priority, bound)));
        Rc::new(Self { config, in_flight: Cell::new(0), tenants: RefCell::default(), shed })
    }

    /// Lets a call of a tenant in, or refuses it with a time to come back.
    pub(crate) fn admit(
        self: &Rc<Self>,
        tenant: &str,
        priority: Priority,
        now: Instant,
        env: &dyn Env,
    ) -> Result<Ticket, Failure> {
        let of = self.tenant(tenant, now);
        let (in_flight, all) = (self.in_flight.get(), self.most());
        let most = (all * SHARES[priority as usize] / 100).max(1);
        let bound = if in_flight >= most {
            LoadBound::Node
        } else if in_flight >= all / 2 && !self.fits(&of, most, now) {
            LoadBound::Tenant
        } else {
            self.in_flight.set(in_flight + 1);
            of.calls.set(of.calls.get() + 1);
            return Ok(Ticket { admission: self.clone(), tenant: of });
        };
        self.shed[priority as usize][bound as usize].inc();
        let why = match bound {
            LoadBound::Node => format!(
                "it has {in_flight} calls in flight per worker, and takes {most} while one more is {}",
                priority.as_str()
            ),
            LoadBound::Tenant => format!(
                "tenant \"{tenant}\" has its share, {} of {in_flight} calls in flight per worker",
                of.calls.get()
            ),
        };
        Err(Failure::Shed { why, retry_in: jitter(RETRY_IN, env.random()) })
    }

    /// Calls in flight in this worker.
    fn most(&self) -> usize {
        let config = self.config.now();
        config.per_worker(config.max_in_flight)
    }

    fn tenant(&self, name: &str, now: Instant) -> Rc<Tenant> {
        let mut tenants = self.tenants.borrow_mut();
        if let Some(tenant) = tenants.get(name) {
            tenant.asked.set(now);
            return tenant.clone();
        }
        tenants.retain(|_, tenant| tenant.is_active(now));
        let tenant = Rc::new(Tenant { calls: Cell::new(0), asked: Cell::new(now) });
        tenants.insert(name.into(), tenant.clone());
        tenant
    }

    /// Whether all would fit, were every tenant held to as many calls as this one has with one more.
    fn fits(&self, tenant: &Rc<Tenant>, most: usize, now: Instant) -> bool {
        let level = tenant.calls.get() + 1;
        let reserve = (self.most() / RESERVE).max(1);
        let tenants = self.tenants.borrow();
        let others = tenants.values().filter(|other| !Rc::ptr_eq(other, tenant) && other.is_active(now));
        level + others.map(|other| (2 * other.calls.get()).max(reserve).min(level)).sum::<usize>() <= most
    }
}

impl Tenant {
    fn is_active(&self, now: Instant) -> bool {
        self.calls.get() > 0 || now.saturating_duration_since(self.asked.get()) < ACTIVE
    }
}

#[cfg(test)]
mod tests {
    use parallax_runtime::env::Simulated;
    use parallax_telemetry::Registry;
    use tokio::time::advance;

    use super::*;
    use crate::config::Config;

    struct World {
        admission: Rc<Admission>,
        env: Simulated,
        registry: Registry,
    }

    impl World {
        /// A worker that takes a hundred calls.
        fn new() -> Self {
            let mut registry = Registry::default();
            let metrics = DataPlaneMetrics::new(&mut registry);
            let config = Config { max_in_flight: 200, workers: 2, ..Config::default() };
            Self { admission: Admission::new(config.into(), &metrics), env: Simulated::new(3), registry }
        }

        fn ask(&self, tenant: &str, priority: Priority) -> Result<Ticket, Failure> {
            self.admission.admit(tenant, priority, Instant::now(), &self.env)
        }

        /// Asks until it is refused.
        fn fill(&self, tenant: &str, priority: Priority) -> Vec<Ticket> {
            std::iter::from_fn(|| self.ask(tenant, priority).ok()).collect()
        }

        fn shed(&self, priority: &str, bound: &str) -> String {
            let (_, text) = parallax_telemetry::metrics::encode(&self.registry);
            let name = format!("parallax_proxy_shed_total{{priority=\"{priority}\",bound=\"{bound}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_matters_least_is_shed_first() {
        let world = World::new();
        let mut held = world.fill("t", Priority::Sheddable);
        assert_eq!(held.len(), 70);
        held.extend(world.fill("t", Priority::Default));
        assert_eq!(held.len(), 90);
        held.extend(world.fill("t", Priority::Critical));
        assert_eq!(held.len(), 100);
        let Err(Failure::Shed { why, retry_in }) = world.ask("t", Priority::Sheddable) else { panic!() };
        assert!(why.contains("100 calls in flight") && why.contains("sheddable"), "{why}");
        assert!((100..=200).contains(&retry_in.as_millis()), "{retry_in:?}");
        assert_eq!(
            (world.shed("sheddable", "node"), world.shed("critical", "node")),
            ("2".into(), "1".into())
        );
        held.truncate(69);
        drop(held.pop());
        assert_eq!(world.fill("t", Priority::Sheddable).len(), 2, "what has ended makes room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_alone_may_have_all_and_leaves_room_for_one_that_comes() {
        let world = World::new();
        let mut hog = world.fill("hog", Priority::Default);
        assert_eq!(hog.len(), 90);
        // Another comes, and is refused only as long as there is no room at all.
        assert!(world.ask("late", Priority::Default).is_err());
        hog.truncate(60);
        let mut late = Vec::new();
        // Each time a call of one ends, both ask again, the hog first.
        for _ in 0..200 {
            hog.extend(world.fill("hog", Priority::Default));
            late.extend(world.fill("late", Priority::Default));
            if hog.len() > late.len() {
                hog.pop();
            } else {
                late.pop();
            }
        }
        assert!(hog.len().abs_diff(late.len()) <= 2, "{} and {}", hog.len(), late.len());
        assert_ne!(world.shed("default", "tenant"), "0");
        drop(late);
        hog.extend(world.fill("hog", Priority::Default));
        assert_eq!(hog.len(), 87, "the other has asked just now, and is due three");
        advance(ACTIVE).await;
        hog.extend(world.fill("hog", Priority::Default));
        assert_eq!(hog.len(), 90, "it does not come back");
    }

    #[tokio::test(start_paused = true)]
    async fn small_tenants_are_served_in_full_and_big_ones_share_the_rest() {
        let world = World::new();
        let mut small: Vec<_> = (0..3).map(|_| world.ask("small", Priority::Default).unwrap()).collect();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            a.extend(world.ask("a", Priority::Default));
            b.extend(world.ask("b", Priority::Default));
        }
        assert_eq!((a.len(), b.len()), (42, 42), "what six leave of ninety");
        for n in 4..=6 {
            small.push(world.ask("small", Priority::Default).unwrap());
            assert_eq!(small.len(), n);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_that_are_gone_are_forgotten() {
        let world = World::new();
        for n in 0..1000 {
            world.ask(&format!("t{n}"), Priority::Default).unwrap();
            advance(Duration::from_millis(100)).await;
        }
        assert!(world.admission.tenants.borrow().len() <= 11);
        assert_eq!(world.admission.in_flight.get(), 0);
    }

    #[test]
    fn priorities_have_names() {
        assert_eq!(priority("critical").unwrap(), Priority::Critical);
        let message = priority("urgent").unwrap_err().to_string();
        assert_eq!(
            message,
            "the metadata x-parallax-priority is \"urgent\": give critical, default or sheddable, or leave it out"
        );
    }
}
