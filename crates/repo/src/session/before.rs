//! What the snapshot before has of single pages, to be compared with what is there now: how a source
//! finds out whether what it was told of changes is true.

use std::sync::Arc;

use super::Session;
use super::content::{CELL, REGION};
use super::members::short;
use super::parent::Before;
use super::sink::{Shared, content_id};
use crate::chunks::Chunks;
use crate::entry::{Body, Entry, EntryKind};
use crate::id::{CellHasher, PAGE, PAGE_HASH};
use crate::tree::slice;
use crate::{Kind, Result};

/// A region of a database file in the snapshot that a lane builds on.
pub struct KnownRegion<'s> {
    shared: &'s Arc<Shared>,
    chunks: Chunks,
    have: Have,
}

enum Have {
    Leaf(Before),
    /// A file without leaves, in the snapshot before.
    Small(Entry),
}

impl Session {
    /// What the snapshot that a lane builds on has of a region of a file, whose entry there is `entry`;
    /// nothing where that cannot be told.
    pub fn known_region(
        &self,
        lane: usize,
        entry: &Entry,
        number: usize,
    ) -> Option<KnownRegion<'_>> {
        let lane = self.lanes.get(lane).filter(|lane| lane.shared.is_alive())?;
        let shared = &lane.shared;
        let EntryKind::File(content) = &entry.kind else { return None };
        let have = match &content.body {
            Body::Leaves(_) => {
                let region =
                    shared.parent.region(&shared.repository, shared.index(), &entry.path, number);
                match region {
                    Ok(before) => Have::Leaf(before?),
                    Err(error) => {
                        shared.fail(error);
                        return None;
                    }
                }
            }
            _ if number > 0 => return None,
            _ => Have::Small(entry.clone()),
        };
        Some(KnownRegion { shared, chunks: Chunks::new(&shared.repository), have })
    }

    /// Counts bytes of the source that were read beside the files that were handed in.
    pub fn count_read(&self, bytes: u64) {
        self.lanes.iter().for_each(|lane| lane.shared.count_read(bytes));
    }
}

impl KnownRegion<'_> {
    /// Bytes of a cell, and of a region.
    pub const CELL: u64 = CELL as u64;
    pub const REGION: u64 = REGION;
    /// Of a page.
    pub const PAGE: usize = PAGE;

    /// Which pages of a cell, which is `bytes` now, are something else in the snapshot: their numbers
    /// in the region. What it does not have is something else, too.
    pub fn unlike(&self, cell: usize, bytes: &[u8]) -> Vec<usize> {
        let first = cell * (CELL / PAGE);
        let pages = bytes.len().div_ceil(PAGE);
        match &self.have {
            Have::Leaf(before) => {
                let keys = self.shared.repository.keys();
                let mut hashes = Vec::with_capacity(pages * PAGE_HASH);
                let id = CellHasher::new(keys.data_id, keys.pages).hash(bytes, &mut hashes);
                if before.leaf.cells.get(cell).is_some_and(|known| id.0.starts_with(known)) {
                    return Vec::new();
                }
                let now = hashes.as_chunks::<PAGE_HASH>().0;
                let unlike: Vec<usize> = (first..)
                    .zip(now)
                    .filter(|(page, hash)| before.hashes.get(*page) != Some(hash))
                    .map(|(page, _)| page)
                    .collect();
                // Hashes that are all the same under another id are a collision.
                if unlike.is_empty() { (first..first + pages).collect() } else { unlike }
            }
            Have::Small(entry) => {
                if self.is_small(entry, bytes) {
                    return Vec::new();
                }
                let known = self.small(entry).unwrap_or_default();
                let of = |number: usize| known.chunks(PAGE).nth(number);
                let pages = bytes.chunks(PAGE).enumerate();
                pages.filter(|(number, page)| of(*number) != Some(page)).map(|(n, _)| n).collect()
            }
        }
    }

    /// What a page of the region was.
    ///
    /// # Errors
    /// When it cannot be read: it is damaged, or this host may only write.
    pub fn page(&self, number: usize) -> Result<Vec<u8>> {
        let from = (number * PAGE) as u64;
        let before = match &self.have {
            Have::Leaf(before) => before,
            Have::Small(entry) => {
                let content = self.small(entry)?;
                return Ok(content.chunks(PAGE).nth(number).unwrap_or_default().to_vec());
            }
        };
        let length = before.length.saturating_sub(from).min(PAGE as u64);
        let mut page = vec![0; length as usize];
        let extents = &before.leaf.extents;
        let behind = extents.partition_point(|extent| extent.offset <= from);
        let extent = behind.checked_sub(1).and_then(|at| extents.get(at));
        if let Some(extent) = extent
            && from < extent.offset + u64::from(extent.length)
        {
            let chunk = self.chunks.get(&extent.chunk)?;
            let bytes = slice("the snapshot before", &chunk, extent)?;
            let at = (from - extent.offset) as usize;
            let bytes = bytes.get(at..).unwrap_or_default();
            let count = bytes.len().min(page.len());
            page[..count].copy_from_slice(&bytes[..count]);
        }
        Ok(page)
    }

    /// Whether a file without leaves is `bytes`, as far as can be told without reading it.
    fn is_small(&self, entry: &Entry, bytes: &[u8]) -> bool {
        let EntryKind::File(content) = &entry.kind else { return false };
        let id = || content_id(&self.shared.repository.keys().data_id, Kind::Data, bytes);
        match &content.body {
            Body::Inline(known) => known == bytes,
            Body::Member(member) => {
                u64::from(member.extent.length) == bytes.len() as u64 && member.hash == short(&id())
            }
            Body::Extents(extents) => {
                matches!(extents.as_slice(), [one] if content.size == bytes.len() as u64
                    && one.chunk == id())
            }
            Body::Leaves(_) => false,
        }
    }

    fn small(&self, entry: &Entry) -> Result<Vec<u8>> {
        let EntryKind::File(content) = &entry.kind else { return Ok(Vec::new()) };
        if let Body::Inline(bytes) = &content.body {
            return Ok(bytes.clone());
        }
        let mut all = vec![0; usize::try_from(content.size).unwrap_or(0).min(CELL)];
        for extent in content.body.extents() {
            let chunk = self.chunks.get(&extent.chunk)?;
            let bytes = slice("the snapshot before", &chunk, extent)?;
            let at = usize::try_from(extent.offset).unwrap_or(usize::MAX);
            if let Some(to) = all.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
                to.copy_from_slice(bytes);
            }
        }
        Ok(all)
    }
}
