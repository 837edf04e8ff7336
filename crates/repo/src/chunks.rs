//! Opened chunks of a repository, the last used ones kept.
//!
//! Small files share a chunk, and a region of a database file that was backed up page by page lies in
//! many, each of which is needed again and again on the way through it.

use std::sync::Arc;

use crate::browse::Cache;
use crate::{Kind, ObjectId, Repository, Result};

/// What is kept: the run chunks of a region after some dozens of small changes. Bytes.
const KEPT: usize = 48 << 20;

pub(crate) struct Chunks {
    repository: Repository,
    kept: Cache<Vec<u8>>,
}

impl Chunks {
    pub fn new(repository: &Repository) -> Self {
        Self { repository: repository.clone(), kept: Cache::new(KEPT) }
    }

    pub fn get(&self, id: &ObjectId) -> Result<Arc<Vec<u8>>> {
        self.kept.get(id, || {
            let chunk = self.repository.read_chunk(Kind::Data, id)?;
            let size = chunk.len();
            Ok((chunk, size))
        })
    }
}
