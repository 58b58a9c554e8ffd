//! Runs: what they ask for, when, and that a journal rebuilds them.

use crate::runs::*;
use parallax_prism::*;
use serde_json::json;

#[test]
fn independent_calls_go_out_together() {
    for source in [
        "agents.map(a => a.analyze(\"t\", 1))",
        "let a = agents[0].analyze(\"t\", 1)\nlet b = agents[1].analyze(\"t\", 1)\nlet c = agents[2].analyze(\"t\", 1)\n[a, b, c]",
        "parallel([agents[0].analyze(\"t\"), agents[1].analyze(\"t\"), agents[2].analyze(\"t\")])",
        "parallel(agents.map(a => () => a.analyze(\"t\")))",
        "Promise.all(agents.map(a => a.analyze(\"t\")))",
        "let rs = []\nfor a in agents { rs = rs.push(a.analyze(\"t\")) }\nrs",
    ] {
        let mut run = start(source, 3);
        assert_eq!(need(run.step(vec![])), [1, 2, 3], "{source}");
        waits(run.step(vec![(id(2), answer(json!("b"), 0.5))]));
        let step = run.step(vec![(id(3), answer(json!("c"), 0.5)), (id(1), answer(json!("a"), 0.25))]);
        let confident = |v: &str, c: f64| format!(r#"{{"$value":"{v}","$confidence":{c}}}"#);
        assert_eq!(
            done(step),
            format!("[{},{},{}]", confident("a", 0.25), confident("b", 0.5), confident("c", 0.5))
        );
    }
}

#[test]
fn a_cascade_asks_one_after_the_other() {
    let source = r#"
        best = null
        for a in agents {
            r = a.analyze("t")
            if ((<~ r) >= 0.8) { best = r
                break }
        }
        best
    "#;
    let mut run = start(source, 3);
    assert_eq!(need(run.step(vec![])), [1]);
    assert_eq!(need(run.step(vec![(id(1), answer(json!("x"), 0.5))])), [2]);
    assert_eq!(done(run.step(vec![(id(2), answer(json!("y"), 0.9))])), r#"{"$value":"y","$confidence":0.9}"#);
}

#[test]
fn the_call_carries_what_was_asked() {
    let mut run = start(
        "agents[1].analyze(\"look\", {x: 1 ~> 0.5}, {timeout: 250, context: {lang: \"de\"}})\nagents[0].analyze()",
        2,
    );
    let Step::Need { effects, .. } = run.step(vec![]) else { panic!() };
    let json = serde_json::to_value(&effects).unwrap();
    assert_eq!(
        json[0],
        json!({
            "id": 1,
            "kind": {
                "type": "invoke", "agent": "a2", "task": "look",
                "data": {"x": {"$value": 1, "$confidence": 0.5}},
                "options": {"timeout_ms": 250, "context": {"lang": "de"}}
            },
            "span": json[0]["span"]
        })
    );
    assert_eq!(json[1]["kind"]["task"], "judge");
    assert_eq!(json[1]["kind"]["data"], json!({"text": "hello"}));
    assert_eq!(serde_json::from_value::<Vec<Effect>>(json).unwrap(), effects);
}

#[test]
fn agents_are_objects() {
    let source = "let a = agentList.find(a => a.capabilities.includes(\"c2\"));\n[a.id, a.name, a.expertise, a.confidence, a.labels.n, agentCount, agents.filter(a => a.id == \"a1\").length]";
    assert_eq!(done(start(source, 2).step(vec![])), r#"["a2","Agent 2",0.5,0.9,"2",2,1]"#);
    assert_eq!(done(start("agents[0].analyze", 1).step(vec![])), "null");
    assert!(done(start("agents[0]", 1).step(vec![])).starts_with(r#"{"id":"a1","name":"Agent 1""#));
}

#[test]
fn agent_results_fan_out_once_when_read() {
    let mut run = start("input.task", 2);
    assert_eq!(done(run.step(vec![])), r#""judge""#);
    let source = "let n = agentResults.length\nlet ok = successfulResults\n[n, ok.length, agentResults[1].error, ok[0]]";
    let program = Program::compile(source, &CompileOptions::default()).unwrap();
    assert!(program.uses_agent_results() && program.facts().calls_agents);
    let mut run = start(source, 2);
    assert_eq!(need(run.step(vec![])), [1, 2]);
    let rich = Outcome::Answer(Answer {
        value: json!({"a": 1}).into(),
        confidence: Some(0.8),
        reasoning: "because".into(),
        uncertainties: vec!["maybe".into()],
        ..Answer::default()
    });
    let step = run.step(vec![(id(1), rich), (id(2), failed("too slow"))]);
    let first = r#"{"agentId":"a1","agentName":"Agent 1","expertise":0.5,"result":{"a":1},"confidence":0.8,"reasoning":"because","uncertainties":["maybe"],"error":null}"#;
    assert_eq!(done(step), format!(r#"[2,1,"too slow (deadline)",{first}]"#));
    let mut run = start("let f = () => agentResults.map(r => r.confidence)\nf()", 2);
    assert_eq!(need(run.step(vec![])), [1, 2]);
    let step = run.step(vec![(id(1), Outcome::Value(Value::from(1.0))), (id(2), failed("x"))]);
    assert_eq!(done(step), "[null,0]");
}

#[test]
fn failures_are_errors_where_the_answer_is_looked_at() {
    let mut run = start("let r = agents[0].analyze(\"t\")\nr + 1", 1);
    need(run.step(vec![]));
    let fault = fault(run.step(vec![(id(1), failed("too slow"))]));
    assert_eq!((fault.code, fault.line), ("agent_failed", 2));
    assert_eq!(fault.message, "agent `Agent 1` failed: too slow (deadline)");

    // Nobody looks: the call is made and awaited, and its failure is nobody's.
    let mut run = start("agents[0].analyze(\"t\")\n5", 1);
    assert_eq!(need(run.step(vec![])), [1]);
    assert_eq!(done(run.step(vec![(id(1), failed("x"))])), "5");

    // A model's failure is an error anyway.
    let mut run = start("llm(\"t\")\n5", 1);
    assert_eq!(need(run.step(vec![])), [1]);
    let outcome = Outcome::Failed { code: "no_llm_provider".into(), message: "none".into() };
    assert_eq!(self::fault(run.step(vec![(id(1), outcome)])).code, "no_llm_provider");

    for (value, confidence) in [(json!(1), f64::NAN), (json!(1), 7.3), (json!(1), -0.1)] {
        let mut run = start("agents[0].analyze(\"t\")", 1);
        need(run.step(vec![]));
        assert_eq!(self::fault(run.step(vec![(id(1), answer(value, confidence))])).code, "agent_failed");
    }
}

#[test]
fn try_covers_the_calls_made_in_it() {
    for source in [
        "let r = 0\ntry { r = agents[0].analyze(\"t\") } catch (e) { r = \"sorry\" }\nr",
        "try { agents[0].analyze(\"t\") } catch { \"sorry\" }",
        "let f = () => { try { return agents[0].analyze(\"t\") } catch { return \"sorry\" } }\nf()",
        "let f = () => agents[0].analyze(\"t\")\ntry { f() } catch { \"sorry\" }",
        "for a in agents { try { a.analyze(\"t\")\ncontinue } catch { \"sorry\" } }",
        "try { let rs = agents.map(a => a.analyze(\"t\")); rs[0] + 1 } catch { \"sorry\" }",
    ] {
        let mut run = start(source, 1);
        assert_eq!(need(run.step(vec![])), [1], "{source}");
        assert_eq!(done(run.step(vec![(id(1), failed("x"))])), r#""sorry""#, "{source}");
    }
    // What was asked for before is not its business.
    let mut run = start("let r = agents[0].analyze(\"t\")\ntry { 1 } catch { 2 }", 1);
    assert_eq!(need(run.step(vec![])), [1]);
    assert_eq!(done(run.step(vec![(id(1), failed("x"))])), "1");
}

#[test]
fn parallel_all_keeps_order_and_survives_failures() {
    let mut run = start("parallel(agents.map(a => a.analyze(\"t\")), {mode: \"all\"})", 3);
    assert_eq!(need(run.step(vec![])), [1, 2, 3]);
    need(run.step(vec![(id(3), answer(json!(3), 0.5))]));
    need(run.step(vec![(id(2), failed("x"))]));
    let step = run.step(vec![(id(1), answer(json!(1), 0.5))]);
    assert_eq!(
        done(step),
        r#"[{"$value":1,"$confidence":0.5},{"$value":null,"$confidence":0.0},{"$value":3,"$confidence":0.5}]"#
    );
    assert_eq!(done(start("parallel([1, () => 2, Promise.resolve(3)])", 0).step(vec![])), "[1,2,3]");
    assert_eq!(done(start("parallel([])", 0).step(vec![])), "[]");
    assert_eq!(
        done(start("parallel([() => null.x, () => 2])", 0).step(vec![])),
        r#"[{"$value":null,"$confidence":0.0},2]"#
    );
}

#[test]
fn first_and_race_cancel_the_rest() {
    for source in [
        "let r = parallel(agents.map(a => a.analyze(\"t\")), {mode: \"first\"})\nagents[0].analyze(\"next\")\nr",
        "let r = race(agents.map(a => () => a.analyze(\"t\")))\nagents[0].analyze(\"next\")\nr",
    ] {
        let mut run = start(source, 3);
        assert_eq!(need(run.step(vec![])), [1, 2, 3]);
        waits(run.step(vec![(id(3), failed("x"))]));
        assert_eq!(cancelled(run.step(vec![(id(2), answer(json!("two"), 0.5))])), (vec![4], vec![1]));
        // The loser's answer may still come.
        waits(run.step(vec![(id(1), answer(json!("one"), 0.5))]));
        assert_eq!(done(run.step(vec![(id(4), failed("y"))])), r#"{"$value":"two","$confidence":0.5}"#);
    }
    let mut run = start("race(agents.map(a => a.analyze(\"t\")))", 2);
    need(run.step(vec![]));
    let fault = fault(run.step(vec![(id(1), failed("slow")), (id(2), failed("dead"))]));
    assert_eq!(fault.code, "agent_failed");
    assert!(fault.message.contains("slow") && fault.message.contains("dead"), "{}", fault.message);
    assert_eq!(self::fault(start("race([])", 0).step(vec![])).code, "bad_argument");
    // Looking at a loser is an error, not a hang.
    let mut run = start("let rs = agents.map(a => a.analyze(\"t\"))\nlet r = race(rs)\nrs[0]", 2);
    need(run.step(vec![]));
    assert_eq!(self::fault(run.step(vec![(id(2), answer(json!(1), 0.5))])).code, "agent_failed");
}

#[test]
fn quorum_takes_the_first_answers() {
    let source = "parallel(agents.map(a => a.analyze(\"t\")), {mode: \"quorum\", n: 2})";
    let mut run = start(source, 4);
    assert_eq!(need(run.step(vec![])), [1, 2, 3, 4]);
    need(run.step(vec![(id(4), answer(json!(4), 0.5))]));
    need(run.step(vec![(id(1), failed("x"))]));
    let step = run.step(vec![(id(2), answer(json!(2), 0.5))]);
    assert_eq!(done(step), r#"[{"$value":4,"$confidence":0.5},{"$value":2,"$confidence":0.5}]"#);
    let mut run = start(source, 3);
    need(run.step(vec![]));
    let step = run.step(vec![(id(1), failed("x")), (id(2), failed("y"))]);
    assert_eq!(fault(step).code, "agent_failed");
    assert_eq!(fault(start(source, 1).step(vec![])).code, "bad_argument");
    for options in ["{mode: \"some\"}", "{mode: 1}", "{mode: \"quorum\", n: 0}", "{maxConcurrency: 0.5}", "5"]
    {
        assert_eq!(fault(start(&format!("parallel([1], {options})"), 0).step(vec![])).code, "bad_argument");
    }
}

#[test]
fn concurrency_is_bounded() {
    for source in [
        "parallel(agents.map(a => () => a.analyze(\"t\")), {maxConcurrency: 2})",
        "parallel(agents.map(a => a.analyze(\"t\")), {maxConcurrency: 2})",
    ] {
        let mut run = start(source, 4);
        assert_eq!(need(run.step(vec![])), [1, 2], "{source}");
        assert_eq!(need(run.step(vec![(id(2), answer(json!(2), 0.5))])), [3]);
        assert_eq!(need(run.step(vec![(id(3), failed("x"))])), [4]);
        waits(run.step(vec![(id(1), answer(json!(1), 0.5))]));
        let step = run.step(vec![(id(4), answer(json!(4), 0.5))]);
        assert!(done(step).starts_with(r#"[{"$value":1,"#));
    }
    let mut run =
        start("parallel(agents.map(a => a.analyze(\"t\")), {mode: \"first\", maxConcurrency: 1})", 3);
    assert_eq!(need(run.step(vec![])), [1]);
    assert_eq!(need(run.step(vec![(id(1), failed("x"))])), [2]);
    assert!(done(run.step(vec![(id(2), answer(json!(2), 0.5))])).starts_with(r#"{"$value":2"#));
}

#[test]
fn callbacks_may_wait() {
    let sources = [
        "agents.filter(a => (<~ a.analyze(\"t\")) > 0.4).length",
        "agents.reduce((n, a) => n + (a.analyze(\"t\") ? 1 : 0), 0)",
        "let n = 0\nagents.forEach(a => { if (a.analyze(\"t\") == 7) { n += 1 } })\nn",
        "agents.some(a => a.analyze(\"t\") == 8) ? 0 : 2",
        "agents.every(a => a.analyze(\"t\") == 7) ? 2 : 0",
        "let gs = groupBy(a => a.analyze(\"t\") + \"\")(agents)\ngs[\"7 (~50.0%)\"].length",
        "agents.find(a => a.analyze(\"t\") == 8) ?? 2",
        "let m = agents.map(a => match a.analyze(\"t\") { 7 => 1, _ => 0 })\nm[0] + m[1]",
        "let f = a => { let x = a.analyze(\"t\")\nreturn x > 5 ? 1 : 0 }\nagents.map(f).reduce((a, b) => a + b)",
    ];
    for source in sources {
        let mut run = start(source, 2);
        assert_eq!(need(run.step(vec![])), [1], "{source}");
        assert_eq!(need(run.step(vec![(id(1), answer(json!(7), 0.5))])), [2], "{source}");
        let value = done(run.step(vec![(id(2), answer(json!(7), 0.5))]));
        assert!(value.contains('2'), "{source}: {value}");
    }
    let mut run = start("[3, 1, 2].sort((a, b) => (<~ agents[0].analyze(\"t\")) * 0 + a - b)", 1);
    let mut next = need(run.step(vec![]));
    let value = loop {
        match run.step(vec![(EffectId(next[0]), answer(json!(0), 0.5))]) {
            Step::Need { effects, .. } => next = effects.iter().map(|e| e.id.0).collect(),
            step => break done(step),
        }
    };
    assert_eq!(value, "[1,2,3]");
}

#[test]
fn pending_values_are_seen_through() {
    let seven = |source: &str, expected: &str| {
        let mut run = start(&format!("let p = agents[0].analyze(\"t\")\n{source}"), 1);
        assert_eq!(need(run.step(vec![])), [1], "{source}");
        assert_eq!(done(run.step(vec![(id(1), Outcome::Value(Value::from(7.0)))])), expected, "{source}");
    };
    seven("p", "7");
    seven("[p, {a: p}]", r#"[7,{"a":7}]"#);
    seven("\"${[p]}\"", r#""[7]""#);
    seven("[p] == [7]", "true");
    seven("[p].join()", r#""7""#);
    seven("typeof p", r#""number""#);
    seven("p ~> 0.5", r#"{"$value":7,"$confidence":0.5}"#);
    seven("<~ p", "1");
    seven("let [a] = [p]\na + 1", "8");
    seven("let {a} = {a: p}\na - 1", "6");
    seven("match [p] { [7] => \"yes\", _ => \"no\" }", r#""yes""#);
    seven("max(p, 3)", "7");
    seven("[1, 2, 3, 4, 5, 6, 7, 8][p]", "8");
    seven("p > 5 && p < 9", "true");
    seven("p ?? 3", "7");
    seven("[-p]", "[-7]");
    seven("await p", "7");
    seven("let f = x => x * 2\np |> f(_)", "14");
    seven("let f = (x => p) ~> 0.5\nf(1)", r#"{"$value":7,"$confidence":0.5}"#);
    seven("average([p, 1])", "4");
    seven("[p, 1].includes(7)", "true");
    seven("print(p)\n1", "1");
    seven("let s = \"a\"\ns += p\ns", r#""a7""#);
    seven("for x in [p, 1] { x + 1 }", "2");
    seven("uncertain if (1 ~> (p / 10)) { high { 1 } }", "1");
    seven("({a: [p]}).a[0]", "7");
    seven("[...[p], 1]", "[7,1]");
    seven("Promise.all([Promise.resolve(p)])", "[7]");
    seven("sortBy(\"n\")([{n: p}, {n: 3}])[0]", r#"{"$value":{"n":3},"$confidence":0.95}"#);
    seven("agents[0].id + p", r#""a17""#);
    seven("threshold(0.5)([p])", "[7]");
    seven("confidence(0.5)(x => p)(1)", r#"{"$value":7,"$confidence":0.5}"#);
}

#[test]
fn models_answer() {
    let mut run = start(
        "llm(\"q\", {model: \"m\", temperature: 0.5, extractor: r => r.confidence / 2 + (r.prompt == \"q\" ? 0.1 : 0)})",
        0,
    );
    let Step::Need { effects, .. } = run.step(vec![]) else { panic!() };
    assert_eq!(
        serde_json::to_value(&effects[0].kind).unwrap(),
        json!({"type": "llm", "prompt": "q", "options": {"model": "m", "temperature": 0.5}})
    );
    assert_eq!(
        done(run.step(vec![(id(1), answer(json!("yes"), 0.8))])),
        r#"{"$value":"yes","$confidence":0.5}"#
    );
    for bad in [
        "5",
        "\"q\", 5",
        "\"q\", {model: 5}",
        "\"q\", {temperature: \"x\"}",
        "\"q\", {extractor: 1}",
        "\"q\", {structuredOutput: 1}",
    ] {
        assert_eq!(fault(start(&format!("llm({bad})"), 0).step(vec![])).code, "bad_argument");
    }
    let mut run = start("llm(\"q\", {extractor: r => \"high\"})", 0);
    need(run.step(vec![]));
    assert_eq!(fault(run.step(vec![(id(1), answer(json!("yes"), 0.8))])).code, "bad_argument");
    let mut run =
        start("let s = stream_llm(\"q\")\nlet a = s.next(); let b = s.next();\n[a, b, await s.result()]", 0);
    need(run.step(vec![]));
    let step = run.step(vec![(id(1), answer(json!("yes"), 0.8))]);
    assert_eq!(done(step), r#"[{"type":"text","text":"yes"},null,{"$value":"yes","$confidence":0.8}]"#);
}

#[test]
fn time_and_chance_are_asked_for_at_once() {
    let mut run = start("let a = now()\nlet b = now()\nlet c = random()\n[b - a, c]", 0);
    assert_eq!(need(run.step(vec![])), [1]);
    assert_eq!(need(run.step(vec![(id(1), Outcome::Value(Value::from(10.0)))])), [2]);
    assert_eq!(need(run.step(vec![(id(2), Outcome::Value(Value::from(15.0)))])), [3]);
    assert_eq!(done(run.step(vec![(id(3), Outcome::Value(Value::from(0.5)))])), "[5,0.5]");
    let mut run = start("await sleep(20)\nsleep(30)\n1", 0);
    let Step::Need { effects, .. } = run.step(vec![]) else { panic!() };
    assert_eq!(effects[0].kind, EffectKind::Sleep { ms: 20 });
    assert_eq!(need(run.step(vec![(id(1), Outcome::Value(Value::null()))])), [2]);
    assert_eq!(done(run.step(vec![(id(2), Outcome::Value(Value::null()))])), "1");
}

#[test]
fn wrong_outcomes_are_the_owners_mistake() {
    let mut run = start("agents[0].analyze(\"t\") + agents[0].analyze(\"u\")", 1);
    need(run.step(vec![]));
    assert_eq!(fault(run.step(vec![(id(9), failed("x"))])).code, "unknown_effect");
    assert_eq!(fault(run.step(vec![])).code, "unknown_effect");
    let mut run = start("agents[0].analyze(\"t\") + agents[0].analyze(\"u\")", 1);
    need(run.step(vec![]));
    need(run.step(vec![(id(1), answer(json!(1), 0.5))]));
    let fault = fault(run.step(vec![(id(1), answer(json!(1), 0.5))]));
    assert_eq!(fault.code, "unknown_effect");
    assert!(fault.message.contains("answered before"));
}

#[test]
fn interruption() {
    let mut run = start("while true { 1 }", 0);
    let handle = run.interrupt();
    let other = std::thread::spawn(move || handle.interrupt());
    let fault = fault(run.step(vec![]));
    other.join().unwrap();
    assert_eq!(fault.code, "interrupted");
    let mut run = start("try { agents[0].analyze(\"t\") } catch { 1 }", 1);
    need(run.step(vec![]));
    run.interrupt().interrupt();
    assert_eq!(self::fault(run.step(vec![])).code, "interrupted");
}

#[test]
fn output_survives_waiting() {
    let mut run = start(
        "print(\"a\", 1 ~> 0.5)\nlet x = agents[0].analyze(\"t\") + 1\nconsole.debug(\"b\", x)\nconsole.log()",
        1,
    );
    need(run.step(vec![]));
    assert_eq!(run.output(), ["a 1 ~> 0.50"]);
    run.step(vec![(id(1), answer(json!(1), 0.25))]);
    assert_eq!(run.output(), ["a 1 ~> 0.50", "[DEBUG] b 2 ~> 0.25", ""]);
}

/// A program with every way to wait, and a small random order of answers: however the same journal is grouped, the
/// run ends the same, with the same ids.
#[test]
fn a_journal_rebuilds_the_run() {
    let source = r#"
        log = []
        rs = agents.map(a => a.analyze("one", agentCount))
        fast = race(agents.map(a => () => a.analyze("race")))
        log = log.push(fast)
        two = parallel(agents.map(a => a.analyze("q")), {mode: "quorum", n: 2, maxConcurrency: 3})
        for a in agents {
            r = a.analyze("cascade", log.length)
            log = log.push(r)
            if ((<~ r) > 0.7) { break }
        }
        try { log = log.push(agents[0].analyze("risky") + "!") } catch (e) { log = log.push(e) }
        ok = successfulResults.map(r => r.result)
        t = now()
        { log: log, two: two, ok: ok, t: t, first: rs[0] ?? "none" }
    "#;
    for seed in 1..60u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let (mut run, mut open, mut journal, mut asked) =
            (start(source, 4), Vec::new(), Vec::new(), Vec::new());
        let mut step = run.step(vec![]);
        let end = loop {
            match step {
                Step::Need { effects, cancelled } => {
                    asked.extend(effects.iter().map(|e| (e.id, serde_json::to_string(&e.kind).unwrap())));
                    open.extend(effects);
                    // Some owners drop cancelled effects, some answer late.
                    open.retain(|e: &Effect| !cancelled.contains(&e.id) || seed % 2 == 0);
                }
                end => break end,
            }
            assert!(!open.is_empty(), "stuck");
            let effect = open.remove(next() as usize % open.len());
            let outcome = match (&effect.kind, next() % 5) {
                (EffectKind::Now, _) => Outcome::Value(Value::from(123.0)),
                (_, 0) => failed("luck"),
                (_, n) => answer(json!(format!("v{}", effect.id.0)), n as f64 / 5.0),
            };
            journal.push((effect.id, outcome));
            step = run.step(vec![journal.last().cloned().unwrap()]);
        };
        let text = serde_json::to_string(&journal).unwrap();
        for batch in [1, 2, 3, 7, 1000] {
            let journal: Vec<(EffectId, Outcome)> = serde_json::from_str(&text).unwrap();
            let mut again = start(source, 4);
            let mut asked_again = Vec::new();
            let mut last = Step::Need { effects: vec![], cancelled: vec![] };
            for group in journal.chunks(batch) {
                last = again.step(group.to_vec());
                if let Step::Need { effects, .. } = &last {
                    asked_again
                        .extend(effects.iter().map(|e| (e.id, serde_json::to_string(&e.kind).unwrap())));
                }
            }
            assert_eq!(last, end, "seed {seed}, batches of {batch}");
            assert!(asked_again.iter().all(|e| asked.contains(e)));
        }
    }
}

#[test]
fn rules_may_be_chosen() {
    let source = "let a = 4 ~> 0.8; let b = 5 ~> 0.5; let f = (x => x ~> 0.5) ~> 0.5;\n[<~ (a + b), <~ (a < b), <~ (a ~|| b), <~ (a ~~ b), <~ f(1), <~ (b ~?? 1), a ~||> b, b ~@> 1]";
    let program = Program::compile(source, &CompileOptions::default()).expect("it compiles");
    let plain = done(program.start(Host::default()).step(vec![]));
    assert_eq!(
        plain,
        r#"[0.5,0.5,0.8,0.5,0.25,0.5,{"$value":4,"$confidence":0.8},{"$value":5,"$confidence":0.25}]"#
    );
    let rules: Rules = serde_json::from_value(json!({
        "arithmetic": "product", "comparison": "max", "logicalOr": "min", "chain": "average", "functionCall": "min",
        "coalesceThreshold": 0.6, "parallel": "min", "gate": {"onFail": "returnNull"}
    }))
    .expect("rules");
    let other = done(program.start(Host::default()).with_rules(rules).step(vec![]));
    assert_eq!(other, r#"[0.4,0.8,0.5,0.65,0.5,1,{"$value":5,"$confidence":0.5},null]"#);
}

#[test]
fn values_survive_json() {
    let value = Value::from(json!({"a": [1, 2.5, "x", null, true], "n": -0.1}));
    let value = Value::object([("v", value.with_confidence(0.25)), ("w", Value::from(1e300))]);
    let text = serde_json::to_string(&value).expect("values are JSON");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    assert_eq!(value.to_json(), json!({"v": {"a": [1, 2.5, "x", null, true], "n": -0.1}, "w": 1e300}));
    assert_eq!(value.get("v").unwrap().confidence(), Some(0.25));
    assert_eq!(value.get("v").unwrap().get("a").unwrap().items().len(), 5);
    assert_eq!(Value::from(1.0).with_confidence(f64::NAN).confidence(), Some(0.0));
    assert_eq!(Value::from("x").with_confidence(7.0).to_string(), "x (~100.0%)");
}

#[test]
fn an_unknown_option_is_refused() {
    for source in [
        "parallel([1], { mod: \"all\" })",
        "llm(\"x\", { nope: 1 })",
        "agents[0].analyze(\"x\", null, { timeOut: 1 })",
        "majorityVote([1], { weightd: true })",
        "aggregate([1], { combin: null })",
    ] {
        let fault = fault(start(source, 1).step(vec![]));
        assert_eq!(
            (fault.code, fault.message.contains("has no option `")),
            ("bad_argument", true),
            "{source}"
        );
    }
}
