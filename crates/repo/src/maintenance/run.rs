//! The steps of a run. Each can be taken by anybody, any number of times, at any time later.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::locked;
use super::mark::Marks;
use super::mend::Runs;
use super::repack::{choose, needed_after_all, of_old_keys, repack};
use super::unfinished;
use super::view::{StoredPack, View, at_work, ended};
use super::{MaintenanceOptions, MaintenanceReport, Reason, Tombstone, Waiting, open, signed};
use crate::archive::slices::systems;
use crate::crypto::Class;
use crate::id::hex;
use crate::index::{Current, Head, Index, keep_segment, open_object};
use crate::layout::{PACKS, SESSIONS, SNAPSHOTS, Work, gc_key, head_key};
use crate::repository::Repository;
use crate::{Progress, RepoError, RepoErrorKind, Result};
use backstay_store::failpoint;

/// With fewer segments that no run has taken in, the index is not merged for its own sake.
const SEGMENTS: usize = 16;
/// Objects of a directory that are removed at once: each waits for the disk, which can do several.
const REMOVED_AT_ONCE: usize = 4;

/// A pack that a run condemned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Condemned {
    pub writer: [u8; 8],
    pub session: [u8; 16],
    pub id: [u8; 16],
    /// Bytes.
    pub size: u64,
}

impl Condemned {
    pub fn of(pack: &StoredPack) -> Self {
        let Work { writer, session } = pack.work;
        Self { writer, session, id: pack.id, size: pack.size }
    }

    fn key(&self) -> String {
        Work { writer: self.writer, session: self.session }.pack_key(&self.id)
    }
}

/// The packs that count as absent for a session that was created before this is called; `None`
/// when it cannot be known, and so everything does.
pub(crate) fn condemned(repository: &Repository) -> Result<Option<HashSet<[u8; 16]>>> {
    match newest(repository) {
        Ok(None) => Ok(Some(HashSet::new())),
        Ok(Some((_, condemned))) => Ok(Some(condemned.into_iter().map(|pack| pack.id).collect())),
        Err(error) if error.is_about_an_object() => {
            tracing::warn!(%error, "what maintenance condemned is unknown: everything is stored anew");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The newest run that was begun, and what it condemned.
///
/// # Errors
/// Damage, when that cannot be read: then nothing is known of it.
fn newest(repository: &Repository) -> Result<Option<(u64, Vec<Condemned>)>> {
    let runs = Runs::list(repository)?;
    let Some(mut number) = runs.newest() else { return Ok(None) };
    let mut there = read_condemned(repository, number);
    if there.as_ref().is_err_and(|error| error.kind() == RepoErrorKind::Damaged) {
        match runs.believable(repository)? {
            None => return Ok(None),
            Some(believable) if believable != number => {
                tracing::warn!("gc/{number:08} is no run of maintenance, and is passed over");
                number = believable;
                there = read_condemned(repository, number);
            }
            Some(_) => {}
        }
    }
    let condemned = there.map_err(|error| {
        let key = gc_key(number, "condemned");
        if !error.is_about_an_object() || error.hint().is_some_and(|hint| hint.contains(&key)) {
            return error;
        }
        error.with_hint(format!(
            "`backstay verify --repair` begins that run anew; or put what is missing below gc/{number:08}/ \
             back from a copy of the store",
        ))
    })?;
    Ok(Some((number, condemned)))
}

/// What can be done about an object of a run that does not open.
fn mendable(error: RepoError) -> RepoError {
    // What was made while the root key was replaced says itself what to do.
    let says = error.hint().is_some_and(|hint| hint.contains("nobody acts on it"));
    if error.kind() != RepoErrorKind::Damaged || says {
        return error;
    }
    error.with_hint("`backstay verify --repair` makes it again")
}

fn read_condemned(repository: &Repository, number: u64) -> Result<Vec<Condemned>> {
    let key = gc_key(number, "condemned");
    read(repository, &key)?.ok_or_else(|| RepoError::damaged(&key, "it is missing"))
}

/// An object of a run; `None` when it is not there yet.
///
/// Nobody acts on one that was made while the root key was replaced and that the new one does not
/// count.
pub(super) fn read<T: DeserializeOwned>(repository: &Repository, key: &str) -> Result<Option<T>> {
    match repository.store().read(key) {
        Ok(object) => {
            let value = open(repository.keys(), Class::Maintenance, key, &object)?;
            repository.must_count(key)?;
            Ok(Some(value))
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn has_head(repository: &Repository, number: u64) -> Result<bool> {
    match repository.store().head(&head_key(number)) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Refuses to go on while a run has been begun and has not come to its end: its later steps would be
/// made with a key that is replaced.
pub(super) fn must_rest(repository: &Repository) -> Result<()> {
    match newest(repository)? {
        Some((number, _)) if !has_head(repository, number)? => Err(RepoError::new(
            RepoErrorKind::Busy,
            "a run of maintenance has been begun and has not come to its end",
        )
        .with_hint("run `backstay maintenance` first, as often as it waits for somebody")),
        _ => Ok(()),
    }
}

/// What there is to do.
struct Look {
    /// Packs that no snapshot needs.
    condemned: Vec<Condemned>,
    /// Whether the index should be merged for its own sake.
    merges: bool,
    marks: Marks,
}

pub(super) struct Maintenance<'r> {
    repository: &'r Repository,
    options: &'r MaintenanceOptions,
    progress: &'r Arc<Progress>,
    report: MaintenanceReport,
    /// Packs that nobody needs, or little of: they are not locked for another period.
    unneeded: HashSet<String>,
}

impl<'r> Maintenance<'r> {
    pub fn new(
        repository: &'r Repository,
        options: &'r MaintenanceOptions,
        progress: &'r Arc<Progress>,
    ) -> Self {
        let (report, unneeded) = (MaintenanceReport::default(), HashSet::new());
        Self { repository, options, progress, report, unneeded }
    }

    /// Whatever comes of a run, the locks of what is needed must not run out.
    pub fn run(mut self) -> Result<MaintenanceReport> {
        let done = self.steps().and_then(|()| self.clear_away());
        if !self.options.dry_run && !self.progress.is_cancelled() {
            let extended = locked::extend(self.repository, &self.unneeded, self.progress);
            done?;
            self.report.locks_extended = extended?;
            self.move_by_age()?;
            crate::parity::complete(self.repository, self.progress)?;
        } else {
            done?;
            self.move_by_age()?;
        }
        Ok(self.report)
    }

    /// Last of all: whatever the store refuses about it costs nothing else.
    fn move_by_age(&mut self) -> Result<()> {
        self.progress.check()?;
        (self.report.packs_moved, self.report.bytes_moved) =
            super::ages::move_down(self.repository, self.options.dry_run, self.progress)?;
        Ok(())
    }

    /// Removes what nobody can read, or reads.
    fn clear_away(&mut self) -> Result<()> {
        self.report.uploads_removed =
            unfinished::remove(self.repository, self.options.dry_run, self.progress)?;
        if self.options.dry_run { Ok(()) } else { self.remove_slices() }
    }

    /// What receivers of WAL left beside whole segments. Nobody reads it any more; what the store
    /// keeps for now is for another run.
    fn remove_slices(&self) -> Result<()> {
        for system in systems(self.repository)? {
            self.progress.check()?;
            if let Err(error) = self.repository.archive(system).remove_superseded() {
                tracing::warn!(system, %error, "slices of archived segments were not removed");
            }
        }
        Ok(())
    }

    fn steps(&mut self) -> Result<()> {
        if !self.options.dry_run {
            // What the dead have left counts as garbage from the beginning.
            self.wait(at_work(self.repository)?.into_keys().collect())?;
        }
        let newest = newest(self.repository)?.map(|(number, _)| number);
        if let Some(number) = newest
            && !has_head(self.repository, number)?
        {
            // Somebody began it: nothing else may begin before it is through.
            if self.options.dry_run {
                return self.look().map(drop);
            }
            if !self.finish(number, None)? {
                return Ok(());
            }
        } else if let Some(number) = newest
            && !self.options.dry_run
            && !self.sweep_up(number)?
        {
            // The store keeps some of it for now, and until then nothing else may begin.
            return Ok(());
        }
        let Some(Look { condemned, merges, marks }) = self.look()? else { return Ok(()) };
        if !condemned.is_empty() || merges {
            let number = newest.map_or(1, |number| number + 1);
            let key = gc_key(number, "condemned");
            // Whoever creates it decides; the others go on with that.
            self.elect(&key, || Ok(condemned))?;
            failpoint::hit("maintenance-condemned");
            if !self.finish(number, Some(marks))? {
                return Ok(());
            }
        }
        self.clear()
    }

    /// Only removes those of `packs` in which nothing is needed that does not lie elsewhere too;
    /// whether that is done. With `anew` the index is merged even if there is none.
    pub fn retire(mut self, packs: &HashSet<[u8; 16]>, anew: bool) -> Result<bool> {
        self.wait(at_work(self.repository)?.into_keys().collect())?;
        let newest = newest(self.repository)?.map(|(number, _)| number);
        if let Some(number) = newest {
            if has_head(self.repository, number)? {
                if !self.sweep_up(number)? {
                    return Ok(false);
                }
            } else if !self.finish(number, None)? {
                return Ok(false);
            }
        }
        let view = View::read(self.repository, packs)?;
        let marks = self.mark(&view)?;
        let live = marks.live()?;
        let mut condemned = self.garbage(&view, &|id| live.contains_key(id));
        condemned.retain(|pack| packs.contains(&pack.id));
        let condemned = self.without_locked(condemned)?;
        if condemned.is_empty() && !anew {
            return Ok(true);
        }
        let number = newest.map_or(1, |number| number + 1);
        self.elect(&gc_key(number, "condemned"), || Ok(condemned))?;
        failpoint::hit("maintenance-condemned");
        self.finish(number, Some(marks))
    }

    /// `None` when this is only about saying so. Moves chunks first.
    fn look(&mut self) -> Result<Option<Look>> {
        self.progress.set_phase("looking for what is needed");
        let mut view = View::read(self.repository, &HashSet::new())?;
        let mut marks = self.mark(&view)?;
        let mut live = marks.live()?;
        let (loose, runs) = view.index.segments();
        self.report.segments_before = (loose + runs) as u64;
        self.report.segments_after = self.report.segments_before;
        self.report.bytes_before = view.packs.iter().map(|pack| pack.size).sum();
        self.report.bytes_live = live.values().sum();
        self.report.bytes_of_old_keys = of_old_keys(&view, &live, self.repository.epoch());
        let reseal = self.options.reseal.then(|| self.repository.epoch());
        // What lies in an archive cannot be read, and the early removal is paid for.
        let archived = self.repository.store().archives_data();
        let most = if archived { 0 } else { self.options.max_repack };
        let mut victims = choose(&view, &live, most, reseal);
        // What is locked cannot be removed, so it is not emptied yet; and it is not locked again.
        let mut packs = view.packs.clone();
        packs.retain(|pack| victims.contains(&pack.id));
        let keys: Vec<String> = packs.iter().map(|pack| pack.work.pack_key(&pack.id)).collect();
        self.unneeded.extend(keys.iter().cloned());
        let kept = locked::among(self.repository, keys, self.progress)?;
        for pack in packs.iter().filter(|p| kept.contains_key(&p.work.pack_key(&p.id))) {
            victims.remove(&pack.id);
        }
        if !victims.is_empty() {
            let of_victims = |id: &[u8; 16]| live.get(id).copied().unwrap_or(0);
            self.report.packs_repacked = victims.len() as u64;
            self.report.bytes_repacked = victims.iter().map(of_victims).sum();
        }
        if self.options.dry_run {
            let garbage = self.garbage(&view, &|id| live.contains_key(id) && !victims.contains(id));
            let garbage = self.without_locked(garbage)?;
            self.report.packs_removed = garbage.len() as u64;
            self.report.bytes_removed = garbage.iter().map(|pack| pack.size).sum();
            self.report.snapshots_removed = view.forgotten.len() as u64;
            self.report.waiting_for = self.about(at_work(self.repository)?.into_keys())?;
            return Ok(None);
        }
        if !victims.is_empty() {
            self.progress.set_phase("moving what is needed out of packs of garbage");
            self.report.bytes_repacked = repack(self.repository, &marks, &victims, self.progress)?;
            failpoint::hit("maintenance-repacked");
            self.progress.set_phase("looking for what is needed");
            view = View::read(self.repository, &victims)?;
            marks =
                marks.again(self.repository, view.index.clone(), &view.snapshots, self.progress)?;
            live = marks.live()?;
            self.report.bytes_of_old_keys = of_old_keys(&view, &live, self.repository.epoch());
        }
        let garbage = self.garbage(&view, &|id| live.contains_key(id));
        let condemned = self.without_locked(garbage)?;
        Ok(Some(Look { condemned, merges: loose > SEGMENTS, marks }))
    }

    /// What of `garbage` can be removed, by what the store says now.
    fn without_locked(&mut self, mut garbage: Vec<Condemned>) -> Result<Vec<Condemned>> {
        let keys: Vec<String> = garbage.iter().map(Condemned::key).collect();
        self.unneeded.extend(keys.iter().cloned());
        let kept = locked::among(self.repository, keys, self.progress)?;
        garbage.retain(|pack| {
            let Some(lock) = kept.get(&pack.key()) else { return true };
            self.report.packs_locked += 1;
            self.report.bytes_locked += pack.size;
            self.report.locked_until = locked::later(self.report.locked_until, lock.until);
            false
        });
        Ok(garbage)
    }

    /// Removes objects that nobody needs, in any order and several at once: none is of use without
    /// the others, and whatever is left goes with the next run. Those that the store keeps for now.
    fn remove(&mut self, keys: &[String], removed: impl Fn() + Sync) -> Result<HashSet<String>> {
        let store = self.repository.store();
        let kept: Mutex<Vec<(String, Option<SystemTime>)>> = Mutex::default();
        let threads = if store.is_remote() { locked::ASKED_AT_ONCE } else { REMOVED_AT_ONCE };
        locked::each_by(threads, keys, self.progress, |key| {
            match store.delete(key) {
                Ok(()) => removed(),
                Err(error) if locked::is_locked(&error) => {
                    tracing::debug!(%error, "left for a later run");
                    let lock = store.lock(key).ok().flatten();
                    let until = lock.and_then(|lock| lock.until);
                    kept.lock().unwrap_or_else(|e| e.into_inner()).push((key.clone(), until));
                }
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        let kept = kept.into_inner().unwrap_or_else(|e| e.into_inner());
        for (_, until) in &kept {
            self.report.locked_until = locked::later(self.report.locked_until, *until);
        }
        Ok(kept.into_iter().map(|(key, _)| key).collect())
    }

    pub(super) fn mark(&self, view: &View) -> Result<Marks> {
        Marks::of(self.repository, view.index.clone(), &view.snapshots, self.progress)
    }

    /// Packs of sessions that have ended, in which nothing is needed.
    pub(super) fn garbage(
        &self,
        view: &View,
        needed: &dyn Fn(&[u8; 16]) -> bool,
    ) -> Vec<Condemned> {
        let twice = view.taken_twice();
        let of_ended = view.packs.iter().filter(|pack| view.ended.contains(&pack.work));
        let garbage = of_ended.filter(|pack| !needed(&pack.id) && !twice.contains(&pack.id));
        garbage.map(Condemned::of).collect()
    }

    /// What is at `key`; what `make` makes when nothing is there yet.
    fn elect<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if let Some(there) = read(self.repository, key).map_err(mendable)? {
            return Ok(there);
        }
        let made = make()?;
        let (keys, env) = (self.repository.keys(), self.repository.environment());
        let object = signed::sign(keys, env, Class::Maintenance, key, &made);
        match self.repository.store().create(key, object) {
            Ok(()) => self.repository.must_count(key).map(|()| made),
            Err(error) if error.is_already_exists() => {
                read(self.repository, key)?.ok_or_else(|| {
                    RepoError::damaged(key, "it was there and is gone, and nothing may remove it")
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes all steps of a run that can be taken; whether it is through. `marks` are of an earlier look
    /// at the repository, where there was one.
    fn finish(&mut self, number: u64, marks: Option<Marks>) -> Result<bool> {
        self.progress.check()?;
        let key = gc_key(number, "condemned");
        let condemned: Vec<Condemned> = read(self.repository, &key)?
            .ok_or_else(|| RepoError::damaged(&key, "it is missing"))?;
        self.progress.set_phase("waiting for sessions that began before");
        let sessions: Vec<([u8; 8], [u8; 16])> = self.elect(&gc_key(number, "sessions"), || {
            let at_work = at_work(self.repository)?.into_keys();
            Ok(at_work.map(|work| (work.writer, work.session)).collect())
        })?;
        failpoint::hit("maintenance-sessions");
        let sessions = sessions.into_iter().map(|(writer, session)| Work { writer, session });
        let waiting = self.wait(sessions.collect())?;
        if !waiting.is_empty() {
            self.report.packs_waiting = condemned.len() as u64;
            self.report.bytes_waiting = condemned.iter().map(|pack| pack.size).sum();
            self.report.waiting_for = self.about(waiting.into_iter())?;
            return Ok(false);
        }
        self.progress.set_phase("looking for what is needed");
        let sweep = self.elect(&gc_key(number, "sweep"), || {
            if condemned.is_empty() {
                return Ok(Vec::new());
            }
            let avoided = condemned.iter().map(|pack| pack.id).collect();
            let view = View::read(self.repository, &avoided)?;
            let marks = match marks {
                Some(marks) => {
                    let (index, snapshots) = (view.index.clone(), &view.snapshots);
                    marks.again(self.repository, index, snapshots, self.progress)?
                }
                None => self.mark(&view)?,
            };
            let live = marks.live()?;
            let mut sweep = condemned;
            sweep.retain(|pack| !live.contains_key(&pack.id));
            // What is kept instead is looked at first.
            let swept = sweep.iter().map(|pack| pack.id).collect();
            let doubtful = needed_after_all(self.repository, &marks, &swept, self.progress)?;
            sweep.retain(|pack| !doubtful.contains(&pack.id));
            Ok(sweep)
        })?;
        failpoint::hit("maintenance-sweep");
        self.progress.set_phase("merging the index");
        let head = self.elect(&head_key(number), || self.merge(number, &sweep))?;
        failpoint::hit("maintenance-head");
        self.report.segments_after = head.runs() as u64;
        // What the store keeps for now is still there, and the next run may not begin.
        self.sweep(&sweep)
    }

    /// Whether all of it is gone.
    fn sweep(&mut self, sweep: &[Condemned]) -> Result<bool> {
        self.progress.set_phase("removing");
        let keys: Vec<String> = sweep.iter().map(Condemned::key).collect();
        let kept = self.remove(&keys, || failpoint::hit("maintenance-pack-removed"))?;
        for (pack, key) in sweep.iter().zip(&keys) {
            // Locked since it was condemned, by somebody else.
            let (packs, bytes) = match kept.contains(key) {
                true => (&mut self.report.packs_locked, &mut self.report.bytes_locked),
                false => (&mut self.report.packs_removed, &mut self.report.bytes_removed),
            };
            *packs += 1;
            *bytes += pack.size;
        }
        Ok(kept.is_empty())
    }

    /// Removes what a run with a head has left: all of its packs must be gone before the next one
    /// begins. A session that was given up may still write a segment that names one of them, and a
    /// later run would take it for the copy to keep, while somebody who slept still removes it.
    /// Whether they are.
    fn sweep_up(&mut self, number: u64) -> Result<bool> {
        let key = gc_key(number, "sweep");
        let sweep: Vec<Condemned> = read(self.repository, &key)
            .and_then(|sweep| {
                sweep.ok_or_else(|| {
                    RepoError::damaged(&key, "it is missing, and the run went on after it")
                })
            })
            .map_err(mendable)?;
        if sweep.is_empty() {
            return Ok(true);
        }
        let there: HashSet<String> =
            self.repository.store().list(PACKS)?.into_iter().map(|object| object.key).collect();
        let left: Vec<Condemned> =
            sweep.into_iter().filter(|pack| there.contains(&pack.key())).collect();
        self.sweep(&left)
    }

    /// Those of `sessions` that have no outcome and may still get one.
    fn wait(&mut self, mut sessions: Vec<Work>) -> Result<Vec<Work>> {
        if sessions.is_empty() {
            return Ok(sessions);
        }
        let known = at_work(self.repository)?;
        sessions.retain(|work| known.contains_key(work));
        if sessions.is_empty() {
            return Ok(sessions);
        }
        let now = self.now_of_the_store()?;
        let mut waiting = Vec::new();
        for work in sessions {
            let began = known.get(&work).copied().flatten();
            if self.is_dead(&work)? || self.is_silent(&work, began, now)? {
                let given_up = self.about(std::iter::once(work))?;
                let tombstone = Tombstone::new(self.repository, Reason::GivenUp);
                // Otherwise it came to its end meanwhile.
                if tombstone.create(self.repository, &work.snapshot_key())? {
                    self.report.given_up.extend(given_up);
                }
                failpoint::hit("maintenance-given-up");
            } else {
                waiting.push(work);
            }
        }
        Ok(waiting)
    }

    /// The time by the store's own clock, which is that of the objects it lists.
    fn now_of_the_store(&self) -> Result<SystemTime> {
        let (store, env) = (self.repository.store(), self.repository.environment());
        let key = format!("probe/{}", hex(&env.random::<16>()));
        store.create(&key, bytes::Bytes::from_static(b"what time is it?"))?;
        let modified = store.head(&key)?.modified;
        match store.delete(&key) {
            Err(error) if !locked::is_locked(&error) => Err(error.into()),
            // A bucket that locks all of its objects keeps this one for a while.
            _ => Ok(modified.unwrap_or_else(|| env.now())),
        }
    }

    /// Whether nothing came of a session for too long. A wrong answer costs its work, nothing else.
    fn is_silent(&self, work: &Work, began: Option<SystemTime>, now: SystemTime) -> Result<bool> {
        let prefix = work.pack_key(&[0; 16]);
        let prefix = prefix.trim_end_matches(|c| c != '/');
        let packs = self.repository.store().list(prefix)?;
        let newest = packs.into_iter().map(|pack| pack.modified).chain([began]).flatten().max();
        let silent = newest.and_then(|newest| now.duration_since(newest).ok());
        Ok(silent.unwrap_or(Duration::ZERO) >= self.options.give_up_after)
    }

    /// Whether it was a process of this machine that is no more.
    fn is_dead(&self, work: &Work) -> Result<bool> {
        let Some(about) = self.session(work)? else { return Ok(false) };
        Ok(crate::session::Process::of(&about).is_some_and(|process| process.is_gone()))
    }

    fn session(&self, work: &Work) -> Result<Option<serde_json::Value>> {
        let key = work.session_key();
        let opened = match self.repository.store().read(&key) {
            Ok(object) => open_object(self.repository.keys(), Class::Session, &key, &object),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match opened {
            Ok(plain) => Ok(serde_json::from_slice(&plain).ok()),
            // Only what it says of itself is lost.
            Err(error) if error.is_about_an_object() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn about(&self, sessions: impl Iterator<Item = Work>) -> Result<Vec<Waiting>> {
        let mut all = Vec::new();
        for work in sessions {
            let about = self.session(&work)?.unwrap_or_default();
            let text = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
            all.push(Waiting {
                session: work.id(),
                source: text("source"),
                host: text("host"),
                started: text("started").parse().ok(),
            });
        }
        all.sort_by(|a, b| (a.started, &a.session).cmp(&(b.started, &b.session)));
        Ok(all)
    }

    /// Puts what sessions wrote into runs, and leaves out the packs of `sweep`.
    fn merge(&self, number: u64, sweep: &[Condemned]) -> Result<Head> {
        let gone = sweep.iter().map(|pack| pack.id).collect();
        merge(self.repository, self.progress, number, &gone, false)
    }

    /// Removes what the newest head has replaced, and what ended sessions leave.
    fn clear(&mut self) -> Result<()> {
        let (repository, store) = (self.repository, self.repository.store());
        self.progress.set_phase("removing");
        let current = Current::read(store, repository.keys())?;
        if let Some(number) = current.head.filter(|_| !current.obsolete.is_empty()) {
            // Where it does not count, neither does what it says to be replaced.
            repository.must_count(&head_key(number))?;
        }
        let kept = self.remove(&current.obsolete, || {})?;
        self.report.objects_locked += kept.len() as u64;
        // A tombstone stays: its name, and that of the snapshot, must not be free again.
        let listed = store.list(SNAPSHOTS)?;
        let mut going = Vec::new();
        for work in super::forgotten(repository, &listed)? {
            // Only a snapshot goes. Anything else keeps the name taken, whatever it was.
            let size = store.head(&work.snapshot_key()).map_or(0, |object| object.size);
            match repository.read_snapshot(work, size) {
                Ok(Some(_)) => {}
                Ok(None) => continue,
                Err(error) if error.is_about_an_object() => continue,
                Err(error) => return Err(error),
            }
            // Whoever forgot it while the root key was replaced was told that it did not happen.
            repository.must_count(&work.tombstone_key())?;
            going.push(work.snapshot_key());
        }
        let kept = self.remove(&going, || failpoint::hit("maintenance-snapshot-removed"))?;
        self.report.snapshots_removed += (going.len() - kept.len()) as u64;
        self.report.objects_locked += kept.len() as u64;
        let ended = ended(repository)?;
        let mut going: Vec<String> =
            store.list(SESSIONS)?.into_iter().map(|object| object.key).collect();
        going.retain(|key| Work::from_session_key(key).is_some_and(|work| ended.contains(&work)));
        let kept = self.remove(&going, || {})?;
        self.report.objects_locked += kept.len() as u64;
        Ok(())
    }
}

/// Puts what sessions wrote into runs, and leaves out the packs in `gone`; what the head of the run
/// `number` is to say. `past_head`: the head in force does not open, and so all segments count.
pub(super) fn merge(
    repository: &Repository,
    progress: &Progress,
    number: u64,
    gone: &HashSet<[u8; 16]>,
    past_head: bool,
) -> Result<Head> {
    let (store, keys) = (repository.store(), repository.keys());
    // First what has ended: all segments of those sessions are in the index that is read then.
    let ended = ended(repository)?;
    let authority = repository.reload_authority()?;
    let index = Index::open(store, keys, &authority, repository.cache())?;
    let of_head = usize::from(past_head && index.current.problem.is_some());
    if let Some(why) = index.unreadable().get(of_head) {
        return Err(RepoError::damaged("the index", why).with_hint(
            "nothing was removed; `backstay verify --repair` builds the index anew from the packs",
        ));
    }
    // Copies too: one of them may turn out to be the only one that is right.
    let env = repository.environment();
    let merged = index.merge(gone, keys, env, number, &mut |key, object| {
        progress.check()?;
        store.create(key, object.clone())?;
        keep_segment(repository.cache(), key, &object);
        failpoint::hit("maintenance-merged");
        Ok(())
    })?;
    // And what earlier heads took in and nobody has removed yet: it must not count again.
    let level0 = index.current.segments.iter().map(|object| &object.key);
    let level0 = level0.filter(|key| Work::from_index_key(key).is_some_and(|w| ended.contains(&w)));
    let before = index.current.obsolete.iter();
    let before = before.filter(|key| Work::from_index_key(key).is_some());
    let absorbed = level0.chain(before).cloned().collect();
    Ok(Head { segments: merged.segments, absorbed, gone: merged.gone })
}
