//! What snapshots need is found whole, whatever becomes of one of them meanwhile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use backstay_repo::*;
use backstay_store::{Backend, Memory, ObjectMeta, StoreError};
use support::*;

/// A store in which somebody creates an object when packs are listed.
#[derive(Clone)]
struct Disturbed {
    memory: Arc<Memory>,
    on_packs: Arc<Mutex<Option<(String, bytes::Bytes)>>>,
}

impl Backend for Disturbed {
    fn url(&self) -> String {
        "disturbed://".into()
    }

    fn create(&self, key: &str, body: bytes::Bytes) -> Result<(), StoreError> {
        self.memory.create(key, body)
    }

    fn read(&self, key: &str) -> Result<bytes::Bytes, StoreError> {
        self.memory.read(key)
    }

    fn read_range(&self, key: &str, range: Range<u64>) -> Result<bytes::Bytes, StoreError> {
        self.memory.read_range(key, range)
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        self.memory.head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        if prefix == "packs/"
            && let Some((key, body)) = self.on_packs.lock().unwrap().take()
        {
            self.memory.create(&key, body)?;
        }
        self.memory.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.memory.delete(key)
    }
}

#[test]
fn a_node_of_which_a_forgotten_snapshot_showed_the_first_part_hides_nothing() {
    let backend =
        Disturbed { memory: Arc::new(Memory::new()), on_packs: Arc::new(Mutex::default()) };
    let store = Store::new(backend.clone());
    let mut files = files(&[("a", Chunking::ContentDefined, noise(300_000, 1))]);
    let mut snapshots = Vec::new();
    let repository = repository(&store);
    // Each file in a pack of its own.
    snapshots.push(backup(&repository, &files).unwrap());
    let first_data = data_packs(&store);
    files.extend(support::files(&[("b", Chunking::ContentDefined, noise(300_000, 2))]));
    // The same list of files twice.
    snapshots.push(backup(&repository, &files).unwrap());
    snapshots.push(backup(&repository, &files).unwrap());
    assert_eq!(snapshots[1].root, snapshots[2].root);
    let packs = data_packs(&store);

    // The tombstone of the one that is looked at first, to be there only when marking has begun.
    let mut by_key: Vec<&Snapshot> = snapshots[1..].iter().collect();
    by_key.sort_by_key(|snapshot| snapshot.id.clone());
    repository.forget(&snapshots[0].id).unwrap();
    repository.forget(&by_key[0].id).unwrap();
    let tombstone = store.list("tombstones/").unwrap();
    let tombstone = tombstone.iter().find(|object| object.key.ends_with(&by_key[0].id)).unwrap();
    let body = store.read(&tombstone.key).unwrap();
    store.delete(&tombstone.key).unwrap();
    *backend.on_packs.lock().unwrap() = Some((tombstone.key.clone(), body));
    // What both need first is gone.
    first_data.iter().for_each(|key| store.delete(key).unwrap());

    let done = open(&store).maintain(&MaintenanceOptions::default(), &Arc::default());
    assert!(backend.on_packs.lock().unwrap().is_none());
    let error = done.unwrap_err();
    assert!(error.to_string().contains("nothing is removed while snapshot"), "{error}");
    let left = data_packs(&store);
    assert!(packs.iter().filter(|key| !first_data.contains(key)).all(|key| left.contains(key)));
}

/// Keys of packs of class 1.
fn data_packs(store: &Store) -> Vec<String> {
    let packs = store.list("packs/").unwrap().into_iter().map(|object| object.key);
    packs.filter(|key| store.read(key).unwrap()[9] == 1).collect()
}
