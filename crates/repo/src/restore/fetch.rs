//! The workers of a restore: small things in batches, then ranges of packs.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};

use rustix::fs::{FallocateFlags, FileType};

use super::place::{Owners, Place, set_metadata};
use super::{Counters, Planned, Wanted};
use crate::codec::Codec;
use crate::entry::{Body, Entry, EntryKind, Metadata};
use crate::index::{Index, PackInfo};
use crate::repository::{Repository, open_record};
use crate::session::content_id_of_data;
use crate::tree::slice;
use crate::{Compression, Kind, Problem, Progress, RepoError, RepoErrorKind, Result};
use backstay_store::failpoint;

/// Read at once from a pack. Bytes.
const RANGE: u64 = 8 << 20;
/// A gap up to this size is read along. Bytes.
const GAP: u64 = 512 << 10;
/// Writes from this size on are sent to the disk at once. Bytes.
const WRITTEN_BACK: usize = 256 << 10;
/// Files from this size on are allocated in one go. Bytes.
const ALLOCATED: u64 = 4 << 20;

pub(super) struct Fetcher<'r> {
    pub repository: &'r Repository,
    pub index: &'r Index,
    pub owners: Option<&'r Owners>,
    pub progress: &'r Progress,
    pub delta: bool,
    /// Whether one thing that cannot be restored costs only itself.
    pub keep_going: bool,
    pub counters: Counters,
    pub problems: Mutex<Vec<Problem>>,
    /// Paths of incomplete files.
    pub aside: Mutex<Vec<Vec<u8>>>,
    /// Packs for which the index was read again; held while it is, so that not all do.
    pub sought: Mutex<HashSet<[u8; 16]>>,
}

type Batch = Vec<(Place, Entry)>;

/// The first error of several threads.
#[derive(Default)]
struct Failure(Mutex<Option<RepoError>>);

impl Failure {
    fn set(&self, error: RepoError) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
    }

    fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).is_some()
    }

    fn into_result(self) -> Result<()> {
        self.0.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }
}

impl Fetcher<'_> {
    /// Runs `plan`, which hands small things to `count` workers.
    pub fn with_workers(
        &self,
        count: usize,
        plan: impl FnOnce(&mut dyn FnMut(Batch) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let (sender, receiver) = crossbeam_channel::bounded::<Batch>(count * 2);
        let failure = Failure::default();
        std::thread::scope(|scope| {
            for _ in 0..count {
                let (receiver, failure) = (receiver.clone(), &failure);
                scope.spawn(move || {
                    for (place, entry) in receiver.into_iter().flatten() {
                        if failure.is_set() {
                            continue;
                        }
                        let done = self.small(&place, &entry);
                        if let Err(error) = self.allow(&entry.path, done) {
                            failure.set(error);
                        }
                    }
                });
            }
            drop(receiver);
            let planned = plan(&mut |batch| {
                // Workers end only when the sender does.
                let _ = sender.send(batch);
                if failure.is_set() {
                    Err(RepoError::new(RepoErrorKind::Aborted, ""))
                } else {
                    Ok(())
                }
            });
            drop(sender);
            planned
        })
        .or_else(|error| if failure.is_set() { Ok(()) } else { Err(error) })?;
        failure.into_result()
    }

    fn small(&self, place: &Place, entry: &Entry) -> Result<()> {
        let fail = |error| RepoError::io("restore", entry.display_path(), error);
        match &entry.kind {
            EntryKind::File(content) => {
                let Body::Inline(bytes) = &content.body else { return Ok(()) };
                place.prepare_existing(self.delta)?;
                let file = place.open_file(true).map_err(fail)?;
                file.write_all_at(bytes, 0).map_err(fail)?;
                self.counters.bytes_written.fetch_add(bytes.len() as u64, Relaxed);
                set_metadata(&file, &entry.meta, self.owners).map_err(fail)?;
            }
            EntryKind::Symlink { target } => {
                place.symlink(target, self.delta).map_err(fail)?;
                place.set_metadata(&entry.meta, self.owners, true)?;
            }
            kind => {
                let (kind, device) = match kind {
                    EntryKind::CharDevice { rdev } => (FileType::CharacterDevice, *rdev),
                    EntryKind::BlockDevice { rdev } => (FileType::BlockDevice, *rdev),
                    _ => (FileType::Fifo, 0),
                };
                place.special(kind, device, self.delta).map_err(fail)?;
                place.set_metadata(&entry.meta, self.owners, false)?;
            }
        }
        self.progress.add_done(entry.size(), 1);
        Ok(())
    }

    pub fn directory_metadata(&self, place: &Place, path: &[u8], meta: &Metadata) -> Result<()> {
        self.allow(path, place.set_metadata(meta, self.owners, false))
    }

    pub fn problem(&self, path: &[u8], what: impl Into<String>) {
        let problem = Problem { path: display(path), what: what.into() };
        self.problems.lock().unwrap_or_else(|e| e.into_inner()).push(problem);
    }

    /// Whether the rest can be restored all the same: one object or one file is at fault, and not
    /// the store, the disk or whoever stopped the work.
    pub fn goes_on(&self, error: &RepoError) -> bool {
        let of_the_disk = || {
            let mut source = std::error::Error::source(error);
            let kind = loop {
                match source.map(|s| (s.downcast_ref::<io::Error>(), s.source())) {
                    None => return false,
                    Some((Some(io), _)) => break io.kind(),
                    Some((None, next)) => source = next,
                }
            };
            use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
            matches!(kind, StorageFull | ReadOnlyFilesystem | QuotaExceeded)
        };
        self.keep_going
            && (error.is_about_an_object() || (error.kind() == RepoErrorKind::Io && !of_the_disk()))
    }

    /// Notes an error that costs only `path`; any other stays one.
    pub fn allow(&self, path: &[u8], result: Result<()>) -> Result<()> {
        match result {
            Err(error) if self.goes_on(&error) => {
                self.problem(path, error.to_string());
                Ok(())
            }
            other => other,
        }
    }

    /// What `wanted` asks for cannot be had; their files are finished without it.
    fn lose(&self, files: &[Planned], wanted: &[Wanted], error: &RepoError) -> Result<()> {
        for planned in wanted.iter().filter_map(|wanted| files.get(wanted.file as usize)) {
            planned.lost.get_or_init(|| error.to_string());
            if planned.left.fetch_sub(1, AcqRel) == 1 {
                self.finish(planned, None)?;
            }
        }
        Ok(())
    }

    /// Ends a file whose last extent was written or lost.
    pub fn finish(&self, planned: &Planned, open: Option<&File>) -> Result<()> {
        let done = match planned.lost.get() {
            None => self.complete(planned, open),
            Some(why) => self.set_aside(planned, why),
        };
        self.progress.add_done(0, 1);
        self.allow(&planned.path, done)
    }

    /// A file that lacks something must not pass for what it was, and what could be had of it may be
    /// all that is left: it stays, under another name.
    fn set_aside(&self, planned: &Planned, why: &str) -> Result<()> {
        self.counters.files_lost.fetch_add(1, Relaxed);
        self.counters.bytes_lost.fetch_add(planned.size, Relaxed);
        let what = match planned.place.set_aside()? {
            Some(name) => {
                let above = planned.path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
                let path = [&planned.path[..above], &name].concat();
                self.aside.lock().unwrap_or_else(|e| e.into_inner()).push(path);
                format!("incomplete: {why}; what could be had is in {}", display(&name))
            }
            None => format!("lost: {why}"),
        };
        self.problem(&planned.path, what);
        Ok(())
    }

    fn complete(&self, planned: &Planned, open: Option<&File>) -> Result<()> {
        let finish = || {
            let opened;
            let file = match open {
                Some(file) => file,
                None => {
                    // It has no extent: whatever is there goes.
                    opened = planned.place.open_file(true)?;
                    &opened
                }
            };
            if file.metadata()?.len() != planned.size {
                file.set_len(planned.size)?;
            }
            set_metadata(file, &planned.meta, self.owners)
        };
        finish().map_err(|e| RepoError::io("restore", display(&planned.path), e))
    }

    /// Leaves out every range that a file already has, and makes holes where files have holes.
    pub fn without_what_is_right(
        &self,
        files: &[Planned],
        wanted: Vec<Wanted>,
        count: usize,
    ) -> Result<Vec<Wanted>> {
        // Planned in the order of files, so those of one file are neighbours.
        let groups: Vec<&[Wanted]> = wanted.chunk_by(|a, b| a.file == b.file).collect();
        let (next, failure) = (AtomicUsize::new(0), Failure::default());
        let missing = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    let mut buffer = Vec::new();
                    while let Some(group) = groups.get(next.fetch_add(1, Relaxed)) {
                        if failure.is_set() {
                            return;
                        }
                        match self.compare(files, group, &mut buffer) {
                            // Whatever is there cannot be read, so all of it is wanted.
                            Err(error) if self.goes_on(&error) => {
                                let mut missing = missing.lock().unwrap_or_else(|e| e.into_inner());
                                missing.extend_from_slice(group);
                            }
                            Ok(found) => {
                                missing.lock().unwrap_or_else(|e| e.into_inner()).extend(found);
                            }
                            Err(error) => failure.set(error),
                        }
                    }
                });
            }
        });
        failure.into_result()?;
        Ok(missing.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    fn compare(
        &self,
        files: &[Planned],
        group: &[Wanted],
        buffer: &mut Vec<u8>,
    ) -> Result<Vec<Wanted>> {
        let Some(planned) = group.first().and_then(|w| files.get(w.file as usize)) else {
            return Ok(Vec::new());
        };
        if !planned.exists {
            return Ok(group.to_vec());
        }
        self.progress.check()?;
        let fail = |e| RepoError::io("compare", display(&planned.path), e);
        let file = planned.place.open_file(false).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        let mut end = 0;
        let gaps =
            group.iter().map(|w| w.extent.offset..w.extent.offset + u64::from(w.extent.length));
        for range in gaps.chain(std::iter::once(planned.size..planned.size)) {
            if range.start > end && end < length {
                make_hole(&file, end, range.start.min(length)).map_err(fail)?;
            }
            end = range.end;
        }
        let mut missing = Vec::new();
        for wanted in group {
            let extent = &wanted.extent;
            buffer.resize(extent.length as usize, 0);
            let there = extent.chunk_offset == 0
                && extent.offset + u64::from(extent.length) <= length
                && file.read_exact_at(buffer, extent.offset).is_ok()
                && content_id_of_data(self.repository, buffer) == extent.chunk;
            if there {
                self.counters.bytes_kept.fetch_add(u64::from(extent.length), Relaxed);
                self.progress.add_done(u64::from(extent.length), 0);
                if planned.left.fetch_sub(1, AcqRel) == 1 {
                    self.finish(planned, Some(&file))?;
                }
            } else {
                missing.push(*wanted);
            }
        }
        Ok(missing)
    }

    /// Fetches all of `wanted`, which is sorted by location.
    pub fn fetch_all(&self, files: &[Planned], wanted: &[Wanted], count: usize) -> Result<()> {
        let ranges = ranges(wanted);
        let count = count.min(ranges.len());
        let failure = Failure::default();
        // Each worker begins at a place of its own: neighbours are of the same files, and two
        // writers of one file wait for each other.
        let length = ranges.len().div_ceil(count.max(1)).max(1);
        let parts: Vec<_> = ranges.chunks(length).map(|part| (AtomicUsize::new(0), part)).collect();
        std::thread::scope(|scope| {
            for number in 0..count {
                let (parts, failure) = (&parts, &failure);
                scope.spawn(move || {
                    let mut worker = Worker::default();
                    // Its own part first, then what others have not come to.
                    let parts = parts.iter().cycle().skip(number).take(parts.len());
                    let ranges = parts.flat_map(|(next, part)| {
                        std::iter::from_fn(|| part.get(next.fetch_add(1, Relaxed)))
                    });
                    for range in ranges {
                        if failure.is_set() {
                            return;
                        }
                        if let Err(error) = self.fetch(files, range, &mut worker) {
                            failure.set(error);
                        }
                    }
                });
            }
        });
        failure.into_result()
    }

    fn fetch(&self, files: &[Planned], range: &[Wanted], worker: &mut Worker) -> Result<()> {
        let (Some(first), Some(last)) = (range.first(), range.last()) else { return Ok(()) };
        self.progress.check()?;
        let pack = self.index.pack(first.location.pack).ok_or_else(|| {
            RepoError::damaged("the index", "it names a pack that it does not list")
        })?;
        let start = u64::from(first.location.offset);
        let end = u64::from(last.location.offset) + u64::from(last.location.length);
        let read = self.repository.pack_key(pack).and_then(|key| {
            Ok((key, self.repository.store().read_range(&pack.key(), start..end)?))
        });
        let (key, bytes) = match read {
            Ok(read) => read,
            Err(error) if error.is_about_an_object() => {
                // A pack that was cut short has what lies before the cut; what maintenance moved is
                // in another one.
                let mut records = range.chunk_by(|a, b| a.location == b.location);
                if first.location == last.location {
                    return self.from_elsewhere(files, range, pack, error, worker);
                }
                return records.try_for_each(|one| self.fetch(files, one, worker));
            }
            Err(error) => return Err(error),
        };
        self.counters.bytes_fetched.fetch_add(bytes.len() as u64, Relaxed);
        for same in range.chunk_by(|a, b| a.location == b.location) {
            let Some(one) = same.first() else { continue };
            let at = (u64::from(one.location.offset) - start) as usize;
            let record = bytes.get(at..at + one.location.length as usize);
            worker.record.clear();
            worker.record.extend_from_slice(record.unwrap_or_default());
            let opened = open_record(
                pack,
                &key,
                one.location,
                Kind::Data,
                &one.extent.chunk,
                &mut worker.record,
                &mut worker.codec,
                &mut worker.content,
            );
            if let Err(error) = opened {
                if !self.goes_on(&error) {
                    return Err(error);
                }
                self.lose(files, same, &error)?;
                continue;
            }
            self.write_all(files, same, &pack.key(), worker)?;
        }
        Ok(())
    }

    /// Places of one chunk whose pack cannot be read: another one may have it by now.
    fn from_elsewhere(
        &self,
        files: &[Planned],
        wanted: &[Wanted],
        pack: &PackInfo,
        error: RepoError,
        worker: &mut Worker,
    ) -> Result<()> {
        let Some(first) = wanted.first() else { return Ok(()) };
        let chunk = &first.extent.chunk;
        let content = {
            let mut sought = self.sought.lock().unwrap_or_else(|e| e.into_inner());
            let mut index = self.repository.index()?;
            let other = |index: &Index| {
                let at = index.find(chunk)?;
                index.pack(at.pack).is_some_and(|now| now.id != pack.id).then_some(())
            };
            if other(&index).is_none() && sought.insert(pack.id) {
                index = self.repository.reload_index()?;
            }
            other(&index).map(|()| self.repository.read_chunk(Kind::Data, chunk))
        };
        match content {
            Some(Ok(content)) => {
                worker.content = content;
                self.write_all(files, wanted, &pack.key(), worker)
            }
            Some(Err(error)) if !error.is_about_an_object() => Err(error),
            _ if self.goes_on(&error) => self.lose(files, wanted, &error),
            _ => Err(error),
        }
    }

    /// Writes the chunk that the worker has to all that want it.
    fn write_all(
        &self,
        files: &[Planned],
        wanted: &[Wanted],
        object: &str,
        worker: &mut Worker,
    ) -> Result<()> {
        for wanted in wanted {
            let planned = files.get(wanted.file as usize);
            let planned = planned.expect("the plan numbers its own files");
            match self.write(planned, wanted, object, worker) {
                Err(error) if self.goes_on(&error) => {
                    self.lose(files, std::slice::from_ref(wanted), &error)?;
                }
                done => done?,
            }
        }
        Ok(())
    }

    fn write(
        &self,
        planned: &Planned,
        wanted: &Wanted,
        object: &str,
        worker: &mut Worker,
    ) -> Result<()> {
        let bytes = slice(object, &worker.content, &wanted.extent)?;
        let whole = bytes.len() as u64 == planned.size;
        let mut write = || {
            let file = match worker.open.take() {
                Some((number, file)) if number == wanted.file => file,
                _ => {
                    let file = planned.place.open_file(whole && !planned.exists)?;
                    if planned.size >= ALLOCATED
                        && planned.dense
                        && !planned.exists
                        && file.metadata()?.len() == 0
                    {
                        allocate(&file, planned.size);
                    }
                    file
                }
            };
            file.write_all_at(bytes, wanted.extent.offset)?;
            if bytes.len() >= WRITTEN_BACK {
                // Of dirty pages, DONTNEED starts the write-back and drops none: the disk works
                // while the rest is decoded, and the sync at the end waits for less.
                let length = std::num::NonZeroU64::new(bytes.len() as u64);
                let advice = rustix::fs::Advice::DontNeed;
                let _ = rustix::fs::fadvise(&file, wanted.extent.offset, length, advice);
            }
            Ok(file)
        };
        let file = write().map_err(|e| RepoError::io("restore", display(&planned.path), e))?;
        failpoint::hit("restore-chunk-written");
        let length = bytes.len() as u64;
        self.counters.bytes_written.fetch_add(length, Relaxed);
        self.progress.add_done(length, 0);
        if planned.left.fetch_sub(1, AcqRel) == 1 {
            self.finish(planned, Some(&file))?;
        } else {
            worker.open = Some((wanted.file, file));
        }
        Ok(())
    }
}

struct Worker {
    codec: Codec,
    record: Vec<u8>,
    content: Vec<u8>,
    /// The file that was written last: the next chunk is often its next one.
    open: Option<(u32, File)>,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            codec: Codec::new(Compression::None),
            record: Vec::new(),
            content: Vec::new(),
            open: None,
        }
    }
}

/// Cuts `wanted` where the pack changes, the gap is large, or enough was collected.
fn ranges(wanted: &[Wanted]) -> Vec<&[Wanted]> {
    let mut ranges = Vec::new();
    let mut from = 0;
    for at in 1..wanted.len() {
        let (first, before, this) =
            (wanted[from].location, wanted[at - 1].location, wanted[at].location);
        let end = u64::from(before.offset) + u64::from(before.length);
        let same = this == before;
        let apart = u64::from(this.offset) > end + GAP;
        let enough =
            u64::from(this.offset) + u64::from(this.length) > u64::from(first.offset) + RANGE;
        if !same && (this.pack != before.pack || apart || enough) {
            ranges.push(&wanted[from..at]);
            from = at;
        }
    }
    if from < wanted.len() {
        ranges.push(&wanted[from..]);
    }
    ranges
}

/// Asks for the blocks of a file at once, so that it lies in one piece. A file system that cannot
/// do it, or has no room, says so when the bytes are written.
fn allocate(file: &File, size: u64) {
    if let Err(error) = rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
        tracing::trace!(%error, "not allocated ahead");
    }
}

fn make_hole(file: &File, from: u64, to: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if rustix::fs::fallocate(file, flags, from, to - from).is_ok() {
        return Ok(());
    }
    let zeros = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let step = (to - at).min(zeros.len() as u64) as usize;
        file.write_all_at(&zeros[..step], at)?;
        at += step as u64;
    }
    Ok(())
}

fn display(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
