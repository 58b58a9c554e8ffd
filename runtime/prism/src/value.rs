//! Values. [`Value`] is what an owner of a run sees; inside the crate a value is a [`Val`], two machine words, whose
//! contents are shared and never changed while shared.
//!
//! Confidence is flat: it wraps a plain value once ([`Val::Sure`]), so code that never meets a confidence never pays
//! for one. Containers carry a [`Meta`] that bounds every walk over them and says whether an answer is still awaited
//! inside.

mod api;
mod equality;
mod json;
mod object;
mod text;

pub use api::ValueKind;
pub(crate) use equality::{instance_of, loose_equal, strict_equal};
pub(crate) use object::{Object, Shape};
pub(crate) use text::{display, printed, text};

use crate::builtins::Native;
use crate::diagnostic::{Raise, Raised};
use crate::effects::Slot;
use crate::limits::{MAX_NESTING, MAX_WEIGHT};
use std::sync::Arc;

/// A Prism value: data, optionally with a confidence. Cheap to clone, immutable, and free to move between threads.
///
/// Serialises to JSON; a value with a confidence becomes `{"$value": v, "$confidence": c}`, at any depth, and reads
/// back as itself. Functions have no JSON form: objects leave them out, elsewhere they are null.
#[derive(Clone)]
pub struct Value(pub(crate) Val);

#[derive(Clone)]
pub(crate) enum Val {
    Null,
    Bool(bool),
    Num(f64),
    Str(Arc<String>),
    Arr(Arc<Array>),
    Obj(Arc<Object>),
    Func(Arc<Func>),
    Native(Native),
    Promise(Arc<Promise>),
    /// A value with a confidence; the value inside never has one itself.
    Sure(Arc<Sure>),
    /// The answer to an effect, which whoever looks at it waits for.
    Pending(Arc<Slot>),
    // The rest never leaves the machine.
    /// A variable that does not exist (yet).
    Unset,
    /// A variable whose declaration has not run.
    Uninit,
    /// A host value that is made when it is first read.
    Lazy(Lazy),
    /// A captured variable that may change: an index into the run's cells.
    Cell(u32),
    /// An error that waits for `finally` to end.
    Error(Arc<crate::vm::Thrown>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lazy {
    AgentResults,
    SuccessfulResults,
}

pub(crate) struct Sure {
    pub(crate) value: Val,
    pub(crate) confidence: f64,
}

pub(crate) enum Promise {
    Fulfilled(Val),
    Rejected(Val),
}

/// What a container knows about its contents.
#[derive(Clone, Copy, Default)]
pub(crate) struct Meta {
    /// Size of the tree it prints as, itself included; see [`MAX_WEIGHT`].
    pub(crate) weight: u32,
    pub(crate) depth: u8,
    /// Somewhere inside is a [`Val::Pending`].
    pub(crate) pending: bool,
}

impl Meta {
    pub(crate) fn absorb(&mut self, inner: Meta) {
        self.weight = self.weight.saturating_add(inner.weight);
        self.depth = self.depth.max(inner.depth.saturating_add(1));
        self.pending |= inner.pending;
    }

    pub(crate) fn check(self) -> Raised<()> {
        if self.depth > MAX_NESTING { Err(too_deep()) } else { Ok(()) }
    }
}

#[cold]
fn too_deep() -> Box<Raise> {
    Raise::new("limit_depth", format!("a value may not nest more than {MAX_NESTING} levels deep"))
}

#[derive(Clone)]
pub(crate) struct Array {
    items: Vec<Val>,
    pub(crate) meta: Meta,
}

impl Array {
    pub(crate) fn new(items: Vec<Val>) -> Array {
        let mut meta = Meta { weight: 1, ..Meta::default() };
        for item in &items {
            meta.absorb(item.meta());
        }
        Array { items, meta }
    }

    pub(crate) fn items(&self) -> &[Val] {
        &self.items
    }

    pub(crate) fn push(&mut self, item: Val) {
        self.meta.absorb(item.meta());
        self.items.push(item);
    }

    pub(crate) fn capacity(&self) -> usize {
        self.items.capacity()
    }
}

/// A function as a value.
pub(crate) struct Func {
    pub(crate) body: Body,
    depth: u8,
}

pub(crate) enum Body {
    Closure {
        info: Arc<FnInfo>,
        captured: Box<[Val]>,
    },
    /// A built-in with its first arguments given: a method taken from its object, or what `threshold(k)` returns.
    Partial {
        native: Native,
        given: Box<[Val]>,
    },
    /// `confidence(k)(f)`.
    Graded {
        f: Val,
        confidence: f64,
    },
}

#[derive(Default)]
pub(crate) struct FnInfo {
    pub(crate) name: Arc<str>,
    pub(crate) proto: u32,
    /// Parameters before a rest parameter.
    pub(crate) params: u16,
    pub(crate) rest: bool,
    /// Calls from `map` overlap.
    pub(crate) is_async: bool,
}

impl Func {
    pub(crate) fn new(body: Body) -> Raised<Func> {
        let inside: &[Val] = match &body {
            Body::Closure { captured, .. } => captured,
            Body::Partial { given, .. } => given,
            Body::Graded { f, .. } => std::slice::from_ref(f),
        };
        let mut meta = Meta::default();
        for value in inside {
            meta.absorb(value.meta());
        }
        meta.check()?;
        Ok(Func { body, depth: meta.depth })
    }

    pub(crate) fn name(&self) -> &str {
        match &self.body {
            Body::Closure { info, .. } => &info.name,
            Body::Partial { native, .. } => native.name(),
            Body::Graded { .. } => "confidenceWrapper",
        }
    }

    /// Fewest and most arguments.
    pub(crate) fn arity(&self) -> (usize, usize) {
        match &self.body {
            Body::Closure { info, .. } => {
                let least = info.params as usize;
                (least, if info.rest { usize::MAX } else { least })
            }
            Body::Partial { native, given } => {
                let (least, most) = native.arity();
                (least.saturating_sub(given.len()), most.saturating_sub(given.len()))
            }
            Body::Graded { f, .. } => f.arity().unwrap_or((0, usize::MAX)),
        }
    }
}

impl Val {
    pub(crate) fn str(s: impl Into<String>) -> Val {
        Val::Str(Arc::new(s.into()))
    }

    pub(crate) fn array(items: Vec<Val>) -> Raised<Val> {
        let array = Array::new(items);
        array.meta.check()?;
        Ok(Val::Arr(Arc::new(array)))
    }

    pub(crate) fn object(object: Object) -> Raised<Val> {
        object.meta.check()?;
        Ok(Val::Obj(Arc::new(object)))
    }

    pub(crate) fn func(body: Body) -> Raised<Val> {
        Ok(Val::Func(Arc::new(Func::new(body)?)))
    }

    pub(crate) fn promise(promise: Promise) -> Raised<Val> {
        let value = Val::Promise(Arc::new(promise));
        value.meta().check()?;
        Ok(value)
    }

    /// The value with this confidence, in place of the one it may have had.
    pub(crate) fn sure(self, confidence: f64) -> Val {
        match self {
            Val::Sure(mut sure) => match Arc::get_mut(&mut sure) {
                Some(own) => {
                    own.confidence = confidence;
                    Val::Sure(sure)
                }
                None => Val::Sure(Arc::new(Sure { value: sure.value.clone(), confidence })),
            },
            value => Val::Sure(Arc::new(Sure { value, confidence })),
        }
    }

    /// The value with `confidence` if there is one to give.
    pub(crate) fn maybe_sure(self, confidence: Option<f64>) -> Val {
        match confidence {
            Some(c) => self.sure(c),
            None => self,
        }
    }

    /// The value without its confidence, and the confidence.
    pub(crate) fn peel(&self) -> (&Val, Option<f64>) {
        match self {
            Val::Sure(sure) => (&sure.value, Some(sure.confidence)),
            plain => (plain, None),
        }
    }

    pub(crate) fn plain(&self) -> &Val {
        self.peel().0
    }

    pub(crate) fn confidence(&self) -> Option<f64> {
        self.peel().1
    }

    /// The confidence as a number: that of a plain value is 1.
    pub(crate) fn certainty(&self) -> f64 {
        self.confidence().unwrap_or(1.0)
    }

    pub(crate) fn truthy(&self) -> bool {
        match self {
            Val::Null | Val::Unset | Val::Uninit => false,
            Val::Bool(b) => *b,
            Val::Num(x) => *x != 0.0,
            Val::Str(s) => !s.is_empty(),
            Val::Sure(sure) => sure.value.truthy(),
            _ => true,
        }
    }

    /// What `typeof` says.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Val::Null | Val::Unset | Val::Uninit => "null",
            Val::Bool(_) => "boolean",
            Val::Num(_) => "number",
            Val::Str(_) => "string",
            Val::Arr(_) => "array",
            Val::Obj(_) => "object",
            Val::Func(_) | Val::Native(_) => "function",
            Val::Sure(sure) => sure.value.type_name(),
            _ => "unknown",
        }
    }

    /// The type with its article, for messages.
    pub(crate) fn described(&self) -> &'static str {
        match self.type_name() {
            "null" => "null",
            "boolean" => "a boolean",
            "number" => "a number",
            "string" => "a string",
            "array" => "an array",
            "object" => "an object",
            "function" => "a function",
            _ => "a promise",
        }
    }

    pub(crate) fn meta(&self) -> Meta {
        let flat = |weight| Meta { weight, depth: 0, pending: false };
        match self {
            Val::Str(s) => flat((s.len() / 16).saturating_add(1).min(u32::MAX as usize) as u32),
            Val::Arr(array) => array.meta,
            Val::Obj(object) => object.meta,
            Val::Func(f) => Meta { depth: f.depth, ..flat(1) },
            Val::Sure(sure) => {
                let mut meta = flat(1);
                meta.absorb(sure.value.meta());
                meta
            }
            Val::Promise(promise) => {
                let (Promise::Fulfilled(inner) | Promise::Rejected(inner)) = &**promise;
                Meta { depth: inner.meta().depth.saturating_add(1), ..flat(1) }
            }
            Val::Pending(_) => Meta { pending: true, ..flat(1) },
            _ => flat(1),
        }
    }

    /// Whether nothing in the value is still awaited.
    pub(crate) fn settled(&self) -> bool {
        match self {
            Val::Pending(_) => false,
            Val::Arr(array) => !array.meta.pending,
            Val::Obj(object) => !object.meta.pending,
            Val::Sure(sure) => sure.value.settled(),
            _ => true,
        }
    }

    /// Fails for a value whose tree is too large to walk.
    pub(crate) fn check_weight(&self) -> Raised<()> {
        if self.meta().weight > MAX_WEIGHT {
            return Err(Raise::new("limit_memory", "the value is too large to be printed, compared or sent"));
        }
        Ok(())
    }

    pub(crate) fn callable(&self) -> bool {
        matches!(self.plain(), Val::Func(_) | Val::Native(_))
    }

    pub(crate) fn is_async(&self) -> bool {
        match self.plain() {
            Val::Func(f) => match &f.body {
                Body::Closure { info, .. } => info.is_async,
                Body::Graded { f, .. } => f.is_async(),
                Body::Partial { .. } => false,
            },
            _ => false,
        }
    }

    /// Fewest and most arguments, if this is a function.
    pub(crate) fn arity(&self) -> Option<(usize, usize)> {
        match self.plain() {
            Val::Func(f) => Some(f.arity()),
            Val::Native(native) => Some(native.arity()),
            _ => None,
        }
    }

    pub(crate) fn as_num(&self) -> Option<f64> {
        match self {
            Val::Num(x) => Some(*x),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Val::Str(s) => Some(s),
            _ => None,
        }
    }

    pub(crate) fn as_items(&self) -> Option<&[Val]> {
        match self {
            Val::Arr(array) => Some(array.items()),
            _ => None,
        }
    }

    /// The property of a plain or confident object.
    pub(crate) fn get(&self, key: &str) -> Option<&Val> {
        match self.plain() {
            Val::Obj(object) => object.get(key),
            _ => None,
        }
    }

    /// Bytes that this one node holds, roughly.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Val::Str(s) => 40 + s.capacity() as u64,
            Val::Arr(array) => 48 + 16 * array.capacity() as u64,
            Val::Obj(object) => 72 + 16 * object.len() as u64,
            Val::Func(_) | Val::Promise(_) | Val::Pending(_) => 80,
            Val::Sure(_) => 40,
            _ => 0,
        }
    }
}
