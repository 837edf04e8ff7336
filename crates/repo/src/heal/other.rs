//! Lost content, read from another repository.
//!
//! Chunk ids are keyed, so nothing of one repository can be looked up in another. A file of the same
//! path in a snapshot of the same source is a guess at where the bytes are; their keyed hash under
//! *our* key says whether they are the ones. So no guess can do harm, and many are made.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;

use super::Healer;
use super::need::{Need, Piece};
use crate::chunks::Chunks;
use crate::codec::MAX_CHUNK;
use crate::entry::{Body, EntryKind, Extent, FileContent};
use crate::repository::Repository;
use crate::session::{Content, ContentError, Reader, content_id_of_data};
use crate::tree::{Tree, slice};
use crate::{Kind, ObjectId, RepoError, Result, Snapshot};
use backstay_store::failpoint;

/// Snapshots of the same source that are looked into, the nearest in time first.
const GUESSES: usize = 16;

/// The snapshots of `all` that may hold what `ours` held, the likeliest first.
pub(super) fn guesses<'a>(all: &'a [Snapshot], ours: &Snapshot) -> Vec<&'a Snapshot> {
    let mut same: Vec<&Snapshot> =
        all.iter().filter(|s| (&s.source, s.kind) == (&ours.source, ours.kind)).collect();
    let distance = |s: &Snapshot| {
        s.time.as_millisecond().saturating_sub(ours.time.as_millisecond()).unsigned_abs()
    };
    // The same moment, copied or written to both at once, before all others.
    same.sort_by_key(|s| (s.moment() != ours.moment(), distance(s)));
    same.truncate(GUESSES);
    same
}

/// Stores chunks of content that are lost and that the other repository gives; how many.
pub(super) fn fetch(
    healer: &mut Healer<'_>,
    from: &Repository,
    need: &Need,
    damaged: &HashSet<[u8; 16]>,
) -> Result<u64> {
    let mut lost: Vec<(&ObjectId, &Vec<Piece>)> =
        need.pieces.iter().filter(|(id, _)| need.at_risk.get(*id) == Some(&Kind::Data)).collect();
    if lost.is_empty() {
        return Ok(0);
    }
    // File by file, so that what was read of one serves the next chunk of it.
    let place = |pieces: &[Piece]| pieces.first().map(|p| (p.snapshot, p.path.clone(), p.offset));
    lost.sort_by_key(|(id, pieces)| (place(pieces), **id));
    let theirs = from.snapshots()?;
    let mut there = There { from, files: BTreeMap::new(), trees: HashMap::new() };
    let mut session = None;
    let mut fetched = 0;
    for (id, pieces) in lost {
        healer.progress.check()?;
        let first = pieces.first().and_then(|piece| need.snapshots.get(piece.snapshot));
        let Some(ours) = first else { continue };
        for guess in guesses(&theirs, ours) {
            let Some(content) = there.assemble(guess, pieces)? else { continue };
            if content_id_of_data(healer.repository, &content) != *id {
                continue;
            }
            if session.is_none() {
                session = Some(super::salvage::begin(healer, damaged)?);
            }
            if let Some(session) = &session {
                session.store(Kind::Data, &content)?;
                fetched += 1;
            }
            break;
        }
    }
    if let Some(session) = session {
        session.end_without_snapshot()?;
        failpoint::hit("repair-stored");
    }
    Ok(fetched)
}

/// Files of the other repository that are open.
struct There<'r> {
    from: &'r Repository,
    trees: HashMap<String, Tree>,
    /// Of one snapshot and path at a time: the last few.
    files: BTreeMap<(String, Vec<u8>), Option<OtherFile>>,
}

impl There<'_> {
    /// The bytes of a chunk, put together from the files that used it.
    fn assemble(&mut self, guess: &Snapshot, pieces: &[Piece]) -> Result<Option<Vec<u8>>> {
        let mut content: Vec<u8> = Vec::new();
        loop {
            let at = content.len() as u64;
            let end = |p: &Piece| u64::from(p.chunk_offset) + u64::from(p.length);
            let next = pieces
                .iter()
                .filter(|p| u64::from(p.chunk_offset) <= at && end(p) > at)
                .max_by_key(|p| end(p));
            let Some(piece) = next else {
                // What lies behind a gap is not known, or it is the end.
                let more = pieces.iter().any(|p| end(p) > at);
                return Ok((!more && !content.is_empty()).then_some(content));
            };
            let skip = at - u64::from(piece.chunk_offset);
            let length = u64::from(piece.length) - skip;
            if at + length > MAX_CHUNK as u64 {
                return Ok(None);
            }
            let Some(file) = self.file(guess, &piece.path)? else { return Ok(None) };
            let Some(bytes) = file.read(piece.offset.saturating_add(skip), length as usize)? else {
                return Ok(None);
            };
            content.extend_from_slice(&bytes);
        }
    }

    fn file(&mut self, guess: &Snapshot, path: &[u8]) -> Result<Option<&OtherFile>> {
        let name = (guess.id.clone(), path.to_vec());
        if !self.files.contains_key(&name) {
            if self.files.len() > 64 {
                self.files.clear();
            }
            if !self.trees.contains_key(&guess.id) {
                self.trees.insert(guess.id.clone(), self.from.tree(guess)?);
            }
            let Some(tree) = self.trees.get(&guess.id) else { return Ok(None) };
            let file = match tree.get(path).and_then(|entry| match entry.map(|e| e.kind) {
                Some(EntryKind::File(content)) => {
                    OtherFile::new(self.from, tree, content).map(Some)
                }
                _ => Ok(None),
            }) {
                Err(error) if error.is_about_an_object() => None,
                file => file?,
            };
            self.files.insert(name.clone(), file);
        }
        Ok(self.files.get(&name).and_then(Option::as_ref))
    }
}

/// A file of the other repository, for reading from any place.
pub(super) struct OtherFile {
    chunks: Chunks,
    content: FileContent,
    extents: Vec<Extent>,
}

impl OtherFile {
    pub fn new(repository: &Repository, tree: &Tree, content: FileContent) -> Result<Self> {
        let extents = tree.extents(&content)?;
        Ok(Self { chunks: Chunks::new(repository), content, extents })
    }

    /// Bytes from `offset` on, where all of them can be had.
    fn read(&self, offset: u64, length: usize) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; length];
        match self.fill(offset, &mut bytes) {
            Ok(read) => Ok((read == length).then_some(bytes)),
            Err(error) if error.is_about_an_object() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let left = self.content.size.saturating_sub(offset);
        let wanted = (buffer.len() as u64).min(left) as usize;
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        if let Body::Inline(bytes) = &self.content.body {
            let from = bytes.get(offset as usize..).and_then(|rest| rest.get(..wanted));
            let from =
                from.ok_or_else(|| RepoError::damaged("a file", "it is shorter than it says"))?;
            buffer.copy_from_slice(from);
            return Ok(wanted);
        }
        buffer.fill(0);
        let end = offset + wanted as u64;
        let first = self.extents.partition_point(|e| e.offset + u64::from(e.length) <= offset);
        for extent in self.extents.get(first..).unwrap_or_default() {
            if extent.offset >= end {
                break;
            }
            let chunk = self.chunks.get(&extent.chunk)?;
            let bytes = slice("the other repository", &chunk, extent)?;
            let (from, to) =
                (extent.offset.max(offset), (extent.offset + bytes.len() as u64).min(end));
            let source = bytes.get((from - extent.offset) as usize..(to - extent.offset) as usize);
            let target = buffer.get_mut((from - offset) as usize..(to - offset) as usize);
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
        }
        Ok(wanted)
    }
}

impl Content for OtherFile {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        Ok(self)
    }
}

impl Reader for OtherFile {
    fn size(&self) -> u64 {
        self.content.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(offset, buffer).map_err(|error| io::Error::other(error.to_string()))
    }

    fn data_ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for extent in &self.extents {
            let (start, end) = (extent.offset, extent.offset + u64::from(extent.length));
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        let whole = match ranges.as_slice() {
            [] => matches!(self.content.body, Body::Inline(_)) || self.content.size == 0,
            [one] => one.start == 0 && one.end == self.content.size,
            _ => false,
        };
        if whole { std::iter::once(0..u64::MAX).collect() } else { ranges }
    }
}
