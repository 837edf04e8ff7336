//! Which repository a restore reads from, and which others can help out.
//!
//! All configured repositories are asked at once what they hold. The nearest one that has the moment
//! is read: what is on this machine before what is across a network, or in the order that the
//! configuration gives. The same moment elsewhere stands by for what it turns out to lack.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backstay_repo::{Fallback, Repository, Sibling, Snapshot, SourceKind};
use backstay_store::RetryPolicy;

use crate::config::{Config, RepositoryConfig};
use crate::error::Error;
use crate::{Context, Found, Result};

/// How long a repository that is not the nearest is asked again. One that cannot be reached must not
/// keep the others from restoring.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A repository that answered, and what it holds.
pub struct Place {
    pub name: String,
    pub repository: Repository,
    pub snapshots: Vec<Snapshot>,
}

/// All repositories that answered, nearest first.
pub struct Everywhere {
    pub places: Vec<Place>,
}

impl Config {
    /// The repositories in the order in which a restore asks them.
    ///
    /// # Errors
    /// Usage, when `restore-order` names one that is not configured.
    pub fn restore_order(&self) -> Result<Vec<&RepositoryConfig>> {
        let mut all = self.repositories()?;
        let mut first = Vec::new();
        for name in &self.global.restore_order {
            self.repository(name)?;
            if let Some(at) = all.iter().position(|repository| &repository.name == name) {
                first.push(all.remove(at));
            }
        }
        // Stable: within each kind in the order of the file.
        all.sort_by_key(|repository| !is_local(repository));
        first.append(&mut all);
        Ok(first)
    }
}

fn is_local(repository: &RepositoryConfig) -> bool {
    repository.keys.url.0.starts_with("file://")
}

impl Context {
    /// Asks all repositories what they hold. One that cannot be used is passed over with a warning.
    ///
    /// # Errors
    /// The first one, when none can be used.
    pub fn everywhere(&self) -> Result<Everywhere> {
        let configs = self.config.restore_order()?;
        let alone = configs.len() == 1;
        let ask = |config: &RepositoryConfig| -> Result<Place> {
            let patience = (!alone && !is_local(config))
                .then_some(RetryPolicy { budget: PATIENCE, ..RetryPolicy::default() });
            let repository = self.open_retrying(config, patience)?;
            let snapshots = repository.snapshots()?;
            Ok(Place { name: config.name.clone(), repository, snapshots })
        };
        let asked: Vec<Result<Place>> = std::thread::scope(|scope| {
            let ask = &ask;
            let threads: Vec<_> =
                configs.iter().map(|config| scope.spawn(move || ask(config))).collect();
            let lost = || Error::new(crate::ErrorKind::Failed, "a thread that asked it panicked");
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(lost())))
                .collect()
        });
        let mut places = Vec::new();
        let mut failed = Vec::new();
        for (config, asked) in configs.iter().zip(asked) {
            match asked {
                Ok(place) => places.push(place),
                Err(error) => failed.push((&config.name, error)),
            }
        }
        if places.is_empty() && !failed.is_empty() {
            return Err(failed.swap_remove(0).1);
        }
        for (name, error) in &failed {
            self.warn_of_lost(name, error);
        }
        Ok(Everywhere { places })
    }
}

impl Everywhere {
    /// The snapshot that `name` means, in the nearest repository that has it: the newest one of a
    /// source, `latest`, or the one whose id starts so.
    pub fn find(&self, context: &Context, name: &str) -> Result<Found> {
        let named = |snapshot: &&Snapshot| name == "latest" || snapshot.source == name;
        let all = self.places.iter().flat_map(|place| &place.snapshots);
        // Of those that are equally new, the first: the nearest.
        let newest = all.filter(named).reduce(|a, b| if b.time > a.time { b } else { a });
        if let Some(snapshot) = newest {
            return self.at(snapshot).map_or_else(|| context.find(name), Ok);
        }
        let starting = |snapshot: &&Snapshot| snapshot.id.starts_with(name);
        let mut found = self.places.iter().flat_map(|p| &p.snapshots).filter(starting);
        match (found.next(), found.next()) {
            (Some(snapshot), None) => self.at(snapshot).map_or_else(|| context.find(name), Ok),
            // It has the words for what is not there, or is there twice.
            _ => context.find(name),
        }
    }

    /// A snapshot of one of the places, and which it is in.
    pub fn at(&self, snapshot: &Snapshot) -> Option<Found> {
        let holds = |place: &&Place| place.snapshots.iter().any(|one| one.id == snapshot.id);
        self.places.iter().find(holds).map(|place| Found {
            name: place.name.clone(),
            repository: place.repository.clone(),
            snapshot: snapshot.clone(),
        })
    }

    /// Every moment of a source that can be restored, each from the nearest repository.
    pub fn moments(&self, source: &str, kind: SourceKind) -> Vec<Snapshot> {
        let mut seen = HashSet::new();
        let all = self.places.iter().flat_map(|place| &place.snapshots);
        all.filter(|snapshot| snapshot.source == source && snapshot.kind == kind)
            .filter(|snapshot| seen.insert(snapshot.moment()))
            .cloned()
            .collect()
    }

    /// Where else the moment of a snapshot is; nothing where it is nowhere else.
    pub fn fallback(&self, found: &Found) -> Option<Arc<Fallback>> {
        let mut siblings: Vec<Sibling> = Vec::new();
        for place in self.places.iter().filter(|place| place.name != found.name) {
            let same = |one: &&Snapshot| {
                place.repository.holds(one, &found.snapshot).is_ok_and(|same| same)
            };
            if let Some(snapshot) = place.snapshots.iter().find(same) {
                siblings.push(Sibling {
                    name: place.name.clone(),
                    repository: place.repository.clone(),
                    snapshot: snapshot.clone(),
                });
            }
        }
        if siblings.is_empty() {
            return None;
        }
        Some(Arc::new(Fallback::new(&found.name, move || siblings.clone())))
    }
}
