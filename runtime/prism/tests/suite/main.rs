//! The language, page by page of its description, and the runs of programs.

mod effects;
mod functions;
mod limits;
mod modules;
mod operators;
mod programs;
mod random;
mod statements;
mod support;
mod values;
