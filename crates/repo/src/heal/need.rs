//! What snapshots need that no pack which is whole holds.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::entry::{Body, Entry, EntryKind, Extent, FileContent};
use crate::index::Index;
use crate::repository::Repository;
use crate::tree::{ParsedNode, Tree};
use crate::{Kind, ObjectId, Progress, Result, Snapshot};

/// Other places of the same bytes that are kept in mind.
const PLACES: usize = 4;
/// No tree of ours is deeper.
const MAX_HEIGHT: usize = 16;

/// Where bytes of a chunk lie in a file.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Number of the snapshot.
    pub snapshot: usize,
    pub path: Arc<[u8]>,
    pub offset: u64,
    pub length: u32,
    pub chunk_offset: u32,
}

#[derive(Default)]
pub(super) struct Need {
    pub snapshots: Vec<Snapshot>,
    pub at_risk: HashMap<ObjectId, Kind>,
    /// Of content at risk, where it is used.
    pub pieces: HashMap<ObjectId, Vec<Piece>>,
    /// Numbers of snapshots with trees or leaves at risk.
    pub hurt: BTreeSet<usize>,
    /// Whether something below a node that was met before is at risk.
    nodes: HashMap<ObjectId, bool>,
}

impl Need {
    /// Walks all snapshots, past what cannot be read. Of the packs `damaged` nothing is counted on.
    pub fn of(
        repository: &Repository,
        damaged: &HashSet<[u8; 16]>,
        progress: &Progress,
    ) -> Result<Self> {
        let index = repository.reload_index_avoiding(damaged)?;
        let snapshots = repository.snapshots()?;
        let mut it = Self::default();
        for (number, snapshot) in snapshots.iter().enumerate() {
            let tree = repository.tree(snapshot)?;
            if it.node(&index, &tree, number, snapshot.root, 0, progress)? {
                it.hurt.insert(number);
            }
        }
        it.snapshots = snapshots;
        Ok(it)
    }

    /// Notes a chunk; whether it is at risk.
    fn note(&mut self, index: &Index, kind: Kind, id: &ObjectId) -> bool {
        let at_risk = !index.is_there(id);
        if at_risk {
            self.at_risk.insert(*id, kind);
        }
        at_risk
    }

    fn node(
        &mut self,
        index: &Index,
        tree: &Tree,
        snapshot: usize,
        id: ObjectId,
        depth: usize,
        progress: &Progress,
    ) -> Result<bool> {
        progress.check()?;
        if let Some(known) = self.nodes.get(&id) {
            return Ok(*known);
        }
        let mut hurt = self.note(index, Kind::Tree, &id);
        match tree.node(&id) {
            Ok(ParsedNode::Inner(children)) if depth < MAX_HEIGHT => {
                for (_, child) in children {
                    hurt |= self.node(index, tree, snapshot, child, depth + 1, progress)?;
                }
            }
            Ok(ParsedNode::Inner(_)) => {}
            Ok(ParsedNode::Leaf(entries)) => {
                for entry in &entries {
                    if let EntryKind::File(content) = &entry.kind {
                        hurt |= self.file(index, tree, snapshot, entry, content)?;
                    }
                }
            }
            Err(error) if error.is_about_an_object() => {
                hurt = true;
                self.at_risk.insert(id, Kind::Tree);
            }
            Err(error) => return Err(error),
        }
        self.nodes.insert(id, hurt);
        Ok(hurt)
    }

    fn file(
        &mut self,
        index: &Index,
        tree: &Tree,
        snapshot: usize,
        entry: &Entry,
        content: &FileContent,
    ) -> Result<bool> {
        let mut hurt = false;
        let place = |it: &mut Self, extent: &Extent, offset: u64| {
            if !it.note(index, Kind::Data, &extent.chunk) {
                return;
            }
            let pieces = it.pieces.entry(extent.chunk).or_default();
            let same =
                |p: &&Piece| (p.chunk_offset, p.length) == (extent.chunk_offset, extent.length);
            if pieces.iter().filter(same).count() < PLACES {
                pieces.push(Piece {
                    snapshot,
                    path: entry.path.as_slice().into(),
                    offset,
                    length: extent.length,
                    chunk_offset: extent.chunk_offset,
                });
            }
        };
        match &content.body {
            Body::Inline(_) => {}
            body @ (Body::Extents(_) | Body::Member(_)) => {
                for extent in body.extents() {
                    place(self, extent, extent.offset);
                }
            }
            Body::Leaves(leaves) => {
                for leaf in leaves {
                    hurt |= self.note(index, Kind::Leaf, &leaf.id);
                    let read = match tree.leaf(&leaf.id) {
                        Err(error) if error.is_about_an_object() => {
                            hurt = true;
                            self.at_risk.insert(leaf.id, Kind::Leaf);
                            continue;
                        }
                        read => read?,
                    };
                    for id in read.pages.chunks() {
                        hurt |= self.note(index, Kind::Pages, id);
                    }
                    for extent in &read.extents {
                        place(self, extent, extent.offset.saturating_add(leaf.offset));
                    }
                }
            }
        }
        Ok(hurt)
    }

    /// What the loss of a chunk costs, for people.
    pub fn costs(&self, id: &ObjectId, kind: Kind) -> String {
        match kind {
            Kind::Data => {
                let pieces = self.pieces.get(id).map(Vec::as_slice).unwrap_or_default();
                let Some(first) = pieces.first() else { return "content of a file".into() };
                let of = self.snapshots.get(first.snapshot).map_or("", |s| s.short_id());
                let path = String::from_utf8_lossy(&first.path);
                let others: HashSet<&[u8]> = pieces.iter().map(|p| &*p.path).collect();
                match others.len() {
                    0 | 1 => format!("content of {path} in snapshot {of}"),
                    n => format!("content of {path} and {} more in snapshot {of}", n - 1),
                }
            }
            Kind::Tree => "a part of a list of files".into(),
            Kind::Leaf => "where the content of a large file lies".into(),
            Kind::Pages => "hashes by which a later backup finds changed pages".into(),
        }
    }
}
