//! Real servers and data for the tests: throw-away PostgreSQL clusters, small file systems that run
//! full, trees of files from a seed, altered samples for parsers, the built binary. It knows nothing of the crates under test.
//!
//! Everything here panics where it cannot do its work, because its callers are tests. What cannot
//! be had on this machine (a server that is not installed, a mount without being root) is `None`,
//! and the test says so with [`skip!`].

mod altered;
mod binary;
mod process;
mod space;
mod tree;

pub mod postgres;

pub use altered::{Counting, with_altered};
pub use binary::backstay_bin;
pub use process::{ServerUser, own, server_user};
pub use space::Space;
pub use tree::{FileTree, snapshot_of};

use std::io::Write as _;

/// Ends the test with "skipped: …" on standard error, and panics instead where the environment
/// variable `CI` is set: a machine that must have everything must not pass by having nothing.
///
/// ```
/// # fn test() {
/// let Some(server) = backstay_testing::postgres::version(15) else {
///     backstay_testing::skip!("PostgreSQL 15 is not installed; run scripts/test-postgres");
/// };
/// # let _ = server;
/// # }
/// ```
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::skipped(&format!($($reason)+));
        return;
    }};
}

/// What [`skip!`] says before it returns.
pub fn skipped(reason: &str) {
    if std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false") {
        panic!("would be skipped, but CI must have it: {reason}");
    }
    let test = std::thread::current();
    // Written past the capture of the test harness: a skip that nobody sees is a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {}: {reason}", test.name().unwrap_or("test"));
}

/// Asks `ready` every few milliseconds until it answers true; panics with `what` after `seconds`.
pub fn wait_until(what: &str, seconds: u64, mut ready: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !ready() {
        assert!(std::time::Instant::now() < end, "waited {seconds} s in vain until {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
