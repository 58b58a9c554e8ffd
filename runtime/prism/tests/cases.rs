//! The conformance cases.

use parallax_prism::conformance::run_cases;

#[test]
fn a_malformed_case_is_named() {
    for (expect, why) in [
        ("{}", "case a: `expect` has either `value` or `error`"),
        (r#"{"value": 1, "error": {"kind": "parse", "code": "lex"}}"#, "case a: `expect` has either"),
        (r#"{"value": 1, "confidance": null}"#, "case a: unknown field `confidance`"),
    ] {
        let json = format!(r#"[{{"id": "a", "program": "1", "expect": {expect}}}]"#);
        let message = run_cases(&json).expect_err(expect).to_string();
        assert!(message.starts_with(why), "{message}");
    }
    let null = r#"[{"id": "a", "program": "null", "expect": {"value": null}}]"#;
    assert_eq!(run_cases(null).expect("null is a value").passed, 1);
}

#[test]
fn every_case_passes() {
    let report = run_cases(include_str!("cases.json")).expect("the file is readable");
    for failure in &report.failures {
        eprintln!("{failure}");
    }
    assert!(report.failures.is_empty(), "{} passed, {} differ", report.passed, report.failures.len());
    assert_eq!(report.passed, 251);
}
