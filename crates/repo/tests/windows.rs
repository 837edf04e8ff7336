//! Restores that have little of their plan in memory at a time do what others do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use backstay_repo::*;
use backstay_store::Bytes;
use support::*;

const PAGE: usize = 8192;

/// A database of two regions that changed page by page, and files of every other kind.
fn content(round: u64) -> Files {
    use Chunking::{ContentDefined as C, Grid as G};
    let mut database = noise((66 << 20) + 3 * PAGE, 5);
    for change in 1..=round {
        for number in 0..40_usize {
            let at = (number * 211 + change as usize * 37) % (database.len() / PAGE) * PAGE;
            database[at..at + PAGE].copy_from_slice(&noise(PAGE, change * 1000 + number as u64));
        }
    }
    files(&[
        ("base/1/16384", G, database),
        ("base/1/16385", G, [noise(2 << 20, 7), vec![0; 70 << 20], noise(1 << 20, 8)].concat()),
        ("base/1/empty", G, Vec::new()),
        ("base/1/zeros", G, vec![0; 66 << 20]),
        ("large", C, noise(68 << 20, 9)),
        ("small", C, noise(300, 10)),
        ("middle", C, noise(30_000, 11)),
    ])
}

fn made(store: &Store) -> (Repository, Snapshot, Files) {
    let repo = repository(store);
    let mut parent: Option<Snapshot> = None;
    for round in 0..3 {
        let options = SessionOptions { parent: parent.clone(), workers: 2, ..options("test") };
        parent = Some(backup_as(&repo, &content(round), options).unwrap());
    }
    (repo, parent.unwrap(), content(2))
}

fn restored(repo: &Repository, snapshot: &Snapshot, options: RestoreOptions) -> RestoreReport {
    repo.restore(snapshot, options, &Progress::default()).unwrap()
}

/// All files below a folder.
fn below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn a_restore_is_the_same_in_windows_of_any_size() {
    let store = Store::memory();
    let (repo, snapshot, files) = made(&store);
    let mut whole: Option<RestoreReport> = None;
    for window in [0, 1, 7, 300] {
        let folder = tempfile::tempdir().unwrap();
        let options = RestoreOptions { window, ..RestoreOptions::new(folder.path()) };
        let report = restored(&repo, &snapshot, options);
        assert_restored(&files, folder.path());
        let whole = whole.get_or_insert_with(|| report.clone());
        assert_eq!(report.bytes_written, whole.bytes_written, "{window}");
        assert_eq!((report.files, report.bytes), (whole.files, whole.bytes), "{window}");

        // Some of it is lost again, and brought back.
        let path = folder.path().join("base/1/16384");
        let mut database = std::fs::read(&path).unwrap();
        database[5 * PAGE..9 * PAGE].fill(1);
        std::fs::write(&path, &database[..database.len() - PAGE]).unwrap();
        std::fs::write(folder.path().join("base/1/16385"), noise(4 << 20, 99)).unwrap();
        let delta = RestoreOptions { window, delta: true, ..RestoreOptions::new(folder.path()) };
        let report = restored(&repo, &snapshot, delta);
        assert_restored(&files, folder.path());
        assert!(report.bytes_written < 8 << 20 && report.bytes_kept > 100 << 20, "{report:?}");
    }
}

#[test]
fn damage_costs_the_same_in_windows_of_any_size() {
    let store = Store::memory();
    let (_, snapshot, _) = made(&store);
    let packs: Vec<String> = store
        .list("packs/")
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .filter(|key| store.read_range(key, 9..10).unwrap()[0] != 2)
        .collect();
    let key = &packs[packs.len() / 2];
    let mut body = store.read(key).unwrap().to_vec();
    for byte in body.iter_mut().skip(200).step_by(4096) {
        *byte ^= 1;
    }
    store.delete(key).unwrap();
    store.create(key, Bytes::from(body)).unwrap();
    let mut whole = None;
    for window in [0, 1, 300] {
        let repo = open(&store);
        let folder = tempfile::tempdir().unwrap();
        let options =
            RestoreOptions { window, keep_going: true, ..RestoreOptions::new(folder.path()) };
        let report = restored(&repo, &snapshot, options);
        assert!(!report.problems.is_empty());
        let paths: Vec<String> = report.problems.iter().map(|p| p.path.clone()).collect();
        let found = (paths, report.bytes, below(folder.path()));
        let whole = whole.get_or_insert_with(|| found.clone());
        assert!(found == *whole, "{window}");
        let strict = tempfile::tempdir().unwrap();
        let options = RestoreOptions { window, ..RestoreOptions::new(strict.path()) };
        assert!(repo.restore(&snapshot, options, &Progress::default()).is_err());
    }
}
