//! What both planes and the SDK stand on: the domain's nouns, the ports to storage, and the life of a process.
//!
//! It is not a place for policy: nothing here chooses an agent, drives a run or answers a call.
//!
//! Invariants:
//! - Time, randomness and the network are reached only through [`env::Env`].
//! - Adapters of the stores are named only in [`store::Stores`].
//! - A run's status is a fold over its journal ([`run::Summary`]); nothing sets it.
//! - Every key, row and lease carries its tenant.

pub mod agent;
pub mod confidence;
pub mod config;
pub mod env;
pub mod error;
pub mod lifecycle;
pub mod nearest;
pub mod run;
pub mod serve;
pub mod store;
pub mod wire;

/// The tenant of everything that names none.
pub const DEFAULT_TENANT: &str = "default";
