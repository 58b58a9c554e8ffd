//! Agents for Parallax, and the planes called from Rust.
//!
//! An agent is a [`Profile`] and a function from a [`Task`] to an [`Answer`] with a confidence. [`serve`] does
//! the rest: certificates, mutual TLS, registration and its renewal, deadlines, graceful shutdown.
//!
#![doc = concat!("```no_run\n", include_str!("../examples/first_agent.rs"), "\n```")]
//!
//! It is not a framework: it starts no runtime, sets up no logging (it only emits `tracing` events), and keeps
//! no state but in the values it returns.
//!
//! Invariants:
//! - Whatever an agent does (panics, hangs, errs) concerns one call and never its neighbours.
//! - A confidence that leaves an agent is from 0 to 1, or was not stated.
//! - Outside [`TlsOptions::Plaintext`], only data-plane nodes and the tenant's operators are served,
//!   named by certificates of the same authority.
//! - On shutdown the agent leaves the registry before it stops to take calls, and finishes those it has taken.
//! - An agent stays registered for as long as it runs, whatever the control plane goes through.

mod agent;
mod answer;
mod client;
mod error;
mod link;
mod load;
mod many;
mod registration;
mod running;
mod server;
mod service;
mod task;
mod tls;

pub use agent::{Agent, AgentFn, Health, Profile, agent};
pub use answer::{AgentError, Answer};
pub use async_trait::async_trait;
pub use client::{Client, Reply, To};
pub use error::Error;
pub use many::{Asked, Many, Outcome, Until};
pub use parallax_proto as proto;
pub use parallax_runtime::confidence::Confidence;
pub use parallax_security::Files;
pub use running::Handle;
pub use serde_json::{Value as Json, json};
pub use server::{Server, serve};
pub use task::Task;
pub use tls::TlsOptions;

/// Where agents register when nothing else is said.
pub const DEFAULT_REGISTRY: &str = "localhost:50051";
/// Where a client finds a data-plane node when nothing else is said.
pub const DEFAULT_DATA_PLANE: &str = "localhost:50052";
