//! A base backup as it comes over the wire: archives are taken apart, what belongs into a snapshot is
//! handed on, and all of it is compared with the server's manifest.
//!
//! What lives here: what becomes of the bytes. What does not: the conversation (`wire::base`), and the
//! backup around it (`backup::wire`).
//!
//! Paths are those of a backup on the host: below `data/` and `tablespaces/<oid>/`, and what `copy`
//! leaves out is left out here.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub(crate) mod feed;
pub(crate) mod manifest;
pub(crate) mod tar;

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use backstay_repo::{Metadata, Time};

use crate::copy::{EMPTIED, LEFT_OUT, RelationName, is_temporary};
use crate::reader::PageChecks;
use crate::wire::base::{BaseBackup, Ended, Event};
use crate::{PostgresError, PostgresErrorKind, Result, control};
use feed::{Budget, Feed, Filler, Stopped, feed};
use manifest::{Came, Manifest};
use tar::{Header, Part, Tar, Type};

/// What is kept in memory whole: the control file, the label, the map. Bytes.
const SMALL: u64 = 1 << 20;

/// Something that came.
pub(crate) enum Arrived {
    Directory {
        path: Vec<u8>,
        meta: Metadata,
    },
    File {
        path: Vec<u8>,
        meta: Metadata,
        size: u64,
        content: Feed,
    },
    Control {
        meta: Metadata,
        bytes: Vec<u8>,
    },
    Label {
        meta: Metadata,
        bytes: Vec<u8>,
    },
    Map {
        meta: Metadata,
        bytes: Vec<u8>,
    },
    /// Met, and not in the copy.
    Odd(String),
}

/// What is known of the cluster before the files come.
pub(crate) struct Nature {
    pub(crate) relation_segment_blocks: u32,
    pub(crate) checks: Option<Arc<PageChecks>>,
}

/// What is done with an entry of an archive.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    LeftOut,
    Directory(Vec<u8>),
    File(Vec<u8>),
    /// The number of the file within the relation.
    Relation(Vec<u8>, u32),
    Control,
    Label,
    Map,
    Odd,
}

/// Decides by the rules of `copy`. Forks of unlogged relations are left out by the server, which sees
/// whole directories.
fn fate(space: Option<u32>, header: &Header) -> Fate {
    let parts: Vec<&[u8]> = header.path.split(|byte| *byte == b'/').collect();
    if parts.iter().any(|part| part.starts_with(b"pgsql_tmp")) {
        return Fate::LeftOut;
    }
    let mut path = match space {
        None => b"data/".to_vec(),
        Some(oid) => format!("tablespaces/{oid}/").into_bytes(),
    };
    path.extend_from_slice(&header.path);
    let top = parts.first().copied().unwrap_or_default();
    let alone = parts.len() == 1;
    if space.is_none() {
        let top = String::from_utf8_lossy(top);
        if alone && header.type_ == Type::File {
            match top.as_ref() {
                "backup_label" => return Fate::Label,
                "tablespace_map" => return Fate::Map,
                _ => {}
            }
        }
        if LEFT_OUT.contains(&top.as_ref()) || top.starts_with(".s.PGSQL.") {
            return Fate::LeftOut;
        }
        if EMPTIED.contains(&top.as_ref()) {
            let expected = alone
                || matches!(header.path.as_slice(), b"pg_wal/archive_status" | b"pg_wal/summaries");
            let kept = expected && header.type_ == Type::Directory;
            return if kept { Fate::Directory(path) } else { Fate::LeftOut };
        }
        if header.path == control::PATH.as_bytes() {
            return Fate::Control;
        }
    }
    match header.type_ {
        Type::Directory => return Fate::Directory(path),
        Type::Link => return Fate::Odd,
        Type::File => {}
    }
    let number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let name = match (space, parts.as_slice()) {
        (None, [b"global", name]) => Some(*name),
        (None, [b"base", database, name]) if number(database) => Some(*name),
        (None, [b"pg_tblspc", oid, _, database, name]) if number(oid) && number(database) => {
            Some(*name)
        }
        (Some(_), [_, database, name]) if number(database) => Some(*name),
        _ => None,
    };
    let Some(name) = name else { return Fate::File(path) };
    if name.starts_with(b"pg_internal.init") || is_temporary(name) {
        return Fate::LeftOut;
    }
    match RelationName::parse(name) {
        Some(RelationName { segment, .. }) => Fate::Relation(path, segment),
        None => Fate::File(path),
    }
}

/// A file in work.
struct Open {
    /// As the manifest has it.
    listed: Vec<u8>,
    size: u64,
    crc: u32,
    to: To,
}

enum To {
    Nobody,
    Feed(Filler),
    Memory(Fate, Metadata, Vec<u8>),
}

/// Takes all that comes and hands on what is to be stored; answers when all of it came and is what the
/// manifest says.
pub(crate) fn receive(
    base: &mut BaseBackup<'_>,
    nature: &Nature,
    budget: &Arc<Budget>,
    out: &SyncSender<Arrived>,
    stop: &mut dyn FnMut() -> Result<()>,
) -> Result<Ended> {
    let place = base.wire().place().to_owned();
    let wrong = |what: String| {
        PostgresError::new(
            PostgresErrorKind::Damaged,
            format!("what the server on {place} sent cannot be used: {what}"),
        )
        .with_hint(
            "nothing was stored; run the same command again, and look at the network if it stays",
        )
    };
    let mut taking = Taking { nature, budget, out, came: Came::default(), open: None, space: None };
    let mut tar: Option<Tar> = None;
    let mut manifest: Option<Manifest> = None;
    loop {
        stop()?;
        let event = base.next(stop)?;
        if !matches!(event, Event::Bytes(_))
            && let Some(tar) = tar.take()
        {
            tar.finish().map_err(&wrong)?;
        }
        match event {
            Event::Archive(space) => {
                taking.space = space;
                tar = Some(Tar::new());
            }
            Event::Manifest => manifest = Some(Manifest::new()),
            Event::Bytes(bytes) => match (&mut tar, &mut manifest) {
                (Some(tar), _) => {
                    tar.push(&bytes, |part| taking.take(part)).map_err(|ended| match ended {
                        End::Wrong(what) => wrong(what),
                        End::Stopped => stopped(),
                    })?;
                }
                (None, Some(manifest)) => {
                    manifest.push(&bytes, &mut taking.came).map_err(&wrong)?;
                }
                (None, None) => return Err(wrong("bytes of no archive".to_owned())),
            },
            Event::Ended(ended) => {
                let manifest = manifest.ok_or_else(|| wrong("it has no manifest".to_owned()))?;
                let files = manifest.finish(&taking.came).map_err(&wrong)?;
                tracing::debug!(files, "all that came is what the manifest says");
                return Ok(ended);
            }
        }
    }
}

fn stopped() -> PostgresError {
    PostgresError::new(PostgresErrorKind::Connection, "the backup was given up")
}

/// Why an archive is not read on.
enum End {
    Wrong(String),
    Stopped,
}

impl From<String> for End {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

impl From<Stopped> for End {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

struct Taking<'a> {
    nature: &'a Nature,
    budget: &'a Arc<Budget>,
    out: &'a SyncSender<Arrived>,
    came: Came,
    open: Option<Open>,
    space: Option<u32>,
}

impl Taking<'_> {
    fn take(&mut self, part: Part<'_>) -> Result<(), End> {
        match part {
            Part::Entry(header) => self.begin(&header),
            Part::Content(bytes) => {
                let Some(open) = &mut self.open else { return Ok(()) };
                open.crc = crc32c::crc32c_append(open.crc, bytes);
                match &mut open.to {
                    To::Nobody => {}
                    To::Feed(filler) => filler.push(bytes)?,
                    To::Memory(_, _, memory) => memory.extend_from_slice(bytes),
                }
                Ok(())
            }
            Part::Over => {
                let Some(open) = self.open.take() else { return Ok(()) };
                // WAL is in no manifest.
                if !open.listed.starts_with(b"pg_wal/") {
                    self.came.add(&open.listed, open.size, open.crc);
                }
                match open.to {
                    To::Memory(Fate::Control, meta, bytes) => {
                        self.send(Arrived::Control { meta, bytes })
                    }
                    To::Memory(Fate::Label, meta, bytes) => {
                        self.send(Arrived::Label { meta, bytes })
                    }
                    To::Memory(_, meta, bytes) => self.send(Arrived::Map { meta, bytes }),
                    To::Feed(_) | To::Nobody => Ok(()),
                }
            }
        }
    }

    fn begin(&mut self, header: &Header) -> Result<(), End> {
        let meta = metadata(header);
        let fate = fate(self.space, header);
        let mut to = To::Nobody;
        match fate {
            Fate::LeftOut => {}
            Fate::Directory(path) => self.send(Arrived::Directory { path, meta })?,
            Fate::Odd => self.send(Arrived::Odd(format!(
                "{} is a symbolic link and is not in the backup",
                String::from_utf8_lossy(&header.path)
            )))?,
            Fate::Control | Fate::Label | Fate::Map => {
                if header.size > SMALL {
                    return Err(End::Wrong(format!(
                        "{} has {} bytes",
                        String::from_utf8_lossy(&header.path),
                        header.size
                    )));
                }
                to = To::Memory(fate, meta, Vec::new());
            }
            Fate::File(path) => {
                let (filler, content) = feed(header.size, &path, self.budget);
                self.send(Arrived::File { path, meta, size: header.size, content })?;
                to = To::Feed(filler);
            }
            Fate::Relation(path, segment) => {
                let (filler, mut content) = feed(header.size, &path, self.budget);
                content.relation = true;
                let first = segment.wrapping_mul(self.nature.relation_segment_blocks);
                content.pages = self.nature.checks.clone().map(|checks| (checks, first));
                self.send(Arrived::File { path, meta, size: header.size, content })?;
                to = To::Feed(filler);
            }
        }
        if header.type_ == Type::File {
            let mut listed = match self.space {
                None => Vec::new(),
                Some(oid) => format!("pg_tblspc/{oid}/").into_bytes(),
            };
            listed.extend_from_slice(&header.path);
            self.open = Some(Open { listed, size: header.size, crc: 0, to });
        }
        Ok(())
    }

    fn send(&self, arrived: Arrived) -> Result<(), End> {
        self.out.send(arrived).map_err(|_| End::Stopped)
    }
}

fn metadata(header: &Header) -> Metadata {
    let mtime = Time { seconds: header.mtime, nanos: 0 };
    Metadata {
        mode: header.mode,
        uid: header.uid,
        gid: header.gid,
        user: header.user.clone(),
        group: header.group.clone(),
        mtime,
        ctime: mtime,
        ..Metadata::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(space: Option<u32>, path: &str, type_: Type) -> Fate {
        let header = Header {
            path: path.as_bytes().to_vec(),
            type_,
            size: 0,
            mode: 0o600,
            uid: 0,
            gid: 0,
            user: String::new(),
            group: String::new(),
            mtime: 0,
        };
        fate(space, &header)
    }

    #[test]
    fn what_a_copy_on_the_host_leaves_out_is_left_out() {
        let file = |path: &str| of(None, path, Type::File);
        for path in [
            "postmaster.pid",
            "backup_manifest",
            "standby.signal",
            "pg_wal/000000010000000000000001",
            "pg_replslot/a/state",
            "base/5/pg_internal.init",
            "base/5/t3_16384",
            "base/pgsql_tmp/x",
            "backstay-old-wal/000000010000000000000001",
        ] {
            assert_eq!(file(path), Fate::LeftOut, "{path}");
        }
        // A name is special at its own depth only.
        for path in ["log/postmaster.pid", "base/postmaster.pid", "PG_VERSION", "base/5/PG_VERSION"]
        {
            assert_eq!(file(path), Fate::File(format!("data/{path}").into_bytes()), "{path}");
        }
        assert_eq!(file("backup_label"), Fate::Label);
        assert_eq!(file("tablespace_map"), Fate::Map);
        assert_eq!(file("global/pg_control"), Fate::Control);
        let directory = |path: &str| of(None, path, Type::Directory);
        assert_eq!(directory("pg_wal"), Fate::Directory(b"data/pg_wal".to_vec()));
        assert_eq!(
            directory("pg_wal/summaries"),
            Fate::Directory(b"data/pg_wal/summaries".to_vec())
        );
        assert_eq!(directory("pg_replslot/a"), Fate::LeftOut);
        assert_eq!(of(None, "pg_tblspc/16389", Type::Link), Fate::Odd);
    }

    #[test]
    fn relations_are_told_by_where_they_lie() {
        let relation = |path: &str, segment| Fate::Relation(path.as_bytes().to_vec(), segment);
        assert_eq!(of(None, "base/5/16384.2", Type::File), relation("data/base/5/16384.2", 2));
        assert_eq!(of(None, "global/1262_vm", Type::File), relation("data/global/1262_vm", 0));
        assert_eq!(
            of(Some(16389), "PG_15_202209061/5/16390", Type::File),
            relation("tablespaces/16389/PG_15_202209061/5/16390", 0)
        );
        assert_eq!(of(None, "log/5/16384", Type::File), Fate::File(b"data/log/5/16384".to_vec()));
    }
}
