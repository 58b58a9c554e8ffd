//! Kinds, text forms, properties, indexes, arrays, objects, methods.

use super::support::*;

#[test]
fn text_of_numbers() {
    for (source, text) in [
        ("3.0", "3"),
        ("0.1", "0.1"),
        ("0.1 + 0.2", "0.30000000000000004"),
        ("10 ** 21", "1e+21"),
        ("10 ** 20", "100000000000000000000"),
        ("123456789 * 10 ** 13", "1.23456789e+21"),
        ("1 / 10000000", "1e-7"),
        ("1 / 1000000", "0.000001"),
        ("15 / 10000000", "0.0000015"),
        ("-1.5", "-1.5"),
        ("0 * -1", "0"),
        ("2 ** 5000", "Infinity"),
        ("-(2 ** 5000)", "-Infinity"),
        ("2 ** 53", "9007199254740992"),
        ("2 ** 53 + 2", "9007199254740994"),
        ("1 / 3", "0.3333333333333333"),
        ("100 / 3", "33.333333333333336"),
        ("5 * 10 ** -324", "0"),
        ("123.456 * 1000000", "123456000"),
    ] {
        both(&format!("\"\" + ({source})"), &format!("\"{text}\""));
    }
}

#[test]
fn text_of_values() {
    for (source, text) in [
        ("[1, [2, []], {}, {a: null}]", "[1, [2, []], {}, { a: null }]"),
        ("x => x", "[Function: lambda]"),
        ("print", "[Function: print]"),
        ("console.log", "[Function: log]"),
        ("[1].map", "[Function: map]"),
        ("5 ~> 0.8", "5 (~80.0%)"),
        ("5 ~> 0.655", "5 (~65.5%)"),
        ("5 ~> 0.12345", "5 (~12.3%)"),
        ("[1 ~> 1, \"s\" ~> 0]", "[1 (~100.0%), s (~0.0%)]"),
        ("Promise.resolve(1)", "[Promise]"),
    ] {
        both(&format!("\"${{{source}}}\""), &format!("\"{text}\""));
    }
    both("function area(w) { w }\n\"${area}\"", "\"[Function: area]\"");
}

#[test]
fn truth() {
    for source in ["1", "-1", "\"a\"", "\"0\"", "[]", "({})", "x => x", "Promise.resolve(0)", "1 ~> 0"] {
        both(&format!("!!({source})"), "true");
    }
    for source in ["0", "\"\"", "null", "undefined", "false", "0 ~> 1", "-0"] {
        both(&format!("!!({source})"), "false");
    }
    both("!!(2 ** 5000 - 2 ** 5000)", "true");
}

#[test]
fn types() {
    both("typeof Promise.resolve(1)", "\"unknown\"");
    both("typeof sleep(1)", "\"unknown\"");
    both("typeof (null ~> 0.5)", "\"null\"");
    both("typeof typeof 1", "\"string\"");
    both("null instanceof \"undefined\"", "true");
    both("print instanceof \"FUNCTION\"", "true");
}

#[test]
fn properties() {
    both("let o = null\no.a", "runtime property_on_invalid");
    both("let o = 5\no.a", "runtime property_on_invalid");
    both("true.a", "runtime property_on_invalid");
    both("(x => x).a", "runtime property_on_invalid");
    strict("({a: 1}).b", "runtime missing_property");
    pattern("({a: 1}).b", "null");
    pattern("({a: 1} ~> 0.5).b", "null");
    both("\"abc\".size", "runtime missing_property");
    both("[1].size", "runtime missing_property");
    both("null?.a", "null");
    both("(null ~> 0.5)?.a", "null");
    both("({a: 2 ~> 0.5} ~> 0.5)?.a", &sure("2", 0.25));
    both("({a: 2} ~> 0.5)?.a", &sure("2", 0.5));
    both("null~.a", &sure("null", 1.0));
    both("(null ~> 0.3)~.a", &sure("null", 0.3));
    both("5~.a", "runtime property_on_invalid");
    both("({a: 2 ~> 0.5})~.a", &sure("2", 0.5));
    both("[1, 2]~.length", &sure("2", 1.0));
    both("({if: 1, default: 2, agents: 3}).agents", "3");
    both("let o = {a: {b: {c: 7}}}\no.a.b.c", "7");
    both("\"naïve𝒳\".length", "7");
    both("([1, 2] ~> 0.4).length", &sure("2", 0.4));
}

#[test]
fn indexes() {
    both("[1, 2, 3][0]", "1");
    both("[1, 2][-1]", "runtime index_out_of_bounds");
    both("[1, 2][5]", "runtime index_out_of_bounds");
    both("[1, 2][0 - 0.5]", "runtime index_out_of_bounds");
    both("[1, 2][\"0\"]", "runtime bad_index");
    both("[1, 2][1 ~> 0.5]", "runtime bad_index");
    both("({a: 1})[0]", "runtime bad_index");
    both("({a: 1})[\"a\"]", "1");
    both("({a: 1})[\"b\"]", "null");
    both("({a: 1 ~> 0.9} ~> 0.2)[\"a\"]", &sure("1", 0.2));
    both("([1 ~> 0.9] ~> 0.2)[0]", &sure("1", 0.2));
    both("\"abc\"[0]", "runtime property_on_invalid");
    both("null[0]", "runtime property_on_invalid");
}

#[test]
fn literals() {
    both("[1, , 2]", "[1, null, 2]");
    both("[1, 2,]", "[1, 2]");
    both("[,]", "[null]");
    both("({a: 1, b: 2,})", r#"{"a": 1, "b": 2}"#);
    both("({a: 1, a: 2})", r#"{"a": 2}"#);
    both("let a = 1\n({a, \"b c\": 2})", r#"{"a": 1, "b c": 2}"#);
    both("[...[1, 2], 3, ...[], ...[4]]", "[1, 2, 3, 4]");
    both("[...([1] ~> 0.5)]", "[1]");
    both("[...null]", "runtime spread_type");
    both("({...[1]})", "runtime spread_type");
    both("({...{a: 1}, a: 2, ...{b: 3}})", r#"{"a": 2, "b": 3}"#);
    both("({x: 1, ...({y: 2} ~> 0.5)})", r#"{"x": 1, "y": 2}"#);
    both("max(...[1, 5, 3])", "5");
    both("max(...([1] ~> 0.5))", "runtime spread_type");
    both("max(...5)", "runtime spread_type");
    let many: Vec<String> = (0..300).map(|i| i.to_string()).collect();
    both(&format!("[{}].length", many.join(",")), "300");
    both(&format!("max({})", many.join(",")), "299");
    let keys: Vec<String> = (0..200).map(|i| format!("k{i}: {i}")).collect();
    both(&format!("({{{}}}).k150", keys.join(",")), "150");
}

#[test]
fn data_is_immutable() {
    both("let a = [1]\nlet b = a\na = a.push(2)\n[a, b]", "[[1, 2], [1]]");
    both("let a = [1]\nlet b = a\na = [...a, 2]\n[a, b]", "[[1, 2], [1]]");
    both("let s = \"a\"\nlet t = s\ns += \"b\"\n[s, t]", r#"["ab", "a"]"#);
    both(
        "let s = \"a\"\nlet f = () => s\nlet before = s\ns = s + \"b\" + 1\n[f(), before]",
        r#"["ab1", "a"]"#,
    );
    both("let a = [1]\nlet f = () => a\nlet before = f()\na = a.push(2)\n[f(), before]", "[[1, 2], [1]]");
    both("let xs = [1]\nlet keep = ys => ys.push(9)\nlet zs = keep(xs)\n[xs, zs]", "[[1], [1, 9]]");
    both("let a = {x: [1]}\nlet b = {...a}\nlet c = a.x.push(2)\n[a.x, b.x, c]", "[[1], [1], [1, 2]]");
    both("let xs = [1, 2]\nxs.reduce((acc, x) => [...acc, x * 2], xs)\nxs", "[1, 2]");
}

#[test]
fn growing_in_place_keeps_meaning() {
    both("let s = 1\ns = s + 2 + \"a\"\ns", "\"3a\"");
    both("let s = \"a\"\ntry { s = s + (1 / 0) } catch { }\ns", "\"a\"");
    both("let n = 1\ntry { n = n + 2 + true } catch { }\nn", "1");
    both("let s = \"a\" ~> 0.5\ns = s + \"b\"\ns", &sure("\"ab\"", 0.5));
    both("let s = \"a\"\ns = s + (\"b\" ~> 0.5)\ns", &sure("\"ab\"", 0.5));
    both("let s = \"a\"\ns = s + \"b\" + (\"c\" ~> 0.25)\ns", &sure("\"abc\"", 0.25));
    both("let a = [1] ~> 0.5\na = a.push(2)\na", &sure("[1, 2]", 0.5));
    both("let a = [1] ~> 0.5\na = [...a, 2]\na", "[1, 2]");
    pattern("let o = {push: x => x + 1}\no = o.push(4)\no", "5");
    both("let a = null\na = a.push(1)", "runtime property_on_invalid");
    both(
        "let f = () => { let t = \"\"\n let add = c => { t = t + c }\n add(\"x\"); add(\"y\")\n return t }\nf()",
        "\"xy\"",
    );
    both("let a = []\na = a.push(a)\na = a.push(a)\na", "[[], [[]]]");
    both("let s = \"a\"\ns = s + s + s\ns", "\"aaa\"");
}

#[test]
fn array_methods() {
    both("[1, 2, 3].map(x => x * 2)", "[2, 4, 6]");
    both("[1, 2].map((a, b) => a)", "runtime arity");
    both("[1, 2].map(5)", "runtime bad_argument");
    both("[1].map()", "runtime arity");
    both("map([1], x => x, 1)", "runtime arity");
    both("map(5, x => x)", "runtime bad_argument");
    both("filter([1, 2, 3] ~> 0.5, x => x > 1)", &sure("[2, 3]", 0.5));
    both("([1, 2, 3] ~> 0.5).filter(x => x > 1)", &sure("[2, 3]", 0.5));
    both("reduce([1, 2] ~> 0.5, (a, b) => a + b)", &sure("3", 0.5));
    both("reduce([1 ~> 0.9, 2] ~> 0.5, (a, b) => a + b)", &sure("3", 0.9));
    both("[1, 2].reduce((a, b) => a + b, 10)", "13");
    both("[].reduce((a, b) => a + b, 10)", "10");
    both("[5, 6].reduce((a, b, i) => a + i, 0)", "1");
    both("[5].reduce((a) => a, 0)", "runtime arity");
    both("reduce([], (a, b) => a)", "runtime empty_reduce");
    both("[1].push(2, 3)", "[1, 2, 3]");
    both("[1].push()", "runtime arity");
    both("let out = \"\"\n[7, 8].forEach((x, i) => { out = out + x + i })\nout", "\"7081\"");
    both("let out = \"\"\n[7, 8].forEach(x => { out = out + x })\nout", "\"78\"");
    both("[1].forEach(x => x)", "null");
    both("[1, \"a\", true, null, [2]].join(\"-\")", "\"1-a-true--[2]\"");
    both("[1, 2].join()", "\"1,2\"");
    both("[].join()", "\"\"");
    both("[1].join(5)", "runtime bad_argument");
    both("let m = [1, 2].map\nm(x => x + 1)", "[2, 3]");
    both("let m = ([1, 2] ~> 0.5).map\nm(x => x + 1)", &sure("[2, 3]", 0.5));
    both("[[1, 2], [3]].map(xs => xs.map(x => x + 1))", "[[2, 3], [4]]");
    both("[1, 2, 3].map(x => { if (x == 2) { return 0 }\n x })", "[1, 0, 3]");
    both("[3, 1].map(max)", "[3, 1]");
    both("[1, 2].map(x => x / 0)", "runtime division_by_zero");
}

#[test]
fn added_methods() {
    for member in
        ["slice(1)", "includes(2)", "find(x => x > 1)", "concat([4])", "indexOf(2)", "some(x => x > 2)"]
    {
        strict(&format!("[1, 2, 3].{member}"), "runtime missing_property");
    }
    strict("\"a\".trim()", "runtime missing_property");
    pattern("[1, 2, 3].slice(1)", "[2, 3]");
    pattern("[1, 2, 3].slice(-2, -1)", "[2]");
    pattern("[1, 2, 3].slice(5)", "[]");
    pattern("[1, 2, 3].includes(2)", "true");
    pattern("[1, [2]].includes([2])", "true");
    pattern("[1, 2, 3].find(x => x > 1)", "2");
    pattern("[1].find(x => x > 1)", "null");
    pattern("[1, 2].some(x => x > 1)", "true");
    pattern("[].some(x => x)", "false");
    pattern("[1, 2].every(x => x > 1)", "false");
    pattern("[].every(x => x)", "true");
    pattern("[1].concat([2, 3], 4)", "[1, 2, 3, 4]");
    pattern("[1, 2].indexOf(2)", "1");
    pattern("[1, 2].indexOf(\"2\")", "-1");
    pattern("[3, 10, 2].sort()", "[2, 3, 10]");
    pattern("[3, 10, 2].sort((a, b) => b - a)", "[10, 3, 2]");
    pattern("[].sort((a, b) => b - a)", "[]");
    pattern("[1].sort((a, b) => b - a)", "[1]");
    pattern("[5, 3, 9, 1, 7, 2, 8, 4, 6].sort((a, b) => a - b).join(\"\")", "\"123456789\"");
    pattern(
        "[{k: 1, v: \"a\"}, {k: 0, v: \"b\"}, {k: 1, v: \"c\"}].sort((a, b) => a.k - b.k).map(o => o.v).join(\"\")",
        "\"bac\"",
    );
    pattern("\"a,b\".split(\",\")", "[\"a\", \"b\"]");
    pattern("\"ab\".split(\"\")", "[\"a\", \"b\"]");
    pattern("\" a \".trim()", "\"a\"");
    pattern("\"Ab\".toLowerCase() + \"Ab\".toUpperCase()", "\"abAB\"");
    pattern("(\"ab\" ~> 0.5).includes(\"b\")", &sure("true", 0.5));
    pattern("[1, 2].slice(\"x\")", "runtime bad_argument");
    pattern("({a: 1}).zz(1)", "runtime not_callable");
    strict("({a: 1}).zz(1)", "runtime missing_property");
}

#[test]
fn confidence_library() {
    both("max(1, 3 ~> 0.4, 2)", &sure("3", 0.4));
    both("max(3 ~> 0.4, 3)", &sure("3", 0.4));
    both("min(5)", "5");
    both("max()", "runtime arity");
    both("max(1, \"2\")", "runtime bad_argument");
    both("consensus([1 ~> 0.2, 2 ~> 0.8, 3 ~> 0.8])", &sure("2", 0.8));
    both("consensus([1, 2])", "1");
    both("consensus([])", "runtime bad_argument");
    both("consensus([1], {strategy: \"best\"})", "runtime bad_argument");
    both(
        "aggregate([1 ~> 0.4, 2 ~> 0.8], {strategy: \"min\"})",
        &sure(r#"[{"$value": 1, "$confidence": 0.4}, {"$value": 2, "$confidence": 0.8}]"#, 0.4),
    );
    both("<~ aggregate([1 ~> 0.5, 2 ~> 0.5], {strategy: \"product\"})", "0.25");
    both("aggregate([], {strategy: \"max\"})", &sure("[]", 1.0));
    both("aggregate([1 ~> 0.4, 3], {strategy: \"max\", combine: xs => xs.length})", &sure("2", 1.0));
    both("confidence(0.5)(x => x ~> 0.9)(3)", &sure("3", 0.5));
    both("confidence(2)", "runtime threshold_range");
    both("confidence(\"x\")", "runtime bad_argument");
    both("confidence(0.5)(5)", "runtime bad_argument");
    both(
        "threshold(0.5)([1 ~> 0.4, 2 ~> 0.5, 3, {a: 1 ~> 0.4}, {a: 1}])",
        r#"[{"$value": 2, "$confidence": 0.5}, 3, {"a": 1}]"#,
    );
    both("threshold(-1)", "runtime threshold_range");
    both("threshold(0.5)(3)", "runtime bad_argument");
    both("sortBy(\"n\", \"down\")([{n: 1}, {n: 2}])", &sure(r#"[{"n": 2}, {"n": 1}]"#, 0.95));
    both(
        "sortBy(\"n\")([{n: \"b\"}, {n: \"B\"}, {n: \"a\"}, {n: \"_\"}]).map(o => o.n)",
        &sure(r#"["_", "a", "b", "B"]"#, 0.95),
    );
    both("sortBy(\"n\")([{n: 10}, {n: 9}, {}]).map(o => o[\"n\"])", &sure("[9, 10, null]", 0.95));
    both(
        "sortBy(\"n\")([{n: \"zoo\"}, {n: \"\u{e9}tude\"}, {n: \"etude\"}, {n: \"\u{c9}tudes\"}, {n: \"fin\"}]).map(o => o.n)",
        &sure("[\"etude\", \"\u{e9}tude\", \"\u{c9}tudes\", \"fin\", \"zoo\"]", 0.95),
    );
    both("sortBy(5)", "runtime bad_argument");
    both("groupBy(x => x % 2)([1, 2, 3])", r#"{"1": [1, 3], "0": [2]}"#);
    both("groupBy(5)", "runtime bad_argument");
    both("groupBy(\"k\")(5)", "runtime bad_argument");
}

#[test]
fn votes() {
    pattern("majorityVote([\"a\" ~> 0.9, \"b\" ~> 0.5, \"a\" ~> 0.7])", &sure("\"a\"", (1.6 / 2.1) * 0.8));
    pattern("majorityVote([\"a\", \"b\"])", &sure("\"a\"", 0.5));
    pattern("majorityVote([])", &sure("null", 0.0));
    pattern(
        "majorityVote([{result: {l: \"en\"}, confidence: 0.8}, {result: {l: \"de\"}, confidence: 0.9, error: \"x\"}])",
        &sure(r#"{"l": "en"}"#, 0.8),
    );
    pattern(
        "majorityVote([{l: \"en\", n: 1} ~> 0.5, {l: \"en\", n: 2} ~> 0.5, {l: \"de\"} ~> 0.9], {key: \"l\"})",
        &sure(r#"{"l": "en", "n": 1}"#, (1.0 / 1.9) * 0.5),
    );
    pattern(
        "majorityVote([\"a\" ~> 0.9, \"b\" ~> 0.1, \"b\" ~> 0.1], {weighted: false})",
        &sure("\"b\"", (2.0 / 3.0) * 0.1),
    );
    pattern("majorityVote(5)", "runtime bad_argument");
    pattern("agreement([\"a\", \"b\", \"a\", \"a\"])", "0.75");
    pattern("agreement([])", "0");
    pattern("average([1, 2, 6])", "3");
    pattern("average([1 ~> 0.5, 2])", &sure("1.5", 0.75));
    pattern("average([])", "runtime bad_argument");
    pattern("average([\"x\"])", "runtime bad_argument");
    pattern("weightedAverage([1, 3], [1, 3])", "2.5");
    pattern("weightedAverage([1], [1, 2])", "runtime bad_argument");
    pattern("weightedAverage([10 ~> 0.75, 20 ~> 0.25])", &sure("12.5", 0.625));
    pattern("synthesize([10 ~> 0.75, 20 ~> 0.25])", &sure("12.5", 0.5));
    pattern("synthesize([[1, 2] ~> 0.5, [2, 3] ~> 0.5])", &sure("[1, 2, 3]", 0.5));
    pattern("synthesize([{a: \"x\", b: 1} ~> 1, {a: \"x\"} ~> 1])", &sure(r#"{"a": "x", "b": 1}"#, 1.0));
    pattern("range(3)", "[0, 1, 2]");
    pattern("range(3, 1)", "[3, 2]");
    pattern("range(0, 1, 0.25)", "[0, 0.25, 0.5, 0.75]");
    pattern("range(0, 5, 0)", "runtime bad_argument");
    pattern("range(10 ** 9)", "runtime bad_argument");
    strict("average([1])", "runtime undefined_variable");
}

#[test]
fn promises() {
    both("await Promise.resolve(1 ~> 0.5)", &sure("1", 0.5));
    both("await (Promise.resolve(1) ~> 0.5)", &sure("1", 0.5));
    both("await (Promise.resolve(1 ~> 0.25) ~> 0.5)", &sure("1", 0.5));
    both("Promise.resolve(1) ~> 0.5", &sure("1", 0.5));
    both("await (sleep(5) ~> 0.5)", &sure("null", 0.5));
    both(
        "Promise.all([Promise.resolve(1) ~> 0.5, sleep(1) ~> 0.25])",
        &format!("[{}, {}]", sure("1", 0.5), sure("null", 0.25)),
    );
    pattern("parallel([Promise.resolve(1) ~> 0.5])", &format!("[{}]", sure("1", 0.5)));
    both("await Promise.reject(\"no\")", "runtime rejected");
    both("try { await Promise.reject(\"no\") } catch (e) { e }", "\"no\"");
    both("let p = Promise.resolve(1);\n[p == p, p === p, 1 == p, p != p]", "[false, false, false, true]");
    both("Promise.all([1, Promise.resolve(2)])", "[1, 2]");
    both("Promise.all([Promise.reject(\"x\")])", "runtime rejected");
    both("Promise.all(5)", "runtime bad_argument");
    both("Promise.resolve()", "runtime arity");
    both("Promise.reject(\"unused\")\n1", "1");
    both("await sleep(5)", "null");
    both("delay(\"x\")", "runtime bad_argument");
    both("let f = async x => x + 1\nawait f(1)", "2");
    both("debounce(5)(x => x + 1)(1)", "2");
    pattern("now() + random()", "1000.25");
    pattern("executePattern(\"p\", {a: 1})", r#"["p", {"a": 1}]"#);
    pattern("executePattern(5)", "runtime bad_argument");
}
