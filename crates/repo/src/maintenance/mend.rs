//! Runs of maintenance whose objects are damaged, or were made up by somebody who may only create.
//!
//! What a name says is believed as far as it must be. Runs are numbered without gaps, each signs
//! three objects, and none of them is ever removed: a number beyond the next one is no run, and is
//! passed over. The next number itself may be a run whose first object rotted, so it stops
//! maintenance, and writers store everything anew, until it is *begun anew* here:
//!
//! ```text
//! 1 create gc/N/mended                 the run stays in sight whatever is missing of it for a moment
//! 2 sessions: removed, made again      whoever begins after this sees no list of condemned packs,
//!                                      and counts on nothing; whoever began before is waited for
//! 3 condemned: removed, made again     all that no snapshot needs now, which is more than whatever
//!                                      it said: what was not needed then was not stored upon since
//! ```
//!
//! A `sweep` that does not open is made again in the same way. So somebody who slept in the middle of
//! that run, and still has its lists in memory, removes nothing but what the new lists have too.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::run::{Condemned, Maintenance, merge, read};
use super::view::{View, at_work};
use super::{MaintenanceOptions, signed};
use crate::crypto::{Class, Keys};
use crate::index::{number_of_head, read_head};
use crate::layout::{GC, HEADS, gc_key, head_key, run_of};
use crate::repository::Repository;
use crate::{Progress, RepoError, RepoErrorKind, Result, Store};
use backstay_store::failpoint;

const STEPS: [&str; 4] = ["condemned", "sessions", "sweep", "mended"];

/// Which objects of runs there are, by their names alone.
pub(super) struct Runs(BTreeMap<u64, BTreeSet<&'static str>>);

impl Runs {
    pub fn list(repository: &Repository) -> Result<Self> {
        let mut runs: BTreeMap<u64, BTreeSet<&'static str>> = BTreeMap::new();
        for object in repository.store().list(GC)? {
            // Other names below are not ours.
            if let Some(run) = run_of(&object.key)
                && let Some(step) = STEPS.into_iter().find(|step| gc_key(run, step) == object.key)
            {
                runs.entry(run).or_default().insert(step);
            }
        }
        Ok(Self(runs))
    }

    pub fn newest(&self) -> Option<u64> {
        self.0.keys().next_back().copied()
    }

    /// The newest run that there can have been: the last one of which an object opens, or the one
    /// after it.
    pub fn believable(&self, repository: &Repository) -> Result<Option<u64>> {
        for number in self.0.keys().rev() {
            if began(repository.store(), repository.keys(), *number)? {
                let next = number.checked_add(1).filter(|next| self.0.contains_key(next));
                return Ok(Some(next.unwrap_or(*number)));
            }
        }
        Ok(self.0.contains_key(&1).then_some(1))
    }
}

/// Whether an object of a run was signed by this repository.
pub(crate) fn began(store: &Store, keys: &Keys, number: u64) -> Result<bool> {
    for step in STEPS {
        let key = gc_key(number, step);
        let read = match store.read(&key) {
            Err(error) if error.is_not_found() => continue,
            read => read?,
        };
        match signed::body(keys, Class::Maintenance, &key, &read) {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == RepoErrorKind::Damaged => {}
            // What a newer program made is not made up.
            Err(error) if error.is_about_an_object() => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// What an object is, when it is looked at for being mended.
enum State<T> {
    Good(T),
    Damaged(RepoError),
    Missing,
}

fn look<T: DeserializeOwned>(repository: &Repository, key: &str) -> Result<State<T>> {
    match read::<T>(repository, key) {
        Ok(Some(value)) => Ok(State::Good(value)),
        Ok(None) => Ok(State::Missing),
        Err(error) if error.kind() == RepoErrorKind::Damaged => Ok(State::Damaged(error)),
        Err(error) => Err(error),
    }
}

/// Packs that a run agreed to remove: they may go at any time, and must not be listed again.
pub(crate) struct Swept {
    pub packs: HashSet<[u8; 16]>,
    /// That some run cannot be read: any pack may be one of those.
    pub unknown: bool,
}

impl Swept {
    pub fn read(repository: &Repository) -> Result<Self> {
        let runs = Runs::list(repository)?;
        let mut it = Self { packs: HashSet::new(), unknown: false };
        for (number, steps) in &runs.0 {
            let mut add = |packs: Vec<Condemned>| it.packs.extend(packs.iter().map(|p| p.id));
            match look::<Vec<Condemned>>(repository, &gc_key(*number, "sweep"))? {
                State::Good(packs) => add(packs),
                // What is not agreed on is still listed, and looked for again before it is.
                State::Missing => {}
                State::Damaged(_) => {
                    match look::<Vec<Condemned>>(repository, &gc_key(*number, "condemned"))? {
                        State::Good(packs) => add(packs),
                        _ if steps.contains("condemned") => it.unknown = true,
                        _ => it.unknown |= began(repository.store(), repository.keys(), *number)?,
                    }
                }
            }
        }
        Ok(it)
    }
}

/// What a run of maintenance lacks, as `verify` says it: the object and why.
pub(crate) fn examine(repository: &Repository) -> Result<Vec<(String, String)>> {
    let runs = Runs::list(repository)?;
    let believable = runs.believable(repository)?;
    let mut found = Vec::new();
    for (number, steps) in &runs.0 {
        if believable.is_none_or(|newest| *number > newest) {
            let first = steps.first().copied().unwrap_or_default();
            found
                .push((gc_key(*number, first), "there never was such a run of maintenance".into()));
            continue;
        }
        // Older ones decide nothing any more.
        if believable.is_some_and(|newest| number.saturating_add(1) < newest) {
            continue;
        }
        let has_head = match repository.store().head(&head_key(*number)) {
            Ok(_) => true,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error.into()),
        };
        for step in STEPS {
            let key = gc_key(*number, step);
            let state = match step {
                "sessions" => describe(look::<Vec<([u8; 8], [u8; 16])>>(repository, &key)?),
                "mended" => describe(look::<()>(repository, &key)?),
                _ => describe(look::<Vec<Condemned>>(repository, &key)?),
            };
            match state {
                Some(Some(why)) => found.push((key, why)),
                Some(None) if step == "condemned" || (step == "sweep" && has_head) => {
                    found.push((key, "it is missing, and the run went on after it".into()));
                }
                _ => {}
            }
        }
    }
    Ok(found)
}

/// `None`: good; otherwise why it is not, or nothing where it is not there.
fn describe<T>(state: State<T>) -> Option<Option<String>> {
    match state {
        State::Good(_) => None,
        State::Damaged(error) => Some(Some(error.to_string())),
        State::Missing => Some(None),
    }
}

fn create<T: Serialize>(repository: &Repository, key: &str, value: &T) -> Result<()> {
    let (keys, env) = (repository.keys(), repository.environment());
    let object = signed::sign(keys, env, Class::Maintenance, key, value);
    match repository.store().create(key, object) {
        Err(error) if error.is_already_exists() => Ok(()),
        created => Ok(created?),
    }
}

/// Mends the newest run and removes what never was one. Says what was done, by object.
///
/// # Errors
/// Damage of a snapshot, of a tree or of the index: then nobody knows what is needed.
pub(crate) fn mend_runs(
    repository: &Repository,
    progress: &Arc<Progress>,
) -> Result<Vec<(String, String)>> {
    let mut done = Vec::new();
    let runs = Runs::list(repository)?;
    let newest = runs.believable(repository)?;
    for (number, steps) in &runs.0 {
        if newest.is_none_or(|newest| *number > newest) {
            for step in steps {
                let key = gc_key(*number, step);
                repository.store().delete(&key)?;
                done.push((key, "removed: there never was such a run of maintenance".into()));
            }
        }
    }
    // Older runs are read by nobody who decides anything.
    let Some(number) = newest else { return Ok(done) };
    let condemned: State<Vec<Condemned>> = look(repository, &gc_key(number, "condemned"))?;
    let sessions: State<Vec<([u8; 8], [u8; 16])>> = look(repository, &gc_key(number, "sessions"))?;
    let mut sweep: State<Vec<Condemned>> = look(repository, &gc_key(number, "sweep"))?;
    let store = repository.store();
    let has_head = match read_head(store, repository.keys(), number) {
        Ok(_) => true,
        Err(error) if error.kind() == RepoErrorKind::Damaged => false,
        Err(error) => return Err(error),
    };
    if has_head && matches!(sweep, State::Missing) {
        // The run went on after it.
        sweep = State::Damaged(RepoError::damaged(&gc_key(number, "sweep"), "it is missing"));
    }
    let good = matches!(condemned, State::Good(_));
    if good && !matches!(sessions, State::Damaged(_)) && !matches!(sweep, State::Damaged(_)) {
        return Ok(done);
    }
    // What nobody needs now; an error where that cannot be told.
    let options = MaintenanceOptions::default();
    let maintenance = Maintenance::new(repository, &options, progress);
    let view = View::read(repository, &HashSet::new())?;
    let live = maintenance.mark(&view)?.live()?;
    let mut garbage = maintenance.garbage(&view, &|id| live.contains_key(id));
    create(repository, &gc_key(number, "mended"), &())?;
    failpoint::hit("repair-run-marked");
    if !good || matches!(sessions, State::Damaged(_)) {
        let key = gc_key(number, "sessions");
        // A list of sessions may be made at any time after the packs were condemned.
        store.delete(&key)?;
        failpoint::hit("repair-run-removed");
        let now: Vec<_> = at_work(repository)?.into_keys().collect();
        let now: Vec<_> = now.iter().map(|work| (work.writer, work.session)).collect();
        create(repository, &key, &now)?;
        if let State::Damaged(error) = sessions {
            done.push((key, format!("made again ({error})")));
        }
    }
    let agreed = match &sweep {
        State::Good(packs) => packs.clone(),
        _ => Vec::new(),
    };
    let known: HashSet<[u8; 16]> = match &condemned {
        State::Good(packs) => packs.iter().map(|pack| pack.id).collect(),
        _ => garbage.iter().map(|pack| pack.id).collect(),
    };
    if let State::Damaged(error) = sweep {
        let key = gc_key(number, "sweep");
        store.delete(&key)?;
        failpoint::hit("repair-run-removed");
        if has_head {
            // The run is through: what the index does not list any more is what it agreed on.
            let listed: HashSet<[u8; 16]> = view.index.packs().map(|(_, pack)| pack.id).collect();
            let gone: Vec<Condemned> = garbage
                .iter()
                .filter(|pack| known.contains(&pack.id) && (good || !listed.contains(&pack.id)))
                .copied()
                .collect();
            create(repository, &key, &gone)?;
        }
        done.push((key, format!("made again ({error})")));
    }
    if !good {
        let key = gc_key(number, "condemned");
        let there: HashSet<[u8; 16]> = garbage.iter().map(|pack| pack.id).collect();
        garbage.extend(agreed.into_iter().filter(|pack| !there.contains(&pack.id)));
        store.delete(&key)?;
        failpoint::hit("repair-run-removed");
        create(repository, &key, &garbage)?;
        done.push((
            key,
            match condemned {
                State::Damaged(error) => format!("the run was begun anew ({error})"),
                _ => "the run was begun anew (it was missing)".into(),
            },
        ));
    }
    Ok(done)
}

/// Heads of the index that do not open: one of a run is written anew, any other goes. Says what was
/// done, by object.
pub(crate) fn mend_heads(
    repository: &Repository,
    progress: &Arc<Progress>,
) -> Result<Vec<(String, String)>> {
    let mut done = Vec::new();
    let (store, keys) = (repository.store(), repository.keys());
    let mut heads: Vec<u64> =
        store.list(HEADS)?.iter().filter_map(|object| number_of_head(&object.key)).collect();
    heads.sort_unstable();
    for number in heads.into_iter().rev() {
        let key = head_key(number);
        let error = match read_head(store, keys, number) {
            // Older ones are replaced by this one, whatever they say.
            Ok(_) => break,
            Err(error) if error.kind() == RepoErrorKind::Damaged => error,
            Err(error) => return Err(error),
        };
        let sweep = look::<Vec<Condemned>>(repository, &gc_key(number, "sweep"))?;
        if !matches!(sweep, State::Good(_)) {
            // A head comes after what the run agreed on. Without it, or when that does not open
            // either, all segments count, and the run is taken up again.
            store.delete(&key)?;
            done.push((key, format!("removed ({error})")));
            continue;
        }
        // Runs may name packs of any sweep: what the lost head said of those that are gone is there
        // still.
        let gone = Swept::read(repository)?.packs;
        let head = merge(repository, progress, number, &gone, true)?;
        failpoint::hit("repair-head-merged");
        store.delete(&key)?;
        failpoint::hit("repair-head-removed");
        create(repository, &key, &head)?;
        done.push((key, format!("written anew ({error})")));
        break;
    }
    Ok(done)
}

/// Removes packs whose content lies elsewhere by now, by a run of maintenance of their own; whether
/// that came to its end. `gone` are packs that are not there: the new head of the index knows.
pub(crate) fn retire(
    repository: &Repository,
    packs: &HashSet<[u8; 16]>,
    gone: bool,
    progress: &Arc<Progress>,
) -> Result<bool> {
    let options = MaintenanceOptions::default();
    Maintenance::new(repository, &options, progress).retire(packs, gone)
}
