//! Lost trees, written again from the same snapshot in another repository.
//!
//! The id of a node says what it holds, to the last byte. So the list of files is put together from
//! what is left of it here, and for the rest from the other repository, and written again: what
//! comes out as it was has the id it had, and is found under it. Content is read only where nothing
//! here says how it was cut.

use std::collections::{BTreeMap, HashSet};
use std::iter::Peekable;

use super::Healer;
use super::need::Need;
use super::other::{OtherFile, guesses};
use crate::entry::{Body, Entry, EntryKind, FileContent, compare_paths};
use crate::repository::Repository;
use crate::session::{Chunking, Content, ContentError, Reader, Session};
use crate::tree::{Tree, TreeIter};
use crate::{ObjectId, Order, RepoErrorKind, Result, Snapshot};
use backstay_store::failpoint;

/// Snapshots of ours whose lists of files are looked into besides.
const NEIGHBOURS: usize = 2;
/// Snapshots of the other repository that are tried.
const TRIES: usize = 4;

/// Writes trees again that are lost; how many nodes and leaves came out as they were.
pub(super) fn replay(
    healer: &mut Healer<'_>,
    from: &Repository,
    need: &Need,
    damaged: &HashSet<[u8; 16]>,
) -> Result<u64> {
    let theirs = from.snapshots()?;
    let mut wanted: HashSet<ObjectId> =
        need.at_risk.iter().filter(|(_, kind)| kind.is_metadata()).map(|(id, _)| *id).collect();
    let mut healed = 0;
    for number in &need.hurt {
        let Some(ours) = need.snapshots.get(*number) else { continue };
        let guesses = guesses(&theirs, ours).into_iter().take(TRIES);
        // What a file was elsewhere, by its name, size and times, spares reading it; a file of which
        // all these are the same may have other content all the same.
        for (guess, near) in guesses.flat_map(|guess| [(guess, true), (guess, false)]) {
            if wanted.is_empty() {
                return Ok(healed);
            }
            let session = super::salvage::begin(healer, damaged)?;
            let root = match write(healer, &session, from, need, *number, guess, near) {
                Ok(root) => root,
                // The other one is damaged there, or what it says makes no tree.
                Err(error)
                    if error.is_about_an_object() || error.kind() == RepoErrorKind::Usage =>
                {
                    tracing::warn!(%error, snapshot = guess.short_id(), "it is of no help");
                    session.discard()?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let made: Vec<ObjectId> =
                wanted.iter().filter(|id| session.has_stored(id)).copied().collect();
            if made.is_empty() && root != Some(ours.root) {
                // Maintenance removes what it wrote.
                session.discard()?;
                continue;
            }
            session.end_without_snapshot()?;
            failpoint::hit("repair-stored");
            healed += made.len() as u64;
            made.iter().for_each(|id| {
                wanted.remove(id);
            });
            if root == Some(ours.root) {
                break;
            }
        }
    }
    Ok(healed)
}

/// Entries of one tree, as far as they can be read, to be walked along with another.
struct Walk {
    tree: Tree,
    entries: Peekable<TreeIter>,
}

impl Walk {
    fn of(repository: &Repository, snapshot: &Snapshot) -> Result<Self> {
        let tree = repository.tree(snapshot)?;
        let entries = tree.iter_past_damage().peekable();
        Ok(Self { tree, entries })
    }

    /// The next entry that can be read; errors about the store end the work.
    fn peek(&mut self) -> Result<Option<&Entry>> {
        loop {
            match self.entries.peek() {
                None => return Ok(None),
                Some(Ok(_)) => break,
                Some(Err(error)) if error.is_about_an_object() => {
                    self.entries.next();
                }
                Some(Err(_)) => {
                    return match self.entries.next() {
                        Some(Err(error)) => Err(error),
                        _ => Ok(None),
                    };
                }
            }
        }
        Ok(self.entries.peek().and_then(|entry| entry.as_ref().ok()))
    }

    fn take(&mut self) -> Option<Entry> {
        self.entries.next().and_then(Result::ok)
    }

    /// The entry of `path`, for paths that are asked for in order.
    fn find(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        while let Some(entry) = self.peek()? {
            match compare_paths(&entry.path, path) {
                std::cmp::Ordering::Less => drop(self.take()),
                std::cmp::Ordering::Equal => return Ok(Some(entry.clone())),
                std::cmp::Ordering::Greater => break,
            }
        }
        Ok(None)
    }
}

/// The whole list once more: what is left here first, the other repository for what is not.
fn write(
    healer: &Healer<'_>,
    session: &Session,
    from: &Repository,
    need: &Need,
    number: usize,
    guess: &Snapshot,
    look_near: bool,
) -> Result<Option<ObjectId>> {
    let repository = healer.repository;
    let Some(ours) = need.snapshots.get(number) else { return Ok(None) };
    let mut here = Walk::of(repository, ours)?;
    let mut there = Walk::of(from, guess)?;
    let mut near: BTreeMap<i64, Walk> = BTreeMap::new();
    for other in need.snapshots.iter().filter(|_| look_near) {
        if other.id != ours.id && (&other.source, other.kind) == (&ours.source, ours.kind) {
            let away = other.time.as_millisecond() - ours.time.as_millisecond();
            near.insert(away.abs(), Walk::of(repository, other)?);
        }
    }
    let mut near: Vec<Walk> = near.into_values().take(NEIGHBOURS).collect();
    let mut tree = session.tree(Order::Sorted);
    loop {
        healer.progress.check()?;
        let mine = here.peek()?.map(|entry| entry.path.clone());
        let other = there.peek()?.map(|entry| entry.path.clone());
        let path = match (mine, other) {
            (None, None) => break,
            (Some(path), None) | (None, Some(path)) => path,
            (Some(a), Some(b)) => {
                if compare_paths(&a, &b).is_le() {
                    a
                } else {
                    b
                }
            }
        };
        let mine = here.find(&path)?;
        let other = there.find(&path)?;
        let Some(entry) = mine.clone().or_else(|| other.clone()) else { break };
        let EntryKind::File(content) = &entry.kind else {
            tree.entry(entry)?;
            advance(&mut here, &mut there, &path)?;
            continue;
        };
        // How content was cut: as this snapshot says, or one beside it that has the same file.
        let mut known = if mine.is_some() { Some(content.clone()) } else { None };
        if known.is_none() {
            for walk in &mut near {
                if let Some(found) = walk.find(&path)?
                    && found.meta == entry.meta
                    && let EntryKind::File(found) = found.kind
                    && found.size == content.size
                {
                    known = Some(found);
                    break;
                }
            }
        }
        // Through the same gate as others, since groups of small files count it.
        if let Some(FileContent { body: Body::Inline(bytes), .. }) = &known {
            let bytes = bytes.clone();
            tree.file(entry, Box::new(Inline(bytes)), Chunking::ContentDefined)?;
            advance(&mut here, &mut there, &path)?;
            continue;
        }
        let whole = match &known {
            // What is lost of its content is no reason: the tree says the same.
            Some(known) => leaves_are_there(session, known)?,
            None => matches!(content.body, Body::Inline(_)),
        };
        match (whole, known, other.map(|other| other.kind)) {
            (true, Some(known), _) => {
                tree.entry(Entry { kind: EntryKind::File(known), ..entry })?;
            }
            (_, _, Some(EntryKind::File(theirs))) => {
                let chunking = chunking_of(&there.tree, &theirs)?;
                let file = OtherFile::new(from, &there.tree, theirs)?;
                tree.file(entry, Box::new(file), chunking)?;
            }
            (_, known, _) => {
                let content = known.unwrap_or_else(|| content.clone());
                tree.entry(Entry { kind: EntryKind::File(content), ..entry })?;
            }
        }
        advance(&mut here, &mut there, &path)?;
    }
    Ok(tree.finish()?.first())
}

/// Content that was in the tree.
struct Inline(Vec<u8>);

impl Content for Inline {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        Ok(self)
    }
}

impl Reader for Inline {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.as_slice().read_at(offset, buffer)
    }
}

fn advance(here: &mut Walk, there: &mut Walk, path: &[u8]) -> Result<()> {
    for walk in [here, there] {
        if walk.find(path)?.is_some() {
            walk.take();
        }
    }
    Ok(())
}

/// Whether all leaves of a file are in packs that are whole.
fn leaves_are_there(session: &Session, content: &FileContent) -> Result<bool> {
    match &content.body {
        Body::Inline(_) | Body::Extents(_) | Body::Member(_) => Ok(true),
        Body::Leaves(_) => session.has_leaves(content),
    }
}

/// A grid has a hash of each of its cells; nothing else has.
fn chunking_of(tree: &Tree, content: &FileContent) -> Result<Chunking> {
    if let Body::Leaves(leaves) = &content.body
        && let Some(first) = leaves.first()
        && !tree.leaf(&first.id)?.cells.is_empty()
    {
        return Ok(Chunking::Grid);
    }
    Ok(Chunking::ContentDefined)
}
