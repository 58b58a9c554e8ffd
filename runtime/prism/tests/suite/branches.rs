//! Branches of `parallel`, `race`, `Promise.all` and of `map` over async functions: those that wait inside overlap.

use crate::runs::*;
use parallax_prism::*;
use serde_json::json;

/// Runs against a clock that stands still unless all wait: the result, and the milliseconds that passed.
fn timed(source: &str, n: usize) -> (String, u64) {
    let mut run = start(source, n);
    let (mut now, mut open) = (0, Vec::new());
    let mut step = run.step(vec![]);
    loop {
        let Step::Need { effects, cancelled } = step else { return (format!("{step:?}"), now) };
        for effect in effects {
            match effect.kind {
                EffectKind::Sleep { ms } => open.push((now + ms, effect.id)),
                other => panic!("nobody answers {other:?}"),
            }
        }
        open.retain(|(_, id)| !cancelled.contains(id));
        open.sort_unstable();
        let (at, id) = open.remove(0);
        now = at;
        step = run.step(vec![(id, Outcome::Value(Value::null()))]);
    }
}

#[track_caller]
fn takes(source: &str, ms: u64, expected: &str) {
    let (end, took) = timed(source, 0);
    let expected: Value = serde_json::from_str(expected).expect("JSON");
    assert_eq!((end, took), (format!("{:?}", Step::Done(expected)), ms), "{source}");
}

fn one(n: u64, value: serde_json::Value) -> Vec<(EffectId, Outcome)> {
    vec![(id(n), Outcome::Value(value.into()))]
}

#[test]
fn functions_that_wait_and_go_on_overlap() {
    takes("race([() => { await sleep(1000); 1 }, () => { await sleep(100); 2 }])", 100, "2");
    takes(
        "parallel([() => { await sleep(300); await sleep(300); 1 }, () => { await sleep(500); 2 }])",
        600,
        "[1,2]",
    );
    takes("[300, 100, 200].map(async ms => { await sleep(ms); ms })", 300, "[300,100,200]");
    takes("map([300, 100], async ms => { await sleep(ms); ms })", 300, "[300,100]");
    takes("await Promise.all([30, 10].map(async ms => { await sleep(ms); ms }))", 30, "[30,10]");
    takes(
        "async function f(ms) { await sleep(ms); ms }\nawait Promise.all([f(30), f(40), 5, sleep(50)])",
        50,
        "[30,40,5,null]",
    );
    takes("async fn f(ms) { await sleep(ms); ms }\nrace([f(30), f(20)])", 20, "20");
    takes(
        "async fn f(ms) { await sleep(ms); ms }\nparallel([f(30), f(20)], {maxConcurrency: 1})",
        50,
        "[30,20]",
    );
    takes("let f = async (ms, n) => { await sleep(ms); n };\nparallel([f(30, 1), f(20, 2)])", 30, "[1,2]");
    // A quorum of two steps each; the third is cut off.
    takes(
        "parallel([3, 1, 2].map(n => () => { await sleep(n); await sleep(n); n }), {mode: \"quorum\", n: 2})",
        4,
        "[1,2]",
    );
}

/// `async` by itself changes nothing: outside of these lists a call runs to its end.
#[test]
fn other_calls_run_to_their_end() {
    takes("let n = 0\nlet f = async () => { await sleep(5); n = n + 1; n }\nf()\nf()\nn", 10, "2");
    takes("let n = 0\n[1, 2].map(async x => { await sleep(5); n = n + x })\nn", 5, "3");
    takes("[1, 2].map(x => { await sleep(5); x })", 10, "[1,2]");
    takes("async fn f(x) { await sleep(5); x }\nlet xs = [f(1), f(2)]\nxs", 10, "[1,2]");
    // Names of the program's own are no built-ins.
    takes("fn race(xs) { xs[0] + xs[1] }\nasync fn f(x) { await sleep(5); x }\nrace([f(1), f(2)])", 10, "3");
}

#[test]
fn each_branch_goes_on_as_its_outcome_arrives() {
    let source = r#"
        parallel([
            () => { let a = agentList[0].analyze("x"); agentList[1].analyze(a + "") },
            () => { let b = await agentList[1].analyze("y"); let c = agentList[0].analyze("z"); b + c }
        ])"#;
    let mut run = start(source, 2);
    assert_eq!(need(run.step(vec![])), [1, 2]);
    assert_eq!(need(run.step(one(2, json!(20)))), [3]);
    assert_eq!(need(run.step(one(1, json!("first")))), [4]);
    waits(run.step(one(4, json!(4))));
    assert_eq!(done(run.step(one(3, json!(3)))), "[4,23]");
    // In the other order the effects have other numbers, and it ends the same.
    let mut run = start(source, 2);
    assert_eq!(need(run.step(vec![])), [1, 2]);
    assert_eq!(need(run.step(one(1, json!("first")))), [3]);
    assert_eq!(need(run.step(one(2, json!(20)))), [4]);
    waits(run.step(one(4, json!(3))));
    assert_eq!(done(run.step(one(3, json!(4)))), "[4,23]");
}

#[test]
fn a_race_inside_a_branch() {
    let source = r#"
        parallel([
            () => {
                let best = race(agents.map(a => () => { let d = a.analyze("draft"); a.analyze("check", d) }))
                best + "!"
            },
            () => { let x = await agents[0].analyze("other"); x + "?" }
        ])"#;
    let mut run = start(source, 2);
    assert_eq!(need(run.step(vec![])), [1, 2, 3]);
    assert_eq!(need(run.step(one(2, json!("d2")))), [4]);
    assert_eq!(need(run.step(one(1, json!("d1")))), [5]);
    // The second branch of the race wins, the first is cut off in its second call.
    assert_eq!(cancelled(run.step(one(4, json!("won")))), (vec![], vec![5]));
    waits(run.step(one(5, json!("late"))));
    assert_eq!(done(run.step(one(3, json!("x")))), r#"["won!","x?"]"#);
}

#[test]
fn a_try_in_a_branch_covers_what_it_awaits() {
    let source = r#"
        parallel([
            () => { try { let a = agents[0].analyze("x"); let b = agents[0].analyze("y" + a); b + 1 } catch (e) { "saved: " + e } },
            () => { let a = agents[1].analyze("z"); a + 1 }
        ])"#;
    let mut run = start(source, 2);
    assert_eq!(need(run.step(vec![])), [1, 2]);
    assert_eq!(need(run.step(one(1, json!("a")))), [3]);
    waits(run.step(vec![(id(3), failed("slow"))]));
    let end = done(run.step(one(2, json!(1))));
    assert_eq!(end, r#"["saved: agent `Agent 1` failed: slow (deadline)",2]"#);

    // Without one, the branch fails, and the other is none the worse for it.
    let mut run = start(&source.replace("try", "if (true)").replace("catch (e)", "else"), 2);
    assert_eq!(need(run.step(vec![])), [1, 2]);
    waits(run.step(vec![(id(1), failed("slow"))]));
    assert_eq!(done(run.step(one(2, json!(1)))), r#"[{"$value":null,"$confidence":0.0},2]"#);

    // A `try` around them covers what they ask for and nobody looks at.
    let source = "try { parallel([() => { let a = agents[0].analyze(\"x\"); agents[0].analyze(a + \"\"); 1 }, 2]) } catch (e) { e }";
    let mut run = start(source, 1);
    assert_eq!(need(run.step(vec![])), [1]);
    assert_eq!(need(run.step(one(1, json!("a")))), [2]);
    assert!(done(run.step(vec![(id(2), failed("slow"))])).contains("slow"));
    // Its own `finally` runs, the error goes to the owner, `map` hands it on.
    let source = r#"
        let log = []
        let r = null
        try {
            r = agents.map(async a => { try { a.analyze("x") + 1 } finally { log = log.push(a.id) } })
        } catch (e) { r = e }
        [log, r]"#;
    let mut run = start(source, 2);
    assert_eq!(need(run.step(vec![])), [1, 2]);
    assert_eq!(
        done(run.step(vec![(id(2), failed("slow"))])),
        r#"[["a2"],"agent `Agent 2` failed: slow (deadline)"]"#
    );
}

#[test]
fn an_error_of_a_map_cuts_the_others_off() {
    let source = "let n = 0\nlet r = 1\ntry { r = agents.map(async a => { let x = await a.analyze(\"x\"); n += 1; x + 1 }) } catch (e) { r = e }\nagents[0].analyze(\"after\")\n[n, r]";
    let mut run = start(source, 3);
    assert_eq!(need(run.step(vec![])), [1, 2, 3]);
    waits(run.step(one(1, json!(1))));
    assert_eq!(cancelled(run.step(vec![(id(3), failed("slow"))])), (vec![4], vec![2]));
    assert_eq!(done(run.step(one(4, json!(1)))), r#"[1,"agent `Agent 3` failed: slow (deadline)"]"#);

    // Where nothing catches it, the fault tells where it came from.
    let mut run = start("let f = async a => {\n  let x = a.analyze(\"x\")\n  x.y.z\n}\nagents.map(f)", 1);
    need(run.step(vec![]));
    let fault = fault(run.step(one(1, json!(1))));
    assert_eq!((fault.code, fault.line), ("property_on_invalid", 3));
    assert_eq!(fault.related.len(), 1, "{fault:?}");
}

#[test]
fn a_branch_may_loop() {
    let source = r#"
        parallel(agents.map(a => () => {
            let n = 0
            for let i = 0; i < 3; i += 1 { n += a.analyze("round", i) }
            while n < 10 { n += a.analyze("more", n) }
            n
        }))"#;
    let mut run = start(source, 2);
    let mut open = need(run.step(vec![]));
    assert_eq!(open, [1, 2]);
    let mut asked = 2;
    // The second goes ahead as fast as it is answered.
    let end = loop {
        let next = open.pop().expect("a run that is not over waits for something");
        match run.step(one(next, json!(3))) {
            Step::Need { effects, .. } => open.extend(effects.iter().map(|e| e.id.0)),
            step => break done(step),
        }
        asked = asked.max(open.iter().copied().max().unwrap_or(0));
        assert!(open.len() <= 2);
    };
    assert_eq!((end.as_str(), asked), ("[12,12]", 8));
}

#[test]
fn a_branch_that_lost_is_cut_off_with_all_it_asked_for() {
    let source = r#"
        let log = []
        let r = race([
            () => {
                agents[0].analyze("and forget")
                let inner = parallel([() => { (await agents[0].analyze("a")) + agents[0].analyze("b") }, agents[0].analyze("c")])
                log = log.push("never")
                inner
            },
            () => { let x = await agents[1].analyze("x"); log = log.push("x"); x + agents[1].analyze("y") }
        ])
        let last = agents[1].analyze("last")
        [r, log, last]"#;
    let mut run = start(source, 2);
    assert_eq!(need(run.step(vec![])), [1, 2, 3, 4]);
    assert_eq!(need(run.step(one(4, json!(5)))), [5]);
    waits(run.step(one(2, json!(4))));
    assert_eq!(cancelled(run.step(one(5, json!(6)))), (vec![6], vec![1, 3]));
    waits(run.step(one(3, json!(2))));
    assert_eq!(done(run.step(one(6, json!(7)))), r#"[11,["x"],7]"#);
}

#[test]
fn branches_that_run_are_bounded() {
    let source = r#"
        let running = 0
        let most = 0
        let rs = parallel(range(5).map(n => () => {
            running += 1
            most = max(most, running)
            let a = await agents[0].analyze("one", n)
            let b = agents[0].analyze("two", a)
            running -= 1
            a + b
        }), {maxConcurrency: 2})
        [most, rs]"#;
    let mut run = start(source, 1);
    assert_eq!(need(run.step(vec![])), [1, 2]);
    assert_eq!(need(run.step(one(2, json!(1)))), [3]);
    assert_eq!(need(run.step(one(3, json!(1)))), [4], "the second is done, the third starts");
    assert_eq!(need(run.step(one(1, json!(0)))), [5]);
    assert_eq!(need(run.step(one(4, json!(2)))), [6]);
    assert_eq!(need(run.step(one(5, json!(0)))), [7], "the fourth");
    assert_eq!(need(run.step(one(6, json!(2)))), [8], "the fifth");
    assert_eq!(need(run.step([one(7, json!(3)), one(8, json!(4))].concat())), [9, 10]);
    waits(run.step(one(10, json!(4))));
    assert_eq!(done(run.step(one(9, json!(3)))), "[2,[0,2,4,6,8]]");
}

#[test]
fn limits_count_all_branches() {
    let limited = |source: &str, limits: Limits| {
        let program = Program::compile(source, &CompileOptions::default()).expect("it compiles");
        let mut run = program.start(Host { limits, agents: agents(1), ..Host::default() });
        let mut step = run.step(vec![]);
        loop {
            match step {
                Step::Need { effects, .. } => {
                    let outcomes = effects.iter().map(|e| (e.id, Outcome::Value(Value::null())));
                    step = run.step(outcomes.collect());
                }
                end => return fault(end).code,
            }
        }
    };
    let usual = Limits::default();
    let spin =
        "parallel(range(50).map(n => () => { await sleep(1); for let i = 0; i < 1000; i += 1 { n } }))";
    assert_eq!(limited(spin, Limits { steps: 20_000, ..usual }), "limit_steps");
    let grow = "parallel(range(50).map(n => () => { let xs = range(1000); await sleep(1); xs.length }))";
    assert_eq!(limited(grow, Limits { memory: 500_000, ..usual }), "limit_memory");
    assert_eq!(
        limited("let f = () => parallel([() => { await sleep(1); f() }]);\nf()", usual),
        "limit_depth"
    );
    let wide = "parallel(range(100000).map(n => () => { await sleep(1000); n }))";
    assert_eq!(limited(wide, Limits { memory: 20 << 20, ..usual }), "limit_memory");
    let many = "parallel(range(10).map(n => () => { await sleep(1); await sleep(1) }))";
    assert_eq!(limited(many, Limits { effects: 15, ..usual }), "limit_effects");
    // A limit is no error of a branch.
    let caught = "race([() => { await sleep(1); while true { 1 } }, () => { await sleep(2); 2 }])";
    assert_eq!(limited(caught, Limits { steps: 20_000, ..usual }), "limit_steps");
}

#[test]
fn what_is_shared_between_branches() {
    // One waits for what the other asked for; a value that is held back is let go when it is waited for.
    let source = "let p = null\nparallel([() => { p = agents[0].analyze(\"x\"); p + 1 }, () => p + 2])";
    let mut run = start(source, 1);
    assert_eq!(need(run.step(vec![])), [1]);
    assert_eq!(done(run.step(one(1, json!(1)))), "[2,3]");
    let source = "let p = agents[0].analyze(\"x\")\nparallel([() => { await sleep(1); p + 1 }, p], {maxConcurrency: 1})";
    let mut run = start(source, 1);
    assert_eq!(need(run.step(vec![])), [2]);
    assert_eq!(need(run.step(vec![(id(2), Outcome::Value(Value::null()))])), [1]);
    assert_eq!(done(run.step(one(1, json!(1)))), "[2,1]");
    // What a loser asked for is gone for others too; `agentResults` is everybody's.
    let source = "let p = null\nlet r = race([() => { p = agents[0].analyze(\"x\"); await sleep(9) }, () => { await sleep(1); 2 }])\ntry { p + 1 } catch (e) { e }";
    let mut run = start(source, 1);
    assert_eq!(need(run.step(vec![])), [1, 2, 3]);
    assert!(done(run.step(vec![(id(3), Outcome::Value(Value::null()))])).contains("cancelled"));
    let source = "let r = race([() => { let n = agentResults[0].result; await sleep(9) }, () => { await sleep(1); 2 }])\nagentResults[0].result";
    let mut run = start(source, 1);
    assert_eq!(need(run.step(vec![])), [1, 2]);
    waits(run.step(vec![(id(2), Outcome::Value(Value::null()))]));
    assert_eq!(done(run.step(one(1, json!("r")))), r#""r""#);
}

#[test]
fn confidence_of_a_map() {
    let source = "let xs = [1, 2] ~> 0.5\nlet f = (async x => { await sleep(1); x }) ~> 0.25\n[xs.map(async x => { await sleep(x); x }), [1].map(f)]";
    let (end, took) = timed(source, 0);
    assert_eq!(took, 3);
    let expected = json!([{"$value": [1, 2], "$confidence": 0.5}, [{"$value": 1, "$confidence": 0.25}]]);
    assert_eq!(end, format!("{:?}", Step::Done(serde_json::from_value(expected).unwrap())));
}

/// An outcome costs the same however many branches wait.
#[test]
fn many_branches() {
    let source =
        "let n = 0\nparallel(range(20000).map(i => () => { await sleep(1); await sleep(1); n += 1 }))\nn";
    let mut run = start(source, 0);
    let mut open = need(run.step(vec![]));
    assert_eq!(open.len(), 20_000);
    let mut answered = 0;
    let end = loop {
        let outcomes = open.iter().map(|n| (id(*n), Outcome::Value(Value::null()))).collect::<Vec<_>>();
        answered += outcomes.len();
        match run.step(outcomes) {
            Step::Need { effects, .. } => open = effects.iter().map(|e| e.id.0).collect(),
            step => break done(step),
        }
    };
    assert_eq!((end.as_str(), answered), ("20000", 40_000));
}
