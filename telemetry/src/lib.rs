//! What a Parallax process tells about itself: logs and spans ([`init`]), trace context across processes
//! ([`propagate`]), numbers ([`metrics`]), and whether it lives and is ready ([`admin`], [`health`]).
//!
//! It is not a server (the process mounts [`admin::router`] and [`health::service`] where it likes), keeps no metric of its own and
//! imports nothing of Parallax.
//!
//! Invariants:
//! - The only state of the whole process is the one that `tracing` demands, its subscriber; [`init`] sets it,
//!   once. Registries, metrics and readiness are values that are passed on.
//! - Every metric's name stands in `metrics.rs`, and no metric has a label that a caller can choose freely.
//! - Recording a metric through a handle takes no lock and allocates nothing.
//! - Telemetry never makes the process wait: spans that cannot be exported are dropped, and the last flush is
//!   bounded.

pub mod admin;
mod error;
pub mod health;
mod histogram;
mod init;
pub mod metrics;
pub mod propagate;

pub use error::{Code, Error, Result};
pub use histogram::Histogram;
pub use init::{Config, EXPORTED_ONLY, Format, Guard, init};
/// What a metric that only grows is counted with.
pub use prometheus_client::metrics::counter::Counter;
/// Where metrics are registered, and from which they are encoded.
pub use prometheus_client::registry::Registry;
