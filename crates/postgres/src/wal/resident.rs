//! An archiver that stays: it keeps repositories open between one segment and the next, and is ahead
//! of PostgreSQL, which asks for one file at a time and waits.
//!
//! What lives here: which files are pushed, which are in work, and what may be answered from what is
//! known. What does not: who asks, and how ([`push`](super::push) itself checks and stores a file).
//!
//! An answer is given without looking into a repository only for a file that this process made durable
//! in every one that it has to be in, and only while the file is the very one that was pushed. A file that
//! could not be pushed ahead is forgotten: PostgreSQL asks for it, and then its own push says why.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::num::NonZero;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::push::{PushReport, ready};
use crate::Result;

/// Pushes one file, and nothing ahead of it.
pub type Push = dyn Fn(&Path) -> Result<PushReport> + Send + Sync;

/// The archiver. Dropping it ends its threads when what they push is done.
#[derive(Debug)]
pub struct Resident {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something was pushed, or is to be.
    changed: Condvar,
    /// How many files may be pushed, and not be asked for yet.
    ahead: usize,
}

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, File>,
    /// Where to look for what is ready, and how to push it; none until somebody asks, and when
    /// something went wrong, until somebody asks again.
    look: Option<(PathBuf, Arc<Push>)>,
    ended: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("files", &self.files).field("ended", &self.ended).finish()
    }
}

#[derive(Debug)]
enum File {
    InWork,
    Pushed { mark: Mark, report: PushReport },
}

/// What tells a file from another one at the same path, and from itself after it was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    /// None where it cannot be read: then nothing is known of it either.
    fn of(path: &Path) -> Option<Self> {
        let of = |metadata: Metadata| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        std::fs::metadata(path).ok().map(of)
    }
}

impl Resident {
    /// An archiver that is at most `ahead` files ahead, pushing so many of them at once as there are
    /// `threads`. With 0 it pushes what it is asked for, and nothing else.
    #[must_use]
    pub fn new(ahead: usize, threads: NonZero<usize>) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), ahead });
        let threads = if ahead == 0 { 0 } else { threads.get().min(ahead) };
        let spawn = |number| {
            let shared = shared.clone();
            let name = format!("ahead-{number}");
            std::thread::Builder::new().name(name).spawn(move || shared.run_ahead()).ok()
        };
        let threads = (0..threads).filter_map(spawn).collect();
        Self { shared, threads }
    }

    /// Pushes the file at `path`, or answers what is known since it was pushed ahead; then goes on
    /// with what else is ready beside it.
    ///
    /// # Errors
    /// Those of [`push`](super::push).
    pub fn push(&self, path: &Path, push: &Arc<Push>) -> Result<PushReport> {
        let known = self.shared.known(path);
        // What is next need not wait for this one.
        self.shared.look_beside(path, push);
        match known {
            Some(report) => Ok(report),
            None => self.shared.push(path, push),
        }
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked said so already, and what it was at was never answered.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What is known of a file once nobody else is at work on it. None makes the caller the one who
    /// is at work.
    fn known(&self, path: &Path) -> Option<PushReport> {
        let mut state = self.lock();
        loop {
            match state.files.get(path) {
                Some(File::InWork) => {
                    state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
                }
                // It stays known for as long as it is ready, or it would be pushed ahead again.
                Some(File::Pushed { mark, report }) if Mark::of(path) == Some(*mark) => {
                    return Some(report.clone());
                }
                _ => {
                    state.files.insert(path.to_owned(), File::InWork);
                    return None;
                }
            }
        }
    }

    /// Has the threads push what else is ready in the folder of `path`.
    fn look_beside(&self, path: &Path, push: &Arc<Push>) {
        let Some(folder) = path.parent().filter(|_| self.ahead > 0) else { return };
        self.lock().look = Some((folder.to_owned(), push.clone()));
        self.changed.notify_all();
    }

    /// Pushes what is ready, until the archiver is dropped.
    fn run_ahead(&self) {
        while let Some((path, push)) = self.next() {
            let push = std::panic::AssertUnwindSafe(|| self.push(&path, &push));
            if let Ok(Err(error)) = std::panic::catch_unwind(push) {
                // PostgreSQL will ask for it by name and be told; here it is only late.
                tracing::warn!(file = %path.display(), %error, "not pushed ahead");
            }
        }
    }

    /// Pushes a file that is noted as being in work, and notes what came of it.
    fn push(&self, path: &Path, push: &Arc<Push>) -> Result<PushReport> {
        let mut work = Work { shared: self, path, pushed: None };
        let before = Mark::of(path);
        let report = push(path)?;
        // Where a repository is late, the next push tries that one again. Who is never ahead has nothing
        // to remember either: nobody would ever look what of it can be forgotten.
        work.pushed = before
            .filter(|_| self.ahead > 0)
            .filter(|before| report.late.is_empty() && Mark::of(path) == Some(*before))
            .map(|mark| File::Pushed { mark, report: report.clone() });
        Ok(report)
    }

    /// Waits for a file that is ready and that nobody has pushed or is pushing, and takes it. None
    /// when the archiver ends.
    fn next(&self) -> Option<(PathBuf, Arc<Push>)> {
        let mut state = self.lock();
        loop {
            if state.ended {
                return None;
            }
            if let Some(found) = self.take(&mut state) {
                return Some(found);
            }
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn take(&self, state: &mut State) -> Option<(PathBuf, Arc<Push>)> {
        let (folder, push) = state.look.clone()?;
        let ready: Vec<PathBuf> =
            ready(&folder).into_iter().map(|name| folder.join(name.to_string())).collect();
        // What is not ready any more was answered, by whatever way, and will not be asked for again.
        state.files.retain(|path, file| matches!(file, File::InWork) || ready.contains(path));
        // The first of them are those that PostgreSQL asks for next, and it counts what it asked for.
        let next = ready
            .iter()
            .take(self.ahead.saturating_add(1))
            .find(|path| !state.files.contains_key(*path))?
            .clone();
        state.files.insert(next.clone(), File::InWork);
        Some((next, push))
    }
}

/// A file in work. However that ends, nobody waits for it any longer.
struct Work<'a> {
    shared: &'a Shared,
    path: &'a Path,
    /// None: it failed, or nothing may be answered from it.
    pushed: Option<File>,
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        match self.pushed.take() {
            Some(pushed) => drop(state.files.insert(self.path.to_owned(), pushed)),
            None => {
                state.files.remove(self.path);
                // Nothing is pushed past it before PostgreSQL has asked again.
                state.look = None;
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}
