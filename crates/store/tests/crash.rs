//! Processes that are killed in the middle of a creation, disks that are full, directories that
//! cannot be written.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use backstay_store::{Bytes, ErrorKind, Store, StoreOptions, failpoint};

const ROOT: &str = "BACKSTAY_TEST_CREATE_IN";
const KEY: &str = "packs/writer/session/object";

fn open(root: &Path) -> Store {
    Store::open(root.to_str().unwrap(), &StoreOptions::default()).unwrap()
}

/// Large enough to be written in several parts.
fn body() -> Bytes {
    (0..10_000_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>().into()
}

fn temporaries(root: &Path) -> usize {
    std::fs::read_dir(root.join(".tmp")).map_or(0, Iterator::count)
}

/// Not a test by itself: what the killed process runs.
#[test]
fn child_that_creates() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    open(&PathBuf::from(root)).create(KEY, body()).unwrap();
}

#[test]
fn a_writer_killed_anywhere_leaves_a_whole_object_or_none() {
    let points: Vec<_> =
        failpoint::ALL.iter().filter(|name| name.starts_with("local-create-")).collect();
    assert_eq!(points.len(), 5);
    for name in points {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_creates", "--nocapture"])
            .env(ROOT, &root)
            .env("BACKSTAY_FAILPOINT", name)
            .output()
            .unwrap();
        assert_eq!(output.status.signal(), Some(9), "{name}: {output:?}");
        assert_eq!(temporaries(&root), 1, "{name}");

        let store = open(&root);
        let linked = matches!(*name, "local-create-linked" | "local-create-settled");
        let listed = store.list("").unwrap();
        assert_eq!(listed.len(), usize::from(linked), "{name}: {listed:?}");
        match store.read(KEY) {
            Ok(found) => assert!(linked && found == body(), "{name}"),
            Err(error) => assert!(!linked && error.is_not_found(), "{name}: {error}"),
        }
        match store.create(KEY, body()) {
            Ok(()) => assert!(!linked, "{name}"),
            Err(error) => assert!(linked && error.is_already_exists(), "{name}: {error}"),
        }
        assert!(store.read(KEY).unwrap() == body());
        assert_eq!(temporaries(&root), 0, "{name}: what the dead one left is still there");
    }
}

/// A file system of its own, unmounted when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    /// None, with a word, when this user may not mount.
    fn tmpfs(options: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root may mount");
            return None;
        }
        let mount = Self(tempfile::tempdir().unwrap());
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "backstay-test"])
            .arg(mount.path())
            .output()
            .unwrap();
        if output.status.success() {
            return Some(mount);
        }
        // A container's root may not, whatever its name; CI has a machine.
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(std::env::var_os("CI").is_none(), "cannot mount: {why}");
        eprintln!("skipped: cannot mount: {why}");
        // Nothing is mounted, so the directory goes as any other.
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status =
            Command::new("mount").args(["-o", &options]).arg(self.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_behind() {
    let Some(mount) = Mount::tmpfs("size=16m") else { return };
    let store = open(&mount.path().join("store"));
    let small = Bytes::from(vec![1; 6 << 20]);
    store.create("packs/first", small.clone()).unwrap();
    for _ in 0..3 {
        let error = store.create("packs/second", Bytes::from(vec![2; 12 << 20])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(error.hint().is_some());
        assert_eq!(temporaries(&mount.path().join("store")), 0);
    }
    assert_eq!(store.list("").unwrap().len(), 1);
    assert!(store.read("packs/first").unwrap() == small);
    // What fits still fits, and deleting makes room.
    store.create("packs/third", small.clone()).unwrap();
    store.delete("packs/first").unwrap();
    store.create("packs/fourth", small).unwrap();
}

#[test]
fn a_disk_without_inodes_is_full() {
    let Some(mount) = Mount::tmpfs("nr_inodes=10") else { return };
    let store = open(mount.path());
    let mut created = 0;
    let error = loop {
        match store.create(&format!("k{created}"), Bytes::from_static(b"x")) {
            Ok(()) => created += 1,
            Err(error) => break error,
        }
        assert!(created < 20);
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(store.list("").unwrap().len(), created);
}

#[test]
fn a_read_only_directory_is_readable_and_refuses_the_rest() {
    let Some(mount) = Mount::tmpfs("size=16m") else { return };
    let root = mount.path().join("store");
    open(&root).create("format", Bytes::from_static(b"x")).unwrap();
    mount.remount("ro");
    let store = open(&root);
    assert_eq!(store.read("format").unwrap(), "x");
    assert_eq!(store.list("").unwrap().len(), 1);
    assert!(store.read("other").unwrap_err().is_not_found());
    for error in [
        store.create("other", Bytes::from_static(b"x")).unwrap_err(),
        store.delete("format").unwrap_err(),
        store.probe().unwrap_err(),
        open(&mount.path().join("new")).create("other", Bytes::new()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
}

#[test]
fn a_full_disk_stops_a_repair_and_nothing_is_worse_than_before() {
    let Some(mount) = Mount::tmpfs("size=4m") else { return };
    let root = mount.path().join("store");
    let store = open(&root);
    let parity = store.parity().unwrap();
    parity.set_share(Some(10)).unwrap();
    let whole: Bytes = body().slice(..1_500_000);
    store.create(KEY, whole.clone()).unwrap();
    let file = root.join(KEY);
    let mut lying = whole.to_vec();
    lying[500_000..600_000].fill(0);
    std::fs::write(&file, &lying).unwrap();
    assert!(store.read(KEY).unwrap() == whole);
    let filler = vec![1; 1_500_000];
    std::fs::write(mount.path().join("filler"), &filler).unwrap();
    let error = parity.mend(KEY).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(std::fs::read(&file).unwrap() == lying);
    assert!(store.read(KEY).unwrap() == whole);
    std::fs::remove_file(mount.path().join("filler")).unwrap();
    parity.mend(KEY).unwrap();
    assert!(std::fs::read(&file).unwrap() == whole);
}
