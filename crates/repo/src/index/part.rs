//! A part of a run: packs, or a stretch of the entries of a run, so that one of them is looked up
//! without reading the others.
//!
//! ```text
//! header     160
//! root       sealed (kind 1), 64 bytes with zeros at the end:
//!            number of the first pack (4) ‖ packs (4) ‖ entries (4) ‖ length of a segment of the
//!            filter (4) ‖ segments of the filter (4) ‖ zero (4) ‖ seed of the filter (8)
//! signature  sealed (kind 6): the owner's, of the root (64)
//! packs      sealed (kind 2): 88 bytes each, as in a segment
//! filter     sealed (kind 3): its bytes
//! fences     sealed (kind 4): first 8 bytes of the first id of each block
//! blocks     each sealed (kind 5): up to 18 entries of 28 bytes, so that it takes half a kibibyte
//! ```
//!
//! What has no bytes has no seal either. The lengths follow from the root, and their sum is that of
//! the object. The name of the seals is the object's key; that of the blocks is empty, because their
//! key is that of this very object, and looking one up is to take little time.
//!
//! Packs, filter and fences are opened and kept when a part is opened. A block is read and
//! authenticated whenever it is looked at, from a copy on the local disk or from memory. Where the
//! copy is not right the object is fetched again.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use bytes::Bytes;

use super::filter::{self, Filter};
use super::object::keep;
use super::segment::{ENTRY, PACK, PackInfo, RawEntry};
use crate::crypto::{Class, HEADER, Keys, PackKey, TAG, epoch_of};
use crate::signing::SIGNATURE;
use crate::{RepoError, Result, Store};

const ROOT: usize = 64;
/// The header, the root and its signature.
const FRONT: usize = HEADER + ROOT + TAG + SIGNATURE + TAG;
const ROOT_KIND: u8 = 1;
const PACKS_KIND: u8 = 2;
const FILTER_KIND: u8 = 3;
const FENCES_KIND: u8 = 4;
const BLOCK_KIND: u8 = 5;
const SIGNATURE_KIND: u8 = 6;
const BLOCK_ENTRIES: usize = 18;
const BLOCK: usize = BLOCK_ENTRIES * ENTRY + TAG;
/// Blocks that are read at once when all of them are. 130 KB.
const READ_AHEAD: usize = 256;

pub(super) fn damaged(object: &str) -> RepoError {
    RepoError::damaged(object, "it was altered, cut short, or is another object")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Root {
    first_pack: u32,
    packs: u32,
    entries: u32,
    length: u32,
    segments: u32,
    seed: u64,
}

/// Where in the object the sections are, with their tags.
struct Layout {
    packs: Range<u64>,
    filter: Range<u64>,
    fences: Range<u64>,
    blocks: u64,
    end: u64,
}

impl Root {
    pub(crate) fn parse(plain: &[u8]) -> Option<Self> {
        let plain: &[u8; ROOT] = plain.try_into().ok()?;
        let number = |at: usize| {
            u32::from_le_bytes([plain[at], plain[at + 1], plain[at + 2], plain[at + 3]])
        };
        if number(20) != 0 || plain[32..].iter().any(|byte| *byte != 0) {
            return None;
        }
        let root = Self {
            first_pack: number(0),
            packs: number(4),
            entries: number(8),
            length: number(12),
            segments: number(16),
            seed: u64::from(number(24)) | u64::from(number(28)) << 32,
        };
        root.first_pack.checked_add(root.packs)?;
        filter::size(root.length, root.segments)?;
        Some(root)
    }

    fn write(&self) -> [u8; ROOT] {
        let mut plain = [0; ROOT];
        let numbers = [self.first_pack, self.packs, self.entries, self.length, self.segments, 0];
        for (to, number) in plain.chunks_exact_mut(4).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        plain[24..32].copy_from_slice(&self.seed.to_le_bytes());
        plain
    }

    fn blocks(&self) -> u64 {
        u64::from(self.entries).div_ceil(BLOCK_ENTRIES as u64)
    }

    fn layout(&self) -> Option<Layout> {
        let mut at = FRONT as u64;
        let mut section = |size: u64| {
            let start = at;
            at += if size == 0 { 0 } else { size + TAG as u64 };
            start..at
        };
        let packs = section(u64::from(self.packs) * PACK as u64);
        let filter = section(filter::size(self.length, self.segments)?);
        let fences = section(self.blocks() * 8);
        let blocks = fences.end;
        let end = blocks + u64::from(self.entries) * ENTRY as u64 + self.blocks() * TAG as u64;
        Some(Layout { packs, filter, fences, blocks, end })
    }
}

/// Where the sealed bytes of a part are.
pub(crate) enum Source {
    File(File),
    /// From the offset `from` on.
    Memory {
        bytes: Bytes,
        from: u64,
    },
}

impl Source {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buffer, offset),
            Self::Memory { bytes, from } => {
                let start = offset.checked_sub(*from).and_then(|start| usize::try_from(start).ok());
                let there = start.and_then(|start| bytes.get(start..)?.get(..buffer.len()));
                buffer.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// Where a part came from, to fetch it again.
#[derive(Clone)]
pub(crate) struct Origin {
    pub store: Store,
    pub cached: Option<PathBuf>,
}

/// The entries of a part.
pub(crate) struct Part {
    object: String,
    origin: Option<Origin>,
    key: PackKey,
    blocks: u64,
    end: u64,
    entries: usize,
    filter: Filter,
    fences: Vec<u64>,
    /// What to multiply the distance from the first fence by to come near the right one.
    scale: f64,
    source: Source,
    /// Of the store, since the local copy turned out to be wrong; `None` when that did not help.
    fetched: OnceLock<Option<Source>>,
    fetching: Mutex<()>,
}

/// A part and the packs that it lists, of which the first has the number `first_pack` in its run.
pub(crate) struct Opened {
    pub part: Part,
    pub first_pack: u32,
    pub packs: Vec<PackInfo>,
}

impl Opened {
    /// Opens everything but the blocks of the object `object`, which has `size` bytes.
    pub fn read(keys: &Keys, object: &str, size: u64, source: Source) -> Result<Self> {
        let read = |range: Range<u64>| {
            let length = range.end - range.start;
            if range.end > size {
                return Err(RepoError::damaged(object, "it is cut short"));
            }
            let mut bytes = vec![0; usize::try_from(length).map_err(|_| damaged(object))?];
            source.read(range.start, &mut bytes).map_err(|error| {
                RepoError::damaged(object, format!("it cannot be read: {error}"))
            })?;
            Ok(bytes)
        };
        let front = read(0..FRONT as u64)?;
        let key = keys.open(object, Class::Index, &front)?;
        let open = |kind: u8, offset: u64, mut sealed: Vec<u8>| -> Result<Vec<u8>> {
            if sealed.is_empty() {
                return Ok(sealed);
            }
            let opened = key.open(kind, offset, object.as_bytes(), &mut sealed);
            let length = opened.ok_or_else(|| damaged(object))?.len();
            sealed.truncate(length);
            Ok(sealed)
        };
        let (root, signature) = front.split_at(HEADER + ROOT + TAG);
        let at = root.len() as u64;
        let root = open(ROOT_KIND, HEADER as u64, root.get(HEADER..).unwrap_or_default().to_vec())?;
        let signature = open(SIGNATURE_KIND, at, signature.to_vec())?;
        let signature = signature.as_slice().try_into().map_err(|_| damaged(object))?;
        // A host that may only write has the key of the seals, and merges nothing.
        keys.owner_wrote(epoch_of(&front), object, &root, signature)?;
        let root = Root::parse(&root)
            .ok_or_else(|| RepoError::damaged(object, "its root makes no sense"))?;
        let layout = root
            .layout()
            .filter(|layout| layout.end == size)
            .ok_or_else(|| RepoError::damaged(object, "its length contradicts its counts"))?;
        let section = |kind: u8, range: Range<u64>| {
            let start = range.start;
            open(kind, start, read(range)?)
        };
        let packs = section(PACKS_KIND, layout.packs)?;
        let packs = PackInfo::parse_all(object, &packs)?;
        let filter = section(FILTER_KIND, layout.filter)?;
        let filter = Filter::restore(root.seed, root.length, root.segments, filter)
            .ok_or_else(|| RepoError::damaged(object, "its filter makes no sense"))?;
        let fences = section(FENCES_KIND, layout.fences)?;
        let fences: Vec<u64> =
            fences.as_chunks::<8>().0.iter().map(|fence| u64::from_be_bytes(*fence)).collect();
        if !fences.is_sorted() {
            return Err(RepoError::damaged(object, "its blocks are not in order"));
        }
        let span = fences.last().zip(fences.first()).map_or(0, |(last, first)| last - first);
        let scale = fences.len().saturating_sub(1) as f64 / (span as f64).max(1.0);
        let part = Part {
            object: object.to_owned(),
            origin: None,
            key,
            blocks: layout.blocks,
            end: layout.end,
            entries: root.entries as usize,
            filter,
            fences,
            scale,
            source,
            fetched: OnceLock::new(),
            fetching: Mutex::default(),
        };
        Ok(Self { part, first_pack: root.first_pack, packs })
    }

    /// Opens the copy on the local disk, and what the store has where there is none that is right.
    pub fn fetch(keys: &Keys, object: &str, size: u64, origin: &Origin) -> Result<Self> {
        let local = |file: File, size: u64| {
            let same = file.metadata().is_ok_and(|found| found.len() == size);
            same.then_some(Source::File(file))
        };
        let cached = origin.cached.as_deref();
        if let Some(source) = cached.and_then(|path| local(File::open(path).ok()?, size))
            && let Ok(mut opened) = Self::read(keys, object, size, source)
        {
            opened.part.origin = Some(origin.clone());
            return Ok(opened);
        }
        let bytes = origin.store.read(object)?;
        let size = bytes.len() as u64;
        let source = Source::Memory { bytes: bytes.clone(), from: 0 };
        let mut opened = Self::read(keys, object, size, source)?;
        opened.part.origin = Some(origin.clone());
        if let Some(path) = cached {
            keep(path, &bytes);
        }
        // No other bytes are trusted than those that authenticate when they are looked at.
        opened.part.source = match cached.and_then(|path| local(File::open(path).ok()?, size)) {
            Some(source) => source,
            None => opened.part.blocks_of(&bytes),
        };
        Ok(opened)
    }
}

impl Part {
    pub fn len(&self) -> usize {
        self.entries
    }

    /// The first half of the smallest id.
    pub fn first(&self) -> u64 {
        self.fences.first().copied().unwrap_or(0)
    }

    fn blocks_of(&self, object: &Bytes) -> Source {
        let blocks = object.get(self.blocks as usize..).unwrap_or_default();
        Source::Memory { bytes: Bytes::copy_from_slice(blocks), from: self.blocks }
    }

    fn open_block(&self, offset: u64, sealed: &mut [u8]) -> Option<usize> {
        self.key.open_unnamed(BLOCK_KIND, offset, sealed).map(|entries| entries.len())
    }

    /// Reads blocks from `number` on, as many as `buffer` has room for, and opens each in its place.
    fn read_blocks(&self, source: &Source, number: usize, buffer: &mut [u8]) -> io::Result<()> {
        let mut offset = self.blocks + (number * BLOCK) as u64;
        source.read(offset, buffer)?;
        for block in buffer.chunks_mut(BLOCK) {
            self.open_block(offset, block).ok_or(io::ErrorKind::InvalidData)?;
            offset += block.len() as u64;
        }
        Ok(())
    }

    /// The same, from the store where the local copy is not right.
    ///
    /// # Errors
    /// What is in the store does not authenticate either, or cannot be read.
    fn blocks(&self, number: usize, buffer: &mut [u8]) -> Result<()> {
        let local = self.read_blocks(&self.source, number, buffer);
        let Err(error) = local else { return Ok(()) };
        let Some(Origin { store, cached: Some(path) }) = &self.origin else {
            return Err(damaged(&self.object));
        };
        let _fetching = self.fetching.lock().unwrap_or_else(|e| e.into_inner());
        if self.fetched.get().is_none() {
            tracing::warn!(path = %path.display(), %error, "a local copy is damaged: it is fetched again");
            let fetched = match store.read(&self.object).map_err(RepoError::from) {
                Ok(object) if object.len() as u64 == self.end => {
                    keep(path, &object);
                    Some(self.blocks_of(&object))
                }
                Ok(_) => None,
                Err(error) if error.is_about_an_object() => None,
                Err(error) => return Err(error),
            };
            let _ = self.fetched.set(fetched);
        }
        let source = self.fetched.get().and_then(Option::as_ref);
        let read = source.map(|source| self.read_blocks(source, number, buffer));
        read.and_then(io::Result::ok).ok_or_else(|| damaged(&self.object))
    }

    /// Bytes of some blocks with their tags.
    fn length(&self, blocks: Range<usize>) -> usize {
        let entries = self.entries.min(blocks.end * BLOCK_ENTRIES) - blocks.start * BLOCK_ENTRIES;
        entries * ENTRY + blocks.len() * TAG
    }

    /// The first block that may have entries whose ids begin with `high`. Ids are all over the range
    /// alike, so the place is guessed; from there the distance is doubled.
    fn first_block(&self, high: u64) -> usize {
        let fences = &self.fences[..];
        let first = self.first();
        if high <= first {
            return 0;
        }
        let guess = ((high - first) as f64 * self.scale) as usize;
        let guess = guess.min(fences.len().saturating_sub(1));
        let is_below = |at: usize| fences.get(at).is_some_and(|fence| *fence < high);
        let (mut low, mut end) = (0, fences.len());
        let mut step = 1;
        if is_below(guess) {
            low = guess + 1;
            while low + step < end {
                if !is_below(low + step) {
                    end = low + step;
                    break;
                }
                low += step + 1;
                step *= 2;
            }
        } else {
            end = guess;
            while step <= end {
                if is_below(end - step) {
                    low = end - step + 1;
                    break;
                }
                end -= step;
                step *= 2;
            }
        }
        let between = fences.get(low..end).unwrap_or_default();
        (low + between.partition_point(|fence| *fence < high)).saturating_sub(1)
    }

    /// Tells of every entry of an id, with its place in this part.
    pub fn each(&self, id: &[u8; 16], mut tell: impl FnMut(usize, RawEntry)) -> Result<()> {
        if !self.filter.passes(filter::key_of(id)) {
            return Ok(());
        }
        let [a, b, c, d, e, f, g, h, ..] = *id;
        let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let first = self.first_block(high);
        let mut buffer = [0; BLOCK];
        let upto = self.fences.iter().enumerate().skip(first);
        for number in upto.take_while(|(_, fence)| **fence <= high).map(|(number, _)| number) {
            let length = self.length(number..number + 1);
            let Some(block) = buffer.get_mut(..length) else { break };
            self.blocks(number, block)?;
            let entries = block.get(..length - TAG).unwrap_or_default();
            let entries = entries.as_chunks::<ENTRY>().0;
            let first = entries.partition_point(|entry| entry[..16] < id[..]);
            let same = entries.iter().enumerate().skip(first);
            for (at, entry) in same.take_while(|(_, entry)| entry[..16] == *id) {
                tell(number * BLOCK_ENTRIES + at, RawEntry::parse(entry));
            }
        }
        Ok(())
    }

    /// All entries in their order.
    pub fn iter(&self) -> PartIter<'_> {
        PartIter { part: self, block: 0, buffer: Vec::new(), at: 0, length: 0, failed: false }
    }

    /// Whether every block authenticates.
    pub fn check(&self) -> Result<()> {
        self.iter().try_for_each(|entry| entry.map(drop))
    }

    /// The object under the name `object`. `entries` are sorted by id.
    pub fn seal(
        keys: &Keys,
        id: [u8; 16],
        object: &str,
        first_pack: u32,
        packs: &[PackInfo],
        entries: &[RawEntry],
    ) -> Bytes {
        let filter = Filter::of(entries.iter().map(|entry| filter::key_of(&entry.id)).collect());
        let root = Root {
            first_pack,
            packs: packs.len() as u32,
            entries: entries.len() as u32,
            length: filter.length,
            segments: filter.segments,
            seed: filter.seed,
        };
        let (key, header) = keys.index_object(id, Class::Index);
        let size = root.layout().map_or(0, |layout| layout.end as usize);
        let mut body = Vec::with_capacity(size);
        body.extend_from_slice(&header);
        let name = object.as_bytes();
        let mut seal = |kind: u8, name: &[u8], write: &mut dyn FnMut(&mut Vec<u8>)| {
            let start = body.len();
            write(&mut body);
            if body.len() > start {
                let tag = key.seal(kind, start as u64, name, &mut body[start..]);
                body.extend_from_slice(&tag);
            }
        };
        let root = root.write();
        let signature = keys.sign(object, &root);
        seal(ROOT_KIND, name, &mut |body| body.extend_from_slice(&root));
        seal(SIGNATURE_KIND, name, &mut |body| body.extend_from_slice(&signature));
        seal(PACKS_KIND, name, &mut |body| packs.iter().for_each(|pack| pack.write(body)));
        seal(FILTER_KIND, name, &mut |body| body.extend_from_slice(&filter.bytes));
        seal(FENCES_KIND, name, &mut |body| {
            for block in entries.chunks(BLOCK_ENTRIES) {
                body.extend_from_slice(&block[0].id[..8]);
            }
        });
        for block in entries.chunks(BLOCK_ENTRIES) {
            seal(BLOCK_KIND, &[], &mut |body| block.iter().for_each(|entry| entry.write(body)));
        }
        Bytes::from(body)
    }
}

/// Seals what is not written by us: a root, and behind it what it says that the sections are. Where
/// bytes are lacking there are none, and what is left over follows unsealed.
pub(super) fn forge(keys: &Keys, object: &str, plain: &[u8]) -> Bytes {
    let (key, header) = keys.index_object([5; 16], Class::Index);
    let mut body = header.to_vec();
    let mut rest = plain;
    let signed = plain.get(..ROOT).unwrap_or(plain);
    let signature = keys.sign(object, signed);
    let mut seal = |kind: u8, name: &str, length: u64| {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
        let (section, left) = rest.split_at(length);
        rest = left;
        if !section.is_empty() {
            let start = body.len();
            body.extend_from_slice(section);
            let tag = key.seal(kind, start as u64, name.as_bytes(), &mut body[start..]);
            body.extend_from_slice(&tag);
        }
        if kind == ROOT_KIND {
            let start = body.len();
            body.extend_from_slice(&signature);
            let tag = key.seal(SIGNATURE_KIND, start as u64, name.as_bytes(), &mut body[start..]);
            body.extend_from_slice(&tag);
        }
    };
    seal(ROOT_KIND, object, ROOT as u64);
    if let Some(root) = plain.get(..ROOT).and_then(Root::parse) {
        seal(PACKS_KIND, object, u64::from(root.packs) * PACK as u64);
        seal(FILTER_KIND, object, filter::size(root.length, root.segments).unwrap_or(0));
        seal(FENCES_KIND, object, root.blocks() * 8);
        let mut left = u64::from(root.entries) * ENTRY as u64;
        let whole = (BLOCK_ENTRIES * ENTRY) as u64;
        while left > 0 && left <= plain.len() as u64 {
            seal(BLOCK_KIND, "", left.min(whole));
            left -= left.min(whole);
        }
    }
    body.extend_from_slice(rest);
    Bytes::from(body)
}

/// What [`forge`] makes a part of that is right.
pub(super) fn sections(packs: &[PackInfo], entries: &[RawEntry]) -> Vec<u8> {
    let filter = Filter::of(entries.iter().map(|entry| filter::key_of(&entry.id)).collect());
    let root = Root {
        first_pack: 0,
        packs: packs.len() as u32,
        entries: entries.len() as u32,
        length: filter.length,
        segments: filter.segments,
        seed: filter.seed,
    };
    let mut plain = root.write().to_vec();
    packs.iter().for_each(|pack| pack.write(&mut plain));
    plain.extend_from_slice(&filter.bytes);
    for block in entries.chunks(BLOCK_ENTRIES) {
        plain.extend_from_slice(&block[0].id[..8]);
    }
    entries.iter().for_each(|entry| entry.write(&mut plain));
    plain
}

/// Reads many blocks at once.
pub(crate) struct PartIter<'p> {
    part: &'p Part,
    /// The next to read.
    block: usize,
    buffer: Vec<u8>,
    at: usize,
    /// Of the block at `at`, what is left of it.
    length: usize,
    failed: bool,
}

impl Iterator for PartIter<'_> {
    type Item = Result<RawEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if self.length == 0 {
            if self.at >= self.buffer.len() {
                let end = (self.block + READ_AHEAD).min(self.part.fences.len());
                if self.block >= end {
                    return None;
                }
                self.buffer.resize(self.part.length(self.block..end), 0);
                if let Err(error) = self.part.blocks(self.block, &mut self.buffer) {
                    self.failed = true;
                    return Some(Err(error));
                }
                (self.block, self.at) = (end, 0);
            }
            self.length = (self.buffer.len() - self.at).min(BLOCK) - TAG;
        }
        let entry = self.buffer.get(self.at..)?.first_chunk::<ENTRY>()?;
        self.at += ENTRY;
        self.length -= ENTRY;
        if self.length == 0 {
            self.at += TAG;
        }
        Some(Ok(RawEntry::parse(entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::RootKey;

    fn entries(count: u64) -> Vec<RawEntry> {
        let mut entries: Vec<_> = (0..count)
            .map(|n| {
                let mut id = [0; 16];
                id.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
                RawEntry { id, pack: n as u32 % 5, offset: n as u32, length: 9 }
            })
            .collect();
        entries.sort_unstable();
        entries
    }

    fn part(entries: &[RawEntry]) -> Part {
        let keys = Keys::derive(&RootKey::from_bytes([1; 32]));
        let bytes = Part::seal(&keys, [2; 16], "a part", 0, &[], entries);
        let source = Source::Memory { bytes: bytes.clone(), from: 0 };
        Opened::read(&keys, "a part", bytes.len() as u64, source).unwrap().part
    }

    /// What docs/format.md says, said again.
    #[test]
    fn a_part_is_laid_out_as_it_is_written_down() {
        let keys = Keys::derive(&RootKey::from_bytes([1; 32]));
        let work = crate::layout::Work { writer: [3; 8], session: [4; 16] };
        let (id, class) = ([5; 16], Class::MetadataPack);
        let pack = PackInfo { work, id, size: 6, sha256: [7; 32], class, epoch: 0 };
        let entries = entries(40);
        let sealed = Part::seal(&keys, [2; 16], "a part", 9, &[pack.clone(), pack], &entries);
        let key = keys.open("a part", Class::Index, &sealed).unwrap();
        let open = |kind: u8, name: &str, at: usize, length: usize| {
            let mut section = sealed[at..at + length + 16].to_vec();
            let plain = key.open(kind, at as u64, name.as_bytes(), &mut section).unwrap();
            plain.to_vec()
        };
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        let root = open(1, "a part", 160, 64);
        assert_eq!([0, 4, 8].map(|at| number(&root[at..at + 4])), [9, 2, 40]);
        let (length, segments) = (number(&root[12..16]), number(&root[16..20]));
        let seed = u64::from_le_bytes(root[24..32].try_into().unwrap());
        assert!(root[20..24].iter().chain(&root[32..]).all(|byte| *byte == 0));
        let signature = open(6, "a part", 240, 64).try_into().unwrap();
        keys.owner_wrote(0, "a part", &root, &signature).unwrap();
        let packs = open(2, "a part", 320, 176);
        let mut first = [vec![3; 8], vec![4; 16], vec![5; 16]].concat();
        first.extend([6, 0, 0, 0, 0, 0, 0, 0]);
        first.extend([7; 32]);
        first.extend([2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(packs, [first.clone(), first].concat());
        let size = ((segments + 2) * length) as usize;
        let filter = open(3, "a part", 512, size);
        let fences = open(4, "a part", 528 + size, 3 * 8);
        let blocks = 528 + size + 40;
        assert_eq!(sealed.len(), blocks + 40 * 28 + 3 * 16);
        for (place, entry) in entries.iter().enumerate() {
            let start = blocks + place / 18 * 520;
            let block = open(5, "", start, if place < 36 { 504 } else { 4 * 28 });
            let at = place % 18 * 28;
            assert_eq!(block[at..at + 16], entry.id);
            let numbers = [entry.pack, entry.offset, entry.length];
            assert_eq!([16, 20, 24].map(|n| number(&block[at + n..at + n + 4])), numbers);
            if at == 0 {
                let fence = place / 18 * 8;
                assert_eq!(fences[fence..fence + 8], entry.id[..8]);
            }
            let mut h = u64::from_le_bytes(entry.id[8..].try_into().unwrap()).wrapping_add(seed);
            for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
                h ^= h >> 33;
                h = h.wrapping_mul(factor);
            }
            h ^= h >> 33;
            let (span, mask) = (u128::from(segments) * u128::from(length), u64::from(length - 1));
            let p0 = ((u128::from(h) * span) >> 64) as u64;
            let p1 = (p0 + u64::from(length)) ^ ((h >> 18) & mask);
            let p2 = (p0 + 2 * u64::from(length)) ^ (h & mask);
            let byte = [p0, p1, p2].map(|p| filter[p as usize]);
            assert_eq!(byte[0] ^ byte[1] ^ byte[2], (h ^ (h >> 32)) as u8);
        }
    }

    #[test]
    fn every_entry_is_found_where_it_is() {
        for count in [0, 1, 17, 18, 19, 36, 5000] {
            let entries = entries(count);
            let part = part(&entries);
            assert_eq!(part.iter().collect::<Result<Vec<_>>>().unwrap(), entries);
            for (place, entry) in entries.iter().enumerate() {
                let mut found = Vec::new();
                part.each(&entry.id, |at, entry| found.push((at, entry))).unwrap();
                assert_eq!(found, [(place, *entry)]);
            }
        }
    }

    #[test]
    fn ids_that_lie_close_together_are_found() {
        // As far from evenly spread as can be: all in one corner, and a few at the other end.
        let mut entries: Vec<_> = (0..2000_u64)
            .map(|n| {
                let mut id = [0; 16];
                id[4..8].copy_from_slice(&((n / 50) as u32).to_be_bytes());
                RawEntry { id, pack: 0, offset: n as u32, length: 1 }
            })
            .collect();
        entries.extend((250..255).map(|n| RawEntry { id: [n; 16], pack: 0, offset: 0, length: 1 }));
        let part = part(&entries);
        for entry in &entries {
            let wanted = entries.iter().filter(|e| e.id == entry.id).count();
            let mut found = 0;
            part.each(&entry.id, |_, _| found += 1).unwrap();
            assert_eq!(found, wanted);
        }
        for id in [[0xff; 16], [100; 16]] {
            part.each(&id, |_, _| panic!("it is not there")).unwrap();
        }
    }
}
