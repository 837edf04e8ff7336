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
//! Bounds: a leaf is closed at a boundary from 32 KiB on and at 256 KiB in any case; an inner node
//! from 16 KiB on and at 128 KiB in any case. A leaf of an extent map (class of chunks `Leaf`) is
//! postcard of [`ExtentLeaf`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::entry::{Body, Entry, EntryKind, Extent, FileContent, Metadata, compare_paths};
use crate::repository::Repository;
use crate::{Fallback, Kind, ObjectId, RepoError, RepoErrorKind, Result};

const LEAF: u8 = 0;
const INNER: u8 = 1;
/// One path in this many is a boundary.
const BOUNDARY: u8 = 32;
/// Paths share their beginnings: what a node unfolds to is bounded all the same. Bytes.
const MAX_PATHS: usize = 256 << 20;
/// No tree of ours is deeper: 2^64 entries would fit.
const MAX_HEIGHT: usize = 16;

/// The extents of a region of a file. Offsets count from the region's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExtentLeaf {
    pub extents: Vec<Extent>,
    /// For a grid: the first 16 bytes of each cell's id.
    pub cells: Vec<[u8; 16]>,
    pub pages: PageHashes,
}

/// Eight bytes for each page of a grid's region, by which a later backup finds what changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PageHashes {
    None,
    Inline(Vec<u8>),
    Chunk(ObjectId),
}

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
        if size >= 256 << 10 || (size >= 32 << 10 && self.is_boundary(&entry.path)) {
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
        if size >= 128 << 10 || (size >= 16 << 10 && boundary) {
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

pub(crate) fn encode_leaf(leaf: &ExtentLeaf) -> Vec<u8> {
    postcard::to_extend(leaf, Vec::new()).expect("a vector takes all")
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

pub(crate) fn parse_extents(object: &str, body: &[u8]) -> Result<ExtentLeaf> {
    postcard::from_bytes(body)
        .map_err(|error| RepoError::damaged(object, format!("a leaf: {error}")))
}

/// The tree of a snapshot, for reading.
#[derive(Clone)]
pub struct Tree {
    repository: Repository,
    root: ObjectId,
    /// Names the tree in errors.
    name: Arc<str>,
    /// Where to look for what cannot be read here.
    fallback: Option<Arc<Fallback>>,
}

impl Tree {
    pub(crate) fn new(repository: Repository, root: ObjectId, name: String) -> Self {
        Self { repository, root, name: name.into(), fallback: None }
    }

    /// The same tree; what cannot be read of it is read from other repositories.
    #[must_use]
    pub fn falling_over(self, fallback: Option<Arc<Fallback>>) -> Self {
        Self { fallback, ..self }
    }

    pub(crate) fn node(&self, id: &ObjectId) -> Result<ParsedNode> {
        parse(&self.name, &self.repository.read_chunk(Kind::Tree, id)?)
    }

    /// All entries, in the order of [`compare_paths`].
    pub fn iter(&self) -> TreeIter {
        TreeIter {
            tree: self.clone(),
            entries: Vec::new().into_iter(),
            stack: vec![vec![(Vec::new(), self.root)].into_iter()],
            last: Vec::new(),
            visited: None,
            lenient: false,
            after: None,
            source: 0,
            tried: 0,
            reading: None,
            exhausted: false,
        }
    }

    /// The entries that come after `path`.
    fn iter_after(&self, path: &[u8]) -> TreeIter {
        let after = Some(path.to_vec()).filter(|path| !path.is_empty());
        TreeIter { last: path.to_vec(), after, ..self.iter() }
    }

    /// As [`iter`](Self::iter), but a node that cannot be read is one error, which says where the
    /// entries that it had begin, and what comes after it follows.
    pub(crate) fn iter_past_damage(&self) -> TreeIter {
        TreeIter { lenient: true, ..self.iter() }
    }

    /// As [`iter`](Self::iter), telling `visited` the id of every node on the way.
    pub(crate) fn iter_nodes(&self, visited: impl FnMut(ObjectId) + Send + 'static) -> TreeIter {
        TreeIter { visited: Some(Box::new(visited)), ..self.iter() }
    }

    /// The entry of exactly this path.
    pub fn get(&self, path: &[u8]) -> Result<Option<Entry>> {
        Ok(self.get_from(path)?.map(|(_, entry)| entry))
    }

    /// The same, and which repository it is from: 0 is this one, the others are those of the fallback.
    pub(crate) fn get_from(&self, path: &[u8]) -> Result<Option<(usize, Entry)>> {
        let error = match self.get_here(path) {
            Err(error) if Fallback::helps_with(&error) => error,
            found => return Ok(found?.map(|entry| (0, entry))),
        };
        let Some(fallback) = &self.fallback else { return Err(error) };
        fallback.lacks(0, "a node of the tree", &error);
        for source in 1..=fallback.siblings().len() {
            match fallback.tree_of(source).map(|tree| tree.get_here(path)) {
                Some(Ok(found)) => return Ok(found.map(|entry| (source, entry))),
                Some(Err(error)) => fallback.lacks(source, "a node of the tree", &error),
                None => {}
            }
        }
        Err(error)
    }

    fn get_here(&self, path: &[u8]) -> Result<Option<Entry>> {
        let mut id = self.root;
        for _ in 0..MAX_HEIGHT {
            match self.node(&id)? {
                ParsedNode::Leaf(entries) => {
                    let at = entries.binary_search_by(|e| compare_paths(&e.path, path));
                    return Ok(at.ok().and_then(|at| entries.into_iter().nth(at)));
                }
                ParsedNode::Inner(children) => {
                    let after =
                        children.partition_point(|(first, _)| compare_paths(first, path).is_le());
                    match after.checked_sub(1).and_then(|at| children.get(at)) {
                        Some((_, child)) => id = *child,
                        None => return Ok(None),
                    }
                }
            }
        }
        Err(RepoError::damaged(&self.name, "its tree is too deep"))
    }

    /// The extents of a file with absolute offsets; empty for inline content.
    pub(crate) fn extents(&self, content: &FileContent) -> Result<Vec<Extent>> {
        match self.extents_past_damage(content)? {
            (_, Some(error)) => Err(error),
            (extents, None) => Ok(extents),
        }
    }

    /// The extents that can be known, and why there may be others.
    pub(crate) fn extents_past_damage(
        &self,
        content: &FileContent,
    ) -> Result<(Vec<Extent>, Option<RepoError>)> {
        let outside = || RepoError::damaged(&self.name, "an extent lies outside of its file");
        let mut damage = None;
        let extents = match &content.body {
            Body::Inline(_) => Vec::new(),
            Body::Extents(extents) => extents.clone(),
            Body::Leaves(leaves) => {
                let mut all = Vec::new();
                for leaf in leaves {
                    let read = match self.leaf(&leaf.id) {
                        Err(error) if error.is_about_an_object() => {
                            damage.get_or_insert(error);
                            continue;
                        }
                        leaf => leaf?,
                    };
                    for extent in read.extents {
                        let offset = extent.offset.checked_add(leaf.offset).ok_or_else(outside)?;
                        all.push(Extent { offset, ..extent });
                    }
                }
                all
            }
        };
        let mut end = 0;
        for extent in &extents {
            let stop = extent.offset.checked_add(u64::from(extent.length));
            if extent.offset < end || stop.is_none_or(|stop| stop > content.size) {
                return Err(outside());
            }
            end = extent.offset + u64::from(extent.length);
        }
        Ok((extents, damage))
    }

    pub(crate) fn leaf(&self, id: &ObjectId) -> Result<ExtentLeaf> {
        parse_extents(&self.name, &self.repository.read_chunk(Kind::Leaf, id)?)
    }

    /// Writes the content of a file; returns its size. Bytes.
    pub fn read_file(&self, entry: &Entry, out: &mut dyn std::io::Write) -> Result<u64> {
        let mut written = 0;
        let error = match self.read_from(entry, out, &mut written) {
            Err(error) if Fallback::helps_with(&error) => error,
            done => return done,
        };
        let Some(fallback) = &self.fallback else { return Err(error) };
        fallback.lacks(0, &entry.display_path(), &error);
        for source in 1..=fallback.siblings().len() {
            let Some(tree) = fallback.tree_of(source) else { continue };
            let begun = written;
            let read = tree.get_here(&entry.path).and_then(|other| match other {
                Some(other) if other.size() == entry.size() => {
                    tree.read_from(&other, out, &mut written).map(Some)
                }
                _ => Ok(None),
            });
            if written > begun {
                fallback.supplied(source, 1, written - begun);
            }
            match read {
                Ok(Some(size)) => return Ok(size),
                Ok(None) => {}
                Err(error) if Fallback::helps_with(&error) => {
                    fallback.lacks(source, &entry.display_path(), &error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(error)
    }

    /// Writes what comes after the first `written` bytes of a file, and counts on.
    fn read_from(
        &self,
        entry: &Entry,
        out: &mut dyn std::io::Write,
        written: &mut u64,
    ) -> Result<u64> {
        let EntryKind::File(content) = &entry.kind else {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("{} is not a file", entry.display_path()),
            ));
        };
        let mut write = |bytes: &[u8]| {
            out.write_all(bytes)
                .map_err(|error| RepoError::io("write", entry.display_path(), error))?;
            *written += bytes.len() as u64;
            Ok::<_, RepoError>(*written)
        };
        let mut at = write(&[])?;
        if let Body::Inline(bytes) = &content.body {
            write(usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default())?;
            return Ok(bytes.len() as u64);
        }
        let zeros = [0; 64 << 10];
        let fill = |mut at: u64, to: u64, write: &mut dyn FnMut(&[u8]) -> Result<u64>| {
            while at < to {
                let step = (to - at).min(zeros.len() as u64);
                at = write(&zeros[..step as usize])?;
            }
            Ok::<_, RepoError>(at)
        };
        let mut last: Option<(ObjectId, Vec<u8>)> = None;
        for extent in self.extents(content)? {
            if extent.offset + u64::from(extent.length) <= at {
                continue;
            }
            at = fill(at, extent.offset, &mut write)?;
            let chunk = match last.take() {
                Some((id, chunk)) if id == extent.chunk => chunk,
                _ => self.repository.read_chunk(Kind::Data, &extent.chunk)?,
            };
            let bytes = slice(&self.name, &chunk, &extent)?;
            at = write(bytes.get((at - extent.offset) as usize..).unwrap_or_default())?;
            last = Some((extent.chunk, chunk));
        }
        fill(at, content.size, &mut write)?;
        Ok(content.size)
    }
}

/// The bytes of an extent in its chunk.
pub(crate) fn slice<'c>(object: &str, chunk: &'c [u8], extent: &Extent) -> Result<&'c [u8]> {
    let start = extent.chunk_offset as usize;
    start
        .checked_add(extent.length as usize)
        .and_then(|end| chunk.get(start..end))
        .ok_or_else(|| RepoError::damaged(object, "an extent lies outside of its chunk"))
}

/// Entries of a tree, in order.
pub struct TreeIter {
    tree: Tree,
    entries: std::vec::IntoIter<Entry>,
    /// Nodes still to be read, and the first path of each.
    stack: Vec<std::vec::IntoIter<(Vec<u8>, ObjectId)>>,
    /// The path before: the order holds across nodes too, or a path could come back later as
    /// something else.
    last: Vec<u8>,
    visited: Option<Box<dyn FnMut(ObjectId) + Send>>,
    lenient: bool,
    /// Entries up to this path are left out: they came from another repository.
    after: Option<Vec<u8>>,
    /// Which repository is read: 0 is that of `tree`, the others are those of its fallback.
    source: usize,
    /// How many were tried since the last entry.
    tried: usize,
    /// The tree of another repository, while it is read.
    reading: Option<Tree>,
    /// Nobody could go on from somewhere: the rest is what the tree's own repository has.
    exhausted: bool,
}

impl TreeIter {
    /// Which repository the last entry is from: 0 is the tree's own, 1 the first of its fallback.
    pub(crate) fn source(&self) -> usize {
        self.source
    }

    /// Goes on in the next repository after the last entry that was read.
    fn fall_over(&mut self, error: RepoError) -> Option<Result<Entry>> {
        let Some(fallback) = self.tree.fallback.clone() else { return Some(Err(error)) };
        if !Fallback::helps_with(&error) {
            return Some(Err(error));
        }
        fallback.lacks(self.source, "a node of the tree", &error);
        let sources = fallback.siblings().len() + 1;
        while self.tried < sources {
            self.tried += 1;
            self.source = (self.source + 1) % sources;
            let tree = match self.source {
                0 => Some(Tree { fallback: None, ..self.tree.clone() }),
                source => fallback.tree_of(source),
            };
            let Some(tree) = tree else { continue };
            let mut other = tree.iter_after(&self.last);
            match other.next() {
                Some(Err(error)) if Fallback::helps_with(&error) => {
                    fallback.lacks(self.source, "a node of the tree", &error);
                }
                None => {
                    self.stack.clear();
                    return None;
                }
                Some(first) => {
                    self.reading = Some(tree);
                    (self.stack, self.entries, self.after) =
                        (other.stack, other.entries, other.after);
                    self.tried = 0;
                    if let Ok(first) = &first {
                        self.last.clone_from(&first.path);
                    }
                    return Some(first);
                }
            }
        }
        // Nobody has it. What comes after it in this repository is all that is left.
        self.stack.clear();
        self.entries = Vec::new().into_iter();
        if self.lenient {
            let first = Tree { fallback: None, ..self.tree.clone() };
            let rest = TreeIter { lenient: true, ..first.iter_after(&self.last) };
            (self.stack, self.entries, self.after) = (rest.stack, rest.entries, rest.after);
            (self.source, self.reading) = (0, None);
            self.exhausted = true;
            return self.next();
        }
        Some(Err(error))
    }
}

impl Iterator for TreeIter {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.entries.next() {
                if let Some(after) = &self.after {
                    if compare_paths(&entry.path, after).is_le() {
                        continue;
                    }
                    self.after = None;
                }
                if compare_paths(&self.last, &entry.path).is_ge() {
                    self.stack.clear();
                    self.entries = Vec::new().into_iter();
                    let what = "its nodes are out of order";
                    return Some(Err(RepoError::damaged(&self.tree.name, what)));
                }
                self.last.clone_from(&entry.path);
                return Some(Ok(entry));
            }
            let (first, id) = loop {
                match self.stack.last_mut()?.next() {
                    Some(node) => break node,
                    None => self.stack.pop(),
                };
            };
            if let Some(visited) = &mut self.visited {
                visited(id);
            }
            match self.reading.as_ref().unwrap_or(&self.tree).node(&id) {
                Ok(ParsedNode::Leaf(entries)) => self.entries = entries.into_iter(),
                Ok(ParsedNode::Inner(mut children)) => {
                    if let Some(after) = &self.after {
                        let before =
                            |(first, _): &(Vec<u8>, _)| compare_paths(first, after).is_le();
                        let passed = children.partition_point(before);
                        children.drain(..passed.saturating_sub(1));
                    }
                    if self.stack.len() >= MAX_HEIGHT {
                        self.stack.clear();
                        let name = self.tree.name.clone();
                        return Some(Err(RepoError::damaged(&name, "its tree is too deep")));
                    }
                    self.stack.push(children.into_iter());
                }
                Err(error) if self.tree.fallback.is_some() && !self.exhausted => {
                    return self.fall_over(error);
                }
                Err(error) if self.lenient && error.is_about_an_object() => {
                    let first = String::from_utf8_lossy(&first).into_owned();
                    return Some(Err(error.about_entries_from(&first)));
                }
                Err(error) => {
                    self.stack.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}
