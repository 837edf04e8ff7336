//! Restoring a cluster: to the state of a snapshot, and from there to any moment in the archive.
//!
//! A half-restored directory must never start as if it were whole. So the control file is the last
//! thing to appear, under its own name only when it is complete; in a delta restore it is the first
//! thing to go. The checkpoint that it names is made invalid: a server that finds `backup_label`
//! does not look at it, and a server that does not find the label has to refuse.

mod configure;
mod files;
mod spaces;
mod start;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_repo::{
    Archive, Entry, EntryKind, Fallback, Placement, Progress, Repository, RestoreReport, Snapshot,
    ThawOptions, Tree,
};
use backstay_store::failpoint;

use crate::control::{self, ControlFile};
use crate::detail::BackupDetail;
use crate::wal::{self, RecoveryTarget, SegmentName, TargetTimeline};
use crate::{PostgresError, PostgresErrorKind, Result};

pub use configure::TargetAction;
pub use start::{Reached, Running, StartOptions, find_program};

use configure::Recovery;
use spaces::Spaces;
use start::Until;

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
    let tree = repo.tree(snapshot)?.falling_over(options.fallback.clone());
    may_restore_to(&to, options.delta, &tree, &detail)?;
    let spaces = Spaces::plan(&detail, &to, options)?;
    let wal_directory = wal_directory(&to, options.delta);
    let mut notes = Vec::new();
    if let Some(thaw) = &options.thaw {
        let report = repo.thaw(snapshot, thaw, progress)?;
        if !report.is_ready() {
            return Err(PostgresError::from(report.not_ready()));
        }
    }
    if options.delta {
        if let Some(note) = keep_wal(&to, &wal_directory, &archive, &detail)? {
            notes.push(note);
        }
        clear(&to, &wal_directory, &tree, &spaces, &detail)?;
    }

    let place = {
        let (to, spaces, wal_directory) = (to.clone(), spaces.clone(), wal_directory.clone());
        move |entry: &Entry| place(entry, &to, &spaces, &wal_directory)
    };
    let mut copying = backstay_repo::RestoreOptions::new(&to);
    copying.delta = options.delta;
    copying.workers = options.workers;
    copying.owner = options.owner;
    copying.fallback = options.fallback.clone();
    copying.place = Some(Arc::new(place));
    let report = repo.restore(snapshot, copying, progress)?;
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
    spaces.link(&to)?;
    failpoint::hit("postgres-restore-copied");

    progress.set_phase("configure");
    configure::write(
        &to,
        &Recovery {
            target: &options.target,
            inclusive: options.inclusive,
            timeline: options.timeline,
            action: options.action,
            restore_command: &options.restore_command,
            standby: options.standby,
        },
    )?;
    failpoint::hit("postgres-restore-configured");
    write_control(&to, &tree)?;
    failpoint::hit("postgres-restore-control-written");
    let copied = began.elapsed();

    let (mut running, mut recovered) = (None, None);
    if let Some(start) = &options.start {
        progress.set_phase("recover");
        let began = Instant::now();
        running = start::start(&to, detail.version, until(options), start, progress, &mut notes)?;
        recovered = Some(began.elapsed());
    }
    Ok(Restored { report, detail, notes, running, copied, recovered })
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
        return Until::Consistent;
    }
    match (&options.target, options.action) {
        (RecoveryTarget::Latest, _) | (_, TargetAction::Promote) => Until::Promoted,
        (_, TargetAction::Pause) => Until::Paused,
        (_, TargetAction::Shutdown) => Until::ShutDown,
    }
}

/// Refuses a directory in which something would be lost or a server runs.
fn may_restore_to(to: &Path, delta: bool, tree: &Tree, detail: &BackupDetail) -> Result<()> {
    if files::is_empty(to)? {
        return Ok(());
    }
    if !delta {
        return Err(PostgresError::usage(format!("{} is not empty", to.display())).with_hint(
            "restore to a directory that is empty or absent, or say --delta to bring the cluster \
             that is there to the state of the snapshot",
        ));
    }
    is_of_cluster(to, tree, detail)?;
    let lock = files::read_if_there(&to.join("postmaster.pid"))?.unwrap_or_default();
    let pid = String::from_utf8_lossy(&lock)
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid
        && !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
    {
        return Err(PostgresError::new(
            PostgresErrorKind::Busy,
            format!("a server runs in {} (process {})", to.display(), pid.as_raw_nonzero()),
        )
        .with_hint("stop it first; if it is no PostgreSQL server, remove postmaster.pid"));
    }
    Ok(())
}

/// Refuses a directory that is none of the cluster that was backed up, as a delta restore removes
/// what is in it.
fn is_of_cluster(to: &Path, tree: &Tree, detail: &BackupDetail) -> Result<()> {
    let path = to.join(control::PATH);
    if let Some(bytes) = files::read_if_there(&path)? {
        let there = ControlFile::parse(&bytes, &path.to_string_lossy()).map_err(|error| {
            PostgresError::new(
                error.kind(),
                format!("which cluster is in {} cannot be told: {error}", to.display()),
            )
            .with_hint(format!(
                "if it is the one that was backed up, remove {}; nothing was changed",
                path.display()
            ))
            .with_source(error)
        })?;
        if there.system_identifier == detail.system_identifier {
            return Ok(());
        }
        return Err(PostgresError::new(
            PostgresErrorKind::Mismatch,
            format!(
                "{} holds another cluster: its system identifier is {}, that of the snapshot {}",
                to.display(),
                there.system_identifier,
                detail.system_identifier
            ),
        )
        .with_hint(
            "restore to another directory, or empty this one if that cluster is not needed; \
             nothing was changed",
        ));
    }
    // The control file is the last to appear, so that an interrupted restore has none.
    if to.join("PG_VERSION").exists() || to.join("backup_label").exists() {
        return Ok(());
    }
    // One that was interrupted early has directories, and not much else.
    let stray = if to.join("global").is_dir() { stray(to, tree)? } else { Some(to.to_owned()) };
    match stray {
        None => Ok(()),
        Some(stray) => {
            let message = if stray == to {
                format!("{} is no data directory", to.display())
            } else {
                format!("{} is no data directory: it has {}", to.display(), stray.display())
            };
            Err(PostgresError::usage(message).with_hint(
                "--delta removes what is not in the snapshot; name the directory of a cluster",
            ))
        }
    }
}

/// Something in `to` that a restore of this snapshot does not make.
fn stray(to: &Path, tree: &Tree) -> Result<Option<PathBuf>> {
    let mut known: HashSet<Vec<u8>> = HashSet::from([OLD_WAL.as_bytes().to_vec()]);
    for entry in tree.iter() {
        let path = entry?.path;
        if let Some(name) = path.strip_prefix(b"data/").and_then(|p| p.split(|&b| b == b'/').next())
            && !known.contains(name)
        {
            known.insert(name.to_vec());
        }
    }
    let io = |error| PostgresError::io("read the directory", to, error);
    for entry in fs::read_dir(to).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let bytes = name.as_bytes();
        // Files get their names when they are whole.
        let unfinished = bytes.starts_with(b".backstay-") || bytes.ends_with(b".backstay");
        if !unfinished && !known.contains(bytes) {
            return Ok(Some(PathBuf::from(name)));
        }
    }
    Ok(None)
}

/// `pg_wal` may be a link to another disk; a delta restore leaves it one.
fn wal_directory(to: &Path, delta: bool) -> PathBuf {
    let path = to.join("pg_wal");
    if delta
        && path.is_symlink()
        && let Ok(behind) = fs::canonicalize(&path)
        && behind.is_dir()
    {
        return behind;
    }
    path
}

/// Where an entry of the snapshot goes.
fn place(entry: &Entry, to: &Path, spaces: &Spaces, wal_directory: &Path) -> Placement {
    let path = entry.path.as_slice();
    // The control file comes last. The map would make the server put the links to where the
    // tablespaces were; we make them to where they are.
    if path == CONTROL || path == b"data/tablespace_map" {
        return Placement::Skip;
    }
    if path == b"data" {
        return Placement::At(to.to_owned());
    }
    if let Some(below) = path.strip_prefix(b"data/pg_wal")
        && (below.is_empty() || below.starts_with(b"/"))
    {
        let below = below.strip_prefix(b"/").unwrap_or_default();
        return Placement::At(join(wal_directory, below));
    }
    if let Some(below) = path.strip_prefix(b"data/") {
        return Placement::At(join(to, below));
    }
    match path.strip_prefix(b"tablespaces/").and_then(|below| spaces.place(below)) {
        Some(path) => Placement::At(path),
        None => Placement::Skip,
    }
}

fn join(directory: &Path, below: &[u8]) -> PathBuf {
    if below.is_empty() { directory.to_owned() } else { directory.join(OsStr::from_bytes(below)) }
}

/// Moves segments out of the way that are in `pg_wal` and not in the archive: after a crash they hold
/// the newest commits, and nothing else does.
fn keep_wal(
    to: &Path,
    wal_directory: &Path,
    archive: &Archive,
    detail: &BackupDetail,
) -> Result<Option<String>> {
    let unreadable = |error| PostgresError::io("read the directory", wal_directory, error);
    let entries = match fs::read_dir(wal_directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let directory = to.join(OLD_WAL);
    let mut moved = 0;
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        let text = entry.file_name().to_string_lossy().into_owned();
        let Ok(name) = text.parse::<SegmentName>() else { continue };
        if archive.contains(&text)? {
            continue;
        }
        // Segments made ready for later use have the header of another place, or none.
        let content = fs::read(&path).map_err(|error| PostgresError::io("read", &path, error))?;
        if wal::check_segment(name, &content, Some(detail.system_identifier)).is_err() {
            continue;
        }
        if moved == 0 {
            let parent = fs::metadata(to)
                .map_err(|error| PostgresError::io("read the directory", to, error))?;
            match fs::DirBuilder::new().mode(0o700).create(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(PostgresError::io("make the directory", &directory, error));
                }
                _ => files::give_to_owner(&directory, &parent)?,
            }
        }
        // `pg_wal` may be on another file system, so that moving is copying.
        files::write(&directory, &text, &content)?;
        moved += 1;
    }
    Ok((moved > 0).then(|| {
        format!(
            "{moved} WAL segments that were not in the archive were kept in {}; once they are of no \
             use, remove them",
            directory.display()
        )
    }))
}

/// Prepares a directory for a delta restore: from here on it cannot start, and all that is left in it
/// is also in the snapshot, of the same kind.
fn clear(
    to: &Path,
    wal_directory: &Path,
    tree: &Tree,
    spaces: &Spaces,
    detail: &BackupDetail,
) -> Result<()> {
    files::remove_if_there(&to.join(control::PATH))?;
    if to.join("global").is_dir() {
        files::sync_directory(&to.join("global"))?;
    }
    let mut kept: HashMap<PathBuf, bool> = HashMap::new();
    for entry in tree.iter() {
        let entry = entry?;
        if let Placement::At(path) = place(&entry, to, spaces, wal_directory) {
            kept.insert(path, matches!(entry.kind, EntryKind::Directory));
        }
    }
    kept.insert(to.join("pg_wal"), true);
    let old_wal = to.join(OLD_WAL);
    for kept_file in fs::read_dir(&old_wal).into_iter().flatten().flatten() {
        kept.insert(kept_file.path(), false);
    }
    kept.insert(old_wal, true);
    prune(to, &kept, to)?;
    if wal_directory != to.join("pg_wal") {
        prune(wal_directory, &kept, to)?;
    }
    for directory in spaces.directories() {
        // Other versions have folders of their own beside ours.
        prune(&directory.join(detail.version_folder()), &kept, to)?;
    }
    Ok(())
}

fn prune(directory: &Path, kept: &HashMap<PathBuf, bool>, to: &Path) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(PostgresError::io("read the directory", directory, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| PostgresError::io("read the directory", directory, e))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|error| PostgresError::io("read", &path, error))?;
        let linked_wal = kind.is_symlink() && path == to.join("pg_wal");
        match kept.get(&path) {
            Some(true) if linked_wal => {}
            Some(true) if kind.is_dir() => prune(&path, kept, to)?,
            Some(false) if !kind.is_dir() => {}
            _ if kind.is_dir() => fs::remove_dir_all(&path)
                .map_err(|error| PostgresError::io("remove", &path, error))?,
            _ => files::remove_if_there(&path)?,
        }
    }
    Ok(())
}

fn write_control(to: &Path, tree: &Tree) -> Result<()> {
    let damaged = || {
        PostgresError::new(PostgresErrorKind::Damaged, "the snapshot has no control file")
            .with_hint("run `backstay verify --level thorough` on it")
    };
    let entry = tree.get(CONTROL)?.ok_or_else(damaged)?;
    let mut bytes = Vec::new();
    tree.read_file(&entry, &mut bytes)?;
    control::invalidate_checkpoint(&mut bytes, control::PATH)?;
    files::write(&to.join("global"), "pg_control", &bytes)
}
