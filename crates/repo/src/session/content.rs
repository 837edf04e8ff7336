//! What a worker does with the content of files.
//!
//! - Up to 4 KiB: kept in the tree itself.
//! - Up to 64 KiB: several files that follow each other share a group, a chunk of up to 256 KiB, in
//!   which they are compressed together. A group ends where a hash of a file's name and size says
//!   so, so that a moved or copied directory forms the groups it formed before.
//! - Larger: content-defined chunks, or for database files the cells of a fixed grid of 1 MiB.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};

use super::sink::{FailOnPanic, Shared, Sink};
use crate::chunker::MAX;
use crate::entry::{Body, Entry, EntryKind, Extent, FileContent, INLINE_LIMIT, LeafRef};
use crate::tree::{ChunkSink, ExtentLeaf, PageHashes, encode_leaf};
use crate::{Kind, RepoError, RepoErrorKind, Result};

/// A cell of the grid. Bytes.
pub(crate) const CELL: usize = 1 << 20;
/// What a leaf of a grid's extent map is about. Bytes.
pub(crate) const REGION: u64 = 64 << 20;
/// Files up to this size are grouped. Bytes.
pub(crate) const GROUPED: u64 = 64 << 10;
/// A group is closed from here on. Bytes.
pub(crate) const GROUP: u64 = 256 << 10;
/// Extents that an entry carries itself.
const EXTENTS_IN_ENTRY: usize = 64;
/// Page hashes that a leaf carries itself. Bytes.
const PAGES_IN_LEAF: usize = 4096;

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
        Self::Unreadable(error.to_string())
    }
}

pub(super) enum Outcome {
    Stored(Entry),
    Dropped,
}

pub(super) struct File {
    pub ticket: u64,
    pub entry: Entry,
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
    ticket: u64,
    entry: Mutex<Option<Entry>>,
    reader: Box<dyn Reader>,
    leaves: Mutex<Vec<Option<LeafRef>>>,
    left: AtomicUsize,
    failed: Mutex<Option<ContentError>>,
    results: Sender<(u64, Outcome)>,
}

/// The workers of a session.
pub(super) struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub fn start(shared: &Arc<Shared>, workers: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(workers * 4);
        let mut threads = Vec::new();
        for _ in 0..workers {
            let (worker, receiver) = (Worker::new(shared.clone()), receiver.clone());
            let spawned = std::thread::Builder::new()
                .name("backup".into())
                .spawn(move || worker.run(&receiver));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => {
                    shared.fail(RepoError::io("start a thread for", "the backup", error));
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

/// Opens a grid that is larger than one region and makes its jobs.
pub(super) fn large_file(file: File) -> Result<Vec<Job>, Box<(Unopened, ContentError)>> {
    let File { ticket, entry, content, results, .. } = file;
    let reader = match content.open() {
        Ok(reader) => reader,
        Err(error) => return Err(Box::new((Unopened { ticket, entry, results }, error))),
    };
    let regions = reader.size().div_ceil(REGION).max(1) as usize;
    let large = Arc::new(LargeFile {
        ticket,
        entry: Mutex::new(Some(entry)),
        reader,
        leaves: Mutex::new(vec![None; regions]),
        left: AtomicUsize::new(regions),
        failed: Mutex::default(),
        results,
    });
    Ok((0..regions).map(|number| Job::Region(large.clone(), number)).collect())
}

/// A file whose content is gone.
pub(super) struct Unopened {
    pub ticket: u64,
    pub entry: Entry,
    pub results: Sender<(u64, Outcome)>,
}

struct Worker {
    sink: Sink,
    buffer: Vec<u8>,
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Self {
        Self { sink: Sink::new(shared), buffer: Vec::new() }
    }

    fn run(mut self, jobs: &Receiver<Job>) {
        let shared = self.sink.shared.clone();
        let _guard = FailOnPanic(&shared);
        for job in jobs {
            // After a failure the queue is emptied, so that nobody waits for ever.
            if self.sink.shared.check().is_err() {
                continue;
            }
            let done = match job {
                Job::One(file) => self.one(*file),
                Job::Group(files) => self.group(files),
                Job::Region(file, number) => self.region(&file, number),
            };
            if let Err(error) = done {
                self.sink.shared.fail(error);
            }
        }
    }

    /// Hands back an entry, or says why there is none.
    fn deliver(
        &self,
        ticket: u64,
        mut entry: Entry,
        results: &Sender<(u64, Outcome)>,
        content: Result<FileContent, ContentError>,
    ) -> Result<()> {
        let outcome = match content {
            Ok(content) => {
                entry.kind = EntryKind::File(content);
                self.sink.shared.progress.add_done(0, 1);
                Outcome::Stored(entry)
            }
            Err(error) => self.sink.shared.dropped(&entry, error)?,
        };
        // Nobody waits for it only when the session is being given up.
        let _ = results.send((ticket, outcome));
        Ok(())
    }

    fn one(&mut self, file: File) -> Result<()> {
        let File { ticket, mut entry, content, chunking, results } = file;
        let stored = match content.open() {
            Ok(reader) => self.whole(reader.as_ref(), chunking, &mut entry)?,
            Err(error) => Err(error),
        };
        self.deliver(ticket, entry, &results, stored)
    }

    /// Stores a file of any size. The outer error ends the session, the inner one drops the file.
    fn whole(
        &mut self,
        reader: &dyn Reader,
        chunking: Chunking,
        entry: &mut Entry,
    ) -> Result<Result<FileContent, ContentError>> {
        let stored = match chunking {
            Chunking::Grid => self.grid(reader)?,
            Chunking::ContentDefined => self.cut(reader)?,
        };
        Ok(stored.and_then(|content| {
            reader.finish(entry, content.size)?;
            Ok(content)
        }))
    }

    /// Content-defined chunks, or inline content where it is short.
    fn cut(&mut self, reader: &dyn Reader) -> Result<Result<FileContent, ContentError>> {
        let mut extents = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        let ranges = reader.data_ranges();
        let sparse = ranges.first().is_none_or(|r| r.start > 0 || r.end != u64::MAX);
        let mut size = if sparse { reader.size() } else { 0 };
        for range in ranges {
            let end = range.end;
            let mut at = range.start;
            let (mut from, mut filled) = (0, 0);
            let mut ended = false;
            loop {
                if !ended && filled - from < MAX {
                    buffer.copy_within(from..filled, 0);
                    filled -= from;
                    from = 0;
                    // A small file needs no large buffer; what it may have grown is one byte more.
                    let wanted =
                        (end.saturating_sub(at + filled as u64)).min(2 * MAX as u64) as usize;
                    let expected = (reader.size().saturating_sub(at) as usize).saturating_add(1);
                    let room = wanted.min(2 * MAX - filled).min(expected.max(64 << 10));
                    if buffer.len() < filled + room {
                        buffer.resize(filled + room, 0);
                    }
                    let read = match reader
                        .read_at(at + filled as u64, &mut buffer[filled..filled + room])
                    {
                        Ok(read) => read,
                        Err(error) => {
                            self.buffer = buffer;
                            return Ok(Err(error.into()));
                        }
                    };
                    filled += read;
                    self.sink.shared.count_read(read as u64);
                    ended = read < room || at + filled as u64 >= end;
                    if !ended && filled - from < MAX {
                        continue;
                    }
                }
                let rest = &buffer[from..filled];
                if rest.is_empty() {
                    break;
                }
                if at == 0 && ended && !sparse && rest.len() as u64 <= INLINE_LIMIT {
                    let content = FileContent::inline(rest.to_vec());
                    self.buffer = buffer;
                    return Ok(Ok(content));
                }
                let length = self.sink.shared.chunker.cut(rest);
                let chunk = self.sink.store(Kind::Data, &rest[..length])?;
                extents.push(Extent { offset: at, length: length as u32, chunk, chunk_offset: 0 });
                from += length;
                at += length as u64;
            }
            size = size.max(at);
        }
        self.buffer = buffer;
        Ok(Ok(FileContent { size, body: self.body(extents)? }))
    }

    /// Many extents go to leaves of their own.
    fn body(&mut self, extents: Vec<Extent>) -> Result<Body> {
        if extents.is_empty() {
            return Ok(Body::Extents(Vec::new()));
        }
        if extents.len() <= EXTENTS_IN_ENTRY {
            return Ok(Body::Extents(extents));
        }
        let mut leaves = Vec::new();
        for part in extents.chunks(EXTENTS_IN_ENTRY) {
            let offset = part.first().map_or(0, |e| e.offset);
            let extents = part.iter().map(|e| Extent { offset: e.offset - offset, ..*e }).collect();
            let leaf = ExtentLeaf { extents, cells: Vec::new(), pages: PageHashes::None };
            let id = self.sink.store(Kind::Leaf, &encode_leaf(&leaf))?;
            leaves.push(LeafRef { id, offset });
        }
        Ok(Body::Leaves(leaves))
    }

    /// A grid of one region.
    fn grid(&mut self, reader: &dyn Reader) -> Result<Result<FileContent, ContentError>> {
        let mut leaves = Vec::new();
        for number in 0..reader.size().div_ceil(REGION) as usize {
            match self.grid_region(reader, number)? {
                Ok(leaf) => leaves.push(leaf),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(FileContent { size: reader.size(), body: Body::Leaves(leaves) }))
    }

    fn grid_region(
        &mut self,
        reader: &dyn Reader,
        number: usize,
    ) -> Result<Result<LeafRef, ContentError>> {
        let start = number as u64 * REGION;
        let end = (start + REGION).min(reader.size());
        let mut leaf =
            ExtentLeaf { extents: Vec::new(), cells: Vec::new(), pages: PageHashes::None };
        let mut pages = Vec::new();
        if self.buffer.len() < CELL {
            self.buffer.resize(CELL, 0);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = start;
        while at < end {
            let length = (end - at).min(CELL as u64) as usize;
            let cell = &mut buffer[..length];
            let read = match reader.read_at(at, cell) {
                Ok(read) => read,
                Err(error) => {
                    self.buffer = buffer;
                    return Ok(Err(error.into()));
                }
            };
            // A grid has the size it said; what is not there any more reads as zeros.
            cell[read..].fill(0);
            self.sink.shared.count_read(read as u64);
            let id = if is_zero(cell) {
                self.sink.hash_cell(cell, &mut pages)
            } else {
                let id = self.sink.store_cell(cell, &mut pages)?;
                let offset = at - start;
                leaf.extents.push(Extent {
                    offset,
                    length: length as u32,
                    chunk: id,
                    chunk_offset: 0,
                });
                id
            };
            let mut prefix = [0; 16];
            prefix.copy_from_slice(&id.0[..16]);
            leaf.cells.push(prefix);
            at += length as u64;
        }
        self.buffer = buffer;
        leaf.pages = if pages.len() <= PAGES_IN_LEAF {
            PageHashes::Inline(pages)
        } else {
            PageHashes::Chunk(self.sink.store(Kind::Pages, &pages)?)
        };
        let id = self.sink.store(Kind::Leaf, &encode_leaf(&leaf))?;
        Ok(Ok(LeafRef { id, offset: start }))
    }

    fn region(&mut self, file: &LargeFile, number: usize) -> Result<()> {
        let failed = || file.failed.lock().unwrap_or_else(|e| e.into_inner());
        if failed().is_none() {
            match self.grid_region(file.reader.as_ref(), number)? {
                Ok(leaf) => {
                    let mut leaves = file.leaves.lock().unwrap_or_else(|e| e.into_inner());
                    if let Some(slot) = leaves.get_mut(number) {
                        *slot = Some(leaf);
                    }
                }
                Err(error) => {
                    failed().get_or_insert(error);
                }
            }
        }
        if file.left.fetch_sub(1, SeqCst) > 1 {
            return Ok(());
        }
        let entry = file.entry.lock().unwrap_or_else(|e| e.into_inner()).take();
        let Some(mut entry) = entry else { return Ok(()) };
        let content = match failed().take() {
            Some(error) => Err(error),
            None => {
                let leaves = file.leaves.lock().unwrap_or_else(|e| e.into_inner());
                let leaves = leaves.iter().copied().flatten().collect();
                let size = file.reader.size();
                file.reader
                    .finish(&mut entry, size)
                    .map(|()| FileContent { size, body: Body::Leaves(leaves) })
            }
        };
        self.deliver(file.ticket, entry, &file.results, content)
    }

    fn group(&mut self, files: Vec<File>) -> Result<()> {
        let mut group = Vec::with_capacity((GROUP + GROUPED) as usize);
        let mut members = Vec::new();
        for file in files {
            let File { ticket, mut entry, content, chunking, results } = file;
            let reader = match content.open() {
                Ok(reader) => reader,
                Err(error) => {
                    self.deliver(ticket, entry, &results, Err(error))?;
                    continue;
                }
            };
            let plain = reader.data_ranges().first() == Some(&(0..u64::MAX));
            // Files that grew since they were listed must not make the group too long for a chunk.
            let room = GROUP + GROUPED - (group.len() as u64).min(GROUP + GROUPED);
            if reader.size() > GROUPED || reader.size() >= room || !plain {
                let stored = self.whole(reader.as_ref(), chunking, &mut entry)?;
                self.deliver(ticket, entry, &results, stored)?;
                continue;
            }
            let start = group.len();
            // A byte more than expected, to see whether the file grew.
            let room = reader.size() as usize + usize::from(chunking == Chunking::ContentDefined);
            group.resize(start + room, 0);
            let read = match reader.read_at(0, &mut group[start..]) {
                Ok(read) => read,
                Err(error) => {
                    group.truncate(start);
                    self.deliver(ticket, entry, &results, Err(error.into()))?;
                    continue;
                }
            };
            if chunking == Chunking::ContentDefined && read == room {
                group.truncate(start);
                let stored = self.whole(reader.as_ref(), chunking, &mut entry)?;
                self.deliver(ticket, entry, &results, stored)?;
                continue;
            }
            let size = if chunking == Chunking::Grid { room } else { read };
            group[start + read..].fill(0);
            group.truncate(start + size);
            self.sink.shared.count_read(read as u64);
            if let Err(error) = reader.finish(&mut entry, size as u64) {
                group.truncate(start);
                self.deliver(ticket, entry, &results, Err(error))?;
                continue;
            }
            if size as u64 <= INLINE_LIMIT {
                let content = FileContent::inline(&group[start..]);
                group.truncate(start);
                self.deliver(ticket, entry, &results, Ok(content))?;
                continue;
            }
            members.push((ticket, entry, results, start, size));
        }
        if members.is_empty() {
            return Ok(());
        }
        let chunk = self.sink.store(Kind::Data, &group)?;
        for (ticket, entry, results, start, size) in members {
            let extent =
                Extent { offset: 0, length: size as u32, chunk, chunk_offset: start as u32 };
            let content = FileContent { size: size as u64, body: Body::Extents(vec![extent]) };
            self.deliver(ticket, entry, &results, Ok(content))?;
        }
        Ok(())
    }
}

impl Shared {
    /// What becomes of a file whose content could not be read.
    pub(super) fn dropped(&self, entry: &Entry, error: ContentError) -> Result<Outcome> {
        match error {
            ContentError::Vanished => Ok(Outcome::Dropped),
            ContentError::Unreadable(what) => {
                self.problem(&entry.display_path(), what);
                Ok(Outcome::Dropped)
            }
            ContentError::Fatal(what) => Err(RepoError::new(
                RepoErrorKind::Io,
                format!("could not read {}: {what}", entry.display_path()),
            )),
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
