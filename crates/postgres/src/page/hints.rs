//! Whether two states of a page differ by nothing that counts.
//!
//! Without checksums (and without `wal_log_hints`) a server sets bits in pages of which the WAL has
//! nothing: what is known of the transactions that wrote a tuple, which entries of an index are dead.
//! Each is found out again by whoever needs it, so a page without them is as good as one with them. A
//! backup by the log has them as they were when the page was last read.
//!
//! And two servers that have the same log, a primary and its standby, do not have the same bytes: one
//! made the page, the other made it again from the log. What they have alike is what recovery needs,
//! and the place of the last record (`pd_lsn`). PostgreSQL's own list is that of its
//! `wal_consistency_checking` (the `…_mask` functions), and this one follows it, but that `pd_lsn`
//! counts here, as does what a record alone changes.
//!
//! | where | what |
//! |---|---|
//! | page header | `pd_checksum`; `PD_HAS_FREE_LINES`, `PD_PAGE_FULL` of `pd_flags`; `pd_prune_xid` |
//! | between `pd_lower` and `pd_upper` | everything: what was there once is nobody's |
//! | heap: tuples | `HEAP_XMIN_…` and `HEAP_XMAX_COMMITTED`, `…_INVALID` of `t_infomask`; the number of the command, which only its own transaction asks for; what fills a tuple up to the next |
//! | sequence | how far it counted within what one record gave out in advance |
//! | B-tree, hash, GiST: line pointers | their state, which becomes "dead" |
//! | B-tree: special space | `BTP_HAS_GARBAGE`, `BTP_SPLIT_END`, and the vacuum's cycle |
//! | hash, GiST: special space | the flag that there are dead entries |
//! | B-tree, GIN: deleted pages; hash: unused ones | everything behind the header |
//! | SP-GiST: the first page | everything behind the header: where there was room when last looked |
//! | BRIN: special space | `BRIN_EVACUATE_PAGE` |

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

/// `pd_lsn`, checksum, flags, lower, upper, special, size and version, prune xid.
const HEADER: usize = 24;
/// `PD_HAS_FREE_LINES` and `PD_PAGE_FULL`.
const HINTS_OF_PAGE: u16 = 0x0001 | 0x0002;
/// `HEAP_XMIN_COMMITTED`, `HEAP_XMIN_INVALID`, `HEAP_XMAX_COMMITTED`, `HEAP_XMAX_INVALID`.
const HINTS_OF_TUPLE: u16 = 0x0f00;
/// `HEAP_COMBOCID`.
const COMBINED_COMMAND: u16 = 0x0020;
/// Of `t_cid`, `t_infomask` and `t_hoff` in a tuple.
const COMMAND: usize = 8;
const INFOMASK: usize = 20;
const LENGTH_OF_HEADER: usize = 22;
/// `LP_NORMAL`.
const NORMAL: u32 = 1;
/// Where the two bits of a line pointer's state are.
const STATE: u32 = 3 << 15;
const SEQUENCE_MAGIC: u32 = 0x1717;
/// At the end of the special spaces, what tells hash and GiST pages from those of B-trees.
const HASH_PAGE: u16 = 0xff80;
const GIST_PAGE: u16 = 0xff81;
/// The same of SP-GiST, and `SPGIST_META` of its flags.
const SPGIST_PAGE: u16 = 0xff82;
const SPGIST_META: u16 = 0x0001;
/// Of BRIN, whose last two bytes are the type of the page.
const BRIN_META: u16 = 0xf091;
const BRIN_MAP: u16 = 0xf092;
const BRIN_REGULAR: u16 = 0xf093;
/// All flags that pages of GIN have, which has no other mark; and that of deleted ones.
const GIN_FLAGS: u16 = 0x00ff;
const GIN_DELETED: u16 = 0x0004;
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

/// A page with all that does not count taken out; nothing when it is none.
fn without_hints(page: &[u8]) -> Option<Vec<u8>> {
    let mut plain = page.to_vec();
    let lower = usize::from(u16_at(page, 12)?);
    let upper = usize::from(u16_at(page, 14)?);
    let special = usize::from(u16_at(page, 16)?);
    if lower < HEADER || lower > upper || upper > special || special > page.len() {
        return None;
    }
    put(&mut plain, 8, 0)?;
    put(&mut plain, 10, u16_at(page, 10)? & !HINTS_OF_PAGE)?;
    plain.get_mut(20..HEADER)?.fill(0);
    let kind = kind(page, lower, special)?;
    if kind == Kind::Spare {
        plain.get_mut(12..16)?.fill(0);
        plain.get_mut(HEADER..)?.fill(0);
        return Some(plain);
    }
    if kind != Kind::Packed {
        plain.get_mut(lower..upper)?.fill(0);
    }
    let pointers = (HEADER..lower.checked_sub(3)?).step_by(4);
    match kind {
        Kind::Heap | Kind::Sequence => {
            for at in pointers {
                let pointer = u32_at(page, at)?;
                if (pointer & STATE) >> 15 != NORMAL {
                    continue;
                }
                let (start, length) = ((pointer & 0x7fff) as usize, (pointer >> 17) as usize);
                let infomask = u16_at(page, start + INFOMASK)?;
                let bits = infomask & !(HINTS_OF_TUPLE | COMBINED_COMMAND);
                put(&mut plain, start + INFOMASK, bits)?;
                plain.get_mut(start + COMMAND..start + COMMAND + 4)?.fill(0);
                let end = start + length;
                plain.get_mut(end..end.next_multiple_of(8))?.fill(0);
                if kind == Kind::Sequence {
                    let content = start + usize::from(*page.get(start + LENGTH_OF_HEADER)?);
                    plain.get_mut(content..end)?.fill(0);
                }
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
        Kind::Brin => {
            put(&mut plain, special + 4, u16_at(page, special + 4)? & !BRIN_EVACUATE)?;
        }
        Kind::Other | Kind::Packed | Kind::Spare => {}
    }
    Some(plain)
}

/// `BTP_SPLIT_END` and `BTP_HAS_GARBAGE`; `BTP_DELETED`.
const BTREE_FLAGS: u16 = 0x20 | 0x40;
const BTREE_DELETED: u16 = 0x04;
/// `LH_PAGE_HAS_DEAD_TUPLES`; what says of which type a page is, none where it is unused.
const HASH_FLAGS: u16 = 0x80;
const HASH_TYPE: u16 = 0x0f;
/// `F_HAS_GARBAGE`.
const GIST_FLAGS: u16 = 0x10;
/// `BRIN_EVACUATE_PAGE`.
const BRIN_EVACUATE: u16 = 0x01;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Heap,
    Sequence,
    /// The flags in its special space that are hints.
    Index {
        flags: u16,
    },
    Brin,
    /// With tuples or entries from both ends, as all have them but for those that are packed.
    Other,
    /// Full of something up to its end, whatever `pd_lower` says.
    Packed,
    /// Nothing of it is needed: recovery makes it without what it had, or it is a cache.
    Spare,
}

fn kind(page: &[u8], lower: usize, special: usize) -> Option<Kind> {
    let last = u16_at(page, page.len().checked_sub(2)?)?;
    Some(match page.len() - special {
        0 => Kind::Heap,
        8 if u32_at(page, special)? == SEQUENCE_MAGIC => Kind::Sequence,
        8 => match last {
            BRIN_REGULAR => Kind::Brin,
            BRIN_MAP => Kind::Packed,
            SPGIST_PAGE if u16_at(page, special)? & SPGIST_META != 0 => Kind::Spare,
            SPGIST_PAGE => Kind::Other,
            // Older servers did not set it.
            BRIN_META if lower == HEADER => Kind::Packed,
            flags if flags <= GIN_FLAGS && flags & GIN_DELETED != 0 => Kind::Spare,
            _ if lower == HEADER => Kind::Packed,
            _ => Kind::Other,
        },
        16 => {
            let flags = u16_at(page, special + 12)?;
            match last {
                HASH_PAGE if flags & HASH_TYPE == 0 => Kind::Spare,
                HASH_PAGE => Kind::Index { flags: HASH_FLAGS },
                GIST_PAGE => Kind::Index { flags: GIST_FLAGS },
                cycle if cycle <= MOST_CYCLES && flags & BTREE_DELETED != 0 => Kind::Spare,
                cycle if cycle <= MOST_CYCLES => Kind::Index { flags: BTREE_FLAGS },
                _ => Kind::Packed,
            }
        }
        _ => Kind::Packed,
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
        // What only its own transaction asks for, and what lies where nothing is.
        now[8000 + 8..8000 + 12].fill(0x77);
        now[8000 + 20] ^= 0x20;
        now[32..3000].fill(0x99);
        assert!(same_but_for_hints(&before, &now));
        // The location of the last change, where there is anything, a tuple's other bits, one byte of
        // its content, and a tuple that is none.
        for at in [0, 10, 12, 8000 + 4, 8000 + 20, 8000 + 30, 7000 + 21, 7000 + 8, 24] {
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
            put(&mut before, SIZE - 4, 3).unwrap();
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
    fn what_fills_a_tuple_up_does_not_count_and_its_last_byte_does() {
        let before = page(0, &[8000 | 1 << 15 | 37 << 17]);
        let mut now = before.clone();
        now[8037..8040].fill(0xee);
        assert!(same_but_for_hints(&before, &now));
        now[8036] ^= 1;
        assert!(!same_but_for_hints(&before, &now));
    }

    #[test]
    fn a_sequence_counts_on_without_a_record() {
        let mut before = page(8, &[pointer(8000, 1)]);
        before[SIZE - 8..SIZE - 4].copy_from_slice(&SEQUENCE_MAGIC.to_le_bytes());
        before[8000 + LENGTH_OF_HEADER] = 24;
        let mut now = before.clone();
        now[8024..8040].fill(0xee);
        assert!(same_but_for_hints(&before, &now));
        now[0] ^= 1;
        assert!(!same_but_for_hints(&before, &now));
    }

    #[test]
    fn pages_of_which_nobody_needs_the_content_and_those_that_are_all_content() {
        let with = |special: usize, marks: &[(usize, u16)]| {
            let mut it = page(special, &[]);
            marks.iter().for_each(|(at, mark)| put(&mut it, SIZE - at, *mark).unwrap());
            it
        };
        let changed = |it: &[u8], at: usize| {
            let mut now = it.to_vec();
            now[at] ^= 0x55;
            same_but_for_hints(it, &now)
        };
        // Deleted: of B-trees, hash, GIN.
        for it in [
            with(16, &[(4, 0x05), (2, 0)]),
            with(16, &[(4, 0), (2, HASH_PAGE)]),
            with(8, &[(2, GIN_DELETED)]),
            // What SP-GiST remembers of where there is room.
            with(8, &[(8, SPGIST_META), (2, SPGIST_PAGE)]),
        ] {
            assert!(changed(&it, 5000));
            assert!(!changed(&it, 3), "a record changed it");
        }
        // Full up to the end, whatever is said of a hole.
        for mark in [BRIN_MAP, BRIN_META, 0x83] {
            assert!(!changed(&with(8, &[(2, mark)]), 2000), "{mark:x}");
        }
        // A hole, and content behind it.
        for mark in [BRIN_REGULAR, SPGIST_PAGE] {
            assert!(changed(&with(8, &[(8, 0), (2, mark)]), 2000), "{mark:x}");
            assert!(!changed(&with(8, &[(8, 0), (2, mark)]), 5000), "{mark:x}");
        }
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
