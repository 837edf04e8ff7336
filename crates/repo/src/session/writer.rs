//! Puts entries in order and into a tree while workers read their content.

use std::collections::VecDeque;

use crossbeam_channel::{Receiver, Sender};

use super::Session;
use super::content::{Chunking, Content, File, GROUP, GROUPED, Job, Outcome, REGION, large_file};
use super::sink::Sink;
use crate::entry::{Entry, EntryKind, compare_paths};
use crate::tree::TreeBuilder;
use crate::{ObjectId, RepoError, RepoErrorKind, Result};

/// Entries that may wait for an earlier one's content.
const WAITING: usize = 16 << 10;

/// How entries are handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// In the order of [`compare_paths`]: nodes are written as entries come.
    Sorted,
    /// As they come: all are kept in memory and sorted at the end.
    Any,
}

/// A finished tree.
#[derive(Debug, Clone, Copy)]
pub struct TreeRoot {
    pub(crate) id: ObjectId,
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) bytes: u64,
}

enum Slot {
    Waiting,
    Ready(Entry),
    Dropped,
}

/// Takes entries and their content.
pub struct TreeWriter<'s> {
    session: &'s Session,
    order: Order,
    sink: Sink,
    builder: TreeBuilder,
    /// Slots of tickets from `first` on.
    slots: VecDeque<Slot>,
    first: u64,
    waiting: usize,
    sorted: Vec<Entry>,
    group: Vec<File>,
    group_bytes: u64,
    results: Receiver<(u64, Outcome)>,
    sender: Sender<(u64, Outcome)>,
    root: TreeRoot,
}

impl<'s> TreeWriter<'s> {
    pub(super) fn new(session: &'s Session, order: Order) -> Self {
        let (sender, results) = crossbeam_channel::unbounded();
        Self {
            order,
            sink: Sink::new(session.shared.clone()),
            builder: TreeBuilder::new(session.repository.keys().metadata_id),
            slots: VecDeque::new(),
            first: 0,
            waiting: 0,
            sorted: Vec::new(),
            group: Vec::new(),
            group_bytes: 0,
            results,
            sender,
            root: TreeRoot { id: ObjectId([0; 32]), files: 0, directories: 0, bytes: 0 },
            session,
        }
    }

    /// An entry that is complete: a directory, a link, a device, inline or unchanged content.
    pub fn entry(&mut self, entry: Entry) -> Result<()> {
        self.slots.push_back(Slot::Ready(entry));
        self.advance()
    }

    /// A file whose content a worker reads. Waits while the workers are busy.
    pub fn file(
        &mut self,
        entry: Entry,
        content: Box<dyn Content>,
        chunking: Chunking,
    ) -> Result<()> {
        let expected = entry.size();
        let ticket = self.first + self.slots.len() as u64;
        self.slots.push_back(Slot::Waiting);
        self.waiting += 1;
        let ends_group = group_ends_after(&entry);
        let file = File { ticket, entry, content, chunking, results: self.sender.clone() };
        if expected <= GROUPED {
            self.group.push(file);
            self.group_bytes += expected.max(64);
            if self.group_bytes >= GROUP || (self.group_bytes >= GROUP / 4 && ends_group) {
                self.submit_group()?;
            }
        } else {
            self.submit_group()?;
            if chunking == Chunking::Grid && expected > REGION {
                match large_file(file) {
                    Ok(jobs) => {
                        for job in jobs {
                            self.submit(job)?;
                        }
                    }
                    Err(unopened) => {
                        let (file, error) = *unopened;
                        let outcome = self.session.shared.dropped(&file.entry, error)?;
                        // The receiver is ours.
                        let _ = file.results.send((file.ticket, outcome));
                    }
                }
            } else {
                self.submit(Job::One(Box::new(file)))?;
            }
        }
        self.advance()
    }

    fn submit(&mut self, job: Job) -> Result<()> {
        self.session.shared.check()?;
        self.session.pool.submit(job)
    }

    fn submit_group(&mut self) -> Result<()> {
        self.group_bytes = 0;
        if self.group.is_empty() {
            return Ok(());
        }
        let group = std::mem::take(&mut self.group);
        self.submit(Job::Group(group))
    }

    /// Takes results that are there, waits for some while too many entries do, and moves what is
    /// ready into the tree.
    fn advance(&mut self) -> Result<()> {
        while let Ok((ticket, outcome)) = self.results.try_recv() {
            self.take(ticket, outcome);
        }
        self.drain()?;
        while self.slots.len() > WAITING && self.waiting > 0 {
            self.submit_group()?;
            self.receive()?;
            self.drain()?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        loop {
            self.session.shared.check()?;
            let timeout = std::time::Duration::from_millis(100);
            match self.results.recv_timeout(timeout) {
                Ok((ticket, outcome)) => {
                    self.take(ticket, outcome);
                    return Ok(());
                }
                // A failed session sends nothing any more: look again.
                Err(_) => continue,
            }
        }
    }

    fn take(&mut self, ticket: u64, outcome: Outcome) {
        let at = ticket.wrapping_sub(self.first) as usize;
        if let Some(slot) = self.slots.get_mut(at) {
            self.waiting -= 1;
            *slot = match outcome {
                Outcome::Stored(entry) => Slot::Ready(entry),
                Outcome::Dropped => Slot::Dropped,
            };
        }
    }

    fn drain(&mut self) -> Result<()> {
        loop {
            match self.slots.front() {
                None | Some(Slot::Waiting) => return Ok(()),
                Some(_) => {}
            }
            let slot = self.slots.pop_front();
            self.first += 1;
            let Some(Slot::Ready(entry)) = slot else { continue };
            match self.order {
                Order::Sorted => self.push(&entry)?,
                Order::Any => self.sorted.push(entry),
            }
        }
    }

    fn push(&mut self, entry: &Entry) -> Result<()> {
        match &entry.kind {
            EntryKind::Directory => self.root.directories += 1,
            _ => self.root.files += 1,
        }
        self.root.bytes += entry.size();
        self.builder.push(entry, &mut self.sink)
    }

    /// Waits until all that was handed in is stored.
    pub fn wait(&mut self) -> Result<()> {
        self.submit_group()?;
        self.drain()?;
        while self.waiting > 0 {
            self.receive()?;
            self.drain()?;
        }
        self.drain()
    }

    /// The tree of all that was handed in.
    pub fn finish(mut self) -> Result<TreeRoot> {
        self.wait()?;
        let mut entries = std::mem::take(&mut self.sorted);
        entries.sort_by(|a, b| compare_paths(&a.path, &b.path));
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("{} was handed in twice", pair[0].display_path()),
            ));
        }
        for entry in &entries {
            self.push(entry)?;
        }
        let mut root = self.root;
        root.id = self.builder.finish(&mut self.sink)?;
        Ok(root)
    }
}

/// One name in sixteen ends a group that is large enough.
fn group_ends_after(entry: &Entry) -> bool {
    let name = entry.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    // FNV-1a: it decides nothing but where groups end, and shows nothing outside.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.iter().copied().chain(entry.size().to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 32).is_multiple_of(16)
}
