//! The patterns that come with a control plane: those in the binary, and the files of a directory.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use tracing::{info, warn};

use super::{CatalogError, InvalidPattern, Pattern, normal, unknown};
use crate::error::Result;

/// The files of `patterns/`, as they were when this was built: name and text. The build script lists them.
const EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

type Patterns = BTreeMap<String, Arc<Pattern>>;

/// Embedded patterns and a directory's. A value: what has changed in the directory makes another ([`Library::look`]).
pub struct Library {
    embedded: Arc<Patterns>,
    /// Those of the directory that are in force.
    own: Patterns,
    directory: Option<PathBuf>,
    files: BTreeMap<PathBuf, File>,
}

/// A file as it was last looked at.
#[derive(Clone)]
struct File {
    /// Taken before it was read: a change while it was is seen the next time.
    stamp: Stamp,
    /// What it says, or said when it last was a pattern.
    pattern: Option<Arc<Pattern>>,
    problem: Option<Arc<InvalidPattern>>,
}

/// What tells that a file is another than before: modification time, size, inode.
type Stamp = (Option<SystemTime>, u64, u64);

impl Library {
    /// The embedded patterns, with those of `directory` (its `*.prism` files) beside or in place of them.
    ///
    /// # Errors
    /// A directory that cannot be read, a file that is no pattern, a name that stands twice.
    pub fn open(directory: Option<&Path>) -> Result<Self, CatalogError> {
        let mut embedded = BTreeMap::new();
        for (file, script) in EMBEDDED {
            let pattern = Pattern::parse(&format!("(embedded) {file}"), script).map_err(Arc::new)?;
            embedded.insert(normal(&pattern.header.name), Arc::new(pattern));
        }
        let directory = directory.map(Path::to_owned);
        let empty =
            Self { embedded: Arc::new(embedded), own: BTreeMap::new(), directory, files: BTreeMap::new() };
        let Some(path) = &empty.directory else { return Ok(empty) };
        let found =
            scan(path).map_err(|source| CatalogError::Read { path: path.display().to_string(), source })?;
        let library = empty.with(found);
        // Somebody is looking on: better no start than another pattern than is meant.
        let problem = library.problems().next().cloned();
        problem.map_or(Ok(library), |problem| Err(problem.into()))
    }

    /// The directory as it is now; `None` if nothing has changed. A file that is no pattern leaves in force what it
    /// said before; one that is gone takes its pattern along.
    pub(super) fn look(&self) -> Option<Self> {
        let directory = self.directory.as_deref()?;
        let found = match scan(directory) {
            Ok(found) => found,
            Err(e) => {
                warn!(
                    "the pattern directory {} cannot be read, all stays as it is: {e}",
                    directory.display()
                );
                return None;
            }
        };
        let same =
            |(path, stamp): (&PathBuf, &Stamp)| self.files.get(path).is_some_and(|f| f.stamp == *stamp);
        if found.len() == self.files.len() && found.iter().all(same) {
            return None;
        }
        let new = self.with(found);
        for problem in new.problems() {
            warn!("not taken: {problem}");
        }
        for (name, pattern) in &new.own {
            if self.own.get(name).is_none_or(|before| before.hash != pattern.hash) {
                info!(
                    pattern = name,
                    version = pattern.header.version,
                    "pattern taken from {}",
                    pattern.origin
                );
            }
        }
        for (name, pattern) in self.own.iter().filter(|(name, _)| !new.own.contains_key(*name)) {
            info!(pattern = name, "pattern gone with {}", pattern.origin);
        }
        Some(new)
    }

    /// The same with these files.
    fn with(&self, found: BTreeMap<PathBuf, Stamp>) -> Self {
        let mut files: BTreeMap<PathBuf, File> = BTreeMap::new();
        for (path, stamp) in found {
            let before = self.files.get(&path);
            let file = match before {
                Some(file) if file.stamp == stamp && file.problem.is_none() => file.clone(),
                _ => match read(&path) {
                    Ok(pattern) => File { stamp, pattern: Some(Arc::new(pattern)), problem: None },
                    Err(problem) => {
                        let pattern = before.and_then(|file| file.pattern.clone());
                        File { stamp, pattern, problem: Some(Arc::new(problem)) }
                    }
                },
            };
            files.insert(path, file);
        }
        // Whoever had a name keeps it.
        let had = |path: &PathBuf, name: &str| {
            let before = self.files.get(path).and_then(|file| file.pattern.as_ref());
            before.is_some_and(|before| normal(&before.header.name) == name)
        };
        let mut own: Patterns = BTreeMap::new();
        for keepers in [true, false] {
            for (path, file) in &mut files {
                let Some(pattern) = file.pattern.clone() else { continue };
                let name = normal(&pattern.header.name);
                if had(path, &name) != keepers {
                    continue;
                }
                let Some(other) = own.get(&name) else {
                    own.insert(name, pattern);
                    continue;
                };
                let report =
                    format!("@name {} stands in {} as well; rename one", pattern.header.name, other.origin);
                let (origin, diagnostics) = (pattern.origin.clone(), vec![]);
                file.problem = Some(Arc::new(InvalidPattern { origin, report, diagnostics }));
                file.pattern = self.files.get(path).and_then(|before| before.pattern.clone());
                if let Some(former) = &file.pattern {
                    own.entry(normal(&former.header.name)).or_insert_with(|| former.clone());
                }
            }
        }
        Self { embedded: self.embedded.clone(), own, directory: self.directory.clone(), files }
    }

    /// The patterns of a normal name: the directory's, then the binary's.
    pub(super) fn named(&self, normal: &str) -> impl Iterator<Item = &Arc<Pattern>> {
        self.own.get(normal).into_iter().chain(self.embedded.get(normal))
    }

    /// What a name means, in any of its three spellings.
    ///
    /// # Errors
    /// No such name, with the nearest ones.
    pub fn get(&self, name: &str) -> Result<&Arc<Pattern>> {
        self.named(&normal(name)).next().ok_or_else(|| unknown(name, self.list()))
    }

    /// What each name means, by name.
    pub fn list(&self) -> impl Iterator<Item = &Arc<Pattern>> {
        let names: BTreeMap<_, _> = self.embedded.iter().chain(&self.own).collect();
        names.into_values()
    }

    /// The files that are not in force, and why.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Arc<InvalidPattern>> {
        self.files.values().filter_map(|file| file.problem.as_ref())
    }
}

fn scan(directory: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "prism")
            // Through links, as a mounted ConfigMap has them; one that is gone meanwhile is gone.
            && let Ok(of) = std::fs::metadata(&path)
            && of.is_file()
        {
            files.insert(path, (of.modified().ok(), of.len(), of.ino()));
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Pattern, InvalidPattern> {
    let origin = path.display().to_string();
    let script = std::fs::read_to_string(path).map_err(|e| InvalidPattern {
        origin: origin.clone(),
        report: format!("it cannot be read: {e}"),
        diagnostics: vec![],
    })?;
    Pattern::parse(&origin, &script)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn script(name: &str, version: &str, body: &str) -> String {
        format!("/**\n * @name {name}\n * @version {version}\n */\n{body}\n")
    }

    struct Files(TempDir);

    impl Files {
        fn write(&self, file: &str, text: &str) {
            // As editors and mounts do: the new file takes the old one's place.
            let new = self.0.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, self.0.path().join(file)).unwrap();
        }

        fn open(&self) -> Result<Library, CatalogError> {
            Library::open(Some(self.0.path()))
        }
    }

    fn version(library: &Library, name: &str) -> String {
        library.named(name).next().map(|p| p.header.version.clone()).unwrap_or_default()
    }

    #[test]
    fn a_directory_overrides_and_a_broken_file_is_named() {
        let files = Files(TempDir::new().unwrap());
        files.write("mine.prism", &script("voting", "9.0.0", "1 ~> 0.5"));
        let library = files.open().unwrap();
        assert_eq!(version(&library, "voting"), "9.0.0");
        assert_eq!((library.list().count(), library.named("voting").count()), (EMBEDDED.len(), 2));

        files.write("twice.prism", &script("voting", "9.0.0", "1 ~> 0.5"));
        let message = files.open().err().unwrap().to_string();
        assert!(message.contains("twice.prism") && message.contains("mine.prism"), "{message}");
        files.write("twice.prism", &script("voting", "9.0.0", "1 +* ~> 0.5"));
        let message = files.open().err().unwrap().to_string();
        assert!(message.contains("twice.prism:5:"), "{message}");
    }

    #[test]
    fn the_directory_is_followed_and_a_broken_file_changes_nothing() {
        let files = Files(TempDir::new().unwrap());
        files.write("a.prism", &script("a", "1.0.0", "1 ~> 0.5"));
        files.write("voting.prism", &script("voting", "9.0.0", "1 ~> 0.5"));
        let library = files.open().unwrap();
        assert!(library.look().is_none(), "nothing has changed");

        files.write("a.prism", &script("a", "2.0.0", "1 +* 2"));
        files.write("b.prism", &script("b", "1.0.0", "1 ~> 0.5"));
        let broken = library.look().unwrap();
        assert_eq!((version(&broken, "a"), version(&broken, "b")), ("1.0.0".to_owned(), "1.0.0".to_owned()));
        let problems: Vec<_> = broken.problems().map(ToString::to_string).collect();
        assert!(problems.len() == 1 && problems[0].contains("a.prism:5:"), "{problems:?}");
        assert!(broken.look().is_none(), "still broken");

        files.write("a.prism", &script("a", "3.0.0", "1 ~> 0.5"));
        fs::remove_file(files.0.path().join("voting.prism")).unwrap();
        let mended = broken.look().unwrap();
        assert_eq!((version(&mended, "a"), mended.problems().count()), ("3.0.0".to_owned(), 0));
        assert!(
            !mended.own.contains_key("voting") && !version(&mended, "voting").is_empty(),
            "the embedded one"
        );
    }

    #[test]
    fn a_name_stays_with_the_file_that_had_it() {
        let files = Files(TempDir::new().unwrap());
        files.write("b.prism", &script("x", "1.0.0", "1 ~> 0.5"));
        let library = files.open().unwrap();
        files.write("a.prism", &script("x", "2.0.0", "1 ~> 0.5"));
        let library = library.look().unwrap();
        assert_eq!((version(&library, "x"), library.problems().count()), ("1.0.0".to_owned(), 1));
        // Once the name is free, the other has it.
        fs::remove_file(files.0.path().join("b.prism")).unwrap();
        let library = library.look().unwrap();
        assert_eq!((version(&library, "x"), library.problems().count()), ("2.0.0".to_owned(), 0));
    }
}
