//! A part of a run: packs, or a stretch of the entries of a run, so that one of them is looked up
//! without reading the others.
//!
//! ```text
//! header     160
//! root       sealed (kind 1), 64 bytes:
//!            number of the first pack (4) ‖ packs (4) ‖ entries (4) ‖ length of a segment of the
//!            filter (4) ‖ segments of the filter (4) ‖ zero (4) ‖ seed of the filter (8) ‖ hash (32)
//! signature  sealed (kind 6): the owner's, of the root (64)
//! packs      sealed (kind 2): 88 bytes each, as in a segment
//! filter     sealed (kind 3): its bytes
//! fences     sealed (kind 4): first 8 bytes of the first id of each block
//! hashes     sealed (kind 7): BLAKE3 (32) of each 16 blocks, as they are in the store
//! blocks     each sealed (kind 5): up to 18 entries of 28 bytes, so that it takes half a kibibyte
//! ```
//!
//! The hash in the root is the BLAKE3 of the sections from packs to hashes, as they are in the store.
//! A host has the key of the seals: without hashes it could put other entries into a part, if it may
//! replace objects. Blocks that come from the store are hashed before they are used, and kept on the
//! local disk only when all of them are right; there, their tags find what has rotted. In parts of the
//! first programs the hash is zeros, they have no hashes, and nothing binds their blocks; a merge
//! replaces them.
//!
//! What has no bytes has no seal either. The lengths follow from the root, and their sum is that of
//! the object. The name of the seals is the object's key; that of the blocks is empty, because their
//! key is that of this very object, and looking one up is to take little time.
//!
//! Packs, filter and fences are opened and kept when a part is opened. A block is read and
//! authenticated whenever it is looked at, from a copy on the local disk or from memory, until so much
//! was looked up that all entries are held in memory, opened (`held.rs`). Where the copy is not right
//! the object is fetched again.

mod held;
mod iter;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::io::Errno;

use self::held::Held;
use self::iter::PartIter;
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
const HASHES_KIND: u8 = 7;
const BLOCK_ENTRIES: usize = 18;
const BLOCK: usize = BLOCK_ENTRIES * ENTRY + TAG;
/// Blocks that share a hash: what a byte that rots in the store costs.
const GROUP: usize = 16;
const HASH: usize = 32;
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
    /// Of the sections up to the blocks. Zeros in parts of the first programs.
    hash: [u8; HASH],
}

/// Where in the object the sections are, with their tags.
struct Layout {
    packs: Range<u64>,
    filter: Range<u64>,
    fences: Range<u64>,
    hashes: Range<u64>,
    blocks: u64,
    end: u64,
}

impl Root {
    pub(crate) fn parse(plain: &[u8]) -> Option<Self> {
        let plain: &[u8; ROOT] = plain.try_into().ok()?;
        let number = |at: usize| {
            u32::from_le_bytes([plain[at], plain[at + 1], plain[at + 2], plain[at + 3]])
        };
        if number(20) != 0 {
            return None;
        }
        let (_, hash) = plain.split_last_chunk()?;
        let root = Self {
            first_pack: number(0),
            packs: number(4),
            entries: number(8),
            length: number(12),
            segments: number(16),
            seed: u64::from(number(24)) | u64::from(number(28)) << 32,
            hash: *hash,
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
        plain[32..].copy_from_slice(&self.hash);
        plain
    }

    /// Whether the signature says what is in the blocks.
    fn is_bound(&self) -> bool {
        self.hash != [0; HASH]
    }

    fn groups(&self) -> u64 {
        self.blocks().div_ceil(GROUP as u64)
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
        let hashes = section(if self.is_bound() { self.groups() * HASH as u64 } else { 0 });
        let blocks = hashes.end;
        let end = blocks + u64::from(self.entries) * ENTRY as u64 + self.blocks() * TAG as u64;
        Some(Layout { packs, filter, fences, hashes, blocks, end })
    }
}

/// Where the sealed bytes of a part are.
pub(crate) enum Source {
    File(File),
    /// From the offset `from` on.
    Memory {
        bytes: Bytes,
        from: u64,
        /// Groups of blocks that are not what the owner has signed, sorted.
        forged: Vec<usize>,
    },
}

/// Which groups of blocks do not have the hashes that they should have. `blocks` are all of them.
fn forged(blocks: &[u8], hashes: &[u8]) -> Vec<usize> {
    let groups = blocks.chunks(GROUP * BLOCK).zip(hashes.as_chunks::<HASH>().0).enumerate();
    let wrong = groups.filter(|(_, (group, hash))| blake3::hash(group).as_bytes() != *hash);
    wrong.map(|(number, _)| number).collect()
}

impl Source {
    /// A whole object.
    pub fn of(bytes: Bytes) -> Self {
        Self::Memory { bytes, from: 0, forged: Vec::new() }
    }

    /// Whether it has nothing that the owner has not signed; of a file nobody knows.
    fn is_signed(&self, blocks: Range<usize>) -> bool {
        let Self::Memory { forged, .. } = self else { return true };
        let groups = blocks.start / GROUP..blocks.end.div_ceil(GROUP);
        !forged.iter().any(|group| groups.contains(group))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => read_exact(file, offset, buffer),
            Self::Memory { bytes, from, .. } => {
                let start = offset.checked_sub(*from).and_then(|start| usize::try_from(start).ok());
                let there = start.and_then(|start| bytes.get(start..)?.get(..buffer.len()));
                buffer.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// Opens a local copy. Nobody asks when it was read last, and to note that costs a part of every
/// look-up; only the owner may leave it undone.
fn open_copy(path: &Path) -> io::Result<File> {
    let quiet = OFlags::NOATIME.bits() as i32;
    let opened = File::options().read(true).custom_flags(quiet).open(path);
    opened.or_else(|_| File::open(path))
}

/// As `read_exact_at`, by way of the system call alone: the C library makes it a place where a thread
/// may be cancelled, which takes longer than the look at the file's permissions.
fn read_exact(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match rustix::io::pread(file, &mut *buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = buffer.get_mut(read..).unwrap_or_default();
                offset += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
    entries: usize,
    /// To know whether a copy that is fetched again is what the owner has signed.
    root: Root,
    filter: Filter,
    fences: Vec<u64>,
    /// What to multiply the distance from the first fence by to come near the right one.
    scale: f64,
    source: Source,
    /// Of the store, since the local copy turned out to be wrong; `None` when that did not help.
    fetched: OnceLock<Option<Source>>,
    fetching: Mutex<()>,
    held: Held,
}

/// A part and the packs that it lists, of which the first has the number `first_pack` in its run.
pub(crate) struct Opened {
    pub part: Part,
    pub first_pack: u32,
    pub packs: Vec<PackInfo>,
}

impl Opened {
    /// Opens everything but the blocks of the object `object`, which has `size` bytes.
    pub fn read(keys: &Keys, object: &str, size: u64, mut source: Source) -> Result<Self> {
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
        let sections = read(FRONT as u64..layout.blocks)?;
        if root.is_bound() && *blake3::hash(&sections).as_bytes() != root.hash {
            return Err(damaged(object));
        }
        let section = |kind: u8, range: Range<u64>| {
            let place = (range.start - FRONT as u64) as usize..(range.end - FRONT as u64) as usize;
            open(kind, range.start, sections.get(place).unwrap_or_default().to_vec())
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
        let hashes = section(HASHES_KIND, layout.hashes)?;
        if let Source::Memory { bytes, from: 0, forged: found } = &mut source {
            *found = forged(bytes.get(layout.blocks as usize..).unwrap_or_default(), &hashes);
        }
        let span = fences.last().zip(fences.first()).map_or(0, |(last, first)| last - first);
        let scale = fences.len().saturating_sub(1) as f64 / (span as f64).max(1.0);
        let part = Part {
            object: object.to_owned(),
            origin: None,
            key,
            root,
            blocks: layout.blocks,
            entries: root.entries as usize,
            filter,
            fences,
            scale,
            source,
            fetched: OnceLock::new(),
            fetching: Mutex::default(),
            held: Held::default(),
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
        if let Some(source) = cached.and_then(|path| local(open_copy(path).ok()?, size))
            && let Ok(mut opened) = Self::read(keys, object, size, source)
        {
            opened.part.origin = Some(origin.clone());
            return Ok(opened);
        }
        let bytes = origin.store.read(object)?;
        let size = bytes.len() as u64;
        let mut opened = Self::read(keys, object, size, Source::of(bytes.clone()))?;
        opened.part.origin = Some(origin.clone());
        let blocks = opened.part.blocks_of(&bytes, &opened.part.source);
        // Nothing is kept that the owner has not signed: of a copy, only the tags are looked at.
        opened.part.source = match cached.filter(|_| blocks.is_signed(0..usize::MAX)) {
            Some(path) => {
                keep(path, &bytes);
                // Nor are other bytes trusted than those that authenticate when they are looked at.
                open_copy(path).ok().and_then(|file| local(file, size)).unwrap_or(blocks)
            }
            None => blocks,
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

    /// The blocks of `object`, of which `whole` has all.
    fn blocks_of(&self, object: &Bytes, whole: &Source) -> Source {
        let blocks = object.get(self.blocks as usize..).unwrap_or_default();
        let forged = match whole {
            Source::Memory { forged, .. } => forged.clone(),
            Source::File(_) => Vec::new(),
        };
        Source::Memory { bytes: Bytes::copy_from_slice(blocks), from: self.blocks, forged }
    }

    fn open_block(&self, offset: u64, sealed: &mut [u8]) -> Option<usize> {
        self.key.open_unnamed(BLOCK_KIND, offset, sealed).map(|entries| entries.len())
    }

    /// Reads blocks from `number` on, as many as `buffer` has room for, and opens each in its place.
    fn read_blocks(&self, source: &Source, number: usize, buffer: &mut [u8]) -> io::Result<()> {
        let mut offset = self.blocks + (number * BLOCK) as u64;
        if !source.is_signed(number..number + buffer.len().div_ceil(BLOCK)) {
            return Err(io::ErrorKind::InvalidData.into());
        }
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
                Ok(object) => self.again(&object).inspect(|source| {
                    if source.is_signed(0..usize::MAX) {
                        keep(path, &object);
                    }
                }),
                Err(error) if error.is_about_an_object() => None,
                Err(error) => return Err(error),
            };
            let _ = self.fetched.set(fetched);
        }
        let source = self.fetched.get().and_then(Option::as_ref);
        let read = source.map(|source| self.read_blocks(source, number, buffer));
        read.and_then(io::Result::ok).ok_or_else(|| damaged(&self.object))
    }

    /// The blocks of this part from another copy of its object.
    fn again(&self, object: &Bytes) -> Option<Source> {
        let layout = self.root.layout().filter(|layout| layout.end == object.len() as u64)?;
        let sections = object.get(FRONT..layout.blocks as usize)?;
        let mut whole = Source::of(object.clone());
        if self.root.is_bound() {
            if *blake3::hash(sections).as_bytes() != self.root.hash {
                return None;
            }
            let (start, end) = (layout.hashes.start, layout.hashes.end as usize);
            let mut hashes = object.get(start as usize..end)?.to_vec();
            let hashes = match hashes.is_empty() {
                true => &mut [],
                false => self.key.open(HASHES_KIND, start, self.object.as_bytes(), &mut hashes)?,
            };
            if let Source::Memory { forged: found, .. } = &mut whole {
                *found = forged(object.get(layout.blocks as usize..)?, hashes);
            }
        }
        Some(self.blocks_of(object, &whole))
    }

    /// Bytes of some blocks with their tags.
    fn length(&self, blocks: Range<usize>) -> usize {
        let entries = self.entries.min(blocks.end * BLOCK_ENTRIES) - blocks.start * BLOCK_ENTRIES;
        entries * ENTRY + blocks.len() * TAG
    }

    /// The first block that may have entries whose ids begin with `high`. Ids are all over the range
    /// alike, so the place is guessed: at first it is wrong by the root of the number of entries, and by
    /// the root of that when it is guessed again from there. Each of the two is a look at memory far
    /// away. From there the distance is doubled.
    fn first_block(&self, high: u64) -> usize {
        let fences = &self.fences[..];
        let first = self.first();
        if high <= first {
            return 0;
        }
        let last = fences.len().saturating_sub(1);
        let guess = (((high - first) as f64 * self.scale) as usize).min(last);
        let there = fences.get(guess).copied().unwrap_or(first);
        let off = (high.abs_diff(there) as f64 * self.scale) as usize;
        let guess =
            if high >= there { guess.saturating_add(off) } else { guess.saturating_sub(off) };
        let guess = guess.min(last);
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
        let held = self.held.entries(self);
        let mut buffer = [0; BLOCK];
        let upto = self.fences.iter().enumerate().skip(first);
        for number in upto.take_while(|(_, fence)| **fence <= high).map(|(number, _)| number) {
            let entries = match held {
                Some(held) => held.chunk(number),
                None => {
                    let length = self.length(number..number + 1);
                    let Some(block) = buffer.get_mut(..length) else { break };
                    self.blocks(number, block)?;
                    block.get(..length - TAG).unwrap_or_default()
                }
            };
            for (at, entry) in entries.as_chunks::<ENTRY>().0.iter().enumerate() {
                match entry[..16].cmp(&id[..]) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => {
                        tell(number * BLOCK_ENTRIES + at, RawEntry::parse(entry));
                    }
                    std::cmp::Ordering::Greater => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// All entries in their order.
    pub fn iter(&self) -> PartIter<'_> {
        PartIter::of(self)
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
        let mut root = Root {
            first_pack,
            packs: packs.len() as u32,
            entries: entries.len() as u32,
            length: filter.length,
            segments: filter.segments,
            seed: filter.seed,
            hash: [0; 32],
        };
        let (key, header) = keys.index_object(id, Class::Index);
        // Blocks first: the sections before them have their hashes, and the front those of all.
        let name = object.as_bytes();
        let seal = |kind: u8, name: &[u8], at: u64, plain: Vec<u8>| {
            let mut section = plain;
            if !section.is_empty() {
                let tag = key.seal(kind, at, name, &mut section);
                section.extend_from_slice(&tag);
            }
            section
        };
        root.hash = [1; HASH];
        let (start, end) = root.layout().map_or((0, 0), |l| (l.blocks, l.end));
        let mut body = Vec::with_capacity(end as usize);
        body.resize(start as usize, 0);
        for block in entries.chunks(BLOCK_ENTRIES) {
            let at = body.len();
            block.iter().for_each(|entry| entry.write(&mut body));
            let tag = key.seal(BLOCK_KIND, at as u64, &[], &mut body[at..]);
            body.extend_from_slice(&tag);
        }
        let blocks = body[start as usize..].chunks(GROUP * BLOCK);
        let hashes = blocks.flat_map(|group| *blake3::hash(group).as_bytes()).collect();
        let mut listed = Vec::with_capacity(packs.len() * PACK + TAG);
        packs.iter().for_each(|pack| pack.write(&mut listed));
        let fences = entries.chunks(BLOCK_ENTRIES).flat_map(|block| block[0].id[..8].to_vec());
        let mut at = FRONT;
        for (kind, plain) in [
            (PACKS_KIND, listed),
            (FILTER_KIND, filter.bytes),
            (FENCES_KIND, fences.collect()),
            (HASHES_KIND, hashes),
        ] {
            let section = seal(kind, name, at as u64, plain);
            body[at..at + section.len()].copy_from_slice(&section);
            at += section.len();
        }
        body[..HEADER].copy_from_slice(&header);
        root.hash = *blake3::hash(&body[FRONT..at]).as_bytes();
        let root = root.write();
        let signature = keys.sign(object, &root);
        let mut at = HEADER;
        for (kind, plain) in [(ROOT_KIND, root), (SIGNATURE_KIND, signature)] {
            let section = seal(kind, name, at as u64, plain.to_vec());
            body[at..at + section.len()].copy_from_slice(&section);
            at += section.len();
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
        hash: [0; 32],
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
