//! Looking around in snapshots: what is found by path, directory and range is what the tree and the
//! content as a whole say, and damage costs what it hit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backstay_repo::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::*;

use Chunking::ContentDefined as C;

fn browser(repo: &Repository) -> Browser {
    Browser::new(repo.clone(), BrowseOptions::default())
}

fn directory(path: &str) -> Entry {
    Entry { kind: EntryKind::Directory, ..file(path, 0) }
}

/// Commits entries as they are given, which need not be what a source would make.
fn commit(repo: &Repository, mut entries: Vec<Entry>) -> Snapshot {
    entries.sort_by(|a, b| compare_paths(&a.path, &b.path));
    let session = repo.begin(options("test")).unwrap();
    let mut tree = session.tree(Order::Any);
    for entry in entries {
        tree.entry(entry).unwrap();
    }
    let root = tree.finish().unwrap();
    session.commit(root, serde_json::Value::Null).unwrap()
}

fn names(children: Children) -> Vec<String> {
    children.map(|child| child.unwrap().display_path()).collect()
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |at| &path[..at])
}

/// Some thousand entries in directories of all sizes, and some that have no entry of their own.
fn wide() -> Vec<Entry> {
    let mut entries = Vec::new();
    for n in 0..6000 {
        let path = match n % 6 {
            0 => format!("flat/file-{n:05}"),
            1 => format!("flat/sub{}/x{n}", n % 7),
            2 => format!("flat/sub{}/deeper/still/y{n}", n % 5),
            3 => format!("flat-too/{n}"),
            4 => format!("unsaid/{}/z{n}", n % 40),
            _ => format!("top{n}"),
        };
        let mut entry = file(&path, 40);
        entry.kind = EntryKind::File(FileContent::inline(noise(40, n as u64)));
        entries.push(entry);
    }
    for path in ["flat", "flat-too", "empty", "flat/empty"] {
        entries.push(directory(path));
    }
    entries
}

#[test]
fn directories_have_what_the_tree_has() {
    let store = Store::memory();
    let repo = repository(&store);
    let entries = wide();
    let snapshot = commit(&repo, entries.clone());
    let view = browser(&repo).view(&snapshot).unwrap();
    // Every directory there is, said or not, and what has to be in it.
    let mut wanted: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for entry in &entries {
        let mut path = &entry.path[..];
        if entry.is_directory() {
            wanted.entry(path.to_vec()).or_default();
        }
        while !path.is_empty() {
            wanted.entry(parent(path).to_vec()).or_default().insert(path.to_vec());
            path = parent(path);
        }
    }
    for (directory, below) in &wanted {
        let found: Vec<Vec<u8>> =
            view.children(directory, None).map(|child| child.unwrap().path.clone()).collect();
        assert!(found.is_sorted_by(|a, b| compare_paths(a, b).is_lt()));
        let found: BTreeSet<Vec<u8>> = found.into_iter().collect();
        assert_eq!(&found, below, "{}", String::from_utf8_lossy(directory));
        if !directory.is_empty() {
            assert!(view.get(directory).unwrap().unwrap().is_directory());
        }
    }
    for entry in &entries {
        assert_eq!(*view.get(&entry.path).unwrap().unwrap(), *entry);
    }
    for missing in ["flat/file-00001", "fla", "flat/sub1/x", "zzz", "top5/below", "0"] {
        assert!(view.get(missing.as_bytes()).unwrap().is_none(), "{missing}");
    }
    assert_eq!(names(view.children(b"empty", None)), Vec::<String>::new());
    assert_eq!(names(view.children(b"top5", None)), Vec::<String>::new());
    // From any place on.
    let all = names(view.children(b"flat", None));
    for at in [0, 1, 500, all.len() - 2, all.len() - 1] {
        let name = all[at].strip_prefix("flat/").unwrap();
        assert_eq!(names(view.children(b"flat", Some(name.as_bytes()))), all[at + 1..]);
    }
}

#[test]
fn an_empty_snapshot_has_an_empty_root() {
    let repo = repository(&Store::memory());
    let snapshot = commit(&repo, Vec::new());
    let view = browser(&repo).view(&snapshot).unwrap();
    assert_eq!(names(view.children(b"", None)), Vec::<String>::new());
    assert!(view.get(b"a").unwrap().is_none());
}

#[test]
fn ranges_of_files_are_those_of_the_whole() {
    let repo = repository(&Store::memory());
    let all = mixture(1);
    let snapshot = backup(&repo, &all).unwrap();
    // Little memory, so that chunks go and come back.
    let options = BrowseOptions { chunks: 4 << 20, nodes: 1 << 20, readers: 2 };
    let view = Browser::new(repo, options).view(&snapshot).unwrap();
    let files: Vec<_> = all
        .iter()
        .map(|(path, (_, bytes))| {
            let entry = view.get(path.as_bytes()).unwrap().unwrap();
            (view.open(&entry).unwrap(), bytes.clone())
        })
        .collect();
    let ranges = (any::<prop::sample::Index>(), 0.0..1.1_f64, 0_usize..300_000);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(400));
    runner
        .run(&ranges, |(index, place, length)| {
            let (reader, bytes) = &files[index.index(files.len())];
            let from = (bytes.len() as f64 * place) as usize;
            let mut found = Vec::new();
            reader.read_at(from as u64, length, &mut found).unwrap();
            let to = bytes.len().min(from + length);
            prop_assert!(found == bytes.get(from..to).unwrap_or_default(), "{from} + {length}");
            Ok(())
        })
        .unwrap();
    // In order, as most files are read.
    for (reader, bytes) in files {
        assert_eq!(reader.size(), bytes.len() as u64);
        let mut found = Vec::new();
        while found.len() < bytes.len() {
            reader.read_at(found.len() as u64, 128 << 10, &mut found).unwrap();
        }
        assert!(found == *bytes);
    }
}

#[test]
fn holes_are_found_where_they_are() {
    let repo = repository(&Store::memory());
    let session = repo.begin(options("test")).unwrap();
    let mut tree = session.tree(Order::Any);
    let mut bytes = vec![0; 6 << 20];
    bytes[..100_000].copy_from_slice(&noise(100_000, 1));
    bytes[4 << 20..(4 << 20) + 70_000].copy_from_slice(&noise(70_000, 2));
    let data = [0..100_000, 4 << 20..(4 << 20) + 70_000];
    let content = Bytes { bytes: Arc::new(bytes.clone()), ranges: Some(data.to_vec()) };
    tree.file(file("sparse", bytes.len()), Box::new(content), C).unwrap();
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    let view = browser(&repo).view(&snapshot).unwrap();
    let reader = view.open(&view.get(b"sparse").unwrap().unwrap()).unwrap();
    let end = bytes.len() as u64;
    assert_eq!(reader.next_data(0).unwrap(), Some(0));
    assert_eq!(reader.next_hole(0).unwrap(), 100_000);
    assert_eq!(reader.next_data(100_000).unwrap(), Some(4 << 20));
    assert_eq!(reader.next_data((4 << 20) + 5).unwrap(), Some((4 << 20) + 5));
    assert_eq!(reader.next_hole(4 << 20).unwrap(), (4 << 20) + 70_000);
    assert_eq!(reader.next_data((4 << 20) + 70_000).unwrap(), None);
    assert_eq!(reader.next_hole(end).unwrap(), end);
    let mut found = Vec::new();
    reader.read_at(0, bytes.len() + 1, &mut found).unwrap();
    assert!(found == bytes);
}

#[test]
fn hard_links_are_counted() {
    let repo = repository(&Store::memory());
    let mut entries = wide();
    for n in 0..3 {
        let to = b"flat/file-00000".to_vec();
        entries.push(Entry { kind: EntryKind::Hardlink { to }, ..file(&format!("zz/{n}"), 0) });
    }
    let to = b"nowhere".to_vec();
    entries.push(Entry { kind: EntryKind::Hardlink { to }, ..file("zz/lost", 0) });
    let snapshot = commit(&repo, entries);
    let view = browser(&repo).view(&snapshot).unwrap();
    assert_eq!(view.links(b"flat/file-00000"), Some(4));
    assert_eq!(view.links(b"flat/file-00006"), Some(1));
    let second = view.holder(view.get(b"zz/2").unwrap().unwrap()).unwrap();
    assert_eq!(second.path, b"flat/file-00000");
    let lost = view.holder(view.get(b"zz/lost").unwrap().unwrap());
    assert_eq!(lost.map(|_| ()).unwrap_err().kind(), RepoErrorKind::Damaged);
}

/// The keys of all packs, those with content first.
fn packs(store: &Store) -> (Vec<String>, Vec<String>) {
    let all = store.list("packs/").unwrap().into_iter().map(|object| object.key);
    all.partition(|key| store.read(key).unwrap()[9] == 1)
}

fn damage(store: &Store, key: &str, at: usize) {
    let mut object = store.read(key).unwrap().to_vec();
    object[at] ^= 1;
    store.delete(key).unwrap();
    store.create(key, object.into()).unwrap();
}

#[test]
fn a_damaged_chunk_costs_its_range_alone() {
    let store = Store::memory();
    let repo = repository(&store);
    let bytes = noise(12 << 20, 1);
    let all = files(&[("large", C, bytes.clone())]);
    let snapshot = backup(&repo, &all).unwrap();
    let (data, _) = packs(&store);
    damage(&store, &data[0], 100_000);
    let view = browser(&open(&store)).view(&snapshot).unwrap();
    let reader = view.open(&view.get(b"large").unwrap().unwrap()).unwrap();
    let (mut right, mut wrong) = (0, 0);
    for (at, block) in bytes.chunks(4096).enumerate() {
        let mut found = Vec::new();
        match reader.read_at(at as u64 * 4096, block.len(), &mut found) {
            Ok(()) => {
                assert!(found == block);
                right += block.len();
            }
            Err(error) => {
                assert_eq!(error.kind(), RepoErrorKind::Damaged);
                assert!(error.to_string().contains(&data[0]), "{error}");
                wrong += block.len();
            }
        }
    }
    assert!(right > 7 << 20, "{right}");
    assert!((1..=(4 << 20) + 8192).contains(&wrong), "{wrong}");
}

#[test]
fn a_damaged_node_costs_its_entries_alone() {
    let store = Store::memory();
    let repo = repository(&store);
    let entries = wide();
    let snapshot = commit(&repo, entries.clone());
    let all = {
        let view = browser(&repo).view(&snapshot).unwrap();
        names(view.children(b"flat", None))
    };
    let (_, metadata) = packs(&store);
    let whole = store.read(&metadata[0]).unwrap();
    let mut costs = BTreeSet::new();
    for at in (200..whole.len() - 2000).step_by(whole.len() / 9) {
        damage(&store, &metadata[0], at);
        let view = browser(&open(&store)).view(&snapshot).unwrap();
        let mut errors = 0;
        let mut found = Vec::new();
        for child in view.children(b"flat", None) {
            match child {
                Ok(child) => found.push(child.display_path()),
                Err(error) => {
                    assert_eq!(error.kind(), RepoErrorKind::Damaged);
                    errors += 1;
                }
            }
        }
        assert!(errors <= 1, "{errors}");
        assert!(errors == 1 || found == all);
        assert!(found.iter().all(|name| all.contains(name)));
        for entry in &entries {
            let listed = found.contains(&entry.display_path());
            match view.get(&entry.path) {
                Err(error) if listed => panic!("{error}"),
                Ok(found) => assert_eq!(*found.unwrap(), *entry),
                Err(error) => assert_eq!(error.kind(), RepoErrorKind::Damaged),
            }
        }
        costs.insert(all.len() - found.len());
        store.delete(&metadata[0]).unwrap();
        store.create(&metadata[0], whole.clone()).unwrap();
    }
    assert!(costs.iter().any(|cost| (1..all.len()).contains(cost)), "{costs:?}");
}

#[test]
fn maintenance_may_move_what_is_open() {
    let store = Store::memory();
    let repo = repository(&store);
    // Half of each pack goes with the first snapshot, so that the rest is moved.
    let mut both = Files::new();
    for n in 0..40 {
        let side = if n % 2 == 0 { "gone" } else { "kept" };
        both.extend(files(&[(&format!("{side}/{n}"), C, noise(200_000, n))]));
    }
    let first = backup(&repo, &both).unwrap();
    both.retain(|path, _| path.starts_with("kept"));
    let second = backup(&repo, &both).unwrap();
    let view = browser(&open(&store)).view(&second).unwrap();
    let open: Vec<_> = both
        .iter()
        .map(|(path, (_, bytes))| {
            let entry = view.get(path.as_bytes()).unwrap().unwrap();
            (view.open(&entry).unwrap(), bytes.clone())
        })
        .collect();
    let before = packs(&store).0;
    repo.forget(&first.id).unwrap();
    let options =
        MaintenanceOptions { give_up_after: Duration::ZERO, ..MaintenanceOptions::default() };
    repo.maintain(&options, &Arc::default()).unwrap();
    repo.maintain(&options, &Arc::default()).unwrap();
    let after = packs(&store).0;
    assert!(before.iter().all(|pack| !after.contains(pack)), "{before:?} {after:?}");
    for (reader, bytes) in open {
        let mut found = Vec::new();
        reader.read_at(0, bytes.len(), &mut found).unwrap();
        assert!(found == *bytes);
    }
}
