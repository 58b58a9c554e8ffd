//! Limits, depth, and programs that try to break the machine.

use parallax_prism::*;

fn run_with(source: &str, limits: Limits) -> Step {
    let program = match Program::compile(source, &CompileOptions::default()) {
        Ok(program) => program,
        Err(errors) => panic!("{}", errors[0]),
    };
    program.start(Host { limits, ..Host::default() }).step(vec![])
}

#[track_caller]
fn fails(source: &str, limits: Limits, code: &str) {
    match run_with(source, limits) {
        Step::Failed(fault) => assert_eq!(fault.code, code, "{source}: {fault}"),
        other => panic!("{source}: expected {code}, got {other:?}"),
    }
}

fn small() -> Limits {
    Limits { steps: 3_000_000, memory: 4 << 20, ..Limits::default() }
}

#[test]
fn endless_programs_end() {
    for source in [
        "while true { 1 }",
        "for ;; { }",
        "do { 1 } while true",
        "f = () => f()\nwhile true { try { f() } catch { } }",
        "uncertain while true { high { 1 } }",
        "xs = range(2000)\nxs.map(x => xs.map(y => xs.map(z => 1)))",
        "xs = range(2000)\nxs.map(x => xs.map(y => xs.includes(-1)))",
        "f = x => { try { f(x) } finally { f(x) } }\nf(1)",
        "xs = range(100000)\nwhile true { xs.join() }",
        "xs = range(1000)\nxs.sort((a, b) => { while true { } })",
        "xs = range(100000)\nwhile true { parallel(xs) }",
        "s = \"x\"\nfor let i = 0; i < 20; i += 1 { s = s + s }\nwhile true { try { await Promise.reject([s]) } catch { } }",
        "s = \"x\"\nfor let i = 0; i < 20; i += 1 { s = s + s }\nwhile true { llm(s) }",
        "while true { executePattern(\"p\", range(10000)) }",
        "xs = range(100000)\nwhile true { Promise.all(xs) }",
        "s = \"1\"\nfor let i = 0; i < 20; i += 1 { s = s + s }\nwhile true { s == 1 }",
        "s = \"1\"\nfor let i = 0; i < 20; i += 1 { s = s + s }\nwhile true { if (s == 1) { 1 } }",
        "s = \"é\"\nfor let i = 0; i < 20; i += 1 { s = s + s }\nwhile true { s.length }",
        "s = \"b\"\nfor let i = 0; i < 12; i += 1 { s = s + s }\nxs = range(500).map(x => s + x)\nwhile true { xs.sort() }",
    ] {
        let step = run_with(source, small());
        let Step::Failed(fault) = step else { panic!("{source}: {step:?}") };
        assert!(matches!(fault.code, "limit_steps" | "limit_depth" | "limit_memory"), "{source}: {fault}");
    }
}

#[test]
fn deep_calls() {
    fails("f = n => 1 + f(n + 1)\nf(0)", Limits::default(), "limit_depth");
    fails("f = n => [n].map(x => f(x + 1))\nf(0)", Limits::default(), "limit_depth");
    fails("f = n => [n, n].sort((a, b) => f(a))\nf(0)", Limits::default(), "limit_depth");
    let step = run_with("f = n => n == 0 ? 0 : 1 + f(n - 1)\nf(9000)", Limits::default());
    assert_eq!(step, Step::Done(Value::from(9000.0)));
}

#[test]
fn limits_cannot_be_caught() {
    fails("try { while true { } } catch { 1 } finally { 2 }", small(), "limit_steps");
    fails("parallel([() => { while true { } }])", small(), "limit_steps");
}

#[test]
fn memory_is_bounded() {
    for source in [
        "s = \"x\"\nwhile true { s = s + s }",
        "xs = []\nwhile true { xs = xs.push(1) }",
        "xs = []\nwhile true { xs = [...xs, \"${xs.length}\"] }",
        "xs = [1]\nwhile true { xs = [...xs, ...xs] }",
        "o = {}\nn = 0\nwhile true { n += 1\no = {...o, a: {b: o.a, c: n}} }",
        "s = \"0123456789\"\nxs = range(100000).map(x => s + x)\nys = range(100000).map(x => s + x)\nwhile true { s += s }",
        "fs = []\nf = x => { let y = x\nreturn () => { y = y + 1\nreturn y } }\nwhile true { fs = fs.push(f(1)) }",
        &("s = \"x\"\n".to_string() + &"s = s + s\n".repeat(60)),
        "xs = range(100000)\nwhile true { xs = xs.concat(xs) }",
        // Refused before the parts are made.
        "s = \"a,\"\nwhile true { s = s + s\ns.split(\"\") }",
        "xs = range(100000)\nys = [xs, xs].map(a => a.map(b => [b]))\nzs = [ys, ys].map(a => a.map(b => b.map(c => [c])))",
    ] {
        let Step::Failed(fault) = run_with(source, small()) else { panic!("{source}") };
        assert!(matches!(fault.code, "limit_memory" | "limit_depth" | "limit_steps"), "{source}: {fault}");
    }
    fails("s = \"x\"\nwhile true { s = s + s }", small(), "limit_memory");
    // Counted before it is made, or with what it is made of.
    let limits = Limits { memory: 2 << 20, ..Limits::default() };
    fails("groupBy(x => x)(range(60000))\nnull", limits, "limit_memory");
    fails("a = range(20000)\na.concat(a, a, a, a, a, a, a, a).length", limits, "limit_memory");
    // Garbage is not counted.
    let limits = Limits { memory: 1 << 20, steps: 10_000_000, ..Limits::default() };
    let step = run_with("n = 0\nwhile n < 200000 { n += 1\nx = [n, {a: \"t\" + n}] }\nn", limits);
    assert_eq!(step, Step::Done(Value::from(200_000.0)));
    let step = run_with(
        "f = x => { let y = x\nlet g = () => { y += 1 }\ng()\nreturn y }\nn = 0\nwhile n < 200000 { n = f(n) }\nn",
        limits,
    );
    assert_eq!(step, Step::Done(Value::from(200_000.0)));
}

#[test]
fn wide_frames_count() {
    let many: String = (0..20_000).map(|i| format!("let v{i} = 0\n")).collect();
    fails(&format!("function f() {{\n{many}return f() + 1 }}\nf()"), Limits::default(), "limit_memory");
}

#[test]
fn messages_are_bounded() {
    let source = "s = \"é\"\nfor let i = 0; i < 20; i += 1 { s = s + s }\n1 instanceof s";
    let Step::Failed(fault) = run_with(source, Limits::default()) else { panic!("{source}") };
    assert!(fault.code == "bad_operand" && fault.message.len() < 70_000, "{}", fault.message.len());
}

#[test]
fn output_and_effects_are_bounded() {
    fails("while true { print(\"0123456789\") }", Limits::default(), "limit_output");
    fails("while true { sleep(1) }", Limits { effects: 100, ..Limits::default() }, "limit_effects");
}

#[test]
fn nesting_is_bounded() {
    fails("a = []\nwhile true { a = [a] }", Limits::default(), "limit_depth");
    fails("a = {}\nwhile true { a = {k: a} }", Limits::default(), "limit_depth");
    fails("a = []\nwhile true { a = [].push(a) }", Limits::default(), "limit_depth");
    fails("a = []\nwhile true { a = [a] ~> 0.5 }", Limits::default(), "limit_depth");
    fails(
        "f = () => 1\nfor let i = 0; i < 1000; i += 1 { f = wrap(f) }\nfunction wrap(g) { return () => g() }",
        Limits::default(),
        "limit_depth",
    );
    fails("p = 1\nwhile true { p = Promise.resolve(p) }", Limits::default(), "limit_depth");
    fails("f = x => x\nwhile true { f = confidence(0.5)(f) }", Limits::default(), "limit_depth");
}

#[test]
fn shared_data_does_not_explode() {
    let doubling = "a = [\"0123456789abcdef\"]\nfor let i = 0; i < 90; i += 1 { a = [a, a] }\n";
    for end in [
        "\"\" + a",
        "a == [a]",
        "print(a)",
        "a",
        "agents.map(x => x)\na.join()",
        "[a].includes(5)",
        "majorityVote([a])",
    ] {
        fails(&format!("{doubling}{end}"), Limits::default(), "limit_memory");
    }
    let b = doubling.replace('a', "b").replace("\"0123456789bbcdef\"", "1");
    fails(&format!("{doubling}{b}a == b"), Limits::default(), "limit_memory");
}

/// Runs on a thread with a small stack, as a server's would be.
fn on_small_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(test).expect("a thread").join().expect("no panic");
}

#[test]
fn deep_sources_are_refused() {
    on_small_stack(|| {
        let n = 100_000;
        let sources = [
            "(".repeat(n),
            "[".repeat(n),
            "{a:".repeat(n),
            "-".repeat(n) + "1",
            "!".repeat(n) + "1",
            "x => ".repeat(n) + "1",
            "f(".repeat(n),
            "if (1) ".repeat(n) + "1",
            "{".repeat(n),
            "\"${".repeat(n),
            "match 1 { _ => ".repeat(n),
            "1 ? ".repeat(n),
            "1 ? 2 : ".repeat(n) + "3",
            "2 ** ".repeat(n) + "2",
            "let [".to_string() + &"[".repeat(n),
            "match 1 { ".to_string() + &"[".repeat(n),
            "try {".repeat(n),
            "while 1 ".repeat(n) + "1",
            "function f() {".repeat(n),
            "export ".repeat(n) + "1",
            "uncertain if (1) { high {".repeat(n),
            "for x in [] ".repeat(n),
            "do ".repeat(n),
            "await ".repeat(n) + "1",
            "x = ".repeat(n),
            "{a = ".repeat(n),
            "({a} => ".repeat(n),
        ];
        for source in sources {
            let errors = match Program::compile(&source, &CompileOptions::default()) {
                Err(errors) => errors,
                Ok(_) => panic!("{}…", &source[..20]),
            };
            assert!(!errors.is_empty() && errors.len() <= 40, "{}…", &source[..12]);
        }
    });
}

#[test]
fn deep_sources_within_the_limit_work() {
    on_small_stack(|| {
        for (open, core, close) in [
            ("(", "1", ")"),
            ("[", "1", "]"),
            ("-", "1", ""),
            ("{ ", "1", " }"),
            ("if (1) { ", "1", " }"),
            ("x => ", "1", ""),
            ("1 ? ", "1", " : 2"),
            ("(x => { return ", "1", " })(1)"),
            ("match 1 { _ => ", "1", " }"),
            ("[1].map(x => ", "1", ")"),
            ("try { ", "1", " } finally { }"),
            ("for x in [1] { ", "1", " }"),
            ("f(a, (b + ", "1", "))"),
            ("\"${", "1", "}\""),
        ] {
            // As deep as is accepted.
            let mut deepest = 0;
            for depth in 1..200 {
                let source = format!("{}{core}{}", open.repeat(depth), close.repeat(depth));
                let Ok(program) = Program::compile(&source, &CompileOptions::default()) else { break };
                deepest = depth;
                program.start(Host::default()).step(vec![]);
            }
            assert!(deepest >= 20, "{open}: {deepest}");
        }
    });
}

#[test]
fn long_chains_are_flat() {
    on_small_stack(|| {
        let n = 20_000;
        let sum = "1 + ".repeat(n) + "1";
        assert_eq!(run_with(&sum, Limits::default()), Step::Done(Value::from(20_001.0)));
        let text = format!("let s = \"\"\ns = s{}\ns.length", " + \"x\"".repeat(n));
        assert_eq!(run_with(&text, Limits::default()), Step::Done(Value::from(n as f64)));
        let and = "1 && ".repeat(n) + "2";
        assert_eq!(run_with(&and, Limits::default()), Step::Done(Value::from(2.0)));
        let members = format!("let o = {{}}\no{}", "?.a".repeat(n));
        assert_eq!(run_with(&members, Limits::default()), Step::Done(Value::null()));
        let elses = format!("let x = 1\nif (x == 0) {{ 0 }}{}", " else if (x == 0) { 0 }".repeat(n));
        assert_eq!(run_with(&elses, Limits::default()), Step::Done(Value::from(0.0)));
        let pipes = format!("1{}", " |> _ + 1".repeat(n));
        assert_eq!(run_with(&pipes, Limits::default()), Step::Done(Value::from(n as f64 + 1.0)));
        let lines = "let x = 1\n".to_string() + &"x = x + 1\n".repeat(n);
        assert_eq!(run_with(&lines, Limits::default()), Step::Done(Value::from(n as f64 + 1.0)));
        let items = format!("[{}].length", "1, ".repeat(n));
        assert_eq!(run_with(&items, Limits::default()), Step::Done(Value::from(n as f64)));
        let tries = "try { 1 } finally { 2 }\n".repeat(n / 10);
        assert!(matches!(run_with(&tries, Limits::default()), Step::Done(_)));
    });
}

/// What many open calls cost grows with their number and no faster.
#[test]
fn wide_parallels_are_flat() {
    for call in ["() => llm(\"q\")", "llm(\"q\")"] {
        let source = format!("parallel(range(30000).map(x => {call}), {{mode: \"quorum\"}})");
        let Step::Need { effects, .. } = run_with(&source, Limits::default()) else { panic!("{source}") };
        assert_eq!(effects.len(), 30_000);
    }
}

#[test]
fn too_many_names_are_an_error() {
    let many: String = (0..70_000).map(|i| format!("x{i} = {i}\n")).collect();
    let errors = match Program::compile(&many, &CompileOptions::default()) {
        Err(errors) => errors,
        Ok(_) => return,
    };
    assert_eq!(errors[0].code, "syntax");
}

#[test]
fn speculation_is_not_exponential() {
    on_small_stack(|| {
        let n = 60;
        let source = "{a = () => ".repeat(n) + "1" + &"}".repeat(n);
        let _ = Program::compile(&source, &CompileOptions::default());
        let source = "{a = [".repeat(n) + "1" + &"]}".repeat(n);
        let _ = Program::compile(&source, &CompileOptions::default());
        let wide = "{a = 1 {".repeat(20_000);
        let _ = Program::compile(&wide, &CompileOptions::default());
        let wide = "[1] ~> x ".repeat(20_000);
        let _ = Program::compile(&wide, &CompileOptions::default());
    });
}
