//! Places on the file system, reached without following links.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    Access, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::not_empty;
use crate::entry::{Metadata, Time};
use crate::{Beneath, RepoError, Result};

/// What the name of a file ends with that could not be completed.
const INCOMPLETE: &[u8] = b".backstay-incomplete";
/// The longest name that a file can have. Bytes.
const NAME_MAX: usize = 255;
/// The mode of a file that is worked on.
pub(super) const OURS: Mode = Mode::RUSR.union(Mode::WUSR);

/// What a place's path is relative to.
struct Base {
    folder: Beneath,
    path: PathBuf,
}

/// The folder that a restore fills.
pub(super) struct Target {
    base: Arc<Base>,
}

impl Target {
    pub fn open(path: &Path, delta: bool) -> Result<Self> {
        let fail = |error: io::Error| RepoError::io("use the folder", path, error);
        std::fs::create_dir_all(path).map_err(fail)?;
        if !delta && std::fs::read_dir(path).map_err(fail)?.next().is_some() {
            return Err(not_empty(path));
        }
        let folder = Beneath::open(path).map_err(fail)?;
        let path = path.canonicalize().map_err(fail)?;
        Ok(Self { base: Arc::new(Base { folder, path }) })
    }

    pub fn place(&self, path: &[u8]) -> Place {
        Place { base: Some(self.base.clone()), in_target: true, path: path.to_vec() }
    }

    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.base.folder)
            .map_err(|e| RepoError::io("write to disk what is below", &self.base.path, e.into()))
    }

    /// Removes whatever is not in `kept`; counts what was removed.
    pub fn remove_all_but(&self, kept: &HashSet<Vec<u8>>) -> Result<u64> {
        let mut removed = 0;
        let folder = self.base.folder.as_fd();
        prune(folder, Vec::new(), kept, &mut removed).map_err(|e| {
            RepoError::io("remove what the snapshot does not have from", &self.base.path, e)
        })?;
        Ok(removed)
    }
}

/// The directories that were placed outside of the target. What goes below one of them is reached
/// from there without following links, as in the target.
#[derive(Default)]
pub(super) struct Anchors {
    made: Vec<Arc<Base>>,
}

impl Anchors {
    pub fn place(&self, path: PathBuf) -> Place {
        let below = self.made.iter().rev().find_map(|base| {
            let below = path.strip_prefix(&base.path).ok()?;
            Some((base, below.as_os_str().as_bytes())).filter(|(_, below)| !below.is_empty())
        });
        match below {
            Some((base, below)) => {
                Place { base: Some(base.clone()), in_target: false, path: below.to_vec() }
            }
            None => {
                Place { base: None, in_target: false, path: path.as_os_str().as_bytes().to_vec() }
            }
        }
    }

    /// Remembers a directory that was just made, unless it lies below another.
    pub fn add(&mut self, place: &Place) -> Result<()> {
        if place.base.is_none() {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(&place.path));
            let folder = Beneath::open_itself(&path);
            let folder = folder.map_err(|e| RepoError::io("use the folder", &path, e))?;
            self.made.push(Arc::new(Base { folder, path }));
        }
        Ok(())
    }
}

fn children(folder: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
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
    folder: BorrowedFd<'_>,
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
                prune(open_folder(folder, &name)?.as_fd(), below, kept, removed)?;
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

/// One path: below the target, below a directory elsewhere that a caller placed, or absolute.
#[derive(Clone)]
pub(super) struct Place {
    base: Option<Arc<Base>>,
    in_target: bool,
    path: Vec<u8>,
}

/// What is in the place of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    /// A file that can be brought to another state.
    File,
    /// A file that must not be written to: it is being executed, has other names, or is closed to
    /// us. Another one takes its place when that is whole.
    Untouchable,
}

/// A directory that is open, whatever its mode becomes.
pub(super) struct Opened {
    folder: OwnedFd,
    place: Place,
}

impl Opened {
    /// Brings to the disk all that is on this file system.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.folder)
            .map_err(|e| self.place.error("write to disk what is below", e.into()))
    }
}

/// A folder and a name in it.
enum Parent<'p> {
    Base(BorrowedFd<'p>, &'p [u8]),
    Opened(OwnedFd, &'p [u8]),
}

impl Parent<'_> {
    fn split(&self) -> (BorrowedFd<'_>, &[u8]) {
        match self {
            Self::Base(fd, name) => (*fd, name),
            Self::Opened(fd, name) => (fd.as_fd(), name),
        }
    }
}

impl Place {
    pub fn is_below_target(&self) -> bool {
        self.in_target
    }

    pub fn display(&self) -> &[u8] {
        &self.path
    }

    fn error(&self, doing: &str, error: io::Error) -> RepoError {
        let path = Path::new(std::ffi::OsStr::from_bytes(&self.path));
        match &self.base {
            Some(base) if !self.in_target => RepoError::io(doing, base.path.join(path), error),
            _ => RepoError::io(doing, path, error),
        }
    }

    /// The folder that this is in, never reached through a link below the base.
    fn parent(&self) -> io::Result<Parent<'_>> {
        let Some(base) = &self.base else { return Ok(Parent::Base(CWD, &self.path)) };
        let Some(at) = self.path.iter().rposition(|b| *b == b'/') else {
            return Ok(Parent::Base(base.folder.as_fd(), &self.path));
        };
        let (above, name) = (&self.path[..at], &self.path[at + 1..]);
        let above = base.folder.open_below(above, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Parent::Opened(above, name))
    }

    /// The device that this directory lies on.
    pub fn device(&self) -> Result<u64> {
        let device = || {
            let parent = self.parent()?;
            let (base, name) = parent.split();
            Ok(rustix::fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW)?.st_dev)
        };
        device().map_err(|e| self.error("look at", e))
    }

    /// Opens this directory, to sync its file system with [`Opened::sync`] at the end.
    pub fn open(&self) -> Result<Opened> {
        let open = || {
            let parent = self.parent()?;
            let (base, name) = parent.split();
            open_folder(base, name)
        };
        let folder = open().map_err(|e| self.error("open", e))?;
        Ok(Opened { folder, place: self.clone() })
    }

    /// Gives a file that could not be completed, and should have been at `other`, a name that says so,
    /// and that nothing has; `None` when there is no file.
    pub fn set_aside(&self, other: &Self) -> Result<Option<Vec<u8>>> {
        let rename = || {
            let (parent, other) = (self.parent()?, other.parent()?);
            let (from, unfinished) = parent.split();
            let (base, path) = other.split();
            let start = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
            for number in 1..1000 {
                let mut end = INCOMPLETE.to_vec();
                if path.len() - start + end.len() > NAME_MAX {
                    // Names that begin alike are still told apart.
                    let hash = blake3::hash(&path[start..]).to_hex();
                    end.extend_from_slice(&hash.as_bytes()[..8]);
                }
                if number > 1 {
                    end.extend_from_slice(format!("-{number}").as_bytes());
                }
                let mut aside = path.to_vec();
                aside.truncate(start + (path.len() - start).min(NAME_MAX - end.len()));
                aside.extend_from_slice(&end);
                let flags = RenameFlags::NOREPLACE;
                let renamed = rustix::fs::renameat_with(from, unfinished, base, &aside[..], flags);
                let renamed = match renamed {
                    // A file system that cannot promise it is asked first.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        match rustix::fs::statat(base, &aside[..], AtFlags::SYMLINK_NOFOLLOW) {
                            Ok(_) => Err(Errno::EXIST),
                            Err(_) => rustix::fs::renameat(from, unfinished, base, &aside[..]),
                        }
                    }
                    other => other,
                };
                match renamed {
                    Ok(()) => return Ok(Some(aside.split_off(start))),
                    Err(Errno::NOENT) => return Ok(None),
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(io::Error::from(Errno::EXIST))
        };
        rename().map_err(|e| self.error("rename the incomplete file", e))
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
                            let _ = open_folder(base, name)
                                .map(|folder| rustix::fs::fchmod(folder, Mode::RWXU));
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

    /// What is in the place of a regular file. Anything but a file that may be there is removed.
    pub fn prepare_existing(&self, may_exist: bool) -> Result<There> {
        if !may_exist {
            return Ok(There::Nothing);
        }
        let prepare = || match self.kind()? {
            Some(FileType::RegularFile) => match self.open_existing() {
                Ok(file) if rustix::fs::fstat(&file)?.st_nlink == 1 => Ok(There::File),
                // Another name of the file may belong to something else.
                Ok(_) => Ok(There::Untouchable),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::ACCESS | Errno::PERM | Errno::TXTBSY) => Ok(There::Untouchable),
                    _ => Err(error),
                },
            },
            Some(_) => self.clear().map(|()| There::Nothing),
            None => Ok(There::Nothing),
        };
        prepare().map_err(|e| self.error("replace", e))
    }

    /// A place beside this one, with a name that nothing has.
    pub fn beside(&self) -> Self {
        let start = self.path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let random: [u8; 8] = backstay_store::Environment::system().random();
        let name = format!(".backstay-{}", crate::id::hex(&random));
        let path = [&self.path[..start], name.as_bytes()].concat();
        Self { path, ..self.clone() }
    }

    /// Puts a file that is whole into the place of another one.
    pub fn replace(&self, other: &Self) -> Result<()> {
        let replace = || {
            let (from, to) = (self.parent()?, other.parent()?);
            let ((from, here), (to, there)) = (from.split(), to.split());
            Ok(rustix::fs::renameat(from, here, to, there)?)
        };
        replace().map_err(|e| other.error("replace", e))
    }

    /// Opens a file that is there, for reading and writing.
    pub fn open_existing(&self) -> io::Result<File> {
        self.open_file(OFlags::empty())
    }

    /// Creates a file that is not there: nobody else may have a hand in it.
    pub fn create(&self) -> io::Result<File> {
        self.open_file(OFlags::CREATE | OFlags::EXCL)
    }

    fn open_file(&self, more: OFlags) -> io::Result<File> {
        let parent = self.parent()?;
        let (base, name) = parent.split();
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | more;
        Ok(File::from(rustix::fs::openat(base, name, flags, OURS)?))
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

    /// Metadata of something that is not a regular file. All that can be set is set, whatever
    /// cannot.
    pub fn set_metadata(
        &self,
        meta: &Metadata,
        owners: Option<&Owners>,
        link: bool,
        strip: bool,
    ) -> Result<()> {
        let set = || {
            let parent = self.parent()?;
            let (base, name) = parent.split();
            if !link && self.kind()? == Some(FileType::Directory) {
                return set_metadata(&File::from(open_folder(base, name)?), meta, owners, strip);
            }
            let mut first = First::default();
            if let Some(owners) = owners {
                let (uid, gid) = owners.resolve(meta);
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                first.note(rustix::fs::chownat(base, name, Some(uid), Some(gid), flags));
            }
            if !link {
                // Not by name: what has it now may be a link to something else.
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let it = rustix::fs::openat(base, name, flags, Mode::empty())?;
                let mode = Mode::from_raw_mode(meta.mode & !SET_ID);
                let kind = FileType::from_raw_mode(rustix::fs::fstat(&it)?.st_mode);
                if kind == FileType::Symlink {
                    return Err(Errno::LOOP.into());
                }
                let path = descriptor_path(it.as_fd(), b"");
                first.note(rustix::fs::chmodat(CWD, &path[..], mode, AtFlags::empty()));
            }
            let path = descriptor_path(base, name);
            for (attribute, value) in &meta.xattrs {
                let set =
                    rustix::fs::lsetxattr(&path[..], &attribute[..], value, XattrFlags::empty());
                first.note_attribute(attribute, set);
            }
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            first.note(rustix::fs::utimensat(base, name, &times(meta), flags));
            first.into_result()
        };
        set().map_err(|e| self.error("set the metadata of", e))
    }
}

/// The bits of a mode that let a program act as its owner or group.
const SET_ID: u32 = 0o6000;

/// The first error of several steps, all of which are taken.
#[derive(Default)]
struct First(Option<io::Error>);

impl First {
    fn note(&mut self, result: Result<(), Errno>) {
        if let Err(error) = result {
            self.0.get_or_insert_with(|| error.into());
        }
    }

    fn note_attribute(&mut self, name: &[u8], result: Result<(), Errno>) {
        if let Err(error) = result {
            let error = io::Error::from(error);
            self.0.get_or_insert_with(|| {
                let name = String::from_utf8_lossy(name);
                io::Error::new(error.kind(), format!("attribute {name}: {error}"))
            });
        }
    }

    /// An attribute that is too large for this file system, or a quota of owners, is no full disk:
    /// the error keeps its words alone.
    fn into_result(self) -> io::Result<()> {
        self.0.map_or(Ok(()), |error| Err(io::Error::other(error.to_string())))
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
    if path.last() == Some(&b'/') {
        path.pop();
    }
    path
}

fn times(meta: &Metadata) -> Timestamps {
    let spec = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) as _ };
    Timestamps { last_access: spec(meta.mtime), last_modification: spec(meta.mtime) }
}

/// Owner, mode, attributes and times of an open file or directory; the owner first, because setting
/// it clears the set-user-id bit, and the times last. All that can be set is set, whatever cannot.
/// With `strip`, attributes that the snapshot does not have go: of a file that was there before, or
/// inherited from the folder.
pub(super) fn set_metadata(
    file: &File,
    meta: &Metadata,
    owners: Option<&Owners>,
    strip: bool,
) -> io::Result<()> {
    let mut first = First::default();
    if let Some(owners) = owners {
        let (uid, gid) = owners.resolve(meta);
        first.note(rustix::fs::fchown(file, Some(uid), Some(gid)));
    }
    for name in if strip { attributes(file) } else { Vec::new() } {
        let kept = meta.xattrs.iter().any(|(wanted, _)| *wanted == name);
        if !kept && is_ours_to_remove(&name) {
            first.note_attribute(&name, rustix::fs::fremovexattr(file, &name[..]));
        }
    }
    // What lets a program act as its owner, or as root, is for that owner's programs alone.
    let privileged = meta.mode & SET_ID != 0
        || meta.xattrs.iter().any(|(name, _)| name == b"security.capability");
    let owned = !privileged || {
        let stat = rustix::fs::fstat(file)?;
        let (uid, gid) = owners.map_or_else(
            || (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid)),
            |owners| owners.resolve(meta),
        );
        (stat.st_uid, stat.st_gid) == (uid.as_raw(), gid.as_raw())
    };
    for (name, value) in &meta.xattrs {
        if name == b"security.capability" && !owned {
            continue;
        }
        let set = rustix::fs::fsetxattr(file, &name[..], value, XattrFlags::empty());
        first.note_attribute(name, set);
    }
    let mode = if owned { meta.mode } else { meta.mode & !SET_ID };
    first.note(rustix::fs::fchmod(file, Mode::from_raw_mode(mode)));
    first.note(rustix::fs::futimens(file, &times(meta)));
    first.into_result()
}

/// Names of the extended attributes of a file; none where the file system has none.
fn attributes(file: &File) -> Vec<Vec<u8>> {
    let split = |names: &[u8]| {
        let names = names.split(|b| *b == 0);
        names.filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
    };
    let mut room = [0; 512];
    match rustix::fs::flistxattr(file, &mut room[..]) {
        Ok(length) => split(&room[..length]),
        Err(Errno::RANGE) => {
            let mut room = vec![0; 64 << 10];
            let length = rustix::fs::flistxattr(file, &mut room[..]).unwrap_or(0);
            split(&room[..length])
        }
        Err(_) => Vec::new(),
    }
}

/// What a person, an access list or a capability left. The rest is the system's own: a security
/// label is given anew to whatever is created, and nobody backs it up on a system without them.
fn is_ours_to_remove(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"system.posix_acl_")
        || name == b"security.capability"
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
