//! An SQLite database as a source.
//!
//! The database is copied page by page through SQLite's own online backup into a temporary file,
//! the copy is checked, and then stored in the cells of a fixed grid, so that a later snapshot
//! stores only the cells that changed. The snapshot holds one file, named as the original and with
//! its owner, mode and times; what was in a write-ahead log is in it.
//!
//! The database file itself is never opened but by SQLite: closing any other handle of it would
//! drop the locks that a connection of this process holds (POSIX locks belong to the process).

mod copy;
mod problem;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_repo::{
    Body, Chunking, Content, ContentError, Entry, EntryKind, FileContent, Order, Placement,
    Progress, Reader, RepoError, RepoErrorKind, Repository, RestoreOptions, RestoreReport, Result,
    Session, Snapshot, SourceKind,
};
use serde_json::json;

use crate::files::metadata::{FileType, Names, Stat, xattrs_at};
use crate::{BackupOptions, CheckItem, Source, Target};
pub use copy::Integrity;
use copy::{Copy, Workspace};

/// A database to protect.
#[derive(Debug, Clone)]
pub struct SqliteSource {
    pub name: String,
    pub path: PathBuf,
    /// Where the copy is made; the system's folder for temporary files where absent. It needs as
    /// much free space as the database takes.
    pub temporary: Option<PathBuf>,
    /// How long to wait for a lock that another process holds.
    pub busy_timeout: Duration,
}

impl SqliteSource {
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            temporary: None,
            busy_timeout: Duration::from_secs(30),
        }
    }

    fn folder(&self) -> PathBuf {
        self.temporary.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// The file itself, with links followed: SQLite names its log after it.
    fn located(&self) -> Result<(PathBuf, Stat)> {
        let path = std::fs::canonicalize(&self.path).map_err(|error| {
            RepoError::io("find the database", &self.path, error)
                .with_hint("correct `path` in the configuration")
        })?;
        let stat = stat(&path).map_err(|error| RepoError::io("look at", &path, error))?;
        if stat.kind != FileType::File {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("{} is {}, not a database file", path.display(), stat.kind.describe()),
            )
            .with_hint("set `path` to the file of the database"));
        }
        Ok((path, stat))
    }
}

impl Source for SqliteSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Sqlite
    }

    fn check(&self) -> Vec<CheckItem> {
        check(self)
    }

    fn backup_to(
        &self,
        targets: &[Target],
        options: &BackupOptions,
    ) -> Result<Vec<Result<Snapshot>>> {
        backup_to(targets, self, options)
    }
}

/// Whether the database can be opened and read, and whether there is room for its copy.
pub fn check(source: &SqliteSource) -> Vec<CheckItem> {
    let item = |name: &str, result: Result<String>| match result {
        Ok(message) => CheckItem::ok(name, message),
        Err(error) => {
            CheckItem::failed(name, error.to_string()).with_hint(error.hint().unwrap_or_default())
        }
    };
    let located = source.located();
    let mut items = Vec::new();
    let database = located.and_then(|(path, _)| {
        let about = copy::look(&path, source.busy_timeout)?;
        items.push(item(
            "space",
            copy::needed(&path)
                .and_then(|bytes| copy::check_space(&source.folder(), bytes))
                .map(|free| format!("{} MiB free for the copy", free >> 20)),
        ));
        Ok(format!("{about} in {}", path.display()))
    });
    items.insert(0, item("database", database));
    items
}

/// Takes a snapshot of a database in one repository.
pub fn backup(
    repo: &Repository,
    source: &SqliteSource,
    options: &BackupOptions,
) -> Result<Snapshot> {
    source.backup(repo, options)
}

/// Takes a snapshot of a database, in one pass for all of `targets`.
///
/// `detail` is `{"path", "journal_mode", "page_size", "pages", "restarts", "integrity": "ok",
/// "foreign_key_violations", "sqlite"}`.
///
/// # Errors
/// `Busy` when another process keeps the database locked, `Io` when it is no database, damaged, or
/// cannot be read or copied, `Usage` when the path is no file, `Aborted` when the progress was told
/// to stop.
pub fn backup_to(
    targets: &[Target],
    source: &SqliteSource,
    options: &BackupOptions,
) -> Result<Vec<Result<Snapshot>>> {
    let progress = &options.progress;
    progress.check()?;
    let (path, stat) = source.located()?;
    let needed = copy::needed(&path)?;
    let workspace = Workspace::create(&source.folder())?;
    copy::check_space(&source.folder(), needed)?;

    progress.set_phase("copying the database");
    let target = workspace.path().join("copy.db");
    let Copy { journal_mode, page_size, pages, restarts } =
        copy::copy(&path, &target, source.busy_timeout, progress)?;
    progress.set_phase("checking the copy");
    let integrity = copy::check_integrity(&target, progress)?;
    if !integrity.is_ok() {
        return Err(problem::corrupt(&path, &integrity.errors.join("; ")));
    }

    progress.set_phase("storing the copy");
    let sessions = targets.iter().map(|to| to.session(&source.name, SourceKind::Sqlite, options));
    let session = Session::begin(sessions.collect())?;
    let xattrs = c_path(&path).and_then(|path| xattrs_at(&path)).unwrap_or_else(|error| {
        let what = format!("its extended attributes could not be read: {error}");
        session.problem(&path.display().to_string(), what);
        Vec::new()
    });
    let size =
        std::fs::metadata(&target).map_err(|error| RepoError::io("look at", &target, error))?.len();
    let name = path.file_name().unwrap_or(path.as_os_str()).as_bytes().to_vec();
    let entry = Entry {
        path: name,
        meta: stat.metadata(&Names::load(), xattrs),
        kind: EntryKind::File(FileContent { size, body: Body::Extents(Vec::new()) }),
    };
    progress.add_total(size, 1);
    let mut tree = session.tree(Order::Sorted);
    tree.file(entry, Box::new(CopyContent { path: target, size }), Chunking::Grid)?;
    let root = tree.finish()?;
    let detail = json!({
        "path": path,
        "journal_mode": journal_mode,
        "page_size": page_size,
        "pages": pages,
        "restarts": restarts,
        "integrity": "ok",
        "foreign_key_violations": integrity.foreign_key_violations,
        "sqlite": rusqlite::version(),
    });
    Ok(session.commit_all(root, detail))
}

/// Restores the database file into `options.target` and checks it. It has its name only when it is
/// whole and passed; a database that was there stays until then.
///
/// # Errors
/// `Usage` when an old log lies beside the file, which SQLite would replay into it, and for pruning;
/// `Damaged` when what was restored fails its check; and whatever the repository answers.
pub fn restore(
    repo: &Repository,
    snapshot: &Snapshot,
    mut options: RestoreOptions,
    progress: &Progress,
) -> Result<(RestoreReport, Integrity)> {
    if options.prune {
        return Err(RepoError::new(
            RepoErrorKind::Usage,
            "--prune would remove everything that lies beside the database",
        )
        .with_hint("leave it out: the database is one file, and is replaced as a whole"));
    }
    let tree = repo.tree(snapshot)?.falling_over(options.fallback.clone());
    let mut entries = tree.iter();
    let Some(entry) = entries.next().transpose()? else {
        return Err(RepoError::damaged(snapshot.short_id(), "it holds no database"));
    };
    let name = std::ffi::OsStr::from_bytes(&entry.path).to_owned();
    let database = options.target.join(&name);
    refuse_logs(&database)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(&name);
    hidden.push(".backstay");
    let unfinished = options.target.join(hidden);
    // What another restore is at work on, or what one has left that a delta restore goes on with.
    let again = unfinished.symlink_metadata().is_ok();
    let at = unfinished.clone();
    options.place = Some(Arc::new(move |_| Placement::At(at.clone())));
    let checked = repo.restore(snapshot, options, progress).and_then(|report| {
        let integrity = copy::check_integrity(&unfinished, progress)?;
        Ok((report, integrity))
    });
    let done = match checked {
        Ok((report, integrity)) if integrity.is_ok() => {
            put_in_place(&unfinished, &database).map(|()| (report, integrity))
        }
        Ok((_, integrity)) => Err(RepoError::new(
            RepoErrorKind::Damaged,
            format!(
                "what was restored for {} fails its check: {}",
                database.display(),
                integrity.errors.join("; ")
            ),
        )
        .with_hint(
            "run `backstay verify --level thorough`, and restore an older snapshot meanwhile",
        )),
        Err(error) => Err(error),
    };
    if done.is_err() && !again {
        let _ = std::fs::remove_file(&unfinished);
    }
    done
}

/// A log of another state of the database would be replayed into this one.
fn refuse_logs(database: &Path) -> Result<()> {
    for suffix in ["-wal", "-journal"] {
        let mut beside = database.as_os_str().to_owned();
        beside.push(suffix);
        let beside = PathBuf::from(beside);
        if beside.symlink_metadata().is_ok() {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("{} belongs to another state of the database", beside.display()),
            )
            .with_hint(
                "stop what uses the database and move that file away, or restore to an empty \
                 directory",
            ));
        }
    }
    Ok(())
}

/// Gives the database its name, durably. The one that was there may have been used until now.
fn put_in_place(unfinished: &Path, database: &Path) -> Result<()> {
    refuse_logs(database)?;
    let fail = |error| RepoError::io("put the restored database in place at", database, error);
    std::fs::rename(unfinished, database).map_err(fail)?;
    let folder = database.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)?;
    // Whoever had the old one open in between has written a log for the new one to find.
    refuse_logs(database)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn stat(path: &Path) -> io::Result<Stat> {
    Ok(rustix::fs::lstat(path)?.into())
}

/// The finished copy.
struct CopyContent {
    path: PathBuf,
    size: u64,
}

impl Content for CopyContent {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        // Without its copy there is no snapshot.
        let file = File::open(&self.path)
            .map_err(|error| ContentError::Fatal(format!("the copy cannot be read: {error}")))?;
        Ok(Box::new(CopyReader { file, size: self.size }))
    }
}

struct CopyReader {
    file: File,
    size: u64,
}

impl Reader for CopyReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        crate::files::read_at(&self.file, offset, buffer)
    }

    fn finish(&self, _entry: &mut Entry, bytes_read: u64) -> Result<(), ContentError> {
        if bytes_read == self.size {
            return Ok(());
        }
        Err(ContentError::Fatal(format!(
            "the copy has {bytes_read} bytes and was written with {}",
            self.size
        )))
    }
}
