//! A restore that meets damage goes on from another repository with the same moment.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use backstay_repo::*;
use backstay_store::{Bytes, Fault, Faulty, Memory, Operation, Rule, When};
use support::*;

/// Enough files for several packs and several nodes of the tree.
fn many(seed: u64) -> Files {
    use Chunking::{ContentDefined as C, Grid as G};
    let mut all = files(&[
        ("b/large", C, noise(9 << 20, seed + 5)),
        ("c/page", G, text(8192, seed + 7)),
        ("c/cells", G, noise((12 << 20) + 8192, seed + 8)),
        ("c/holes", G, [noise(3 << 20, seed), vec![0; 5 << 20], noise(1 << 20, seed + 1)].concat()),
        ("d/many-extents", C, noise(70 << 20, seed + 9)),
    ]);
    for n in 0..400 {
        let size = (n * 137) % 30_000;
        all.insert(format!("small/{n:04}"), (C, Arc::new(noise(size, seed + 100 + n as u64))));
    }
    all
}

fn both(stores: &[Store; 2], files: &Files) -> ([Repository; 2], [Snapshot; 2]) {
    let repositories = stores.each_ref().map(repository);
    let targets = repositories.iter().map(|repo| (repo.clone(), options("test"))).collect();
    let session = Session::begin(targets).unwrap();
    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in files {
        let content = support::Bytes { bytes: bytes.clone(), ranges: None };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
    }
    let root = tree.finish().unwrap();
    let mut made = session.commit_all(root, serde_json::Value::Null).into_iter();
    let mut next = || made.next().unwrap().unwrap();
    let snapshots = [next(), next()];
    (repositories, snapshots)
}

fn to_second(second: &Repository, snapshot: &Snapshot) -> Option<Arc<Fallback>> {
    let sibling =
        Sibling { name: "second".into(), repository: second.clone(), snapshot: snapshot.clone() };
    Some(Arc::new(Fallback::new("first", move || vec![sibling.clone()])))
}

/// Alters one byte in every fourth KiB of an object, from `from` on.
fn spoil(store: &Store, key: &str, from: usize) {
    let mut body = store.read(key).unwrap().to_vec();
    for byte in body.iter_mut().skip(from).step_by(4096) {
        *byte ^= 1;
    }
    store.delete(key).unwrap();
    store.create(key, Bytes::from(body)).unwrap();
}

fn packs(store: &Store, metadata: bool) -> Vec<String> {
    let class = |key: &str| store.read_range(key, 9..10).unwrap()[0];
    let keys = store.list("packs/").unwrap().into_iter().map(|object| object.key);
    keys.filter(|key| (class(key) == 2) == metadata).collect()
}

#[test]
fn two_damaged_repositories_make_one_whole_restore() {
    let files = many(1);
    for (keep_going, window) in [(false, 0), (true, 0), (false, 1), (true, 20)] {
        let stores = [Store::memory(), Store::memory()];
        let (_, snapshots) = both(&stores, &files);
        let (one, two) = (packs(&stores[0], false), packs(&stores[1], false));
        assert!(one.len() >= 4 && two.len() >= 4, "{} and {} packs", one.len(), two.len());
        // Of each the half that the other one is not sure to have; so files need both.
        spoil(&stores[0], &one[0], 200);
        stores[0].delete(&one[1]).unwrap();
        // What lies in the damaged packs of the first is whole in the second; where it is not, the
        // second's own damage is in what the first still has.
        let repositories = stores.each_ref().map(open);
        let folder = tempfile::tempdir().unwrap();
        let options = RestoreOptions {
            keep_going,
            window,
            fallback: to_second(&repositories[1], &snapshots[1]),
            ..RestoreOptions::new(folder.path())
        };
        let report = repositories[0].restore(&snapshots[0], options, &Progress::default()).unwrap();
        assert_eq!(report.problems, []);
        assert_restored(&files, folder.path());
        let objects: Vec<&str> = report.lacking.iter().map(|one| one.object.as_str()).collect();
        assert!(objects.contains(&one[0].as_str()), "{objects:?}");
        assert!(objects.contains(&one[1].as_str()), "{objects:?}");
        assert!(report.lacking.iter().all(|one| one.repository == "first"));
        assert_eq!(report.supplied.len(), 1);
        assert_eq!(report.supplied[0].repository, "second");
        assert!(report.supplied[0].bytes > 0);
    }
}

/// Each lacks different files: neither can restore alone, both together can.
#[test]
fn each_gives_what_the_other_one_lacks() {
    let content = |n| (Chunking::ContentDefined, Arc::new(noise(4 << 20, 200 + n)));
    let files: Files = (0..14_u64).map(|n| (format!("f/{n:02}"), content(n))).collect();
    let stores = [Store::memory(), Store::memory()];
    let (_, snapshots) = both(&stores, &files);
    let restore = |at: usize, fallback: Option<Arc<Fallback>>| {
        let folder = tempfile::tempdir().unwrap();
        let options =
            RestoreOptions { keep_going: true, fallback, ..RestoreOptions::new(folder.path()) };
        let repository = open(&stores[at]);
        let report = repository.restore(&snapshots[at], options, &Progress::default()).unwrap();
        (folder, report)
    };
    // What is lost with each pack.
    let losses = |at: usize| -> Vec<(String, Vec<String>)> {
        let one = |key: String| {
            let body = stores[at].read(&key).unwrap();
            stores[at].delete(&key).unwrap();
            let (_, report) = restore(at, None);
            stores[at].create(&key, body).unwrap();
            (key, report.problems.into_iter().map(|problem| problem.path).collect())
        };
        packs(&stores[at], false).into_iter().map(one).collect()
    };
    let (of_first, of_second) = (losses(0), losses(1));
    let apart = |one: &[String], two: &[String]| {
        !one.is_empty() && !two.is_empty() && !one.iter().any(|path| two.contains(path))
    };
    let pair = of_first.iter().find_map(|(one, lost)| {
        let (two, _) = of_second.iter().find(|(_, other)| apart(lost, other))?;
        Some((one, lost, two))
    });
    let (one, lost, two) = pair.unwrap();
    spoil(&stores[0], one, 0);
    stores[1].delete(two).unwrap();
    for at in [0, 1] {
        let other = to_second(&open(&stores[1 - at]), &snapshots[1 - at]);
        let (folder, report) = restore(at, other);
        assert_eq!(report.problems, []);
        assert_restored(&files, folder.path());
        assert_eq!(report.files, files.len() as u64);
        assert!(report.supplied[0].files > 0);
        if at == 0 {
            assert_eq!(report.supplied[0].files, lost.len() as u64);
        }
    }
}

#[test]
fn damaged_trees_are_read_from_the_other_one() {
    let files = many(3);
    let stores = [Store::memory(), Store::memory()];
    let (_, snapshots) = both(&stores, &files);
    for key in packs(&stores[0], true) {
        // Not the header: some nodes open, others do not.
        let half = stores[0].head(&key).unwrap().size / 2;
        spoil(&stores[0], &key, half as usize);
    }
    let repositories = stores.each_ref().map(open);
    let folder = tempfile::tempdir().unwrap();
    let fallback = to_second(&repositories[1], &snapshots[1]);
    let options =
        RestoreOptions { fallback: fallback.clone(), ..RestoreOptions::new(folder.path()) };
    let report = repositories[0].restore(&snapshots[0], options, &Progress::default()).unwrap();
    assert_eq!(report.problems, []);
    assert_restored(&files, folder.path());
    assert!(!report.lacking.is_empty());
    // A single file is found and read as well.
    let tree = repositories[0].tree(&snapshots[0]).unwrap().falling_over(fallback);
    for (path, (_, bytes)) in files.iter().step_by(37) {
        let entry = tree.get(path.as_bytes()).unwrap().unwrap();
        let mut content = Vec::new();
        tree.read_file(&entry, &mut content).unwrap();
        assert!(content == **bytes, "{path}");
    }
}

#[test]
fn a_store_that_goes_away_during_a_restore_is_left_for_the_other_one() {
    let files = many(4);
    let faulty = Faulty::new(Memory::new(), Environment::system(), 1);
    let stores = [Store::new(faulty.clone()), Store::memory()];
    let (_, snapshots) = both(&stores, &files);
    for after in [0, 1, 2, 3, 5, 8] {
        let repositories = stores.each_ref().map(open);
        repositories[0].tree(&snapshots[0]).unwrap();
        let gone = Fault::Fail(backstay_store::ErrorKind::Transient);
        faulty.add(Rule::new(Operation::Read, When::After(after), gone).below("packs/"));
        let folder = tempfile::tempdir().unwrap();
        let options = RestoreOptions {
            fallback: to_second(&repositories[1], &snapshots[1]),
            ..RestoreOptions::new(folder.path())
        };
        let report = repositories[0].restore(&snapshots[0], options, &Progress::default()).unwrap();
        assert_restored(&files, folder.path());
        assert_eq!(report.problems, []);
        assert_eq!(report.supplied[0].repository, "second");
        faulty.clear();
    }
}

#[test]
fn a_delta_restore_falls_over_too() {
    let files = many(5);
    let stores = [Store::memory(), Store::memory()];
    let (_, snapshots) = both(&stores, &files);
    for key in packs(&stores[0], false) {
        stores[0].delete(&key).unwrap();
    }
    let repositories = stores.each_ref().map(open);
    let folder = tempfile::tempdir().unwrap();
    for (path, (_, bytes)) in files.iter().step_by(3) {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Right at the start, wrong in the middle, too long.
        let mut there = bytes.to_vec();
        let middle = there.len() / 2;
        there[middle..].fill(7);
        there.extend_from_slice(b"and more");
        std::fs::write(path, there).unwrap();
    }
    let options = RestoreOptions {
        delta: true,
        fallback: to_second(&repositories[1], &snapshots[1]),
        ..RestoreOptions::new(folder.path())
    };
    let report = repositories[0].restore(&snapshots[0], options, &Progress::default()).unwrap();
    assert_eq!(report.problems, []);
    assert_restored(&files, folder.path());
}

#[test]
fn what_nobody_has_is_lost_and_said() {
    let files = many(6);
    let stores = [Store::memory(), Store::memory()];
    let (_, snapshots) = both(&stores, &files);
    for store in &stores {
        for key in packs(store, false) {
            store.delete(&key).unwrap();
        }
    }
    let repositories = stores.each_ref().map(open);
    let restore = |keep_going: bool| {
        let folder = tempfile::tempdir().unwrap();
        let options = RestoreOptions {
            keep_going,
            fallback: to_second(&repositories[1], &snapshots[1]),
            ..RestoreOptions::new(folder.path())
        };
        repositories[0].restore(&snapshots[0], options, &Progress::default())
    };
    assert_eq!(restore(false).unwrap_err().kind(), RepoErrorKind::Damaged);
    let report = restore(true).unwrap();
    let large = files.values().filter(|(_, bytes)| bytes.len() > 128).count();
    assert_eq!(report.problems.len(), large);
    assert!(report.lacking.iter().any(|one| one.repository == "second"));
    assert!(report.supplied.is_empty());
}
