//! The headers of WAL pages, and what the first page of a segment says about the segment.
//!
//! ```text
//! offset  bytes
//!      0  2     magic: one number for each major version
//!      2  2     flags
//!      4  4     timeline
//!      8  8     the page's own position
//!     16  4     bytes of a record that began earlier and go on here
//!     20  4     padding
//!            -- the first page of a segment goes on:
//!     24  8     system identifier
//!     32  4     segment size
//!     36  4     page size
//! ```
//!
//! All in the byte order of the machine; every machine that Backstay runs on is little-endian.
//! The layout is that of `XLogPageHeaderData` and `XLogLongPageHeaderData` in PostgreSQL's
//! `access/xlog_internal.h`; the magic numbers were read from servers of each version.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use super::{Lsn, SegmentName, SegmentSize};
use crate::{PostgresError, PostgresErrorKind, Result};

/// The magic numbers and the major versions that write them.
const MAGICS: [(u16, u32); 6] =
    [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18)];

/// Bytes of the header of every page but a segment's first.
pub const SHORT_HEADER: usize = 24;
/// Bytes of the header of a segment's first page.
pub const LONG_HEADER: usize = 40;

/// The page begins with the rest of a record.
pub(crate) const FIRST_IS_CONTRECORD: u16 = 0x0001;
pub(crate) const LONG: u16 = 0x0002;
/// The rest of a record that should be here was never written; a new one takes its place.
pub(crate) const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000f;

/// Why a page header cannot be that of the page that should be there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    #[error("it ends before the page header does")]
    Short,
    #[error("its first bytes are zeros: nothing was ever written there")]
    Zeros,
    #[error("its magic number {0:#06X} is that of no PostgreSQL from 13 to 18")]
    Magic(u16),
    #[error("its page header has unknown flags ({0:#06x})")]
    Flags(u16),
    #[error("it says that it belongs at {said}, not at {expected}")]
    Address { said: Lsn, expected: Lsn },
    #[error("its page header is of the wrong kind for its place in the segment")]
    Kind,
    #[error("its segment size of {0} bytes is none that PostgreSQL has")]
    SegmentSize(u32),
    #[error("its page size of {0} bytes is none that PostgreSQL has")]
    PageSize(u32),
    #[error("its timeline {said} is not one that can be in a segment of timeline {expected}")]
    Timeline { said: u32, expected: u32 },
    #[error("it was written by PostgreSQL {said}, the pages before it by {expected}")]
    Version { said: u32, expected: u32 },
}

/// The header of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// The major version of the server that wrote the page.
    pub version: u32,
    pub timeline: u32,
    /// The position of the page.
    pub address: Lsn,
    /// How many bytes of an earlier record are still to come, from this page on.
    pub remaining: u32,
    pub(crate) flags: u16,
}

impl PageHeader {
    /// Reads a header, short or long; checks all that a page knows by itself.
    pub fn parse(page: &[u8]) -> Result<Self, PageError> {
        let magic = u16_at(page, 0).ok_or(PageError::Short)?;
        let flags = u16_at(page, 2).ok_or(PageError::Short)?;
        let timeline = u32_at(page, 4).ok_or(PageError::Short)?;
        let address = Lsn(u64_at(page, 8).ok_or(PageError::Short)?);
        let remaining = u32_at(page, 16).ok_or(PageError::Short)?;
        if magic == 0 && flags == 0 && address.0 == 0 {
            return Err(PageError::Zeros);
        }
        let version = MAGICS
            .iter()
            .find_map(|&(known, version)| (known == magic).then_some(version))
            .ok_or(PageError::Magic(magic))?;
        if flags & !ALL_FLAGS != 0 {
            return Err(PageError::Flags(flags));
        }
        Ok(Self { version, timeline, address, remaining, flags })
    }

    /// The page begins with the rest of a record.
    pub fn continues(&self) -> bool {
        self.flags & FIRST_IS_CONTRECORD != 0
    }

    /// A record that was torn off by a crash is given up here.
    pub fn overwrites(&self) -> bool {
        self.flags & FIRST_IS_OVERWRITE_CONTRECORD != 0
    }

    /// Bytes that the header takes.
    pub fn length(&self) -> usize {
        if self.flags & LONG != 0 { LONG_HEADER } else { SHORT_HEADER }
    }
}

/// What the first page of a segment says about the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub page: PageHeader,
    pub system_identifier: u64,
    pub segment_size: SegmentSize,
    /// Bytes of a WAL page: `XLOG_BLCKSZ`, 8192 unless the server was built otherwise.
    pub page_size: u32,
}

impl SegmentHeader {
    /// Bytes at the beginning of a segment that hold it: `SizeOfXLogLongPHD`.
    pub const SIZE: usize = 40;

    /// Reads the header at the beginning of a segment; needs its first 40 bytes only.
    pub fn parse(segment: &[u8]) -> Result<Self, PageError> {
        let page = PageHeader::parse(segment)?;
        if page.flags & LONG == 0 {
            return Err(PageError::Kind);
        }
        let system_identifier = u64_at(segment, 24).ok_or(PageError::Short)?;
        let size = u32_at(segment, 32).ok_or(PageError::Short)?;
        let page_size = u32_at(segment, 36).ok_or(PageError::Short)?;
        let segment_size = SegmentSize::new(u64::from(size)).ok_or(PageError::SegmentSize(size))?;
        if !page_size.is_power_of_two() || !(1024..=65536).contains(&page_size) {
            return Err(PageError::PageSize(page_size));
        }
        Ok(Self { page, system_identifier, segment_size, page_size })
    }
}

/// Checks that `content` is the segment `name` of the cluster `system_identifier` (of any cluster
/// when none is given): its header, its length and its place.
///
/// What is checked is that the file is whole and the right one; its records are not read.
pub fn check_segment(
    name: SegmentName,
    content: &[u8],
    system_identifier: Option<u64>,
) -> Result<SegmentHeader> {
    check_segment_head(name, content, content.len() as u64, system_identifier)
}

/// The same for a segment of `length` bytes of which only the first are at hand.
pub(crate) fn check_segment_head(
    name: SegmentName,
    head: &[u8],
    length: u64,
    system_identifier: Option<u64>,
) -> Result<SegmentHeader> {
    let damaged = |what: String| {
        PostgresError::new(
            PostgresErrorKind::Damaged,
            format!("the WAL segment {name} cannot be used: {what}"),
        )
    };
    if length == 0 {
        return Err(damaged("it is empty".into()));
    }
    let header = SegmentHeader::parse(head).map_err(|error| damaged(error.to_string()))?;
    if let Some(expected) = system_identifier
        && expected != header.system_identifier
    {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "the WAL segment {name} belongs to another cluster: its system identifier is {}, \
                 not {expected}",
                header.system_identifier
            ),
        )
        .with_hint(
            "check which cluster this source is, and that each cluster has its own source",
        ));
    }
    let size = header.segment_size;
    if length != size.bytes() {
        return Err(damaged(format!(
            "it has {length} bytes where its header says {}",
            size.bytes()
        )));
    }
    let start = name
        .start(size)
        .ok_or_else(|| damaged(format!("no cluster with segments of {size} has that name")))?;
    if header.page.address != start {
        return Err(damaged(
            PageError::Address { said: header.page.address, expected: start }.to_string(),
        ));
    }
    check_timeline(header.page.timeline, name.timeline()).map_err(|e| damaged(e.to_string()))?;
    Ok(header)
}

/// A segment begins with a copy of its ancestor's when its timeline began inside it, so pages of
/// earlier timelines are right; timelines only grow.
pub(crate) fn check_timeline(said: u32, expected: u32) -> Result<(), PageError> {
    if said == 0 || said > expected {
        return Err(PageError::Timeline { said, expected });
    }
    Ok(())
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(array_at(bytes, at)?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(array_at(bytes, at)?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(array_at(bytes, at)?))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A segment as a server would begin it, for tests: a valid header, then zeros.
#[cfg(test)]
pub(crate) fn blank_segment(
    name: SegmentName,
    system_identifier: u64,
    size: SegmentSize,
) -> Vec<u8> {
    let mut bytes = vec![0; size.bytes() as usize];
    bytes[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&LONG.to_le_bytes());
    bytes[4..8].copy_from_slice(&name.timeline().to_le_bytes());
    bytes[8..16].copy_from_slice(&name.start(size).unwrap().0.to_le_bytes());
    bytes[24..32].copy_from_slice(&system_identifier.to_le_bytes());
    bytes[32..36].copy_from_slice(&u32::from(size).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> SegmentName {
        "000000020000000000000007".parse().unwrap()
    }

    fn blank() -> Vec<u8> {
        blank_segment(name(), 42, SegmentSize::MIN)
    }

    fn refusal(content: &[u8]) -> String {
        check_segment(name(), content, Some(42)).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_segment_of_the_right_cluster_is_accepted() {
        let header = check_segment(name(), &blank(), Some(42)).unwrap();
        assert_eq!(header.page.version, 15);
        assert_eq!(header.page_size, 8192);
        check_segment(name(), &blank(), None).unwrap();
    }

    #[test]
    fn every_way_to_be_wrong_is_named() {
        assert!(refusal(&[]).contains("it is empty"));
        assert!(refusal(&blank()[..30]).contains("ends before the page header"));
        assert!(refusal(&blank()[..4096]).contains("4096 bytes where its header says 1048576"));
        assert!(refusal(&vec![0; 1 << 20]).contains("nothing was ever written"));
        let change = |at: usize, value: u8| {
            let mut bytes = blank();
            bytes[at] = value;
            refusal(&bytes)
        };
        assert!(change(0, 0x99).contains("magic number"));
        assert!(change(2, 0x12).contains("unknown flags"));
        assert!(change(2, 0x00).contains("wrong kind"));
        assert!(change(4, 3).contains("timeline 3"));
        assert!(change(4, 0).contains("timeline 0"));
        assert!(change(10, 0x33).contains("belongs at"));
        assert!(change(24, 43).contains("another cluster"));
        assert!(change(34, 0x33).contains("segment size"));
        assert!(change(37, 0x21).contains("page size"));
        // A segment of an ancestor timeline is what a new timeline begins with.
        let mut bytes = blank();
        bytes[4] = 1;
        check_segment(name(), &bytes, Some(42)).unwrap();
    }

    #[test]
    fn a_renamed_segment_is_refused() {
        let other = "000000020000000000000008".parse().unwrap();
        let error = check_segment(other, &blank(), Some(42)).unwrap_err();
        assert!(error.to_string().contains("belongs at 0/700000, not at 0/800000"), "{error}");
    }
}
