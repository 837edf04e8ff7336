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
    Compression, Progress, Repository, Result, SessionOptions, Snapshot, SnapshotType, SourceKind,
};

pub use files::FilesSource;
pub use sqlite::SqliteSource;

/// A named thing to protect, of any kind.
pub trait Source: Send + Sync {
    fn name(&self) -> &str;

    fn kind(&self) -> SourceKind;

    /// Can it be backed up? One item for each thing that was looked at; nothing is written.
    fn check(&self) -> Vec<CheckItem>;

    /// Takes a snapshot. What could not be read is in [`Snapshot::problems`]; an error means that
    /// there is no snapshot.
    fn backup(&self, repo: &Repository, options: &BackupOptions) -> Result<Snapshot>;
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
    pub(crate) fn parent_of(
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
        let wanted = |snapshot: &Snapshot| {
            snapshot.source == source
                && snapshot.kind == kind
                && (self.type_ == SnapshotType::Incremental || snapshot.type_ == SnapshotType::Full)
        };
        Ok(repo.snapshots()?.into_iter().rfind(wanted))
    }

    /// What to begin a session with.
    pub(crate) fn session(
        &self,
        source: &str,
        kind: SourceKind,
        parent: Option<Snapshot>,
    ) -> SessionOptions {
        let type_ = if parent.is_none() { SnapshotType::Full } else { self.type_ };
        SessionOptions {
            parent,
            workers: self.workers,
            compression: self.compression,
            tags: self.tags.clone(),
            progress: self.progress.clone(),
            ..SessionOptions::new(source, kind, type_)
        }
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
