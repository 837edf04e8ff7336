//! The parent snapshot beside the walk: both sorted, so that each is passed once.

use std::collections::VecDeque;

use backstay_repo::{
    Body, Entry, EntryKind, FileContent, Repository, Result, Snapshot, Time, TreeIter,
    compare_paths,
};
use jiff::Timestamp;

use super::metadata::{FileType, Stat};

/// How long before the parent's start a file must have been at rest to be taken over. Seconds.
///
/// The time of a change is kept in steps of up to 10 ms by Linux, of 1 s by some and 2 s by the
/// oldest file systems: a file changed twice within a step looks the same after both. And of what is
/// written through a memory mapping only the first write to a page counts, until the kernel has
/// written that page to disk, which it does when the page is `dirty_expire_centisecs` old and the
/// writer wakes.
const AT_REST: i64 = 60;

/// [`AT_REST`], or longer where this system keeps changed pages for longer. File systems that are
/// never written back, such as tmpfs, never tell of what comes through a mapping.
fn at_rest() -> i64 {
    let read = |name: &str| -> Option<i64> {
        let text = std::fs::read_to_string(format!("/proc/sys/vm/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let expire = read("dirty_expire_centisecs").unwrap_or(3000);
    let wakes = read("dirty_writeback_centisecs").unwrap_or(500);
    if wakes == 0 {
        // It never wakes by itself: nothing is known to be at rest.
        tracing::warn!("vm.dirty_writeback_centisecs is 0: every file is read");
        return i64::MAX;
    }
    (expire.saturating_add(wakes.saturating_mul(2)) / 100).saturating_add(1).max(AT_REST)
}

/// Small files that are kept while no file comes: a directory of millions may be gone.
const PASSED: usize = 16 << 10;

/// The entries of the parent, asked for in path order.
pub(super) struct Parent {
    entries: Option<TreeIter>,
    next: Option<Entry>,
    /// Small files that were passed since somebody asked for them.
    passed: VecDeque<FileContent>,
    /// Only files whose status changed before this moment are taken over.
    before: Time,
}

impl Parent {
    pub fn new(repo: &Repository, snapshot: Option<&Snapshot>) -> Result<Self> {
        let Some(snapshot) = snapshot else { return Ok(Self::nothing()) };
        if Timestamp::now() < snapshot.finished {
            tracing::warn!(
                parent = snapshot.short_id(),
                "the clock is behind the previous backup: every file is read"
            );
            return Ok(Self::nothing());
        }
        let before =
            Time { seconds: snapshot.time.as_second().saturating_sub(at_rest()), nanos: 0 };
        let mut parent = Self {
            entries: Some(repo.tree(snapshot)?.iter()),
            next: None,
            passed: VecDeque::new(),
            before,
        };
        parent.advance();
        Ok(parent)
    }

    /// Without entries: every file is read.
    pub fn nothing() -> Self {
        Self { entries: None, next: None, passed: VecDeque::new(), before: Time::default() }
    }

    fn advance(&mut self) {
        self.next = match self.entries.as_mut().and_then(Iterator::next) {
            None => None,
            Some(Ok(entry)) => Some(entry),
            // A parent only saves work. Its damage is found by `verify` and by restoring it.
            Some(Err(error)) => {
                tracing::warn!(%error, "the previous snapshot cannot be read: the rest is read anew");
                self.entries = None;
                None
            }
        };
        if let Some(Entry { kind: EntryKind::File(content), .. }) = &self.next
            && matches!(content.body, Body::Member(_))
        {
            if self.passed.len() >= PASSED {
                self.passed.pop_front();
            }
            self.passed.push_back(content.clone());
        }
    }

    /// The small files up to the path that was asked for last.
    pub fn passed(&mut self) -> impl Iterator<Item = FileContent> {
        self.passed.drain(..)
    }

    fn go_to(&mut self, path: &[u8]) -> bool {
        while let Some(next) = &self.next {
            match compare_paths(&next.path, path) {
                std::cmp::Ordering::Less => self.advance(),
                order => return order.is_eq(),
            }
        }
        false
    }

    /// The parent's entry of this path. Paths must be asked for in order.
    pub fn at(&mut self, path: &[u8]) -> Option<&Entry> {
        if self.go_to(path) { self.next.as_ref() } else { None }
    }

    /// The parent's entry, if the file is as it was then.
    pub fn unchanged(&mut self, path: &[u8], stat: &Stat) -> Option<Entry> {
        if !self.go_to(path) {
            return None;
        }
        let before = self.next.as_ref()?;
        let EntryKind::File(content) = &before.kind else { return None };
        let same = content.size == stat.size && has_same_times(before, stat);
        // A change after the parent was read sets the time of the status to then or later. So does
        // a clock that was set back or a time in the future: those are read.
        let at_rest = stat.ctime < self.before;
        if same && at_rest { self.next.take().inspect(|_| self.advance()) } else { None }
    }
}

fn has_same_times(before: &Entry, stat: &Stat) -> bool {
    let meta = &before.meta;
    (meta.inode, meta.mtime, meta.ctime) == (stat.inode, stat.mtime, stat.ctime)
}

/// Something without content that has not been touched, so that its attributes are those of before.
pub(super) fn is_unchanged_inode(before: &Entry, stat: &Stat, kind: &EntryKind) -> bool {
    stat.kind != FileType::Directory && before.kind == *kind && has_same_times(before, stat)
}

#[cfg(test)]
mod tests {
    use backstay_repo::{FileContent, Metadata};

    use super::*;

    fn time(seconds: i64, nanos: u32) -> Time {
        Time { seconds, nanos }
    }

    fn stat(ctime: Time) -> Stat {
        Stat {
            kind: FileType::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            links: 1,
            size: 5,
            blocks: 8,
            inode: 7,
            device: 1,
            rdev: 0,
            mtime: time(50, 0),
            ctime,
        }
    }

    fn entry(ctime: Time) -> Entry {
        let meta = Metadata { inode: 7, mtime: time(50, 0), ctime, ..Metadata::default() };
        Entry { path: b"f".to_vec(), meta, kind: EntryKind::File(FileContent::inline(*b"hello")) }
    }

    fn is_taken_over(recorded: Time, now: Stat) -> bool {
        let mut parent = Parent {
            entries: None,
            next: Some(entry(recorded)),
            passed: VecDeque::new(),
            before: time(100, 0),
        };
        parent.unchanged(b"f", &now).is_some()
    }

    #[test]
    fn a_file_is_taken_over_only_when_everything_agrees_and_it_was_at_rest() {
        let at = time(99, 999_999_999);
        assert!(is_taken_over(at, stat(at)));
        assert!(!is_taken_over(time(100, 0), stat(time(100, 0))), "changed within the step");
        assert!(!is_taken_over(time(5000, 0), stat(time(5000, 0))), "changed in the future");
        assert!(!is_taken_over(at, stat(time(98, 0))), "another change");
        assert!(!is_taken_over(at, Stat { size: 6, ..stat(at) }));
        assert!(!is_taken_over(at, Stat { inode: 8, ..stat(at) }));
        assert!(!is_taken_over(at, Stat { mtime: time(50, 1), ..stat(at) }));
        assert!(!is_taken_over(Time::default(), stat(at)), "changed while it was read");
    }
}
