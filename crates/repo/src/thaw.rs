//! Fetching out of an archive of the store what one snapshot needs.
//!
//! Nothing is kept about it: the store is asked about each object every time, so that it may be
//! called again until everything can be read.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use backstay_store::{Access, ThawSpeed};
use jiff::Timestamp;
use serde::Serialize;

use crate::maintenance::{each, needed};
use crate::repository::Repository;
use crate::{Progress, RepoError, RepoErrorKind, Result, Snapshot};

/// How to fetch.
#[derive(Debug, Clone)]
pub struct ThawOptions {
    pub speed: ThawSpeed,
    /// How long a copy stays readable, where the store makes one (S3).
    pub days: u32,
    /// Only say how it stands.
    pub dry_run: bool,
}

/// How it stands with what a snapshot needs. Sizes are bytes, as stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ThawReport {
    pub objects: u64,
    pub bytes: u64,
    /// Can be read now.
    pub ready: u64,
    /// Was asked for by this call (in a dry run: would be).
    pub asked: u64,
    /// Was asked for before, and is on its way.
    pub thawing: u64,
    /// Cannot be read yet.
    pub bytes_waiting: u64,
    /// When the first of the copies goes again.
    pub until: Option<Timestamp>,
}

impl ThawReport {
    pub fn is_ready(&self) -> bool {
        self.ready == self.objects
    }
}

/// See [`Repository::thaw`].
pub(crate) fn thaw(
    repository: &Repository,
    snapshot: &Snapshot,
    options: &ThawOptions,
    progress: &Arc<Progress>,
) -> Result<ThawReport> {
    progress.set_phase("looking for what is needed");
    let keys = needed(repository, std::slice::from_ref(snapshot), progress)?;
    let store = repository.store();
    progress.set_phase("asking for what lies in an archive");
    let sizes: std::collections::HashMap<String, u64> =
        store.list("")?.into_iter().map(|object| (object.key, object.size)).collect();
    let report = asked_of(
        repository,
        keys.iter().map(|key| (key.clone(), sizes.get(key).copied().unwrap_or(0))).collect(),
        options,
        progress,
    )?;
    Ok(report)
}

/// Asks for those of these objects, with their sizes, that cannot be read.
fn asked_of(
    repository: &Repository,
    objects: Vec<(String, u64)>,
    options: &ThawOptions,
    progress: &Progress,
) -> Result<ThawReport> {
    let store = repository.store();
    let [ready, asked, thawing, waiting] = [const { AtomicU64::new(0) }; 4];
    let first = Mutex::new(None);
    each(store, &objects, progress, |(key, size)| {
        match store.access(key)? {
            Access::Ready { until } => {
                ready.fetch_add(1, Relaxed);
                if let Some(until) = until.and_then(|until| Timestamp::try_from(until).ok()) {
                    let mut first = first.lock().unwrap_or_else(|e| e.into_inner());
                    *first = Some(first.map_or(until, |known: Timestamp| known.min(until)));
                }
            }
            Access::Thawing => {
                thawing.fetch_add(1, Relaxed);
                waiting.fetch_add(*size, Relaxed);
            }
            Access::Archived => {
                if !options.dry_run {
                    store.thaw(key, options.speed, options.days)?;
                }
                asked.fetch_add(1, Relaxed);
                waiting.fetch_add(*size, Relaxed);
            }
        }
        Ok(())
    })?;
    Ok(ThawReport {
        objects: objects.len() as u64,
        bytes: objects.iter().map(|(_, size)| size).sum(),
        ready: ready.into_inner(),
        asked: asked.into_inner(),
        thawing: thawing.into_inner(),
        bytes_waiting: waiting.into_inner(),
        until: first.into_inner().unwrap_or_else(|e| e.into_inner()),
    })
}

/// Refuses to begin a restore that would stop in the middle: each of these packs, with its size,
/// must be readable. Asked only where new data goes into an archive; elsewhere the read says it.
pub(crate) fn must_be_ready(
    repository: &Repository,
    packs: Vec<(String, u64)>,
    progress: &Progress,
) -> Result<()> {
    if !repository.store().archives_data() {
        return Ok(());
    }
    let options = ThawOptions { speed: ThawSpeed::default(), days: 1, dry_run: true };
    let report = asked_of(repository, packs, &options, progress)?;
    if report.is_ready() {
        return Ok(());
    }
    Err(RepoError::new(
        RepoErrorKind::Store,
        format!(
            "{} of {} packs that this restore needs ({} bytes) lie in an archive of the store; \
             {} of them are being fetched",
            report.asked + report.thawing,
            report.objects,
            report.bytes_waiting,
            report.thawing
        ),
    )
    .with_hint(
        "none of the files in them was begun; run `backstay thaw SNAPSHOT`, and again until it \
         says that all can be read, then restore with --delta",
    ))
}
