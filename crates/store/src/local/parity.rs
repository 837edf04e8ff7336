//! Parity beside the objects of a directory, and objects that are read right although they are
//! damaged.
//!
//! ```text
//! .parity/share           how much of each new object can be repaired, in percent, in digits
//! .parity/of/<key>        the parity file of the object <key>
//! .parity/damaged/<key>   the damaged bytes of an object, until its repair is proven
//! ```
//!
//! The object comes first and is durable before its parity is written; parity is not synced. A
//! crash between leaves an object without parity or with a torn parity file, which counts as none:
//! either is made again by [`complete`](Parity::complete). On removal the parity goes first, durably,
//! so that an old parity file never meets a new object of the same key.
//!
//! Where object and parity differ, either may be wrong, and a sum is no seal. So the judge is asked,
//! who can open objects: what lies on the disk stands if it is right, whatever its parity says, and
//! what is rebuilt takes its place only if that is right. Everything else is handed out as it lies,
//! and the reader says what it makes of that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use rustix::fs::{Advice, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{ATTEMPTS, Local, Temporary, make_directories_at, open_directory, parent_of, walk};
use crate::failpoint;
use crate::key::check_key;
use crate::parity::{Head, is_torn, protect};
use crate::{Backend, ErrorKind, Judge, Parity, ParityState, Result, StoreError};

const SHARE: &str = ".parity/share";
const OF: &str = ".parity/of";
const DAMAGED: &str = ".parity/damaged";

/// What is assumed where the setting itself cannot be read: parity was asked for.
const ASSUMED: u8 = 10;

/// The unit in which disks fail to read. Bytes.
const SECTOR: usize = 4096;

/// How much of a parity file is read at first: the head of most. Bytes.
const FRONT: usize = 4096;

/// What was rebuilt since the store was opened.
#[derive(Default)]
pub(super) struct Rebuilt {
    /// By key, the BLAKE3 of what was handed out.
    keys: Mutex<BTreeMap<String, [u8; 32]>>,
    /// The last one: a damaged pack is read in many ranges.
    last: Mutex<Option<(String, Bytes)>>,
    /// What is read as it lies, because nothing better is to be had, and whether the parity is to
    /// blame for that.
    as_it_lies: Mutex<BTreeMap<String, bool>>,
    judge: RwLock<Option<Arc<Judge>>>,
}

impl Rebuilt {
    /// None: nobody can say.
    fn is_right(&self, key: &str, body: &[u8]) -> Option<bool> {
        self.judge()?(key, body)
    }

    fn judge(&self) -> Option<Arc<Judge>> {
        self.judge.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn as_it_lies(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, bool>> {
        self.as_it_lies.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Notes that an object is not what its parity says, and that the parity is wrong.
    fn blame_parity(&self, key: &str) {
        if self.as_it_lies().insert(key.to_owned(), true) != Some(true) {
            tracing::warn!(object = key, "its parity is wrong, and is not used");
        }
    }

    fn note(&self, key: &str, body: &Bytes) {
        let digest = *blake3::hash(body).as_bytes();
        let mut keys = self.keys.lock().unwrap_or_else(|e| e.into_inner());
        if keys.insert(key.to_owned(), digest).is_none() {
            tracing::warn!(object = key, "damaged on the disk; its parity gave it back");
        }
        *self.last() = Some((key.to_owned(), body.clone()));
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<(String, Bytes)>> {
        self.last.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn digest(&self, key: &str) -> Option<[u8; 32]> {
        self.keys.lock().unwrap_or_else(|e| e.into_inner()).get(key).copied()
    }

    fn forget(&self, key: &str) {
        self.keys.lock().unwrap_or_else(|e| e.into_inner()).remove(key);
        self.as_it_lies().remove(key);
        *self.last() = None;
    }
}

/// The share that the file of the setting says.
pub(crate) fn share_in(text: &str) -> Option<u8> {
    text.trim().parse().ok().filter(|share| (1..=100).contains(share))
}

fn parity_path(key: &str) -> String {
    format!("{OF}/{key}")
}

fn open_file(root: BorrowedFd<'_>, path: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::openat(root, path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(file)
}

/// The bytes of `range`, zeros where a sector cannot be read; shorter where the file ends.
fn read_what_is_left(file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let end = range.end.min(file.metadata()?.len());
    let length = usize::try_from(end.saturating_sub(range.start)).map_err(io::Error::other)?;
    let mut body = vec![0; length];
    if file.read_exact_at(&mut body, range.start).is_ok() {
        return Ok(body);
    }
    let mut at = range.start;
    for sector in body.chunks_mut(SECTOR) {
        if file.read_exact_at(sector, at).is_err() {
            sector.fill(0);
        }
        at += sector.len() as u64;
    }
    Ok(body)
}

/// Writes a file that may replace another, below names that are no keys.
fn put(root: BorrowedFd<'_>, path: &str, body: &[u8], durable: bool) -> io::Result<()> {
    let mut temporary = Temporary::new(root)?;
    temporary.write(body)?;
    if durable {
        temporary.file.sync_all()?;
    }
    replace(root, &mut temporary, path)?;
    if durable {
        rustix::fs::fsync(open_directory(root, parent_of(path))?)?;
    }
    Ok(())
}

/// Renames a temporary to `path`, over what is there.
fn replace(root: BorrowedFd<'_>, temporary: &mut Temporary<'_>, path: &str) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        match rustix::fs::renameat(root, &temporary.name, root, path) {
            Ok(()) => {
                temporary.renamed = true;
                return Ok(());
            }
            // The directory is missing, or went with the last file in it.
            Err(Errno::NOENT) => make_directories_at(root, parent_of(path))?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("its directory is removed as soon as it is made"))
}

impl Local {
    fn share_of(&self, root: BorrowedFd<'_>) -> io::Result<Option<u8>> {
        let mut text = String::new();
        match open_file(root, SHARE).and_then(|file| file.take(16).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Something is there: parity was asked for.
            Err(_) => text.clear(),
        }
        let share = share_in(&text);
        if share.is_none() {
            tracing::warn!("{SHARE} is damaged; {ASSUMED} percent is assumed");
        }
        Ok(Some(share.unwrap_or(ASSUMED)))
    }

    /// Writes the parity of an object that is there, if that is wanted here. What fails costs the
    /// parity, never the object.
    pub(super) fn add_parity(&self, key: &str, body: &[u8]) {
        let written = self.root().and_then(|root| {
            let Some(share) = self.share_of(root)? else { return Ok(()) };
            let Some(file) = protect(body, share) else { return Ok(()) };
            put(root, &parity_path(key), &file, false)?;
            failpoint::hit("local-parity-added");
            Ok(())
        });
        if let Err(error) = written {
            tracing::warn!(object = key, %error, "stored, but without parity");
        }
    }

    /// Removes the parity of an object that goes, durably.
    pub(super) fn remove_parity(&self, root: BorrowedFd<'_>, key: &str) -> io::Result<()> {
        self.rebuilt.forget(key);
        let mut path = parity_path(key);
        match rustix::fs::unlinkat(root, &path, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while path.len() > OF.len() {
            path = parent_of(&path).to_owned();
            if path == OF || rustix::fs::unlinkat(root, &path, AtFlags::REMOVEDIR).is_err() {
                break;
            }
        }
        match open_directory(root, &path) {
            Ok(directory) => rustix::fs::fsync(&directory)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        failpoint::hit("local-parity-removed");
        Ok(())
    }

    fn parity_file(&self, key: &str) -> Option<Vec<u8>> {
        let file = open_file(self.root().ok()?, &parity_path(key)).ok()?;
        read_what_is_left(&file, 0..u64::MAX).ok()
    }

    /// What the parity file says of the object, without reading the parity.
    fn parity_head(&self, key: &str) -> Option<Head> {
        let file = open_file(self.root().ok()?, &parity_path(key)).ok()?;
        let mut front = read_what_is_left(&file, 0..FRONT as u64).ok()?;
        if let Some(size) = Head::size_at_front(&front)
            && size > front.len()
        {
            front = read_what_is_left(&file, 0..size as u64).ok()?;
        }
        Head::at_front(&front).or_else(|| Head::find(&read_what_is_left(&file, 0..u64::MAX).ok()?))
    }

    /// The object as its parity says that it was, if that can be had and is right, and what lies on
    /// the disk is not.
    fn rebuild(&self, key: &str, file: &File) -> Option<Bytes> {
        if let Some((last, body)) = &*self.rebuilt.last()
            && last == key
        {
            return Some(body.clone());
        }
        if self.rebuilt.as_it_lies().contains_key(key) {
            return None;
        }
        let parity = self.parity_file(key)?;
        let head = Head::find(&parity)?;
        let left = read_what_is_left(file, 0..u64::MAX).ok()?;
        // Where the two agree it is the disk that does not read what lies there.
        if !head.agrees(&left) && self.rebuilt.is_right(key, &left) == Some(true) {
            self.rebuilt.blame_parity(key);
            return None;
        }
        match head.rebuild(&left, &parity) {
            Ok(body) => {
                let right = self.rebuilt.is_right(key, &body);
                if right == Some(false) {
                    self.rebuilt.blame_parity(key);
                    return None;
                }
                if right.is_none() && self.rebuilt.judge().is_some() {
                    self.rebuilt.as_it_lies().insert(key.to_owned(), false);
                    return None;
                }
                let body = Bytes::from(body);
                self.rebuilt.note(key, &body);
                Some(body)
            }
            Err(beyond) => {
                tracing::warn!(
                    object = key,
                    damaged = beyond.damaged,
                    left = beyond.left,
                    "damaged on the disk beyond what its parity repairs"
                );
                self.rebuilt.as_it_lies().insert(key.to_owned(), false);
                None
            }
        }
    }

    /// The object where what was read of it, if anything, is not what its parity knows.
    pub(super) fn repaired(&self, key: &str, file: &File, read: Option<&[u8]>) -> Option<Bytes> {
        let head = self.parity_head(key)?;
        if read.is_some_and(|body| head.agrees(body)) {
            return None;
        }
        self.rebuild(key, file)
    }

    /// A range of an object that has parity, checked; `None`: without parity, or beyond repair.
    pub(super) fn checked_range(
        &self,
        key: &str,
        file: &File,
        range: &Range<u64>,
    ) -> Option<Bytes> {
        let head = self.parity_head(key)?;
        if range.start > range.end || range.end > head.length {
            return None;
        }
        let piece = head.piece as u64;
        let first = range.start / piece;
        let whole = first * piece..(range.end.div_ceil(piece) * piece).min(head.length);
        let cut = |body: Bytes, from: u64| {
            let start = usize::try_from(range.start.checked_sub(from)?).ok()?;
            let end = usize::try_from(range.end.checked_sub(from)?).ok()?;
            (start <= end && end <= body.len()).then(|| body.slice(start..end))
        };
        let part = read_what_is_left(file, whole.clone()).ok()?;
        let complete = part.len() as u64 == whole.end.saturating_sub(whole.start);
        if complete && head.damaged(usize::try_from(first).ok()?, &part).is_empty() {
            return cut(part.into(), whole.start);
        }
        cut(self.rebuild(key, file)?, 0)
    }

    fn try_mend(&self, key: &str, expected: [u8; 32]) -> io::Result<()> {
        let root = self.root()?;
        let changed = || io::Error::other("object or parity has changed since it was read");
        *self.rebuilt.last() = None;
        // From what lies there now, and judged again.
        let body = self.rebuild(key, &open_file(root, key)?).ok_or_else(changed)?;
        if *blake3::hash(&body).as_bytes() != expected {
            return Err(changed());
        }
        let mut temporary = Temporary::new(root)?;
        temporary.write(&body)?;
        let kept = self.hand_over(root, key, &temporary.file)?;
        temporary.file.sync_all()?;
        failpoint::hit("local-mend-written");
        let aside = format!("{DAMAGED}/{key}");
        make_directories_at(root, parent_of(&aside))?;
        match rustix::fs::linkat(root, key, root, &aside, AtFlags::empty()) {
            // Of an attempt that did not come to its end: those bytes are as damaged.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        rustix::fs::fsync(open_directory(root, parent_of(&aside))?)?;
        failpoint::hit("local-mend-kept");
        rustix::fs::renameat(root, &temporary.name, root, key)?;
        temporary.renamed = true;
        rustix::fs::fsync(open_directory(root, parent_of(key))?)?;
        failpoint::hit("local-mend-renamed");
        if kept {
            super::immutable::fasten_again(root, key)?;
        }
        // From the disk, not from memory.
        let file = open_file(root, key)?;
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        let written = read_what_is_left(&file, 0..u64::MAX)?;
        if *blake3::hash(&written).as_bytes() != expected {
            return Err(io::Error::other(format!(
                "what was written was not what was read back; the bytes from before are in {aside}"
            )));
        }
        self.rebuilt.forget(key);
        remove_below(root, &aside, ".parity")
    }

    /// Damaged bytes that a repair kept, where the object is right by now.
    fn clear_aside(&self, root: BorrowedFd<'_>) -> io::Result<()> {
        for key in keys_below(root, DAMAGED)? {
            let needless = match open_file(root, &key) {
                Ok(file) => {
                    let body = read_what_is_left(&file, 0..u64::MAX)?;
                    self.parity_head(&key).is_some_and(|head| head.agrees(&body))
                }
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if needless {
                remove_below(root, &format!("{DAMAGED}/{key}"), ".parity")?;
            }
        }
        Ok(())
    }

    /// Parity whose object is gone: an older version of this program removed it.
    fn clear_orphans(&self, root: BorrowedFd<'_>, all: bool) -> io::Result<u64> {
        let mut removed = 0;
        for key in keys_below(root, OF)? {
            let there = rustix::fs::statat(root, &key, AtFlags::empty());
            if all || there.is_err_and(|error| error == Errno::NOENT) {
                self.remove_parity(root, &key)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Whether a crash cut off what lies there while it was written. What cannot be read is no such file.
fn is_torn_file(root: BorrowedFd<'_>, path: &str) -> bool {
    let ends = || -> io::Result<(Vec<u8>, Vec<u8>, u64)> {
        let file = open_file(root, path)?;
        let length = file.metadata()?.len();
        let front = read_what_is_left(&file, 0..FRONT as u64)?;
        let back = read_what_is_left(&file, length.saturating_sub(FRONT as u64)..length)?;
        Ok((front, back, length))
    };
    ends().is_ok_and(|(front, back, length)| is_torn(&front, &back, length))
}

/// The keys that have a file below `folder`.
fn keys_below(root: BorrowedFd<'_>, folder: &str) -> io::Result<Vec<String>> {
    let directory = match open_directory(root, folder) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    walk(directory, "", "", &mut found)?;
    Ok(found.into_iter().map(|meta| meta.key).collect())
}

/// Removes a file and the directories that are empty then, but for `stop`.
fn remove_below(root: BorrowedFd<'_>, path: &str, stop: &str) -> io::Result<()> {
    rustix::fs::unlinkat(root, path, AtFlags::empty())?;
    let mut path = parent_of(path);
    while path != stop && rustix::fs::unlinkat(root, path, AtFlags::REMOVEDIR).is_ok() {
        path = parent_of(path);
    }
    Ok(())
}

impl Parity for Local {
    fn set_judge(&self, judge: Arc<Judge>) {
        *self.rebuilt.judge.write().unwrap_or_else(|e| e.into_inner()) = Some(judge);
        self.rebuilt.keys.lock().unwrap_or_else(|e| e.into_inner()).clear();
        self.rebuilt.as_it_lies().clear();
        *self.rebuilt.last() = None;
    }

    fn distrust(&self, key: &str) {
        self.rebuilt.forget(key);
        self.rebuilt.blame_parity(key);
    }

    fn share(&self) -> Result<Option<u8>> {
        match self.root() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            root => {
                root.and_then(|root| self.share_of(root)).map_err(|e| self.error("read", SHARE, e))
            }
        }
    }

    fn set_share(&self, share: Option<u8>) -> Result<()> {
        if share.is_some_and(|share| !(1..=100).contains(&share)) {
            return Err(StoreError::new(ErrorKind::Configuration, "set", "parity")
                .with_detail("the share is from 1 to 100 percent"));
        }
        let set = self.root_or_make().and_then(|root| match share {
            Some(share) => put(root, SHARE, format!("{share}\n").as_bytes(), true),
            None => {
                match rustix::fs::unlinkat(root, SHARE, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
                self.clear_orphans(root, true).map(drop)
            }
        });
        set.map_err(|e| self.error("set", "parity", e))
    }

    fn rebuilt(&self) -> Vec<String> {
        let keys = self.rebuilt.keys.lock().unwrap_or_else(|e| e.into_inner());
        keys.keys().cloned().collect()
    }

    fn state(&self, key: &str) -> Result<ParityState> {
        check_key("read", key)?;
        let Some(file) = self.parity_file(key) else { return Ok(ParityState::Missing) };
        if is_torn(&file, &file, file.len() as u64) {
            return Ok(ParityState::Missing);
        }
        if self.rebuilt.as_it_lies().get(key) == Some(&true) {
            return Ok(ParityState::Damaged);
        }
        Ok(match Head::find(&file) {
            Some(head) if head.is_whole(&file) => ParityState::Whole,
            _ => ParityState::Damaged,
        })
    }

    fn missing(&self) -> Result<Vec<String>> {
        let found = |root: BorrowedFd<'_>| -> io::Result<BTreeSet<String>> {
            let have = keys_below(root, OF)?.into_iter();
            Ok(have.filter(|key| !is_torn_file(root, &parity_path(key))).collect())
        };
        let have = match self.root().and_then(found) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            have => have.map_err(|e| self.error("list", OF, e))?,
        };
        let objects = self.list("")?.into_iter().map(|object| object.key);
        Ok(objects.filter(|key| !have.contains(key)).collect())
    }

    fn mend(&self, key: &str) -> Result<()> {
        check_key("repair", key)?;
        let expected = self.rebuilt.digest(key).ok_or_else(|| {
            StoreError::new(ErrorKind::Damaged, "repair", key)
                .with_detail("nothing has been rebuilt from its parity")
        })?;
        self.try_mend(key, expected).map_err(|e| self.error("repair", key, e))
    }

    fn complete(&self, key: &str) -> Result<bool> {
        check_key("read", key)?;
        let (file, _) = self.open_object("read", key)?;
        let wrong = |what| {
            Err(StoreError::new(ErrorKind::Damaged, "make parity of", key).with_detail(what))
        };
        let mut body = Vec::new();
        if let Err(error) = (&file).read_to_end(&mut body) {
            if error.raw_os_error() == Some(Errno::IO.raw_os_error()) {
                return wrong("it cannot be read");
            }
            return Err(self.error("read", key, error));
        }
        // Parity of damaged bytes would make the damage last.
        match self.rebuilt.is_right(key, &body) {
            Some(true) => {}
            Some(false) => return wrong("it is damaged"),
            None if self.rebuilt.judge().is_some() => return Ok(false),
            None if self.parity_head(key).is_some_and(|head| !head.agrees(&body)) => {
                return wrong("it cannot be read as its present parity knows it");
            }
            None => {}
        }
        let made = self.root().and_then(|root| {
            let Some(share) = self.share_of(root)? else { return Ok(false) };
            let Some(file) = protect(&body, share) else { return Ok(false) };
            put(root, &parity_path(key), &file, false)?;
            Ok(true)
        });
        let made = made.map_err(|error| self.error("make parity of", key, error))?;
        self.rebuilt.forget(key);
        Ok(made)
    }

    fn tidy(&self) -> Result<u64> {
        let tidied = self.root().and_then(|root| {
            self.clear_aside(root)?;
            self.clear_orphans(root, false)
        });
        tidied.map_err(|e| self.error("tidy", "parity", e))
    }
}
