//! Content-defined chunking: FastCDC with normalised chunking.
//!
//! Algorithm `fastcdc-1`: gear hash over 64 bits (`hash = (hash << 1) + gear[byte]`), minimum
//! 256 KiB, target 1 MiB, maximum 4 MiB; before the target a boundary needs 22 zero bits under
//! [`MASK_SMALL`], after it 18 under [`MASK_LARGE`]. The gear table follows from the repository's
//! key, so that chunk lengths tell nobody without it what a file holds.
//!
//! The masks take bits from the top half of the hash only: the bit at position `n` depends on the
//! last `n + 1` bytes, and a window of 48 bytes or more is wanted for all of them.

use crate::crypto::derive;

pub(crate) const MIN: usize = 256 << 10;
pub(crate) const TARGET: usize = 1 << 20;
pub(crate) const MAX: usize = 4 << 20;

const MASK_SMALL: u64 = 0xffff_fc00_0000_0000;
const MASK_LARGE: u64 = 0xffff_c000_0000_0000;

/// Finds chunk boundaries. Cheap to clone; holds no state between calls.
#[derive(Clone)]
pub struct Chunker {
    gear: Box<[u64; 256]>,
}

impl Chunker {
    pub fn new(key: &[u8; 32]) -> Self {
        let bytes: [u8; 2048] = derive(key, b"backstay chunker", &[b"fastcdc-1 gear"]);
        let mut gear = Box::new([0; 256]);
        for (value, bytes) in gear.iter_mut().zip(bytes.chunks_exact(8)) {
            *value = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
        }
        Self { gear }
    }

    /// A chunker with a table that no key gave, to compare it with others.
    #[doc(hidden)]
    pub fn with_gear(gear: [u64; 256]) -> Self {
        Self { gear: Box::new(gear) }
    }

    /// The length of the first chunk of `data`, which must hold [`MAX`] bytes or reach the end of
    /// the content.
    pub fn cut(&self, data: &[u8]) -> usize {
        if data.len() <= MIN {
            return data.len();
        }
        let end = data.len().min(MAX);
        let normal = end.min(TARGET);
        let mut hash = 0;
        if let Some(at) = self.scan(&data[MIN..normal], MASK_SMALL, &mut hash) {
            return MIN + at;
        }
        if let Some(at) = self.scan(&data[normal..end], MASK_LARGE, &mut hash) {
            return normal + at;
        }
        end
    }

    #[inline]
    fn scan(&self, data: &[u8], mask: u64, hash: &mut u64) -> Option<usize> {
        let mut value = *hash;
        for (at, byte) in data.iter().enumerate() {
            value = (value << 1).wrapping_add(self.gear[usize::from(*byte)]);
            if value & mask == 0 {
                return Some(at + 1);
            }
        }
        *hash = value;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_store::Environment;

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut data = vec![0; length];
        Environment::seeded(seed).random.fill(&mut data);
        data
    }

    fn cuts(chunker: &Chunker, mut data: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while !data.is_empty() {
            let length = chunker.cut(data);
            lengths.push(length);
            data = &data[length..];
        }
        lengths
    }

    #[test]
    fn boundaries_stay_where_they_were_pinned() {
        let lengths = cuts(&Chunker::new(&[1; 32]), &noise(12 << 20, 42));
        assert_eq!(
            lengths, GOLDEN,
            "a changed boundary makes every repository store all files anew"
        );
    }

    const GOLDEN: &[usize] = &[
        1_236_216, 1_172_508, 1_202_028, 1_048_790, 1_058_495, 1_137_131, 1_405_783, 1_238_874,
        1_839_678, 1_227_105, 16_304,
    ];

    #[test]
    fn chunks_keep_their_bounds_and_find_each_other_after_an_insertion() {
        let chunker = Chunker::new(&[2; 32]);
        let data = noise(24 << 20, 7);
        let before = cuts(&chunker, &data);
        assert!(before.iter().rev().skip(1).all(|l| (MIN..=MAX).contains(l)));
        let mut changed = b"inserted".to_vec();
        changed.extend_from_slice(&data);
        let after = cuts(&chunker, &changed);
        let shared =
            before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(shared + 3 >= before.len(), "{shared} of {} chunks are shared", before.len());
    }

    #[test]
    fn another_key_cuts_elsewhere() {
        let data = noise(8 << 20, 3);
        assert_ne!(cuts(&Chunker::new(&[3; 32]), &data), cuts(&Chunker::new(&[4; 32]), &data));
    }

    #[test]
    fn mean_chunk_is_near_the_target() {
        let lengths = cuts(&Chunker::new(&[5; 32]), &noise(64 << 20, 11));
        let mean = (64 << 20) / lengths.len();
        assert!((TARGET * 3 / 4..TARGET * 3 / 2).contains(&mean), "mean {mean}");
    }
}
