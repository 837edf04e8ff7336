//! Small files that are in the repository already, found by their content.
//!
//! A small file lies in a chunk with its neighbours, so the index does not know it by itself. Entries
//! of the parent that were lately passed are remembered here with a hash of each file alone: one that
//! is read again and has not changed, was renamed or copied stays where it is, and its neighbours are
//! not stored anew because of it.

use std::collections::{HashMap, VecDeque};

use crate::ObjectId;
use crate::entry::{Body, Extent, FileContent, Member};

/// Files that are remembered. Renamed ones are mostly near, and those of one directory are.
const MOST: usize = 64 << 10;
/// How much longer they are kept for workers that are behind. Those are few, and it is only work that
/// is saved.
const BEHIND: usize = 4 << 10;

/// What one lane remembers.
#[derive(Default)]
pub(super) struct Members {
    by_hash: HashMap<[u8; 16], Met>,
    order: VecDeque<([u8; 16], u64)>,
    met: u64,
}

struct Met {
    number: u64,
    extent: Extent,
}

/// The part of an id by which a small file is found.
pub(super) fn short(id: &ObjectId) -> [u8; 16] {
    let mut hash = [0; 16];
    hash.copy_from_slice(&id.0[..16]);
    hash
}

impl Members {
    /// Takes note of an entry of the parent that is passed.
    pub fn remember(&mut self, content: &FileContent) {
        let Body::Member(member) = &content.body else { return };
        let Member { extent, hash } = member.as_ref();
        // All of the file, as it is written here: others would be taken for something else.
        if extent.offset != 0 || u64::from(extent.length) != content.size {
            return;
        }
        self.met += 1;
        let number = self.met;
        // Of several that are alike the first counts, so that it does not matter when one looks.
        let there = self.by_hash.get(hash);
        if there.is_none_or(|there| number - there.number > MOST as u64) {
            self.by_hash.insert(*hash, Met { number, extent: *extent });
            self.order.push_back((*hash, number));
        }
        while let Some((hash, old)) = self.order.front()
            && number - old > (MOST + BEHIND) as u64
        {
            if self.by_hash.get(hash).is_some_and(|there| there.number == *old) {
                self.by_hash.remove(hash);
            }
            self.order.pop_front();
        }
    }

    /// How many were met so far: a file that comes now may be any of the last ones.
    pub fn met(&self) -> u64 {
        self.met
    }

    /// Where content with this hash lies, of what was lately met when `met` files had been: what is
    /// found does not depend on how far the workers are behind.
    pub fn find(&self, hash: &[u8; 16], length: u32, met: u64) -> Option<Extent> {
        let there = self.by_hash.get(hash)?;
        let lately = there.number <= met && met - there.number < MOST as u64;
        (lately && there.extent.length == length).then_some(there.extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u32) -> FileContent {
        let chunk = ObjectId([number as u8; 32]);
        let extent = Extent { offset: 0, length: 5000, chunk, chunk_offset: number };
        FileContent {
            size: 5000,
            body: Body::Member(Box::new(Member { extent, hash: hash(number) })),
        }
    }

    fn hash(number: u32) -> [u8; 16] {
        let mut hash = [7; 16];
        hash[..4].copy_from_slice(&number.to_le_bytes());
        hash
    }

    #[test]
    fn what_was_lately_met_is_found_and_nothing_else() {
        let mut members = Members::default();
        members.remember(&member(1));
        let at = members.met();
        members.remember(&member(2));
        assert!(members.find(&hash(1), 5000, at).is_some());
        // It came later than the file that asks, has another length, or is no member at all.
        assert_eq!(members.find(&hash(2), 5000, at), None);
        assert_eq!(members.find(&hash(1), 4999, at), None);
        assert_eq!(members.find(&hash(3), 5000, at), None);
        members.remember(&FileContent::inline(*b"short"));
        assert_eq!(members.met(), 2);
    }

    #[test]
    fn an_entry_that_says_something_else_than_all_of_the_file_is_not_used() {
        let mut members = Members::default();
        let mut strange = member(1);
        strange.size = 5001;
        members.remember(&strange);
        assert_eq!(members.find(&hash(1), 5000, members.met()), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut members = Members::default();
        let many = (MOST + BEHIND + 1000) as u32;
        (0..many).for_each(|number| members.remember(&member(number)));
        assert!(members.by_hash.len() <= MOST + BEHIND + 1);
        assert!(members.order.len() <= MOST + BEHIND + 1);
        assert_eq!(members.find(&hash(0), 5000, members.met()), None);
        assert!(members.find(&hash(many - 1), 5000, members.met()).is_some());
    }
}
