//! The way of a file from the stream to the workers, who read it while it comes.
//!
//! What came is kept in cells of the repository's grid until the worker says that it will not read
//! them again; all files that are on their way together have a budget. The thread that receives waits
//! for it, so that a server that is faster than the repository is held up by the connection.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use backstay_repo::{Content, ContentError, Reader};

use crate::reader::PageChecks;

/// As large as a cell of the grid. Bytes.
const CELL: usize = 1 << 20;

/// How much may wait. A region of the grid (64 MiB) has to have room, since a worker may want to read
/// all of it again before it lets go of any. Bytes.
const BUDGET: usize = 96 << 20;

/// Nobody wants the rest any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped;

/// What all files on their way may take together.
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<(usize, bool)>,
    freed: Condvar,
}

impl Budget {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((BUDGET, false)), freed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, (usize, bool)> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn take(&self, bytes: usize) -> Result<(), Stopped> {
        let mut state = self.lock();
        while state.0 < bytes && !state.1 {
            state = self.freed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        if state.1 {
            return Err(Stopped);
        }
        state.0 -= bytes;
        Ok(())
    }

    fn give(&self, bytes: usize) {
        self.lock().0 += bytes;
        self.freed.notify_all();
    }

    /// Wakes whoever waits: the backup has ended.
    pub(crate) fn stop(&self) {
        self.lock().1 = true;
        self.freed.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().1
    }
}

#[derive(Default)]
struct State {
    cells: BTreeMap<u64, Vec<u8>>,
    /// Up to where it came.
    came: u64,
    /// No more will come.
    cut: bool,
    /// Nobody reads it any more.
    dropped: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    size: u64,
    budget: Arc<Budget>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What a cell takes of the budget.
    fn room(&self, number: u64) -> usize {
        self.size.saturating_sub(number * CELL as u64).min(CELL as u64) as usize
    }

    /// Lets go of cells.
    fn free(&self, cells: BTreeMap<u64, Vec<u8>>) {
        let bytes = cells.keys().map(|number| self.room(*number)).sum();
        drop(cells);
        if bytes > 0 {
            self.budget.give(bytes);
        }
    }
}

/// The end at which a file is filled.
pub(crate) struct Filler(Arc<Shared>);

/// The end at which it is read.
pub(crate) struct Feed {
    shared: Arc<Shared>,
    /// In the snapshot.
    path: Arc<str>,
    /// Of a relation: read region by region, and checked; with the number of its first block.
    pub(crate) relation: bool,
    pub(crate) pages: Option<(Arc<PageChecks>, u32)>,
}

/// A file of so many bytes that is to come.
pub(crate) fn feed(size: u64, path: &[u8], budget: &Arc<Budget>) -> (Filler, Feed) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        changed: Condvar::new(),
        size,
        budget: budget.clone(),
    });
    let path = String::from_utf8_lossy(path).into();
    (Filler(shared.clone()), Feed { shared, path, relation: false, pages: None })
}

impl Filler {
    /// Takes the next bytes of the file. Waits while there is no room for them.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let (at, dropped) = {
                let state = self.0.lock();
                (state.came, state.dropped)
            };
            let (number, within) = (at / CELL as u64, (at % CELL as u64) as usize);
            let (now, later) = bytes.split_at((CELL - within).min(bytes.len()));
            bytes = later;
            let mut fresh = None;
            if within == 0 && !dropped {
                let room = self.0.room(number);
                self.0.budget.take(room)?;
                fresh = Some(Vec::with_capacity(room));
            }
            let mut state = self.0.lock();
            state.came += now.len() as u64;
            if !state.dropped {
                let cell =
                    state.cells.entry(number).or_insert_with(|| fresh.take().unwrap_or_default());
                cell.extend_from_slice(now);
            }
            drop(state);
            if fresh.is_some() {
                self.0.budget.give(self.0.room(number));
            }
            self.0.changed.notify_all();
        }
        Ok(())
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.cut = state.came < self.0.size;
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Content for Feed {
    fn open(self: Box<Self>) -> Result<Box<dyn Reader>, ContentError> {
        Ok(self)
    }
}

impl Reader for Feed {
    fn size(&self) -> u64 {
        self.shared.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.shared.size.saturating_sub(offset);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let mut filled = 0;
        while filled < want {
            let at = offset + filled as u64;
            let (number, within) = (at / CELL as u64, (at % CELL as u64) as usize);
            let most = (CELL - within).min(want - filled);
            let end = at + most as u64;
            let mut state = self.shared.lock();
            while state.came < end && !state.cut {
                state = self.shared.changed.wait(state).unwrap_or_else(|e| e.into_inner());
            }
            let cell = state.cells.get(&number).and_then(|cell| cell.get(within..within + most));
            let Some(cell) = cell.filter(|_| state.came >= end) else {
                return Err(io::Error::other(match state.cut {
                    true => "it did not come whole",
                    false => "it was read again after it was let go",
                }));
            };
            if let Some(to) = buffer.get_mut(filled..filled + most) {
                to.copy_from_slice(cell);
            }
            filled += most;
            drop(state);
            if !self.relation {
                // Such a file is read from its beginning to its end, once.
                self.release(0..offset + filled as u64);
            }
        }
        if let (Some((checks, first)), Some(read)) = (&self.pages, buffer.get(..want)) {
            checks.look(&self.path, *first, offset, read)?;
        }
        Ok(want)
    }

    fn release(&self, range: Range<u64>) {
        let mut state = self.shared.lock();
        // Only cells that are in it as a whole, or as far as the file goes.
        let first = range.start.div_ceil(CELL as u64);
        let end = match range.end >= self.shared.size {
            true => u64::MAX,
            false => range.end / CELL as u64,
        };
        if first >= end {
            return;
        }
        let mut freed = state.cells.split_off(&first);
        state.cells.append(&mut freed.split_off(&end));
        drop(state);
        self.shared.free(freed);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.dropped = true;
        let cells = std::mem::take(&mut state.cells);
        drop(state);
        self.shared.free(cells);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(budget: &Budget) -> usize {
        budget.lock().0
    }

    #[test]
    fn a_file_larger_than_the_budget_passes_while_it_is_read() {
        let budget = Budget::new();
        let size = (BUDGET + 5 * CELL + 77) as u64;
        let (mut filler, mut feed) = feed(size, b"data/base/5/1", &budget);
        feed.relation = true;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let piece: Vec<u8> = (0..40_000).map(|at| (at % 251) as u8).collect();
                let mut sent = 0;
                while sent < size {
                    let now = piece.len().min((size - sent) as usize);
                    filler.push(&piece[..now]).unwrap();
                    sent += now as u64;
                }
            });
            let mut buffer = vec![0; CELL];
            let mut at = 0;
            while at < size {
                let read = feed.read_at(at, &mut buffer).unwrap();
                assert_eq!(buffer[read - 1], ((at + read as u64 - 1) % 40_000 % 251) as u8);
                feed.release(at..at + read as u64);
                at += read as u64;
            }
        });
        assert_eq!(left(&budget), BUDGET);
    }

    #[test]
    fn what_is_cut_short_or_not_wanted_blocks_nobody() {
        let budget = Budget::new();
        let (mut filler, cut) = feed(10, b"a", &budget);
        filler.push(b"12345").unwrap();
        drop(filler);
        assert!(cut.read_at(0, &mut [0; 10]).unwrap_err().to_string().contains("whole"));
        drop(cut);
        let size = 2 * BUDGET as u64;
        let (mut filler, unwanted) = feed(size, b"b", &budget);
        drop(unwanted);
        filler.push(&vec![1; 2 * BUDGET]).unwrap();
        assert_eq!(left(&budget), BUDGET);
        let (mut filler, _kept) = feed(size, b"c", &budget);
        std::thread::scope(|scope| {
            let filling = scope.spawn(move || filler.push(&vec![1; 2 * BUDGET]));
            budget.stop();
            assert_eq!(filling.join().unwrap(), Err(Stopped));
        });
    }
}
