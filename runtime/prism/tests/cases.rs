//! The conformance cases.

use parallax_prism::conformance::run_cases;

#[test]
fn every_case_passes() {
    let report = run_cases(include_str!("cases.json")).expect("the file is readable");
    for failure in &report.failures {
        eprintln!("{failure}");
    }
    assert!(report.failures.is_empty(), "{} passed, {} differ", report.passed, report.failures.len());
    assert_eq!(report.passed, 251);
}
