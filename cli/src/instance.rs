//! The instance that a data directory belongs to: one process at a time, found by others through its files.

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use parallax_security::{Authority, Identity, Kind, Tls};
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Result};

/// Where the instance of a data directory is reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    pub pid: u32,
    pub http: Option<SocketAddr>,
    pub grpc: Option<SocketAddr>,
    pub data_plane: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
}

/// A data directory that is ours until this is dropped.
pub struct Owned {
    dir: PathBuf,
    _lock: File,
}

/// Makes a directory that nobody else can look into: runs hold what users typed.
pub(crate) fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

fn lock_file(dir: &Path) -> PathBuf {
    dir.join("parallax.lock")
}

fn state_file(dir: &Path) -> PathBuf {
    dir.join("instance.json")
}

/// Why a directory cannot be an instance's.
#[must_use]
pub fn unusable(dir: &Path, e: &std::io::Error) -> Exit {
    let dir = dir.display();
    Exit::usage(format!("data directory {dir} cannot be used: {e}; name another with --data-dir"))
}

/// The refusal of a directory that another process has.
#[must_use]
pub fn occupied(dir: &Path) -> Exit {
    let who = read(dir).map(|a| format!(" (process {})", a.pid)).unwrap_or_default();
    Exit::failed(format!("an instance{who} already runs in {}; `parallax stop` ends it", dir.display()))
}

impl Owned {
    /// Makes the directory if it is not there, and takes it.
    ///
    /// # Errors
    /// One that is taken, or cannot be written to.
    pub fn take(dir: &Path) -> Result<Self> {
        let unusable = |e| unusable(dir, &e);
        make_private(dir).map_err(unusable)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock_file(dir))
            .map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {
                // What a killed process left says nothing of us.
                fs::remove_file(state_file(dir)).ok();
                Ok(Self { dir: dir.to_owned(), _lock: lock })
            }
            Err(TryLockError::WouldBlock) => Err(occupied(dir)),
            Err(TryLockError::Error(e)) => Err(unusable(e)),
        }
    }

    /// Tells others where we are. The file is whole or not there.
    ///
    /// # Errors
    /// A directory that cannot be written to.
    pub fn announce(&self, addresses: &Addresses) -> Result {
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            file.write_all(&serde_json::to_vec_pretty(addresses)?)?;
            file.persist(state_file(&self.dir))?;
            Ok::<_, std::io::Error>(())
        };
        write().map_err(|e| Exit::failed(format!("{}: {e}", state_file(&self.dir).display())))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Gone with us; the lock says the same to whoever reads a stale one.
        fs::remove_file(state_file(&self.dir)).ok();
    }
}

/// The instance of a directory, if one runs there now.
#[must_use]
pub fn running(dir: &Path) -> Option<Addresses> {
    let lock = File::options().write(true).open(lock_file(dir)).ok()?;
    match lock.try_lock() {
        // The lock may be a new process's and the file still a killed one's.
        Err(TryLockError::WouldBlock) => read(dir).filter(|addresses| is_alive(addresses.pid)),
        // Nobody holds it: what the file says is of a process that was killed.
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

fn read(dir: &Path) -> Option<Addresses> {
    serde_json::from_slice(&fs::read(state_file(dir)).ok()?).ok()
}

/// Where the local authority is kept.
#[must_use]
pub fn authority_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("ca")
}

/// Certificates of the local authority for one of our own processes.
///
/// # Errors
/// The authority's.
pub fn local_tls(
    authority: &Authority,
    data_dir: &Path,
    kind: Kind,
    id: &str,
    now: std::time::SystemTime,
) -> parallax_security::Result<Tls> {
    let identity = Identity::new(parallax_runtime::DEFAULT_TENANT, kind, id)?;
    Tls::load(authority.bundle(&identity, &data_dir.join("tls"), now)?, now)
}
