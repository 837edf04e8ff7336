//! What of a data directory is copied: a walk that yields a list.
//!
//! The rules are those of PostgreSQL's own base backup (`backup/basebackup.c`), with one difference:
//! a name is special only at the depth where PostgreSQL gives it a meaning. In the list, what lies
//! in the data directory is below `data/`, what lies in a tablespace below `tablespaces/<oid>/`. The
//! links in `pg_tblspc` are not in it: a restore makes them, to wherever the tablespaces go then.
//!
//! Where things are while a server runs is a matter of luck. What vanishes during the walk or after
//! it is fine: WAL replays its end. What appears after the walk is made anew by WAL.

use std::collections::HashSet;
use std::fs::{self, DirEntry};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_repo::{Metadata, Problem, Time};

use crate::owner::Names;
use crate::{PostgresError, PostgresErrorKind, Result};

/// Kept as directories, without what is in them: it means nothing after a restart, or is rebuilt.
pub(crate) const EMPTIED: &[&str] = &[
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_wal",
];

/// Left out at the top of the data directory: of one run of the server, of other backups, or of a
/// recovery that is not the one to come.
pub(crate) const LEFT_OUT: &[&str] = &[
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "backup_manifest",
    "backup_manifest.tmp",
    "postmaster.pid",
    "postmaster.opts",
    "recovery.signal",
    "standby.signal",
    crate::restore::OLD_WAL,
    crate::configuration::ASIDE,
];

/// Directories that a cluster is nothing without; a link in their place would leave a hole.
const ESSENTIAL: &[&str] =
    &["base", "global", "pg_xact", "pg_multixact", "pg_commit_ts", "pg_logical", "pg_twophase"];

/// How long the link of a tablespace that is being dropped may outlive its folder.
const DROPPED_WITHIN: Duration = Duration::from_secs(1);

/// One thing to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// In the snapshot: `data/base/5/1259`.
    pub path: Vec<u8>,
    /// On this machine.
    pub source: PathBuf,
    pub meta: Metadata,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    /// A file that is no relation. Size in bytes.
    File {
        size: u64,
    },
    /// A segment of a relation: whole pages, `segment` counted from 0. Size in bytes.
    Relation {
        size: u64,
        segment: u32,
    },
    /// `global/pg_control`, to be copied after all others.
    Control,
}

/// All that is to be stored, parents before what is in them.
#[derive(Debug, Default)]
pub struct Listing {
    pub items: Vec<Item>,
    /// Sum of all sizes. Bytes.
    pub bytes: u64,
    /// Things that were met and are not in the copy, for people to know.
    pub warnings: Vec<String>,
    /// Things that should have been copied and could not be read.
    pub problems: Vec<Problem>,
}

/// Lists what to copy of a data directory of PostgreSQL `major` with this version of the catalogue.
pub fn list(data_directory: &Path, major: u32, catalog_version: u32) -> Result<Listing> {
    let mut walk = Walk {
        listing: Listing::default(),
        names: Names::load(),
        version_folder: format!("PG_{major}_{catalog_version}"),
        major,
        spaces: places_of_tablespaces(data_directory),
    };
    walk.top(data_directory)?;
    Ok(walk.listing)
}

struct Walk {
    listing: Listing,
    names: Names,
    version_folder: String,
    major: u32,
    /// Device and inode of the directories that tablespaces lie in.
    spaces: HashSet<(u64, u64)>,
}

/// Device and inode of what the links in `pg_tblspc` point to. One may lie in the data directory, which
/// PostgreSQL warns of and allows: it is copied as a tablespace, and only so.
fn places_of_tablespaces(data_directory: &Path) -> HashSet<(u64, u64)> {
    let links = fs::read_dir(data_directory.join("pg_tblspc")).into_iter().flatten().flatten();
    links
        .filter(|link| link.file_type().is_ok_and(|kind| kind.is_symlink()))
        .filter_map(|link| fs::metadata(link.path()).ok())
        .map(|meta| (meta.dev(), meta.ino()))
        .collect()
}

/// What a directory is to PostgreSQL, which decides what names in it mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// `base`, or the version's folder of a tablespace: databases are in it.
    Databases,
    /// `global`.
    Global,
    /// The directory of one database.
    Database,
    /// Anything else.
    Other,
}

impl Walk {
    fn top(&mut self, directory: &Path) -> Result<()> {
        let path = b"data".to_vec();
        let meta = fs::metadata(directory)
            .map_err(|error| PostgresError::io("read the directory", directory, error))?;
        self.push(path.clone(), directory.to_owned(), &meta, What::Directory);
        for (name, source, meta) in self.entries(directory, &path)? {
            let text = name.to_string_lossy();
            let below = join(&path, name.as_bytes());
            let special = text.as_ref();
            if EMPTIED.contains(&special) {
                // `pg_wal` may be a link to another disk; the copy has a directory.
                self.emptied(special, below, &source, &meta);
            } else if LEFT_OUT.contains(&special) || special.starts_with(".s.PGSQL.") {
                // The server's own socket and its lock are also of one run: a restored lock would
                // keep a server from starting while the original runs.
            } else if special == "pg_tblspc" && meta.is_dir() {
                self.push(below.clone(), source.clone(), &meta, What::Directory);
                self.tablespaces(&source, &below)?;
            } else {
                if meta.is_symlink() && ESSENTIAL.contains(&special) {
                    return Err(PostgresError::new(
                        PostgresErrorKind::Unsupported,
                        format!(
                            "{} is a symbolic link; a copy would lack what is behind it",
                            source.display()
                        ),
                    )
                    .with_hint("move the directory back into the data directory"));
                }
                let place = match special {
                    "base" => Place::Databases,
                    "global" => Place::Global,
                    _ => Place::Other,
                };
                self.any(below, source, &meta, place, Place::Other)?;
            }
        }
        Ok(())
    }

    /// A directory whose content is not copied, with the directories that the server expects in it.
    fn emptied(&mut self, name: &str, path: Vec<u8>, source: &Path, meta: &fs::Metadata) {
        let meta = if meta.is_symlink() {
            match fs::metadata(source) {
                Ok(meta) => meta,
                Err(_) => return,
            }
        } else {
            meta.clone()
        };
        if !meta.is_dir() {
            return;
        }
        let within: &[&str] = match name {
            "pg_wal" if self.major >= 17 => &["archive_status", "summaries"],
            "pg_wal" => &["archive_status"],
            _ => &[],
        };
        self.push(path.clone(), source.to_owned(), &meta, What::Directory);
        for name in within {
            self.push(join(&path, name.as_bytes()), source.join(name), &meta, What::Directory);
        }
    }

    fn tablespaces(&mut self, directory: &Path, path: &[u8]) -> Result<()> {
        for (name, source, meta) in self.entries(directory, path)? {
            let text = name.to_string_lossy().into_owned();
            if text.starts_with("pgsql_tmp") {
                continue;
            }
            if text.parse::<u32>().is_err() {
                self.any(join(path, name.as_bytes()), source, &meta, Place::Other, Place::Other)?;
                continue;
            }
            // A directory instead of a link: a tablespace in place, as developers of PostgreSQL
            // make them. It stays where it is.
            let folder = source.join(&self.version_folder);
            let place = if meta.is_symlink() {
                let root = format!("tablespaces/{text}").into_bytes();
                let Ok(meta) = fs::metadata(&source) else {
                    self.listing.problems.push(Problem {
                        path: String::from_utf8_lossy(&root).into_owned(),
                        what: format!(
                            "the tablespace's directory behind {} is not there",
                            source.display()
                        ),
                    });
                    continue;
                };
                if !mounted(&source, &folder)? {
                    continue;
                }
                self.push(root.clone(), source.clone(), &meta, What::Directory);
                root
            } else {
                let below = join(path, name.as_bytes());
                self.push(below.clone(), source.clone(), &meta, What::Directory);
                below
            };
            // Beside the version's folder there may be those of other versions, and lost+found.
            if let Some(meta) = stat(&folder)? {
                let below = join(&place, self.version_folder.as_bytes());
                self.any(below, folder, &meta, Place::Databases, Place::Other)?;
            }
        }
        Ok(())
    }

    /// `place` is what this is, if it is a directory; `parent` is what it lies in.
    fn any(
        &mut self,
        path: Vec<u8>,
        source: PathBuf,
        meta: &fs::Metadata,
        place: Place,
        parent: Place,
    ) -> Result<()> {
        let name = source.file_name().unwrap_or_default().as_bytes();
        if name.starts_with(b"pgsql_tmp") {
            return Ok(());
        }
        let kind = meta.file_type();
        if kind.is_dir() {
            self.push(path.clone(), source.clone(), meta, What::Directory);
            if self.spaces.contains(&(meta.dev(), meta.ino())) {
                return Ok(());
            }
            return self.directory(&source, &path, place);
        }
        if kind.is_symlink() {
            if parent == Place::Databases {
                return Err(PostgresError::new(
                    PostgresErrorKind::Unsupported,
                    format!(
                        "{} is a symbolic link; a copy would lack what is behind it",
                        source.display()
                    ),
                )
                .with_hint("use a tablespace to put a database on another disk"));
            }
            let Some(target) = vanished(fs::read_link(&source), "read the link", &source)? else {
                return Ok(());
            };
            self.listing.warnings.push(format!(
                "{} is a symbolic link; the link is in the backup, what it points to is not",
                source.display()
            ));
            // A server follows such a link, so that what is behind it is a part of the cluster.
            if parent == Place::Global || parent == Place::Database || is_essential(&path) {
                self.listing.problems.push(Problem {
                    path: String::from_utf8_lossy(&path).into_owned(),
                    what: format!(
                        "{} is a symbolic link; what is behind it is not in the backup",
                        source.display()
                    ),
                });
            }
            let target = target.into_os_string().into_vec();
            self.push(path, source, meta, What::Symlink { target });
            return Ok(());
        }
        if !kind.is_file() {
            let what = if kind.is_socket() {
                "a socket"
            } else if kind.is_fifo() {
                "a pipe"
            } else {
                "a device"
            };
            self.listing
                .warnings
                .push(format!("{} is {what} and is not in the backup", source.display()));
            return Ok(());
        }
        let size = meta.len();
        let relation = match parent {
            Place::Global | Place::Database => RelationName::parse(name),
            _ => None,
        };
        let what = match relation {
            Some(relation) => What::Relation { size, segment: relation.segment },
            None if parent == Place::Global && name == b"pg_control" => What::Control,
            None => What::File { size },
        };
        self.push(path, source, meta, what);
        Ok(())
    }

    fn directory(&mut self, directory: &Path, path: &[u8], place: Place) -> Result<()> {
        let entries = self.entries(directory, path)?;
        let relations = matches!(place, Place::Global | Place::Database);
        // A relation that has an initialisation fork is unlogged: after a recovery its other forks
        // are made anew from that one.
        let unlogged: HashSet<u32> = entries
            .iter()
            .filter(|_| relations)
            .filter_map(|(name, _, _)| RelationName::parse(name.as_bytes()))
            .filter(|relation| relation.fork == Fork::Init)
            .map(|relation| relation.number)
            .collect();
        for (name, source, meta) in entries {
            let bytes = name.as_bytes();
            if relations && !meta.is_dir() {
                if bytes.starts_with(b"pg_internal.init") || is_temporary(bytes) {
                    continue;
                }
                if let Some(relation) = RelationName::parse(bytes)
                    && relation.fork != Fork::Init
                    && unlogged.contains(&relation.number)
                {
                    continue;
                }
            }
            let within = match place {
                Place::Databases if bytes.iter().all(u8::is_ascii_digit) => Place::Database,
                _ => Place::Other,
            };
            self.any(join(path, bytes), source, &meta, within, place)?;
        }
        Ok(())
    }

    /// What is in a directory, by name. What vanished meanwhile is left out; a directory that cannot
    /// be read is a problem to be told, not the end.
    #[allow(clippy::type_complexity)]
    fn entries(
        &mut self,
        directory: &Path,
        path: &[u8],
    ) -> Result<Vec<(std::ffi::OsString, PathBuf, fs::Metadata)>> {
        let read = || -> std::io::Result<Vec<DirEntry>> { fs::read_dir(directory)?.collect() };
        let read = match read() {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path != b"data" => {
                return Ok(Vec::new());
            }
            Err(error)
                if error.kind() == std::io::ErrorKind::PermissionDenied
                    && path != b"data"
                    && !is_essential(path) =>
            {
                self.listing.problems.push(Problem {
                    path: String::from_utf8_lossy(path).into_owned(),
                    what: format!("the directory could not be read: {error}"),
                });
                return Ok(Vec::new());
            }
            Err(error) => return Err(PostgresError::io("read the directory", directory, error)),
        };
        let mut entries = Vec::with_capacity(read.len());
        for entry in read {
            let source = entry.path();
            if let Some(meta) = stat(&source)? {
                entries.push((entry.file_name(), source, meta));
            }
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    }

    fn push(&mut self, path: Vec<u8>, source: PathBuf, meta: &fs::Metadata, what: What) {
        if let What::File { size } | What::Relation { size, .. } = what {
            self.listing.bytes += size;
        }
        let meta = metadata(meta, &self.names);
        self.listing.items.push(Item { path, source, meta, what });
    }
}

/// Whether this path of a snapshot is one of the essential directories, or in one.
fn is_essential(path: &[u8]) -> bool {
    let top = path.strip_prefix(b"data/").and_then(|below| below.split(|&b| b == b'/').next());
    top.is_some_and(|top| ESSENTIAL.iter().any(|name| name.as_bytes() == top))
}

/// Whether the folder of a tablespace is behind its link; false when the tablespace was dropped.
///
/// # Errors
/// When the link stays and the folder is not there: as of a disk that is not mounted.
fn mounted(link: &Path, folder: &Path) -> Result<bool> {
    // A server that drops a tablespace removes the folder first, and right after that the link.
    let deadline = Instant::now() + DROPPED_WITHIN;
    loop {
        if stat(folder)?.is_some() {
            return Ok(true);
        }
        if stat(link)?.is_none() {
            return Ok(false);
        }
        if Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let behind = fs::read_link(link).unwrap_or_else(|_| link.to_owned());
    Err(PostgresError::new(
        PostgresErrorKind::Mismatch,
        format!(
            "the tablespace {} has no {} in {}, so that a copy would lack all that is in it",
            link.file_name().unwrap_or_default().to_string_lossy(),
            folder.file_name().unwrap_or_default().to_string_lossy(),
            behind.display()
        ),
    )
    .with_hint("is its disk mounted? a tablespace that is no more has to be dropped"))
}

pub(crate) fn metadata(meta: &fs::Metadata, names: &Names) -> Metadata {
    let time = |seconds, nanos: i64| Time { seconds, nanos: u32::try_from(nanos).unwrap_or(0) };
    Metadata {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        user: names.user(meta.uid()),
        group: names.group(meta.gid()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        inode: meta.ino(),
        device: meta.dev(),
        xattrs: Vec::new(),
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    joined.push(b'/');
    joined.extend_from_slice(name);
    joined
}

fn stat(path: &Path) -> Result<Option<fs::Metadata>> {
    vanished(fs::symlink_metadata(path), "read", path)
}

fn vanished<T>(result: std::io::Result<T>, doing: &str, path: &Path) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PostgresError::io(doing, path, error)),
    }
}

/// Which part of a relation a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    Main,
    FreeSpace,
    Visibility,
    Init,
}

/// What the name of a relation's file says: `16384_vm.2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationName {
    pub number: u32,
    pub fork: Fork,
    /// Counted from 0.
    pub segment: u32,
}

impl RelationName {
    /// None for a name that is no permanent relation's.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        let (name, segment) = match name.split_once('.') {
            Some((name, segment)) => (name, number(segment).filter(|segment| *segment > 0)?),
            None => (name, 0),
        };
        let (digits, fork) = match name.split_once('_') {
            None => (name, Fork::Main),
            Some((digits, "fsm")) => (digits, Fork::FreeSpace),
            Some((digits, "vm")) => (digits, Fork::Visibility),
            Some((digits, "init")) => (digits, Fork::Init),
            Some(_) => return None,
        };
        Some(Self { number: number(digits)?, fork, segment })
    }
}

/// A number as PostgreSQL writes it in names: no sign, no leading zero.
fn number(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain)
}

/// Relations of one session: `t<backend>_<number>`, with fork and segment as usual.
pub(crate) fn is_temporary(name: &[u8]) -> bool {
    let Some((backend, relation)) = name
        .strip_prefix(b"t")
        .and_then(|rest| std::str::from_utf8(rest).ok())
        .and_then(|rest| rest.split_once('_'))
    else {
        return false;
    };
    !backend.is_empty()
        && backend.bytes().all(|b| b.is_ascii_digit())
        && RelationName::parse(relation.as_bytes()).is_some()
}

#[cfg(test)]
mod tests;
