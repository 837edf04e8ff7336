//! Maintenance: what no snapshot needs is removed, while anybody writes and reads.
//!
//! There are no locks, and no clock decides what is safe. A *run* is a number, and its steps are
//! objects that are created once, so that whoever comes second goes on with what the first decided:
//!
//! ```text
//! gc/<run>/condemned    packs that no snapshot needed, of sessions that have ended
//! gc/<run>/sessions     sessions that were at work after that was created
//! gc/<run>/sweep        condemned packs that are still not needed, after each of those has ended
//! index/heads/<run>     the index without them
//! ```
//!
//! A writer creates its session, then reads the newest `condemned`, then the index: what lies only
//! in condemned packs counts as absent. A session that began too early to know is in `sessions`, and
//! the run waits for its outcome before it looks again. The outcome's key is that of the snapshot:
//! the writer creates a snapshot there, or maintenance a tombstone, and whoever is first has decided.
//!
//! The list `sweep` is one for all who work on a run, for ever: somebody who slept for a week
//! removes what was agreed on then, and nobody has referred to that since. The next run may begin
//! when all of it is gone. Tombstones and the objects of runs are never removed: each keeps a name
//! taken that must not be created again.
//!
//! Files of archives are no part of all this: `expire` removes those.
//!
//! `view` is one look at the repository, `mark` finds what is reachable, `repack` moves chunks out of
//! packs that are mostly garbage, `records` reads and compares those, `run` takes the steps, `mend` puts right what is damaged of them,
//! `signed` is how its objects are sealed, `unfinished` removes packs that never became objects.

mod ages;
mod expire;
mod locked;
mod mark;
mod mend;
mod records;
mod repack;
mod run;
mod signed;
mod unfinished;
mod view;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backstay_store::ObjectMeta;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::crypto::Class;
use crate::keys::timestamp;
use crate::layout::{SNAPSHOTS, TOMBSTONES, Work};
use crate::repository::Repository;
use crate::{Progress, RepoError, RepoErrorKind, Result, Snapshot};
pub use expire::Expired;
pub(crate) use expire::expire;
pub(crate) use mend::{Swept, began, examine, mend_heads, mend_runs, retire};
pub(crate) use run::condemned;
pub(crate) use signed::{open, open_of_any_time, sign};
pub(crate) use view::ended as ended_now;

/// How to maintain.
#[derive(Debug, Clone)]
pub struct MaintenanceOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// How much may be moved out of packs that are mostly garbage. Bytes.
    pub max_repack: u64,
    /// After how long without a sign of life a session is given up. It costs its work, nothing else.
    pub give_up_after: Duration,
    /// Also move what is sealed to a root key that has been replaced, within `max_repack`.
    pub reseal: bool,
}

impl Default for MaintenanceOptions {
    fn default() -> Self {
        Self {
            dry_run: false,
            max_repack: u64::MAX,
            give_up_after: Duration::from_secs(48 * 3600),
            reseal: false,
        }
    }
}

/// What a run of maintenance did, or would do. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MaintenanceReport {
    /// Snapshots that were forgotten, and whose objects are gone now.
    pub snapshots_removed: u64,
    pub packs_removed: u64,
    pub bytes_removed: u64,
    /// Condemned, and to be removed when the sessions in `waiting_for` have ended.
    pub packs_waiting: u64,
    pub bytes_waiting: u64,
    pub waiting_for: Vec<Waiting>,
    /// Sessions that died or were silent for too long.
    pub given_up: Vec<Waiting>,
    /// Packs that were mostly garbage, and what was moved out of them.
    pub packs_repacked: u64,
    pub bytes_repacked: u64,
    /// What is needed and still sealed to a root key that has been replaced.
    pub bytes_of_old_keys: u64,
    /// Of the index.
    pub segments_before: u64,
    pub segments_after: u64,
    /// What all snapshots need, in packs.
    pub bytes_live: u64,
    /// In packs, before anything was removed.
    pub bytes_before: u64,
    /// Not needed, and kept by the store itself: packs, and other objects.
    pub packs_locked: u64,
    pub bytes_locked: u64,
    pub objects_locked: u64,
    /// When the last of these locks runs out; a hold has no end.
    pub locked_until: Option<Timestamp>,
    /// Needed, and locked for another period.
    pub locks_extended: u64,
    /// Packs that went into a colder class for their age.
    pub packs_moved: u64,
    pub bytes_moved: u64,
    /// Packs that were begun in parts and never became objects, whose parts were removed.
    pub uploads_removed: u64,
}

/// A session without an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    pub session: String,
    pub source: String,
    pub host: String,
    pub started: Option<Timestamp>,
}

/// Why there is no snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    /// A session died, or was silent for too long.
    GivenUp,
    /// It moved chunks, and never was to have a snapshot.
    Maintenance,
    /// Somebody said so.
    Forgotten,
}

/// Stands in the place of a snapshot, or beside one that is forgotten.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tombstone {
    pub reason: Reason,
    pub time: i64,
    pub host: String,
    pub version: String,
    /// What moment the snapshot held that is forgotten, so that no copy brings it back. It follows
    /// the rest; the first programs wrote none, and read past it.
    #[serde(skip)]
    pub moment: Option<[u8; 16]>,
}

impl Tombstone {
    pub fn new(repository: &Repository, reason: Reason) -> Self {
        Self {
            reason,
            time: timestamp(repository.environment()).as_second(),
            host: crate::session::host(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            moment: None,
        }
    }

    /// Creates it at `key`; whether it is the first object there.
    pub fn create(&self, repository: &Repository, key: &str) -> Result<bool> {
        let (keys, env) = (repository.keys(), repository.environment());
        let object = match self.moment {
            Some(moment) => sign(keys, env, Class::Tombstone, key, &(self, moment)),
            None => sign(keys, env, Class::Tombstone, key, self),
        };
        match repository.store().create(key, object) {
            Ok(()) => repository.must_count(key).map(|()| true),
            Err(error) if error.is_already_exists() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Which of the listed snapshots are forgotten.
pub(crate) fn forgotten(repository: &Repository, listed: &[ObjectMeta]) -> Result<HashSet<Work>> {
    let tombstones = repository.store().list(TOMBSTONES)?;
    let mut forgotten = HashSet::new();
    if tombstones.is_empty() {
        return Ok(forgotten);
    }
    let there: HashSet<Work> =
        listed.iter().filter_map(|object| Work::from_snapshot_key(&object.key)).collect();
    for object in tombstones {
        let Some(work) = Work::from_tombstone_key(&object.key) else { continue };
        if there.contains(&work) && is_tombstone(repository, &object)? {
            forgotten.insert(work);
        }
    }
    Ok(forgotten)
}

/// Whether an object is a tombstone of this repository. Whoever could forge one by its name alone
/// could make snapshots vanish, and sessions at work pass for ended.
fn is_tombstone(repository: &Repository, object: &ObjectMeta) -> Result<bool> {
    Ok(read_tombstone::<Tombstone>(repository, object)?.is_some())
}

/// What a tombstone says; `None` of what is none of this repository, or says something else.
fn read_tombstone<T: DeserializeOwned>(
    repository: &Repository,
    object: &ObjectMeta,
) -> Result<Option<T>> {
    let key = &object.key;
    let opens = |body: &[u8]| open::<T>(repository.keys(), Class::Tombstone, key, body);
    let cached = repository.cache().map(|folder| folder.join(key.replace('/', "-")));
    if let Some(path) = &cached
        && let Ok(body) = std::fs::read(path)
        && body.len() as u64 == object.size
        && let Ok(said) = opens(&body)
    {
        return Ok(Some(said));
    }
    let read = repository.store().read(key).map_err(RepoError::from);
    match read.and_then(|body| opens(&body).map(|said| (said, body))) {
        Ok((said, body)) => {
            if let Some(path) = cached {
                crate::index::keep(&path, &body);
            }
            Ok(Some(said))
        }
        Err(error) if error.is_about_an_object() => {
            tracing::warn!(%error, "a tombstone is ignored");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Names the moment of a snapshot. A host that may only write can read tombstones, so neither source
/// nor moment is in them. `claimed`: it is the word of such a host that the snapshot is of that moment.
fn moment_of(repository: &Repository, snapshot: &Snapshot, claimed: bool) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(&repository.keys().metadata_id);
    hasher.update(if claimed { &b"claimed\0"[..] } else { b"moment\0" });
    hasher.update(snapshot.source.as_bytes()).update(&[0]);
    hasher.update(snapshot.moment().as_bytes());
    let mut moment = [0; 16];
    moment.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    moment
}

/// The same of a snapshot of this repository, which says of itself of which moment it is.
fn own_moment(repository: &Repository, snapshot: &Snapshot) -> Result<[u8; 16]> {
    let claimed = snapshot.group.is_some() && !repository.may_build_on(snapshot)?;
    Ok(moment_of(repository, snapshot, claimed))
}

/// Moments of which this repository had a snapshot that somebody has forgotten.
pub(crate) struct Forgotten {
    repository: Repository,
    moments: HashSet<[u8; 16]>,
}

impl Forgotten {
    pub fn read(repository: &Repository) -> Result<Self> {
        let mut moments = HashSet::new();
        let listed = repository.store().list(SNAPSHOTS)?;
        // The tombstones of the first programs say nothing of it. Their snapshots do, while they last.
        if repository.keys().is_owner() {
            let gone = forgotten(repository, &listed)?;
            for object in &listed {
                let Some(work) = Work::from_snapshot_key(&object.key) else { continue };
                if !gone.contains(&work) {
                    continue;
                }
                match repository.read_snapshot(work, object.size) {
                    Ok(Some(snapshot)) => drop(moments.insert(own_moment(repository, &snapshot)?)),
                    Ok(None) => {}
                    Err(error) if error.is_about_an_object() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for object in repository.store().list(TOMBSTONES)? {
            if Work::from_tombstone_key(&object.key).is_none() {
                continue;
            }
            // Of two lengths: with a moment and without one.
            if let Some(said) = read_tombstone::<Said>(repository, &object)? {
                moments.extend(said.moment);
            }
        }
        Ok(Self { repository: repository.clone(), moments })
    }

    /// Whether a snapshot of any repository is of one of them. A host that may only write can claim the
    /// moment of every snapshot whose id it sees in a store, and so keep that from being copied: this
    /// counts only where it could not know the moment, or for such a host itself, which may be it.
    pub fn has(&self, snapshot: &Snapshot) -> bool {
        let is_in =
            |claimed| self.moments.contains(&moment_of(&self.repository, snapshot, claimed));
        let knows_itself = !self.repository.keys().is_owner();
        is_in(false) || ((snapshot.group.is_some() || knows_itself) && is_in(true))
    }
}

/// A tombstone with what may follow it.
struct Said {
    moment: Option<[u8; 16]>,
}

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Both;
        impl<'de> serde::de::Visitor<'de> for Both {
            type Value = Said;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a tombstone")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Said, A::Error> {
                let missing = || serde::de::Error::custom("it is cut short");
                let _: Tombstone = seq.next_element()?.ok_or_else(missing)?;
                // The end of the bytes where there is none.
                Ok(Said { moment: seq.next_element().ok().flatten() })
            }
        }
        from.deserialize_tuple(2, Both)
    }
}

/// Sessions that have ended: with an object in the place of their snapshot, which nothing removes
/// unless there is a tombstone, or with a tombstone.
fn ended(repository: &Repository, listed: &[ObjectMeta]) -> Result<HashSet<Work>> {
    let mut ended: HashSet<Work> =
        listed.iter().filter_map(|o| Work::from_snapshot_key(&o.key)).collect();
    for object in repository.store().list(TOMBSTONES)? {
        let Some(work) = Work::from_tombstone_key(&object.key) else { continue };
        if !ended.contains(&work) && is_tombstone(repository, &object)? {
            ended.insert(work);
        }
    }
    Ok(ended)
}

/// Whether a snapshot was forgotten since it was listed: then it is no damage that it is gone.
pub(crate) fn is_forgotten(repository: &Repository, work: &Work) -> Result<bool> {
    match repository.store().head(&work.tombstone_key()) {
        Ok(object) => is_tombstone(repository, &object),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Forgets the snapshots whose ids start with `prefixes`, whether they can be read or not, one after
/// the other; their whole ids.
pub(crate) fn forget(repository: &Repository, prefixes: &[&str]) -> Result<Vec<String>> {
    repository.keys().must_own("forget a snapshot")?;
    repository.allow_delete()?;
    let listed = repository.store().list(SNAPSHOTS)?;
    let mut forgotten = forgotten(repository, &listed)?;
    let there: Vec<Work> =
        listed.iter().filter_map(|object| Work::from_snapshot_key(&object.key)).collect();
    let mut ids = Vec::with_capacity(prefixes.len());
    for prefix in prefixes {
        let mut found =
            there.iter().filter(|work| work.id().starts_with(prefix) && !forgotten.contains(work));
        let Some(work) = found.next() else { return Err(no_snapshot(prefix)) };
        if found.next().is_some() {
            return Err(RepoError::new(
                RepoErrorKind::Ambiguous,
                format!("several snapshots start with {prefix:?}"),
            )
            .with_hint("give more digits of the id"));
        }
        forget_one(repository, prefix, *work)?;
        forgotten.insert(*work);
        ids.push(work.id());
    }
    Ok(ids)
}

fn no_snapshot(prefix: &str) -> RepoError {
    RepoError::new(RepoErrorKind::NotFound, format!("there is no snapshot {prefix:?}"))
        .with_hint("`backstay list` shows the snapshots there are")
}

/// `prefix` is what it was called by.
fn forget_one(repository: &Repository, prefix: &str, work: Work) -> Result<()> {
    // Whether it is held must be known: a refused question is no answer.
    let held = match repository.store().lock(&work.snapshot_key()) {
        Ok(lock) => lock.is_some_and(|lock| lock.held),
        Err(error) if error.is_not_found() => false,
        Err(error) => return Err(error.into()),
    };
    if held {
        return Err(RepoError::new(
            RepoErrorKind::Usage,
            format!("snapshot {:.8} is on hold and stays", work.id()),
        )
        .with_hint(format!("`backstay hold --release {:.8}` lifts the hold", work.id())));
    }
    // A session that was given up has no snapshot. What does not open may be anything: it can be
    // forgotten, and keeps its name.
    let key = work.snapshot_key();
    let read = repository.store().read(&key).map_err(RepoError::from);
    let body = read.as_ref().ok().cloned();
    let ended =
        read.and_then(|body| open::<Tombstone>(repository.keys(), Class::Tombstone, &key, &body));
    match ended {
        Ok(_) => return Err(no_snapshot(prefix)),
        Err(error) if error.is_about_an_object() => {}
        Err(error) => return Err(error),
    }
    let (mut tombstone, key) =
        (Tombstone::new(repository, Reason::Forgotten), work.tombstone_key());
    tombstone.moment = body
        .and_then(|body| repository.open_snapshot(work, &body).ok().flatten())
        .map(|snapshot| own_moment(repository, &snapshot))
        .transpose()?;
    if !tombstone.create(repository, &key)? && !is_forgotten(repository, &work)? {
        // What is there is no tombstone, so it says nothing.
        repository.store().delete(&key)?;
        if !tombstone.create(repository, &key)? && !is_forgotten(repository, &work)? {
            return Err(RepoError::damaged(&key, "it is no tombstone, and comes back"));
        }
    }
    Ok(())
}

/// For [`internals`](crate::internals): which of the bodies that are signed these bytes are.
pub(crate) fn parses(body: &[u8]) -> [bool; 4] {
    [
        postcard::from_bytes::<Vec<run::Condemned>>(body).is_ok(),
        postcard::from_bytes::<Vec<([u8; 8], [u8; 16])>>(body).is_ok(),
        postcard::from_bytes::<crate::index::Head>(body).is_ok(),
        postcard::from_bytes::<Tombstone>(body).is_ok(),
    ]
}

/// Valid bodies, for tests that alter them.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let condemned =
        run::Condemned { writer: [1; 8], session: [2; 16], id: [3; 16], size: 32 << 20 };
    let head = crate::index::Head {
        segments: vec!["index/1/00000001/ab".into()],
        absorbed: vec!["index/0/a/b/000000".into(); 3],
        gone: vec![[4; 16]; 2],
    };
    let tombstone = Tombstone {
        reason: Reason::Forgotten,
        time: 1_700_000_000,
        host: "here".into(),
        version: "1".into(),
        moment: None,
    };
    let made = [
        postcard::to_stdvec(&vec![condemned; 5]),
        postcard::to_stdvec(&vec![([1_u8; 8], [2_u8; 16]); 5]),
        postcard::to_stdvec(&head),
        postcard::to_stdvec(&tombstone),
    ];
    made.into_iter().flatten().collect()
}

/// Refuses to go on while a run has been begun and has not come to its end.
pub(crate) fn must_rest(repository: &Repository) -> Result<()> {
    run::must_rest(repository)
}
pub(crate) use locked::{each, hold, is_held, needed};

pub(crate) fn maintain(
    repository: &Repository,
    options: &MaintenanceOptions,
    progress: &Arc<Progress>,
) -> Result<MaintenanceReport> {
    repository.keys().must_own("run maintenance")?;
    repository.allow_write()?;
    repository.allow_delete()?;
    run::Maintenance::new(repository, options, progress).run()
}
