//! Objects of a directory that the medium has damaged, and what their parity makes of that.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backstay_store::{
    Bytes, ErrorKind, Judge, ParityState, Store, StoreOptions, conformance, failpoint,
};

const ROOT: &str = "BACKSTAY_TEST_PARITY_IN";
const WORK: &str = "BACKSTAY_TEST_PARITY_WORK";
const KEY: &str = "packs/writer/session/object";

fn open(root: &Path) -> Store {
    Store::open(root.to_str().unwrap(), &StoreOptions::default()).unwrap()
}

fn with_parity(root: &Path) -> Store {
    let store = open(root);
    store.parity().unwrap().set_share(Some(10)).unwrap();
    store
}

fn body(length: usize) -> Bytes {
    (0..length).map(|n| (n * 31 % 251 + 1) as u8).collect::<Vec<_>>().into()
}

/// Changes a file behind the store's back.
fn damage(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    how(&mut bytes);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn files(root: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(root) else { return 0 };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files(&path) } else { 1 })
        .sum()
}

#[test]
fn a_directory_with_parity_is_a_store_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    conformance::run(&|| {
        count.set(count.get() + 1);
        with_parity(&directory.path().join(count.get().to_string()))
    });
}

#[test]
fn damaged_objects_are_read_as_they_were_and_put_right() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let store = with_parity(root);
    let parity = store.parity().unwrap();
    let ways: [fn(&mut Vec<u8>); 5] = [
        |bytes| bytes[0] ^= 1,
        |bytes| {
            let tenth = bytes.len().div_ceil(10);
            let start = bytes.len() / 2 - tenth / 2;
            bytes[start..start + tenth].fill(0);
        },
        |bytes| bytes.truncate(bytes.len() - bytes.len().div_ceil(10)),
        |bytes| bytes.extend_from_slice(b"junk behind the end"),
        |bytes| {
            let half = bytes.len().div_ceil(2);
            bytes.iter_mut().step_by(half).for_each(|byte| *byte = !*byte);
        },
    ];
    for length in [1, 100, 4096, 50_000, 3_000_001] {
        for (number, way) in ways.iter().enumerate() {
            let key = format!("{KEY}-{length}-{number}");
            let whole = body(length);
            store.create(&key, whole.clone()).unwrap();
            damage(&root.join(&key), way);
            let lying = std::fs::read(root.join(&key)).unwrap();

            let end = length as u64;
            for range in [0..end, end / 2..end, end / 3..end / 2] {
                let expected = whole.slice(range.start as usize..range.end as usize);
                assert_eq!(store.read_range(&key, range).unwrap(), expected, "{key}");
            }
            assert_eq!(store.read(&key).unwrap(), whole, "{key}");
            assert!(parity.rebuilt().contains(&key), "{key}");
            assert_eq!(std::fs::read(root.join(&key)).unwrap(), lying, "reading changes nothing");

            parity.mend(&key).unwrap();
            assert_eq!(std::fs::read(root.join(&key)).unwrap(), whole, "{key}");
            let mode = std::fs::metadata(root.join(&key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o222, 0, "{key} can be written");
            assert_eq!(parity.rebuilt(), [] as [String; 0]);
        }
    }
    assert_eq!(files(&root.join(".parity/damaged")), 0);
    assert_eq!(files(&root.join(".tmp")), 0);
}

#[test]
fn what_is_beyond_repair_is_handed_out_as_it_lies_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let store = with_parity(root);
    store.create(KEY, body(1 << 20)).unwrap();
    damage(&root.join(KEY), |bytes| bytes[..400_000].fill(0));
    let lying = std::fs::read(root.join(KEY)).unwrap();
    assert_eq!(store.read(KEY).unwrap(), lying);
    assert_eq!(store.read_range(KEY, 0..10).unwrap(), [0; 10][..]);
    let error = store.parity().unwrap().mend(KEY).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert_eq!(std::fs::read(root.join(KEY)).unwrap(), lying);
}

#[test]
fn a_repair_is_refused_when_object_and_parity_are_no_longer_what_was_read() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let store = with_parity(root);
    store.create(KEY, body(9000)).unwrap();
    damage(&root.join(KEY), |bytes| bytes[5] ^= 1);
    store.read(KEY).unwrap();
    // Somebody replaces the parity by one of other bytes.
    let other = tempfile::tempdir().unwrap();
    with_parity(other.path()).create(KEY, body(8000)).unwrap();
    let foreign = other.path().join(".parity/of").join(KEY);
    damage(&root.join(".parity/of").join(KEY), |bytes| *bytes = std::fs::read(foreign).unwrap());
    let lying = std::fs::read(root.join(KEY)).unwrap();
    store.parity().unwrap().mend(KEY).unwrap_err();
    assert_eq!(std::fs::read(root.join(KEY)).unwrap(), lying);
}

/// Puts the parity of other bytes beside an object.
fn forge(root: &Path, key: &str, other: Bytes) {
    let elsewhere = tempfile::tempdir().unwrap();
    let store = with_parity(elsewhere.path());
    store.parity().unwrap().set_share(Some(100)).unwrap();
    store.create(key, other).unwrap();
    let forged = std::fs::read(elsewhere.path().join(".parity/of").join(key)).unwrap();
    damage(&root.join(".parity/of").join(key), |bytes| *bytes = forged);
}

#[test]
fn who_knows_the_objects_decides_between_them_and_their_parity() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let (good, other) = (body(50_000), Bytes::from(vec![9; 50_000]));
    let judge = |right: Option<Bytes>| -> Arc<Judge> {
        Arc::new(move |_: &str, found: &[u8]| right.as_ref().map(|right| right == found))
    };
    let store = with_parity(root);
    let parity = store.parity().unwrap();
    parity.set_share(Some(100)).unwrap();
    store.create(KEY, good.clone()).unwrap();

    // Without anybody who knows, parity is believed until it is said to be of no use.
    let file = std::fs::read(root.join(".parity/of").join(KEY)).unwrap();
    forge(root, KEY, other.clone());
    assert_eq!(store.read(KEY).unwrap(), other);
    parity.distrust(KEY);
    assert_eq!(store.read(KEY).unwrap(), good);
    assert_eq!(parity.rebuilt(), [] as [String; 0]);

    // What lies there stands, and its parity is made anew.
    parity.set_judge(judge(Some(good.clone())));
    assert_eq!(store.read(KEY).unwrap(), good);
    assert_eq!(store.read_range(KEY, 100..200).unwrap(), good.slice(100..200));
    assert_eq!(parity.state(KEY).unwrap(), ParityState::Damaged);
    parity.mend(KEY).unwrap_err();
    assert!(parity.complete(KEY).unwrap());
    assert_eq!(parity.state(KEY).unwrap(), ParityState::Whole);
    assert!(std::fs::read(root.join(".parity/of").join(KEY)).unwrap() == file);

    // Who cannot tell changes nothing; and no parity is made of what is wrong.
    damage(&root.join(KEY), |bytes| bytes[7] ^= 1);
    let lying = std::fs::read(root.join(KEY)).unwrap();
    parity.set_judge(judge(None));
    assert_eq!(store.read(KEY).unwrap(), lying);
    assert!(!parity.complete(KEY).unwrap());
    parity.set_judge(judge(Some(good.clone())));
    assert_eq!(store.read_range(KEY, 0..50_000).unwrap(), good);
    assert_eq!(parity.complete(KEY).unwrap_err().kind(), ErrorKind::Damaged);
    parity.mend(KEY).unwrap();
    assert_eq!(std::fs::read(root.join(KEY)).unwrap(), good);

    // Nor is damage replaced by what is as wrong.
    forge(root, KEY, other.slice(..10));
    damage(&root.join(KEY), |bytes| bytes[7] ^= 1);
    assert_eq!(store.read(KEY).unwrap(), lying);
    parity.mend(KEY).unwrap_err();
    assert_eq!(std::fs::read(root.join(KEY)).unwrap(), lying);
}

#[test]
fn parity_comes_and_goes_with_its_object() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let store = open(root);
    let parity = store.parity().unwrap();
    store.create("keys/before", body(100)).unwrap();
    assert_eq!(parity.share().unwrap(), None);
    assert_eq!(parity.state("keys/before").unwrap(), ParityState::Missing);
    parity.set_share(Some(20)).unwrap();
    assert_eq!(open(root).parity().unwrap().share().unwrap(), Some(20));
    assert_eq!(parity.set_share(Some(101)).unwrap_err().kind(), ErrorKind::Configuration);
    parity.complete("keys/before").unwrap();
    assert_eq!(parity.state("keys/before").unwrap(), ParityState::Whole);

    store.create(KEY, body(70_000)).unwrap();
    assert_eq!(store.list("").unwrap().len(), 2, "parity shows in no list");
    let file = root.join(".parity/of").join(KEY);
    // One head is enough to read by, and all the same the file wants to be made again.
    damage(&file, |bytes| bytes[3] = 0);
    assert_eq!(parity.state(KEY).unwrap(), ParityState::Damaged);
    assert_eq!(store.read(KEY).unwrap(), body(70_000));
    parity.complete(KEY).unwrap();
    assert_eq!(parity.state(KEY).unwrap(), ParityState::Whole);
    // One that a power cut tore is none, and hinders nobody.
    let all = std::fs::read(&file).unwrap();
    let ways: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes.fill(0), |bytes| bytes.clear(), |bytes| bytes.truncate(9000)];
    for way in ways {
        damage(&file, |bytes| {
            bytes.clone_from(&all);
            way(bytes);
        });
        assert_eq!(parity.state(KEY).unwrap(), ParityState::Missing);
        assert_eq!(parity.missing().unwrap(), [KEY]);
        assert_eq!(store.read(KEY).unwrap(), body(70_000));
    }
    // Nor does one that is of no use otherwise.
    damage(&file, |bytes| *bytes = vec![7; 20_000]);
    assert_eq!(parity.state(KEY).unwrap(), ParityState::Damaged);
    assert_eq!(store.read(KEY).unwrap(), body(70_000));

    store.delete(KEY).unwrap();
    assert!(!root.join(".parity/of/packs").exists());
    std::fs::remove_file(root.join("keys/before")).unwrap();
    assert_eq!(parity.tidy().unwrap(), 1);
    assert_eq!(files(&root.join(".parity/of")), 0);

    store.create(KEY, body(10)).unwrap();
    parity.set_share(None).unwrap();
    assert_eq!(files(&root.join(".parity")), 0);
    assert_eq!(store.read(KEY).unwrap(), body(10));
}

#[test]
fn a_setting_that_is_damaged_is_no_reason_to_go_without() {
    let directory = tempfile::tempdir().unwrap();
    let store = with_parity(directory.path());
    damage(&directory.path().join(".parity/share"), |bytes| bytes.fill(0xff));
    assert_eq!(store.parity().unwrap().share().unwrap(), Some(10));
    store.create(KEY, body(10)).unwrap();
    assert_eq!(store.parity().unwrap().state(KEY).unwrap(), ParityState::Whole);
}

/// Not a test by itself: what the killed process runs.
#[test]
fn child_that_works_with_parity() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let store = open(&PathBuf::from(root));
    match std::env::var(WORK).unwrap().as_str() {
        "create" => store.create(KEY, body(300_000)).unwrap(),
        "delete" => store.delete(KEY).unwrap(),
        _ => {
            store.read(KEY).unwrap();
            store.parity().unwrap().mend(KEY).unwrap();
        }
    }
}

#[test]
fn a_process_killed_at_any_step_of_parity_loses_nothing() {
    let works = [
        ("create", "local-parity-added"),
        ("delete", "local-parity-removed"),
        ("mend", "local-mend-written"),
        ("mend", "local-mend-kept"),
        ("mend", "local-mend-renamed"),
    ];
    let points = failpoint::ALL
        .iter()
        .filter(|name| name.starts_with("local-parity-") || name.starts_with("local-mend-"));
    assert_eq!(points.count(), works.len());
    for (work, name) in works {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let store = with_parity(root);
        let whole = body(300_000);
        if work != "create" {
            store.create(KEY, whole.clone()).unwrap();
        }
        if work == "mend" {
            damage(&root.join(KEY), |bytes| bytes[70_000..90_000].fill(0));
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_works_with_parity", "--nocapture"])
            .env(ROOT, root)
            .env(WORK, work)
            .env("BACKSTAY_FAILPOINT", name)
            .output()
            .unwrap();
        assert_eq!(output.status.signal(), Some(9), "{name}: {output:?}");

        let store = open(root);
        let parity = store.parity().unwrap();
        assert_eq!(store.read(KEY).unwrap(), whole, "{name}");
        if parity.rebuilt().iter().any(|key| key == KEY) {
            parity.mend(KEY).unwrap();
        }
        assert_eq!(std::fs::read(root.join(KEY)).unwrap(), whole, "{name}");
        assert!(parity.complete(KEY).unwrap());
        assert_eq!(parity.missing().unwrap(), [] as [String; 0], "{name}");
        // The next writer removes what the dead one left, and tidying what its repair kept.
        store.create("another", body(1)).unwrap();
        parity.tidy().unwrap();
        assert_eq!(files(&root.join(".parity/damaged")), 0, "{name}");
        assert_eq!(files(&root.join(".tmp")), 0, "{name}");
        store.delete(KEY).unwrap();
        assert_eq!(files(&root.join(".parity/of/packs")), 0, "{name}");
    }
}
