//! Writes what fuzzing starts from: a corpus for each target and a dictionary, out of the language's own tests.

#[path = "../../tests/suite/programs.rs"]
#[allow(dead_code, reason = "each of its users takes a part")]
mod programs;

use std::{fs, path::Path};

fn main() -> std::io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for folder in ["../tests/errors", "../../../patterns"] {
        for entry in fs::read_dir(here.join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "prism") {
                sources.push(fs::read_to_string(path)?);
            }
        }
    }
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(here.join("../tests/cases.json"))?)?;
    sources.extend(cases.iter().filter_map(|case| case["program"].as_str().map(String::from)));

    for target in ["parse", "run"] {
        let corpus = here.join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        for (i, source) in sources.iter().enumerate() {
            fs::write(corpus.join(format!("seed-{i:03}")), source)?;
        }
    }
    // Programs of the grammar, out of noise.
    for seed in 1..200_u64 {
        let noise = |i: u64| ((seed << 32 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8;
        let bytes: Vec<u8> = std::iter::once(0).chain((0..400).map(noise)).collect();
        fs::write(here.join(format!("corpus/run/grammar-{seed:03}")), bytes)?;
    }
    let quoted = |token: &str| format!("\"{}\"\n", token.replace('\\', "\\\\").replace('"', "\\\""));
    fs::write(here.join("prism.dict"), programs::tokens().into_iter().map(quoted).collect::<String>())
}
