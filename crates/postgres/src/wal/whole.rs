//! Whether a segment was written to its end, told from the file alone.
//!
//! A server fills each segment up, or ends it with a record that says that the rest is empty. What
//! was put together from slices, and what was received of a timeline up to where it was left, has
//! zeros at its end without such a record. A standby with `archive_mode = always` archives what it
//! fetched: under the name of the whole segment the beginning would stand for it for ever.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::io;
use std::sync::Arc;

use backstay_repo::Reader as Source;

use super::reader::{Identity, Reader, Segment};
use super::record::{RM_XLOG, XLOG_SWITCH};
use super::{Lsn, SegmentHeader, SegmentName};

/// Read at once while the end is looked for. Bytes; a multiple of every page size.
const STEP: u64 = 256 << 10;

/// Whether nothing is missing at the end of the segment `name`, whose header is `header`.
pub(super) fn is_whole(
    name: SegmentName,
    header: &SegmentHeader,
    file: &dyn Source,
) -> io::Result<bool> {
    let page = u64::from(header.page_size);
    let Some(last) = last_written(file, page)? else { return Ok(false) };
    if (last + 1) * page >= file.size() {
        return Ok(true);
    }
    // The record that ends it may have begun in the segment before.
    if last == 0 && header.page.continues() {
        return Ok(true);
    }
    let (Some(start), Some(number)) =
        (name.start(header.segment_size), name.number(header.segment_size))
    else {
        return Ok(false);
    };
    // It may have begun on the page before. Nothing else is looked at.
    let first = last.saturating_sub(1);
    let mut content = vec![0; file.size() as usize];
    for range in [0..SegmentHeader::SIZE as u64, first * page..(last + 1) * page] {
        if let Some(part) = content.get_mut(range.start as usize..range.end as usize) {
            read_exact(file, range.start, part)?;
        }
    }
    let segment = Segment { timeline: name.timeline(), content: Arc::new(content) };
    let identity = Identity { system_identifier: None, segment_size: header.segment_size };
    let mut reader = Reader::new(identity, Lsn(start.0 + first * page), |wanted| {
        Ok((wanted == number).then(|| segment.clone()))
    });
    let mut ended = false;
    while let Ok(Some(record)) = reader.next_record() {
        ended = record.manager == RM_XLOG && record.info & 0xf0 == XLOG_SWITCH;
    }
    Ok(ended)
}

/// The number of the last page that is not all zeros.
fn last_written(file: &dyn Source, page: u64) -> io::Result<Option<u64>> {
    let mut end = file.size();
    let mut buffer = vec![0; STEP as usize];
    while end > 0 {
        // Most segments are told from their last page.
        let step = if end == file.size() { page } else { STEP };
        let start = end.saturating_sub(step);
        let part = buffer.get_mut(..(end - start) as usize).unwrap_or_default();
        read_exact(file, start, part)?;
        if let Some(at) = part.iter().rposition(|byte| *byte != 0) {
            return Ok(Some((start + at as u64) / page));
        }
        end = start;
    }
    Ok(None)
}

fn read_exact(file: &dyn Source, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let read = file.read_at(offset, buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset += read as u64;
        buffer = buffer.get_mut(read..).unwrap_or_default();
    }
    Ok(())
}
