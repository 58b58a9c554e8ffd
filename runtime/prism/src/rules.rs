//! How confidences combine. Patterns rely on the defaults; a host that reasons about uncertainty differently may
//! choose other rules for its runs.

use serde::{Deserialize, Serialize};

/// One confidence out of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    Min,
    Max,
    Product,
    Average,
}

impl Rule {
    pub(crate) fn combine(self, a: f64, b: f64) -> f64 {
        match self {
            Rule::Min => a.min(b),
            Rule::Max => a.max(b),
            Rule::Product => a * b,
            Rule::Average => (a + b) / 2.0,
        }
    }
}

/// Which side `~||>` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selection {
    Max,
    Min,
}

/// What `~@>` gives when its left side is below the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GateFailure {
    /// The left value, its confidence multiplied by the gate's factor.
    Reduce,
    ReturnNull,
    ReturnLeft,
}

/// The threshold gate `~@>`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Gate {
    pub threshold: f64,
    pub reduce_factor: f64,
    pub on_fail: GateFailure,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { threshold: 0.7, reduce_factor: 0.5, on_fail: GateFailure::Reduce }
    }
}

/// The rules of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Rules {
    /// `+ - * / % **` and `~+ ~- ~* ~/`.
    pub arithmetic: Rule,
    /// `< > <= >= == != === !==` and their confident forms.
    pub comparison: Rule,
    /// `~&&`.
    pub logical_and: Rule,
    /// `~||`.
    pub logical_or: Rule,
    /// `~~`.
    pub chain: Rule,
    /// `~?`.
    pub ternary: Rule,
    /// The result of a confident function.
    pub function_call: Rule,
    /// `~||>`.
    pub parallel: Selection,
    /// `~??` keeps its left side from here.
    pub coalesce_threshold: f64,
    pub gate: Gate,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            arithmetic: Rule::Min,
            comparison: Rule::Min,
            logical_and: Rule::Min,
            logical_or: Rule::Max,
            chain: Rule::Min,
            ternary: Rule::Product,
            function_call: Rule::Product,
            parallel: Selection::Max,
            coalesce_threshold: 0.5,
            gate: Gate::default(),
        }
    }
}
