//! What holds for all inputs: any set of files comes back equal, any bytes in any parser end in a
//! value or an error and take no more memory than their size allows, chunks are cut where another
//! implementation cuts them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use backstay_repo::internals::{self, Chunker};
use backstay_repo::*;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use support::*;

/// Remembers the largest piece of memory that was asked for.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it hands everything to the system's allocator as it is.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// More than any single piece of memory that any test of this file has a reason to ask for: a pack
/// of 32 MiB with room for a last record.
const BOUND: usize = 40 << 20;

fn bounded() {
    let largest = LARGEST.load(Relaxed);
    assert!(largest <= BOUND, "{largest} bytes were asked for at once");
}

/// Names that sort in interesting ways next to `/`.
fn name() -> impl Strategy<Value = String> {
    "[a-c.!\\-~ ä]{1,3}".prop_filter("not a special name", |name| name != "." && name != "..")
}

fn path() -> impl Strategy<Value = String> {
    vec(name(), 1..4).prop_map(|parts| parts.join("/"))
}

/// Content on both sides of every threshold.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![
        3 => 0_usize..100,
        2 => 4090_usize..4100,
        2 => 8190_usize..20_000,
        2 => 65_530_usize..65_540,
        1 => 262_000_usize..263_000,
        1 => (1_usize << 20) - 3..(1 << 20) + 3,
        1 => 1_000_000_usize..2_500_000,
    ];
    (size, any::<u64>(), 0..4_u8).prop_map(|(size, seed, kind)| match kind {
        0 => noise(size, seed),
        1 => text(size, seed),
        2 => vec![0; size],
        // Zeros with something in the middle.
        _ => {
            let mut bytes = vec![0; size];
            if let Some(byte) = bytes.get_mut(size / 2) {
                *byte = seed as u8;
            }
            bytes
        }
    })
}

fn some_files() -> impl Strategy<Value = Files> {
    let chunking = prop_oneof![Just(Chunking::ContentDefined), Just(Chunking::Grid)];
    btree_map(path(), (chunking, content()), 0..12).prop_map(|files| {
        let paths: Vec<String> = files.keys().cloned().collect();
        files
            .into_iter()
            // A path below a file is none.
            .filter(|(path, _)| !paths.iter().any(|p| path.starts_with(&format!("{p}/"))))
            .map(|(path, (chunking, bytes))| (path, (chunking, Arc::new(bytes))))
            .collect()
    })
}

#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, Vec<u8>),
    Overwrite(usize, Vec<u8>),
    Truncate(usize),
    Remove,
}

fn edit() -> impl Strategy<Value = Edit> {
    let bytes = || vec(any::<u8>(), 0..5000);
    prop_oneof![
        (any::<usize>(), bytes()).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (any::<usize>(), bytes()).prop_map(|(at, bytes)| Edit::Overwrite(at, bytes)),
        any::<usize>().prop_map(Edit::Truncate),
        Just(Edit::Remove),
    ]
}

fn apply(files: &mut Files, edits: &[(usize, Edit)]) {
    for (which, edit) in edits {
        let Some(path) = files.keys().nth(which % files.len().max(1)).cloned() else { return };
        let (chunking, mut bytes) = (files[&path].0, files[&path].1.to_vec());
        let place = |at: usize| at % (bytes.len() + 1);
        match edit {
            Edit::Insert(at, new) => {
                let at = place(*at);
                bytes.splice(at..at, new.iter().copied());
            }
            Edit::Overwrite(at, new) => {
                let at = place(*at);
                let end = (at + new.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            Edit::Truncate(at) => bytes.truncate(place(*at)),
            Edit::Remove => {
                files.remove(&path);
                continue;
            }
        }
        files.insert(path, (chunking, bytes.into()));
    }
}

fn restored(repo: &Repository, snapshot: &Snapshot, files: &Files) {
    let to = tempfile::tempdir().unwrap();
    let options = RestoreOptions { sync: false, ..RestoreOptions::new(to.path()) };
    repo.restore(snapshot, options, &Progress::default()).unwrap();
    assert_restored(files, to.path());
    let tree = repo.tree(snapshot).unwrap();
    let paths: Vec<Vec<u8>> = tree.iter().map(|entry| entry.unwrap().path).collect();
    assert_eq!(paths.len(), files.len());
    assert!(paths.is_sorted_by(|a, b| compare_paths(a, b).is_lt()));
    for path in paths {
        let entry = tree.get(&path).unwrap().unwrap();
        let mut content = Vec::new();
        assert_eq!(tree.read_file(&entry, &mut content).unwrap(), content.len() as u64);
        assert!(content == *files[std::str::from_utf8(&path).unwrap()].1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_files_and_any_edits_come_back(
        first in some_files(),
        edits in vec((any::<usize>(), edit()), 0..6),
        more in some_files(),
        compression in prop_oneof![
            Just(Compression::None),
            Just(Compression::Lz4),
            Just(Compression::Zstd(1)),
        ],
    ) {
        let store = Store::memory();
        let repo = repository(&store);
        let options = || SessionOptions { compression, workers: 2, ..options("test") };
        let before = backup_as(&repo, &first, options()).unwrap();
        let mut second = first.clone();
        apply(&mut second, &edits);
        let above = |path: &str| {
            second.keys().any(|p| {
                p.starts_with(&format!("{path}/")) || path.starts_with(&format!("{p}/"))
            })
        };
        let more: Files = more.into_iter().filter(|(path, _)| !above(path)).collect();
        second.extend(more);
        let after = backup_as(&repo, &second, options()).unwrap();
        let repo = open(&store);
        restored(&repo, &before, &first);
        restored(&repo, &after, &second);
        prop_assert_eq!(verify(&repo, Level::Thorough).damages, vec![]);
        // From the one to the other, over what is there.
        let to = tempfile::tempdir().unwrap();
        let options = |delta| RestoreOptions {
            sync: false, delta, prune: delta, ..RestoreOptions::new(to.path())
        };
        repo.restore(&before, options(false), &Progress::default()).unwrap();
        repo.restore(&after, options(true), &Progress::default()).unwrap();
        assert_restored(&second, to.path());
        // The same again is the same.
        let again = backup(&repo, &second).unwrap();
        prop_assert_eq!((again.root, again.stats.new_chunks), (after.root, 0));
        bounded();
    }

    #[test]
    fn the_tree_does_not_depend_on_the_order_or_the_workers(files in some_files()) {
        let store = Store::memory();
        let repo = repository(&store);
        let first = backup(&repo, &files).unwrap();
        let session = repo.begin(SessionOptions { workers: 1, ..options("test") }).unwrap();
        let mut paths: Vec<&String> = files.keys().collect();
        paths.sort_by(|a, b| compare_paths(a.as_bytes(), b.as_bytes()));
        let mut tree = session.tree(Order::Sorted);
        for path in paths {
            let (chunking, bytes) = &files[path];
            let content = Bytes { bytes: bytes.clone(), ranges: None };
            tree.file(file(path, bytes.len()), Box::new(content), *chunking).unwrap();
        }
        let root = tree.finish().unwrap();
        let second = session.commit(root, serde_json::Value::Null).unwrap();
        restored(&repo, &second, &files);
        prop_assert_eq!(second.stats.bytes, first.stats.bytes);
        prop_assert_eq!(second.stats.files, first.stats.files);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn paths_have_one_order(
        a in vec(any::<u8>(), 0..6),
        b in vec(any::<u8>(), 0..6),
        c in vec(any::<u8>(), 0..6),
    ) {
        use std::cmp::Ordering::{Equal, Less};
        prop_assert_eq!(compare_paths(&a, &b), compare_paths(&b, &a).reverse());
        prop_assert_eq!(compare_paths(&a, &b) == Equal, a == b);
        if compare_paths(&a, &b) == Less && compare_paths(&b, &c) == Less {
            prop_assert_eq!(compare_paths(&a, &c), Less);
        }
        // What is below `a` lies between `a` and everything else that starts with `a`.
        let below = [&a[..], b"/", &b[..]].concat();
        prop_assert_eq!(compare_paths(&a, &below), Less);
        if b.first().is_some_and(|first| *first != b'/') {
            prop_assert_eq!(compare_paths(&below, &[&a[..], &b[..]].concat()), Less);
        }
    }

    #[test]
    fn any_bytes_in_any_parser(bytes in vec(any::<u8>(), 0..600)) {
        try_parsers(&bytes);
        bounded();
    }

    /// Bytes that are nearly right reach further.
    #[test]
    fn right_bytes_with_some_wrong_ones(
        which in 0..8_usize,
        flips in vec((any::<usize>(), any::<u8>()), 1..5),
        cut in any::<usize>(),
    ) {
        let mut bytes = SPECIMENS[which % SPECIMENS.len()].clone();
        for (at, bits) in &flips {
            let at = at % bytes.len();
            bytes[at] ^= bits;
        }
        if cut % 3 == 0 {
            bytes.truncate(cut / 3 % bytes.len());
        }
        try_parsers(&bytes);
        bounded();
    }

    #[test]
    fn any_counts_in_sealed_packs_and_archived_files(
        footer in vec(any::<u8>(), 0..200),
        numbers in (any::<u64>(), any::<u32>(), any::<u32>()),
        near in (0..400_u64, 0..300_u32, 0..8_u32),
        table in vec(any::<u8>(), 0..40),
        blocks in vec(vec(any::<u8>(), 0..30), 0..4),
    ) {
        for (offset, length, count) in [numbers, near, (160, footer.len() as u32 + 16, near.2)] {
            let mut trailer = [0; 16];
            trailer[..8].copy_from_slice(&offset.to_le_bytes());
            trailer[8..12].copy_from_slice(&length.to_le_bytes());
            trailer[12..].copy_from_slice(&count.to_le_bytes());
            internals::forged_pack(near.2 as usize, &footer, trailer);
        }
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        for size in [numbers.0, near.0, 1 << 30, (1 << 30) + 1, near.0 << 17] {
            let mut summary = [0; 48];
            summary[..8].copy_from_slice(&size.to_le_bytes());
            for count in [size.div_ceil(1 << 20) as u32, numbers.1] {
                summary[40..44].copy_from_slice(&count.to_le_bytes());
                let found = internals::forged_archived(&summary, &table, &blocks);
                prop_assert_eq!(found, None);
            }
        }
        bounded();
    }
}

fn try_parsers(bytes: &[u8]) {
    internals::tree_node(bytes);
    for first in [0, 1] {
        internals::tree_node(&[&[first], bytes].concat());
    }
    internals::extent_leaf(bytes);
    internals::segment(bytes);
    internals::index_root(bytes);
    internals::index_part(bytes);
    internals::snapshot(bytes);
    internals::record(bytes);
    for codec in 0..4 {
        for length in [bytes.len() as u32, 100, 8 << 20, u32::MAX] {
            let head = [&[codec][..], &length.to_le_bytes(), bytes].concat();
            if let Some(content) = internals::record(&head) {
                assert_eq!(content.len(), length as usize);
            }
        }
    }
    internals::pack(bytes);
    internals::key_slot(bytes);
    internals::format(bytes);
    internals::header(bytes);
    internals::archived(bytes);
    let count = (bytes.len() / 44) as u32;
    let mut trailer = [0; 16];
    trailer[..8].copy_from_slice(&160_u64.to_le_bytes());
    trailer[8..12].copy_from_slice(&(bytes.len() as u32 + 16).to_le_bytes());
    trailer[12..].copy_from_slice(&count.to_le_bytes());
    internals::forged_pack(0, bytes, trailer);
}

/// One of each thing that is parsed, in the clear or as it lies in the store.
static SPECIMENS: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(|| {
    let id = ObjectId([5; 32]);
    let store = Store::memory();
    let repo = repository(&store);
    let archive = repo.archive(1);
    archive.push("00000002.history", b"1\t0/3000000\tno reason\n").unwrap();
    let snapshot = backup(&repo, &files(&[("f", Chunking::Grid, noise(9000, 1))])).unwrap();
    let read = |prefix: &str| {
        let key = store.list(prefix).unwrap().remove(0).key;
        store.read(&key).unwrap().to_vec()
    };
    let mut node = vec![0];
    for (shared, rest) in [(0_u32, &b"dir/file"[..]), (4, b"other")] {
        let entry = file("x", 3);
        node = postcard_of(&(shared, rest, &entry.meta, &entry.kind), node);
    }
    let inner = postcard_of(&(&b"dir"[..], id), vec![1]);
    let segment = {
        let mut plain = vec![0; 8 + 88 + 28];
        (plain[0], plain[4], plain[8 + 80]) = (1, 1, 1);
        plain
    };
    let part = {
        let mut plain = vec![0; 64 + 88 + 8 + 28];
        (plain[4], plain[8], plain[64 + 80]) = (1, 1, 1);
        plain
    };
    let mut record = Vec::new();
    internals::Codec::new(Compression::Zstd(3)).encode(&text(5000, 1), &mut record);
    vec![
        read("format"),
        read("keys/"),
        read("wal/"),
        serde_json::to_vec(&snapshot).unwrap(),
        node,
        inner,
        segment,
        record,
        part,
    ]
});

/// Postcard, as the engine writes it: this test says it again so that a change is noticed.
fn postcard_of(value: &impl serde::Serialize, before: Vec<u8>) -> Vec<u8> {
    postcard::to_extend(value, before).unwrap()
}

#[test]
fn specimens_are_what_the_parsers_take() {
    let all = &*SPECIMENS;
    assert!(internals::format(&all[0]) && internals::key_slot(&all[1]));
    assert!(internals::snapshot(&all[3]).is_some());
    let entries = internals::tree_node(&all[4]).unwrap();
    let paths: Vec<String> = entries.iter().map(Entry::display_path).collect();
    assert_eq!(paths, ["dir/file", "dir/other"]);
    assert!(internals::tree_node(&all[5]).is_some());
    // A second name may not lead out of the tree.
    for (to, right) in [("dir/file", true), ("../file", false), ("/etc/passwd", false)] {
        let kind = EntryKind::Hardlink { to: to.into() };
        let node = postcard_of(&(0_u32, &b"link"[..], &entries[0].meta, &kind), vec![0]);
        assert_eq!(internals::tree_node(&node).is_some(), right, "{to}");
    }
    assert_eq!(internals::segment(&all[6]), Some(1));
    assert_eq!(internals::record(&all[7]).unwrap().len(), 5000);
    assert!(internals::index_root(&all[8][..64]));
    assert_eq!(internals::index_part(&all[8]), Some(1));
    assert_eq!(internals::index_part(&all[8][..187]), None);
    // A footer of one record, and one that points outside.
    let mut footer = [0; 44];
    footer[32] = 1;
    footer[36..40].copy_from_slice(&160_u32.to_le_bytes());
    footer[40..44].copy_from_slice(&20_u32.to_le_bytes());
    let mut trailer = [0; 16];
    trailer[..8].copy_from_slice(&180_u64.to_le_bytes());
    trailer[8..12].copy_from_slice(&60_u32.to_le_bytes());
    trailer[12] = 1;
    assert_eq!(internals::forged_pack(20, &footer, trailer), Some(1));
    footer[40] = 21;
    assert_eq!(internals::forged_pack(20, &footer, trailer), None);
    // An archived file of one block, and one whose block is longer than it says.
    let summary = |size: u64| {
        let mut summary = [0; 48];
        summary[..8].copy_from_slice(&size.to_le_bytes());
        summary[40] = 1;
        summary
    };
    let block = [&[0_u8, 5, 0, 0, 0][..], b"hello"].concat();
    let table = (block.len() as u32 + 16).to_le_bytes();
    // Right but for the hash, which only the whole engine can make.
    assert_eq!(internals::forged_archived(&summary(5), &table, &[&block]), None);
}

#[test]
fn a_small_node_never_unfolds_to_gigabytes() {
    // A long path, and then entries that share all of it.
    let entry = file("x", 3);
    let long = vec![b'a'; 4 << 20];
    let mut node = postcard_of(&(0_u32, &long[..], &entry.meta, &entry.kind), vec![0]);
    for n in 1..20_000_u32 {
        let path = format!("{n:08}");
        node = postcard_of(&(long.len() as u32, path.as_bytes(), &entry.meta, &entry.kind), node);
    }
    assert!(node.len() < 8 << 20);
    assert_eq!(internals::tree_node(&node), None);
    bounded();
}

/// The masks of `fastcdc-1`, said again so that a change is noticed.
const MASK_SMALL: u64 = 0xffff_fc00_0000_0000;
const MASK_LARGE: u64 = 0xffff_c000_0000_0000;
const MIN: usize = 256 << 10;
const TARGET: usize = 1 << 20;
const MAX: usize = 4 << 20;

/// The crate takes two bytes at a step, which loses the topmost bit of the hash at every other
/// byte, and our masks use that bit. With a table of even numbers the hash halves exactly, and the
/// halved table with the halved masks asks the same question one bit lower. A boundary is the first
/// byte of the next chunk for the crate, and the last of this one for us.
fn oracle(data: &[u8], gear: &[u64; 256]) -> usize {
    let half: Vec<u64> = gear.iter().map(|g| g >> 1).collect();
    let same: Vec<u64> = half.iter().map(|g| g << 1).collect();
    let (small, large) = (MASK_SMALL >> 1, MASK_LARGE >> 1);
    let (_, at) = fastcdc::v2020::cut_gear(
        data,
        MIN,
        TARGET,
        MAX,
        small,
        large,
        small << 1,
        large << 1,
        &half,
        &same,
    );
    (at + 1).min(data.len()).min(MAX)
}

#[test]
fn chunks_end_where_another_implementation_ends_them() {
    let mut cut_by_content = 0;
    for seed in 0..6 {
        let mut gear = [0; 256];
        for (value, bytes) in gear.iter_mut().zip(noise(2048, seed).chunks_exact(8)) {
            *value = u64::from_le_bytes(bytes.try_into().unwrap()) & !1;
        }
        let chunker = Chunker::with_gear(gear);
        for data in [
            noise((9 << 20) + 4567, seed + 10),
            text((6 << 20) + 1, seed + 20),
            vec![seed as u8; (9 << 20) + 1],
            noise(MIN, seed),
            noise(MIN + 1, seed),
            noise(TARGET - 1, seed),
            noise(TARGET + 1, seed),
            Vec::new(),
        ] {
            let mut rest = &data[..];
            while !rest.is_empty() {
                let length = chunker.cut(rest);
                assert_eq!(length, oracle(rest, &gear), "seed {seed}, {} left", rest.len());
                assert!(length >= MIN.min(rest.len()) && length <= MAX);
                cut_by_content += usize::from(length < rest.len() && length < MAX);
                rest = &rest[length..];
            }
        }
    }
    assert!(cut_by_content > 30, "{cut_by_content}");
}

#[test]
fn a_file_of_many_pieces_comes_back() {
    // More extents than an entry carries itself, with holes between them.
    let mut bytes = vec![0; 10 << 20];
    let mut ranges = Vec::new();
    for n in 0..300_usize {
        let at = n * 30_000 + 4096;
        bytes[at..at + 1500].copy_from_slice(&noise(1500, n as u64));
        ranges.push(at as u64..at as u64 + 1500);
    }
    let store = Store::memory();
    let repo = repository(&store);
    let session = repo.begin(options("pieces")).unwrap();
    let mut tree = session.tree(Order::Any);
    let content = Bytes { bytes: bytes.clone().into(), ranges: Some(ranges) };
    tree.file(file("f", bytes.len()), Box::new(content), Chunking::ContentDefined).unwrap();
    let root = tree.finish().unwrap();
    let snapshot = session.commit(root, serde_json::Value::Null).unwrap();
    let entry = open(&store).tree(&snapshot).unwrap().get(b"f").unwrap().unwrap();
    let EntryKind::File(FileContent { body: Body::Leaves(leaves), .. }) = entry.kind else {
        panic!("it has leaves");
    };
    assert!(leaves.len() >= 4);
    let all = files(&[("f", Chunking::ContentDefined, bytes)]);
    restored(&open(&store), &snapshot, &all);
    assert_eq!(verify(&open(&store), Level::Thorough).damages, []);
}
