//! Where the tablespaces of a restored cluster go.
//!
//! Nothing is written outside the data directory without being told: every tablespace needs a
//! directory that the caller names, or in a delta restore the one that its link already points to.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::detail::BackupDetail;
use crate::inspect::Tablespace;
use crate::{PostgresError, PostgresErrorKind, Result};

use super::{RestoreOptions, files};

/// Tablespaces by oid, and where each goes.
#[derive(Debug, Clone, Default)]
pub(super) struct Spaces(Vec<(u32, PathBuf)>);

impl Spaces {
    pub(super) fn plan(detail: &BackupDetail, to: &Path, options: &RestoreOptions) -> Result<Self> {
        let mut planned: Vec<(u32, PathBuf)> = Vec::new();
        let names =
            |space: &Tablespace, name: &str| name == space.name || name == space.oid.to_string();
        for (name, _) in &options.tablespaces {
            if !detail.tablespaces.iter().any(|space| names(space, name)) {
                let all: Vec<&str> = detail.tablespaces.iter().map(|s| s.name.as_str()).collect();
                return Err(PostgresError::usage(format!(
                    "the snapshot has no tablespace {name:?}"
                ))
                .with_hint(if all.is_empty() {
                    "it has none at all".to_owned()
                } else {
                    format!("it has: {}", all.join(", "))
                }));
            }
        }
        // What lies in the data directory itself needs no place of its own.
        for space in detail.tablespaces.iter().filter(|space| space.path.starts_with('/')) {
            let told = options.tablespaces.iter().find(|(name, _)| names(space, name));
            let directory = match told {
                Some((_, directory)) => std::path::absolute(directory)
                    .map_err(|error| PostgresError::io("use the directory", directory, error))?,
                None => linked(to, space.oid).filter(|_| options.delta).ok_or_else(|| {
                    PostgresError::usage(format!(
                        "the tablespace {} (it was in {}) needs a place",
                        space.name, space.path
                    ))
                    .with_hint(format!("say --tablespace {}=DIR", space.name))
                })?,
            };
            if directory.starts_with(to) || to.starts_with(&directory) {
                return Err(PostgresError::usage(format!(
                    "the tablespace {} cannot be in {}: the data directory is {}",
                    space.name,
                    directory.display(),
                    to.display()
                ))
                .with_hint("name a directory beside the data directory"));
            }
            if let Some((oid, _)) = planned.iter().find(|(_, other)| *other == directory) {
                return Err(PostgresError::usage(format!(
                    "the tablespaces {} and {oid} cannot both be in {}",
                    space.name,
                    directory.display()
                )));
            }
            let own = options.delta && may_hold_earlier_state(to, space.oid, &directory)?;
            if !own && !files::is_empty(&directory)? {
                return Err(PostgresError::usage(format!(
                    "{} for the tablespace {} is not empty",
                    directory.display(),
                    space.name
                ))
                .with_hint(
                    "name a directory that is empty or absent; --delta changes the one that the \
                     cluster in the target has its link to, and no other, which may be another \
                     cluster's",
                ));
            }
            if let Some(parent) = directory.parent() {
                fs::create_dir_all(parent)
                    .map_err(|error| PostgresError::io("make the directory", parent, error))?;
            }
            planned.push((space.oid, directory));
        }
        Ok(Self(planned))
    }

    /// Where a path below `tablespaces/` goes: `16389/PG_15_202209061/5/16390`.
    pub(super) fn place(&self, below: &[u8]) -> Option<PathBuf> {
        let at = below.iter().position(|byte| *byte == b'/').unwrap_or(below.len());
        let (oid, rest) = below.split_at(at);
        let oid: u32 = std::str::from_utf8(oid).ok()?.parse().ok()?;
        let (_, directory) = self.0.iter().find(|(there, _)| *there == oid)?;
        match rest.strip_prefix(b"/") {
            Some(rest) => Some(directory.join(OsStr::from_bytes(rest))),
            None => Some(directory.clone()),
        }
    }

    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(_, directory)| directory.as_path())
    }

    /// Makes the links by which the server finds the tablespaces.
    pub(super) fn link(&self, to: &Path) -> Result<()> {
        let links = to.join("pg_tblspc");
        for (oid, directory) in &self.0 {
            let link = links.join(oid.to_string());
            files::remove_if_there(&link)?;
            std::os::unix::fs::symlink(directory, &link)
                .map_err(|error| PostgresError::io("make the link", &link, error))?;
            let parent = fs::metadata(&links)
                .map_err(|error| PostgresError::io("read the directory", &links, error))?;
            files::give_to_owner(&link, &parent)?;
        }
        if self.0.is_empty() {
            return Ok(());
        }
        if !links.is_dir() {
            return Err(PostgresError::new(
                PostgresErrorKind::Damaged,
                "the snapshot has tablespaces and no directory pg_tblspc",
            ));
        }
        files::sync_directory(&links)
    }
}

/// Whether a delta restore may take away what is in `directory`: it is the tablespace of the cluster in
/// the target, or that of a restore that was interrupted before it made the links.
fn may_hold_earlier_state(to: &Path, oid: u32, directory: &Path) -> Result<bool> {
    if let Some(there) = linked(to, oid) {
        let real = |path: &Path| fs::canonicalize(path).ok();
        return Ok(
            there == directory || real(&there).is_some_and(|there| Some(there) == real(directory))
        );
    }
    Ok(!to.join(crate::control::PATH).exists() && !files::is_empty(to)?)
}

/// Where the link of an earlier state points to.
fn linked(to: &Path, oid: u32) -> Option<PathBuf> {
    fs::read_link(to.join("pg_tblspc").join(oid.to_string())).ok().filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Lsn, SegmentSize};

    fn detail(spaces: &[(u32, &str, &str)]) -> BackupDetail {
        BackupDetail {
            system_identifier: 1,
            version: 15,
            catalog_version: 202_209_061,
            timeline: 1,
            start_lsn: Lsn(1),
            stop_lsn: Lsn(2),
            start_segment: String::new(),
            stop_segment: String::new(),
            segment_size: SegmentSize::DEFAULT,
            block_size: 8192,
            checksums: true,
            tablespaces: spaces
                .iter()
                .map(|(oid, name, path)| Tablespace {
                    oid: *oid,
                    name: (*name).to_owned(),
                    path: (*path).to_owned(),
                })
                .collect(),
            standalone: false,
            databases: Vec::new(),
            configuration: Vec::new(),
            time_start: jiff::Timestamp::UNIX_EPOCH,
            time_stop: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn nothing_is_written_outside_without_being_told() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("data");
        let mut options = RestoreOptions::new(&to, "true");
        let detail = detail(&[(16389, "fast", "/mnt/fast")]);
        let error = Spaces::plan(&detail, &to, &options).unwrap_err();
        assert!(error.to_string().contains("/mnt/fast"), "{error}");
        assert!(error.hint().unwrap().contains("--tablespace fast=DIR"));

        options.tablespaces = vec![("fast".to_owned(), folder.path().join("fast"))];
        let spaces = Spaces::plan(&detail, &to, &options).unwrap();
        assert_eq!(
            spaces.place(b"16389/PG_15_202209061/5/16390"),
            Some(folder.path().join("fast/PG_15_202209061/5/16390"))
        );
        assert_eq!(spaces.place(b"16389"), Some(folder.path().join("fast")));
        assert_eq!(spaces.place(b"16400/PG_15_202209061"), None);
    }

    #[test]
    fn places_that_cannot_be_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("data");
        let detail = detail(&[(1, "a", "/a"), (2, "b", "/b")]);
        let plan = |spaces: &[(&str, PathBuf)]| {
            let mut options = RestoreOptions::new(&to, "true");
            options.tablespaces =
                spaces.iter().map(|(name, path)| ((*name).to_owned(), path.clone())).collect();
            Spaces::plan(&detail, &to, &options).map(|_| ()).map_err(|error| error.to_string())
        };
        let other = folder.path().join("other");
        let used = folder.path().join("used");
        fs::create_dir(&used).unwrap();
        fs::write(used.join("x"), "").unwrap();
        let refused = [
            (vec![("a", to.join("inside")), ("b", other.clone())], "data directory"),
            (vec![("a", other.clone()), ("b", other.clone())], "both"),
            (vec![("a", other.clone()), ("b", used)], "not empty"),
            (vec![("a", other.clone()), ("b", other.clone()), ("c", other)], "no tablespace"),
        ];
        for (spaces, why) in refused {
            let error = plan(&spaces).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_delta_restore_uses_the_links_that_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("data");
        let space = folder.path().join("space");
        fs::create_dir_all(to.join("pg_tblspc")).unwrap();
        fs::create_dir_all(&space).unwrap();
        std::os::unix::fs::symlink(&space, to.join("pg_tblspc/7")).unwrap();
        let mut options = RestoreOptions::new(&to, "true");
        options.delta = true;
        let plan = |options: &RestoreOptions| {
            let planned = Spaces::plan(&detail(&[(7, "s", "/s")]), &to, options);
            planned.map_err(|error| error.to_string())
        };
        fs::create_dir(space.join("PG_15_202209061")).unwrap();
        assert_eq!(plan(&options).unwrap().place(b"7/x"), Some(space.join("x")));

        // Another one, that has something in it, is somebody else's.
        let other = folder.path().join("other");
        fs::create_dir_all(other.join("PG_15_202209061")).unwrap();
        options.tablespaces = vec![("s".to_owned(), other.clone())];
        assert!(plan(&options).unwrap_err().contains("is not empty"));
        options.tablespaces = vec![("s".to_owned(), space)];
        assert!(plan(&options).is_ok());

        // A restore to there that was interrupted has no links yet, and no control file.
        fs::remove_file(to.join("pg_tblspc/7")).unwrap();
        options.tablespaces = vec![("s".to_owned(), other)];
        assert!(plan(&options).is_ok());
        fs::create_dir(to.join("global")).unwrap();
        fs::write(to.join(crate::control::PATH), "").unwrap();
        assert!(plan(&options).unwrap_err().contains("is not empty"));
        fs::remove_dir_all(&to).unwrap();
        assert!(plan(&options).unwrap_err().contains("is not empty"));
    }
}
