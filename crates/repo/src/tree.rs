//! Trees: all entries of a source as one sorted list, cut into nodes.
//!
//! The list is ordered by [`compare_paths`] and cut where a keyed hash of a path says so, so that
//! an inserted, changed or removed file rewrites one node and its ancestors, whatever the shape of
//! the directories. Inner nodes list the first path and the id of each node below.
//!
//! ```text
//! leaf   0 ‖ postcard of (length shared with the previous path, rest of the path, metadata, kind) …
//! inner  1 ‖ postcard of (first path, id of the node) …
//! ```
//!
//! Bounds: a leaf is closed at a boundary from 8 KiB on and at 256 KiB in any case; an inner node
//! from 4 KiB on and at 128 KiB in any case. Who reads relies on none of that: the first programs
//! made nodes four times as large.
//!
//! Here trees are written and nodes parsed; `read` goes through them, `leaf` is about leaves of extent
//! maps, `hashes` about the page hashes that they name.

mod hashes;
mod leaf;
mod read;

use std::ops::Range;

use serde::Serialize;

use crate::entry::{Entry, EntryKind, Metadata, compare_paths};
use crate::{Kind, ObjectId, RepoError, RepoErrorKind, Result};
pub(crate) use hashes::{PageHash, encode_change, parse_base, parse_change};
pub(crate) use leaf::{ExtentLeaf, Mapped, PageHashes, encode_leaf, parse_extents};
pub(crate) use read::slice;
pub use read::{Tree, TreeIter};

const LEAF: u8 = 0;
const INNER: u8 = 1;
/// One path in this many is a boundary.
const BOUNDARY: u8 = 16;
/// A node may end from here on, and ends there in any case. Bytes.
const LEAF_SIZES: Range<usize> = 8 << 10..256 << 10;
const INNER_SIZES: Range<usize> = 4 << 10..128 << 10;
/// Paths share their beginnings: what a node unfolds to is bounded all the same. Bytes.
const MAX_PATHS: usize = 256 << 20;
/// No tree of ours is deeper: 2^64 entries would fit.
const MAX_HEIGHT: usize = 16;

/// Something that keeps chunks.
pub(crate) trait ChunkSink {
    fn store(&mut self, kind: Kind, content: &[u8]) -> Result<ObjectId>;
}

/// Builds a tree from entries that come in order.
pub(crate) struct TreeBuilder {
    boundary_key: [u8; 32],
    leaf: Node,
    inner: Vec<Node>,
    last: Vec<u8>,
    entries: u64,
}

#[derive(Default)]
struct Node {
    body: Vec<u8>,
    first: Vec<u8>,
    count: usize,
}

impl TreeBuilder {
    pub fn new(boundary_key: [u8; 32]) -> Self {
        Self {
            boundary_key,
            leaf: Node::default(),
            inner: Vec::new(),
            last: Vec::new(),
            entries: 0,
        }
    }

    pub fn push(&mut self, entry: &Entry, sink: &mut dyn ChunkSink) -> Result<()> {
        check_paths(&entry.path, &entry.kind)?;
        if self.entries > 0 && compare_paths(&self.last, &entry.path).is_ge() {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("{} does not come after the entry before it", entry.display_path()),
            ));
        }
        let shared = if self.leaf.count == 0 {
            0
        } else {
            self.last.iter().zip(&entry.path).take_while(|(a, b)| a == b).count()
        };
        if self.leaf.count == 0 {
            self.leaf.first.clone_from(&entry.path);
            self.leaf.body.clear();
            self.leaf.body.push(LEAF);
        }
        let rest = BytesRef(entry.path.get(shared..).unwrap_or_default());
        append(&mut self.leaf.body, &(shared as u32, rest, &entry.meta, &entry.kind));
        self.leaf.count += 1;
        self.entries += 1;
        self.last.clone_from(&entry.path);
        let size = self.leaf.body.len();
        if size >= LEAF_SIZES.end || (size >= LEAF_SIZES.start && self.is_boundary(&entry.path)) {
            self.close_leaf(sink)?;
        }
        Ok(())
    }

    fn is_boundary(&self, path: &[u8]) -> bool {
        blake3::keyed_hash(&self.boundary_key, path).as_bytes()[0].is_multiple_of(BOUNDARY)
    }

    fn close_leaf(&mut self, sink: &mut dyn ChunkSink) -> Result<()> {
        let id = sink.store(Kind::Tree, &self.leaf.body)?;
        let first = std::mem::take(&mut self.leaf.first);
        self.leaf.count = 0;
        self.push_inner(0, first, id, sink)
    }

    fn push_inner(
        &mut self,
        level: usize,
        first: Vec<u8>,
        id: ObjectId,
        sink: &mut dyn ChunkSink,
    ) -> Result<()> {
        if self.inner.len() <= level {
            self.inner.push(Node::default());
        }
        let boundary = self.is_boundary(&first);
        let node = &mut self.inner[level];
        if node.count == 0 {
            node.body.clear();
            node.body.push(INNER);
            node.first.clone_from(&first);
        }
        append(&mut node.body, &(BytesRef(&first), id));
        node.count += 1;
        let size = node.body.len();
        if size >= INNER_SIZES.end || (size >= INNER_SIZES.start && boundary) {
            self.close_inner(level, sink)?;
        }
        Ok(())
    }

    fn close_inner(&mut self, level: usize, sink: &mut dyn ChunkSink) -> Result<()> {
        let node = &mut self.inner[level];
        let id = sink.store(Kind::Tree, &node.body)?;
        let first = std::mem::take(&mut node.first);
        node.count = 0;
        self.push_inner(level + 1, first, id, sink)
    }

    /// The id of the root.
    pub fn finish(mut self, sink: &mut dyn ChunkSink) -> Result<ObjectId> {
        if self.leaf.count > 0 {
            self.close_leaf(sink)?;
        }
        if self.inner.is_empty() {
            return sink.store(Kind::Tree, &[LEAF]);
        }
        let mut level = 0;
        loop {
            // A level with a single child and nothing above is no level: the child is the root.
            let top = level + 1 == self.inner.len();
            if top && self.inner[level].count == 1 {
                let children = parse_inner("the tree being written", &self.inner[level].body[1..])?;
                return Ok(children[0].1);
            }
            if self.inner[level].count > 0 {
                self.close_inner(level, sink)?;
            }
            level += 1;
        }
    }
}

/// Serialises as one run of bytes.
struct BytesRef<'b>(&'b [u8]);

impl Serialize for BytesRef<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

fn append<T: Serialize>(body: &mut Vec<u8>, value: &T) {
    // `to_extend` takes the vector by value.
    *body = postcard::to_extend(value, std::mem::take(body)).expect("a vector takes all");
}

/// Paths in a tree name something below its root and nothing else.
pub(crate) fn check_path(path: &[u8]) -> Result<()> {
    let fine = !path.is_empty()
        && !path.contains(&0)
        && path.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
    if fine {
        return Ok(());
    }
    Err(RepoError::new(
        RepoErrorKind::Damaged,
        format!("{:?} is no path of a tree", String::from_utf8_lossy(path)),
    ))
}

/// A second name must not lead out of the tree any more than the first.
fn check_paths(path: &[u8], kind: &EntryKind) -> Result<()> {
    check_path(path)?;
    match kind {
        EntryKind::Hardlink { to } => check_path(to),
        _ => Ok(()),
    }
}

type Children = Vec<(Vec<u8>, ObjectId)>;

fn parse_inner(object: &str, mut body: &[u8]) -> Result<Children> {
    let mut children = Vec::new();
    while !body.is_empty() {
        let ((first, id), rest): ((&[u8], ObjectId), _) = postcard::take_from_bytes(body)
            .map_err(|error| RepoError::damaged(object, format!("an inner node: {error}")))?;
        children.push((first.to_vec(), id));
        body = rest;
    }
    Ok(children)
}

fn parse_leaf(object: &str, mut body: &[u8]) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut length = 0;
    while !body.is_empty() {
        type Wire<'a> = (u32, &'a [u8], Metadata, EntryKind);
        let ((shared, rest_of_path, meta, kind), rest): (Wire<'_>, _) =
            postcard::take_from_bytes(body)
                .map_err(|error| RepoError::damaged(object, format!("a node: {error}")))?;
        let before = entries.last().map_or(&[][..], |e| &e.path);
        let shared = before
            .get(..shared as usize)
            .ok_or_else(|| RepoError::damaged(object, "a path shares more than there is"))?;
        length += shared.len() + rest_of_path.len();
        if length > MAX_PATHS {
            return Err(RepoError::damaged(object, "the paths of a node are longer than any are"));
        }
        let path = [shared, rest_of_path].concat();
        check_paths(&path, &kind)?;
        if let Some(before) = entries.last()
            && compare_paths(&before.path, &path).is_ge()
        {
            return Err(RepoError::damaged(object, "its entries are out of order"));
        }
        entries.push(Entry { path, meta, kind });
        body = rest;
    }
    Ok(entries)
}

pub(crate) enum ParsedNode {
    Leaf(Vec<Entry>),
    Inner(Children),
}

fn parse(object: &str, body: &[u8]) -> Result<ParsedNode> {
    match body.split_first() {
        Some((&LEAF, body)) => Ok(ParsedNode::Leaf(parse_leaf(object, body)?)),
        Some((&INNER, body)) => Ok(ParsedNode::Inner(parse_inner(object, body)?)),
        _ => Err(RepoError::damaged(object, "a node of its tree is of an unknown kind")),
    }
}

/// For [`internals`](crate::internals).
pub(crate) fn parse_node(object: &str, body: &[u8]) -> Option<Vec<Entry>> {
    match parse(object, body).ok()? {
        ParsedNode::Leaf(entries) => Some(entries),
        ParsedNode::Inner(_) => Some(Vec::new()),
    }
}
