//! Where in the store each kind of object lies.

use crate::id::{hex, unhex};

pub(crate) const FORMAT: &str = "format";
pub(crate) const KEYS: &str = "keys/";
pub(crate) const SESSIONS: &str = "sessions/";
pub(crate) const PACKS: &str = "packs/";
pub(crate) const INDEX: &str = "index/";
pub(crate) const SNAPSHOTS: &str = "snapshots/";
pub(crate) const WAL: &str = "wal/";
pub(crate) const TOMBSTONES: &str = "tombstones/";
pub(crate) const GC: &str = "gc/";
/// What was done with keys.
pub(crate) const AUDIT_KEYS: &str = "audit/keys/";
/// Which merged segments are the index, by the number of the run that made them.
pub(crate) const HEADS: &str = "index/heads/";

/// Who writes: a machine and one piece of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Work {
    pub writer: [u8; 8],
    pub session: [u8; 16],
}

impl Work {
    fn path(&self) -> String {
        format!("{}/{}", hex(&self.writer), hex(&self.session))
    }

    /// Of a snapshot that was read.
    pub fn of(snapshot: &crate::Snapshot) -> Option<Self> {
        Some(Self { writer: unhex(&snapshot.writer)?, session: unhex(&snapshot.id)? })
    }

    /// The id of the session and of its snapshot, for people.
    pub fn id(&self) -> String {
        hex(&self.session)
    }

    pub fn session_key(&self) -> String {
        format!("{SESSIONS}{}", self.path())
    }

    pub fn snapshot_key(&self) -> String {
        format!("{SNAPSHOTS}{}", self.path())
    }

    pub fn pack_key(&self, id: &[u8; 16]) -> String {
        format!("{PACKS}{}/{}", self.path(), hex(id))
    }

    /// Level 0: as written by the session itself.
    pub fn index_key(&self, number: u32) -> String {
        format!("{INDEX}0/{}/{number:06}", self.path())
    }

    /// Where it is said that the snapshot is forgotten.
    pub fn tombstone_key(&self) -> String {
        format!("{TOMBSTONES}{}", self.path())
    }

    /// The inverse of [`snapshot_key`](Self::snapshot_key).
    pub fn from_snapshot_key(key: &str) -> Option<Self> {
        Self::from_path(key.strip_prefix(SNAPSHOTS)?)
    }

    /// The inverse of [`session_key`](Self::session_key).
    pub fn from_session_key(key: &str) -> Option<Self> {
        Self::from_path(key.strip_prefix(SESSIONS)?)
    }

    /// The inverse of [`tombstone_key`](Self::tombstone_key).
    pub fn from_tombstone_key(key: &str) -> Option<Self> {
        Self::from_path(key.strip_prefix(TOMBSTONES)?)
    }

    /// The inverse of [`index_key`](Self::index_key).
    pub fn from_index_key(key: &str) -> Option<Self> {
        let (path, number) = key.strip_prefix(INDEX)?.strip_prefix("0/")?.rsplit_once('/')?;
        number.parse::<u32>().ok()?;
        Self::from_path(path)
    }

    fn from_path(path: &str) -> Option<Self> {
        let (writer, session) = path.split_once('/')?;
        Some(Self { writer: unhex(writer)?, session: unhex(session)? })
    }
}

/// A step of a run of maintenance.
pub(crate) fn gc_key(number: u64, step: &str) -> String {
    format!("{GC}{number:08}/{step}")
}

pub(crate) fn head_key(number: u64) -> String {
    format!("{HEADS}{number:08}")
}

/// The run that an object of [`gc_key`] or [`head_key`] belongs to.
pub(crate) fn run_of(key: &str) -> Option<u64> {
    let rest = key.strip_prefix(GC).or_else(|| key.strip_prefix(HEADS))?;
    rest.split('/').next()?.parse().ok()
}

/// A part of a run of the index, which the run `number` of maintenance wrote.
pub(crate) fn part_key(number: u64, id: &[u8; 16], part: u32) -> String {
    format!("{INDEX}1/{number:08}/{}/{part:06}", hex(id))
}

/// What the keys of all parts of a run of the index begin with.
pub(crate) fn parse_part_key(key: &str) -> Option<&str> {
    let (run, part) = key.rsplit_once('/')?;
    let (number, id) = run.strip_prefix(INDEX)?.strip_prefix("1/")?.split_once('/')?;
    let is_one = number.parse::<u64>().is_ok() && part.parse::<u32>().is_ok();
    (is_one && unhex::<16>(id).is_some()).then_some(run)
}

/// The inverse of [`Work::pack_key`].
pub(crate) fn parse_pack_key(key: &str) -> Option<(Work, [u8; 16])> {
    let mut parts = key.strip_prefix(PACKS)?.split('/');
    let work = Work { writer: unhex(parts.next()?)?, session: unhex(parts.next()?)? };
    let id = unhex(parts.next()?)?;
    parts.next().is_none().then_some((work, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        let work = Work { writer: [1; 8], session: [0xab; 16] };
        assert_eq!(Work::from_snapshot_key(&work.snapshot_key()), Some(work));
        assert_eq!(parse_pack_key(&work.pack_key(&[7; 16])), Some((work, [7; 16])));
        assert_eq!(parse_pack_key(&format!("{}/x", work.pack_key(&[7; 16]))), None);
        assert_eq!(Work::from_snapshot_key("snapshots/ab"), None);
        let part = part_key(3, &[7; 16], 12);
        assert_eq!(parse_part_key(&part), part.strip_suffix("/000012"));
        assert_eq!(parse_part_key(&work.index_key(0)), None);
    }
}
