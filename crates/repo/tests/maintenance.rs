//! Forgetting and maintenance: space comes back, and nothing that anybody needs goes, whoever else is
//! at work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use backstay_repo::*;
use backstay_store as store;
use support::*;

use Chunking::{ContentDefined as C, Grid as G};

fn maintain(repo: &Repository) -> MaintenanceReport {
    repo.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap()
}

/// Whoever is silent at all is given up.
fn impatient() -> MaintenanceOptions {
    MaintenanceOptions { give_up_after: Duration::ZERO, ..MaintenanceOptions::default() }
}

fn keys(store: &Store, prefix: &str) -> BTreeSet<String> {
    store.list(prefix).unwrap().into_iter().map(|object| object.key).collect()
}

fn content_of(repo: &Repository, snapshot: &Snapshot, path: &str) -> Vec<u8> {
    let tree = repo.tree(snapshot).unwrap();
    let entry = tree.get(path.as_bytes()).unwrap().unwrap();
    let mut content = Vec::new();
    tree.read_file(&entry, &mut content).unwrap();
    content
}

fn assert_whole(repo: &Repository, snapshot: &Snapshot, files: &Files) {
    for (path, (_, content)) in files {
        assert!(content_of(repo, snapshot, path) == **content, "{path}");
    }
}

fn assert_good(store: &Store) {
    let report = verify(&open(store), Level::Thorough);
    assert_eq!(report.damages, []);
}

fn with(seed: u64, shared: bool) -> Files {
    let mut all = files(&[
        ("own/chunked", C, noise(300_000, seed)),
        ("own/grid", G, noise(1 << 20, seed + 1)),
        ("own/grouped", C, noise(20_000, seed + 2)),
    ]);
    if shared {
        all.extend(files(&[
            ("shared/chunked", C, noise(400_000, 7)),
            ("shared/grid", G, noise(2 << 20, 8)),
        ]));
    }
    all
}

#[test]
fn what_only_a_forgotten_snapshot_needed_goes_and_the_rest_stays() {
    let store = Store::memory();
    let repo = repository(&store);
    let all: Vec<Files> = [10, 20, 30].map(|seed| with(seed, true)).into();
    let snapshots: Vec<Snapshot> = all.iter().map(|files| backup(&repo, files).unwrap()).collect();
    let before = repo.usage().unwrap().packs.bytes;
    assert_eq!(maintain(&repo).packs_removed, 0);

    assert_eq!(repo.forget(&snapshots[1].id[..9]).unwrap(), snapshots[1].id);
    assert_eq!(repo.snapshots().unwrap().len(), 2);
    let missing = repo.find_snapshot(&snapshots[1].id).unwrap_err();
    assert_eq!(missing.kind(), RepoErrorKind::NotFound);
    assert_eq!(repo.forget(&snapshots[1].id).unwrap_err().kind(), RepoErrorKind::NotFound);
    // Somebody else's handle sees it at once too.
    assert_eq!(open(&store).snapshots().unwrap().len(), 2);

    let planned = {
        let options = MaintenanceOptions { dry_run: true, ..MaintenanceOptions::default() };
        let there = keys(&store, "");
        let planned = repo.maintain(&options, &Arc::default()).unwrap();
        assert_eq!(keys(&store, ""), there);
        planned
    };
    let report = maintain(&repo);
    assert!(report.packs_removed >= 2, "{report:?}");
    assert_eq!(
        (planned.packs_removed, planned.bytes_removed),
        (report.packs_removed, report.bytes_removed)
    );
    assert_eq!(report.snapshots_removed, 1);
    let after = repo.usage().unwrap().packs.bytes;
    // Its own 1.3 MB are gone, and little else was added.
    assert!(after + 1_300_000 < before, "{before} {after}");
    for which in [0, 2] {
        assert_whole(&repo, &snapshots[which], &all[which]);
        assert_whole(&open(&store), &snapshots[which], &all[which]);
    }
    assert_good(&store);
    // Nothing is left to do, and the same content is stored again.
    let again = maintain(&repo);
    assert_eq!((again.packs_removed, again.packs_repacked), (0, 0), "{again:?}");
    let anew = backup(&repo, &all[1]).unwrap();
    assert_whole(&open(&store), &anew, &all[1]);
    assert_good(&store);
}

#[test]
fn packs_that_are_mostly_garbage_are_rewritten_within_a_bound() {
    let store = Store::memory();
    let repo = repository(&store);
    let mut first = Files::new();
    for n in 0..40 {
        first.insert(format!("f/{n:02}"), (C, Arc::new(noise(100_000, 1000 + n))));
    }
    let kept: Files = first
        .iter()
        .filter(|(path, _)| path.ends_with('3'))
        .map(|(p, f)| (p.clone(), f.clone()))
        .collect();
    let old = backup(&repo, &first).unwrap();
    let new = backup(&repo, &kept).unwrap();
    repo.forget(&old.id).unwrap();
    let before = repo.usage().unwrap().packs.bytes;
    let bounded = MaintenanceOptions { max_repack: 1000, ..MaintenanceOptions::default() };
    let report = repo.maintain(&bounded, &Arc::default()).unwrap();
    assert!(report.bytes_repacked <= 1000, "{report:?}");
    assert_eq!(report.packs_repacked, 0, "{report:?}");
    let report = maintain(&repo);
    assert!(report.packs_repacked >= 1, "{report:?}");
    let after = repo.usage().unwrap().packs.bytes;
    assert!(after < 600_000, "{before} {after}");
    assert_whole(&open(&store), &new, &kept);
    assert_good(&store);
    let again = maintain(&repo);
    assert_eq!((again.packs_removed, again.packs_repacked), (0, 0), "{again:?}");
}

#[test]
fn many_segments_become_one_and_the_index_says_the_same() {
    let store = Store::memory();
    let repo = repository(&store);
    let all: Vec<Files> = (0..20).map(|n| files(&[("f", C, noise(70_000, 500 + n))])).collect();
    let snapshots: Vec<Snapshot> = all.iter().map(|files| backup(&repo, files).unwrap()).collect();
    assert_eq!(keys(&store, "index/").len(), 20);
    let report = maintain(&repo);
    assert_eq!((report.segments_before >= 20, report.segments_after), (true, 1), "{report:?}");
    // One segment and its head.
    assert_eq!(keys(&store, "index/").len(), 2);
    // What is not ours is nobody's to remove.
    store.create("index/notes", bytes::Bytes::from_static(b"of somebody")).unwrap();
    repo.forget(&snapshots[0].id).unwrap();
    maintain(&repo);
    assert!(keys(&store, "index/").contains("index/notes"));
    let (snapshots, all) = (&snapshots[1..], &all[1..]);
    let fresh = open(&store);
    for (snapshot, files) in snapshots.iter().zip(all) {
        assert_whole(&fresh, snapshot, files);
    }
    let again = backup(&fresh, &all[3]).unwrap();
    assert_eq!(again.stats.new_bytes, 0, "{:?}", again.stats);
    assert_good(&store);
}

#[test]
fn a_writer_that_began_before_keeps_what_it_refers_to() {
    let store = Store::memory();
    let repo = repository(&store);
    let files = with(40, false);
    let old = backup(&repo, &files).unwrap();
    // Another host has begun, and knows an index in which all of it is there.
    let other = open(&store);
    let session = other.begin(options("slow")).unwrap();
    repo.forget(&old.id).unwrap();
    let report = maintain(&repo);
    assert_eq!(report.packs_removed, 0, "{report:?}");
    assert!(report.packs_waiting >= 1, "{report:?}");
    assert_eq!(report.waiting_for.len(), 1);
    assert_eq!(report.waiting_for[0].source, "slow");
    // A third one begins after that: for it the condemned packs are not there.
    let third = open(&store);
    let anew = backup(&third, &files).unwrap();
    assert!(anew.stats.new_bytes > 1_300_000, "{:?}", anew.stats);

    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in &files {
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
    }
    let root = tree.finish().unwrap();
    let slow = session.commit(root, serde_json::Value::Null).unwrap();
    assert_eq!(slow.stats.new_bytes, 0, "it refers to what is condemned");
    let report = maintain(&repo);
    assert_eq!(report.waiting_for, []);
    for snapshot in [&slow, &anew] {
        assert_whole(&open(&store), snapshot, &files);
    }
    assert_good(&store);
    // With all of them gone, all of it goes.
    for snapshot in [&slow, &anew] {
        repo.forget(&snapshot.id).unwrap();
    }
    maintain(&repo);
    assert_eq!(repo.usage().unwrap().packs.objects, 0);
    assert_good(&store);
}

#[test]
fn a_writer_that_was_given_up_is_told_so_and_loses_only_its_work() {
    let store = Store::memory();
    let repo = repository(&store);
    let files = with(50, true);
    let old = backup(&repo, &files).unwrap();
    let other = open(&store);
    let session = other.begin(options("asleep")).unwrap();
    repo.forget(&old.id).unwrap();
    let report = repo.maintain(&impatient(), &Arc::default()).unwrap();
    assert_eq!(report.given_up.len(), 1, "{report:?}");
    assert!(report.packs_removed >= 2, "{report:?}");

    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in &files {
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
    }
    let root = tree.finish().unwrap();
    let error = session.commit(root, serde_json::Value::Null).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Busy, "{error}");
    assert!(repo.snapshots().unwrap().is_empty());
    let again = backup(&other, &files).unwrap();
    assert_whole(&open(&store), &again, &files);
    assert_good(&store);
    maintain(&repo);
    assert_whole(&open(&store), &again, &files);
}

#[test]
fn a_reader_with_an_old_index_finds_what_was_moved() {
    let store = Store::memory();
    let repo = repository(&store);
    let mut first = Files::new();
    for n in 0..30 {
        first.insert(format!("f/{n:02}"), (C, Arc::new(noise(100_000, 2000 + n))));
    }
    let kept: Files = first
        .iter()
        .filter(|(path, _)| path.ends_with('5'))
        .map(|(p, f)| (p.clone(), f.clone()))
        .collect();
    let old = backup(&repo, &first).unwrap();
    let new = backup(&repo, &kept).unwrap();
    let reader = open(&store);
    assert_whole(&reader, &new, &kept);
    repo.forget(&old.id).unwrap();
    assert!(maintain(&repo).packs_repacked > 0);
    assert_whole(&reader, &new, &kept);
    let to = tempfile::tempdir().unwrap();
    restore(&reader, &new, to.path());
    assert_restored(&kept, to.path());
}

#[test]
fn nothing_is_removed_while_something_cannot_be_seen() {
    let whole = || {
        let store = Store::memory();
        let repo = repository(&store);
        let first = backup(&repo, &with(60, true)).unwrap();
        let second = backup(&repo, &with(61, true)).unwrap();
        repo.forget(&first.id).unwrap();
        (store, second)
    };
    let metadata_pack = |store: &Store, second: &Snapshot| {
        let mine = format!("/{}/", second.id);
        let packs = keys(store, "packs/").into_iter().filter(|key| key.contains(&mine));
        packs.into_iter().find(|key| store.read(key).unwrap()[9] == 2).unwrap()
    };
    let data_pack = |store: &Store, second: &Snapshot| {
        let mine = format!("/{}/", second.id);
        let packs = keys(store, "packs/").into_iter().filter(|key| key.contains(&mine));
        packs.into_iter().find(|key| store.read(key).unwrap()[9] == 1).unwrap()
    };
    let snapshot_object =
        |_: &Store, second: &Snapshot| format!("snapshots/{}/{}", second.writer, second.id);
    let segment = |store: &Store, second: &Snapshot| {
        keys(store, "index/").into_iter().find(|key| key.contains(&second.id)).unwrap()
    };
    type Which<'a> = &'a dyn Fn(&Store, &Snapshot) -> String;
    let which: [(&str, Which<'_>, bool); 4] = [
        ("a snapshot", &snapshot_object, true),
        ("a segment", &segment, true),
        ("a node", &metadata_pack, true),
        ("content", &data_pack, false),
    ];
    for (what, which, flipped) in which {
        for missing in [true, false] {
            // A flipped byte of content is not seen without reading all of it, and needs not be:
            // the pack is still there, and so is what can be had of it.
            if !missing && !flipped || missing && what == "a snapshot" {
                continue;
            }
            let (store, second) = whole();
            let key = which(&store, &second);
            let object = store.read(&key).unwrap();
            store.delete(&key).unwrap();
            if !missing {
                let mut altered = object.to_vec();
                for at in (170..altered.len()).step_by(97) {
                    altered[at] ^= 1;
                }
                store.create(&key, altered.into()).unwrap();
            }
            if missing && what == "a segment" {
                // Then its chunks are in no pack of the index.
            }
            let there = keys(&store, "packs/");
            let repo = open(&store);
            let error = repo.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap_err();
            assert_eq!(error.kind(), RepoErrorKind::Damaged, "{what}: {error}");
            assert!(error.to_string().contains("nothing is removed"), "{what}: {error}");
            assert!(error.hint().is_some(), "{what}: {error}");
            assert_eq!(keys(&store, "packs/"), there, "{what}");
            // Given up, it is in nobody's way.
            if what != "a segment" || missing {
                repo.forget(&second.id[..10]).unwrap();
                maintain(&open(&store));
                assert_eq!(open(&store).usage().unwrap().packs.objects, 0, "{what}");
            }
        }
    }
}

#[test]
fn a_tombstone_of_somebody_without_the_key_hides_nothing() {
    let (store, foreign) = (Store::memory(), Store::memory());
    let repo = repository(&store);
    let stranger = repository(&foreign);
    let snapshot = backup(&repo, &with(70, false)).unwrap();
    let theirs = backup(&stranger, &with(70, false)).unwrap();
    stranger.forget(&theirs.id).unwrap();
    let forged = foreign.read(&format!("tombstones/{}/{}", theirs.writer, theirs.id)).unwrap();
    let key = format!("tombstones/{}/{}", snapshot.writer, snapshot.id);
    for body in [forged, bytes::Bytes::from_static(b"forgotten")] {
        store.create(&key, body).unwrap();
        assert_eq!(repo.snapshots().unwrap().len(), 1);
        maintain(&repo);
        assert_whole(&open(&store), &snapshot, &with(70, false));
        store.delete(&key).unwrap();
    }
    // Nor does one that was made for another snapshot of the same repository.
    let other = backup(&repo, &with(71, false)).unwrap();
    repo.forget(&other.id).unwrap();
    let own = store.read(&format!("tombstones/{}/{}", other.writer, other.id)).unwrap();
    store.create(&key, own).unwrap();
    assert_eq!(repo.snapshots().unwrap().len(), 1);
}

#[test]
fn several_runs_at_once_end_as_one_would() {
    let store = Store::memory();
    let repo = repository(&store);
    let mut kept = Vec::new();
    for n in 0..8 {
        let files = with(80 + n * 10, true);
        let snapshot = backup(&repo, &files).unwrap();
        if n % 2 == 0 {
            repo.forget(&snapshot.id).unwrap();
        } else {
            kept.push((snapshot, files));
        }
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let repo = open(&store);
                for _ in 0..3 {
                    repo.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
                }
            });
        }
    });
    for (snapshot, files) in &kept {
        assert_whole(&open(&store), snapshot, files);
    }
    assert_good(&store);
    maintain(&repo);
    let last = maintain(&repo);
    assert_eq!((last.packs_removed, last.packs_repacked), (0, 0), "{last:?}");
}

#[test]
fn a_name_alone_ends_no_session_and_begins_no_run() {
    let junk = || bytes::Bytes::from_static(b"junk");
    let store = Store::memory();
    let repo = repository(&store);
    let files = with(90, true);
    let other = open(&store);
    let session = other.begin(options("asleep")).unwrap();
    let mut tree = session.tree(Order::Any);
    for (path, (chunking, bytes)) in &files {
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
    }
    let root = tree.finish().unwrap();
    let name = keys(&store, "sessions/").pop_first().unwrap();
    let name = name.strip_prefix("sessions/").unwrap().to_owned();
    // Somebody without a key creates what looks like an end of it, and other names.
    store.create(&format!("tombstones/{name}"), junk()).unwrap();
    store.create("gc/99999999/x", junk()).unwrap();
    store.create("gc/x/condemned", junk()).unwrap();
    let report = maintain(&repo);
    assert_eq!((report.packs_removed, report.given_up.len()), (0, 0), "{report:?}");
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    assert_whole(&open(&store), &snapshot, &files);
    assert_good(&store);
    // And what lies in the place of a tombstone keeps nobody from forgetting.
    assert_eq!(repo.snapshots().unwrap().len(), 1);
    repo.forget(&snapshot.id).unwrap();
    assert!(repo.snapshots().unwrap().is_empty());
    maintain(&repo);
    assert_eq!(repo.usage().unwrap().packs.objects, 0);
}

#[test]
fn a_run_that_cannot_be_read_is_no_reason_to_trust_what_it_condemned() {
    let store = Store::memory();
    let repo = repository(&store);
    let files = with(95, false);
    let first = backup(&repo, &files).unwrap();
    store.create("gc/00000001/condemned", bytes::Bytes::from_static(b"rotten")).unwrap();
    // A writer stores everything anew, and nothing is removed.
    let second = backup(&open(&store), &files).unwrap();
    assert!(second.stats.new_bytes > 1_300_000, "{:?}", second.stats);
    repo.forget(&first.id).unwrap();
    let there = keys(&store, "packs/");
    let error = repo.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Damaged);
    assert!(error.hint().unwrap().contains("gc/00000001/"), "{error}");
    assert_eq!(keys(&store, "packs/"), there);
    store.delete("gc/00000001/condemned").unwrap();
    maintain(&repo);
    assert_whole(&open(&store), &second, &files);
    assert_good(&store);
}

#[test]
fn a_damaged_tombstone_of_a_session_is_forgotten_like_a_damaged_snapshot() {
    let store = Store::memory();
    let repo = repository(&store);
    let session = open(&store).begin(options("asleep")).unwrap();
    repo.maintain(&impatient(), &Arc::default()).unwrap();
    drop(session);
    let key = keys(&store, "snapshots/").pop_first().unwrap();
    let mut object = store.read(&key).unwrap().to_vec();
    object[170] ^= 1;
    store.delete(&key).unwrap();
    store.create(&key, object.into()).unwrap();
    let error = repo.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap_err();
    let id = key.rsplit('/').next().unwrap();
    assert!(error.hint().unwrap().contains(&id[..8]), "{error}");
    repo.forget(id).unwrap();
    maintain(&repo);
    // Its name stays taken.
    assert!(keys(&store, "snapshots/").contains(&key));
}

#[test]
fn of_two_copies_the_one_that_is_right_is_kept_and_read() {
    let store = Store::memory();
    repository(&store);
    let files = with(97, true);
    // Two hosts at once: neither knows what the other stores.
    let hosts = [open(&store), open(&store)];
    let sessions = hosts.each_ref().map(|host| host.begin(options("both")).unwrap());
    let snapshots = sessions.map(|session| {
        let mut tree = session.tree(Order::Any);
        for (path, (chunking, bytes)) in &files {
            let content = Bytes { bytes: bytes.clone(), ranges: None };
            tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
        }
        let root = tree.finish().unwrap();
        session.commit(root, serde_json::Value::Null).unwrap()
    });
    let whole: Vec<(String, bytes::Bytes)> = keys(&store, "packs/")
        .into_iter()
        .map(|key| (key.clone(), store.read(&key).unwrap()))
        .collect();
    for rotten in &snapshots {
        let copy = Store::memory();
        for key in keys(&store, "") {
            let mut object = store.read(&key).unwrap().to_vec();
            // All records, and neither header nor footer.
            if whole.iter().any(|(pack, _)| *pack == key) && key.contains(&rotten.id) {
                let end = object.len() / 2;
                object[170..end].iter_mut().step_by(61).for_each(|byte| *byte ^= 1);
            }
            copy.create(&key, object.into()).unwrap();
        }
        for snapshot in &snapshots {
            assert_whole(&open(&copy), snapshot, &files);
            let to = tempfile::tempdir().unwrap();
            restore(&open(&copy), snapshot, to.path());
            assert_restored(&files, to.path());
        }
        for _ in 0..3 {
            maintain(&open(&copy));
        }
        for snapshot in &snapshots {
            assert_whole(&open(&copy), snapshot, &files);
        }
    }
    // With both right, one of them goes.
    let before = keys(&store, "packs/").len();
    maintain(&open(&store));
    assert!(keys(&store, "packs/").len() < before);
    assert_good(&store);
}

/// Twenty backups of different files whose segments are one run.
fn merged(repo: &Repository, chunks: u64) -> (Vec<Snapshot>, Vec<Files>) {
    let file = |n: u64, chunk: u64| {
        (format!("f{chunk:02}"), (C, Arc::new(noise(66_000, 700 + n * 32 + chunk))))
    };
    let all: Vec<Files> =
        (0..20).map(|n| (0..chunks).map(|chunk| file(n, chunk)).collect()).collect();
    let snapshots = all.iter().map(|files| backup(repo, files).unwrap()).collect();
    assert_eq!(maintain(repo).segments_after, 1);
    (snapshots, all)
}

#[test]
fn a_damaged_copy_of_a_run_is_found_and_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::memory();
    let (snapshots, all) = merged(&repository(&store), 1);
    let open = || {
        let options = OpenOptions { cache: Some(folder.path().to_owned()) };
        Repository::open(store.clone(), Environment::system(), &key(), options).unwrap()
    };
    let read_all = |context: &str| {
        let repo = open();
        for (snapshot, files) in snapshots.iter().zip(&all) {
            assert_whole(&repo, snapshot, files);
        }
        let again = backup(&repo, &all[0]).unwrap();
        assert_eq!(again.stats.new_bytes, 0, "{context}: {:?}", again.stats);
    };
    read_all("filling");
    let key = keys(&store, "index/1/").pop_first().unwrap();
    let whole = store.read(&key).unwrap();
    let cached = walk(folder.path());
    let path = cached.iter().find(|path| path.ends_with(key.replace('/', "-"))).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), whole);
    let mut others: Vec<Vec<u8>> = (0..whole.len())
        .step_by(whole.len() / 9)
        .chain([170, whole.len() - 1])
        .map(|at| {
            let mut altered = whole.to_vec();
            altered[at] ^= 0x20;
            altered
        })
        .collect();
    others.push(vec![0; whole.len()]);
    others.push(whole[..whole.len() / 2].to_vec());
    others.push(Vec::new());
    others.push(store.read(&keys(&store, "index/heads/").pop_first().unwrap()).unwrap().to_vec());
    for (number, other) in others.iter().enumerate() {
        std::fs::write(path, other).unwrap();
        read_all(&number.to_string());
        assert_eq!(std::fs::read(path).unwrap(), whole, "{number}");
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn what_a_damaged_run_lists_is_stored_again_and_nothing_is_removed_meanwhile() {
    for from_the_end in [1, 600, usize::MAX] {
        let store = Store::memory();
        // 300 entries: 16 blocks that share a hash, and one of twelve.
        let (snapshots, all) = merged(&repository(&store), 14);
        let key = keys(&store, "index/1/").pop_first().unwrap();
        let mut object = store.read(&key).unwrap().to_vec();
        let at = object.len().saturating_sub(from_the_end).max(165);
        object[at] ^= 1;
        store.delete(&key).unwrap();
        store.create(&key, object.into()).unwrap();
        let repo = open(&store);
        let report = repo.verify(VerifyOptions::default(), &Progress::default()).unwrap();
        assert!(report.damages.iter().any(|damage| damage.object == key), "{report:?}");
        repo.forget(&snapshots[19].id).unwrap();
        let packs = keys(&store, "packs/");
        let error = repo.maintain(&impatient(), &Arc::default()).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        assert_eq!(keys(&store, "packs/"), packs, "{error}");
        let (mut lost, mut found) = (0, 0);
        for (snapshot, files) in snapshots.iter().zip(&all).take(19) {
            let again = backup(&repo, files).unwrap();
            if again.stats.new_bytes > 0 {
                lost += 1
            } else {
                found += 1
            }
            assert_whole(&open(&store), &again, files);
            assert_whole(&open(&store), snapshot, files);
        }
        assert!(lost > 0, "{at}");
        // The smallest block, the others, or all of it.
        assert!(from_the_end != 1 || found > 0, "{lost} {found}");
        assert!(from_the_end != usize::MAX || found == 0, "{lost} {found}");
    }
}

#[test]
fn nothing_of_an_archive_goes_while_a_session_is_at_work() {
    let store = Store::memory();
    let repo = repository(&store);
    let archive = repo.archive(7);
    let names = ["000000010000000000000003", "000000010000000000000004"];
    for name in names {
        archive.push(name, &noise(5000, 1)).unwrap();
    }
    let kept = backup(&repo, &files(&[("a", C, noise(100, 1))])).unwrap();
    let first = |files: &[ArchivedFile], snapshots: &[Snapshot]| -> Result<Vec<String>> {
        assert_eq!(files.len(), 2);
        assert_eq!(snapshots.iter().map(|s| &s.id).collect::<Vec<_>>(), [&kept.id]);
        // A name that is not there is none that goes.
        Ok(vec![names[0].to_owned(), "000000010000000000000009".to_owned()])
    };
    let session = repo.begin(options("at work")).unwrap();
    let waiting = archive.expire(false, first, &Arc::default()).unwrap();
    assert_eq!((waiting.names.len(), waiting.waiting_for), (0, 1));
    assert_eq!(archive.list(None).unwrap().len(), 2);
    let dry = archive.expire(true, first, &Arc::default()).unwrap();
    assert_eq!((dry.names.as_slice(), dry.waiting_for), (&[names[0].to_owned()][..], 1));
    assert_eq!(archive.list(None).unwrap().len(), 2);
    drop(session);
    let given_up = repo.maintain(&impatient(), &Arc::default()).unwrap();
    assert_eq!(given_up.given_up.len(), 1);
    let gone = archive.expire(false, first, &Arc::default()).unwrap();
    assert_eq!(gone.names, [names[0]]);
    assert!(gone.bytes > 4000);
    let left = archive.list(None).unwrap();
    assert_eq!(left.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), [names[1]]);
    assert!(verify(&repo, Level::Thorough).damages.is_empty());
    // One who chooses badly, or not at all, removes nothing.
    let refuse = |_: &[ArchivedFile], _: &[Snapshot]| -> Result<Vec<String>> {
        Err(RepoError::new(RepoErrorKind::NotFound, "no"))
    };
    archive.expire(false, refuse, &Arc::default()).unwrap_err();
    // Nor does anybody while there is a snapshot that cannot be read.
    let key = keys(&store, "snapshots/").into_iter().find(|key| key.contains(&kept.id)).unwrap();
    let mut body = store.read(&key).unwrap().to_vec();
    let last = body.len() - 1;
    body[last] ^= 1;
    store.delete(&key).unwrap();
    store.create(&key, body.into()).unwrap();
    let all = |_: &[ArchivedFile], _: &[Snapshot]| -> Result<Vec<String>> {
        Ok(vec![names[1].to_owned()])
    };
    let error = archive.expire(false, all, &Arc::default()).unwrap_err();
    assert!(error.to_string().contains("nothing is removed while"), "{error}");
    assert_eq!(archive.list(None).unwrap().len(), 1);
}

/// A store that locks, and in which nobody may remove parts of uploads.
#[derive(Default)]
struct Locking {
    objects: store::Memory,
    unfinished: Arc<Mutex<Vec<store::Unfinished>>>,
    extended: Arc<Mutex<BTreeSet<String>>>,
}

impl store::Backend for Locking {
    fn url(&self) -> String {
        self.objects.url()
    }

    fn create(&self, key: &str, body: store::Bytes) -> store::Result<()> {
        self.objects.create(key, body)
    }

    fn read(&self, key: &str) -> store::Result<store::Bytes> {
        self.objects.read(key)
    }

    fn read_range(&self, key: &str, range: Range<u64>) -> store::Result<store::Bytes> {
        self.objects.read_range(key, range)
    }

    fn head(&self, key: &str) -> store::Result<store::ObjectMeta> {
        self.objects.head(key)
    }

    fn list(&self, prefix: &str) -> store::Result<Vec<store::ObjectMeta>> {
        self.objects.list(prefix)
    }

    fn delete(&self, key: &str) -> store::Result<()> {
        self.objects.delete(key)
    }

    fn abort_upload(&self, key: &str, _: &str) -> store::Result<()> {
        Err(store::StoreError::new(store::ErrorKind::Denied, "remove parts of", key))
    }

    fn unfinished_uploads(&self, _: &str) -> store::Result<Option<Vec<store::Unfinished>>> {
        Ok(Some(self.unfinished.lock().unwrap().clone()))
    }

    fn lock_policy(&self) -> Option<store::LockPolicy> {
        let mode = store::LockMode::Compliance;
        Some(store::LockPolicy { mode, period: Duration::ZERO, extend: true })
    }

    fn extend_lock(&self, key: &str, _: SystemTime) -> store::Result<()> {
        self.extended.lock().unwrap().insert(key.to_owned());
        Ok(())
    }
}

/// Locks that run out are found by nobody until somebody removes what they kept.
#[test]
fn locks_are_extended_whatever_else_fails() {
    let locking = Locking::default();
    let (unfinished, extended) = (locking.unfinished.clone(), locking.extended.clone());
    let store = Store::new(locking);
    let repo = repository(&store);
    let snapshot = backup(&repo, &mixture(1)).unwrap();
    let pack = keys(&store, "packs/").pop_first().unwrap();
    *unfinished.lock().unwrap() =
        vec![store::Unfinished { key: pack.clone(), upload: "one".into(), started: None }];
    assert_eq!(maintain(&repo).uploads_removed, 0, "it may not");
    assert!(extended.lock().unwrap().contains(&pack));

    // Nothing is removed while a snapshot cannot be read; what is needed stays locked all the same.
    extended.lock().unwrap().clear();
    let key = format!("snapshots/{}/{}", snapshot.writer, snapshot.id);
    store.delete(&key).unwrap();
    store.create(&key, store::Bytes::from_static(b"damage")).unwrap();
    let error = repo.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Damaged, "{error}");
    assert!(extended.lock().unwrap().contains(&pack));
}
