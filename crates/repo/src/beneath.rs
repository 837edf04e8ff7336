//! Opening a path below a directory without following any link on the way, however long the path.
//!
//! Between two looks at a tree, somebody may put a symbolic link in the place of one of its
//! directories. A backup that follows it stores the content of another file under this name; a
//! restore that follows it writes, as root, to where somebody else wants it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The kernel takes 4095 bytes of path at once.
const LONGEST: usize = 4000;

/// A directory, and the way down from it.
#[derive(Debug)]
pub struct Beneath {
    fd: OwnedFd,
    /// `openat2` is missing (before Linux 5.6) or forbidden (seccomp filters that do not know it).
    by_component: AtomicBool,
}

impl Beneath {
    /// Links in `path` itself are followed.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(path.as_ref(), flags, Mode::empty())?;
        Ok(Self { fd, by_component: AtomicBool::new(false) })
    }

    /// As [`open`](Self::open), but `path` itself must be no link.
    pub fn open_itself(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::open(path.as_ref(), flags, Mode::empty())?;
        Ok(Self { fd, by_component: AtomicBool::new(false) })
    }

    /// The root directory, which all paths are below.
    pub fn root() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: fs::open("/", flags, Mode::empty())?, by_component: AtomicBool::new(false) })
    }

    /// Opens `path`, which is relative and has no leading slash; empty for the directory itself. A
    /// link anywhere in it is `ELOOP`.
    pub fn open_below(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let mut at: Option<OwnedFd> = None;
        let mut rest = if path.is_empty() { b"." } else { path };
        loop {
            let from = at.as_ref().map_or(self.fd.as_fd(), |fd| fd.as_fd());
            let Some(cut) = self.cut(rest) else {
                return Ok(self.step(from, rest, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW)?);
            };
            let (head, tail) = rest.split_at(cut);
            let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            at = Some(self.step(from, head, through)?);
            rest = tail.get(1..).unwrap_or_default();
        }
    }

    /// Where the first part of `path` ends that can be opened with one call; none if all can.
    fn cut(&self, path: &[u8]) -> Option<usize> {
        if self.by_component.load(Relaxed) {
            return path.iter().position(|byte| *byte == b'/');
        }
        if path.len() <= LONGEST {
            return None;
        }
        let head = path.get(..LONGEST).unwrap_or(path);
        head.iter().rposition(|byte| *byte == b'/')
    }

    fn step(&self, from: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let from = from.as_fd();
        if !self.by_component.load(Relaxed) {
            let resolve =
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            match fs::openat2(from, path, flags, Mode::empty(), resolve) {
                // A filter that forbids the call answers EPERM; so does O_NOATIME on a file of
                // somebody else's, which the plain call then repeats.
                Err(Errno::NOSYS) => self.by_component.store(true, Relaxed),
                Err(Errno::PERM) if !flags.contains(OFlags::NOATIME) => {
                    self.by_component.store(true, Relaxed);
                }
                other => return other,
            }
        }
        // Component by component; `path` may still have several when the switch happened here.
        let mut at: Option<OwnedFd> = None;
        let mut parts = path.split(|byte| *byte == b'/').peekable();
        while let Some(part) = parts.next() {
            let from = at.as_ref().map_or(from, |fd| fd.as_fd());
            if parts.peek().is_none() {
                return fs::openat(from, part, flags, Mode::empty());
            }
            let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            at = Some(fs::openat(from, part, through, Mode::empty())?);
        }
        Err(Errno::NOENT)
    }
}

impl AsFd for Beneath {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
