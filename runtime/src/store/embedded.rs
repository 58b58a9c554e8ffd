//! The adapters that need nothing installed: SQLite, one file and one writing thread for each store.

mod confidence;
mod database;
mod registry;
mod runs;

pub(super) use self::{confidence::Confidences, registry::Registry, runs::Runs};
