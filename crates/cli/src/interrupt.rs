//! SIGINT and SIGTERM: a clean stop where there is work to stop, an immediate one elsewhere.
//!
//! Outside of work the first signal ends the process with 130. During work it asks the work to
//! stop, and a second one ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// How a process ends that was told to stop.
const EXIT: i32 = 130;

#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    /// The next signal ends the process.
    immediate: Arc<AtomicBool>,
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    /// Handles signals from now on. Commands that follow another contract do not call this.
    pub fn handle(&self) {
        self.immediate.store(true, SeqCst);
        for signal in [SIGINT, SIGTERM] {
            // In this order: end, or note the wish and let the next one end. A handler that cannot
            // be set leaves the default, which ends the process as well.
            let _ = flag::register_conditional_shutdown(signal, EXIT, self.immediate.clone());
            let _ = flag::register(signal, self.requested.clone());
            let _ = flag::register(signal, self.immediate.clone());
        }
    }

    /// Whether somebody asked to stop.
    pub fn is_requested(&self) -> bool {
        self.requested.load(SeqCst)
    }

    /// While the guard lives, the first signal only asks.
    pub fn graceful(&self) -> Graceful<'_> {
        self.immediate.store(false, SeqCst);
        Graceful { interrupt: self }
    }
}

pub struct Graceful<'a> {
    interrupt: &'a Interrupt,
}

impl Drop for Graceful<'_> {
    fn drop(&mut self) {
        self.interrupt.immediate.store(true, SeqCst);
    }
}
