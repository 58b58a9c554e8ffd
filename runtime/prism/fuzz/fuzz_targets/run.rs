//! A program and what becomes of its effects: the source, a zero byte, and the choices of `tests/suite/programs.rs`.
//! Where the source is empty, the choices make a program of the grammar first.
#![no_main]

#[path = "../../tests/suite/programs.rs"]
#[allow(dead_code, reason = "each of its users takes a part")]
mod programs;

use libfuzzer_sys::fuzz_target;
use parallax_prism::Profile;
use programs::{Choices, exercise, program};

fuzz_target!(|data: &[u8]| {
    let (source, choices) = data.split_at(data.iter().position(|byte| *byte == 0).unwrap_or(data.len()));
    let mut choices = Choices(choices.get(1..).unwrap_or_default());
    let profile = choices.pick(&[Profile::Pattern, Profile::Strict]);
    let source = match source {
        [] => program(&mut choices),
        source => String::from_utf8_lossy(source).into_owned(),
    };
    exercise(&source, profile, &mut choices);
});
