//! The directory as a store: what ends up on the disk, and what never does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use backstay_store::{Bytes, ErrorKind, Store, StoreOptions};

fn open(path: &Path) -> Store {
    Store::open(path.to_str().unwrap(), &StoreOptions::default()).unwrap()
}

fn temporaries(root: &Path) -> usize {
    std::fs::read_dir(root.join(".tmp")).map_or(0, Iterator::count)
}

#[test]
fn objects_are_read_only_files_at_their_keys_and_no_temporary_stays() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("deep/repository");
    let store = open(&root);
    assert_eq!(store.list("").unwrap(), []);
    assert_eq!(store.read("format").unwrap_err().kind(), ErrorKind::NotFound);

    let body = Bytes::from(vec![7; 9 << 20]);
    store.create("packs/a/b/c", body.clone()).unwrap();
    let file = root.join("packs/a/b/c");
    assert_eq!(std::fs::read(&file).unwrap(), body);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7333, 0);
    assert_eq!(temporaries(&root), 0);

    let error = store.create("packs/a/b/c", Bytes::from_static(b"other")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let error = store.create("packs/a/b/c", body.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&file).unwrap(), body);
    assert_eq!(temporaries(&root), 0);

    store.delete("packs/a/b/c").unwrap();
    store.delete("packs/a/b/c").unwrap();
    assert!(!root.join("packs").exists(), "empty directories go with their last object");
}

#[test]
fn what_is_foreign_is_not_an_object() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let store = open(root);
    store.create("a/b", Bytes::from_static(b"x")).unwrap();
    std::fs::create_dir(root.join("lost+found")).unwrap();
    std::fs::write(root.join("lost+found/#12"), "y").unwrap();
    std::fs::write(root.join(".hidden"), "y").unwrap();
    std::fs::write(root.join("notes~"), "y").unwrap();
    std::fs::create_dir(root.join("empty")).unwrap();
    let keys: Vec<_> = store.list("").unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(keys, ["a/b"]);
    // Names of directories, and names below files.
    for key in ["a", "empty", "a/b/c"] {
        assert_eq!(store.read(key).unwrap_err().kind(), ErrorKind::NotFound, "{key}");
        assert_eq!(store.head(key).unwrap_err().kind(), ErrorKind::NotFound, "{key}");
        store.delete(key).unwrap();
        let error = store.create(key, Bytes::from_static(b"x")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Other, "{key}: {error}");
    }
    assert_eq!(store.list("a/b/").unwrap(), []);
    assert_eq!(store.read("a/b").unwrap(), "x");
}
