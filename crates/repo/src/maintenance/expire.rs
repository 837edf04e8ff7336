//! Files of a database's log that no snapshot needs any more.
//!
//! Which ones these are is for whoever knows the database to say; here it is seen to that the answer
//! is given in view of every snapshot that there is, or that a session at work may still make: while
//! there is such a session, nothing goes. What is removed was listed before the sessions were, so
//! nothing goes that came after the question.
//!
//! Files go in the order in which they are named. Oldest first, what is left after a death or an
//! error is unbroken.
//!
//! A copy of a snapshot that begins after the sessions were listed may count on a file that is just
//! going; it is copied again with the next copy of the archive, and `wal status` shows it until then.

use std::collections::HashSet;
use std::sync::Arc;

use backstay_store::failpoint;

use super::{forgotten, locked, view};
use crate::archive::ArchivedFile;
use crate::layout::SNAPSHOTS;
use crate::repository::Repository;
use crate::{Archive, Progress, Result, Snapshot};

/// What became of files that no snapshot needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// Those that went, or would.
    pub names: Vec<String>,
    pub bytes: u64,
    /// Those that the store keeps locked, and that stay until it does not.
    pub locked: u64,
    /// Sessions at work, for whose sake nothing went.
    pub waiting_for: u64,
}

/// Removes the files that `choose` names, given all files and all snapshots.
pub(crate) fn expire<E: From<crate::RepoError>>(
    archive: &Archive,
    dry_run: bool,
    choose: impl FnOnce(&[ArchivedFile], &[Snapshot]) -> Result<Vec<String>, E>,
    progress: &Arc<Progress>,
) -> Result<Expired, E> {
    let repository = archive.repository();
    repository.keys().must_own("remove files of an archive")?;
    if !dry_run {
        repository.allow_delete()?;
    }
    progress.set_phase("looking for what is needed");
    let files = archive.list(None)?;
    let at_work = view::at_work(repository)?;
    if !at_work.is_empty() && !dry_run {
        return Ok(Expired { waiting_for: at_work.len() as u64, ..Expired::default() });
    }
    let snapshots = needed(repository)?;
    let chosen = choose(&files, &snapshots)?;
    let mut removable = Vec::new();
    for name in &chosen {
        if let Some(file) = files.iter().find(|file| file.name == *name) {
            removable.push((archive.key(name)?, file));
        }
    }
    let keys = removable.iter().map(|(key, _)| key.clone()).collect();
    let locked: HashSet<String> = locked::among(repository, keys, progress)?.into_keys().collect();
    let mut expired = Expired { waiting_for: at_work.len() as u64, ..Expired::default() };
    progress.set_phase("removing");
    for (key, file) in removable {
        if locked.contains(&key) {
            expired.locked += 1;
            continue;
        }
        if !dry_run {
            progress.check()?;
            match repository.store().delete(&key) {
                Err(error) if locked::is_locked(&error) => {
                    expired.locked += 1;
                    continue;
                }
                Err(error) if !error.is_not_found() => {
                    return Err(crate::RepoError::from(error).into());
                }
                _ => failpoint::hit("archive-file-removed"),
            }
        }
        expired.bytes += file.stored;
        expired.names.push(file.name.clone());
        progress.add_done(file.stored, 1);
    }
    Ok(expired)
}

/// Every snapshot that is not forgotten.
///
/// # Errors
/// Damage of one: what cannot be seen might be needed.
fn needed(repository: &Repository) -> Result<Vec<Snapshot>> {
    let listed = repository.store().list(SNAPSHOTS)?;
    let forgotten = forgotten(repository, &listed)?;
    view::snapshots(repository, &listed, &forgotten)
}
