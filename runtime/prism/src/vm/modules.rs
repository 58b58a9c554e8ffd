//! Modules: run once, and seen through what they export.

use super::{Frame, FrameKind, ModuleState, Ret, Vm, Wrap};
use crate::diagnostic::{Raise, Raised, closest};
use crate::value::Val;
use std::sync::Arc;

impl Vm {
    /// Starts the module if it has not run; whether a frame was pushed.
    pub(super) fn import(&mut self, module: u16) -> Raised<bool> {
        let state = &mut self.modules[module as usize].state;
        if *state != ModuleState::Fresh {
            return Ok(false);
        }
        *state = ModuleState::Running;
        self.check_depth()?;
        let proto = self.program.code.mains[module as usize];
        let floor = self.fiber.stack.len();
        self.fiber.stack.resize(floor + self.program.code.protos[proto as usize].regs as usize, Val::Null);
        // Its value goes nowhere: the main register of its own window, which is about to be cut off.
        let ret = Ret { dst: 0, wrap: Wrap::None };
        let kind = FrameKind::Code { proto, pc: 0, base: floor as u32 };
        self.fiber.frames.push(Frame { floor: floor as u32, ret, kind });
        Ok(true)
    }

    pub(super) fn imported(&self, module: u16, name: &str) -> Raised<Val> {
        let module = &self.modules[module as usize];
        match module.exports.get(name) {
            Some(value) => Ok(value.clone()),
            // A cycle sees what there is so far.
            None if module.state == ModuleState::Running => Ok(Val::Null),
            None => {
                let raise = Raise::new("import", format!("the module does not export `{name}`"));
                Err(match closest(name, module.exports.entries().map(|(k, _)| &**k)) {
                    Some(near) => raise.hint(format!("did you mean `{near}`?")),
                    None => raise,
                })
            }
        }
    }

    pub(super) fn export(&mut self, module: u16, name: &Arc<str>, value: Val) -> Raised<()> {
        let exports = &mut self.modules[module as usize].exports;
        exports.set(name, value);
        exports.meta.check()
    }

    pub(super) fn export_all(&mut self, module: u16, from: u16) -> Raised<()> {
        let entries = self.modules[from as usize].exports.clone();
        for (name, value) in entries.entries().filter(|(name, _)| ***name != *"default") {
            self.export(module, name, value.clone())?;
        }
        Ok(())
    }
}
