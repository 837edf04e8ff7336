//! Small files that are stored among others are found again by their content.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use backstay_repo::*;
use support::*;

fn many() -> Files {
    let all = (0..60).map(|n| {
        let bytes = noise(5000 + n * 100, 700 + n as u64);
        (format!("d/{n:03}"), (Chunking::ContentDefined, Arc::new(bytes)))
    });
    all.collect()
}

fn bodies(repository: &Repository, snapshot: &Snapshot) -> HashMap<String, Body> {
    let entries = repository.tree(snapshot).unwrap().iter().map(Result::unwrap);
    let files = entries.filter_map(|entry| match entry.kind {
        EntryKind::File(content) => Some((String::from_utf8(entry.path).unwrap(), content.body)),
        _ => None,
    });
    files.collect()
}

/// Reads all of `files` again, with the files of `parent` passed before.
fn again(repository: &Repository, parent: &Snapshot, files: &Files) -> Snapshot {
    let before: Vec<Entry> = repository.tree(parent).unwrap().iter().map(Result::unwrap).collect();
    let session = repository.begin(options("test")).unwrap();
    for entry in before {
        if let EntryKind::File(content) = entry.kind {
            session.remember(0, &content);
        }
    }
    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in files {
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
    }
    let root = tree.finish().unwrap();
    session.commit(root, serde_json::Value::Null).unwrap()
}

fn assert_whole(repository: &Repository, snapshot: &Snapshot, files: &Files) {
    let to = tempfile::tempdir().unwrap();
    assert!(restore(repository, snapshot, to.path()).problems.is_empty());
    assert_restored(files, to.path());
    assert_eq!(verify(repository, Level::Thorough).damages, []);
}

#[test]
fn what_is_read_again_and_has_not_changed_stays_where_it_is() {
    let store = Store::memory();
    let repository = repository(&store);
    let mut files = many();
    let first = backup(&repository, &files).unwrap();
    let before = bodies(&repository, &first);
    assert!(before.values().all(|body| matches!(body, Body::Member(_))));

    // One changes, keeping its length; one is renamed; one is copied to a place far away.
    let changed = noise(files["d/020"].1.len(), 9999);
    files.get_mut("d/020").unwrap().1 = Arc::new(changed.clone());
    let renamed = files.remove("d/030").unwrap();
    files.insert("d/030.old".into(), renamed);
    let copied = files["d/040"].clone();
    files.insert("z/copy".into(), copied);
    let second = again(&repository, &first, &files);
    let after = bodies(&repository, &second);
    for (path, body) in &after {
        let from = match path.as_str() {
            "d/030.old" => "d/030",
            "z/copy" => "d/040",
            other => other,
        };
        assert_eq!(*body == before[from], path != "d/020", "{path}");
    }
    // What is new is the file that changed, and nodes of the tree.
    let tree = 32 << 10;
    let new = second.stats.new_bytes;
    assert!(new >= changed.len() as u64 && new < changed.len() as u64 + tree, "{new}");
    assert_whole(&repository, &second, &files);

    // What the older snapshot stored is needed for as long as the newer one says so.
    repository.forget(&first.id).unwrap();
    for _ in 0..3 {
        repository.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
    }
    assert_whole(&open(&store), &second, &files);
}

#[test]
fn what_lies_in_a_pack_that_is_gone_is_stored_anew() {
    let store = Store::memory();
    let files = many();
    let first = backup(&repository(&store), &files).unwrap();
    for object in store.list("packs/").unwrap() {
        // Class 1: data.
        if store.read(&object.key).unwrap()[9] == 1 {
            store.delete(&object.key).unwrap();
        }
    }
    let repository = open(&store);
    let second = again(&repository, &first, &files);
    let bytes: usize = files.values().map(|(_, bytes)| bytes.len()).sum();
    assert!(second.stats.new_bytes >= bytes as u64, "{:?}", second.stats);
    let to = tempfile::tempdir().unwrap();
    assert!(restore(&repository, &second, to.path()).problems.is_empty());
    assert_restored(&files, to.path());
}

#[test]
fn a_change_of_one_of_many_tiny_files_does_not_store_its_neighbours_again() {
    let store = Store::memory();
    let repository = repository(&store);
    let mut files: Files = (0..400)
        .map(|n| {
            let bytes = noise(1000 + n, 40_000 + n as u64);
            (format!("spool/{n:03}"), (Chunking::ContentDefined, Arc::new(bytes)))
        })
        .collect();
    let smallest = noise(128, 1);
    files.insert("spool/000.tiny".into(), (Chunking::ContentDefined, smallest.clone().into()));
    let first = backup(&repository, &files).unwrap();
    let before = bodies(&repository, &first);
    for (path, body) in &before {
        match path.as_str() {
            "spool/000.tiny" => assert_eq!(*body, Body::Inline(smallest.clone())),
            _ => assert!(matches!(body, Body::Member(_)), "{path}"),
        }
    }

    // As much as that one file and the nodes on the way to it, of all that lies in one folder.
    let changed = noise(1200, 2);
    files.insert("spool/200".into(), (Chunking::ContentDefined, changed.clone().into()));
    let second = again(&repository, &first, &files);
    let new = second.stats.new_bytes;
    let nodes = 40 << 10;
    assert!((1200..1200 + nodes).contains(&new), "{new}");
    assert_whole(&repository, &second, &files);
}
