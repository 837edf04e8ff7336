//! An open file: any range of it, holes included, with read-ahead for those who read on.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use super::{EntryRef, View};
use crate::entry::{Body, EntryKind, Extent, FileContent, LeafRef};
use crate::tree::slice;
use crate::{ObjectId, RepoError, RepoErrorKind, Result};

/// What is read ahead at first of a file that is read from one place on, and at most. Bytes.
const WINDOW: u64 = 2 << 20;
const MAX_WINDOW: u64 = 16 << 20;
/// A system that reads ahead itself asks for several ranges at once, in any order. Bytes.
const TOLERANCE: u64 = 1 << 20;

/// A file of a snapshot, open for reading. Safe to use from any thread.
pub struct FileReader {
    view: View,
    entry: EntryRef,
    ahead: Mutex<Ahead>,
    /// Chunks that could not be read. They are not tried again while the file is open, or a reader
    /// that goes page by page would look for each of them hundreds of times.
    failed: Mutex<HashMap<ObjectId, RepoError>>,
}

/// What is known of how a file is read.
#[derive(Default)]
struct Ahead {
    /// Where the next range begins if the reader goes on.
    next: u64,
    window: u64,
    /// Up to where chunks were asked for.
    until: u64,
}

impl FileReader {
    pub(super) fn open(view: &View, entry: &EntryRef) -> Result<Self> {
        let EntryKind::File(content) = &entry.kind else {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("{} is not a file", entry.display_path()),
            ));
        };
        let it = Self {
            view: view.clone(),
            entry: entry.clone(),
            ahead: Mutex::default(),
            failed: Mutex::default(),
        };
        match &content.body {
            Body::Inline(bytes) if bytes.len() as u64 != content.size => {
                Err(it.damaged("a file has another size than its content"))
            }
            body @ (Body::Extents(_) | Body::Member(_)) => {
                it.check(body.extents(), 0, content.size)?;
                Ok(it)
            }
            Body::Leaves(leaves) => {
                let offsets = leaves.iter().map(|leaf| leaf.offset);
                if !offsets.is_sorted_by(|a, b| a < b) {
                    return Err(it.damaged("the leaves of an extent map are out of order"));
                }
                Ok(it)
            }
            Body::Inline(_) => Ok(it),
        }
    }

    fn content(&self) -> &FileContent {
        match &self.entry.kind {
            EntryKind::File(content) => content,
            _ => unreachable!("open takes files alone"),
        }
    }

    fn damaged(&self, what: &str) -> RepoError {
        let what = format!("{what} ({})", self.entry.display_path());
        RepoError::damaged(&self.view.name, what)
    }

    /// Bytes, holes included.
    pub fn size(&self) -> u64 {
        self.content().size
    }

    /// Whether extents follow each other within a region of the file.
    fn check(&self, extents: &[Extent], from: u64, to: u64) -> Result<()> {
        let mut end = from;
        for extent in extents {
            let stop = extent.offset.checked_add(u64::from(extent.length));
            match stop {
                Some(stop) if extent.offset >= end && stop <= to => end = stop,
                _ => return Err(self.damaged("an extent lies outside of its place")),
            }
        }
        Ok(())
    }

    /// Adds the bytes from `offset` on to `out`: `length` of them, or less at the end of the file.
    /// After an error `out` holds nothing that counts.
    pub fn read_at(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> Result<()> {
        let end = offset.saturating_add(length as u64).min(self.size());
        if offset >= end {
            return Ok(());
        }
        if let Body::Inline(bytes) = &self.content().body {
            out.extend_from_slice(bytes.get(offset as usize..end as usize).unwrap_or_default());
            return Ok(());
        }
        self.read_ahead(offset, end);
        let mut at = offset;
        for extent in self.extents(offset, end)? {
            fill(out, extent.offset.saturating_sub(at));
            let chunk = self.chunk(&extent.chunk)?;
            let bytes = slice(&self.view.name, &chunk, &extent)?;
            let from = offset.saturating_sub(extent.offset) as usize;
            let to = bytes.len().min((end - extent.offset) as usize);
            out.extend_from_slice(bytes.get(from..to).unwrap_or_default());
            at = (extent.offset + u64::from(extent.length)).min(end);
        }
        fill(out, end - at);
        Ok(())
    }

    fn failed(&self) -> MutexGuard<'_, HashMap<ObjectId, RepoError>> {
        self.failed.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn chunk(&self, id: &ObjectId) -> Result<std::sync::Arc<Vec<u8>>> {
        if let Some(error) = self.failed().get(id) {
            return Err(error.repeat());
        }
        self.view.browser.core.chunk(id).inspect_err(|error| {
            if error.is_about_an_object() {
                self.failed().insert(*id, error.repeat());
            }
        })
    }

    /// The extents that have bytes of a range of the file.
    fn extents(&self, from: u64, to: u64) -> Result<Vec<Extent>> {
        let mut found = Vec::new();
        match &self.content().body {
            Body::Inline(_) => {}
            body @ (Body::Extents(_) | Body::Member(_)) => {
                found.extend(within(body.extents(), 0, from, to));
            }
            Body::Leaves(leaves) => {
                let first = leaves.partition_point(|leaf| leaf.offset <= from).saturating_sub(1);
                for (at, leaf) in leaves.iter().enumerate().skip(first) {
                    if leaf.offset >= to {
                        break;
                    }
                    found.extend(self.of_leaf(leaf, leaves.get(at + 1), from, to)?);
                }
            }
        }
        Ok(found)
    }

    /// Those of one leaf.
    fn of_leaf(
        &self,
        leaf: &LeafRef,
        next: Option<&LeafRef>,
        from: u64,
        to: u64,
    ) -> Result<Vec<Extent>> {
        let extents = self.view.browser.core.leaf(&self.view.tree, &leaf.id)?;
        // Up to the next leaf, or to the end of the file.
        let room = next.map_or(self.size(), |next| next.offset).min(self.size());
        self.check(&extents, 0, room.saturating_sub(leaf.offset))?;
        Ok(within(&extents, leaf.offset, from, to))
    }

    /// Has the chunks fetched that a reader who goes on from `offset` wants next.
    fn read_ahead(&self, offset: u64, end: u64) {
        let mut ahead = self.ahead.lock().unwrap_or_else(|e| e.into_inner());
        let goes_on = offset.saturating_add(TOLERANCE) >= ahead.next
            && offset <= ahead.next.saturating_add(TOLERANCE);
        let before = ahead.next;
        ahead.next = end.max(before);
        if !goes_on {
            *ahead = Ahead { next: end, window: 0, until: 0 };
            return;
        }
        // Whoever asks twice for the same goes nowhere.
        if end <= before || self.size() <= end {
            return;
        }
        let wanted = end.saturating_add(ahead.window).min(self.size());
        if ahead.until >= wanted.saturating_sub(ahead.window / 2) && ahead.until > end {
            return;
        }
        ahead.window = (ahead.window * 2).clamp(WINDOW, MAX_WINDOW);
        let from = ahead.until.max(end);
        let to = end.saturating_add(ahead.window).min(self.size());
        ahead.until = to;
        drop(ahead);
        // A leaf that cannot be read is an error for whoever gets there.
        let Ok(extents) = self.extents(from, to) else { return };
        for extent in extents {
            let core = &self.view.browser.core;
            if !core.chunks.contains(&extent.chunk)
                && self.view.browser.ahead.try_send(extent.chunk).is_err()
            {
                break;
            }
        }
    }

    /// The first byte from `offset` on that is in no hole; nothing if there is none.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        if matches!(self.content().body, Body::Inline(_)) {
            return Ok((offset < self.size()).then_some(offset));
        }
        let mut from = offset;
        while from < self.size() {
            let to = from.saturating_add(MAX_WINDOW).min(self.size());
            if let Some(extent) = self.extents(from, to)?.first() {
                return Ok(Some(extent.offset.max(offset)));
            }
            from = to;
        }
        Ok(None)
    }

    /// The first byte from `offset` on that is in a hole, the end of the file being one.
    pub fn next_hole(&self, offset: u64) -> Result<u64> {
        if matches!(self.content().body, Body::Inline(_)) {
            return Ok(self.size());
        }
        let mut at = offset;
        while at < self.size() {
            let to = at.saturating_add(MAX_WINDOW).min(self.size());
            for extent in self.extents(at, to)? {
                if extent.offset > at {
                    return Ok(at);
                }
                at = extent.offset + u64::from(extent.length);
            }
            if at < to {
                return Ok(at);
            }
        }
        Ok(self.size())
    }
}

/// The extents that have bytes of a range; their offsets count from `base`, those that are given
/// from the start of the file.
fn within(extents: &[Extent], base: u64, from: u64, to: u64) -> Vec<Extent> {
    let end = |extent: &Extent| base + extent.offset + u64::from(extent.length);
    let first = extents.partition_point(|extent| end(extent) <= from);
    extents
        .iter()
        .skip(first)
        .take_while(|extent| base + extent.offset < to)
        .map(|extent| Extent { offset: base + extent.offset, ..*extent })
        .collect()
}

fn fill(out: &mut Vec<u8>, zeros: u64) {
    out.resize(out.len() + zeros as usize, 0);
}
