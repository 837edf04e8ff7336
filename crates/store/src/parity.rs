//! The parity file of one object: what repairs it when a part of it has gone bad.
//!
//! The object is cut into pieces of equal length, the last one filled up with zeros. Reed-Solomon
//! makes more pieces of them; any that are right, as many as the object had, give back the object.
//! Each piece has a sum of its own, so that damage is found where it lies, and a damaged piece
//! counts as lost whatever happened to it.
//!
//! ```text
//! fixed part     magic "BSPARITY" (8) ‖ version (4) ‖ length of a piece (4) ‖
//!                length of the object (8) ‖ pieces of the object (4) ‖ pieces of parity (4) ‖
//!                BLAKE3 of the object (32) ‖ BLAKE3 of what stands before and of the sums (32)
//! sums           for each piece, first the object's: the first 16 bytes of its BLAKE3
//! parity         the pieces of parity
//! sums           again
//! fixed part     again
//! ```
//!
//! Numbers are little-endian. Fixed part and sums stand at both ends, so that no single bad range
//! takes both unless it takes the whole file. Nothing here is secret or proves who wrote it: what
//! comes out must still pass whatever the object itself is sealed with.

use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

const MAGIC: &[u8; 8] = b"BSPARITY";
const VERSION: u32 = 1;
const FIXED: usize = 96;
const SUM: usize = 16;

/// Where the sum over the head itself begins.
const SEAL: usize = FIXED - 32;

/// What disks lose at once. Bytes.
const SMALLEST_PIECE: usize = 4096;

/// More pieces than these cost time and repair little more.
const MOST_PIECES: usize = 1024;

type Sum = [u8; SUM];

/// What a parity file says of its object, without the parity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes.
    pub piece: usize,
    /// Of the object. Bytes.
    pub length: u64,
    data: usize,
    parity: usize,
    pub digest: [u8; 32],
    sums: Vec<Sum>,
}

/// Why an object cannot be had back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BeyondRepair {
    /// Pieces of the object that are damaged.
    pub damaged: usize,
    /// Pieces of parity that are left.
    pub left: usize,
}

impl Head {
    /// How many bytes of a parity file hold the head at its beginning, if these are its first.
    pub fn size_at_front(start: &[u8]) -> Option<usize> {
        let (_, data, parity) = counts(start.get(..FIXED)?)?;
        Some(FIXED + SUM * (data + parity))
    }

    pub fn at_front(file: &[u8]) -> Option<Self> {
        let size = Self::size_at_front(file)?;
        Self::read(file.get(..FIXED)?, file.get(FIXED..size)?)
    }

    fn read_back(file: &[u8]) -> Option<Self> {
        let start = file.len().checked_sub(FIXED)?;
        let fixed = file.get(start..)?;
        let (_, data, parity) = counts(fixed)?;
        Self::read(fixed, file.get(start.checked_sub(SUM * (data + parity))?..start)?)
    }

    /// From whichever end is right.
    pub fn find(file: &[u8]) -> Option<Self> {
        Self::at_front(file).or_else(|| Self::read_back(file))
    }

    fn read(fixed: &[u8], sums: &[u8]) -> Option<Self> {
        let (piece, data, parity) = counts(fixed)?;
        if seal(fixed.get(..SEAL)?, sums) != *fixed.get(SEAL..)? {
            return None;
        }
        let length = u64::from_le_bytes(fixed.get(16..24)?.try_into().ok()?);
        // Nobody makes this claim memory for more than there is.
        let expected = piece_of(usize::try_from(length).ok()?);
        if piece != expected || length.div_ceil(piece as u64) != data as u64 {
            return None;
        }
        let sums = sums.chunks_exact(SUM).filter_map(|sum| sum.try_into().ok()).collect();
        Some(Self {
            piece,
            length,
            data,
            parity,
            digest: fixed.get(32..64)?.try_into().ok()?,
            sums,
        })
    }

    fn write(&self) -> (Vec<u8>, Vec<u8>) {
        let mut fixed = Vec::with_capacity(FIXED);
        fixed.extend_from_slice(MAGIC);
        fixed.extend_from_slice(&VERSION.to_le_bytes());
        fixed.extend_from_slice(&(self.piece as u32).to_le_bytes());
        fixed.extend_from_slice(&self.length.to_le_bytes());
        fixed.extend_from_slice(&(self.data as u32).to_le_bytes());
        fixed.extend_from_slice(&(self.parity as u32).to_le_bytes());
        fixed.extend_from_slice(&self.digest);
        let sums = self.sums.concat();
        let seal = seal(&fixed, &sums);
        fixed.extend_from_slice(&seal);
        (fixed, sums)
    }

    /// A file whose head is sealed and says what `fixed` says, whatever that is.
    pub(crate) fn forge(fixed: &[u8; SEAL], sums: &[u8], rest: &[u8]) -> Vec<u8> {
        let mut fixed = *fixed;
        fixed[..8].copy_from_slice(MAGIC);
        fixed[8..12].copy_from_slice(&VERSION.to_le_bytes());
        // Counts that fit what follows, so that more than the counts is reached.
        let pieces = (sums.len() / SUM) as u32;
        let parity = u32::from(fixed[28]) % (pieces / 2 + 1);
        fixed[24..28].copy_from_slice(&(pieces - parity).to_le_bytes());
        fixed[28..32].copy_from_slice(&parity.to_le_bytes());
        if !fixed[15].is_multiple_of(4) {
            fixed[12..16].copy_from_slice(&(SMALLEST_PIECE as u32).to_le_bytes());
        }
        if !fixed[23].is_multiple_of(4) {
            let full = u64::from(pieces - parity) * SMALLEST_PIECE as u64;
            let length = full.saturating_sub(u64::from(fixed[16]));
            fixed[16..24].copy_from_slice(&length.to_le_bytes());
        }
        let seal = seal(&fixed, sums);
        [&fixed[..], &seal, sums, rest].concat()
    }

    /// Which pieces of `part` are not what they were; `part` begins with the piece `first`.
    ///
    /// A last piece that ends early is filled up with zeros.
    pub fn damaged(&self, first: usize, part: &[u8]) -> Vec<usize> {
        let pieces = part.chunks(self.piece).enumerate();
        pieces
            .filter(|(at, piece)| self.sums.get(first + at) != Some(&sum(piece, self.piece)))
            .map(|(at, _)| first + at)
            .collect()
    }

    /// Whether `body` is the whole object as it was.
    pub fn agrees(&self, body: &[u8]) -> bool {
        body.len() as u64 == self.length && self.damaged(0, body).is_empty()
    }

    /// The piece `at` of the parity in `file`, if it is there and right.
    fn parity_piece<'f>(&self, file: &'f [u8], at: usize) -> Option<&'f [u8]> {
        let start = FIXED + SUM * self.sums.len() + at * self.piece;
        let piece = file.get(start..start.checked_add(self.piece)?)?;
        (self.sums.get(self.data + at) == Some(&sum(piece, self.piece))).then_some(piece)
    }

    /// Whether `file`, whose head this is, is right in every byte.
    pub fn is_whole(&self, file: &[u8]) -> bool {
        let (fixed, sums) = self.write();
        let front = [fixed.as_slice(), &sums].concat();
        let back = [sums.as_slice(), &fixed].concat();
        file.len() == front.len() + back.len() + self.parity * self.piece
            && file.starts_with(&front)
            && file.ends_with(&back)
            && (0..self.parity).all(|at| self.parity_piece(file, at).is_some())
    }

    /// The object, from what is right of `body` and of its parity in `file`.
    pub fn rebuild(&self, body: &[u8], file: &[u8]) -> Result<Vec<u8>, BeyondRepair> {
        let parity: Vec<_> =
            (0..self.parity).filter_map(|at| Some((at, self.parity_piece(file, at)?))).collect();
        // Less than the object itself is left: nothing to begin with.
        if ((body.len() + file.len()) as u64) < self.length {
            return Err(BeyondRepair { damaged: self.data, left: parity.len() });
        }
        let mut pieces: Vec<Vec<u8>> = Vec::with_capacity(self.data);
        let mut lost = Vec::new();
        for at in 0..self.data {
            let start = (at * self.piece).min(body.len());
            let end = (start + self.piece).min(body.len());
            let mut piece = body.get(start..end).unwrap_or_default().to_vec();
            piece.resize(self.piece, 0);
            if self.sums.get(at) != Some(&sum(&piece, self.piece)) {
                lost.push(at);
            }
            pieces.push(piece);
        }
        let beyond = BeyondRepair { damaged: lost.len(), left: parity.len() };
        if lost.len() > parity.len() {
            return Err(beyond);
        }
        if !lost.is_empty() {
            let failed = |_| beyond;
            let mut decoder =
                ReedSolomonDecoder::new(self.data, self.parity, self.piece).map_err(failed)?;
            for (at, piece) in pieces.iter().enumerate().filter(|(at, _)| !lost.contains(at)) {
                decoder.add_original_shard(at, piece).map_err(failed)?;
            }
            for (at, piece) in parity {
                decoder.add_recovery_shard(at, piece).map_err(failed)?;
            }
            let decoded = decoder.decode().map_err(failed)?;
            for (at, right) in decoded.restored_original_iter() {
                if let Some(piece) = pieces.get_mut(at) {
                    piece.copy_from_slice(right);
                }
            }
        }
        let mut object = pieces.concat();
        object.truncate(usize::try_from(self.length).map_err(|_| beyond)?);
        if *blake3::hash(&object).as_bytes() == self.digest { Ok(object) } else { Err(beyond) }
    }
}

/// Length of a piece, pieces of the object and of parity, if they can be those of a parity file.
fn counts(fixed: &[u8]) -> Option<(usize, usize, usize)> {
    let number = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(fixed.get(at..at + 4)?.try_into().ok()?))
    };
    if fixed.get(..8)? != MAGIC || number(8)? != VERSION {
        return None;
    }
    let (piece, data, parity) = (number(12)? as usize, number(24)? as usize, number(28)? as usize);
    let fits = piece > 0
        && piece % SMALLEST_PIECE == 0
        && data <= MOST_PIECES
        && parity <= data
        && (parity > 0) == (data > 0);
    fits.then_some((piece, data, parity))
}

/// Whether this is what a crash leaves of a parity file that was not yet on the disk: nothing, a
/// beginning, or one with zeros behind it. `front` is its beginning and `back` its end.
pub(crate) fn is_torn(front: &[u8], back: &[u8], length: u64) -> bool {
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let back = back.get(back.len().saturating_sub(FIXED)..).unwrap_or(back);
    if is_zero(back) {
        // What is there before the zeros began as a parity file does, if there is anything.
        return front.iter().zip(MAGIC).all(|(byte, right)| byte == right || *byte == 0);
    }
    if length < FIXED as u64 {
        return front.iter().zip(MAGIC).all(|(byte, right)| byte == right);
    }
    counts(front).is_some_and(|(piece, data, parity)| {
        let whole = 2 * (FIXED + SUM * (data + parity)) as u64 + parity as u64 * piece as u64;
        length < whole
    })
}

/// The length of a piece of an object of `length`. Bytes.
fn piece_of(length: usize) -> usize {
    let at_least = length.div_ceil(MOST_PIECES).max(SMALLEST_PIECE);
    at_least.checked_next_multiple_of(SMALLEST_PIECE).unwrap_or(usize::MAX)
}

fn seal(fixed: &[u8], sums: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(fixed).update(sums);
    *hasher.finalize().as_bytes()
}

/// Of a piece that is filled up with zeros to `length`.
fn sum(piece: &[u8], length: usize) -> Sum {
    let hash = if piece.len() == length {
        blake3::hash(piece)
    } else {
        let mut whole = piece.to_vec();
        whole.resize(length, 0);
        blake3::hash(&whole)
    };
    let mut sum = [0; SUM];
    sum.copy_from_slice(&hash.as_bytes()[..SUM]);
    sum
}

/// The parity file of `body`, which repairs `share` percent of it, in whatever place.
///
/// One piece more than the share says, because a range of bad bytes seldom begins where a piece
/// does. `None`: no parity can be made (of an object that is larger than memory could hold).
pub(crate) fn protect(body: &[u8], share: u8) -> Option<Vec<u8>> {
    let piece = piece_of(body.len());
    u32::try_from(piece).ok()?;
    let data = body.len().div_ceil(piece);
    let parity = ((data * usize::from(share)).div_ceil(100) + 1).min(data);
    let mut head = Head {
        piece,
        length: body.len() as u64,
        data,
        parity,
        digest: *blake3::hash(body).as_bytes(),
        sums: body.chunks(piece).map(|part| sum(part, piece)).collect(),
    };
    let mut made = Vec::with_capacity(parity * piece);
    if data > 0 {
        let mut encoder = ReedSolomonEncoder::new(data, parity, piece).ok()?;
        for part in body.chunks(piece) {
            if part.len() == piece {
                encoder.add_original_shard(part).ok()?;
            } else {
                let mut last = part.to_vec();
                last.resize(piece, 0);
                encoder.add_original_shard(last).ok()?;
            }
        }
        for part in encoder.encode().ok()?.recovery_iter() {
            made.extend_from_slice(part);
        }
        head.sums.extend(made.chunks(piece).map(|part| sum(part, piece)));
    }
    let (fixed, sums) = head.write();
    Some([fixed.as_slice(), &sums, &made, &sums, &fixed].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(length: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn an_empty_object_has_a_head_and_nothing_else() {
        let file = protect(b"", 10).unwrap();
        let head = Head::find(&file).unwrap();
        assert!(head.is_whole(&file) && head.agrees(b"") && !head.agrees(b"x"));
        assert_eq!(head.rebuild(b"junk", &file).unwrap(), b"");
    }

    #[test]
    fn what_a_crash_leaves_is_torn_and_damage_is_not() {
        let file = protect(&body(300_000, 2), 10).unwrap();
        let torn = |file: &[u8]| is_torn(file, file, file.len() as u64);
        assert!(!torn(&file) && torn(b""));
        for length in [1, 7, 8, 50, 96, 97, 4096, 20_000, file.len() - 1] {
            assert!(torn(&file[..length]), "{length} bytes of it");
            let mut zeros = file.clone();
            zeros[length.min(file.len() - FIXED)..].fill(0);
            assert!(torn(&zeros), "zeros from {length}");
        }
        assert!(!torn(&[7; 96]) && !torn(&[7; 9]));
        let mut damaged = file.clone();
        damaged[..FIXED].fill(0);
        assert!(!torn(&damaged));
        damaged = file.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(!torn(&damaged));
    }

    #[test]
    fn what_is_lost_beyond_the_share_is_said_and_never_made_up() {
        let object = body(1 << 20, 1);
        let file = protect(&object, 10).unwrap();
        let head = Head::find(&file).unwrap();
        let mut damaged = object.clone();
        damaged[..200_000].fill(0);
        let beyond = head.rebuild(&damaged, &file).unwrap_err();
        assert_eq!(beyond, BeyondRepair { damaged: 49, left: 27 });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn damage_up_to_the_share_is_repaired_wherever_it_lies(
            length in prop_oneof![1..20_000_usize, 20_000..3_000_000_usize],
            share in 1..=100_u8,
            place in 0.0..1.0_f64,
            how in 0..4_u8,
            front in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let object = body(length, seed);
            let mut file = protect(&object, share).unwrap();
            let head = Head::find(&file).unwrap();
            prop_assert!(head.is_whole(&file) && head.agrees(&object));
            let bad = (length * usize::from(share) / 100).max(1);
            let start = ((length - bad) as f64 * place) as usize;
            let mut damaged = object.clone();
            match how {
                0 => damaged[start..start + bad].fill(0),
                1 => damaged[start..start + bad].iter_mut().for_each(|byte| *byte = !*byte),
                2 => damaged.truncate(length - bad),
                _ => damaged[start] ^= 1,
            }
            // And one of the two heads is gone.
            let at = if front { 0 } else { file.len() - FIXED };
            file[at..at + FIXED].fill(0);
            prop_assert!(!head.is_whole(&file));
            prop_assert_eq!(&Head::find(&file).unwrap(), &head);
            prop_assert_eq!(head.rebuild(&damaged, &file).unwrap(), object);
        }

        #[test]
        fn what_is_no_parity_file_is_refused(
            mut file in prop::collection::vec(any::<u8>(), 0..4096),
            fields in prop::collection::vec(any::<u32>(), 6),
        ) {
            let _ = (Head::find(&file), is_torn(&file, &file, file.len() as u64));
            let mut forged = MAGIC.to_vec();
            forged.extend_from_slice(&VERSION.to_le_bytes());
            fields.iter().for_each(|field| forged.extend_from_slice(&field.to_le_bytes()));
            forged.append(&mut file);
            prop_assert_eq!(Head::find(&forged), None);
            let _ = is_torn(&forged, &forged, forged.len() as u64);
        }

        #[test]
        fn damage_of_object_and_parity_together_gives_the_object_or_an_error(
            holes in prop::collection::vec((any::<prop::sample::Index>(), 1..30_000_usize), 1..8),
            seed in any::<u64>(),
        ) {
            let object = body(400_000, seed);
            let mut file = protect(&object, 10).unwrap();
            let mut damaged = object.clone();
            for (number, (at, length)) in holes.iter().enumerate() {
                let into = if number % 2 == 0 { &mut damaged } else { &mut file };
                let start = at.index(into.len());
                let end = (start + length).min(into.len());
                into[start..end].fill(0x5a);
            }
            if let Some(Ok(rebuilt)) = Head::find(&file).map(|head| head.rebuild(&damaged, &file)) {
                prop_assert_eq!(rebuilt, object);
            }
        }
    }
}
