//! The pieces of WAL that a server sends, put together to segments.

use backstay_repo::{RepoError, RepoErrorKind};

use super::ship::Parcel;
use crate::wal::page::{PageError, PageHeader};
use crate::wal::{Lsn, SegmentName, SegmentSize, check_segment};
use crate::{PostgresError, PostgresErrorKind, Result};

/// Slices of one segment before they are put together to one.
const SLICES: usize = 64;

/// What a server sends while WAL flows.
pub(crate) enum Piece<'a> {
    Wal { start: Lsn, server: Lsn, bytes: &'a [u8] },
    Alive { server: Lsn, reply: bool },
}

/// Reads one message of the stream: `XLogData` or a sign of life, as `protocol.sgml` has them.
pub(crate) fn read(data: &[u8]) -> Option<Piece<'_>> {
    let (kind, rest) = data.split_first()?;
    let number = |rest: &mut &[u8]| -> Option<u64> {
        let (bytes, after) = rest.split_first_chunk::<8>()?;
        *rest = after;
        Some(u64::from_be_bytes(*bytes))
    };
    let mut rest = rest;
    match kind {
        b'w' => {
            let start = Lsn(number(&mut rest)?);
            let server = Lsn(number(&mut rest)?);
            number(&mut rest)?;
            Some(Piece::Wal { start, server, bytes: rest })
        }
        b'k' => {
            let server = Lsn(number(&mut rest)?);
            number(&mut rest)?;
            Some(Piece::Alive { server, reply: *rest.first()? != 0 })
        }
        _ => None,
    }
}

/// The time that the server says with it, in microseconds since 2000.
pub(crate) fn time_of(data: &[u8]) -> Option<i64> {
    let at = match data.first()? {
        b'w' => 17,
        b'k' => 9,
        _ => return None,
    };
    Some(i64::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

/// The segment in work.
pub(crate) struct Incoming {
    name: SegmentName,
    size: SegmentSize,
    system_identifier: u64,
    start: Lsn,
    content: Vec<u8>,
    /// How much of it was handed over to be shipped.
    shipped: usize,
    slices: usize,
    /// What an earlier run shipped of it.
    known: Vec<u8>,
    /// How far page headers were looked at.
    checked: usize,
    page_size: usize,
    /// What came last cannot be used, and nothing behind it.
    unsound: bool,
}

impl Incoming {
    pub(crate) fn new(
        name: SegmentName,
        size: SegmentSize,
        system_identifier: u64,
        known: Vec<u8>,
    ) -> Result<Self> {
        let start = name.start(size).ok_or_else(|| outside(name))?;
        Ok(Self {
            name,
            size,
            system_identifier,
            start,
            content: Vec::new(),
            shipped: 0,
            slices: 0,
            known,
            checked: 0,
            page_size: 8192,
            unsound: false,
        })
    }

    /// The end of what came.
    pub(crate) fn received(&self) -> Lsn {
        Lsn(self.start.0 + self.content.len() as u64)
    }

    /// The segment in work, and what came of it.
    pub(crate) fn partial(&self) -> (SegmentName, &[u8]) {
        (self.name, &self.content)
    }

    pub(crate) fn has_unshipped(&self) -> bool {
        self.shipped < self.content.len()
    }

    /// Takes the next bytes of the log; answers the segments that are whole with them.
    pub(crate) fn take(&mut self, at: Lsn, bytes: &[u8]) -> Result<Vec<Parcel>> {
        let taken = self.add(at, bytes);
        self.unsound |= taken.is_err();
        taken
    }

    fn add(&mut self, at: Lsn, mut bytes: &[u8]) -> Result<Vec<Parcel>> {
        if at != self.received() {
            return Err(PostgresError::new(
                PostgresErrorKind::Server,
                format!("the server sent WAL of {at} where {} was next", self.received()),
            )
            .transient());
        }
        let mut whole = Vec::new();
        let size = self.size.bytes() as usize;
        while !bytes.is_empty() {
            let room = size - self.content.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.content.extend_from_slice(now);
            bytes = later;
            self.check_pages()?;
            self.compare()?;
            if self.content.len() == size {
                let content = std::mem::take(&mut self.content);
                check_segment(self.name, &content, Some(self.system_identifier))?;
                whole.push(Parcel::Segment {
                    name: self.name,
                    end: Lsn(self.start.0 + size as u64),
                    content,
                });
                let next = self.name.next(self.size).ok_or_else(|| outside(self.name))?;
                *self = Self::new(next, self.size, self.system_identifier, Vec::new())?;
            }
        }
        Ok(whole)
    }

    /// What is to be shipped next, if anything is new.
    pub(crate) fn slice(&mut self) -> Option<Parcel> {
        let end = self.content.len();
        if self.shipped == end || self.unsound {
            return None;
        }
        if end <= self.known.len() {
            // An earlier run shipped it, and it is the same.
            self.shipped = end;
            return Some(Parcel::There { end: Lsn(self.start.0 + end as u64) });
        }
        let rolled = self.slices >= SLICES;
        let start = if rolled { 0 } else { self.shipped.max(self.known.len()) };
        self.slices = if rolled { 1 } else { self.slices + 1 };
        self.shipped = end;
        let bytes = self.content.get(start..end).unwrap_or_default().to_vec();
        Some(Parcel::Slice {
            name: self.name,
            start: start as u32,
            end: Lsn(self.start.0 + end as u64),
            bytes,
        })
    }

    /// What came is what an earlier run shipped.
    fn compare(&mut self) -> Result<()> {
        let both = self.known.len().min(self.content.len());
        if both == 0 || self.known.get(..both) == self.content.get(..both) {
            return Ok(());
        }
        let error = RepoError::new(
            RepoErrorKind::Conflict,
            format!("the server sends other WAL of {} than the archive has slices of", self.name),
        )
        .with_hint(
            "the cluster was restored and took the same timeline again, or two clusters stream to \
             one archive; nothing was overwritten",
        );
        Err(error.into())
    }

    /// Every page says where it belongs. Pages behind a switch of segments are zeros.
    fn check_pages(&mut self) -> Result<()> {
        while let Some(head) = self.content.get(self.checked..self.checked + 24) {
            let expected = Lsn(self.start.0 + self.checked as u64);
            let wrong = |what: String| {
                PostgresError::new(
                    PostgresErrorKind::Damaged,
                    format!("the server sends WAL for {expected} that cannot be used: {what}"),
                )
                .with_hint(
                    "nothing of it was archived; look into the server's log, and at its disk",
                )
            };
            match PageHeader::parse(head) {
                Ok(page) if page.address != expected => {
                    return Err(wrong(format!(
                        "its page says that it belongs at {}",
                        page.address
                    )));
                }
                Ok(page) if page.timeline > self.name.timeline() => {
                    return Err(wrong(format!("its page is of timeline {}", page.timeline)));
                }
                Ok(_) | Err(PageError::Zeros) => {}
                Err(error) => return Err(wrong(error.to_string())),
            }
            self.checked += self.page_size;
        }
        Ok(())
    }
}

fn outside(name: SegmentName) -> PostgresError {
    PostgresError::new(
        PostgresErrorKind::Server,
        format!("{name} is no segment, or the last that there can be"),
    )
}
