//! Answers to the kernel's questions. Several threads answer at once.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use backstay_repo::{Browser, EntryKind, EntryRef, FileReader, RepoError, Snapshot};
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};

use crate::attributes::{Owner, file_type, of_entry, of_upper};
use crate::catalog::{Catalog, Upper};
use crate::inodes::{Inodes, Opened, Place};
use crate::listing::{Listing, Walk, name};

/// How long the kernel may believe what it was told of the files of a snapshot.
const UNCHANGING: Duration = Duration::from_secs(24 * 3600);
/// The same, at most, of what lies above them.
const UPPER: Duration = Duration::from_secs(1);
/// Ranges that the kernel may ask for ahead at once.
const BACKGROUND: u16 = 64;
/// Different problems that are told. Whoever reads a damaged disk needs no more.
const PROBLEMS: usize = 1000;
/// A block, as far as `df` is concerned. Bytes.
const BLOCK: u32 = 4096;
const LONGEST_NAME: u32 = 255;

/// Told of what could not be read: where in the mount, and why. Each once.
pub type OnProblem = Box<dyn Fn(&str, &RepoError) + Send + Sync>;

pub struct Snapshots {
    browser: Browser,
    inodes: Inodes,
    shelf: Mutex<Shelf>,
    /// Held by whoever reads the list of snapshots; nobody else waits for that.
    reading: Mutex<()>,
    refresh: Duration,
    owner: Owner,
    others: bool,
    files: Handles<FileReader>,
    directories: Handles<Mutex<Listing>>,
    on_problem: OnProblem,
    told: Mutex<HashSet<String>>,
}

/// The snapshots there are, and those that somebody looked into.
struct Shelf {
    catalog: Arc<Catalog>,
    read: Instant,
    opened: HashMap<String, Arc<Opened>>,
}

/// What is open, by number, and where it is.
struct Handles<T> {
    next: AtomicU64,
    open: Mutex<HashMap<u64, (Place, Arc<T>)>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), open: Mutex::default() }
    }
}

impl<T> Handles<T> {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, (Place, Arc<T>)>> {
        self.open.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn add(&self, place: Place, what: T) -> FileHandle {
        let number = self.next.fetch_add(1, Relaxed);
        self.open().insert(number, (place, Arc::new(what)));
        FileHandle(number)
    }

    fn get(&self, handle: FileHandle) -> Result<(Place, Arc<T>), Errno> {
        self.open().get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn close(&self, handle: FileHandle) {
        self.open().remove(&handle.0);
    }
}

/// What a directory has, as far as listing it needs that.
struct Item {
    place: Place,
    kind: FileType,
    attributes: Option<FileAttr>,
    lasts: Duration,
}

impl Snapshots {
    pub fn new(
        browser: Browser,
        snapshots: Vec<Snapshot>,
        refresh: Duration,
        owner: Owner,
        others: bool,
        on_problem: OnProblem,
    ) -> Self {
        let catalog = Arc::new(Catalog::new(snapshots));
        let shelf = Shelf { catalog, read: Instant::now(), opened: HashMap::new() };
        Self {
            browser,
            inodes: Inodes::default(),
            shelf: Mutex::new(shelf),
            reading: Mutex::default(),
            refresh,
            owner,
            others,
            files: Handles::default(),
            directories: Handles::default(),
            on_problem,
            told: Mutex::default(),
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn problem(&self, path: &str, error: &RepoError) -> Errno {
        let mut told = self.told.lock().unwrap_or_else(|e| e.into_inner());
        if told.len() < PROBLEMS && told.insert(format!("{path}\0{error}")) {
            drop(told);
            (self.on_problem)(path, error);
        }
        Errno::EIO
    }

    /// The snapshots there are, as they were at most a while ago. Where the repository cannot be
    /// asked, those that were there before.
    fn catalog(&self) -> Arc<Catalog> {
        let before = {
            let shelf = self.shelf();
            if shelf.read.elapsed() < self.refresh {
                return shelf.catalog.clone();
            }
            shelf.catalog.clone()
        };
        let Ok(_reading) = self.reading.try_lock() else { return before };
        let read = self.browser.repository().snapshots();
        let mut shelf = self.shelf();
        shelf.read = Instant::now();
        match read {
            Ok(snapshots) => {
                shelf.catalog = Arc::new(Catalog::new(snapshots));
                let catalog = shelf.catalog.clone();
                let there: HashSet<&str> = catalog.snapshots().map(|s| s.id.as_str()).collect();
                shelf.opened.retain(|id, _| there.contains(id.as_str()));
            }
            Err(error) => {
                drop(shelf);
                self.problem("the list of snapshots", &error);
                return before;
            }
        }
        shelf.catalog.clone()
    }

    fn opened(&self, snapshot: &Arc<Snapshot>, shown: &str) -> Result<Arc<Opened>, Errno> {
        if let Some(opened) = self.shelf().opened.get(&snapshot.id) {
            return Ok(opened.clone());
        }
        let view = self.browser.view(snapshot).map_err(|error| self.problem(shown, &error))?;
        let opened = Opened { snapshot: snapshot.clone(), view, shown: shown.to_owned() };
        let mut shelf = self.shelf();
        Ok(shelf.opened.entry(snapshot.id.clone()).or_insert_with(|| Arc::new(opened)).clone())
    }

    fn shown(place: &Place) -> String {
        match place {
            Place::Upper(path) => path.clone(),
            Place::Entry(opened, path) => {
                format!("{}/{}", opened.shown, String::from_utf8_lossy(path))
            }
        }
    }

    fn place(&self, number: INodeNo) -> Result<Place, Errno> {
        self.inodes.place(number.0).ok_or(Errno::ESTALE)
    }

    /// The entry of a place that lies in a snapshot; nothing for its root.
    fn entry(&self, place: &Place) -> Result<Option<EntryRef>, Errno> {
        let Place::Entry(opened, path) = place else { return Ok(None) };
        if path.is_empty() {
            return Ok(None);
        }
        let found = opened.view.get(path).map_err(|e| self.problem(&Self::shown(place), &e))?;
        found.ok_or(Errno::ENOENT).map(Some)
    }

    /// What `stat` says of a place, and how long that holds.
    fn attributes(&self, place: &Place, number: u64) -> Result<(FileAttr, Duration), Errno> {
        match place {
            Place::Upper(path) => {
                let (kind, size, time) = match self.catalog().look(path).ok_or(Errno::ENOENT)? {
                    Upper::Folder(time) => (FileType::Directory, 0, time),
                    Upper::Link { target, time } => (FileType::Symlink, target.len() as u64, time),
                    Upper::Snapshot(snapshot) => (FileType::Directory, 0, snapshot.time),
                };
                Ok((of_upper(kind, size, time, number, self.owner), UPPER.min(self.refresh)))
            }
            Place::Entry(opened, _) => match self.entry(place)? {
                Some(entry) => Ok(self.of_entry(opened, &entry, number)),
                None => {
                    let time = opened.snapshot.time;
                    let root = of_upper(FileType::Directory, 0, time, number, self.owner);
                    // It goes when the snapshot is forgotten.
                    Ok((root, UPPER.min(self.refresh)))
                }
            },
        }
    }

    fn of_entry(&self, opened: &Opened, entry: &EntryRef, number: u64) -> (FileAttr, Duration) {
        let links = if entry.is_directory() { Some(1) } else { opened.view.links(&entry.path) };
        let lasts = if links.is_some() { UNCHANGING } else { UPPER };
        (of_entry(entry, number, links.unwrap_or(1)), lasts)
    }

    /// What a name in a directory stands for.
    fn child(&self, parent: &Place, name: &OsStr) -> Result<Place, Errno> {
        match parent {
            Place::Upper(path) => {
                let name = name.to_str().ok_or(Errno::ENOENT)?;
                self.upper(path, name)
            }
            Place::Entry(opened, path) => {
                let path = match &**path {
                    b"" => name.as_bytes().to_vec(),
                    path => [path, b"/", name.as_bytes()].concat(),
                };
                let fail = |error| {
                    let place = Place::Entry(opened.clone(), path.as_slice().into());
                    self.problem(&Self::shown(&place), &error)
                };
                let entry = opened.view.get(&path).map_err(fail)?.ok_or(Errno::ENOENT)?;
                let holder = opened.view.holder(entry).map_err(fail)?;
                Ok(Place::Entry(opened.clone(), holder.path.as_slice().into()))
            }
        }
    }

    fn upper(&self, folder: &str, name: &str) -> Result<Place, Errno> {
        let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        match self.catalog().look(&path).ok_or(Errno::ENOENT)? {
            Upper::Snapshot(snapshot) => {
                Ok(Place::Entry(self.opened(&snapshot, &path)?, Arc::from(&b""[..])))
            }
            Upper::Folder(_) | Upper::Link { .. } => Ok(Place::Upper(path)),
        }
    }

    /// Answers with the entries of a directory from `offset` on: 0 is `.`, 1 is `..`. `add` takes a
    /// name, what it stands for and the offset after it, and says whether there was room.
    fn list(
        &self,
        handle: FileHandle,
        offset: u64,
        with_attributes: bool,
        mut add: impl FnMut(&[u8], &Item, u64) -> bool,
    ) -> Result<(), Errno> {
        let (place, listing) = self.directories.get(handle)?;
        let mut listing = listing.lock().unwrap_or_else(|e| e.into_inner());
        let shown = Self::shown(&place);
        let mut added = false;
        for (at, name) in [b".".as_slice(), b".."].iter().enumerate().skip(offset as usize) {
            let item = Item {
                place: place.clone(),
                kind: FileType::Directory,
                attributes: None,
                lasts: Duration::ZERO,
            };
            if !add(name, &item, at as u64 + 1) {
                return Ok(());
            }
            added = true;
        }
        let first = offset.saturating_sub(2);
        match &mut *listing {
            Listing::Upper(names) => {
                for (at, name) in (first..).zip(names.iter().skip(first as usize)) {
                    // What is gone since the folder was opened is not shown.
                    let Place::Upper(folder) = &place else { break };
                    let Ok(child) = self.upper(folder, name) else { continue };
                    let number = self.inodes.show(&child);
                    let Ok((attributes, lasts)) = self.attributes(&child, number) else { continue };
                    let kind = attributes.kind;
                    let item = Item { place: child, kind, attributes: Some(attributes), lasts };
                    if !add(name.as_bytes(), &item, at + 3) {
                        break;
                    }
                }
                Ok(())
            }
            Listing::Entries(walk) => {
                let mut problem = |error| {
                    self.problem(&shown, &error);
                };
                walk.seek(first, &mut problem);
                while let Some(entry) = walk.peek(&mut problem) {
                    if name(&entry).len() > LONGEST_NAME as usize {
                        // No file system has such names, and the kernel would refuse the listing.
                        walk.take(&entry);
                        walk.failed = true;
                        continue;
                    }
                    let item = self.item(&place, &entry, with_attributes);
                    let next = walk.number_after();
                    if !add(name(&entry), &item, next + 2) {
                        return Ok(());
                    }
                    walk.take(&entry);
                    added = true;
                }
                // All that can be read first, then that it was not all; once, because not everybody
                // stops at an error.
                if walk.failed && !added {
                    walk.failed = false;
                    return Err(Errno::EIO);
                }
                Ok(())
            }
        }
    }

    /// An entry as a directory shows it.
    fn item(&self, directory: &Place, entry: &EntryRef, with_attributes: bool) -> Item {
        let Place::Entry(opened, _) = directory else {
            unreachable!("only snapshots have entries")
        };
        let place = |path: &[u8]| Place::Entry(opened.clone(), path.into());
        let holder = match &entry.kind {
            EntryKind::Hardlink { .. } => match opened.view.holder(entry.clone()) {
                Ok(holder) => holder,
                Err(error) => {
                    // Its name is there; whoever asks for more meets the error again.
                    let place = place(&entry.path);
                    self.problem(&Self::shown(&place), &error);
                    let kind = FileType::RegularFile;
                    return Item { place, kind, attributes: None, lasts: Duration::ZERO };
                }
            },
            _ => entry.clone(),
        };
        let place = place(&holder.path);
        let kind = file_type(&holder.kind);
        if !with_attributes {
            return Item { place, kind, attributes: None, lasts: Duration::ZERO };
        }
        let number = self.inodes.show(&place);
        let (attributes, lasts) = self.of_entry(opened, &holder, number);
        Item { place, kind, attributes: Some(attributes), lasts }
    }
}

/// Answers with a value, or with its size where that was asked for.
fn answer_attribute(reply: ReplyXattr, value: &[u8], size: u32) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

impl Filesystem for Snapshots {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Whatever of these the kernel does not have costs speed alone.
        for wish in [
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            let _ = config.add_capabilities(wish);
        }
        let _ = config.set_max_background(BACKGROUND);
        if self.others {
            // Modes alone would let some in whom an access control list keeps out.
            config
                .add_capabilities(InitFlags::FUSE_POSIX_ACL)
                .map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.place(parent).and_then(|parent| self.child(&parent, name));
        let found = found.and_then(|place| {
            let number = self.inodes.show(&place);
            let (attributes, lasts) = self.attributes(&place, number)?;
            self.inodes.tell(&place);
            Ok((attributes, lasts))
        });
        match found {
            Ok((attributes, lasts)) => reply.entry(&lasts, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, times: u64) {
        self.inodes.forget(number.0, times);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.place(number).and_then(|place| self.attributes(&place, number.0));
        match found {
            Ok((attributes, lasts)) => reply.attr(&lasts, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let target = self.place(number).and_then(|place| match &place {
            Place::Upper(path) => match self.catalog().look(path) {
                Some(Upper::Link { target, .. }) => Ok(target.into_bytes()),
                Some(_) => Err(Errno::EINVAL),
                None => Err(Errno::ENOENT),
            },
            Place::Entry(..) => match self.entry(&place)?.as_ref().map(|entry| &entry.kind) {
                Some(EntryKind::Symlink { target }) => Ok(target.clone()),
                _ => Err(Errno::EINVAL),
            },
        });
        match target {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.place(number).and_then(|place| {
            let Place::Entry(opened, _) = &place else { return Err(Errno::EISDIR) };
            let entry = self.entry(&place)?.ok_or(Errno::EISDIR)?;
            let reader = opened.view.open(&entry);
            let reader = reader.map_err(|error| self.problem(&Self::shown(&place), &error))?;
            Ok(self.files.add(place, reader))
        });
        match opened {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.files.get(handle).and_then(|(place, reader)| {
            let left = reader.size().saturating_sub(offset).min(u64::from(size));
            let mut bytes = Vec::with_capacity(left as usize);
            match reader.read_at(offset, size as usize, &mut bytes) {
                Ok(()) => Ok(bytes),
                Err(error) => Err(self.problem(&Self::shown(&place), &error)),
            }
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.close(handle);
        reply.ok();
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let found = self.files.get(handle).and_then(|(place, reader)| {
            let from = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
            if from >= reader.size() {
                return Err(Errno::ENXIO);
            }
            let found = match whence {
                SEEK_DATA => reader.next_data(from),
                SEEK_HOLE => reader.next_hole(from).map(Some),
                _ => return Err(Errno::EINVAL),
            };
            let found = found.map_err(|error| self.problem(&Self::shown(&place), &error))?;
            found.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::ENXIO)
        });
        match found {
            Ok(at) => reply.offset(at),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.place(number).and_then(|place| {
            let (listing, flags) = match &place {
                Place::Upper(path) => {
                    let names = self.catalog().list(path).ok_or(Errno::ENOENT)?;
                    (Listing::Upper(names), FopenFlags::empty())
                }
                Place::Entry(opened, path) => {
                    let walk = Walk::new(opened.clone(), path.clone());
                    // It never changes: the kernel may list it from memory the next time.
                    let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
                    (Listing::Entries(Box::new(walk)), flags)
                }
            };
            Ok((self.directories.add(place, Mutex::new(listing)), flags))
        });
        match opened {
            Ok((handle, flags)) => reply.opened(handle, flags),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.list(handle, offset, false, |name, item, next| {
            let number = INodeNo(self.inodes.show(&item.place));
            !reply.add(number, next, item.kind, OsStr::from_bytes(name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.list(handle, offset, true, |name, item, next| {
            let os_name = OsStr::from_bytes(name);
            let Some(attributes) = &item.attributes else {
                // Number 0: of what has this name nothing is known yet, and the kernel asks.
                let number = self.inodes.show(&item.place);
                let kind = item.kind;
                let owner = self.owner;
                let nothing = of_upper(kind, 0, jiff::Timestamp::UNIX_EPOCH, number, owner);
                let lasts = &item.lasts;
                return !reply.add(INodeNo(0), next, os_name, lasts, &nothing, Generation(0));
            };
            let number = attributes.ino;
            if reply.add(number, next, os_name, &item.lasts, attributes, Generation(0)) {
                return false;
            }
            self.inodes.tell(&item.place);
            true
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.directories.close(handle);
        reply.ok();
    }

    /// What the snapshots take in the store, full to the last block.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let catalog = self.catalog();
        let blocks = catalog.bytes.div_ceil(u64::from(BLOCK));
        reply.statfs(blocks, 0, 0, catalog.files, 0, BLOCK, LONGEST_NAME, BLOCK);
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let entry = self.place(number).and_then(|place| self.entry(&place));
        let value = entry.and_then(|entry| {
            let entry = entry.ok_or(Errno::NO_XATTR)?;
            let mut all = entry.meta.xattrs.iter();
            let found = all.find(|(other, _)| other == name.as_bytes());
            found.map(|(_, value)| value.clone()).ok_or(Errno::NO_XATTR)
        });
        match value {
            Ok(value) => answer_attribute(reply, &value, size),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        match self.place(number).and_then(|place| self.entry(&place)) {
            Ok(entry) => {
                let mut names = Vec::new();
                for (name, _) in entry.iter().flat_map(|entry| &entry.meta.xattrs) {
                    names.extend_from_slice(name);
                    names.push(0);
                }
                answer_attribute(reply, &names, size);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// The kernel has decided by the time it asks.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }
}
