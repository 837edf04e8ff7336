//! Does the log of a server leave it? What the server itself says of its archiver and of the slot of a
//! receiver, which no archive can show: an archive that gets nothing more looks like that of a server
//! that has nothing to do.
//!
//! Each thing that is wrong is an [`Alert`] with a name for programs. What is wrong with the archive
//! itself is in [`archive`].

mod archive;

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::Result;
use crate::inspect::setting;
use crate::session::{Session, Source};
use crate::wal::Lsn;

/// Something that has to be done before it costs data, or a server its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// A word for programs.
    pub name: &'static str,
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl Alert {
    pub fn new(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, message: message.into(), hint: hint.into() }
    }
}

/// What is looked at, and where it begins to be too much.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// The slot of this source's receiver.
    pub slot: String,
    /// How much log the slot may hold back. Bytes.
    pub slot_limit: u64,
    /// How long a finished file may wait to be archived.
    pub archive_lag: Duration,
    /// Whether no log needs to leave the server between backups.
    pub standalone: bool,
}

/// The archiver, as the server counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Archiver {
    pub archived: i64,
    pub last_archived: Option<String>,
    pub last_archived_time: Option<Timestamp>,
    pub failed: i64,
    pub last_failed: Option<String>,
    pub last_failed_time: Option<Timestamp>,
}

impl Archiver {
    /// Whether the last thing that it did failed.
    fn fails(&self) -> bool {
        self.last_failed_time
            .is_some_and(|failed| self.last_archived_time.is_none_or(|done| failed > done))
    }
}

/// Files that are finished and not archived yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    pub files: u64,
    /// How long the oldest waits. Seconds.
    pub seconds: u64,
}

/// The slot of a receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotState {
    pub name: String,
    /// Whether somebody receives.
    pub active: bool,
    /// In the server's words: `reserved`, `extended`, `unreserved` or `lost`; none before its first
    /// use.
    pub wal_status: Option<String>,
    /// How much log it holds back. Bytes.
    pub behind: Option<u64>,
}

/// What a server says of its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Watched {
    /// A text: it does not fit into 53 bits.
    pub system_identifier: String,
    pub in_recovery: bool,
    /// Up to here the log is written, or received by a standby.
    pub position: Option<Lsn>,
    pub archive_mode: String,
    /// Whether there is a command or a library that archives.
    pub has_command: bool,
    pub archiver: Archiver,
    /// None where the role may not ask.
    pub waiting: Option<Waiting>,
    /// None where there is no such slot.
    pub slot: Option<SlotState>,
}

/// Asks the server of `source`.
///
/// # Errors
/// It cannot be asked; then nothing is known about it.
pub fn watch(source: &Source, options: &WatchOptions) -> Result<Watched> {
    ask(&mut Session::open(source)?, options)
}

pub(crate) fn ask(session: &mut Session, options: &WatchOptions) -> Result<Watched> {
    let system_identifier: String = session.one(
        "ask for the system identifier",
        "SELECT system_identifier::text FROM pg_control_system()",
        &[],
    )?;
    // A system identifier of this size is negative for the server.
    let system_identifier = match system_identifier.parse::<i64>() {
        Ok(number) => number.cast_unsigned().to_string(),
        Err(_) => system_identifier,
    };
    let in_recovery: bool =
        session.one("ask whether it is a standby", "SELECT pg_is_in_recovery()", &[])?;
    let position: Option<String> = session.one(
        "ask where the log ends",
        "SELECT (CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), \
         pg_last_wal_replay_lsn()) ELSE pg_current_wal_flush_lsn() END)::text",
        &[],
    )?;
    let archive_mode = setting(session, "archive_mode")?;
    let has_command = !setting(session, "archive_command")?.is_empty()
        || !setting(session, "archive_library")?.is_empty();
    Ok(Watched {
        system_identifier,
        in_recovery,
        position: position.and_then(|text| text.parse().ok()),
        archive_mode,
        has_command,
        archiver: archiver(session)?,
        waiting: waiting(session)?,
        slot: slot(session, &options.slot)?,
    })
}

fn archiver(session: &mut Session) -> Result<Archiver> {
    let rows = session.rows(
        "ask for the archiver's counts",
        "SELECT archived_count, last_archived_wal, \
         (extract(epoch FROM last_archived_time) * 1000000)::int8, failed_count, last_failed_wal, \
         (extract(epoch FROM last_failed_time) * 1000000)::int8 FROM pg_stat_archiver",
        &[],
    )?;
    let Some(row) = rows.first() else {
        return Ok(Archiver {
            archived: 0,
            last_archived: None,
            last_archived_time: None,
            failed: 0,
            last_failed: None,
            last_failed_time: None,
        });
    };
    let time = |at: usize| {
        row.get::<_, Option<i64>>(at).and_then(|micros| Timestamp::from_microsecond(micros).ok())
    };
    Ok(Archiver {
        archived: row.get(0),
        last_archived: row.get(1),
        last_archived_time: time(2),
        failed: row.get(3),
        last_failed: row.get(4),
        last_failed_time: time(5),
    })
}

fn waiting(session: &mut Session) -> Result<Option<Waiting>> {
    let may: bool = session.one(
        "ask for permissions",
        "SELECT has_function_privilege('pg_ls_archive_statusdir()', 'execute')",
        &[],
    )?;
    if !may {
        return Ok(None);
    }
    let rows = session.rows(
        "list what waits to be archived",
        "SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(modification)), 0)::int8 \
         FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'",
        &[],
    )?;
    Ok(rows.first().map(|row| Waiting {
        files: row.get::<_, i64>(0).unsigned_abs(),
        seconds: u64::try_from(row.get::<_, i64>(1)).unwrap_or(0),
    }))
}

fn slot(session: &mut Session, name: &str) -> Result<Option<SlotState>> {
    let rows = session.rows(
        "look at the slot",
        "SELECT active, wal_status, \
         (CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), \
         pg_last_wal_replay_lsn()) ELSE pg_current_wal_lsn() END - restart_lsn)::int8 \
         FROM pg_replication_slots WHERE slot_name = $1",
        &[&name],
    )?;
    Ok(rows.first().map(|row| SlotState {
        name: name.to_owned(),
        active: row.get(0),
        wal_status: row.get(1),
        behind: row.get::<_, Option<i64>>(2).map(|bytes| u64::try_from(bytes).unwrap_or(0)),
    }))
}

impl Watched {
    /// What is wrong. A server that is asked while a single file fails and is tried again has an
    /// alert, too: whether the next try succeeds nobody knows.
    pub fn alerts(&self, options: &WatchOptions) -> Vec<Alert> {
        let mut alerts = Vec::new();
        // A standby archives only with `always`; else that is for its primary to do.
        let archives = match self.archive_mode.as_str() {
            "off" => false,
            "always" => true,
            _ => !self.in_recovery,
        };
        if archives {
            self.about_the_archiver(options, &mut alerts);
        } else if self.archive_mode == "off"
            && !self.in_recovery
            && !options.standalone
            && self.slot.is_none()
        {
            alerts.push(Alert::new(
                "archiving-off",
                "archive_mode is off, and there is no slot of a receiver: no log leaves the server",
                "run `backstay postgres setup`, then restart the server; or `backstay wal receive \
                 --create-slot`",
            ));
        }
        if let Some(slot) = &self.slot {
            slot.alerts(options, self.archive_mode == "off", &mut alerts);
        }
        alerts
    }

    fn about_the_archiver(&self, options: &WatchOptions, alerts: &mut Vec<Alert>) {
        if !self.has_command && self.slot.is_none() {
            alerts.push(Alert::new(
                "no-archive-command",
                "archive_mode is on, but there is neither an archive_command nor an archive_library: \
                 no log leaves the server, and all of it stays in pg_wal",
                "run `backstay postgres setup`, which says what archive_command should be",
            ));
        }
        let archiver = &self.archiver;
        if archiver.fails() {
            let file = archiver.last_failed.as_deref().unwrap_or("a file");
            let since = match archiver.last_archived_time {
                Some(time) => format!("the last that was archived was at {time}"),
                None => "none was ever archived".to_owned(),
            };
            let failed = archiver.failed;
            alerts.push(Alert::new(
                "archiver-fails",
                format!("the server could not archive {file} ({failed} failures so far); {since}"),
                "the server's log says why archive_command failed; until it succeeds, pg_wal grows",
            ));
        }
        if let Some(waiting) = &self.waiting
            && waiting.files > 0
            && Duration::from_secs(waiting.seconds) > options.archive_lag
        {
            let files = match waiting.files {
                1 => "1 file waits".to_owned(),
                several => format!("{several} files wait"),
            };
            alerts.push(Alert::new(
                "archive-lag",
                format!(
                    "{files} to be archived, the oldest for {} s, more than `archive-lag` of {} s",
                    waiting.seconds,
                    options.archive_lag.as_secs()
                ),
                "if archiving is too slow for what the server writes, run `backstay wal serve` beside \
                 it; if it fails, the server's log says why",
            ));
        }
    }
}

impl SlotState {
    fn alerts(&self, options: &WatchOptions, only: bool, alerts: &mut Vec<Alert>) {
        let name = &self.name;
        if self.wal_status.as_deref() == Some("lost") {
            alerts.push(Alert::new(
                "slot-lost",
                format!("the server has removed log that the slot {name} should have kept"),
                "receive with --drop-slot, then with --create-slot --skip-gap, and make a backup: \
                 nothing recovers across the gap, unless archive_command brought what is missing",
            ));
            return;
        }
        let receives = "check that `backstay wal receive` runs and reaches its repositories";
        if only && !self.active {
            alerts.push(Alert::new(
                "slot-inactive",
                format!(
                    "nobody receives from the slot {name}, and archive_mode is off: no log leaves \
                     the server"
                ),
                receives,
            ));
        }
        if let Some(behind) = self.behind.filter(|behind| *behind > options.slot_limit) {
            alerts.push(Alert::new(
                "slot-behind",
                format!(
                    "the slot {name} holds back {} MiB of log, more than `slot-limit` of {} MiB",
                    behind >> 20,
                    options.slot_limit >> 20
                ),
                receives,
            ));
        }
        let risk = match self.wal_status.as_deref() {
            Some("extended") => "holds back more log than max_wal_size",
            Some("unreserved") => {
                "is behind max_slot_wal_keep_size: the next checkpoint may lose it"
            }
            _ => return,
        };
        alerts.push(Alert::new("slot-at-risk", format!("the slot {name} {risk}"), receives));
    }
}
