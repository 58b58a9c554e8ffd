//! The settings that the benches start planes with.

use std::path::Path;

use parallax_cli::{args::Place, settings::Settings};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The defaults, on any free ports.
pub fn settings(dir: &Path) -> Result<Settings> {
    let place = Place { data_dir: Some(dir.to_owned()), config: None };
    let any = ["control_plane.http", "control_plane.grpc", "data_plane.grpc", "data_plane.admin"];
    let flags = any.map(|key| ("(bench)", key, "127.0.0.1:0".to_owned()));
    Settings::load(&place, &flags).map(|loaded| loaded.settings).map_err(|e| e.to_string().into())
}
