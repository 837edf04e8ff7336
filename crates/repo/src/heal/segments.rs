//! Index segments that are lost, made again from packs.
//!
//! A pack may be listed again when its session ended by its own hand, and no run of maintenance agreed
//! to remove it. A session that was given up may be asleep in the middle of sending a pack once more:
//! what is needed of it is moved to a new pack instead, so that whatever becomes of the old one does
//! not matter. Of a session at work nothing is listed; it does that itself.

use std::collections::{HashMap, HashSet};

use aws_lc_rs::digest::{SHA256, digest};

use super::Healer;
use super::salvage::Opened;
use crate::authority::Authority;
use crate::crypto::{Class, HEADER, TAG, class_of, epoch_of};
use crate::index::{
    Current, Index, PackInfo, SegmentBuilder, check_part, check_segment, empty_part, newest_head,
};
use crate::layout::{PACKS, SNAPSHOTS, Work, parse_pack_key, parse_part_key};
use crate::maintenance::{self, Reason, Swept, Tombstone};
use crate::pack::Record;
use crate::repository::Repository;
use crate::{RepoError, RepoErrorKind, Result, Session};
use backstay_store::failpoint;

/// A pack that no segment lists whole and that must not be listed again.
pub(super) struct Unlisted {
    pub info: PackInfo,
}

/// How a session ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    ByItself,
    GivenUp,
    AtWork,
}

/// Makes the index whole again; packs that it cannot list.
pub(super) fn mend(healer: &mut Healer<'_>) -> Result<Vec<Unlisted>> {
    let (repository, store) = (healer.repository, healer.repository.store());
    // Ended sessions first: all that they wrote is in what is listed after it.
    let ended: HashSet<Work> = maintenance::ended_now(repository)?;
    let authority = repository.reload_authority()?;
    let (current, lost) = lost_segments(repository, &authority)?;
    // Of a part of a run one block may be damaged: nothing of it counts, as it will be.
    let left_out = lost.iter().map(|(key, _)| key.clone()).collect();
    let head = current.head;
    let index = Index::load_without(store, repository.keys(), &authority, current, &left_out)?;
    if newest_head(store)? != head {
        return Err(RepoError::new(
            RepoErrorKind::Busy,
            "maintenance replaced the index meanwhile",
        )
        .with_hint("run the repair again"));
    }
    let swept = Swept::read(repository)?;
    let listed = Listed::of(&index)?;
    let infos: HashMap<[u8; 16], &PackInfo> =
        index.packs().map(|(_, pack)| (pack.id, pack)).collect();
    let mut ends: HashMap<Work, End> = HashMap::new();
    let mut unlisted = Vec::new();
    let mut session: Option<Session> = None;
    let mut made = 0_u64;
    for object in store.list(PACKS)? {
        healer.progress.check()?;
        let Some((work, id)) = parse_pack_key(&object.key) else { continue };
        // Maintenance divides packs among segments; a session never does.
        let whole = if lost.is_empty() {
            listed.packs.contains_key(&id)
        } else {
            listed.is_whole(&id, object.size)
        };
        if whole || swept.packs.contains(&id) || !ended.contains(&work) {
            continue;
        }
        let end = match ends.get(&work) {
            Some(end) => *end,
            None => {
                let end = end_of(repository, &work)?;
                ends.insert(work, end);
                end
            }
        };
        if end == End::AtWork {
            continue;
        }
        let body = match store.read(&object.key) {
            Err(error) if error.is_not_found() => continue,
            read => read?,
        };
        let known = infos.get(&id).copied();
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, &body).as_ref());
        let class = match known.map(|pack| pack.class).or_else(|| class_of(&body)) {
            Some(class @ (Class::DataPack | Class::MetadataPack)) => class,
            _ => Class::DataPack,
        };
        let epoch = known.map_or_else(|| epoch_of(&body), |pack| pack.epoch);
        let info = PackInfo { work, id, size: body.len() as u64, sha256, class, epoch };
        let opened = Opened::new(repository, &index, &info, body)?;
        let right = opened.right_records();
        let all = opened.header_opens && opened.records.len() == right.len() && !right.is_empty();
        let same = known.is_none_or(|known| known.sha256 == sha256);
        if end == End::GivenUp || swept.unknown || !all || !same {
            unlisted.push(Unlisted { info });
            continue;
        }
        let missing: Vec<Record> =
            right.into_iter().filter(|r| !listed.has(&id, r.offset)).collect();
        if missing.is_empty() {
            continue;
        }
        if session.is_none() {
            healer.progress.set_phase("listing packs again");
            session = Some(repository.begin(healer.session_options())?);
        }
        if let Some(session) = &session {
            session.adopt(info, missing);
            made += 1;
        }
    }
    if let Some(session) = session {
        session.end_without_snapshot()?;
        failpoint::hit("repair-listed");
    }
    repository.must_be_current()?;
    for (key, why) in lost {
        replace(healer, &key, &why, &ended, made)?;
    }
    for (object, what) in maintenance::mend_heads(repository, healer.progress)? {
        healer.report.repaired(&object, what);
    }
    if made > 0 {
        let packs = format!("{made} {}", if made == 1 { "pack" } else { "packs" });
        healer.report.repaired("the index", format!("{packs} listed again"));
    }
    repository.reload_index()?;
    Ok(unlisted)
}

/// What is the index, and what of it does not open, and why.
fn lost_segments(
    repository: &Repository,
    authority: &Authority,
) -> Result<(Current, Vec<(String, String)>)> {
    let current = Current::read(repository.store(), repository.keys())?;
    let mut lost = Vec::new();
    for object in &current.segments {
        match examine(repository, authority, &object.key) {
            Ok(()) => {}
            // What a newer program wrote is none of ours.
            Err(error) if error.kind() == RepoErrorKind::Damaged => {
                lost.push((object.key.clone(), error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((current, lost))
}

/// Reads all of a segment or of a part of a run.
fn examine(repository: &Repository, authority: &Authority, key: &str) -> Result<()> {
    let keys = repository.keys();
    let body = repository.store().read(key)?;
    if parse_part_key(key).is_some() {
        return check_part(keys, key, body);
    }
    check_segment(authority, keys, key, &body)
}

/// Takes a segment that does not open out of the way: all that it may have listed is listed again.
///
/// One of a session goes. A part of a run is named by the head of the index, so an empty one takes its
/// place; a process that dies in between leaves it missing, which is as good as damaged. Packs that
/// only that part listed are in no table then, and entries of other parts that name them do not count:
/// those are listed again, too.
fn replace(
    healer: &mut Healer<'_>,
    key: &str,
    why: &str,
    ended: &HashSet<Work>,
    made: u64,
) -> Result<()> {
    let (repository, store) = (healer.repository, healer.repository.store());
    let of_session = Work::from_index_key(key);
    if let Some(work) = of_session
        && !ended.contains(&work)
    {
        healer.report.unrepaired(key, "its session is at work; repair again when it has ended");
        return Ok(());
    }
    // It may have been put back meanwhile.
    if examine(repository, &*repository.authority()?, key).is_ok() {
        return Ok(());
    }
    store.delete(key)?;
    failpoint::hit("repair-segment-removed");
    if of_session.is_none() && is_merged(key) {
        let id = repository.environment().random();
        let empty = match parse_part_key(key) {
            Some(_) => empty_part(repository.keys(), id, key),
            None => SegmentBuilder::default().seal(repository.keys(), id, key),
        };
        match store.create(key, empty) {
            Err(error) if error.is_already_exists() => {}
            created => created?,
        }
    }
    let instead =
        if made > 0 { "what it listed is listed again" } else { "nothing was lost by it" };
    healer.report.repaired(key, format!("{instead} ({why})"));
    Ok(())
}

fn is_merged(key: &str) -> bool {
    key.strip_prefix(crate::layout::INDEX).is_some_and(|rest| rest.starts_with("1/"))
}

fn end_of(repository: &Repository, work: &Work) -> Result<End> {
    let key = work.snapshot_key();
    debug_assert!(key.starts_with(SNAPSHOTS));
    let body = match repository.store().read(&key) {
        Ok(body) => body,
        // Only a snapshot that could be read is ever removed, and only when it is forgotten.
        Err(error) if error.is_not_found() => {
            return Ok(if maintenance::is_forgotten(repository, work)? {
                End::ByItself
            } else {
                End::AtWork
            });
        }
        Err(error) => return Err(error.into()),
    };
    let keys = repository.keys();
    if class_of(&body) == Some(Class::Tombstone) {
        let opened = maintenance::open::<Tombstone>(keys, Class::Tombstone, &key, &body);
        return match opened {
            Ok(tombstone) if tombstone.reason == Reason::Maintenance => Ok(End::ByItself),
            Ok(_) => Ok(End::GivenUp),
            Err(error) if error.is_about_an_object() => Ok(End::GivenUp),
            Err(error) => Err(error),
        };
    }
    match repository.open_snapshot(*work, &body) {
        Ok(Some(_)) => Ok(End::ByItself),
        // Of a host that was removed before.
        Ok(None) => Ok(End::GivenUp),
        // Whoever made that may not have been the session.
        Err(error) if error.is_about_an_object() => Ok(End::GivenUp),
        Err(error) => Err(error),
    }
}

/// What an index lists of each pack.
struct Listed {
    /// Number, bytes and count of the records.
    packs: HashMap<[u8; 16], (u32, u64, u64)>,
    offsets: HashSet<([u8; 16], u32)>,
}

impl Listed {
    fn of(index: &Index) -> Result<Self> {
        let mut it = Self { packs: HashMap::new(), offsets: HashSet::new() };
        for entry in index.locations() {
            let (_, _, at) = entry?;
            let Some(pack) = index.pack(at.pack) else { continue };
            if it.offsets.insert((pack.id, at.offset)) {
                let sum = it.packs.entry(pack.id).or_insert((at.pack, 0, 0));
                sum.1 += u64::from(at.length);
                sum.2 += 1;
            }
        }
        Ok(it)
    }

    fn has(&self, pack: &[u8; 16], offset: u32) -> bool {
        self.offsets.contains(&(*pack, offset))
    }

    /// Whether the records that are listed are all there can be: header, records, footer and trailer
    /// fill the pack. A padded one is never whole by this count, and is read.
    fn is_whole(&self, pack: &[u8; 16], size: u64) -> bool {
        self.packs.get(pack).is_some_and(|(_, bytes, records)| {
            HEADER as u64 + bytes + records * 44 + (16 + 2 * TAG) as u64 == size
        })
    }
}
