//! The bytes of a summary.
//!
//! ```text
//! offset  bytes
//!      0  8     magic and version: "BKSTWAL1"
//!      8  8     system identifier
//!     16  4     timeline that the range ends on
//!     20  4     how many forks
//!     24  8     first position of the range
//!     32  8     first position behind the range
//!     40  8     where WAL of level `minimal` begins, 0 for nowhere
//!             -- each fork, in order of its first four numbers
//!      0  4     tablespace
//!      4  4     database, 0 for those of all databases
//!      8  4     relation, 0 for the whole database (or tablespace, where that is 0, too)
//!     12  1     fork: 0 main, 2 visibility map, 3 init
//!     13  1     1 when it has a limit
//!     14  2     zero
//!     16  4     limit, 0 without
//!     20  4     how many chunks
//!               -- each chunk, in order
//!               2  upper half of the block numbers
//!               2  how many blocks, less one
//!                  fewer than 4096: the lower half of each, 2 bytes, in order;
//!                  else 8192 bytes, bit `n % 8` of byte `n / 8` for block n
//!             -- at the end
//!         4     CRC-32C of all before
//! ```
//!
//! Little-endian. There is one way to write a summary: what is not written that way is refused, so
//! two summaries are the same exactly if their bytes are. The CRC finds rot; that nobody made a
//! summary up is for where it is kept to see to.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use super::blocks::{Chunk, DENSE, WORDS};
use super::{BlockSet, Changes, Fork, ForkChanges, Relation};
use crate::wal::Lsn;
use crate::wal::effect::{FORK_FREE_SPACE, FORK_INIT};
use crate::wal::scan::Summary;

const MAGIC: &[u8; 8] = b"BKSTWAL1";

/// Why bytes are no summary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no summary of WAL: {0}")]
pub struct SummaryError(&'static str);

impl Summary {
    /// The bytes of a summary file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut put = |part: &[u8]| bytes.extend_from_slice(part);
        put(&self.system_identifier.to_le_bytes());
        put(&self.timeline.to_le_bytes());
        put(&(self.changes.forks.len() as u32).to_le_bytes());
        put(&self.from.0.to_le_bytes());
        put(&self.to.0.to_le_bytes());
        put(&self.changes.minimal.unwrap_or_default().0.to_le_bytes());
        for (fork, changes) in &self.changes.forks {
            put(&fork.relation.tablespace.to_le_bytes());
            put(&fork.relation.database.to_le_bytes());
            put(&fork.relation.relation.to_le_bytes());
            put(&[fork.fork, u8::from(changes.limit.is_some())]);
            put(&[0, 0]);
            put(&changes.limit.unwrap_or_default().to_le_bytes());
            put(&(changes.blocks.chunks.len() as u32).to_le_bytes());
            for (number, chunk) in &changes.blocks.chunks {
                put(&number.to_le_bytes());
                put(&(chunk.len().saturating_sub(1) as u16).to_le_bytes());
                match chunk {
                    Chunk::Few(list) => list.iter().for_each(|low| put(&low.to_le_bytes())),
                    Chunk::Many(words) => words.iter().for_each(|word| put(&word.to_le_bytes())),
                }
            }
        }
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads what [`Summary::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, SummaryError> {
        let (rest, sum) = bytes.split_last_chunk::<4>().ok_or(SummaryError("it is too short"))?;
        let mut rest = rest.strip_prefix(MAGIC).ok_or(SummaryError(
            "it does not begin as one, or is of a version that this program does not know",
        ))?;
        if crc32c::crc32c_append(crc32c::crc32c(MAGIC), rest) != u32::from_le_bytes(*sum) {
            return Err(SummaryError("its checksum is wrong"));
        }
        let bytes = &mut rest;
        let system_identifier = u64::from_le_bytes(take(bytes)?);
        let timeline = u32::from_le_bytes(take(bytes)?);
        let count = u32::from_le_bytes(take(bytes)?);
        let (from, to) =
            (Lsn(u64::from_le_bytes(take(bytes)?)), Lsn(u64::from_le_bytes(take(bytes)?)));
        let minimal = Lsn(u64::from_le_bytes(take(bytes)?));
        if timeline == 0 || from > to {
            return Err(SummaryError("its range is none"));
        }
        let mut changes =
            Changes { minimal: (minimal.0 != 0).then_some(minimal), ..Changes::new() };
        for _ in 0..count {
            let (fork, found) = fork(bytes)?;
            if changes.forks.last_key_value().is_some_and(|(last, _)| *last >= fork) {
                return Err(SummaryError("its relations are not in order"));
            }
            changes.forks.insert(fork, found);
        }
        if !bytes.is_empty() {
            return Err(SummaryError("it goes on behind its end"));
        }
        Ok(Self { system_identifier, timeline, from, to, changes })
    }
}

fn fork(bytes: &mut &[u8]) -> Result<(Fork, ForkChanges), SummaryError> {
    let tablespace = u32::from_le_bytes(take(bytes)?);
    let database = u32::from_le_bytes(take(bytes)?);
    let relation = Relation { tablespace, database, relation: u32::from_le_bytes(take(bytes)?) };
    let [fork, has_limit] = take(bytes)?;
    let padding: [u8; 2] = take(bytes)?;
    let limit = u32::from_le_bytes(take(bytes)?);
    let chunks = u32::from_le_bytes(take(bytes)?);
    let known = fork <= FORK_INIT && fork != FORK_FREE_SPACE && has_limit <= 1 && padding == [0; 2];
    if !known || (has_limit == 0 && limit != 0) {
        return Err(SummaryError("one of its relations makes no sense"));
    }
    let mut blocks = BlockSet::default();
    for _ in 0..chunks {
        let number = u16::from_le_bytes(take(bytes)?);
        if blocks.chunks.last_key_value().is_some_and(|(last, _)| *last >= number) {
            return Err(SummaryError("its blocks are not in order"));
        }
        let count = usize::from(u16::from_le_bytes(take(bytes)?)) + 1;
        let chunk = if count < DENSE {
            let list: Vec<u16> = (0..count)
                .map(|_| take(bytes).map(u16::from_le_bytes))
                .collect::<Result<_, _>>()?;
            if !list.is_sorted_by(|a, b| a < b) {
                return Err(SummaryError("its blocks are not in order"));
            }
            Chunk::Few(list)
        } else {
            let mut words = Box::new([0; WORDS]);
            for word in words.iter_mut() {
                *word = u64::from_le_bytes(take(bytes)?);
            }
            let chunk = Chunk::Many(words);
            if chunk.len() != count {
                return Err(SummaryError("its blocks are not as many as it says"));
            }
            chunk
        };
        blocks.chunks.insert(number, chunk);
    }
    Ok((Fork { relation, fork }, ForkChanges { limit: (has_limit == 1).then_some(limit), blocks }))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], SummaryError> {
    let (first, rest) = bytes.split_first_chunk().ok_or(SummaryError("it is cut short"))?;
    *bytes = rest;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Database and file, limit, and runs of blocks.
    type Sample = ((u32, u32), Option<u32>, Vec<(u32, u32)>);

    fn summary(forks: &[Sample]) -> Summary {
        let mut changes = Changes::new();
        for ((database, relation), limit, runs) in forks {
            let relation = Relation { tablespace: 1663, database: *database, relation: *relation };
            let mut found = ForkChanges { limit: *limit, ..ForkChanges::default() };
            for (first, count) in runs {
                (*first..first + count).for_each(|block| found.blocks.insert(block));
            }
            changes.forks.insert(Fork { relation, fork: (relation.relation % 2 * 2) as u8 }, found);
        }
        Summary {
            system_identifier: 42,
            timeline: 0x0a,
            from: Lsn(0x28),
            to: Lsn(0x0100_0000),
            changes,
        }
    }

    #[test]
    fn the_bytes_are_these() {
        let bytes = summary(&[((5, 16384), Some(7), vec![(2, 2)])]).encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let body = "424b535457414c31".to_owned()
            + "2a00000000000000"
            + "0a000000"
            + "01000000"
            + "2800000000000000"
            + "0000000100000000"
            + "0000000000000000"
            + "7f060000"
            + "05000000"
            + "00400000"
            + "00"
            + "01"
            + "0000"
            + "07000000"
            + "01000000"
            + "0000"
            + "0100"
            + "0200"
            + "0300";
        assert_eq!(hex.strip_suffix(&hex[hex.len() - 8..]), Some(body.as_str()));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_found() {
        let bytes = summary(&[((5, 16384), None, vec![(9, 3)]), ((5, 16385), Some(1), vec![])]);
        let bytes = bytes.encode();
        for at in 0..bytes.len() {
            assert!(Summary::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(Summary::decode(&changed).is_err(), "changed at {at}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            forks in prop::collection::vec(
                (
                    (0u32..4, 0u32..50),
                    prop::option::of(0u32..100_000),
                    prop::collection::vec((0u32..200_000, 1u32..6000), 0..3),
                ),
                0..8,
            ),
        ) {
            let summary = summary(&forks);
            prop_assert_eq!(Summary::decode(&summary.encode()).unwrap(), summary);
        }

        /// Bytes with the right checksum are a summary in the one way to write it, or refused.
        #[test]
        fn any_bytes_are_read_or_refused(
            changes in prop::collection::vec((0usize..400, any::<u8>()), 0..8),
            length in 0usize..400,
        ) {
            let mut bytes =
                summary(&[((5, 16384), None, vec![(9, 60)]), ((5, 16385), Some(1), vec![(0, 3)])])
                    .encode();
            bytes.truncate(length.max(8));
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            let sum = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            if let Ok(found) = Summary::decode(&bytes) {
                prop_assert_eq!(found.encode(), bytes);
            }
        }
    }
}
