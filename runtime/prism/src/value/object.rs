//! Objects: ordered maps from text to values, whose key lists ("shapes") are shared by objects made alike.

use super::{Meta, Val};
use std::collections::HashMap;
use std::sync::Arc;

/// Above this many keys a shape keeps a hash index; below, comparing a few keys is faster.
const INDEXED: usize = 12;

#[derive(Clone, Default)]
pub(crate) struct Shape {
    keys: Vec<Arc<str>>,
    index: HashMap<Arc<str>, u32>,
}

impl Shape {
    pub(crate) fn keys(&self) -> &[Arc<str>] {
        &self.keys
    }

    pub(crate) fn find(&self, key: &str) -> Option<usize> {
        if self.keys.len() > INDEXED {
            return self.index.get(key).map(|i| *i as usize);
        }
        self.keys.iter().position(|k| **k == *key)
    }

    fn push(&mut self, key: Arc<str>) {
        self.keys.push(key);
        let len = self.keys.len();
        if len == INDEXED + 1 {
            self.index = self.keys.iter().cloned().zip(0..).collect();
        } else if len > INDEXED {
            self.index.insert(Arc::clone(&self.keys[len - 1]), len as u32 - 1);
        }
    }

    /// A shape of these keys, which must differ from each other.
    pub(crate) fn of(keys: impl IntoIterator<Item = Arc<str>>) -> Shape {
        let mut shape = Shape::default();
        keys.into_iter().for_each(|key| shape.push(key));
        shape
    }
}

#[derive(Clone)]
pub(crate) struct Object {
    shape: Arc<Shape>,
    values: Vec<Val>,
    pub(crate) meta: Meta,
}

impl Object {
    pub(crate) fn new() -> Object {
        Object::with_shape(Arc::new(Shape::default()), Vec::new())
    }

    /// `values` in the order of the shape's keys.
    pub(crate) fn with_shape(shape: Arc<Shape>, values: Vec<Val>) -> Object {
        debug_assert_eq!(shape.keys.len(), values.len());
        let mut meta = Meta { weight: 1, ..Meta::default() };
        for (key, value) in shape.keys.iter().zip(&values) {
            meta.absorb(value.meta());
            meta.weight = meta.weight.saturating_add(key.len() as u32 / 16);
        }
        Object { shape, values, meta }
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(crate) fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Val> {
        self.shape.find(key).map(|i| &self.values[i])
    }

    /// `get` that first looks where the key was the last time.
    #[inline]
    pub(crate) fn get_hinted(&self, key: &Arc<str>, hint: &mut u16) -> Option<&Val> {
        if let Some(k) = self.shape.keys.get(*hint as usize)
            && (Arc::ptr_eq(k, key) || **k == **key)
        {
            return self.values.get(*hint as usize);
        }
        let i = self.shape.find(key)?;
        *hint = i.min(u16::MAX as usize) as u16;
        self.values.get(i)
    }

    pub(crate) fn set(&mut self, key: &Arc<str>, value: Val) {
        self.meta.absorb(value.meta());
        match self.shape.find(key) {
            Some(i) => {
                self.meta.weight = self.meta.weight.saturating_sub(self.values[i].meta().weight);
                self.values[i] = value;
            }
            None => {
                self.meta.weight = self.meta.weight.saturating_add(key.len() as u32 / 16);
                Arc::make_mut(&mut self.shape).push(Arc::clone(key));
                self.values.push(value);
            }
        }
    }

    pub(crate) fn entries(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &Val)> {
        self.shape.keys.iter().zip(&self.values)
    }

    pub(crate) fn values(&self) -> &[Val] {
        &self.values
    }
}

impl FromIterator<(Arc<str>, Val)> for Object {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Val)>>(entries: I) -> Object {
        let mut object = Object::new();
        entries.into_iter().for_each(|(key, value)| object.set(&key, value));
        object
    }
}
