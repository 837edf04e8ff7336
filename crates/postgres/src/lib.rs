//! All that speaks PostgreSQL: backup, archive and restore of a running cluster, versions 13 to 18.
//!
//! What lives here: pages and their checksums, the control file, SQL sessions, what of a data
//! directory is copied, the backup itself, the archive of WAL, restoring to any moment, and logical
//! backups (`logical`). What does not: how content is stored (crate `repo`), and when any of it is done (crate `ops`).

mod backup;
mod check;
mod configuration;
mod connection;
pub mod control;
pub mod copy;
mod detail;
mod error;
mod extract;
mod inspect;
#[doc(hidden)]
pub mod internals;
mod known;
pub mod logical;
mod owner;
pub mod page;
mod reader;
mod receive;
pub mod restore;
pub mod session;
mod settings;
mod stream;
mod tls;
pub mod wal;
mod watch;
mod wire;

pub use backup::{Backup, BackupOptions, Backups, Method, Target, backup, backup_to};
pub use check::{CheckItem, CheckOptions, check};
pub use configuration::ConfigurationFile;
pub use detail::BackupDetail;
pub use error::{PostgresError, PostgresErrorKind};
pub use extract::{ExtractOptions, Extracted, Loaded, Part, extract};
pub use inspect::{Cluster, Database, ServerSettings, Tablespace, inspect};
pub use known::Detect;
pub use owner::only_own;
pub use receive::{ReceiveOptions, ReceiveState, ReceiveStatus, Slot, drop_slot, receive};
pub use restore::{RestoreOptions, Restored, StartOptions, TargetAction, restore};
pub use session::Source;
pub use settings::{Applied, Setting, apply_settings, settings};

/// The result of everything that touches PostgreSQL.
pub type Result<T, E = PostgresError> = std::result::Result<T, E>;
pub use watch::{Alert, Archiver, SlotState, Waiting, WatchOptions, Watched, watch};
