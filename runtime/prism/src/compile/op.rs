//! The instructions: a register machine, eight bytes each. Registers hold a function's variables and temporaries.
//!
//! An instruction that must wait for an answer leaves its operands as they are and runs again when the answer is
//! there; that is what makes a run resumable at any point.

use crate::ast::{BinOp, UnOp};
use crate::diagnostic::Span;
use crate::value::{FnInfo, Shape, Val};
use std::sync::Arc;

pub(crate) type Reg = u16;
/// Index of a function's code.
pub(crate) type ProtoId = u32;

#[derive(Clone, Copy, Debug)]
#[rustfmt::skip] // A table reads better with a line for each instruction.
pub(crate) enum Op {
    Const { dst: Reg, k: u32 },
    Null { dst: Reg },
    Bool { dst: Reg, value: bool },
    Int { dst: Reg, value: i32 },
    Move { dst: Reg, src: Reg },
    /// Moves a temporary and leaves null behind, so that no copy keeps data shared.
    Take { dst: Reg, src: Reg },
    /// Marks a variable as undeclared (`uninit` false) or as declared but not initialised.
    Reset { dst: Reg, uninit: bool },
    /// The variable must exist and be initialised; a lazy host value is made.
    Check { reg: Reg, name: u32 },

    GetGlobal { raw: bool, dst: Reg, g: u32 },
    /// `checked`: the variable must exist already. Takes `src`.
    SetGlobal { checked: bool, src: Reg, g: u32 },
    /// A value captured when the closure was made.
    GetUp { dst: Reg, i: u16 },
    /// A captured variable that may change. `name` is implied by the debug table.
    GetUpCell { raw: bool, dst: Reg, i: u16 },
    SetUpCell { checked: bool, src: Reg, i: u16 },
    NewCell { dst: Reg, uninit: bool },
    GetCell { raw: bool, dst: Reg, cell: Reg },
    SetCell { checked: bool, src: Reg, cell: Reg },
    /// Before `reg` is extended: if the variable holds the same data, let go of it, so that it is extended in place.
    /// The next instruction stores it again. `n` operands follow `reg`.
    Release { place: Place, i: u16, reg: Reg, n: u16 },
    Closure { dst: Reg, proto: ProtoId },

    Add { dst: Reg, a: Reg, b: Reg },
    Sub { dst: Reg, a: Reg, b: Reg },
    Mul { dst: Reg, a: Reg, b: Reg },
    Div { dst: Reg, a: Reg, b: Reg },
    Mod { dst: Reg, a: Reg, b: Reg },
    AddInt { dst: Reg, a: Reg, value: i16 },
    ModInt { dst: Reg, a: Reg, value: i16 },
    /// `dst = dst + first + … ` over `n` registers; appends in place if `dst` is a text of its own.
    AddAll { dst: Reg, first: Reg, n: u16 },
    Bin { op: BinOp, dst: Reg, a: Reg, b: Reg },
    Un { op: UnOp, dst: Reg, src: Reg },
    Attach { dst: Reg, value: Reg, confidence: Reg },
    /// The texts of `n` registers, joined.
    Text { dst: Reg, first: Reg, n: u16 },

    Jump { to: u32 },
    /// A jump backwards: a loop turn, counted.
    Loop { to: u32 },
    JumpIf { sense: bool, reg: Reg, to: u32 },
    JumpIfSet { reg: Reg, to: u32 },
    // Tests skip the next instruction, a jump, unless the comparison is `sense`.
    TestLt { sense: bool, a: Reg, b: Reg },
    TestLe { sense: bool, a: Reg, b: Reg },
    TestEq { sense: bool, a: Reg, b: Reg },
    TestLtInt { sense: bool, a: Reg, value: i16 },
    TestGtInt { sense: bool, a: Reg, value: i16 },
    TestEqInt { sense: bool, a: Reg, value: i16 },

    /// `base` holds the function, the arguments follow; all of them are taken.
    Call { n: u8, dst: Reg, base: Reg },
    /// The arguments are in the array after `base`.
    CallSpread { dst: Reg, base: Reg },
    /// A hoisted function that never changes and captures nothing. Arguments from `first`.
    CallStatic { dst: Reg, first: Reg, proto: u16 },
    /// Before a `Call` in the list of `Promise.all`, `parallel` or `race`: an async function is left for those to call,
    /// and the call is skipped.
    Defer { n: u8, dst: Reg, base: Reg },
    /// `base` holds the receiver.
    CallMethod { n: u8, dst: Reg, base: Reg, name: u16 },
    Return { src: Reg },

    Get { dst: Reg, obj: Reg, name: u16 },
    /// `Get` of a temporary, which is let go.
    GetTake { dst: Reg, obj: Reg, name: u16 },
    GetOptional { dst: Reg, obj: Reg, name: u16 },
    GetSure { dst: Reg, obj: Reg, name: u16 },
    Index { dst: Reg, obj: Reg, index: Reg },

    NewArray { dst: Reg, first: Reg, n: u16 },
    Extend { arr: Reg, first: Reg, n: u16 },
    /// `args`: into the arguments of a call.
    SpreadInto { args: bool, arr: Reg, src: Reg },
    /// `dst = [...src, first…]`, in place if `dst` is `src` and nobody else holds it.
    Append { dst: Reg, first: Reg, n: u16 },
    /// If `arr` is an array, push in place and skip `skip` instructions, the general call.
    PushIn { skip: u8, arr: Reg, first: Reg, n: u16 },
    NewObject { dst: Reg, first: Reg, shape: u16 },
    SetKey { obj: Reg, src: Reg, name: u16 },
    SpreadKeys { obj: Reg, src: Reg },

    /// `base` becomes an array to walk, `base + 1` the next index.
    IterStart { base: Reg, src: Reg },
    /// The next element, or else jump (the next instruction).
    IterNext { base: Reg, dst: Reg },
    IterIndex { base: Reg, dst: Reg },

    /// 0, 1, 2 for high, medium, low. See [`LevelOf`].
    Level { of: LevelOf, dst: Reg, src: Reg },
    /// Left of a pipeline or ternary, right: `dst` gets the combined value.
    Combine { how: Combine, dst: Reg, left: Reg, right: Reg },

    /// The value must be a plain array (`array`) or object.
    Unpack { array: bool, src: Reg },
    /// An element, null if missing.
    Elem { dst: Reg, src: Reg, i: u16 },
    /// A property; if missing, null and the next instruction (a jump over the default) is skipped.
    Prop { dst: Reg, src: Reg, name: u16 },
    Threshold { reg: Reg },
    /// Below the threshold the value becomes null, or an empty array or object.
    Weak { empty: Empty, reg: Reg, threshold: Reg },
    RestArray { dst: Reg, src: Reg, from: u16 },
    /// `dst` holds nothing yet; `keys` is a constant array of the keys already taken.
    RestObject { dst: Reg, src: Reg, keys: u16 },
    /// Drops what is below the threshold from an array or object.
    Sift { reg: Reg, threshold: Reg },

    // Tests of `match`, like other tests: fall into the next instruction, a jump, if there is no match.
    IsValue { src: Reg, k: u16 },
    IsArray { more: bool, src: Reg, len: u16 },
    IsObject { src: Reg },
    HasKey { src: Reg, name: u16 },
    Confident { src: Reg, threshold: Reg },
    /// The value without its confidence.
    Peel { dst: Reg, src: Reg },

    TryStart { reg: Reg, to: u32 },
    /// Waits for the effects asked for since the matching start, raises what failed unseen, ends the protection.
    TryEnd { wait: bool },
    /// The message of the caught error.
    Message { dst: Reg, src: Reg },
    Rethrow { src: Reg },
    /// Waits for a pending value.
    Force { reg: Reg },

    Import { module: u16 },
    ImportName { dst: Reg, module: u16, name: u16 },
    ImportAll { dst: Reg, module: u16 },
    Export { src: Reg, module: u16, name: u16 },
    ExportAll { module: u16, from: u16 },
    /// The file's code is done.
    ModuleEnd { module: u16 },
    Raise { error: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Global,
    Cell,
    UpCell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LevelOf {
    /// `uncertain if`: a plain condition is an error.
    Strict,
    /// `uncertain while`: plain is high.
    Plain,
    /// `uncertain for`: plain keeps the level in `dst`.
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combine {
    /// `left ~|> right`
    Pipe,
    /// `left ~?> right`
    Filter,
    /// `left ~? right`, the branch chosen.
    Ternary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Empty {
    Null,
    Array,
    Object,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Capture {
    /// A register of the enclosing function: a value, or a cell.
    Reg(Reg),
    /// What the enclosing function itself has captured.
    Up(u16),
}

/// The code of one function.
pub(crate) struct Proto {
    pub(crate) info: Arc<FnInfo>,
    pub(crate) file: u32,
    pub(crate) code: Vec<Op>,
    /// Start and end in the source, one for each instruction.
    pub(crate) spans: Vec<(u32, u32)>,
    pub(crate) regs: u32,
    pub(crate) captures: Vec<Capture>,
    /// Names of the captured variables, for messages.
    pub(crate) capture_names: Vec<u32>,
    /// Names of variables in cells, by register, for messages.
    pub(crate) cell_names: Vec<(Reg, u32)>,
    /// The function as a value, if it captures nothing.
    pub(crate) shared: Option<Val>,
}

/// A name that instructions refer to.
pub(crate) struct Name {
    pub(crate) text: Arc<str>,
    /// The method of arrays and of strings of this name.
    pub(crate) array: Option<crate::builtins::Native>,
    pub(crate) string: Option<crate::builtins::Native>,
}

pub(crate) struct ErrorText {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// Where it is raised, if that is ever reached.
    pub(crate) span: Span,
}

/// Where a variable at the top of a file begins.
pub(crate) enum Start {
    Unset,
    Uninit,
    /// A host's value of this name, else a built-in, else unset.
    Named,
}

pub(crate) struct Global {
    pub(crate) name: Arc<str>,
    pub(crate) start: Start,
}

/// A variable of the main program that lives in a register and may be given by the host.
pub(crate) struct HostReg {
    pub(crate) reg: Reg,
    pub(crate) name: Arc<str>,
}

pub(crate) struct Code {
    pub(crate) protos: Vec<Proto>,
    pub(crate) consts: Vec<Val>,
    pub(crate) names: Vec<Name>,
    pub(crate) shapes: Vec<Arc<Shape>>,
    pub(crate) errors: Vec<ErrorText>,
    pub(crate) globals: Vec<Global>,
    pub(crate) host_regs: Vec<HostReg>,
    /// Main function of each file.
    pub(crate) mains: Vec<ProtoId>,
}
