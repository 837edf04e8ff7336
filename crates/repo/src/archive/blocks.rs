//! Content on its way into the archive: read, hashed and compressed block by block.
//!
//! Each thread reads the next block into a buffer that it keeps, hashes it as a subtree of the
//! whole file's BLAKE3 and compresses it while it is in cache. A segment is in memory only as it
//! will be stored.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};

use super::{BLOCK, blocks_of};
use crate::codec::Codec;
use crate::{Compression, Reader, RepoError, RepoErrorKind, Result};

/// A file, ready to be sealed in several repositories.
pub(super) struct Blocks {
    /// For each way to compress, each block as the codec writes it.
    records: Vec<(Compression, Vec<Vec<u8>>)>,
    /// For each key, the keyed BLAKE3 of the content.
    pub hashes: Vec<[u8; 32]>,
}

impl Blocks {
    /// Reads a file once; its hash under each of `keys`, its blocks compressed in each of these ways.
    pub fn read(
        name: &str,
        from: &dyn Reader,
        keys: &[[u8; 32]],
        compressions: &[Compression],
    ) -> Result<Self> {
        let mut ways: Vec<Compression> = Vec::new();
        for way in compressions {
            if !ways.contains(way) {
                ways.push(*way);
            }
        }
        let make = || ways.iter().map(|way| Codec::new(*way)).collect::<Vec<_>>();
        let (blocks, hashes) = each(name, from, keys, make, |codecs, block| {
            let encode = |codec: &mut Codec| {
                let mut record = Vec::new();
                codec.encode(block, &mut record);
                record
            };
            codecs.iter_mut().map(encode).collect::<Vec<_>>()
        })?;
        let mut records: Vec<(Compression, Vec<Vec<u8>>)> =
            ways.into_iter().map(|way| (way, Vec::with_capacity(blocks.len()))).collect();
        for block in blocks {
            for ((_, records), record) in records.iter_mut().zip(block) {
                records.push(record);
            }
        }
        Ok(Self { records, hashes })
    }

    /// Each block, as a codec of this way writes it.
    pub fn records(&self, compression: Compression) -> &[Vec<u8>] {
        let found = self.records.iter().find(|(way, _)| *way == compression);
        found.map_or(&[], |(_, records)| records)
    }
}

/// The BLAKE3 of the content under each of `keys`.
pub(super) fn hash(name: &str, from: &dyn Reader, keys: &[[u8; 32]]) -> Result<Vec<[u8; 32]>> {
    each(name, from, keys, || (), |(), _| ()).map(|(_, hashes)| hashes)
}

/// Reads all blocks on several threads: what `work` makes of each, and the hashes of all.
fn each<T: Send, S>(
    name: &str,
    from: &dyn Reader,
    keys: &[[u8; 32]],
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &[u8]) -> T + Sync,
) -> Result<(Vec<T>, Vec<[u8; 32]>)> {
    let size = from.size();
    let count = usize::try_from(blocks_of(size)).unwrap_or(usize::MAX);
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Vec<Hashed>, T)>> = Mutex::new(Vec::with_capacity(count));
    let run = || -> Result<()> {
        let mut state = state();
        let mut buffer = vec![0; BLOCK.min(size as usize)];
        loop {
            let number = next.fetch_add(1, Relaxed);
            if number >= count {
                return Ok(());
            }
            let start = (number * BLOCK) as u64;
            let block = &mut buffer[..BLOCK.min((size - start) as usize)];
            let read = from.read_at(start, block).and_then(|read| {
                if read == block.len() {
                    Ok(())
                } else {
                    Err(std::io::Error::other("it became shorter while it was read"))
                }
            });
            if let Err(error) = read {
                // Whoever fails ends the work of all.
                next.store(count, Relaxed);
                return Err(RepoError::io("read", name, error));
            }
            let hash = |key: &[u8; 32]| {
                let mut hasher = Hasher::new_keyed(key);
                if count == 1 {
                    Hashed::Whole(*hasher.update(block).finalize().as_bytes())
                } else {
                    let subtree = hasher.set_input_offset(start).update(block).finalize_non_root();
                    Hashed::Part(subtree)
                }
            };
            let hashed = keys.iter().map(hash).collect();
            let made = work(&mut state, block);
            done.lock().unwrap_or_else(|e| e.into_inner()).push((number, hashed, made));
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads(count)).map(|_| scope.spawn(run)).collect();
        let mut result = run();
        for other in others {
            result = result.and(other.join().map_err(|_| panicked())?);
        }
        result
    })?;
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_unstable_by_key(|(number, ..)| *number);
    let mut made = Vec::with_capacity(count);
    let mut parts: Vec<Vec<ChainingValue>> = keys.iter().map(|_| Vec::new()).collect();
    let empty = |key| *Hasher::new_keyed(key).finalize().as_bytes();
    let mut hashes: Vec<[u8; 32]> = keys.iter().map(empty).collect();
    for (_, hashed, one) in done {
        made.push(one);
        for ((hashed, whole), parts) in hashed.into_iter().zip(&mut hashes).zip(&mut parts) {
            match hashed {
                Hashed::Whole(hash) => *whole = hash,
                Hashed::Part(part) => parts.push(part),
            }
        }
    }
    for ((key, parts), whole) in keys.iter().zip(parts).zip(&mut hashes) {
        if let (left @ [_, ..], right) = parts.split_at(left_of(parts.len())) {
            let mode = Mode::KeyedHash(key);
            let (left, right) = (subtree(left, mode), subtree(right, mode));
            *whole = *merge_subtrees_root(&left, &right, mode).as_bytes();
        }
    }
    Ok((made, hashes))
}

enum Hashed {
    Whole([u8; 32]),
    Part(ChainingValue),
}

/// How many of `count` blocks, at least two, are below the left child of their root: the largest
/// power of two that leaves something to the right one.
fn left_of(count: usize) -> usize {
    if count < 2 { 0 } else { count.next_power_of_two() / 2 }
}

fn subtree(parts: &[ChainingValue], mode: Mode<'_>) -> ChainingValue {
    match parts {
        [] => ChainingValue::default(),
        [one] => *one,
        _ => {
            let (left, right) = parts.split_at(left_of(parts.len()));
            merge_subtrees_non_root(&subtree(left, mode), &subtree(right, mode), mode)
        }
    }
}

/// How many threads one file is worth.
pub(super) fn threads(blocks: usize) -> usize {
    if blocks < 2 { 1 } else { crate::session::workers(0).min(4).min(blocks) }
}

pub(super) fn panicked() -> RepoError {
    RepoError::new(RepoErrorKind::Io, "a thread that worked on the archive panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_the_blocks_is_that_of_the_content() {
        let key = [3; 32];
        for (blocks, rest) in [
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
            (2, 0),
            (2, 7),
            (3, 1),
            (5, 0),
            (8, 0),
            (8, 1),
            (13, 99),
        ] {
            let content: Vec<u8> =
                (0..blocks * BLOCK + rest).map(|i| ((i / 1000) ^ i) as u8).collect();
            let expected = *Hasher::new_keyed(&key).update(&content).finalize().as_bytes();
            let from: &dyn Reader = &content.as_slice();
            let other = *Hasher::new_keyed(&[4; 32]).update(&content).finalize().as_bytes();
            let both = [expected, other];
            let keys = [key, [4; 32]];
            assert_eq!(hash("x", from, &keys).unwrap(), both, "{blocks} blocks and {rest}");
            let ways = [Compression::default(), Compression::None, Compression::default()];
            let read = Blocks::read("x", from, &keys, &ways).unwrap();
            assert_eq!(read.hashes, both);
            for way in ways {
                assert_eq!(read.records(way).len() as u64, blocks_of(content.len() as u64));
            }
        }
    }

    /// Says that it is longer than it is.
    struct Short(Vec<u8>);

    impl Reader for Short {
        fn size(&self) -> u64 {
            self.0.len() as u64 + 1
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.as_slice().read_at(offset, buffer)
        }
    }

    #[test]
    fn content_that_is_cut_short_meanwhile_is_an_error() {
        for size in [0, 5, BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 4] {
            let error = hash("x", &Short(vec![1; size]), &[[0; 32]]).unwrap_err();
            assert_eq!(error.kind(), RepoErrorKind::Io);
            assert!(error.to_string().contains("shorter"), "{error}");
        }
    }
}
