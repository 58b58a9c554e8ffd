//! What tenants upload: every version, and which is the current one, in the registry store.

use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use parallax_runtime::{
    env::Env,
    lifecycle::Lifecycle,
    store::{Entry, Expect, RegistryStore, StoreError},
};
use serde::{Deserialize, Serialize};

use super::{InvalidPattern, Pattern};
use crate::{
    error::{Error, Result},
    mirror::Mirror,
};

/// `/parallax/patterns/<tenant>/<name>` names the current version, `…/<name>/<version>` is each.
const PATTERNS: &str = "/parallax/patterns/";
/// The largest script that is kept, in bytes: as JSON it fits into what an etcd takes at once.
const MAX_SCRIPT: usize = 512 << 10;
/// The longest name and version, in bytes.
const MAX_LABEL: usize = 128;

/// A version as it is kept.
#[derive(Serialize, Deserialize)]
pub struct Upload {
    pub script: String,
    pub at: Timestamp,
    /// The identity of who uploaded it, or how it came.
    pub by: String,
    /// Compiled when it is first asked for.
    #[serde(skip)]
    pattern: OnceLock<Arc<Pattern>>,
}

impl Upload {
    /// # Errors
    /// An earlier release took for a pattern what this one does not.
    pub(super) fn pattern(&self) -> Result<Arc<Pattern>, InvalidPattern> {
        if let Some(pattern) = self.pattern.get() {
            return Ok(pattern.clone());
        }
        let mut pattern = Pattern::parse("(uploaded)", &self.script)?;
        pattern.origin = format!("(uploaded) {}", pattern.id());
        Ok(self.pattern.get_or_init(|| Arc::new(pattern)).clone())
    }
}

/// What a key below [`PATTERNS`] holds.
enum Kept {
    Current(String),
    Version(Arc<Upload>),
}

fn decode(entry: &Entry) -> Result<Kept> {
    let corrupt = |e: serde_json::Error| StoreError::Corrupt(format!("{}: {e}", entry.key)).into();
    match entry.key.matches('/').count() {
        // "", parallax, patterns, tenant, name
        4 => serde_json::from_slice(&entry.value).map(Kept::Current).map_err(corrupt),
        _ => serde_json::from_slice(&entry.value)
            .map(|upload| Kept::Version(Arc::new(upload)))
            .map_err(corrupt),
    }
}

pub(super) struct Uploads {
    store: Arc<dyn RegistryStore>,
    env: Arc<dyn Env>,
    kept: Arc<Mirror<Kept>>,
}

impl Uploads {
    pub(super) async fn open(
        store: Arc<dyn RegistryStore>,
        env: Arc<dyn Env>,
        life: &Lifecycle,
    ) -> Result<Self> {
        let kept = Mirror::open(store.clone(), PATTERNS, decode, life).await?;
        Ok(Self { store, env, kept })
    }

    pub(super) fn get(&self, tenant: &str, name: &str, version: &str) -> Option<Arc<Upload>> {
        match &*self.kept.get(&version_key(tenant, name, version))? {
            Kept::Version(upload) => Some(upload.clone()),
            Kept::Current(_) => None,
        }
    }

    pub(super) fn current(&self, tenant: &str, name: &str) -> Option<Arc<Upload>> {
        match &*self.kept.get(&key(tenant, name))? {
            Kept::Current(version) => self.get(tenant, name, version),
            Kept::Version(_) => None,
        }
    }

    /// In the order of their times.
    pub(super) fn versions(&self, tenant: &str, name: &str) -> Vec<Arc<Upload>> {
        let kept = self.kept.below(&version_key(tenant, name, ""));
        let mut versions: Vec<_> = kept
            .into_iter()
            .filter_map(|(_, kept)| match &*kept {
                Kept::Version(upload) => Some(upload.clone()),
                Kept::Current(_) => None,
            })
            .collect();
        versions.sort_by_key(|upload| upload.at);
        versions
    }

    /// The current version of each name.
    pub(super) fn all(&self, tenant: &str) -> impl Iterator<Item = (String, Arc<Upload>)> {
        let prefix = key(tenant, "");
        self.kept.below(&prefix).into_iter().filter_map(move |(path, kept)| match &*kept {
            Kept::Current(version) => {
                let name = path.strip_prefix(&prefix)?.to_owned();
                let upload = self.get(tenant, &name, version)?;
                Some((name, upload))
            }
            Kept::Version(_) => None,
        })
    }

    /// The version first, then what points to it: whoever dies in between has changed nothing that shows.
    pub(super) async fn put(
        &self,
        tenant: &str,
        name: &str,
        pattern: &Pattern,
        by: &str,
        overwrite: bool,
    ) -> Result<()> {
        let version = &pattern.header.version;
        bounded(pattern)?;
        let path = version_key(tenant, name, version);
        let before = self.store.get(&path).await?;
        let same = match before.as_ref().map(decode).transpose()? {
            Some(Kept::Version(upload)) => Some(upload.script == pattern.script),
            _ => None,
        };
        if same == Some(false) && !overwrite {
            return Err(Error::VersionTaken { name: pattern.header.name.clone(), version: version.clone() });
        }
        if same != Some(true) {
            let (script, at) = (pattern.script.clone(), self.env.now());
            let upload = Upload { script, at, by: by.to_owned(), pattern: OnceLock::new() };
            let expect = before.map_or(Expect::Absent, |entry| Expect::At(entry.revision));
            let value = serde_json::to_vec(&upload).expect("an upload is plain data");
            self.store.put(&path, value, None, expect).await?;
        }
        self.point(tenant, name, version).await
    }

    async fn point(&self, tenant: &str, name: &str, version: &str) -> Result<()> {
        let value = serde_json::to_vec(version).expect("a text");
        let revision = self.store.put(&key(tenant, name), value, None, Expect::Anything).await?;
        self.kept.seen(revision).await;
        Ok(())
    }

    pub(super) async fn choose(&self, tenant: &str, name: &str, version: &str) -> Result<()> {
        if self.store.get(&version_key(tenant, name, version)).await?.is_none() {
            return Err(Error::NotUploaded { name: name.to_owned(), version: version.to_owned() });
        }
        self.point(tenant, name, version).await
    }

    pub(super) async fn delete(&self, tenant: &str, name: &str, version: Option<&str>) -> Result<()> {
        let none = |version: &str| Error::NotUploaded { name: name.to_owned(), version: version.to_owned() };
        let pointer = self.store.get(&key(tenant, name)).await?;
        let current = match pointer.as_ref().map(decode).transpose()? {
            Some(Kept::Current(current)) => current,
            _ => return Err(none(version.unwrap_or("any"))),
        };
        let doomed = match version {
            Some(version) if version == current => {
                return Err(Error::CurrentVersion { name: name.to_owned(), version: current });
            }
            Some(version) => vec![version_key(tenant, name, version)],
            // What points goes first, so that it never points to nothing.
            None => {
                let versions = self.store.list(&version_key(tenant, name, "")).await?.entries;
                [key(tenant, name)].into_iter().chain(versions.into_iter().map(|entry| entry.key)).collect()
            }
        };
        let mut last = None;
        for path in doomed {
            last = last.max(self.store.delete(&path, Expect::Anything).await?);
        }
        self.kept.seen(last.ok_or_else(|| none(version.unwrap_or("any")))?).await;
        Ok(())
    }
}

/// Whether it can be kept, and its version be part of a key.
fn bounded(pattern: &Pattern) -> Result<()> {
    let header = &pattern.header;
    let too_large = |field, problem| Err(Error::Invalid { field, problem });
    if pattern.script.len() > MAX_SCRIPT {
        return too_large("script", format!("{} bytes are more than {MAX_SCRIPT}", pattern.script.len()));
    }
    if header.name.len() > MAX_LABEL {
        return too_large("@name", format!("is longer than {MAX_LABEL} bytes"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
    if header.version.len() > MAX_LABEL || !header.version.chars().all(plain) {
        let problem = format!("\"{}\" is not up to {MAX_LABEL} letters, digits and . - + _", header.version);
        return too_large("@version", problem);
    }
    Ok(())
}

fn key(tenant: &str, name: &str) -> String {
    format!("{PATTERNS}{tenant}/{name}")
}

fn version_key(tenant: &str, name: &str, version: &str) -> String {
    format!("{PATTERNS}{tenant}/{name}/{version}")
}
