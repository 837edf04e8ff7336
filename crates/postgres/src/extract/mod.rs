//! One table or one schema of a backup, brought into a running cluster.
//!
//! A table cannot be taken out of the files of a cluster: its rows mean something only together with
//! the catalogue, and with the log replayed. So its database is restored into a sandbox of its own
//! (a private server on a socket, without TCP, archiving nothing, running nothing of what the
//! original runs by itself), recovered to the moment that is wanted, and dumped from there.
//!
//! Nothing in the cluster it is brought into is overwritten: it comes under a name that is free, in
//! one transaction, which fails unless each table has as many rows as it has in the sandbox.

mod name;
mod programs;
mod stage;
mod transfer;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_repo::{Repository, Snapshot};

use crate::connection::{Parameters, refuse_password};
use crate::detail::BackupDetail;
use crate::restore::{Reached, RestoreOptions, Running, StartOptions, TargetAction, find_program};
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};

pub use name::Part;

/// What to take out of a backup, and where it goes.
#[derive(Debug, Clone)]
pub struct ExtractOptions {
    /// How the sandbox is restored: target, timeline, command, workers. Where it goes is
    /// `directory`'s to say; what it is started with, this module's.
    pub restore: RestoreOptions,
    /// An absent or empty directory for the sandbox, which is removed at the end. None: one among
    /// temporary files.
    pub directory: Option<PathBuf>,
    /// Where `postgres`, `pg_dump` and `psql` are; searched for where it is not given.
    pub bin_dir: Option<PathBuf>,
    pub part: Part,
    /// The database in the backup. None: that of `into`.
    pub database: Option<String>,
    /// The connection to where it goes, without a password.
    pub into: String,
    /// The name that it gets: `[SCHEMA.]TABLE`, or a schema's. None: a table keeps its name in a new
    /// schema; a schema gets a new name.
    pub name: Option<String>,
}

/// A table that was brought over.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Loaded {
    /// As SQL takes it, with its schema.
    pub name: String,
    /// Counted in the sandbox, and again where it went.
    pub rows: i64,
}

/// What came of it.
#[derive(Debug)]
pub struct Extracted {
    pub tables: Vec<Loaded>,
    /// Statements for what was left out because it reaches beyond the part: foreign keys to other
    /// tables, and triggers.
    pub statements: Vec<String>,
    pub notes: Vec<String>,
    pub reached: Option<Reached>,
    /// Until the sandbox was there, and from there to the end.
    pub restored: Duration,
    pub loaded: Duration,
}

/// Brings a part of `snapshot` into a running cluster.
///
/// # Errors
/// Where it goes, nothing has changed then.
pub fn extract(
    repo: &Repository,
    snapshot: &Snapshot,
    options: &ExtractOptions,
) -> Result<Extracted> {
    let began = Instant::now();
    let progress = &options.restore.progress;
    progress.set_phase("check");
    let detail = BackupDetail::of(snapshot)?;
    refuse_password(&options.into, "the server to load into")?;
    let mut into = Parameters::new(&options.into)?;
    let mut live = Session::with(&into)?;
    let database = options.database.clone().unwrap_or_else(|| into.database().to_owned());
    into.set_database(&live.one::<String>(
        "ask for the database",
        "SELECT current_database()::text",
        &[],
    )?);
    let place = name::destination(&options.part, options.name.as_deref(), &mut live)?;
    let server = find_program(detail.version, options.bin_dir.as_deref())?;
    let programs = programs::find(detail.version, options.bin_dir.as_deref(), &server)?;

    let mut sandbox = Sandbox::make(options.directory.as_deref())?;
    let mut restore = options.restore.clone();
    restore.to = sandbox.folder.join("data");
    restore.databases = vec![database.clone()];
    restore.action = TargetAction::Promote;
    restore.tablespaces = detail
        .tablespaces
        .iter()
        .filter(|space| space.path.starts_with('/'))
        .map(|space| {
            (space.oid.to_string(), sandbox.folder.join("spaces").join(space.oid.to_string()))
        })
        .collect();
    let start = StartOptions {
        bin_dir: server.parent().map(Path::to_owned),
        sandbox: true,
        settings: settings(detail.version),
        ..StartOptions::default()
    };
    restore.start = Some(start);
    let made = crate::restore::restore(repo, snapshot, &restore)?;
    let reached = made.reached().cloned();
    let Some(running) = made.running else {
        return Err(PostgresError::new(PostgresErrorKind::Start, "the sandbox has no server"));
    };
    let running = sandbox.running.insert(running);
    let restored = began.elapsed();

    let began = Instant::now();
    progress.set_phase("look for it");
    let mut session = running.superuser(&database)?;
    let staged = stage::stage(&mut session, &mut live, &options.part, &place)?;
    let user: String = session.one("ask for the role", "SELECT current_user::text", &[])?;
    drop(session);
    drop(live);
    progress.set_phase("load");
    let from =
        format!("{} user={} dbname={}", running.connection(), quoted(&user), quoted(&database));
    transfer::transfer(&programs, &from, &into, &place, &staged, progress)?;
    let mut notes = Vec::new();
    notes.extend(sandbox.remove());
    Ok(Extracted {
        tables: staged.tables,
        statements: staged.statements,
        notes,
        reached,
        restored,
        loaded: began.elapsed(),
    })
}

/// A value in libpq's keywords.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A sandbox is small, in a hurry, thrown away at the end, and does nothing by itself.
fn settings(major: u32) -> Vec<(String, String)> {
    let mut settings = vec![
        ("shared_buffers", "128MB"),
        ("huge_pages", "off"),
        ("hot_standby", "off"),
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("synchronous_commit", "off"),
        ("synchronous_standby_names", ""),
        ("autovacuum", "off"),
        ("jit", "off"),
        ("default_transaction_read_only", "off"),
        // Jobs, subscriptions and hooks of the original are not for its copy.
        ("max_logical_replication_workers", "0"),
        ("shared_preload_libraries", ""),
        ("session_preload_libraries", ""),
        ("local_preload_libraries", ""),
    ];
    if major >= 17 {
        settings.push(("event_triggers", "off"));
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The directory of the sandbox and its server. Dropped, both go.
struct Sandbox {
    folder: PathBuf,
    running: Option<Running>,
}

impl Sandbox {
    fn make(given: Option<&Path>) -> Result<Self> {
        let folder = match given {
            Some(folder) => std::path::absolute(folder)
                .map_err(|error| PostgresError::io("use the directory", folder, error))?,
            None => {
                let random: [u8; 8] = backstay_store::Environment::system().random();
                let name = format!("backstay-sandbox-{:016x}", u64::from_le_bytes(random));
                std::env::temp_dir().join(name)
            }
        };
        let empty = fs::read_dir(&folder).map(|mut entries| entries.next().is_none());
        match empty {
            Ok(true) => {}
            Ok(false) => {
                return Err(PostgresError::usage(format!("{} is not empty", folder.display()))
                    .with_hint("the sandbox is removed at the end: name a directory of its own"));
            }
            Err(_) => fs::DirBuilder::new()
                .mode(0o711)
                .create(&folder)
                .map_err(|error| PostgresError::io("make the directory", &folder, error))?,
        }
        let it = Self { folder, running: None };
        // The server's user has to get through, whatever the mask of this process is.
        for folder in [it.folder.clone(), it.folder.join("spaces")] {
            let made = fs::create_dir(&folder);
            if let Err(error) = made
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(PostgresError::io("make the directory", &folder, error));
            }
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o711))
                .map_err(|error| PostgresError::io("set the mode of", &folder, error))?;
        }
        Ok(it)
    }

    /// What could not be removed.
    fn remove(mut self) -> Option<String> {
        let mut failed = None;
        if let Some(running) = self.running.take()
            && let Err(error) = running.stop()
        {
            failed = Some(format!("the server of the sandbox could not be stopped: {error}"));
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            let folder = self.folder.display();
            failed = Some(format!("the sandbox in {folder} could not be removed: {error}"));
        }
        failed
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}
