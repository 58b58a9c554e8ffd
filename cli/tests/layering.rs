//! Who may import whom: the table of the house, and cargo's word for what is.
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

use std::{collections::BTreeMap, process::Command};

use serde_json::Value as Json;

const BASE: [&str; 4] = ["proto", "security", "telemetry", "runtime"];

/// The crates of the workspace, without `parallax-`, and what each may import; `None` is everything.
fn table() -> BTreeMap<&'static str, Option<Vec<&'static str>>> {
    BTreeMap::from([
        ("prism", Some(vec![])),
        ("proto", Some(vec![])),
        ("security", Some(vec!["proto"])),
        ("telemetry", Some(vec!["proto"])),
        ("runtime", Some(vec!["proto", "security", "telemetry"])),
        ("sdk", Some(BASE.to_vec())),
        ("data-plane", Some(BASE.to_vec())),
        ("control-plane", Some([&BASE[..], &["prism"]].concat())),
        ("cli", None),
    ])
}

/// What each crate of the workspace imports of the workspace, by cargo's own account. Dev-dependencies are free.
fn imports() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Json = serde_json::from_slice(&output.stdout).unwrap();
    let ours = |name: &Json| Some(name.as_str()?.strip_prefix("parallax-")?.to_owned());
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let shipped = dependencies.filter(|dependency| dependency["kind"] != "dev");
            (ours(&package["name"]).unwrap(), shipped.filter_map(|d| ours(&d["name"])).collect())
        })
        .collect()
}

#[test]
fn every_crate_imports_what_it_may_and_no_more() {
    let (table, imports) = (table(), imports());
    assert_eq!(
        table.keys().copied().collect::<Vec<_>>(),
        imports.keys().map(String::as_str).collect::<Vec<_>>(),
        "a crate came or went: say in HOUSE's table, here and in ARCHITECTURE.md what it may import"
    );
    for (name, imported) in &imports {
        let Some(allowed) = &table[name.as_str()] else { continue };
        for import in imported {
            assert!(allowed.contains(&import.as_str()), "{name} may not import {import}, only {allowed:?}");
        }
    }
    // The account is not empty: the planes do import what they stand on.
    for plane in ["control-plane", "data-plane"] {
        assert!(BASE.iter().all(|base| imports[plane].iter().any(|import| import == base)), "{plane}");
    }
}

#[test]
fn the_planes_meet_over_grpc_only() {
    let (table, imports) = (table(), imports());
    for (plane, other) in [("control-plane", "data-plane"), ("data-plane", "control-plane")] {
        assert!(!table[plane].as_ref().unwrap().contains(&other));
        assert!(!imports[plane].iter().any(|import| import == other), "{plane} imports {other}");
    }
    for leaf in ["prism", "proto"] {
        assert_eq!(imports[leaf], Vec::<String>::new(), "{leaf} imports nothing of ours");
    }
}
