//! `parallax prism test`.

use std::{collections::BTreeSet, path::Path};

use parallax_prism::conformance::run_cases;

use super::{print, source};
use crate::exit::{Exit, Result};

/// Runs every case of a file, prints those that differ, and counts.
pub(super) fn run(file: &Path) -> Result {
    let json = source::read(file)?;
    let report = run_cases(&json)
        .map_err(|e| Exit::usage(format!("{} is no list of conformance cases: {e}", file.display())))?;
    for failure in &report.failures {
        print(failure);
    }
    // A case may differ in both profiles, and is one case all the same.
    let differ = report.failures.iter().map(|failure| &failure.id).collect::<BTreeSet<_>>().len();
    print(format_args!("{} passed, {differ} differ", report.passed));
    if differ == 0 {
        Ok(())
    } else {
        Err(Exit::failed(format!("{differ} of {} cases differ", report.passed + differ)))
    }
}
