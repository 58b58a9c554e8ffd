//! The pattern library, each pattern played against scripted agents: what it decides, how sure it is of that, and
//! whom it asks on the way.

mod all;
mod batch;
mod charts;
mod checks;
mod consensus;
mod documents;
mod frugal;
mod harness;
mod votes;
