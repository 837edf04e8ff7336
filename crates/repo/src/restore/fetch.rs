//! The workers of a restore that fetch ranges of packs and write what lies in them, and what becomes
//! of what cannot be had. `small` is what needs no pack, `compare` what is there already, `finish` how a
//! file begins and ends.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::place::{Owners, Place};
use super::{Counters, NOWHERE, Planned, Wanted};
use crate::codec::Codec;
use crate::entry::Metadata;
use crate::index::{Index, PackInfo};
use crate::repository::{Repository, missing_chunk, open_record};
use crate::tree::slice;
use crate::{Compression, Fallback, Kind, Problem, Progress, RepoError, RepoErrorKind, Result};
use backstay_store::failpoint;

/// Read at once from a pack. Bytes.
const RANGE: u64 = 8 << 20;
/// A gap up to this size is read along. Bytes.
const GAP: u64 = 512 << 10;
/// Writes from this size on are sent to the disk at once. Bytes.
const WRITTEN_BACK: usize = 256 << 10;

pub(super) struct Fetcher<'r> {
    /// Where else to look for what cannot be had.
    pub fallback: Option<&'r Fallback>,
    pub owners: Option<&'r Owners>,
    pub progress: &'r Progress,
    pub delta: bool,
    /// Whether one thing that cannot be restored costs only itself.
    pub keep_going: bool,
    /// Whether attributes that the snapshot does not have are to go.
    pub strip: bool,
    pub counters: Counters,
    pub problems: Mutex<Vec<Problem>>,
    /// Paths of incomplete files.
    pub aside: Mutex<Vec<Vec<u8>>>,
    /// Paths of which nothing, or not all, was restored.
    pub failed: Mutex<HashSet<Vec<u8>>>,
    /// Packs for which the index was read again; held while it is, so that not all do.
    pub sought: Mutex<HashSet<[u8; 16]>>,
    /// What is to be had from another repository.
    pub missing: Mutex<Vec<Missing>>,
}

/// One of the repositories that content is read from.
pub(super) struct Origin {
    pub repository: Repository,
    pub index: Arc<Index>,
    /// 0: the first; else its number in the fallback.
    pub source: usize,
    /// Whether its store does not answer any more.
    pub gone: AtomicBool,
}

impl Origin {
    pub fn new(repository: &Repository, index: Arc<Index>, source: usize) -> Self {
        Self { repository: repository.clone(), index, source, gone: AtomicBool::new(false) }
    }
}

/// A range of a planned file that could not be had.
pub(super) struct Missing {
    pub file: u32,
    pub range: Range<u64>,
    /// Of the extents that the file still waits for.
    pub left: u32,
    pub error: RepoError,
}

/// The first error of several threads.
#[derive(Default)]
pub(super) struct Failure(Mutex<Option<RepoError>>);

impl Failure {
    pub fn set(&self, error: RepoError) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
    }

    pub fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).is_some()
    }

    pub fn into_result(self) -> Result<()> {
        self.0.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }
}

impl Fetcher<'_> {
    pub fn directory_metadata(&self, place: &Place, path: &[u8], meta: &Metadata) -> Result<()> {
        self.allow(path, place.set_metadata(meta, self.owners, false, self.strip))
    }

    /// A file of which not all was restored.
    pub fn fail(&self, path: &[u8], size: u64, what: impl Into<String>) {
        self.counters.files_lost.fetch_add(1, Relaxed);
        self.counters.bytes_lost.fetch_add(size, Relaxed);
        self.failed.lock().unwrap_or_else(|e| e.into_inner()).insert(path.to_vec());
        self.problem(path, what);
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
            let error = loop {
                match source.map(|s| (s.downcast_ref::<io::Error>(), s.source())) {
                    None => return false,
                    Some((Some(io), _)) => break io,
                    Some((None, next)) => source = next,
                }
            };
            let of_all = [
                Errno::NOSPC,
                Errno::DQUOT,
                Errno::ROFS,
                Errno::IO,
                Errno::MFILE,
                Errno::NFILE,
                Errno::NOMEM,
            ];
            Errno::from_io_error(error).is_some_and(|error| of_all.contains(&error))
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

    /// What `wanted` asks for cannot be had here. Another repository may have it; else it costs what
    /// needs it, or all.
    fn miss(
        &self,
        origin: &Origin,
        files: &[Planned],
        wanted: &[Wanted],
        object: &str,
        error: RepoError,
    ) -> Result<()> {
        if let Some(fallback) = self.fallback.filter(|_| Fallback::helps_with(&error)) {
            if !error.is_about_an_object() {
                origin.gone.store(true, Relaxed);
            }
            fallback.lacks(origin.source, object, &error);
            let mut missing = self.missing.lock().unwrap_or_else(|e| e.into_inner());
            for wanted in wanted {
                let extent = &wanted.extent;
                let range = extent.offset..extent.offset + u64::from(extent.length);
                let error = error.repeat();
                missing.push(Missing { file: wanted.file, range, left: 1, error });
            }
            return Ok(());
        }
        if !self.goes_on(&error) {
            return Err(error);
        }
        self.lose(files, wanted, &error)
    }

    /// What `wanted` asks for cannot be had; their files are finished without it.
    pub fn lose(&self, files: &[Planned], wanted: &[Wanted], error: &RepoError) -> Result<()> {
        for planned in wanted.iter().filter_map(|wanted| files.get(wanted.file as usize)) {
            planned.lost.get_or_init(|| error.to_string());
            if planned.left.fetch_sub(1, AcqRel) == 1 {
                self.finish(planned, None)?;
            }
        }
        Ok(())
    }

    /// Fetches all of `wanted`, which is sorted by location. What is nowhere comes last.
    pub fn fetch_all(
        &self,
        origin: &Origin,
        files: &[Planned],
        wanted: &[Wanted],
        count: usize,
    ) -> Result<()> {
        let there = wanted.partition_point(|wanted| wanted.location != NOWHERE);
        let (wanted, nowhere) = wanted.split_at(there);
        for one in nowhere {
            let error = missing_chunk(Kind::Data, &one.extent.chunk, &origin.index);
            self.miss(origin, files, std::slice::from_ref(one), "the index", error)?;
        }
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
                        if let Err(error) = self.fetch(origin, files, range, &mut worker) {
                            failure.set(error);
                        }
                    }
                });
            }
        });
        failure.into_result()
    }

    fn fetch(
        &self,
        origin: &Origin,
        files: &[Planned],
        range: &[Wanted],
        worker: &mut Worker,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (range.first(), range.last()) else { return Ok(()) };
        self.progress.check()?;
        let pack = origin.index.pack(first.location.pack).ok_or_else(|| {
            RepoError::damaged("the index", "it names a pack that it does not list")
        })?;
        let start = u64::from(first.location.offset);
        let end = u64::from(last.location.offset) + u64::from(last.location.length);
        if origin.gone.load(Relaxed) {
            let url = origin.repository.store().url();
            let error = RepoError::new(RepoErrorKind::Store, format!("{url} does not answer"));
            return self.miss(origin, files, range, "the store", error);
        }
        let repository = &origin.repository;
        let read = repository
            .pack_key(pack)
            .and_then(|key| Ok((key, repository.store().read_range(&pack.key(), start..end)?)));
        let (key, bytes) = match read {
            Ok(read) => read,
            Err(error) if error.is_about_an_object() => {
                if error.is_of_a_missing_object() {
                    origin.index.note_missing(first.location.pack);
                }
                // A pack that was cut short has what lies before the cut; what maintenance moved is
                // in another one.
                let mut records = range.chunk_by(|a, b| a.location == b.location);
                if first.location == last.location {
                    return self.fetch_elsewhere(origin, files, range, pack, error, worker);
                }
                return records.try_for_each(|one| self.fetch(origin, files, one, worker));
            }
            Err(error) => return self.miss(origin, files, range, "the store", error),
        };
        self.counters.bytes_fetched.fetch_add(bytes.len() as u64, Relaxed);
        let doubts = origin.repository.doubts(pack)?;
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
            let opened = opened.and_then(|()| {
                if !doubts {
                    return Ok(());
                }
                let (at, id) = (one.location, &one.extent.chunk);
                origin.repository.must_be(pack, at, Kind::Data, id, &worker.content)
            });
            if let Err(error) = opened {
                if !error.is_about_an_object() {
                    return Err(error);
                }
                self.fetch_elsewhere(origin, files, same, pack, error, worker)?;
                continue;
            }
            self.write_all(files, same, &pack.key(), worker)?;
        }
        Ok(())
    }

    /// Places of one chunk whose pack cannot be read: another one may have it by now.
    fn fetch_elsewhere(
        &self,
        origin: &Origin,
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
            let repository = &origin.repository;
            let mut index = repository.index()?;
            let other = |index: &Index| -> Result<bool> {
                let places = index.places(chunk)?;
                let mut packs = places.iter().filter_map(|at| index.pack(at.pack));
                Ok(packs.any(|now| now.id != pack.id))
            };
            if !other(&index).unwrap_or(false) && sought.insert(pack.id) {
                index = match repository.reload_index() {
                    Err(failed) if self.fallback.is_some() && Fallback::helps_with(&failed) => {
                        index
                    }
                    loaded => loaded?,
                };
            }
            drop(sought);
            // What the index cannot tell is nowhere else either.
            other(&index).unwrap_or(false).then(|| repository.read_chunk(Kind::Data, chunk))
        };
        match content {
            Some(Ok(content)) => {
                worker.content = content;
                self.write_all(files, wanted, &pack.key(), worker)
            }
            Some(Err(error)) if !error.is_about_an_object() => {
                self.miss(origin, files, wanted, "the store", error)
            }
            _ => self.miss(origin, files, wanted, &pack.key(), error),
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
        let mut write = || {
            let file = match worker.open.take() {
                Some((number, file)) if number == wanted.file => file,
                _ => self.begin(planned)?,
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

pub(super) fn make_hole(file: &File, from: u64, to: u64) -> io::Result<()> {
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

pub(super) fn display(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
