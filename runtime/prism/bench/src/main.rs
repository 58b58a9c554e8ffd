//! Prism beside rhai on the same algorithms, both called from Rust, best of several runs; then what only Prism does:
//! compiling, resuming, many effects in a row.

use parallax_prism::{CompileOptions, EffectId, Host, Limits, Outcome, Program, Run, Step, Value};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Counts allocations and the most memory held at a time.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        PEAK.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        PEAK.fetch_max(HELD.fetch_add(size, Relaxed) + size, Relaxed);
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Measured {
    best: Duration,
    allocations: usize,
    peak: usize,
    result: String,
}

/// The best time of several runs, and the memory of one.
fn measure(runs: u32, mut run: impl FnMut() -> String) -> Measured {
    let mut measured = Measured { best: Duration::MAX, allocations: 0, peak: 0, result: String::new() };
    for _ in 0..runs {
        let (count, held) = (COUNT.load(Relaxed), HELD.load(Relaxed));
        PEAK.store(held, Relaxed);
        let start = Instant::now();
        measured.result = run();
        measured.best = measured.best.min(start.elapsed());
        measured.allocations = COUNT.load(Relaxed) - count;
        measured.peak = PEAK.load(Relaxed) - held;
    }
    measured
}

fn limits() -> Limits {
    Limits { steps: u64::MAX, memory: 4 << 30, ..Limits::default() }
}

fn start(source: &str, data: &Value) -> Run {
    let program = Program::compile(source, &CompileOptions::default())
        .unwrap_or_else(|errors| panic!("{}", errors[0].render(source)));
    program.start(Host { limits: limits(), globals: vec![("data".into(), data.clone())], ..Host::default() })
}

fn prism(source: &str, runs: u32, data: &Value) -> Measured {
    let program = Program::compile(source, &CompileOptions::default())
        .unwrap_or_else(|errors| panic!("{}", errors[0].render(source)));
    measure(runs, || {
        let globals = vec![("data".into(), data.clone())];
        match program.start(Host { limits: limits(), globals, ..Host::default() }).step(vec![]) {
            Step::Done(value) => value.to_string(),
            other => panic!("{other:?}"),
        }
    })
}

fn rhai(source: &str, runs: u32, data: &rhai::Dynamic) -> Measured {
    let mut engine = rhai::Engine::new();
    engine.set_max_expr_depths(0, 0).set_max_operations(0).set_max_call_levels(10_000);
    let ast = engine.compile(source).expect("it compiles");
    measure(runs, || {
        let mut scope = rhai::Scope::new();
        scope.push_dynamic("data", data.clone());
        engine.eval_ast_with_scope::<rhai::Dynamic>(&mut scope, &ast).expect("it runs").to_string()
    })
}

/// Name, runs, Prism, rhai.
const PAIRS: [(&str, u32, &str, &str); 7] = [
    (
        "recursive fib(27)",
        5,
        "function fib(n) { if (n < 2) { return n }\n return fib(n - 1) + fib(n - 2) }\nfib(27)",
        "fn fib(n) { if n < 2 { return n; } fib(n - 1) + fib(n - 2) } fib(27)",
    ),
    // Data is immutable: what is left is filtered by one prime after the other.
    (
        "sieve to 200,000",
        3,
        "let primes = []\nlet rest = range(2, 200000)\nlet p = 2\nwhile p * p < 200000 {\n primes = primes.push(p)\n \
         let q = p\n rest = rest.filter(n => n % q != 0)\n p = rest[0] }\nprimes.length + rest.length",
        "let primes = []; let rest = []; for n in 2..200000 { rest.push(n); } let p = 2; while p * p < 200000 { \
         primes.push(p); let q = p; rest = rest.filter(|n| n % q != 0); p = rest[0]; } primes.len + rest.len",
    ),
    (
        "sieve to 20,000 by push",
        5,
        "let primes = []\nlet rest = range(2, 20000)\nlet p = 2\nwhile p * p < 20000 {\n primes = primes.push(p)\n \
         let left = []\n for n in rest { if (n % p != 0) { left = left.push(n) } }\n rest = left\n p = rest[0] }\n\
         primes.length + rest.length",
        "let primes = []; let rest = []; for n in 2..20000 { rest.push(n); } let p = 2; while p * p < 20000 { \
         primes.push(p); let left = []; for n in rest { if n % p != 0 { left.push(n); } } rest = left; p = rest[0]; } \
         primes.len + rest.len",
    ),
    (
        "map/filter/reduce 100,000",
        3,
        "let xs = range(100000).map(i => ({id: i, score: i % 100, name: \"n\"}))\nxs.map(o => ({id: o.id, score: \
         o.score * 2})).filter(o => o.score > 50).reduce((a, o) => a + o.score, 0)",
        "let xs = []; for i in 0..100000 { xs.push(#{id: i, score: i % 100, name: \"n\"}); } xs.map(|o| #{id: o.id, \
         score: o.score * 2}).filter(|o| o.score > 50).reduce(|a, o| a + o.score, 0)",
    ),
    (
        "1 MB string",
        5,
        "let s = \"\"\nlet i = 0\nwhile i < 100000 { s = s + \"0123456789\"\n i = i + 1 }\ns.length",
        "let s = \"\"; let i = 0; while i < 100000 { s += \"0123456789\"; i += 1; } s.len",
    ),
    (
        "deep properties",
        5,
        "let o = {a: {b: {c: {d: {e: {f: 7}}}}}}\nlet s = 0\nfor let i = 0; i < 300000; i += 1 { s = s + \
         o.a.b.c.d.e.f }\ns",
        "let o = #{a: #{b: #{c: #{d: #{e: #{f: 7}}}}}}; let s = 0; let i = 0; while i < 300000 { s += o.a.b.c.d.e.f; \
         i += 1; } s",
    ),
    (
        "pattern, 200 results",
        100,
        "let ok = data.filter(r => r.error == null)\nlet total = ok.reduce((a, r) => a + r.confidence, 0)\n\
         let weigh = l => ok.reduce((a, r) => a + (r.result.label == l ? r.confidence : 0), 0)\n\
         let votes = {x: weigh(\"x\"), y: weigh(\"y\"), z: weigh(\"z\")}\n\
         let best = votes.x > votes.y ? (votes.x > votes.z ? \"x\" : \"z\") : (votes.y > votes.z ? \"y\" : \"z\")\n\
         let mean = total / ok.length\nlet names = ok.filter(r => r.result.label == best).map(r => r.agentName)\n\
         let spread = ok.map(r => (r.confidence - mean) ** 2).reduce((a, b) => a + b, 0) / ok.length\n\
         ({best: best, mean: mean, supporters: names.length, spread: spread}) ~> mean",
        "let ok = data.filter(|r| r.error == ()); let total = ok.reduce(|a, r| a + r.confidence, 0.0); \
         let weigh = |l| ok.reduce(|a, r| if r.result.label == l { a + r.confidence } else { a }, 0.0); \
         let votes = #{x: weigh.call(\"x\"), y: weigh.call(\"y\"), z: weigh.call(\"z\")}; \
         let best = if votes.x > votes.y { if votes.x > votes.z { \"x\" } else { \"z\" } } else { if votes.y > votes.z \
         { \"y\" } else { \"z\" } }; let mean = total / ok.len; \
         let names = ok.filter(|r| r.result.label == best).map(|r| r.agentName); \
         let spread = ok.map(|r| (r.confidence - mean) ** 2.0).reduce(|a, b| a + b, 0.0) / ok.len; \
         #{best: best, mean: mean, supporters: names.len, spread: spread}",
    ),
];

fn main() {
    let results: Vec<serde_json::Value> = (0..200)
        .map(|i| {
            serde_json::json!({
                "agentId": format!("a{i}"), "agentName": format!("Agent {i}"), "error": null,
                "result": {"label": (["x", "y", "z"][i % 3]), "score": (i % 10) as f64 / 10.0},
                "confidence": 0.5 + (i % 50) as f64 / 100.0,
            })
        })
        .collect();
    let json = serde_json::Value::Array(results);
    let ours = Value::from_json(&json);
    let wrapped = rhai::Engine::new().parse_json(format!("{{\"d\": {json}}}"), true);
    let theirs = wrapped.expect("JSON").remove("d").expect("put there");

    println!(
        "{:<26} {:>11} {:>11} {:>7}   allocations, peak KiB: Prism | rhai",
        "", "Prism", "rhai", "faster"
    );
    let mut product = 1.0;
    for (name, runs, source, other) in PAIRS {
        let p = prism(source, runs, &ours);
        let r = rhai(other, runs, &theirs);
        let faster = r.best.as_secs_f64() / p.best.as_secs_f64();
        product *= faster;
        println!(
            "{name:<26} {:>11.2?} {:>11.2?} {faster:>6.2}x   {}, {} | {}, {}",
            p.best,
            r.best,
            p.allocations,
            p.peak / 1024,
            r.allocations,
            r.peak / 1024
        );
        let digits = |s: &str| s.chars().filter(char::is_ascii_digit).take(6).collect::<String>();
        if !name.starts_with("pattern") {
            assert_eq!(digits(&p.result), digits(&r.result), "{name}: the results differ");
        }
    }
    println!("geometric mean: {:.2}x\n", f64::powf(product, 1.0 / PAIRS.len() as f64));

    compiling();
    for effects in [1_000u32, 10_000, 100_000] {
        in_a_row(effects);
    }
    resuming();
}

fn compiling() {
    let mut source = String::from("let threshold = 0.5\nlet accepted = []\nlet history = {trust: 0.7}\n");
    for i in 0..49 {
        source += &format!(
            "function step{i}(current) {{\n    let score = (current.confidence ?? 0) * 0.6 + (history.trust ?? 0.5) * 0.4\n    \
             if (score > threshold) {{ accepted = accepted.push({{id: current.id, score: score}}) }}\n    \
             return score }}\n"
        );
    }
    let lines = source.lines().count();
    let compile =
        || Program::compile(&source, &CompileOptions::default()).map(|_| String::new()).unwrap_or_default();
    println!("compile {lines} lines: {:.2?}", measure(50, compile).best);
}

fn in_a_row(effects: u32) {
    let source = format!("let s = 0\nfor let i = 0; i < {effects}; i += 1 {{ s = s + random() }}\ns");
    let mut run = start(&source, &Value::null());
    let begin = Instant::now();
    let mut step = run.step(vec![]);
    while let Step::Need { effects, .. } = step {
        step = run.step(vec![(effects[0].id, Outcome::Value(Value::from(0.5)))]);
    }
    let time = begin.elapsed();
    println!("{effects} effects in a row: {time:.2?}, {:.0?} each", time / effects);
}

fn resuming() {
    let source =
        "function f(n) { if (n == 0) { return random() + random() }\n return f(n - 1) + 1 }\nf(5000)";
    let best = (0..20).map(|_| {
        let mut run = start(source, &Value::null());
        run.step(vec![]);
        let begin = Instant::now();
        run.step(vec![(EffectId(1), Outcome::Value(Value::from(0.5)))]);
        begin.elapsed()
    });
    println!("resume below 5,000 calls: {:.2?}", best.min().unwrap_or_default());
}
