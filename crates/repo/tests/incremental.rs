//! Incremental backups of files that are written page by page: what they store, that each comes back,
//! and that a restore never reads more than twice what it needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use backstay_repo::internals::{RegionReading, regions};
use backstay_repo::*;
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
    let pages = 2 * 8192;
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
