//! What a lane knows of database files from the snapshot before: where each page lies, and its hash.
//!
//! A parent only saves work: what cannot be read of it, or is in a pack that does not count, is
//! stored again.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use super::content::REGION;
use crate::entry::{Body, EntryKind, LeafRef};
use crate::id::PAGE;
use crate::index::Index;
use crate::tree::{ExtentLeaf, PageHash, PageHashes, parse_base, parse_change, parse_extents};
use crate::{Kind, ObjectId, RepoError, Repository, Result, Snapshot};

/// The files of the snapshot before that have leaves, read when the first grid is met.
pub(super) struct Parent {
    snapshot: Option<Snapshot>,
    files: OnceLock<Files>,
    /// Held by the worker that reads them, while the others wait for it.
    reading: Mutex<()>,
}

/// Sizes and leaves by path.
type Files = HashMap<Vec<u8>, (u64, Vec<LeafRef>)>;

/// A layer of page hashes.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub id: ObjectId,
    /// Of a change, the pages that it is about.
    pub pages: Vec<u32>,
}

/// A region as the snapshot before has it.
pub(super) struct Before {
    /// The leaf, where nothing hinders that it is used again.
    pub id: Option<ObjectId>,
    pub leaf: ExtentLeaf,
    /// Of each page.
    pub hashes: Vec<PageHash>,
    /// The base first. Empty: they were in the leaf, or cannot be built upon.
    pub layers: Vec<Layer>,
    /// Bytes that the file has here.
    pub length: u64,
}

impl Parent {
    pub fn new(snapshot: Option<Snapshot>) -> Self {
        Self { snapshot, files: OnceLock::new(), reading: Mutex::default() }
    }

    fn files(&self, repository: &Repository) -> Result<&Files> {
        if let Some(files) = self.files.get() {
            return Ok(files);
        }
        let _reading = self.reading.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(files) = self.files.get() {
            return Ok(files);
        }
        let files = match self.snapshot.as_ref().map(|parent| list(repository, parent)) {
            None => HashMap::new(),
            Some(Err(error)) if error.is_about_an_object() => {
                tracing::warn!(%error, "pages are not compared with those of the snapshot before");
                HashMap::new()
            }
            Some(files) => files?,
        };
        Ok(self.files.get_or_init(|| files))
    }

    /// What there was of a region of a file.
    pub fn region(
        &self,
        repository: &Repository,
        index: &Index,
        path: &[u8],
        number: usize,
    ) -> Result<Option<Before>> {
        if self.snapshot.is_none() {
            return Ok(None);
        }
        let Some((size, leaves)) = self.files(repository)?.get(path) else { return Ok(None) };
        let start = number as u64 * REGION;
        let Some(leaf) = leaves.get(number).filter(|leaf| leaf.offset == start) else {
            return Ok(None);
        };
        let length = size.saturating_sub(start).min(REGION);
        match before(repository, index, &leaf.id, length) {
            Err(error) if error.is_about_an_object() => {
                tracing::warn!(%error, "a region is stored whole");
                Ok(None)
            }
            before => before,
        }
    }
}

fn list(repository: &Repository, parent: &Snapshot) -> Result<Files> {
    let mut files = HashMap::new();
    for entry in repository.tree(parent)?.iter() {
        let entry = entry?;
        if let EntryKind::File(content) = entry.kind
            && let Body::Leaves(leaves) = content.body
        {
            files.insert(entry.path, (content.size, leaves));
        }
    }
    Ok(files)
}

fn before(
    repository: &Repository,
    index: &Index,
    id: &ObjectId,
    length: u64,
) -> Result<Option<Before>> {
    let leaf = parse_extents("the parent", &repository.read_chunk(Kind::Leaf, id)?)?;
    if leaf.cells.is_empty() {
        return Ok(None);
    }
    let pages = length.div_ceil(PAGE as u64) as usize;
    let mut layers = Vec::new();
    let read = |id: &ObjectId| repository.read_chunk(Kind::Pages, id);
    let no_hashes = || RepoError::damaged("the parent", "page hashes are not what they should be");
    let hashes = match &leaf.pages {
        PageHashes::None => return Ok(None),
        PageHashes::Inline(bytes) => parse_base(bytes).collect(),
        PageHashes::Chunk(_) | PageHashes::Mapped(_) => {
            let Some((base, changes)) = leaf.pages.chunks().split_first() else {
                return Ok(None);
            };
            let mut hashes: Vec<PageHash> = parse_base(&read(base)?).collect();
            layers.push(Layer { id: *base, pages: Vec::new() });
            for id in changes {
                let change = parse_change(&read(id)?).ok_or_else(no_hashes)?;
                layers
                    .push(Layer { id: *id, pages: change.iter().map(|(page, _)| *page).collect() });
                for (page, hash) in change {
                    let page = page as usize;
                    if page >= hashes.len() {
                        // The file was longer than this region can be.
                        if page >= REGION as usize / PAGE {
                            return Err(no_hashes());
                        }
                        hashes.resize(page + 1, PageHash::default());
                    }
                    if let Some(slot) = hashes.get_mut(page) {
                        *slot = hash;
                    }
                }
            }
            hashes
        }
    };
    if hashes.len() < pages {
        return Err(no_hashes());
    }
    // Layers that do not count cannot be referred to again.
    if !layers.iter().all(|layer| index.holds(&layer.id)) {
        layers.clear();
    }
    let again = index.holds(id) && layers.len() == leaf.pages.chunks().len();
    Ok(Some(Before { id: again.then_some(*id), leaf, hashes, layers, length }))
}
