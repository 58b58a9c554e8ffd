//! Modules.

use parallax_prism::{CompileOptions, Host, Profile, Program, Step};
use std::collections::BTreeMap;

fn run(main: &str, modules: &[(&str, &str)]) -> Result<String, String> {
    let modules: BTreeMap<String, String> =
        modules.iter().map(|(p, s)| (p.to_string(), s.to_string())).collect();
    let options =
        CompileOptions { name: "/app/main.prism".into(), profile: Profile::Pattern, modules: Some(modules) };
    let program = Program::compile(main, &options).map_err(|e| format!("{}: {}", e[0].code, e[0].message))?;
    let mut run = program.start(Host::default());
    match run.step(Vec::new()) {
        Step::Done(value) => {
            let out = run.output().join("|");
            Ok(format!("{:?}{}{out}", value, if out.is_empty() { "" } else { " " }))
        }
        Step::Failed(fault) => Err(format!("{} in {}", fault.code, fault.file)),
        Step::Need { .. } => panic!("modules need nothing"),
    }
}

fn gives(main: &str, modules: &[(&str, &str)], expected: &str) {
    assert_eq!(run(main, modules).unwrap_or_else(|e| e), expected, "{main}");
}

#[test]
fn kinds_of_exports() {
    let lib = (
        "/app/lib.prism",
        "export let a = 1\nexport const b = 2\nexport c = 3\nfunction f() { return 4 }\nlet g = 5\nexport {f, g as h}\nexport default a + b\nexport let [z] = [9]",
    );
    gives("import d, {a, b, c, f, h} from \"./lib\"\n[a, b, c, f(), h, d]", &[lib], "[1,2,3,4,5,3]");
    gives("import * as m from \"./lib.prism\"\n[m.a, m.h, m.default]", &[lib], "[1,5,3]");
    gives("import {z} from \"./lib\"", &[lib], "import in /app/main.prism");
    gives("import {default as d} from \"./lib\"\nd", &[lib], "3");
    gives("import {a} from \"./lib\"\na = 5", &[lib], "const_assign in /app/main.prism");
}

#[test]
fn paths() {
    let at = |path: &'static str| [(path, "export let v = 7")];
    gives("import {v} from \"./x\"\nv", &at("/app/x/index.prism"), "7");
    gives("import {v} from \"../x\"\nv", &at("/x.prism"), "7");
    gives("import {v} from \"/x/y.prism\"\nv", &at("/x/y.prism"), "7");
    gives("import {v} from \"x\"\nv", &at("/node_modules/x/index.prism"), "7");
    gives("import {v} from \"x\"\nv", &at("/app/node_modules/x.prism"), "7");
    gives("import {v} from \"./nope\"\n1", &at("/x.prism"), "import in /app/main.prism");
    gives("try { 1 } catch { 2 }\nimport {v} from \"./nope\"", &at("/x.prism"), "import in /app/main.prism");
}

#[test]
fn run_once_and_first() {
    let lib = ("/app/lib.prism", "print(\"lib\")\nexport let n = 1");
    let other = ("/app/other.prism", "import {n} from \"./lib\"\nexport let m = n + 1");
    gives(
        "print(\"main\")\nimport {m} from \"./other\"\nimport {n} from \"./lib\"\nn + m",
        &[lib, other],
        "3 lib|main",
    );
}

#[test]
fn re_exports_and_cycles() {
    let lib = ("/app/lib.prism", "export let a = 1\nexport let b = 2\nexport default 3");
    let all = ("/app/all.prism", "export * from \"./lib\"\nexport {default as d} from \"./lib\"");
    gives("import * as m from \"./all\"\nm", &[lib, all], r#"{"a":1,"b":2,"d":3}"#);
    let a = ("/app/a.prism", "import {b} from \"./b\"\nexport let a = 1\nexport let seen = b");
    let b = ("/app/b.prism", "import {a} from \"./a\"\nexport let b = a");
    gives("import {seen} from \"./a\"\nseen", &[a, b], "null");
}

#[test]
fn scopes() {
    let lib =
        ("/app/lib.prism", "export function f() { return shared + 1 }\nlocal = 5\nexport let n = local");
    gives("import {f, n} from \"./lib\"\nlet shared = 10\n[f(), n]", &[lib], "[11,5]");
    gives("import {n} from \"./lib\"\nlocal", &[lib], "undefined_variable in /app/main.prism");
    let counter = ("/app/counter.prism", "let n = 0\nexport function up() { n = n + 1\nreturn n }");
    gives("import {up} from \"./counter\"\nup()\nup()", &[counter], "2");
}

#[test]
fn errors() {
    let broken = ("/app/broken.prism", "let x = (");
    assert!(run("import \"x\" from", &[]).unwrap_err().starts_with("syntax"));
    assert!(run("import {x} from \"./broken\"", &[broken]).unwrap_err().starts_with("syntax"));
    gives(
        "import {f} from \"./lib\"\nf()",
        &[("/app/lib.prism", "export let f = () => null.x")],
        "property_on_invalid in /app/lib.prism",
    );
    let program = Program::compile("export let x = 1", &CompileOptions::default()).unwrap();
    assert!(matches!(program.start(Host::default()).step(Vec::new()), Step::Failed(f) if f.code == "import"));
}
