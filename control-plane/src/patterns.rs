//! The catalogue of patterns: those in the binary, a directory whose files take their place, and what each tenant
//! uploads.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jsonschema::Validator;
use parallax_prism::{CheckOptions, CompileOptions, Diagnostic, Profile, Program, Severity, check};
use parallax_runtime::{env::Env, lifecycle::Lifecycle, nearest::nearest, store::RegistryStore};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::error::{Error, Result};

mod header;
mod input;
mod library;
mod uploads;
pub use header::Header;
pub use library::Library;
pub use uploads::Upload;
use uploads::Uploads;

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A pattern that can be run.
pub struct Pattern {
    pub header: Header,
    pub script: String,
    /// SHA-256 of the script, in hex.
    pub hash: String,
    pub program: Program,
    /// The file it came from; `(embedded)` stands before those in the binary, `(uploaded)` before what was uploaded.
    pub origin: String,
    /// Of the header's `@input`.
    input: Option<Validator>,
}

/// A script that is no pattern: what is wrong, as a person reads it.
#[derive(Clone, Debug, Error)]
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
    Invalid(#[from] Arc<InvalidPattern>),
    #[error(transparent)]
    Store(#[from] Error),
}

impl InvalidPattern {
    fn new(origin: &str, script: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|found| found.severity != Severity::Error);
        let report: Vec<_> = diagnostics.iter().map(|found| found.render(script)).collect();
        Self { origin: origin.to_owned(), report: report.join("\n"), diagnostics }
    }

    /// What is wrong, as programs read it: severity, message and line of each.
    #[must_use]
    pub fn findings(&self) -> Json {
        if self.diagnostics.is_empty() {
            // It could not be read, or another has its name.
            return json!([{"code": "file", "severity": "error", "file": self.origin, "message": self.report}]);
        }
        json!(self.diagnostics)
    }
}

impl Pattern {
    /// Checks a script and its header.
    ///
    /// # Errors
    /// All that is wrong, with places.
    pub fn parse(origin: &str, script: &str) -> Result<Self, InvalidPattern> {
        match (head(origin, script), compile(origin, script)) {
            (Ok((header, input)), Ok(program)) => {
                // What goes wrong in a run names the pattern, whichever process drives it; above, the file is wanted.
                let program = compile(&header.name, script).unwrap_or(program);
                let hash = Sha256::digest(script).iter().map(|byte| format!("{byte:02x}")).collect();
                Ok(Self {
                    header,
                    script: script.to_owned(),
                    hash,
                    program,
                    origin: origin.to_owned(),
                    input,
                })
            }
            (head, program) => {
                let found = head.err().into_iter().chain(program.err()).flatten().collect();
                Err(InvalidPattern::new(origin, script, found))
            }
        }
    }

    /// The same, and what compiles but is wrong all the same: unknown names, unreachable arms, a result without
    /// confidence. Gives what is doubtful beside the pattern.
    ///
    /// # Errors
    /// All that is wrong, with places.
    pub fn validate(origin: &str, script: &str) -> Result<(Self, Vec<Diagnostic>), InvalidPattern> {
        let options = CompileOptions { name: origin.to_owned(), ..CompileOptions::default() };
        let mut found = head(origin, script).err().unwrap_or_default();
        // These say why the program does not compile, if it does not, and more.
        found.extend(check(script, &options, &CheckOptions { pattern: true, ..CheckOptions::default() }));
        if found.iter().all(|found| found.severity != Severity::Error) {
            return Ok((Self::parse(origin, script)?, found));
        }
        Err(InvalidPattern::new(origin, script, found))
    }

    /// Whether its script runs other patterns.
    #[must_use]
    pub fn runs_others(&self) -> bool {
        self.script.contains("executePattern")
    }

    /// Checks that it is the one that the caller speaks of; an empty text means whichever.
    ///
    /// # Errors
    /// Its header names another.
    pub fn is_called(&self, name: &str, version: &str) -> Result<()> {
        let Header { name: own, version: at, .. } = &self.header;
        if !name.is_empty() && normal(name) != normal(own) {
            return Err(Error::Invalid {
                field: "name",
                problem: format!("\"{name}\" is not its @name, {own}"),
            });
        }
        if !version.is_empty() && version != at {
            let problem = format!("\"{version}\" is not its @version, {at}");
            return Err(Error::Invalid { field: "version", problem });
        }
        Ok(())
    }

    /// `name@version`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}@{}", kebab(&self.header.name), self.header.version)
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

/// What a script says of itself, and the schema that inputs have to fit.
fn head(origin: &str, script: &str) -> Result<(Header, Option<Validator>), Vec<Diagnostic>> {
    let wrong = |line: usize, problem: String| Diagnostic::of_line("header", problem, origin, script, line);
    let header = Header::parse(script).map_err(|problems| -> Vec<_> {
        problems.into_iter().map(|(line, problem)| wrong(line, problem)).collect()
    })?;
    let input = header.input.as_ref().map(input::compile).transpose();
    let input = input.map_err(|problem| {
        let line = script.lines().position(|line| line.contains("@input")).map_or(1, |at| at + 1);
        vec![wrong(line, format!("@input: {problem}"))]
    })?;
    Ok((header, input))
}

/// Compiles a pattern's script; a run does so again with the script that it pinned.
///
/// # Errors
/// All that is wrong.
pub fn compile(name: &str, script: &str) -> Result<Program, Vec<Diagnostic>> {
    let options = CompileOptions { name: name.to_owned(), profile: Profile::Pattern, modules: None };
    Program::compile(script, &options)
}

/// All patterns by name, tenant and version: what a tenant has uploaded stands before the files of the directory, and
/// these before what is in the binary. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    library: Arc<ArcSwap<Library>>,
    uploads: Arc<Uploads>,
}

/// One of a pattern's versions.
pub struct Version {
    pub pattern: Arc<Pattern>,
    /// Of one that was uploaded.
    pub upload: Option<Arc<Upload>>,
    /// Whether it is what the bare name means.
    pub current: bool,
}

impl Catalog {
    /// Reads the library and what has been uploaded, and follows both: the directory by looking at it every
    /// second, the store by its watch.
    ///
    /// # Errors
    /// As [`Library::open`]; the store's.
    pub async fn open(
        directory: Option<&Path>,
        store: Arc<dyn RegistryStore>,
        env: Arc<dyn Env>,
        life: &Lifecycle,
    ) -> Result<Self, CatalogError> {
        let library = Arc::new(ArcSwap::from_pointee(Library::open(directory)?));
        let uploads = Arc::new(Uploads::open(store, env, life).await?);
        if directory.is_some() {
            life.spawn_until_stopped("pattern directory", follow(library.clone()));
        }
        Ok(Self { library, uploads })
    }

    /// A pattern by its name, in `CamelCase`, `kebab-case` or `snake_case`; an empty version means the current one.
    ///
    /// # Errors
    /// No such name, with the nearest ones; no such version, with those there are; an upload of an earlier release
    /// that is no valid pattern now.
    pub fn get(&self, tenant: &str, name: &str, version: &str) -> Result<Arc<Pattern>> {
        let (normal, library) = (normal(name), self.library.load());
        let upload = match version {
            "" => self.uploads.current(tenant, &normal),
            version => self.uploads.get(tenant, &normal, version),
        };
        if let Some(upload) = upload {
            return Ok(upload.pattern()?);
        }
        let found = library.named(&normal).find(|p| version.is_empty() || p.header.version == version);
        if let Some(pattern) = found {
            return Ok(pattern.clone());
        }
        let there = self.versions(tenant, name)?;
        let there = there.iter().map(|version| version.pattern.header.version.clone()).collect();
        Err(Error::NoVersion { name: name.to_owned(), asked: version.to_owned(), there })
    }

    /// All versions of a pattern: first those that were uploaded, then the directory's and the binary's.
    ///
    /// # Errors
    /// No such name, with the nearest ones.
    pub fn versions(&self, tenant: &str, name: &str) -> Result<Vec<Version>> {
        let (normal, library) = (normal(name), self.library.load());
        let current = self.uploads.current(tenant, &normal);
        let mut versions = Vec::new();
        for upload in self.uploads.versions(tenant, &normal) {
            // What is no pattern any more cannot be rolled back to.
            let Ok(pattern) = upload.pattern() else { continue };
            let current = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &upload));
            versions.push(Version { pattern, upload: Some(upload), current });
        }
        let mut bare = current.is_none();
        for pattern in library.named(&normal) {
            versions.push(Version { pattern: pattern.clone(), upload: None, current: bare });
            bare = false;
        }
        if versions.is_empty() {
            return Err(unknown(name, &self.list(tenant)));
        }
        Ok(versions)
    }

    /// What each name means to a tenant, by name.
    #[must_use]
    pub fn list(&self, tenant: &str) -> Vec<Arc<Pattern>> {
        let library = self.library.load();
        let all = library.list().map(|pattern| (normal(&pattern.header.name), pattern.clone()));
        let mut all: BTreeMap<String, Arc<Pattern>> = all.collect();
        all.extend(
            self.uploads.all(tenant).filter_map(|(name, upload)| Some((name, upload.pattern().ok()?))),
        );
        all.into_values().collect()
    }

    /// The version that each name means to a tenant now.
    #[must_use]
    pub fn current(&self, tenant: &str) -> BTreeMap<String, String> {
        let version = |pattern: &Arc<Pattern>| (pattern.header.name.clone(), pattern.header.version.clone());
        self.list(tenant).iter().map(version).collect()
    }

    /// A pattern in the version that `versions` has for it, as long as that is there; else in the current one: of a
    /// directory's file only the last is.
    ///
    /// # Errors
    /// As [`Catalog::get`].
    pub fn pinned(
        &self,
        tenant: &str,
        name: &str,
        versions: &BTreeMap<String, String>,
    ) -> Result<Arc<Pattern>> {
        let pin = versions.iter().find(|(pinned, _)| normal(pinned) == normal(name));
        let pinned = pin.and_then(|(_, version)| self.get(tenant, name, version).ok());
        pinned.map_or_else(|| self.get(tenant, name, ""), Ok)
    }

    /// The files of the directory that are not in force, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<Arc<InvalidPattern>> {
        self.library.load().problems().cloned().collect()
    }

    /// Keeps a version of a pattern, and makes it the current one. One that is there already with the same script
    /// is as good; with another script it is replaced if `overwrite` says so.
    ///
    /// # Errors
    /// A version that is there with another script; a header or a script that is too large to be kept; the store's.
    pub async fn upload(&self, tenant: &str, pattern: &Pattern, by: &str, overwrite: bool) -> Result<()> {
        self.uploads.put(tenant, &normal(&pattern.header.name), pattern, by, overwrite).await
    }

    /// Makes a version that was uploaded the current one.
    ///
    /// # Errors
    /// None such was uploaded; the store's.
    pub async fn roll_back(&self, tenant: &str, name: &str, version: &str) -> Result<()> {
        self.uploads.choose(tenant, &normal(name), version).await
    }

    /// Deletes what was uploaded under a name: all of it, or one version that is not the current one.
    ///
    /// # Errors
    /// Nothing such was uploaded; the current version; the store's.
    pub async fn delete(&self, tenant: &str, name: &str, version: Option<&str>) -> Result<()> {
        self.uploads.delete(tenant, &normal(name), version).await
    }
}

/// Looks at the directory again and again.
async fn follow(library: Arc<ArcSwap<Library>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let before = library.load_full();
        // Files are read where that holds up nobody.
        let look = tokio::task::spawn_blocking(move || before.look());
        if let Ok(Some(changed)) = look.await {
            library.store(Arc::new(changed));
        }
    }
}

fn unknown<'a>(name: &str, known: impl IntoIterator<Item = &'a Arc<Pattern>>) -> Error {
    let known: Vec<_> = known.into_iter().map(|pattern| kebab(&pattern.header.name)).collect();
    let nearest = nearest(&kebab(name), known.iter().map(String::as_str));
    Error::NoPattern { name: name.to_owned(), nearest: nearest.into_iter().map(str::to_owned).collect() }
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
