//! An open directory. The kernel asks for it piece by piece, and may go back to any piece; nothing
//! but the place in it is kept, so that a directory may have any number of entries.

use std::sync::Arc;

use backstay_repo::{Children, EntryRef, RepoError};

use crate::inodes::Opened;

/// After how many entries a place is remembered from which a listing can go on.
const MARK: u64 = 1024;

pub enum Listing {
    Upper(Vec<String>),
    Entries(Box<Walk>),
}

/// A walk through a directory of a snapshot.
pub struct Walk {
    opened: Arc<Opened>,
    directory: Arc<[u8]>,
    children: Children,
    /// Number of the entry that comes next.
    at: u64,
    /// That entry, if it was taken and not given out.
    waiting: Option<EntryRef>,
    /// Entries after which one can go on, by number: the last name before.
    marks: Vec<(u64, Vec<u8>)>,
    /// Not all entries could be read.
    pub failed: bool,
}

impl Walk {
    pub fn new(opened: Arc<Opened>, directory: Arc<[u8]>) -> Self {
        let children = opened.view.children(&directory, None);
        Self { opened, directory, children, at: 0, waiting: None, marks: Vec::new(), failed: false }
    }

    /// Goes to the entry of this number. What cannot be read on the way is told `problem`.
    pub fn seek(&mut self, number: u64, problem: &mut dyn FnMut(RepoError)) {
        if number == self.at {
            return;
        }
        if number < self.at {
            let mark = self.marks.iter().rfind(|(at, _)| *at <= number);
            self.at = mark.map_or(0, |(at, _)| *at);
            let after = mark.map(|(_, name)| &name[..]);
            self.children = self.opened.view.children(&self.directory, after);
            self.waiting = None;
        }
        while self.at < number {
            let Some(entry) = self.peek(problem) else { return };
            self.take(&entry);
        }
    }

    /// The entry that comes next.
    pub fn peek(&mut self, problem: &mut dyn FnMut(RepoError)) -> Option<EntryRef> {
        while self.waiting.is_none() {
            match self.children.next()? {
                Ok(entry) => self.waiting = Some(entry),
                Err(error) => {
                    self.failed = true;
                    problem(error);
                }
            }
        }
        self.waiting.clone()
    }

    /// The number of the entry after the one that comes next.
    pub fn number_after(&self) -> u64 {
        self.at + 1
    }

    /// Passes the entry that [`peek`](Self::peek) gave.
    pub fn take(&mut self, entry: &EntryRef) {
        self.waiting = None;
        self.at += 1;
        if self.at.is_multiple_of(MARK) && self.marks.last().is_none_or(|(at, _)| *at < self.at) {
            self.marks.push((self.at, name(entry).to_vec()));
        }
    }
}

/// The last part of an entry's path.
pub fn name(entry: &EntryRef) -> &[u8] {
    entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}
