//! A backup that carries its WAL: what recovery of it needs is in the snapshot, in `pg_wal`, so that
//! it can be restored where there is no archive.
//!
//! The WAL comes over a replication connection, when the copy has ended: a temporary slot, made before
//! the copy begins, has the server keep it until then. Behind the end of the backup the last segment is
//! zeros, so that recovery ends right there.

use std::time::{Duration, Instant};

use backstay_repo::{Metadata, Progress, TreeWriter};

use super::add_bytes;
use crate::connection::Parameters;
use crate::receive::incoming::{self, Incoming, Piece};
use crate::receive::ship::Parcel;
use crate::session::Source;
use crate::wal::{Lsn, SegmentName, SegmentSize};
use crate::wire::{Message, Wire};
use crate::{PostgresError, PostgresErrorKind, Result};

const DOING: &str = "fetch the WAL of the backup";

/// How often the server hears that somebody is there, at least.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How long it may say nothing.
const SILENCE: Duration = Duration::from_secs(120);
/// What may wait to be stored. Bytes.
const WAITING: u64 = 64 << 20;

/// A connection whose slot has the server keep WAL. It goes with the connection.
pub(super) struct Keeper {
    wire: Wire,
    slot: String,
}

/// What WAL a backup needs.
pub(super) struct Needed<'a> {
    pub(super) segments: &'a [SegmentName],
    pub(super) stop: Lsn,
    pub(super) size: SegmentSize,
    pub(super) system_identifier: u64,
}

impl Keeper {
    /// Has the server keep WAL from its last checkpoint on.
    pub(super) fn begin(source: &Source) -> Result<Self> {
        let mut wire = Wire::connect(&Parameters::new(&source.connection)?).map_err(|error| {
            let hint = "a standalone backup fetches WAL over a replication connection: the role \
                        needs the attribute REPLICATION, and pg_hba.conf a line for `replication`";
            error.with_hint(hint)
        })?;
        let slot =
            format!("backstay_{}_{}", std::process::id(), jiff::Timestamp::now().as_microsecond());
        let query = format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY PHYSICAL RESERVE_WAL");
        wire.query("have the server keep the WAL of the backup", &query)?;
        Ok(Self { wire, slot })
    }

    /// Stores the segments. `meta` is that of the file of the first.
    pub(super) fn store(
        mut self,
        needed: &Needed<'_>,
        tree: &mut TreeWriter<'_>,
        meta: &Metadata,
        progress: &Progress,
    ) -> Result<()> {
        let size = needed.size;
        let Some(first) = needed.segments.first().copied() else { return Ok(()) };
        let start = first.start(size).ok_or_else(|| self.wire.strange(DOING))?;
        let wire = &mut self.wire;
        let query = format!(
            "START_REPLICATION SLOT \"{}\" PHYSICAL {start} TIMELINE {}",
            self.slot,
            first.timeline()
        );
        wire.send_query(DOING, &query)?;
        match wire.message(DOING)? {
            Message::CopyBoth => {}
            Message::Error(said) => {
                return Err(wire.refused(DOING, said).with_hint(
                    "max_slot_wal_keep_size may have ended the slot: let it be as much as the \
                     cluster writes during a backup",
                ));
            }
            _ => return Err(wire.strange(DOING)),
        }
        let mut incoming = Incoming::new(first, size, needed.system_identifier, Vec::new())?;
        let (mut heard, mut reported) = (Instant::now(), Instant::now());
        let mut waiting = 0;
        let mut keep = |name: SegmentName, content: Vec<u8>, tree: &mut TreeWriter<'_>| {
            waiting += content.len() as u64;
            let path = format!("data/pg_wal/{name}").into_bytes();
            add_bytes(tree, path, meta.clone(), content)?;
            if waiting >= WAITING {
                tree.wait()?;
                waiting = 0;
            }
            Ok::<(), PostgresError>(())
        };
        while incoming.received() < needed.stop {
            progress.check()?;
            if reported.elapsed() >= REPORT_EVERY {
                wire.send_copy(DOING, &status(incoming.received()))?;
                reported = Instant::now();
            }
            let Some(message) = wire.message_within(DOING, Some(Duration::from_millis(200)))?
            else {
                if heard.elapsed() > SILENCE {
                    return Err(wire.lost(DOING, "the server said nothing for two minutes"));
                }
                continue;
            };
            heard = Instant::now();
            let data = match message {
                Message::CopyData(data) => data,
                Message::Error(said) => return Err(wire.refused(DOING, said)),
                _ => {
                    return Err(PostgresError::new(
                        PostgresErrorKind::Mismatch,
                        format!("the server ended its WAL before {}", needed.stop),
                    )
                    .with_hint("it moved to another timeline; run the same command again"));
                }
            };
            match incoming::read(&data) {
                Some(Piece::Wal { start, bytes, .. }) => {
                    for whole in incoming.take(start, bytes)? {
                        if let Parcel::Segment { name, mut content, .. } = whole {
                            end_at(&mut content, name, needed);
                            if needed.segments.contains(&name) {
                                keep(name, content, tree)?;
                            }
                        }
                    }
                }
                Some(Piece::Alive { reply, .. }) => {
                    if reply {
                        wire.send_copy(DOING, &status(incoming.received()))?;
                    }
                }
                None => return Err(wire.strange(DOING)),
            }
        }
        let (name, begun) = incoming.partial();
        if needed.segments.contains(&name) {
            let mut content = begun.to_vec();
            content.resize(size.bytes() as usize, 0);
            end_at(&mut content, name, needed);
            keep(name, content, tree)?;
        }
        tree.wait()?;
        Ok(())
    }
}

/// Zeros behind the end of the backup.
fn end_at(content: &mut [u8], name: SegmentName, needed: &Needed<'_>) {
    let Some(start) = name.start(needed.size) else { return };
    let end = usize::try_from(needed.stop.since(start)).unwrap_or(usize::MAX);
    if let Some(behind) = content.get_mut(end..) {
        behind.fill(0);
    }
}

/// What the server hears: where this side is.
fn status(received: Lsn) -> Vec<u8> {
    let mut body = vec![b'r'];
    for value in [received.0, received.0, 0, 0] {
        body.extend_from_slice(&value.to_be_bytes());
    }
    body.push(0);
    body
}
