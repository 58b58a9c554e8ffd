//! The instance that a data directory belongs to: one process at a time, or one for each plane, found by others through
//! its files.

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use parallax_security::{Authority, Identity, Kind, Tls};
use serde::{Deserialize, Serialize};

use crate::{
    exit::{Exit, Result},
    start::Role,
};

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

/// The parts of a data directory, each of which one process has at a time.
#[derive(Clone, Copy)]
struct Part {
    lock: &'static str,
    state: &'static str,
}

const CONTROL_PLANE: Part = Part { lock: "parallax.lock", state: "instance.json" };
const DATA_PLANE: Part = Part { lock: "data-plane.lock", state: "data-plane.json" };
const PARTS: [Part; 2] = [CONTROL_PLANE, DATA_PLANE];

impl Part {
    /// Those that a process takes; where it is stands in the first of them.
    fn of(role: Role) -> &'static [Self] {
        &PARTS[usize::from(!role.control_plane())..1 + usize::from(role.data_plane)]
    }

    /// Whether a process has it now.
    fn is_taken(self, dir: &Path) -> bool {
        let lock = File::options().write(true).open(dir.join(self.lock));
        lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }

    fn read(self, dir: &Path) -> Option<Addresses> {
        serde_json::from_slice(&fs::read(dir.join(self.state)).ok()?).ok()
    }
}

/// A data directory, or its parts of a plane, that are ours until this is dropped.
pub struct Owned {
    state: PathBuf,
    _locks: Vec<File>,
}

/// Makes a directory that nobody else can look into: runs hold what users typed.
pub(crate) fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
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
    let who = running(dir).first().map(|a| format!(" (process {})", a.pid)).unwrap_or_default();
    Exit::failed(format!("an instance{who} already runs in {}; `parallax stop` ends it", dir.display()))
}

/// Whether a process could not take its parts of a directory now.
#[must_use]
pub fn is_occupied(dir: &Path, role: Role) -> bool {
    Part::of(role).iter().any(|part| part.is_taken(dir))
}

impl Owned {
    /// Makes the directory if it is not there, and takes it.
    ///
    /// # Errors
    /// One that is taken, or cannot be written to.
    pub fn take(dir: &Path, role: Role) -> Result<Self> {
        let unusable = |e| unusable(dir, &e);
        make_private(dir).map_err(unusable)?;
        let take = |part: &Part| {
            let mut lock = File::options();
            let lock = lock.create(true).truncate(false).write(true).open(dir.join(part.lock));
            let lock = lock.map_err(unusable)?;
            match lock.try_lock() {
                Ok(()) => {
                    // What a killed process left says nothing of us.
                    fs::remove_file(dir.join(part.state)).ok();
                    Ok(lock)
                }
                Err(TryLockError::WouldBlock) => Err(occupied(dir)),
                Err(TryLockError::Error(e)) => Err(unusable(e)),
            }
        };
        let parts = Part::of(role);
        let locks = parts.iter().map(take).collect::<Result<_>>()?;
        Ok(Self { state: dir.join(parts[0].state), _locks: locks })
    }

    /// Tells others where we are. The file is whole or not there.
    ///
    /// # Errors
    /// A directory that cannot be written to.
    pub fn announce(&self, addresses: &Addresses) -> Result {
        let write = || {
            let mut file =
                tempfile::NamedTempFile::new_in(self.state.parent().expect("it is in a directory"))?;
            file.write_all(&serde_json::to_vec_pretty(addresses)?)?;
            file.persist(&self.state)?;
            Ok::<_, std::io::Error>(())
        };
        write().map_err(|e| Exit::failed(format!("{}: {e}", self.state.display())))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Gone with us; the lock says the same to whoever reads a stale one.
        fs::remove_file(&self.state).ok();
    }
}

/// The processes that run in a directory now, the control plane's first.
#[must_use]
pub fn running(dir: &Path) -> Vec<Addresses> {
    // Without its lock, what a file says is of a process that was killed; with it, the file may still be a killed one's.
    let taken = PARTS.into_iter().filter(|part| part.is_taken(dir));
    taken.filter_map(|part| part.read(dir)).filter(|addresses| is_alive(addresses.pid)).collect()
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
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
