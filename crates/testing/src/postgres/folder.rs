//! The folder a cluster lives in, and the removal of those that killed tests left behind.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

/// Short, because the path of a socket must fit into 107 bytes.
const PREFIX: &str = "bst-";

/// A temporary folder that every user may look into. Removed when dropped, and by the next test
/// process when this one is killed: it holds a lock on a file in it for as long as it lives.
#[derive(Debug)]
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    _lock: File,
}

impl Folder {
    pub(crate) fn new() -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        Self::try_new().unwrap_or_else(|error| panic!("making a folder in {:?}: {error}", place()))
    }

    fn try_new() -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place())?;
        let lock = File::create_new(folder.path().join("lock"))?;
        lock.lock()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { folder, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// The folder for temporary files, unless its path is too long for sockets or it is closed to the
/// user that servers run as.
fn place() -> PathBuf {
    let usual = std::env::temp_dir();
    let open = usual.ancestors().all(|folder| {
        folder.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    });
    if open && usual.as_os_str().len() <= 60 { usual } else { PathBuf::from("/tmp") }
}

/// Removes folders whose lock nobody holds.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(place()) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // A young one may be about to be locked.
        let age = entry.metadata().and_then(|metadata| metadata.modified());
        if age.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > Duration::from_secs(60)))
            && let Ok(lock) = File::open(entry.path().join("lock"))
            && lock.try_lock().is_ok()
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
