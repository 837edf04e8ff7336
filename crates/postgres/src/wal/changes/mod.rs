//! Which blocks changed between two positions of the WAL: a summary.
//!
//! For each fork of each relation, a set of blocks and a *limit*: from the limit on nothing is known
//! of the fork, because it was cut there, made anew or removed; blocks of the set at or behind the
//! limit were written after that. A database or tablespace that came or went has a limit of 0 under
//! relation 0 (and database 0).
//!
//! Neither the free space map nor the visibility map can be trusted to be in the WAL: the first is
//! hardly ever logged, and a bit of the second is cleared without its page being named. Whoever asks
//! about them is told that they changed ([`Changes::of_file`]).

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod blocks;
mod file;
mod path;

use std::collections::BTreeMap;
use std::ops::Range;

pub use blocks::BlockSet;
pub use file::SummaryError;

use super::effect::{
    Effect, FORK_FREE_SPACE, FORK_INIT, FORK_MAIN, FORK_VISIBILITY, WalLevel, map_blocks,
};
use super::{Lsn, Record, record::Relation};
use crate::{PostgresError, PostgresErrorKind, Result};

/// One fork of one relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fork {
    pub relation: Relation,
    pub fork: u8,
}

/// What changed in a fork.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForkChanges {
    /// From this block on the fork is not what it was, even where no block is named.
    pub limit: Option<u32>,
    pub blocks: BlockSet,
}

/// What changed in a file of a relation, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChanges {
    Nothing,
    /// These blocks, counted from the beginning of the file.
    Blocks(Vec<Range<u64>>),
    /// Nothing is known of it: all must be read.
    Unknown,
}

/// A summary of WAL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub(super) forks: BTreeMap<Fork, ForkChanges>,
    /// Where WAL was first written that does not have every change.
    pub(super) minimal: Option<Lsn>,
}

impl Changes {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what a record changed.
    ///
    /// # Errors
    /// [`PostgresErrorKind::Damaged`] for a record that cannot be understood: what it changed would
    /// be missed.
    pub fn add(&mut self, record: &Record<'_>) -> Result<()> {
        let damaged = |what: String| {
            PostgresError::new(
                PostgresErrorKind::Damaged,
                format!("the WAL record at {} cannot be understood: {what}", record.lsn),
            )
        };
        // A record that cuts a fork and names blocks of it wrote them after the cut.
        if let Some(effect) = record.effect().map_err(|error| damaged(error.to_string()))? {
            self.apply(effect, record.lsn);
        }
        record
            .each_block(|block| {
                if is_told(block.fork) {
                    let fork = Fork { relation: block.relation, fork: block.fork };
                    self.forks.entry(fork).or_default().blocks.insert(block.block);
                }
            })
            .ok_or_else(|| damaged("its headers make no sense".into()))
    }

    fn apply(&mut self, effect: Effect, lsn: Lsn) {
        let whole = |tablespace, database| Relation { tablespace, database, relation: 0 };
        match effect {
            Effect::DatabaseCreated { tablespace, database } => {
                self.limit(whole(tablespace, database), FORK_MAIN, 0);
            }
            Effect::DatabaseDropped { database, tablespaces } => {
                for tablespace in tablespaces {
                    self.limit(whole(tablespace, database), FORK_MAIN, 0);
                }
            }
            Effect::TablespaceCreated(tablespace) | Effect::TablespaceDropped(tablespace) => {
                self.limit(whole(tablespace, 0), FORK_MAIN, 0);
            }
            Effect::ForkCreated { relation, fork } => self.limit(relation, fork, 0),
            Effect::Truncated { relation, blocks, forks } => {
                if forks.main {
                    self.limit(relation, FORK_MAIN, blocks);
                }
                if forks.visibility {
                    self.limit(relation, FORK_VISIBILITY, map_blocks(blocks));
                }
            }
            Effect::Removed(relations) => {
                for relation in relations {
                    for fork in [FORK_MAIN, FORK_VISIBILITY, FORK_INIT] {
                        self.limit(relation, fork, 0);
                    }
                }
            }
            // A file of its own, which is no relation and is always read.
            Effect::MapReplaced { .. } => {}
            Effect::Level(WalLevel::Minimal) => {
                self.minimal.get_or_insert(lsn);
            }
            Effect::Level(_) => {}
        }
    }

    fn limit(&mut self, relation: Relation, fork: u8, limit: u32) {
        if !is_told(fork) {
            return;
        }
        let changes = self.forks.entry(Fork { relation, fork }).or_default();
        // As in PostgreSQL's own summaries, what was written since an earlier cut stays: it lies
        // behind that limit, where nothing is concluded from it.
        if changes.limit.is_none_or(|known| limit < known) {
            changes.limit = Some(limit);
            changes.blocks.cut(limit);
        }
    }

    /// Every fork that changed, in order. Relation 0 stands for a whole database, and for a whole
    /// tablespace where the database is 0, too.
    pub fn forks(&self) -> impl Iterator<Item = (&Fork, &ForkChanges)> {
        self.forks.iter()
    }

    /// Where WAL was first written with `wal_level` minimal: from there on blocks changed that no
    /// record names, so nothing may be concluded from this summary.
    pub fn unsafe_since(&self) -> Option<Lsn> {
        self.minimal
    }

    /// How many blocks are named.
    pub fn blocks(&self) -> u64 {
        self.forks.values().map(|fork| fork.blocks.len()).sum()
    }

    /// What changed in the file with segment `segment` of a fork, of `per_segment` blocks.
    ///
    /// What lies behind the file's earlier end is not in here: WAL does not have pages of zeros that
    /// a relation was extended by.
    pub fn of_file(&self, fork: Fork, segment: u32, per_segment: u32) -> FileChanges {
        if matches!(fork.fork, FORK_FREE_SPACE | FORK_VISIBILITY) || self.unsafe_since().is_some() {
            return FileChanges::Unknown;
        }
        let Relation { tablespace, database, .. } = fork.relation;
        let covered = |database| {
            let relation = Relation { tablespace, database, relation: 0 };
            self.forks.contains_key(&Fork { relation, fork: FORK_MAIN })
        };
        if covered(database) || covered(0) {
            return FileChanges::Unknown;
        }
        let Some(changes) = self.forks.get(&fork) else { return FileChanges::Nothing };
        let first = u64::from(segment) * u64::from(per_segment);
        let behind = first + u64::from(per_segment);
        // The file that holds the limit was cut and may have grown again: all of it is read.
        if changes.limit.is_some_and(|limit| u64::from(limit) < behind) {
            return FileChanges::Unknown;
        }
        let ranges: Vec<Range<u64>> = changes
            .blocks
            .ranges_within(first..behind)
            .into_iter()
            .map(|range| range.start - first..range.end - first)
            .collect();
        if ranges.is_empty() { FileChanges::Nothing } else { FileChanges::Blocks(ranges) }
    }
}

/// Whether anything is concluded of a fork: of the free space nothing can be, and the file of one that
/// has no name here is no relation's, so that it is read whole each time.
fn is_told(fork: u8) -> bool {
    fork <= FORK_INIT && fork != FORK_FREE_SPACE
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELATION: Relation = Relation { tablespace: 1663, database: 5, relation: 16384 };
    const MAIN: Fork = Fork { relation: RELATION, fork: FORK_MAIN };
    const PER_FILE: u32 = 131_072;

    fn block(number: u64) -> FileChanges {
        FileChanges::Blocks(std::iter::once(number..number + 1).collect())
    }

    fn with(blocks: &[u32]) -> Changes {
        let mut changes = Changes::new();
        for block in blocks {
            changes.forks.entry(MAIN).or_default().blocks.insert(*block);
        }
        changes
    }

    #[test]
    fn blocks_are_those_of_their_file() {
        let changes = with(&[0, 1, PER_FILE - 1, PER_FILE, PER_FILE + 7]);
        let last = u64::from(PER_FILE) - 1;
        assert_eq!(
            changes.of_file(MAIN, 0, PER_FILE),
            FileChanges::Blocks(vec![0..2, last..last + 1])
        );
        assert_eq!(changes.of_file(MAIN, 1, PER_FILE), FileChanges::Blocks(vec![0..1, 7..8]));
        assert_eq!(changes.of_file(MAIN, 2, PER_FILE), FileChanges::Nothing);
        let other = Fork { relation: Relation { relation: 1, ..RELATION }, ..MAIN };
        assert_eq!(changes.of_file(other, 0, PER_FILE), FileChanges::Nothing);
    }

    #[test]
    fn a_relation_that_was_cut_and_grew_is_read_from_the_file_of_the_cut_on() {
        let mut changes = with(&[3, PER_FILE + 9]);
        let forks =
            super::super::effect::TruncatedForks { main: true, visibility: true, free_space: true };
        let cut = |blocks| Effect::Truncated { relation: RELATION, blocks, forks };
        changes.apply(cut(PER_FILE + 5), Lsn(8));
        changes.forks.get_mut(&MAIN).unwrap().blocks.insert(PER_FILE * 2);
        assert_eq!(changes.of_file(MAIN, 0, PER_FILE), block(3));
        assert_eq!(changes.of_file(MAIN, 1, PER_FILE), FileChanges::Unknown);
        assert_eq!(changes.of_file(MAIN, 2, PER_FILE), FileChanges::Unknown);
        // A later cut farther behind does not raise the limit.
        changes.apply(cut(PER_FILE * 2 + 1), Lsn(9));
        assert_eq!(changes.of_file(MAIN, 1, PER_FILE), FileChanges::Unknown);
    }

    #[test]
    fn a_database_and_a_tablespace_cover_what_is_in_them() {
        let mut changes = with(&[]);
        changes.apply(Effect::DatabaseCreated { tablespace: 1663, database: 5 }, Lsn(8));
        assert_eq!(changes.of_file(MAIN, 0, PER_FILE), FileChanges::Unknown);
        let in_space = |tablespace| Fork { relation: Relation { tablespace, ..RELATION }, fork: 0 };
        assert_eq!(changes.of_file(in_space(1700), 0, PER_FILE), FileChanges::Nothing);
        changes.apply(Effect::TablespaceDropped(1700), Lsn(8));
        assert_eq!(changes.of_file(in_space(1700), 0, PER_FILE), FileChanges::Unknown);
    }

    #[test]
    fn nothing_is_concluded_about_maps_nor_from_minimal_wal() {
        let mut changes = with(&[]);
        for fork in [FORK_FREE_SPACE, FORK_VISIBILITY] {
            let fork = Fork { relation: RELATION, fork };
            assert_eq!(changes.of_file(fork, 0, PER_FILE), FileChanges::Unknown);
        }
        assert_eq!(changes.of_file(MAIN, 0, PER_FILE), FileChanges::Nothing);
        changes.apply(Effect::Level(WalLevel::Minimal), Lsn(8));
        changes.apply(Effect::Level(WalLevel::Replica), Lsn(16));
        assert_eq!(changes.unsafe_since(), Some(Lsn(8)));
        assert_eq!(changes.of_file(MAIN, 0, PER_FILE), FileChanges::Unknown);
    }
}
