//! A consistent copy of a live database, and the check of a copy.
//!
//! With a write-ahead log, one read transaction covers the whole copy: writers go on, and the copy
//! never starts over. Without one, a reader blocks writers, so that the copy goes in steps and lets
//! go of the database between them; a write between two steps makes SQLite start over. After
//! [`RESTARTS`] of those the copy holds the database to its end, for else it would never get there.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use backstay_repo::{Progress, RepoError, RepoErrorKind, Result};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::problem::{explain, locked};

/// Bytes that are copied at a step; some milliseconds.
const STEP: i64 = 4 << 20;
/// Between steps that let go of the database. SQLite's own waiting writers look again after 1, 2,
/// 5, 10 ms.
const PAUSE: Duration = Duration::from_millis(10);
/// How often a copy may be started over by writers before it holds the database.
const RESTARTS: u32 = 3;
/// How long SQLite waits by itself; then we look whether we are to stop.
const WAIT: Duration = Duration::from_millis(100);
/// Errors of an integrity check that are told.
const ERRORS: usize = 5;
/// Room that a copy needs beside its pages. Bytes.
const SPARE: u64 = 1 << 20;

const PREFIX: &str = "backstay-sqlite-";

/// What was learned while copying.
#[derive(Debug)]
pub(super) struct Copy {
    pub journal_mode: String,
    /// Bytes.
    pub page_size: i64,
    pub pages: i64,
    pub restarts: u32,
}

/// What the checks of a database said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Integrity {
    /// The first few errors; empty when all is well.
    pub errors: Vec<String>,
    /// Rows that refer to a row that is not there. SQLite allows that while its foreign keys are
    /// off, which is their default, so that this is for information.
    pub foreign_key_violations: u64,
}

impl Integrity {
    pub fn is_ok(&self) -> bool {
        self.errors.is_empty()
    }
}

/// A private folder that is removed with everything in it; if the process is killed, by the next
/// backup that uses the same folder for temporary files.
pub(super) struct Workspace {
    folder: tempfile::TempDir,
    /// Locked while we live.
    _lock: File,
}

impl Workspace {
    pub fn create(parent: &Path) -> Result<Self> {
        let failed = |error| {
            RepoError::io("make a temporary folder in", parent, error).with_hint(
                "set the folder for temporary files to one that exists and can be written",
            )
        };
        sweep(parent);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent).map_err(failed)?;
        let lock = File::create_new(folder.path().join("lock")).map_err(failed)?;
        lock.try_lock().map_err(|error| failed(error.into()))?;
        Ok(Self { folder, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes what backups that were killed left behind: folders whose lock nobody holds.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        // One without a lock is being created right now.
        let Ok(lock) = File::open(entry.path().join("lock")) else { continue };
        if lock.try_lock().is_ok() {
            let path = entry.path();
            match std::fs::remove_dir_all(&path) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "removed the rest of a backup that was killed")
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove the rest of a backup that was killed")
                }
            }
        }
    }
}

/// What a copy of the database takes at most. Bytes.
pub(super) fn needed(path: &Path) -> Result<u64> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |about| about.len());
    Ok(size(path) + size(Path::new(&log)) + SPARE)
}

/// The free space of a folder, if it is enough. Bytes.
pub(super) fn check_space(folder: &Path, needed: u64) -> Result<u64> {
    let about = rustix::fs::statvfs(folder)
        .map_err(|error| RepoError::io("look at the free space of", folder, error.into()))?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if free >= needed {
        return Ok(free);
    }
    Err(RepoError::new(
        RepoErrorKind::Io,
        format!(
            "the copy of the database needs {} MiB in {}, and {} MiB are free",
            needed.div_ceil(1 << 20),
            folder.display(),
            free >> 20
        ),
    )
    .with_hint("free space there, or set another folder for temporary files"))
}

/// What there is, for people.
pub(super) struct Look {
    journal_mode: String,
    pages: i64,
    page_size: i64,
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MiB, journal mode {}",
            self.pages.saturating_mul(self.page_size) >> 20,
            self.journal_mode
        )
    }
}

pub(super) fn look(path: &Path, busy_timeout: Duration) -> Result<Look> {
    Original::open(path, Instant::now() + busy_timeout, &Progress::default()).map(|it| it.look)
}

/// The database, opened for reading.
struct Original {
    connection: Connection,
    look: Look,
}

impl Original {
    fn open(path: &Path, deadline: Instant, progress: &Progress) -> Result<Self> {
        loop {
            progress.check()?;
            match Self::try_open(path, true).or_else(|error| {
                // Reading may need a log to be created or a journal to be rolled back, as any
                // program that opens the database would.
                match error.sqlite_error_code() {
                    Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly) => {
                        Self::try_open(path, false)
                    }
                    _ => Err(error),
                }
            }) {
                Ok(original) => return Ok(original),
                Err(error) if is_locked(&error) && Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(explain("open", path, error)),
            }
        }
    }

    fn try_open(path: &Path, read_only: bool) -> rusqlite::Result<Self> {
        let access = if read_only {
            OpenFlags::SQLITE_OPEN_READ_ONLY
        } else {
            OpenFlags::SQLITE_OPEN_READ_WRITE
        };
        let connection =
            Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(WAIT)?;
        // The log stays as it is when we are the last to leave.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let get =
            |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let look = Look {
            pages: get("page_count")?,
            page_size: get("page_size")?,
            journal_mode: connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?,
        };
        // Fails here if this is no database.
        connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        Ok(Self { connection, look })
    }

    /// Begins a transaction that sees one state of the database until it ends.
    fn hold(&self) -> rusqlite::Result<()> {
        self.connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;").inspect_err(
            |_| {
                // It may have begun.
                let _ = self.connection.execute_batch("ROLLBACK");
            },
        )
    }
}

fn is_locked(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Copies the database at `from` to the new file `to`.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    busy_timeout: Duration,
    progress: &Progress,
) -> Result<Copy> {
    let deadline = Instant::now() + busy_timeout;
    let original = Original::open(from, deadline, progress)?;
    let failed = |error| explain("copy", from, error);
    let mut target = Connection::open(to).map_err(failed)?;
    // Nobody else sees it, and after a crash it is thrown away.
    target.execute_batch("PRAGMA journal_mode = off; PRAGMA synchronous = off;").map_err(failed)?;
    let with_log = original.look.journal_mode == "wal";
    let mut held = false;
    let mut restarts = 0;
    let step_pages = i32::try_from(STEP / original.look.page_size.max(512)).unwrap_or(64).max(1);
    let backup = Backup::new(&original.connection, &mut target).map_err(failed)?;
    let mut left = i32::MAX;
    // Counts from the last time that something was copied.
    let mut deadline = deadline;
    loop {
        progress.check()?;
        if !held && (with_log || restarts >= RESTARTS) {
            match original.hold() {
                Ok(()) => held = true,
                Err(error) if is_locked(&error) && Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        match backup.step(step_pages).map_err(failed)? {
            StepResult::Done => break,
            StepResult::Busy | StepResult::Locked => {
                if Instant::now() >= deadline {
                    return Err(locked(from));
                }
                std::thread::sleep(PAUSE);
            }
            _ => {
                let remaining = backup.progress().remaining;
                if remaining >= left {
                    restarts += 1;
                }
                left = remaining;
                deadline = Instant::now() + busy_timeout;
                if !held {
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
    let pages = i64::from(backup.progress().pagecount);
    drop(backup);
    let page_size = original.look.page_size;
    let journal_mode = original.look.journal_mode.clone();
    target.close().map_err(|(_, error)| failed(error))?;
    Ok(Copy { journal_mode, page_size, pages, restarts })
}

/// Checks every page and index of a database that nobody writes to.
pub(super) fn check_integrity(path: &Path, progress: &Progress) -> Result<Integrity> {
    let failed = |error| explain("check", path, error);
    // Immutable: no log or lock file appears beside it, whatever its journal mode is.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri(path), flags).map_err(failed)?;
    let interrupt = connection.get_interrupt_handle();
    std::thread::scope(|scope| {
        let (finished, watched) = mpsc::channel::<()>();
        scope.spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = watched.recv_timeout(WAIT) {
                if progress.is_cancelled() {
                    interrupt.interrupt();
                }
            }
        });
        let integrity = read_integrity(&connection);
        drop(finished);
        match integrity {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
                Ok(Integrity { errors: vec![error.to_string()], foreign_key_violations: 0 })
            }
            other => other.map_err(failed),
        }
    })
}

fn read_integrity(connection: &Connection) -> rusqlite::Result<Integrity> {
    let mut integrity = Integrity::default();
    let mut check = connection.prepare(&format!("PRAGMA integrity_check({ERRORS})"))?;
    let mut rows = check.query([])?;
    while let Some(row) = rows.next()? {
        let line: String = row.get(0)?;
        if line != "ok" {
            integrity.errors.push(line);
        }
    }
    if integrity.is_ok() {
        let mut check = connection.prepare("PRAGMA foreign_key_check")?;
        let mut rows = check.query([])?;
        while rows.next()?.is_some() {
            integrity.foreign_key_violations += 1;
        }
    }
    Ok(integrity)
}

/// The path as SQLite reads it in a URI.
fn uri(path: &Path) -> PathBuf {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    PathBuf::from(uri)
}
