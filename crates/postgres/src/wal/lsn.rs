//! Positions in the WAL and the arithmetic of segments.
//!
//! A position counts bytes from the beginning of a cluster's life. A segment is a file of a size
//! that `initdb` chose (a power of two from 1 MiB to 1 GiB); nothing here assumes 16 MiB.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the WAL, shown as PostgreSQL shows it: `16/B374D848`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The number of the segment that holds the byte at this position.
    pub fn segment(self, size: SegmentSize) -> u64 {
        self.0 / size.bytes()
    }

    /// The number of the segment that holds the byte *before* this position: the last segment
    /// that is needed to read up to here. (`XLByteToPrevSeg` of `xlog_internal.h`.)
    pub fn last_segment(self, size: SegmentSize) -> u64 {
        self.0.saturating_sub(1) / size.bytes()
    }

    /// How far into its segment this position lies.
    pub fn offset(self, size: SegmentSize) -> u64 {
        self.0 % size.bytes()
    }

    /// This position moved on by `bytes`, or none past the end of the number space.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Bytes from `earlier` to here; 0 when `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// Why a text is no [`Lsn`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no position in the WAL; one looks like 16/B374D848")]
pub struct LsnError(String);

impl FromStr for Lsn {
    type Err = LsnError;

    /// Takes what `pg_lsn` takes: two hexadecimal numbers of 1 to 8 digits with a slash between.
    fn from_str(text: &str) -> Result<Self, LsnError> {
        let error = || LsnError(text.chars().take(64).collect());
        let half = |digits: &str| -> Option<u64> {
            let good = (1..=8).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            if good { u64::from_str_radix(digits, 16).ok() } else { None }
        };
        let (high, low) = text.split_once('/').ok_or_else(error)?;
        let (high, low) = half(high).zip(half(low)).ok_or_else(error)?;
        Ok(Self(high << 32 | low))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The size of a cluster's WAL segments, in bytes: a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// What `initdb` chooses when nobody says otherwise.
    pub const DEFAULT: Self = Self(16 << 20);
    pub const MIN: Self = Self(1 << 20);
    pub const MAX: Self = Self(1 << 30);

    /// The size, or none when no cluster can have it.
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = u32::try_from(bytes).ok()?;
        let size = Self(bytes);
        (bytes.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&bytes)).then_some(size)
    }

    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share the same middle part of their names.
    pub fn segments_per_log(self) -> u64 {
        0x1_0000_0000 / self.bytes()
    }

    /// Where segment `number` begins; none past the end of the number space.
    pub fn start_of(self, number: u64) -> Option<Lsn> {
        number.checked_mul(self.bytes()).map(Lsn)
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = String;

    fn try_from(bytes: u32) -> Result<Self, String> {
        Self::new(u64::from(bytes)).ok_or_else(|| {
            format!("{bytes} bytes is no size of a WAL segment (a power of two, 1 MiB to 1 GiB)")
        })
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> u32 {
        size.0
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_and_reads_what_postgresql_shows() {
        for text in ["0/0", "0/2000028", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        assert_eq!("a/b".parse(), Ok(Lsn(0xa_0000_000b)));
    }

    #[test]
    fn refuses_what_is_no_position() {
        for text in
            ["", "/", "0", "0/", "/0", "0/0/0", "+1/0", "1/-1", " 0/1", "123456789/0", "x/1"]
        {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_boundary_belongs_to_the_next_segment_but_needs_only_the_one_before() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let boundary = size.start_of(3).unwrap();
        assert_eq!(boundary.segment(size), 3);
        assert_eq!(boundary.last_segment(size), 2);
        assert_eq!(Lsn(boundary.0 + 1).last_segment(size), 3);
        assert_eq!(boundary.offset(size), 0);
    }

    #[test]
    fn only_real_sizes_are_sizes() {
        for good in [1u64 << 20, 16 << 20, 1 << 30] {
            assert!(SegmentSize::new(good).is_some());
        }
        for bad in [0, 1 << 19, 1 << 31, (1 << 20) + 1, 3 << 20, u64::MAX] {
            assert!(SegmentSize::new(bad).is_none(), "{bad}");
        }
        assert_eq!(SegmentSize::DEFAULT.segments_per_log(), 256);
        assert_eq!(SegmentSize::MAX.segments_per_log(), 4);
    }

    #[test]
    fn json_is_the_text() {
        assert_eq!(serde_json::to_string(&Lsn(0x2000028)).unwrap(), "\"0/2000028\"");
        assert_eq!(serde_json::from_str::<Lsn>("\"0/2000028\"").unwrap(), Lsn(0x2000028));
        assert!(serde_json::from_str::<SegmentSize>("5").is_err());
    }
}
