//! All entries of a part, many blocks at once.

use super::{BLOCK, Part, READ_AHEAD};
use crate::Result;
use crate::crypto::TAG;
use crate::index::segment::{ENTRY, RawEntry};

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

impl<'p> PartIter<'p> {
    pub(super) fn of(part: &'p Part) -> Self {
        Self { part, block: 0, buffer: Vec::new(), at: 0, length: 0, failed: false }
    }
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
