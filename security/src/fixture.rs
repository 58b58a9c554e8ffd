//! What the tests of this crate share.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use crate::{Authority, Files, Identity, Kind, Tls};

/// The wall clock, because rustls judges a peer's certificate by it.
#[expect(clippy::disallowed_methods, reason = "the handshake under test reads the wall clock")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

pub(crate) fn days(n: u64) -> Duration {
    Duration::from_secs(n * 24 * 3600)
}

/// An authority in a directory that is removed with it, sixty days old.
pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) authority: Authority,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let authority = Authority::open(&dir.path().join("ca"), now() - days(60)).unwrap();
        Self { dir, authority }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The files of `kind`, issued so long ago.
    pub(crate) fn files(&self, kind: Kind, age: Duration) -> Files {
        self.authority.bundle(&identity(kind), &self.path().join("bundles"), now() - age).unwrap()
    }

    /// `kind`'s certificates, issued so long ago, loaded back then.
    pub(crate) fn tls(&self, kind: Kind, age: Duration) -> Tls {
        Tls::load(self.files(kind, age), now() - age).unwrap()
    }
}

pub(crate) fn identity(kind: Kind) -> Identity {
    Identity::new("default", kind, "one").unwrap()
}
