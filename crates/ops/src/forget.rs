//! Forgetting snapshots, with the care that a mistake would need.

use backstay_repo::{RepoErrorKind, Repository, Snapshot};

use crate::error::{Error, ErrorKind};
use crate::{Context, Result};

/// A snapshot that is forgotten, or would be.
#[derive(Debug)]
pub struct Forgotten {
    /// The repository's name in the configuration.
    pub repository: String,
    pub id: String,
    /// None where it could not be read.
    pub snapshot: Option<Snapshot>,
}

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct ForgetRequest {
    /// Ids of snapshots, or beginnings of them.
    pub ids: Vec<String>,
    /// Also the newest complete snapshot of a source.
    pub even_newest: bool,
    pub dry_run: bool,
}

/// Forgets snapshots by their ids, in whichever configured repository each is. All are looked up
/// before the first is forgotten.
///
/// # Errors
/// `NotFound` and `Ambiguous` for an id; `Usage` for the newest complete snapshot of a source unless
/// the request says so.
pub fn forget(context: &Context, request: &ForgetRequest) -> Result<Vec<Forgotten>> {
    let mut chosen: Vec<(Repository, Forgotten)> = Vec::new();
    for id in &request.ids {
        if id.len() < 4 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::usage(
                format!("{id:?} is no id of a snapshot"),
                "name snapshots by the ids that `backstay list` shows, four digits at least",
            ));
        }
        chosen.push(look_up(context, id)?);
    }
    for (repository, one) in &chosen {
        let Some(snapshot) = one.snapshot.as_ref().filter(|_| !request.even_newest) else {
            continue;
        };
        let goes = |id: &str| chosen.iter().any(|(_, one)| one.id == id);
        let left = repository.snapshots()?.into_iter().any(|other| {
            other.source == snapshot.source
                && other.problems.is_empty()
                && other.time >= snapshot.time
                && !goes(&other.id)
        });
        if snapshot.problems.is_empty() && !left {
            return Err(Error::usage(
                format!(
                    "{} is the newest complete snapshot of {} that would be left in {}",
                    snapshot.short_id(),
                    snapshot.source,
                    one.repository
                ),
                "make a newer one first, or say --even-newest; nothing was forgotten",
            ));
        }
    }
    let mut forgotten = Vec::new();
    for (repository, one) in chosen {
        if !request.dry_run {
            repository.forget(&one.id)?;
        }
        forgotten.push(one);
    }
    Ok(forgotten)
}

fn look_up(context: &Context, id: &str) -> Result<(Repository, Forgotten)> {
    let mut lost = None;
    for config in context.config.repositories()? {
        let opened = context.open(config).and_then(|repository| {
            let snapshots = repository.snapshots()?;
            Ok((repository, snapshots))
        });
        let (repository, snapshots) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                lost.get_or_insert(error);
                continue;
            }
        };
        let mut matching = snapshots.into_iter().filter(|one| one.id.starts_with(id));
        let found = match (matching.next(), matching.next()) {
            (Some(snapshot), None) => Some((snapshot.id.clone(), Some(snapshot))),
            (Some(_), Some(_)) => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("several snapshots start with {id:?}"),
                )
                .with_hint("give more digits of the id"));
            }
            // One that cannot be read is not listed; it can be given up all the same.
            (None, _) => match repository.find_snapshot(id) {
                Ok(snapshot) => Some((snapshot.id.clone(), Some(snapshot))),
                Err(error) if error.kind() == RepoErrorKind::NotFound => None,
                Err(error) if error.kind() == RepoErrorKind::Damaged => Some((id.to_owned(), None)),
                Err(error) => return Err(error.into()),
            },
        };
        if let Some((id, snapshot)) = found {
            let repository_name = config.name.clone();
            return Ok((repository, Forgotten { repository: repository_name, id, snapshot }));
        }
    }
    Err(lost.unwrap_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no snapshot {id:?}"))
            .with_hint("`backstay list` shows the snapshots there are")
    }))
}
