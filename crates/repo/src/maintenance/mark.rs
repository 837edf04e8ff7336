//! What snapshots refer to: a bit for each entry of the index.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::is_forgotten;
use super::records::Listed;
use crate::crypto::HEADER;
use crate::entry::{Body, EntryKind};
use crate::index::{Index, Location};
use crate::layout::Work;
use crate::repository::{Repository, missing_chunk};
use crate::tree::ParsedNode;
use crate::{Kind, ObjectId, Progress, RepoError, Result, Snapshot};

/// Header, trailer, and the tag of the footer. Bytes.
const PACK_OVERHEAD: u64 = HEADER as u64 + 48;
/// What the footer says of each record. Bytes.
const RECORD_OVERHEAD: u64 = 44;

/// The chunks that are reachable, in one state of the index.
pub(crate) struct Marks {
    index: Arc<Index>,
    bits: Vec<u64>,
    /// The roots of the trees that were walked.
    roots: HashSet<ObjectId>,
}

impl Marks {
    /// Walks all snapshots.
    ///
    /// # Errors
    /// Damage of any tree, and a chunk that is in no pack that is there: what cannot be seen might
    /// be needed, so nothing may be removed.
    pub fn of(
        repository: &Repository,
        index: Arc<Index>,
        snapshots: &[Snapshot],
        progress: &Progress,
    ) -> Result<Self> {
        Self::none(index).with(repository, snapshots, progress)
    }

    /// What is needed in a later state of the index than that of an earlier look. What a tree needs is
    /// the same for ever, so no tree is walked twice: what was found is found again by its id, which
    /// the earlier index says, and trees that came since are walked. Those that were forgotten since
    /// still count.
    ///
    /// # Errors
    /// As of [`of`](Self::of).
    pub fn again(
        self,
        repository: &Repository,
        index: Arc<Index>,
        snapshots: &[Snapshot],
        progress: &Progress,
    ) -> Result<Self> {
        match self.found_again(index.clone(), progress) {
            // Something is gone, perhaps with a snapshot that was forgotten since. The trees say.
            Err(error) if error.is_about_an_object() => {
                Self::of(repository, index, snapshots, progress)
            }
            found => found?.with(repository, snapshots, progress),
        }
    }

    fn none(index: Arc<Index>) -> Self {
        let bits = vec![0; index.len().div_ceil(64)];
        Self { index, bits, roots: HashSet::new() }
    }

    fn found_again(self, index: Arc<Index>, progress: &Progress) -> Result<Self> {
        let mut now = Self { roots: self.roots.clone(), ..Self::none(index) };
        for entry in self.index.locations() {
            let (ordinal, prefix, _) = entry?;
            if !self.has(ordinal) {
                continue;
            }
            progress.check()?;
            let place = now.index.place_of(&prefix)?;
            let (ordinal, at) = place.ok_or_else(|| {
                RepoError::damaged(
                    &format!("chunk {}", crate::id::hex(&prefix)),
                    "it is in no pack of the index",
                )
            })?;
            now.must_be_there(at)?;
            now.set(ordinal);
        }
        Ok(now)
    }

    /// With what some snapshots need, where their trees were not walked yet.
    fn with(
        mut self,
        repository: &Repository,
        snapshots: &[Snapshot],
        progress: &Progress,
    ) -> Result<Self> {
        progress.add_total(0, snapshots.len() as u64);
        let mut forgotten: HashSet<&str> = HashSet::new();
        'all: loop {
            let left = snapshots.iter().filter(|one| !forgotten.contains(one.id.as_str()));
            for snapshot in left {
                if self.roots.contains(&snapshot.root) {
                    continue;
                }
                match self.snapshot(repository, snapshot, progress) {
                    Err(error) if error.is_about_an_object() => {
                        if !is_gone(repository, snapshot) {
                            return Err(unreadable(snapshot, error));
                        }
                        // A node of which not all was marked would hide what others need of it.
                        forgotten.insert(&snapshot.id);
                        self = Self::none(self.index);
                        continue 'all;
                    }
                    other => other?,
                }
                self.roots.insert(snapshot.root);
            }
            progress.add_done(0, snapshots.len() as u64);
            return Ok(self);
        }
    }

    fn snapshot(
        &mut self,
        repository: &Repository,
        snapshot: &Snapshot,
        progress: &Progress,
    ) -> Result<()> {
        let tree = repository.tree(snapshot)?;
        let mut nodes = vec![snapshot.root];
        while let Some(id) = nodes.pop() {
            progress.check()?;
            // Below a node that was met before, all is marked.
            if !self.mark(Kind::Tree, &id)? {
                continue;
            }
            match tree.node(&id)? {
                ParsedNode::Inner(children) => nodes.extend(children.into_iter().map(|(_, id)| id)),
                ParsedNode::Leaf(entries) => {
                    for entry in entries {
                        let EntryKind::File(content) = entry.kind else { continue };
                        match content.body {
                            Body::Inline(_) => {}
                            Body::Extents(_) | Body::Member(_) => {
                                for extent in content.body.extents() {
                                    self.mark(Kind::Data, &extent.chunk)?;
                                }
                            }
                            Body::Leaves(leaves) => {
                                for leaf in leaves {
                                    if !self.mark(Kind::Leaf, &leaf.id)? {
                                        continue;
                                    }
                                    let leaf = tree.leaf(&leaf.id)?;
                                    for extent in &leaf.extents {
                                        self.mark(Kind::Data, &extent.chunk)?;
                                    }
                                    for id in leaf.pages.chunks() {
                                        self.mark(Kind::Pages, id)?;
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Marks a chunk; whether it was not marked before.
    fn mark(&mut self, kind: Kind, id: &ObjectId) -> Result<bool> {
        let index = &self.index;
        let (ordinal, at) = index.place(id)?.ok_or_else(|| missing_chunk(kind, id, index))?;
        self.must_be_there(at)?;
        Ok(self.set(ordinal))
    }

    fn must_be_there(&self, at: Location) -> Result<()> {
        if !self.index.is_missing(at.pack) {
            return Ok(());
        }
        let pack = self.index.pack(at.pack).map(|pack| pack.key()).unwrap_or_default();
        Err(RepoError::damaged(&pack, "it is missing or cut short"))
    }

    /// Whether it was not set before.
    fn set(&mut self, ordinal: usize) -> bool {
        let (word, bit) = (ordinal / 64, 1 << (ordinal % 64));
        let Some(word) = self.bits.get_mut(word) else { return false };
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    fn has(&self, ordinal: usize) -> bool {
        self.bits.get(ordinal / 64).is_some_and(|word| word & (1 << (ordinal % 64)) != 0)
    }

    /// The packs that hold something reachable, and how many bytes a pack of that alone would have
    /// before padding.
    pub fn live(&self) -> Result<HashMap<[u8; 16], u64>> {
        let mut live = HashMap::new();
        for entry in self.index.locations() {
            let (ordinal, _, at) = entry.map_err(|error| {
                let hint = "nothing was removed; `backstay verify` says what is affected";
                if error.is_about_an_object() { error.with_hint(hint) } else { error }
            })?;
            if self.has(ordinal)
                && let Some(pack) = self.index.pack(at.pack)
            {
                *live.entry(pack.id).or_insert(PACK_OVERHEAD) +=
                    u64::from(at.length) + RECORD_OVERHEAD;
            }
        }
        Ok(live)
    }

    /// The packs without which something reachable might not be read: where a chunk would be read from a
    /// pack of a host that may only write, those of its copies too, as nobody has compared what that host
    /// lists with what is there.
    pub fn packs(&self) -> Result<HashSet<[u8; 16]>> {
        let mut packs: HashSet<[u8; 16]> = self.live()?.into_keys().collect();
        self.index.copies(|ordinal, _, at, copies| {
            if self.has(ordinal) && self.index.is_foreign(at.pack) {
                let of_copies = copies.iter().filter_map(|copy| self.index.pack(copy.pack));
                packs.extend(of_copies.map(|pack| pack.id));
            }
        })?;
        Ok(packs)
    }

    /// The reachable chunks of some packs, sorted by the number of the pack and the offset.
    pub fn chunks_in(&self, packs: &HashSet<[u8; 16]>) -> Result<Vec<(u32, Listed)>> {
        let wanted = |number: u32| self.index.pack(number).is_some_and(|p| packs.contains(&p.id));
        let mut chunks = Vec::new();
        for entry in self.index.locations() {
            let (ordinal, id, at) = entry?;
            if self.has(ordinal) && wanted(at.pack) {
                chunks.push((at.pack, Listed::new(&id, at)));
            }
        }
        chunks.sort_unstable();
        Ok(chunks)
    }

    /// For each needed chunk that has a copy in one of `packs`: the pack and the record where it is
    /// read from, and the pack of the copy.
    pub fn kept_for(&self, packs: &HashSet<[u8; 16]>) -> Result<Vec<(u32, Listed, [u8; 16])>> {
        let mut kept = Vec::new();
        if packs.is_empty() {
            return Ok(kept);
        }
        self.index.copies(|ordinal, id, at, copies| {
            if self.has(ordinal) {
                let of_copies = copies.iter().filter_map(|copy| self.index.pack(copy.pack));
                let going = of_copies.filter(|pack| packs.contains(&pack.id));
                kept.extend(going.map(|pack| (at.pack, Listed::new(id, at), pack.id)));
            }
        })?;
        kept.sort_unstable();
        Ok(kept)
    }

    pub fn index(&self) -> &Index {
        &self.index
    }
}

/// Whether a snapshot was forgotten since it was listed.
fn is_gone(repository: &Repository, snapshot: &Snapshot) -> bool {
    Work::of(snapshot).is_some_and(|work| is_forgotten(repository, &work).unwrap_or(false))
}

fn unreadable(snapshot: &Snapshot, error: RepoError) -> RepoError {
    let id = snapshot.short_id();
    let name = format!("snapshot {id} of {}", snapshot.source);
    let what = format!("nothing is removed while {name} cannot be read whole: {error}");
    RepoError::new(error.kind(), what)
        .with_hint(format!(
            "repair it with `backstay verify --repair`, or give it up with `backstay forget {id}`; \
             then run maintenance again"
        ))
        .with_source(error)
}
