//! What can be protected besides PostgreSQL, each kind a module with one implementation of
//! [`Source`].
//!
//! What lives here: walking and describing what is to be protected, and taking databases at one
//! moment. What does not: how anything is stored (crate `repo`), and when it is backed up (`ops`).

pub mod files;
pub mod sqlite;

use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_repo::{
    Compression, Fate, Progress, RepoError, RepoErrorKind, Repository, Result, SessionOptions,
    Snapshot, SnapshotType, SourceKind,
};

pub use files::FilesSource;
pub use sqlite::SqliteSource;

/// A named thing to protect, of any kind.
pub trait Source: Send + Sync {
    fn name(&self) -> &str;

    fn kind(&self) -> SourceKind;

    /// Can it be backed up? One item for each thing that was looked at; nothing is written.
    fn check(&self) -> Vec<CheckItem>;

    /// Takes a snapshot in one pass and writes it to all of `targets`: what came of it in each. What
    /// could not be read is in [`Snapshot::problems`].
    ///
    /// # Errors
    /// There is a snapshot in none of them: the source cannot be read, or the [`Fate`] of each target
    /// says why it failed.
    fn backup_to(
        &self,
        targets: &[Target],
        options: &BackupOptions,
    ) -> Result<Vec<Result<Snapshot>>>;

    /// Takes a snapshot in one repository; an error means that there is none.
    fn backup(&self, repo: &Repository, options: &BackupOptions) -> Result<Snapshot> {
        let target = Target::new(repo, self.name(), self.kind(), options)?;
        only(self.backup_to(&[target], options)?)
    }
}

/// One of the repositories that a snapshot goes to.
#[derive(Debug, Clone)]
pub struct Target {
    pub repository: Repository,
    pub type_: SnapshotType,
    /// Where to look for unchanged content. Only the repository's own can be used.
    pub parent: Option<Snapshot>,
    pub compression: Compression,
    /// Says why this target failed when none is left.
    pub fate: Fate,
}

impl Target {
    /// A target as `options` say it, of this source.
    fn new(
        repository: &Repository,
        source: &str,
        kind: SourceKind,
        options: &BackupOptions,
    ) -> Result<Self> {
        let parent = options.parent_of(repository, source, kind)?;
        Ok(Self {
            repository: repository.clone(),
            type_: options.type_,
            parent,
            compression: options.compression,
            fate: Fate::default(),
        })
    }

    /// What to begin a session with.
    fn session(
        &self,
        source: &str,
        kind: SourceKind,
        options: &BackupOptions,
    ) -> (Repository, SessionOptions) {
        let parent = self.parent.clone().filter(|_| self.type_ != SnapshotType::Full);
        let type_ = if parent.is_none() { SnapshotType::Full } else { self.type_ };
        let session = SessionOptions {
            parent,
            workers: options.workers,
            compression: self.compression,
            tags: options.tags.clone(),
            progress: options.progress.clone(),
            fate: self.fate.clone(),
            ..SessionOptions::new(source, kind, type_)
        };
        (self.repository.clone(), session)
    }
}

/// What came of the only target.
fn only(mut made: Vec<Result<Snapshot>>) -> Result<Snapshot> {
    made.pop().unwrap_or_else(|| {
        Err(RepoError::new(RepoErrorKind::Usage, "there is no repository to back up to"))
    })
}

/// How to take a snapshot.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// A full one reads everything. An incremental one without a parent to look at is a full one.
    pub type_: SnapshotType,
    /// Threads that read, compress and seal. 0: one for each core.
    pub workers: usize,
    pub compression: Compression,
    pub tags: BTreeMap<String, String>,
    pub progress: Arc<Progress>,
    /// Where to look for unchanged content. Absent: the newest snapshot of the source for an
    /// incremental one, its newest full one for a differential one.
    pub parent: Option<Snapshot>,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            type_: SnapshotType::Incremental,
            workers: 0,
            compression: Compression::default(),
            tags: BTreeMap::new(),
            progress: Arc::default(),
            parent: None,
        }
    }
}

impl BackupOptions {
    /// The snapshot to compare with, if the type asks for one.
    fn parent_of(
        &self,
        repo: &Repository,
        source: &str,
        kind: SourceKind,
    ) -> Result<Option<Snapshot>> {
        if self.type_ == SnapshotType::Full {
            return Ok(None);
        }
        if let Some(parent) = &self.parent {
            return Ok(Some(parent.clone()));
        }
        for snapshot in repo.snapshots()?.into_iter().rev() {
            if snapshot.source == source
                && snapshot.kind == kind
                && (self.type_ == SnapshotType::Incremental || snapshot.type_ == SnapshotType::Full)
                && repo.may_build_on(&snapshot)?
            {
                return Ok(Some(snapshot));
            }
        }
        Ok(None)
    }
}

/// One thing that was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CheckItem {
    pub name: String,
    pub ok: bool,
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl CheckItem {
    pub fn ok(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { name: name.into(), ok: true, message: message.into(), hint: None }
    }

    pub fn failed(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { name: name.into(), ok: false, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into()).filter(|hint: &String| !hint.is_empty());
        self
    }
}
