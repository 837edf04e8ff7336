//! Whether bytes are what was written under a key, by the seals alone.
//!
//! Parity is asked for its version of an object only where this says that what lies there is wrong,
//! and is believed only where this says that its version is right. It reads nothing from the store
//! and waits for no lock: it is asked in the middle of reads of all kinds.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use crate::codec::Codec;
use crate::crypto::{Class, HEADER, TAG, class_of};
use crate::index::{check_part, open_object};
use crate::layout::{
    AUDIT_KEYS, FORMAT, GC, HEADS, INDEX, KEYS, MENDING, PACKS, SESSIONS, SNAPSHOTS, TOMBSTONES,
    WAL, Work, parse_pack_key, parse_part_key,
};
use crate::pack::read_footer;
use crate::repository::Repository;
use crate::{Compression, RepoErrorKind, Result, authority, keys};

/// Names below which objects lie, besides `format`.
const OURS: [&str; 10] =
    [KEYS, SESSIONS, PACKS, INDEX, SNAPSHOTS, WAL, TOMBSTONES, GC, MENDING, AUDIT_KEYS];

/// Whether objects of a repository have such names.
pub(crate) fn is_ours(key: &str) -> bool {
    key == FORMAT || OURS.iter().any(|prefix| key.starts_with(prefix))
}

/// None: this key cannot tell.
pub(crate) fn is_right(repository: &Repository, key: &str, object: &[u8]) -> Option<bool> {
    if key == FORMAT {
        return Some(repository.is_format(object));
    }
    if let Some(id) = key.strip_prefix(KEYS)
        && !id.contains('/')
    {
        return keys::is_slot(object, repository.roots(), &repository.raw_id(), id);
    }
    if let Some(key) = key.strip_prefix(MENDING) {
        return is_right(repository, key, object);
    }
    if key.starts_with(authority::epochs::EPOCHS) && key.ends_with("/begun") {
        return authority::epochs::is_begun(object, repository.keys(), &repository.raw_id(), key);
    }
    if let Some((work, id)) = parse_pack_key(key) {
        return is_pack(repository, key, work, id, object);
    }
    told(opens(repository, key, object)?)
}

/// What an attempt to open an object tells of the object. None: only of the one who tried.
fn told(opened: Result<()>) -> Option<bool> {
    match opened {
        Ok(()) => Some(true),
        Err(error) if error.kind() == RepoErrorKind::Damaged => Some(false),
        Err(_) => None,
    }
}

fn opens(repository: &Repository, key: &str, object: &[u8]) -> Option<Result<()>> {
    let keys = repository.keys();
    let sealed = |class| Some(open_object(keys, class, key, object).map(drop));
    if let Some(rest) = key.strip_prefix(WAL) {
        let archive = repository.archive(rest.split('/').next()?.parse().ok()?);
        return Some(archive.open(key, object).map(drop));
    }
    if let Some(work) = Work::from_snapshot_key(key) {
        if class_of(object) == Some(Class::Tombstone) {
            return sealed(Class::Tombstone);
        }
        return Some(repository.open_work(Class::Snapshot, key, work, object).map(drop));
    }
    if parse_part_key(key).is_some() {
        return Some(check_part(keys, key, object.to_vec().into()));
    }
    let classes = [
        (HEADS, Class::Maintenance),
        (GC, Class::Maintenance),
        (INDEX, Class::Index),
        (SESSIONS, Class::Session),
        (TOMBSTONES, Class::Tombstone),
        (AUDIT_KEYS, Class::Audit),
        (KEYS, Class::Authority),
    ];
    sealed(classes.iter().find(|(prefix, _)| key.starts_with(prefix))?.1)
}

/// The index knows what a pack was in every byte. Where it does not, all records must open; bytes
/// between them that no seal covers leave it open.
fn is_pack(
    repository: &Repository,
    key: &str,
    work: Work,
    id: [u8; 16],
    object: &[u8],
) -> Option<bool> {
    if let Some(index) = repository.index_at_hand()
        && let Some((_, info)) = index.packs().find(|(_, pack)| pack.id == id && pack.work == work)
    {
        return Some(digest(&SHA256, object).as_ref() == info.sha256);
    }
    let class = match class_of(object) {
        Some(class @ (Class::DataPack | Class::MetadataPack)) => class,
        _ => return Some(false),
    };
    let pack_key = match repository.keys().open(key, class, object) {
        Ok(pack_key) => pack_key,
        Err(error) => return told(Err(error)),
    };
    let Ok(records) = read_footer(key, object, &pack_key) else { return Some(false) };
    if pack_key.id() != id {
        return Some(false);
    }
    let mut codec = Codec::new(Compression::None);
    let (mut record, mut content) = (Vec::new(), Vec::new());
    let mut sealed = HEADER + 2 * TAG + 16 + records.len() * 44;
    for entry in &records {
        let at = entry.offset as usize;
        let Some(stored) = object.get(at..at + entry.length as usize) else { return Some(false) };
        sealed += stored.len();
        record.clear();
        record.extend_from_slice(stored);
        let plain =
            pack_key.open(entry.kind as u8, u64::from(entry.offset), &entry.id.0, &mut record);
        if plain.and_then(|plain| codec.decode(plain, &mut content)).is_none() {
            return Some(false);
        }
    }
    (sealed == object.len()).then_some(true)
}

/// Lets the parity of the store, where there is any, ask this repository.
pub(crate) fn judge_for(repository: &Repository) {
    let Some(parity) = repository.store().parity() else { return };
    // The repository has the store, so the store must not have the repository.
    let repository = repository.weak();
    parity
        .set_judge(Arc::new(move |key: &str, object: &[u8]| is_right(&repository()?, key, object)));
}
