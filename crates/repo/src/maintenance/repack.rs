//! Moving what is needed out of packs that are mostly garbage.
//!
//! It is a session like any other, so that no other run of maintenance takes its packs for orphans.
//! It ends with a tombstone: what it wrote is copies, found through the index.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::mark::Marks;
use super::view::View;
use crate::codec::Codec;
use crate::crypto::Class;
use crate::pack::{DATA_PACK, read_footer};
use crate::repository::Repository;
use crate::session::{Mover, content_id};
use crate::{Compression, Progress, RepoError, Result, SessionOptions, SnapshotType, SourceKind};

/// Garbage up to this share of what is needed stays where it is: moving costs more than it takes.
const ALLOWED: f64 = 0.05;
/// A pack of which more than this is needed is left alone. Padding alone can be an eighth of one.
const LIVELY: f64 = 0.8;
/// Packs below this size are put together when there are many of them. Bytes.
const SMALL: u64 = DATA_PACK as u64 / 8;
const MANY: usize = 16;

/// Which packs to empty. `live` says how many bytes of each are needed. With `reseal`, packs that are
/// sealed to a root key before that of this epoch are among them, after those that give back space.
pub(super) fn choose(
    view: &View,
    live: &HashMap<[u8; 16], u64>,
    max_repack: u64,
    reseal: Option<u32>,
) -> HashSet<[u8; 16]> {
    let classes: HashMap<[u8; 16], Class> =
        view.index.packs().map(|(_, pack)| (pack.id, pack.class)).collect();
    let old: HashSet<[u8; 16]> = view
        .index
        .packs()
        .filter(|(_, pack)| reseal.is_some_and(|epoch| pack.epoch < epoch))
        .map(|(_, pack)| pack.id)
        .collect();
    let mut packs = Vec::new();
    let twice = view.taken_twice();
    for pack in view.packs.iter().filter(|pack| !twice.contains(&pack.id)) {
        let needed = live.get(&pack.id).copied().unwrap_or(0);
        if needed > 0
            && view.ended.contains(&pack.work)
            && let Some(class) = classes.get(&pack.id)
        {
            packs.push((pack, *class, needed.min(pack.size)));
        }
    }
    let needed: u64 = packs.iter().map(|(_, _, needed)| needed).sum();
    let mut garbage: u64 = packs.iter().map(|(pack, _, needed)| pack.size - needed).sum();
    let allowed = (needed as f64 * ALLOWED) as u64;
    let share =
        |pack: &super::view::StoredPack, needed: u64| needed as f64 / pack.size.max(1) as f64;
    packs.sort_by(|(a, _, x), (b, _, y)| {
        share(a, *x).total_cmp(&share(b, *y)).then(a.id.cmp(&b.id))
    });
    let mut chosen = HashSet::new();
    let mut moved = 0_u64;
    for (pack, _, needed) in &packs {
        if garbage <= allowed || share(pack, *needed) > LIVELY {
            break;
        }
        if moved.saturating_add(*needed) > max_repack {
            continue;
        }
        moved += needed;
        garbage -= pack.size - needed;
        chosen.insert(pack.id);
    }
    for class in [Class::DataPack, Class::MetadataPack] {
        let small: Vec<_> = packs
            .iter()
            .filter(|(pack, of, _)| *of == class && pack.size < SMALL && !chosen.contains(&pack.id))
            .collect();
        if small.len() < MANY {
            continue;
        }
        for (pack, _, needed) in small {
            if moved.saturating_add(*needed) <= max_repack {
                moved += needed;
                chosen.insert(pack.id);
            }
        }
    }
    for (pack, _, needed) in &packs {
        if old.contains(&pack.id)
            && !chosen.contains(&pack.id)
            && moved.saturating_add(*needed) <= max_repack
        {
            moved += needed;
            chosen.insert(pack.id);
        }
    }
    chosen
}

/// What is needed in packs that are sealed to a root key before that of `epoch`. Bytes.
pub(super) fn of_old_keys(view: &View, live: &HashMap<[u8; 16], u64>, epoch: u32) -> u64 {
    let packs = view.index.packs().filter(|(_, pack)| pack.epoch < epoch);
    packs.filter_map(|(_, pack)| live.get(&pack.id)).sum()
}

/// Writes what is needed of `packs` anew. Bytes that were moved.
pub(super) fn repack(
    repository: &Repository,
    marks: &Marks,
    packs: &HashSet<[u8; 16]>,
    progress: &Arc<Progress>,
) -> Result<u64> {
    let chunks = marks.chunks_in(packs)?;
    let mut wanted: HashMap<u32, HashSet<u32>> = HashMap::new();
    for at in &chunks {
        wanted.entry(at.pack).or_default().insert(at.offset);
    }
    let mut numbers: Vec<u32> = wanted.keys().copied().collect();
    numbers.sort_unstable();
    progress.add_total(chunks.iter().map(|at| u64::from(at.length)).sum(), 0);
    let options = SessionOptions {
        workers: 1,
        progress: progress.clone(),
        ..SessionOptions::new("maintenance", SourceKind::Files, SnapshotType::Full)
    };
    let session = repository.begin(options)?;
    let Some(mut mover) = session.mover() else { return Ok(0) };
    let mut bytes = 0;
    for number in numbers {
        progress.check()?;
        let Some(pack) = marks.index().pack(number) else { continue };
        let offsets = wanted.remove(&number).unwrap_or_default();
        match move_out_of(repository, pack, &offsets, &mut mover) {
            // Another run has emptied and removed it meanwhile; or it is damaged, and stays where it
            // is, with all that can be had of it. What is needed is looked for again either way.
            Err(error) if error.is_about_an_object() => {
                tracing::warn!(%error, "a pack is not rewritten");
            }
            moved => bytes += moved?,
        }
        progress.add_done(offsets.len() as u64, 1);
    }
    drop(mover);
    session.end_without_snapshot()?;
    Ok(bytes)
}

/// Which of `packs` must stay: a chunk that is needed has a copy there, and where it would be read
/// from otherwise it is not right. Of two copies one may have rotted.
pub(super) fn needed_after_all(
    repository: &Repository,
    marks: &Marks,
    packs: &HashSet<[u8; 16]>,
    progress: &Progress,
) -> Result<HashSet<[u8; 16]>> {
    let mut needed = HashSet::new();
    for same in marks.kept_for(packs)?.chunk_by(|a, b| a.0 == b.0) {
        progress.check()?;
        let Some(pack) = same.first().and_then(|one| marks.index().pack(one.0)) else { continue };
        let mut right = HashSet::new();
        match for_each_right(repository, pack, |entry, _| {
            right.insert(entry.offset);
            Ok(())
        }) {
            // Then none of it is known to be right.
            Err(error) if error.is_about_an_object() => {
                tracing::warn!(%error, "a copy is kept");
                right.clear();
            }
            read => read?,
        }
        let wrong = same.iter().filter(|(_, offset, _)| !right.contains(offset));
        needed.extend(wrong.map(|(_, _, copy)| *copy));
    }
    Ok(needed)
}

/// Reads a pack, and tells of every record that is what its id says.
fn for_each_right(
    repository: &Repository,
    pack: &crate::index::PackInfo,
    mut tell: impl FnMut(&crate::pack::Record, &[u8]) -> Result<()>,
) -> Result<()> {
    let name = pack.key();
    let body = repository.store().read(&name)?;
    let key = repository.open_pack(pack, &body)?;
    let mut codec = Codec::new(Compression::None);
    let (mut record, mut content) = (Vec::new(), Vec::new());
    for entry in read_footer(&name, &body, &key)? {
        let at = entry.offset as usize;
        record.clear();
        record.extend_from_slice(body.get(at..at + entry.length as usize).unwrap_or_default());
        let (kind, offset) = (entry.kind as u8, u64::from(entry.offset));
        let Some(plain) = key.open(kind, offset, &entry.id.0, &mut record) else { continue };
        let keys = repository.keys();
        let id_key = if entry.kind.is_metadata() { &keys.metadata_id } else { &keys.data_id };
        if codec.decode(plain, &mut content).is_some()
            && content_id(id_key, entry.kind, &content) == entry.id
        {
            tell(&entry, plain)?;
        }
    }
    Ok(())
}

/// What is moved is right, or it is not moved.
fn move_out_of(
    repository: &Repository,
    pack: &crate::index::PackInfo,
    offsets: &HashSet<u32>,
    mover: &mut Mover,
) -> Result<u64> {
    let (mut moved, mut bytes) = (0, 0);
    for_each_right(repository, pack, |entry, plain| {
        if offsets.contains(&entry.offset) {
            mover.append(entry.kind, entry.id, plain)?;
            moved += 1;
            bytes += u64::from(entry.length);
        }
        Ok(())
    })?;
    if moved != offsets.len() {
        return Err(RepoError::damaged(&pack.key(), "it lacks a chunk that the index says it has"));
    }
    Ok(bytes)
}
