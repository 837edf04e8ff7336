//! Leaves with maps, page hashes in layers and run chunks, for ever: a repository that was committed
//! with this test is read, found whole, and built upon.
//!
//! `BACKSTAY_WRITE_GOLDEN=FOLDER cargo test -p backstay-repo --test golden_runs` makes it anew, in a
//! folder of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use backstay_repo::internals::regions;
use backstay_repo::*;
use backstay_store::Local;
use support::*;

const PAGES: usize = 700;
const PAGE: usize = 8192;
const PATH: &str = "base/1/2619";

/// The file as it was at each of the backups. Its pages compress to next to nothing, and its last
/// one is short.
fn editions() -> Vec<Vec<u8>> {
    let page = |number: usize, edition: usize| {
        let line = format!("page {number:04} as of {edition}; ");
        line.bytes().cycle().take(PAGE).collect::<Vec<u8>>()
    };
    let mut now: Vec<u8> = (0..PAGES).flat_map(|number| page(number, 0)).collect();
    now.truncate(PAGES * PAGE - 100);
    let mut editions = vec![now.clone()];
    for edition in 1..6 {
        for number in (edition * 11..now.len() / PAGE).step_by(29 + edition) {
            now[number * PAGE..(number + 1) * PAGE].copy_from_slice(&page(number, edition));
        }
        match edition {
            // Zeros, an end, a cell that is another one as a whole.
            2 => now[2 << 20..3 << 20].fill(0),
            3 => now.truncate(650 * PAGE + 17),
            4 => (128..256).for_each(|number| {
                now[number * PAGE..(number + 1) * PAGE].copy_from_slice(&page(number, 9));
            }),
            _ => {}
        }
        editions.push(now.clone());
    }
    editions
}

fn back_up(repo: &Repository, data: &[u8], parent: Option<Snapshot>) -> Snapshot {
    let files = files(&[(PATH, Chunking::Grid, data.to_vec())]);
    backup_as(repo, &files, SessionOptions { parent, workers: 1, ..options("golden") }).unwrap()
}

fn golden() -> Store {
    let folder = match std::env::var_os("BACKSTAY_WRITE_GOLDEN") {
        Some(folder) => {
            let folder = std::path::PathBuf::from(folder);
            let repo = repository(&Store::new(Local::new(&folder).unwrap()));
            editions().iter().fold(None, |parent, data| Some(back_up(&repo, data, parent)));
            folder
        }
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/version-1-runs"),
    };
    let (from, to) = (Store::new(Local::new(folder).unwrap()), Store::memory());
    for object in from.list("").unwrap() {
        to.create(&object.key, from.read(&object.key).unwrap()).unwrap();
    }
    to
}

#[test]
fn runs_and_maps_are_read_for_ever() {
    let store = golden();
    let size: u64 = store.list("").unwrap().iter().map(|object| object.size).sum();
    assert!(size < 200 << 10, "{size} bytes are too many to commit");
    let repo = open(&store);
    for level in [Level::Basic, Level::Standard, Level::Thorough] {
        assert_eq!(verify(&repo, level).damages, []);
    }
    let snapshots = repo.snapshots().unwrap();
    let editions = editions();
    assert_eq!(snapshots.len(), editions.len());
    for (number, data) in editions.iter().enumerate() {
        let size = |snapshot: &Snapshot| snapshot.stats.bytes as usize == data.len();
        // The parent leads from each to the one before.
        let snapshot = match number {
            0 => snapshots.iter().find(|one| one.parent.is_none()),
            _ => snapshots.iter().find(|one| depth(&snapshots, one) == number),
        };
        let snapshot = snapshot.filter(|one| size(one)).unwrap();
        let tree = repo.tree(snapshot).unwrap();
        let entry = tree.get(PATH.as_bytes()).unwrap().unwrap();
        let mut out = Vec::new();
        tree.read_file(&entry, &mut out).unwrap();
        assert!(out == *data, "backup {number}");
        let EntryKind::File(content) = &entry.kind else { panic!("it is a file") };
        let region = regions(&tree, content).unwrap()[0];
        assert_eq!(region.extents > 6, number > 0, "backup {number}: {region:?}");
        if number + 1 == editions.len() {
            // What is there is found.
            let again = back_up(&repo, data, Some(snapshot.clone()));
            assert_eq!((again.stats.new_chunks, again.root), (0, snapshot.root));
        }
    }
}

/// How many backups lie before one.
fn depth(all: &[Snapshot], one: &Snapshot) -> usize {
    let parent = one.parent.as_ref().and_then(|id| all.iter().find(|other| other.id == *id));
    parent.map_or(0, |parent| 1 + depth(all, parent))
}
