//! Looking around in snapshots: one path, one directory, some bytes of one file at a time.
//!
//! What lives here: finding entries by the order of the tree without reading all of it
//! ([`View`]), reading ranges of files through a bounded cache of opened chunks with read-ahead
//! ([`FileReader`]), and counting hard links. What does not: restoring, which reads everything in
//! the order of packs and is faster at that.
//!
//! Nodes and chunks are named by their content, so the caches serve all snapshots at once.

mod cache;
mod children;
mod file;
mod links;

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};

use crate::entry::{Body, Entry, EntryKind, Extent, Metadata};
use crate::session::workers;
use crate::tree::ParsedNode;
use crate::{Kind, ObjectId, RepoError, Repository, Result, Snapshot, Tree};
pub(crate) use cache::Cache;
pub use children::Children;
use children::Goal;
pub use file::FileReader;
use links::{LeafLinks, Links};

/// Chunks that wait to be read ahead. More are not asked for.
const WAITING: usize = 64;
/// No tree of ours is deeper: 2^64 entries would fit.
const MAX_HEIGHT: usize = 16;

/// How much memory looking around may take.
#[derive(Debug, Clone, Copy)]
pub struct BrowseOptions {
    /// For opened chunks. Bytes.
    pub chunks: usize,
    /// For nodes of trees and of extent maps. Bytes.
    pub nodes: usize,
    /// Threads that read ahead. 0: one for each core, four at least.
    pub readers: usize,
}

impl Default for BrowseOptions {
    fn default() -> Self {
        Self { chunks: 64 << 20, nodes: 32 << 20, readers: 0 }
    }
}

/// The way into all snapshots of a repository. Cheap to clone; safe to use from any thread.
#[derive(Clone)]
pub struct Browser {
    core: Arc<Core>,
    /// Chunks to be read ahead; the threads end when the last sender is gone.
    ahead: Sender<ObjectId>,
    _stop: Arc<Stop>,
}

/// What all views and open files share.
struct Core {
    repository: Repository,
    chunks: Cache<Vec<u8>>,
    nodes: Cache<ParsedNode>,
    leaves: Cache<Vec<Extent>>,
    links: Mutex<LeafLinks>,
    stopped: AtomicBool,
}

/// Ends background work with the last handle.
struct Stop(Arc<Core>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stopped.store(true, Relaxed);
    }
}

impl Browser {
    pub fn new(repository: Repository, options: BrowseOptions) -> Self {
        let core = Arc::new(Core {
            repository,
            chunks: Cache::new(options.chunks),
            nodes: Cache::new(options.nodes),
            leaves: Cache::new(options.nodes / 4),
            links: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let (ahead, wanted) = crossbeam_channel::bounded::<ObjectId>(WAITING);
        let readers = if options.readers == 0 { workers(0).max(4) } else { options.readers };
        for number in 0..readers {
            let (core, wanted): (_, Receiver<ObjectId>) = (core.clone(), wanted.clone());
            let reader = std::thread::Builder::new().name(format!("read-ahead-{number}"));
            // Without threads nothing is read ahead, and all else works.
            let started = reader.spawn(move || {
                for chunk in wanted {
                    // Whoever wants the chunk itself meets the same error, and tells it.
                    let _ = core.chunk(&chunk);
                }
            });
            if let Err(error) = started {
                tracing::warn!(%error, "a thread that reads ahead could not be started");
            }
        }
        let _stop = Arc::new(Stop(core.clone()));
        Self { core, ahead, _stop }
    }

    pub fn repository(&self) -> &Repository {
        &self.core.repository
    }

    /// The files of a snapshot. Reads nothing yet.
    pub fn view(&self, snapshot: &Snapshot) -> Result<View> {
        let tree = self.core.repository.tree(snapshot)?;
        Ok(View {
            browser: self.clone(),
            name: format!("the tree of snapshot {}", snapshot.short_id()).into(),
            root: snapshot.root,
            tree,
            links: Arc::default(),
        })
    }
}

impl Core {
    fn chunk(&self, id: &ObjectId) -> Result<Arc<Vec<u8>>> {
        self.chunks.get(id, || {
            let chunk = self.repository.read_chunk(Kind::Data, id)?;
            let size = chunk.len();
            Ok((chunk, size))
        })
    }

    fn node(&self, tree: &Tree, id: &ObjectId) -> Result<Arc<ParsedNode>> {
        self.nodes.get(id, || {
            let node = tree.node(id)?;
            let size = size_of_node(&node);
            Ok((node, size))
        })
    }

    /// The extents of a leaf, with offsets that count from its region.
    fn leaf(&self, tree: &Tree, id: &ObjectId) -> Result<Arc<Vec<Extent>>> {
        self.leaves.get(id, || {
            let extents = tree.leaf(id)?.extents;
            let size = extents.len() * size_of::<Extent>();
            Ok((extents, size))
        })
    }
}

/// What each piece of memory costs besides its bytes, about. Bytes.
const PIECE: usize = 24;

/// What a node takes in memory, about. Bytes.
fn size_of_node(node: &ParsedNode) -> usize {
    match node {
        ParsedNode::Inner(children) => children
            .iter()
            .map(|(first, _)| size_of::<(Vec<u8>, ObjectId)>() + first.len() + PIECE)
            .sum(),
        ParsedNode::Leaf(entries) => entries.iter().map(size_of_entry).sum(),
    }
}

fn size_of_entry(entry: &Entry) -> usize {
    let attributes = entry.meta.xattrs.iter().map(|(name, value)| 100 + name.len() + value.len());
    let kind = match &entry.kind {
        EntryKind::File(content) => match &content.body {
            Body::Inline(bytes) => bytes.len(),
            Body::Extents(_) | Body::Member(_) => size_of_val(content.body.extents()),
            Body::Leaves(leaves) => leaves.len() * 40,
        },
        EntryKind::Symlink { target } => target.len(),
        EntryKind::Hardlink { to } => to.len(),
        _ => 0,
    };
    let strings = entry.path.len() + entry.meta.user.len() + entry.meta.group.len() + kind;
    size_of::<Entry>() + strings + 4 * PIECE + attributes.sum::<usize>()
}

/// The files of one snapshot.
#[derive(Clone)]
pub struct View {
    browser: Browser,
    tree: Tree,
    root: ObjectId,
    /// Names the tree in errors.
    name: Arc<str>,
    links: Arc<Links>,
}

/// An entry, kept where it was read.
#[derive(Clone)]
pub struct EntryRef(Kept);

#[derive(Clone)]
enum Kept {
    InNode(Arc<ParsedNode>, usize),
    Alone(Arc<Entry>),
}

impl EntryRef {
    /// A directory that leads to an entry and has none of its own.
    fn implied(path: &[u8]) -> Self {
        let meta = Metadata { mode: 0o755, ..Metadata::default() };
        Self(Kept::Alone(Arc::new(Entry { path: path.to_vec(), meta, kind: EntryKind::Directory })))
    }

    fn in_node(node: &Arc<ParsedNode>, at: usize) -> Option<Self> {
        match &**node {
            ParsedNode::Leaf(entries) if at < entries.len() => {
                Some(Self(Kept::InNode(node.clone(), at)))
            }
            _ => None,
        }
    }
}

impl Deref for EntryRef {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        match &self.0 {
            Kept::Alone(entry) => entry,
            Kept::InNode(node, at) => match &**node {
                ParsedNode::Leaf(entries) => &entries[*at],
                ParsedNode::Inner(_) => unreachable!("made by in_node alone"),
            },
        }
    }
}

/// Whether a path lies somewhere below `above`; the root is above everything.
fn is_below(path: &[u8], above: &[u8]) -> bool {
    above.is_empty() || path.strip_prefix(above).is_some_and(|rest| rest.first() == Some(&b'/'))
}

impl View {
    /// The entry of exactly this path. A directory that only leads to others counts.
    pub fn get(&self, path: &[u8]) -> Result<Option<EntryRef>> {
        let mut at = children::Cursor::new(self);
        at.seek(Goal::At(path));
        Ok(match at.current().transpose()? {
            Some(entry) if entry.path == path => Some(entry),
            Some(entry) if is_below(&entry.path, path) => Some(EntryRef::implied(path)),
            _ => None,
        })
    }

    /// The file that a second name stands for; every other entry stands for itself.
    pub fn holder(&self, entry: EntryRef) -> Result<EntryRef> {
        let EntryKind::Hardlink { to } = &entry.kind else { return Ok(entry) };
        self.get(to)?.filter(|first| !matches!(first.kind, EntryKind::Hardlink { .. })).ok_or_else(
            || {
                let what = format!("{} is another name of nothing", entry.display_path());
                RepoError::damaged(&self.name, what)
            },
        )
    }

    /// What is right below a directory, in the order of names; the root is the empty path. With
    /// `after`, what follows that name. A node that cannot be read is one error, and what comes
    /// after it follows.
    pub fn children(&self, directory: &[u8], after: Option<&[u8]>) -> Children {
        Children::new(self, directory, after)
    }

    /// How many names the file of this path has. Counted in the background by reading the whole
    /// tree once; asked before that is done, it waits, for some seconds at most for each snapshot.
    /// Nothing while it is not known.
    pub fn links(&self, path: &[u8]) -> Option<u32> {
        self.links.of(self, path)
    }

    /// Opens a file for reading.
    pub fn open(&self, entry: &EntryRef) -> Result<FileReader> {
        FileReader::open(self, entry)
    }
}
