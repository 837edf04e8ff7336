//! Puts entries in order and into a tree while workers read their content.

use std::collections::VecDeque;

use crossbeam_channel::{Receiver, Sender};

use super::Session;
use super::content::{
    Chunking, Content, File, GROUP, GROUPED, Job, Known, Made, Outcome, REGION, dropped,
};
use super::sink::Sink;
use super::worker::large_file;
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

/// A finished tree, in every lane.
#[derive(Debug, Clone)]
pub struct TreeRoot {
    /// None of a lane that has failed.
    pub(super) lanes: Vec<Option<LaneRoot>>,
}

impl TreeRoot {
    /// The tree of the first repository; nothing when that has failed.
    pub(crate) fn first(&self) -> Option<ObjectId> {
        Some(self.lanes.first()?.as_ref()?.id)
    }
}

/// A finished tree in one repository.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaneRoot {
    pub(crate) id: ObjectId,
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) bytes: u64,
}

enum Slot {
    Waiting,
    Ready(Made),
    Dropped,
}

/// Takes entries and their content.
pub struct TreeWriter<'s> {
    session: &'s Session,
    order: Order,
    lanes: Vec<LaneTree>,
    /// Slots of tickets from `first` on.
    slots: VecDeque<Slot>,
    first: u64,
    waiting: usize,
    sorted: Vec<Made>,
    group: Vec<File>,
    group_bytes: u64,
    results: Receiver<(u64, Outcome)>,
    sender: Sender<(u64, Outcome)>,
}

/// The tree of one lane.
struct LaneTree {
    sink: Sink,
    builder: TreeBuilder,
    root: LaneRoot,
}

impl LaneTree {
    fn push(&mut self, entry: &Entry) -> Result<()> {
        match &entry.kind {
            EntryKind::Directory => self.root.directories += 1,
            _ => self.root.files += 1,
        }
        self.root.bytes += entry.size();
        self.builder.push(entry, &mut self.sink)
    }
}

impl<'s> TreeWriter<'s> {
    pub(super) fn new(session: &'s Session, order: Order) -> Self {
        let (sender, results) = crossbeam_channel::unbounded();
        let root = LaneRoot { id: ObjectId([0; 32]), files: 0, directories: 0, bytes: 0 };
        let lanes = session.lanes.iter().map(|lane| LaneTree {
            sink: Sink::new(lane.shared.clone()),
            builder: TreeBuilder::new(lane.repository.keys().metadata_id),
            root,
        });
        Self {
            order,
            lanes: lanes.collect(),
            slots: VecDeque::new(),
            first: 0,
            waiting: 0,
            sorted: Vec::new(),
            group: Vec::new(),
            group_bytes: 0,
            results,
            sender,
            session,
        }
    }

    /// An entry that is complete: a directory, a link, a device, inline or unchanged content.
    pub fn entry(&mut self, entry: Entry) -> Result<()> {
        self.slots.push_back(Slot::Ready(Made::Same(entry)));
        self.advance()
    }

    /// A file that may be unchanged in some lanes, which have it from before as `known` says; the
    /// others want it read.
    pub fn file_unless_known(
        &mut self,
        entry: Entry,
        content: impl FnOnce() -> Box<dyn Content>,
        chunking: Chunking,
        known: Vec<Option<Entry>>,
    ) -> Result<()> {
        let mut read = false;
        for (number, lane) in self.session.lanes.iter().enumerate() {
            match known.get(number).and_then(Option::as_ref) {
                Some(_) => lane.shared.count_unchanged(),
                None => read |= lane.shared.is_alive(),
            }
        }
        if read {
            return self.hand_in(entry, known, content(), chunking);
        }
        self.session.progress.add_done(entry.size(), 1);
        self.slots.push_back(Slot::Ready(Made::Each(known)));
        self.advance()
    }

    /// A file whose content a worker reads. Waits while the workers are busy.
    pub fn file(
        &mut self,
        entry: Entry,
        content: Box<dyn Content>,
        chunking: Chunking,
    ) -> Result<()> {
        self.hand_in(entry, Vec::new(), content, chunking)
    }

    fn hand_in(
        &mut self,
        entry: Entry,
        known: Known,
        content: Box<dyn Content>,
        chunking: Chunking,
    ) -> Result<()> {
        let expected = entry.size();
        let ticket = self.first + self.slots.len() as u64;
        self.slots.push_back(Slot::Waiting);
        self.waiting += 1;
        let ends_group = group_ends_after(&entry);
        let results = self.sender.clone();
        let met = match expected <= GROUPED {
            true => self.session.lanes.iter().map(|lane| lane.shared.met()).collect(),
            false => Vec::new(),
        };
        let file = File { ticket, entry, known, met, content, chunking, results };
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
                        let lanes = self.session.lanes.iter().enumerate();
                        let wanting = lanes
                            .filter(|(lane, _)| file.known.get(*lane).is_none_or(Option::is_none))
                            .map(|(_, lane)| &*lane.shared);
                        let mut outcome = dropped(wanting, &file.entry, error)?;
                        if file.known.iter().any(Option::is_some) {
                            outcome = Outcome::Stored(Made::Each(file.known));
                        }
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
        self.session.list_due();
        self.session.check()?;
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
            self.session.list_due();
            self.session.check()?;
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
                Outcome::Stored(made) => Slot::Ready(made),
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
            let Some(Slot::Ready(made)) = slot else { continue };
            match self.order {
                Order::Sorted => self.push(&made)?,
                Order::Any => self.sorted.push(made),
            }
        }
    }

    fn push(&mut self, made: &Made) -> Result<()> {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if !lane.sink.shared.is_alive() {
                continue;
            }
            // A lane whose entry is missing failed while it was made.
            if let Some(entry) = made.of(number)
                && let Err(error) = lane.push(entry)
            {
                lane.sink.shared.fail(error);
                self.session.check()?;
            }
        }
        Ok(())
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
    pub fn finish(self) -> Result<TreeRoot> {
        self.finish_as(|_| true)
    }

    /// The same, each entry as `last` leaves it, and only those that it wants: what becomes of a file
    /// may be known only when all of them were read. With [`Order::Any`] alone.
    pub fn finish_as(mut self, mut last: impl FnMut(&mut Entry) -> bool) -> Result<TreeRoot> {
        self.wait()?;
        self.sorted.retain_mut(|made| match made {
            Made::Same(entry) => last(entry),
            Made::Each(entries) => {
                for entry in entries.iter_mut() {
                    if entry.as_mut().is_some_and(|it| !last(it)) {
                        *entry = None;
                    }
                }
                entries.iter().any(Option::is_some)
            }
        });
        let mut entries = std::mem::take(&mut self.sorted);
        entries.sort_by(|a, b| match (a.any(), b.any()) {
            (Some(a), Some(b)) => compare_paths(&a.path, &b.path),
            (a, b) => a.is_some().cmp(&b.is_some()),
        });
        let twice = entries.windows(2).find_map(|pair| match pair {
            [a, b] => a.any().zip(b.any()).filter(|(a, b)| a.path == b.path).map(|(a, _)| a),
            _ => None,
        });
        if let Some(entry) = twice {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("{} was handed in twice", entry.display_path()),
            ));
        }
        for made in &entries {
            self.push(made)?;
        }
        let finish = |lane: LaneTree| {
            let LaneTree { mut sink, builder, mut root } = lane;
            if !sink.shared.is_alive() {
                return None;
            }
            match builder.finish(&mut sink) {
                Ok(id) => root.id = id,
                Err(error) => {
                    sink.shared.fail(error);
                    return None;
                }
            }
            Some(root)
        };
        let lanes = self.lanes.into_iter().map(finish).collect();
        self.session.check()?;
        Ok(TreeRoot { lanes })
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
