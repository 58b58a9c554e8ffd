use super::*;
use crate::{
    AgentInfo, Answer, CompileOptions, EffectKind, Host, Limits, Outcome, Program, Step as Next, Value,
};

fn explained(source: &str) -> Explanation {
    explain(source, &CompileOptions::default()).unwrap_or_else(|errors| panic!("{source}: {errors:?}"))
}

fn most(explanation: &Explanation) -> String {
    match &explanation.most {
        Most::Of(amount) => amount.to_string(),
        Most::Unbounded(reason) => format!("line {}: {}", reason.line, reason.why),
    }
}

/// Programs with the least and the most calls of them.
const BOUNDS: &[(&str, &str, &str)] = &[
    ("1 + 1", "0", "0"),
    ("agents[0].analyze()", "1", "1"),
    ("agents[0].analyze(llm(\"q\"), executePattern(\"p\"))", "3", "3"),
    ("sleep(10)", "0", "0"),
    // What goes over agents or the input.
    ("agentResults.length + successfulResults.length", "n", "n"),
    ("if (input.all) { agentResults }\nfor a in agents { agentResults }", "0", "n"),
    ("for a in agents { a.analyze() }", "n", "n"),
    ("for a in agents { a.analyze()\na.analyze() }", "2n", "2n"),
    ("agents.map(a => a.analyze())", "n", "n"),
    ("map(agents, a => a.analyze())", "n", "n"),
    ("parallel(agents.map(a => () => a.analyze()))", "0", "n"),
    ("parallel(agents.map(a => () => a.analyze()), { mode: \"quorum\" })", "0", "n"),
    ("race(agents.map(a => a.analyze()))", "0", "n"),
    ("Promise.all([llm(\"a\"), llm(\"b\")])", "2", "2"),
    ("for x in input.items { llm(x) }", "one per element of input.items", "one per element of input.items"),
    (
        "for x in input.items ?? [1, 2] { llm(x)\nllm(x) }",
        "2 per element of input.items (2 if not given)",
        "2 per element of input.items (2 if not given)",
    ),
    (
        "for x in input.items { for a in agents { a.analyze() } }",
        "n per element of input.items",
        "n per element of input.items",
    ),
    (
        "for g in input.groups { for x in g.items { llm(x) } }",
        "0",
        "input.groups.length × input.groups[].items.length",
    ),
    ("for i in range(input.tries ?? 2) { llm(\"q\") }", "input.tries ?? 2", "input.tries ?? 2"),
    ("for i in range(max(0, input.tries)) { llm(i) }", "input.tries", "input.tries"),
    ("for i in range(2, 5) { llm(\"q\") }", "3", "3"),
    ("for i in range(5, 2) { llm(\"q\") }", "0", "3"),
    ("for let i = 0; i < agentCount; i += 1 { agents[i].analyze() }", "n", "n"),
    ("for let i = 1; i <= 6; i = i + 2 { llm(\"q\") }", "0", "(6) ÷ (2)"),
    // Ways out and branches.
    ("for a in agents { a.analyze()\nbreak }", "0", "1"),
    ("for a in agents { if (a.id == \"x\") { continue }\na.analyze() }", "0", "n"),
    ("if (input.no) { return 1 }\nllm(\"q\")", "0", "1"),
    (
        "if (input.a) { llm(\"a\") } else if (input.b) { llm(\"b\")\nllm(\"c\") } else { llm(\"d\") }",
        "1",
        "2",
    ),
    ("input.a ? llm(\"a\") : 1", "0", "1"),
    ("input.a && llm(\"a\") && llm(\"b\")", "0", "2"),
    ("input.a ?? llm(\"a\")", "1", "1"),
    ("match input.a { 1 => llm(\"a\"), x if x > llm(\"b\") => 2, _ => llm(\"c\") }", "1", "2"),
    ("uncertain if (input.a ~> 0.9) { high { llm(\"a\") } default { 1 } }", "0", "1"),
    ("try { llm(\"a\")\nllm(\"b\") } catch { llm(\"c\") }", "1", "3"),
    (
        "let xs = []\nparallel([() => { xs = agents\nlet y = xs[9]\nxs = [] }])\nxs.map(a => a.analyze())",
        "0",
        "n",
    ),
    ("try { llm(\"a\") } finally { llm(\"b\") }", "2", "2"),
    ("function f() { try { return llm(\"a\") } finally { llm(\"b\") } }\nf()", "2", "2"),
    (
        "let xs = agents\ntry { xs = []\nllm(\"a\") } catch { xs = agents }\nfor x in xs { x.analyze() }",
        "0",
        "n + 1",
    ),
    ("let xs = []\ntry { xs = agents\nllm(1)\nxs = [] } catch { for x in xs { x.analyze() } }", "0", "n + 1"),
    // Lists that grow and shrink.
    ("let xs = []\nfor a in agents { xs = xs.push(a).push(a) }\nxs.map(a => a.analyze())", "2n", "2n"),
    (
        "let xs = []\nfor a in agents { if (a.id == \"x\") { xs = xs.push(a) } }\nxs.map(a => a.analyze())",
        "0",
        "n",
    ),
    ("agents.reduce((all, a) => all.push(a), []).map(a => a.analyze())", "n", "n"),
    ("agents.filter(a => a.id == \"x\").map(a => a.analyze())", "0", "n"),
    ("agents.slice(1).map(a => a.analyze())", "n - 1", "n - 1"),
    ("agents.slice(0, 2).map(a => a.analyze())", "0", "2"),
    ("[1, ...agents].map(a => llm(\"q\"))", "n + 1", "n + 1"),
    (
        "let xs = agents\nlet ys = xs\nfor i in [1, 2] { xs = ys.map(y => y)\nys = xs }\nys.map(y => y.analyze())",
        "n",
        "n",
    ),
    ("for a in sortBy(\"id\")(agents) { a.analyze() }", "n", "n"),
    ("let { analyze } = agents[0]\nanalyze()", "1", "1"),
    // Functions.
    ("function f(xs) { return xs.map(x => llm(x)) }\nf([1])\nf([1, 2])", "3", "3"),
    (
        "function mk(xs) { return () => xs.map(x => llm(x)) }\nlet g = mk([1, 2, 3])\nlet h = mk([1])\ng()",
        "1",
        "3",
    ),
    ("let f = input.a ? (() => llm(\"a\")) : (() => 1)\nf()", "0", "1"),
    ("confidence(0.5)(x => llm(x))(1)", "1", "1"),
    ("input.f()", "0", "0"),
    ("function f(n) { return n <= 0 ? 0 : f(n - 1) }\nf(3)", "0", "0"),
    ("llm(\"q\", { extractor: r => llm(\"again\") })", "2", "2"),
    // No most.
    ("let i = 0\nwhile i < 3 { llm(\"q\")\ni += 1 }", "3", "3"),
    ("let i = 0\nwhile i < 3 && input.more { i = i + 1\nllm(\"q\") }", "0", "3"),
    ("let i = 0\nwhile i < 3 { if (input.no) { break }\nllm(\"q\")\ni += 1 }", "0", "3"),
    (
        "let i = 0\nwhile i < (input.tries ?? 2) { llm(\"q\")\ni += 1 }",
        "input.tries ?? 2",
        "input.tries ?? 2",
    ),
    ("let xs = [1]\nwhile xs.length < 4 { xs = xs.push(llm(\"q\")) }", "3", "3"),
    (
        "let i = 0\nwhile i < 3 { if (input.no) { continue }\nllm(\"q\")\ni += 1 }",
        "0",
        "line 2: `while i < 3` may go round any number of times",
    ),
    (
        "let i = 0\nwhile i < 3 { llm(\"q\")\nif (input.x) { i += 1 } }",
        "0",
        "line 2: `while i < 3` may go round any number of times",
    ),
    (
        "let i = 0\nlet f = () => { i = 0 };\nwhile i < 3 { llm(\"q\")\nf()\ni += 1 }",
        "0",
        "line 3: `while i < 3` may go round any number of times",
    ),
    ("while true {\nllm(\"q\") }", "0", "line 1: `while true` may go round any number of times"),
    ("while llm(\"q\") > 0 { 1 }", "1", "line 1: `while llm(\"q\") > 0` may go round any number of times"),
    ("while true { if (input.a) { llm(\"q\")\nbreak } }", "0", "1"),
    ("do { llm(\"q\") } while input.a", "1", "line 1: `do … while input.a` may go round any number of times"),
    (
        "let x = 1\nfunction f(n) { llm(\"q\")\nreturn f(n - 1) }\nf(3)",
        "1",
        "line 2: `f` calls itself, any number of times",
    ),
    (
        "fn h(k) { if (k == 0) { 0 } else { h(k - 1)\nllm(\"x\") } }\nh(3)",
        "0",
        "line 1: `h` calls itself, any number of times",
    ),
    (
        "let a = llm(\"q\")\nfor x in a { llm(x) }",
        "1",
        "line 2: how long `a` is cannot be told before the run",
    ),
    (
        "let xs = [1]\nwhile xs.length < 9 { xs = xs.concat([1]) }\nxs.map(x => llm(x))",
        "1",
        "line 2: `while xs.length < 9` may go round any number of times",
    ),
    ("import { f } from \"./f\"\nf()", "0", "line 1: what other files do is not looked at"),
];

#[test]
fn calls_are_bounded_from_both_sides() {
    let wrong = BOUNDS.iter().filter_map(|(source, least, at_most)| {
        let found = explained(source);
        let (low, high) = (found.least.to_string(), most(&found));
        (low != *least || high != *at_most).then(|| format!("{source}\n  {low} .. {high}"))
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs a program, of which every call but each fourth is answered: how many it made, and whether it ended well.
fn performed(source: &str, agents: u64, input: &Value) -> (f64, bool) {
    let program = Program::compile(source, &CompileOptions::default()).unwrap();
    let agent = |n| AgentInfo { id: format!("a{n}"), ..AgentInfo::default() };
    let mut run = program.start(Host {
        agents: (0..agents).map(agent).collect(),
        data: input.clone(),
        limits: Limits { effects: 200, steps: 20_000, ..Limits::default() },
        ..Host::default()
    });
    let (mut outcomes, mut calls) = (vec![], 0);
    loop {
        match run.step(std::mem::take(&mut outcomes)) {
            Next::Need { effects, .. } => {
                for effect in effects {
                    let call = !matches!(effect.kind, EffectKind::Sleep { .. });
                    calls += i32::from(call);
                    outcomes.push((
                        effect.id,
                        match calls % 4 {
                            0 if call => Outcome::Failed { code: "gone".into(), message: "gone".into() },
                            n => Outcome::Answer(Answer {
                                value: (f64::from(n)).into(),
                                confidence: Some(0.7),
                                ..Answer::default()
                            }),
                        },
                    ));
                }
            }
            Next::Done(_) => return (calls.into(), true),
            Next::Failed(_) => return (calls.into(), false),
        }
    }
}

#[test]
fn runs_keep_within_the_bounds() {
    let inputs = [
        "null",
        r#"{"items": [1, 2, 3], "tries": 3, "a": 1, "all": true, "groups": [{"items": [1, 2]}, {"items": []}]}"#,
        r#"{"items": [], "tries": -1.5, "a": null, "no": 1, "b": 1, "groups": []}"#,
        r#"{"items": "text", "tries": 2.5, "a": "x", "groups": [{"items": [1]}, {"items": [1, 2, 3]}]}"#,
    ];
    for (source, ..) in BOUNDS.iter().filter(|(source, ..)| !source.starts_with("import")) {
        let said = explained(source);
        for (agents, input) in [0, 1, 3].into_iter().flat_map(|n| inputs.map(|input| (n, input))) {
            let given = Value::from_json(&serde_json::from_str(input).unwrap());
            let (calls, done) = performed(source, agents, &given);
            let least = said.least.with(agents, &given);
            assert!(
                !done || least <= calls,
                "{source}: {calls} calls of {agents} agents, not {least}; {input}"
            );
            if let Most::Of(most) = &said.most {
                let most = most.with(agents, &given);
                assert!(calls <= most, "{source}: {calls} calls of {agents} agents, not {most}; {input}");
            }
        }
    }
}

#[test]
fn amounts_are_known_once_the_input_is() {
    let found = explained(
        "for g in input.groups { for x in g.items { llm(x) } }\nfor i in range(input.n ?? agentCount) { llm(\"q\") }",
    );
    let Most::Of(most) = &found.most else { panic!("{found:?}") };
    let given = |text: &str| Value::from_json(&serde_json::from_str(text).unwrap());
    let input = given(r#"{"groups": [{"items": [1, 2]}, {"items": [1, 2, 3]}, {}], "n": 2}"#);
    assert_eq!((most.with(5, &input), found.least.with(5, &input)), (11.0, 2.0));
    assert_eq!(most.with(5, &given("null")), 5.0);
    assert_eq!(
        (most.figure(Some(5)), explained("agents.map(a => a.analyze())").least.figure(Some(5))),
        (None, Some(5.0))
    );
}

#[test]
fn what_is_too_involved_is_given_up_and_not_followed_forever() {
    let twice: String =
        (1..40).map(|n| format!("function f{n}() {{ f{}()\nf{}() }}\n", n - 1, n - 1)).collect();
    let nested = "for a in agents { ".repeat(30) + "a.analyze()" + &" }".repeat(30);
    let deep = "(".repeat(140) + "llm(\"q\")" + &")".repeat(140);
    let tower = "x = [x, x]\n".repeat(200);
    for source in [
        format!("function f0() {{ llm(\"q\") }}\n{twice}f39()"),
        nested,
        deep,
        format!("let x = agents\n{tower}x[0][0].analyze()\nx()"),
    ] {
        let found = explained(&source);
        let least = found.least.figure(Some(1)).unwrap();
        assert!(least <= 1.0, "{least}");
    }
}

#[test]
fn steps_stand_as_they_are_written() {
    let found = explained(
        "function ask(a) {\n  return a.analyze(\"look\")\n}\nparallel(agents.map(a => ask(a)))\nif (input.more) { llm(\"q\") }",
    );
    let steps = serde_json::to_value(&found.steps).unwrap();
    assert_eq!(steps[0]["step"], "together");
    let each = &steps[0]["steps"][0];
    assert_eq!((&each["over"], &each["times"]["of"]), (&"each of agents".into(), &"n".into()));
    assert_eq!(each["steps"][0]["name"], "ask");
    assert_eq!(each["steps"][0]["steps"][0]["what"], "look");
    assert_eq!(steps[1]["condition"], "input.more");
    assert_eq!(steps[1]["arms"][0]["steps"][0]["asked"], "model");
}

#[test]
fn charts_hold_nothing_that_ends_a_label() {
    let chart =
        explained("agents[0].analyze(\"a \\\"b\\\" [c] {d} <e> #f; \\n end |g| `h` 🦀 ; %%\")").mermaid();
    assert_eq!(
        chart,
        "flowchart TD\n  s1([\"start\"])\n  s2[\"ask an agent: a #34;b#34; #91;c#93; #123;d#125; #60;e#62; \
         #35;f#59; end #124;g#124; #96;h#96; 🦀 #59; #37;#37;\"]\n  s3([\"result\"])\n  s1 --> s2\n  s2 --> s3\n"
    );
}
