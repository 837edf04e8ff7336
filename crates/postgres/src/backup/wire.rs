//! A backup over a replication connection: nothing of ours runs on the database host, and a role that
//! may replicate is enough.
//!
//! One thread receives (`stream`), this one hands on what came to the repository's workers, who read
//! each file while it comes. All of it is sent, whatever changed; an incremental backup compares pages
//! as always and stores those that changed.
//!
//! What a replication connection cannot tell is asked in an SQL session where the role may have one:
//! the names of tablespaces, and why the archiver failed.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use backstay_repo::{
    Chunking, Entry, EntryKind, FileContent, Metadata, Order, Problem, Progress, TreeWriter,
};
use backstay_store::failpoint;
use jiff::Timestamp;

use super::archived::{Primary, wait_for_archives};
use super::carried::{Keeper, Needed};
use super::{
    BackupOptions, Backups, Target, add_bytes, begin, commit, label, lanes, leave_behind,
    may_begin, segments, timeline_of,
};
use crate::connection::Parameters;
use crate::control::{self, ControlFile};
use crate::detail::BackupDetail;
use crate::inspect::{ServerSettings, Tablespace, databases, tablespaces};
use crate::reader::PageChecks;
use crate::receive::begin::{identify, size_of};
use crate::receive::{EPOCH, Server, incoming};
use crate::session::{Session, Source};
use crate::stream::feed::Budget;
use crate::stream::{Arrived, Nature, receive};
use crate::wal::SegmentName;
use crate::wire::base::{BaseBackup, Begun};
use crate::wire::{Message, Wire};
use crate::{PostgresError, PostgresErrorKind, Result};

/// Things that may wait for this thread. Content has a budget of its own.
const WAITING: usize = 256;

/// What was received besides files.
#[derive(Default)]
struct Pieces {
    control: Option<(Metadata, Vec<u8>)>,
    label: Option<(Metadata, Vec<u8>)>,
    map: Option<(Metadata, Vec<u8>)>,
    /// What a file has that the server made for the backup.
    of_label: Metadata,
    warnings: Vec<String>,
}

/// Connects for a backup.
pub(super) fn connect(source: &Source) -> Result<Wire> {
    Wire::connect(&Parameters::new(&source.connection)?)
}

/// What the server says of itself that decides how files are taken.
struct About {
    server: Server,
    in_recovery: bool,
    block_size: u32,
    relation_segment_blocks: u32,
    checksums: bool,
    /// Of the data directory.
    mode: u32,
}

impl About {
    fn ask(wire: &mut Wire) -> Result<Self> {
        let server = identify(wire)?;
        let wrong = |name: &str, said: &str| {
            PostgresError::new(
                PostgresErrorKind::Unsupported,
                format!("the server says that its {name} is {said:?}, which cannot be"),
            )
        };
        let said = wire.show("block_size")?;
        let block_size: u32 = said.parse().map_err(|_| wrong("block_size", &said))?;
        if !crate::page::PAGE_SIZES.contains(&block_size) {
            return Err(wrong("block_size", &said));
        }
        let said = wire.show("segment_size")?;
        let blocks = size_of(&said).map(|bytes| bytes / u64::from(block_size));
        let blocks = blocks.and_then(|blocks| u32::try_from(blocks).ok()).filter(|b| *b > 0);
        let relation_segment_blocks = blocks.ok_or_else(|| wrong("segment_size", &said))?;
        let checksums = wire.show("data_checksums")? == "on";
        let said = wire.show("data_directory_mode")?;
        let mode =
            u32::from_str_radix(&said, 8).map_err(|_| wrong("data_directory_mode", &said))?;
        let in_recovery = wire.in_recovery()?;
        Ok(Self { server, in_recovery, block_size, relation_segment_blocks, checksums, mode })
    }
}

pub(super) fn back_up(
    mut wire: Wire,
    targets: &[Target],
    source: &Source,
    options: &BackupOptions,
) -> Result<Backups> {
    let progress = &options.progress;
    let about = About::ask(&mut wire)?;
    let server = &about.server;
    // Most roles may see these; one that may not is not asked to prove anything.
    let mut shown = |name: &str| wire.show(name).unwrap_or_default();
    let settings = ServerSettings {
        wal_level: shown("wal_level"),
        archive_mode: shown("archive_mode"),
        archive_command: shown("archive_command"),
        archive_library: shown("archive_library"),
        ..ServerSettings::default()
    };
    let place = (server.system_identifier, server.timeline);
    if !options.standalone {
        may_begin(&settings, about.in_recovery, place, targets, source)?;
    }
    let keeper = options.standalone.then(|| Keeper::begin(source)).transpose()?;
    let version = wire.major();
    let time_start = server_time(&mut wire)?;
    let mut sql = Session::open(source)
        .inspect_err(|error| tracing::debug!(%error, "there is no SQL session beside the backup"))
        .ok();
    let mut known = sql.as_mut().map(tablespaces).and_then(Result::ok).unwrap_or_default();

    progress.set_phase("checkpoint");
    let mut stop = || -> Result<()> { Ok(progress.check()?) };
    let (mut base, begun) = BaseBackup::begin(&mut wire, &label(source), options.fast, &mut stop)?;
    failpoint::hit("postgres-backup-started");

    progress.set_phase("copy");
    progress.add_total(begun.estimate, 0);
    let writing = begin(targets, source, options)?;
    let checks = about.checksums.then(|| PageChecks::new(about.block_size, begun.start));
    let nature =
        Nature { relation_segment_blocks: about.relation_segment_blocks, checks: checks.clone() };
    let mut tree = writing.tree(Order::Any);
    let (received, taken) = take(&mut base, &nature, &mut tree, &about, &begun, progress);
    let mut pieces = taken?;
    let ended = match received {
        Ok(ended) => ended,
        Err(error) => return Err(promoted(base.wire(), &about, source).unwrap_or(error)),
    };
    tree.wait()?;
    failpoint::hit("postgres-files-copied");
    failpoint::hit("postgres-backup-stopped");
    let time_stop = server_time(&mut wire)?;
    if ended.timeline != begun.timeline {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "the server moved from timeline {} to {} during the backup",
                begun.timeline, ended.timeline
            ),
        )
        .with_hint("run the same command again"));
    }

    let control = store_pieces(&mut tree, &mut pieces, &about, &begun)?;
    if let (Some(sql), false) = (sql.as_mut(), begun.spaces.is_empty()) {
        known.extend(tablespaces(sql).unwrap_or_default());
    }
    let found =
        |space: &crate::wire::base::Space| {
            known.iter().find(|known| known.oid == space.oid).cloned().unwrap_or_else(|| {
                Tablespace { oid: space.oid, name: space.oid.to_string(), path: space.path.clone() }
            })
        };
    let spaces: Vec<Tablespace> = begun.spaces.iter().map(found).collect();
    let segments = segments(begun.timeline, begun.start, ended.stop, server.segment_size)?;
    progress.set_phase("archive");
    let mut lanes = lanes(&writing, server.system_identifier);
    let mut primary = match about.in_recovery {
        true => Primary::of(source, sql.as_mut(), options),
        false => Primary::none(),
    };
    if let Some(keeper) = keeper {
        let needed = Needed {
            segments: &segments,
            stop: ended.stop,
            size: server.segment_size,
            system_identifier: server.system_identifier,
        };
        keeper.store(&needed, &mut tree, &pieces.of_label, progress)?;
    } else {
        wait_for_archives(&mut lanes, &segments, &mut sql, &mut primary, options)?;
    }
    let failed = leave_behind(&writing, lanes)?;
    failpoint::hit("postgres-archive-complete");

    let mut named = false;
    if let Some(checks) = checks {
        for Problem { path, what } in checks.problems(ended.stop) {
            named = true;
            writing.problem(&path, what);
        }
    }
    if ended.bad_pages && !named {
        writing
            .problem("data", "the server met pages that fail their checksums; its log names them");
    }
    let name = |name: Option<&SegmentName>| name.map(ToString::to_string).unwrap_or_default();
    let detail = BackupDetail {
        system_identifier: server.system_identifier,
        version,
        catalog_version: control.catalog_version,
        timeline: begun.timeline,
        start_lsn: begun.start,
        stop_lsn: ended.stop,
        start_segment: name(segments.first()),
        stop_segment: name(segments.last()),
        segment_size: server.segment_size,
        block_size: about.block_size,
        checksums: about.checksums,
        tablespaces: spaces,
        standalone: options.standalone,
        // Without an SQL session nobody can tell which is which.
        databases: sql.as_mut().map(databases).and_then(Result::ok).unwrap_or_default(),
        // The protocol sends nothing but the data directory and tablespaces.
        configuration: Vec::new(),
        time_start,
        time_stop,
    };
    let root = tree.finish()?;
    let why = "a backup over the wire, for which the server sends all files";
    options.detect.warn_of_no_use(&writing, why, &mut pieces.warnings);
    commit(writing, root, detail, failed, pieces.warnings, progress)
}

/// Receives on a thread of its own, and hands what comes to the workers: what came of either.
fn take(
    base: &mut BaseBackup<'_>,
    nature: &Nature,
    tree: &mut TreeWriter<'_>,
    about: &About,
    begun: &Begun,
    progress: &Arc<Progress>,
) -> (Result<crate::wire::base::Ended>, Result<Pieces>) {
    let budget = Budget::new();
    let (sender, arriving) = sync_channel(WAITING);
    std::thread::scope(|scope| {
        let theirs = budget.clone();
        let receiving = scope.spawn(move || {
            let mut stop = || -> Result<()> {
                progress.check()?;
                match theirs.is_stopped() {
                    true => Err(PostgresError::new(
                        PostgresErrorKind::Connection,
                        "the backup was given up",
                    )),
                    false => Ok(()),
                }
            };
            // The sender goes with this thread, which ends what the other one waits for.
            receive(base, nature, &theirs, &sender, &mut stop)
        });
        let taken = hand_on(tree, arriving, about, begun);
        if taken.is_err() {
            budget.stop();
        }
        let received = receiving.join().unwrap_or_else(|_| {
            Err(PostgresError::new(PostgresErrorKind::Connection, "the receiving thread panicked"))
        });
        (received, taken)
    })
}

fn hand_on(
    tree: &mut TreeWriter<'_>,
    arriving: Receiver<Arrived>,
    about: &About,
    begun: &Begun,
) -> Result<Pieces> {
    let mut pieces = Pieces::default();
    let mut rooted = false;
    for arrived in arriving {
        let meta = match &arrived {
            Arrived::Directory { meta, .. } | Arrived::File { meta, .. } => Some(meta.clone()),
            _ => None,
        };
        // The archives say nothing of the directories that they are of: those are the same user's.
        if let Some(meta) = meta.filter(|_| !rooted) {
            rooted = true;
            let meta = Metadata { mode: about.mode, ..meta };
            let mut roots = vec![b"data".to_vec()];
            if !begun.spaces.is_empty() {
                roots.push(b"tablespaces".to_vec());
            }
            roots.extend(
                begun
                    .spaces
                    .iter()
                    .filter(|space| space.path.starts_with('/'))
                    .map(|space| format!("tablespaces/{}", space.oid).into_bytes()),
            );
            for path in roots {
                tree.entry(Entry { path, meta: meta.clone(), kind: EntryKind::Directory })?;
            }
        }
        match arrived {
            Arrived::Directory { path, meta } => {
                tree.entry(Entry { path, meta, kind: EntryKind::Directory })?;
            }
            Arrived::File { path, meta, size, content } => {
                let kind = EntryKind::File(FileContent { size, ..FileContent::empty() });
                let chunking =
                    if content.relation { Chunking::Grid } else { Chunking::ContentDefined };
                tree.file(Entry { path, meta, kind }, Box::new(content), chunking)?;
            }
            Arrived::Control { meta, bytes } => pieces.control = Some((meta, bytes)),
            Arrived::Label { meta, bytes } => pieces.label = Some((meta, bytes)),
            Arrived::Map { meta, bytes } => pieces.map = Some((meta, bytes)),
            Arrived::Odd(warning) => pieces.warnings.push(warning),
        }
    }
    Ok(pieces)
}

/// Checks and stores what was kept in memory. The control file.
fn store_pieces(
    tree: &mut TreeWriter<'_>,
    pieces: &mut Pieces,
    about: &About,
    begun: &Begun,
) -> Result<ControlFile> {
    let lacks = |what: &str| {
        PostgresError::new(PostgresErrorKind::Damaged, format!("the server sent no {what}"))
            .with_hint("is there something between here and the server that alters what it sends?")
    };
    let (meta, bytes) = pieces.control.take().ok_or_else(|| lacks(control::PATH))?;
    let control =
        ControlFile::parse(&bytes, control::PATH).map_err(|error| match error.kind() {
            // The server reads it while it writes it, and does not look.
            PostgresErrorKind::Damaged => error.with_hint("run the same command again").transient(),
            _ => error,
        })?;
    if control.system_identifier != about.server.system_identifier
        || control.block_size != about.block_size
        || control.relation_segment_blocks != about.relation_segment_blocks
        || u64::from(control.wal_segment_size) != about.server.segment_size.bytes()
    {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            "the control file that the server sent is of another cluster",
        ));
    }
    add_bytes(tree, [b"data/", control::PATH.as_bytes()].concat(), meta, bytes)?;
    let (meta, bytes) = pieces.label.take().ok_or_else(|| lacks("backup_label"))?;
    let timeline = timeline_of(&String::from_utf8_lossy(&bytes))?;
    if timeline != begun.timeline {
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!("the backup label is of timeline {timeline}, the backup of {}", begun.timeline),
        ));
    }
    pieces.of_label = meta.clone();
    add_bytes(tree, b"data/backup_label".to_vec(), meta, bytes)?;
    if let Some((meta, bytes)) = pieces.map.take() {
        add_bytes(tree, b"data/tablespace_map".to_vec(), meta, bytes)?;
    }
    Ok(control)
}

/// Whether the backup ended because a standby became a primary.
fn promoted(wire: &mut Wire, about: &About, source: &Source) -> Option<PostgresError> {
    if !about.in_recovery || wire.is_broken() {
        return None;
    }
    // What the server had to say to the end of the failed command.
    let _ = wire.answers("end the backup");
    let now = identify(wire).ok()?;
    (now.timeline != about.server.timeline)
        .then(|| super::promotion(source, about.server.timeline, Some(now.timeline)))
}

/// The time by the server's clock, which it says with every piece of WAL and every sign of life.
fn server_time(wire: &mut Wire) -> Result<Timestamp> {
    const DOING: &str = "ask for the time";
    let server = identify(wire)?;
    let query = format!("START_REPLICATION PHYSICAL {} TIMELINE {}", server.end, server.timeline);
    wire.send_query(DOING, &query)?;
    match wire.message(DOING)? {
        Message::CopyBoth => {}
        Message::Error(said) => return Err(wire.refused(DOING, said)),
        _ => return Err(wire.strange(DOING)),
    }
    // Nothing is flushed here; the answer is asked for.
    let mut status = vec![b'r'];
    status.extend_from_slice(&[0; 32]);
    status.push(1);
    wire.send_copy(DOING, &status)?;
    let mut time = None;
    let mut asked = true;
    loop {
        let Some(message) = wire.message_within(DOING, Some(Duration::from_secs(60)))? else {
            return Err(wire.lost(DOING, "the server said nothing for a minute"));
        };
        match message {
            Message::CopyData(data) => {
                time = time.or_else(|| incoming::time_of(&data));
                if time.is_some() && asked {
                    wire.finish_copy(DOING)?;
                    asked = false;
                }
            }
            Message::Error(said) => return Err(wire.refused(DOING, said)),
            Message::Ready => break,
            _ => {}
        }
    }
    let micros = time.and_then(|micros| micros.checked_add(EPOCH * 1_000_000));
    let time = micros.and_then(|micros| Timestamp::from_microsecond(micros).ok());
    time.ok_or_else(|| wire.strange(DOING))
}
