//! The archive of WAL: pushing to it, fetching from it, and saying what can be recovered with it.
//!
//! What lives here: positions and names, the format of pages and records, what records do and which
//! blocks they change (`changes/`), timeline histories, `push` and `fetch` as PostgreSQL's archiver and recovery call them, the recovery window, and
//! whether a recovery target can be reached. What does not: how the archive is stored
//! (`backstay_repo::Archive`), and any conversation with a server.

pub mod changes;
mod deliver;
pub mod detect;
pub mod dump;
pub mod effect;
mod expire;
mod fetch;
pub mod files;
pub mod findings;
mod history;
mod hole;
pub mod inventory;
mod keep;
pub mod kind;
mod lsn;
mod name;
pub mod page;
mod push;
pub mod reader;
pub mod record;
mod resident;
pub mod scan;
mod spool;
mod target;
mod transaction;
mod whole;
mod window;

pub use changes::{Changes, FileChanges, Fork};
pub use detect::{Detected, Detection, Moment, Nearest, detect};
pub use expire::{Follower, expire};
pub use fetch::{FetchOptions, FetchOutcome, fetch, fetch_spooled, prefetch};
pub use files::{Files, Folder};
pub use findings::{Finding, read_through};
pub use history::{History, HistoryError, Switch};
pub use inventory::{Begun, Inventory, read_history};
pub use keep::Keep;
pub use lsn::{Lsn, LsnError, SegmentSize};
pub use name::{NameError, SegmentName, WalName};
pub use page::{SegmentHeader, check_segment};
pub use push::{Destination, PushOptions, PushReport, push};
pub use reader::Reader;
pub use record::{BlockReference, Event, Record, Relation, TransactionEnd};
pub use resident::{Push, Resident};
pub use scan::{Range, Scan, Scanned, Summary, summarize};
pub use spool::LIMIT as SPOOL_LIMIT;
pub use target::{
    CheckOptions, RecoveryBase, RecoveryTarget, Search, TargetCheck, TargetTimeline, check_target,
    check_target_with,
};
pub use window::{
    ArchiveHealth, NewestPoint, RecoveryWindow, SegmentRange, TimelineHealth, Unusable, health,
    window,
};
