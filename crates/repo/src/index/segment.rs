//! Segments of level 0, as sessions write them.

use bytes::Bytes;

use super::object::seal_object;
use crate::crypto::{Class, Keys};
use crate::layout::Work;
use crate::signing::SIGNATURE;
use crate::{ObjectId, RepoError, Result};

/// Entries from which on a session begins another segment.
pub(crate) const SEGMENT_ENTRIES: usize = 1 << 20;
/// Bytes of what is said of a pack, and of an entry.
pub(super) const PACK: usize = 88;
pub(super) const ENTRY: usize = 28;

/// What the index says of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackInfo {
    pub work: Work,
    pub id: [u8; 16],
    pub size: u64,
    pub sha256: [u8; 32],
    pub class: Class,
    /// Of the root key to which it is sealed.
    pub epoch: u32,
}

impl PackInfo {
    pub fn key(&self) -> String {
        self.work.pack_key(&self.id)
    }

    /// Packs as [`write`](Self::write) wrote them, one behind the other.
    pub fn parse_all(object: &str, plain: &[u8]) -> Result<Vec<Self>> {
        plain
            .chunks_exact(PACK)
            .map(|pack| {
                let mut writer = [0; 8];
                writer.copy_from_slice(&pack[..8]);
                let mut session = [0; 16];
                session.copy_from_slice(&pack[8..24]);
                let mut id = [0; 16];
                id.copy_from_slice(&pack[24..40]);
                let mut size = [0; 8];
                size.copy_from_slice(&pack[40..48]);
                let mut sha256 = [0; 32];
                sha256.copy_from_slice(&pack[48..80]);
                let class = match pack[80] {
                    1 => Class::DataPack,
                    2 => Class::MetadataPack,
                    _ => {
                        let what = "it lists a pack of an unknown class";
                        return Err(RepoError::damaged(object, what));
                    }
                };
                Ok(Self {
                    work: Work { writer, session },
                    id,
                    size: u64::from_le_bytes(size),
                    sha256,
                    class,
                    epoch: u32::from_le_bytes([pack[84], pack[85], pack[86], pack[87]]),
                })
            })
            .collect()
    }

    /// Appends its 88 bytes.
    pub fn write(&self, plain: &mut Vec<u8>) {
        plain.extend_from_slice(&self.work.writer);
        plain.extend_from_slice(&self.work.session);
        plain.extend_from_slice(&self.id);
        plain.extend_from_slice(&self.size.to_le_bytes());
        plain.extend_from_slice(&self.sha256);
        plain.extend_from_slice(&[self.class as u8, 0, 0, 0]);
        plain.extend_from_slice(&self.epoch.to_le_bytes());
    }
}

/// An entry as it is stored: its pack is a number among those that are listed with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RawEntry {
    pub id: [u8; 16],
    pub pack: u32,
    pub offset: u32,
    /// With the tag.
    pub length: u32,
}

impl RawEntry {
    pub fn parse(bytes: &[u8; ENTRY]) -> Self {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[..16]);
        Self { id, pack: number(16), offset: number(20), length: number(24) }
    }

    pub fn write(&self, plain: &mut Vec<u8>) {
        plain.extend_from_slice(&self.id);
        plain.extend_from_slice(&self.pack.to_le_bytes());
        plain.extend_from_slice(&self.offset.to_le_bytes());
        plain.extend_from_slice(&self.length.to_le_bytes());
    }
}

/// A segment about to be written.
#[derive(Default)]
pub(crate) struct SegmentBuilder {
    packs: Vec<PackInfo>,
    entries: Vec<RawEntry>,
}

impl SegmentBuilder {
    pub fn add(&mut self, pack: PackInfo, records: impl Iterator<Item = (ObjectId, u32, u32)>) {
        let number = self.packs.len() as u32;
        self.packs.push(pack);
        self.entries.extend(records.map(|(id, offset, length)| {
            let id = id.prefix().to_be_bytes();
            RawEntry { id, pack: number, offset, length }
        }));
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// The object under the name `object`.
    pub fn seal(mut self, keys: &Keys, id: [u8; 16], object: &str) -> Bytes {
        self.entries.sort_unstable();
        let size = 8 + self.packs.len() * PACK + self.entries.len() * ENTRY + SIGNATURE;
        let mut plain = Vec::with_capacity(size);
        plain.extend_from_slice(&(self.packs.len() as u32).to_le_bytes());
        plain.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        self.packs.iter().for_each(|pack| pack.write(&mut plain));
        self.entries.iter().for_each(|entry| entry.write(&mut plain));
        let signature = keys.sign(object, &plain);
        plain.extend_from_slice(&signature);
        seal_object(keys, id, Class::Index, object, plain)
    }
}

/// A segment that was opened.
pub(super) struct Segment<'p> {
    pub packs: Vec<PackInfo>,
    entries: &'p [u8],
    /// All of it but the signature.
    pub body: &'p [u8],
    pub signature: Option<&'p [u8; SIGNATURE]>,
}

impl<'p> Segment<'p> {
    pub fn parse(object: &str, plain: &'p [u8]) -> Result<Self> {
        let damaged = |what: &str| RepoError::damaged(object, what);
        let number = |at: usize| {
            let bytes = plain.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
        };
        let (packs, entries) =
            number(0).zip(number(4)).ok_or_else(|| damaged("it is cut short"))?;
        let split = packs.checked_mul(PACK).and_then(|l| l.checked_add(8));
        let end = split.and_then(|s| entries.checked_mul(ENTRY)?.checked_add(s));
        let (Some(split), Some(end)) = (split, end) else {
            return Err(damaged("its counts make no sense"));
        };
        let contradicts = || damaged("its length contradicts its counts");
        let (body, rest) = plain.split_at_checked(end).ok_or_else(contradicts)?;
        let signature = match rest {
            [] => None,
            rest => Some(rest.try_into().map_err(|_| contradicts())?),
        };
        let packs = PackInfo::parse_all(object, body.get(8..split).unwrap_or_default())?;
        let entries = body.get(split..).unwrap_or_default();
        let segment = Self { packs, entries, body, signature };
        // All of it or nothing.
        if segment.entries().any(|entry| entry.pack as usize >= segment.packs.len()) {
            return Err(damaged("an entry names a pack that is not listed"));
        }
        Ok(segment)
    }

    pub fn entries(&self) -> impl ExactSizeIterator<Item = RawEntry> + use<'p> {
        self.entries.as_chunks::<ENTRY>().0.iter().map(RawEntry::parse)
    }
}
