//! Reading a range of WAL along a timeline, record by record, and what came of it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::files::Files;
use super::inventory::{Inventory, Segments, read_history};
use super::page::{LONG_HEADER, SHORT_HEADER};
use super::reader::{Identity, Reader};
use super::{Changes, History, Lsn, Record, SegmentName, SegmentSize};
use crate::{PostgresError, PostgresErrorKind, Result};

/// What segments read ahead may take in memory. Bytes.
const AHEAD: u64 = 64 << 20;

/// Which WAL is read. None: all that follows one another up to the newest, on the newest timeline.
#[derive(Debug, Clone, Copy, Default)]
pub struct Range {
    /// Records that begin before are passed over.
    pub from: Option<Lsn>,
    /// Records that begin here or later are not read.
    pub to: Option<Lsn>,
    pub timeline: Option<u32>,
}

/// WAL that was found and can be read.
#[derive(Debug)]
pub struct Scan<'a> {
    files: &'a dyn Files,
    inventory: Inventory,
    history: History,
    size: SegmentSize,
    /// Where reading begins.
    start: Lsn,
    from: Option<Lsn>,
    to: Option<Lsn>,
    /// The last segment to read.
    last: u64,
}

impl std::fmt::Debug for dyn Files + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("system", &self.system_identifier()).finish_non_exhaustive()
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Where the first record read begins.
    pub first: Option<Lsn>,
    /// Where the last record read ends.
    pub end: Lsn,
    pub records: u64,
    /// Why there were no more records, when the range was not the reason.
    pub stopped: Option<String>,
    /// The segment that is missing where reading stopped, although there are later ones.
    pub missing: Option<SegmentName>,
}

impl<'a> Scan<'a> {
    /// Looks for the range in `files`.
    ///
    /// # Errors
    /// [`PostgresErrorKind::Archive`] when there is no WAL, or none where the range begins;
    /// [`PostgresErrorKind::Usage`] for a range that ends before it begins, and for a timeline that
    /// nothing is known of.
    pub fn open(files: &'a dyn Files, range: Range) -> Result<Self> {
        let absent = || {
            PostgresError::new(PostgresErrorKind::Archive, "there are no segments of WAL")
                .with_hint("check which archive or folder was meant")
        };
        if let (Some(from), Some(to)) = (range.from, range.to)
            && from > to
        {
            return Err(PostgresError::usage(format!("the range ends at {to}, before {from}")));
        }
        let size = files.segment_size()?.ok_or_else(absent)?;
        let inventory = Inventory::read(files, size)?;
        let known = inventory.timelines();
        let newest = known.last().copied().ok_or_else(absent)?;
        let timeline = range.timeline.unwrap_or(newest);
        if !known.contains(&timeline) {
            let known: Vec<String> = known.iter().map(u32::to_string).collect();
            return Err(PostgresError::usage(format!(
                "there is no WAL of timeline {timeline}; there are {}",
                known.join(", ")
            )));
        }
        let history = read_history(files, timeline)?;
        let (first, newest) = inventory.newest_run(&history).ok_or_else(absent)?;
        let (first, last) = match range.from {
            None => (first, newest),
            Some(from) => {
                let first = from.segment(size);
                let last = inventory.unbroken_from(&history, first).ok_or_else(|| {
                    let timeline = history.timeline_at(from);
                    let name = SegmentName::new(timeline, first, size);
                    let name = name.map_or_else(|| from.to_string(), |name| name.to_string());
                    PostgresError::new(
                        PostgresErrorKind::Archive,
                        format!("the WAL segment {name}, in which {from} lies, is not there"),
                    )
                    .with_hint("`backstay wal status` shows which segments the archive has")
                })?;
                (first, last)
            }
        };
        // A position within a page may lie in the middle of a record: its page says where one begins.
        let start = match range.from {
            Some(from) => Lsn(from.0 - from.0 % 8192),
            None => size.start_of(first).ok_or_else(absent)?,
        };
        Ok(Self { files, inventory, history, size, start, from: range.from, to: range.to, last })
    }

    pub fn timeline(&self) -> u32 {
        self.history.timeline()
    }

    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// About how many bytes there are to read, for showing progress.
    pub fn bytes(&self) -> u64 {
        let end = self.size.start_of(self.last + 1).unwrap_or(self.start);
        self.to.map_or(end, |to| to.min(end)).since(self.start)
    }

    /// Gives every record of the range to `each`, until that breaks.
    pub fn run(
        &self,
        mut each: impl FnMut(&Record<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<Scanned> {
        let batch = (AHEAD / self.size.bytes()).clamp(1, 4) as usize;
        let mut segments =
            Segments::new(self.files, &self.inventory, &self.history, self.last, batch);
        let identity =
            Identity { system_identifier: self.files.system_identifier(), segment_size: self.size };
        let mut reader = Reader::new(identity, self.start, |number| segments.get(number));
        let mut found = Scanned {
            first: None,
            end: self.from.unwrap_or(self.start),
            records: 0,
            stopped: None,
            missing: None,
        };
        loop {
            // What lies behind the range may be under way still.
            if found.records > 0 && self.to.is_some_and(|to| reaches(found.end, to)) {
                return Ok(found);
            }
            let Some(record) = reader.next_record()? else { break };
            if self.to.is_some_and(|to| record.lsn >= to) {
                return Ok(found);
            }
            if self.from.is_some_and(|from| record.lsn < from) {
                continue;
            }
            found.first.get_or_insert(record.lsn);
            found.end = record.end;
            found.records += 1;
            if each(&record)?.is_break() {
                return Ok(found);
            }
        }
        if self.to.is_some_and(|to| reaches(found.end, to)) {
            return Ok(found);
        }
        found.stopped = reader.end_reason().map(str::to_owned);
        found.missing = self.inventory.broken_by(&self.history, self.last);
        Ok(found)
    }
}

/// Whether records that end at `end` are all there are before `to`: at most the header of a page can
/// lie between.
fn reaches(end: Lsn, to: Lsn) -> bool {
    let header =
        if end.0.is_multiple_of(SegmentSize::MIN.bytes()) { LONG_HEADER } else { SHORT_HEADER };
    end >= to || (end.0.is_multiple_of(8192) && to.since(end) <= header as u64)
}

/// Which blocks changed in a range of WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub system_identifier: u64,
    /// The timeline that the range ends on; it may begin on an ancestor.
    pub timeline: u32,
    /// Records that begin from here on are in it …
    pub from: Lsn,
    /// … and before here.
    pub to: Lsn,
    pub changes: Changes,
}

/// Records and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Volume {
    pub records: u64,
    /// Bytes without images of pages.
    pub bytes: u64,
    /// Bytes of images of pages.
    pub image_bytes: u64,
    pub images: u64,
}

impl Volume {
    /// Adds a record; false when its headers make no sense.
    pub fn add(&mut self, record: &Record<'_>) -> bool {
        let mut images = 0u64;
        let walked = record.each_block(|block| {
            if let Some(image) = block.image {
                images += u64::from(image.length);
                self.images += 1;
            }
        });
        self.records += 1;
        self.image_bytes += images;
        self.bytes += u64::from(record.length).saturating_sub(images);
        walked.is_some()
    }

    pub fn total(&self) -> u64 {
        self.bytes + self.image_bytes
    }
}

/// Makes a summary of a range, and counts what its records take, by resource manager.
///
/// When the WAL ends before the range does, the summary ends there as well, and [`Scanned`] says why.
pub fn summarize(
    scan: &Scan<'_>,
    mut progress: impl FnMut(Lsn) -> Result<()>,
) -> Result<(Summary, BTreeMap<u8, Volume>, Scanned)> {
    let mut changes = Changes::new();
    let mut volumes: BTreeMap<u8, Volume> = BTreeMap::new();
    let scanned = scan.run(|record| {
        changes.add(record)?;
        volumes.entry(record.manager).or_default().add(record);
        progress(record.lsn)?;
        Ok(ControlFlow::Continue(()))
    })?;
    let from = scan.from.or(scanned.first).unwrap_or(scan.start);
    let to = match (&scanned.stopped, scan.to) {
        (None, Some(to)) => to,
        _ => scanned.end.max(from),
    };
    let summary = Summary {
        system_identifier: scan.files.system_identifier().unwrap_or_default(),
        timeline: scan.timeline(),
        from,
        to,
        changes,
    };
    Ok((summary, volumes, scanned))
}
