//! Repairing an index whose runs have several parts, as those of large repositories do.
//!
//! In a process of its own: how large parts become is one choice for all of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use backstay_repo::*;
use backstay_store::Bytes as Body;
use support::*;

use Chunking::ContentDefined as C;

fn several(seed: u64) -> Files {
    let mut all = files(&[("a/inline", C, noise(500, seed))]);
    for n in 0..30_u64 {
        all.insert(format!("b/{n:02}"), (C, Arc::new(noise(66_000, seed + n))));
    }
    all
}

fn copy_of(store: &Store) -> Store {
    let copy = Store::memory();
    for object in store.list("").unwrap() {
        copy.create(&object.key, store.read(&object.key).unwrap()).unwrap();
    }
    copy
}

fn maintain(store: &Store) {
    open(store).maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
}

fn assert_whole(store: &Store, backups: &[(Snapshot, Files)]) {
    for (snapshot, files) in backups {
        let to = tempfile::tempdir().unwrap();
        let options = RestoreOptions { sync: false, ..RestoreOptions::new(to.path()) };
        let repo = open(store);
        let snapshot = repo.find_snapshot(&snapshot.id).unwrap();
        repo.restore(&snapshot, options, &Progress::default()).unwrap();
        assert_restored(files, to.path());
    }
}

#[test]
fn any_part_of_a_run_is_made_again() {
    internals::with_small_parts_of_runs(20, 2);
    let store = Store::memory();
    let repo = repository(&store);
    let backups: Vec<(Snapshot, Files)> =
        [1000, 2000, 3000].map(several).map(|files| (backup(&repo, &files).unwrap(), files)).into();
    // What is forgotten gives maintenance something to do.
    let fourth = backup(&repo, &several(4000)).unwrap();
    repo.forget(&fourth.id).unwrap();
    maintain(&store);
    let parts: Vec<String> =
        store.list("index/1/").unwrap().into_iter().map(|object| object.key).collect();
    let runs: std::collections::BTreeSet<_> =
        parts.iter().filter_map(|key| key.rsplit_once('/')).map(|(run, _)| run).collect();
    assert!(parts.len() >= 5 && runs.len() == 1, "{parts:?}");
    // The other repository has the same sources; of it nothing is needed, as the packs are whole.
    let other = Store::memory();
    let secret = Secret::key_file([8; 32]).unwrap();
    let env = Environment::system();
    let from = Repository::init(other, env, &secret, InitOptions::default()).unwrap();
    for (_, files) in &backups {
        backup(&from, files).unwrap();
    }
    for (number, key) in parts.iter().enumerate() {
        let damaged = copy_of(&store);
        let object = store.read(key).unwrap();
        damaged.delete(key).unwrap();
        // The root of one, the last block of another, and one is gone.
        let at = match number % 3 {
            0 => Some(170),
            1 => Some(object.len() - 20),
            _ => None,
        };
        if let Some(at) = at {
            let mut bytes = object.to_vec();
            bytes[at] ^= 1;
            damaged.create(key, Body::from(bytes)).unwrap();
        }
        assert!(!verify(&open(&damaged), Level::Basic).damages.is_empty(), "{key}");
        let options = RepairOptions { from: Some(from.clone()), ..RepairOptions::default() };
        let report = open(&damaged).repair(&options, &Arc::default()).unwrap();
        assert_eq!((report.left.damages, report.unrepaired), (vec![], vec![]), "{key}");
        assert!(!report.repaired.is_empty(), "{key}");
        assert_eq!(report.fetched, 0, "{key}");
        assert_eq!(verify(&open(&damaged), Level::Thorough).damages, [], "{key}");
        assert_whole(&damaged, &backups);
        // A backup finds all that is there, and maintenance goes on.
        let (_, files) = backups.last().unwrap();
        let again = backup(&open(&damaged), files).unwrap();
        assert!(again.stats.new_bytes < 10_000, "{key}: {:?}", again.stats);
        maintain(&damaged);
        assert_eq!(verify(&open(&damaged), Level::Thorough).damages, [], "{key}");
        assert_whole(&damaged, &backups);
    }
}
