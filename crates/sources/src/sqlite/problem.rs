//! What SQLite's errors mean and what to do about them.

use std::path::Path;

use backstay_repo::{RepoError, RepoErrorKind};
use rusqlite::{Error, ErrorCode};

/// What went wrong while `doing` something with the database at `path`.
pub(super) fn explain(doing: &str, path: &Path, error: Error) -> RepoError {
    let shown = path.display();
    let it = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => locked(path),
        Some(ErrorCode::NotADatabase) => {
            RepoError::new(RepoErrorKind::Io, format!("{shown} is not an SQLite database"))
                .with_hint("check `path`; a database that is encrypted by its program can be kept as a source of kind files")
        }
        Some(ErrorCode::DatabaseCorrupt) => corrupt(path, "its pages contradict each other"),
        Some(ErrorCode::OperationInterrupted) => {
            RepoError::new(RepoErrorKind::Aborted, "interrupted")
                .with_hint("nothing that was stored before is affected; run it again to go on")
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            RepoError::new(RepoErrorKind::Io, format!("could not {doing} {shown}: {error}"))
                .with_hint("run the backup as the user who owns the database; SQLite writes its log and lock files beside it")
        }
        Some(ErrorCode::DiskFull) => {
            RepoError::new(RepoErrorKind::Io, format!("no space is left to {doing} {shown}"))
                .with_hint("free space there, or set another folder for temporary files")
        }
        _ => RepoError::new(RepoErrorKind::Io, format!("could not {doing} {shown}: {error}")),
    };
    it.with_source(error)
}

/// Another process holds a lock for longer than we wait.
pub(super) fn locked(path: &Path) -> RepoError {
    RepoError::new(
        RepoErrorKind::Busy,
        format!("{} is locked by another process", path.display()),
    )
    .with_hint("wait for its long transaction to end or raise the busy time-out; a program that opens the database in exclusive mode must be stopped first")
}

/// The database is damaged where it is.
pub(super) fn corrupt(path: &Path, what: &str) -> RepoError {
    RepoError::new(RepoErrorKind::Io, format!("{} is damaged: {what}", path.display()))
        .with_hint("nothing was stored: restore the newest snapshot beside it, or save what can be read with `sqlite3 FILE .recover`")
}
