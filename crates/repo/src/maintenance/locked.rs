//! What the store itself keeps: found before anything is condemned, and kept longer where it is
//! still needed.
//!
//! A pack that is locked is not condemned at all. It waits, unneeded, until its lock has run out,
//! and no run of maintenance is ever left with a list that it cannot finish.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use backstay_store::{ErrorKind, Lock, Store, StoreError, failpoint};

use crate::index::Current;
use crate::layout::{
    FORMAT, INDEX, KEYS, MENDING, PACKS, SESSIONS, SNAPSHOTS, Work, parse_pack_key,
};
use crate::repository::Repository;
use crate::{Progress, RepoError, Result, Snapshot};

use super::mark::Marks;

/// How many objects are asked about at once.
pub(super) const ASKED_AT_ONCE: usize = 16;

/// Those of `keys` that are locked now.
pub(super) fn among(
    repository: &Repository,
    keys: Vec<String>,
    progress: &Arc<Progress>,
) -> Result<HashMap<String, Lock>> {
    let (store, now) = (repository.store(), repository.environment().now());
    let Some(first) = keys.first() else { return Ok(HashMap::new()) };
    match store.lock(first) {
        // The store has no locks at all.
        Ok(None) => return Ok(HashMap::new()),
        Err(error) if !error.is_not_found() => return Err(error.into()),
        _ => {}
    }
    let found = Mutex::new(HashMap::new());
    each(store, &keys, progress, |key| {
        match store.lock(key) {
            Ok(Some(lock)) if lock.keeps(now) => {
                found.lock().unwrap_or_else(|e| e.into_inner()).insert(key.clone(), lock);
            }
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    Ok(found.into_inner().unwrap_or_else(|e| e.into_inner()))
}

/// Locks all that is needed for another period, where half of the last one is over; how many
/// objects. `unneeded` are packs that are garbage.
pub(super) fn extend(
    repository: &Repository,
    unneeded: &HashSet<String>,
    progress: &Arc<Progress>,
) -> Result<u64> {
    let (store, now) = (repository.store(), repository.environment().now());
    let Some(policy) = store.lock_policy().filter(|policy| policy.extend) else { return Ok(0) };
    progress.set_phase("extending locks");
    let forgotten = super::forgotten(repository, &store.list(SNAPSHOTS)?)?;
    let current = Current::read(store, repository.keys())?;
    let obsolete: HashSet<&String> = current.obsolete.iter().collect();
    let half = policy.period / 2;
    let keys: Vec<String> = store
        .list("")?
        .into_iter()
        .filter(|object| {
            let key = &object.key;
            // A lock is at least as young as its object.
            let age = object.modified.and_then(|modified| now.duration_since(modified).ok());
            age.is_none_or(|age| age >= half)
                && !key.starts_with("probe/")
                && !key.starts_with(SESSIONS)
                && !key.starts_with(MENDING)
                && !unneeded.contains(key)
                && !obsolete.contains(key)
                && Work::from_snapshot_key(key).is_none_or(|work| !forgotten.contains(&work))
        })
        .map(|object| object.key)
        .collect();
    let extended = AtomicUsize::new(0);
    each(store, &keys, progress, |key| {
        let lock = match store.lock(key) {
            Ok(lock) => lock.unwrap_or_default(),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        if lock.until.is_some_and(|until| until > now + half) {
            return Ok(());
        }
        store.extend_lock(key, now + policy.period)?;
        failpoint::hit("lock-extended");
        extended.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(extended.into_inner() as u64)
}

/// See [`Repository::hold`].
pub(crate) fn hold(
    repository: &Repository,
    snapshot: &Snapshot,
    on: bool,
    progress: &Arc<Progress>,
) -> Result<u64> {
    progress.set_phase("looking for what is needed");
    let store = repository.store();
    let mut keys = if on {
        needed(repository, std::slice::from_ref(snapshot), progress)?
    } else {
        // Since it was put on hold chunks may have been moved, and the index merged: whatever is on
        // hold without a snapshot that is, is so no longer.
        let mut all = Vec::new();
        for prefix in [PACKS, INDEX, KEYS, FORMAT] {
            all.extend(store.list(prefix)?.into_iter().map(|object| object.key));
        }
        all
    };
    if !on {
        // What another one on hold needs too stays on hold.
        let others = others_on_hold(repository, snapshot)?;
        let kept: HashSet<String> = match others.is_empty() {
            true => HashSet::new(),
            false => needed(repository, &others, progress)?.into_iter().collect(),
        };
        keys.retain(|key| !kept.contains(key));
    }
    progress.set_phase(if on { "putting on hold" } else { "lifting the hold" });
    each(store, &keys, progress, |key| match store.hold(key, on) {
        // An index segment that was merged away meanwhile: what it said is in another one.
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    })?;
    // Last of all: who finds it on hold finds the rest on hold.
    if let Some(work) = Work::of(snapshot) {
        keys.push(work.snapshot_key());
        store.hold(&work.snapshot_key(), on)?;
    }
    Ok(keys.len() as u64)
}

/// Every other snapshot on hold.
///
/// # Errors
/// Damage, when there is one of which it cannot be said what it needs.
fn others_on_hold(repository: &Repository, snapshot: &Snapshot) -> Result<Vec<Snapshot>> {
    let readable: HashMap<String, Snapshot> =
        repository.snapshots()?.into_iter().map(|one| (one.id.clone(), one)).collect();
    let mut others = Vec::new();
    for object in repository.store().list(SNAPSHOTS)? {
        let Some(work) = Work::from_snapshot_key(&object.key) else { continue };
        if work.id() == snapshot.id
            || !repository.store().lock(&object.key)?.is_some_and(|lock| lock.held)
        {
            continue;
        }
        let other = readable.get(&work.id()).ok_or_else(|| {
            RepoError::damaged(&object.key, "it is on hold, and what it needs cannot be read")
                .with_hint("repair it first: `backstay verify --repair`; nothing was released")
        })?;
        others.push(other.clone());
    }
    Ok(others)
}

/// Whether a snapshot is on hold.
pub(crate) fn is_held(repository: &Repository, snapshot: &Snapshot) -> Result<bool> {
    let Some(work) = Work::of(snapshot) else { return Ok(false) };
    match repository.store().lock(&work.snapshot_key()) {
        Ok(lock) => Ok(lock.is_some_and(|lock| lock.held)),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The objects, besides their own, without which `snapshots` cannot be restored.
pub(crate) fn needed(
    repository: &Repository,
    snapshots: &[Snapshot],
    progress: &Arc<Progress>,
) -> Result<Vec<String>> {
    // Of two places of a chunk the one that maintenance has not condemned.
    let condemned = super::condemned(repository)?.unwrap_or_default();
    let index = repository.reload_index_avoiding(&condemned)?;
    let packs = Marks::of(repository, index, snapshots, progress)?.packs()?;
    // The lists of what lies where, too. Maintenance merges them anew, so all that there are now.
    let current = Current::read(repository.store(), repository.keys())?;
    let mut keys: Vec<String> = current.segments.into_iter().map(|object| object.key).collect();
    for object in repository.store().list(PACKS)? {
        if parse_pack_key(&object.key).is_some_and(|(_, id)| packs.contains(&id)) {
            keys.push(object.key);
        }
    }
    for prefix in [FORMAT, KEYS] {
        keys.extend(repository.store().list(prefix)?.into_iter().map(|object| object.key));
    }
    Ok(keys)
}

/// Calls `ask` for each key, by several threads where a network lies between.
pub(crate) fn each<T: Sync>(
    store: &Store,
    keys: &[T],
    progress: &Progress,
    ask: impl Fn(&T) -> std::result::Result<(), StoreError> + Sync,
) -> Result<()> {
    let threads = if store.is_remote() { ASKED_AT_ONCE } else { 1 };
    each_by(threads, keys, progress, ask)
}

/// The same, by so many threads.
pub(super) fn each_by<T: Sync>(
    threads: usize,
    keys: &[T],
    progress: &Progress,
    ask: impl Fn(&T) -> std::result::Result<(), StoreError> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
            progress.check()?;
            ask(key)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = threads.min(keys.len());
        let working: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        working.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// The latest of both.
pub(super) fn later(a: Option<jiff::Timestamp>, b: Option<SystemTime>) -> Option<jiff::Timestamp> {
    a.max(b.and_then(|time| jiff::Timestamp::try_from(time).ok()))
}

/// Whether an error only says that the object stays for now.
pub(super) fn is_locked(error: &StoreError) -> bool {
    error.kind() == ErrorKind::Locked
}
