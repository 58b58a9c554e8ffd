//! Programs, and how their effects end, made of bytes: whoever supplies the bytes, the tests here or the fuzzer
//! (`fuzz/`), explores the same space, and fewer or smaller bytes make a simpler program.

use parallax_prism::*;
use serde_json::json;
use std::collections::BTreeMap;

/// Bytes, spent one decision at a time. When they are used up, every decision is the first alternative.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl Choices<'_> {
    /// 0 to n, n not included.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let width = if n > 256 { 2 } else { 1 };
        let (taken, rest) = self.0.split_at(width.min(self.0.len()));
        self.0 = rest;
        taken.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)) % n
    }

    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

const LIMITS: Limits = Limits { steps: 30_000, depth: 300, memory: 1 << 20, output: 10_000, effects: 200 };

fn host() -> Host {
    let agent = |n: &str| AgentInfo { id: n.into(), name: n.into(), ..AgentInfo::default() };
    let data = Value::from(json!({"task": "t", "data": [1, {"a": null}], "k": 0.5}));
    Host { agents: vec![agent("a"), agent("b")], data, limits: LIMITS, ..Host::default() }
}

fn outcome(choices: &mut Choices) -> Outcome {
    let failed = |code: &str| Outcome::Failed { code: code.into(), message: "bad".into() };
    let answer = |value, confidence| {
        Outcome::Answer(Answer { value, confidence: Some(confidence), ..Answer::default() })
    };
    match choices.below(10) {
        0 => answer("yes".into(), 0.8),
        1 => Outcome::Value(Value::from(7.0)),
        2 => failed("luck"),
        3 => failed("no_llm_provider"),
        4 => Outcome::Value(json!([1, "x", {"content": "c", "confidence": 0.3}]).into()),
        5 => Outcome::Value((0..200).fold(Value::null(), |inner, _| Value::array([inner]))),
        6 => answer(Value::null(), choices.pick(&[1.5, -0.1, f64::NAN, f64::INFINITY])),
        _ => answer(json!({"v": [1, true]}).into(), choices.below(5) as f64 / 4.0),
    }
}

/// A run and what it has asked for.
struct Driven {
    run: Run,
    open: BTreeMap<EffectId, EffectKind>,
    cancelled: Vec<EffectId>,
    end: Option<Step>,
}

impl Driven {
    fn start(program: &Program) -> Driven {
        let run = program.start(host());
        let mut driven = Driven { run, open: BTreeMap::new(), cancelled: vec![], end: None };
        driven.step(&[]);
        driven
    }

    fn step(&mut self, outcomes: &[(EffectId, Outcome)]) {
        for (id, _) in outcomes {
            self.open.remove(id);
        }
        match self.run.step(outcomes.to_vec()) {
            Step::Need { effects, cancelled } => {
                self.open.extend(effects.into_iter().map(|effect| (effect.id, effect.kind)));
                self.open.retain(|id, _| !cancelled.contains(id));
                self.cancelled.extend(cancelled);
                assert_eq!(self.run.open_effects() > 0, !self.open.is_empty());
                assert!(self.open.keys().all(|id| id.0 <= LIMITS.effects));
            }
            end => self.end = Some(end),
        }
    }

    /// All that can be seen of it. NaN is itself here.
    fn seen(&self) -> String {
        match &self.end {
            Some(end) => format!("{end:?} {:?}", self.run.output()),
            None => format!("{:?} {:?}", self.open, self.run.output()),
        }
    }
}

/// Checks and compiles, runs to the end with outcomes in any order, and rebuilds the run from its journal, in groups.
pub(crate) fn exercise(source: &str, profile: Profile, choices: &mut Choices) {
    let options = CompileOptions { name: "/m.prism".into(), profile, modules: Some(Default::default()) };
    let found = check(source, &options, &CheckOptions { known: vec![], pattern: true });
    for diagnostic in &found {
        diagnostic.render(source);
    }
    let Ok(program) = Program::compile(source, &options) else {
        return assert!(!found.is_empty(), "{source}");
    };
    let mut first = Driven::start(&program);
    let (mut journal, mut seen) = (Vec::new(), vec![first.seen()]);
    while first.end.is_none() {
        assert!(!first.open.is_empty(), "stuck:\n{source}");
        let late = choices.below(8) == 7 && !first.cancelled.is_empty();
        let id = match late {
            true => first.cancelled.swap_remove(choices.below(first.cancelled.len())),
            false => *first.open.keys().nth(choices.below(first.open.len())).expect("one of them"),
        };
        journal.push((id, outcome(choices)));
        first.step(&journal[journal.len() - 1..]);
        seen.push(first.seen());
    }
    assert!(first.run.output().iter().map(String::len).sum::<usize>() <= LIMITS.output as usize);
    if let Some(Step::Failed(fault)) = &first.end {
        fault.render(source);
        assert!(fault.line >= 1);
    }
    let (mut again, mut fed) = (Driven::start(&program), 0);
    while fed < journal.len() {
        let group = (4 - choices.below(4)).min(journal.len() - fed);
        again.step(&journal[fed..fed + group]);
        fed += group;
        assert_eq!(again.seen(), seen[fed], "after {fed} outcomes of {journal:?}:\n{source}");
    }
}

const PUNCTUATION: &str = "( ) [ ] { } , ; : . ?. ~. ... = == === != !== + - * / % ** < <= > >= && || ?? ? ! ~ ~> <~ \
    ~~ ~+ ~- ~* ~/ ~?? ~||> ~@> ~?> ~|> |> ~? ~&& ~|| ~== ~!= ~< ~<= ~>= => -> += -= ~+= _ \" \"a${ }\" ``` // /* */ \
    0 1 0.5 2 \"s\" x y f xs o";

/// Words of the language.
pub(crate) fn tokens() -> Vec<&'static str> {
    let names = symbols::entries(Profile::Pattern).chain(symbols::methods(Profile::Pattern));
    PUNCTUATION.split(' ').chain(symbols::keywords()).chain(names.map(|entry| entry.name)).collect()
}

/// A program of the grammar: it parses, and mostly does something.
pub(crate) fn program(choices: &mut Choices) -> String {
    let mut source = String::from(
        "x = 1; y = \"a\"; z = 2 ~> 0.6; xs = [1, z]; o = {a: 1, b: [2]}; f = x => [x]; g = f;\n\
         async function w(...ys) { x = await sleep(1); y = ys; await llm(\"q\"); [x, ys] }\n",
    );
    for _ in 0..6 {
        grow('t', 6, choices, &mut source);
    }
    source
}

/// The alternatives for `$` and this letter in others: those that end, by spaces, and those that go on, by lines.
fn rule(hole: char) -> Option<(&'static str, &'static str)> {
    Some(match hole {
        'n' => ("x y z xs o f g", ""),
        'k' => ("0.9 0.6 0.2 2 (0.5)", ""),
        'o' => (
            "+ - * / % ** < <= > >= == != === !== && || ?? ~+ ~- ~* ~== ~!= ~< ~>= ~&& ~|| ~?? ~||> ~@> ~~ instanceof",
            "",
        ),
        'e' => (
            "$n $n $n 0 1 2 0.5 7 \"\" \"a\" \"12x\" null true [] ({}) agents input agentResults",
            EXPRESSIONS,
        ),
        // Effects.
        'a' => ("now() random() sleep(1) delay(2)", EFFECTS),
        // Calls for `parallel`.
        'c' => (
            "[] agents [$a,$a]",
            "[$a, $a]\n[$e, $a, $f]\n[$a, () => $a, () => $a]\nagents.map(z => $a)\nagents.map($f)\n[$w, $w]\n[$w, $a, $w]\n\
             agents.map(z => $w)\n[w($e), w($e)]\n[w(y), $w, w($a)]",
        ),
        // Arrays, most of them; and what is in one, or in a call.
        'x' => (
            "xs xs [1,2] agents agentResults [$e,$n]",
            "xs\n[$l]\nagents\nagentResults\nrange(3)\nparallel($c)\n($e)",
        ),
        'i' => ("$e ...$x", ""),
        'l' => ("$i", "\n$i\n$i, $i\n$i, $i, $i"),
        // Functions of one parameter, and of two.
        'f' => ("z=>z", "z => $e\nz => $a\nz => $b\n() => $a"),
        'g' => ("(z,y)=>z", "(z, y) => $e\n(z, y) => $b"),
        // Functions that wait, and go on.
        'w' => (
            "w ()=>(await$a)",
            "() => { await $a; $s $e }\n() => { $n = await $a; $n += 1; $a }\nasync () => { try { await $a; $s} catch (e) { x = e } await $a }\n\
             () => { for z in xs { await $a; $s} $e }\n() => { $s try { (await $a) + 1 } finally { print(x) } }\n\
             () => { await parallel($c); $s y }\n() => race([$w, $w])",
        ),
        'b' => ("{}", "{ $s}\n{ $s$s}\n{ $s return $e; }\n{ }"),
        's' => ("$n=$e;", STATEMENTS),
        // Most of what is random fails, and the program should go on.
        't' => (
            "",
            "$s\ntry { $s} catch (e) { print(e) }\ntry { $s$s} catch (e) { x = e }\ntry { $s} catch { $s}",
        ),
        _ => return None,
    })
}

const EXPRESSIONS: &str = r#"$n
($e $o $e)
($e $o $e)
($e $o $e)
$a
($e ~> $k)
!($e)
-($e)
<~ ($e)
(typeof $e)
(await $e)
[$l]
({a: $e, b: $e})
({...o, $n: $e})
($e ? $e : $e)
($e ~? $e : $e)
o.a
($e).a
($e)?.b
($e)~.a
$x.length
$x[$e]
($e)["a"]
$x.push($l)
$x.map($f)
$x.map(async z => { await $a; $s [z, $e] })
$x.map(w)
$x.filter($f)
$x.find($f)
$x.every($f)
$x.forEach($g)
$x.reduce($g, $e)
$x.sort($g)
$x.concat($e)
$x.slice($e)
$x.join($e)
($f)($e)
"<${$e}>"
($e |> [_, $e])
($e ~|> [_, $e])
($e ~?> [$k, $e])
match $e { [x, ...y] => $e, {a} ~> 0.5 => $b, n if $e => n, _ => $e }
max($l)
print($e)
majorityVote($x)
consensus($x)
synthesize($x)
aggregate([$l], {combine: $f})
sortBy("a")([$l])
groupBy($f)([$l])
threshold($k)([$l])
(confidence($k)($f))($e)
(debounce(5)($f))($e)"#;

const EFFECTS: &str = r#"agents[0].analyze("t", 1)
agents[1].analyze("t", $e)
executePattern("p", $e)
llm("q")
llm("q", {extractor: $f})
stream_llm("q").next()
stream_llm("q").result()
parallel($c)
parallel($c, {mode: "first"})
parallel($c, {mode: "quorum", n: 1})
parallel($c, {maxConcurrency: 1})
parallel($c, {mode: "quorum", maxConcurrency: 2})
race($c)
Promise.all($c)
parallel([$w, $w, $w], {maxConcurrency: 2})
race([$w, $w])
Promise.all([w($e), w($a)])
Promise.resolve($a)
agents.map(z => z.analyze("t", $e))
successfulResults.map($f)
agentResults"#;

const STATEMENTS: &str = r#"$n = $e;
$n = $a;
$n += $e;
$n ~+= 1;
(z ~> $k) ~+ $e;
{ let v = $e; const w = $a; x = [v, w]; v = $e; f = () => [v, w, $a]; }
{ let [v, w] = xs; let {a: u} = o; y = [u, v, w]; }
if ($e) $b else $b
for z, y in $x $b
for let i = 0; i < 3; i += 1 { $s if ($e) { break; } $s}
for z in xs { if ($e) { continue; } $s}
while $e { $s break; }
try $b catch (e) $b
try { $n = $a; $s} catch { $s}
try $b finally $b
uncertain if ($e ~> $k) { high $b medium $b default $b }
uncertain if ($a) { low $b default $b }
function f(x, ...y) $b
xs = xs.push($e);
x = x + x;
xs = [...xs, x];
$e;
$a;"#;

fn grow(hole: char, depth: u32, choices: &mut Choices, source: &mut String) {
    let Some((ends, more)) = rule(hole) else { return };
    let alternatives: Vec<&str> =
        if depth == 0 || more.is_empty() { ends.split(' ').collect() } else { more.lines().collect() };
    let mut parts = choices.pick(&alternatives).split('$');
    source.push_str(parts.next().unwrap_or_default());
    for part in parts {
        match part.chars().next().filter(|letter| rule(*letter).is_some()) {
            Some(letter) => {
                grow(letter, depth.saturating_sub(1), choices, source);
                source.push_str(&part[1..]);
            }
            None => {
                source.push('$');
                source.push_str(part);
            }
        }
    }
    if hole == 's' {
        source.push('\n');
    }
}
