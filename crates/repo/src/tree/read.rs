//! Going through the tree of a snapshot: entry by entry, to one path, or to the content of a file.
//!
//! A tree with a fallback goes on in another repository where a node cannot be read here. Nodes are
//! cut elsewhere there, so it goes on after the last path and not with the next node.

use std::sync::Arc;

use super::{ExtentLeaf, MAX_HEIGHT, ParsedNode, parse, parse_extents};
use crate::chunks::Chunks;
use crate::entry::{Body, Entry, EntryKind, Extent, FileContent, compare_paths};
use crate::repository::Repository;
use crate::session::CELL;
use crate::{Fallback, Kind, ObjectId, RepoError, RepoErrorKind, Result};

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
            body @ (Body::Extents(_) | Body::Member(_)) => body.extents().to_vec(),
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

    /// Whether two files of this repository hold the same. Pages of a database file may lie in other
    /// chunks; its cells have the same ids all the same.
    pub fn is_same_content(&self, one: &FileContent, other: &FileContent) -> Result<bool> {
        if one == other {
            return Ok(true);
        }
        let (Body::Leaves(a), Body::Leaves(b)) = (&one.body, &other.body) else {
            return Ok(false);
        };
        if one.size != other.size || a.len() != b.len() {
            return Ok(false);
        }
        for (a, b) in a.iter().zip(b).filter(|(a, b)| a != b) {
            let (a, b) = (self.leaf(&a.id)?, self.leaf(&b.id)?);
            if a.cells.is_empty() || a.cells != b.cells {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The ids of the cells of a grid, as far as leaves carry them, by where they begin.
    pub(crate) fn cells(&self, content: &FileContent) -> Result<Vec<(u64, [u8; 16])>> {
        let mut cells = Vec::new();
        if let Body::Leaves(leaves) = &content.body {
            for leaf in leaves {
                let places = (leaf.offset..).step_by(CELL);
                cells.extend(places.zip(self.leaf(&leaf.id)?.cells));
            }
        }
        Ok(cells)
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
                Some(other) if other.may_stand_for(entry.size(), &entry.meta) => {
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
        let chunks = Chunks::new(&self.repository);
        for extent in self.extents(content)? {
            if extent.offset + u64::from(extent.length) <= at {
                continue;
            }
            at = fill(at, extent.offset, &mut write)?;
            let chunk = chunks.get(&extent.chunk)?;
            let bytes = slice(&self.name, &chunk, &extent)?;
            at = write(bytes.get((at - extent.offset) as usize..).unwrap_or_default())?;
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
