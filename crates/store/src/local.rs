//! A directory as a store.
//!
//! An object is a file, read-only, at its key below the root. It is written under a temporary
//! name in `.tmp`, synced, and linked to its own name, which fails when there is one already:
//! nobody ever sees a part of an object, and nothing is ever replaced. Then the directory is
//! synced, and with it every directory above whose name is not known to be durable.
//!
//! A temporary carries the lock of the process that writes it. One without a lock is what a dead
//! process left, and the next writer removes it.
//!
//! Parity, for a directory that was told to have it, is in the room below (`parity`), and so are locks
//! (`immutable`).
//!
//! What does not live here: retries, and the check that a key is well formed, except that this
//! back end refuses to follow anything else, whoever calls it.

mod immutable;
mod parity;

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

pub(crate) use immutable::locked_until;
pub(crate) use parity::share_in;

use crate::failpoint;
use crate::key::{check_key, check_prefix, is_valid_component};
use crate::{Backend, ErrorKind, Lock, LockMode, LockPolicy, ObjectMeta, Result, StoreError};

const TEMPORARIES: &str = ".tmp";

/// The mark of a directory whose own name may not be durable: the sticky bit, which means nothing
/// among the files of one owner. Whoever creates an object below syncs the parent and then takes
/// the mark away; so nobody relies on a directory that another process has made and not yet
/// synced, and the usual creation syncs one directory, not all those above it.
const UNSETTLED: Mode = Mode::SVTX;

/// How much is written before the kernel is asked to begin writing it back: the disk then works
/// while the rest is still being copied, and the sync at the end waits for less.
const WRITE_BACK: usize = 8 << 20;

/// How much is written at once past the cache, and how memory and length must be aligned for it:
/// to the largest block that devices have. Bytes.
const DIRECT: usize = 4 << 20;
const ALIGNED: usize = 4096;

/// How often a creation starts again because a directory or a temporary was taken from under it.
const ATTEMPTS: usize = 64;

/// A store in a directory of this machine (or of one that is mounted here).
pub struct Local {
    path: PathBuf,
    /// Held open from the first use: whatever is mounted over the path later does not count.
    root: OnceLock<OwnedFd>,
    cleaned: Once,
    rebuilt: parity::Rebuilt,
    lock: Option<LockPolicy>,
}

impl Local {
    /// `path` must be absolute. A directory that is missing is made by the first creation; until
    /// then the store is empty.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !path.is_absolute() {
            return Err(StoreError::new(
                ErrorKind::Configuration,
                "open",
                path.display().to_string(),
            )
            .with_detail("the path of a store must be absolute"));
        }
        Ok(Self {
            path,
            root: OnceLock::new(),
            cleaned: Once::new(),
            rebuilt: parity::Rebuilt::default(),
            lock: None,
        })
    }

    /// Locks new objects: their files are immutable until their time is over.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) for the mode `compliance`, which no directory has.
    pub fn with_lock(mut self, lock: Option<LockPolicy>) -> Result<Self> {
        if lock.is_some_and(|policy| policy.mode == LockMode::Compliance) {
            let path = self.path.display().to_string();
            return Err(StoreError::new(ErrorKind::Configuration, "open", path).with_detail(
                "root can remove any file of a directory, so there is no lock of the mode \
                 compliance; say governance",
            ));
        }
        self.lock = lock;
        Ok(self)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root, if it is there.
    fn root(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(root) = self.root.get() {
            return Ok(root.as_fd());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.path, flags, Mode::empty())?;
        Ok(self.root.get_or_init(|| root).as_fd())
    }

    /// The root, made durably if it is missing.
    fn root_or_make(&self) -> io::Result<BorrowedFd<'_>> {
        match self.root() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directories(&self.path)?;
                self.root()
            }
            other => other,
        }
    }

    fn error(&self, doing: &'static str, key: &str, error: io::Error) -> StoreError {
        // A component of the path is a file: there can be no object below it.
        if error.raw_os_error() == Some(Errno::NOTDIR.raw_os_error()) && doing != "create" {
            return StoreError::new(ErrorKind::NotFound, doing, key).with_source(error);
        }
        StoreError::from_io(doing, key, error)
    }

    fn open_object(&self, doing: &'static str, key: &str) -> Result<(File, Stat)> {
        let opened = self.root().and_then(|root| {
            // Without NONBLOCK a foreign named pipe would block for ever.
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = File::from(rustix::fs::openat(root, key, flags, Mode::empty())?);
            let stat = rustix::fs::fstat(&file)?;
            Ok((file, stat))
        });
        let (file, stat) = opened.map_err(|e| self.error(doing, key, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StoreError::new(ErrorKind::NotFound, doing, key)
                .with_detail("what has this name is not a file"));
        }
        Ok((file, stat))
    }

    fn change(&self, doing: &'static str, key: &str, change: impl FnOnce(&mut Lock)) -> Result<()> {
        check_key(doing, key)?;
        match self.root().and_then(|root| self.change_lock(root, key, change)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::new(ErrorKind::NotFound, doing, key)),
            Err(error) => Err(self.error(doing, key, error)),
        }
    }

    /// Removes what dead processes left. Nothing that fails here matters to a caller.
    fn clean_temporaries(&self, root: BorrowedFd<'_>) {
        if let Err(error) = self.try_clean_temporaries(root) {
            tracing::debug!(store = %self.path.display(), %error, "could not clean {TEMPORARIES}");
        }
    }

    fn try_clean_temporaries(&self, root: BorrowedFd<'_>) -> io::Result<()> {
        let directory = open_directory(root, TEMPORARIES)?;
        let mut synced = false;
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
            let file = match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
                Ok(file) => File::from(file),
                Err(_) => continue,
            };
            // Locked: its writer lives. An error: locks do not work here, so nothing is known.
            if file.try_lock().is_err() {
                continue;
            }
            // Its writer may have died between linking an object and syncing the directory. Make
            // that durable before anybody builds on an object that could vanish in a power cut.
            if !synced && rustix::fs::fstat(&file)?.st_nlink > 1 {
                rustix::fs::syncfs(&directory)?;
                synced = true;
            }
            let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
        }
        Ok(())
    }

    fn try_create(&self, key: &str, body: &[u8]) -> io::Result<()> {
        let root = self.root_or_make()?;
        self.cleaned.call_once(|| self.clean_temporaries(root));
        let mut temporary = Temporary::new(root)?;
        failpoint::hit("local-create-temporary");
        temporary.write(body)?;
        failpoint::hit("local-create-written");
        self.note_lock(key, &temporary.file)?;
        temporary.file.sync_all()?;
        failpoint::hit("local-create-synced");
        let mut attempt = 0;
        loop {
            match temporary.publish(key) {
                Ok(()) => break,
                // The directory is missing, or was removed again since it was made.
                Err(Errno::NOENT) if attempt < ATTEMPTS => {
                    attempt += 1;
                    if let Some((parents, _)) = key.rsplit_once('/') {
                        make_directories_at(root, parents)?;
                    }
                }
                Err(Errno::EXIST) => {
                    let stat = rustix::fs::statat(root, key, AtFlags::empty())?;
                    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                        return Err(io::Error::other("a directory has this name"));
                    }
                    // A caller may take what is there for its own: it must be durable too, and
                    // whoever created it may not have come to that.
                    self.sync_directory_of(root, key)?;
                    return Err(Errno::EXIST.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        failpoint::hit("local-create-linked");
        match self.sync_directory_of(root, key) {
            // Somebody was so quick to delete it that the directory is gone: it was created, and
            // there is nothing left to be made durable.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        // The temporary goes last: while it is there, a later writer knows what to make durable. But
        // it is another name of the object, and goes before that stays for good.
        drop(temporary);
        self.fasten(root, key)
    }

    /// Makes the entry of `key` durable, and the names of the directories above it where nobody
    /// has come to that yet.
    fn sync_directory_of(&self, root: BorrowedFd<'_>, key: &str) -> io::Result<()> {
        let mut path = parent_of(key);
        let mut directory = open_directory(root, path)?;
        rustix::fs::fsync(&directory)?;
        let mut settled = Vec::new();
        while !path.is_empty() {
            let mode = Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode);
            if !mode.contains(UNSETTLED) {
                break;
            }
            path = parent_of(path);
            let parent = open_directory(root, path)?;
            rustix::fs::fsync(&parent)?;
            settled.push((directory, mode.difference(UNSETTLED)));
            directory = parent;
        }
        failpoint::hit("local-create-settled");
        // Only now, from the top down: a directory without the mark says that all above it is
        // durable too.
        for (directory, mode) in settled.into_iter().rev() {
            // Another user's directory keeps the mark, and costs another sync each time.
            let _ = rustix::fs::fchmod(&directory, mode);
        }
        Ok(())
    }
}

/// The path without its last component.
fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Walks one directory, adding what begins with `prefix`.
fn walk(
    directory: OwnedFd,
    path: &str,
    prefix: &str,
    found: &mut Vec<ObjectMeta>,
) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if !is_valid_component(name) {
            continue;
        }
        let key = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        // Going down pays only where the two agree as far as both go.
        if !key.starts_with(prefix) && !prefix.starts_with(&key) {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => match rustix::fs::statat(&directory, name, AtFlags::empty()) {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => true,
                    FileType::RegularFile => false,
                    _ => continue,
                },
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            },
        };
        if is_directory {
            match open_directory(directory.as_fd(), name) {
                Ok(below) => walk(below, &key, prefix, found)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        } else if key.starts_with(prefix) {
            match rustix::fs::statat(&directory, name, AtFlags::empty()) {
                Ok(stat) => found.push(meta(key, &stat)),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn meta(key: String, stat: &Stat) -> ObjectMeta {
    let seconds = u64::try_from(stat.st_mtime).ok();
    let modified = seconds.and_then(|seconds| {
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, stat.st_mtime_nsec as u32))
    });
    ObjectMeta { key, size: u64::try_from(stat.st_size).unwrap_or(0), modified }
}

fn open_directory(at: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = if path.is_empty() { "." } else { path };
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

/// Makes `path` and what is missing above it, durably.
fn make_directories(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match path.parent() {
                Some(parent) => make_directories(parent)?,
                None => return Err(error),
            }
            match std::fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    }
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Makes `path` below `root`, marked as [`UNSETTLED`] where it was missing.
fn make_directories_at(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    for end in ends {
        match rustix::fs::mkdirat(root, &path[..end], Mode::from_raw_mode(0o777).union(UNSETTLED)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // Removed again by somebody's deletion: the caller starts over.
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A file that is being written, locked by this process, removed when dropped.
struct Temporary<'a> {
    root: BorrowedFd<'a>,
    name: String,
    file: File,
    /// Its name is gone already: it was renamed.
    renamed: bool,
}

impl<'a> Temporary<'a> {
    fn new(root: BorrowedFd<'a>) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        for _ in 0..ATTEMPTS {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let name = format!(
                "{TEMPORARIES}/{}-{}-{:016x}",
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed),
                u64::from_le_bytes(random)
            );
            let file = match rustix::fs::openat(root, &name, flags, Mode::from_raw_mode(0o444)) {
                Ok(file) => File::from(file),
                Err(Errno::EXIST) => continue,
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(root, TEMPORARIES, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            };
            let temporary = Self { root, name, file, renamed: false };
            match temporary.file.try_lock() {
                // Another process that cleans up came between; it removes this one.
                Err(TryLockError::WouldBlock) => continue,
                // No locks on this file system: nobody can clean up either.
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            if rustix::fs::fstat(&temporary.file)?.st_nlink > 0 {
                return Ok(temporary);
            }
        }
        Err(io::Error::other("temporary files are removed as soon as they are made"))
    }

    fn write(&mut self, body: &[u8]) -> io::Result<()> {
        if body.len() <= 2 * WRITE_BACK {
            return self.file.write_all(body);
        }
        let written = self.write_past_the_cache(body)?;
        let body = &body[written..];
        let mut offset = written as u64;
        for part in body.chunks(WRITE_BACK) {
            self.file.write_all(part)?;
            // Of dirty pages, DONTNEED starts the write-back and drops none.
            let length = NonZeroU64::new(part.len() as u64);
            let _ = rustix::fs::fadvise(&self.file, offset, length, rustix::fs::Advice::DontNeed);
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Writes as much as the file system takes without its cache, and says how much that was.
    ///
    /// A pack is written once and not read soon. In the cache it would cost another copy and push
    /// out what the machine's databases have there.
    fn write_past_the_cache(&mut self, body: &[u8]) -> io::Result<usize> {
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        if rustix::fs::fcntl_setfl(&self.file, flags | OFlags::DIRECT).is_err() {
            return Ok(0);
        }
        let mut room = vec![0; DIRECT + ALIGNED];
        let aligned = room.as_ptr().align_offset(ALIGNED).min(ALIGNED);
        let room = &mut room[aligned..aligned + DIRECT];
        let mut written = 0;
        'parts: for part in body.chunks(DIRECT) {
            let part = &part[..part.len() - part.len() % ALIGNED];
            room[..part.len()].copy_from_slice(part);
            let mut rest = &room[..part.len()];
            while !rest.is_empty() {
                match rustix::io::write(&self.file, rest) {
                    Ok(length) if length > 0 && length % ALIGNED == 0 => {
                        written += length;
                        rest = &rest[length..];
                    }
                    // Not what the file system wants after all, or a full disk: the ordinary way
                    // goes on from here, and says so if there is something to be said.
                    Ok(length) => {
                        written += length;
                        break 'parts;
                    }
                    Err(Errno::INTR) => {}
                    Err(_) => break 'parts,
                }
            }
        }
        rustix::fs::fcntl_setfl(&self.file, flags)?;
        Ok(written)
    }

    /// Gives it its own name; fails with EXIST when that is taken.
    fn publish(&mut self, key: &str) -> Result<(), Errno> {
        match rustix::fs::linkat(self.root, &self.name, self.root, key, AtFlags::empty()) {
            // No hard links here (FAT, some network file systems).
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => self.rename(key),
            other => other,
        }
    }

    fn rename(&mut self, key: &str) -> Result<(), Errno> {
        let flags = RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(self.root, &self.name, self.root, key, flags)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = rustix::fs::unlinkat(self.root, &self.name, AtFlags::empty());
        }
    }
}

impl Backend for Local {
    fn lock_policy(&self) -> Option<LockPolicy> {
        self.lock
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>> {
        check_key("look at", key)?;
        match self.root().and_then(|root| self.lock_of(root, key)) {
            Ok(Some(lock)) => Ok(Some(lock)),
            Ok(None) => Err(StoreError::new(ErrorKind::NotFound, "look at", key)),
            Err(error) => Err(self.error("look at", key, error)),
        }
    }

    fn extend_lock(&self, key: &str, until: SystemTime) -> Result<()> {
        self.change("lock", key, |lock| lock.until = lock.until.max(Some(until)))
    }

    fn hold(&self, key: &str, on: bool) -> Result<()> {
        self.change("hold", key, |lock| lock.held = on)
    }

    fn parity(&self) -> Option<&dyn crate::Parity> {
        Some(self)
    }

    fn url(&self) -> String {
        format!("file://{}", self.path.display())
    }

    fn create(&self, key: &str, body: Bytes) -> Result<()> {
        check_key("create", key)?;
        self.try_create(key, &body).map_err(|e| self.error("create", key, e))?;
        self.add_parity(key, &body);
        Ok(())
    }

    fn read(&self, key: &str) -> Result<Bytes> {
        check_key("read", key)?;
        let (mut file, stat) = self.open_object("read", key)?;
        let mut body = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0));
        let read = file.read_to_end(&mut body);
        if let Some(right) = self.repaired(key, &file, read.is_ok().then_some(&body)) {
            return Ok(right);
        }
        read.map_err(|e| self.error("read", key, e))?;
        Ok(body.into())
    }

    fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        check_key("read", key)?;
        let (mut file, stat) = self.open_object("read", key)?;
        if let Some(right) = self.checked_range(key, &file, &range) {
            return Ok(right);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let damaged = || {
            StoreError::new(ErrorKind::Damaged, "read", key).with_detail(format!(
                "bytes {}..{} were asked for, it has {size}",
                range.start, range.end
            ))
        };
        if range.start > range.end || range.end > size {
            return Err(damaged());
        }
        let length = range.end - range.start;
        let mut body = Vec::with_capacity(usize::try_from(length).map_err(|_| damaged())?);
        file.seek(SeekFrom::Start(range.start))
            .and_then(|_| file.take(length).read_to_end(&mut body))
            .map_err(|e| self.error("read", key, e))?;
        if body.len() as u64 != length {
            return Err(damaged());
        }
        Ok(body.into())
    }

    fn head(&self, key: &str) -> Result<ObjectMeta> {
        check_key("look at", key)?;
        let stat = self
            .root()
            .and_then(|root| Ok(rustix::fs::statat(root, key, AtFlags::empty())?))
            .map_err(|e| self.error("look at", key, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StoreError::new(ErrorKind::NotFound, "look at", key)
                .with_detail("what has this name is not a file"));
        }
        Ok(meta(key.to_owned(), &stat))
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        check_prefix("list", prefix)?;
        let mut found = Vec::new();
        let parents = prefix.rsplit_once('/').map_or("", |(parents, _)| parents);
        let directory = self.root().and_then(|root| open_directory(root, parents));
        match directory.and_then(|directory| walk(directory, parents, prefix, &mut found)) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(self.error("list", prefix, error)),
        }
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<()> {
        check_key("delete", key)?;
        match self.root().and_then(|root| self.loosen(root, key)) {
            Ok(None) => {}
            Ok(Some(lock)) => return Err(lock.refusal(key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.error("delete", key, error)),
        }
        let deleted = self.root().and_then(|root| {
            self.remove_parity(root, key)?;
            match rustix::fs::unlinkat(root, key, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
                // Linux says ISDIR where POSIX says PERM.
                Err(Errno::ISDIR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            // Directories that are empty now go too, from the bottom up; the first that stays is
            // the one to sync.
            let mut path = key;
            while let Some((parents, _)) = path.rsplit_once('/') {
                path = parents;
                if rustix::fs::unlinkat(root, path, AtFlags::REMOVEDIR).is_err() {
                    return match open_directory(root, path) {
                        Ok(directory) => Ok(rustix::fs::fsync(directory)?),
                        // Somebody else removed it.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                        Err(error) => Err(error),
                    };
                }
            }
            Ok(rustix::fs::fsync(root)?)
        });
        match deleted {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|e| self.error("delete", key, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(local: &Local) -> usize {
        std::fs::read_dir(local.path.join(TEMPORARIES)).map_or(0, Iterator::count)
    }

    #[test]
    fn a_living_writers_temporary_stays_and_a_dead_ones_goes() {
        let directory = tempfile::tempdir().unwrap();
        let writer = Local::new(directory.path()).unwrap();
        let mut living = Temporary::new(writer.root().unwrap()).unwrap();
        living.write(b"half of it").unwrap();
        // What a process that was killed leaves: a file without a lock.
        std::fs::write(directory.path().join(".tmp/1-0-dead"), "half").unwrap();
        assert_eq!(count(&writer), 2);

        Local::new(directory.path()).unwrap().create("a", Bytes::new()).unwrap();
        assert_eq!(count(&writer), 1);
        living.publish("b").unwrap();
        drop(living);
        assert_eq!(count(&writer), 0);
        assert_eq!(writer.read("b").unwrap(), "half of it");
    }

    #[test]
    fn without_hard_links_a_rename_publishes_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let local = Local::new(directory.path()).unwrap();
        let root = local.root().unwrap();
        let mut first = Temporary::new(root).unwrap();
        first.write(b"first").unwrap();
        first.rename("k").unwrap();
        let mut second = Temporary::new(root).unwrap();
        second.write(b"second").unwrap();
        assert_eq!(second.rename("k").unwrap_err(), Errno::EXIST);
        drop((first, second));
        assert_eq!(local.read("k").unwrap(), "first");
        assert_eq!(count(&local), 0);
    }

    #[test]
    fn directories_that_a_dead_process_made_are_made_durable_once() {
        let directory = tempfile::tempdir().unwrap();
        let local = Local::new(directory.path()).unwrap();
        let root = local.root().unwrap();
        let unsettled = |path: &str| {
            let stat = rustix::fs::statat(root, path, AtFlags::empty()).unwrap();
            Mode::from_raw_mode(stat.st_mode).contains(UNSETTLED)
        };
        make_directories_at(root, "a/b/c").unwrap();
        assert!(["a", "a/b", "a/b/c"].iter().all(|path| unsettled(path)));
        local.create("a/b/one", Bytes::new()).unwrap();
        assert!(!unsettled("a") && !unsettled("a/b") && unsettled("a/b/c"));
        // What is there already counts as durable too, when somebody is told so.
        std::fs::write(directory.path().join("a/b/c/two"), "").unwrap();
        assert!(local.create("a/b/c/two", Bytes::new()).unwrap_err().is_already_exists());
        assert!(!unsettled("a/b/c"));
    }
}
