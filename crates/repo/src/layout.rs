//! Where in the store each kind of object lies.

use crate::id::{hex, unhex};

pub(crate) const FORMAT: &str = "format";
pub(crate) const KEYS: &str = "keys/";
pub(crate) const SESSIONS: &str = "sessions/";
pub(crate) const PACKS: &str = "packs/";
pub(crate) const INDEX: &str = "index/";
pub(crate) const SNAPSHOTS: &str = "snapshots/";
pub(crate) const WAL: &str = "wal/";

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

    /// The inverse of [`snapshot_key`](Self::snapshot_key).
    pub fn from_snapshot_key(key: &str) -> Option<Self> {
        let (writer, session) = key.strip_prefix(SNAPSHOTS)?.split_once('/')?;
        Some(Self { writer: unhex(writer)?, session: unhex(session)? })
    }
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
    }
}
