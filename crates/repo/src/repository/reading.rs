//! Chunks: looked up, read, opened, and compared where they are doubted.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::Repository;
use crate::codec::Codec;
use crate::crypto::{Class, HEADER, PackKey};
use crate::index::{Index, Location, PackInfo};
use crate::{Compression, Kind, ObjectId, RepoError, RepoErrorKind, Result};

/// What is read of a metadata pack at once. Bytes.
const READ_AHEAD: u64 = 1 << 20;
/// Kept of that, in bytes and in pieces: the packs of many small backups are small.
const READ_AHEAD_KEPT: usize = 16 << 20;
const PIECES_KEPT: usize = 256;

impl Repository {
    pub(crate) fn pack_key(&self, pack: &PackInfo) -> Result<Arc<PackKey>> {
        let mut known = self.inner.pack_keys.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(key) = known.get(&(pack.work, pack.id)) {
            return Ok(key.clone());
        }
        drop(known);
        let header = self.inner.store.read_range(&pack.key(), 0..HEADER as u64)?;
        let key = Arc::new(self.open_pack(pack, &header)?);
        known = self.inner.pack_keys.lock().unwrap_or_else(|e| e.into_inner());
        known.insert((pack.work, pack.id), key.clone());
        Ok(key)
    }

    /// The key of a pack from its header, which must be that of this very pack.
    pub(crate) fn open_pack(&self, pack: &PackInfo, header: &[u8]) -> Result<PackKey> {
        let name = pack.key();
        let kept = match pack.class {
            Class::MetadataPack => self.kept_session(&pack.work),
            _ => None,
        };
        let key = self.keys().open_with(&name, pack.class, header, kept.as_deref())?;
        if key.id() != pack.id {
            return Err(RepoError::damaged(&name, "it is another pack"));
        }
        Ok(key)
    }

    /// The content of a chunk.
    pub(crate) fn read_chunk(&self, kind: Kind, id: &ObjectId) -> Result<Vec<u8>> {
        let mut index = self.index()?;
        let mut failed: Option<([u8; 16], RepoError)> = None;
        let mut unseen: Option<RepoError> = None;
        // Written, or moved to another pack, since the index was loaded? Maintenance may have moved
        // it more than once; it ends where the index stays as it was.
        for _ in 0..crate::index::RELOADS {
            let found = match index.find(id) {
                Err(error) if error.is_about_an_object() => {
                    unseen = Some(error);
                    None
                }
                found => found?,
            };
            let at = found.and_then(|at| Some((at, index.pack(at.pack)?)));
            if let Some((at, pack)) = at
                && failed.as_ref().is_none_or(|(other, _)| *other != pack.id)
            {
                match self.read_chunk_at(kind, id, at, pack) {
                    Err(error) if error.is_about_an_object() => {
                        if error.is_of_a_missing_object() {
                            index.note_missing(at.pack);
                        }
                        failed = Some((pack.id, error));
                    }
                    read => return read,
                }
                // Of two copies one may be right. Which is the best place may be another one by now.
                for copy in index.places(id)?.into_iter().filter(|place| *place != at) {
                    let Some(pack) = index.pack(copy.pack) else { continue };
                    match self.read_chunk_at(kind, id, copy, pack) {
                        Err(error) if error.is_about_an_object() => {
                            if error.is_of_a_missing_object() {
                                index.note_missing(copy.pack);
                            }
                        }
                        read => return read,
                    }
                }
            }
            // What maintenance moves it removes only behind a new head: without one there is nothing
            // new to be found, however many chunks are damaged.
            if (failed.is_some() || unseen.is_some())
                && crate::index::newest_head(&self.inner.store)? == index.current.head
            {
                break;
            }
            let place = |index: &Index| Some(index.pack(index.find(id).ok()??.pack)?.id);
            let now = self.reload_index()?;
            let same = (now.current.head, place(&now)) == (index.current.head, place(&index));
            index = now;
            if same {
                break;
            }
        }
        let failed = failed.map(|(_, error)| error).or(unseen);
        Err(failed.unwrap_or_else(|| missing_chunk(kind, id, &index)))
    }

    fn read_chunk_at(
        &self,
        kind: Kind,
        id: &ObjectId,
        location: Location,
        pack: &PackInfo,
    ) -> Result<Vec<u8>> {
        // What a host cannot open is for it as good as damaged: another copy may be its own.
        let key = self.pack_key(pack).map_err(|error| match error.kind() {
            RepoErrorKind::WrongKey => RepoError::damaged(&pack.key(), error),
            _ => error,
        })?;
        let mut record = self.read_record(pack, location, kind)?.to_vec();
        let mut content = Vec::new();
        open_record(
            pack,
            &key,
            location,
            kind,
            id,
            &mut record,
            &mut Codec::new(Compression::None),
            &mut content,
        )?;
        if self.doubts(pack)? {
            self.must_be(pack, location, kind, id, &content)?;
        }
        Ok(content)
    }

    /// Compares content with the id under which it was found.
    pub(crate) fn must_be(
        &self,
        pack: &PackInfo,
        at: Location,
        kind: Kind,
        id: &ObjectId,
        content: &[u8],
    ) -> Result<()> {
        let keys = self.keys();
        let key = if kind.is_metadata() { &keys.metadata_id } else { &keys.data_id };
        if crate::session::content_id(key, kind, content) == *id {
            return Ok(());
        }
        Err(RepoError::damaged(
            &pack.key(),
            format!("the chunk at byte {} is not what its id says", at.offset),
        ))
    }

    fn read_record(&self, pack: &PackInfo, at: Location, kind: Kind) -> Result<Bytes> {
        let (start, length) = (u64::from(at.offset), u64::from(at.length));
        if !kind.is_metadata() {
            return Ok(self.inner.store.read_range(&pack.key(), start..start + length)?);
        }
        let find = |ahead: &VecDeque<(u32, u64, Bytes)>| {
            ahead.iter().find_map(|(number, from, bytes)| {
                let inside = *number == at.pack
                    && *from <= start
                    && start + length <= from + bytes.len() as u64;
                inside
                    .then(|| bytes.slice((start - from) as usize..(start - from + length) as usize))
            })
        };
        let ahead = || self.inner.ahead.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(record) = find(&ahead()) {
            return Ok(record);
        }
        let end = (start + length.max(READ_AHEAD)).min(pack.size).max(start + length);
        let bytes = self.inner.store.read_range(&pack.key(), start..end)?;
        let record = bytes.slice(..length as usize);
        let mut ahead = ahead();
        ahead.push_back((at.pack, start, bytes));
        let mut kept: usize = ahead.iter().map(|(_, _, bytes)| bytes.len()).sum();
        while (kept > READ_AHEAD_KEPT || ahead.len() > PIECES_KEPT)
            && let Some((_, _, oldest)) = ahead.pop_front()
        {
            kept -= oldest.len();
        }
        Ok(record)
    }
}

pub(crate) fn missing_chunk(kind: Kind, id: &ObjectId, index: &Index) -> RepoError {
    let what = match kind {
        Kind::Data => "content",
        Kind::Tree => "a node of a tree",
        Kind::Leaf => "a leaf of an extent map",
        Kind::Pages => "page hashes",
    };
    RepoError::damaged(
        &format!("chunk {:.16}", id.to_string()),
        match index.unreadable() {
            [] => format!("{what} is in no pack of the index"),
            unreadable => {
                format!("{what} is in no pack of the index ({})", unreadable.join("; "))
            }
        },
    )
}

/// Opens a record in place and writes its content over `content`.
#[allow(clippy::too_many_arguments)] // what a record is bound to, and two buffers to reuse
pub(crate) fn open_record(
    pack: &PackInfo,
    key: &PackKey,
    at: Location,
    kind: Kind,
    id: &ObjectId,
    record: &mut [u8],
    codec: &mut Codec,
    content: &mut Vec<u8>,
) -> Result<()> {
    let plain = key.open(kind as u8, u64::from(at.offset), &id.0, record).ok_or_else(|| {
        RepoError::damaged(&pack.key(), format!("the chunk at byte {} does not open", at.offset))
    })?;
    codec.decode(plain, content).ok_or_else(|| {
        RepoError::damaged(&pack.key(), format!("the chunk at byte {} does not decode", at.offset))
    })
}
