//! One function for each parser of bytes from a store: what fuzzing drives for hours, and the test
//! `mutations` for a fixed number of altered samples. Each panics when something does not hold.

use crate::codec::Codec;
use crate::entry::{Body, EntryKind};
use crate::index::{PackInfo, SegmentBuilder};
use crate::tree::{ChunkSink, ExtentLeaf, Mapped, PageHashes, TreeBuilder, encode_leaf};
use crate::{
    Compression, Entry, Environment, Extent, FileContent, InitOptions, Kind, LeafRef, Member,
    Metadata, ObjectId, Repository, Result, Secret, Store, compare_paths,
};

/// A parser and what it is given.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Valid ones.
    pub samples: fn() -> Vec<Vec<u8>>,
}

pub const ALL: &[Target] = &[
    Target { name: "archived", run: archived, samples: archived_samples },
    Target { name: "audit", run: audit, samples: crate::audit::samples },
    Target { name: "authority", run: authority, samples: crate::authority::hosts::samples },
    Target { name: "header", run: header, samples: object_samples },
    Target { name: "index", run: index, samples: index_samples },
    Target { name: "index_part", run: index_part, samples: part_samples },
    Target { name: "key_slot", run: key_slot, samples: json_samples },
    Target { name: "maintenance", run: maintenance, samples: crate::maintenance::samples },
    Target { name: "names", run: names, samples: name_samples },
    Target { name: "pack", run: pack, samples: pack_samples },
    Target { name: "paper", run: paper, samples: paper_samples },
    Target { name: "parity", run: parity, samples: backstay_store::internals::parity_samples },
    Target { name: "record", run: record, samples: record_samples },
    Target { name: "session", run: session, samples: session_samples },
    Target { name: "settings", run: settings, samples: settings_samples },
    Target { name: "shares", run: shares, samples: share_samples },
    Target { name: "slices", run: slices, samples: slice_samples },
    Target { name: "snapshot", run: snapshot, samples: snapshot_samples },
    Target { name: "tree", run: tree, samples: tree_samples },
];

/// Archived files: parts that are sealed and say what they like, and bytes that nobody sealed.
pub fn archived(bytes: &[u8]) {
    super::archived(bytes);
    let Some((summary, rest)) = bytes.split_first_chunk::<48>() else { return };
    let mut summary = *summary;
    // Mostly small, so that a table can be long enough.
    if summary[7] < 250 {
        summary[3..8].fill(0);
    }
    let size = u64::from_le_bytes(std::array::from_fn(|n| summary[n]));
    summary[40..44].copy_from_slice(&(size.div_ceil(1 << 20) as u32).to_le_bytes());
    let (table, blocks) = rest.split_at(rest.len().min(size.div_ceil(1 << 20) as usize * 4));
    let blocks: Vec<&[u8]> = blocks.chunks(64).collect();
    super::forged_archived(&summary, table, &blocks);
}

/// Records of what was done with keys, as they lie inside the seal.
pub fn audit(body: &[u8]) {
    super::audit(body);
}

/// Who may write and what counts: hosts, and rolls of epochs and of hosts, as they lie inside the seal.
pub fn authority(body: &[u8]) {
    super::authority(body);
}

/// Headers of objects, which lie in the store in the clear.
pub fn header(bytes: &[u8]) {
    // Nobody without a key makes one that opens.
    assert!(!super::header(bytes));
}

/// Index segments, as they lie inside the seal.
pub fn index(plain: &[u8]) {
    if let Some(chunks) = super::segment(plain) {
        assert!(chunks <= plain.len() / 28);
    }
}

/// Parts of runs of the index: a root, and what it says that is inside the seals behind it.
pub fn index_part(plain: &[u8]) {
    super::index_root(plain);
    if let Some(entries) = super::index_part(plain) {
        assert!(entries <= plain.len() / 28);
    }
}

/// Key slots and `format`, which lie in the store in the clear.
pub fn key_slot(json: &[u8]) {
    super::key_slot(json);
    super::format(json);
    super::epoch(json);
}

/// What people type from paper, files of age, and key files of hosts.
pub fn paper(bytes: &[u8]) {
    super::host_key(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        super::printed(text);
        super::age_file(text);
    }
}

/// What maintenance signs: lists of packs and sessions, heads of the index, tombstones.
pub fn maintenance(body: &[u8]) {
    super::maintenance_body(body);
}

/// Names of objects: what is taken for ours is written in one way.
pub fn names(key: &[u8]) {
    if let Ok(key) = std::str::from_utf8(key) {
        assert!(!super::name_is_ambiguous(key), "{key:?}");
    }
}

/// Packs: footers and trailers that are sealed and say what they like, and bytes that nobody sealed.
pub fn pack(bytes: &[u8]) {
    super::pack(bytes);
    let Some((trailer, footer)) = bytes.split_first_chunk::<16>() else { return };
    super::forged_pack(usize::from(trailer[15]), footer, *trailer);
    // With the counts put right, so that the entries are reached.
    let mut right = *trailer;
    let records = usize::from(trailer[15]);
    right[..8].copy_from_slice(&(160 + records as u64).to_le_bytes());
    right[8..12].copy_from_slice(&(footer.len() as u32 + 16).to_le_bytes());
    right[12..].copy_from_slice(&(footer.len() as u32 / 44).to_le_bytes());
    if let Some(found) = super::forged_pack(records, footer, right) {
        assert_eq!(found, footer.len() / 44);
    }
}

/// Parity files, and what a repair makes of them.
pub fn parity(bytes: &[u8]) {
    backstay_store::internals::parity(bytes);
}

/// Compressed records, as they lie inside the seal; and what is compressed comes back.
pub fn record(plain: &[u8]) {
    if let Some(content) = super::record(plain) {
        assert!(content.len() <= 8 << 20);
    }
    for compression in [Compression::Zstd(3), Compression::Lz4, Compression::None] {
        let mut record = Vec::new();
        Codec::new(compression).encode(plain, &mut record);
        assert_eq!(super::record(&record).as_deref(), Some(plain));
    }
}

/// What a session says of itself.
pub fn session(json: &[u8]) {
    super::session(json);
}

/// What a directory keeps beside objects: until when they are locked, and how much parity they get.
pub fn settings(bytes: &[u8]) {
    backstay_store::internals::settings(bytes);
}

/// Shares of a key as they are typed, and what they make together.
pub fn shares(text: &[u8]) {
    if let Ok(text) = std::str::from_utf8(text) {
        super::shares(text);
    }
}

/// Slices of a segment: their names, and what they are put together to.
pub fn slices(bytes: &[u8]) {
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Some((segment, slice)) = crate::Slice::parse(name)
    {
        assert_eq!(slice.name(segment), name);
        assert!(slice.start < slice.end);
    }
    // At most a few of them, each a start and a length; and one that says something else.
    let list = bytes.as_chunks::<3>().0.iter().take(6);
    let list: Vec<(u32, u32)> = list
        .map(|[a, b, c]| (u32::from(*a) * 4, u32::from(*b) + u32::from(*c % 2) * 256))
        .collect();
    let lie = bytes.first().is_some_and(|byte| byte.is_multiple_of(3));
    super::slices(&list, lie);
}

/// What a snapshot object says, as it lies inside the seal, and with a signature behind it.
pub fn snapshot(json: &[u8]) {
    super::signed_snapshot(json);
    if let Some(snapshot) = super::snapshot(json) {
        let _ = snapshot.short_id();
    }
}

/// Nodes of trees, leaves of extent maps and changes of page hashes, as they lie inside a record, and
/// what a restore makes of the extents.
pub fn tree(body: &[u8]) {
    super::extent_leaf(body);
    super::changed_hashes(body);
    let Some(entries) = super::tree_node(body) else { return };
    assert!(entries.is_sorted_by(|a, b| compare_paths(&a.path, &b.path).is_lt()));
    for entry in entries {
        assert!(!entry.path.split(|byte| *byte == b'/').any(|p| p == b".." || p.is_empty()));
        if let EntryKind::File(content) = &entry.kind {
            super::extents(content);
        }
    }
}

fn repository() -> Option<Repository> {
    let secret = Secret::key_file([7; 32]).ok()?;
    let env = Environment::seeded(5);
    Repository::init(Store::memory(), env, &secret, InitOptions::default()).ok()
}

fn archived_samples() -> Vec<Vec<u8>> {
    let mut forged = vec![0; 48];
    forged[0] = 100;
    forged.extend_from_slice(&[40, 0, 0, 0]);
    forged.extend_from_slice(&[7; 300]);
    let mut samples = vec![forged];
    if let Some(repository) = repository() {
        let archive = repository.archive(1);
        let name = "000000010000000000000001";
        let key = archive.push(name, &[9; 5000]).and_then(|_| archive.key(name));
        let object = key.ok().and_then(|key| repository.store().read(&key).ok());
        samples.extend(object.map(|object| object.to_vec()));
    }
    samples
}

/// Of another repository than the one that opens them.
fn object_samples() -> Vec<Vec<u8>> {
    let Some(repository) = repository() else { return Vec::new() };
    let begun =
        crate::SessionOptions::new("test", crate::SourceKind::Files, crate::SnapshotType::Full);
    let committed = repository.begin(begun).and_then(|session| {
        let root = session.tree(crate::Order::Sorted).finish()?;
        session.commit(root, serde_json::Value::Null)
    });
    drop(committed);
    let listed = repository.store().list("").unwrap_or_default();
    let objects = listed.iter().filter_map(|object| repository.store().read(&object.key).ok());
    objects.map(|object| object.to_vec()).collect()
}

fn index_samples() -> Vec<Vec<u8>> {
    let Some(repository) = repository() else { return Vec::new() };
    let mut segment = SegmentBuilder::default();
    for number in 0..3_u8 {
        let records = (0..9_u8).map(|n| (ObjectId([n ^ number; 32]), 160 + u32::from(n), 90));
        segment.add(pack_info(number), records);
    }
    let object = segment.seal(repository.keys(), [5; 16], "a segment");
    let class = crate::crypto::Class::Index;
    crate::index::open_object(repository.keys(), class, "a segment", &object).into_iter().collect()
}

fn pack_info(number: u8) -> PackInfo {
    PackInfo {
        work: crate::layout::Work { writer: [1; 8], session: [number; 16] },
        id: [number; 16],
        size: 1 << 20,
        sha256: [4; 32],
        class: crate::crypto::Class::DataPack,
        epoch: 0,
    }
}

fn part_samples() -> Vec<Vec<u8>> {
    let sample = crate::index::sample_of_part(&[0, 1].map(pack_info));
    debug_assert_eq!(super::index_part(&sample), Some(59));
    vec![sample]
}

fn json_samples() -> Vec<Vec<u8>> {
    object_samples().into_iter().filter(|object| object.first() == Some(&b'{')).collect()
}

fn paper_samples() -> Vec<Vec<u8>> {
    let env = Environment::seeded(5);
    let mut samples = vec![crate::keys::age::sample_for_fuzzing(&env).into_bytes()];
    if let Ok((lines, line)) = crate::Printed::key_file(&[7; 32]) {
        samples.push(lines.as_bytes().to_vec());
        samples.push(line.as_bytes().to_vec());
    }
    samples
}

fn name_samples() -> Vec<Vec<u8>> {
    let work = crate::layout::Work { writer: [0xa1; 8], session: [0xb2; 16] };
    [
        work.snapshot_key(),
        work.session_key(),
        work.tombstone_key(),
        work.pack_key(&[3; 16]),
        work.index_key(7),
        crate::layout::part_key(3, &[7; 16], 12),
        crate::layout::head_key(4),
    ]
    .map(String::into_bytes)
    .into()
}

fn pack_samples() -> Vec<Vec<u8>> {
    let mut sample = vec![0; 16];
    sample[15] = 200;
    for number in 0..4_u8 {
        sample.extend_from_slice(&[number; 32]);
        sample.extend_from_slice(&[1, 0, 0, 0]);
        sample.extend_from_slice(&(160 + 40 * u32::from(number)).to_le_bytes());
        sample.extend_from_slice(&40_u32.to_le_bytes());
    }
    vec![sample]
}

fn record_samples() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..6000_u32).map(|n| (n / 90) as u8).collect();
    let encode = |compression| {
        let mut record = Vec::new();
        Codec::new(compression).encode(&text, &mut record);
        record
    };
    [Compression::Zstd(3), Compression::Lz4, Compression::None].map(encode).into()
}

fn session_samples() -> Vec<Vec<u8>> {
    vec![
        br#"{"source":"a","host":"b","started":"2026-01-01T00:00:00Z","version":"1",
            "process":{"pid":12,"began":34,"boot":"x","namespace":"pid:[1]"}}"#
            .to_vec(),
    ]
}

fn settings_samples() -> Vec<Vec<u8>> {
    ["1790000000", "10\n", "0"].map(|text| text.as_bytes().to_vec()).into()
}

fn share_samples() -> Vec<Vec<u8>> {
    let Some(repository) = repository() else { return Vec::new() };
    let Ok((_, shares)) = repository.escrow(3, 2, "shared") else { return Vec::new() };
    let all: Vec<String> = shares.iter().map(|share| share.text().to_string()).collect();
    let mut samples: Vec<Vec<u8>> = all.iter().map(|text| text.clone().into_bytes()).collect();
    samples.push(all.join("\n\n").into_bytes());
    samples.extend(shares.first().map(|share| share.line().as_bytes().to_vec()));
    samples
}

fn slice_samples() -> Vec<Vec<u8>> {
    let slice = crate::Slice { start: 0x400, end: 0x8000 };
    let names = slice.name("000000010000000000000001").into_bytes();
    vec![names, vec![1, 200, 1, 40, 90, 0, 90, 255, 1], vec![0, 200, 1, 40, 90, 0]]
}

fn snapshot_samples() -> Vec<Vec<u8>> {
    let root = "ab".repeat(32);
    let signed = format!(r#"{{"source":"a","root":"{root}","signature":"{}"}}"#, "cd".repeat(64));
    vec![
        signed.into_bytes(),
        format!(
            r#"{{"source":"a","kind":"files","type":"full","time":"2026-01-01T00:00:00Z",
            "finished":"2026-01-01T00:00:01Z","host":"b","version":"1","tags":{{"k":"v"}},
            "parent":null,"root":"{root}","stats":{{"files":1}},
            "problems":[{{"path":"p","what":"w"}}],"detail":{{"x":[1,2]}}}}"#
        )
        .into_bytes(),
    ]
}

struct Kept(Vec<Vec<u8>>);

impl ChunkSink for Kept {
    fn store(&mut self, _: Kind, content: &[u8]) -> Result<ObjectId> {
        self.0.push(content.to_vec());
        Ok(ObjectId([self.0.len() as u8; 32]))
    }
}

fn tree_samples() -> Vec<Vec<u8>> {
    let extent =
        |offset, length| Extent { offset, length, chunk: ObjectId([6; 32]), chunk_offset: 0 };
    let mut kept = Kept(Vec::new());
    let mut builder = TreeBuilder::new([1; 32]);
    let file = |size, body| EntryKind::File(FileContent { size, body });
    let kinds = [
        EntryKind::Directory,
        file(3, Body::Inline(vec![1, 2, 3])),
        file(900, Body::Extents(vec![extent(0, 400), extent(500, 400)])),
        file(700, Body::Member(Box::new(Member { extent: extent(0, 700), hash: [5; 16] }))),
        file(1 << 30, Body::Leaves(vec![LeafRef { id: ObjectId([8; 32]), offset: 0 }])),
        EntryKind::Hardlink { to: b"d/00000".to_vec() },
    ];
    for (number, kind) in kinds.iter().cycle().take(900).enumerate() {
        let path = format!("d/{number:05}").into_bytes();
        let meta =
            Metadata { xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())], ..Metadata::default() };
        let pushed = builder.push(&Entry { path, meta, kind: kind.clone() }, &mut kept);
        debug_assert!(pushed.is_ok());
    }
    let _ = builder.finish(&mut kept);
    let leaf = ExtentLeaf {
        extents: vec![extent(0, 1 << 20), extent(1 << 20, 1 << 20)],
        cells: vec![[1; 16]; 2],
        pages: PageHashes::Inline(vec![3; 64]),
    };
    let page = |offset: u64, chunk, at: u32| Extent {
        offset: offset * 8192,
        length: 8192,
        chunk: ObjectId([chunk; 32]),
        chunk_offset: at * 8192,
    };
    let mapped = ExtentLeaf {
        extents: vec![page(0, 1, 0), page(1, 2, 0), page(2, 1, 2), page(9, 2, 1)],
        cells: vec![[1; 16]; 2],
        pages: PageHashes::Mapped(Mapped {
            hashes: vec![ObjectId([3; 32]); 2],
            chunks: vec![(ObjectId([1; 32]), 128), (ObjectId([2; 32]), 2)],
        }),
    };
    kept.0.truncate(6);
    kept.0.extend([encode_leaf(&leaf), encode_leaf(&mapped)]);
    kept.0.push(crate::tree::encode_change(&[(0, [5; 8]), (1, [6; 8]), (900, [7; 8])]));
    kept.0
}
