//! Whole clusters: both planes in this process or in their own, over mTLS, with agents around them.
#![allow(clippy::unwrap_used, reason = "tests, in functions that are shared by them")]

mod agents;
mod cache;
#[cfg(feature = "cluster")]
mod chaos;
mod commands;
mod contract;
mod coordinator;
mod crash;
#[cfg(feature = "cluster")]
mod etcd;
mod gateway;
#[cfg(feature = "cluster")]
mod histories;
mod http_agents;
mod nodes;
#[cfg(feature = "cluster")]
mod outage;
mod patterns;
mod plaintext;
mod processes;
mod program;
mod reload;
mod runs;
mod schedules;
mod startup;
mod tenants;
mod trouble;
mod uploads;
mod world;
