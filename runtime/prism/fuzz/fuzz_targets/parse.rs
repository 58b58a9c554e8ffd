//! Any text: the compiler of both profiles, the checker, the formatter and what an editor asks for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use parallax_prism::{CheckOptions, CompileOptions, Profile, Program, check, format::format, symbols};

fuzz_target!(|source: &str| {
    symbols::Outline::of(source).visible(source.len() as u32 / 2);
    symbols::unfinished(source);
    let formatted = format(source, "");
    if let Ok(text) = &formatted {
        assert_eq!(format(text, "").as_ref(), Ok(text), "formatting settles");
    }
    for profile in [Profile::Strict, Profile::Pattern] {
        let options =
            CompileOptions { profile, modules: Some(Default::default()), ..CompileOptions::default() };
        let found = check(source, &options, &CheckOptions::default());
        for diagnostic in &found {
            diagnostic.render(source);
        }
        match Program::compile(source, &options) {
            Err(_) => assert!(!found.is_empty(), "the checker finds what the compiler refuses"),
            Ok(program) => {
                let text = formatted.as_ref().expect("what compiles can be formatted");
                let again = Program::compile(text, &options).expect("what was formatted compiles");
                assert_eq!(again.facts(), program.facts(), "formatting keeps the meaning");
            }
        }
    }
});
