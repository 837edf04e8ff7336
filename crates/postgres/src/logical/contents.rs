//! What a logical snapshot holds: its documents, read out of the repository.

use std::sync::Arc;

use backstay_repo::{Fallback, Repository, Snapshot, SourceKind, Tree};

use super::catalogue::{Catalogue, ServerCatalogue};
use super::names;
use super::toc::Toc;
use crate::{PostgresError, PostgresErrorKind, Result};

/// A logical snapshot, open.
pub struct Contents {
    tree: Tree,
    snapshot: String,
    pub server: ServerCatalogue,
}

impl Contents {
    /// # Errors
    /// `Usage` when the snapshot is of another kind, `Damaged` when it lacks what it must have.
    pub fn open(
        repository: &Repository,
        snapshot: &Snapshot,
        fallback: Option<Arc<Fallback>>,
    ) -> Result<Self> {
        if snapshot.kind != SourceKind::PostgresLogical {
            return Err(PostgresError::usage(format!(
                "{} is a snapshot of kind {}, and this is for postgres-logical",
                snapshot.short_id(),
                snapshot.kind
            ))
            .with_hint("name a snapshot or a source of kind postgres-logical"));
        }
        let tree = repository.tree(snapshot)?.falling_over(fallback);
        let short = snapshot.short_id().to_owned();
        let server = ServerCatalogue::parse(&read(&tree, &short, names::SERVER)?)?;
        Ok(Self { tree, snapshot: short, server })
    }

    /// The databases whose content it has.
    pub fn databases(&self) -> Vec<&str> {
        let all = self.server.databases.iter().filter(|one| one.dumped);
        all.map(|one| one.name.as_str()).collect()
    }

    /// The databases that are meant by `names`; all when there are none.
    pub fn choose<'a>(&'a self, names: &'a [String]) -> Result<Vec<&'a str>> {
        let all = self.databases();
        if names.is_empty() {
            return Ok(all);
        }
        for name in names {
            if !all.contains(&name.as_str()) {
                return Err(PostgresError::usage(format!(
                    "snapshot {} has no database {name:?}",
                    self.snapshot
                ))
                .with_hint(format!("it has {}", all.join(", "))));
            }
        }
        Ok(all.into_iter().filter(|one| names.iter().any(|name| name == one)).collect())
    }

    pub fn catalogue(&self, database: &str) -> Result<Catalogue> {
        Catalogue::parse(&read(&self.tree, &self.snapshot, &names::catalogue(database))?)
    }

    pub fn toc(&self, database: &str) -> Result<Toc> {
        Toc::parse(&read(
            &self.tree,
            &self.snapshot,
            &format!("{}/toc.dat", names::dump(database)),
        )?)
    }

    /// Roles and tablespaces, as statements.
    pub fn globals(&self) -> Result<String> {
        let bytes = read(&self.tree, &self.snapshot, names::GLOBALS)?;
        String::from_utf8(bytes).map_err(|_| {
            PostgresError::new(PostgresErrorKind::Damaged, "the dump of the roles is no UTF-8")
        })
    }

    /// Paths below a folder, and the sizes of their files; other names with what they are names of.
    pub(super) fn sizes(&self, database: &str) -> Result<Vec<(String, u64)>> {
        let below = format!("{}/", names::dump(database));
        let mut sizes = Vec::new();
        for entry in self.tree.iter() {
            let mut entry = entry?;
            if !entry.path.starts_with(below.as_bytes()) {
                continue;
            }
            let path = entry.display_path();
            if let backstay_repo::EntryKind::Hardlink { to } = &entry.kind
                && let Some(first) = self.tree.get(to)?
            {
                entry = first;
            }
            if let Some(name) = path.strip_prefix(&below) {
                sizes.push((name.to_owned(), entry.size()));
            }
        }
        Ok(sizes)
    }
}

fn read(tree: &Tree, snapshot: &str, path: &str) -> Result<Vec<u8>> {
    let entry = tree.get(path.as_bytes())?.ok_or_else(|| {
        PostgresError::new(PostgresErrorKind::Damaged, format!("snapshot {snapshot} has no {path}"))
            .with_hint(
                "restore another snapshot; `backstay verify` tells whether this one is whole",
            )
    })?;
    let mut bytes = Vec::new();
    tree.read_file(&entry, &mut bytes)?;
    Ok(bytes)
}
