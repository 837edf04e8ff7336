//! One session over several repositories.
//!
//! Each repository is a lane with a tree, packs and a snapshot of its own. A lane that fails is left
//! behind with its error, and the others go on; the session as a whole fails when no lane is left, or
//! when the source cannot be read. Since content is in memory only while it is cut and sealed for all
//! lanes, the slowest one sets the pace, and one whose store does not answer holds up the others for
//! as long as the store's calls are tried again, and no longer.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::content::Pool;
use super::sink::Sink;
use super::writer::LaneRoot;
use super::{
    Lane, Mover, Order, Session, SessionOptions, TreeRoot, TreeWriter, begin_lane, workers,
};
use crate::entry::FileContent;
use crate::id::hex;
use crate::index::PackInfo;
use crate::keys::timestamp;
use crate::maintenance::{Reason, Tombstone};
use crate::pack::{DATA_PACK, Record};
use crate::{Kind, ObjectId, Progress, RepoError, RepoErrorKind, Repository, Result, Snapshot};

/// From which size on a data pack of a session over several repositories is full. Each has two that
/// are open, two on their way and as many waiting as there are workers: smaller ones keep the memory
/// that they take together within that of one repository. Bytes.
const SMALL_PACK: usize = 8 << 20;
/// More repositories than anybody has; a set of them is 64 bits.
const MOST_LANES: usize = 64;

/// Why a session failed in one repository; nothing while it has not.
#[derive(Debug, Clone, Default)]
pub struct Fate(Arc<Mutex<Option<RepoError>>>);

impl Fate {
    /// The first error counts.
    pub(crate) fn set(&self, error: RepoError) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
    }

    pub fn get(&self) -> Option<RepoError> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map(RepoError::repeat)
    }
}

/// Some of the lanes of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneSet(u64);

impl LaneSet {
    pub const NONE: Self = Self(0);

    pub fn add(&mut self, lane: usize) {
        self.0 |= 1 << lane;
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn has(self, lane: usize) -> bool {
        self.0 & (1 << lane) != 0
    }
}

impl Session {
    /// Starts to write one snapshot to several repositories. One in which it cannot begin is left
    /// out, and its [`Fate`] says why.
    ///
    /// # Errors
    /// The first one, when it can begin in none.
    pub fn begin(targets: Vec<(Repository, SessionOptions)>) -> Result<Self> {
        Self::begin_avoiding(targets, &HashSet::new())
    }

    /// The same; what lies only in one of the packs `avoided` is absent for it.
    pub(super) fn begin_avoiding(
        targets: Vec<(Repository, SessionOptions)>,
        avoided: &HashSet<[u8; 16]>,
    ) -> Result<Self> {
        let asked = targets.len();
        let fates = targets.iter().map(|(_, options)| options.fate.clone()).collect();
        let Some((first, options)) = targets.first() else {
            return Err(RepoError::new(RepoErrorKind::Usage, "there is no repository to write to"));
        };
        if asked > MOST_LANES {
            return Err(RepoError::new(
                RepoErrorKind::Usage,
                format!("{asked} repositories are more than can be written to at once"),
            )
            .with_hint(format!("{MOST_LANES} is the most; back up to them one after another")));
        }
        let env = first.environment();
        let started = timestamp(env);
        let group = (asked > 1).then(|| hex(&env.random::<16>()));
        let progress = options.progress.clone();
        let count = workers(options.workers);
        let pack_size = if asked == 1 { DATA_PACK } else { SMALL_PACK };
        let begin = |(number, (repository, options)): (usize, (Repository, SessionOptions))| {
            let fate = options.fate.clone();
            match begin_lane(repository, options, started, pack_size, avoided) {
                Ok(lane) => Ok(Lane { number, group: group.clone(), ..lane }),
                Err(error) => {
                    fate.set(error.repeat());
                    Err(error)
                }
            }
        };
        let targets = targets.into_iter().enumerate();
        let begun: Vec<Result<Lane>> = if asked == 1 {
            targets.map(begin).collect()
        } else {
            let begin = &begin;
            std::thread::scope(|scope| {
                let threads: Vec<_> =
                    targets.map(|target| scope.spawn(move || begin(target))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
            })
        };
        let mut lanes = Vec::new();
        let mut failed = None;
        for lane in begun {
            match lane {
                Ok(lane) => lanes.push(lane),
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        if let (Some(error), true) = (failed, lanes.is_empty()) {
            return Err(error);
        }
        let shared: Vec<_> = lanes.iter().map(|lane| lane.shared.clone()).collect();
        let pool = Pool::start(shared, progress.clone(), count);
        Ok(Self { lanes, fates, progress, pool })
    }

    /// A tree to fill. One at a time.
    pub fn tree(&self, order: Order) -> TreeWriter<'_> {
        TreeWriter::new(self, order)
    }

    /// Notes what could not be read: the snapshot will say so.
    pub fn problem(&self, path: &str, what: impl Into<String>) {
        let what = what.into();
        for lane in &self.lanes {
            lane.shared.problem(path, what.clone());
        }
    }

    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// How many repositories it writes to: those in which it could begin.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Which of the repositories that it was begun with a lane is.
    pub fn number_of(&self, lane: usize) -> Option<usize> {
        self.lanes.get(lane).map(|lane| lane.number)
    }

    /// The repository of a lane, and where unchanged content is looked for there.
    pub fn lane(&self, lane: usize) -> Option<(&Repository, Option<&Snapshot>)> {
        self.lanes.get(lane).map(|lane| (&lane.repository, lane.options.parent.as_ref()))
    }

    /// Whether a lane goes on.
    pub fn is_alive(&self, lane: usize) -> bool {
        self.lanes.get(lane).is_some_and(|lane| lane.shared.is_alive())
    }

    /// Leaves a lane behind.
    pub fn give_up(&self, lane: usize, error: RepoError) {
        if let Some(lane) = self.lanes.get(lane) {
            lane.shared.fail(error);
        }
    }

    /// Whether a lane can take over the content of an earlier snapshot of its repository: the index
    /// knows all of it, in packs that are there. A segment or a pack may have been lost since.
    pub fn can_reuse(&self, lane: usize, content: &FileContent) -> bool {
        let Some(lane) = self.lanes.get(lane).filter(|lane| lane.shared.is_alive()) else {
            return false;
        };
        lane.can_reuse(content).unwrap_or_else(|error| {
            lane.shared.fail(error);
            false
        })
    }

    /// Takes note of a file of the parent: one that is handed in after it and has the same content
    /// stays where that lies, also under another name.
    pub fn remember(&self, lane: usize, content: &FileContent) {
        if let Some(lane) = self.lanes.get(lane) {
            lane.shared.remember(content);
        }
    }

    /// An error once it was told to stop, or no lane is left.
    pub fn check(&self) -> Result<()> {
        self.progress.check()?;
        if self.lanes.iter().any(|lane| lane.shared.is_alive()) {
            return Ok(());
        }
        self.lanes.first().map_or(Ok(()), |lane| lane.shared.check())
    }

    /// Lists the packs that are durable, once they are so many: another session finds what is in them,
    /// even when this one does not come to its end. Whether it did.
    pub(crate) fn list_sent(&self, many: usize) -> Result<bool> {
        let mut listed = false;
        for lane in &self.lanes {
            let packs = lane.shared.take_uploaded(many);
            if !packs.is_empty() {
                lane.list_packs(packs)?;
                listed = true;
            }
        }
        Ok(listed)
    }

    /// Lists what has been sent, in the lanes in which it is time to.
    pub(super) fn list_due(&self) {
        self.lanes.iter().filter(|lane| lane.shared.is_alive()).for_each(Lane::list_due);
    }

    /// A way to store records as they were stored before, in the first lane.
    pub(crate) fn mover(&self) -> Option<Mover> {
        self.lanes.first().map(|lane| Mover::new(lane.shared.clone()))
    }

    /// Packs of this session are opened before they are sent, and not decoded as well. For one who
    /// decodes them as the store has them, before anything that they replace is removed.
    pub(crate) fn open_only(&self) {
        self.lanes.iter().for_each(|lane| lane.shared.open_only());
    }

    /// Lists a pack that is there already, of another session that has ended. Of a session in one
    /// repository, as what follows.
    pub(crate) fn adopt(&self, pack: PackInfo, records: Vec<Record>) {
        if let Some(lane) = self.lanes.first() {
            lane.shared.adopt(pack, records);
        }
    }

    pub(crate) fn has_stored(&self, id: &ObjectId) -> bool {
        self.lanes.first().is_some_and(|lane| lane.shared.has_stored(id))
    }

    /// Whether the leaves of a file, and the page hashes that they name, are in packs that are there.
    pub(crate) fn has_leaves(&self, content: &FileContent) -> Result<bool> {
        self.lanes.first().map_or(Ok(false), |lane| lane.has_leaves(content))
    }

    /// Stores one chunk; its id.
    pub(crate) fn store(&self, kind: Kind, content: &[u8]) -> Result<ObjectId> {
        let Some(lane) = self.lanes.first() else {
            return Err(RepoError::new(RepoErrorKind::Aborted, "the backup was given up"));
        };
        crate::tree::ChunkSink::store(&mut Sink::new(lane.shared.clone()), kind, content)
    }

    /// Ends a session of which nothing is to count.
    pub(crate) fn discard(mut self) -> Result<()> {
        for lane in &self.lanes {
            lane.shared.abort();
        }
        self.pool.stop();
        for lane in &self.lanes {
            lane.shared.join_uploads();
            let key = lane.shared.work.snapshot_key();
            let tombstone = Tombstone::new(&lane.repository, Reason::GivenUp);
            tombstone.create(&lane.repository, &key)?;
        }
        Ok(())
    }

    /// Ends a session that wrote copies: they are durable, listed, and of no snapshot.
    pub(crate) fn end_without_snapshot(mut self) -> Result<()> {
        self.pool.stop();
        for lane in &self.lanes {
            lane.publish()?;
            let key = lane.shared.work.snapshot_key();
            let tombstone = Tombstone::new(&lane.repository, Reason::Maintenance);
            // Given up by somebody else, it has ended as well.
            tombstone.create(&lane.repository, &key)?;
        }
        Ok(())
    }

    /// Makes the snapshot exist, of a session in one repository. All that it refers to is durable
    /// when this returns.
    pub fn commit(self, root: TreeRoot, detail: serde_json::Value) -> Result<Snapshot> {
        let mut committed = self.commit_all(root, detail);
        if committed.is_empty() {
            return Err(RepoError::new(RepoErrorKind::Aborted, "the backup was given up"));
        }
        committed.swap_remove(0)
    }

    /// Makes the snapshots exist: what came of it in each repository, in the order in which the
    /// session was begun with them.
    pub fn commit_all(
        mut self,
        root: TreeRoot,
        detail: serde_json::Value,
    ) -> Vec<Result<Snapshot>> {
        self.pool.stop();
        let given_up = || RepoError::new(RepoErrorKind::Aborted, "the backup was given up");
        let lost = |fate: &Fate| Err(fate.get().unwrap_or_else(given_up));
        let mut committed: Vec<Result<Snapshot>> = self.fates.iter().map(lost).collect();
        let commit = |(lane, root): (&Lane, Option<LaneRoot>)| {
            let done = lane
                .shared
                .check()
                .and_then(|()| lane.commit(root.ok_or_else(given_up)?, detail.clone()));
            done.inspect_err(|error| lane.options.fate.set(error.repeat()))
        };
        let work = self.lanes.iter().zip(root.lanes);
        let results: Vec<Result<Snapshot>> = if self.lanes.len() == 1 {
            work.map(commit).collect()
        } else {
            let commit = &commit;
            std::thread::scope(|scope| {
                let threads: Vec<_> = work.map(|one| scope.spawn(move || commit(one))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
            })
        };
        for (lane, result) in self.lanes.iter().zip(results) {
            if let Some(slot) = committed.get_mut(lane.number) {
                *slot = result;
            }
        }
        committed
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lane.shared.abort();
        }
        self.pool.stop();
        for lane in &self.lanes {
            lane.shared.join_uploads();
        }
    }
}

fn panicked<T>(_: Box<dyn std::any::Any + Send>) -> Result<T> {
    Err(RepoError::new(RepoErrorKind::Io, "a thread of the backup panicked"))
}
