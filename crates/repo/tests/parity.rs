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

/// With every kind of object.
fn prepare(root: &Path) -> (Files, Snapshot) {
    let store = store(root);
    let repo = repository(&store);
    assert_eq!(repo.parity().unwrap(), None);
    let set = repo.set_parity(Some(10), &Progress::default()).unwrap();
    assert!(set.objects > 0 && set.damaged.is_empty());
    let forgotten = backup(&repo, &mixture(1)).unwrap();
    let files = mixture(2);
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

#[test]
fn a_forged_parity_file_makes_no_repair_store_what_does_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    prepare(root);
    let whole = objects(root);
    let pack = whole.keys().find(|key| key.starts_with("packs/")).unwrap();
    // Whoever can write here makes the parity of other bytes, which agree with it in all.
    let forged = tempfile::tempdir().unwrap();
    let other = store(forged.path());
    other.parity().unwrap().set_share(Some(100)).unwrap();
    other.create(pack, noise(whole[pack].len(), 9).into()).unwrap();
    let file = std::fs::read(forged.path().join(".parity/of").join(pack)).unwrap();
    damage(&root.join(".parity/of").join(pack), |bytes| *bytes = file);
    let found = verify(&open(&store(root)), Level::Standard).damages;
    assert!(
        found.iter().any(|d| d.object == *pack && !d.what.contains("gives it back")),
        "{found:?}"
    );
    let report = repair(root);
    assert!(report.repaired.iter().all(|done| done.object != *pack), "{:?}", report.repaired);
    if let Ok(left) = std::fs::read(root.join(pack)) {
        assert!(left == whole[pack]);
    }
}

#[test]
fn a_store_without_parity_says_so() {
    let repo = repository(&Store::memory());
    let error = repo.set_parity(Some(10), &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("only a repository in a directory"), "{error}");
    assert_eq!(repo.parity().unwrap(), None);
}
