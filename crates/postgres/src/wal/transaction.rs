//! What the end of a transaction lists: `xl_xact_commit` and `xl_xact_abort` of `access/xact.h`.
//!
//! ```text
//! 8   when
//! 4   which of the lists follow, when the record's info says that any do
//!     bit 0  database and tablespace             8
//!     bit 1  subtransactions                     4 for their number, 4 each
//!     bit 2  files of relations to remove        4, 12 each
//!     bit 8  statistics to remove, from 15 on    4, 12 each, from 18 on 16
//!     bit 3  invalidation messages               4, 16 each (of a commit)
//!     bit 4  the prepared transaction            4
//! ```
//!
//! Follows `ParseCommitRecord` and `ParseAbortRecord` of `access/rmgrdesc/xactdesc.c`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use super::page::u32_at;
use super::record::{Relation, relation_at};

const HAS_INFO: u8 = 0x80;

/// The lists that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    /// Relations whose files go with the end of the transaction.
    pub removed: Vec<Relation>,
    /// The transaction that had been prepared.
    pub prepared: Option<u32>,
}

impl Lists {
    /// Reads them from the record's main data; none when it ends too early.
    pub(crate) fn parse(data: &[u8], info: u8, version: u32, committed: bool) -> Option<Self> {
        let mut found = Self::default();
        if info & HAS_INFO == 0 {
            // The time alone.
            return (data.len() >= 8).then_some(found);
        }
        let listed = u32_at(data, 8)?;
        let mut at = 12usize;
        let has = |bit: u32| listed & (1 << bit) != 0;
        let behind = |at: usize, item: usize| -> Option<usize> {
            let count = u32_at(data, at)? as usize;
            let end = at.checked_add(4)?.checked_add(count.checked_mul(item)?)?;
            (end <= data.len()).then_some(end)
        };
        if has(0) {
            at = at.checked_add(8)?;
        }
        if has(1) {
            at = behind(at, 4)?;
        }
        if has(2) {
            let end = behind(at, 12)?;
            let first = at.checked_add(4)?;
            found.removed =
                (first..end).step_by(12).map(|at| relation_at(data, at)).collect::<Option<_>>()?;
            at = end;
        }
        if has(8) {
            at = behind(at, if version >= 18 { 16 } else { 12 })?;
        }
        if committed && has(3) {
            at = behind(at, 16)?;
        }
        if has(4) {
            found.prepared = Some(u32_at(data, at)?);
        }
        Some(found)
    }
}
