//! What a run may use before it is stopped. Every limit has an error code of its own, and `try` cannot catch one.

use serde::{Deserialize, Serialize};

/// Deepest nesting of a value (arrays, objects and confidence count one level each). It keeps every walk over a
/// value within the machine stack and every value within the recursion limits of JSON and protobuf readers.
pub const MAX_NESTING: u8 = 100;

/// Largest value, counted as the tree it prints as, that may be printed, compared, sent or returned. The unit is
/// about sixteen bytes. Sharing lets a script build a value whose tree is exponentially larger than its memory.
pub const MAX_WEIGHT: u32 = 4_000_000;

/// The limits of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Units of work: a loop turn, a call, an element handled by a built-in. Code `limit_steps`.
    pub steps: u64,
    /// Calls within calls. Code `limit_depth` (also used for values nested deeper than [`MAX_NESTING`]).
    pub depth: u32,
    /// Bytes of live data, estimated. Code `limit_memory`.
    pub memory: u64,
    /// Bytes printed. Code `limit_output`.
    pub output: u64,
    /// Effects requested. Code `limit_effects`.
    pub effects: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { steps: 100_000_000, depth: 10_000, memory: 256 << 20, output: 1 << 20, effects: 1_000_000 }
    }
}
