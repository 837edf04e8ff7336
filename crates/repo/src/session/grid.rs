//! A region of a grid on its way into one lane: which pages are new, and where all of them lie.
//!
//! A cell of which half or more changed is stored whole. Of the others the changed pages are packed
//! together, in the order of the file, into *run* chunks of up to 1 MiB; the rest stays where it is.
//!
//! A chunk of which pages have died is still fetched whole. So that a restore never reads more than
//! twice what it needs, pages of the chunks with the least left alive are treated as if they had
//! changed: they move together into new run chunks, and the old ones are not referred to any more.
//! This is what a log-structured file system does with its segments, and it costs as little: to
//! store the cells whole instead would cost a hundred pages for each one that changed. What moves is
//! chosen from the snapshot before while there is some room left; should what changed since be too
//! much for that, cells are read again from the source. Nothing is read from the store.

use std::collections::HashMap;
use std::ops::Range;

use super::content::{CELL, REGION};
use super::parent::{Before, Layer};
use super::sink::{Encoded, Sink};
use crate::entry::Extent;
use crate::id::{PAGE, PAGE_HASH};
use crate::tree::{
    ChunkSink, ExtentLeaf, Mapped, PageHash, PageHashes, encode_change, encode_leaf,
};
use crate::{Kind, ObjectId, Result};

/// Page hashes that a leaf carries itself. Bytes.
const HASHES_IN_LEAF: usize = 4096;
/// Pages of a cell.
const CELL_PAGES: usize = CELL / PAGE;
/// Pages of a run.
const RUN_PAGES: usize = CELL / PAGE;
/// What a restore may read for each byte that it needs, in hundredths.
const MOST_READ: usize = 200;
/// From where on pages move before it comes to that.
const MOVED_FROM: usize = 180;
/// Chunks of a region that are no cells. Many small backups would make many small runs.
const MOST_RUNS: usize = 192;
/// How often cells are read again before all of them are stored whole: a source may change while it
/// is read.
const ROUNDS: usize = 3;

/// Where a page lies: the number of its chunk, and its page there. Nothing for a hole.
type Place = Option<(u32, u32)>;

/// A chunk that pages lie in.
#[derive(Debug, Clone, Copy)]
struct Used {
    id: ObjectId,
    /// All of it, in pages.
    pages: u32,
    /// Pages of the region that lie in it.
    live: u32,
}

/// What is to become of a page, whatever its hash says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Moves,
}

pub(super) struct Region {
    /// Bytes.
    length: u64,
    before: Option<Before>,
    places: Vec<Place>,
    hashes: Vec<PageHash>,
    cells: Vec<[u8; 16]>,
    chunks: Vec<Used>,
    numbers: HashMap<ObjectId, u32>,
    fates: Vec<Fate>,
    /// Pages with another hash than before.
    fresh: Vec<bool>,
    /// Pages that were there before, with the same length.
    known: usize,
    /// Whether any page lies elsewhere than before.
    moved: bool,
    whole: bool,
    /// New pages that are not stored yet, and which they are.
    run: Vec<u8>,
    run_pages: Vec<usize>,
    scratch: Vec<u8>,
}

/// Whether the extents of a leaf can be told page by page.
fn is_by_page(extent: &Extent, length: u64) -> bool {
    let page = PAGE as u64;
    let end = extent.offset + u64::from(extent.length);
    extent.offset.is_multiple_of(page)
        && u64::from(extent.chunk_offset).is_multiple_of(page)
        && (end.is_multiple_of(page) || end == length)
        && end <= length
}

impl Region {
    /// A region of so many bytes, with what the snapshot before has of it.
    pub fn new(sink: &Sink, length: u64, before: Option<Before>) -> Self {
        let length = length.min(REGION);
        let pages = length.div_ceil(PAGE as u64) as usize;
        let before = before.filter(|b| b.leaf.extents.iter().all(|e| is_by_page(e, b.length)));
        let mut it = Self {
            length,
            before: None,
            places: vec![None; pages],
            hashes: vec![PageHash::default(); pages],
            cells: vec![[0; 16]; pages.div_ceil(CELL_PAGES)],
            chunks: Vec::new(),
            numbers: HashMap::new(),
            fates: vec![Fate::Stays; pages],
            fresh: vec![true; pages],
            known: 0,
            moved: false,
            whole: before.is_none(),
            run: Vec::new(),
            run_pages: Vec::new(),
            scratch: Vec::new(),
        };
        if let Some(before) = &before {
            it.take_over(sink, before);
        }
        it.before = before;
        it
    }

    fn take_over(&mut self, sink: &Sink, before: &Before) {
        // A last page that was short or is short now is another one.
        let whole_pages = (before.length.min(self.length) / PAGE as u64) as usize;
        self.known = if before.length == self.length { self.places.len() } else { whole_pages };
        let lengths: HashMap<ObjectId, u32> = match &before.leaf.pages {
            PageHashes::Mapped(mapped) => mapped.chunks.iter().copied().collect(),
            _ => HashMap::new(),
        };
        for (slot, hash) in self.hashes.iter_mut().zip(&before.hashes).take(self.known) {
            *slot = *hash;
        }
        self.fresh.iter_mut().take(self.known).for_each(|fresh| *fresh = false);
        for (slot, cell) in self.cells.iter_mut().zip(&before.leaf.cells) {
            *slot = *cell;
        }
        for extent in &before.leaf.extents {
            let (from, at) = (extent.offset as usize / PAGE, extent.chunk_offset / PAGE as u32);
            let pages = (extent.length as usize).div_ceil(PAGE);
            // A leaf without lengths has cells alone.
            let length = lengths.get(&extent.chunk).copied().unwrap_or(at + pages as u32);
            let held = self.numbers.contains_key(&extent.chunk)
                || sink.shared.index().holds(&extent.chunk);
            for page in from..(from + pages).min(self.known) {
                if held {
                    self.put(page, extent.chunk, length, at + (page - from) as u32);
                } else if let Some(fate) = self.fates.get_mut(page) {
                    *fate = Fate::Moves;
                }
            }
        }
        self.moved = false;
        self.choose(MOVED_FROM);
    }

    /// Says where a page lies from now on.
    fn put(&mut self, page: usize, chunk: ObjectId, pages: u32, at: u32) {
        self.forget(page);
        let number = *self.numbers.entry(chunk).or_insert_with(|| {
            self.chunks.push(Used { id: chunk, pages, live: 0 });
            (self.chunks.len() - 1) as u32
        });
        if let Some(used) = self.chunks.get_mut(number as usize) {
            used.live += 1;
            used.pages = used.pages.max(pages);
        }
        if let Some(slot) = self.places.get_mut(page) {
            *slot = Some((number, at));
        }
        self.moved = true;
    }

    /// Takes a page from where it lies.
    fn forget(&mut self, page: usize) {
        let Some((number, _)) = self.places.get_mut(page).and_then(Option::take) else { return };
        if let Some(used) = self.chunks.get_mut(number as usize) {
            used.live -= 1;
        }
        self.moved = true;
    }

    /// Whether each cell is stored as it is: none is read a second time.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Which cells have to be read, when nothing but `changed` of the file, in which the region begins
    /// at `start`, may be something else than before: those, and those of which pages move or of which
    /// the snapshot before does not have all.
    pub fn to_read(&self, start: u64, changed: &[Range<u64>]) -> Vec<bool> {
        let before = self.before.as_ref().map_or(0, |before| before.leaf.cells.len());
        let cell = |number: usize| {
            let pages = number * CELL_PAGES..((number + 1) * CELL_PAGES).min(self.fates.len());
            let from = start + (number * CELL) as u64;
            let to = from + CELL as u64;
            let after = changed.partition_point(|range| range.end <= from);
            self.whole
                || number >= before
                || pages.end > self.known
                || self.fates.get(pages).is_none_or(|fates| fates.contains(&Fate::Moves))
                || changed.get(after).is_some_and(|range| range.start < to)
        };
        (0..self.cells.len()).map(cell).collect()
    }

    /// Takes a cell as it was read. `file_at` is where it lies in the file that `encoded` is about.
    pub fn take(
        &mut self,
        sink: &mut Sink,
        number: usize,
        cell: &[u8],
        zero: bool,
        file_at: u64,
        encoded: &mut Encoded,
    ) -> Result<()> {
        let first = number * CELL_PAGES;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let id = sink.hash_cell(cell, &mut scratch);
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&id.0[..16]);
        let (mut stored, mut changed) = (0, false);
        for (page, hash) in (first..).zip(scratch.as_chunks::<PAGE_HASH>().0) {
            let Some(slot) = self.hashes.get_mut(page) else { break };
            let fresh = self.fresh.get(page) == Some(&true);
            if slot != hash || (fresh && page >= self.known && self.places[page].is_none()) {
                *slot = *hash;
                self.fresh[page] = true;
                self.fates[page] = Fate::Moves;
                changed = true;
            }
            stored += usize::from(self.fates[page] == Fate::Moves);
        }
        self.scratch = scratch;
        let same = self.cells.get(number) == Some(&prefix);
        if let Some(slot) = self.cells.get_mut(number) {
            *slot = prefix;
        }
        let pages = cell.len().div_ceil(PAGE);
        if zero {
            for page in first..first + pages {
                self.forget(page);
                self.fates[page] = Fate::Stays;
            }
            return Ok(());
        }
        if stored == 0 && same && !self.whole {
            return Ok(());
        }
        // Hashes that are all the same under another id are a collision.
        let collided = !same && !changed;
        let whole = self.whole || collided || stored * 2 >= pages;
        if whole || sink.has(&id) {
            sink.store_cell(id, cell, file_at, encoded)?;
            for page in first..first + pages {
                self.put(page, id, pages as u32, (page - first) as u32);
                self.fates[page] = Fate::Stays;
            }
            return Ok(());
        }
        for (page, bytes) in (first..).zip(cell.chunks(PAGE)) {
            if self.fates[page] == Fate::Stays {
                continue;
            }
            self.fates[page] = Fate::Stays;
            self.forget(page);
            self.run.extend_from_slice(bytes);
            self.run_pages.push(page);
            if self.run_pages.len() == RUN_PAGES {
                self.store_run(sink)?;
            }
        }
        Ok(())
    }

    fn store_run(&mut self, sink: &mut Sink) -> Result<()> {
        if self.run_pages.is_empty() {
            return Ok(());
        }
        let id = sink.store(Kind::Data, &self.run)?;
        let pages = std::mem::take(&mut self.run_pages);
        for (at, page) in pages.iter().enumerate() {
            self.put(*page, id, pages.len() as u32, at as u32);
        }
        self.run.clear();
        Ok(())
    }

    /// Pages of all chunks that are referred to, and those of them that are alive.
    fn read_and_live(&self) -> (usize, usize) {
        let used = self.chunks.iter().filter(|used| used.live > 0);
        used.fold((0, 0), |(read, live), used| {
            (read + used.pages as usize, live + used.live.min(used.pages) as usize)
        })
    }

    /// Lets the pages of the chunks with the least alive move, until a restore reads at most `most`
    /// hundredths of what it needs, and of the smallest runs where there are too many. Whether any
    /// moves.
    fn choose(&mut self, most: usize) -> bool {
        let (mut read, live) = self.read_and_live();
        let mut runs = self.runs().count();
        if read * 100 <= live * most && runs <= MOST_RUNS {
            return false;
        }
        let mut moves = vec![false; self.chunks.len()];
        let mut by_share: Vec<usize> =
            (0..self.chunks.len()).filter(|n| self.chunks[*n].live > 0).collect();
        // A sum of products instead of a quotient, so that the order is exact.
        by_share.sort_by_key(|n| {
            let Used { pages, live, .. } = self.chunks[*n];
            (u64::from(live) << 32) / u64::from(pages.max(1))
        });
        for number in by_share {
            if read * 100 <= live * most {
                break;
            }
            let used = self.chunks[number];
            if used.live >= used.pages {
                break;
            }
            moves[number] = true;
            read -= (used.pages - used.live) as usize;
            runs -= usize::from(self.is_run(&used));
        }
        if runs > MOST_RUNS {
            let mut smallest: Vec<usize> = self.runs().filter(|n| !moves[*n]).collect();
            smallest.sort_by_key(|n| self.chunks[*n].live);
            for number in smallest.into_iter().take(runs - MOST_RUNS / 2) {
                moves[number] = true;
            }
        }
        for (page, place) in self.places.iter().enumerate() {
            if place.is_some_and(|(number, _)| moves[number as usize]) {
                self.fates[page] = Fate::Moves;
            }
        }
        moves.contains(&true)
    }

    /// Whether a chunk is no cell of this region any more, or never was.
    fn is_run(&self, used: &Used) -> bool {
        used.live > 0 && (used.pages as usize) < CELL_PAGES.min(self.places.len())
    }

    fn runs(&self) -> impl Iterator<Item = usize> {
        (0..self.chunks.len()).filter(|n| self.is_run(&self.chunks[*n]))
    }

    /// What is left to do when all cells were taken: the numbers of those that have to be read again.
    /// Asked for the `round`-th time.
    pub fn again(&mut self, sink: &mut Sink, round: usize) -> Result<Vec<usize>> {
        self.store_run(sink)?;
        if self.whole || !self.choose(MOST_READ) {
            return Ok(Vec::new());
        }
        if round >= ROUNDS {
            self.whole = true;
            return Ok((0..self.cells.len()).collect());
        }
        let mut cells: Vec<usize> = self
            .fates
            .iter()
            .enumerate()
            .filter(|(_, fate)| **fate == Fate::Moves)
            .map(|(page, _)| page / CELL_PAGES)
            .collect();
        cells.dedup();
        Ok(cells)
    }

    /// Stores the leaf.
    pub fn finish(mut self, sink: &mut Sink) -> Result<ObjectId> {
        self.store_run(sink)?;
        let fresh: Vec<u32> =
            (0..).zip(&self.fresh).filter(|(_, fresh)| **fresh).map(|(page, _)| page).collect();
        if let Some(Before { id: Some(id), length, .. }) = &self.before
            && fresh.is_empty()
            && !self.moved
            && *length == self.length
        {
            return Ok(*id);
        }
        let extents = self.extents();
        let layers = self.before.as_ref().map_or(&[][..], |before| &before.layers);
        let anew = layers.is_empty() || fresh.len() * 2 >= self.hashes.len();
        let pages = if anew && self.is_plain(&extents) {
            let all = self.hashes.concat();
            if all.len() <= HASHES_IN_LEAF {
                PageHashes::Inline(all)
            } else {
                PageHashes::Chunk(sink.store(Kind::Pages, &all)?)
            }
        } else {
            let hashes = self.store_hashes(sink, fresh)?;
            PageHashes::Mapped(Mapped { hashes, chunks: self.used_by(&extents) })
        };
        let leaf = ExtentLeaf { extents, cells: self.cells, pages };
        sink.store(Kind::Leaf, &encode_leaf(&leaf))
    }

    /// The layers of hashes, with those of the pages that are `fresh` in a new one.
    fn store_hashes(&self, sink: &mut Sink, mut fresh: Vec<u32>) -> Result<Vec<ObjectId>> {
        let mut layers: Vec<Layer> =
            self.before.as_ref().map_or_else(Vec::new, |before| before.layers.clone());
        while let [_, .., last] = layers.as_slice()
            && !fresh.is_empty()
            && last.pages.len() <= fresh.len()
        {
            fresh.extend(&last.pages);
            fresh.sort_unstable();
            fresh.dedup();
            // What the file does not reach any more has no hash.
            fresh.retain(|page| (*page as usize) < self.hashes.len());
            layers.pop();
        }
        if layers.is_empty() || fresh.len() * 2 >= self.hashes.len() {
            return Ok(vec![sink.store(Kind::Pages, &self.hashes.concat())?]);
        }
        let mut ids: Vec<ObjectId> = layers.iter().map(|layer| layer.id).collect();
        if !fresh.is_empty() {
            let change: Vec<(u32, PageHash)> = fresh
                .into_iter()
                .filter_map(|page| Some((page, *self.hashes.get(page as usize)?)))
                .collect();
            ids.push(sink.store(Kind::Pages, &encode_change(&change))?);
        }
        Ok(ids)
    }

    /// Pages that follow each other in a chunk are one extent, within a cell.
    fn extents(&self) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut last: Place = None;
        for (page, place) in self.places.iter().enumerate() {
            let offset = (page * PAGE) as u64;
            let length = (self.length - offset).min(PAGE as u64) as u32;
            let goes_on = page % CELL_PAGES != 0
                && place.is_some_and(|(chunk, at)| at > 0 && last == Some((chunk, at - 1)));
            last = *place;
            let Some((number, at)) = *place else { continue };
            match extents.last_mut() {
                Some(extent) if goes_on => extent.length += length,
                _ => {
                    let Some(used) = self.chunks.get(number as usize) else { continue };
                    let chunk_offset = at * PAGE as u32;
                    extents.push(Extent { offset, length, chunk: used.id, chunk_offset });
                }
            }
        }
        extents
    }

    /// Whether each cell is a chunk or a hole.
    fn is_plain(&self, extents: &[Extent]) -> bool {
        extents.iter().all(|extent| {
            let rest = self.length - extent.offset;
            extent.chunk_offset == 0
                && extent.offset.is_multiple_of(CELL as u64)
                && u64::from(extent.length) == rest.min(CELL as u64)
                && self
                    .numbers
                    .get(&extent.chunk)
                    .and_then(|n| self.chunks.get(*n as usize))
                    .is_some_and(|used| {
                        used.pages as usize == (extent.length as usize).div_ceil(PAGE)
                    })
        })
    }

    /// The chunks of the extents, in the order in which they come first.
    fn used_by(&self, extents: &[Extent]) -> Vec<(ObjectId, u32)> {
        let mut met = vec![false; self.chunks.len()];
        let mut chunks = Vec::new();
        for extent in extents {
            let Some(number) = self.numbers.get(&extent.chunk) else { continue };
            if let (Some(met), Some(used)) =
                (met.get_mut(*number as usize), self.chunks.get(*number as usize))
                && !std::mem::replace(met, true)
            {
                chunks.push((used.id, used.pages));
            }
        }
        chunks
    }
}
