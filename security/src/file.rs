//! Small files read whole and replaced whole: a reader sees the old content or the new, never a part.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use crate::{Error, Result};

pub(crate) fn read(what: &'static str, path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::Missing { what, path: path.into() },
        _ => Error::io("read", path, source),
    })
}

/// Creates `dir` and its parents with mode 0700; one that exists keeps its mode.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Error::io("create the directory", dir, source))
}

/// Holds the directory against other threads and processes until dropped (or the process dies).
pub(crate) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(".lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    open.and_then(|file| file.lock().map(|()| file)).map_err(|source| Error::io("lock", path, source))
}

/// Writes beside `path`, syncs, and renames over it. The caller holds the directory's [`lock`], so the
/// temporary file is ours alone; one that a crash left behind is removed.
pub(crate) fn replace(path: &Path, content: &str, mode: u32) -> Result<()> {
    let temporary = path.with_added_extension("tmp");
    let write = || {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The rename itself is durable once the directory is.
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|source| Error::io("write", path, source))
}
