//! Indexes of chunks that nobody stored, as large as one likes, to measure (`examples/index.rs`).

use std::collections::HashSet;
use std::path::Path;

use super::merge::{SIZES, Writer};
use super::segment::RawEntry;
use super::*;
use crate::authority::Authority;
use crate::crypto::{Class, Keys, RootKey};
use crate::layout::{Work, head_key};
use crate::{Environment, RepoError, Store};

const PER_PACK: u64 = 32;
const PER_SESSION: u64 = 1000;

/// A repository that has an index and nothing else.
pub struct Synthetic {
    store: Store,
    keys: Keys,
    env: Environment,
}

/// An index that was opened.
pub struct Opened {
    index: Index,
}

fn drawn(purpose: u8, number: u64) -> [u8; 32] {
    let mut bytes = [purpose; 9];
    bytes[1..].copy_from_slice(&number.to_le_bytes());
    *blake3::hash(&bytes).as_bytes()
}

fn half(bytes: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&bytes[..16]);
    half
}

fn pack(number: u64) -> PackInfo {
    let work = Work { writer: [1; 8], session: half(&drawn(1, number / PER_SESSION)) };
    let sha256 = drawn(2, number);
    PackInfo { work, id: half(&sha256), size: 32 << 20, sha256, class: Class::DataPack, epoch: 0 }
}

impl Synthetic {
    pub fn new(store: Store) -> Self {
        let keys = Keys::derive(&RootKey::from_bytes([1; 32]));
        Self { store, keys, env: Environment::system() }
    }

    /// How many packs so many chunks are in, and the key and size of one of them.
    pub fn packs(chunks: u64) -> impl Iterator<Item = (String, u64)> {
        (0..chunks.div_ceil(PER_PACK)).map(pack).map(|pack| (pack.key(), pack.size))
    }

    /// The id of a chunk. Those of `stretch` out of `stretches` lie between the same bounds.
    fn id(chunk: u64, stretch: u64, stretches: u64) -> ObjectId {
        let mut id = drawn(3, chunk);
        let [a, b, c, d, e, f, g, h, ..] = id;
        let lot = u128::from(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
        let high = ((u128::from(stretch) << 64) + lot) / u128::from(stretches);
        id[..8].copy_from_slice(&(high as u64).to_be_bytes());
        ObjectId(id)
    }

    fn stretches(chunks: u64) -> u64 {
        chunks.div_ceil(SIZES.entries as u64)
    }

    /// The id of the chunk `chunk` of `chunks`, and with `chunk` at or above that of one that is not
    /// there.
    pub fn chunk(chunk: u64, chunks: u64) -> ObjectId {
        let stretches = Self::stretches(chunks);
        Self::id(chunk, chunk % stretches, stretches)
    }

    /// Writes one run with so many chunks.
    pub fn fill(&self, chunks: u64) -> Result<()> {
        let store = self.store.clone();
        let mut create = |key: &str, object| store.create(key, object).map_err(RepoError::from);
        let mut writer = Writer::new(&self.keys, &self.env, 1, &mut create);
        let packs: Vec<PackInfo> = (0..chunks.div_ceil(PER_PACK)).map(pack).collect();
        for (at, table) in packs.chunks(SIZES.packs).enumerate() {
            writer.write(at * SIZES.packs, table, &[])?;
        }
        let stretches = Self::stretches(chunks);
        for stretch in 0..stretches {
            let of_it = (stretch..chunks).step_by(stretches as usize);
            let mut entries: Vec<_> = of_it
                .map(|chunk| RawEntry {
                    id: prefix(&Self::id(chunk, stretch, stretches)),
                    pack: (chunk / PER_PACK) as u32,
                    offset: (chunk % PER_PACK) as u32 * (1 << 20),
                    length: 1 << 20,
                })
                .collect();
            entries.sort_unstable();
            writer.write(0, &[], &entries)?;
        }
        let head = Head { segments: writer.segments, ..Head::default() };
        self.head(1, &head)
    }

    fn head(&self, number: u64, head: &Head) -> Result<()> {
        let (key, class) = (head_key(number), Class::Maintenance);
        let object = crate::maintenance::sign(&self.keys, &self.env, class, &key, head);
        Ok(self.store.create(&key, object)?)
    }

    /// Opens the index, as somebody who reads, or as somebody who writes and looks for packs.
    pub fn open(&self, cache: Option<&Path>, to_write: bool) -> Result<Opened> {
        let index = if to_write {
            Index::load(&self.store, &self.keys, &Authority::default(), cache, &HashSet::new())?
        } else {
            Index::open(&self.store, &self.keys, &Authority::default(), cache)?
        };
        if let Some(why) = index.unreadable().first() {
            return Err(RepoError::damaged("the index", why));
        }
        Ok(Opened { index })
    }

    /// A session stores new chunks, from the number `first` on.
    pub fn store(&self, first: u64, count: u64) -> Result<()> {
        let mut segment = SegmentBuilder::default();
        let work = Work { writer: [1; 8], session: self.env.random() };
        for number in 0..count.div_ceil(PER_PACK) {
            let pack = PackInfo { work, ..pack((first + number * PER_PACK) / PER_PACK) };
            let end = count.min((number + 1) * PER_PACK);
            let chunks = number * PER_PACK..end;
            segment.add(pack, chunks.map(|n| (ObjectId(drawn(4, first + n)), n as u32, 1 << 20)));
        }
        let key = work.index_key(0);
        Ok(self.store.create(&key, segment.seal(&self.keys, self.env.random(), &key))?)
    }

    /// Merges; how many bytes were written, and how many runs there are now.
    pub fn merge(&self, opened: &Opened, cache: Option<&Path>) -> Result<(u64, usize)> {
        let index = &opened.index;
        let number = index.current.head.unwrap_or(0) + 1;
        let mut bytes = 0;
        let mut create = |key: &str, object: bytes::Bytes| {
            bytes += object.len() as u64;
            self.store.create(key, object.clone())?;
            keep_segment(cache, key, &object);
            Ok(())
        };
        let (keys, env) = (&self.keys, &self.env);
        let merged = index.merge(&HashSet::new(), keys, env, number, &mut create)?;
        let all = index.current.segments.iter().map(|object| object.key.clone());
        let absorbed = all.filter(|key| Work::from_index_key(key).is_some()).collect();
        let head = Head { segments: merged.segments, absorbed, gone: merged.gone };
        self.head(number, &head)?;
        Ok((bytes, head.runs()))
    }
}

impl Opened {
    pub fn chunks(&self) -> usize {
        self.index.len()
    }

    /// Whether somebody who writes need not store it.
    pub fn holds(&self, id: &ObjectId) -> bool {
        self.index.holds(id)
    }

    /// Whether somebody who reads finds it.
    pub fn finds(&self, id: &ObjectId) -> Result<bool> {
        Ok(self.index.find(id)?.is_some())
    }
}
