//! The edges: translation between the wire and this crate's functions, and nothing else.

pub mod coordinator;
pub mod directory;
pub mod edge;
pub mod executions;
pub mod gateway;
pub mod grpc;
pub mod http;
pub mod json;
pub mod patterns;
pub mod registry;
