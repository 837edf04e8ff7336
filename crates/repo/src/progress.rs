use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::{RepoError, RepoErrorKind, Result};

/// Counters that a long piece of work keeps and a display reads, and the way to stop the work.
#[derive(Debug, Default)]
pub struct Progress {
    phase: Mutex<&'static str>,
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    total_items: AtomicU64,
    done_items: AtomicU64,
    stored_bytes: AtomicU64,
    cancelled: AtomicBool,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProgressSnapshot {
    pub phase: &'static str,
    /// Bytes known to be ahead, in all; 0 while unknown.
    pub total_bytes: u64,
    pub done_bytes: u64,
    pub total_items: u64,
    pub done_items: u64,
    /// Bytes sent to the store.
    pub stored_bytes: u64,
}

impl Progress {
    pub fn set_phase(&self, phase: &'static str) {
        *self.phase.lock().unwrap_or_else(|e| e.into_inner()) = phase;
    }

    pub fn add_total(&self, bytes: u64, items: u64) {
        self.total_bytes.fetch_add(bytes, Relaxed);
        self.total_items.fetch_add(items, Relaxed);
    }

    pub fn add_done(&self, bytes: u64, items: u64) {
        self.done_bytes.fetch_add(bytes, Relaxed);
        self.done_items.fetch_add(items, Relaxed);
    }

    pub fn add_stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Relaxed);
    }

    /// Asks the work to stop at its next step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }

    /// An error once the work was asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(RepoError::new(RepoErrorKind::Aborted, "interrupted")
                .with_hint("nothing that was stored before is affected; run it again to go on"));
        }
        Ok(())
    }

    pub fn snapshot(&self) -> ProgressSnapshot {
        ProgressSnapshot {
            phase: *self.phase.lock().unwrap_or_else(|e| e.into_inner()),
            total_bytes: self.total_bytes.load(Relaxed),
            done_bytes: self.done_bytes.load(Relaxed),
            total_items: self.total_items.load(Relaxed),
            done_items: self.done_items.load(Relaxed),
            stored_bytes: self.stored_bytes.load(Relaxed),
        }
    }
}
