//! The index: where each chunk lies.
//!
//! A segment is one sealed record (crypto.rs, class 5) behind the header:
//!
//! ```text
//! packs (4) ‖ entries (4)
//! each pack: writer (8) ‖ session (16) ‖ id (16) ‖ size (8) ‖ SHA-256 of the object (32) ‖
//!            class (1) ‖ zero (7)                                                  = 88 bytes
//! each entry, sorted: first 16 bytes of the id ‖ pack's number in this segment (4) ‖
//!            offset (4) ‖ sealed length with tag (4)                               = 28 bytes
//! ```
//!
//! Sessions write segments of level 0. Maintenance merges them: a *head* (`index/heads/<run>`) names
//! the merged segments that stand for everything before it, and the segments of level 0 that they
//! took in. What counts is the newest head and the segments of level 0 that it does not name.
//!
//! In memory the entries of all segments are one sorted array of 28 bytes an entry, 28 MB for each
//! TiB of chunks of 1 MiB. A segment on the local disk is kept as it was stored, so it is
//! authenticated whenever it is read; a damaged one is fetched again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::crypto::{Class, HEADER, Keys, TAG};
use crate::layout::{HEADS, INDEX, PACKS, Work, run_of};
use crate::{ObjectId, RepoError, RepoErrorKind, Result, Store};
use backstay_store::ObjectMeta;
use serde::{Deserialize, Serialize};

/// How often the list of segments is read again because maintenance replaced them.
pub(crate) const RELOADS: usize = 16;
/// Entries that a segment holds at most.
pub(crate) const SEGMENT_ENTRIES: usize = 1 << 20;
const PACK: usize = 88;
const ENTRY: usize = 28;

/// What the index says of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackInfo {
    pub work: Work,
    pub id: [u8; 16],
    pub size: u64,
    pub sha256: [u8; 32],
    pub class: Class,
}

impl PackInfo {
    pub fn key(&self) -> String {
        self.work.pack_key(&self.id)
    }
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Location {
    /// Number of the pack in [`Index::pack`].
    pub pack: u32,
    pub offset: u32,
    /// With the tag.
    pub length: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    id: [u8; 16],
    location: Location,
}

/// All segments of a repository as one.
#[derive(Default)]
pub(crate) struct Index {
    packs: Vec<PackInfo>,
    /// Sorted by id.
    entries: Vec<Entry>,
    /// Where else chunks lie that are in `entries`, sorted by id.
    copies: Vec<Entry>,
    /// Why segments are left out.
    unreadable: Vec<String>,
    /// Packs that are not in the store as they were written, or that maintenance condemned. For a
    /// writer what they hold is absent.
    lost: HashMap<u32, Lost>,
    pub current: Current,
}

/// Why nobody should count on a pack. In the order in which they are read all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lost {
    Avoided,
    Missing,
}

/// Which objects of the store are its index.
#[derive(Debug, Clone, Default)]
pub(crate) struct Current {
    /// The newest number below `index/heads/`, whatever lies there: where it stays the same, nothing
    /// that counts was removed.
    pub head: Option<u64>,
    /// The run whose head decides. Another one than `head` where somebody made up a name.
    pub in_force: Option<u64>,
    /// Segments that count.
    pub segments: Vec<ObjectMeta>,
    /// What they have replaced.
    pub obsolete: Vec<String>,
    /// That the newest head does not open, and so all segments count.
    pub problem: Option<String>,
}

/// Whether an object that does not count was replaced by the head of the run `number`: not merged
/// segments whose own head is still to come, and nothing that is not ours.
fn is_replaced(key: &str, number: u64) -> bool {
    if let Some(run) = run_of(key) {
        return run < number;
    }
    let merged = key.strip_prefix(INDEX).and_then(|rest| rest.strip_prefix("1/"));
    let run = merged.and_then(|rest| rest.split('/').next()?.parse::<u64>().ok());
    run.is_some_and(|run| run <= number) || Work::from_index_key(key).is_some()
}

/// The run of the newest head.
pub(crate) fn newest_head(store: &Store) -> Result<Option<u64>> {
    Ok(store.list(HEADS)?.iter().filter_map(|object| number_of_head(&object.key)).max())
}

/// The run of which this is the head, and no other name for it.
pub(crate) fn number_of_head(key: &str) -> Option<u64> {
    run_of(key).filter(|number| crate::layout::head_key(*number) == key)
}

fn replaced() -> RepoError {
    RepoError::new(RepoErrorKind::Busy, "the index was replaced each time it was read")
        .with_hint("run it again; if it goes on, too many runs of maintenance are at work")
}

pub(crate) fn read_head(store: &Store, keys: &Keys, number: u64) -> Result<Head> {
    let key = crate::layout::head_key(number);
    let object = store.read(&key)?;
    crate::maintenance::open(keys, Class::Maintenance, &key, &object)
}

fn without_heads(listed: Vec<ObjectMeta>) -> Vec<ObjectMeta> {
    listed.into_iter().filter(|object| !object.key.starts_with(HEADS)).collect()
}

/// What a head says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Merged segments.
    pub segments: Vec<String>,
    /// Segments of level 0 that they took in.
    pub absorbed: Vec<String>,
}

impl Current {
    /// A list is not of one moment: while it is read, a new head may come and what it replaced may
    /// go. So the newest head is looked up before and after; where it is the same, nothing that
    /// counts was removed in between.
    pub fn read(store: &Store, keys: &Keys) -> Result<Self> {
        let mut before = newest_head(store)?;
        for _ in 0..RELOADS {
            let listed = store.list(INDEX)?;
            let after = newest_head(store)?;
            if before == after {
                return Self::of(store, keys, after, listed);
            }
            before = after;
        }
        Err(replaced())
    }

    fn of(
        store: &Store,
        keys: &Keys,
        newest: Option<u64>,
        listed: Vec<ObjectMeta>,
    ) -> Result<Self> {
        let heads: BTreeSet<u64> = listed.iter().filter_map(|o| number_of_head(&o.key)).collect();
        let mut found = None;
        for number in heads.into_iter().rev() {
            match read_head(store, keys, number) {
                Ok(head) => found = Some((number, head)),
                // A run signs other objects before its head, and they stay for ever. Where none is,
                // somebody made up the name, which takes no more than the right to create.
                Err(error)
                    if error.kind() == RepoErrorKind::Damaged
                        && !crate::maintenance::began(store, keys, number)? =>
                {
                    tracing::warn!(%error, "it is no head of the index, and is passed over");
                    continue;
                }
                Err(error) if error.is_about_an_object() => {
                    tracing::warn!(%error, "which segments are the index cannot be read: all are taken");
                    // Nothing is known to be replaced.
                    return Ok(Self {
                        head: newest,
                        in_force: Some(number),
                        segments: without_heads(listed),
                        obsolete: Vec::new(),
                        problem: Some(error.to_string()),
                    });
                }
                Err(error) => return Err(error),
            }
            break;
        }
        let Some((number, head)) = found else {
            return Ok(Self { head: newest, segments: without_heads(listed), ..Self::default() });
        };
        let merged: HashSet<&str> = head.segments.iter().map(String::as_str).collect();
        let absorbed: HashSet<&str> = head.absorbed.iter().map(String::as_str).collect();
        let mut current = Self { head: newest, in_force: Some(number), ..Self::default() };
        for object in listed {
            let counts = match Work::from_index_key(&object.key) {
                Some(_) => !absorbed.contains(object.key.as_str()),
                None => merged.contains(object.key.as_str()),
            };
            if counts {
                current.segments.push(object);
            } else if is_replaced(&object.key, number) {
                current.obsolete.push(object.key);
            }
        }
        // One that is named and not listed is damage, and found when it is read.
        let there: HashSet<&str> = current.segments.iter().map(|o| o.key.as_str()).collect();
        let missing: Vec<ObjectMeta> = merged
            .iter()
            .filter(|key| !there.contains(**key))
            .map(|key| ObjectMeta { key: (*key).to_owned(), size: 0, modified: None })
            .collect();
        current.segments.extend(missing);
        Ok(current)
    }
}

impl Index {
    /// While maintenance replaces segments, the ones that a list named may be gone: then the list is
    /// read again.
    fn load_all(store: &Store, keys: &Keys, cache: Option<&Path>) -> Result<Self> {
        let mut current = Current::read(store, keys)?;
        for _ in 0..RELOADS {
            let index = Self::load_segments(store, keys, cache, &current)?;
            if index.unreadable.is_empty() {
                return Ok(index);
            }
            let now = Current::read(store, keys)?;
            if now.head == current.head {
                return Ok(index);
            }
            current = now;
        }
        Err(replaced())
    }

    fn load_segments(
        store: &Store,
        keys: &Keys,
        cache: Option<&Path>,
        current: &Current,
    ) -> Result<Self> {
        let mut index = Self { current: current.clone(), ..Self::default() };
        index.unreadable.extend(current.problem.clone());
        let mut numbers = HashMap::new();
        for object in &current.segments {
            let added = read_segment(store, keys, cache, &object.key, object.size)
                .and_then(|plain| index.add(&object.key, &plain, &mut numbers));
            match added {
                Err(error) if error.is_about_an_object() => {
                    tracing::warn!(%error, "a segment of the index is left out");
                    index.unreadable.push(error.to_string());
                }
                other => other?,
            }
        }
        if let Some(folder) = cache {
            forget_segments(folder, current);
        }
        Ok(index)
    }

    /// Reads every segment that counts, from `cache` where it is there and right, and looks which
    /// packs are there. A chunk that lies in several is found in one that is there, and not in one of
    /// `avoided`, if that can be.
    ///
    /// A damaged segment is left out, so that what the others list can still be restored. For a
    /// writer the chunks of that segment are absent, and it stores them again.
    pub fn load(
        store: &Store,
        keys: &Keys,
        cache: Option<&Path>,
        avoided: &HashSet<[u8; 16]>,
    ) -> Result<Self> {
        let mut tries = 0..RELOADS;
        let (mut index, there) = loop {
            let index = Self::load_all(store, keys, cache)?;
            // After the segments: a pack is durable before a segment names it.
            let there: HashMap<String, u64> =
                store.list(PACKS)?.into_iter().map(|object| (object.key, object.size)).collect();
            // Packs go behind a new head only: with the same one, what this index names is there.
            if newest_head(store)? == index.current.head {
                break (index, there);
            }
            tries.next().ok_or_else(replaced)?;
        };
        for (number, pack) in (0..).zip(&index.packs) {
            let key = pack.key();
            if there.get(&key) != Some(&pack.size) {
                // The rest of what maintenance removes goes while this reads.
                if !avoided.contains(&pack.id) {
                    tracing::warn!(
                        pack = key,
                        "missing or cut short; what it holds is stored again"
                    );
                }
                index.lost.insert(number, Lost::Missing);
            } else if avoided.contains(&pack.id) {
                index.lost.insert(number, Lost::Avoided);
            }
        }
        index.settle();
        Ok(index)
    }

    /// Sorts, and puts the best location of each chunk first and any other aside.
    fn settle(&mut self) {
        let (lost, copies) = (&self.lost, &mut self.copies);
        self.entries.sort_unstable_by_key(|e| (e.id, lost.get(&e.location.pack), e.location));
        self.entries.dedup_by(|copy, first| {
            let same = copy.id == first.id;
            if same && copy.location != first.location {
                copies.push(*copy);
            }
            same
        });
        self.entries.shrink_to_fit();
        self.copies.dedup_by_key(|copy| (copy.id, copy.location));
    }

    /// Where else a chunk lies.
    pub fn copies_of(&self, id: &ObjectId) -> impl Iterator<Item = Location> + '_ {
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&id.0[..16]);
        let from = self.copies.partition_point(|copy| copy.id < prefix);
        let copies = self.copies.get(from..).unwrap_or_default().iter();
        copies.take_while(move |copy| copy.id == prefix).map(|copy| copy.location)
    }

    /// All locations besides those of [`locations`](Self::locations), and the place of the chunk
    /// among these.
    pub fn copies(&self) -> impl Iterator<Item = ([u8; 16], Location, usize)> + '_ {
        self.copies.iter().filter_map(|copy| {
            let at = self.entries.binary_search_by(|entry| entry.id.cmp(&copy.id)).ok()?;
            Some((copy.id, copy.location, at))
        })
    }

    /// The location at a place among all entries.
    pub fn location(&self, ordinal: usize) -> Option<Location> {
        self.entries.get(ordinal).map(|entry| entry.location)
    }

    /// Whether a chunk is in a pack that is there.
    pub fn holds(&self, id: &ObjectId) -> bool {
        self.find(id).is_some_and(|at| self.lost.is_empty() || !self.lost.contains_key(&at.pack))
    }

    fn add(
        &mut self,
        object: &str,
        plain: &[u8],
        numbers: &mut HashMap<[u8; 16], u32>,
    ) -> Result<()> {
        let segment = Segment::parse(object, plain)?;
        let known = segment.packs.len();
        let entries = segment.entries.chunks_exact(ENTRY);
        // All of it or nothing.
        if entries.clone().any(|entry| number(entry, 16) as usize >= known) {
            return Err(RepoError::damaged(object, "an entry names a pack that is not listed"));
        }
        let mut local = Vec::with_capacity(segment.packs.len());
        for pack in segment.packs {
            let number = *numbers.entry(pack.id).or_insert_with(|| {
                self.packs.push(pack);
                self.packs.len() as u32 - 1
            });
            local.push(number);
        }
        self.entries.reserve(segment.entries.len() / ENTRY);
        for entry in entries {
            let mut id = [0; 16];
            id.copy_from_slice(&entry[..16]);
            let Some(pack) = local.get(number(entry, 16) as usize) else { continue };
            let location =
                Location { pack: *pack, offset: number(entry, 20), length: number(entry, 24) };
            self.entries.push(Entry { id, location });
        }
        Ok(())
    }

    /// Why segments of the store are left out, a sentence each.
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    /// An index of one segment.
    pub fn of_segment(object: &str, plain: &[u8]) -> Result<Self> {
        let mut index = Self::default();
        index.add(object, plain, &mut HashMap::new())?;
        Ok(index)
    }

    pub fn find(&self, id: &ObjectId) -> Option<Location> {
        self.entries.get(self.ordinal(id)?).map(|entry| entry.location)
    }

    /// The place of a chunk among all entries.
    pub fn ordinal(&self, id: &ObjectId) -> Option<usize> {
        let prefix = &id.0[..16];
        self.entries.binary_search_by(|entry| entry.id[..].cmp(prefix)).ok()
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether a pack is not in the store as it was written.
    pub fn is_missing(&self, pack: u32) -> bool {
        self.lost.get(&pack) == Some(&Lost::Missing)
    }

    pub fn pack(&self, number: u32) -> Option<&PackInfo> {
        self.packs.get(number as usize)
    }

    pub fn packs(&self) -> &[PackInfo] {
        &self.packs
    }

    /// Every location of a pack that some id has, sorted by offset.
    pub fn locations(&self) -> impl Iterator<Item = ([u8; 16], Location)> + '_ {
        self.entries.iter().map(|entry| (entry.id, entry.location))
    }
}

fn number(entry: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
}

/// A segment about to be written.
#[derive(Default)]
pub(crate) struct SegmentBuilder {
    packs: Vec<PackInfo>,
    entries: Vec<([u8; 16], u32, u32, u32)>,
}

impl SegmentBuilder {
    pub fn add(&mut self, pack: PackInfo, records: impl Iterator<Item = (ObjectId, u32, u32)>) {
        let number = self.packs.len() as u32;
        self.packs.push(pack);
        self.entries.extend(
            records.map(|(id, offset, length)| (id.prefix().to_be_bytes(), number, offset, length)),
        );
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// A segment of some of an index's entries.
    pub fn of_entries<'e>(
        index: &Index,
        entries: impl Iterator<Item = ([u8; 16], Location)> + 'e,
    ) -> Self {
        let mut it = Self::default();
        let mut numbers = HashMap::new();
        for (id, at) in entries {
            let Some(pack) = index.pack(at.pack) else { continue };
            let number = *numbers.entry(at.pack).or_insert_with(|| {
                it.packs.push(pack.clone());
                it.packs.len() as u32 - 1
            });
            it.entries.push((id, number, at.offset, at.length));
        }
        it
    }

    /// The object under the name `object`.
    pub fn seal(mut self, keys: &Keys, id: [u8; 16], object: &str) -> Bytes {
        self.entries.sort_unstable();
        let size = 8 + self.packs.len() * PACK + self.entries.len() * ENTRY;
        let mut plain = Vec::with_capacity(size);
        plain.extend_from_slice(&(self.packs.len() as u32).to_le_bytes());
        plain.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for pack in &self.packs {
            plain.extend_from_slice(&pack.work.writer);
            plain.extend_from_slice(&pack.work.session);
            plain.extend_from_slice(&pack.id);
            plain.extend_from_slice(&pack.size.to_le_bytes());
            plain.extend_from_slice(&pack.sha256);
            plain.extend_from_slice(&[pack.class as u8, 0, 0, 0, 0, 0, 0, 0]);
        }
        for (id, pack, offset, length) in &self.entries {
            plain.extend_from_slice(id);
            plain.extend_from_slice(&pack.to_le_bytes());
            plain.extend_from_slice(&offset.to_le_bytes());
            plain.extend_from_slice(&length.to_le_bytes());
        }
        seal_object(keys, id, Class::Index, object, plain)
    }
}

struct Segment<'p> {
    packs: Vec<PackInfo>,
    entries: &'p [u8],
}

impl<'p> Segment<'p> {
    fn parse(object: &str, plain: &'p [u8]) -> Result<Self> {
        let damaged = |what: &str| RepoError::damaged(object, what);
        let number = |at: usize| {
            let bytes = plain.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
        };
        let (packs, entries) =
            number(0).zip(number(4)).ok_or_else(|| damaged("it is cut short"))?;
        let split = packs.checked_mul(PACK).and_then(|l| l.checked_add(8));
        let end = split.and_then(|s| entries.checked_mul(ENTRY)?.checked_add(s));
        let (Some(split), Some(end)) = (split, end) else {
            return Err(damaged("its counts make no sense"));
        };
        if end != plain.len() {
            return Err(damaged("its length contradicts its counts"));
        }
        let packs = plain
            .get(8..split)
            .unwrap_or_default()
            .chunks_exact(PACK)
            .map(|pack| {
                let mut writer = [0; 8];
                writer.copy_from_slice(&pack[..8]);
                let mut session = [0; 16];
                session.copy_from_slice(&pack[8..24]);
                let mut id = [0; 16];
                id.copy_from_slice(&pack[24..40]);
                let mut size = [0; 8];
                size.copy_from_slice(&pack[40..48]);
                let mut sha256 = [0; 32];
                sha256.copy_from_slice(&pack[48..80]);
                let class = match pack[80] {
                    1 => Class::DataPack,
                    2 => Class::MetadataPack,
                    _ => return Err(damaged("it lists a pack of an unknown class")),
                };
                Ok(PackInfo {
                    work: Work { writer, session },
                    id,
                    size: u64::from_le_bytes(size),
                    sha256,
                    class,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { packs, entries: plain.get(split..).unwrap_or_default() })
    }
}

/// An object of one record that whoever holds the index key may open.
pub(crate) fn seal_object(
    keys: &Keys,
    id: [u8; 16],
    class: Class,
    name: &str,
    plain: Vec<u8>,
) -> Bytes {
    let (key, header) = keys.index_object(id, class);
    seal_with(&key, &header, name, plain)
}

pub(crate) fn seal_with(
    key: &crate::crypto::PackKey,
    header: &[u8; HEADER],
    name: &str,
    plain: Vec<u8>,
) -> Bytes {
    let mut object = Vec::with_capacity(HEADER + plain.len() + TAG);
    object.extend_from_slice(header);
    object.extend_from_slice(&plain);
    let tag = key.seal(0, HEADER as u64, name.as_bytes(), &mut object[HEADER..]);
    object.extend_from_slice(&tag);
    Bytes::from(object)
}

/// What [`seal_object`] and [`seal_with`] sealed.
pub(crate) fn open_object(keys: &Keys, class: Class, name: &str, object: &[u8]) -> Result<Vec<u8>> {
    let key = keys.open(name, class, object)?;
    let mut record = object.get(HEADER..).unwrap_or_default().to_vec();
    let length = key
        .open(0, HEADER as u64, name.as_bytes(), &mut record)
        .ok_or_else(|| RepoError::damaged(name, "it was altered, cut short, or is another object"))?
        .len();
    record.truncate(length);
    Ok(record)
}

fn read_segment(
    store: &Store,
    keys: &Keys,
    cache: Option<&Path>,
    key: &str,
    size: u64,
) -> Result<Vec<u8>> {
    let cached = cache.map(|folder| cache_path(folder, key));
    if let Some(path) = &cached
        && let Ok(object) = std::fs::read(path)
        && object.len() as u64 == size
        && let Ok(plain) = open_object(keys, Class::Index, key, &object)
    {
        return Ok(plain);
    }
    let object = store.read(key)?;
    let plain = open_object(keys, Class::Index, key, &object)?;
    if let Some(path) = cached {
        keep(&path, &object);
    }
    Ok(plain)
}

/// Removes copies of segments that do not count any more.
fn forget_segments(folder: &Path, current: &Current) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let wanted: HashSet<PathBuf> =
        current.segments.iter().map(|object| cache_path(folder, &object.key)).collect();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Of a session that is being committed there may be one that no list had yet: it is
        // fetched when it is wanted.
        if name.starts_with("index-") && !wanted.contains(&path) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn cache_path(folder: &Path, key: &str) -> PathBuf {
    folder.join(key.replace('/', "-"))
}

/// Puts an object into the cache if that can be done; a cache that cannot be written is no error.
pub(crate) fn keep(path: &Path, object: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&temporary, object))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        tracing::debug!(path = %path.display(), %error, "the cache could not be written");
    }
}

pub(crate) fn keep_segment(cache: Option<&Path>, key: &str, object: &[u8]) {
    if let Some(folder) = cache {
        keep(&cache_path(folder, key), object);
    }
}
