//! Copies from repository to repository.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use backstay_repo::*;
use support::*;

fn new(copied: Copied) -> Snapshot {
    match copied {
        Copied::New(made) => *made,
        Copied::There(_) => panic!("it was there"),
    }
}

fn small(seed: u64) -> Files {
    let mut files = mixture(seed);
    files.remove("c/regions");
    files.remove("b/text");
    files
}

#[test]
fn a_copy_is_the_original_and_says_so() {
    let (from, to) = (repository(&Store::memory()), repository(&Store::memory()));
    let files = small(1);
    let tagged = SessionOptions { tags: [("a".into(), "b".into())].into(), ..options("test") };
    let original = backup_as(&from, &files, tagged).unwrap();
    let copy_options = CopyOptions::default();
    let made = new(copy(&from, &original, &to, &copy_options).unwrap());
    let read = to.find_snapshot(&made.id).unwrap();
    let origin = Origin { repository: from.id(), snapshot: original.id.clone() };
    assert_eq!(read.origin, Some(origin));
    assert_eq!(read.moment(), original.moment());
    assert_eq!((read.time, read.finished), (original.time, original.finished));
    assert_eq!((&read.host, &read.tags), (&original.host, &original.tags));
    assert_eq!((read.kind, read.type_), (original.kind, original.type_));
    assert_eq!(read.stats.bytes, original.stats.bytes);
    let folder = tempfile::tempdir().unwrap();
    restore(&to, &made, folder.path());
    assert_restored(&files, folder.path());
    assert_eq!(verify(&to, Level::Thorough).damages, []);
    // Again, it is there; and back, it is there too.
    assert!(matches!(copy(&from, &original, &to, &copy_options).unwrap(), Copied::There(_)));
    assert!(matches!(copy(&to, &made, &from, &copy_options).unwrap(), Copied::There(_)));
    assert_eq!(to.snapshots().unwrap().len(), 1);
    // From a copy, a third one still knows the moment.
    let third = repository(&Store::memory());
    let again = new(copy(&to, &made, &third, &copy_options).unwrap());
    assert_eq!(again.moment(), original.moment());
    assert_eq!(again.origin.unwrap().snapshot, made.id);
    // And each entry is the same, metadata included.
    let entries = |repo: &Repository, snapshot: &Snapshot| -> Vec<(Vec<u8>, Metadata, u64)> {
        let entries = repo.tree(snapshot).unwrap().iter().map(Result::unwrap);
        entries.map(|entry| (entry.path.clone(), entry.meta.clone(), entry.size())).collect()
    };
    assert_eq!(entries(&from, &original), entries(&to, &made));
}

#[test]
fn a_later_backup_finds_what_was_copied() {
    let (from, to) = (repository(&Store::memory()), repository(&Store::memory()));
    let files = mixture(2);
    let original = backup(&from, &files).unwrap();
    let made = new(copy(&from, &original, &to, &CopyOptions::default()).unwrap());
    // The very same chunks, groups and nodes: nothing is new.
    let direct = backup(&to, &files).unwrap();
    assert_eq!((direct.root, direct.stats.new_chunks), (made.root, 0));
    assert_ne!(direct.root, original.root);
}

#[test]
fn what_is_unchanged_is_neither_read_nor_sent() {
    let store =
        backstay_store::Faulty::new(backstay_store::Memory::new(), Environment::system(), 1);
    let (from, to) = (repository(&Store::new(store.clone())), repository(&Store::memory()));
    let mut files = small(3);
    let first = backup(&from, &files).unwrap();
    new(copy(&from, &first, &to, &CopyOptions::default()).unwrap());
    files.insert("b/large".into(), (Chunking::ContentDefined, Arc::new(noise(3 << 20, 99))));
    files.remove("a/chunked");
    let second = backup(&from, &files).unwrap();
    let made = new(copy(&from, &second, &to, &CopyOptions::default()).unwrap());
    assert!(made.stats.bytes_read <= (3 << 20) + (400 << 10), "{:?}", made.stats);
    assert!(made.stats.files_unchanged as usize >= files.len() - 60, "{:?}", made.stats);
    let folder = tempfile::tempdir().unwrap();
    restore(&to, &made, folder.path());
    assert_restored(&files, folder.path());
    assert!(!folder.path().join("a/chunked").exists());
    assert_eq!(verify(&to, Level::Thorough).damages, []);
}

#[test]
fn a_copy_of_what_is_damaged_does_not_come_to_be() {
    let store = Store::memory();
    let (from, to) = (repository(&store), repository(&Store::memory()));
    let original = backup(&from, &small(4)).unwrap();
    let pack = store.list("packs/").unwrap().into_iter().max_by_key(|pack| pack.size).unwrap();
    store.delete(&pack.key).unwrap();
    let error = copy(&open(&store), &original, &to, &CopyOptions::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Damaged, "{error}");
    assert!(to.snapshots().unwrap().is_empty());
    let one = copy(&from, &original, &from, &CopyOptions::default()).unwrap_err();
    assert_eq!(one.kind(), RepoErrorKind::Usage);
}

#[test]
fn the_archive_is_copied_once() {
    let (from, to) = (repository(&Store::memory()), repository(&Store::memory()));
    let name = |n: usize| format!("0000000100000000000000{n:02X}");
    for n in 1..9 {
        from.archive(7).push(&name(n), &text(100_000, n as u64)).unwrap();
    }
    to.archive(7).push(&name(3), &text(100_000, 3)).unwrap();
    let copied = copy_archive(&from, &to, 7, &CopyOptions::default()).unwrap();
    assert_eq!((copied.files, copied.there), (7, 1));
    for n in 1..9 {
        let content = to.archive(7).fetch(&name(n)).unwrap().unwrap();
        assert!(content == text(100_000, n as u64));
    }
    let again = copy_archive(&from, &to, 7, &CopyOptions::default()).unwrap();
    assert_eq!((again.files, again.there), (0, 8));
    // Of a damaged file nothing is copied, and it is said which.
    let key = from.store().list("wal/").unwrap().remove(4).key;
    let other = repository(&Store::memory());
    from.store().delete(&key).unwrap();
    from.store().create(&key, backstay_store::Bytes::from_static(b"nothing")).unwrap();
    let error = copy_archive(&from, &other, 7, &CopyOptions::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Damaged);
    assert!(error.to_string().contains(&key), "{error}");
}

#[test]
fn a_file_of_the_same_name_with_other_content_is_a_conflict_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let (from, store) = (repository(&Store::memory()), Store::memory());
    repository(&store);
    let options = OpenOptions { cache: Some(folder.path().to_owned()) };
    let to = Repository::open(store, Environment::system(), &key(), options).unwrap();
    let name = |n: usize| format!("0000000100000000000000{n:02X}");
    for n in 1..6 {
        from.archive(7).push(&name(n), &text(100_000, n as u64)).unwrap();
    }
    to.archive(7).push(&name(2), &text(100_000, 2)).unwrap();
    to.archive(7).push(&name(3), &text(100_000, 33)).unwrap();
    for _ in 0..2 {
        let error = copy_archive(&from, &to, 7, &CopyOptions::default()).unwrap_err();
        assert_eq!(error.kind(), RepoErrorKind::Conflict);
        assert!(error.to_string().contains(&name(3)), "{error}");
        assert!(error.hint().is_some());
        // It costs the others nothing, and nothing was overwritten.
        assert_eq!(to.archive(7).list(None).unwrap().len(), 5);
        assert!(to.archive(7).fetch(&name(3)).unwrap().unwrap() == text(100_000, 33));
    }
    // What was compared once is not read again: that it is damaged by now is not noticed here.
    let listed = from.store().list("wal/").unwrap();
    let key = &listed.iter().find(|object| object.key.ends_with(&name(2))).unwrap().key;
    from.store().delete(key).unwrap();
    from.store().create(key, backstay_store::Bytes::from_static(b"nothing")).unwrap();
    let error = copy_archive(&from, &to, 7, &CopyOptions::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Conflict, "{error}");
}

#[test]
fn a_moment_that_was_forgotten_is_known_for_good() {
    let (from, to) = (repository(&Store::memory()), repository(&Store::memory()));
    let (first, second) = (backup(&from, &small(1)).unwrap(), backup(&from, &small(2)).unwrap());
    let there = new(copy(&from, &first, &to, &CopyOptions::default()).unwrap());
    let both = [&first, &second];
    assert!(to.forgotten_of(&both).unwrap().is_empty());
    to.forget(&there.id).unwrap();
    for _ in 0..3 {
        let forgotten = to.forgotten_of(&both).unwrap();
        assert_eq!(forgotten.into_iter().collect::<Vec<_>>(), std::slice::from_ref(&first.id));
        to.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
    }
    assert!(to.store().list("snapshots/").unwrap().iter().all(|o| !o.key.contains(&there.id)));
    assert!(from.forgotten_of(&both).unwrap().is_empty());
    // A copy by hand brings it back.
    let again = new(copy(&from, &first, &to, &CopyOptions::default()).unwrap());
    assert_eq!(to.snapshots().unwrap().len(), 1);
    assert_ne!(again.id, there.id);
}

/// Sparse files and cells of zeros stay holes, files of many extents stay whole.
#[test]
fn holes_stay_holes() {
    let (from, to) = (repository(&Store::memory()), repository(&Store::memory()));
    let bytes = Arc::new([noise(2 << 20, 1), vec![0; 6 << 20], noise(100_000, 2)].concat());
    let session = from.begin(options("test")).unwrap();
    let mut tree = session.tree(Order::Any);
    let size = bytes.len() as u64;
    let ranges = Some(vec![0..2 << 20, 8 << 20..size]);
    let content = Bytes { bytes: bytes.clone(), ranges };
    tree.file(file("sparse", bytes.len()), Box::new(content), Chunking::ContentDefined).unwrap();
    let hole = Bytes { bytes: Arc::new(vec![0; 1 << 20]), ranges: Some(vec![]) };
    tree.file(file("hole", 1 << 20), Box::new(hole), Chunking::ContentDefined).unwrap();
    let root = tree.finish().unwrap();
    let original = session.commit(root, serde_json::Value::Null).unwrap();
    let made = new(copy(&from, &original, &to, &CopyOptions::default()).unwrap());
    assert!(made.stats.bytes_read < 3 << 20, "{:?}", made.stats);
    let folder = tempfile::tempdir().unwrap();
    restore(&to, &made, folder.path());
    assert!(std::fs::read(folder.path().join("sparse")).unwrap() == *bytes);
    assert!(std::fs::read(folder.path().join("hole")).unwrap() == vec![0; 1 << 20]);
}
