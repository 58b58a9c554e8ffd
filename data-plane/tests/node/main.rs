//! The node on a real port, between scripted callers, agents and a scripted control plane.

#![allow(clippy::unwrap_used, reason = "all of this is test")]

mod agent;
mod cache;
mod choice;
mod conformance;
mod connections;
mod directory;
mod dispatch;
mod fallback;
mod fanout;
mod http_agent;
mod life;
mod overload;
mod proxy;
mod trouble;
mod world;
