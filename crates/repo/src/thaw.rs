//! Fetching out of an archive of the store what one snapshot needs.
//!
//! Nothing is kept about it: the store is asked about each object every time, so that it may be
//! called again until everything can be read, and so that a wait that was interrupted costs nothing.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use backstay_store::{Access, ThawSpeed};
use jiff::Timestamp;
use serde::Serialize;

use crate::maintenance::{each, needed};
use crate::repository::Repository;
use crate::{Progress, RepoError, RepoErrorKind, Result, Snapshot};

/// The first pause before the store is asked again how it stands, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// How often a wish to stop is looked for while there is nothing to do.
const TICK: Duration = Duration::from_millis(200);

/// How to fetch.
#[derive(Debug, Clone)]
pub struct ThawOptions {
    pub speed: ThawSpeed,
    /// How long a copy stays readable, where the store makes one (S3).
    pub days: u32,
    /// Only say how it stands.
    pub dry_run: bool,
    /// Ask again until all can be read.
    pub wait: Option<ThawWait>,
}

/// How long to wait for what is on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThawWait {
    /// None: as long as it takes.
    pub at_most: Option<Duration>,
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

    /// Of a restore that asked for them, and for which they did not come in time.
    pub fn not_ready(&self) -> RepoError {
        self.error(
            "nothing was begun that needs them, and what was asked for goes on: run it again with \
             --thaw, or see how it stands with `backstay thaw SNAPSHOT --dry-run`",
        )
    }

    fn error(&self, hint: &'static str) -> RepoError {
        RepoError::new(
            RepoErrorKind::Store,
            format!(
                "{} of {} objects that this restore needs ({} bytes) lie in an archive of the store",
                self.objects - self.ready,
                self.objects,
                self.bytes_waiting,
            ),
        )
        .with_hint(hint)
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
    let objects =
        keys.iter().map(|key| (key.clone(), sizes.get(key).copied().unwrap_or(0))).collect();
    waited_for(repository, objects, options, progress)
}

/// Asks for those of these objects that cannot be read, and waits for them if that is wanted; how
/// it stands in the end.
fn waited_for(
    repository: &Repository,
    objects: Vec<(String, u64)>,
    options: &ThawOptions,
    progress: &Progress,
) -> Result<ThawReport> {
    let (first, mut left) = asked_of(repository, &objects, options, progress)?;
    let Some(wait) = options.wait.filter(|_| !options.dry_run) else { return Ok(first) };
    if first.is_ready() {
        return Ok(first);
    }
    progress.set_phase("waiting for the store to fetch");
    progress.add_total(first.bytes_waiting, left.len() as u64);
    let clock = &repository.environment().clock;
    let (mut waited, mut pause) = (Duration::ZERO, PAUSES.0);
    let mut asked = first.asked;
    loop {
        let still = wait.at_most.map_or(pause, |most| pause.min(most.saturating_sub(waited)));
        if still.is_zero() {
            let (last, _) = asked_of(repository, &objects, options, progress)?;
            return Ok(ThawReport { asked: asked + last.asked, ..last });
        }
        let mut slept = Duration::ZERO;
        while slept < still {
            progress.check().map_err(|error| {
                error.with_hint(
                    "what was asked for goes on; run it again to wait for the rest, nothing is \
                     asked for twice",
                )
            })?;
            let step = TICK.min(still - slept);
            clock.sleep(step);
            slept += step;
        }
        waited += slept;
        pause = (pause * 2).min(PAUSES.1);
        let before: u64 = left.iter().map(|(_, size)| size).sum();
        let count = left.len();
        let (report, rest) = asked_of(repository, &left, options, progress)?;
        asked += report.asked;
        let now: u64 = rest.iter().map(|(_, size)| size).sum();
        progress.add_done(before.saturating_sub(now), count.saturating_sub(rest.len()) as u64);
        left = rest;
        if left.is_empty() {
            // The first copies may have gone again while the last came.
            let (last, gone) = asked_of(repository, &objects, options, progress)?;
            asked += last.asked;
            if gone.is_empty() {
                return Ok(ThawReport { asked, ..last });
            }
            left = gone;
        }
    }
}

/// Asks for those of these objects, with their sizes, that cannot be read; how it stands, and which
/// they are.
fn asked_of(
    repository: &Repository,
    objects: &[(String, u64)],
    options: &ThawOptions,
    progress: &Progress,
) -> Result<(ThawReport, Vec<(String, u64)>)> {
    let store = repository.store();
    let [ready, asked, thawing, waiting] = [const { AtomicU64::new(0) }; 4];
    let (first, left) = (Mutex::new(None), Mutex::new(Vec::new()));
    let not_yet = |key: &str, size: u64| {
        left.lock().unwrap_or_else(|e| e.into_inner()).push((key.to_owned(), size));
    };
    each(store, objects, progress, |(key, size)| {
        match store.access(key)? {
            Access::Ready { until } => {
                ready.fetch_add(1, Relaxed);
                if let Some(until) = until.and_then(|until| Timestamp::try_from(until).ok()) {
                    let mut first = first.lock().unwrap_or_else(|e| e.into_inner());
                    *first = Some(first.map_or(until, |known: Timestamp| known.min(until)));
                }
            }
            Access::Thawing => {
                not_yet(key, *size);
                thawing.fetch_add(1, Relaxed);
                waiting.fetch_add(*size, Relaxed);
            }
            Access::Archived => {
                not_yet(key, *size);
                if !options.dry_run {
                    store.thaw(key, options.speed, options.days)?;
                }
                asked.fetch_add(1, Relaxed);
                waiting.fetch_add(*size, Relaxed);
            }
        }
        Ok(())
    })?;
    let report = ThawReport {
        objects: objects.len() as u64,
        bytes: objects.iter().map(|(_, size)| size).sum(),
        ready: ready.into_inner(),
        asked: asked.into_inner(),
        thawing: thawing.into_inner(),
        bytes_waiting: waiting.into_inner(),
        until: first.into_inner().unwrap_or_else(|e| e.into_inner()),
    };
    Ok((report, left.into_inner().unwrap_or_else(|e| e.into_inner())))
}

/// Refuses to begin a restore that would stop in the middle: each of these packs, with its size,
/// must be readable, or is fetched first when `thaw` says so. Else asked only where new data goes
/// into an archive; elsewhere the read says it.
pub(crate) fn must_be_ready(
    repository: &Repository,
    packs: Vec<(String, u64)>,
    thaw: Option<&ThawOptions>,
    progress: &Progress,
) -> Result<()> {
    if thaw.is_none() && !repository.store().archives_data() {
        return Ok(());
    }
    let look = ThawOptions { speed: ThawSpeed::default(), days: 1, dry_run: true, wait: None };
    if thaw.is_some() {
        progress.set_phase("asking for what lies in an archive");
    }
    let report = waited_for(repository, packs, thaw.unwrap_or(&look), progress)?;
    if report.is_ready() {
        return Ok(());
    }
    Err(match thaw {
        Some(_) => report.not_ready(),
        None => report.error(
            "none of the files in them was begun; `backstay restore … --delta --thaw` fetches what \
             this restore needs, waits for it and goes on; `backstay thaw SNAPSHOT --dry-run` says \
             how much all of it is",
        ),
    })
}
