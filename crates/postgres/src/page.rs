//! Pages of relations: their checksum, and which page is to be accused.
//!
//! Layout of a page header, as far as it is read here (little-endian, `storage/bufpage.h`):
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | `pd_lsn`: high half first, each half little-endian |
//! | 8 | 2 | `pd_checksum` |
//! | 14 | 2 | `pd_upper`: 0 on a page that was never initialised |
//!
//! The checksum is the FNV-1a variant of `storage/checksum_impl.h`: 32 lanes of 32 bits run down
//! the page side by side, two rounds of zeros mix the last bits, the lanes are folded by XOR, the
//! block number *within the relation* is mixed in, and the result is brought into 1..=65535.

mod hints;

use std::sync::OnceLock;

pub use hints::same_but_for_hints;

/// The smallest and largest page PostgreSQL can be built with. Bytes.
pub const PAGE_SIZES: std::ops::RangeInclusive<u32> = 1024..=32768;

const LANES: usize = 32;
const ROW: usize = LANES * 4;
const PRIME: u32 = 16_777_619;

/// Where each lane starts.
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What a page is, by its own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// Entirely zero: added to the relation and not used yet.
    New,
    Good,
    Bad {
        stored: u16,
        computed: u16,
        /// Of the last change, as the page itself says.
        lsn: u64,
    },
}

/// The checksum of `page` as block `block` of its relation; what the page says of its own checksum
/// does not matter. `page` must be a multiple of 128 bytes long, as every page size is; what goes
/// beyond is not looked at.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mixed = hash(page) ^ block;
    // The remainder is below 65535, so that one more fits, and 0 means "no checksum".
    (mixed % 65535) as u16 + 1
}

/// What `page` is as block `block` of its relation.
pub fn check(page: &[u8], block: u32) -> PageState {
    if field(page, 14) == 0 && page.iter().all(|byte| *byte == 0) {
        return PageState::New;
    }
    let stored = field(page, 8);
    let computed = checksum(page, block);
    if stored == computed {
        PageState::Good
    } else {
        PageState::Bad { stored, computed, lsn: lsn(page) }
    }
}

/// Where in the WAL the page was last changed.
pub fn lsn(page: &[u8]) -> u64 {
    let half = |at: usize| match page.get(at..at + 4) {
        Some(&[a, b, c, d]) => u64::from(u32::from_le_bytes([a, b, c, d])),
        _ => 0,
    };
    half(0) << 32 | half(4)
}

fn field(page: &[u8], at: usize) -> u16 {
    match page.get(at..at + 2) {
        Some(&[low, high]) => u16::from_le_bytes([low, high]),
        _ => 0,
    }
}

type Hash = fn(&[u8]) -> u32;

fn hash(page: &[u8]) -> u32 {
    static BEST: OnceLock<Hash> = OnceLock::new();
    BEST.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return hash_avx2;
        }
        hash_portable
    })(page)
}

/// The same code with 256-bit registers and their 32-bit multiplication, which plain x86-64 lacks.
/// `benches/page.rs` shows the factor that justifies it.
#[cfg(target_arch = "x86_64")]
fn hash_avx2(page: &[u8]) -> u32 {
    #[target_feature(enable = "avx2")]
    fn with_avx2(page: &[u8]) -> u32 {
        lanes(page)
    }
    // SAFETY: only chosen once the processor said that it has AVX2.
    unsafe { with_avx2(page) }
}

fn hash_portable(page: &[u8]) -> u32 {
    lanes(page)
}

#[inline(always)]
fn lanes(page: &[u8]) -> u32 {
    let mut sums = OFFSETS;
    let (rows, _) = page.as_chunks::<ROW>();
    if let Some((first, rest)) = rows.split_first() {
        let mut first = *first;
        // The checksum is computed as if its own field were zero.
        first[8] = 0;
        first[9] = 0;
        mix_row(&mut sums, &first);
        for row in rest {
            mix_row(&mut sums, row);
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = mix(*sum, 0);
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

#[inline(always)]
fn mix_row(sums: &mut [u32; LANES], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum = mix(*sum, u32::from_le_bytes(*word));
    }
}

#[inline(always)]
fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

/// The two ways to compute the hash, for the benchmark that compares them.
#[doc(hidden)]
pub mod internals {
    pub fn portable(page: &[u8]) -> u32 {
        super::hash_portable(page)
    }

    pub fn best(page: &[u8]) -> u32 {
        super::hash(page)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, one lane after the other, as PostgreSQL's header describes it.
    fn by_definition(page: &[u8], block: u32) -> u16 {
        let mut page = page.to_vec();
        page[8..10].fill(0);
        let mut all = 0;
        for (lane, offset) in OFFSETS.into_iter().enumerate() {
            let mut sum = offset;
            for row in 0..page.len() / ROW {
                let at = row * ROW + lane * 4;
                let value = u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
                sum = mix(sum, value);
            }
            all ^= mix(mix(sum, 0), 0);
        }
        ((all ^ block) % 65535) as u16 + 1
    }

    proptest! {
        #[test]
        fn every_way_gives_the_same_checksum(
            seed in proptest::collection::vec(any::<u8>(), 64),
            size in prop::sample::select(vec![1024_usize, 8192, 32768]),
            block in any::<u32>(),
        ) {
            let page: Vec<u8> =
                (0..size).map(|i| seed[i % 64].wrapping_mul(i as u8).wrapping_add((i >> 8) as u8)).collect();
            prop_assert_eq!(checksum(&page, block), by_definition(&page, block));
            prop_assert_eq!(internals::portable(&page), internals::best(&page));
        }
    }

    #[test]
    fn a_page_of_zeros_is_new_and_a_stray_bit_in_it_is_an_accusation() {
        let mut page = vec![0; 8192];
        assert_eq!(check(&page, 7), PageState::New);
        page[5000] = 1;
        assert!(matches!(check(&page, 7), PageState::Bad { stored: 0, .. }));
    }

    #[test]
    fn the_block_number_is_part_of_the_checksum() {
        let mut page: Vec<u8> = (0..8192_u32).map(|i| (i * 7) as u8).collect();
        let right = checksum(&page, 131_073).to_le_bytes();
        page[8..10].copy_from_slice(&right);
        assert_eq!(check(&page, 131_073), PageState::Good);
        assert!(matches!(check(&page, 1), PageState::Bad { .. }));
    }

    #[test]
    fn the_lsn_has_its_high_half_first() {
        let mut page = vec![0; 8192];
        page[..8].copy_from_slice(&[1, 0, 0, 0, 0x28, 0, 0, 2]);
        assert_eq!(lsn(&page), 0x1_0200_0028);
    }
}
