//! What benchmarks, fuzz targets and tests of the format reach; no part of the API.
//!
//! Parsers are given what lies *inside* the seals, so that they are tried with bytes that no
//! attacker without the keys could hand them: a seal must never be all that stands between bytes
//! and a panic.

pub mod targets;

use std::sync::LazyLock;

pub use crate::chunker::Chunker;
pub use crate::codec::Codec;
pub use crate::crypto::{PackKey, SessionKey};
pub use crate::id::CellHasher;
pub use crate::index::measure::Synthetic;

use crate::crypto::{Class, Keys, RootKey, derive};
use crate::pack::read_footer;
use crate::session::content_id;
use crate::{
    Archive, Compression, Entry, Environment, InitOptions, Kind, ObjectId, Repository, Secret,
    Share, Snapshot, Store,
};

/// The entries of a leaf, or nothing for an inner node; `None` when it is refused.
pub fn tree_node(body: &[u8]) -> Option<Vec<Entry>> {
    crate::tree::parse_node("a node", body)
}

pub fn extent_leaf(body: &[u8]) -> bool {
    crate::tree::parse_extents("a leaf", body).is_ok()
}

/// How many pages a change of page hashes is about.
pub fn changed_hashes(body: &[u8]) -> Option<usize> {
    crate::tree::parse_change(body).map(|change| change.len())
}

/// The number of chunks that a segment lists.
pub fn segment(plain: &[u8]) -> Option<usize> {
    crate::index::Index::of_segment("a segment", plain).ok().map(|index| index.len())
}

/// Whether the root of a part of a run of the index makes sense.
pub fn index_root(plain: &[u8]) -> bool {
    crate::index::parses_root(plain)
}

/// The number of entries of a part of a run that is put together from `root` and whatever is said to
/// be inside the seals of its sections, one behind the other.
pub fn index_part(plain: &[u8]) -> Option<usize> {
    crate::index::opens_forged(plain)
}

pub fn snapshot(plain: &[u8]) -> Option<Snapshot> {
    serde_json::from_slice(plain).ok()
}

/// The body and the signature of a snapshot, which together are what they were taken from.
pub fn signed_snapshot(plain: &[u8]) -> Option<Snapshot> {
    let (body, signature) = crate::snapshot::split_signature(plain);
    match signature {
        Some(signature) => {
            let again = crate::snapshot::join_signature(body.clone(), &signature);
            assert!(again.eq_ignore_ascii_case(plain));
        }
        None => assert!(body == plain),
    }
    snapshot(&body)
}

/// Whether bytes are what is recorded of a key.
pub fn audit(body: &[u8]) -> bool {
    crate::audit::parses(body)
}

/// Which of the bodies that say who may write these bytes are.
pub fn authority(body: &[u8]) -> [bool; 4] {
    crate::authority::hosts::parses(body)
}

/// How many shares are in a text, if all of them make sense.
pub fn shares(text: &str) -> Option<usize> {
    let all = crate::Printed::read(text).ok()?;
    let shares: Vec<Share> = all
        .into_iter()
        .filter_map(|one| match one {
            crate::Printed::Share(share) => Some(share),
            crate::Printed::KeyFile(_) => None,
        })
        .collect();
    for share in &shares {
        // What is read is written as it was.
        let again = crate::Printed::read(&share.line()).ok()?;
        assert!(
            matches!(again.as_slice(), [crate::Printed::Share(one)] if one.line() == share.line())
        );
    }
    crate::keys::escrow::combines_for_fuzzing(&shares);
    Some(shares.len())
}

/// What a segment is put together to from slices of it, which are offsets and lengths; with `lie` the
/// last one says something else than the others.
pub fn slices(list: &[(u32, u32)], lie: bool) -> Option<Vec<u8>> {
    const SEGMENT: &str = "000000010000000000000001";
    let right: Vec<u8> = (0..2048_u32).map(|n| ((n * n) >> 5) as u8).collect();
    let store = ARCHIVE.repository().store();
    // Nothing of the last ones.
    for slice in ARCHIVE.slices(SEGMENT).expect("memory can be listed") {
        let key = ARCHIVE.key(&slice.name(SEGMENT)).expect("a name of the archive");
        store.delete(&key).expect("memory forgets");
    }
    let mut sound = true;
    for (at, (start, length)) in list.iter().enumerate() {
        let range = *start as usize..(start + length) as usize;
        let mut content = right.get(range).unwrap_or_default().to_vec();
        if lie && at + 1 == list.len() {
            content.iter_mut().for_each(|byte| *byte ^= 1);
            sound = content.is_empty();
        }
        // The same once more with other bytes is refused, and an empty one is none.
        let _ = ARCHIVE.push_slice(SEGMENT, *start, &content);
    }
    let covered = |n: u32| list.iter().any(|(start, length)| *start <= n && n < start + length);
    let reach = (0..).find(|n| !covered(*n)).unwrap_or(0) as usize;
    let made = ARCHIVE.assemble(SEGMENT).ok()?;
    if sound {
        assert_eq!(made.as_deref().unwrap_or_default(), right.get(..reach).unwrap_or_default());
    }
    made
}

pub fn record(plain: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    Codec::new(Compression::None).decode(plain, &mut content).map(|()| content)
}

/// The number of records that the footer of a pack lists, the pack being sealed under a fixed key
/// around whatever its `footer` and `trailer` say; `records` bytes lie before them.
pub fn forged_pack(records: usize, footer: &[u8], trailer: [u8; 16]) -> Option<usize> {
    let key = SessionKey::for_benchmarks();
    let body = crate::pack::forge(records, footer, trailer, &key);
    read_footer("a pack", &body, &key).ok().map(|records| records.len())
}

/// From now on this process merges the index into parts of so many entries or packs, so that a test has
/// runs of several parts without a million chunks. The first call counts.
pub fn with_small_parts_of_runs(entries: usize, packs: usize) {
    crate::index::with_small_parts(entries, packs);
}

/// As [`forged_pack`], of bytes that nobody sealed.
pub fn pack(body: &[u8]) -> Option<usize> {
    read_footer("a pack", body, &SessionKey::for_benchmarks()).ok().map(|records| records.len())
}

pub fn key_slot(json: &[u8]) -> bool {
    crate::keys::parses(json)
}

/// The content of a share under the name of another one's set, as a forger makes it.
pub fn share_as(content: &Share, name: &Share) -> Share {
    content.renamed(name)
}

/// What is read from paper; the number of secrets on it.
pub fn printed(text: &str) -> Option<usize> {
    crate::Printed::read(text).ok().map(|all| all.len())
}

/// Whether a file of age opens for a fixed identity.
pub fn age_file(text: &str) -> bool {
    crate::keys::age::opens_for_fuzzing(text)
}

pub fn epoch(json: &[u8]) -> bool {
    crate::authority::epochs::parses(json)
}

/// Whether bytes are the key file of a host that may only write.
pub fn host_key(file: &[u8]) -> bool {
    Secret::key_file(file).is_ok_and(|secret| matches!(secret, Secret::WriteOnly(_)))
}

pub fn format(json: &[u8]) -> bool {
    crate::opening::parses_format(json)
}

/// Whether the header of an object of any class opens.
pub fn header(bytes: &[u8]) -> bool {
    static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::derive(&RootKey::from_bytes([3; 32])));
    use Class::{Archived, DataPack, Index, Maintenance, MetadataPack, Session, Tombstone};
    let sealed = [DataPack, MetadataPack, Class::Snapshot, Archived, Index, Session, Tombstone];
    sealed
        .into_iter()
        .chain([Maintenance, Class::Authority, Class::Audit])
        .any(|class| KEYS.open("an object", class, bytes).is_ok())
}

static ARCHIVE: LazyLock<Archive> = LazyLock::new(|| {
    let secret = Secret::key_file([7; 32]).expect("32 bytes");
    let env = Environment::seeded(1);
    let repository = Repository::init(Store::memory(), env, &secret, InitOptions::default());
    repository.expect("memory keeps a repository").archive(1)
});

/// The content of an archived file whose parts are sealed as they are given.
pub fn forged_archived(summary: &[u8], table: &[u8], blocks: &[&[u8]]) -> Option<Vec<u8>> {
    let object = ARCHIVE.forge("a file", summary, table, blocks);
    ARCHIVE.open("a file", &object).ok()
}

/// The content of an archived file that nobody sealed.
pub fn archived(object: &[u8]) -> Option<Vec<u8>> {
    ARCHIVE.open("a file", object).ok()
}

/// The number of extents of a file's body, when all of them lie within it.
pub fn extents(content: &crate::FileContent) -> Option<usize> {
    let tree = crate::Tree::new(ARCHIVE.repository().clone(), ObjectId([0; 32]), "a tree".into());
    tree.extents(content).ok().map(|extents| extents.len())
}

/// Which of the bodies that maintenance signs these bytes are.
pub fn maintenance_body(body: &[u8]) -> [bool; 4] {
    crate::maintenance::parses(body)
}

/// Whether a session's object says of which process it is.
pub fn session(json: &[u8]) -> bool {
    let about: Option<serde_json::Value> = serde_json::from_slice(json).ok();
    about.is_some_and(|about| crate::session::Process::of(&about).is_some())
}

/// Whether any name in a store is taken for one of ours that is not written in the one way.
pub fn name_is_ambiguous(key: &str) -> bool {
    crate::layout::is_ambiguous(key)
}

/// The object `format` of a repository with one more flag, as a later program would write it.
pub fn format_with_flag(repository: &Repository, operation: &str, flag: &str) -> Option<Vec<u8>> {
    crate::opening::with_flag(repository, operation, flag)
}

/// A pack with one record that says it is the chunk `id` and is not, and a segment that lists it: what
/// somebody with the keys of `repository` could write in the name of `writer`.
pub fn forged_chunk(
    repository: &Repository,
    writer: [u8; 8],
    kind: Kind,
    id: ObjectId,
    content: &[u8],
) -> [(String, bytes::Bytes); 2] {
    forged_list(repository, writer, kind, id, id, content)
}

/// The same, and the segment says that the record of the chunk `id` is the chunk `listed`.
pub fn forged_list(
    repository: &Repository,
    writer: [u8; 8],
    kind: Kind,
    id: ObjectId,
    listed: ObjectId,
    content: &[u8],
) -> [(String, bytes::Bytes); 2] {
    use crate::index::{PackInfo, SegmentBuilder};
    use crate::pack::{Record, finish};
    let (keys, env) = (repository.keys(), repository.environment());
    let work = crate::layout::Work { writer, session: env.random() };
    let class = if kind.is_metadata() { Class::MetadataPack } else { Class::DataPack };
    let (key, header) = keys.new_session(env).object(env.random(), class);
    let mut body = header.to_vec();
    let mut record = Vec::new();
    Codec::new(Compression::None).encode(content, &mut record);
    let offset = body.len();
    let tag = key.seal(kind as u8, offset as u64, &id.0, &mut record);
    body.extend_from_slice(&record);
    body.extend_from_slice(&tag);
    let length = (body.len() - offset) as u32;
    let records = [Record { id, kind, offset: offset as u32, length }];
    let pack = finish(body, &key, &records, None);
    let mut info = PackInfo {
        work,
        id: key.id(),
        size: pack.len() as u64,
        sha256: [0; 32],
        class,
        epoch: keys.epoch,
    };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &pack);
    info.sha256.copy_from_slice(digest.as_ref());
    let (pack_name, segment_name) = (info.key(), work.index_key(0));
    let mut segment = SegmentBuilder::default();
    segment.add(info, std::iter::once((listed, offset as u32, length)));
    [(pack_name, pack), (segment_name.clone(), segment.seal(keys, env.random(), &segment_name))]
}

/// A pack of junk and a segment that lists it under the id of somebody else's.
pub fn forged_pack_id(
    repository: &Repository,
    writer: [u8; 8],
    pack: &str,
    chunk: ObjectId,
    size: u64,
) -> [(String, bytes::Bytes); 2] {
    use crate::index::{PackInfo, SegmentBuilder};
    let (keys, env) = (repository.keys(), repository.environment());
    let work = crate::layout::Work { writer, session: env.random() };
    let id = crate::id::unhex(pack).unwrap_or_default();
    let info =
        PackInfo { work, id, size, sha256: [0; 32], class: Class::DataPack, epoch: keys.epoch };
    let (pack_name, segment_name) = (info.key(), work.index_key(0));
    let mut segment = SegmentBuilder::default();
    segment.add(info, std::iter::once((chunk, 160, 1000)));
    let junk = bytes::Bytes::from(vec![7; usize::try_from(size).unwrap_or(0)]);
    [(pack_name, junk), (segment_name.clone(), segment.seal(keys, env.random(), &segment_name))]
}

/// A snapshot that says what `like` says, in the name of `writer`, signed with the keys of
/// `repository`.
pub fn forged_snapshot(
    repository: &Repository,
    writer: [u8; 8],
    like: &Snapshot,
    signed: bool,
) -> (String, bytes::Bytes) {
    let (keys, env) = (repository.keys(), repository.environment());
    let name = crate::layout::Work { writer, session: env.random() }.snapshot_key();
    let (key, header) = keys.new_session(env).object(env.random(), Class::Snapshot);
    let mut body = serde_json::to_vec(like).expect("plain JSON");
    if signed {
        body = crate::snapshot::with_signature(keys, &name, body);
    }
    (name.clone(), crate::index::seal_with(&key, &header, &name, body))
}

/// The id under which `repository` keeps content.
pub fn id_of(repository: &Repository, content: &[u8]) -> ObjectId {
    content_id(&repository.keys().data_id, Kind::Data, content)
}

/// Every key that is derived from a root key, by the name of its purpose.
pub fn derived_keys(root: [u8; 32]) -> Vec<(&'static str, [u8; 32])> {
    let root = RootKey::from_bytes(root);
    [
        "chunk id: data",
        "chunk id: metadata",
        "chunker",
        "index",
        "format",
        "key slot",
        "read",
        "commitment",
    ]
    .map(|purpose| (purpose, root.derive(purpose)))
    .into()
}

/// The public key to which session keys are sealed.
pub fn public_key(root: [u8; 32]) -> [u8; 32] {
    Keys::derive(&RootKey::from_bytes(root)).public()
}

pub fn chunk_id(root: [u8; 32], kind: Kind, content: &[u8]) -> ObjectId {
    let keys = Keys::derive(&RootKey::from_bytes(root));
    content_id(if kind.is_metadata() { &keys.metadata_id } else { &keys.data_id }, kind, content)
}

/// What wraps the root key for a key file: the key, and the commitment to it.
pub fn slot_key(key_file: &[u8], salt: [u8; 32]) -> [u8; 64] {
    derive(key_file, &salt, &[b"backstay v1 key slot"])
}

/// A record of a data pack as it lies in the object, with its tag, and the commitment of the header.
pub fn sealed_record(
    session_key: [u8; 32],
    pack: [u8; 16],
    kind: Kind,
    offset: u64,
    name: &[u8],
    record: &[u8],
) -> (Vec<u8>, [u8; 32]) {
    let key = PackKey::new(&session_key, pack, Class::DataPack);
    let mut sealed = record.to_vec();
    let tag = key.seal(kind as u8, offset, name, &mut sealed);
    sealed.extend_from_slice(&tag);
    (sealed, key.commitment())
}

/// How a restore of a region of a file reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegionReading {
    /// Of the distinct chunks that the region refers to. Bytes.
    pub read: u64,
    /// Of the region that lie in chunks. Bytes.
    pub needed: u64,
    pub extents: usize,
    pub chunks: usize,
    /// Of the leaf, compressed. Bytes.
    pub leaf: usize,
}

/// The regions of a file that has leaves.
pub fn regions(
    tree: &crate::Tree,
    content: &crate::FileContent,
) -> crate::Result<Vec<RegionReading>> {
    let crate::Body::Leaves(leaves) = &content.body else { return Ok(Vec::new()) };
    let region = |leaf: &crate::LeafRef| {
        let leaf = tree.leaf(&leaf.id)?;
        let mut lengths: std::collections::HashMap<ObjectId, u64> = leaf
            .extents
            .iter()
            .map(|e| (e.chunk, u64::from(e.chunk_offset) + u64::from(e.length)))
            .collect();
        if let crate::tree::PageHashes::Mapped(mapped) = &leaf.pages {
            lengths = mapped.chunks.iter().map(|(id, n)| (*id, u64::from(*n) << 13)).collect();
        }
        Ok(RegionReading {
            read: lengths.values().sum(),
            needed: leaf.extents.iter().map(|e| u64::from(e.length)).sum(),
            extents: leaf.extents.len(),
            chunks: lengths.len(),
            leaf: {
                let mut record = Vec::new();
                Codec::new(Compression::default())
                    .encode(&crate::tree::encode_leaf(&leaf), &mut record);
                record.len()
            },
        })
    };
    leaves.iter().map(region).collect()
}

/// A snapshot in which two extents of a file's first region have each other's places in their chunks:
/// all that it refers to is whole, and it is wrong.
pub fn with_pages_exchanged(
    repository: &Repository,
    snapshot: &Snapshot,
    path: &[u8],
) -> crate::Result<Snapshot> {
    let tree = repository.tree(snapshot)?;
    let (kind, type_) = (snapshot.kind, snapshot.type_);
    let session = repository.begin(crate::SessionOptions::new(&snapshot.source, kind, type_))?;
    let mut writer = session.tree(crate::Order::Sorted);
    for entry in tree.iter() {
        let mut entry = entry?;
        if entry.path == path
            && let crate::EntryKind::File(content) = &mut entry.kind
            && let crate::Body::Leaves(leaves) = &mut content.body
            && let Some(first) = leaves.first_mut()
        {
            let mut leaf = tree.leaf(&first.id)?;
            let mut parts: Vec<_> = leaf
                .extents
                .iter_mut()
                .filter(|e| e.chunk_offset > 0 && e.length == 8192)
                .collect();
            if let [one, .., other] = parts.as_mut_slice() {
                std::mem::swap(&mut one.chunk, &mut other.chunk);
                std::mem::swap(&mut one.chunk_offset, &mut other.chunk_offset);
            }
            first.id = session.store(Kind::Leaf, &crate::tree::encode_leaf(&leaf))?;
        }
        writer.entry(entry)?;
    }
    let root = writer.finish()?;
    session.commit(root, serde_json::Value::Null)
}
