//! Restoring a cluster: to the state of a snapshot, and from there to any moment in the archive.
//!
//! A half-restored directory must never start as if it were whole. So the control file is the last
//! thing to appear, under its own name only when it is complete; in a delta restore it is the first
//! thing to go. The checkpoint that it names is made invalid: a server that finds `backup_label`
//! does not look at it, and a server that does not find the label has to refuse.

mod aside;
mod configure;
mod earlier;
mod files;
mod manifest;
mod only;
mod spaces;
mod start;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_repo::{
    Entry, Fallback, Placement, Progress, Repository, RestoreReport, Snapshot, ThawOptions, Tree,
};
use backstay_store::failpoint;

use crate::configuration;
use crate::connection::refuse_password;
use crate::control;
use crate::detail::BackupDetail;
use crate::inspect::Database;
use crate::wal::{self, RecoveryTarget, TargetTimeline};
use crate::{PostgresError, PostgresErrorKind, Result};

pub use configure::TargetAction;
pub use start::{Reached, Running, StartOptions, find_program};

use configure::Recovery;
use only::Only;
use spaces::Spaces;
use start::{Purpose, Until};

const CONTROL: &[u8] = b"data/global/pg_control";

/// In the data directory: WAL of the state before a delta restore. Not in any backup.
pub(crate) const OLD_WAL: &str = "backstay-old-wal";

/// Where to restore to, how far to recover, and what to do then.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The data directory to be: absent or empty, unless `delta`.
    pub to: PathBuf,
    /// The directory holds an earlier state of a cluster: what is right already is kept, what is not
    /// in the snapshot is removed.
    pub delta: bool,
    /// By name (or by oid): where each tablespace goes. Empty or absent directories, unless `delta`.
    pub tablespaces: Vec<(String, PathBuf)>,
    pub target: RecoveryTarget,
    /// Whether recovery stops just after the target, or just before it.
    pub inclusive: bool,
    /// None: the newest that the archive has.
    pub timeline: Option<TargetTimeline>,
    pub action: TargetAction,
    /// Goes on replaying for ever instead of recovering to a target.
    pub standby: bool,
    /// Of a standby: the connection to the server whose log it streams, without a password.
    pub primary: Option<String>,
    /// Of a standby: the replication slot that it uses there.
    pub slot: Option<String>,
    /// By name (or by oid): the databases that are wanted. Empty: all. Those that every cluster has
    /// are restored in any case.
    pub databases: Vec<String>,
    /// Writes a `backup_manifest` by which `pg_verifybackup` checks what was restored.
    pub manifest: bool,
    /// What the server runs to get a segment: `%f` is its name, `%p` where it goes.
    pub restore_command: String,
    /// Start a server when the files are there.
    pub start: Option<StartOptions>,
    /// 0: one for each core.
    pub workers: usize,
    /// Whether files get the owners that they had.
    pub owner: bool,
    /// Where else to look for what the repository lacks.
    pub fallback: Option<Arc<Fallback>>,
    /// Fetch what lies in an archive of the store before anything is touched; none: that is an
    /// error.
    pub thaw: Option<ThawOptions>,
    pub progress: Arc<Progress>,
}

impl RestoreOptions {
    pub fn new(to: impl Into<PathBuf>, restore_command: impl Into<String>) -> Self {
        Self {
            to: to.into(),
            delta: false,
            tablespaces: Vec::new(),
            target: RecoveryTarget::Latest,
            inclusive: true,
            timeline: None,
            action: TargetAction::Promote,
            standby: false,
            primary: None,
            slot: None,
            databases: Vec::new(),
            manifest: false,
            restore_command: restore_command.into(),
            start: None,
            workers: 0,
            owner: rustix::process::geteuid().is_root(),
            fallback: None,
            thaw: None,
            progress: Arc::default(),
        }
    }
}

/// A cluster that was restored.
#[derive(Debug)]
pub struct Restored {
    pub report: RestoreReport,
    pub detail: BackupDetail,
    /// Things to know that are no failure.
    pub notes: Vec<String>,
    /// Databases whose data was not restored.
    pub left_out: Vec<Database>,
    /// Statements that are still to be run in the cluster once it takes writes.
    pub statements: Vec<String>,
    pub manifest: Option<PathBuf>,
    /// The server, where one was started and still runs. Dropped, it goes on running.
    pub running: Option<Running>,
    /// How long it took until the files were there.
    pub copied: Duration,
    /// How long the server took from there on.
    pub recovered: Option<Duration>,
}

impl Restored {
    /// How far recovery got, where a server was started.
    pub fn reached(&self) -> Option<&Reached> {
        self.running.as_ref().map(|running| &running.reached)
    }
}

/// Restores `snapshot`, and starts a server on it where the options say so.
pub fn restore(
    repo: &Repository,
    snapshot: &Snapshot,
    options: &RestoreOptions,
) -> Result<Restored> {
    let began = Instant::now();
    let progress = &options.progress;
    let detail = BackupDetail::of(snapshot)?;
    if options.restore_command.trim().is_empty() {
        return Err(PostgresError::usage("a restored cluster needs a command that gets WAL")
            .with_hint("restore_command is usually `backstay wal fetch %f %p`"));
    }
    let to = std::path::absolute(&options.to)
        .map_err(|error| PostgresError::io("use the directory", &options.to, error))?;
    progress.set_phase("check");
    let only = Only::plan(&detail, options)?;
    check_standby(options)?;
    if options.manifest && options.start.is_some() {
        return Err(PostgresError::usage("a server that is started changes what a manifest lists")
            .with_hint("restore with a manifest, run pg_verifybackup, then start the server"));
    }
    if let Some(start) = &options.start {
        find_program(detail.version, start.bin_dir.as_deref())?;
    }
    let archive = repo.archive(detail.system_identifier);
    let check =
        wal::check_target(&archive, &detail, &options.target, options.inclusive, options.timeline)?;
    // A standby's backup may end where a segment does, with nothing behind.
    let size = detail.segment_size;
    let nothing_behind = check.carried
        || (detail.stop_lsn.offset(size) == 0
            && match check.last.next(size) {
                Some(next) => !archive.contains(&next.to_string())?,
                None => true,
            });
    let ending = ending(nothing_behind, options)?;
    let options = ending.as_ref().unwrap_or(options);
    if options.start.is_some() {
        // The log is part of the way, and takes its time.
        progress.add_total(check.segments.saturating_mul(detail.segment_size.bytes()), 0);
    }
    let tree = repo.tree(snapshot)?.falling_over(options.fallback.clone());
    earlier::may_restore_to(&to, options.delta, &tree, &detail)?;
    let layout = Layout {
        spaces: Spaces::plan(&detail, &to, options)?,
        wal_directory: earlier::wal_directory(&to, options.delta),
        to,
        only,
    };
    let mut notes = Vec::new();
    if let Some(thaw) = &options.thaw {
        let report = repo.thaw(snapshot, thaw, progress)?;
        if !report.is_ready() {
            return Err(PostgresError::from(report.not_ready()));
        }
    }
    if options.delta {
        notes.extend(earlier::keep_wal(&layout, &archive, &detail)?);
        earlier::clear(&layout, &tree, &detail)?;
    }
    let report = copy(repo, snapshot, options, &layout)?;
    layout.only.make(&tree, &layout, progress)?;
    let to = &layout.to;
    layout.spaces.link(to)?;
    failpoint::hit("postgres-restore-copied");

    progress.set_phase("configure");
    let control = control_file(&tree)?;
    let extra = aside::complete(to, &detail, &control, &mut notes)?;
    configure::write(
        to,
        &Recovery {
            target: &options.target,
            inclusive: options.inclusive,
            timeline: options.timeline,
            action: options.action,
            restore_command: &options.restore_command,
            standby: options.standby,
            primary: options.primary.as_deref(),
            slot: options.slot.as_deref(),
            pass_over_pages: layout.only.passes_over_pages(),
            extra: &extra,
        },
    )?;
    failpoint::hit("postgres-restore-configured");
    files::write(&to.join("global"), "pg_control", &control)?;
    failpoint::hit("postgres-restore-control-written");
    let manifest = if options.manifest {
        progress.set_phase("manifest");
        Some(manifest::write(to, &detail, options.workers, progress)?)
    } else {
        None
    };
    let mut restored = Restored {
        report,
        notes,
        left_out: layout.only.left_out(),
        statements: layout.only.statements(),
        manifest,
        running: None,
        copied: began.elapsed(),
        recovered: None,
        detail,
    };
    if let Some(start) = &options.start {
        progress.set_phase("recover");
        let began = Instant::now();
        recover(&mut restored, &layout, options, start, check.segments)?;
        restored.recovered = Some(began.elapsed());
    }
    Ok(restored)
}

/// Refuses what makes no standby, and secrets where others can read them.
fn check_standby(options: &RestoreOptions) -> Result<()> {
    if !options.standby && (options.primary.is_some() || options.slot.is_some()) {
        return Err(PostgresError::usage("only a standby has a primary and a slot there")
            .with_hint("say --standby as well"));
    }
    if let Some(slot) = &options.slot
        && (slot.is_empty()
            || slot.len() > 63
            || !slot.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
    {
        return Err(PostgresError::usage(format!("{slot:?} is no name of a replication slot"))
            .with_hint("it has lower-case letters, digits and underscores, at most 63"));
    }
    match &options.primary {
        Some(primary) => refuse_password(primary, "the primary"),
        None => Ok(()),
    }
}

/// Brings the files to where they go, but for the control file.
fn copy(
    repo: &Repository,
    snapshot: &Snapshot,
    options: &RestoreOptions,
    layout: &Layout,
) -> Result<RestoreReport> {
    let place = {
        let layout = layout.clone();
        move |entry: &Entry| layout.place(entry)
    };
    let mut copying = backstay_repo::RestoreOptions::new(&layout.to);
    copying.delta = options.delta;
    copying.workers = options.workers;
    copying.owner = options.owner;
    copying.fallback = options.fallback.clone();
    copying.place = Some(Arc::new(place));
    let report = repo.restore(snapshot, copying, &options.progress)?;
    if let Some(problem) = report.problems.first() {
        return Err(PostgresError::new(
            PostgresErrorKind::Io,
            format!(
                "{} files could not be restored, the first is {}: {}",
                report.problems.len(),
                problem.path,
                problem.what
            ),
        )
        .with_hint("the cluster was left without its control file, so that it cannot start"));
    }
    Ok(report)
}

/// Starts the server and waits; drops what was left out where that can be done.
fn recover(
    restored: &mut Restored,
    layout: &Layout,
    options: &RestoreOptions,
    start: &StartOptions,
    segments: u64,
) -> Result<()> {
    let (until, progress) = (until(options), &options.progress);
    let major = restored.detail.version;
    // What people connect to may be what was left out.
    let some = restored.detail.databases.iter().any(|database| database.name == "postgres");
    let ask_in =
        if some || restored.detail.databases.is_empty() { "postgres" } else { "template1" };
    let segment_size = restored.detail.segment_size.bytes();
    let purpose = Purpose { until, ask_in, segments, segment_size };
    let started = start::start(&layout.to, major, purpose, start, progress, &mut restored.notes)?;
    let Some(running) = started else { return Ok(()) };
    match after_start(restored, layout, until, start, &running, ask_in) {
        Ok(()) => {
            restored.running = Some(running);
            Ok(())
        }
        Err(error) => {
            // Nobody would know of the server, or how to stop it.
            let _ = running.stop();
            Err(error)
        }
    }
}

fn after_start(
    restored: &mut Restored,
    layout: &Layout,
    until: Until,
    start: &StartOptions,
    running: &Running,
    ask_in: &str,
) -> Result<()> {
    if layout.only.is_everything() {
        return Ok(());
    }
    let log = files::read_if_there(&running.log)?.unwrap_or_default();
    if let Some(relation) = layout.only.passed_over_wrongly(&String::from_utf8_lossy(&log)) {
        return Err(PostgresError::new(
            PostgresErrorKind::Damaged,
            format!("the log has changes of {relation} for pages that are not there"),
        )
        .with_hint(format!("restore all databases, and read {}", running.log.display())));
    }
    if until == Until::Promoted {
        let mut session = start::connect(&layout.to, running, start, ask_in)?;
        layout.only.drop_in(&mut session)?;
        restored.statements.clear();
    }
    Ok(())
}

/// How a recovery ends that has no WAL behind its backup. The server stops *before* the record that
/// follows the end of the backup, and none does: what has no target ends there, too.
fn ending(nothing_behind: bool, options: &RestoreOptions) -> Result<Option<RestoreOptions>> {
    if !nothing_behind || options.standby || options.target != RecoveryTarget::Immediate {
        return Ok(None);
    }
    if options.action != TargetAction::Promote {
        return Err(PostgresError::usage(format!(
            "the archive has no WAL behind the backup: a server cannot {} at its end, only promote",
            options.action.as_str()
        ))
        .with_hint("leave --target-action out"));
    }
    Ok(Some(RestoreOptions { target: RecoveryTarget::Latest, ..options.clone() }))
}

fn until(options: &RestoreOptions) -> Until {
    if options.standby {
        return if options.primary.is_some() { Until::Streaming } else { Until::Consistent };
    }
    match (&options.target, options.action) {
        (RecoveryTarget::Latest, _) | (_, TargetAction::Promote) => Until::Promoted,
        (_, TargetAction::Pause) => Until::Paused,
        (_, TargetAction::Shutdown) => Until::ShutDown,
    }
}

/// Where everything goes.
#[derive(Debug, Clone)]
struct Layout {
    to: PathBuf,
    spaces: Spaces,
    wal_directory: PathBuf,
    only: Only,
}

impl Layout {
    /// Where an entry of the snapshot goes, if the repository restores it.
    fn place(&self, entry: &Entry) -> Placement {
        if self.only.is_hollow(&entry.path) {
            return Placement::Skip;
        }
        self.place_of(entry)
    }

    fn place_of(&self, entry: &Entry) -> Placement {
        let path = entry.path.as_slice();
        // The control file comes last. The map would make the server put the links to where the
        // tablespaces were; we make them to where they are.
        if path == CONTROL || path == b"data/tablespace_map" {
            return Placement::Skip;
        }
        if path == b"data" {
            return Placement::At(self.to.clone());
        }
        if let Some(below) = within(path, b"data/pg_wal") {
            return Placement::At(join(&self.wal_directory, below));
        }
        if let Some(below) = path.strip_prefix(b"data/") {
            return Placement::At(join(&self.to, below));
        }
        if let Some(below) = within(path, configuration::FOLDER.as_bytes()) {
            return Placement::At(join(&self.to.join(configuration::ASIDE), below));
        }
        match path.strip_prefix(b"tablespaces/").and_then(|below| self.spaces.place(below)) {
            Some(path) => Placement::At(path),
            None => Placement::Skip,
        }
    }
}

/// What `path` is below `folder`; empty for the folder itself.
fn within<'p>(path: &'p [u8], folder: &[u8]) -> Option<&'p [u8]> {
    let below = path.strip_prefix(folder)?;
    if below.is_empty() { Some(below) } else { below.strip_prefix(b"/") }
}

fn join(directory: &Path, below: &[u8]) -> PathBuf {
    if below.is_empty() { directory.to_owned() } else { directory.join(OsStr::from_bytes(below)) }
}

/// The control file to be: that of the snapshot, without its checkpoint.
fn control_file(tree: &Tree) -> Result<Vec<u8>> {
    let damaged = || {
        PostgresError::new(PostgresErrorKind::Damaged, "the snapshot has no control file")
            .with_hint("run `backstay verify --level thorough` on it")
    };
    let entry = tree.get(CONTROL)?.ok_or_else(damaged)?;
    let mut bytes = Vec::new();
    tree.read_file(&entry, &mut bytes)?;
    control::invalidate_checkpoint(&mut bytes, control::PATH)?;
    Ok(bytes)
}
