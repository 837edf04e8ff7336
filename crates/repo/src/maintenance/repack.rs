//! Moving what is needed out of packs that are mostly garbage.
//!
//! It is a session like any other, so that no other run of maintenance takes its packs for orphans.
//! It ends with a tombstone: what it wrote is copies, found through the index.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::mark::Marks;
use super::records::{Listed, Told, Wanted, each_right};
use super::view::View;
use crate::crypto::Class;
use crate::pack::DATA_PACK;
use crate::repository::Repository;
use crate::{Progress, RepoError, Result, SessionOptions, SnapshotType, SourceKind};

/// Garbage up to this share of what is needed stays where it is: moving costs more than it takes.
const ALLOWED: f64 = 0.05;
/// A pack of which more than this is needed is left alone. Padding alone can be an eighth of one.
const LIVELY: f64 = 0.8;
/// Packs below a size, in bytes, are put together when there are so many of them. The larger they are
/// the less it matters that they are many, and the more has to be moved for it.
const SMALL: [(u64, usize); 2] = [(DATA_PACK as u64 / 32, 16), (DATA_PACK as u64 / 8, 64)];

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
        for (size, many) in SMALL {
            let small: Vec<_> = packs
                .iter()
                .filter(|(pack, of, _)| *of == class && pack.size < size)
                .filter(|(pack, ..)| !chosen.contains(&pack.id))
                .collect();
            if small.len() < many {
                continue;
            }
            for (pack, _, needed) in small {
                if moved.saturating_add(*needed) <= max_repack {
                    moved += needed;
                    chosen.insert(pack.id);
                }
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
    let wanted: Vec<Wanted<'_>> = chunks
        .chunk_by(|a, b| a.0 == b.0)
        .filter_map(|same| {
            let pack = marks.index().pack(same.first()?.0)?;
            Some(Wanted { pack, records: same.iter().map(|(_, listed)| *listed).collect() })
        })
        .collect();
    progress.add_total(chunks.iter().map(|(_, listed)| u64::from(listed.length)).sum(), 0);
    let options = SessionOptions {
        workers: 1,
        progress: progress.clone(),
        ..SessionOptions::new("maintenance", SourceKind::Files, SnapshotType::Full)
    };
    let session = repository.begin(options)?;
    // `needed_after_all` reads what is in the store before the originals go.
    session.open_only();
    let Some(mut mover) = session.mover() else { return Ok(0) };
    let (mut bytes, mut moved) = (0, 0);
    each_right(repository, &wanted, progress, |number, told| {
        let Some(Wanted { pack, records: listed }) = wanted.get(number) else { return Ok(()) };
        let read = match told {
            Told::Piece(piece) => {
                let (mut length, mut records) = (0, 0);
                for (record, plain) in piece.records() {
                    mover.append(record.kind, record.id, plain)?;
                    length += u64::from(record.length);
                    records += 1;
                }
                progress.add_done(length, 0);
                moved += records;
                bytes += length;
                return Ok(());
            }
            Told::End(Ok(())) if moved != listed.len() => {
                Err(RepoError::damaged(&pack.key(), "it lacks a chunk that the index says it has"))
            }
            Told::End(read) => read,
        };
        moved = 0;
        match read {
            // Another run has emptied and removed it meanwhile; or it is damaged, and stays where it
            // is, with all that cannot be had of it. What is needed is looked for again either way.
            Err(error) if error.is_about_an_object() => {
                tracing::warn!(%error, "a pack is not rewritten");
                Ok(())
            }
            read => {
                progress.add_done(0, 1);
                read
            }
        }
    })?;
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
    let kept = marks.kept_for(packs)?;
    let mut needed = HashSet::new();
    let (mut groups, mut wanted) = (Vec::new(), Vec::new());
    for same in kept.chunk_by(|a, b| a.0 == b.0) {
        match same.first().and_then(|one| marks.index().pack(one.0)) {
            Some(pack) => {
                let records = same.iter().map(|(_, listed, _)| *listed).collect();
                wanted.push(Wanted { pack, records });
                groups.push(same);
            }
            // Then none of it is known to be right.
            None => needed.extend(same.iter().map(|(_, _, copy)| *copy)),
        }
    }
    let mut right = HashSet::new();
    each_right(repository, &wanted, progress, |number, told| {
        match told {
            Told::Piece(piece) => {
                right.extend(piece.records().map(|(record, _)| Listed::of(record)));
                return Ok(());
            }
            Told::End(Err(error)) if error.is_about_an_object() => {
                tracing::warn!(%error, "a copy is kept");
                right.clear();
            }
            Told::End(read) => read?,
        }
        if let Some(same) = groups.get(number) {
            let wrong = same.iter().filter(|(_, listed, _)| !right.contains(listed));
            needed.extend(wrong.map(|(_, _, copy)| *copy));
        }
        right.clear();
        Ok(())
    })?;
    Ok(needed)
}
