//! What a record does to relations beyond the blocks that it names: files that are made, cut or
//! removed, whole databases that come and go, and how much the server writes to its WAL at all.
//!
//! ```text
//! manager     kind  13, 14          from 15 on          main data
//! Storage     0x10  CREATE                              relation 12, fork 4
//! Storage     0x20  TRUNCATE                            blocks 4, relation 12, which forks 4
//! Database    0x00  CREATE          CREATE_FILE_COPY    database 4, tablespace 4, copied from 8
//! Database    0x10  DROP            CREATE_WAL_LOG      database 4, tablespace 4
//! Database    0x20  (none)          DROP                database 4, number 4, tablespaces 4 each
//! Tablespace  0x00  CREATE                              tablespace 4, path
//! Tablespace  0x10  DROP                                tablespace 4
//! RelMap      0x00  UPDATE                              database 4, tablespace 4, length 4, file
//! ```
//!
//! A record that is one of these and cannot be understood is an error here, never nothing: what it
//! did would be missed. The list is that of PostgreSQL's own summarizer
//! (`postmaster/walsummarizer.c`), and tablespaces in addition.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use super::page::u32_at;
use super::record::{
    self, RM_XACT, RM_XLOG, Record, Relation, XACT_ABORT, XACT_ABORT_PREPARED, XACT_COMMIT,
    XACT_COMMIT_PREPARED, relation_at,
};
use super::transaction::Lists;

const RM_SMGR: u8 = 2;
const RM_DATABASE: u8 = 4;
const RM_TABLESPACE: u8 = 5;
const RM_RELMAP: u8 = 7;

const PARAMETER_CHANGE: u8 = 0x60;
const CHECKPOINT_REDO: u8 = 0xe0;

/// Forks, by their numbers in `common/relpath.h`.
pub const FORK_MAIN: u8 = 0;
pub const FORK_FREE_SPACE: u8 = 1;
pub const FORK_VISIBILITY: u8 = 2;
pub const FORK_INIT: u8 = 3;

/// Heap blocks to each page of a visibility map: two bits for each, behind a page header
/// (`HEAPBLOCKS_PER_PAGE` of `access/heap/visibilitymap.c`), for pages of 8 KiB.
const HEAP_BLOCKS_PER_MAP_PAGE: u32 = (8192 - 24) * 4;

/// How much a server writes to its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Not every change: what changed cannot be told from it.
    Minimal,
    Replica,
    Logical,
}

/// What a record does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    DatabaseCreated {
        tablespace: u32,
        database: u32,
    },
    DatabaseDropped {
        database: u32,
        tablespaces: Vec<u32>,
    },
    TablespaceCreated(u32),
    TablespaceDropped(u32),
    ForkCreated {
        relation: Relation,
        fork: u8,
    },
    /// The relation was cut to `blocks` of its heap.
    Truncated {
        relation: Relation,
        blocks: u32,
        forks: TruncatedForks,
    },
    /// A transaction ended, and these relations with it.
    Removed(Vec<Relation>),
    /// `pg_filenode.map` of a database was replaced, of all databases when it is 0.
    MapReplaced {
        tablespace: u32,
        database: u32,
    },
    Level(WalLevel),
}

/// Which forks a truncation cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TruncatedForks {
    pub main: bool,
    pub visibility: bool,
    pub free_space: bool,
}

/// Where a visibility map is cut when its relation is cut to `blocks`
/// (`visibilitymap_truncation_length`).
pub fn map_blocks(blocks: u32) -> u32 {
    blocks.div_ceil(HEAP_BLOCKS_PER_MAP_PAGE)
}

/// A record whose kind is known and whose content makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of kind {kind} is not as PostgreSQL {version} writes it")]
pub struct Malformed {
    pub kind: &'static str,
    pub version: u32,
}

impl Record<'_> {
    /// What this record does beyond its blocks; none for most.
    pub fn effect(&self) -> Result<Option<Effect>, Malformed> {
        let kind = self.info & 0xf0;
        match self.manager {
            RM_XLOG => self.read("XLOG", |data| self.level(kind, data)),
            RM_XACT => {
                let committed = match self.info & record::XACT_KIND {
                    XACT_COMMIT | XACT_COMMIT_PREPARED => true,
                    XACT_ABORT | XACT_ABORT_PREPARED => false,
                    _ => return Ok(None),
                };
                self.read("Transaction", |data| {
                    let lists = Lists::parse(data, self.info, self.version, committed)?;
                    Some((!lists.removed.is_empty()).then_some(Effect::Removed(lists.removed)))
                })
            }
            RM_SMGR => self.read("Storage", |data| storage(kind, data)),
            RM_DATABASE => self.read("Database", |data| {
                // With 15 a way to make databases came between.
                let dropped = if self.version >= 15 { 0x20 } else { 0x10 };
                database(kind, dropped, data)
            }),
            RM_TABLESPACE => self.read("Tablespace", |data| {
                let tablespace = u32_at(data, 0)?;
                match kind {
                    0x00 => Some(Some(Effect::TablespaceCreated(tablespace))),
                    0x10 => Some(Some(Effect::TablespaceDropped(tablespace))),
                    _ => None,
                }
            }),
            RM_RELMAP => self.read("RelMap", |data| {
                let (database, tablespace) = (u32_at(data, 0)?, u32_at(data, 4)?);
                (kind == 0).then_some(Some(Effect::MapReplaced { tablespace, database }))
            }),
            _ => Ok(None),
        }
    }

    fn read(
        &self,
        kind: &'static str,
        parse: impl FnOnce(&[u8]) -> Option<Option<Effect>>,
    ) -> Result<Option<Effect>, Malformed> {
        self.main_data().and_then(parse).ok_or(Malformed { kind, version: self.version })
    }

    /// `wal_level` where a record has it: a change of settings in all versions, and from 17 on
    /// wherever recovery may start.
    fn level(&self, kind: u8, data: &[u8]) -> Option<Option<Effect>> {
        let new = self.version >= 17;
        let at = match kind {
            PARAMETER_CHANGE => 20,
            record::XLOG_CHECKPOINT_SHUTDOWN if new => 20,
            record::XLOG_END_OF_RECOVERY if new => 16,
            CHECKPOINT_REDO if new => 0,
            _ => return Some(None),
        };
        let level = match u32_at(data, at)? {
            0 => WalLevel::Minimal,
            1 => WalLevel::Replica,
            2 => WalLevel::Logical,
            _ => return None,
        };
        Some(Some(Effect::Level(level)))
    }
}

fn storage(kind: u8, data: &[u8]) -> Option<Option<Effect>> {
    match kind {
        0x10 => {
            let fork = u8::try_from(u32_at(data, 12)?).ok()?;
            Some(Some(Effect::ForkCreated { relation: relation_at(data, 0)?, fork }))
        }
        0x20 => {
            let flags = u32_at(data, 16)?;
            Some(Some(Effect::Truncated {
                relation: relation_at(data, 4)?,
                blocks: u32_at(data, 0)?,
                forks: TruncatedForks {
                    main: flags & 1 != 0,
                    visibility: flags & 2 != 0,
                    free_space: flags & 4 != 0,
                },
            }))
        }
        _ => None,
    }
}

fn database(kind: u8, dropped: u8, data: &[u8]) -> Option<Option<Effect>> {
    let database = u32_at(data, 0)?;
    if kind == dropped {
        let count = u32_at(data, 4)? as usize;
        // The count is checked against the bytes before anything is made of its size.
        let listed = data.get(8..8usize.checked_add(count.checked_mul(4)?)?)?;
        let tablespaces =
            listed.chunks_exact(4).map(|one| u32_at(one, 0)).collect::<Option<Vec<u32>>>()?;
        return Some(Some(Effect::DatabaseDropped { database, tablespaces }));
    }
    (kind < dropped)
        .then_some(Some(Effect::DatabaseCreated { tablespace: u32_at(data, 4)?, database }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Lsn;

    fn record<'a>(manager: u8, info: u8, version: u32, body: &'a [u8]) -> Record<'a> {
        Record {
            lsn: Lsn(40),
            end: Lsn(80),
            previous: Lsn(0),
            xid: 7,
            manager,
            info,
            length: body.len() as u32 + 24,
            version,
            body,
        }
    }

    /// A body of main data alone.
    fn body(words: &[u32]) -> Vec<u8> {
        let mut bytes = vec![255, (words.len() * 4) as u8];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    #[test]
    fn the_kinds_of_database_records_moved_with_15() {
        let dropped = body(&[5, 2, 1663, 1700]);
        let expected = Effect::DatabaseDropped { database: 5, tablespaces: vec![1663, 1700] };
        assert_eq!(record(4, 0x10, 14, &dropped).effect(), Ok(Some(expected.clone())));
        assert_eq!(record(4, 0x20, 15, &dropped).effect(), Ok(Some(expected)));
        let made = body(&[5, 1663]);
        let expected = Effect::DatabaseCreated { tablespace: 1663, database: 5 };
        assert_eq!(record(4, 0x10, 15, &made).effect(), Ok(Some(expected)));
        assert!(record(4, 0x20, 14, &made).effect().is_err());
    }

    #[test]
    fn what_cannot_be_understood_is_an_error() {
        // The list says that it is longer than the record.
        assert!(record(4, 0x20, 17, &body(&[5, 1 << 30, 1663])).effect().is_err());
        assert!(record(2, 0x20, 17, &body(&[5, 1663])).effect().is_err());
        assert!(record(2, 0x50, 17, &body(&[5, 1663])).effect().is_err());
        assert!(record(1, 0x80, 17, &body(&[0, 0, 4, 1 << 30])).effect().is_err());
        assert!(record(0, 0xe0, 17, &body(&[3])).effect().is_err());
        assert!(record(1, 0x00, 17, &[255, 200, 1]).effect().is_err());
    }

    #[test]
    fn a_level_is_read_where_a_version_has_it() {
        let minimal = Ok(Some(Effect::Level(WalLevel::Minimal)));
        assert_eq!(record(0, 0xe0, 17, &body(&[0])).effect(), minimal);
        assert_eq!(record(0, 0x60, 13, &body(&[100, 8, 10, 0, 64, 0, 0])).effect(), minimal);
        assert_eq!(record(0, 0x00, 16, &body(&[0; 22])).effect(), Ok(None));
        assert_eq!(record(0, 0x00, 17, &body(&[0; 22])).effect(), minimal);
    }

    #[test]
    fn a_map_is_cut_where_its_own_pages_are() {
        assert_eq!(map_blocks(0), 0);
        assert_eq!(map_blocks(1), 1);
        assert_eq!(map_blocks(32672), 1);
        assert_eq!(map_blocks(32673), 2);
    }
}
