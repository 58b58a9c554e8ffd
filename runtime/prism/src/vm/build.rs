//! Building arrays and objects, and taking them apart.

use super::{Ran, Vm, ops};
use crate::compile::Empty;
use crate::diagnostic::{Raise, Raised};
use crate::value::{Array, Object, Val};
use std::sync::Arc;

/// A threshold of a pattern. Its range is not limited.
pub(super) fn destructuring_threshold(v: &Val) -> Raised<()> {
    match v {
        Val::Num(_) => Ok(()),
        other => {
            let message = format!("a threshold is a plain number, not {}", ops::described(other));
            Err(Raise::new("threshold_type", message))
        }
    }
}

impl Vm {
    /// `push` in place, of one element without any detour.
    pub(super) fn push_at(&mut self, at: usize, first: usize, n: usize) -> Raised<()> {
        if n == 1 {
            let item = std::mem::replace(&mut self.fiber.stack[first], Val::Null);
            if let Val::Arr(array) = &mut self.fiber.stack[at]
                && let Some(own) = Arc::get_mut(array)
            {
                own.push(item);
                own.meta.check()?;
                return self.charge(16);
            }
            return self.extend_at(at, vec![item]);
        }
        let items = self.take_all(first, n);
        self.extend_at(at, items)
    }

    pub(super) fn extend_at(&mut self, at: usize, items: Vec<Val>) -> Raised<()> {
        self.charge(16 * items.len() as u64)?;
        let Val::Arr(array) = &mut self.fiber.stack[at] else { unreachable!("an array is being built") };
        if Arc::get_mut(array).is_none() {
            // Somebody else holds it: the copy has room to grow.
            let old = array.items();
            let mut copy = Vec::with_capacity(old.len() + old.len() / 2 + items.len());
            copy.extend_from_slice(old);
            let n = copy.len();
            *array = Arc::new(Array::new(copy));
            self.charge(48 + 16 * n as u64)?;
            self.spend(n / 8)?;
        }
        let Val::Arr(array) = &mut self.fiber.stack[at] else { unreachable!("an array is being built") };
        let own = Arc::make_mut(array);
        items.into_iter().for_each(|item| own.push(item));
        own.meta.check()
    }

    /// The elements of what is spread.
    fn spreadable(&mut self, at: usize) -> Ran<Arc<Array>> {
        self.force_at(at)?;
        match self.fiber.stack[at].plain() {
            Val::Arr(array) => Ok(Arc::clone(array)),
            other => {
                let message = format!("only an array can be spread here, not {}", other.described());
                Err(Raise::new("spread_type", message).into())
            }
        }
    }

    pub(super) fn spread_into(&mut self, args: bool, arr: usize, src: usize) -> Ran<()> {
        self.force_at(src)?;
        if args && self.fiber.stack[src].confidence().is_some() {
            let message = "an array with a confidence cannot be spread into arguments";
            return Err(Raise::new("spread_type", message).into());
        }
        let source = self.spreadable(src)?;
        self.charge(16 * source.items().len() as u64)?;
        self.spend(source.items().len() / 8)?;
        Ok(self.extend_at(arr, source.items().to_vec())?)
    }

    pub(super) fn append_at(&mut self, dst: usize, first: usize, n: usize) -> Ran<()> {
        if !matches!(self.fiber.stack[dst], Val::Arr(_)) {
            self.fiber.stack[dst] = Val::Arr(self.spreadable(dst)?);
        }
        let items =
            self.fiber.stack[first..first + n].iter_mut().map(|v| std::mem::replace(v, Val::Null)).collect();
        Ok(self.extend_at(dst, items)?)
    }

    pub(super) fn set_key(&mut self, at: usize, key: &Arc<str>, value: Val) -> Raised<()> {
        self.charge(48)?;
        let Val::Obj(object) = &mut self.fiber.stack[at] else { unreachable!("an object is being built") };
        let own = Arc::make_mut(object);
        own.set(key, value);
        own.meta.check()
    }

    pub(super) fn spread_keys(&mut self, at: usize, src: usize) -> Ran<()> {
        self.force_at(src)?;
        let Val::Obj(source) = self.fiber.stack[src].plain() else {
            let message =
                format!("only an object can be spread here, not {}", self.fiber.stack[src].described());
            return Err(Raise::new("spread_type", message).into());
        };
        let source = Arc::clone(source);
        self.charge(72 + 32 * source.len() as u64)?;
        self.spend(source.len() / 8)?;
        let Val::Obj(object) = &mut self.fiber.stack[at] else { unreachable!("an object is being built") };
        if object.is_empty() {
            *object = source;
            return Ok(());
        }
        let own = Arc::make_mut(object);
        for (key, value) in source.entries() {
            own.set(key, value.clone());
        }
        Ok(own.meta.check()?)
    }

    pub(super) fn unpackable(&mut self, array: bool, src: usize) -> Ran<()> {
        self.force_at(src)?;
        let value = &self.fiber.stack[src];
        let fits = if array { matches!(value, Val::Arr(_)) } else { matches!(value, Val::Obj(_)) };
        if fits {
            return Ok(());
        }
        let wanted = if array { "an array" } else { "an object" };
        let raise = match value.confidence() {
            Some(_) => Raise::new("destructure_type", "a value with a confidence cannot be destructured")
                .hint("take its parts with `.` or `[ ]`, which keep the confidence"),
            None => Raise::new(
                "destructure_type",
                format!("the pattern needs {wanted}, not {}", value.described()),
            ),
        };
        Err(raise.into())
    }

    pub(super) fn weaken(&mut self, empty: Empty, at: usize, threshold: usize) -> Ran<()> {
        let limit = self.fiber.stack[threshold].plain().as_num().unwrap_or(0.0);
        self.force_at(at)?;
        if self.fiber.stack[at].certainty() >= limit {
            return Ok(());
        }
        self.fiber.stack[at] = match empty {
            Empty::Null => Val::Null,
            Empty::Array => Val::Arr(Arc::new(Array::new(Vec::new()))),
            Empty::Object => Val::Obj(Arc::new(Object::new())),
        };
        Ok(())
    }

    pub(super) fn sift(&mut self, at: usize, threshold: usize) -> Ran<()> {
        let limit = self.fiber.stack[threshold].plain().as_num().unwrap_or(0.0);
        self.settle_at(at)?;
        let value = match &self.fiber.stack[at] {
            Val::Arr(array) => {
                let strong = array.items().iter().filter(|v| v.certainty() >= limit).cloned().collect();
                Val::Arr(Arc::new(Array::new(strong)))
            }
            Val::Obj(object) => {
                let strong = object.entries().filter(|(_, v)| v.certainty() >= limit);
                Val::Obj(Arc::new(strong.map(|(k, v)| (Arc::clone(k), v.clone())).collect()))
            }
            other => other.clone(),
        };
        self.fiber.stack[at] = value;
        Ok(())
    }

    pub(super) fn rest_object(&mut self, src: usize, taken: &Val) -> Raised<Val> {
        let taken = taken.as_items().unwrap_or(&[]);
        let Val::Obj(object) = self.fiber.stack[src].plain() else { unreachable!("unpacked before") };
        let rest = object.entries().filter(|(k, _)| !taken.iter().any(|t| t.as_str() == Some(k)));
        let rest: Object = rest.map(|(k, v)| (Arc::clone(k), v.clone())).collect();
        self.charge(72 + 48 * rest.len() as u64)?;
        Val::object(rest)
    }
}
