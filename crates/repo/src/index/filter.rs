//! A filter that says of most ids that they are not there, without looking for them.
//!
//! A binary fuse filter with fingerprints of 8 bits (Graf and Lemire, "Binary Fuse Filters: Fast and
//! Smaller Than Xor Filters", 2022): 9 bits an id, and one in 256 that are not there passes. It is
//! built once, by whoever writes a run, and lies in the object.
//!
//! The array has `segments + 2` segments of `length` bytes, a power of two. An id has a place in each
//! of three segments that follow each other, and its fingerprint is the XOR of what is there.

/// Attempts to build one; each fails for one set of keys in some hundreds.
const ATTEMPTS: u64 = 100;
const LONGEST: u32 = 1 << 18;

/// What of an id is looked at: the second half of what the index keeps, as the first one decides
/// where an entry lies.
pub(super) fn key_of(id: &[u8; 16]) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = *id;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub seed: u64,
    /// Of a segment. 0: everything passes.
    pub length: u32,
    pub segments: u32,
    pub bytes: Vec<u8>,
}

/// Bytes of a filter with so many segments of such a length; `None` when it makes no sense.
pub(super) fn size(length: u32, segments: u32) -> Option<u64> {
    if length == 0 {
        return (segments == 0).then_some(0);
    }
    let size = (u64::from(segments) + 2) * u64::from(length);
    (length.is_power_of_two() && segments > 0 && size <= u64::from(u32::MAX)).then_some(size)
}

fn hash(key: u64, seed: u64) -> u64 {
    let mut hash = key.wrapping_add(seed);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn fingerprint(hash: u64) -> u8 {
    (hash ^ (hash >> 32)) as u8
}

impl Filter {
    /// The filter of all `keys`.
    pub fn of(mut keys: Vec<u64>) -> Self {
        keys.sort_unstable();
        keys.dedup();
        let count = keys.len().max(2) as f64;
        let length = (count.ln() / 3.33_f64.ln() + 2.25).floor() as u32;
        let length = 1_u32.checked_shl(length).unwrap_or(LONGEST).min(LONGEST);
        let factor = (0.875 + 0.25 * 1e6_f64.ln() / count.ln()).max(1.125);
        let segments = ((count * factor / f64::from(length)).ceil() as u32).saturating_sub(2);
        let segments = segments.max(1);
        if size(length, segments).is_none() {
            return Self::default();
        }
        (1..=ATTEMPTS)
            .find_map(|attempt| {
                let seed = attempt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                Self::build(&keys, seed, length, segments)
            })
            .unwrap_or_default()
    }

    /// Takes away keys that have a place to themselves until none is left, and fills the places in
    /// the opposite order.
    fn build(keys: &[u64], seed: u64, length: u32, segments: u32) -> Option<Self> {
        let size = usize::try_from(size(length, segments)?).ok()?;
        let mut it = Self { seed, length, segments, bytes: vec![0; size] };
        // For each place: how many keys have it, the XOR of their hashes, and the XOR of which of
        // their three places it is.
        let mut counts = vec![0_u32; size];
        let mut hashes = vec![0_u64; size];
        let mut which = vec![0_u8; size];
        for key in keys {
            let hash = hash(*key, seed);
            for (number, place) in it.places(hash).into_iter().enumerate() {
                counts[place] += 1;
                hashes[place] ^= hash;
                which[place] ^= number as u8;
            }
        }
        let mut alone: Vec<usize> = (0..size).filter(|place| counts[*place] == 1).collect();
        let mut order = Vec::with_capacity(keys.len());
        while let Some(place) = alone.pop() {
            if counts[place] != 1 {
                continue;
            }
            let (hash, number) = (hashes[place], which[place]);
            order.push((hash, number));
            for (other, at) in it.places(hash).into_iter().enumerate() {
                counts[at] -= 1;
                hashes[at] ^= hash;
                which[at] ^= other as u8;
                if counts[at] == 1 {
                    alone.push(at);
                }
            }
        }
        if order.len() != keys.len() {
            return None;
        }
        for (hash, number) in order.into_iter().rev() {
            let places = it.places(hash);
            let all = places.iter().fold(fingerprint(hash), |all, at| all ^ it.bytes[*at]);
            // The place itself is still zero, as each is filled once.
            it.bytes[places[usize::from(number)]] = all;
        }
        Some(it)
    }

    /// A filter that was read; `None` when its parts contradict each other.
    pub fn restore(seed: u64, length: u32, segments: u32, bytes: Vec<u8>) -> Option<Self> {
        let right = size(length, segments)? == bytes.len() as u64;
        right.then_some(Self { seed, length, segments, bytes })
    }

    /// Within the bytes, whatever the hash: a place is below `segments * length`, and XOR with less
    /// than `length` does not leave a segment.
    fn places(&self, hash: u64) -> [usize; 3] {
        let span = u64::from(self.segments) * u64::from(self.length);
        let first = ((u128::from(hash) * u128::from(span)) >> 64) as u32;
        let mask = self.length - 1;
        let second = (first + self.length) ^ ((hash >> 18) as u32 & mask);
        let third = (first + 2 * self.length) ^ (hash as u32 & mask);
        [first as usize, second as usize, third as usize]
    }

    /// Whether a key may be among those that it was built of. Of others, one in 256 may.
    pub fn passes(&self, key: u64) -> bool {
        if self.length == 0 {
            return true;
        }
        let hash = hash(key, self.seed);
        let all = self.places(hash).iter().fold(fingerprint(hash), |all, at| all ^ self.bytes[*at]);
        all == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_there_passes_and_little_else_does() {
        for count in [0_u64, 1, 2, 3, 10, 1000, 100_000] {
            let keys: Vec<u64> = (0..count).map(|n| hash(n, 77)).collect();
            let filter = Filter::of(keys.clone());
            assert!(keys.iter().all(|key| filter.passes(*key)), "{count}");
            let others = (0..10_000).filter(|n| filter.passes(hash(*n + (1 << 40), 77))).count();
            assert!(others < 100, "{others} of 10000 pass a filter of {count}");
        }
        let filter = Filter::of((0..1_000_000).collect());
        assert!(filter.bytes.len() <= 1_180_000, "{}", filter.bytes.len());
    }

    proptest! {
        #[test]
        fn any_keys_pass(keys in prop::collection::vec(any::<u64>(), 0..300)) {
            let filter = Filter::of(keys.clone());
            prop_assert!(keys.iter().all(|key| filter.passes(*key)));
            let Filter { seed, length, segments, bytes } = filter;
            let again = Filter::restore(seed, length, segments, bytes);
            prop_assert!(again.is_some_and(|it| keys.iter().all(|key| it.passes(*key))));
        }

        #[test]
        fn whatever_is_restored_can_be_asked(
            seed in any::<u64>(),
            length in prop_oneof![0_u32..70, any::<u32>()],
            segments in prop_oneof![0_u32..9, any::<u32>()],
            size in 0_usize..600,
            key in any::<u64>(),
        ) {
            if let Some(filter) = Filter::restore(seed, length, segments, vec![7; size]) {
                filter.passes(key);
            }
        }
    }
}
