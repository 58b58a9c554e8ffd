//! Operators: values, confidences, precedence, errors.

use super::support::*;

#[test]
fn one_example_of_each() {
    let plain = [
        ("let v = \"k\" ~> 0.85\n<~ v", "0.85"),
        (r#"(0 ~> 0.95) || "default""#, r#""default""#),
        (r#"(1 ~> 0.2) && "next""#, r#""next""#),
        ("(12 ~> 0.79) ~?> 0.8", "null"),
        (r#"(12 ~> 0.2) ~?> [0.5, "fb"]"#, r#""fb""#),
        ("let r = {a: 1} ~> 0.4\nr?.zz", "null"),
        ("let t = n => n * 3\n4 |> t(_)", "12"),
    ];
    for (source, expected) in plain {
        both(source, expected);
    }
    let confident = [
        ("18 ~> 0.35", "18", 0.35),
        ("let v = 8 ~> 0.6\n~v", "8", 0.6),
        ("(4 ~> 0.9) + (5 ~> 0.4)", "9", 0.4),
        ("100 - (1 ~> 0.15)", "99", 0.15),
        ("(3 ~> 0.5) ** 2", "9", 0.5),
        (r#""id-" + (7 ~> 0.65)"#, r#""id-7""#, 0.65),
        ("(21 ~> 0.8) > 20", "true", 0.8),
        (r#"("red" ~> 0.75) == "red""#, "true", 0.75),
        ("(9 ~> 0.8) === (9 ~> 0.6)", "true", 0.6),
        (r#"("maybe" ~> 0.2) || "sure""#, r#""maybe""#, 0.2),
        (r#""keep" ?? ("d" ~> 0.3)"#, r#""keep""#, 0.3),
        (r#"(null ~> 0.7) ?? ("d" ~> 0.9)"#, r#""d""#, 0.7),
        ("(11 ~> 0.95) ~+ (4 ~> 0.65)", "15", 0.65),
        ("(11 ~> 0.5) ~- (4 ~> 0.65)", "7", 0.5),
        ("(11 ~> 0.5) ~* 3", "33", 0.5),
        ("(90 ~> 0.7) ~/ (4 ~> 0.8)", "22.5", 0.7),
        (r#"(5 ~> 0.9) ~== "5""#, "false", 0.9),
        (r#"("up" ~> 0.9) ~!= ("down" ~> 0.45)"#, "true", 0.45),
        ("(3 ~> 0.6) ~< (9 ~> 0.8)", "true", 0.6),
        ("(9 ~> 0.6) ~<= 9", "true", 0.6),
        ("12 ~>= (10 ~> 0.85)", "true", 0.85),
        ("(false ~> 0.99) ~&& (true ~> 0.3)", "false", 0.3),
        ("(false ~> 0.9) ~|| (true ~> 0.2)", "true", 0.9),
        (r#"("in" ~> 0.9) ~~ ("out" ~> 0.95)"#, r#""out""#, 0.9),
        (r#"("left" ~> 0.49) ~?? ("right" ~> 0.1)"#, r#""right""#, 0.1),
        (r#"("l" ~> 0.5) ~||> ("r" ~> 0.5)"#, r#""l""#, 0.5),
        (r#"("check" ~> 0.7) ~@> ("act" ~> 0.4)"#, r#""act""#, 0.4),
        (r#"("check" ~> 0.6) ~@> "act""#, r#""check""#, 0.3),
        ("(12 ~> 0.8) ~?> 0.8", "12", 0.8),
        ("12 ~?> 0.5", "12", 1.0),
        (r#"let s = true ~> 0.8; s ~? ("out" ~> 0.5) : "in""#, r#""out""#, 0.4),
        ("let r = {km: 12 ~> 0.5} ~> 0.6\nr.km", "12", 0.3),
        ("let r = {km: 12}\nr~.km", "12", 1.0),
        ("let r = {a: 1} ~> 0.4\nr~.zz", "null", 0.4),
        ("let f = n => n + 1;\n(1 ~> 0.75) ~|> f(_) ~|> f(_)", "3", 0.75),
        ("let n = 10 ~> 0.9\nn ~+= 5 ~> 0.7\nn", "15", 0.7),
    ];
    for (source, value, confidence) in confident {
        both(source, &sure(value, confidence));
    }
}

#[test]
fn confident_operators_need_a_confident_side() {
    for op in
        ["~+", "~-", "~*", "~/", "~==", "~!=", "~<", "~<=", "~>=", "~&&", "~||", "~~", "~??", "~||>", "~@>"]
    {
        both(&format!("1 {op} 2"), "runtime needs_confident");
    }
    both("let f = x => x\n1 ~|> f(_)", "runtime needs_confident");
    both("let f = x => x ~> 0.5\n1 ~|> f(_)", &sure("1", 0.5));
}

#[test]
fn operand_types() {
    for source in
        ["1 + true", "null + 1", "[1] + [2]", "\"a\" - 1", "true * 2", "\"2\" ** 2", "\"x\" % 2", "-\"a\""]
    {
        both(source, "runtime operand_type");
    }
    both("-(1 ~> 0.5)", "runtime operand_type");
    both("(\"a\" ~> 0.5) ~+ 1", "runtime operand_type");
    for source in ["\"a\" < \"b\"", "null > 1", "1 <= \"2\"", "(\"a\" ~> 0.5) ~< 1", "(1 ~> 0.5) < \"2\""] {
        both(source, "runtime compare_type");
    }
    for source in ["1 / 0", "1 % 0", "(1 ~> 0.5) ~/ 0", "1 / -0"] {
        both(source, "runtime division_by_zero");
    }
    both("1 + Promise.resolve(1)", "runtime bad_operand");
    both("Promise.resolve(1) + 1", "runtime operand_type");
    both("3 instanceof \"Numbr\"", "runtime bad_operand");
    both("3 instanceof 3", "runtime bad_operand");
}

#[test]
fn arithmetic() {
    both("-3 ** 2", "9");
    both("2 ** -1", "0.5");
    both("2 ** 3 ** 2", "512");
    both("-7 % 3", "-1");
    both("7 % -3", "1");
    both("7.5 % 2", "1.5");
    both("1 - -1", "2");
    both("10 - 3 - 2", "5");
    both("\"a\" + 1 + 2", "\"a12\"");
    both("1 + 2 + \"a\"", "\"3a\"");
    both("\"v\" + [1, null, \"b\"] + {a: 1}", "\"v[1, null, b]{ a: 1 }\"");
    both("let x = 5\nx + 30001", "30006");
    both("\"x\" + -1", "\"x-1\"");
    both("let s = \"x\"\ns - 1", "runtime operand_type");
}

#[test]
fn equality() {
    for source in [
        "null == 0",
        "null == false",
        "7 == \"7 apples\"",
        "null == \"null\"",
        "\"\" == false",
        "true == 1",
        "true == \"true\"",
        "\"[1, 2]\" == [1, 2]",
        "[1] === [1]",
        "({a: 1, b: 2}) === ({b: 2, a: 1})",
        "(x => 1) === (y => 2)",
        "undefined === null",
        "true == []",
        "print == print",
        "\"1e3\" == 1000",
        "\" 12px\" == 12",
        "(9 ~> 0.8) === 9 ? true : false",
        "[1 ~> 0.5] === [1 ~> 0.5]",
    ] {
        both(source, "true");
    }
    for source in [
        "\"abc\" == 0",
        "null == []",
        "[] == ({})",
        "\"true\" == 1",
        "[1] == [\"1\"]",
        "1 === \"1\"",
        "null === false",
        "[1 ~> 0.5] === [1]",
        "map == filter",
        "Promise.resolve(1) == 1",
        "[1, 2] === [1]",
        "({a: 1}) === ({b: 1})",
    ] {
        both(source, "false");
    }
    both("(5 ~> 0.5) == \"5\"", &sure("true", 0.5));
    both("(5 ~> 0.5) !== \"5\"", &sure("true", 0.5));
}

#[test]
fn attaching_confidence() {
    both("1 ~> 7", &sure("1", 1.0));
    both("1 ~> (-3)", &sure("1", 0.0));
    both("(5 ~> 0.9) ~> 0.3", &sure("5", 0.3));
    both("1 ~> (0.6 ~> 0.1)", &sure("1", 0.6));
    both("1 ~> \"x\"", "runtime confidence_type");
    both("1 ~> null", "runtime confidence_type");
    both("1 ~> (2 ** 2000)", "runtime invalid_confidence");
    both("1 ~> (2 ** 2000 - 2 ** 2000)", "runtime invalid_confidence");
    both("let cfg = {trust: 0.4}\n1 ~> cfg.trust", &sure("1", 0.4));
    both("let score = x => x / 10\n1 ~> score(4)", &sure("1", 0.4));
    both("let cs = [0.4]\n1 ~> cs[0]", &sure("1", 0.4));
    both("x ~> 0.5 + 1", "parse syntax");
    both("1 ~> 0.9 ~> 0.5", "parse syntax");
    both("!(0 ~> 0.3)", "true");
    both("typeof (1 ~> 0.3)", "\"number\"");
    both("(1 ~> 0.3) instanceof \"number\"", "true");
}

#[test]
fn precedence() {
    both("1 ~> 0.9 ? \"x\" : \"y\"", "\"x\"");
    both("1 || 0 && 0", "1");
    both("null ?? 1 || 2", "1");
    both("1 + 1 == 2 && 3 > 2", "true");
    both("typeof 1 + 1", "\"number1\"");
    both("!true == false", "true");
    both("1 < 2 == true != false", "true");
    both("let a = 1 ~> 0.2; let b = 2 ~> 0.9; let c = 3 ~> 0.6;\na ~?? b ~~ c", &sure("3", 0.6));
    both("true ? false ? 1 : 2 : 3", "2");
    both("let f = x => x + 1\ntrue ? 1 |> f(_) : 5", "2");
    both("let f = x => y => x + y\nf(1)(2)", "3");
}

#[test]
fn short_circuits() {
    let counter = "let n = 0\nlet hit = v => { n = n + 1\n return v }\n";
    for (source, expected) in [
        ("false && hit(1)", 0),
        ("true || hit(1)", 0),
        ("1 ?? hit(1)", 1),
        ("(1 ~> 0.9) ~?? hit(1)", 1),
        ("(1 ~> 0.9) ~||> hit(1)", 1),
        ("(1 ~> 0.1) ~@> hit(1)", 1),
        ("true ? 1 : hit(1)", 0),
        ("(true ~> 0.5) ~? 1 : hit(1)", 0),
        ("hit(true) && hit(true) && hit(false) && hit(true)", 3),
    ] {
        both(&format!("{counter}let r = {source}\nn"), &expected.to_string());
        both(&format!("{counter}let r = 0\nif ({source}) r = 1\nn"), &expected.to_string());
    }
    both("let x = 5\nx = x && x + 1\nx", "6");
    both("let x = 0\nx = 1 && x || 7\nx", "7");
    both("let a = 2\na = a + 1 + a\na", "5");
    both("let a = 2\na = a > 1 ? a * a : a\na", "4");
    both("let a = [1]\na = match a { [x] => { a = 5; x + a } }\na", "6");
    both("let a = 1\na = a + match 1 { _ => { a = 10; a } }\na", "11");
}

#[test]
fn pipelines() {
    both("5 |> _ + _", "10");
    both("let inc = n => n + 1\n5 |> inc |> typeof _", "\"function\"");
    both("[1, 2] |> [..._, 3] |> _[2]", "3");
    both("({a: 1}) |> _.a", "1");
    both("2 |> (3 |> _ * 2) + _", "8");
    both("1 |> (x => _)(2)", "runtime placeholder");
    both("1 |> \"${_}\"", "runtime placeholder");
    both("({a: 1}) |> _?.a", "runtime placeholder");
    both("1 |> await _", "runtime placeholder");
    both("1 |> match _ { x => x }", "runtime placeholder");
    both("_", "runtime placeholder");
    both("let n = 0; let tick = () => { n = n + 1; return n }\ntick() |> _ + _ + _", "3");
    both("let f = x => x * 2;\n(3 ~> 0.5) |> f(_)", &sure("6", 0.5));
    both("let big = x => x * 100;\n(3 ~> 0.9) ~?> 0.5 ~|> big(_)", &sure("300", 0.9));
    both("1 ~?> \"x\"", "runtime threshold_type");
    both("1 ~?> (0.5 ~> 0.5)", "runtime threshold_type");
    both("1 ~?> -0.1", "runtime threshold_range");
    both("1 ~?> [2, 0]", "runtime threshold_range");
}

#[test]
fn tokens_and_literals() {
    both("\"\\t\\\"\\q\\$\"", "\"\\t\\\"q$\"");
    both("```a\\n${1 + 1}```", "\"a\\\\n2\"");
    both("\"${\"${1}\"}\"", "\"1\"");
    both("\"a${{b: 1}.b}c\"", "\"a1c\"");
    both("\"${[1, 2].map(x => { let y = x; return y * 2 })}\"", "\"[2, 4]\"");
    both("\"\"", "\"\"");
    both("\"${1 ~> 0.5} and ${null}\"", "\"1 (~50.0%) and null\"");
    both("1e6", "runtime undefined_variable");
    for source in ["'a'", "`a`", "1 & 2", "a | b", "\"a\nb\"", "/* open", "\"${1\"", "#", "\"${\"", "```open"]
    {
        both(source, "parse lex");
    }
    for source in
        ["+1", "x++", "let", "1 +", "(1", "[1", "{a: 1", "f(1", "if (1", "match 1 {", "o.x = 1", "a[0] = 1"]
    {
        both(source, "parse syntax");
    }
    both("undefined", "null");
    both("// only a comment", "0");
    both("", "0");
    both(";;;", "0");
    both("_x", "runtime undefined_variable");
    both("let x_ = 1\nx_", "1");
}
