//! What can be said of a program's calls without running it: how many it makes, at least and at most, and in which
//! steps.
//!
//! The program is followed once, with everything that its values may be in place of what they are. Both branches of a
//! condition are taken; a loop is taken once and counted as often as it may go round; a function is followed where it
//! is called. So the least is never more than what a run does that ends with a result, and the most never less than
//! what any run does. Where no most can be told, the reason is.

mod amount;
mod attempt;
mod expr;
mod functions;
mod interpret;
mod loops;
mod mermaid;
mod natives;
mod state;
#[cfg(test)]
mod tests;
mod value;

pub use amount::Amount;

use crate::compile::{CompileOptions, load, resolve};
use crate::diagnostic::Diagnostic;
use crate::lexer::Names;
use serde::Serialize;

/// A program's calls: of agents, language models and other patterns. What a pattern that it calls does is not counted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// No run that ends with a result makes fewer calls.
    pub least: Amount,
    /// No run makes more.
    pub most: Most,
    /// What it does, one after the other. Only what leads to calls is here.
    pub steps: Vec<Step>,
}

/// An upper bound, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Most {
    Of(Amount),
    Unbounded(Reason),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub why: String,
    /// From 1.
    pub line: u32,
}

/// Lines are those where a step begins, from 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// One call, or with [`Asked::Everyone`] one of every agent.
    Ask {
        asked: Asked,
        /// The task, prompt or name of a pattern, if it stands there as it is.
        #[serde(skip_serializing_if = "Option::is_none")]
        what: Option<String>,
        line: u32,
    },
    /// One of the arms, by a condition.
    Branch { condition: String, arms: Vec<Arm>, line: u32 },
    Loop {
        /// How it begins, or over what it goes.
        over: String,
        /// How often at most.
        times: Most,
        steps: Vec<Step>,
        line: u32,
    },
    /// `parallel`, `race` or `Promise.all`: its calls are asked for at once.
    Together { how: String, steps: Vec<Step>, line: u32 },
    /// A function of the program, where it is called.
    Function { name: String, steps: Vec<Step>, line: u32 },
    /// Out of the innermost loop, on to its next turn, or out of the function or program.
    Leave { way: Way, line: u32 },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Arm {
    pub when: String,
    pub steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    Agent,
    /// `agentResults`: every agent.
    Everyone,
    Model,
    Pattern,
    /// The clock: no call.
    Sleep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Break,
    Continue,
    Return,
}

/// Follows a program without running it.
///
/// # Errors
/// What is wrong with a program that does not compile.
pub fn explain(source: &str, options: &CompileOptions) -> Result<Explanation, Vec<Diagnostic>> {
    crate::Program::compile(source, options)?;
    let mut names = Names::default();
    let loaded = load(source, options, &mut names)?;
    let resolved = resolve(&loaded.modules, loaded.idents, options.profile);
    Ok(interpret::Interpreter::new(&resolved, &names, &loaded.files[0], options.profile)
        .program(&loaded.modules[0].tree))
}

impl Explanation {
    /// The steps as a Mermaid flowchart.
    #[must_use]
    pub fn mermaid(&self) -> String {
        mermaid::draw(&self.steps)
    }
}

impl Step {
    /// Whether it comes to a call, or to waiting.
    fn asks(&self) -> bool {
        match self {
            Step::Ask { .. } => true,
            Step::Leave { .. } => false,
            Step::Branch { arms, .. } => arms.iter().any(|arm| arm.steps.iter().any(Step::asks)),
            Step::Loop { steps, .. } | Step::Together { steps, .. } | Step::Function { steps, .. } => {
                steps.iter().any(Step::asks)
            }
        }
    }
}

impl Step {
    /// It without the marks of a loop that is over.
    fn resolve(&mut self, mark: &dyn Fn(u32, bool) -> Option<Amount>, reason: &Reason) {
        let steps: Vec<&mut Step> = match self {
            Step::Ask { .. } | Step::Leave { .. } => vec![],
            Step::Branch { arms, .. } => arms.iter_mut().flat_map(|arm| &mut arm.steps).collect(),
            Step::Loop { times, steps, .. } => {
                *times = times.resolved(mark, reason);
                steps.iter_mut().collect()
            }
            Step::Together { steps, .. } | Step::Function { steps, .. } => steps.iter_mut().collect(),
        };
        steps.into_iter().for_each(|step| step.resolve(mark, reason));
    }
}

/// The line of a reason whose place is not known yet.
const NOWHERE: u32 = 0;

impl Most {
    fn zero() -> Most {
        Most::Of(Amount::default())
    }

    fn is_zero(&self) -> bool {
        matches!(self, Most::Of(amount) if amount.is_zero())
    }

    fn with(&self, other: &Most, both: impl Fn(&Amount, &Amount) -> Amount) -> Most {
        match (self, other) {
            (Most::Of(a), Most::Of(b)) => match both(a, b) {
                sum if sum.too_large() => {
                    let why = "how often is too involved to be said".to_string();
                    Most::Unbounded(Reason { why, line: NOWHERE })
                }
                sum => Most::Of(sum),
            },
            (Most::Of(_), unbounded) | (unbounded, _) => unbounded.clone(),
        }
    }

    fn plus(&self, other: &Most) -> Most {
        self.with(other, Amount::plus)
    }

    fn or(&self, other: &Most) -> Most {
        self.with(other, Amount::larger)
    }

    /// Says where it became too involved, unless that is known.
    fn place(&mut self, line: u32) {
        if let Most::Unbounded(reason) = self
            && reason.line == NOWHERE
        {
            reason.line = line;
        }
    }

    /// Nothing, however often, stays nothing.
    fn times(&self, other: &Most) -> Most {
        if self.is_zero() || other.is_zero() { Most::zero() } else { self.with(other, Amount::times) }
    }

    fn resolved(&self, mark: &dyn Fn(u32, bool) -> Option<Amount>, reason: &Reason) -> Most {
        match self {
            Most::Of(amount) => match amount.resolved(true, mark) {
                Some(amount) => Most::Of(amount),
                None => Most::Unbounded(reason.clone()),
            },
            unbounded => unbounded.clone(),
        }
    }
}
