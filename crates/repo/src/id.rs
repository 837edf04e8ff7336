//! Names of content: keyed BLAKE3 over the bytes, one key for each kind of content.

use std::fmt;
use std::str::FromStr;

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
use serde::{Deserialize, Serialize};

/// What a chunk holds. Part of what a record is sealed with, so that one kind can never be passed
/// off as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Content of files: a content-defined chunk, a cell of a grid, or a group of small files.
    Data = 1,
    /// A node of a tree.
    Tree = 2,
    /// A leaf of an extent map.
    Leaf = 3,
    /// The hashes of the pages that a leaf is about.
    Pages = 4,
}

impl Kind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Data, Self::Tree, Self::Leaf, Self::Pages].into_iter().find(|k| *k as u8 == byte)
    }

    /// Metadata goes to packs of its own, so that trees are read without content in between.
    pub(crate) fn is_metadata(self) -> bool {
        self != Self::Data
    }
}

/// The id of a chunk: 256 bits of keyed BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u8; 32]);

impl ObjectId {
    /// What the index keeps of an id. 128 bits are enough to tell chunks apart that an attacker
    /// without the key cannot compute; what is found is checked against the whole id.
    pub(crate) fn prefix(&self) -> u128 {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0[..16]);
        u128::from_be_bytes(bytes)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..8]))
    }
}

impl FromStr for ObjectId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        unhex(s).map(Self).ok_or_else(|| format!("{s:?} is no id of a chunk"))
    }
}

impl Serialize for ObjectId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The bytes of exactly `2 * N` lower-case hexadecimal digits.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let mut value = 0;
        for digit in pair {
            let digit = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            value = value << 4 | digit;
        }
        *byte = value;
    }
    Some(bytes)
}

/// A page of a database file for the purpose of page hashes. Bytes.
pub(crate) const PAGE: usize = 8192;

/// Hashes a cell of a grid and each of its pages in one pass.
///
/// BLAKE3 is a binary tree over blocks of 1 KiB: every aligned page of 8 KiB is a subtree, whose
/// chaining value falls out on the way to the root. Eight bytes of it are the page's hash, so the
/// hashes that later find changed pages cost nothing beyond the cell's own id.
pub struct CellHasher {
    key: [u8; 32],
    stack: Vec<ChainingValue>,
}

impl CellHasher {
    pub fn new(key: [u8; 32]) -> Self {
        Self { key, stack: Vec::with_capacity(128) }
    }

    /// The id of `cell`, which is keyed BLAKE3 of its bytes; the pages' hashes are appended to
    /// `pages`, eight bytes each.
    pub fn hash(&mut self, cell: &[u8], pages: &mut Vec<u8>) -> ObjectId {
        if cell.len() <= PAGE {
            let id = blake3::keyed_hash(&self.key, cell);
            pages.extend_from_slice(&id.as_bytes()[24..]);
            return ObjectId(*id.as_bytes());
        }
        self.stack.clear();
        for (number, page) in cell.chunks(PAGE).enumerate() {
            let mut hasher = blake3::Hasher::new_keyed(&self.key);
            hasher.set_input_offset((number * PAGE) as u64);
            hasher.update(page);
            let value = hasher.finalize_non_root();
            pages.extend_from_slice(&value[24..]);
            self.stack.push(value);
        }
        let root = self.merge(0, self.stack.len());
        ObjectId(root)
    }

    /// The root over all of `self.stack`, whose range is `from..to`.
    fn merge(&self, from: usize, to: usize) -> [u8; 32] {
        let middle = from + left_share(to - from);
        let left = self.subtree(from, middle);
        let right = self.subtree(middle, to);
        *hazmat::merge_subtrees_root(&left, &right, Mode::KeyedHash(&self.key)).as_bytes()
    }

    fn subtree(&self, from: usize, to: usize) -> ChainingValue {
        if to - from == 1 {
            return self.stack[from];
        }
        let middle = from + left_share(to - from);
        let left = self.subtree(from, middle);
        let right = self.subtree(middle, to);
        hazmat::merge_subtrees_non_root(&left, &right, Mode::KeyedHash(&self.key))
    }
}

/// The largest power of two below `count`: BLAKE3's trees are full on the left.
fn left_share(count: usize) -> usize {
    1 << (usize::BITS - 1 - (count - 1).leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_hashed_by_pages_has_the_id_of_its_bytes() {
        let key = [7; 32];
        let mut hasher = CellHasher::new(key);
        let data: Vec<u8> =
            (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for length in [
            0,
            1,
            1024,
            8191,
            8192,
            8193,
            16384,
            20000,
            24576,
            100_000,
            1 << 19,
            1_000_000,
            1 << 20,
        ] {
            let mut pages = Vec::new();
            let id = hasher.hash(&data[..length], &mut pages);
            assert_eq!(
                id.0,
                *blake3::keyed_hash(&key, &data[..length]).as_bytes(),
                "length {length}"
            );
            assert_eq!(pages.len(), length.div_ceil(PAGE).max(1) * 8);
        }
    }

    #[test]
    fn one_changed_byte_changes_the_hash_of_its_page_alone() {
        let mut hasher = CellHasher::new([1; 32]);
        let mut cell = vec![3; 1 << 20];
        let (mut before, mut after) = (Vec::new(), Vec::new());
        hasher.hash(&cell, &mut before);
        cell[5 * PAGE + 17] ^= 1;
        hasher.hash(&cell, &mut after);
        let changed: Vec<_> = before
            .chunks(8)
            .zip(after.chunks(8))
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(i, _)| i)
            .collect();
        assert_eq!(changed, [5]);
    }

    #[test]
    fn hexadecimal_digits_are_read_strictly() {
        assert_eq!(unhex::<2>("00ff"), Some([0, 255]));
        assert_eq!(unhex::<2>("00fF"), None);
        assert_eq!(unhex::<2>("00f"), None);
        assert_eq!(unhex::<2>("00ffa"), None);
    }
}
