//! Packs that were begun in parts and never became objects: they cannot be read, and are paid for.
//!
//! Those of sessions that have ended go. A session at work may still be sending them; when it has
//! died, maintenance gives it up like any other, and then its parts go too.

use backstay_store::ErrorKind;

use super::ended;
use crate::layout::{PACKS, SNAPSHOTS, parse_pack_key};
use crate::repository::Repository;
use crate::{Progress, RepoError, Result};

/// Removes them; how many there were.
pub(super) fn remove(repository: &Repository, dry_run: bool, progress: &Progress) -> Result<u64> {
    let store = repository.store();
    let unfinished = match store.unfinished_uploads(PACKS) {
        Ok(found) => found.unwrap_or_default(),
        // Nothing of a repository depends on it, so the rest of the run counts.
        Err(error) if error.kind() == ErrorKind::Denied => {
            tracing::warn!(
                "whether unfinished uploads lie in the bucket is unknown: {error}; allow \
                 s3:ListBucketMultipartUploads"
            );
            return Ok(0);
        }
        Err(error) => return Err(error.into()),
    };
    if unfinished.is_empty() {
        return Ok(0);
    }
    let ended = ended(repository, &store.list(SNAPSHOTS)?)?;
    let mut removed = 0;
    for one in unfinished {
        progress.check()?;
        if !parse_pack_key(&one.key).is_some_and(|(work, _)| ended.contains(&work)) {
            continue;
        }
        if !dry_run {
            match store.abort_upload(&one) {
                Err(error) if error.kind() == ErrorKind::Denied => {
                    tracing::warn!(
                        "unfinished uploads stay in the bucket: {error}; allow \
                         s3:AbortMultipartUpload"
                    );
                    break;
                }
                done => done.map_err(RepoError::from)?,
            }
        }
        removed += 1;
    }
    Ok(removed)
}
