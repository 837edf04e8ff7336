//! Moving through a tree by its order: to a path, and from one entry of a directory to the next
//! past all that is below it.

use std::sync::Arc;

use super::{EntryRef, MAX_HEIGHT, View, is_below};
use crate::entry::compare_paths;
use crate::tree::ParsedNode;
use crate::{ObjectId, RepoError, Result};

/// Nodes of one directory that may be damaged before its listing ends.
const FAILURES: u32 = 4096;

/// A place that is looked for. In the order of the tree, all that comes before it comes first.
#[derive(Clone, Copy)]
pub(super) enum Goal<'g> {
    /// This path, or what comes next.
    At(&'g [u8]),
    /// The first path of which this does not hold.
    Past(&'g dyn Fn(&[u8]) -> bool),
}

impl Goal<'_> {
    fn is_after(self, path: &[u8]) -> bool {
        match self {
            Self::At(goal) => compare_paths(path, goal).is_lt(),
            Self::Past(behind) => behind(path),
        }
    }

    /// Whether it may be in a node that begins with `first`, and not in the one before.
    fn reaches(self, first: &[u8]) -> bool {
        match self {
            Self::At(goal) => compare_paths(first, goal).is_le(),
            Self::Past(behind) => behind(first),
        }
    }
}

/// A place in a tree: at an entry, or at the end.
pub(super) struct Cursor {
    view: View,
    /// The nodes from the root down, and where in each.
    stack: Vec<(Arc<ParsedNode>, usize)>,
    /// What could not be read on the way here.
    error: Option<RepoError>,
}

impl Cursor {
    pub fn new(view: &View) -> Self {
        Self { view: view.clone(), stack: Vec::new(), error: None }
    }

    /// Goes to the first entry that does not come before the goal.
    pub fn seek(&mut self, goal: Goal<'_>) {
        // Mostly it is close by.
        if let Some((node, at)) = self.stack.last_mut()
            && let ParsedNode::Leaf(entries) = &**node
            && let Some(rest) = entries.get(*at..)
            && rest.last().is_some_and(|last| !goal.is_after(&last.path))
        {
            *at += rest.partition_point(|entry| goal.is_after(&entry.path));
            return;
        }
        self.stack.clear();
        self.enter(self.view.root, Some(goal));
        self.settle(Some(goal));
    }

    /// Goes to the next entry.
    fn step(&mut self) {
        self.pass();
        self.settle(None);
    }

    /// Goes on in the node that is on top.
    fn pass(&mut self) {
        if let Some((_, at)) = self.stack.last_mut() {
            *at += 1;
        }
    }

    /// The entry here; nothing at the end. An error stood in the way of those that would have come
    /// before it.
    pub fn current(&mut self) -> Option<Result<EntryRef>> {
        if let Some(error) = self.error.take() {
            return Some(Err(error));
        }
        let (node, at) = self.stack.last()?;
        EntryRef::in_node(node, *at).map(Ok)
    }

    fn path(&self) -> Option<&[u8]> {
        match self.stack.last() {
            Some((node, at)) => match &**node {
                ParsedNode::Leaf(entries) => entries.get(*at).map(|entry| &*entry.path),
                ParsedNode::Inner(_) => None,
            },
            None => None,
        }
    }

    /// Opens a node and finds the place in it; one that cannot be read is passed.
    fn enter(&mut self, id: ObjectId, goal: Option<Goal<'_>>) {
        if self.stack.len() >= MAX_HEIGHT {
            self.stack.clear();
            self.error = Some(RepoError::damaged(&self.view.name, "its tree is too deep"));
            return;
        }
        let node = match self.view.browser.core.node(&self.view.tree, &id) {
            Ok(node) => node,
            Err(error) => {
                // Where the store does not answer, nothing further on will be read either.
                if !error.is_about_an_object() {
                    self.stack.clear();
                }
                self.error.get_or_insert(error);
                self.pass();
                return;
            }
        };
        let at = match (&*node, goal) {
            (_, None) => 0,
            (ParsedNode::Leaf(entries), Some(goal)) => {
                entries.partition_point(|entry| goal.is_after(&entry.path))
            }
            // The last child that begins before the place may reach beyond it.
            (ParsedNode::Inner(children), Some(goal)) => {
                children.partition_point(|(first, _)| goal.reaches(first)).saturating_sub(1)
            }
        };
        self.stack.push((node, at));
    }

    /// Goes down and on from the top of the stack until it is at an entry.
    fn settle(&mut self, goal: Option<Goal<'_>>) {
        while let Some((node, at)) = self.stack.last() {
            let child = match &**node {
                ParsedNode::Leaf(entries) if *at < entries.len() => return,
                ParsedNode::Leaf(_) => None,
                ParsedNode::Inner(children) => children.get(*at).map(|(_, id)| *id),
            };
            match child {
                Some(id) => self.enter(id, goal),
                None => {
                    self.stack.pop();
                    self.pass();
                }
            }
        }
    }
}

/// What is right below a directory, in the order of names.
pub struct Children {
    cursor: Cursor,
    directory: Vec<u8>,
    /// The path that was given out last: it and all below it are behind.
    last: Option<Vec<u8>>,
    /// Whether the cursor is at what was given out last.
    at_last: bool,
    failures: u32,
    ended: bool,
}

impl Children {
    pub(super) fn new(view: &View, directory: &[u8], after: Option<&[u8]>) -> Self {
        let last = after.map(|name| match directory {
            b"" => name.to_vec(),
            _ => [directory, b"/", name].concat(),
        });
        Self {
            cursor: Cursor::new(view),
            directory: directory.to_vec(),
            last,
            at_last: false,
            failures: 0,
            ended: false,
        }
    }

    fn go_on(&mut self) {
        let Some(last) = &self.last else {
            let directory = &self.directory;
            return self.cursor.seek(Goal::Past(&|path| compare_paths(path, directory).is_le()));
        };
        let behind = |path: &[u8]| compare_paths(path, last).is_le() || is_below(path, last);
        if self.at_last {
            self.cursor.step();
            // Of most entries nothing is below.
            if self.cursor.path().is_none_or(|path| !behind(path)) {
                return;
            }
        }
        self.cursor.seek(Goal::Past(&behind));
    }

    fn end<T>(&mut self, with: Option<T>) -> Option<T> {
        self.ended = true;
        with
    }
}

impl Iterator for Children {
    type Item = Result<EntryRef>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        self.go_on();
        self.at_last = false;
        let entry = match self.cursor.current() {
            None => return self.end(None),
            Some(Err(error)) => {
                // The cursor is past what could not be read, where the next call looks on.
                self.failures += 1;
                self.ended = self.cursor.stack.is_empty() || self.failures == FAILURES;
                return Some(Err(error));
            }
            Some(Ok(entry)) => entry,
        };
        if !is_below(&entry.path, &self.directory) {
            return self.end(None);
        }
        if self.last.as_ref().is_some_and(|last| compare_paths(&entry.path, last).is_le()) {
            let what = "its nodes are out of order";
            let error = RepoError::damaged(&self.cursor.view.name, what);
            return self.end(Some(Err(error)));
        }
        let from = if self.directory.is_empty() { 0 } else { self.directory.len() + 1 };
        let name = entry.path.get(from..).unwrap_or_default();
        let found = match name.iter().position(|byte| *byte == b'/') {
            None => {
                self.at_last = true;
                entry
            }
            Some(end) => EntryRef::implied(entry.path.get(..from + end).unwrap_or_default()),
        };
        self.last = Some(found.path.clone());
        Some(Ok(found))
    }
}
