//! Locks of objects in a directory: immutable files, where the file system has them.
//!
//! How long an object is kept, and whether somebody put it on hold, stands in extended attributes of
//! its file, which are durable with it. From then on the file is *immutable* (`chattr +i`): no process
//! removes, renames, links or changes it, whoever owns it, until somebody with the capability
//! `CAP_LINUX_IMMUTABLE` takes that away. That is root, and a backup that runs with the capability: so
//! this is the mode `governance`, and nothing here is for ever.
//!
//! The attributes decide what this program removes; that a file is immutable keeps all others from it.
//! A crash between the two leaves a file that only this program spares, until its lock is made longer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, IFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::Local;
use crate::failpoint;
use crate::lock::{Lock, LockMode, LockPolicy};

/// Until when: whole seconds since 1970, in decimal digits.
const UNTIL: &str = "user.backstay.locked-until";
/// There as long as somebody wants it kept.
const HELD: &str = "user.backstay.held";

/// How an object is opened for a look at what keeps it; none: it is not there, or no file.
fn open(root: BorrowedFd<'_>, key: &str) -> io::Result<Option<std::os::fd::OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match rustix::fs::openat(root, key, flags, Mode::empty()) {
        Ok(file) => {
            let mode = rustix::fs::fstat(&file)?.st_mode;
            Ok((FileType::from_raw_mode(mode) == FileType::RegularFile).then_some(file))
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn attribute(file: impl AsFd, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = [0; 32];
    match rustix::fs::fgetxattr(file, name, &mut value[..]) {
        Ok(length) => Ok(Some(value[..length.min(value.len())].to_vec())),
        // Not there, or no file system that has them.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The moment that the attribute tells.
pub(crate) fn locked_until(value: &[u8]) -> Option<SystemTime> {
    let seconds = std::str::from_utf8(value).ok()?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// What keeps a file.
fn of(file: impl AsFd) -> io::Result<Lock> {
    let file = file.as_fd();
    let until = match attribute(file, UNTIL)? {
        None => None,
        Some(value) => {
            let time = locked_until(&value).ok_or_else(|| {
                io::Error::other(format!("its attribute {UNTIL} does not tell a moment"))
            })?;
            Some(time)
        }
    };
    let held = attribute(file, HELD)?.is_some();
    Ok(Lock { mode: until.map(|_| LockMode::Governance), until, held })
}

fn is_immutable(file: impl AsFd) -> io::Result<bool> {
    match rustix::fs::ioctl_getflags(file) {
        Ok(flags) => Ok(flags.contains(IFlags::IMMUTABLE)),
        // A file system without such flags.
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes a file immutable, or takes that away.
fn set_immutable(file: impl AsFd, on: bool) -> io::Result<()> {
    let file = file.as_fd();
    let set = || {
        let flags = rustix::fs::ioctl_getflags(file)?;
        let wanted = if on { flags | IFlags::IMMUTABLE } else { flags - IFlags::IMMUTABLE };
        if wanted == flags { Ok(()) } else { rustix::fs::ioctl_setflags(file, wanted) }
    };
    set().map_err(|error| match error {
        Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS => io::Error::new(
            io::ErrorKind::Unsupported,
            "this file system keeps no file immutable; ext4, xfs and btrfs do. Remove `lock` from \
             the repository, or move it",
        ),
        Errno::PERM | Errno::ACCESS => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "immutable files need the capability CAP_LINUX_IMMUTABLE, which root has; a service \
             gets it with AmbientCapabilities=CAP_LINUX_IMMUTABLE",
        ),
        error => error.into(),
    })
}

/// Writes what keeps a file. It is not immutable meanwhile.
fn write(file: impl AsFd, lock: &Lock) -> io::Result<()> {
    let file = file.as_fd();
    let mode = Mode::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
    // The owner of a file that nobody may write may not write its attributes either.
    rustix::fs::fchmod(file, mode | Mode::WUSR)?;
    let write = || {
        if let Some(until) = lock.until {
            let since = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            // Never shorter than what was asked for.
            let seconds = since.as_secs().saturating_add(u64::from(since.subsec_nanos() > 0));
            let text = seconds.to_string();
            rustix::fs::fsetxattr(file, UNTIL, text.as_bytes(), XattrFlags::empty())?;
        }
        if lock.held {
            rustix::fs::fsetxattr(file, HELD, b"1", XattrFlags::empty())
        } else {
            match rustix::fs::fremovexattr(file, HELD) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                other => other,
            }
        }
    };
    let written = write();
    rustix::fs::fchmod(file, mode)?;
    written.map_err(|error| match error {
        Errno::OPNOTSUPP => io::Error::new(
            io::ErrorKind::Unsupported,
            "this file system has no extended attributes, in which locks are kept",
        ),
        error => error.into(),
    })
}

impl Local {
    /// The policy that a new object of this name falls under.
    fn policy_for(&self, key: &str) -> Option<LockPolicy> {
        self.lock.filter(|_| LockPolicy::covers(key))
    }

    /// Notes in a file that is about to be published how long it will be kept. What cannot be made
    /// immutable is refused while nobody has seen it.
    pub(super) fn note_lock(&self, key: &str, file: impl AsFd) -> io::Result<()> {
        let Some(policy) = self.policy_for(key) else { return Ok(()) };
        let file = file.as_fd();
        set_immutable(file, true)?;
        set_immutable(file, false)?;
        let until = SystemTime::now() + policy.period;
        write(file, &Lock { mode: None, until: Some(until), held: false })
    }

    /// Makes a published object immutable.
    pub(super) fn fasten(&self, root: BorrowedFd<'_>, key: &str) -> io::Result<()> {
        if self.policy_for(key).is_none() {
            return Ok(());
        }
        failpoint::hit("local-lock-noted");
        match open(root, key)? {
            Some(file) => set_immutable(file, true),
            // Somebody was so quick to delete it.
            None => Ok(()),
        }
    }

    /// What keeps an object; nothing for one that is not there.
    pub(super) fn lock_of(&self, root: BorrowedFd<'_>, key: &str) -> io::Result<Option<Lock>> {
        open(root, key)?.map(of).transpose()
    }

    /// Changes what keeps an object, durably; whether it is there.
    pub(super) fn change_lock(
        &self,
        root: BorrowedFd<'_>,
        key: &str,
        change: impl FnOnce(&mut Lock),
    ) -> io::Result<bool> {
        let Some(file) = open(root, key)? else { return Ok(false) };
        let before = of(&file)?;
        let mut after = before;
        change(&mut after);
        if after != before {
            if after.held || after.until.is_some() {
                set_immutable(&file, true)?;
            }
            set_immutable(&file, false)?;
            let written = write(&file, &after).and_then(|()| Ok(rustix::fs::fsync(&file)?));
            failpoint::hit("local-lock-changed");
            if written.is_err() && (before.held || before.until.is_some()) {
                set_immutable(&file, true)?;
            }
            written?;
        }
        // One that a crash left without it gets it here too.
        if after.held || after.until.is_some() {
            set_immutable(&file, true)?;
        } else {
            set_immutable(&file, false)?;
        }
        Ok(true)
    }

    /// Lets an object be removed whose time is over; what keeps it, if something does.
    pub(super) fn loosen(&self, root: BorrowedFd<'_>, key: &str) -> io::Result<Option<Lock>> {
        let Some(file) = open(root, key)? else { return Ok(None) };
        let lock = of(&file)?;
        if lock.keeps(SystemTime::now()) {
            return Ok(Some(lock));
        }
        if is_immutable(&file)? {
            set_immutable(&file, false)?;
        }
        Ok(None)
    }

    /// Gives the file that takes an object's place what keeps that, and lets it be replaced. Whether
    /// the new one is to be fastened.
    pub(super) fn hand_over(
        &self,
        root: BorrowedFd<'_>,
        key: &str,
        file: impl AsFd,
    ) -> io::Result<bool> {
        let Some(old) = open(root, key)? else { return Ok(false) };
        let lock = of(&old)?;
        let kept = lock.held || lock.until.is_some();
        if kept {
            write(file, &lock)?;
        }
        if is_immutable(&old)? {
            set_immutable(&old, false)?;
        }
        Ok(kept)
    }
}

/// Makes an object immutable, whatever the policy is.
pub(super) fn fasten_again(root: BorrowedFd<'_>, key: &str) -> io::Result<()> {
    open(root, key)?.map_or(Ok(()), |file| set_immutable(file, true))
}
