//! The WAL of a backup in the archives: waited for, and looked at.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use backstay_repo::{Archive, Progress};

use super::{BackupOptions, Lane};
use crate::connection::Parameters;
use crate::inspect::Cluster;
use crate::session::{Session, Source};
use crate::wal::{SegmentName, SegmentSize};
use crate::{PostgresError, PostgresErrorKind, Result};

/// From how many segments on one listing is cheaper than asking for each.
const LIST_FROM: usize = 32;

/// How long the archive is waited for before the primary is asked to end the segment. Servers that
/// archive by themselves are faster.
const BEFORE_ASKING: Duration = Duration::from_secs(2);

/// The primary of a standby that is backed up: only it can end the segment that the backup needs last,
/// so that it is archived.
pub(super) struct Primary {
    parameters: Option<Parameters>,
    asked: bool,
    /// Why it was not asked, or what it said.
    failure: Option<String>,
}

impl Primary {
    /// There is none: the server is one itself.
    pub(super) fn none() -> Self {
        Self { parameters: None, asked: true, failure: None }
    }

    /// Where the options say, or where the standby receives from, with the login of the source.
    pub(super) fn of(
        source: &Source,
        session: Option<&mut Session>,
        options: &BackupOptions,
    ) -> Self {
        let parameters = match &options.primary {
            Some(connection) => Parameters::new(connection),
            None => Parameters::new(&source.connection).and_then(|mut parameters| {
                let (host, port) = sender(session)?;
                parameters.move_to(Path::new(&host), port);
                Ok(parameters)
            }),
        };
        let (parameters, failure) = match parameters {
            Ok(parameters) => (Some(parameters), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self { parameters, asked: false, failure }
    }

    /// Asks it, once.
    fn ask(&mut self) {
        if std::mem::replace(&mut self.asked, true) {
            return;
        }
        let Some(parameters) = &self.parameters else { return };
        let asked = Session::with(parameters).and_then(|mut session| {
            session.lsn("end a segment of WAL", "SELECT pg_switch_wal()::text")
        });
        self.failure = asked.err().map(|error| error.to_string());
    }
}

/// Where a standby receives its WAL from.
fn sender(session: Option<&mut Session>) -> Result<(String, u16)> {
    let unknown = || {
        PostgresError::new(
            PostgresErrorKind::Server,
            "the standby does not say where its primary is",
        )
    };
    let session = session.ok_or_else(unknown)?;
    let rows = session.rows(
        "ask for the primary",
        "SELECT sender_host, sender_port FROM pg_stat_wal_receiver",
        &[],
    )?;
    let row = rows.first().ok_or_else(unknown)?;
    let host: Option<String> = row.try_get(0).ok().flatten();
    let port: Option<i32> = row.try_get(1).ok().flatten();
    host.zip(port.and_then(|port| u16::try_from(port).ok())).ok_or_else(unknown)
}

/// Waits until all of `segments` are in the archive of every lane, for a time that they share: the
/// server passes each segment to all of them at once.
pub(super) fn wait_for_archives(
    lanes: &mut [Lane],
    segments: &[SegmentName],
    session: &mut Option<Session>,
    primary: &mut Primary,
    options: &BackupOptions,
) -> Result<()> {
    let deadline = Instant::now() + options.archive_timeout;
    for lane in lanes {
        let waited = wait_for_archive(&lane.archive, segments, session, primary, options, deadline);
        options.progress.check()?;
        lane.failed = waited.err();
    }
    Ok(())
}

/// Waits until all of `segments` are in the archive. What is there once stays there, so each is
/// waited for in turn, and the last is the last that the server writes.
fn wait_for_archive(
    archive: &Archive,
    segments: &[SegmentName],
    session: &mut Option<Session>,
    primary: &mut Primary,
    options: &BackupOptions,
    deadline: Instant,
) -> Result<()> {
    let began = Instant::now();
    let mut missing: Vec<&SegmentName> = segments.iter().collect();
    if missing.len() >= LIST_FROM {
        let timeline = segments.first().map(|name| name.timeline());
        let there: BTreeSet<String> =
            archive.list(timeline)?.into_iter().map(|file| file.name).collect();
        missing.retain(|name| !there.contains(&name.to_string()));
    }
    let mut pause = Duration::from_millis(20);
    for name in missing {
        let text = name.to_string();
        while !archive.contains(&text)? {
            options.progress.check()?;
            if Instant::now() >= deadline {
                return Err(not_archived(&text, session, primary, options));
            }
            if began.elapsed() >= BEFORE_ASKING {
                primary.ask();
            }
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(Duration::from_secs(1));
        }
    }
    Ok(())
}

/// Refuses an archive that has other WAL under the names of this cluster's segments, as when a copy
/// of the cluster archives to the same place: with that WAL the backup cannot be recovered.
///
/// A segment that is not in `pg_wal` any more was archived by this server, which keeps it until then.
pub(super) fn archived_is_own(
    lanes: &mut [Lane],
    segments: &[SegmentName],
    cluster: &Cluster,
    size: SegmentSize,
    progress: &Progress,
) -> Result<()> {
    let directory = cluster.data_directory.join("pg_wal");
    // A standby has the last ones in part, behind which is what was there before.
    if cluster.in_recovery {
        return Ok(());
    }
    for name in segments {
        progress.check()?;
        let path = directory.join(name.to_string());
        let own = match std::fs::read(&path) {
            Ok(own) if own.len() as u64 == size.bytes() => own,
            Ok(_) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(PostgresError::io("read", &path, error)),
        };
        for lane in lanes.iter_mut().filter(|lane| lane.failed.is_none()) {
            lane.failed = is_own(&lane.archive, &name.to_string(), &own, &path).err();
        }
    }
    Ok(())
}

fn is_own(archive: &Archive, name: &str, own: &[u8], path: &Path) -> Result<()> {
    if archive.stored_hash(name)? == Some(archive.hash(own)) {
        return Ok(());
    }
    // One that was recycled while it was read has another name by now.
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(PostgresError::io("read", path, error)),
        Ok(_) => {}
    }
    Err(PostgresError::new(
        PostgresErrorKind::Archive,
        format!(
            "the archive has another WAL segment {name} than this server; another cluster with \
             the same system identifier archives to it"
        ),
    )
    .with_hint(
        "a copy of the cluster that was promoted or started needs a repository of its own, or \
         archive_mode = off; no snapshot was made",
    ))
}

fn not_archived(
    name: &str,
    session: &mut Option<Session>,
    primary: &Primary,
    options: &BackupOptions,
) -> PostgresError {
    if let Some(failure) = &primary.failure {
        return PostgresError::new(
            PostgresErrorKind::Archive,
            format!(
                "the WAL segment {name} did not reach the archive within {} s, and the primary could \
                 not be asked to end it: {failure}",
                options.archive_timeout.as_secs()
            ),
        )
        .with_hint(
            "set `primary` of the source, run `SELECT pg_switch_wal()` there while the backup waits, \
             or set archive_timeout on the primary and a longer `archive-timeout` here; no snapshot \
             was made",
        )
        .transient();
    }
    // The server's own word is the best hint there is; without it the message still stands.
    let failure = session
        .as_mut()
        .and_then(|session| {
            let rows = session.rows(
                "ask the archiver",
                "SELECT last_failed_wal, last_failed_time::text FROM pg_stat_archiver \
                 WHERE last_failed_time > coalesce(last_archived_time, '-infinity')",
                &[],
            );
            rows.ok()
        })
        .and_then(|rows| {
            let row = rows.first()?;
            let wal: Option<String> = row.try_get(0).ok()?;
            let time: Option<String> = row.try_get(1).ok()?;
            Some(format!("; the server could not archive {} at {}", wal?, time?))
        })
        .unwrap_or_default();
    PostgresError::new(
        PostgresErrorKind::Archive,
        format!(
            "the WAL segment {name} did not reach the archive within {} s{failure}",
            options.archive_timeout.as_secs()
        ),
    )
    .with_hint(
        "check that archive_command is `backstay wal push %p` for this repository; the server's log \
         says why a command failed; no snapshot was made",
    )
    .transient()
}
