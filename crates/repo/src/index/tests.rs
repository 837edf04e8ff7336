//! The index beside the simplest one there is: a list of all that was ever said.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use backstay_store::Environment;
use bytes::Bytes;
use proptest::prelude::*;

use super::merge::Sizes;
use super::*;
use crate::authority::Authority;
use crate::crypto::{Class, Keys, RootKey};
use crate::layout::{Work, head_key, part_key};
use crate::{RepoErrorKind, Store};

/// Small ones, so that a few entries make several parts and runs.
const SIZES: Sizes = Sizes { small: 20, entries: 40, packs: 6 };
const IDS: u8 = 200;

/// What is said of a chunk: pack, offset, length.
type Said = BTreeSet<([u8; 16], u32, u32)>;

fn keys(root: u8) -> Keys {
    Keys::derive(&RootKey::from_bytes([root; 32]))
}

fn id(number: u8) -> ObjectId {
    ObjectId(*blake3::hash(&[number]).as_bytes())
}

fn there(number: u8) -> [u8; 16] {
    prefix(&id(number))
}

struct World {
    store: Store,
    keys: Keys,
    env: Environment,
    cache: tempfile::TempDir,
    /// By the beginning of the id.
    model: BTreeMap<[u8; 16], Said>,
    /// Whether they are in the store.
    packs: HashMap<[u8; 16], bool>,
    /// Segments, with the packs that each lists, until a merge takes them in.
    level0: Vec<(String, Vec<[u8; 16]>)>,
    /// Packs that runs list.
    merged: HashSet<[u8; 16]>,
    number: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            store: Store::memory(),
            keys: keys(1),
            env: Environment::seeded(seed),
            cache: tempfile::tempdir().unwrap(),
            model: BTreeMap::new(),
            packs: HashMap::new(),
            level0: Vec::new(),
            merged: HashSet::new(),
            number: 0,
        }
    }

    fn lot(&self, below: usize) -> usize {
        u32::from_le_bytes(self.env.random()) as usize % below.max(1)
    }

    /// A session stores some chunks, of which others may have been stored before.
    fn segment(&mut self, chunks: usize) {
        let work = Work { writer: [1; 8], session: self.env.random() };
        let mut segment = SegmentBuilder::default();
        let mut listed = Vec::new();
        for _ in 0..self.lot(3) + 1 {
            let pack = PackInfo {
                work,
                id: self.env.random(),
                size: 10,
                sha256: [3; 32],
                class: Class::DataPack,
                epoch: 0,
            };
            // Some are lost, and some are cut short.
            let size = [10, 10, 10, 10, 9, 0][self.lot(6)];
            if size > 0 {
                self.store.create(&pack.key(), Bytes::from(vec![0; size])).unwrap();
            }
            self.packs.insert(pack.id, size == 10);
            listed.push(pack.id);
            let records: Vec<_> = (0..chunks as u32)
                .map(|n| (self.lot(IDS as usize) as u8, n * 100, 50 + n))
                .collect();
            for (chunk, offset, length) in &records {
                let said = self.model.entry(there(*chunk)).or_default();
                said.insert((pack.id, *offset, *length));
            }
            segment
                .add(pack, records.into_iter().map(|(c, offset, length)| (id(c), offset, length)));
        }
        let key = work.index_key(0);
        let object = segment.seal(&self.keys, self.env.random(), &key);
        self.store.create(&key, object.clone()).unwrap();
        if self.lot(2) == 0 {
            keep_segment(Some(self.cache.path()), &key, &object);
        }
        self.level0.push((key, listed));
    }

    fn open(&self) -> Index {
        Index::open(&self.store, &self.keys, &Authority::default(), Some(self.cache.path()))
            .unwrap()
    }

    /// Maintenance removes some packs and merges; sessions at work keep their segments.
    fn merge(&mut self, remove: bool) {
        self.number += 1;
        let index = self.open();
        assert_eq!(index.unreadable(), &[] as &[String]);
        let mut ended = std::mem::take(&mut self.level0);
        let waiting = ended.split_off(ended.len() - self.lot(2).min(ended.len()));
        let kept: HashSet<_> = waiting.iter().flat_map(|(_, packs)| packs).copied().collect();
        self.merged.extend(index.packs().map(|(_, pack)| pack.id));
        let mut removed = HashSet::new();
        if remove {
            let mut all: Vec<_> = self.merged.difference(&kept).copied().collect();
            all.sort_unstable();
            for _ in 0..self.lot(4) {
                if !all.is_empty() {
                    removed.insert(all.swap_remove(self.lot(all.len())));
                }
            }
        }
        let (store, cache) = (self.store.clone(), self.cache.path().to_owned());
        let mut written = 0;
        let merged = index
            .merge_with(SIZES, &removed, &self.keys, &self.env, self.number, &mut |key, object| {
                written += object.len();
                store.create(key, object.clone())?;
                keep_segment(Some(&cache), key, &object);
                Ok(())
            })
            .unwrap();
        let absorbed = ended.into_iter().map(|(key, _)| key);
        let absorbed = absorbed.chain(index.current.obsolete.iter().cloned());
        let head =
            Head { segments: merged.segments, absorbed: absorbed.collect(), gone: merged.gone };
        let key = head_key(self.number);
        let class = Class::Maintenance;
        let object = crate::maintenance::sign(&self.keys, &self.env, class, &key, &head);
        self.store.create(&key, object).unwrap();
        self.level0 = waiting;
        for pack in &removed {
            self.merged.remove(pack);
            self.packs.remove(pack);
        }
        for said in self.model.values_mut() {
            said.retain(|(pack, ..)| !removed.contains(pack));
        }
        if self.lot(3) > 0 {
            for key in Current::read(&self.store, &self.keys).unwrap().obsolete {
                self.store.delete(&key).unwrap();
            }
        }
    }

    fn cached(&self) -> Vec<PathBuf> {
        let folder = std::fs::read_dir(self.cache.path()).unwrap();
        let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Something happens to the folder of copies.
    fn damage(&mut self) {
        let files = self.cached();
        if files.is_empty() {
            return;
        }
        let file = &files[self.lot(files.len())];
        let mut bytes = std::fs::read(file).unwrap();
        match self.lot(5) {
            0 => std::fs::remove_file(file).unwrap(),
            1 => {
                bytes.truncate(self.lot(bytes.len()));
                std::fs::write(file, bytes).unwrap();
            }
            2 => {
                // Each other's names.
                let other = &files[self.lot(files.len())];
                std::fs::copy(other, file).unwrap();
            }
            3 => {
                let half = bytes.len() / 2;
                bytes[half..].fill(0);
                std::fs::write(file, bytes).unwrap();
            }
            _ => {
                let at = self.lot(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.lot(8);
                }
                std::fs::write(file, bytes).unwrap();
            }
        }
    }

    /// The index says what the model says.
    fn compare(&self, cache: Option<&Path>) {
        let all: Vec<[u8; 16]> = {
            let mut all: Vec<_> = self.packs.keys().copied().collect();
            all.sort_unstable();
            all
        };
        let avoided: HashSet<_> = all.iter().copied().filter(|_| self.lot(5) == 0).collect();
        let index =
            Index::load(&self.store, &self.keys, &Authority::default(), cache, &avoided).unwrap();
        assert_eq!(index.unreadable(), &[] as &[String]);
        self.agrees(&index, &avoided);
    }

    fn agrees(&self, index: &Index, avoided: &HashSet<[u8; 16]>) {
        let rank = |pack: &[u8; 16]| match (self.packs.get(pack), avoided.contains(pack)) {
            (Some(true), false) => 0,
            (Some(true), true) => 1,
            _ => 2,
        };
        let say = |at: Location| (index.pack(at.pack).unwrap().id, at.offset, at.length);
        let mut listed: BTreeMap<usize, ([u8; 16], Location)> = BTreeMap::new();
        for entry in index.locations() {
            let (ordinal, id, at) = entry.unwrap();
            assert!(ordinal < index.len());
            assert!(listed.insert(ordinal, (id, at)).is_none());
        }
        let mut everything: BTreeMap<[u8; 16], Said> = BTreeMap::new();
        for (id, at) in listed.values() {
            everything.entry(*id).or_default().insert(say(*at));
        }
        let mut model = self.model.clone();
        model.retain(|_, said| !said.is_empty());
        assert_eq!(everything, model);

        let mut copied = BTreeMap::new();
        index
            .copies(|ordinal, _, at, others| {
                assert_eq!(listed[&ordinal].1, at);
                let others: BTreeSet<_> = others.iter().map(|other| say(*other)).collect();
                copied.insert(listed[&ordinal].0, (ordinal, others));
            })
            .unwrap();
        for chunk in 0..IDS {
            let said = model.get(&there(chunk)).cloned().unwrap_or_default();
            let ranks: Vec<u8> = said.iter().map(|(pack, ..)| rank(pack)).collect();
            assert_eq!(index.holds(&id(chunk)), ranks.contains(&0));
            let Some((ordinal, at)) = index.place(&id(chunk)).unwrap() else {
                assert!(said.is_empty());
                continue;
            };
            assert_eq!(listed[&ordinal], (there(chunk), at));
            assert_eq!(index.find(&id(chunk)).unwrap(), Some(at));
            let best = say(at);
            assert!(said.contains(&best));
            assert_eq!(Some(&rank(&best.0)), ranks.iter().min());
            assert_eq!(index.is_missing(at.pack), rank(&best.0) == 2);
            let places = index.places(&id(chunk)).unwrap();
            assert_eq!(places.first(), Some(&at));
            // A pack may be in two runs, and then what it holds too.
            let places: BTreeSet<_> = places.into_iter().map(say).collect();
            assert_eq!(places, said);
            let mut rest = said;
            rest.remove(&best);
            if let Some((same, mut others)) = copied.remove(&there(chunk)) {
                others.remove(&best);
                assert_eq!((same, others), (ordinal, rest));
            } else {
                assert!(rest.is_empty());
            }
        }
        assert!(copied.is_empty());
    }

    /// Who reads without a list of packs finds out which are missing, and reads elsewhere.
    fn is_read_elsewhere(&self) {
        let index = self.open();
        for chunk in 0..IDS {
            let left = index.places(&id(chunk)).unwrap();
            let packs: HashSet<u32> = left.iter().map(|at| at.pack).collect();
            let mut tried = HashSet::new();
            while let Some(at) = index.find(&id(chunk)).unwrap()
                && !index.is_missing(at.pack)
            {
                assert!(tried.insert(at.pack));
                assert!(!index.holds(&id(chunk)), "nothing is known to be there");
                index.note_missing(at.pack);
                assert_eq!(index.places(&id(chunk)).unwrap().len(), left.len());
            }
            assert!(tried.is_subset(&packs));
            assert!(packs.iter().all(|pack| index.is_missing(*pack)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn it_says_what_a_list_of_everything_says(
        seed in any::<u64>(),
        steps in prop::collection::vec((0_u8..10, 1_usize..14), 1..24),
    ) {
        let mut world = World::new(seed);
        for (step, size) in steps {
            match step {
                0..4 => world.segment(size),
                4 => world.merge(false),
                5 | 6 => world.merge(true),
                7 | 8 => world.damage(),
                _ => world.compare(Some(world.cache.path())),
            }
        }
        world.compare(Some(world.cache.path()));
        world.compare(None);
        world.is_read_elsewhere();
        // What was damaged is right again.
        let index = world.open();
        for run in &index.runs {
            for part in &run.parts {
                part.check().unwrap();
            }
        }
        // A copy may also be damaged while it is in use.
        for _ in 0..3 {
            world.damage();
        }
        let index_of_packs = Index::load(&world.store, &world.keys, &Authority::default(), None, &HashSet::new()).unwrap();
        for (number, _) in index.packs() {
            index.set(number, index_of_packs.state(number));
        }
        world.agrees(&index, &HashSet::new());
    }
}

fn merged(world: &mut World) -> Vec<String> {
    for _ in 0..6 {
        world.segment(20);
    }
    world.merge(false);
    let current = Current::read(&world.store, &world.keys).unwrap();
    let parts = current.segments.into_iter().map(|object| object.key);
    parts.filter(|key| crate::layout::parse_part_key(key).is_some()).collect()
}

#[test]
fn no_byte_of_a_part_can_be_altered_unseen() {
    let mut world = World::new(5);
    let parts = merged(&mut world);
    assert!(parts.len() >= 4, "{parts:?}");
    for key in [&parts[0], &parts[parts.len() - 1]] {
        let whole = world.store.read(key).unwrap();
        check_part(&world.keys, key, whole.clone()).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 4;
            let error = check_part(&world.keys, key, bytes.into()).unwrap_err();
            assert!(error.is_about_an_object(), "{at}: {error}");
        }
        for length in [0, 100, 200, whole.len() / 2, whole.len() - 1] {
            check_part(&world.keys, key, whole.slice(..length)).unwrap_err();
        }
        check_part(&world.keys, &part_key(9, &[1; 16], 0), whole.clone()).unwrap_err();
        check_part(&keys(2), key, whole).unwrap_err();
    }
}

#[test]
fn what_cannot_be_looked_up_is_stored_again_and_is_not_called_missing() {
    let mut world = World::new(6);
    let parts = merged(&mut world);
    let key = parts.last().unwrap();
    let whole = world.store.read(key).unwrap();
    let mut bytes = whole.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    world.store.delete(key).unwrap();
    world.store.create(key, bytes.into()).unwrap();
    let index =
        Index::load(&world.store, &world.keys, &Authority::default(), None, &HashSet::new())
            .unwrap();
    let (mut lost, mut found) = (0, 0);
    for chunk in (0..IDS).filter(|chunk| world.model.contains_key(&there(*chunk))) {
        match index.find(&id(chunk)) {
            Ok(at) => {
                assert!(at.is_some());
                found += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), RepoErrorKind::Damaged);
                assert!(!index.holds(&id(chunk)));
                lost += 1;
            }
        }
    }
    assert!(lost > 0 && found > 0, "{lost} {found}");
    assert!(index.locations().any(|entry| entry.is_err()));
    assert!(index.copies(|_, _, _, _| {}).is_err());
    let removed = HashSet::new();
    let mut create = |_: &str, _: Bytes| Ok(());
    let (keys, env) = (&world.keys, &world.env);
    let all = Sizes { small: 10_000, ..SIZES };
    assert!(index.merge_with(all, &removed, keys, env, 9, &mut create).is_err());
}

#[test]
fn a_head_of_before_there_were_runs_names_no_packs_that_are_gone() {
    let old = (vec!["index/1/00000001/x".to_owned()], vec!["index/0/y".to_owned()]);
    let body = postcard::to_stdvec(&old).unwrap();
    let head: Head = postcard::from_bytes(&body).unwrap();
    assert_eq!(head, Head { segments: old.0, absorbed: old.1, gone: Vec::new() });
    let head = Head { gone: vec![[7; 16], [8; 16]], ..head };
    let body = postcard::to_stdvec(&head).unwrap();
    assert_eq!(postcard::from_bytes::<Head>(&body).unwrap(), head);
}

#[test]
fn a_merge_of_little_leaves_a_large_run_alone() {
    let mut world = World::new(7);
    let large = merged(&mut world);
    world.segment(1);
    world.merge(false);
    let current = Current::read(&world.store, &world.keys).unwrap();
    let named: HashSet<_> = current.segments.iter().map(|object| object.key.clone()).collect();
    assert!(large.iter().all(|part| named.contains(part)));
    assert!(named.len() > large.len());
    world.compare(None);
}
