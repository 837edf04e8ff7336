//! Small files that a restore adds to a data directory: complete, durable, and the owner's.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::{PostgresError, Result};

/// Writes `name` in `directory` so that it is there whole or not at all, with the owner of the
/// directory, readable by the group where the directory is.
pub(super) fn write(directory: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = directory.join(name);
    let temporary = directory.join(format!("{name}.backstay"));
    let io = |doing: &'static str| {
        let path = path.clone();
        move |error| PostgresError::io(doing, path, error)
    };
    let parent = fs::metadata(directory).map_err(io("write"))?;
    let mode = if parent.mode() & 0o050 != 0 { 0o640 } else { 0o600 };
    remove_if_there(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io("write"))?;
    file.write_all(content).map_err(io("write"))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(io("set the mode of"))?;
    give_to_owner(&temporary, &parent)?;
    file.sync_all().map_err(io("sync"))?;
    fs::rename(&temporary, &path).map_err(io("write"))?;
    sync_directory(directory)
}

/// Makes `path` belong to whom `parent` belongs. Only root can, and only root has to.
pub(super) fn give_to_owner(path: &Path, parent: &fs::Metadata) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(parent.uid()), Some(parent.gid()))
        .map_err(|error| PostgresError::io("change the owner of", path, error))
}

pub(super) fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|error| PostgresError::io("sync", directory, error))
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PostgresError::io("read", path, error)),
    }
}

pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(PostgresError::io("remove", path, error)),
    }
}

/// Whether a directory has nothing in it; one that is not there is empty.
pub(super) fn is_empty(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(PostgresError::io("read the directory", directory, error)),
    }
}
