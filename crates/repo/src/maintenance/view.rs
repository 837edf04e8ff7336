//! One look at the repository, in the order that makes it safe to conclude from.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{forgotten, is_forgotten};
use backstay_store::ObjectMeta;

use crate::index::Index;
use crate::layout::{PACKS, SESSIONS, SNAPSHOTS, Work, parse_pack_key};
use crate::repository::Repository;
use crate::{RepoError, Result, Snapshot};

/// A pack as the store lists it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredPack {
    pub work: Work,
    pub id: [u8; 16],
    pub size: u64,
}

pub(crate) struct View {
    /// Sessions that have ended: with a snapshot, forgotten or not, or with a tombstone.
    pub ended: HashSet<Work>,
    pub forgotten: HashSet<Work>,
    pub snapshots: Vec<Snapshot>,
    pub index: Arc<Index>,
    pub packs: Vec<StoredPack>,
}

impl View {
    /// Ids under which there is more than one pack. They are drawn by lot, so somebody has taken one
    /// on purpose; lists of packs to remove say no more than the id, so none of them is in one.
    pub fn taken_twice(&self) -> HashSet<[u8; 16]> {
        let mut seen = HashSet::new();
        self.packs.iter().filter(|pack| !seen.insert(pack.id)).map(|pack| pack.id).collect()
    }

    /// What has ended is listed first: all that such a session wrote is in what is read after it.
    ///
    /// # Errors
    /// Damage of a snapshot or of the index: what cannot be seen might be needed.
    pub fn read(repository: &Repository, avoided: &HashSet<[u8; 16]>) -> Result<Self> {
        let store = repository.store();
        let listed = store.list(SNAPSHOTS)?;
        let ended = super::ended(repository, &listed)?;
        let forgotten = forgotten(repository, &listed)?;
        let snapshots = snapshots(repository, &listed, &forgotten)?;
        let index = repository.reload_index_avoiding(avoided)?;
        if let Some(why) = index.unreadable().first() {
            let error = RepoError::damaged("the index", why);
            let hint = "`backstay verify --repair` builds it anew from the packs";
            return Err(unseen(error, hint));
        }
        let packs = store.list(PACKS)?.into_iter().filter_map(|object| {
            let (work, id) = parse_pack_key(&object.key)?;
            Some(StoredPack { work, id, size: object.size })
        });
        Ok(Self { ended, forgotten, snapshots, index, packs: packs.collect() })
    }
}

/// The snapshots among what was listed that are not forgotten.
///
/// # Errors
/// Damage of one: what cannot be seen might be needed.
pub(super) fn snapshots(
    repository: &Repository,
    listed: &[ObjectMeta],
    forgotten: &HashSet<Work>,
) -> Result<Vec<Snapshot>> {
    let mut snapshots = Vec::new();
    for object in listed {
        let Some(work) = Work::from_snapshot_key(&object.key) else { continue };
        if forgotten.contains(&work) {
            continue;
        }
        match repository.read_snapshot(work, object.size) {
            Ok(found) => snapshots.extend(found.map(|mut snapshot| {
                snapshot.stored = object.modified.and_then(|time| time.try_into().ok());
                snapshot
            })),
            Err(error) if error.is_about_an_object() && is_forgotten(repository, &work)? => {}
            Err(error) => {
                let hint = "repair it with `backstay verify --repair`, or give it up with `backstay forget";
                let hint = format!("{hint} {:.8}`; then run maintenance again", work.id());
                return Err(unseen(error, &hint));
            }
        }
    }
    Ok(snapshots)
}

/// Damage that hides what might be needed.
fn unseen(error: RepoError, hint: &str) -> RepoError {
    if !error.is_about_an_object() {
        return error;
    }
    RepoError::new(
        error.kind(),
        format!("nothing is removed while something cannot be read: {error}"),
    )
    .with_hint(hint)
    .with_source(error)
}

/// Sessions without an outcome, and the time of their objects.
pub(crate) fn at_work(
    repository: &Repository,
) -> Result<HashMap<Work, Option<std::time::SystemTime>>> {
    let store = repository.store();
    let mut sessions: HashMap<Work, _> = store
        .list(SESSIONS)?
        .into_iter()
        .filter_map(|object| Some((Work::from_session_key(&object.key)?, object.modified)))
        .collect();
    // Listed after the sessions: one that ends in between has ended.
    for work in ended(repository)? {
        sessions.remove(&work);
    }
    Ok(sessions)
}

pub(crate) fn ended(repository: &Repository) -> Result<HashSet<Work>> {
    super::ended(repository, &repository.store().list(SNAPSHOTS)?)
}
