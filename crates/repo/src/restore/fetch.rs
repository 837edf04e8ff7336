//! The workers of a restore: small things in batches, then ranges of packs.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use rustix::fs::{FallocateFlags, FileType};
use rustix::io::Errno;

use super::place::{OURS, Owners, Place, There, set_metadata};
use super::{Counters, NOWHERE, Planned, Wanted};
use crate::codec::Codec;
use crate::entry::{Body, Entry, EntryKind, Metadata};
use crate::index::{Index, PackInfo};
use crate::repository::{Repository, missing_chunk, open_record};
use crate::session::{CELL, content_id_of_data};
use crate::tree::slice;
use crate::{Compression, Fallback, Kind, Problem, Progress, RepoError, RepoErrorKind, Result};
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
                let written = self.inline(place, bytes).and_then(|(file, at)| {
                    let set = set_metadata(&file, &entry.meta, self.owners, self.strip);
                    at.map_or(Ok(()), |at| at.replace(place))?;
                    Ok(set)
                });
                let set = match written {
                    Err(error) if self.goes_on(&error) => {
                        self.fail(&entry.path, entry.size(), error.to_string());
                        return Ok(());
                    }
                    written => written?,
                };
                self.counters.bytes_written.fetch_add(bytes.len() as u64, Relaxed);
                set.map_err(fail)?;
            }
            EntryKind::Symlink { target } => {
                place.symlink(target, self.delta).map_err(fail)?;
                place.set_metadata(&entry.meta, self.owners, true, false)?;
            }
            kind => {
                let (kind, device) = match kind {
                    EntryKind::CharDevice { rdev } => (FileType::CharacterDevice, *rdev),
                    EntryKind::BlockDevice { rdev } => (FileType::BlockDevice, *rdev),
                    _ => (FileType::Fifo, 0),
                };
                place.special(kind, device, self.delta).map_err(fail)?;
                place.set_metadata(&entry.meta, self.owners, false, false)?;
            }
        }
        self.progress.add_done(entry.size(), 1);
        Ok(())
    }

    /// Writes a short file whole; where, if it is not in its place yet.
    fn inline(&self, place: &Place, bytes: &[u8]) -> Result<(File, Option<Place>)> {
        let there = place.prepare_existing(self.delta)?;
        let write = || {
            let (file, at) = match there {
                There::Nothing => (place.create()?, None),
                There::File => {
                    let file = place.open_existing()?;
                    rustix::fs::fchmod(&file, OURS)?;
                    file.set_len(0)?;
                    (file, None)
                }
                There::Untouchable => {
                    let beside = place.beside();
                    (beside.create()?, Some(beside))
                }
            };
            file.write_all_at(bytes, 0)?;
            Ok((file, at))
        };
        write().map_err(|error| RepoError::io("restore", display(place.display()), error))
    }

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

    /// Ends a file whose last extent was written or lost.
    pub fn finish(&self, planned: &Planned, open: Option<&File>) -> Result<()> {
        self.progress.add_done(0, 1);
        if planned.lost.get().is_none() {
            match self.complete(planned, open) {
                Err(error) if self.goes_on(&error) => {
                    planned.lost.get_or_init(|| error.to_string());
                }
                Err(error) => return Err(error),
                Ok(file) => {
                    let file = file.as_ref().or(open);
                    let Some(file) = file else { return Ok(()) };
                    let set = set_metadata(file, &planned.meta, self.owners, self.strip);
                    let set = set.map_err(|e| RepoError::io("restore", display(&planned.path), e));
                    match planned.over.as_ref().map_or(Ok(()), |over| planned.place.replace(over)) {
                        Ok(()) => return self.allow(&planned.path, set),
                        Err(error) if self.goes_on(&error) => {
                            planned.lost.get_or_init(|| error.to_string());
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        let why = planned.lost.get().map_or("", String::as_str);
        self.allow(&planned.path, self.set_aside(planned, why))
    }

    /// A file that lacks something must not pass for what it was, and what could be had of it may be
    /// all that is left: it stays, under another name.
    /// One that was there before and was not written to is left as it was.
    fn set_aside(&self, planned: &Planned, why: &str) -> Result<()> {
        let begun = *planned.begun.lock().unwrap_or_else(|e| e.into_inner());
        let was_there = planned.exists || planned.over.is_some();
        if !begun {
            let what = if was_there { "left as it was" } else { "lost" };
            self.fail(&planned.path, planned.size, format!("{what}: {why}"));
            return Ok(());
        }
        if !planned.exists {
            // What is missing at the end reads as zeros, like what is missing elsewhere.
            let _ = planned.place.open_existing().and_then(|file| file.set_len(planned.size));
        }
        let over = planned.over.as_ref().unwrap_or(&planned.place);
        let what = match planned.place.set_aside(over)? {
            Some(name) => {
                let above = planned.path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
                let path = [&planned.path[..above], &name].concat();
                self.aside.lock().unwrap_or_else(|e| e.into_inner()).push(path);
                let over = if planned.exists { ", over what was there before" } else { "" };
                format!("incomplete: {why}; what could be had is in {}{over}", display(&name))
            }
            None => format!("lost: {why}"),
        };
        self.fail(&planned.path, planned.size, what);
        Ok(())
    }

    /// Opens a file to write to it: the first time it is created, or made ours alone.
    pub fn begin(&self, planned: &Planned) -> io::Result<File> {
        let mut begun = planned.begun.lock().unwrap_or_else(|e| e.into_inner());
        if !planned.exists && !*begun {
            let file = planned.place.create()?;
            *begun = true;
            if planned.size >= ALLOCATED && planned.dense {
                allocate(&file, planned.size);
            }
            return Ok(file);
        }
        let file = planned.place.open_existing()?;
        if !*begun {
            rustix::fs::fchmod(&file, OURS)?;
            *begun = true;
        }
        Ok(file)
    }

    /// Gives a file its length; the file where it was not open.
    fn complete(&self, planned: &Planned, open: Option<&File>) -> Result<Option<File>> {
        let complete = || {
            let mut opened = None;
            let file = match open {
                Some(file) => file,
                None => {
                    // It has no extent: whatever is there goes.
                    let file = self.begin(planned)?;
                    file.set_len(0)?;
                    opened.insert(file)
                }
            };
            if file.metadata()?.len() != planned.size {
                file.set_len(planned.size)?;
            }
            Ok(opened)
        };
        complete().map_err(|e| RepoError::io("restore", display(&planned.path), e))
    }

    /// Leaves out every range that a file already has, and makes holes where files have holes.
    pub fn without_what_is_right(
        &self,
        origin: &Origin,
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
                        match self.compare(origin, files, group, &mut buffer) {
                            // What cannot be looked at is left alone.
                            Err(error) if self.goes_on(&error) => {
                                if let Err(error) = self.lose(files, group, &error) {
                                    failure.set(error);
                                }
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
        origin: &Origin,
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
        let file = planned.place.open_existing().map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        let mut end = 0;
        let gaps =
            group.iter().map(|w| w.extent.offset..w.extent.offset + u64::from(w.extent.length));
        let mut holes = Vec::new();
        for range in gaps.chain(std::iter::once(planned.size..planned.size)) {
            if range.start > end && end < length {
                holes.push(end..range.start.min(length));
            }
            end = range.end;
        }
        if !holes.is_empty() {
            let file = self.begin(planned).map_err(fail)?;
            for hole in holes {
                make_hole(&file, hole.start, hole.end).map_err(fail)?;
            }
        }
        let mut missing = Vec::new();
        let mut cell = (u64::MAX, false);
        for wanted in group {
            let extent = &wanted.extent;
            // Of a part of a chunk only the cell that it is in can tell.
            let begin = extent.offset - extent.offset % CELL as u64;
            let whole = (planned.size.saturating_sub(begin)).min(CELL as u64);
            if cell.0 != begin && u64::from(extent.length) < whole {
                cell = (begin, self.is_cell(origin, planned, &file, begin, buffer));
            }
            buffer.resize(extent.length as usize, 0);
            let there = cell == (begin, true)
                || extent.chunk_offset == 0
                    && extent.offset + u64::from(extent.length) <= length
                    && file.read_exact_at(buffer, extent.offset).is_ok()
                    && content_id_of_data(&origin.repository, buffer) == extent.chunk;
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

    /// Whether a file has the cell that begins at `begin` already.
    fn is_cell(
        &self,
        origin: &Origin,
        planned: &Planned,
        file: &File,
        begin: u64,
        buffer: &mut Vec<u8>,
    ) -> bool {
        let Ok(at) = planned.cells.binary_search_by_key(&begin, |(begin, _)| *begin) else {
            return false;
        };
        buffer.resize(planned.size.saturating_sub(begin).min(CELL as u64) as usize, 0);
        file.read_exact_at(buffer, begin).is_ok()
            && planned.cells.get(at).is_some_and(|(_, cell)| {
                content_id_of_data(&origin.repository, buffer).0.starts_with(cell)
            })
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

/// Asks for the blocks of a file at once, so that it lies in one piece. A file system that cannot
/// do it, or has no room, says so when the bytes are written.
fn allocate(file: &File, size: u64) {
    if let Err(error) = rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
        tracing::trace!(%error, "not allocated ahead");
    }
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
