//! Statements: separators, values, scopes, loops, `uncertain`, `try`.

use super::support::*;

#[test]
fn new_lines_and_brackets() {
    both("let a = 1\nlet b = 2\n[a, b]", "[1, 2]");
    both("let a = 1\n(a + 1) * 2", "4");
    both("let f = x => x\n[f(1)]", "[1]");
    both("let a = [[1, 2]]\nlet b = (a\n[0]\n[1])\nb", "2");
    both("let r = max(1,\n(2))\nr", "2");
    both("let t = true ? 1\n: 2\nt", "1");
    both("let f = x => x\nlet t = true ? f\n(5) : 2\nt", "5");
    both("let o = {a: 1}\nlet v = o\n.a\nv", "1");
    both("let a = 5\n-3", "0");
    both("let a = 5\na\n-3", "2");
    both("let xs = [1, 2].map(x => {\nlet y = x\n[y]\n})\nxs", "[[1], [2]]");
    both("let a = 1; let b = 2;; b", "2");
    both("1 2", "2");
    both("let f = () => {\n  return\n  [1]\n}\nf()", "[1]");
}

#[test]
fn blocks_and_objects() {
    both("{a: 1}", r#"{"a": 1}"#);
    both("let a = 1\n{a}", r#"{"a": 1}"#);
    both("{}", "{}");
    both("{...{a: 1}}", r#"{"a": 1}"#);
    both("let a = 0\n{ a = 1 }\na", "1");
    both("let a = 0\n{ a = 1\n a = a + 1 }\na", "2");
    both("let a = 0\n{ a = [1, 2] }\na", "[1, 2]");
    both("let a = 0; let b = 0\n{ a = 1, b } = {b: 2};\n[a, b]", "[1, 2]");
    both("let a = 0\n{ a = 7 } = {};\na", "7");
    both("{ \"a\": 1 }", "parse syntax");
    both("{ let x = 3; x }", "3");
    both("if (true) {}", "0");
    both("let t = 9\nfor x in [1] { t }", "9");
    both("let t = 0\nwhile t < 2 { t += 1 }\nt", "2");
    both("let f = () => { a: 1 }", "parse syntax");
    both("let f = () => ({a: 1})\nf()", r#"{"a": 1}"#);
    both("let f = () => { {a: 1} }\nf()", r#"{"a": 1}"#);
    both("match 1 { _ => {a: 1} }", r#"{"a": 1}"#);
    both("match 1 { _ => { 5 } }", "5");
}

#[test]
fn values_of_statements() {
    both("let x = 5", "0");
    both("const x = 5", "0");
    both("let x = 1; x = 7", "7");
    both("let x = 1; x += 7", "8");
    both("let a = 0; let b = 0;\n[a, b] = [1, 2]", "[1, 2]");
    both("let [a] = [1]", "0");
    both("if (false) { 1 }", "0");
    both("if (false) { 1 } else if (true) { 2 }", "2");
    both("for x in [1, 2] { x * 10 }", "20");
    both("for x in [] { x }", "null");
    both("for x in [1, 2, 3] { if (x == 3) { break }\n x }", "2");
    both("for x in [1, 2, 3] { if (x == 3) { continue }\n x }", "2");
    both("while false { 1 }", "null");
    both("for let i = 0; i < 3; i += 1 { i }", "2");
    both("do 5 while false", "5");
    both("function f() { 1 }", "null");
    both("typeof (match 1 { _ => { function f() { 1 } } })", "\"function\"");
    both("try { 1 } finally { 2 }", "1");
    both("uncertain if (1 ~> 0.6) { high { 1 } }", "0");
    both("{ 1; 2 }", "2");
    both("in context x { 3 }", "3");
    both("function f() { let x = 5 }\nf()", "0");
    both("function f() {}\nf()", "0");
    both("function f() { if (false) { 1 } }\nf()", "0");
    both("function f() { for x in [] { x } }\nf()", "null");
}

#[test]
fn variables() {
    both("x\nlet x = 1", "runtime uninitialized");
    both("x = 2\nlet x = 1", "runtime uninitialized");
    both("let f = () => x\nlet r = f()\nlet x = 1", "runtime uninitialized");
    both("let f = () => x\nlet x = 1\nf()", "1");
    both("let x = x", "runtime uninitialized");
    both("{ x\nlet x = 1 }", "runtime uninitialized");
    both("let x = 1\n{ let y = x\nlet x = 2 }", "runtime uninitialized");
    both("let x = 1\nfunction f() { let y = x\nlet x = 2\nreturn [x, y] }\nf()", "[2, 1]");
    both(
        "let x = 1\nfunction f() { let g = () => x\nlet a = g()\nlet x = 2\nreturn [a, g()] }\nf()",
        "[1, 2]",
    );
    both("let x = 1\nfunction f() { x = 5\nlet x = 2\nreturn x }\n[f(), x]", "[2, 5]");
    both("let k = 1\nlet k = 2", "runtime redeclared");
    both("function f() { let k = 1\nlet k = 2 }\nf()", "runtime redeclared");
    both("function f({a}) { let a = 1 }\nf({a: 2})", "runtime redeclared");
    both("function f(a) { let a = a + 1\na }\nf(2)", "3");
    both("let [a, a] = [1, 2]", "runtime redeclared");
    both("try { let k = 1\nlet k = 2 } catch { \"caught\" }", "\"caught\"");
    both("const k = 1\nk = 2", "runtime const_assign");
    both("const k = 1\nk += 2", "runtime const_assign");
    both("const [a] = [1]\na = 2", "runtime const_assign");
    both("const k = 1\nlet f = () => { k = 2 }\nf()", "runtime const_assign");
    both("const k", "parse syntax");
    both("let k\nk", "null");
    both("max = 5\nmax", "5");
    both("let f = () => max(1, 2)\nmax = (a, b) => 99\nf()", "99");
    both("function f() { max = 7 }\nf()\nmax", "7");
    both("let print = 3\nprint", "3");
    both("let x = 1\nif (true) { let x = 2 }\nx", "1");
    both("let x = 1\nfor x in [5] { x }\nx", "1");
    both("for x in [5] { x }\nx", "runtime undefined_variable");
    both("for let i = 0; i < 1; i += 1 { i }\ni", "runtime undefined_variable");
    both("let fs = []\nfor x in [1, 2] { fs = fs.push(() => x) }\nfs.map(f => f())", "[2, 2]");
    both("let fs = []\nfor x in [1, 2] { let y = x\nfs = fs.push(() => y) }\nfs.map(f => f())", "[1, 2]");
    both("let fs = []\nfor let i = 0; i < 2; i += 1 { fs = fs.push(() => i) }\nfs.map(f => f())", "[2, 2]");
    both("let i = 0\nwhile i < 2 { let y = i * 10\nlet g = () => y\ni += 1\ng() }", "10");
}

#[test]
fn implicit_variables() {
    strict("x = 1", "runtime undefined_variable");
    strict("[a] = [1]", "runtime undefined_variable");
    strict("x += 1", "runtime undefined_variable");
    pattern("x = 1\nx + 1", "2");
    pattern("[a, b] = [1, 2];\na + b", "3");
    pattern("x += 1", "runtime undefined_variable");
    pattern("if (true) { y = 5 }\ny", "5");
    pattern("if (false) { y = 5 }\ny", "runtime undefined_variable");
    pattern("function f() { z = 1\nz + 1 }\n[f()]", "[2]");
    pattern("function f() { z = 1 }\nf()\nz", "runtime undefined_variable");
    pattern("z = 0\nfunction f() { z = 1 }\nf()\nz", "1");
    pattern("function f() { z = 1 }\nz = 0\nf()\nz", "1");
    pattern("f = () => { z = z + 1 }\nz = 0\nf()\nf()\nz", "2");
    pattern("f = () => { t = 0\n[1, 2].forEach(x => { t = t + x })\nreturn t }\nf()", "3");
    pattern("f = () => { if (true) { q = 3 }\nreturn () => q }\nf()()", "3");
    pattern("for x in [1, 2] { last = x }\nlast", "2");
    pattern("for i = 0; i < 3; i += 1 { n = i }\n[i, n]", "[3, 2]");
    pattern("f = n => n < 2 ? n : f(n - 1) + f(n - 2)\nf(10)", "55");
    pattern("while true { if (seen ?? false) { break } }", "runtime undefined_variable");
    pattern("x = 1\nlet y = () => x\nx = 2\ny()", "2");
}

#[test]
fn loops() {
    both("let s = 0\nfor x, i in [10, 20] { s += x * i }\ns", "20");
    both("let s = 0\nfor x in ([1, 2] ~> 0.5) { s += x }\ns", "3");
    both("for x in 5 { x }", "runtime not_iterable");
    both("for x in null { x }", "runtime not_iterable");
    both("for x in {a: 1} { x }", "runtime not_iterable");
    both("let n = 0\nwhile true { n += 1\nif (n > 4) break }\nn", "5");
    both("let n = 0\nwhile (n < 5) ~> 0.2 { n += 1 }\nn", "5");
    both("let n = 0\ndo { n += 1\nif (n == 2) { continue } } while n < 3\nn", "3");
    both(
        "let out = []\nfor let i = 0; i < 5; i += 1 { if (i == 1) { continue }\nif (i == 4) { break }\nout = out.push(i) }\nout",
        "[0, 2, 3]",
    );
    both("for ;; { break }", "null");
    both("let i = 0\nfor ; i < 3; { i += 1 }\ni", "3");
    both("break", "runtime loop_control");
    both("continue", "runtime loop_control");
    both("for x in [1] { [1].map(y => { break }) }", "runtime loop_control");
    both("for (let i = 0; i < 3; i += 1) { i }", "parse syntax");
    both(
        "let s = \"\"\nfor a in [1, 2, 3] { for b in [1, 2] { if (b == 2) { continue }\nif (a == 2) { break }\ns += a } }\ns",
        "\"13\"",
    );
    both("let xs = [1]\nlet n = 0\nfor x in xs { xs = xs.push(9)\nn += 1 }\n[n, xs.length]", "[1, 2]");
}

#[test]
fn uncertain() {
    let levels = "{ high { \"h\" } medium { \"m\" } low { \"l\" } }";
    for (c, expected) in [(1.0, "h"), (0.7, "h"), (0.69999, "m"), (0.5, "m"), (0.4999, "l"), (0.0, "l")] {
        both(&format!("uncertain if (false ~> {c}) {levels}"), &format!("\"{expected}\""));
    }
    both("uncertain if (1) { high { 1 } }", "runtime uncertain_needs_confidence");
    both("uncertain if (1 ~> 0.1) { high { 1 } default { 2 } }", "2");
    both("uncertain if (1 ~> 0.9) { high { 1 } high { 2 } }", "2");
    both("uncertain if (1 ~> 0.9) {}", "0");
    both("uncertain while true { high { 1 } high { 2 } }", "parse syntax");
    both("let n = 0\nuncertain while n < 3 { default { n += 1 } }\nn", "3");
    both("let n = 0\nuncertain while (n < 3) ~> 0.2 { low { n += 1\nif (n == 2) { break } } }\nn", "2");
    both(
        "let s = \"\"\nuncertain for let i = 0; i < 3 && (true ~> 0.6); i += 1 { high { s += \"h\" } medium { s += \"m\" } }\ns",
        "\"mmm\"",
    );
    both(
        "let s = \"\"\nlet k = [true ~> 0.2, true, false]\nuncertain for let i = 0; k[i]; i += 1 { high { s += \"h\" } low { s += \"l\" } }\ns",
        "\"ll\"",
    );
    both("uncertain for let i = 0; i < 3; i += 1 { low { 1 } }", "null");
    both("uncertain until 1 {}", "parse syntax");
}

#[test]
fn trying() {
    both("try { 1 / 0 } catch (e) { e }", "\"division by zero\"");
    both("try { 1 / 0 } catch { 5 }", "5");
    both("try { 1 / 0 } finally { 2 }", "runtime division_by_zero");
    both(
        "let log = \"\"\ntry { try { 1 / 0 } finally { log += \"f\" } } catch { log += \"c\" }\nlog",
        "\"fc\"",
    );
    both(
        "let log = \"\"\ntry { log += \"t\" } catch { log += \"c\" } finally { log += \"f\" }\nlog",
        "\"tf\"",
    );
    both("try { 1 / 0 } catch { null.x } ", "runtime property_on_invalid");
    both("try { try { 1 / 0 } catch { null.x } } catch { \"outer\" }", "\"outer\"");
    both(
        "let log = []\nfunction f() { try { return 1 } finally { log = log.push(2) } }\n[f(), log]",
        "[1, [2]]",
    );
    both("function f() { try { return 1 } catch { return 2 } }\nf()", "1");
    both("function f() { try { return 1 } finally { return 2 } }\nf()", "2");
    both("function f() { try { try { return 1 } finally { null.x } } catch { return 3 } }\nf()", "3");
    both("let n = 0\nfor x in [1, 2, 3] { try { if (x == 2) { continue }\nn += x } catch { } }\nn", "4");
    both("let n = 0\nfor x in [1, 2, 3] { try { if (x == 2) { break } } finally { n += 1 } }\nn", "2");
    both(
        "let n = 0\nfor x in [1, 2] { try { try { continue } finally { n += 1 } } finally { n += 10 } }\nn",
        "22",
    );
    both("function f() { for x in [1, 2] { try { return x } finally { break } }\nreturn 9 }\nf()", "9");
    both("[1, 2].map(x => { try { return x / (x - 1) } catch { return 0 } })", "[0, 2]");
    both("function g() { throwing }\ntry { [1].map(x => g()) } catch (e) { typeof e }", "\"string\"");
    both("try { } catch { }", "0");
    both("try { 1 } catch (e) { e", "parse syntax");
    both("let e = 1\ntry { null.x } catch (e) { e = 2 }\ne", "1");
    both("try { null.x } catch (e) { let e = 5\ne }", "5");
    both("let d = 0\ntry { d = 1\n1 / 0 } catch { }\nd", "1");
    both("let f = () => { try { 1 / 0 } catch (m) { return () => m } }\nf()()", "\"division by zero\"");
}

#[test]
fn contexts_and_agents() {
    both("let x = 1\nin context A { let y = 2\nx = y } -> B\n[x, y]", "[2, 2]");
    both("in context \"some name\" { 1 } -> \"other\"", "1");
    both("agents { a: Agent { k: 1; j: 2 }, b: { k: 3 } }\na.k + a.j + b.k", "6");
    both("agents { a: { k: 1 } }", r#"{"k": 1}"#);
    pattern("agents = [1, 2]\nagents.length", "2");
    pattern("let n = 0\nfor a in agents { n += 1 }\nn", "0");
}

#[test]
fn destructuring() {
    both("let [a, b] = [1]\nb", "null");
    both("let [, b] = [1, 2]\nb", "2");
    both("let [a, ...r] = [1]\nr", "[]");
    both("let {a, ...r} = {a: 1, b: 2}\nr", r#"{"b": 2}"#);
    both("let {a = 5, b = 6} = {a: null}\n[a, b]", "[null, 6]");
    both("let {a: {b: [c]}} = {a: {b: [7]}}\nc", "7");
    both("let {a: [x, y] = [1, 2]} = {}\nx + y", "3");
    both("let [a] = [1] ~> 0.5", "runtime destructure_type");
    both("let [a] = null", "runtime destructure_type");
    both("let {a} = [1]", "runtime destructure_type");
    both("let {a} = \"x\"", "runtime destructure_type");
    both("let {a: {b}} = {a: 1}", "runtime destructure_type");
    both("let [a ~> 0.5, b ~> 0.5] = [1 ~> 0.4, 2]\n[a, b]", "[null, 2]");
    both(
        "let a = 0; let b = 0;\n[a ~> 0.1, b] ~> 0.9 = [1 ~> 0.5, 2 ~> 0.5];\n[a, b]",
        r#"[{"$value": 1, "$confidence": 0.5}, null]"#,
    );
    both(
        "let a = 0; let r = 0;\n[a, ...r] ~> 0.5 = [1, 2 ~> 0.4, 3 ~> 0.6];\nr",
        r#"[{"$value": 3, "$confidence": 0.6}]"#,
    );
    both("let r = 0;\n{...r} ~> 0.5 = {a: 1 ~> 0.1, b: 2};\nr", r#"{"b": 2}"#);
    both(
        "let {p: {x, y} ~> 0.5} = {p: {x: 1 ~> 0.4, y: 2 ~> 0.9}}\n[x, y]",
        r#"[null, {"$value": 2, "$confidence": 0.9}]"#,
    );
    both("let [[x, y] ~> 0.5] = [[1 ~> 0.4, 2]]\n[x, y]", r#"[{"$value": 1, "$confidence": 0.4}, 2]"#);
    both("let [[x, y] ~> 0.5] = [[1, 2] ~> 0.4]\n[x, y]", "[null, null]");
    both("let {d ~> 0.9 = (1 ~> 0.5)} = {}\nd", "null");
    both("let [a ~> \"x\"] = [1]", "runtime threshold_type");
    both("let a = 1\n[a] ~> (0.5 ~> 0.5) = [1]", "runtime threshold_type");
    both("let a = 1; let b = 2;\n[a, b] = [b, a];\n[a, b]", "[2, 1]");
    both("let f = ([a, {b}], ...[c]) => a + b + c\nf([1, {b: 2}], 3)", "6");
    both("[1, 2] ~> 0.9\nlet x = 5", "0");
}

#[test]
fn matching() {
    both("match 2 { 1 => \"a\"; 2 => \"b\" }", "\"b\"");
    both("match -2 { -2 => \"neg\" }", "\"neg\"");
    both("match null { undefined => 1 }", "1");
    both("match \"1\" { 1 => \"num\", \"1\" => \"str\" }", "\"str\"");
    both("match (5 ~> 0.3) { x => x }", &sure("5", 0.3));
    both("match [1, 2] { [a] => 1, [a, b] => a + b }", "3");
    both("match [1, 2, 3] { [a, ...r] => r }", "[2, 3]");
    both("match [1, 2, 3] { [1, , c] => c }", "3");
    both("match {k: \"a\", n: 5} { {k: \"b\"} => 0, {k: \"a\", n} => n }", "5");
    both("match {a: 1, b: 2} { {a, ...r} => r }", r#"{"b": 2}"#);
    both("match {a: null} { {a: null} => 1 }", "1");
    both("match {} { {a} => 1, _ => 2 }", "2");
    both("match (1 ~> 0.5) { x ~> 0.6 => \"hi\", x ~> 0.4 => \"lo\" }", "\"lo\"");
    both("match [1 ~> 0.9, 2 ~> 0.2] { [a, b] ~> 0.5 => 1, [a, b ~> 0.1] ~> 0.5 => 2 }", "2");
    both("match [[1 ~> 0.2]] { [[a]] ~> 0.5 => 1, _ => 0 }", "0");
    both("let ok = true\nmatch 1 { x if ok => \"guarded\" }", "\"guarded\"");
    both("let t = 0.5\nmatch (1 ~> 0.6) { x ~> t => \"yes\" }", "\"yes\"");
    both("match 3 { n if n > 5 => 1, n if (n > 2) => 2 }", "2");
    both("match 1 { _ => (x => x + 1)(1) }", "2");
    both("let x = 1\nmatch 5 { x => x }\nx", "1");
    both("match [1] { [x] => { let y = x\ny + 1 } }", "2");
    both("match 1 { x ~> \"a\" => 1 }", "runtime threshold_type");
    both(
        "let f = n => match n { 0 => \"zero\", n if n % 2 == 0 => \"even\", _ => \"odd\" }\n[0, 1, 2].map(f)",
        r#"["zero", "odd", "even"]"#,
    );
    both("match 1 { 2 => 5 }", "null");
    both("match ([1, 2] ~> 0.5) { [a, b] => a + b }", "3");
}
