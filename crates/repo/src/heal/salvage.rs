//! What is left of damaged packs: each record is sealed by itself, so those that were not hit open.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::Healer;
use super::need::Need;
use super::segments::Unlisted;
use crate::codec::Codec;
use crate::crypto::{Class, HEADER, PackKey};
use crate::index::{Index, PackInfo};
use crate::pack::{Record, read_footer};
use crate::repository::Repository;
use crate::session::content_id;
use crate::{Compression, Kind, ObjectId, Result};
use backstay_store::failpoint;

/// A pack in memory, with as much of it as can be known.
pub(super) struct Opened<'r> {
    repository: &'r Repository,
    body: Bytes,
    /// Without it nothing opens.
    key: Option<PackKey>,
    /// Whether anybody else can open it.
    pub header_opens: bool,
    /// As the footer lists them; empty when that does not open.
    pub records: Vec<Record>,
}

impl<'r> Opened<'r> {
    pub fn new(
        repository: &'r Repository,
        index: &Index,
        info: &PackInfo,
        body: Bytes,
    ) -> Result<Self> {
        let mut header_opens = true;
        let key = match repository.open_pack(info, &body) {
            Ok(key) => Some(key),
            Err(error) if error.is_about_an_object() => {
                header_opens = false;
                match repository.keys().past_header(info.class, info.id, info.epoch, &body) {
                    Some(key) => Some(key),
                    None => key_from_another(repository, index, info)?,
                }
            }
            Err(error) => return Err(error),
        };
        let records = match &key {
            Some(key) => read_footer(&info.key(), &body, key).unwrap_or_default(),
            None => Vec::new(),
        };
        Ok(Self { repository, body, key, header_opens, records })
    }

    /// The records of the footer that are what their ids say.
    pub fn right_records(&self) -> Vec<Record> {
        let mut plain = Vec::new();
        self.records.iter().filter(|record| self.open(record, &mut plain)).copied().collect()
    }

    /// Whether a record is what its id says; as the codec wrote it in `plain`.
    pub fn open(&self, record: &Record, plain: &mut Vec<u8>) -> bool {
        let Some(key) = &self.key else { return false };
        let at = record.offset as usize;
        let end = at.saturating_add(record.length as usize);
        let Some(sealed) = self.body.get(at..end).filter(|_| at >= HEADER) else { return false };
        plain.clear();
        plain.extend_from_slice(sealed);
        let opened = key.open(record.kind as u8, u64::from(record.offset), &record.id.0, plain);
        let Some(length) = opened.map(|opened| opened.len()) else { return false };
        plain.truncate(length);
        let mut content = Vec::new();
        if Codec::new(Compression::None).decode(plain, &mut content).is_none() {
            return false;
        }
        let keys = self.repository.keys();
        let id_key = if record.kind.is_metadata() { &keys.metadata_id } else { &keys.data_id };
        content_id(id_key, record.kind, &content) == record.id
    }
}

/// All data packs of a session carry the same session key, and all metadata packs and the snapshot
/// another one: the header of any of the same kind will do.
fn key_from_another(
    repository: &Repository,
    index: &Index,
    info: &PackInfo,
) -> Result<Option<PackKey>> {
    let of_session = index.packs().map(|(_, pack)| pack);
    let of_session =
        of_session.filter(|p| p.work == info.work && p.id != info.id && p.class == info.class);
    let snapshot = (info.class == Class::MetadataPack).then(|| info.work.snapshot_key());
    let keys = of_session.map(PackInfo::key).chain(snapshot);
    for key in keys {
        let header = match repository.store().read_range(&key, 0..HEADER as u64) {
            Ok(header) => header,
            Err(error) if error.is_transient() => return Err(error.into()),
            // Missing or cut short.
            Err(_) => continue,
        };
        if let Ok(session) = repository.keys().session_of(&key, &header) {
            let (key, _) = session.object(info.id, info.class);
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// Moves what is at risk and still right to new packs; how many chunks that were.
pub(super) fn salvage(
    healer: &mut Healer<'_>,
    need: &Need,
    damaged: &HashSet<[u8; 16]>,
    unlisted: &[Unlisted],
) -> Result<u64> {
    let (repository, store) = (healer.repository, healer.repository.store());
    let index = repository.reload_index_avoiding(damaged)?;
    let mut wanted: HashMap<u32, Vec<Record>> = HashMap::new();
    let mut nowhere = 0;
    for (id, kind) in &need.at_risk {
        let places = match index.places(id) {
            Err(error) if error.is_about_an_object() => Vec::new(),
            places => places?,
        };
        nowhere += usize::from(places.is_empty());
        for at in places {
            let (id, kind) = (*id, *kind);
            let record = Record { id, kind, offset: at.offset, length: at.length };
            wanted.entry(at.pack).or_default().push(record);
        }
    }
    let mut packs: Vec<(PackInfo, Vec<Record>)> = Vec::new();
    for (number, records) in wanted {
        if let Some(pack) = index.pack(number) {
            packs.push((pack.clone(), records));
        }
    }
    // In the order of their names, so that the same repair does the same.
    packs.sort_by_key(|(pack, _)| (pack.work, pack.id));
    if nowhere > 0 {
        packs.extend(unlisted.iter().map(|pack| (pack.info.clone(), Vec::new())));
    }
    let mut session = None;
    let mut moved: HashSet<ObjectId> = HashSet::new();
    let mut plain = Vec::new();
    for (pack, mut records) in packs {
        healer.progress.check()?;
        let body = match store.read(&pack.key()) {
            Err(error) if error.is_not_found() => continue,
            read => read?,
        };
        let opened = Opened::new(repository, &index, &pack, body)?;
        // The footer knows of chunks that no segment lists.
        records.extend(opened.records.iter().filter(|r| need.at_risk.contains_key(&r.id)));
        for record in records {
            if moved.contains(&record.id) || !opened.open(&record, &mut plain) {
                continue;
            }
            if session.is_none() {
                let begun = begin(healer, damaged)?;
                let Some(mover) = begun.mover() else { break };
                session = Some((begun, mover));
            }
            if let Some((_, mover)) = &mut session {
                mover.append(record.kind, record.id, &plain)?;
                moved.insert(record.id);
            }
        }
    }
    if let Some((session, mover)) = session {
        drop(mover);
        session.end_without_snapshot()?;
        failpoint::hit("repair-stored");
        let data = moved.iter().filter(|id| need.at_risk.get(id) == Some(&Kind::Data)).count();
        tracing::info!(chunks = moved.len(), data, "moved out of damaged packs");
    }
    Ok(moved.len() as u64)
}

pub(super) fn begin(healer: &Healer<'_>, damaged: &HashSet<[u8; 16]>) -> Result<crate::Session> {
    crate::session::begin_avoiding(healer.repository, healer.session_options(), damaged)
}
