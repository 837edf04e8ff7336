//! Whether two states of a page differ by nothing but hints.
//!
//! Without checksums (and without `wal_log_hints`) a server sets bits in pages of which the WAL has
//! nothing: what is known of the transactions that wrote a tuple, which entries of an index are dead.
//! Each is found out again by whoever needs it, so a page without them is as good as one with them. A
//! backup by the log has them as they were when the page was last read.
//!
//! What a server may change without WAL, with the places where it does:
//!
//! | where | what |
//! |---|---|
//! | page header | `pd_checksum`; `PD_HAS_FREE_LINES`, `PD_PAGE_FULL` of `pd_flags`; `pd_prune_xid` |
//! | heap, sequence: tuples | `HEAP_XMIN_…` and `HEAP_XMAX_COMMITTED`, `…_INVALID` of `t_infomask` |
//! | B-tree, hash, GiST: line pointers | their state, which becomes "dead" |
//! | B-tree: special space | `BTP_HAS_GARBAGE`, `BTP_SPLIT_END`, and the vacuum's cycle |
//! | hash, GiST: special space | the flag that there are dead entries |

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

/// `pd_lsn`, checksum, flags, lower, upper, special, size and version, prune xid.
const HEADER: usize = 24;
/// `PD_HAS_FREE_LINES` and `PD_PAGE_FULL`.
const HINTS_OF_PAGE: u16 = 0x0001 | 0x0002;
/// `HEAP_XMIN_COMMITTED`, `HEAP_XMIN_INVALID`, `HEAP_XMAX_COMMITTED`, `HEAP_XMAX_INVALID`.
const HINTS_OF_TUPLE: u16 = 0x0f00;
/// Of `t_infomask` in a tuple.
const INFOMASK: usize = 20;
/// `LP_NORMAL`.
const NORMAL: u32 = 1;
/// Where the two bits of a line pointer's state are.
const STATE: u32 = 3 << 15;
const SEQUENCE_MAGIC: u32 = 0x1717;
/// At the end of the special spaces, what tells hash and GiST pages from those of B-trees.
const HASH_PAGE: u16 = 0xff80;
const GIST_PAGE: u16 = 0xff81;
/// The last number that a vacuum's cycle in a B-tree may be.
const MOST_CYCLES: u16 = 0xff7f;

/// Whether `now` is `before` but for hints.
pub fn same_but_for_hints(before: &[u8], now: &[u8]) -> bool {
    before == now
        || match (without_hints(before), without_hints(now)) {
            (Some(before), Some(now)) => before == now,
            _ => false,
        }
}

/// A page with all hints taken out; nothing when it is none.
fn without_hints(page: &[u8]) -> Option<Vec<u8>> {
    let mut plain = page.to_vec();
    let lower = usize::from(u16_at(page, 12)?);
    let special = usize::from(u16_at(page, 16)?);
    if lower < HEADER || lower > special || special > page.len() {
        return None;
    }
    put(&mut plain, 8, 0)?;
    put(&mut plain, 10, u16_at(page, 10)? & !HINTS_OF_PAGE)?;
    plain.get_mut(20..HEADER)?.fill(0);
    let pointers = (HEADER..lower.checked_sub(3)?).step_by(4);
    match kind(page, special)? {
        Kind::Heap => {
            for at in pointers {
                let pointer = u32_at(page, at)?;
                if (pointer & STATE) >> 15 != NORMAL {
                    continue;
                }
                let infomask = (pointer & 0x7fff) as usize + INFOMASK;
                let bits = u16_at(page, infomask)?;
                put(&mut plain, infomask, bits & !HINTS_OF_TUPLE)?;
            }
        }
        Kind::Index { flags } => {
            for at in pointers {
                let pointer = u32_at(page, at)? & !STATE;
                plain.get_mut(at..at + 4)?.copy_from_slice(&pointer.to_le_bytes());
            }
            let at = special + 12;
            put(&mut plain, at, u16_at(page, at)? & !flags)?;
            if flags == BTREE_FLAGS {
                put(&mut plain, special + 14, 0)?;
            }
        }
        Kind::Other => {}
    }
    Some(plain)
}

/// `BTP_SPLIT_END` and `BTP_HAS_GARBAGE`.
const BTREE_FLAGS: u16 = 0x20 | 0x40;
/// `LH_PAGE_HAS_DEAD_TUPLES`.
const HASH_FLAGS: u16 = 0x80;
/// `F_HAS_GARBAGE`.
const GIST_FLAGS: u16 = 0x10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Heap,
    /// The flags in its special space that are hints.
    Index {
        flags: u16,
    },
    Other,
}

fn kind(page: &[u8], special: usize) -> Option<Kind> {
    Some(match page.len() - special {
        0 => Kind::Heap,
        8 if u32_at(page, special)? == SEQUENCE_MAGIC => Kind::Heap,
        16 => match u16_at(page, special + 14)? {
            HASH_PAGE => Kind::Index { flags: HASH_FLAGS },
            GIST_PAGE => Kind::Index { flags: GIST_FLAGS },
            cycle if cycle <= MOST_CYCLES => Kind::Index { flags: BTREE_FLAGS },
            _ => Kind::Other,
        },
        _ => Kind::Other,
    })
}

fn u16_at(page: &[u8], at: usize) -> Option<u16> {
    page.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(page: &[u8], at: usize) -> Option<u32> {
    page.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn put(page: &mut [u8], at: usize, value: u16) -> Option<()> {
    page.get_mut(at..at + 2)?.copy_from_slice(&value.to_le_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 8192;

    fn page(special: usize, pointers: &[u32]) -> Vec<u8> {
        let mut page: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
        let lower = HEADER + pointers.len() * 4;
        put(&mut page, 12, lower as u16).unwrap();
        put(&mut page, 16, (SIZE - special) as u16).unwrap();
        for (at, pointer) in pointers.iter().enumerate() {
            page[HEADER + at * 4..][..4].copy_from_slice(&pointer.to_le_bytes());
        }
        page
    }

    fn pointer(offset: u32, state: u32) -> u32 {
        offset | state << 15 | 40 << 17
    }

    #[test]
    fn hints_of_a_heap_page_do_not_count_and_all_else_does() {
        let before = page(0, &[pointer(8000, 1), pointer(7000, 2)]);
        let mut now = before.clone();
        now[8..10].copy_from_slice(&[1, 2]);
        now[10] ^= 3;
        now[20..24].copy_from_slice(&[9; 4]);
        now[8000 + 21] ^= 0x0f;
        assert!(same_but_for_hints(&before, &now));
        // The location of the last change, where there is anything, a tuple's other bits, one byte of
        // its content, and a tuple that is none.
        for at in [0, 10, 12, 8000 + 20, 8000 + 30, 7000 + 21, 24] {
            let mut other = now.clone();
            other[at] ^= 0x14;
            assert!(!same_but_for_hints(&before, &other), "byte {at}");
        }
        // A line pointer of a heap never dies without a record.
        let dead = page(0, &[pointer(8000, 3), pointer(7000, 2)]);
        assert!(!same_but_for_hints(&before, &dead));
    }

    #[test]
    fn entries_of_an_index_die_without_a_record() {
        for (kind, flags) in [(0, BTREE_FLAGS), (HASH_PAGE, HASH_FLAGS), (GIST_PAGE, GIST_FLAGS)] {
            let mut before = page(16, &[pointer(8000, 1), pointer(7000, 1)]);
            put(&mut before, SIZE - 2, kind).unwrap();
            let mut now = before.clone();
            now[HEADER..HEADER + 4].copy_from_slice(&pointer(8000, 3).to_le_bytes());
            now[SIZE - 4] ^= flags as u8;
            assert!(same_but_for_hints(&before, &now), "{kind:x}");
            now[8000] ^= 1;
            assert!(!same_but_for_hints(&before, &now), "{kind:x}");
        }
        // Of a kind of index that is not known nothing is forgiven.
        let mut before = page(8, &[pointer(8000, 1)]);
        before[SIZE - 8..].fill(0x82);
        let mut now = before.clone();
        now[HEADER..HEADER + 4].copy_from_slice(&pointer(8000, 3).to_le_bytes());
        assert!(!same_but_for_hints(&before, &now));
    }

    #[test]
    fn what_is_no_page_is_only_itself() {
        let before = vec![0xff; SIZE];
        let mut now = before.clone();
        assert!(same_but_for_hints(&before, &now));
        now[8] = 0;
        assert!(!same_but_for_hints(&before, &now));
        assert!(!same_but_for_hints(&[0; SIZE], &before));
        assert!(!same_but_for_hints(&[], &before));
    }
}
