//! What a WAL record says, as far as recovery targets and summaries need it.
//!
//! ```text
//! offset  bytes
//!      0  4     length of the whole record, this header included
//!      4  4     transaction
//!      8  8     position of the record before
//!     16  1     info: the resource manager's kind in the upper four bits
//!     17  1     resource manager
//!     18  2     padding
//!     20  4     CRC-32C of what follows the header, then of the header up to here
//! ```
//!
//! What follows are headers of blocks and of data, then the data in the same order
//! (`access/xlogrecord.h`). A record's own words are in its *main data*, the last part.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use jiff::Timestamp;

use super::Lsn;
use super::page::{u16_at, u32_at, u64_at};
use super::transaction::Lists;

/// Bytes of a record's header.
pub const HEADER: usize = 24;

/// Resource managers that are read here.
pub(crate) const RM_XLOG: u8 = 0;
pub(crate) const RM_XACT: u8 = 1;

pub(crate) const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
pub(crate) const XLOG_SWITCH: u8 = 0x40;
const XLOG_RESTORE_POINT: u8 = 0x70;
pub(crate) const XLOG_END_OF_RECOVERY: u8 = 0x90;

pub(crate) const XACT_KIND: u8 = 0x70;
pub(crate) const XACT_COMMIT: u8 = 0x00;
pub(crate) const XACT_ABORT: u8 = 0x20;
pub(crate) const XACT_COMMIT_PREPARED: u8 = 0x30;
pub(crate) const XACT_ABORT_PREPARED: u8 = 0x40;

/// One record; its bytes live in the reader.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where the record begins.
    pub lsn: Lsn,
    /// Where the next record may begin at the earliest.
    pub end: Lsn,
    /// Where the record before it begins.
    pub previous: Lsn,
    /// The transaction that wrote it, 0 for none.
    pub xid: u32,
    /// The resource manager.
    pub manager: u8,
    /// The kind of record, in the upper four bits.
    pub info: u8,
    /// Bytes of the whole record.
    pub length: u32,
    /// The major version of the server that wrote it.
    pub version: u32,
    pub(crate) body: &'a [u8],
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    /// The top-level transaction; of a prepared one its own, not that of who ended it.
    pub xid: u32,
    /// The server's clock when it ended.
    pub time: Timestamp,
    pub committed: bool,
    pub prepared: bool,
}

/// A record whose meaning is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    TransactionEnd(TransactionEnd),
    RestorePoint {
        name: String,
        time: Timestamp,
    },
    Checkpoint {
        /// Where recovery from this checkpoint begins.
        redo: Lsn,
        timeline: u32,
        previous_timeline: u32,
        time: Timestamp,
        shutdown: bool,
    },
    /// A server was promoted without a checkpoint.
    EndOfRecovery {
        timeline: u32,
        previous_timeline: u32,
        time: Timestamp,
    },
    /// The rest of the segment is empty.
    Switch,
}

/// A relation's files: what its pages are called in WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relation {
    pub tablespace: u32,
    pub database: u32,
    /// The number of the file, which is not the relation's OID for ever.
    pub relation: u32,
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.relation)
    }
}

/// What a record changed: one block of one fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockReference {
    pub relation: Relation,
    pub fork: u8,
    pub block: u32,
    /// The record holds the whole page.
    pub image: Option<Image>,
}

/// A whole page in a record, of which only the measures are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Image {
    /// Bytes in the record.
    pub length: u16,
    /// Where the page's unused middle begins, which is not in the record.
    pub hole: u16,
    pub compression: Option<ImageCompression>,
    /// Recovery puts it in place; otherwise it is there for checks only.
    pub applied: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageCompression {
    Pglz,
    Lz4,
    Zstd,
    /// Several bits at once, or none that is known.
    Unknown,
}

impl Image {
    /// The bits changed their meaning with 15 (`access/xlogrecord.h`).
    fn new(version: u32, length: u16, hole: u16, how: u8) -> Self {
        let (applied, compression) = if version >= 15 {
            let compression = match how & 0xfc {
                0 => None,
                0x04 => Some(ImageCompression::Pglz),
                0x08 => Some(ImageCompression::Lz4),
                0x10 => Some(ImageCompression::Zstd),
                _ => Some(ImageCompression::Unknown),
            };
            (how & 0x02 != 0, compression)
        } else {
            (how & 0x04 != 0, (how & 0x02 != 0).then_some(ImageCompression::Pglz))
        };
        Self { length, hole, compression, applied }
    }
}

/// What stands in the headers of a record.
enum Part {
    Block(BlockReference),
    Origin(u16),
    TopLevel(u32),
}

impl<'a> Record<'a> {
    /// The meaning of this record; none for what is not needed, or cannot be understood.
    pub fn event(&self) -> Option<Event> {
        let kind = self.info & 0xf0;
        match self.manager {
            RM_XACT => self.transaction_end().map(Event::TransactionEnd),
            RM_XLOG if kind == XLOG_SWITCH => Some(Event::Switch),
            RM_XLOG => {
                let data = self.main_data()?;
                match kind {
                    XLOG_CHECKPOINT_SHUTDOWN | XLOG_CHECKPOINT_ONLINE => {
                        checkpoint(data, kind == XLOG_CHECKPOINT_SHUTDOWN)
                    }
                    XLOG_RESTORE_POINT => {
                        // Filled up with zeros to 64 bytes, the last one always zero.
                        let name = data.get(8..72)?.split(|&byte| byte == 0).next()?;
                        Some(Event::RestorePoint {
                            name: String::from_utf8_lossy(name).into_owned(),
                            time: time(u64_at(data, 0)?)?,
                        })
                    }
                    XLOG_END_OF_RECOVERY => Some(Event::EndOfRecovery {
                        time: time(u64_at(data, 0)?)?,
                        timeline: u32_at(data, 8)?,
                        previous_timeline: u32_at(data, 12)?,
                    }),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The end of a transaction, if this record is one. Cheaper than [`Record::event`].
    pub fn transaction_end(&self) -> Option<TransactionEnd> {
        if self.manager != RM_XACT {
            return None;
        }
        let (committed, prepared) = match self.info & XACT_KIND {
            XACT_COMMIT => (true, false),
            XACT_ABORT => (false, false),
            XACT_COMMIT_PREPARED => (true, true),
            XACT_ABORT_PREPARED => (false, true),
            _ => return None,
        };
        let data = self.main_data()?;
        let xid = if prepared { self.prepared_xid(data, committed)? } else { self.xid };
        Some(TransactionEnd { xid, time: time(u64_at(data, 0)?)?, committed, prepared })
    }

    /// The transaction that was prepared, which stands behind all that a commit or abort may list.
    fn prepared_xid(&self, data: &[u8], committed: bool) -> Option<u32> {
        Lists::parse(data, self.info, self.version, committed)?.prepared
    }

    /// The record's own words, without blocks.
    pub fn main_data(&self) -> Option<&'a [u8]> {
        let length = self.walk(|_| ())?;
        self.body.get(self.body.len().checked_sub(length)?..)
    }

    /// The blocks that the record changed; none when its headers make no sense.
    pub fn blocks(&self) -> Option<Vec<BlockReference>> {
        let mut blocks = Vec::new();
        self.each_block(|block| blocks.push(block))?;
        Some(blocks)
    }

    /// The same without a list. None, possibly after some blocks, when the headers make no sense.
    pub fn each_block(&self, mut each: impl FnMut(BlockReference)) -> Option<()> {
        self.walk(|part| {
            if let Part::Block(block) = part {
                each(block);
            }
        })?;
        Some(())
    }

    /// Where a replicated change was first made, and the transaction that this one is a part of:
    /// both are in few records.
    pub fn origin_and_top_level(&self) -> (Option<u16>, Option<u32>) {
        let (mut origin, mut top) = (None, None);
        let _ = self.walk(|part| match part {
            Part::Origin(id) => origin = Some(id),
            Part::TopLevel(xid) => top = Some(xid),
            Part::Block(_) => {}
        });
        (origin, top)
    }

    /// Walks the headers as `DecodeXLogRecord` does, and answers the length of the main data.
    fn walk(&self, mut each: impl FnMut(Part)) -> Option<usize> {
        let body = self.body;
        let mut at = 0usize;
        let mut data = 0usize; // all that follows the headers
        let mut main = 0usize;
        let mut relation: Option<Relation> = None;
        while body.len().checked_sub(at)? > data {
            let id = *body.get(at)?;
            at += 1;
            match id {
                255 => {
                    main = usize::from(*body.get(at)?);
                    at += 1;
                    data = data.checked_add(main)?;
                    break;
                }
                254 => {
                    main = u32_at(body, at)? as usize;
                    at += 4;
                    data = data.checked_add(main)?;
                    break;
                }
                253 => {
                    each(Part::Origin(u16_at(body, at)?));
                    at += 2;
                }
                252 => {
                    each(Part::TopLevel(u32_at(body, at)?));
                    at += 4;
                }
                0..=32 => {
                    let flags = *body.get(at)?;
                    data = data.checked_add(usize::from(u16_at(body, at + 1)?))?;
                    at += 3;
                    let mut image = None;
                    if flags & 0x10 != 0 {
                        let length = u16_at(body, at)?;
                        data = data.checked_add(usize::from(length))?;
                        let how = *body.get(at + 4)?;
                        let found = Image::new(self.version, length, u16_at(body, at + 2)?, how);
                        at += 5;
                        if found.compression.is_some() && how & 0x01 != 0 {
                            at += 2; // the length of the hole in the page
                        }
                        image = Some(found);
                    }
                    if flags & 0x80 == 0 {
                        relation = Some(relation_at(body, at)?);
                        at += 12;
                    }
                    let relation = relation?;
                    let block = u32_at(body, at)?;
                    at += 4;
                    each(Part::Block(BlockReference {
                        relation,
                        fork: flags & 0x0f,
                        block,
                        image,
                    }));
                }
                _ => return None,
            }
        }
        (body.len().checked_sub(at)? == data).then_some(main)
    }
}

/// A `RelFileLocator`: tablespace, database, file.
pub(crate) fn relation_at(bytes: &[u8], at: usize) -> Option<Relation> {
    Some(Relation {
        tablespace: u32_at(bytes, at)?,
        database: u32_at(bytes, at.checked_add(4)?)?,
        relation: u32_at(bytes, at.checked_add(8)?)?,
    })
}

/// The `CheckPoint` structure of `catalog/pg_control.h`. Its first fields never moved; the time
/// did not either from 13 to 17, and 18 kept its place.
fn checkpoint(data: &[u8], shutdown: bool) -> Option<Event> {
    Some(Event::Checkpoint {
        redo: Lsn(u64_at(data, 0)?),
        timeline: u32_at(data, 8)?,
        previous_timeline: u32_at(data, 12)?,
        time: checkpoint_time(data)?,
        shutdown,
    })
}

/// `time` follows `nextXid` (8), `nextOid`, `nextMulti`, `nextMultiOffset`, `oldestXid`,
/// `oldestXidDB`, `oldestMulti`, `oldestMultiDB` (4 each), aligned to 8; it is a `pg_time_t`:
/// seconds since 1970.
fn checkpoint_time(data: &[u8]) -> Option<Timestamp> {
    Timestamp::from_second(u64_at(data, 64)?.cast_signed()).ok()
}

/// A `TimestampTz`: microseconds since 2000-01-01 in UTC.
fn time(raw: u64) -> Option<Timestamp> {
    const EPOCH: i64 = 946_684_800 * 1_000_000;
    Timestamp::from_microsecond(raw.cast_signed().checked_add(EPOCH)?).ok()
}
