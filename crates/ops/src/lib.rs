//! What turns engines into a tool: configuration, secrets, jobs, verification, status.
//!
//! What lives here: everything the command line and the server share. What does not: words on a
//! screen (crate `cli`) and anything that opens a repository object (crate `repo`).

pub mod check;
pub mod config;
mod context;
pub mod discover;
mod error;
pub mod expire;
pub mod forget;
pub mod jobs;
pub mod key_log;
pub mod lifecycle;
pub mod moment;
pub mod nearest;
pub mod privilege;
pub mod recover;
pub mod replicate;
pub mod retention;
pub mod secret;
pub mod status;
pub mod units;
pub mod verify;
pub mod watch;

pub use context::{Context, Found};
pub use error::{Error, ErrorKind};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
