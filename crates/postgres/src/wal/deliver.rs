//! Puts a whole file under its name, or nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use backstay_store::failpoint;

use crate::{PostgresError, Result};

/// Writes `content` to `destination`: under a temporary name beside it, synced, then renamed.
///
/// The temporary name is always the same, so that a process that died leaves one file at most,
/// which the next one takes over; its lock keeps two live processes apart.
pub(super) fn deliver(content: &[u8], destination: &Path) -> Result<()> {
    let folder = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Some(name) = destination.file_name() else {
        return Err(PostgresError::usage(format!("{} is no file name", destination.display())));
    };
    let mut temporary = name.to_owned();
    temporary.push(".backstay-tmp");
    let temporary = folder.join(temporary);
    let mut file =
        open_locked(&temporary).map_err(|error| PostgresError::io("create", &temporary, error))?;
    let written = file
        .set_len(0)
        .and_then(|()| file.write_all(content))
        .and_then(|()| file.sync_all())
        .map_err(|error| PostgresError::io("write", &temporary, error))
        .and_then(|()| {
            failpoint::hit("wal-fetch-temporary");
            fs::rename(&temporary, destination)
                .map_err(|error| PostgresError::io("create", destination, error))
        });
    if let Err(error) = written {
        // Best effort: what stays behind is overwritten by the next call.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    failpoint::hit("wal-fetch-renamed");
    sync_folder(folder).map_err(|error| PostgresError::io("sync", folder, error))
}

/// Opens the file of that name and holds its lock; it is still the file of that name then.
fn open_locked(path: &PathBuf) -> io::Result<File> {
    loop {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.lock() {
            Ok(()) => {}
            // A file system without locks: nothing better can be had there.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(file),
            Err(error) => return Err(error),
        }
        // Whoever held the lock has renamed it, or removed it, meanwhile.
        match fs::metadata(path) {
            Ok(there) => {
                let mine = file.metadata()?;
                if (there.dev(), there.ino()) == (mine.dev(), mine.ino()) {
                    return Ok(file);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("RECOVERYXLOG");
        fs::write(folder.path().join("RECOVERYXLOG.backstay-tmp"), vec![9; 5000]).unwrap();
        deliver(b"first", &destination).unwrap();
        deliver(b"second", &destination).unwrap();
        assert_eq!(fs::read(&destination).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn many_at_once_leave_one_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("RECOVERYXLOG");
        std::thread::scope(|scope| {
            for value in 0..8u8 {
                let destination = &destination;
                scope.spawn(move || deliver(&vec![value; 100_000], destination).unwrap());
            }
        });
        let content = fs::read(&destination).unwrap();
        assert_eq!(content.len(), 100_000);
        assert!(content.iter().all(|byte| *byte == content[0]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_said() {
        let error = deliver(b"x", Path::new("/nonexistent/RECOVERYXLOG")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/RECOVERYXLOG"), "{error}");
    }
}
