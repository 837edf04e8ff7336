//! Walking file trees in the order of [`backstay_repo::compare_paths`].
//!
//! Directories are read ahead by a few threads, always the one whose turn comes first, until
//! [`AHEAD`] entries wait. The walk itself reads a directory only when its turn has come and nobody
//! has begun it, so that it never waits for the threads to find room. Nothing follows a symbolic
//! link: a loop cannot be.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use backstay_repo::{Beneath, RepoError, Result};

use super::exclude::Exclude;
use super::listing::{Context, Key, Listing, Node, Outcome, Task};
use super::metadata::{FileType, Stat, Xattrs};
use super::plan::Plan;

/// Entries that may have been read and not yet been asked for.
const AHEAD: usize = 32 << 10;

/// What to walk and what to leave out.
#[derive(Debug, Clone, Default)]
pub struct WalkOptions {
    pub exclude: Exclude,
    /// A directory on which another file system is mounted is listed, and not gone into.
    pub one_file_system: bool,
    /// Of a directory with a valid `CACHEDIR.TAG`, only itself and the tag are listed.
    pub skip_caches: bool,
    /// That read ahead. 0: as many as are of use on this machine.
    pub threads: usize,
}

/// What a walk comes by.
#[derive(Debug)]
pub enum Walked {
    Entry {
        /// Relative to `/`, without a leading slash.
        path: Vec<u8>,
        stat: Stat,
        /// Of a directory that could be opened; others are read when they are wanted.
        xattrs: Option<Xattrs>,
    },
    /// Something that cannot be read, and why.
    Problem { path: Vec<u8>, what: String },
    /// Something that has no content and cannot be restored: a socket.
    Skipped { path: Vec<u8>, kind: FileType },
}

/// Entries of several trees, in path order.
pub struct Walk {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    stack: Vec<Frame>,
    queued: VecDeque<Walked>,
    begun: bool,
    root_task: Option<Arc<Task>>,
}

struct Frame {
    nodes: std::vec::IntoIter<Node>,
    listing: Listing,
}

struct Shared {
    context: Arc<Context>,
    queue: Mutex<Queue>,
    /// Something can be read.
    work: Condvar,
    /// Something has been read.
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    pending: BTreeMap<Key, Arc<Task>>,
    done: HashMap<Key, Outcome>,
    /// Entries in `done`.
    ahead: usize,
    stop: bool,
}

impl Walk {
    /// Fails with what to do about it when none of `paths` is there. Those that are not there while
    /// others are come as problems, first of all.
    pub fn new(paths: &[PathBuf], options: WalkOptions) -> Result<Self> {
        let root = Beneath::root().map_err(|error| RepoError::io("open", "/", error))?;
        Self::below(Arc::new(root), paths, options)
    }

    pub(super) fn below(
        root: Arc<Beneath>,
        paths: &[PathBuf],
        options: WalkOptions,
    ) -> Result<Self> {
        let plan = Plan::new(paths);
        let mut queued = VecDeque::new();
        for (path, error) in plan.missing {
            if plan.found == 0 {
                return Err(RepoError::io("read", path, error)
                    .with_hint("none of the paths of this source is there; correct `paths` in the configuration"));
            }
            let path = std::path::absolute(&path).unwrap_or(path);
            let path = path.as_os_str().as_encoded_bytes();
            let path = path.strip_prefix(b"/").unwrap_or(path).to_vec();
            queued.push_back(Walked::Problem { path, what: error.to_string() });
        }
        let shared = Arc::new(Shared {
            context: Arc::new(Context {
                root,
                exclude: options.exclude,
                one_file_system: options.one_file_system,
                skip_caches: options.skip_caches,
                open: AtomicUsize::new(0),
            }),
            queue: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let threads = match options.threads {
            // More than cores: they wait for the disk when nothing is cached.
            0 => std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8),
            n => n,
        };
        let threads = (0..threads)
            .map_while(|_| {
                let shared = shared.clone();
                let spawned =
                    std::thread::Builder::new().name("walk".into()).spawn(move || shared.read());
                // Without threads the walk reads everything itself.
                spawned.inspect_err(|error| tracing::warn!(%error, "no thread to read ahead")).ok()
            })
            .collect();
        let root_task = Some(Task::root(Arc::new(plan.root)));
        Ok(Self { shared, threads, stack: Vec::new(), queued, begun: false, root_task })
    }

    fn begin(&mut self) {
        self.begun = true;
        if let Some(task) = self.root_task.take() {
            let outcome = task.run(&self.shared.context);
            self.shared.enqueue(&mut self.shared.lock(), &outcome);
            match outcome {
                Outcome::Listed(listing) => self.push(listing),
                Outcome::Vanished => {}
                Outcome::Unreadable(error) => self
                    .queued
                    .push_back(Walked::Problem { path: Vec::new(), what: error.to_string() }),
            }
        }
    }

    fn push(&mut self, mut listing: Listing) {
        if let Some(what) = listing.problem.take() {
            self.queued.push_back(Walked::Problem { path: listing.path.to_vec(), what });
        }
        let nodes = std::mem::take(&mut listing.nodes).into_iter();
        self.stack.push(Frame { nodes, listing });
    }

    /// What a node comes to; none if it has vanished.
    fn visit(&mut self, path: Vec<u8>, node: Node) -> Option<Walked> {
        let stat = match node.what {
            Ok(stat) => stat,
            Err(error) => {
                return Some(Walked::Problem {
                    path,
                    what: std::io::Error::from(error).to_string(),
                });
            }
        };
        if matches!(stat.kind, FileType::Socket | FileType::Unknown) {
            return Some(Walked::Skipped { path, kind: stat.kind });
        }
        let Some(below) = node.below else {
            return Some(Walked::Entry { path, stat, xattrs: None });
        };
        match self.shared.claim(&below) {
            Outcome::Vanished => None,
            Outcome::Unreadable(error) => {
                let what = format!("the directory could not be read: {error}");
                self.queued.push_back(Walked::Problem { path: path.clone(), what });
                Some(Walked::Entry { path, stat, xattrs: None })
            }
            Outcome::Listed(mut listing) => {
                let xattrs = Some(std::mem::take(&mut listing.xattrs));
                self.push(listing);
                Some(Walked::Entry { path, stat, xattrs })
            }
        }
    }
}

impl Iterator for Walk {
    type Item = Walked;

    fn next(&mut self) -> Option<Walked> {
        if !self.begun {
            self.begin();
        }
        loop {
            if let Some(walked) = self.queued.pop_front() {
                return Some(walked);
            }
            let frame = self.stack.last_mut()?;
            if let Some(node) = frame.nodes.next() {
                let path = frame.listing.path_of(&node);
                if let Some(walked) = self.visit(path, node) {
                    return Some(walked);
                }
            } else if let Some(next) = frame.listing.next.take() {
                self.stack.pop();
                if let Outcome::Listed(listing) = self.shared.claim(&next) {
                    self.push(listing);
                }
            } else {
                self.stack.pop();
            }
        }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reads directories panicked");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The result of a task whose turn has come.
    fn claim(&self, task: &Arc<Task>) -> Outcome {
        let mut queue = self.lock();
        loop {
            if let Some(outcome) = queue.done.remove(&task.key) {
                let was_full = queue.ahead >= AHEAD;
                queue.ahead = queue.ahead.saturating_sub(weight(&outcome));
                if was_full {
                    self.work.notify_all();
                }
                return outcome;
            }
            if queue.pending.remove(&task.key).is_some() {
                drop(queue);
                let outcome = task.run(&self.context);
                self.enqueue(&mut self.lock(), &outcome);
                return outcome;
            }
            queue = self.done.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// What a thread does until the walk ends.
    fn read(&self) {
        let mut queue = self.lock();
        loop {
            if queue.stop {
                return;
            }
            let next = if queue.ahead < AHEAD { queue.pending.pop_first() } else { None };
            let Some((key, task)) = next else {
                queue = self.work.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            };
            drop(queue);
            let outcome = task.run(&self.context);
            queue = self.lock();
            self.enqueue(&mut queue, &outcome);
            queue.ahead += weight(&outcome);
            queue.done.insert(key, outcome);
            self.done.notify_all();
        }
    }

    fn enqueue(&self, queue: &mut Queue, outcome: &Outcome) {
        let Outcome::Listed(listing) = outcome else { return };
        let below = listing.nodes.iter().filter_map(|node| node.below.as_ref());
        let mut count = 0;
        for task in below.chain(&listing.next) {
            queue.pending.insert(task.key.clone(), task.clone());
            count += 1;
        }
        match count {
            0 => {}
            1 => self.work.notify_one(),
            _ => self.work.notify_all(),
        }
    }
}

/// What an outcome takes in memory, in entries.
fn weight(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Listed(listing) => listing.nodes.len() + 1,
        _ => 1,
    }
}
