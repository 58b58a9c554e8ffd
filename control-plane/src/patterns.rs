//! The catalogue of patterns: those in the binary, and a directory whose files take their place.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use jsonschema::Validator;
use parallax_prism::{CompileOptions, Diagnostic, Profile, Program};
use parallax_runtime::nearest::nearest;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::error::{Error, Result};

mod header;
mod input;
pub use header::Header;

/// The files of `patterns/`, as they were when this was built: name and text. The build script lists them.
const EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// A pattern that can be run.
pub struct Pattern {
    pub header: Header,
    pub script: String,
    /// SHA-256 of the script, in hex.
    pub hash: String,
    pub program: Program,
    /// The file it came from; `(embedded)` stands before those in the binary.
    pub origin: String,
    /// Of the header's `@input`.
    input: Option<Validator>,
}

/// A file that is no pattern: what is wrong, as a person reads it.
#[derive(Debug, Error)]
#[error("{origin} is not a valid pattern:\n{report}")]
pub struct InvalidPattern {
    pub origin: String,
    pub report: String,
    pub diagnostics: Vec<Diagnostic>,
}

/// Why a directory of patterns was not taken.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("cannot read the pattern directory {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error(transparent)]
    Invalid(#[from] InvalidPattern),
}

impl Pattern {
    /// Checks a script and its header.
    ///
    /// # Errors
    /// All that is wrong, with places.
    pub fn parse(origin: &str, script: &str) -> Result<Self, InvalidPattern> {
        let invalid =
            |report: String, diagnostics| InvalidPattern { origin: origin.to_owned(), report, diagnostics };
        let header = Header::parse(script).map_err(|problems| invalid(problems.join("\n"), vec![]))?;
        let input = header.input.as_ref().map(input::compile).transpose();
        let input = input.map_err(|problem| invalid(format!("@input: {problem}"), vec![]))?;
        let program = compile(origin, script).map_err(|diagnostics| {
            let report: Vec<_> = diagnostics.iter().map(|d| d.render(script)).collect();
            invalid(report.join("\n"), diagnostics)
        })?;
        let hash = Sha256::digest(script).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { header, script: script.to_owned(), hash, program, origin: origin.to_owned(), input })
    }

    /// Whether a run can begin with this input.
    ///
    /// # Errors
    /// What does not fit the header's `@input`, with JSON pointers.
    pub fn accept(&self, input: &Json) -> Result<()> {
        let misfits = self.input.as_ref().map(|schema| input::misfits(schema, input)).unwrap_or_default();
        if misfits.is_empty() {
            return Ok(());
        }
        Err(Error::Input { pattern: self.header.name.clone(), misfits })
    }
}

/// Compiles a pattern's script; a run does so again with the script that it pinned.
///
/// # Errors
/// All that is wrong.
pub fn compile(name: &str, script: &str) -> Result<Program, Vec<Diagnostic>> {
    let options = CompileOptions { name: name.to_owned(), profile: Profile::Pattern, modules: None };
    Program::compile(script, &options)
}

/// All patterns by name.
#[derive(Clone)]
pub struct Catalog {
    patterns: Arc<BTreeMap<String, Arc<Pattern>>>,
}

impl Catalog {
    /// The embedded patterns, with those of `directory` (its `*.prism` files) beside or in place of them.
    ///
    /// # Errors
    /// A directory that cannot be read, a file that is no pattern, a name that stands twice.
    pub fn open(directory: Option<&Path>) -> Result<Self, CatalogError> {
        let mut patterns = BTreeMap::new();
        for (file, script) in EMBEDDED {
            let pattern = Pattern::parse(&format!("(embedded) {file}"), script)?;
            patterns.insert(normal(&pattern.header.name), Arc::new(pattern));
        }
        let Some(directory) = directory else { return Ok(Self { patterns: Arc::new(patterns) }) };
        let unreadable =
            |path: &Path, source| CatalogError::Read { path: path.display().to_string(), source };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(|e| unreadable(directory, e))? {
            let path = entry.map_err(|e| unreadable(directory, e))?.path();
            if path.extension().is_some_and(|extension| extension == "prism") {
                files.push(path);
            }
        }
        files.sort();
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for path in files {
            let script = std::fs::read_to_string(&path).map_err(|e| unreadable(&path, e))?;
            let pattern = Pattern::parse(&path.display().to_string(), &script)?;
            let name = normal(&pattern.header.name);
            if let Some(other) = seen.insert(name.clone(), pattern.origin.clone()) {
                let report = format!("@name {} stands in {other} as well; rename one", pattern.header.name);
                return Err(InvalidPattern { origin: pattern.origin, report, diagnostics: vec![] }.into());
            }
            patterns.insert(name, Arc::new(pattern));
        }
        Ok(Self { patterns: Arc::new(patterns) })
    }

    /// A pattern by its name, in `CamelCase`, `kebab-case` or `snake_case`; an empty version means whichever
    /// there is.
    ///
    /// # Errors
    /// No such name, with the nearest ones; another version.
    pub fn get(&self, name: &str, version: &str) -> Result<Arc<Pattern>> {
        let Some(pattern) = self.patterns.get(&normal(name)) else {
            let known = self.patterns.values().map(|pattern| kebab(&pattern.header.name)).collect::<Vec<_>>();
            let nearest = nearest(&kebab(name), known.iter().map(String::as_str));
            let nearest = nearest.into_iter().map(str::to_owned).collect();
            return Err(Error::NoPattern { name: name.to_owned(), nearest });
        };
        if !version.is_empty() && version != pattern.header.version {
            return Err(Error::NoVersion {
                name: pattern.header.name.clone(),
                asked: version.to_owned(),
                current: pattern.header.version.clone(),
            });
        }
        Ok(pattern.clone())
    }

    /// All of them, by name.
    pub fn list(&self) -> impl Iterator<Item = &Arc<Pattern>> {
        self.patterns.values()
    }
}

/// The same for all three spellings of a name.
fn normal(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

/// `ConsensusBuilder` and `consensus_builder` as `consensus-builder`.
#[must_use]
pub fn kebab(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
        match c {
            '_' => out.push('-'),
            c => out.extend(c.to_lowercase()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_resolves_in_all_three_spellings_and_the_nearest_is_offered() {
        let catalog = Catalog::open(None).unwrap();
        for name in ["ConsensusBuilder", "consensus-builder", "consensus_builder"] {
            assert_eq!(catalog.get(name, "").unwrap().header.name, "ConsensusBuilder");
        }
        let message = catalog.get("consensus-bilder", "").err().unwrap().to_string();
        assert!(message.contains("did you mean consensus-builder?"), "{message}");
        assert!(matches!(catalog.get("voting", "99.0.0"), Err(Error::NoVersion { .. })));
    }

    #[test]
    fn a_directory_overrides_and_a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let script = "/**\n * @name voting\n * @version 9.0.0\n * @description mine\n */\n1 ~> 0.5\n";
        std::fs::write(dir.path().join("mine.prism"), script).unwrap();
        let catalog = Catalog::open(Some(dir.path())).unwrap();
        assert_eq!(catalog.get("Voting", "9.0.0").unwrap().script, script);
        assert_eq!(catalog.list().count(), EMBEDDED.len());

        std::fs::write(dir.path().join("twice.prism"), script).unwrap();
        let message = Catalog::open(Some(dir.path())).err().unwrap().to_string();
        assert!(message.contains("twice.prism") && message.contains("mine.prism"), "{message}");
        std::fs::write(dir.path().join("twice.prism"), script.replace("1 ~>", "1 +* ~>")).unwrap();
        let message = Catalog::open(Some(dir.path())).err().unwrap().to_string();
        assert!(message.contains("twice.prism:6:"), "{message}");
    }
}
