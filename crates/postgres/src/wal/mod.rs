//! The archive of WAL: pushing to it, fetching from it, and saying what can be recovered with it.
//!
//! What lives here: positions and names, the format of pages and records, timeline histories,
//! `push` and `fetch` as PostgreSQL's archiver and recovery call them, the recovery window, and
//! whether a recovery target can be reached. What does not: how the archive is stored
//! (`backstay_repo::Archive`), and any conversation with a server.

mod deliver;
mod fetch;
mod history;
pub mod inventory;
mod lsn;
mod name;
pub mod page;
mod push;
pub mod reader;
pub mod record;
mod spool;
mod target;
mod window;

pub use fetch::{FetchOptions, FetchOutcome, fetch, fetch_spooled, prefetch};
pub use history::{History, HistoryError, Switch};
pub use inventory::{Inventory, read_history};
pub use lsn::{Lsn, LsnError, SegmentSize};
pub use name::{NameError, SegmentName, WalName};
pub use page::{SegmentHeader, check_segment};
pub use push::{Destination, PushOptions, PushReport, push};
pub use reader::Reader;
pub use record::{Event, Record, TransactionEnd};
pub use spool::LIMIT as SPOOL_LIMIT;
pub use target::{
    CheckOptions, RecoveryBase, RecoveryTarget, Search, TargetCheck, TargetTimeline, check_target,
    check_target_with,
};
pub use window::{
    ArchiveHealth, NewestPoint, RecoveryWindow, SegmentRange, TimelineHealth, Unusable, health,
    window,
};
