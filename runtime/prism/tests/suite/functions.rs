//! Functions, closures, calls.

use super::support::*;

#[test]
fn arity() {
    both("function f(a, b) { a }\nf(1, 2, 3)", "runtime arity");
    both("function f(a, ...r) { r }\nf()", "runtime arity");
    both("function f(a, ...r) { r }\nf(1)", "[]");
    both("let f = (...r) => r\nf(1, 2,)", "[1, 2]");
    both("llm()", "runtime arity");
    both("5(1)", "runtime not_callable");
    both("null()", "runtime not_callable");
    both("let o = {f: 1}\no.f()", "runtime not_callable");
    both("[1].length()", "runtime not_callable");
    both("null?.f()", "runtime not_callable");
}

#[test]
fn confident_functions() {
    both("function f() ~> 0.5 { 1 ~> 0.5 }\nf()", &sure("1", 0.25));
    both("let f = (x => x) ~> 0.4\nf(1)", &sure("1", 0.4));
    both("let o = {f: x => x} ~> 0.4\no.f(1)", &sure("1", 0.4));
    both("let k = 0.5\nfunction f() ~> k { 1 }\nf()", &sure("1", 0.5));
    both("function f() ~> 0.5 { 1 }\n[1].map(x => f())[0]", &sure("1", 0.5));
    both("function f(x) ~> 0.5 { x }\n[1].map(f)", r#"[{"$value": 1, "$confidence": 0.5}]"#);
    both("let r = f()\nfunction f() ~> 0.5 { 1 }\nr", &sure("1", 0.5));
}

#[test]
fn closures() {
    both("let n = 0\nlet inc = () => { n += 1\nreturn n }\ninc()\ninc()\nn", "2");
    both(
        "let make = () => { let n = 0\nreturn () => { n += 1\nreturn n } }\nlet a = make(); let b = make();\na(); a();\n[a(), b()]",
        "[3, 1]",
    );
    both("let add = a => b => c => a + b + c\nadd(1)(2)(3)", "6");
    both("let f = n => n <= 1 ? 1 : n * f(n - 1)\nf(5)", "120");
    both(
        "function outer() { function inner(n) { return n <= 0 ? 0 : n + inner(n - 1) }\nreturn inner(4) }\nouter()",
        "10",
    );
    both("function outer() { let g = n => n <= 0 ? 0 : n + g(n - 1)\nreturn g(4) }\nouter()", "10");
    both(
        "function outer() { return inner()\nfunction inner() { return 1 } }\nouter()",
        "runtime undefined_variable",
    );
    both(
        "let r = even(10)\nfunction even(n) { return n == 0 ? true : odd(n - 1) }\nfunction odd(n) { return n == 0 ? false : even(n - 1) }\nr",
        "true",
    );
    both("function f() { return 1 }\nfunction f() { return 2 }\nf()", "2");
    both("function f() { return 1 }\nlet g = f\nf = () => 3\n[f(), g()]", "[3, 1]");
    both("let k = 10\nlet f = x => { let k = x\nreturn () => k }\n[f(1)(), k]", "[1, 10]");
    both("let xs = []\nfor i in [1, 2] { function g() { return i }\nxs = xs.push(g) }\nxs[0]()", "2");
    both("let f = a => { a = a + 1\nreturn () => a }\nf(1)()", "2");
    both(
        "let counter = () => { let c = 0\nlet up = () => { c += 1 }\nup()\nup()\nreturn c }\ncounter()",
        "2",
    );
    both(
        "let f = x => y => z => { x += y\nreturn x + z }\nlet g = f(1)(10);\n[g(100), g(100)]",
        "[111, 121]",
    );
}

#[test]
fn results() {
    both("function f() { return }\nf()", "0");
    both("function f(n) { if (n) { \"yes\" } else { \"no\" } }\n[f(1), f(0)]", r#"["yes", "no"]"#);
    both("return 5", "5");
    both("if (true) { return 1 }\n2", "1");
    both("let f = () => { [1, 2].map(x => { return x })\nreturn 3 }\nf()", "3");
    both("let f = () => { for x in [1, 2] { for y in [1] { return x } } }\nf()", "1");
    both("let f = (s, x) => s + x\nlet s = \"a\"\nlet t = f(s, \"b\")\n[s, t]", r#"["a", "ab"]"#);
    both("let push = (a, x) => a.push(x)\nlet a = [1]\nlet b = push(a, 2)\n[a, b]", "[[1], [1, 2]]");
    both("let f = async n => await n\nawait f(3)", "3");
    both("async function f() { return 1 }\nf()", "1");
}
