//! Compression of records, and the few bytes that say how.
//!
//! A record before sealing: `codec (1) ‖ length of the content (4, little-endian) ‖ body`. Codecs:
//! 0 stored, 1 zstd, 2 lz4 block. The length lets a reader allocate once and bounds what a forged
//! record could make it allocate.

use std::fmt;
use std::str::FromStr;

use zstd::bulk::{Compressor, Decompressor};

/// What a chunk may be at most. Bytes.
pub(crate) const MAX_CHUNK: usize = 8 << 20;
/// Of a record before its body. Bytes.
pub(crate) const RECORD_HEADER: usize = 5;

/// How new chunks are compressed. Readers know every way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Lz4,
    /// Level 1 to 19.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(3)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::default()),
            _ => s
                .strip_prefix("zstd:")
                .and_then(|level| level.parse().ok())
                .filter(|level| (1..=19).contains(level))
                .map(Self::Zstd)
                .ok_or_else(|| {
                    format!("{s:?} is no compression; say none, lz4, zstd or zstd:1 to zstd:19")
                }),
        }
    }
}

const STORED: u8 = 0;
const ZSTD: u8 = 1;
const LZ4: u8 = 2;

/// Compresses and decompresses with contexts that are kept. One for each thread.
pub struct Codec {
    compression: Compression,
    compressor: Option<Compressor<'static>>,
    /// What a compressor writes to; its bytes are never cleared, only overwritten.
    scratch: Vec<u8>,
    decompressor: Option<Decompressor<'static>>,
}

impl Codec {
    pub fn new(compression: Compression) -> Self {
        Self { compression, compressor: None, scratch: Vec::new(), decompressor: None }
    }

    /// Appends the record of `content` to `record`.
    pub fn encode(&mut self, content: &[u8], record: &mut Vec<u8>) {
        let codec = match self.compression {
            Compression::None => None,
            _ if !shrinks(content) => None,
            Compression::Lz4 => {
                let bound = lz4_flex::block::get_maximum_output_size(content.len());
                if self.scratch.len() < bound {
                    self.scratch.resize(bound, 0);
                }
                lz4_flex::block::compress_into(content, &mut self.scratch)
                    .ok()
                    .map(|length| (LZ4, length))
            }
            Compression::Zstd(level) => {
                if self.compressor.is_none() {
                    self.compressor = Compressor::new(level).ok();
                }
                self.scratch.clear();
                self.scratch.reserve(zstd::zstd_safe::compress_bound(content.len()));
                self.compressor
                    .as_mut()
                    .and_then(|c| c.compress_to_buffer(content, &mut self.scratch).ok())
                    .map(|length| (ZSTD, length))
            }
        };
        let (codec, body) = match codec {
            Some((codec, length)) if length < content.len() => {
                (codec, self.scratch.get(..length).unwrap_or_default())
            }
            _ => (STORED, content),
        };
        record.reserve(RECORD_HEADER + body.len());
        record.push(codec);
        record.extend_from_slice(&(content.len() as u32).to_le_bytes());
        record.extend_from_slice(body);
    }

    /// The length of the content of a record, if the record can be one.
    pub fn content_length(record: &[u8]) -> Option<usize> {
        let length = record.get(1..RECORD_HEADER)?;
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        (length <= MAX_CHUNK).then_some(length)
    }

    /// Writes the content of a record over `content`; `None` when the record makes no sense.
    pub fn decode(&mut self, record: &[u8], content: &mut Vec<u8>) -> Option<()> {
        let length = Self::content_length(record)?;
        let codec = *record.first()?;
        let body = record.get(RECORD_HEADER..)?;
        content.clear();
        match codec {
            STORED => {
                if body.len() != length {
                    return None;
                }
                content.extend_from_slice(body);
            }
            ZSTD => {
                content.reserve(length);
                if self.decompressor.is_none() {
                    self.decompressor = Decompressor::new().ok();
                }
                let written =
                    self.decompressor.as_mut()?.decompress_to_buffer(body, content).ok()?;
                if written != length {
                    return None;
                }
            }
            LZ4 => {
                content.resize(length, 0);
                if lz4_flex::block::decompress_into(body, content).ok()? != length {
                    return None;
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// Whether compressing is worth a try: an eighth of a large content, in places spread over it, is
/// compressed quickly first.
fn shrinks(content: &[u8]) -> bool {
    const PROBE: usize = 4096;
    if content.len() < 16 * PROBE {
        return true;
    }
    let mut out = [0; PROBE + PROBE / 8 + 64];
    let step = content.len() / 8;
    let mut total = 0;
    for probe in content.chunks(step).take(8) {
        let probe = &probe[..PROBE.min(probe.len())];
        total += lz4_flex::block::compress_into(probe, &mut out).unwrap_or(PROBE).min(probe.len());
    }
    // Incompressible bytes give 100 %; text that lz4 cannot shrink in 4 KiB is rare, and entropy
    // coding alone still pays for it, so only what does not shrink at all is passed over.
    total * 1000 < 8 * PROBE * 998 || byte_entropy_is_low(content)
}

/// Whether the distribution of bytes alone would let an entropy coder save more than a hundredth.
fn byte_entropy_is_low(content: &[u8]) -> bool {
    let mut counts = [0_u32; 256];
    let mut sampled = 0_u32;
    for chunk in content.chunks(content.len() / 8).take(8) {
        for byte in chunk.iter().take(4096) {
            counts[usize::from(*byte)] += 1;
            sampled += 1;
        }
    }
    let total = f64::from(sampled);
    let bits: f64 = counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| {
            let share = f64::from(*count) / total;
            -share * share.log2()
        })
        .sum();
    bits < 7.92
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_store::Environment;

    fn round_trip(compression: Compression, content: &[u8]) -> usize {
        let mut codec = Codec::new(compression);
        let mut record = vec![9; 3];
        codec.encode(content, &mut record);
        let mut back = vec![1; 5];
        codec.decode(&record[3..], &mut back).unwrap();
        assert_eq!(back, content);
        record.len() - 3
    }

    #[test]
    fn every_codec_gives_back_what_it_was_given() {
        let env = Environment::seeded(1);
        let mut noise = vec![0; 300_000];
        env.random.fill(&mut noise);
        let text = b"the line that keeps a mast standing ".repeat(5000);
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
            for content in [&b""[..], b"x", &noise, &text, &text[..100]] {
                round_trip(compression, content);
            }
        }
        assert!(round_trip(Compression::Zstd(3), &text) < 1000);
        assert_eq!(round_trip(Compression::Zstd(3), &noise), noise.len() + RECORD_HEADER);
    }

    #[test]
    fn a_record_that_lies_about_its_length_is_refused() {
        let mut codec = Codec::new(Compression::Zstd(3));
        let mut record = Vec::new();
        codec.encode(&[5; 1000], &mut record);
        let mut out = Vec::new();
        for length in [0_u32, 999, 1001, u32::MAX] {
            record[1..5].copy_from_slice(&length.to_le_bytes());
            assert!(codec.decode(&record, &mut out).is_none(), "{length}");
        }
        assert!(codec.decode(&[], &mut out).is_none());
        assert!(codec.decode(&[7, 1, 0, 0, 0, 1], &mut out).is_none());
    }
}
