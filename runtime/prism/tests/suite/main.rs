//! The language, page by page of its description, and the runs of programs.

mod branches;
mod effects;
mod functions;
mod limits;
mod modules;
mod operators;
mod programs;
mod random;
mod runs;
mod statements;
mod support;
mod values;
