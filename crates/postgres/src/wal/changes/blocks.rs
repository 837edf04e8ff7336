//! A set of block numbers that stays small: 65536 blocks to a chunk, as a list while there are few,
//! as a bitmap from 4096 on, where both take 8 KiB.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks at which a list is as long as a bitmap.
pub(super) const DENSE: usize = 4096;
/// Words of a bitmap.
pub(super) const WORDS: usize = 1024;

/// Blocks of one fork.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockSet {
    /// By the upper half of the block number; none is empty.
    pub(super) chunks: BTreeMap<u16, Chunk>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Sorted, fewer than [`DENSE`].
    Few(Vec<u16>),
    Many(Box<[u64; WORDS]>),
}

impl Chunk {
    fn insert(&mut self, block: u16) {
        match self {
            Self::Many(words) => set(words, block),
            Self::Few(list) => {
                // Most relations grow at their end.
                if list.last().is_none_or(|last| *last < block) {
                    list.push(block);
                } else if let Err(at) = list.binary_search(&block) {
                    list.insert(at, block);
                }
                if list.len() >= DENSE {
                    let mut words = Box::new([0; WORDS]);
                    list.iter().for_each(|block| set(&mut words, *block));
                    *self = Self::Many(words);
                }
            }
        }
    }

    fn contains(&self, block: u16) -> bool {
        match self {
            Self::Few(list) => list.binary_search(&block).is_ok(),
            Self::Many(words) => words
                .get(usize::from(block / 64))
                .is_some_and(|word| word & (1 << (block % 64)) != 0),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(list) => list.len(),
            Self::Many(words) => words.iter().map(|word| word.count_ones() as usize).sum(),
        }
    }

    pub(super) fn blocks(&self) -> Vec<u16> {
        match self {
            Self::Few(list) => list.clone(),
            Self::Many(_) => (0..=u16::MAX).filter(|block| self.contains(*block)).collect(),
        }
    }

    /// A chunk of these blocks, which are sorted.
    pub(super) fn of(blocks: Vec<u16>) -> Self {
        if blocks.len() < DENSE {
            return Self::Few(blocks);
        }
        let mut words = Box::new([0; WORDS]);
        blocks.iter().for_each(|block| set(&mut words, *block));
        Self::Many(words)
    }
}

fn set(words: &mut [u64; WORDS], block: u16) {
    if let Some(word) = words.get_mut(usize::from(block / 64)) {
        *word |= 1 << (block % 64);
    }
}

fn halves(block: u32) -> (u16, u16) {
    ((block >> 16) as u16, (block & 0xffff) as u16)
}

impl BlockSet {
    pub fn insert(&mut self, block: u32) {
        let (chunk, low) = halves(block);
        self.chunks.entry(chunk).or_insert_with(|| Chunk::Few(Vec::new())).insert(low);
    }

    pub fn contains(&self, block: u32) -> bool {
        let (chunk, low) = halves(block);
        self.chunks.get(&chunk).is_some_and(|chunk| chunk.contains(low))
    }

    /// How many blocks there are.
    pub fn len(&self) -> u64 {
        self.chunks.values().map(|chunk| chunk.len() as u64).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Takes all blocks from `limit` on out.
    pub fn cut(&mut self, limit: u32) {
        let (chunk, low) = halves(limit);
        let mut behind = self.chunks.split_off(&chunk);
        if let Some(first) = behind.remove(&chunk) {
            let kept: Vec<u16> = first.blocks().into_iter().filter(|block| *block < low).collect();
            if !kept.is_empty() {
                self.chunks.insert(chunk, Chunk::of(kept));
            }
        }
    }

    /// The blocks in order, those that follow one another together.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        self.ranges_within(0..1 << 32)
    }

    /// The same, of those blocks that are in `within`.
    pub fn ranges_within(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let first = u16::try_from(within.start >> 16).unwrap_or(u16::MAX);
        for (chunk, blocks) in self.chunks.range(first..) {
            if u64::from(*chunk) << 16 >= within.end {
                break;
            }
            for low in blocks.blocks() {
                let block = u64::from(*chunk) << 16 | u64::from(low);
                if !within.contains(&block) {
                    continue;
                }
                match found.last_mut() {
                    Some(last) if last.end == block => last.end += 1,
                    _ => found.push(block..block + 1),
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Like the set that it stands for, dense or not.
        #[test]
        fn is_a_set(
            runs in prop::collection::vec((0u32..300_000, 1u32..9000), 0..6),
            limit in 0u32..310_000,
        ) {
            let (mut set, mut plain) = (BlockSet::default(), BTreeSet::new());
            for (first, count) in runs {
                for block in (first..first + count).rev() {
                    set.insert(block);
                    plain.insert(block);
                }
            }
            prop_assert_eq!(set.len(), plain.len() as u64);
            set.cut(limit);
            plain.retain(|block| *block < limit);
            let listed: Vec<u64> = set.ranges().into_iter().flatten().collect();
            prop_assert_eq!(listed, plain.iter().map(|block| u64::from(*block)).collect::<Vec<_>>());
            prop_assert_eq!(set.is_empty(), plain.is_empty());
            prop_assert!(!set.contains(limit));
            let within = u64::from(limit / 3)..u64::from(limit / 2);
            let listed: Vec<u64> = set.ranges_within(within.clone()).into_iter().flatten().collect();
            let wanted = plain.iter().map(|block| u64::from(*block));
            prop_assert_eq!(listed, wanted.filter(|b| within.contains(b)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_last_block_there_can_be_is_one() {
        let mut set = BlockSet::default();
        set.insert(u32::MAX);
        assert!(set.contains(u32::MAX));
        let listed: Vec<u64> = set.ranges().into_iter().flatten().collect();
        assert_eq!(listed, [u64::from(u32::MAX)]);
    }
}
