//! Packs: sealed chunks, one after the other, and a sealed list of them at the end.
//!
//! ```text
//! header (160 bytes, crypto.rs)
//! records        sealed codec ‖ length ‖ body, each with its tag; nothing in between
//! padding        only in a pack that is not full: random bytes up to a Padmé length
//! footer         sealed: one entry of 44 bytes for each record:
//!                id (32) ‖ kind (1) ‖ zero (3) ‖ offset (4) ‖ sealed length with tag (4)
//! trailer        sealed, 32 bytes with its tag: footer's offset (8) ‖ its sealed length (4) ‖
//!                number of records (4)
//! ```
//!
//! Numbers are little-endian. The footer comes last because a pack is built in one pass; it is
//! sealed because the lengths of content-defined chunks say something about their content. It lets
//! an index be rebuilt from packs alone.

use std::ops::Range;

use bytes::Bytes;

use crate::crypto::{HEADER, PackKey, TAG};
use crate::id::ObjectId;
use crate::{Kind, RepoError, Result};

/// A data pack is full from here on. Bytes.
pub(crate) const DATA_PACK: usize = 32 << 20;
/// Metadata is less and is wanted sooner.
pub(crate) const METADATA_PACK: usize = 8 << 20;

const FOOTER_ENTRY: usize = 44;
const TRAILER: usize = 16 + TAG;
/// Read at first from the end of a pack of which not all is read. Bytes.
const TAIL: u64 = 64 << 10;

/// Kinds of records that no chunk has.
const FOOTER: u8 = 254;
const TRAILER_KIND: u8 = 255;

/// One record of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub id: ObjectId,
    pub kind: Kind,
    pub offset: u32,
    /// With the tag.
    pub length: u32,
}

/// Writes random bytes.
pub(crate) type Fill<'f> = &'f mut dyn FnMut(&mut [u8]);

/// Ends a pack: padding if wanted, footer and trailer behind the records in `body`.
pub(crate) fn finish(
    mut body: Vec<u8>,
    key: &PackKey,
    records: &[Record],
    padding: Option<Fill<'_>>,
) -> Bytes {
    let footer_length = records.len() * FOOTER_ENTRY + TAG;
    if let Some(fill) = padding {
        let bare = body.len() + footer_length + TRAILER;
        let start = body.len();
        body.resize(start + padme(bare) - bare, 0);
        fill(&mut body[start..]);
    }
    let offset = body.len() as u64;
    body.reserve(footer_length + TRAILER);
    let start = body.len();
    for record in records {
        body.extend_from_slice(&record.id.0);
        body.extend_from_slice(&[record.kind as u8, 0, 0, 0]);
        body.extend_from_slice(&record.offset.to_le_bytes());
        body.extend_from_slice(&record.length.to_le_bytes());
    }
    let tag = key.seal(FOOTER, offset, b"", &mut body[start..]);
    body.extend_from_slice(&tag);
    let start = body.len();
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&(footer_length as u32).to_le_bytes());
    body.extend_from_slice(&(records.len() as u32).to_le_bytes());
    let tag = key.seal(TRAILER_KIND, start as u64, b"", &mut body[start..]);
    body.extend_from_slice(&tag);
    Bytes::from(body)
}

/// A pack whose footer and trailer say whatever they are told to, for tests of what reads them.
pub(crate) fn forge(records: usize, footer: &[u8], trailer: [u8; 16], key: &PackKey) -> Vec<u8> {
    let mut body = vec![0; HEADER + records];
    for (kind, plain) in [(FOOTER, footer), (TRAILER_KIND, &trailer)] {
        let start = body.len();
        body.extend_from_slice(plain);
        let tag = key.seal(kind, start as u64, b"", &mut body[start..]);
        body.extend_from_slice(&tag);
    }
    body
}

/// The records that the footer of a whole pack lists; every one lies within the pack.
pub(crate) fn read_footer(object: &str, pack: &[u8], key: &PackKey) -> Result<Vec<Record>> {
    read_records(object, pack.len() as u64, key, |range| {
        let part = pack.get(range.start as usize..range.end as usize);
        Ok(Bytes::copy_from_slice(part.unwrap_or_default()))
    })
}

/// The same of a pack of which `read` reads a range.
pub(crate) fn read_records(
    object: &str,
    size: u64,
    key: &PackKey,
    read: impl Fn(Range<u64>) -> Result<Bytes>,
) -> Result<Vec<Record>> {
    let damaged = |what: &str| RepoError::damaged(object, what);
    if size < (HEADER + TRAILER + TAG) as u64 {
        return Err(damaged("it is cut short"));
    }
    // Mostly the footer comes along with the trailer.
    let from = size.saturating_sub(TAIL).max(HEADER as u64);
    let tail = read(from..size)?;
    let start = size - TRAILER as u64;
    let mut trailer = tail.get(tail.len().saturating_sub(TRAILER)..).unwrap_or_default().to_vec();
    let trailer = key
        .open(TRAILER_KIND, start, b"", &mut trailer)
        .ok_or_else(|| damaged("its trailer does not open: it is cut short or altered"))?;
    let number = |from: usize, to: usize| {
        let mut bytes = [0; 8];
        let source = trailer.get(from..to).unwrap_or_default();
        bytes[..source.len()].copy_from_slice(source);
        u64::from_le_bytes(bytes)
    };
    let (offset, length, count) = (number(0, 8), number(8, 12), number(12, 16));
    if count.checked_mul(FOOTER_ENTRY as u64).and_then(|l| l.checked_add(TAG as u64))
        != Some(length)
        || offset.checked_add(length) != Some(start)
    {
        return Err(damaged("its trailer contradicts its length"));
    }
    let mut footer = match offset.checked_sub(from) {
        Some(at) => {
            let end = tail.len().saturating_sub(TRAILER);
            tail.get(at as usize..end).unwrap_or_default().to_vec()
        }
        None => Vec::from(read(offset..start)?),
    };
    let footer = key
        .open(FOOTER, offset, b"", &mut footer)
        .ok_or_else(|| damaged("its footer does not open"))?;
    footer
        .chunks_exact(FOOTER_ENTRY)
        .map(|entry| {
            let mut id = [0; 32];
            id.copy_from_slice(&entry[..32]);
            let kind = Kind::from_byte(entry[32]);
            let field = |at: usize| {
                u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
            };
            let record = Record {
                id: ObjectId(id),
                kind: kind
                    .ok_or_else(|| damaged("its footer lists a record of an unknown kind"))?,
                offset: field(36),
                length: field(40),
            };
            let end = u64::from(record.offset) + u64::from(record.length);
            if (record.offset as usize) < HEADER || end > offset {
                return Err(damaged("its footer lists a record outside of it"));
            }
            Ok(record)
        })
        .collect()
}

/// The next length in Padmé's scale: at most 12 % more, and only O(log log n) bits are shown.
/// (Nikitin et al., Reducing Metadata Leakage from Encrypted Files, PETS 2019.)
pub(crate) fn padme(length: usize) -> usize {
    if length < 2 {
        return length;
    }
    let exponent = length.ilog2();
    let kept = exponent.max(1).ilog2() + 1;
    let mask = (1_usize << (exponent - kept.min(exponent))) - 1;
    (length + mask) & !mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_lengths_show_little_and_cost_little() {
        let mut seen = std::collections::BTreeSet::new();
        for length in 2..2_000_000_usize {
            let padded = padme(length);
            assert!(
                padded >= length && (padded - length) as f64 <= 0.12 * length as f64,
                "{length}"
            );
            seen.insert(padded);
        }
        assert!(seen.len() < 600, "{} lengths show", seen.len());
    }
}
