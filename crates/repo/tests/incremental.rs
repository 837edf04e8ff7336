//! Incremental backups of files that are written page by page: what they store, that each comes back,
//! and that a restore never reads more than twice what it needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use backstay_repo::internals::{RegionReading, regions, with_pages_exchanged};
use backstay_repo::*;
use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, RngSeed, TestRunner};
use support::*;

const PAGE: usize = 8192;

/// Random numbers.
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        ((self.0 >> 33) as usize) % below
    }
}

/// A page as a database has it: it compresses to about a fourth, and no two are alike.
fn page(dice: &mut Dice) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE);
    while page.len() < PAGE {
        page.extend_from_slice(&(dice.next(1 << 30) as u64).to_le_bytes());
        page.extend_from_slice(b"account balance filler  ");
    }
    page
}

fn database(pages: usize, dice: &mut Dice) -> Vec<u8> {
    (0..pages).flat_map(|_| page(dice)).collect()
}

/// Overwrites so many pages anywhere.
fn scatter(data: &mut [u8], count: usize, dice: &mut Dice) {
    let pages = data.len() / PAGE;
    for _ in 0..count {
        let at = dice.next(pages) * PAGE;
        data[at..at + PAGE].copy_from_slice(&page(dice));
    }
}

fn on_top_of(repo: &Repository, parent: Option<&Snapshot>, data: &[u8]) -> Snapshot {
    let files = files(&[("base/1/16384", Chunking::Grid, data.to_vec())]);
    backup_as(repo, &files, after(parent)).unwrap()
}

fn after(parent: Option<&Snapshot>) -> SessionOptions {
    SessionOptions { parent: parent.cloned(), workers: 2, ..options("test") }
}

fn entry(repo: &Repository, snapshot: &Snapshot) -> (Tree, Entry) {
    let tree = repo.tree(snapshot).unwrap();
    let entry = tree.get(b"base/1/16384").unwrap().unwrap();
    (tree, entry)
}

fn read(repo: &Repository, snapshot: &Snapshot) -> Vec<u8> {
    let (tree, entry) = entry(repo, snapshot);
    let mut out = Vec::new();
    tree.read_file(&entry, &mut out).unwrap();
    out
}

fn reading(repo: &Repository, snapshot: &Snapshot) -> Vec<RegionReading> {
    let (tree, entry) = entry(repo, snapshot);
    let EntryKind::File(content) = &entry.kind else { panic!("it is a file") };
    regions(&tree, content).unwrap()
}

fn compressed(pages: &[u8]) -> u64 {
    zstd::bulk::compress(pages, 3).unwrap().len() as u64
}

/// The pages that differ, one behind the other.
fn changed(before: &[u8], now: &[u8]) -> Vec<u8> {
    let pages = before.chunks(PAGE).zip(now.chunks(PAGE));
    pages.filter(|(a, b)| a != b).flat_map(|(_, b)| b.to_vec()).collect()
}

/// At one percent of scattered changes a day, a month of backups stores little more than the pages
/// that changed, metadata and padding included.
#[test]
fn an_incremental_stores_little_more_than_the_changed_pages() {
    let repo = repository(&Store::memory());
    let dice = &mut Dice(1);
    let pages = 8192 + 400;
    let mut data = database(pages, dice);
    let mut last = on_top_of(&repo, None, &data);
    let (mut stored, mut wanted) = (0, 0);
    for day in 1..=30 {
        let before = data.clone();
        scatter(&mut data, pages / 100, dice);
        last = on_top_of(&repo, Some(&last), &data);
        stored += last.stats.stored_bytes;
        wanted += compressed(&changed(&before, &data));
        let share = stored as f64 / wanted as f64;
        if std::env::var("SHOW").is_ok() {
            println!("{day} {} {share:.3} {:?}", last.stats.stored_bytes, reading(&repo, &last)[0]);
        }
        assert!(share <= 1.3, "day {day}: {stored} bytes for {wanted}");
        for region in reading(&repo, &last) {
            assert!(region.read <= 2 * region.needed, "{region:?}");
        }
    }
    assert!(read(&repo, &last) == data);
}

/// Where far more changes, pages of old chunks move so that the bound holds, which costs at most as
/// much again as the changed pages.
#[test]
fn many_changes_move_pages_and_a_restore_reads_at_most_twice_what_it_needs() {
    let repo = repository(&Store::memory());
    let dice = &mut Dice(2);
    let pages = 1500;
    let mut data = database(pages, dice);
    let mut last = on_top_of(&repo, None, &data);
    let first = last.stats.new_bytes;
    let (mut stored, mut wanted, mut most) = (0, 0, 0);
    for round in 0..60 {
        let before = data.clone();
        scatter(&mut data, pages / 20, dice);
        last = on_top_of(&repo, Some(&last), &data);
        stored += last.stats.new_bytes;
        wanted += changed(&before, &data).len() as u64;
        for region in reading(&repo, &last) {
            assert!(region.read <= 2 * region.needed, "{round}: {region:?}");
            most = most.max(region.read * 100 / region.needed);
        }
        assert!(read(&repo, &last) == data, "{round}");
    }
    if std::env::var("SHOW").is_ok() {
        println!("{first} first, {stored} stored for {wanted}, at most {most} %");
    }
    assert!(most > 150, "nothing had to move: {most}");
    assert!(stored * 100 <= wanted * 140, "{stored} bytes for {wanted}");
}

/// A backup every few minutes, each with a page or two, must not end in thousands of tiny chunks.
#[test]
fn many_small_backups_leave_a_bounded_number_of_chunks() {
    let repo = repository(&Store::memory());
    let dice = &mut Dice(3);
    let mut data = database(1024, dice);
    let mut last = on_top_of(&repo, None, &data);
    let mut most = 0;
    for round in 0..230 {
        // Another page each time.
        let at = round * 4 * PAGE;
        data[at..at + PAGE].copy_from_slice(&page(dice));
        last = on_top_of(&repo, Some(&last), &data);
        most = most.max(reading(&repo, &last)[0].chunks);
    }
    assert!(most > 192 && most <= 8 + 192 + 1, "{most}");
    assert!(reading(&repo, &last)[0].chunks < 160);
    assert!(read(&repo, &last) == data);
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
}

/// What may happen to a database file between two backups.
#[derive(Debug, Clone)]
enum Change {
    Scatter(usize),
    Run(usize, usize),
    Zeros(usize, usize),
    Grow(usize),
    GrowByBytes(usize),
    Cut(usize),
    /// To what it was so many backups ago.
    Return(usize),
    Move(usize, usize),
    Nothing,
}

fn apply(change: &Change, data: &mut Vec<u8>, before: &[Vec<u8>], dice: &mut Dice) {
    let pages = (data.len() / PAGE).max(1);
    match *change {
        Change::Scatter(count) if data.len() >= PAGE => scatter(data, count, dice),
        Change::Run(at, count) => {
            for n in (at % pages)..(at % pages + count).min(data.len() / PAGE) {
                data[n * PAGE..(n + 1) * PAGE].copy_from_slice(&page(dice));
            }
        }
        Change::Zeros(at, count) => {
            let from = (at % pages * PAGE).min(data.len());
            let to = (from + count * PAGE).min(data.len());
            data[from..to].fill(0);
        }
        Change::Grow(count) => data.extend(database(count, dice)),
        Change::GrowByBytes(count) => data.extend(std::iter::repeat_n(7, count)),
        Change::Cut(count) => data.truncate(data.len().saturating_sub(count).max(70_000)),
        Change::Return(ago) => data.clone_from(&before[before.len() - 1 - ago % before.len()]),
        Change::Move(from, to) if data.len() >= PAGE => {
            let (from, to) = (from % (data.len() / PAGE) * PAGE, to % (data.len() / PAGE) * PAGE);
            data.copy_within(from..from + PAGE, to);
        }
        _ => {}
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (1..40_usize).prop_map(Change::Scatter),
        2 => (0..900_usize, 1..200_usize).prop_map(|(at, n)| Change::Run(at, n)),
        1 => (0..900_usize, 1..200_usize).prop_map(|(at, n)| Change::Zeros(at, n)),
        1 => (1..90_usize).prop_map(Change::Grow),
        1 => (1..9000_usize).prop_map(Change::GrowByBytes),
        1 => (1..600_000_usize).prop_map(Change::Cut),
        1 => (0..9_usize).prop_map(Change::Return),
        1 => (0..900_usize, 0..900_usize).prop_map(|(a, b)| Change::Move(a, b)),
        1 => Just(Change::Nothing),
    ]
}

/// Whatever happens to a file in 32 backups, each comes back as it was, also when others were
/// forgotten and maintenance has run; and the bound holds for each.
#[test]
fn any_changes_come_back_and_any_snapshot_can_be_forgotten() {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 6,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(17),
        ..ProptestConfig::default()
    });
    let plan = (50_000..7_000_000_usize, proptest::collection::vec(change(), 32), 0..u64::MAX);
    runner
        .run(&plan, |(size, changes, seed)| {
            let store = Store::memory();
            let repo = repository(&store);
            let dice = &mut Dice(seed);
            let mut data = database(size.div_ceil(PAGE), dice);
            data.truncate(size.max(70_000));
            let mut kept = vec![data.clone()];
            let mut snapshots = vec![on_top_of(&repo, None, &data)];
            for change in &changes {
                apply(change, &mut data, &kept, dice);
                snapshots.push(on_top_of(&repo, snapshots.last(), &data));
                kept.push(data.clone());
            }
            for (snapshot, data) in snapshots.iter().zip(&kept) {
                assert!(read(&repo, snapshot) == *data, "{changes:?}");
                for region in reading(&repo, snapshot) {
                    assert!(region.read <= 2 * region.needed, "{changes:?}: {region:?}");
                }
            }
            assert_eq!(verify(&repo, Level::Thorough).damages, []);
            let stays = |number: usize| (number * 7 + seed as usize % 5).is_multiple_of(4);
            for (number, snapshot) in snapshots.iter().enumerate() {
                if !stays(number) {
                    repo.forget(&snapshot.id).unwrap();
                }
            }
            repo.maintain(&MaintenanceOptions::default(), &Arc::default()).unwrap();
            let repo = open(&store);
            for (number, (snapshot, data)) in snapshots.iter().zip(&kept).enumerate() {
                assert!(!stays(number) || read(&repo, snapshot) == *data, "{changes:?}");
            }
            assert_eq!(verify(&repo, Level::Thorough).damages, []);
            Ok(())
        })
        .unwrap();
}

#[test]
fn an_unchanged_file_stores_no_leaf_and_no_page() {
    let repo = repository(&Store::memory());
    let dice = &mut Dice(4);
    let mut data = database(9000, dice);
    let first = on_top_of(&repo, None, &data);
    scatter(&mut data, 50, dice);
    let second = on_top_of(&repo, Some(&first), &data);
    let third = on_top_of(&repo, Some(&second), &data);
    let leaves = |snapshot| match entry(&repo, snapshot).1.kind {
        EntryKind::File(content) => content.body,
        _ => panic!("it is a file"),
    };
    assert_eq!(leaves(&second), leaves(&third));
    assert_eq!(third.stats.new_chunks, 0);
    // A full one finds the cells that did not change, and stores the others whole.
    let full = on_top_of(&repo, None, &data);
    assert!(read(&repo, &full) == data);
    let (tree, one) = entry(&repo, &third);
    let same = |other: &Snapshot| match (&one.kind, entry(&repo, other).1.kind) {
        (EntryKind::File(one), EntryKind::File(other)) => {
            assert_ne!(*one, other);
            tree.is_same_content(one, &other).unwrap()
        }
        _ => panic!("they are files"),
    };
    assert!(same(&full) && !same(&first));
}

/// Two snapshots of a file of two regions, the second of scattered changes.
fn two(store: &Store, seed: u64) -> (Repository, [Snapshot; 2], [Vec<u8>; 2]) {
    let repo = repository(store);
    let dice = &mut Dice(seed);
    let mut data = database(9000, dice);
    data.extend_from_slice(&[9; 5000]);
    let before = data.clone();
    let first = on_top_of(&repo, None, &data);
    scatter(&mut data, 300, dice);
    let second = on_top_of(&repo, Some(&first), &data);
    (repo, [first, second], [before, data])
}

/// All that reads: restore, delta restore, ranges, whole, at every level of checking.
#[test]
fn everything_reads_a_file_that_lies_in_pages() {
    let store = Store::memory();
    let (repo, snapshots, [before, data]) = two(&store, 5);
    let folder = tempfile::tempdir().unwrap();
    let report = restore(&repo, &snapshots[1], folder.path());
    assert!(std::fs::read(folder.path().join("base/1/16384")).unwrap() == data);
    // Each chunk is fetched once, however many places of the file are in it.
    let packs = repo.usage().unwrap().packs.bytes;
    assert!(report.bytes_fetched <= packs, "{} of {packs}", report.bytes_fetched);
    // What is right already is kept: nothing at all is fetched, or the cells that changed.
    let delta = |snapshot: &Snapshot| {
        let options = RestoreOptions { delta: true, ..RestoreOptions::new(folder.path()) };
        repo.restore(snapshot, options, &Progress::default()).unwrap()
    };
    let report = delta(&snapshots[1]);
    assert_eq!((report.bytes_written, report.bytes_fetched), (0, 0));
    assert_eq!(report.bytes_kept, data.len() as u64);
    let path = folder.path().join("base/1/16384");
    let mut spoiled = data.clone();
    spoiled[(5 << 20) + 17] ^= 1;
    std::fs::write(&path, &spoiled).unwrap();
    let report = delta(&snapshots[1]);
    assert_eq!(report.bytes_written, 1 << 20);
    assert!(std::fs::read(&path).unwrap() == data);
    delta(&snapshots[0]);
    assert!(std::fs::read(&path).unwrap() == before);

    let browser = Browser::new(repo.clone(), BrowseOptions::default());
    let view = browser.view(&snapshots[1]).unwrap();
    let open = view.open(&view.get(b"base/1/16384").unwrap().unwrap()).unwrap();
    let dice = &mut Dice(6);
    for _ in 0..200 {
        let (at, length) = (dice.next(data.len()), 1 + dice.next(300_000));
        let mut out = Vec::new();
        open.read_at(at as u64, length, &mut out).unwrap();
        assert!(out == data[at..(at + length).min(data.len())], "{at}, {length}");
    }
    for level in [Level::Basic, Level::Standard, Level::Thorough] {
        assert_eq!(verify(&repo, level).damages, []);
    }
}

/// Every chunk may be whole and the map wrong all the same.
#[test]
fn a_map_that_takes_pages_from_other_places_is_found_by_a_thorough_check_alone() {
    let store = Store::memory();
    let (repo, [_, second], [_, data]) = two(&store, 7);
    let wrong = with_pages_exchanged(&repo, &second, b"base/1/16384").unwrap();
    assert!(read(&repo, &wrong) != data);
    assert_eq!(verify(&repo, Level::Standard).damages, []);
    let damages = verify(&repo, Level::Thorough).damages;
    assert_eq!(damages.len(), 2, "{damages:?}");
    for damage in damages {
        assert_eq!(damage.object, format!("snapshot {}", wrong.short_id()));
        assert!(damage.what.contains("base/1/16384 at byte"), "{damage:?}");
        assert!(damage.what.contains("is not what its id says"), "{damage:?}");
    }
}

fn copied(from: &Repository, snapshot: &Snapshot, to: &Repository) -> Snapshot {
    match copy(from, snapshot, to, &CopyOptions::default()).unwrap() {
        Copied::New(made) => *made,
        Copied::There(_) => panic!("it was there"),
    }
}

#[test]
fn a_copy_of_an_incremental_stores_the_changed_pages_and_later_backups_go_on_from_it() {
    let (repo, snapshots, [before, mut data]) = two(&Store::memory(), 8);
    let to = repository(&Store::memory());
    let first = copied(&repo, &snapshots[0], &to);
    let second = copied(&repo, &snapshots[1], &to);
    assert!(read(&to, &first) == before && read(&to, &second) == data);
    let [original, copy] = [&snapshots[1], &second].map(|snapshot| snapshot.stats.new_bytes);
    assert!(copy <= original + original / 10, "{copy} bytes, {original} in the original");
    scatter(&mut data, 30, &mut Dice(9));
    let third = on_top_of(&to, Some(&second), &data);
    assert!(third.stats.new_bytes < 40 * PAGE as u64 * 2, "{}", third.stats.new_bytes);
    assert!(read(&to, &third) == data);
    // Alone, without the snapshot before, it is copied whole.
    let alone = repository(&Store::memory());
    let only = copied(&repo, &snapshots[1], &alone);
    assert!(only.stats.new_bytes > (9000 * PAGE) as u64);
    assert_eq!(verify(&to, Level::Thorough).damages, []);
    assert_eq!(verify(&alone, Level::Thorough).damages, []);
}

fn packs(store: &Store, class: u8) -> Vec<String> {
    let keys = store.list("packs/").unwrap().into_iter().map(|object| object.key);
    keys.filter(|key| store.read_range(key, 9..10).unwrap()[0] == class).collect()
}

/// Whatever of the snapshot before is lost, the next one is whole.
#[test]
fn a_parent_that_lost_something_only_saves_less_work() {
    for class in [1, 2] {
        let store = Store::memory();
        let (_, [first, second], [_, mut data]) = two(&store, 10);
        let all = packs(&store, class);
        for (number, lost) in all.iter().enumerate() {
            let body = store.read(lost).unwrap();
            store.delete(lost).unwrap();
            let repo = open(&store);
            scatter(&mut data, 20, &mut Dice(number as u64));
            for parent in [&first, &second] {
                let next = on_top_of(&repo, Some(parent), &data);
                assert!(read(&repo, &next) == data, "{lost}");
            }
            store.create(lost, body).unwrap();
        }
    }
}

/// What a copy has gives back the run chunks and cells of a snapshot whose packs are lost.
#[test]
fn lost_pages_are_had_from_another_repository() {
    let (store, other) = (Store::memory(), Store::memory());
    let (repo, snapshots, states) = two(&store, 11);
    let to = repository(&other);
    let copies = snapshots.each_ref().map(|snapshot| copied(&repo, snapshot, &to));
    for lost in packs(&store, 1) {
        store.delete(&lost).unwrap();
    }
    // A restore goes on there.
    let repo = open(&store);
    let sibling =
        Sibling { name: "other".into(), repository: to.clone(), snapshot: copies[1].clone() };
    let folder = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        fallback: Some(Arc::new(Fallback::new("first", move || vec![sibling.clone()]))),
        ..RestoreOptions::new(folder.path())
    };
    repo.restore(&snapshots[1], options, &Progress::default()).unwrap();
    assert!(std::fs::read(folder.path().join("base/1/16384")).unwrap() == states[1]);
    // And all is made whole again.
    let options = RepairOptions { from: Some(to), ..RepairOptions::default() };
    let report = repo.repair(&options, &Arc::default()).unwrap();
    assert_eq!(report.unrepaired, []);
    let repo = open(&store);
    for (snapshot, data) in snapshots.iter().zip(&states) {
        assert!(read(&repo, snapshot) == *data);
    }
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
}

/// A file that is another one each time that it is read.
struct Restless {
    bytes: Arc<Vec<u8>>,
    reads: Mutex<HashMap<u64, u64>>,
}

impl Reader for Restless {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.bytes.as_slice().read_at(offset, buffer)?;
        let mut reads = self.reads.lock().unwrap();
        let times = reads.entry(offset).or_default();
        *times += 1;
        // Every third page, and other ones each time.
        let first = *times as usize % 3;
        for page in buffer.chunks_mut(PAGE).skip(first).step_by(3).filter(|_| *times > 1) {
            page[100] = page[100].wrapping_add(*times as u8);
        }
        Ok(read)
    }
}

/// Cells that have to be read again may have changed by then: each is stored as it was read last, and
/// the end of it is that all are stored whole.
#[test]
fn a_source_that_changes_while_it_is_read_again_is_stored_as_it_was_read() {
    let repo = repository(&Store::memory());
    let dice = &mut Dice(12);
    let mut data = database(1024, dice);
    let mut last = on_top_of(&repo, None, &data);
    let mut again = 0;
    for round in 0..10 {
        // Just under a half of each cell.
        for page_number in (0..1024).filter(|n| (n + round) % 128 < 60) {
            let at = page_number * PAGE;
            data[at..at + PAGE].copy_from_slice(&page(dice));
        }
        let content = Restless { bytes: Arc::new(data.clone()), reads: Mutex::default() };
        let session = repo.begin(after(Some(&last))).unwrap();
        let mut tree = session.tree(Order::Any);
        let reader = Arc::new(content);
        tree.file(
            file("base/1/16384", data.len()),
            Box::new(Shared(reader.clone())),
            Chunking::Grid,
        )
        .unwrap();
        let root = tree.finish().unwrap();
        last = session.commit(root, serde_json::Value::Null).unwrap();
        again += reader.reads.lock().unwrap().values().filter(|times| **times > 1).count();
        for region in reading(&repo, &last) {
            assert!(region.read <= 2 * region.needed, "{round}: {region:?}");
        }
    }
    assert!(again > 8, "{again}");
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
}

struct Shared(Arc<Restless>);

impl Content for Shared {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        Ok(self)
    }
}

impl Reader for Shared {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_at(offset, buffer)
    }
}

/// Each repository of a pass has a parent of its own.
#[test]
fn each_lane_compares_with_its_own_parent() {
    let dice = &mut Dice(13);
    let mut data = database(2000, dice);
    let repos = [repository(&Store::memory()), repository(&Store::memory())];
    let first = on_top_of(&repos[0], None, &data);
    scatter(&mut data, 20, dice);
    let second = on_top_of(&repos[1], None, &data);
    scatter(&mut data, 20, dice);
    let parents = [Some(&first), Some(&second)];
    let targets = repos.iter().zip(parents).map(|(repo, parent)| (repo.clone(), after(parent)));
    let session = Session::begin(targets.collect()).unwrap();
    let mut tree = session.tree(Order::Any);
    let content = Bytes { bytes: Arc::new(data.clone()), ranges: None };
    tree.file(file("base/1/16384", data.len()), Box::new(content), Chunking::Grid).unwrap();
    let root = tree.finish().unwrap();
    let made = session.commit_all(root, serde_json::Value::Null);
    for ((repo, made), most) in repos.iter().zip(made).zip([40, 20]) {
        let made = made.unwrap();
        assert!(made.stats.new_bytes < (most * PAGE) as u64 + 60_000, "{}", made.stats.new_bytes);
        assert!(read(repo, &made) == data);
        assert_eq!(verify(repo, Level::Thorough).damages, []);
    }
}

/// A file of which is known where it may have changed.
struct Told {
    data: Arc<Vec<u8>>,
    changed: Vec<std::ops::Range<u64>>,
}

impl Content for Told {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        Ok(self)
    }
}

impl Reader for Told {
    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.data.as_slice().read_at(offset, buffer)
    }

    fn changed(&self, _lane: usize) -> Option<&[std::ops::Range<u64>]> {
        Some(&self.changed)
    }
}

/// What nobody says has changed is not read, and comes back all the same; what moves because its chunk
/// has little left alive is, and nothing is where it was not.
#[test]
fn only_cells_that_may_have_changed_are_read() {
    const CELL: usize = 1 << 20;
    let repo = repository(&Store::memory());
    let mut dice = Dice(11);
    let mut data = database((66 * CELL) / PAGE, &mut dice);
    let mut parent = on_top_of(&repo, None, &data);
    let mut read_in_all = 0;
    for round in 0..12 {
        let mut changed = Vec::new();
        // The first page of a cell, the last of another, one in the second region.
        for number in [round % 7 * 128, 20 * 128 + 127, 65 * 128 + round] {
            let at = number * PAGE;
            data[at..at + PAGE].copy_from_slice(&page(&mut dice));
            changed.push(at as u64..(at + PAGE) as u64);
        }
        if round % 4 == 3 {
            let end = data.len();
            data.extend(database(3, &mut dice));
            changed.push(end as u64..data.len() as u64);
        }
        changed.sort_by_key(|range| range.start);
        let session = repo.begin(after(Some(&parent))).unwrap();
        let mut tree = session.tree(Order::Any);
        let content = Told { data: Arc::new(data.clone()), changed };
        let size = data.len();
        tree.file(file("base/1/16384", size), Box::new(content), Chunking::Grid).unwrap();
        let root = tree.finish().unwrap();
        parent = session.commit(root, serde_json::Value::Null).unwrap();
        assert!(read(&repo, &parent) == data, "round {round}");
        let bytes = parent.stats.bytes_read;
        assert!(bytes >= 3 * CELL as u64 - PAGE as u64, "{bytes} in round {round}");
        read_in_all += bytes;
    }
    assert!(read_in_all < 12 * 12 * CELL as u64, "{read_in_all} bytes");
    assert_eq!(verify(&repo, Level::Thorough).damages, []);
}
