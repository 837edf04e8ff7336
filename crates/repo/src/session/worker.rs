//! What a worker does with the content of files.
//!
//! What is read goes to every lane that wants it. Each has its own boundaries and ids; where two
//! have the same piece all the same (cells, groups, files of one chunk), it is compressed once.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};

use super::content::{
    CELL, Chunking, ContentError, Contents, File, GROUP, GROUPED, INLINE_BESIDE_MEMBERS, Job,
    Known, LargeFile, Made, Outcome, REGION, Reader, dropped,
};
use super::grid::Region;
use super::lanes::LaneSet;
use super::sink::{Encoded, Shared, Sink};
use crate::chunker::MAX;
use crate::entry::{Body, Entry, EntryKind, Extent, FileContent, INLINE_LIMIT, LeafRef, Member};
use crate::tree::{ChunkSink, ExtentLeaf, PageHashes, encode_leaf};
use crate::{Kind, Progress, RepoError, RepoErrorKind, Result};

/// Extents that an entry carries itself.
const EXTENTS_IN_ENTRY: usize = 64;

/// Opens a grid that is larger than one region and makes its jobs.
pub(super) fn large_file(file: File) -> Result<Vec<Job>, Box<(Unopened, ContentError)>> {
    let File { ticket, entry, known, content, results, .. } = file;
    let reader = match content.open() {
        Ok(reader) => reader,
        Err(error) => return Err(Box::new((Unopened { ticket, entry, known, results }, error))),
    };
    let regions = reader.size().div_ceil(REGION).max(1) as usize;
    let large = Arc::new(LargeFile {
        ticket,
        path: entry.path.clone(),
        entry: Mutex::new(Some(entry)),
        known,
        reader,
        leaves: Mutex::new(vec![Vec::new(); regions]),
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
    pub known: Known,
    pub results: Sender<(u64, Outcome)>,
}

pub(super) struct Worker {
    /// Of each lane.
    sinks: Vec<Sink>,
    progress: Arc<Progress>,
    buffer: Vec<u8>,
    encoded: Encoded,
}

/// How far one lane has cut what is in the buffer.
struct Cut {
    lane: usize,
    from: usize,
    extents: Vec<Extent>,
}

/// Fails all lanes when the thread that holds it panics, so that nobody waits for it for ever.
struct FailOnPanic(Vec<Arc<Shared>>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for lane in &self.0 {
                lane.fail(RepoError::new(RepoErrorKind::Io, "a thread of the backup panicked"));
            }
        }
    }
}

impl Worker {
    pub fn new(lanes: &[Arc<Shared>], progress: &Arc<Progress>) -> Self {
        Self {
            sinks: lanes.iter().map(|lane| Sink::new(lane.clone())).collect(),
            progress: progress.clone(),
            buffer: Vec::new(),
            encoded: Encoded::default(),
        }
    }

    pub fn run(mut self, jobs: &Receiver<Job>) {
        let _guard = FailOnPanic(self.sinks.iter().map(|sink| sink.shared.clone()).collect());
        for job in jobs {
            // After a failure the queue is emptied, so that nobody waits for ever.
            if self.progress.is_cancelled() || !self.sinks.iter().any(|s| s.shared.is_alive()) {
                continue;
            }
            self.encoded.clear();
            let done = match job {
                Job::One(file) => self.one(*file),
                Job::Group(files) => self.group(files),
                Job::Region(file, number) => self.region(&file, number),
            };
            if let Err(error) = done {
                self.sinks.iter().for_each(|sink| sink.shared.fail(error.repeat()));
            }
        }
    }

    /// The lanes that go on and do not have a file from before.
    fn wanting(&self, known: &Known) -> LaneSet {
        let mut wanting = LaneSet::NONE;
        for (lane, sink) in self.sinks.iter().enumerate() {
            if sink.shared.is_alive() && known.get(lane).is_none_or(Option::is_none) {
                wanting.add(lane);
            }
        }
        wanting
    }

    /// Those of `lanes` that still go on.
    fn alive(&mut self, lanes: LaneSet) -> impl Iterator<Item = (usize, &mut Sink)> {
        let sinks = self.sinks.iter_mut().enumerate();
        sinks.filter(move |(lane, sink)| lanes.has(*lane) && sink.shared.is_alive())
    }

    fn count_read(&self, lanes: LaneSet, bytes: usize) {
        self.count_cell(lanes, bytes);
        self.progress.add_done(bytes as u64, 0);
    }

    /// Counts what was read of a region, which counts as done as a whole.
    fn count_cell(&self, lanes: LaneSet, bytes: usize) {
        for (lane, sink) in self.sinks.iter().enumerate() {
            if lanes.has(lane) {
                sink.shared.count_read(bytes as u64);
            }
        }
    }

    /// Hands back an entry, or says why there is none.
    fn deliver(
        &self,
        ticket: u64,
        mut entry: Entry,
        mut known: Known,
        results: &Sender<(u64, Outcome)>,
        contents: Result<Contents, ContentError>,
    ) -> Result<()> {
        let outcome = match contents {
            Ok(mut contents) => {
                self.progress.add_done(0, 1);
                if let [content] = contents.as_mut_slice() {
                    content.take().map_or(Outcome::Dropped, |content| {
                        entry.kind = EntryKind::File(content);
                        Outcome::Stored(Made::Same(entry))
                    })
                } else {
                    known.resize(contents.len(), None);
                    for (slot, content) in known.iter_mut().zip(contents) {
                        if let Some(content) = content {
                            let kind = EntryKind::File(content);
                            let (path, meta) = (entry.path.clone(), entry.meta.clone());
                            *slot = Some(Entry { path, meta, kind });
                        }
                    }
                    Outcome::Stored(Made::Each(known))
                }
            }
            Err(error) => {
                let wanting = self.wanting(&known);
                let lanes = self.sinks.iter().enumerate().filter(|(lane, _)| wanting.has(*lane));
                let outcome = dropped(lanes.map(|(_, sink)| &*sink.shared), &entry, error)?;
                if known.iter().any(Option::is_some) {
                    Outcome::Stored(Made::Each(known))
                } else {
                    outcome
                }
            }
        };
        // Nobody waits for it only when the session is being given up.
        let _ = results.send((ticket, outcome));
        Ok(())
    }

    fn one(&mut self, file: File) -> Result<()> {
        let File { ticket, mut entry, known, content, chunking, results, .. } = file;
        let wanting = self.wanting(&known);
        let stored = match content.open() {
            Ok(reader) => self.whole(reader.as_ref(), chunking, &mut entry, wanting),
            Err(error) => Err(error),
        };
        self.deliver(ticket, entry, known, &results, stored)
    }

    /// Stores a file of any size.
    fn whole(
        &mut self,
        reader: &dyn Reader,
        chunking: Chunking,
        entry: &mut Entry,
        wanting: LaneSet,
    ) -> Result<Contents, ContentError> {
        self.encoded.clear();
        let (size, contents) = match chunking {
            Chunking::Grid => self.grid(reader, &entry.path, wanting)?,
            Chunking::ContentDefined => self.cut(reader, wanting)?,
        };
        reader.finish(entry, size)?;
        Ok(contents)
    }

    /// Content-defined chunks, or inline content where it is short; and the size.
    fn cut(
        &mut self,
        reader: &dyn Reader,
        wanting: LaneSet,
    ) -> Result<(u64, Contents), ContentError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let cut = self.cut_through(reader, wanting, &mut buffer);
        self.buffer = buffer;
        cut
    }

    fn cut_through(
        &mut self,
        reader: &dyn Reader,
        wanting: LaneSet,
        buffer: &mut Vec<u8>,
    ) -> Result<(u64, Contents), ContentError> {
        let mut cuts: Vec<Cut> = (0..self.sinks.len())
            .filter(|lane| wanting.has(*lane))
            .map(|lane| Cut { lane, from: 0, extents: Vec::new() })
            .collect();
        let ranges = reader.data_ranges();
        let sparse = ranges.first().is_none_or(|r| r.start > 0 || r.end != u64::MAX);
        let mut size = if sparse { reader.size() } else { 0 };
        for range in ranges {
            let end = range.end;
            // Of the first byte in the buffer.
            let mut at = range.start;
            let mut filled = 0;
            cuts.iter_mut().for_each(|cut| cut.from = 0);
            loop {
                // Each lane has cut until less than the longest chunk was left: there is room for
                // as much again.
                let done = cuts.iter().map(|cut| cut.from).min().unwrap_or(filled);
                buffer.copy_within(done..filled, 0);
                filled -= done;
                at += done as u64;
                cuts.iter_mut().for_each(|cut| cut.from -= done);
                // A small file needs no large buffer; what it may have grown is one byte more.
                let wanted = (end.saturating_sub(at + filled as u64)).min(2 * MAX as u64) as usize;
                let expected = (reader.size().saturating_sub(at) as usize).saturating_add(1);
                let room = wanted.min(2 * MAX - filled).min(expected.max(64 << 10));
                if buffer.len() < filled + room {
                    buffer.resize(filled + room, 0);
                }
                let read =
                    reader.read_at(at + filled as u64, &mut buffer[filled..filled + room])?;
                filled += read;
                self.count_read(wanting, read);
                let ended = read < room || at + filled as u64 >= end;
                if at == 0 && ended && !sparse && filled > 0 && filled as u64 <= INLINE_LIMIT {
                    let content = FileContent::inline(&buffer[..filled]);
                    return Ok((filled as u64, self.same(wanting, &content)));
                }
                for cut in &mut cuts {
                    let Some(sink) = self.sinks.get_mut(cut.lane) else { continue };
                    let window = (buffer.as_slice(), at, filled, ended);
                    if let Err(error) = cut_window(sink, cut, window, &mut self.encoded) {
                        sink.shared.fail(error);
                        cut.from = filled;
                    }
                }
                if ended {
                    break;
                }
            }
            size = size.max(at + filled as u64);
        }
        let mut contents: Contents = vec![None; self.sinks.len()];
        for cut in cuts {
            let Some(sink) = self.sinks.get_mut(cut.lane).filter(|s| s.shared.is_alive()) else {
                continue;
            };
            match body(sink, cut.extents) {
                Ok(body) => contents[cut.lane] = Some(FileContent { size, body }),
                Err(error) => sink.shared.fail(error),
            }
        }
        Ok((size, contents))
    }

    /// Those of `lanes` that keep a file of this size in the tree itself. Where small files are found
    /// again by their content, only the smallest are: a node is written anew for each change of
    /// one entry, with all that lies in it.
    fn inline(&self, lanes: LaneSet, size: u64) -> LaneSet {
        let mut inline = LaneSet::NONE;
        for (lane, sink) in self.sinks.iter().enumerate().filter(|(lane, _)| lanes.has(*lane)) {
            let limit = match sink.shared.repository.has_members() {
                true => INLINE_BESIDE_MEMBERS,
                false => INLINE_LIMIT,
            };
            if size <= limit {
                inline.add(lane);
            }
        }
        inline
    }

    /// The same content for all of `lanes`.
    fn same(&self, lanes: LaneSet, content: &FileContent) -> Contents {
        let all = 0..self.sinks.len();
        all.map(|lane| lanes.has(lane).then(|| content.clone())).collect()
    }

    /// A grid of one region; and the size.
    fn grid(
        &mut self,
        reader: &dyn Reader,
        path: &[u8],
        wanting: LaneSet,
    ) -> Result<(u64, Contents), ContentError> {
        let regions = reader.size().div_ceil(REGION) as usize;
        let leaves = (0..regions)
            .map(|number| self.grid_region(reader, path, number, wanting))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((reader.size(), self.of_leaves(reader.size(), wanting, &leaves)))
    }

    /// The content of a grid from the leaves of its regions; a lane that failed on the way lacks some.
    fn of_leaves(&self, size: u64, wanting: LaneSet, leaves: &[Vec<Option<LeafRef>>]) -> Contents {
        let of = |lane: usize| -> Option<FileContent> {
            let leaves = leaves.iter().map(|of_lanes| *of_lanes.get(lane)?);
            let leaves: Option<Vec<LeafRef>> = leaves.collect();
            wanting.has(lane).then_some(FileContent { size, body: Body::Leaves(leaves?) })
        };
        (0..self.sinks.len()).map(of).collect()
    }

    /// The leaf of one region in each lane.
    fn grid_region(
        &mut self,
        reader: &dyn Reader,
        path: &[u8],
        number: usize,
        wanting: LaneSet,
    ) -> Result<Vec<Option<LeafRef>>, ContentError> {
        if self.buffer.len() < CELL {
            self.buffer.resize(CELL, 0);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let leaves = self.grid_cells(reader, path, number, wanting, &mut buffer);
        self.buffer = buffer;
        leaves
    }

    fn grid_cells(
        &mut self,
        reader: &dyn Reader,
        path: &[u8],
        number: usize,
        wanting: LaneSet,
        buffer: &mut [u8],
    ) -> Result<Vec<Option<LeafRef>>, ContentError> {
        let start = number as u64 * REGION;
        let length = (start + REGION).min(reader.size()).saturating_sub(start);
        let mut regions: Vec<Option<Region>> = Vec::new();
        regions.resize_with(self.sinks.len(), || None);
        for (lane, sink) in self.alive(wanting) {
            let shared = sink.shared.clone();
            match shared.parent.region(&shared.repository, shared.index(), path, number) {
                Ok(before) => regions[lane] = Some(Region::new(sink, length, before)),
                Err(error) => shared.fail(error),
            }
        }
        let count = length.div_ceil(CELL as u64) as usize;
        let mut cells = vec![LaneSet::NONE; count];
        for (lane, region) in regions.iter().enumerate() {
            let Some(region) = region else { continue };
            let read = match reader.changed(lane) {
                Some(changed) => region.to_read(start, changed),
                None => vec![true; count],
            };
            for (cell, _) in cells.iter_mut().zip(read).filter(|(_, read)| *read) {
                cell.add(lane);
            }
        }
        let cells: Vec<(usize, LaneSet)> =
            cells.into_iter().enumerate().filter(|(_, lanes)| !lanes.is_empty()).collect();
        self.take_cells(reader, number, &cells, &mut regions, buffer)?;
        self.progress.add_done(length, 0);
        let mut refs = vec![None; self.sinks.len()];
        for lane in 0..self.sinks.len() {
            let mut only = LaneSet::NONE;
            only.add(lane);
            let mut round = 0;
            while let Some(sink) = self.sinks.get_mut(lane).filter(|s| s.shared.is_alive()) {
                let Some(region) = regions.get_mut(lane).and_then(Option::as_mut) else { break };
                let again = match region.again(sink, round) {
                    Ok(again) => again,
                    Err(error) => {
                        sink.shared.fail(error);
                        break;
                    }
                };
                if again.is_empty() {
                    let stored = regions[lane].take().map(|region| region.finish(sink));
                    match stored {
                        Some(Ok(id)) => refs[lane] = Some(LeafRef { id, offset: start }),
                        Some(Err(error)) => sink.shared.fail(error),
                        None => {}
                    }
                    break;
                }
                let again: Vec<_> = again.into_iter().map(|cell| (cell, only)).collect();
                self.take_cells(reader, number, &again, &mut regions, buffer)?;
                round += 1;
            }
        }
        reader.release(start..start + length);
        Ok(refs)
    }

    /// Reads cells of a region, each for the lanes that want it.
    fn take_cells(
        &mut self,
        reader: &dyn Reader,
        number: usize,
        cells: &[(usize, LaneSet)],
        regions: &mut [Option<Region>],
        buffer: &mut [u8],
    ) -> Result<(), ContentError> {
        let start = number as u64 * REGION;
        let end = (start + REGION).min(reader.size());
        for (cell_number, wanting) in cells {
            let at = start + (cell_number * CELL) as u64;
            let length = end.saturating_sub(at).min(CELL as u64) as usize;
            let cell = &mut buffer[..length];
            let read = reader.read_at(at, cell)?;
            // A grid has the size it said; what is not there any more reads as zeros.
            cell[read..].fill(0);
            self.count_cell(*wanting, length);
            let zero = is_zero(cell);
            let mut encoded = std::mem::take(&mut self.encoded);
            // A cell that is read again may hold something else by now.
            encoded.clear();
            for (lane, sink) in self.alive(*wanting) {
                let Some(region) = regions.get_mut(lane).and_then(Option::as_mut) else { continue };
                if let Err(error) = region.take(sink, *cell_number, cell, zero, at, &mut encoded) {
                    sink.shared.fail(error);
                }
            }
            self.encoded = encoded;
            // A lane that has nothing to compare with takes each cell whole, and only once.
            if regions.iter().flatten().all(Region::is_whole) {
                reader.release(at..at + length as u64);
            }
        }
        Ok(())
    }

    fn region(&mut self, file: &LargeFile, number: usize) -> Result<()> {
        let failed = || file.failed.lock().unwrap_or_else(|e| e.into_inner());
        let wanting = self.wanting(&file.known);
        if failed().is_none() {
            match self.grid_region(file.reader.as_ref(), &file.path, number, wanting) {
                Ok(of_lanes) => {
                    let mut leaves = file.leaves.lock().unwrap_or_else(|e| e.into_inner());
                    if let Some(slot) = leaves.get_mut(number) {
                        *slot = of_lanes;
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
        let contents = match failed().take() {
            Some(error) => Err(error),
            None => {
                let size = file.reader.size();
                file.reader.finish(&mut entry, size).map(|()| {
                    let leaves = file.leaves.lock().unwrap_or_else(|e| e.into_inner());
                    self.of_leaves(size, wanting, &leaves)
                })
            }
        };
        self.deliver(file.ticket, entry, file.known.clone(), &file.results, contents)
    }

    fn group(&mut self, files: Vec<File>) -> Result<()> {
        let mut group = Vec::with_capacity((GROUP + GROUPED) as usize);
        let mut members: Vec<Grouped> = Vec::new();
        for file in files {
            let File { ticket, mut entry, known, met, content, chunking, results } = file;
            let reader = match content.open() {
                Ok(reader) => reader,
                Err(error) => {
                    self.deliver(ticket, entry, known, &results, Err(error))?;
                    continue;
                }
            };
            let wanting = self.wanting(&known);
            let plain = reader.data_ranges().first() == Some(&(0..u64::MAX));
            // Files that grew since they were listed must not make the group too long for a chunk.
            let room = GROUP + GROUPED - (group.len() as u64).min(GROUP + GROUPED);
            if reader.size() > GROUPED || reader.size() >= room || !plain {
                let stored = self.whole(reader.as_ref(), chunking, &mut entry, wanting);
                self.deliver(ticket, entry, known, &results, stored)?;
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
                    self.deliver(ticket, entry, known, &results, Err(error.into()))?;
                    continue;
                }
            };
            if chunking == Chunking::ContentDefined && read == room {
                group.truncate(start);
                let stored = self.whole(reader.as_ref(), chunking, &mut entry, wanting);
                self.deliver(ticket, entry, known, &results, stored)?;
                continue;
            }
            let size = if chunking == Chunking::Grid { room } else { read };
            group[start + read..].fill(0);
            group.truncate(start + size);
            self.count_read(wanting, read);
            if let Err(error) = reader.finish(&mut entry, size as u64) {
                group.truncate(start);
                self.deliver(ticket, entry, known, &results, Err(error))?;
                continue;
            }
            let inline = self.inline(wanting, size as u64);
            let contents = match inline {
                LaneSet::NONE => vec![None; self.sinks.len()],
                _ => self.same(inline, &FileContent::inline(&group[start..])),
            };
            if inline == wanting {
                group.truncate(start);
                self.deliver(ticket, entry, known, &results, Ok(contents))?;
                continue;
            }
            let range = start..start + size;
            let hashes = vec![None; self.sinks.len()];
            let member =
                Grouped { ticket, entry, known, met, results, range, wanting, contents, hashes };
            members.push(member);
        }
        self.store_group(&group, &mut members);
        for Grouped { ticket, entry, known, results, contents, .. } in members {
            self.deliver(ticket, entry, known, &results, Ok(contents))?;
        }
        Ok(())
    }

    /// Stores the files of a group as one chunk in each lane.
    fn store_group(&mut self, group: &[u8], members: &mut [Grouped]) {
        self.encoded.clear();
        for (lane, sink) in self.sinks.iter_mut().enumerate() {
            if !sink.shared.is_alive() {
                continue;
            }
            for member in members.iter_mut().filter(|member| member.wants(lane)) {
                let met = member.met.get(lane).copied().unwrap_or(0);
                let (found, hash) = sink.shared.member(&group[member.range.clone()], met);
                member.contents[lane] = found;
                member.hashes[lane] = hash;
            }
            let wants = |member: &&Grouped| member.wants(lane);
            let wanted = members.iter().filter(wants).count();
            if wanted == 0 {
                continue;
            }
            let all = wanted == members.len();
            // A lane that has some of the files from before, or finds them, has a group of the others.
            let mut own = Vec::new();
            for member in members.iter().filter(|member| !all && member.wants(lane)) {
                own.extend_from_slice(&group[member.range.clone()]);
            }
            let stored = if all {
                sink.store_data(group, 0, &mut self.encoded)
            } else {
                sink.store(Kind::Data, &own)
            };
            let chunk = match stored {
                Ok(chunk) => chunk,
                Err(error) => {
                    sink.shared.fail(error);
                    continue;
                }
            };
            let mut at = 0;
            for member in members.iter_mut().filter(|member| member.wants(lane)) {
                let length = member.range.len() as u32;
                let extent = Extent { offset: 0, length, chunk, chunk_offset: at };
                let body = match member.hashes[lane] {
                    Some(hash) => Body::Member(Box::new(Member { extent, hash })),
                    None => Body::Extents(vec![extent]),
                };
                let size = u64::from(length);
                member.contents[lane] = Some(FileContent { size, body });
                at += length;
            }
        }
    }
}

/// A file of a group.
struct Grouped {
    ticket: u64,
    entry: Entry,
    known: Known,
    met: Vec<u64>,
    results: Sender<(u64, Outcome)>,
    /// Of its content in the group.
    range: Range<usize>,
    wanting: LaneSet,
    contents: Contents,
    /// Of each lane, the hash by which it is found again.
    hashes: Vec<Option<[u8; 16]>>,
}

impl Grouped {
    /// Whether a lane wants its content stored, which it has not found.
    fn wants(&self, lane: usize) -> bool {
        self.wanting.has(lane) && self.contents.get(lane).is_some_and(Option::is_none)
    }
}

/// Cuts what a lane has not cut yet of a buffer, whose first byte is the `at`-th of the file, until
/// too little is left to be sure of the next boundary.
fn cut_window(
    sink: &mut Sink,
    cut: &mut Cut,
    (buffer, at, filled, ended): (&[u8], u64, usize, bool),
    encoded: &mut Encoded,
) -> Result<()> {
    while cut.from < filled && (ended || filled - cut.from >= MAX) {
        let rest = buffer.get(cut.from..filled).unwrap_or_default();
        let length = sink.shared.chunker.cut(rest);
        let offset = at + cut.from as u64;
        let chunk = sink.store_data(&rest[..length], offset, encoded)?;
        cut.extents.push(Extent { offset, length: length as u32, chunk, chunk_offset: 0 });
        cut.from += length;
    }
    Ok(())
}

/// Many extents go to leaves of their own.
fn body(sink: &mut Sink, extents: Vec<Extent>) -> Result<Body> {
    if extents.len() <= EXTENTS_IN_ENTRY {
        return Ok(Body::Extents(extents));
    }
    let mut leaves = Vec::new();
    for part in extents.chunks(EXTENTS_IN_ENTRY) {
        let offset = part.first().map_or(0, |e| e.offset);
        let extents = part.iter().map(|e| Extent { offset: e.offset - offset, ..*e }).collect();
        let leaf = ExtentLeaf { extents, cells: Vec::new(), pages: PageHashes::None };
        let id = sink.store(Kind::Leaf, &encode_leaf(&leaf))?;
        leaves.push(LeafRef { id, offset });
    }
    Ok(Body::Leaves(leaves))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
