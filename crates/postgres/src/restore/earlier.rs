//! What is in the target already: what must not be lost, and what a delta restore takes away.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use backstay_repo::{Archive, EntryKind, Placement, Tree};

use crate::configuration;
use crate::control::{self, ControlFile};
use crate::detail::BackupDetail;
use crate::wal::{self, SegmentName};
use crate::{PostgresError, PostgresErrorKind, Result};

use super::{Layout, OLD_WAL, files};

/// Refuses a directory in which something would be lost or a server runs.
pub(super) fn may_restore_to(
    to: &Path,
    delta: bool,
    tree: &Tree,
    detail: &BackupDetail,
) -> Result<()> {
    if files::is_empty(to)? {
        return Ok(());
    }
    if !delta {
        return Err(PostgresError::usage(format!("{} is not empty", to.display())).with_hint(
            "restore to a directory that is empty or absent, or say --delta to bring the cluster \
             that is there to the state of the snapshot",
        ));
    }
    is_of_cluster(to, tree, detail)?;
    let lock = files::read_if_there(&to.join("postmaster.pid"))?.unwrap_or_default();
    let pid = String::from_utf8_lossy(&lock)
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid
        && !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
    {
        return Err(PostgresError::new(
            PostgresErrorKind::Busy,
            format!("a server runs in {} (process {})", to.display(), pid.as_raw_nonzero()),
        )
        .with_hint("stop it first; if it is no PostgreSQL server, remove postmaster.pid"));
    }
    Ok(())
}

/// Refuses a directory that is none of the cluster that was backed up, as a delta restore removes
/// what is in it.
fn is_of_cluster(to: &Path, tree: &Tree, detail: &BackupDetail) -> Result<()> {
    let path = to.join(control::PATH);
    if let Some(bytes) = files::read_if_there(&path)? {
        let there = ControlFile::parse(&bytes, &path.to_string_lossy()).map_err(|error| {
            PostgresError::new(
                error.kind(),
                format!("which cluster is in {} cannot be told: {error}", to.display()),
            )
            .with_hint(format!(
                "if it is the one that was backed up, remove {}; nothing was changed",
                path.display()
            ))
            .with_source(error)
        })?;
        if there.system_identifier == detail.system_identifier {
            return Ok(());
        }
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "{} holds another cluster: its system identifier is {}, that of the snapshot {}",
                to.display(),
                there.system_identifier,
                detail.system_identifier
            ),
        )
        .with_hint(
            "restore to another directory, or empty this one if that cluster is not needed; \
             nothing was changed",
        ));
    }
    // The control file is the last to appear, so that an interrupted restore has none.
    if to.join("PG_VERSION").exists() || to.join("backup_label").exists() {
        return Ok(());
    }
    // One that was interrupted early has directories, and not much else.
    let stray = if to.join("global").is_dir() { stray(to, tree)? } else { Some(to.to_owned()) };
    match stray {
        None => Ok(()),
        Some(stray) => {
            let message = if stray == to {
                format!("{} is no data directory", to.display())
            } else {
                format!("{} is no data directory: it has {}", to.display(), stray.display())
            };
            Err(PostgresError::usage(message).with_hint(
                "--delta removes what is not in the snapshot; name the directory of a cluster",
            ))
        }
    }
}

/// Something in `to` that a restore of this snapshot does not make.
fn stray(to: &Path, tree: &Tree) -> Result<Option<PathBuf>> {
    let mut known: HashSet<Vec<u8>> =
        HashSet::from([OLD_WAL, configuration::ASIDE].map(|name| name.as_bytes().to_vec()));
    for entry in tree.iter() {
        let path = entry?.path;
        if let Some(name) = path.strip_prefix(b"data/").and_then(|p| p.split(|&b| b == b'/').next())
            && !known.contains(name)
        {
            known.insert(name.to_vec());
        }
    }
    let io = |error| PostgresError::io("read the directory", to, error);
    for entry in fs::read_dir(to).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let bytes = name.as_bytes();
        // Files get their names when they are whole.
        let unfinished = bytes.starts_with(b".backstay-") || bytes.ends_with(b".backstay");
        if !unfinished && !known.contains(bytes) {
            return Ok(Some(PathBuf::from(name)));
        }
    }
    Ok(None)
}

/// `pg_wal` may be a link to another disk; a delta restore leaves it one.
pub(super) fn wal_directory(to: &Path, delta: bool) -> PathBuf {
    let path = to.join("pg_wal");
    if delta
        && path.is_symlink()
        && let Ok(behind) = fs::canonicalize(&path)
        && behind.is_dir()
    {
        return behind;
    }
    path
}

/// Moves segments out of the way that are in `pg_wal` and not in the archive: after a crash they hold
/// the newest commits, and nothing else does.
pub(super) fn keep_wal(
    layout: &Layout,
    archive: &Archive,
    detail: &BackupDetail,
) -> Result<Option<String>> {
    let Layout { to, wal_directory, .. } = layout;
    let unreadable = |error| PostgresError::io("read the directory", wal_directory, error);
    let entries = match fs::read_dir(wal_directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let directory = to.join(OLD_WAL);
    let mut moved = 0;
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        let text = entry.file_name().to_string_lossy().into_owned();
        let Ok(name) = text.parse::<SegmentName>() else { continue };
        if archive.contains(&text)? {
            continue;
        }
        // Segments made ready for later use have the header of another place, or none.
        let content = fs::read(&path).map_err(|error| PostgresError::io("read", &path, error))?;
        if wal::check_segment(name, &content, Some(detail.system_identifier)).is_err() {
            continue;
        }
        if moved == 0 {
            let parent = fs::metadata(to)
                .map_err(|error| PostgresError::io("read the directory", to, error))?;
            match fs::DirBuilder::new().mode(0o700).create(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(PostgresError::io("make the directory", &directory, error));
                }
                _ => files::give_to_owner(&directory, &parent)?,
            }
        }
        // `pg_wal` may be on another file system, so that moving is copying.
        files::write(&directory, &text, &content)?;
        moved += 1;
    }
    Ok((moved > 0).then(|| {
        format!(
            "{moved} WAL segments that were not in the archive were kept in {}; once they are of no \
             use, remove them",
            directory.display()
        )
    }))
}

/// Prepares a directory for a delta restore: from here on it cannot start, and all that is left in it
/// is also in the snapshot, of the same kind.
pub(super) fn clear(layout: &Layout, tree: &Tree, detail: &BackupDetail) -> Result<()> {
    let Layout { to, wal_directory, spaces, .. } = layout;
    files::remove_if_there(&to.join(control::PATH))?;
    if to.join("global").is_dir() {
        files::sync_directory(&to.join("global"))?;
    }
    let mut kept: HashMap<PathBuf, bool> = HashMap::new();
    for entry in tree.iter() {
        let entry = entry?;
        if let Placement::At(path) = layout.place(&entry) {
            kept.insert(path, matches!(entry.kind, EntryKind::Directory));
        }
    }
    kept.insert(to.join("pg_wal"), true);
    let old_wal = to.join(OLD_WAL);
    for kept_file in fs::read_dir(&old_wal).into_iter().flatten().flatten() {
        kept.insert(kept_file.path(), false);
    }
    kept.insert(old_wal, true);
    prune(to, &kept, to)?;
    if *wal_directory != to.join("pg_wal") {
        prune(wal_directory, &kept, to)?;
    }
    for directory in spaces.directories() {
        // Other versions have folders of their own beside ours.
        prune(&directory.join(detail.version_folder()), &kept, to)?;
    }
    Ok(())
}

fn prune(directory: &Path, kept: &HashMap<PathBuf, bool>, to: &Path) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(PostgresError::io("read the directory", directory, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| PostgresError::io("read the directory", directory, e))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|error| PostgresError::io("read", &path, error))?;
        let linked_wal = kind.is_symlink() && path == to.join("pg_wal");
        match kept.get(&path) {
            Some(true) if linked_wal => {}
            Some(true) if kind.is_dir() => prune(&path, kept, to)?,
            Some(false) if !kind.is_dir() => {}
            _ if kind.is_dir() => fs::remove_dir_all(&path)
                .map_err(|error| PostgresError::io("remove", &path, error))?,
            _ => files::remove_if_there(&path)?,
        }
    }
    Ok(())
}
