//! `/api/license`: clients ask what they may use, and all of it is free.

use std::collections::BTreeMap;

use axum::{Json, extract::Path};
use serde::Serialize;
use utoipa::ToSchema;

/// What clients ask about; there is no edition with more.
const FEATURES: &[&str] = &[
    "agents",
    "coordination",
    "data-plane",
    "mtls",
    "patterns",
    "replay",
    "runs",
    "streaming",
    "tenants",
    "tracing",
];

/// Under which terms this is used.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct License {
    /// SPDX.
    license: &'static str,
    edition: &'static str,
    valid: bool,
    /// Never.
    expires_at: Option<String>,
    features: BTreeMap<&'static str, bool>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Features {
    features: BTreeMap<&'static str, bool>,
    count: usize,
}

/// Whether there is such a feature; whatever there is may be used.
#[derive(Serialize, ToSchema)]
pub(super) struct Check {
    feature: String,
    enabled: bool,
}

fn all() -> BTreeMap<&'static str, bool> {
    FEATURES.iter().map(|feature| (*feature, true)).collect()
}

/// Under which terms this is used.
#[utoipa::path(get, path = "/api/license", tag = "license", responses((status = 200, body = License)))]
pub(super) async fn show() -> Json<License> {
    let (license, edition) = (env!("CARGO_PKG_LICENSE"), "open source");
    Json(License { license, edition, valid: true, expires_at: None, features: all() })
}

/// All features; each is there.
#[utoipa::path(
    get, path = "/api/license/features", tag = "license",
    responses((status = 200, body = Features))
)]
pub(super) async fn features() -> Json<Features> {
    Json(Features { features: all(), count: FEATURES.len() })
}

/// Whether there is such a feature.
#[utoipa::path(
    get, path = "/api/license/check/{feature}", tag = "license",
    responses((status = 200, body = Check))
)]
pub(super) async fn check(Path(feature): Path<String>) -> Json<Check> {
    let enabled = FEATURES.contains(&feature.as_str());
    Json(Check { feature, enabled })
}
