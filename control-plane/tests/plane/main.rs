//! The control plane from outside: a plane of its own on free ports, its clients, and nothing behind it.
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

mod coordinator;
mod executions;
mod http;
mod leases;
mod openapi;
mod patterns;
mod registry;
mod schedules;
mod trouble;
mod uploads;
mod watch;
mod webhooks;
mod world;
