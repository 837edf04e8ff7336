//! The content of files on its way to the workers.
//!
//! - Up to 128 bytes: kept in the tree itself (up to 4 KiB in a repository without the flag
//!   `members`, in which a small file that is stored among others is not found again).
//! - Up to 64 KiB: several files that follow each other share a group, a chunk of up to 256 KiB, in
//!   which they are compressed together. A group ends where a hash of a file's name and size says
//!   so, so that a moved or copied directory forms the groups it formed before.
//! - Larger: content-defined chunks, or for database files the cells of a fixed grid of 1 MiB.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use super::sink::Shared;
use super::worker::Worker;
use crate::entry::{Entry, FileContent, LeafRef};
use crate::{Progress, RepoError, RepoErrorKind, Result};

/// A cell of the grid. Bytes.
pub(crate) const CELL: usize = 1 << 20;
/// What a leaf of a grid's extent map is about. Bytes.
pub(crate) const REGION: u64 = 64 << 20;
/// Files up to this size are grouped. Bytes.
pub(crate) const GROUPED: u64 = 64 << 10;
/// Files up to this size are kept in the tree where larger ones are found by their content. One that
/// is stored elsewhere costs some thirty bytes in the tree that do not compress. Bytes.
pub(crate) const INLINE_BESIDE_MEMBERS: u64 = 128;
/// A group is closed from here on. Bytes.
pub(crate) const GROUP: u64 = 256 << 10;

/// How content is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunking {
    /// Where the content says so: for files into which bytes are inserted.
    ContentDefined,
    /// Cells of 1 MiB aligned to the file: for files that are written in place, page by page.
    Grid,
}

/// Content to be read once, by a worker.
pub trait Content: Send {
    /// Opens what is to be read.
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError>;
}

/// Open content. Regions of one large file are read by several workers at once.
pub trait Reader: Send + Sync {
    /// Bytes. For a grid exactly what is stored; otherwise what is expected, and the end of the
    /// file decides.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset` on; short only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Where data is in a sparse file; the rest are holes. Sorted, without overlap.
    fn data_ranges(&self) -> Vec<Range<u64>> {
        std::iter::once(0..u64::MAX).collect()
    }

    /// What lies in `range` will not be read again: content that comes as a stream need not be kept
    /// any longer.
    fn release(&self, _range: Range<u64>) {}

    /// Of a grid, where it may hold something else than in the snapshot that a lane builds on: sorted,
    /// without overlap. What is not in there need not be read. None where nothing is known.
    fn changed(&self, _lane: usize) -> Option<&[Range<u64>]> {
        None
    }

    /// The last word on the metadata, after all was read.
    fn finish(&self, _entry: &mut Entry, _bytes_read: u64) -> Result<(), ContentError> {
        Ok(())
    }
}

impl Reader for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let length = buffer.len().min(self.len() - from);
        buffer[..length].copy_from_slice(&self[from..from + length]);
        Ok(length)
    }
}

/// Why content is not stored.
#[derive(Debug)]
pub enum ContentError {
    /// It was removed since it was listed: the entry is dropped, which is normal.
    Vanished,
    /// The entry is dropped and listed as a problem.
    Unreadable(String),
    /// The session ends.
    Fatal(String),
}

impl From<io::Error> for ContentError {
    fn from(error: io::Error) -> Self {
        // What is copied from a repository that lacks it must not become a file less.
        match error.downcast::<crate::copy::Unusable>() {
            Ok(unusable) => Self::Fatal(unusable.to_string()),
            Err(error) => Self::Unreadable(error.to_string()),
        }
    }
}

/// An entry, as the lanes have it.
pub(super) enum Made {
    /// All of them the same.
    Same(Entry),
    /// Each its own, or none.
    Each(Vec<Option<Entry>>),
}

impl Made {
    /// What a lane has.
    pub fn of(&self, lane: usize) -> Option<&Entry> {
        match self {
            Self::Same(entry) => Some(entry),
            Self::Each(entries) => entries.get(lane)?.as_ref(),
        }
    }

    /// What any lane has.
    pub fn any(&self) -> Option<&Entry> {
        match self {
            Self::Same(entry) => Some(entry),
            Self::Each(entries) => entries.iter().flatten().next(),
        }
    }
}

/// Of each lane, what it has from before.
pub(super) type Known = Vec<Option<Entry>>;

/// Of each lane, what it made of a file's content; none where the lane did not want it or has failed.
pub(super) type Contents = Vec<Option<FileContent>>;

pub(super) enum Outcome {
    Stored(Made),
    Dropped,
}

pub(super) struct File {
    pub ticket: u64,
    pub entry: Entry,
    /// Empty: all lanes want it read.
    pub known: Known,
    /// Of each lane, how many small files of the parent were met before it.
    pub met: Vec<u64>,
    pub content: Box<dyn Content>,
    pub chunking: Chunking,
    pub results: Sender<(u64, Outcome)>,
}

pub(super) enum Job {
    One(Box<File>),
    Group(Vec<File>),
    Region(Arc<LargeFile>, usize),
}

/// A grid of several regions.
pub(super) struct LargeFile {
    pub ticket: u64,
    pub path: Vec<u8>,
    pub entry: Mutex<Option<Entry>>,
    pub known: Known,
    pub reader: Box<dyn Reader>,
    /// Of each region, the leaf in each lane.
    pub leaves: Mutex<Vec<Vec<Option<LeafRef>>>>,
    pub left: AtomicUsize,
    pub failed: Mutex<Option<ContentError>>,
    pub results: Sender<(u64, Outcome)>,
}

/// The workers of a session.
pub(super) struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub fn start(lanes: Vec<Arc<Shared>>, progress: Arc<Progress>, workers: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(workers * 4);
        let mut threads = Vec::new();
        for _ in 0..workers {
            let (worker, receiver) = (Worker::new(&lanes, &progress), receiver.clone());
            let spawned = std::thread::Builder::new()
                .name("backup".into())
                .spawn(move || worker.run(&receiver));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => {
                    let error = RepoError::io("start a thread for", "the backup", error);
                    lanes.iter().for_each(|lane| lane.fail(error.repeat()));
                }
                Err(error) => tracing::warn!(%error, "fewer workers than asked for"),
            }
        }
        Self { jobs: Some(sender), threads }
    }

    /// Waits for a free place in the queue.
    pub fn submit(&self, job: Job) -> Result<()> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent {
            Ok(())
        } else {
            Err(RepoError::new(RepoErrorKind::Aborted, "the backup was given up"))
        }
    }

    pub fn stop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// What becomes of a file whose content could not be read, in `lanes`, which wanted it.
pub(super) fn dropped<'l>(
    lanes: impl Iterator<Item = &'l Shared>,
    entry: &Entry,
    error: ContentError,
) -> Result<Outcome> {
    match error {
        ContentError::Vanished => Ok(Outcome::Dropped),
        ContentError::Unreadable(what) => {
            lanes.for_each(|lane| lane.problem(&entry.display_path(), what.clone()));
            Ok(Outcome::Dropped)
        }
        ContentError::Fatal(what) => Err(RepoError::new(
            RepoErrorKind::Io,
            format!("could not read {}: {what}", entry.display_path()),
        )),
    }
}
