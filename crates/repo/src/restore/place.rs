//! Places on the file system, reached without following links.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    Access, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::not_empty;
use crate::entry::{Metadata, Time};
use crate::{RepoError, Result};

/// Longer paths are walked component by component.
const LONG: usize = 3500;

/// The folder that a restore fills.
pub(super) struct Target {
    path: PathBuf,
    folder: Arc<OwnedFd>,
}

impl Target {
    pub fn open(path: &Path, delta: bool) -> Result<Self> {
        let fail = |error: io::Error| RepoError::io("use the folder", path, error);
        std::fs::create_dir_all(path).map_err(fail)?;
        if !delta && std::fs::read_dir(path).map_err(fail)?.next().is_some() {
            return Err(not_empty(path));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| fail(e.into()))?;
        let path = path.canonicalize().map_err(fail)?;
        Ok(Self { path, folder: Arc::new(folder) })
    }

    pub fn place(&self, path: &[u8]) -> Place {
        Place { base: Some(self.folder.clone()), path: path.to_vec() }
    }

    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&*self.folder)
            .map_err(|e| RepoError::io("write to disk what is below", &self.path, e.into()))
    }

    /// Removes whatever is not in `kept`; counts what was removed.
    pub fn remove_all_but(&self, kept: &HashSet<Vec<u8>>) -> Result<u64> {
        let mut removed = 0;
        prune(&self.folder, Vec::new(), kept, &mut removed).map_err(|e| {
            RepoError::io("remove what the snapshot does not have from", &self.path, e)
        })?;
        Ok(removed)
    }
}

pub(super) fn sync_file_system(path: &Path) -> Result<()> {
    let fail = |error: io::Error| RepoError::io("write to disk what is below", path, error);
    let folder = File::open(path).map_err(fail)?;
    rustix::fs::syncfs(&folder).map_err(|e| fail(e.into()))
}

fn children(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn open_folder(base: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(base, name, flags, Mode::empty())?)
}

fn prune(
    folder: &OwnedFd,
    path: Vec<u8>,
    kept: &HashSet<Vec<u8>>,
    removed: &mut u64,
) -> io::Result<()> {
    for name in children(folder)? {
        let mut below = path.clone();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(&name);
        let stat = rustix::fs::statat(folder, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if kept.contains(&below) {
            if directory {
                prune(&open_folder(folder, &name)?, below, kept, removed)?;
            }
        } else {
            remove(folder, &name, directory)?;
            *removed += 1;
        }
    }
    Ok(())
}

fn remove(base: impl AsFd, name: &[u8], directory: bool) -> io::Result<()> {
    if !directory {
        return Ok(rustix::fs::unlinkat(base, name, AtFlags::empty())?);
    }
    let folder = open_folder(&base, name)?;
    for child in children(&folder)? {
        let stat = rustix::fs::statat(&folder, &child[..], AtFlags::SYMLINK_NOFOLLOW)?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        remove(&folder, &child, directory)?;
    }
    Ok(rustix::fs::unlinkat(base, name, AtFlags::REMOVEDIR)?)
}

/// One path: below the target, or absolute where a caller placed it.
#[derive(Clone)]
pub(super) struct Place {
    base: Option<Arc<OwnedFd>>,
    path: Vec<u8>,
}

/// A folder and a name in it.
enum Parent<'p> {
    Base(BorrowedFd<'p>, &'p [u8]),
    Walked(OwnedFd, &'p [u8]),
}

impl Parent<'_> {
    fn split(&self) -> (BorrowedFd<'_>, &[u8]) {
        match self {
            Self::Base(fd, name) => (*fd, name),
            Self::Walked(fd, name) => (fd.as_fd(), name),
        }
    }
}

impl Place {
    pub fn absolute(path: PathBuf) -> Self {
        Self { base: None, path: path.as_os_str().as_bytes().to_vec() }
    }

    pub fn is_below_target(&self) -> bool {
        self.base.is_some()
    }

    pub fn absolute_path(&self) -> Option<&Path> {
        self.base.is_none().then(|| Path::new(std::ffi::OsStr::from_bytes(&self.path)))
    }

    pub fn display(&self) -> &[u8] {
        &self.path
    }

    fn error(&self, doing: &str, error: io::Error) -> RepoError {
        RepoError::io(doing, Path::new(std::ffi::OsStr::from_bytes(&self.path)), error)
    }

    fn parent(&self) -> io::Result<Parent<'_>> {
        let base = self.base.as_ref().map_or(CWD, |fd| fd.as_fd());
        if self.path.len() <= LONG {
            return Ok(Parent::Base(base, &self.path));
        }
        let mut parts = self.path.split(|b| *b == b'/').peekable();
        let mut folder: Option<OwnedFd> = None;
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                if let Some(folder) = folder {
                    return Ok(Parent::Walked(folder, part));
                }
                break;
            }
            folder = Some(match &folder {
                Some(folder) => open_folder(folder, part)?,
                None if part.is_empty() => open_folder(base, b"/")?,
                None => open_folder(base, part)?,
            });
        }
        Ok(Parent::Base(base, &self.path))
    }

    fn kind(&self) -> io::Result<Option<FileType>> {
        let parent = self.parent()?;
        let (base, name) = parent.split();
        match rustix::fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn clear(&self) -> io::Result<()> {
        if let Some(kind) = self.kind()? {
            let parent = self.parent()?;
            let (base, name) = parent.split();
            remove(base, name, kind == FileType::Directory)?;
        }
        Ok(())
    }

    /// Makes a directory that only its owner may enter until its metadata is set.
    pub fn make_directory(&self, may_exist: bool) -> Result<()> {
        let make = || {
            let parent = self.parent()?;
            let (base, name) = parent.split();
            match rustix::fs::mkdirat(base, name, Mode::RWXU) {
                Err(Errno::EXIST) if may_exist || self.base.is_none() => {
                    if self.kind()? == Some(FileType::Directory) {
                        // One that nobody may write to could not be filled. Where it is not ours to
                        // change, filling it says so.
                        if rustix::fs::accessat(base, name, Access::WRITE_OK, AtFlags::empty())
                            .is_err()
                        {
                            let _ = rustix::fs::chmodat(base, name, Mode::RWXU, AtFlags::empty());
                        }
                        return Ok(());
                    }
                    self.clear()?;
                    Ok(rustix::fs::mkdirat(base, name, Mode::RWXU)?)
                }
                other => Ok(other?),
            }
        };
        make().map_err(|e| self.error("make the directory", e))
    }

    /// Whether a regular file is there; anything else is removed.
    pub fn prepare_existing(&self) -> Result<bool> {
        let prepare = || match self.kind()? {
            Some(FileType::RegularFile) => {
                // Another name of the file may belong to something else.
                let parent = self.parent()?;
                let (base, name) = parent.split();
                let stat = rustix::fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW)?;
                // Ours alone while it is worked on, whatever its mode was. Who may not change that
                // makes a new file in its place.
                let ours = Mode::RUSR | Mode::WUSR;
                if stat.st_nlink == 1
                    && rustix::fs::chmodat(base, name, ours, AtFlags::empty()).is_ok()
                {
                    return Ok(true);
                }
                self.clear()?;
                Ok(false)
            }
            Some(_) => self.clear().map(|()| false),
            None => Ok(false),
        };
        prepare().map_err(|e| self.error("replace", e))
    }

    /// Opens the file for writing; creates it where `exists` is false and it is not there yet.
    pub fn open_file(&self, fresh: bool) -> io::Result<File> {
        let parent = self.parent()?;
        let (base, name) = parent.split();
        let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::CREATE;
        if fresh {
            flags |= OFlags::TRUNC;
        }
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::openat(base, name, flags, mode) {
            Ok(file) => Ok(File::from(file)),
            // A file that may not be written, or is being executed, is replaced.
            Err(Errno::ACCESS | Errno::TXTBSY) if fresh => {
                self.clear()?;
                Ok(File::from(rustix::fs::openat(base, name, flags, mode)?))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub fn symlink(&self, target: &[u8], replace: bool) -> io::Result<()> {
        if replace {
            self.clear()?;
        }
        let parent = self.parent()?;
        let (base, name) = parent.split();
        Ok(rustix::fs::symlinkat(target, base, name)?)
    }

    pub fn special(&self, kind: FileType, device: u64, replace: bool) -> io::Result<()> {
        if replace {
            self.clear()?;
        }
        let parent = self.parent()?;
        let (base, name) = parent.split();
        Ok(rustix::fs::mknodat(base, name, kind, Mode::RUSR | Mode::WUSR, device)?)
    }

    /// Gives this file the second name `other`. What was there goes only when the link is made.
    pub fn link_to(&self, other: &Self, replace: bool) -> io::Result<()> {
        let (from, to) = (self.parent()?, other.parent()?);
        let ((from, first), (to, second)) = (from.split(), to.split());
        if !replace || other.kind()?.is_none() {
            return Ok(rustix::fs::linkat(from, first, to, second, AtFlags::empty())?);
        }
        if other.kind()? == Some(FileType::Directory) {
            other.clear()?;
        }
        let mut temporary = second.to_vec();
        temporary.truncate(second.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1));
        let random: [u8; 8] = backstay_store::Environment::system().random();
        temporary.extend_from_slice(format!(".backstay-{}", crate::id::hex(&random)).as_bytes());
        rustix::fs::linkat(from, first, to, &temporary[..], AtFlags::empty())?;
        rustix::fs::renameat(to, &temporary[..], to, second)?;
        // Renaming one name of a file to another of the same file does nothing at all.
        match rustix::fs::unlinkat(to, &temporary[..], AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Metadata of something that is not a regular file.
    pub fn set_metadata(&self, meta: &Metadata, owners: Option<&Owners>, link: bool) -> Result<()> {
        let set = || {
            if !link && self.kind()? == Some(FileType::Directory) {
                let parent = self.parent()?;
                let (base, name) = parent.split();
                return set_metadata(&File::from(open_folder(base, name)?), meta, owners);
            }
            let parent = self.parent()?;
            let (base, name) = parent.split();
            if let Some(owners) = owners {
                let (uid, gid) = owners.resolve(meta);
                rustix::fs::chownat(base, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            if !link {
                rustix::fs::chmodat(base, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
            }
            for (attribute, value) in &meta.xattrs {
                let path = descriptor_path(base, name);
                let attribute = attribute.as_slice();
                rustix::fs::lsetxattr(path.as_slice(), attribute, value, XattrFlags::empty())?;
            }
            rustix::fs::utimensat(base, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(())
        };
        set().map_err(|e| self.error("set the metadata of", e))
    }
}

/// A path for the calls that take no folder.
fn descriptor_path(base: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    if name.first() == Some(&b'/') {
        return name.to_vec();
    }
    let mut path = format!("/proc/self/fd/{}/", base.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

fn times(meta: &Metadata) -> Timestamps {
    let spec = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) as _ };
    Timestamps { last_access: spec(meta.mtime), last_modification: spec(meta.mtime) }
}

/// Owner, mode, attributes and times of an open file or directory; the owner first, because setting
/// it clears the set-user-id bit, and the times last.
pub(super) fn set_metadata(
    file: &File,
    meta: &Metadata,
    owners: Option<&Owners>,
) -> io::Result<()> {
    if let Some(owners) = owners {
        let (uid, gid) = owners.resolve(meta);
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    for (name, value) in &meta.xattrs {
        rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()).map_err(|e| {
            let e = io::Error::from(e);
            io::Error::new(e.kind(), format!("attribute {}: {e}", String::from_utf8_lossy(name)))
        })?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(meta.mode))?;
    rustix::fs::futimens(file, &times(meta))?;
    Ok(())
}

/// Users and groups of this machine by name.
pub(super) struct Owners {
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

impl Owners {
    pub fn read() -> Self {
        Self { users: ids("/etc/passwd"), groups: ids("/etc/group") }
    }

    fn resolve(&self, meta: &Metadata) -> (Uid, Gid) {
        let uid = self.users.get(&meta.user).copied().unwrap_or(meta.uid);
        let gid = self.groups.get(&meta.group).copied().unwrap_or(meta.gid);
        (Uid::from_raw(uid), Gid::from_raw(gid))
    }
}

/// `name:password:id:…` in each line.
fn ids(path: &str) -> HashMap<String, u32> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let id = fields.nth(1)?.parse().ok()?;
            Some((name.to_owned(), id))
        })
        .collect()
}
