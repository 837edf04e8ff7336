//! Backing up and restoring through the whole engine, over a store in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use backstay_repo::*;
use support::*;

#[test]
fn everything_stored_is_restored_equal() {
    let store = Store::memory();
    let repo = repository(&store);
    let files = mixture(1);
    let snapshot = backup(&repo, &files).unwrap();
    assert_eq!(snapshot.stats.files, files.len() as u64);
    assert_eq!(snapshot.stats.bytes, files.values().map(|(_, b)| b.len() as u64).sum::<u64>());
    let to = tempfile::tempdir().unwrap();
    // Through a new handle: nothing is taken from memory of the backup.
    let report = restore(&open(&store), &snapshot, to.path());
    assert_restored(&files, to.path());
    assert_eq!(report.bytes, snapshot.stats.bytes);
    for level in [Level::Basic, Level::Standard, Level::Thorough] {
        let report = verify(&repo, level);
        assert_eq!(report.damages, [], "{level}");
        assert_eq!(report.covered, 100.0);
    }
    let meta = std::fs::metadata(to.path().join("b/text")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()),
        (0o640, 1_700_000_000, 123_456_789)
    );
}

#[test]
fn the_same_content_is_stored_once() {
    let store = Store::memory();
    let repo = repository(&store);
    let files = mixture(2);
    let first = backup(&repo, &files).unwrap();
    let second = backup(&repo, &files).unwrap();
    assert_eq!((second.stats.new_chunks, second.root), (0, first.root));
    assert!(first.stats.new_bytes > 90 << 20);
}

#[test]
fn a_change_stores_what_changed() {
    let store = Store::memory();
    let repo = repository(&store);
    let mut files = mixture(3);
    backup(&repo, &files).unwrap();
    let (chunking, bytes) = files["b/large"].clone();
    let mut bytes = bytes.to_vec();
    bytes.splice(1000..1000, *b"inserted");
    files.insert("b/large".into(), (chunking, bytes.into()));
    let second = backup(&repo, &files).unwrap();
    assert!(second.stats.new_bytes < 6 << 20, "{:?}", second.stats);
    let to = tempfile::tempdir().unwrap();
    restore(&repo, &second, to.path());
    assert_restored(&files, to.path());
}

#[test]
fn any_snapshot_can_go_without_touching_another() {
    let store = Store::memory();
    let repo = repository(&store);
    let first = backup(&repo, &mixture(4)).unwrap();
    let mut changed = mixture(4);
    changed.insert("new".into(), (Chunking::ContentDefined, text(100_000, 9).into()));
    let second = backup(&repo, &changed).unwrap();
    store.delete(&format!("snapshots/{}/{}", first.writer, first.id)).unwrap();
    let to = tempfile::tempdir().unwrap();
    restore(&open(&store), &second, to.path());
    assert_restored(&changed, to.path());
}

#[test]
fn a_tree_of_many_entries_is_found_by_path_and_in_order() {
    let store = Store::memory();
    let repo = repository(&store);
    let session = repo.begin(options("many")).unwrap();
    let mut tree = session.tree(Order::Sorted);
    let mut paths: Vec<String> =
        (0..40_000).map(|n| format!("d{:03}/{}/f{n}", n % 400, n % 7)).collect();
    paths.sort_by(|a, b| compare_paths(a.as_bytes(), b.as_bytes()));
    for path in &paths {
        let mut entry = file(path, 0);
        entry.kind = EntryKind::File(FileContent::inline(path.as_bytes()));
        tree.entry(entry).unwrap();
    }
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    let tree = repo.tree(&snapshot).unwrap();
    let found: Vec<String> = tree.iter().map(|e| e.unwrap().display_path()).collect();
    assert_eq!(found, paths);
    for path in paths.iter().step_by(997) {
        let entry = tree.get(path.as_bytes()).unwrap().unwrap();
        let mut content = Vec::new();
        tree.read_file(&entry, &mut content).unwrap();
        assert_eq!(content, path.as_bytes());
    }
    for absent in ["a", "d000", "d001/1/", "zzz", "d399/6/g"] {
        assert_eq!(tree.get(absent.as_bytes()).unwrap(), None);
    }
    // One changed entry rewrites a leaf and what is above it.
    let session = repo.begin(options("many")).unwrap();
    let mut again = session.tree(Order::Sorted);
    for entry in tree.iter() {
        let mut entry = entry.unwrap();
        if entry.path == paths[20_000].as_bytes() {
            entry.meta.mode = 0o600;
        }
        again.entry(entry).unwrap();
    }
    let root = again.finish().unwrap();
    let changed = session.commit(root, serde_json::Value::Null).unwrap();
    assert!(changed.stats.new_chunks <= 3, "{:?}", changed.stats);
}

#[test]
fn holes_stay_holes() {
    let store = Store::memory();
    let repo = repository(&store);
    let mut bytes = vec![0; 40 << 20];
    bytes[1 << 20..(1 << 20) + 5000].copy_from_slice(&noise(5000, 1));
    bytes[20 << 20..(20 << 20) + 100].copy_from_slice(&noise(100, 2));
    let ranges = vec![1 << 20..(1 << 20) + 8192, 20 << 20..(20 << 20) + 4096];
    let session = repo.begin(options("sparse")).unwrap();
    let mut tree = session.tree(Order::Any);
    let content = Bytes { bytes: bytes.clone().into(), ranges: Some(ranges) };
    tree.file(file("sparse", bytes.len()), Box::new(content), Chunking::ContentDefined).unwrap();
    let nothing = Bytes { bytes: vec![0; 10 << 20].into(), ranges: Some(vec![]) };
    tree.file(file("hole", 10 << 20), Box::new(nothing), Chunking::ContentDefined).unwrap();
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    let to = tempfile::tempdir().unwrap();
    restore(&repo, &snapshot, to.path());
    assert!(std::fs::read(to.path().join("sparse")).unwrap() == bytes);
    assert!(std::fs::read(to.path().join("hole")).unwrap() == vec![0; 10 << 20]);
    use std::os::unix::fs::MetadataExt;
    assert!(std::fs::metadata(to.path().join("sparse")).unwrap().blocks() * 512 < 1 << 20);
    let mut dumped = Vec::new();
    let tree = repo.tree(&snapshot).unwrap();
    tree.read_file(&tree.get(b"sparse").unwrap().unwrap(), &mut dumped).unwrap();
    assert!(dumped == bytes);
}

#[test]
fn delta_brings_any_earlier_state_to_the_snapshot() {
    let store = Store::memory();
    let repo = repository(&store);
    let files = mixture(5);
    let snapshot = backup(&repo, &files).unwrap();
    let to = tempfile::tempdir().unwrap();
    restore(&repo, &snapshot, to.path());
    let error =
        repo.restore(&snapshot, RestoreOptions::new(to.path()), &Progress::default()).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Usage);
    assert!(error.hint().unwrap().contains("--delta"));

    // All sorts of damage.
    let path = |name: &str| to.path().join(name);
    std::fs::write(path("b/text"), b"short").unwrap();
    let mut large = std::fs::read(path("c/regions")).unwrap();
    large[30 << 20] ^= 1;
    large[71 << 20] = 5; // inside a hole
    large.extend_from_slice(b"longer");
    std::fs::write(path("c/regions"), large).unwrap();
    std::fs::write(path("c/zeros"), b"no zeros").unwrap();
    std::fs::write(path("small/0200"), b"?").unwrap();
    std::fs::remove_file(path("b/large")).unwrap();
    std::fs::create_dir(path("b/large")).unwrap();
    std::fs::write(path("b/large/x"), b"x").unwrap();
    std::fs::remove_dir_all(path("a")).unwrap();
    std::os::unix::fs::symlink("/etc", path("a")).unwrap();
    std::fs::write(path("extra"), b"x").unwrap();
    let options = RestoreOptions { delta: true, prune: true, ..RestoreOptions::new(to.path()) };
    let report = repo.restore(&snapshot, options.clone(), &Progress::default()).unwrap();
    assert_restored(&files, to.path());
    assert!(!path("extra").exists());
    assert!(!std::path::Path::new("/etc/grouped").exists());
    assert_eq!(report.removed, 1);
    let report = repo.restore(&snapshot, options, &Progress::default()).unwrap();
    assert_restored(&files, to.path());
    assert!(report.bytes_fetched < 4 << 20, "{report:?}");
}

#[test]
fn only_what_was_asked_for_is_restored() {
    let store = Store::memory();
    let repo = repository(&store);
    let files = mixture(6);
    let snapshot = backup(&repo, &files).unwrap();
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        paths: vec![b"a".to_vec(), b"small/0007".to_vec()],
        ..RestoreOptions::new(to.path())
    };
    let report = repo.restore(&snapshot, options, &Progress::default()).unwrap();
    assert_eq!(report.files, 7);
    assert!(to.path().join("a/grouped").exists() && to.path().join("small/0007").exists());
    assert!(!to.path().join("b").exists() && !to.path().join("small/0008").exists());
}

#[test]
fn a_cancelled_backup_leaves_nothing_that_counts() {
    let store = Store::memory();
    let repo = repository(&store);
    let options = options("cancelled");
    let progress = options.progress.clone();
    let session = repo.begin(options).unwrap();
    let mut tree = session.tree(Order::Any);
    let content = || Box::new(Bytes { bytes: text(1 << 20, 1).into(), ranges: None });
    tree.file(file("a", 1 << 20), content(), Chunking::ContentDefined).unwrap();
    progress.cancel();
    let error = tree.file(file("b", 1 << 20), content(), Chunking::ContentDefined).unwrap_err();
    assert_eq!(error.kind(), RepoErrorKind::Aborted);
    drop(tree);
    drop(session);
    assert!(repo.snapshots().unwrap().is_empty());
    backup(&repo, &mixture(7)).unwrap();
}

struct Failing(ContentError2);

#[derive(Clone, Copy)]
enum ContentError2 {
    Vanished,
    Unreadable,
    Fatal,
}

impl Content for Failing {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        Err(match self.0 {
            ContentError2::Vanished => ContentError::Vanished,
            ContentError2::Unreadable => ContentError::Unreadable("permission denied".into()),
            ContentError2::Fatal => ContentError::Fatal("the disk is gone".into()),
        })
    }
}

#[test]
fn what_cannot_be_read_is_dropped_listed_or_fatal() {
    let store = Store::memory();
    let repo = repository(&store);
    for size in [10, 100_000, 100 << 20] {
        for chunking in [Chunking::ContentDefined, Chunking::Grid] {
            let session = repo.begin(options("failing")).unwrap();
            let mut tree = session.tree(Order::Any);
            tree.file(file("gone", size), Box::new(Failing(ContentError2::Vanished)), chunking)
                .unwrap();
            tree.file(file("denied", size), Box::new(Failing(ContentError2::Unreadable)), chunking)
                .unwrap();
            let root = tree.finish().unwrap();
            let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
            assert_eq!(snapshot.stats.files, 0);
            assert_eq!(
                snapshot.problems,
                [Problem { path: "denied".into(), what: "permission denied".into() }]
            );

            let session = repo.begin(options("failing")).unwrap();
            let mut tree = session.tree(Order::Any);
            let failed = tree
                .file(file("fatal", size), Box::new(Failing(ContentError2::Fatal)), chunking)
                .and_then(|()| tree.finish());
            assert!(failed.unwrap_err().to_string().contains("the disk is gone"));
        }
    }
}

#[test]
fn keys_open_lock_out_and_stay() {
    let store = Store::memory();
    let repo = repository(&store);
    let snapshot =
        backup(&repo, &files(&[("f", Chunking::ContentDefined, b"x".to_vec())])).unwrap();
    let wrong = Secret::key_file([8; 32]).unwrap();
    let try_open = |secret: &Secret| {
        Repository::open(store.clone(), Environment::system(), secret, OpenOptions::default())
    };
    assert_eq!(try_open(&wrong).unwrap_err().kind(), RepoErrorKind::WrongKey);
    let phrase = Secret::passphrase("correct horse").unwrap();
    assert_eq!(try_open(&phrase).unwrap_err().kind(), RepoErrorKind::WrongKey);
    let slot = repo.add_key(&phrase, "people").unwrap();
    let other = try_open(&phrase).unwrap();
    assert_eq!(other.find_snapshot(&snapshot.id[..6]).unwrap().root, snapshot.root);
    assert_eq!(other.key_slots().unwrap().len(), 2);
    let first = other.key_slots().unwrap().into_iter().find(|s| !s.current).unwrap();
    other.remove_key(&first.id).unwrap();
    assert_eq!(try_open(&key()).unwrap_err().kind(), RepoErrorKind::WrongKey);
    assert_eq!(other.remove_key(&slot.id).unwrap_err().kind(), RepoErrorKind::Usage);
    assert!(Secret::key_file([0; 31]).is_err());
    assert_eq!(
        Repository::open(Store::memory(), Environment::system(), &wrong, OpenOptions::default())
            .unwrap_err()
            .kind(),
        RepoErrorKind::NoRepository
    );
    let again =
        Repository::init(store.clone(), Environment::system(), &wrong, InitOptions::default());
    assert_eq!(again.unwrap_err().kind(), RepoErrorKind::Exists);
}

#[test]
fn a_second_name_is_restored_by_its_own_path() {
    let store = Store::memory();
    let repo = repository(&store);
    let bytes = text(200_000, 5);
    let session = repo.begin(options("links")).unwrap();
    let mut tree = session.tree(Order::Any);
    let content = Bytes { bytes: bytes.clone().into(), ranges: None };
    tree.file(file("a", bytes.len()), Box::new(content), Chunking::ContentDefined).unwrap();
    for name in ["b", "c"] {
        let kind = EntryKind::Hardlink { to: b"a".to_vec() };
        tree.entry(Entry { kind, ..file(name, 0) }).unwrap();
    }
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    let to = tempfile::tempdir().unwrap();
    // Another file of the first name is none of its business, and what is right stays.
    std::fs::write(to.path().join("a"), b"something else").unwrap();
    std::fs::write(to.path().join("b"), &bytes).unwrap();
    let restore = RestoreOptions {
        paths: vec![b"b".to_vec(), b"c".to_vec()],
        delta: true,
        ..RestoreOptions::new(to.path())
    };
    for _ in 0..2 {
        let report = repo.restore(&snapshot, restore.clone(), &Progress::default()).unwrap();
        assert_eq!(report.problems, []);
        for name in ["b", "c"] {
            assert!(std::fs::read(to.path().join(name)).unwrap() == bytes, "{name}");
        }
        assert_eq!(std::fs::read(to.path().join("a")).unwrap(), b"something else");
        assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 3);
    }
    let pruning = RestoreOptions { prune: true, ..restore };
    let refused = repo.restore(&snapshot, pruning, &Progress::default()).unwrap_err();
    assert_eq!(refused.kind(), RepoErrorKind::Usage);
    let root = RestoreOptions { delta: true, prune: true, ..RestoreOptions::new("/") };
    let refused = repo.restore(&snapshot, root, &Progress::default()).unwrap_err();
    assert_eq!(refused.kind(), RepoErrorKind::Usage);
}

#[test]
fn a_folder_that_somebody_swaps_for_a_link_meanwhile_leads_nowhere() {
    let store = Store::memory();
    let repo = repository(&store);
    use Chunking::ContentDefined as C;
    let all = files(&[
        ("d/e/chunked", C, noise(70_000, 1)),
        ("d/e/inline", C, noise(100, 2)),
        ("d/f", C, noise(5000, 3)),
    ]);
    let session = repo.begin(options("folders")).unwrap();
    let mut tree = session.tree(Order::Any);
    for folder in ["d", "d/e"] {
        let meta = Metadata { mode: 0o755, ..Metadata::default() };
        tree.entry(Entry { kind: EntryKind::Directory, meta, ..file(folder, 0) }).unwrap();
    }
    for (path, (chunking, bytes)) in &all {
        let content = Bytes { bytes: bytes.clone(), ranges: None };
        tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
    }
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    let base = tempfile::tempdir().unwrap();
    let (inside, outside) = (base.path().join("inside"), base.path().join("outside"));
    for elsewhere in [false, true] {
        std::fs::create_dir_all(inside.join("d/e")).unwrap();
        std::fs::create_dir_all(outside.join("e")).unwrap();
        let (to, swapped) = (inside.clone(), inside.join("d"));
        let link = outside.clone();
        // After the folders were made and looked at, and before the files are written.
        let place = move |entry: &Entry| {
            if entry.path == b"d/f" {
                std::fs::rename(&swapped, swapped.with_file_name("was-d")).unwrap();
                std::os::unix::fs::symlink(&link, &swapped).unwrap();
            }
            if elsewhere {
                Placement::At(to.join(std::str::from_utf8(&entry.path).unwrap()))
            } else {
                Placement::Default
            }
        };
        let session = RestoreOptions {
            delta: true,
            place: Some(Arc::new(place)),
            ..RestoreOptions::new(if elsewhere {
                base.path().join("other")
            } else {
                inside.clone()
            })
        };
        let result = repo.restore(&snapshot, session, &Progress::default());
        assert_eq!(result.unwrap_err().kind(), RepoErrorKind::Io);
        // A folder that a caller placed is held open, and goes on being filled wherever it is.
        assert_eq!(inside.join("was-d/e/inline").exists(), elsewhere);
        assert_eq!(std::fs::read_dir(outside.join("e")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        std::fs::remove_dir_all(&inside).unwrap();
    }
}

#[test]
fn attributes_that_the_snapshot_does_not_have_go() {
    let store = Store::memory();
    let repo = repository(&store);
    use Chunking::ContentDefined as C;
    let all = files(&[("d/chunked", C, noise(70_000, 1)), ("d/inline", C, noise(100, 2))]);
    let snapshot = backup(&repo, &all).unwrap();
    let to = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    restore(&repo, &snapshot, to.path());
    let names = ["d/chunked", "d/inline"];
    let flags = rustix::fs::XattrFlags::empty();
    for name in names {
        rustix::fs::setxattr(to.path().join(name), "user.left", b"over", flags).unwrap();
    }
    let options = RestoreOptions { delta: true, ..RestoreOptions::new(to.path()) };
    repo.restore(&snapshot, options, &Progress::default()).unwrap();
    for name in names {
        let mut value = [0; 8];
        let found = rustix::fs::getxattr(to.path().join(name), "user.left", &mut value[..]);
        assert_eq!(found, Err(rustix::io::Errno::NODATA), "{name}");
    }
}

#[test]
fn a_program_that_runs_is_replaced_and_goes_on_running() {
    let store = Store::memory();
    let repo = repository(&store);
    let sleep = std::fs::read("/bin/sleep").unwrap();
    let all = files(&[("bin/sleep", Chunking::ContentDefined, sleep)]);
    let snapshot = backup(&repo, &all).unwrap();
    let to = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    restore(&repo, &snapshot, to.path());
    let program = to.path().join("bin/sleep");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut running = std::process::Command::new(&program).arg("600").spawn().unwrap();
    for keep_going in [false, true] {
        let options = RestoreOptions { delta: true, keep_going, ..RestoreOptions::new(to.path()) };
        let report = repo.restore(&snapshot, options, &Progress::default()).unwrap();
        assert_eq!(report.problems, []);
        assert_restored(&all, to.path());
        assert_eq!(std::fs::read_dir(program.parent().unwrap()).unwrap().count(), 1);
    }
    // Somebody else's second name of it keeps what it had.
    std::fs::hard_link(&program, to.path().join("mine")).unwrap();
    std::fs::write(to.path().join("mine"), b"another state").ok();
    let options = RestoreOptions { delta: true, ..RestoreOptions::new(to.path()) };
    repo.restore(&snapshot, options, &Progress::default()).unwrap();
    assert_restored(&all, to.path());
    assert!(running.try_wait().unwrap().is_none());
    running.kill().unwrap();
    running.wait().unwrap();
}

/// A backup with one file of somebody else's, by its mode.
fn of_somebody_else(repo: &Repository, mode: u32) -> Snapshot {
    let session = repo.begin(options("modes")).unwrap();
    let mut tree = session.tree(Order::Any);
    let content = Bytes { bytes: noise(100_000, 1).into(), ranges: None };
    let mut entry = file("f", 100_000);
    entry.meta = Metadata { mode, uid: 12_345, gid: 12_345, ..entry.meta };
    tree.file(entry, Box::new(content), Chunking::ContentDefined).unwrap();
    let root = tree.finish().unwrap();
    session.commit(root, serde_json::Value::Null).unwrap()
}

#[test]
fn a_program_acts_as_its_owner_only_when_it_belongs_to_him() {
    use std::os::unix::fs::MetadataExt;
    let store = Store::memory();
    let repo = repository(&store);
    let snapshot = of_somebody_else(&repo, 0o6755);
    let root = rustix::process::geteuid().is_root();
    for owner in [false, true] {
        if owner && !root {
            continue;
        }
        let to = tempfile::tempdir().unwrap();
        let options = RestoreOptions { owner, ..RestoreOptions::new(to.path()) };
        repo.restore(&snapshot, options, &Progress::default()).unwrap();
        let found = std::fs::metadata(to.path().join("f")).unwrap();
        let expected =
            if owner { (0o6755, 12_345) } else { (0o755, rustix::process::geteuid().as_raw()) };
        assert_eq!((found.mode() & 0o7777, found.uid()), expected);
    }
}

#[test]
fn nothing_is_restored_into_a_folder_that_somebody_else_made_first() {
    let store = Store::memory();
    let repo = repository(&store);
    let session = repo.begin(options("folders")).unwrap();
    let mut tree = session.tree(Order::Any);
    for folder in ["d", "d/e"] {
        tree.entry(Entry { kind: EntryKind::Directory, ..file(folder, 0) }).unwrap();
    }
    for name in ["a", "d/e/secret", "d/secret"] {
        let content = Bytes { bytes: noise(100_000, 1).into(), ranges: None };
        tree.file(file(name, 100_000), Box::new(content), Chunking::ContentDefined).unwrap();
    }
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    let to = tempfile::tempdir().unwrap();
    let folder = to.path().to_path_buf();
    // Somebody is quicker, after the target was found empty; and with a file too.
    let place = move |entry: &Entry| {
        if entry.path == b"a" {
            std::fs::create_dir(folder.join("d")).unwrap();
            std::fs::write(folder.join("a"), b"held open by somebody").unwrap();
        }
        Placement::Default
    };
    let options = RestoreOptions {
        keep_going: true,
        place: Some(Arc::new(place)),
        ..RestoreOptions::new(to.path())
    };
    let report = repo.restore(&snapshot, options, &Progress::default()).unwrap();
    assert_eq!(std::fs::read_dir(to.path().join("d")).unwrap().count(), 0);
    assert_eq!(std::fs::read(to.path().join("a")).unwrap(), b"held open by somebody");
    assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
}
