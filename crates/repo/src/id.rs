//! Names of content: keyed BLAKE3 over the bytes, one key for each kind of content.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
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
/// Of a page's hash. Bytes.
pub(crate) const PAGE_HASH: usize = 8;

/// Hashes a cell of a grid and each of its pages.
///
/// The hash of a page is the first eight bytes of its GMAC (AES-256-GCM over the page as additional
/// data alone, with a key of its own and a constant nonce). It is a keyed universal hash: two pages
/// that differ collide with a probability below 2^-54, whatever they hold, as long as nobody sees
/// hashes; they are only ever stored sealed. It was chosen because it costs a third of the cell's
/// own id, where BLAKE3 over single pages costs twice as much as over whole cells.
pub struct CellHasher {
    key: [u8; 32],
    pages: LessSafeKey,
}

impl CellHasher {
    pub fn new(key: [u8; 32], page_key: [u8; 32]) -> Self {
        let pages = UnboundKey::new(&AES_256_GCM, &page_key).expect("the key has 32 bytes");
        Self { key, pages: LessSafeKey::new(pages) }
    }

    /// The id of `cell`, which is keyed BLAKE3 of its bytes; the pages' hashes are appended to
    /// `pages`, eight bytes each.
    pub fn hash(&self, cell: &[u8], pages: &mut Vec<u8>) -> ObjectId {
        for page in cell.chunks(PAGE) {
            let nonce = Nonce::assume_unique_for_key([0; 12]);
            let tag = self
                .pages
                .seal_in_place_separate_tag(nonce, Aad::from(page), &mut [])
                .expect("a page is far below the limit of AES-GCM");
            pages.extend(tag.as_ref().iter().take(PAGE_HASH));
        }
        ObjectId(*blake3::keyed_hash(&self.key, cell).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_the_id_of_its_bytes_and_a_hash_for_each_page() {
        let hasher = CellHasher::new([7; 32], [8; 32]);
        let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(7) >> 3) as u8).collect();
        for length in [0, 1, 8191, 8192, 8193, 20_000, 1_000_000, 1 << 20] {
            let mut pages = Vec::new();
            let id = hasher.hash(&data[..length], &mut pages);
            assert_eq!(id.0, *blake3::keyed_hash(&[7; 32], &data[..length]).as_bytes());
            assert_eq!(pages.len(), length.div_ceil(PAGE) * PAGE_HASH);
        }
    }

    #[test]
    fn one_changed_byte_changes_the_hash_of_its_page_alone() {
        let hasher = CellHasher::new([1; 32], [2; 32]);
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
