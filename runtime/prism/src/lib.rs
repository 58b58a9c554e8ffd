//! Prism, the language of Parallax's coordination patterns: small, JavaScript-like, with immutable data and a
//! confidence that may travel with any value.
//!
//! This crate is the language: [`Program::compile`] turns source into bytecode, [`Program::start`] makes a [`Run`], and
//! [`Run::step`] moves it on. It performs nothing. Whatever a script wants from the world is an [`Effect`], data that
//! the owner of the run carries out and answers with an [`Outcome`].
//!
//! It is not a runtime: there is no I/O, no clock, no randomness, no thread and no async code in here, and nothing of
//! the rest of Parallax.
//!
//! Invariants:
//! * A run depends on its program, its [`Host`] and the order of its outcomes, and on nothing else. Feeding the same
//!   outcomes in the same order to a fresh run rebuilds it exactly, however they are grouped into steps.
//! * The cost of a step does not grow with the steps before it.
//! * No source and no outcome makes it panic, hang or overflow the machine stack: syntax and values have a greatest
//!   depth, calls of a script live on the heap, and [`Limits`] bound what a run uses.
//! * Compiled programs are immutable and shared; values are immutable while shared.

mod ast;
mod builtins;
mod check;
mod compile;
pub mod conformance;
mod diagnostic;
mod effects;
pub mod explain;
pub mod format;
mod lexer;
mod limits;
mod parser;
mod rules;
pub mod symbols;
mod value;
mod vm;
mod walk;

pub use check::{CheckOptions, check};
pub use compile::{CompileOptions, Facts, Program};
pub use diagnostic::{Diagnostic, Fault, Kind, Related, Severity, Span, line_column};
pub use effects::{Answer, Effect, EffectId, EffectKind, InvokeOptions, LlmOptions, Outcome};
pub use limits::{Limits, MAX_NESTING, MAX_WEIGHT};
pub use rules::{Gate, GateFailure, Rule, Rules, Selection};
pub use value::{Value, ValueKind};
pub use vm::{AgentInfo, Host, Interrupt, Run, Step};

use serde::{Deserialize, Serialize};

/// Which language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// As upstream's 3.x and 4.x.
    Strict,
    /// `strict`, and what patterns rely on: variables created by assignment, null for missing properties, more
    /// methods and functions.
    #[default]
    Pattern,
}
