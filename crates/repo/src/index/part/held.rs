//! The entries of a part that much is looked up in, opened once and held in memory.
//!
//! A look-up in a block takes a system call and the opening of half a kibibyte. Who looks up a
//! fiftieth of what a part has is likely to go on, and pays with one pass over it for all that
//! follows. 28 bytes for each entry are 28 MiB for each TiB of chunks of 1 MiB; all parts that are
//! open together hold an eighth of the machine's memory at most. The rest is looked up block by
//! block.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{BLOCK, BLOCK_ENTRIES, Part, READ_AHEAD};
use crate::crypto::TAG;
use crate::index::segment::ENTRY;

/// Which part of its entries has to be looked up before all of them are held.
const SHARE: usize = 50;

/// What may be held at once in this process.
pub(super) struct Budget {
    most: OnceLock<u64>,
    held: AtomicU64,
}

static BUDGET: Budget = Budget { most: OnceLock::new(), held: AtomicU64::new(0) };

impl Budget {
    #[cfg(test)]
    pub(super) fn of(most: u64) -> Self {
        Self { most: OnceLock::from(most), held: AtomicU64::new(0) }
    }

    #[cfg(test)]
    pub(super) fn in_use(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let most = *self.most.get_or_init(|| memory() / 8);
        let more = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= most);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What this process may use of the machine's memory: less where its control group says so.
fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max");
    let group = group.ok().and_then(|text| text.trim().parse().ok());
    machine.min(group.unwrap_or(u64::MAX))
}

/// The blocks of a part without their tags.
pub(super) struct Entries {
    bytes: Vec<u8>,
    budget: &'static Budget,
}

impl Entries {
    /// The entries of a block.
    pub(super) fn chunk(&self, number: usize) -> &[u8] {
        let start = number * BLOCK_ENTRIES * ENTRY;
        let end = self.bytes.len().min(start + BLOCK_ENTRIES * ENTRY);
        self.bytes.get(start..end).unwrap_or_default()
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes.len() as u64);
    }
}

pub(super) struct Held {
    budget: &'static Budget,
    looked: AtomicU32,
    /// `None` when there is no room for them, or they cannot be read.
    entries: OnceLock<Option<Entries>>,
}

impl Default for Held {
    fn default() -> Self {
        Self::within(&BUDGET)
    }
}

impl Held {
    pub(super) fn within(budget: &'static Budget) -> Self {
        Self { budget, looked: AtomicU32::new(0), entries: OnceLock::new() }
    }

    /// Whether the entries are held, once that is decided.
    #[cfg(test)]
    pub(super) fn is_open(&self) -> Option<bool> {
        self.entries.get().map(Option::is_some)
    }

    /// The entries of `part`, whose own this is, when they are held; counts a look-up.
    pub(super) fn entries(&self, part: &Part) -> Option<&Entries> {
        if let Some(entries) = self.entries.get() {
            return entries.as_ref();
        }
        let looked = self.looked.fetch_add(1, Ordering::Relaxed) as usize;
        // Exactly one thread comes by the number; the others go on without.
        if looked == part.len() / SHARE {
            let _ = self.entries.set(self.open(part));
        }
        None
    }

    /// Opens all blocks. A damaged one leaves the part as it was: each look-up says then what it hit.
    fn open(&self, part: &Part) -> Option<Entries> {
        let size = part.len() * ENTRY;
        if !self.budget.take(size as u64) {
            return None;
        }
        // From here on, what is dropped is given back, all of it.
        let mut entries = Entries { bytes: vec![0; size], budget: self.budget };
        let mut buffer = Vec::new();
        let mut rest = entries.bytes.as_mut_slice();
        for first in (0..part.fences.len()).step_by(READ_AHEAD) {
            let end = part.fences.len().min(first + READ_AHEAD);
            buffer.resize(part.length(first..end), 0);
            part.blocks(first, &mut buffer).ok()?;
            for block in buffer.chunks(BLOCK) {
                let opened = block.get(..block.len() - TAG)?;
                let (to, left) = std::mem::take(&mut rest).split_at_mut_checked(opened.len())?;
                to.copy_from_slice(opened);
                rest = left;
            }
        }
        Some(entries)
    }
}
