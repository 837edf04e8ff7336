//! The same moment in other repositories, for when one lacks something.
//!
//! What one pass over a source wrote to several repositories, and copies of it, hold the same files
//! under other ids: chunks cannot stand in for each other, but ranges of files can. So whoever reads a
//! snapshot and meets an object that is damaged, missing or out of reach asks the next repository for
//! the same path. The others are opened only then.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use serde::Serialize;

use crate::{RepoError, RepoErrorKind, Repository, Snapshot, Tree};

/// A snapshot of the same moment in another repository.
#[derive(Debug, Clone)]
pub struct Sibling {
    /// The repository's name, for people.
    pub name: String,
    pub repository: Repository,
    pub snapshot: Snapshot,
}

type Find = dyn Fn() -> Vec<Sibling> + Send + Sync;

/// Where else to look for what a snapshot lacks, and what came of it.
pub struct Fallback {
    /// The name of the repository that is read first.
    first: String,
    find: Box<Find>,
    found: OnceLock<Vec<Sibling>>,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    /// By repository and object, what is wrong with it.
    lacking: BTreeMap<(String, String), String>,
    /// By repository, files and bytes that it gave in place of the first.
    supplied: BTreeMap<String, (u64, u64)>,
}

/// An object that could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lacking {
    pub repository: String,
    /// Its key in the store, or what else was not to be had.
    pub object: String,
    pub what: String,
}

/// What another repository gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Supplied {
    pub repository: String,
    /// Files of which it gave something.
    pub files: u64,
    pub bytes: u64,
}

impl Fallback {
    /// Of a snapshot in the repository `first`; `find` opens the others, nearest first.
    pub fn new(
        first: impl Into<String>,
        find: impl Fn() -> Vec<Sibling> + Send + Sync + 'static,
    ) -> Self {
        Self {
            first: first.into(),
            find: Box::new(find),
            found: OnceLock::new(),
            notes: Mutex::default(),
        }
    }

    /// The others, nearest first; looked for when first asked.
    pub fn siblings(&self) -> &[Sibling] {
        self.found.get_or_init(|| (self.find)())
    }

    /// Whether another repository can help: an object is at fault, or the store as a whole, and not
    /// what is done with it.
    pub(crate) fn helps_with(error: &RepoError) -> bool {
        error.is_about_an_object() || error.kind() == RepoErrorKind::Store
    }

    /// The name of a source of entries: 0 is the first repository, 1 the first sibling.
    pub(crate) fn name_of(&self, source: usize) -> &str {
        let sibling = source.checked_sub(1).and_then(|at| self.siblings().get(at));
        sibling.map_or(self.first.as_str(), |sibling| &sibling.name)
    }

    /// The tree of a sibling; noted as lacking where it cannot be had.
    pub(crate) fn tree_of(&self, source: usize) -> Option<Tree> {
        let sibling = self.siblings().get(source.checked_sub(1)?)?;
        match sibling.repository.tree(&sibling.snapshot) {
            Ok(tree) => Some(tree),
            Err(error) => {
                self.lacks(source, "the index", &error);
                None
            }
        }
    }

    /// Notes what could not be used.
    pub(crate) fn lacks(&self, source: usize, object: &str, error: &RepoError) {
        let name = self.name_of(source).to_owned();
        let mut notes = self.notes();
        let what = notes.lacking.entry((name, object.to_owned()));
        what.or_insert_with(|| error.to_string());
    }

    /// Notes what a sibling gave.
    pub(crate) fn supplied(&self, source: usize, files: u64, bytes: u64) {
        let name = self.name_of(source).to_owned();
        let mut notes = self.notes();
        let given = notes.supplied.entry(name).or_default();
        given.0 += files;
        given.1 += bytes;
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What could not be used, by repository.
    pub fn lacking(&self) -> Vec<Lacking> {
        let notes = self.notes();
        let of = |((repository, object), what): (&(String, String), &String)| Lacking {
            repository: repository.clone(),
            object: object.clone(),
            what: what.clone(),
        };
        notes.lacking.iter().map(of).collect()
    }

    /// What the others gave.
    pub fn given(&self) -> Vec<Supplied> {
        let notes = self.notes();
        let of = |(repository, (files, bytes)): (&String, &(u64, u64))| Supplied {
            repository: repository.clone(),
            files: *files,
            bytes: *bytes,
        };
        notes.supplied.iter().map(of).collect()
    }
}

impl std::fmt::Debug for Fallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fallback").field("first", &self.first).finish_non_exhaustive()
    }
}
