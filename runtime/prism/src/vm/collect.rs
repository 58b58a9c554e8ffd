//! What the run uses: steps, memory, output. Memory is counted as it is asked for; when the count reaches the limit,
//! what is really reachable is measured, and cells that nothing refers to are freed.

use super::Vm;
use super::run::interrupted;
use crate::diagnostic::{Raise, Raised};
use crate::value::{Body, Promise, Val};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Steps between two looks at the interruption flag.
const QUANTUM: u64 = 2048;

impl Vm {
    /// Called when the fuel has run out, at a point where everything alive is in the machine's own structures.
    #[cold]
    pub(super) fn refuel(&mut self) -> Raised<()> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        if self.allocated > self.next_collect {
            self.collect()?;
        }
        if self.steps_left == 0 {
            let message = format!("the run took more than {} steps", self.limits.steps);
            return Err(Raise::new("limit_steps", message));
        }
        let grant = self.steps_left.min(QUANTUM);
        self.steps_left -= grant;
        self.fuel = grant as u32;
        Ok(())
    }

    /// Counts work that is done without passing through the machine's loop.
    pub(crate) fn spend(&mut self, steps: usize) -> Raised<()> {
        let steps = steps as u64;
        if steps > QUANTUM && self.interrupt.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        let have = u64::from(self.fuel);
        if steps <= have {
            self.fuel -= steps as u32;
            return Ok(());
        }
        self.fuel = 0;
        if self.steps_left < steps - have {
            self.steps_left = 0;
            return self.refuel();
        }
        self.steps_left -= steps - have;
        Ok(())
    }

    /// Counts memory about to be used.
    #[inline]
    pub(crate) fn charge(&mut self, bytes: u64) -> Raised<()> {
        self.allocated += bytes;
        if self.allocated > self.next_collect { self.pressure(bytes) } else { Ok(()) }
    }

    #[cold]
    fn pressure(&mut self, bytes: u64) -> Raised<()> {
        // Measuring has to wait for a safe point; until then at most as much again may be asked for.
        if bytes > self.limits.memory || self.allocated > self.next_collect.saturating_add(self.limits.memory)
        {
            return Err(self.out_of_memory());
        }
        self.steps_left += u64::from(self.fuel);
        self.fuel = 0;
        Ok(())
    }

    pub(super) fn out_of_memory(&self) -> Box<Raise> {
        Raise::new("limit_memory", format!("the run uses more than {} bytes", self.limits.memory))
    }

    pub(crate) fn print(&mut self, line: String) -> Raised<()> {
        self.output_bytes += line.len() as u64 + 1;
        if self.output_bytes > self.limits.output {
            return Err(Raise::new(
                "limit_output",
                format!("the run printed more than {} bytes", self.limits.output),
            ));
        }
        self.output.push(line);
        Ok(())
    }

    fn collect(&mut self) -> Raised<()> {
        let mut walk =
            Walk { seen: HashSet::new(), cells: vec![false; self.cells.len()], todo: Vec::new(), bytes: 0 };
        self.roots(&mut |v| walk.note(v));
        while let Some(value) = walk.todo.pop() {
            if let Val::Cell(i) = value {
                let inner = self.cells[i as usize].clone();
                walk.note(&inner);
            } else {
                walk.children(&value);
            }
        }
        let free: HashSet<u32> = self.free_cells.iter().copied().collect();
        for (i, live) in walk.cells.iter().enumerate() {
            if !live && !free.contains(&(i as u32)) {
                self.cells[i] = Val::Null;
                self.free_cells.push(i as u32);
            }
        }
        let asked: u64 = self.outstanding.values().map(|asked| asked.bytes).sum();
        let live = walk.bytes + asked + 16 * self.cells.len() as u64 + self.fiber_bytes();
        if live > self.limits.memory {
            return Err(self.out_of_memory());
        }
        self.allocated = live;
        self.next_collect = live + (self.limits.memory / 2).max(1 << 16);
        Ok(())
    }

    fn roots(&self, note: &mut dyn FnMut(&Val)) {
        self.globals.iter().for_each(&mut *note);
        self.fiber.values(note);
        self.parked.values().for_each(|fiber| fiber.values(note));
        note(&self.data);
        self.made.iter().for_each(|(_, v)| note(v));
        self.modules.iter().flat_map(|m| m.exports.values()).for_each(&mut *note);
        self.outstanding.values().filter_map(|asked| asked.value.as_ref()).for_each(note);
    }
}

struct Walk {
    seen: HashSet<usize>,
    cells: Vec<bool>,
    todo: Vec<Val>,
    bytes: u64,
}

impl Walk {
    fn note(&mut self, value: &Val) {
        let address = match value {
            Val::Str(s) => Arc::as_ptr(s).addr(),
            Val::Arr(a) => Arc::as_ptr(a).addr(),
            Val::Obj(o) => Arc::as_ptr(o).addr(),
            Val::Func(f) => Arc::as_ptr(f).addr(),
            Val::Sure(s) => Arc::as_ptr(s).addr(),
            Val::Promise(p) => Arc::as_ptr(p).addr(),
            Val::Pending(s) => Arc::as_ptr(s).addr(),
            Val::Cell(i) => {
                let seen = &mut self.cells[*i as usize];
                if !*seen {
                    *seen = true;
                    self.todo.push(value.clone());
                }
                return;
            }
            _ => return,
        };
        if self.seen.insert(address) {
            self.bytes += value.bytes();
            if !matches!(value, Val::Str(_)) {
                self.todo.push(value.clone());
            }
        }
    }

    fn children(&mut self, value: &Val) {
        match value {
            Val::Arr(array) => array.items().iter().for_each(|v| self.note(v)),
            Val::Obj(object) => object.values().iter().for_each(|v| self.note(v)),
            Val::Sure(sure) => self.note(&sure.value),
            Val::Promise(promise) => {
                let (Promise::Fulfilled(v) | Promise::Rejected(v)) = &**promise;
                self.note(v);
            }
            Val::Pending(slot) => {
                if let Some(Ok(v)) = slot.value() {
                    self.note(v);
                }
            }
            Val::Func(f) => match &f.body {
                Body::Closure { captured, .. } => captured.iter().for_each(|v| self.note(v)),
                Body::Partial { given, .. } => given.iter().for_each(|v| self.note(v)),
                Body::Graded { f, .. } => self.note(f),
            },
            _ => {}
        }
    }
}
