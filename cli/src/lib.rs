//! The program `parallax`: both planes, and the operator's side of them.
//!
//! It holds no rule of its own: it reads settings, wires the planes to stores and certificates, and shows what the
//! API answers.
//!
//! Invariants:
//! - Commands reach the control plane through its HTTP API only, with an operator's certificate.
//! - What a command prints goes to stdout, what it complains of to stderr, and its exit code says which kind of
//!   trouble it was ([`exit::Code`]).

pub mod api;
pub mod args;
pub mod commands;
pub mod exit;
pub mod instance;
pub mod process;
pub mod render;
pub mod settings;
pub mod start;
