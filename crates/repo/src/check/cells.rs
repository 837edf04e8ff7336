//! Whether the cells of database files are what their ids say, put together from their extents.
//!
//! That a page did not change is told by 64 bits of a keyed hash; that all pages of a cell are the
//! right ones, in the right places, by the cell's id, which was computed from the source itself. A
//! cell that is one chunk needs no look: its id is that of the chunk.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use super::Check;
use crate::chunks::Chunks;
use crate::entry::{Extent, FileContent, LeafRef};
use crate::session::{CELL, REGION, content_id_of_data};
use crate::tree::{Tree, slice};
use crate::{ObjectId, Result};

/// A leaf of a file in a snapshot.
pub(super) struct Region {
    pub snapshot: String,
    pub path: String,
    pub leaf: LeafRef,
    /// Bytes that the file has there.
    pub length: u64,
}

impl Region {
    pub fn new(snapshot: &str, path: &str, leaf: LeafRef, content: &FileContent) -> Self {
        let length = content.size.saturating_sub(leaf.offset).min(REGION);
        Self { snapshot: snapshot.to_owned(), path: path.to_owned(), leaf, length }
    }
}

/// Checks the cells of regions that no one else has.
pub(super) fn check(check: &Check<'_>, regions: &[Region]) -> Result<()> {
    let chunks = Chunks::new(check.repository);
    let seen = Mutex::new(HashSet::new());
    let zeros = Mutex::new(HashMap::new());
    check.parallel(regions, |region| {
        let tree = Tree::new(check.repository.clone(), ObjectId([0; 32]), region.snapshot.clone());
        let read = tree.leaf(&region.leaf.id);
        let Some(leaf) = check.judge(&region.snapshot, read)? else { return Ok(()) };
        let mut extents = leaf.extents.as_slice();
        for (number, cell) in leaf.cells.iter().enumerate() {
            check.progress.check()?;
            let from = (number * CELL) as u64;
            let length = region.length.saturating_sub(from).min(CELL as u64) as usize;
            let (own, rest) =
                extents.split_at(extents.partition_point(|e| e.offset < from + CELL as u64));
            extents = rest;
            if is_the_chunk(own, cell, length)
                || !seen.lock().unwrap_or_else(|e| e.into_inner()).insert(name(own, cell, from))
            {
                continue;
            }
            let found = if own.is_empty() {
                let mut zeros = zeros.lock().unwrap_or_else(|e| e.into_inner());
                *zeros
                    .entry(length)
                    .or_insert_with(|| content_id_of_data(check.repository, &vec![0; length]))
            } else {
                let content = assemble(&region.snapshot, &chunks, own, from, length);
                // A chunk that cannot be read was told of with its pack.
                let Some(content) = check.judge(&region.snapshot, content)? else { continue };
                content_id_of_data(check.repository, &content)
            };
            if !found.0.starts_with(cell) {
                let at = region.leaf.offset + from;
                check.damage(
                    &region.snapshot,
                    format!(
                        "the cell of {} at byte {at} is not what its id says: its pages are in \
                         other places than its map tells",
                        region.path
                    ),
                );
            }
        }
        check.progress.add_done(region.length, 1);
        Ok(())
    })
}

/// Whether a cell is a chunk as it is.
fn is_the_chunk(extents: &[Extent], cell: &[u8; 16], length: usize) -> bool {
    matches!(extents, [one] if one.chunk.0.starts_with(cell)
        && one.chunk_offset == 0
        && one.offset.is_multiple_of(CELL as u64)
        && one.length as usize == length)
}

/// What tells a cell and its extents from all others.
fn name(extents: &[Extent], cell: &[u8; 16], from: u64) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(cell);
    for extent in extents {
        hasher.update(&(extent.offset - from).to_le_bytes());
        hasher.update(&extent.length.to_le_bytes());
        hasher.update(&extent.chunk.0);
        hasher.update(&extent.chunk_offset.to_le_bytes());
    }
    let mut name = [0; 16];
    name.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    name
}

fn assemble(
    object: &str,
    chunks: &Chunks,
    extents: &[Extent],
    from: u64,
    length: usize,
) -> Result<Vec<u8>> {
    let outside = || crate::RepoError::damaged(object, "an extent lies outside of its cell");
    let mut content = vec![0; length];
    for extent in extents {
        let chunk = chunks.get(&extent.chunk)?;
        let bytes = slice(object, &chunk, extent)?;
        let at = extent.offset.checked_sub(from).ok_or_else(outside)? as usize;
        content.get_mut(at..at + bytes.len()).ok_or_else(outside)?.copy_from_slice(bytes);
    }
    Ok(content)
}
