//! Reads records from a sequence of segments.
//!
//! A record may begin anywhere in a page (at multiples of 8), go on over pages and segments, and
//! ends where its length says; page headers lie between its pieces. Its CRC and its link to the
//! record before it tell a record from what a recycled segment held earlier.
//!
//! The end of WAL is no mark but the first place where no valid record is. Only the newest segment
//! may have such an end: when the segment after it can be had, the place is damage.
//!
//! Follows `XLogDecodeNextRecord` of PostgreSQL's `access/transam/xlogreader.c`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::ops::Range;
use std::sync::Arc;

use super::page::{self, PageError, PageHeader, SegmentHeader, u32_at, u64_at};
use super::record::{self, Record};
use super::{Lsn, SegmentSize};
use crate::{PostgresError, PostgresErrorKind, Result};

/// Records begin at multiples of this.
const ALIGNMENT: u64 = 8;
/// No server writes a longer record: the largest allocation of PostgreSQL is 1 GiB.
const MAX_RECORD: u32 = 1 << 30;

/// A segment handed to the reader.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The timeline in the file's name.
    pub timeline: u32,
    pub content: Arc<Vec<u8>>,
}

/// Whose WAL is read.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Checked against every segment's header when given.
    pub system_identifier: Option<u64>,
    pub segment_size: SegmentSize,
}

/// Reads records in order. `source` gives the segment of a number, or none behind the newest.
pub struct Reader<F> {
    source: F,
    identity: Identity,
    current: Option<Loaded>,
    /// A look at the segment after the current one, kept until it is needed.
    following: Option<(u64, Option<Segment>)>,
    /// Where the next record is looked for.
    position: Lsn,
    /// The last record returned: its beginning, which the next one must name.
    previous: Option<Lsn>,
    /// End of the last record returned.
    end: Lsn,
    assembled: Vec<u8>,
    segments_read: u64,
    finished: Option<String>,
}

struct Loaded {
    number: u64,
    segment: Segment,
    header: SegmentHeader,
}

/// Why there is no record at a place.
enum Stop {
    /// Not a valid record, and why.
    Invalid(String),
    /// The segment that should hold the rest of it cannot be had.
    Exhausted,
    Failed(PostgresError),
}

impl From<PageError> for Stop {
    fn from(error: PageError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<PostgresError> for Stop {
    fn from(error: PostgresError) -> Self {
        Self::Failed(error)
    }
}

/// Where the body of a record lies.
enum Body {
    InSegment(Range<usize>),
    Assembled,
}

struct Found {
    lsn: Lsn,
    after: Lsn,
    header: Header,
    body: Body,
}

#[derive(Clone, Copy)]
struct Header {
    length: u32,
    xid: u32,
    previous: Lsn,
    info: u8,
    manager: u8,
    crc: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            length: u32_at(bytes, 0)?,
            xid: u32_at(bytes, 4)?,
            previous: Lsn(u64_at(bytes, 8)?),
            info: *bytes.get(16)?,
            manager: *bytes.get(17)?,
            crc: u32_at(bytes, 20)?,
        })
    }

    fn is_switch(&self) -> bool {
        self.manager == record::RM_XLOG && self.info & 0xf0 == record::XLOG_SWITCH
    }
}

impl<F> Reader<F>
where
    F: FnMut(u64) -> Result<Option<Segment>>,
{
    /// Reads from `start`, which is where a record begins, or the beginning of a page or segment:
    /// then from the first record that begins in it.
    pub fn new(identity: Identity, start: Lsn, source: F) -> Self {
        Self {
            source,
            identity,
            current: None,
            following: None,
            position: start,
            previous: None,
            end: start,
            assembled: Vec::new(),
            segments_read: 0,
            finished: None,
        }
    }

    /// The next record; none at the end of WAL.
    ///
    /// # Errors
    /// What `source` fails with, and [`PostgresErrorKind::Damaged`] for a place without a valid
    /// record that is not the end of WAL, since the segment after it can be had.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>> {
        if self.finished.is_some() {
            return Ok(None);
        }
        let found = match self.find() {
            Ok(found) => found,
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Exhausted) => {
                self.finished = Some("the next segment is not there".into());
                return Ok(None);
            }
            Err(Stop::Invalid(reason)) => {
                let number = self.position.segment(self.identity.segment_size);
                if self.peek(number.saturating_add(1))? {
                    return Err(self.damaged(&reason));
                }
                self.finished = Some(reason);
                return Ok(None);
            }
        };
        self.previous = Some(found.lsn);
        self.position = found.after;
        self.end = found.after;
        let version = self.current.as_ref().map_or(0, |c| c.header.page.version);
        let body = match found.body {
            Body::InSegment(range) => {
                self.current.as_ref().and_then(|c| c.segment.content.get(range)).unwrap_or_default()
            }
            Body::Assembled => &self.assembled,
        };
        Ok(Some(Record {
            lsn: found.lsn,
            end: found.after,
            previous: found.header.previous,
            xid: found.header.xid,
            manager: found.header.manager,
            info: found.header.info,
            length: found.header.length,
            version,
            body: body.get(record::HEADER..).unwrap_or_default(),
        }))
    }

    /// Where the last record returned ends, and the next may begin.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// Where the last record returned begins.
    pub fn last(&self) -> Option<Lsn> {
        self.previous
    }

    /// Why there were no more records, once there were none.
    pub fn end_reason(&self) -> Option<&str> {
        self.finished.as_deref()
    }

    /// How many segments were taken from the source.
    pub fn segments_read(&self) -> u64 {
        self.segments_read
    }

    fn damaged(&self, reason: &str) -> PostgresError {
        PostgresError::new(
            PostgresErrorKind::Damaged,
            format!("the WAL has no valid record at {}: {reason}", self.position),
        )
        .with_hint("recovery cannot pass this position; what lies before it can be recovered")
    }

    /// Finds the record at `position`, or the one after a torn record that was given up there.
    fn find(&mut self) -> Result<Found, Stop> {
        let mut at = self.position;
        // Each round either finds a record or moves on by a page.
        loop {
            let (page_start, header) = self.page_of(at)?;
            let body_start = page_start.0 + header.length() as u64;
            if at.0 < body_start {
                // At the beginning of a page: the first record that begins in it.
                if header.continues() {
                    if self.previous.is_some() && at == self.position {
                        return Err(Stop::Invalid("a record goes on that never began".into()));
                    }
                    match self.skip_continuation(page_start, header) {
                        Skipped::Here(next) => at = next,
                        Skipped::NextPage(next) => {
                            at = next;
                            continue;
                        }
                    }
                } else {
                    at = Lsn(body_start);
                }
                if at.0 >= page_start.0 + u64::from(self.page_size()) {
                    continue;
                }
            }
            match self.record_at(at)? {
                Ok(found) => return Ok(found),
                // A torn record was given up on that page: what replaced it begins there.
                Err(page) => at = page,
            }
            self.position = at;
        }
    }

    /// The place behind the rest of an earlier record.
    fn skip_continuation(&self, page: Lsn, header: PageHeader) -> Skipped {
        let room = u64::from(self.page_size()) - header.length() as u64;
        let rest = u64::from(header.remaining).next_multiple_of(ALIGNMENT);
        if rest >= room {
            Skipped::NextPage(Lsn(page.0 + u64::from(self.page_size())))
        } else {
            Skipped::Here(Lsn(page.0 + header.length() as u64 + rest))
        }
    }

    /// The record at `lsn`, or the page on which it was given up.
    fn record_at(&mut self, lsn: Lsn) -> Result<Result<Found, Lsn>, Stop> {
        if !lsn.0.is_multiple_of(ALIGNMENT) {
            return Err(Stop::Invalid("records begin at multiples of 8".into()));
        }
        let page_size = u64::from(self.page_size());
        let in_page = page_size - lsn.0 % page_size;
        let start = lsn.offset(self.identity.segment_size) as usize;
        let first = self.bytes(start, in_page as usize);
        // The length is never split: records begin at multiples of 8.
        let length = u32_at(first, 0).ok_or_else(|| Stop::Invalid("it is cut short".into()))?;
        if length == 0 {
            return Err(Stop::Invalid("nothing was written there".into()));
        }
        if length < record::HEADER as u32 || length > MAX_RECORD {
            return Err(Stop::Invalid(format!("a record cannot have {length} bytes")));
        }
        if u64::from(length) <= in_page {
            let end = start + length as usize;
            let bytes = first.get(..length as usize).unwrap_or_default();
            let header = self.checked(lsn, bytes)?;
            let after = Lsn(lsn.0 + u64::from(length).next_multiple_of(ALIGNMENT));
            let after = self.behind(header, after);
            return Ok(Ok(Found { lsn, after, header, body: Body::InSegment(start..end) }));
        }
        self.assemble(lsn, length)
    }

    /// Puts a record together that goes on over several pages.
    fn assemble(&mut self, lsn: Lsn, length: u32) -> Result<Result<Found, Lsn>, Stop> {
        let page_size = u64::from(self.page_size());
        let mut assembled = std::mem::take(&mut self.assembled);
        assembled.clear();
        let in_page = page_size - lsn.0 % page_size;
        let start = lsn.offset(self.identity.segment_size) as usize;
        assembled.extend_from_slice(self.bytes(start, in_page as usize));
        let mut page = Lsn(lsn.0 - lsn.0 % page_size);
        let mut checked = false;
        let after = loop {
            // What is known of the header is checked before anything is read for its sake.
            if !checked && let Some(header) = Header::parse(&assembled) {
                self.check_link(lsn, &header)?;
                checked = true;
            }
            let left = length as usize - assembled.len();
            page = Lsn(page.0 + page_size);
            let (_, header) = self.page_of(page)?;
            if header.overwrites() {
                return Ok(Err(page));
            }
            if !header.continues() {
                return Err(Stop::Invalid(format!("the record does not go on at {page}")));
            }
            if header.remaining as usize != left {
                return Err(Stop::Invalid(format!(
                    "at {page} {} bytes of the record go on where {left} are missing",
                    header.remaining
                )));
            }
            let take = left.min(page_size as usize - header.length());
            let start = page.offset(self.identity.segment_size) as usize + header.length();
            let piece = self.bytes(start, take);
            if piece.len() != take {
                return Err(Stop::Invalid("it is cut short".into()));
            }
            assembled.extend_from_slice(piece);
            if take == left {
                let end = page.0 + header.length() as u64 + take as u64;
                break Lsn(end.next_multiple_of(ALIGNMENT));
            }
        };
        let header = self.checked(lsn, &assembled)?;
        self.assembled = assembled;
        let after = self.behind(header, after);
        Ok(Ok(Found { lsn, after, header, body: Body::Assembled }))
    }

    /// Where the next record may begin: a switch leaves the rest of its segment empty.
    fn behind(&self, header: Header, after: Lsn) -> Lsn {
        if header.is_switch() {
            Lsn(after.0.next_multiple_of(self.identity.segment_size.bytes()))
        } else {
            after
        }
    }

    fn check_link(&self, lsn: Lsn, header: &Header) -> Result<(), Stop> {
        let linked = match self.previous {
            Some(previous) => header.previous == previous,
            // Of the first record read only this is known.
            None => header.previous < lsn,
        };
        if linked {
            Ok(())
        } else {
            Err(Stop::Invalid(format!(
                "the record there follows one at {}, not the one before it",
                header.previous
            )))
        }
    }

    fn checked(&self, lsn: Lsn, bytes: &[u8]) -> Result<Header, Stop> {
        let invalid = |what: &str| Stop::Invalid(what.to_owned());
        let header = Header::parse(bytes).ok_or_else(|| invalid("it is cut short"))?;
        self.check_link(lsn, &header)?;
        let (head, body) =
            bytes.split_at_checked(record::HEADER).ok_or_else(|| invalid("it is cut short"))?;
        let crc = crc32c::crc32c(body);
        let crc = crc32c::crc32c_append(crc, head.get(..20).unwrap_or_default());
        if crc != header.crc {
            return Err(invalid("its checksum is wrong"));
        }
        Ok(header)
    }

    fn page_size(&self) -> u32 {
        self.current.as_ref().map_or(8192, |c| c.header.page_size)
    }

    /// At most `length` bytes of the current segment.
    fn bytes(&self, start: usize, length: usize) -> &[u8] {
        let Some(current) = &self.current else { return &[] };
        let content = &current.segment.content;
        let end = start.saturating_add(length).min(content.len());
        content.get(start..end).unwrap_or_default()
    }

    /// The page that holds `lsn`, its header checked.
    fn page_of(&mut self, lsn: Lsn) -> Result<(Lsn, PageHeader), Stop> {
        // Half of the number space is more than any cluster writes, and keeps sums from wrapping.
        if lsn.0 >= 1 << 63 {
            return Err(Stop::Invalid("the position is past all WAL".into()));
        }
        self.load(lsn.segment(self.identity.segment_size))?;
        let Some(current) = &self.current else { return Err(Stop::Exhausted) };
        let start = Lsn(lsn.0 - lsn.0 % u64::from(current.header.page_size));
        let offset = start.offset(self.identity.segment_size) as usize;
        let bytes = current.segment.content.get(offset..).unwrap_or_default();
        let header = PageHeader::parse(bytes)?;
        if header.address != start {
            return Err(PageError::Address { said: header.address, expected: start }.into());
        }
        if (header.flags & page::LONG != 0) != (offset == 0) {
            return Err(PageError::Kind.into());
        }
        let expected = current.header.page.version;
        if header.version != expected {
            return Err(PageError::Version { said: header.version, expected }.into());
        }
        page::check_timeline(header.timeline, current.segment.timeline)?;
        Ok((start, header))
    }

    fn load(&mut self, number: u64) -> Result<(), Stop> {
        if self.current.as_ref().is_some_and(|c| c.number == number) {
            return Ok(());
        }
        let taken = match self.following.take() {
            Some((there, segment)) if there == number => segment,
            _ => self.take(number)?,
        };
        let Some(segment) = taken else { return Err(Stop::Exhausted) };
        let header = SegmentHeader::parse(&segment.content)?;
        let size = self.identity.segment_size;
        if header.segment_size != size || segment.content.len() as u64 != size.bytes() {
            return Err(Stop::Invalid(format!(
                "the segment there has {} bytes, its header says {}, and {} are expected",
                segment.content.len(),
                header.segment_size.bytes(),
                size.bytes()
            )));
        }
        if let Some(expected) = self.identity.system_identifier
            && expected != header.system_identifier
        {
            return Err(Stop::Invalid(format!(
                "the segment there belongs to the cluster {}, not to {expected}",
                header.system_identifier
            )));
        }
        if let Some(current) = &self.current
            && current.header.page_size != header.page_size
        {
            return Err(PageError::PageSize(header.page_size).into());
        }
        self.current = Some(Loaded { number, segment, header });
        Ok(())
    }

    fn take(&mut self, number: u64) -> Result<Option<Segment>> {
        let segment = (self.source)(number)?;
        self.segments_read += u64::from(segment.is_some());
        Ok(segment)
    }

    /// Whether the segment `number` can be had.
    fn peek(&mut self, number: u64) -> Result<bool> {
        if self.following.as_ref().is_none_or(|(there, _)| *there != number) {
            let segment = self.take(number)?;
            self.following = Some((number, segment));
        }
        Ok(self.following.as_ref().is_some_and(|(_, segment)| segment.is_some()))
    }
}

enum Skipped {
    Here(Lsn),
    NextPage(Lsn),
}
