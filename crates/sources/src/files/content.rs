//! The content of one file, read by a worker of the session.
//!
//! The file is opened without following links and without touching its access time; what was opened
//! is what gets described. A file that changes while it is read is stored as it was read, with the
//! metadata it has afterwards, and in such a way that the next backup reads it again.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use backstay_repo::{Beneath, Content, ContentError, Entry, Reader, Time};
use rustix::fs::{self, Advice, OFlags, SeekFrom};
use rustix::io::Errno;

use super::metadata::{FileType, Names, Stat, Xattrs, xattrs_of};

/// From this size on the kernel is told how a file is going to be read. Bytes.
const LARGE: u64 = 256 << 10;

/// What all files of a backup share.
#[derive(Debug)]
pub(super) struct Context {
    pub root: Arc<Beneath>,
    pub names: Names,
    pub notes: Mutex<Notes>,
}

/// What workers have to say beside content.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Paths and what is wrong with them, though their content was stored.
    pub problems: Vec<(Vec<u8>, String)>,
    /// Files that changed while they were read: the first few, and how many.
    pub changed: Vec<String>,
    pub changed_count: u64,
}

/// Paths of files that changed under the backup which are named.
const CHANGED_NAMED: usize = 100;

impl Context {
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn note_changed(&self, path: &[u8]) {
        let mut notes = self.notes();
        notes.changed_count += 1;
        if notes.changed.len() < CHANGED_NAMED {
            notes.changed.push(super::display(path));
        }
    }
}

/// What became of the first name of a file with several. The other names refer to it.
#[derive(Debug, Default)]
pub(super) struct FirstName(AtomicU8);

const PENDING: u8 = 0;
const STORED: u8 = 1;
const LOST: u8 = 2;

impl FirstName {
    /// Of content that is stored already.
    pub fn stored() -> Self {
        Self(AtomicU8::new(STORED))
    }

    pub fn is_stored(&self) -> bool {
        self.0.load(SeqCst) == STORED
    }

    pub fn is_lost(&self) -> bool {
        self.0.load(SeqCst) == LOST
    }

    fn settle(&self, stored: bool) {
        let state = if stored { STORED } else { LOST };
        // The first word counts: a file that was stored stays stored.
        let _ = self.0.compare_exchange(PENDING, state, SeqCst, SeqCst);
    }
}

/// Settles a first name as lost unless it was stored before.
#[derive(Debug)]
struct Settles(Option<Arc<FirstName>>);

impl Settles {
    fn stored(&self) {
        if let Some(first) = &self.0 {
            first.settle(true);
        }
    }
}

impl Drop for Settles {
    fn drop(&mut self) {
        if let Some(first) = &self.0 {
            first.settle(false);
        }
    }
}

/// A file to be read.
pub(super) struct FileContent {
    context: Arc<Context>,
    path: Vec<u8>,
    stat: Stat,
    settles: Settles,
}

impl FileContent {
    pub fn new(
        context: Arc<Context>,
        path: Vec<u8>,
        stat: Stat,
        first: Option<Arc<FirstName>>,
    ) -> Self {
        Self { context, path, stat, settles: Settles(first) }
    }
}

impl Content for FileContent {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        let Self { context, path, stat: listed, settles } = *self;
        let fd =
            open_to_read(&context.root, &path).map_err(|error| {
                match Errno::from_io_error(&error) {
                    Some(Errno::NOENT | Errno::NOTDIR) => ContentError::Vanished,
                    Some(Errno::LOOP | Errno::NXIO) => ContentError::Unreadable(
                        "it was replaced by something that is not a file while the backup ran"
                            .into(),
                    ),
                    _ => ContentError::Unreadable(error.to_string()),
                }
            })?;
        let stat = Stat::of(&fd)?;
        if stat.kind != FileType::File {
            return Err(ContentError::Unreadable(format!(
                "it was replaced by {} while the backup ran",
                stat.kind.describe()
            )));
        }
        if (stat.device, stat.inode) != (listed.device, listed.inode) {
            // The other names are still those of the file that was here.
            if let Some(first) = &settles.0 {
                first.settle(false);
            }
        }
        if stat.size >= LARGE {
            // Read ahead further, and do not push out what others keep using. Advice only.
            let _ = fs::fadvise(&fd, 0, None, Advice::Sequential);
            let _ = fs::fadvise(&fd, 0, None, Advice::NoReuse);
        }
        let ranges = if stat.is_sparse() { data_ranges(&fd, stat.size)? } else { None };
        Ok(Box::new(OpenFile { context, path, stat, fd, ranges, settles }))
    }
}

fn open_to_read(root: &Beneath, path: &[u8]) -> io::Result<OwnedFd> {
    // Not blocking: what was a file may be a fifo by now.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    match root.open_below(path, flags | OFlags::NOATIME) {
        // Only the owner and root may leave the access time alone.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
            root.open_below(path, flags)
        }
        other => other,
    }
}

/// Where a file has data; none if everywhere, or where the file system cannot tell.
pub(super) fn data_ranges(fd: impl AsFd, size: u64) -> io::Result<Option<Vec<Range<u64>>>> {
    let fd = fd.as_fd();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match fs::seek(fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::NOTSUP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if start >= size {
            break;
        }
        let end = match fs::seek(fd, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::NXIO) => size,
            Err(error) => return Err(error.into()),
        };
        if end <= start {
            break;
        }
        ranges.push(start..end);
        at = end;
    }
    let everywhere = ranges.len() == 1 && ranges.first() == Some(&(0..size));
    Ok((!everywhere).then_some(ranges))
}

struct OpenFile {
    context: Arc<Context>,
    path: Vec<u8>,
    stat: Stat,
    fd: OwnedFd,
    ranges: Option<Vec<Range<u64>>>,
    settles: Settles,
}

impl Reader for OpenFile {
    fn size(&self) -> u64 {
        self.stat.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        read_at(&self.fd, offset, buffer)
    }

    fn data_ranges(&self) -> Vec<Range<u64>> {
        match &self.ranges {
            Some(ranges) => ranges.clone(),
            None => std::iter::once(0..u64::MAX).collect(),
        }
    }

    fn finish(&self, entry: &mut Entry, bytes_read: u64) -> Result<(), ContentError> {
        let mut stat = Stat::of(&self.fd)?;
        if !stat.is_same_content(&self.stat) || stat.size != bytes_read {
            self.context.note_changed(&self.path);
            // No file ever has this time, so that the next backup does not take it for unchanged.
            stat.ctime = Time::default();
        }
        let xattrs = self.xattrs();
        entry.meta = stat.metadata(&self.context.names, xattrs);
        self.settles.stored();
        Ok(())
    }
}

impl OpenFile {
    fn xattrs(&self) -> Xattrs {
        xattrs_of(&self.fd).unwrap_or_else(|error| {
            let what = format!("its extended attributes could not be read: {error}");
            self.context.notes().problems.push((self.path.clone(), what));
            Vec::new()
        })
    }
}

/// Fills the buffer; short only at the end of the file.
pub(crate) fn read_at(fd: impl AsFd, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let fd = fd.as_fd();
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(fd, rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}
