//! Hashes of the pages of a region, kept in layers.
//!
//! ```text
//! base     eight bytes for each page
//! change   number of pages, the numbers as varints of (number less the one before, less one),
//!          eight bytes for each of them
//! ```
//!
//! Hashes do not compress. Written anew for each incremental backup they would take as much as the
//! changed pages themselves: 64 KiB for a region of which a percent changed, which may be 70 KiB
//! when compressed. So a backup writes those that changed. A change takes up those before it that
//! are no larger: there are never more than some ten, and each hash is written again a few times
//! in all. One that is half of the region becomes a base.

use super::leaf::{put, take};
use crate::id::PAGE_HASH;

pub(crate) type PageHash = [u8; PAGE_HASH];

/// The hashes that a base has.
pub(crate) fn parse_base(bytes: &[u8]) -> impl Iterator<Item = PageHash> {
    bytes.as_chunks().0.iter().copied()
}

/// What a change holds, in the order of pages. Nothing where it is none.
pub(crate) fn parse_change(mut bytes: &[u8]) -> Option<Vec<(u32, PageHash)>> {
    let count = take(&mut bytes)?;
    // A byte of the number and the hash for each, at least.
    if count > (bytes.len() / (PAGE_HASH + 1)) as u64 {
        return None;
    }
    let mut numbers = Vec::with_capacity(count as usize);
    let mut next = 0_u64;
    for _ in 0..count {
        let number = next.checked_add(take(&mut bytes)?)?;
        numbers.push(u32::try_from(number).ok()?);
        next = number + 1;
    }
    let (hashes, rest) = bytes.as_chunks();
    if hashes.len() as u64 != count || !rest.is_empty() {
        return None;
    }
    Some(numbers.into_iter().zip(hashes.iter().copied()).collect())
}

/// A change, from pages in order.
pub(crate) fn encode_change(pages: &[(u32, PageHash)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pages.len() * (PAGE_HASH + 2) + 4);
    put(&mut out, pages.len() as u64);
    let mut next = 0;
    for (number, _) in pages {
        put(&mut out, u64::from(*number - next));
        next = number + 1;
    }
    pages.iter().for_each(|(_, hash)| out.extend_from_slice(hash));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_back_as_they_were() {
        for numbers in [vec![], vec![0], vec![0, 1, 2, 300, 8191], vec![5, 7, 70_000]] {
            let pages: Vec<_> = numbers.iter().map(|n| (*n, [*n as u8; 8])).collect();
            assert_eq!(parse_change(&encode_change(&pages)), Some(pages));
        }
    }

    #[test]
    fn what_is_no_change_is_refused() {
        let bytes = encode_change(&[(3, [1; 8]), (9, [2; 8])]);
        assert!(parse_change(&bytes[..bytes.len() - 1]).is_none());
        assert!(parse_change(&[&bytes[..], &[0]].concat()).is_none());
        assert!(parse_change(&[255, 255, 255, 255, 255, 255, 255, 255, 1]).is_none());
        assert!(parse_change(&[]).is_none());
    }
}
