//! Repositories in a directory with parity: bad sectors in any object cost nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use backstay_repo::*;
use backstay_store::Local;
use support::*;

const SYSTEM: u64 = 7_000_000_000_000_000_004;
const SEGMENT: &str = "000000010000000000000001";

fn store(root: &Path) -> Store {
    Store::new(Local::new(root).unwrap())
}

/// Enough for packs of both kinds, with more pieces than one.
fn some(seed: u64) -> Files {
    use Chunking::{ContentDefined as C, Grid as G};
    files(&[
        ("a/inline", C, noise(4096, seed)),
        ("a/grouped", C, text(65_536, seed + 1)),
        ("b/large", C, noise(2 << 20, seed + 2)),
        ("c/cells", G, text((3 << 20) + 8192, seed + 3)),
    ])
}

/// With every kind of object.
fn prepare(root: &Path) -> (Files, Snapshot) {
    let store = store(root);
    let repo = repository(&store);
    assert_eq!(repo.parity().unwrap(), None);
    let set = repo.set_parity(Some(10), &Progress::default()).unwrap();
    assert!(set.objects > 0 && set.damaged.is_empty());
    let forgotten = backup(&repo, &some(1)).unwrap();
    let files = some(2);
    let snapshot = backup(&repo, &files).unwrap();
    repo.forget(&forgotten.id).unwrap();
    repo.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
    repo.archive(SYSTEM).push(SEGMENT, &noise(1 << 20, 3)).unwrap();
    (files, snapshot)
}

fn objects(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let listed = store(root).list("").unwrap().into_iter();
    listed
        .map(|object| (object.key.clone(), std::fs::read(root.join(object.key)).unwrap()))
        .collect()
}

fn damage(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    how(&mut bytes);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A twelfth of every object, each in another place and way.
fn damage_all(root: &Path, whole: &BTreeMap<String, Vec<u8>>) {
    for (number, key) in whole.keys().enumerate() {
        damage(&root.join(key), |bytes| {
            let some = (bytes.len() / 12).max(1);
            let start = (bytes.len() - some) * (number % 4) / 3;
            match number % 3 {
                0 => bytes[start..start + some].fill(0),
                1 => bytes[start..start + some].iter_mut().for_each(|byte| *byte = !*byte),
                _ => bytes.truncate(bytes.len() - some),
            }
        });
    }
}

fn repair(root: &Path) -> RepairReport {
    open(&store(root)).repair(&RepairOptions::default(), &Arc::default()).unwrap()
}

#[test]
fn damage_in_every_object_at_once_is_read_through_found_and_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (files, snapshot) = prepare(root);
    let whole = objects(root);
    assert_eq!(verify(&open(&store(root)), Level::Thorough).damages, []);
    damage_all(root, &whole);

    let target = tempfile::tempdir().unwrap();
    let repo = open(&store(root));
    restore(&repo, &snapshot, target.path());
    assert_restored(&files, target.path());
    assert_eq!(repo.archive(SYSTEM).fetch(SEGMENT).unwrap(), Some(noise(1 << 20, 3)));

    let found = verify(&open(&store(root)), Level::Standard).damages;
    for kind in ["format", "keys/", "packs/", "index/", "snapshots/", "wal/"] {
        let about = found.iter().find(|damage| damage.object.starts_with(kind));
        assert!(about.unwrap().what.contains("parity gives it back"), "{about:?}");
    }
    let report = repair(root);
    assert_eq!(report.unrepaired, []);
    assert_eq!(report.left.damages, []);
    assert_eq!(report.packs_removed, 0, "nothing had to be moved");
    assert!(found.iter().all(|d| report.repaired.iter().any(|r| r.object == d.object)));
    let after = objects(root);
    for damage in &found {
        assert!(after[&damage.object] == whole[&damage.object], "{}", damage.object);
    }
    assert_eq!(verify(&open(&store(root)), Level::Thorough).damages, []);
}

#[test]
fn damaged_and_missing_parity_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    prepare(root);
    let whole = objects(root);
    let pack = whole.keys().find(|key| key.starts_with("packs/")).unwrap();
    damage(&root.join(".parity/of").join(pack), |bytes| bytes.fill(7));
    std::fs::remove_file(root.join(".parity/of/format")).unwrap();
    let found = verify(&open(&store(root)), Level::Standard).damages;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].object, format!("parity of {pack}"));
    let report = repair(root);
    assert_eq!((report.left.damages, report.unrepaired), (vec![], vec![]));
    assert_eq!(report.repaired.len(), 2, "{:?}", report.repaired);
    // And it works.
    damage(&root.join(pack), |bytes| bytes[20] ^= 1);
    damage(&root.join("format"), |bytes| bytes[0] ^= 1);
    assert_eq!(repair(root).left.damages, []);
    assert_eq!(objects(root), whole);
}

/// Parity that is whole and would make something else of every object, as whoever can write here
/// makes it.
fn forge(root: &Path, whole: &BTreeMap<String, Vec<u8>>) {
    let elsewhere = tempfile::tempdir().unwrap();
    let other = store(elsewhere.path());
    other.parity().unwrap().set_share(Some(100)).unwrap();
    for (key, object) in whole {
        other.create(key, noise(object.len(), 9).into()).unwrap();
        let forged = std::fs::read(elsewhere.path().join(".parity/of").join(key)).unwrap();
        damage(&root.join(".parity/of").join(key), |bytes| *bytes = forged);
    }
}

#[test]
fn forged_parity_makes_no_good_object_look_bad() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (files, snapshot) = prepare(root);
    let whole = objects(root);
    forge(root, &whole);

    let target = tempfile::tempdir().unwrap();
    let repo = open(&store(root));
    restore(&repo, &snapshot, target.path());
    assert_restored(&files, target.path());
    assert_eq!(repo.archive(SYSTEM).fetch(SEGMENT).unwrap(), Some(noise(1 << 20, 3)));

    let found = verify(&open(&store(root)), Level::Standard).damages;
    let named: Vec<_> = found.iter().map(|damage| damage.object.clone()).collect();
    let of_all: Vec<_> = whole.keys().map(|key| format!("parity of {key}")).collect();
    assert_eq!(named, of_all, "{found:?}");

    let report = repair(root);
    assert_eq!((report.left.damages, report.unrepaired), (vec![], vec![]));
    assert_eq!((report.packs_removed, report.chunks_salvaged), (0, 0));
    assert_eq!(objects(root), whole);
    // What was made anew is of these objects.
    damage_all(root, &whole);
    assert_eq!(repair(root).left.damages, []);
    assert_eq!(objects(root), whole);
}

#[test]
fn forged_parity_and_damage_together_change_nothing_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    prepare(root);
    let whole = objects(root);
    forge(root, &whole);
    let wal = whole.keys().find(|key| key.starts_with("wal/")).unwrap();
    damage(&root.join(wal), |bytes| bytes[300] ^= 1);
    let lying = std::fs::read(root.join(wal)).unwrap();
    let report = repair(root);
    assert!(report.unrepaired.iter().any(|left| left.object == *wal), "{:?}", report.unrepaired);
    assert_eq!(std::fs::read(root.join(wal)).unwrap(), lying);
}

#[test]
fn no_parity_is_made_of_damage() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    prepare(root);
    open(&store(root)).set_parity(None, &Progress::default()).unwrap();
    let whole = objects(root);
    damage_all(root, &whole);
    // By the key alone: format and slots are needed to get in.
    for key in ["format", "keys/"] {
        for (key, object) in whole.iter().filter(|(found, _)| found.starts_with(key)) {
            damage(&root.join(key), |bytes| bytes.clone_from(object));
        }
    }
    let set = open(&store(root)).set_parity(Some(10), &Progress::default()).unwrap();
    let is_bad = |key: &&String| **key != "format" && !key.starts_with("keys/");
    let bad: Vec<_> = whole.keys().filter(is_bad).cloned().collect();
    assert!(!bad.is_empty());
    assert_eq!(set.damaged, bad);
    assert_eq!(set.objects as usize + set.damaged.len(), whole.len());
}

#[test]
fn what_has_no_parity_is_counted_and_maintenance_makes_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    prepare(root);
    let whole = objects(root);
    let mut keys = whole.keys();
    std::fs::remove_file(root.join(".parity/of").join(keys.next().unwrap())).unwrap();
    let torn = keys.next().unwrap();
    damage(&root.join(".parity/of").join(torn), |bytes| bytes.truncate(100));
    // Whatever else lies there is not ours.
    std::fs::write(root.join("notes"), "by hand").unwrap();
    for level in [Level::Basic, Level::Standard] {
        let report = verify(&open(&store(root)), level);
        assert_eq!((report.damages, report.without_parity), (vec![], 2), "{level}");
    }
    open(&store(root)).maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
    let report = verify(&open(&store(root)), Level::Standard);
    assert_eq!((report.damages, report.without_parity), (vec![], 0));
    assert!(!root.join(".parity/of/notes").exists());
}

#[test]
fn a_store_without_parity_says_so() {
    let repo = repository(&Store::memory());
    let error = repo.set_parity(Some(10), &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("only a repository in a directory"), "{error}");
    assert_eq!(repo.parity().unwrap(), None);
}
