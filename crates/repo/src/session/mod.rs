//! Writer sessions: from content to a committed snapshot.
//!
//! A session creates its session object, reads the index, and starts its threads. Content that is
//! handed in is read, cut, hashed, compressed and sealed by workers, one per core, each of which
//! takes a piece through all of it while it is in cache. Full packs go to upload threads. A commit
//! ends with packs → index segments → snapshot, each durable before the next is created.
//!
//! A session may write to several repositories at once, each of which is a *lane*: content is read
//! once, and cut, hashed and sealed for each, since no two have the same keys.
//!
//! `sink` keeps chunks, `content` is what is handed in, `worker` what is done with it, `writer` puts entries in order
//! and into a tree, `lanes` is what a session is over several repositories. `grid` is what becomes of a
//! region of a database file, `parent` what is known of it from the snapshot before, `before` how that
//! is compared with what is there now.

mod before;
mod content;
mod grid;
mod lanes;
mod members;
mod parent;
mod sink;
mod worker;
mod writer;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use before::KnownRegion;
pub use content::{Chunking, Content, ContentError, Reader};
pub use lanes::Fate;
pub use writer::{Order, TreeRoot, TreeWriter};

use crate::authority::change::removed_meanwhile;
use crate::crypto::Class;
use crate::entry::{Body, FileContent};
use crate::index::{Index, SegmentBuilder, keep_segment, seal_object, seal_with};
use crate::keys::timestamp;
use crate::layout::Work;
use crate::maintenance;
use crate::repository::Repository;
use crate::tree::parse_extents;
use crate::{
    Compression, Kind, Original, Progress, RepoError, RepoErrorKind, Result, Snapshot,
    SnapshotStats, SnapshotType, SourceKind,
};
use backstay_store::failpoint;
use content::Pool;
use sink::Shared;
use writer::LaneRoot;

/// What a session is about.
pub struct SessionOptions {
    pub source: String,
    pub kind: SourceKind,
    pub type_: SnapshotType,
    /// Where unchanged content was looked for.
    pub parent: Option<Snapshot>,
    /// 0: one for each core.
    pub workers: usize,
    pub compression: Compression,
    pub tags: BTreeMap<String, String>,
    pub progress: Arc<Progress>,
    /// Tells why the session failed in this repository, also when the session is gone.
    pub fate: Fate,
    /// What the snapshot is a copy of.
    pub copy_of: Option<Box<Original>>,
}

impl SessionOptions {
    pub fn new(source: impl Into<String>, kind: SourceKind, type_: SnapshotType) -> Self {
        Self {
            source: source.into(),
            kind,
            type_,
            parent: None,
            workers: 0,
            compression: Compression::default(),
            tags: BTreeMap::new(),
            progress: Arc::default(),
            fate: Fate::default(),
            copy_of: None,
        }
    }
}

/// One snapshot being written, to one repository or to several. Dropped without a commit, it leaves
/// nothing that counts.
pub struct Session {
    /// Those repositories in which it began.
    lanes: Vec<Lane>,
    /// Of all repositories that it was asked for.
    fates: Vec<Fate>,
    progress: Arc<Progress>,
    pool: Pool,
}

/// What a session is in one repository.
pub(crate) struct Lane {
    /// Which of the repositories that were asked for.
    number: usize,
    repository: Repository,
    options: SessionOptions,
    /// What its snapshot has in common with those of the other lanes.
    group: Option<String>,
    started: Timestamp,
    shared: Arc<Shared>,
    /// Segments of the index that were written so far.
    listed: AtomicU32,
    /// Packs that are in them.
    listed_packs: AtomicUsize,
}

/// Packs that are listed before the end at least at once: 128 MiB.
const LISTED_AT_ONCE: usize = 4;
/// Which part of what was sent may be unlisted. With one half as many, a large backup would have
/// twice as many segments of the index.
const UNLISTED_SHARE: usize = 16;

/// How many threads to use when asked for `wanted`.
pub(crate) fn workers(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(2, |n| n.get()),
        n => n,
    }
}

pub(crate) fn begin(repository: &Repository, options: SessionOptions) -> Result<Session> {
    Session::begin(vec![(repository.clone(), options)])
}

/// A session for which what lies only in one of `avoided` is absent, so that it stores that anew.
pub(crate) fn begin_avoiding(
    repository: &Repository,
    options: SessionOptions,
    avoided: &HashSet<[u8; 16]>,
) -> Result<Session> {
    Session::begin_avoiding(vec![(repository.clone(), options)], avoided)
}

/// Begins one lane, whose data packs are full from `pack_size` bytes on.
fn begin_lane(
    repository: Repository,
    mut options: SessionOptions,
    started: Timestamp,
    pack_size: usize,
    avoided: &HashSet<[u8; 16]>,
) -> Result<Lane> {
    repository.allow_write()?;
    let env = repository.environment();
    let work = Work { writer: repository.writer(), session: env.random() };
    // First the session object, then the index: maintenance that has not seen this session has
    // published what it condemned before we look.
    let about = serde_json::json!({
        "source": options.source,
        "host": host(),
        "started": started,
        "version": env!("CARGO_PKG_VERSION"),
        "process": Process::own(),
    });
    let key = work.session_key();
    let body = serde_json::to_vec(&about).expect("plain JSON");
    let object = seal_object(repository.keys(), env.random(), Class::Session, &key, body);
    repository.store().create(&key, object)?;
    failpoint::hit("session-created");
    let index = match maintenance::condemned(&repository)? {
        Some(condemned) => {
            repository.reload_index_avoiding(&condemned.union(avoided).copied().collect())?
        }
        None => {
            repository.reload_index()?;
            Arc::new(Index::default())
        }
    };
    if let Some(writer) = repository.keys().host()
        && !repository.authority()?.admits(&writer)
    {
        return Err(removed_meanwhile());
    }
    if let Some(parent) = &options.parent
        && !repository.may_build_on(parent)?
    {
        tracing::warn!(
            parent = parent.short_id(),
            "it is of a host that may only write: nothing is compared with it"
        );
        options.parent = None;
        options.type_ = SnapshotType::Full;
    }
    let shared = Arc::new(Shared::new(repository.clone(), work, index, &options, pack_size));
    shared.start_uploads();
    let (listed, listed_packs) = (AtomicU32::new(0), AtomicUsize::new(0));
    let lane =
        Lane { number: 0, repository, options, group: None, started, shared, listed, listed_packs };
    Ok(lane)
}

impl Lane {
    /// Whether the content of an earlier snapshot can be taken over: the index knows all of it, in
    /// packs that are there. A segment or a pack may have been lost since.
    fn can_reuse(&self, content: &FileContent) -> Result<bool> {
        let index = self.shared.index();
        let leaves = match &content.body {
            Body::Inline(_) => return Ok(true),
            body @ (Body::Extents(_) | Body::Member(_)) => {
                return Ok(body.extents().iter().all(|e| index.holds(&e.chunk)));
            }
            Body::Leaves(leaves) => leaves,
        };
        for leaf in leaves {
            if !index.holds(&leaf.id) {
                return Ok(false);
            }
            let read = self.repository.read_chunk(Kind::Leaf, &leaf.id);
            let leaf = match read.and_then(|leaf| parse_extents("the parent", &leaf)) {
                // A parent only saves work.
                Err(error) if error.is_about_an_object() => return Ok(false),
                leaf => leaf?,
            };
            let pages = leaf.pages.chunks().iter().all(|id| index.holds(id));
            if !pages || !leaf.extents.iter().all(|extent| index.holds(&extent.chunk)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the leaves of a file, and the page hashes that they name, are in packs that are there.
    fn has_leaves(&self, content: &FileContent) -> Result<bool> {
        let index = self.shared.index();
        let Body::Leaves(leaves) = &content.body else { return Ok(true) };
        for leaf in leaves {
            if !index.is_there(&leaf.id) {
                return Ok(false);
            }
            let read = self.repository.read_chunk(Kind::Leaf, &leaf.id)?;
            if !parse_extents("a leaf", &read)?.pages.chunks().iter().all(|id| index.is_there(id)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes all that was written durable: packs, then the segments of the index that list them.
    fn publish(&self) -> Result<()> {
        self.shared.flush()?;
        self.list_packs(self.shared.finish_uploads()?)
    }

    /// Writes segments of the index that list packs which are durable.
    fn list_packs(&self, packs: Vec<sink::Uploaded>) -> Result<()> {
        let env = self.repository.environment();
        let store = self.repository.store();
        // A pack that was sent again after a long sleep may have been removed meanwhile, with all
        // that this session had. It must not be listed as if nothing had happened.
        match store.head(&self.shared.work.snapshot_key()) {
            Err(error) if error.is_not_found() => {}
            Ok(_) => return Err(given_up()),
            Err(error) => return Err(error.into()),
        }
        self.listed_packs.fetch_add(packs.len(), Relaxed);
        let mut segments = vec![SegmentBuilder::default()];
        for (pack, records) in packs {
            let last = segments.last_mut().expect("there is one at least");
            last.add(pack, records.iter().map(|r| (r.id, r.offset, r.length)));
            if last.len() >= crate::index::SEGMENT_ENTRIES {
                segments.push(SegmentBuilder::default());
            }
        }
        for segment in segments.into_iter().filter(|s| !s.is_empty()) {
            let key = self.shared.work.index_key(self.listed.fetch_add(1, Relaxed));
            let object = segment.seal(self.repository.keys(), env.random(), &key);
            store.create(&key, object.clone())?;
            keep_segment(self.repository.cache(), &key, &object);
            failpoint::hit("index-created");
        }
        Ok(())
    }

    /// Lists packs that are durable, once they are worth an object of the index: a session that comes
    /// after one that died finds in the index what that one had sent, and does not send it again. What
    /// of it no snapshot refers to is garbage like any other.
    fn list_due(&self) {
        let due = (self.listed_packs.load(Relaxed) / UNLISTED_SHARE).max(LISTED_AT_ONCE);
        let packs = self.shared.take_uploaded(due);
        if packs.is_empty() {
            return;
        }
        if let Err(error) = self.list_packs(packs) {
            self.shared.fail(error);
        }
    }

    /// Makes the snapshot exist. All that it refers to is durable when this returns.
    fn commit(&self, root: LaneRoot, detail: serde_json::Value) -> Result<Snapshot> {
        self.publish()?;
        let (env, store) = (self.repository.environment(), self.repository.store());
        let (counted, mut problems) = self.shared.counted();
        problems.sort_by(|a, b| a.path.cmp(&b.path));
        let mut snapshot = Snapshot {
            id: String::new(),
            writer: String::new(),
            source: self.options.source.clone(),
            kind: self.options.kind,
            type_: self.options.type_,
            time: self.started,
            finished: timestamp(env),
            stored: None,
            host: host(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tags: self.options.tags.clone(),
            parent: self.options.parent.as_ref().map(|parent| parent.id.clone()),
            group: self.group.clone(),
            origin: None,
            root: root.id,
            stats: SnapshotStats {
                files: root.files,
                directories: root.directories,
                bytes: root.bytes,
                ..counted
            },
            problems,
            detail,
        };
        if let Some(original) = &self.options.copy_of {
            original.describe(&mut snapshot);
        }
        self.options.progress.check()?;
        let key = self.shared.work.snapshot_key();
        let (object_key, header) = self.shared.metadata_key.object(env.random(), Class::Snapshot);
        let body = serde_json::to_vec(&snapshot).expect("plain JSON");
        let body = crate::snapshot::with_signature(self.repository.keys(), &key, body);
        self.repository.keep_session(&self.shared.work, &self.shared.metadata_key);
        store.create(&key, seal_with(&object_key, &header, &key, body)).map_err(|error| {
            if error.is_already_exists() { given_up().with_source(error) } else { error.into() }
        })?;
        failpoint::hit("snapshot-created");
        self.repository.must_count(&key)?;
        snapshot.id = crate::id::hex(&self.shared.work.session);
        snapshot.writer = crate::id::hex(&self.shared.work.writer);
        Ok(snapshot)
    }
}

fn given_up() -> RepoError {
    RepoError::new(
        RepoErrorKind::Busy,
        "this backup was given up by maintenance because it was silent for too long",
    )
    .with_hint("run it again: what it stored is found there")
}

/// What tells whether the process of a session is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: u32,
    /// Since when it runs, in ticks after the machine was started: ids of processes come again.
    began: Option<u64>,
    /// Of this start of the machine.
    boot: Option<String>,
    /// Process ids mean something within it only.
    namespace: Option<String>,
}

impl Process {
    fn own() -> Self {
        let pid = std::process::id();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok();
        Self {
            pid,
            began: began(pid),
            boot: boot.map(|id| id.trim().to_owned()),
            namespace: namespace.map(|path| path.display().to_string()),
        }
    }

    /// Of what a session says about itself.
    pub fn of(about: &serde_json::Value) -> Option<Self> {
        serde_json::from_value(about.get("process")?.clone()).ok()
    }

    /// Whether it certainly is no more. Of another machine or another container nothing is known.
    pub fn is_gone(&self) -> bool {
        let own = Self::own();
        let here = own.boot.is_some()
            && own.namespace.is_some()
            && (&own.boot, &own.namespace) == (&self.boot, &self.namespace);
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid.filter(|_| here) else { return false };
        match rustix::process::test_kill_process(pid) {
            Err(rustix::io::Errno::SRCH) => true,
            // Another one may have its id by now. What cannot be seen is taken to live.
            _ => match (began(self.pid), self.began) {
                (Some(now), Some(then)) => now != then,
                _ => false,
            },
        }
    }
}

/// The 22nd field of `/proc/PID/stat`; the second is a name in brackets that may hold anything.
fn began(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The name of this machine.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The id that content of files has in this repository.
pub(crate) fn content_id_of_data(repository: &Repository, content: &[u8]) -> crate::ObjectId {
    content_id(&repository.keys().data_id, Kind::Data, content)
}

pub(crate) use content::{CELL, REGION};
pub(crate) use sink::{Mover, content_id};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_gone_when_it_is_and_not_before() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id();
        let it = Process { pid, began: began(pid), ..Process::own() };
        assert!(it.began.is_some());
        assert!(!it.is_gone() && !Process::own().is_gone());
        // Its id was given to another one, or the machine was started again, or it is elsewhere.
        assert!(Process { began: Some(1), ..it.clone() }.is_gone());
        for elsewhere in [
            Process { boot: Some("another".into()), ..it.clone() },
            Process { namespace: Some("pid:[1]".into()), ..it.clone() },
            Process { boot: None, ..it.clone() },
        ] {
            assert!(!elsewhere.is_gone());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(it.is_gone());
        let about = serde_json::json!({ "process": it });
        assert_eq!(Process::of(&about), Some(it));
        assert_eq!(Process::of(&serde_json::json!({})), None);
    }
}
