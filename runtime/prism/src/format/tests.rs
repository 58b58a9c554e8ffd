use super::{format, settled};
use std::path::Path;

#[track_caller]
fn gives(source: &str, expected: &str) {
    let once = format(source, "test.prism").expect("the program is well-formed");
    assert_eq!(once, expected, "\n--- got\n{once}\n--- expected\n{expected}");
    assert_eq!(format(&once, "test.prism").expect("well-formed"), once, "a second time changes nothing");
}

#[test]
fn one_spacing() {
    gives("let  a=1\nlet b =a+ 2*-3", "let a = 1\nlet b = a + 2 * -3\n");
    gives("f( a,b )[ 0 ] . c", "f(a, b)[0].c\n");
    gives("let o={a:1,b:[1,2],...c}", "let o = { a: 1, b: [1, 2], ...c }\n");
    gives("if(a){b}else{c}", "if (a) { b } else { c }\n");
    gives("let f=( a,b)=>a~>0.5", "let f = (a, b) => a ~> 0.5\n");
    gives("~ -x ; !y; ~ <~z;<~ w", "~ -x;\n!y;\n~ <~z;\n<~w\n");
    gives("a?b:c~?d:e", "a ? b : c ~? d : e\n");
    gives("x . in-1", "x.in - 1\n");
}

#[test]
fn statements_and_empty_lines() {
    gives("let a = 1; let b = 2\n\n\n\nb", "let a = 1;\nlet b = 2\n\nb\n");
    gives("\n\n  a\n\n", "a\n");
    gives("function f(x) {\n\n\n  x\n\n  return x\n\n}", "function f(x) {\n  x\n\n  return x\n}\n");
    gives("", "");
}

#[test]
fn comments_stay_where_they_are() {
    gives(
        "// one\n\n// two\nlet a = 1   // three\n/* four */ a",
        "// one\n\n// two\nlet a = 1 // three\n/* four */\na\n",
    );
    gives("f(a, // first\nb)", "f(\n  a, // first\n  b\n)\n");
    gives("{\n// only\n}", "{\n  // only\n}\n");
    gives("let a = [\n1, // x\n2\n// end\n]\n// last", "let a = [\n  1, // x\n  2\n  // end\n]\n// last\n");
    gives("if (a) {\n   /**\n    * doc\n    */\n  b\n}", "if (a) {\n  /**\n   * doc\n   */\n  b\n}\n");
}

#[test]
fn long_lines_break_at_the_loosest_place() {
    let long = "a".repeat(60);
    gives(&format!("let x = {long} * 2 || {long}"), &format!("let x = {long} * 2\n  || {long}\n"));
    gives(&format!("f({long}, {long})"), &format!("f(\n  {long},\n  {long}\n)\n"));
    gives(
        &format!("f(x => {{ {long}; }}, {{ {long}: 1, b: {long} }})"),
        &format!("f(x => {{ {long}; }}, {{\n  {long}: 1,\n  b: {long}\n}})\n"),
    );
    gives(&format!("c ? {long} : {long}"), &format!("c\n  ? {long}\n  : {long}\n"));
}

#[test]
fn lambdas_hug_their_call() {
    gives("xs.map( x=>{\nlet y=x\ny})", "xs.map(x => {\n  let y = x\n  y\n})\n");
    gives("xs\n.map(f)\n.filter(g)", "xs\n  .map(f)\n  .filter(g)\n");
}

#[test]
fn special_statements() {
    gives("uncertain if(x){high{a}low{b}}", "uncertain if (x) { high { a } low { b } }\n");
    gives("uncertain if(x){high{\na}\nlow{b}}", "uncertain if (x) {\n  high {\n    a\n  }\n  low { b }\n}\n");
    gives("for let i=0;i<3;i+=1{\nf(i)}", "for let i = 0; i < 3; i += 1 {\n  f(i)\n}\n");
    gives("match x{1=>a,_ if x>2=>b}", "match x { 1 => a, _ if x > 2 => b }\n");
    gives("if (a)\nreturn b\nelse c", "if (a)\n  return b\nelse\n  c\n");
    gives("agents{a:Agent{k:1 l:2}}", "agents { a: Agent { k: 1 l: 2 } }\n");
    gives("import*as m from\"./m\"", "import * as m from \"./m\"\n");
    gives("let s = ```a\n  b${ 1+1 }```", "let s = ```a\n  b${ 1+1 }```\n");
}

#[test]
fn bodies_are_not_indented_with_their_conditions() {
    gives("while a&&b{\nc\n}", "while a && b {\n  c\n}\n");
    gives("return a?b:{\nc:1}", "return a ? b : {\n  c: 1\n}\n");
    gives("a||f(x=>{\ny\nz})", "a || f(x => {\n  y\n  z\n})\n");
    gives("if(a){\nb}else if(c){d\n}else{\ne}", "if (a) {\n  b\n} else if (c) {\n  d\n} else {\n  e\n}\n");
    gives("do{\na\n}while b<c", "do {\n  a\n} while b < c\n");
    gives("try{\na()}catch(e){\nb}finally{\nc}", "try {\n  a()\n} catch (e) {\n  b\n} finally {\n  c\n}\n");
    gives("in context c{\na\n}->d", "in context c {\n  a\n} -> d\n");
    gives("function f(a)~>0.5{\na}", "function f(a) ~> 0.5 {\n  a\n}\n");
}

/// The head of a call is measured up to the bracket that may break, in a block as outside.
#[test]
fn parameters_stay_together() {
    let call = "xs.reduce((best, s) => s.support_of > best.support_of ? s : best, { value: null, support: 0, agents: [], more: 1 })";
    let laid = "xs.reduce((best, s) => s.support_of > best.support_of ? s : best, {\n    value: null,\n    support: 0,\n    \
                agents: [],\n    more: 1\n  })";
    gives(&format!("for x in xs {{\n{call}\n}}"), &format!("for x in xs {{\n  {laid}\n}}\n"));
}

#[test]
fn broken_source_is_diagnosed() {
    let wrong = format("let = 1", "x.prism").expect_err("it does not parse");
    assert_eq!((wrong[0].code, wrong[0].line), ("syntax", 1));
    assert_eq!(format("let a = 'x'", "x.prism").expect_err("no such string")[0].code, "lex");
}

/// Every program of the conformance cases that parses, and every pattern.
fn programs() -> Vec<(String, String)> {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/cases.json")).expect("a list of cases");
    let text = |json: &serde_json::Value| json.as_str().unwrap_or_default().to_string();
    let mut programs: Vec<(String, String)> = cases
        .as_array()
        .expect("a list")
        .iter()
        .map(|case| (text(&case["id"]), text(&case["program"])))
        .filter(|(_, program)| super::parse(program, "").is_ok())
        .collect();
    let patterns = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../patterns");
    for entry in patterns.read_dir().expect("the patterns are there") {
        let file = entry.expect("readable").path();
        if file.extension().is_some_and(|extension| extension == "prism") {
            let source = std::fs::read_to_string(&file).expect("readable");
            programs.push((file.display().to_string(), source));
        }
    }
    programs
}

#[test]
fn every_program_keeps_its_meaning() {
    let programs = programs();
    assert!(programs.len() > 230, "{}", programs.len());
    for (name, source) in programs {
        let once =
            settled(&source, &name).expect("it parses").unwrap_or_else(|| panic!("{name} has no layout"));
        assert_eq!(format(&once, &name).expect("it parses"), once, "{name}");
        let wide = once.lines().find(|line| line.chars().count() > 110);
        assert!(wide.is_none() || source.lines().any(|line| line.len() > 110), "{name}: {wide:?}");
    }
}

#[test]
fn the_conformance_cases_pass_when_formatted() {
    let mut cases: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/cases.json")).expect("a list of cases");
    for case in cases.as_array_mut().expect("a list") {
        let source = case["program"].as_str().unwrap_or_default();
        if let Ok(formatted) = format(source, "") {
            case["program"] = formatted.into();
        }
    }
    let report = crate::conformance::run_cases(&cases.to_string()).expect("still a list of cases");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

/// Comments between any two tokens, and lines broken or joined there, neither change a program nor get lost.
#[test]
fn comments_anywhere() {
    let mut seed = 7_u64;
    let mut next = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (mut tried, mut kept) = (0, 0);
    for (name, source) in programs() {
        for _ in 0..4 {
            let parsed = super::parse(&source, &name).expect("it parses");
            let pieces = super::pieces::pieces(&source, &parsed.tokens);
            let mut text = source.clone();
            for piece in pieces.iter().rev() {
                let insert = match next(12) {
                    0 => "/* c */",
                    1 => " // c\n",
                    2 => "\n/* c\n * d */ ",
                    3 => "\n",
                    4 => "\n\n// e\n\n",
                    _ => continue,
                };
                text.insert_str(piece.start as usize, insert);
            }
            if super::parse(&text, &name).is_err() {
                continue;
            }
            tried += 1;
            match settled(&text, &name).expect("it parses") {
                Some(_) => kept += 1,
                None => eprintln!("--- {name} has no layout:\n{text}"),
            }
        }
    }
    assert_eq!(kept, tried);
    assert!(tried > 500, "{tried}");
}

/// Whatever is typed, the tools answer.
#[test]
fn broken_programs_are_no_trouble() {
    let mut seed = 11_usize;
    for (name, source) in programs() {
        for _ in 0..20 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bound = |at: usize| (0..=at % (source.len() + 1)).rev().find(|i| source.is_char_boundary(*i));
            let (a, b) = (bound(seed >> 33).expect("0 is one"), bound(seed >> 20).expect("0 is one"));
            // A part is missing, or a part alone.
            for text in
                [format!("{}{}", &source[..a.min(b)], &source[a.max(b)..]), source[a.min(b)..].to_string()]
            {
                if let Ok(once) = format(&text, &name) {
                    assert_eq!(format(&once, &name).expect("it parses"), once, "{text}");
                }
                let outline = crate::symbols::Outline::of(&text);
                outline.visible(a as u32);
                crate::symbols::unfinished(&text);
            }
        }
    }
}

#[test]
fn deep_programs_have_a_layout() {
    let nest = |open: &str, inner: &str, close: &str, depth: usize| {
        format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
    };
    let programs = [
        nest("(", "1", ")", 40),
        nest("[", "1", "]", 40),
        nest("if (a) { ", "b", " }", 60),
        nest("if (a) ", "b", "", 60),
        nest("f(x => { g(", "b", ") })", 20),
        nest("a ? b : ", "c", "", 50),
        nest("- ", "c", "", 60),
    ];
    for program in programs {
        assert!(settled(&program, "").expect("it parses").is_some(), "{program}");
    }
    // Deeper than the parser goes is an error and no more.
    for depth in [1_000, 100_000] {
        format(&nest("[", "1", "]", depth), "").expect_err("too deep");
    }
}
