//! The names of files in `pg_wal` and in the archive.
//!
//! ```text
//! 0000000A000000010000004C                    segment: timeline, log, segment; 8 digits each
//! 0000000A.history                            how a timeline came to be
//! 0000000A000000010000004C.00000028.backup    where a backup started
//! 0000000A000000010000004C.partial            the last segment of a timeline that was left
//! ```
//!
//! All digits are hexadecimal, upper case; `0000000A` is timeline 10. Where the *log* part ends
//! and the *segment* part begins depends on the segment size, so a name gives a position only
//! together with one.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;
use std::str::FromStr;

use super::{Lsn, SegmentSize};

/// The name of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: u32,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// The name of segment `number` on `timeline`; none when no such segment can exist.
    pub fn new(timeline: u32, number: u64, size: SegmentSize) -> Option<Self> {
        let log = u32::try_from(number / size.segments_per_log()).ok()?;
        let segment = u32::try_from(number % size.segments_per_log()).ok()?;
        (timeline != 0).then_some(Self { timeline, log, segment })
    }

    pub fn timeline(self) -> u32 {
        self.timeline
    }

    /// The number of the segment, from 0 at the beginning of the cluster's life; none when a
    /// cluster with segments of this size has no such name.
    pub fn number(self, size: SegmentSize) -> Option<u64> {
        let segment = u64::from(self.segment);
        let per_log = size.segments_per_log();
        (segment < per_log).then(|| u64::from(self.log) * per_log + segment)
    }

    /// Where the segment begins.
    pub fn start(self, size: SegmentSize) -> Option<Lsn> {
        size.start_of(self.number(size)?)
    }

    /// The segment that follows on the same timeline.
    pub fn next(self, size: SegmentSize) -> Option<Self> {
        Self::new(self.timeline, self.number(size)?.checked_add(1)?, size)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

/// Why a text is no name of a file in the archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a WAL file")]
pub struct NameError(String);

impl NameError {
    fn new(text: &str) -> Self {
        Self(text.chars().take(64).collect())
    }
}

impl FromStr for SegmentName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parts = (text.len() == 24)
            .then(|| Some((hex8(text.get(..8)?)?, hex8(text.get(8..16)?)?, hex8(text.get(16..)?)?)))
            .flatten();
        match parts {
            Some((timeline, log, segment)) if timeline != 0 => Ok(Self { timeline, log, segment }),
            _ => Err(NameError::new(text)),
        }
    }
}

/// The name of any file that is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    Segment(SegmentName),
    /// How this timeline came to be.
    History(u32),
    /// Where a backup started: a segment, and the offset in it.
    Backup(SegmentName, u32),
    /// The last segment of a timeline that was left, as far as it was written.
    Partial(SegmentName),
}

impl WalName {
    pub fn timeline(self) -> u32 {
        match self {
            Self::History(timeline) => timeline,
            Self::Segment(name) | Self::Backup(name, _) | Self::Partial(name) => name.timeline,
        }
    }

    /// The segment whose bytes such a file holds, whole or in part.
    pub fn content(self) -> Option<SegmentName> {
        match self {
            Self::Segment(name) | Self::Partial(name) => Some(name),
            Self::History(_) | Self::Backup(..) => None,
        }
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "{name}"),
            Self::History(timeline) => write!(f, "{timeline:08X}.history"),
            Self::Backup(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
            Self::Partial(name) => write!(f, "{name}.partial"),
        }
    }
}

impl FromStr for WalName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::new(text);
        if let Some(timeline) = text.strip_suffix(".history") {
            return match hex8(timeline) {
                Some(timeline) if timeline != 0 => Ok(Self::History(timeline)),
                _ => Err(error()),
            };
        }
        if let Some(segment) = text.strip_suffix(".partial") {
            return segment.parse().map(Self::Partial).map_err(|_| error());
        }
        if let Some(rest) = text.strip_suffix(".backup") {
            let (segment, offset) = rest.split_once('.').ok_or_else(error)?;
            let segment = segment.parse().map_err(|_| error())?;
            return hex8(offset).map(|offset| Self::Backup(segment, offset)).ok_or_else(error);
        }
        text.parse().map(Self::Segment)
    }
}

/// Exactly eight upper-case hexadecimal digits.
fn hex8(text: &str) -> Option<u32> {
    let good = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if good { u32::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_every_kind_of_name() {
        let segment: SegmentName = "0000000A000000010000004C".parse().unwrap();
        assert_eq!(segment.timeline(), 10);
        assert_eq!(segment.number(SegmentSize::DEFAULT), Some(0x14c));
        for (text, name) in [
            ("0000000A000000010000004C", WalName::Segment(segment)),
            ("0000000A.history", WalName::History(10)),
            ("0000000A000000010000004C.00000028.backup", WalName::Backup(segment, 0x28)),
            ("0000000A000000010000004C.partial", WalName::Partial(segment)),
        ] {
            assert_eq!(text.parse::<WalName>().unwrap(), name);
            assert_eq!(name.to_string(), text);
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "0000000a000000010000004c",
            "00000000000000010000004C",
            "0000000A000000010000004",
            "0000000A000000010000004C0",
            "0000000A000000010000004G",
            "00000000.history",
            "A.history",
            "0000000A.History",
            "0000000A000000010000004C.backup",
            "0000000A000000010000004C.28.backup",
            "0000000A000000010000004C.partial.partial",
            "../0000000A000000010000004C",
            "0000000A000000010000004é",
            "RECOVERYXLOG",
        ] {
            assert!(text.parse::<WalName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_segment_size_decides_where_a_name_rolls_over() {
        let last: SegmentName = "0000000100000000000000FF".parse().unwrap();
        let next = last.next(SegmentSize::DEFAULT).unwrap();
        assert_eq!(next.to_string(), "000000010000000100000000");
        // 64 MiB segments: 64 of them to a log.
        let large = SegmentSize::new(64 << 20).unwrap();
        assert_eq!(last.number(large), None);
        let last: SegmentName = "00000001000000000000003F".parse().unwrap();
        assert_eq!(last.next(large).unwrap().to_string(), "000000010000000100000000");
        assert_eq!(last.start(large), Some(Lsn(0x3f * (64 << 20))));
    }

    proptest! {
        #[test]
        fn a_name_and_its_number_are_one(
            timeline in 1u32..,
            number in 0u64..(1 << 34),
            shift in 20u32..=30,
        ) {
            let size = SegmentSize::new(1 << shift).unwrap();
            let number = number % (1 << (64 - shift));
            let name = SegmentName::new(timeline, number, size).unwrap();
            prop_assert_eq!(name.number(size), Some(number));
            prop_assert_eq!(name.start(size).unwrap().segment(size), number);
            prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,50}") {
            if let Ok(name) = text.parse::<WalName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
