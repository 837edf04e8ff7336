//! `BASE_BACKUP`: the conversation, in both framings.
//!
//! Before version 15 each archive, and then the manifest, is a copy of its own, in the order in which
//! the tablespaces were announced, the data directory last. From 15 on all is one copy, in which each
//! piece says what it is: `n` a new archive, `m` the manifest, `d` bytes of either, `p` how far it is.

use std::time::Duration;

use bytes::{Buf as _, Bytes};

use super::{Answer, Message, Wire};
use crate::wal::Lsn;
use crate::{PostgresError, PostgresErrorKind, Result};

const DOING: &str = "copy the cluster";

/// How often it is looked whether somebody wants it to stop.
const TICK: Duration = Duration::from_millis(200);

/// SQLSTATE of pages that failed their checksums.
const CORRUPTED: &str = "XX001";

/// A tablespace that will come, besides the two in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) oid: u32,
    pub(crate) path: String,
}

/// What the server says before the first byte.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    pub(crate) start: Lsn,
    pub(crate) timeline: u32,
    pub(crate) spaces: Vec<Space>,
    /// What will come, as far as the server can tell. Bytes.
    pub(crate) estimate: u64,
}

/// What it says after the last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) stop: Lsn,
    pub(crate) timeline: u32,
    /// It met pages that fail their checksums.
    pub(crate) bad_pages: bool,
}

pub(crate) enum Event {
    /// The archive of a tablespace begins; of the data directory where there is none.
    Archive(Option<u32>),
    Manifest,
    Bytes(Bytes),
    Ended(Ended),
}

pub(crate) struct BaseBackup<'w> {
    wire: &'w mut Wire,
    /// Archives to come, in their order before version 15.
    expected: Vec<Option<u32>>,
    manifest: bool,
    framed: bool,
}

impl<'w> BaseBackup<'w> {
    /// Has the server begin. Without `fast` it takes its time for the checkpoint.
    pub(crate) fn begin(
        wire: &'w mut Wire,
        label: &str,
        fast: bool,
        stop: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Self, Begun)> {
        let label = label.replace('\'', "''");
        let framed = wire.major() >= 15;
        // The server looks at checksums too: it reads a page that fails once more and sends it as it
        // is then, which from here nobody can.
        let query = if framed {
            format!(
                "BASE_BACKUP (LABEL '{label}', PROGRESS true, CHECKPOINT '{}', WAIT false, \
                 TABLESPACE_MAP true, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')",
                if fast { "fast" } else { "spread" }
            )
        } else {
            format!(
                "BASE_BACKUP LABEL '{label}' PROGRESS {}NOWAIT TABLESPACE_MAP MANIFEST 'yes' \
                 MANIFEST_CHECKSUMS 'CRC32C'",
                if fast { "FAST " } else { "" }
            )
        };
        wire.send_query("start a backup", &query)?;
        let first = answer(wire, stop)?;
        let second = answer(wire, stop)?;
        let said = first.rows.first().and_then(|row| {
            Some((row.text(0)?.parse::<Lsn>().ok()?, row.text(1)?.parse::<u32>().ok()?))
        });
        let Some((start, timeline)) = said else { return Err(wire.strange(DOING)) };
        let (mut spaces, mut expected, mut kib) = (Vec::new(), Vec::new(), 0u64);
        for row in &second.rows {
            kib = kib.saturating_add(row.text(2).and_then(|size| size.parse().ok()).unwrap_or(0));
            match (row.text(0), row.text(1)) {
                (Some(oid), path) => {
                    let Ok(oid) = oid.parse::<u32>() else { return Err(wire.strange(DOING)) };
                    expected.push(Some(oid));
                    spaces.push(Space { oid, path: path.unwrap_or_default().to_owned() });
                }
                (None, _) => expected.push(None),
            }
        }
        if expected.iter().filter(|space| space.is_none()).count() != 1 {
            return Err(wire.strange(DOING));
        }
        if framed {
            match message(wire, stop)? {
                Message::CopyOut => {}
                Message::Error(said) => return Err(wire.refused(DOING, said)),
                _ => return Err(wire.strange(DOING)),
            }
        }
        expected.reverse();
        let begun = Begun { start, timeline, spaces, estimate: kib.saturating_mul(1024) };
        Ok((Self { wire, expected, manifest: false, framed }, begun))
    }

    pub(crate) fn wire(&mut self) -> &mut Wire {
        self.wire
    }

    /// What comes next.
    pub(crate) fn next(&mut self, stop: &mut dyn FnMut() -> Result<()>) -> Result<Event> {
        loop {
            match message(self.wire, stop)? {
                Message::CopyData(data) if self.framed => {
                    if let Some(event) = self.framed(data)? {
                        return Ok(event);
                    }
                }
                Message::CopyData(data) => return Ok(Event::Bytes(data)),
                Message::CopyOut if !self.framed => match self.expected.pop() {
                    Some(space) => return Ok(Event::Archive(space)),
                    None if !self.manifest => {
                        self.manifest = true;
                        return Ok(Event::Manifest);
                    }
                    None => return Err(self.wire.strange(DOING)),
                },
                Message::CopyDone => {}
                Message::Columns => return self.ended(stop).map(Event::Ended),
                Message::Error(said) => return Err(self.wire.refused(DOING, said)),
                _ => return Err(self.wire.strange(DOING)),
            }
        }
    }

    fn framed(&mut self, mut data: Bytes) -> Result<Option<Event>> {
        let kind = data.try_get_u8().unwrap_or(0);
        match kind {
            b'd' => Ok(Some(Event::Bytes(data))),
            b'p' => Ok(None),
            b'm' if !self.manifest => {
                self.manifest = true;
                Ok(Some(Event::Manifest))
            }
            b'n' => {
                let name = super::message::string(&mut data).unwrap_or_default();
                let name = name.strip_suffix(".tar").unwrap_or_default();
                let space = match name {
                    "base" => Some(None),
                    oid => oid.parse().ok().map(Some),
                };
                let at = space.and_then(|s| self.expected.iter().position(|e| *e == s));
                match at {
                    Some(at) => Ok(Some(Event::Archive(self.expected.remove(at)))),
                    None => Err(self.wire.strange(DOING)),
                }
            }
            _ => Err(self.wire.strange(DOING)),
        }
    }

    /// The result behind the data; then the server takes the next query.
    fn ended(&mut self, stop: &mut dyn FnMut() -> Result<()>) -> Result<Ended> {
        let wire = &mut *self.wire;
        let mut rows = Vec::new();
        let mut bad_pages = false;
        loop {
            match message(wire, stop)? {
                Message::Row(row) => rows.push(row),
                Message::Complete | Message::Columns => {}
                Message::Error(said) if said.code == CORRUPTED => bad_pages = true,
                Message::Error(said) => return Err(wire.refused(DOING, said)),
                Message::Ready => break,
                _ => return Err(wire.strange(DOING)),
            }
        }
        if !self.expected.is_empty() || !self.manifest {
            return Err(PostgresError::new(
                PostgresErrorKind::Server,
                format!("the server on {} ended the backup before all of it came", wire.place()),
            ));
        }
        let said = rows.first().and_then(|row| {
            Some((row.text(0)?.parse::<Lsn>().ok()?, row.text(1)?.parse::<u32>().ok()?))
        });
        let Some((end, timeline)) = said else { return Err(wire.strange(DOING)) };
        Ok(Ended { stop: end, timeline, bad_pages })
    }
}

/// The next message; `stop` is asked while there is none.
fn message(wire: &mut Wire, stop: &mut dyn FnMut() -> Result<()>) -> Result<Message> {
    loop {
        if let Some(message) = wire.message_within(DOING, Some(TICK))? {
            return Ok(message);
        }
        stop()?;
    }
}

fn answer(wire: &mut Wire, stop: &mut dyn FnMut() -> Result<()>) -> Result<Answer> {
    let mut answer = Answer::default();
    loop {
        match message(wire, stop)? {
            Message::Columns => {}
            Message::Row(row) => answer.rows.push(row),
            Message::Complete => return Ok(answer),
            Message::Error(said) => return Err(wire.refused("start a backup", said)),
            _ => return Err(wire.strange(DOING)),
        }
    }
}
