//! Random programs: whatever the source, whatever the outcomes, nothing panics, hangs or depends on chance.
//!
//! The number of rounds is small so that the suite stays quick; `PRISM_ROUNDS=100000` looks harder.

use parallax_prism::*;
use serde_json::json;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len())]
    }
}

fn rounds(usual: u64) -> u64 {
    std::env::var("PRISM_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

fn seeds() -> impl Iterator<Item = Random> {
    (1..=rounds(1500)).map(|seed| Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1))
}

const LIMITS: Limits = Limits { steps: 30_000, depth: 300, memory: 1 << 20, output: 10_000, effects: 200 };

fn host() -> Host {
    let agent = |n: &str| AgentInfo { id: n.into(), name: n.into(), ..AgentInfo::default() };
    let data = Value::from(json!({"task": "t", "data": [1, {"a": null}], "k": 0.5}));
    Host { agents: vec![agent("a"), agent("b")], data, limits: LIMITS, ..Host::default() }
}

fn outcome(kind: &EffectKind, random: &mut Random) -> Outcome {
    match (kind, random.below(5)) {
        (EffectKind::Now | EffectKind::Random, _) => Outcome::Value(Value::from(random.below(100) as f64)),
        (_, 0) => Outcome::Failed { code: "luck".into(), message: "bad".into() },
        (_, 1) => Outcome::Value(Value::from(json!([1, "x", {"content": "c", "confidence": 0.3}]))),
        (_, n) => Outcome::Answer(Answer {
            value: Value::from(json!({"v": n})),
            confidence: Some(n as f64 / 4.0),
            ..Answer::default()
        }),
    }
}

/// Runs to the end, with answers in random order, and again from the journal.
fn exercise(source: &str, profile: Profile, random: &mut Random) {
    let options = CompileOptions { name: "/m.prism".into(), profile, modules: Some(Default::default()) };
    let found = check(source, &options, &CheckOptions { known: vec![], pattern: true });
    for diagnostic in &found {
        let _ = diagnostic.render(source);
    }
    let Ok(program) = Program::compile(source, &options) else {
        assert!(!found.is_empty());
        return;
    };
    let mut run = program.start(host());
    let (mut open, mut journal) = (Vec::new(), Vec::new());
    let mut step = run.step(vec![]);
    let end = loop {
        match step {
            Step::Need { effects, cancelled } => {
                open.extend(effects);
                open.retain(|e: &Effect| !cancelled.contains(&e.id));
            }
            end => break end,
        }
        assert!(!open.is_empty(), "stuck:\n{source}");
        let effect = open.swap_remove(random.below(open.len()));
        journal.push((effect.id, outcome(&effect.kind, random)));
        step = run.step(vec![journal.last().cloned().expect("just pushed")]);
    };
    let mut again = program.start(host());
    let mut last = again.step(vec![]);
    for group in journal.chunks(1 + random.below(4)) {
        last = again.step(group.to_vec());
    }
    assert_eq!(format!("{last:?}"), format!("{end:?}"), "{source}");
    if let Step::Failed(fault) = &end {
        let _ = fault.render(source);
        assert!(fault.line >= 1);
    }
}

const TOKENS: [&str; 118] = [
    "let",
    "const",
    "x",
    "y",
    "f",
    "xs",
    "o",
    "1",
    "0",
    "0.5",
    "\"s\"",
    "\"a${",
    "}\"",
    "```",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ";",
    ":",
    ".",
    "?.",
    "~.",
    "...",
    "=",
    "==",
    "===",
    "!=",
    "+",
    "-",
    "*",
    "/",
    "%",
    "**",
    "<",
    "<=",
    ">",
    ">=",
    "&&",
    "||",
    "??",
    "?",
    "!",
    "~",
    "~>",
    "<~",
    "~~",
    "~+",
    "~??",
    "~||>",
    "~@>",
    "~?>",
    "~|>",
    "|>",
    "~?",
    "~&&",
    "~||",
    "~==",
    "~<",
    "=>",
    "->",
    "+=",
    "~+=",
    "_",
    "if",
    "else",
    "uncertain",
    "high",
    "medium",
    "low",
    "default",
    "in",
    "context",
    "agents",
    "function",
    "fn",
    "return",
    "match",
    "true",
    "null",
    "for",
    "while",
    "do",
    "break",
    "continue",
    "typeof",
    "instanceof",
    "import",
    "export",
    "from",
    "as",
    "async",
    "await",
    "try",
    "catch",
    "finally",
    "map",
    "filter",
    "reduce",
    "push",
    "analyze",
    "parallel",
    "agentResults",
    "input",
    "llm",
    "sleep",
    "length",
    "\n",
    "\n",
    " ",
    "//",
    "/*",
    "*/",
    "é",
    "`",
];

#[test]
fn token_soup() {
    for mut random in seeds() {
        let n = 1 + random.below(40);
        let source: Vec<&str> = (0..n).map(|_| random.pick(&TOKENS)).collect();
        exercise(&source.join(" "), Profile::Pattern, &mut random);
    }
}

#[test]
fn byte_soup() {
    for mut random in seeds() {
        let n = 1 + random.below(60);
        let source: String = (0..n).map(|_| char::from(32 + random.below(95) as u8)).collect();
        exercise(&source, Profile::Strict, &mut random);
    }
}

#[test]
fn damaged_cases() {
    let cases: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../cases.json")).expect("readable");
    for (case, mut random) in cases.iter().cycle().zip(seeds()) {
        let mut source: Vec<char> = case["program"].as_str().expect("a text").chars().collect();
        for _ in 0..1 + random.below(4) {
            let at = random.below(source.len().max(1)).min(source.len());
            match random.below(4) {
                0 if !source.is_empty() => drop(source.remove(at.min(source.len() - 1))),
                1 => {
                    let token = random.pick(&TOKENS);
                    source.splice(at..at, token.chars());
                }
                2 => {
                    let end = (at + random.below(10)).min(source.len());
                    let part: Vec<char> = source[at..end].to_vec();
                    source.splice(at..at, part);
                }
                _ => source.truncate(at),
            }
        }
        let source: String = source.into_iter().collect();
        exercise(&source, Profile::Pattern, &mut random);
        exercise(&source, Profile::Strict, &mut random);
    }
}

/// A program that parses: expressions and statements from the grammar.
struct Grammar<'a> {
    random: &'a mut Random,
    out: String,
}

impl Grammar<'_> {
    fn say(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn name(&mut self) {
        let name = self.random.pick(&["x", "y", "z", "xs", "o", "f", "g", "agents", "input", "agentResults"]);
        self.say(name);
    }

    fn list(&mut self, depth: u32, most: usize, each: fn(&mut Self, u32)) {
        for i in 0..self.random.below(most + 1) {
            if i > 0 {
                self.say(", ");
            }
            each(self, depth);
        }
    }

    fn expr(&mut self, depth: u32) {
        if depth == 0 {
            return match self.random.below(4) {
                0 => self.name(),
                1 => {
                    let x = self.random.pick(&["0", "1", "2", "0.5", "7"]);
                    self.say(x);
                }
                2 => {
                    let s = self
                        .random
                        .pick(&["\"\"", "\"a\"", "\"12x\"", "null", "true", "false", "[]", "({})"]);
                    self.say(s);
                }
                _ => self.name(),
            };
        }
        let depth = depth - 1;
        match self.random.below(22) {
            0..=4 => {
                const OPS: [&str; 30] = [
                    "+",
                    "-",
                    "*",
                    "/",
                    "%",
                    "**",
                    "<",
                    "<=",
                    ">",
                    ">=",
                    "==",
                    "!=",
                    "===",
                    "&&",
                    "||",
                    "??",
                    "~+",
                    "~-",
                    "~*",
                    "~==",
                    "~<",
                    "~&&",
                    "~||",
                    "~??",
                    "~||>",
                    "~@>",
                    "~>=",
                    "!==",
                    "instanceof",
                    "~!=",
                ];
                self.say("(");
                self.expr(depth);
                let op = self.random.pick(&OPS);
                self.say(&format!(" {op} "));
                self.expr(depth);
                self.say(")");
            }
            5 => {
                self.say("(");
                self.expr(depth);
                self.say(" ~> ");
                let c = self.random.pick(&["0.9", "0.6", "0.2", "x", "2"]);
                self.say(c);
                self.say(")");
            }
            6 => {
                let op = self.random.pick(&["!", "-", "<~ ", "typeof ", "await ", "~"]);
                self.say(op);
                self.say("(");
                self.expr(depth);
                self.say(")");
            }
            7 => {
                self.say("[");
                self.list(depth, 3, Self::item);
                self.say("]");
            }
            8 => {
                self.say("({a: ");
                self.expr(depth);
                self.say(", b: ");
                self.expr(depth);
                self.say("})");
            }
            9 => {
                self.say("(");
                self.expr(depth);
                let sure = self.random.pick(&[" ? ", " ~? "]);
                self.say(sure);
                self.expr(depth);
                self.say(" : ");
                self.expr(depth);
                self.say(")");
            }
            10 => {
                self.say("(");
                self.expr(depth);
                let member =
                    self.random.pick(&[").a", ")?.b", ")~.a", ").length", ").push(1)", ")[0]", ")[\"a\"]"]);
                self.say(member);
            }
            11 | 12 => {
                self.say("(");
                self.expr(depth);
                let method = self
                    .random
                    .pick(&["map", "filter", "find", "some", "every", "forEach", "reduce", "sort", "concat"]);
                self.say(&format!(").{method}("));
                self.lambda(depth, if matches!(method, "reduce" | "sort") { 2 } else { 1 });
                self.say(")");
            }
            13 => {
                self.say("(");
                self.lambda(depth, 1);
                self.say(")(");
                self.expr(depth);
                self.say(")");
            }
            14 => {
                self.say("\"<${");
                self.expr(depth);
                self.say("}>\"");
            }
            15 => {
                self.say("(");
                self.expr(depth);
                let pipe = self.random.pick(&[" |> ", " ~|> "]);
                self.say(pipe);
                self.say("[_, ");
                self.expr(depth);
                self.say("])");
            }
            16 => {
                self.say("match ");
                self.expr(depth);
                self.say(" { [x, ...y] => ");
                self.expr(depth);
                self.say(", {a} ~> 0.5 => { ");
                self.stmt(depth);
                self.say(" }, n if ");
                self.expr(depth);
                self.say(" => n, _ => ");
                self.expr(depth);
                self.say(" }");
            }
            17 => {
                let call = self.random.pick(&[
                    "agents[0].analyze(\"t\", ",
                    "executePattern(\"p\", ",
                    "max(",
                    "print(",
                ]);
                self.say(call);
                self.expr(depth);
                self.say(")");
            }
            18 => {
                let call = self.random.pick(&[
                    "parallel([",
                    "race([",
                    "Promise.all([",
                    "majorityVote([",
                    "consensus([",
                ]);
                self.say(call);
                self.list(depth, 3, Self::expr);
                self.say("])");
            }
            19 => {
                self.say("parallel(agents.map(");
                self.lambda(depth, 1);
                let options = self.random.pick(&[
                    ")",
                    "), {mode: \"first\"}",
                    "), {mode: \"quorum\", n: 1}",
                    "), {maxConcurrency: 1}",
                ]);
                self.say(options);
                self.say(")");
            }
            20 => {
                let call = self.random.pick(&[
                    "agents.map(a => a.analyze(\"t\", 1))",
                    "llm(\"q\")",
                    "now()",
                    "sleep(1)",
                ]);
                self.say(call);
            }
            _ => self.name(),
        }
    }

    fn item(&mut self, depth: u32) {
        if self.random.below(4) == 0 {
            self.say("...");
        }
        self.expr(depth);
    }

    fn lambda(&mut self, depth: u32, params: usize) {
        self.say(["() => ", "z => ", "(z, y) => "][params]);
        if self.random.below(3) == 0 {
            self.say("{ ");
            self.stmt(depth);
            self.stmt(depth);
            self.say(" }");
        } else {
            self.expr(depth);
        }
    }

    fn body(&mut self, depth: u32) {
        self.say("{ ");
        for _ in 0..self.random.below(3) {
            self.stmt(depth);
        }
        self.say("}\n");
    }

    fn stmt(&mut self, depth: u32) {
        if depth == 0 {
            self.name();
            self.say(" = ");
            self.expr(0);
            return self.say(";\n");
        }
        let depth = depth - 1;
        match self.random.below(16) {
            0..=3 => {
                self.name();
                let op = self.random.pick(&[" = ", " += ", " = ", " -= ", " ~+= "]);
                self.say(op);
                self.expr(depth);
                self.say(";\n");
            }
            4 | 5 => {
                let word = self.random.pick(&[
                    "let x = ",
                    "let y = ",
                    "const z = ",
                    "let [x, y] = ",
                    "let {a: x} = ",
                ]);
                self.say(word);
                self.expr(depth);
                self.say(";\n");
            }
            6 => {
                self.say("if (");
                self.expr(depth);
                self.say(") ");
                self.body(depth);
                self.say("else ");
                self.body(depth);
            }
            7 => {
                self.say("for z, y in ");
                self.expr(depth);
                self.say(" ");
                self.body(depth);
            }
            8 => {
                self.say("for let i = 0; i < 3; i += 1 ");
                self.body(depth);
            }
            9 => {
                self.say("try ");
                self.body(depth);
                let handler = self.random.pick(&["catch (e) ", "catch ", "finally "]);
                self.say(handler);
                self.body(depth);
            }
            10 => {
                self.say("uncertain if (");
                self.expr(depth);
                self.say(" ~> 0.6) { medium ");
                self.body(depth);
                self.say("default ");
                self.body(depth);
                self.say("}\n");
            }
            11 => {
                self.say("function f(x, ...y) ");
                self.body(depth);
            }
            12 => {
                self.say("xs = xs.push(");
                self.expr(depth);
                self.say(");\n");
            }
            13 => {
                self.say("return ");
                self.expr(depth);
                self.say(";\n");
            }
            14 => {
                let word =
                    self.random.pick(&["break;\n", "continue;\n", "x = x + x;\n", "xs = [...xs, x];\n"]);
                self.say(word);
            }
            _ => {
                self.expr(depth);
                self.say(";\n");
            }
        }
    }
}

#[test]
fn programs_from_the_grammar() {
    for mut random in seeds() {
        let mut grammar = Grammar {
            random: &mut random,
            out: "x = 1; y = \"a\"; xs = [1, 2]; o = {a: 1, b: [2]};\n".into(),
        };
        for _ in 0..6 {
            grammar.stmt(4);
        }
        let source = grammar.out;
        exercise(&source, Profile::Pattern, &mut random);
    }
}

#[test]
fn numbers_read_back_as_themselves() {
    for mut random in seeds() {
        let x = f64::from_bits(random.next());
        let y = random.below(1_000_000) as f64 / 1000.0;
        for x in [x, y, -y, x.trunc(), y * 1e18] {
            if x.is_finite() {
                let text = Value::from(x).to_string();
                assert_eq!(text.parse::<f64>().ok(), Some(if x == 0.0 { 0.0 } else { x }), "{text}");
            }
        }
    }
}

fn random_json(random: &mut Random, depth: u32) -> serde_json::Value {
    match random.below(if depth == 0 { 5 } else { 8 }) {
        0 => json!(null),
        1 => json!(random.below(2) == 0),
        2 => json!(random.below(1000)),
        3 => json!(random.below(1000) as f64 / 7.0),
        4 => json!(format!("s{}", random.below(50))),
        5 => (0..random.below(4)).map(|_| random_json(random, depth - 1)).collect(),
        6 => {
            json!({"$value": random_json(random, depth - 1), "$confidence": random.below(100) as f64 / 100.0})
        }
        _ => {
            let keys = (0..random.below(20)).map(|i| format!("k{i}"));
            serde_json::Value::Object(keys.map(|k| (k, random_json(random, depth - 1))).collect())
        }
    }
}

#[test]
fn values_read_back_as_themselves() {
    for mut random in seeds() {
        let value: Value = serde_json::from_value(random_json(&mut random, 4)).expect("any JSON is a value");
        let text = serde_json::to_string(&value).expect("any value is JSON");
        let back: Value = serde_json::from_str(&text).expect("it was written by us");
        assert_eq!(back, value);
        assert_eq!(serde_json::to_string(&back).expect("JSON"), text);
        assert_eq!(Value::from_json(&value.to_json()).to_json(), value.to_json());
    }
}

#[test]
fn things_move_between_threads() {
    fn movable<T: Send + Sync>() {}
    movable::<Program>();
    movable::<Value>();
    movable::<Outcome>();
    movable::<Interrupt>();
    fn sendable<T: Send>() {}
    sendable::<Run>();
}
